//! What has been observed of assignments: the declared ones, the Roles and bindings that were made
//! for them, namespaces and their labels, and ClusterRoles that are copied. Fed by the watches and by
//! the answers to our own writes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    api::{convert::role::Assignment, v1alpha1::RoleAssignmentStatus},
    controllers::naming::{Index, Name, Unreadable},
    domain::role::{Key, Namespace, Observed, Role, Scope, Source},
    k8s::role::Found,
};

/// The objects of one assignment.
pub type Objects = BTreeMap<Key, Arc<Observed>>;

/// Everything observed of assignments.
#[derive(Default)]
pub struct State {
    assignments: HashMap<Name, Arc<Assignment>>,
    unreadable: HashMap<Name, Unreadable>,
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
    /// The last time that something may have ended which an assignment granted: its declaration
    /// changed, or a namespace is not meant any more.
    endings: HashMap<Name, u64>,
    /// How many such times there were.
    ended: u64,
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
        let known = self.assignments.get(&name);
        let ending = known
            .filter(|known| known.declared == assignment.declared)
            .and_then(|_| self.last_ending(&name));
        self.forget(&name, prefix);
        match ending {
            Some(at) => _ = self.endings.insert(name.clone(), at),
            None => self.note_ending(name.clone()),
        }
        self.by_role.add(role_of(&assignment, prefix), &name);
        self.assignments.insert(name, Arc::new(assignment));
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

    /// Takes note of an assignment that could not be read; says whether that is news.
    pub fn declare_unreadable(&mut self, name: Name, unreadable: Unreadable) -> bool {
        let news = self.unreadable.get(&name) != Some(&unreadable);
        self.unreadable.insert(name, unreadable);
        news
    }

    /// An assignment is gone.
    pub fn forget(&mut self, name: &Name, prefix: &str) {
        self.unreadable.remove(name);
        self.endings.remove(name);
        if let Some(before) = self.assignments.remove(name) {
            self.by_role.remove(&role_of(&before, prefix), name);
        }
    }

    fn note_ending(&mut self, name: Name) {
        self.ended += 1;
        self.endings.insert(name, self.ended);
    }

    /// Says something else whenever something may have ended that an assignment granted.
    pub fn last_ending(&self, name: &Name) -> Option<u64> {
        self.endings.get(name).copied()
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
    pub fn unreadable(&self, name: &Name) -> Option<Unreadable> {
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
        let (mut news, mut endings) = (Vec::new(), Vec::new());
        for (name, assignment) in &self.assignments {
            let scope = &assignment.declared.scope;
            let was_meant = !same && is_meant(scope, before.as_ref());
            let is_meant = !same && is_meant(scope, namespace.as_ref());
            if was_meant && !is_meant {
                endings.push(name.clone());
            }
            if was_meant != is_meant {
                news.push(name.clone());
            }
        }
        for name in endings {
            self.note_ending(name);
        }
        self.namespaces
            .extend(namespace.map(|namespace| (name.to_owned(), namespace)));
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
        self.by_role.names(&role.to_owned()).cloned().collect()
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        api::v1alpha1::RoleAssignmentStatus,
        domain::{
            ledger::Owner,
            role::{self, BuiltIn, Content, ObjectKind, Principal, Selector, Test},
        },
    };

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
                owners: Vec::new(),
            },
            version: version.to_owned(),
        }
    }

    fn name(of: &str) -> Name {
        Name::new("shop", of)
    }

    fn fronts(principal: &str, version: &str) -> Assignment {
        let front = Test::In(BTreeSet::from(["front".to_owned()]));
        Assignment {
            declared: role::Assignment {
                namespace: "shop".to_owned(),
                owner: Owner {
                    name: "fronts".to_owned(),
                    uid: "u".to_owned(),
                },
                principal: Principal::User(principal.to_owned()),
                role: Role::BuiltIn(BuiltIn::SecretVaultReader),
                scope: Scope::Selected(Selector(vec![("tier".to_owned(), front)])),
                starts: None,
                expires: None,
                deleting: false,
            },
            generation: Some(1),
            version: version.to_owned(),
            finalizers: Vec::new(),
            status: RoleAssignmentStatus::default(),
        }
    }

    #[test]
    fn what_ends_is_noted_and_what_begins_is_not() {
        let mut state = State::default();
        let name = name("fronts");
        let namespace = |tier: &str| Namespace {
            labels: [("tier".to_owned(), tier.to_owned())].into(),
            going: false,
        };
        assert_eq!(state.last_ending(&name), None);
        state.declare(fronts("anna", "1"), "claviger");
        let begun = state.last_ending(&name);
        assert!(begun.is_some());
        // Namespaces come, others go, and our own writes to the assignment are heard of.
        let [a, b] = ["a", "b"];
        assert_eq!(
            state.observe_namespace(a, Some(namespace("front"))).len(),
            1
        );
        assert!(
            state
                .observe_namespace(b, Some(namespace("back")))
                .is_empty()
        );
        state.observe_namespace(b, None);
        state.declare(fronts("anna", "2"), "claviger");
        assert_eq!(state.last_ending(&name), begun);
        // A label goes.
        assert_eq!(state.observe_namespace(a, Some(namespace("back"))).len(), 1);
        let unlabelled = state.last_ending(&name);
        assert!(unlabelled > begun);
        // It is for somebody else, and then nobody.
        state.declare(fronts("bob", "3"), "claviger");
        let turned = state.last_ending(&name);
        assert!(turned > unlabelled);
        state.forget(&name, "claviger");
        assert_eq!(state.last_ending(&name), None);
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
