//! The bookkeeping that travels with the values: one annotation on the object that holds them,
//! written by the same request. What is true of a key (which generation it is, since when, until
//! when its predecessors live, which triggers were acted on) is read from here and nowhere else;
//! `status` is only a report of it.
//!
//! The ledger never holds a value, only a truncated digest by which it recognises one: when the
//! digest does not match what stands in the object, somebody else wrote it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use snafu::{ResultExt, Snafu};

use crate::domain::key::Digest;

/// The resource on whose behalf an entry exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// Its name, for people.
    pub name: String,
    /// Its Kubernetes UID: names are re-used, UIDs are not.
    pub uid: String,
}

/// What becomes of an entry when its resource is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// The value is removed and so stops working.
    #[default]
    Delete,
    /// The value stays where it is, no longer managed.
    Retain,
}

/// Where the current value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// It was there before, or somebody renewed it and we took it over.
    Adopted,
    /// Claviger made it.
    Minted,
    /// It follows a Secret of the user's.
    Supplied,
}

/// How far the triggers of a resource have been acted on. A trigger acts only when it is greater
/// than its mark, so a reverted commit does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Marks {
    /// `spec.rotation.generation`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: i64,
    /// `spec.rotation.revokeGeneration`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revoke_generation: i64,
    /// Annotation `claviger.dev/rotate-at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate_at: Option<Timestamp>,
    /// Annotation `claviger.dev/revoke-at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke_at: Option<Timestamp>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes a reference"
)]
fn is_zero(mark: &i64) -> bool {
    *mark == 0
}

/// A value that is no longer current but still valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its generation; part of the name of the entry it stands under.
    pub generation: u32,
    /// What it looks like.
    pub digest: Digest,
    /// From when it might be handed to clients: every host has surely seen it.
    #[serde(default)]
    pub shown: Timestamp,
    /// From when its overlap counts: a successor has reached every client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it stops being valid; absent until its overlap counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retires: Option<Timestamp>,
}

/// Everything known of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The resource it belongs to; absent for a master key that no resource declares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The deleted resource after which a master key stays because other keys need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_after: Option<String>,
    /// When the resource was created: a definition that is younger has taken it along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Timestamp>,
    /// Counts the values this entry has had, from 1.
    pub generation: u32,
    /// The current value.
    pub digest: Digest,
    /// Where the current value came from.
    pub origin: Origin,
    /// Since when the current value is published.
    pub minted: Timestamp,
    /// From when the current value may be handed to clients: every host has surely seen it.
    pub shown: Timestamp,
    /// When the current value had reached every client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distributed: Option<Timestamp>,
    /// When a value of this entry was last revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// Values that were revoked, newest last: whoever brings one back, it is not taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Digest>,
    /// Triggers acted on.
    #[serde(default)]
    pub marks: Marks,
    /// What a deletion of the resource does, as last declared.
    #[serde(default)]
    pub deletion: DeletionPolicy,
    /// Values still valid, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Previous>,
}

/// The bookkeeping of one key store, by data key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger {
    /// One record per entry of ours.
    pub entries: BTreeMap<String, Record>,
}

/// One key handed to a client's Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// The `FunctionKey` that put it there.
    pub owner: Owner,
    /// Which generation of that key it is.
    pub generation: u32,
    /// The value.
    pub digest: Digest,
    /// When the resource was created: a definition that is younger has taken it along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Timestamp>,
    /// When this generation was written here.
    pub at: Timestamp,
    /// When the value last changed under clients that had an earlier one: they are to be restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// What a deletion of the resource does, as last declared.
    #[serde(default)]
    pub deletion: DeletionPolicy,
}

/// The bookkeeping of one client's Secret, by data key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Copies {
    /// One record per copy of ours.
    pub entries: BTreeMap<String, Copy>,
}

/// The annotation does not hold a ledger of ours.
#[derive(Debug, Snafu)]
#[snafu(display("the bookkeeping annotation is not readable"))]
pub struct Unreadable {
    source: serde_json::Error,
}

impl Ledger {
    /// Reads the annotation's text.
    ///
    /// # Errors
    /// [`Unreadable`] when somebody changed it into something that is not a ledger.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        serde_json::from_str(text).context(UnreadableSnafu)
    }

    /// The annotation's text; the same ledger always gives the same text.
    pub fn render(&self) -> String {
        serde_json::to_string(self).expect("a map of plain records with string keys is always JSON")
    }
}

impl Copies {
    /// Reads the annotation's text.
    ///
    /// # Errors
    /// [`Unreadable`] when somebody changed it into something that is not a list of copies.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        serde_json::from_str(text).context(UnreadableSnafu)
    }

    /// The annotation's text; the same list always gives the same text.
    pub fn render(&self) -> String {
        serde_json::to_string(self).expect("a map of plain records with string keys is always JSON")
    }
}
