//! Access tokens that were got, and that one could not be got.
//!
//! - Whoever asks for the same at the same time waits for one answer, also when it is that there is
//!   none. Whoever asks for something else does not wait.
//! - A token that nears its end is replaced; when that fails it is used to its end, and for a while
//!   nobody waits for a better one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as Guard, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex, time::Instant};

use super::upstream::{Error, Held};

/// The fewest seconds that a token from memory is still valid; SDKs ask anew below five minutes.
const FRESH: i64 = 600;
/// The fewest when there is no better one: it has to reach a door.
const USABLE: i64 = 30;
/// So many are remembered.
const CAPACITY: usize = 64;
/// How long nobody asks for a better token after that failed.
const PAUSE: Duration = Duration::from_secs(30);
/// How long it holds that there is none: whoever waited for that with others does not wait again.
const SILENCE: Duration = Duration::from_millis(500);

/// What a token is for: the identity by the name that it was asked for with, and the resource.
pub type Key = (String, String);

/// Tokens by what they are for.
#[derive(Default)]
pub struct Memory(Guard<HashMap<Key, Arc<Mutex<Slot>>>>);

#[derive(Default)]
struct Slot {
    held: Option<Arc<Held>>,
    failed: Option<(Instant, Arc<Error>)>,
}

impl Slot {
    fn lasting(&self, seconds: i64, now: i64) -> Option<&Arc<Held>> {
        let held = self.held.as_ref();
        held.filter(|held| held.expires.saturating_sub(now) > seconds)
    }
}

impl Memory {
    /// The token that is held, or the one that asking gives. `now` is the time in Unix seconds.
    ///
    /// # Errors
    /// That of asking, when no token is held that could be used.
    pub async fn token(
        &self,
        key: Key,
        now: impl Fn() -> i64,
        asking: impl Future<Output = Result<Held, Error>>,
    ) -> Result<Arc<Held>, Arc<Error>> {
        let slot = self.slot(key, now());
        let mut slot = slot.lock().await;
        if let Some(held) = slot.lasting(FRESH, now()) {
            return Ok(Arc::clone(held));
        }
        if let Some((at, error)) = &slot.failed {
            match slot.lasting(USABLE, now()) {
                Some(held) if at.elapsed() < PAUSE => return Ok(Arc::clone(held)),
                None if at.elapsed() < SILENCE => return Err(Arc::clone(error)),
                _ => {}
            }
        }
        match asking.await {
            Ok(fresh) => {
                let fresh = Arc::new(fresh);
                *slot = Slot {
                    held: Some(Arc::clone(&fresh)),
                    failed: None,
                };
                Ok(fresh)
            }
            Err(error) => {
                tracing::warn!(error = error.to_string(), "no access token");
                let error = Arc::new(error);
                slot.failed = Some((Instant::now(), Arc::clone(&error)));
                slot.lasting(USABLE, now()).cloned().ok_or(error)
            }
        }
    }

    fn slot(&self, key: Key, now: i64) -> Arc<Mutex<Slot>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&key) {
            return Arc::clone(slot);
        }
        if slots.len() >= CAPACITY {
            // Those that somebody waits for stay.
            slots.retain(|_, slot| {
                slot.try_lock()
                    .map_or(true, |slot| slot.lasting(USABLE, now).is_some())
                    || Arc::strong_count(slot) > 1
            });
        }
        let slot = Arc::default();
        if slots.len() < CAPACITY {
            slots.insert(key, Arc::clone(&slot));
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use zeroize::Zeroizing;

    use super::*;

    const SLOW: Duration = Duration::from_secs(10);

    /// A server that answers with tokens that live an hour, numbered; or not at all, which takes ten
    /// seconds.
    struct Server {
        memory: Memory,
        begun: Instant,
        asked: AtomicU32,
        away: std::sync::atomic::AtomicBool,
    }

    impl Server {
        fn new() -> Self {
            Self {
                memory: Memory::default(),
                begun: Instant::now(),
                asked: AtomicU32::new(0),
                away: false.into(),
            }
        }

        fn now(&self) -> i64 {
            self.begun.elapsed().as_secs().try_into().unwrap()
        }

        /// The token for this resource, and how long that took.
        async fn token(&self, resource: &str) -> (Result<String, String>, Duration) {
            let key = ("shop/web".to_owned(), resource.to_owned());
            let begun = Instant::now();
            let asking = async {
                let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
                if self.away.load(Ordering::SeqCst) {
                    tokio::time::sleep(SLOW).await;
                    let authority = "claviger.svc".to_owned();
                    return Err(Error::Away { authority });
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(Held {
                    token: Zeroizing::new(format!("{resource}-{number}")),
                    since: self.now(),
                    expires: self.now() + 3600,
                })
            };
            let got = self.memory.token(key, || self.now(), asking).await;
            let got = got.map(|held| held.token.to_string());
            (got.map_err(|error| error.to_string()), begun.elapsed())
        }

        fn goes_away(&self, away: bool) {
            self.away.store(away, Ordering::SeqCst);
        }
    }

    async fn passes(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_token_is_got_for_all_who_ask_and_replaced_before_its_end() {
        let server = Server::new();
        for (got, _) in join_all((0..20).map(|_| server.token("a"))).await {
            assert_eq!(got.unwrap(), "a-1");
        }
        passes(2990).await;
        assert_eq!(server.token("a").await.0.unwrap(), "a-1");
        passes(10).await;
        assert_eq!(server.token("a").await.0.unwrap(), "a-2");
        // Another name of the identity is for the server to judge.
        let other = ("shop/other".to_owned(), "a".to_owned());
        let refused = async {
            Err(Error::Refused {
                error: "invalid_client".to_owned(),
                description: "no".to_owned(),
            })
        };
        let refused = server.memory.token(other, || server.now(), refused).await;
        assert!(refused.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_to_its_end_when_the_server_is_away() {
        let server = Server::new();
        server.token("a").await.0.unwrap();
        server.goes_away(true);
        passes(3060).await; // nine minutes are left
        for (got, waited) in join_all((0..20).map(|_| server.token("a"))).await {
            assert_eq!((got.unwrap().as_str(), waited), ("a-1", SLOW));
        }
        // And nobody waits for a while.
        passes(15).await;
        let (got, waited) = server.token("a").await;
        assert_eq!((got.unwrap().as_str(), waited), ("a-1", Duration::ZERO));
        assert_eq!(server.asked.load(Ordering::SeqCst), 2);
        server.goes_away(false);
        passes(15).await;
        assert_eq!(server.token("a").await.0.unwrap(), "a-3");
        // Not beyond its end.
        server.goes_away(true);
        passes(3580).await;
        assert!(server.token("a").await.0.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_another_resource_or_for_others_who_waited_in_vain() {
        let server = Server::new();
        server.token("a").await.0.unwrap();
        server.goes_away(true);
        let all = async {
            let all = join_all((0..20).map(|_| server.token("b")));
            for (got, waited) in all.await {
                assert!(got.unwrap_err().contains("cannot be reached"));
                assert_eq!(waited, SLOW);
            }
        };
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (got, waited) = server.token("a").await;
            assert_eq!((got.unwrap().as_str(), waited), ("a-1", Duration::ZERO));
        };
        tokio::join!(all, meanwhile);
        assert_eq!(server.asked.load(Ordering::SeqCst), 2);
        server.goes_away(false);
        passes(1).await;
        assert_eq!(server.token("b").await.0.unwrap(), "b-3");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_what_was_refused_gives_way() {
        let server = Server::new();
        server.goes_away(true);
        for number in 0..CAPACITY {
            assert!(server.token(&number.to_string()).await.0.is_err());
        }
        server.goes_away(false);
        let names: Vec<_> = (0..=CAPACITY)
            .map(|number| format!("good-{number}"))
            .collect();
        for name in &names {
            assert!(server.token(name).await.0.is_ok());
            assert!(server.memory.0.lock().unwrap().len() <= CAPACITY);
        }
        let asked = server.asked.load(Ordering::SeqCst);
        for name in &names[..CAPACITY] {
            assert!(server.token(name).await.0.is_ok());
        }
        assert_eq!(server.asked.load(Ordering::SeqCst), asked);
        // The last one found no place, and is got all the same.
        assert!(server.token(&names[CAPACITY]).await.0.is_ok());
        assert_eq!(server.asked.load(Ordering::SeqCst), asked + 1);
    }
}
