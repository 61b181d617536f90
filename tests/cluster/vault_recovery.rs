//! The control plane is lost, with the root key in it; what was saved of the vaults is put into an
//! empty one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger::{
    domain::vault::{envelope::KeyLabel, ring::RingDocument},
    recovery,
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};

use crate::support::{
    Cluster, Operator, Options, Space,
    control_plane::SYSTEM,
    eventually,
    operator::Launcher,
    space::{PATIENCE, host_key},
    vault_keys::{Identity, KEEPER},
};

/// How long a vault may take from the root key being back to being Ready.
const SECONDS: Duration = Duration::from_secs(15);

/// What a backup of the namespace holds.
struct Saved {
    namespace: String,
    /// Manifests, by kind and name.
    objects: BTreeMap<String, Value>,
    /// What the synced Secret held.
    synced: BTreeMap<String, String>,
    /// Everything in the vaults, opened.
    opened: BTreeMap<&'static str, BTreeMap<(String, u32), Vec<u8>>>,
    /// The root key's backup.
    backup: String,
    root_key: [u8; 32],
}

const VAULTS: [&str; 2] = ["payments", "orders"];

fn options(recipient: &str) -> Options {
    Options {
        more: vec!["--recovery-recipient".to_owned(), recipient.to_owned()],
        ..Options::default()
    }
}

/// Brings vaults into all the states that they can be in; saves them.
async fn flourish(recipient: &str) -> Saved {
    let cluster = Arc::new(Cluster::start().await);
    cluster.install_with_keeper().await;
    let space = Space::on(Arc::clone(&cluster), "shop").await;
    let operator = Operator::start(&space, options(recipient)).await;
    space
        .put_secret("bootstrap", &[("apiKey", "third-party-value-0123456789")])
        .await;
    let secrets = |doomed: bool| {
        let mut secrets = vec![
            json!({"name": "db-password", "generate": {"length": 40}, "rotation": {"overlap": "1h", "generation": 1}}),
            json!({"name": "Third-Party", "valueFrom": {"secretKeyRef": {"name": "bootstrap", "key": "apiKey"}}}),
            json!({"name": "web", "generate": {"tls": {"commonName": "web", "dnsNames": ["web.shop.svc"]}}}),
            json!({"name": "deploy", "generate": {"ssh": {"comment": "deploy"}}}),
            json!({"name": "id", "generate": {"alphabet": "Uuid"}}),
        ];
        if doomed {
            secrets.push(json!({"name": "doomed", "generate": {}}));
        }
        secrets
    };
    let sync = json!([{
        "target": {"name": "payments-env"},
        "data": [
            {"key": "DB_PASSWORD", "secret": "db-password"},
            {"key": "DB_PASSWORD_OLD", "secret": "db-password", "version": "Previous"},
            {"key": "API_KEY", "secret": "third-party"},
            {"key": "tls.crt", "secret": "web", "part": "Certificate"},
            {"key": "tls.key", "secret": "web", "part": "PrivateKey"},
            {"key": "deploy", "secret": "deploy"},
            {"key": "ID", "secret": "id"},
            {"key": "URL", "template": "postgres://app:{{ secrets['db-password'] | urlencode }}@db/app"},
        ],
    }]);
    let mut spec = json!({"secrets": secrets(true), "sync": sync});
    spec["secrets"][0]["rotation"]["generation"] = json!(0);
    space.declare_vault("payments", spec).await;
    space
        .declare_vault(
            "orders",
            json!({"secrets": [{"name": "one", "generate": {}}, {"name": "two", "generate": {}}]}),
        )
        .await;
    for vault in VAULTS {
        space.vault_ready(vault).await;
    }
    // One is deleted, one turns, and then the ring does.
    space
        .change_vault("payments", json!({"spec": {"secrets": secrets(false)}}))
        .await;
    space
        .until_vault("payments", "in overlap", |status| {
            status
                .secrets
                .as_ref()
                .is_some_and(|counts| counts.deleted == 1)
                && status.declared[0].generation == Some(2)
        })
        .await;
    space.vault_ready("payments").await;
    let rotate =
        json!({"metadata": {"annotations": {"claviger.dev/rotate-at": "2026-01-01T00:00:00Z"}}});
    space.change_vault("payments", rotate).await;
    eventually("the re-wrap", Duration::from_secs(45), async || {
        let versions = space.ring_versions("payments").await;
        let ring = space.ring("payments").await;
        if versions.iter().all(|version| *version == 2)
            && ring["versions"].as_array().unwrap().len() == 1
        {
            Ok(())
        } else {
            Err(format!("{versions:?}"))
        }
    })
    .await;
    space.vault_ready("payments").await;
    let synced = space
        .until_data("payments-env", "hold all", |data| data.len() == 8)
        .await;
    assert_ne!(synced["DB_PASSWORD"], synced["DB_PASSWORD_OLD"]);

    // What a backup program saves of them.
    let mut objects = BTreeMap::new();
    for (kind, selector) in [
        ("secretvaults", ""),
        (
            "secrets",
            "claviger.dev/vault,claviger.dev/content!=vault-sync",
        ),
    ] {
        let get = [
            "get",
            kind,
            "--namespace",
            &space.name,
            "--selector",
            selector,
            "--output",
            "yaml",
        ];
        let listed = cluster.kubectl(&get, "").await.unwrap();
        let listed: Value = serde_saphyr::from_str(&listed).unwrap();
        for object in listed["items"].as_array().unwrap() {
            let name = object["metadata"]["name"].as_str().unwrap();
            objects.insert(format!("{kind}/{name}"), sanitized(object));
        }
    }
    let rings = objects.keys().filter(|name| name.ends_with("-key-ring"));
    assert_eq!(rings.count(), 2);
    let roots = space.roots().await;
    let mut opened = BTreeMap::new();
    for vault in VAULTS {
        opened.insert(vault, space.opened(vault, &roots).await);
    }
    // Six that were made, one turned, one deleted.
    assert_eq!(
        opened["payments"].len(),
        8,
        "{:?}",
        opened["payments"].keys()
    );
    let system = Api::<Secret>::namespaced(space.client.clone(), SYSTEM);
    let backup = eventually("the backup", Duration::from_secs(20), async || {
        let backup = system.get("claviger-root-key-backup").await;
        backup.map_err(|error| error.to_string())
    })
    .await;
    let ByteString(backup) = backup.data.unwrap().remove("root-key.age").unwrap();
    let saved = Saved {
        namespace: space.name.clone(),
        objects,
        synced,
        opened,
        backup: String::from_utf8(backup).unwrap(),
        root_key: space.root_key().await.unwrap(),
    };
    operator.kill().await;
    saved
}

/// Without what belongs to the cluster that it was saved from, as backup programs restore it.
fn sanitized(object: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    for key in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "managedFields",
    ] {
        metadata.remove(key);
    }
    object
}

impl Saved {
    /// An empty control plane with Claviger in it and the namespace as it was.
    async fn afresh(&self) -> Space {
        let cluster = Arc::new(Cluster::start().await);
        cluster.install_with_keeper().await;
        let client = cluster.admin().await;
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        let space = Space {
            cluster,
            client,
            name: self.namespace.clone(),
            values: Arc::default(),
        };
        space
            .put_secret("bootstrap", &[("apiKey", "third-party-value-0123456789")])
            .await;
        space
    }

    async fn put_back(&self, space: &Space, which: impl Fn(&str) -> bool) {
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(name, _)| which(name))
            .map(|(_, object)| object)
            .collect();
        assert!(!items.is_empty());
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let create = ["--as", KEEPER, "create", "--filename", "-"];
        space.cluster.kubectl(&create, &list).await.unwrap();
    }

    fn backup_file(&self, space: &Space) -> String {
        let path = space.cluster.directory.path().join("backup.age");
        std::fs::write(&path, &self.backup).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn is_ring(name: &str) -> bool {
    name.ends_with("-key-ring")
}

fn is_vault(name: &str) -> bool {
    name.starts_with("secretvaults/")
}

fn is_entry(name: &str) -> bool {
    !is_ring(name) && !is_vault(name)
}

/// Nobody makes another root key, for as long as the operator has a chance to.
async fn none_is_minted(space: &Space) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(space.root_key().await, None, "another root key was made");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn remove_root_key(space: &Space) {
    let delete = [
        "--as",
        KEEPER,
        "--namespace",
        SYSTEM,
        "delete",
        "secret",
        "claviger-root-key",
    ];
    space.cluster.kubectl(&delete, "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_control_plane_is_put_back_and_every_secret_opens() {
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity::make(directory.path(), "identity");
    let saved = flourish(&identity.recipient).await;

    // An empty cluster. Claviger comes first, as with GitOps, and makes no root key for nothing.
    let space = saved.afresh().await;
    let options = options(&identity.recipient);
    let launcher = Launcher::new(&space, &options).await;
    let operator = launcher.spawn();
    operator.leads().await;
    space.declare("key", host_key("key", json!({}))).await;
    space.ready("key").await;
    none_is_minted(&space).await;

    // Nobody else may put the objects back.
    let ring = saved.objects["secrets/payments-key-ring"].to_string();
    let refused = space.cluster.kubectl(&["create", "-f", "-"], &ring).await;
    assert!(refused.unwrap_err().contains("only Claviger writes them"));

    saved.put_back(&space, |name| !is_vault(name)).await;
    saved.put_back(&space, is_vault).await;
    for vault in VAULTS {
        let told = space.vault_stalled(vault, "RootKeyMissing").await;
        assert!(told.contains("claviger root-key restore"), "{told}");
    }
    none_is_minted(&space).await;
    // FunctionKeys are none the worse for it.
    space.declare("other", host_key("other", json!({}))).await;
    space.ready("other").await;
    space
        .change("key", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    space
        .until("key", "turned", |status| {
            status
                .rotation
                .as_ref()
                .is_some_and(|rotation| rotation.generation == 2)
        })
        .await;
    // So it is for an operator that starts then.
    operator.kill().await;
    let operator = launcher.spawn();
    operator.leads().await;
    none_is_minted(&space).await;
    for vault in VAULTS {
        space.vault_stalled(vault, "RootKeyMissing").await;
    }

    // Somebody restores the root key of another cluster: both are named.
    let recipients = recovery::Recipients::parse(&[&identity.recipient]).unwrap();
    let other = claviger::k8s::root_key::Material::new(zeroize::Zeroizing::new([7; 32]));
    let wrong = space.cluster.directory.path().join("wrong.age");
    std::fs::write(
        &wrong,
        recovery::seal_root_key(&recipients, &other).unwrap(),
    )
    .unwrap();
    let right = claviger::k8s::root_key::Material::new(zeroize::Zeroizing::new(saved.root_key));
    let restore =
        |file: &str| ["restore", "--identity", identity.file(), "--input", file].map(str::to_owned);
    let run = async |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        space.cluster.root_key(&args).await
    };
    run(&restore(wrong.to_str().unwrap())).await.unwrap();
    for vault in VAULTS {
        space
            .until_vault(vault, "told of both", |status| {
                status.conditions.iter().any(|condition| {
                    condition.type_ == "Ready"
                        && condition.reason == "RootKeyMissing"
                        && condition.message.contains(&right.id())
                        && condition.message.contains(&other.id())
                })
            })
            .await;
    }
    let backup = saved.backup_file(&space);
    let refused = run(&restore(&backup)).await.unwrap_err();
    assert!(
        refused.contains(&right.id()) && refused.contains(&other.id()),
        "{refused}"
    );
    remove_root_key(&space).await;

    // The right one: all is well by itself.
    let begun = Instant::now();
    run(&restore(&backup)).await.unwrap();
    for vault in VAULTS {
        space.vault_ready(vault).await;
    }
    let took = begun.elapsed();
    println!("Ready {took:?} after the root key was back");
    assert!(took < SECONDS, "{took:?}");
    let synced = space
        .until_data("payments-env", "hold all", |data| data.len() == 8)
        .await;
    assert_eq!(synced, saved.synced);
    let roots = space.roots().await;
    for vault in VAULTS {
        assert_eq!(
            space.opened(vault, &roots).await,
            saved.opened[vault],
            "{vault}"
        );
    }
    let told =
        run(&["verify", "--identity", identity.file(), "--input", &backup].map(str::to_owned))
            .await;
    let told = told.unwrap();
    assert!(told.contains("it opens all of 2 vaults"), "{told}");
    // Life goes on: what is turned now opens as well.
    let rotate = json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": "db-password@2026-11-23T00:00:00Z"}}});
    let now = jiff::Timestamp::now().to_string();
    let rotate =
        serde_json::from_str::<Value>(&rotate.to_string().replace("2026-11-23T00:00:00Z", &now))
            .unwrap();
    space.change_vault("payments", rotate).await;
    space
        .until_data("payments-env", "turn", |data| {
            data.get("DB_PASSWORD_OLD") == saved.synced.get("DB_PASSWORD")
        })
        .await;
    assert_eq!(space.opened("payments", &roots).await.len(), 9);

    // The root key's Secret is deleted under a running operator, which then restarts.
    remove_root_key(&space).await;
    space
        .change_vault("orders", json!({"spec": {"secrets": [
            {"name": "one", "generate": {}}, {"name": "two", "generate": {}}, {"name": "three", "generate": {}},
        ]}}))
        .await;
    space
        .until_vault("orders", "of three", |status| {
            status
                .secrets
                .as_ref()
                .is_some_and(|counts| counts.live == 3)
        })
        .await;
    operator.kill().await;
    let operator = launcher.spawn();
    operator.leads().await;
    for vault in VAULTS {
        space.vault_stalled(vault, "RootKeyMissing").await;
    }
    none_is_minted(&space).await;
    assert!(space.data("payments-env").await.contains_key("DB_PASSWORD"));
    run(&restore(&backup)).await.unwrap();
    for vault in VAULTS {
        space.vault_ready(vault).await;
    }
    assert_eq!(space.opened("orders", &roots).await.len(), 3);
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_root_key_is_made_where_anything_needs_the_lost_one() {
    let directory = tempfile::tempdir().unwrap();
    let identity = Identity::make(directory.path(), "identity");
    let saved = flourish(&identity.recipient).await;

    // Entries without their key ring.
    let space = saved.afresh().await;
    let launcher = Launcher::new(&space, &options(&identity.recipient)).await;
    saved.put_back(&space, is_entry).await;
    saved.put_back(&space, is_vault).await;
    let operator = launcher.spawn();
    operator.leads().await;
    for vault in VAULTS {
        let told = space.vault_stalled(vault, "RootKeyMissing").await;
        assert!(told.contains("claviger root-key restore"), "{told}");
    }
    none_is_minted(&space).await;
    let backup = saved.backup_file(&space);
    let restore = ["restore", "--identity", identity.file(), "--input", &backup];
    space.cluster.root_key(&restore).await.unwrap();
    // With the root key alone nothing opens, and no new ring takes the place of the lost one.
    for vault in VAULTS {
        let told = space.vault_stalled(vault, "Unreadable").await;
        assert!(told.contains("key-ring is gone"), "{told}");
    }
    saved.put_back(&space, is_ring).await;
    for vault in VAULTS {
        space.vault_ready(vault).await;
        assert_eq!(
            space.opened(vault, &space.roots().await).await,
            saved.opened[vault]
        );
    }
    operator.kill().await;

    // Key rings without their entries.
    let space = saved.afresh().await;
    let launcher = Launcher::new(&space, &options(&identity.recipient)).await;
    saved.put_back(&space, is_ring).await;
    saved.put_back(&space, is_vault).await;
    let operator = launcher.spawn();
    operator.leads().await;
    for vault in VAULTS {
        space.vault_stalled(vault, "RootKeyMissing").await;
    }
    none_is_minted(&space).await;
    assert!(space.entries("payments").await.is_empty());
    // Whoever gives the old ones up, and lets some time pass, may begin anew.
    for vault in VAULTS {
        space.delete_vault(vault).await;
    }
    eventually("the vaults to go", PATIENCE, async || {
        let left = space.vaults().list(&ListParams::default()).await.unwrap();
        if left.items.is_empty() {
            Ok(())
        } else {
            Err(left.items.len().to_string())
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let spec = json!({"secrets": [{"name": "anew", "generate": {}}]});
    space.declare_vault("anew", spec).await;
    space.vault_ready("anew").await;
    operator.kill().await;
}

/// The version of the object that is a vault's key ring.
async fn written(space: &Space) -> String {
    let ring = space.secrets().get("payments-key-ring").await.unwrap();
    ring.resource_version().unwrap()
}

/// Waits until what the ring holds for the recipients is of these versions, which are all it has.
async fn sealed(space: &Space, identities: &[&Identity], versions: &[u32]) {
    eventually(
        &format!("{versions:?} to be sealed"),
        Duration::from_secs(30),
        async || {
            let ring = space.ring("payments").await;
            let numbers: Vec<u32> = ring["versions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|version| serde_json::from_value(version["version"].clone()).unwrap())
                .collect();
            let data = space
                .secrets()
                .get("payments-key-ring")
                .await
                .unwrap()
                .data
                .unwrap();
            let Some(file) = data.get("recovery.age") else {
                return Err("nothing is sealed".to_owned());
            };
            for identity in identities {
                let keys = recovery::open_ring(&identity.secret, &file.0);
                let keys = keys.map_err(|error| error.to_string())?;
                if numbers != versions || !keys.versions.keys().eq(versions) {
                    return Err(format!("{numbers:?} {:?}", keys.versions.keys()));
                }
            }
            Ok(())
        },
    )
    .await;
    // They are the very keys of the ring.
    let roots = space.roots().await;
    let document = space
        .secrets()
        .get("payments-key-ring")
        .await
        .unwrap()
        .data
        .unwrap();
    let document = RingDocument::parse(&document["ring"].0).unwrap();
    let keys = space.recovery("payments", identities[0]).await;
    assert_eq!(keys.vault, document.vault());
    let index = roots
        .unwrap(&keys.vault, KeyLabel::Index, &document.index_key)
        .await;
    assert_eq!(keys.index, index.unwrap());
    for version in &document.versions {
        let label = KeyLabel::Ring(version.version);
        let key = roots
            .unwrap(&keys.vault, label, &version.key)
            .await
            .unwrap();
        assert_eq!(keys.versions[&version.version], key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_comes_back_from_its_own_key_ring() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.install_with_keeper().await;
    let space = Space::on(Arc::clone(&cluster), "own-ring").await;
    let directory = cluster.directory.path();
    let [one, two, stranger] =
        ["one", "two", "stranger"].map(|name| Identity::make(directory, name));
    let operator = Operator::start(&space, options(&one.recipient)).await;
    let spec = json!({
        "secrets": [{"name": "a", "generate": {}}, {"name": "b", "generate": {"alphabet": "Uuid"}}],
        "sync": [{"target": {"name": "env"}, "data": [{"key": "A", "secret": "a"}, {"key": "B", "secret": "b"}]}],
    });
    space.declare_vault("payments", spec.clone()).await;
    space.vault_ready("payments").await;
    sealed(&space, &[&one], &[1]).await;
    // The ring turns, and its first version is destroyed: here as well.
    let rotate = |at: &str| json!({"metadata": {"annotations": {"claviger.dev/rotate-at": at}}});
    space
        .change_vault("payments", rotate("2026-01-01T00:00:00Z"))
        .await;
    sealed(&space, &[&one], &[2]).await;
    space.vault_ready("payments").await;
    let (before, opened) = (
        written(&space).await,
        space.opened("payments", &space.roots().await).await,
    );
    // Nothing is written while nothing changes.
    operator.kill().await;
    let operator = Operator::start(&space, options(&one.recipient)).await;
    space
        .change_vault(
            "payments",
            json!({"metadata": {"annotations": {"note": "x"}}}),
        )
        .await;
    space
        .change_vault(
            "payments",
            json!({"spec": {"softDelete": {"retention": "100h"}}}),
        )
        .await;
    space.vault_ready("payments").await;
    assert_eq!(written(&space).await, before);
    operator.kill().await;

    // Other recipients: once more, and then no more.
    let both = options(&format!("{},{}", two.recipient, one.recipient));
    let operator = Operator::start(&space, both.clone()).await;
    sealed(&space, &[&one, &two], &[2]).await;
    let after = written(&space).await;
    assert_ne!(after, before);
    operator.kill().await;
    let operator = Operator::start(&space, both.clone()).await;
    space.vault_ready("payments").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(written(&space).await, after);
    // What somebody put in its place is replaced.
    let others = recovery::Recipients::parse(&[&stranger.recipient]).unwrap();
    let keys = space.recovery("payments", &one).await;
    let other = recovery::seal_ring(&others, &keys).unwrap();
    let patch = json!({"stringData": {"recovery.age": other}}).to_string();
    let patch = [
        "--as",
        KEEPER,
        "--namespace",
        &space.name,
        "patch",
        "secret",
        "payments-key-ring",
        "--patch",
        &patch,
    ];
    cluster.kubectl(&patch, "").await.unwrap();
    sealed(&space, &[&one, &two], &[2]).await;
    // What is shredded is shredded here, too.
    space
        .change_vault(
            "payments",
            json!({"spec": {"keyRing": {"shredVersions": [1]}}}),
        )
        .await;
    space.vault_ready("payments").await;
    operator.kill().await;

    // Without recipients it stays as long as it is of all keys, and goes when it no longer is.
    let operator = Operator::start(&space, Options::default()).await;
    space.vault_ready("payments").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    sealed(&space, &[&one, &two], &[2]).await;
    space
        .change_vault("payments", rotate("2026-01-02T00:00:00Z"))
        .await;
    eventually(
        "nothing to be sealed",
        Duration::from_secs(30),
        async || {
            let data = space
                .secrets()
                .get("payments-key-ring")
                .await
                .unwrap()
                .data
                .unwrap();
            let told = format!("{:?}", data.keys());
            (data.len() == 2).then_some(()).ok_or(told)
        },
    )
    .await;
    space.vault_ready("payments").await;
    operator.kill().await;
    let operator = Operator::start(&space, both.clone()).await;
    sealed(&space, &[&one, &two], &[3]).await;
    assert_eq!(space.opened("payments", &space.roots().await).await, opened);
    let synced = space.data("env").await;
    operator.kill().await;

    // The root key is lost, and so is its backup.
    remove_root_key(&space).await;
    let launcher = Launcher::new(&space, &both).await;
    let operator = launcher.spawn();
    operator.leads().await;
    space.vault_stalled("payments", "RootKeyMissing").await;
    let vault = format!("{}/payments", space.name);
    let kubeconfig = cluster.keepers_kubeconfig();
    let restore = async |more: &[&str]| {
        let args = [&["restore", "--identity", two.file()], more].concat();
        cluster.root_key_with(&kubeconfig, &args).await
    };
    let named = ["--vault", &vault];
    for (args, words) in [
        (&named[..], "there is no root key"),
        (&["--vault", "payments"], "a namespace and a name"),
        (
            &["--vault", "shop/orders", "--new-root-key"],
            "shop/orders-key-ring does not exist",
        ),
        (&["--input", "x", "--new-root-key"], "cannot be used with"),
        (&["--input", "x", "--vault", &vault], "cannot be used with"),
    ] {
        let told = restore(args).await.unwrap_err();
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(space.root_key().await, None);
    let args = [
        "restore",
        "--identity",
        stranger.file(),
        "--vault",
        &vault,
        "--new-root-key",
    ];
    let told = cluster.root_key_with(&kubeconfig, &args).await.unwrap_err();
    assert!(told.contains("none of the identities"), "{told}");
    assert_eq!(space.root_key().await, None);
    // An administrator is told who may.
    let args = [
        "restore",
        "--identity",
        one.file(),
        "--vault",
        &vault,
        "--new-root-key",
    ];
    let told = cluster.root_key(&args).await.unwrap_err();
    assert!(told.contains("policies.secretKeepers"), "{told}");
    let told = restore(&named).await.unwrap();
    assert!(
        told.contains(&vault) && told.contains("version 3"),
        "{told}"
    );
    space.vault_ready("payments").await;
    let roots = space.roots().await;
    assert!(told.contains(&roots.primary_id().unwrap()), "{told}");
    sealed(&space, &[&one, &two], &[3]).await;
    assert_eq!(space.opened("payments", &roots).await, opened);
    assert_eq!(space.data("env").await, synced);
    let told = restore(&named).await.unwrap_err();
    assert!(told.contains("nothing was written"), "{told}");
    assert!(operator.stop().await);
}
