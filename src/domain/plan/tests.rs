//! Rules as sentences; [`world`] holds them against random histories.

mod world;

use super::*;

const RELOAD: SignedDuration = SignedDuration::from_secs(90);
const DAY: SignedDuration = SignedDuration::from_hours(24);
const MONTH: SignedDuration = SignedDuration::from_hours(720);

fn start() -> Timestamp {
    "2026-11-22T08:00:00Z".parse().unwrap()
}

fn value(text: &str) -> KeyMaterial {
    KeyMaterial::new(text)
}

fn hours(count: i64) -> SignedDuration {
    SignedDuration::from_hours(count)
}

/// A key store, and what Claviger keeps beside it, in memory.
#[derive(Clone)]
struct Shelf {
    now: Timestamp,
    stored: Stored,
    /// What a sealed copy holds.
    kept: BTreeMap<String, KeyMaterial>,
    spared: HashSet<String>,
    minted: u32,
}

impl Shelf {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(values: &[(&str, &str)]) -> Self {
        let values = values
            .iter()
            .map(|(entry, text)| ((*entry).to_owned(), value(text)))
            .collect();
        Self {
            now: start(),
            stored: Stored {
                values,
                ledger: Ledger::default(),
            },
            kept: BTreeMap::new(),
            spared: HashSet::new(),
            minted: 0,
        }
    }

    fn plan(&mut self, declared: &[Declared]) -> Plan {
        self.plan_at(self.now, declared)
    }

    fn plan_at(&mut self, now: Timestamp, declared: &[Declared]) -> Plan {
        let input = Input {
            now,
            host_reload: RELOAD,
            stored: &self.stored,
            kept: &self.kept,
            declared,
            spared: &self.spared,
        };
        let minted = &mut self.minted;
        plan(input, &mut |kind| {
            *minted += 1;
            value(&format!("minted {minted} {kind:?}"))
        })
    }

    fn apply(&mut self, plan: &Plan) {
        for (entry, change) in &plan.changes {
            match change {
                Some(value) => self.stored.values.insert(entry.clone(), value.clone()),
                None => self.stored.values.remove(entry),
            };
        }
        let before = std::mem::replace(
            &mut self.stored.ledger,
            Ledger::parse(&plan.ledger.render()).unwrap(),
        );
        assert_eq!(self.stored.ledger, plan.ledger, "a ledger reads back equal");
        if !plan.changes.is_empty() || digests(&before) != digests(&plan.ledger) {
            self.kept = self.published();
        }
    }

    /// What of ours stands, as it goes into the sealed copy.
    fn published(&self) -> BTreeMap<String, KeyMaterial> {
        let entries = self.stored.ledger.entries.iter();
        entries
            .flat_map(|(entry, record)| {
                let previous = record.previous.iter();
                previous
                    .map(|previous| layout::previous(entry, previous.generation))
                    .chain([entry.clone()])
            })
            .filter_map(|entry| Some((entry.clone(), self.stored.values.get(&entry)?.clone())))
            .collect()
    }

    /// Plans, applies, and holds that nothing more is to be done.
    fn look(&mut self, declared: &[Declared]) -> Plan {
        let plan = self.plan(declared);
        self.apply(&plan);
        let again = self.plan(declared);
        assert!(again.changes.is_empty(), "{:?}", again.changes.keys());
        assert_eq!(again.ledger, plan.ledger);
        assert_eq!(again.next_look, plan.next_look);
        assert!(plan.next_look.is_none_or(|at| at > self.now));
        plan
    }

    fn look_after(&mut self, span: SignedDuration, declared: &[Declared]) -> Plan {
        self.now = add(self.now, span);
        self.look(declared)
    }

    fn text(&self, entry: &str) -> Option<&str> {
        self.stored.values.get(entry).map(KeyMaterial::expose)
    }

    fn set(&mut self, entry: &str, text: &str) {
        self.stored.values.insert(entry.to_owned(), value(text));
    }

    fn drop(&mut self, entry: &str) {
        self.stored.values.remove(entry).unwrap();
    }

    fn record(&self, entry: &str) -> &Record {
        &self.stored.ledger.entries[entry]
    }

    fn entries(&self) -> Vec<&str> {
        self.stored.values.keys().map(String::as_str).collect()
    }
}

fn digests(ledger: &Ledger) -> Vec<Digest> {
    let records = ledger.entries.values();
    records
        .flat_map(|record| {
            let previous = record.previous.iter().map(|previous| previous.digest);
            previous.chain([record.digest])
        })
        .collect()
}

fn declare(name: &str, key: KeyRef) -> Declared {
    let overlap = if key.can_overlap() {
        DAY
    } else {
        SignedDuration::ZERO
    };
    Declared {
        owner: Owner {
            name: name.to_owned(),
            uid: format!("uid of {name}"),
        },
        created: start(),
        key,
        policy: Policy {
            interval: None,
            overlap,
        },
        triggers: Triggers::default(),
        supply: Supply::Mint,
        drift: Drift::Adopt,
        deletion: DeletionPolicy::Delete,
        suspended: false,
        distribution: Distribution::None,
        salvage: None,
    }
}

fn host(key: &str) -> Declared {
    declare(
        key,
        KeyRef::Host {
            key: key.to_owned(),
        },
    )
}

fn master() -> Declared {
    declare("master", KeyRef::Master)
}

const ENTRY: &str = "host.function.default";

fn previous(generation: u32) -> String {
    layout::previous(ENTRY, generation)
}

/// Raises `generation` and looks.
fn turn(shelf: &mut Shelf, declared: &mut Declared) -> Plan {
    declared.triggers.generation += 1;
    shelf.look(std::slice::from_ref(declared))
}

// First sight

#[test]
fn a_first_value_is_minted_with_a_master_key_beside_it() {
    let mut shelf = Shelf::new();
    let plan = shelf.look(&[host("default")]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Minted]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
    assert_eq!(shelf.text(layout::MASTER), Some("minted 2 Master"));
    assert_eq!(shelf.record(layout::MASTER).owner, None);
    assert_eq!(plan.next_look, None);
}

#[test]
fn a_master_key_of_others_is_left_alone_when_none_is_declared() {
    let mut shelf = Shelf::with(&[("host.masterX", "theirs")]);
    shelf.look(&[host("default")]);
    assert_eq!(shelf.entries(), [ENTRY, "host.masterX"]);
    assert!(!shelf.stored.ledger.entries.contains_key(layout::MASTER));
}

#[test]
fn adoption_keeps_values() {
    let mut shelf = Shelf::with(&[(ENTRY, "theirs"), (layout::MASTER, "theirs too")]);
    let plan = shelf.look(&[host("default"), master()]);
    assert!(plan.changes.is_empty());
    for verdict in &plan.verdicts {
        assert_eq!(verdict.occurrences, [Occurrence::Adopted]);
        let record = verdict.record.as_ref().unwrap();
        assert_eq!((record.origin, record.generation), (Origin::Adopted, 1));
    }
}

#[test]
fn an_empty_value_is_no_value() {
    let mut shelf = Shelf::with(&[(ENTRY, ""), (layout::MASTER, "")]);
    shelf.look(&[host("default")]);
    assert_eq!(shelf.text(ENTRY), Some("minted 1 Function"));
    assert_eq!(shelf.text(layout::MASTER), Some("minted 2 Master"));
}

#[test]
fn a_full_store_takes_no_further_key_and_keeps_those_it_has() {
    let mut shelf = Shelf::new();
    let mut declared: Vec<Declared> = (0..MAX_KEYS).map(|key| host(&format!("k{key}"))).collect();
    shelf.look(&declared);
    declared.push(host("one-more"));
    let plan = shelf.look(&declared);
    assert_eq!(plan.verdicts[MAX_KEYS].problem, Some(Problem::Full));
    assert!(
        plan.verdicts[..MAX_KEYS]
            .iter()
            .all(|verdict| verdict.problem.is_none())
    );
    declared.remove(0);
    let plan = shelf.look(&declared);
    assert_eq!(plan.verdicts[MAX_KEYS - 1].problem, None);
    // The bookkeeping of a full store fits even while every key has all its previous values.
    for _ in 0..MAX_PREVIOUS {
        for declared in &mut declared {
            declared.triggers.generation += 1;
        }
        shelf.look(&declared);
    }
    let sealed = shelf
        .kept
        .keys()
        .map(|entry| (entry.len() + 56 + 6) * 4 / 3);
    let annotations = shelf.stored.ledger.render().len() + sealed.sum::<usize>();
    assert!(annotations < 256 << 10, "{annotations} bytes");
}

#[test]
fn the_first_sight_is_the_baseline() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.triggers = Triggers {
        generation: 7,
        revoke_generation: 3,
        rotate_at: Some(start()),
        revoke_at: Some(start()),
    };
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Minted]);
    shelf.look_after(hours(9999), std::slice::from_ref(&declared));
    assert_eq!(shelf.record(ENTRY).generation, 1);
    turn(&mut shelf, &mut declared);
    assert_eq!(shelf.record(ENTRY).generation, 2);
}

#[test]
fn a_moment_still_to_come_at_first_sight_is_kept() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.triggers.rotate_at = Some(add(start(), hours(9)));
    declared.triggers.revoke_at = Some(add(start(), hours(9999)));
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.next_look, declared.triggers.rotate_at);
    shelf.look_after(hours(9), std::slice::from_ref(&declared));
    assert_eq!(shelf.record(ENTRY).generation, 2);
    // An earlier revocation asked for meanwhile is not taken for done.
    declared.triggers.revoke_at = Some(shelf.now);
    let plan = shelf.look_after(hours(1), &[declared]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Revoked]);
}

#[test]
fn a_lost_ledger_takes_previous_values_back_with_a_new_overlap() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    shelf.now = add(shelf.now, hours(20));
    shelf.stored.ledger = Ledger::default();
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert!(plan.changes.is_empty());
    let record = shelf.record(ENTRY);
    assert_eq!(record.generation, 2);
    assert_eq!(record.previous[0].generation, 1);
    assert_eq!(record.previous[0].retires, Some(add(shelf.now, DAY)));
    shelf.look_after(DAY, &[declared]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
}

#[test]
fn of_a_lost_ledger_the_newest_three_previous_values_come_back() {
    let mut shelf = Shelf::with(&[
        (ENTRY, "current"),
        ("host.function.default.previous-2", "two"),
        ("host.function.default.previous-3", "three"),
        ("host.function.default.previous-10", "ten"),
        ("host.function.default.previous-4", "four"),
        (
            "host.function.default.previous-05",
            "a name that is not ours",
        ),
        ("host.master", "m"),
    ]);
    shelf.look(&[host("default")]);
    let record = shelf.record(ENTRY);
    let generations: Vec<u32> = record.previous.iter().map(|it| it.generation).collect();
    assert_eq!((generations, record.generation), (vec![3, 4, 10], 11));
    assert_eq!(shelf.text(&previous(2)), None);
    assert!(shelf.text("host.function.default.previous-05").is_some());
}

#[test]
fn what_clients_hold_brings_a_deleted_store_back() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.salvage = Some((7, value("held")));
    declared.distribution = Distribution::Complete {
        generation: 7,
        at: start(),
    };
    for (supply, origin) in [
        (Supply::Mint, Origin::Minted),
        (Supply::Given(value("held")), Origin::Supplied),
        (Supply::Withheld, Origin::Supplied),
    ] {
        declared.supply = supply;
        let mut shelf = shelf.clone();
        let plan = shelf.look(std::slice::from_ref(&declared));
        assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Restored]);
        assert_eq!(shelf.text(ENTRY), Some("held"));
        let record = shelf.record(ENTRY);
        assert_eq!((record.generation, record.origin), (7, origin));
    }
    // A source that has changed since then is followed with an overlap.
    declared.supply = Supply::Given(value("chosen"));
    shelf.look(&[declared]);
    assert_eq!(shelf.text(ENTRY), Some("chosen"));
    assert_eq!(shelf.text(&previous(7)), Some("held"));
}

#[test]
fn what_clients_hold_tells_how_far_generations_were() {
    for (standing, generation) in [("held", 7), ("newer", 8)] {
        let mut shelf = Shelf::with(&[(ENTRY, standing)]);
        let mut declared = host("default");
        declared.salvage = Some((7, value("held")));
        shelf.look(&[declared]);
        assert_eq!(shelf.text(ENTRY), Some(standing));
        assert_eq!(shelf.record(ENTRY).generation, generation);
    }
}

// Names and owners

#[test]
fn key_names_are_compared_without_case() {
    let mut shelf = Shelf::with(&[("functions.orders.Default", "theirs")]);
    let key = |function: &str, key: &str| KeyRef::Function {
        function: function.to_owned(),
        key: key.to_owned(),
    };
    let declared = declare("a", key("Orders", "DEFAULT"));
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].entry, "functions.orders.Default");
    assert_eq!(shelf.text("functions.orders.Default"), Some("theirs"));
    // A host that leaves both spellings behind does not make another key of it.
    shelf.set("functions.orders.DEFAULT", "another");
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].entry, "functions.orders.Default");
    assert_eq!(plan.ledger.entries.len(), 2);
    // Two spellings are one key to claim as well.
    let plan = shelf.look(&[declared, declare("b", key("orders", "default"))]);
    assert_eq!(
        plan.verdicts[1].problem,
        Some(Problem::Conflict("a".into()))
    );
}

#[test]
fn a_renewal_under_another_spelling_is_a_renewal() {
    for (drift, text, occurrence) in [
        (Drift::Adopt, "renewed", Occurrence::DriftAdopted),
        (Drift::Enforce, "minted 1 Function", Occurrence::DriftUndone),
    ] {
        let mut shelf = Shelf::new();
        let mut declared = host("default");
        declared.drift = drift;
        shelf.look(std::slice::from_ref(&declared));
        shelf.drop(ENTRY);
        shelf.set("host.function.DEFAULT", "renewed");
        let plan = shelf.look(&[declared]);
        assert_eq!(plan.verdicts[0].occurrences, [occurrence]);
        assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
        assert_eq!(shelf.text(ENTRY), Some(text));
    }
}

#[test]
fn a_revocation_and_a_deletion_take_other_spellings_along() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    shelf.set("host.function.DEFAULT", "another");
    shelf.look(std::slice::from_ref(&declared));
    assert!(shelf.text("host.function.DEFAULT").is_some());
    declared.triggers.revoke_generation = 1;
    shelf.look(&[declared]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
    shelf.set("host.function.DEFAULT", "another");
    shelf.look(&[]);
    assert!(shelf.entries().is_empty());
}

#[test]
fn of_two_resources_for_one_entry_the_incumbent_wins_then_the_older_then_the_name() {
    let key = |name: &str| {
        declare(
            name,
            KeyRef::Host {
                key: "default".into(),
            },
        )
    };
    let (mut old, young) = (key("z-old"), key("a-young"));
    old.created = add(start(), -hours(1));
    let conflict = |name: &str| Some(Problem::Conflict(name.to_owned()));
    let plan = Shelf::new().look(&[young.clone(), old.clone()]);
    assert_eq!(plan.verdicts[0].problem, conflict("z-old"));
    assert_eq!(plan.verdicts[1].problem, None);

    let mut shelf = Shelf::new();
    shelf.look(std::slice::from_ref(&young));
    let plan = shelf.look(&[young.clone(), old.clone()]);
    assert_eq!(plan.verdicts[1].problem, conflict("a-young"));
    // The value goes over to the other when the incumbent is deleted.
    let plan = shelf.look(&[old]);
    assert_eq!(plan.verdicts[0].problem, None);
    assert_eq!(shelf.text(ENTRY), Some("minted 1 Function"));

    let plan = Shelf::new().look(&[key("b"), key("a")]);
    assert_eq!(plan.verdicts[0].problem, conflict("a"));
}

#[test]
fn a_resource_made_anew_under_its_name_continues_what_it_left() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.triggers.generation = 5;
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    declared.owner.uid = "another".into();
    declared.triggers.generation = 9;
    declared.triggers.revoke_generation = 9;
    let plan = shelf.look(&[declared]);
    assert!(plan.verdicts[0].occurrences.is_empty());
    let record = shelf.record(ENTRY);
    assert_eq!((record.generation, record.previous.len()), (2, 1));
}

// Turns and overlap

#[test]
fn a_turn_keeps_the_previous_value_until_its_overlap_ends() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    let plan = turn(&mut shelf, &mut declared);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Rotated]);
    assert_eq!(shelf.text(ENTRY), Some("minted 3 Function"));
    assert_eq!(shelf.text(&previous(1)), Some("minted 1 Function"));
    let end = add(add(start(), RELOAD), DAY);
    assert_eq!(plan.next_look, Some(end));
    shelf.now = add(end, SignedDuration::from_millis(-1));
    assert!(
        shelf
            .look(std::slice::from_ref(&declared))
            .changes
            .is_empty()
    );
    shelf.now = end;
    let plan = shelf.look(&[declared]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Retired]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
}

#[test]
fn a_key_turns_by_its_schedule() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.policy.interval = Some(MONTH);
    let plan = shelf.look(std::slice::from_ref(&declared));
    let due = declared.policy.due(start(), &declared.owner.uid);
    assert_eq!(plan.next_look, due);
    assert_eq!(plan.verdicts[0].next_turn, due);
    shelf.now = add(due.unwrap(), SignedDuration::from_millis(-1));
    shelf.look(std::slice::from_ref(&declared));
    assert_eq!(shelf.record(ENTRY).generation, 1);
    shelf.now = due.unwrap();
    shelf.look(&[declared]);
    assert_eq!(shelf.record(ENTRY).generation, 2);
}

#[test]
fn a_revert_of_generation_does_nothing() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    declared.triggers.generation = 5;
    shelf.look(std::slice::from_ref(&declared));
    for generation in [0, 5, 4] {
        declared.triggers.generation = generation;
        let plan = shelf.look(std::slice::from_ref(&declared));
        assert!(plan.verdicts[0].occurrences.is_empty());
    }
    declared.triggers.generation = 6;
    shelf.look(&[declared]);
    assert_eq!(shelf.record(ENTRY).generation, 3);
}

#[test]
fn a_turn_with_three_previous_values_waits_for_the_first_to_retire() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    for _ in 0..3 {
        turn(&mut shelf, &mut declared);
        shelf.now = add(shelf.now, hours(1));
    }
    let plan = turn(&mut shelf, &mut declared);
    assert_eq!(plan.verdicts[0].notes, [Note::TurnDeferred]);
    assert_eq!(shelf.record(ENTRY).generation, 4);
    let end = add(add(start(), RELOAD), DAY);
    assert_eq!(plan.next_look, Some(end));
    // The place that becomes free is taken in the same look.
    shelf.now = end;
    let plan = shelf.look(&[declared]);
    assert_eq!(
        plan.verdicts[0].occurrences,
        [Occurrence::Rotated, Occurrence::Retired]
    );
    assert!(plan.verdicts[0].notes.is_empty());
    assert_eq!(shelf.record(ENTRY).previous.len(), 3);
}

#[test]
fn a_revocation_announced_while_a_turn_waits_is_not_overslept() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    for _ in 0..3 {
        turn(&mut shelf, &mut declared);
    }
    declared.triggers.revoke_at = Some(add(shelf.now, hours(1)));
    let plan = turn(&mut shelf, &mut declared);
    assert_eq!(plan.verdicts[0].notes, [Note::TurnDeferred]);
    assert_eq!(plan.next_look, declared.triggers.revoke_at);
    shelf.look_after(hours(1), &[declared]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
}

#[test]
fn only_a_revocation_cuts_an_overlap() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    turn(&mut shelf, &mut declared);
    declared.triggers.revoke_generation = 1;
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Revoked]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
    let record = shelf.record(ENTRY);
    assert_eq!((record.generation, record.shown), (4, shelf.now));
    assert_eq!(record.revoked, Some(shelf.now));
    // Once is enough, and a revert does nothing.
    shelf.look(std::slice::from_ref(&declared));
    declared.triggers.revoke_generation = 0;
    shelf.look(&[declared]);
    assert_eq!(shelf.record(ENTRY).generation, 4);
}

#[test]
fn a_longer_overlap_extends_those_that_run_and_a_shorter_one_cuts_none() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    let retires = |shelf: &Shelf| shelf.record(ENTRY).previous[0].retires.unwrap();
    let shown = add(start(), RELOAD);
    declared.policy.overlap = hours(1);
    shelf.look_after(hours(2), std::slice::from_ref(&declared));
    assert_eq!(retires(&shelf), add(shown, DAY));
    declared.policy.overlap = hours(48);
    shelf.look(std::slice::from_ref(&declared));
    assert_eq!(retires(&shelf), add(shown, hours(48)));
    declared.policy.overlap = hours(1);
    turn(&mut shelf, &mut declared);
    let record = shelf.record(ENTRY);
    assert_eq!(record.previous[0].retires, Some(add(shown, hours(48))));
    let second = add(add(shelf.now, RELOAD), hours(1));
    assert_eq!(record.previous[1].retires, Some(second));
}

#[test]
fn the_master_key_turns_without_overlap() {
    let mut shelf = Shelf::new();
    let mut declared = master();
    declared.policy.interval = Some(MONTH);
    shelf.look(std::slice::from_ref(&declared));
    let plan = turn(&mut shelf, &mut declared);
    assert_eq!(shelf.entries(), [layout::MASTER]);
    let record = shelf.record(layout::MASTER);
    assert_eq!((record.generation, record.shown), (2, start()));
    assert!(record.previous.is_empty());
    assert_eq!(plan.verdicts[0].handout.as_ref().unwrap().generation, 2);
}

#[test]
fn a_master_key_is_what_the_host_takes_for_it() {
    // The host takes the last entry that begins like it.
    let mut shelf = Shelf::with(&[("host.master", "first"), ("host.master.old", "last")]);
    let mut declared = master();
    shelf.look(std::slice::from_ref(&declared));
    assert_eq!(shelf.entries(), [layout::MASTER]);
    assert_eq!(shelf.text(layout::MASTER), Some("last"));
    shelf.set("host.masterX", "renewed");
    shelf.look(std::slice::from_ref(&declared));
    assert_eq!(shelf.text(layout::MASTER), Some("renewed"));
    declared.drift = Drift::Enforce;
    shelf.set("host.master.previous-1", "unwanted");
    shelf.look(&[declared]);
    assert_eq!(shelf.entries(), [layout::MASTER]);
    assert_eq!(shelf.text(layout::MASTER), Some("renewed"));
}

// Clients

#[test]
fn clients_get_a_value_when_hosts_have_surely_seen_it() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.distribution = Distribution::Outstanding;
    let handed = |plan: &Plan| plan.verdicts[0].handout.clone().unwrap().generation;
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(handed(&plan), 1, "a first value has no predecessor");
    declared.distribution = Distribution::Complete {
        generation: 1,
        at: start(),
    };
    let plan = turn(&mut shelf, &mut declared);
    assert_eq!(handed(&plan), 1);
    assert_eq!(plan.next_look, Some(add(start(), RELOAD)));
    // The second is not handed out either when a third follows before hosts have seen it.
    shelf.now = add(start(), SignedDuration::from_secs(30));
    let plan = turn(&mut shelf, &mut declared);
    assert_eq!(handed(&plan), 1);
    shelf.now = add(start(), RELOAD);
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(handed(&plan), 2);
    shelf.now = plan.next_look.unwrap();
    assert_eq!(shelf.now, add(start(), SignedDuration::from_secs(120)));
    assert_eq!(handed(&shelf.look(&[declared])), 3);
}

#[test]
fn overlap_counts_from_when_the_last_client_has_the_value() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.distribution = Distribution::Complete {
        generation: 1,
        at: start(),
    };
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    for distribution in [
        declared.distribution,
        Distribution::Outstanding,
        Distribution::Complete {
            generation: 1,
            at: start(),
        },
    ] {
        declared.distribution = distribution;
        let plan = shelf.look_after(MONTH, std::slice::from_ref(&declared));
        assert!(plan.changes.is_empty());
        assert_eq!(plan.next_look, None);
    }
    let at = shelf.now;
    declared.distribution = Distribution::Complete { generation: 2, at };
    let plan = shelf.look_after(hours(1), std::slice::from_ref(&declared));
    assert_eq!(plan.next_look, Some(add(at, DAY)));
    assert_eq!(shelf.record(ENTRY).distributed, Some(at));
    // A client that comes later does not stop the clock.
    declared.distribution = Distribution::Outstanding;
    shelf.now = add(at, DAY);
    shelf.look(&[declared]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
}

#[test]
fn a_client_that_comes_before_hosts_have_seen_the_value_is_waited_for() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.policy.overlap = SignedDuration::ZERO;
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    assert_eq!(shelf.record(ENTRY).distributed, Some(add(start(), RELOAD)));
    declared.distribution = Distribution::Outstanding;
    let plan = shelf.look_after(
        SignedDuration::from_secs(1),
        std::slice::from_ref(&declared),
    );
    assert_eq!(plan.verdicts[0].handout.clone().unwrap().generation, 1);
    shelf.look_after(hours(1), std::slice::from_ref(&declared));
    assert!(shelf.text(&previous(1)).is_some());
    let at = shelf.now;
    declared.distribution = Distribution::Complete { generation: 2, at };
    shelf.look(&[declared]);
    assert_eq!(shelf.text(&previous(1)), None);
}

#[test]
fn clients_taken_off_the_list_leave_a_whole_overlap() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.distribution = Distribution::Outstanding;
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    declared.distribution = Distribution::None;
    let plan = shelf.look_after(MONTH, &[declared]);
    assert_eq!(plan.next_look, Some(add(shelf.now, DAY)));
}

#[test]
fn a_client_said_to_have_the_value_in_the_future_has_it_now() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    declared.distribution = Distribution::Outstanding;
    turn(&mut shelf, &mut declared);
    shelf.now = add(shelf.now, hours(1));
    declared.distribution = Distribution::Complete {
        generation: 2,
        at: add(shelf.now, hours(99_999)),
    };
    shelf.look(&[declared]);
    assert_eq!(shelf.record(ENTRY).distributed, Some(shelf.now));
}

// Deletion

#[test]
fn a_deleted_resource_takes_its_entries_along_or_leaves_them_as_it_said() {
    let mut shelf = Shelf::with(&[(layout::MASTER, "theirs")]);
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    let mut retained = shelf.clone();
    shelf.look(&[]);
    assert_eq!(shelf.entries(), [layout::MASTER]);
    assert!(shelf.stored.ledger.entries.is_empty());

    declared.deletion = DeletionPolicy::Retain;
    retained.look(std::slice::from_ref(&declared));
    let plan = retained.look(&[]);
    assert_eq!(retained.text(ENTRY), Some("minted 2 Function"));
    // Its previous value still has its overlap.
    assert_eq!(plan.next_look, Some(add(add(start(), RELOAD), DAY)));
    retained.now = plan.next_look.unwrap();
    retained.look(&[]);
    assert_eq!(retained.entries(), [ENTRY, layout::MASTER]);
    assert!(retained.stored.ledger.entries.is_empty());
    // Declared anew, it is adopted like any unknown entry.
    let plan = retained.look(&[declared]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Adopted]);
}

#[test]
fn a_deletion_leaves_previous_values_that_clients_were_waited_for_a_day() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.deletion = DeletionPolicy::Retain;
    declared.distribution = Distribution::Outstanding;
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    let plan = shelf.look(&[]);
    assert_eq!(plan.next_look, Some(add(shelf.now, DAY)));
    shelf.look_after(DAY, &[]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
}

#[test]
fn a_vanished_definition_deletes_nothing() {
    let mut shelf = Shelf::new();
    let declared = [host("default"), master()];
    shelf.look(&declared);
    shelf.spared = declared.iter().map(|it| it.owner.uid.clone()).collect();
    let before = shelf.stored.ledger.clone();
    let plan = shelf.look(&[]);
    assert!(plan.changes.is_empty());
    assert_eq!(shelf.stored.ledger, before);
}

#[test]
fn the_master_key_outlives_its_resource_while_siblings_stand_and_they_say_so() {
    let mut shelf = Shelf::new();
    shelf.look(&[host("default"), master()]);
    let plan = shelf.look(&[host("default")]);
    assert_eq!(shelf.text(layout::MASTER), Some("minted 2 Master"));
    let kept = Note::MasterKept("master".into());
    assert_eq!(plan.verdicts[0].notes, std::slice::from_ref(&kept));
    let plan = shelf.look_after(hours(1), &[host("default")]);
    assert_eq!(plan.verdicts[0].notes, [kept]);
    // Dropped by a host, it is put back.
    shelf.drop(layout::MASTER);
    shelf.look(&[host("default")]);
    assert_eq!(shelf.text(layout::MASTER), Some("minted 2 Master"));
    // Declared anew, it is as if nothing had been.
    let plan = shelf.look(&[host("default"), master()]);
    assert!(plan.verdicts[0].notes.is_empty());
    // With the last sibling it goes.
    shelf.look(&[host("default")]);
    shelf.look(&[]);
    assert!(shelf.entries().is_empty() && shelf.stored.ledger.entries.is_empty());
}

#[test]
fn a_retained_master_key_is_left_to_itself() {
    let mut shelf = Shelf::new();
    let mut declared = master();
    declared.deletion = DeletionPolicy::Retain;
    shelf.look(&[host("default"), declared]);
    let plan = shelf.look(&[host("default")]);
    assert!(plan.verdicts[0].notes.is_empty());
    assert!(!plan.ledger.entries.contains_key(layout::MASTER));
    shelf.look(&[]);
    assert_eq!(shelf.entries(), [layout::MASTER]);
}

#[test]
fn a_master_key_without_a_value_of_its_own_takes_over_the_minted_one() {
    let mut shelf = Shelf::new();
    let mut declared = master();
    declared.supply = Supply::Withheld;
    let plan = shelf.look(&[declared.clone()]);
    assert_eq!(plan.verdicts[0].problem, Some(Problem::NoValue));
    let plan = shelf.look(&[declared.clone(), host("default")]);
    assert_eq!(plan.verdicts[0].problem, None);
    let owner = shelf.record(layout::MASTER).owner.clone();
    assert_eq!(owner, Some(declared.owner));
}

// Suspension

#[test]
fn a_suspended_key_is_frozen() {
    let mut shelf = Shelf::new();
    let mut declared = [host("default"), master()];
    shelf.look(&declared);
    turn(&mut shelf, &mut declared[0]);
    shelf.look(&declared);
    for declared in &mut declared {
        declared.suspended = true;
        declared.policy.interval = Some(MONTH);
        declared.triggers.generation += 1;
        declared.triggers.revoke_generation += 1;
    }
    shelf.drop(ENTRY);
    shelf.set(layout::MASTER, "renewed");
    let plan = shelf.look_after(hours(99_999), &declared);
    assert!(plan.changes.is_empty());
    assert_eq!(plan.next_look, None);
    assert!(plan.verdicts.iter().all(|it| it.notes == [Note::Suspended]));
    assert!(plan.verdicts.iter().all(|it| it.problem.is_none()));
    // What was asked for meanwhile is done afterwards.
    declared[0].suspended = false;
    let plan = shelf.look(&declared);
    assert_eq!(
        plan.verdicts[0].occurrences,
        [Occurrence::Restored, Occurrence::Revoked]
    );
    let plan = Shelf::new().look(&[Declared {
        suspended: true,
        ..host("default")
    }]);
    assert_eq!(plan.verdicts[0].problem, Some(Problem::NoValue));
    assert!(plan.changes.is_empty());
}

// A value of the user's

fn given(text: &str) -> Declared {
    Declared {
        supply: Supply::Given(value(text)),
        drift: Drift::Enforce,
        ..host("default")
    }
}

#[test]
fn a_key_follows_its_source_with_overlap() {
    let mut shelf = Shelf::new();
    shelf.look(&[given("one")]);
    assert_eq!(shelf.record(ENTRY).origin, Origin::Supplied);
    let plan = shelf.look(&[given("two")]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Rotated]);
    assert_eq!(shelf.text(ENTRY), Some("two"));
    assert_eq!(shelf.text(&previous(1)), Some("one"));
    assert_eq!(shelf.record(ENTRY).previous.len(), 1);
    shelf.look(&[given("three")]);
    shelf.look(&[given("four")]);
    let plan = shelf.look(&[given("five")]);
    assert_eq!(plan.verdicts[0].notes, [Note::TurnDeferred]);
    assert_eq!(shelf.text(ENTRY), Some("four"));
    let plan = shelf.look_after(DAY + RELOAD, &[given("five")]);
    assert!(plan.verdicts[0].occurrences.contains(&Occurrence::Rotated));
    assert_eq!(shelf.text(ENTRY), Some("five"));
    // Its schedule is its source's.
    let mut scheduled = given("five");
    scheduled.policy.interval = Some(MONTH);
    scheduled.triggers.generation = 9;
    let plan = shelf.look_after(MONTH, &[scheduled]);
    assert_eq!(shelf.text(ENTRY), Some("five"));
    assert_eq!(plan.next_look, None);
}

#[test]
fn a_source_that_gives_nothing_leaves_what_was_published_last() {
    let mut shelf = Shelf::new();
    let mut withheld = given("one");
    withheld.supply = Supply::Withheld;
    let plan = shelf.look(std::slice::from_ref(&withheld));
    assert_eq!(plan.verdicts[0].problem, Some(Problem::NoValue));
    assert!(plan.changes.is_empty());
    shelf.look(&[given("one")]);
    let plan = shelf.look_after(MONTH, std::slice::from_ref(&withheld));
    assert!(plan.changes.is_empty());
    // Not even a host's renewal or drop moves it.
    shelf.set(ENTRY, "renewed");
    shelf.look(std::slice::from_ref(&withheld));
    assert_eq!(shelf.text(ENTRY), Some("one"));
    shelf.drop(ENTRY);
    shelf.look(std::slice::from_ref(&withheld));
    assert_eq!(shelf.text(ENTRY), Some("one"));
    // Without a copy, what stands is all there is; failing that, what worked before.
    shelf.set(ENTRY, "renewed");
    shelf.kept.clear();
    let plan = shelf.look(std::slice::from_ref(&withheld));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::DriftAdopted]);
    shelf.look(&[given("two")]);
    shelf.drop(ENTRY);
    shelf.kept.clear();
    let plan = shelf.look(std::slice::from_ref(&withheld));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Restored]);
    assert_eq!(shelf.text(ENTRY), Some("renewed"));
}

#[test]
fn a_minted_key_turns_over_to_a_source_and_back() {
    let mut shelf = Shelf::new();
    shelf.look(&[host("default")]);
    shelf.look(&[given("one")]);
    assert_eq!(shelf.text(&previous(1)), Some("minted 1 Function"));
    shelf.look_after(MONTH, &[host("default")]);
    assert_eq!(shelf.text(ENTRY), Some("one"));
    let mut declared = host("default");
    declared.policy.interval = Some(hours(48));
    shelf.look(&[declared]);
    assert_eq!(shelf.text(&previous(2)), Some("one"));
    assert_eq!(shelf.record(ENTRY).origin, Origin::Minted);
}

#[test]
fn a_revoked_source_value_goes_when_the_source_has_another() {
    let mut shelf = Shelf::new();
    shelf.look(&[given("leaked")]);
    let mut revoking = given("leaked");
    revoking.triggers.revoke_generation = 1;
    for _ in 0..2 {
        let plan = shelf.look_after(hours(1), std::slice::from_ref(&revoking));
        assert_eq!(plan.verdicts[0].notes, [Note::SourceUnchanged]);
        assert!(plan.verdicts[0].occurrences.is_empty() && plan.changes.is_empty());
    }
    revoking.supply = Supply::Given(value("fresh"));
    let plan = shelf.look(std::slice::from_ref(&revoking));
    assert_eq!(
        plan.verdicts[0].occurrences,
        [Occurrence::Rotated, Occurrence::Revoked]
    );
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
    assert_eq!(
        plan.verdicts[0].handout.clone().unwrap().value,
        value("fresh")
    );
    // A source that goes back to it is not followed.
    revoking.supply = Supply::Given(value("leaked"));
    let plan = shelf.look(&[revoking]);
    assert_eq!(plan.verdicts[0].notes, [Note::SourceUnchanged]);
    assert_eq!(shelf.text(ENTRY), Some("fresh"));
}

#[test]
fn a_revocation_after_the_source_has_changed_takes_the_old_value_back() {
    let mut shelf = Shelf::new();
    shelf.look(&[given("leaked")]);
    shelf.look(&[given("fresh")]);
    let mut revoking = given("fresh");
    revoking.triggers.revoke_generation = 1;
    let plan = shelf.look(&[revoking]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Revoked]);
    assert_eq!(shelf.text(ENTRY), Some("fresh"));
    assert_eq!(shelf.text(&previous(1)), None);
}

#[test]
fn a_master_key_from_a_source_is_revoked_by_its_next_value() {
    let mut shelf = Shelf::new();
    let source = |text| Declared {
        supply: Supply::Given(value(text)),
        drift: Drift::Enforce,
        ..master()
    };
    shelf.look(&[source("leaked")]);
    let mut revoking = source("fresh");
    revoking.triggers.revoke_generation = 1;
    let plan = shelf.look(&[revoking]);
    assert!(plan.verdicts[0].occurrences.contains(&Occurrence::Revoked));
    assert_eq!(shelf.text(layout::MASTER), Some("fresh"));
    shelf.set(layout::MASTER, "leaked");
    shelf.look(&[master()]);
    assert_eq!(shelf.text(layout::MASTER), Some("fresh"));
}

// What others do to the store

#[test]
fn what_a_host_drops_is_put_back() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    let before = shelf.stored.values.clone();
    shelf.stored.values.clear();
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Restored]);
    assert!(shelf.stored.values == before);
    // What nobody has a copy of is made anew or forgotten.
    shelf.stored.values.clear();
    shelf.kept.clear();
    let plan = shelf.look(&[declared]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Replaced]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
    assert_eq!(shelf.record(ENTRY).generation, 3);
}

#[test]
fn a_dropped_value_comes_back_from_its_source_or_a_client() {
    for supply in [Supply::Given(value("one")), Supply::Withheld] {
        let mut shelf = Shelf::new();
        shelf.look(&[given("one")]);
        shelf.drop(ENTRY);
        shelf.kept.clear();
        let mut declared = given("one");
        declared.supply = supply;
        declared.salvage = Some((1, value("one")));
        let plan = shelf.look(&[declared]);
        assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Restored]);
        assert_eq!(shelf.text(ENTRY), Some("one"));
        assert_eq!(shelf.record(ENTRY).generation, 1);
    }
}

#[test]
fn a_value_that_is_to_retire_is_not_put_back_first() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    shelf.drop(&previous(1));
    let plan = shelf.look_after(MONTH, &[declared]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Retired]);
}

#[test]
fn a_renewal_by_a_host_is_taken_over_or_undone() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    shelf.set(ENTRY, "renewed");
    let plan = shelf.look_after(hours(1), std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::DriftAdopted]);
    let record = shelf.record(ENTRY);
    assert_eq!((record.generation, record.origin), (2, Origin::Adopted));
    assert_eq!((record.minted, record.shown), (shelf.now, shelf.now));

    declared.drift = Drift::Enforce;
    shelf.set(ENTRY, "again");
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::DriftUndone]);
    assert_eq!(shelf.text(ENTRY), Some("renewed"));
    assert_eq!(shelf.record(ENTRY).generation, 2);
    // Without a copy, a value that nobody chose: a new one.
    shelf.set(ENTRY, "again");
    shelf.kept.clear();
    let plan = shelf.look(&[declared]);
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Replaced]);
    assert_eq!(shelf.text(ENTRY), Some("minted 3 Function"));
}

#[test]
fn a_previous_value_that_a_host_renewed_is_put_back() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    shelf.set(&previous(1), "renewed");
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Restored]);
    assert_eq!(shelf.text(&previous(1)), Some("minted 1 Function"));
    shelf.set(&previous(1), "renewed");
    shelf.kept.clear();
    shelf.look(&[declared]);
    assert_eq!(shelf.text(&previous(1)), None);
    assert!(shelf.record(ENTRY).previous.is_empty());
}

#[test]
fn a_host_that_writes_back_what_it_read_before_a_turn_does_not_undo_it() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    let read = shelf.stored.values.clone();
    turn(&mut shelf, &mut declared);
    let turned = shelf.stored.values.clone();
    shelf.stored.values = read;
    let plan = shelf.look(&[declared]);
    assert_eq!(
        plan.verdicts[0].occurrences,
        [Occurrence::DriftUndone, Occurrence::Restored]
    );
    assert!(shelf.stored.values == turned);
}

#[test]
fn a_revoked_value_never_stands_again() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    let read = shelf.stored.values.clone();
    declared.triggers.revoke_generation = 1;
    shelf.look(std::slice::from_ref(&declared));
    let revoked = shelf.stored.values.clone();
    // A host that had read the store before writes it back after, whatever copies there are.
    for kept in [shelf.kept.clone(), BTreeMap::new(), read.clone()] {
        let mut shelf = shelf.clone();
        shelf.stored.values.clone_from(&read);
        shelf.kept = kept.clone();
        shelf.look(std::slice::from_ref(&declared));
        if kept == shelf.kept {
            assert!(shelf.stored.values == revoked);
        }
        let leaked = |text: &str| read.get(ENTRY) == Some(&value(text)) || text.contains(" 1 ");
        let standing = shelf.stored.values.values();
        assert!(standing.into_iter().all(|value| !leaked(value.expose())));
    }
    // Nor under another spelling or the name of a previous value.
    for name in ["host.function.DEFAULT", "host.function.default.previous-2"] {
        let mut shelf = shelf.clone();
        shelf.set(name, read[ENTRY].expose());
        shelf.look(std::slice::from_ref(&declared));
        assert!(shelf.stored.values == revoked);
    }
}

#[test]
fn a_revoked_master_key_stays_revoked_when_its_resource_is_gone() {
    let mut shelf = Shelf::new();
    let mut declared = master();
    shelf.look(&[declared.clone(), host("default")]);
    declared.triggers.revoke_generation = 1;
    shelf.look(&[declared, host("default")]);
    shelf.look(&[host("default")]);
    let current = shelf.text(layout::MASTER).unwrap().to_owned();
    shelf.set(layout::MASTER, "minted 1 Master");
    shelf.look(&[host("default")]);
    assert_eq!(shelf.text(layout::MASTER), Some(current.as_str()));
}

#[test]
fn a_retired_value_that_a_host_writes_back_gets_an_overlap_and_goes_again() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    shelf.look_after(MONTH, std::slice::from_ref(&declared));
    shelf.set(&previous(1), "minted 1 Function");
    let plan = shelf.look(std::slice::from_ref(&declared));
    assert_eq!(plan.next_look, Some(add(shelf.now, DAY)));
    shelf.look_after(DAY, &[declared]);
    assert_eq!(shelf.entries(), [ENTRY, layout::MASTER]);
}

#[test]
fn a_store_deleted_whole_comes_back_from_memory() {
    let mut shelf = Shelf::new();
    let mut declared = [host("default"), master()];
    shelf.look(&declared);
    turn(&mut shelf, &mut declared[0]);
    shelf.look(&declared);
    let before = shelf.stored.clone();
    shelf.stored.values.clear();
    shelf.look(&declared);
    assert!(shelf.stored.values == before.values);
    assert_eq!(shelf.stored.ledger, before.ledger);
}

// Clocks

#[test]
fn a_clock_that_was_ahead_delays_no_turn_and_breaks_no_promise() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.policy.interval = Some(MONTH);
    declared.policy.overlap = hours(48);
    shelf.look(std::slice::from_ref(&declared));
    shelf.now = add(start(), hours(5 * 365 * 24));
    shelf.look(std::slice::from_ref(&declared));
    declared.policy.overlap = hours(1);
    shelf.now = add(start(), hours(1));
    shelf.look(std::slice::from_ref(&declared));
    let record = shelf.record(ENTRY);
    assert_eq!((record.generation, record.minted), (2, shelf.now));
    let retires = record.previous[0].retires.unwrap();
    assert_eq!(retires, add(add(shelf.now, RELOAD), hours(48)));
    let due = declared.policy.due(shelf.now, &declared.owner.uid).unwrap();
    shelf.now = due;
    shelf.look(&[declared]);
    assert_eq!(shelf.record(ENTRY).generation, 3);
}

#[test]
fn a_clock_that_is_behind_for_a_moment_cuts_no_overlap() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    let retires = shelf.record(ENTRY).previous[0].retires;
    for slept in [1, 3, 23] {
        shelf.now = add(start(), -hours(slept));
        shelf.look(std::slice::from_ref(&declared));
        assert_eq!(shelf.record(ENTRY).previous[0].retires, retires);
    }
}

#[test]
fn clients_keep_the_value_they_have_when_the_clock_goes_back() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.distribution = Distribution::Outstanding;
    shelf.look(std::slice::from_ref(&declared));
    turn(&mut shelf, &mut declared);
    shelf.now = add(shelf.now, SignedDuration::from_mins(3));
    declared.distribution = Distribution::Complete {
        generation: 2,
        at: shelf.now,
    };
    shelf.look(std::slice::from_ref(&declared));
    shelf.now = add(start(), -hours(1));
    let plan = shelf.look(&[declared]);
    assert_eq!(plan.verdicts[0].handout.clone().unwrap().generation, 2);
}

#[test]
fn a_revocation_recorded_ahead_of_the_clock_is_taken_back_to_now() {
    let mut shelf = Shelf::new();
    let mut declared = given("two");
    declared.distribution = Distribution::Outstanding;
    shelf.look(&[given("one")]);
    shelf.look(std::slice::from_ref(&declared));
    declared.triggers.revoke_generation = 1;
    shelf.look_after(hours(99_999), std::slice::from_ref(&declared));
    assert_eq!(shelf.record(ENTRY).revoked, Some(shelf.now));
    shelf.now = add(start(), hours(1));
    shelf.look(&[declared]);
    assert_eq!(shelf.record(ENTRY).revoked, Some(shelf.now));
}

#[test]
fn a_moment_acted_on_too_early_is_acted_on_when_it_comes() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    shelf.look(std::slice::from_ref(&declared));
    declared.triggers.revoke_at = Some(add(start(), MONTH));
    shelf.look_after(hours(9999), std::slice::from_ref(&declared));
    assert_eq!(shelf.record(ENTRY).generation, 2);
    shelf.now = start();
    shelf.look(std::slice::from_ref(&declared));
    let mut sooner = declared.clone();
    sooner.triggers.revoke_at = Some(add(start(), hours(1)));
    shelf.clone().look_after(hours(1), &[sooner.clone()]);
    for (declared, span) in [(sooner, hours(1)), (declared, MONTH)] {
        let mut shelf = shelf.clone();
        let plan = shelf.look_after(span, &[declared]);
        assert_eq!(plan.verdicts[0].occurrences, [Occurrence::Revoked]);
    }
}

// Long times

#[test]
fn a_year_of_monthly_turns_wakes_up_twice_for_each() {
    let mut shelf = Shelf::new();
    let mut declared = host("default");
    declared.policy.interval = Some(MONTH);
    let mut looks = 0;
    let end = add(start(), hours(365 * 24));
    let mut plan = shelf.look(std::slice::from_ref(&declared));
    while let Some(at) = plan.next_look.filter(|at| *at <= end) {
        shelf.now = at;
        plan = shelf.look(std::slice::from_ref(&declared));
        looks += 1;
    }
    let turns = shelf.record(ENTRY).generation - 1;
    assert!((12..=13).contains(&turns), "{turns}");
    assert!((2 * turns - 1..=2 * turns).contains(&looks), "{looks}");
}

#[test]
fn many_keys_of_one_store_are_one_plan() {
    let mut shelf = Shelf::new();
    let keys = 0..MAX_KEYS;
    let declared: Vec<Declared> = keys.map(|key| host(&format!("key-{key}"))).collect();
    let plan = shelf.look(&declared);
    assert_eq!(plan.changes.len(), MAX_KEYS + 1);
    let plan = shelf.look_after(hours(1), &declared);
    assert!(plan.changes.is_empty());
}
