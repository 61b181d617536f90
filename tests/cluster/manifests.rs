//! Wrong manifests: each refused by the apiserver in our words, or answered with a condition. Right
//! ones at the edge of that: accepted.

use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    facts::{kubectl, to},
    support::{
        Operator, Options, Space,
        space::{condition, host_key, ready_reason},
    },
};

use claviger::api::v1alpha1::FunctionKey;

/// A right manifest's spec with these fields put in or (null) taken out.
fn spec(changes: Value) -> Value {
    host_key("partner", changes)
}

fn source(name: &str, key: &str) -> Value {
    json!({"secretKeyRef": {"name": name, "key": key}})
}

fn target(name: &str, key: &str) -> Value {
    json!({"secretRef": {"name": name, "key": key}})
}

fn keys(space: &Space) -> Api<DynamicObject> {
    Api::namespaced_with(
        space.client.clone(),
        &space.name,
        &ApiResource::erase::<FunctionKey>(&()),
    )
}

fn manifest(name: &str, spec: &Value) -> DynamicObject {
    let object = json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "FunctionKey", "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// What is wrong, the spec, and what the apiserver has to say to it.
fn wrong() -> Vec<(&'static str, Value, &'static str)> {
    let long = |length: usize| "a".repeat(length);
    let many = |count: usize| {
        (0..count)
            .map(|number| target("client", &format!("K{number}")))
            .collect::<Vec<_>>()
    };
    let workloads = |count: usize| {
        (0..count)
            .map(|number| json!({"kind": "Deployment", "name": format!("web-{number}")}))
            .collect::<Vec<_>>()
    };
    let restart = |workload: Value| json!([{"secretRef": {"name": "client", "key": "K"}, "restart": [workload]}]);
    let master = |more: Value| {
        let mut spec = json!({"storage": {"secret": {"name": "keys"}}, "scope": "Master"});
        json_patch::merge(&mut spec, &more);
        spec
    };
    vec![
        // Where it is kept.
        (
            "no storage",
            spec(json!({"storage": null})),
            "spec.storage: Required value",
        ),
        (
            "no store",
            spec(json!({"storage": {"secret": null}})),
            "name exactly one store: storage.secret or storage.configMap",
        ),
        (
            "two stores",
            spec(json!({"storage": {"configMap": {"name": "keys", "allowInsecure": true}}})),
            "name exactly one store",
        ),
        (
            "a store with its resource in front",
            spec(json!({"storage": {"secret": {"name": "secrets/keys"}}})),
            "the bare name, without secrets/ before it",
        ),
        (
            "a store in capitals",
            spec(json!({"storage": {"secret": {"name": "Keys"}}})),
            "not a name that a Secret can have",
        ),
        (
            "a store without a name",
            spec(json!({"storage": {"secret": {"name": ""}}})),
            "spec.storage.secret.name",
        ),
        (
            "a store with too long a name",
            spec(json!({"storage": {"secret": {"name": long(254)}}})),
            "may not be more than 253",
        ),
        (
            "a store in another namespace",
            spec(json!({"storage": {"secret": {"name": "elsewhere/keys"}}})),
            "not a name that a Secret can have",
        ),
        (
            "a ConfigMap",
            spec(json!({"storage": {"secret": null, "configMap": {"name": "keys"}}})),
            "a ConfigMap is no place for keys: the built-in view role reads it",
        ),
        (
            "a ConfigMap, expressly not",
            spec(
                json!({"storage": {"secret": null, "configMap": {"name": "keys", "allowInsecure": false}}}),
            ),
            "Use storage.secret, or say allowInsecure: true",
        ),
        (
            "a ConfigMap with its resource in front",
            spec(
                json!({"storage": {"secret": null, "configMap": {"name": "configmaps/keys", "allowInsecure": true}}}),
            ),
            "the bare name, without configmaps/ before it",
        ),
        (
            "a ConfigMap with too long a name",
            spec(
                json!({"storage": {"secret": null, "configMap": {"name": long(254), "allowInsecure": true}}}),
            ),
            "may not be more than 253",
        ),
        // What it opens.
        (
            "no scope",
            spec(json!({"scope": null})),
            "spec.scope: Required value",
        ),
        (
            "an unknown scope",
            spec(json!({"scope": "Admin"})),
            "supported values: \"Function\", \"Host\", \"Master\", \"System\"",
        ),
        (
            "a function's key without the function",
            spec(json!({"scope": "Function"})),
            "functionName is required when scope is Function: name the function that the key opens",
        ),
        (
            "a host key of one function",
            spec(json!({"functionName": "Orders"})),
            "functionName is for scope Function only; a key of scope Host opens every function",
        ),
        (
            "a function that cannot be",
            spec(json!({"scope": "Function", "functionName": "1-orders"})),
            "functionName must begin with a letter",
        ),
        (
            "a function with a dot",
            spec(json!({"scope": "Function", "functionName": "orders.default"})),
            "functionName must begin with a letter and hold letters, digits, - and _ only",
        ),
        (
            "a function without a name",
            spec(json!({"scope": "Function", "functionName": ""})),
            "spec.functionName",
        ),
        (
            "a function with too long a name",
            spec(json!({"scope": "Function", "functionName": long(128)})),
            "may not be more than 127",
        ),
        (
            "a key name with a slash",
            spec(json!({"keyName": "a/b"})),
            "keyName may hold letters, digits, '-', '_' and '.' only",
        ),
        (
            "a key name with a space",
            spec(json!({"keyName": "a b"})),
            "it becomes part of a data key of the Secret",
        ),
        (
            "an empty key name",
            spec(json!({"keyName": ""})),
            "spec.keyName",
        ),
        (
            "too long a key name",
            spec(json!({"keyName": long(96)})),
            "may not be more than 95",
        ),
        (
            "the name of a previous value",
            spec(json!({"keyName": "partner.Previous-12"})),
            "keyName must not end in .previous-<number>: previous values are kept under such names",
        ),
        (
            "the host's name of the master key",
            spec(json!({"keyName": "_MASTER"})),
            "keyName _master is the host's name for the master key: use scope: Master",
        ),
        (
            "a named master key",
            master(json!({"keyName": "mine"})),
            "keyName is not for scope Master: an app has one master key",
        ),
        (
            "a system key without a name",
            spec(json!({"scope": "System", "keyName": null})),
            "keyName is required when scope is System: the host looks a system key up by name",
        ),
        // Where its value comes from.
        (
            "a brought system key",
            spec(json!({"scope": "System", "valueFrom": source("chosen", "k")})),
            "the values of system keys cannot be chosen",
        ),
        (
            "a source in capitals",
            spec(json!({"valueFrom": source("Chosen", "k")})),
            "not a name that a Secret can have",
        ),
        (
            "a source without an entry",
            spec(json!({"valueFrom": {"secretKeyRef": {"name": "chosen"}}})),
            "spec.valueFrom.secretKeyRef.key: Required value",
        ),
        (
            "a source with an impossible entry",
            spec(json!({"valueFrom": source("chosen", "a/b")})),
            "not a key that a Secret can have",
        ),
        (
            "a source with too long a name",
            spec(json!({"valueFrom": source(&long(254), "k")})),
            "may not be more than 253",
        ),
        (
            "a source with too long an entry",
            spec(json!({"valueFrom": source("chosen", &long(254))})),
            "may not be more than 253",
        ),
        (
            "a source that is nothing",
            spec(json!({"valueFrom": {}})),
            "spec.valueFrom.secretKeyRef: Required value",
        ),
        (
            "a source in the store itself",
            spec(json!({"valueFrom": source("keys", "k")})),
            "valueFrom.secretKeyRef must name another Secret than storage.secret",
        ),
        (
            "a brought key with an interval",
            spec(json!({"valueFrom": source("chosen", "k"), "rotation": {"interval": "720h"}})),
            "rotation.interval is not for a key with valueFrom: it turns when its source changes",
        ),
        (
            "a brought key with a generation",
            spec(json!({"valueFrom": source("chosen", "k"), "rotation": {"generation": 1}})),
            "rotation.generation is not for a key with valueFrom: change the value in the source instead",
        ),
        (
            "a brought key that adopts",
            spec(json!({"valueFrom": source("chosen", "k"), "drift": "Adopt"})),
            "drift: Adopt is not for a key with valueFrom: its value is the source's",
        ),
        (
            "an unknown drift",
            spec(json!({"drift": "Ignore"})),
            "supported values: \"Adopt\", \"Enforce\"",
        ),
        // When it turns.
        (
            "an interval in days",
            spec(json!({"rotation": {"interval": "30d"}})),
            "Days are not a unit: 30 days are 720h",
        ),
        (
            "an interval without a unit",
            spec(json!({"rotation": {"interval": "3600"}})),
            "write a duration as in 720h, 90m or 30s",
        ),
        (
            "a negative interval",
            spec(json!({"rotation": {"interval": "-1h"}})),
            "write a duration as in 720h",
        ),
        (
            "a fraction of an hour",
            spec(json!({"rotation": {"interval": "1.5h"}})),
            "write a duration as in 720h",
        ),
        (
            "too short an interval",
            spec(json!({"rotation": {"interval": "9s", "overlap": "1s"}})),
            "rotation.interval must be between 10s and 87600h",
        ),
        (
            "too long an interval",
            spec(json!({"rotation": {"interval": "87601h"}})),
            "rotation.interval must be between 10s and 87600h (ten years)",
        ),
        (
            "an interval beyond all reason",
            spec(json!({"rotation": {"interval": "999999999h"}})),
            "spec.rotation.interval",
        ),
        (
            "an interval of many words",
            spec(json!({"rotation": {"interval": "1h".repeat(17)}})),
            "may not be more than 32",
        ),
        (
            "an interval as a number",
            spec(json!({"rotation": {"interval": 720}})),
            "spec.rotation.interval",
        ),
        (
            "an overlap in days",
            spec(json!({"rotation": {"overlap": "2d"}})),
            "Days are not a unit: 2 days are 48h",
        ),
        (
            "too long an overlap",
            spec(json!({"rotation": {"overlap": "87601h"}})),
            "rotation.overlap must be at most 87600h (ten years)",
        ),
        (
            "an overlap of many words",
            spec(json!({"rotation": {"overlap": "1h".repeat(17)}})),
            "may not be more than 32",
        ),
        (
            "an overlap as long as the interval",
            spec(json!({"rotation": {"interval": "24h", "overlap": "1440m"}})),
            "rotation.overlap must be shorter than rotation.interval: the previous value has to retire before the next turn",
        ),
        (
            "an overlap longer than the interval",
            spec(json!({"rotation": {"interval": "24h", "overlap": "48h"}})),
            "rotation.overlap must be shorter than rotation.interval",
        ),
        (
            "a master key with overlap",
            master(json!({"rotation": {"overlap": "1h"}})),
            "rotation.overlap is not for scope Master: the host takes any entry that begins with host.master",
        ),
        (
            "a negative generation",
            spec(json!({"rotation": {"generation": -1}})),
            "spec.rotation.generation",
        ),
        (
            "too great a generation",
            spec(json!({"rotation": {"generation": 2_147_483_648_i64}})),
            "spec.rotation.generation",
        ),
        (
            "a negative revokeGeneration",
            spec(json!({"rotation": {"revokeGeneration": -1}})),
            "spec.rotation.revokeGeneration",
        ),
        (
            "too great a revokeGeneration",
            spec(json!({"rotation": {"revokeGeneration": 2_147_483_648_i64}})),
            "spec.rotation.revokeGeneration",
        ),
        // To whom it is handed.
        (
            "no clients at all",
            spec(json!({"distributeTo": []})),
            "spec.distributeTo",
        ),
        (
            "too many clients",
            spec(json!({"distributeTo": many(33)})),
            "must have at most 32 items",
        ),
        (
            "a client's entry without a key",
            spec(json!({"distributeTo": [{"secretRef": {"name": "client"}}]})),
            "secretRef.key: Required value",
        ),
        (
            "a client without an entry",
            spec(json!({"distributeTo": [{}]})),
            "secretRef: Required value",
        ),
        (
            "a client's entry that cannot be",
            spec(json!({"distributeTo": [target("client", "a key")]})),
            "not a key that a Secret can have: letters, digits, '-', '_' and '.'",
        ),
        (
            "a client's Secret that cannot be",
            spec(json!({"distributeTo": [target("-client", "K")]})),
            "not a name that a Secret can have",
        ),
        (
            "a client in the store itself",
            spec(json!({"distributeTo": [target("keys", "K")]})),
            "distributeTo must name other Secrets than storage.secret",
        ),
        (
            "the source as a client",
            spec(
                json!({"valueFrom": source("chosen", "k"), "distributeTo": [target("chosen", "k")]}),
            ),
            "distributeTo must not name the entry that valueFrom reads",
        ),
        (
            "one client twice",
            spec(
                json!({"distributeTo": [target("client", "K"), target("other", "K"), target("client", "K")]}),
            ),
            "distributeTo names the same entry twice: list each Secret and key once",
        ),
        (
            "a restart of nobody",
            spec(
                json!({"distributeTo": [{"secretRef": {"name": "client", "key": "K"}, "restart": []}]}),
            ),
            "restart",
        ),
        (
            "too many restarts",
            spec(
                json!({"distributeTo": [{"secretRef": {"name": "client", "key": "K"}, "restart": workloads(17)}]}),
            ),
            "must have at most 16 items",
        ),
        (
            "a restart of a Pod",
            spec(json!({"distributeTo": restart(json!({"kind": "Pod", "name": "web"}))})),
            "supported values: \"DaemonSet\", \"Deployment\", \"StatefulSet\"",
        ),
        (
            "a restart of a workload that cannot be",
            spec(json!({"distributeTo": restart(json!({"kind": "Deployment", "name": "Web_1"}))})),
            "not a name that a workload can have",
        ),
        (
            "a restart of the nameless",
            spec(json!({"distributeTo": restart(json!({"kind": "Deployment"}))})),
            "name: Required value",
        ),
        (
            "a restart with too long a name",
            spec(
                json!({"distributeTo": restart(json!({"kind": "Deployment", "name": long(254)}))}),
            ),
            "may not be more than 253",
        ),
        (
            "a revocation that restarts nobody",
            spec(json!({"restartOnRevocation": []})),
            "spec.restartOnRevocation",
        ),
        (
            "a revocation that restarts too many",
            spec(json!({"restartOnRevocation": workloads(17)})),
            "must have at most 16 items",
        ),
        (
            "a revocation that restarts a Job",
            spec(json!({"restartOnRevocation": [{"kind": "Job", "name": "j"}]})),
            "supported values: \"DaemonSet\"",
        ),
        (
            "a revocation that restarts what cannot be",
            spec(json!({"restartOnRevocation": [{"kind": "Deployment", "name": "we b"}]})),
            "not a name that a workload can have",
        ),
        // The rest.
        (
            "an unknown deletion policy",
            spec(json!({"deletionPolicy": "Orphan"})),
            "supported values: \"Delete\", \"Retain\"",
        ),
        (
            "a suspension in words",
            spec(json!({"suspend": "yes"})),
            "spec.suspend",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_manifests_are_refused_by_the_apiserver_in_our_words() {
    let space = Space::new("wrong").await;
    let api = keys(&space);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let wrong = wrong();
    assert!(wrong.len() >= 45, "{}", wrong.len());
    let mut unexpected = Vec::new();
    for (what, spec, told) in &wrong {
        match api.create(&dry, &manifest("wrong", spec)).await {
            Err(kube::Error::Api(status))
                if status.code == 422 && status.message.contains(told) => {}
            Err(kube::Error::Api(status)) => {
                unexpected.push(format!("{what}: {} {}", status.code, status.message));
            }
            Ok(_) => unexpected.push(format!("{what}: accepted")),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));

    // A misspelt field is told by kubectl, whose validation is strict.
    for (field, yaml) in [
        ("spec.rotation.intervall", "rotation: {intervall: 720h}"),
        (
            "spec.distributeTo[0].namespace",
            "distributeTo: [{namespace: other, secretRef: {name: client, key: K}}]",
        ),
        (
            "spec.storage.secret.namespace",
            "storage: {secret: {name: keys, namespace: other}}",
        ),
        ("spec.value", "value: hunter2"),
    ] {
        let store = if yaml.starts_with("storage") {
            ""
        } else {
            "\n  storage: {secret: {name: keys}}"
        };
        let yaml = format!(
            "apiVersion: claviger.dev/v1alpha1\nkind: FunctionKey\nmetadata: {{name: wrong}}\nspec:\n  scope: Host{store}\n  {yaml}\n"
        );
        let refused = kubectl(&space, &["create", "--dry-run=server", "-f", "-"], &yaml)
            .await
            .unwrap_err();
        assert!(
            refused.contains(&format!("unknown field \"{field}\"")),
            "{field}: {refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_changed_is_refused_and_the_rest_can_be() {
    let space = Space::new("updates").await;
    let api = keys(&space);
    let function = json!({"storage": {"secret": {"name": "keys"}}, "scope": "Function", "functionName": "Orders", "keyName": "k"});
    for (name, spec) in [
        ("function", function),
        ("host", spec(json!({"rotation": {"interval": "24h"}}))),
        ("unnamed", spec(json!({"keyName": null}))),
        (
            "config-map",
            spec(
                json!({"storage": {"secret": null, "configMap": {"name": "keys", "allowInsecure": true}}}),
            ),
        ),
    ] {
        api.create(&PostParams::default(), &manifest(name, &spec))
            .await
            .unwrap();
    }
    let refused = [
        (
            "host",
            json!({"storage": {"secret": {"name": "other"}}}),
            "storage cannot be changed: clients would lose the key",
        ),
        (
            "host",
            json!({"storage": {"secret": null, "configMap": {"name": "keys", "allowInsecure": true}}}),
            "storage cannot be changed",
        ),
        (
            "config-map",
            json!({"storage": {"configMap": {"allowInsecure": null}}}),
            "a ConfigMap is no place for keys",
        ),
        (
            "host",
            json!({"scope": "System"}),
            "scope cannot be changed. Create another FunctionKey",
        ),
        (
            "host",
            json!({"scope": "Master", "keyName": null, "rotation": null}),
            "scope cannot be changed",
        ),
        (
            "function",
            json!({"functionName": "Payments"}),
            "functionName cannot be changed",
        ),
        (
            "function",
            json!({"functionName": "orders"}),
            "functionName cannot be changed",
        ),
        (
            "function",
            json!({"functionName": null}),
            "functionName cannot be changed",
        ),
        (
            "function",
            json!({"keyName": "K"}),
            "keyName cannot be changed",
        ),
        (
            "function",
            json!({"keyName": null}),
            "keyName cannot be changed",
        ),
        (
            "unnamed",
            json!({"keyName": "default"}),
            "keyName cannot be changed",
        ),
        // Rules about the whole hold for a change of a part.
        (
            "host",
            json!({"valueFrom": source("chosen", "k")}),
            "rotation.interval is not for a key with valueFrom",
        ),
        (
            "host",
            json!({"rotation": {"overlap": "24h"}}),
            "rotation.overlap must be shorter than rotation.interval",
        ),
    ];
    for (name, change, told) in refused {
        let change = Patch::Merge(json!({"spec": change}));
        match api.patch(name, &PatchParams::default(), &change).await {
            Err(kube::Error::Api(status))
                if status.code == 422 && status.message.contains(told) => {}
            other => panic!("{name} {change:?}: {other:?}"),
        }
    }
    let allowed = [
        (
            "host",
            json!({"rotation": {"interval": "48h", "overlap": "47h", "generation": 7, "revokeGeneration": 3}}),
        ),
        (
            "host",
            json!({"rotation": null, "valueFrom": source("chosen", "k"), "drift": "Enforce"}),
        ),
        (
            "host",
            json!({"valueFrom": null, "drift": "Adopt", "deletionPolicy": "Retain", "suspend": true}),
        ),
        (
            "host",
            json!({"distributeTo": [target("client", "K")], "restartOnRevocation": [{"kind": "StatefulSet", "name": "app"}]}),
        ),
        (
            "host",
            json!({"distributeTo": null, "restartOnRevocation": null, "suspend": null, "drift": null}),
        ),
    ];
    for (name, change) in allowed {
        let change = Patch::Merge(json!({"spec": change}));
        api.patch(name, &PatchParams::default(), &change)
            .await
            .unwrap_or_else(|error| panic!("{change:?}: {error}"));
    }
    // No default is filled in that the manifest does not have.
    let stored = api.get("unnamed").await.unwrap();
    assert_eq!(stored.data["spec"], spec(json!({"keyName": null})));
}

#[tokio::test(flavor = "multi_thread")]
async fn right_manifests_at_the_edge_are_accepted() {
    let space = Space::new("right").await;
    let api = keys(&space);
    let long = |length: usize| "a".repeat(length);
    let clients: Vec<Value> = (0..32)
        .map(|number| target(&format!("client-{number}"), &long(253)))
        .collect();
    let workloads: Vec<Value> = ["DaemonSet", "Deployment", "StatefulSet"]
        .iter()
        .cycle()
        .take(16)
        .enumerate()
        .map(|(number, kind)| json!({"kind": kind, "name": format!("{}{number}", long(240))}))
        .collect();
    let right = [
        (
            "the least",
            json!({"storage": {"secret": {"name": "k"}}, "scope": "Host"}),
        ),
        (
            "long names",
            json!({"storage": {"secret": {"name": long(253)}}, "scope": "Function", "functionName": long(127), "keyName": long(95)}),
        ),
        (
            "a dotted store",
            spec(json!({"storage": {"secret": {"name": "func-keys-kube-secret-my.app"}}})),
        ),
        (
            "a ConfigMap",
            spec(
                json!({"storage": {"secret": null, "configMap": {"name": long(253), "allowInsecure": true}}}),
            ),
        ),
        (
            "names as apps have them",
            spec(
                json!({"scope": "Function", "functionName": "Http_Trigger-1", "keyName": "Partner.One_two-3"}),
            ),
        ),
        (
            "almost the name of a previous value",
            spec(json!({"keyName": "partner.previous-"})),
        ),
        ("a name that is a number", spec(json!({"keyName": "1"}))),
        (
            "an underscore in front",
            spec(json!({"keyName": "_masters"})),
        ),
        (
            "a master key that turns",
            json!({"storage": {"secret": {"name": "keys"}}, "scope": "Master", "rotation": {"interval": "10s", "generation": 0}}),
        ),
        (
            "a brought master key",
            json!({"storage": {"secret": {"name": "keys"}}, "scope": "Master", "valueFrom": source("chosen", "k")}),
        ),
        (
            "a system key",
            spec(
                json!({"scope": "System", "keyName": "durabletask_extension", "rotation": {"overlap": "1h"}}),
            ),
        ),
        (
            "a brought key",
            spec(
                json!({"valueFrom": source(&long(253), &long(253)), "rotation": {"overlap": "1h", "revokeGeneration": 1}, "drift": "Enforce"}),
            ),
        ),
        (
            "one Secret as source and client",
            spec(
                json!({"valueFrom": source("chosen", "k"), "distributeTo": [target("chosen", "copy")]}),
            ),
        ),
        (
            "the shortest interval",
            spec(json!({"rotation": {"interval": "10s", "overlap": "9s"}})),
        ),
        (
            "the longest interval",
            spec(json!({"rotation": {"interval": "87600h", "overlap": "87599h59m59s"}})),
        ),
        (
            "no overlap",
            spec(json!({"rotation": {"interval": "1m", "overlap": "0s"}})),
        ),
        (
            "overlap without interval",
            spec(json!({"rotation": {"overlap": "87600h"}})),
        ),
        (
            "a mixed duration",
            spec(json!({"rotation": {"interval": "1h30m15s"}})),
        ),
        (
            "the greatest generations",
            spec(
                json!({"rotation": {"generation": 2_147_483_647, "revokeGeneration": 2_147_483_647}}),
            ),
        ),
        ("the most clients", spec(json!({"distributeTo": clients}))),
        (
            "one Secret twice under two keys",
            spec(json!({"distributeTo": [target("client", "A"), target("client", "a")]})),
        ),
        (
            "the most restarts",
            spec(
                json!({"distributeTo": [{"secretRef": {"name": "client", "key": "K"}, "restart": workloads}], "restartOnRevocation": workloads}),
            ),
        ),
        (
            "everything",
            spec(json!({
                "rotation": {"interval": "720h", "overlap": "24h", "generation": 2, "revokeGeneration": 1},
                "drift": "Enforce", "deletionPolicy": "Retain", "suspend": false,
                "distributeTo": [{"secretRef": {"name": "client", "key": "ORDERS_KEY"}, "restart": [{"kind": "Deployment", "name": "web"}]}],
                "restartOnRevocation": [{"kind": "StatefulSet", "name": "app"}],
            })),
        ),
    ];
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for (what, spec) in &right {
        api.create(&dry, &manifest("right", spec))
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_apiserver_cannot_see_gets_a_condition_that_says_what_to_do() {
    let space = Space::new("conditions").await;
    let make = async |name: &str, more: Value| {
        let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"k": "8dQ2xJ7vK1mZ5tR9wB4nY6cH3gF0sLpA"}});
        json_patch::merge(&mut secret, &more);
        kubectl(&space, &["create", "-f", "-"], &secret.to_string())
            .await
            .unwrap();
    };
    make("release", json!({"type": "helm.sh/release.v1"})).await;
    make("made-up", json!({"type": "example.com/made-up"})).await;
    make("immutable", json!({"immutable": true})).await;
    make("good", json!({})).await;
    make("weak", json!({"stringData": {"k": "password123"}})).await;
    make(
        "broken-line",
        json!({"stringData": {"k": "8dQ2xJ7vK1mZ5tR9wB4nY6cH3gF0sLpA\n"}}),
    )
    .await;
    let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "immutable"}, "immutable": true, "data": {"k": "v"}});
    kubectl(&space, &["create", "-f", "-"], &config_map.to_string())
        .await
        .unwrap();
    let _operator = Operator::start(&space, Options::default()).await;
    for (name, spec) in [
        ("older", host_key("contested", json!({}))),
        ("holder", host_key("holder", to("shared", "K"))),
        ("handed", host_key("handed", to("copies", "K"))),
    ] {
        space.declare(name, spec).await;
        space.ready(name).await;
    }
    let store = |name: &str| json!({"storage": {"secret": {"name": name}}});
    let from = |name: &str, key: &str| json!({"valueFrom": source(name, key)});
    let table = [
        (
            "conflict",
            host_key("contested", json!({})),
            "Conflict",
            "kept by FunctionKey/older; delete one of the two",
        ),
        (
            "conflict-in-case",
            host_key("CONTESTED", json!({})),
            "Conflict",
            "kept by FunctionKey/older",
        ),
        (
            "store-of-helm",
            host_key("x", store("release")),
            "StoreRefused",
            "is of a type that cannot hold keys; name another in spec.storage",
        ),
        (
            "store-made-up",
            host_key("x", store("made-up")),
            "StoreRefused",
            "is of a type that cannot hold keys",
        ),
        (
            "store-immutable",
            host_key("x", store("immutable")),
            "StoreRefused",
            "is immutable; delete it so that it can be made anew",
        ),
        (
            "store-immutable-map",
            host_key(
                "x",
                json!({"storage": {"secret": null, "configMap": {"name": "immutable", "allowInsecure": true}}}),
            ),
            "StoreRefused",
            "ConfigMap/immutable is immutable",
        ),
        (
            "store-of-copies",
            host_key("x", store("copies")),
            "StoreRefused",
            "it cannot be an app's key store as well",
        ),
        (
            "no-source",
            host_key("a", from("absent", "k")),
            "SourceNotFound",
            "entry k of Secret/absent does not exist",
        ),
        (
            "no-entry",
            host_key("b", from("good", "absent")),
            "SourceNotFound",
            "entry absent of Secret/good has no such entry",
        ),
        (
            "source-of-helm",
            host_key("c", from("release", "k")),
            "SourceRefused",
            "is of a type that values are not taken from",
        ),
        (
            "source-weak",
            host_key("d", from("weak", "k")),
            "ValueRefused",
            "leave it to Claviger to mint one, or use openssl rand -hex 32",
        ),
        (
            "source-with-line",
            host_key("e", from("broken-line", "k")),
            "ValueRefused",
            "use printf, or kubectl create secret with --from-literal",
        ),
        (
            "target-taken",
            host_key("f", to("good", "k")),
            "TargetConflict",
            "was not made by Claviger and is left alone",
        ),
        (
            "target-shared",
            host_key("g", to("shared", "K")),
            "TargetConflict",
            "is kept by FunctionKey/holder; hand this key out under another entry",
        ),
        (
            "target-of-helm",
            host_key("h", to("release", "copy")),
            "TargetRefused",
            "is of a type that keys may not be handed out in",
        ),
        (
            "target-immutable",
            host_key("i", to("immutable", "copy")),
            "TargetRefused",
            "Secret/immutable is immutable",
        ),
        (
            "target-store",
            host_key(
                "j",
                json!({"storage": {"secret": {"name": "second"}}, "distributeTo": [target("keys", "copy")]}),
            ),
            "TargetRefused",
            "Secret/keys is an app's key store",
        ),
        (
            "suspended",
            host_key("k", json!({"suspend": true})),
            "Suspended",
            "spec.suspend is true: no key is published",
        ),
    ];
    for (name, spec, ..) in &table {
        space.declare(name, spec.clone()).await;
    }
    for (name, _, reason, told) in &table {
        let message = space.not_ready(name, reason).await;
        assert!(message.contains(told), "{name}: {message}");
        let status = space.status(name).await;
        assert_eq!(
            (
                condition(&status, "Stalled"),
                condition(&status, "Reconciling")
            ),
            ("True".to_owned(), "False".to_owned()),
            "{name}"
        );
        assert_eq!(ready_reason(&status), *reason);
    }
    // Whoever was there first is not harmed by any of them.
    for name in ["older", "holder", "handed"] {
        space.ready(name).await;
    }
    assert_eq!(space.data("release").await.len(), 1);
    assert_eq!(space.data("good").await.len(), 1);
    assert_eq!(space.data("copies").await.len(), 1);
}
