//! What tests do with vaults.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use claviger::{
    api::v1alpha1::{SecretVault, SecretVaultStatus},
    k8s::vault::{ENTRY_TYPE, ring_name},
};
use futures::TryStreamExt;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};

use super::{Space, eventually, space::PATIENCE};

impl Space {
    pub(crate) fn vaults(&self) -> Api<SecretVault> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates a SecretVault with this spec.
    pub(crate) async fn declare_vault(&self, name: &str, spec: Value) -> SecretVault {
        self.try_declare_vault(name, spec).await.unwrap()
    }

    /// Creates a SecretVault with this spec, or answers why the apiserver refuses.
    pub(crate) async fn try_declare_vault(
        &self,
        name: &str,
        spec: Value,
    ) -> kube::Result<SecretVault> {
        let object = json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "SecretVault",
            "metadata": {"name": name, "namespace": self.name}, "spec": spec,
        });
        self.vaults()
            .create(
                &PostParams::default(),
                &serde_json::from_value(object).unwrap(),
            )
            .await
    }

    /// Changes a SecretVault by a merge patch.
    pub(crate) async fn change_vault(&self, name: &str, patch: Value) -> SecretVault {
        self.vaults()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    /// Deletes a SecretVault.
    pub(crate) async fn delete_vault(&self, name: &str) {
        self.vaults()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// Waits until the status of a SecretVault is as asked; answers it.
    pub(crate) async fn until_vault(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&SecretVaultStatus) -> bool,
    ) -> SecretVaultStatus {
        eventually(
            &format!("SecretVault {name} to be {what}"),
            PATIENCE,
            async || {
                let vault = self
                    .vaults()
                    .get(name)
                    .await
                    .map_err(|error| error.to_string())?;
                let status = vault.status.clone().unwrap_or_default();
                let current = status.observed_generation == vault.metadata.generation;
                if current && is(&status) {
                    Ok(status)
                } else {
                    Err(serde_json::to_string(&status).unwrap())
                }
            },
        )
        .await
    }

    /// Waits until a SecretVault is Ready and nothing is being brought about.
    pub(crate) async fn vault_ready(&self, name: &str) -> SecretVaultStatus {
        self.until_vault(name, "Ready", |status| {
            says(&status.conditions, "Ready") == "True"
                && says(&status.conditions, "Reconciling") == "False"
        })
        .await
    }

    /// Waits until a SecretVault is stalled for this reason; answers the message.
    pub(crate) async fn vault_stalled(&self, name: &str, reason: &str) -> String {
        let status = self
            .until_vault(name, reason, |status| {
                says(&status.conditions, "Stalled") == "True"
                    && ready(&status.conditions).is_some_and(|ready| ready.reason == reason)
            })
            .await;
        ready(&status.conditions).unwrap().message.clone()
    }

    /// The objects of a vault's entries, by name.
    pub(crate) async fn entries(&self, vault: &str) -> BTreeMap<String, Secret> {
        let params = ListParams::default().labels(&format!(
            "claviger.dev/content=vault-secret-version,claviger.dev/vault={vault}"
        ));
        let listed = self.secrets().list(&params).await.unwrap();
        listed
            .into_iter()
            .inspect(|secret| {
                assert_eq!(secret.type_.as_deref(), Some(ENTRY_TYPE));
                assert_eq!(secret.immutable, Some(true));
            })
            .map(|secret| (secret.name_any(), secret))
            .collect()
    }

    /// The attributes of a vault's entries, by the name of the object.
    pub(crate) async fn attributes(&self, vault: &str) -> BTreeMap<String, Value> {
        self.entries(vault)
            .await
            .into_iter()
            .map(|(name, secret)| {
                let text = &secret.annotations()["claviger.dev/attributes"];
                (name, serde_json::from_str(text).unwrap())
            })
            .collect()
    }

    /// The versions of the ring under which a vault's entries are.
    pub(crate) async fn ring_versions(&self, vault: &str) -> Vec<u32> {
        self.entries(vault)
            .await
            .values()
            .map(|secret| {
                let envelope = &secret.annotations()["claviger.dev/envelope"];
                envelope.split('.').nth(1).unwrap().parse().unwrap()
            })
            .collect()
    }

    /// Somebody whom Claviger's policies do not hold off: what an attacker with access to etcd can do.
    pub(crate) async fn forger(&self) -> Client {
        let mut config = self.cluster.config().await;
        config.auth_info.impersonate = Some("system:kube-controller-manager".to_owned());
        config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
        Client::try_from(config).unwrap()
    }

    /// Changes annotations of an object that nobody may change.
    pub(crate) async fn forge(&self, secret: &str, annotations: Value) {
        Api::<Secret>::namespaced(self.forger().await, &self.name)
            .patch(
                secret,
                &PatchParams::default(),
                &Patch::Merge(json!({"metadata": {"annotations": annotations}})),
            )
            .await
            .unwrap();
    }

    /// Every state of a Secret from now on, by its resource version.
    pub(crate) fn follow_secret(&self, name: &str) -> Arc<Mutex<Vec<String>>> {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (secrets, noted) = (self.secrets(), Arc::clone(&seen));
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        tokio::spawn(async move {
            let mut states = std::pin::pin!(watcher(secrets, config).applied_objects());
            while let Ok(Some(secret)) = states.try_next().await {
                let version = secret.resource_version().unwrap();
                let mut noted = noted.lock().unwrap();
                if noted.last() != Some(&version) {
                    noted.push(version);
                }
            }
        });
        seen
    }

    /// A vault's key ring.
    pub(crate) async fn ring(&self, vault: &str) -> Value {
        let secret = self.secrets().get(&ring_name(vault)).await.unwrap();
        serde_json::from_slice(&secret.data.unwrap()["ring"].0).unwrap()
    }
}

/// The status of a condition.
pub(crate) fn says(conditions: &[Condition], type_: &str) -> String {
    conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .map(|condition| condition.status.clone())
        .unwrap_or_default()
}

/// The Ready condition.
pub(crate) fn ready(conditions: &[Condition]) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
}
