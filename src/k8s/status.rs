//! Writing a status.

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::json;

use crate::{
    api::v1alpha1::{FunctionKey, FunctionKeyStatus},
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
    // Of the answer only the metadata is read: the object itself may not be readable.
    let api = Api::<PartialObjectMeta<FunctionKey>>::namespaced(client.clone(), namespace);
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
