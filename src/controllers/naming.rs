//! Names of things, and who names whom.

use std::collections::BTreeSet;

use crate::api::convert::{StoreKind, StoreRef};

/// A namespace and a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl Name {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The Secret of this name.
    pub fn secret(&self) -> StoreRef {
        StoreRef {
            namespace: self.namespace.clone(),
            kind: StoreKind::Secret,
            name: self.name.clone(),
        }
    }
}

/// A resource that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its UID.
    pub uid: String,
    /// Its `metadata.generation`.
    pub generation: Option<i64>,
    /// What is wrong with it.
    pub fault: String,
}

/// Who names a thing. One set of pairs: a set for each thing would reserve room for eleven names
/// where most have one.
pub struct Index<T>(BTreeSet<(T, Name)>);

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: Clone + Ord> Index<T> {
    /// This name names that thing.
    pub fn add(&mut self, thing: T, name: &Name) {
        self.0.insert((thing, name.clone()));
    }

    /// It no longer does.
    pub fn remove(&mut self, thing: &T, name: &Name) {
        self.0.remove(&(thing.clone(), name.clone()));
    }

    /// Who names this thing, by name.
    pub fn names(&self, thing: &T) -> impl Iterator<Item = &Name> {
        let from = (thing.clone(), Name::default());
        self.0
            .range(from..)
            .take_while(move |(other, _)| other == thing)
            .map(|(_, name)| name)
    }
}
