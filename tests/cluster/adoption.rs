//! Stores that others made and write to: adopted, shared, repaired, refused.

use claviger::domain::key::KeyKind;
use serde_json::json;

use crate::{
    facts::{
        A_WHILE, annotation, delete_secret, drop_entries, edit, event, function_key, gone, kubectl,
        minted, promised, record, to,
    },
    support::{
        Operator, Options, Space, eventually,
        space::{PATIENCE, host_key},
    },
};

/// A Secret as `func kubernetes deploy` renders it: no type, no labels, an annotation of the user's.
fn deployed(name: &str) -> (String, std::collections::BTreeMap<&'static str, String>) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let data = std::collections::BTreeMap::from([
        ("host.master", minted(KeyKind::Master, 1)),
        ("host.function.default", minted(KeyKind::Function, 2)),
        ("host.systemKey.default", minted(KeyKind::System, 3)),
        ("functions.orders.default", minted(KeyKind::Function, 4)),
    ]);
    let encoded: std::collections::BTreeMap<_, _> = data
        .iter()
        .map(|(entry, value)| (*entry, STANDARD.encode(value)))
        .collect();
    let manifest = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "annotations": {"team": "orders"}}, "data": encoded,
    });
    (manifest.to_string(), data)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_func_kubernetes_deploy_made_is_adopted_and_no_value_changes() {
    let space = Space::new("adopted").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let (manifest, values) = deployed("keys");
    kubectl(&space, &["apply", "-f", "-"], &manifest)
        .await
        .unwrap();
    edit(
        &space,
        "keys",
        json!({"stringData": {"unrelated": "entry"}}),
    )
    .await;
    let before = space.data("keys").await;
    assert!(values.iter().all(|(entry, value)| before[*entry] == *value));

    space
        .declare(
            "master",
            host_key("", json!({"scope": "Master", "keyName": null})),
        )
        .await;
    space
        .declare("default", host_key("default", json!({})))
        .await;
    space
        .declare("system", host_key("default", json!({"scope": "System"})))
        .await;
    space
        .declare("orders", function_key("Orders", to("client", "KEY")))
        .await;
    for name in ["master", "default", "system", "orders"] {
        let status = space.ready(name).await;
        assert_eq!(
            serde_json::to_value(status.origin.unwrap()).unwrap(),
            "Adopted"
        );
        event(&space, name, "Adopted").await;
    }
    assert_eq!(space.data("keys").await, before);
    assert_eq!(
        space.data("client").await["KEY"],
        values["functions.orders.default"]
    );
    let secret = space.secrets().get("keys").await.unwrap();
    assert_eq!(
        secret.metadata.labels.as_ref().unwrap()["claviger.dev/content"],
        "function-keys"
    );
    assert_eq!(
        secret.metadata.annotations.as_ref().unwrap()["team"],
        "orders"
    );
    assert!(
        !secret
            .metadata
            .annotations
            .as_ref()
            .unwrap()
            .contains_key("claviger.dev/created")
    );

    // The next deployment applies the same manifest: nothing of ours is lost by it.
    kubectl(&space, &["apply", "-f", "-"], &manifest)
        .await
        .unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, before);
    assert!(
        record(&space, "keys", "host.function.default")
            .await
            .is_object()
    );
    // A turned key is written by the next deployment as it was before: that is a renewal by somebody else.
    space
        .change("default", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    space
        .until_data("keys", "be turned", |data| {
            data["host.function.default"] != before["host.function.default"]
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_host_drops_comes_back_and_what_it_renews_is_adopted_or_undone() {
    let space = Space::new("host").await;
    let operator = Operator::start(&space, Options::default()).await;
    space
        .declare("dropped", host_key("dropped", to("client", "DROPPED")))
        .await;
    space
        .declare(
            "turned",
            host_key("turned", json!({"rotation": {"overlap": "1h"}})),
        )
        .await;
    space
        .declare("adopting", host_key("adopting", to("client", "ADOPTING")))
        .await;
    space
        .declare(
            "enforcing",
            host_key("enforcing", json!({"drift": "Enforce"})),
        )
        .await;
    for name in ["dropped", "turned", "adopting", "enforcing"] {
        space.ready(name).await;
    }
    space
        .change("turned", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let before = space
        .until_data("keys", "be turned", |data| {
            data.contains_key("host.function.turned.previous-1")
        })
        .await;

    // Running: the host writes its model over everything, as it does for a key that it makes itself.
    let play = async |round: u8, before: &std::collections::BTreeMap<String, String>| {
        let mut written = before.clone();
        written.remove("host.function.dropped");
        written.remove("host.function.turned.previous-1");
        written.insert(
            "host.function.adopting".to_owned(),
            minted(KeyKind::Function, 10 + round),
        );
        written.insert(
            "host.function.enforcing".to_owned(),
            minted(KeyKind::Function, 20 + round),
        );
        written.insert(
            "host.function.hosts".to_owned(),
            minted(KeyKind::Function, 30 + round),
        );
        space.host_writes("keys", &written).await;
        written
    };
    let mended = async |written: &std::collections::BTreeMap<String, String>| {
        space
            .until_data("keys", "be mended", |data| {
                [
                    "host.function.dropped",
                    "host.function.turned",
                    "host.function.turned.previous-1",
                    "host.function.enforcing",
                    "host.master",
                ]
                .iter()
                .all(|entry| data.get(*entry) == before.get(*entry))
            })
            .await;
        let data = space.data("keys").await;
        assert_eq!(
            data["host.function.adopting"],
            written["host.function.adopting"]
        );
        assert_eq!(data["host.function.hosts"], written["host.function.hosts"]);
        space
            .until_data("client", "have what was adopted", |data| {
                data.get("ADOPTING") == written.get("host.function.adopting")
            })
            .await;
        assert_eq!(
            space.data("client").await["DROPPED"],
            before["host.function.dropped"]
        );
        data
    };
    let written = play(0, &before).await;
    let after = mended(&written).await;
    event(&space, "dropped", "Restored").await;
    event(&space, "turned", "Restored").await;
    event(&space, "adopting", "DriftAdopted").await;
    event(&space, "enforcing", "DriftUndone").await;
    let status = space
        .until("adopting", "of generation 2", |status| {
            status
                .rotation
                .as_ref()
                .is_some_and(|rotation| rotation.generation == 2)
        })
        .await;
    assert_eq!(
        serde_json::to_value(status.origin.unwrap()).unwrap(),
        "Adopted"
    );

    // Killed, and started only after the host has written.
    operator.kill().await;
    let written = play(1, &after).await;
    let operator = Operator::start(&space, Options::default()).await;
    mended(&written).await;
    operator.kill().await;
    // Everything dropped, the master key too.
    space
        .host_writes("keys", &std::collections::BTreeMap::new())
        .await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .until_data("keys", "be whole again", |data| {
            [
                "host.function.dropped",
                "host.function.turned",
                "host.function.turned.previous-1",
                "host.function.enforcing",
                "host.master",
            ]
            .iter()
            .all(|entry| data.get(*entry) == before.get(*entry))
                && data.get("host.function.adopting") == written.get("host.function.adopting")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_loses_its_bookkeeping_its_label_or_itself_is_made_whole_again() {
    let space = Space::new("whole").await;
    let operator = Operator::start(&space, Options::default()).await;
    space
        .declare(
            "partner",
            host_key("partner", json!({"rotation": {"overlap": "1h"}})),
        )
        .await;
    space
        .declare("orders", function_key("Orders", to("client", "KEY")))
        .await;
    space.ready("orders").await;
    space.ready("partner").await;
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let before = space
        .until_data("keys", "be turned", |data| {
            data.contains_key("host.function.partner.previous-1")
        })
        .await;
    let book = promised(&space, "keys", "host.function.partner").await;
    let whole = async |what: &str| {
        eventually(
            &format!("the store to be whole after {what}"),
            PATIENCE,
            async || {
                let Some(secret) = space.secrets().get_opt("keys").await.unwrap() else {
                    return Err("no Secret".to_owned());
                };
                let labelled = secret
                    .metadata
                    .labels
                    .unwrap_or_default()
                    .contains_key("claviger.dev/content");
                let sealed = secret
                    .metadata
                    .annotations
                    .unwrap_or_default()
                    .contains_key("claviger.dev/sealed-copy");
                let now = record(&space, "keys", "host.function.partner").await;
                let same = space.data("keys").await == before;
                if labelled && sealed && same && now == book {
                    Ok(())
                } else {
                    Err(format!(
                        "label {labelled}, sealed {sealed}, values {same}, {now}"
                    ))
                }
            },
        )
        .await;
    };
    edit(
        &space,
        "keys",
        json!({"metadata": {"annotations": {"claviger.dev/ledger": null}}}),
    )
    .await;
    whole("its ledger was wiped").await;
    edit(
        &space,
        "keys",
        json!({"metadata": {"annotations": {"claviger.dev/ledger": "not a ledger"}}}),
    )
    .await;
    whole("its ledger was scribbled over").await;
    edit(
        &space,
        "keys",
        json!({"metadata": {"annotations": {"claviger.dev/sealed-copy": null}}}),
    )
    .await;
    whole("its sealed copy was wiped").await;
    edit(
        &space,
        "keys",
        json!({"metadata": {"labels": {"claviger.dev/content": null}}}),
    )
    .await;
    whole("its label was removed").await;
    edit(
        &space,
        "keys",
        json!({"metadata": {
            "labels": {"claviger.dev/content": null},
            "annotations": {"claviger.dev/ledger": null, "claviger.dev/sealed-copy": null},
        }}),
    )
    .await;
    whole("all of that was removed").await;
    delete_secret(&space, "keys").await;
    whole("it was deleted").await;
    edit(
        &space,
        "client",
        json!({"metadata": {"annotations": {"claviger.dev/copies": null}}}),
    )
    .await;
    eventually("the list of copies to come back", PATIENCE, async || {
        let copy = crate::facts::copy(&space, "client", "KEY").await;
        if copy.is_object() {
            Ok(())
        } else {
            Err(copy.to_string())
        }
    })
    .await;

    // Down, and the ledger wiped: what stands is adopted, the previous value gets a new overlap.
    operator.kill().await;
    edit(
        &space,
        "keys",
        json!({"metadata": {"annotations": {"claviger.dev/ledger": null}}}),
    )
    .await;
    let operator = Operator::start(&space, Options::default()).await;
    let book = promised(&space, "keys", "host.function.partner").await;
    assert_eq!(
        (
            book["generation"].clone(),
            book["previous"][0]["generation"].clone()
        ),
        (json!(2), json!(1))
    );
    assert_eq!(space.data("keys").await, before);

    // Down, and the store deleted: what a client still holds is the key.
    operator.kill().await;
    delete_secret(&space, "keys").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let data = space
        .until_data("keys", "be made anew", |data| data.len() >= 3)
        .await;
    assert_eq!(
        data["functions.orders.default"],
        before["functions.orders.default"]
    );
    assert_ne!(
        data["host.function.partner"], before["host.function.partner"],
        "nobody holds this one any more"
    );
    assert_eq!(
        space.data("client").await["KEY"],
        before["functions.orders.default"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_secret_of_others_only_our_entries_are_touched_and_names_are_compared_without_case() {
    let space = Space::new("foreign").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spelled = minted(KeyKind::Function, 41);
    let shouted = minted(KeyKind::Function, 42);
    space
        .put_secret(
            "keys",
            &[
                ("foo", "bar"),
                ("host.function.Partner", &spelled),
                ("functions.ORDERS.default", &shouted),
                ("functions.other.default", "of nobody we know"),
            ],
        )
        .await;
    edit(
        &space,
        "keys",
        json!({"metadata": {"labels": {"team": "orders"}}, "data": {"binary": "//79"}}),
    )
    .await;
    space
        .declare("partner", host_key("pARTNER", json!({})))
        .await;
    space
        .declare("orders", function_key("Orders", json!({})))
        .await;
    let status = space.ready("partner").await;
    assert_eq!(status.entry.as_deref(), Some("host.function.Partner"));
    space.ready("orders").await;
    let data = space.data("keys").await;
    assert_eq!(data["host.function.Partner"], spelled);
    assert_eq!(
        (
            data["foo"].as_str(),
            data["functions.other.default"].as_str()
        ),
        ("bar", "of nobody we know")
    );
    assert!(data.contains_key("host.master"));
    // The host looks under the function's name in lower case and nowhere else.
    assert!(
        data.contains_key("functions.orders.default"),
        "{:?}",
        data.keys()
    );
    // The turned key keeps its spelling.
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let data = space
        .until_data("keys", "be turned", |data| {
            data["host.function.Partner"] != spelled
        })
        .await;
    assert_eq!(data["host.function.Partner.previous-1"], spelled);

    // Another spelling of the same key is the same key.
    space
        .declare("partner-too", host_key("PARTNER", json!({})))
        .await;
    let message = space.not_ready("partner-too", "Conflict").await;
    assert!(
        message.contains("kept by FunctionKey/partner;"),
        "{message}"
    );

    space.undeclare("partner-too").await;
    space.undeclare("partner").await;
    space.undeclare("orders").await;
    let others = [
        "binary",
        "foo",
        "functions.ORDERS.default",
        "functions.other.default",
    ];
    // Keys of the app that we know nothing of still need the master key that we made.
    space
        .until_data("keys", "hold what is not ours and the master key", |data| {
            data.keys()
                .filter(|entry| *entry != "host.master")
                .eq(others)
                && data.contains_key("host.master")
        })
        .await;
    drop_entries(
        &space,
        "keys",
        &["functions.ORDERS.default", "functions.other.default"],
    )
    .await;
    let rest = space
        .until_data("keys", "hold what is not ours", |data| {
            data.keys().eq(["binary", "foo"])
        })
        .await;
    assert_eq!(rest["foo"], "bar");
    let secret = space.secrets().get("keys").await.unwrap();
    assert_eq!(
        secret
            .metadata
            .labels
            .unwrap()
            .into_keys()
            .collect::<Vec<_>>(),
        ["team"]
    );
    assert!(
        !secret
            .metadata
            .annotations
            .unwrap_or_default()
            .keys()
            .any(|name| name.starts_with("claviger.dev/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_resources_for_one_entry_the_older_wins_and_hands_over_when_it_goes() {
    let space = Space::new("conflict").await;
    space
        .declare("b-older", host_key("partner", json!({})))
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    space
        .declare("a-younger", host_key("Partner", to("client", "KEY")))
        .await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.ready("b-older").await;
    let message = space.not_ready("a-younger", "Conflict").await;
    assert_eq!(
        message.to_lowercase(),
        "host.function.partner of secret/keys is kept by functionkey/b-older; delete one of the two, or give this one another key name"
    );
    let status = space.status("a-younger").await;
    assert_eq!(crate::support::space::condition(&status, "Stalled"), "True");
    assert!(space.data("client").await.is_empty());
    event(&space, "a-younger", "Conflict").await;
    let before = space.data("keys").await;
    // The loser's triggers do nothing to the winner's key.
    space
        .change(
            "a-younger",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    space.not_ready("a-younger", "Conflict").await;
    // The same entry in a ConfigMap is another key.
    let elsewhere =
        json!({"storage": {"secret": null, "configMap": {"name": "keys", "allowInsecure": true}}});
    space
        .declare("elsewhere", host_key("partner", elsewhere))
        .await;
    space.ready("elsewhere").await;
    // Deleting the loser changes nothing, deleting the winner hands over.
    space
        .declare("c-youngest", host_key("partner", json!({})))
        .await;
    space.not_ready("c-youngest", "Conflict").await;
    space.undeclare("c-youngest").await;
    space.undeclare("b-older").await;
    space.ready("a-younger").await;
    assert_eq!(space.data("keys").await, before);
    assert_eq!(
        space.data("client").await["KEY"],
        before["host.function.partner"]
    );
    assert_eq!(
        record(&space, "keys", "host.function.partner").await["owner"]["name"],
        "a-younger"
    );
    space.undeclare("a-younger").await;
    gone(&space, "keys").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_refused_type_or_an_immutable_one_is_left_alone_until_it_makes_room() {
    let space = Space::new("refused").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let make = async |name: &str, more: serde_json::Value| {
        let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"host.master": "theirs"}});
        json_patch::merge(&mut secret, &more);
        kubectl(&space, &["create", "-f", "-"], &secret.to_string())
            .await
            .unwrap();
    };
    make("release", json!({"type": "helm.sh/release.v1"})).await;
    make(
        "bootstrap",
        json!({"type": "bootstrap.kubernetes.io/token"}),
    )
    .await;
    make("fixed", json!({"immutable": true})).await;
    for store in ["release", "bootstrap", "fixed"] {
        space
            .declare(
                store,
                host_key("partner", json!({"storage": {"secret": {"name": store}}})),
            )
            .await;
    }
    for store in ["release", "bootstrap"] {
        let message = space.not_ready(store, "StoreRefused").await;
        assert!(
            message.contains("is of a type that cannot hold keys"),
            "{message}"
        );
        event(&space, store, "StoreRefused").await;
    }
    let message = space.not_ready("fixed", "StoreRefused").await;
    assert!(
        message.contains("Secret/fixed is immutable; delete it"),
        "{message}"
    );
    for store in ["release", "bootstrap", "fixed"] {
        assert_eq!(
            space.data(store).await,
            std::collections::BTreeMap::from([("host.master".to_owned(), "theirs".to_owned())])
        );
        assert_eq!(
            annotation(&space, store, "claviger.dev/ledger").await,
            serde_json::Value::Null
        );
        delete_secret(&space, store).await;
        space.ready(store).await;
        assert_eq!(space.data(store).await.len(), 2);
    }
    // A store that is made immutable under us keeps what it has, and says so.
    edit(&space, "fixed", json!({"immutable": true})).await;
    space
        .change("fixed", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    space.not_ready("fixed", "StoreRefused").await;
    drop_entries(&space, "release", &["host.function.partner"]).await;
    space
        .until_data("release", "be mended", |data| data.len() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_stands_under_another_name_that_the_host_takes_for_it_is_brought_home() {
    let space = Space::new("renamed").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let master = minted(KeyKind::Master, 60);
    space
        .put_secret("odd", &[("host.masterKey", &master)])
        .await;
    let spec = json!({"scope": "Master", "keyName": null, "storage": {"secret": {"name": "odd"}}});
    space.declare("master", host_key("", spec)).await;
    space.ready("master").await;
    let data = space.data("odd").await;
    assert_eq!(data.keys().collect::<Vec<_>>(), ["host.master"]);
    assert_eq!(data["host.master"], master);
    // A second one would win in the host, and no revocation would reach it.
    edit(
        &space,
        "odd",
        json!({"stringData": {"host.master.mine": minted(KeyKind::Master, 61)}}),
    )
    .await;
    space
        .until_data("odd", "have one master key", |data| data.len() == 1)
        .await;
    space
        .change(
            "master",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    space
        .until_data("odd", "be revoked", |data| {
            data.len() == 1 && data["host.master"] != master
        })
        .await;

    // `PUT …/keys/PARTNER` over `partner`: the host keeps the new spelling only.
    space
        .declare("adopting", host_key("adopting", to("client", "KEY")))
        .await;
    space
        .declare(
            "enforcing",
            host_key("enforcing", json!({"drift": "Enforce"})),
        )
        .await;
    space.ready("adopting").await;
    space.ready("enforcing").await;
    let before = space.data("keys").await;
    let mut written = before.clone();
    let renewed = minted(KeyKind::Function, 62);
    written.remove("host.function.adopting");
    written.insert("host.function.ADOPTING".to_owned(), renewed.clone());
    written.remove("host.function.enforcing");
    written.insert(
        "host.function.ENFORCING".to_owned(),
        minted(KeyKind::Function, 63),
    );
    space.host_writes("keys", &written).await;
    let mut expected = before.clone();
    expected.insert("host.function.adopting".to_owned(), renewed.clone());
    space
        .until_data("keys", "have each key under one name", |data| {
            *data == expected
        })
        .await;
    space
        .until_data("client", "have what was adopted", |data| {
            data["KEY"] == renewed
        })
        .await;
    event(&space, "adopting", "DriftAdopted").await;
    event(&space, "enforcing", "DriftUndone").await;
}
