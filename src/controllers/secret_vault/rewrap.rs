//! Re-wrapping: data keys under earlier versions of the ring are put under the newest, a batch at a
//! time, at a bounded pace. Payloads are neither read nor written, and everything that the new
//! envelope binds comes from the old one, verified.
//!
//! Nothing is remembered between batches: what is left to do is what is not under the newest version,
//! so a kill at any point loses nothing but the batch.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use snafu::ResultExt;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{cache, ring};
use crate::{
    controllers::{
        Item,
        context::Context,
        error::{Error, WriteEntrySnafu},
        naming::Name,
        queue::{self, Requests},
        secret_vault::ring::OpenRing,
    },
    domain::vault::{
        attributes::Attributes,
        envelope::{Envelope, RingKey},
        history::{Entry, History},
        name::{NameHash, object_name},
    },
};

/// How many data keys of a vault are re-wrapped at once.
const AT_ONCE: usize = 16;
/// How many vaults are: more share the same pace.
const VAULTS_AT_ONCE: usize = 2;

/// How fast data keys are re-wrapped, by this process in all.
pub struct Pace {
    per_second: u32,
    /// When the next one may begin.
    next: Mutex<Instant>,
}

impl Pace {
    /// So many in a second.
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second: per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// How many make a batch: what a second allows.
    fn batch(&self) -> usize {
        usize::try_from(self.per_second)
            .unwrap_or(usize::MAX)
            .clamp(1, 1000)
    }

    /// Waits for this one's turn.
    async fn take(&self) {
        let at = {
            let mut next = self.next.lock().await;
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs(1) / self.per_second;
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

/// How far a re-wrap is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries under the newest version.
    pub done: usize,
    /// All entries.
    pub of: usize,
    /// Entries that can be re-wrapped and are not yet.
    pub left: usize,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", grouped(self.done), grouped(self.of))
    }
}

/// A number with commas between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Re-wraps vaults that were asked for, one batch after another, until `stop`. It has a queue of its
/// own: waiting for the pace holds nobody else up.
pub async fn run(context: Arc<Context>, requests: Requests<Name>, stop: CancellationToken) {
    queue::run(requests, VAULTS_AT_ONCE, stop, move |name| {
        look(Arc::clone(&context), name)
    })
    .await;
}

async fn look(context: Arc<Context>, name: Name) {
    context.rewraps.begun(&name);
    let (vault, open) = {
        let state = context.vaults.lock();
        (state.vault(&name), state.open(&name))
    };
    let (Some(vault), Some(open)) = (vault, open) else {
        return;
    };
    if vault.suspended {
        return;
    }
    match batch(&context, &name, &open).await {
        Ok(left) => {
            context.rewraps.succeeded(&name);
            if left > 0 {
                context.rewraps.soon(name.clone());
            }
        }
        Err(error) => {
            context.metrics.failed("rewrap", error.category());
            error.log(&Item::Vault(name.clone()));
            context.rewraps.retry(name.clone());
        }
    }
    // It reports how far it is, and destroys what has become superfluous.
    context.queue.soon(Item::Vault(name));
}

/// Re-wraps a batch; answers how many are left.
///
/// # Errors
/// The first write that failed; all that did not fail stand. A few failures do not hold the rest of
/// the batch up.
async fn batch(context: &Context, name: &Name, open: &OpenRing) -> Result<usize, Error> {
    let Some(newest) = open.newest() else {
        return Ok(0);
    };
    let (waiting, left) = waiting(context, name, open, newest.version(), context.pace.batch());
    let mut outcomes = stream::iter(waiting)
        .map(|(hash, sequence, attributes)| async move {
            context.pace.take().await;
            one(context, name, open, hash, sequence, &attributes).await
        })
        .buffer_unordered(AT_ONCE);
    let mut failures = 0;
    let mut failure = None;
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome {
            failure = Some(failure.unwrap_or(error));
            failures += 1;
            if failures == AT_ONCE {
                break;
            }
        }
    }
    drop(outcomes);
    if let Some(error) = failure {
        return Err(error);
    }
    Ok(left)
}

/// An entry that is to be re-wrapped.
type Waiting = (NameHash, u32, Arc<Attributes>);

/// The next batch, and how many are left after it. What is not authentic is left as it is.
fn waiting(
    context: &Context,
    name: &Name,
    open: &OpenRing,
    newest: u32,
    most: usize,
) -> (Vec<Waiting>, usize) {
    let mut state = context.vaults.lock();
    let mut waiting = Vec::new();
    let mut left = 0;
    let mut before: Option<(NameHash, History)> = None;
    for (hash, sequence) in state.not_under(name, newest) {
        if before.as_ref().is_none_or(|(other, _)| *other != hash) {
            before = Some((hash, state.history(name, open, hash)));
        }
        let Some((_, history)) = &before else {
            continue;
        };
        if let Some(Entry::Authentic(attributes)) = history.0.get(&sequence) {
            if waiting.len() < most {
                waiting.push((hash, sequence, Arc::clone(attributes)));
            } else {
                left += 1;
            }
        }
    }
    (waiting, left)
}

/// How far the vault is.
pub fn progress(context: &Context, name: &Name, open: &OpenRing) -> Progress {
    let Some(newest) = open.newest() else {
        return Progress::default();
    };
    let in_use = context.vaults.lock().in_use(name);
    Progress {
        done: in_use.get(&newest.version()).copied().unwrap_or_default(),
        of: in_use.values().sum(),
        left: waiting(context, name, open, newest.version(), 0).1,
    }
}

async fn one(
    context: &Context,
    name: &Name,
    open: &OpenRing,
    hash: NameHash,
    sequence: u32,
    attributes: &Attributes,
) -> Result<(), Error> {
    let Some(held) = context.vaults.lock().held(name, hash, sequence) else {
        return Ok(());
    };
    let (Some(newest), Some(old)) = (open.newest(), open.key(held.ring)) else {
        return Ok(());
    };
    // The ring may have turned while this waited.
    let turned = context
        .vaults
        .lock()
        .open(name)
        .is_none_or(|now| now.newest().map(RingKey::version) != Some(newest.version()));
    if turned {
        return Ok(());
    }
    let Ok(envelope) = held.metadata.envelope.parse::<Envelope>() else {
        return Ok(());
    };
    let binding = cache::binding(open, &attributes.name, sequence, attributes);
    let text = &held.metadata.attributes;
    // Verified here once more, on the very bytes that are taken over.
    if old.verify(&binding, &envelope, text).is_err() {
        return Ok(());
    }
    let wrapped = match &envelope.wrapped {
        None => None,
        Some(wrapped) => match old.unwrap(&binding, wrapped) {
            Ok(key) => Some(newest.wrap(&binding, &key, ring::random())),
            Err(_) => return Ok(()),
        },
    };
    let rewrapped = Envelope {
        ring: newest.version(),
        mac: newest.mac(&binding, wrapped.as_ref(), text),
        wrapped,
    };
    let object = object_name(&name.name, hash, sequence);
    let metadata = context
        .vault_objects
        .amend_entry(
            &name.namespace,
            &object,
            &held.metadata.version,
            None,
            &rewrapped.to_string(),
        )
        .await;
    match metadata {
        Ok(metadata) => {
            context.vaults.lock().observe_entry(name, &object, metadata);
            context.metrics.rewrapped();
            Ok(())
        }
        // It is gone: nothing of it is left to re-wrap.
        Err(kube::Error::Api(status)) if status.code == 404 => {
            context.vaults.lock().lose_entry(name, &object, None);
            Ok(())
        }
        answer => answer.map(drop).context(WriteEntrySnafu { object }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_in_a_sentence() {
        let progress = Progress {
            done: 4120,
            of: 10_000,
            left: 5880,
        };
        assert_eq!(progress.to_string(), "4,120 of 10,000");
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept() {
        let pace = Pace::new(100);
        let begun = Instant::now();
        for _ in 0..201 {
            pace.take().await;
        }
        assert_eq!(begun.elapsed().as_millis() / 10, 200);
    }
}
