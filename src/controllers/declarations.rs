//! Following what is declared: the resources of one kind, those that cannot be read included.

use std::{collections::HashSet, fmt::Debug};

use kube::{Resource, ResourceExt as _, api::ObjectMeta, core::DeserializeGuard};
use serde::de::DeserializeOwned;

use super::{
    naming::{Name, Unreadable},
    watch::Follower,
};

/// What becomes of the resources of one kind.
pub trait Kind: Send + 'static {
    /// The kind, as users write it.
    type Resource: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send;
    /// What it is read as.
    type Read;

    /// Reads a resource, or says what is wrong with it.
    ///
    /// # Errors
    /// What is wrong, for its author.
    fn read(resource: Self::Resource) -> Result<Self::Read, String>;
    /// It is declared so from now on.
    fn declare(&self, read: Self::Read);
    /// It stands, and cannot be read: what it declared last stands too.
    fn declare_unreadable(&self, name: Name, unreadable: Unreadable);
    /// It stands, and cannot be read but for its metadata, which tell whether it is being deleted,
    /// and what holds it. A kind whose resources hold nothing open need not mind.
    fn declare_metadata(&self, name: Name, unreadable: Unreadable, _metadata: &ObjectMeta) {
        self.declare_unreadable(name, unreadable);
    }
    /// It is gone.
    fn forget(&self, name: &Name);
    /// Those that are declared, readable or not.
    fn names(&self) -> Vec<Name>;
}

/// Follows the resources of one kind, in one namespace or in all.
pub struct Declarations<K> {
    kind: K,
    scope: Option<String>,
    listed: HashSet<Name>,
}

impl<K> Declarations<K> {
    /// Those of one namespace, or of all.
    pub fn new(kind: K, scope: Option<&str>) -> Self {
        Self {
            kind,
            scope: scope.map(str::to_owned),
            listed: HashSet::new(),
        }
    }
}

impl<K: Kind> Follower<DeserializeGuard<K::Resource>> for Declarations<K> {
    fn seen(&mut self, object: DeserializeGuard<K::Resource>, first: bool) {
        let name = name_of(&object);
        let known = object.meta();
        let metadata = ObjectMeta {
            uid: known.uid.clone(),
            generation: known.generation,
            resource_version: known.resource_version.clone(),
            deletion_timestamp: known.deletion_timestamp.clone(),
            finalizers: known.finalizers.clone(),
            ..ObjectMeta::default()
        };
        if first {
            self.listed.insert(name.clone());
        }
        let read = object.0.map_err(|error| error.to_string());
        match read.and_then(K::read) {
            Ok(read) => self.kind.declare(read),
            Err(fault) => {
                tracing::error!(
                    kind = %K::Resource::kind(&()),
                    k8s.namespace.name = name.namespace,
                    name = name.name,
                    error = fault,
                    "a resource cannot be read; what it declared last stands"
                );
                let unreadable = Unreadable {
                    uid: metadata.uid.clone().unwrap_or_default(),
                    generation: metadata.generation,
                    fault,
                };
                self.kind.declare_metadata(name, unreadable, &metadata);
            }
        }
    }

    fn gone(&mut self, object: &DeserializeGuard<K::Resource>) {
        self.kind.forget(&name_of(object));
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        // With one watch for each namespace, a list speaks of its own namespace only.
        let scope = self.scope.as_ref();
        let mine = |name: &Name| scope.is_none_or(|scope| *scope == name.namespace);
        for name in self.kind.names() {
            if mine(&name) && !listed.contains(&name) {
                self.kind.forget(&name);
            }
        }
    }
}

fn name_of<K>(object: &DeserializeGuard<K>) -> Name
where
    K: Resource<DynamicType = ()>,
{
    Name::new(object.namespace().unwrap_or_default(), object.name_any())
}
