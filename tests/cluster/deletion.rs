//! How keys end: with their resource, as its policy says, and never by accident.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    facts::{A_WHILE, function_key, gone, record, to},
    support::{
        Cluster, Operator, Options, Space,
        control_plane::SYSTEM,
        space::{host_key, ready_reason},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_goes_with_its_copies_or_stays_as_its_policy_says() {
    let space = Space::new("deleted").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_secret("mixed", &[("THEIRS", "theirs")]).await;
    space
        .declare("going", host_key("going", to("client", "KEY")))
        .await;
    space
        .declare("mixing", host_key("mixing", to("mixed", "KEY")))
        .await;
    let mut retained = to("retained", "KEY");
    json_patch::merge(
        &mut retained,
        &json!({"deletionPolicy": "Retain", "rotation": {"overlap": "1h"}}),
    );
    space
        .declare("staying", host_key("staying", retained.clone()))
        .await;
    for name in ["going", "mixing", "staying"] {
        space.ready(name).await;
    }
    space
        .change("going", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let before = space
        .until_data("keys", "be turned", |data| {
            data.contains_key("host.function.going.previous-1")
        })
        .await;
    assert_eq!(before.len(), 5);

    space.undeclare("going").await;
    let data = space
        .until_data("keys", "lose the key and its previous value", |data| {
            data.len() == 3
        })
        .await;
    assert!(
        !data
            .keys()
            .any(|entry| entry.starts_with("host.function.going"))
    );
    gone(&space, "client").await;
    space.undeclare("mixing").await;
    let mixed = space
        .until_data("mixed", "lose the copy", |data| !data.contains_key("KEY"))
        .await;
    assert_eq!(mixed["THEIRS"], "theirs");

    space.undeclare("staying").await;
    tokio::time::sleep(A_WHILE).await;
    let data = space.data("keys").await;
    assert_eq!(
        data["host.function.staying"],
        before["host.function.staying"]
    );
    assert_eq!(
        data["host.master"], before["host.master"],
        "a key that stays needs it"
    );
    assert_eq!(
        space.data("retained").await["KEY"],
        before["host.function.staying"]
    );
    // Declared again it is adopted, copies and all, and then goes for good.
    retained["deletionPolicy"] = json!("Delete");
    space
        .declare("staying", host_key("staying", retained))
        .await;
    space.ready("staying").await;
    assert_eq!(
        space.data("keys").await["host.function.staying"],
        before["host.function.staying"]
    );
    assert_eq!(
        space.data("retained").await["KEY"],
        before["host.function.staying"]
    );
    space.undeclare("staying").await;
    gone(&space, "keys").await;
    gone(&space, "retained").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_key_stays_while_other_keys_stand_and_they_say_so() {
    let space = Space::new("master").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .declare(
            "boss",
            host_key("", json!({"scope": "Master", "keyName": null})),
        )
        .await;
    space
        .declare("partner", host_key("partner", json!({})))
        .await;
    space
        .declare("orders", function_key("Orders", json!({})))
        .await;
    for name in ["boss", "partner", "orders"] {
        space.ready(name).await;
    }
    let before = space.data("keys").await;
    space.undeclare("boss").await;
    for name in ["partner", "orders"] {
        let status = space
            .until(name, "told of the master key", |status| {
                status.conditions[0]
                    .message
                    .contains("host.master is kept although FunctionKey/boss was deleted")
            })
            .await;
        assert_eq!(ready_reason(&status), "Published");
    }
    assert_eq!(space.data("keys").await, before);
    // Dropped by somebody, it comes back: it is still ours.
    crate::facts::drop_entries(&space, "keys", &["host.master"]).await;
    space
        .until_data("keys", "have its master key back", |data| *data == before)
        .await;
    // Declared again, it is the same key.
    space
        .declare(
            "new-boss",
            host_key("", json!({"scope": "Master", "keyName": null})),
        )
        .await;
    space.ready("new-boss").await;
    space
        .until("partner", "no longer told", |status| {
            !status.conditions[0].message.contains("is kept although")
        })
        .await;
    assert_eq!(space.data("keys").await, before);
    space.undeclare("new-boss").await;
    space.undeclare("partner").await;
    let data = space
        .until_data("keys", "lose the partner's key", |data| {
            !data.contains_key("host.function.partner")
        })
        .await;
    assert!(data.contains_key("host.master"));
    space.undeclare("orders").await;
    gone(&space, "keys").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_while_the_operator_is_down_is_honoured_and_a_re_creation_keeps_the_value() {
    let space = Space::new("down").await;
    let operator = Operator::start(&space, Options::default()).await;
    for name in ["deleted", "recreated", "untouched"] {
        space
            .declare(name, host_key(name, to("client", name)))
            .await;
    }
    space
        .declare(
            "retained",
            host_key("retained", json!({"deletionPolicy": "Retain"})),
        )
        .await;
    let alone = json!({"storage": {"secret": {"name": "alone"}}, "distributeTo": [{"secretRef": {"name": "alone-client", "key": "KEY"}}]});
    space.declare("alone", host_key("alone", alone)).await;
    for name in ["deleted", "recreated", "untouched", "retained", "alone"] {
        space.ready(name).await;
    }
    let (keys, client) = (space.data("keys").await, space.data("client").await);
    operator.kill().await;
    for name in ["deleted", "recreated", "retained", "alone"] {
        space.undeclare(name).await;
    }
    space
        .declare(
            "recreated",
            host_key("recreated", to("client", "recreated")),
        )
        .await;
    let _operator = Operator::start(&space, Options::default()).await;
    gone(&space, "alone").await;
    gone(&space, "alone-client").await;
    let data = space
        .until_data("keys", "honour the deletion", |data| {
            !data.contains_key("host.function.deleted")
        })
        .await;
    let copies = space
        .until_data("client", "honour the deletion", |data| {
            !data.contains_key("deleted")
        })
        .await;
    space.ready("recreated").await;
    for name in ["recreated", "untouched", "retained"] {
        let entry = format!("host.function.{name}");
        assert_eq!(data[&entry], keys[&entry]);
    }
    assert_eq!(
        (&copies["recreated"], &copies["untouched"]),
        (&client["recreated"], &client["untouched"])
    );
    assert_eq!(
        record(&space, "keys", "host.function.recreated").await["generation"],
        1
    );
    assert_eq!(data["host.master"], keys["host.master"]);
    // What a re-created resource says first is its baseline, as always.
    space
        .change(
            "recreated",
            json!({"spec": {"rotation": {"generation": 1}}}),
        )
        .await;
    space
        .until_data("keys", "turn", |data| {
            data["host.function.recreated"] != keys["host.function.recreated"]
        })
        .await;

    // With Retain a key may be away for any time.
    space
        .change("untouched", json!({"spec": {"deletionPolicy": "Retain"}}))
        .await;
    space.ready("untouched").await;
    space.undeclare("untouched").await;
    tokio::time::sleep(A_WHILE).await;
    space
        .declare(
            "untouched",
            host_key("untouched", to("client", "untouched")),
        )
        .await;
    space.ready("untouched").await;
    assert_eq!(
        space.data("keys").await["host.function.untouched"],
        keys["host.function.untouched"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_and_re_installing_the_definition_loses_no_key_and_later_deletions_count() {
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let space = Space::on(Arc::new(cluster), "definition").await;
    let operator = Operator::start(&space, Options::default()).await;
    let names = ["partner", "other"];
    let declare = async || {
        for name in names {
            space
                .declare(name, host_key(name, to("client", name)))
                .await;
        }
        let vault = json!({
            "deletionPolicy": "Delete",
            "secrets": [{"name": "made", "generate": {}}],
            "sync": [{"target": {"name": "synced"}, "data": [{"key": "made", "secret": "made"}]}],
        });
        space.declare_vault("payments", vault).await;
        for name in names {
            space.ready(name).await;
        }
        space.vault_ready("payments").await;
    };
    declare().await;
    let (synced, entries) = (
        space.data("synced").await,
        space.entries("payments").await.len(),
    );
    let (keys, client) = (space.data("keys").await, space.data("client").await);
    for kind in ["functionkeys", "secretvaults"] {
        let definition = format!("{kind}.claviger.dev");
        space
            .cluster
            .kubectl(&["delete", "crd", &definition, "--timeout=30s"], "")
            .await
            .unwrap();
    }
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("synced").await, synced);
    assert_eq!(space.entries("payments").await.len(), entries);
    assert_eq!(space.data("keys").await, keys);
    assert_eq!(space.data("client").await, client);
    // Nor while it is away and the operator starts, nor when it is back and nothing is declared yet.
    operator.kill().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    space.cluster.install("claviger", SYSTEM, &[]).await;
    let operator = Operator::start(&space, Options::default()).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, keys);
    assert_eq!(space.data("client").await, client);
    declare().await;
    assert_eq!(space.data("keys").await, keys);
    assert_eq!(space.data("client").await, client);
    assert_eq!(space.data("synced").await, synced);
    assert_eq!(space.entries("payments").await.len(), entries);
    // A key that somebody deletes from then on is deleted, running or not.
    space.undeclare("partner").await;
    space
        .until_data("keys", "lose the deleted key", |data| {
            !data.contains_key("host.function.partner")
        })
        .await;
    space
        .until_data("client", "lose the deleted copy", |data| {
            !data.contains_key("partner")
        })
        .await;
    operator.kill().await;
    space.undeclare("other").await;
    let _operator = Operator::start(&space, Options::default()).await;
    gone(&space, "keys").await;
    gone(&space, "client").await;
}
