//! The watches that fill the cache and say what to look at.
//!
//! Watched whole: FunctionKeys, and Secrets and ConfigMaps with our label. Watched as metadata
//! only: all other Secrets and ConfigMaps of the scope, because a resource may name one of them;
//! nothing of those is kept.

use std::{
    collections::{BTreeSet, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::TryStreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{WatchStreamExt, utils::Backoff, watcher, watcher::Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{
    api::{
        CONTENT_COPIES, CONTENT_LABEL,
        convert::{Declaration, StoreKind, StoreRef, Workload},
        v1alpha1::FunctionKey,
    },
    controllers::{
        context::Context,
        function_key::{
            Item,
            cache::{Name, Unreadable},
        },
    },
    k8s::object::{self, Observed},
};

/// Which caches are still to be filled.
#[derive(Clone)]
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
    fn awaits(&self, what: &str, scope: Option<&str>) -> Awaited {
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
struct Awaited {
    progress: Progress,
    what: String,
}

impl Awaited {
    fn filled(&self) {
        self.progress
            .0
            .send_modify(|left| _ = left.remove(&self.what));
    }
}

/// How many objects a list brings at a time. While it is read a page takes memory twice, as text and
/// as objects, and what it leaves behind is kept by the process for good.
const PAGE: u32 = 100;

/// Starts the watches; they go on as long as the process does.
pub fn start(context: &Arc<Context>) -> Progress {
    let scopes: Vec<Option<String>> = match context.settings.namespaces.as_slice() {
        [] => vec![None],
        namespaces => namespaces.iter().cloned().map(Some).collect(),
    };
    let progress = Progress(watch::Sender::default());
    for scope in &scopes {
        let scope = scope.as_deref();
        let client = &context.client;
        let everything = watcher::Config::default();
        let ours = watcher::Config::default().labels(CONTENT_LABEL);
        let others = watcher::Config::default().labels(&format!("!{CONTENT_LABEL}"));
        let (secret, config_map) = (StoreKind::Secret, StoreKind::ConfigMap);

        let keys = api::<DeserializeGuard<FunctionKey>>(client, scope);
        let follower = Declarations::new(context, scope);
        tokio::spawn(follow(
            keys,
            everything,
            follower,
            progress.awaits("FunctionKeys", scope),
        ));

        let secrets = api::<Secret>(client, scope);
        let follower = Holders::new(context, scope, secret);
        tokio::spawn(follow(
            secrets,
            ours.clone(),
            follower,
            progress.awaits("Secrets with our label", scope),
        ));

        let config_maps = api::<ConfigMap>(client, scope);
        let follower = Holders::new(context, scope, config_map);
        tokio::spawn(follow(
            config_maps,
            ours,
            follower,
            progress.awaits("ConfigMaps with our label", scope),
        ));

        let secrets = api::<PartialObjectMeta<Secret>>(client, scope);
        let follower = Others {
            context: Arc::clone(context),
            kind: secret,
        };
        tokio::spawn(follow(
            secrets,
            others.clone(),
            follower,
            progress.awaits("other Secrets", scope),
        ));

        let config_maps = api::<PartialObjectMeta<ConfigMap>>(client, scope);
        let follower = Others {
            context: Arc::clone(context),
            kind: config_map,
        };
        tokio::spawn(follow(
            config_maps,
            others,
            follower,
            progress.awaits("other ConfigMaps", scope),
        ));
    }
    progress
}

fn api<K>(client: &Client, scope: Option<&str>) -> Api<K>
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
trait Follower<K> {
    fn seen(&mut self, object: K, first: bool);
    fn gone(&mut self, object: &K);
    /// A list begins.
    fn begin(&mut self);
    /// A list is complete: what was not in it is gone.
    fn complete(&mut self);
}

async fn follow<K, F>(api: Api<K>, config: watcher::Config, mut follower: F, awaited: Awaited)
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
fn describe(error: &watcher::Error) -> &'static str {
    match error {
        watcher::Error::InitialListFailed(_) => "the list failed",
        watcher::Error::WatchStartFailed(_) => "the watch could not be started",
        watcher::Error::WatchError(_) => "the apiserver ended the watch",
        watcher::Error::WatchFailed(_) => "the connection failed",
        watcher::Error::NoResourceVersion => "the list had no resource version",
    }
}

/// Follows FunctionKeys.
struct Declarations {
    context: Arc<Context>,
    scope: Option<String>,
    listed: HashSet<Name>,
}

impl Declarations {
    fn new(context: &Arc<Context>, scope: Option<&str>) -> Self {
        Self {
            context: Arc::clone(context),
            scope: scope.map(str::to_owned),
            listed: HashSet::new(),
        }
    }

    fn forget(&self, name: &Name) {
        let before = self.context.cache.lock().forget(name);
        if let Some(before) = before {
            call_for(&self.context, &before);
        }
    }
}

/// Everything that a declaration bears on.
fn call_for(context: &Context, declaration: &Declaration) {
    let namespace = &declaration.namespace;
    context.queue.soon(Item::Store(declaration.store.clone()));
    for target in &declaration.targets {
        context
            .queue
            .soon(Item::Client(Name::new(namespace, &*target.secret)));
    }
    for workload in declaration.workloads() {
        context.queue.soon(Item::Workload(Workload {
            namespace: namespace.clone(),
            workload: workload.clone(),
        }));
    }
}

impl Follower<DeserializeGuard<FunctionKey>> for Declarations {
    fn seen(&mut self, object: DeserializeGuard<FunctionKey>, first: bool) {
        let name = Name::new(object.namespace().unwrap_or_default(), object.name_any());
        let uid = object.uid().unwrap_or_default();
        let generation = object.meta().generation;
        if first {
            self.listed.insert(name.clone());
        }
        let read = object
            .0
            .map_err(|error| error.to_string())
            .and_then(|object| Declaration::read(object).map_err(|error| error.to_string()));
        let declaration = match read {
            Ok(declaration) => declaration,
            Err(error) => {
                tracing::error!(
                    k8s.namespace.name = name.namespace,
                    function_key.name = name.name,
                    error,
                    "a FunctionKey cannot be read; what it declared last stands"
                );
                let unreadable = Unreadable {
                    uid,
                    generation,
                    fault: error,
                };
                let news = self
                    .context
                    .cache
                    .lock()
                    .declare_unreadable(name.clone(), unreadable);
                if news {
                    self.context.queue.soon(Item::Unreadable(name));
                }
                return;
            }
        };
        let before = {
            let mut state = self.context.cache.lock();
            if state
                .declaration(&name)
                .is_some_and(|known| **known == declaration)
            {
                return;
            }
            state.declare(declaration.clone())
        };
        // What it no longer names has to be looked at as well.
        if let Some(before) = before.filter(|before| {
            before.targets != declaration.targets || before.owner != declaration.owner
        }) {
            call_for(&self.context, &before);
        }
        call_for(&self.context, &declaration);
    }

    fn gone(&mut self, object: &DeserializeGuard<FunctionKey>) {
        self.forget(&Name::new(
            object.namespace().unwrap_or_default(),
            object.name_any(),
        ));
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let known: Vec<Name> = self
            .context
            .cache
            .lock()
            .declarations()
            .map(|declaration| Name::from(&**declaration))
            .collect();
        let listed = std::mem::take(&mut self.listed);
        // With one watch for each namespace, a list speaks of its own namespace only.
        let mine = |name: &Name| {
            self.scope
                .as_ref()
                .is_none_or(|scope| *scope == name.namespace)
        };
        for name in known
            .iter()
            .filter(|name| mine(name) && !listed.contains(name))
        {
            self.forget(name);
        }
    }
}

/// Follows objects with our label.
struct Holders {
    context: Arc<Context>,
    scope: Option<String>,
    kind: StoreKind,
    listed: HashSet<StoreRef>,
}

impl Holders {
    fn new(context: &Arc<Context>, scope: Option<&str>, kind: StoreKind) -> Self {
        Self {
            context: Arc::clone(context),
            scope: scope.map(str::to_owned),
            kind,
            listed: HashSet::new(),
        }
    }

    fn reference<K: ResourceExt>(&self, object: &K) -> StoreRef {
        StoreRef {
            namespace: object.namespace().unwrap_or_default(),
            kind: self.kind,
            name: object.name_any(),
        }
    }

    fn take_in(&mut self, reference: &StoreRef, observed: Observed, first: bool) {
        if first {
            self.listed.insert(reference.clone());
        }
        let copies = observed.content.as_deref() == Some(CONTENT_COPIES);
        if !self
            .context
            .cache
            .lock()
            .observe(reference.clone(), observed)
        {
            return;
        }
        call_for_object(&self.context, reference, copies);
    }

    /// The object of this version is gone; a later one that we made since is not.
    fn lose_version(&self, reference: &StoreRef, version: &str) {
        let last = Observed {
            version: version.to_owned(),
            ..Observed::default()
        };
        let made_anew = self
            .context
            .cache
            .lock()
            .object(reference)
            .is_some_and(|known| known.newer_than(&last));
        if !made_anew {
            self.lose(reference);
        }
    }

    fn lose(&self, reference: &StoreRef) {
        let copies = {
            let mut state = self.context.cache.lock();
            let copies = state
                .object(reference)
                .is_some_and(|observed| observed.content.as_deref() == Some(CONTENT_COPIES));
            state.lose(reference);
            copies
        };
        call_for_object(&self.context, reference, copies);
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let mine = |object: &StoreRef| {
            object.kind == self.kind
                && self
                    .scope
                    .as_ref()
                    .is_none_or(|scope| *scope == object.namespace)
        };
        let lost: Vec<StoreRef> = {
            let state = self.context.cache.lock();
            state
                .objects()
                .map(|(object, _)| object)
                .filter(|object| mine(object) && !listed.contains(object))
                .cloned()
                .collect()
        };
        for object in &lost {
            self.lose(object);
        }
    }
}

/// Everything that an object with our label bears on.
fn call_for_object(context: &Context, object: &StoreRef, copies: bool) {
    let name = Name::new(&*object.namespace, &*object.name);
    context.queue.soon(if copies {
        Item::Client(name)
    } else {
        Item::Store(object.clone())
    });
    call_followers(context, object);
}

/// Keys that follow an object of ours. Call it after a write of our own as well: the watch then
/// tells nothing new.
pub(super) fn call_followers(context: &Context, object: &StoreRef) {
    if object.kind != StoreKind::Secret {
        return;
    }
    let name = Name::new(&*object.namespace, &*object.name);
    let followers = context.cache.lock().following(&name);
    for follower in followers {
        context.queue.soon(Item::Store(follower.store.clone()));
    }
}

impl Follower<Secret> for Holders {
    fn seen(&mut self, object: Secret, first: bool) {
        self.take_in(&self.reference(&object), Observed::secret(object), first);
    }

    fn gone(&mut self, object: &Secret) {
        self.lose_version(&self.reference(object), &object::version(object));
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        Self::complete(self);
    }
}

impl Follower<ConfigMap> for Holders {
    fn seen(&mut self, object: ConfigMap, first: bool) {
        self.take_in(
            &self.reference(&object),
            Observed::config_map(object),
            first,
        );
    }

    fn gone(&mut self, object: &ConfigMap) {
        self.lose_version(&self.reference(object), &object::version(object));
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        Self::complete(self);
    }
}

/// Follows objects without our label, as metadata: some resource may wait for one of them.
struct Others {
    context: Arc<Context>,
    kind: StoreKind,
}

impl Others {
    fn changed(&self, name: Name, version: Option<&str>) {
        let store = StoreRef {
            namespace: name.namespace.clone(),
            kind: self.kind,
            name: name.name.clone(),
        };
        let (stores, waiting) = {
            let mut state = self.context.cache.lock();
            let mut stores = Vec::new();
            if !state.in_store(&store).is_empty() {
                stores.push(store);
            }
            let secret = self.kind == StoreKind::Secret;
            let followers = if secret {
                state.following(&name)
            } else {
                Vec::new()
            };
            if !followers.is_empty() && state.source_changed(&name, version) {
                stores.extend(followers.iter().map(|follower| follower.store.clone()));
            }
            (stores, secret && !state.in_client(&name).is_empty())
        };
        for store in stores {
            self.context.queue.soon(Item::Store(store));
        }
        if waiting {
            self.context.queue.soon(Item::Client(name));
        }
    }
}

impl<K> Follower<PartialObjectMeta<K>> for Others
where
    PartialObjectMeta<K>: ResourceExt,
{
    fn seen(&mut self, object: PartialObjectMeta<K>, _first: bool) {
        let version = object::version(&object);
        self.changed(
            Name::new(object.namespace().unwrap_or_default(), object.name_any()),
            Some(&version),
        );
    }

    fn gone(&mut self, object: &PartialObjectMeta<K>) {
        self.changed(
            Name::new(object.namespace().unwrap_or_default(), object.name_any()),
            None,
        );
    }

    fn begin(&mut self) {}

    fn complete(&mut self) {}
}
