//! What has been observed of the cluster: the declared keys, the objects that hold values of ours,
//! and who names whom. Fed by the watches and by the answers to our own writes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use crate::{
    api::{
        CONTENT_COPIES,
        condition::Report,
        convert::{Declaration, StoreRef, Workload},
        v1alpha1::WorkloadRef,
    },
    controllers::{
        Item,
        naming::{Index, Name, Unreadable},
    },
    domain::ledger::Owner,
    k8s::object::Observed,
};

/// Why copies could not be placed, by the client's Secret and the UID of the resource.
pub type ClientFailures = HashMap<Name, HashMap<String, Report>>;

/// Everything observed.
#[derive(Default)]
pub struct State {
    declarations: HashMap<Name, Arc<Declaration>>,
    /// Resources that could not be read: they are alive, whatever they declare.
    unreadable: HashMap<Name, Unreadable>,
    by_store: Index<StoreRef>,
    by_client: Index<Name>,
    by_source: Index<Name>,
    by_workload: Index<Workload>,
    objects: BTreeMap<StoreRef, Arc<Observed>>,
    /// Key stores that were deleted while keys are declared in them, as they last were.
    deleted: HashMap<StoreRef, Arc<Observed>>,
    /// Source Secrets without our label, as last read; `None` is an absent one.
    sources: HashMap<Name, Option<Arc<Observed>>>,
    source_epoch: u64,
    /// Since when the pods of a workload are sure to be younger than.
    restarted: HashMap<Workload, Timestamp>,
    /// Workloads that did not exist when they were to be restarted.
    absent: HashSet<Workload>,
    /// Clients' Secrets and workloads that were looked at since the process started: of others it
    /// is not known whether something stands in the way.
    pub looked: HashSet<Item>,
    /// Why clients' Secrets could not be written.
    pub client_failures: ClientFailures,
    /// Why workloads could not be restarted.
    pub workload_failures: HashMap<Workload, Report>,
}

/// A shared [`State`].
#[derive(Default)]
pub struct Cache(Mutex<State>);

impl Cache {
    /// The state, for a short look: nothing waits while it is held.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Declaration> for Name {
    fn from(declaration: &Declaration) -> Self {
        Self::new(&*declaration.namespace, &*declaration.owner.name)
    }
}

/// What a declaration names, as items of the indices.
fn named(declaration: &Declaration) -> (HashSet<Name>, Option<Name>, HashSet<Workload>) {
    let namespace = &declaration.namespace;
    let clients = declaration
        .targets
        .iter()
        .map(|target| Name::new(namespace, &*target.secret))
        .collect();
    let source = declaration
        .source
        .as_ref()
        .map(|source| Name::new(namespace, &*source.name));
    let workloads = declaration
        .workloads()
        .map(|workload| Workload {
            namespace: namespace.clone(),
            workload: workload.clone(),
        })
        .collect();
    (clients, source, workloads)
}

impl State {
    /// Takes a declared key in; answers the one it replaces.
    pub fn declare(&mut self, declaration: Declaration) -> Option<Arc<Declaration>> {
        let name = Name::from(&declaration);
        let before = self.forget(&name);
        let (clients, source, workloads) = named(&declaration);
        self.by_store.add(declaration.store.clone(), &name);
        for client in clients {
            self.by_client.add(client, &name);
        }
        if let Some(source) = source {
            self.by_source.add(source, &name);
        }
        for workload in workloads {
            self.by_workload.add(workload, &name);
        }
        for restart in &declaration.status.restarts {
            let workload = Workload {
                namespace: declaration.namespace.clone(),
                workload: WorkloadRef {
                    kind: restart.kind,
                    name: restart.name.clone(),
                },
            };
            self.recall_restart(workload, restart.at.0);
        }
        self.declarations.insert(name, Arc::new(declaration));
        before
    }

    /// Takes note of a resource that could not be read: what was last read of it stands.
    /// Says whether that is news.
    pub fn declare_unreadable(&mut self, name: Name, unreadable: Unreadable) -> bool {
        let news = self.unreadable.get(&name) != Some(&unreadable);
        self.unreadable.insert(name, unreadable);
        news
    }

    /// What is wrong with a resource that could not be read.
    pub fn unreadable(&self, name: &Name) -> Option<Unreadable> {
        self.unreadable.get(name).cloned()
    }

    /// Forgets a declared key; answers it.
    pub fn forget(&mut self, name: &Name) -> Option<Arc<Declaration>> {
        self.unreadable.remove(name);
        let before = self.declarations.remove(name)?;
        let (clients, source, workloads) = named(&before);
        self.by_store.remove(&before.store, name);
        for client in &clients {
            self.by_client.remove(client, name);
        }
        if let Some(source) = &source {
            self.by_source.remove(source, name);
        }
        for workload in &workloads {
            self.by_workload.remove(workload, name);
        }
        Some(before)
    }

    /// A declared key by its name.
    pub fn declaration(&self, name: &Name) -> Option<&Arc<Declaration>> {
        self.declarations.get(name)
    }

    /// All declared keys.
    pub fn declarations(&self) -> impl Iterator<Item = &Arc<Declaration>> {
        self.declarations.values()
    }

    /// The names of all declared keys, those that cannot be read included.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.declarations.keys().chain(self.unreadable.keys())
    }

    fn resolve<T: Clone + Ord>(&self, index: &Index<T>, thing: &T) -> Vec<Arc<Declaration>> {
        index
            .names(thing)
            .filter_map(|name| self.declarations.get(name).cloned())
            .collect()
    }

    /// The keys declared in a store, by name.
    pub fn in_store(&self, store: &StoreRef) -> Vec<Arc<Declaration>> {
        self.resolve(&self.by_store, store)
    }

    /// The keys that are handed to a Secret, by name.
    pub fn in_client(&self, client: &Name) -> Vec<Arc<Declaration>> {
        self.resolve(&self.by_client, client)
    }

    /// The keys that follow a Secret, by name.
    pub fn following(&self, source: &Name) -> Vec<Arc<Declaration>> {
        self.resolve(&self.by_source, source)
    }

    /// The keys that restart a workload, by name.
    pub fn restarting(&self, workload: &Workload) -> Vec<Arc<Declaration>> {
        self.resolve(&self.by_workload, workload)
    }

    /// Of these owners, the UIDs of resources that are alive although unreadable.
    pub fn is_unreadable(&self, uid: &str) -> bool {
        self.unreadable
            .values()
            .any(|unreadable| unreadable.uid == uid)
    }

    /// Whether a resource of this name and UID is declared.
    pub fn lives(&self, namespace: &str, owner: &Owner) -> bool {
        self.declarations
            .get(&Name::new(namespace, &*owner.name))
            .is_some_and(|declaration| declaration.owner.uid == owner.uid)
    }

    /// An object that holds values, as last observed.
    pub fn object(&self, object: &StoreRef) -> Option<Arc<Observed>> {
        self.objects.get(object).cloned()
    }

    /// All objects that hold values.
    pub fn objects(&self) -> impl Iterator<Item = (&StoreRef, &Arc<Observed>)> {
        self.objects.iter()
    }

    /// Those of them whose Secrets' names begin with this.
    pub fn secrets_like<'a>(
        &'a self,
        namespace: &str,
        beginning: &'a str,
    ) -> impl Iterator<Item = (&'a StoreRef, &'a Arc<Observed>)> {
        let first = Name::new(namespace, beginning).secret();
        self.objects
            .range(first.clone()..)
            .take_while(move |(object, _)| {
                object.namespace == first.namespace
                    && object.kind == first.kind
                    && object.name.starts_with(beginning)
            })
    }

    /// Takes an observation in, unless a later one is known; says whether it told something new.
    /// Bookkeeping that has become unreadable is kept from the observation before.
    pub fn observe(&mut self, object: StoreRef, mut observed: Observed) -> bool {
        if let Some(known) = self.objects.get(&object) {
            if !observed.newer_than(known) {
                return false;
            }
            if known.uid == observed.uid {
                observed.recalled = (observed.ledger.is_none() && known.ledger.is_some())
                    || (observed.copies.is_none() && known.copies.is_some());
                observed.ledger = observed.ledger.or_else(|| known.ledger.clone());
                observed.copies = observed.copies.or_else(|| known.copies.clone());
            }
        }
        self.deleted.remove(&object);
        self.objects.insert(object, Arc::new(observed));
        true
    }

    /// Forgets an object that is gone or has lost our label; a key store is remembered as it was
    /// as long as keys are declared in it.
    pub fn lose(&mut self, object: &StoreRef) {
        let Some(observed) = self.objects.remove(object) else {
            return;
        };
        if observed.ledger.is_some() && observed.content.as_deref() != Some(CONTENT_COPIES) {
            self.deleted.insert(object.clone(), observed);
        }
    }

    /// A key store as it was before it was deleted.
    pub fn deleted(&self, store: &StoreRef) -> Option<Arc<Observed>> {
        self.deleted.get(store).cloned()
    }

    /// Forgets what was remembered of a deleted store.
    pub fn bury(&mut self, store: &StoreRef) {
        self.deleted.remove(store);
    }

    /// A source Secret as last read; `None` when it is not known what it holds.
    pub fn source(&self, source: &Name) -> Option<Option<Arc<Observed>>> {
        if let Some(observed) = self.objects.get(&source.secret()) {
            return Some(Some(Arc::clone(observed)));
        }
        self.sources.get(source).cloned()
    }

    /// Whether it is known what a source Secret without our label held, or that there was none.
    pub fn is_source_known(&self, source: &Name) -> bool {
        self.sources.contains_key(source)
    }

    /// Counts changes of source Secrets: what was read before a change must not be kept after it.
    pub fn source_epoch(&self) -> u64 {
        self.source_epoch
    }

    /// Takes in what a source Secret held when the epoch was this.
    pub fn read_source(&mut self, source: Name, observed: Option<Arc<Observed>>, epoch: u64) {
        if epoch == self.source_epoch {
            self.sources.insert(source, observed);
        }
    }

    /// Forgets what a source Secret held if this is not the version that was read; says whether.
    pub fn source_changed(&mut self, source: &Name, version: Option<&str>) -> bool {
        match self.sources.get(source) {
            Some(Some(observed)) if Some(observed.version.as_str()) == version => false,
            _ => {
                self.source_epoch += 1;
                self.sources.remove(source);
                true
            }
        }
    }

    /// Since when the pods of a workload are sure to be younger than.
    pub fn restarted(&self, workload: &Workload) -> Option<Timestamp> {
        self.restarted.get(workload).copied()
    }

    /// Takes in a restart that a status tells of, unless a later one is known.
    pub fn recall_restart(&mut self, workload: Workload, at: Timestamp) {
        let known = self.restarted.entry(workload).or_insert(at);
        *known = at.max(*known);
    }

    /// Takes a restart in.
    pub fn note_restart(&mut self, workload: Workload, at: Timestamp) {
        self.absent.remove(&workload);
        self.restarted.insert(workload, at);
    }

    /// Takes in that a workload does not exist: pods that come later read what stands by then.
    pub fn note_absence(&mut self, workload: Workload, at: Timestamp) {
        self.absent.insert(workload.clone());
        self.restarted.insert(workload, at);
    }

    /// Whether a workload was absent when it was to be restarted.
    pub fn is_absent(&self, workload: &Workload) -> bool {
        self.absent.contains(workload)
    }

    /// Replaces what is known of a declared key's status after we wrote it.
    pub fn reported(
        &mut self,
        declaration: &Declaration,
        status: crate::api::v1alpha1::FunctionKeyStatus,
    ) {
        let name = Name::from(declaration);
        if let Some(known) = self.declarations.get_mut(&name)
            && known.owner.uid == declaration.owner.uid
        {
            Arc::make_mut(known).status = status;
        }
    }
}
