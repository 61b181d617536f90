//! Filling a target: what becomes of each of its entries, and the one write that brings it about.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use snafu::ResultExt;

use super::{Seen, failed, held, inputs, last_change, record, stalled, withdraw::withdraw};
use crate::{
    api::{
        CONTENT_SYNC, SYNC_ANNOTATION, VAULT_LABEL,
        condition::{Reason, Report, State},
        convert::{
            StoreRef, Workload,
            vault::{Content, DeclaredSecret, Target, Vault},
        },
    },
    clock,
    controllers::{
        Item,
        context::Context,
        error::{Class, Error, ReadSnafu, WriteSnafu},
        naming::Name,
        objects,
        secret_vault::{self, cache::TargetReport, entries, ring::OpenRing},
    },
    domain::{
        key::KeyMaterial,
        rotation::{DEFAULT_OVERLAP, add},
        vault::{
            attributes::Attributes,
            envelope::ValueDigest,
            history::{self, Entry, Fault, History},
            name::{NameHash, SecretName},
            part::{self, Part},
            sync::{ABSENT, Made, Placed, Record, content_hash, input_name, read_input},
            template::{Input, Outcome, Template, Version},
        },
    },
    k8s::object::{self, Observed},
};

/// How often a template is rendered again because it asked for more.
const ROUNDS: usize = 64;

/// How an entry is made, as one text.
fn recipe(content: &Content) -> String {
    match content {
        Content::Secret {
            name,
            previous,
            part,
        } => {
            format!("secret {} {previous} {part:?}", name.folded())
        }
        Content::Template(text) => format!("template {text}"),
    }
}

/// What becomes of one entry.
enum Fate {
    /// It stays as it is.
    Keep(Placed),
    /// It gets this value, made from these.
    Set(KeyMaterial, BTreeMap<String, Made>),
    /// There is none.
    Absent,
}

struct Syncer<'a> {
    context: &'a Context,
    name: Name,
    vault: &'a Arc<Vault>,
    target: &'a Target,
    open: &'a Arc<OpenRing>,
    now: Timestamp,
    /// Histories as this look has seen them first: a secret that turns meanwhile turns for all
    /// entries of the target at once, in the next look.
    histories: Mutex<BTreeMap<NameHash, Arc<History>>>,
}

/// What came of it, and when to look again though nothing changes.
type Look = (TargetReport, Option<Timestamp>);

/// Brings a target, whose Secret looks like this if it has that name, to what it should be.
///
/// # Errors
/// The operation that failed.
pub(super) async fn fill(
    context: &Context,
    vault: &Arc<Vault>,
    target: &Target,
    open: &Arc<OpenRing>,
    observed: Option<&Observed>,
) -> Result<Look, Error> {
    let syncer = Syncer {
        context,
        name: Name::from(&**vault),
        vault,
        target,
        open,
        now: clock::now(),
        histories: Mutex::default(),
    };
    syncer.bring_about(observed).await
}

impl Syncer<'_> {
    async fn bring_about(&self, observed: Option<&Observed>) -> Result<Look, Error> {
        let target = self.target;
        let plain = Name::new(&*self.vault.namespace, &*target.name).secret();
        let current = if target.immutable {
            held(&self.context.cache.lock(), self.vault, target)
        } else {
            None
        };
        let (object, observed) = match &current {
            Some((object, current)) => (object.clone(), Some(&**current)),
            None => (plain, observed.filter(|_| !target.immutable)),
        };
        if let Some(refusal) = self.refusal(&object, observed) {
            let before = held(&self.context.cache.lock(), self.vault, target);
            return Ok((failed(before, refusal), None));
        }
        let before = observed.and_then(record);
        let fates = match self.fates(&object, observed, before).await? {
            Ok(fates) => fates,
            Err((obstacle, next)) => {
                let before = held(&self.context.cache.lock(), self.vault, target);
                return Ok((failed(before, obstacle), next));
            }
        };
        let digest_of = |key: &str, value: &KeyMaterial| self.digest(key, value);
        // Opening takes time: what is promised from now on begins when the values are there.
        let now = clock::now();
        let mut after = Record {
            vault: self.vault.owner.name.clone(),
            target: target.name.clone(),
            merge: target.merge,
            labels: target.labels.keys().cloned().collect(),
            annotations: target.annotations.keys().cloned().collect(),
            entries: BTreeMap::new(),
        };
        let mut data: BTreeMap<String, Option<KeyMaterial>> = BTreeMap::new();
        for (key, fate) in &fates {
            match fate {
                Fate::Keep(placed) => _ = after.entries.insert(key.clone(), placed.clone()),
                Fate::Absent => {}
                Fate::Set(value, inputs) => {
                    let digest = digest_of(key, value);
                    let placed = before.and_then(|before| before.entries.get(key));
                    let live = observed.and_then(|observed| observed.values.get(key));
                    let same = live.is_some_and(|live| live == value);
                    after.entries.insert(
                        key.clone(),
                        Placed {
                            digest,
                            recipe: self.recipe_digest(&target.entries[key]),
                            inputs: inputs.clone(),
                            at: now,
                            changed: match placed {
                                Some(placed) if same => placed.changed,
                                Some(_) => Some(now),
                                None => None,
                            },
                        },
                    );
                    if !same {
                        data.insert(key.clone(), Some(value.clone()));
                    }
                }
            }
        }
        for key in before.into_iter().flat_map(|before| before.entries.keys()) {
            if !after.entries.contains_key(key)
                && observed.is_some_and(|observed| {
                    observed.values.get(key).is_some() || observed.opaque.contains(key)
                })
            {
                data.insert(key.clone(), None);
            }
        }
        if target.immutable {
            let conflict = self
                .write_immutable(observed, &object, after, &fates)
                .await?;
            if let Some(conflict) = conflict {
                let before = held(&self.context.cache.lock(), self.vault, target);
                return Ok((failed(before, conflict), None));
            }
        } else {
            self.write(&object, observed, after, data).await?;
        }
        let report = self.synced();
        let next = self.prune().await?;
        Ok((report, next))
    }

    fn synced(&self) -> TargetReport {
        let now = held(&self.context.cache.lock(), self.vault, self.target);
        TargetReport {
            secret: now.as_ref().map(|(object, _)| object.name.clone()),
            changed: now.and_then(|(_, observed)| last_change(record(&observed)?)),
            synced: true,
            obstacle: None,
        }
    }

    /// Why a Secret may not be written to.
    fn refusal(&self, object: &StoreRef, observed: Option<&Observed>) -> Option<Report> {
        let target = self.target;
        let refused = |what: &str| {
            Some(stalled(
                Reason::TargetRefused,
                format!("Secret/{} {what}", object.name),
            ))
        };
        let Some(observed) = observed else {
            return if target.merge {
                refused(
                    "does not exist, and creationPolicy is Merge; make it, or leave creationPolicy out",
                )
            } else {
                None
            };
        };
        if !observed.allowed {
            return refused("is of a type that values are not put into; name another target");
        }
        if observed
            .content
            .as_deref()
            .is_some_and(|content| content != CONTENT_SYNC)
        {
            return refused("holds function keys that Claviger keeps; name another target");
        }
        let ours = record(observed).is_some() && (observed.created || target.merge);
        if target.merge {
            if observed.immutable {
                return refused("is immutable; name another target");
            }
            return None;
        }
        if !ours {
            return Some(stalled(
                Reason::TargetConflict,
                format!(
                    "Secret/{} was not made by this vault and is left alone; remove it, name another target, or set creationPolicy: Merge to put entries into it",
                    object.name
                ),
            ));
        }
        let type_ = target.type_.filter(|type_| *type_ != "Opaque");
        if observed.type_.as_deref() != type_ && !target.immutable {
            return refused(&format!(
                "is of type {} and not {}, and Kubernetes changes no Secret's type; delete it to have it made anew, or name another target",
                observed.type_.as_deref().unwrap_or("Opaque"),
                type_.unwrap_or("Opaque")
            ));
        }
        if observed.immutable && !target.immutable {
            return refused("is immutable; delete it to have it made anew, or name another target");
        }
        None
    }

    fn digest(&self, key: &str, value: &KeyMaterial) -> ValueDigest {
        self.open.index.digest(
            &format!("sync/{}/{key}", self.target.name),
            value.expose().as_bytes(),
        )
    }

    fn recipe_digest(&self, content: &Content) -> ValueDigest {
        self.open.index.digest("recipe", recipe(content).as_bytes())
    }

    /// What becomes of each entry; or what is in the way, and until when.
    async fn fates(
        &self,
        object: &StoreRef,
        observed: Option<&Observed>,
        before: Option<&Record>,
    ) -> Result<Result<BTreeMap<String, Fate>, (Report, Option<Timestamp>)>, Error> {
        let mut fates = BTreeMap::new();
        let mut opened: BTreeMap<Input, Option<KeyMaterial>> = BTreeMap::new();
        for (key, content) in &self.target.entries {
            let placed = before.and_then(|before| before.entries.get(key));
            let live = observed.and_then(|observed| observed.values.get(key));
            let there =
                live.is_some() || observed.is_some_and(|observed| observed.opaque.contains(key));
            if there && placed.is_none() && !self.target.immutable {
                return Ok(Err((
                    stalled(
                        Reason::TargetConflict,
                        format!(
                            "entry {key} of Secret/{} was not made by this vault and is left alone; remove it there, or name another key",
                            object.name
                        ),
                    ),
                    None,
                )));
            }
            let recipe = self.recipe_digest(content);
            let digest = live.map(|live| self.digest(key, live));
            let kept = placed
                .filter(|placed| placed.is_current(recipe, digest, |input| self.number_of(input)));
            let fate = match kept {
                Some(placed) => Fate::Keep(placed.clone()),
                None => match self.make(content, &mut opened).await? {
                    Ok(fate) => fate,
                    Err((report, until)) => {
                        let message = format!(
                            "entry {key} of Secret/{} cannot be filled: {}",
                            object.name, report.message
                        );
                        return Ok(Err((Report { message, ..report }, until)));
                    }
                },
            };
            fates.insert(key.clone(), fate);
        }
        Ok(Ok(fates))
    }

    /// The history of a secret, the same for the whole look.
    fn history(&self, hash: NameHash) -> Arc<History> {
        let mut histories = self
            .histories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let observe = || {
            let mut state = self.context.vaults.lock();
            Arc::new(state.history(&self.name, self.open, hash))
        };
        Arc::clone(histories.entry(hash).or_insert_with(observe))
    }

    /// An input as it is now.
    fn number_of(&self, input: &str) -> Made {
        read_input(input)
            .and_then(|(secret, version)| self.number(&secret, version).ok())
            .unwrap_or(ABSENT)
    }

    /// The entry that an input is, or why there is none.
    fn number(&self, secret: &SecretName, version: Version) -> Result<Made, Obstacle> {
        let hash = self.open.vault.hash(secret);
        let history = self.history(hash);
        let made = |number, attributes: &Attributes| Made {
            number,
            id: Some(attributes.id),
        };
        match (history.state(), version) {
            (history::State::Live { current, .. }, Version::Current)
                if !self.is_ours_to_give(secret, current) =>
            {
                let managed = current.managed.as_ref();
                let origin = managed.and_then(|managed| managed.origin.clone());
                Err(Obstacle::Imported(origin.unwrap_or_default()))
            }
            (history::State::Live { sequence, current }, Version::Current) => {
                match current.not_before.filter(|at| *at > self.now) {
                    Some(at) => Err(Obstacle::NotBefore(at)),
                    None if !current.enabled => Err(Obstacle::Disabled),
                    None => Ok(made(sequence, current)),
                }
            }
            (history::State::Live { .. }, Version::Previous) => history
                .previous()
                .filter(|(_, attributes)| self.is_ours_to_give(secret, attributes))
                .map(|(sequence, attributes)| made(sequence, attributes))
                .ok_or(Obstacle::Absent),
            (history::State::Broken { sequence, fault }, _) => Err(Obstacle::Broken(
                secret_vault::fault(&self.name, hash, sequence, fault),
            )),
            (history::State::Deleted { .. } | history::State::Purging, _) => Err(Obstacle::Deleted),
            (history::State::Absent, _) => Err(Obstacle::Absent),
        }
    }

    /// Whether a value may be put into a Secret: one that was imported only while the manifest says
    /// from where, because its author had to show that they may read it there.
    fn is_ours_to_give(&self, secret: &SecretName, attributes: &Attributes) -> bool {
        let managed = attributes.managed.as_ref();
        let Some(origin) = managed.and_then(|managed| managed.origin.as_ref()) else {
            return true;
        };
        let mut declared = self.vault.secrets.iter();
        declared
            .find(|declared| declared.name == *secret)
            .and_then(DeclaredSecret::origin)
            .is_some_and(|imported| imported == *origin)
    }

    async fn make(
        &self,
        content: &Content,
        opened: &mut BTreeMap<Input, Option<KeyMaterial>>,
    ) -> Result<Result<Fate, (Report, Option<Timestamp>)>, Error> {
        match content {
            Content::Secret {
                name,
                previous,
                part,
            } => {
                let version = if *previous {
                    Version::Previous
                } else {
                    Version::Current
                };
                let number = match self.number(name, version) {
                    Ok(number) => number,
                    Err(Obstacle::Absent | Obstacle::Deleted) if *previous => {
                        return Ok(Ok(Fate::Absent));
                    }
                    Err(obstacle) => return Ok(Err(self.obstructed(name, obstacle))),
                };
                let input = Input {
                    secret: name.folded(),
                    version,
                };
                let value = match self.value(name, &input, opened).await? {
                    Ok(Some(value)) => value,
                    Ok(None) => return Ok(Ok(Fate::Absent)),
                    Err(report) => return Ok(Err(report)),
                };
                let inputs = BTreeMap::from([(input_name(name, version), number)]);
                if *part == Part::Value {
                    return Ok(Ok(Fate::Set(value, inputs)));
                }
                Ok(match part::part(&value, *part) {
                    Ok(value) => Ok(Fate::Set(value, inputs)),
                    Err(error) => Err((
                        stalled(Reason::TemplateFailed, format!("secret {name}: {error}")),
                        None,
                    )),
                })
            }
            Content::Template(text) => self.render(text, opened).await,
        }
    }

    async fn render(
        &self,
        text: &str,
        opened: &mut BTreeMap<Input, Option<KeyMaterial>>,
    ) -> Result<Result<Fate, (Report, Option<Timestamp>)>, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Ok(Err((
                stalled(Reason::TemplateFailed, format!("the template, {error}")),
                None,
            )))
        };
        let template = match Template::parse(text) {
            Ok(template) => template,
            Err(error) => return failed(&error),
        };
        for _ in 0..ROUNDS {
            let needs = match template.render(opened) {
                Ok(Outcome::Needs(needs)) => needs,
                Ok(Outcome::Text(value, _)) => {
                    // All that it may ask for, not only what it did: what it does not ask for now
                    // may be what decides the next time.
                    let mut inputs = BTreeMap::new();
                    for input in template.inputs() {
                        if let Ok(secret) = SecretName::parse(&input.secret) {
                            let made = self.number(&secret, input.version).unwrap_or(ABSENT);
                            inputs.insert(input_name(&secret, input.version), made);
                        }
                    }
                    return Ok(Ok(Fate::Set(value, inputs)));
                }
                Err(error) => {
                    // A value that is not there explains an undefined one better than a line does.
                    for (input, _) in opened.iter().filter(|(input, value)| {
                        value.is_none()
                            && input.version == Version::Current
                            && template.inputs().contains(*input)
                    }) {
                        if let Ok(secret) = SecretName::parse(&input.secret)
                            && let Err(obstacle) = self.number(&secret, Version::Current)
                        {
                            return Ok(Err(self.obstructed(&secret, obstacle)));
                        }
                    }
                    return failed(&error);
                }
            };
            for input in needs {
                let Ok(secret) = SecretName::parse(&input.secret) else {
                    opened.insert(input, None);
                    continue;
                };
                if let Err(report) = self.value(&secret, &input, opened).await? {
                    return Ok(Err(report));
                }
            }
        }
        failed(&"it asks for too many secrets")
    }

    /// The value of an input, opened once for all entries.
    async fn value(
        &self,
        secret: &SecretName,
        input: &Input,
        opened: &mut BTreeMap<Input, Option<KeyMaterial>>,
    ) -> Result<Result<Option<KeyMaterial>, (Report, Option<Timestamp>)>, Error> {
        if let Some(known) = opened.get(input) {
            return Ok(Ok(known.clone()));
        }
        let value = match self.number(secret, input.version) {
            Err(Obstacle::Absent | Obstacle::Deleted) => None,
            Err(obstacle) => return Ok(Err(self.obstructed(secret, obstacle))),
            Ok(Made {
                number: sequence, ..
            }) => {
                let hash = self.open.vault.hash(secret);
                let opened =
                    entries::open(self.context, &self.name, self.open, hash, sequence).await?;
                if opened.is_none() {
                    let fault = secret_vault::fault(&self.name, hash, sequence, Fault::Tampered);
                    return Ok(Err((stalled(Reason::Unreadable, fault), None)));
                }
                opened
            }
        };
        opened.insert(input.clone(), value.clone());
        Ok(Ok(value))
    }

    fn obstructed(&self, secret: &SecretName, obstacle: Obstacle) -> (Report, Option<Timestamp>) {
        let declared = self
            .vault
            .secrets
            .iter()
            .any(|declared| declared.name == *secret);
        match obstacle {
            Obstacle::Absent if declared => (
                Report {
                    state: State::Moving,
                    reason: Reason::Pending,
                    message: format!("secret {secret} has no value yet"),
                },
                None,
            ),
            Obstacle::Absent => (
                stalled(
                    Reason::SourceNotFound,
                    format!(
                        "there is no secret {secret} in this vault; declare it, or set it through the API"
                    ),
                ),
                None,
            ),
            Obstacle::Deleted => (
                stalled(
                    Reason::SourceNotFound,
                    format!(
                        "secret {secret} was deleted; declare it again to recover it, or take the entry off"
                    ),
                ),
                None,
            ),
            Obstacle::Disabled => (
                stalled(
                    Reason::SourceNotFound,
                    format!("secret {secret} is disabled"),
                ),
                None,
            ),
            Obstacle::NotBefore(at) => (
                Report {
                    state: State::Moving,
                    reason: Reason::Pending,
                    message: format!("secret {secret} is not to be used before {at}"),
                },
                Some(at),
            ),
            Obstacle::Imported(origin) => (
                stalled(
                    Reason::SourceNotFound,
                    format!(
                        "the value of secret {secret} was imported from Secret {origin}, and this vault does not import it from there any more; declare it again, or have the secret turned"
                    ),
                ),
                None,
            ),
            Obstacle::Broken(fault) => (stalled(Reason::Unreadable, fault), None),
        }
    }

    /// Brings a Secret to what it should be, in one write, if it is not that already.
    async fn write(
        &self,
        object: &StoreRef,
        observed: Option<&Observed>,
        after: Record,
        data: BTreeMap<String, Option<KeyMaterial>>,
    ) -> Result<(), Error> {
        let Some(write) = self.build(observed, &after, data) else {
            return Ok(());
        };
        let written = match observed {
            None => self.context.objects.create(object, &write).await,
            Some(observed) => {
                self.context
                    .objects
                    .patch(object, &observed.version, &write)
                    .await
            }
        }
        .with_context(|_| WriteSnafu {
            object: object.clone(),
        })?;
        self.context.cache.lock().observe(object.clone(), written);
        self.follow_up(object);
        Ok(())
    }

    fn follow_up(&self, object: &StoreRef) {
        objects::call_followers(self.context, object);
        self.context.queue.soon(Item::Vault(self.name.clone()));
        for workload in &self.target.restart {
            self.context.queue.soon(Item::Workload(Workload {
                namespace: self.vault.namespace.clone(),
                workload: workload.clone(),
            }));
        }
    }

    fn build(
        &self,
        observed: Option<&Observed>,
        after: &Record,
        data: BTreeMap<String, Option<KeyMaterial>>,
    ) -> Option<object::Write> {
        let target = self.target;
        let synced = observed.and_then(|observed| observed.sync.as_deref());
        let before = synced.and_then(|synced| synced.record.as_ref());
        let mut labels: BTreeMap<String, Option<String>> = BTreeMap::new();
        for name in before.into_iter().flat_map(|before| &before.labels) {
            if !target.labels.contains_key(name) {
                labels.insert(name.clone(), None);
            }
        }
        let vault_label = (VAULT_LABEL.to_owned(), self.vault.owner.name.clone());
        for (name, value) in target
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .chain([vault_label])
        {
            if synced.is_none_or(|synced| synced.labels.get(&name) != Some(&value)) {
                labels.insert(name, Some(value));
            }
        }
        let mut annotations = BTreeMap::new();
        for name in before.into_iter().flat_map(|before| &before.annotations) {
            if !target.annotations.contains_key(name) {
                annotations.insert(name.clone().into(), None);
            }
        }
        for (name, value) in &target.annotations {
            if synced.is_none_or(|synced| synced.annotations.get(name) != Some(value)) {
                annotations.insert(name.clone().into(), Some(value.clone()));
            }
        }
        let labelled =
            observed.is_some_and(|observed| observed.content.as_deref() == Some(CONTENT_SYNC));
        let changed = before != Some(after)
            || !labelled
            || !data.is_empty()
            || !labels.is_empty()
            || !annotations.is_empty();
        if !changed {
            return None;
        }
        annotations.insert(SYNC_ANNOTATION.into(), Some(after.render()));
        Some(object::Write {
            content: Some(CONTENT_SYNC),
            annotations,
            labels,
            data,
            type_: target.type_,
            immutable: target.immutable,
        })
    }

    /// Every content is a Secret of its own; those before are removed when nobody needs them.
    async fn write_immutable(
        &self,
        observed: Option<&Observed>,
        current: &StoreRef,
        after: Record,
        fates: &BTreeMap<String, Fate>,
    ) -> Result<Option<Report>, Error> {
        let before = observed.and_then(record);
        let unchanged = before.is_some_and(|before| {
            before.entries.len() == after.entries.len()
                && fates
                    .values()
                    .all(|fate| matches!(fate, Fate::Keep(_) | Fate::Absent))
        });
        if !unchanged {
            let mut data = BTreeMap::new();
            for (key, fate) in fates {
                match fate {
                    Fate::Absent => {}
                    Fate::Set(value, _) => _ = data.insert(key.clone(), Some(value.clone())),
                    Fate::Keep(_) => {
                        let value = observed.and_then(|observed| observed.values.get(key));
                        data.insert(key.clone(), value.cloned());
                    }
                }
            }
            let mut content = String::new();
            for (key, value) in &data {
                let digest = value
                    .as_ref()
                    .map(|value| self.digest(key, value).to_string());
                let _ = writeln!(content, "{key}={}", digest.unwrap_or_default());
            }
            let hash = content_hash(self.open.index.digest("content", content.as_bytes()));
            let object = StoreRef {
                name: format!("{}-{hash}", self.target.name),
                ..current.clone()
            };
            let seen = self.context.cache.lock().object(&object);
            if let Some(seen) = &seen {
                if !self.is_ours(seen) {
                    return Ok(Some(not_ours(&object)));
                }
                let same = seen.opaque.is_empty()
                    && seen.values.names().count() == data.len()
                    && data
                        .iter()
                        .all(|(key, value)| seen.values.get(key) == value.as_ref());
                if same {
                    // The same content as once before: its Secret counts again.
                    self.write(&object, Some(seen), after, BTreeMap::new())
                        .await?;
                    return Ok(None);
                }
                // Somebody has made it anew with another content.
                withdraw(self.context, &object, seen).await?;
            }
            let written = self.write(&object, None, after, data).await;
            let taken = matches!(&written, Err(error) if error.class() == Class::Conflict);
            if taken && self.is_taken(&object).await? {
                return Ok(Some(not_ours(&object)));
            }
            written?;
        }
        Ok(None)
    }

    /// Whether somebody else has a Secret of this name.
    async fn is_taken(&self, object: &StoreRef) -> Result<bool, Error> {
        let read = self.context.objects.get(object).await;
        let read = read.with_context(|_| ReadSnafu {
            object: object.clone(),
        })?;
        Ok(read.is_some_and(|observed| !self.is_ours(&observed)))
    }

    /// Whether a Secret was made for this target.
    fn is_ours(&self, observed: &Observed) -> bool {
        observed.created
            && record(observed).is_some_and(|record| {
                record.vault == self.vault.owner.name && record.target == self.target.name
            })
    }

    /// Removes Secrets of earlier contents: each the longest overlap after the next was written, or as
    /// soon as a value in it is not handed out any more.
    async fn prune(&self) -> Result<Option<Timestamp>, Error> {
        let overlap = self.longest_overlap();
        let mut all: Vec<(Option<Timestamp>, Seen)> = {
            let state = self.context.cache.lock();
            let Some((current, _)) = held(&state, self.vault, self.target) else {
                return Ok(None);
            };
            let mut all: Vec<(Option<Timestamp>, Seen)> = state
                .secrets_like(&self.vault.namespace, &self.target.name)
                .filter(|(object, observed)| **object != current && self.is_ours(observed))
                .map(|(object, observed)| {
                    let at = record(observed).and_then(last_change);
                    (at, (object.clone(), Arc::clone(observed)))
                })
                .collect();
            all.sort_by_key(|(at, _)| *at);
            all.extend(state.object(&current).map(|observed| {
                let at = record(&observed).and_then(last_change);
                (at, (current, observed))
            }));
            all
        };
        let Some((mut replaced, _)) = all.pop() else {
            return Ok(None);
        };
        let mut next = None;
        for (at, (object, observed)) in all.into_iter().rev() {
            let until = replaced.map_or(self.now, |replaced| add(replaced, overlap));
            replaced = at;
            if until <= self.now || self.holds_what_ended(&observed) {
                withdraw(self.context, &object, &observed).await?;
            } else {
                next = secret_vault::earliest(next, Some(until));
            }
        }
        Ok(next)
    }

    /// Whether a Secret of ours holds a value that is not handed out any more. What cannot be trusted
    /// says nothing.
    fn holds_what_ended(&self, observed: &Observed) -> bool {
        let record = record(observed);
        let mut inputs = record
            .into_iter()
            .flat_map(|record| record.entries.values())
            .flat_map(|placed| &placed.inputs);
        inputs.any(|(input, made)| {
            let (Some(id), Some((secret, _))) = (made.id, read_input(input)) else {
                return false;
            };
            let history = self.history(self.open.vault.hash(&secret));
            match history.0.get(&made.number) {
                None => true,
                Some(Entry::Authentic(attributes)) => attributes.id != id || !attributes.enabled,
                Some(Entry::Gone(_) | Entry::Unreadable(_)) => false,
            }
        })
    }

    fn longest_overlap(&self) -> SignedDuration {
        let used: BTreeSet<String> = self
            .target
            .entries
            .values()
            .flat_map(inputs)
            .map(|input| input.secret)
            .collect();
        self.vault
            .secrets
            .iter()
            .filter(|secret| used.contains(&secret.name.folded()))
            .map(|secret| secret.policy.overlap)
            .max()
            .unwrap_or(DEFAULT_OVERLAP)
    }
}

fn not_ours(object: &StoreRef) -> Report {
    stalled(
        Reason::TargetConflict,
        format!(
            "Secret/{} was not made by this vault and is left alone; remove it",
            object.name
        ),
    )
}

/// Why there is no value to put in.
enum Obstacle {
    Absent,
    Broken(String),
    Deleted,
    Disabled,
    Imported(String),
    NotBefore(Timestamp),
}
