//! The root key, its backup, and the way back, with the real binary against a real apiserver.

use std::{collections::BTreeMap, path::PathBuf};

use age::secrecy::ExposeSecret as _;
use claviger::{
    domain::vault::{
        envelope::{IndexKey, KeyLabel, RootKey},
        name::{VaultId, VaultRef},
        wrapped::{Base64, Wrapped},
    },
    k8s::root_key::{self, Absent, Material},
    recovery::{self, Kept, Recipients},
};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::process::Command;
use zeroize::Zeroizing;

use crate::support::{
    Cluster, control_plane,
    operator::{kubeconfig_text, service_account_token},
};

const SYSTEM: &str = "system";
const SECRET: &str = "claviger-root-key";
const BACKUP: &str = "claviger-root-key-backup";

struct Scene {
    cluster: Cluster,
    client: Client,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::start().await;
        let client = cluster.admin().await;
        for name in [SYSTEM, "shop", "other"] {
            let namespace = Namespace {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Namespace::default()
            };
            let namespaces = Api::<Namespace>::all(client.clone());
            namespaces
                .create(&PostParams::default(), &namespace)
                .await
                .unwrap();
        }
        Self { cluster, client }
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn obtain(&self, byte: u8, absent: Absent) -> Result<Material, root_key::Error> {
        root_key::obtain(&self.client, SYSTEM, Zeroizing::new([byte; 32]), absent).await
    }

    async fn mint(&self) -> Material {
        let mut random = Zeroizing::new([0; 32]);
        getrandom::fill(random.as_mut_slice()).unwrap();
        root_key::obtain(&self.client, SYSTEM, random, Absent::Mint)
            .await
            .unwrap()
    }

    async fn delete(&self, name: &str) {
        let secrets = self.secrets(SYSTEM);
        secrets
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.directory.path().join(name)
    }

    /// Makes an identity, in a file; answers its public half.
    fn identity(&self, name: &str) -> String {
        let identity = age::x25519::Identity::generate();
        let text = format!("# key\n{}\n", identity.to_string().expose_secret());
        control_plane::write_private(&self.path(name), &text);
        identity.to_public().to_string()
    }

    /// Runs `claviger root-key`; answers standard output, or standard error when it failed.
    async fn run(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
        command
            .args(["root-key", "--system-namespace", SYSTEM])
            .args(args)
            .current_dir(self.cluster.directory.path())
            .env("KUBECONFIG", &self.cluster.kubeconfig);
        control_plane::run(&mut command, "").await
    }

    /// Writes a vault's key ring as the controller does.
    async fn vault(&self, namespace: &str, name: &str, root: &RootKey, versions: u32) {
        let vault = VaultRef {
            id: VaultId([9; 16]),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let wrap = |label, key: &[u8; 32]| Wrapped {
            root: root.id().to_owned(),
            sealed: Base64(root.wrap_key(label, &vault, key, [1; 12])),
            kms: None,
        };
        let index = [3; 32];
        let versions: Vec<_> = (1..=versions)
            .map(|version| {
                json!({
                    "version": version,
                    "created": "2026-01-01T00:00:00Z",
                    "key": wrap(KeyLabel::Ring(version), &[4; 32]),
                })
            })
            .collect();
        let document = json!({
            "format": 1,
            "vaultId": vault.id,
            "namespace": namespace,
            "name": name,
            "indexKey": wrap(KeyLabel::Index, &index),
            "last": versions.len(),
            "versions": versions,
            "shredded": [],
            "marks": {},
        })
        .to_string()
        .into_bytes();
        let mac = IndexKey::new(Zeroizing::new(index), &vault.id).document_mac(&document);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(format!("{name}-key-ring")),
                ..ObjectMeta::default()
            },
            type_: Some("claviger.dev/key-ring".to_owned()),
            data: Some(BTreeMap::from([
                ("ring".to_owned(), ByteString(document)),
                ("mac".to_owned(), ByteString(mac.as_bytes().to_vec())),
            ])),
            ..Secret::default()
        };
        let secrets = self.secrets(namespace);
        secrets
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_root_key_is_minted_and_none_in_the_place_of_a_lost_one() {
    let scene = Scene::new().await;
    let error = scene.obtain(1, Absent::Refuse).await.unwrap_err();
    assert!(
        error.to_string().contains("claviger root-key restore"),
        "{error}"
    );
    let minted = futures::future::join_all((1..=8).map(|byte| scene.obtain(byte, Absent::Mint)));
    let ids: Vec<String> = minted
        .await
        .into_iter()
        .map(|key| key.unwrap().id())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let again = scene.obtain(9, Absent::Refuse).await.unwrap();
    assert_eq!(again.id(), ids[0]);

    let secret = scene.secrets(SYSTEM).get(SECRET).await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("claviger.dev/root-key"));
    assert_eq!(secret.immutable, Some(true));
    let params = PatchParams::default();
    let patch = Patch::Merge(json!({"data": {"key": "AAAA"}}));
    let refused = scene.secrets(SYSTEM).patch(SECRET, &params, &patch).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 422));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_its_root_key_gets_it_back_and_every_vault_opens() {
    let scene = Scene::new().await;
    let key = scene.mint().await;
    let (one, two) = (scene.identity("one"), scene.identity("two"));
    scene.identity("stranger");
    scene.vault("shop", "payments", &key.root_key(), 3).await;
    scene.vault("other", "orders", &key.root_key(), 1).await;

    let backup = [
        "backup",
        "--recipient",
        &one,
        "--recipient",
        &two,
        "--output",
        "backup.age",
    ];
    let told = scene.run(&backup).await.unwrap();
    assert!(
        told.contains(&key.id()) && told.contains("backup.age"),
        "{told}"
    );
    let printed = scene.run(&backup[..5]).await.unwrap();
    assert!(printed.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n"));

    for identity in ["one", "two"] {
        let args = ["verify", "--identity", identity, "--input", "backup.age"];
        let told = scene.run(&args).await.unwrap();
        assert!(
            told.starts_with(
                "NAMESPACE  VAULT     KEY RING  OPENS\n\
                 other      orders    1         yes\n\
                 shop       payments  1,2,3     yes\n"
            ),
            "{told}"
        );
        assert!(
            told.contains("is the one in the cluster; it opens all of 2 vaults"),
            "{told}"
        );
        assert!(
            told.contains("there is no backup of this root key in the cluster"),
            "{told}"
        );
    }
    let restore = ["restore", "--identity", "two", "--input", "backup.age"];
    let told = scene.run(&restore).await.unwrap();
    assert!(told.contains("is there already"), "{told}");
    for command in ["verify", "restore"] {
        let args = [command, "--identity", "stranger", "--input", "backup.age"];
        let told = scene.run(&args).await.unwrap_err();
        assert!(
            told.contains("none of the identities opens the backup"),
            "{told}"
        );
    }

    scene.delete(SECRET).await;
    let verify = ["verify", "--identity", "one", "--input", "backup.age"];
    let told = scene.run(&verify).await.unwrap();
    assert!(told.contains("is not in the cluster"), "{told}");
    let told = scene.run(&backup).await.unwrap_err();
    assert!(told.contains("there is no root key to back up"), "{told}");
    let told = scene.run(&restore).await.unwrap();
    assert!(told.contains("is back in the cluster"), "{told}");
    let back = scene.obtain(7, Absent::Refuse).await.unwrap();
    assert_eq!(back.expose(), key.expose());

    // Another root key was made meanwhile: it stays, and verifying tells.
    scene.delete(SECRET).await;
    let other = scene.mint().await;
    let told = scene.run(&restore).await.unwrap_err();
    assert!(
        told.contains(&other.id()) && told.contains(&key.id()),
        "{told}"
    );
    let told = scene.run(&verify).await.unwrap_err();
    assert!(told.contains("make a new backup"), "{told}");
    assert_eq!(scene.mint().await.id(), other.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_does_not_open_fails_the_verification() {
    let scene = Scene::new().await;
    let key = scene.mint().await;
    let public = scene.identity("one");
    scene.vault("shop", "payments", &key.root_key(), 2).await;
    let lost = RootKey::new(Zeroizing::new([0x11; 32]));
    scene.vault("shop", "orphan", &lost, 1).await;
    // Of another type, so it is none of ours.
    let foreign = Secret {
        metadata: ObjectMeta {
            name: Some("foreign-key-ring".to_owned()),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    };
    let secrets = scene.secrets("shop");
    secrets
        .create(&PostParams::default(), &foreign)
        .await
        .unwrap();

    let recipients = Recipients::parse(&[public]).unwrap();
    let keep = async || recovery::keep_backup(&scene.client, SYSTEM, &key, &recipients).await;
    assert_eq!(keep().await.unwrap(), Kept::Written);
    let mut verify = Command::new(env!("CARGO_BIN_EXE_claviger"));
    let output = verify
        .args(["root-key", "verify", "--identity", "one"])
        .args(["--system-namespace", SYSTEM])
        .current_dir(scene.cluster.directory.path())
        .env("KUBECONFIG", &scene.cluster.kubeconfig)
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.starts_with(
            "NAMESPACE  VAULT     KEY RING  OPENS\n\
             shop       orphan    1         no\n\
             shop       payments  1,2       yes\n\
             \n\
             shop/orphan: its index key was wrapped by root key secret:"
        ),
        "{told}"
    );
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("this backup opens 1 of 2 vaults"), "{told}");
    let noted = scene.secrets(SYSTEM).get(BACKUP).await.unwrap();
    assert!(!noted.annotations().contains_key("claviger.dev/verified-at"));
    let elsewhere = ["verify", "--identity", "one", "--namespace", "other"];
    scene.run(&elsewhere).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backup_in_the_cluster_follows_its_recipients_and_knows_when_it_was_verified() {
    let scene = Scene::new().await;
    let key = scene.mint().await;
    let (one, two) = (scene.identity("one"), scene.identity("two"));
    scene.vault("shop", "payments", &key.root_key(), 1).await;
    let parse = |recipients: &[&String]| Recipients::parse(recipients).unwrap();
    let (first, both) = (parse(&[&one]), parse(&[&two, &one]));
    let keep = async |recipients: &Recipients| {
        recovery::keep_backup(&scene.client, SYSTEM, &key, recipients)
            .await
            .unwrap()
    };
    let told = scene.run(&["verify", "--identity", "one"]).await;
    assert!(told.unwrap_err().contains("with --input"));

    assert_eq!(keep(&Recipients::default()).await, Kept::NoRecipients);
    assert_eq!(keep(&first).await, Kept::Written);
    assert_eq!(keep(&first).await, Kept::AsItWas);
    let verified = async || {
        let secret = scene.secrets(SYSTEM).get(BACKUP).await.unwrap();
        secret
            .annotations()
            .get("claviger.dev/verified-at")
            .cloned()
    };
    assert_eq!(verified().await, None);
    scene.run(&["verify", "--identity", "one"]).await.unwrap();
    let at = verified().await.unwrap();
    at.parse::<jiff::Timestamp>().unwrap();
    assert!(scene.run(&["verify", "--identity", "two"]).await.is_err());
    assert_eq!(keep(&first).await, Kept::AsItWas);
    assert_eq!(verified().await, Some(at));

    // For other recipients it is another file, which nobody has verified yet.
    assert_eq!(keep(&both).await, Kept::Written);
    assert_eq!(verified().await, None);
    scene.run(&["verify", "--identity", "two"]).await.unwrap();
    assert!(verified().await.is_some());

    // What was emptied by somebody is written again.
    let params = PatchParams::default();
    let patch = Patch::Merge(json!({"data": {"root-key.age": "eA=="}}));
    let secrets = scene.secrets(SYSTEM);
    secrets.patch(BACKUP, &params, &patch).await.unwrap();
    assert_eq!(keep(&both).await, Kept::Written);
    scene.run(&["verify", "--identity", "one"]).await.unwrap();

    // Who may read but not annotate is told so, and has verified all the same.
    let reader = reader(&scene).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
    command
        .args(["root-key", "verify", "--system-namespace", SYSTEM])
        .args(["--identity", "one"])
        .current_dir(scene.cluster.directory.path())
        .env("KUBECONFIG", &reader);
    let told = control_plane::run(&mut command, "").await.unwrap();
    assert!(told.contains("could not be noted in the cluster"), "{told}");
    assert!(told.contains("403"), "{told}");
}

/// A kubeconfig of somebody who may read every Secret and write none.
async fn reader(scene: &Scene) -> PathBuf {
    let manifests = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [secrets], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: system}]
";
    scene
        .cluster
        .kubectl(&["apply", "-f", "-"], manifests)
        .await
        .unwrap();
    let token = service_account_token(&scene.client, SYSTEM, "reader").await;
    let path = scene.path("reader.kubeconfig");
    control_plane::write_private(&path, &kubeconfig_text(&scene.cluster, None, &token));
    path
}
