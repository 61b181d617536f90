//! Conditions of every kind: three types, and reasons that say what to do.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use strum::IntoStaticStr;

/// Whether what the resource declares is so.
pub const READY: &str = "Ready";
/// Whether it is being brought about.
pub const RECONCILING: &str = "Reconciling";
/// Whether nothing more will happen until somebody changes something.
pub const STALLED: &str = "Stalled";

/// Why a condition is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
pub enum Reason {
    /// Another resource has the entry.
    Conflict,
    /// The vault is to be deleted but has secrets; a binding that is to go is held back by a finalizer.
    DeletionBlocked,
    /// Clients are getting the value.
    Distributing,
    /// The access has ended, as declared.
    Expired,
    /// The apiserver refuses what Claviger has to do.
    Forbidden,
    /// The access is granted.
    Granted,
    /// The spec says something that the schema could not refuse.
    Invalid,
    /// Everything in the vault is as declared.
    Kept,
    /// A namespace that is named is not there.
    NamespaceNotFound,
    /// The access begins later, as declared.
    NotStarted,
    /// What is declared reaches further than it may.
    OutOfReach,
    /// Something is to be made or written yet.
    Pending,
    /// The key is published and every client has what it should have.
    Published,
    /// Claviger does not hold what it is to grant.
    Refused,
    /// A workload could not be restarted.
    RestartFailed,
    /// Data keys are being put under the newest version of the key ring.
    Rewrapping,
    /// The ClusterRole is not there.
    RoleNotFound,
    /// The root key that the vault needs is not there.
    RootKeyMissing,
    /// The root key could not be asked.
    RootKeyUnavailable,
    /// A turn waits because as many previous values as can be are still valid.
    RotationDeferred,
    /// The vault's key ring was destroyed on purpose.
    Shredded,
    /// The source of the value is not there.
    SourceNotFound,
    /// The source of the value may not be used.
    SourceRefused,
    /// The store has as many keys as it takes.
    StoreFull,
    /// The store may not be written to.
    StoreRefused,
    /// The resource is suspended.
    Suspended,
    /// An entry of a client's Secret belongs to somebody else.
    TargetConflict,
    /// A client's Secret may not be written to.
    TargetRefused,
    /// A value cannot be put together.
    TemplateFailed,
    /// Something of the vault does not open.
    Unreadable,
    /// The value of the source is not usable as a key.
    ValueRefused,
}

/// What a resource's conditions are to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The state of affairs.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// One or more sentences a person can act on.
    pub message: String,
}

/// The states of affairs that conditions tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As declared.
    Ready,
    /// As declared, and something more is being brought about.
    ReadyAndMoving,
    /// Not as declared yet.
    Moving,
    /// Not as declared until somebody changes something.
    Stalled,
}

/// The conditions that report says, with times carried over from those before.
pub fn conditions(
    report: &Report,
    before: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let flag = |is| if is { "True" } else { "False" };
    [
        (
            READY,
            matches!(report.state, State::Ready | State::ReadyAndMoving),
        ),
        (
            RECONCILING,
            matches!(report.state, State::Moving | State::ReadyAndMoving),
        ),
        (STALLED, report.state == State::Stalled),
    ]
    .into_iter()
    .map(|(type_, is)| {
        let old = before.iter().find(|condition| condition.type_ == type_);
        let status = flag(is);
        let says = type_ == READY || is;
        let reason: &str = if says {
            report.reason.into()
        } else {
            "AsDeclared"
        };
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: if says {
                report.message.clone()
            } else {
                String::new()
            },
            observed_generation: generation,
            last_transition_time: old.filter(|old| old.status == status).map_or_else(
                || Time(seconds(now)),
                |old| old.last_transition_time.clone(),
            ),
        }
    })
    .collect()
}

/// A time as Kubernetes writes it: whole seconds.
pub fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
