//! Vaults whose root key is with a key management service.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use claviger::{api::v1alpha1::SecretVaultStatus, domain::vault::envelope::RootKey};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tonic::Status;
use zeroize::Zeroizing;

use crate::support::{
    Cluster, Operator, Options, Space, eventually,
    kms::{EncryptAnswer, Fake, Plugin, StatusAnswer, kms_socket, with_kms},
    operator::Launcher,
    space::host_key,
    vault_keys::Identity,
    vaults::{ready, says},
};

/// The key is asked for every minute.
const POLL: Duration = Duration::from_secs(100);

fn spec(names: &[&str]) -> Value {
    let secrets: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "generate": {}}))
        .collect();
    let data: Vec<Value> = names
        .iter()
        .map(|name| json!({"key": name, "secret": name}))
        .collect();
    json!({"secrets": secrets, "sync": [{"target": {"name": "env"}, "data": data}]})
}

/// The ids of the root keys that wrap the keys of a ring, the index key's first.
fn wrapped_by(ring: &Value) -> Vec<String> {
    std::iter::once(&ring["indexKey"])
        .chain(
            ring["versions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|version| &version["key"]),
        )
        .map(|key| key["root"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until all of a vault is under this root key and this version of the ring, and nothing else,
/// and its status says so.
async fn settled(space: &Space, root: &str, version: u32) {
    eventually(&format!("the vault to be under {root}"), POLL, async || {
        let secret = space.secrets().get_opt("payments-key-ring").await.unwrap();
        if secret.is_none() {
            return Err("there is no key ring".to_owned());
        }
        let ring = space.ring("payments").await;
        let (roots, under) = (wrapped_by(&ring), space.ring_versions("payments").await);
        let status = space
            .vault_ready("payments")
            .await
            .key_ring
            .unwrap_or_default();
        if roots == [root, root]
            && ring["versions"][0]["version"] == json!(version)
            && under.iter().all(|one| *one == version)
            && status.root_key.as_deref() == Some(root)
            && status.current == i64::from(version)
        {
            Ok(())
        } else {
            Err(format!("{roots:?} {under:?} {status:?}"))
        }
    })
    .await;
}

/// Waits until a vault says that the root key is unavailable; answers the message.
async fn unavailable(space: &Space) -> String {
    let is = |status: &SecretVaultStatus| {
        says(&status.conditions, "Ready") == "False"
            && ready(&status.conditions).unwrap().reason == "RootKeyUnavailable"
    };
    let status = space
        .until_vault("payments", "RootKeyUnavailable", is)
        .await;
    ready(&status.conditions).unwrap().message.clone()
}

async fn turn_ring(space: &Space, at: &str) {
    let patch = json!({"metadata": {"annotations": {"claviger.dev/rotate-at": at}}});
    space.change_vault("payments", patch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_follows_the_key_of_the_kms() {
    let space = Space::new("kms-key").await;
    let directory = tempfile::tempdir().unwrap();
    let mut plugin = Plugin::prepare(directory.path());
    plugin.start().await;
    let launcher = Launcher::new(&space, &with_kms(&plugin.socket())).await;
    let operator = launcher.spawn();
    operator.leads().await;
    space
        .declare_vault("payments", spec(&["one", "two", "three"]))
        .await;
    settled(&space, "kms:key-1", 1).await;
    let opened = space.opened("payments", &plugin.roots()).await;
    assert_eq!(opened.len(), 3);
    let synced = space
        .until_data("env", "hold all", |data| data.len() == 3)
        .await;
    for value in opened.values() {
        assert!(synced.values().any(|synced| synced.as_bytes() == value));
    }
    let before = space.secrets().get("env").await.unwrap().resource_version();

    plugin.turn("key-2");
    settled(&space, "kms:key-2", 2).await;
    // Nothing needs the former key.
    plugin.destroy("key-1");
    assert_eq!(space.opened("payments", &plugin.roots()).await, opened);
    operator.kill().await;
    let operator = launcher.spawn();
    operator.leads().await;
    let mut more = spec(&["one", "two", "three", "four"]);
    more["sync"][0]["data"].as_array_mut().unwrap().pop();
    space.change_vault("payments", json!({"spec": more})).await;
    space
        .until_vault("payments", "of four", |status| {
            status.secrets.is_some_and(|counts| counts.live == 4)
        })
        .await;
    settled(&space, "kms:key-2", 2).await;
    assert_eq!(space.opened("payments", &plugin.roots()).await.len(), 4);
    let after = space.secrets().get("env").await.unwrap().resource_version();
    assert_eq!(before, after, "the synced Secret was touched");
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_away_is_waited_for() {
    let space = Space::new("kms-away").await;
    let directory = tempfile::tempdir().unwrap();
    let mut plugin = Plugin::prepare(directory.path());
    let launcher = Launcher::new(&space, &with_kms(&plugin.socket())).await;
    let operator = launcher.spawn();
    operator.leads().await;
    // Away at the start.
    space.declare_vault("payments", spec(&["one"])).await;
    let told = unavailable(&space).await;
    assert!(told.contains("no connection to the KMS plugin"), "{told}");
    assert!(space.entries("payments").await.is_empty());
    space.declare("key", host_key("key", json!({}))).await;
    space.ready("key").await;
    plugin.start().await;
    settled(&space, "kms:key-1", 1).await;
    let synced = space
        .until_data("env", "be filled", |data| data.len() == 1)
        .await;

    // Away in the middle: what needs no key of the KMS goes on, what does is told.
    plugin.kill().await;
    space
        .change_vault("payments", json!({"spec": spec(&["one", "two"])}))
        .await;
    space.vault_ready("payments").await;
    space
        .until_data("env", "have both", |data| data.len() == 2)
        .await;
    turn_ring(&space, "2026-01-01T00:00:00Z").await;
    unavailable(&space).await;
    assert_eq!(space.data("env").await["one"], synced["one"]);

    // Away while the operator starts anew.
    operator.kill().await;
    let operator = launcher.spawn();
    operator.leads().await;
    unavailable(&space).await;
    space.declare("other", host_key("other", json!({}))).await;
    space.ready("other").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(space.data("env").await["one"], synced["one"]);
    assert_eq!(space.data("env").await.len(), 2);
    plugin.start().await;
    settled(&space, "kms:key-1", 2).await;
    assert_eq!(space.opened("payments", &plugin.roots()).await.len(), 2);
    assert_eq!(space.data("env").await["one"], synced["one"]);
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_moves_from_the_secret_to_the_kms_and_back() {
    let space = Space::new("kms-move").await;
    let directory = tempfile::tempdir().unwrap();
    let mut plugin = Plugin::prepare(directory.path());
    plugin.start().await;
    let own = Options::default();
    let operator = Operator::start(&space, own.clone()).await;
    space.declare_vault("payments", spec(&["one", "two"])).await;
    space.vault_ready("payments").await;
    let roots = space.roots().await;
    let secret = roots.primary_id().unwrap();
    settled(&space, &secret, 1).await;
    let opened = space.opened("payments", &roots).await;
    let before = space.secrets().get("env").await.unwrap().resource_version();
    operator.kill().await;

    let operator = Operator::start(&space, with_kms(&plugin.socket())).await;
    settled(&space, "kms:key-1", 2).await;
    assert_eq!(space.opened("payments", &plugin.roots()).await, opened);
    operator.kill().await;

    // Back, but without the socket: nothing opens, and it says what to give.
    let operator = Operator::start(&space, own.clone()).await;
    let told = space.vault_stalled("payments", "RootKeyMissing").await;
    assert!(
        told.contains("kms:key-1") && told.contains("--kms-socket"),
        "{told}"
    );
    operator.kill().await;
    let with_socket = Options {
        more: kms_socket(&plugin.socket()),
        ..Options::default()
    };
    let operator = Operator::start(&space, with_socket).await;
    settled(&space, &secret, 3).await;
    operator.kill().await;
    plugin.kill().await;
    let operator = Operator::start(&space, own).await;
    settled(&space, &secret, 3).await;
    assert_eq!(space.opened("payments", &roots).await, opened);
    let after = space.secrets().get("env").await.unwrap().resource_version();
    assert_eq!(before, after, "the synced Secret was touched");
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_of_a_plugin_is_never_relied_on() {
    let space = Space::new("kms-garbage").await;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kms.sock");
    let fake = Fake::serve(&socket);
    let launcher = Launcher::new(&space, &with_kms(&socket)).await;
    let operator = launcher.spawn();
    operator.leads().await;
    fake.behave(|manners| manners.decrypt = Arc::new(|_| Ok(vec![0; 32])));
    space.declare_vault("payments", spec(&["one"])).await;
    let told = unavailable(&space).await;
    assert!(
        told.contains("decrypts what it has just encrypted to something else"),
        "{told}"
    );

    let answer = |ciphertext: Vec<u8>, key_id: &str| {
        let key_id = key_id.to_owned();
        move |_: Vec<u8>| {
            Ok(EncryptAnswer {
                ciphertext: ciphertext.clone(),
                key_id: key_id.clone(),
                annotations: BTreeMap::default(),
            })
        }
    };
    // Each of them is told, none leads to anything being written.
    for (encrypt, words) in [
        (answer(Vec::new(), "k"), "an empty ciphertext"),
        (answer(vec![1; 4000], "k"), "ciphertext"),
        (answer(vec![1], ""), "key"),
    ] {
        fake.behave(|manners| manners.encrypt = Arc::new(encrypt));
        let is = |status: &SecretVaultStatus| {
            ready(&status.conditions).is_some_and(|ready| {
                ready.reason == "RootKeyUnavailable"
                    && ready.message.contains("answered Encrypt with")
                    && ready.message.contains(words)
            })
        };
        space.until_vault("payments", words, is).await;
    }
    fake.behave(|manners| {
        manners.encrypt =
            Arc::new(|plaintext| Err(Status::internal(format!("could not encrypt {plaintext:?}"))));
    });
    let is = |status: &SecretVaultStatus| {
        ready(&status.conditions).is_some_and(|ready| ready.message.contains("refused Encrypt"))
    };
    space.until_vault("payments", "refused", is).await;
    assert!(
        space
            .secrets()
            .get_opt("payments-key-ring")
            .await
            .unwrap()
            .is_none()
    );

    // It comes to its senses.
    fake.behave(|_| {});
    settled(&space, "kms:k", 1).await;
    let synced = space
        .until_data("env", "be filled", |data| data.len() == 1)
        .await;

    // What it decrypts of a ring that is there is garbage: nothing is written, and nothing is lost.
    let ring = space.secrets().get("payments-key-ring").await.unwrap();
    operator.kill().await;
    let garbage = [
        Ok(vec![7; 32]),
        Ok(b"short".to_vec()),
        Err(Status::invalid_argument("no")),
    ];
    for garbage in garbage {
        fake.behave(|manners| manners.decrypt = Arc::new(move |_| garbage.clone()));
        let operator = launcher.spawn();
        operator.leads().await;
        unavailable(&space).await;
        assert_eq!(space.data("env").await, synced);
        let same = space.secrets().get("payments-key-ring").await.unwrap();
        assert_eq!(same.resource_version(), ring.resource_version());
        // It comes to its senses.
        fake.behave(|_| {});
        space.vault_ready("payments").await;
        assert_eq!(space.data("env").await, synced);
        operator.kill().await;
    }
    // Another version of the protocol, and a sick one, are not asked for their key.
    for (version, healthz) in [("v1", "ok"), ("v2", "the HSM is on fire")] {
        fake.behave(|manners| {
            let answer = StatusAnswer {
                version: version.to_owned(),
                healthz: healthz.to_owned(),
                key_id: "other".to_owned(),
            };
            manners.status = Arc::new(move || answer.clone());
        });
        let operator = launcher.spawn();
        operator.leads().await;
        eventually("the warning", Duration::from_secs(20), async || {
            let logged = operator.logged();
            let told = logged.contains("is not well")
                && logged.contains(if version == "v1" { "v1" } else { healthz });
            told.then_some(()).ok_or(String::new())
        })
        .await;
        space.vault_ready("payments").await;
        let same = space.secrets().get("payments-key-ring").await.unwrap();
        assert_eq!(same.resource_version(), ring.resource_version());
        operator.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_survives_the_loss_of_the_kms() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.install_with_keeper().await;
    let keeper = cluster.keepers_kubeconfig();
    let space = Space::on(Arc::clone(&cluster), "kms-lost").await;
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity::make(directory.path(), "identity");
    let mut plugin = Plugin::prepare(directory.path());
    plugin.start().await;
    let with_recipient = |mut options: Options| {
        options.more.extend([
            "--recovery-recipient".to_owned(),
            identity.recipient.clone(),
        ]);
        options
    };
    let operator = Operator::start(&space, with_recipient(with_kms(&plugin.socket()))).await;
    space.declare_vault("payments", spec(&["one", "two"])).await;
    settled(&space, "kms:key-1", 1).await;
    turn_ring(&space, "2026-01-01T00:00:00Z").await;
    settled(&space, "kms:key-1", 2).await;
    let opened = space.opened("payments", &plugin.roots()).await;
    let keys = space.recovery("payments", &identity).await;
    assert_eq!(keys.versions.keys().collect::<Vec<_>>(), [&2]);
    assert_eq!(
        space.root_key().await,
        None,
        "the KMS needs no root key beside it"
    );
    operator.kill().await;
    plugin.kill().await;
    drop(plugin);

    // The KMS is gone for good; a root key of Claviger's own takes its place.
    let operator = Operator::start(&space, with_recipient(Options::default())).await;
    space.vault_stalled("payments", "RootKeyMissing").await;
    eventually("a root key", Duration::from_secs(20), async || {
        space.root_key().await.map(drop).ok_or(String::new())
    })
    .await;
    let vault = format!("{}/payments", space.name);
    let restore = ["restore", "--identity", identity.file(), "--vault", &vault];
    let told = cluster.root_key_with(&keeper, &restore).await.unwrap();
    assert!(told.contains(&vault), "{told}");
    let secret = RootKey::new(Zeroizing::new(space.root_key().await.unwrap()));
    settled(&space, secret.id(), 2).await;
    assert_eq!(space.opened("payments", &space.roots().await).await, opened);
    let told = cluster.root_key_with(&keeper, &restore).await.unwrap_err();
    assert!(told.contains("nothing was written"), "{told}");
    let told = cluster
        .root_key(&["verify", "--identity", identity.file()])
        .await
        .unwrap();
    assert!(told.contains("it opens all of 1 vaults"), "{told}");
    assert!(operator.stop().await);
}
