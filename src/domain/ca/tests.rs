use super::*;

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const DAY: SignedDuration = SignedDuration::from_hours(24);

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn policy() -> Policy {
    Policy {
        lifetime: DAY * 365,
        lead: DAY * 30,
        leaf: DAY,
        skew: SignedDuration::from_mins(10),
        names: names(&["svc", "svc.cluster.local"]),
    }
}

fn start() -> Timestamp {
    "2026-11-22T08:00:00Z".parse().unwrap()
}

/// Carries a plan out, as the leader does.
fn carry_out(versions: &mut Vec<Version>, policy: &Policy, now: Timestamp) -> Plan {
    let plan = plan(versions, policy, now);
    versions.retain(|version| !plan.drop.contains(&version.number));
    versions.extend(plan.make.clone());
    plan
}

#[test]
fn the_first_version_signs_at_once_and_is_made_once() {
    let mut versions = Vec::new();
    let made = carry_out(&mut versions, &policy(), start()).make.unwrap();
    assert_eq!((made.number, made.signs_from), (1, start()));
    assert_eq!(made.not_before, start() - policy().skew);
    let again = carry_out(&mut versions, &policy(), start());
    assert!(again.is_idle());
    assert_eq!(again.next_look.unwrap(), turns_at(&made, &policy()));
}

#[test]
fn a_version_of_the_future_is_followed_by_one_that_is_believed() {
    // Made by a leader whose clock was a month ahead.
    let mut versions = Vec::new();
    let late = start() + DAY * 30;
    carry_out(&mut versions, &policy(), late);
    let made = carry_out(&mut versions, &policy(), start()).make.unwrap();
    assert_eq!((made.number, made.signs_from), (2, start()));
    assert!(carry_out(&mut versions, &policy(), start()).is_idle());
    let signs = signer(versions.iter(), "a.shop.svc", start()).unwrap();
    assert_eq!(signs.number, 2);
}

#[test]
fn looking_when_told_is_as_good_as_looking_every_hour() {
    let run = |looks: &dyn Fn(Timestamp, &Plan) -> Timestamp| {
        let (mut versions, mut now, mut history) = (Vec::new(), start(), Vec::new());
        while now < start() + DAY * 1200 {
            let plan = carry_out(&mut versions, &policy(), now);
            if !plan.is_idle() {
                let numbers: Vec<u64> = versions.iter().map(|version| version.number).collect();
                history.push(numbers);
            }
            now = looks(now, &plan);
        }
        history
    };
    let told = run(&|_, plan| plan.next_look.unwrap());
    let hourly = run(&|now, _| now + HOUR);
    assert_eq!(told, hourly);
    assert_eq!(told[..4], [vec![1], vec![1, 2], vec![2], vec![2, 3]]);
}

/// Leaders that are away for weeks, signers and verifiers with wrong clocks, and bundles that are read
/// only once a fortnight: whoever connects is shown a leaf that their bundle verifies.
#[test]
fn through_the_years_nobody_meets_a_leaf_whose_ca_they_were_not_shown() {
    struct Leaf {
        ca: Version,
        from: Timestamp,
        until: Timestamp,
    }
    for (case, skew) in [SignedDuration::ZERO, policy().skew, -policy().skew]
        .into_iter()
        .enumerate()
    {
        let policy = policy();
        let (mut versions, mut shown) = (
            Vec::<Version>::new(),
            Vec::<(Timestamp, Vec<Version>)>::new(),
        );
        let mut leafs: Vec<Leaf> = Vec::new();
        let mut random = 7_u64 + case as u64;
        let mut away_until = start();
        let mut signers = BTreeSet::new();
        for hour in 0..24 * 365 * 3 {
            let now = start() + HOUR * hour;
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if now >= away_until {
                if (random >> 40).is_multiple_of(1024) {
                    away_until = now + DAY * 14;
                }
                carry_out(&mut versions, &policy, now);
                assert!((1..=2).contains(&versions.len()), "{versions:?}");
            }
            shown.push((now, versions.clone()));
            let earliest = now - DAY * 15;
            shown.retain(|(at, _)| *at >= earliest);
            // Who signs goes by a clock of their own; a leaf is used until it is renewed or expires.
            let theirs = now + skew;
            let ca = signer(versions.iter(), "a.b.svc", theirs).unwrap().clone();
            signers.insert(ca.number);
            let (from, until) = leaf_validity(&ca, policy.leaf, policy.skew, theirs);
            assert!(until <= ca.not_after && from >= ca.not_before);
            leafs.push(Leaf { ca, from, until });
            leafs.retain(|leaf| leaf.until + policy.skew > now);
            for leaf in &leafs {
                for verifier in [now - policy.skew, now, now + policy.skew] {
                    if verifier < leaf.from || verifier > leaf.until {
                        continue;
                    }
                    assert!(leaf.ca.not_before <= verifier && verifier <= leaf.ca.not_after);
                    // The oldest bundle that anybody still goes by, and the newest.
                    for (_, bundle) in [shown.first().unwrap(), shown.last().unwrap()] {
                        assert!(
                            bundle.iter().any(|ca| ca.number == leaf.ca.number),
                            "at {now} a leaf of {} met {:?}",
                            leaf.ca.number,
                            bundle.iter().map(|ca| ca.number).collect::<Vec<_>>()
                        );
                    }
                }
            }
        }
        assert_eq!(signers.len(), 4, "in three years, each signed in its turn");
    }
}

#[test]
fn a_leader_that_comes_too_late_uses_what_time_there_is() {
    let policy = policy();
    let mut versions = Vec::new();
    carry_out(&mut versions, &policy, start());
    let first = versions[0].clone();
    // Ten days before the end.
    let late = first.not_after - DAY * 10;
    carry_out(&mut versions, &policy, late);
    assert_eq!(versions[1].signs_from, first.not_after - policy.tail());
    assert_eq!(signer(versions.iter(), "a.b.svc", late).unwrap().number, 1);
    // After the end there is nothing to be gentle with.
    let dead = first.not_after + DAY;
    let mut versions = vec![first];
    assert_eq!(signer(versions.iter(), "a.b.svc", dead), None);
    let plan = carry_out(&mut versions, &policy, dead);
    assert_eq!(plan.drop, [1]);
    let made = plan.make.unwrap();
    assert_eq!((made.number, made.signs_from), (2, dead));
}

#[test]
fn another_domain_makes_another_version_which_alone_signs_for_it_at_once() {
    let before = policy();
    let mut versions = Vec::new();
    carry_out(&mut versions, &before, start());
    let after = Policy {
        names: names(&["svc", "svc.cluster.local", "keys.example.com"]),
        ..policy()
    };
    let now = start() + DAY;
    carry_out(&mut versions, &after, now);
    assert!(carry_out(&mut versions, &after, now).is_idle());
    let signs = |name| signer(versions.iter(), name, now).map(|version| version.number);
    assert_eq!(signs("a.b.svc"), Some(1));
    assert_eq!(signs("x.keys.example.com"), Some(2));
    assert_eq!(signs("x.other.example.com"), None);
    // A domain less: the one before stays for what it has signed until that has expired.
    carry_out(&mut versions, &before, now + DAY);
    let numbers: Vec<u64> = versions.iter().map(|version| version.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let plan = plan(&versions, &before, now + before.lead + before.tail());
    assert_eq!(plan.drop, [1]);
}

#[test]
fn two_that_disagree_about_the_domain_do_not_make_versions_without_end() {
    let (one, two) = (
        policy(),
        Policy {
            names: names(&["svc", "svc.corp.local"]),
            ..policy()
        },
    );
    let mut versions = Vec::new();
    for minute in 0..1000 {
        let now = start() + SignedDuration::from_mins(minute);
        carry_out(
            &mut versions,
            if minute % 2 == 0 { &one } else { &two },
            now,
        );
    }
    assert_eq!(versions.len(), MOST);
    // When only one is left it has its way again, in time.
    let mut now = start() + DAY;
    while now < start() + DAY * 400 {
        carry_out(&mut versions, &one, now);
        now += DAY;
    }
    assert_eq!(versions.last().unwrap().names, one.names);
    assert!(versions.len() <= 2, "{}", versions.len());
}

#[test]
fn a_clock_that_was_ahead_does_no_harm_when_it_is_put_right() {
    let policy = policy();
    let mut versions = Vec::new();
    carry_out(&mut versions, &policy, start());
    // For one look the leader believed that it was eleven months later.
    carry_out(&mut versions, &policy, start() + DAY * 340);
    assert_eq!(versions.len(), 2);
    assert!(carry_out(&mut versions, &policy, start() + HOUR).is_idle());
    let now = signer(versions.iter(), "a.b.svc", start() + HOUR).unwrap();
    assert_eq!(now.number, 1);
}

#[test]
fn names_end_at_dots() {
    for (name, domain, within) in [
        ("a.b.svc", "svc", true),
        ("svc", "svc", true),
        ("asvc", "svc", false),
        ("a.svc.example", "svc", false),
        ("a.b.svc.cluster.local", "svc.cluster.local", true),
        ("", "svc", false),
    ] {
        assert_eq!(is_within(name, domain), within, "{name} in {domain}");
    }
}

#[test]
fn a_life_too_short_for_its_own_turn_is_refused() {
    assert!(policy().is_possible());
    for change in [
        Policy {
            lifetime: DAY * 60,
            ..policy()
        },
        Policy {
            leaf: SignedDuration::ZERO,
            ..policy()
        },
        Policy {
            lead: -HOUR,
            ..policy()
        },
        Policy {
            skew: -HOUR,
            ..policy()
        },
    ] {
        assert!(!change.is_possible(), "{change:?}");
    }
}
