//! A vault's life: secrets made, turned, deleted, recovered; written into the Secrets that pods read.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use claviger::api::v1alpha1::SecretVaultStatus;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::support::{Operator, Options, Space, eventually, space::PATIENCE, vaults::ready};

#[tokio::test(flavor = "multi_thread")]
async fn declared_secrets_are_made_sealed_and_synced() {
    let space = Space::new("vault-made").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .put_secret("bootstrap", &[("apiKey", "third-party-value-0123456789")])
        .await;
    space
        .declare_vault(
            "payments",
            json!({
                "secrets": [
                    {"name": "db-password", "generate": {"length": 40}},
                    {"name": "third-party", "valueFrom": {"secretKeyRef": {"name": "bootstrap", "key": "apiKey"}}},
                ],
                "sync": [{
                    "target": {"name": "payments-env"},
                    "data": [
                        {"key": "DB_PASSWORD", "secret": "db-password"},
                        {"key": "API_KEY", "secret": "Third-Party"},
                        {"key": "URL", "template": "postgres://app:{{ secrets['db-password'] | urlencode }}@db/app"},
                    ],
                }],
            }),
        )
        .await;
    let status = space.vault_ready("payments").await;
    assert_eq!(status.secrets.unwrap().live, 2);
    let data = space.data("payments-env").await;
    assert_eq!(data["API_KEY"], "third-party-value-0123456789");
    assert_eq!(data["DB_PASSWORD"].len(), 40);
    assert_eq!(
        data["URL"],
        format!("postgres://app:{}@db/app", data["DB_PASSWORD"])
    );
    // Nothing in the vault's own objects is a value.
    for (name, entry) in space.entries("payments").await {
        let text = serde_json::to_string(&entry).unwrap();
        for value in data.values() {
            assert!(!text.contains(value.as_str()), "{name}");
        }
    }
}

/// A spec with one generated secret, `db-password`, that is synced into `app` with the value before.
#[allow(
    clippy::needless_pass_by_value,
    reason = "called with `json!` in place"
)]
fn one(more: Value) -> Value {
    let mut spec = json!({
        "secrets": [{"name": "db-password", "generate": {}}],
        "sync": [{
            "target": {"name": "app"},
            "data": [
                {"key": "password", "secret": "db-password"},
                {"key": "before", "secret": "db-password", "version": "Previous"},
                {"key": "url", "template": "db://{{ secrets['db-password'] }}"},
            ],
        }],
    });
    json_patch::merge(&mut spec, &more);
    spec
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "called with `json!` in place"
)]
fn rotated(rotation: Value) -> Value {
    json!({"spec": {"secrets": [{"name": "db-password", "generate": {}, "rotation": rotation}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_keeps_the_value_before_for_the_overlap_and_a_revocation_does_not() {
    let space = Space::new("vault-turn").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_deployment("web").await;
    let mut spec = one(json!({}));
    spec["sync"][0]["restart"] = json!([{"kind": "Deployment", "name": "web"}]);
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let first = space.data("app").await;
    assert!(!first.contains_key("before"), "there is none before");
    assert_eq!(
        space.restarted_at("web").await,
        None,
        "nobody had another value"
    );

    space
        .change_vault(
            "payments",
            rotated(json!({"overlap": "4s", "generation": 1})),
        )
        .await;
    let turned = space
        .until_data("app", "have another password", |data| {
            data.get("password") != first.get("password")
        })
        .await;
    assert_eq!(turned["before"], first["password"]);
    assert_eq!(turned["url"], format!("db://{}", turned["password"]));
    let status = space
        .until_vault("payments", "in overlap", |status| {
            status.declared[0].previous_until.is_some()
        })
        .await;
    assert_eq!(status.declared[0].generation, Some(2));
    let restarted = space.restarted_at("web").await;
    assert!(restarted.is_some());
    // After the overlap the value before is disabled and gone from the Secret; its ciphertext is kept.
    space
        .until_data("app", "have no value before", |data| {
            !data.contains_key("before")
        })
        .await;
    let status = space.vault_ready("payments").await;
    assert_eq!(status.declared[0].previous_until, None);
    let attributes = space.attributes("payments").await;
    let enabled: Vec<bool> = attributes
        .values()
        .map(|attributes| attributes["enabled"].as_bool().unwrap_or(true))
        .collect();
    assert_eq!(enabled, [false, true]);
    assert_eq!(
        space.restarted_at("web").await,
        restarted,
        "the password is the same"
    );

    // Revoked: the value before is nowhere from the moment of the turn.
    space
        .change_vault(
            "payments",
            rotated(json!({"overlap": "1h", "generation": 1, "revokeGeneration": 1})),
        )
        .await;
    let revoked = space
        .until_data("app", "have another password", |data| {
            data.get("password") != turned.get("password")
        })
        .await;
    assert!(!revoked.contains_key("before"));
    space.vault_ready("payments").await;
    let attributes = space.attributes("payments").await;
    assert_eq!(attributes.len(), 3);
    assert!(
        attributes
            .values()
            .take(2)
            .all(|attributes| attributes["enabled"] == false)
    );
    // A reverted commit does nothing.
    space
        .change_vault(
            "payments",
            rotated(json!({"overlap": "1h", "generation": 0})),
        )
        .await;
    space.vault_ready("payments").await;
    assert_eq!(space.data("app").await["password"], revoked["password"]);
    // An annotation turns one secret, once.
    let now = claviger::clock::now();
    space
        .change_vault(
            "payments",
            json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": format!("DB-Password@{now}")}}}),
        )
        .await;
    space
        .until_data("app", "have another password", |data| {
            data.get("password") != revoked.get("password")
        })
        .await;
    space.vault_ready("payments").await;
    assert_eq!(space.entries("payments").await.len(), 4);
    let events = space.events("payments").await;
    assert!(events.contains(&"Rotated".to_owned()) && events.contains(&"Revoked".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_follows_its_source_and_keeps_the_last_value_without_it() {
    let space = Space::new("vault-source").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = json!({
        "secrets": [{
            "name": "api-key",
            "valueFrom": {"secretKeyRef": {"name": "brought", "key": "key"}},
            "rotation": {"overlap": "1h"},
        }],
        "sync": [{"target": {"name": "app"}, "data": [
            {"key": "now", "secret": "api-key"},
            {"key": "before", "secret": "api-key", "version": "Previous"},
        ]}],
    });
    space.declare_vault("imported", spec).await;
    let message = space.vault_stalled("imported", "SourceNotFound").await;
    assert!(message.contains("Secret/brought"), "{message}");
    space.put_secret("brought", &[("key", "first-value")]).await;
    space.vault_ready("imported").await;
    assert_eq!(space.data("app").await["now"], "first-value");
    space
        .put_secret("brought", &[("key", "second-value")])
        .await;
    let data = space
        .until_data("app", "follow", |data| {
            data.get("now").is_some_and(|now| now == "second-value")
        })
        .await;
    assert_eq!(data["before"], "first-value");
    space.vault_ready("imported").await;
    assert_eq!(space.entries("imported").await.len(), 2);
    // Whatever happens to the source, the last value stays.
    for (value, reason) in [
        (json!(null), "SourceNotFound"),
        (json!(STANDARD.encode("x".repeat(26_000))), "ValueRefused"),
        (json!(STANDARD.encode([0xff, 0xfe])), "ValueRefused"),
    ] {
        let patch = json!({"data": {"key": value}});
        space
            .secrets()
            .patch("brought", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        let message = space.vault_stalled("imported", reason).await;
        assert!(message.contains("stays in force"), "{message}");
        assert_eq!(space.data("app").await["now"], "second-value");
    }
    space
        .secrets()
        .delete("brought", &DeleteParams::default())
        .await
        .unwrap();
    space.vault_stalled("imported", "SourceNotFound").await;
    // The same value again is no new version.
    space
        .put_secret("brought", &[("key", "second-value")])
        .await;
    space.vault_ready("imported").await;
    assert_eq!(space.entries("imported").await.len(), 2);
    // The greatest value that a vault takes.
    let long = "v".repeat(25 * 1024);
    space.put_secret("brought", &[("key", &long)]).await;
    space
        .until_data("app", "follow", |data| data.get("now") == Some(&long))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_taken_off_the_list_is_deleted_softly_recovered_and_purged() {
    let space = Space::new("vault-delete").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let keep = json!({"name": "kept", "generate": {}});
    let spec = |secrets: Value| json!({"secrets": secrets, "softDelete": {"retention": "10s"}});
    let gone = json!({"name": "gone", "generate": {}});
    let sync = json!([{"target": {"name": "app"}, "data": [{"key": "gone", "secret": "gone"}]}]);
    let mut first = spec(json!([keep, gone]));
    first["sync"] = sync.clone();
    space.declare_vault("payments", first).await;
    space.vault_ready("payments").await;
    let value = space.data("app").await["gone"].clone();

    let without = json!({"spec": {"secrets": [keep], "sync": null}});
    space.change_vault("payments", without.clone()).await;
    let deleted = |n| {
        move |status: &SecretVaultStatus| status.secrets.is_some_and(|secrets| secrets.deleted == n)
    };
    space
        .until_vault("payments", "short of a secret", deleted(1))
        .await;
    space
        .until_data("app", "be gone with its target", BTreeMap::is_empty)
        .await;
    // Declared again: the same value is back.
    let mut back = json!({"spec": spec(json!([keep, gone]))});
    back["spec"]["sync"] = sync;
    space.change_vault("payments", back).await;
    space.vault_ready("payments").await;
    assert_eq!(space.data("app").await["gone"], value);
    assert!(
        space
            .events("payments")
            .await
            .contains(&"Recovered".to_owned())
    );

    // Deleted again, and recovered by annotation: it stays though nobody declares it.
    space.change_vault("payments", without.clone()).await;
    space
        .until_vault("payments", "short of a secret", deleted(1))
        .await;
    let asked = |what: &str| {
        let later = claviger::clock::now() + jiff::SignedDuration::from_millis(20);
        json!({"metadata": {"annotations": {format!("claviger.dev/{what}-secrets"): format!("gone@{later}")}}})
    };
    space.change_vault("payments", asked("recover")).await;
    let status = space
        .until_vault("payments", "whole again", deleted(0))
        .await;
    assert_eq!(status.secrets.unwrap().live, 2);
    space.vault_ready("payments").await;

    // Adopted by declaring it, deleted, purged when the retention is over.
    space
        .change_vault("payments", json!({"spec": spec(json!([keep, gone]))}))
        .await;
    space.vault_ready("payments").await;
    space.change_vault("payments", without).await;
    space
        .until_vault("payments", "short of a secret", deleted(1))
        .await;
    let status = space
        .until_vault("payments", "rid of it", |status| {
            status
                .secrets
                .is_some_and(|secrets| secrets.deleted == 0 && secrets.live == 1)
        })
        .await;
    assert_eq!(status.secrets.unwrap().versions, 1);
    assert_eq!(space.entries("payments").await.len(), 1);
    assert!(
        space
            .events("payments")
            .await
            .contains(&"Purged".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_is_done_when_asked_for_unless_the_vault_is_protected() {
    let space = Space::new("vault-purge").await;
    let _operator = Operator::start(&space, Options::default()).await;
    for (vault, protected) in [("free", false), ("protected", true)] {
        let spec = json!({
            "secrets": [{"name": "gone", "generate": {}}],
            "softDelete": {"retention": "1h", "purgeProtection": protected},
        });
        space.declare_vault(vault, spec).await;
        space.vault_ready(vault).await;
        space
            .change_vault(vault, json!({"spec": {"secrets": null}}))
            .await;
        let deleted =
            |status: &SecretVaultStatus| status.secrets.is_some_and(|secrets| secrets.deleted == 1);
        space.until_vault(vault, "short of a secret", deleted).await;
        let later = claviger::clock::now() + jiff::SignedDuration::from_millis(20);
        let asked = json!({"metadata": {"annotations": {"claviger.dev/purge-secrets": format!("gone@{later}")}}});
        space.change_vault(vault, asked).await;
    }
    eventually("the purge", PATIENCE, async || {
        let left = space.entries("free").await.len();
        if left == 0 {
            Ok(())
        } else {
            Err(left.to_string())
        }
    })
    .await;
    assert_eq!(
        space.entries("protected").await.len(),
        2,
        "a value and a tombstone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_that_turns_re_wraps_in_the_background_and_destroys_what_is_idle() {
    let space = Space::new("vault-ring").await;
    let options = Options {
        rewrap_rate: 20,
        ..Options::default()
    };
    let _operator = Operator::start(&space, options).await;
    let secrets: Vec<Value> = (0..60)
        .map(|n| json!({"name": format!("secret-{n}"), "generate": {}}))
        .collect();
    let spec = json!({
        "secrets": secrets,
        "sync": [{"target": {"name": "app"}, "data": [{"key": "one", "secret": "secret-1"}]}],
    });
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let before = space.entries("payments").await;
    let value = space.data("app").await["one"].clone();
    let first_ring = space.ring("payments").await;

    space
        .change_vault(
            "payments",
            json!({"spec": {"keyRing": {"rotation": {"generation": 1}}}}),
        )
        .await;
    let status = space
        .until_vault("payments", "re-wrapping", |status| {
            status
                .key_ring
                .as_ref()
                .is_some_and(|ring| ring.rewrapped.is_some())
        })
        .await;
    let progress = status.key_ring.unwrap().rewrapped.unwrap();
    assert!(progress.ends_with(" of 60"), "{progress}");
    let status = space.vault_ready("payments").await;
    let ring = status.key_ring.unwrap();
    assert_eq!(
        (ring.current, ring.versions.len()),
        (2, 1),
        "the old version is destroyed"
    );
    assert!(
        space
            .ring_versions("payments")
            .await
            .iter()
            .all(|version| *version == 2)
    );
    // Payloads and attributes are what they were.
    let after = space.entries("payments").await;
    assert_eq!(before.len(), after.len());
    for (name, entry) in &before {
        assert_eq!(entry.data, after[name].data, "{name}");
        assert_eq!(
            entry.annotations()["claviger.dev/attributes"],
            after[name].annotations()["claviger.dev/attributes"]
        );
    }
    assert_eq!(
        space.ring("payments").await["vaultId"],
        first_ring["vaultId"]
    );
    // They still open.
    space
        .secrets()
        .delete("app", &DeleteParams::default())
        .await
        .unwrap();
    let data = space
        .until_data("app", "be put back", |data| !data.is_empty())
        .await;
    assert_eq!(data["one"], value);
    // By annotation, and by interval.
    let now = claviger::clock::now();
    let annotated =
        json!({"metadata": {"annotations": {"claviger.dev/rotate-at": now.to_string()}}});
    space.change_vault("payments", annotated).await;
    let third = |status: &SecretVaultStatus| {
        status
            .key_ring
            .as_ref()
            .is_some_and(|ring| ring.current == 3)
    };
    space.until_vault("payments", "turned", third).await;
    space
        .change_vault(
            "payments",
            json!({"spec": {"keyRing": {"rotation": {"interval": "10s"}}}}),
        )
        .await;
    let fourth = |status: &SecretVaultStatus| {
        status
            .key_ring
            .as_ref()
            .is_some_and(|ring| ring.current >= 4)
    };
    space
        .until_vault("payments", "turned by the clock", fourth)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shredding_a_ring_version_or_the_vault_makes_everything_under_it_unreadable() {
    let space = Space::new("vault-shred").await;
    let _operator = Operator::start(
        &space,
        Options {
            rewrap_rate: 1,
            ..Options::default()
        },
    )
    .await;
    let secrets = json!([{"name": "a", "generate": {}}, {"name": "b", "generate": {}}]);
    let sync = json!([{"target": {"name": "app"}, "data": [
        {"key": "a", "secret": "a"}, {"key": "b", "secret": "b"}]}]);
    space
        .declare_vault("payments", json!({"secrets": secrets, "sync": sync}))
        .await;
    space.vault_ready("payments").await;
    let before = space.data("app").await;
    space
        .change_vault(
            "payments",
            json!({"spec": {"keyRing": {"shredVersions": [1]}}}),
        )
        .await;
    // What is generated is made anew, and the Secret that pods read has the new values.
    let after = space
        .until_data("app", "have other values", |data| {
            data.len() == 2
                && data
                    .iter()
                    .all(|(key, value)| before.get(key) != Some(value))
        })
        .await;
    let status = space.vault_ready("payments").await;
    assert_eq!(status.secrets.unwrap().unreadable, 2);
    let ring = space.ring("payments").await;
    assert_eq!(ring["shredded"], json!([1]));
    assert!(
        ring["versions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|version| version["version"] != 1)
    );
    assert_eq!(
        space.entries("payments").await.len(),
        4,
        "the ciphertext is there"
    );

    space
        .change_vault("payments", json!({"spec": {"shred": true}}))
        .await;
    space.vault_stalled("payments", "Shredded").await;
    let ring = space.ring("payments").await;
    assert_eq!(ring["versions"], json!([]));
    assert_eq!(space.data("app").await, after, "what pods read stays");
    // Nothing is made any more, and nothing opens: the root key and the ciphertext are there.
    space
        .secrets()
        .delete("app", &DeleteParams::default())
        .await
        .unwrap();
    space.vault_stalled("payments", "Shredded").await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(space.data("app").await.is_empty());
    assert_eq!(space.entries("payments").await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_moved_or_renamed_is_refused_and_named_and_others_go_on() {
    let space = Space::new("vault-tamper").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = |length: u32| {
        json!({
            "secrets": [{"name": "a", "generate": {}}, {"name": "b", "generate": {"length": length}}],
            "sync": [
                {"target": {"name": "app-a"}, "data": [{"key": "a", "secret": "a"}]},
                {"target": {"name": "app-b"}, "data": [{"key": "b", "secret": "b"}]},
            ],
        })
    };
    space.declare_vault("payments", spec(40)).await;
    space.vault_ready("payments").await;
    let entries = space.attributes("payments").await;
    let (a, attributes) = entries
        .iter()
        .find(|(_, attributes)| attributes["name"] == "a")
        .unwrap();
    let value = space.data("app-a").await;
    let original = space.secrets().get(a).await.unwrap();
    let mut forged = attributes.clone();
    forged["created"] = json!("2020-01-01T00:00:00Z");
    space
        .forge(a, json!({"claviger.dev/attributes": forged.to_string()}))
        .await;
    let message = space.vault_stalled("payments", "Unreadable").await;
    assert!(message.contains(a), "{message}");
    assert_eq!(
        space.data("app-a").await,
        value,
        "the last good state stays"
    );
    // The other secret goes on.
    let other = space.data("app-b").await;
    let mut turn = spec(40);
    turn["secrets"][1]["rotation"] = json!({"generation": 1});
    space.change_vault("payments", json!({"spec": turn})).await;
    space
        .until_data("app-b", "turn", |data| *data != other)
        .await;
    // Put back, all is well.
    space
        .forge(
            a,
            json!({"claviger.dev/attributes": original.annotations()["claviger.dev/attributes"]}),
        )
        .await;
    space.vault_ready("payments").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_with_secrets_is_deleted_only_when_told_what_becomes_of_them() {
    let space = Space::new("vault-departure").await;
    let _operator = Operator::start(&space, Options::default()).await;
    for (vault, policy) in [("retained", "Retain"), ("destroyed", "Delete")] {
        let spec = json!({
            "secrets": [{"name": "a", "generate": {}}],
            "sync": [{"target": {"name": format!("{vault}-app")}, "data": [{"key": "a", "secret": "a"}]}],
        });
        space.declare_vault(vault, spec.clone()).await;
        space.vault_ready(vault).await;
        let value = space.data(&format!("{vault}-app")).await;
        space.delete_vault(vault).await;
        let message = space.vault_stalled(vault, "DeletionBlocked").await;
        assert!(message.contains("deletionPolicy"), "{message}");
        space
            .change_vault(vault, json!({"spec": {"deletionPolicy": policy}}))
            .await;
        eventually("the vault to go", PATIENCE, async || {
            match space.vaults().get_opt(vault).await.unwrap() {
                None => Ok(()),
                Some(_) => Err("it is there".to_owned()),
            }
        })
        .await;
        let entries = space.entries(vault).await.len();
        if policy == "Retain" {
            assert_eq!(entries, 1);
            assert_eq!(space.data("retained-app").await, value);
            // A vault of the same name takes everything up again.
            space.declare_vault(vault, spec).await;
            space.vault_ready(vault).await;
            assert_eq!(space.data("retained-app").await, value);
            assert_eq!(space.entries(vault).await.len(), 1);
        } else {
            assert_eq!(entries, 0);
            assert!(space.data("destroyed-app").await.is_empty());
            assert!(
                space
                    .secrets()
                    .get_opt("destroyed-key-ring")
                    .await
                    .unwrap()
                    .is_none()
            );
        }
    }
    // A namespace that is going holds nothing up.
    space
        .declare_vault("left", json!({"secrets": [{"name": "a", "generate": {}}]}))
        .await;
    space.vault_ready("left").await;
    let namespaces = Api::<Namespace>::all(space.client.clone());
    namespaces
        .delete(&space.name, &DeleteParams::default())
        .await
        .unwrap();
    eventually("the namespace to go", PATIENCE, async || {
        match namespaces.get_opt(&space.name).await.unwrap() {
            None => Ok(()),
            Some(_) => Err("it is there".to_owned()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_of_every_type_and_policy_are_filled_and_kept() {
    let space = Space::new("vault-targets").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_secret("theirs", &[("own", "untouched")]).await;
    let spec = json!({
        "secrets": [
            {"name": "web", "generate": {"tls": {"commonName": "web.shop", "dnsNames": ["web.shop"]}}},
            {"name": "deploy", "generate": {"ssh": {"comment": "deploy@shop"}}},
            {"name": "pin", "generate": {"alphabet": "Numeric", "length": 6, "minEntropyBits": 16}},
            {"name": "token", "generate": {"alphabet": "Identifiable"}},
            {"name": "id", "generate": {"alphabet": "Uuid"}},
        ],
        "sync": [
            {"target": {"name": "tls", "type": "kubernetes.io/tls", "labels": {"team": "web"}, "annotations": {"note": "x"}}, "data": [
                {"key": "tls.crt", "secret": "web", "part": "Certificate"},
                {"key": "tls.key", "secret": "web", "part": "PrivateKey"},
            ]},
            {"target": {"name": "ssh", "type": "kubernetes.io/ssh-auth"}, "data": [
                {"key": "ssh-privatekey", "secret": "deploy", "part": "PrivateKey"},
                {"key": "ssh-publickey", "secret": "deploy", "part": "PublicKey"},
            ]},
            {"target": {"name": "login", "type": "kubernetes.io/basic-auth"}, "data": [
                {"key": "username", "template": "app"},
                {"key": "password", "secret": "pin"},
            ]},
            {"target": {"name": "registry", "type": "kubernetes.io/dockerconfigjson"}, "data": [
                {"key": ".dockerconfigjson", "template": "{\"auths\":{\"r\":{\"password\":{{ secrets['token'] | json }}}}}"},
            ]},
            {"target": {"name": "theirs"}, "creationPolicy": "Merge", "data": [{"key": "id", "secret": "id"}]},
        ],
    });
    space.declare_vault("payments", spec.clone()).await;
    space.vault_ready("payments").await;
    let tls = space.data("tls").await;
    assert!(tls["tls.crt"].starts_with("-----BEGIN CERTIFICATE"));
    assert!(tls["tls.key"].starts_with("-----BEGIN PRIVATE KEY"));
    let secret = space.secrets().get("tls").await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(secret.labels()["team"], "web");
    let ssh = space.data("ssh").await;
    assert!(
        ssh["ssh-publickey"].starts_with("ssh-ed25519 ")
            && ssh["ssh-publickey"].trim_end().ends_with("deploy@shop")
    );
    assert_eq!(space.data("login").await["password"].len(), 6);
    let registry: Value =
        serde_json::from_str(&space.data("registry").await[".dockerconfigjson"]).unwrap();
    assert!(
        registry["auths"]["r"]["password"]
            .as_str()
            .unwrap()
            .starts_with("clv_")
    );
    let theirs = space.data("theirs").await;
    assert_eq!(
        (theirs["own"].as_str(), theirs["id"].len()),
        ("untouched", 36)
    );

    // Drift is put back: values, labels and annotations; what others added stays.
    let patch = json!({
        "metadata": {"labels": {"team": "other"}, "annotations": {"note": null}},
        "stringData": {"tls.crt": "x", "added": "by others"},
    });
    space
        .secrets()
        .patch("tls", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    space
        .until_data("tls", "be put back", |data| {
            data["tls.crt"] == tls["tls.crt"]
        })
        .await;
    let secret = space.secrets().get("tls").await.unwrap();
    assert_eq!(
        (
            secret.labels()["team"].as_str(),
            secret.annotations()["note"].as_str()
        ),
        ("web", "x")
    );
    assert_eq!(space.data("tls").await["added"], "by others");

    // Taken off the list: ours goes, theirs stays.
    space
        .change_vault(
            "payments",
            json!({"spec": {"sync": [
                {"target": {"name": "ssh", "type": "kubernetes.io/ssh-auth"}, "data": [
                    {"key": "ssh-privatekey", "secret": "deploy", "part": "PrivateKey"}]},
            ]}}),
        )
        .await;
    space
        .until_data("login", "be gone", BTreeMap::is_empty)
        .await;
    let theirs = space
        .until_data("theirs", "be theirs alone", |data| data.len() == 1)
        .await;
    assert_eq!(theirs["own"], "untouched");
    let ssh = space
        .until_data("ssh", "have one entry", |data| data.len() == 1)
        .await;
    assert!(ssh.contains_key("ssh-privatekey"));
    space.until_data("tls", "be gone", BTreeMap::is_empty).await;
    assert!(
        space
            .secrets()
            .get("theirs")
            .await
            .unwrap()
            .annotations()
            .get("claviger.dev/sync")
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_left_alone_and_the_condition_says_what_to_do() {
    let space = Space::new("vault-conflict").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_secret("taken", &[("a", "theirs")]).await;
    space.put_secret("shared", &[("a", "theirs")]).await;
    space.declare("key", function_key_in("store")).await;
    space.ready("key").await;
    let sync = |target: Value, entry: Value, merge: bool| {
        let mut item = json!({"target": target, "data": [entry]});
        if merge {
            item["creationPolicy"] = json!("Merge");
        }
        json!({"secrets": [{"name": "a", "generate": {}}], "sync": [item]})
    };
    let a = json!({"key": "a", "secret": "a"});
    for (vault, spec, reason, says) in [
        (
            "owner",
            sync(json!({"name": "taken"}), a.clone(), false),
            "TargetConflict",
            "was not made by this vault",
        ),
        (
            "merge",
            sync(json!({"name": "shared"}), a.clone(), true),
            "TargetConflict",
            "entry a of Secret/shared",
        ),
        (
            "absent",
            sync(json!({"name": "absent"}), a.clone(), true),
            "TargetRefused",
            "does not exist",
        ),
        (
            "store",
            sync(json!({"name": "store"}), a.clone(), false),
            "TargetRefused",
            "holds function keys",
        ),
        (
            "undeclared",
            sync(
                json!({"name": "x"}),
                json!({"key": "a", "secret": "other"}),
                false,
            ),
            "SourceNotFound",
            "no secret other",
        ),
        (
            "syntax",
            sync(
                json!({"name": "y"}),
                json!({"key": "a", "template": "{{ secrets['a'"}),
                false,
            ),
            "TemplateFailed",
            "line 1",
        ),
        (
            "undefined",
            sync(
                json!({"name": "z"}),
                json!({"key": "a", "template": "{{ previous['a'] }}"}),
                false,
            ),
            "TemplateFailed",
            "line 1",
        ),
        (
            "part",
            sync(
                json!({"name": "w"}),
                json!({"key": "a", "secret": "a", "part": "Certificate"}),
                false,
            ),
            "TemplateFailed",
            "holds no",
        ),
    ] {
        space.declare_vault(vault, spec).await;
        let message = space.vault_stalled(vault, reason).await;
        assert!(message.contains(says), "{vault}: {message}");
    }
    assert_eq!(space.data("taken").await["a"], "theirs");
    // What stood in the way goes: nobody has to ask again.
    space
        .secrets()
        .delete("taken", &DeleteParams::default())
        .await
        .unwrap();
    space.put_secret("absent", &[("b", "theirs")]).await;
    space.vault_ready("owner").await;
    space.vault_ready("absent").await;
    // The elder of two vaults keeps a target.
    space
        .declare_vault("younger", sync(json!({"name": "taken"}), a, false))
        .await;
    let message = space.vault_stalled("younger", "Conflict").await;
    assert!(message.contains("SecretVault/owner"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_target_is_made_anew_and_the_one_before_goes_after_the_overlap() {
    let space = Space::new("vault-immutable").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = |generation: u32| {
        json!({
            "secrets": [{"name": "a", "generate": {}, "rotation": {"overlap": "3s", "generation": generation}}],
            "sync": [{"target": {"name": "app", "immutable": true}, "data": [{"key": "a", "secret": "a"}]}],
        })
    };
    space.declare_vault("payments", spec(0)).await;
    let first = space.vault_ready("payments").await.sync[0]
        .secret_name
        .clone()
        .unwrap();
    assert!(first.starts_with("app-"), "{first}");
    let value = space.data(&first).await;
    assert_eq!(
        space.secrets().get(&first).await.unwrap().immutable,
        Some(true)
    );
    space
        .change_vault("payments", json!({"spec": spec(1)}))
        .await;
    let status = space
        .until_vault("payments", "synced anew", |status| {
            status.sync[0]
                .secret_name
                .as_deref()
                .is_some_and(|name| name != first)
        })
        .await;
    let second = status.sync[0].secret_name.clone().unwrap();
    assert_eq!(
        space.data(&first).await,
        value,
        "whoever uses it has it for the overlap"
    );
    assert_ne!(space.data(&second).await, value);
    space
        .until_data(&first, "be gone", BTreeMap::is_empty)
        .await;
    space.vault_ready("payments").await;
    // Deleted by somebody: it is back under the same name.
    let content = space.data(&second).await;
    space
        .secrets()
        .delete(&second, &DeleteParams::default())
        .await
        .unwrap();
    space
        .until_data(&second, "be back", |data| *data == content)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_operator_writes_nothing_and_opens_nothing() {
    let space = Space::new("vault-restart").await;
    let operator = Operator::start(&space, Options::default()).await;
    space
        .put_secret("brought", &[("key", "a-value-brought-along")])
        .await;
    space.put_deployment("web").await;
    let mut spec = one(json!({"keyRing": {"rotation": {"interval": "720h", "generation": 3}}}));
    spec["secrets"] = json!([
        {"name": "db-password", "generate": {}, "rotation": {"interval": "24h", "overlap": "1h"}},
        {"name": "third", "valueFrom": {"secretKeyRef": {"name": "brought", "key": "key"}}},
    ]);
    spec["sync"][0]["restart"] = json!([{"kind": "Deployment", "name": "web"}]);
    space.declare_vault("payments", spec).await;
    space.vault_ready("payments").await;
    let versions = async || {
        let mut versions: BTreeMap<String, String> = BTreeMap::new();
        for secret in space.secrets().list(&ListParams::default()).await.unwrap() {
            versions.insert(secret.name_any(), secret.resource_version().unwrap());
        }
        let vault = space.vaults().get("payments").await.unwrap();
        versions.insert("the vault".to_owned(), vault.resource_version().unwrap());
        let web = space.deployments().get("web").await.unwrap();
        versions.insert("the deployment".to_owned(), web.resource_version().unwrap());
        versions
    };
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let before = versions().await;
    drop(operator);
    let operator = Operator::start(&space, Options::default()).await;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    assert_eq!(versions().await, before);
    drop(operator);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_vault_is_left_as_it_is() {
    let space = Space::new("vault-suspend").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.declare_vault("payments", one(json!({}))).await;
    space.vault_ready("payments").await;
    let before = space.data("app").await;
    let turn = one(
        json!({"suspend": true, "secrets": [{"name": "db-password", "generate": {}, "rotation": {"generation": 7}}], "keyRing": {"rotation": {"generation": 7}}}),
    );
    space.change_vault("payments", json!({"spec": turn})).await;
    let suspended = |status: &SecretVaultStatus| {
        ready(&status.conditions).is_some_and(|ready| ready.reason == "Suspended")
    };
    space.until_vault("payments", "suspended", suspended).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(space.data("app").await, before);
    assert_eq!(space.ring("payments").await["last"], 1);
    space
        .change_vault("payments", json!({"spec": {"suspend": false}}))
        .await;
    space
        .until_data("app", "turn", |data| data["password"] != before["password"])
        .await;
    let turned = |status: &SecretVaultStatus| {
        status
            .key_ring
            .as_ref()
            .is_some_and(|ring| ring.current == 2)
    };
    space.until_vault("payments", "turned", turned).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_go_as_keep_says() {
    let space = Space::new("vault-keep").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let spec = |generation: u32| {
        json!({"secrets": [{
            "name": "a", "generate": {},
            "rotation": {"overlap": "0s", "generation": generation},
            "keep": {"versions": 2},
        }]})
    };
    space.declare_vault("payments", spec(0)).await;
    for generation in 1..6 {
        space.vault_ready("payments").await;
        space
            .change_vault("payments", json!({"spec": spec(generation)}))
            .await;
        space
            .until_vault("payments", "turned", |status| {
                status.declared[0].generation == Some(i64::from(generation) + 1)
            })
            .await;
    }
    eventually("three versions to be left", PATIENCE, async || {
        let left: Vec<String> = space.entries("payments").await.into_keys().collect();
        if left.len() == 3 && left.last().unwrap().ends_with("-0000000006") {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
}

fn function_key_in(store: &str) -> Value {
    json!({"storage": {"secret": {"name": store}}, "scope": "Host", "keyName": "default"})
}

#[tokio::test(flavor = "multi_thread")]
async fn several_changes_make_one_write_of_a_target_and_one_restart() {
    let space = Space::new("vault-once").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.put_deployment("web").await;
    let spec = |generation: u32| {
        let secret = |name: &str| json!({"name": name, "generate": {}, "rotation": {"generation": generation}});
        let restart = json!([{"kind": "Deployment", "name": "web"}]);
        json!({
            "secrets": [secret("a"), secret("b"), secret("c")],
            "sync": [
                {"target": {"name": "one"}, "restart": restart, "data": [
                    {"key": "a", "secret": "a"}, {"key": "b", "secret": "b"},
                    {"key": "all", "template": "{{ secrets['a'] }}{{ secrets['b'] }}{{ secrets['c'] }}"},
                ]},
                {"target": {"name": "two"}, "restart": restart, "data": [{"key": "c", "secret": "c"}]},
            ],
        })
    };
    space.declare_vault("payments", spec(0)).await;
    space.vault_ready("payments").await;
    let seen = space.follow_secret("one");
    let before = space.data("one").await;
    space
        .change_vault("payments", json!({"spec": spec(1)}))
        .await;
    space
        .until_data("one", "turn", |data| data["all"] != before["all"])
        .await;
    space.vault_ready("payments").await;
    let first = space.restarted_at("web").await;
    assert!(first.is_some());
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(space.restarted_at("web").await, first);
    let seen = seen.lock().unwrap().clone();
    assert_eq!(
        seen.len(),
        2,
        "the state before and the one after: {seen:?}"
    );
}
