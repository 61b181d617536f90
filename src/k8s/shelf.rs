//! Maps at rest.

use std::{collections::BTreeMap, fmt};

/// A map that is looked at and no longer changed, in no more memory than its entries take: a
/// `BTreeMap` reserves room for eleven entries at once, and what is remembered of a cluster is
/// thousands of maps with one or two.
#[derive(Clone)]
pub struct Shelf<V>(Box<[(Box<str>, V)]>);

impl<V> Shelf<V> {
    /// The value under this name.
    pub fn get(&self, name: &str) -> Option<&V> {
        let at = self
            .0
            .binary_search_by(|(other, _)| (**other).cmp(name))
            .ok()?;
        Some(&self.0[at].1)
    }

    /// All of it, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The values, by name.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<V: Clone> Shelf<V> {
    /// A map to work with.
    pub fn to_map(&self) -> BTreeMap<String, V> {
        self.iter()
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect()
    }
}

impl<V> Default for Shelf<V> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<V> From<BTreeMap<String, V>> for Shelf<V> {
    fn from(map: BTreeMap<String, V>) -> Self {
        Self(
            map.into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
        )
    }
}

impl<V: PartialEq> PartialEq<BTreeMap<String, V>> for Shelf<V> {
    fn eq(&self, map: &BTreeMap<String, V>) -> bool {
        self.iter()
            .eq(map.iter().map(|(name, value)| (name.as_str(), value)))
    }
}

impl<V: fmt::Debug> fmt::Debug for Shelf<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelf_holds_what_the_map_held() {
        let map = BTreeMap::from(["b", "a", "c"].map(|name| (name.to_owned(), name.len())));
        let shelf = Shelf::from(map.clone());
        assert_eq!(shelf.to_map(), map);
        assert!(shelf == map && shelf.get("b") == Some(&1) && shelf.get("d").is_none());
        assert!(shelf != BTreeMap::new() && Shelf::<usize>::default() == BTreeMap::new());
        assert_eq!(shelf.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
