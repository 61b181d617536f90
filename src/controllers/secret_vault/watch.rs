//! Following vaults, their key rings, and the metadata of their entries.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher,
};

use super::cache;
use crate::{
    api::{
        CONTENT_ENTRY, CONTENT_LABEL, CONTENT_RING, VAULT_LABEL, convert::vault::Vault,
        v1alpha1::SecretVault,
    },
    controllers::{
        Item,
        context::Context,
        declarations::{Declarations, Kind},
        naming::{Name, Unreadable},
        watch::{Follower, Progress, api, follow},
    },
    k8s::vault::{Metadata, Ring, ring_name},
};

/// Starts the watches of one namespace, or of all.
pub fn start(context: &Arc<Context>, scope: Option<&str>, progress: &Progress) {
    let client = &context.client;
    let of = |content| watcher::Config::default().labels(&format!("{CONTENT_LABEL}={content}"));
    tokio::spawn(follow(
        api::<DeserializeGuard<SecretVault>>(client, scope),
        watcher::Config::default(),
        Declarations::new(Vaults(Arc::clone(context)), scope),
        progress.awaits("SecretVaults", scope),
    ));
    tokio::spawn(follow(
        api::<Secret>(client, scope),
        of(CONTENT_RING),
        Rings {
            context: Arc::clone(context),
            scope: scope.map(str::to_owned),
            listed: HashSet::new(),
        },
        progress.awaits("key rings", scope),
    ));
    tokio::spawn(follow(
        api::<PartialObjectMeta<Secret>>(client, scope),
        of(CONTENT_ENTRY),
        Entries {
            context: Arc::clone(context),
            scope: scope.map(str::to_owned),
            listed: HashSet::new(),
            known: Vec::new(),
        },
        progress.awaits("entries of vaults", scope),
    ));
}

fn in_scope(scope: Option<&String>, name: &Name) -> bool {
    scope.is_none_or(|scope| *scope == name.namespace)
}

/// Vaults.
struct Vaults(Arc<Context>);

impl Kind for Vaults {
    type Resource = SecretVault;
    type Read = Vault;

    fn read(resource: SecretVault) -> Result<Vault, String> {
        Vault::read(resource).map_err(|error| error.to_string())
    }

    fn declare(&self, vault: Vault) {
        {
            let mut state = self.0.cache.lock();
            for (workload, at) in cache::restarts(&vault) {
                state.recall_restart(workload, at);
            }
        }
        let before = {
            let mut state = self.0.vaults.lock();
            let name = Name::from(&vault);
            let known = state.vault(&name);
            let readable = state.unreadable(&name).is_none();
            if readable && known.is_some_and(|known| known.asks_for_the_same(&vault)) {
                state.refresh(vault);
                return;
            }
            state.declare(vault.clone())
        };
        // What it no longer names has to be looked at as well.
        if let Some(before) = before {
            super::call_for(&self.0, &before);
        }
        super::call_for(&self.0, &vault);
    }

    fn declare_unreadable(&self, name: Name, unreadable: Unreadable) {
        let mut state = self.0.vaults.lock();
        if state.declare_unreadable(name.clone(), unreadable) {
            self.0.queue.soon(Item::UnreadableVault(name));
        }
    }

    fn forget(&self, name: &Name) {
        let before = {
            let mut state = self.0.vaults.lock();
            state.stop_missing(name);
            state.forget(name)
        };
        if let Some(before) = before {
            super::call_for(&self.0, &before);
        }
    }

    fn names(&self) -> Vec<Name> {
        self.0.vaults.lock().names().cloned().collect()
    }
}

/// The vault that an object says it belongs to.
fn vault_of(object: &impl ResourceExt) -> Option<Name> {
    let vault = object.labels().get(VAULT_LABEL)?;
    Some(Name::new(object.namespace()?, vault))
}

/// Follows key rings.
struct Rings {
    context: Arc<Context>,
    scope: Option<String>,
    listed: HashSet<Name>,
}

impl Rings {
    /// The vault whose key ring this is, by its name: that is what the vault asks for it by.
    fn vault(object: &Secret) -> Option<Name> {
        vault_of(object).filter(|vault| object.name_any() == ring_name(&vault.name))
    }

    fn lose(&self, vault: &Name) {
        self.context.vaults.lock().lose_ring(vault);
        self.context.queue.soon(Item::Vault(vault.clone()));
    }
}

impl Follower<Secret> for Rings {
    fn seen(&mut self, object: Secret, first: bool) {
        let Some(vault) = Self::vault(&object) else {
            return;
        };
        if first {
            self.listed.insert(vault.clone());
        }
        let news = self
            .context
            .vaults
            .lock()
            .observe_ring(vault.clone(), Ring::read(object));
        if news {
            self.context.queue.soon(Item::Vault(vault));
        }
    }

    fn gone(&mut self, object: &Secret) {
        let Some(vault) = Self::vault(object) else {
            return;
        };
        let version = object.resource_version().unwrap_or_default();
        let made_anew = {
            let state = self.context.vaults.lock();
            state.ring(&vault).is_some_and(|known| {
                match (known.version.parse::<u64>(), version.parse::<u64>()) {
                    (Ok(known), Ok(gone)) => known > gone,
                    _ => false,
                }
            })
        };
        if !made_anew {
            self.lose(&vault);
        }
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let lost: Vec<Name> = self
            .context
            .vaults
            .lock()
            .rings()
            .map(|(vault, _)| vault)
            .filter(|vault| in_scope(self.scope.as_ref(), vault) && !listed.contains(*vault))
            .cloned()
            .collect();
        for vault in &lost {
            self.lose(vault);
        }
    }
}

/// Follows entries.
struct Entries {
    context: Arc<Context>,
    scope: Option<String>,
    listed: HashSet<Name>,
    /// What was known when the list was asked for.
    known: Vec<(Name, String)>,
}

impl Entries {
    fn objects(&self) -> Vec<(Name, String)> {
        let state = self.context.vaults.lock();
        state
            .with_entries()
            .filter(|vault| in_scope(self.scope.as_ref(), vault))
            .flat_map(|vault| {
                let objects = state.objects(vault).into_iter();
                objects.map(|object| (vault.clone(), object))
            })
            .collect()
    }

    fn lose(&self, vault: &Name, object: &str, version: Option<&str>) {
        self.context
            .vaults
            .lock()
            .lose_entry(vault, object, version);
        self.context.queue.soon(Item::Vault(vault.clone()));
    }
}

impl Follower<PartialObjectMeta<Secret>> for Entries {
    fn seen(&mut self, object: PartialObjectMeta<Secret>, first: bool) {
        let Some(vault) = vault_of(&object) else {
            return;
        };
        let name = object.name_any();
        if first {
            self.listed
                .insert(Name::new(&*vault.namespace, name.clone()));
        }
        let metadata = Metadata::read(&object.metadata);
        let news = self
            .context
            .vaults
            .lock()
            .observe_entry(&vault, &name, metadata);
        if news {
            self.context.queue.soon(Item::Vault(vault));
        }
    }

    fn gone(&mut self, object: &PartialObjectMeta<Secret>) {
        if let Some(vault) = vault_of(object) {
            self.lose(
                &vault,
                &object.name_any(),
                object.metadata.resource_version.as_deref(),
            );
        }
    }

    fn begin(&mut self) {
        self.listed.clear();
        self.known = self.objects();
        self.known = self.objects().into_iter().collect();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        // What was made while the list was on its way need not be in it.
        for (vault, object) in std::mem::take(&mut self.known) {
            if !listed.contains(&Name::new(&*vault.namespace, &*object)) {
                self.lose(&vault, &object, None);
            }
        }
    }
}
