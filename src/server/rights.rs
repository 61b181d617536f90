//! Rights that have changed: what was decided before is forgotten when a Role or a binding that was
//! made for a RoleAssignment appears, changes or goes, on every replica by itself.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Role, RoleBinding};
use kube::{Api, Client, Resource, core::PartialObjectMeta, runtime::watcher};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{CONTENT_LABEL, CONTENT_ROLE},
    controllers::watch::{Follower, Progress, follow},
    server::router::Doors,
};

/// Watches until `stop`; call it within a Tokio runtime. What it waits for first is noted in the
/// progress.
pub fn watch(client: &Client, doors: &Arc<Doors>, progress: &Progress, stop: &CancellationToken) {
    changes::<Role>(client, "Roles", doors, progress, stop);
    changes::<RoleBinding>(client, "RoleBindings", doors, progress, stop);
    changes::<ClusterRoleBinding>(client, "ClusterRoleBindings", doors, progress, stop);
}

fn changes<K>(
    client: &Client,
    what: &str,
    doors: &Arc<Doors>,
    progress: &Progress,
    stop: &CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let objects = Api::<PartialObjectMeta<K>>::all(client.clone());
    let ours = watcher::Config::default().labels(&format!("{CONTENT_LABEL}={CONTENT_ROLE}"));
    let follower = Forgetting(Arc::clone(doors));
    let awaited = progress.awaits(what, None);
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = follow(objects, ours, follower, awaited) => {}
            () = stop.cancelled() => {}
        }
    });
}

struct Forgetting(Arc<Doors>);

impl<K> Follower<PartialObjectMeta<K>> for Forgetting {
    fn seen(&mut self, object: PartialObjectMeta<K>, first: bool) {
        // Whoever may label Roles of a namespace makes no other one's decisions be forgotten.
        if !first {
            self.0
                .authz
                .invalidate(object.metadata.namespace.as_deref());
        }
    }

    fn gone(&mut self, object: &PartialObjectMeta<K>) {
        self.0
            .authz
            .invalidate(object.metadata.namespace.as_deref());
    }

    fn begin(&mut self) {}

    fn complete(&mut self) {
        // What changed while nobody watched is in the list, or no longer in it.
        self.0.authz.invalidate(None);
    }
}
