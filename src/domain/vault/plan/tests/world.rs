//! Random histories of one vault: objects as the apiserver holds them, with real cryptography; an
//! operator that writes one object at a time, is killed between any two writes and hears late of
//! what it and others wrote; a door through which somebody else sets, disables, deletes and
//! recovers; manifests that change, key rings that turn and are shredded, and time that moves on.
//!
//! The world keeps the books of what was ever written, outside of the objects, and holds every
//! write against them at the moment when it reaches the apiserver, whatever its writer believed.

use std::collections::{BTreeSet, VecDeque};

use proptest::{prelude::*, sample::Index, test_runner::Config};
use zeroize::Zeroizing;

use super::*;
use crate::domain::vault::{
    envelope::{Binding, DataKey, Envelope, IndexKey, KeyLabel, Mac, RingKey, RootKey},
    name::{NameHash, VaultRef, object_name, parse_object_name},
    ring::{self, FORMAT, RingDocument, RingVersion, Turning, Wish},
    wrapped::{Base64, Wrapped},
};

const SECRETS: usize = 2;
/// The secret that is handed out by a synced Secret; nobody reads the other.
const SYNCED: usize = 0;
const GRACE: SignedDuration = SignedDuration::from_mins(10);
/// What a writer has to finish what it decided on: less than [`GRACE`] and [`LINGER`].
const DOOR_PATIENCE: SignedDuration = SignedDuration::from_secs(10);
const RETENTION: SignedDuration = SignedDuration::from_hours(100);

/// What can happen.
#[derive(Clone, Debug)]
enum Event {
    /// The operator makes that many writes.
    Step(usize),
    /// The operator dies and starts anew; what it was about to do is forgotten.
    Kill,
    /// The operator is told of that many of the writes that it has not heard of.
    Hear(usize),
    Pass(i64),
    /// The synced Secret gets the current value.
    Sync,
    Declare(usize),
    Withdraw(usize),
    Edit(usize, Edit),
    AskRecover(usize),
    AskPurge(usize),
    ProtectFromPurge,
    /// The door looks at a secret and makes up its mind.
    DoorDecides(usize, Wanted),
    /// It writes what it had decided on.
    DoorWrites,
    RingTurns,
    OtherRoot,
    /// A version of the ring is destroyed with what is under it.
    Shred(Index),
    ShredVault,
}

#[derive(Clone, Debug)]
enum Edit {
    Interval(Option<i64>),
    Overlap(i64),
    Generation,
    RevokeGeneration,
    RotateAt(i64),
    Keep(usize, Option<i64>),
    Tag(u8),
    Minted,
    Follow(Option<u8>),
}

/// What a secret follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Following {
    Nothing,
    Source(Option<u8>),
}

impl Following {
    fn value(self) -> Option<u8> {
        match self {
            Self::Nothing => None,
            Self::Source(value) => value,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    Set,
    Disable,
    Delete,
    Recover,
}

/// An object of an entry.
#[derive(Clone, Debug, PartialEq)]
struct Object {
    version: u64,
    attributes: String,
    envelope: String,
    payload: Option<Vec<u8>>,
}

/// A refusal of the apiserver.
#[derive(Debug, PartialEq)]
enum Refused {
    AlreadyExists,
    Conflict,
    NotFound,
}

/// The ring, opened.
struct OpenRing {
    vault: VaultRef,
    document: RingDocument,
    index: IndexKey,
    keys: BTreeMap<u32, RingKey>,
}

impl OpenRing {
    fn newest(&self) -> Option<&RingKey> {
        self.keys.get(&self.document.newest()?.version)
    }

    /// Verifies an entry, as the cache of the controllers does.
    fn entry(&self, hash: NameHash, sequence: u32, object: &Object) -> Entry {
        let tampered = Entry::Unreadable(Fault::Tampered);
        let Ok(envelope) = object.envelope.parse::<Envelope>() else {
            return tampered;
        };
        let Some(key) = self.keys.get(&envelope.ring) else {
            let ring = envelope.ring;
            let shredded = self.document.vault_shredded || self.document.shredded.contains(&ring);
            return Entry::Unreadable(if shredded {
                Fault::Shredded { ring }
            } else {
                Fault::UnknownRing { ring }
            });
        };
        let Ok(attributes) = Attributes::parse(&object.attributes) else {
            return tampered;
        };
        let binding = self.binding(&attributes, sequence);
        let authentic = self.vault.hash(&attributes.name) == hash
            && key.verify(&binding, &envelope, &object.attributes).is_ok();
        if authentic {
            Entry::Authentic(Arc::new(attributes))
        } else {
            tampered
        }
    }

    fn binding<'a>(&'a self, attributes: &'a Attributes, sequence: u32) -> Binding<'a> {
        Binding {
            vault: &self.vault,
            secret: &attributes.name,
            sequence,
            version: attributes.id,
        }
    }

    fn open(&self, sequence: u32, object: &Object) -> Option<Vec<u8>> {
        let envelope: Envelope = object.envelope.parse().unwrap();
        let attributes = Attributes::parse(&object.attributes).unwrap();
        let binding = self.binding(&attributes, sequence);
        let key = self.keys.get(&envelope.ring)?;
        let data = key.unwrap(&binding, &envelope.wrapped?).ok()?;
        let value = data.open(&binding, object.payload.as_ref()?).ok()?;
        Some(value.to_vec())
    }

    fn histories(&self, objects: &BTreeMap<String, Object>) -> BTreeMap<NameHash, History> {
        let mut histories: BTreeMap<NameHash, History> = BTreeMap::new();
        for (name, object) in objects {
            let (hash, sequence) = parse_object_name(&self.vault.name, name).unwrap();
            let entry = self.entry(hash, sequence, object);
            histories.entry(hash).or_default().0.insert(sequence, entry);
        }
        histories
    }
}

/// What the operator is about to do.
#[derive(Clone, Debug)]
enum Todo {
    Turn(Box<Turning>),
    /// An action, and the value of the source at the time of the look.
    Act(usize, Box<Action>, Option<u8>),
    /// Look for what is to be re-wrapped.
    Rewraps,
    Rewrap(String),
    /// Look for versions of the ring under which nothing is.
    Idle,
}

#[derive(Default)]
struct Operator {
    /// What it knows of objects.
    cache: BTreeMap<String, Object>,
    /// The last version of objects that it deleted itself: what it hears of these is old.
    gone: BTreeMap<String, u64>,
    /// How much of the log it has heard.
    heard: usize,
    todo: VecDeque<Todo>,
}

/// A write of the door, ready to be sent.
struct Prepared {
    at: Timestamp,
    name: String,
    object: Object,
    /// The version of what is changed; none for what is made.
    replaces: Option<u64>,
    value: Option<Vec<u8>>,
}

/// A value that was written.
#[derive(Clone, Debug)]
struct Written {
    object: String,
    value: Vec<u8>,
}

struct World {
    now: Timestamp,
    drawn: u64,
    roots: Vec<RootKey>,
    vault: VaultRef,

    // What the apiserver holds.
    objects: BTreeMap<String, Object>,
    version: u64,
    log: Vec<(String, u64, Option<Object>)>,
    document: Vec<u8>,
    mac: Vec<u8>,
    open: OpenRing,

    // What people say.
    declared: Vec<Option<Declared>>,
    /// Where values come from; a source that is followed may be unusable.
    follows: Vec<Following>,
    asked: Vec<Asked>,
    purge_protection: bool,
    wish: Wish,

    operator: Operator,
    door: Option<Prepared>,
    synced: Option<(u32, Timestamp)>,

    // The books.
    written: BTreeMap<VersionId, Written>,
    /// When the synced Secret first had this version.
    reached: BTreeMap<VersionId, Timestamp>,
    purges_asked: Vec<Vec<Timestamp>>,
    shreds_asked: BTreeSet<u32>,
    ids: BTreeSet<VersionId>,
    /// What the door wrote into the middle of a purge.
    late: BTreeSet<String>,
    /// Values that a revocation was to end of which only the source can give the next.
    ended: BTreeSet<VersionId>,
}

fn secret(which: usize) -> SecretName {
    SecretName::parse(["db-password", "Api-Key"][which]).unwrap()
}

fn seal_ring(
    root: &RootKey,
    label: KeyLabel,
    vault: &VaultRef,
    key: &[u8; 32],
    nonce: [u8; 12],
) -> Wrapped {
    Wrapped {
        root: root.id().to_owned(),
        sealed: Base64(root.wrap_key(label, vault, key, nonce)),
        kms: None,
    }
}

fn unseal_ring(
    roots: &[RootKey],
    label: KeyLabel,
    vault: &VaultRef,
    wrapped: &Wrapped,
) -> Zeroizing<[u8; 32]> {
    let root = roots.iter().find(|root| root.id() == wrapped.root).unwrap();
    root.unwrap_key(label, vault, &wrapped.sealed.0).unwrap()
}

/// Opens the ring from its bytes alone, as a start does.
fn open_ring(roots: &[RootKey], bytes: &[u8], mac: &[u8]) -> OpenRing {
    let document = RingDocument::parse(bytes).unwrap();
    let vault = document.vault();
    let index = unseal_ring(roots, KeyLabel::Index, &vault, &document.index_key);
    let index = IndexKey::new(index, &vault.id);
    index
        .verify_document(bytes, &Mac::try_from(mac).unwrap())
        .unwrap();
    let keys = document.versions.iter().map(|version| {
        let label = KeyLabel::Ring(version.version);
        let key = unseal_ring(roots, label, &vault, &version.key);
        let key = RingKey::new(version.version, key, &vault.id);
        (version.version, key)
    });
    OpenRing {
        keys: keys.collect(),
        vault,
        index,
        document,
    }
}

/// Bytes that never come twice.
fn draw<const N: usize>(drawn: &mut u64) -> [u8; N] {
    *drawn += 1;
    let mut bytes = [0xc5; N];
    bytes[..8].copy_from_slice(&drawn.to_be_bytes());
    bytes
}

impl World {
    fn new() -> Self {
        let mut drawn = 0;
        let roots = vec![RootKey::new(Zeroizing::new(draw(&mut drawn)))];
        let vault = VaultRef {
            id: VaultId(draw(&mut drawn)),
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
        };
        let index: [u8; 32] = draw(&mut drawn);
        let first: [u8; 32] = draw(&mut drawn);
        let mut wrap = |label, key| {
            let nonce = draw(&mut drawn);
            seal_ring(&roots[0], label, &vault, key, nonce)
        };
        let document = RingDocument {
            format: FORMAT,
            vault_id: vault.id,
            namespace: vault.namespace.clone(),
            name: vault.name.clone(),
            index_key: wrap(KeyLabel::Index, &index),
            versions: vec![RingVersion {
                version: 1,
                created: start(),
                retired: None,
                key: wrap(KeyLabel::Ring(1), &first),
            }],
            last: 1,
            shredded: BTreeSet::new(),
            vault_shredded: false,
            purge_protection: false,
            marks: Marks::default(),
        };
        let bytes = document.render();
        let mac = IndexKey::new(Zeroizing::new(index), &vault.id).document_mac(&bytes);
        let mac = mac.as_bytes().to_vec();
        Self {
            now: start(),
            drawn,
            open: open_ring(&roots, &bytes, &mac),
            roots,
            vault,
            objects: BTreeMap::new(),
            version: 0,
            log: Vec::new(),
            document: bytes,
            mac,
            declared: vec![None; SECRETS],
            follows: vec![Following::Nothing; SECRETS],
            asked: vec![Asked::default(); SECRETS],
            purge_protection: false,
            wish: Wish::default(),
            operator: Operator::default(),
            door: None,
            synced: None,
            written: BTreeMap::new(),
            reached: BTreeMap::new(),
            purges_asked: vec![Vec::new(); SECRETS],
            shreds_asked: BTreeSet::new(),
            ids: BTreeSet::new(),
            late: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    fn draw<const N: usize>(&mut self) -> [u8; N] {
        draw(&mut self.drawn)
    }

    fn hash(&self, which: usize) -> NameHash {
        self.vault.hash(&secret(which))
    }

    fn name(&self, which: usize, sequence: u32) -> String {
        object_name(&self.vault.name, self.hash(which), sequence)
    }

    /// What the apiserver holds of a secret, whatever anybody believes.
    fn truth(&self, which: usize) -> History {
        let hash = self.hash(which);
        let mut all = self.open.histories(&self.objects);
        all.remove(&hash).unwrap_or_default()
    }

    fn which(&self, name: &str) -> (usize, u32) {
        let (hash, sequence) = parse_object_name(&self.vault.name, name).unwrap();
        let which = (0..SECRETS).find(|which| self.hash(*which) == hash);
        (which.unwrap(), sequence)
    }

    // The apiserver

    fn record(&mut self, name: &str, object: Option<Object>) -> u64 {
        self.version += 1;
        let object = object.map(|object| Object {
            version: self.version,
            ..object
        });
        match &object {
            Some(object) => self.objects.insert(name.to_owned(), object.clone()),
            None => self.objects.remove(name),
        };
        self.log.push((name.to_owned(), self.version, object));
        self.version
    }

    fn post(
        &mut self,
        name: &str,
        object: Object,
        value: Option<Vec<u8>>,
    ) -> Result<Object, Refused> {
        if self.objects.contains_key(name) {
            return Err(Refused::AlreadyExists);
        }
        if self.check_post(name, &object) {
            self.late.insert(name.to_owned());
        }
        let attributes = Attributes::parse(&object.attributes).unwrap();
        assert!(self.ids.insert(attributes.id), "an id was used twice");
        if let Some(value) = value {
            let object = name.to_owned();
            self.written
                .insert(attributes.id, Written { object, value });
        }
        self.record(name, Some(object));
        self.check_all();
        Ok(self.objects[name].clone())
    }

    fn patch(&mut self, name: &str, replaces: u64, object: Object) -> Result<Object, Refused> {
        let held = self.objects.get(name).ok_or(Refused::NotFound)?;
        if held.version != replaces {
            return Err(Refused::Conflict);
        }
        assert_eq!(held.payload, object.payload, "objects are immutable");
        self.record(name, Some(object));
        self.check_all();
        Ok(self.objects[name].clone())
    }

    fn delete(&mut self, name: &str, version: u64) -> Result<(), Refused> {
        let held = self.objects.get(name).ok_or(Refused::NotFound)?;
        if held.version != version {
            return Err(Refused::Conflict);
        }
        self.check_delete(name);
        self.record(name, None);
        self.check_all();
        Ok(())
    }

    // The books

    /// Entries take the next number, and a purge begins when it may. Says whether this one comes
    /// late, into the middle of a purge.
    fn check_post(&self, name: &str, object: &Object) -> bool {
        let (which, sequence) = self.which(name);
        let truth = self.truth(which);
        let attributes = Attributes::parse(&object.attributes).unwrap();
        let newest = truth.0.last_key_value();
        // A door that decided before a purge began may write into its middle, which takes that along as
        // what came before it, or after it, as what came last.
        if sequence != truth.next_sequence() {
            let of_the_door = attributes.managed.is_none();
            // A late recovery of what was purged is a marker without values: it decides nothing.
            let emptied = truth.values().next().is_none();
            assert!(of_the_door || emptied, "number {sequence} of {truth:?}");
        }
        if attributes.kind == Kind::Purging {
            let Some(Entry::Authentic(deleted)) = newest.map(|(_, entry)| entry) else {
                panic!("a purge of {truth:?}");
            };
            assert_eq!(deleted.kind, Kind::Deleted);
            let asked = self.purges_asked[which]
                .iter()
                .any(|at| *at > deleted.created && *at <= self.now);
            let retained = deleted.purge_at.unwrap() <= self.now;
            assert!(asked || retained, "a purge before its time");
        }
        sequence != truth.next_sequence()
    }

    /// Nothing goes but what is purged, pruned, or decides nothing.
    fn check_delete(&self, name: &str) {
        let (which, sequence) = self.which(name);
        let truth = self.truth(which);
        match truth.state() {
            State::Purging => {
                let mut before = truth.0.range(..sequence).map(|(older, _)| *older);
                let late = |older| self.late.contains(&self.name(which, older));
                assert!(before.all(late), "oldest first");
                return;
            }
            State::Absent => return,
            _ => {}
        }
        let (newest, _) = truth.0.last_key_value().unwrap();
        assert!(sequence < *newest, "the newest entry of {truth:?} goes");
        let entry = &truth.0[&sequence];
        if entry.attributes().is_none_or(|it| it.kind == Kind::Value) {
            // The deletion of what is current may have come between decision and write.
            let value = |entry: &Entry| entry.attributes().is_none_or(|it| it.kind == Kind::Value);
            let last = truth.0.iter().rfind(|(_, entry)| value(entry));
            assert!(sequence < *last.unwrap().0, "{sequence} of {truth:?} goes");
            let enabled = entry.attributes().is_some_and(|it| it.enabled);
            assert!(!enabled, "an enabled value goes");
        }
        let mut without = truth.clone();
        without.0.remove(&sequence);
        assert_eq!(without.state(), truth.state(), "it decided something");
    }

    /// Every value that was written opens to the same bytes, or is gone, or was shredded.
    fn check_all(&mut self) {
        let open = open_ring(&self.roots, &self.document, &self.mac);
        let mut there = BTreeSet::new();
        for (name, object) in &self.objects {
            let (_, sequence) = parse_object_name(&self.vault.name, name).unwrap();
            let attributes = Attributes::parse(&object.attributes).unwrap();
            let envelope: Envelope = object.envelope.parse().unwrap();
            let (hash, _) = parse_object_name(&self.vault.name, name).unwrap();
            if open.keys.contains_key(&envelope.ring) {
                let entry = open.entry(hash, sequence, object);
                assert_eq!(entry.attributes(), Some(&attributes), "{name}");
            } else {
                let vault = open.document.vault_shredded;
                let asked = self.shreds_asked.contains(&envelope.ring);
                assert!(vault || asked, "{name} lost version {}", envelope.ring);
            }
            if object.payload.is_some() {
                there.insert(attributes.id);
                let written = &self.written[&attributes.id];
                assert_eq!(written.object, *name, "an entry was moved");
                let expected = open.keys.contains_key(&envelope.ring);
                let expected = expected.then(|| written.value.clone());
                assert_eq!(open.open(sequence, object), expected, "{name}");
            }
        }
        self.written.retain(|id, _| there.contains(id));
        self.open = open;
    }

    /// What the operator may change of attributes, and that a promised overlap is kept.
    fn check_amend(&self, name: &str, after: &Attributes) {
        let (which, sequence) = self.which(name);
        let truth = self.truth(which);
        let before = truth.0[&sequence].attributes().unwrap();
        assert_eq!((&before.id, before.kind), (&after.id, after.kind));
        assert_eq!(before.name.as_str(), after.name.as_str());
        assert_eq!(after.revision, before.revision + 1);
        assert_eq!(before.created, after.created, "the clock was never ahead");
        if !before.enabled || after.enabled {
            return;
        }
        let later: Vec<&Attributes> = truth
            .values()
            .filter(|(other, _)| *other > sequence)
            .map(|(_, later)| later)
            .collect();
        let managed = |it: &&Attributes| it.managed.clone();
        if later.iter().filter_map(managed).any(|it| it.revoked) {
            return;
        }
        if self.ended.contains(&before.id) {
            return;
        }
        let successor = later.first().expect("the current value was disabled");
        let reached = if which == SYNCED {
            let seen = later.iter().filter_map(|it| self.reached.get(&it.id));
            *seen.min().expect("nobody has a successor yet")
        } else {
            successor.created
        };
        let overlap = managed(successor).unwrap().overlap();
        let end = add(reached.max(successor.created), overlap);
        assert!(end <= self.now, "retired before its overlap had passed");
    }

    // The operator

    fn hear(&mut self, count: usize) {
        for _ in 0..count {
            let Some((name, version, object)) = self.log.get(self.operator.heard).cloned() else {
                return;
            };
            self.operator.heard += 1;
            let operator = &mut self.operator;
            if operator
                .gone
                .get(&name)
                .is_some_and(|gone| *gone >= version)
            {
                continue;
            }
            let known = operator.cache.get(&name).map(|known| known.version);
            match object {
                Some(object) if known.is_none_or(|known| known < version) => {
                    operator.cache.insert(name, object);
                }
                None if known.is_none_or(|known| known < version) => {
                    operator.cache.remove(&name);
                    operator.gone.remove(&name);
                }
                _ => {}
            }
        }
    }

    fn kill(&mut self) {
        self.operator = Operator {
            cache: self.objects.clone(),
            heard: self.log.len(),
            ..Operator::default()
        };
    }

    fn setting(&mut self) -> Setting {
        Setting {
            now: self.now,
            retention: RETENTION,
            purge_protection: self.purge_protection,
            fresh: VersionId(self.draw()),
            vault: self.vault.id,
        }
    }

    fn reaches(&self, which: usize, sequence: u32) -> Reached {
        if which != SYNCED {
            return Reached::Since(Timestamp::UNIX_EPOCH);
        }
        match self.synced {
            Some((made, at)) if made >= sequence => Reached::Since(at),
            _ => Reached::NotYet,
        }
    }

    fn source(&self, which: usize) -> Option<Declared> {
        let mut declared = self.declared[which].clone()?;
        declared.source = match self.follows[which] {
            Following::Nothing => Source::Minted,
            Following::Source(value) => Source::Followed(value.map(|value| {
                let context = format!("source/{}", secret(which).folded());
                self.open.index.digest(&context, &[value])
            })),
        };
        Some(declared)
    }

    fn plan_of(&mut self, which: usize) -> Plan {
        let setting = self.setting();
        let hash = self.hash(which);
        let mut histories = self.open.histories(&self.operator.cache);
        let history = histories.remove(&hash).unwrap_or_default();
        let declared = self.source(which);
        if let Some(declared) = &declared
            && matches!(declared.source, Source::Followed(_))
            && let Some(marks) = history.0.values().rev().find_map(Entry::marks)
            && declared.triggers.turn(marks, None, self.now) == Turn::Revoke
        {
            let values = history.values().map(|(_, attributes)| attributes.id);
            self.ended.extend(values);
        }
        plan(
            &history,
            declared.as_ref(),
            self.asked[which],
            &setting,
            |sequence| self.reaches(which, sequence),
        )
    }

    /// One look: all that is to be done, in the order in which the controller does it.
    fn look(&mut self) {
        let root = self.roots.last().unwrap().id().to_owned();
        let turning = ring::turning(&self.open.document, &self.wish, &root, self.now);
        if turning.is_needed(&self.open.document) {
            self.operator.todo.push_back(Todo::Turn(Box::new(turning)));
            return;
        }
        if self.open.document.vault_shredded {
            return;
        }
        for which in 0..SECRETS {
            let source = self.follows[which].value();
            for action in self.plan_of(which).actions {
                let todo = Todo::Act(which, Box::new(action), source);
                self.operator.todo.push_back(todo);
            }
        }
        self.operator.todo.extend([Todo::Rewraps, Todo::Idle]);
    }

    /// One write, if there is anything to do; says whether there was.
    fn step(&mut self) -> bool {
        if self.operator.todo.is_empty() {
            self.look();
        }
        while let Some(todo) = self.operator.todo.pop_front() {
            let written = match todo {
                Todo::Turn(turning) => {
                    self.turn(&turning);
                    true
                }
                Todo::Act(which, action, source) => self.act(which, &action, source),
                Todo::Rewraps => {
                    let newest = self.open.newest().map(RingKey::version);
                    let cache = self.operator.cache.clone();
                    for (name, object) in cache {
                        let envelope: Envelope = object.envelope.parse().unwrap();
                        let known = self.open.keys.contains_key(&envelope.ring);
                        if known && Some(envelope.ring) != newest {
                            self.operator.todo.push_front(Todo::Rewrap(name));
                        }
                    }
                    false
                }
                Todo::Rewrap(name) => self.rewrap(&name),
                Todo::Idle => self.destroy_idle(),
            };
            if written {
                return true;
            }
        }
        false
    }

    fn own(&mut self, name: &str, answer: Result<Object, Refused>) -> bool {
        match answer {
            Ok(object) => {
                self.operator.gone.remove(name);
                self.operator.cache.insert(name.to_owned(), object);
                true
            }
            Err(refused) => {
                if refused == Refused::NotFound {
                    self.operator.cache.remove(name);
                }
                // What it knows is old: nothing helps but to hear what has happened.
                self.operator.todo.clear();
                self.hear(1);
                true
            }
        }
    }

    fn act(&mut self, which: usize, action: &Action, source: Option<u8>) -> bool {
        let (Action::Create { sequence, .. }
        | Action::Mark { sequence, .. }
        | Action::Amend { sequence, .. }
        | Action::Remove { sequence, .. }) = action;
        let name = self.name(which, *sequence);
        let seen = self.open.histories(&self.operator.cache);
        let seen = seen.get(&self.hash(which));
        if !action.stands(seen.and_then(|history| history.0.get(sequence))) {
            // All that was decided together is decided anew.
            self.operator.todo.clear();
            return false;
        }
        match action {
            Action::Create { attributes, .. } => {
                let value = match source {
                    Some(value) => vec![value],
                    None => self.draw::<16>().to_vec(),
                };
                self.make(&name, attributes, Some(value))
            }
            Action::Mark { attributes, .. } => self.make(&name, attributes, None),
            Action::Amend { attributes, .. } => {
                let Some(held) = self.operator.cache.get(&name).cloned() else {
                    return false;
                };
                let Some(object) = self.amended(&name, &held, attributes) else {
                    return false;
                };
                if self.objects.get(&name).map(|it| it.version) == Some(held.version) {
                    self.check_amend(&name, attributes);
                }
                let answer = self.patch(&name, held.version, object);
                self.own(&name, answer)
            }
            Action::Remove { .. } => {
                let Some(held) = self.operator.cache.get(&name).cloned() else {
                    return false;
                };
                match self.delete(&name, held.version) {
                    Ok(()) | Err(Refused::NotFound) => {
                        self.operator.cache.remove(&name);
                        self.operator.gone.insert(name, held.version);
                        true
                    }
                    Err(refused) => self.own(&name, Err(refused)),
                }
            }
        }
    }

    fn sealed(
        &mut self,
        name: &str,
        attributes: &Attributes,
        value: Option<&[u8]>,
    ) -> Option<Object> {
        let (_, sequence) = self.which(name);
        let (key, nonces) = (self.draw(), [self.draw(), self.draw()]);
        let newest = self.open.newest()?;
        let binding = self.open.binding(attributes, sequence);
        let text = attributes.render();
        let key = DataKey::new(Zeroizing::new(key));
        let payload = value.map(|value| key.seal(&binding, nonces[0], value));
        let wrapped = value.map(|_| newest.wrap(&binding, &key, nonces[1]));
        let envelope = Envelope {
            ring: newest.version(),
            mac: newest.mac(&binding, wrapped.as_ref(), &text),
            wrapped,
        };
        Some(Object {
            version: 0,
            attributes: text,
            envelope: envelope.to_string(),
            payload,
        })
    }

    fn make(&mut self, name: &str, attributes: &Attributes, value: Option<Vec<u8>>) -> bool {
        let Some(object) = self.sealed(name, attributes, value.as_deref()) else {
            return false;
        };
        let answer = self.post(name, object, value);
        self.own(name, answer)
    }

    fn amended(&self, name: &str, held: &Object, attributes: &Attributes) -> Option<Object> {
        let (_, sequence) = self.which(name);
        let envelope: Envelope = held.envelope.parse().unwrap();
        let key = self.open.keys.get(&envelope.ring)?;
        let binding = self.open.binding(attributes, sequence);
        let text = attributes.render();
        let mac = key.mac(&binding, envelope.wrapped.as_ref(), &text);
        let envelope = Envelope { mac, ..envelope };
        Some(Object {
            attributes: text,
            envelope: envelope.to_string(),
            ..held.clone()
        })
    }

    fn rewrap(&mut self, name: &str) -> bool {
        let nonce = self.draw();
        let Some(held) = self.operator.cache.get(name).cloned() else {
            return false;
        };
        let (_, sequence) = self.which(name);
        let envelope: Envelope = held.envelope.parse().unwrap();
        let open = &self.open;
        let (Some(newest), Some(old)) = (open.newest(), open.keys.get(&envelope.ring)) else {
            return false;
        };
        let attributes = Attributes::parse(&held.attributes).unwrap();
        let binding = open.binding(&attributes, sequence);
        old.verify(&binding, &envelope, &held.attributes).unwrap();
        let wrapped = envelope.wrapped.as_ref().map(|wrapped| {
            let key = old.unwrap(&binding, wrapped).unwrap();
            newest.wrap(&binding, &key, nonce)
        });
        let envelope = Envelope {
            ring: newest.version(),
            mac: newest.mac(&binding, wrapped.as_ref(), &held.attributes),
            wrapped,
        };
        let rewrapped = Object {
            envelope: envelope.to_string(),
            ..held.clone()
        };
        let answer = self.patch(name, held.version, rewrapped);
        self.own(name, answer)
    }

    fn write_ring(&mut self, document: &RingDocument) {
        self.document = document.render();
        let mac = self.open.index.document_mac(&self.document);
        self.mac = mac.as_bytes().to_vec();
        self.check_all();
    }

    fn turn(&mut self, turning: &Turning) {
        let mut document = self.open.document.clone();
        document.marks = turning.marks.clone();
        if turning.shred_vault {
            let all = document.versions.drain(..).map(|it| it.version);
            document.shredded.extend(all);
            document.vault_shredded = true;
        }
        document.shredded.extend(&turning.shred);
        let shred = |it: &RingVersion| !turning.shred.contains(&it.version);
        document.versions.retain(shred);
        let vault = self.vault.clone();
        if turning.rewrap {
            let again = |world: &mut Self, label, wrapped: &Wrapped| {
                let key = unseal_ring(&world.roots, label, &vault, wrapped);
                let nonce = world.draw();
                seal_ring(world.roots.last().unwrap(), label, &vault, &key, nonce)
            };
            document.index_key = again(self, KeyLabel::Index, &document.index_key);
            for version in &mut document.versions {
                let label = KeyLabel::Ring(version.version);
                version.key = again(self, label, &version.key);
            }
        }
        if turning.add {
            document.last += 1;
            for version in &mut document.versions {
                version.retired = version.retired.or(Some(self.now));
            }
            let (label, key, nonce) = (KeyLabel::Ring(document.last), self.draw(), self.draw());
            let root = self.roots.last().unwrap();
            document.versions.push(RingVersion {
                version: document.last,
                created: self.now,
                retired: None,
                key: seal_ring(root, label, &vault, &key, nonce),
            });
        }
        self.write_ring(&document);
    }

    fn destroy_idle(&mut self) -> bool {
        let used = |objects: &BTreeMap<String, Object>| {
            let mut used: BTreeMap<u32, usize> = BTreeMap::new();
            for object in objects.values() {
                let envelope: Envelope = object.envelope.parse().unwrap();
                *used.entry(envelope.ring).or_default() += 1;
            }
            used
        };
        let cached = used(&self.operator.cache);
        let (idle, _) = ring::idle(&self.open.document, &cached, GRACE, self.now);
        let really = used(&self.objects);
        let idle: Vec<u32> = idle
            .into_iter()
            .filter(|version| !really.contains_key(version))
            .collect();
        if idle.is_empty() {
            return false;
        }
        let mut document = self.open.document.clone();
        document.versions.retain(|it| !idle.contains(&it.version));
        self.write_ring(&document);
        true
    }

    // Others

    fn decide(&mut self, which: usize, wanted: Wanted) {
        let truth = self.truth(which);
        let id = VersionId(self.draw());
        let blank = Attributes {
            name: secret(which),
            id,
            created: self.now,
            updated: self.now,
            ..plain(id.0[0])
        };
        let next = self.name(which, truth.next_sequence());
        let (name, attributes, replaces, text) = match (wanted, truth.state()) {
            (Wanted::Set, State::Live { .. } | State::Absent) => {
                (next, blank, None, Some(self.draw::<16>().to_vec()))
            }
            (Wanted::Delete, State::Live { .. }) => {
                let kind = Kind::Deleted;
                let purge_at = Some(add(self.now, RETENTION));
                let deleted = Attributes {
                    kind,
                    purge_at,
                    ..blank
                };
                (next, deleted, None, None)
            }
            (Wanted::Recover, State::Deleted { .. }) => {
                let kind = Kind::Recovered;
                (next, Attributes { kind, ..blank }, None, None)
            }
            (Wanted::Disable, State::Live { sequence, current }) => {
                let disabled = Attributes {
                    enabled: false,
                    revision: current.revision + 1,
                    ..current.clone()
                };
                let name = self.name(which, sequence);
                let version = self.objects[&name].version;
                (name, disabled, Some(version), None)
            }
            _ => return,
        };
        let object = match replaces {
            None => self.sealed(&name, &attributes, text.as_deref()),
            Some(_) => self.amended(&name, &self.objects[&name], &attributes),
        };
        self.door = object.map(|object| Prepared {
            at: self.now,
            name,
            object,
            replaces,
            value: text,
        });
    }

    fn door_writes(&mut self) {
        let Some(it) = self.door.take() else { return };
        if self.now > add(it.at, DOOR_PATIENCE) {
            return;
        }
        // Its ring may have been shredded meanwhile: then what it writes is lost, and was meant to
        // be; a refusal makes it look again, which is another event here.
        _ = match it.replaces {
            None => self.post(&it.name, it.object, it.value),
            Some(replaces) => self.patch(&it.name, replaces, it.object),
        };
    }

    fn sync(&mut self) {
        let truth = self.truth(SYNCED);
        if let State::Live { sequence, current } = truth.state() {
            self.reached.entry(current.id).or_insert(self.now);
            if self.synced.is_none_or(|(made, _)| made != sequence) {
                self.synced = Some((sequence, self.now));
            }
        } else if truth.0.is_empty() {
            // The synced Secret's entry goes with the secret.
            self.synced = None;
        }
    }

    fn edit(&mut self, which: usize, edit: &Edit) {
        let now = self.now;
        let Some(declared) = &mut self.declared[which] else {
            return;
        };
        match edit {
            Edit::Interval(interval) => {
                declared.policy.interval = interval.map(SignedDuration::from_hours);
            }
            Edit::Overlap(minutes) => {
                declared.policy.overlap = SignedDuration::from_mins(*minutes);
            }
            Edit::Generation => declared.triggers.generation += 1,
            Edit::RevokeGeneration => declared.triggers.revoke_generation += 1,
            Edit::RotateAt(minutes) => {
                let at = add(now, SignedDuration::from_mins(*minutes));
                declared.triggers.rotate_at = Some(at);
            }
            Edit::Keep(versions, age) => {
                declared.keep = Keep {
                    versions: *versions,
                    age: age.map(SignedDuration::from_hours),
                };
            }
            Edit::Tag(tag) => {
                declared.shape.tags = BTreeMap::from([("tag".to_owned(), tag.to_string())]);
            }
            Edit::Minted => self.follows[which] = Following::Nothing,
            Edit::Follow(value) => self.follows[which] = Following::Source(*value),
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Step(count) => {
                for _ in 0..*count {
                    self.step();
                }
            }
            Event::Kill => self.kill(),
            Event::Hear(count) => self.hear(*count),
            Event::Pass(seconds) => self.now = add(self.now, SignedDuration::from_secs(*seconds)),
            Event::Sync => self.sync(),
            Event::Declare(which) => {
                let name = secret(*which);
                self.declared[*which].get_or_insert_with(|| Declared { name, ..declared() });
            }
            Event::Withdraw(which) => self.declared[*which] = None,
            Event::Edit(which, edit) => self.edit(*which, edit),
            Event::AskRecover(which) => self.asked[*which].recover = Some(self.now),
            Event::AskPurge(which) => {
                self.asked[*which].purge = Some(self.now);
                if !self.purge_protection {
                    self.purges_asked[*which].push(self.now);
                }
            }
            Event::ProtectFromPurge => self.purge_protection = true,
            Event::DoorDecides(which, wanted) => self.decide(*which, *wanted),
            Event::DoorWrites => self.door_writes(),
            Event::RingTurns => self.wish.triggers.generation += 1,
            Event::OtherRoot => {
                let root = RootKey::new(Zeroizing::new(self.draw()));
                self.roots.push(root);
            }
            Event::Shred(index) => {
                let versions = &self.open.document.versions;
                if !versions.is_empty() {
                    let version = index.get(versions).version;
                    self.wish.shred.insert(version);
                    self.shreds_asked.insert(version);
                }
            }
            Event::ShredVault => self.wish.shred_vault = true,
        }
    }

    /// Nothing happens any more but what the operator does.
    fn settle(&mut self) {
        for _ in 0..4 {
            for left in (0..400).rev() {
                self.hear(usize::MAX);
                self.sync();
                // What was left of an earlier look, and then a look of its own.
                if !self.step() && !self.step() {
                    break;
                }
                assert!(left > 0, "the operator does not come to rest");
            }
            self.now = add(self.now, GRACE);
        }
        self.now = add(self.now, -GRACE);
        self.kill();
        if self.open.document.vault_shredded {
            assert!(self.open.keys.is_empty());
            return;
        }
        self.look();
        let acts = |todo: &Todo| matches!(todo, Todo::Act(..) | Todo::Turn(_));
        assert!(
            !self.operator.todo.iter().any(acts),
            "{:?}",
            self.operator.todo
        );
        let newest = self.open.newest().unwrap().version();
        for object in self.objects.values() {
            let envelope: Envelope = object.envelope.parse().unwrap();
            let lost = !self.open.keys.contains_key(&envelope.ring);
            assert!(envelope.ring == newest || lost);
        }
        assert_eq!(self.open.keys.len(), 1, "earlier versions are destroyed");
        for which in 0..SECRETS {
            self.check_rest(which);
        }
    }

    fn check_rest(&mut self, which: usize) {
        let truth = self.truth(which);
        let Some(declared) = self.source(which) else {
            assert!(!truth.is_managed() || matches!(truth.state(), State::Broken { .. }));
            return;
        };
        if declared.source == Source::Followed(None) {
            return;
        }
        let State::Live { sequence, current } = truth.state() else {
            panic!("{:?} is declared", truth.state());
        };
        assert!(current.enabled);
        assert_eq!(current.tags, declared.shape.tags);
        let object = &self.objects[&self.name(which, sequence)];
        let held = self.open.open(sequence, object).unwrap();
        if let Some(value) = self.follows[which].value() {
            assert_eq!(held, [value]);
        }
        let retired = truth.values().filter(|(_, value)| !value.enabled).count();
        assert!(retired <= declared.keep.versions);
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => prop::option::weighted(0.7, prop::sample::select(vec![2, 24, 720]))
            .prop_map(Edit::Interval),
        2 => prop::sample::select(vec![0, 1, 30, 90]).prop_map(Edit::Overlap),
        5 => Just(Edit::Generation),
        2 => Just(Edit::RevokeGeneration),
        2 => (-60..300_i64).prop_map(Edit::RotateAt),
        2 => (0..3_usize, prop::option::of(1..50_i64))
            .prop_map(|(versions, age)| Edit::Keep(versions, age)),
        1 => any::<u8>().prop_map(Edit::Tag),
        1 => Just(Edit::Minted),
        4 => prop::option::weighted(0.8, 0..3_u8).prop_map(Edit::Follow),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let which = || 0..SECRETS;
    let span = prop_oneof![
        3 => 1..120_i64,
        3 => 120..7200_i64,
        1 => Just(GRACE.as_secs()),
        1 => Just(RETENTION.as_secs()),
    ];
    let wanted = prop_oneof![
        3 => Just(Wanted::Set),
        1 => Just(Wanted::Disable),
        3 => Just(Wanted::Delete),
        2 => Just(Wanted::Recover),
    ];
    prop_oneof![
        30 => (1..8_usize).prop_map(Event::Step),
        3 => Just(Event::Kill),
        10 => (1..12_usize).prop_map(Event::Hear),
        12 => span.prop_map(Event::Pass),
        6 => Just(Event::Sync),
        5 => which().prop_map(Event::Declare),
        4 => which().prop_map(Event::Withdraw),
        14 => (which(), edit()).prop_map(|(which, edit)| Event::Edit(which, edit)),
        2 => which().prop_map(Event::AskRecover),
        4 => which().prop_map(Event::AskPurge),
        1 => Just(Event::ProtectFromPurge),
        12 => (which(), wanted).prop_map(|(which, wanted)| Event::DoorDecides(which, wanted)),
        12 => Just(Event::DoorWrites),
        4 => Just(Event::RingTurns),
        1 => Just(Event::OtherRoot),
        1 => any::<Index>().prop_map(Event::Shred),
        // Seldom: nothing happens after it.
        1 => prop::bool::weighted(0.1)
            .prop_map(|all| if all { Event::ShredVault } else { Event::RingTurns }),
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
    #![proptest_config(config(60))]

    #[test]
    fn what_was_written_opens_or_is_gone_on_purpose(
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut world = World::new();
        world.happen(&Event::Declare(0));
        for event in &events {
            world.happen(event);
        }
        world.settle();
    }
}
