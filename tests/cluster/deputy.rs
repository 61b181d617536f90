//! Confused deputies, end to end: a real operator with the chart's rights, and people who try to
//! have it read or write for them what they may not.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    rights::{Stage, WORKING_RIGHTS, key, source, target, unexpected_rights},
    support::{
        Cluster, Operator, Options, Space,
        actors::{Act, Actor},
        control_plane::{SYSTEM, write_private},
        operator::{kubeconfig_text, service_account_token},
        space::{condition, ready_reason},
    },
};

/// A value that a person brings, and the one that they put in its place.
const VALUE: &str = "hU7dEwq2_ZmP9xLk4RtYvB1sNc8JgF6aQo3W5iX0";
const NEXT: &str = "Qm3vT8yKc1_bRz6NfWj0LhXp9DsUe4GaVo7IiZ2E";

/// The Secrets of a namespace in which a value stands, by name and entry.
async fn standing(space: &Space, value: &str) -> Vec<String> {
    let mut found = Vec::new();
    for secret in space.secrets().list(&ListParams::default()).await.unwrap() {
        let name = secret.name_any();
        for (entry, content) in secret.data.unwrap_or_default() {
            if String::from_utf8_lossy(&content.0).contains(value) {
                found.push(format!("{name}/{entry}"));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_developer_may_not_route_never_becomes_a_copy() {
    let stage = Stage::new("deputy").await;
    let space = &stage.space;
    let ns = &space.name;
    let _operator = Operator::start(space, Options::default()).await;
    space.put_secret("chosen", &[("key", VALUE)]).await;
    space.put_deployment("web").await;
    let dev = stage.actor("dev");
    let dev_declares = Act::create(ns, "functionkeys", &key("plain", &json!({})));
    stage.done("dev", &dev_declares).await;
    space.ready("plain").await;

    // All the ways in, each for a Secret that should never come to be.
    let stolen = |name: &str| {
        let mut stolen = json!({"distributeTo": [target(name, &[("Deployment", "web")])]});
        stolen["valueFrom"] = source("chosen");
        stolen
    };
    let spec = |name: &str| json!({"spec": stolen(name)});
    let whole = |name: &str, key_name: &str| key(key_name, &stolen(name));
    let mut replaced = stage.done("dev", &Act::get(ns, "functionkeys/plain")).await;
    json_patch::merge(&mut replaced, &spec("stolen-4"));
    let on = "functionkeys/plain";
    for act in [
        Act::create(ns, "functionkeys", &whole("stolen-1", "thief")),
        Act::apply(ns, "functionkeys/thief", &whole("stolen-2", "thief")),
        Act::merge(ns, on, &spec("stolen-3")),
        Act::replace(ns, on, &replaced),
        Act::apply(ns, on, &whole("stolen-5", "plain")),
        Act::merge(ns, "functionkeys/plain/status", &spec("stolen-6")),
    ] {
        let refusal = dev.does(&act).await.expect_err("a developer is refused");
        assert!(
            refusal.contains("denied request") || refusal.contains("cannot"),
            "{refusal}"
        );
    }

    // The same from somebody who may: proof that the operator would have done it.
    let given = Act::create(ns, "functionkeys", &whole("client", "given"));
    stage.done("anna", &given).await;
    space.ready("given").await;
    assert_eq!(space.data("client").await["K"], VALUE);

    let secrets = space.secrets().list(&ListParams::default()).await.unwrap();
    let names: Vec<String> = secrets.iter().map(ResourceExt::name_any).collect();
    assert!(
        names.iter().all(|name| !name.starts_with("stolen")),
        "{names:?}"
    );
    assert_eq!(
        standing(space, VALUE).await,
        ["app-keys/host.function.given", "chosen/key", "client/K"]
    );
    // Nor does anything that the developer may read tell a value.
    for what in ["functionkeys", "configmaps"] {
        let text = stage.done("dev", &Act::get(ns, what)).await.to_string();
        for value in space.values.lock().unwrap().keys() {
            assert!(!text.contains(value.as_str()), "{what} hold a value");
        }
    }
    dev.does(&Act::get(ns, "secrets/client")).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_cluster_are_neither_read_nor_written_whoever_asks() {
    let stage = Stage::new("types").await;
    let space = &stage.space;
    let ns = &space.name;
    let _operator = Operator::start(space, Options::default()).await;
    let types = [
        "kubernetes.io/service-account-token",
        "bootstrap.kubernetes.io/token",
        "helm.sh/release.v1",
        "kubernetes.io/dockercfg",
        "example.com/own",
    ];
    // With our label and without it.
    let labels = [
        ("bare", json!({})),
        ("store", json!({"claviger.dev/content": "function-keys"})),
        (
            "copies",
            json!({"claviger.dev/content": "function-key-copies"}),
        ),
    ];
    let mut names = Vec::new();
    for (index, type_) in types.iter().enumerate() {
        for (label, labels) in &labels {
            let name = format!("t{index}-{label}");
            let object = json!({
                "apiVersion": "v1", "kind": "Secret", "type": type_,
                "metadata": {
                    "name": name, "labels": labels,
                    "annotations": {"kubernetes.io/service-account.name": "default"},
                },
                "stringData": {"key": VALUE, "host.master": VALUE, "K": VALUE, ".dockercfg": "{}"},
            });
            stage
                .done("anna", &Act::create(ns, "secrets", &object))
                .await;
            names.push(name);
        }
    }
    for name in &names {
        for (role, more) in [
            (
                "source",
                json!({"valueFrom": source(name), "distributeTo": [target(&format!("{name}-out"), &[])]}),
            ),
            ("store", json!({"storage": {"secret": {"name": name}}})),
            ("target", json!({"distributeTo": [target(name, &[])]})),
        ] {
            let key = key(&format!("{role}-{name}"), &more);
            stage
                .done("anna", &Act::create(ns, "functionkeys", &key))
                .await;
        }
    }
    for name in &names {
        for (role, reason) in [
            ("source", "SourceRefused"),
            ("store", "StoreRefused"),
            ("target", "TargetRefused"),
        ] {
            let message = space.not_ready(&format!("{role}-{name}"), reason).await;
            assert!(message.contains("type"), "{role}-{name}: {message}");
        }
    }
    for name in &names {
        let secret = space.secrets().get(name).await.unwrap();
        let writers: Vec<&str> = secret
            .metadata
            .managed_fields
            .iter()
            .flatten()
            .filter_map(|fields| fields.manager.as_deref())
            .collect();
        assert!(!writers.contains(&"claviger"), "{name}: {writers:?}");
    }
    let found = standing(space, VALUE).await;
    let elsewhere: Vec<&String> = found
        .iter()
        .filter(|place| !names.contains(&place.split('/').next().unwrap().to_owned()))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    // What Claviger makes bears no annotation that another controller fills a Secret by.
    for secret in space.secrets().list(&ListParams::default()).await.unwrap() {
        if names.contains(&secret.name_any()) {
            continue;
        }
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
        let annotations = secret.annotations().keys();
        let foreign: Vec<&String> = annotations
            .filter(|name| !name.starts_with("claviger.dev/"))
            .collect();
        assert!(foreign.is_empty(), "{foreign:?}");
    }
}

/// What stands in a namespace, so that one can tell whether anything was touched.
async fn everything_of(space: &Space) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let list = "secrets,configmaps,deployments.apps,functionkeys.claviger.dev";
    let args = ["get", list, "--namespace", &space.name, "--output", "json"];
    let text = space.cluster.kubectl(&args, "").await.unwrap();
    let objects: Value = serde_json::from_str(&text).unwrap();
    for mut object in objects["items"].as_array().unwrap().clone() {
        // Kubernetes' own controllers report here.
        if object["kind"] == "Deployment" {
            object = json!({"kind": "Deployment", "metadata": {"name": object["metadata"]["name"]}, "spec": object["spec"]});
        }
        let name = format!("{}/{}", object["kind"], object["metadata"]["name"]);
        all.insert(name, object);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_the_same_name_in_another_namespace_are_not_touched() {
    let space = Space::new("here").await;
    let there = Space::on(Arc::clone(&space.cluster), "there").await;
    let options = Options {
        namespaces: vec![space.name.clone(), there.name.clone()],
        ..Options::default()
    };
    let _operator = Operator::start(&space, options).await;
    // There: a source, a client's Secret, a store with a key, a workload.
    there.put_secret("chosen", &[("key", VALUE)]).await;
    there.put_secret("client", &[("OTHER", "kept")]).await;
    there.put_deployment("web").await;
    there
        .declare("there", key("there", &json!({}))["spec"].clone())
        .await;
    there.ready("there").await;
    let before = everything_of(&there).await;

    // Here: keys that name all of them, and of which only what is here may be meant.
    space.put_deployment("web").await;
    let declare = async |name: &str, more: Value| {
        let key = key(name, &more);
        space.declare(name, key["spec"].clone()).await;
    };
    let routed = json!({"distributeTo": [target("client", &[("Deployment", "web")])]});
    declare("routed", routed).await;
    declare("sourced", json!({"valueFrom": source("chosen")})).await;
    declare("there", json!({})).await;
    space.ready("routed").await;
    space.ready("there").await;
    let message = space.not_ready("sourced", "SourceNotFound").await;
    assert!(
        message.contains("Secret/chosen does not exist"),
        "{message}"
    );
    // Turned, handed on, revoked, and deleted with everything it had.
    let turn = json!({"spec": {"rotation": {"generation": 1, "overlap": "0s"}}});
    space.change("routed", turn).await;
    space
        .change(
            "there",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    space.ready("there").await;
    space
        .until("routed", "turned", |status| {
            condition(status, "Ready") == "True"
                && status
                    .rotation
                    .as_ref()
                    .is_some_and(|rotation| rotation.generation == 2)
                && !status.restarts.is_empty()
        })
        .await;
    for name in ["routed", "sourced", "there"] {
        space.undeclare(name).await;
    }
    space
        .until_data("client", "be gone", BTreeMap::is_empty)
        .await;
    assert_eq!(standing(&space, VALUE).await, Vec::<String>::new());
    let after = everything_of(&there).await;
    assert_eq!(before, after);
}

/// A line of the audit log, as far as it matters here.
struct Request {
    verb: String,
    resource: String,
    namespace: Option<String>,
}

/// What a user asked of the apiserver.
fn requests_of(cluster: &Cluster, user: &str) -> Vec<Request> {
    let log = std::fs::read_to_string(&cluster.audit).unwrap();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mine = lines.filter(|line| line["user"]["username"] == user);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    mine.map(|line| Request {
        verb: text(&line["verb"]),
        resource: text(&line["objectRef"]["resource"]),
        namespace: line["objectRef"]["namespace"].as_str().map(str::to_owned),
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_for_some_namespaces_works_there_and_knows_nothing_of_the_others() {
    let cluster = Arc::new(Cluster::start().await);
    let space = Space::on(Arc::clone(&cluster), "listed").await;
    let other = Space::on(Arc::clone(&cluster), "other").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let namespaces = format!("scope.namespaces={{{}}}", space.name);
    let admin = format!("admin.port={port}");
    let values = [
        "scope.mode=namespaces",
        &namespaces,
        "admin.host=127.0.0.1",
        &admin,
        "hostReloadDelay=1s",
        "restartDelay=1s",
        "logging.level=info\\,claviger=debug",
    ];
    cluster.install("claviger", SYSTEM, &values).await;

    // In the other namespace: what would be worked on, if it were seen.
    other.put_secret("chosen", &[("key", VALUE)]).await;
    other.put_deployment("web").await;
    for (name, more) in [
        ("plain", json!({})),
        ("sourced", json!({"valueFrom": source("chosen")})),
    ] {
        other.declare(name, key(name, &more)["spec"].clone()).await;
    }
    let before = everything_of(&other).await;

    // The ServiceAccount may in the one what the work takes, and in the other nothing at all.
    let claviger = Actor::account(&cluster, SYSTEM, "claviger").await;
    let nothing = WORKING_RIGHTS.map(|(resource, _)| (resource, &[] as &[&str]));
    // Which namespaces there are is for a whole cluster's Claviger to follow.
    let working: Vec<_> = WORKING_RIGHTS
        .into_iter()
        .filter(|(resource, _)| *resource != "namespaces")
        .collect();
    let mut wrong = unexpected_rights(&claviger, &space.name, &working).await;
    let namespaces = [("namespaces", &["get"] as &[&str])];
    wrong.extend(unexpected_rights(&claviger, &space.name, &namespaces).await);
    for elsewhere in [&*other.name, "default", "kube-system", ""] {
        wrong.extend(unexpected_rights(&claviger, elsewhere, &nothing).await);
    }
    // In its own namespace: one lease, one Secret.
    let own = [
        ("secrets", &["create"] as &[&str]),
        ("configmaps", &[]),
        ("deployments.apps", &[]),
    ];
    wrong.extend(unexpected_rights(&claviger, SYSTEM, &own).await);
    assert!(wrong.is_empty(), "{wrong:#?}");
    for act in [
        Act::get(&other.name, "secrets"),
        Act::get(&other.name, "secrets/chosen"),
        Act::get(&other.name, "functionkeys"),
        Act::merge(
            &other.name,
            "secrets/chosen",
            &json!({"stringData": {"x": "y"}}),
        ),
        Act::create(
            &other.name,
            "secrets",
            &json!({"metadata": {"name": "x", "labels": {"claviger.dev/content": "function-key-copies"}}}),
        ),
        Act::delete(&other.name, "secrets/chosen"),
    ] {
        let refusal = claviger.does(&act).await.unwrap_err();
        assert!(refusal.contains("cannot"), "{refusal}");
    }

    // The operator as the chart runs it: its arguments, its environment, its ServiceAccount, and no
    // right beside.
    let rendered = Cluster::render("claviger", SYSTEM, &values).await;
    let container = container(&rendered);
    let args = container["args"].as_array().unwrap();
    let kubeconfig = cluster.directory.path().join("operator.kubeconfig");
    let token = service_account_token(&cluster.admin().await, SYSTEM, "claviger").await;
    write_private(&kubeconfig, &kubeconfig_text(&cluster, None, &token));
    let log = cluster.directory.path().join("operator.log");
    let _operator = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(args.iter().map(|arg| arg.as_str().unwrap()))
        .env_clear()
        .env("KUBECONFIG", &kubeconfig)
        .env("CLAVIGER_SYSTEM_NAMESPACE", SYSTEM)
        .env("CLAVIGER_IDENTITY", "claviger-0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    space.put_secret("chosen", &[("key", VALUE)]).await;
    space.put_deployment("web").await;
    let full = json!({
        "valueFrom": source("chosen"),
        "distributeTo": [target("client", &[("Deployment", "web")])],
    });
    space
        .declare("full", key("full", &full)["spec"].clone())
        .await;
    space
        .declare("plain", key("plain", &json!({}))["spec"].clone())
        .await;
    space.ready("full").await;
    space.ready("plain").await;
    assert_eq!(space.data("client").await["K"], VALUE);
    // A turn with all that it brings: copies, a restart, an event.
    space.put_secret("chosen", &[("key", NEXT)]).await;
    space
        .until("full", "turned", |status| {
            condition(status, "Ready") == "True"
                && ready_reason(status) == "Published"
                && !status.restarts.is_empty()
        })
        .await;
    assert_eq!(space.data("client").await["K"], NEXT);
    assert!(space.restarted_at("web").await.is_some());
    space.undeclare("full").await;
    space.undeclare("plain").await;
    space
        .until_data("client", "be gone", BTreeMap::is_empty)
        .await;
    space
        .until_data("app-keys", "be gone", |data| {
            data.keys().all(|entry| !entry.starts_with("host.function"))
        })
        .await;

    // Nothing of it in the other namespace, and nothing asked of it or of all namespaces.
    assert_eq!(before, everything_of(&other).await);
    for name in ["plain", "sourced"] {
        assert_eq!(
            other.status(name).await,
            claviger::api::v1alpha1::FunctionKeyStatus::default()
        );
    }
    assert_eq!(
        other
            .secrets()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let deliberate = Api::<Secret>::namespaced(claviger.client.clone(), &other.name);
    deliberate.get("chosen").await.unwrap_err();
    let user = format!("system:serviceaccount:{SYSTEM}:claviger");
    let asked = requests_of(&cluster, &user);
    let before = asked
        .iter()
        .filter(|request| request.verb == "watch")
        .count();
    assert!(before >= 5, "the audit log tells of {before} watches");
    let reviews = "selfsubjectaccessreviews";
    let beyond: Vec<String> = asked
        .iter()
        .filter(|request| request.resource != reviews)
        .filter(|request| match request.namespace.as_deref() {
            // ClusterRoles by their metadata: a RoleAssignment may name one.
            None => !["customresourcedefinitions", "clusterroles"].contains(&&*request.resource),
            Some(namespace) => namespace != space.name && namespace != SYSTEM,
        })
        .map(|request| {
            format!(
                "{} {} in {:?}",
                request.verb, request.resource, request.namespace
            )
        })
        .collect();
    // Seven of them are this test's own, above.
    assert_eq!(beyond.len(), 7, "{beyond:#?}");
}

/// The container of the chart's Deployment.
fn container(rendered: &str) -> Value {
    let documents: Vec<Value> = serde_saphyr::from_multiple(rendered).unwrap();
    let deployment = documents
        .iter()
        .find(|document| document["kind"] == "Deployment");
    deployment.unwrap()["spec"]["template"]["spec"]["containers"][0].clone()
}
