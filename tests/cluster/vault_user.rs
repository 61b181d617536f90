//! What somebody who uses vaults runs into: surprises that were bugs.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    facts::claviger,
    support::{
        Operator, Options, Space, eventually,
        space::PATIENCE,
        vaults::{ready, says},
    },
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
        tokio::time::sleep(Duration::from_secs(2)).await;
        rotate("b").await;
    }
    assert!(!space.data("app").await.contains_key("before"));
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_protection_outlives_the_vault_that_asked_for_it() {
    let space = Space::new("vault-protected").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = |more: Value| {
        let mut spec = json!({
            "secrets": [{"name": "a", "generate": {}}],
            "sync": [{"target": {"name": "app"}, "data": [{"key": "a", "secret": "a"}]}],
        });
        let fields = more.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(fields);
        spec
    };
    let protected = json!({"deletionPolicy": "Retain", "softDelete": {"purgeProtection": true}});
    space.declare_vault("payments", spec(protected)).await;
    space.vault_ready("payments").await;
    let value = space.data("app").await;
    let gone = async || {
        eventually("the vault to go", PATIENCE, async || {
            let vault = space.vaults().get_opt("payments").await.unwrap();
            vault.map_or(Ok(()), |vault| Err(format!("{:?}", vault.metadata)))
        })
        .await;
    };
    space.delete_vault("payments").await;
    gone().await;
    // The next of that name has no such wish, and others.
    let destroy = json!({"deletionPolicy": "Delete", "shred": true});
    space.declare_vault("payments", spec(destroy)).await;
    let status = space.vault_ready("payments").await;
    let message = &ready(&status.conditions).unwrap().message;
    assert!(message.contains("was on once and stays on"), "{message}");
    assert_eq!(ring_versions(&space).await, [1]);
    assert_eq!(space.data("app").await, value);
    space.delete_vault("payments").await;
    let message = space
        .until_vault("payments", "held back", |status| {
            says(&status.conditions, "Ready") != "True"
        })
        .await;
    let message = &ready(&message.conditions).unwrap().message;
    assert!(message.contains("is to be deleted, but"), "{message}");
    assert!(!message.contains("or to Delete"), "{message}");
    assert_eq!(space.entries("payments").await.len(), 1);
    space
        .change_vault("payments", json!({"spec": {"deletionPolicy": "Retain"}}))
        .await;
    gone().await;
    assert_eq!(space.entries("payments").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_value_is_not_led_to_a_new_place_when_the_import_is_gone() {
    let space = Space::new("vault-import-led-away").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .put_secret("brought", &[("key", "imported-value")])
        .await;
    let import = json!({"name": "a", "valueFrom": {"secretKeyRef": {"name": "brought", "key": "key"}}, "rotation": {"overlap": "1h"}});
    let sync = |target: &str, version: &str| json!([{"target": {"name": target}, "data": [{"key": "a", "secret": "a", "version": version}]}]);
    for vault in ["swapped", "recovered", "kept"] {
        space
            .declare_vault(vault, json!({"secrets": [import]}))
            .await;
        space.vault_ready(vault).await;
    }
    // In one change with the new place: another value stands there.
    let own = json!({"name": "a", "generate": {}, "valueFrom": null});
    let change = json!({"spec": {"secrets": [own], "sync": sync("led-1", "Current")}});
    space.change_vault("swapped", change).await;
    let data = space
        .until_data("led-1", "be filled", |data| data.contains_key("a"))
        .await;
    assert_ne!(data["a"], "imported-value");
    // Nor as the value before.
    let change = json!({"spec": {"sync": sync("led-2", "Previous")}});
    space.change_vault("swapped", change).await;
    space.vault_ready("swapped").await;
    let led = space.secrets().get_opt("led-2").await.unwrap();
    assert!(
        led.and_then(|secret| secret.data)
            .is_none_or(|data| data.is_empty())
    );
    // By way of a deletion that is taken back.
    space
        .change_vault("recovered", json!({"spec": {"secrets": null}}))
        .await;
    space
        .until_vault("recovered", "empty", |status| {
            status.secrets.is_some_and(|secrets| secrets.deleted == 1)
        })
        .await;
    let later = ::claviger::clock::now() + jiff::SignedDuration::from_millis(20);
    let change = json!({
        "metadata": {"annotations": {"claviger.dev/recover-secrets": format!("a@{later}")}},
        "spec": {"sync": sync("led-3", "Current")},
    });
    space.change_vault("recovered", change).await;
    let status = space
        .until_vault("recovered", "told", |status| {
            ready(&status.conditions).is_some_and(|ready| ready.message.contains("was imported"))
        })
        .await;
    assert_eq!(says(&status.conditions, "Stalled"), "True");
    assert!(space.secrets().get_opt("led-3").await.unwrap().is_none());
    // Who still imports it may.
    let change = json!({"spec": {"sync": sync("led-4", "Current")}});
    space.change_vault("kept", change).await;
    space
        .until_data("led-4", "be filled", |data| {
            data.get("a").is_some_and(|value| value == "imported-value")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_secret_that_somebody_made_anew_is_put_right_or_told_of() {
    let space = Space::new("vault-immutable-anew").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = json!({
        "secrets": [{"name": "a", "generate": {}}],
        "sync": [{"target": {"name": "app", "immutable": true}, "data": [{"key": "a", "secret": "a"}]}],
    });
    space.declare_vault("payments", spec).await;
    let status = space.vault_ready("payments").await;
    let secret = status.sync[0].secret_name.clone().unwrap();
    let before = space.secrets().get(&secret).await.unwrap();
    let value = space.data(&secret).await;
    let forger = Api::<Secret>::namespaced(space.forger().await, &space.name);
    // As kubectl replace --force does, with its labels and annotations.
    let mut anew = before.clone();
    anew.metadata.resource_version = None;
    anew.metadata.uid = None;
    anew.metadata.creation_timestamp = None;
    let changed = ByteString(b"another".to_vec());
    anew.data.as_mut().unwrap().insert("a".to_owned(), changed);
    forger
        .delete(&secret, &DeleteParams::default())
        .await
        .unwrap();
    // Claviger may be faster.
    let _ = forger.create(&PostParams::default(), &anew).await;
    space
        .until_data(&secret, "be right", |data| *data == value)
        .await;
    let settled = space.vault_ready("payments").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let versions = async || {
        let secret = space.secrets().get(&secret).await.unwrap();
        (secret.metadata.uid, secret.metadata.resource_version)
    };
    let at_rest = versions().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(versions().await, at_rest, "{settled:?}");
    // One without a sign of ours.
    let spec = json!({"spec": {"suspend": true}});
    space.change_vault("payments", spec).await;
    space
        .until_vault("payments", "suspended", |status| {
            ready(&status.conditions).is_some_and(|ready| ready.reason == "Suspended")
        })
        .await;
    forger
        .delete(&secret, &DeleteParams::default())
        .await
        .unwrap();
    space.put_secret(&secret, &[("a", "foreign")]).await;
    space
        .change_vault("payments", json!({"spec": {"suspend": false}}))
        .await;
    let message = space.vault_stalled("payments", "TargetConflict").await;
    assert!(message.contains(&secret), "{message}");
    assert_eq!(space.data(&secret).await["a"], "foreign");
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_before_of_an_immutable_target_go_with_the_values_in_them() {
    let space = Space::new("vault-immutable-pruned").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = |rotation: Value| {
        json!({
            "secrets": [
                {"name": "often", "generate": {}, "rotation": rotation},
                {"name": "never", "generate": {}},
            ],
            "sync": [{"target": {"name": "app", "immutable": true}, "data": [
                {"key": "often", "secret": "often"}, {"key": "never", "secret": "never"},
            ]}],
        })
    };
    let count = async || {
        let all = space.secrets().list(&ListParams::default()).await.unwrap();
        let ours = all
            .iter()
            .filter(|secret| secret.name_any().starts_with("app-"));
        ours.count()
    };
    let until = async |wanted: usize| {
        eventually("contents before to go", PATIENCE, async || {
            let count = count().await;
            if count == wanted {
                Ok(())
            } else {
                Err(count.to_string())
            }
        })
        .await;
    };
    let vault = spec(json!({"overlap": "2s"}));
    space.declare_vault("payments", vault).await;
    space.vault_ready("payments").await;
    // The other secret's overlap of a day keeps nothing longer than its own values.
    for generation in 1..=2 {
        let vault = spec(json!({"overlap": "2s", "generation": generation}));
        space.change_vault("payments", json!({"spec": vault})).await;
        until(2).await;
        until(1).await;
    }
    // What is revoked is gone at once.
    let vault = |more: Value| {
        let mut rotation = json!({"overlap": "1h", "generation": 3});
        let fields = more.as_object().unwrap().clone();
        rotation.as_object_mut().unwrap().extend(fields);
        json!({"spec": spec(rotation)})
    };
    space.change_vault("payments", vault(json!({}))).await;
    until(2).await;
    space
        .change_vault("payments", vault(json!({"revokeGeneration": 1})))
        .await;
    space
        .until_vault("payments", "revoked", |status| {
            status
                .declared
                .iter()
                .any(|secret| secret.generation == Some(5))
        })
        .await;
    until(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_somebody_has_taken_hold_up_one_secret_only() {
    let space = Space::new("vault-squatted").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = |generation: u32| {
        let secret = |name: &str| json!({"name": name, "generate": {}, "rotation": {"generation": generation}});
        let to =
            |name: &str| json!({"target": {"name": name}, "data": [{"key": "K", "secret": name}]});
        json!({"secrets": [secret("a"), secret("b")], "sync": [to("a"), to("b")]})
    };
    space.declare_vault("payments", spec(0)).await;
    space.vault_ready("payments").await;
    let (a, b) = (space.data("a").await, space.data("b").await);
    let attributes = space.attributes("payments").await;
    let (entry, _) = attributes
        .iter()
        .find(|(_, attributes)| attributes["name"] == "a")
        .unwrap();
    let (stem, digits) = entry.rsplit_once('-').unwrap();
    let width = digits.len();
    for number in 2..=40 {
        space
            .put_secret(&format!("{stem}-{number:0width$}"), &[("a", "b")])
            .await;
    }
    space
        .change_vault("payments", json!({"spec": spec(1)}))
        .await;
    space.until_data("b", "turn", |data| *data != b).await;
    let status = space
        .until_vault("payments", "told", |status| {
            ready(&status.conditions).is_some_and(|ready| ready.message.contains("taken"))
        })
        .await;
    assert_eq!(says(&status.conditions, "Ready"), "False", "{status:?}");
    assert_eq!(space.data("a").await, a);
    for number in 2..=40 {
        let name = format!("{stem}-{number:0width$}");
        space
            .secrets()
            .delete(&name, &DeleteParams::default())
            .await
            .unwrap();
    }
    space
        .change_vault("payments", json!({"spec": spec(2)}))
        .await;
    space.until_data("a", "turn", |data| *data != a).await;
    space.vault_ready("payments").await;
}

/// The versions of the vault's key ring that are there.
async fn ring_versions(space: &Space) -> Vec<u64> {
    let ring = space.ring("payments").await;
    let versions = ring["versions"].as_array().unwrap().iter();
    versions
        .map(|version| version["version"].as_u64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn shredding_does_not_wait_for_a_suspension_to_end() {
    let space = Space::new("vault-shred-suspended").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = json!({"secrets": [{"name": "a", "generate": {}}]});
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let shred = json!({"spec": {"suspend": true, "keyRing": {"shredVersions": [1]}}});
    space.change_vault("payments", shred).await;
    eventually("the version to be shredded", PATIENCE, async || {
        let versions = ring_versions(&space).await;
        if versions == [2] {
            Ok(())
        } else {
            Err(format!("{versions:?}"))
        }
    })
    .await;
    space
        .change_vault("payments", json!({"spec": {"shred": true}}))
        .await;
    eventually("the ring to be shredded", PATIENCE, async || {
        let versions = ring_versions(&space).await;
        if versions.is_empty() {
            Ok(())
        } else {
            Err(format!("{versions:?}"))
        }
    })
    .await;
    assert_eq!(
        space.entries("payments").await.len(),
        1,
        "nothing else was done"
    );
}
