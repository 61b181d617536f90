//! What every look at an item has at hand.

use std::sync::Arc;

use jiff::SignedDuration;
use kube::Client;
use tokio::sync::Semaphore;

use crate::{
    controllers::{
        function_key::{Item, cache::Cache},
        queue::Queue,
    },
    domain::seal::SealKey,
    k8s::{event::Events, object::Objects},
    metrics::Metrics,
};

/// How the controllers behave, from the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Claviger's own namespace.
    pub system_namespace: String,
    /// Namespaces to look after; empty: all.
    pub namespaces: Vec<String>,
    /// How long a Functions host may take to notice a new entry in its store.
    pub host_reload: SignedDuration,
    /// How long to wait for further changes before a workload is restarted.
    pub restart_delay: SignedDuration,
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
    /// What is to be looked at.
    pub queue: Queue<Item>,
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
