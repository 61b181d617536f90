//! What somebody who uses vaults runs into: surprises that were bugs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    facts::claviger,
    support::{Operator, Options, Space},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_target_that_is_taken_off_the_list_goes() {
    let space = Space::new("vault-immutable-off").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = json!({
        "secrets": [{"name": "a", "generate": {}}],
        "sync": [{"target": {"name": "app", "immutable": true}, "data": [{"key": "a", "secret": "a"}]}],
    });
    space.declare_vault("payments", spec).await;
    let status = space.vault_ready("payments").await;
    let secret = status.sync[0].secret_name.clone().unwrap();
    assert_eq!(space.data(&secret).await.len(), 1);
    space
        .change_vault("payments", json!({"spec": {"sync": null}}))
        .await;
    space
        .until_data(&secret, "be gone", BTreeMap::is_empty)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_becomes_immutable_or_plain_again_leaves_nothing_behind() {
    let space = Space::new("vault-immutable-and-back").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let sync = |immutable: bool| {
        json!([
            {"target": {"name": "app", "immutable": immutable}, "data": [{"key": "a", "secret": "a"}]},
            {"target": {"name": "app-other"}, "data": [{"key": "a", "secret": "a"}]},
        ])
    };
    let secrets = json!([{"name": "a", "generate": {}, "rotation": {"overlap": "2s"}}]);
    let spec = json!({"secrets": secrets, "sync": sync(false)});
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let value = space.data("app").await;
    let mut hashed = String::new();
    for immutable in [true, false] {
        let change = json!({"spec": {"sync": sync(immutable)}});
        space.change_vault("payments", change).await;
        let status = space
            .until_vault("payments", "name the Secret", |status| {
                let of = |target: &str| {
                    let mut all = status.sync.iter();
                    all.find(|sync| sync.target == target)?.secret_name.clone()
                };
                of("app").is_some_and(|name| (name == "app") != immutable)
            })
            .await;
        let gone = if immutable {
            hashed = status.sync[0].secret_name.clone().unwrap();
            "app"
        } else {
            &hashed
        };
        space.until_data(gone, "be gone", BTreeMap::is_empty).await;
        let stays = if immutable { &hashed } else { "app" };
        assert_eq!(space.data(stays).await, value);
        assert_eq!(space.data("app-other").await, value);
    }
}

/// A vault with one imported secret, whose value before is synced too.
fn imported(rotation: Value) -> Value {
    let mut spec = json!({
        "secrets": [{
            "name": "api-key",
            "valueFrom": {"secretKeyRef": {"name": "brought", "key": "key"}},
        }],
        "sync": [{"target": {"name": "app"}, "data": [
            {"key": "now", "secret": "api-key"},
            {"key": "before", "secret": "api-key", "version": "Previous"},
        ]}],
    });
    spec["secrets"][0]["rotation"] = rotation;
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_of_an_imported_secret_ends_the_values_before_and_then_the_revoked_one() {
    let space = Space::new("vault-revoke-imported").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_secret("brought", &[("key", "first-value")]).await;
    let spec = imported(json!({"overlap": "1h"}));
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let turn = async |value: &str| {
        space.put_secret("brought", &[("key", value)]).await;
        space
            .until_data("app", "follow", |data| {
                data.get("now").is_some_and(|now| now == value) && data.contains_key("before")
            })
            .await
    };
    assert_eq!(turn("second-value").await["before"], "first-value");

    // Its source has turned already; what leaked is the value before.
    let revoked = json!({"spec": imported(json!({"overlap": "1h", "revokeGeneration": 1}))});
    space.change_vault("payments", revoked).await;
    let data = space
        .until_data("app", "have no value before", |data| {
            !data.contains_key("before")
        })
        .await;
    assert_eq!(data["now"], "second-value");
    space.vault_ready("payments").await;
    assert_eq!(space.entries("payments").await.len(), 2);

    // The value that replaces the revoked one has no overlap with it; the next has.
    space.put_secret("brought", &[("key", "third-value")]).await;
    let data = space
        .until_data("app", "follow", |data| {
            data.get("now").is_some_and(|now| now == "third-value")
        })
        .await;
    assert!(!data.contains_key("before"), "{data:?}");
    space.vault_ready("payments").await;
    assert_eq!(turn("fourth-value").await["before"], "third-value");
    let args = ["revoke", "svault/payments", "--secret=api-key", "-n"];
    let said = claviger(&space, &[&args[..], &[&space.name]].concat())
        .await
        .unwrap();
    assert!(said.contains("entry key of Secret/brought"), "{said}");
    space
        .until_data("app", "have no value before", |data| {
            !data.contains_key("before")
        })
        .await;
}

/// A write or a restart for another secret's sake says nothing of when this one had reached everybody.
#[tokio::test(flavor = "multi_thread")]
async fn turns_of_another_secret_do_not_prolong_an_overlap() {
    let space = Space::new("vault-prolonged").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_deployment("web").await;
    let spec = json!({
        "secrets": [
            {"name": "a", "generate": {}, "rotation": {"overlap": "4s"}},
            {"name": "b", "generate": {}, "rotation": {"overlap": "0s"}},
        ],
        "sync": [{
            "target": {"name": "app"},
            "data": [
                {"key": "a", "secret": "a"},
                {"key": "before", "secret": "a", "version": "Previous"},
                {"key": "b", "secret": "b"},
                {"key": "both", "template": "{{ secrets.a }}:{{ secrets.b }}"},
            ],
            "restart": [{"kind": "Deployment", "name": "web"}],
        }],
    });
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let rotate = async |secret: &str| {
        let secret = format!("--secret={secret}");
        let args = ["rotate", "svault/payments", &secret, "-n", &space.name];
        claviger(&space, &args).await.unwrap();
    };
    rotate("a").await;
    space
        .until_data("app", "have both", |data| data.contains_key("before"))
        .await;
    for _ in 0..6 {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        rotate("b").await;
    }
    assert!(!space.data("app").await.contains_key("before"));
}
