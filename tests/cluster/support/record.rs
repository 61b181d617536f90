//! A record of everything that stood in a namespace, version by version, and what must be true of
//! it however often the operator was killed, cut off or lied to while it was made.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use claviger::{
    api::{
        CONTENT_COPIES, CONTENT_KEYS, CONTENT_LABEL, COPIES_ANNOTATION, LEDGER_ANNOTATION,
        RESTARTED_AT_ANNOTATION, SEALED_ANNOTATION,
    },
    domain::{
        key::KeyMaterial,
        layout,
        ledger::{Copies, Ledger},
        seal::SealKey,
    },
};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, ObjectMeta, Patch, PatchParams, WatchEvent, WatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Space, eventually};

/// The name of the objects by which the record is known to be complete.
const MARKER: &str = "record-marker";

/// How much later than it happened something may be seen on a busy machine.
const LATENCY: SignedDuration = SignedDuration::from_millis(1500);

/// One version of one object.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) number: u64,
    pub(crate) seen: Timestamp,
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// What stood in it; `None`: it was deleted.
    pub(crate) content: Option<Content>,
}

/// What stood in an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub(crate) data: BTreeMap<String, String>,
    pub(crate) label: Option<String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// The type of a Secret.
    pub(crate) type_: Option<String>,
    /// The data of a Secret, as it is.
    pub(crate) bytes: BTreeMap<String, Vec<u8>>,
    /// The restart annotation of a workload's pods.
    pub(crate) restarted: Option<Timestamp>,
}

impl Content {
    /// The bookkeeping of a key store.
    pub(crate) fn ledger(&self) -> Option<Ledger> {
        Ledger::parse(self.annotations.get(LEDGER_ANNOTATION)?).ok()
    }
}

#[derive(Default)]
struct Log {
    versions: Vec<Version>,
    reached: BTreeMap<&'static str, u64>,
    gaps: u32,
}

/// A key whose life is recorded.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) name: String,
    /// The store: kind and name.
    pub(crate) store: (&'static str, String),
    pub(crate) entry: String,
    /// Clients' Secrets and their entries.
    pub(crate) clients: Vec<(String, String)>,
    /// The Deployment that is restarted when a copy changes.
    pub(crate) restarts: Option<String>,
    pub(crate) overlap: SignedDuration,
    /// Versions from which on a turn was asked for.
    pub(crate) turns: Vec<u64>,
    /// Versions from which on a value may go at once.
    pub(crate) revoked: Vec<u64>,
    /// The version at which it was deleted.
    pub(crate) deleted: Option<u64>,
}

impl Kept {
    /// A key in the Secret `keys` that nobody is given.
    pub(crate) fn new(name: &str, entry: &str, overlap: SignedDuration) -> Self {
        Self {
            name: name.to_owned(),
            store: ("Secret", "keys".to_owned()),
            entry: entry.to_owned(),
            clients: Vec::new(),
            restarts: None,
            overlap,
            turns: Vec::new(),
            revoked: Vec::new(),
            deleted: None,
        }
    }

    /// The same, handed to this entry of this Secret.
    pub(crate) fn to(mut self, secret: &str, entry: &str) -> Self {
        self.clients.push((secret.to_owned(), entry.to_owned()));
        self
    }

    fn of_store(&self, version: &Version) -> bool {
        self.store.0 == version.kind && self.store.1 == version.name
    }

    /// Whether a value that first stood at one version may go at another at once.
    fn excused(&self, stood: u64, went: u64) -> bool {
        self.deleted.is_some_and(|at| at <= went)
            || self.revoked.iter().any(|at| stood < *at && *at <= went)
    }
}

/// A record in the making.
#[derive(Clone)]
pub(crate) struct Record {
    log: Arc<Mutex<Log>>,
    /// Versions of stores that were found whole before: they need not be looked at again.
    sound: Arc<Mutex<BTreeSet<u64>>>,
    namespace: String,
    seal_key: Arc<SealKey>,
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    deployments: Api<Deployment>,
}

impl Record {
    /// Begins to record a namespace. An operator must have run before: it makes the seal key.
    pub(crate) async fn start(space: &Space) -> Self {
        let record = Self {
            log: Arc::default(),
            sound: Arc::default(),
            namespace: space.name.clone(),
            seal_key: Arc::new(seal_key(space).await.0),
            secrets: space.secrets(),
            config_maps: space.config_maps(),
            deployments: space.deployments(),
        };
        space.put_deployment(MARKER).await;
        let text = |(entry, value): (String, k8s_openapi::ByteString)| {
            (entry, String::from_utf8_lossy(&value.0).into_owned())
        };
        let log = &record.log;
        tokio::spawn(follow(
            record.secrets.clone(),
            Arc::clone(log),
            "Secret",
            move |secret: Secret| Content {
                data: secret
                    .data
                    .clone()
                    .unwrap_or_default()
                    .into_iter()
                    .map(text)
                    .collect(),
                bytes: secret
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(entry, value)| (entry, value.0))
                    .collect(),
                type_: secret.type_,
                ..described(&secret.metadata)
            },
        ));
        tokio::spawn(follow(
            record.config_maps.clone(),
            Arc::clone(log),
            "ConfigMap",
            |map: ConfigMap| Content {
                data: map.data.clone().unwrap_or_default(),
                ..described(&map.metadata)
            },
        ));
        let restarted = |deployment: Deployment| {
            let pods = deployment.spec.and_then(|spec| spec.template.metadata);
            let annotations = pods.and_then(|pods| pods.annotations).unwrap_or_default();
            let restarted = annotations
                .get(RESTARTED_AT_ANNOTATION)
                .map(|text| text.parse().unwrap());
            Content {
                restarted,
                ..Content::default()
            }
        };
        tokio::spawn(follow(
            record.deployments.clone(),
            Arc::clone(log),
            "Deployment",
            restarted,
        ));
        record.complete().await;
        record
    }

    /// Waits until everything that has happened so far is in the record.
    pub(crate) async fn complete(&self) {
        let text = Timestamp::now().to_string();
        let marker = |kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": MARKER, "annotations": {"at": text}}});
        let params = PatchParams::apply("record").force();
        let secret = self
            .secrets
            .patch(MARKER, &params, &Patch::Apply(marker("Secret")))
            .await
            .unwrap();
        let map = self
            .config_maps
            .patch(MARKER, &params, &Patch::Apply(marker("ConfigMap")))
            .await
            .unwrap();
        let patch = json!({"metadata": {"annotations": {"at": text}}});
        let deployment = self
            .deployments
            .patch(MARKER, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        let written = [
            ("Secret", number(&secret)),
            ("ConfigMap", number(&map)),
            ("Deployment", number(&deployment)),
        ];
        eventually(
            "the record to be complete",
            Duration::from_secs(30),
            async || {
                let log = self.log.lock().unwrap();
                let behind = written.iter().find(|(kind, number)| {
                    log.reached.get(kind).is_none_or(|reached| reached < number)
                });
                behind.map_or(Ok(()), |(kind, _)| Err((*kind).to_owned()))
            },
        )
        .await;
    }

    /// How often the record could not be taken up where it had been interrupted.
    pub(crate) fn gaps(&self) -> u32 {
        self.log.lock().unwrap().gaps
    }

    /// How many versions there are so far.
    pub(crate) fn length(&self) -> usize {
        self.log.lock().unwrap().versions.len()
    }

    /// All versions in the order in which they were written.
    pub(crate) fn versions(&self) -> Vec<Version> {
        let mut versions = self.log.lock().unwrap().versions.clone();
        versions.sort_by_key(|version| version.number);
        versions
    }

    /// The last version of an object.
    pub(crate) fn last(&self, kind: &str, name: &str) -> Option<Content> {
        let log = self.log.lock().unwrap();
        let of = |version: &&Version| version.kind == kind && version.name == name;
        log.versions
            .iter()
            .filter(of)
            .max_by_key(|version| version.number)?
            .content
            .clone()
    }

    /// Everything that is wrong with what was recorded. Call it when the record is complete.
    pub(crate) fn faults(&self, kept: &[Kept]) -> Vec<String> {
        let mut walk = Walk {
            record: self,
            kept,
            now: BTreeMap::new(),
            stood: BTreeMap::new(),
            restarts: BTreeMap::new(),
            given: BTreeMap::new(),
            faults: Vec::new(),
        };
        for version in self.versions() {
            walk.step(&version);
        }
        walk.count_restarts();
        walk.faults
    }

    /// Fails with everything that is wrong.
    pub(crate) async fn holds(&self, kept: &[Kept]) {
        self.complete().await;
        let faults = self.faults(kept);
        assert!(
            faults.is_empty(),
            "{} faults:\n{}",
            faults.len(),
            faults.join("\n")
        );
    }
}

/// The seal key, and its bytes.
pub(crate) async fn seal_key(space: &Space) -> (SealKey, [u8; 32]) {
    let system = super::control_plane::SYSTEM;
    let secret = eventually("the seal key", Duration::from_secs(30), async || {
        let secrets = Api::<Secret>::namespaced(space.client.clone(), system);
        secrets
            .get("claviger-seal-key")
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    let bytes: [u8; 32] = secret.data.unwrap()["key"].0.clone().try_into().unwrap();
    (SealKey::new(Zeroizing::new(bytes)), bytes)
}

fn number(object: &impl ResourceExt) -> u64 {
    object.resource_version().unwrap().parse().unwrap()
}

fn described(metadata: &ObjectMeta) -> Content {
    let annotations = metadata.annotations.clone().unwrap_or_default();
    let label = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(CONTENT_LABEL))
        .cloned();
    Content {
        label,
        annotations,
        ..Content::default()
    }
}

/// Writes down every version of every object of a kind.
async fn follow<K>(
    api: Api<K>,
    log: Arc<Mutex<Log>>,
    kind: &'static str,
    content: impl Fn(K) -> Content,
) where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let mut known = BTreeSet::new();
    let mut note = |object: K, gone: bool| {
        let (name, number) = (object.name_any(), number(&object));
        if name != MARKER && known.insert((name.clone(), number)) {
            let content = (!gone).then(|| content(object));
            log.lock().unwrap().versions.push(Version {
                number,
                seen: Timestamp::now(),
                kind,
                name,
                content,
            });
        }
        let mut log = log.lock().unwrap();
        let reached = log.reached.entry(kind).or_default();
        *reached = number.max(*reached);
    };
    let mut from: Option<String> = None;
    loop {
        let version = if let Some(version) = &from {
            version.clone()
        } else {
            let Ok(list) = api.list(&ListParams::default()).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let version = list.metadata.resource_version.clone().unwrap();
            for object in list.items {
                note(object, false);
            }
            version
        };
        from = Some(version.clone());
        let Ok(events) = api.watch(&WatchParams::default(), &version).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    from = object.resource_version();
                    note(object, false);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    from = object.resource_version();
                    note(object, true);
                }
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    from = Some(bookmark.metadata.resource_version);
                }
                Ok(WatchEvent::Error(_)) => {
                    log.lock().unwrap().gaps += 1;
                    from = None;
                    break;
                }
                Err(_) => break,
            }
        }
    }
}

/// What a client was given of a key, and until when it must work.
struct Given {
    value: String,
    generation: u32,
    /// Since when its successor stands in the client's Secret: by the ledger, and as seen.
    followed: Option<(Timestamp, Timestamp)>,
}

/// A walk through the record.
struct Walk<'a> {
    record: &'a Record,
    kept: &'a [Kept],
    now: BTreeMap<(&'static str, String), Content>,
    /// Since which version a value has stood in a store.
    stood: BTreeMap<String, u64>,
    /// When Deployments were restarted.
    restarts: BTreeMap<String, BTreeSet<Timestamp>>,
    /// By key, client's Secret and entry.
    given: BTreeMap<(String, String, String), Vec<Given>>,
    faults: Vec<String>,
}

impl Walk<'_> {
    fn fault(&mut self, version: &Version, what: &str) {
        let mut text = String::new();
        let _ = write!(
            text,
            "at {} ({}) {}/{}: {what}",
            version.number, version.seen, version.kind, version.name
        );
        self.faults.push(text);
    }

    fn step(&mut self, version: &Version) {
        let place = (version.kind, version.name.clone());
        let before = self.now.get(&place).cloned().unwrap_or_default();
        let after = version.content.clone().unwrap_or_default();
        if after.label.as_deref() == Some(CONTENT_KEYS) {
            if !self.record.sound.lock().unwrap().contains(&version.number) {
                let before = self.faults.len();
                self.whole(version, &after);
                if self.faults.len() == before {
                    self.record.sound.lock().unwrap().insert(version.number);
                }
            }
            for value in after.data.values() {
                self.stood.entry(value.clone()).or_insert(version.number);
            }
        }
        if [&before, &after]
            .iter()
            .any(|content| content.label.as_deref() == Some(CONTENT_KEYS))
        {
            self.turned(version, &before, &after);
            self.withdrawn(version, &before, &after);
        }
        if after.label.as_deref() == Some(CONTENT_COPIES) {
            self.handed_out(version, &before, &after);
        }
        if let Some(restarted) = after.restarted {
            self.restarts
                .entry(version.name.clone())
                .or_default()
                .insert(restarted);
        }
        self.now.insert(place, after);
    }

    /// Values and bookkeeping of a store say the same, nothing is half there, and the sealed copy
    /// opens to just these values.
    fn whole(&mut self, version: &Version, content: &Content) {
        let Some(ledger) = content.ledger() else {
            return self.fault(version, "has no ledger");
        };
        if !content.data.contains_key("host.master") {
            self.fault(version, "lacks host.master");
        }
        let mut accounted = BTreeSet::new();
        for (entry, record) in &ledger.entries {
            let previous = record.previous.iter();
            let previous = previous.map(|previous| {
                (
                    layout::previous(entry, previous.generation),
                    previous.digest,
                )
            });
            for (entry, digest) in previous.chain([(entry.clone(), record.digest)]) {
                match content.data.get(&entry) {
                    None => self.fault(version, &format!("lacks {entry}")),
                    Some(value) if KeyMaterial::new(value.clone()).digest() != digest => {
                        self.fault(version, &format!("{entry} is not what the ledger says"));
                    }
                    Some(_) => {}
                }
                accounted.insert(entry);
            }
        }
        for entry in content
            .data
            .keys()
            .filter(|entry| layout::is_app_key(entry) && !accounted.contains(*entry))
        {
            self.fault(version, &format!("{entry} is not in the ledger"));
        }
        let place = format!(
            "{}/{}/{}",
            version.kind, self.record.namespace, version.name
        );
        let sealed = content.annotations.get(SEALED_ANNOTATION);
        match sealed.map(|sealed| self.record.seal_key.open(&place, sealed)) {
            None => self.fault(version, "has no sealed copy"),
            Some(Err(error)) => self.fault(version, &error.to_string()),
            Some(Ok(values)) => {
                let values = values
                    .iter()
                    .map(|(entry, value)| (entry.as_str(), value.expose()));
                let ours = content
                    .data
                    .iter()
                    .filter(|(entry, _)| accounted.contains(*entry));
                if !values.eq(ours.map(|(entry, value)| (entry.as_str(), value.as_str()))) {
                    self.fault(version, "the sealed copy holds other values");
                }
            }
        }
    }

    /// A value changes when a turn was asked for, once for each, and by one generation.
    fn turned(&mut self, version: &Version, before: &Content, after: &Content) {
        let (before, after) = (
            before.ledger().unwrap_or_default(),
            after.ledger().unwrap_or_default(),
        );
        for (entry, one) in &before.entries {
            let Some(two) = after.entries.get(entry) else {
                continue;
            };
            let steps = i64::from(two.generation) - i64::from(one.generation);
            if steps < 0 || (steps > 1 && self.record.gaps() == 0) {
                self.fault(
                    version,
                    &format!(
                        "{entry} went from generation {} to {}",
                        one.generation, two.generation
                    ),
                );
            }
            if (steps == 0) != (one.digest == two.digest) {
                self.fault(
                    version,
                    &format!(
                        "{entry} has a new value of generation {} or none of a new one",
                        two.generation
                    ),
                );
            }
        }
        for key in self.kept.iter().filter(|key| key.of_store(version)) {
            let asked = key.turns.iter().filter(|at| **at <= version.number).count();
            if let Some(record) = after.entries.get(&key.entry)
                && usize::try_from(record.generation).unwrap() > asked + 1
            {
                let generation = record.generation;
                self.faults.push(format!(
                    "at {} {}: generation {generation} although {asked} turns were asked for",
                    version.number, key.name
                ));
            }
        }
    }

    /// No value goes that a client may still be using.
    fn withdrawn(&mut self, version: &Version, before: &Content, after: &Content) {
        let standing: BTreeSet<&String> = after.data.values().collect();
        for (entry, value) in before
            .data
            .iter()
            .filter(|(_, value)| !standing.contains(value))
        {
            let stood = self.stood.get(value).copied().unwrap_or_default();
            for key in self
                .kept
                .iter()
                .filter(|key| key.of_store(version) && !key.excused(stood, version.number))
            {
                for (secret, name) in &key.clients {
                    let place = (key.name.clone(), secret.clone(), name.clone());
                    let given = self
                        .given
                        .get(&place)
                        .into_iter()
                        .flatten()
                        .find(|given| given.value == *value);
                    let Some(given) = given else { continue };
                    let client = format!("entry {name} of {secret}");
                    let Some((at, seen)) = given.followed else {
                        self.faults.push(format!(
                            "at {} {entry} went although it stands in {client}",
                            version.number
                        ));
                        continue;
                    };
                    let mut since = at;
                    if let Some(deployment) = &key.restarts {
                        let restarts = self.restarts.get(deployment).into_iter().flatten();
                        match restarts.filter(|restarted| **restarted >= at).min() {
                            Some(restarted) => since = since.max(*restarted),
                            None => self.faults.push(format!(
                                "at {} {entry} went before {deployment} was restarted",
                                version.number
                            )),
                        }
                    }
                    let lived = version.seen.duration_since(since);
                    let lived_as_seen = version.seen.duration_since(seen);
                    if lived < key.overlap || lived_as_seen < key.overlap - LATENCY {
                        self.faults.push(format!(
                            "at {} {entry} (generation {} in {client}) went {lived:#} ({lived_as_seen:#} as seen) after its successor was there, not {:#}",
                            version.number, given.generation, key.overlap
                        ));
                    }
                }
            }
        }
    }

    /// What a client is given works, and every host has surely seen it.
    fn handed_out(&mut self, version: &Version, before: &Content, after: &Content) {
        let copies = after
            .annotations
            .get(COPIES_ANNOTATION)
            .and_then(|text| Copies::parse(text).ok());
        let Some(copies) = copies else {
            return self.fault(version, "has no list of copies");
        };
        for key in self.kept {
            for (secret, name) in key
                .clients
                .iter()
                .filter(|(secret, _)| *secret == version.name)
            {
                let (Some(value), Some(copy)) = (after.data.get(name), copies.entries.get(name))
                else {
                    continue;
                };
                if KeyMaterial::new(value.clone()).digest() != copy.digest {
                    self.fault(
                        version,
                        &format!("{name} is not what the list of copies says"),
                    );
                }
                if before.data.get(name) == Some(value) {
                    continue;
                }
                let store = self
                    .now
                    .get(&(key.store.0, key.store.1.clone()))
                    .cloned()
                    .unwrap_or_default();
                if !store.data.values().any(|standing| standing == value) {
                    self.fault(
                        version,
                        &format!(
                            "{name} holds a value that does not stand in the store of {}",
                            key.name
                        ),
                    );
                }
                let ledger = store.ledger().unwrap_or_default();
                if let Some(record) = ledger.entries.get(&key.entry)
                    && record.generation == copy.generation
                    && copy.at < record.shown
                {
                    self.fault(
                        version,
                        &format!(
                            "{name} was handed out at {}, before {}",
                            copy.at, record.shown
                        ),
                    );
                }
                let place = (key.name.clone(), secret.clone(), name.clone());
                let given = self.given.entry(place).or_default();
                let mut back = None;
                if let Some(last) = given.last_mut() {
                    last.followed = Some((copy.at, version.seen));
                    back = (last.generation >= copy.generation).then_some(last.generation);
                }
                given.push(Given {
                    value: value.clone(),
                    generation: copy.generation,
                    followed: None,
                });
                if let Some(last) = back {
                    self.fault(
                        version,
                        &format!(
                            "{name} went from generation {last} back to {}",
                            copy.generation
                        ),
                    );
                }
            }
        }
    }

    /// Nothing is restarted more often than something changed under it.
    fn count_restarts(&mut self) {
        let deployments: BTreeSet<&String> = self
            .kept
            .iter()
            .filter_map(|key| key.restarts.as_ref())
            .collect();
        for deployment in deployments {
            let keys: BTreeSet<&String> = self
                .kept
                .iter()
                .filter(|key| key.restarts.as_ref() == Some(deployment))
                .map(|key| &key.name)
                .collect();
            let changes: usize = self
                .given
                .iter()
                .filter(|((key, ..), _)| keys.contains(key))
                .map(|(_, given)| given.len() - 1)
                .sum();
            let restarts = self.restarts.get(deployment).map_or(0, BTreeSet::len);
            if restarts > changes {
                self.faults.push(format!(
                    "{deployment} was restarted {restarts} times for {changes} changes"
                ));
            }
        }
    }
}
