//! What can go wrong around vaults while they are kept: the control plane stands still, dies,
//! refuses, lies; another replica takes over in mid re-wrap; others write to the same secrets; and
//! somebody who may do it all meddles with the objects. Nothing is lost or half done, what was
//! meddled with is refused and named, all else goes on, and when it is put right all is well again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use claviger::{
    api::{ATTRIBUTES_ANNOTATION, ENVELOPE_ANNOTATION, v1alpha1::DeclaredState},
    domain::vault::{
        attributes::{Attributes, Kind},
        envelope::{Binding, DataKey, Envelope, RootKey},
        name::{SecretName, VersionId, object_name, parse_object_name},
    },
    k8s::vault::{Vaults, ring_name},
};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::core::v1::Secret, api::rbac::v1::ClusterRole};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::support::{
    Cluster, Operator, Options, Space,
    control_plane::SYSTEM,
    eventually,
    keeper::Keeper,
    operator::Launcher,
    proxy::{Proxy, Seen, Verdict, status},
    record::Record,
    vault_book::{self, Made, Opened, Promise, Target, Turned},
    vaults::{ready, says},
};

/// Somebody whom the policies let write Claviger's own Secrets, and who may do everything.
async fn exempt(cluster: &Cluster) -> Client {
    let mut config = cluster.config().await;
    config.auth_info.impersonate = Some("system:kube-controller-manager".to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
    Client::try_from(config).unwrap()
}

/// Somebody who meddles with a vault's objects.
struct Meddler {
    secrets: Api<Secret>,
}

impl Meddler {
    async fn new(space: &Space) -> Self {
        let client = exempt(&space.cluster).await;
        Self {
            secrets: Api::namespaced(client, &space.name),
        }
    }

    async fn get(&self, name: &str) -> Secret {
        self.secrets.get(name).await.unwrap()
    }

    async fn delete(&self, name: &str) {
        self.secrets
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    async fn create(&self, mut secret: Secret) {
        let metadata = &mut secret.metadata;
        (metadata.resource_version, metadata.uid) = (None, None);
        (metadata.creation_timestamp, metadata.managed_fields) = (None, None);
        metadata.namespace = None;
        self.secrets
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
    }

    /// Puts an object back as it was.
    async fn put_back(&self, was: &Secret) {
        let name = was.name_any();
        if self.secrets.get_opt(&name).await.unwrap().is_some() {
            self.delete(&name).await;
        }
        self.create(was.clone()).await;
    }

    async fn annotate(&self, name: &str, annotation: &str, text: &str) {
        let patch = json!({"metadata": {"annotations": {annotation: text}}});
        self.secrets
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    async fn set_data(&self, name: &str, key: &str, bytes: Vec<u8>) {
        let patch = json!({"data": {key: ByteString(bytes)}});
        self.secrets
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }
}

/// A vault with a secret each for three targets, and somebody who meddles with it.
struct Meddled {
    space: Space,
    meddler: Meddler,
    root: RootKey,
    operator: Operator,
    turns: u32,
}

impl Meddled {
    async fn new(what: &str) -> Self {
        let space = Space::new(what).await;
        let operator = Operator::start(&space, Options::default()).await;
        space
            .declare_vault("main", Self::spec(&["a", "b", "c"], &["a", "b", "c"]))
            .await;
        space.vault_ready("main").await;
        Self {
            meddler: Meddler::new(&space).await,
            root: vault_book::root_key(&space).await,
            space,
            operator,
            turns: 0,
        }
    }

    fn spec(secrets: &[&str], targets: &[&str]) -> Value {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|name| json!({"name": name, "generate": {}, "rotation": {"overlap": "1s"}}))
            .collect();
        let sync: Vec<_> = targets
            .iter()
            .map(|name| json!({"target": {"name": format!("env-{name}")}, "data": [{"key": "K", "secret": name.split('-').next()}]}))
            .collect();
        json!({"secrets": secrets, "sync": sync})
    }

    async fn opened(&self) -> Opened {
        let ring = self.meddler.get(&ring_name("main")).await.data.unwrap();
        vault_book::open_ring(&self.root, &ring["ring"].0, &ring["mac"].0).unwrap()
    }

    /// The object of an entry.
    async fn object(&self, secret: &str, sequence: u32) -> String {
        object_name(
            "main",
            vault_book::hash(&self.opened().await, secret),
            sequence,
        )
    }

    async fn value(&self, target: &str) -> String {
        self.space.data(&format!("env-{target}")).await["K"].clone()
    }

    /// Turns a secret and waits until its target has another value.
    async fn turn(&mut self, secret: &str) -> String {
        self.turns += 1;
        let before = self.value(secret).await;
        let text = format!("{secret}@{}", Timestamp::now());
        self.space
            .change_vault(
                "main",
                json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": text}}}),
            )
            .await;
        let data = self
            .space
            .until_data(&format!("env-{secret}"), "have the next value", |data| {
                data.get("K").is_some_and(|value| *value != before)
            })
            .await;
        data["K"].clone()
    }

    /// Waits until the vault says that this object is not to be read; all else goes on meanwhile,
    /// and what was handed out stays.
    async fn refused(&mut self, what: &str, object: &str, stays: &str) {
        let value = self.value(stays).await;
        let message = eventually(
            &format!("{what} to be refused"),
            Duration::from_secs(10),
            async || {
                let status = self
                    .space
                    .vaults()
                    .get("main")
                    .await
                    .unwrap()
                    .status
                    .unwrap();
                let ready = ready(&status.conditions).unwrap();
                if ready.reason == "Unreadable" && ready.message.contains(object) {
                    Ok(ready.message.clone())
                } else {
                    Err(format!("{} {}", ready.reason, ready.message))
                }
            },
        )
        .await;
        println!("{what}: {message}");
        self.turn("c").await;
        assert_eq!(
            self.value(stays).await,
            value,
            "{what}: what was handed out stays"
        );
    }

    /// Waits until all is well, with every version opening and this value in this target.
    async fn well(&self, what: &str, target: &str, value: &str) {
        eventually(
            &format!("the vault to be Ready after {what} was put right"),
            Duration::from_secs(20),
            async || {
                let status = self
                    .space
                    .vaults()
                    .get("main")
                    .await
                    .unwrap()
                    .status
                    .unwrap();
                let sentence = ready(&status.conditions).unwrap();
                if says(&status.conditions, "Ready") == "True" {
                    Ok(())
                } else {
                    Err(format!("{} {}", sentence.reason, sentence.message))
                }
            },
        )
        .await;
        assert_eq!(self.value(target).await, value, "{what}");
        let ring = self.opened().await;
        for (name, entry) in self.space.entries("main").await {
            let payload = entry.data.as_ref().map(|data| &*data["payload"].0);
            let opened = vault_book::open_entry(&ring, "main", &name, entry.annotations(), payload);
            assert!(opened.is_ok(), "{what}: {name} {:?}", opened.err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_somebody_meddled_with_is_refused_and_named() {
    let mut scene = Meddled::new("vault-meddled").await;
    let (a, b) = (scene.object("a", 1).await, scene.object("b", 1).await);
    let (was, of_b) = (scene.meddler.get(&a).await, scene.meddler.get(&b).await);
    let value = scene.value("a").await;

    let attributes = &was.annotations()[ATTRIBUTES_ANNOTATION];
    let tampered = attributes.replacen('{', "{\"contentType\":\"x\",", 1);
    scene
        .meddler
        .annotate(&a, ATTRIBUTES_ANNOTATION, &tampered)
        .await;
    scene.refused("tampered attributes", &a, "a").await;
    scene
        .meddler
        .annotate(&a, ATTRIBUTES_ANNOTATION, attributes)
        .await;
    scene.well("tampered attributes", "a", &value).await;

    // The annotations of one on another, all of them and one at a time.
    for annotations in [
        &[ATTRIBUTES_ANNOTATION, ENVELOPE_ANNOTATION][..],
        &[ENVELOPE_ANNOTATION],
    ] {
        for annotation in annotations {
            scene
                .meddler
                .annotate(&a, annotation, &of_b.annotations()[*annotation])
                .await;
        }
        scene.refused("the annotations of another", &a, "a").await;
        for annotation in annotations {
            scene
                .meddler
                .annotate(&a, annotation, &was.annotations()[*annotation])
                .await;
        }
        scene.well("the annotations of another", "a", &value).await;
    }
    scene
        .meddler
        .annotate(&a, ENVELOPE_ANNOTATION, "v1.nothing")
        .await;
    scene.refused("no envelope", &a, "a").await;
    scene.meddler.put_back(&was).await;
    scene.well("no envelope", "a", &value).await;

    // Whole objects under other names: the next of its own history, and that of another secret.
    let stranger = scene.object("stranger", 1).await;
    let copies = [
        scene.object("a", 2).await,
        scene.object("b", 2).await,
        stranger,
    ];
    for copy in copies {
        let mut other = was.clone();
        other.metadata.name = Some(copy.clone());
        scene.meddler.create(other).await;
        scene.refused("a copy", &copy, "a").await;
        scene.meddler.delete(&copy).await;
        scene.well("a copy", "a", &value).await;
    }

    // Two that have changed places.
    let (mut one, mut two) = (was.clone(), of_b.clone());
    (one.metadata.name, two.metadata.name) = (Some(b.clone()), Some(a.clone()));
    let value_of_b = scene.value("b").await;
    scene.meddler.put_back(&one).await;
    scene.meddler.put_back(&two).await;
    scene
        .refused("two that changed places", "and 1 more", "a")
        .await;
    assert_eq!(scene.value("b").await, value_of_b);
    scene.meddler.put_back(&was).await;
    scene.meddler.put_back(&of_b).await;
    scene
        .well("two that changed places", "b", &value_of_b)
        .await;
    assert!(!scene.operator.logged().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_another_entry_is_handed_to_nobody() {
    let mut scene = Meddled::new("vault-payload").await;
    let (a, b) = (scene.object("a", 1).await, scene.object("b", 1).await);
    let (was, of_b) = (scene.meddler.get(&a).await, scene.meddler.get(&b).await);
    let mut swapped = was.clone();
    swapped.data = of_b.data.clone();
    scene.meddler.put_back(&swapped).await;
    // Nobody opens it before somebody is to have it.
    let targets = json!({"spec": Meddled::spec(&["a", "b", "c"], &["a", "b", "c", "a-again"])});
    scene.space.change_vault("main", targets).await;
    scene.refused("the payload of another", &a, "a").await;
    assert!(scene.space.data("env-a-again").await.is_empty());
    scene.meddler.put_back(&was).await;
    let value = scene.value("a").await;
    scene
        .well("the payload of another", "a-again", &value)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_somebody_deleted_is_missed() {
    let mut scene = Meddled::new("vault-deleted").await;
    // The only one of its secret.
    let a = scene.object("a", 1).await;
    let was = scene.meddler.get(&a).await;
    let value = scene.value("a").await;
    scene.meddler.delete(&a).await;
    scene.refused("the only entry gone", &a, "a").await;
    scene.meddler.put_back(&was).await;
    scene.well("the only entry gone", "a", &value).await;
    // The newest of several.
    let value = scene.turn("a").await;
    let a = scene.object("a", 2).await;
    let was = scene.meddler.get(&a).await;
    scene.meddler.delete(&a).await;
    scene.refused("the newest entry gone", &a, "a").await;
    scene.meddler.put_back(&was).await;
    scene.well("the newest entry gone", "a", &value).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_made_anew_after_a_purge_replaces_what_was_handed_out() {
    let scene = Meddled::new("vault-anew").await;
    let before = scene.value("a").await;
    scene
        .space
        .change_vault(
            "main",
            json!({"spec": {"secrets": Meddled::spec(&["b", "c"], &[])["secrets"]}}),
        )
        .await;
    scene.space.vault_stalled("main", "SourceNotFound").await;
    let text = format!("a@{}", Timestamp::now());
    scene
        .space
        .change_vault(
            "main",
            json!({"metadata": {"annotations": {"claviger.dev/purge-secrets": text}}}),
        )
        .await;
    eventually("the purge", Duration::from_secs(20), async || {
        let left = scene.space.entries("main").await.len();
        if left == 2 {
            Ok(())
        } else {
            Err(format!("{left} entries"))
        }
    })
    .await;
    scene
        .space
        .change_vault(
            "main",
            json!({"spec": {"secrets": Meddled::spec(&["a", "b", "c"], &[])["secrets"]}}),
        )
        .await;
    scene.space.vault_ready("main").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ring = scene.opened().await;
    let object = scene.object("a", 1).await;
    let entry = scene.meddler.get(&object).await;
    let payload = entry.data.as_ref().map(|data| &*data["payload"].0);
    let (_, value) =
        vault_book::open_entry(&ring, "main", &object, entry.annotations(), payload).unwrap();
    assert_ne!(value.as_deref(), Some(&*before));
    assert_eq!(
        Some(scene.value("a").await),
        value,
        "env-a holds what was purged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_ring_that_somebody_meddled_with_opens_nothing_until_it_is_put_back() {
    let mut scene = Meddled::new("vault-ring").await;
    let ring = ring_name("main");
    let old = scene.meddler.get(&ring).await;
    scene
        .space
        .change_vault(
            "main",
            json!({"spec": {"keyRing": {"rotation": {"generation": 1}}}}),
        )
        .await;
    scene
        .space
        .until_vault("main", "turned", |status| {
            status
                .key_ring
                .as_ref()
                .is_some_and(|ring| ring.current == 2 && ring.versions.len() == 1)
        })
        .await;
    let value = scene.turn("a").await;
    // What is compared below is what nobody has a reason to write again.
    scene
        .space
        .until_vault("main", "past its overlap", |status| {
            status.declared.iter().any(|secret| {
                secret.generation == Some(2) && secret.state == Some(DeclaredState::Stable)
            })
        })
        .await;
    let was = scene.meddler.get(&ring).await;
    let bytes = |key: &str| was.data.as_ref().unwrap()[key].0.clone();
    let entries = scene.space.entries("main").await;
    let flipped = |key: &str, at: usize| {
        let mut bytes = bytes(key);
        bytes[at] ^= 1;
        (key.to_owned(), bytes)
    };
    let mut cases = vec![
        flipped("mac", 0),
        flipped("mac", 31),
        ("mac".to_owned(), Vec::new()),
    ];
    // A byte in every part of the document.
    let length = bytes("ring").len();
    cases.extend((1..8).map(|part| flipped("ring", part * length / 8)));
    for (key, changed) in cases {
        scene.meddler.set_data(&ring, &key, changed).await;
        eventually(
            "the ring to be refused",
            Duration::from_secs(10),
            async || {
                let status = scene
                    .space
                    .vaults()
                    .get("main")
                    .await
                    .unwrap()
                    .status
                    .unwrap();
                let ready = ready(&status.conditions).unwrap();
                let well = matches!(&*ready.reason, "Unreadable" | "RootKeyMissing");
                if well && ready.message.contains(&ring) {
                    Ok(())
                } else {
                    Err(ready.message.clone())
                }
            },
        )
        .await;
        scene.meddler.set_data(&ring, &key, bytes(&key)).await;
        scene.well("a changed ring", "a", &value).await;
    }
    // The ring as it was before it turned: authentic, and yet not what opens the entries.
    scene.meddler.put_back(&old).await;
    let message = scene.space.vault_stalled("main", "Unreadable").await;
    assert!(
        message.contains("version 2 of the key ring, which is not there"),
        "{message}"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.meddler.put_back(&was).await;
    scene.well("an earlier ring", "a", &value).await;
    // No ring at all.
    scene.meddler.delete(&ring).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // None is made in its stead; who still knows what it was may write that back.
    let back = scene.space.secrets().get_opt(&ring).await.unwrap();
    if let Some(back) = back {
        assert_eq!(back.data, was.data);
    } else {
        {
            let message = scene.space.vault_stalled("main", "Unreadable").await;
            assert!(
                message.contains(&format!("Secret/{ring} is gone")),
                "{message}"
            );
            scene.meddler.put_back(&was).await;
        }
    }
    scene.well("no ring", "a", &value).await;
    let envelope = |entries: &BTreeMap<String, Secret>| -> BTreeSet<String> {
        entries
            .values()
            .map(|entry| entry.annotations()[ENVELOPE_ANNOTATION].clone())
            .collect()
    };
    assert_eq!(
        envelope(&entries),
        envelope(&scene.space.entries("main").await),
        "nothing was written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_moved_elsewhere_opens_nothing_there() {
    let elsewhere = Space::new("vault-moved-to").await;
    let space = Space::new("vault-moved").await;
    let options = Options {
        namespaces: vec![space.name.clone(), elsewhere.name.clone()],
        ..Options::default()
    };
    let operator = Operator::start(&space, options).await;
    let spec = || Meddled::spec(&["a"], &["a"]);
    space.declare_vault("main", spec()).await;
    space.vault_ready("main").await;
    let ring = space.secrets().get(&ring_name("main")).await.unwrap();
    let entries = space.entries("main").await;
    for (space, vault) in [(&elsewhere, "main"), (&space, "other")] {
        let meddler = Meddler::new(space).await;
        let moved = |was: &Secret, name: String| {
            let mut moved = was.clone();
            moved.metadata.name = Some(name);
            let labels = moved.metadata.labels.as_mut().unwrap();
            labels.insert("claviger.dev/vault".to_owned(), vault.to_owned());
            moved
        };
        for (name, entry) in &entries {
            let (hash, sequence) = parse_object_name("main", name).unwrap();
            meddler
                .create(moved(entry, object_name(vault, hash, sequence)))
                .await;
        }
        meddler.create(moved(&ring, ring_name(vault))).await;
        let mut there = spec();
        there["sync"][0]["target"]["name"] = json!("env-other");
        space.declare_vault(vault, there).await;
        let message = space.vault_stalled(vault, "Unreadable").await;
        println!("moved: {message}");
        assert!(message.contains(&ring_name(vault)), "{message}");
        assert!(space.data("env-other").await.is_empty());
    }
    space.vault_ready("main").await;
    assert!(!operator.logged().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_turns_while_a_target_is_being_filled_is_not_half_there() {
    let space = Space::new("vault-half").await;
    let proxy = Proxy::start(&space.cluster).await;
    let options = Options {
        server: Some(proxy.url.clone()),
        ..Options::default()
    };
    let _operator = Operator::start(&space, options).await;
    let record = Record::start(&space).await;
    let keys = BTreeMap::from([
        ("A", Made::Current("x")),
        ("B", Made::Current("y")),
        ("C", Made::Current("x")),
    ]);
    let data = json!([{"key": "A", "secret": "x"}, {"key": "B", "secret": "y"}, {"key": "C", "secret": "x"}]);
    space
        .declare_vault(
            "main",
            json!({
                "secrets": [{"name": "x", "generate": {}}, {"name": "y", "generate": {}}],
                "sync": [{"target": {"name": "env"}, "data": data}],
            }),
        )
        .await;
    space.vault_ready("main").await;
    let mut promise = Promise {
        vault: "main".to_owned(),
        overlap: SignedDuration::ZERO,
        keep: 10,
        secrets: BTreeMap::from([("x", Turned::default()), ("y", Turned::default())]),
        ring_turns: Vec::new(),
        targets: vec![Target {
            name: "env".to_owned(),
            immutable: false,
            merge: false,
            keys,
            restarts: None,
        }],
        deleted: None,
        shared: false,
    };
    // Whoever reads the value of an entry waits for it.
    proxy.judge(|seen| {
        let reads = seen.method == Method::GET && seen.path.contains("/secrets/main.");
        if reads {
            Verdict::Delay(Duration::from_millis(700))
        } else {
            Verdict::Pass
        }
    });
    for _ in 0..3 {
        for secret in ["y", "x"] {
            let text = format!("{secret}@{}", Timestamp::now());
            let vault = space
                .change_vault(
                    "main",
                    json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": text}}}),
                )
                .await;
            let at = vault.resource_version().unwrap().parse().unwrap();
            promise.secrets.get_mut(secret).unwrap().turns.push(at);
            tokio::time::sleep(Duration::from_millis(450)).await;
        }
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    proxy.judge(|_| Verdict::Pass);
    space.vault_ready("main").await;
    let root = vault_book::root_key(&space).await;
    let seen = vault_book::holds(&record, &root, &[promise]).await;
    println!("{seen:?}");
}

/// A vault that is turned while something is wrong.
struct Scene {
    space: Space,
    record: Record,
    root: RootKey,
    launcher: Launcher,
    keeper: Keeper,
    promise: Promise,
    round: u32,
}

/// How many secrets lie in the vault beside those that turn, so that a re-wrap takes a while.
const STILL: usize = 40;

impl Scene {
    async fn set(space: Space, options: Options) -> Self {
        let first = Launcher::new(&space, &Options::default()).await.spawn();
        first.leads().await;
        // The root key is made for the first vault.
        space.declare_vault("first", json!({})).await;
        let root = eventually("the root key", Duration::from_secs(20), async || {
            let secrets = Api::<Secret>::namespaced(space.client.clone(), SYSTEM);
            let found = secrets.get_opt("claviger-root-key").await;
            match found {
                Ok(Some(_)) => Ok(vault_book::root_key(&space).await),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        first.kill().await;
        let record = Record::start(&space).await;
        let launcher = Launcher::new(&space, &options).await;
        let keeper = Keeper::start(launcher.clone());
        space.put_deployment("web").await;
        space.put_secret("source", &[("value", &supplied(0))]).await;
        space
            .put_secret("shared", &[("FOREIGN", "left alone")])
            .await;
        let rotation = json!({"overlap": "2s"});
        let mut secrets = vec![
            json!({"name": "db", "generate": {}, "rotation": rotation, "keep": {"versions": 2}}),
            json!({
                "name": "api", "rotation": rotation, "keep": {"versions": 2},
                "valueFrom": {"secretKeyRef": {"name": "source", "key": "value"}},
            }),
        ];
        secrets.extend(
            (0..STILL).map(|still| json!({"name": format!("still-{still}"), "generate": {}})),
        );
        let both = json!([{"key": "DB", "secret": "db"}, {"key": "API", "secret": "api"}]);
        let url = json!({"key": "URL", "template": "{{ secrets['db'] }}@{{ secrets['api'] }}"});
        let mut more = both.clone();
        more.as_array_mut().unwrap().push(url);
        let spec = json!({
            "secrets": secrets,
            "sync": [
                {"target": {"name": "env"}, "data": more, "restart": [{"kind": "Deployment", "name": "web"}]},
                {"target": {"name": "shared"}, "data": both, "creationPolicy": "Merge"},
                {"target": {"name": "frozen", "immutable": true}, "data": both},
            ],
        });
        space.declare_vault("main", spec).await;
        let target = |name: &str, text: bool| {
            let mut keys =
                BTreeMap::from([("DB", Made::Current("db")), ("API", Made::Current("api"))]);
            if text {
                keys.insert("URL", Made::Text("<db>@<api>", &["db", "api"]));
            }
            Target {
                name: name.to_owned(),
                immutable: name == "frozen",
                merge: name == "shared",
                keys,
                restarts: text.then_some("web"),
            }
        };
        let promise = Promise {
            vault: "main".to_owned(),
            overlap: SignedDuration::from_secs(2),
            keep: 2,
            secrets: BTreeMap::from([("db", Turned::default()), ("api", Turned::default())]),
            ring_turns: Vec::new(),
            targets: vec![
                target("env", true),
                target("shared", false),
                target("frozen", false),
            ],
            deleted: None,
            shared: false,
        };
        Self {
            space,
            record,
            root,
            launcher,
            keeper,
            promise,
            round: 0,
        }
    }

    /// Asks for a turn of everything: a secret, a source, the key ring.
    async fn turn(&mut self) {
        self.round += 1;
        let text = format!("db@{}", Timestamp::now());
        let patch = json!({
            "metadata": {"annotations": {"claviger.dev/rotate-secrets": text}},
            "spec": {"keyRing": {"rotation": {"generation": self.round}}},
        });
        let vault = self.space.change_vault("main", patch).await;
        let at = vault.resource_version().unwrap().parse().unwrap();
        self.promise.ring_turns.push(at);
        self.promise.secrets.get_mut("db").unwrap().turns.push(at);
        let source = self
            .space
            .put_secret("source", &[("value", &supplied(self.round))])
            .await;
        let at = source.resource_version().unwrap().parse().unwrap();
        self.promise.secrets.get_mut("api").unwrap().turns.push(at);
    }

    async fn unsettled(&self) -> Option<String> {
        let vault = match self.space.vaults().get("main").await {
            Ok(vault) => vault,
            Err(error) => return Some(error.to_string()),
        };
        let status = vault.status.clone().unwrap_or_default();
        let ring = status.key_ring.clone().unwrap_or_default();
        let generations = ["db", "api"].map(|name| {
            let secret = status.declared.iter().find(|secret| secret.name == name);
            secret.map_or((0, false), |secret| {
                let stable = secret.state == Some(DeclaredState::Stable);
                (secret.generation.unwrap_or_default(), stable)
            })
        });
        let expected = i64::from(self.round) + 1;
        let settled = status.observed_generation == vault.metadata.generation
            && says(&status.conditions, "Ready") == "True"
            && says(&status.conditions, "Reconciling") == "False"
            && ring.current == expected
            && ring.versions.len() == 1
            && generations == [(expected, true); 2];
        let sentence = ready(&status.conditions).map(|ready| ready.message.clone());
        (!settled).then(|| format!("{expected}: {generations:?} {ring:?} {sentence:?}"))
    }

    /// Waits until everything is as asked, nothing is in overlap, and one key ring version is left.
    async fn settled(&self, limit: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let Some(why) = self.unsettled().await else {
                return begun.elapsed();
            };
            assert!(begun.elapsed() < limit, "{why}\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What must be so when everything is over.
    async fn came_through(&self) -> vault_book::Seen {
        let promises = std::slice::from_ref(&self.promise);
        let seen = vault_book::holds(&self.record, &self.root, promises).await;
        let api = supplied(self.round);
        for target in ["env", "shared"] {
            assert_eq!(self.space.data(target).await["API"], api, "{target}");
        }
        assert!(
            !self.launcher.logged().contains("panicked"),
            "{}",
            self.tail()
        );
        seen
    }

    fn tail(&self) -> String {
        let log = self.launcher.logged();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn supplied(round: u32) -> String {
    format!("{round:04}Zq7vX2mK9rT4wY8bN3cH6jL1pD5gS0aF")
}

fn options() -> Options {
    Options {
        restart_delay: "200ms",
        identity: Some("the-same-again".to_owned()),
        // A re-wrap of everything takes about two seconds.
        rewrap_rate: 25,
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_stands_still_or_dies_in_mid_rewrap_costs_nothing() {
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let cluster = Arc::new(cluster);
    let space = Space::on(Arc::clone(&cluster), "vault-outage").await;
    let mut scene = Scene::set(space, options()).await;
    scene.settled(Duration::from_mins(1)).await;

    scene.turn().await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    cluster.signal("STOP");
    tokio::time::sleep(Duration::from_secs(20)).await;
    cluster.signal("CONT");
    let paused = scene.settled(Duration::from_mins(1)).await;
    scene.came_through().await;

    scene.turn().await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    cluster.kill_and_restart().await;
    let died = scene.settled(Duration::from_mins(1)).await;
    scene.came_through().await;

    // Each right taken away in turn: what is missing is named, and when it is back all goes on.
    let rights = without_rights(&mut scene).await;
    scene.settled(Duration::from_mins(1)).await;
    let seen = scene.came_through().await;
    println!(
        "stood still for 20s: well {paused:.1?} after; died: well {died:.1?} after; {rights}; {} starts; {seen:?}",
        scene.keeper.starts()
    );
}

/// Takes rights over Secrets away, each while everything turns.
async fn without_rights(scene: &mut Scene) -> String {
    let roles = Api::<ClusterRole>::all(scene.space.client.clone());
    let was = roles.get("claviger").await.unwrap();
    let mut told = Vec::new();
    for verb in ["create", "patch", "get"] {
        let mut fewer = was.rules.clone().unwrap();
        for rule in &mut fewer {
            if rule
                .resources
                .iter()
                .flatten()
                .any(|resource| resource == "secrets")
            {
                rule.verbs.retain(|known| known != verb);
            }
        }
        let patch = json!({"rules": fewer});
        roles
            .patch("claviger", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        // The authorizer hears of it a moment later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let text = format!("still-1@{}", Timestamp::now());
        let patch = json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": text}}});
        // A secret that nobody is given turns, and a target is to be made anew.
        let vault = scene.space.change_vault("main", patch).await;
        let still = scene.promise.secrets.entry("still-1").or_default();
        still
            .turns
            .push(vault.resource_version().unwrap().parse().unwrap());
        let extra = json!([{"op": "add", "path": "/spec/sync/-", "value": {
            "target": {"name": format!("extra-{verb}")}, "data": [{"key": "K", "secret": "still-2"}],
        }}]);
        let extra: json_patch::Patch = serde_json::from_value(extra).unwrap();
        scene
            .space
            .vaults()
            .patch("main", &PatchParams::default(), &Patch::Json::<()>(extra))
            .await
            .unwrap();
        // Nothing is patched here by itself: the tags are.
        if verb == "patch" {
            let tags =
                json!([{"op": "add", "path": "/spec/secrets/5/tags", "value": {"round": "2"}}]);
            let tags: json_patch::Patch = serde_json::from_value(tags).unwrap();
            scene
                .space
                .vaults()
                .patch("main", &PatchParams::default(), &Patch::Json::<()>(tags))
                .await
                .unwrap();
        }
        let message = scene.space.vault_stalled("main", "Forbidden").await;
        assert!(
            message.contains(&format!("cannot {verb} resource \"secrets\"")),
            "{message}"
        );
        let patch = json!({"rules": was.rules});
        roles
            .patch("claviger", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        let begun = Instant::now();
        scene.space.vault_ready("main").await;
        told.push(format!(
            "without {verb}: well {:.1?} after it was back",
            begun.elapsed()
        ));
    }
    told.join("; ")
}

/// What the apiserver may do instead of answering, in turn.
fn misfortune(seen: &Seen, number: u64) -> Verdict {
    let refuse = |code: u16, reason: &str| {
        Verdict::Answer(
            StatusCode::from_u16(code).unwrap(),
            status(code, reason, "injected by the test"),
        )
    };
    if seen.watches() {
        return match number % 4 {
            0 => Verdict::Cut(Duration::from_millis(100)),
            1 => {
                let gone = status(410, "Expired", "too old resource version");
                Verdict::Answer(
                    StatusCode::OK,
                    format!("{{\"type\":\"ERROR\",\"object\":{gone}}}\n"),
                )
            }
            2 => refuse(500, "InternalError"),
            _ => Verdict::Break,
        };
    }
    match number % 8 {
        0 => refuse(429, "TooManyRequests"),
        1 => refuse(500, "InternalError"),
        2 => refuse(503, "ServiceUnavailable"),
        3 if seen.method != Method::GET => refuse(409, "Conflict"),
        4 => Verdict::Break,
        // Done, but nobody hears of it.
        5 => Verdict::Cut(Duration::ZERO),
        6 => Verdict::Delay(Duration::from_secs(1)),
        _ => refuse(504, "Timeout"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_slow_answers_and_broken_watches_are_come_through_by_a_vault() {
    let space = Space::new("vault-injected").await;
    let proxy = Proxy::start(&space.cluster).await;
    // Watches end early from the beginning, so that there are always new ones to be spoilt.
    let brief = |seen: &Seen| {
        if seen.watches() {
            Verdict::Cut(Duration::from_secs(1))
        } else {
            Verdict::Pass
        }
    };
    proxy.judge(brief);
    let server = Some(proxy.url.clone());
    let mut scene = Scene::set(
        space,
        Options {
            server,
            rewrap_rate: 200,
            ..options()
        },
    )
    .await;
    scene.settled(Duration::from_mins(1)).await;
    let counts: Arc<Mutex<BTreeMap<&'static str, u64>>> = Arc::default();
    let counted = Arc::clone(&counts);
    let requests = AtomicU64::new(0);
    proxy.judge(move |seen| {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let (kind, every) = match seen {
            _ if seen.watches() => ("watch", 6),
            _ if seen.method == Method::GET => ("read", 3),
            _ => ("write", 4),
        };
        // Leases are spared, or it would be about something else.
        if seen.path.contains("/leases") || !number.is_multiple_of(every) {
            return brief(seen);
        }
        *counted.lock().unwrap().entry(kind).or_default() += 1;
        misfortune(seen, number / every)
    });
    let mut took = Vec::new();
    for _ in 0..2 {
        scene.turn().await;
        took.push(scene.settled(Duration::from_mins(2)).await);
    }
    proxy.judge(|_| Verdict::Pass);
    scene.settled(Duration::from_mins(1)).await;
    let seen = scene.came_through().await;
    assert_eq!(scene.keeper.starts(), 1, "{}", scene.tail());
    let counts = counts.lock().unwrap().clone();
    println!("two turns through {counts:?} misfortunes: {took:.1?}; {seen:?}");
    assert!(
        counts.len() == 3 && counts.values().sum::<u64>() >= 60,
        "{counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over_in_mid_rewrap() {
    let space = Space::new("vault-failover").await;
    let scene = Scene::set(
        space,
        Options {
            identity: None,
            ..options()
        },
    );
    let mut scene = scene.await;
    // The keeper starts another one whenever one ends; these two take turns beside it.
    scene.settled(Duration::from_mins(1)).await;
    let mut took = Vec::new();
    for round in 0..2 {
        let follower = scene.launcher.spawn();
        tokio::time::sleep(Duration::from_secs(2)).await;
        scene.turn().await;
        // Some are re-wrapped and others are not.
        let midway = eventually(
            "a re-wrap to be midway",
            Duration::from_secs(20),
            async || {
                let under: BTreeSet<u32> = scene
                    .space
                    .ring_versions("main")
                    .await
                    .into_iter()
                    .collect();
                if under.len() > 1 {
                    Ok(under)
                } else {
                    Err(format!("{under:?}"))
                }
            },
        )
        .await;
        assert_eq!(midway.len(), 2, "round {round}");
        scene.keeper.kill_one();
        took.push(scene.settled(Duration::from_mins(1)).await);
        follower.kill().await;
    }
    let seen = scene.came_through().await;
    println!("failover in mid re-wrap: all well after {took:.1?}; {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_who_set_the_same_secret_make_twenty_versions_each_time() {
    const WRITERS: usize = 20;
    const EACH: usize = 5;
    let space = Space::new("vault-writers").await;
    let operator = Operator::start(&space, Options::default()).await;
    let secret = json!({"name": "db", "generate": {}, "rotation": {"overlap": "1h"}, "keep": {"versions": 1000}});
    let sync = json!([{"target": {"name": "env"}, "data": [{"key": "A", "secret": "db"}, {"key": "B", "secret": "db"}]}]);
    space
        .declare_vault("main", json!({"secrets": [secret], "sync": sync}))
        .await;
    space.vault_ready("main").await;
    let record = Record::start(&space).await;
    let root = vault_book::root_key(&space).await;
    let kept = space
        .secrets()
        .get(&ring_name("main"))
        .await
        .unwrap()
        .data
        .unwrap();
    let ring = Arc::new(vault_book::open_ring(&root, &kept["ring"].0, &kept["mac"].0).unwrap());
    let client = exempt(&space.cluster).await;
    let going = Arc::new(AtomicBool::new(true));
    let refusals = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (client, ring, namespace) = (client.clone(), Arc::clone(&ring), space.name.clone());
            let refusals = Arc::clone(&refusals);
            tokio::spawn(async move {
                let mut made = Vec::new();
                for number in 0..EACH {
                    let value = format!("set-by-{writer}-{number}");
                    made.push(set(&client, &namespace, &ring, &value, &refusals).await);
                }
                made
            })
        })
        .collect();
    // The operator turns it all the while.
    let turner = {
        let (vaults, going) = (space.vaults(), Arc::clone(&going));
        tokio::spawn(async move {
            let mut turns = 0;
            while going.load(Ordering::SeqCst) {
                let text = format!("db@{}", Timestamp::now());
                let patch =
                    json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": text}}});
                vaults
                    .patch("main", &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .unwrap();
                turns += 1;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            turns
        })
    };
    let mut made = BTreeMap::new();
    for writer in writers {
        made.extend(writer.await.unwrap());
    }
    going.store(false, Ordering::SeqCst);
    let turns = turner.await.unwrap();
    // One more turn, which nobody else comes in between.
    let text = format!("db@{}", Timestamp::now());
    let patch = json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": text}}});
    space.change_vault("main", patch).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    space.vault_ready("main").await;

    assert_eq!(made.len(), WRITERS * EACH, "each has a number of its own");
    let mut by_operator = 0;
    let mut newest = (0, String::new());
    for (name, entry) in space.entries("main").await {
        let payload = entry.data.as_ref().map(|data| &*data["payload"].0);
        let (attributes, value) =
            vault_book::open_entry(&ring, "main", &name, entry.annotations(), payload).unwrap();
        let (_, sequence) = parse_object_name("main", &name).unwrap();
        let value = value.unwrap();
        newest = newest.max((sequence, value.clone()));
        match made.remove(&sequence) {
            Some(expected) => assert_eq!(value, expected),
            None => by_operator += 1,
        }
        assert_eq!(attributes.kind, Kind::Value);
    }
    assert!(made.is_empty(), "lost: {made:?}");
    // The first, one at least in between, and the last.
    assert!(
        (2..=turns + 2).contains(&by_operator),
        "{by_operator} by the operator for {turns} turns"
    );
    let data = space.data("env").await;
    assert_eq!((&data["A"], &data["B"]), (&newest.1, &newest.1));
    let keys = BTreeMap::from([("A", Made::Current("db")), ("B", Made::Current("db"))]);
    let targets = vec![Target {
        name: "env".to_owned(),
        immutable: false,
        merge: false,
        keys,
        restarts: None,
    }];
    let promise = Promise {
        vault: "main".to_owned(),
        overlap: SignedDuration::from_hours(1),
        keep: 1000,
        secrets: BTreeMap::new(),
        ring_turns: Vec::new(),
        targets,
        deleted: None,
        shared: true,
    };
    let seen = vault_book::holds(&record, &root, &[promise]).await;
    assert!(!operator.logged().contains("panicked"));
    println!(
        "{} versions by {WRITERS} writers with {} refusals, {by_operator} by the operator for {turns} turns; {seen:?}",
        WRITERS * EACH,
        refusals.load(Ordering::SeqCst)
    );
}

/// Sets a secret as the controller does: with the next number, and again when that is taken.
async fn set(
    client: &Client,
    namespace: &str,
    ring: &Opened,
    value: &str,
    refusals: &AtomicU64,
) -> (u32, String) {
    let vaults = Vaults::new(client.clone());
    let secret = SecretName::parse("db").unwrap();
    let place = ring.document.vault();
    let random = || -> [u8; 32] {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).unwrap();
        bytes
    };
    loop {
        let entries = vaults.list_entries(namespace, "main").await.unwrap();
        let last = entries
            .keys()
            .filter_map(|name| parse_object_name("main", name));
        let sequence = last.map(|(_, sequence)| sequence).max().unwrap() + 1;
        let now = Timestamp::now();
        let version = VersionId(random()[..16].try_into().unwrap());
        let attributes =
            json!({"name": "db", "id": version.to_string(), "created": now, "updated": now})
                .to_string();
        Attributes::parse(&attributes).unwrap();
        let binding = Binding {
            vault: &place,
            secret: &secret,
            sequence,
            version,
        };
        let key = DataKey::new(Zeroizing::new(random()));
        let payload = key.seal(
            &binding,
            random()[..12].try_into().unwrap(),
            value.as_bytes(),
        );
        let newest = ring.keys.values().next_back().unwrap();
        let wrapped = newest.wrap(&binding, &key, random()[..12].try_into().unwrap());
        let envelope = Envelope {
            ring: newest.version(),
            mac: newest.mac(&binding, Some(&wrapped), &attributes),
            wrapped: Some(wrapped),
        };
        let name = object_name("main", place.hash(&secret), sequence);
        let made = vaults
            .create_entry(
                namespace,
                "main",
                &name,
                &attributes,
                &envelope.to_string(),
                Some(payload),
            )
            .await;
        match made {
            Ok(_) => return (sequence, value.to_owned()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                refusals.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => panic!("{error}"),
        }
    }
}
