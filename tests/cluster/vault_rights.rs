//! Who may do what to vaults: what Claviger would do for an author with its own rights, what nobody
//! but Claviger may touch, and what not even Claviger may.

use serde_json::{Value, json};

use crate::{
    rights::{
        Outcome::{Allowed, Refused},
        Row, Stage, secret, workloads,
    },
    support::{
        actors::{Act, Actor},
        control_plane::SYSTEM,
    },
    vault_manifests::largest,
};

fn vault(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "SecretVault",
        "metadata": {"name": name}, "spec": spec,
    })
}

fn generated(name: &str) -> Value {
    json!({"name": name, "generate": {}})
}

fn imported(name: &str, secret: &str, key: &str) -> Value {
    json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
}

/// An item of `sync`.
fn to(target: &str, from: &str, restart: &[(&str, &str)]) -> Value {
    let mut item = json!({"target": {"name": target}, "data": [{"key": "K", "secret": from}]});
    if !restart.is_empty() {
        item["restart"] = workloads(restart);
    }
    item
}

/// Every field that has Claviger do something.
fn everything() -> Value {
    json!({
        "secrets": [generated("made"), imported("brought", "chosen", "key")],
        "sync": [
            to("c1", "made", &[("Deployment", "web")]),
            to("c2", "brought", &[("StatefulSet", "db"), ("DaemonSet", "agent")]),
        ],
    })
}

fn row(who: &'static str, what: &str, act: Act, outcome: crate::rights::Outcome) -> Row {
    (who, what.to_owned(), act, outcome)
}

const READ_CHOSEN: &str = "denied request: spec.secrets hands on values of other Secrets (valueFrom: chosen), and dev may not read them all";
const RESTART: &str = "the manifest has Claviger restart a Deployment, and";

#[tokio::test(flavor = "multi_thread")]
async fn authors_of_a_vault_must_hold_what_they_route() {
    let stage = Stage::new("vault-authors").await;
    let ns = &stage.space.name;
    let create = |name: &str, spec: Value| Act::create(ns, "secretvaults", &vault(name, &spec));
    let change = |name: &str, spec: Value| {
        Act::merge(ns, &format!("secretvaults/{name}"), &json!({"spec": spec}))
    };
    let secrets = |secrets: Value| json!({"secrets": secrets});
    let import = || secrets(json!([imported("a", "chosen", "key")]));
    let with = |item: Value| json!({"secrets": [generated("a")], "sync": [item]});
    let web = [("Deployment", "web")];
    let many: Vec<Value> = (0..300)
        .map(|i| imported(&format!("s{i}"), "chosen", &format!("k{i}")))
        .collect();
    let different: Vec<Value> = (0..20)
        .map(|i| imported(&format!("s{i}"), &format!("chosen{i}"), "key"))
        .collect();
    stage.holds(vec![
        row("dev", "generated secrets", create("plain", secrets(json!([generated("a"), generated("b")]))), Allowed),
        row("dev", "an import", create("import", import()), Refused(READ_CHOSEN)),
        row("dev", "an import, only tried out", create("import", import()).dry(), Refused(READ_CHOSEN)),
        row("dev", "an import, by server-side apply", Act::apply(ns, "secretvaults/import", &vault("import", &import())), Refused(READ_CHOSEN)),
        row("dev", "sync", create("sync", with(to("env", "a", &[]))), Refused("spec.sync has Claviger write Secret env, and dev may not create Secrets")),
        row("dev", "a template", create("sync", with(json!({"target": {"name": "env"}, "data": [{"key": "K", "template": "x"}]}))), Refused("spec.sync has Claviger write Secret env")),
        row("dev", "sync into somebody else's Secret", create("sync", with(json!({"target": {"name": "env"}, "creationPolicy": "Merge", "data": [{"key": "K", "secret": "a"}]}))), Refused("spec.sync has Claviger write Secret env")),
        // Afterwards, by every verb that changes something.
        row("dev", "adds a generated secret", change("plain", secrets(json!([generated("a"), generated("c")]))), Allowed),
        row("dev", "adds an import: merge patch", change("plain", import()), Refused(READ_CHOSEN)),
        row("dev", "adds an import: JSON patch", Act::operations(ns, "secretvaults/plain", &json!([{"op": "add", "path": "/spec/secrets/-", "value": imported("x", "chosen", "key")}])), Refused(READ_CHOSEN)),
        row("dev", "adds an import: server-side apply", Act::apply(ns, "secretvaults/plain", &vault("plain", &secrets(json!([imported("x", "chosen", "key")])))), Refused(READ_CHOSEN)),
        row("dev", "adds sync", change("plain", json!({"sync": [to("env", "a", &[])]})), Refused("spec.sync has Claviger write Secret env")),
        row("dev", "adds sync through the status", Act::merge(ns, "secretvaults/plain/status", &json!({"spec": {"sync": [to("env", "a", &[])]}})), Refused("cannot patch resource \"secretvaults/status\"")),
        row("dev", "sets an interval", change("plain", json!({"keyRing": {"rotation": {"interval": "720h"}}})), Allowed),
        // Those who hold a part.
        row("scribe", "sync", create("s1", with(to("env", "a", &[]))), Allowed),
        row("scribe", "sync with restart", create("s2", with(to("env2", "a", &web))), Refused(RESTART)),
        row("scribe", "an import", create("s3", import()), Refused("and scribe may not read them all")),
        row("scribe", "another content of the target", change("s1", json!({"sync": [to("env", "b", &[])]})), Allowed),
        row("dev", "another content of the target", change("s1", json!({"sync": [to("env", "a", &[])]})), Refused("dev may not create Secrets")),
        row("dev", "another way to write the target", change("s1", json!({"sync": [{"target": {"name": "env"}, "creationPolicy": "Merge", "data": [{"key": "K", "secret": "b"}]}]})), Refused("dev may not create Secrets")),
        row("named", "an import from the named Secret", create("n1", import()), Allowed),
        row("named", "300 imports from it", create("n2", secrets(json!(many))), Allowed),
        row("named", "an import from another Secret", create("n3", secrets(json!([imported("a", "foreign", "key")]))), Refused("(valueFrom: foreign), and named may not read them all")),
        row("named", "an import from both", create("n3", secrets(json!([imported("a", "chosen", "key"), imported("b", "foreign", "key")]))), Refused("(valueFrom: chosen, foreign), and named may not read them all")),
        row("named", "twenty imports", create("n3", secrets(json!(different))), Refused("chosen6, chosen7 and more), and named may not read them all")),
        row("named", "goes over to another Secret", change("n1", secrets(json!([imported("a", "foreign", "key")]))), Refused("(valueFrom: foreign), and named")),
        row("named", "sync, with patch on one name only", create("n4", with(to("chosen2", "a", &[]))), Refused("and named may not patch Secrets")),
        row("ops", "sync with restart of a Deployment", create("o1", with(to("env-o", "a", &web))), Allowed),
        row("ops", "... and of a StatefulSet", create("o2", with(to("env-o2", "a", &[("Deployment", "web"), ("StatefulSet", "db")]))), Refused("restart a StatefulSet, and ops may not")),
        row("ops", "adds a DaemonSet", change("o1", json!({"sync": [to("env-o", "a", &[("Deployment", "web"), ("DaemonSet", "agent")])]})), Refused("restart a DaemonSet, and ops may not")),
        row("anna", "everything", create("full", everything()), Allowed),
        row("anna", "twenty imports", create("many", secrets(json!(different))), Allowed),
        row("anna", "the same in another namespace", Act::create("default", "secretvaults", &vault("full", &everything())), Refused("cannot create resource \"secretvaults\"")),
    ]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_a_vault_needs_the_rights_for_what_they_add_and_for_nothing_else() {
    let stage = Stage::new("vault-changes").await;
    let ns = &stage.space.name;
    let change = |spec: Value| Act::merge(ns, "secretvaults/full", &json!({"spec": spec}));
    let note = |name: &str, text: &str| {
        Act::merge(
            ns,
            "secretvaults/full",
            &json!({"metadata": {"annotations": {name: text}}}),
        )
    };
    let all = everything();
    let (first, second) = (all["sync"][0].clone(), all["sync"][1].clone());
    let brought = imported("brought", "chosen", "key");
    let secrets = |list: Value| change(json!({"secrets": list}));
    let sync = |list: Value| change(json!({"sync": list}));
    stage.holds(vec![
        row("anna", "everything", Act::create(ns, "secretvaults", &vault("full", &all)), Allowed),
        row("dev", "deletionPolicy", change(json!({"deletionPolicy": "Retain"})), Allowed),
        row("dev", "softDelete", change(json!({"softDelete": {"retention": "720h"}})), Allowed),
        row("dev", "suspend", change(json!({"suspend": true})), Allowed),
        row("dev", "a turn of the ring", note("claviger.dev/rotate-at", "2030-01-01T00:00:00Z"), Allowed),
        row("dev", "a turn of a secret", note("claviger.dev/rotate-secrets", "made@2030-01-01T00:00:00Z"), Allowed),
        row("dev", "adds a generated secret", secrets(json!([generated("made"), brought, generated("more")])), Allowed),
        row("dev", "the overlap of an import", secrets(json!([generated("made"), {"name": "brought", "valueFrom": brought["valueFrom"], "rotation": {"overlap": "1h"}}])), Allowed),
        row("dev", "takes a restart away", sync(json!([to("c1", "made", &[]), second])), Allowed),
        row("dev", "puts the restart back", sync(json!([first, second])), Refused(RESTART)),
        row("scribe", "restarts somebody that another target restarts", sync(json!([to("c1", "made", &[("StatefulSet", "db")]), second])), Allowed),
        row("scribe", "restarts another of that kind", sync(json!([to("c1", "made", &[("StatefulSet", "other")]), second])), Refused("restart a StatefulSet, and scribe may not")),
        row("dev", "takes a target away", sync(json!([second])), Allowed),
        row("dev", "puts the target back", sync(json!([to("c1", "made", &[]), second])), Refused(READ_CHOSEN)),
        row("scribe", "leads the source of another author to a new target", sync(json!([second, to("mine", "brought", &[])])), Refused("(valueFrom: chosen), and scribe may not read them all")),
        row("scribe", "changes the content of a target", sync(json!([to("c2", "made", &[])])), Refused("and scribe may not read them all")),
        row("scribe", "changes the type of a target", sync(json!([{"target": {"name": "c2", "immutable": true}, "data": second["data"]}])), Refused("and scribe may not read them all")),
        row("dev", "changes the entry of the source", secrets(json!([imported("brought", "chosen", "other")])), Refused(READ_CHOSEN)),
        row("dev", "leads the source to another name", secrets(json!([brought, imported("made", "chosen", "key")])), Refused(READ_CHOSEN)),
        row("dev", "writes the name otherwise", secrets(json!([imported("Brought", "chosen", "key")])), Allowed),
        row("dev", "takes the import away", secrets(json!([generated("made")])), Allowed),
        row("dev", "puts the import back", secrets(json!([generated("made"), brought])), Refused(READ_CHOSEN)),
        row("scribe", "without an import, a new target", sync(json!([second, to("mine", "made", &[])])), Allowed),
        row("dev", "deletes the vault", Act::delete(ns, "secretvaults/full"), Allowed),
        row("dev", "makes it anew", Act::create(ns, "secretvaults", &vault("full", &all)), Refused("denied request")),
    ]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_vault_there_can_be_is_within_what_the_policies_may_spend() {
    let stage = Stage::new("vault-largest").await;
    let ns = &stage.space.name;
    let mut changed = largest(true);
    for item in changed["sync"].as_array_mut().unwrap() {
        item["data"][99]["secret"] = json!("changed");
        item["restart"][15]["kind"] = json!("StatefulSet");
    }
    let mut moved = largest(true);
    for (index, secret) in moved["secrets"].as_array_mut().unwrap()[..100]
        .iter_mut()
        .enumerate()
    {
        secret["valueFrom"]["secretKeyRef"]["key"] = json!(format!("other{index}"));
    }
    let with_version = async |spec: &Value| {
        let stands = stage.done("anna", &Act::get(ns, "secretvaults/big")).await;
        let mut object = vault("big", spec);
        object["metadata"] = stands["metadata"].clone();
        Act::replace(ns, "secretvaults/big", &object)
    };
    let create = Act::create(ns, "secretvaults", &vault("big", &largest(true)));
    let refused = "and more), and named may not read them all";
    stage
        .holds(vec![
            row("named", "the largest", create.clone(), Refused(refused)),
            row("anna", "the largest", create, Allowed),
        ])
        .await;
    for (what, spec) in [
        ("all contents and restarts changed", &changed),
        ("all sources changed", &moved),
    ] {
        let act = with_version(spec).await;
        let mut rows = vec![row("named", what, act.clone(), Refused(refused))];
        rows.push(row("anna", what, act, Allowed));
        stage.holds(rows).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_may_change_nothing_of_a_vault_but_its_finalizer_and_the_status() {
    let stage = Stage::new("vault-fence").await;
    let ns = &stage.space.name;
    let on = "secretvaults/full";
    let refused = || {
        Refused("Claviger may change nothing of a SecretVault but its own finalizer and the status")
    };
    let metadata = |fields: Value| Act::merge(ns, on, &json!({"metadata": fields}));
    stage.holds(vec![
        row("anna", "everything", Act::create(ns, "secretvaults", &vault("full", &everything())), Allowed),
        row("claviger", "puts its finalizer on", metadata(json!({"finalizers": ["claviger.dev/vault"]})), Allowed),
        row("claviger", "... by server-side apply", Act::apply(ns, on, &json!({"apiVersion": "claviger.dev/v1alpha1", "kind": "SecretVault", "metadata": {"name": "full", "finalizers": ["claviger.dev/vault"]}})), Allowed),
        row("claviger", "puts another's finalizer on", metadata(json!({"finalizers": ["claviger.dev/vault", "example.com/x"]})), refused()),
        row("anna", "puts another's finalizer on", metadata(json!({"finalizers": ["claviger.dev/vault", "example.com/x"]})), Allowed),
        row("claviger", "takes another's finalizer off", metadata(json!({"finalizers": ["claviger.dev/vault"]})), refused()),
        row("claviger", "takes its own off", metadata(json!({"finalizers": ["example.com/x"]})), Allowed),
        row("claviger", "a label", metadata(json!({"labels": {"a": "b"}})), refused()),
        row("claviger", "an annotation", metadata(json!({"annotations": {"claviger.dev/purge-secrets": "a@2030-01-01T00:00:00Z"}})), refused()),
        row("claviger", "an owner", metadata(json!({"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}]})), refused()),
        row("claviger", "the spec", Act::merge(ns, on, &json!({"spec": {"suspend": true}})), refused()),
        row("claviger", "shreds", Act::merge(ns, on, &json!({"spec": {"shred": true}})), refused()),
        row("claviger", "the status", Act::merge(ns, "secretvaults/full/status", &json!({"status": {"vaultId": "0"}})), Allowed),
        row("claviger", "the status and a spec with it", Act::merge(ns, "secretvaults/full/status", &json!({"spec": {"shred": true}})), Allowed),
        row("claviger", "makes one: RBAC", Act::create(ns, "secretvaults", &vault("x", &json!({}))), Refused("cannot create resource \"secretvaults\"")),
        row("claviger", "deletes one: RBAC", Act::delete(ns, on), Refused("cannot delete resource \"secretvaults\"")),
    ]).await;
    // Of the last patch of the status nothing was taken but the status.
    let stands = stage.done("anna", &Act::get(ns, on)).await;
    assert_eq!(stands["spec"], everything());
}

/// A Secret of a vault's, as Claviger makes it.
fn own(name: &str, type_: &str, label: Option<&str>) -> Value {
    let mut object = secret(name, type_, false);
    if let Some(label) = label {
        object["metadata"]["labels"] =
            json!({"claviger.dev/content": label, "claviger.dev/vault": "payments"});
    }
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vault_is_made_of_is_written_by_the_controller_only() {
    let stage = Stage::new("vault-own").await;
    let ns = &stage.space.name;
    let (ring_type, version_type) = ("claviger.dev/key-ring", "claviger.dev/secret-version");
    let ring = own("payments-key-ring", ring_type, Some("vault-key-ring"));
    let version_name = format!("payments.{}-0000000001", "0".repeat(32));
    let mut version = own(&version_name, version_type, Some("vault-secret-version"));
    version["immutable"] = json!(true);
    let on_ring = "secrets/payments-key-ring";
    let on_version = format!("secrets/{version_name}");
    let on_version = on_version.as_str();
    let envelope = json!({"metadata": {"annotations": {"claviger.dev/envelope": "v1.2.AA.AA"}}});
    let payload = json!({"stringData": {"a": "c"}});
    let unlabel = json!({"metadata": {"labels": {"claviger.dev/content": null}}});
    let mut synced = own("env", "Opaque", Some("vault-sync"));
    synced["metadata"]["annotations"] = json!({"claviger.dev/sync": "payments"});
    let only = "so only Claviger writes them: anna may not";
    stage.holds(vec![
        row("claviger", "makes a key ring", Act::create(ns, "secrets", &ring), Allowed),
        row("claviger", "makes one without a label", Act::create(ns, "secrets", &own("x", ring_type, None)), Refused("Claviger does not create a Secret that does not carry its label")),
        row("claviger", "turns it", Act::merge(ns, on_ring, &payload), Allowed),
        row("claviger", "makes a version", Act::create(ns, "secrets", &version), Allowed),
        row("claviger", "re-wraps it", Act::merge(ns, on_version, &envelope), Allowed),
        row("claviger", "changes its payload", Act::merge(ns, on_version, &payload), Refused("field is immutable when `immutable` is set")),
        row("claviger", "makes a target", Act::create(ns, "secrets", &synced), Allowed),
        row("anna", "reads the ciphertext", Act::get(ns, on_version), Allowed),
        row("anna", "changes the envelope", Act::merge(ns, on_version, &envelope), Allowed),
        row("anna", "changes the envelope to another", Act::merge(ns, on_version, &json!({"metadata": {"annotations": {"claviger.dev/envelope": "v1.1.AA.AA"}}})), Refused(only)),
        row("anna", "takes the label off", Act::merge(ns, on_version, &unlabel), Refused(only)),
        row("anna", "hands it to the garbage collector", Act::merge(ns, on_version, &json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}]}})), Refused(only)),
        row("anna", "deletes it", Act::delete(ns, on_version), Refused("Secrets of type claviger.dev/secret-version hold what cannot be made again, so only Claviger writes them: anna may not delete one")),
        row("anna", "deletes all of them", Act::delete(ns, "secrets").dry().with("labelSelector=claviger.dev/vault%3Dpayments"), Refused(only)),
        row("anna", "makes one of her own", Act::create(ns, "secrets", &own("fake", version_type, Some("vault-secret-version"))), Refused("anna may not create one")),
        row("anna", "passes a Secret off as one", Act::create(ns, "secrets", &own("fake", "Opaque", Some("vault-secret-version"))), Refused("Secrets of type Opaque with the label of a vault's own hold")),
        row("anna", "passes a Secret off as a ring", Act::merge(ns, "secrets/env", &json!({"metadata": {"labels": {"claviger.dev/content": "vault-key-ring"}}})), Refused("with the label of a vault's own")),
        row("anna", "makes one by server-side apply", Act::apply(ns, "secrets/fake", &own("fake", version_type, None)), Refused("anna may not create one")),
        row("anna", "changes the ring", Act::merge(ns, on_ring, &payload), Allowed),
        row("anna", "changes the ring to another", Act::merge(ns, on_ring, &json!({"stringData": {"ring": "x"}})), Refused(only)),
        row("anna", "deletes the ring", Act::delete(ns, on_ring), Refused(only)),
        row("anna", "makes another vault's ring", Act::create(ns, "secrets", &own("orders-key-ring", ring_type, None)), Refused("anna may not create one")),
        row("root", "deletes a version", Act::delete(ns, on_version), Refused("take this policy away first")),
        row("anna", "changes a target, which is hers", Act::merge(ns, "secrets/env", &payload), Allowed),
        row("anna", "deletes a target", Act::delete(ns, "secrets/env"), Allowed),
        row("scribe", "changes a version", Act::merge(ns, on_version, &unlabel), Refused("scribe may not update one")),
        row("claviger", "purges a version", Act::delete(ns, on_version), Allowed),
        row("claviger", "deletes a ring with its vault", Act::delete(ns, on_ring), Allowed),
    ]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_is_made_once_and_only_an_administrator_puts_it_back() {
    let stage = Stage::new("root-key").await;
    let ns = &stage.space.name;
    // Names of this test's own: the real ones belong to the operators of other tests.
    let (key_name, backup_name) = (format!("{ns}-key"), format!("{ns}-backup"));
    let (on_key, on_backup) = (
        format!("secrets/{key_name}"),
        format!("secrets/{backup_name}"),
    );
    let (key_type, backup_type) = ("claviger.dev/root-key", "claviger.dev/root-key-backup");
    let key = own(&key_name, key_type, None);
    let backup = own(&backup_name, backup_type, None);
    // Somebody who may write Secrets of the system's namespace, and nothing else.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": ns},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "patch", "delete"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": ns},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ns},
        "subjects": [{"kind": "User", "name": "planter", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    stage
        .done("root", &Act::create(SYSTEM, "roles", &role))
        .await;
    stage
        .done("root", &Act::create(SYSTEM, "rolebindings", &binding))
        .await;
    let planter = Actor::person(&stage.space.cluster, "planter").await;
    crate::support::eventually(
        "planter to be allowed to create secrets",
        std::time::Duration::from_secs(30),
        async || {
            let may = planter.may("create", "secrets", SYSTEM).await;
            may.then_some(()).ok_or_else(|| "no".to_owned())
        },
    )
    .await;
    for object in [&key, &backup] {
        let refusal = planter
            .does(&Act::create(SYSTEM, "secrets", object))
            .await
            .unwrap_err();
        assert!(refusal.contains("planter may not create one"), "{refusal}");
    }
    let data = json!({"stringData": {"a": "c"}});
    let note = |name: &str| json!({"metadata": {"annotations": {name: "2030-01-01T00:00:00Z"}}});
    let verified = note("claviger.dev/verified-at");
    let keeps = || Refused("Claviger does not change or delete its sealing key or its root key");
    stage.holds(vec![
        row("claviger", "makes the key", Act::create(SYSTEM, "secrets", &key), Allowed),
        row("claviger", "makes it anew", Act::create(SYSTEM, "secrets", &key), Refused("already exists")),
        row("claviger", "changes it", Act::merge(SYSTEM, &on_key, &data), keeps()),
        row("claviger", "labels it", Act::merge(SYSTEM, &on_key, &json!({"metadata": {"labels": {"claviger.dev/content": "x"}}})), keeps()),
        row("claviger", "deletes it", Act::delete(SYSTEM, &on_key), keeps()),
        row("claviger", "makes one elsewhere", Act::create(ns, "secrets", &own("claviger-root-key", key_type, None)), Refused("Claviger does not create a Secret that does not carry its label")),
        row("claviger", "makes a backup", Act::create(SYSTEM, "secrets", &backup), Allowed),
        row("claviger", "makes the backup for other recipients", Act::merge(SYSTEM, &on_backup, &data), Allowed),
        row("claviger", "deletes the backup", Act::delete(SYSTEM, &on_backup), Refused("Claviger does not delete the backup of its root key")),
        row("root", "deletes the key", Act::delete(SYSTEM, &on_key), Refused("take this policy away first: kubectl delete validatingadmissionpolicybinding claviger-own-secrets")),
        row("root", "changes the key", Act::merge(SYSTEM, &on_key, &data), Refused("may not update one")),
        row("root", "annotates the key", Act::merge(SYSTEM, &on_key, &verified), Refused("may not update one")),
        row("root", "puts a key back in the place of one", Act::create(SYSTEM, "secrets", &key), Refused("already exists")),
        row("root", "puts a key back that is missing", Act::create(SYSTEM, "secrets", &own(&format!("{ns}-restored"), key_type, None)), Allowed),
        row("root", "puts a backup back that is missing", Act::create(SYSTEM, "secrets", &own(&format!("{ns}-restored-backup"), backup_type, None)), Allowed),
        row("root", "makes a sealing key", Act::create(SYSTEM, "secrets", &own(&format!("{ns}-seal"), "claviger.dev/seal-key", None)), Refused("may not create one")),
        row("root", "puts a key into another namespace", Act::create(ns, "secrets", &own("claviger-root-key", key_type, None)), Refused("may not create one")),
        row("root", "notes that the backup opens", Act::merge(SYSTEM, &on_backup, &verified), Allowed),
        row("root", "notes it again", Act::merge(SYSTEM, &on_backup, &json!({"metadata": {"annotations": {"claviger.dev/verified-at": "2030-02-01T00:00:00Z"}}})), Allowed),
        row("root", "says for whom the backup is", Act::merge(SYSTEM, &on_backup, &note("claviger.dev/recipients")), Refused("may not update one")),
        row("root", "notes it and changes the backup", Act::merge(SYSTEM, &on_backup, &json!({"metadata": note("claviger.dev/verified-at")["metadata"], "stringData": {"a": "d"}})), Refused("may not update one")),
        row("root", "labels the backup", Act::merge(SYSTEM, &on_backup, &json!({"metadata": {"labels": {"a": "b"}}})), Refused("may not update one")),
        row("root", "deletes the backup", Act::delete(SYSTEM, &on_backup), Refused("may not delete one")),
        row("anna", "reads the key", Act::get(SYSTEM, &on_key), Refused("cannot get resource \"secrets\"")),
    ]).await;
    for (verb, name, expected) in [
        ("get", "claviger-root-key", true),
        ("get", "claviger-root-key-backup", true),
        ("update", "claviger-root-key-backup", true),
        ("update", "claviger-root-key", false),
        ("update", "claviger-seal-key", false),
    ] {
        let claviger = stage.actor("claviger");
        let may = claviger.may_with(verb, "secrets", SYSTEM, Some(name)).await;
        assert_eq!(may, expected, "{verb} {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_a_vault_can_name_another_namespace() {
    let stage = Stage::new("vault-names").await;
    let ns = &stage.space.name;
    let places = [
        "/spec/secrets/0/name",
        "/spec/secrets/1/valueFrom/secretKeyRef/name",
        "/spec/secrets/1/valueFrom/secretKeyRef/key",
        "/spec/sync/0/target/name",
        "/spec/sync/0/data/0/key",
        "/spec/sync/0/data/0/secret",
        "/spec/sync/0/restart/0/name",
        "/metadata/name",
    ];
    let mut rows = Vec::new();
    for place in places {
        for hostile in [
            "other/name",
            "../name",
            "/name",
            "other:name",
            "other%2fname",
            "other\\name",
            "other name",
            "",
        ] {
            let mut object = vault("payments", &everything());
            *object.pointer_mut(place).unwrap() = json!(hostile);
            let act = Act::create(ns, "secretvaults", &object).dry();
            let field = place.rsplit('/').next().unwrap();
            rows.push(("root", format!("{place}: {hostile:?}"), act, Refused(field)));
        }
    }
    stage.holds(rows).await;
    let mut foreign = vault("payments", &everything());
    for place in [
        "/spec/secrets/1/valueFrom/secretKeyRef",
        "/spec/sync/0/target",
        "/spec/sync/0/restart/0",
    ] {
        foreign.pointer_mut(place).unwrap()["namespace"] = json!("other");
    }
    let create = Act::create(ns, "secretvaults", &foreign).dry();
    let kept = stage
        .done("root", &create.clone().with("fieldValidation=Ignore"))
        .await;
    assert!(!kept["spec"].to_string().contains("namespace"), "{kept}");
    let strict = create.with("fieldValidation=Strict");
    let refusal = stage.actor("root").does(&strict).await.unwrap_err();
    assert!(
        refusal.contains("unknown field \"spec.sync[0].target.namespace\""),
        "{refusal}"
    );
}
