//! Who may do what: the chart's roles and admission policies, attacked.
//!
//! Confused deputies are the bug of this kind of operator: it reads and writes with its own rights
//! for somebody who has fewer. So each way to talk Claviger into something is a row of a table here,
//! with the sentence that whoever tries it reads.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::support::{
    Cluster, Space,
    actors::{Act, Actor},
    control_plane::SYSTEM,
    eventually,
};

/// What becomes of an attempt.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Allowed,
    Refused(&'static str),
}

use Outcome::{Allowed, Refused};

/// Who tries what, how, and what becomes of it.
pub(crate) type Row = (&'static str, String, Act, Outcome);

/// A namespace with people of different rights in it:
///
/// - `root`: administrator of the cluster
/// - `anna`: administrator of the namespace
/// - `dev`: declares keys and reads what `view` reads; no right over Secrets or workloads
/// - `scribe`: like dev, and may create and patch Secrets, but not read them
/// - `named`: like dev, and may get and patch Secret `chosen`, create Secrets, patch Deployment `web`
/// - `ops`: like dev, and may create and patch Secrets, and patch Deployments
/// - `reporter`: like dev, and may patch the status of FunctionKeys
/// - `claviger`: the controller's ServiceAccount
pub(crate) struct Stage {
    pub(crate) space: Space,
    actors: BTreeMap<&'static str, Actor>,
}

impl Stage {
    pub(crate) async fn new(what: &str) -> Self {
        let space = Space::new(what).await;
        let cluster = &space.cluster;
        let mut actors = BTreeMap::from([
            ("root", Actor::root(cluster).await),
            (
                "claviger",
                Actor::account(cluster, SYSTEM, "claviger").await,
            ),
        ]);
        for name in ["anna", "dev", "scribe", "named", "ops", "reporter"] {
            actors.insert(name, Actor::person(cluster, name).await);
        }
        let stage = Self { space, actors };
        stage.grant().await;
        stage
    }

    pub(crate) fn actor(&self, who: &str) -> &Actor {
        &self.actors[who]
    }

    /// Gives everybody their rights and waits until the apiserver knows of them.
    async fn grant(&self) {
        let namespace = &self.space.name;
        let all = ["dev", "scribe", "named", "ops", "reporter"];
        self.bind("admin", "ClusterRole", &["anna"]).await;
        self.bind("view", "ClusterRole", &all).await;
        self.bind("claviger-edit", "ClusterRole", &all).await;
        let secrets =
            json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "patch"]});
        let roles = [
            ("scribe", json!([secrets])),
            (
                "named",
                json!([
                    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["chosen"], "verbs": ["get", "patch"]},
                    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
                    {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"], "verbs": ["patch"]},
                ]),
            ),
            (
                "ops",
                json!([secrets, {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["patch"]}]),
            ),
            (
                "reporter",
                json!([{"apiGroups": ["claviger.dev"], "resources": ["functionkeys/status"], "verbs": ["patch", "update"]}]),
            ),
        ];
        for (name, rules) in &roles {
            let role = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": {"name": name}, "rules": rules,
            });
            self.done("root", &Act::create(namespace, "roles", &role))
                .await;
            self.bind(name, "Role", &[name]).await;
        }
        for (who, verb, resource, name) in [
            ("anna", "create", "functionkeys.claviger.dev", None),
            ("dev", "create", "functionkeys.claviger.dev", None),
            ("dev", "list", "functionkeys.claviger.dev", None),
            ("scribe", "patch", "secrets", None),
            ("named", "get", "secrets", Some("chosen")),
            ("ops", "patch", "deployments.apps", None),
            (
                "reporter",
                "patch",
                "functionkeys.claviger.dev/status",
                None,
            ),
        ] {
            self.until_may(who, verb, resource, name).await;
        }
    }

    async fn until_may(&self, who: &str, verb: &str, resource: &str, name: Option<&str>) {
        eventually(
            &format!("{who} to be allowed to {verb} {resource}"),
            Duration::from_secs(30),
            async || {
                let namespace = &self.space.name;
                let may = self.actor(who).may_with(verb, resource, namespace, name);
                if may.await {
                    Ok(())
                } else {
                    Err("no".to_owned())
                }
            },
        )
        .await;
    }

    async fn bind(&self, role: &str, kind: &str, users: &[&str]) {
        let group = "rbac.authorization.k8s.io";
        let subject = |user: &&str| json!({"kind": "User", "name": user, "apiGroup": group});
        let subjects: Vec<Value> = users.iter().map(subject).collect();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": group, "kind": kind, "name": role},
            "subjects": subjects,
        });
        let act = Act::create(&self.space.name, "rolebindings", &binding);
        self.done("root", &act).await;
    }

    /// Does what nobody disputes.
    pub(crate) async fn done(&self, who: &str, act: &Act) -> Value {
        self.actor(who)
            .does(act)
            .await
            .unwrap_or_else(|refusal| panic!("{who}: {refusal}: {act:?}"))
    }

    /// Tries every row, in this order, and tells of all that came out otherwise.
    pub(crate) async fn holds(&self, rows: Vec<Row>) {
        let mut wrong = Vec::new();
        for (who, what, act, expected) in &rows {
            let answer = self.actor(who).does(act).await;
            let as_expected = match (&answer, expected) {
                (Ok(_), Allowed) => true,
                (Err(said), Refused(expected)) => said.contains(expected),
                _ => false,
            };
            if !as_expected {
                let answer = answer.map(|_| "it was done");
                wrong.push(format!(
                    "{who}: {what}: expected {expected:?}, but {answer:?}"
                ));
            }
        }
        assert!(
            wrong.is_empty(),
            "{} of {} rows:\n{}",
            wrong.len(),
            rows.len(),
            wrong.join("\n")
        );
        println!("{} rows", rows.len());
    }
}

/// A FunctionKey for a host key, with these fields of the spec added.
pub(crate) fn key(name: &str, more: &Value) -> Value {
    let mut spec =
        json!({"storage": {"secret": {"name": "app-keys"}}, "scope": "Host", "keyName": name});
    json_patch::merge(&mut spec, more);
    json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "FunctionKey",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// A target of distributeTo.
pub(crate) fn target(secret: &str, restart: &[(&str, &str)]) -> Value {
    let mut target = json!({"secretRef": {"name": secret, "key": "K"}});
    if !restart.is_empty() {
        target["restart"] = workloads(restart);
    }
    target
}

pub(crate) fn workloads(list: &[(&str, &str)]) -> Value {
    let workload = |(kind, name): &(&str, &str)| json!({"kind": kind, "name": name});
    list.iter().map(workload).collect()
}

pub(crate) fn source(secret: &str) -> Value {
    json!({"secretKeyRef": {"name": secret, "key": "key"}})
}

pub(crate) fn secret(name: &str, type_: &str, labelled: bool) -> Value {
    let labels = if labelled {
        json!({"claviger.dev/content": "function-keys"})
    } else {
        json!({})
    };
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": type_,
        "metadata": {"name": name, "labels": labels}, "stringData": {"a": "b"},
    })
}

fn config_map(name: &str, labelled: bool) -> Value {
    let mut config_map = secret(name, "", labelled);
    config_map["kind"] = json!("ConfigMap");
    let fields = config_map.as_object_mut().unwrap();
    fields.remove("type");
    let data = fields.remove("stringData").unwrap();
    fields.insert("data".to_owned(), data);
    config_map
}

const READ_CHOSEN: &str =
    "denied request: spec.valueFrom hands on a value of Secret chosen, which dev may not read";

#[tokio::test(flavor = "multi_thread")]
async fn authors_must_hold_what_they_route() {
    let stage = Stage::new("authors").await;
    let ns = &stage.space.name;
    let create = |name: &str, spec: Value| Act::create(ns, "functionkeys", &key(name, &spec));
    let change = |name: &str, spec: Value| {
        Act::merge(ns, &format!("functionkeys/{name}"), &json!({"spec": spec}))
    };
    let row = |who, what: &str, act, outcome| (who, what.to_owned(), act, outcome);
    let deployment = [("Deployment", "web")];
    let restart_deployment = |who: &str| match who {
        "dev" => Refused("the manifest has Claviger restart a Deployment, and dev may not"),
        "named" => Refused("(all of them: a rule with resourceNames is not enough)"),
        _ => Refused("the manifest has Claviger restart a Deployment, and scribe may not"),
    };
    let restart_stateful_set = || Refused("restart a StatefulSet, and ops may not");
    stage.holds(vec![
        row("dev", "a plain key", create("plain", json!({})), Allowed),
        row("dev", "valueFrom", create("vf", json!({"valueFrom": source("chosen")})), Refused(READ_CHOSEN)),
        row("dev", "valueFrom, only tried out", create("vf", json!({"valueFrom": source("chosen")})).dry(), Refused(READ_CHOSEN)),
        row("dev", "distributeTo", create("dt", json!({"distributeTo": [target("client", &[])]})),
            Refused("spec.distributeTo has Claviger write Secret client, and dev may not create Secrets")),
        row("dev", "restartOnRevocation of a Deployment", create("r1", json!({"restartOnRevocation": workloads(&deployment)})), restart_deployment("dev")),
        row("dev", "restartOnRevocation of a StatefulSet", create("r2", json!({"restartOnRevocation": workloads(&[("StatefulSet", "db")])})),
            Refused("the manifest has Claviger restart a StatefulSet, and dev may not")),
        row("dev", "restartOnRevocation of a DaemonSet", create("r3", json!({"restartOnRevocation": workloads(&[("DaemonSet", "agent")])})),
            Refused("the manifest has Claviger restart a DaemonSet, and dev may not")),
        row("dev", "everything, by server-side apply", Act::apply(ns, "functionkeys/ssa", &key("ssa", &json!({"valueFrom": source("chosen")}))), Refused(READ_CHOSEN)),
        // Afterwards, by every verb that changes something.
        row("dev", "adds valueFrom: merge patch", change("plain", json!({"valueFrom": source("chosen")})), Refused(READ_CHOSEN)),
        row("dev", "adds valueFrom: JSON patch", Act::operations(ns, "functionkeys/plain", &json!([{"op": "add", "path": "/spec/valueFrom", "value": source("chosen")}])), Refused(READ_CHOSEN)),
        row("dev", "adds valueFrom: server-side apply", Act::apply(ns, "functionkeys/plain", &key("plain", &json!({"valueFrom": source("chosen")}))), Refused(READ_CHOSEN)),
        row("dev", "adds valueFrom: only tried out", change("plain", json!({"valueFrom": source("chosen")})).dry(), Refused(READ_CHOSEN)),
        row("dev", "adds distributeTo", change("plain", json!({"distributeTo": [target("client", &[])]})), Refused("spec.distributeTo has Claviger write Secret client")),
        row("dev", "adds a restart", change("plain", json!({"restartOnRevocation": workloads(&deployment)})), restart_deployment("dev")),
        row("dev", "sets an interval", change("plain", json!({"rotation": {"interval": "720h"}})), Allowed),
        // Those who hold a part.
        row("scribe", "distributeTo", create("s1", json!({"distributeTo": [target("client", &[])]})), Allowed),
        row("scribe", "distributeTo with restart", create("s2", json!({"distributeTo": [target("client", &deployment)]})), restart_deployment("scribe")),
        row("scribe", "valueFrom", create("s3", json!({"valueFrom": source("chosen")})), Refused("which scribe may not read")),
        row("named", "valueFrom of the named Secret", create("n1", json!({"valueFrom": source("chosen")})), Allowed),
        row("named", "valueFrom of another Secret", create("n2", json!({"valueFrom": source("foreign")})), Refused("Secret foreign, which named may not read")),
        row("named", "goes over to another Secret", change("n1", json!({"valueFrom": source("foreign")})), Refused("Secret foreign, which named may not read")),
        row("named", "distributeTo, with patch on one name only", create("n3", json!({"distributeTo": [target("chosen2", &[])]})), Refused("and named may not patch Secrets")),
        row("named", "restart of the named Deployment", create("n4", json!({"restartOnRevocation": workloads(&deployment)})), restart_deployment("named")),
        row("ops", "distributeTo with restart of a Deployment", create("o1", json!({"distributeTo": [target("client-o", &deployment)]})), Allowed),
        row("ops", "... and of a StatefulSet", create("o2", json!({"distributeTo": [target("client-o2", &[("Deployment", "web"), ("StatefulSet", "db")])]})), restart_stateful_set()),
        row("ops", "adds a StatefulSet", change("o1", json!({"restartOnRevocation": workloads(&[("StatefulSet", "db")])})), restart_stateful_set()),
        row("ops", "... by server-side apply", Act::apply(ns, "functionkeys/o1", &key("o1", &json!({"restartOnRevocation": workloads(&[("StatefulSet", "db")])}))), restart_stateful_set()),
        row("anna", "everything", create("full", everything()), Allowed),
        row("anna", "the same in another namespace", Act::create("default", "functionkeys", &key("full", &everything())), Refused("cannot create resource \"functionkeys\"")),
        row("root", "everything", create("full2", json!({"distributeTo": [target("c3", &[]), target("c4", &[("DaemonSet", "agent")])], "valueFrom": source("chosen")})), Allowed),
    ]).await;
}

/// Every field that has Claviger do something.
fn everything() -> Value {
    json!({
        "valueFrom": source("chosen"),
        "distributeTo": [
            target("c1", &[("Deployment", "web")]),
            target("c2", &[("StatefulSet", "db"), ("DaemonSet", "agent")]),
        ],
        "restartOnRevocation": workloads(&[("Deployment", "web")]),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_a_key_needs_the_rights_for_what_they_add_and_for_nothing_else() {
    let stage = Stage::new("changes").await;
    let ns = &stage.space.name;
    let change = |spec: Value| Act::merge(ns, "functionkeys/full", &json!({"spec": spec}));
    let row = |who, what: &str, act, outcome| (who, what.to_owned(), act, outcome);
    let targets = everything()["distributeTo"].clone();
    let first = targets[0].clone();
    stage.holds(vec![
        row("anna", "everything", Act::create(ns, "functionkeys", &key("full", &everything())), Allowed),
        row("dev", "deletionPolicy", change(json!({"deletionPolicy": "Retain"})), Allowed),
        row("dev", "rotation.overlap", change(json!({"rotation": {"overlap": "1h"}})), Allowed),
        row("dev", "rotation.revokeGeneration", change(json!({"rotation": {"revokeGeneration": 1}})), Allowed),
        row("dev", "suspend", change(json!({"suspend": true})), Allowed),
        row("dev", "an annotation", Act::merge(ns, "functionkeys/full", &json!({"metadata": {"annotations": {"claviger.dev/rotate-at": "2030-01-01T00:00:00Z"}}})), Allowed),
        row("dev", "takes a target away", change(json!({"distributeTo": [first]})), Allowed),
        row("dev", "puts the target back", change(json!({"distributeTo": targets})), Refused("which dev may not read")),
        row("scribe", "leads the source of another author to a new target", change(json!({"distributeTo": [first, target("mine", &[])]})),
            Refused("spec.valueFrom hands on a value of Secret chosen, which scribe may not read")),
        row("scribe", "changes the entry of a target", change(json!({"distributeTo": [{"secretRef": {"name": "c1", "key": "OTHER"}}]})), Refused("which scribe may not read")),
        row("scribe", "changes the Secret of a target", change(json!({"distributeTo": [target("mine", &[])]})), Refused("which scribe may not read")),
        row("scribe", "takes the restart of a target away", change(json!({"distributeTo": [target("c1", &[])]})), Allowed),
        row("scribe", "puts the restart back while restartOnRevocation has it", change(json!({"distributeTo": [first]})), Allowed),
        row("scribe", "restarts another Deployment", change(json!({"distributeTo": [target("c1", &[("Deployment", "other")])]})),
            Refused("restart a Deployment, and scribe may not")),
        row("scribe", "restarts another kind of the same name", change(json!({"distributeTo": [target("c1", &[("StatefulSet", "web")])]})),
            Refused("restart a StatefulSet, and scribe may not")),
        row("dev", "changes the entry of the source", change(json!({"valueFrom": {"secretKeyRef": {"key": "other"}}})), Refused(READ_CHOSEN)),
        row("dev", "takes valueFrom away", change(json!({"valueFrom": null})), Allowed),
        row("dev", "puts valueFrom back", change(json!({"valueFrom": source("chosen")})), Refused(READ_CHOSEN)),
        row("dev", "deletes the key", Act::delete(ns, "functionkeys/full"), Allowed),
        row("dev", "makes it anew", Act::create(ns, "functionkeys", &key("full", &everything())), Refused("denied request")),
    ]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_spec_there_can_be_is_within_what_the_policy_may_spend() {
    let stage = Stage::new("largest").await;
    let ns = &stage.space.name;
    let targets = |prefix: &str, kind: &str, workload: &str| -> Value {
        (0..32)
            .map(|i| {
                let restart: Vec<Value> = (0..16)
                    .map(|j| json!({"kind": kind, "name": format!("{workload}-{i}-{j}")}))
                    .collect();
                json!({"secretRef": {"name": format!("{prefix}{i}"), "key": "K"}, "restart": restart})
            })
            .collect()
    };
    let long = "x".repeat(240);
    let stateful_sets: Value = (0..16)
        .map(|i| json!({"kind": "StatefulSet", "name": format!("s{i}")}))
        .collect();
    let largest = json!({
        "distributeTo": targets("t", "Deployment", "web"),
        "restartOnRevocation": stateful_sets,
        "valueFrom": source("chosen"),
    });
    let replaced = |targets| {
        Act::merge(
            ns,
            "functionkeys/big",
            &json!({"spec": {"distributeTo": targets}}),
        )
    };
    let row = |what: &str, act| ("anna", what.to_owned(), act, Allowed);
    stage
        .holds(vec![
            row(
                "32 targets with 16 restarts each",
                Act::create(ns, "functionkeys", &key("big", &largest)),
            ),
            row(
                "all of it replaced",
                replaced(targets("u", "DaemonSet", "web")),
            ),
            row(
                "by the longest names",
                replaced(targets(&long, "DaemonSet", &long)),
            ),
            row(
                "by another kind",
                replaced(targets(&long, "StatefulSet", &long)),
            ),
            row(
                "by all others",
                replaced(targets(&format!("{long}n"), "Deployment", &long)),
            ),
        ])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_smuggled_in_through_a_subresource() {
    let stage = Stage::new("subresource").await;
    let ns = &stage.space.name;
    let row = |who, what: &str, act, outcome| (who, what.to_owned(), act, outcome);
    let body = json!({
        "spec": {"valueFrom": source("chosen"), "distributeTo": [target("stolen", &[])]},
        "metadata": {"labels": {"smuggled": "true"}},
        "status": {"store": "Secret/x"},
    });
    let whole = key("plain", &body["spec"]);
    stage
        .holds(vec![
            row(
                "dev",
                "a plain key",
                Act::create(ns, "functionkeys", &key("plain", &json!({}))),
                Allowed,
            ),
            row(
                "dev",
                "status",
                Act::merge(ns, "functionkeys/plain/status", &body),
                Refused("cannot patch resource \"functionkeys/status\""),
            ),
            row(
                "anna",
                "status: not even the administrator of the namespace",
                Act::merge(ns, "functionkeys/plain/status", &body),
                Refused("cannot patch resource \"functionkeys/status\""),
            ),
            row(
                "reporter",
                "a spec through status: merge patch",
                Act::merge(ns, "functionkeys/plain/status", &body),
                Allowed,
            ),
            row(
                "reporter",
                "a spec through status: server-side apply",
                Act::apply(ns, "functionkeys/plain/status", &whole),
                Allowed,
            ),
            row(
                "root",
                "a scale that there is not",
                Act::get(ns, "functionkeys/plain/scale"),
                Refused("functionkeys.claviger.dev \"plain\" not found"),
            ),
            row(
                "claviger",
                "status",
                Act::merge(ns, "functionkeys/plain/status", &body),
                Allowed,
            ),
            row(
                "claviger",
                "spec",
                Act::merge(
                    ns,
                    "functionkeys/plain",
                    &json!({"spec": {"suspend": true}}),
                ),
                Refused("cannot patch resource \"functionkeys\""),
            ),
            row(
                "claviger",
                "metadata",
                Act::merge(
                    ns,
                    "functionkeys/plain",
                    &json!({"metadata": {"finalizers": ["claviger.dev/x"]}}),
                ),
                Refused("cannot patch resource \"functionkeys\""),
            ),
            row(
                "claviger",
                "a FunctionKey of its own",
                Act::create(ns, "functionkeys", &key("own", &json!({}))),
                Refused("cannot create resource \"functionkeys\""),
            ),
            row(
                "claviger",
                "the end of a FunctionKey",
                Act::delete(ns, "functionkeys/plain"),
                Refused("cannot delete resource \"functionkeys\""),
            ),
        ])
        .await;
    let stands = stage
        .done("root", &Act::get(ns, "functionkeys/plain"))
        .await;
    assert_eq!(stands["spec"], key("plain", &json!({}))["spec"]);
    assert_eq!(stands["metadata"]["labels"], Value::Null);
    assert_eq!(stands["status"]["store"], "Secret/x");
}

const FENCE: &str = "denied request: Claviger may change nothing of a workload but the annotation claviger.dev/restarted-at of its pod template";

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_may_change_one_annotation_of_a_workload_and_nothing_else() {
    let stage = Stage::new("fence").await;
    let ns = &stage.space.name;
    let mut rows = Vec::new();
    for (resource, kind, name) in [
        ("deployments", "Deployment", "web"),
        ("statefulsets", "StatefulSet", "db"),
        ("daemonsets", "DaemonSet", "agent"),
    ] {
        stage
            .done("root", &Act::create(ns, resource, &workload(kind, name)))
            .await;
        let on = format!("{resource}/{name}");
        let template = |template: Value| json!({"spec": {"template": template}});
        let restart = |at: &str| {
            template(json!({"metadata": {"annotations": {"claviger.dev/restarted-at": at}}}))
        };
        let mut applied = restart("2031-01-01T00:00:00Z");
        json_patch::merge(
            &mut applied,
            &json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}}),
        );
        let mut with_image = applied.clone();
        with_image["spec"]["template"]["spec"] =
            json!({"containers": [{"name": "web", "image": "evil"}]});
        let image = json!({"containers": [{"name": "web", "image": "evil"}]});
        let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "plain", "uid": "1"}]);
        let container = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "evil"}]);
        let note = json!([{"op": "add", "path": "/spec/template/metadata/annotations/claviger.dev~1restarted-at", "value": "2032-01-01T00:00:00Z"}]);
        let merges = [
            ("restarts it", restart("2030-01-01T00:00:00Z"), Allowed),
            (
                "restarts it again",
                restart("2030-01-02T00:00:00Z"),
                Allowed,
            ),
            (
                "and another annotation",
                template(
                    json!({"metadata": {"annotations": {"x": "y", "claviger.dev/restarted-at": "2033-01-01T00:00:00Z"}}}),
                ),
                Refused(FENCE),
            ),
            (
                "an annotation that looks like it",
                template(
                    json!({"metadata": {"annotations": {"claviger.dev/restarted-at-x": "y"}}}),
                ),
                Refused(FENCE),
            ),
            (
                "a label of the template",
                template(json!({"metadata": {"labels": {"x": "y"}}})),
                Refused(FENCE),
            ),
            (
                "the image",
                template(json!({"spec": image})),
                Refused(FENCE),
            ),
            (
                "hostNetwork",
                template(json!({"spec": {"hostNetwork": true}})),
                Refused(FENCE),
            ),
            (
                "the ServiceAccount",
                template(json!({"spec": {"serviceAccountName": "default"}})),
                Refused(FENCE),
            ),
            (
                "a volume",
                template(
                    json!({"spec": {"volumes": [{"name": "s", "secret": {"secretName": "chosen"}}]}}),
                ),
                Refused(FENCE),
            ),
            (
                "an annotation of the object",
                json!({"metadata": {"annotations": {"x": "y"}}}),
                Refused(FENCE),
            ),
            (
                "the annotation, but of the object",
                json!({"metadata": {"annotations": {"claviger.dev/restarted-at": "y"}}}),
                Refused(FENCE),
            ),
            (
                "a label of the object",
                json!({"metadata": {"labels": {"x": "y"}}}),
                Refused(FENCE),
            ),
            (
                "a finalizer",
                json!({"metadata": {"finalizers": ["x.y/z"]}}),
                Refused(FENCE),
            ),
            (
                "an owner",
                json!({"metadata": {"ownerReferences": owner}}),
                Refused(FENCE),
            ),
            (
                "revisionHistoryLimit",
                json!({"spec": {"revisionHistoryLimit": 3}}),
                Refused(FENCE),
            ),
            (
                "takes the annotation away",
                template(json!({"metadata": {"annotations": {"claviger.dev/restarted-at": null}}})),
                Allowed,
            ),
            (
                "takes another annotation of the template away",
                template(json!({"metadata": {"annotations": {"a": null}}})),
                Refused(FENCE),
            ),
            (
                "takes an annotation of the object away",
                json!({"metadata": {"annotations": {"note": null}}}),
                Refused(FENCE),
            ),
        ];
        for (what, patch, outcome) in merges {
            rows.push((
                "claviger",
                format!("{kind}: {what}"),
                Act::merge(ns, &on, &patch),
                outcome,
            ));
        }
        let others = [
            (
                "the image, only tried out",
                Act::merge(ns, &on, &template(json!({"spec": image}))).dry(),
                Refused(FENCE),
            ),
            (
                "restarts it: strategic merge",
                Act::strategic(ns, &on, &restart("2034-01-01T00:00:00Z")),
                Allowed,
            ),
            (
                "the image: strategic merge",
                Act::strategic(ns, &on, &template(json!({"spec": image}))),
                Refused(FENCE),
            ),
            (
                "restarts it: JSON patch",
                Act::operations(ns, &on, &note),
                Allowed,
            ),
            (
                "the image: JSON patch",
                Act::operations(ns, &on, &container),
                Refused(FENCE),
            ),
            (
                "restarts it: server-side apply",
                Act::apply(ns, &on, &applied),
                Allowed,
            ),
            (
                "the image: server-side apply",
                Act::apply(ns, &on, &with_image),
                Refused(FENCE),
            ),
            (
                "makes one by server-side apply",
                Act::apply(ns, &format!("{resource}/new"), &workload(kind, "new")),
                Refused("cannot create resource"),
            ),
            (
                "makes one",
                Act::create(ns, resource, &workload(kind, "new")),
                Refused("cannot create resource"),
            ),
            (
                "replaces it",
                Act::replace(ns, &on, &workload(kind, name)),
                Refused("cannot update resource"),
            ),
            (
                "deletes it",
                Act::delete(ns, &on),
                Refused("cannot delete resource"),
            ),
            (
                "its status",
                Act::merge(ns, &format!("{on}/status"), &json!({"status": {}})),
                Refused("cannot patch resource"),
            ),
        ];
        for (what, act, outcome) in others {
            rows.push(("claviger", format!("{kind}: {what}"), act, outcome));
        }
    }
    let replicas = json!({"spec": {"replicas": 5}});
    let more = [
        (
            "claviger",
            "replicas",
            Act::merge(ns, "deployments/web", &replicas),
            Refused(FENCE),
        ),
        (
            "claviger",
            "paused, which was absent",
            Act::merge(ns, "deployments/web", &json!({"spec": {"paused": true}})),
            Refused(FENCE),
        ),
        (
            "claviger",
            "scale",
            Act::merge(ns, "deployments/web/scale", &replicas),
            Refused("cannot patch resource \"deployments/scale\""),
        ),
        (
            "anna",
            "somebody else is not concerned",
            Act::merge(ns, "deployments/web", &replicas),
            Allowed,
        ),
    ];
    rows.extend(more.map(|(who, what, act, outcome)| (who, what.to_owned(), act, outcome)));
    stage.holds(rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_given_to_the_controller_by_mistake_does_not_lift_the_fence() {
    let stage = Stage::new("mistake").await;
    let ns = &stage.space.name;
    stage
        .done(
            "root",
            &Act::create(ns, "deployments", &workload("Deployment", "web")),
        )
        .await;
    stage
        .done(
            "root",
            &Act::create(ns, "secrets", &secret("plain", "Opaque", false)),
        )
        .await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "too-much"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"kind": "ServiceAccount", "name": "claviger", "namespace": SYSTEM}],
    });
    stage
        .done("root", &Act::create(ns, "rolebindings", &binding))
        .await;
    stage
        .until_may("claviger", "delete", "deployments.apps", None)
        .await;
    let mut other = workload("Deployment", "web");
    other["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil");
    let replicas = json!({"spec": {"replicas": 5}});
    let scale = "deployments/web/scale";
    let row = |what: &str, act, outcome| ("claviger", what.to_owned(), act, outcome);
    let unlabelled = "that does not carry its label claviger.dev/content";
    stage
        .holds(vec![
            row(
                "scales a Deployment",
                Act::merge(ns, scale, &replicas),
                Refused(FENCE),
            ),
            row(
                "deletes a Deployment",
                Act::delete(ns, "deployments/web"),
                Refused(FENCE),
            ),
            row(
                "deletes all Deployments",
                Act::delete(ns, "deployments"),
                Refused(FENCE),
            ),
            row(
                "makes a Deployment",
                Act::create(ns, "deployments", &workload("Deployment", "new")),
                Refused(FENCE),
            ),
            row(
                "replaces a Deployment",
                Act::replace(ns, "deployments/web", &other),
                Refused(FENCE),
            ),
            row(
                "makes a ReplicaSet",
                Act::create(ns, "replicasets", &workload("ReplicaSet", "new")),
                Refused(FENCE),
            ),
            row(
                "replaces a Secret",
                Act::replace(ns, "secrets/plain", &secret("plain", "Opaque", false)),
                Refused(unlabelled),
            ),
            row(
                "deletes all Secrets",
                Act::delete(ns, "secrets"),
                Refused(unlabelled),
            ),
        ])
        .await;
}

/// A workload without pods.
fn workload(kind: &str, name: &str) -> Value {
    let labels = json!({"app": name});
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "labels": labels, "annotations": {"note": "x"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": {"a": "b"}},
                "spec": {"containers": [{"name": "web", "image": "web"}]},
            },
        },
    });
    match kind {
        "DaemonSet" => _ = workload["spec"].as_object_mut().unwrap().remove("replicas"),
        "StatefulSet" => workload["spec"]["serviceName"] = json!(name),
        _ => {}
    }
    workload
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_writes_labelled_objects_of_types_for_applications_only() {
    let stage = Stage::new("content").await;
    let ns = &stage.space.name;
    let helm = "helm.sh/release.v1";
    for secret in [
        secret("foreign", "Opaque", false),
        secret("sh.helm.release.v1.x.v1", helm, false),
        secret("mislabelled-release", helm, true),
    ] {
        stage
            .done("root", &Act::create(ns, "secrets", &secret))
            .await;
    }
    stage
        .done(
            "root",
            &Act::create(ns, "configmaps", &config_map("plain", false)),
        )
        .await;
    let row = |what: &str, act, outcome| ("claviger", what.to_owned(), act, outcome);
    let make = |name: &str, type_: &str, labelled| {
        Act::create(ns, "secrets", &secret(name, type_, labelled))
    };
    let mut token = secret("sat", "kubernetes.io/service-account-token", true);
    token["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "default"});
    let mut docker = secret("dc", "kubernetes.io/dockercfg", true);
    docker["stringData"] = json!({".dockercfg": "{}"});
    let mut tls = secret("made-tls", "kubernetes.io/tls", true);
    tls["stringData"] = json!({"tls.crt": "", "tls.key": ""});
    let label = json!({"metadata": {"labels": {"claviger.dev/content": "function-keys"}}, "stringData": {"x": "y"}});
    let unlabel =
        json!({"metadata": {"labels": {"claviger.dev/content": null}}, "stringData": {"x": "z"}});
    let data = json!({"stringData": {"x": "y"}});
    stage.holds(vec![
        row("makes a labelled one", make("made", "Opaque", true), Allowed),
        row("makes an unlabelled one", make("made2", "Opaque", false), Refused("Claviger does not create a Secret that does not carry its label claviger.dev/content")),
        row("makes an unlabelled one by server-side apply", Act::apply(ns, "secrets/made2", &secret("made2", "Opaque", false)), Refused("Claviger does not create a Secret that does not carry its label")),
        row("makes an unlabelled one, only tried out", make("made2", "Opaque", false).dry(), Refused("Claviger does not create a Secret that does not carry its label")),
        row("makes a TLS one", Act::create(ns, "secrets", &tls), Allowed),
        row("makes a ServiceAccount's token", Act::create(ns, "secrets", &token), Refused("Claviger does not write Secrets of type kubernetes.io/service-account-token")),
        row("makes a bootstrap token", make("bootstrap-token-abcdef", "bootstrap.kubernetes.io/token", true), Refused("Claviger does not write Secrets of type bootstrap.kubernetes.io/token")),
        row("makes a Helm release", make("sh.helm.release.v1.y.v1", helm, true), Refused("Claviger does not write Secrets of type helm.sh/release.v1")),
        row("makes a legacy dockercfg", Act::create(ns, "secrets", &docker), Refused("Claviger does not write Secrets of type kubernetes.io/dockercfg")),
        row("makes one of somebody's own type", make("own", "example.com/own", true), Refused("Claviger does not write Secrets of type example.com/own")),
        row("writes an unlabelled one", Act::merge(ns, "secrets/foreign", &data), Refused("Claviger does not update a Secret that does not carry its label claviger.dev/content")),
        row("writes another label", Act::merge(ns, "secrets/foreign", &json!({"metadata": {"labels": {"claviger.dev/other": "x"}}})), Refused("Claviger does not update a Secret that does not carry its label")),
        row("adopts: writes and labels", Act::merge(ns, "secrets/foreign", &label), Allowed),
        row("lets go: takes the label off", Act::merge(ns, "secrets/foreign", &unlabel), Allowed),
        row("deletes an unlabelled one", Act::delete(ns, "secrets/foreign"), Refused("Claviger does not delete a Secret that does not carry its label claviger.dev/content")),
        row("deletes a labelled one", Act::delete(ns, "secrets/made"), Allowed),
        row("adopts a Helm release", Act::merge(ns, "secrets/sh.helm.release.v1.x.v1", &label), Refused("Claviger does not write Secrets of type helm.sh/release.v1")),
        row("deletes a Helm release that bears the label", Act::delete(ns, "secrets/mislabelled-release"), Refused("Claviger does not write Secrets of type helm.sh/release.v1")),
        row("replaces one: RBAC", Act::replace(ns, "secrets/foreign", &secret("foreign", "Opaque", true)), Refused("cannot update resource \"secrets\"")),
        row("deletes all: RBAC", Act::delete(ns, "secrets"), Refused("cannot deletecollection resource \"secrets\"")),
        row("makes a labelled ConfigMap", Act::create(ns, "configmaps", &config_map("made", true)), Allowed),
        row("makes an unlabelled ConfigMap", Act::create(ns, "configmaps", &config_map("made2", false)), Refused("Claviger does not create a ConfigMap that does not carry its label claviger.dev/content")),
        row("writes an unlabelled ConfigMap", Act::merge(ns, "configmaps/plain", &json!({"data": {"x": "y"}})), Refused("Claviger does not update a ConfigMap that does not carry its label claviger.dev/content")),
        row("writes the cluster's CA bundle", Act::merge(ns, "configmaps/kube-root-ca.crt", &json!({"data": {"ca.crt": "evil"}})), Refused("Claviger does not update a ConfigMap that does not carry its label")),
        row("deletes an unlabelled ConfigMap", Act::delete(ns, "configmaps/plain"), Refused("Claviger does not delete a ConfigMap that does not carry its label claviger.dev/content")),
        row("deletes a labelled ConfigMap", Act::delete(ns, "configmaps/made"), Allowed),
        row("makes an unlabelled one in its own namespace", Act::create(SYSTEM, "secrets", &secret("x", "Opaque", false)), Refused("Claviger does not create a Secret that does not carry its label")),
        row("makes a sealing key elsewhere", make("x", "claviger.dev/seal-key", false), Refused("Claviger does not create a Secret that does not carry its label")),
    ]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_cannot_be_made_again_are_written_by_the_controller_only() {
    let stage = Stage::new("own").await;
    let ns = &stage.space.name;
    // A name of this test's own: the real one belongs to the operators of other tests.
    let name = format!("{ns}-seal-key");
    let on = format!("secrets/{name}");
    let own = |name: &str| secret(name, "claviger.dev/seal-key", false);
    let mut key = own(&name);
    key["immutable"] = json!(true);
    let label = json!({"metadata": {"labels": {"claviger.dev/content": "function-keys"}}});
    let row = |who, what: &str, act, outcome| (who, what.to_owned(), act, outcome);
    stage.holds(vec![
        row("root", "makes it before Claviger does", Act::create(SYSTEM, "secrets", &key),
            Refused("Secrets of type claviger.dev/seal-key hold what cannot be made again, so only Claviger writes them: kubernetes-admin may not create one.")),
        row("claviger", "makes it", Act::create(SYSTEM, "secrets", &key), Allowed),
        row("claviger", "deletes it", Act::delete(SYSTEM, &on), Refused("Claviger does not change or delete its sealing key or its root key")),
        row("claviger", "labels it", Act::merge(SYSTEM, &on, &label), Refused("Claviger does not change or delete its sealing key")),
        row("root", "deletes it", Act::delete(SYSTEM, &on),
            Refused("kubernetes-admin may not delete one. If that is what you want, take this policy away first: kubectl delete validatingadmissionpolicybinding claviger-own-secrets")),
        row("root", "annotates it", Act::merge(SYSTEM, &on, &json!({"metadata": {"annotations": {"a": "b"}}})), Refused("may not update one")),
        row("root", "deletes all of its type", Act::delete(SYSTEM, "secrets").dry().with("fieldSelector=type%3Dclaviger.dev/seal-key"), Refused("so only Claviger writes them: kubernetes-admin may not delete one.")),
        row("root", "other Secrets there are not concerned", Act::create(SYSTEM, "secrets", &secret(&format!("{name}-other"), "Opaque", false)), Allowed),
        row("root", "makes another type of the family", Act::create(ns, "secrets", &secret("root-key", "claviger.dev/root-key", false)), Refused("Secrets of type claviger.dev/root-key hold what cannot be made again")),
        row("anna", "makes one in her namespace", Act::create(ns, "secrets", &own("fake")), Refused("anna may not create one")),
        row("anna", "makes one by server-side apply", Act::apply(ns, "secrets/fake", &own("fake")), Refused("anna may not create one")),
        row("dev", "cannot even try", Act::create(ns, "secrets", &own("fake")), Refused("cannot create resource \"secrets\"")),
    ]).await;
    // Re-encryption writes every Secret as it stands.
    let stands = stage.done("root", &Act::get(SYSTEM, &on)).await;
    stage
        .done("root", &Act::replace(SYSTEM, &on, &stands))
        .await;
    let mut held = stands;
    held["metadata"]["finalizers"] = json!(["x.y/z"]);
    let row = (
        "root",
        "replaces it with a finalizer".to_owned(),
        Act::replace(SYSTEM, &on, &held),
        Refused("may not update one"),
    );
    stage.holds(vec![row]).await;
    // Kubernetes itself takes down what is left of a deleted namespace or owner.
    for controller in ["generic-garbage-collector", "namespace-controller"] {
        let user = format!("system:serviceaccount:kube-system:{controller}");
        let actor = Actor::person(&stage.space.cluster, &user).await;
        actor.does(&Act::delete(SYSTEM, &on).dry()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_for_people_show_keys_and_no_values() {
    let stage = Stage::new("people").await;
    for (user, role) in [
        ("viewer", "view"),
        ("editor", "edit"),
        ("turner", "claviger-edit"),
    ] {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        });
        let act = Act::create(&stage.space.name, "rolebindings", &binding);
        stage.done("root", &act).await;
    }
    let can = async |who: &str, verb: &str, what: &str, namespace: &str| {
        let (resource, subresource) = what.split_once('/').unwrap_or((what, ""));
        let subresource = format!("--subresource={subresource}");
        let mut args = vec!["auth", "can-i", verb, resource, "--namespace", namespace];
        args.extend([
            "--as",
            who,
            "--as-group",
            "system:authenticated",
            &subresource,
        ]);
        stage.space.cluster.kubectl(&args, "").await.is_ok()
    };
    let mut wrong = Vec::new();
    for (who, verb, what, expected) in [
        ("viewer", "get", "functionkeys.claviger.dev", true),
        ("viewer", "list", "functionkeys.claviger.dev", true),
        ("viewer", "watch", "functionkeys.claviger.dev", true),
        ("viewer", "get", "functionkeys.claviger.dev/status", true),
        ("viewer", "create", "functionkeys.claviger.dev", false),
        ("viewer", "patch", "functionkeys.claviger.dev", false),
        ("viewer", "delete", "functionkeys.claviger.dev", false),
        ("viewer", "get", "secrets", false),
        ("viewer", "list", "secrets", false),
        ("viewer", "watch", "secrets", false),
        ("editor", "list", "functionkeys.claviger.dev", true),
        ("editor", "create", "functionkeys.claviger.dev", true),
        ("editor", "patch", "functionkeys.claviger.dev", true),
        ("editor", "delete", "functionkeys.claviger.dev", true),
        ("editor", "patch", "functionkeys.claviger.dev/status", false),
        ("turner", "update", "functionkeys.claviger.dev", true),
        (
            "turner",
            "deletecollection",
            "functionkeys.claviger.dev",
            true,
        ),
        ("turner", "get", "secrets", false),
        ("turner", "create", "secrets", false),
        ("turner", "patch", "deployments.apps", false),
        ("turner", "patch", "functionkeys.claviger.dev/status", false),
        ("anna", "create", "functionkeys.claviger.dev", true),
        ("anna", "patch", "functionkeys.claviger.dev/status", false),
        ("nobody", "list", "functionkeys.claviger.dev", false),
        ("viewer", "watch", "secretvaults.claviger.dev", true),
        ("viewer", "get", "secretvaults.claviger.dev/status", true),
        ("viewer", "create", "secretvaults.claviger.dev", false),
        ("editor", "create", "secretvaults.claviger.dev", true),
        ("editor", "patch", "secretvaults.claviger.dev/status", false),
        ("turner", "delete", "secretvaults.claviger.dev", true),
        ("nobody", "list", "secretvaults.claviger.dev", false),
    ] {
        if can(who, verb, what, &stage.space.name).await != expected {
            wrong.push(format!("{who} {verb} {what}: not {expected}"));
        }
        if who != "nobody" && can(who, verb, what, "default").await {
            wrong.push(format!("{who} {verb} {what} in another namespace"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The same by deed.
    let ns = &stage.space.name;
    let row = |what: &str, act, outcome| ("dev", what.to_owned(), act, outcome);
    stage
        .holds(vec![
            row("lists FunctionKeys", Act::get(ns, "functionkeys"), Allowed),
            row(
                "lists Secrets",
                Act::get(ns, "secrets"),
                Refused("cannot list resource \"secrets\""),
            ),
            row(
                "reads a Secret",
                Act::get(ns, "secrets/chosen"),
                Refused("cannot get resource \"secrets\""),
            ),
        ])
        .await;
}

const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];

/// Everything that the controller may do in a namespace that it works in.
pub(crate) const WORKING_RIGHTS: [(&str, &[&str]); 23] = [
    ("functionkeys.claviger.dev", &["get", "list", "watch"]),
    ("functionkeys.claviger.dev/status", &["patch"]),
    (
        "secretvaults.claviger.dev",
        &["get", "list", "watch", "patch"],
    ),
    ("secretvaults.claviger.dev/status", &["patch"]),
    ("namespaces", &["get", "list", "watch"]),
    (
        "roleassignments.claviger.dev",
        &["get", "list", "watch", "patch"],
    ),
    ("roleassignments.claviger.dev/status", &["patch"]),
    (
        "roles.rbac.authorization.k8s.io",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    (
        "rolebindings.rbac.authorization.k8s.io",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    // Held in order to be granted. What of it has a verb of its own, as `purge`, tests/it/chart.rs sees.
    (
        "functionkeys.claviger.dev/value",
        &["get", "list", "create", "update", "delete"],
    ),
    (
        "secretvaults.claviger.dev/secrets",
        &["get", "list", "create", "update", "delete"],
    ),
    ("tokenproviders.claviger.dev", &["get", "list", "watch"]),
    (
        "tokenproviders.claviger.dev/tokens",
        &["list", "create", "delete"],
    ),
    (
        "tokenproviders.claviger.dev/connections",
        &["get", "update"],
    ),
    ("tokenproviders.claviger.dev/groups", &["get", "update"]),
    ("tokenproviders.claviger.dev/livetrace", &["get", "update"]),
    ("tokenproviders.claviger.dev/users", &["get"]),
    ("tokenproviders.claviger.dev/status", &[]),
    (
        "secrets",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    (
        "configmaps",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    ("deployments.apps", &["get", "patch"]),
    ("statefulsets.apps", &["get", "patch"]),
    ("daemonsets.apps", &["get", "patch"]),
];

/// Everything else that the rights of an operator tend to hold, with what ours may of it.
const OTHER_RIGHTS: [(&str, &[&str]); 31] = [
    ("namespaces", &["get", "list", "watch"]),
    ("events.events.k8s.io", &["create", "patch"]),
    ("events", &[]),
    ("leases.coordination.k8s.io", &[]),
    ("pods", &[]),
    ("pods/exec", &[]),
    ("pods/attach", &[]),
    ("pods/portforward", &[]),
    ("pods/log", &[]),
    ("pods/ephemeralcontainers", &[]),
    ("deployments.apps/scale", &[]),
    ("replicasets.apps", &[]),
    ("jobs.batch", &[]),
    ("cronjobs.batch", &[]),
    ("serviceaccounts", &[]),
    ("serviceaccounts/token", &[]),
    ("services", &[]),
    ("nodes", &[]),
    ("nodes/proxy", &[]),
    ("persistentvolumes", &[]),
    (
        "clusterroles.rbac.authorization.k8s.io",
        &["get", "list", "watch"],
    ),
    (
        "clusterrolebindings.rbac.authorization.k8s.io",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    ("networkpolicies.networking.k8s.io", &[]),
    ("customresourcedefinitions.apiextensions.k8s.io", &[]),
    (
        "validatingadmissionpolicies.admissionregistration.k8s.io",
        &[],
    ),
    (
        "validatingadmissionpolicybindings.admissionregistration.k8s.io",
        &[],
    ),
    (
        "validatingwebhookconfigurations.admissionregistration.k8s.io",
        &[],
    ),
    (
        "certificatesigningrequests.certificates.k8s.io/approval",
        &[],
    ),
    ("functionkeys.claviger.dev/finalizers", &[]),
    ("roleassignments.claviger.dev/finalizers", &[]),
    ("secretvaults.claviger.dev/finalizers", &[]),
];

/// What an actor may of all this, beside what it should.
pub(crate) async fn unexpected_rights(
    actor: &Actor,
    namespace: &str,
    expected: &[(&str, &[&str])],
) -> Vec<String> {
    let questions = expected.iter().flat_map(|(resource, verbs)| {
        VERBS
            .iter()
            .map(move |verb| (*resource, *verb, verbs.contains(verb)))
    });
    stream::iter(questions)
        .map(async |(resource, verb, expected)| {
            let may = actor.may(verb, resource, namespace).await;
            (may != expected).then(|| format!("{verb} {resource}: {may}"))
        })
        .buffer_unordered(16)
        .filter_map(async |wrong| wrong)
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_may_what_its_work_takes_and_nothing_else() {
    let stage = Stage::new("controller").await;
    let claviger = stage.actor("claviger");
    let ns = &stage.space.name;
    let mut wrong = unexpected_rights(claviger, ns, &WORKING_RIGHTS).await;
    wrong.extend(unexpected_rights(claviger, ns, &OTHER_RIGHTS).await);
    for (verb, resource) in [
        ("*", "*.*"),
        ("*", "secrets"),
        ("get", "*.*"),
        ("impersonate", "users"),
        ("impersonate", "groups"),
        ("impersonate", "serviceaccounts"),
        ("impersonate", "uids.authentication.k8s.io"),
        ("bind", "roles.rbac.authorization.k8s.io"),
        ("bind", "clusterroles.rbac.authorization.k8s.io"),
        ("escalate", "roles.rbac.authorization.k8s.io"),
        ("escalate", "clusterroles.rbac.authorization.k8s.io"),
        ("approve", "signers.certificates.k8s.io"),
        ("sign", "signers.certificates.k8s.io"),
        ("use", "securitycontextconstraints.security.openshift.io"),
    ] {
        for namespace in [ns.as_str(), SYSTEM, ""] {
            if claviger.may(verb, resource, namespace).await {
                wrong.push(format!("{verb} {resource} in {namespace:?}"));
            }
        }
    }
    // In its own namespace: a lease and a sealing key, of one name each.
    for (verb, resource, name, expected) in [
        ("create", "leases.coordination.k8s.io", None, true),
        (
            "update",
            "leases.coordination.k8s.io",
            Some("claviger-controller"),
            true,
        ),
        (
            "update",
            "leases.coordination.k8s.io",
            Some("another"),
            false,
        ),
        (
            "delete",
            "leases.coordination.k8s.io",
            Some("claviger-controller"),
            false,
        ),
        ("create", "serviceaccounts/token", Some("claviger"), false),
        ("create", "pods", None, false),
    ] {
        if claviger.may_with(verb, resource, SYSTEM, name).await != expected {
            wrong.push(format!(
                "{verb} {resource} {name:?} in {SYSTEM}: not {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_of_the_chart_holds_a_wildcard_or_a_way_up() {
    let cluster = Cluster::shared().await;
    let args = [
        "get",
        "clusterroles,roles",
        "--all-namespaces",
        "--selector",
        "app.kubernetes.io/part-of=claviger",
        "--output",
        "json",
    ];
    let roles: Value = serde_json::from_str(&cluster.kubectl(&args, "").await.unwrap()).unwrap();
    let roles = roles["items"].as_array().unwrap();
    assert!(roles.len() >= 4, "{} roles", roles.len());
    for role in roles {
        assert_eq!(role["aggregationRule"], Value::Null, "{role}");
        for rule in role["rules"].as_array().unwrap() {
            // What carries RoleAssignments out, and who may grant built-in roles: tests/it/chart.rs has
            // the resources and verbs. Here, that nothing but that one role may bind.
            let about_roles = rule["apiGroups"] == json!(["rbac.authorization.k8s.io"]);
            let binds = rule["verbs"] == json!(["bind"]);
            if about_roles && binds {
                assert_eq!(role["metadata"]["name"], "claviger-bind-built-in");
                assert_eq!(rule["resourceNames"].as_array().map(Vec::len), Some(10));
                continue;
            }
            // The server compares UIDs.
            if rule["resources"] == json!(["serviceaccounts"]) && rule["verbs"] == json!(["get"]) {
                assert_eq!(role["metadata"]["name"], "claviger-server-reviews");
                continue;
            }
            for field in ["apiGroups", "resources", "verbs"] {
                for item in rule[field].as_array().unwrap() {
                    let item = item.as_str().unwrap();
                    assert!(!item.contains('*'), "{rule}");
                    let way_up = [
                        "approve",
                        "bind",
                        "escalate",
                        "impersonate",
                        "proxy",
                        "sign",
                        "certificates.k8s.io",
                        "serviceaccounts",
                        "serviceaccounts/token",
                        "pods",
                        "pods/exec",
                        "nodes",
                    ];
                    assert!(!way_up.contains(&item), "{rule}");
                }
            }
            assert_eq!(rule["nonResourceURLs"], Value::Null, "{rule}");
        }
    }
}

/// The fields of a schema that hold text, by path; `[]` stands for the items of a list.
fn texts(path: &str, schema: &Value, found: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        texts(&format!("{path}.{name}"), field, found);
    }
    if schema["items"].is_object() {
        texts(&format!("{path}[]"), &schema["items"], found);
    }
    assert_eq!(
        schema["x-kubernetes-preserve-unknown-fields"],
        Value::Null,
        "{path}"
    );
    assert_eq!(schema["additionalProperties"], Value::Null, "{path}");
    if schema["type"] == "string" {
        found.push(path.to_owned());
    }
}

fn spec_schema() -> Value {
    let crd = serde_json::to_value(&claviger::api::crds()[0]).unwrap();
    let versions = crd["spec"]["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 1, "each version needs this test");
    versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

/// Puts a text at a path such as `spec.distributeTo[].secretRef.name`.
fn put(object: &mut Value, path: &str, text: &str) {
    let mut place = object;
    for part in path.split('.') {
        place = match part.strip_suffix("[]") {
            Some(list) => &mut place[list][0],
            None => &mut place[part],
        };
    }
    *place = json!(text);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_a_function_key_can_name_another_namespace() {
    let mut fields = Vec::new();
    texts("spec", &spec_schema(), &mut fields);
    assert!(fields.len() >= 15, "{fields:?}");
    for field in &fields {
        let leads_elsewhere = [
            "namespace",
            "url",
            "uri",
            "endpoint",
            "host",
            "address",
            "apiversion",
            "group",
        ];
        let name = field.rsplit('.').next().unwrap().to_lowercase();
        assert!(
            !leads_elsewhere.iter().any(|word| name.contains(word)),
            "{field}"
        );
    }
    // The fields are those of the schema, not of a list in this file: a new one is tried as well.
    let stage = Stage::new("names").await;
    let ns = &stage.space.name;
    let base = |field: &str| {
        let mut key = key("base", &everything());
        key["spec"]["scope"] = json!("Function");
        key["spec"]["functionName"] = json!("Orders");
        if field.starts_with("spec.rotation.") {
            key["spec"].as_object_mut().unwrap().remove("valueFrom");
        }
        if field.starts_with("spec.storage.configMap.") {
            key["spec"]["storage"] = json!({"configMap": {"name": "keys", "allowInsecure": true}});
        }
        key
    };
    let mut wrong = Vec::new();
    for field in &fields {
        let unharmed = Act::create(ns, "functionkeys", &base(field)).dry();
        stage.done("root", &unharmed).await;
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
            let mut key = base(field);
            put(&mut key, field, hostile);
            let answer = stage
                .actor("root")
                .does(&Act::create(ns, "functionkeys", &key).dry())
                .await;
            let place = field.replace("[]", "[0]");
            if !answer.as_ref().is_err_and(|said| said.contains(&place)) {
                wrong.push(format!("{field}: {hostile:?}: {answer:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    println!("{} fields", fields.len());

    // One that is written all the same is not kept, and kubectl refuses it.
    let mut foreign = base("");
    foreign["spec"]["distributeTo"][0]["secretRef"]["namespace"] = json!("other");
    foreign["spec"]["valueFrom"]["secretKeyRef"]["namespace"] = json!("other");
    let create = Act::create(ns, "functionkeys", &foreign).dry();
    let kept = stage
        .done("root", &create.clone().with("fieldValidation=Ignore"))
        .await;
    assert!(!kept["spec"].to_string().contains("namespace"), "{kept}");
    let strict = stage
        .actor("root")
        .does(&create.with("fieldValidation=Strict"))
        .await;
    assert!(
        strict
            .unwrap_err()
            .contains("unknown field \"spec.distributeTo[0].secretRef.namespace\"")
    );
}
