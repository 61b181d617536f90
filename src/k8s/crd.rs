//! Whether a resource is gone because somebody deleted it, or because its definition or its namespace
//! was deleted.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client};

/// Since when the definition has stood; `None` when it is gone or going.
///
/// # Errors
/// The apiserver's refusal.
pub async fn established_since(client: &Client, name: &str) -> kube::Result<Option<Timestamp>> {
    let crd = Api::<CustomResourceDefinition>::all(client.clone())
        .get_metadata_opt(name)
        .await?;
    Ok(crd
        .filter(|crd| crd.metadata.deletion_timestamp.is_none())
        .and_then(|crd| crd.metadata.creation_timestamp)
        .map(|time| time.0))
}

/// Whether a namespace is being deleted, or gone.
///
/// # Errors
/// The apiserver's refusal.
pub async fn is_namespace_going(client: &Client, name: &str) -> kube::Result<bool> {
    let namespace = Api::<Namespace>::all(client.clone())
        .get_metadata_opt(name)
        .await?;
    Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
}
