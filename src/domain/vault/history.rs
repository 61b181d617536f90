//! The history of one secret: what its objects, in the order of their numbers, say.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use snafu::Snafu;

use crate::domain::{
    ledger::Marks,
    vault::{
        attributes::{Attributes, Kind, Managed},
        name::VersionId,
    },
};

/// Why an entry cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Fault {
    /// Somebody else has deleted it.
    #[snafu(display("was deleted by somebody else"))]
    Gone,
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
    /// It was authentic when it was seen last, and somebody else has deleted it since.
    Gone(Arc<Attributes>),
    /// They are not.
    Unreadable(Fault),
}

impl Entry {
    /// Its attributes, if they are authentic.
    pub fn attributes(&self) -> Option<&Attributes> {
        match self {
            Self::Authentic(attributes) => Some(attributes),
            Self::Gone(_) | Self::Unreadable(_) => None,
        }
    }

    /// What is wrong with it.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Authentic(_) => None,
            Self::Gone(_) => Some(Fault::Gone),
            Self::Unreadable(fault) => Some(*fault),
        }
    }

    /// How far the triggers were acted on when it was made, if it is a value that the manifest
    /// declares.
    pub fn marks(&self) -> Option<&Marks> {
        match self {
            Self::Authentic(attributes) | Self::Gone(attributes) => attributes
                .managed
                .as_ref()
                .filter(|_| attributes.kind == Kind::Value)
                .map(|managed| &managed.marks),
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
                Entry::Gone(_) => {
                    return State::Broken {
                        sequence,
                        fault: Fault::Gone,
                    };
                }
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
            Entry::Gone(_) | Entry::Unreadable(_) => true,
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

    /// Which version has a number, if its entry can be trusted.
    pub fn id(&self, number: u32) -> Option<VersionId> {
        Some(self.0.get(&number)?.attributes()?.id)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ledger::Marks,
        vault::{attributes::Managed, name::SecretName},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn attributes(kind: Kind) -> Attributes {
        Attributes {
            name: SecretName::parse("Db-Password").unwrap(),
            id: VersionId([1; 16]),
            kind,
            enabled: true,
            not_before: None,
            expires: None,
            created: at(10),
            updated: at(10),
            revision: 0,
            content_type: None,
            tags: BTreeMap::new(),
            managed: None,
            purge_at: (kind == Kind::Deleted).then(|| at(99)),
        }
    }

    /// Kinds by their first letters; `v` is a disabled value, `M` one that is managed, `N` one
    /// that promised no overlap, `X` one that revoked those before, `?` what cannot be trusted.
    fn history(letters: &str) -> History {
        let managed = |revoked, overlap| {
            Some(Managed {
                generation: 1,
                marks: Marks::default(),
                overlap,
                revoked,
                source: None,
                origin: None,
            })
        };
        let value = || attributes(Kind::Value);
        let entry = |letter| {
            Entry::Authentic(Arc::new(match letter {
                'V' => value(),
                'v' => Attributes {
                    enabled: false,
                    ..value()
                },
                'M' => Attributes {
                    managed: managed(false, 60),
                    ..value()
                },
                'N' => Attributes {
                    managed: managed(false, 0),
                    ..value()
                },
                'X' => Attributes {
                    managed: managed(true, 60),
                    ..value()
                },
                'D' => attributes(Kind::Deleted),
                'P' => attributes(Kind::Purging),
                'R' => attributes(Kind::Recovered),
                '?' => return Entry::Unreadable(Fault::Tampered),
                other => panic!("{other}"),
            }))
        };
        History((1..).zip(letters.chars().map(entry)).collect())
    }

    /// The same in a letter, with the number that decides.
    fn state(letters: &str) -> String {
        match history(letters).state() {
            State::Absent => "absent".to_owned(),
            State::Live { sequence, .. } => format!("live {sequence}"),
            State::Deleted { since, purge_at } => {
                assert_eq!((since, purge_at), (at(10), at(99)));
                "deleted".to_owned()
            }
            State::Purging => "purging".to_owned(),
            State::Broken { sequence, .. } => format!("broken {sequence}"),
        }
    }

    #[test]
    fn the_newest_entry_decides_and_one_that_takes_a_deletion_back_leaves_it_to_those_before() {
        for (letters, expected) in [
            ("", "absent"),
            ("V", "live 1"),
            ("v", "live 1"),
            ("VV", "live 2"),
            ("VD", "deleted"),
            ("VVD", "deleted"),
            ("VDR", "live 1"),
            ("VR", "live 1"),
            ("VDRD", "deleted"),
            ("VDRDR", "live 1"),
            ("VDRV", "live 4"),
            ("VDV", "live 3"),
            ("VDP", "purging"),
            ("VP", "purging"),
            ("DP", "purging"),
            ("P", "purging"),
            // What stands behind a purge is not of it.
            ("VDPV", "live 4"),
            // There is nothing to recover.
            ("D", "absent"),
            ("R", "absent"),
            ("DR", "absent"),
            ("DD", "absent"),
            // What cannot be trusted may have been a value; what it hides is not handed out.
            ("?", "broken 1"),
            ("V?", "broken 2"),
            ("?V", "live 2"),
            ("?D", "deleted"),
            ("?P", "purging"),
            ("?DR", "broken 1"),
            ("V?R", "broken 2"),
            ("V?D", "deleted"),
        ] {
            assert_eq!(state(letters), expected, "{letters}");
        }
    }

    /// Whatever stands in a history, it has a state, and a further entry does to it what it says.
    #[test]
    fn every_sequence_of_kinds_amounts_to_what_its_newest_entry_says() {
        let mut all = vec![String::new()];
        for _ in 0..5 {
            let longer: Vec<String> = all
                .iter()
                .flat_map(|letters| "VDPR?".chars().map(move |next| format!("{letters}{next}")))
                .collect();
            all.extend(longer);
            all.sort();
            all.dedup();
        }
        assert_eq!(all.len(), 1 + 5 + 25 + 125 + 625 + 3125);
        for letters in all {
            let valued = letters.contains(['V', '?']);
            let next = letters.len() + 1;
            assert_eq!(state(&format!("{letters}V")), format!("live {next}"));
            assert_eq!(state(&format!("{letters}?")), format!("broken {next}"));
            assert_eq!(state(&format!("{letters}P")), "purging");
            let deleted = if valued { "deleted" } else { "absent" };
            assert_eq!(state(&format!("{letters}D")), deleted, "{letters}");
            let recovered = state(&format!("{letters}R"));
            let last = letters
                .rfind(['V', '?'])
                .map(|at| (at + 1, &letters[at..=at]));
            let expected = last.map_or("absent".to_owned(), |(number, letter)| {
                let word = if letter == "V" { "live" } else { "broken" };
                format!("{word} {number}")
            });
            assert_eq!(recovered, expected, "{letters}");
            assert_eq!(history(&letters).next_sequence() as usize, next);
        }
    }

    #[test]
    fn a_deletion_without_an_end_is_never_purged_by_time() {
        let mut whole = history("V");
        let endless = Attributes {
            purge_at: None,
            ..attributes(Kind::Deleted)
        };
        whole.0.insert(2, Entry::Authentic(Arc::new(endless)));
        let State::Deleted { purge_at, .. } = whole.state() else {
            panic!("{:?}", whole.state());
        };
        assert_eq!(purge_at, Timestamp::MAX);
    }

    #[test]
    fn the_value_before_is_handed_out_while_it_is_enabled_and_was_not_revoked() {
        for (letters, previous) in [
            ("", None),
            ("V", None),
            ("VV", Some(1)),
            ("vV", None),
            ("VvV", None),
            ("VM", Some(1)),
            ("VX", None),
            ("VN", None),
            ("VXM", Some(2)),
            ("VVD", None),
            ("VVDR", Some(1)),
            ("V?V", Some(1)),
            ("VDRV", Some(1)),
            ("VV?", None),
        ] {
            let history = history(letters);
            let found = history.previous().map(|(sequence, _)| sequence);
            assert_eq!(found, previous, "{letters}");
        }
    }

    #[test]
    fn numbers_go_on_behind_gaps_and_the_newest_entry_says_whose_the_secret_is() {
        let mut gap = history("VVM");
        gap.0.remove(&1);
        gap.0.remove(&2);
        assert_eq!(gap.next_sequence(), 4);
        assert_eq!(History::default().next_sequence(), 1);
        for (letters, managed) in [
            ("", false),
            ("M", true),
            ("MV", false),
            ("MD", false),
            ("M?", false),
        ] {
            assert_eq!(history(letters).is_managed(), managed, "{letters}");
        }
        assert_eq!(history("?").name(), None);
        assert_eq!(history("V?").name().unwrap().as_str(), "Db-Password");
        let values: Vec<u32> = history("VD?vR")
            .values()
            .map(|(sequence, _)| sequence)
            .collect();
        assert_eq!(values, [1, 4]);
    }
}
