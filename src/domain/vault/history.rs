//! The history of one secret: what its objects, in the order of their numbers, say.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use snafu::Snafu;

use crate::domain::vault::attributes::{Attributes, Kind, Managed};

/// Why an entry cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Fault {
    /// It is not what was written there.
    #[snafu(display("was changed, moved or renamed by somebody else"))]
    Tampered,
    /// It is authentic, but earlier attributes than those seen before.
    #[snafu(display("was put back to an earlier state by somebody else"))]
    RolledBack,
    /// The key that opened it was destroyed on purpose.
    #[snafu(display("is under version {ring} of the key ring, which was shredded"))]
    Shredded {
        /// The version.
        ring: u32,
    },
    /// The key that opens it is not in the ring.
    #[snafu(display("is under version {ring} of the key ring, which is not there"))]
    UnknownRing {
        /// The version.
        ring: u32,
    },
}

/// One entry, as far as it can be trusted.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Its attributes are authentic.
    Authentic(Arc<Attributes>),
    /// They are not.
    Unreadable(Fault),
}

impl Entry {
    /// Its attributes, if they are authentic.
    pub fn attributes(&self) -> Option<&Attributes> {
        match self {
            Self::Authentic(attributes) => Some(attributes),
            Self::Unreadable(_) => None,
        }
    }
}

/// All entries of one secret, by number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History(pub BTreeMap<u32, Entry>);

/// What the history amounts to.
#[derive(Clone, Debug, PartialEq)]
pub enum State<'a> {
    /// There is no value.
    Absent,
    /// There is a current value.
    Live {
        /// Its number.
        sequence: u32,
        /// Its attributes.
        current: &'a Attributes,
    },
    /// The secret was deleted and can be recovered.
    Deleted {
        /// When.
        since: Timestamp,
        /// Until when.
        purge_at: Timestamp,
    },
    /// The secret is being purged.
    Purging,
    /// The entry that decides cannot be trusted.
    Broken {
        /// Its number.
        sequence: u32,
        /// Why.
        fault: Fault,
    },
}

impl History {
    /// What the history amounts to.
    pub fn state(&self) -> State<'_> {
        let mut newest = true;
        for (&sequence, entry) in self.0.iter().rev() {
            match entry {
                Entry::Unreadable(fault) => {
                    return State::Broken {
                        sequence,
                        fault: *fault,
                    };
                }
                Entry::Authentic(attributes) => match attributes.kind {
                    Kind::Value => {
                        return State::Live {
                            sequence,
                            current: attributes,
                        };
                    }
                    Kind::Deleted if newest && self.has_values() => {
                        return State::Deleted {
                            since: attributes.created,
                            purge_at: attributes.purge_at.unwrap_or(Timestamp::MAX),
                        };
                    }
                    Kind::Purging if newest => return State::Purging,
                    Kind::Deleted | Kind::Purging | Kind::Recovered => {}
                },
            }
            newest = false;
        }
        State::Absent
    }

    /// Whether the newest entry says that the manifest declares the secret.
    pub fn is_managed(&self) -> bool {
        self.0
            .last_key_value()
            .and_then(|(_, entry)| entry.attributes())
            .is_some_and(|attributes| attributes.managed.is_some())
    }

    /// Authentic values, oldest first.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (u32, &Attributes)> {
        self.0.iter().filter_map(|(&sequence, entry)| {
            entry
                .attributes()
                .filter(|attributes| attributes.kind == Kind::Value)
                .map(|attributes| (sequence, attributes))
        })
    }

    fn has_values(&self) -> bool {
        self.0.values().any(|entry| match entry {
            Entry::Authentic(attributes) => attributes.kind == Kind::Value,
            Entry::Unreadable(_) => true,
        })
    }

    /// The value that was current before, if it may still be handed out.
    pub fn previous(&self) -> Option<(u32, &Attributes)> {
        let State::Live { sequence, current } = self.state() else {
            return None;
        };
        let none = |managed: &Managed| managed.revoked || managed.overlap().is_zero();
        if current.managed.as_ref().is_some_and(none) {
            return None;
        }
        self.values()
            .rev()
            .find(|(other, _)| *other < sequence)
            .filter(|(_, attributes)| attributes.enabled)
    }

    /// The number of the next entry.
    pub fn next_sequence(&self) -> u32 {
        self.0
            .last_key_value()
            .map_or(1, |(&sequence, _)| sequence.saturating_add(1))
    }

    /// The name, as its entries spell it.
    pub fn name(&self) -> Option<&crate::domain::vault::name::SecretName> {
        self.0
            .values()
            .rev()
            .find_map(|entry| entry.attributes().map(|attributes| &attributes.name))
    }
}
