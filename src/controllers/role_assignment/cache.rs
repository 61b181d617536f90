//! What has been observed of assignments: the declared ones, the Roles and bindings that were made
//! for them, namespaces and their labels, and ClusterRoles that are copied. Fed by the watches and by
//! the answers to our own writes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use crate::{
    api::{convert::role::Assignment, v1alpha1::RoleAssignmentStatus},
    controllers::naming::{Index, Name, Unreadable},
    domain::role::{Contest, Key, Namespace, Observed, Role, Scope, Source},
    k8s::role::Found,
};

/// The objects of one assignment.
pub type Objects = BTreeMap<Key, Arc<Observed>>;

/// What is known of an assignment that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Which, and what is wrong with it.
    pub unreadable: Unreadable,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Whether it is being deleted.
    pub going: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
}

/// Everything observed of assignments.
#[derive(Default)]
pub struct State {
    assignments: HashMap<Name, Arc<Assignment>>,
    unreadable: HashMap<Name, Unread>,
    /// When the declaration of an assignment, or what it is about, changed last.
    revisions: HashMap<Name, u64>,
    /// How often anything of that has changed.
    revised: u64,
    /// What others keep changing.
    contests: HashMap<Name, Contest>,
    by_role: Index<String>,
    objects: HashMap<Name, Objects>,
    /// Which assignment an object says it is of, and the version of it that is known.
    of: HashMap<Key, (Name, String)>,
    namespaces: BTreeMap<String, Namespace>,
    /// Versions of ClusterRoles.
    cluster_roles: HashMap<String, String>,
    /// Rules of ClusterRoles that were read.
    sources: HashMap<String, Source>,
    /// How often ClusterRoles have changed.
    turns: u64,
}

/// A shared [`State`].
#[derive(Default)]
pub struct Cache(Mutex<State>);

impl Cache {
    /// The state, for a short look: nothing waits while it is held.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<&Assignment> for Name {
    fn from(assignment: &Assignment) -> Self {
        let declared = &assignment.declared;
        Self::new(&*declared.namespace, &*declared.owner.name)
    }
}

/// The ClusterRole that an assignment speaks of.
fn role_of(assignment: &Assignment, prefix: &str) -> String {
    match &assignment.declared.role {
        Role::BuiltIn(role) => role.cluster_role(prefix),
        Role::Custom(name) => name.clone(),
    }
}

impl State {
    /// Takes an assignment in; the built-in roles' names begin with `prefix`.
    pub fn declare(&mut self, assignment: Assignment, prefix: &str) {
        let name = Name::from(&assignment);
        self.undeclare(&name, prefix);
        self.by_role.add(role_of(&assignment, prefix), &name);
        self.assignments.insert(name.clone(), Arc::new(assignment));
        self.revise(&name);
    }

    /// Takes in what changed of an assignment that asks for the same as before.
    pub fn refresh(&mut self, assignment: Assignment) {
        let name = Name::from(&assignment);
        self.assignments.insert(name, Arc::new(assignment));
    }

    /// Takes note of a status that was written.
    pub fn reported(&mut self, assignment: &Assignment, status: RoleAssignmentStatus) {
        let name = Name::from(assignment);
        if let Some(known) = self.assignments.get(&name)
            && known.declared.owner == assignment.declared.owner
        {
            let known = Assignment {
                status,
                ..(**known).clone()
            };
            self.assignments.insert(name, Arc::new(known));
        }
    }

    /// Takes note of an assignment that could not be read; says whether that is news. What it
    /// declared last stands, if it is still the same one; what its metadata say is so.
    pub fn declare_unreadable(&mut self, name: &Name, unread: Unread, prefix: &str) -> bool {
        let known = self.assignments.get(name);
        if let Some(known) = known.filter(|known| known.declared.owner.uid == unread.unreadable.uid)
        {
            let mut known = (**known).clone();
            known.declared.deleting = unread.going;
            known.version.clone_from(&unread.version);
            known.finalizers.clone_from(&unread.finalizers);
            self.assignments.insert(name.clone(), Arc::new(known));
        } else {
            self.undeclare(name, prefix);
        }
        let before = self.unreadable.insert(name.clone(), unread.clone());
        // A status that was written makes another version.
        let news = before.is_none_or(|before| {
            let version = before.version.clone();
            before != Unread { version, ..unread }
        });
        if news {
            self.revise(name);
        }
        news
    }

    /// An assignment is gone.
    pub fn forget(&mut self, name: &Name, prefix: &str) {
        self.undeclare(name, prefix);
        self.contests.remove(name);
        self.revise(name);
    }

    fn undeclare(&mut self, name: &Name, prefix: &str) {
        self.unreadable.remove(name);
        if let Some(before) = self.assignments.remove(name) {
            self.by_role.remove(&role_of(&before, prefix), name);
        }
    }

    fn revise(&mut self, name: &Name) {
        // Of one that is gone nothing is kept.
        if self.assignments.contains_key(name) || self.unreadable.contains_key(name) {
            self.revised += 1;
            self.revisions.insert(name.clone(), self.revised);
        } else {
            self.revisions.remove(name);
        }
    }

    /// A number that is another one when the declaration has changed, or a namespace or ClusterRole
    /// that it is about.
    pub fn revision(&self, name: &Name) -> Option<u64> {
        self.revisions.get(name).copied()
    }

    /// How often, and until when, what others change of an assignment is left.
    pub fn contest(&self, name: &Name) -> Option<Contest> {
        self.contests.get(name).copied()
    }

    /// What others changed of an assignment was put right.
    pub fn contested(&mut self, name: &Name, now: Timestamp) {
        let contest = Contest::after(self.contest(name), now);
        self.contests.insert(name.clone(), contest);
    }

    /// An assignment by its name.
    pub fn assignment(&self, name: &Name) -> Option<Arc<Assignment>> {
        self.assignments.get(name).cloned()
    }

    /// All assignments.
    pub fn assignments(&self) -> impl Iterator<Item = &Arc<Assignment>> {
        self.assignments.values()
    }

    /// An assignment that cannot be read.
    pub fn unreadable(&self, name: &Name) -> Option<Unread> {
        self.unreadable.get(name).cloned()
    }

    /// All assignments, those that cannot be read included.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.assignments.keys().chain(self.unreadable.keys())
    }

    /// Assignments that objects are said to be of.
    pub fn with_objects(&self) -> impl Iterator<Item = &Name> {
        self.objects.keys()
    }

    /// The objects of an assignment.
    pub fn objects(&self, name: &Name) -> Option<&Objects> {
        self.objects.get(name)
    }

    /// An object as it is known to stand.
    pub fn object(&self, key: &Key) -> Option<Arc<Observed>> {
        let (name, _) = self.of.get(key)?;
        self.objects.get(name)?.get(key).cloned()
    }

    /// All objects.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.of.keys()
    }

    /// Takes an object in, unless a later state of it is known; answers whose it was and whose it is
    /// if that told something new.
    pub fn observe(&mut self, key: Key, found: Found) -> Vec<Name> {
        if let Some((_, version)) = self.of.get(&key) {
            let newer = match (found.version.parse::<u64>(), version.parse::<u64>()) {
                (Ok(this), Ok(that)) => this > that,
                _ => found.version != *version,
            };
            if !newer {
                return Vec::new();
            }
        }
        // One that names nobody is somebody's nevertheless: of the assignment that it was made for.
        let known = self.of.get(&key).map(|(name, _)| name.clone());
        let named = found.observed.assignment.as_ref();
        let name = named
            .map(|(namespace, name)| Name::new(&**namespace, &**name))
            .or_else(|| known.clone());
        let Some(name) = name else {
            return Vec::new();
        };
        let mut news = Vec::new();
        if let Some(known) = known.filter(|known| *known != name) {
            self.drop_object(&known, &key);
            news.push(known);
        }
        self.of.insert(key.clone(), (name.clone(), found.version));
        let before = self
            .objects
            .entry(name.clone())
            .or_default()
            .insert(key, Arc::new(found.observed.clone()));
        if before.is_none_or(|before| *before != found.observed) {
            news.push(name);
        }
        news
    }

    /// An object is gone, if it is the one of this UID; answers whose it was.
    pub fn lose(&mut self, key: &Key, uid: Option<&str>) -> Option<Name> {
        let (name, _) = self.of.get(key)?;
        let name = name.clone();
        let known = self.objects.get(&name).and_then(|found| found.get(key));
        if let (Some(known), Some(uid)) = (known, uid)
            && known.uid != uid
        {
            return None;
        }
        self.of.remove(key);
        self.drop_object(&name, key);
        Some(name)
    }

    fn drop_object(&mut self, name: &Name, key: &Key) {
        if let Some(objects) = self.objects.get_mut(name) {
            objects.remove(key);
            if objects.is_empty() {
                self.objects.remove(name);
            }
        }
    }

    /// The namespaces there are.
    pub fn namespaces(&self) -> &BTreeMap<String, Namespace> {
        &self.namespaces
    }

    /// Takes a namespace in, or takes note that it is gone; answers the assignments to which that
    /// makes a difference.
    pub fn observe_namespace(&mut self, name: &str, namespace: Option<Namespace>) -> Vec<Name> {
        let before = self.namespaces.remove(name);
        let same = before == namespace;
        let is_meant = |scope: &Scope, namespace: Option<&Namespace>| {
            namespace.is_some_and(|found| {
                !found.going
                    && match scope {
                        Scope::Named(names) => names.contains(name),
                        Scope::Selected(selector) => selector.matches(&found.labels),
                        Scope::Cluster | Scope::Namespace | Scope::Resource { .. } => false,
                    }
            })
        };
        let news: Vec<Name> = self
            .assignments
            .iter()
            .filter(|(_, assignment)| {
                let scope = &assignment.declared.scope;
                !same && is_meant(scope, before.as_ref()) != is_meant(scope, namespace.as_ref())
            })
            .map(|(name, _)| name.clone())
            .collect();
        self.namespaces
            .extend(namespace.map(|namespace| (name.to_owned(), namespace)));
        for name in &news {
            self.revise(name);
        }
        news
    }

    /// A ClusterRole stands in this version, or is gone; answers the assignments that speak of it if
    /// that is news.
    pub fn observe_cluster_role(&mut self, role: &str, version: Option<String>) -> Vec<Name> {
        if self.cluster_roles.get(role) == version.as_ref() {
            return Vec::new();
        }
        self.cluster_roles.remove(role);
        self.cluster_roles
            .extend(version.map(|version| (role.to_owned(), version)));
        self.turns += 1;
        self.sources.remove(role);
        let news: Vec<Name> = self.by_role.names(&role.to_owned()).cloned().collect();
        for name in &news {
            self.revise(name);
        }
        news
    }

    /// Whether there is a ClusterRole of this name.
    pub fn has_cluster_role(&self, role: &str) -> bool {
        self.cluster_roles.contains_key(role)
    }

    /// The ClusterRoles there are.
    pub fn cluster_roles(&self) -> impl Iterator<Item = &String> {
        self.cluster_roles.keys()
    }

    /// The rules of a ClusterRole if they are known, and how often ClusterRoles have changed.
    pub fn source(&self, role: &str) -> (Option<Source>, u64) {
        (self.sources.get(role).cloned(), self.turns)
    }

    /// Takes the rules of a ClusterRole in that were asked for after so many changes. One that may be
    /// old by now is used once, and not kept.
    pub fn learn(&mut self, role: &str, source: Source, turns: u64) {
        if self.turns == turns {
            self.sources.insert(role.to_owned(), source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::role::{Content, ObjectKind};

    fn key(name: &str) -> Key {
        Key {
            kind: ObjectKind::Role,
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    fn found(of: Option<&str>, uid: &str, version: &str) -> Found {
        Found {
            observed: Observed {
                uid: uid.to_owned(),
                content: Some(Content::Rules(Vec::new())),
                digest: "d".to_owned(),
                assignment: of.map(|name| ("shop".to_owned(), name.to_owned())),
                ..Observed::default()
            },
            version: version.to_owned(),
        }
    }

    fn name(of: &str) -> Name {
        Name::new("shop", of)
    }

    #[test]
    fn an_object_that_changes_hands_calls_for_both() {
        let mut state = State::default();
        assert_eq!(
            state.observe(key("r"), found(Some("a"), "u", "1")),
            [name("a")]
        );
        assert_eq!(
            state.observe(key("r"), found(Some("b"), "u", "2")),
            [name("a"), name("b")]
        );
        assert!(state.objects(&name("a")).is_none());
        assert_eq!(state.objects(&name("b")).unwrap().len(), 1);
        // Without its annotation it stays where it was, and is seen to be wrong.
        assert_eq!(state.observe(key("r"), found(None, "u", "3")), [name("b")]);
        // One that was never ours is none of ours.
        assert!(state.observe(key("s"), found(None, "v", "4")).is_empty());
    }

    #[test]
    fn what_is_told_late_changes_nothing() {
        let mut state = State::default();
        state.observe(key("r"), found(Some("a"), "new", "5"));
        assert!(
            state
                .observe(key("r"), found(Some("a"), "old", "4"))
                .is_empty()
        );
        assert_eq!(state.lose(&key("r"), Some("old")), None);
        assert_eq!(state.lose(&key("r"), Some("new")), Some(name("a")));
        assert_eq!(state.lose(&key("r"), None), None);
    }

    fn assignment(uid: &str) -> Assignment {
        let object = serde_json::from_value(serde_json::json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "RoleAssignment",
            "metadata": {"name": "a", "namespace": "shop", "uid": uid, "resourceVersion": "1"},
            "spec": {
                "principal": {"kind": "User", "name": "anna"}, "role": {"clusterRole": "own"},
                "scope": {"namespaces": {"names": ["front"]}},
            },
        }));
        Assignment::read(object.unwrap()).unwrap()
    }

    fn unread(uid: &str, version: &str, going: bool) -> Unread {
        Unread {
            unreadable: Unreadable {
                uid: uid.to_owned(),
                generation: Some(2),
                fault: "no".to_owned(),
            },
            version: version.to_owned(),
            going,
            finalizers: vec!["claviger.dev/role-assignment".to_owned()],
        }
    }

    #[test]
    fn what_metadata_say_is_so_though_the_rest_cannot_be_read() {
        let mut state = State::default();
        let of = name("a");
        state.declare(assignment("u1"), "p");
        let mut told = |unread| {
            let news = state.declare_unreadable(&of, unread, "p");
            let known = state.assignment(&of);
            let known = known.map(|known| {
                let held = known.is_held();
                (known.declared.deleting, known.version.clone(), held)
            });
            (news, known)
        };
        let stands = Some((false, "2".to_owned(), true));
        assert_eq!(told(unread("u1", "2", false)), (true, stands));
        // A status that was written is no news, but finalizers are written by its version.
        let stands = Some((false, "3".to_owned(), true));
        assert_eq!(told(unread("u1", "3", false)), (false, stands));
        let goes = Some((true, "4".to_owned(), true));
        assert_eq!(told(unread("u1", "4", true)), (true, goes));
        // What another of this name declared says nothing of this one.
        assert_eq!(told(unread("u2", "5", false)), (true, None));
    }

    #[test]
    fn whoever_carries_a_declaration_out_sees_that_it_or_what_it_is_about_has_changed() {
        let mut state = State::default();
        let of = name("a");
        state.declare(assignment("u1"), "p");
        let mut last = state.revision(&of);
        let mut changed = |state: &State| {
            let now = state.revision(&of);
            std::mem::replace(&mut last, now) != now
        };
        assert!(!changed(&state));
        state.refresh(assignment("u1"));
        state.observe_namespace("back", Some(Namespace::default()));
        state.observe_cluster_role("other", Some("1".to_owned()));
        state.observe(key("r"), found(Some("a"), "u", "1"));
        assert!(!changed(&state));
        state.observe_namespace("front", Some(Namespace::default()));
        assert!(changed(&state));
        state.observe_cluster_role("own", Some("1".to_owned()));
        assert!(changed(&state));
        state.declare_unreadable(&of, unread("u1", "2", true), "p");
        assert!(changed(&state));
        state.declare(assignment("u1"), "p");
        assert!(changed(&state));
        state.forget(&of, "p");
        assert!(changed(&state));
        state.declare(assignment("u1"), "p");
        assert!(changed(&state));
    }

    #[test]
    fn rules_that_were_asked_for_before_a_change_are_not_kept() {
        let mut state = State::default();
        let (known, turns) = state.source("x");
        assert_eq!(known, None);
        state.observe_cluster_role("x", Some("7".to_owned()));
        state.learn("x", Source::Missing, turns);
        let (known, turns) = state.source("x");
        assert_eq!(known, None);
        state.learn("x", Source::Missing, turns);
        assert_eq!(state.source("x").0, Some(Source::Missing));
    }
}
