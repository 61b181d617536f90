//! Writing a status, and what else of a resource is ours to write.

use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::{NamespaceResourceScope, PartialObjectMeta},
};
use serde_json::json;

use crate::{
    api::v1alpha1::{
        FunctionKey, FunctionKeyStatus, RoleAssignment, RoleAssignmentStatus, SecretVault,
        SecretVaultStatus,
    },
    domain::ledger::Owner,
    k8s::object::FIELD_MANAGER,
};

/// Replaces the status of the very resource that was read; one that took its name meanwhile is left
/// alone.
///
/// # Errors
/// The apiserver's refusal; 404 or 422 when the resource is gone.
pub async fn replace(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    status: &FunctionKeyStatus,
) -> kube::Result<()> {
    write::<FunctionKey>(client, namespace, owner, json!(status)).await
}

/// Replaces the status of the very vault that was read; one that took its name meanwhile is left
/// alone.
///
/// # Errors
/// The apiserver's refusal; 404 or 422 when the vault is gone.
pub async fn replace_vault(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    status: &SecretVaultStatus,
) -> kube::Result<()> {
    write::<SecretVault>(client, namespace, owner, json!(status)).await
}

/// Replaces the status of the very assignment that was read; one that took its name meanwhile is left
/// alone.
///
/// # Errors
/// The apiserver's refusal; 404 or 422 when the assignment is gone.
pub async fn replace_assignment(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    status: &RoleAssignmentStatus,
) -> kube::Result<()> {
    write::<RoleAssignment>(client, namespace, owner, json!(status)).await
}

/// Replaces the finalizers of a vault that has not changed since it was read.
///
/// # Errors
/// The apiserver's refusal; 409 when it has changed.
pub async fn finalizers(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    version: &str,
    finalizers: &[String],
) -> kube::Result<()> {
    write_finalizers::<SecretVault>(client, namespace, owner, version, finalizers).await
}

/// Replaces the finalizers of an assignment that has not changed since it was read.
///
/// # Errors
/// The apiserver's refusal; 409 when it has changed.
pub async fn assignment_finalizers(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    version: &str,
    finalizers: &[String],
) -> kube::Result<()> {
    write_finalizers::<RoleAssignment>(client, namespace, owner, version, finalizers).await
}

async fn write_finalizers<K>(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    version: &str,
    finalizers: &[String],
) -> kube::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
{
    let api = Api::<PartialObjectMeta<K>>::namespaced(client.clone(), namespace);
    let patch = json!({
        "metadata": {"uid": owner.uid, "resourceVersion": version, "finalizers": finalizers},
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(&owner.name, &params, &Patch::Merge(patch))
        .await
        .map(drop)
}

async fn write<K>(
    client: &Client,
    namespace: &str,
    owner: &Owner,
    status: serde_json::Value,
) -> kube::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    // Of the answer only the metadata is read: the object itself may not be readable.
    let api = Api::<PartialObjectMeta<K>>::namespaced(client.clone(), namespace);
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": owner.uid},
        {"op": "add", "path": "/status", "value": status},
    ]);
    let patch: json_patch::Patch =
        serde_json::from_value(patch).expect("two operations of RFC 6902");
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_status(&owner.name, &params, &Patch::Json::<()>(patch))
        .await
        .map(drop)
}
