//! Who may grant what by a RoleAssignment: exactly what they could grant by a RoleBinding of their own.
//! And what not even Claviger may do with the rights by which it carries assignments out.

use std::{collections::BTreeSet, time::Duration};

use claviger::domain::role::{BuiltIn, Kind, narrow};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use strum::IntoEnumIterator;

use crate::support::{
    Space,
    actors::{Act, Actor},
    control_plane::SYSTEM,
    eventually,
    roles::{assignment, to_user},
};

const RBAC: &str = "rbac.authorization.k8s.io";
const API: &str = "rbac.authorization.k8s.io/v1";

/// Somebody, and what they are called.
struct Person {
    who: &'static str,
    user: String,
    actor: Actor,
}

/// A namespace with people of different rights in it. All but `dev` may write RoleAssignments, Roles
/// and RoleBindings there and in Claviger's own namespace:
///
/// - `root`: administrator of the cluster
/// - `anna`: administrator of the namespace
/// - `dev`: declares keys and vaults
/// - `editor`: nothing besides
/// - `binder`: may bind one built-in role and one of their own making in the namespace
/// - `holder`: may read the secrets of every vault of the namespace
/// - `keeper`: may read those of the vault `payments`
/// - `chief`: may bind the same as binder everywhere, and write ClusterRoleBindings
/// - `robot`: a ServiceAccount with the rights of holder
struct Field {
    space: Space,
    people: Vec<Person>,
    custom: String,
}

impl Field {
    async fn new(what: &str) -> Self {
        let space = Space::new(what).await;
        let cluster = &space.cluster;
        let ns = space.name.clone();
        let root = Actor::root(cluster).await;
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
        root.does(&Act::create(&ns, "serviceaccounts", &account))
            .await
            .unwrap();
        let mut people = Vec::new();
        for who in [
            "anna", "dev", "editor", "binder", "holder", "keeper", "chief",
        ] {
            let user = format!("{who}-of-{ns}");
            let actor = Actor::person(cluster, &user).await;
            people.push(Person { who, user, actor });
        }
        people.push(Person {
            who: "robot",
            user: format!("system:serviceaccount:{ns}:robot"),
            actor: Actor::account(cluster, &ns, "robot").await,
        });
        people.push(Person {
            who: "root",
            user: "root".to_owned(),
            actor: root,
        });
        let custom = format!("{ns}-custom");
        let field = Self {
            space,
            people,
            custom,
        };
        field.grant().await;
        field
    }

    fn person(&self, who: &str) -> &Person {
        self.people.iter().find(|person| person.who == who).unwrap()
    }

    async fn done(&self, act: Act) {
        let root = &self.person("root").actor;
        root.does(&act)
            .await
            .unwrap_or_else(|refusal| panic!("{refusal}: {act:?}"));
    }

    async fn bind(&self, namespace: Option<&str>, role: (&str, &str), who: &[&str]) {
        let subjects: Vec<Value> = who
            .iter()
            .map(|who| json!({"kind": "User", "name": self.person(who).user, "apiGroup": RBAC}))
            .collect();
        let (kind, name) = role;
        let what = if namespace.is_some() {
            "RoleBinding"
        } else {
            "ClusterRoleBinding"
        };
        let binding = json!({
            "apiVersion": API, "kind": what,
            "metadata": {"name": format!("{}-{name}", self.space.name)},
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name}, "subjects": subjects,
        });
        let resource = format!("{}s", what.to_lowercase());
        self.done(Act::create(
            namespace.unwrap_or_default(),
            &resource,
            &binding,
        ))
        .await;
    }

    async fn grant(&self) {
        let ns = &self.space.name;
        let rule = |group: &str, resources: Value, verbs: Value| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        let made = |kind: &str, name: &str, rules: Value| json!({"apiVersion": API, "kind": kind, "metadata": {"name": name}, "rules": rules});
        let reads = rule(
            "claviger.dev",
            json!(["secretvaults/secrets"]),
            json!(["get", "list"]),
        );
        let mut reads_one = reads.clone();
        reads_one["resourceNames"] = json!(["payments"]);
        let mut binds = rule(RBAC, json!(["clusterroles"]), json!(["bind"]));
        binds["resourceNames"] = json!(["claviger-secret-vault-secrets-user", self.custom]);
        let writes = rule(
            RBAC,
            json!(["roles", "rolebindings"]),
            json!(["create", "delete"]),
        );
        let writes_all = rule(
            RBAC,
            json!(["clusterrolebindings"]),
            json!(["create", "delete"]),
        );
        for (name, rules) in [
            ("reads", json!([reads])),
            ("reads-one", json!([reads_one])),
            ("binds", json!([binds])),
            ("writes", json!([writes])),
        ] {
            self.done(Act::create(ns, "roles", &made("Role", name, rules)))
                .await;
        }
        let chief = format!("{ns}-chief");
        let system = format!("{ns}-writes");
        for (name, rules) in [
            (&self.custom, json!([reads])),
            (&chief, json!([binds, writes, writes_all])),
            (&system, json!([writes])),
        ] {
            self.done(Act::create(
                "",
                "clusterroles",
                &made("ClusterRole", name, rules),
            ))
            .await;
        }
        let granters = ["editor", "binder", "holder", "keeper", "chief", "robot"];
        for namespace in [ns, SYSTEM] {
            self.bind(
                Some(namespace),
                ("ClusterRole", "claviger-grant"),
                &granters,
            )
            .await;
            self.bind(Some(namespace), ("ClusterRole", &system), &granters)
                .await;
        }
        self.bind(Some(ns), ("ClusterRole", "admin"), &["anna"])
            .await;
        self.bind(Some(ns), ("ClusterRole", "view"), &["dev"]).await;
        self.bind(Some(ns), ("ClusterRole", "claviger-edit"), &["dev"])
            .await;
        self.bind(Some(ns), ("Role", "binds"), &["binder"]).await;
        self.bind(Some(ns), ("Role", "reads"), &["holder", "robot"])
            .await;
        self.bind(Some(ns), ("Role", "reads-one"), &["keeper"])
            .await;
        self.bind(None, ("ClusterRole", &chief), &["chief"]).await;
        let bind = format!("clusterroles.{RBAC}");
        let user = Some("claviger-secret-vault-secrets-user");
        let secrets = "secretvaults.claviger.dev/secrets";
        for (who, verb, resource, name, namespace) in [
            ("anna", "bind", &*bind, user, &**ns),
            ("binder", "bind", &bind, user, ns),
            ("chief", "bind", &bind, user, ""),
            ("holder", "get", secrets, None, ns),
            ("robot", "get", secrets, None, ns),
            ("keeper", "get", secrets, Some("payments"), ns),
            (
                "editor",
                "create",
                "roleassignments.claviger.dev",
                None,
                SYSTEM,
            ),
        ] {
            eventually(
                &format!("{who} to be allowed to {verb} {resource}"),
                Duration::from_secs(30),
                async || {
                    let actor = &self.person(who).actor;
                    if actor.may_with(verb, resource, namespace, name).await {
                        Ok(())
                    } else {
                        Err("no".to_owned())
                    }
                },
            )
            .await;
        }
    }
}

/// A role as a test goes through them: a built-in one, or the custom one.
#[derive(Clone, Copy, Debug)]
enum Choice {
    BuiltIn(BuiltIn),
    Custom,
}

/// Where, as a test goes through them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    Payments,
    Other,
    Namespace,
    Names,
    Labels,
    Cluster,
}

impl Where {
    fn scope(self, kind: Kind, ns: &str) -> Value {
        match self {
            Self::Payments => json!({"resource": {"kind": kind.to_string(), "name": "payments"}}),
            Self::Other => json!({"resource": {"kind": kind.to_string(), "name": "other"}}),
            Self::Namespace => json!({"namespace": {}}),
            Self::Names => json!({"namespaces": {"names": [ns]}}),
            Self::Labels => json!({"namespaces": {"selector": {"matchLabels": {"a": "b"}}}}),
            Self::Cluster => json!({"cluster": {}}),
        }
    }

    fn resource(self) -> Option<&'static str> {
        match self {
            Self::Payments => Some("payments"),
            Self::Other => Some("other"),
            Self::Namespace | Self::Names | Self::Labels | Self::Cluster => None,
        }
    }

    fn is_wide(self) -> bool {
        matches!(self, Self::Names | Self::Labels | Self::Cluster)
    }
}

/// Whether somebody could grant it by a binding of their own: to the whole role, or of a resource to
/// a Role that says no more than that.
async fn could(
    field: &Field,
    person: &Person,
    choice: Choice,
    place: Where,
    subject: &Value,
) -> bool {
    let ns = &field.space.name;
    let name = match choice {
        Choice::BuiltIn(role) => role.cluster_role("claviger"),
        Choice::Custom => field.custom.clone(),
    };
    let (what, resource) = if place.is_wide() {
        ("ClusterRoleBinding", "clusterrolebindings")
    } else {
        ("RoleBinding", "rolebindings")
    };
    let mut subject = subject.clone();
    if subject["kind"] != "ServiceAccount" {
        subject["apiGroup"] = json!(RBAC);
    }
    let binding = json!({
        "apiVersion": API, "kind": what, "metadata": {"name": "attempt"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}, "subjects": [subject],
    });
    if person
        .actor
        .does(&Act::create(ns, resource, &binding).dry())
        .await
        .is_ok()
    {
        return true;
    }
    let (Choice::BuiltIn(role), Some(resource)) = (choice, place.resource()) else {
        return false;
    };
    let rules: Vec<Value> = narrow(&role.rules(), role.kind(), resource)
        .iter()
        .map(|rule| json!({"apiGroups": rule.groups, "resources": rule.resources, "resourceNames": rule.names, "verbs": rule.verbs}))
        .collect();
    let role =
        json!({"apiVersion": API, "kind": "Role", "metadata": {"name": "attempt"}, "rules": rules});
    person
        .actor
        .does(&Act::create(ns, "roles", &role).dry())
        .await
        .is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_may_assign_exactly_what_one_could_bind() {
    let field = Field::new("role-grants").await;
    let ns = &field.space.name;
    let anna = &field.person("anna").user;
    let choices: Vec<Choice> = BuiltIn::iter()
        .map(Choice::BuiltIn)
        .chain([Choice::Custom])
        .collect();
    let subjects = [
        json!({"kind": "User", "name": anna}),
        json!({"kind": "Group", "name": "system:authenticated"}),
        json!({"kind": "ServiceAccount", "name": "default", "namespace": "kube-system"}),
    ];
    let mut attempts = Vec::new();
    for person in &field.people {
        for (index, &choice) in choices.iter().enumerate() {
            for place in [
                Where::Payments,
                Where::Other,
                Where::Namespace,
                Where::Names,
                Where::Labels,
                Where::Cluster,
            ] {
                // To whom makes no difference; so each is tried with somebody else.
                attempts.push((person, choice, place, &subjects[index % subjects.len()]));
            }
        }
    }
    let total = attempts.len();
    let outcomes: Vec<(String, bool, Option<String>)> = stream::iter(attempts)
        .map(|(person, choice, place, subject)| {
            let field = &field;
            async move {
                let (kind, role) = match choice {
                    Choice::BuiltIn(role) => (role.kind(), json!({"builtIn": role.to_string()})),
                    Choice::Custom => (Kind::SecretVault, json!({"clusterRole": field.custom})),
                };
                let spec =
                    json!({"principal": subject, "role": role, "scope": place.scope(kind, ns)});
                let namespace = if place.is_wide() { SYSTEM } else { ns };
                let object = assignment("attempt", &spec);
                let act = Act::create(namespace, "roleassignments", &object).dry();
                let said = person.actor.does(&act).await;
                let mut could = could(field, person, choice, place, subject).await;
                if matches!(choice, Choice::Custom) {
                    // A policy cannot read the rules of a ClusterRole, so `bind` is what counts.
                    let wide = place.is_wide();
                    let binds = person
                        .actor
                        .may_with(
                            "bind",
                            &format!("clusterroles.{RBAC}"),
                            if wide { "" } else { ns },
                            Some(&field.custom),
                        )
                        .await;
                    assert!(could || !binds || person.who == "dev");
                    could &= binds;
                }
                let what = format!("{}: {choice:?} {place:?} for {subject}", person.who);
                (what, could, said.err())
            }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let wrong: Vec<String> = outcomes
        .iter()
        .filter(|(_, could, refused)| *could == refused.is_some())
        .map(|(what, could, refused)| format!("{what}: could {could}, but {refused:?}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {total}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Both happened, to everybody of whom both are expected.
    let allowed: BTreeSet<&str> = outcomes
        .iter()
        .filter(|(_, could, _)| *could)
        .map(|(what, _, _)| what.split(':').next().unwrap())
        .collect();
    let expected = BTreeSet::from([
        "anna", "binder", "chief", "holder", "keeper", "robot", "root",
    ]);
    assert_eq!(allowed, expected);
    let granted = outcomes.iter().filter(|(_, could, _)| *could).count();
    println!("{total} attempts, {granted} of them allowed");
    for (what, _, refused) in &outcomes {
        let Some(refused) = refused else { continue };
        let help = refused.contains("may not grant") || refused.contains("cannot create resource");
        assert!(help, "{what}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_of_writing_one_goes_round_the_policy() {
    let field = Field::new("role-ways").await;
    let ns = &field.space.name;
    let reader =
        |name: &str, role: &str, scope: Value| assignment(name, &to_user("eve", role, &scope));
    let user = "SecretVaultSecretsUser";
    let (here, everywhere) = (json!({"namespace": {}}), json!({"cluster": {}}));
    let path = "roleassignments/works";
    let works = Act::create(ns, "roleassignments", &reader("works", user, here.clone()));
    let admin = json!({"spec": {"role": {"builtIn": "SecretVaultAdministrator"}}});
    let dates = json!({"spec": {"expiresAt": "2099-01-01T00:00:00Z"}});
    let status = json!({"spec": {"role": {"builtIn": "SecretVaultAdministrator"}}, "status": {"observedGeneration": 1}});
    let label = json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/x"]}});
    let unlabel = json!({"metadata": {"finalizers": null}});
    let bind = "may not grant the role SecretVaultAdministrator in namespace";
    let role_of =
        |name: &str| json!([{"op": "replace", "path": "/spec/role/builtIn", "value": name}]);
    let binding = |name: &str, labels: Value, role: &str| {
        json!({
            "apiVersion": API, "kind": "RoleBinding", "metadata": {"name": name, "labels": labels},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}, "subjects": [],
        })
    };
    let ours = json!({"claviger.dev/content": "role-assignment"});
    let rows: Vec<(&str, &str, Act, Option<&str>)> = vec![
        (
            "editor",
            "has no right of their own",
            works.clone(),
            Some("may not grant the role SecretVaultSecretsUser in namespace"),
        ),
        (
            "editor",
            "only tries it out",
            works.clone().dry(),
            Some(
                "it takes the permission to bind ClusterRole claviger-secret-vault-secrets-user there, or everything that the role permits",
            ),
        ),
        (
            "editor",
            "by server-side apply",
            Act::apply(ns, path, &reader("works", user, here.clone())),
            Some("may not grant"),
        ),
        (
            "editor",
            "with a name made up by the apiserver",
            Act::create(ns, "roleassignments", &{
                let mut object = reader("x", user, here.clone());
                object["metadata"] = json!({"generateName": "x-"});
                object
            }),
            Some("may not grant"),
        ),
        ("holder", "holds what the role permits", works, None),
        (
            "editor",
            "labels somebody else's",
            Act::merge(ns, path, &label),
            None,
        ),
        (
            "editor",
            "takes a finalizer off",
            Act::merge(ns, path, &unlabel),
            None,
        ),
        (
            "editor",
            "lengthens it",
            Act::merge(ns, path, &dates),
            Some("may not grant"),
        ),
        (
            "editor",
            "names somebody else",
            Act::merge(ns, path, &json!({"spec": {"principal": {"name": "me"}}})),
            Some("may not grant"),
        ),
        ("holder", "lengthens it", Act::merge(ns, path, &dates), None),
        (
            "holder",
            "another role: merge patch",
            Act::merge(ns, path, &admin),
            Some(bind),
        ),
        (
            "holder",
            "another role: JSON patch",
            Act::operations(ns, path, &role_of("SecretVaultAdministrator")),
            Some(bind),
        ),
        (
            "holder",
            "another role: server-side apply",
            Act::apply(
                ns,
                path,
                &reader("works", "SecretVaultAdministrator", here.clone()),
            ),
            Some(bind),
        ),
        (
            "holder",
            "another role: through the status",
            Act::merge(ns, "roleassignments/works/status", &status),
            Some("cannot patch resource \"roleassignments/status\""),
        ),
        (
            "holder",
            "a role that says less",
            Act::operations(ns, path, &role_of("SecretVaultReader")),
            Some("may not grant the role SecretVaultReader"),
        ),
        (
            "holder",
            "the whole cluster from here",
            Act::merge(
                ns,
                path,
                &json!({"spec": {"scope": {"namespace": null, "cluster": {}}}}),
            ),
            Some("scope.cluster reaches beyond namespace"),
        ),
        (
            "root",
            "the whole cluster from here",
            Act::create(
                ns,
                "roleassignments",
                &reader("wide", user, everywhere.clone()),
            ),
            Some(
                "which only a RoleAssignment in namespace claviger-system may. Use scope.namespace or scope.resource",
            ),
        ),
        (
            "root",
            "its own namespace by name",
            Act::create(
                ns,
                "roleassignments",
                &reader("wide", user, json!({"namespaces": {"names": [ns]}})),
            ),
            Some("scope.namespaces reaches beyond namespace"),
        ),
        (
            "holder",
            "the whole cluster from Claviger's namespace",
            Act::create(
                SYSTEM,
                "roleassignments",
                &reader(&format!("{ns}-wide"), user, everywhere.clone()),
            )
            .dry(),
            Some("may not grant the role SecretVaultSecretsUser in the whole cluster"),
        ),
        (
            "chief",
            "the whole cluster from Claviger's namespace",
            Act::create(
                SYSTEM,
                "roleassignments",
                &reader(&format!("{ns}-wide"), user, everywhere.clone()),
            )
            .dry(),
            None,
        ),
        (
            "keeper",
            "the one vault",
            Act::create(
                ns,
                "roleassignments",
                &reader(
                    "one",
                    user,
                    json!({"resource": {"kind": "SecretVault", "name": "payments"}}),
                ),
            ),
            None,
        ),
        (
            "keeper",
            "another vault",
            Act::operations(
                ns,
                "roleassignments/one",
                &json!([{"op": "replace", "path": "/spec/scope/resource/name", "value": "other"}]),
            ),
            Some("or everything that the role permits on SecretVault other"),
        ),
        (
            "keeper",
            "every vault",
            Act::merge(
                ns,
                "roleassignments/one",
                &json!({"spec": {"scope": {"resource": null, "namespace": {}}}}),
            ),
            Some("may not grant"),
        ),
        (
            "robot",
            "a controller's ServiceAccount that holds it",
            Act::create(ns, "roleassignments", &reader("robots", user, here.clone())),
            None,
        ),
        (
            "robot",
            "... and more than it holds",
            Act::create(
                ns,
                "roleassignments",
                &reader("robots2", "SecretVaultSecretsOfficer", here.clone()),
            ),
            Some("robot may not grant the role SecretVaultSecretsOfficer"),
        ),
        (
            "binder",
            "a ClusterRole that they may bind",
            Act::create(
                ns,
                "roleassignments",
                &assignment(
                    "own",
                    &json!({"principal": {"kind": "User", "name": "eve"}, "role": {"clusterRole": field.custom}, "scope": {"namespace": {}}}),
                ),
            ),
            None,
        ),
        (
            "binder",
            "one that they may not",
            Act::operations(
                ns,
                "roleassignments/own",
                &json!([{"op": "replace", "path": "/spec/role/clusterRole", "value": "cluster-admin"}]),
            ),
            Some("may not grant ClusterRole cluster-admin in namespace"),
        ),
        (
            "binder",
            "one that is not there",
            Act::operations(
                ns,
                "roleassignments/own",
                &json!([{"op": "replace", "path": "/spec/role/clusterRole", "value": "later"}]),
            ),
            Some("may not grant ClusterRole later in namespace"),
        ),
        (
            "holder",
            "a ClusterRole whose rules they hold",
            Act::create(
                ns,
                "roleassignments",
                &assignment(
                    "own2",
                    &json!({"principal": {"kind": "User", "name": "eve"}, "role": {"clusterRole": field.custom}, "scope": {"namespace": {}}}),
                ),
            ),
            Some("it takes the permission to bind ClusterRole"),
        ),
        (
            "dev",
            "declares keys, grants nothing",
            Act::create(
                ns,
                "roleassignments",
                &reader("devs", "SecretVaultReader", here.clone()),
            ),
            Some("cannot create resource \"roleassignments\""),
        ),
        (
            "dev",
            "deletes one",
            Act::delete(ns, path),
            Some("cannot delete resource \"roleassignments\""),
        ),
        (
            "anna",
            "every role in her namespace",
            Act::create(
                ns,
                "roleassignments",
                &reader("annas", "SecretVaultAdministrator", here.clone()),
            ),
            None,
        ),
        (
            "anna",
            "labels her namespace",
            Act::merge(ns, &format!("namespaces/{ns}"), &label),
            Some("cannot patch resource \"namespaces\""),
        ),
        // What bears Claviger's marks is granted by nobody's word but their own.
        (
            "editor",
            "makes a binding with our label",
            Act::create(
                ns,
                "rolebindings",
                &binding("fake", ours.clone(), "claviger-secret-vault-secrets-user"),
            ),
            Some("attempting to grant RBAC permissions not currently held"),
        ),
    ];
    let mut wrong = Vec::new();
    let count = rows.len();
    for (who, what, act, expected) in rows {
        let answer = field.person(who).actor.does(&act).await;
        let right = match (&answer, expected) {
            (Ok(_), None) => true,
            (Err(said), Some(expected)) => said.contains(expected),
            _ => false,
        };
        if !right {
            let answer = answer.map(|_| "it was done");
            wrong.push(format!(
                "{who}: {what}: expected {expected:?}, but {answer:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{count} rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn not_even_claviger_writes_other_roles_and_bindings_than_those_of_assignments() {
    let space = Space::new("role-fence").await;
    let ns = &space.name;
    let root = Actor::root(&space.cluster).await;
    let claviger = Actor::account(&space.cluster, SYSTEM, "claviger").await;
    let object = |kind: &str, name: &str, ours: bool, role: &str| {
        let labels = if ours {
            json!({"claviger.dev/content": "role-assignment"})
        } else {
            json!({})
        };
        json!({
            "apiVersion": API, "kind": kind, "metadata": {"name": name, "labels": labels},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}, "subjects": [],
        })
    };
    let role = |ours: bool, verbs: Value| {
        let mut role = object("Role", "r", ours, "");
        role.as_object_mut()
            .unwrap()
            .retain(|key, _| key != "roleRef" && key != "subjects");
        role["rules"] = json!([{"apiGroups": ["claviger.dev"], "resources": ["secretvaults/secrets"], "verbs": verbs}]);
        role
    };
    let (user, view) = ("claviger-secret-vault-secrets-user", "view");
    let foreign = object("RoleBinding", "foreign", false, user);
    root.does(&Act::create(ns, "rolebindings", &foreign))
        .await
        .unwrap();
    let wide = format!("{ns}-wide");
    root.does(&Act::create(
        "",
        "clusterrolebindings",
        &object("ClusterRoleBinding", &wide, false, user),
    ))
    .await
    .unwrap();
    let declared = assignment(
        "works",
        &to_user("eve", "SecretVaultReader", &json!({"namespace": {}})),
    );
    root.does(&Act::create(ns, "roleassignments", &declared))
        .await
        .unwrap();
    let fence =
        Some("Claviger writes no Role or binding but those that it made for a RoleAssignment");
    let escalation = Some("attempting to grant RBAC permissions not currently held");
    let nothing = Some(
        "Claviger may change nothing of a RoleAssignment but its own finalizer and the status",
    );
    let labelled = json!({"metadata": {"labels": {"claviger.dev/content": "role-assignment"}}});
    let finalizer = json!({"metadata": {"finalizers": ["claviger.dev/role-assignment"]}});
    let rows: Vec<(&str, Act, Option<&str>)> = vec![
        (
            "a binding without our label",
            Act::create(ns, "rolebindings", &object("RoleBinding", "b", false, user)),
            fence,
        ),
        (
            "a binding with it",
            Act::create(ns, "rolebindings", &object("RoleBinding", "b", true, user)),
            None,
        ),
        (
            "... to more than it holds",
            Act::create(ns, "rolebindings", &object("RoleBinding", "c", true, view)),
            escalation,
        ),
        (
            "... to everything",
            Act::create(
                ns,
                "rolebindings",
                &object("RoleBinding", "c", true, "cluster-admin"),
            ),
            escalation,
        ),
        (
            "... to itself for the cluster",
            Act::create(
                "",
                "clusterrolebindings",
                &object(
                    "ClusterRoleBinding",
                    &format!("{ns}-c"),
                    true,
                    "cluster-admin",
                ),
            ),
            escalation,
        ),
        (
            "a Role without our label",
            Act::create(ns, "roles", &role(false, json!(["get"]))),
            fence,
        ),
        (
            "a Role with it",
            Act::create(ns, "roles", &role(true, json!(["get"]))),
            None,
        ),
        (
            "widens it by what it does not hold",
            Act::merge(
                ns,
                "roles/r",
                &json!({"rules": role(true, json!(["get", "shred"]))["rules"]}),
            ),
            escalation,
        ),
        (
            "takes the label off",
            Act::merge(ns, "roles/r", &json!({"metadata": {"labels": null}})),
            fence,
        ),
        (
            "changes somebody's binding",
            Act::merge(ns, "rolebindings/foreign", &json!({"subjects": []})),
            fence,
        ),
        (
            "claims somebody's binding",
            Act::merge(ns, "rolebindings/foreign", &labelled),
            fence,
        ),
        (
            "deletes somebody's binding",
            Act::delete(ns, "rolebindings/foreign"),
            fence,
        ),
        (
            "deletes somebody's binding for the cluster",
            Act::delete("", &format!("clusterrolebindings/{wide}")),
            fence,
        ),
        (
            "deletes all of a namespace",
            Act::delete(ns, "rolebindings"),
            Some("cannot deletecollection resource \"rolebindings\""),
        ),
        ("deletes its own", Act::delete(ns, "rolebindings/b"), None),
        (
            "makes a ClusterRole",
            Act::create(
                "",
                "clusterroles",
                &json!({"apiVersion": API, "kind": "ClusterRole", "metadata": {"name": format!("{ns}-x")}, "rules": []}),
            ),
            Some("cannot create resource \"clusterroles\""),
        ),
        (
            "makes an assignment",
            Act::create(
                ns,
                "roleassignments",
                &assignment("mine", &declared["spec"]),
            ),
            Some("cannot create resource \"roleassignments\""),
        ),
        (
            "deletes an assignment",
            Act::delete(ns, "roleassignments/works"),
            Some("cannot delete resource \"roleassignments\""),
        ),
        (
            "changes an assignment",
            Act::merge(
                ns,
                "roleassignments/works",
                &json!({"spec": {"principal": {"name": "me"}}}),
            ),
            nothing,
        ),
        (
            "labels an assignment",
            Act::merge(ns, "roleassignments/works", &labelled),
            nothing,
        ),
        (
            "holds an assignment back",
            Act::merge(ns, "roleassignments/works", &finalizer),
            None,
        ),
    ];
    let mut wrong = Vec::new();
    let count = rows.len();
    for (what, act, expected) in rows {
        let answer = claviger.does(&act).await;
        let right = match (&answer, expected) {
            (Ok(_), None) => true,
            (Err(said), Some(expected)) => said.contains(expected),
            _ => false,
        };
        if !right {
            let answer = answer.map(|_| "it was done");
            wrong.push(format!("{what}: expected {expected:?}, but {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (verb, resource) in [
        ("bind", "clusterroles"),
        ("escalate", "clusterroles"),
        ("escalate", "roles"),
        ("bind", "roles"),
        ("update", "rolebindings"),
    ] {
        let may = claviger.may(verb, &format!("{resource}.{RBAC}"), ns).await;
        assert!(!may, "{verb} {resource}");
    }
    for kind in ["users", "groups", "serviceaccounts"] {
        assert!(!claviger.may("impersonate", kind, ns).await, "{kind}");
    }
    println!("{count} rows");
    root.does(&Act::delete("", &format!("clusterrolebindings/{wide}")))
        .await
        .unwrap();
}
