//! Values that people bring: followed, judged, never followed into trouble.

use claviger::domain::key::KeyKind;
use serde_json::{Value, json};

use crate::{
    facts::{A_WHILE, delete_secret, edit, event, kubectl, minted, to},
    support::{
        Operator, Options, Space,
        space::{condition, host_key},
    },
};

const ENTRY: &str = "host.function.partner";
const GOOD: &str = "8dQ2xJ7vK1mZ5tR9wB4nY6cH3gF0sLpA";

fn follows(name: &str, key: &str) -> Value {
    json!({"valueFrom": {"secretKeyRef": {"name": name, "key": key}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brought_value_is_followed_with_overlap_and_what_is_unfit_changes_nothing() {
    let space = Space::new("sources").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let mut spec = follows("chosen", "value");
    json_patch::merge(&mut spec, &to("client", "KEY"));
    space.declare("partner", host_key("partner", spec)).await;
    let message = space.not_ready("partner", "SourceNotFound").await;
    assert_eq!(message, "entry value of Secret/chosen does not exist");
    space.put_secret("chosen", &[("another", GOOD)]).await;
    space
        .until("partner", "told of the entry", |status| {
            status.conditions[0].message == "entry value of Secret/chosen has no such entry"
        })
        .await;

    // Unfit values, each told in its own words; nothing is published.
    let master = minted(KeyKind::Master, 50);
    let function = minted(KeyKind::Function, 51);
    let mut mistyped = function.clone();
    mistyped.replace_range(
        3..4,
        if mistyped.as_bytes()[3] == b'x' {
            "y"
        } else {
            "x"
        },
    );
    let unfit: [(&str, &str); 8] = [
        ("", "the value is empty"),
        ("hunter2", "the value is too easy to guess"),
        (
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "the value is too easy to guess",
        ),
        (&format!("{GOOD}\n"), "the value ends with a line break"),
        (&format!("{GOOD} {GOOD}"), "the value contains white space"),
        (
            &format!("{GOOD}\u{e4}"),
            "the value has characters outside ASCII",
        ),
        (&mistyped, "was mistyped or cut"),
        (
            &master,
            "the value is an identifiable master key and a function key belongs here",
        ),
    ];
    for (value, told) in unfit {
        edit(&space, "chosen", json!({"stringData": {"value": value}})).await;
        let status = space
            .until("partner", told, |status| {
                status.conditions[0].message.contains(told)
            })
            .await;
        assert_eq!(crate::support::space::ready_reason(&status), "ValueRefused");
        assert_eq!(condition(&status, "Stalled"), "True");
        assert!(
            value.is_empty()
                || !serde_json::to_string(&status)
                    .unwrap()
                    .contains(value.trim_end()),
            "the value is not repeated"
        );
    }
    edit(
        &space,
        "chosen",
        json!({"data": {"value": "//79/P/+/fz//v38//79/P/+/fw="}}),
    )
    .await;
    space
        .until("partner", "not UTF-8", |status| {
            status.conditions[0].message.contains("is not UTF-8 text")
        })
        .await;
    assert!(!space.data("keys").await.contains_key(ENTRY));
    assert!(space.data("client").await.is_empty());

    // A fit one is published as it is; a changed one is a turn like any other.
    edit(&space, "chosen", json!({"stringData": {"value": GOOD}})).await;
    let status = space.ready("partner").await;
    assert_eq!(
        serde_json::to_value(status.origin.unwrap()).unwrap(),
        "Supplied"
    );
    assert_eq!(space.data("keys").await[ENTRY], GOOD);
    assert_eq!(space.data("client").await["KEY"], GOOD);
    edit(&space, "chosen", json!({"stringData": {"value": function}})).await;
    let data = space
        .until_data("keys", "follow", |data| data[ENTRY] == function)
        .await;
    assert_eq!(data[&format!("{ENTRY}.previous-1")], GOOD);
    event(&space, "partner", "Rotated").await;
    space
        .until_data("client", "follow", |data| data["KEY"] == function)
        .await;
    let good = space.data("keys").await;

    // From now on whatever happens to the source, the last good value stays.
    edit(&space, "chosen", json!({"stringData": {"value": "weak"}})).await;
    let message = space.not_ready("partner", "ValueRefused").await;
    assert!(
        message.ends_with("; the value published last stays in place"),
        "{message}"
    );
    edit(&space, "chosen", json!({"data": {"value": null}})).await;
    space.not_ready("partner", "SourceNotFound").await;
    delete_secret(&space, "chosen").await;
    space
        .until("partner", "without a source", |status| {
            status.conditions[0]
                .message
                .contains("Secret/chosen does not exist")
                || status.conditions[0]
                    .message
                    .contains("entry value of Secret/chosen does not exist")
        })
        .await;
    for (type_, data) in [
        ("helm.sh/release.v1", json!({"value": GOOD})),
        ("bootstrap.kubernetes.io/token", json!({"value": GOOD})),
    ] {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chosen"}, "type": type_, "stringData": data});
        kubectl(&space, &["create", "-f", "-"], &secret.to_string())
            .await
            .unwrap();
        let message = space.not_ready("partner", "SourceRefused").await;
        assert!(
            message.contains("is of a type that values are not taken from"),
            "{message}"
        );
        delete_secret(&space, "chosen").await;
        space.not_ready("partner", "SourceNotFound").await;
    }
    // Drift of the published value is undone though the source is gone.
    let mut written = good.clone();
    written.insert(ENTRY.to_owned(), minted(KeyKind::Function, 52));
    space.host_writes("keys", &written).await;
    space
        .until_data("keys", "be undone", |data| *data == good)
        .await;
    assert_eq!(space.data("client").await["KEY"], function);

    // Revoking a value that is the source's: told, and done with what can be taken back.
    space.put_secret("chosen", &[("value", &function)]).await;
    space.ready("partner").await;
    space
        .change(
            "partner",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    let data = space
        .until_data("keys", "take back what it can", |data| {
            !data.contains_key(&format!("{ENTRY}.previous-1"))
        })
        .await;
    assert_eq!(data[ENTRY], function);
    space
        .change(
            "partner",
            json!({"spec": {"rotation": {"revokeGeneration": 2}}}),
        )
        .await;
    space.ready("partner").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_accounts_token_is_never_handed_out_as_a_key_nor_overwritten() {
    let space = Space::new("tokens").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}});
    kubectl(&space, &["create", "-f", "-"], &account.to_string())
        .await
        .unwrap();
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "bot-token", "annotations": {"kubernetes.io/service-account.name": "bot"}},
    });
    kubectl(&space, &["create", "-f", "-"], &token.to_string())
        .await
        .unwrap();
    let token = space
        .until_data("bot-token", "have a token", |data| {
            data.contains_key("token")
        })
        .await;
    space
        .declare("thief", host_key("thief", follows("bot-token", "token")))
        .await;
    let message = space.not_ready("thief", "SourceRefused").await;
    assert!(
        message.contains(
            "entry token of Secret/bot-token is of a type that values are not taken from"
        ),
        "{message}"
    );
    assert!(
        !space
            .data("keys")
            .await
            .values()
            .any(|value| *value == token["token"])
    );
    space
        .declare("vandal", host_key("vandal", to("bot-token", "token")))
        .await;
    space.not_ready("vandal", "TargetRefused").await;
    space
        .declare(
            "squatter",
            host_key("x", json!({"storage": {"secret": {"name": "bot-token"}}})),
        )
        .await;
    space.not_ready("squatter", "StoreRefused").await;
    assert_eq!(space.data("bot-token").await, token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_can_be_given_and_taken_away_and_a_copy_or_another_apps_key_can_be_one() {
    let space = Space::new("switch").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .declare("partner", host_key("partner", to("client", "KEY")))
        .await;
    space.ready("partner").await;
    let first = space.data("keys").await[ENTRY].clone();
    // Another app of the same namespace takes the same value: it follows the first one's copy.
    let mut spec = follows("client", "KEY");
    json_patch::merge(
        &mut spec,
        &json!({"storage": {"secret": {"name": "second-app"}}}),
    );
    space.declare("second", host_key("partner", spec)).await;
    space.ready("second").await;
    assert_eq!(space.data("second-app").await[ENTRY], first);
    let mut spec = follows("second-app", ENTRY);
    json_patch::merge(
        &mut spec,
        &json!({"storage": {"secret": {"name": "third-app"}}}),
    );
    space.declare("third", host_key("partner", spec)).await;
    space.ready("third").await;
    for generation in 1..=3 {
        let before = space.data("keys").await[ENTRY].clone();
        space
            .change(
                "partner",
                json!({"spec": {"rotation": {"generation": generation}}}),
            )
            .await;
        for follower in ["second-app", "third-app"] {
            let data = space
                .until_data(follower, "follow", |data| data[ENTRY] != before)
                .await;
            assert_eq!(data[ENTRY], space.data("keys").await[ENTRY]);
            assert_eq!(data[&format!("{ENTRY}.previous-{generation}")], before);
        }
    }

    space
        .change(
            "partner",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    space
        .until_data("keys", "be revoked", |data| data.len() == 2)
        .await;
    // Given a source, a minted key turns to its value; without one again, it stays.
    space.put_secret("chosen", &[("value", GOOD)]).await;
    let before = space.data("keys").await[ENTRY].clone();
    space.change("partner", json!({"spec": {"valueFrom": {"secretKeyRef": {"name": "chosen", "key": "value"}}, "rotation": null}})).await;
    let data = space
        .until_data("keys", "take the source's value", |data| {
            data[ENTRY] == GOOD
        })
        .await;
    assert_eq!(data[&format!("{ENTRY}.previous-5")], before);
    space
        .change("partner", json!({"spec": {"valueFrom": null}}))
        .await;
    space.ready("partner").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await[ENTRY], GOOD);
}
