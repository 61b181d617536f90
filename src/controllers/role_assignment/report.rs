//! What the status of an assignment says: a pure function of what a look found.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Time};

use super::cache::Objects;
use crate::{
    api::{
        condition::{self, Reason, Report, State, conditions},
        convert::role::Assignment,
        v1alpha1::{AccessState, EffectiveAccess, RoleAssignmentStatus},
    },
    controllers::error::{Class, Error},
    domain::role::{self, BuiltIn, Contest, Decision, Key, ObjectKind, Refusal, Role, Standing},
    k8s,
};

/// Of a shorter pause no status speaks.
const WORTH_TELLING: SignedDuration = SignedDuration::from_secs(1);
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

/// The status of an assignment that was looked at; nothing where somebody else wrote meanwhile: the
/// next look tells more.
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
        (None, Some(Obstacle::UnderWay(what))) => {
            let is_binding = |key: &&Key| key.kind != ObjectKind::Role;
            let of = decision.objects.keys().filter(is_binding).count();
            let done = granted.iter().copied().filter(is_binding).count();
            Report {
                state: State::Moving,
                reason: Reason::Pending,
                message: if of > 1 {
                    format!("granted in {done} of {of} namespaces; {what}")
                } else {
                    what.clone()
                },
            }
        }
        (None, None) => standing(assignment, decision, granted.len()),
    };
    let lingers = objects.into_iter().flatten().any(|(key, observed)| {
        key.kind != ObjectKind::Role && !decision.objects.contains_key(key) && !observed.is_bare()
    });
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
                // Whatever is declared: while a binding stands, somebody has access.
                _ if lingers => AccessState::Active,
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
    /// Something that has passed already.
    Passing,
    /// Something that a person has to deal with.
    Told(Report),
    /// It goes on by itself, with these words.
    UnderWay(String),
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
        Class::Conflict => Obstacle::Passing,
        Class::Transient => Obstacle::UnderWay(format!("trying again: {}", error.sentence())),
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

/// What a status says before everything is written.
pub fn under_way() -> Obstacle {
    Obstacle::UnderWay("the rest follows".to_owned())
}

/// What a status says of an object that is to go and that these finalizers hold back.
pub fn held(key: &Key, finalizers: &[String]) -> Obstacle {
    Obstacle::Told(stalled(
        Reason::DeletionBlocked,
        format!(
            "{key} is deleted and grants nothing any more, but does not go: somebody put on it the finalizer {}. Have it taken off by whoever put it there",
            role::in_short(finalizers)
        ),
    ))
}

/// What a status says of changes by others that are not put right at once any more.
pub fn contested(what: &str, contest: Contest, now: Timestamp) -> Obstacle {
    if contest.until.duration_since(now) < WORTH_TELLING {
        return Obstacle::Passing;
    }
    Obstacle::UnderWay(format!(
        "what was put right is changed again and again: {what}. It was put right {} times in a row, and is again at {}; have whoever changes it stop",
        contest.rounds,
        condition::seconds(contest.until)
    ))
}

/// What a status says of an assignment that cannot be read, and of which what it declared last is
/// known, or is not.
pub fn unreadable(fault: &str, is_known: bool) -> Report {
    let so = if is_known {
        "What it declared last stands"
    } else {
        "What it declared before is not known since Claviger was started, so nothing of it is granted"
    };
    stalled(
        Reason::Invalid,
        format!("the resource cannot be read: {fault}. {so}; correct it, or update the definition"),
    )
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
                        role::in_short(&decision.absent)
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;
    use crate::domain::role::{self, Content, Namespace, Observed, Reach, Setting, Source};

    fn assignment() -> Assignment {
        let names: Vec<String> = (0..9).map(|n| format!("n{n}")).collect();
        let object = serde_json::from_value(serde_json::json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "RoleAssignment",
            "metadata": {"name": "a", "namespace": "system", "uid": "u", "generation": 1},
            "spec": {
                "principal": {"kind": "User", "name": "anna"},
                "role": {"builtIn": "SecretVaultReader"}, "scope": {"namespaces": {"names": names}},
            },
        }));
        Assignment::read(object.unwrap()).unwrap()
    }

    fn decided(assignment: &Assignment, present: usize, now: Timestamp) -> Decision {
        let spaces: BTreeMap<String, Namespace> = (0..present)
            .map(|n| (format!("n{n}"), Namespace::default()))
            .collect();
        let setting = Setting {
            system_namespace: "system".to_owned(),
            role_prefix: "claviger".to_owned(),
            reach: Reach::Everywhere,
        };
        role::decide(&assignment.declared, &spaces, &Source::None, &setting, now)
    }

    fn stand(decision: &Decision, count: usize) -> Objects {
        let objects = decision.objects.iter().take(count);
        objects
            .map(|(key, content)| {
                let observed = Observed {
                    content: Some((**content).clone()),
                    ..Observed::default()
                };
                (key.clone(), Arc::new(observed))
            })
            .collect()
    }

    /// The Ready and Reconciling conditions, and the state.
    fn told(status: &RoleAssignmentStatus) -> (Vec<(&str, &str)>, String, AccessState) {
        let says = |condition: &&Condition| condition.type_ != condition::STALLED;
        let conditions: Vec<&Condition> = status.conditions.iter().filter(says).collect();
        let words = conditions
            .iter()
            .map(|condition| (&*condition.type_, &*condition.status))
            .collect();
        let state = status.effective.as_ref().unwrap().state.unwrap();
        (words, conditions[0].message.clone(), state)
    }

    #[test]
    fn a_namespace_that_does_not_take_its_binding_is_told_of_with_how_far_the_others_are() {
        let assignment = assignment();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let decision = decided(&assignment, 9, now);
        let objects = stand(&decision, 8);
        let answer = kube::core::Status::failure("no", "InternalError").with_code(500);
        let error = Error::Grant {
            object: "RoleBinding n8/a".to_owned(),
            source: kube::Error::Api(answer.boxed()),
        };
        let obstacle = failed(&error);
        let status = status(
            &assignment,
            &decision,
            Some(&objects),
            Some(&obstacle),
            "system",
            now,
        );
        let status = status.unwrap();
        let (words, message, state) = told(&status);
        assert_eq!(words, [("Ready", "False"), ("Reconciling", "True")]);
        assert_eq!(
            message,
            "granted in 8 of 9 namespaces; trying again: cannot write RoleBinding n8/a: the apiserver answered 500 InternalError"
        );
        assert_eq!(state, AccessState::Active);
    }

    #[test]
    fn while_a_binding_stands_no_access_is_said_to_have_ended() {
        let mut assignment = assignment();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut objects = stand(&decided(&assignment, 9, now), 1);
        assignment.declared.expires = Some(now);
        let decision = decided(&assignment, 9, now);
        let key = objects.keys().next().unwrap().clone();
        let obstacle = held(&key, &["example.com/keep".to_owned()]);
        let say = |objects: &Objects, obstacle: Option<&Obstacle>| {
            let status = status(
                &assignment,
                &decision,
                Some(objects),
                obstacle,
                "system",
                now,
            );
            let status = status.unwrap();
            let (words, message, state) = told(&status);
            (words[0].1 == "True", message, state)
        };
        let (ready, message, state) = say(&objects, Some(&obstacle));
        assert!(!ready && message.contains("example.com/keep"), "{message}");
        assert_eq!(state, AccessState::Active);
        let observed = Arc::make_mut(objects.get_mut(&key).unwrap());
        if let Some(Content::Binding { subjects, .. }) = &mut observed.content {
            subjects.clear();
        }
        let (ready, _, state) = say(&objects, Some(&obstacle));
        assert_eq!((ready, state), (false, AccessState::Expired));
        let (ready, _, state) = say(&Objects::new(), None);
        assert_eq!((ready, state), (true, AccessState::Expired));
    }

    #[test]
    fn of_namespaces_that_are_not_there_few_are_named() {
        let assignment = assignment();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let decision = decided(&assignment, 1, now);
        let objects = stand(&decision, 1);
        let status = status(&assignment, &decision, Some(&objects), None, "system", now);
        let status = status.unwrap();
        let (_, message, _) = told(&status);
        assert!(message.contains(": n1,n2,n3 and 5 more. "), "{message}");
        assert_eq!(status.effective.unwrap().scope.unwrap(), "9 namespaces");
    }
}
