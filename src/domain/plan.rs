//! What should stand in one key store: the decision that everything else carries out.
//!
//! [`plan`] sees the store as it is, every resource that declares a key of it, the time, and a
//! source of fresh keys, and answers with the store as it should be: values and bookkeeping
//! together, to be written in one request. It is the same for a store of one key and of hundreds.
//!
//! A turn of a key goes through these phases, each of which a crash may interrupt anywhere:
//!
//! ```text
//! publish ──► wait ──────► distribute ──► overlap ─────────► retire
//! new value   every host   clients have   clock starts when   previous value
//! is current, surely has   the new value  the last client     removed
//! old beside  re-read      and restarted  has it
//! ```
//!
//! Invariants (held by the property tests below): an entry that was published never lacks a value;
//! no value is removed before its promised time except by a revocation; what was revoked never
//! comes back; generations only rise; planning again on the outcome changes nothing; the next look
//! lies in the future.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use crate::domain::{
    key::{Digest, KeyKind, KeyMaterial},
    layout::{self, KeyRef},
    ledger::{DeletionPolicy, Ledger, Marks, Origin, Owner, Previous, Record},
    rotation::{self, DEFAULT_OVERLAP, MAX_PREVIOUS, Policy, Triggers, Turn, add},
};

/// How many revoked values are remembered for each key: as many as four revocations take back when
/// each finds the most values that can be valid at once.
const MOST_REFUSED: usize = 4 * (MAX_PREVIOUS + 1);

/// One key store as observed.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// The entries that the host reads and whose value is text, by data key.
    pub values: BTreeMap<String, KeyMaterial>,
    /// The bookkeeping beside them.
    pub ledger: Ledger,
}

/// One resource that declares a key of the store.
#[derive(Clone, Debug)]
pub struct Declared {
    /// The resource.
    pub owner: Owner,
    /// When it was created; the older of two wins.
    pub created: Timestamp,
    /// The key it declares.
    pub key: KeyRef,
    /// How it turns.
    pub policy: Policy,
    /// What it asks for beside its schedule.
    pub triggers: Triggers,
    /// Where its values come from.
    pub supply: Supply,
    /// What to do when somebody else changed the value.
    pub drift: Drift,
    /// What to do when the resource is deleted.
    pub deletion: DeletionPolicy,
    /// Whether everything of it is to stay as it is.
    pub suspended: bool,
    /// How far its current value has come among its clients.
    pub distribution: Distribution,
    /// The generation and value that a client's Secret holds: what is left of the key when the
    /// whole store was deleted.
    pub salvage: Option<(u32, KeyMaterial)>,
}

/// Where the values of a key come from.
#[derive(Clone, Debug)]
pub enum Supply {
    /// Claviger makes them.
    Mint,
    /// The user's Secret holds this one.
    Given(KeyMaterial),
    /// The user's Secret does not hold a usable one; what was published last stays.
    Withheld,
}

/// What to do when somebody else changed a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drift {
    /// Take it over as the new current value.
    #[default]
    Adopt,
    /// Put ours back.
    Enforce,
}

/// How far a value has come among its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// No client is declared.
    None,
    /// Some client does not have the current value yet.
    Outstanding,
    /// Every client has this generation, the last one since `at`.
    Complete {
        /// The generation they have.
        generation: u32,
        /// Since when the last of them has it.
        at: Timestamp,
    },
}

/// Something that happened to a key in this plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occurrence {
    /// A value that was there is managed from now on.
    Adopted,
    /// Somebody else renewed the value and it was taken over.
    DriftAdopted,
    /// Somebody else changed the value and ours was put back.
    DriftUndone,
    /// The first value was published.
    Minted,
    /// The value is gone and no copy of it is left: a new one was made.
    Replaced,
    /// The entry was gone and was put back.
    Restored,
    /// A previous value stopped being valid.
    Retired,
    /// A value was revoked.
    Revoked,
    /// A new value is current.
    Rotated,
}

/// How many declared keys one store takes. Kubernetes allows 256 KiB of annotations on an object,
/// and an entry with names of ordinary length takes about 1.5 KiB of them while three previous
/// values live.
pub const MAX_KEYS: usize = 150;

/// Why a declared key is not as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Another resource has this entry.
    Conflict(String),
    /// The store has as many keys as it takes.
    Full,
    /// The source does not give a value, and none was ever published.
    NoValue,
}

/// Something a person should know although the key is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// `host.master` outlives its resource because the host ignores the other keys without it.
    MasterKept(String),
    /// A revocation was asked for, but the value comes from the user's Secret and did not change,
    /// or is one that was revoked.
    SourceUnchanged,
    /// A turn is due but as many previous values as can be are still valid.
    TurnDeferred,
    /// A suspended key.
    Suspended,
}

/// The value that clients should have now.
#[derive(Clone, Debug)]
pub struct Handout {
    /// Its generation.
    pub generation: u32,
    /// The value.
    pub value: KeyMaterial,
}

/// What the plan says of one declared key.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The data key it stands under.
    pub entry: String,
    /// Why it is not as declared, if so.
    pub problem: Option<Problem>,
    /// Its bookkeeping after the plan, when it has the entry.
    pub record: Option<Record>,
    /// When it turns next by its schedule.
    pub next_turn: Option<Timestamp>,
    /// What clients should have.
    pub handout: Option<Handout>,
    /// What a person should know.
    pub notes: Vec<Note>,
    /// What happened to it in this plan.
    pub occurrences: Vec<Occurrence>,
}

/// The store as it should be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Entries to write (`Some`) or remove (`None`), by data key.
    pub changes: BTreeMap<String, Option<KeyMaterial>>,
    /// The bookkeeping that goes with them.
    pub ledger: Ledger,
    /// One verdict per declared key, in their order.
    pub verdicts: Vec<Verdict>,
    /// When to look again though nothing changes; always after `now`.
    pub next_look: Option<Timestamp>,
}

/// What [`plan`] sees.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The time.
    pub now: Timestamp,
    /// How long a host may take to notice a new entry.
    pub host_reload: SignedDuration,
    /// The store.
    pub stored: &'a Stored,
    /// The last values that we published, for entries that were changed or dropped since.
    pub kept: &'a BTreeMap<String, KeyMaterial>,
    /// Every living resource that declares a key of this store.
    pub declared: &'a [Declared],
    /// UIDs of resources that are gone although nobody meant to delete a key (their definition was
    /// deleted): their entries stay.
    pub spared: &'a HashSet<String>,
}

/// Decides what should stand in a key store.
pub fn plan(input: Input<'_>, fresh: &mut dyn FnMut(KeyKind) -> KeyMaterial) -> Plan {
    let mut draft = Draft {
        input,
        fresh,
        ledger: input.stored.ledger.clone(),
        changes: BTreeMap::new(),
        look: None,
    };
    let entries: Vec<String> = input
        .declared
        .iter()
        .map(|declared| draft.entry_of(&declared.key))
        .collect();
    let winners = draft.winners(&entries);
    draft.sweep(&winners);
    let mut verdicts: Vec<Verdict> = input
        .declared
        .iter()
        .zip(entries)
        .enumerate()
        .map(|(index, (declared, entry))| {
            let winner = winners[&layout::folded(&entry)];
            if winner == index {
                draft.settle(entry, declared)
            } else {
                Verdict::conflict(entry, &input.declared[winner].owner.name)
            }
        })
        .collect();
    draft.ensure_master(&mut verdicts);
    // A declared master key that has no value takes over the one that was just made.
    for (declared, verdict) in input.declared.iter().zip(&mut verdicts) {
        if verdict.problem == Some(Problem::NoValue)
            && draft.ledger.entries.contains_key(&verdict.entry)
        {
            *verdict = draft.settle(verdict.entry.clone(), declared);
        }
    }
    Plan {
        changes: draft.changes,
        ledger: draft.ledger,
        verdicts,
        next_look: draft.look,
    }
}

/// What clients should have: the newest value that every host has surely seen.
pub fn handout(
    now: Timestamp,
    entry: &str,
    record: &Record,
    value: impl Fn(&str) -> Option<KeyMaterial>,
) -> Option<Handout> {
    let standing = &record.previous;
    let previous = (now < record.shown)
        .then(|| {
            let seen = standing.iter().rev().find(|previous| previous.shown <= now);
            seen.or(standing.first())
        })
        .flatten();
    let (generation, name) = match previous {
        Some(previous) => (
            previous.generation,
            layout::previous(entry, previous.generation),
        ),
        None => (record.generation, entry.to_owned()),
    };
    value(&name).map(|value| Handout { generation, value })
}

impl Verdict {
    fn of(entry: String) -> Self {
        Self {
            entry,
            problem: None,
            record: None,
            next_turn: None,
            handout: None,
            notes: Vec::new(),
            occurrences: Vec::new(),
        }
    }

    fn conflict(entry: String, winner: &str) -> Self {
        Self {
            problem: Some(Problem::Conflict(winner.to_owned())),
            ..Self::of(entry)
        }
    }

    fn happened(&mut self, occurrence: Occurrence) {
        if !self.occurrences.contains(&occurrence) {
            self.occurrences.push(occurrence);
        }
    }
}

/// A plan in the making.
struct Draft<'a> {
    input: Input<'a>,
    fresh: &'a mut dyn FnMut(KeyKind) -> KeyMaterial,
    ledger: Ledger,
    changes: BTreeMap<String, Option<KeyMaterial>>,
    look: Option<Timestamp>,
}

impl Draft<'_> {
    /// The data key of a declared key: the spelling under which it is kept, else the one that
    /// stands in the store already, else the declared one.
    fn entry_of(&self, key: &KeyRef) -> String {
        let wanted = key.data_key();
        let (kept, standing) = (&self.ledger.entries, &self.input.stored.values);
        let same = |entry: &&String| layout::same(entry, &wanted);
        if kept.contains_key(&wanted) {
            return wanted;
        }
        if let Some(kept) = kept.keys().find(same) {
            return kept.clone();
        }
        if standing.contains_key(&wanted) {
            return wanted;
        }
        standing.keys().find(same).cloned().unwrap_or(wanted)
    }

    /// Which declared key has each entry: the incumbent, else the older, else the first by name.
    fn winners(&self, entries: &[String]) -> HashMap<String, usize> {
        let declared = self.input.declared;
        let mut winners: HashMap<String, usize> = HashMap::new();
        for (index, (candidate, entry)) in declared.iter().zip(entries).enumerate() {
            let incumbent = self
                .ledger
                .entries
                .get(entry)
                .and_then(|record| record.owner.as_ref());
            let rank = |declared: &Declared| {
                (
                    Some(&declared.owner.uid) != incumbent.map(|owner| &owner.uid),
                    declared.created,
                    declared.owner.name.clone(),
                )
            };
            winners
                .entry(layout::folded(entry))
                .and_modify(|winner| {
                    if rank(candidate) < rank(&declared[*winner]) {
                        *winner = index;
                    }
                })
                .or_insert(index);
        }
        winners
    }

    fn value(&self, entry: &str) -> Option<&KeyMaterial> {
        match self.changes.get(entry) {
            Some(change) => change.as_ref(),
            None => self.input.stored.values.get(entry),
        }
    }

    fn put(&mut self, entry: String, value: KeyMaterial) {
        if self.input.stored.values.get(&entry) == Some(&value) {
            self.changes.remove(&entry);
        } else {
            self.changes.insert(entry, Some(value));
        }
    }

    fn remove(&mut self, entry: &str) {
        if self.input.stored.values.contains_key(entry) {
            self.changes.insert(entry.to_owned(), None);
        } else {
            self.changes.remove(entry);
        }
    }

    fn look_at(&mut self, at: Option<Timestamp>) {
        if let Some(at) = at.filter(|at| *at > self.input.now) {
            self.look = Some(self.look.map_or(at, |look| look.min(at)));
        }
    }

    /// The value that the host takes for this key. Of several entries that begin like the master
    /// key's it takes the last; it compares key names without case, so if the entry is gone,
    /// another spelling of it is the key renewed under that spelling.
    fn effective(&self, entry: &str) -> Option<KeyMaterial> {
        let usable = |value: &&KeyMaterial| !value.expose().is_empty();
        let last = |entries: &mut dyn Iterator<Item = (&String, &KeyMaterial)>| {
            entries
                .filter(|(_, value)| usable(value))
                .max_by_key(|(name, _)| (*name).clone())
                .map(|(_, value)| value.clone())
        };
        if layout::is_master(entry) {
            return last(&mut self.standing().filter(|(name, _)| layout::is_master(name)));
        }
        let own = self.value(entry).filter(usable).cloned();
        own.or_else(|| {
            last(
                &mut self
                    .standing()
                    .filter(|(name, _)| layout::same(name, entry)),
            )
        })
    }

    /// A value of this key, current or previous, wherever it is at hand: a host may have put one in
    /// the place of another.
    fn recover(&self, entry: &str, digest: Digest, declared: &Declared) -> Option<KeyMaterial> {
        let given = match &declared.supply {
            Supply::Given(value) => Some(value),
            Supply::Mint | Supply::Withheld => None,
        };
        let held = declared.salvage.as_ref().map(|(_, value)| value);
        [&self.input.stored.values, self.input.kept]
            .into_iter()
            .flat_map(|values| {
                let from = values.range(entry.to_owned()..);
                from.take_while(|(name, _)| name.starts_with(entry))
                    .map(|(_, value)| value)
            })
            .chain(given)
            .chain(held)
            .find(|value| value.digest() == digest)
            .cloned()
    }

    /// Removes what the host would take for the same key as this entry: all of it, or only values
    /// that were revoked. Answers what it removed.
    fn remove_twins(&mut self, entry: &str, only: Option<&[Digest]>) -> Vec<Digest> {
        let twins: Vec<(String, Digest)> = self
            .standing()
            .filter(|(name, _)| {
                let master = layout::is_master(entry) && layout::is_master(name);
                *name != entry && (master || layout::same(name, entry))
            })
            .map(|(name, value)| (name.clone(), value.digest()))
            .filter(|(_, digest)| only.is_none_or(|digests| digests.contains(digest)))
            .collect();
        twins
            .into_iter()
            .map(|(twin, digest)| {
                self.remove(&twin);
                digest
            })
            .collect()
    }

    /// Entries under the reserved names of previous values, newest first.
    fn previous_names(&self, entry: &str) -> Vec<(u32, String)> {
        let mut found: Vec<(u32, String)> = self
            .input
            .stored
            .values
            .range(entry.to_owned()..)
            .take_while(|(name, _)| name.starts_with(entry))
            .filter_map(|(name, _)| Some((layout::previous_generation(entry, name)?, name.clone())))
            .collect();
        found.sort_by(|one, other| other.cmp(one));
        found
    }

    /// Lets go of entries whose resource is gone, as it last said.
    fn sweep(&mut self, winners: &HashMap<String, usize>) {
        let living: BTreeSet<&str> = self
            .input
            .declared
            .iter()
            .map(|declared| declared.owner.uid.as_str())
            .collect();
        let gone: Vec<(String, Record)> = self
            .ledger
            .entries
            .iter()
            .filter(|(entry, record)| {
                !winners.contains_key(&layout::folded(entry))
                    && record.owner.as_ref().is_some_and(|owner| {
                        !living.contains(owner.uid.as_str())
                            && !self.input.spared.contains(&owner.uid)
                    })
            })
            .map(|(entry, record)| (entry.clone(), record.clone()))
            .collect();
        for (entry, mut record) in gone {
            match record.deletion {
                DeletionPolicy::Delete if layout::is_master(&entry) => {} // decided by `ensure_master`
                DeletionPolicy::Delete => {
                    for (_, name) in self.previous_names(&entry) {
                        self.remove(&name);
                    }
                    self.remove(&entry);
                    self.remove_twins(&entry, None);
                    self.ledger.entries.remove(&entry);
                }
                DeletionPolicy::Retain => {
                    rotation::rebase(&mut record, self.input.now);
                    let latest = add(self.input.now, DEFAULT_OVERLAP);
                    for previous in &mut record.previous {
                        previous.since.get_or_insert(self.input.now);
                        previous.retires.get_or_insert(latest);
                    }
                    self.retire(&entry, &mut record);
                    if record.previous.is_empty() {
                        self.ledger.entries.remove(&entry);
                    } else {
                        self.look_at_retirements(&record);
                        self.ledger.entries.insert(entry, record);
                    }
                }
            }
        }
    }

    /// Brings one entry to what its resource declares.
    fn settle(&mut self, entry: String, declared: &Declared) -> Verdict {
        let mut verdict = Verdict::of(entry.clone());
        let known = self.ledger.entries.get(&entry).cloned();
        if declared.suspended {
            verdict.notes.push(Note::Suspended);
            verdict.handout = known
                .as_ref()
                .and_then(|record| self.handout(&entry, record));
            verdict.problem =
                (known.is_none() && self.value(&entry).is_none()).then_some(Problem::NoValue);
            verdict.record = known;
            return verdict;
        }
        if known.is_none() && self.is_full() {
            verdict.problem = Some(Problem::Full);
            return verdict;
        }
        let record = match known {
            Some(record) => Some(record),
            None => self.first_sight(&entry, declared, &mut verdict),
        };
        let Some(mut record) = record else {
            verdict.problem = Some(Problem::NoValue);
            return verdict;
        };

        self.take_over(&mut record, declared);
        self.mend(&entry, &mut record, declared, &mut verdict);
        self.note_distribution(&mut record, declared);
        // Before a turn, so that one that waited for a free place finds it; but a revocation takes
        // back for good even what would retire now.
        let mut retired = !self.revoking(&record, declared) && self.retire(&entry, &mut record);
        let replaced = self.follow_source(&entry, &mut record, declared, &mut verdict);
        self.turn_when_due(&entry, &mut record, declared, replaced, &mut verdict);
        self.note_distribution(&mut record, declared);
        retired |= self.retire(&entry, &mut record);
        if retired {
            verdict.happened(Occurrence::Retired);
        }
        verdict.next_turn = Self::due(&record, declared);
        self.look_ahead(&record, declared, verdict.next_turn);
        verdict.handout = self.handout(&entry, &record);
        verdict.record = Some(record.clone());
        self.ledger.entries.insert(entry, record);
        verdict
    }

    /// An entry that we have no record of: adopt what is there, else what clients still hold, else
    /// publish a first value. Previous values that stand beside it are taken back by `mend`.
    fn first_sight(
        &mut self,
        entry: &str,
        declared: &Declared,
        verdict: &mut Verdict,
    ) -> Option<Record> {
        let now = self.input.now;
        let existing = self.effective(entry);
        let (value, generation, origin, occurrence) =
            match (existing, &declared.salvage, &declared.supply) {
                (Some(value), None, _) => (value, 1, Origin::Adopted, Occurrence::Adopted),
                // What clients hold tells how far the count was.
                (Some(value), Some((held, copy)), _) => {
                    let generation = held.saturating_add((value != *copy).into());
                    (value, generation, Origin::Adopted, Occurrence::Adopted)
                }
                (None, Some((held, copy)), supply) => {
                    let origin = match supply {
                        Supply::Mint => Origin::Minted,
                        Supply::Given(_) | Supply::Withheld => Origin::Supplied,
                    };
                    (copy.clone(), *held, origin, Occurrence::Restored)
                }
                (None, None, Supply::Mint) => (
                    (self.fresh)(declared.key.kind()),
                    1,
                    Origin::Minted,
                    Occurrence::Minted,
                ),
                (None, None, Supply::Given(value)) => {
                    (value.clone(), 1, Origin::Supplied, Occurrence::Minted)
                }
                (None, None, Supply::Withheld) => return None,
            };
        verdict.happened(occurrence);
        let record = Record {
            owner: Some(declared.owner.clone()),
            kept_after: None,
            declared: Some(declared.created),
            generation,
            digest: value.digest(),
            origin,
            minted: now,
            shown: now,
            distributed: None,
            revoked: None,
            refused: Vec::new(),
            marks: declared.triggers.baseline(now),
            deletion: declared.deletion,
            previous: Vec::new(),
        };
        self.put(entry.to_owned(), value);
        Some(record)
    }

    /// A record that another incarnation of the resource left behind is continued, and its clock
    /// is checked.
    fn take_over(&mut self, record: &mut Record, declared: &Declared) {
        if record
            .owner
            .as_ref()
            .is_none_or(|owner| owner.uid != declared.owner.uid)
        {
            record.marks = declared.triggers.baseline(self.input.now);
        }
        record.owner = Some(declared.owner.clone());
        record.declared = Some(declared.created);
        record.kept_after = None;
        record.deletion = declared.deletion;
        rotation::rebase(record, self.input.now);
    }

    /// Undoes or takes over what others did to our entries since we wrote them.
    fn mend(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) {
        let moved = self
            .value(entry)
            .is_none_or(|value| value.expose().is_empty());
        let effective = self.effective(entry);
        match effective {
            Some(value) if value.digest() == record.digest => self.put(entry.to_owned(), value),
            effective => self.mend_current(entry, effective, record, declared, verdict),
        }
        if moved || layout::is_master(entry) {
            self.remove_twins(entry, None);
        } else if !record.refused.is_empty() {
            self.remove_twins(entry, Some(&record.refused));
        }
        self.mend_previous(entry, record, declared, verdict);
        self.take_back_previous(entry, record, declared);
    }

    /// The current value is not what we wrote.
    fn mend_current(
        &mut self,
        entry: &str,
        effective: Option<KeyMaterial>,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) {
        let changed = effective.is_some();
        let acceptable = effective.filter(|value| !record.refused.contains(&value.digest()));
        let adopts = declared.drift == Drift::Adopt && matches!(declared.supply, Supply::Mint);
        let minted = |origin| (origin, Occurrence::Replaced);
        let (value, (origin, occurrence)) = match acceptable {
            // One of ours that is no longer current was not chosen by anybody: a host that read
            // the store before a turn wrote it back after.
            Some(value)
                if adopts
                    && record
                        .previous
                        .iter()
                        .all(|previous| previous.digest != value.digest()) =>
            {
                (value, (Origin::Adopted, Occurrence::DriftAdopted))
            }
            acceptable => {
                if let Some(value) = self.recover(entry, record.digest, declared) {
                    self.put(entry.to_owned(), value);
                    verdict.happened(if changed {
                        Occurrence::DriftUndone
                    } else {
                        Occurrence::Restored
                    });
                    return;
                }
                match (&declared.supply, acceptable) {
                    (Supply::Mint, Some(value)) if adopts => {
                        (value, (Origin::Adopted, Occurrence::DriftAdopted))
                    }
                    (Supply::Mint, _) => {
                        ((self.fresh)(declared.key.kind()), minted(Origin::Minted))
                    }
                    (Supply::Given(value), _) if !record.refused.contains(&value.digest()) => {
                        (value.clone(), minted(Origin::Supplied))
                    }
                    // Neither our copy nor the source is at hand: what stands there is the only
                    // value anybody can be using, or else what worked before it.
                    (Supply::Given(_) | Supply::Withheld, Some(value)) => {
                        (value, (Origin::Adopted, Occurrence::DriftAdopted))
                    }
                    (Supply::Given(_) | Supply::Withheld, None) => {
                        let earlier = record.previous.iter().rev();
                        let last = earlier
                            .map(|previous| previous.digest)
                            .find_map(|digest| self.recover(entry, digest, declared));
                        let Some(value) = last else {
                            self.remove(entry);
                            return;
                        };
                        (value, (record.origin, Occurrence::Restored))
                    }
                }
            }
        };
        self.succeed(record, &value, origin);
        self.put(entry.to_owned(), value);
        verdict.happened(occurrence);
    }

    /// Previous values that were changed or dropped are put back, if they still have to stand.
    fn mend_previous(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) {
        let now = self.input.now;
        let previous = std::mem::take(&mut record.previous);
        for previous in previous {
            let name = layout::previous(entry, previous.generation);
            let stands = |value: &KeyMaterial| value.digest() == previous.digest;
            if previous.retires.is_some_and(|at| at <= now) || self.value(&name).is_some_and(stands)
            {
                record.previous.push(previous);
            } else if let Some(value) = self.recover(entry, previous.digest, declared) {
                self.put(name, value);
                verdict.happened(Occurrence::Restored);
                record.previous.push(previous);
            } else {
                self.remove(&name);
            }
        }
    }

    /// What stands under the reserved names of previous values is ours, although no record tells of
    /// it: the ledger was lost, or a host that had read the store before wrote it back. It gets an
    /// overlap, for clients may be using it, unless it was revoked.
    fn take_back_previous(&mut self, entry: &str, record: &mut Record, declared: &Declared) {
        let now = self.input.now;
        for (generation, name) in self.previous_names(entry) {
            let known = |previous: &Previous| previous.generation == generation;
            if record.previous.iter().any(known) {
                continue;
            }
            let digest = self
                .value(&name)
                .filter(|value| !value.expose().is_empty())
                .map(KeyMaterial::digest)
                .filter(|digest| {
                    *digest != record.digest
                        && !record.refused.contains(digest)
                        && record.previous.iter().all(|known| known.digest != *digest)
                        && record.previous.len() < MAX_PREVIOUS
                        && declared.key.can_overlap()
                });
            let Some(digest) = digest else {
                self.remove(&name);
                continue;
            };
            let since = record.distributed.map(|_| now);
            record.previous.push(Previous {
                generation,
                digest,
                shown: record.shown.min(now),
                since,
                retires: since.map(|since| add(since, declared.policy.overlap)),
            });
            record.generation = record.generation.max(generation.saturating_add(1));
        }
        record.previous.sort_by_key(|previous| previous.generation);
    }

    /// A next generation that clients should have at once: its predecessor no longer works.
    fn succeed(&self, record: &mut Record, value: &KeyMaterial, origin: Origin) {
        record.generation = record.generation.saturating_add(1);
        record.digest = value.digest();
        record.origin = origin;
        record.minted = self.input.now;
        record.shown = self.input.now;
        record.distributed = None;
    }

    /// A changed source is a turn like any other. Answers what the new value replaced.
    fn follow_source(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) -> Option<Digest> {
        let Supply::Given(value) = &declared.supply else {
            return None;
        };
        let digest = value.digest();
        if digest == record.digest {
            record.origin = Origin::Supplied;
            return None;
        }
        if record.refused.contains(&digest) {
            verdict.notes.push(Note::SourceUnchanged);
            return None;
        }
        if record.previous.len() >= MAX_PREVIOUS && !self.revoking(record, declared) {
            verdict.notes.push(Note::TurnDeferred);
            return None;
        }
        let replaced = record.digest;
        self.publish(entry, record, declared, value.clone(), Origin::Supplied);
        verdict.happened(Occurrence::Rotated);
        Some(replaced)
    }

    fn revoking(&self, record: &Record, declared: &Declared) -> bool {
        declared.triggers.turn(&record.marks, None, self.input.now) == Turn::Revoke
    }

    /// When the schedule turns the key next; a value from the user's Secret turns with its source.
    fn due(record: &Record, declared: &Declared) -> Option<Timestamp> {
        matches!(declared.supply, Supply::Mint)
            .then(|| declared.policy.due(record.minted, &declared.owner.uid))
            .flatten()
    }

    /// Turns the key if a trigger or the schedule says so.
    fn turn_when_due(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        replaced: Option<Digest>,
        verdict: &mut Verdict,
    ) {
        let now = self.input.now;
        let mints = matches!(declared.supply, Supply::Mint);
        let due = Self::due(record, declared);
        match declared.triggers.turn(&record.marks, due, now) {
            // It stays asked for: the source's next value takes the place of this one at once.
            Turn::Revoke if !mints && replaced.is_none() && record.previous.is_empty() => {
                if !verdict.notes.contains(&Note::SourceUnchanged) {
                    verdict.notes.push(Note::SourceUnchanged);
                }
                return;
            }
            Turn::Revoke => self.revoke(entry, record, declared, replaced, verdict),
            Turn::Rotate
                if mints && record.previous.len() >= MAX_PREVIOUS && declared.key.can_overlap() =>
            {
                verdict.notes.push(Note::TurnDeferred);
                return;
            }
            Turn::Rotate if mints => {
                let value = (self.fresh)(declared.key.kind());
                self.publish(entry, record, declared, value, Origin::Minted);
                verdict.happened(Occurrence::Rotated);
            }
            Turn::Rotate | Turn::Wait => {}
        }
        record.marks = declared.triggers.handled(&record.marks, now);
    }

    /// The next moment at which time alone changes something about the key.
    fn look_ahead(&mut self, record: &Record, declared: &Declared, due: Option<Timestamp>) {
        let (rotate_at, revoke_at) = declared.triggers.ahead(&record.marks);
        for at in [rotate_at, revoke_at, due] {
            self.look_at(at);
        }
        self.look_at_retirements(record);
        if declared.distribution != Distribution::None {
            let earlier = record.previous.iter().map(|previous| previous.shown);
            for shown in earlier.chain([record.shown]) {
                self.look_at(Some(shown));
            }
        }
    }

    fn look_at_retirements(&mut self, record: &Record) {
        for previous in &record.previous {
            self.look_at(previous.retires);
        }
    }

    /// A new current value with the old one beside it: the first phase of a turn.
    fn publish(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        value: KeyMaterial,
        origin: Origin,
    ) {
        let replaced = self.value(entry).cloned();
        let (generation, digest, shown) = (record.generation, record.digest, record.shown);
        self.succeed(record, &value, origin);
        if let Some(replaced) = replaced.filter(|_| declared.key.can_overlap()) {
            self.put(layout::previous(entry, generation), replaced);
            record.previous.push(Previous {
                generation,
                digest,
                shown,
                since: None,
                retires: None,
            });
            record.shown = add(self.input.now, self.input.host_reload);
        }
        self.put(entry.to_owned(), value);
    }

    /// Every value of the entry that we can take back is taken back, now and for good.
    fn revoke(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        replaced: Option<Digest>,
        verdict: &mut Verdict,
    ) {
        let mut revoked: Vec<Digest> = replaced.into_iter().collect();
        if matches!(declared.supply, Supply::Mint) {
            revoked.push(record.digest);
            let value = (self.fresh)(declared.key.kind());
            self.succeed(record, &value, Origin::Minted);
            self.put(entry.to_owned(), value);
        }
        revoked.extend(record.previous.iter().map(|previous| previous.digest));
        for previous in record.previous.drain(..) {
            self.remove(&layout::previous(entry, previous.generation));
        }
        revoked.extend(self.remove_twins(entry, None));
        revoked.retain(|digest| *digest != record.digest);
        record.refused.retain(|digest| !revoked.contains(digest));
        record.refused.append(&mut revoked);
        let excess = record.refused.len().saturating_sub(MOST_REFUSED);
        record.refused.drain(..excess);
        record.shown = record.shown.min(self.input.now);
        record.distributed = None;
        record.revoked = Some(self.input.now);
        verdict.happened(Occurrence::Revoked);
    }

    /// Starts the overlap when the last client has the value.
    fn note_distribution(&mut self, record: &mut Record, declared: &Declared) {
        let now = self.input.now;
        let reached = match declared.distribution {
            // Whoever was waited for until now may just have been taken off the list.
            Distribution::None => Some(record.shown.max(now)),
            // Nobody can have an earlier value, so nobody is waited for.
            _ if record.previous.is_empty() => Some(record.shown),
            Distribution::Complete { generation, at } if generation == record.generation => {
                Some(at.min(now).max(record.shown))
            }
            Distribution::Complete { .. } | Distribution::Outstanding => None,
        };
        match record.distributed {
            None => record.distributed = reached,
            // It was to count from when hosts have surely seen the value, but a client came
            // before that, and gets the one before it.
            Some(planned) if planned > now && reached != Some(planned) => {
                record.distributed = reached;
                for previous in &mut record.previous {
                    if previous.since.is_some_and(|since| since > now) {
                        previous.since = reached;
                        previous.retires = previous.retires.filter(|_| reached.is_some());
                    }
                }
            }
            Some(_) => {}
        }
        for previous in &mut record.previous {
            previous.since = previous.since.or(record.distributed);
            // A longer overlap holds for those that run; a shorter one only from the next.
            let promised = previous
                .since
                .map(|since| add(since, declared.policy.overlap));
            previous.retires = previous.retires.max(promised);
        }
    }

    /// Removes what has outlived its promise; says whether there was any.
    fn retire(&mut self, entry: &str, record: &mut Record) -> bool {
        let now = self.input.now;
        let count = record.previous.len();
        let (retired, living): (Vec<_>, Vec<_>) = record
            .previous
            .drain(..)
            .partition(|previous| previous.retires.is_some_and(|at| at <= now));
        for previous in &retired {
            self.remove(&layout::previous(entry, previous.generation));
        }
        record.previous = living;
        record.previous.len() < count
    }

    fn handout(&self, entry: &str, record: &Record) -> Option<Handout> {
        handout(self.input.now, entry, record, |name| {
            self.value(name).cloned()
        })
    }

    /// The host ignores every key of an app that has no master key: one is made when there is
    /// none, and it stays as long as any other key does.
    fn ensure_master(&mut self, verdicts: &mut [Verdict]) {
        if verdicts
            .iter()
            .any(|verdict| verdict.record.is_some() && layout::is_master(&verdict.entry))
        {
            return;
        }
        let siblings = self.has_siblings();
        match self.ledger.entries.remove(layout::MASTER) {
            Some(record)
                if record
                    .owner
                    .as_ref()
                    .is_some_and(|owner| self.input.spared.contains(&owner.uid)) =>
            {
                self.ledger
                    .entries
                    .insert(layout::MASTER.to_owned(), record);
            }
            Some(record) if record.owner.is_some() && record.deletion == DeletionPolicy::Retain => {
            }
            Some(mut record) if siblings => {
                record.kept_after = record
                    .owner
                    .take()
                    .map(|owner| owner.name)
                    .or(record.kept_after);
                if let Some(name) = &record.kept_after {
                    for verdict in verdicts
                        .iter_mut()
                        .filter(|verdict| verdict.problem.is_none())
                    {
                        verdict.notes.push(Note::MasterKept(name.clone()));
                    }
                }
                let acceptable = |value: &KeyMaterial| !record.refused.contains(&value.digest());
                let value = self
                    .effective(layout::MASTER)
                    .filter(acceptable)
                    .or_else(|| {
                        let kept = self.input.kept.get(layout::MASTER);
                        kept.filter(|kept| kept.digest() == record.digest).cloned()
                    })
                    .unwrap_or_else(|| (self.fresh)(KeyKind::Master));
                if value.digest() != record.digest {
                    self.succeed(&mut record, &value, Origin::Adopted);
                }
                self.put(layout::MASTER.to_owned(), value);
                self.ledger
                    .entries
                    .insert(layout::MASTER.to_owned(), record);
            }
            Some(_) => self.remove(layout::MASTER),
            None if self.ledger.entries.is_empty() || self.master_stands() => {}
            None => {
                let value = (self.fresh)(KeyKind::Master);
                let now = self.input.now;
                let record = Record {
                    owner: None,
                    kept_after: None,
                    declared: None,
                    generation: 1,
                    digest: value.digest(),
                    origin: Origin::Minted,
                    minted: now,
                    shown: now,
                    distributed: None,
                    revoked: None,
                    refused: Vec::new(),
                    marks: Marks::default(),
                    deletion: DeletionPolicy::Delete,
                    previous: Vec::new(),
                };
                self.put(layout::MASTER.to_owned(), value);
                self.ledger
                    .entries
                    .insert(layout::MASTER.to_owned(), record);
            }
        }
    }

    /// Whether another key would endanger those that the store has.
    fn is_full(&self) -> bool {
        let declared = self
            .ledger
            .entries
            .values()
            .filter(|record| record.owner.is_some());
        declared.count() >= MAX_KEYS
    }

    fn master_stands(&self) -> bool {
        self.standing()
            .any(|(entry, value)| layout::is_master(entry) && !value.expose().is_empty())
    }

    fn has_siblings(&self) -> bool {
        let standing = self.standing().map(|(entry, _)| entry);
        standing
            .chain(self.ledger.entries.keys())
            .any(|entry| !layout::is_master(entry))
    }

    /// The entries as this plan leaves them.
    fn standing(&self) -> impl Iterator<Item = (&String, &KeyMaterial)> {
        let untouched = self
            .input
            .stored
            .values
            .iter()
            .filter(|(entry, _)| !self.changes.contains_key(*entry));
        untouched.chain(
            self.changes
                .iter()
                .filter_map(|(entry, value)| value.as_ref().map(|value| (entry, value))),
        )
    }
}

#[cfg(test)]
mod tests;
