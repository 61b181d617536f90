//! What is to become of one secret: a pure function of its history, its declaration and the time.
//!
//! Every new entry takes the next number, so that set, delete, recover and purge are totally ordered
//! whatever clocks say, and at most one is planned at a time: what follows from it is planned when
//! it stands.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::domain::{
    ledger::Marks,
    rotation::{MAX_PREVIOUS, Policy, Triggers, Turn, add},
    vault::{
        attributes::{Attributes, Kind, Managed},
        envelope::ValueDigest,
        history::{Entry, Fault, History, State},
        name::{SecretName, VaultId, VersionId},
    },
};

/// A recorded time this far ahead of the clock means that the clock was wrong when it was recorded.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(2);

/// How long an entry stands at least before it is pruned. Its number is free once it is gone, and a
/// write that was decided on before the entry was made, and arrives only now, must find it taken.
pub const LINGER: SignedDuration = SignedDuration::from_secs(20);

/// Where the values of a declared secret come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Claviger makes them.
    Minted,
    /// They follow an entry of a Secret, which now holds this; `None` when it cannot be used.
    Followed(Option<ValueDigest>),
}

/// Which versions are kept that are neither current nor in overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// This many, the newest.
    pub versions: usize,
    /// And of these only those that were replaced less than this ago.
    pub age: Option<SignedDuration>,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            versions: 10,
            age: None,
        }
    }
}

/// What the manifest says of the current value's attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// `contentType`.
    pub content_type: Option<String>,
    /// `tags`.
    pub tags: BTreeMap<String, String>,
    /// `notBefore`.
    pub not_before: Option<Timestamp>,
    /// `expires`.
    pub expires: Option<Timestamp>,
}

/// A secret as the vault's manifest declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: SecretName,
    /// Where its values come from.
    pub source: Source,
    /// Which Secret and entry it follows, as `name/key`; nothing if it does not.
    pub origin: Option<String>,
    /// When it turns.
    pub policy: Policy,
    /// What turns it out of turn.
    pub triggers: Triggers,
    /// What is kept of it.
    pub keep: Keep,
    /// Its attributes.
    pub shape: Shape,
}

/// What is asked of a deleted secret by annotation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Take the deletion back, at this time.
    pub recover: Option<Timestamp>,
    /// Purge it, at this time.
    pub purge: Option<Timestamp>,
}

/// How far a value has got, with whoever reads it from a synced Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Everybody has had it since then.
    Since(Timestamp),
    /// Somebody does not have it yet.
    NotYet,
}

/// What holds for all secrets of a vault at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The time.
    pub now: Timestamp,
    /// How long a deleted secret can be recovered.
    pub retention: SignedDuration,
    /// Whether only the end of the retention purges.
    pub purge_protection: bool,
    /// The id of a new entry, if there is to be one.
    pub fresh: VersionId,
    /// The vault, so that secrets of the same name do not turn at the same moment in all of them.
    pub vault: VaultId,
}

/// Something to do to a secret's objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a new entry with a new value.
    Create {
        /// Its number.
        sequence: u32,
        /// Its attributes.
        attributes: Attributes,
    },
    /// Make a new entry without one.
    Mark {
        /// Its number.
        sequence: u32,
        /// Its attributes.
        attributes: Attributes,
    },
    /// Change the attributes of an entry.
    Amend {
        /// Its number.
        sequence: u32,
        /// What they become.
        attributes: Attributes,
    },
    /// Delete an entry's object.
    Remove {
        /// Its number.
        sequence: u32,
        /// What it was when this was decided.
        seen: Entry,
    },
}

impl Action {
    /// Whether an entry, as it is now, is what this was decided on: somebody else may have written in
    /// the meantime, and their word is not to be lost.
    pub fn stands(&self, entry: Option<&Entry>) -> bool {
        match self {
            // The number is taken by then, and the apiserver refuses.
            Self::Create { .. } | Self::Mark { .. } => true,
            Self::Amend { attributes, .. } => {
                entry.and_then(Entry::attributes).is_some_and(|before| {
                    before.id == attributes.id
                        && before.revision.saturating_add(1) == attributes.revision
                })
            }
            Self::Remove { seen, .. } => entry == Some(seen),
        }
    }
}

/// Where a secret stands, for its report.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// There is no value and none is wanted.
    Absent,
    /// A value is to be had as soon as the source can be used.
    Awaiting,
    /// There is a current value.
    Live(Live),
    /// It was deleted and can be recovered until then.
    Deleted(Timestamp),
    /// It is being purged.
    Purging,
    /// The entry that decides cannot be trusted.
    Broken(u32, Fault),
}

/// A secret that has a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The current version.
    pub version: VersionId,
    /// Its number.
    pub sequence: u32,
    /// Which value of the declared secret it is; 0 for others.
    pub generation: u32,
    /// Since when.
    pub minted: Timestamp,
    /// When it turns by its schedule.
    pub next_turn: Option<Timestamp>,
    /// When the last earlier value stops being handed out; `None` when it is not known yet or there
    /// is none.
    pub previous_until: Option<Timestamp>,
    /// Whether an earlier value is still handed out.
    pub overlapping: bool,
    /// Whether a turn is due but waits, because as many earlier values as can be are handed out.
    pub deferred: bool,
}

/// What is to become of a secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// Where it stands.
    pub standing: Standing,
    /// When to look again though nothing changes.
    pub next: Option<Timestamp>,
}

/// Plans one secret. `reached` tells how far the entry of a number, or a later one, has got.
pub fn plan(
    history: &History,
    declared: Option<&Declared>,
    asked: Asked,
    setting: &Setting,
    reached: impl Fn(u32) -> Reached,
) -> Plan {
    let mut planner = Planner {
        history,
        setting,
        actions: Vec::new(),
        next: None,
    };
    let standing = match declared {
        Some(declared) => planner.declared(declared, &reached),
        None => planner.undeclared(asked),
    };
    Plan {
        actions: planner.actions,
        standing,
        next: planner.next,
    }
}

struct Planner<'a> {
    history: &'a History,
    setting: &'a Setting,
    actions: Vec<Action>,
    next: Option<Timestamp>,
}

impl Planner<'_> {
    fn wake(&mut self, at: Option<Timestamp>) {
        if let Some(at) = at.filter(|at| *at > self.setting.now) {
            self.next = Some(self.next.map_or(at, |next| next.min(at)));
        }
    }

    fn declared(&mut self, declared: &Declared, reached: &impl Fn(u32) -> Reached) -> Standing {
        match self.history.state() {
            State::Absent => self.first(declared),
            State::Deleted { purge_at, .. } => {
                self.mark(Kind::Recovered, Some(declared));
                Standing::Deleted(purge_at)
            }
            State::Purging => self.purge(),
            State::Broken { sequence, fault } => self.broken(declared, sequence, fault),
            State::Live { sequence, current } => {
                let current = current.clone();
                self.live(declared, sequence, &current, reached)
            }
        }
    }

    /// The first value, or the first after a purge.
    fn first(&mut self, declared: &Declared) -> Standing {
        let marks = declared.triggers.baseline(self.setting.now);
        self.create(declared, marks, false)
    }

    /// The entry that decides cannot be trusted. One that was shredded on purpose is replaced;
    /// for others a person is to say so, by a trigger.
    fn broken(&mut self, declared: &Declared, sequence: u32, fault: Fault) -> Standing {
        let now = self.setting.now;
        let marks = self
            .history
            .0
            .values()
            .rev()
            .find_map(Entry::marks)
            .cloned();
        let marks = match (fault, marks) {
            (Fault::Shredded { .. }, None) => declared.triggers.baseline(now),
            (Fault::Shredded { .. }, Some(marks)) => declared.triggers.handled(&marks, now),
            (_, Some(marks)) if declared.triggers.turn(&marks, None, now) != Turn::Wait => {
                declared.triggers.handled(&marks, now)
            }
            _ => return Standing::Broken(sequence, fault),
        };
        match self.create(declared, marks, false) {
            Standing::Awaiting => Standing::Broken(sequence, fault),
            standing => standing,
        }
    }

    fn live(
        &mut self,
        declared: &Declared,
        sequence: u32,
        current: &Attributes,
        reached: &impl Fn(u32) -> Reached,
    ) -> Standing {
        let now = self.setting.now;
        let newest = self.history.0.last_key_value();
        let managed = current
            .managed
            .clone()
            .or_else(|| newest.and_then(|(_, entry)| entry.attributes()?.managed.clone()));
        let Some(managed) = managed.filter(|_| self.history.is_managed()) else {
            return self.adopt(declared, sequence, current);
        };
        let horizon = add(now, CLOCK_TOLERANCE);
        let ahead: Vec<(u32, Attributes)> = self
            .history
            .values()
            .filter(|(_, value)| value.created > horizon)
            .map(|(number, value)| (number, value.clone()))
            .collect();
        if !ahead.is_empty() {
            for (number, mut attributes) in ahead {
                attributes.created = now;
                self.amend(number, attributes);
            }
            return self.standing(declared, sequence, current, &managed, reached);
        }
        let due = match declared.source {
            Source::Minted => declared.policy.due(current.created, &self.jitter(declared)),
            Source::Followed(_) => None,
        };
        let asked = declared.triggers.turn(&managed.marks, due, now);
        let imported = managed.source.is_some();
        let turn = match (declared.source, asked) {
            // What was imported is not ours to go on handing out.
            (Source::Minted, Turn::Wait) if imported => Turn::Rotate,
            (Source::Minted, turn) => turn,
            (Source::Followed(Some(digest)), turn) if managed.source != Some(digest) => {
                if turn == Turn::Revoke {
                    Turn::Revoke
                } else {
                    Turn::Rotate
                }
            }
            (Source::Followed(_), _) => Turn::Wait,
        };
        if turn == Turn::Wait && asked == Turn::Revoke {
            // The next value is its source's to give, and revokes this one then. Those before it end now.
            for (number, mut attributes, _) in self.overlaps(sequence, declared, reached) {
                attributes.enabled = false;
                self.amend(number, attributes);
            }
            if !self.actions.is_empty() {
                return self.standing(declared, sequence, current, &managed, reached);
            }
        }
        let deferred = turn == Turn::Rotate
            && declared.source == Source::Minted
            && self.promised(sequence, declared, reached) >= MAX_PREVIOUS;
        if turn != Turn::Wait && !deferred {
            let marks = declared.triggers.handled(&managed.marks, now);
            self.create(declared, marks, turn == Turn::Revoke);
            return self.standing(declared, sequence, current, &managed, reached);
        }
        self.wake(due);
        let (rotate_at, revoke_at) = declared.triggers.ahead(&managed.marks);
        self.wake(rotate_at);
        self.wake(revoke_at);
        let mut shaped = shaped(current, declared);
        if let (Some(managed), Source::Followed(Some(_))) = (&mut shaped.managed, declared.source) {
            // The same value from another place.
            managed.origin.clone_from(&declared.origin);
        }
        if shaped != *current {
            self.amend(sequence, shaped);
        }
        self.retire(sequence, declared, reached);
        self.prune(sequence, declared.keep);
        let mut standing = self.standing(declared, sequence, current, &managed, reached);
        if let Standing::Live(live) = &mut standing {
            live.deferred = deferred;
        }
        standing
    }

    /// A secret that was there before the manifest declared it: a value that Claviger makes is kept
    /// until it is due, a value that follows a source gives way to it.
    fn adopt(&mut self, declared: &Declared, sequence: u32, current: &Attributes) -> Standing {
        // What was asked for since the last value that was looked after, or since this one was set,
        // is still to be done.
        let before = self
            .history
            .values()
            .rev()
            .find_map(|(_, attributes)| Some(attributes.managed.as_ref()?.marks.clone()));
        let marks = before.unwrap_or_else(|| declared.triggers.baseline(current.created));
        if let Source::Followed(digest) = declared.source {
            if digest.is_some() {
                let marks = declared.triggers.handled(&marks, self.setting.now);
                self.create(declared, marks, false);
            }
            return if digest.is_some() {
                Standing::Absent
            } else {
                Standing::Awaiting
            };
        }
        let managed = Managed {
            generation: self.generation().max(1),
            marks,
            overlap: 0,
            revoked: false,
            source: None,
            origin: None,
        };
        let mut attributes = current.clone();
        let mut at = sequence;
        if let Some((&newest, Entry::Authentic(marker))) = self.history.0.last_key_value()
            && newest != sequence
        {
            attributes = Attributes::clone(marker);
            at = newest;
        }
        let overlap = attributes
            .managed
            .as_ref()
            .map_or(0, |managed| managed.overlap);
        attributes.managed = Some(Managed { overlap, ..managed });
        self.amend(at, attributes);
        Standing::Live(Live {
            version: current.id,
            sequence,
            generation: self.generation().max(1),
            minted: current.created,
            next_turn: None,
            previous_until: None,
            overlapping: false,
            deferred: false,
        })
    }

    /// Earlier values are disabled when their overlap has passed.
    fn retire(&mut self, sequence: u32, declared: &Declared, reached: &impl Fn(u32) -> Reached) {
        for (number, attributes, end) in self.overlaps(sequence, declared, reached) {
            match end {
                Some(end) if end <= self.setting.now => {
                    let mut attributes = attributes;
                    attributes.enabled = false;
                    self.amend(number, attributes);
                }
                end => self.wake(end),
            }
        }
    }

    /// How many earlier values are handed out because Claviger promised it when it turned the secret;
    /// values that others have set are theirs.
    fn promised(
        &self,
        current: u32,
        declared: &Declared,
        reached: &impl Fn(u32) -> Reached,
    ) -> usize {
        let promises = |number: u32| {
            let successor = self.history.values().find(|(later, _)| *later > number);
            successor.is_some_and(|(_, attributes)| {
                let managed = attributes.managed.as_ref();
                managed.is_some_and(|managed| !managed.overlap().is_zero())
            })
        };
        self.overlaps(current, declared, reached)
            .iter()
            .filter(|(number, _, _)| promises(*number))
            .count()
    }

    /// Earlier values that are still enabled and follow the schedule, and when that ends.
    fn overlaps(
        &self,
        current: u32,
        declared: &Declared,
        reached: &impl Fn(u32) -> Reached,
    ) -> Vec<(u32, Attributes, Option<Timestamp>)> {
        let values: Vec<(u32, &Attributes)> = self
            .history
            .values()
            .filter(|(sequence, _)| *sequence <= current)
            .collect();
        let mut overlaps = Vec::new();
        for (index, (number, attributes)) in values.iter().enumerate() {
            let later = &values[index + 1..];
            let Some((next, successor)) = later.first() else {
                continue;
            };
            let Some(managed) = successor.managed.as_ref().filter(|_| attributes.enabled) else {
                continue;
            };
            let revoked = later.iter().any(|(_, later)| {
                later
                    .managed
                    .as_ref()
                    .is_some_and(|managed| managed.revoked)
            });
            let end = if revoked {
                Some(self.setting.now)
            } else {
                match reached(*next) {
                    Reached::Since(since) => Some(add(
                        since.max(successor.created),
                        managed.overlap().max(declared.policy.overlap),
                    )),
                    Reached::NotYet => None,
                }
            };
            overlaps.push((*number, (*attributes).clone(), end));
        }
        overlaps
    }

    /// What `keep` does not ask for goes, oldest first; so do marks that decide nothing any more.
    /// Nothing goes before it has lingered.
    fn prune(&mut self, current: u32, keep: Keep) {
        let now = self.setting.now;
        let newest = self.history.0.last_key_value().map(|(&number, _)| number);
        let numbers: Vec<u32> = self.history.0.keys().copied().collect();
        let mut retired: Vec<(u32, Option<Timestamp>)> = Vec::new();
        let mut gone = Vec::new();
        for (index, number) in numbers.iter().enumerate() {
            let replaced = || {
                numbers[index + 1..].iter().find_map(|later| {
                    let attributes = self.history.0[later].attributes()?;
                    (attributes.kind == Kind::Value).then_some(attributes.created)
                })
            };
            match &self.history.0[number] {
                Entry::Authentic(attributes) if attributes.kind != Kind::Value => {
                    if Some(*number) != newest {
                        gone.push(*number);
                    }
                }
                Entry::Authentic(attributes) if *number >= current || attributes.enabled => {}
                Entry::Gone(_) => {}
                Entry::Unreadable(_) if *number >= current => {}
                Entry::Authentic(_) | Entry::Unreadable(_) => retired.push((*number, replaced())),
            }
        }
        let surplus = retired.len().saturating_sub(keep.versions);
        for (index, (number, replaced)) in retired.into_iter().enumerate() {
            let until = keep
                .age
                .and_then(|age| replaced.map(|replaced| add(replaced, age)));
            if index < surplus || until.is_some_and(|until| until <= now) {
                gone.push(number);
            } else {
                self.wake(until);
            }
        }
        gone.sort_unstable();
        for sequence in gone {
            let until = self.lingers(sequence);
            if until.is_some_and(|until| until > now) {
                self.wake(until);
            } else {
                self.remove(sequence);
            }
        }
    }

    /// Until when an entry lingers at least, if it is known when it was made.
    fn lingers(&self, sequence: u32) -> Option<Timestamp> {
        let mut on = self.history.0.range(sequence..);
        let made = on.find_map(|(_, entry)| Some(entry.attributes()?.created))?;
        let ahead = made > add(self.setting.now, CLOCK_TOLERANCE);
        (!ahead).then(|| add(made, LINGER))
    }

    fn undeclared(&mut self, asked: Asked) -> Standing {
        let now = self.setting.now;
        match self.history.state() {
            State::Absent => {
                // What a purge that was interrupted has left.
                self.remove_all();
                Standing::Absent
            }
            State::Live { sequence, current } => {
                let (version, minted) = (current.id, current.created);
                let generation = self.generation();
                if self.history.is_managed() {
                    self.mark(Kind::Deleted, None);
                }
                Standing::Live(Live {
                    version,
                    sequence,
                    generation,
                    minted,
                    next_turn: None,
                    previous_until: None,
                    overlapping: false,
                    deferred: false,
                })
            }
            State::Deleted { since, purge_at } if since > add(now, CLOCK_TOLERANCE) => {
                // Nothing could be asked for later than that. The promised end stays.
                let newest = self.history.0.last_key_value();
                if let Some((&sequence, Entry::Authentic(marker))) = newest {
                    let mut attributes = Attributes::clone(marker);
                    attributes.created = now;
                    self.amend(sequence, attributes);
                }
                Standing::Deleted(purge_at)
            }
            State::Deleted { since, purge_at } => {
                let due = |at: Option<Timestamp>| at.filter(|at| *at > since);
                let recover = due(asked.recover);
                let purge = due(asked.purge).filter(|_| !self.setting.purge_protection);
                if recover.is_some_and(|at| at <= now) {
                    self.mark(Kind::Recovered, None);
                } else if purge.is_some_and(|at| at <= now) || purge_at <= now {
                    self.mark(Kind::Purging, None);
                } else {
                    self.wake(recover);
                    self.wake(purge);
                    self.wake(Some(purge_at));
                }
                Standing::Deleted(purge_at)
            }
            State::Purging => self.purge(),
            State::Broken { sequence, fault } => Standing::Broken(sequence, fault),
        }
    }

    /// Everything goes, oldest first, so that what says so goes last.
    fn purge(&mut self) -> Standing {
        self.remove_all();
        Standing::Purging
    }

    fn remove_all(&mut self) {
        for &sequence in self.history.0.keys() {
            self.remove(sequence);
        }
    }

    fn remove(&mut self, sequence: u32) {
        if let Some(seen) = self.history.0.get(&sequence).cloned() {
            self.actions.push(Action::Remove { sequence, seen });
        }
    }

    fn create(&mut self, declared: &Declared, marks: Marks, revoked: bool) -> Standing {
        let source = match declared.source {
            Source::Minted => None,
            Source::Followed(Some(digest)) => Some(digest),
            Source::Followed(None) => return Standing::Awaiting,
        };
        let now = self.setting.now;
        let generation = self.generation().saturating_add(1);
        let overlap = if revoked {
            SignedDuration::ZERO
        } else {
            declared.policy.overlap
        };
        let attributes = Attributes {
            name: declared.name.clone(),
            id: self.setting.fresh,
            kind: Kind::Value,
            enabled: true,
            not_before: declared.shape.not_before,
            expires: declared.shape.expires,
            created: now,
            updated: now,
            revision: 0,
            content_type: declared.shape.content_type.clone(),
            tags: declared.shape.tags.clone(),
            managed: Some(Managed {
                generation,
                marks,
                overlap: overlap.as_secs(),
                revoked,
                source,
                origin: source.and_then(|_| declared.origin.clone()),
            }),
            purge_at: None,
        };
        let sequence = self.history.next_sequence();
        self.actions.push(Action::Create {
            sequence,
            attributes,
        });
        Standing::Live(Live {
            version: self.setting.fresh,
            sequence,
            generation,
            minted: now,
            next_turn: None,
            previous_until: None,
            overlapping: false,
            deferred: false,
        })
    }

    fn mark(&mut self, kind: Kind, declared: Option<&Declared>) {
        let now = self.setting.now;
        let name = declared.map(|declared| &declared.name);
        let Some(name) = self.history.name().or(name).cloned() else {
            return;
        };
        let managed = declared.map(|declared| {
            self.history
                .values()
                .next_back()
                .and_then(|(_, attributes)| attributes.managed.clone())
                .unwrap_or(Managed {
                    generation: 0,
                    marks: declared.triggers.baseline(now),
                    overlap: 0,
                    revoked: false,
                    source: None,
                    origin: None,
                })
        });
        let attributes = Attributes {
            name,
            id: self.setting.fresh,
            kind,
            enabled: true,
            not_before: None,
            expires: None,
            created: now,
            updated: now,
            revision: 0,
            content_type: None,
            tags: BTreeMap::new(),
            managed,
            purge_at: (kind == Kind::Deleted).then(|| add(now, self.setting.retention)),
        };
        self.actions.push(Action::Mark {
            sequence: self.history.next_sequence(),
            attributes,
        });
    }

    fn amend(&mut self, sequence: u32, mut attributes: Attributes) {
        attributes.revision = attributes.revision.saturating_add(1);
        attributes.updated = self.setting.now;
        self.actions.push(Action::Amend {
            sequence,
            attributes,
        });
    }

    /// The generation of the newest value that had one.
    fn generation(&self) -> u32 {
        self.history
            .values()
            .rev()
            .find_map(|(_, attributes)| Some(attributes.managed.as_ref()?.generation))
            .unwrap_or_default()
    }

    fn jitter(&self, declared: &Declared) -> String {
        format!("{}/{}", self.setting.vault, declared.name.folded())
    }

    fn standing(
        &self,
        declared: &Declared,
        sequence: u32,
        current: &Attributes,
        managed: &Managed,
        reached: &impl Fn(u32) -> Reached,
    ) -> Standing {
        let overlaps = self.overlaps(sequence, declared, reached);
        Standing::Live(Live {
            version: current.id,
            sequence,
            generation: managed.generation,
            minted: current.created,
            next_turn: match declared.source {
                Source::Minted => declared.policy.due(current.created, &self.jitter(declared)),
                Source::Followed(_) => None,
            },
            previous_until: overlaps.iter().filter_map(|(_, _, end)| *end).max(),
            overlapping: overlaps
                .iter()
                .any(|(_, _, end)| end.is_none_or(|end| end > self.setting.now)),
            deferred: false,
        })
    }
}

/// The current value's attributes as the manifest wants them.
fn shaped(current: &Attributes, declared: &Declared) -> Attributes {
    let shape = &declared.shape;
    Attributes {
        enabled: true,
        content_type: shape.content_type.clone(),
        tags: shape.tags.clone(),
        not_before: shape.not_before,
        expires: shape.expires,
        ..current.clone()
    }
}

#[cfg(test)]
mod tests;
