//! Restarting a workload: one annotation of its pod template, the only field of a workload that
//! Claviger writes.

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::PodTemplateSpec,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    api::{
        RESTARTED_AT_ANNOTATION,
        convert::Workload,
        v1alpha1::{WorkloadKind, WorkloadRef},
    },
    k8s::object::FIELD_MANAGER,
};

/// A workload as far as restarts go.
#[derive(Clone, Debug)]
pub struct Pods {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Since when its pods are sure to be younger than: its creation or its last restart by us.
    pub since: Option<Timestamp>,
}

/// Reads a workload.
///
/// # Errors
/// The apiserver's refusal; an absent workload is `None`.
pub async fn get(client: &Client, workload: &Workload) -> kube::Result<Option<Pods>> {
    match workload.workload.kind {
        WorkloadKind::DaemonSet => {
            read(client, workload, |set: &DaemonSet| {
                set.spec.as_ref().map(|spec| &spec.template)
            })
            .await
        }
        WorkloadKind::Deployment => {
            read(client, workload, |set: &Deployment| {
                set.spec.as_ref().map(|spec| &spec.template)
            })
            .await
        }
        WorkloadKind::StatefulSet => {
            read(client, workload, |set: &StatefulSet| {
                set.spec.as_ref().map(|spec| &spec.template)
            })
            .await
        }
    }
}

/// Restarts a workload that has not changed since it was read.
///
/// # Errors
/// The apiserver's refusal; 409 when the workload has changed.
pub async fn restart(
    client: &Client,
    workload: &Workload,
    version: &str,
    now: Timestamp,
) -> kube::Result<()> {
    match workload.workload.kind {
        WorkloadKind::DaemonSet => write::<DaemonSet>(client, workload, version, now).await,
        WorkloadKind::Deployment => write::<Deployment>(client, workload, version, now).await,
        WorkloadKind::StatefulSet => write::<StatefulSet>(client, workload, version, now).await,
    }
}

async fn read<K>(
    client: &Client,
    workload: &Workload,
    template: impl Fn(&K) -> Option<&PodTemplateSpec>,
) -> kube::Result<Option<Pods>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let Some(found) = Api::<K>::namespaced(client.clone(), &workload.namespace)
        .get_opt(&workload.workload.name)
        .await?
    else {
        return Ok(None);
    };
    let created = found.meta().creation_timestamp.as_ref().map(|time| time.0);
    let restarted = template(&found)
        .and_then(|template| {
            template
                .metadata
                .as_ref()?
                .annotations
                .as_ref()?
                .get(RESTARTED_AT_ANNOTATION)
        })
        .and_then(|text| text.parse().ok());
    Ok(Some(Pods {
        version: found.meta().resource_version.clone().unwrap_or_default(),
        since: created.max(restarted),
    }))
}

async fn write<K>(
    client: &Client,
    workload: &Workload,
    version: &str,
    now: Timestamp,
) -> kube::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let patch = json!({
        "metadata": {"resourceVersion": version},
        "spec": {"template": {"metadata": {"annotations": {RESTARTED_AT_ANNOTATION: now.to_string()}}}},
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    Api::<K>::namespaced(client.clone(), &workload.namespace)
        .patch(&workload.workload.name, &params, &Patch::Merge(patch))
        .await
        .map(drop)
}

impl std::fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            WorkloadKind::DaemonSet => "DaemonSet",
            WorkloadKind::Deployment => "Deployment",
            WorkloadKind::StatefulSet => "StatefulSet",
        };
        write!(f, "{kind}/{}", self.name)
    }
}
