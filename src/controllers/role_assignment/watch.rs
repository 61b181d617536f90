//! Following assignments, the Roles and bindings made for them, namespaces and ClusterRoles.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::api::{
    core::v1::Namespace,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::ObjectMeta,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::watcher,
};

use crate::{
    api::{CONTENT_LABEL, CONTENT_ROLE, convert::role::Assignment, v1alpha1::RoleAssignment},
    controllers::{
        Item,
        context::Context,
        declarations::{Declarations, Kind},
        naming::{Name, Unreadable},
        role_assignment::cache::Unread,
        watch::{Follower, Progress, api, follow},
    },
    domain::role::{self, Key},
    k8s::role::Kept,
};

/// Starts the watches of one namespace, or of all.
pub fn start(context: &Arc<Context>, scope: Option<&str>, progress: &Progress) {
    let client = &context.client;
    tokio::spawn(follow(
        api::<DeserializeGuard<RoleAssignment>>(client, scope),
        watcher::Config::default(),
        Declarations::new(Assignments(Arc::clone(context)), scope),
        progress.awaits("RoleAssignments", scope),
    ));
    tokio::spawn(follow(
        api::<Role>(client, scope),
        ours(),
        Objects::new(context, scope),
        progress.awaits("Roles with our label", scope),
    ));
    tokio::spawn(follow(
        api::<RoleBinding>(client, scope),
        ours(),
        Objects::new(context, scope),
        progress.awaits("RoleBindings with our label", scope),
    ));
    if scope.is_none() {
        tokio::spawn(follow(
            Api::<ClusterRoleBinding>::all(client.clone()),
            ours(),
            Objects::new(context, None),
            progress.awaits("ClusterRoleBindings with our label", None),
        ));
        tokio::spawn(follow(
            Api::<PartialObjectMeta<Namespace>>::all(client.clone()),
            watcher::Config::default(),
            Namespaces {
                context: Arc::clone(context),
                listed: HashSet::new(),
            },
            progress.awaits("namespaces", None),
        ));
    }
}

/// Starts the watch that an install has once, whatever it looks after.
pub fn start_once(context: &Arc<Context>, progress: &Progress) {
    tokio::spawn(follow(
        Api::<PartialObjectMeta<ClusterRole>>::all(context.client.clone()),
        watcher::Config::default(),
        ClusterRoles {
            context: Arc::clone(context),
            listed: HashSet::new(),
        },
        progress.awaits("ClusterRoles", None),
    ));
}

fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{CONTENT_LABEL}={CONTENT_ROLE}"))
}

fn call(context: &Context, names: Vec<Name>) {
    for name in names {
        context.queue.soon(Item::Assignment(name));
    }
}

/// Assignments.
struct Assignments(Arc<Context>);

impl Kind for Assignments {
    type Resource = RoleAssignment;
    type Read = Assignment;

    fn read(resource: RoleAssignment) -> Result<Assignment, String> {
        Assignment::read(resource).map_err(|error| error.to_string())
    }

    fn declare(&self, assignment: Assignment) {
        let name = Name::from(&assignment);
        {
            let mut state = self.0.assignments.lock();
            let readable = state.unreadable(&name).is_none();
            let known = state.assignment(&name);
            if readable && known.is_some_and(|known| known.asks_for_the_same(&assignment)) {
                state.refresh(assignment);
                return;
            }
            state.declare(assignment, &self.0.settings.role_prefix);
        }
        call(&self.0, vec![name]);
    }

    fn declare_unreadable(&self, name: Name, unreadable: Unreadable) {
        self.declare_metadata(name, unreadable, &ObjectMeta::default());
    }

    fn declare_metadata(&self, name: Name, unreadable: Unreadable, metadata: &ObjectMeta) {
        let unread = Unread {
            unreadable,
            version: metadata.resource_version.clone().unwrap_or_default(),
            going: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
        };
        let prefix = &self.0.settings.role_prefix;
        let mut state = self.0.assignments.lock();
        if state.declare_unreadable(&name, unread, prefix) {
            drop(state);
            let told = Item::UnreadableAssignment(name.clone());
            self.0.queue.soon(told);
            // What it declared last may be over by now, or not be known.
            call(&self.0, vec![name]);
        }
    }

    fn forget(&self, name: &Name) {
        let prefix = &self.0.settings.role_prefix;
        self.0.assignments.lock().forget(name, prefix);
        call(&self.0, vec![name.clone()]);
    }

    fn names(&self) -> Vec<Name> {
        self.0.assignments.lock().names().cloned().collect()
    }
}

/// Follows the Roles or bindings made for assignments.
struct Objects {
    context: Arc<Context>,
    scope: Option<String>,
    listed: HashSet<Key>,
    /// What was known when the list was asked for: what was made while it was on its way need not be
    /// in it.
    known: Vec<Key>,
}

impl Objects {
    fn new(context: &Arc<Context>, scope: Option<&str>) -> Self {
        Self {
            context: Arc::clone(context),
            scope: scope.map(str::to_owned),
            listed: HashSet::new(),
            known: Vec::new(),
        }
    }
}

impl<K: Kept> Follower<K> for Objects {
    fn seen(&mut self, object: K, first: bool) {
        let key = object.key();
        if first {
            self.listed.insert(key.clone());
        }
        let news = self.context.assignments.lock().observe(key, object.found());
        call(&self.context, news);
    }

    fn gone(&mut self, object: &K) {
        let uid = object.uid();
        let lost = self
            .context
            .assignments
            .lock()
            .lose(&object.key(), uid.as_deref());
        call(&self.context, lost.into_iter().collect());
    }

    fn begin(&mut self) {
        self.listed.clear();
        let state = self.context.assignments.lock();
        let scope = self.scope.as_ref();
        self.known = state
            .keys()
            .filter(|key| key.kind == K::KIND)
            .filter(|key| scope.is_none_or(|scope| *scope == key.namespace))
            .cloned()
            .collect();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        for key in std::mem::take(&mut self.known) {
            if !listed.contains(&key) {
                let lost = self.context.assignments.lock().lose(&key, None);
                call(&self.context, lost.into_iter().collect());
            }
        }
    }
}

/// Follows namespaces: their labels, and whether they are being deleted.
struct Namespaces {
    context: Arc<Context>,
    listed: HashSet<String>,
}

impl Namespaces {
    fn take_in(&self, name: &str, namespace: Option<role::Namespace>) {
        let news = self
            .context
            .assignments
            .lock()
            .observe_namespace(name, namespace);
        call(&self.context, news);
    }
}

impl Follower<PartialObjectMeta<Namespace>> for Namespaces {
    fn seen(&mut self, object: PartialObjectMeta<Namespace>, first: bool) {
        let name = object.name_any();
        if first {
            self.listed.insert(name.clone());
        }
        let namespace = role::Namespace {
            labels: object.metadata.labels.unwrap_or_default(),
            going: object.metadata.deletion_timestamp.is_some(),
        };
        self.take_in(&name, Some(namespace));
    }

    fn gone(&mut self, object: &PartialObjectMeta<Namespace>) {
        self.take_in(&object.name_any(), None);
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let gone: Vec<String> = {
            let state = self.context.assignments.lock();
            let names = state.namespaces().keys();
            names
                .filter(|name| !listed.contains(*name))
                .cloned()
                .collect()
        };
        for name in &gone {
            self.take_in(name, None);
        }
    }
}

/// Follows ClusterRoles, as metadata: some assignment may speak of one of them.
struct ClusterRoles {
    context: Arc<Context>,
    listed: HashSet<String>,
}

impl ClusterRoles {
    fn take_in(&self, name: &str, version: Option<String>) {
        let news = self
            .context
            .assignments
            .lock()
            .observe_cluster_role(name, version);
        call(&self.context, news);
    }
}

impl Follower<PartialObjectMeta<ClusterRole>> for ClusterRoles {
    fn seen(&mut self, object: PartialObjectMeta<ClusterRole>, first: bool) {
        let name = object.name_any();
        if first {
            self.listed.insert(name.clone());
        }
        let version = object.resource_version().unwrap_or_default();
        self.take_in(&name, Some(version));
    }

    fn gone(&mut self, object: &PartialObjectMeta<ClusterRole>) {
        self.take_in(&object.name_any(), None);
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let gone: Vec<String> = {
            let state = self.context.assignments.lock();
            let names = state.cluster_roles();
            names
                .filter(|name| !listed.contains(*name))
                .cloned()
                .collect()
        };
        for name in &gone {
            self.take_in(name, None);
        }
    }
}
