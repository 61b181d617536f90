//! What the status of an assignment says: a pure function of what a look found.

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Time};

use super::cache::Objects;
use crate::{
    api::{
        condition::{self, Reason, Report, State, conditions},
        convert::role::Assignment,
        v1alpha1::{AccessState, EffectiveAccess, RoleAssignmentStatus},
    },
    controllers::error::{Class, Error},
    domain::role::{BuiltIn, Decision, Key, ObjectKind, Refusal, Role, Standing},
    k8s,
};

/// How many objects a status lists.
const LISTED: usize = 10;

/// The assignment as events refer to it.
pub fn reference(assignment: &Assignment) -> ObjectReference {
    let declared = &assignment.declared;
    ObjectReference {
        api_version: Some("claviger.dev/v1alpha1".to_owned()),
        kind: Some("RoleAssignment".to_owned()),
        namespace: Some(declared.namespace.clone()),
        name: Some(declared.owner.name.clone()),
        uid: Some(declared.owner.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The status of an assignment that was looked at; nothing where something passing is in the way, of
/// which the next look tells more.
pub fn status(
    assignment: &Assignment,
    decision: &Decision,
    objects: Option<&Objects>,
    obstacle: Option<&Obstacle>,
    system_namespace: &str,
    now: Timestamp,
) -> Option<RoleAssignmentStatus> {
    let granted: Vec<&Key> = objects
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
        .filter(|key| decision.objects.contains_key(*key))
        .collect();
    let report = match (refusal(assignment, decision, system_namespace), obstacle) {
        (_, Some(Obstacle::Passing)) => return None,
        (Some(refused), _) => refused,
        (None, Some(Obstacle::Told(report))) => report.clone(),
        (None, None) => standing(assignment, decision, granted.len()),
    };
    let bindings = |kind| granted.iter().filter(move |key| key.kind == kind).count();
    let spaced = bindings(ObjectKind::RoleBinding);
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let total = spaced + bindings(ObjectKind::ClusterRoleBinding);
    let declared = &assignment.declared;
    Some(RoleAssignmentStatus {
        observed_generation: assignment.generation,
        conditions: conditions(
            &report,
            &assignment.status.conditions,
            assignment.generation,
            now,
        ),
        effective: Some(EffectiveAccess {
            state: Some(match decision.standing {
                Standing::Active if total == 0 && report.state == State::Stalled => {
                    AccessState::Refused
                }
                Standing::Active => AccessState::Active,
                Standing::Expired(_) | Standing::Going => AccessState::Expired,
                Standing::Pending(_) => AccessState::Pending,
                Standing::Refused(_) => AccessState::Refused,
            }),
            principal: Some(declared.principal.to_string()),
            role: Some(declared.role.to_string()),
            scope: Some(declared.scope.to_string()),
            namespaces: number(spaced),
            bindings: number(total),
            roles: number(bindings(ObjectKind::Role)),
            objects: granted
                .iter()
                .take(LISTED)
                .map(ToString::to_string)
                .collect(),
            next_at: decision.next.map(|at| Time(condition::seconds(at))),
        }),
    })
}

/// What is in the way of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Something that passes by itself.
    Passing,
    /// Something that a person has to deal with.
    Told(Report),
}

fn stalled(reason: Reason, message: String) -> Report {
    Report {
        state: State::Stalled,
        reason,
        message,
    }
}

/// Whether the apiserver refuses because Claviger does not hold what it is to grant.
pub fn is_escalation(error: &Error) -> bool {
    missing_rules(error).is_some()
}

fn missing_rules(error: &Error) -> Option<String> {
    match error {
        Error::Grant { source, .. } => k8s::role::missing_rules(source),
        _ => None,
    }
}

/// What a status says of a failure.
pub fn failed(error: &Error) -> Obstacle {
    if let Some(rules) = missing_rules(error) {
        return Obstacle::Told(stalled(
            Reason::Refused,
            format!(
                "the role permits what Claviger does not hold itself, so it cannot be granted: {rules}. Claviger holds the verbs of its own kinds only; take these rules out of the ClusterRole, or grant them by a RoleBinding of your own"
            ),
        ));
    }
    match error.class() {
        Class::Conflict | Class::Transient => Obstacle::Passing,
        Class::Refused => error
            .report(Reason::Refused)
            .map_or(Obstacle::Passing, |report| {
                Obstacle::Told(Report {
                    message: format!("{}. This is tried again by itself", error.sentence()),
                    ..report
                })
            }),
    }
}

/// What a status says of a ClusterRole that is not there.
pub fn no_role(assignment: &Assignment) -> Obstacle {
    Obstacle::Told(stalled(Reason::RoleNotFound, absent_role(assignment)))
}

fn absent_role(assignment: &Assignment) -> String {
    match &assignment.declared.role {
        Role::BuiltIn(role) => format!(
            "the ClusterRole of the built-in role {role} is not there: the chart brings it along (rbac.create), and the controller has to be told the name of the install (--role-prefix)"
        ),
        Role::Custom(name) => {
            format!("ClusterRole/{name} does not exist; nothing is granted until it does")
        }
    }
}

/// What a status says of a name that somebody else's object has.
pub fn taken(key: &Key) -> Obstacle {
    Obstacle::Told(stalled(
        Reason::Conflict,
        format!(
            "{key} exists and was not made by Claviger, so it is not overwritten. Delete it, or rename this RoleAssignment"
        ),
    ))
}

/// Why the declaration itself grants nothing.
fn refusal(assignment: &Assignment, decision: &Decision, system_namespace: &str) -> Option<Report> {
    let Standing::Refused(refusal) = &decision.standing else {
        return None;
    };
    let declared = &assignment.declared;
    Some(match refusal {
        Refusal::Beyond(rule) => stalled(
            Reason::Refused,
            format!(
                "{} permits what no RoleAssignment grants: {rule}. It grants what is done with FunctionKeys, SecretVaults and TokenProviders through Claviger's doors, and seeing them; take this rule out of the ClusterRole, or grant it by a RoleBinding of your own",
                declared.role
            ),
        ),
        Refusal::Elsewhere => stalled(
            Reason::OutOfReach,
            format!(
                "it reaches beyond its own namespace, which only a RoleAssignment in namespace {system_namespace} does. Write it there, or use scope.namespace or scope.resource"
            ),
        ),
        Refusal::Narrow => stalled(
            Reason::OutOfReach,
            "this install of Claviger works in listed namespaces only (scope.mode: namespaces): name some of them by scope.namespaces.names".to_owned(),
        ),
        Refusal::NoRole => stalled(Reason::RoleNotFound, absent_role(assignment)),
        Refusal::SaysNothing => stalled(
            Reason::Invalid,
            format!(
                "{} permits nothing that could be done with {}: choose another role or another resource",
                declared.role, declared.scope
            ),
        ),
        Refusal::WrongKind => stalled(
            Reason::Invalid,
            format!(
                "role {} is not for {}: choose another role or another resource",
                declared.role, declared.scope
            ),
        ),
    })
}

fn standing(assignment: &Assignment, decision: &Decision, objects: usize) -> Report {
    let ready = |reason, message| Report {
        state: State::Ready,
        reason,
        message,
    };
    let declared = &assignment.declared;
    match &decision.standing {
        Standing::Expired(at) => ready(
            Reason::Expired,
            format!("the access ended at {}", condition::seconds(*at)),
        ),
        Standing::Pending(at) => ready(
            Reason::NotStarted,
            format!("the access begins at {}", condition::seconds(*at)),
        ),
        Standing::Active | Standing::Going | Standing::Refused(_) => {
            if !decision.absent.is_empty() {
                return stalled(
                    Reason::NamespaceNotFound,
                    format!(
                        "granted where it can be, but {} not there, or not among those that Claviger works in: {}. The access follows when they are",
                        if decision.absent.len() == 1 {
                            "a namespace is"
                        } else {
                            "namespaces are"
                        },
                        decision.absent.join(", ")
                    ),
                );
            }
            ready(
                Reason::Granted,
                if objects == 0 {
                    "no namespace has these labels now; the access follows when one does".to_owned()
                } else {
                    format!("{} has {}", declared.principal, declared.role)
                },
            )
        }
    }
}

/// What an event says when an access has ended: what of it goes on nevertheless.
pub fn ended(assignment: &Assignment) -> String {
    let declared = &assignment.declared;
    let issues = "tokens that it had issued stay valid until they expire (the TokenProvider's tokens.lifetime), or until the signing key is revoked";
    let reads = "values that it has read stay known to it: turn them if that matters";
    let outlives = match &declared.role {
        Role::BuiltIn(role) => match role {
            BuiltIn::FunctionKeyReader
            | BuiltIn::FunctionKeyOperator
            | BuiltIn::SecretVaultAdministrator
            | BuiltIn::SecretVaultSecretsOfficer
            | BuiltIn::SecretVaultSecretsUser => format!(", and {reads}"),
            BuiltIn::TokenProviderIssuer
            | BuiltIn::TokenProviderOperator
            | BuiltIn::WebPubSubServiceOwner => format!(", but {issues}"),
            BuiltIn::SecretVaultReader | BuiltIn::WebPubSubServiceReader => String::new(),
        },
        Role::Custom(_) => format!(", but {issues}, and {reads}"),
    };
    format!(
        "the access of {} to {} as {} has ended{outlives}",
        declared.principal, declared.scope, declared.role
    )
}
