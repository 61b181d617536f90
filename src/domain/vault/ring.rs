//! The key ring of one vault: its document, and when it turns.
//!
//! The newest version wraps the data keys of new entries. When the ring turns, data keys under
//! earlier versions are re-wrapped in the background; an earlier version is destroyed when nothing
//! is under it any more. The document stands in the key-ring Secret under a MAC of the vault's index
//! key, which is wrapped by the root key and never changes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, de};
use snafu::{ResultExt, Snafu};

use crate::domain::{
    ledger::Marks,
    rotation::{Policy, Triggers, Turn, add},
    vault::{
        name::{VaultId, VaultRef},
        wrapped::Wrapped,
    },
};

/// The version of the document's format.
pub const FORMAT: u8 = 1;

/// A recorded time this far ahead of the clock means that the clock was wrong when it was recorded.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(2);

/// A version of the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingVersion {
    /// Its number, from 1.
    pub version: u32,
    /// Since when it wraps.
    pub created: Timestamp,
    /// Since when it no longer wraps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Timestamp>,
    /// Its key.
    pub key: Wrapped,
}

/// The document of a key ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RingDocument {
    /// [`FORMAT`].
    pub format: u8,
    /// The vault's id.
    pub vault_id: VaultId,
    /// The vault's namespace.
    pub namespace: String,
    /// The vault's name.
    pub name: String,
    /// The key of document MACs and digests.
    pub index_key: Wrapped,
    /// The versions that are not destroyed, oldest first; none after the vault was shredded.
    pub versions: Vec<RingVersion>,
    /// The highest number that was ever used.
    pub last: u32,
    /// Numbers that were destroyed on purpose while entries were under them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub shredded: BTreeSet<u32>,
    /// Whether the whole vault was shredded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vault_shredded: bool,
    /// Whether purge protection was ever on: it stays on, whatever a later manifest of that name says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub purge_protection: bool,
    /// How far the triggers were acted on.
    #[serde(default)]
    pub marks: Marks,
}

/// The bytes are not the document of a key ring.
#[derive(Debug, Snafu)]
#[snafu(display("the document of the key ring is not readable"))]
pub struct Unreadable {
    source: serde_json::Error,
}

impl RingDocument {
    /// Reads the document's bytes.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let document: Self = serde_json::from_slice(bytes).context(UnreadableSnafu)?;
        if document.format == FORMAT {
            Ok(document)
        } else {
            Err(de::Error::custom("another format")).context(UnreadableSnafu)
        }
    }

    /// The bytes that go under the MAC.
    pub fn render(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a document has string keys only")
    }

    /// What its ciphertexts are bound to.
    pub fn vault(&self) -> VaultRef {
        VaultRef {
            id: self.vault_id,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// Whether nothing may be destroyed before its time: the manifest says so, or one before it did.
    pub fn is_protected(&self, wish: &Wish) -> bool {
        self.purge_protection || wish.purge_protection
    }

    /// The version that wraps.
    pub fn newest(&self) -> Option<&RingVersion> {
        self.versions.last()
    }
}

/// What a vault's manifest says of its ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// From one turn to the next; absent: only when asked to.
    pub interval: Option<SignedDuration>,
    /// What turns it out of turn.
    pub triggers: Triggers,
    /// Versions to destroy whatever is under them.
    pub shred: BTreeSet<u32>,
    /// Whether to destroy all of them.
    pub shred_vault: bool,
    /// Whether nothing may be destroyed before its time.
    pub purge_protection: bool,
}

/// What is to be done to a ring, all in one write.
#[expect(clippy::struct_excessive_bools, reason = "each is asked for by itself")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turning {
    /// A new version is made; it wraps from then on.
    pub add: bool,
    /// The keys are to be wrapped by another root key.
    pub rewrap: bool,
    /// Versions to be destroyed whatever is under them.
    pub shred: BTreeSet<u32>,
    /// Everything is to be destroyed.
    pub shred_vault: bool,
    /// Purge protection is to be recorded.
    pub protect: bool,
    /// The marks to record.
    pub marks: Marks,
}

impl Turning {
    /// Whether there is anything to write.
    pub fn is_needed(&self, document: &RingDocument) -> bool {
        self.add
            || self.rewrap
            || self.shred_vault
            || self.protect
            || !self.shred.is_empty()
            || self.marks != document.marks
    }

    /// Only what destroys all of the ring, or certain versions of it: that waits for nobody.
    #[must_use]
    pub fn destroying(self, document: &RingDocument) -> Self {
        let newest = document.newest().map(|newest| newest.version);
        Self {
            add: newest.is_some_and(|newest| self.shred.contains(&newest)),
            rewrap: false,
            marks: document.marks.clone(),
            ..self
        }
    }
}

/// When a ring turns by its interval.
pub fn due(document: &RingDocument, wish: &Wish) -> Option<Timestamp> {
    let policy = Policy {
        interval: wish.interval,
        overlap: SignedDuration::ZERO,
    };
    policy.due(document.newest()?.created, &document.vault_id.to_string())
}

/// What is to be done to a ring now.
pub fn turning(document: &RingDocument, wish: &Wish, root: &str, now: Timestamp) -> Turning {
    let protected = document.is_protected(wish);
    if document.vault_shredded || (wish.shred_vault && !protected) {
        return Turning {
            shred_vault: !document.vault_shredded,
            marks: document.marks.clone(),
            ..Turning::default()
        };
    }
    let shred: BTreeSet<u32> = document
        .versions
        .iter()
        .map(|version| version.version)
        .filter(|version| wish.shred.contains(version) && !protected)
        .collect();
    let newest = document.newest();
    let other_root = newest.is_some_and(|newest| newest.key.root != root);
    let turn = wish
        .triggers
        .turn(&document.marks, due(document, wish), now);
    // It would not be due for as long as the clock was ahead, which may be years.
    let ahead = wish.interval.is_some()
        && newest.is_some_and(|newest| newest.created > add(now, CLOCK_TOLERANCE));
    Turning {
        add: newest.is_none_or(|newest| shred.contains(&newest.version))
            || other_root
            || ahead
            || turn != Turn::Wait,
        rewrap: document.index_key.root != root
            || document
                .versions
                .iter()
                .any(|version| version.key.root != root),
        shred,
        shred_vault: false,
        protect: wish.purge_protection && !document.purge_protection,
        marks: wish.triggers.handled(&document.marks, now),
    }
}

/// Versions that no longer wrap and under which nothing is, as far as the caches tell: they may be
/// destroyed once a full check has found the same. Writers that have not heard of the turn yet have
/// the time of `grace` to finish. The second answer is when to ask again.
pub fn idle(
    document: &RingDocument,
    in_use: &BTreeMap<u32, usize>,
    grace: SignedDuration,
    now: Timestamp,
) -> (Vec<u32>, Option<Timestamp>) {
    let newest = document.newest().map(|newest| newest.version);
    let mut ripe = Vec::new();
    let mut next: Option<Timestamp> = None;
    for version in &document.versions {
        if Some(version.version) == newest || in_use.get(&version.version).is_some_and(|n| *n > 0) {
            continue;
        }
        let at = add(version.retired.unwrap_or(version.created), grace);
        if at <= now {
            ripe.push(version.version);
        } else {
            next = Some(next.map_or(at, |next| next.min(at)));
        }
    }
    (ripe, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::vault::wrapped::Base64;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn wrapped(root: &str) -> Wrapped {
        Wrapped {
            root: root.to_owned(),
            sealed: Base64(vec![1, 2, 3]),
            kms: None,
        }
    }

    fn document(numbers: &[u32]) -> RingDocument {
        RingDocument {
            format: FORMAT,
            vault_id: VaultId([7; 16]),
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
            index_key: wrapped("r"),
            versions: numbers
                .iter()
                .map(|&version| RingVersion {
                    version,
                    created: at(i64::from(version) * 1000),
                    retired: (Some(&version) != numbers.last())
                        .then(|| at(i64::from(version) * 1000 + 1000)),
                    key: wrapped("r"),
                })
                .collect(),
            last: numbers.last().copied().unwrap_or_default(),
            shredded: BTreeSet::new(),
            vault_shredded: false,
            purge_protection: false,
            marks: Marks::default(),
        }
    }

    #[test]
    fn the_document_reads_back_and_other_formats_are_refused() {
        let document = document(&[1, 2]);
        let bytes = document.render();
        assert_eq!(RingDocument::parse(&bytes).unwrap(), document);
        let later = String::from_utf8(bytes)
            .unwrap()
            .replace("\"format\":1", "\"format\":2");
        assert!(RingDocument::parse(later.as_bytes()).is_err());
        assert!(RingDocument::parse(b"{}").is_err());
    }

    #[test]
    fn turns_by_interval_generation_annotation_and_root_key_and_not_otherwise() {
        let document = document(&[1, 2]);
        let still = turning(&document, &Wish::default(), "r", at(9_000_000));
        assert!(!still.is_needed(&document), "{still:?}");

        let by_interval = Wish {
            interval: Some(HOUR),
            ..Wish::default()
        };
        assert!(!turning(&document, &by_interval, "r", at(2000 + 3200)).add);
        assert!(turning(&document, &by_interval, "r", at(2000 + 3600)).add);

        let mut by_generation = Wish::default();
        by_generation.triggers.generation = 1;
        let turned = turning(&document, &by_generation, "r", at(3000));
        assert!(turned.add && !turned.rewrap);
        let mut handled = document.clone();
        handled.marks = turned.marks;
        assert!(!turning(&handled, &by_generation, "r", at(3000)).add);

        // The newest was made while the clock was ahead.
        assert!(!turning(&document, &by_interval, "r", at(1900)).add);
        assert!(turning(&document, &by_interval, "r", at(1879)).add);
        assert!(!turning(&document, &Wish::default(), "r", at(1)).add);

        let by_root = turning(&document, &Wish::default(), "other", at(3000));
        assert!(by_root.add && by_root.rewrap);
    }

    #[test]
    fn shredding_the_newest_version_makes_another_and_shredding_the_vault_makes_none() {
        let document = document(&[1, 2]);
        let wish = Wish {
            shred: BTreeSet::from([2, 9]),
            ..Wish::default()
        };
        let turned = turning(&document, &wish, "r", at(3000));
        assert_eq!(turned.shred, BTreeSet::from([2]));
        assert!(turned.add);
        let older = Wish {
            shred: BTreeSet::from([1]),
            ..Wish::default()
        };
        assert!(!turning(&document, &older, "r", at(3000)).add);
        let all = Wish {
            shred_vault: true,
            ..Wish::default()
        };
        let turned = turning(&document, &all, "other", at(3000));
        assert!(turned.shred_vault && !turned.add && !turned.rewrap);
        let mut gone = document;
        gone.versions.clear();
        gone.vault_shredded = true;
        assert!(!turning(&gone, &Wish::default(), "other", at(3000)).is_needed(&gone));
    }

    #[test]
    fn protection_is_recorded_and_outlives_the_manifest_that_asked_for_it() {
        let mut document = document(&[1, 2]);
        let mut wish = Wish {
            purge_protection: true,
            ..Wish::default()
        };
        let first = turning(&document, &wish, "r", at(3000));
        assert!(first.protect && first.is_needed(&document));
        document.purge_protection = true;
        assert!(!turning(&document, &wish, "r", at(3000)).is_needed(&document));
        for purge_protection in [true, false] {
            wish = Wish {
                shred: [1, 2].into(),
                shred_vault: true,
                purge_protection,
                ..Wish::default()
            };
            let turning = turning(&document, &wish, "r", at(3000));
            assert!(!turning.is_needed(&document), "{turning:?}");
        }
    }

    #[test]
    fn destruction_waits_for_nothing_and_brings_nothing_else_about() {
        let document = document(&[1, 2]);
        let wish = Wish {
            shred: [2].into(),
            triggers: Triggers {
                generation: 7,
                ..Triggers::default()
            },
            ..Wish::default()
        };
        let all = turning(&document, &wish, "other", at(3000));
        let only = all.destroying(&document);
        assert_eq!(only.shred, wish.shred);
        assert!(only.add && !only.rewrap, "the newest is replaced");
        assert_eq!(only.marks, document.marks);
        let nothing = turning(&document, &Wish::default(), "other", at(3000));
        assert!(nothing.add && nothing.rewrap);
        assert!(!nothing.destroying(&document).is_needed(&document));
    }

    #[test]
    fn a_moment_that_is_still_to_come_waits_and_one_that_was_acted_on_does_not_come_back() {
        let mut document = document(&[1]);
        let mut wish = Wish::default();
        wish.triggers.rotate_at = Some(at(5000));
        let waiting = turning(&document, &wish, "r", at(4999));
        assert!(!waiting.is_needed(&document), "{waiting:?}");
        let turned = turning(&document, &wish, "r", at(5000));
        assert!(turned.add);
        document.marks = turned.marks;
        assert!(!turning(&document, &wish, "r", at(9000)).is_needed(&document));
        wish.triggers.rotate_at = Some(at(4000));
        assert!(!turning(&document, &wish, "r", at(9000)).is_needed(&document));
    }

    #[test]
    fn marks_alone_are_worth_a_write_so_that_a_reverted_commit_does_nothing() {
        let mut document = document(&[1]);
        document.marks.generation = 3;
        let mut wish = Wish::default();
        wish.triggers.generation = 2;
        assert!(!turning(&document, &wish, "r", at(9000)).is_needed(&document));
        wish.triggers.revoke_generation = 1;
        let turned = turning(&document, &wish, "r", at(9000));
        assert!(turned.is_needed(&document));
        assert_eq!(turned.marks.generation, 3);
    }

    #[test]
    fn a_root_key_that_some_versions_are_not_under_is_put_over_all_of_them_at_once() {
        let mut document = document(&[1, 2]);
        document.versions[0].key = wrapped("earlier");
        let turned = turning(&document, &Wish::default(), "r", at(9000));
        assert!(turned.rewrap && !turned.add);
        document.versions[0].key = wrapped("r");
        document.index_key = wrapped("earlier");
        let turned = turning(&document, &Wish::default(), "r", at(9000));
        assert!(turned.rewrap && !turned.add);
    }

    #[test]
    fn a_ring_whose_versions_are_all_shredded_gets_a_new_one() {
        let document = document(&[1, 2]);
        let wish = Wish {
            shred: BTreeSet::from([1, 2]),
            ..Wish::default()
        };
        let turned = turning(&document, &wish, "r", at(3000));
        assert!(turned.add);
        assert_eq!(turned.shred, BTreeSet::from([1, 2]));
        assert_eq!(due(&self::document(&[]), &wish), None);
        assert!(turning(&self::document(&[]), &wish, "r", at(3000)).add);
    }

    #[test]
    fn the_newest_version_is_never_idle_and_one_without_an_end_counts_from_its_beginning() {
        let mut document = document(&[1, 2]);
        document.versions[0].retired = None;
        let none = BTreeMap::new();
        let (ripe, next) = idle(&document, &none, HOUR, at(1000));
        assert_eq!((ripe, next), (vec![], Some(at(1000 + 3600))));
        let (ripe, next) = idle(&document, &none, HOUR, at(1_000_000));
        assert_eq!((ripe, next), (vec![1], None));
        assert_eq!(
            idle(&self::document(&[]), &none, HOUR, at(0)),
            (vec![], None)
        );
    }

    #[test]
    fn a_version_is_destroyed_only_when_nothing_is_under_it_and_writers_had_time() {
        let document = document(&[1, 2, 3]);
        let used = BTreeMap::from([(1, 5), (2, 0), (3, 9)]);
        assert_eq!(
            idle(&document, &used, HOUR, at(3000 + 3599)),
            (vec![], Some(at(3000 + 3600)))
        );
        assert_eq!(
            idle(&document, &used, HOUR, at(3000 + 3600)),
            (vec![2], None)
        );
        assert_eq!(
            idle(&document, &BTreeMap::new(), SignedDuration::ZERO, at(9000)).0,
            [1, 2]
        );
    }
}
