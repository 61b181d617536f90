//! When a signing key of access tokens is made, signs, and goes.
//!
//! ```text
//! published ── ahead ──► signs ────── turn ──────► its successor signs ── tail ──► gone
//! ```
//!
//! - A key is published before it signs, longer than anybody keeps a copy of the published document,
//!   so that whoever verifies has it when the first token comes.
//! - A key signs until its successor does; a process that has not yet heard of the successor would
//!   go on for as long as its watch lags, which `ahead` exceeds by far.
//! - It goes when the last token that it signed has run out, and no later: at the deadline it is
//!   neither published nor believed, even if nobody has removed it yet.
//!
//! All of it follows from one time for each key, the one from which it signs.

use jiff::{SignedDuration, Timestamp};

/// How long others may keep a copy of the published document.
pub const DOCUMENT_CACHE: SignedDuration = SignedDuration::from_hours(1);
/// The longest that an access token lives.
pub const LONGEST_TOKEN: SignedDuration = SignedDuration::from_hours(1);

/// The spans of a key's life.
#[derive(Clone, Copy, Debug)]
pub struct Spans {
    /// From publication to the first signature.
    pub ahead: SignedDuration,
    /// From the first signature of a key to that of its successor.
    pub turn: SignedDuration,
    /// From the first signature of the successor until the key is gone.
    pub tail: SignedDuration,
}

impl Default for Spans {
    /// A week each. The tail outlasts the longest token by what clocks differ and watches lag.
    fn default() -> Self {
        Self {
            ahead: SignedDuration::from_hours(2),
            turn: SignedDuration::from_hours(7 * 24),
            tail: SignedDuration::from_mins(75),
        }
    }
}

/// One key.
pub trait Turned {
    /// The time from which it signs.
    fn signs_from(&self) -> Timestamp;
}

impl Turned for Timestamp {
    fn signs_from(&self) -> Timestamp {
        *self
    }
}

/// The keys that are published and believed at a time, oldest first.
pub fn valid<'a, K: Turned>(keys: &'a [K], spans: &Spans, now: Timestamp) -> Vec<&'a K> {
    let ordered = ordered(keys);
    let gone = ordered
        .windows(2)
        .take_while(|pair| deadline(pair[1], spans) <= now)
        .count();
    ordered[gone..].to_vec()
}

/// The key that signs at a time. Without any that may sign yet (the clock that it was made by was
/// ahead of ours) it is the first.
pub fn signer<K: Turned>(keys: &[K], now: Timestamp) -> Option<&K> {
    let ordered = ordered(keys);
    ordered
        .iter()
        .rev()
        .find(|key| key.signs_from() <= now)
        .or(ordered.first())
        .copied()
}

/// What is to be done about the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// A new key signs from this time, and is to be published now.
    pub mint: Option<Timestamp>,
    /// How many of the oldest keys are to be removed.
    pub remove: usize,
    /// When there is something to do next, after this was done.
    pub next: Timestamp,
}

impl Plan {
    /// Whether there is nothing to write.
    pub fn is_idle(&self) -> bool {
        self.mint.is_none() && self.remove == 0
    }
}

/// Decides what is to be done about the keys, whichever order they are in.
pub fn plan<K: Turned>(keys: &[K], spans: &Spans, now: Timestamp) -> Plan {
    let remove = keys.len() - valid(keys, spans, now).len();
    let mut times: Vec<Timestamp> = keys.iter().map(Turned::signs_from).collect();
    times.sort_unstable();
    times.drain(..remove);
    let mint = match times.last() {
        None => Some(now),
        Some(newest) => {
            let due = later(*newest, spans.turn);
            (later(now, spans.ahead) >= due).then(|| due.max(later(now, spans.ahead)))
        }
    };
    times.extend(mint);
    let turn = times
        .last()
        .map(|newest| later(*newest, spans.turn - spans.ahead));
    let removal = times.get(1).map(|successor| deadline(successor, spans));
    let next = turn.into_iter().chain(removal).min();
    Plan {
        mint,
        remove,
        next: next.unwrap_or(Timestamp::MAX),
    }
}

fn deadline<K: Turned>(successor: &K, spans: &Spans) -> Timestamp {
    later(successor.signs_from(), spans.tail)
}

fn ordered<K: Turned>(keys: &[K]) -> Vec<&K> {
    let mut ordered: Vec<&K> = keys.iter().collect();
    ordered.sort_by_key(|key| key.signs_from());
    ordered
}

/// A time that much later, or the end of time.
fn later(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPANS: Spans = Spans {
        ahead: SignedDuration::from_hours(2),
        turn: SignedDuration::from_hours(7 * 24),
        tail: SignedDuration::from_mins(75),
    };
    const MINUTE: SignedDuration = SignedDuration::from_mins(1);

    fn start() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    /// Does what is planned.
    fn perform(keys: &mut Vec<Timestamp>, now: Timestamp) -> Plan {
        let plan = plan(keys, &SPANS, now);
        keys.sort_unstable();
        keys.drain(..plan.remove);
        keys.extend(plan.mint);
        plan
    }

    #[test]
    fn spans_keep_their_order() {
        let spans = Spans::default();
        assert!(spans.ahead > DOCUMENT_CACHE && spans.tail > LONGEST_TOKEN);
        assert!(spans.turn > spans.ahead + spans.tail);
    }

    #[test]
    fn the_first_key_signs_at_once_and_nothing_is_written_until_the_next_is_due() {
        let mut keys = Vec::new();
        let plan = perform(&mut keys, start());
        assert_eq!(plan.mint, Some(start()));
        assert_eq!(plan.next, start() + SPANS.turn - SPANS.ahead);
        assert!(perform(&mut keys, plan.next - MINUTE).is_idle());
        let successor = perform(&mut keys, plan.next);
        assert_eq!(successor.mint, Some(start() + SPANS.turn));
        assert_eq!(signer(&keys, plan.next), Some(&start()));
    }

    #[test]
    fn a_year_passes_and_every_token_can_be_verified_by_whoever_has_an_old_copy() {
        let mut keys: Vec<Timestamp> = Vec::new();
        let (mut writes, mut next) = (0, start());
        // Tokens that are valid, and copies of the document, by the minute they were made.
        let mut tokens: Vec<(Timestamp, Timestamp)> = Vec::new();
        let mut copies: Vec<(Timestamp, Vec<Timestamp>)> = Vec::new();
        let mut signed: std::collections::BTreeMap<Timestamp, Timestamp> =
            std::collections::BTreeMap::new();
        for step in 0..365 * 24 * 12 {
            let now = start() + MINUTE * 5 * step;
            // Nobody leads for half a day in every thirty.
            let leads = step % (30 * 288) > 144 || step == 0;
            if leads && now >= next {
                let plan = perform(&mut keys, now);
                writes += usize::from(!plan.is_idle());
                next = plan.next;
                assert!(next > now);
            }
            let published: Vec<_> = valid(&keys, &SPANS, now).into_iter().copied().collect();
            assert!((1..=2).contains(&published.len()));
            copies.retain(|(at, _)| *at > now - DOCUMENT_CACHE);
            let key = *signer(&keys, now).unwrap();
            assert!(published.contains(&key));
            for (_, copy) in &copies {
                assert!(copy.contains(&key), "{key} signs at {now}");
            }
            copies.push((now, published.clone()));
            tokens.retain(|(_, expires)| *expires > now);
            for (key, _) in &tokens {
                assert!(published.contains(key), "a token of {key} at {now}");
            }
            tokens.push((key, now + LONGEST_TOKEN));
            signed.insert(key, now);
            for published in &published {
                let last = signed.get(published).copied().unwrap_or(now);
                assert!(
                    now.duration_since(last) <= SPANS.tail + SPANS.ahead,
                    "{published} stays"
                );
            }
        }
        // One for the first, then one to publish each and one to remove each.
        assert!((100..=105).contains(&writes), "{writes}");
    }

    #[test]
    fn a_key_past_its_deadline_is_not_believed_even_if_nobody_removes_it() {
        let keys = [start(), start() + SPANS.turn];
        let deadline = start() + SPANS.turn + SPANS.tail;
        assert_eq!(valid(&keys, &SPANS, deadline - MINUTE).len(), 2);
        assert_eq!(valid(&keys, &SPANS, deadline), [&keys[1]]);
        assert_eq!(plan(&keys, &SPANS, deadline).remove, 1);
    }

    #[test]
    fn without_a_leader_the_last_key_goes_on() {
        let keys = [start()];
        let late = start() + SPANS.turn * 20;
        assert_eq!(signer(&keys, late), Some(&keys[0]));
        assert_eq!(valid(&keys, &SPANS, late), [&keys[0]]);
        let plan = plan(&keys, &SPANS, late);
        assert_eq!(plan.mint, Some(late + SPANS.ahead));
    }

    #[test]
    fn a_clock_that_is_behind_still_signs() {
        assert_eq!(signer(&[start()], start() - MINUTE), Some(&start()));
        assert_eq!(signer::<Timestamp>(&[], start()), None);
    }

    proptest! {
        #[test]
        fn whatever_is_found_a_plan_leads_to_rest(
            offsets in proptest::collection::vec(-2_000_000_i64..2_000_000, 0..6), extreme in any::<bool>(),
        ) {
            let now = start();
            let mut keys: Vec<_> = offsets.iter().map(|seconds| now + SignedDuration::from_secs(*seconds)).collect();
            if extreme {
                keys.extend([Timestamp::MIN, Timestamp::MAX]);
            }
            let first = perform(&mut keys, now);
            prop_assert!(first.next > now);
            let again = plan(&keys, &SPANS, now);
            prop_assert!(again.is_idle(), "{again:?}");
            prop_assert_eq!(again.next, first.next);
            let key = *signer(&keys, now).unwrap();
            prop_assert!(valid(&keys, &SPANS, now).contains(&&key));
        }
    }
}
