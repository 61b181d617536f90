//! What Claviger does by itself: observe, decide (in `domain`), perform, report.
//!
//! There is one queue of items for all kinds; a look at an item knows nothing of why it was asked
//! for. What it finds out may call for a look at another; nothing is passed along, each observes for
//! itself.

pub mod context;
pub mod declarations;
pub mod error;
pub mod function_key;
pub mod naming;
pub mod objects;
pub mod queue;
pub mod role_assignment;
pub mod secret_vault;
pub mod source;
pub mod watch;
pub mod workload;

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    api::convert::{StoreRef, Workload},
    clock,
    controllers::{
        context::Context,
        error::Class,
        function_key::{client, store},
        naming::Name,
        queue::Requests,
        secret_vault::target,
    },
};

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A `RoleAssignment`.
    Assignment(Name),
    /// A client's Secret.
    Client(Name),
    /// An app's key store.
    Store(StoreRef),
    /// A Secret into which a vault's values are synced.
    Target(Name),
    /// A `FunctionKey` that cannot be read.
    Unreadable(Name),
    /// A `RoleAssignment` that cannot be read.
    UnreadableAssignment(Name),
    /// A `SecretVault` that cannot be read.
    UnreadableVault(Name),
    /// A vault.
    Vault(Name),
    /// A workload that restarts.
    Workload(Workload),
}

impl Item {
    fn kind(&self) -> &'static str {
        match self {
            Self::Assignment(_) => "assignment",
            Self::Client(_) => "client",
            Self::Store(_) => "store",
            Self::Target(_) => "target",
            Self::Unreadable(_) | Self::UnreadableAssignment(_) | Self::UnreadableVault(_) => {
                "unreadable"
            }
            Self::Vault(_) => "vault",
            Self::Workload(_) => "workload",
        }
    }
}

/// Looks at everything once, then at whatever changes, until `stop`. Call it when the caches are
/// filled and this process leads.
pub async fn run(
    context: Arc<Context>,
    requests: Requests<Item>,
    rewraps: Requests<Name>,
    stop: CancellationToken,
) {
    for item in function_key::everything(&context)
        .into_iter()
        .chain(secret_vault::everything(&context))
        .chain(role_assignment::everything(&context))
    {
        context.queue.soon(item);
    }
    let workers = context.settings.workers;
    let rewrapping = secret_vault::rewrap::run(Arc::clone(&context), rewraps, stop.clone());
    let looking = queue::run(requests, workers, stop, move |item| {
        look(Arc::clone(&context), item)
    });
    tokio::join!(looking, rewrapping);
}

async fn look(context: Arc<Context>, item: Item) {
    context.queue.begun(&item);
    let begun = Instant::now();
    let kind = item.kind();
    let result = Box::pin(async {
        match &item {
            Item::Assignment(name) => role_assignment::look(&context, name).await,
            Item::Client(client) => client::look(&context, client).await,
            Item::Store(store) => store::look(&context, store).await,
            Item::Target(target) => target::look(&context, target).await,
            Item::Unreadable(name) => function_key::tell_unreadable(&context, name).await,
            Item::UnreadableAssignment(name) => {
                role_assignment::tell_unreadable(&context, name).await
            }
            Item::UnreadableVault(name) => secret_vault::tell_unreadable(&context, name).await,
            Item::Vault(vault) => secret_vault::look(&context, vault).await,
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

fn until(at: Timestamp) -> std::time::Duration {
    at.duration_since(clock::now())
        .try_into()
        .unwrap_or_default()
}
