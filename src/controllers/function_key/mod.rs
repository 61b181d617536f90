//! The `FunctionKey` controller.
//!
//! Three kinds of item are looked at, each knowing nothing of why:
//! - a [`store`]: all keys of one app together, one write for all of them;
//! - a [`client`]: all copies in one client's Secret together;
//! - a [`workload`](super::workload): one restart for all changes under it.
//!
//! What a look at one finds out may call for a look at another; nothing is passed along, each
//! observes for itself.

pub mod cache;
pub mod client;
pub mod report;
pub mod store;
pub mod watch;

use std::sync::Arc;

use jiff::Timestamp;
use snafu::ResultExt;

use crate::{
    api::{
        condition::{Reason, Report, State, conditions},
        convert::{StoreRef, Workload},
        v1alpha1::FunctionKeyStatus,
    },
    clock,
    controllers::{
        Item,
        context::Context,
        error::{self, Error},
        naming::Name,
        objects,
    },
    domain::ledger::Owner,
    k8s::{self, object::Observed},
};

/// Everything that the caches know of.
pub fn everything(context: &Context) -> Vec<Item> {
    let state = context.cache.lock();
    let mut items: std::collections::HashSet<Item> = std::collections::HashSet::new();
    for declaration in state.declarations() {
        items.insert(Item::Store(declaration.store.clone()));
        for target in &declaration.targets {
            items.insert(Item::Client(Name::new(
                &*declaration.namespace,
                &*target.secret,
            )));
        }
        for workload in declaration.workloads() {
            items.insert(Item::Workload(Workload {
                namespace: declaration.namespace.clone(),
                workload: workload.clone(),
            }));
        }
    }
    for (object, observed) in state.objects() {
        items.insert(objects::item(object, observed));
    }
    items.into_iter().collect()
}

/// Says in the status of a resource that it cannot be read.
pub async fn tell_unreadable(context: &Context, name: &Name) -> Result<Option<Timestamp>, Error> {
    let Some(unreadable) = context.cache.lock().unreadable(name) else {
        return Ok(None);
    };
    let report = Report {
        state: State::Stalled,
        reason: Reason::Invalid,
        message: format!(
            "the resource cannot be read: {}. What it declared last stands; correct it, or update the definition",
            unreadable.fault
        ),
    };
    let status = FunctionKeyStatus {
        observed_generation: unreadable.generation,
        conditions: conditions(&report, &[], unreadable.generation, clock::now()),
        ..FunctionKeyStatus::default()
    };
    let owner = Owner {
        name: name.name.clone(),
        uid: unreadable.uid,
    };
    match k8s::status::replace(&context.client, &name.namespace, &owner, &status).await {
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 422) => Ok(None),
        answer => answer
            .map(|()| None)
            .context(error::StatusSnafu { name: &owner.name }),
    }
}

/// An object that holds values, if it carries our label with this content: unlabelled ones are not
/// cached. One that nobody has seen is taken to be absent: making it tells whether that is so, and
/// costs one request instead of two.
async fn observe_labelled(
    context: &Context,
    object: &StoreRef,
    label: &str,
) -> Result<Option<Arc<Observed>>, Error> {
    let observed = context.cache.lock().object(object);
    match observed {
        // Cached without the entries that matter here: read it whole.
        Some(observed) if observed.content.as_deref() != Some(label) => Ok(context
            .objects
            .get(object)
            .await
            .context(error::ReadSnafu {
                object: object.clone(),
            })?
            .map(Arc::new)),
        observed => Ok(observed),
    }
}
