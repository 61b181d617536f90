//! The CA: minted once, turned with overlap, published everywhere, and what clients make of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use claviger::{ca::certificate, clock, k8s::ca};
use jiff::SignedDuration;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Namespace, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    facts::A_WHILE,
    support::{
        Cluster, Operator, Options, Space,
        actors::{Act, Actor},
        control_plane::{SYSTEM, run},
        eventually,
        operator::Launcher,
        server::{NAME, Server, get},
        space::PATIENCE,
    },
};

/// A control plane of one's own with the chart: the CA is the install's, and so other operators' too.
async fn install(values: &[&str]) -> Arc<Cluster> {
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, values).await;
    Arc::new(cluster)
}

/// An operator that looks after all namespaces, as the chart runs it by default.
fn everywhere(more: &[&str]) -> Options {
    Options {
        namespaces: vec![String::new()],
        identity: Some("the-one".to_owned()),
        more: more.iter().map(|&arg| arg.to_owned()).collect(),
        ..Options::default()
    }
}

fn config_maps(client: &Client, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), namespace)
}

async fn make_namespace(client: &Client, name: &str) {
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
}

async fn authority(client: &Client) -> Option<ca::Stored> {
    ca::read(client, SYSTEM).await.unwrap()
}

/// What is published in a namespace, once it is there.
async fn published(client: &Client, namespace: &str) -> String {
    let what = format!("the roots in namespace {namespace}");
    eventually(&what, PATIENCE, async || {
        let found = config_maps(client, namespace).get_opt(ca::NAME).await;
        found
            .unwrap()
            .and_then(|map| map.data?.remove(ca::ENTRY))
            .ok_or_else(|| "nothing".to_owned())
    })
    .await
}

/// Waits until in all namespaces stands what should: the public roots and these versions of the CA.
async fn published_everywhere(client: &Client) -> String {
    eventually("the roots in all namespaces", PATIENCE, async || {
        let stored = authority(client).await.ok_or("no CA")?;
        let namespaces = Api::<Namespace>::all(client.clone());
        let namespaces = namespaces.list(&ListParams::default()).await.unwrap();
        let mut texts = BTreeSet::new();
        for namespace in namespaces {
            let name = namespace.name_any();
            let map = config_maps(client, &name).get_opt(ca::NAME).await.unwrap();
            let mut map = map.ok_or_else(|| format!("none in {name}"))?;
            let data = map.data.take().unwrap_or_default();
            let labelled = map.labels().get("claviger.dev/content").map(String::as_str);
            if data.len() != 1 || labelled != Some("ca-roots") {
                return Err(format!("{name} has {:?}", data.keys()));
            }
            texts.extend(data.into_values());
        }
        let text = texts.pop_first().ok_or("no namespace")?;
        let whole = stored
            .issuers
            .iter()
            .all(|issuer| text.contains(&issuer.certificate));
        let count = text.matches("BEGIN CERTIFICATE").count();
        if texts.is_empty() && whole && count > 100 + stored.issuers.len() {
            Ok(text)
        } else {
            Err(format!("{} other texts, {count} certificates", texts.len()))
        }
    })
    .await
}

/// Every write of Claviger to the CA's objects so far, with the answer's code.
fn writes(cluster: &Cluster) -> Vec<String> {
    let log = std::fs::read_to_string(&cluster.audit).unwrap();
    log.lines()
        .filter(|line| line.contains(ca::NAME))
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| {
            line["objectRef"]["name"] == ca::NAME
                && line["user"]["username"] == "system:serviceaccount:claviger-system:claviger"
        })
        .filter_map(|line| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (verb, object) = (text(&line["verb"]), &line["objectRef"]);
            let code = &line["responseStatus"]["code"];
            ["create", "update", "patch", "delete"]
                .contains(&verb.as_str())
                .then(|| {
                    let (namespace, kind) = (text(&object["namespace"]), text(&object["resource"]));
                    format!("{verb} {namespace}/{kind} {code}")
                })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_a_time_mint_one_ca_and_publish_it_in_every_namespace() {
    let cluster = install(&[]).await;
    let space = Space::on(Arc::clone(&cluster), "roots").await;
    let client = &space.client;
    // Each has a lease of its own: both lead.
    let (one, two) = (
        Launcher::new(&space, &everywhere(&[])).await,
        Launcher::new(&space, &everywhere(&[])).await,
    );
    let operators = [one.spawn(), two.spawn()];
    for operator in &operators {
        operator.leads().await;
    }
    let text = published_everywhere(client).await;
    make_namespace(client, "later").await;
    assert_eq!(published(client, "later").await, text);
    let stored = authority(client).await.unwrap();
    assert_eq!(stored.issuers.len(), 1);
    let made = |kind: &str, verb: &str| {
        let done: Vec<String> = writes(&cluster)
            .into_iter()
            .filter(|write| {
                write.contains(kind) && write.starts_with(verb) && write.contains(" 20")
            })
            .collect();
        let namespaces: BTreeSet<&String> = done.iter().collect();
        assert_eq!(
            namespaces.len(),
            done.len(),
            "twice in one namespace: {done:?}"
        );
        done.len()
    };
    assert_eq!(made("secrets", "create"), 1);
    assert_eq!(made("secrets", "patch"), 0);
    assert!(made("configmaps", "create") >= 6);
    assert_eq!(made("configmaps", "patch"), 0);
    for operator in operators {
        operator.kill().await;
    }
    // A start with nothing to do writes nothing.
    let before = writes(&cluster);
    let operator = one.spawn();
    operator.leads().await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(writes(&cluster), before);
    assert_eq!(authority(client).await.unwrap().version, stored.version);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_make_of_the_published_roots_is_put_back_and_what_is_theirs_left_alone() {
    // The policy would not let them.
    let cluster = install(&["policies.enabled=false"]).await;
    let space = Space::on(Arc::clone(&cluster), "drift").await;
    let client = &space.client;
    let maps = space.config_maps();
    make_namespace(client, "foreign").await;
    let theirs: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": ca::NAME}, "data": {"ca.crt": "theirs"},
    }))
    .unwrap();
    let foreign = config_maps(client, "foreign");
    foreign
        .create(&PostParams::default(), &theirs)
        .await
        .unwrap();
    let operator = Operator::start(&space, everywhere(&[])).await;
    let text = published(client, &space.name).await;
    let marks = async || {
        let map = maps.get(ca::NAME).await.unwrap();
        let digest = map.annotations().get("claviger.dev/roots").cloned();
        let labels = map.labels().clone();
        (map.data, map.binary_data, labels, digest)
    };
    let whole = marks().await;
    for change in [
        json!({"data": {"ca.crt": "evil"}}),
        json!({"data": {"ca.crt": null}}),
        json!({"data": {"other.crt": text}}),
        json!({"binaryData": {"more": "AAAA"}}),
        json!({"metadata": {"labels": {"claviger.dev/content": null}}}),
        json!({"data": {"ca.crt": "evil"}, "immutable": true}),
        json!({"metadata": {"annotations": {"claviger.dev/roots": "0"}}}),
        json!({"metadata": {"annotations": {"claviger.dev/roots": null}}, "data": null}),
    ] {
        // Even by somebody who goes by Claviger's name.
        let params = PatchParams {
            field_manager: Some("claviger".to_owned()),
            ..PatchParams::default()
        };
        maps.patch(ca::NAME, &params, &Patch::Merge(&change))
            .await
            .unwrap();
        eventually(&format!("{change} to be undone"), PATIENCE, async || {
            let now = marks().await;
            if now == whole {
                Ok(())
            } else {
                Err(format!("{:?}", now.2))
            }
        })
        .await;
    }
    maps.delete(ca::NAME, &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(published(client, &space.name).await, text);
    // What stands there before us is not ours.
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(published(client, "foreign").await, "theirs");
    assert!(operator.logged().contains("is left alone"));
    foreign
        .delete(ca::NAME, &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(published(client, "foreign").await, text);
    // A namespace that goes takes it along, and nobody minds.
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces
        .delete("foreign", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the namespace to go", PATIENCE, async || {
        match namespaces.get_opt("foreign").await.unwrap() {
            None => Ok(()),
            Some(_) => Err("still there".to_owned()),
        }
    })
    .await;
    make_namespace(client, "foreign").await;
    assert_eq!(published(client, "foreign").await, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_between_its_writes_is_carried_on_by_the_next() {
    let cluster = install(&[]).await;
    let space = Space::on(Arc::clone(&cluster), "killed").await;
    let client = &space.client;
    let many: Vec<String> = (0..24).map(|number| format!("many-{number}")).collect();
    for name in &many {
        make_namespace(client, name).await;
    }
    let launcher = Launcher::new(&space, &everywhere(&["--public-roots=omit"])).await;
    let there = async || {
        let mut there = 0;
        for name in &many {
            let found = config_maps(client, name).get_metadata_opt(ca::NAME).await;
            there += usize::from(found.unwrap().is_some());
        }
        there
    };
    let (mut halves, mut minted) = (0, None);
    for round in 0..8 {
        for name in &many {
            let _ = config_maps(client, name)
                .delete(ca::NAME, &DeleteParams::default())
                .await;
        }
        let operator = launcher.spawn();
        let begun = Instant::now();
        // The first dies as soon as the CA is there, the others when something was published.
        while begun.elapsed() < PATIENCE {
            let done = if round == 0 {
                authority(client).await.is_some()
            } else {
                config_maps(client, &many[0])
                    .get_opt(ca::NAME)
                    .await
                    .unwrap()
                    .is_some()
                    || config_maps(client, &many[12])
                        .get_opt(ca::NAME)
                        .await
                        .unwrap()
                        .is_some()
            };
            if done {
                break;
            }
        }
        operator.kill().await;
        halves += usize::from(there().await < many.len());
        let stored = authority(client).await.unwrap();
        let minted = minted.get_or_insert_with(|| stored.version.clone());
        assert_eq!(stored.version, *minted);
    }
    assert!(halves > 0, "nobody was killed half-way");
    let operator = launcher.spawn();
    operator.leads().await;
    for name in &many {
        let text = published(client, name).await;
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1);
    }
    assert_eq!(authority(client).await.unwrap().version, minted.unwrap());
    assert_eq!(
        writes(&cluster)
            .iter()
            .filter(|write| write.contains("secrets"))
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_turns_with_both_versions_published_and_every_connection_succeeds() {
    let cluster = install(&[]).await;
    let space = Space::on(Arc::clone(&cluster), "turning").await;
    let client = space.client.clone();
    let times = ["--ca-lifetime=36s", "--ca-lead=6s", "--leaf-lifetime=3s"];
    let operator = Operator::start(&space, everywhere(&times)).await;
    let mut bundle = published(&client, &space.name).await;
    let server = Server::start(&cluster, &client, &times[2..]).await;
    let (mut read, mut signed_by, mut seen) = (Instant::now(), BTreeSet::new(), BTreeSet::new());
    let mut connections = 0_u32;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_mins(1) {
        // A program that reads its roots every four seconds.
        if read.elapsed() > Duration::from_secs(4) {
            bundle = published(&client, &space.name).await;
            read = Instant::now();
        }
        let stored = authority(&client).await.unwrap();
        let numbers: Vec<u64> = stored
            .versions()
            .iter()
            .map(|version| version.number)
            .collect();
        assert!(numbers.len() <= 2, "{numbers:?}");
        seen.insert(numbers);
        let stream = server.connect("payments-vault.shop.svc", &bundle).await;
        let stream = stream.unwrap_or_else(|error| panic!("{error}\n{}", operator.logged()));
        let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
        for issuer in &stored.issuers {
            let name = issuer.subject.as_bytes();
            if leaf.windows(name.len()).any(|window| window == name) {
                signed_by.insert(issuer.version.number);
            }
        }
        connections += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(connections > 50);
    assert!(signed_by.len() >= 2, "signed by {signed_by:?}; {seen:?}");
    assert!(
        seen.contains(&vec![1, 2]) && seen.contains(&vec![2]),
        "{seen:?}"
    );
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_trust_the_published_roots_connect_and_no_name_outside_the_constraints_passes()
{
    let cluster = install(&["domain=keys.example.com"]).await;
    let space = Space::on(Arc::clone(&cluster), "clients").await;
    let client = &space.client;
    let domain = "--domain=keys.example.com";
    let _operator = Operator::start(&space, everywhere(&[domain])).await;
    let bundle = published(client, &space.name).await;
    let server = Server::start(&cluster, client, &[domain]).await;
    // An unmodified client that knows nothing but the bundle and the address.
    let file = cluster.directory.path().join("ca.crt");
    std::fs::write(&file, &bundle).unwrap();
    for name in [
        NAME,
        "claviger.claviger-system.svc.cluster.local",
        "payments-vault.shop.svc",
        "payments-vault--shop.keys.example.com",
    ] {
        for protocol in ["--http1.1", "--http2"] {
            let to = format!("{name}:{}:127.0.0.1", server.address.port());
            let url = format!("https://{name}:{}/secrets/x", server.address.port());
            let answer = run(
                Command::new("curl")
                    .args([
                        "--silent",
                        "--show-error",
                        "--include",
                        protocol,
                        "--cacert",
                    ])
                    .arg(&file)
                    .args(["--resolve", &to, &url]),
                "",
            )
            .await
            .unwrap();
            assert!(answer.contains(" 401 "), "{answer}");
        }
    }
    // Who trusts the Web only is not taken in, and the Web is no name of ours.
    let web: String = bundle.replace(&authority(client).await.unwrap().issuers[0].certificate, "");
    let error = server.connect(NAME, &web).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    assert!(server.connect("vault.azure.net", &bundle).await.is_err());
    // Whoever holds the CA's key still cannot be somebody else.
    let stored = authority(client).await.unwrap();
    let now = clock::now();
    for (name, passes) in [
        ("a.shop.svc", true),
        ("a.keys.example.com", true),
        ("vault.azure.net", false),
        ("kubernetes.default", false),
        ("10.0.0.1", false),
    ] {
        let end = now + SignedDuration::from_hours(1);
        let leaf = certificate::leaf(&stored.issuers[0], &[name.to_owned()], now, end).unwrap();
        let path = cluster.directory.path().join("leaf.crt");
        std::fs::write(&path, claviger::ca::roots::pem(&leaf.certificate)).unwrap();
        let verified = run(
            Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
                .args([&file, &path]),
            "",
        )
        .await;
        assert_eq!(verified.is_ok(), passes, "{name}: {verified:?}");
    }
}

/// A self-signed certificate for a name, as cert-manager keeps one.
fn given(name: &str) -> (Secret, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new([name.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let entry = |text: String| ByteString(text.into_bytes());
    let data = BTreeMap::from([
        ("tls.crt".to_owned(), entry(made.pem())),
        ("tls.key".to_owned(), entry(key.serialize_pem())),
    ]);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some("front".to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    (secret, made.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_certificate_is_read_again_when_it_changes_and_connections_stay() {
    let cluster = install(&["server.tlsSecret=front"]).await;
    let space = Space::on(Arc::clone(&cluster), "given").await;
    let client = &space.client;
    let _operator = Operator::start(&space, everywhere(&[])).await;
    let own = published(client, &space.name).await;
    let flags = ["--tls-secret=front", "--server-name=login.example.com"];
    let server = Server::run(&cluster, client, "claviger-server", "server", &flags).await;
    eventually("the server to miss its certificate", PATIENCE, async || {
        let answer = server.admin("/readyz").await?;
        if answer.contains("waiting for the certificate, Secret front")
            && !answer.contains("the CA")
        {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
    let secrets = Api::<Secret>::namespaced(client.clone(), SYSTEM);
    let (first, trusted) = given("login.example.com");
    secrets
        .create(&PostParams::default(), &first)
        .await
        .unwrap();
    server.ready().await;
    let mut before = server.connect("login.example.com", &trusted).await.unwrap();
    let (second, trusted_now) = given("login.example.com");
    let patch = Patch::Merge(json!({"data": second.data}));
    secrets
        .patch("front", &PatchParams::default(), &patch)
        .await
        .unwrap();
    eventually("the new certificate to be shown", PATIENCE, async || {
        server
            .connect("login.example.com", &trusted_now)
            .await
            .map(drop)
    })
    .await;
    assert!(server.connect("login.example.com", &trusted).await.is_err());
    assert!(
        get(&mut before, "login.example.com", "/")
            .await
            .starts_with("HTTP/1.1 401")
    );
    // The names of the cluster are shown a leaf of our own.
    server
        .connect("payments-vault.shop.svc", &own)
        .await
        .unwrap();
    // What is broken changes nothing.
    let patch = Patch::Merge(json!({"data": {"tls.key": "AAAA"}}));
    secrets
        .patch("front", &PatchParams::default(), &patch)
        .await
        .unwrap();
    tokio::time::sleep(A_WHILE).await;
    server
        .connect("login.example.com", &trusted_now)
        .await
        .unwrap();
    assert!(server.logged().contains("the certificate cannot be used"));
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_somebody_deleted_is_minted_anew_and_everybody_follows() {
    let cluster = install(&["policies.enabled=false"]).await;
    let space = Space::on(Arc::clone(&cluster), "anew").await;
    let client = &space.client;
    let _operator = Operator::start(&space, everywhere(&[])).await;
    let server = Server::start(&cluster, client, &[]).await;
    let before = published(client, &space.name).await;
    let mut kept = server.connect(NAME, &before).await.unwrap();
    let secrets = Api::<Secret>::namespaced(client.clone(), SYSTEM);
    secrets
        .delete(ca::NAME, &DeleteParams::default())
        .await
        .unwrap();
    let after = eventually("other roots", PATIENCE, async || {
        let text = published(client, &space.name).await;
        if text == before {
            Err("the same".to_owned())
        } else {
            Ok(text)
        }
    })
    .await;
    assert_eq!(published_everywhere(client).await, after);
    let mut stream = eventually("the other CA's certificate", PATIENCE, async || {
        server.connect(NAME, &after).await
    })
    .await;
    assert!(server.connect(NAME, &before).await.is_err());
    assert!(
        get(&mut stream, NAME, "/")
            .await
            .starts_with("HTTP/1.1 401")
    );
    assert!(get(&mut kept, NAME, "/").await.starts_with("HTTP/1.1 401"));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_halves_run_in_one_process() {
    let cluster = install(&["server.replicaCount=0"]).await;
    let space = Space::on(Arc::clone(&cluster), "run").await;
    let client = &space.client;
    let server = Server::run(&cluster, client, "claviger", "run", &[]).await;
    // The controller's account has its own rights only; which of the server's it lacks is told.
    let lacking = "waiting for the right to have tokens and accesses reviewed";
    eventually("the missing right to be named", PATIENCE, async || {
        let said = server.admin("/readyz").await?;
        let last = said.contains(lacking) && !said.contains("CA") && !said.contains("Secret");
        last.then_some(()).ok_or(said)
    })
    .await;
    let grant = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "both-halves"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "claviger-server-reviews"},
        "subjects": [{"kind": "ServiceAccount", "name": "claviger", "namespace": SYSTEM}],
    });
    let apply = ["apply", "-f", "-"];
    cluster.kubectl(&apply, &grant.to_string()).await.unwrap();
    server.ready().await;
    let bundle = published(client, &space.name).await;
    let mut stream = server.connect(NAME, &bundle).await.unwrap();
    assert!(
        get(&mut stream, NAME, "/")
            .await
            .starts_with("HTTP/1.1 401")
    );
    let metrics = server.admin("/metrics").await.unwrap();
    assert!(
        metrics.contains("claviger_leader 1") && metrics.contains("claviger_server_connections")
    );
    assert!(
        metrics.contains("claviger_ca_unpublished_namespaces 0"),
        "{metrics}"
    );
    assert!(server.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_is_changed_by_claviger_only_and_the_servers_account_only_reads() {
    let cluster = install(&["server.tlsSecret=front"]).await;
    let space = Space::on(Arc::clone(&cluster), "rights").await;
    let _operator = Operator::start(&space, everywhere(&[])).await;
    published(&space.client, &space.name).await;
    let (root, controller, server) = (
        Actor::root(&cluster).await,
        Actor::account(&cluster, SYSTEM, "claviger").await,
        Actor::account(&cluster, SYSTEM, "claviger-server").await,
    );
    let evil = json!({"data": {"v1.key": "AAAA"}});
    let theirs = json!({"data": {"ca.crt": "theirs"}});
    for (who, act, why) in [
        (
            &root,
            Act::delete(SYSTEM, "secrets/claviger-ca"),
            "only Claviger writes them",
        ),
        (
            &root,
            Act::merge(SYSTEM, "secrets/claviger-ca", &evil),
            "only Claviger writes them",
        ),
        (
            &controller,
            Act::delete(SYSTEM, "secrets/claviger-ca"),
            "does not delete",
        ),
        (
            &server,
            Act::delete(SYSTEM, "secrets/claviger-ca"),
            "cannot delete",
        ),
        (
            &server,
            Act::merge(SYSTEM, "secrets/claviger-ca", &evil),
            "cannot patch",
        ),
        (
            &server,
            Act::get(SYSTEM, "secrets/claviger-seal-key"),
            "cannot get",
        ),
        (
            &root,
            Act::delete(&space.name, "configmaps/claviger-ca"),
            "only Claviger writes it",
        ),
        (
            &root,
            Act::merge(&space.name, "configmaps/claviger-ca", &theirs),
            "ca.furtherRoots",
        ),
    ] {
        let refused = who.does(&act).await.unwrap_err();
        assert!(refused.contains(why), "{act:?}: {refused}");
    }
    // Others of that namespace are their own matter, and the namespace can go.
    make_namespace(&space.client, "goes").await;
    published(&space.client, "goes").await;
    let maps = config_maps(&space.client, "goes");
    let other: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "other"}})).unwrap();
    maps.create(&PostParams::default(), &other).await.unwrap();
    let namespaces = Api::<Namespace>::all(space.client.clone());
    let params = DeleteParams::default();
    namespaces.delete("goes", &params).await.unwrap();
    eventually("the namespace to go", PATIENCE, async || {
        match namespaces.get_opt("goes").await.unwrap() {
            None => Ok(()),
            Some(_) => Err("still there".to_owned()),
        }
    })
    .await;
    let verbs = [
        "get", "list", "watch", "create", "update", "patch", "delete",
    ];
    for verb in verbs {
        for name in ["claviger-ca", "claviger-token-keys", "front"] {
            let may = server.may_with(verb, "secrets", SYSTEM, Some(name)).await;
            assert_eq!(
                may,
                ["get", "list", "watch"].contains(&verb),
                "{verb} {name}"
            );
        }
        for resource in [
            "secrets",
            "configmaps",
            "pods",
            "namespaces",
            "leases.coordination.k8s.io",
            "serviceaccounts/token",
            "functionkeys.claviger.dev",
            "secretvaults.claviger.dev",
        ] {
            for namespace in [SYSTEM, &space.name, ""] {
                let may = server.may(verb, resource, namespace).await;
                assert!(!may, "{verb} {resource} in {namespace:?}");
            }
        }
    }
}
