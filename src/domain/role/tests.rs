use proptest::prelude::*;
use strum::IntoEnumIterator;

use super::{BuiltIn as B, *};

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn assignment(scope: Scope) -> Assignment {
    Assignment {
        namespace: "shop".to_owned(),
        owner: Owner {
            name: "web-reads-payments".to_owned(),
            uid: "u1".to_owned(),
        },
        principal: Principal::ServiceAccount {
            namespace: "front".to_owned(),
            name: "web".to_owned(),
        },
        role: Role::BuiltIn(BuiltIn::SecretVaultSecretsUser),
        scope,
        starts: None,
        expires: None,
        deleting: false,
    }
}

fn setting() -> Setting {
    Setting {
        system_namespace: "claviger-system".to_owned(),
        role_prefix: "claviger".to_owned(),
        reach: Reach::Everywhere,
    }
}

fn from_system(scope: Scope) -> Assignment {
    Assignment {
        namespace: "claviger-system".to_owned(),
        ..assignment(scope)
    }
}

/// A namespace's name, its labels, and whether it is going.
type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

fn namespaces(list: &[Row<'_>]) -> BTreeMap<String, Namespace> {
    list.iter()
        .map(|(name, labels, going)| {
            let labels = labels
                .iter()
                .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
                .collect();
            let going = *going;
            ((*name).to_owned(), Namespace { labels, going })
        })
        .collect()
}

fn decided(assignment: &Assignment) -> Decision {
    let spaces = namespaces(&[
        ("front", &[("tier", "front")], false),
        ("back", &[("tier", "back")], false),
        ("dying", &[("tier", "front")], true),
    ]);
    decide(assignment, &spaces, &Source::None, &setting(), time(0))
}

/// What stands once everything wanted was written.
fn stand(assignment: &Assignment, objects: &Objects) -> BTreeMap<Key, Arc<Observed>> {
    objects
        .iter()
        .map(|(key, content)| {
            let observed = Observed {
                uid: format!("uid of {key}"),
                content: Some((**content).clone()),
                digest: assignment.digest(),
                assignment: Some((assignment.namespace.clone(), assignment.owner.name.clone())),
                owners: if key.namespace == assignment.namespace {
                    vec![assignment.owner.uid.clone()]
                } else {
                    Vec::new()
                },
                ..Observed::default()
            };
            (key.clone(), Arc::new(observed))
        })
        .collect()
}

fn places(objects: &Objects) -> Vec<String> {
    objects
        .keys()
        .map(|key| format!("{} {}", key.kind, key.namespace))
        .collect()
}

#[test]
fn each_scope_comes_to_the_objects_that_it_needs() {
    let named = |names: &[&str]| Scope::Named(names.iter().map(|&name| name.to_owned()).collect());
    let front = Selector(vec![(
        "tier".to_owned(),
        Test::In(BTreeSet::from(["front".to_owned()])),
    )]);
    let resource = Scope::Resource {
        kind: Kind::SecretVault,
        name: "payments".to_owned(),
    };
    for (assignment, expected, absent) in [
        (
            assignment(resource),
            &["Role shop", "RoleBinding shop"][..],
            &[][..],
        ),
        (assignment(Scope::Namespace), &["RoleBinding shop"], &[]),
        (from_system(Scope::Cluster), &["ClusterRoleBinding "], &[]),
        (
            from_system(named(&["back", "front", "dying", "later"])),
            &["RoleBinding back", "RoleBinding front"],
            &["later"],
        ),
        (
            from_system(Scope::Selected(front)),
            &["RoleBinding front"],
            &[],
        ),
    ] {
        let decision = decided(&assignment);
        assert_eq!(places(&decision.objects), expected, "{}", assignment.scope);
        assert_eq!(decision.absent, absent, "{}", assignment.scope);
        assert_eq!(decision.standing, Standing::Active);
    }
}

#[test]
fn a_role_on_a_resource_speaks_of_that_resource_only() {
    let decision = decided(&assignment(Scope::Resource {
        kind: Kind::SecretVault,
        name: "payments".to_owned(),
    }));
    let mut contents = decision.objects.values();
    let Content::Rules(rules) = &**contents.next().unwrap() else {
        panic!("a Role comes first")
    };
    assert!(!rules.is_empty());
    assert!(rules.iter().all(|rule| rule.names == ["payments"]));
    let Content::Binding { role, subjects } = &**contents.next().unwrap() else {
        panic!("then a binding")
    };
    let made = decision.objects.keys().next().unwrap();
    assert_eq!(*role, RoleRef::Role(made.name.clone()));
    let web = Principal::ServiceAccount {
        namespace: "front".to_owned(),
        name: "web".to_owned(),
    };
    assert_eq!(*subjects, [web]);
}

#[test]
fn only_from_the_system_namespace_does_anything_reach_beyond_its_own() {
    for scope in [
        Scope::Cluster,
        Scope::Named(BTreeSet::from(["shop".to_owned()])),
        Scope::Selected(Selector(vec![("tier".to_owned(), Test::Present)])),
    ] {
        let decision = decided(&assignment(scope.clone()));
        let elsewhere = Standing::Refused(Refusal::Elsewhere);
        assert_eq!(decision.standing, elsewhere, "{scope}");
        assert!(decision.objects.is_empty());
        let granted = decided(&from_system(scope));
        assert_eq!(granted.standing, Standing::Active);
    }
}

#[test]
fn an_install_for_listed_namespaces_grants_in_those_only() {
    let setting = Setting {
        reach: Reach::Listed(BTreeSet::from(["shop".to_owned(), "front".to_owned()])),
        ..setting()
    };
    let decide = |assignment: &Assignment| {
        decide(
            assignment,
            &BTreeMap::new(),
            &Source::None,
            &setting,
            time(0),
        )
    };
    let names = Scope::Named(BTreeSet::from(["front".to_owned(), "back".to_owned()]));
    let some = decide(&from_system(names));
    assert_eq!(places(&some.objects), ["RoleBinding front"]);
    assert_eq!(some.absent, ["back"]);
    let narrow = Standing::Refused(Refusal::Narrow);
    assert_eq!(decide(&from_system(Scope::Cluster)).standing, narrow);
    let own = decide(&assignment(Scope::Namespace));
    assert_eq!(places(&own.objects), ["RoleBinding shop"]);
}

#[test]
fn access_lasts_from_its_beginning_to_its_end_and_not_a_moment_longer() {
    let timed = Assignment {
        starts: Some(time(10)),
        expires: Some(time(20)),
        ..assignment(Scope::Namespace)
    };
    let at = |seconds| {
        decide(
            &timed,
            &BTreeMap::new(),
            &Source::None,
            &setting(),
            time(seconds),
        )
    };
    for (seconds, standing, next) in [
        (0, Standing::Pending(time(10)), Some(time(10))),
        (9, Standing::Pending(time(10)), Some(time(10))),
        (10, Standing::Active, Some(time(20))),
        (19, Standing::Active, Some(time(20))),
        (20, Standing::Expired(time(20)), None),
        (9999, Standing::Expired(time(20)), None),
    ] {
        let decision = at(seconds);
        assert_eq!(
            decision.objects.len(),
            usize::from(standing == Standing::Active)
        );
        assert_eq!(
            (decision.standing, decision.next),
            (standing, next),
            "{seconds}"
        );
    }
    let going = Assignment {
        deleting: true,
        ..timed
    };
    assert_eq!(decided(&going).standing, Standing::Going);
}

#[test]
fn what_has_ended_has_ended_whatever_else_is_wrong() {
    let over = Assignment {
        expires: Some(time(-1)),
        ..assignment(Scope::Cluster)
    };
    assert_eq!(decided(&over).standing, Standing::Expired(time(-1)));
}

fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Rule {
    let list = |list: &[&str]| list.iter().map(|&item| item.to_owned()).collect();
    Rule {
        groups: list(groups),
        resources: list(resources),
        names: list(names),
        verbs: list(verbs),
        urls: Vec::new(),
    }
}

#[test]
fn a_narrowed_role_says_what_the_whole_one_says_of_that_resource() {
    let ours = ["claviger.dev"];
    for (what, of, expected) in [
        (
            "a subresource",
            rule(&ours, &["secretvaults/secrets"], &[], &["get"]),
            vec![rule(
                &ours,
                &["secretvaults/secrets"],
                &["payments"],
                &["get"],
            )],
        ),
        (
            "other kinds beside it",
            rule(
                &["", "claviger.dev"],
                &["pods", "functionkeys/value", "secretvaults/secrets"],
                &[],
                &["get"],
            ),
            vec![rule(
                &ours,
                &["secretvaults/secrets"],
                &["payments"],
                &["get"],
            )],
        ),
        (
            "verbs that no single object has",
            rule(
                &ours,
                &["secretvaults", "secretvaults/secrets"],
                &[],
                &["get", "create", "deletecollection"],
            ),
            vec![
                rule(&ours, &["secretvaults"], &["payments"], &["get"]),
                rule(
                    &ours,
                    &["secretvaults/secrets"],
                    &["payments"],
                    &["get", "create", "deletecollection"],
                ),
            ],
        ),
        (
            "everything",
            rule(&["*"], &["*"], &[], &["*"]),
            vec![
                rule(&ours, &["secretvaults"], &["payments"], &["*"]),
                rule(
                    &ours,
                    &["secretvaults/secrets", "secretvaults/status"],
                    &["payments"],
                    &["*"],
                ),
            ],
        ),
        (
            "a subresource of everything",
            rule(&ours, &["*/secrets"], &[], &["list"]),
            vec![rule(
                &ours,
                &["secretvaults/secrets"],
                &["payments"],
                &["list"],
            )],
        ),
        (
            "the very name",
            rule(
                &ours,
                &["secretvaults/secrets"],
                &["a", "payments"],
                &["get"],
            ),
            vec![rule(
                &ours,
                &["secretvaults/secrets"],
                &["payments"],
                &["get"],
            )],
        ),
        (
            "another name",
            rule(&ours, &["secretvaults/secrets"], &["a"], &["get"]),
            vec![],
        ),
        (
            "another group",
            rule(&["other.dev"], &["secretvaults/secrets"], &[], &["get"]),
            vec![],
        ),
        (
            "another kind",
            rule(&ours, &["functionkeys/value"], &[], &["get"]),
            vec![],
        ),
        (
            "only what no single object has",
            rule(&ours, &["secretvaults"], &[], &["create"]),
            vec![],
        ),
    ] {
        let narrowed = narrow(&[of], Kind::SecretVault, "payments");
        assert_eq!(narrowed, expected, "{what}");
    }
}

#[test]
fn a_custom_role_that_says_nothing_of_the_resource_or_is_not_there_grants_nothing() {
    let own = Assignment {
        role: Role::Custom("own".to_owned()),
        ..assignment(Scope::Resource {
            kind: Kind::SecretVault,
            name: "payments".to_owned(),
        })
    };
    assert_eq!(own.source(), Some("own"));
    let decided =
        |source: Source| decide(&own, &BTreeMap::new(), &source, &setting(), time(0)).standing;
    let none: Arc<[Rule]> = vec![rule(&[""], &["pods"], &[], &["get"])].into();
    let some: Arc<[Rule]> = BuiltIn::SecretVaultReader.rules().into();
    let refused = Standing::Refused;
    assert_eq!(decided(Source::Missing), refused(Refusal::NoRole));
    assert_eq!(decided(Source::Rules(none)), refused(Refusal::SaysNothing));
    assert_eq!(decided(Source::Rules(some)), Standing::Active);
    let wrong = Assignment {
        role: Role::BuiltIn(BuiltIn::FunctionKeyReader),
        ..own
    };
    let nothing = BTreeMap::new();
    let decision = decide(&wrong, &nothing, &Source::None, &setting(), time(0));
    assert_eq!(decision.standing, refused(Refusal::WrongKind));
}

#[test]
fn a_custom_role_that_permits_anything_else_than_what_the_doors_do_grants_nothing() {
    let ours = ["claviger.dev"];
    let secrets = rule(&ours, &["secretvaults/secrets"], &[], &["get"]);
    let whole = Assignment {
        role: Role::Custom("own".to_owned()),
        ..assignment(Scope::Namespace)
    };
    let one = Assignment {
        scope: Scope::Resource {
            kind: Kind::SecretVault,
            name: "payments".to_owned(),
        },
        ..whole.clone()
    };
    let standing = |assignment: &Assignment, other: &Rule| {
        let rules: Arc<[Rule]> = vec![secrets.clone(), other.clone()].into();
        let source = Source::Rules(rules);
        decide(assignment, &BTreeMap::new(), &source, &setting(), time(0)).standing
    };
    let mut urls = rule(&[], &[], &[], &["get"]);
    urls.urls = vec!["/metrics".to_owned()];
    // What Claviger holds, and must not hand on; what it does not hold, and everything.
    for (other, on_one) in [
        (rule(&[""], &["secrets"], &[], &["get"]), true),
        (
            rule(
                &["", "claviger.dev"],
                &["secretvaults/secrets"],
                &[],
                &["get"],
            ),
            true,
        ),
        (
            rule(
                &["rbac.authorization.k8s.io"],
                &["rolebindings"],
                &[],
                &["create"],
            ),
            true,
        ),
        (rule(&ours, &["roleassignments"], &[], &["get"]), true),
        (rule(&ours, &["functionkeys/status"], &[], &["patch"]), true),
        (
            rule(
                &ours,
                &["functionkeys", "secretvaults/secrets"],
                &[],
                &["create"],
            ),
            true,
        ),
        (urls, true),
        (
            rule(&ours, &["functionkeys/value"], &[], &["get", "shred"]),
            true,
        ),
        (
            rule(&ours, &["secretvaults/secrets"], &[], &["get", "shred"]),
            false,
        ),
        (rule(&ours, &["secretvaults/secrets"], &[], &["*"]), false),
        // A verb of another door.
        (
            rule(&ours, &["secretvaults/secrets"], &[], &["send"]),
            false,
        ),
        (rule(&ours, &["secretvaults"], &[], &["patch"]), false),
        (
            rule(&ours, &["secretvaults/status"], &[], &["patch"]),
            false,
        ),
        (rule(&["*"], &["*"], &[], &["*"]), false),
    ] {
        let beyond = Standing::Refused(Refusal::Beyond(other.clone()));
        assert_eq!(standing(&whole, &other), beyond);
        // Of one resource nothing but what concerns it is granted.
        let granted = standing(&one, &other) == Standing::Active;
        assert_eq!(granted, on_one, "{other}");
    }
    for role in B::iter() {
        for rule in role.rules() {
            assert_eq!(standing(&whole, &rule), Standing::Active, "{role}");
        }
    }
    let told = rule(&[""], &["pods"], &[], &["get"]).to_string();
    assert_eq!(
        told,
        r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#
    );
}

#[test]
fn built_in_roles_are_in_the_order_of_what_they_permit() {
    let permits = |role: BuiltIn| -> BTreeSet<(&str, &str)> {
        let permissions = role.permissions().iter();
        permissions
            .flat_map(|(resource, verbs)| verbs.iter().map(move |verb| (*resource, *verb)))
            .collect()
    };
    for (less, more) in [
        (B::FunctionKeyReader, B::FunctionKeyOperator),
        (B::SecretVaultReader, B::SecretVaultSecretsOfficer),
        (B::SecretVaultSecretsUser, B::SecretVaultSecretsOfficer),
        (B::SecretVaultSecretsOfficer, B::SecretVaultAdministrator),
        (B::TokenProviderIssuer, B::TokenProviderOperator),
        (B::WebPubSubServiceReader, B::WebPubSubServiceOwner),
    ] {
        let (less, more) = (permits(less), permits(more));
        assert!(less.is_subset(&more) && less != more);
    }
    // Who owns a Web PubSub service has tokens made for its clients, and for nobody else.
    assert!(permits(B::TokenProviderIssuer).is_disjoint(&permits(B::WebPubSubServiceOwner)));
    // Web PubSub has fourteen data actions, four of which read.
    assert_eq!(permits(B::WebPubSubServiceOwner).len(), 14);
    assert_eq!(permits(B::WebPubSubServiceReader).len(), 4);
    // Who reads which secrets there are reads none.
    assert!(!permits(B::SecretVaultReader).contains(&("secretvaults/secrets", "get")));
    for role in BuiltIn::iter() {
        for (resource, verbs) in role.permissions() {
            let (of, sub) = resource
                .split_once('/')
                .map_or((*resource, None), |(of, sub)| (of, Some(sub)));
            assert_eq!(of, role.kind().resource(), "{role}");
            assert!(sub.is_none_or(|sub| role.kind().subresources().contains(&sub)));
            // Reading is all that there is to do with the resources themselves.
            assert!(sub.is_some() || *verbs == SEE, "{role}");
        }
    }
}

#[test]
fn the_names_of_cluster_roles_are_cut_as_the_chart_cuts_them() {
    let role = BuiltIn::SecretVaultSecretsOfficer;
    assert_eq!(
        role.cluster_role("claviger"),
        "claviger-secret-vault-secrets-officer"
    );
    for length in 1..=52 {
        for prefix in ["a".repeat(length), format!("{}-b", "a".repeat(length))] {
            for role in BuiltIn::iter() {
                let name = role.cluster_role(&prefix);
                assert!(name.len() <= 63 && name.ends_with(role.suffix()), "{name}");
                assert!(!name.contains("--"), "{name}");
            }
        }
    }
}

#[test]
fn another_role_is_bound_under_another_name_before_the_old_binding_goes() {
    let before = assignment(Scope::Namespace);
    let standing = stand(&before, &decided(&before).objects);
    let after = Assignment {
        role: Role::BuiltIn(BuiltIn::SecretVaultSecretsOfficer),
        ..before
    };
    let wanted = decided(&after).objects;
    let changes = changes(&after, &wanted, &standing);
    assert!(changes.withdraw.is_empty());
    assert_eq!((changes.write.len(), changes.retire.len()), (1, 1));
    assert_eq!(changes.write[0].over, Over::Nothing);
    assert_ne!(changes.write[0].key, changes.retire[0].0);
}

#[test]
fn another_resource_is_written_in_place_and_another_principal_beside_what_goes_first() {
    let vault = |name: &str| Scope::Resource {
        kind: Kind::SecretVault,
        name: name.to_owned(),
    };
    let before = assignment(vault("payments"));
    let standing = stand(&before, &decided(&before).objects);
    let elsewhere = Assignment {
        scope: vault("ledger"),
        ..before.clone()
    };
    let in_place = changes(&elsewhere, &decided(&elsewhere).objects, &standing);
    assert!(in_place.withdraw.is_empty() && in_place.retire.is_empty());
    let written: Vec<ObjectKind> = in_place.write.iter().map(|write| write.key.kind).collect();
    assert_eq!(written, [ObjectKind::Role]);
    assert!(matches!(in_place.write[0].over, Over::Ours(_)));
    // Whose access ends does not wait, and is bound to nothing that is written for another.
    let other = Assignment {
        principal: Principal::Group("staff".to_owned()),
        ..elsewhere
    };
    let changes = changes(&other, &decided(&other).objects, &standing);
    let kinds = |list: &[(Key, String)]| list.iter().map(|(key, _)| key.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&changes.withdraw), [ObjectKind::RoleBinding]);
    assert_eq!(kinds(&changes.retire), [ObjectKind::Role]);
    assert_eq!(changes.write.len(), 2);
    for write in &changes.write {
        assert_eq!(write.over, Over::Nothing);
        assert!(!standing.contains_key(&write.key));
    }
}

#[test]
fn what_somebody_holds_back_is_not_deleted_again_once_it_grants_nothing() {
    let over = Assignment {
        expires: Some(time(-1)),
        ..assignment(Scope::Namespace)
    };
    let mut standing = stand(&over, &decided(&assignment(Scope::Namespace)).objects);
    let key = standing.keys().next().unwrap().clone();
    let mut hold = |change: &dyn Fn(&mut Observed)| {
        change(Arc::make_mut(standing.get_mut(&key).unwrap()));
        changes(&over, &decided(&over).objects, &standing)
    };
    // RBAC heeds what is being deleted.
    let going = hold(&|observed| {
        observed.going = true;
        observed.finalizers = vec!["example.com/keep".to_owned()];
    });
    assert_eq!((going.withdraw.len(), going.stuck.len()), (1, 0));
    let bare = hold(&|observed| {
        if let Some(Content::Binding { subjects, .. }) = &mut observed.content {
            subjects.clear();
        }
    });
    assert!(bare.are_none());
    assert_eq!(
        bare.stuck,
        [(key.clone(), vec!["example.com/keep".to_owned()])]
    );
    // Declared again, it is written again.
    let again = assignment(Scope::Namespace);
    let again = changes(&again, &decided(&again).objects, &standing);
    assert_eq!((again.write.len(), again.stuck.len()), (1, 0));
}

#[test]
fn what_only_bears_the_marks_of_an_assignment_goes_last() {
    let less = assignment(Scope::Namespace);
    let mut standing = stand(&less, &decided(&less).objects);
    let (key, observed) = standing.pop_first().unwrap();
    let digits = key.name.rsplit('-').next().unwrap();
    for name in [
        "stray".to_owned(),
        format!("other-{digits}"),
        format!("web-reads-payments-{}", &digits[1..]),
        format!("web-reads-payments-{}", digits.to_uppercase()),
    ] {
        let key = Key {
            name,
            ..key.clone()
        };
        let standing = BTreeMap::from([(key.clone(), Arc::clone(&observed))]);
        for wanted in [Objects::new(), decided(&less).objects] {
            let changes = changes(&less, &wanted, &standing);
            assert_eq!(changes.foreign, [(key.clone(), observed.uid.clone())]);
            assert!(changes.withdraw.is_empty() && changes.retire.is_empty());
        }
    }
}

#[test]
fn what_others_keep_changing_is_put_right_after_pauses_that_double() {
    let mut contest = None;
    let mut now = time(0);
    let mut pauses = Vec::new();
    for _ in 0..14 {
        let next = Contest::after(contest, now);
        pauses.push(next.until.duration_since(now).as_millis());
        now = next.until;
        contest = Some(next);
    }
    assert_eq!(pauses[..4], [20, 40, 80, 160]);
    assert!(pauses.is_sorted() && pauses[12..] == [60_000; 2]);
    // Whoever stops for a while is not remembered.
    let later = contest.unwrap().until + SignedDuration::from_secs(61);
    assert!(!contest.unwrap().goes_on(later));
    assert_eq!(Contest::after(contest, later).rounds, 1);
}

#[test]
fn a_built_in_role_whose_cluster_role_is_not_there_is_bound_nowhere() {
    let of = |assignment: &Assignment| {
        let nothing = BTreeMap::new();
        decide(assignment, &nothing, &Source::Missing, &setting(), time(0)).standing
    };
    let missing = Standing::Refused(Refusal::NoRole);
    assert_eq!(of(&assignment(Scope::Namespace)), missing);
    assert_eq!(of(&from_system(Scope::Cluster)), missing);
    // What it permits on one resource is copied from here.
    let one = Scope::Resource {
        kind: Kind::SecretVault,
        name: "payments".to_owned(),
    };
    assert_eq!(of(&assignment(one)), Standing::Active);
}

#[test]
fn a_scope_is_told_in_short_however_long_it_is() {
    let values: BTreeSet<String> = (10..74).map(|value| value.to_string()).collect();
    let tests = (10..42).map(|label| (format!("l{label}"), Test::NotIn(values.clone())));
    let told = Scope::Selected(Selector(tests.collect())).to_string();
    let expected = "namespaces l10 notin (10,11,12 and 61 more),l11 notin (10,11,12 and 61 more),l12 notin (10,11,12 and 61 more) and 29 more";
    assert_eq!(told, expected);
}

#[test]
fn what_ends_does_not_wait_and_what_is_replaced_does() {
    let named = |names: &[&str]| {
        from_system(Scope::Named(
            names.iter().map(|&name| name.to_owned()).collect(),
        ))
    };
    let before = named(&["front", "back"]);
    let standing = stand(&before, &decided(&before).objects);
    let fewer = named(&["front"]);
    let less = changes(&fewer, &decided(&fewer).objects, &standing);
    assert_eq!((less.withdraw.len(), less.retire.len()), (1, 0));
    assert_eq!(less.withdraw[0].0.namespace, "back");
    // The whole cluster takes the place of each, and each the place of the whole cluster.
    let whole = from_system(Scope::Cluster);
    let wanted = decided(&whole).objects;
    let more = changes(&whole, &wanted, &standing);
    assert_eq!(
        (more.withdraw.len(), more.write.len(), more.retire.len()),
        (0, 1, 2)
    );
    let back = changes(&before, &decided(&before).objects, &stand(&whole, &wanted));
    assert_eq!(
        (back.withdraw.len(), back.write.len(), back.retire.len()),
        (0, 2, 1)
    );
    // When nothing is granted any more, nothing waits.
    let none = changes(&whole, &Objects::new(), &stand(&whole, &wanted));
    assert_eq!((none.withdraw.len(), none.retire.len()), (1, 0));
}

#[test]
fn whatever_is_not_as_declared_is_written_again() {
    let assignment = assignment(Scope::Resource {
        kind: Kind::SecretVault,
        name: "payments".to_owned(),
    });
    let wanted = decided(&assignment).objects;
    let right = stand(&assignment, &wanted);
    assert!(changes(&assignment, &wanted, &right).are_none());
    let binding = wanted
        .keys()
        .find(|key| key.kind == ObjectKind::RoleBinding)
        .unwrap();
    let change = |change: &dyn Fn(&mut Observed)| {
        let mut wrong = right.clone();
        let observed = Arc::make_mut(wrong.get_mut(binding).unwrap());
        change(observed);
        let changes = changes(&assignment, &wanted, &wrong);
        assert_eq!(changes.write.len(), 1);
        assert!(changes.withdraw.is_empty() && changes.retire.is_empty());
        changes.write[0].over.clone()
    };
    let uid = right[binding].uid.clone();
    let ours = Over::Ours(uid.clone());
    assert_eq!(change(&|observed| observed.digest = "x".to_owned()), ours);
    assert_eq!(change(&|observed| observed.assignment = None), ours);
    assert_eq!(
        change(&|observed| observed.owners = vec!["u0".to_owned()]),
        ours
    );
    let bound = |role: RoleRef, subjects| Some(Content::Binding { role, subjects });
    let role = match &*wanted[binding] {
        Content::Binding { role, .. } => role.clone(),
        Content::Rules(_) => panic!("a binding is none"),
    };
    assert_eq!(
        change(&|observed| observed.content = bound(role.clone(), Vec::new())),
        ours
    );
    // A roleRef cannot be changed in place.
    let other = RoleRef::ClusterRole("cluster-admin".to_owned());
    let unchangeable = Over::Unchangeable(uid);
    assert_eq!(
        change(&|observed| observed.content = bound(other.clone(), Vec::new())),
        unchangeable
    );
    assert_eq!(change(&|observed| observed.content = None), unchangeable);
}

#[test]
fn selectors_mean_what_kubernetes_means_by_them() {
    let set = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect()
    };
    for (test, none, one, other) in [
        (Test::Present, false, true, true),
        (Test::Absent, true, false, false),
        (Test::In(set(&["1", "3"])), false, true, false),
        (Test::NotIn(set(&["1", "3"])), true, false, true),
    ] {
        let selector = Selector(vec![("a".to_owned(), test)]);
        assert_eq!(selector.matches(&labels(&[("b", "1")])), none, "{selector}");
        assert_eq!(selector.matches(&labels(&[("a", "1")])), one, "{selector}");
        assert_eq!(
            selector.matches(&labels(&[("a", "2")])),
            other,
            "{selector}"
        );
    }
    let both = Selector(vec![
        ("a".to_owned(), Test::Present),
        ("b".to_owned(), Test::Present),
    ]);
    assert!(!both.matches(&labels(&[("a", "1")])));
    assert!(both.matches(&labels(&[("a", "1"), ("b", "")])));
}

/// Any assignment, by small names so that some collide.
fn any_assignment() -> impl Strategy<Value = Assignment> {
    let name = || prop::sample::select(vec!["a", "b", "a-b", "a.b", "ab"]).prop_map(str::to_owned);
    let scope = prop_oneof![
        Just(Scope::Cluster),
        Just(Scope::Namespace),
        prop::collection::btree_set(
            prop::sample::select(vec!["n0", "n1", "n2", "n3"]).prop_map(str::to_owned),
            1..4
        )
        .prop_map(Scope::Named),
        Just(Scope::Selected(Selector(vec![(
            "l".to_owned(),
            Test::Present
        )]))),
        name().prop_map(|name| Scope::Resource {
            kind: Kind::SecretVault,
            name
        }),
    ];
    let role = prop_oneof![
        prop::sample::select(BuiltIn::iter().collect::<Vec<_>>()).prop_map(Role::BuiltIn),
        name().prop_map(Role::Custom),
    ];
    let times = (prop::option::of(-50_i64..50), prop::option::of(-50_i64..50));
    (
        name(),
        name(),
        scope,
        role,
        times,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(name, subject, scope, role, (starts, expires), system, deleting)| Assignment {
                namespace: if system { "claviger-system" } else { "n0" }.to_owned(),
                owner: Owner {
                    uid: format!("uid {name}"),
                    name,
                },
                principal: Principal::User(subject),
                role,
                scope,
                starts: starts.map(time),
                expires: expires.map(time),
                deleting,
            },
        )
}

fn any_world() -> impl Strategy<Value = (BTreeMap<String, Namespace>, Source)> {
    let namespace = (any::<bool>(), any::<bool>()).prop_map(|(labelled, going)| Namespace {
        labels: labelled
            .then(|| ("l".to_owned(), String::new()))
            .into_iter()
            .collect(),
        going,
    });
    let name = prop::sample::select(vec!["n0", "n1", "n2", "n3"]).prop_map(str::to_owned);
    let source = prop_oneof![
        Just(Source::Missing),
        Just(Source::Rules(BuiltIn::SecretVaultReader.rules().into())),
        Just(Source::Rules(BuiltIn::FunctionKeyReader.rules().into())),
        Just(Source::Rules(Arc::new([rule(
            &[""],
            &["secrets"],
            &[],
            &["get"]
        )]))),
    ];
    (prop::collection::btree_map(name, namespace, 0..4), source)
}

/// Carries changes out, as the apiserver would; a name cannot be given to two.
fn carry_out(
    assignment: &Assignment,
    standing: &mut BTreeMap<Key, Arc<Observed>>,
    changes: &Changes,
    steps: usize,
) {
    let mut left = steps;
    let mut step = || {
        let may = left > 0;
        left = left.saturating_sub(1);
        may
    };
    for (key, _) in &changes.withdraw {
        if step() {
            standing.remove(key);
        }
    }
    for write in &changes.write {
        if step() {
            let one = Objects::from([(write.key.clone(), Arc::clone(&write.content))]);
            standing.extend(stand(assignment, &one));
        }
    }
    for (key, _) in changes.retire.iter().chain(&changes.foreign) {
        if step() {
            standing.remove(key);
        }
    }
}

/// Who may do what, where: each subject with each rule that some binding gives it. Of a ClusterRole
/// it does not matter here what it permits.
fn grants(standing: &BTreeMap<Key, Arc<Observed>>) -> BTreeSet<String> {
    let mut grants = BTreeSet::new();
    for (key, observed) in standing {
        let Some(Content::Binding { role, subjects }) = &observed.content else {
            continue;
        };
        let rules = match role {
            RoleRef::ClusterRole(name) => vec![name.clone()],
            RoleRef::Role(name) => {
                let role = Key {
                    kind: ObjectKind::Role,
                    namespace: key.namespace.clone(),
                    name: name.clone(),
                };
                match standing.get(&role).and_then(|role| role.content.as_ref()) {
                    Some(Content::Rules(rules)) => rules.iter().map(Rule::to_string).collect(),
                    _ => Vec::new(),
                }
            }
        };
        for subject in subjects {
            let at = &key.namespace;
            grants.extend(rules.iter().map(|rule| format!("{subject} {at}: {rule}")));
        }
    }
    grants
}

/// One of few assignments that all grant something, with one of few names.
fn any_granting() -> impl Strategy<Value = Assignment> {
    let scope = prop_oneof![
        3 => prop::sample::select(vec!["a", "b"]).prop_map(|name| Scope::Resource {
            kind: Kind::SecretVault,
            name: name.to_owned()
        }),
        1 => Just(Scope::Namespace),
        1 => Just(Scope::Cluster),
    ];
    let role = prop::sample::select(vec![
        BuiltIn::SecretVaultReader,
        BuiltIn::SecretVaultSecretsUser,
        BuiltIn::SecretVaultAdministrator,
    ]);
    let subject = prop::sample::select(vec!["a", "b"]);
    (scope, role, subject).prop_map(|(scope, role, subject)| Assignment {
        role: Role::BuiltIn(role),
        principal: Principal::User(subject.to_owned()),
        ..from_system(scope)
    })
}

/// Whether the principal has some role in a namespace.
fn reaches(standing: &BTreeMap<Key, Arc<Observed>>, namespace: &str) -> bool {
    standing.keys().any(|key| {
        key.kind != ObjectKind::Role && (key.namespace == namespace || key.namespace.is_empty())
    })
}

proptest! {
    #[test]
    fn at_no_moment_has_anybody_what_is_declared_neither_before_nor_after(
        before in any_granting(),
        after in any_granting(),
        cut in 0_usize..6,
    ) {
        let mut standing = stand(&before, &decided(&before).objects);
        let wanted = decided(&after).objects;
        let mut declared = grants(&standing);
        prop_assert!(!declared.is_empty());
        declared.append(&mut grants(&stand(&after, &wanted)));
        let changes = changes(&after, &wanted, &standing);
        carry_out(&after, &mut standing, &changes, cut);
        for grant in grants(&standing) {
            prop_assert!(declared.contains(&grant), "{grant}");
        }
    }

    #[test]
    fn from_anywhere_it_comes_to_what_is_declared_and_stays_there(
        before in any_assignment(),
        after in any_assignment(),
        (spaces, source) in any_world(),
        (later, other) in any_world(),
        now in -60_i64..60,
        cut in 0_usize..8,
    ) {
        // The same assignment, changed: its name and namespace cannot be.
        let after = Assignment {
            namespace: before.namespace.clone(),
            owner: before.owner.clone(),
            ..after
        };
        let first = decide(&before, &spaces, &source, &setting(), time(now));
        let mut standing = stand(&before, &first.objects);
        let second = decide(&after, &later, &other, &setting(), time(now));
        // Cut off at any step, then looked at again.
        let half = changes(&after, &second.objects, &standing);
        let had: Vec<String> = later.keys().filter(|name| reaches(&standing, name)).cloned().collect();
        carry_out(&after, &mut standing, &half, cut);
        let wanted = stand(&after, &second.objects);
        let same = before.principal == after.principal;
        for namespace in had.iter().filter(|name| same && reaches(&wanted, name)) {
            prop_assert!(reaches(&standing, namespace), "no role in {namespace} in between");
        }
        let rest = changes(&after, &second.objects, &standing);
        carry_out(&after, &mut standing, &rest, usize::MAX);
        prop_assert_eq!(&standing, &wanted);
        prop_assert!(changes(&after, &second.objects, &standing).are_none());
    }

    #[test]
    fn a_look_is_asked_for_exactly_when_time_changes_something(
        assignment in any_assignment(),
        (spaces, source) in any_world(),
        now in -60_i64..60,
        ahead in 1_i64..120,
    ) {
        let decide = |at| decide(&assignment, &spaces, &source, &setting(), time(at));
        let decision = decide(now);
        prop_assert!(decision.next.is_none_or(|next| next > time(now)));
        let then = decide(now + ahead);
        if decision.next.is_none_or(|next| next > time(now + ahead)) {
            prop_assert_eq!(decision.objects, then.objects);
        }
    }

    #[test]
    fn nothing_is_ever_granted_beyond_what_is_declared(
        assignment in any_assignment(),
        (spaces, source) in any_world(),
        now in -60_i64..60,
    ) {
        let decision = decide(&assignment, &spaces, &source, &setting(), time(now));
        for (key, content) in &decision.objects {
            let system = assignment.namespace == "claviger-system";
            prop_assert!(system || key.namespace == assignment.namespace);
            prop_assert!(key.name.len() <= 63);
            if let Content::Binding { subjects, .. } = &**content {
                prop_assert_eq!(subjects, std::slice::from_ref(&assignment.principal));
            }
            if let Content::Rules(rules) = &**content {
                prop_assert!(rules.iter().all(|rule| rule.names.len() == 1 && rule.groups == ["claviger.dev"]));
            }
        }
        if let (Role::Custom(_), Source::Rules(rules)) = (&assignment.role, &source) {
            prop_assert!(rules[0].groups == ["claviger.dev"] || decision.objects.is_empty());
        }
        let over = assignment.expires.is_some_and(|at| at <= time(now));
        let early = assignment.starts.is_some_and(|at| at > time(now));
        if over || early || assignment.deleting {
            prop_assert!(decision.objects.is_empty());
        }
    }

    #[test]
    fn two_assignments_never_share_an_object(
        one in any_assignment(),
        other in any_assignment(),
        (spaces, source) in any_world(),
    ) {
        let differ = (&one.namespace, &one.owner.name) != (&other.namespace, &other.owner.name);
        let objects = |assignment: &Assignment| {
            decide(assignment, &spaces, &source, &setting(), time(0)).objects
        };
        if differ {
            let (one, other) = (objects(&one), objects(&other));
            prop_assert!(one.keys().all(|key| !other.contains_key(key)));
        }
    }
}
