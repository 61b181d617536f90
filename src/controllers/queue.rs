//! The work queue: what is to be looked at, when, and how many at once.
//!
//! Requests for the same item that come close together make one look; an item is never looked at
//! twice at once; an item whose look failed is looked at again after a growing pause.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    hash::Hash,
    pin::pin,
    sync::Mutex,
    time::Duration,
};

use futures::{StreamExt, channel::mpsc, stream::FuturesUnordered};
use kube::runtime::scheduler::{ScheduleRequest, debounced_scheduler};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Requests closer together than this make one look: a `kubectl apply` of many keys of one store
/// becomes one write.
const DEBOUNCE: Duration = Duration::from_millis(75);

/// Requests that keep following one another do not put a look off for longer than this: others may
/// write to an object all the time.
const LONGEST_DEBOUNCE: Duration = Duration::from_secs(1);

/// However far the next look lies, the clock is looked at this often: it may have been moved, or
/// the machine may have slept. A look that finds nothing to do asks the apiserver nothing.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(8);

/// Where to put items.
pub struct Queue<T> {
    requests: mpsc::UnboundedSender<ScheduleRequest<T>>,
    attempts: Mutex<HashMap<T, u32>>,
    /// Since when a look has been asked for that has not begun.
    asked: Mutex<HashMap<T, Instant>>,
}

/// Where items come out.
pub type Requests<T> = mpsc::UnboundedReceiver<ScheduleRequest<T>>;

impl<T: Clone + Eq + Hash> Queue<T> {
    /// An empty queue.
    pub fn new() -> (Self, Requests<T>) {
        let (requests, receiver) = mpsc::unbounded();
        (
            Self {
                requests,
                attempts: Mutex::default(),
                asked: Mutex::default(),
            },
            receiver,
        )
    }

    /// Looks at the item as soon as possible.
    pub fn soon(&self, item: T) {
        let now = Instant::now();
        let since = *self
            .asked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .entry(item.clone())
            .or_insert(now);
        // A look is asked for already, and this is not to put it off again.
        if now - since < LONGEST_DEBOUNCE {
            self.after(item, Duration::ZERO);
        }
    }

    /// To be called before a look observes anything: what is asked for from now on takes another.
    pub fn begun(&self, item: &T) {
        self.asked
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(item);
    }

    /// Looks at the item after a while, or earlier if something else asks for it.
    pub fn after(&self, item: T, wait: Duration) {
        let run_at = Instant::now() + wait.min(LONGEST_WAIT);
        // A queue whose reader is gone is that of a process that is stopping.
        let _ = self.requests.unbounded_send(ScheduleRequest {
            message: item,
            run_at,
        });
    }

    /// Looks at the item again because the last look failed; the pause doubles with every failure
    /// in a row.
    pub fn retry(&self, item: T) {
        let attempt = {
            let mut attempts = self
                .attempts
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let attempt = attempts.entry(item.clone()).or_default();
            *attempt += 1;
            *attempt
        };
        self.after(
            item,
            FIRST_RETRY
                .saturating_mul(1 << (attempt - 1).min(16))
                .min(LONGEST_RETRY),
        );
    }

    /// Forgets earlier failures of the item.
    pub fn succeeded(&self, item: &T) {
        self.attempts
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(item);
    }
}

/// Takes items out of the queue and looks at up to `workers` of them at once, until `stop`; those
/// under way are finished.
pub async fn run<T, Look, Looking>(
    requests: Requests<T>,
    workers: usize,
    stop: CancellationToken,
    look: Look,
) where
    T: Clone + Eq + Hash + Send + 'static,
    Look: Fn(T) -> Looking,
    Looking: Future<Output = ()> + Send + 'static,
{
    let mut scheduler = pin!(debounced_scheduler(requests, DEBOUNCE));
    let mut active: HashSet<T> = HashSet::new();
    let mut running = FuturesUnordered::new();
    loop {
        let free = running.len() < workers;
        let idle = |item: &T| !active.contains(item);
        let mut next = scheduler.as_mut().hold_unless(idle);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(item) = running.next() => {
                active.remove(&item);
            }
            item = next.next(), if free => {
                let Some(item) = item else { break };
                active.insert(item.clone());
                let looking = tokio::spawn(look(item.clone()));
                running.push(async move {
                    if let Err(failure) = looking.await
                        && failure.is_panic()
                    {
                        tracing::error!("a look at an item panicked; it is looked at again when something asks for it");
                    }
                    item
                });
            }
        }
    }
    while running.next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_close_together_make_one_look_and_no_item_is_looked_at_twice_at_once() {
        let (queue, requests) = Queue::new();
        let queue = Arc::new(queue);
        let looks = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let seen = Arc::clone(&looks);
        let worker = tokio::spawn(run(requests, 4, stop.clone(), move |item: &str| {
            let seen = Arc::clone(&seen);
            async move {
                seen.lock().unwrap().push((item, "begin"));
                tokio::time::sleep(Duration::from_secs(1)).await;
                seen.lock().unwrap().push((item, "end"));
            }
        }));
        for _ in 0..100 {
            queue.soon("a");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        queue.soon("a");
        queue.soon("b");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let a: Vec<&str> = looks
            .lock()
            .unwrap()
            .iter()
            .filter(|(item, _)| *item == "a")
            .map(|(_, what)| *what)
            .collect();
        assert_eq!(a, ["begin", "end", "begin", "end"]);
        stop.cancel();
        worker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_never_cease_do_not_put_a_look_off_for_ever() {
        let (queue, requests) = Queue::new();
        let queue = Arc::new(queue);
        let looks = Arc::new(Mutex::new(0));
        let stop = CancellationToken::new();
        let (seen, begun) = (Arc::clone(&looks), Arc::clone(&queue));
        let worker = tokio::spawn(run(requests, 4, stop.clone(), move |item: &str| {
            begun.begun(&item);
            *seen.lock().unwrap() += 1;
            async {}
        }));
        for _ in 0..500 {
            queue.soon("a");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!((8..=10).contains(&*looks.lock().unwrap()), "{looks:?}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = *looks.lock().unwrap();
        queue.soon("a");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(*looks.lock().unwrap(), before + 1);
        stop.cancel();
        worker.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_looks_requests_do_not_pile_up() {
        let (queue, mut requests) = Queue::new();
        for _ in 0..10_000 {
            queue.soon("a");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut piled = 0;
        while requests.try_recv().is_ok() {
            piled += 1;
        }
        assert!(piled <= 50, "{piled}");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_between_failures_grow_and_are_forgotten_after_a_success() {
        let (queue, mut requests) = Queue::new();
        let mut wait = || {
            requests
                .try_recv()
                .map(|request| request.run_at - Instant::now())
                .unwrap()
        };
        queue.retry("a");
        assert_eq!(wait(), FIRST_RETRY);
        queue.retry("a");
        assert_eq!(wait(), FIRST_RETRY * 2);
        for _ in 0..40 {
            queue.retry("a");
            assert!(wait() <= LONGEST_RETRY);
        }
        queue.succeeded(&"a");
        queue.retry("a");
        assert_eq!(wait(), FIRST_RETRY);
    }
}
