//! What the status of a key says: a pure function of the plan's verdict and of what is known of
//! the key's clients.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
};
use snafu::Snafu;

use crate::{
    api::{
        condition::{self, Reason, Report, State},
        convert::{Declaration, StoreKind, Workload, render_duration},
        v1alpha1::{
            DeletionPolicy, DriftPolicy, Effective, FunctionKeyStatus, Phase, PreviousStatus,
            Restart, RotationStatus, WorkloadRef,
        },
    },
    controllers::{Item, function_key::cache, naming::Name},
    domain::{
        key::strength,
        layout,
        ledger::{self, Record},
        plan::{Drift, MAX_KEYS, Note, Problem, Verdict},
    },
};

/// What is wrong with the source of a value.
#[derive(Clone, Debug, PartialEq, Eq, Snafu)]
pub enum SourceFault {
    /// The Secret has no such entry.
    #[snafu(display("has no such entry"))]
    NoEntry,
    /// The Secret is not there.
    #[snafu(display("does not exist"))]
    NoSecret,
    /// The value is not text.
    #[snafu(display("is not UTF-8 text, which every value of a vault is"))]
    NotText,
    /// The value is longer than a vault takes.
    #[snafu(display("has more than 25 KiB, which is what a vault takes"))]
    TooLong,
    /// The Secret is of a type that values are not taken from.
    #[snafu(display("is of a type that values are not taken from"))]
    Type,
    /// The value cannot serve as a key.
    #[snafu(display("cannot be used: {fault}"))]
    Unfit {
        /// Why.
        fault: strength::Unfit,
    },
}

/// What is known of a key's clients.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Secrets that do not hold what they should.
    pub outstanding: Vec<Name>,
    /// When the last of the copies was written.
    pub since: Option<Timestamp>,
    /// Whether one of them holds nothing of the key yet.
    pub wanting: bool,
    /// Why they cannot be brought up to date.
    pub failures: Vec<Report>,
    /// Whether some that are not up to date were not looked at yet: what is known is no report.
    pub unsure: bool,
    /// Workloads whose restart is still to come.
    pub restarting: bool,
    /// Workloads that were restarted.
    pub restarts: Vec<Restart>,
    /// Workloads that did not exist when they were to be restarted.
    pub absent: Vec<WorkloadRef>,
}

/// What is known of a key's clients, given what they should have.
pub fn clients(state: &cache::State, declaration: &Declaration, verdict: &Verdict) -> Clients {
    let mut clients = Clients::default();
    let handout = verdict
        .handout
        .as_ref()
        .filter(|_| !declaration.suspended && verdict.problem.is_none());
    for target in &declaration.targets {
        let client = Name::new(&*declaration.namespace, &*target.secret);
        let copy = state
            .object(&client.secret())
            .and_then(|observed| observed.copies.as_ref()?.get(&target.entry).cloned())
            .filter(|copy| copy.owner.uid == declaration.owner.uid);
        let failure = state
            .client_failures
            .get(&client)
            .and_then(|failures| failures.get(&declaration.owner.uid));
        clients.failures.extend(failure.cloned());
        clients.since = clients.since.max(copy.as_ref().map(|copy| copy.at));
        let current = copy.as_ref().zip(handout).is_some_and(|(copy, handout)| {
            copy.generation == handout.generation && copy.digest == handout.value.digest()
        });
        if handout.is_some() && !current {
            clients.wanting |= copy.is_none();
            clients.unsure |= !state.looked.contains(&Item::Client(client.clone()));
            if !clients.outstanding.contains(&client) {
                clients.outstanding.push(client);
            }
        }
        for workload in &target.restart {
            let workload = Workload {
                namespace: declaration.namespace.clone(),
                workload: workload.clone(),
            };
            let changed = copy.as_ref().and_then(|copy| copy.changed);
            clients.restarting |= changed
                .is_some_and(|changed| state.restarted(&workload).is_none_or(|at| at < changed));
        }
    }
    for workload in &declaration.restart_on_revocation {
        let workload = Workload {
            namespace: declaration.namespace.clone(),
            workload: workload.clone(),
        };
        let revoked = verdict.record.as_ref().and_then(|record| record.revoked);
        clients.restarting |=
            revoked.is_some_and(|revoked| state.restarted(&workload).is_none_or(|at| at < revoked));
    }
    clients.unsure |= clients.restarting
        && declaration.workloads().any(|workload| {
            let named = Workload {
                namespace: declaration.namespace.clone(),
                workload: workload.clone(),
            };
            !state.looked.contains(&Item::Workload(named))
        });
    for workload in declaration.workloads() {
        let named = Workload {
            namespace: declaration.namespace.clone(),
            workload: workload.clone(),
        };
        clients
            .failures
            .extend(state.workload_failures.get(&named).cloned());
        let known = clients
            .restarts
            .iter()
            .any(|restart| restart.kind == workload.kind && restart.name == workload.name);
        if state.is_absent(&named) {
            if !clients.absent.contains(workload) {
                clients.absent.push(workload.clone());
            }
        } else if let Some(at) = state.restarted(&named).filter(|_| !known) {
            clients.restarts.push(Restart {
                kind: workload.kind,
                name: workload.name.clone(),
                at: MicroTime(at),
            });
        }
    }
    clients
}

/// The status of a key that was planned.
pub fn status(
    declaration: &Declaration,
    verdict: &Verdict,
    fault: Option<&SourceFault>,
    clients: &Clients,
    now: Timestamp,
) -> FunctionKeyStatus {
    let report = report(declaration, verdict, fault, clients);
    let record = verdict.record.as_ref();
    FunctionKeyStatus {
        observed_generation: declaration.generation,
        conditions: condition::conditions(
            &report,
            &declaration.status.conditions,
            declaration.generation,
            now,
        ),
        store: Some(declaration.store.to_string()),
        entry: Some(verdict.entry.clone()),
        origin: record.map(|record| record.origin.into()),
        rotation: record.map(|record| rotation(declaration, verdict, record, clients, now)),
        effective: Some(effective(declaration)),
        restarts: clients.restarts.clone(),
    }
}

/// The status of a key whose look failed: the report, and of the rest what was known before.
pub fn failed(declaration: &Declaration, report: &Report, now: Timestamp) -> FunctionKeyStatus {
    FunctionKeyStatus {
        observed_generation: declaration.generation,
        conditions: condition::conditions(
            report,
            &declaration.status.conditions,
            declaration.generation,
            now,
        ),
        store: Some(declaration.store.to_string()),
        ..declaration.status.clone()
    }
}

/// The report of keys whose store may not be written to.
pub fn store_refused(message: String) -> Report {
    Report {
        state: State::Stalled,
        reason: Reason::StoreRefused,
        message,
    }
}

/// The report of keys whose client's Secret may not be written to.
pub fn target_refused(message: String) -> Report {
    Report {
        state: State::Stalled,
        reason: Reason::TargetRefused,
        message,
    }
}

/// The report of a key whose client's entry belongs to somebody else.
pub fn target_conflict(secret: &str, entry: &str, holder: Option<&str>) -> Report {
    let message = match holder {
        Some(holder) => format!(
            "entry {entry} of Secret/{secret} is kept by FunctionKey/{holder}; hand this key out under another entry"
        ),
        None => format!(
            "entry {entry} of Secret/{secret} was not made by Claviger and is left alone; remove it there, or hand this key out under another entry"
        ),
    };
    Report {
        state: State::Stalled,
        reason: Reason::TargetConflict,
        message,
    }
}

/// The resource as events refer to it.
pub fn reference(declaration: &Declaration) -> ObjectReference {
    ObjectReference {
        api_version: Some("claviger.dev/v1alpha1".to_owned()),
        kind: Some("FunctionKey".to_owned()),
        namespace: Some(declaration.namespace.clone()),
        name: Some(declaration.owner.name.clone()),
        uid: Some(declaration.owner.uid.clone()),
        ..ObjectReference::default()
    }
}

/// One ordered list of checks; the first that speaks decides.
fn report(
    declaration: &Declaration,
    verdict: &Verdict,
    fault: Option<&SourceFault>,
    clients: &Clients,
) -> Report {
    let of = |state, reason, message: String| Report {
        state,
        reason,
        message,
    };
    if let Some(Problem::Conflict(holder)) = &verdict.problem {
        return of(
            State::Stalled,
            Reason::Conflict,
            format!(
                "{} of {} is kept by FunctionKey/{holder}; delete one of the two, or give this one another key name",
                verdict.entry, declaration.store
            ),
        );
    }
    if verdict.problem == Some(Problem::Full) {
        return of(
            State::Stalled,
            Reason::StoreFull,
            format!(
                "{} has {MAX_KEYS} keys, and the bookkeeping of more would not fit into one object; delete one, or use another store",
                declaration.store
            ),
        );
    }
    if let (Some(fault), Some(source)) = (fault, &declaration.source) {
        let reason = match fault {
            SourceFault::NoEntry | SourceFault::NoSecret => Reason::SourceNotFound,
            SourceFault::Type => Reason::SourceRefused,
            SourceFault::NotText | SourceFault::TooLong | SourceFault::Unfit { .. } => {
                Reason::ValueRefused
            }
        };
        let last = if verdict.record.is_some() {
            "; the value published last stays in place"
        } else {
            ""
        };
        return of(
            State::Stalled,
            reason,
            format!(
                "entry {} of Secret/{} {fault}{last}",
                source.key, source.name
            ),
        );
    }
    if let Some(failure) = clients.failures.first() {
        return failure.clone();
    }
    if declaration.suspended {
        let (state, what) = if verdict.problem.is_some() {
            (State::Stalled, "no key is published")
        } else {
            (State::Ready, "the key stays as it is")
        };
        return of(
            state,
            Reason::Suspended,
            format!("spec.suspend is true: {what}"),
        );
    }
    if !clients.outstanding.is_empty() {
        let names: Vec<&str> = clients
            .outstanding
            .iter()
            .map(|client| client.name.as_str())
            .collect();
        let state = if clients.wanting {
            State::Moving
        } else {
            State::ReadyAndMoving
        };
        return of(
            state,
            Reason::Distributing,
            format!("being handed to Secret/{}", names.join(", Secret/")),
        );
    }
    if clients.restarting {
        return of(
            State::ReadyAndMoving,
            Reason::Distributing,
            "workloads are being restarted with the new value".to_owned(),
        );
    }
    let mut sentences = vec![format!(
        "{} is published in {}",
        verdict.entry, declaration.store
    )];
    let mut reason = Reason::Published;
    for note in &verdict.notes {
        sentences.push(match note {
            Note::MasterKept(name) => {
                format!("{} is kept although FunctionKey/{name} was deleted: the host ignores the other keys without it", layout::MASTER)
            }
            Note::SourceUnchanged => "revocation was asked for, but the value is the source's: change it there".to_owned(),
            Note::TurnDeferred => {
                reason = Reason::RotationDeferred;
                "a turn is due but waits: three previous values are still valid".to_owned()
            }
            Note::Suspended => continue,
        });
    }
    if declaration.store.kind == StoreKind::ConfigMap {
        sentences.push("everyone with the built-in view role can read it there".to_owned());
    }
    for workload in &clients.absent {
        sentences.push(format!("{workload} is to be restarted but does not exist"));
    }
    for annotation in &declaration.unreadable_triggers {
        sentences.push(format!(
            "annotation {annotation} is not a time such as 2026-11-22T08:00:00Z and is ignored"
        ));
    }
    of(State::Ready, reason, sentences.join(". "))
}

fn rotation(
    declaration: &Declaration,
    verdict: &Verdict,
    record: &Record,
    clients: &Clients,
    now: Timestamp,
) -> RotationStatus {
    let phase = if now < record.shown && !declaration.targets.is_empty() {
        Phase::Waiting
    } else if record.distributed.is_none() || !clients.outstanding.is_empty() {
        Phase::Distributing
    } else if record.previous.is_empty() {
        Phase::Stable
    } else {
        Phase::Overlap
    };
    let time = |at: Timestamp| Time(condition::seconds(at));
    RotationStatus {
        generation: record.generation.into(),
        phase: Some(phase),
        minted_at: Some(time(record.minted)),
        next_at: verdict.next_turn.map(time),
        distributed_at: clients
            .since
            .filter(|_| clients.outstanding.is_empty() && now >= record.shown)
            .map(time),
        previous_until: record
            .previous
            .iter()
            .filter_map(|previous| previous.retires)
            .max()
            .map(time),
        revoked_at: record.revoked.map(time),
        previous: record
            .previous
            .iter()
            .map(|previous| PreviousStatus {
                generation: previous.generation.into(),
                entry: layout::previous(&verdict.entry, previous.generation),
                retires_at: previous.retires.map(time),
            })
            .collect(),
    }
}

fn effective(declaration: &Declaration) -> Effective {
    Effective {
        overlap: render_duration(declaration.policy.overlap),
        drift: match declaration.drift {
            Drift::Adopt => DriftPolicy::Adopt,
            Drift::Enforce => DriftPolicy::Enforce,
        },
        deletion_policy: match declaration.deletion {
            ledger::DeletionPolicy::Delete => DeletionPolicy::Delete,
            ledger::DeletionPolicy::Retain => DeletionPolicy::Retain,
        },
    }
}
