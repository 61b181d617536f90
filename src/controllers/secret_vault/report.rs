//! What the status of a vault says: a pure function of what a look found.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};

use super::{cache, rewrap::Progress, ring::OpenRing};
use crate::{
    api::{
        condition::{self, Reason, Report, State, conditions},
        convert::{
            render_duration,
            vault::{DeclaredSecret, Making, Vault},
        },
        v1alpha1::{
            DeclaredState, DeclaredStatus, KeyRingStatus, Restart, RingVersionStatus, SecretCounts,
            SecretVaultStatus, SyncState, SyncStatus, VaultEffective,
        },
    },
    controllers::{Item, function_key, naming::Name},
    domain::vault::{
        history::{self, Entry, Fault, History},
        name::{NameHash, SecretName},
        plan::{Action, Plan, Standing},
    },
};

/// What a look at a vault found.
#[derive(Debug, Default)]
pub struct Facts {
    counts: SecretCounts,
    /// What is wrong with the first entry that cannot be read.
    first_fault: Option<String>,
    standings: BTreeMap<String, Standing>,
    /// What is to be done, by secret.
    pub plans: Vec<(NameHash, Vec<Action>)>,
    /// Secrets whose source cannot be used, and why.
    pub faults: BTreeMap<String, String>,
    /// Secrets whose value cannot be made, and why.
    pub unmakeable: BTreeMap<String, String>,
    /// How far the re-wrap is.
    pub rewrap: Progress,
    /// The first declared secret whose current value somebody does not have yet.
    pub outstanding: Option<SecretName>,
    /// Declared secrets that have expired, and when.
    pub expired: Vec<(SecretName, Timestamp)>,
    /// What a deletion waits for.
    pub blocked: Option<String>,
    /// When to look again.
    pub next: Option<Timestamp>,
}

impl Facts {
    /// Counts what is there of a secret.
    pub fn count(&mut self, name: &Name, hash: NameHash, history: &History) {
        match history.state() {
            history::State::Live { .. } => self.counts.live += 1,
            history::State::Deleted { .. } => self.counts.deleted += 1,
            history::State::Broken { .. } | history::State::Absent | history::State::Purging => {}
        }
        for (&sequence, entry) in &history.0 {
            match entry {
                Entry::Authentic(attributes) => {
                    let value = attributes.kind == crate::domain::vault::attributes::Kind::Value;
                    self.counts.versions += i64::from(value);
                }
                // What was shredded on purpose is no fault.
                Entry::Unreadable(Fault::Shredded { .. }) => self.counts.unreadable += 1,
                Entry::Gone(_) | Entry::Unreadable(_) => {
                    self.counts.unreadable += 1;
                    let fault = entry.fault().unwrap_or(Fault::Tampered);
                    self.first_fault
                        .get_or_insert_with(|| super::fault(name, hash, sequence, fault));
                }
            }
        }
    }

    /// Takes a plan in.
    pub fn take(&mut self, hash: NameHash, secret: Option<&DeclaredSecret>, plan: Plan) {
        if let Some(secret) = secret {
            self.standings.insert(secret.name.folded(), plan.standing);
        }
        if !plan.actions.is_empty() {
            self.plans.push((hash, plan.actions));
        }
    }
}

/// A report of something that a person has to deal with.
pub fn stalled(reason: Reason, message: String) -> Report {
    Report {
        state: State::Stalled,
        reason,
        message,
    }
}

/// The status of a vault whose look failed: the report, and of the rest what was known before.
pub fn failed(vault: &Vault, report: &Report, now: Timestamp) -> SecretVaultStatus {
    SecretVaultStatus {
        observed_generation: vault.generation,
        conditions: conditions(report, &vault.status.conditions, vault.generation, now),
        ..vault.status.clone()
    }
}

/// The vault as events refer to it.
pub fn reference(vault: &Vault) -> ObjectReference {
    ObjectReference {
        api_version: Some("claviger.dev/v1alpha1".to_owned()),
        kind: Some("SecretVault".to_owned()),
        namespace: Some(vault.namespace.clone()),
        name: Some(vault.owner.name.clone()),
        uid: Some(vault.owner.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The status of a vault that was looked at.
pub fn status(
    vault: &Vault,
    name: &Name,
    open: &OpenRing,
    facts: &Facts,
    vaults: &cache::State,
    keys: &function_key::cache::State,
    now: Timestamp,
) -> SecretVaultStatus {
    let declared: Vec<DeclaredStatus> = vault
        .secrets
        .iter()
        .map(|secret| declared(secret, facts))
        .collect();
    let sync: Vec<SyncStatus> = vault
        .sync
        .iter()
        .map(|target| synced(name, &target.name, vaults))
        .collect();
    let report = report(vault, name, open, facts, vaults, keys);
    SecretVaultStatus {
        observed_generation: vault.generation,
        conditions: conditions(&report, &vault.status.conditions, vault.generation, now),
        vault_id: Some(open.vault.id.to_string()),
        key_ring: Some(key_ring(vault, name, open, facts, vaults)),
        secrets: Some(facts.counts),
        declared,
        sync,
        restarts: restarts(vault, keys),
        effective: Some(VaultEffective {
            retention: render_duration(vault.retention),
            purge_protection: open.document.is_protected(&vault.ring),
            deletion_policy: vault.deletion,
        }),
    }
}

fn time(at: Timestamp) -> Time {
    Time(condition::seconds(at))
}

fn key_ring(
    vault: &Vault,
    name: &Name,
    open: &OpenRing,
    facts: &Facts,
    vaults: &cache::State,
) -> KeyRingStatus {
    let document = &open.document;
    let in_use = vaults.in_use(name);
    let count = |version: u32| {
        in_use
            .get(&version)
            .and_then(|count| i64::try_from(*count).ok())
            .unwrap_or_default()
    };
    KeyRingStatus {
        current: document
            .newest()
            .map_or(0, |newest| i64::from(newest.version)),
        versions: document
            .versions
            .iter()
            .map(|version| RingVersionStatus {
                version: version.version.into(),
                created_at: Some(time(version.created)),
                secrets: count(version.version),
            })
            .collect(),
        rewrapped: (facts.rewrap.left > 0).then(|| facts.rewrap.to_string()),
        rotated_at: document.newest().map(|newest| time(newest.created)),
        next_at: crate::domain::vault::ring::due(document, &vault.ring).map(time),
        root_key: document
            .newest()
            .map(|newest| newest.key.root.clone())
            .or_else(|| Some(document.index_key.root.clone())),
    }
}

fn declared(secret: &DeclaredSecret, facts: &Facts) -> DeclaredStatus {
    let folded = secret.name.folded();
    let failed = facts.faults.contains_key(&folded) || facts.unmakeable.contains_key(&folded);
    let name = secret.name.as_str().to_owned();
    match facts.standings.get(&folded) {
        Some(Standing::Live(live)) => DeclaredStatus {
            name,
            version: Some(live.version.to_string()),
            generation: (live.generation > 0).then(|| live.generation.into()),
            minted_at: Some(time(live.minted)),
            next_at: live.next_turn.map(time),
            previous_until: live.previous_until.filter(|_| live.overlapping).map(time),
            state: Some(if failed {
                DeclaredState::Failed
            } else if live.overlapping {
                DeclaredState::Overlap
            } else {
                DeclaredState::Stable
            }),
        },
        Some(Standing::Broken(..)) => DeclaredStatus {
            name,
            state: Some(DeclaredState::Failed),
            ..DeclaredStatus::default()
        },
        _ => DeclaredStatus {
            name,
            state: Some(if failed {
                DeclaredState::Failed
            } else {
                DeclaredState::Pending
            }),
            ..DeclaredStatus::default()
        },
    }
}

fn synced(name: &Name, target: &str, vaults: &cache::State) -> SyncStatus {
    let target = target.to_owned();
    match vaults.target(name, &target) {
        None => SyncStatus {
            target,
            state: Some(SyncState::Pending),
            ..SyncStatus::default()
        },
        Some(report) => SyncStatus {
            target,
            secret_name: report.secret.clone(),
            changed_at: report.changed.map(time),
            state: Some(match &report.obstacle {
                None if report.synced => SyncState::Synced,
                Some(obstacle) if obstacle.state == State::Stalled => SyncState::Failed,
                _ => SyncState::Pending,
            }),
            message: report
                .obstacle
                .as_ref()
                .map(|obstacle| obstacle.message.clone()),
        },
    }
}

fn restarts(vault: &Vault, keys: &function_key::cache::State) -> Vec<Restart> {
    let workloads: BTreeSet<_> = vault.workloads().collect();
    workloads
        .into_iter()
        .filter(|workload| !keys.is_absent(workload))
        .filter_map(|workload| {
            Some(Restart {
                at: MicroTime(keys.restarted(&workload)?),
                kind: workload.workload.kind,
                name: workload.workload.name,
            })
        })
        .collect()
}

/// One ordered list of checks; the first that speaks decides.
fn report(
    vault: &Vault,
    name: &Name,
    open: &OpenRing,
    facts: &Facts,
    vaults: &cache::State,
    keys: &function_key::cache::State,
) -> Report {
    let of = |state, reason, message: String| Report {
        state,
        reason,
        message,
    };
    if open.document.vault_shredded {
        return stalled(
            Reason::Shredded,
            "the key ring was destroyed: nothing in this vault can be read any more. Delete this SecretVault (deletionPolicy: Delete) and make another".to_owned(),
        );
    }
    if let Some(blocked) = &facts.blocked {
        return stalled(Reason::DeletionBlocked, blocked.clone());
    }
    if let Some(fault) = &facts.first_fault {
        let others = facts.counts.unreadable - 1;
        let others = if others > 0 {
            format!(" (and {others} more)")
        } else {
            String::new()
        };
        return stalled(
            Reason::Unreadable,
            format!(
                "{fault}{others}; it is not used. Bring it back from a backup, or delete it; what is declared can be turned by claviger.dev/rotate-secrets. All others are as they should be"
            ),
        );
    }
    if let Some((secret, fault)) = facts.faults.first_key_value() {
        let source = vault
            .secrets
            .iter()
            .find_map(|declared| match &declared.making {
                Making::From(source) if declared.name.folded() == *secret => Some(source),
                _ => None,
            });
        let last = match facts.standings.get(secret) {
            Some(Standing::Live(_)) => "; the last version stays in force",
            _ => "",
        };
        if let Some(source) = source {
            let reason = if fault.ends_with("exist") || fault.ends_with("entry") {
                Reason::SourceNotFound
            } else if fault.contains("type") {
                Reason::SourceRefused
            } else {
                Reason::ValueRefused
            };
            return stalled(
                reason,
                format!(
                    "entry {} of Secret/{}, which secret {secret} follows, {fault}{last}",
                    source.key, source.name
                ),
            );
        }
    }
    if let Some((secret, why)) = facts.unmakeable.first_key_value() {
        return stalled(
            Reason::Invalid,
            format!("the value of secret {secret} cannot be made: {why}"),
        );
    }
    let obstacles: Vec<&Report> = vault
        .sync
        .iter()
        .filter_map(|target| vaults.target(name, &target.name)?.obstacle.as_ref())
        .collect();
    if let Some(obstacle) = obstacles
        .iter()
        .find(|obstacle| obstacle.state == State::Stalled)
        .or(obstacles.first())
    {
        return (*obstacle).clone();
    }
    if let Some(failure) = vault
        .workloads()
        .find_map(|workload| keys.workload_failures.get(&workload).cloned())
    {
        return failure;
    }
    if vault.suspended {
        return of(
            State::Ready,
            Reason::Suspended,
            "spec.suspend is true: everything stays as it is".to_owned(),
        );
    }
    let pending = vault
        .secrets
        .iter()
        .filter(|secret| {
            !matches!(
                facts.standings.get(&secret.name.folded()),
                Some(Standing::Live(_))
            )
        })
        .count();
    let unsynced = vault
        .sync
        .iter()
        .filter(|target| {
            vaults
                .target(name, &target.name)
                .is_none_or(|report| !report.synced)
        })
        .count();
    if pending + unsynced > 0 {
        return of(
            State::Moving,
            Reason::Pending,
            format!(
                "{pending} of {} secrets are to be made, {unsynced} of {} targets to be written",
                vault.secrets.len(),
                vault.sync.len()
            ),
        );
    }
    if let Some(secret) = &facts.outstanding {
        return of(
            State::ReadyAndMoving,
            Reason::Distributing,
            format!("the new value of secret {secret} is being handed out"),
        );
    }
    let restarting = vault.workloads().any(|workload| {
        !keys.looked.contains(&Item::Workload(workload.clone()))
            || !super::target::unseen_of(keys, vault, &workload).is_empty()
    });
    if restarting {
        return of(
            State::ReadyAndMoving,
            Reason::Distributing,
            "workloads are being restarted with the new values".to_owned(),
        );
    }
    if facts.rewrap.left > 0 {
        return of(
            State::ReadyAndMoving,
            Reason::Rewrapping,
            format!(
                "rewrapped {} under version {} of the key ring",
                facts.rewrap,
                open.document.newest().map_or(0, |newest| newest.version)
            ),
        );
    }
    let mut sentences = vec![format!(
        "{} secret(s) in {} version(s), as declared",
        facts.counts.live, facts.counts.versions
    )];
    let mut reason = Reason::Kept;
    let deferred = facts
        .standings
        .iter()
        .find(|(_, standing)| matches!(standing, Standing::Live(live) if live.deferred));
    if let Some((secret, _)) = deferred {
        reason = Reason::RotationDeferred;
        sentences.push(format!(
            "a turn of secret {secret} is due but waits: three values before are still handed out"
        ));
    }
    if facts.counts.unreadable > 0 {
        sentences.push(format!(
            "{} versions are under a key ring version that was shredded",
            facts.counts.unreadable
        ));
    }
    if open.document.purge_protection && !vault.ring.purge_protection {
        sentences.push(
            "softDelete.purgeProtection was on once and stays on: nothing is shredded, purged or destroyed before its retention is over"
                .to_owned(),
        );
    }
    for (secret, at) in &facts.expired {
        sentences.push(format!(
            "secret {secret} expired at {}; what is synced of it stays",
            condition::seconds(*at)
        ));
    }
    for annotation in &vault.unreadable_triggers {
        sentences.push(format!(
            "annotation {annotation} is not readable and is ignored; it takes times such as 2026-11-22T08:00:00Z, and where it names secrets <secret>@<time>, with commas between them"
        ));
    }
    of(State::Ready, reason, sentences.join(". "))
}
