//! What should stand in one client's Secret: the decision behind `distributeTo`.
//!
//! Unlike an app's key store, where an unknown entry is adopted, an unknown entry in a client's
//! Secret belongs to somebody else and is a conflict.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;

use crate::domain::{
    key::KeyMaterial,
    ledger::{Copies, Copy, DeletionPolicy, Owner},
};

/// One client's Secret as observed.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Entries whose value is text, by data key.
    pub values: BTreeMap<String, KeyMaterial>,
    /// Names of entries whose value is not text.
    pub opaque: HashSet<String>,
    /// The bookkeeping beside them.
    pub copies: Copies,
}

/// One value that a resource wants there.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The data key.
    pub entry: String,
    /// The resource.
    pub owner: Owner,
    /// When it was created; the older of two wins.
    pub created: Timestamp,
    /// What to do when the resource is deleted.
    pub deletion: DeletionPolicy,
    /// The generation and value to hand out; absent: leave what is there (the key has no value
    /// yet, or the resource is suspended).
    pub value: Option<(u32, KeyMaterial)>,
}

/// What the plan says of one wanted copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It stands there.
    Placed(Copy),
    /// There is nothing to put there yet.
    Pending,
    /// The entry belongs to another resource, named here, or to nobody we know.
    Conflict(Option<String>),
}

/// The Secret as it should be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Entries to write (`Some`) or remove (`None`), by data key.
    pub changes: BTreeMap<String, Option<KeyMaterial>>,
    /// The bookkeeping that goes with them.
    pub copies: Copies,
    /// One answer per wanted copy, in their order.
    pub placements: Vec<Placement>,
}

/// Decides what should stand in a client's Secret. Copies that nobody wants any more are let go as
/// they last said, but for those of `spared` UIDs: their resource is gone although nobody meant to
/// delete a key.
pub fn plan(now: Timestamp, held: &Held, wanted: &[Wanted], spared: &HashSet<String>) -> Plan {
    let mut plan = Plan {
        changes: BTreeMap::new(),
        copies: held.copies.clone(),
        placements: Vec::new(),
    };
    let wants: HashSet<(&str, &str)> = wanted
        .iter()
        .map(|want| (want.entry.as_str(), want.owner.uid.as_str()))
        .collect();
    let dropped: Vec<(String, Copy)> = held
        .copies
        .entries
        .iter()
        .filter(|(entry, copy)| {
            let uid = copy.owner.uid.as_str();
            let renewed = wanted
                .iter()
                .any(|want| want.entry == **entry && want.owner.name == copy.owner.name);
            !wants.contains(&(entry.as_str(), uid)) && !renewed && !spared.contains(uid)
        })
        .map(|(entry, copy)| (entry.clone(), copy.clone()))
        .collect();
    for (entry, copy) in dropped {
        plan.copies.entries.remove(&entry);
        let ours = held
            .values
            .get(&entry)
            .is_some_and(|value| value.digest() == copy.digest);
        if copy.deletion == DeletionPolicy::Delete && ours {
            plan.changes.insert(entry, None);
        }
    }
    let winners = winners(held, wanted);
    for (index, want) in wanted.iter().enumerate() {
        let winner = winners[want.entry.as_str()];
        let placement = if winner == index {
            place(now, held, want, &mut plan)
        } else {
            Placement::Conflict(Some(wanted[winner].owner.name.clone()))
        };
        plan.placements.push(placement);
    }
    plan
}

/// Which wanted copy has each entry: the incumbent, else the older, else the first by name.
fn winners<'a>(held: &Held, wanted: &'a [Wanted]) -> HashMap<&'a str, usize> {
    let mut winners: HashMap<&str, usize> = HashMap::new();
    for (index, candidate) in wanted.iter().enumerate() {
        let incumbent = held
            .copies
            .entries
            .get(&candidate.entry)
            .map(|copy| copy.owner.uid.as_str());
        let rank = |want: &Wanted| {
            (
                Some(want.owner.uid.as_str()) != incumbent,
                want.created,
                want.owner.name.clone(),
            )
        };
        winners
            .entry(&candidate.entry)
            .and_modify(|winner| {
                if rank(candidate) < rank(&wanted[*winner]) {
                    *winner = index;
                }
            })
            .or_insert(index);
    }
    winners
}

fn place(now: Timestamp, held: &Held, want: &Wanted, plan: &mut Plan) -> Placement {
    let known = plan.copies.entries.get(&want.entry).cloned();
    let Some((generation, value)) = &want.value else {
        return known.map_or(Placement::Pending, Placement::Placed);
    };
    let digest = value.digest();
    let standing = held.values.get(&want.entry);
    let differs = standing.is_some_and(|standing| standing.digest() != digest);
    // Another resource of ours is just letting go of it.
    let left = plan.changes.contains_key(&want.entry);
    let written = |changed| Copy {
        owner: want.owner.clone(),
        declared: Some(want.created),
        generation: *generation,
        digest,
        at: now,
        changed,
        deletion: want.deletion,
    };
    let copy = match known {
        None if left => written(differs.then_some(now)),
        None if differs || held.opaque.contains(&want.entry) => {
            return Placement::Conflict(None);
        }
        None => written(None),
        // The clock was ahead when this was written.
        Some(copy) if copy.digest == digest => Copy {
            owner: want.owner.clone(),
            generation: *generation,
            deletion: want.deletion,
            declared: Some(want.created),
            at: copy.at.min(now),
            changed: copy.changed.map(|at| at.min(now)),
            digest,
        },
        Some(_) => written(Some(now)),
    };
    if standing == Some(value) {
        plan.changes.remove(&want.entry);
    } else {
        plan.changes.insert(want.entry.clone(), Some(value.clone()));
    }
    plan.copies.entries.insert(want.entry.clone(), copy.clone());
    Placement::Placed(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn value(text: &str) -> KeyMaterial {
        KeyMaterial::new(text.to_owned())
    }

    fn want(owner: &str, created: i64, generation: u32, text: &str) -> Wanted {
        Wanted {
            entry: "KEY".into(),
            owner: Owner {
                name: owner.into(),
                uid: format!("uid-{owner}"),
            },
            created: at(created),
            deletion: DeletionPolicy::Delete,
            value: Some((generation, value(text))),
        }
    }

    fn spare(uids: &[&str]) -> HashSet<String> {
        uids.iter().map(|uid| (*uid).to_owned()).collect()
    }

    fn apply(held: &Held, plan: &Plan) -> Held {
        let mut next = held.clone();
        for (entry, change) in &plan.changes {
            match change {
                Some(value) => next.values.insert(entry.clone(), value.clone()),
                None => next.values.remove(entry),
            };
        }
        next.copies = plan.copies.clone();
        next
    }

    #[test]
    fn a_first_copy_restarts_nobody_and_a_changed_one_does() {
        let first = plan(
            at(10),
            &Held::default(),
            &[want("a", 1, 1, "one")],
            &spare(&[]),
        );
        let Placement::Placed(copy) = &first.placements[0] else {
            panic!("{:?}", first.placements)
        };
        assert_eq!((copy.at, copy.changed), (at(10), None));
        let held = apply(&Held::default(), &first);
        let second = plan(at(20), &held, &[want("a", 1, 2, "two")], &spare(&[]));
        let Placement::Placed(copy) = &second.placements[0] else {
            panic!("{:?}", second.placements)
        };
        assert_eq!(
            (copy.at, copy.changed, copy.generation),
            (at(20), Some(at(20)), 2)
        );
        let held = apply(&held, &second);
        let third = plan(at(30), &held, &[want("a", 1, 2, "two")], &spare(&[]));
        assert!(third.changes.is_empty());
        assert_eq!(third.copies, held.copies);
    }

    #[test]
    fn an_unknown_entry_is_a_conflict_and_stays() {
        let held = Held {
            values: BTreeMap::from([("KEY".to_owned(), value("theirs"))]),
            ..Held::default()
        };
        let plan = plan(at(10), &held, &[want("a", 1, 1, "ours")], &spare(&[]));
        assert_eq!(plan.placements, [Placement::Conflict(None)]);
        assert!(plan.changes.is_empty() && plan.copies.entries.is_empty());
    }

    #[test]
    fn of_two_the_incumbent_wins_then_the_older() {
        let wants = [want("young", 9, 1, "y"), want("old", 5, 1, "o")];
        let fresh = plan(at(10), &Held::default(), &wants, &spare(&[]));
        assert_eq!(fresh.placements[0], Placement::Conflict(Some("old".into())));
        let held = apply(
            &Held::default(),
            &plan(at(10), &Held::default(), &wants[..1], &spare(&[])),
        );
        let taken = plan(at(11), &held, &wants, &spare(&[]));
        assert_eq!(
            taken.placements[1],
            Placement::Conflict(Some("young".into()))
        );
    }

    #[test]
    fn an_entry_goes_over_to_another_resource_in_one_write() {
        let first = plan(
            at(10),
            &Held::default(),
            &[want("a", 1, 1, "one")],
            &spare(&[]),
        );
        let held = apply(&Held::default(), &first);
        for (text, changed) in [("two", Some(at(20))), ("one", None)] {
            let wants = [want("b", 1, 1, text)];
            let over = plan(at(20), &held, &wants, &spare(&[]));
            let Placement::Placed(copy) = &over.placements[0] else {
                panic!("{:?}", over.placements)
            };
            assert_eq!((&copy.owner.name, copy.changed), (&"b".into(), changed));
            let held = apply(&held, &over);
            assert!(held.values == BTreeMap::from([("KEY".to_owned(), value(text))]));
            let again = plan(at(20), &held, &wants, &spare(&[]));
            assert!(again.changes.is_empty() && again.copies == held.copies);
        }
    }

    #[test]
    fn a_resource_made_anew_under_its_name_keeps_its_copy_and_restarts_nobody() {
        let first = plan(
            at(10),
            &Held::default(),
            &[want("a", 1, 1, "one")],
            &spare(&[]),
        );
        let held = apply(&Held::default(), &first);
        let mut anew = want("a", 15, 1, "one");
        anew.owner.uid = "another".into();
        let continued = plan(at(20), &held, &[anew.clone()], &spare(&[]));
        assert!(continued.changes.is_empty());
        let copy = &continued.copies.entries["KEY"];
        assert_eq!((&copy.owner, copy.changed), (&anew.owner, None));
    }

    #[test]
    fn a_value_that_is_withheld_leaves_the_copy_and_a_clock_ahead_is_taken_back() {
        let mut held = apply(
            &Held::default(),
            &plan(
                at(99),
                &Held::default(),
                &[want("a", 1, 1, "one")],
                &spare(&[]),
            ),
        );
        held = apply(
            &held,
            &plan(at(99), &held, &[want("a", 1, 2, "two")], &spare(&[])),
        );
        let mut withheld = want("a", 1, 2, "two");
        withheld.value = None;
        let left = plan(at(100), &held, &[withheld.clone()], &spare(&[]));
        assert!(left.changes.is_empty() && left.copies == held.copies);
        let none = plan(at(100), &Held::default(), &[withheld], &spare(&[]));
        assert_eq!(none.placements, [Placement::Pending]);
        let back = plan(at(50), &held, &[want("a", 1, 2, "two")], &spare(&[]));
        let copy = &back.copies.entries["KEY"];
        assert_eq!((copy.at, copy.changed), (at(50), Some(at(50))));
    }

    #[test]
    fn a_dropped_copy_goes_as_it_said_but_never_a_value_of_others() {
        let held = apply(
            &Held::default(),
            &plan(
                at(10),
                &Held::default(),
                &[want("a", 1, 1, "one")],
                &spare(&[]),
            ),
        );
        let gone = plan(at(20), &held, &[], &spare(&[]));
        assert_eq!(gone.changes.get("KEY"), Some(&None));
        let mut edited = held.clone();
        edited.values.insert("KEY".into(), value("theirs"));
        assert!(plan(at(20), &edited, &[], &spare(&[])).changes.is_empty());
        assert!(
            plan(at(20), &held, &[], &spare(&["uid-a"]))
                .changes
                .is_empty()
        );
    }

    #[test]
    fn an_edited_copy_is_put_back_without_a_restart() {
        let held = apply(
            &Held::default(),
            &plan(
                at(10),
                &Held::default(),
                &[want("a", 1, 1, "one")],
                &spare(&[]),
            ),
        );
        let mut edited = held.clone();
        edited.values.insert("KEY".into(), value("theirs"));
        let mended = plan(at(20), &edited, &[want("a", 1, 1, "one")], &spare(&[]));
        assert!(
            mended
                .changes
                .get("KEY")
                .is_some_and(|change| change == &Some(value("one")))
        );
        assert_eq!(mended.copies, held.copies);
    }
}
