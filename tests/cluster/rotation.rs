//! Turns: asked for, by schedule, in mid-overlap, revoked.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    facts::{A_WHILE, event, function_key, promised, record, time},
    support::{
        Operator, Options, Space,
        space::{host_key, ready_reason},
    },
};

const ENTRY: &str = "host.function.partner";

fn previous(generation: u32) -> String {
    format!("{ENTRY}.previous-{generation}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_turns_when_a_trigger_is_raised_and_never_when_one_is_reverted() {
    let space = Space::new("triggers").await;
    let operator = Operator::start(&space, Options::default()).await;
    // What a resource is created with counts as done.
    let long_ago =
        json!({"metadata": {"annotations": {"claviger.dev/rotate-at": "2020-01-01T00:00:00Z"}}});
    space
        .declare(
            "partner",
            host_key(
                "partner",
                json!({"rotation": {"generation": 5, "revokeGeneration": 2}}),
            ),
        )
        .await;
    let first = space.ready("partner").await;
    assert_eq!(first.rotation.unwrap().generation, 1);
    let v1 = space.data("keys").await[ENTRY].clone();
    // The longest names leave room for a previous value beside them.
    let (function, key) = ("f".repeat(127), "k".repeat(95));
    let long = json!({"storage": {"secret": {"name": "long"}}, "keyName": key});
    space.declare("long", function_key(&function, long)).await;
    space.ready("long").await;
    space
        .change("long", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    space
        .until_data("long", "turn", |data| {
            data.contains_key(&format!("functions.{function}.{key}.previous-1"))
        })
        .await;

    space
        .change("partner", json!({"spec": {"rotation": {"generation": 6}}}))
        .await;
    let data = space
        .until_data("keys", "turn", |data| data[ENTRY] != v1)
        .await;
    assert_eq!(data[&previous(1)], v1);
    let v2 = data[ENTRY].clone();
    event(&space, "partner", "Rotated").await;
    let status = space.ready("partner").await;
    let rotation = status.rotation.unwrap();
    assert_eq!((rotation.generation, rotation.previous.len()), (2, 1));
    assert_eq!(rotation.previous[0].entry, previous(1));

    // A revert, and the same number again: nothing. Not with a restart in between either.
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 5}}}))
        .await;
    space.ready("partner").await;
    assert!(operator.stop().await);
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 6}}}))
        .await;
    space.ready("partner").await;
    space
        .change(
            "partner",
            json!({"spec": {"rotation": {"generation": null, "revokeGeneration": 1}}}),
        )
        .await;
    space.ready("partner").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, data);

    // By annotation: at its time and not before; a time before the last one does nothing.
    let at = Timestamp::now() + SignedDuration::from_secs(3);
    space
        .change(
            "partner",
            json!({"metadata": {"annotations": {"claviger.dev/rotate-at": at.to_string()}}}),
        )
        .await;
    let data = space
        .until_data("keys", "turn at the time", |data| data[ENTRY] != v2)
        .await;
    assert!(Timestamp::now() >= at && time(&record(&space, "keys", ENTRY).await["minted"]) >= at);
    assert_eq!(
        (data[&previous(1)].clone(), data[&previous(2)].clone()),
        (v1, v2)
    );
    space.change("partner", long_ago).await;
    space
        .change(
            "partner",
            json!({"metadata": {"annotations": {"claviger.dev/revoke-at": "soon"}}}),
        )
        .await;
    let unreadable = |status: &claviger::api::v1alpha1::FunctionKeyStatus| {
        status.conditions.iter().any(|condition| {
            condition
                .message
                .contains("annotation claviger.dev/revoke-at is not a time")
        })
    };
    space
        .until("partner", "telling of the annotation", unreadable)
        .await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, data);

    // A revocation leaves one value.
    let now = json!({"metadata": {"annotations": {"claviger.dev/revoke-at": Timestamp::now().to_string()}}});
    space.change("partner", now).await;
    let revoked = space
        .until_data("keys", "be revoked", |now| now[ENTRY] != data[ENTRY])
        .await;
    assert_eq!(revoked.keys().collect::<Vec<_>>(), [ENTRY, "host.master"]);
    space
        .change(
            "partner",
            json!({"spec": {"rotation": {"revokeGeneration": 3}}}),
        )
        .await;
    let again = space
        .until_data("keys", "be revoked again", |now| {
            now[ENTRY] != revoked[ENTRY]
        })
        .await;
    assert_eq!(again.len(), 2);
    let status = space
        .until("partner", "of generation 5", |status| {
            status
                .rotation
                .as_ref()
                .is_some_and(|rotation| rotation.generation == 5)
        })
        .await;
    assert!(status.rotation.unwrap().revoked_at.is_some());
    event(&space, "partner", "Revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_in_mid_overlap_break_no_promise_and_a_revocation_does() {
    let space = Space::new("overlap").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .declare(
            "partner",
            host_key("partner", json!({"rotation": {"overlap": "1h"}})),
        )
        .await;
    space.ready("partner").await;
    let mut values = vec![space.data("keys").await[ENTRY].clone()];
    let turn = async |generation: u32, values: &mut Vec<String>| {
        space
            .change(
                "partner",
                json!({"spec": {"rotation": {"generation": generation}}}),
            )
            .await;
        let last = values.last().unwrap().clone();
        let data = space
            .until_data("keys", "turn", |data| data[ENTRY] != last)
            .await;
        values.push(data[ENTRY].clone());
        promised(&space, "keys", ENTRY).await;
    };
    let retires = async |index: usize| {
        time(&record(&space, "keys", ENTRY).await["previous"][index]["retires"])
    };
    turn(1, &mut values).await;
    let first = retires(0).await;
    let shown = time(&record(&space, "keys", ENTRY).await["shown"]);
    let minted = time(&record(&space, "keys", ENTRY).await["minted"]);
    assert_eq!(
        shown,
        minted + SignedDuration::from_secs(1),
        "hosts have had the reload delay"
    );
    assert_eq!(first, shown + SignedDuration::from_hours(1));

    // Shorter: from the next turn on. Longer: at once.
    space
        .change("partner", json!({"spec": {"rotation": {"overlap": "0s"}}}))
        .await;
    space.ready("partner").await;
    assert_eq!(retires(0).await, first);
    space
        .change("partner", json!({"spec": {"rotation": {"overlap": "3h"}}}))
        .await;
    space.ready("partner").await;
    assert_eq!(retires(0).await, shown + SignedDuration::from_hours(3));

    // Three previous values live at once; a fourth turn waits, and is told.
    turn(2, &mut values).await;
    turn(3, &mut values).await;
    let data = space.data("keys").await;
    for generation in 1..=3 {
        assert_eq!(data[&previous(generation)], values[generation as usize - 1]);
    }
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 4}}}))
        .await;
    let deferred = space
        .until("partner", "deferred", |status| {
            ready_reason(status) == "RotationDeferred"
        })
        .await;
    assert!(
        deferred.conditions[0]
            .message
            .contains("three previous values are still valid")
    );
    assert_eq!(space.data("keys").await, data);

    space
        .change(
            "partner",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    let revoked = space
        .until_data("keys", "be revoked", |now| now[ENTRY] != data[ENTRY])
        .await;
    assert_eq!(revoked.keys().collect::<Vec<_>>(), [ENTRY, "host.master"]);
    assert!(!values.contains(&revoked[ENTRY]));
    // The turn that waited was done by the revocation.
    space
        .until("partner", "published", |status| {
            ready_reason(status) == "Published"
        })
        .await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_turns_by_its_interval_and_the_previous_value_goes_exactly_when_it_was_promised_to() {
    let space = Space::new("interval").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .declare(
            "partner",
            host_key(
                "partner",
                json!({"rotation": {"interval": "10s", "overlap": "3s"}}),
            ),
        )
        .await;
    space.declare("steady", host_key("steady", json!({}))).await;
    space
        .declare(
            "master",
            host_key(
                "",
                json!({"scope": "Master", "keyName": null, "rotation": {"interval": "10s"}}),
            ),
        )
        .await;
    let status = space.ready("partner").await;
    space.ready("master").await;
    let first = space.data("keys").await;
    let minted = time(&record(&space, "keys", ENTRY).await["minted"]);
    let next = status.rotation.unwrap().next_at.unwrap().0;
    let wait = next.duration_since(minted).as_secs_f64();
    assert!(
        (7.9..=10.0).contains(&wait),
        "a tenth earlier at most (and whole seconds): {wait}"
    );

    let turned = space
        .until_data("keys", "turn by itself", |data| data[ENTRY] != first[ENTRY])
        .await;
    assert_eq!(turned[&previous(1)], first[ENTRY]);
    let book = record(&space, "keys", ENTRY).await;
    let took = time(&book["minted"]).duration_since(minted).as_secs_f64();
    assert!((9.0..=13.0).contains(&took), "turned after {took} s");
    let retires = time(&book["previous"][0]["retires"]);
    assert_eq!(
        retires,
        time(&book["minted"]) + SignedDuration::from_secs(4),
        "reload delay and overlap"
    );
    let gone = loop {
        let data = space.data("keys").await;
        if !data.contains_key(&previous(1)) {
            break Timestamp::now();
        }
        assert!(
            Timestamp::now() < retires + SignedDuration::from_secs(20),
            "still there"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let late = gone.duration_since(retires).as_secs_f64();
    assert!((0.0..4.0).contains(&late), "went {late} s after its time");
    space
        .until("partner", "stable", |status| {
            let rotation = serde_json::to_value(&status.rotation).unwrap();
            rotation["phase"] == "Stable" && rotation.get("previousUntil").is_none()
        })
        .await;
    // The master key has turned too, with nothing beside it; a key without an interval has not.
    let data = space
        .until_data("keys", "turn the master key", |data| {
            data["host.master"] != first["host.master"]
        })
        .await;
    assert_eq!(
        data.keys()
            .filter(|entry| entry.starts_with("host.master"))
            .count(),
        1
    );
    assert_eq!(data["host.function.steady"], first["host.function.steady"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fell_due_while_the_operator_was_down_is_done_once_when_it_starts() {
    let space = Space::new("overdue").await;
    let operator = Operator::start(&space, Options::default()).await;
    space
        .declare(
            "partner",
            host_key("partner", json!({"rotation": {"overlap": "5s"}})),
        )
        .await;
    space
        .declare(
            "interval",
            host_key(
                "interval",
                json!({"rotation": {"interval": "10s", "overlap": "9s"}}),
            ),
        )
        .await;
    space.declare("asked", host_key("asked", json!({}))).await;
    for name in ["partner", "interval", "asked"] {
        space.ready(name).await;
    }
    let minted = time(&record(&space, "keys", "host.function.interval").await["minted"]);
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let retires = time(&promised(&space, "keys", ENTRY).await["previous"][0]["retires"]);
    let before = space.data("keys").await;
    operator.kill().await;
    let at = Timestamp::now();
    space
        .change(
            "asked",
            json!({
                "metadata": {"annotations": {"claviger.dev/rotate-at": at.to_string()}},
                "spec": {"rotation": {"generation": 9}},
            }),
        )
        .await;
    let wake = retires.max(minted + SignedDuration::from_secs(10));
    tokio::time::sleep(
        Duration::try_from(
            wake.duration_since(Timestamp::now())
                .max(SignedDuration::ZERO),
        )
        .unwrap(),
    )
    .await;
    assert_eq!(
        space.data("keys").await,
        before,
        "nothing happens without an operator"
    );
    let _operator = Operator::start(&space, Options::default()).await;
    let after = space
        .until_data("keys", "catch up", |data| {
            data["host.function.interval"] != before["host.function.interval"]
        })
        .await;
    // All of it in one write, each turn once.
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        [
            "host.function.asked",
            "host.function.asked.previous-1",
            "host.function.interval",
            "host.function.interval.previous-1",
            ENTRY,
            "host.master",
        ]
    );
    assert_eq!(after[ENTRY], before[ENTRY]);
    assert_eq!(
        after["host.function.asked.previous-1"],
        before["host.function.asked"]
    );
    assert_eq!(
        after["host.function.interval.previous-1"],
        before["host.function.interval"]
    );
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, after);
}
