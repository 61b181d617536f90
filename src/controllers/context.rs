//! What every look at an item has at hand.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder},
};

use crate::{
    controllers::{
        function_key::{Item, cache::Cache},
        queue::Queue,
    },
    domain::seal::SealKey,
    k8s::object::Objects,
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
    pub recorder: Recorder,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
    /// The key of the sealed second copies.
    pub seal_key: SealKey,
    /// How to behave.
    pub settings: Settings,
}

impl Context {
    /// Publishes an event for a person to notice. It is a courtesy: a failure is logged and never
    /// holds up a key.
    pub async fn announce(
        &self,
        about: k8s_openapi::api::core::v1::ObjectReference,
        type_: EventType,
        reason: &str,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: reason.to_owned(),
            secondary: None,
        };
        let published = tokio::time::timeout(
            Duration::from_secs(5),
            self.recorder.publish(&event, &about),
        )
        .await;
        if !matches!(published, Ok(Ok(()))) {
            tracing::debug!(reason, "an event could not be published");
        }
    }
}
