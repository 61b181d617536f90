//! What tests look up beside the resources themselves: the audit log, bookkeeping, versions.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::{DynamicObject, GroupVersionKind},
    discovery::ApiResource,
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Space, control_plane::run, eventually, space::PATIENCE};

const CLAVIGER: &str = "system:serviceaccount:claviger-system:claviger";

/// Absence is shown by waiting this long: several times what a look takes.
pub(crate) const A_WHILE: Duration = Duration::from_millis(1500);

/// Every write of Claviger in the namespace so far, as `patch secrets/keys`, refused ones too.
/// Events are not counted; leases are in another namespace. Nor is the publication of the roots, which
/// comes to every namespace by itself (`ca.rs` tells of it).
pub(crate) fn writes(space: &Space) -> Vec<String> {
    let log = std::fs::read_to_string(&space.cluster.audit).unwrap();
    log.lines()
        .filter(|line| line.contains(&space.name) && line.contains(CLAVIGER))
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| {
            line["user"]["username"] == CLAVIGER
                && line["objectRef"]["namespace"] == *space.name
                && line["objectRef"]["resource"] != "events"
                && !is_roots(&line["objectRef"])
        })
        .filter_map(|line| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let verb = text(&line["verb"]);
            let resource = text(&line["objectRef"]["resource"]);
            let name = text(&line["objectRef"]["name"]);
            ["create", "update", "patch", "delete"]
                .contains(&verb.as_str())
                .then(|| format!("{verb} {resource}/{name}"))
        })
        .collect()
}

/// Whether an audited request is about the published roots.
fn is_roots(object: &Value) -> bool {
    object["resource"] == "configmaps" && object["name"] == claviger::k8s::ca::NAME
}

/// How many of these writes were to this object.
pub(crate) fn count(writes: &[String], object: &str) -> usize {
    writes
        .iter()
        .filter(|write| write.ends_with(object))
        .count()
}

/// The versions of all objects of the namespace that Claviger could write.
pub(crate) async fn versions(space: &Space) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for (group, version, kind) in [
        ("", "v1", "Secret"),
        ("", "v1", "ConfigMap"),
        ("apps", "v1", "Deployment"),
        ("claviger.dev", "v1alpha1", "FunctionKey"),
    ] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> =
            Api::namespaced_with(space.client.clone(), &space.name, &resource);
        for object in api.list(&ListParams::default()).await.unwrap() {
            if kind == "ConfigMap" && object.name_any() == claviger::k8s::ca::NAME {
                continue;
            }
            versions.insert(
                format!("{kind}/{}", object.name_any()),
                object.resource_version().unwrap(),
            );
        }
    }
    versions
}

/// An annotation of a Secret that holds JSON; null when there is none or it is not JSON.
pub(crate) async fn annotation(space: &Space, secret: &str, name: &str) -> Value {
    let Some(secret) = space.secrets().get_opt(secret).await.unwrap() else {
        return Value::Null;
    };
    let text = secret.annotations().get(name).cloned();
    text.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// The bookkeeping of one entry of a key store; null when there is none.
pub(crate) async fn record(space: &Space, secret: &str, entry: &str) -> Value {
    annotation(space, secret, "claviger.dev/ledger").await[entry].clone()
}

/// The bookkeeping of one copy in a client's Secret; null when there is none.
pub(crate) async fn copy(space: &Space, secret: &str, entry: &str) -> Value {
    annotation(space, secret, "claviger.dev/copies").await[entry].clone()
}

/// A time of the bookkeeping.
pub(crate) fn time(value: &Value) -> Timestamp {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is a time"))
        .parse()
        .unwrap()
}

/// Labels or annotations of a Secret (`labels`, `annotations`), set or removed by somebody.
pub(crate) async fn edit(space: &Space, secret: &str, patch: Value) {
    space
        .secrets()
        .patch(secret, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
}

/// Makes any object, given as JSON.
pub(crate) async fn make(space: &Space, object: &Value) {
    kubectl(space, &["create", "-f", "-"], &object.to_string())
        .await
        .unwrap();
}

/// Waits until every previous value of an entry has been promised a time to retire; answers its
/// bookkeeping.
pub(crate) async fn promised(space: &Space, secret: &str, entry: &str) -> Value {
    eventually(
        &format!("the retirement of {entry}'s predecessors to be promised"),
        PATIENCE,
        async || {
            let book = record(space, secret, entry).await;
            let previous = book["previous"].as_array().cloned().unwrap_or_default();
            let all = !previous.is_empty()
                && previous
                    .iter()
                    .all(|previous| previous["retires"].is_string());
            if all { Ok(book) } else { Err(book.to_string()) }
        },
    )
    .await
}

/// Removes entries from a Secret as a person does.
pub(crate) async fn drop_entries(space: &Space, secret: &str, entries: &[&str]) {
    let data: serde_json::Map<String, Value> = entries
        .iter()
        .map(|entry| ((*entry).to_owned(), Value::Null))
        .collect();
    edit(space, secret, json!({"data": data})).await;
}

/// Deletes a Secret.
pub(crate) async fn delete_secret(space: &Space, name: &str) {
    space
        .secrets()
        .delete(name, &DeleteParams::default())
        .await
        .unwrap();
}

/// How often the pod template of a Deployment was changed, its creation included.
pub(crate) async fn template_changes(space: &Space, deployment: &str) -> i64 {
    space
        .deployments()
        .get(deployment)
        .await
        .unwrap()
        .metadata
        .generation
        .unwrap()
}

/// Waits until an event with this reason was published about a `FunctionKey`.
pub(crate) async fn event(space: &Space, name: &str, reason: &str) {
    eventually(
        &format!("the event {reason} about {name}"),
        PATIENCE,
        async || {
            let events = space.events(name).await;
            if events.iter().any(|event| event == reason) {
                Ok(())
            } else {
                Err(format!("{events:?}"))
            }
        },
    )
    .await;
}

/// Waits until the data of a Secret is gone with the Secret.
pub(crate) async fn gone(space: &Space, secret: &str) {
    eventually(&format!("Secret {secret} to go"), PATIENCE, async || {
        let secret = space.secrets().get_opt(secret).await.unwrap();
        secret.map_or(Ok(()), |secret| {
            Err(format!(
                "{:?}",
                secret.data.map(|data| data.into_keys().collect::<Vec<_>>())
            ))
        })
    })
    .await;
}

/// Runs the real binary as a person with a kubeconfig does.
pub(crate) async fn claviger(space: &Space, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
    command
        .env_clear()
        .env("KUBECONFIG", &space.cluster.kubeconfig)
        .args(args);
    run(&mut command, "").await
}

/// Runs kubectl in the namespace.
pub(crate) async fn kubectl(space: &Space, args: &[&str], input: &str) -> Result<String, String> {
    let namespaced: Vec<&str> = ["--namespace", &space.name]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    space.cluster.kubectl(&namespaced, input).await
}

/// A fresh value in the host's own format.
pub(crate) fn minted(kind: claviger::domain::key::KeyKind, seed: u8) -> String {
    use claviger::domain::key::format;
    let mut random = [0_u8; format::RANDOM_BYTES];
    for (index, byte) in random.iter_mut().enumerate() {
        *byte = u8::try_from(index)
            .unwrap()
            .wrapping_mul(37)
            .wrapping_add(seed.wrapping_mul(101))
            ^ 0x5a;
    }
    format::mint(kind, &random).expose().to_owned()
}

/// A spec like `host_key` for a function's key.
#[allow(
    clippy::needless_pass_by_value,
    reason = "reads better at every use, as host_key does"
)]
pub(crate) fn function_key(function: &str, more: Value) -> Value {
    let mut spec = json!({"storage": {"secret": {"name": "keys"}}, "scope": "Function", "functionName": function});
    json_patch::merge(&mut spec, &more);
    spec
}

/// A `distributeTo` with one target.
pub(crate) fn to(secret: &str, key: &str) -> Value {
    json!({"distributeTo": [{"secretRef": {"name": secret, "key": key}}]})
}
