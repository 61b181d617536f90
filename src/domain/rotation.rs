//! When a key turns: a pure function of its policy, its record and the time.

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::domain::ledger::{Marks, Record};

/// The most values that may be valid beside the current one. With the current value that makes
/// four; a turn that would add one more waits (unless it is a revocation).
pub const MAX_PREVIOUS: usize = 3;

/// Overlap of a key whose manifest names none; at most half the interval.
pub const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// A jitter makes a turn earlier by at most this part of the interval.
const JITTER_PART: i32 = 10;

/// A recorded time this far ahead of the clock means that the clock was wrong when it was
/// recorded, or is now; less is the ordinary difference between two machines.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(2);

/// How much longer than promised a value may live because the clock was ahead when its overlap
/// began. Not less, because it may as well be that the clock is behind for a moment (a machine
/// that slept), and an end that was moved forward then would break the promise.
const OVERSTAY_TOLERANCE: SignedDuration = SignedDuration::from_hours(24);

/// How a key turns, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From publication to the next turn; absent: only when asked to.
    pub interval: Option<SignedDuration>,
    /// How long the previous value stays valid once its successor has reached every client.
    pub overlap: SignedDuration,
}

impl Policy {
    /// The policy of a manifest, with what it leaves out filled in.
    pub fn effective(interval: Option<SignedDuration>, overlap: Option<SignedDuration>) -> Self {
        let overlap = overlap.unwrap_or_else(|| {
            interval.map_or(DEFAULT_OVERLAP, |interval| {
                DEFAULT_OVERLAP.min(interval / 2)
            })
        });
        Self { interval, overlap }
    }

    /// When a value published at `minted` is due to turn: the interval, less a jitter that is the
    /// same for the same resource at every look, at most a tenth of the interval and never so
    /// much that the next turn would fall into the overlap.
    pub fn due(&self, minted: Timestamp, uid: &str) -> Option<Timestamp> {
        let interval = self.interval?;
        let most = (interval / JITTER_PART)
            .min(interval - self.overlap)
            .max(SignedDuration::ZERO);
        let jitter = SignedDuration::from_millis_i128(
            most.as_millis() * i128::from(spread(uid)) / (1_i128 << 32),
        );
        Some(add(minted, interval - jitter))
    }
}

/// A number in `0..2^32` that depends on the UID only and is spread evenly over UIDs.
fn spread(uid: &str) -> u32 {
    let hash = Sha256::digest(uid.as_bytes());
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// What a resource asks for beside its schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    /// `spec.rotation.generation`: raised = turn now.
    pub generation: i64,
    /// `spec.rotation.revokeGeneration`: raised = turn now, without overlap.
    pub revoke_generation: i64,
    /// Annotation `claviger.dev/rotate-at`.
    pub rotate_at: Option<Timestamp>,
    /// Annotation `claviger.dev/revoke-at`.
    pub revoke_at: Option<Timestamp>,
}

/// What the triggers and the schedule say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Turn, keeping the previous value for the overlap.
    Rotate,
    /// Turn, keeping nothing.
    Revoke,
    /// Nothing yet.
    Wait,
}

impl Triggers {
    /// The marks of a resource that is seen for the first time at `now`: nothing that it says of
    /// the past counts as asked. A moment still to come does, and must not become a mark: any
    /// earlier one that is asked for meanwhile would be taken for done.
    pub fn baseline(&self, now: Timestamp) -> Marks {
        self.handled(
            &Marks {
                generation: self.generation,
                revoke_generation: self.revoke_generation,
                ..Marks::default()
            },
            now,
        )
    }

    /// The marks once everything that is due at `now` has been acted on. Marks never go back.
    pub fn handled(&self, marks: &Marks, now: Timestamp) -> Marks {
        let due = |at: Option<Timestamp>, mark: Option<Timestamp>| match at {
            Some(at) if at <= now => Some(at).max(mark),
            _ => mark,
        };
        Marks {
            generation: self.generation.max(marks.generation),
            revoke_generation: self.revoke_generation.max(marks.revoke_generation),
            rotate_at: due(self.rotate_at, marks.rotate_at),
            revoke_at: due(self.revoke_at, marks.revoke_at),
        }
    }

    /// Which turn is called for at `now`; a revocation goes before a rotation.
    pub fn turn(&self, marks: &Marks, due: Option<Timestamp>, now: Timestamp) -> Turn {
        let (rotate_at, revoke_at) = self.ahead(marks);
        if self.revoke_generation > marks.revoke_generation || revoke_at.is_some_and(|at| at <= now)
        {
            return Turn::Revoke;
        }
        if self.generation > marks.generation
            || [rotate_at, due].into_iter().flatten().any(|at| at <= now)
        {
            return Turn::Rotate;
        }
        Turn::Wait
    }

    /// The moments of `rotate_at` and `revoke_at` that were not acted on yet.
    pub fn ahead(&self, marks: &Marks) -> (Option<Timestamp>, Option<Timestamp>) {
        let ahead = |at: Option<Timestamp>, mark: Option<Timestamp>| {
            at.filter(|at| mark.is_none_or(|mark| *at > mark))
        };
        (
            ahead(self.rotate_at, marks.rotate_at),
            ahead(self.revoke_at, marks.revoke_at),
        )
    }
}

/// Takes back times that lie ahead of the clock although they record something that has happened:
/// the clock was ahead when they were written. The key counts as published now, and predecessors
/// get the whole of what they were promised from now on, never less.
pub fn rebase(record: &mut Record, now: Timestamp) {
    let horizon = add(now, CLOCK_TOLERANCE);
    if record.minted > horizon {
        // What was still to come then is as far ahead now.
        let minted = record.minted;
        let shift = |at: Timestamp| {
            let ahead = at.duration_since(minted).max(SignedDuration::ZERO);
            at.min(add(now, ahead))
        };
        // Clients have it, so hosts had seen it.
        let reached = record.distributed.is_some_and(|at| at > record.shown);
        record.shown = if reached { now } else { shift(record.shown) };
        record.minted = now;
        for previous in &mut record.previous {
            previous.shown = shift(previous.shown);
        }
    }
    let latest = record.shown.max(now);
    let passed = |at: Timestamp| at <= horizon.max(record.shown);
    record.distributed = record
        .distributed
        .map(|at| if passed(at) { at } else { latest });
    record.revoked = record.revoked.map(|at| if passed(at) { at } else { now });
    let bound = add(now, OVERSTAY_TOLERANCE);
    // A moment that was acted on before it came is acted on when it comes: while it is a mark, no
    // earlier one would be.
    for mark in [&mut record.marks.rotate_at, &mut record.marks.revoke_at] {
        *mark = mark.map(|at| if at > bound { now } else { at });
    }
    for previous in &mut record.previous {
        if let (Some(since), Some(retires)) = (previous.since, previous.retires)
            && since > bound
        {
            previous.since = Some(latest);
            previous.retires = Some(add(latest, retires.duration_since(since)));
        }
    }
}

/// `at + span`, staying within what a timestamp can hold.
pub fn add(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const MONTH: SignedDuration = SignedDuration::from_hours(720);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn policy(interval: SignedDuration, overlap: SignedDuration) -> Policy {
        Policy {
            interval: Some(interval),
            overlap,
        }
    }

    #[test]
    fn overlap_is_a_day_or_half_the_interval_when_left_out() {
        for (interval, overlap) in [
            (None, DAY),
            (Some(MONTH), DAY),
            (Some(SignedDuration::from_hours(48)), DAY),
            (
                Some(SignedDuration::from_hours(4)),
                SignedDuration::from_hours(2),
            ),
        ] {
            assert_eq!(Policy::effective(interval, None).overlap, overlap);
        }
        let chosen = Policy::effective(Some(MONTH), Some(SignedDuration::ZERO));
        assert_eq!(chosen.overlap, SignedDuration::ZERO);
    }

    #[test]
    fn without_an_interval_nothing_is_ever_due() {
        assert_eq!(Policy::effective(None, None).due(at(0), "uid"), None);
    }

    #[test]
    fn ten_thousand_resources_made_at_once_turn_evenly_spread() {
        let policy = policy(MONTH, DAY);
        let mut slots = [0_u32; 20];
        for number in 0..10_000 {
            let uid = format!("{number:08x}-5d6f-4c11-9e2b-6a1f0c9d7e33");
            let due = policy.due(at(0), &uid).unwrap();
            let early = (at(0) + MONTH).duration_since(due);
            let part = early.as_millis() * 20 / (MONTH / 10).as_millis();
            slots[usize::try_from(part).unwrap()] += 1;
        }
        // 500 each on average; six standard deviations are 131.
        assert!(
            slots.iter().all(|count| (370..630).contains(count)),
            "{slots:?}"
        );
    }

    #[test]
    fn a_trigger_acts_once_and_a_revert_does_nothing() {
        let asked = Triggers {
            generation: 2,
            revoke_generation: 1,
            rotate_at: Some(at(50)),
            revoke_at: Some(at(70)),
        };
        let marks = Marks::default();
        assert_eq!(asked.turn(&marks, None, at(10)), Turn::Revoke);
        let marks = asked.handled(&marks, at(10));
        assert_eq!(asked.turn(&marks, None, at(49)), Turn::Wait);
        assert_eq!(asked.ahead(&marks), (Some(at(50)), Some(at(70))));
        assert_eq!(asked.turn(&marks, None, at(50)), Turn::Rotate);
        let marks = asked.handled(&marks, at(50));
        assert_eq!(asked.turn(&marks, None, at(69)), Turn::Wait);
        assert_eq!(asked.turn(&marks, None, at(70)), Turn::Revoke);
        let marks = asked.handled(&marks, at(70));
        let reverted = Triggers {
            generation: 1,
            revoke_generation: 0,
            rotate_at: Some(at(40)),
            revoke_at: None,
        };
        for triggers in [&asked, &reverted, &Triggers::default()] {
            assert_eq!(triggers.turn(&marks, None, at(99)), Turn::Wait);
            assert_eq!(triggers.handled(&marks, at(99)), marks);
        }
        assert_eq!(asked.turn(&marks, Some(at(99)), at(99)), Turn::Rotate);
        assert_eq!(asked.turn(&marks, Some(at(99)), at(98)), Turn::Wait);
    }

    fn span(hours: std::ops::Range<i64>) -> impl Strategy<Value = SignedDuration> {
        (hours.start * 3600..hours.end * 3600).prop_map(SignedDuration::from_secs)
    }

    fn moment() -> impl Strategy<Value = Option<Timestamp>> {
        prop::option::of((0..100_i64).prop_map(at))
    }

    fn triggers() -> impl Strategy<Value = Triggers> {
        (0..4_i64, 0..4_i64, moment(), moment()).prop_map(
            |(generation, revoke_generation, rotate_at, revoke_at)| Triggers {
                generation,
                revoke_generation,
                rotate_at,
                revoke_at,
            },
        )
    }

    proptest! {
        #[test]
        fn jitter_is_early_by_at_most_a_tenth_and_never_into_the_overlap(
            interval in span(0..90_000),
            part in 0..1000_i32,
            minted in 0..4_000_000_000_i64,
            uid: String,
        ) {
            let overlap = interval * part / 1000;
            let policy = policy(interval, overlap);
            let minted = at(minted);
            let due = policy.due(minted, &uid).unwrap();
            prop_assert_eq!(policy.due(minted, &uid), Some(due));
            prop_assert!(due <= minted + interval);
            prop_assert!(due >= minted + (interval - interval / JITTER_PART));
            prop_assert!(due >= minted + overlap);
        }

        #[test]
        fn any_policy_is_answered(
            interval in any::<i64>(),
            overlap in any::<i64>(),
            minted in -100_000_000_000..200_000_000_000_i64,
        ) {
            let span = |seconds: i64| SignedDuration::from_secs(seconds / 4);
            let policy = policy(span(interval), span(overlap));
            let _ = policy.due(at(minted), "uid");
        }

        #[test]
        fn what_is_handled_is_not_called_for_again(
            first in triggers(),
            then in triggers(),
            now in 0..100_i64,
        ) {
            let marks = first.baseline(at(now));
            prop_assert_eq!(first.turn(&marks, None, at(now)), Turn::Wait);
            let handled = then.handled(&marks, at(now));
            prop_assert_eq!(then.turn(&handled, None, at(now)), Turn::Wait);
            prop_assert!(handled.generation >= marks.generation);
            prop_assert!(handled.revoke_generation >= marks.revoke_generation);
            prop_assert!(handled.rotate_at >= marks.rotate_at);
            prop_assert!(handled.revoke_at >= marks.revoke_at);
            // Neither is anything of the past that was asked for first.
            let back = first.turn(&handled, None, at(now));
            prop_assert_eq!(back, Turn::Wait);
        }
    }
}
