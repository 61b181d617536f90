//! Events: what a person should notice. They are a courtesy and never hold up a key: they are sent
//! one after another in the background, and dropped when more pile up than a person would read.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;

const BACKLOG: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The apiserver takes notes of at most 1 kB.
const LONGEST_NOTE: usize = 1000;

/// Where events go.
pub struct Events(mpsc::Sender<(ObjectReference, Event)>);

impl Events {
    /// Events of the replica of this name; call it within a Tokio runtime.
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter {
            controller: "claviger.dev/controller".to_owned(),
            instance: Some(instance),
        };
        let recorder = Recorder::new(client, reporter);
        let (sender, mut receiver) = mpsc::channel::<(ObjectReference, Event)>(BACKLOG);
        tokio::spawn(async move {
            while let Some((about, event)) = receiver.recv().await {
                let published =
                    tokio::time::timeout(TIMEOUT, recorder.publish(&event, &about)).await;
                if !matches!(published, Ok(Ok(()))) {
                    tracing::debug!(reason = event.reason, "an event could not be published");
                }
            }
        });
        Self(sender)
    }

    /// Publishes an event about an object.
    pub fn publish(
        &self,
        about: ObjectReference,
        type_: EventType,
        reason: &str,
        mut note: String,
    ) {
        if note.len() > LONGEST_NOTE {
            note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        }
        let reason = reason.to_owned();
        let event = Event {
            type_,
            action: reason.clone(),
            reason,
            note: Some(note),
            secondary: None,
        };
        if self.0.try_send((about, event)).is_err() {
            tracing::debug!("an event was dropped: too many at once");
        }
    }
}
