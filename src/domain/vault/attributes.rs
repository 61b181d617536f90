//! What is known of one entry of a secret's history, beside its payload.
//!
//! The text stands in an annotation of the entry's object, its exact bytes are under the MAC of the
//! envelope. So whoever can change annotations can break an entry, but cannot enable, rename, move
//! or reorder one.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use snafu::{ResultExt, Snafu};

use crate::domain::{
    ledger::Marks,
    vault::{
        envelope::ValueDigest,
        name::{SecretName, VersionId},
    },
};

/// The longest text of attributes that is read.
pub const LONGEST: usize = 64 * 1024;

/// What an entry says of its secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// There is a new value.
    #[default]
    Value,
    /// The secret was deleted; it can be recovered until it is purged.
    Deleted,
    /// The secret is being purged: everything of it goes, this entry last.
    Purging,
    /// A deletion was taken back: the value before it is current again.
    Recovered,
}

/// The bookkeeping of a value that Claviger looks after because the vault's manifest declares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Managed {
    /// Counts the values that the declared secret has had, from 1.
    pub generation: u32,
    /// How far the triggers were acted on when the value was made.
    #[serde(default)]
    pub marks: Marks,
    /// The overlap promised to the value before, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overlap: i64,
    /// Whether the values before were revoked by this one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub revoked: bool,
    /// The value of the source that it follows, by its keyed digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ValueDigest>,
    /// Where it was imported from: the Secret and its entry, as `name/key`. It is handed out only
    /// while the manifest imports it from there, because whoever writes the manifest had to show that
    /// they may read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

impl Managed {
    /// The overlap promised to the value before.
    pub fn overlap(&self) -> SignedDuration {
        SignedDuration::from_secs(self.overlap)
    }
}

/// What is known of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attributes {
    /// The secret's name, as first spelled.
    pub name: SecretName,
    /// Key Vault's id of the version.
    pub id: VersionId,
    /// What the entry says.
    #[serde(default, skip_serializing_if = "is_value")]
    pub kind: Kind,
    /// Whether the value may be handed out.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Before this it may not be handed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// From then on it is of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// When the entry was made.
    pub created: Timestamp,
    /// When its attributes were last changed.
    pub updated: Timestamp,
    /// Counts changes of these attributes: earlier ones are never taken back.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub revision: u32,
    /// What the value is, in its maker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Its maker's notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Set while the manifest declares the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<Managed>,
    /// Of a deletion: when the secret is purged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_at: Option<Timestamp>,
}

/// Authentic text that is not attributes: it was written by a later version of Claviger.
#[derive(Debug, Snafu)]
#[snafu(display("the attributes were written by a later version of Claviger, or are damaged"))]
pub struct Unknown {
    source: serde_json::Error,
}

impl Attributes {
    /// Reads what [`Self::render`] wrote.
    ///
    /// # Errors
    /// [`Unknown`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Unknown> {
        serde_json::from_str(text).context(UnknownSnafu)
    }

    /// The text that goes under the MAC.
    pub fn render(&self) -> String {
        serde_json::to_string(self).expect("attributes have string keys only")
    }
}

fn yes() -> bool {
    true
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_true(flag: &bool) -> bool {
    *flag
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(seconds: &i64) -> bool {
    *seconds == 0
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_none_yet(revision: &u32) -> bool {
    *revision == 0
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_value(kind: &Kind) -> bool {
    *kind == Kind::Value
}
