//! Starting the watches, and following the objects that hold values or may come to hold some.
//!
//! Watched whole: our kinds, and Secrets and ConfigMaps with our label, but of the entries of vaults
//! the metadata only. Watched as metadata only: all other Secrets and ConfigMaps of the scope, because
//! a resource may name one of them; nothing of those is kept.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher,
};

use crate::{
    api::{
        CONTENT_COPIES, CONTENT_ENTRY, CONTENT_KEYS, CONTENT_LABEL, CONTENT_RING, CONTENT_ROOTS,
        CONTENT_SYNC,
        convert::{StoreKind, StoreRef},
        v1alpha1::FunctionKey,
    },
    controllers::{
        Item,
        context::Context,
        declarations::Declarations,
        function_key::watch::FunctionKeys,
        naming::Name,
        role_assignment, secret_vault,
        watch::{Follower, Progress, api, follow},
    },
    k8s::object::{self, Observed},
};

/// Starts the watches; they go on as long as the process does.
pub fn start(context: &Arc<Context>) -> Progress {
    let scopes: Vec<Option<String>> = match context.settings.namespaces.as_slice() {
        [] => vec![None],
        namespaces => namespaces.iter().cloned().map(Some).collect(),
    };
    let progress = Progress::default();
    role_assignment::watch::start_once(context, &progress);
    for scope in &scopes {
        let scope = scope.as_deref();
        let client = &context.client;
        let everything = watcher::Config::default();
        let ours = watcher::Config::default().labels(&format!(
            "{CONTENT_LABEL} in ({CONTENT_KEYS},{CONTENT_COPIES},{CONTENT_SYNC})"
        ));
        let others = watcher::Config::default().labels(&format!(
            "{CONTENT_LABEL} notin ({CONTENT_KEYS},{CONTENT_COPIES},{CONTENT_SYNC},{CONTENT_ENTRY},{CONTENT_RING},{CONTENT_ROOTS})"
        ));
        let (secret, config_map) = (StoreKind::Secret, StoreKind::ConfigMap);

        let keys = api::<DeserializeGuard<FunctionKey>>(client, scope);
        let follower = Declarations::new(FunctionKeys(Arc::clone(context)), scope);
        tokio::spawn(follow(
            keys,
            everything,
            follower,
            progress.awaits("FunctionKeys", scope),
        ));

        secret_vault::watch::start(context, scope, &progress);
        role_assignment::watch::start(context, scope, &progress);

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
        let item = item(reference, &observed);
        if !self
            .context
            .cache
            .lock()
            .observe(reference.clone(), observed)
        {
            return;
        }
        call_for_object(&self.context, reference, item);
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
        let lost = {
            let mut state = self.context.cache.lock();
            let lost = state.object(reference);
            state.lose(reference);
            lost
        };
        if let Some(lost) = lost {
            call_for_object(&self.context, reference, item(reference, &lost));
        }
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

/// What looks after an object with our label.
pub(super) fn item(object: &StoreRef, observed: &Observed) -> Item {
    let name = || Name::new(&*object.namespace, &*object.name);
    match observed.content.as_deref() {
        Some(CONTENT_COPIES) => Item::Client(name()),
        Some(CONTENT_SYNC) => Item::Target(name()),
        _ => Item::Store(object.clone()),
    }
}

/// Everything that an object with our label bears on.
fn call_for_object(context: &Context, object: &StoreRef, item: Item) {
    context.queue.soon(item);
    call_followers(context, object);
}

/// Keys and vaults that follow an object of ours. Call it after a write of our own as well: the watch
/// then tells nothing new.
pub(super) fn call_followers(context: &Context, object: &StoreRef) {
    if object.kind != StoreKind::Secret {
        return;
    }
    let name = Name::new(&*object.namespace, &*object.name);
    let followers = context.cache.lock().following(&name);
    for follower in followers {
        context.queue.soon(Item::Store(follower.store.clone()));
    }
    let vaults = context.vaults.lock().following(&name);
    for vault in vaults {
        context.queue.soon(Item::Vault(Name::from(&*vault)));
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
        let secret = self.kind == StoreKind::Secret;
        let (vaults, target) = if secret {
            let vaults = self.context.vaults.lock();
            (vaults.following(&name), !vaults.syncing(&name).is_empty())
        } else {
            (Vec::new(), false)
        };
        let (stores, vaults, waiting) = {
            let mut state = self.context.cache.lock();
            let mut stores = Vec::new();
            if !state.in_store(&store).is_empty() {
                stores.push(store);
            }
            let followers = if secret {
                state.following(&name)
            } else {
                Vec::new()
            };
            // What is known of it must not outlive it, whoever follows it later.
            let followed =
                !followers.is_empty() || !vaults.is_empty() || state.is_source_known(&name);
            let changed = followed && state.source_changed(&name, version);
            if changed {
                stores.extend(followers.iter().map(|follower| follower.store.clone()));
            }
            (
                stores,
                if changed { vaults } else { Vec::new() },
                secret && !state.in_client(&name).is_empty(),
            )
        };
        for store in stores {
            self.context.queue.soon(Item::Store(store));
        }
        for vault in vaults {
            self.context.queue.soon(Item::Vault(Name::from(&*vault)));
        }
        if target {
            self.context.queue.soon(Item::Target(name.clone()));
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
