//! The root keys as the controller has them: at hand, or not and why.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use jiff::Timestamp;

use crate::root_keys::RootKeys;

/// The root keys, or why there are none.
pub struct Roots {
    known: Mutex<Known>,
    /// Told when a vault needs a root key that is not at hand.
    missed: tokio::sync::Notify,
}

struct Known {
    /// Nothing until somebody has looked for them.
    keys: Option<Result<Arc<RootKeys>, String>>,
    backup_verified: Option<Timestamp>,
}

impl Default for Roots {
    fn default() -> Self {
        let known = Known {
            keys: None,
            backup_verified: None,
        };
        Self {
            known: Mutex::new(known),
            missed: tokio::sync::Notify::new(),
        }
    }
}

impl Roots {
    /// The root keys for a vault that needs them, or in words why there are none; nothing until they
    /// were looked for, which is done again as long as there are none.
    pub fn obtain(&self) -> Option<Result<Arc<RootKeys>, String>> {
        let known = self.lock();
        if !matches!(known.keys, Some(Ok(_))) {
            self.missed.notify_one();
        }
        known.keys.clone()
    }

    /// Takes them in; says whether that is news.
    pub fn set(&self, keys: Result<Arc<RootKeys>, String>) -> bool {
        let mut known = self.lock();
        let news = match (&known.keys, &keys) {
            (Some(Ok(one)), Ok(other)) => !Arc::ptr_eq(one, other),
            (Some(Err(one)), Err(other)) => one != other,
            _ => true,
        };
        // Whoever had none before is called again; what is missed from now on is another key.
        if news && keys.is_ok() {
            let _ = self.missed.notified().now_or_never();
        }
        known.keys = Some(keys);
        news
    }

    /// Whether they are at hand.
    pub fn are_there(&self) -> bool {
        matches!(self.lock().keys, Some(Ok(_)))
    }

    /// When somebody last saw the backup open what is in the cluster.
    pub fn backup_verified(&self) -> Option<Timestamp> {
        self.lock().backup_verified
    }

    /// Takes in when somebody last saw the backup open what is in the cluster.
    pub fn note_backup_verified(&self, at: Option<Timestamp>) {
        self.lock().backup_verified = at;
    }

    /// A vault needs another root key than those at hand: perhaps it has been brought back.
    pub fn miss(&self) {
        self.missed.notify_one();
    }

    /// Waits until a vault needs a root key that is not at hand.
    pub async fn missed(&self) {
        self.missed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
