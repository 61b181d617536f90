//! What a synced Secret holds, and from where: the bookkeeping that stands beside its values and is
//! written with them, so that a restart needs to open nothing to know that all is as it should be.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use snafu::{ResultExt, Snafu};

use crate::domain::vault::{
    envelope::ValueDigest,
    name::{SecretName, VersionId},
    plan::Reached,
    template::Version,
};

/// Hexadecimal digits of a content hash in the name of an immutable Secret.
const HASH_DIGITS: usize = 10;

/// An entry of a history that a value was made from. The id is there because numbers begin anew after
/// a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its number; 0 when there was none.
    pub number: u32,
    /// The id of that version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<VersionId>,
}

/// An input that does not exist.
pub const ABSENT: Made = Made {
    number: 0,
    id: None,
};

/// One entry of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The value, by its keyed digest.
    pub digest: ValueDigest,
    /// How it is made, by its keyed digest.
    pub recipe: ValueDigest,
    /// What it was made from, by [`input_name`].
    pub inputs: BTreeMap<String, Made>,
    /// Since when it is made from these.
    pub at: Timestamp,
    /// When the value last changed under workloads that had an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
}

/// The bookkeeping of one synced Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The vault it is filled from.
    pub vault: String,
    /// The target as declared: what the name begins with if the Secret is immutable.
    pub target: String,
    /// Whether the Secret is somebody else's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub merge: bool,
    /// Labels that we put on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Annotations that we put on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<String>,
    /// Our entries, by key.
    pub entries: BTreeMap<String, Placed>,
}

/// The annotation is not such bookkeeping.
#[derive(Debug, Snafu)]
#[snafu(display("the bookkeeping of a synced Secret is not readable"))]
pub struct Unreadable {
    source: serde_json::Error,
}

impl Record {
    /// Reads the annotation's text.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        serde_json::from_str(text).context(UnreadableSnafu)
    }

    /// The annotation's text; the same record always gives the same text.
    pub fn render(&self) -> String {
        serde_json::to_string(self).expect("a record has string keys only")
    }
}

impl Placed {
    /// Whether what stands there is what it should be: made the same way from the same versions, and
    /// not changed since.
    pub fn is_current(
        &self,
        recipe: ValueDigest,
        live: Option<ValueDigest>,
        now: impl Fn(&str) -> Made,
    ) -> bool {
        self.recipe == recipe
            && live == Some(self.digest)
            && self.inputs.iter().all(|(input, made)| now(input) == *made)
    }

    /// How far a value of a secret has got here. `id` answers which version has a number: one that
    /// was purged had perhaps a higher one.
    pub fn reached(
        &self,
        secret: &SecretName,
        sequence: u32,
        id: impl Fn(u32) -> Option<VersionId>,
    ) -> Option<Reached> {
        let made = *self.inputs.get(&input_name(secret, Version::Current))?;
        let known = made.id.is_some() && id(made.number) == made.id;
        Some(if known && made.number >= sequence {
            Reached::Since(self.at)
        } else {
            Reached::NotYet
        })
    }
}

/// How an input is called in the bookkeeping: the folded name, and `@previous` behind it if it is
/// the version before.
pub fn input_name(secret: &SecretName, version: Version) -> String {
    match version {
        Version::Current => secret.folded(),
        Version::Previous => format!("{}{PREVIOUS}", secret.folded()),
    }
}

/// Reads what [`input_name`] wrote.
pub fn read_input(input: &str) -> Option<(SecretName, Version)> {
    let (secret, version) = match input.strip_suffix(PREVIOUS) {
        Some(secret) => (secret, Version::Previous),
        None => (input, Version::Current),
    };
    Some((SecretName::parse(secret).ok()?, version))
}

const PREVIOUS: &str = "@previous";

/// The further of two: what has not reached somebody has not reached all.
pub fn both(one: Reached, other: Reached) -> Reached {
    match (one, other) {
        (Reached::Since(one), Reached::Since(other)) => Reached::Since(one.max(other)),
        _ => Reached::NotYet,
    }
}

/// What stands behind the name of an immutable Secret, from the keyed digest of its content.
pub fn content_hash(digest: ValueDigest) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in digest.as_bytes().iter().take(HASH_DIGITS / 2) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether this is what [`content_hash`] gives.
pub fn is_content_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::domain::vault::{envelope::IndexKey, name::VaultId};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn digest(text: &str) -> ValueDigest {
        let key = IndexKey::new(Zeroizing::new([1; 32]), &VaultId([2; 16]));
        key.digest("test", text.as_bytes())
    }

    fn secret() -> SecretName {
        SecretName::parse("Db-Password").unwrap()
    }

    fn made(number: u32) -> Made {
        Made {
            number,
            id: Some(VersionId([3; 16])),
        }
    }

    fn placed() -> Placed {
        Placed {
            digest: digest("value"),
            recipe: digest("recipe"),
            inputs: BTreeMap::from([
                ("db-password".to_owned(), made(3)),
                ("user".to_owned(), ABSENT),
            ]),
            at: at(100),
            changed: None,
        }
    }

    #[test]
    fn a_record_reads_back_and_is_always_written_alike() {
        let mut record = Record {
            vault: "payments".to_owned(),
            target: "payments-env".to_owned(),
            merge: false,
            labels: Vec::new(),
            annotations: Vec::new(),
            entries: BTreeMap::from([("DB_PASSWORD".to_owned(), placed())]),
        };
        let text = record.render();
        assert!(!text.contains("merge") && !text.contains("changed"));
        assert_eq!(Record::parse(&text).unwrap(), record);
        record.merge = true;
        record.labels = vec!["team".to_owned()];
        record.annotations = vec!["note".to_owned()];
        record.entries.get_mut("DB_PASSWORD").unwrap().changed = Some(at(7));
        let again = Record::parse(&record.render()).unwrap();
        assert_eq!((again.render(), again), (record.render(), record));
        for damaged in ["", "{}", &text.replace("inputs", "input")] {
            assert!(Record::parse(damaged).is_err());
        }
    }

    #[test]
    fn what_stands_there_is_current_until_recipe_value_or_any_input_is_another() {
        let numbers = |name: &str| {
            if name == "db-password" {
                made(3)
            } else {
                ABSENT
            }
        };
        let (recipe, live) = (digest("recipe"), Some(digest("value")));
        assert!(placed().is_current(recipe, live, numbers));
        assert!(!placed().is_current(digest("another"), live, numbers));
        assert!(!placed().is_current(recipe, Some(digest("another")), numbers));
        assert!(!placed().is_current(recipe, None, numbers));
        for number in [
            ABSENT,
            made(2),
            made(4),
            Made {
                id: Some(VersionId([9; 16])),
                ..made(3)
            },
        ] {
            let other = |name: &str| {
                if name == "db-password" {
                    number
                } else {
                    ABSENT
                }
            };
            assert!(!placed().is_current(recipe, live, other));
        }
        // An input that was not there has appeared.
        assert!(!placed().is_current(recipe, live, |_| made(3)));
    }

    #[test]
    fn a_value_has_reached_who_has_it_or_a_later_one() {
        let known = |number| (number == 3).then_some(VersionId([3; 16]));
        let reached = |sequence| placed().reached(&secret(), sequence, known);
        assert_eq!(reached(2), Some(Reached::Since(at(100))));
        assert_eq!(reached(3), Some(Reached::Since(at(100))));
        assert_eq!(reached(4), Some(Reached::NotYet));
        // What has been purged since, and whose number another has or none, is no later one.
        let anew = |id| placed().reached(&secret(), 1, |_| id);
        assert_eq!(anew(Some(VersionId([4; 16]))), Some(Reached::NotYet));
        assert_eq!(anew(None), Some(Reached::NotYet));
        // Whoever reads the version before, or another secret, says nothing of it.
        let mut other = placed();
        other.inputs = BTreeMap::from([("db-password@previous".to_owned(), made(9))]);
        assert_eq!(other.reached(&secret(), 1, known), None);
        assert_eq!(
            input_name(&secret(), Version::Previous),
            "db-password@previous"
        );
        for version in [Version::Current, Version::Previous] {
            let name = input_name(&secret(), version);
            assert_eq!(read_input(&name), Some((secret(), version)));
        }
        assert_eq!(read_input("@previous"), None);
        assert_eq!(input_name(&secret(), Version::Current), "db-password");
    }

    #[test]
    fn what_has_not_reached_one_has_not_reached_all() {
        let (early, late) = (Reached::Since(at(1)), Reached::Since(at(2)));
        for (one, other, all) in [
            (early, late, late),
            (late, early, late),
            (early, Reached::NotYet, Reached::NotYet),
            (Reached::NotYet, late, Reached::NotYet),
            (Reached::NotYet, Reached::NotYet, Reached::NotYet),
        ] {
            assert_eq!(both(one, other), all);
        }
    }

    #[test]
    fn a_content_hash_is_ten_lower_case_digits_and_nothing_else_is_taken_for_one() {
        let hash = content_hash(digest("content"));
        assert_eq!(hash.len(), HASH_DIGITS);
        assert!(is_content_hash(&hash));
        assert_eq!(hash, content_hash(digest("content")));
        assert_ne!(hash, content_hash(digest("other")));
        for text in [
            "",
            "012345678",
            "0123456789a",
            "01234 6789",
            "0123456789A",
            "012345678G",
            "abcdefabcg",
            "ABCDEFABCD",
        ] {
            assert!(!is_content_hash(text), "{text}");
        }
    }
}
