//! Answers of the apiserver, kept for a short while.
//!
//! - Whoever asks for the same at the same time waits for one answer; so a decision that runs out
//!   under load is asked for once.
//! - An answer's age counts from when it was asked for: it may be older than its arrival. That there
//!   was none counts from when it was known, so that whoever waited for it need not wait again.
//! - After [`Cache::invalidate`] nothing that was asked before is used for whoever comes then, and for
//!   a while answers live briefly: the apiserver itself decides by a cache that lags behind what we
//!   heard. What is forgotten in one place is known in the others.
//! - There are never more entries than the capacity; those that nobody has asked for longest go
//!   first, so that a flood of what is asked for once leaves what is asked for often.

use std::{
    collections::HashMap,
    mem,
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

/// At most so many values; those that nobody has looked at for longest go first.
pub struct Bounded<V> {
    capacity: usize,
    /// Those that were looked at since `old` was young.
    young: HashMap<Key, V>,
    old: HashMap<Key, V>,
}

impl<V> Bounded<V> {
    /// Room for this many.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// The value that is found by this.
    pub fn get(&mut self, key: &Key) -> Option<&V> {
        if let Some(value) = self.old.remove(key) {
            self.insert(*key, value);
        }
        self.young.get(key)
    }

    /// Keeps a value, in place of the one that was found by this.
    pub fn insert(&mut self, key: Key, value: V) {
        if self.young.len() >= self.capacity / 2 && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
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
    slots: Bounded<Arc<Slot<V>>>,
    /// What was forgotten everywhere.
    all: Turn,
    /// What was forgotten in one place.
    places: HashMap<Box<str>, Turn>,
}

/// How often answers were forgotten, and until when they live briefly.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    epoch: u64,
    unsettled_until: Option<Instant>,
}

impl Turn {
    fn next(&mut self) {
        self.epoch += 1;
        self.unsettled_until = Some(Instant::now() + UNSETTLED);
    }
}

impl<V> Entries<V> {
    /// Turns only ever grow, so that their sum tells them apart.
    fn turn(&self, place: &str) -> Turn {
        let one = self.places.get(place).copied().unwrap_or_default();
        Turn {
            epoch: self.all.epoch + one.epoch,
            unsettled_until: self.all.unsettled_until.max(one.unsettled_until),
        }
    }
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
                slots: Bounded::new(capacity),
                all: Turn::default(),
                places: HashMap::new(),
            }),
        }
    }

    /// The answer that is kept, or the one that asking gives, which is kept for as long as `keep`
    /// says. The place is that of [`Cache::invalidate`].
    pub async fn get(
        &self,
        place: &str,
        key: Key,
        keep: impl Fn(&V) -> Keep,
        asking: impl Future<Output = V>,
    ) -> V {
        let (slot, arrived) = self.slot(place, key);
        let mut kept = slot.lock().await;
        // Who waited here while everything was forgotten may take what was asked since they came.
        if let Some(kept) = &*kept
            && kept.epoch >= arrived.epoch
            && Instant::now() < kept.until
        {
            return kept.value.clone();
        }
        let (now, epoch) = (Instant::now(), self.lock().turn(place).epoch);
        let value = asking.await;
        let unsettled = self.lock().turn(place).unsettled_until;
        let unsettled = unsettled.is_some_and(|until| now < until);
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

    /// Nothing that was asked before now is used any more, in one place or in all.
    pub fn invalidate(&self, place: Option<&str>) {
        let mut entries = self.lock();
        let Some(place) = place else {
            entries.all.next();
            return;
        };
        if entries.places.len() >= self.capacity && !entries.places.contains_key(place) {
            // Too many places to remember: the sums must not fall.
            let most = entries.places.values().map(|turn| turn.epoch).max();
            entries.all.epoch += most.unwrap_or_default();
            entries.all.next();
            entries.places.clear();
        }
        entries.places.entry(place.into()).or_default().next();
    }

    fn slot(&self, place: &str, key: Key) -> (Arc<Slot<V>>, Turn) {
        let mut entries = self.lock();
        let turn = entries.turn(place);
        if let Some(slot) = entries.slots.get(&key) {
            return (Arc::clone(slot), turn);
        }
        let slot = Arc::default();
        entries.slots.insert(key, Arc::clone(&slot));
        (slot, turn)
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
            .get("", key(name), |_| Keep::Asked(KEEP), counter.ask())
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
            cache.invalidate(None);
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
        futures::future::join_all((0..50).map(|_| cache.get("", key("a"), silence, slow()))).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(500)).await;
        cache.get("", key("a"), silence, slow()).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(4500));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_in_one_place_is_known_in_the_others() {
        let (cache, counter) = (Cache::new(8), Counter::default());
        let get = async |place: &str| {
            let keep = |_: &u32| Keep::Asked(KEEP);
            cache.get(place, key(place), keep, counter.ask()).await
        };
        assert_eq!((get("shop").await, get("front").await), (1, 2));
        cache.invalidate(Some("shop"));
        assert_eq!((get("shop").await, get("front").await), (3, 2));
        // More places than can be remembered: then everything is forgotten, never too little.
        for other in 0..8 {
            cache.invalidate(Some(&format!("other-{other}")));
        }
        assert_eq!((get("shop").await, get("front").await), (4, 5));
        cache.invalidate(None);
        assert_eq!((get("shop").await, get("front").await), (6, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_changes_makes_nobody_ask_in_turn() {
        let (cache, counter) = (Cache::new(8), Counter::default());
        let begun = Instant::now();
        let storm = async {
            for _ in 0..200 {
                cache.invalidate(None);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let all = futures::future::join_all((0..50).map(|_| get(&cache, "a", &counter)));
        let ((), answers) = tokio::join!(storm, all);
        // They all came at the same time, and one answer was asked for since.
        assert!(answers.iter().all(|answer| *answer == 1), "{answers:?}");
        assert_eq!(begun.elapsed(), Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_answers_than_the_capacity_and_those_in_use_stay() {
        let (cache, counter) = (Cache::new(8), Counter::default());
        let often = get(&cache, "often", &counter).await;
        for number in 0..100 {
            let name = number.to_string();
            let keep = |_: &u32| Keep::Asked(Duration::from_hours(1));
            cache.get("", key(&name), keep, counter.ask()).await;
            let keep = |_: &u32| Keep::Asked(Duration::from_hours(1));
            let found = cache.get("", key("often"), keep, counter.ask()).await;
            assert_eq!(found, often);
            let entries = cache.lock();
            assert!(entries.slots.young.len() + entries.slots.old.len() <= 8);
        }
        let before = get(&cache, "99", &counter).await;
        assert_eq!(get(&cache, "99", &counter).await, before);
        assert!(get(&cache, "0", &counter).await > before, "long forgotten");
    }
}
