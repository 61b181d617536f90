//! How many tokens the apiserver is asked about at once. A token that nobody has seen costs it a
//! signature to verify, and whoever sends nonsense in the right form makes one for each request.
//!
//! - No peer has more than its share, so that whoever floods waits behind itself.
//! - Issuers whose tokens the apiserver has never taken share a few places: they are another
//!   cluster's most often. They are asked about all the same, because a cluster's issuer may change.
//! - Whoever gets no place in [`PATIENCE`] is told to come again.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::server::listener::network;

/// Reviews at once.
pub const ALL: usize = 64;
/// Reviews at once for one peer; of IPv6 for one /64.
pub const OF_A_PEER: usize = 16;
/// Reviews at once of tokens whose issuer is not known.
pub const OF_STRANGERS: usize = 4;
/// How long a review waits for its place.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Where reviews wait for their turn.
pub struct Gate {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    /// Those who are here now. Requests that came by no connection are one peer.
    peers: Mutex<HashMap<Option<IpAddr>, Arc<Semaphore>>>,
    /// Issuers whose tokens the apiserver has taken: there are no more than it is told of.
    issuers: Mutex<BTreeSet<String>>,
}

/// A place; it is free again when this is dropped.
pub struct Pass<'a> {
    gate: &'a Gate,
    peer: Option<IpAddr>,
    own: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            strangers: Arc::new(Semaphore::new(OF_STRANGERS)),
            peers: Mutex::default(),
            issuers: Mutex::default(),
        }
    }
}

impl Gate {
    /// Waits for a place; nothing if there is none in time.
    pub async fn enter(&self, peer: Option<IpAddr>, issuer: &str) -> Option<Pass<'_>> {
        let peer = peer.map(network);
        let own = {
            let mut peers = lock(&self.peers);
            let own = peers.entry(peer);
            Arc::clone(own.or_insert_with(|| Arc::new(Semaphore::new(OF_A_PEER))))
        };
        let mut pass = Pass {
            gate: self,
            peer,
            own: Arc::clone(&own),
            permits: Vec::new(),
        };
        // One's own line first: nobody holds a place of others while waiting for one of one's own.
        let mut lines = vec![own];
        if !lock(&self.issuers).contains(issuer) {
            lines.push(Arc::clone(&self.strangers));
        }
        lines.push(Arc::clone(&self.all));
        let waiting = async {
            for line in lines {
                pass.permits.push(line.acquire_owned().await.ok()?);
            }
            Some(pass)
        };
        tokio::time::timeout(PATIENCE, waiting).await.ok().flatten()
    }

    /// The apiserver has taken a token of this issuer.
    pub fn met(&self, issuer: &str) {
        let mut issuers = lock(&self.issuers);
        if !issuers.contains(issuer) {
            issuers.insert(issuer.to_owned());
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.permits.clear();
        let mut peers = lock(&self.gate.peers);
        // What is left is the map's and ours.
        if Arc::strong_count(&self.own) == 2 {
            peers.remove(&self.peer);
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
        let gate = Gate::default();
        gate.met(OURS);
        let mut held = Vec::new();
        for _ in 0..OF_A_PEER {
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
        let gate = Gate::default();
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
        let gate = Gate::default();
        gate.met(OURS);
        let mut held = Vec::new();
        for number in 0..ALL {
            let number = u8::try_from(number).unwrap();
            held.push(gate.enter(Some(peer(number)), OURS).await.unwrap());
        }
        assert!(gate.enter(Some(peer(200)), OURS).await.is_none());
        assert_eq!(lock(&gate.peers).len(), ALL);
        // One that went away while it waited.
        let gone =
            tokio::time::timeout(Duration::from_millis(1), gate.enter(Some(peer(201)), OURS));
        assert!(gone.await.is_err());
        assert_eq!(lock(&gate.peers).len(), ALL);
        held.clear();
        assert!(lock(&gate.peers).is_empty());
        assert_eq!(gate.all.available_permits(), ALL);
        assert!(gate.enter(Some(peer(200)), OURS).await.is_some());
    }
}
