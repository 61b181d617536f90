//! Answers of the apiserver, kept for a short while.
//!
//! - Whoever asks for the same at the same time waits for one answer; so a decision that runs out
//!   under load is asked for once.
//! - An answer's age counts from when it was asked for: it may be older than its arrival. That there
//!   was none counts from when it was known, so that whoever waited for it need not wait again.
//! - After [`Cache::invalidate`] nothing that was asked before is used, and for a while answers live
//!   briefly: the apiserver itself decides by a cache that lags behind what we heard.
//! - There are never more entries than the capacity; the oldest go first.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// How long answers live briefly after an invalidation.
pub const UNSETTLED: Duration = Duration::from_secs(5);
/// How long an answer lives then.
pub const BRIEFLY: Duration = Duration::from_millis(200);

/// What an answer is found by: a digest, so that no token is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The digest of these parts.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }
}

/// How long an answer is kept.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// From when it was asked for.
    Asked(Duration),
    /// From when it came: it says that there was none.
    Came(Duration),
}

/// Answers by what was asked.
pub struct Cache<V> {
    capacity: usize,
    entries: Mutex<Entries<V>>,
}

struct Entries<V> {
    slots: HashMap<Key, Arc<Slot<V>>>,
    order: VecDeque<Key>,
    epoch: u64,
    unsettled_until: Option<Instant>,
}

type Slot<V> = tokio::sync::Mutex<Option<Kept<V>>>;

struct Kept<V> {
    value: V,
    epoch: u64,
    until: Instant,
}

impl<V: Clone> Cache<V> {
    /// A cache of at most so many answers.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: Mutex::new(Entries {
                slots: HashMap::new(),
                order: VecDeque::new(),
                epoch: 0,
                unsettled_until: None,
            }),
        }
    }

    /// The answer that is kept, or the one that asking gives, which is kept for as long as `keep`
    /// says.
    pub async fn get(
        &self,
        key: Key,
        keep: impl Fn(&V) -> Keep,
        asking: impl Future<Output = V>,
    ) -> V {
        let slot = self.slot(key);
        let mut kept = slot.lock().await;
        let (now, epoch) = (Instant::now(), self.lock().epoch);
        if let Some(kept) = &*kept
            && kept.epoch == epoch
            && now < kept.until
        {
            return kept.value.clone();
        }
        let value = asking.await;
        let unsettled = self.lock().unsettled_until.is_some_and(|until| now < until);
        let until = match keep(&value) {
            Keep::Asked(lives) if unsettled => now + lives.min(BRIEFLY),
            Keep::Asked(lives) => now + lives,
            Keep::Came(lives) => Instant::now() + lives,
        };
        *kept = Some(Kept {
            value: value.clone(),
            epoch,
            until,
        });
        value
    }

    /// Nothing that was asked before now is used any more.
    pub fn invalidate(&self) {
        let mut entries = self.lock();
        entries.epoch += 1;
        entries.unsettled_until = Some(Instant::now() + UNSETTLED);
    }

    fn slot(&self, key: Key) -> Arc<Slot<V>> {
        let mut entries = self.lock();
        if let Some(slot) = entries.slots.get(&key) {
            return Arc::clone(slot);
        }
        if entries.slots.len() >= self.capacity
            && let Some(oldest) = entries.order.pop_front()
        {
            entries.slots.remove(&oldest);
        }
        let slot = Arc::default();
        entries.slots.insert(key, Arc::clone(&slot));
        entries.order.push_back(key);
        slot
    }

    fn lock(&self) -> MutexGuard<'_, Entries<V>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const KEEP: Duration = Duration::from_secs(10);

    fn key(name: &str) -> Key {
        Key::of(&[name.as_bytes()])
    }

    /// Answers how often it was asked.
    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Counter {
        async fn ask(&self) -> u32 {
            let count = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
            count
        }
    }

    async fn get(cache: &Cache<u32>, name: &str, counter: &Counter) -> u32 {
        cache
            .get(key(name), |_| Keep::Asked(KEEP), counter.ask())
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_used_until_its_time_and_asked_for_once() {
        let (cache, counter) = (Cache::new(8), Counter::default());
        let all = futures::future::join_all((0..50).map(|_| get(&cache, "a", &counter))).await;
        assert!(all.iter().all(|answer| *answer == 1));
        // Its age counts from the question, 50 ms ago.
        tokio::time::sleep(Duration::from_millis(9940)).await;
        assert_eq!(get(&cache, "a", &counter).await, 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(get(&cache, "a", &counter).await, 2);
        assert_ne!(Key::of(&[b"ab", b"c"]), Key::of(&[b"a", b"bc"]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_before_an_invalidation_is_not_used_after_it() {
        let (cache, counter) = (Cache::new(8), Counter::default());
        let (first, ()) = tokio::join!(get(&cache, "a", &counter), async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            cache.invalidate();
        });
        assert_eq!(first, 1);
        assert_eq!(get(&cache, "a", &counter).await, 2);
        // Briefly, then anew.
        assert_eq!(get(&cache, "a", &counter).await, 2);
        tokio::time::sleep(BRIEFLY).await;
        assert_eq!(get(&cache, "a", &counter).await, 3);
        // What was asked in that while is gone soon after it, too.
        tokio::time::sleep(Duration::from_millis(4500)).await;
        assert_eq!(get(&cache, "a", &counter).await, 4);
        tokio::time::sleep(BRIEFLY).await;
        assert_eq!(get(&cache, "a", &counter).await, 5);
        // Then all is as before.
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(get(&cache, "a", &counter).await, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waited_in_vain_with_others_waits_once() {
        let cache = Cache::new(8);
        let begun = Instant::now();
        let silence = |_: &u32| Keep::Came(Duration::from_millis(500));
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            7
        };
        futures::future::join_all((0..50).map(|_| cache.get(key("a"), silence, slow()))).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(500)).await;
        cache.get(key("a"), silence, slow()).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(4500));
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_answers_than_the_capacity() {
        let (cache, counter) = (Cache::new(4), Counter::default());
        for number in 0..100 {
            get(&cache, &number.to_string(), &counter).await;
            let entries = cache.lock();
            assert!(entries.slots.len() <= 4 && entries.order.len() == entries.slots.len());
        }
        assert_eq!(get(&cache, "99", &counter).await, 100);
        assert_eq!(get(&cache, "0", &counter).await, 101);
    }
}
