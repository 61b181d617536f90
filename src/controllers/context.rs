//! What every look at an item has at hand.

use std::sync::Arc;

use jiff::SignedDuration;
use kube::Client;
use tokio::sync::Semaphore;

use crate::{
    controllers::{
        Item,
        function_key::cache::Cache,
        naming::Name,
        queue::Queue,
        role_assignment,
        secret_vault::{self, rewrap::Pace, roots::Roots},
    },
    domain::seal::SealKey,
    k8s::{event::Events, object::Objects, role::Roles, vault::Vaults},
    metrics::Metrics,
    recovery::Recipients,
};

/// How the controllers behave, from the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Claviger's own namespace.
    pub system_namespace: String,
    /// Namespaces to look after; empty: all.
    pub namespaces: Vec<String>,
    /// What the names of the built-in ClusterRoles begin with.
    pub role_prefix: String,
    /// How long a Functions host may take to notice a new entry in its store.
    pub host_reload: SignedDuration,
    /// How long to wait for further changes before a workload is restarted.
    pub restart_delay: SignedDuration,
    /// How long writers may take to notice that a key ring has turned.
    pub ring_grace: SignedDuration,
    /// To whom the keys of every ring are sealed, too.
    pub recipients: Recipients,
    /// How many items are looked at at once.
    pub workers: usize,
}

/// What every look at an item has at hand.
pub struct Context {
    /// The apiserver.
    pub client: Client,
    /// The objects that hold values.
    pub objects: Objects,
    /// What has been observed.
    pub cache: Cache,
    /// The Roles and bindings of the cluster.
    pub roles: Roles,
    /// What has been observed of assignments.
    pub assignments: role_assignment::cache::Cache,
    /// The objects of vaults.
    pub vault_objects: Vaults,
    /// What has been observed of vaults.
    pub vaults: secret_vault::cache::Cache,
    /// The root keys, once they are at hand.
    pub roots: Roots,
    /// How fast data keys are re-wrapped.
    pub pace: Pace,
    /// What is to be looked at.
    pub queue: Queue<Item>,
    /// Vaults in which something is to be re-wrapped.
    pub rewraps: Queue<Name>,
    /// Where events go.
    pub events: Events,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
    /// Permits to write a status, as many as there are workers: each request under way has a
    /// connection, and its buffers, to itself.
    pub status_writes: Semaphore,
    /// The key of the sealed second copies.
    pub seal_key: SealKey,
    /// How to behave.
    pub settings: Settings,
}
