//! The life of a RoleAssignment: what it grants, when, where, and that it ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    events::v1::Event,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{
    Cluster, Operator, Options, Space,
    actors::Actor,
    control_plane::SYSTEM,
    eventually,
    operator::Launcher,
    roles::{to_user, told},
    space::PATIENCE,
};

const SECRETS: &str = "secretvaults.claviger.dev/secrets";

/// A user of this test alone, and whether they may.
async fn somebody(space: &Space, name: &str) -> (String, Actor) {
    let user = format!("{name}-of-{}", space.name);
    let actor = Actor::person(&space.cluster, &user).await;
    (user, actor)
}

/// Waits until somebody may, or may not.
async fn until_may(actor: &Actor, verb: &str, namespace: &str, name: Option<&str>, may: bool) {
    eventually(
        &format!("{verb} {SECRETS} of {name:?} in {namespace} to be {may}"),
        PATIENCE,
        async || {
            if actor.may_with(verb, SECRETS, namespace, name).await == may {
                Ok(())
            } else {
                Err("it is not".to_owned())
            }
        },
    )
    .await;
}

fn on_vault(name: &str) -> Value {
    json!({"resource": {"kind": "SecretVault", "name": name}})
}

fn at(seconds: i64) -> String {
    let now = claviger::clock::now();
    let at = now + jiff::SignedDuration::from_secs(seconds);
    claviger::api::condition::seconds(at).to_string()
}

/// The notes of events about a RoleAssignment with this reason.
async fn notes(space: &Space, name: &str, reason: &str) -> Vec<String> {
    let events = Api::<Event>::namespaced(space.client.clone(), &space.name);
    let events = events.list(&ListParams::default()).await.unwrap();
    events
        .into_iter()
        .filter(|event| {
            let regarding = event.regarding.as_ref();
            regarding.is_some_and(|about| about.name.as_deref() == Some(name))
                && event.reason.as_deref() == Some(reason)
        })
        .filter_map(|event| event.note)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_on_one_vault_permits_what_it_says_there_and_nothing_else_until_it_is_deleted() {
    let space = Space::new("role-life").await;
    let operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let ns = &space.name;
    let spec = to_user(&user, "SecretVaultSecretsUser", &on_vault("payments"));
    space.assign("reads", &spec).await;
    let status = space.until_told("reads", "True Granted").await;
    let effective = status.effective.clone().unwrap();
    assert_eq!(
        (effective.bindings, effective.roles, effective.namespaces),
        (1, 1, 1)
    );
    assert_eq!(effective.principal.unwrap(), format!("User {user}"));
    assert_eq!(effective.role.unwrap(), "SecretVaultSecretsUser");
    assert_eq!(effective.scope.unwrap(), "SecretVault/payments");
    assert_eq!(effective.objects.len(), 2);
    until_may(&bob, "get", ns, Some("payments"), true).await;
    for (verb, name) in [
        ("get", Some("other")),
        ("get", None),
        ("purge", Some("payments")),
        ("update", Some("payments")),
    ] {
        assert!(
            !bob.may_with(verb, SECRETS, ns, name).await,
            "{verb} {name:?}"
        );
    }
    assert!(!bob.may_with("get", "secrets", ns, Some("payments")).await);
    assert!(
        !bob.may_with("get", SECRETS, "default", Some("payments"))
            .await
    );
    // For nobody's sake is a deletion held up where garbage collection reaches.
    let object = space.assignments().get("reads").await.unwrap();
    assert!(object.finalizers().is_empty());
    // What it speaks of can be changed: another vault, another person.
    let patch = json!({"scope": on_vault("ledger")});
    space.reassign("reads", &patch).await;
    until_may(&bob, "get", ns, Some("ledger"), true).await;
    until_may(&bob, "get", ns, Some("payments"), false).await;
    let (other, eve) = somebody(&space, "eve").await;
    let patch = json!({"principal": {"name": other}});
    space.reassign("reads", &patch).await;
    until_may(&eve, "get", ns, Some("ledger"), true).await;
    until_may(&bob, "get", ns, Some("ledger"), false).await;
    // From one vault to the whole namespace, and back.
    let patch = json!({"scope": {"resource": null, "namespace": {}}});
    space.reassign("reads", &patch).await;
    until_may(&eve, "get", ns, None, true).await;
    space.until_made_in(ns, 1).await;
    let patch = json!({"scope": {"namespace": null, "resource": {"kind": "SecretVault", "name": "ledger"}}});
    space.reassign("reads", &patch).await;
    until_may(&eve, "get", ns, None, false).await;
    assert_eq!(space.until_made_in(ns, 2).await.len(), 2);

    let begun = Instant::now();
    space.unassign("reads").await;
    until_may(&eve, "get", ns, Some("ledger"), false).await;
    println!("access ended {:?} after the deletion", begun.elapsed());
    space.until_made_in(ns, 0).await;
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_another_role_is_at_no_moment_without_one() {
    let space = Space::new("role-change").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let ns = space.name.clone();
    let here = json!({"namespace": {}});
    space
        .assign("works", &to_user(&user, "SecretVaultSecretsUser", &here))
        .await;
    until_may(&bob, "get", &ns, None, true).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, refused) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let asking = tokio::spawn({
        let (stop, asked, refused) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&refused));
        let ns = ns.clone();
        async move {
            while !stop.load(Ordering::Relaxed) {
                if !bob.may_with("get", SECRETS, &ns, None).await {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
            bob
        }
    });
    for role in [
        "SecretVaultSecretsOfficer",
        "SecretVaultAdministrator",
        "SecretVaultSecretsUser",
        "SecretVaultSecretsOfficer",
    ] {
        space
            .reassign("works", &json!({"role": {"builtIn": role}}))
            .await;
        let reference = claviger::domain::role::BuiltIn::SecretVaultReader.cluster_role("claviger");
        assert_eq!(reference, "claviger-secret-vault-reader");
        eventually("one binding to the new role", PATIENCE, async || {
            let made = space.made().await;
            let to = format!(
                "ClusterRole/claviger-{}",
                match role {
                    "SecretVaultSecretsOfficer" => "secret-vault-secrets-officer",
                    "SecretVaultAdministrator" => "secret-vault-administrator",
                    _ => "secret-vault-secrets-user",
                }
            );
            let is = made.len() == 1 && made[0].ends_with(&to);
            if is { Ok(()) } else { Err(format!("{made:?}")) }
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let bob = asking.await.unwrap();
    let (asked, refused) = (
        asked.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
    );
    println!("asked {asked} times during four changes of role");
    assert!(asked > 20);
    assert_eq!(refused, 0, "of {asked}");
    // A role that cannot be granted takes the place of nothing: what is not declared is not granted.
    space
        .put_cluster_role(
            &format!("{ns}-too-much"),
            json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]),
        )
        .await;
    let patch = json!({"role": {"builtIn": null, "clusterRole": format!("{ns}-too-much")}});
    space.reassign("works", &patch).await;
    let status = space.until_told("works", "False Refused").await;
    let said = told(&status);
    assert!(
        said.contains(r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#),
        "{said}"
    );
    until_may(&bob, "get", &ns, None, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_of_it_is_put_right() {
    let space = Space::new("role-drift").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let (_, eve) = somebody(&space, "eve").await;
    let ns = &space.name;
    space
        .assign(
            "reads",
            &to_user(&user, "SecretVaultSecretsUser", &on_vault("payments")),
        )
        .await;
    space.until_told("reads", "True Granted").await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    let names = || async {
        let params = ListParams::default().labels("claviger.dev/content=role-assignment");
        let role = space.roles().list(&params).await.unwrap().items.remove(0);
        let binding = space
            .role_bindings()
            .list(&params)
            .await
            .unwrap()
            .items
            .remove(0);
        (role.name_any(), binding.name_any())
    };
    let (role, binding) = names().await;
    let right = || async {
        let found: Role = space
            .roles()
            .get(&role)
            .await
            .map_err(|error| error.to_string())?;
        let bound = space.role_bindings().get(&binding).await;
        let bound: RoleBinding = bound.map_err(|error| error.to_string())?;
        let rules = json!(found.rules);
        let is = rules
            == json!([{"apiGroups": ["claviger.dev"], "resources": ["secretvaults/secrets"], "resourceNames": ["payments"], "verbs": ["get", "list"]}])
            && bound
                .subjects
                .as_ref()
                .is_some_and(|subjects| subjects.len() == 1 && subjects[0].name == user)
            && bound.role_ref.name == role
            && bound
                .labels()
                .get("claviger.dev/content")
                .map(String::as_str)
                == Some("role-assignment")
            && bound.owner_references().len() == 1;
        if is {
            Ok(())
        } else {
            Err(format!("{rules} {bound:?}"))
        }
    };
    let put_right = async |what: &str| {
        eventually(&format!("{what} to be put right"), PATIENCE, &right).await;
    };
    put_right("everything").await;
    let params = PatchParams {
        field_manager: Some("meddler".to_owned()),
        ..PatchParams::default()
    };
    let merge = |patch: Value| Patch::Merge(patch);
    let intruder = json!([{"kind": "User", "name": format!("eve-of-{ns}"), "apiGroup": "rbac.authorization.k8s.io"}]);

    space
        .role_bindings()
        .patch(&binding, &params, &merge(json!({"subjects": intruder})))
        .await
        .unwrap();
    put_right("another subject").await;
    until_may(&eve, "get", ns, Some("payments"), false).await;
    space
        .role_bindings()
        .delete(&binding, &DeleteParams::default())
        .await
        .unwrap();
    put_right("a deleted binding").await;
    space
        .roles()
        .delete(&role, &DeleteParams::default())
        .await
        .unwrap();
    put_right("a deleted Role").await;
    let wider = json!([{"apiGroups": ["claviger.dev"], "resources": ["secretvaults/secrets"], "verbs": ["get", "purge"]}]);
    space
        .roles()
        .patch(&role, &params, &merge(json!({"rules": wider})))
        .await
        .unwrap();
    put_right("wider rules").await;
    let bare = json!({"metadata": {"labels": {"claviger.dev/content": null}}});
    space
        .role_bindings()
        .patch(&binding, &params, &merge(bare))
        .await
        .unwrap();
    put_right("a label taken off").await;
    let anonymous = json!({"metadata": {"annotations": {"claviger.dev/role-assignment": null}, "ownerReferences": null}});
    space
        .role_bindings()
        .patch(&binding, &params, &merge(anonymous))
        .await
        .unwrap();
    put_right("an annotation and an owner taken off").await;
    // Of the same name, with our label, and to another role.
    let mut other = space.role_bindings().get(&binding).await.unwrap();
    space
        .role_bindings()
        .delete(&binding, &DeleteParams::default())
        .await
        .unwrap();
    other.metadata.resource_version = None;
    other.metadata.uid = None;
    other.metadata.managed_fields = None;
    "ClusterRole".clone_into(&mut other.role_ref.kind);
    "cluster-admin".clone_into(&mut other.role_ref.name);
    // Claviger may have been faster.
    let _ = space
        .role_bindings()
        .create(&PostParams::default(), &other)
        .await;
    put_right("another roleRef").await;
    // Labels of others stay.
    let patch = json!({"metadata": {"labels": {"team": "a"}}});
    space
        .role_bindings()
        .patch(&binding, &params, &merge(patch))
        .await
        .unwrap();
    space
        .role_bindings()
        .patch(&binding, &params, &merge(json!({"subjects": intruder})))
        .await
        .unwrap();
    put_right("another subject again").await;
    let bound = space.role_bindings().get(&binding).await.unwrap();
    assert_eq!(bound.labels().get("team").map(String::as_str), Some("a"));
    // Further ones are counted at the first.
    let said = notes(&space, "reads", "Restored").await;
    let blamed = |note: &String| note.ends_with("(changed by meddler)");
    assert!(said.iter().any(blamed), "{said:?}");
    // A RoleBinding of somebody's own that bears our marks, without anybody having declared it.
    let mut stray = bound.clone();
    stray.metadata = serde_json::from_value(json!({
        "name": "stray", "labels": {"claviger.dev/content": "role-assignment"},
        "annotations": {"claviger.dev/role-assignment": format!("{ns}/nobody")},
    }))
    .unwrap();
    space
        .role_bindings()
        .create(&PostParams::default(), &stray)
        .await
        .unwrap();
    eventually("the stray to go", PATIENCE, async || {
        match space.role_bindings().get_opt("stray").await.unwrap() {
            None => Ok(()),
            Some(_) => Err("it is there".to_owned()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_not_ours_is_never_overwritten() {
    let space = Space::new("role-conflict").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let (user, _) = somebody(&space, "bob").await;
    let spec = to_user(&user, "SecretVaultSecretsUser", &json!({"namespace": {}}));
    space.assign("works", &spec).await;
    space.until_told("works", "True Granted").await;
    let params = ListParams::default().labels("claviger.dev/content=role-assignment");
    let made = space
        .role_bindings()
        .list(&params)
        .await
        .unwrap()
        .items
        .remove(0);
    let name = made.name_any();
    space.unassign("works").await;
    space.until_made_in(&space.name, 0).await;
    // Names are no secret: somebody takes that one.
    let mine = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [],
    });
    let mine = serde_json::from_value(mine).unwrap();
    let mine = space
        .role_bindings()
        .create(&PostParams::default(), &mine)
        .await
        .unwrap();
    space.assign("works", &spec).await;
    let status = space.until_told("works", "False Conflict").await;
    let said = told(&status);
    assert!(
        said.contains(&name) && said.contains("was not made by Claviger"),
        "{said}"
    );
    let after = space.role_bindings().get(&name).await.unwrap();
    assert_eq!(after.resource_version(), mine.resource_version());
    // When it is gone, the name is free; it is tried again by itself.
    space
        .role_bindings()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    space.until_told("works", "True Granted").await;
    // One that is ours but for its label says something else: as ever, it goes first.
    space.unassign("works").await;
    space.until_made_in(&space.name, 0).await;
    let marked = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "annotations": {"claviger.dev/role-assignment": format!("{}/works", space.name)}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
    });
    let marked = serde_json::from_value(marked).unwrap();
    space
        .role_bindings()
        .create(&PostParams::default(), &marked)
        .await
        .unwrap();
    space.assign("works", &spec).await;
    space.until_told("works", "True Granted").await;
    let after = space.role_bindings().get(&name).await.unwrap();
    assert_eq!(after.role_ref.name, "claviger-secret-vault-secrets-user");
}

/// Puts a finalizer on an object of ours, or takes all off.
async fn hold_back(space: &Space, namespace: &str, finalizers: &[&str]) -> String {
    let api = Api::<RoleBinding>::namespaced(space.client.clone(), namespace);
    let params = ListParams::default().labels("claviger.dev/content=role-assignment");
    let name = api.list(&params).await.unwrap().items.remove(0).name_any();
    let patch = json!({"metadata": {"finalizers": finalizers}});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_somebody_holds_back_grants_nothing_and_is_told_of_until_it_goes() {
    let space = Space::new("role-held").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let ns = &space.name;
    let spec = to_user(&user, "SecretVaultSecretsUser", &json!({"namespace": {}}));
    space.assign("guest", &spec).await;
    space.until_told("guest", "True Granted").await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    let binding = hold_back(&space, ns, &["example.com/keep"]).await;
    space.reassign("guest", &json!({"expiresAt": at(-1)})).await;
    let status = space.until_told("guest", "False DeletionBlocked").await;
    let said = told(&status);
    assert!(
        said.contains(&binding) && said.contains("example.com/keep"),
        "{said}"
    );
    until_may(&bob, "get", ns, Some("payments"), false).await;
    let held = space.role_bindings().get(&binding).await.unwrap();
    assert!(held.metadata.deletion_timestamp.is_some());
    assert!(held.subjects.unwrap_or_default().is_empty());
    // Longer again: what stands serves again.
    space.reassign("guest", &json!({"expiresAt": null})).await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    space.reassign("guest", &json!({"expiresAt": at(-1)})).await;
    space.until_told("guest", "False DeletionBlocked").await;
    hold_back(&space, ns, &[]).await;
    space.until_told("guest", "True Expired").await;
    assert!(space.made().await.is_empty());
    // Nor does a deletion of the assignment leave anything behind that grants.
    space.reassign("guest", &json!({"expiresAt": null})).await;
    space.until_told("guest", "True Granted").await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    hold_back(&space, ns, &["example.com/keep"]).await;
    space.unassign("guest").await;
    until_may(&bob, "get", ns, Some("payments"), false).await;
    hold_back(&space, ns, &[]).await;
    space.until_made_in(ns, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn access_begins_and_ends_by_itself() {
    let space = Space::new("role-time").await;
    let operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let ns = &space.name;
    let mut spec = to_user(&user, "SecretVaultSecretsUser", &on_vault("payments"));
    let begins = claviger::clock::now() + jiff::SignedDuration::from_secs(4);
    spec["startsAt"] = json!(claviger::api::condition::seconds(begins).to_string());
    spec["expiresAt"] = json!(at(9));
    space.assign("guest", &spec).await;
    space
        .until_told("guest", "True NotStarted: the access begins at ")
        .await;
    assert!(space.made().await.is_empty());
    space.until_told("guest", "True Granted").await;
    assert!(claviger::clock::now() >= claviger::api::condition::seconds(begins));
    until_may(&bob, "get", ns, Some("payments"), true).await;
    let status = space
        .until_told("guest", "True Expired: the access ended at ")
        .await;
    let late = claviger::clock::now().duration_since(
        status
            .effective
            .clone()
            .map_or_else(claviger::clock::now, |_| {
                spec["expiresAt"].as_str().unwrap().parse().unwrap()
            }),
    );
    println!("told {late:#} after the end");
    assert!(late < jiff::SignedDuration::from_secs(5), "{late:#}");
    until_may(&bob, "get", ns, Some("payments"), false).await;
    assert!(space.made().await.is_empty());
    let said = eventually("the event", PATIENCE, async || {
        notes(&space, "guest", "Expired")
            .await
            .pop()
            .ok_or_else(String::new)
    })
    .await;
    assert!(
        said.contains("has ended, and values that it has read stay known to it"),
        "{said}"
    );
    // Longer again: it comes back. An operator that was down at the end makes up for it.
    space.reassign("guest", &json!({"expiresAt": at(6)})).await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    assert!(operator.stop().await);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(bob.may_with("get", SECRETS, ns, Some("payments")).await);
    let _operator = Operator::start(&space, Options::default()).await;
    space.until_told("guest", "True Expired").await;
    until_may(&bob, "get", ns, Some("payments"), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_ones_own_is_narrowed_to_the_resource_and_followed() {
    let space = Space::new("role-own").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let ns = &space.name;
    let custom = format!("{ns}-custom");
    let mut spec = to_user(&user, "SecretVaultReader", &on_vault("payments"));
    spec["role"] = json!({"clusterRole": custom});
    space.assign("own", &spec).await;
    let status = space.until_told("own", "False RoleNotFound").await;
    assert!(told(&status).contains(&format!("ClusterRole/{custom} does not exist")));
    let rule = |verbs: Value| json!({"apiGroups": ["claviger.dev"], "resources": ["secretvaults/secrets", "functionkeys/value"], "verbs": verbs});
    // What of it is not about vaults is not granted, so it does not matter that Claviger could not.
    let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]});
    space
        .put_cluster_role(&custom, json!([rule(json!(["get", "update"])), pods]))
        .await;
    space.until_told("own", "True Granted").await;
    until_may(&bob, "update", ns, Some("payments"), true).await;
    assert!(
        !bob.may_with(
            "get",
            "functionkeys.claviger.dev/value",
            ns,
            Some("payments")
        )
        .await
    );
    assert!(!bob.may_with("get", "pods", ns, Some("payments")).await);
    space
        .put_cluster_role(&custom, json!([rule(json!(["get"]))]))
        .await;
    until_may(&bob, "update", ns, Some("payments"), false).await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    // More than Claviger holds.
    space
        .put_cluster_role(&custom, json!([rule(json!(["get", "shred"]))]))
        .await;
    let status = space.until_told("own", "False Refused").await;
    let said = told(&status);
    assert!(said.contains("shred"), "{said}");
    until_may(&bob, "get", ns, Some("payments"), false).await;
    assert!(space.made().await.is_empty());
    space.put_cluster_role(&custom, json!([pods])).await;
    space.until_told("own", "False Invalid: ClusterRole/").await;
    until_may(&bob, "get", ns, Some("payments"), false).await;
    space
        .put_cluster_role(&custom, json!([rule(json!(["get"]))]))
        .await;
    space.until_told("own", "True Granted").await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    // What Claviger holds and no door serves is not granted on, in the whole namespace either, nor when
    // the ClusterRole comes to say so later.
    let patch = json!({"scope": {"resource": null, "namespace": {}}});
    space.reassign("own", &patch).await;
    until_may(&bob, "get", ns, None, true).await;
    let secrets = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
    space
        .put_cluster_role(&custom, json!([rule(json!(["get"])), secrets]))
        .await;
    let status = space.until_told("own", "False Refused").await;
    assert!(
        told(&status).contains(r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#),
        "{}",
        told(&status)
    );
    assert!(space.made().await.is_empty());
    assert!(!bob.may("get", "secrets", ns).await);
    space
        .put_cluster_role(&custom, json!([rule(json!(["get"]))]))
        .await;
    until_may(&bob, "get", ns, Some("payments"), true).await;
    let roles = Api::<k8s_openapi::api::rbac::v1::ClusterRole>::all(space.client.clone());
    roles
        .delete(&custom, &DeleteParams::default())
        .await
        .unwrap();
    until_may(&bob, "get", ns, Some("payments"), false).await;
    space.until_told("own", "False RoleNotFound").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_while_the_operator_is_down_goes_nevertheless() {
    let space = Space::new("role-down").await;
    let operator = Operator::start(&space, Options::default()).await;
    let (user, bob) = somebody(&space, "bob").await;
    let ns = &space.name;
    space
        .assign(
            "works",
            &to_user(&user, "SecretVaultSecretsUser", &json!({"namespace": {}})),
        )
        .await;
    until_may(&bob, "get", ns, None, true).await;
    operator.kill().await;
    space.unassign("works").await;
    // Garbage collection does it.
    until_may(&bob, "get", ns, None, false).await;
    space.until_made_in(ns, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_ends_with_what_is_declared_and_nothing_else() {
    let space = Space::new("role-crash").await;
    let options = Options {
        identity: Some(format!("crash-{}", space.name)),
        ..Options::default()
    };
    let launcher = Launcher::new(&space, &options).await;
    let roles = [
        "SecretVaultSecretsUser",
        "SecretVaultSecretsOfficer",
        "SecretVaultReader",
    ];
    let names: Vec<String> = (0..12).map(|i| format!("a{i}")).collect();
    let scope = |i: usize| {
        if i.is_multiple_of(2) {
            on_vault("payments")
        } else {
            json!({"namespace": {}})
        }
    };
    for (i, name) in names.iter().enumerate() {
        space
            .assign(name, &to_user(&format!("user{i}"), roles[0], &scope(i)))
            .await;
    }
    // The first deaths fall into the start, later ones into the work.
    for death in 0..16_u64 {
        let role = roles[usize::try_from(death).unwrap() % 3];
        let operator = launcher.spawn();
        tokio::time::sleep(Duration::from_millis(150 + death * 90)).await;
        for name in names
            .iter()
            .skip(usize::try_from(death).unwrap() % 3)
            .step_by(3)
        {
            space
                .reassign(name, &json!({"role": {"builtIn": role}}))
                .await;
        }
        tokio::time::sleep(Duration::from_millis(death * 37 % 180)).await;
        operator.kill().await;
    }
    for name in &names {
        space
            .reassign(name, &json!({"role": {"builtIn": roles[1]}}))
            .await;
    }
    for name in &names[8..] {
        space.unassign(name).await;
    }
    let operator = launcher.spawn();
    operator.leads().await;
    for name in &names[..8] {
        space.until_told(name, "True Granted").await;
    }
    // Four with a Role and a binding, four with a binding.
    let made = space.until_made_in(&space.name, 12).await;
    let bound = made
        .iter()
        .filter(|line| line.ends_with("secret-vault-secrets-officer"))
        .count();
    assert_eq!(bound, 4, "{made:?}");
    // A restart writes nothing.
    let version = async || {
        let params = ListParams::default().labels("claviger.dev/content=role-assignment");
        let bindings = space.role_bindings().list(&params).await.unwrap();
        let mut versions: Vec<_> = bindings.iter().map(ResourceExt::resource_version).collect();
        let assignments = space
            .assignments()
            .list(&ListParams::default())
            .await
            .unwrap();
        versions.extend(assignments.iter().map(ResourceExt::resource_version));
        versions
    };
    let before = version().await;
    assert!(operator.stop().await);
    let operator = launcher.spawn();
    operator.leads().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(before, version().await);
    for name in &names[..8] {
        space.unassign(name).await;
    }
    space.until_made_in(&space.name, 0).await;
}

/// An operator that looks after a whole cluster of its own.
async fn everywhere(what: &str) -> (Space, Operator) {
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let space = Space::on(Arc::new(cluster), what).await;
    let options = Options {
        namespaces: vec![String::new()],
        ..Options::default()
    };
    let operator = Operator::start(&space, options).await;
    (space, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_followed_by_their_labels_and_names() {
    let (space, operator) = everywhere("role-labels").await;
    let (user, bob) = somebody(&space, "bob").await;
    for name in ["front-1", "front-2", "back-1"] {
        let tier = name.split('-').next().unwrap();
        space.put_namespace(name, json!({"tier": tier})).await;
    }
    let selector = json!({"namespaces": {"selector": {"matchLabels": {"tier": "front"}}}});
    let spec = to_user(&user, "SecretVaultSecretsUser", &selector);
    space.assign_in(SYSTEM, "fronts", &spec).await;
    let status = space.until_told_in(SYSTEM, "fronts", "True Granted").await;
    let effective = status.effective.clone().unwrap();
    assert_eq!(
        (effective.namespaces, effective.bindings, effective.roles),
        (2, 2, 0)
    );
    for (namespace, may) in [
        ("front-1", true),
        ("front-2", true),
        ("back-1", false),
        (SYSTEM, false),
    ] {
        until_may(&bob, "get", namespace, None, may).await;
    }
    let api =
        Api::<claviger::api::v1alpha1::RoleAssignment>::namespaced(space.client.clone(), SYSTEM);
    let held = api.get("fronts").await.unwrap();
    assert_eq!(held.finalizers(), ["claviger.dev/role-assignment"]);
    // A label comes, one goes, a namespace comes, one goes.
    let begun = Instant::now();
    space
        .put_namespace("back-1", json!({"tier": "front"}))
        .await;
    until_may(&bob, "get", "back-1", None, true).await;
    println!("one label: {:?}", begun.elapsed());
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    space
        .put_namespace("front-1", json!({"tier": "other"}))
        .await;
    until_may(&bob, "get", "front-1", None, false).await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    space
        .put_namespace("front-3", json!({"tier": "front"}))
        .await;
    until_may(&bob, "get", "front-3", None, true).await;
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(space.client.clone());
    namespaces
        .delete("front-2", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the count to follow", PATIENCE, async || {
        let status = api.get("fronts").await.unwrap().status.unwrap();
        let effective = status.effective.clone().unwrap();
        if effective.namespaces == 2 && told(&status).starts_with("True Granted") {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    // From labels to names, one of which is not there.
    let named = json!({"spec": {"scope": {"namespaces": {"selector": null, "names": ["back-1", "later"]}}}});
    let params = PatchParams::default();
    api.patch("fronts", &params, &Patch::Merge(named))
        .await
        .unwrap();
    let status = space
        .until_told_in(SYSTEM, "fronts", "False NamespaceNotFound")
        .await;
    assert!(told(&status).contains("later"), "{}", told(&status));
    until_may(&bob, "get", "front-3", None, false).await;
    until_may(&bob, "get", "back-1", None, true).await;
    space.put_namespace("later", json!({})).await;
    space.until_told_in(SYSTEM, "fronts", "True Granted").await;
    until_may(&bob, "get", "later", None, true).await;
    // From names to the whole cluster, without a gap, and back to one namespace.
    let cluster = json!({"spec": {"scope": {"namespaces": null, "cluster": {}}}});
    api.patch("fronts", &params, &Patch::Merge(cluster))
        .await
        .unwrap();
    until_may(&bob, "get", "front-1", None, true).await;
    space.until_made_in("later", 0).await;
    assert_eq!(space.cluster_bindings().await.len(), 1);
    assert!(bob.may_with("get", SECRETS, "later", None).await);
    let own = json!({"spec": {"scope": {"cluster": null, "namespace": {}}}});
    api.patch("fronts", &params, &Patch::Merge(own))
        .await
        .unwrap();
    until_may(&bob, "get", "later", None, false).await;
    until_may(&bob, "get", SYSTEM, None, true).await;
    assert!(space.cluster_bindings().await.is_empty());
    eventually("the finalizer to go", PATIENCE, async || {
        let object = api.get("fronts").await.unwrap();
        if object.finalizers().is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", object.finalizers()))
        }
    })
    .await;
    // Deleted while the operator is down: the finalizer holds it until everything is gone.
    let cluster = json!({"spec": {"scope": {"namespace": null, "namespaces": {"names": ["back-1", "later"]}}}});
    api.patch("fronts", &params, &Patch::Merge(cluster))
        .await
        .unwrap();
    until_may(&bob, "get", "later", None, true).await;
    space.until_told_in(SYSTEM, "fronts", "True Granted").await;
    operator.kill().await;
    api.delete("fronts", &DeleteParams::default())
        .await
        .unwrap();
    assert!(api.get_opt("fronts").await.unwrap().is_some());
    assert!(bob.may_with("get", SECRETS, "later", None).await);
    let options = Options {
        namespaces: vec![String::new()],
        ..Options::default()
    };
    let _operator = Operator::start(&space, options).await;
    eventually("it to go", PATIENCE, async || {
        match api.get_opt("fronts").await.unwrap() {
            None => Ok(()),
            Some(object) => Err(format!("{:?}", object.metadata)),
        }
    })
    .await;
    for namespace in ["back-1", "later", SYSTEM] {
        assert!(space.made_in(namespace).await.is_empty(), "{namespace}");
        until_may(&bob, "get", namespace, None, false).await;
    }
    // Nor does it go before what somebody holds back has gone.
    let both = json!({"namespaces": {"names": ["back-1", "later"]}});
    let spec = to_user(&user, "SecretVaultSecretsUser", &both);
    space.assign_in(SYSTEM, "fronts", &spec).await;
    until_may(&bob, "get", "later", None, true).await;
    space.until_told_in(SYSTEM, "fronts", "True Granted").await;
    hold_back(&space, "later", &["example.com/keep"]).await;
    api.delete("fronts", &DeleteParams::default())
        .await
        .unwrap();
    until_may(&bob, "get", "later", None, false).await;
    let status = space
        .until_told_in(SYSTEM, "fronts", "False DeletionBlocked")
        .await;
    assert!(told(&status).contains("example.com/keep"));
    hold_back(&space, "later", &[]).await;
    until_gone(&api, "fronts").await;
}

async fn until_gone(api: &Api<claviger::api::v1alpha1::RoleAssignment>, name: &str) {
    let api: Api<kube::core::PartialObjectMeta<claviger::api::v1alpha1::RoleAssignment>> =
        Api::namespaced(api.clone().into_client(), SYSTEM);
    eventually(&format!("{name} to go"), PATIENCE, async || {
        match api.get_opt(name).await.unwrap() {
            None => Ok(()),
            Some(object) => Err(format!("{:?}", object.metadata)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_read_goes_all_the_same_and_stands_on_nothing_that_is_forgotten() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

    let (space, operator) = everywhere("role-unread").await;
    let (user, bob) = somebody(&space, "bob").await;
    let api =
        Api::<claviger::api::v1alpha1::RoleAssignment>::namespaced(space.client.clone(), SYSTEM);
    for name in ["one", "two"] {
        space.put_namespace(name, json!({})).await;
        let names = json!({"namespaces": {"names": [name]}});
        let spec = to_user(&user, "SecretVaultSecretsUser", &names);
        space.assign_in(SYSTEM, name, &spec).await;
        until_may(&bob, "get", name, None, true).await;
        space.until_told_in(SYSTEM, name, "True Granted").await;
    }
    // A definition without rules, as some older version may have been.
    let definitions = Api::<CustomResourceDefinition>::all(space.client.clone());
    let lax = json!([{
        "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }]);
    let lax: json_patch::Patch = serde_json::from_value(lax).unwrap();
    let params = PatchParams::default();
    let definition = "roleassignments.claviger.dev";
    definitions
        .patch(definition, &params, &Patch::Json::<()>(lax))
        .await
        .unwrap();
    let kind = kube::api::ApiResource::erase::<claviger::api::v1alpha1::RoleAssignment>(&());
    let raw: Api<kube::api::DynamicObject> =
        Api::namespaced_with(space.client.clone(), SYSTEM, &kind);
    let said = async |name: &str, words: &str| {
        eventually(&format!("{name} to say {words}"), PATIENCE, async || {
            let object = raw.get(name).await.unwrap();
            let ready = object.data["status"]["conditions"][0]["message"].to_string();
            if ready.contains(words) {
                Ok(())
            } else {
                Err(ready)
            }
        })
        .await;
    };
    for name in ["one", "two"] {
        eventually("the lax definition", PATIENCE, async || {
            let patch = json!({"spec": {"scope": {"namespaces": {"names": 7}}}});
            let patched = raw.patch(name, &params, &Patch::Merge(patch)).await;
            patched.map(drop).map_err(|error| error.to_string())
        })
        .await;
        said(name, "What it declared last stands").await;
        assert!(bob.may_with("get", SECRETS, name, None).await);
    }
    // Deleted, it goes, and what it granted with it.
    raw.delete("one", &DeleteParams::default()).await.unwrap();
    until_may(&bob, "get", "one", None, false).await;
    until_gone(&api, "one").await;
    assert!(bob.may_with("get", SECRETS, "two", None).await);
    // Who does not know any more until when it was to last grants nothing.
    assert!(operator.stop().await);
    let options = || Options {
        namespaces: vec![String::new()],
        ..Options::default()
    };
    let _operator = Operator::start(&space, options()).await;
    until_may(&bob, "get", "two", None, false).await;
    said("two", "is not known since Claviger was started").await;
    raw.delete("two", &DeleteParams::default()).await.unwrap();
    until_gone(&api, "two").await;
    what_claviger_comes_to_hold_no_more_is_withdrawn(&space, &user, &bob).await;
    // The last thing: a built-in role whose ClusterRole somebody deletes is granted to nobody.
    let spec = to_user(&user, "SecretVaultSecretsUser", &json!({"namespace": {}}));
    space.assign_in(SYSTEM, "three", &spec).await;
    until_may(&bob, "get", SYSTEM, None, true).await;
    space.until_told_in(SYSTEM, "three", "True Granted").await;
    let roles = Api::<k8s_openapi::api::rbac::v1::ClusterRole>::all(space.client.clone());
    roles
        .delete(
            "claviger-secret-vault-secrets-user",
            &DeleteParams::default(),
        )
        .await
        .unwrap();
    space
        .until_told_in(SYSTEM, "three", "False RoleNotFound")
        .await;
}

/// When a copy of a role cannot be brought up to date, because Claviger does not hold what it is to
/// say, the old one does not stay.
async fn what_claviger_comes_to_hold_no_more_is_withdrawn(space: &Space, user: &str, bob: &Actor) {
    use k8s_openapi::api::{authorization::v1::SubjectAccessReview, rbac::v1::ClusterRole};

    let may = |verbs: Value| json!([{"apiGroups": ["claviger.dev"], "resources": ["secretvaults/secrets"], "verbs": verbs}]);
    space.put_cluster_role("own", may(json!(["get"]))).await;
    let mut spec = to_user(user, "SecretVaultReader", &on_vault("payments"));
    spec["role"] = json!({"clusterRole": "own"});
    space.assign_in(SYSTEM, "own", &spec).await;
    space.until_told_in(SYSTEM, "own", "True Granted").await;
    until_may(bob, "get", SYSTEM, Some("payments"), true).await;
    let roles = Api::<ClusterRole>::all(space.client.clone());
    let mut held = roles.get("claviger").await.unwrap();
    for rule in held.rules.iter_mut().flatten() {
        rule.verbs.retain(|verb| verb != "purge");
    }
    roles
        .replace("claviger", &PostParams::default(), &held)
        .await
        .unwrap();
    eventually("Claviger to lose a right", PATIENCE, async || {
        let review = serde_json::from_value(json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {
                "user": format!("system:serviceaccount:{SYSTEM}:claviger"),
                "resourceAttributes": {
                    "group": "claviger.dev", "resource": "secretvaults", "subresource": "secrets",
                    "verb": "purge", "namespace": SYSTEM,
                },
            },
        }));
        let reviews = Api::<SubjectAccessReview>::all(space.client.clone());
        let answer = reviews
            .create(&PostParams::default(), &review.unwrap())
            .await
            .unwrap();
        match answer.status {
            Some(status) if !status.allowed => Ok(()),
            _ => Err("it has it".to_owned()),
        }
    })
    .await;
    space
        .put_cluster_role("own", may(json!(["get", "purge"])))
        .await;
    let status = space.until_told_in(SYSTEM, "own", "False Refused").await;
    assert!(
        told(&status).contains("what Claviger does not hold itself"),
        "{}",
        told(&status)
    );
    until_may(bob, "get", SYSTEM, Some("payments"), false).await;
    let api =
        Api::<claviger::api::v1alpha1::RoleAssignment>::namespaced(space.client.clone(), SYSTEM);
    api.delete("own", &DeleteParams::default()).await.unwrap();
}
