//! What all watches have in common: how a list is read, how an interruption is got over, and when
//! everything has been seen.

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures::TryStreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, utils::Backoff, watcher, watcher::Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Which caches are still to be filled.
#[derive(Clone, Default)]
pub struct Progress(watch::Sender<BTreeSet<String>>);

impl Progress {
    /// What is still to be filled, in words.
    pub fn missing(&self) -> Vec<String> {
        self.0.borrow().iter().cloned().collect()
    }

    /// Waits until all caches are filled.
    pub async fn filled(&self) {
        // The sender is part of `self`, so waiting ends only with what is waited for.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// One cache to be filled.
    pub fn awaits(&self, what: &str, scope: Option<&str>) -> Awaited {
        let what = scope.map_or_else(
            || what.to_owned(),
            |scope| format!("{what} of namespace {scope}"),
        );
        self.0.send_modify(|left| _ = left.insert(what.clone()));
        Awaited {
            progress: self.clone(),
            what,
        }
    }
}

/// One cache to be filled.
pub struct Awaited {
    progress: Progress,
    what: String,
}

impl Awaited {
    /// It is filled.
    pub fn filled(&self) {
        self.progress
            .0
            .send_modify(|left| _ = left.remove(&self.what));
    }
}

/// How many objects a list brings at a time. While it is read a page takes memory twice, as text and
/// as objects, and what it leaves behind is kept by the process for good.
const PAGE: u32 = 100;

/// The objects of one namespace, or of all.
pub fn api<K>(client: &Client, scope: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    scope.map_or_else(
        || Api::all(client.clone()),
        |namespace| Api::namespaced(client.clone(), namespace),
    )
}

/// Who takes in what a watch tells.
pub trait Follower<K> {
    /// An object stands; `first`: a list tells so.
    fn seen(&mut self, object: K, first: bool);
    /// It is gone.
    fn gone(&mut self, object: &K);
    /// A list begins.
    fn begin(&mut self);
    /// A list is complete: what was not in it is gone.
    fn complete(&mut self);
}

/// Follows the objects, for ever.
pub async fn follow<K, F>(api: Api<K>, config: watcher::Config, mut follower: F, awaited: Awaited)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
    F: Follower<K>,
{
    let mut events = pin!(watcher(api, config.page_size(PAGE)).backoff(Pause::default()));
    loop {
        match events.try_next().await {
            Ok(Some(Event::Apply(object))) => follower.seen(object, false),
            Ok(Some(Event::InitApply(object))) => follower.seen(object, true),
            Ok(Some(Event::Delete(object))) => follower.gone(&object),
            Ok(Some(Event::Init)) => follower.begin(),
            Ok(Some(Event::InitDone)) => {
                follower.complete();
                awaited.filled();
            }
            Ok(None) => break,
            Err(error) => {
                let (what, error) = (&awaited.what, describe(&error));
                tracing::warn!(what, error, "a watch was interrupted and is taken up again");
            }
        }
    }
}

/// Follows one object by name, for ever: as it is now, and `None` when it is not there.
pub async fn follow_one<K>(api: Api<K>, name: &str, mut take: impl FnMut(Option<K>))
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut events = pin!(watcher::watch_object(api, name).backoff(Pause::default()));
    loop {
        match events.try_next().await {
            Ok(Some(object)) => take(object),
            Ok(None) => break,
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(name, error, "a watch was interrupted and is taken up again");
            }
        }
    }
}

/// The pauses between attempts to take up a watch: doubling, and short enough that what happened
/// during an outage is known soon after it.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(8);
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Self::FIRST.saturating_mul(1 << self.failures.min(8));
        self.failures += 1;
        Some(pause.min(Self::LONGEST))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// What interrupted a watch, without anything that it transported.
pub fn describe(error: &watcher::Error) -> &'static str {
    match error {
        watcher::Error::InitialListFailed(_) => "the list failed",
        watcher::Error::WatchStartFailed(_) => "the watch could not be started",
        watcher::Error::WatchError(_) => "the apiserver ended the watch",
        watcher::Error::WatchFailed(_) => "the connection failed",
        watcher::Error::NoResourceVersion => "the list had no resource version",
    }
}
