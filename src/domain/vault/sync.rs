//! What a synced Secret holds, and from where: the bookkeeping that stands beside its values and is
//! written with them, so that a restart needs to open nothing to know that all is as it should be.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use snafu::{ResultExt, Snafu};

use crate::domain::vault::{
    envelope::ValueDigest, name::SecretName, plan::Reached, template::Version,
};

/// Hexadecimal digits of a content hash in the name of an immutable Secret.
const HASH_DIGITS: usize = 10;

/// The number of an input that does not exist.
pub const ABSENT: u32 = 0;

/// One entry of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The value, by its keyed digest.
    pub digest: ValueDigest,
    /// How it is made, by its keyed digest.
    pub recipe: ValueDigest,
    /// What it was made from: the numbers of the entries, by [`input_name`].
    pub inputs: BTreeMap<String, u32>,
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
        number: impl Fn(&str) -> u32,
    ) -> bool {
        self.recipe == recipe
            && live == Some(self.digest)
            && self
                .inputs
                .iter()
                .all(|(input, made)| number(input) == *made)
    }

    /// How far a value of a secret has got here.
    pub fn reached(&self, secret: &SecretName, sequence: u32) -> Option<Reached> {
        let made = *self.inputs.get(&input_name(secret, Version::Current))?;
        Some(if made >= sequence {
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
        Version::Previous => format!("{}@previous", secret.folded()),
    }
}

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
