//! The `RoleAssignment` controller.
//!
//! One kind of item is looked at: an assignment ([`look`]). What it comes to is decided in
//! [`crate::domain::role`]; here it is carried out, in an order in which nobody keeps access that has
//! ended and nobody is without access who gets another role. The apiserver lets nobody, Claviger
//! included, grant what they do not hold: its refusal is reported, not worked around.

pub mod cache;
pub mod report;
pub mod watch;

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::events::EventType;
use snafu::ResultExt;

use crate::{
    api::{
        ASSIGNMENT_FINALIZER,
        condition::{READY, STALLED, conditions},
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
        role_assignment::{cache::Unread, report::Obstacle},
    },
    domain::{
        ledger::Owner,
        role::{
            self, Changes, Content, Contest, Decision, Key, ObjectKind, Over, Reach, Role, Scope,
            Source, Standing, Write,
        },
    },
    k8s::{self, role::Found},
};

/// How long to wait before a name that somebody else's object has is tried again: no watch tells when
/// that object goes.
const TAKEN_RETRY: SignedDuration = SignedDuration::from_secs(20);
/// How many objects of an assignment are written at once.
const AT_ONCE: usize = 16;
/// After how many objects it is asked whether something has changed that matters more than the rest.
const STRETCH: usize = 200;

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
    let (assignment, unread, revision) = {
        let state = context.assignments.lock();
        let unread = state.unreadable(name);
        (state.assignment(name), unread, state.revision(name))
    };
    let Some(assignment) = assignment else {
        return undeclared(context, name, unread).await;
    };
    let now = clock::now();
    let source = source(context, &assignment, now).await?;
    let (decision, mut changes) = plan(context, name, &assignment, &source, now);
    let wide = assignment.declared.scope.is_wide();
    if wide && !assignment.is_held() && !decision.objects.is_empty() {
        hold(context, name, &assignment).await?;
    }
    let fought = context.assignments.lock().contest(name);
    let drift = drift(context, &assignment, &changes, fought, now);
    let pause = fought.filter(|fought| !drift.is_empty() && fought.until > now);
    if pause.is_some() {
        changes.write.retain(|write| !drift.contains(&write.key));
        // What takes their place is not there yet.
        changes.retire.clear();
    }
    let course = Course {
        context,
        name,
        assignment: &assignment,
        decision: &decision,
        revision,
        is_told: unread.is_none(),
    };
    let outcome = perform(&course, changes).await;
    if decision.standing == Standing::Going && outcome.is_whole() {
        let held = (&*assignment.declared.owner.uid, &*assignment.version);
        return depart(context, name, held, &assignment.finalizers).await;
    }
    if !drift.is_empty() && pause.is_none() && outcome.failure.is_none() {
        let note = format!("not as declared any more, and put right: {drift}");
        publish(context, &assignment, EventType::Warning, "Restored", note);
        context.assignments.lock().contested(name, now);
    }
    let paused = pause.map(|pause| report::contested(&drift.to_string(), pause, now));
    let obstacle = outcome.obstacle(&assignment).or(paused);
    let told = course.tell(obstacle.as_ref(), now).await;
    let mut again = Vec::from_iter(decision.next);
    again.extend(pause.map(|pause| pause.until));
    again.extend((!outcome.taken.is_empty()).then(|| now + TAKEN_RETRY));
    again.extend(outcome.overtaken.then_some(now));
    let whole = outcome.is_whole();
    outcome.into_result()?;
    told?;
    if !wide && whole && assignment.is_held() {
        let held = (&*assignment.declared.owner.uid, &*assignment.version);
        release(context, name, held, &assignment.finalizers).await?;
    }
    Ok(again.into_iter().min())
}

/// Takes away what stands for an assignment of which nothing is known but, where there is one, its
/// metadata: what nobody declares does not stand, nor what cannot be told any more since a restart.
async fn undeclared(
    context: &Context,
    name: &Name,
    unread: Option<Unread>,
) -> Result<Option<Timestamp>, Error> {
    if !is_ours(context, name) {
        return Ok(None);
    }
    let outcome = clear(context, name).await;
    let whole = outcome.is_whole();
    outcome.into_result()?;
    match unread.filter(|unread| unread.going && whole) {
        Some(unread) => {
            let held = (&*unread.unreadable.uid, &*unread.version);
            depart(context, name, held, &unread.finalizers).await
        }
        None => Ok(None),
    }
}

/// A look under way.
struct Course<'a> {
    context: &'a Context,
    name: &'a Name,
    assignment: &'a Assignment,
    decision: &'a Decision,
    /// The revision that is being carried out.
    revision: Option<u64>,
    /// Whether its status speaks of what is done; that of one that cannot be read does not.
    is_told: bool,
}

impl Course<'_> {
    /// Whether something has changed meanwhile that matters more than the rest: the declaration, or
    /// what it is about, or the access has ended.
    fn is_overtaken(&self) -> bool {
        let over = self.decision.next.is_some_and(|at| at <= clock::now());
        over || self.context.assignments.lock().revision(self.name) != self.revision
    }

    async fn tell(&self, obstacle: Option<&Obstacle>, now: Timestamp) -> Result<(), Error> {
        if !self.is_told {
            return Ok(());
        }
        let status = report::status(
            self.assignment,
            self.decision,
            self.context.assignments.lock().objects(self.name),
            obstacle,
            &self.context.settings.system_namespace,
            now,
        );
        match status {
            Some(status) => write_status(self.context, self.assignment, status).await,
            None => Ok(()),
        }
    }
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

/// What is to be known of the ClusterRole that the assignment speaks of. Access that has ended waits
/// for no answer.
async fn source(
    context: &Context,
    assignment: &Assignment,
    now: Timestamp,
) -> Result<Source, Error> {
    let declared = &assignment.declared;
    if declared.deleting || declared.expires.is_some_and(|at| at <= now) {
        return Ok(Source::None);
    }
    let role = match &declared.role {
        Role::BuiltIn(role) => {
            let role = role.cluster_role(&context.settings.role_prefix);
            let is_there = context.assignments.lock().has_cluster_role(&role);
            return Ok(if is_there {
                Source::None
            } else {
                Source::Missing
            });
        }
        Role::Custom(role) => role,
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
    /// Whether the apiserver says that Claviger does not hold what it is to grant.
    escalates: bool,
    /// Objects of these names are somebody else's.
    taken: Vec<Key>,
    /// Objects that are to go, grant nothing any more, and are held back by these finalizers.
    held: Vec<(Key, Vec<String>)>,
    /// A ClusterRole that is to be bound does not exist.
    no_role: bool,
    /// Namespaces where something may yet succeed by itself.
    unsure: BTreeSet<String>,
    /// Not everything was done, because something else matters more.
    overtaken: bool,
}

impl Outcome {
    fn fail(&mut self, key: Key, error: Error) {
        match error.class() {
            Class::Refused => {}
            Class::Conflict | Class::Transient => _ = self.unsure.insert(key.namespace.clone()),
        }
        self.escalates |= report::is_escalation(&error);
        self.failure.get_or_insert((key, error));
    }

    /// Whether an object has to stay because what takes its place may not be there yet.
    fn holds_back(&self, key: &Key) -> bool {
        if key.kind == ObjectKind::ClusterRoleBinding || self.unsure.contains("") {
            return !self.unsure.is_empty();
        }
        self.unsure.contains(&key.namespace)
    }

    /// Whether nothing is left that was to go.
    fn is_whole(&self) -> bool {
        self.failure.is_none() && self.held.is_empty() && !self.overtaken
    }

    /// What is in the way.
    fn obstacle(&self, assignment: &Assignment) -> Option<Obstacle> {
        if let Some((_, error)) = &self.failure {
            return Some(report::failed(error));
        }
        if self.no_role {
            return Some(report::no_role(assignment));
        }
        if let Some((key, finalizers)) = self.held.first() {
            return Some(report::held(key, finalizers));
        }
        let taken = self.taken.first().map(report::taken);
        taken.or_else(|| self.overtaken.then(report::under_way))
    }

    fn into_result(self) -> Result<(), Error> {
        self.failure.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// What came of one write.
enum Written {
    Done(Box<Found>),
    /// Another object has to go first, and these finalizers hold it back.
    Held(Vec<String>),
    /// The ClusterRole does not exist.
    NoRole,
    /// The namespace is gone or going.
    NoNamespace,
    /// The object is somebody else's.
    Taken,
}

async fn perform(course: &Course<'_>, changes: Changes) -> Outcome {
    let (context, assignment) = (course.context, course.assignment);
    let mut outcome = Outcome {
        held: changes.stuck,
        ..Outcome::default()
    };
    let overtaken = || course.is_overtaken();
    withdraw(context, changes.withdraw, &mut outcome, overtaken).await;
    if outcome.overtaken {
        return outcome;
    }
    let attempted: Vec<Key> = changes
        .write
        .iter()
        .map(|write| write.key.clone())
        .collect();
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
    if outcome.escalates {
        // What cannot be granted any more is not granted any longer, as it was before either.
        let left = standing(context, course.name, |key| {
            matches!(assignment.declared.scope, Scope::Resource { .. }) || attempted.contains(key)
        });
        withdraw(context, left, &mut outcome, overtaken).await;
    } else if !outcome.no_role {
        while bindings.len() > 0 {
            if attempted.len() - bindings.len() > STRETCH && course.is_overtaken() {
                outcome.overtaken = true;
                return outcome;
            }
            let stretch: Vec<Write> = bindings.by_ref().take(STRETCH).collect();
            write_all(course, stretch, &mut outcome).await;
            // How far it is. What fails here fails at the end as well, and is told of then.
            if bindings.len() > 0 {
                let _ = course.tell(Some(&report::under_way()), clock::now()).await;
            }
        }
    }
    let retire = changes.retire.into_iter();
    let retire: Vec<_> = retire.filter(|(key, _)| !outcome.holds_back(key)).collect();
    withdraw(context, retire, &mut outcome, overtaken).await;
    if !outcome.overtaken {
        withdraw(context, changes.foreign, &mut outcome, overtaken).await;
    }
    outcome
}

async fn write_all(course: &Course<'_>, bindings: Vec<Write>, outcome: &mut Outcome) {
    let (context, assignment) = (course.context, course.assignment);
    let mut writing = stream::iter(bindings)
        .map(|write| async move { (write.key.clone(), one(context, assignment, write).await) })
        .buffer_unordered(AT_ONCE);
    // Each is known before the watch tells of it, or that would call for another look.
    while let Some((key, written)) = writing.next().await {
        take(context, key, written, outcome);
    }
}

fn take(context: &Context, key: Key, written: Result<Written, Error>, outcome: &mut Outcome) {
    match written {
        Ok(Written::Done(found)) => {
            context.assignments.lock().observe(key, *found);
        }
        Ok(Written::Held(finalizers)) => outcome.held.push((key, finalizers)),
        Ok(Written::NoRole) => outcome.no_role = true,
        // The watch of namespaces will tell.
        Ok(Written::NoNamespace) => {}
        Ok(Written::Taken) => outcome.taken.push(key),
        Err(error) => outcome.fail(key, error),
    }
}

/// Deletes objects, bindings before the Roles that they refer to.
async fn withdraw(
    context: &Context,
    objects: Vec<(Key, String)>,
    outcome: &mut Outcome,
    overtaken: impl Fn() -> bool,
) {
    let (bindings, roles): (Vec<_>, Vec<_>) = objects
        .into_iter()
        .partition(|(key, _)| key.kind != ObjectKind::Role);
    for objects in [bindings, roles] {
        for (index, stretch) in objects.chunks(STRETCH).enumerate() {
            if index > 0 && overtaken() {
                outcome.overtaken = true;
                return;
            }
            let mut deleting = stream::iter(stretch.to_vec())
                .map(|(key, uid)| async move {
                    let deleted = delete(context, &key, &uid).await;
                    (key, deleted)
                })
                .buffer_unordered(AT_ONCE);
            while let Some((key, deleted)) = deleting.next().await {
                match deleted {
                    Ok(None) => {}
                    Ok(Some(finalizers)) => outcome.held.push((key, finalizers)),
                    Err(error) => outcome.fail(key, error),
                }
            }
        }
    }
}

/// The finalizers that hold an object back; nothing of one that is gone.
type Held = Option<Vec<String>>;

/// Deletes an object. One that somebody holds back Kubernetes heeds for as long as it is there: it is
/// made to grant nothing, and the finalizers are answered that hold it.
async fn delete(context: &Context, key: &Key, uid: &str) -> Result<Held, Error> {
    let roles = &context.roles;
    let mut left = roles.delete(key, uid).await;
    if let Ok(Some(found)) = &left
        && !found.observed.is_bare()
    {
        match roles.empty(key, uid).await {
            // Nor does it grant anything for as long as its role is not there.
            Err(kube::Error::Api(answer)) if is_about_role(&answer) => {}
            emptied => left = emptied.map(Some),
        }
    }
    let left = match left {
        // Gone, or another has its name, of which the watch tells.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => None,
        left => left.with_context(|_| WithdrawSnafu {
            object: key.to_string(),
        })?,
    };
    let mut state = context.assignments.lock();
    match left {
        None => {
            state.lose(key, Some(uid));
            Ok(None)
        }
        Some(found) => {
            let finalizers = found.observed.finalizers.clone();
            state.observe(key.clone(), found);
            Ok(Some(finalizers))
        }
    }
}

async fn one(context: &Context, assignment: &Assignment, write: Write) -> Result<Written, Error> {
    let Write { key, content, over } = write;
    let declared = &assignment.declared;
    let roles = &context.roles;
    if over == Over::Nothing {
        return match roles.create(declared, &key, &content).await {
            Err(kube::Error::Api(answer)) if answer.is_already_exists() => {
                over_unseen(context, assignment, &key, &content).await
            }
            created => sorted(&key, created),
        };
    }
    replace(context, assignment, &key, &content, over).await
}

/// Writes over an object of ours.
async fn replace(
    context: &Context,
    assignment: &Assignment,
    key: &Key,
    wanted: &Content,
    over: Over,
) -> Result<Written, Error> {
    let declared = &assignment.declared;
    let roles = &context.roles;
    let written = match over {
        Over::Nothing => roles.create(declared, key, wanted).await,
        Over::Ours(uid) => roles.apply(declared, key, wanted, &uid).await,
        Over::Unchangeable(uid) => {
            if let Some(finalizers) = delete(context, key, &uid).await? {
                return Ok(Written::Held(finalizers));
            }
            roles.create(declared, key, wanted).await
        }
    };
    sorted(key, written)
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
    let digest = declared.digest();
    let named = found.observed.assignment.as_ref();
    let ours = named.is_some_and(|(namespace, name)| {
        *namespace == declared.namespace && *name == declared.owner.name
    }) || found.observed.digest == digest;
    if !ours {
        return Ok(Written::Taken);
    }
    // Without its label it is not followed, whatever it says.
    let over = role::over(declared, &digest, key, wanted, &found.observed)
        .unwrap_or_else(|| Over::Ours(found.observed.uid.clone()));
    replace(context, assignment, key, wanted, over).await
}

/// What kind of thing an answer is about.
fn about(answer: &kube::core::Status) -> &str {
    let details = answer.details.as_ref();
    details.map(|details| &*details.kind).unwrap_or_default()
}

/// Whether an answer says that the role of a binding does not exist.
fn is_about_role(answer: &kube::core::Status) -> bool {
    let about = about(answer);
    answer.code == 404 && about.contains("role") && !about.contains("binding")
}

/// Tells refusals apart that pass when something else changes.
fn sorted(key: &Key, written: kube::Result<Found>) -> Result<Written, Error> {
    if let Err(kube::Error::Api(answer)) = &written {
        if is_about_role(answer) {
            return Ok(Written::NoRole);
        }
        if answer.code == 404 && about(answer) == "namespaces" {
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
    let written = written.map(|found| Written::Done(Box::new(found)));
    written.with_context(|_| GrantSnafu {
        object: key.to_string(),
    })
}

/// The objects of an assignment that are known to stand, with their UIDs.
fn standing(context: &Context, name: &Name, meant: impl Fn(&Key) -> bool) -> Vec<(Key, String)> {
    let state = context.assignments.lock();
    let objects = state.objects(name).into_iter().flatten();
    objects
        .filter(|(key, _)| meant(key))
        .map(|(key, observed)| (key.clone(), observed.uid.clone()))
        .collect()
}

/// Takes away what is left of an assignment that is gone.
async fn clear(context: &Context, name: &Name) -> Outcome {
    let mut outcome = Outcome::default();
    let left = standing(context, name, |_| true);
    withdraw(context, left, &mut outcome, || false).await;
    outcome
}

/// What others have changed of an assignment's objects.
#[derive(Default)]
struct Drift {
    keys: BTreeSet<Key>,
    /// Who did, as far as the objects tell.
    by: BTreeSet<String>,
}

impl Drift {
    fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn contains(&self, key: &Key) -> bool {
        self.keys.contains(key)
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        f.write_str(&role::in_short(&keys))?;
        if !self.by.is_empty() {
            let by: Vec<&String> = self.by.iter().collect();
            write!(f, " (changed by {})", role::in_short(&by))?;
        }
        Ok(())
    }
}

/// What the plan puts right that was right before.
fn drift(
    context: &Context,
    assignment: &Assignment,
    changes: &Changes,
    fought: Option<Contest>,
    now: Timestamp,
) -> Drift {
    let status = &assignment.status;
    let before = status.effective.as_ref();
    let active = before.is_some_and(|before| before.state == Some(AccessState::Active));
    let mut conditions = status.conditions.iter();
    let ready = conditions.any(|found| found.type_ == READY && found.status == "True");
    // In a pause it is not.
    let right = ready || fought.is_some_and(|fought| fought.goes_on(now));
    if !active || !right || status.observed_generation != assignment.generation {
        return Drift::default();
    }
    let follows = assignment.declared.source().is_some();
    let keys: BTreeSet<Key> = changes
        .write
        .iter()
        .filter(|write| match write.over {
            // A copy follows its source, and namespaces come.
            Over::Ours(_) => !(follows && write.key.kind == ObjectKind::Role),
            Over::Unchangeable(_) => true,
            Over::Nothing => !assignment.declared.scope.is_wide(),
        })
        .map(|write| write.key.clone())
        .collect();
    let state = context.assignments.lock();
    let by = keys
        .iter()
        .filter_map(|key| state.object(key)?.by.clone())
        .collect();
    Drift { keys, by }
}

/// Holds an assignment back: from now on a deletion waits for [`depart`].
async fn hold(context: &Context, name: &Name, assignment: &Assignment) -> Result<(), Error> {
    let mut finalizers = assignment.finalizers.clone();
    finalizers.push(ASSIGNMENT_FINALIZER.to_owned());
    let held = (&*assignment.declared.owner.uid, &*assignment.version);
    write_finalizers(context, name, held, &finalizers).await
}

/// Takes our finalizer off these of an assignment, the one of this UID and version.
async fn release(
    context: &Context,
    name: &Name,
    held: (&str, &str),
    finalizers: &[String],
) -> Result<(), Error> {
    let finalizers = finalizers.iter();
    let others: Vec<String> = finalizers
        .filter(|name| *name != ASSIGNMENT_FINALIZER)
        .cloned()
        .collect();
    write_finalizers(context, name, held, &others).await
}

/// Lets an assignment go whose objects are gone: those that the caches know of are; whether there are
/// others, the apiserver is asked. While one is left, it stays.
async fn depart(
    context: &Context,
    name: &Name,
    held: (&str, &str),
    finalizers: &[String],
) -> Result<Option<Timestamp>, Error> {
    if !finalizers.iter().any(|name| name == ASSIGNMENT_FINALIZER) {
        return Ok(None);
    }
    if context.settings.namespaces.is_empty() {
        let digest = role::digest(&name.namespace, &name.name);
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
        withdraw(context, left, &mut outcome, || false).await;
        let whole = outcome.is_whole();
        outcome.into_result()?;
        if !whole {
            // Known by now: the next look says so.
            return Ok(Some(clock::now()));
        }
    }
    release(context, name, held, finalizers)
        .await
        .map(|()| None)
}

async fn write_finalizers(
    context: &Context,
    name: &Name,
    (uid, version): (&str, &str),
    finalizers: &[String],
) -> Result<(), Error> {
    let owner = Owner {
        name: name.name.clone(),
        uid: uid.to_owned(),
    };
    let client = &context.client;
    let namespace = &name.namespace;
    let written =
        k8s::status::assignment_finalizers(client, namespace, &owner, version, finalizers).await;
    match written {
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        written => written.context(HoldAssignmentSnafu { name: &name.name }),
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
    let (unread, known) = {
        let state = context.assignments.lock();
        (state.unreadable(name), state.assignment(name).is_some())
    };
    let Some(unread) = unread else {
        return Ok(None);
    };
    let unreadable = unread.unreadable;
    let report = report::unreadable(&unreadable.fault, known);
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
