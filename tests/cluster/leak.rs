//! A whole life of keys with everything logged: no value of a key, however it was come by, and no
//! other secret is found anywhere but in Secrets.

use std::{
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use claviger::{api::v1alpha1::SyncState, root_keys::RootKeys};
use http::Method;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    Cluster, Operator, Options, Space,
    kms::{Plugin, with_kms},
    needles::{Canaries, Needles, hex},
    operator::Launcher,
    proxy::{Proxy, Seen, Verdict, status},
    record::seal_key,
    space::{condition, host_key},
    vault_keys::{Identity, KEEPER},
    vaults::{ready, says},
};

/// Looks everywhere.
async fn search(
    needles: &Needles,
    space: &Space,
    launcher: &Launcher,
    operator: &Operator,
    heard: &[String],
) -> Vec<String> {
    let mut found = needles.find("the log", &launcher.logged());
    for text in heard {
        found.extend(needles.find("an answer of the operator", text));
    }
    let cluster = &space.cluster;
    for kind in [
        "functionkeys",
        "secretvaults",
        "configmaps",
        "events",
        "events.events.k8s.io",
        "deployments",
        "replicasets",
        "serviceaccounts",
        "roles",
        "rolebindings",
        "leases",
    ] {
        for namespace in [&*space.name, "claviger-system"] {
            let get = [
                "get",
                kind,
                "--namespace",
                namespace,
                "--output",
                "json",
                "--show-managed-fields",
            ];
            found.extend(needles.find(kind, &cluster.kubectl(&get, "").await.unwrap()));
        }
    }
    for definition in ["functionkeys.claviger.dev", "secretvaults.claviger.dev"] {
        let get = [
            "get",
            "crd",
            definition,
            "--output",
            "json",
            "--show-managed-fields",
        ];
        found.extend(needles.find("the definition", &cluster.kubectl(&get, "").await.unwrap()));
    }
    // Labels and annotations of Secrets are read by more people than their data, and are in backups.
    for namespace in [&*space.name, "claviger-system"] {
        let get = [
            "get",
            "secrets",
            "--namespace",
            namespace,
            "--output",
            "jsonpath={.items[*].metadata}",
        ];
        found.extend(needles.find(
            "the metadata of Secrets",
            &cluster.kubectl(&get, "").await.unwrap(),
        ));
    }
    found.extend(needles.find(
        "the audit log",
        &std::fs::read_to_string(&cluster.audit).unwrap(),
    ));
    let process = format!("/proc/{}", operator.pid);
    for file in ["cmdline", "environ", "comm", "status"] {
        let text = std::fs::read(Path::new(&process).join(file)).unwrap();
        found.extend(needles.find(file, &String::from_utf8_lossy(&text)));
    }
    for descriptor in std::fs::read_dir(Path::new(&process).join("fd")).unwrap() {
        let Ok(target) = std::fs::read_link(descriptor.unwrap().path()) else {
            continue;
        };
        if target.is_file() && target != launcher_log(operator) {
            found.push(format!("the operator holds {} open", target.display()));
        }
    }
    found
}

fn launcher_log(operator: &Operator) -> std::path::PathBuf {
    std::fs::canonicalize(&operator.log).unwrap()
}

/// Injected answers: which request, and what it gets.
type Trap = (Method, String, bool, StatusCode, String);

/// Answers in the apiserver's stead, once each.
#[derive(Clone, Default)]
struct Traps(Arc<Mutex<Vec<Trap>>>);

impl Traps {
    fn set(&self, method: Method, path: &str, watch: bool, code: u16, body: String) {
        self.0.lock().unwrap().push((
            method,
            path.to_owned(),
            watch,
            StatusCode::from_u16(code).unwrap(),
            body,
        ));
    }

    fn judge(&self, seen: &Seen) -> Verdict {
        let mut traps = self.0.lock().unwrap();
        let hit = traps.iter().position(|(method, path, watch, ..)| {
            seen.method == *method && seen.path.ends_with(path.as_str()) && seen.watches() == *watch
        });
        match hit {
            Some(hit) => {
                let (.., code, body) = traps.remove(hit);
                Verdict::Answer(code, body)
            }
            None => Verdict::Pass,
        }
    }

    async fn sprung(&self) {
        crate::support::eventually(
            "the traps to be sprung",
            Duration::from_secs(40),
            async || {
                let left = self.0.lock().unwrap().clone();
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(format!(
                        "{:?}",
                        left.iter()
                            .map(|trap| (&trap.0, &trap.1, trap.2))
                            .collect::<Vec<_>>()
                    ))
                }
            },
        )
        .await;
    }
}

/// What a Secret holds that is read by more people than the values are, or stands in backups.
async fn of_vaults(needles: &Needles, space: &Space) -> Vec<String> {
    let mut found = Vec::new();
    let system = kube::Api::<Secret>::namespaced(space.client.clone(), "claviger-system");
    let all = space.secrets().list(&ListParams::default()).await.unwrap();
    let backups = system.list(&ListParams::default()).await.unwrap();
    let mut looked_at = 0;
    for secret in all.into_iter().chain(backups) {
        let own = [
            "claviger.dev/key-ring",
            "claviger.dev/secret-version",
            "claviger.dev/root-key-backup",
        ];
        if !secret
            .type_
            .as_deref()
            .is_some_and(|type_| own.contains(&type_))
        {
            continue;
        }
        looked_at += 1;
        let name = secret.name_any();
        found.extend(needles.find(&name, &serde_json::to_string(&secret).unwrap()));
        for ByteString(bytes) in secret.data.into_iter().flatten().map(|(_, bytes)| bytes) {
            found.extend(needles.find(&name, &String::from_utf8_lossy(&bytes)));
            found.extend(needles.find(&name, &hex(&bytes)));
            found.extend(needles.find(&name, &STANDARD.encode(&bytes)));
        }
    }
    assert!(looked_at > 20, "only {looked_at} objects of vaults");
    found
}

/// Everything that may be told of a value: of a key pair its public half, of a value nothing.
fn add_value(needles: &mut Needles, what: &str, value: &[u8]) {
    let text = String::from_utf8_lossy(value);
    if !text.contains("-----BEGIN") {
        return needles.add(what, value);
    }
    let mut private = false;
    for line in text.lines() {
        if line.starts_with("-----") {
            private = line.contains("BEGIN") && line.contains("PRIVATE KEY");
        } else if private && line.len() >= 24 {
            // The first line of a key names its algorithm and is the same for all.
            needles.add(what, &line.as_bytes()[line.len().min(40)..]);
            needles.add(what, line.as_bytes());
        }
    }
}

/// The keys and values of a vault as they are now.
async fn take_vault(
    needles: &mut Needles,
    space: &Space,
    vault: &str,
    identity: &Identity,
    roots: &RootKeys,
) -> usize {
    let keys = space.recovery(vault, identity).await;
    needles.add(&format!("the index key of {vault}"), keys.index.as_slice());
    for (version, key) in &keys.versions {
        needles.add(&format!("ring key {version} of {vault}"), key.as_slice());
    }
    let opened = space.opened(vault, roots).await;
    for ((secret, sequence), value) in &opened {
        add_value(needles, &format!("{vault}/{secret}/{sequence}"), value);
    }
    opened.len()
}

/// Declared secrets of every kind.
fn declared(follow: &str) -> Vec<Value> {
    let mut secrets = vec![
        json!({"name": "web", "generate": {"tls": {"commonName": "web", "dnsNames": ["web.shop.svc"]}}}),
        json!({"name": "deploy", "generate": {"ssh": {"comment": "deploy"}}}),
        json!({"name": "followed", "valueFrom": {"secretKeyRef": {"name": follow, "key": "value"}}}),
        json!({"name": "doomed", "generate": {}}),
        json!({"name": "unused", "generate": {"length": 64}}),
    ];
    for (alphabet, length) in [
        ("Alphanumeric", 40),
        ("AlphanumericSymbols", 40),
        ("Base64Url", 48),
        ("Hex", 64),
        ("LowerAlphanumeric", 40),
        ("Numeric", 60),
        ("Identifiable", 0),
        ("Uuid", 0),
    ] {
        let mut generate = json!({"alphabet": alphabet});
        if length > 0 {
            generate["length"] = json!(length);
        }
        secrets
            .push(json!({"name": alphabet, "generate": generate, "rotation": {"overlap": "1h"}}));
    }
    secrets
}

/// Templates that fail, each in a way of its own, with a value in their hands.
const FAILING: [&str; 12] = [
    "{{ secrets['Alphanumeric'] | b64decode }}",
    "{{ secrets['Uuid'] | b64decode | json }}",
    "{{ secrets['Alphanumeric'] ~ secrets['missing'] }}",
    "{{ secrets['Alphanumeric'] ~ previous['unused'] }}",
    "{{ secrets[secrets['Alphanumeric']] }}",
    "{{ secrets['Alphanumeric'] | nofilter }}",
    "{{ secrets['Alphanumeric'] + 1 }}",
    "{{ secrets['Alphanumeric'].nope.nope }}",
    "{{ secrets['Alphanumeric']() }}",
    "{% for one in secrets['Alphanumeric'] %}{{ one }}{% endfor %}",
    "{% include secrets['Alphanumeric'] %}",
    "{{ secrets['Alphanumeric']",
];

async fn live_vaults(format: &'static str) {
    let cluster = Arc::new(Cluster::start().await);
    cluster.install_with_keeper().await;
    let space = Space::on(Arc::clone(&cluster), "leak-vaults").await;
    let directory = cluster.directory.path();
    let identity = Identity::make(directory, "identity");
    let proxy = Proxy::start(&cluster).await;
    let traps = Traps::default();
    let mut canaries = Canaries::default();
    let judge = traps.clone();
    proxy.judge(move |seen| judge.judge(seen));
    let options = Options {
        restart_delay: "200ms",
        log_level: "trace",
        log_format: format,
        server: Some(proxy.url.clone()),
        more: vec![
            "--recovery-recipient".to_owned(),
            identity.recipient.clone(),
        ],
        ..Options::default()
    };
    let launcher = Launcher::new(&space, &options).await;
    let mut needles = Needles::default();
    let unreadable = |canary: &str| {
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "n"}, "data": canary})
            .to_string()
    };
    let refusal = |code: u16, reason: &str, canary: &str| {
        status(
            code,
            reason,
            &format!("Secret \"x\" is invalid: data[k]: Invalid value: \"{canary}\""),
        )
    };
    // The root key cannot be read at first, in every way.
    let root_path = "/secrets/claviger-root-key";
    for (code, body) in [
        (200, unreadable(&canaries.make("unreadable root key"))),
        (200, canaries.make("root key that is no JSON")),
        (500, canaries.make("failure with the root key")),
        (
            400,
            refusal(
                400,
                "BadRequest",
                &canaries.make("refusal with the root key"),
            ),
        ),
    ] {
        traps.set(Method::GET, root_path, false, code, body);
    }
    let operator = launcher.spawn();
    operator.leads().await;
    // Sources, and what is somebody else's.
    space
        .put_secret(
            "source",
            &[("value", "supplied-one-Zq7vX2mK9rT4wY8bN3cH6jL1")],
        )
        .await;
    space
        .put_secret("theirs", &[("KEY", "somebody-elses-password-8812-kmwq")])
        .await;
    space
        .put_secret("taken", &[("KEY", "somebody-elses-password-9913-wqkm")])
        .await;
    space.put_deployment("web").await;
    let all: Vec<Value> = declared("source")
        .iter()
        .map(|secret| json!({"key": secret["name"], "secret": secret["name"]}))
        .filter(|entry| entry["secret"] != "unused" && entry["secret"] != "doomed")
        .collect();
    let mut env = all.clone();
    env.push(json!({"key": "URL", "template": "postgres://app:{{ secrets['AlphanumericSymbols'] | urlencode }}@db/{{ {'k': secrets['Hex'], 'p': 'x'} | json }}"}));
    let sync = json!([
        {"target": {"name": "env"}, "data": env, "restart": [{"kind": "Deployment", "name": "web"}]},
        {"target": {"name": "theirs"}, "creationPolicy": "Merge", "data": [{"key": "OURS", "secret": "Hex"}]},
        {"target": {"name": "frozen", "immutable": true}, "data": all},
        {"target": {"name": "web", "type": "kubernetes.io/tls"}, "data": [
            {"key": "tls.crt", "secret": "web", "part": "Certificate"},
            {"key": "tls.key", "secret": "web", "part": "PrivateKey"},
        ]},
    ]);
    space
        .declare_vault(
            "payments",
            json!({"secrets": declared("source"), "sync": sync}),
        )
        .await;
    let status = space.vault_ready("payments").await;
    assert_eq!(status.secrets.unwrap().live, 13);
    // Whatever fails: templates, targets, sources.
    let mut failing = vec![
        json!({"target": {"name": "taken"}, "data": [{"key": "KEY", "secret": "Alphanumeric"}]}),
        json!({"target": {"name": "dockery", "type": "kubernetes.io/dockerconfigjson"}, "data": [{"key": ".dockerconfigjson", "secret": "Alphanumeric"}]}),
        json!({"target": {"name": "tlsy", "type": "kubernetes.io/tls"}, "data": [
            {"key": "tls.crt", "secret": "Alphanumeric", "part": "Certificate"},
            {"key": "tls.key", "secret": "Alphanumeric", "part": "PrivateKey"},
        ]}),
        json!({"target": {"name": "part"}, "data": [{"key": "k", "secret": "Alphanumeric", "part": "PrivateKey"}]}),
        json!({"target": {"name": "env"}, "data": [{"key": "k", "secret": "Alphanumeric"}]}),
    ];
    for (number, template) in FAILING.iter().enumerate() {
        failing.push(json!({"target": {"name": format!("broken-{number}")}, "data": [{"key": "k", "template": template}]}));
    }
    let long = format!(
        "{}{}",
        canaries.make("source that is too long"),
        "x".repeat(30_000)
    );
    space.put_secret("long", &[("value", &long)]).await;
    space
        .declare_vault(
            "failing",
            json!({"secrets": declared("long"), "sync": failing}),
        )
        .await;
    let failed = space
        .until_vault("failing", "failed in every way", |status| {
            let synced = |state| {
                status
                    .sync
                    .iter()
                    .filter(|sync| sync.state == Some(state))
                    .count()
            };
            synced(SyncState::Failed) >= 14 && says(&status.conditions, "Ready") == "False"
        })
        .await;
    println!(
        "{} of {} targets failed",
        failed
            .sync
            .iter()
            .filter(|sync| sync.state == Some(SyncState::Failed))
            .count(),
        failed.sync.len()
    );
    let mut taken = 0;
    for vault in ["payments", "failing"] {
        taken += take_vault(&mut needles, &space, vault, &identity, &space.roots().await).await;
    }

    // Turned, revoked, deleted, recovered, purged; the source changes; the ring turns; answers that
    // quote what was written.
    let now = jiff::Timestamp::now();
    let asked = |what: &str, secrets: &str| json!({"metadata": {"annotations": {(format!("claviger.dev/{what}-secrets")): secrets}}});
    for (method, path) in [
        (Method::PATCH, "/secrets/env"),
        (Method::PATCH, "/secrets/theirs"),
        (Method::PATCH, "/secrets/payments-key-ring"),
        (Method::PATCH, "/secretvaults/payments/status"),
        (Method::POST, "/secrets"),
    ] {
        let mut canary = |what: &str| canaries.make(&format!("{what} for {method} {path}"));
        for (code, body) in [
            (422, refusal(422, "Invalid", &canary("422"))),
            (403, denial(&canary("403"))),
            (200, unreadable(&canary("unreadable answer"))),
            (200, canary("answer that is no JSON")),
            (500, canary("500")),
        ] {
            traps.set(method.clone(), path, false, code, body);
        }
    }
    for round in 0..8 {
        let at = now + jiff::SignedDuration::from_secs(round);
        space
            .change_vault(
                "payments",
                asked(
                    "rotate",
                    &format!("Alphanumeric@{at},Hex@{at},web@{at},deploy@{at},Uuid@{at}"),
                ),
            )
            .await;
        let patch =
            json!({"metadata": {"annotations": {"claviger.dev/rotate-at": at.to_string()}}});
        space.change_vault("payments", patch).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    traps.sprung().await;
    space
        .put_secret(
            "source",
            &[("value", "supplied-two-Zq7vX2mK9rT4wY8bN3cH6jL1")],
        )
        .await;
    let at = jiff::Timestamp::now();
    space
        .change_vault("payments", asked("revoke", &format!("Numeric@{at}")))
        .await;
    space
        .until_data("env", "follow", |data| {
            data.get("followed")
                .is_some_and(|value| value.starts_with("supplied-two"))
        })
        .await;
    space.vault_ready("payments").await;
    let mut without: Vec<Value> = declared("source");
    without.retain(|secret| secret["name"] != "doomed");
    space
        .change_vault("payments", json!({"spec": {"secrets": without}}))
        .await;
    space
        .until_vault("payments", "without one", |status| {
            status.secrets.is_some_and(|counts| counts.deleted == 1)
        })
        .await;
    taken += take_vault(
        &mut needles,
        &space,
        "payments",
        &identity,
        &space.roots().await,
    )
    .await;
    let at = jiff::Timestamp::now();
    space
        .change_vault("payments", asked("purge", &format!("doomed@{at}")))
        .await;
    space
        .until_vault("payments", "without it", |status| {
            status.secrets.is_some_and(|counts| counts.deleted == 0)
        })
        .await;

    // Tampered with: attributes, an envelope, the ring.
    let entries: Vec<String> = space.entries("failing").await.into_keys().collect();
    let tamper = async |name: &str, patch: Value| {
        let patch = patch.to_string();
        let args = [
            "--as",
            KEEPER,
            "--namespace",
            &space.name,
            "patch",
            "secret",
            name,
            "--patch",
            &patch,
        ];
        cluster.kubectl(&args, "").await.unwrap();
    };
    // It stands in the annotation, where the test has put it, and may be told nowhere else.
    let canary = "cAnArYtamperedattributesxQ7zK9wE2rT5";
    tamper(
        &entries[0],
        json!({"metadata": {"annotations": {"claviger.dev/attributes": format!("{{{canary}")}}}),
    )
    .await;
    tamper(
        &entries[1],
        json!({"metadata": {"annotations": {"claviger.dev/envelope": "v1.1.x.y"}}}),
    )
    .await;
    space
        .until_vault("failing", "unreadable", |status| {
            status.secrets.is_some_and(|counts| counts.unreadable == 2)
        })
        .await;
    let ring = space.secrets().get("failing-key-ring").await.unwrap();
    let document = STANDARD.encode(&ring.data.unwrap()["ring"].0);
    tamper("failing-key-ring", json!({"stringData": {"ring": "{}"}})).await;
    space.vault_stalled("failing", "Unreadable").await;
    tamper("failing-key-ring", json!({"data": {"ring": document}})).await;
    space
        .until_vault("failing", "open again", |status| {
            ready(&status.conditions).is_some_and(|ready| {
                ready.reason != "Unreadable" || !ready.message.contains("key-ring")
            })
        })
        .await;
    let mut heard = Vec::new();
    for path in ["/metrics", "/readyz", "/livez", "/"] {
        heard.push(operator.get(path).await.unwrap());
    }

    // What the command line says of the root key: well used and badly.
    let root_key = space.root_key().await.unwrap();
    needles.add("the root key", &root_key);
    needles.add("the age identity", identity.secret.as_bytes());
    needles.add("the operator's token", launcher.token().as_bytes());
    let backup = directory.join("backup.age");
    let backup = backup.to_str().unwrap();
    let plain = directory.join("plain");
    std::fs::write(&plain, root_key).unwrap();
    let plain = plain.to_str().unwrap();
    let vault = format!("{}/payments", space.name);
    for args in [
        &[
            "backup",
            "--recipient",
            &identity.recipient,
            "--output",
            backup,
        ][..],
        &["backup", "--recipient", &identity.recipient],
        &["backup", "--recipient", &identity.secret],
        &["verify", "--identity", identity.file()],
        &["verify", "--identity", identity.file(), "--input", backup],
        &[
            "verify",
            "--identity",
            identity.file(),
            "--input",
            identity.file(),
        ],
        &["verify", "--identity", backup, "--input", backup],
        &["verify", "--identity", plain, "--input", backup],
        &["restore", "--identity", identity.file(), "--input", backup],
        &["restore", "--identity", identity.file(), "--input", plain],
        &["restore", "--identity", identity.file(), "--vault", &vault],
        &["restore", "--identity", &identity.secret, "--input", backup],
        &[
            "restore",
            "--identity",
            identity.file(),
            "--vault",
            &identity.secret,
        ],
        &[&identity.secret],
    ] {
        heard.push(match cluster.root_key(args).await {
            Ok(said) | Err(said) => said,
        });
    }
    for name in [
        "CLAVIGER_RECOVERY_RECIPIENTS",
        "CLAVIGER_KMS_SOCKET",
        "CLAVIGER_ROOT_KEY",
        "CLAVIGER_RING_GRACE",
    ] {
        heard.push(told(&["controller"], &[(name, &identity.secret)], "").await);
    }
    assert!(
        heard
            .iter()
            .any(|said| said.contains("it opens all of 2 vaults"))
    );
    let mut found = search(&needles, &space, &launcher, &operator, &heard).await;
    assert!(operator.stop().await);

    // The same under a KMS.
    let mut plugin = Plugin::prepare(directory);
    plugin.start().await;
    let mut more = with_kms(&plugin.socket()).more;
    more.extend(options.more.clone());
    let under_kms = Launcher::new(
        &space,
        &Options {
            more,
            ..options.clone()
        },
    )
    .await;
    let operator = under_kms.spawn();
    operator.leads().await;
    space
        .until_vault("payments", "under the KMS", |status| {
            status
                .key_ring
                .as_ref()
                .is_some_and(|ring| ring.root_key.as_deref() == Some("kms:key-1"))
        })
        .await;
    space.vault_ready("payments").await;
    taken += take_vault(&mut needles, &space, "payments", &identity, &plugin.roots()).await;
    needles.add("the key of the KMS", &plugin.key_bytes("key-1"));
    plugin.kill().await;
    let at = jiff::Timestamp::now();
    space
        .change_vault(
            "payments",
            json!({"metadata": {"annotations": {"claviger.dev/rotate-at": at.to_string()}}}),
        )
        .await;
    space
        .until_vault("payments", "without the KMS", |status| {
            ready(&status.conditions).is_some_and(|ready| ready.reason == "RootKeyUnavailable")
        })
        .await;
    plugin.start().await;
    space.vault_ready("payments").await;
    taken += take_vault(&mut needles, &space, "payments", &identity, &plugin.roots()).await;

    // The search, with everything that was ever seen.
    let public = [
        "ring",
        "mac",
        "payload",
        "recovery.age",
        "recovery.for",
        "root-key.age",
        "tls.crt",
    ];
    for (value, entry) in &*space.values.lock().unwrap() {
        if !public.contains(&entry.as_str()) {
            add_value(
                &mut needles,
                &format!("the value of {entry}"),
                value.as_bytes(),
            );
        }
    }
    for (what, canary) in &canaries.made {
        needles.add(&format!("the canary ({what})"), canary.as_bytes());
    }
    found.extend(search(&needles, &space, &under_kms, &operator, &heard).await);
    found.extend(needles.find("the log", &launcher.logged()));
    found.extend(needles.find(
        "the plugin's log",
        &std::fs::read_to_string(plugin.log()).unwrap(),
    ));
    found.extend(of_vaults(&needles, &space).await);
    let mut tampered = Needles::default();
    tampered.add("what was tampered with", canary.as_bytes());
    let statuses = [
        "get",
        "secretvaults,events",
        "--namespace",
        &space.name,
        "--output",
        "json",
    ];
    let statuses = cluster.kubectl(&statuses, "").await.unwrap();
    found.extend(tampered.find("a status", &statuses));
    found.extend(tampered.find("the log", &launcher.logged()));
    found.extend(tampered.find("the log", &under_kms.logged()));
    assert!(
        found.is_empty(),
        "{} leaks:\n{}",
        found.len(),
        found.join("\n")
    );

    // It does find: what is planted of each new kind, in each form.
    let told_of = launcher.logged();
    assert!(
        told_of.len() > 100_000 && told_of.contains("TRACE"),
        "{} bytes",
        told_of.len()
    );
    assert!(taken > 60, "{taken} entries were opened");
    let keys = space.recovery("payments", &identity).await;
    let synced = space.data("env").await;
    let inner_key = synced["web"]
        .split("PRIVATE KEY-----")
        .nth(1)
        .unwrap()
        .trim()
        .lines()
        .nth(1)
        .unwrap()
        .to_owned();
    let planted: [(&str, &[u8]); 8] = [
        ("the root key", &root_key),
        ("the index key", keys.index.as_slice()),
        (
            "a ring key",
            keys.versions.values().next_back().unwrap().as_slice(),
        ),
        ("the identity", identity.secret.as_bytes()),
        ("the KMS's key", &plugin.key_bytes("key-1")),
        ("a value", synced["Hex"].as_bytes()),
        ("a private key", inner_key.as_bytes()),
        ("a rendered template", synced["URL"].as_bytes()),
    ];
    for (what, secret) in planted {
        let raw = String::from_utf8_lossy(secret).into_owned();
        let mut forms = vec![
            STANDARD.encode(secret),
            hex(secret),
            format!("{secret:?}"),
            URL_SAFE_NO_PAD.encode(secret),
        ];
        forms.extend(str::from_utf8(secret).is_ok().then_some(raw));
        for form in forms {
            assert!(
                !needles
                    .find("planted", &format!("{format} {form} more"))
                    .is_empty(),
                "not found: {what}"
            );
        }
    }
    assert!(!told_of.contains("panicked") && !under_kms.logged().contains("panicked"));
    println!(
        "{format}: {} forms looked for in {} bytes of log; {taken} entries, {} values, {} canaries",
        needles.len(),
        told_of.len() + under_kms.logged().len(),
        space.values.lock().unwrap().len(),
        canaries.made.len()
    );
    assert!(operator.stop().await);
}

fn denial(canary: &str) -> String {
    let words = format!(
        "admission webhook \"guard.example.com\" denied the request: value {canary} is too short"
    );
    status(403, "Forbidden", &words)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_vault_is_told_in_text_logs_or_anywhere_else() {
    live_vaults("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_vault_is_told_in_json_logs_or_anywhere_else() {
    live_vaults("json").await;
}

async fn live(format: &'static str) {
    let space = Space::new("leak").await;
    let (_, seal) = {
        // Makes the seal key.
        let first = Operator::start(&space, Options::default()).await;
        first.kill().await;
        seal_key(&space).await
    };
    let proxy = Proxy::start(&space.cluster).await;
    let traps = Traps::default();
    let mut canaries = Canaries::default();
    let judge = traps.clone();
    let flooded = Arc::new(AtomicBool::new(true));
    let cut = Arc::clone(&flooded);
    proxy.judge(move |seen| {
        // Watches end often, so that there are lists and new watches to be answered wrongly.
        match judge.judge(seen) {
            Verdict::Pass if seen.watches() && cut.load(Ordering::SeqCst) => {
                Verdict::Cut(Duration::from_millis(1500))
            }
            verdict => verdict,
        }
    });
    let options = Options {
        host_reload_delay: "200ms",
        restart_delay: "200ms",
        log_level: "trace",
        log_format: format,
        server: Some(proxy.url.clone()),
        identity: Some("the-same-again".to_owned()),
        ..Options::default()
    };
    let launcher = Launcher::new(&space, &options).await;

    // What cannot be read, at the very start: the seal key, and a list of Secrets.
    let unreadable = |canary: &str| {
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "n"}, "data": canary})
            .to_string()
    };
    let listed = |canary: &str| {
        let item = json!({"metadata": {"name": "n", "resourceVersion": "1"}, "data": canary});
        json!({"kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [item]}).to_string()
    };
    let told = |canary: &str| {
        let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "n", "resourceVersion": "1"}, "data": canary});
        format!("{}\n", json!({"type": "MODIFIED", "object": secret}))
    };
    let seal_path = "/secrets/claviger-seal-key";
    traps.set(
        Method::GET,
        seal_path,
        false,
        200,
        unreadable(&canaries.make("unreadable seal key")),
    );
    traps.set(
        Method::GET,
        seal_path,
        false,
        200,
        canaries.make("seal key that is no JSON"),
    );
    traps.set(
        Method::GET,
        seal_path,
        false,
        500,
        canaries.make("failure with the seal key"),
    );
    traps.set(
        Method::GET,
        seal_path,
        false,
        400,
        status(
            400,
            "BadRequest",
            &canaries.make("refusal with the seal key"),
        ),
    );
    traps.set(
        Method::GET,
        "/secrets",
        false,
        200,
        listed(&canaries.make("unreadable list")),
    );
    traps.set(
        Method::GET,
        "/secrets",
        false,
        200,
        canaries.make("list that is no JSON"),
    );
    traps.set(
        Method::GET,
        "/secrets",
        true,
        200,
        told(&canaries.make("unreadable event")),
    );
    traps.set(
        Method::GET,
        "/secrets",
        true,
        200,
        format!("{}\n", canaries.make("event that is no JSON")),
    );
    let expired = status(410, "Expired", &canaries.make("end of a watch"));
    traps.set(
        Method::GET,
        "/secrets",
        true,
        200,
        format!("{{\"type\":\"ERROR\",\"object\":{expired}}}\n"),
    );
    let operator = launcher.spawn();
    operator.leads().await;

    // Minted, handed out, restarted.
    space.put_deployment("web").await;
    let handed = json!([{"secretRef": {"name": "client", "key": "KEY"}, "restart": [{"kind": "Deployment", "name": "web"}]}]);
    space
        .declare(
            "minted",
            host_key(
                "minted",
                json!({"rotation": {"overlap": "2s"}, "distributeTo": handed}),
            ),
        )
        .await;
    space.declare("function", json!({
        "storage": {"secret": {"name": "keys"}}, "scope": "Function", "functionName": "Orders",
    })).await;
    space
        .declare(
            "master",
            json!({"storage": {"secret": {"name": "keys"}}, "scope": "Master"}),
        )
        .await;
    space.declare("system", json!({"storage": {"secret": {"name": "keys"}}, "scope": "System", "keyName": "durabletask_extension"})).await;
    // Adopted.
    let adopted = [
        ("host.master", "adopted-master-Zq7vX2mK9rT4wY8bN3cH6j"),
        (
            "host.function.adopted",
            "adopted-host-Zq7vX2mK9rT4wY8bN3cH6j",
        ),
    ];
    space.put_secret("old-keys", &adopted).await;
    space.declare("adopted", json!({"storage": {"secret": {"name": "old-keys"}}, "scope": "Host", "keyName": "adopted"})).await;
    // Supplied.
    space
        .put_secret(
            "source",
            &[("value", "supplied-one-Zq7vX2mK9rT4wY8bN3cH6jL1")],
        )
        .await;
    let from = |secret: &str| json!({"valueFrom": {"secretKeyRef": {"name": secret, "key": "value"}}, "rotation": {"overlap": "1s"}});
    space
        .declare("supplied", host_key("supplied", from("source")))
        .await;
    for key in [
        "minted", "function", "master", "system", "adopted", "supplied",
    ] {
        space.ready(key).await;
    }
    // Refused: values that cannot serve, each of them somebody's password perhaps.
    let minted = space.data("keys").await["host.function.minted"].clone();
    let wrong = [
        ("weak", "hunter2hunter2".to_owned()),
        (
            "line-end",
            format!("{}\n", canaries.make("value with a line end")),
        ),
        (
            "space",
            format!("{} and more", canaries.make("value with a space")),
        ),
        (
            "not-ascii",
            format!("{}ü", canaries.make("value with an umlaut")),
        ),
        ("mistyped", minted.replacen(&minted[..3], "xyz", 1)),
        ("long", canaries.make("value that is too long").repeat(400)),
    ];
    for (name, value) in &wrong {
        space
            .put_secret(&format!("source-{name}"), &[("value", value)])
            .await;
        space
            .declare(name, host_key(name, from(&format!("source-{name}"))))
            .await;
    }
    for (name, _) in &wrong {
        space
            .until(name, "refused", |status| {
                condition(status, "Ready") == "False"
            })
            .await;
    }
    // Conflicts: two for one entry, and an entry of somebody else's.
    space.declare("second", host_key("minted", json!({}))).await;
    space.not_ready("second", "Conflict").await;
    space
        .put_secret("theirs", &[("KEY", "somebody-elses-password-8812-kmwq")])
        .await;
    let theirs = json!({"distributeTo": [{"secretRef": {"name": "theirs", "key": "KEY"}}]});
    space
        .declare("intruder", host_key("intruder", theirs))
        .await;
    space.not_ready("intruder", "TargetConflict").await;

    // Turned, revoked; the source changes.
    space
        .change("minted", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    space
        .put_secret(
            "source",
            &[("value", "supplied-two-Zq7vX2mK9rT4wY8bN3cH6jL1")],
        )
        .await;
    space
        .change("function", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let at = |generation| {
        move |status: &claviger::api::v1alpha1::FunctionKeyStatus| {
            condition(status, "Ready") == "True"
                && status
                    .rotation
                    .as_ref()
                    .is_some_and(|rotation| rotation.generation == generation)
        }
    };
    for key in ["minted", "function", "supplied"] {
        space.until(key, "turned", at(2)).await;
    }
    space
        .change(
            "minted",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    space
        .change(
            "master",
            json!({"spec": {"rotation": {"revokeGeneration": 1}}}),
        )
        .await;
    space.until("minted", "revoked", at(3)).await;
    space.until("master", "revoked", at(2)).await;

    // The host drops one key and renews another.
    let mut data = space.data("keys").await;
    let dropped = data.remove("functions.orders.default").unwrap();
    data.insert(
        "host.function.minted".to_owned(),
        "renewed-by-the-host-Zq7vX2mK9rT4wY8bN3".to_owned(),
    );
    data.insert(
        "host.function.supplied".to_owned(),
        "undone-of-the-host-Zq7vX2mK9rT4wY8bN3".to_owned(),
    );
    space.host_writes("keys", &data).await;
    space
        .until_data("keys", "be mended", |data| {
            data.get("functions.orders.default") == Some(&dropped)
                && data["host.function.supplied"].starts_with("supplied-two")
        })
        .await;
    space.until("minted", "adopted anew", at(4)).await;

    // Refused by the apiserver, in words that quote what was written; and answers nobody can read.
    let quote = |code: u16, reason: &str, canary: String| {
        status(
            code,
            reason,
            &format!("Secret \"keys\" is invalid: data[x]: Invalid value: \"{canary}\""),
        )
    };
    let denied = |canary: &str| {
        format!(
            "admission webhook \"guard.example.com\" denied the request: value {canary} is too short"
        )
    };
    let keys = format!("/namespaces/{}/secrets/keys", space.name);
    let client = format!("/namespaces/{}/secrets/client", space.name);
    for path in [&keys, &client] {
        traps.set(
            Method::PATCH,
            path,
            false,
            422,
            quote(422, "Invalid", canaries.make(&format!("422 for {path}"))),
        );
        traps.set(
            Method::PATCH,
            path,
            false,
            403,
            status(
                403,
                "Forbidden",
                &denied(&canaries.make(&format!("403 for {path}"))),
            ),
        );
        traps.set(
            Method::PATCH,
            path,
            false,
            400,
            status(
                400,
                "BadRequest",
                &denied(&canaries.make(&format!("400 for {path}"))),
            ),
        );
        traps.set(
            Method::PATCH,
            path,
            false,
            200,
            unreadable(&canaries.make(&format!("unreadable answer for {path}"))),
        );
        traps.set(
            Method::PATCH,
            path,
            false,
            200,
            canaries.make(&format!("no JSON for {path}")),
        );
        traps.set(
            Method::PATCH,
            path,
            false,
            500,
            canaries.make(&format!("500 for {path}")),
        );
        traps.set(
            Method::PATCH,
            path,
            false,
            409,
            status(409, "Conflict", &canaries.make(&format!("409 for {path}"))),
        );
        traps.set(
            Method::GET,
            path,
            false,
            200,
            unreadable(&canaries.make(&format!("unreadable {path}"))),
        );
    }
    let status_path = "/functionkeys/minted/status";
    traps.set(
        Method::PATCH,
        status_path,
        false,
        200,
        canaries.make("status that is no JSON"),
    );
    traps.set(
        Method::PATCH,
        status_path,
        false,
        422,
        quote(422, "Invalid", canaries.make("status refused")),
    );
    traps.set(
        Method::PATCH,
        "/deployments/web",
        false,
        422,
        quote(422, "Invalid", canaries.make("restart refused")),
    );
    let lease_path = format!("/leases/{}", launcher.lease());
    traps.set(
        Method::PUT,
        &lease_path,
        false,
        200,
        json!({"spec": canaries.make("unreadable lease")}).to_string(),
    );
    for path in ["/secrets", "/configmaps"] {
        let expired = status(
            410,
            "Expired",
            &canaries.make(&format!("end of a watch at {path}")),
        );
        traps.set(
            Method::GET,
            path,
            true,
            200,
            format!("{{\"type\":\"ERROR\",\"object\":{expired}}}\n"),
        );
        traps.set(
            Method::GET,
            path,
            false,
            200,
            listed(&canaries.make(&format!("unreadable list at {path}"))),
        );
        traps.set(
            Method::GET,
            path,
            true,
            200,
            told(&canaries.make(&format!("unreadable event at {path}"))),
        );
        traps.set(
            Method::GET,
            path,
            true,
            403,
            status(
                403,
                "Forbidden",
                &denied(&canaries.make(&format!("403 at {path}"))),
            ),
        );
    }
    for generation in 5..9 {
        space
            .change(
                "minted",
                json!({"spec": {"rotation": {"generation": generation}}}),
            )
            .await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    let heard_while = [
        operator.get("/metrics").await.unwrap(),
        operator.get("/readyz").await.unwrap(),
    ];
    traps.sprung().await;
    // A source that cannot be read.
    traps.set(
        Method::GET,
        "/secrets/source",
        false,
        200,
        unreadable(&canaries.make("unreadable source")),
    );
    space
        .put_secret(
            "source",
            &[("value", "supplied-three-Zq7vX2mK9rT4wY8bN3cH6jL1")],
        )
        .await;
    traps.sprung().await;
    flooded.store(false, Ordering::SeqCst);
    for key in ["minted", "function", "supplied"] {
        space.ready(key).await;
    }
    // Taken back.
    for key in ["adopted", "system", "second"] {
        space.undeclare(key).await;
    }
    space
        .until_data("old-keys", "be let go", |data| {
            !data.contains_key("host.function.adopted")
        })
        .await;
    space
        .keys()
        .patch(
            "function",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"suspend": true}})),
        )
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    // The search.
    let mut needles = Needles::default();
    for (value, entry) in &*space.values.lock().unwrap() {
        needles.add(&format!("the value of {entry}"), value.as_bytes());
    }
    let values = needles.len();
    for (what, canary) in &canaries.made {
        needles.add(&format!("the canary ({what})"), canary.as_bytes());
    }
    needles.add("the seal key", &seal);
    needles.add("the operator's token", launcher.token().as_bytes());
    let mut heard = heard_while.to_vec();
    for path in ["/metrics", "/readyz", "/livez", "/"] {
        heard.push(operator.get(path).await.unwrap());
    }
    let found = search(&needles, &space, &launcher, &operator, &heard).await;
    let log = launcher.logged();
    assert!(
        found.is_empty(),
        "{} leaks:\n{}",
        found.len(),
        found.join("\n")
    );
    // The search does find: what is in every log, and a value planted in one.
    assert!(values >= 20 * 6, "{values} forms of values");
    assert!(
        log.len() > 100_000 && log.contains("TRACE"),
        "the log is not at its most verbose: {} bytes",
        log.len()
    );
    let planted = space.data("keys").await["host.function.minted"].clone();
    for form in [
        planted.clone(),
        STANDARD.encode(&planted),
        format!("{:?}", planted.as_bytes()),
        hex(planted.as_bytes()),
    ] {
        assert!(
            !needles
                .find("a planted log", &format!("{log} {form} more"))
                .is_empty(),
            "not found: {form}"
        );
    }
    assert!(!log.contains("panicked"));
    let forms = needles.len();
    println!(
        "{format}: {forms} forms of {} secrets looked for in {} bytes of log",
        space.values.lock().unwrap().len() + canaries.made.len() + 2,
        log.len()
    );
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_is_told_in_text_logs_or_anywhere_else() {
    live("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_is_told_in_json_logs_or_anywhere_else() {
    live("json").await;
}

/// Runs the binary; answers everything it printed.
async fn told(args: &[&str], environment: &[(&str, &str)], input: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut child = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(args)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended without reading.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_repeats_no_value_that_it_is_given() {
    let mut needles = Needles::default();
    let mut values: Vec<String> = Vec::new();
    for scope in ["function", "host", "system", "master"] {
        let minted = told(&["key", "mint", "--scope", scope], &[], "").await;
        values.push(minted.trim().to_owned());
    }
    values.push(values[0].replacen(&values[0][..3], "xyz", 1));
    values.push("hunter2-kq88-pasted-by-mistake".to_owned());
    for value in &values {
        needles.add("a value", value.as_bytes());
    }
    let mut told_all = Vec::new();
    let all = values.join("\n");
    for args in [
        &["key", "inspect"][..],
        &["key", "verify", "--scope", "host"],
        &["key", "verify", "--scope", "master"],
    ] {
        let said = told(args, &[], &all).await;
        assert!(!said.is_empty());
        told_all.push((args.join(" "), said));
    }
    for value in &values {
        let flag = format!("--{value}");
        let long = format!("--scope={value}");
        for args in [
            &[value.as_str()][..],
            &["key", value],
            &["key", "inspect", value],
            &["key", "inspect", &flag],
            &["key", "verify", value],
            &["key", "verify", "--scope", value],
            &["key", "verify", &long],
            &["key", "verify", "--scope", "host", value],
            &["key", "mint", "--scope", "host", "--count", value],
            &["key", "mint", "--scope", value],
            &["crds", value],
            &["controller", value],
            &["controller", "--admin-address", value],
            &["controller", "--host-reload-delay", value],
            &["controller", "--log-format", value],
            &["controller", "--log-level", value],
            &["controller", "--workers", value],
            &["run", &flag],
            &["status", value],
            &["rotate", "name", value],
            &["help", value],
        ] {
            let said = told(args, &[], "").await;
            told_all.push((args[..args.len() - 1].join(" "), said));
        }
        for name in [
            "CLAVIGER_ADMIN_ADDRESS",
            "CLAVIGER_LOG_FORMAT",
            "CLAVIGER_WORKERS",
            "CLAVIGER_RESTART_DELAY",
        ] {
            told_all.push((
                name.to_owned(),
                told(&["controller"], &[(name, value)], "").await,
            ));
        }
    }
    let found: Vec<String> = told_all
        .iter()
        .flat_map(|(args, said)| needles.find(args, said))
        .collect();
    assert!(
        found.is_empty(),
        "{} leaks:\n{}",
        found.len(),
        found.join("\n")
    );
    assert!(
        !needles
            .find("a planted text", &format!("… {} …", values[0]))
            .is_empty()
    );
}
