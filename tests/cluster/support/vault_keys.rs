//! Vaults without an operator: opened with the library alone, and what it takes to bring them back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use age::secrecy::ExposeSecret as _;
use claviger::{
    domain::vault::{
        attributes::Attributes,
        envelope::{Binding, Envelope, IndexKey, KeyLabel, Mac, RingKey, RootKey},
        name::parse_object_name,
        ring::RingDocument,
    },
    k8s::vault::ring_name,
    recovery::{self, RingKeys},
    root_keys::RootKeys,
};
use kube::{Api, ResourceExt as _};
use tokio::process::Command;
use zeroize::Zeroizing;

use super::{
    Cluster, Space,
    control_plane::{SYSTEM, run, write_private},
};

/// Who puts backups back, as Velero would.
pub(crate) const KEEPER: &str = "system:serviceaccount:velero:velero";

/// An age identity in a file.
pub(crate) struct Identity {
    pub(crate) path: PathBuf,
    pub(crate) secret: String,
    pub(crate) recipient: String,
}

impl Identity {
    /// Makes one, in this directory.
    pub(crate) fn make(directory: &Path, name: &str) -> Self {
        let identity = age::x25519::Identity::generate();
        let secret = identity.to_string().expose_secret().to_owned();
        let path = directory.join(name);
        write_private(&path, &format!("# key\n{secret}\n"));
        Self {
            path,
            secret,
            recipient: identity.to_public().to_string(),
        }
    }

    pub(crate) fn file(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Cluster {
    /// Installs the chart with [`KEEPER`] as one who may write what else only Claviger writes.
    pub(crate) async fn install_with_keeper(&self) {
        let keepers = format!("policies.secretKeepers={{{KEEPER}}}");
        self.install("claviger", SYSTEM, &[&keepers]).await;
        let user = format!("--user={KEEPER}");
        let role = "--clusterrole=cluster-admin";
        let binding = ["create", "clusterrolebinding", "velero", role, &user];
        self.kubectl(&binding, "").await.unwrap();
    }

    /// A kubeconfig with which the administrator acts as [`KEEPER`].
    pub(crate) fn keepers_kubeconfig(&self) -> PathBuf {
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let mut kubeconfig: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        kubeconfig["users"][0]["user"]["as"] = KEEPER.into();
        let path = self.directory.path().join("keeper.kubeconfig");
        write_private(&path, &kubeconfig.to_string());
        path
    }

    /// Runs `claviger root-key` as admin; answers standard output, or standard error when it failed.
    pub(crate) async fn root_key(&self, args: &[&str]) -> Result<String, String> {
        self.root_key_with(&self.kubeconfig, args).await
    }

    /// The same with another kubeconfig.
    pub(crate) async fn root_key_with(
        &self,
        kubeconfig: &Path,
        args: &[&str],
    ) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
        command
            .arg("root-key")
            .args(args)
            .env("KUBECONFIG", kubeconfig);
        run(&mut command, "").await
    }
}

impl Space {
    /// The bytes of the root key in the cluster, if there is one.
    pub(crate) async fn root_key(&self) -> Option<[u8; 32]> {
        let secrets =
            Api::<k8s_openapi::api::core::v1::Secret>::namespaced(self.client.clone(), SYSTEM);
        let secret = secrets.get_opt("claviger-root-key").await.unwrap()?;
        Some(secret.data.unwrap()["key"].0.clone().try_into().unwrap())
    }

    /// The root key in the cluster.
    pub(crate) async fn roots(&self) -> RootKeys {
        RootKeys::secret(
            RootKey::new(Zeroizing::new(self.root_key().await.unwrap())),
            None,
        )
    }

    /// Opens everything that is in a vault with the library alone, by secret and sequence; whatever
    /// does not open is told. Holds the ring to its MAC, and every entry to its own.
    pub(crate) async fn opened(
        &self,
        vault: &str,
        roots: &RootKeys,
    ) -> BTreeMap<(String, u32), Vec<u8>> {
        let ring = self.secrets().get(&ring_name(vault)).await.unwrap();
        let data = ring.data.unwrap();
        let document = RingDocument::parse(&data["ring"].0).unwrap();
        let reference = document.vault();
        let index = roots
            .unwrap(&reference, KeyLabel::Index, &document.index_key)
            .await
            .unwrap();
        IndexKey::new(index, &reference.id)
            .verify_document(
                &data["ring"].0,
                &Mac::try_from(data["mac"].0.as_slice()).unwrap(),
            )
            .unwrap();
        let mut keys = BTreeMap::new();
        for version in &document.versions {
            let number = version.version;
            let key = roots
                .unwrap(&reference, KeyLabel::Ring(number), &version.key)
                .await
                .unwrap();
            keys.insert(number, RingKey::new(number, key, &reference.id));
        }
        let mut opened = BTreeMap::new();
        for (object, secret) in self.entries(vault).await {
            let (_, sequence) = parse_object_name(vault, &object).unwrap();
            let text = &secret.annotations()["claviger.dev/attributes"];
            let attributes = Attributes::parse(text).unwrap();
            let envelope: Envelope = secret.annotations()["claviger.dev/envelope"]
                .parse()
                .unwrap();
            let binding = Binding {
                vault: &reference,
                secret: &attributes.name,
                sequence,
                version: attributes.id,
            };
            let key = &keys[&envelope.ring];
            key.verify(&binding, &envelope, text).unwrap();
            let value = envelope.wrapped.as_ref().map_or_else(Vec::new, |wrapped| {
                let payload = &secret.data.as_ref().unwrap()["payload"].0;
                key.unwrap(&binding, wrapped)
                    .unwrap()
                    .open(&binding, payload)
                    .unwrap()
                    .to_vec()
            });
            opened.insert((attributes.name.as_str().to_owned(), sequence), value);
        }
        opened
    }

    /// What a vault's key ring holds for the recipients, opened.
    pub(crate) async fn recovery(&self, vault: &str, identity: &Identity) -> RingKeys {
        let ring = self.secrets().get(&ring_name(vault)).await.unwrap();
        let file = &ring.data.unwrap()["recovery.age"].0;
        recovery::open_ring(&identity.secret, file).unwrap()
    }
}
