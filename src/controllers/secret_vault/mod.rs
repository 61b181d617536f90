//! The `SecretVault` controller.
//!
//! Two kinds of item are looked at:
//! - a vault ([`look`]): its key ring, its declared secrets, deletions, and a batch of the re-wrap;
//! - a [`target`]: one synced Secret.
//!
//! Where to read on: [`ring`] (the key ring), [`entries`] (writing and opening), [`rewrap`],
//! [`departure`] (what a deletion waits for and takes along), [`report`] (the status).

pub mod cache;
pub mod departure;
pub mod entries;
pub mod report;
pub mod rewrap;
pub mod ring;
pub mod roots;
pub mod target;
pub mod watch;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::runtime::events::EventType;
use snafu::ResultExt;

use crate::{
    api::{
        condition::{Reason, Report, STALLED, State, conditions},
        convert::vault::{DeclaredSecret, Making, Vault},
        v1alpha1::SecretVaultStatus,
    },
    clock,
    controllers::{
        Item,
        context::Context,
        error::{Class, Error, ReadRingSnafu, VaultStatusSnafu},
        function_key::report::SourceFault,
        naming::Name,
        secret_vault::{
            entries::{Performed, Writer},
            report::Facts,
            ring::{Obtained, OpenRing, Refusal},
        },
        source,
    },
    domain::{
        key::KeyMaterial,
        ledger::Owner,
        vault::{
            envelope::VALUE_LIMIT,
            history::Fault,
            name::{NameHash, VersionId, object_name},
            plan::{self, Action, Declared, Reached, Setting, Source, Standing},
        },
    },
    k8s,
};

/// How many secrets of a vault are written at once.
const AT_ONCE: usize = 16;

/// Everything that the caches know of.
pub fn everything(context: &Context) -> Vec<Item> {
    let vaults = context.vaults.lock();
    let mut items: HashSet<Item> = HashSet::new();
    for vault in vaults.vaults() {
        items.insert(Item::Vault(Name::from(&**vault)));
        for target in &vault.sync {
            items.insert(Item::Target(Name::new(&*vault.namespace, &*target.name)));
        }
        for workload in vault.workloads() {
            items.insert(Item::Workload(workload));
        }
    }
    items.into_iter().collect()
}

/// Looks at a vault; answers when to look again though nothing changes.
///
/// # Errors
/// The operation that failed; everything done before it stands.
pub async fn look(context: &Context, name: &Name) -> Result<Option<Timestamp>, Error> {
    let Some(vault) = context.vaults.lock().vault(name) else {
        return Ok(None);
    };
    match bring_about(context, name, &vault).await {
        Ok(next) => Ok(next),
        Err(error) => {
            let reason = match error {
                Error::RootKey { .. } => Reason::RootKeyUnavailable,
                _ => Reason::Forbidden,
            };
            let passing =
                error.class() == Class::Transient && matches!(error, Error::RootKey { .. });
            let report = error.report(reason).or_else(|| {
                passing.then(|| Report {
                    state: State::Moving,
                    reason,
                    message: error.sentence(),
                })
            });
            if let Some(report) = report {
                write_status(
                    context,
                    &vault,
                    report::failed(&vault, &report, clock::now()),
                )
                .await?;
            }
            Err(error)
        }
    }
}

async fn bring_about(
    context: &Context,
    name: &Name,
    vault: &Arc<Vault>,
) -> Result<Option<Timestamp>, Error> {
    let now = clock::now();
    // 1 A vault that goes.
    let mut blocked = None;
    if vault.deleting {
        match departure::depart(context, name, vault).await? {
            departure::Outcome::Gone => return Ok(None),
            departure::Outcome::Waiting(why) => blocked = Some(why),
        }
    } else if !vault.is_held() {
        departure::hold(context, vault).await?;
    }
    // 2 Its key ring.
    let refused = |report: Report| async move {
        let status = report::failed(vault, &report, clock::now());
        write_status(context, vault, status).await?;
        Ok(None)
    };
    let roots = match context.roots.obtain() {
        Some(Ok(roots)) => roots,
        Some(Err(why)) => return refused(report::stalled(Reason::RootKeyMissing, why)).await,
        // Whoever has looked for them calls for every vault.
        None => return Ok(None),
    };
    let obtained = match ring::obtain(context, name, vault, &roots, now).await? {
        Ok(obtained) => obtained,
        Err(Refusal::NoRootKey(why)) => {
            context.roots.miss();
            return refused(report::stalled(Reason::RootKeyMissing, why)).await;
        }
        Err(Refusal::Unusable(why)) => {
            return refused(report::stalled(Reason::Unreadable, why)).await;
        }
    };
    let Obtained {
        open,
        turning,
        failure,
    } = obtained;
    announce_turning(context, vault, &open, &turning);
    // 3 Its secrets.
    let sources = read_sources(context, vault).await?;
    let mut facts = plan_secrets(context, name, vault, &open, &sources, now);
    facts.faults = sources
        .iter()
        .filter_map(|(secret, source)| Some((secret.clone(), source.as_ref().err()?.to_string())))
        .collect();
    let busy = if vault.suspended {
        Ok(false)
    } else {
        perform(context, name, vault, &open, &sources, &mut facts, now).await
    };
    call_targets(context, vault);
    if busy? {
        // What follows from what was just written is planned, and all of it reported, when it stands:
        // a status of hundreds of secrets costs the apiserver what a hundred entries do.
        context.queue.soon(Item::Vault(name.clone()));
        return Ok(None);
    }
    // 4 The re-wrap, and what it makes superfluous.
    let mut next = facts.next;
    facts.rewrap = rewrap::progress(context, name, &open);
    let mut open = open;
    if !vault.suspended {
        let in_use = context.vaults.lock().in_use(name);
        let grace = context.settings.ring_grace;
        let (idle, later) =
            crate::domain::vault::ring::idle(&open.document, &in_use, grace, clock::now());
        if !idle.is_empty() && !open.is_behind(&in_use) {
            let idle = still_idle(context, name, idle).await?;
            if !idle.is_empty() {
                open = ring::destroy(context, name, &open, &idle, &roots).await?;
                announce_destruction(context, vault, &idle);
            }
        }
        next = earliest(next, later);
        next = earliest(
            next,
            crate::domain::vault::ring::due(&open.document, &vault.ring),
        );
        let (rotate_at, _) = vault.ring.triggers.ahead(&open.document.marks);
        next = earliest(next, rotate_at);
        if facts.rewrap.left > 0 {
            context.rewraps.soon(name.clone());
        }
    }
    // 5 Report.
    facts.blocked = blocked;
    let status = {
        let workloads = context.cache.lock();
        let vaults = context.vaults.lock();
        report::status(vault, name, &open, &facts, &vaults, &workloads, now)
    };
    if let Some(error) = failure {
        return Err(error);
    }
    write_status(context, vault, status).await?;
    Ok(next.filter(|next| *next > now))
}

/// The earlier of two times, of those that there are.
pub fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// Of versions that seem to be idle, those under which the apiserver has nothing now. An entry that
/// does not say what it is under may be under any of them.
async fn still_idle(context: &Context, name: &Name, idle: Vec<u32>) -> Result<Vec<u32>, Error> {
    let entries = context
        .vault_objects
        .list_entries(&name.namespace, &name.name)
        .await
        .context(ReadRingSnafu { vault: &name.name })?;
    let mut in_use = HashSet::new();
    for (object, metadata) in entries {
        match metadata
            .envelope
            .parse::<crate::domain::vault::envelope::Envelope>()
        {
            Ok(envelope) => _ = in_use.insert(envelope.ring),
            Err(_) => return Ok(Vec::new()),
        }
        context.vaults.lock().observe_entry(name, &object, metadata);
    }
    Ok(idle
        .into_iter()
        .filter(|version| !in_use.contains(version))
        .collect())
}

/// What the sources hold, by folded name of the secret that follows them.
type Sources = BTreeMap<String, Result<KeyMaterial, SourceFault>>;

async fn read_sources(context: &Context, vault: &Vault) -> Result<Sources, Error> {
    let mut sources = Sources::new();
    for secret in &vault.secrets {
        let Making::From(reference) = &secret.making else {
            continue;
        };
        let named = Name::new(&*vault.namespace, &*reference.name);
        let observed = source::read(context, &named).await?;
        let value = match observed.as_deref() {
            None => Err(SourceFault::NoSecret),
            Some(observed) if !observed.allowed => Err(SourceFault::Type),
            Some(observed) if observed.opaque.contains(&reference.key) => Err(SourceFault::NotText),
            Some(observed) => match observed.values.get(&reference.key) {
                None => Err(SourceFault::NoEntry),
                Some(value) if value.expose().len() > VALUE_LIMIT => Err(SourceFault::TooLong),
                Some(value) => Ok(value.clone()),
            },
        };
        sources.insert(secret.name.folded(), value);
    }
    Ok(sources)
}

/// Under which name the digest of a source's value is recorded.
fn source_context(secret: &str) -> String {
    format!("source/{secret}")
}

fn plan_secrets(
    context: &Context,
    name: &Name,
    vault: &Vault,
    open: &OpenRing,
    sources: &Sources,
    now: Timestamp,
) -> Facts {
    let mut facts = Facts::default();
    let mut hashes: BTreeMap<NameHash, Option<&DeclaredSecret>> = context
        .vaults
        .lock()
        .hashes(name)
        .into_iter()
        .map(|hash| (hash, None))
        .collect();
    for secret in &vault.secrets {
        hashes.insert(open.vault.hash(&secret.name), Some(secret));
    }
    let users = target::Users::of(vault);
    for (hash, secret) in hashes {
        let history = context.vaults.lock().history(name, open, hash);
        facts.count(name, hash, &history);
        if open.document.vault_shredded {
            continue;
        }
        if let Some(secret) = secret {
            match secret.shape.expires {
                Some(at) if at <= now => facts.expired.push((secret.name.clone(), at)),
                at => facts.next = earliest(facts.next, at),
            }
        }
        let declared = secret.map(|secret| declared(secret, open, sources));
        let asked = history
            .name()
            .and_then(|secret| vault.asked.get(&secret.folded()).copied())
            .unwrap_or_default();
        let setting = Setting {
            now,
            retention: vault.retention,
            purge_protection: open.document.is_protected(&vault.ring),
            fresh: VersionId(ring::random()),
            vault: open.vault.id,
        };
        let plan = plan::plan(&history, declared.as_ref(), asked, &setting, |sequence| {
            secret.map_or(Reached::NotYet, |secret| {
                users.reached(context, vault, &secret.name, sequence, &history)
            })
        });
        if let (Some(secret), Standing::Live(live)) = (secret, &plan.standing)
            && users.reached(context, vault, &secret.name, live.sequence, &history)
                == Reached::NotYet
        {
            facts.outstanding.get_or_insert_with(|| secret.name.clone());
        }
        facts.next = earliest(facts.next, plan.next);
        facts.take(hash, secret, plan);
    }
    facts
}

fn declared(secret: &DeclaredSecret, open: &OpenRing, sources: &Sources) -> Declared {
    let folded = secret.name.folded();
    let source = match &secret.making {
        Making::From(_) => Source::Followed(sources.get(&folded).and_then(|value| {
            let value = value.as_ref().ok()?;
            Some(
                open.index
                    .digest(&source_context(&folded), value.expose().as_bytes()),
            )
        })),
        Making::Random(_) | Making::Ssh(_) | Making::Tls { .. } => Source::Minted,
    };
    Declared {
        name: secret.name.clone(),
        source,
        origin: secret.origin(),
        policy: secret.policy,
        triggers: secret.triggers.clone(),
        keep: secret.keep,
        shape: secret.shape.clone(),
    }
}

/// What came of the actions of one secret.
type Outcome = Result<Performed, Error>;

/// Does what was planned; answers whether anything was.
async fn perform(
    context: &Context,
    name: &Name,
    vault: &Arc<Vault>,
    open: &Arc<OpenRing>,
    sources: &Sources,
    facts: &mut Facts,
    now: Timestamp,
) -> Result<bool, Error> {
    let plans = std::mem::take(&mut facts.plans);
    if plans.is_empty() {
        return Ok(false);
    }
    let declared: BTreeMap<NameHash, &DeclaredSecret> = vault
        .secrets
        .iter()
        .map(|secret| (open.vault.hash(&secret.name), secret))
        .collect();
    let writer = Writer {
        context,
        name,
        open: Arc::clone(open),
        now,
    };
    let outcomes: Vec<(NameHash, Vec<Told>, Outcome)> = stream::iter(plans)
        .map(|(hash, actions)| {
            let (writer, secret) = (&writer, declared.get(&hash).copied());
            let supplied = secret
                .and_then(|secret| sources.get(&secret.name.folded()))
                .and_then(|value| value.as_ref().ok());
            async move {
                let mut told = Vec::new();
                for action in &actions {
                    match writer.perform(hash, action, secret, supplied).await {
                        Ok(Performed::Done) => told.extend(tell(context, secret, action)),
                        other => return (hash, told, other),
                    }
                }
                (hash, told, Ok(Performed::Done))
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let mut failure = None;
    let mut anything = false;
    let mut all_told = Vec::new();
    for (hash, told, outcome) in outcomes {
        anything |= !told.is_empty();
        all_told.extend(told);
        match outcome {
            Ok(Performed::Done | Performed::Overtaken) => anything = true,
            Ok(Performed::Unmakeable(why)) => {
                let secret = declared.get(&hash).map(|secret| secret.name.folded());
                facts.unmakeable.extend(secret.map(|secret| (secret, why)));
            }
            Err(error) => failure = Some(failure.unwrap_or(error)),
        }
    }
    announce(context, vault, all_told);
    failure.map_or(Ok(anything), Err)
}

fn call_targets(context: &Context, vault: &Vault) {
    for target in &vault.sync {
        context
            .queue
            .soon(Item::Target(Name::new(&*vault.namespace, &*target.name)));
    }
}

/// Everything that a vault bears on.
pub fn call_for(context: &Context, vault: &Vault) {
    context.queue.soon(Item::Vault(Name::from(vault)));
    call_targets(context, vault);
    for workload in vault.workloads() {
        context.queue.soon(Item::Workload(workload));
    }
}

async fn write_status(
    context: &Context,
    vault: &Vault,
    status: SecretVaultStatus,
) -> Result<(), Error> {
    let known = context.vaults.lock().vault(&Name::from(vault));
    let before = known.map_or_else(|| vault.status.clone(), |known| known.status.clone());
    if before == status {
        return Ok(());
    }
    let _permit = context
        .status_writes
        .acquire()
        .await
        .expect("the semaphore is never closed");
    let written =
        k8s::status::replace_vault(&context.client, &vault.namespace, &vault.owner, &status).await;
    match written {
        // It is gone, or another has its name.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 422) => return Ok(()),
        written => written.context(VaultStatusSnafu {
            name: &vault.owner.name,
        })?,
    }
    announce_stall(context, vault, &before, &status);
    context.vaults.lock().reported(vault, status);
    Ok(())
}

/// Says in the status of a vault that it cannot be read.
///
/// # Errors
/// The write that failed.
pub async fn tell_unreadable(context: &Context, name: &Name) -> Result<Option<Timestamp>, Error> {
    let Some(unreadable) = context.vaults.lock().unreadable(name) else {
        return Ok(None);
    };
    let report = Report {
        state: State::Stalled,
        reason: Reason::Invalid,
        message: format!(
            "the resource cannot be read: {}. What it declared last stands; correct it, or update the definition",
            unreadable.fault
        ),
    };
    let status = SecretVaultStatus {
        observed_generation: unreadable.generation,
        conditions: conditions(&report, &[], unreadable.generation, clock::now()),
        ..SecretVaultStatus::default()
    };
    let owner = Owner {
        name: name.name.clone(),
        uid: unreadable.uid,
    };
    match k8s::status::replace_vault(&context.client, &name.namespace, &owner, &status).await {
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 422) => Ok(None),
        answer => answer
            .map(|()| None)
            .context(VaultStatusSnafu { name: &owner.name }),
    }
}

fn publish(context: &Context, vault: &Vault, type_: EventType, reason: &str, note: String) {
    context
        .events
        .publish(report::reference(vault), type_, reason, note);
}

/// What an event is to say of one secret.
struct Told {
    reason: &'static str,
    secret: String,
    note: String,
}

/// One event for all secrets to which the same happened at once: an event each would be more than a
/// person reads, and crowd out those of others.
fn announce(context: &Context, vault: &Vault, told: Vec<Told>) {
    let mut by_reason: BTreeMap<&'static str, Vec<Told>> = BTreeMap::new();
    for told in told {
        by_reason.entry(told.reason).or_default().push(told);
    }
    for (reason, told) in by_reason {
        let mut told = told.into_iter();
        let Some(Told { mut note, .. }) = told.next() else {
            continue;
        };
        let others: Vec<String> = told.map(|told| told.secret).collect();
        if !others.is_empty() {
            note = format!(
                "{note}; the same holds for {} more: {}",
                others.len(),
                others.join(", ")
            );
        }
        publish(context, vault, EventType::Normal, reason, note);
    }
}

/// Counts what was done to a secret; answers what a person should know of it.
fn tell(context: &Context, secret: Option<&DeclaredSecret>, action: &Action) -> Option<Told> {
    use crate::domain::vault::attributes::Kind;
    let (reason, note) = match action {
        Action::Create { attributes, .. } => {
            let managed = attributes.managed.as_ref();
            let Some(managed) = managed.filter(|managed| managed.generation > 1) else {
                context.metrics.vault_turned("minted");
                return None;
            };
            let name = &attributes.name;
            if managed.revoked {
                context.metrics.vault_turned("revoked");
                (
                    "Revoked",
                    format!("secret {name} was revoked; nothing before it is handed out any more"),
                )
            } else {
                context.metrics.vault_turned("rotated");
                let overlap = secret
                    .map(|secret| crate::api::convert::render_duration(secret.policy.overlap))
                    .unwrap_or_default();
                (
                    "Rotated",
                    format!(
                        "secret {name} has a new version; the one before is handed out for another {overlap} once every target has the new one"
                    ),
                )
            }
        }
        Action::Mark { attributes, .. } => {
            let name = &attributes.name;
            match attributes.kind {
                Kind::Deleted => {
                    context.metrics.vault_turned("deleted");
                    let until = attributes.purge_at.map_or_else(String::new, |at| {
                        format!(" until {}", crate::api::condition::seconds(at))
                    });
                    (
                        "Deleted",
                        format!("secret {name} was deleted; it can be recovered{until}"),
                    )
                }
                Kind::Purging => {
                    context.metrics.vault_turned("purged");
                    (
                        "Purged",
                        format!("secret {name} is purged, with all its versions"),
                    )
                }
                Kind::Recovered | Kind::Value => {
                    context.metrics.vault_turned("recovered");
                    ("Recovered", format!("secret {name} was recovered"))
                }
            }
        }
        Action::Amend { .. } | Action::Remove { .. } => return None,
    };
    let (Action::Create { attributes, .. }
    | Action::Mark { attributes, .. }
    | Action::Amend { attributes, .. }) = action
    else {
        return None;
    };
    Some(Told {
        reason,
        secret: attributes.name.to_string(),
        note,
    })
}

fn announce_turning(
    context: &Context,
    vault: &Vault,
    open: &OpenRing,
    turning: &crate::domain::vault::ring::Turning,
) {
    if turning.shred_vault {
        publish(
            context,
            vault,
            EventType::Warning,
            "Shredded",
            "the whole key ring was destroyed: nothing in this vault can be read any more"
                .to_owned(),
        );
    }
    if !turning.shred.is_empty() {
        publish(
            context,
            vault,
            EventType::Warning,
            "Shredded",
            format!(
                "key ring version(s) {} destroyed: nothing under them can be read any more",
                listed(turning.shred.iter().copied())
            ),
        );
    }
    if turning.add
        && let Some(newest) = open.document.newest()
    {
        context.metrics.vault_turned("ring_turned");
        publish(
            context,
            vault,
            EventType::Normal,
            "RingTurned",
            format!(
                "key ring version {} wraps from now on; what is under earlier ones is re-wrapped",
                newest.version
            ),
        );
    }
}

fn announce_destruction(context: &Context, vault: &Vault, versions: &[u32]) {
    publish(
        context,
        vault,
        EventType::Normal,
        "RingVersionDestroyed",
        format!(
            "key ring version(s) {} destroyed: nothing was under them any more",
            listed(versions.iter().copied())
        ),
    );
}

fn listed(versions: impl Iterator<Item = u32>) -> String {
    versions
        .map(|version| version.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// An event when the reason for which a vault is stalled is a new one.
fn announce_stall(
    context: &Context,
    vault: &Vault,
    before: &SecretVaultStatus,
    after: &SecretVaultStatus,
) {
    let stalled = |status: &SecretVaultStatus| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == STALLED && condition.status == "True")
            .map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    if let Some((reason, message)) = stalled(after)
        && stalled(before).is_none_or(|(other, _)| other != reason)
    {
        publish(context, vault, EventType::Warning, &reason, message);
    }
}

/// Says what is wrong with an entry, naming its object.
pub fn fault(name: &Name, hash: NameHash, sequence: u32, fault: Fault) -> String {
    format!("Secret/{} {fault}", object_name(&name.name, hash, sequence))
}
