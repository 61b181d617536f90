//! Wrong manifests of vaults: each refused by the apiserver in our words. Right ones at the edge of
//! that, the largest there can be among them: accepted.
#![allow(
    clippy::needless_pass_by_value,
    reason = "called with `json!` in place"
)]

use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{facts::kubectl, support::Space};

use claviger::api::v1alpha1::SecretVault;

/// A right manifest's spec with these fields put in or (null) taken out.
fn spec(changes: Value) -> Value {
    let mut spec = json!({
        "secrets": [{"name": "db-password", "generate": {}}],
        "sync": [{"target": {"name": "env"}, "data": [{"key": "K", "secret": "db-password"}]}],
    });
    json_patch::merge(&mut spec, &changes);
    spec
}

/// A spec with one generated secret, with these fields put in or taken out.
fn secret(changes: Value) -> Value {
    let mut secret = json!({"name": "db-password", "generate": {}});
    json_patch::merge(&mut secret, &changes);
    json!({"secrets": [secret]})
}

/// A spec with one secret, generated like this.
fn generate(how: Value) -> Value {
    json!({"secrets": [{"name": "a", "generate": how}]})
}

/// A spec with one imported secret, with these fields put in or taken out.
fn imported(changes: Value) -> Value {
    let mut secret =
        json!({"name": "key", "valueFrom": {"secretKeyRef": {"name": "chosen", "key": "k"}}});
    json_patch::merge(&mut secret, &changes);
    json!({"secrets": [secret]})
}

/// A spec with one item of `sync`, with these fields put in or taken out.
fn sync(changes: Value) -> Value {
    let mut item = json!({"target": {"name": "env"}, "data": [{"key": "K", "secret": "a"}]});
    json_patch::merge(&mut item, &changes);
    json!({"sync": [item]})
}

/// A spec with one entry of one target.
fn entry(entry: Value) -> Value {
    sync(json!({"data": [entry]}))
}

fn vaults(space: &Space) -> Api<DynamicObject> {
    Api::namespaced_with(
        space.client.clone(),
        &space.name,
        &ApiResource::erase::<SecretVault>(&()),
    )
}

fn manifest(name: &str, spec: &Value) -> DynamicObject {
    let object = json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "SecretVault", "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn dry() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

fn long(length: usize) -> String {
    "a".repeat(length)
}

fn many<T>(count: usize, make: impl Fn(usize) -> T) -> Vec<T> {
    (0..count).map(make).collect()
}

/// What is wrong, the spec, and what the apiserver has to say to it.
fn wrong() -> Vec<(&'static str, Value, &'static str)> {
    let called = |name: String| secret(json!({"name": name}));
    let names = |names: &[&str]| -> Value {
        json!({"secrets": names.iter().map(|name| json!({"name": name, "generate": {}})).collect::<Vec<_>>()})
    };
    let typed = |type_: &str, keys: &[&str]| {
        let data: Vec<Value> = keys
            .iter()
            .map(|key| json!({"key": key, "secret": "a"}))
            .collect();
        sync(json!({"target": {"type": type_}, "data": data}))
    };
    let protected = |more: Value| {
        let mut spec = spec(json!({"softDelete": {"purgeProtection": true}}));
        json_patch::merge(&mut spec, &more);
        spec
    };
    vec![
        // The secrets' names.
        (
            "a secret without a name",
            secret(json!({"name": null})),
            "spec.secrets[0].name: Required value",
        ),
        (
            "a secret with an empty name",
            called(String::new()),
            "spec.secrets[0].name",
        ),
        (
            "a secret with too long a name",
            called(long(128)),
            "may not be more than 127",
        ),
        (
            "a secret with an underscore",
            called("db_password".to_owned()),
            "not a name that a secret of a vault can have: letters, digits and '-', at most 127",
        ),
        (
            "a secret with a dot",
            called("db.password".to_owned()),
            "not a name that a secret of a vault can have",
        ),
        (
            "one secret twice",
            names(&["a", "b", "a"]),
            "spec.secrets[2]: Duplicate value",
        ),
        (
            "one secret twice but for case",
            names(&["Db-Password", "b", "db-password"]),
            "two secrets have the same name: names are compared without case",
        ),
        (
            "one secret twice in two spellings with capitals",
            names(&["Db-password", "b", "db-Password"]),
            "two secrets have the same name: names are compared without case. Declare each once",
        ),
        (
            "too many secrets",
            json!({"secrets": many(501, |i| json!({"name": format!("s{i}"), "generate": {}}))}),
            "must have at most 500 items",
        ),
        // Where the values come from.
        (
            "no source of the value",
            secret(json!({"generate": null})),
            "say where the value comes from by exactly one of generate and valueFrom",
        ),
        (
            "two sources of the value",
            imported(json!({"generate": {}})),
            "exactly one of generate and valueFrom",
        ),
        (
            "an alphabet that there is not",
            generate(json!({"alphabet": "Base64"})),
            "supported values: \"Alphanumeric\"",
        ),
        (
            "too short a value",
            generate(json!({"length": 3})),
            "should be greater than or equal to 4",
        ),
        (
            "too long a value",
            generate(json!({"length": 1025})),
            "should be less than or equal to 1024",
        ),
        (
            "an easily guessed value",
            generate(json!({"length": 21})),
            "too easily guessed: length times the bits of a character must reach minEntropyBits (128 when left out)",
        ),
        (
            "a length that base64 cannot have",
            generate(json!({"alphabet": "Base64Url", "length": 45})),
            "no base64 text has a length of one more than a multiple of four: take one more or one less",
        ),
        (
            "too few bytes in base64",
            generate(json!({"alphabet": "Base64Url", "length": 20})),
            "too easily guessed",
        ),
        (
            "one digit too few",
            generate(json!({"alphabet": "Numeric", "length": 38})),
            "too easily guessed",
        ),
        (
            "one hexadecimal digit too few",
            generate(json!({"alphabet": "Hex", "length": 31})),
            "32 of Hex",
        ),
        (
            "one small letter too few",
            generate(json!({"alphabet": "LowerAlphanumeric", "length": 24})),
            "25 of LowerAlphanumeric",
        ),
        (
            "a short value of symbols",
            generate(json!({"alphabet": "AlphanumericSymbols", "length": 16})),
            "too easily guessed",
        ),
        (
            "less than what is asked for",
            generate(json!({"length": 40, "minEntropyBits": 256})),
            "too easily guessed",
        ),
        (
            "no entropy",
            generate(json!({"length": 4, "minEntropyBits": 8})),
            "should be greater than or equal to 16",
        ),
        (
            "a UUID with a length",
            generate(json!({"alphabet": "Uuid", "length": 36})),
            "length and minEntropyBits are not for Identifiable (238 random bits) and Uuid (122)",
        ),
        (
            "an identifiable key with a floor",
            generate(json!({"alphabet": "Identifiable", "minEntropyBits": 128})),
            "their form is fixed",
        ),
        (
            "a certificate and an SSH key",
            generate(json!({"tls": {"commonName": "a"}, "ssh": {}})),
            "generate either tls or ssh, not both: declare two secrets",
        ),
        (
            "a certificate of letters",
            generate(json!({"tls": {"commonName": "a"}, "alphabet": "Hex"})),
            "alphabet, length and minEntropyBits are not for a key pair",
        ),
        (
            "an SSH key with a length",
            generate(json!({"ssh": {}, "length": 64})),
            "leave them out beside tls and ssh",
        ),
        (
            "a certificate for nobody",
            generate(json!({"tls": {}})),
            "a certificate needs a name: write tls.dnsNames",
        ),
        (
            "a certificate for a title",
            generate(json!({"tls": {"commonName": "Payments Service"}})),
            "tls.commonName alone must be a host name",
        ),
        (
            "a certificate for a URL",
            generate(json!({"tls": {"dnsNames": ["https://shop.example"]}})),
            "tls.dnsNames holds host names",
        ),
        (
            "a certificate for too many",
            generate(json!({"tls": {"dnsNames": many(17, |i| format!("h{i}"))}})),
            "must have at most 16 items",
        ),
        (
            "a certificate of minutes",
            generate(json!({"tls": {"commonName": "a", "validity": "59m"}})),
            "tls.validity must be between 1h and 87600h",
        ),
        (
            "a certificate of days",
            generate(json!({"tls": {"commonName": "a", "validity": "90d"}})),
            "Days are not a unit: 90 days are 2160h",
        ),
        (
            "a certificate that is turned too late",
            secret(
                json!({"generate": {"tls": {"commonName": "a", "validity": "2160h"}}, "rotation": {"interval": "2160h"}}),
            ),
            "rotation.interval must be shorter than tls.validity (8760h when left out)",
        ),
        (
            "a certificate that is turned after a year",
            secret(
                json!({"generate": {"tls": {"commonName": "a"}}, "rotation": {"interval": "8761h"}}),
            ),
            "the certificate would expire before the next one takes its place",
        ),
        (
            "an SSH key with two lines of comment",
            generate(json!({"ssh": {"comment": "a\nb"}})),
            "ssh.comment may hold printable ASCII only, on one line",
        ),
        (
            "a source in capitals",
            imported(json!({"valueFrom": {"secretKeyRef": {"name": "Chosen"}}})),
            "not a name that a Secret can have",
        ),
        (
            "a source without an entry",
            imported(json!({"valueFrom": {"secretKeyRef": {"key": null}}})),
            "secretKeyRef.key: Required value",
        ),
        (
            "a source that turns by the clock",
            imported(json!({"rotation": {"interval": "720h"}})),
            "rotation.interval is not for a secret with valueFrom: it turns when its source changes",
        ),
        (
            "a source that turns on request",
            imported(json!({"rotation": {"generation": 1}})),
            "rotation.generation is not for a secret with valueFrom: change the value in the source instead",
        ),
        (
            "a source that sync writes",
            spec(
                json!({"secrets": imported(json!({"valueFrom": {"secretKeyRef": {"name": "env"}}}))["secrets"]}),
            ),
            "takes its value (valueFrom) from a Secret that sync writes",
        ),
        // How they turn, and how long they are kept.
        (
            "an interval in days",
            secret(json!({"rotation": {"interval": "30d"}})),
            "30 days are 720h",
        ),
        (
            "too short an interval",
            secret(json!({"rotation": {"interval": "9s"}})),
            "rotation.interval must be between 10s and 87600h",
        ),
        (
            "an overlap as long as the interval",
            secret(json!({"rotation": {"interval": "24h", "overlap": "24h"}})),
            "rotation.overlap must be shorter than rotation.interval",
        ),
        (
            "no versions kept",
            secret(json!({"keep": {"versions": 0}})),
            "should be greater than or equal to 1",
        ),
        (
            "too many versions kept",
            secret(json!({"keep": {"versions": 1001}})),
            "should be less than or equal to 1000",
        ),
        (
            "versions kept for days",
            secret(json!({"keep": {"age": "90d"}})),
            "write a duration as in 2160h, 90m or 30s",
        ),
        (
            "versions not kept",
            secret(json!({"keep": {"age": "5s"}})),
            "keep.age must be between 10s and 87600h",
        ),
        // Attributes.
        (
            "too long a content type",
            secret(json!({"contentType": long(256)})),
            "may not be more than 255",
        ),
        (
            "a content type of two lines",
            secret(json!({"contentType": "a\nb"})),
            "contentType may hold printable ASCII only",
        ),
        (
            "too many tags",
            secret(
                json!({"tags": many(16, |i| (format!("t{i}"), "v")).into_iter().collect::<std::collections::BTreeMap<_, _>>()}),
            ),
            "must have at most 15 items",
        ),
        (
            "a tag with too long a name",
            secret(json!({"tags": {long(257): "v"}})),
            "the name of a tag has 1 to 256 characters",
        ),
        (
            "a tag with too long a value",
            secret(json!({"tags": {"t": long(257)}})),
            "may not be more than 256",
        ),
        (
            "a tag that is a number",
            secret(json!({"tags": {"t": 1}})),
            "must be of type string",
        ),
        (
            "an expiry in words",
            secret(json!({"expires": "tomorrow"})),
            "must be of type date-time",
        ),
        (
            "an expiry without a time",
            secret(json!({"expires": "2030-01-01"})),
            "must be of type date-time",
        ),
        (
            "an expiry before it begins",
            secret(json!({"notBefore": "2030-01-02T00:00:00Z", "expires": "2030-01-01T00:00:00Z"})),
            "notBefore must lie before expires",
        ),
        (
            "an expiry as it begins",
            secret(
                json!({"notBefore": "2030-01-01T01:00:00+01:00", "expires": "2030-01-01T00:00:00Z"}),
            ),
            "notBefore must lie before expires",
        ),
        // Where they are written.
        (
            "a target without a name",
            sync(json!({"target": {"name": null}})),
            "target.name: Required value",
        ),
        (
            "a target in capitals",
            sync(json!({"target": {"name": "Env"}})),
            "not a name that a Secret can have",
        ),
        (
            "a target in another namespace",
            sync(json!({"target": {"name": "other/env"}})),
            "not a name that a Secret can have",
        ),
        (
            "a target with too long a name",
            sync(json!({"target": {"name": long(241)}})),
            "may not be more than 240",
        ),
        (
            "a vault's key ring",
            sync(json!({"target": {"name": "payments-key-ring"}})),
            "are for vaults' own objects: choose another",
        ),
        (
            "a version of a vault's secret",
            sync(json!({"target": {"name": format!("payments.{}-0000000001", "0".repeat(32))}})),
            "are for vaults' own objects",
        ),
        (
            "a target of a type for the cluster",
            typed("kubernetes.io/service-account-token", &["token"]),
            "supported values: \"Opaque\"",
        ),
        (
            "a target of our own type",
            typed("claviger.dev/key-ring", &["ring"]),
            "supported values: \"Opaque\"",
        ),
        (
            "a certificate without its key",
            typed("kubernetes.io/tls", &["tls.crt"]),
            "needs both data keys: tls.crt (part: Certificate) and tls.key (part: PrivateKey)",
        ),
        (
            "an SSH key under another name",
            typed("kubernetes.io/ssh-auth", &["id_ed25519"]),
            "needs the data key ssh-privatekey",
        ),
        (
            "credentials under other names",
            typed("kubernetes.io/basic-auth", &["user"]),
            "needs the data key username or password",
        ),
        (
            "a registry's credentials under another name",
            typed("kubernetes.io/dockerconfigjson", &["config.json"]),
            "needs the data key .dockerconfigjson",
        ),
        (
            "one target twice",
            json!({"sync": [sync(json!({}))["sync"][0], sync(json!({"data": [{"key": "L", "secret": "a"}]}))["sync"][0]]}),
            "sync names the same target twice: list each Secret once, with all its data",
        ),
        (
            "too many targets",
            json!({"sync": many(101, |i| sync(json!({"target": {"name": format!("t{i}")}}))["sync"][0].clone())}),
            "must have at most 100 items",
        ),
        (
            "somebody else's Secret with a type",
            sync(json!({"creationPolicy": "Merge", "target": {"type": "Opaque"}})),
            "target.type and target.immutable are not for creationPolicy: Merge",
        ),
        (
            "somebody else's Secret made immutable",
            sync(json!({"creationPolicy": "Merge", "target": {"immutable": true}})),
            "the Secret is somebody else's and stays as they made it",
        ),
        (
            "nobody's Secret",
            sync(json!({"creationPolicy": "None"})),
            "supported values: \"Merge\", \"Owner\"",
        ),
        (
            "a label of Claviger's",
            sync(json!({"target": {"labels": {"claviger.dev/content": "x"}}})),
            "labels under claviger.dev/ are Claviger's own",
        ),
        (
            "a label of the cluster's",
            sync(json!({"target": {"labels": {"app.kubernetes.io/name": "x"}}})),
            "labels under kubernetes.io and k8s.io are the cluster's own",
        ),
        (
            "an annotation of the cluster's",
            sync(json!({"target": {"annotations": {"kubernetes.io/service-account.name": "x"}}})),
            "annotations under kubernetes.io and k8s.io are the cluster's own",
        ),
        (
            "an annotation of Claviger's",
            sync(json!({"target": {"annotations": {"claviger.dev/sync": "x"}}})),
            "annotations under claviger.dev/ are Claviger's own",
        ),
        (
            "a label that cannot be",
            sync(json!({"target": {"labels": {"a b": "x"}}})),
            "not names that labels can have",
        ),
        (
            "a label with too long a value",
            sync(json!({"target": {"labels": {"a": long(64)}}})),
            "may not be more than 63",
        ),
        // What is written there.
        (
            "an empty target",
            sync(json!({"data": []})),
            "spec.sync[0].data",
        ),
        (
            "a target without content",
            sync(json!({"data": null})),
            "data: Required value",
        ),
        (
            "too much in one target",
            sync(json!({"data": many(101, |i| json!({"key": format!("K{i}"), "secret": "a"}))})),
            "must have at most 100 items",
        ),
        (
            "one key twice",
            sync(json!({"data": [{"key": "K", "secret": "a"}, {"key": "K", "secret": "b"}]})),
            "spec.sync[0].data[1]: Duplicate value",
        ),
        (
            "a key that cannot be",
            entry(json!({"key": "a/b", "secret": "a"})),
            "not a key that a Secret can have",
        ),
        (
            "a key that leads upwards",
            entry(json!({"key": "..", "secret": "a"})),
            "not a key that a Secret can have",
        ),
        (
            "nothing under a key",
            entry(json!({"key": "K"})),
            "exactly one of secret and template",
        ),
        (
            "two things under a key",
            entry(json!({"key": "K", "secret": "a", "template": "x"})),
            "exactly one of secret and template",
        ),
        (
            "a secret that cannot be",
            entry(json!({"key": "K", "secret": "a_b"})),
            "not a name that a secret of a vault can have",
        ),
        (
            "a version of a template",
            entry(json!({"key": "K", "template": "x", "version": "Previous"})),
            "version goes with secret only",
        ),
        (
            "a part of a template",
            entry(json!({"key": "K", "template": "x", "part": "PrivateKey"})),
            "part goes with secret only",
        ),
        (
            "a version that there is not",
            entry(json!({"key": "K", "secret": "a", "version": "Next"})),
            "supported values: \"Current\", \"Previous\"",
        ),
        (
            "a part that there is not",
            entry(json!({"key": "K", "secret": "a", "part": "Key"})),
            "supported values: \"Certificate\"",
        ),
        (
            "too long a template",
            entry(json!({"key": "K", "template": long(8193)})),
            "may not be more than 8192",
        ),
        (
            "an empty template",
            entry(json!({"key": "K", "template": ""})),
            "spec.sync[0].data[0].template",
        ),
        (
            "too many restarts",
            sync(
                json!({"restart": many(17, |i| json!({"kind": "Deployment", "name": format!("w{i}")}))}),
            ),
            "must have at most 16 items",
        ),
        (
            "a restart of a Job",
            sync(json!({"restart": [{"kind": "Job", "name": "w"}]})),
            "supported values: \"DaemonSet\"",
        ),
        // The vault itself.
        (
            "a ring that turns in days",
            spec(json!({"keyRing": {"rotation": {"interval": "90d"}}})),
            "90 days are 2160h",
        ),
        (
            "a ring that turns all the time",
            spec(json!({"keyRing": {"rotation": {"interval": "9s"}}})),
            "keyRing.rotation.interval must be between 10s and 87600h",
        ),
        (
            "a ring version that there is not",
            spec(json!({"keyRing": {"shredVersions": [0]}})),
            "ring versions are counted from 1: list those of status.keyRing.versions",
        ),
        (
            "a ring version twice",
            spec(json!({"keyRing": {"shredVersions": [1, 1]}})),
            "Duplicate value",
        ),
        (
            "retention in days",
            spec(json!({"softDelete": {"retention": "90d"}})),
            "90 days are 2160h",
        ),
        (
            "too short a retention",
            spec(json!({"softDelete": {"retention": "1s"}})),
            "softDelete.retention must be between 10s and 87600h",
        ),
        (
            "a protected vault that is destroyed",
            protected(json!({"shred": true})),
            "shred is not for a vault with softDelete.purgeProtection",
        ),
        (
            "a protected vault whose ring is destroyed",
            protected(json!({"keyRing": {"shredVersions": [1]}})),
            "keyRing.shredVersions is not for a vault with softDelete.purgeProtection",
        ),
        (
            "a protected vault that goes with its manifest",
            protected(json!({"deletionPolicy": "Delete"})),
            "deletionPolicy: Delete is not for a vault with softDelete.purgeProtection: use Protect, or Retain",
        ),
        (
            "a deletion policy that there is not",
            spec(json!({"deletionPolicy": "Orphan"})),
            "supported values: \"Delete\", \"Protect\", \"Retain\"",
        ),
        (
            "a number for a word",
            spec(json!({"suspend": "yes"})),
            "must be of type boolean",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_vaults_are_refused_in_our_words() {
    let space = Space::new("wrong-vaults").await;
    let api = vaults(&space);
    let table = wrong();
    assert!(table.len() >= 45, "{}", table.len());
    let mut failed = Vec::new();
    for (what, spec, told) in &table {
        match api.create(&dry(), &manifest("wrong", spec)).await {
            Err(kube::Error::Api(status))
                if status.code == 422 && status.message.contains(told) => {}
            Err(kube::Error::Api(status)) => failed.push(format!("{what}: {}", status.message)),
            other => failed.push(format!("{what}: {other:?}")),
        }
    }
    for (name, told) in [
        (
            long(51),
            "the name of a SecretVault has at most 50 characters",
        ),
        (
            "a--b".to_owned(),
            "single dashes, none at its end: it becomes part of a host name",
        ),
        ("1-payments".to_owned(), "begins with a lower-case letter"),
        (
            "payments.v1".to_owned(),
            "begins with a lower-case letter and holds lower-case letters, digits and single dashes",
        ),
    ] {
        match api.create(&dry(), &manifest(&name, &spec(json!({})))).await {
            Err(kube::Error::Api(status))
                if status.code == 422 && status.message.contains(told) => {}
            other => failed.push(format!("{name}: {other:?}")),
        }
    }
    assert!(
        failed.is_empty(),
        "{}:\n{}",
        failed.len(),
        failed.join("\n")
    );
    println!("{} wrong vaults", table.len() + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_changes_of_a_vault_are_refused_in_our_words() {
    let space = Space::new("wrong-changes").await;
    let api = vaults(&space);
    for (name, spec) in [
        (
            "protected",
            spec(json!({"softDelete": {"purgeProtection": true}})),
        ),
        (
            "protected-longer",
            spec(json!({"softDelete": {"purgeProtection": true, "retention": "4320h"}})),
        ),
        (
            "shredded",
            spec(json!({"shred": true, "keyRing": {"shredVersions": [1, 2]}})),
        ),
        ("imported", imported(json!({}))),
        ("plain", spec(json!({}))),
    ] {
        api.create(&PostParams::default(), &manifest(name, &spec))
            .await
            .unwrap();
    }
    let taken_back = "softDelete.purgeProtection cannot be taken back";
    let shortened = "softDelete.retention cannot be shortened under purgeProtection";
    let grow = "keyRing.shredVersions can only grow";
    let refused = [
        (
            "protected",
            json!({"softDelete": {"purgeProtection": false}}),
            taken_back,
        ),
        (
            "protected",
            json!({"softDelete": {"purgeProtection": null}}),
            taken_back,
        ),
        ("protected", json!({"softDelete": null}), taken_back),
        (
            "protected",
            json!({"softDelete": {"retention": "2159h"}}),
            shortened,
        ),
        (
            "protected-longer",
            json!({"softDelete": {"retention": "4319h"}}),
            shortened,
        ),
        (
            "protected-longer",
            json!({"softDelete": {"retention": null}}),
            shortened,
        ),
        (
            "protected",
            json!({"shred": true}),
            "shred is not for a vault with softDelete.purgeProtection",
        ),
        (
            "protected",
            json!({"shred": true, "softDelete": null}),
            taken_back,
        ),
        (
            "protected",
            json!({"keyRing": {"shredVersions": [1]}}),
            "keyRing.shredVersions is not for a vault",
        ),
        (
            "protected",
            json!({"deletionPolicy": "Delete"}),
            "deletionPolicy: Delete is not for a vault",
        ),
        (
            "shredded",
            json!({"shred": false}),
            "shred cannot be taken back: the key ring is gone",
        ),
        (
            "shredded",
            json!({"shred": null}),
            "shred cannot be taken back",
        ),
        ("shredded", json!({"keyRing": {"shredVersions": [1]}}), grow),
        (
            "shredded",
            json!({"keyRing": {"shredVersions": [1, 3]}}),
            grow,
        ),
        (
            "shredded",
            json!({"keyRing": {"shredVersions": null}}),
            grow,
        ),
        ("shredded", json!({"keyRing": null}), grow),
        (
            "shredded",
            json!({"softDelete": {"purgeProtection": true}}),
            "is not for a vault with softDelete.purgeProtection",
        ),
        // Rules about the whole hold for a change of a part.
        (
            "plain",
            json!({"secrets": [{"name": "env-source", "valueFrom": {"secretKeyRef": {"name": "env", "key": "K"}}}]}),
            "from a Secret that sync writes",
        ),
        (
            "plain",
            json!({"sync": [{"target": {"name": "env"}, "data": [{"key": "K"}]}]}),
            "exactly one of secret and template",
        ),
    ];
    for (name, change, told) in refused {
        let patch = Patch::Merge(json!({"spec": change}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status))
                if status.code == 422 && status.message.contains(told) => {}
            other => panic!("{name} {patch:?}: {other:?}"),
        }
    }
    let allowed = [
        ("protected", json!({"softDelete": {"retention": "4320h"}})),
        (
            "protected",
            json!({"softDelete": {"retention": "260000m"}, "secrets": null, "sync": null}),
        ),
        (
            "protected",
            json!({"deletionPolicy": "Retain", "suspend": true}),
        ),
        ("shredded", json!({"keyRing": {"shredVersions": [2, 1, 7]}})),
        (
            "shredded",
            json!({"secrets": null, "deletionPolicy": "Delete"}),
        ),
        ("imported", secret(json!({"name": "key"}))),
        (
            "plain",
            json!({"sync": [{"target": {"name": "env", "type": "kubernetes.io/basic-auth"}, "data": [{"key": "password", "secret": "db-password"}]}]}),
        ),
        ("plain", json!({"softDelete": {"retention": "10s"}})),
        (
            "plain",
            json!({"softDelete": {"retention": null, "purgeProtection": true}}),
        ),
        (
            "plain",
            json!({"keyRing": {"rotation": {"interval": "10s", "generation": 3}}}),
        ),
    ];
    for (name, change) in allowed {
        let patch = Patch::Merge(json!({"spec": change}));
        let answer = api.patch(name, &PatchParams::default(), &patch).await;
        answer.unwrap_or_else(|error| panic!("{name} {patch:?}: {error}"));
    }
    // No default is filled in that the manifest does not have.
    let stored = api.get("imported").await.unwrap();
    assert_eq!(stored.data["spec"], secret(json!({"name": "key"})));
}

/// As much as a vault can hold: 500 secrets, 100 targets, names as long as they may be.
pub(crate) fn largest(capitals: bool) -> Value {
    let start = if capitals { "Ab" } else { "ab" }.repeat(61);
    let name = |i: usize| format!("{start}{i:05}");
    let secrets = many(500, |i| match i {
        0..100 => {
            json!({"name": name(i), "valueFrom": {"secretKeyRef": {"name": format!("{}{i:03}", long(250)), "key": "k"}}})
        }
        100..150 => json!({
            "name": name(i), "rotation": {"interval": "24h"},
            "generate": {"tls": {"dnsNames": many(16, |j| format!("{}{j}", long(200)))}},
        }),
        _ => json!({
            "name": name(i),
            "generate": {"alphabet": "Numeric", "length": 39},
            "rotation": {"interval": "720h", "overlap": "24h", "generation": 3, "revokeGeneration": 1},
            "keep": {"versions": 1000, "age": "720h"},
            "contentType": "text/plain",
            "tags": many(15, |j| (format!("t{j}"), "v")).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "notBefore": "2026-01-01T00:00:00Z", "expires": "2027-01-01T00:00:00Z",
        }),
    });
    let sync = many(100, |i| {
        json!({
            "target": {
                "name": format!("{}{i:03}", "t".repeat(237)),
                "labels": many(32, |j| (format!("a.b/c{j}"), "v")).into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            },
            "data": many(100, |j| json!({"key": format!("{}{j}", "K".repeat(20)), "secret": format!("s{j}")})),
            "restart": many(16, |j| json!({"kind": "Deployment", "name": format!("web-{j}")})),
        })
    });
    json!({"secrets": secrets, "sync": sync, "keyRing": {"shredVersions": many(256, |i| i + 1)}})
}

#[tokio::test(flavor = "multi_thread")]
async fn right_vaults_at_the_edge_are_accepted() {
    let space = Space::new("right-vaults").await;
    let api = vaults(&space);
    let alphabets = [
        "Alphanumeric",
        "AlphanumericSymbols",
        "Base64Url",
        "Hex",
        "LowerAlphanumeric",
        "Numeric",
    ];
    let usual = alphabets.map(|name| json!({"name": name, "generate": {"alphabet": name}}));
    let right = [
        ("the least", json!({})),
        (
            "no secrets and no targets",
            json!({"secrets": [], "sync": []}),
        ),
        ("the usual", spec(json!({}))),
        ("the longest names", secret(json!({"name": long(127)}))),
        ("the shortest name", secret(json!({"name": "0"}))),
        ("a name of dashes", secret(json!({"name": "---"}))),
        (
            "names that differ",
            json!({"secrets": [{"name": "A", "generate": {}}, {"name": "a-", "generate": {}}, {"name": "B", "generate": {}}]}),
        ),
        ("22 letters and digits", generate(json!({"length": 22}))),
        (
            "22 characters with symbols",
            generate(json!({"alphabet": "AlphanumericSymbols", "length": 22})),
        ),
        (
            "22 characters of Base64",
            generate(json!({"alphabet": "Base64Url", "length": 22})),
        ),
        ("the usual lengths", json!({"secrets": usual})),
        (
            "32 hexadecimal digits",
            generate(json!({"alphabet": "Hex"})),
        ),
        (
            "25 small letters",
            generate(json!({"alphabet": "LowerAlphanumeric", "length": 25})),
        ),
        (
            "39 digits",
            generate(json!({"alphabet": "Numeric", "length": 39})),
        ),
        (
            "a PIN",
            generate(json!({"alphabet": "Numeric", "length": 6, "minEntropyBits": 19})),
        ),
        (
            "the longest value",
            generate(json!({"length": 1024, "minEntropyBits": 4096})),
        ),
        ("a UUID", generate(json!({"alphabet": "Uuid"}))),
        (
            "an identifiable key",
            generate(json!({"alphabet": "Identifiable"})),
        ),
        (
            "a certificate",
            secret(
                json!({"generate": {"tls": {"commonName": "Shop, Ltd.", "dnsNames": ["*.shop.example", "shop"], "validity": "1h"}}, "rotation": {"interval": "59m", "overlap": "1m"}}),
            ),
        ),
        (
            "an SSH key",
            generate(json!({"ssh": {"comment": "deploy@shop (CI)"}})),
        ),
        ("an SSH key without comment", generate(json!({"ssh": {}}))),
        (
            "an imported key with overlap",
            imported(
                json!({"rotation": {"overlap": "1h", "revokeGeneration": 1}, "keep": {"versions": 1}}),
            ),
        ),
        (
            "a source into which is merged",
            json!({
                "secrets": imported(json!({}))["secrets"],
                "sync": [{"target": {"name": "chosen"}, "creationPolicy": "Merge", "data": [{"key": "other", "secret": "key"}]}],
            }),
        ),
        (
            "times of other zones",
            secret(
                json!({"notBefore": "2030-01-01T00:00:00+02:00", "expires": "2030-01-01T00:00:00.5Z"}),
            ),
        ),
        ("a secret made through the API", sync(json!({}))),
        (
            "both versions and a template",
            sync(json!({"data": [
                {"key": "NOW", "secret": "a", "version": "Current", "part": "Value"}, {"key": "BEFORE", "secret": "A", "version": "Previous"},
                {"key": "URL", "template": "postgres://app:{{ secrets['a'] | urlencode }}@db/app"}, {"key": ".dotted_key-1", "template": long(8192)},
            ]})),
        ),
        (
            "a certificate's Secret",
            sync(
                json!({"target": {"type": "kubernetes.io/tls"}, "data": [{"key": "tls.crt", "secret": "a", "part": "Certificate"}, {"key": "tls.key", "secret": "a", "part": "PrivateKey"}]}),
            ),
        ),
        (
            "an SSH key's Secret",
            sync(
                json!({"target": {"type": "kubernetes.io/ssh-auth"}, "data": [{"key": "ssh-privatekey", "secret": "a", "part": "PrivateKey"}]}),
            ),
        ),
        (
            "a registry's Secret",
            sync(
                json!({"target": {"type": "kubernetes.io/dockerconfigjson"}, "data": [{"key": ".dockerconfigjson", "template": "{}"}]}),
            ),
        ),
        (
            "an immutable target",
            sync(json!({"target": {"immutable": true, "type": "Opaque", "name": long(240)}})),
        ),
        (
            "a target with metadata",
            sync(
                json!({"target": {"labels": {"app": "shop", "shop.example/team": "payments"}, "annotations": {"reflector.example/allowed": "true"}}}),
            ),
        ),
        (
            "merged with metadata",
            sync(json!({"creationPolicy": "Merge", "target": {"labels": {"app": "shop"}}})),
        ),
        (
            "protected",
            spec(
                json!({"softDelete": {"purgeProtection": true, "retention": "87600h"}, "deletionPolicy": "Retain"}),
            ),
        ),
        (
            "destroyed",
            spec(
                json!({"shred": true, "keyRing": {"shredVersions": [4_294_967_295_i64]}, "deletionPolicy": "Delete"}),
            ),
        ),
        ("the largest", largest(false)),
        ("the largest, with capitals", largest(true)),
    ];
    for (what, spec) in &right {
        api.create(&dry(), &manifest("right", spec))
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    for name in ["a", &long(50), "a-1-b"] {
        api.create(&dry(), &manifest(name, &spec(json!({}))))
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // A change of the largest costs no more than it may, either.
    for capitals in [false, true] {
        let name = format!("largest-{capitals}");
        api.create(&PostParams::default(), &manifest(&name, &largest(capitals)))
            .await
            .unwrap();
        let mut changed = largest(capitals);
        for item in changed["sync"].as_array_mut().unwrap() {
            item["data"][0]["secret"] = json!("changed");
            item["restart"][15]["kind"] = json!("StatefulSet");
        }
        let patch = Patch::Merge(json!({"spec": changed}));
        api.patch(&name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_explains_every_field_of_a_vault() {
    let space = Space::new("explain-vault").await;
    for (field, told) in [
        ("", "A store of secrets with versions"),
        (
            ".spec.keyRing",
            "keys under which every secret's own key is wrapped",
        ),
        (".spec.softDelete.purgeProtection", "Once true it stays so"),
        (".spec.secrets.generate", "`{}` makes 32 letters and digits"),
        (
            ".spec.secrets.generate.minEntropyBits",
            "How hard to guess the value has to be",
        ),
        (
            ".spec.secrets.rotation.overlap",
            "How long the previous value stays valid",
        ),
        (".spec.sync.data.template", "Text with values put in"),
        (
            ".spec.sync.target.immutable",
            "a Secret of its own that nothing can change",
        ),
        (
            ".spec.deletionPolicy",
            "it waits while the vault has secrets that live",
        ),
        (".status.keyRing.rewrapped", "4,120 of 10,000"),
    ] {
        let name = format!("secretvault{field}");
        let explained = kubectl(&space, &["explain", &name], "").await.unwrap();
        let joined = explained.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(joined.contains(told), "{name}: {explained}");
    }
    for short in ["svault", "claviger"] {
        kubectl(&space, &["get", short], "").await.unwrap();
    }
}
