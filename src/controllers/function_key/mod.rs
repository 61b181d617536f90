//! The `FunctionKey` controller.
//!
//! Three kinds of item are looked at, each knowing nothing of why:
//! - a [`store`]: all keys of one app together, one write for all of them;
//! - a [`client`]: all copies in one client's Secret together;
//! - a [`workload`]: one restart for all changes under it.
//!
//! What a look at one finds out may call for a look at another; nothing is passed along, each
//! observes for itself.

pub mod cache;
pub mod client;
pub mod error;
pub mod report;
pub mod store;
pub mod watch;
pub mod workload;

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use snafu::ResultExt;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        CONTENT_COPIES,
        condition::{Reason, Report, State, conditions},
        convert::{StoreRef, Workload},
        v1alpha1::FunctionKeyStatus,
    },
    clock,
    controllers::{
        context::Context,
        function_key::{
            cache::Name,
            error::{Class, Error},
        },
        queue::{self, Requests},
    },
    domain::ledger::Owner,
    k8s::{self, object::Observed},
};

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A client's Secret.
    Client(Name),
    /// An app's key store.
    Store(StoreRef),
    /// A resource that cannot be read.
    Unreadable(Name),
    /// A workload that restarts.
    Workload(Workload),
}

impl Item {
    fn kind(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Store(_) => "store",
            Self::Unreadable(_) => "unreadable",
            Self::Workload(_) => "workload",
        }
    }
}

/// Looks at everything once, then at whatever changes, until `stop`. Call it when the caches are
/// filled and this process leads.
pub async fn run(context: Arc<Context>, requests: Requests<Item>, stop: CancellationToken) {
    for item in everything(&context) {
        context.queue.soon(item);
    }
    let workers = context.settings.workers;
    queue::run(requests, workers, stop, move |item| {
        look(Arc::clone(&context), item)
    })
    .await;
}

fn everything(context: &Context) -> Vec<Item> {
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
        items.insert(if observed.content.as_deref() == Some(CONTENT_COPIES) {
            Item::Client(Name::new(&*object.namespace, &*object.name))
        } else {
            Item::Store(object.clone())
        });
    }
    items.into_iter().collect()
}

async fn look(context: Arc<Context>, item: Item) {
    context.queue.begun(&item);
    let begun = Instant::now();
    let kind = item.kind();
    let result = Box::pin(async {
        match &item {
            Item::Client(client) => client::look(&context, client).await,
            Item::Store(store) => store::look(&context, store).await,
            Item::Unreadable(name) => tell_unreadable(&context, name).await,
            Item::Workload(workload) => workload::look(&context, workload).await,
        }
    })
    .await;
    context.metrics.reconciled(kind, begun.elapsed());
    match result {
        Ok(next) => {
            context.queue.succeeded(&item);
            if let Some(at) = next {
                context.queue.after(item, until(at));
            }
        }
        Err(error) => {
            context.metrics.failed(kind, error.category());
            error.log(&item);
            match error.class() {
                Class::Conflict | Class::Refused | Class::Transient => context.queue.retry(item),
            }
        }
    }
}

/// Says in the status of a resource that it cannot be read.
async fn tell_unreadable(context: &Context, name: &Name) -> Result<Option<Timestamp>, Error> {
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

fn until(at: Timestamp) -> std::time::Duration {
    at.duration_since(clock::now())
        .try_into()
        .unwrap_or_default()
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
