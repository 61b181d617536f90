//! The `RoleAssignment` controller.
//!
//! One kind of item is looked at: an assignment ([`look`]). What it comes to is decided in
//! [`crate::domain::role`]; here it is carried out, in an order in which nobody keeps access that has
//! ended and nobody is without access who gets another role. The apiserver lets nobody, Claviger
//! included, grant what they do not hold: its refusal is reported, not worked around.

pub mod cache;
pub mod report;
pub mod watch;

use std::collections::{BTreeSet, HashSet};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::events::EventType;
use snafu::ResultExt;

use crate::{
    api::{
        ASSIGNMENT_FINALIZER,
        condition::{Reason, Report, STALLED, State, conditions},
        convert::role::Assignment,
        v1alpha1::{AccessState, RoleAssignmentStatus},
    },
    clock,
    controllers::{
        Item,
        context::Context,
        error::{
            AssignmentStatusSnafu, Class, Error, GrantSnafu, HoldAssignmentSnafu,
            ListBindingsSnafu, ReadRoleSnafu, WithdrawSnafu,
        },
        naming::Name,
        role_assignment::report::Obstacle,
    },
    domain::{
        ledger::Owner,
        role::{
            self, Changes, Content, Decision, Key, ObjectKind, Over, Reach, Source, Standing, Write,
        },
    },
    k8s::{self, role::Found},
};

/// How long to wait before a name that somebody else's object has is tried again: no watch tells when
/// that object goes.
const TAKEN_RETRY: SignedDuration = SignedDuration::from_secs(20);
/// How many objects of an assignment are written at once.
const AT_ONCE: usize = 16;

/// Everything that the caches know of.
pub fn everything(context: &Context) -> Vec<Item> {
    let state = context.assignments.lock();
    let names: HashSet<&Name> = state.names().chain(state.with_objects()).collect();
    names.into_iter().cloned().map(Item::Assignment).collect()
}

/// Looks at an assignment; answers when to look again though nothing changes.
///
/// # Errors
/// The operation that failed; everything done before it stands.
pub async fn look(context: &Context, name: &Name) -> Result<Option<Timestamp>, Error> {
    let (assignment, unreadable, last_ending) = {
        let state = context.assignments.lock();
        let unreadable = state.unreadable(name).is_some();
        (state.assignment(name), unreadable, state.last_ending(name))
    };
    let Some(assignment) = assignment else {
        // What an unreadable one declared last stands; what nobody declares does not.
        if !unreadable && is_ours(context, name) {
            clear(context, name).await?;
        }
        return Ok(None);
    };
    let now = clock::now();
    let source = source(context, &assignment).await?;
    let (decision, changes) = plan(context, name, &assignment, &source, now);
    let since = Since {
        name,
        last_ending,
        next: decision.next,
    };
    let wide = assignment.declared.scope.is_wide();
    if wide && !assignment.is_held() && !decision.objects.is_empty() {
        hold(context, &assignment).await?;
    }
    let restored = restored(&assignment, &changes);
    let outcome = perform(context, &assignment, changes, &since).await;
    if outcome.is_cut_short {
        outcome.into_result()?;
        return Ok(Some(now));
    }
    if decision.standing == Standing::Going {
        outcome.into_result()?;
        return depart(context, name, &assignment).await.map(|()| None);
    }
    if !restored.is_empty() && outcome.failure.is_none() {
        let note = format!(
            "not as declared any more, and put right: {}",
            restored.join(", ")
        );
        publish(context, &assignment, EventType::Warning, "Restored", note);
    }
    let status = report::status(
        &assignment,
        &decision,
        context.assignments.lock().objects(name),
        outcome.obstacle(&assignment).as_ref(),
        &context.settings.system_namespace,
        now,
    );
    if let Some(status) = status {
        write_status(context, &assignment, status).await?;
    }
    let again = (!outcome.taken.is_empty()).then(|| now + TAKEN_RETRY);
    outcome.into_result()?;
    if !wide && assignment.is_held() {
        release(context, &assignment).await?;
    }
    Ok(decision.next.into_iter().chain(again).min())
}

/// Whether assignments of its namespace are followed: what is made for others is for others to clear.
fn is_ours(context: &Context, name: &Name) -> bool {
    let namespaces = &context.settings.namespaces;
    namespaces.is_empty() || namespaces.contains(&name.namespace)
}

fn setting(context: &Context) -> role::Setting {
    let namespaces = &context.settings.namespaces;
    role::Setting {
        system_namespace: context.settings.system_namespace.clone(),
        role_prefix: context.settings.role_prefix.clone(),
        reach: if namespaces.is_empty() {
            Reach::Everywhere
        } else {
            Reach::Listed(namespaces.iter().cloned().collect())
        },
    }
}

fn plan(
    context: &Context,
    name: &Name,
    assignment: &Assignment,
    source: &Source,
    now: Timestamp,
) -> (Decision, Changes) {
    let setting = setting(context);
    let state = context.assignments.lock();
    let declared = &assignment.declared;
    let decision = role::decide(declared, state.namespaces(), source, &setting, now);
    let nothing = cache::Objects::new();
    let standing = state.objects(name).unwrap_or(&nothing);
    let changes = role::changes(declared, &decision.objects, standing);
    (decision, changes)
}

/// What a look began with. Thousands of bindings take longer than anybody's access may go on that has
/// ended meanwhile, so a look that grants stops for another when something ends.
struct Since<'a> {
    name: &'a Name,
    last_ending: Option<u64>,
    next: Option<Timestamp>,
}

impl Since<'_> {
    fn is_over(&self, context: &Context) -> bool {
        context.assignments.lock().last_ending(self.name) != self.last_ending
            || self.next.is_some_and(|next| next <= clock::now())
    }
}

/// The rules of the ClusterRole that the assignment names.
async fn source(context: &Context, assignment: &Assignment) -> Result<Source, Error> {
    let Some(role) = assignment.declared.source() else {
        return Ok(Source::None);
    };
    let (known, turns) = context.assignments.lock().source(role);
    if let Some(known) = known {
        return Ok(known);
    }
    let rules = context
        .roles
        .cluster_role(role)
        .await
        .context(ReadRoleSnafu { role })?;
    let source = rules.map_or(Source::Missing, |rules| Source::Rules(rules.into()));
    context
        .assignments
        .lock()
        .learn(role, source.clone(), turns);
    Ok(source)
}

/// What came of carrying out changes.
#[derive(Default)]
struct Outcome {
    /// The first thing that failed, and at which object.
    failure: Option<(Key, Error)>,
    /// Objects of these names are somebody else's.
    taken: Vec<Key>,
    /// A ClusterRole that is to be bound does not exist.
    no_role: bool,
    /// Namespaces where something may yet succeed by itself.
    unsure: BTreeSet<String>,
    /// Not everything was done, because something has ended meanwhile: another look comes first.
    is_cut_short: bool,
}

impl Outcome {
    fn fail(&mut self, key: Key, error: Error) {
        match error.class() {
            Class::Refused => {}
            Class::Conflict | Class::Transient => _ = self.unsure.insert(key.namespace.clone()),
        }
        self.failure.get_or_insert((key, error));
    }

    /// Whether an object has to stay because what takes its place may not be there yet.
    fn holds_back(&self, key: &Key) -> bool {
        if key.kind == ObjectKind::ClusterRoleBinding || self.unsure.contains("") {
            return !self.unsure.is_empty();
        }
        self.unsure.contains(&key.namespace)
    }

    /// What is in the way.
    fn obstacle(&self, assignment: &Assignment) -> Option<Obstacle> {
        if let Some((_, error)) = &self.failure {
            return Some(report::failed(error));
        }
        if self.no_role {
            return Some(report::no_role(assignment));
        }
        self.taken.first().map(report::taken)
    }

    fn into_result(self) -> Result<(), Error> {
        self.failure.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// What came of one write.
enum Written {
    Done(Found),
    /// The ClusterRole does not exist.
    NoRole,
    /// The namespace is gone or going.
    NoNamespace,
    /// The object is somebody else's.
    Taken,
}

async fn perform(
    context: &Context,
    assignment: &Assignment,
    changes: Changes,
    since: &Since<'_>,
) -> Outcome {
    let mut outcome = Outcome::default();
    withdraw(context, changes.withdraw, &mut outcome).await;
    let (roles, bindings): (Vec<Write>, Vec<Write>) = changes
        .write
        .into_iter()
        .partition(|write| write.key.kind == ObjectKind::Role);
    let mut bindings = bindings.into_iter();
    // All bindings of an assignment are alike: where one would be refused, all would.
    for write in roles.into_iter().chain(bindings.next()) {
        let key = write.key.clone();
        let written = one(context, assignment, write).await;
        take(context, key, written, &mut outcome);
    }
    let hopeless = outcome.no_role
        || outcome
            .failure
            .as_ref()
            .is_some_and(|(_, error)| report::is_escalation(error));
    if !hopeless {
        let mut writing = stream::iter(bindings.take_while(|_| !since.is_over(context)))
            .map(|write| async move { (write.key.clone(), one(context, assignment, write).await) })
            .buffer_unordered(AT_ONCE);
        // Each is known before the watch tells of it, or that would call for another look.
        while let Some((key, written)) = writing.next().await {
            take(context, key, written, &mut outcome);
        }
    }
    // What takes the place of what is to be retired may not be there yet.
    if since.is_over(context) {
        outcome.is_cut_short = true;
        return outcome;
    }
    let retire = changes.retire.into_iter();
    let retire = retire.filter(|(key, _)| !outcome.holds_back(key)).collect();
    withdraw(context, retire, &mut outcome).await;
    outcome
}

fn take(context: &Context, key: Key, written: Result<Written, Error>, outcome: &mut Outcome) {
    match written {
        Ok(Written::Done(found)) => {
            context.assignments.lock().observe(key, found);
        }
        Ok(Written::NoRole) => outcome.no_role = true,
        // The watch of namespaces will tell.
        Ok(Written::NoNamespace) => {}
        Ok(Written::Taken) => outcome.taken.push(key),
        Err(error) => outcome.fail(key, error),
    }
}

/// Deletes objects, bindings before the Roles that they refer to.
async fn withdraw(context: &Context, objects: Vec<(Key, String)>, outcome: &mut Outcome) {
    let (bindings, roles): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|(key, _)| key.kind != ObjectKind::Role);
    for objects in [bindings, roles] {
        let mut deleting = stream::iter(objects)
            .map(|(key, uid)| async move {
                let deleted = delete(context, &key, &uid).await;
                (key, deleted)
            })
            .buffer_unordered(AT_ONCE);
        while let Some((key, deleted)) = deleting.next().await {
            if let Err(error) = deleted {
                outcome.fail(key, error);
            }
        }
    }
}

async fn delete(context: &Context, key: &Key, uid: &str) -> Result<(), Error> {
    match context.roles.delete(key, uid).await {
        // Gone, or another has its name, of which the watch tells.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {}
        deleted => deleted.with_context(|_| WithdrawSnafu {
            object: key.to_string(),
        })?,
    }
    context.assignments.lock().lose(key, Some(uid));
    Ok(())
}

async fn one(context: &Context, assignment: &Assignment, write: Write) -> Result<Written, Error> {
    let Write { key, content, over } = write;
    let declared = &assignment.declared;
    let roles = &context.roles;
    let written = match over {
        Over::Ours(uid) => roles.apply(declared, &key, &content, &uid).await,
        Over::Unchangeable(uid) => {
            delete(context, &key, &uid).await?;
            roles.create(declared, &key, &content).await
        }
        Over::Nothing => match roles.create(declared, &key, &content).await {
            Err(kube::Error::Api(answer)) if answer.is_already_exists() => {
                return over_unseen(context, assignment, &key, &content).await;
            }
            created => created,
        },
    };
    sorted(&key, written)
}

/// An object of this name stands, and the watch has not told of it: it lost its label, or it is
/// somebody else's.
async fn over_unseen(
    context: &Context,
    assignment: &Assignment,
    key: &Key,
    wanted: &Content,
) -> Result<Written, Error> {
    let object = || key.to_string();
    let found = context.roles.get(key).await;
    let Some(found) = found.with_context(|_| GrantSnafu { object: object() })? else {
        // Gone again: the next look makes it.
        let answer = kube::core::Status::failure("it went meanwhile", "Conflict").with_code(409);
        return Err(kube::Error::Api(answer.boxed()))
            .with_context(|_| GrantSnafu { object: object() });
    };
    let declared = &assignment.declared;
    let named = found.observed.assignment.as_ref();
    let ours = named.is_some_and(|(namespace, name)| {
        *namespace == declared.namespace && *name == declared.owner.name
    }) || found.observed.digest == declared.digest();
    if !ours {
        return Ok(Written::Taken);
    }
    let uid = &found.observed.uid;
    sorted(key, context.roles.apply(declared, key, wanted, uid).await)
}

/// Tells refusals apart that pass when something else changes.
fn sorted(key: &Key, written: kube::Result<Found>) -> Result<Written, Error> {
    if let Err(kube::Error::Api(answer)) = &written {
        let about = answer
            .details
            .as_ref()
            .map(|details| details.kind.as_str())
            .unwrap_or_default();
        if answer.code == 404 && about.contains("role") && !about.contains("binding") {
            return Ok(Written::NoRole);
        }
        if answer.code == 404 && about == "namespaces" {
            return Ok(Written::NoNamespace);
        }
        let terminating = answer.details.as_ref().is_some_and(|details| {
            let mut causes = details.causes.iter();
            causes.any(|cause| cause.reason == "NamespaceTerminating")
        });
        if answer.code == 403 && terminating {
            return Ok(Written::NoNamespace);
        }
    }
    written.map(Written::Done).with_context(|_| GrantSnafu {
        object: key.to_string(),
    })
}

/// Takes away what is left of an assignment that is gone.
async fn clear(context: &Context, name: &Name) -> Result<(), Error> {
    let left: Vec<(Key, String)> = {
        let state = context.assignments.lock();
        let objects = state.objects(name).into_iter().flatten();
        objects
            .map(|(key, observed)| (key.clone(), observed.uid.clone()))
            .collect()
    };
    let mut outcome = Outcome::default();
    withdraw(context, left, &mut outcome).await;
    outcome.into_result()
}

/// What the plan puts right that was right before, in words.
fn restored(assignment: &Assignment, changes: &Changes) -> Vec<String> {
    let status = &assignment.status;
    let before = status.effective.as_ref();
    let active = before.is_some_and(|before| before.state == Some(AccessState::Active));
    if !active || status.observed_generation != assignment.generation {
        return Vec::new();
    }
    let follows = assignment.declared.source().is_some();
    changes
        .write
        .iter()
        .filter(|write| match write.over {
            // A copy follows its source, and namespaces come.
            Over::Ours(_) => !(follows && write.key.kind == ObjectKind::Role),
            Over::Unchangeable(_) => true,
            Over::Nothing => !assignment.declared.scope.is_wide(),
        })
        .map(|write| write.key.to_string())
        .take(5)
        .collect()
}

/// Holds an assignment back: from now on a deletion waits for [`depart`].
async fn hold(context: &Context, assignment: &Assignment) -> Result<(), Error> {
    let mut finalizers = assignment.finalizers.clone();
    finalizers.push(ASSIGNMENT_FINALIZER.to_owned());
    write_finalizers(context, assignment, finalizers).await
}

async fn release(context: &Context, assignment: &Assignment) -> Result<(), Error> {
    let finalizers = assignment.finalizers.iter();
    let finalizers = finalizers
        .filter(|name| *name != ASSIGNMENT_FINALIZER)
        .cloned()
        .collect();
    write_finalizers(context, assignment, finalizers).await
}

/// Lets an assignment go whose objects are gone: those that the caches know of are; whether there are
/// others, the apiserver is asked.
async fn depart(context: &Context, name: &Name, assignment: &Assignment) -> Result<(), Error> {
    if !assignment.is_held() {
        return Ok(());
    }
    if context.settings.namespaces.is_empty() {
        let digest = assignment.declared.digest();
        let mut left = context
            .roles
            .list_bindings(&digest)
            .await
            .context(ListBindingsSnafu)?;
        left.extend(
            context
                .roles
                .list_cluster_bindings(&digest)
                .await
                .context(ListBindingsSnafu)?,
        );
        let ours = |found: &Found| {
            let named = found.observed.assignment.as_ref();
            named.is_some_and(|(of, other)| *of == name.namespace && *other == name.name)
        };
        let left = left.into_iter().filter(|(_, found)| ours(found));
        let left = left.map(|(key, found)| (key, found.observed.uid)).collect();
        let mut outcome = Outcome::default();
        withdraw(context, left, &mut outcome).await;
        outcome.into_result()?;
    }
    release(context, assignment).await
}

async fn write_finalizers(
    context: &Context,
    assignment: &Assignment,
    finalizers: Vec<String>,
) -> Result<(), Error> {
    let declared = &assignment.declared;
    let written = k8s::status::assignment_finalizers(
        &context.client,
        &declared.namespace,
        &declared.owner,
        &assignment.version,
        &finalizers,
    )
    .await;
    match written {
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        written => written.context(HoldAssignmentSnafu {
            name: &declared.owner.name,
        }),
    }
}

async fn write_status(
    context: &Context,
    assignment: &Assignment,
    status: RoleAssignmentStatus,
) -> Result<(), Error> {
    let known = context
        .assignments
        .lock()
        .assignment(&Name::from(assignment));
    let before = known.map_or_else(|| assignment.status.clone(), |known| known.status.clone());
    if before == status {
        return Ok(());
    }
    let _permit = context
        .status_writes
        .acquire()
        .await
        .expect("the semaphore is never closed");
    let declared = &assignment.declared;
    let written = k8s::status::replace_assignment(
        &context.client,
        &declared.namespace,
        &declared.owner,
        &status,
    )
    .await;
    match written {
        // It is gone, or another has its name.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 422) => return Ok(()),
        written => written.context(AssignmentStatusSnafu {
            name: &declared.owner.name,
        })?,
    }
    announce(context, assignment, &before, &status);
    context.assignments.lock().reported(assignment, status);
    Ok(())
}

/// Says in the status of an assignment that it cannot be read.
///
/// # Errors
/// The write that failed.
pub async fn tell_unreadable(context: &Context, name: &Name) -> Result<Option<Timestamp>, Error> {
    let Some(unreadable) = context.assignments.lock().unreadable(name) else {
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
    let status = RoleAssignmentStatus {
        observed_generation: unreadable.generation,
        conditions: conditions(&report, &[], unreadable.generation, clock::now()),
        ..RoleAssignmentStatus::default()
    };
    let owner = Owner {
        name: name.name.clone(),
        uid: unreadable.uid,
    };
    let namespace = &name.namespace;
    match k8s::status::replace_assignment(&context.client, namespace, &owner, &status).await {
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 422) => Ok(None),
        answer => answer
            .map(|()| None)
            .context(AssignmentStatusSnafu { name: &owner.name }),
    }
}

fn publish(
    context: &Context,
    assignment: &Assignment,
    type_: EventType,
    reason: &str,
    note: String,
) {
    context
        .events
        .publish(report::reference(assignment), type_, reason, note);
}

/// Events for what a person should notice: an access that has ended by itself, and a new reason for
/// which the assignment is stalled.
fn announce(
    context: &Context,
    assignment: &Assignment,
    before: &RoleAssignmentStatus,
    after: &RoleAssignmentStatus,
) {
    let state = |status: &RoleAssignmentStatus| status.effective.as_ref()?.state;
    if state(before) == Some(AccessState::Active) && state(after) == Some(AccessState::Expired) {
        let note = report::ended(assignment);
        publish(context, assignment, EventType::Normal, "Expired", note);
    }
    let stalled = |status: &RoleAssignmentStatus| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == STALLED && condition.status == "True")
            .map(|condition| (condition.reason.clone(), condition.message.clone()))
    };
    if let Some((reason, message)) = stalled(after)
        && stalled(before).is_none_or(|(other, _)| other != reason)
    {
        publish(context, assignment, EventType::Warning, &reason, message);
    }
}
