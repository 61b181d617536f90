//! How much the apiserver is asked at once. A token that nobody has seen costs it a signature to verify,
//! a name that nobody has asked for costs it a decision, and whoever sends nonsense in the right form
//! makes one of them for each request.
//!
//! - Nobody has more than their share, so that whoever floods waits behind themselves. Of a token it is
//!   the peer's, for who it is is not known yet; of a decision, the caller's.
//! - Issuers whose tokens the apiserver has never taken share a few places: they are another
//!   cluster's most often. They are asked about all the same, because a cluster's issuer may change.
//! - Whoever gets no place in [`PATIENCE`] is told to come again.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::server::listener::network;

/// Questions at once.
pub const ALL: usize = 64;
/// Questions at once of one peer or caller; of IPv6 of one /64.
pub const OF_ONE: usize = 16;
/// Reviews at once of tokens whose issuer is not known.
pub const OF_STRANGERS: usize = 4;
/// How long a question waits for its place.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Where questions wait for their turn.
pub struct Gate<K: Eq + Hash> {
    all: Arc<Semaphore>,
    /// Those who are here now.
    own: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// A place; it is free again when this is dropped.
pub struct Pass<'a, K: Eq + Hash> {
    gate: &'a Gate<K>,
    who: K,
    own: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash> Default for Gate<K> {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            own: Mutex::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Gate<K> {
    /// Waits for a place, and for one of a further line, if there is one; nothing if there is none in
    /// time.
    pub async fn enter(&self, who: K, further: Option<&Arc<Semaphore>>) -> Option<Pass<'_, K>> {
        let own = {
            let mut all = lock(&self.own);
            let own = all.entry(who.clone());
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(OF_ONE))))
        };
        let mut pass = Pass {
            gate: self,
            who,
            own: Arc::clone(&own),
            permits: Vec::new(),
        };
        // One's own line first: nobody holds a place of others while waiting for one of one's own.
        let lines = std::iter::once(own)
            .chain(further.cloned())
            .chain([Arc::clone(&self.all)]);
        let waiting = async {
            for line in lines {
                pass.permits.push(line.acquire_owned().await.ok()?);
            }
            Some(pass)
        };
        tokio::time::timeout(PATIENCE, waiting).await.ok().flatten()
    }
}

impl<K: Eq + Hash> Drop for Pass<'_, K> {
    fn drop(&mut self) {
        self.permits.clear();
        let mut all = lock(&self.gate.own);
        // What is left is the map's and ours.
        if Arc::strong_count(&self.own) == 2 {
            all.remove(&self.who);
        }
    }
}

/// Where tokens wait to be reviewed.
pub struct TokenGate {
    /// Requests that came by no connection are one peer.
    peers: Gate<Option<IpAddr>>,
    strangers: Arc<Semaphore>,
    /// Issuers whose tokens the apiserver has taken: there are no more than it is told of.
    issuers: Mutex<BTreeSet<String>>,
}

impl Default for TokenGate {
    fn default() -> Self {
        Self {
            peers: Gate::default(),
            strangers: Arc::new(Semaphore::new(OF_STRANGERS)),
            issuers: Mutex::default(),
        }
    }
}

impl TokenGate {
    /// Waits for a place; nothing if there is none in time.
    pub async fn enter(
        &self,
        peer: Option<IpAddr>,
        issuer: &str,
    ) -> Option<Pass<'_, Option<IpAddr>>> {
        let is_known = lock(&self.issuers).contains(issuer);
        let further = (!is_known).then_some(&self.strangers);
        self.peers.enter(peer.map(network), further).await
    }

    /// The apiserver has taken a token of this issuer.
    pub fn met(&self, issuer: &str) {
        let mut issuers = lock(&self.issuers);
        if !issuers.contains(issuer) {
            issuers.insert(issuer.to_owned());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "https://kubernetes.default.svc";

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_waits_behind_itself_and_nobody_else_does() {
        let gate = TokenGate::default();
        gate.met(OURS);
        let mut held = Vec::new();
        for _ in 0..OF_ONE {
            held.push(gate.enter(Some(peer(1)), OURS).await.unwrap());
        }
        let begun = tokio::time::Instant::now();
        let (own, other) = tokio::join!(gate.enter(Some(peer(1)), OURS), async {
            let pass = gate.enter(Some(peer(2)), OURS).await;
            assert_eq!(begun.elapsed(), Duration::ZERO);
            pass
        });
        assert!(own.is_none() && other.is_some());
        assert_eq!(begun.elapsed(), PATIENCE);
        held.pop();
        assert!(gate.enter(Some(peer(1)), OURS).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_leave_room_for_those_who_are_known() {
        let gate = TokenGate::default();
        gate.met(OURS);
        let mut held = Vec::new();
        for number in 0..OF_STRANGERS {
            let number = u8::try_from(number).unwrap();
            held.push(
                gate.enter(Some(peer(number)), "https://other")
                    .await
                    .unwrap(),
            );
        }
        assert!(gate.enter(Some(peer(100)), "https://other").await.is_none());
        assert!(gate.enter(Some(peer(100)), OURS).await.is_some());
        // One that turns out to be known is let in like the others.
        gate.met("https://other");
        assert!(gate.enter(Some(peer(100)), "https://other").await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_than_all_and_whoever_left_is_forgotten() {
        let gate = TokenGate::default();
        gate.met(OURS);
        let mut held = Vec::new();
        for number in 0..ALL {
            let number = u8::try_from(number).unwrap();
            held.push(gate.enter(Some(peer(number)), OURS).await.unwrap());
        }
        assert!(gate.enter(Some(peer(200)), OURS).await.is_none());
        assert_eq!(lock(&gate.peers.own).len(), ALL);
        // One that went away while it waited.
        let gone =
            tokio::time::timeout(Duration::from_millis(1), gate.enter(Some(peer(201)), OURS));
        assert!(gone.await.is_err());
        assert_eq!(lock(&gate.peers.own).len(), ALL);
        held.clear();
        assert!(lock(&gate.peers.own).is_empty());
        assert_eq!(gate.peers.all.available_permits(), ALL);
        assert!(gate.enter(Some(peer(200)), OURS).await.is_some());
    }
}
