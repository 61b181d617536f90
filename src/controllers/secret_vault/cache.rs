//! What has been observed of vaults: the declared ones, their key rings, and the metadata of their
//! entries. Fed by the watches and by the answers to our own writes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use crate::{
    api::{
        condition::Report,
        convert::{Workload, vault::Vault},
        v1alpha1::{SecretVaultStatus, WorkloadRef},
    },
    controllers::{
        naming::{Index, Name, Unreadable},
        secret_vault::ring::OpenRing,
    },
    domain::vault::{
        attributes::{self, Attributes},
        envelope::{Binding, Envelope},
        history::{Entry, Fault, History},
        name::{NameHash, SecretName, VersionId, object_name, parse_object_name},
    },
    k8s::{
        object::is_newer,
        vault::{Metadata, Ring},
    },
};

/// An entry as observed, and what came of verifying it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its metadata.
    pub metadata: Metadata,
    /// The version of the ring that it says it is under; 0 when it says nothing readable.
    pub ring: u32,
    /// Its attributes, once they were found authentic.
    authentic: Option<Arc<Attributes>>,
    /// The highest revision that was ever found authentic under this name.
    floor: u32,
    /// Whether somebody else has deleted it.
    gone: bool,
}

/// The entries of one vault.
pub type Entries = BTreeMap<NameHash, BTreeMap<u32, Held>>;

/// What a look at a target came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetReport {
    /// The Secret that holds the content now.
    pub secret: Option<String>,
    /// When the content last changed.
    pub changed: Option<Timestamp>,
    /// Whether it holds what it should.
    pub synced: bool,
    /// What is in the way.
    pub obstacle: Option<Report>,
}

/// Everything observed of vaults.
#[derive(Default)]
pub struct State {
    vaults: HashMap<Name, Arc<Vault>>,
    unreadable: HashMap<Name, Unreadable>,
    by_source: Index<Name>,
    by_target: Index<Name>,
    by_workload: Index<Workload>,
    rings: HashMap<Name, Arc<Ring>>,
    open: HashMap<Name, Arc<OpenRing>>,
    /// Key rings that were deleted while they were in use.
    lost: HashMap<Name, Arc<Ring>>,
    entries: HashMap<Name, Entries>,
    /// Entries that we have deleted, as they were last: what the watch still tells of them is old.
    removed: HashMap<(Name, String), Metadata>,
    /// What came of looking at targets, by vault and target as declared.
    targets: HashMap<Name, BTreeMap<String, TargetReport>>,
    /// Since when everybody has had entries, by folded name and number, as it was first seen.
    reached: HashMap<Name, Arrivals>,
}

/// Since when everybody has had an entry of a number, which was of this version.
type Arrivals = BTreeMap<(String, u32), (VersionId, Timestamp)>;

/// A shared [`State`].
#[derive(Default)]
pub struct Cache(Mutex<State>);

impl Cache {
    /// The state, for a short look: nothing waits while it is held.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Vault> for Name {
    fn from(vault: &Vault) -> Self {
        Self::new(&*vault.namespace, &*vault.owner.name)
    }
}

fn sources(vault: &Vault) -> BTreeSet<Name> {
    vault
        .sources()
        .map(|source| Name::new(&*vault.namespace, &*source.name))
        .collect()
}

fn targets(vault: &Vault) -> impl Iterator<Item = Name> {
    vault
        .sync
        .iter()
        .map(|target| Name::new(&*vault.namespace, &*target.name))
}

impl State {
    /// Takes a vault in; answers the one it replaces.
    pub fn declare(&mut self, vault: Vault) -> Option<Arc<Vault>> {
        let name = Name::from(&vault);
        let before = self.forget(&name);
        for source in sources(&vault) {
            self.by_source.add(source, &name);
        }
        for target in targets(&vault) {
            self.by_target.add(target, &name);
        }
        for workload in vault.workloads() {
            self.by_workload.add(workload, &name);
        }
        if let Some(reports) = self.targets.get_mut(&name) {
            reports.retain(|target, _| vault.sync.iter().any(|sync| sync.name == *target));
        }
        self.vaults.insert(name, Arc::new(vault));
        before
    }

    /// Takes note of a vault that could not be read; says whether that is news.
    pub fn declare_unreadable(&mut self, name: Name, unreadable: Unreadable) -> bool {
        let news = self.unreadable.get(&name) != Some(&unreadable);
        self.unreadable.insert(name, unreadable);
        news
    }

    /// What is wrong with a vault that could not be read.
    pub fn unreadable(&self, name: &Name) -> Option<Unreadable> {
        self.unreadable.get(name).cloned()
    }

    /// Forgets a vault; answers it.
    pub fn forget(&mut self, name: &Name) -> Option<Arc<Vault>> {
        self.unreadable.remove(name);
        let before = self.vaults.remove(name)?;
        for source in sources(&before) {
            self.by_source.remove(&source, name);
        }
        for target in targets(&before) {
            self.by_target.remove(&target, name);
        }
        for workload in before.workloads() {
            self.by_workload.remove(&workload, name);
        }
        Some(before)
    }

    /// Forgets what is missed of a vault that is gone.
    pub fn stop_missing(&mut self, name: &Name) {
        self.reached.remove(name);
        self.lost.remove(name);
        let Some(entries) = self.entries.get_mut(name) else {
            return;
        };
        for held in entries.values_mut() {
            held.retain(|_, held| !held.gone);
        }
        entries.retain(|_, held| !held.is_empty());
        if entries.is_empty() {
            self.entries.remove(name);
        }
    }

    /// Since when everybody has had an entry, of which `at` is what it looks like now. What is written
    /// or restarted again later, for another secret's sake, does not count.
    pub fn first_reached(
        &mut self,
        vault: &Name,
        secret: &SecretName,
        (sequence, id): (u32, VersionId),
        at: Timestamp,
    ) -> Timestamp {
        let known = self.reached.entry(vault.clone()).or_default();
        let secret = secret.folded();
        // No overlap goes back further than that.
        let oldest = sequence.saturating_sub(16);
        known.retain(|(other, number), _| *other != secret || *number >= oldest);
        let first = known.entry((secret, sequence)).or_insert((id, at));
        if first.0 != id {
            *first = (id, at);
        }
        first.1 = at.min(first.1);
        first.1
    }

    /// A vault by its name.
    pub fn vault(&self, name: &Name) -> Option<Arc<Vault>> {
        self.vaults.get(name).cloned()
    }

    /// All vaults.
    pub fn vaults(&self) -> impl Iterator<Item = &Arc<Vault>> {
        self.vaults.values()
    }

    /// The names of all vaults, those that cannot be read included.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.vaults.keys().chain(self.unreadable.keys())
    }

    fn resolve<T: Clone + Ord>(&self, index: &Index<T>, thing: &T) -> Vec<Arc<Vault>> {
        index
            .names(thing)
            .filter_map(|name| self.vaults.get(name).cloned())
            .collect()
    }

    /// The vaults that follow a Secret.
    pub fn following(&self, source: &Name) -> Vec<Arc<Vault>> {
        self.resolve(&self.by_source, source)
    }

    /// The vaults that fill a Secret of this name, or one whose name this one was made from.
    pub fn syncing(&self, secret: &Name) -> Vec<Arc<Vault>> {
        let mut found = self.resolve(&self.by_target, secret);
        if let Some((base, _)) = secret.name.rsplit_once('-') {
            let base = Name::new(&*secret.namespace, base);
            found.extend(
                self.resolve(&self.by_target, &base)
                    .into_iter()
                    .filter(|vault| {
                        vault
                            .sync
                            .iter()
                            .any(|target| target.immutable && target.covers(&secret.name))
                    }),
            );
        }
        found
    }

    /// The vaults that restart a workload.
    pub fn restarting(&self, workload: &Workload) -> Vec<Arc<Vault>> {
        self.resolve(&self.by_workload, workload)
    }

    /// A vault's key ring as last observed.
    pub fn ring(&self, vault: &Name) -> Option<Arc<Ring>> {
        self.rings.get(vault).cloned()
    }

    /// Takes a key ring in, unless a later one is known; says whether it told something new.
    pub fn observe_ring(&mut self, vault: Name, ring: Ring) -> bool {
        let known = self.rings.get(&vault);
        let newer = known.is_none_or(|known| is_newer(&ring.version, &known.version));
        if newer {
            self.lost.remove(&vault);
            self.rings.insert(vault, Arc::new(ring));
        }
        newer
    }

    /// Takes note of a key ring that is gone. What it was is remembered if it was authentic: a ring
    /// that somebody has deleted can be written back.
    pub fn lose_ring(&mut self, vault: &Name) {
        let ring = self.rings.remove(vault);
        let open = self.open.remove(vault);
        if let (Some(ring), Some(open)) = (ring, open)
            && ring.version == open.version
        {
            self.lost.insert(vault.clone(), ring);
        }
    }

    /// A key ring as it was before it was deleted.
    pub fn lost_ring(&self, vault: &Name) -> Option<Arc<Ring>> {
        self.lost.get(vault).cloned()
    }

    /// Forgets a key ring that was deleted on purpose.
    pub fn bury_ring(&mut self, vault: &Name) {
        self.lose_ring(vault);
        self.lost.remove(vault);
    }

    /// All key rings.
    pub fn rings(&self) -> impl Iterator<Item = (&Name, &Arc<Ring>)> {
        self.rings.iter()
    }

    /// A vault's opened key ring.
    pub fn open(&self, vault: &Name) -> Option<Arc<OpenRing>> {
        self.open.get(vault).cloned()
    }

    /// Takes an opened key ring in.
    pub fn opened(&mut self, vault: Name, ring: Arc<OpenRing>) {
        let before = self.open.get(&vault);
        // What was authentic under a key need not be under another of the same number.
        if before.is_some_and(|before| before.contradicts(&ring)) {
            let entries = self.entries.get_mut(&vault).into_iter().flatten();
            for held in entries.flat_map(|(_, held)| held.values_mut()) {
                if let Some(attributes) = held.authentic.take() {
                    held.floor = held.floor.max(attributes.revision);
                }
            }
        }
        self.open.insert(vault, ring);
    }

    /// Forgets an opened key ring: it is not to be used any more.
    pub fn close(&mut self, vault: &Name) {
        self.open.remove(vault);
    }

    /// Vaults of which there are entries.
    pub fn with_entries(&self) -> impl Iterator<Item = &Name> {
        self.entries.keys()
    }

    /// The entries of a vault.
    pub fn entries(&self, vault: &Name) -> Option<&Entries> {
        self.entries.get(vault)
    }

    /// Takes an entry in, unless a later state of it is known; says whether it told something new.
    pub fn observe_entry(&mut self, vault: &Name, object: &str, metadata: Metadata) -> bool {
        let Some((hash, sequence)) = parse_object_name(&vault.name, object) else {
            return false;
        };
        let place = (vault.clone(), object.to_owned());
        match self.removed.get(&place) {
            Some(removed) if !metadata.newer_than(removed) => return false,
            removed => _ = removed.is_some() && self.removed.remove(&place).is_some(),
        }
        let entries = self.entries.entry(vault.clone()).or_default();
        let known = entries.get(&hash).and_then(|held| held.get(&sequence));
        if known.is_some_and(|known| {
            // One that was missed may be back, or was told of late.
            let back = known.gone && metadata.version == known.metadata.version;
            !back && !metadata.newer_than(&known.metadata)
        }) {
            return false;
        }
        let floor = known.map_or(0, |known| {
            known
                .authentic
                .as_ref()
                .map_or(0, |attributes| attributes.revision)
                .max(known.floor)
        });
        let ring = metadata
            .envelope
            .parse::<Envelope>()
            .map_or(0, |envelope| envelope.ring);
        let held = Held {
            metadata,
            ring,
            authentic: None,
            floor,
            gone: false,
        };
        entries.entry(hash).or_default().insert(sequence, held);
        true
    }

    /// Forgets an entry that we have deleted, and what the watch has yet to tell of it.
    pub fn removed_entry(&mut self, vault: &Name, object: &str, last: Metadata) {
        if let Some((hash, sequence)) = parse_object_name(&vault.name, object) {
            self.drop_entry(vault, hash, sequence);
        }
        self.removed
            .insert((vault.clone(), object.to_owned()), last);
    }

    /// Takes note of an entry that is gone, unless it was made anew since. One that was authentic and
    /// that we have not deleted ourselves is missed as long as its vault is there.
    pub fn lose_entry(&mut self, vault: &Name, object: &str, version: Option<&str>) {
        let Some((hash, sequence)) = parse_object_name(&vault.name, object) else {
            return;
        };
        let ours = self
            .removed
            .remove(&(vault.clone(), object.to_owned()))
            .is_some();
        let last = version.map(|version| Metadata {
            version: version.to_owned(),
            attributes: Box::default(),
            envelope: Box::default(),
        });
        let declared = self.vaults.get(vault).is_some_and(|vault| !vault.deleting);
        let known = self
            .entries
            .get_mut(vault)
            .and_then(|entries| entries.get_mut(&hash)?.get_mut(&sequence));
        let Some(known) = known else {
            return;
        };
        if last.is_some_and(|last| known.metadata.newer_than(&last)) {
            return;
        }
        if declared && !ours && known.authentic.is_some() {
            known.gone = true;
        } else {
            self.drop_entry(vault, hash, sequence);
        }
    }

    /// Forgets an entry.
    fn drop_entry(&mut self, vault: &Name, hash: NameHash, sequence: u32) {
        let Some(entries) = self.entries.get_mut(vault) else {
            return;
        };
        if let Some(held) = entries.get_mut(&hash) {
            held.remove(&sequence);
            if held.is_empty() {
                entries.remove(&hash);
            }
        }
        if entries.is_empty() {
            self.entries.remove(vault);
        }
    }

    /// The objects of all entries of a vault.
    pub fn objects(&self, vault: &Name) -> Vec<String> {
        self.entries
            .get(vault)
            .into_iter()
            .flatten()
            .flat_map(|(hash, held)| {
                held.iter()
                    .filter(|(_, held)| !held.gone)
                    .map(|(sequence, _)| object_name(&vault.name, *hash, *sequence))
            })
            .collect()
    }

    /// How many entries are under each version of the ring.
    pub fn in_use(&self, vault: &Name) -> BTreeMap<u32, usize> {
        let mut in_use = BTreeMap::new();
        for held in self
            .entries
            .get(vault)
            .into_iter()
            .flat_map(BTreeMap::values)
            .flat_map(BTreeMap::values)
            .filter(|held| !held.gone)
        {
            *in_use.entry(held.ring).or_default() += 1;
        }
        in_use
    }

    /// The history of a secret, verified.
    pub fn history(&mut self, vault: &Name, ring: &OpenRing, hash: NameHash) -> History {
        let Some(held) = self
            .entries
            .get_mut(vault)
            .and_then(|entries| entries.get_mut(&hash))
        else {
            return History::default();
        };
        History(
            held.iter_mut()
                .map(|(&sequence, held)| (sequence, verify(ring, hash, sequence, held)))
                .collect(),
        )
    }

    /// The hashes of all secrets of a vault.
    pub fn hashes(&self, vault: &Name) -> Vec<NameHash> {
        self.entries
            .get(vault)
            .map(|entries| entries.keys().copied().collect())
            .unwrap_or_default()
    }

    /// An entry, verified, and as observed.
    pub fn entry(
        &mut self,
        vault: &Name,
        ring: &OpenRing,
        hash: NameHash,
        sequence: u32,
    ) -> Option<(Entry, Held)> {
        let held = self
            .entries
            .get_mut(vault)?
            .get_mut(&hash)?
            .get_mut(&sequence)?;
        Some((verify(ring, hash, sequence, held), held.clone()))
    }

    /// An entry as observed.
    pub fn held(&self, vault: &Name, hash: NameHash, sequence: u32) -> Option<Held> {
        self.entries.get(vault)?.get(&hash)?.get(&sequence).cloned()
    }

    /// Entries that are not under this version of the ring.
    pub fn not_under(&self, vault: &Name, version: u32) -> Vec<(NameHash, u32)> {
        self.entries
            .get(vault)
            .into_iter()
            .flatten()
            .flat_map(|(hash, held)| {
                held.iter()
                    .filter(|(_, held)| held.ring != version && !held.gone)
                    .map(|(sequence, _)| (*hash, *sequence))
            })
            .collect()
    }

    /// What came of looking at a target.
    pub fn target(&self, vault: &Name, target: &str) -> Option<&TargetReport> {
        self.targets.get(vault)?.get(target)
    }

    /// Takes in what came of looking at a target; says whether that is news.
    pub fn note_target(&mut self, vault: &Name, target: &str, report: TargetReport) -> bool {
        let reports = self.targets.entry(vault.clone()).or_default();
        let news = reports.get(target) != Some(&report);
        reports.insert(target.to_owned(), report);
        news
    }

    /// Replaces what is known of a vault's status after we wrote it.
    pub fn reported(&mut self, vault: &Vault, status: SecretVaultStatus) {
        if let Some(known) = self.vaults.get_mut(&Name::from(vault))
            && known.owner.uid == vault.owner.uid
        {
            Arc::make_mut(known).status = status;
        }
    }

    /// Takes in another state of a vault's object of which nothing that is acted on has changed.
    pub fn refresh(&mut self, vault: Vault) {
        self.vaults.insert(Name::from(&vault), Arc::new(vault));
    }
}

/// Verifies an entry; what was found authentic once is so until it changes.
fn verify(ring: &OpenRing, hash: NameHash, sequence: u32, held: &mut Held) -> Entry {
    let Some(key) = ring.key(held.ring) else {
        let document = &ring.document;
        return Entry::Unreadable(
            if document.vault_shredded || document.shredded.contains(&held.ring) {
                Fault::Shredded { ring: held.ring }
            } else if held.ring == 0 {
                Fault::Tampered
            } else {
                Fault::UnknownRing { ring: held.ring }
            },
        );
    };
    if let Some(attributes) = &held.authentic {
        if held.gone {
            return Entry::Gone(Arc::clone(attributes));
        }
        return Entry::Authentic(Arc::clone(attributes));
    }
    let verified = || {
        let envelope: Envelope = held.metadata.envelope.parse().ok()?;
        let text = &held.metadata.attributes;
        if text.len() > attributes::LONGEST {
            return None;
        }
        let attributes = Attributes::parse(text).ok()?;
        if ring.vault.hash(&attributes.name) != hash {
            return None;
        }
        let binding = binding(ring, &attributes.name, sequence, &attributes);
        key.verify(&binding, &envelope, text).ok()?;
        Some(attributes)
    };
    match verified() {
        None => Entry::Unreadable(Fault::Tampered),
        Some(attributes) if attributes.revision < held.floor => {
            Entry::Unreadable(Fault::RolledBack)
        }
        Some(attributes) => {
            let attributes = Arc::new(attributes);
            held.authentic = Some(Arc::clone(&attributes));
            Entry::Authentic(attributes)
        }
    }
}

/// What an entry is bound to.
pub fn binding<'a>(
    ring: &'a OpenRing,
    secret: &'a SecretName,
    sequence: u32,
    attributes: &Attributes,
) -> Binding<'a> {
    Binding {
        vault: &ring.vault,
        secret,
        sequence,
        version: attributes.id,
    }
}

/// A workload that a status says was restarted.
pub fn restarts(vault: &Vault) -> impl Iterator<Item = (Workload, Timestamp)> {
    vault.status.restarts.iter().map(|restart| {
        let workload = Workload {
            namespace: vault.namespace.clone(),
            workload: WorkloadRef {
                kind: restart.kind,
                name: restart.name.clone(),
            },
        };
        (workload, restart.at.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_watch_tells_late_of_an_entry_that_we_deleted_brings_it_not_back() {
        let mut state = State::default();
        let (vault, hash) = (Name::new("shop", "payments"), NameHash([1; 20]));
        let object = object_name("payments", hash, 3);
        let at = |version: &str| Metadata {
            version: version.to_owned(),
            attributes: Box::default(),
            envelope: Box::default(),
        };
        assert!(state.observe_entry(&vault, &object, at("5")));
        state.removed_entry(&vault, &object, at("5"));
        for late in ["4", "5"] {
            assert!(!state.observe_entry(&vault, &object, at(late)));
            assert!(state.held(&vault, hash, 3).is_none());
        }
        assert!(state.observe_entry(&vault, &object, at("9")), "made anew");
        state.removed_entry(&vault, &object, at("9"));
        state.lose_entry(&vault, &object, Some("10"));
        assert!(state.removed.is_empty());
    }
}
