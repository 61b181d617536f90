//! The life of Claviger's own CA: which versions there should be, which of them signs, and which
//! names it signs for. Pure: what is made and written, and when it is, is for others to do.
//!
//! A version is published some time before it signs ([`Policy::lead`]), so that whoever reads the
//! published roots now and then has read it by then; and it stays published until the last leaf that
//! it may have signed has expired, on the slowest clock. So at no moment does anybody meet a leaf
//! whose CA they have not been shown.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

/// With so many versions no other is made for other names.
const MOST: usize = 8;

/// How the CA lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a version's certificate is valid from its making.
    pub lifetime: SignedDuration,
    /// How long a version is published before it signs.
    pub lead: SignedDuration,
    /// The longest that a leaf lives.
    pub leaf: SignedDuration,
    /// How far the clocks of those who sign and those who verify may be from ours.
    pub skew: SignedDuration,
    /// The domains that the CA may sign for, and below which; nothing else.
    pub names: BTreeSet<String>,
}

impl Policy {
    /// Whether its times leave room for one another: a version must sign longer than it is merely
    /// published, before and after.
    pub fn is_possible(&self) -> bool {
        self.leaf.is_positive()
            && self.skew >= SignedDuration::ZERO
            && self.lead >= SignedDuration::ZERO
            && self.lifetime / 2 > self.lead + self.tail()
    }

    /// How long a version stays published after another has taken over: whoever signs may be late by
    /// the skew, whoever verifies too.
    fn tail(&self) -> SignedDuration {
        self.leaf + self.skew * 2
    }
}

/// One version of the CA, as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Counts up from 1; never used again.
    pub number: u64,
    /// From when its certificate is valid.
    pub not_before: Timestamp,
    /// Until when its certificate is valid.
    pub not_after: Timestamp,
    /// From when it signs.
    pub signs_from: Timestamp,
    /// The domains that it may sign for, and below which.
    pub names: BTreeSet<String>,
}

impl Version {
    /// Whether a certificate of this version holds for a name.
    pub fn permits(&self, name: &str) -> bool {
        self.names.iter().any(|domain| is_within(name, domain))
    }
}

/// Whether a name is a domain or stands below it.
pub fn is_within(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// What should be done about the versions that there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// A version to make, and to publish at once.
    pub make: Option<Version>,
    /// Numbers of versions that are not needed any more.
    pub drop: Vec<u64>,
    /// When to look again at the latest.
    pub next_look: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to be done now.
    pub fn is_idle(&self) -> bool {
        self.make.is_none() && self.drop.is_empty()
    }
}

/// Decides what should be done about the versions, of which the numbers count up.
pub fn plan(versions: &[Version], policy: &Policy, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut looks = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        match needed_until(version, &versions[index + 1..], policy) {
            until if until <= now => plan.drop.push(version.number),
            until => looks.push(until),
        }
    }
    let left = || {
        versions
            .iter()
            .filter(|version| !plan.drop.contains(&version.number))
    };
    let newest = left().next_back();
    // A clock that was put back leaves versions of the future, which nobody believes.
    let believed = left().any(|version| version.not_before <= now + policy.skew);
    let turns = newest.map(|newest| {
        // Other names cannot wait; unless they change to and fro, as when two installs with different
        // domains share a namespace by mistake.
        let fits = newest.names == policy.names && believed;
        if fits || left().count() >= MOST {
            turns_at(newest, policy)
        } else {
            now
        }
    });
    match turns {
        Some(at) if at > now => looks.push(at),
        _ => {
            let number = versions.last().map_or(0, |version| version.number) + 1;
            let before = newest.filter(|_| believed);
            let made = next(number, before, policy, now);
            looks.push(turns_at(&made, policy));
            plan.make = Some(made);
        }
    }
    plan.next_look = looks.into_iter().min();
    plan
}

/// Which version signs for a name: the newest that has been published long enough. A name for which
/// no such version may sign is nobody's habit yet: for it the newest that may, signs at once.
pub fn signer<'a>(
    versions: impl Iterator<Item = &'a Version>,
    name: &str,
    now: Timestamp,
) -> Option<&'a Version> {
    versions
        .filter(|version| version.not_after > now && version.permits(name))
        .max_by_key(|version| (version.signs_from <= now, version.number))
}

/// When a leaf that is signed now begins and ends. It begins a little earlier than now, for clocks that
/// are slow, and ends no later than its CA.
pub fn leaf_validity(
    version: &Version,
    lifetime: SignedDuration,
    skew: SignedDuration,
    now: Timestamp,
) -> (Timestamp, Timestamp) {
    (
        (now - skew).max(version.not_before),
        (now + lifetime).min(version.not_after),
    )
}

/// When a leaf is made anew: with a third of its life left, so that an outage of hours goes unnoticed.
pub fn leaf_renewal(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    not_after - not_after.duration_since(not_before) / 3
}

/// Until when a version is published: the last leaf that it may have signed has expired by then.
fn needed_until(version: &Version, newer: &[Version], policy: &Policy) -> Timestamp {
    newer
        .iter()
        // One that may not sign for all of its names takes its place for the others only.
        .filter(|newer| version.names.is_subset(&newer.names))
        .map(|newer| newer.signs_from.max(version.signs_from) + policy.tail())
        .fold(version.not_after + policy.skew, Timestamp::min)
}

/// When the one after this version is made: so early that it is published long enough before this
/// one can no longer sign a leaf of full length.
fn turns_at(version: &Version, policy: &Policy) -> Timestamp {
    version.not_after - policy.tail() - policy.lead
}

fn next(number: u64, before: Option<&Version>, policy: &Policy, now: Timestamp) -> Version {
    let signs_from = before.map_or(now, |before| {
        // An operator that was away leaves less time than there should be; what there is, is used.
        let last_moment = before.not_after - policy.tail();
        (now + policy.lead).min(last_moment).max(now)
    });
    Version {
        number,
        not_before: now - policy.skew,
        not_after: now + policy.lifetime,
        signs_from,
        names: policy.names.clone(),
    }
}

#[cfg(test)]
mod tests;
