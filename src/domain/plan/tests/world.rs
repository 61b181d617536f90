//! Random histories of one store: resources that come, change and go, a host that writes the store
//! its own way, clients that read copies and restart late, a clock that jumps, and an operator that
//! is down, crashes or loses its memory. It does what the controllers do with plans, and after
//! every plan holds what the module's documentation promises.
//!
//! *Progress* is how time counts for promises: real time, and what a clock jumped forwards (the
//! operator cannot tell that from time passing). A clock that goes back takes nothing of it back.

use proptest::{prelude::*, sample::Index, test_runner::Config};

use super::*;
use crate::domain::copies::{self, Held, Wanted};

const RESTART_DELAY: SignedDuration = SignedDuration::from_secs(10);
const SECRETS: usize = 2;
/// Wake-ups in one stretch of time, after which the operator sleeps to its end.
const MOST_WAKES: usize = 60;

/// What can happen.
#[derive(Clone, Debug)]
enum Event {
    /// Time passes while the operator runs.
    Pass(i64),
    /// Time passes while it does not; then it starts.
    Sleep(i64),
    /// The clock is set.
    Jump(i64),
    /// The operator decides and dies before it writes.
    Crash,
    /// The operator looks at the store and dies before it looks at the clients.
    Half,
    Create(Index),
    Delete(Index),
    /// Deleted and made anew under the same name before anybody looks.
    Renew(Index),
    Edit(Index, Edit),
    HostDrops(Index),
    HostRenews(Index),
    /// The host writes back what it had read before our last write.
    HostLags,
    /// The host renews under another spelling, with or without leaving the old one behind.
    HostRespells(Index, bool),
    HostWritesAnotherMaster,
    LedgerLost,
    SealedLost,
    /// The store is deleted; whether the operator saw what it held.
    StoreDeleted(bool),
    PodRestarts(Index, usize),
}

#[derive(Clone, Debug)]
enum Edit {
    Interval(Option<i64>),
    Overlap(i64),
    Generation(i64),
    RevokeGeneration(i64),
    RotateAt(Option<i64>),
    RevokeAt(Option<i64>),
    Source(Source),
    Drift(Drift),
    Deletion(DeletionPolicy),
    Suspended(bool),
    Target(usize, Option<bool>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Minted,
    Given(u8),
    Withheld,
}

/// A resource that may be declared: name, key.
fn candidates() -> Vec<(&'static str, KeyRef)> {
    let host = |key: &str| KeyRef::Host { key: key.into() };
    let function = |function: &str, key: &str| KeyRef::Function {
        function: function.into(),
        key: key.into(),
    };
    vec![
        ("host", host("default")),
        ("rival", host("Default")),
        ("master", KeyRef::Master),
        ("orders", function("Orders", "default")),
        (
            "system",
            KeyRef::System {
                key: "durabletask_extension".into(),
            },
        ),
    ]
}

#[derive(Clone, Debug)]
struct Resource {
    declared: Declared,
    source: Source,
    /// By client's Secret: absent, or whether its pods are restarted.
    targets: [Option<bool>; SECRETS],
}

/// The pods behind one target: what they read when they started.
#[derive(Clone, Debug, Default)]
struct Pods {
    holds: Option<String>,
    /// When the operator last restarted them.
    restarted: Option<Timestamp>,
    /// Progress and turn of the values they had.
    history: Vec<(i64, u64)>,
}

/// A value that was superseded with overlap and may be in use.
#[derive(Clone, Debug)]
struct Claim {
    entry: String,
    uid: String,
    text: String,
    /// When it was published, counted in turns.
    turn: u64,
    /// Progress from which its overlap can begin at the earliest.
    shown: i64,
    /// The overlap it was promised, once it has begun.
    promised: Option<SignedDuration>,
}

/// What the operator remembers of a deleted store.
#[derive(Clone)]
struct Memory {
    values: BTreeMap<String, KeyMaterial>,
    ledger: Ledger,
    sealed: BTreeMap<String, KeyMaterial>,
}

struct World {
    shelf: Shelf,
    /// Whether the store's ledger annotation is there.
    booked: bool,
    memory: Option<Memory>,
    sealed: BTreeMap<String, KeyMaterial>,
    before_last_write: BTreeMap<String, KeyMaterial>,
    resources: Vec<Resource>,
    secrets: [Held; SECRETS],
    pods: BTreeMap<(String, usize), Pods>,
    serial: u32,

    progress: i64,
    turns: u64,
    current: BTreeMap<String, (String, u64)>,
    claims: Vec<Claim>,
    /// By entry: values that were revoked.
    revoked: BTreeMap<String, BTreeSet<String>>,
    generations: HashMap<String, u32>,
    /// Since when (in progress) a rotated value is published.
    published: HashMap<String, i64>,
}

impl World {
    fn new() -> Self {
        Self {
            shelf: Shelf::new(),
            booked: false,
            memory: None,
            sealed: BTreeMap::new(),
            before_last_write: BTreeMap::new(),
            resources: Vec::new(),
            secrets: Default::default(),
            pods: BTreeMap::new(),
            serial: 0,
            progress: 0,
            turns: 0,
            current: BTreeMap::new(),
            claims: Vec::new(),
            revoked: BTreeMap::new(),
            generations: HashMap::new(),
            published: HashMap::new(),
        }
    }

    // What the controllers do

    /// Looks at everything until there is nothing more to do; answers when to look again.
    fn operate(&mut self) -> Option<Timestamp> {
        // A restart recorded ahead of the clock says nothing of changes that come now.
        let now = self.shelf.now;
        for pods in self.pods.values_mut() {
            pods.restarted = pods.restarted.filter(|at| *at <= now);
        }
        for _ in 0..8 {
            let (wrote, look) = self.look_at_store();
            let copied = self.look_at_clients();
            let (restarted, ready) = self.look_at_pods();
            if !wrote && !copied && !restarted {
                return [look, ready].into_iter().flatten().min();
            }
            self.set_clock(add(self.shelf.now, SignedDuration::from_millis(1)));
        }
        panic!("the operator does not come to rest");
    }

    fn gather(&mut self) -> Vec<Declared> {
        if self.resources.is_empty() {
            self.memory = None;
        }
        if !self.booked {
            let recalled = self.memory.as_ref().map(|memory| memory.ledger.clone());
            self.shelf.stored.ledger = recalled.unwrap_or_default();
        }
        let whole = {
            let values = &self.shelf.stored.values;
            let intact = |entry: &str, digest| {
                values
                    .get(entry)
                    .is_some_and(|value| value.digest() == digest)
            };
            self.shelf.stored.ledger.entries.iter().all(|(entry, it)| {
                intact(entry, it.digest)
                    && it.previous.iter().all(|previous| {
                        intact(
                            &layout::previous(entry, previous.generation),
                            previous.digest,
                        )
                    })
            })
        };
        self.shelf.kept = if whole {
            BTreeMap::new()
        } else {
            self.at_hand()
        };
        self.resources
            .iter()
            .map(|resource| Declared {
                distribution: self.distribution(resource),
                salvage: self.salvage(resource),
                ..resource.declared.clone()
            })
            .collect()
    }

    fn at_hand(&self) -> BTreeMap<String, KeyMaterial> {
        let mut kept = self.sealed.clone();
        if let Some(memory) = &self.memory {
            kept.extend(memory.values.clone());
            kept.extend(memory.sealed.clone());
        }
        kept
    }

    fn distribution(&self, resource: &Resource) -> Distribution {
        let Owner { name, uid } = &resource.declared.owner;
        let mut reached: Option<u32> = None;
        for (secret, restart) in resource.targets.iter().enumerate() {
            let Some(restart) = restart else { continue };
            let copy = self.secrets[secret].copies.entries.get(name);
            let Some(copy) = copy.filter(|copy| copy.owner.uid == *uid) else {
                return Distribution::Outstanding;
            };
            let restarted = copy
                .changed
                .is_none_or(|changed| self.restarted(name, secret).is_some_and(|at| at >= changed));
            if *restart && !restarted || reached.is_some_and(|it| it != copy.generation) {
                return Distribution::Outstanding;
            }
            reached = Some(copy.generation);
        }
        reached.map_or(Distribution::None, |generation| Distribution::Complete {
            generation,
            at: self.shelf.now,
        })
    }

    fn restarted(&self, name: &str, secret: usize) -> Option<Timestamp> {
        self.pods.get(&(name.to_owned(), secret))?.restarted
    }

    fn salvage(&self, resource: &Resource) -> Option<(u32, KeyMaterial)> {
        let name = &resource.declared.owner.name;
        resource
            .targets
            .iter()
            .zip(&self.secrets)
            .filter(|(target, _)| target.is_some())
            .filter_map(|(_, held)| {
                let copy = held.copies.entries.get(name)?;
                let value = held.values.get(name)?;
                (copy.owner.uid == resource.declared.owner.uid && copy.digest == value.digest())
                    .then(|| (copy.generation, value.clone()))
            })
            .max_by_key(|(generation, _)| *generation)
    }

    /// Says whether something was written, and when to look again.
    fn look_at_store(&mut self) -> (bool, Option<Timestamp>) {
        let declared = self.gather();
        self.give_up_what_is_lost(&declared);
        let before = self.shelf.stored.clone();
        let plan = self.shelf.plan(&declared);
        self.check_plan(&declared, &plan);
        let wrote = self.write(&before, &plan);
        self.account(&before, &declared, &plan);
        self.check_rest(&plan);
        self.check_store(&declared, &plan);
        (wrote, plan.next_look)
    }

    /// One write of values, ledger and sealed copy, if anything changed.
    fn write(&mut self, before: &Stored, plan: &Plan) -> bool {
        let booked = self.booked && before.ledger == plan.ledger;
        if plan.changes.is_empty() && (booked || plan.ledger.entries.is_empty() && !self.booked) {
            return false;
        }
        let exists = self.booked || !before.values.is_empty();
        if !exists && plan.changes.is_empty() {
            return false;
        }
        self.before_last_write.clone_from(&before.values);
        self.shelf.apply(plan);
        self.booked = !plan.ledger.entries.is_empty();
        self.memory = None;
        if !self.booked {
            self.sealed.clear();
        } else if !plan.changes.is_empty() || digests(&before.ledger) != digests(&plan.ledger) {
            self.sealed = self.shelf.published();
        }
        true
    }

    fn look_at_clients(&mut self) -> bool {
        let mut wrote = false;
        for secret in 0..SECRETS {
            let wanted: Vec<Wanted> = self
                .resources
                .iter()
                .filter(|resource| resource.targets[secret].is_some())
                .map(|resource| Wanted {
                    entry: resource.declared.owner.name.clone(),
                    owner: resource.declared.owner.clone(),
                    created: resource.declared.created,
                    deletion: resource.declared.deletion,
                    value: self.wanted_value(&resource.declared),
                })
                .collect();
            let plan = copies::plan(
                self.shelf.now,
                &self.secrets[secret],
                &wanted,
                &HashSet::new(),
            );
            let held = &mut self.secrets[secret];
            wrote |= !plan.changes.is_empty() || held.copies != plan.copies;
            for (entry, change) in &plan.changes {
                match change {
                    Some(value) => held.values.insert(entry.clone(), value.clone()),
                    None => held.values.remove(entry),
                };
            }
            held.copies = plan.copies;
            let again = copies::plan(self.shelf.now, held, &wanted, &HashSet::new());
            assert!(again.changes.is_empty() && again.copies == held.copies);
        }
        wrote
    }

    fn wanted_value(&self, declared: &Declared) -> Option<(u32, KeyMaterial)> {
        if declared.suspended || !self.booked {
            return None;
        }
        let wanted = declared.key.data_key();
        let mut records = self.shelf.stored.ledger.entries.iter();
        let (entry, record) = records.find(|(entry, record)| {
            layout::same(entry, &wanted)
                && record
                    .owner
                    .as_ref()
                    .is_some_and(|owner| owner.uid == declared.owner.uid)
        })?;
        let handout = handout(self.shelf.now, entry, record, |name| {
            self.shelf.stored.values.get(name).cloned()
        })?;
        let digest = handout.value.digest();
        let ours = record.digest == digest
            || record
                .previous
                .iter()
                .any(|it| it.generation == handout.generation && it.digest == digest);
        ours.then_some((handout.generation, handout.value))
    }

    /// Pods read what their Secret holds: at once, or when they are restarted.
    fn look_at_pods(&mut self) -> (bool, Option<Timestamp>) {
        let (mut any, mut ready) = (false, None::<Timestamp>);
        for resource in self.resources.clone() {
            let name = &resource.declared.owner.name;
            for (secret, restart) in resource.targets.iter().enumerate() {
                let Some(restart) = *restart else { continue };
                let copy = self.secrets[secret].copies.entries.get(name).cloned();
                let changed = copy.and_then(|copy| copy.changed);
                let restarted = self.restarted(name, secret);
                let unseen = changed.filter(|at| restarted.is_none_or(|seen| seen < *at));
                let fresh = !self.pods.contains_key(&(name.clone(), secret));
                if !restart || fresh {
                    self.restart(name, secret);
                } else if let Some(changed) = unseen.filter(|_| !resource.declared.suspended) {
                    let at = add(changed, RESTART_DELAY);
                    if at <= self.shelf.now {
                        self.restart(name, secret);
                        let pods = self.pods.entry((name.clone(), secret)).or_default();
                        pods.restarted = Some(self.shelf.now);
                        any = true;
                    } else {
                        ready = ready.into_iter().chain([at]).min();
                    }
                }
            }
        }
        (any, ready)
    }

    fn restart(&mut self, name: &str, secret: usize) {
        let held = &self.secrets[secret];
        // What a target left behind when it was taken off the list is nobody's.
        let ours = held.copies.entries.contains_key(name);
        let Some(value) = held.values.get(name).filter(|_| ours) else {
            return;
        };
        let text = value.expose().to_owned();
        let pods = self.pods.entry((name.to_owned(), secret)).or_default();
        if pods.holds.as_ref() != Some(&text) {
            let turns = self.claims.iter().filter(|claim| claim.text == text);
            let turn = turns
                .map(|claim| claim.turn)
                .chain(
                    self.current
                        .values()
                        .filter(|(current, _)| *current == text)
                        .map(|(_, turn)| *turn),
                )
                .max()
                .unwrap_or(self.turns);
            pods.history.push((self.progress, turn));
            pods.holds = Some(text);
        }
    }

    // What is held

    /// A plan by itself: the next look, and that nothing happens before it.
    fn check_plan(&mut self, declared: &[Declared], plan: &Plan) {
        let now = self.shelf.now;
        assert!(
            plan.next_look.is_none_or(|at| at > now),
            "a look in the past"
        );
        for (declared, verdict) in declared.iter().zip(&plan.verdicts) {
            let uid = &declared.owner.uid;
            let Some(record) = &verdict.record else {
                continue;
            };
            let last = self.generations.insert(uid.clone(), record.generation);
            assert!(
                last.is_none_or(|last| last <= record.generation),
                "{} went back from {last:?} to {}",
                verdict.entry,
                record.generation
            );
            let Some(handout) = verdict.handout.as_ref().filter(|_| !declared.suspended) else {
                continue;
            };
            if verdict.occurrences.contains(&Occurrence::DriftAdopted) {
                self.published.clear();
            }
            // Never before hosts have seen it, if there is an earlier one.
            if let Some(published) = self.published.get(handout.value.expose())
                && self.progress - published < millis(RELOAD)
            {
                assert!(
                    record.previous.iter().all(|it| it.shown > now),
                    "{} is handed out too early",
                    verdict.entry
                );
            }
        }
    }

    /// Whatever was decided stays decided until the next look.
    fn check_rest(&mut self, plan: &Plan) {
        let declared = self.gather();
        let now = self.shelf.now;
        let end = plan.next_look.unwrap_or(add(now, hours(99_999)));
        let before_end = add(end, SignedDuration::from_millis(-1)).max(now);
        let mut between = vec![now, before_end];
        for seconds in [1, 60, 3600, 100_000] {
            between.push(add(now, SignedDuration::from_secs(seconds)).min(before_end));
        }
        for at in between {
            let again = self.shelf.plan_at(at, &declared);
            assert!(
                again.changes.is_empty(),
                "more to do at {at}, planned at {now}, next look {end}: {:?}",
                again.changes.keys()
            );
            if self.booked || !again.ledger.entries.is_empty() && self.memory.is_none() {
                assert_eq!(
                    again.ledger, self.shelf.stored.ledger,
                    "at {at}, planned at {now}"
                );
            }
            for (at_first, (later, declared)) in plan
                .verdicts
                .iter()
                .zip(again.verdicts.iter().zip(&declared))
            {
                let handed = |it: &Verdict| it.handout.as_ref().map(|it| it.generation);
                let clients = declared.distribution != Distribution::None && !declared.suspended;
                assert!(!clients || handed(at_first) == handed(later), "at {at}");
            }
        }
    }

    /// What cannot be brought back by anybody is not claimed.
    fn give_up_what_is_lost(&mut self, declared: &[Declared]) {
        let at_hand = self.at_hand();
        let values = &self.shelf.stored.values;
        let ledger = &self.shelf.stored.ledger;
        let stands = |text: &str| values.values().any(|value| value.expose() == text);
        let recoverable = |entry: &str, text: &str| {
            let known = ledger.entries.get(entry).is_some_and(|record| {
                let digest = value(text).digest();
                record.digest == digest || record.previous.iter().any(|it| it.digest == digest)
            });
            stands(text) || known && at_hand.values().any(|value| value.expose() == text)
        };
        self.claims
            .retain(|claim| recoverable(&claim.entry, &claim.text));
        self.current
            .retain(|entry, (text, _)| recoverable(entry, text));
        // A renewal that is taken over ends the value it renewed.
        for declared in declared {
            let wanted = declared.key.data_key();
            let Some((entry, record)) = ledger
                .entries
                .iter()
                .find(|(entry, _)| layout::same(entry, &wanted))
            else {
                continue;
            };
            let adopts = declared.drift == Drift::Adopt && matches!(declared.supply, Supply::Mint);
            let renewals = values.iter().filter(|(name, value)| {
                (layout::same(name, entry) || layout::is_master(entry) && layout::is_master(name))
                    && value.digest() != record.digest
                    && record.previous.iter().all(|it| it.digest != value.digest())
                    && !record.refused.contains(&value.digest())
            });
            if adopts && renewals.count() > 0 {
                self.current.remove(entry);
            }
        }
    }

    /// Follows what a plan did to each key.
    fn account(&mut self, before: &Stored, declared: &[Declared], plan: &Plan) {
        let values = self.shelf.stored.values.clone();
        let text = |entry: &str| values.get(entry).map(|value| value.expose().to_owned());
        for (declared, verdict) in declared.iter().zip(&plan.verdicts) {
            let (entry, uid) = (&verdict.entry, &declared.owner.uid);
            let happened = |occurrence| verdict.occurrences.contains(&occurrence);
            let (Some(record), Some(now), false) =
                (&verdict.record, text(entry), declared.suspended)
            else {
                continue;
            };
            let old = self.current.get(entry).cloned();
            if old.as_ref().map(|(text, _)| text) != Some(&now) {
                self.turns += 1;
                self.current
                    .insert(entry.clone(), (now.clone(), self.turns));
                self.claims
                    .retain(|claim| claim.entry != *entry || claim.text != now);
                // Pods may hold it from when it was current before.
                for ((name, _), pods) in &mut self.pods {
                    if *name == declared.owner.name && pods.holds.as_ref() == Some(&now) {
                        pods.history.push((self.progress, self.turns));
                    }
                }
            }
            // A successor that hosts have from somewhere else is theirs and the clients' at once.
            if happened(Occurrence::DriftAdopted) || happened(Occurrence::Replaced) {
                for claim in self.claims.iter_mut().filter(|it| it.entry == *entry) {
                    claim.shown = claim.shown.min(self.progress);
                }
            }
            if happened(Occurrence::Revoked) {
                // Clients do not wait for hosts then.
                self.published.remove(&now);
                self.claims.retain(|claim| claim.entry != *entry);
                let names = before.values.iter().filter(|(name, _)| {
                    layout::same(name, entry)
                        || layout::previous_generation(entry, name).is_some()
                        || layout::is_master(entry) && layout::is_master(name)
                });
                let revoked = names
                    .map(|(_, value)| value.expose().to_owned())
                    .filter(|text| *text != now);
                self.revoked
                    .entry(entry.clone())
                    .or_default()
                    .extend(revoked);
            } else if happened(Occurrence::Rotated) {
                if before.values.values().all(|value| value.expose() != now) {
                    self.published.insert(now.clone(), self.progress);
                }
                let superseded = record
                    .previous
                    .last()
                    .and_then(|previous| text(&layout::previous(entry, previous.generation)));
                if let Some((old, turn)) = old {
                    let overlaps = declared.key.can_overlap()
                        && declared.policy.overlap + RELOAD > SignedDuration::ZERO;
                    if old != now && overlaps {
                        assert_eq!(superseded.as_ref(), Some(&old), "{entry} lost its value");
                        self.claims.push(Claim {
                            entry: entry.clone(),
                            uid: uid.clone(),
                            text: old,
                            turn,
                            shown: self.progress + millis(RELOAD),
                            promised: None,
                        });
                    }
                }
            } else if let Some((old, _)) = old.filter(|(old, _)| *old != now)
                // What the host takes for an unrecorded key may be another entry since.
                && !happened(Occurrence::Adopted)
            {
                panic!("{entry} was changed from {old} to {now} without a turn: {verdict:?}");
            }
        }
    }

    /// The store as a plan left it.
    fn check_store(&mut self, declared: &[Declared], plan: &Plan) {
        let (values, ledger) = (&self.shelf.stored.values, &self.shelf.stored.ledger);
        let standing = |entry: &str| values.get(entry).filter(|it| !it.expose().is_empty());
        let mut frozen_master = false;
        for (declared, verdict) in declared.iter().zip(&plan.verdicts) {
            let entry = &verdict.entry;
            let master = layout::is_master(entry);
            match &verdict.problem {
                Some(Problem::Conflict(_)) => continue,
                Some(Problem::NoValue) => {
                    let withheld = matches!(declared.supply, Supply::Withheld);
                    assert!(declared.suspended || withheld, "{verdict:?}");
                    frozen_master |= master;
                    continue;
                }
                Some(Problem::Full) => panic!("never that many in a world"),
                None => {}
            }
            frozen_master |= master && declared.suspended;
            let Some(record) = verdict.record.as_ref().filter(|_| !declared.suspended) else {
                continue;
            };
            assert_eq!(record, &ledger.entries[entry]);
            match standing(entry) {
                Some(value) => assert_eq!(value.digest(), record.digest, "{entry}"),
                None => assert!(
                    !matches!(declared.supply, Supply::Mint) && !self.current.contains_key(entry),
                    "{entry} has no value"
                ),
            }
            frozen_master |= master && standing(entry).is_none();
            assert!(record.previous.len() <= MAX_PREVIOUS);
            let generations = record.previous.iter().map(|it| it.generation);
            let generations: Vec<u32> = generations.chain([record.generation]).collect();
            assert!(generations.is_sorted_by(|one, two| one < two));
            for previous in &record.previous {
                let name = layout::previous(entry, previous.generation);
                assert!(!layout::is_master(&name));
                assert_eq!(standing(&name).unwrap().digest(), previous.digest);
            }
            let names = values.keys().filter(|name| {
                layout::previous_generation(entry, name)
                    .is_some_and(|it| record.previous.iter().all(|known| known.generation != it))
            });
            assert_eq!(names.count(), 0, "previous values that nobody knows of");
            for (name, value) in values {
                let ours = layout::same(name, entry)
                    || name.starts_with(&**entry)
                    || master && layout::is_master(name);
                let revoked = self.revoked.get(entry);
                assert!(
                    !ours || revoked.is_none_or(|it| !it.contains(value.expose())),
                    "{} stands again under {name}",
                    value.expose()
                );
            }
        }
        let ours = ledger.entries.keys().any(|entry| standing(entry).is_some());
        let master = values
            .iter()
            .any(|(name, value)| layout::is_master(name) && !value.expose().is_empty());
        assert!(!ours || master || frozen_master, "no master key");
        self.check_claims(declared, plan);
    }

    /// What a client may be using stands as long as it was promised.
    fn check_claims(&mut self, declared: &[Declared], plan: &Plan) {
        let mut claims = std::mem::take(&mut self.claims);
        claims.retain_mut(|claim| {
            let winner = declared
                .iter()
                .zip(&plan.verdicts)
                .find(|(it, verdict)| it.owner.uid == claim.uid && verdict.entry == claim.entry);
            let Some((declared, verdict)) = winner else {
                return false;
            };
            let (Some(record), false) = (&verdict.record, declared.suspended) else {
                return true;
            };
            let stands = self
                .shelf
                .stored
                .values
                .values()
                .any(|it| it.expose() == claim.text);
            let overlap = declared.policy.overlap;
            let Some(since) = self.since(claim) else {
                claim.promised = None;
                assert!(stands, "{} is in use but gone", claim.text);
                return true;
            };
            let digest = value(&claim.text).digest();
            let noted = record
                .previous
                .iter()
                .any(|it| it.digest == digest && it.since.is_some());
            let promised = claim.promised.map_or(overlap, |promised| {
                if noted {
                    promised.max(overlap)
                } else {
                    promised.min(overlap)
                }
            });
            claim.promised = Some(promised);
            let left = since + millis(promised) - self.progress;
            assert!(
                stands || left <= 0,
                "{} is gone {left} ms before its time",
                claim.text
            );
            stands
        });
        self.claims = claims;
    }

    /// Progress since when every client has had a successor; absent while one has not.
    fn since(&self, claim: &Claim) -> Option<i64> {
        let resource = self
            .resources
            .iter()
            .find(|it| it.declared.owner.uid == claim.uid)?;
        let mut since = claim.shown;
        for (secret, target) in resource.targets.iter().enumerate() {
            let pods = self
                .pods
                .get(&(resource.declared.owner.name.clone(), secret));
            let (Some(_), Some(pods)) = (target, pods) else {
                continue;
            };
            let last = pods
                .history
                .iter()
                .rposition(|(_, turn)| *turn <= claim.turn);
            if let Some(last) = last {
                since = since.max(pods.history.get(last + 1)?.0);
            }
        }
        Some(since)
    }

    // What happens

    fn pass(&mut self, seconds: i64) {
        let end = add(self.shelf.now, SignedDuration::from_secs(seconds));
        let mut next = self.operate();
        for _ in 0..MOST_WAKES {
            let Some(at) = next.filter(|at| *at <= end) else {
                break;
            };
            self.set_clock(at);
            next = self.operate();
        }
        self.set_clock(end);
        self.operate();
    }

    fn set_clock(&mut self, to: Timestamp) {
        let passed = to.duration_since(self.shelf.now);
        self.progress += millis(passed).max(0);
        self.shelf.now = to;
    }

    fn create(&mut self, at: usize) {
        let (name, key) = candidates().swap_remove(at);
        if self
            .resources
            .iter()
            .any(|it| it.declared.owner.name == name)
        {
            return;
        }
        self.serial += 1;
        let mut declared = declare(name, key);
        declared.owner.uid = format!("{name} {}", self.serial);
        declared.created = self.shelf.now;
        self.resources.push(Resource {
            declared,
            source: Source::Minted,
            targets: [None; SECRETS],
        });
        self.resources
            .sort_by(|one, two| one.declared.owner.name.cmp(&two.declared.owner.name));
    }

    fn forget(&mut self, name: &str) {
        self.pods.retain(|(owner, _), _| owner != name);
    }

    /// The declared resource that an index picks.
    fn pick(&self, index: Index) -> Option<usize> {
        (!self.resources.is_empty()).then(|| index.index(self.resources.len()))
    }

    /// A current entry in the store that an index picks.
    fn pick_entry(&self, index: Index) -> Option<String> {
        let names: Vec<&String> = self.shelf.stored.values.keys().collect();
        (!names.is_empty()).then(|| (*index.get(&names)).clone())
    }

    fn fresh(&mut self, who: &str) -> KeyMaterial {
        self.serial += 1;
        value(&format!("{who} {}", self.serial))
    }

    /// Nothing of what was true needs to be true any longer.
    fn lose_track(&mut self) {
        self.generations.clear();
        self.revoked.clear();
        self.published.clear();
        for claim in &mut self.claims {
            claim.shown = claim.shown.min(self.progress);
            claim.promised = None;
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Pass(seconds) => return self.pass(*seconds),
            Event::Sleep(seconds) => {
                let end = add(self.shelf.now, SignedDuration::from_secs(*seconds));
                self.set_clock(end);
            }
            Event::Jump(span) => {
                let to = add(self.shelf.now, hours(*span));
                let range = add(start(), -hours(200_000))..add(start(), hours(500_000));
                self.set_clock(to.clamp(range.start, range.end));
            }
            Event::Crash => {
                let declared = self.gather();
                self.shelf.plan(&declared);
                return;
            }
            Event::Half => {
                self.look_at_store();
                return;
            }
            Event::Create(index) => self.create(index.index(candidates().len())),
            Event::Delete(index) => {
                if let Some(at) = self.pick(*index) {
                    let gone = self.resources.remove(at).declared;
                    self.forget(&gone.owner.name);
                    self.claims.retain(|it| it.uid != gone.owner.uid);
                    self.forget_entry(&gone.key);
                }
            }
            Event::Renew(index) => {
                if let Some(at) = self.pick(*index) {
                    self.serial += 1;
                    let declared = &mut self.resources[at].declared;
                    let uid = format!("{} {}", declared.owner.name, self.serial);
                    let before = std::mem::replace(&mut declared.owner.uid, uid);
                    declared.created = self.shelf.now;
                    declared.triggers = Triggers::default();
                    let (name, key) = (declared.owner.name.clone(), declared.key.clone());
                    self.forget(&name);
                    self.claims.retain(|it| it.uid != before);
                    self.forget_entry(&key);
                }
            }
            Event::Edit(index, edit) => {
                if let Some(at) = self.pick(*index) {
                    self.edit(at, edit);
                }
            }
            Event::HostDrops(index) => {
                if let Some(entry) = self.pick_entry(*index) {
                    self.shelf.stored.values.remove(&entry);
                }
            }
            Event::HostRenews(index) => {
                if let Some(entry) = self.pick_entry(*index) {
                    let renewed = self.fresh("host");
                    self.shelf.stored.values.insert(entry, renewed);
                }
            }
            Event::HostLags => {
                self.shelf.stored.values.clone_from(&self.before_last_write);
            }
            Event::HostRespells(index, leaves) => {
                if let Some(entry) = self.pick_entry(*index)
                    && entry.ends_with("default")
                {
                    let renewed = self.fresh("host");
                    if !leaves {
                        self.shelf.stored.values.remove(&entry);
                    }
                    let other = entry.replace("default", "DEFAULT");
                    self.shelf.stored.values.insert(other, renewed);
                }
            }
            Event::HostWritesAnotherMaster => {
                let renewed = self.fresh("host");
                let values = &mut self.shelf.stored.values;
                values.insert("host.masterX".into(), renewed);
            }
            Event::LedgerLost => {
                self.booked = false;
                self.memory = None;
                self.shelf.stored.ledger = Ledger::default();
                self.lose_track();
            }
            Event::SealedLost => self.sealed.clear(),
            Event::StoreDeleted(seen) => {
                let values = std::mem::take(&mut self.shelf.stored.values);
                let ledger = std::mem::take(&mut self.shelf.stored.ledger);
                let sealed = std::mem::take(&mut self.sealed);
                self.before_last_write.clear();
                let booked = std::mem::take(&mut self.booked);
                if *seen && booked {
                    self.memory = Some(Memory {
                        values,
                        ledger,
                        sealed,
                    });
                } else if !seen {
                    self.memory = None;
                }
                if self.memory.is_none() {
                    self.lose_track();
                }
            }
            Event::PodRestarts(index, secret) => {
                if let Some(at) = self.pick(*index)
                    && self.resources[at].targets[*secret].is_some()
                {
                    let name = self.resources[at].declared.owner.name.clone();
                    self.restart(&name, *secret);
                }
                return;
            }
        }
        self.operate();
    }

    /// A deleted resource takes its key along, or leaves it to others.
    fn forget_entry(&mut self, key: &KeyRef) {
        let name = key.data_key();
        self.published.clear();
        self.current.retain(|entry, _| !layout::same(entry, &name));
        self.revoked.retain(|entry, _| !layout::same(entry, &name));
        self.claims
            .retain(|claim| !layout::same(&claim.entry, &name));
    }

    fn edit(&mut self, at: usize, edit: &Edit) {
        let now = self.shelf.now;
        let resource = &mut self.resources[at];
        let name = resource.declared.owner.name.clone();
        let declared = &mut resource.declared;
        let moment =
            |at: &Option<i64>| at.map(|minutes| add(now, SignedDuration::from_mins(minutes)));
        match edit {
            Edit::Interval(interval) => {
                let overlap = Some(declared.policy.overlap);
                declared.policy = Policy::effective(interval.map(hours), overlap);
            }
            Edit::Overlap(overlap) if declared.key.can_overlap() => {
                declared.policy.overlap = hours(*overlap);
            }
            Edit::Overlap(_) => {}
            Edit::Generation(step) => declared.triggers.generation += step,
            Edit::RevokeGeneration(step) => declared.triggers.revoke_generation += step,
            Edit::RotateAt(at) => declared.triggers.rotate_at = moment(at),
            Edit::RevokeAt(at) => declared.triggers.revoke_at = moment(at),
            Edit::Source(_) if matches!(declared.key, KeyRef::System { .. }) => {}
            Edit::Source(source) => {
                resource.source = *source;
                declared.supply = match source {
                    Source::Minted => Supply::Mint,
                    Source::Given(which) => Supply::Given(value(&format!("{name} given {which}"))),
                    Source::Withheld => Supply::Withheld,
                };
            }
            Edit::Drift(drift) => declared.drift = *drift,
            Edit::Deletion(deletion) => declared.deletion = *deletion,
            Edit::Suspended(suspended) => declared.suspended = *suspended,
            Edit::Target(secret, target) => {
                resource.targets[*secret] = *target;
                // Nobody waits for pods that are on no list, or that nobody restarts.
                if *target != Some(true) {
                    self.pods.remove(&(name, *secret));
                }
            }
        }
    }
}

fn millis(span: SignedDuration) -> i64 {
    span.as_millis().try_into().unwrap()
}

fn edit() -> impl Strategy<Value = Edit> {
    let interval = prop_oneof![
        Just(None),
        prop::sample::select(vec![24, 48, 720, 2160]).prop_map(Some)
    ];
    let source = prop_oneof![
        3 => Just(Source::Minted),
        4 => (0..3_u8).prop_map(Source::Given),
        1 => Just(Source::Withheld),
    ];
    let moment = || prop_oneof![Just(None), (-100..2000_i64).prop_map(Some)];
    prop_oneof![
        3 => interval.prop_map(Edit::Interval),
        4 => prop::sample::select(vec![0, 1, 23, 24, 100]).prop_map(Edit::Overlap),
        5 => (-1..3_i64).prop_map(Edit::Generation),
        2 => (-1..2_i64).prop_map(Edit::RevokeGeneration),
        2 => moment().prop_map(Edit::RotateAt),
        1 => moment().prop_map(Edit::RevokeAt),
        4 => source.prop_map(Edit::Source),
        2 => prop_oneof![Just(Drift::Adopt), Just(Drift::Enforce)].prop_map(Edit::Drift),
        1 => prop_oneof![Just(DeletionPolicy::Delete), Just(DeletionPolicy::Retain)]
            .prop_map(Edit::Deletion),
        2 => prop::bool::weighted(0.3).prop_map(Edit::Suspended),
        5 => (0..SECRETS, prop::option::weighted(0.8, any::<bool>()))
            .prop_map(|(secret, target)| Edit::Target(secret, target)),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let span = || {
        prop_oneof![
            1..200_i64,
            Just(3600),
            3600..200_000_i64,
            Just(30 * 86_400),
            Just(90 * 86_400),
        ]
    };
    let jump = prop_oneof![
        -30..30_i64,
        prop::sample::select(vec![-50_000, -9000, -24, 24, 9000, 50_000])
    ];
    prop_oneof![
        12 => span().prop_map(Event::Pass),
        3 => span().prop_map(Event::Sleep),
        2 => jump.prop_map(Event::Jump),
        1 => Just(Event::Crash),
        2 => Just(Event::Half),
        6 => any::<Index>().prop_map(Event::Create),
        1 => any::<Index>().prop_map(Event::Delete),
        1 => any::<Index>().prop_map(Event::Renew),
        24 => (any::<Index>(), edit()).prop_map(|(index, edit)| Event::Edit(index, edit)),
        2 => any::<Index>().prop_map(Event::HostDrops),
        2 => any::<Index>().prop_map(Event::HostRenews),
        3 => Just(Event::HostLags),
        1 => (any::<Index>(), any::<bool>())
            .prop_map(|(index, leaves)| Event::HostRespells(index, leaves)),
        1 => Just(Event::HostWritesAnotherMaster),
        1 => Just(Event::LedgerLost),
        1 => Just(Event::SealedLost),
        1 => any::<bool>().prop_map(Event::StoreDeleted),
        2 => (any::<Index>(), 0..SECRETS)
            .prop_map(|(index, secret)| Event::PodRestarts(index, secret)),
    ]
}

fn config(cases: u32) -> Config {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = Config::default();
    Config {
        cases: if asked { default.cases } else { cases },
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..default
    }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn promises_hold_in_every_history(events in prop::collection::vec(event(), 1..60)) {
        let mut world = World::new();
        world.create(0);
        for event in &events {
            world.happen(event);
        }
    }
}

/// What a key does over time if nobody but the clock calls for it: interval and overlap in hours,
/// and when (in hours) turns are asked for by annotation, one after another.
type Habit = (Option<i64>, i64, Vec<i64>);

fn habits() -> impl Strategy<Value = Vec<Habit>> {
    let interval = prop::option::weighted(0.8, 24..2000_i64);
    let habit = (
        interval,
        0..100_i64,
        prop::collection::vec(1..1500_i64, 0..6),
    );
    prop::collection::vec(habit, 1..5)
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn a_year_of_nothing_but_next_looks_does_everything_in_time(habits in habits()) {
        const SECOND: SignedDuration = SignedDuration::from_secs(1);
        let mut shelf = Shelf::new();
        let mut declared: Vec<Declared> = Vec::new();
        let mut asked: Vec<Vec<Timestamp>> = Vec::new();
        for (number, (interval, overlap, moments)) in habits.into_iter().enumerate() {
            let mut key = host(&format!("key-{number}"));
            key.policy = Policy {
                interval: interval.map(hours),
                overlap: hours(overlap.min(interval.map_or(overlap, |interval| interval - 1))),
            };
            let mut at = start();
            let moments = moments.into_iter().map(|span| {
                at = add(at, hours(span));
                at
            });
            asked.push(moments.collect());
            declared.push(key);
        }
        let end = add(start(), hours(365 * 24));
        let mut looks = 0;
        loop {
            // The annotation is replaced by the next one when its turn was done.
            for (key, asked) in declared.iter_mut().zip(&mut asked) {
                if key.triggers.rotate_at.is_none_or(|at| at <= shelf.now) {
                    key.triggers.rotate_at = (!asked.is_empty()).then(|| asked.remove(0));
                }
            }
            let before = shelf.stored.ledger.clone();
            let plan = shelf.look(&declared);
            for (key, verdict) in declared.iter().zip(&plan.verdicts) {
                let record = verdict.record.as_ref().unwrap();
                let Some(earlier) = before.entries.get(&verdict.entry) else {
                    continue;
                };
                let deferred = verdict.notes.contains(&Note::TurnDeferred);
                let asked = key.triggers.rotate_at.filter(|at| Some(*at) > earlier.marks.rotate_at);
                for due in [key.policy.due(earlier.minted, &key.owner.uid), asked]
                    .into_iter()
                    .flatten()
                    .filter(|due| *due <= shelf.now)
                {
                    prop_assert!(deferred || record.minted == shelf.now);
                    let waited = earlier.previous.len() == MAX_PREVIOUS;
                    prop_assert!(waited || shelf.now.duration_since(due) < SECOND);
                }
                for gone in &earlier.previous {
                    let retires = gone.retires.unwrap();
                    let late = shelf.now.duration_since(retires);
                    let stands = record.previous.contains(gone);
                    prop_assert_eq!(stands, late < SignedDuration::ZERO);
                    prop_assert!(late < SECOND, "{} late", late);
                }
            }
            looks += 1;
            match plan.next_look {
                Some(at) if at <= end => shelf.now = at,
                _ => break,
            }
        }
        for (key, habit) in declared.iter().zip(&shelf.stored.ledger.entries) {
            let least = key.policy.interval.map_or(0, |it| (hours(365 * 24).as_secs() / it.as_secs()) - 1);
            prop_assert!(i64::from(habit.1.generation) > least, "{habit:?}");
        }
        prop_assert!(looks < 3000, "{} looks", looks);
    }
}
