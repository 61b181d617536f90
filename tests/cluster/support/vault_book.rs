//! What must be true of everything that ever stood in the objects of vaults, however often the
//! operator was killed or cut off while it wrote them: a walk through a [`Record`], which opens every
//! version with the root key, the key ring that was there at the time, and the library's own code.

use std::collections::{BTreeMap, BTreeSet};

use claviger::{
    api::{
        ATTRIBUTES_ANNOTATION, CONTENT_LABEL, CONTENT_SYNC, ENVELOPE_ANNOTATION, SYNC_ANNOTATION,
    },
    domain::vault::{
        attributes::{Attributes, Kind},
        envelope::{Binding, Envelope, IndexKey, KeyLabel, Mac, RingKey, RootKey},
        name::{NameHash, SecretName, VersionId, parse_object_name},
        ring::RingDocument,
    },
    k8s::vault::{ENTRY_TYPE, RING_TYPE, ring_name},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use zeroize::Zeroizing;

use super::{
    Space,
    control_plane::SYSTEM,
    record::{Content, Record, Version},
};

/// How much later than it happened something may be seen on a busy machine.
const LATENCY: SignedDuration = SignedDuration::from_millis(1500);

/// The root key of all vaults.
pub(crate) async fn root_key(space: &Space) -> RootKey {
    let secrets = Api::<Secret>::namespaced(space.client.clone(), SYSTEM);
    let secret = secrets.get("claviger-root-key").await.unwrap();
    let bytes: [u8; 32] = secret.data.unwrap()["key"].0.clone().try_into().unwrap();
    RootKey::new(Zeroizing::new(bytes))
}

/// An opened key ring.
pub(crate) struct Opened {
    pub(crate) document: RingDocument,
    pub(crate) keys: BTreeMap<u32, RingKey>,
}

/// Opens a key ring's document as Claviger does.
pub(crate) fn open_ring(root: &RootKey, document: &[u8], mac: &[u8]) -> Result<Opened, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let read = RingDocument::parse(document).map_err(|error| said(&error))?;
    let vault = read.vault();
    let index = root
        .unwrap_key(KeyLabel::Index, &vault, &read.index_key.sealed.0)
        .map_err(|error| said(&error))?;
    let index = IndexKey::new(index, &vault.id);
    Mac::try_from(mac)
        .and_then(|mac| index.verify_document(document, &mac))
        .map_err(|error| said(&error))?;
    let mut keys = BTreeMap::new();
    for version in &read.versions {
        let key = root
            .unwrap_key(
                KeyLabel::Ring(version.version),
                &vault,
                &version.key.sealed.0,
            )
            .map_err(|error| said(&error))?;
        keys.insert(
            version.version,
            RingKey::new(version.version, key, &vault.id),
        );
    }
    Ok(Opened {
        document: read,
        keys,
    })
}

/// The attributes and the value of an entry, verified and opened.
pub(crate) fn open_entry(
    ring: &Opened,
    vault: &str,
    object: &str,
    annotations: &BTreeMap<String, String>,
    payload: Option<&[u8]>,
) -> Result<(Attributes, Option<String>), String> {
    let (hash, sequence) = parse_object_name(vault, object).ok_or("has no entry's name")?;
    let text = annotations
        .get(ATTRIBUTES_ANNOTATION)
        .ok_or("has no attributes")?;
    let attributes = Attributes::parse(text).map_err(|error| error.to_string())?;
    let envelope: Envelope = annotations
        .get(ENVELOPE_ANNOTATION)
        .and_then(|text| text.parse().ok())
        .ok_or("has no envelope")?;
    let place = ring.document.vault();
    if place.hash(&attributes.name) != hash {
        return Err("has the name of another secret".to_owned());
    }
    let key = ring
        .keys
        .get(&envelope.ring)
        .ok_or_else(|| format!("is under version {} of the ring", envelope.ring))?;
    let binding = Binding {
        vault: &place,
        secret: &attributes.name,
        sequence,
        version: attributes.id,
    };
    key.verify(&binding, &envelope, text)
        .map_err(|error| error.to_string())?;
    let value = match (&envelope.wrapped, payload) {
        (None, None) => None,
        (Some(wrapped), Some(payload)) => {
            let value = key
                .unwrap(&binding, wrapped)
                .and_then(|key| key.open(&binding, payload))
                .map_err(|error| error.to_string())?;
            Some(String::from_utf8(value.to_vec()).unwrap())
        }
        _ => return Err("has a data key or a payload alone".to_owned()),
    };
    Ok((attributes, value))
}

/// What stands under a key of a target.
#[derive(Clone, Debug)]
pub(crate) enum Made {
    Current(&'static str),
    Previous(&'static str),
    /// Text in which `<name>` stands for the current value of a secret.
    Text(&'static str, &'static [&'static str]),
}

/// A target, as promised.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) immutable: bool,
    pub(crate) merge: bool,
    pub(crate) keys: BTreeMap<&'static str, Made>,
    pub(crate) restarts: Option<&'static str>,
}

/// A secret, as promised.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turned {
    /// Versions of the vault's object, or of a source, from which on a turn was asked for.
    pub(crate) turns: Vec<u64>,
    /// Those of them that revoke.
    pub(crate) revoked: Vec<u64>,
}

/// A vault whose life is recorded.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    pub(crate) vault: String,
    pub(crate) overlap: SignedDuration,
    pub(crate) keep: usize,
    pub(crate) secrets: BTreeMap<&'static str, Turned>,
    pub(crate) ring_turns: Vec<u64>,
    pub(crate) targets: Vec<Target>,
    /// The version at which it was deleted, to go with everything.
    pub(crate) deleted: Option<u64>,
    /// Whether values are also set by others than the operator.
    pub(crate) shared: bool,
}

impl Promise {
    fn is_going(&self, number: u64) -> bool {
        self.deleted.is_some_and(|at| at <= number)
    }

    fn target(&self, secret: &str) -> Option<&Target> {
        self.targets.iter().find(|target| {
            target.name == secret
                || (target.immutable
                    && secret
                        .strip_prefix(&target.name)
                        .is_some_and(|rest| rest.starts_with('-')))
        })
    }
}

struct Entry {
    attributes: Attributes,
    value: Option<String>,
    payload: Option<Vec<u8>>,
    ring: u32,
}

/// A value that there once was.
struct Known {
    sequence: u32,
    id: VersionId,
    text: String,
    born: u64,
}

type Hash = (String, NameHash);

/// What a walk has come by.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) entries: usize,
    pub(crate) opened: usize,
    pub(crate) rings: usize,
    pub(crate) synced: usize,
    pub(crate) restarts: usize,
    pub(crate) changes: usize,
}

/// A walk through the record.
struct Walk<'a> {
    root: &'a RootKey,
    promises: &'a [Promise],
    /// Whether the record is without gaps: else what was only passing may be missing in it.
    whole: bool,
    rings: BTreeMap<String, Opened>,
    entries: BTreeMap<Hash, BTreeMap<u32, Entry>>,
    /// By vault and folded name of the secret.
    values: BTreeMap<(String, String), Vec<Known>>,
    /// How many turns had been asked for when the secret was last purged.
    purged: BTreeMap<(String, String), usize>,
    synced: BTreeMap<String, Content>,
    /// By vault, target and secret: when each number was first seen there.
    reached: BTreeMap<(String, String, String), Vec<(u32, Timestamp)>>,
    restarts: BTreeMap<String, BTreeSet<Timestamp>>,
    changes: BTreeMap<String, usize>,
    seen: Seen,
    faults: Vec<String>,
}

/// Everything that is wrong with what was recorded, and how much was looked at.
pub(crate) fn faults(record: &Record, root: &RootKey, promises: &[Promise]) -> (Vec<String>, Seen) {
    let mut walk = Walk {
        root,
        promises,
        whole: record.gaps() == 0,
        rings: BTreeMap::new(),
        entries: BTreeMap::new(),
        values: BTreeMap::new(),
        purged: BTreeMap::new(),
        synced: BTreeMap::new(),
        reached: BTreeMap::new(),
        restarts: BTreeMap::new(),
        changes: BTreeMap::new(),
        seen: Seen::default(),
        faults: Vec::new(),
    };
    for version in record.versions() {
        walk.step(&version);
    }
    walk.close();
    (walk.faults, walk.seen)
}

/// Fails with everything that is wrong.
pub(crate) async fn holds(record: &Record, root: &RootKey, promises: &[Promise]) -> Seen {
    record.complete().await;
    let (faults, seen) = faults(record, root, promises);
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    seen
}

impl Walk<'_> {
    fn fault(&mut self, version: &Version, what: impl std::fmt::Display) {
        self.faults.push(format!(
            "at {} ({}) {}/{}: {what}",
            version.number, version.seen, version.kind, version.name
        ));
    }

    fn step(&mut self, version: &Version) {
        if let Some(restarted) = version.content.as_ref().and_then(|after| after.restarted) {
            self.restarts
                .entry(version.name.clone())
                .or_default()
                .insert(restarted);
        }
        if version.kind != "Secret" {
            return;
        }
        let promises = self.promises;
        for promise in promises {
            if version.name == ring_name(&promise.vault) {
                return self.ring(version, promise);
            }
            if let Some((hash, sequence)) = parse_object_name(&promise.vault, &version.name) {
                return self.entry(version, promise, hash, sequence);
            }
            if let Some(target) = promise.target(&version.name) {
                return self.sync(version, promise, target);
            }
        }
    }

    fn ring(&mut self, version: &Version, promise: &Promise) {
        let Some(content) = &version.content else {
            self.rings.remove(&promise.vault);
            if !promise.is_going(version.number) {
                self.fault(version, "the key ring went");
            }
            return;
        };
        self.seen.rings += 1;
        assert_eq!(content.type_.as_deref(), Some(RING_TYPE));
        let bytes = |key: &str| content.bytes.get(key).map_or(&[][..], Vec::as_slice);
        let opened = match open_ring(self.root, bytes("ring"), bytes("mac")) {
            Ok(opened) => opened,
            Err(why) => return self.fault(version, why),
        };
        if let Some(before) = self.rings.get(&promise.vault) {
            let (one, two) = (before.document.clone(), &opened.document);
            if one.vault_id != two.vault_id || two.index_key.sealed != one.index_key.sealed {
                self.fault(version, "the key ring is another");
            }
            let steps = i64::from(two.last) - i64::from(one.last);
            if steps < 0 || (steps > 1 && self.whole) {
                self.fault(
                    version,
                    format!("the ring went from {} to {}", one.last, two.last),
                );
            }
            for old in &one.versions {
                match two.versions.iter().find(|new| new.version == old.version) {
                    Some(new) if new.key != old.key => {
                        self.fault(version, format!("ring version {} is another", old.version));
                    }
                    Some(_) => {}
                    None => {
                        let under: usize = self
                            .entries
                            .iter()
                            .filter(|((vault, _), _)| *vault == promise.vault)
                            .flat_map(|(_, entries)| entries.values())
                            .filter(|entry| entry.ring == old.version)
                            .count();
                        if under > 0 && self.whole {
                            self.fault(
                                version,
                                format!("ring version {} went with {under} under it", old.version),
                            );
                        }
                    }
                }
            }
        }
        let asked = promise
            .ring_turns
            .iter()
            .filter(|at| **at <= version.number)
            .count();
        if usize::try_from(opened.document.last).unwrap() > asked + 1 {
            let last = opened.document.last;
            self.fault(
                version,
                format!("version {last} for {asked} turns asked for"),
            );
        }
        self.rings.insert(promise.vault.clone(), opened);
    }

    fn entry(&mut self, version: &Version, promise: &Promise, hash: NameHash, sequence: u32) {
        let place = (promise.vault.clone(), hash);
        let Some(content) = &version.content else {
            return self.removed(version, promise, &place, sequence);
        };
        self.seen.entries += 1;
        assert_eq!(content.type_.as_deref(), Some(ENTRY_TYPE));
        let payload = content.bytes.get("payload").map(Vec::as_slice);
        let read = match self.rings.get(&promise.vault) {
            None => Err("there is no key ring".to_owned()),
            Some(ring) => open_entry(
                ring,
                &promise.vault,
                &version.name,
                &content.annotations,
                payload,
            ),
        };
        let (attributes, value) = match read {
            Ok(read) => read,
            Err(why) => return self.fault(version, why),
        };
        self.seen.opened += usize::from(value.is_some());
        let entry = Entry {
            ring: content.annotations[ENVELOPE_ANNOTATION]
                .split('.')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap(),
            payload: payload.map(<[u8]>::to_vec),
            value,
            attributes,
        };
        let standing = self.entries.entry(place.clone()).or_default();
        let mut faults = Vec::new();
        if let Some(before) = standing.get(&sequence) {
            if (before.payload != entry.payload) || before.value != entry.value {
                faults.push("holds another value".to_owned());
            }
            let (one, two) = (&before.attributes, &entry.attributes);
            if one.id != two.id || one.kind != two.kind || one.created > two.created {
                faults.push("says of itself that it is another".to_owned());
            }
            if one.revision > two.revision || entry.ring < before.ring {
                faults.push("went back".to_owned());
            }
            if one.enabled && !two.enabled {
                let successor = standing
                    .range(sequence + 1..)
                    .find(|(_, entry)| entry.attributes.kind == Kind::Value)
                    .map(|(number, _)| *number);
                let name = two.name.folded();
                standing.insert(sequence, entry);
                for fault in faults {
                    self.fault(version, fault);
                }
                return self.retired(version, promise, &name, sequence, successor);
            }
        } else {
            if standing.keys().any(|other| *other >= sequence) {
                faults.push("is not the next entry".to_owned());
            }
            let name = entry.attributes.name.folded();
            let known = (promise.vault.clone(), name.clone());
            if let Some(value) = &entry.value {
                let highest = standing
                    .values()
                    .filter(|entry| entry.attributes.kind == Kind::Value)
                    .filter_map(|entry| Some(entry.attributes.managed.as_ref()?.generation))
                    .max()
                    .unwrap_or_default();
                let purged = self.purged.get(&known).copied().unwrap_or_default();
                let asked = promise.secrets.get(&*name).map_or(0, |turned| {
                    let asked = turned.turns.iter().filter(|at| **at <= version.number);
                    asked.count()
                }) - purged;
                if let Some(managed) = &entry.attributes.managed {
                    let generation = managed.generation;
                    let next = generation == highest + 1 || !self.whole;
                    if !promise.shared && (!next || generation as usize > asked + 1) {
                        faults.push(format!(
                            "{name} has generation {generation} after {highest}, {asked} turns were asked for"
                        ));
                    }
                }
                self.values.entry(known).or_default().push(Known {
                    sequence,
                    id: entry.attributes.id,
                    text: value.clone(),
                    born: version.number,
                });
            }
        }
        standing.insert(sequence, entry);
        for fault in faults {
            self.fault(version, fault);
        }
    }

    /// An entry goes only if it is no longer needed.
    fn removed(&mut self, version: &Version, promise: &Promise, place: &Hash, sequence: u32) {
        let Some(standing) = self.entries.get_mut(place) else {
            return self.fault(version, "went and was never there");
        };
        let Some(gone) = standing.remove(&sequence) else {
            return self.fault(version, "went and was never there");
        };
        let newest = standing.last_key_value();
        let mut fault = None;
        if !promise.is_going(version.number) {
            let purging = newest.is_some_and(|(_, newest)| newest.attributes.kind == Kind::Purging);
            match gone.attributes.kind {
                Kind::Purging => {
                    if !standing.is_empty() {
                        fault = Some(format!("a purge ended with {} left", standing.len()));
                    }
                }
                _ if purging => {}
                Kind::Deleted | Kind::Recovered => {
                    if newest.is_none_or(|(newest, _)| *newest < sequence) {
                        fault = Some("a marker went that decides".to_owned());
                    }
                }
                Kind::Value => {
                    let retired = standing.values().filter(|entry| {
                        entry.attributes.kind == Kind::Value && !entry.attributes.enabled
                    });
                    if self.whole && (gone.attributes.enabled || retired.count() < promise.keep) {
                        fault = Some("a version went that is to be kept".to_owned());
                    }
                }
            }
        }
        if standing.is_empty() {
            self.entries.remove(place);
            let name = gone.attributes.name.folded();
            let asked = promise.secrets.get(&*name).map_or(0, |turned| {
                let asked = turned.turns.iter().filter(|at| **at <= version.number);
                asked.count()
            });
            let known = (promise.vault.clone(), name);
            self.purged.insert(known, asked);
        }
        if let Some(fault) = fault {
            self.fault(version, fault);
        }
    }

    /// A version is disabled when its successor has been with everybody for the overlap.
    fn retired(
        &mut self,
        version: &Version,
        promise: &Promise,
        secret: &str,
        sequence: u32,
        successor: Option<u32>,
    ) {
        let Some(successor) = successor else {
            return self.fault(version, "was disabled without a successor");
        };
        let born = self.values[&(promise.vault.clone(), secret.to_owned())]
            .iter()
            .rev()
            .find(|value| value.sequence == sequence)
            .map_or(0, |value| value.born);
        let turned = promise.secrets.get(secret).cloned().unwrap_or_default();
        if turned
            .revoked
            .iter()
            .any(|at| born < *at && *at <= version.number)
        {
            return;
        }
        for target in &promise.targets {
            let uses = target
                .keys
                .values()
                .any(|made| matches!(made, Made::Current(name) if *name == secret));
            if !uses {
                continue;
            }
            let place = (
                promise.vault.clone(),
                target.name.clone(),
                secret.to_owned(),
            );
            if !self.whole {
                continue;
            }
            let since = self
                .reached
                .get(&place)
                .into_iter()
                .flatten()
                .find(|(number, _)| *number >= successor)
                .map(|(_, at)| *at);
            match since {
                None => self.fault(
                    version,
                    format!("was disabled before {} had its successor", target.name),
                ),
                Some(since) => {
                    let lived = version.seen.duration_since(since);
                    if lived < promise.overlap - LATENCY {
                        self.fault(
                            version,
                            format!(
                                "was disabled {lived:#} after {} had its successor",
                                target.name
                            ),
                        );
                    }
                    let restarted = target.restarts.is_none_or(|deployment| {
                        let restarts = self.restarts.get(deployment).into_iter().flatten();
                        restarts.copied().any(|at| at >= since - LATENCY)
                    });
                    if !restarted {
                        self.fault(version, "was disabled before its readers were restarted");
                    }
                }
            }
        }
    }

    /// The number of the value of a secret that this is.
    fn number(&self, vault: &str, secret: &str, value: &str) -> Option<(usize, u32)> {
        let known = self.values.get(&(vault.to_owned(), secret.to_owned()))?;
        let at = known.iter().rposition(|known| known.text == value)?;
        Some((at, known[at].sequence))
    }

    fn sync(&mut self, version: &Version, promise: &Promise, target: &Target) {
        let before = self.synced.get(&version.name).cloned();
        let ours = |content: &Content| content.annotations.contains_key(SYNC_ANNOTATION);
        let Some(content) = version.content.as_ref().filter(|content| ours(content)) else {
            if before.as_ref().is_some_and(ours) && !promise.is_going(version.number) {
                let newer = target.immutable
                    && self.synced.iter().any(|(name, _)| {
                        *name != version.name
                            && promise
                                .target(name)
                                .is_some_and(|other| other.name == target.name)
                    });
                if !newer && self.whole {
                    self.fault(version, "went");
                }
            }
            self.synced.remove(&version.name);
            return;
        };
        self.seen.synced += 1;
        if content.label.as_deref() != Some(CONTENT_SYNC) {
            self.fault(version, format!("is without {CONTENT_LABEL}"));
        }
        let text = &content.annotations[SYNC_ANNOTATION];
        let record: serde_json::Value = serde_json::from_str(text).unwrap();
        if target.immutable
            && before
                .as_ref()
                .is_some_and(|before| before.data != content.data)
        {
            self.fault(version, "an immutable Secret changed");
        }
        if target.merge && content.data.get("FOREIGN").map(String::as_str) != Some("left alone") {
            self.fault(version, "an entry of somebody else went");
        }
        // Which version of each secret stands here: by the first key that says, and then all agree.
        let mut numbers: BTreeMap<&str, (usize, u32)> = BTreeMap::new();
        for (key, made) in &target.keys {
            let Made::Current(secret) = made else {
                continue;
            };
            let Some(value) = content.data.get(*key) else {
                self.fault(version, format!("lacks {key}"));
                continue;
            };
            match self.number(&promise.vault, secret, value) {
                None => self.fault(version, format!("{key} is no value of {secret}")),
                Some(number) => {
                    let known = *numbers.entry(secret).or_insert(number);
                    if known != number {
                        let (one, two) = (known.1, number.1);
                        self.fault(version, format!("holds {secret} {one} and {two} at once"));
                    }
                    let made = &record["entries"][*key]["inputs"][*secret];
                    let made = made.get("number").unwrap_or(made);
                    if made.as_u64() != Some(number.1.into()) {
                        self.fault(version, format!("{key} is not what the bookkeeping says"));
                    }
                }
            }
        }
        for (key, made) in &target.keys {
            let stands = content.data.get(*key);
            match made {
                Made::Current(_) => {}
                Made::Previous(secret) => {
                    let Some(value) = stands else { continue };
                    let current = numbers.get(secret).copied().unwrap_or_default();
                    match self.number(&promise.vault, secret, value) {
                        Some((at, _)) if at < current.0 => {}
                        other => {
                            self.fault(version, format!("{key} is {other:?} beside {current:?}"));
                        }
                    }
                }
                Made::Text(text, secrets) => {
                    let mut rendered = (*text).to_owned();
                    for secret in *secrets {
                        let Some((at, _)) = numbers.get(secret) else {
                            continue;
                        };
                        let known = &self.values[&(promise.vault.clone(), (*secret).to_owned())];
                        rendered = rendered.replace(&format!("<{secret}>"), &known[*at].text);
                    }
                    if stands != Some(&rendered) {
                        self.fault(version, format!("{key} does not go with the other entries"));
                    }
                }
            }
        }
        for (secret, (_, number)) in numbers {
            let place = (
                promise.vault.clone(),
                target.name.clone(),
                secret.to_owned(),
            );
            let reached = self.reached.entry(place).or_default();
            let last = reached.last().map_or(0, |(last, _)| *last);
            if number > last {
                reached.push((number, version.seen));
            } else if number < last && !promise.shared && !target.immutable {
                self.fault(
                    version,
                    format!("{secret} went back from {last} to {number}"),
                );
            }
        }
        let changed = match &before {
            Some(before) => before.data != content.data,
            None => target.immutable,
        };
        if changed && let Some(deployment) = target.restarts {
            *self.changes.entry(deployment.to_owned()).or_default() += 1;
        }
        self.synced.insert(version.name.clone(), content.clone());
    }

    fn close(&mut self) {
        // Ids are of one version each.
        let mut ids = BTreeSet::new();
        for value in self.values.values().flatten() {
            if !ids.insert(value.id) {
                self.faults.push(format!("{} is there twice", value.id));
            }
        }
        for (deployment, changes) in &self.changes {
            let restarts = self.restarts.get(deployment).map_or(0, BTreeSet::len);
            self.seen.restarts += restarts;
            self.seen.changes += changes;
            if restarts > *changes && self.whole {
                self.faults.push(format!(
                    "{deployment} was restarted {restarts} times for {changes} changes"
                ));
            }
        }
    }
}

/// The hash under which a secret of a vault has its objects.
pub(crate) fn hash(ring: &Opened, secret: &str) -> NameHash {
    ring.document
        .vault()
        .hash(&SecretName::parse(secret).unwrap())
}
