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
//! no value is removed before its promised time except by a revocation; generations only rise; the
//! next look lies in the future.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use crate::domain::{
    key::{KeyKind, KeyMaterial},
    layout::{self, KeyRef},
    ledger::{DeletionPolicy, Ledger, Marks, Origin, Owner, Previous, Record},
    rotation::{self, DEFAULT_OVERLAP, MAX_PREVIOUS, Policy, Triggers, Turn, add},
};

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

/// Why a declared key is not as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Another resource has this entry.
    Conflict(String),
    /// The source does not give a value, and none was ever published.
    NoValue,
}

/// Something a person should know although the key is in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// `host.master` outlives its resource because the host ignores the other keys without it.
    MasterKept(String),
    /// A revocation was asked for, but the value comes from the user's Secret and did not change.
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
    let winners = draft.winners();
    draft.sweep(&winners);
    let mut verdicts: Vec<Verdict> = input
        .declared
        .iter()
        .enumerate()
        .map(|(index, declared)| {
            let entry = draft.entry_of(&declared.key);
            match winners.get(&layout::folded(&entry)) {
                Some(&winner) if winner != index => {
                    Verdict::conflict(entry, &input.declared[winner].owner.name)
                }
                _ => draft.settle(entry, declared),
            }
        })
        .collect();
    draft.ensure_master(&mut verdicts);
    Plan {
        changes: draft.changes,
        ledger: draft.ledger,
        verdicts,
        next_look: draft.look,
    }
}

/// What clients should have: the current value once hosts have surely seen it, until then the one
/// before it.
pub fn handout(
    now: Timestamp,
    entry: &str,
    record: &Record,
    value: impl Fn(&str) -> Option<KeyMaterial>,
) -> Option<Handout> {
    let previous = record.previous.last().filter(|_| now < record.shown);
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
    fn conflict(entry: String, winner: &str) -> Self {
        Self {
            entry,
            problem: Some(Problem::Conflict(winner.to_owned())),
            record: None,
            next_turn: None,
            handout: None,
            notes: Vec::new(),
            occurrences: Vec::new(),
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
    /// The data key of a declared key: the spelling that stands in the store already, if one does.
    fn entry_of(&self, key: &KeyRef) -> String {
        let wanted = key.data_key();
        if self.ledger.entries.contains_key(&wanted)
            || self.input.stored.values.contains_key(&wanted)
        {
            return wanted;
        }
        let same = |entry: &&String| entry.eq_ignore_ascii_case(&wanted);
        self.ledger
            .entries
            .keys()
            .find(same)
            .or_else(|| self.input.stored.values.keys().find(same))
            .cloned()
            .unwrap_or(wanted)
    }

    /// Which declared key has each entry: the incumbent, else the older, else the first by name.
    fn winners(&self) -> HashMap<String, usize> {
        let declared = self.input.declared;
        let mut winners: HashMap<String, usize> = HashMap::new();
        for (index, candidate) in declared.iter().enumerate() {
            let entry = self.entry_of(&candidate.key);
            let incumbent = self
                .ledger
                .entries
                .get(&entry)
                .and_then(|record| record.owner.as_ref());
            let rank = |declared: &Declared| {
                (
                    Some(&declared.owner.uid) != incumbent.map(|owner| &owner.uid),
                    declared.created,
                    declared.owner.name.clone(),
                )
            };
            winners
                .entry(layout::folded(&entry))
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
                    for previous in &record.previous {
                        self.remove(&layout::previous(&entry, previous.generation));
                    }
                    self.remove(&entry);
                    self.ledger.entries.remove(&entry);
                }
                DeletionPolicy::Retain => {
                    let latest = add(self.input.now, DEFAULT_OVERLAP);
                    for previous in &mut record.previous {
                        previous.retires.get_or_insert(latest);
                    }
                    self.retire(&entry, &mut record);
                    if record.previous.is_empty() {
                        self.ledger.entries.remove(&entry);
                    } else {
                        self.ledger.entries.insert(entry, record);
                    }
                }
            }
        }
    }

    /// Brings one entry to what its resource declares.
    fn settle(&mut self, entry: String, declared: &Declared) -> Verdict {
        let mut verdict = Verdict {
            entry: entry.clone(),
            problem: None,
            record: None,
            next_turn: None,
            handout: None,
            notes: Vec::new(),
            occurrences: Vec::new(),
        };
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
        self.follow_source(&entry, &mut record, declared, &mut verdict);
        verdict.next_turn = self.turn_when_due(&entry, &mut record, declared, &mut verdict);
        self.note_distribution(&mut record, declared);
        if self.retire(&entry, &mut record) {
            verdict.occurrences.push(Occurrence::Retired);
        }
        if self.input.now < record.shown && declared.distribution != Distribution::None {
            self.look_at(Some(record.shown));
        }
        verdict.handout = self.handout(&entry, &record);
        verdict.record = Some(record.clone());
        self.ledger.entries.insert(entry, record);
        verdict
    }

    /// An entry that we have no record of: adopt what is there, else what clients still hold, else
    /// publish a first value. Values under the reserved names of previous ones are ours, from a
    /// ledger that was lost: they get a new overlap.
    fn first_sight(
        &mut self,
        entry: &str,
        declared: &Declared,
        verdict: &mut Verdict,
    ) -> Option<Record> {
        let now = self.input.now;
        let mut previous: Vec<Previous> = self
            .input
            .stored
            .values
            .iter()
            .filter_map(|(name, value)| {
                let generation = layout::previous_generation(entry, name)?;
                Some(Previous {
                    generation,
                    digest: value.digest(),
                    retires: None,
                })
            })
            .collect();
        previous.sort_by_key(|previous| previous.generation);
        let generation = previous
            .last()
            .map_or(1, |previous| previous.generation.saturating_add(1));
        let existing = self
            .value(entry)
            .filter(|value| !value.expose().is_empty())
            .cloned();
        let (value, generation, origin, occurrence) =
            match (existing, &declared.salvage, &declared.supply) {
                (Some(value), ..) => (value, generation, Origin::Adopted, Occurrence::Adopted),
                (None, Some((held, value)), Supply::Mint) => (
                    value.clone(),
                    generation.max(*held),
                    Origin::Minted,
                    Occurrence::Restored,
                ),
                (None, _, Supply::Mint) => (
                    (self.fresh)(declared.key.kind()),
                    generation,
                    Origin::Minted,
                    Occurrence::Minted,
                ),
                (None, _, Supply::Given(value)) => (
                    value.clone(),
                    generation,
                    Origin::Supplied,
                    Occurrence::Minted,
                ),
                (None, _, Supply::Withheld) => return None,
            };
        verdict.occurrences.push(occurrence);
        let record = Record {
            owner: Some(declared.owner.clone()),
            kept_after: None,
            generation,
            digest: value.digest(),
            origin,
            minted: now,
            shown: now,
            distributed: None,
            revoked: None,
            marks: declared.triggers.baseline(),
            deletion: declared.deletion,
            previous,
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
            record.marks = declared.triggers.baseline();
        }
        record.owner = Some(declared.owner.clone());
        record.kept_after = None;
        record.deletion = declared.deletion;
        rotation::rebase(record, declared.policy.overlap, self.input.now);
    }

    /// Undoes or takes over what others did to our entries since we wrote them.
    fn mend(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) {
        let observed = self
            .value(entry)
            .filter(|value| !value.expose().is_empty())
            .cloned();
        let ours = |digest| {
            self.input
                .kept
                .get(entry)
                .filter(|kept: &&KeyMaterial| kept.digest() == digest)
                .cloned()
        };
        match observed {
            Some(value) if value.digest() == record.digest => {}
            Some(value)
                if declared.drift == Drift::Adopt && matches!(declared.supply, Supply::Mint) =>
            {
                self.succeed(record, &value, Origin::Adopted);
                verdict.occurrences.push(Occurrence::DriftAdopted);
            }
            observed => {
                let undone = if observed.is_some() {
                    Occurrence::DriftUndone
                } else {
                    Occurrence::Restored
                };
                if let Some(value) = ours(record.digest) {
                    self.put(entry.to_owned(), value);
                    verdict.occurrences.push(undone);
                } else if let (Some(value), true) =
                    (&observed, matches!(declared.supply, Supply::Withheld))
                {
                    // Neither our copy nor the source is at hand: what stands there is the only
                    // value anybody can be using.
                    let value = value.clone();
                    self.succeed(record, &value, Origin::Adopted);
                    verdict.occurrences.push(Occurrence::DriftAdopted);
                } else if let Some((value, origin)) = self.replacement(declared) {
                    self.succeed(record, &value, origin);
                    self.put(entry.to_owned(), value);
                    verdict.occurrences.push(Occurrence::Replaced);
                }
            }
        }
        let mut lost = Vec::new();
        for previous in &record.previous {
            let name = layout::previous(entry, previous.generation);
            if self
                .value(&name)
                .is_some_and(|value| value.digest() == previous.digest)
            {
                continue;
            }
            match self
                .input
                .kept
                .get(&name)
                .filter(|kept| kept.digest() == previous.digest)
                .cloned()
            {
                Some(value) => {
                    self.put(name, value);
                    verdict.occurrences.push(Occurrence::Restored);
                }
                None => {
                    self.remove(&name);
                    lost.push(previous.generation);
                }
            }
        }
        record
            .previous
            .retain(|previous| !lost.contains(&previous.generation));
    }

    /// A value for an entry whose own is lost.
    fn replacement(&mut self, declared: &Declared) -> Option<(KeyMaterial, Origin)> {
        match &declared.supply {
            Supply::Mint => Some(((self.fresh)(declared.key.kind()), Origin::Minted)),
            Supply::Given(value) => Some((value.clone(), Origin::Supplied)),
            Supply::Withheld => None,
        }
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

    /// A changed source is a turn like any other.
    fn follow_source(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) {
        let Supply::Given(value) = &declared.supply else {
            return;
        };
        if value.digest() == record.digest {
            record.origin = Origin::Supplied;
            return;
        }
        let revoking = declared.triggers.turn(&record.marks, None, self.input.now) == Turn::Revoke;
        if !revoking && record.previous.len() >= MAX_PREVIOUS {
            verdict.notes.push(Note::TurnDeferred);
            return;
        }
        self.publish(entry, record, declared, value.clone(), Origin::Supplied);
        verdict.occurrences.push(Occurrence::Rotated);
    }

    /// Turns the key if a trigger or the schedule says so; answers when the schedule does next.
    fn turn_when_due(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) -> Option<Timestamp> {
        let now = self.input.now;
        let mints = matches!(declared.supply, Supply::Mint);
        let due = |record: &Record| {
            if mints {
                declared.policy.due(record.minted, &declared.owner.uid)
            } else {
                None
            }
        };
        match declared.triggers.turn(&record.marks, due(record), now) {
            Turn::Revoke => {
                self.revoke(entry, record, declared, verdict);
                record.marks = declared.triggers.handled(&record.marks, now);
            }
            Turn::Rotate
                if mints && record.previous.len() >= MAX_PREVIOUS && declared.key.can_overlap() =>
            {
                verdict.notes.push(Note::TurnDeferred);
                return due(record);
            }
            Turn::Rotate => {
                if mints {
                    let value = (self.fresh)(declared.key.kind());
                    self.publish(entry, record, declared, value, Origin::Minted);
                    verdict.occurrences.push(Occurrence::Rotated);
                }
                record.marks = declared.triggers.handled(&record.marks, now);
            }
            Turn::Wait(_) => record.marks = declared.triggers.handled(&record.marks, now),
        }
        if let Turn::Wait(at) = declared.triggers.turn(&record.marks, due(record), now) {
            self.look_at(at);
        }
        due(record)
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
        let (generation, digest) = (record.generation, record.digest);
        self.succeed(record, &value, origin);
        if let Some(replaced) = replaced.filter(|_| declared.key.can_overlap()) {
            self.put(layout::previous(entry, generation), replaced);
            record.previous.push(Previous {
                generation,
                digest,
                retires: None,
            });
            record.shown = add(self.input.now, self.input.host_reload);
        }
        self.put(entry.to_owned(), value);
    }

    /// Every value of the entry that we can take back is taken back, now.
    fn revoke(
        &mut self,
        entry: &str,
        record: &mut Record,
        declared: &Declared,
        verdict: &mut Verdict,
    ) {
        if matches!(declared.supply, Supply::Mint) {
            let value = (self.fresh)(declared.key.kind());
            self.succeed(record, &value, Origin::Minted);
            self.put(entry.to_owned(), value);
        } else if record.previous.is_empty() {
            verdict.notes.push(Note::SourceUnchanged);
        }
        for previous in record.previous.drain(..) {
            self.remove(&layout::previous(entry, previous.generation));
        }
        record.shown = self.input.now;
        record.revoked = Some(self.input.now);
        verdict.occurrences.push(Occurrence::Revoked);
    }

    /// Starts the overlap when the last client has the value.
    fn note_distribution(&mut self, record: &mut Record, declared: &Declared) {
        let reached = match declared.distribution {
            Distribution::None => Some(record.shown),
            // Nobody can have an earlier value, so nobody is waited for.
            _ if record.previous.is_empty() => Some(record.shown),
            Distribution::Complete { generation, at } if generation == record.generation => {
                Some(at.max(record.shown))
            }
            Distribution::Complete { .. } | Distribution::Outstanding => None,
        };
        if record.distributed.is_none() {
            record.distributed = reached;
        }
        let Some(distributed) = record.distributed else {
            return;
        };
        let promised = add(distributed, declared.policy.overlap);
        let newest = record.generation.saturating_sub(1);
        for previous in &mut record.previous {
            match previous.retires {
                None => previous.retires = Some(promised),
                // A longer overlap holds for the one that runs; a shorter one only from the next.
                Some(at) if previous.generation == newest && promised > at => {
                    previous.retires = Some(promised)
                }
                Some(_) => {}
            }
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
        for previous in &living {
            self.look_at(previous.retires);
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
        let siblings = self.siblings_stand();
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
                let value = self
                    .value(layout::MASTER)
                    .filter(|value| !value.expose().is_empty())
                    .cloned();
                let kept = || {
                    self.input
                        .kept
                        .get(layout::MASTER)
                        .filter(|kept| kept.digest() == record.digest)
                        .cloned()
                };
                let value = value
                    .or_else(kept)
                    .unwrap_or_else(|| (self.fresh)(KeyKind::Master));
                record.digest = value.digest();
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
                    generation: 1,
                    digest: value.digest(),
                    origin: Origin::Minted,
                    minted: now,
                    shown: now,
                    distributed: None,
                    revoked: None,
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

    fn master_stands(&self) -> bool {
        self.standing()
            .any(|(entry, value)| layout::is_master(entry) && !value.expose().is_empty())
    }

    fn siblings_stand(&self) -> bool {
        self.standing().any(|(entry, _)| !layout::is_master(entry))
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
