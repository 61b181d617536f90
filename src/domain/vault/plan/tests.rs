//! Rules as sentences; [`world`] holds them against random histories.

mod world;

use std::sync::Arc;

use super::*;
use crate::domain::vault::envelope::IndexKey;

const DAY: SignedDuration = SignedDuration::from_hours(24);
const MONTH: SignedDuration = SignedDuration::from_hours(720);
const SECOND: SignedDuration = SignedDuration::from_secs(1);
const VAULT: VaultId = VaultId([7; 16]);
const EVERYBODY: fn(u32) -> Reached = |_| Reached::Since(Timestamp::MIN);
const NOBODY: fn(u32) -> Reached = |_| Reached::NotYet;

fn start() -> Timestamp {
    "2026-11-22T08:00:00Z".parse().unwrap()
}

fn after(span: SignedDuration) -> Timestamp {
    add(start(), span)
}

fn digest(value: u8) -> ValueDigest {
    IndexKey::new(zeroize::Zeroizing::new([1; 32]), &VAULT).digest("source/db", &[value])
}

fn declared() -> Declared {
    Declared {
        name: SecretName::parse("db-password").unwrap(),
        source: Source::Minted,
        origin: None,
        policy: Policy {
            interval: None,
            overlap: DAY,
        },
        triggers: Triggers::default(),
        keep: Keep::default(),
        shape: Shape::default(),
    }
}

fn following(value: u8) -> Declared {
    Declared {
        source: Source::Followed(Some(digest(value))),
        origin: Some("brought/key".to_owned()),
        ..declared()
    }
}

/// The attributes of a value that nobody declares.
fn plain(id: u8) -> Attributes {
    Attributes {
        name: SecretName::parse("db-password").unwrap(),
        id: VersionId([id; 16]),
        kind: Kind::Value,
        enabled: true,
        not_before: None,
        expires: None,
        created: start(),
        updated: start(),
        revision: 0,
        content_type: None,
        tags: BTreeMap::new(),
        managed: None,
        purge_at: None,
    }
}

/// The attributes of the value of a declared secret.
fn managed(generation: u32) -> Attributes {
    Attributes {
        managed: Some(Managed {
            generation,
            marks: Marks::default(),
            overlap: DAY.as_secs(),
            revoked: false,
            source: None,
            origin: None,
        }),
        ..plain(u8::try_from(generation).unwrap())
    }
}

fn marker(kind: Kind) -> Attributes {
    Attributes {
        kind,
        purge_at: (kind == Kind::Deleted).then(|| after(MONTH)),
        ..plain(99)
    }
}

const TAMPERED: Entry = Entry::Unreadable(Fault::Tampered);
const SHREDDED: Entry = Entry::Unreadable(Fault::Shredded { ring: 1 });

fn ok(attributes: Attributes) -> Entry {
    Entry::Authentic(Arc::new(attributes))
}

fn history<const N: usize>(entries: [Entry; N]) -> History {
    History((1..).zip(entries).collect())
}

/// One secret's objects in memory.
#[derive(Clone, Debug)]
struct Shelf {
    now: Timestamp,
    history: History,
    asked: Asked,
    purge_protection: bool,
    drawn: u8,
}

impl Shelf {
    fn new() -> Self {
        Self::with(History::default())
    }

    fn with(history: History) -> Self {
        Self {
            now: start(),
            history,
            asked: Asked::default(),
            purge_protection: false,
            drawn: 100,
        }
    }

    fn plan(&self, declared: Option<&Declared>, reached: impl Fn(u32) -> Reached) -> Plan {
        let setting = Setting {
            now: self.now,
            retention: MONTH,
            purge_protection: self.purge_protection,
            fresh: VersionId([self.drawn; 16]),
            vault: VAULT,
        };
        plan(&self.history, declared, self.asked, &setting, reached)
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::Create {
                sequence,
                attributes,
            }
            | Action::Mark {
                sequence,
                attributes,
            } => {
                let entries = &mut self.history.0;
                assert_eq!(
                    attributes.kind == Kind::Value,
                    matches!(action, Action::Create { .. })
                );
                let read = Attributes::parse(&attributes.render()).unwrap();
                assert_eq!(read, *attributes, "attributes read back equal");
                let taken = entries.insert(*sequence, ok(attributes.clone()));
                assert_eq!(taken, None);
                self.drawn = self.drawn.wrapping_add(1);
            }
            Action::Amend {
                sequence,
                attributes,
            } => {
                let before = self.history.0[sequence].attributes().unwrap();
                assert_eq!(attributes.revision, before.revision + 1);
                assert_eq!(attributes.updated, self.now);
                assert_eq!(attributes.id, before.id);
                self.history.0.insert(*sequence, ok(attributes.clone()));
            }
            Action::Remove { sequence, seen } => {
                assert_eq!(self.history.0.remove(sequence).unwrap(), *seen);
            }
        }
    }

    /// Looks until nothing is left to do; answers what was done and the last plan.
    fn look(
        &mut self,
        declared: Option<&Declared>,
        reached: impl Fn(u32) -> Reached,
    ) -> (Vec<Action>, Plan) {
        let mut done = Vec::new();
        for _ in 0..8 {
            let plan = self.plan(declared, &reached);
            if plan.actions.is_empty() {
                assert!(plan.next.is_none_or(|next| next > self.now));
                return (done, plan);
            }
            let entries = plan
                .actions
                .iter()
                .filter(|action| matches!(action, Action::Create { .. } | Action::Mark { .. }));
            assert!(entries.count() <= 1, "one entry at a time: {plan:?}");
            for action in &plan.actions {
                self.apply(action);
            }
            done.extend(plan.actions);
        }
        panic!("no rest: {done:?}");
    }

    fn current(&self) -> &Attributes {
        match self.history.state() {
            State::Live { current, .. } => current,
            other => panic!("{other:?}"),
        }
    }

    fn generation(&self) -> u32 {
        self.current().managed.as_ref().unwrap().generation
    }

    fn enabled(&self) -> Vec<u32> {
        let values = self.history.values().filter(|(_, value)| value.enabled);
        values.map(|(sequence, _)| sequence).collect()
    }

    fn numbers(&self) -> Vec<u32> {
        self.history.0.keys().copied().collect()
    }
}

/// What was done, in short: `+3` a value, `D4` `P4` `R4` a marker, `~2` amended, `-1` removed.
fn short(actions: &[Action]) -> String {
    let words: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::Create { sequence, .. } => format!("+{sequence}"),
            Action::Mark {
                sequence,
                attributes,
            } => format!("{:?}", attributes.kind)[..1].to_owned() + &sequence.to_string(),
            Action::Amend { sequence, .. } => format!("~{sequence}"),
            Action::Remove { sequence, .. } => format!("-{sequence}"),
        })
        .collect();
    words.join(" ")
}

// The first value

#[test]
fn the_first_value_takes_number_one_and_nothing_of_the_past_counts_as_asked() {
    let mut shelf = Shelf::new();
    let mut wish = declared();
    wish.triggers = Triggers {
        generation: 5,
        revoke_generation: 3,
        rotate_at: Some(after(-DAY)),
        revoke_at: Some(after(DAY)),
    };
    wish.shape.content_type = Some("text/plain".to_owned());
    let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
    assert_eq!(short(&done), "+1");
    assert_eq!(shelf.generation(), 1);
    assert_eq!(shelf.current().content_type.as_deref(), Some("text/plain"));
    // The moment that is still to come is kept in mind.
    assert_eq!(plan.next, Some(after(DAY)));
    let Standing::Live(live) = plan.standing else {
        panic!("{plan:?}");
    };
    assert_eq!((live.sequence, live.minted), (1, start()));
    assert!(!live.overlapping);
}

#[test]
fn what_is_neither_declared_nor_there_stays_so() {
    let plan = Shelf::new().plan(None, EVERYBODY);
    assert_eq!((plan.actions.len(), plan.next), (0, None));
    assert_eq!(plan.standing, Standing::Absent);
}

// Rotation

#[test]
fn each_trigger_turns_once_and_keeps_the_value_before_for_the_overlap() {
    let by_generation = Triggers {
        generation: 1,
        ..Triggers::default()
    };
    let by_annotation = Triggers {
        rotate_at: Some(after(DAY)),
        ..Triggers::default()
    };
    let by_interval = Declared {
        policy: Policy {
            interval: Some(MONTH),
            overlap: DAY,
        },
        ..declared()
    };
    for (wish, at) in [
        (
            Declared {
                triggers: by_generation,
                ..declared()
            },
            SignedDuration::ZERO,
        ),
        (
            Declared {
                triggers: by_annotation,
                ..declared()
            },
            DAY,
        ),
        (by_interval, MONTH),
    ] {
        let mut shelf = Shelf::with(history([ok(managed(1))]));
        shelf.now = after(at);
        let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
        assert_eq!(short(&done), "+2", "{wish:?}");
        assert_eq!(shelf.generation(), 2);
        assert_eq!(shelf.enabled(), [1, 2]);
        let end = add(shelf.now, DAY);
        assert_eq!(plan.next, Some(end));
        let Standing::Live(live) = plan.standing else {
            panic!("{wish:?}");
        };
        assert!(live.overlapping);
        assert_eq!(live.previous_until, Some(end));
        shelf.now = add(end, -SECOND);
        assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "");
        shelf.now = end;
        assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "~1");
        assert_eq!(shelf.enabled(), [2]);
        assert_eq!(shelf.history.previous(), None);
    }
}

#[test]
fn an_interval_turns_by_its_jitter_and_never_before() {
    let wish = Declared {
        policy: Policy {
            interval: Some(MONTH),
            overlap: DAY,
        },
        ..declared()
    };
    let mut shelf = Shelf::with(history([ok(managed(1))]));
    let plan = shelf.plan(Some(&wish), EVERYBODY);
    let due = plan.next.unwrap();
    assert!(due > after(MONTH - MONTH / 10) && due <= after(MONTH));
    let Standing::Live(live) = plan.standing else {
        panic!("{plan:?}");
    };
    assert_eq!(live.next_turn, Some(due));
    shelf.now = add(due, -SECOND);
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "");
    shelf.now = due;
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "+2");
}

#[test]
fn a_revocation_disables_all_values_before_at_once_whoever_has_them() {
    let mut wish = declared();
    wish.triggers.revoke_generation = 1;
    // A longer overlap that is declared later does not bring them back either.
    let mut longer = wish.clone();
    longer.policy.overlap = MONTH;
    for reached in [EVERYBODY, NOBODY] {
        let mut shelf = Shelf::with(history([ok(managed(1)), ok(managed(2))]));
        let (done, _) = shelf.look(Some(&wish), reached);
        assert_eq!(short(&done), "+3 ~1 ~2");
        assert_eq!(shelf.enabled(), [3]);
        assert!(shelf.current().managed.as_ref().unwrap().revoked);
        assert_eq!(short(&shelf.look(Some(&longer), reached).0), "");
        assert_eq!(shelf.history.previous(), None);
    }
    let mut by_annotation = declared();
    by_annotation.triggers.revoke_at = Some(after(DAY));
    let mut shelf = Shelf::with(history([ok(managed(1))]));
    let (done, plan) = shelf.look(Some(&by_annotation), NOBODY);
    assert_eq!((short(&done).as_str(), plan.next), ("", Some(after(DAY))));
    shelf.now = after(DAY);
    assert_eq!(short(&shelf.look(Some(&by_annotation), NOBODY).0), "+2 ~1");
}

// Overlap

#[test]
fn an_overlap_counts_from_when_everybody_has_the_successor() {
    let wish = declared();
    let mut shelf = Shelf::with(history([ok(managed(1)), ok(managed(2))]));
    shelf.now = after(MONTH);
    let (done, plan) = shelf.look(Some(&wish), NOBODY);
    assert_eq!(short(&done), "");
    assert_eq!(plan.next, None, "a change calls, not the clock");
    let Standing::Live(live) = plan.standing else {
        panic!("{plan:?}");
    };
    assert!(live.overlapping && live.previous_until.is_none());
    let since = |number| {
        assert_eq!(number, 2, "asked of the successor");
        Reached::Since(after(MONTH))
    };
    let (done, plan) = shelf.look(Some(&wish), since);
    assert_eq!(
        (short(&done).as_str(), plan.next),
        ("", Some(after(MONTH + DAY)))
    );
    shelf.now = after(MONTH + DAY);
    assert_eq!(short(&shelf.look(Some(&wish), since).0), "~1");
}

#[test]
fn an_overlap_can_be_lengthened_while_it_runs_and_a_shorter_one_breaks_no_promise() {
    let mut longer = declared();
    longer.policy.overlap = DAY * 3;
    let mut shorter = declared();
    shorter.policy.overlap = SignedDuration::ZERO;
    for (wish, end) in [(declared(), DAY), (longer, DAY * 3), (shorter, DAY)] {
        let mut shelf = Shelf::with(history([ok(managed(1)), ok(managed(2))]));
        shelf.now = after(DAY / 2);
        let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
        assert_eq!((short(&done).as_str(), plan.next), ("", Some(after(end))));
        shelf.now = after(end);
        assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "~1");
    }
}

#[test]
fn three_values_in_overlap_end_one_after_another() {
    let mut shelf = Shelf::with(history([ok(managed(1))]));
    let mut wish = declared();
    for turn in 1..4 {
        shelf.now = add(shelf.now, SignedDuration::from_hours(1));
        wish.triggers.generation = turn;
        shelf.look(Some(&wish), EVERYBODY);
    }
    assert_eq!(shelf.enabled(), [1, 2, 3, 4]);
    // One more waits until the first has ended, unless it is to revoke them.
    let mut more = shelf.clone();
    let mut asked = wish.clone();
    asked.triggers.generation = 9;
    let (done, plan) = more.look(Some(&asked), EVERYBODY);
    assert_eq!(short(&done), "");
    assert!(matches!(
        plan.standing,
        Standing::Live(Live { deferred: true, .. })
    ));
    let mut revoking = asked.clone();
    revoking.triggers.revoke_generation = 1;
    assert_eq!(
        short(&more.clone().look(Some(&revoking), EVERYBODY).0),
        "+5 ~1 ~2 ~3 ~4"
    );
    more.now = plan.next.unwrap();
    assert_eq!(short(&more.look(Some(&asked), EVERYBODY).0), "~1 +5");
    for left in [vec![2, 3, 4], vec![3, 4], vec![4]] {
        let next = shelf.plan(Some(&wish), EVERYBODY).next;
        shelf.now = next.unwrap();
        shelf.look(Some(&wish), EVERYBODY);
        assert_eq!(shelf.enabled(), left);
    }
    assert_eq!(shelf.plan(Some(&wish), EVERYBODY).next, None);
}

// Sources

#[test]
fn a_value_follows_its_source_and_only_a_change_of_it_turns() {
    let mut shelf = Shelf::new();
    let waiting = Declared {
        source: Source::Followed(None),
        ..declared()
    };
    let (done, plan) = shelf.look(Some(&waiting), EVERYBODY);
    assert_eq!(
        (short(&done).as_str(), plan.standing),
        ("", Standing::Awaiting)
    );
    assert_eq!(short(&shelf.look(Some(&following(1)), EVERYBODY).0), "+1");
    let source = |shelf: &Shelf| shelf.current().managed.as_ref().unwrap().source;
    assert_eq!(source(&shelf), Some(digest(1)));
    // The source cannot be used for a while; a trigger has nothing to turn to.
    let mut asked = following(1);
    asked.triggers.generation = 7;
    for wish in [&waiting, &following(1), &asked] {
        assert_eq!(short(&shelf.look(Some(wish), EVERYBODY).0), "");
    }
    assert_eq!(short(&shelf.look(Some(&following(2)), EVERYBODY).0), "+2");
    assert_eq!(source(&shelf), Some(digest(2)));
    assert_eq!(shelf.enabled(), [1, 2]);
    // A revocation ends the values before, and waits for the one that replaces the revoked one.
    let mut revoked = following(2);
    revoked.triggers.revoke_generation = 1;
    assert_eq!(short(&shelf.look(Some(&revoked), EVERYBODY).0), "~1");
    assert_eq!(short(&shelf.look(Some(&revoked), EVERYBODY).0), "");
    revoked.source = Source::Followed(Some(digest(3)));
    assert_eq!(short(&shelf.look(Some(&revoked), NOBODY).0), "+3 ~2");
    // The same value from another place is the same value.
    let mut moved = revoked.clone();
    moved.origin = Some("other/key".to_owned());
    let origin = |shelf: &Shelf| shelf.current().managed.as_ref().unwrap().origin.clone();
    assert_eq!(origin(&shelf), revoked.origin);
    assert_eq!(short(&shelf.look(Some(&moved), NOBODY).0), "~3");
    assert_eq!(origin(&shelf), moved.origin);
    // From now on Claviger makes it, at once: what was imported is not Claviger's to go on giving.
    let mut made = declared();
    made.triggers.revoke_generation = 1;
    assert_eq!(short(&shelf.look(Some(&made), EVERYBODY).0), "+4");
    assert_eq!(source(&shelf), None);
    assert_eq!(origin(&shelf), None);
    assert_eq!(short(&shelf.look(Some(&made), EVERYBODY).0), "");
}

#[test]
fn what_somebody_has_written_to_since_is_decided_anew() {
    let seen = managed(1);
    let mut amended = seen.clone();
    amended.revision += 1;
    let amend = Action::Amend {
        sequence: 1,
        attributes: amended.clone(),
    };
    let remove = Action::Remove {
        sequence: 1,
        seen: ok(seen.clone()),
    };
    for (entry, stands) in [
        (Some(ok(seen.clone())), true),
        (Some(ok(amended)), false),
        (Some(ok(plain(9))), false),
        (Some(TAMPERED), false),
        (None, false),
    ] {
        assert_eq!(amend.stands(entry.as_ref()), stands, "{entry:?}");
        assert_eq!(remove.stands(entry.as_ref()), stands, "{entry:?}");
    }
}

// Keep

#[test]
fn only_so_many_versions_are_kept_and_none_that_is_current_or_in_overlap() {
    let disabled = |generation| {
        ok(Attributes {
            enabled: false,
            ..managed(generation)
        })
    };
    let all = history([
        disabled(1),
        disabled(2),
        TAMPERED,
        disabled(3),
        ok(managed(4)),
        ok(managed(5)),
    ]);
    for (versions, left) in [
        (9, vec![1, 2, 3, 4, 5, 6]),
        (4, vec![1, 2, 3, 4, 5, 6]),
        (2, vec![3, 4, 5, 6]),
        (1, vec![4, 5, 6]),
        (0, vec![5, 6]),
    ] {
        let mut wish = declared();
        wish.keep.versions = versions;
        let mut shelf = Shelf::with(all.clone());
        shelf.now = after(LINGER);
        shelf.look(Some(&wish), EVERYBODY);
        assert_eq!(shelf.numbers(), left);
    }
}

#[test]
fn versions_are_kept_for_an_age_that_counts_from_their_replacement() {
    let at = |generation: u32, days: i32, enabled| {
        ok(Attributes {
            created: after(DAY * days),
            enabled,
            ..managed(generation)
        })
    };
    let mut wish = declared();
    wish.keep.age = Some(DAY * 10);
    let mut shelf = Shelf::with(history([at(1, 0, false), at(2, 5, false), at(3, 8, true)]));
    shelf.now = after(DAY * 9);
    let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
    assert_eq!(
        (short(&done).as_str(), plan.next),
        ("", Some(after(DAY * 15)))
    );
    shelf.now = after(DAY * 15);
    let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
    assert_eq!(
        (short(&done).as_str(), plan.next),
        ("-1", Some(after(DAY * 18)))
    );
    shelf.now = after(DAY * 18);
    let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
    assert_eq!((short(&done).as_str(), plan.next), ("-2", None));
}

#[test]
fn markers_that_decide_nothing_any_more_go() {
    let mut shelf = Shelf::with(history([
        ok(managed(1)),
        ok(marker(Kind::Deleted)),
        ok(Attributes {
            managed: managed(1).managed,
            ..marker(Kind::Recovered)
        }),
    ]));
    // Who decided on a write before it was made must find its number taken.
    let (done, plan) = shelf.look(Some(&declared()), EVERYBODY);
    assert_eq!(
        (short(&done).as_str(), plan.next),
        ("", Some(after(LINGER)))
    );
    shelf.now = after(LINGER);
    assert_eq!(short(&shelf.look(Some(&declared()), EVERYBODY).0), "-2");
    let mut wish = declared();
    wish.triggers.generation = 1;
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "+4 -3");
}

// Attributes

#[test]
fn the_current_value_gets_the_attributes_of_the_manifest_and_nothing_else_does() {
    let mut shelf = Shelf::with(history([ok(managed(1)), ok(managed(2))]));
    let mut wish = declared();
    wish.shape = Shape {
        content_type: Some("text/plain".to_owned()),
        tags: BTreeMap::from([("team".to_owned(), "payments".to_owned())]),
        not_before: Some(after(-DAY)),
        expires: Some(after(MONTH)),
    };
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "~2");
    assert_eq!(shelf.current().expires, Some(after(MONTH)));
    assert_eq!(short(&shelf.look(Some(&declared()), EVERYBODY).0), "~2");
    assert_eq!(shelf.current().expires, None);
    // Somebody disabled what is declared.
    let disabled = Attributes {
        enabled: false,
        ..shelf.current().clone()
    };
    shelf.history.0.insert(2, ok(disabled));
    assert_eq!(short(&shelf.look(Some(&declared()), EVERYBODY).0), "~2");
    assert_eq!(shelf.enabled(), [1, 2]);
}

// Deletion, recovery, purge

#[test]
fn a_secret_that_is_no_longer_declared_is_deleted_and_purged_after_its_retention() {
    let mut shelf = Shelf::with(history([ok(managed(1)), ok(managed(2))]));
    let (done, plan) = shelf.look(None, EVERYBODY);
    assert_eq!(short(&done), "D3");
    assert_eq!(plan.next, Some(after(MONTH)));
    assert_eq!(plan.standing, Standing::Deleted(after(MONTH)));
    // A change of the retention or protection does not move an end that is set.
    shelf.purge_protection = true;
    shelf.now = after(MONTH - SECOND);
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "");
    shelf.now = after(MONTH);
    let (done, plan) = shelf.look(None, EVERYBODY);
    assert_eq!(short(&done), "P4 -1 -2 -3 -4");
    assert_eq!(plan.standing, Standing::Absent);
    assert!(shelf.history.0.is_empty());
}

#[test]
fn what_nobody_declared_is_not_deleted() {
    for entries in [
        history([ok(plain(1))]),
        history([ok(managed(1)), ok(plain(2))]),
        history([
            ok(managed(1)),
            ok(marker(Kind::Deleted)),
            ok(marker(Kind::Recovered)),
        ]),
        history([TAMPERED]),
    ] {
        assert_eq!(short(&Shelf::with(entries).look(None, EVERYBODY).0), "");
    }
}

#[test]
fn to_declare_a_deleted_secret_recovers_it_with_its_value() {
    let mut shelf = Shelf::with(history([ok(managed(1)), ok(managed(2))]));
    shelf.look(None, EVERYBODY);
    // Even past its retention, as long as it was not purged.
    shelf.now = after(MONTH * 2);
    let mut wish = declared();
    wish.keep.versions = 9;
    let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
    assert_eq!(short(&done), "R4 ~1 -3");
    assert_eq!(shelf.current().id, managed(2).id);
    assert!(matches!(
        plan.standing,
        Standing::Live(Live { generation: 2, .. })
    ));
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "D5");
}

#[test]
fn to_declare_a_secret_that_somebody_else_set_and_deleted_turns_nothing() {
    let mut shelf = Shelf::with(history([ok(plain(1)), ok(marker(Kind::Deleted))]));
    let mut wish = declared();
    wish.triggers = Triggers {
        generation: 1,
        revoke_generation: 1,
        rotate_at: Some(start()),
        revoke_at: Some(start()),
    };
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "R3");
    assert_eq!(shelf.enabled(), [1]);
}

#[test]
fn an_annotation_recovers_when_its_time_comes_and_one_of_before_the_deletion_does_nothing() {
    let deleted = history([ok(managed(1)), ok(marker(Kind::Deleted))]);
    let mut shelf = Shelf::with(deleted);
    shelf.asked.recover = Some(start());
    shelf.now = after(DAY);
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "");
    shelf.asked.recover = Some(after(DAY * 2));
    let (done, plan) = shelf.look(None, EVERYBODY);
    assert_eq!(
        (short(&done).as_str(), plan.next),
        ("", Some(after(DAY * 2)))
    );
    shelf.now = after(DAY * 2);
    // It is nobody's afterwards, so it stays.
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "R3");
    assert_eq!(shelf.current().id, managed(1).id);
}

#[test]
fn an_annotation_purges_when_its_time_comes_unless_the_vault_is_protected() {
    let deleted = history([ok(managed(1)), ok(marker(Kind::Deleted))]);
    let mut shelf = Shelf::with(deleted);
    shelf.asked.purge = Some(after(-DAY));
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "");
    shelf.asked.purge = Some(after(DAY));
    assert_eq!(shelf.look(None, EVERYBODY).1.next, Some(after(DAY)));
    shelf.now = after(DAY);
    let mut protected = shelf.clone();
    protected.purge_protection = true;
    let (done, plan) = protected.look(None, EVERYBODY);
    assert_eq!((short(&done).as_str(), plan.next), ("", Some(after(MONTH))));
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "P3 -1 -2 -3");
    // Who asks for both gets it back.
    let mut both = protected;
    both.purge_protection = false;
    both.asked.recover = Some(after(DAY));
    assert_eq!(short(&both.look(None, EVERYBODY).0), "R3");
}

#[test]
fn only_what_is_deleted_is_purged() {
    let mut shelf = Shelf::with(history([ok(plain(1))]));
    shelf.asked.purge = Some(after(DAY));
    shelf.now = after(DAY);
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "");
}

#[test]
fn a_purge_goes_on_from_wherever_it_was_interrupted_though_the_secret_is_declared_again() {
    let whole = history([
        ok(managed(1)),
        TAMPERED,
        ok(marker(Kind::Deleted)),
        ok(marker(Kind::Purging)),
    ]);
    for wish in [None, Some(declared())] {
        let mut cut = Shelf::with(whole.clone());
        for gone in 0..4 {
            let mut shelf = cut.clone();
            let (done, plan) = shelf.look(wish.as_ref(), EVERYBODY);
            let mut expected: Vec<String> =
                (gone + 1..5).map(|number| format!("-{number}")).collect();
            if wish.is_some() {
                expected.push("+1".to_owned());
                assert!(matches!(plan.standing, Standing::Live(_)));
                assert_eq!(shelf.generation(), 1);
            }
            assert_eq!(short(&done), expected.join(" "));
            // One step, then the operator dies.
            let actions = cut.plan(wish.as_ref(), EVERYBODY).actions;
            cut.apply(&actions[0]);
        }
    }
}

#[test]
fn markers_without_values_are_cleared_away() {
    for kind in [Kind::Deleted, Kind::Recovered] {
        let mut shelf = Shelf::with(history([ok(marker(kind))]));
        assert_eq!(short(&shelf.look(None, EVERYBODY).0), "-1");
        let mut shelf = Shelf::with(history([ok(marker(kind))]));
        shelf.now = after(LINGER);
        assert_eq!(short(&shelf.look(Some(&declared()), EVERYBODY).0), "+2 -1");
    }
}

// Adoption

#[test]
fn a_secret_that_was_there_is_taken_over_with_its_value() {
    let mut wish = declared();
    wish.triggers.generation = 4;
    wish.triggers.revoke_generation = 4;
    let mut shelf = Shelf::with(history([ok(plain(1)), ok(plain(2))]));
    let (done, _) = shelf.look(Some(&wish), NOBODY);
    assert_eq!(short(&done), "~2");
    assert_eq!(shelf.generation(), 1);
    assert_eq!(shelf.enabled(), [1, 2]);
    assert_eq!(short(&shelf.look(None, NOBODY).0), "D3");
    // Recovered by somebody else: the marker says whose it is.
    let mut shelf = Shelf::with(history([
        ok(plain(1)),
        ok(marker(Kind::Deleted)),
        ok(marker(Kind::Recovered)),
    ]));
    assert_eq!(short(&shelf.look(Some(&wish), NOBODY).0), "~3");
    assert_eq!(shelf.current().id, plain(1).id);
    assert!(shelf.history.is_managed());
}

#[test]
fn a_secret_that_was_there_gives_way_to_a_source_once_it_can_be_used() {
    let mut shelf = Shelf::with(history([ok(plain(1))]));
    let waiting = Declared {
        source: Source::Followed(None),
        ..declared()
    };
    let (done, plan) = shelf.look(Some(&waiting), EVERYBODY);
    assert_eq!(
        (short(&done).as_str(), plan.standing),
        ("", Standing::Awaiting)
    );
    assert_eq!(short(&shelf.look(Some(&following(1)), EVERYBODY).0), "+2");
    assert_eq!(shelf.enabled(), [1, 2]);
}

#[test]
fn an_old_value_that_is_taken_over_turns_when_it_is_due() {
    let wish = Declared {
        policy: Policy {
            interval: Some(MONTH),
            overlap: DAY,
        },
        ..declared()
    };
    let mut shelf = Shelf::with(history([ok(plain(1))]));
    shelf.now = after(MONTH * 2);
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "~1 +2");
}

// What cannot be trusted

#[test]
fn a_shredded_value_is_replaced_and_another_that_does_not_open_only_when_asked_to() {
    let mut asked = declared();
    asked.triggers.generation = 1;
    for (newest, wish, done) in [
        (SHREDDED, declared(), "+3"),
        (TAMPERED, declared(), ""),
        (TAMPERED, asked.clone(), "+3"),
        (
            Entry::Unreadable(Fault::UnknownRing { ring: 4 }),
            declared(),
            "",
        ),
        (Entry::Unreadable(Fault::RolledBack), declared(), ""),
        (Entry::Unreadable(Fault::RolledBack), asked.clone(), "+3"),
    ] {
        let mut shelf = Shelf::with(history([ok(managed(1)), newest.clone()]));
        let (all, plan) = shelf.look(Some(&wish), NOBODY);
        assert_eq!(short(&all), done, "{newest:?}");
        if done.is_empty() {
            assert!(matches!(plan.standing, Standing::Broken(2, _)));
        } else {
            assert_eq!(shelf.generation(), 2);
            assert_eq!(shelf.numbers(), [1, 2, 3]);
        }
        // A source that cannot be used cannot replace it.
        let waiting = Declared {
            source: Source::Followed(None),
            ..wish
        };
        let mut shelf = Shelf::with(history([ok(managed(1)), newest]));
        let (all, plan) = shelf.look(Some(&waiting), NOBODY);
        assert_eq!(short(&all), "");
        assert!(matches!(plan.standing, Standing::Broken(2, _)));
    }
    let mut shelf = Shelf::with(history([SHREDDED]));
    assert_eq!(short(&shelf.look(Some(&declared()), NOBODY).0), "+2");
}

#[test]
fn what_does_not_open_further_back_stands_in_no_way() {
    let mut shelf = Shelf::with(history([SHREDDED, TAMPERED, ok(managed(1))]));
    assert_eq!(short(&shelf.look(Some(&declared()), EVERYBODY).0), "");
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "D4");
    shelf.now = after(MONTH);
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "P5 -1 -2 -3 -4 -5");
}

// Clocks

#[test]
fn a_value_made_while_the_clock_was_ahead_counts_from_now() {
    let ahead = |generation: u32, by| {
        ok(Attributes {
            created: after(by),
            ..managed(generation)
        })
    };
    let wish = Declared {
        policy: Policy {
            interval: Some(MONTH),
            overlap: DAY,
        },
        ..declared()
    };
    // What two machines' clocks differ by is no reason.
    let mut shelf = Shelf::with(history([ok(managed(1)), ahead(2, SECOND * 100)]));
    assert_eq!(short(&shelf.look(Some(&wish), EVERYBODY).0), "");
    let mut shelf = Shelf::with(history([ok(managed(1)), ahead(2, MONTH * 100)]));
    let (done, plan) = shelf.look(Some(&wish), EVERYBODY);
    assert_eq!(short(&done), "~2");
    assert_eq!(shelf.current().created, start());
    assert_eq!(plan.next, Some(after(DAY)), "the overlap counts from now");
}

#[test]
fn values_before_it_that_were_made_while_the_clock_was_ahead_do_not_stay_for_years() {
    let ahead = |generation: u32, by| {
        ok(Attributes {
            created: after(by),
            ..managed(generation)
        })
    };
    let mut shelf = Shelf::with(history([
        ok(managed(1)),
        ahead(2, MONTH * 100),
        ahead(3, MONTH * 101),
    ]));
    let (_, plan) = shelf.look(Some(&declared()), EVERYBODY);
    assert_eq!(plan.next, Some(after(DAY)));
    shelf.now = after(DAY);
    shelf.look(Some(&declared()), EVERYBODY);
    assert_eq!(shelf.enabled(), [3]);
}

#[test]
fn a_deletion_made_while_the_clock_was_ahead_can_be_taken_back_and_ends_no_sooner() {
    let mut shelf = Shelf::with(history([
        ok(managed(1)),
        ok(Attributes {
            created: after(MONTH * 100),
            purge_at: Some(after(MONTH * 101)),
            ..marker(Kind::Deleted)
        }),
    ]));
    let (done, plan) = shelf.look(None, EVERYBODY);
    assert_eq!(short(&done), "~2");
    assert_eq!(plan.next, Some(after(MONTH * 101)));
    shelf.now = after(DAY);
    shelf.asked.recover = Some(after(DAY));
    assert_eq!(short(&shelf.look(None, EVERYBODY).0), "R3");
}

// In all

#[test]
fn a_year_of_daily_turns_takes_few_looks() {
    let wish = Declared {
        policy: Policy {
            interval: Some(DAY),
            overlap: DAY / 2,
        },
        keep: Keep {
            versions: 5,
            age: None,
        },
        ..declared()
    };
    let mut shelf = Shelf::new();
    let mut looks = 0;
    while shelf.now < after(DAY * 365) {
        let (_, plan) = shelf.look(Some(&wish), EVERYBODY);
        let Standing::Live(live) = plan.standing else {
            panic!("no value");
        };
        assert!(shelf.history.0.len() <= 7);
        assert!(shelf.now < live.next_turn.unwrap());
        assert!(live.previous_until.is_none_or(|until| until > shelf.now));
        shelf.now = plan.next.unwrap();
        looks += 1;
    }
    assert!(
        (365..=406).contains(&shelf.generation()),
        "{}",
        shelf.generation()
    );
    assert!(looks < 900, "{looks}");
}
