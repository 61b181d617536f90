//! A namespace of a test's own, and what tests do in one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use claviger::api::v1alpha1::{FunctionKey, FunctionKeyStatus};
use futures::TryStreamExt;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};

use super::{Cluster, eventually};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

/// A namespace of a test's own.
pub(crate) struct Space {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) client: Client,
    pub(crate) name: String,
    /// Every value that ever stood in a Secret of the namespace.
    pub(crate) values: Arc<Mutex<BTreeMap<String, String>>>,
}

static SPACES: AtomicU32 = AtomicU32::new(0);

impl Space {
    /// A new namespace on the shared control plane.
    pub(crate) async fn new(what: &str) -> Self {
        Self::on(Cluster::shared().await, what).await
    }

    /// A new namespace on this control plane.
    pub(crate) async fn on(cluster: Arc<Cluster>, what: &str) -> Self {
        let client = cluster.admin().await;
        let name = format!("{what}-{}", SPACES.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        let space = Self {
            cluster,
            client,
            name,
            values: Arc::default(),
        };
        space.collect_values();
        space
    }

    /// Remembers every value that is ever seen in a Secret of the namespace.
    fn collect_values(&self) {
        let secrets = self.secrets();
        let values = Arc::clone(&self.values);
        tokio::spawn(async move {
            let mut events =
                std::pin::pin!(watcher(secrets, watcher::Config::default()).default_backoff());
            loop {
                let Ok(Some(event)) = events.try_next().await else {
                    continue;
                };
                if let watcher::Event::Apply(secret) | watcher::Event::InitApply(secret) = event {
                    for (entry, value) in secret.data.unwrap_or_default() {
                        if let Ok(text) = String::from_utf8(value.0) {
                            values.lock().unwrap().insert(text, entry);
                        }
                    }
                }
            }
        });
    }

    pub(crate) fn keys(&self) -> Api<FunctionKey> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates a FunctionKey with this spec.
    pub(crate) async fn declare(&self, name: &str, spec: Value) -> FunctionKey {
        self.try_declare(name, spec).await.unwrap()
    }

    /// Creates a FunctionKey with this spec, or answers why the apiserver refuses.
    pub(crate) async fn try_declare(&self, name: &str, spec: Value) -> kube::Result<FunctionKey> {
        let object = json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "FunctionKey",
            "metadata": {"name": name, "namespace": self.name}, "spec": spec,
        });
        let resource = kube::api::ApiResource::erase::<FunctionKey>(&());
        let api: Api<kube::api::DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.name, &resource);
        let params = PostParams::default();
        let made = api
            .create(&params, &serde_json::from_value(object).unwrap())
            .await?;
        Ok(made.try_parse().unwrap())
    }

    /// Changes a FunctionKey by a merge patch.
    pub(crate) async fn change(&self, name: &str, patch: Value) -> FunctionKey {
        self.keys()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap()
    }

    /// Deletes a FunctionKey.
    pub(crate) async fn undeclare(&self, name: &str) {
        self.keys()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// The values of a Secret, by data key; empty when there is none.
    pub(crate) async fn data(&self, secret: &str) -> BTreeMap<String, String> {
        let Some(secret) = self.secrets().get_opt(secret).await.unwrap() else {
            return BTreeMap::new();
        };
        let text = |value: k8s_openapi::ByteString| String::from_utf8_lossy(&value.0).into_owned();
        secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(entry, value)| (entry, text(value)))
            .collect()
    }

    /// Makes a Secret, or replaces one.
    pub(crate) async fn put_secret(&self, name: &str, data: &[(&str, &str)]) -> Secret {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": data.iter().copied().collect::<BTreeMap<_, _>>(),
        });
        let params = PatchParams::apply("test").force();
        self.secrets()
            .patch(name, &params, &Patch::Apply(secret))
            .await
            .unwrap()
    }

    /// Makes a Deployment that nothing runs.
    pub(crate) async fn put_deployment(&self, name: &str) {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "c", "image": "none"}]},
                },
            },
        });
        let deployment = serde_json::from_value(deployment).unwrap();
        self.deployments()
            .create(&PostParams::default(), &deployment)
            .await
            .unwrap();
    }

    /// The restart annotation of a Deployment's pod template.
    pub(crate) async fn restarted_at(&self, name: &str) -> Option<String> {
        let deployment = self.deployments().get(name).await.unwrap();
        let annotations = deployment.spec?.template.metadata?.annotations?;
        annotations.get("claviger.dev/restarted-at").cloned()
    }

    /// The status of a FunctionKey.
    pub(crate) async fn status(&self, name: &str) -> FunctionKeyStatus {
        self.keys()
            .get(name)
            .await
            .unwrap()
            .status
            .unwrap_or_default()
    }

    /// Waits until the status of a FunctionKey is as asked; answers it.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&FunctionKeyStatus) -> bool,
    ) -> FunctionKeyStatus {
        eventually(
            &format!("FunctionKey {name} to be {what}"),
            PATIENCE,
            async || {
                let key = self
                    .keys()
                    .get(name)
                    .await
                    .map_err(|error| error.to_string())?;
                let status = key.status.clone().unwrap_or_default();
                let current = status.observed_generation == key.metadata.generation;
                if current && is(&status) {
                    Ok(status)
                } else {
                    Err(serde_json::to_string(&status).unwrap())
                }
            },
        )
        .await
    }

    /// Waits until a FunctionKey is Ready and nothing is being brought about.
    pub(crate) async fn ready(&self, name: &str) -> FunctionKeyStatus {
        self.until(name, "Ready", |status| {
            condition(status, "Ready") == "True" && condition(status, "Reconciling") == "False"
        })
        .await
    }

    /// Waits until a FunctionKey is not Ready for this reason; answers the message.
    pub(crate) async fn not_ready(&self, name: &str, reason: &str) -> String {
        let is = |status: &FunctionKeyStatus| {
            condition(status, "Ready") == "False" && ready_reason(status) == reason
        };
        let status = self.until(name, reason, is).await;
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == "Ready")
            .unwrap()
            .message
            .clone()
    }

    /// Waits until the values of a Secret are as asked; answers them.
    pub(crate) async fn until_data(
        &self,
        secret: &str,
        what: &str,
        is: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> BTreeMap<String, String> {
        eventually(
            &format!("Secret {secret} to {what}"),
            PATIENCE,
            async || {
                let data = self.data(secret).await;
                if is(&data) {
                    Ok(data)
                } else {
                    Err(format!("entries {:?}", data.keys().collect::<Vec<_>>()))
                }
            },
        )
        .await
    }

    /// Replaces the whole data of a Secret as the Functions host does: a JSON patch without a test.
    pub(crate) async fn host_writes(&self, secret: &str, data: &BTreeMap<String, String>) {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let data: BTreeMap<&String, String> = data
            .iter()
            .map(|(entry, value)| (entry, STANDARD.encode(value)))
            .collect();
        let patch = json!([{"op": "replace", "path": "/data", "value": data}]);
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        self.secrets()
            .patch(secret, &PatchParams::default(), &Patch::Json::<()>(patch))
            .await
            .unwrap();
    }

    /// The reasons of the events about a FunctionKey.
    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        let events =
            Api::<k8s_openapi::api::events::v1::Event>::namespaced(self.client.clone(), &self.name);
        let events = events.list(&ListParams::default()).await.unwrap();
        let about = |event: &k8s_openapi::api::events::v1::Event| {
            event
                .regarding
                .as_ref()
                .is_some_and(|regarding| regarding.name.as_deref() == Some(name))
        };
        events
            .into_iter()
            .filter(about)
            .filter_map(|event| event.reason)
            .collect()
    }
}

/// The status of a condition.
pub(crate) fn condition(status: &FunctionKeyStatus, type_: &str) -> String {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .map(|condition| condition.status.clone())
        .unwrap_or_default()
}

/// The reason of the Ready condition.
pub(crate) fn ready_reason(status: &FunctionKeyStatus) -> String {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .map(|condition| condition.reason.clone())
        .unwrap_or_default()
}

/// The spec of a host key in the store `keys`, with these fields added.
#[allow(
    clippy::needless_pass_by_value,
    reason = "called with `json!` in place"
)]
pub(crate) fn host_key(name: &str, more: Value) -> Value {
    let mut spec =
        json!({"storage": {"secret": {"name": "keys"}}, "scope": "Host", "keyName": name});
    json_patch::merge(&mut spec, &more);
    spec
}
