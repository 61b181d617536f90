//! The server while the apiserver does not answer, answers nonsense, or dies; while the server itself
//! is killed; and while whoever keeps the signing keys is killed at each write.
//!
//! What the server says of itself: `/livez` is always ok, since a restart mends nothing that is wrong
//! elsewhere. `/readyz` waits for the first sight of the CA and the keys and then stays ok through an
//! outage: decisions that are kept go on, tokens are verified, documents are served, and a Service
//! without a single ready replica would turn a 503 that says when to come again into a refused
//! connection.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use claviger::{
    clock,
    domain::{access_token::SigningKey, token_keys::Turned as _},
    k8s::token_keys::{self, Stored},
    key_pair::SigningPair,
    server::{authz, cache::UNSETTLED, settings::EXCHANGE},
};
use http::Method;
use jiff::SignedDuration;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret, ServiceAccount},
    rbac::v1::RoleBinding,
};
use kube::{
    Api,
    api::{ListParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Cluster, Operator, Options, Space,
    actors::Actor,
    control_plane::{SYSTEM, signal_process},
    eventually,
    operator::Launcher,
    proxy::{Proxy, Seen, Verdict, status},
    server::{self, Server},
    space::PATIENCE,
};

/// The longest that anybody waits for an answer: three questions of two seconds, and a busy machine.
const BOUND: Duration = Duration::from_secs(8);

/// Somebody who calls a server.
struct Caller<'a> {
    space: &'a Space,
    roots: String,
    port: u16,
}

/// What was answered, and how fast.
struct Answer {
    status: u16,
    comes_again: bool,
    body: Value,
    took: Duration,
}

impl<'a> Caller<'a> {
    async fn new(space: &'a Space, server: &Server) -> Self {
        let maps = Api::<ConfigMap>::namespaced(space.client.clone(), &space.name);
        let roots = eventually("the roots", PATIENCE, async || {
            let map = maps.get_opt("claviger-ca").await.unwrap();
            map.and_then(|map| map.data?.remove("ca.crt"))
                .ok_or_else(|| "none".to_owned())
        })
        .await;
        Self {
            space,
            roots,
            port: server.address.port(),
        }
    }

    /// Makes a ServiceAccount; answers its access token. That an account is there is kept for a
    /// minute, so whoever is to be known in an outage is known from shortly before it.
    async fn newcomer(&self, server: &Server, name: &str) -> String {
        let accounts =
            Api::<ServiceAccount>::namespaced(self.space.client.clone(), &self.space.name);
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        accounts
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
        self.access_token(server, name).await
    }

    /// A token such as the pod's file has; another at each call.
    async fn assertion(&self, account: &str) -> String {
        let space = &self.space;
        server::token_for(&space.client, &space.name, account, EXCHANGE).await
    }

    async fn send(&self, server: &Server, head: &str, body: &str) -> Result<Answer, String> {
        let begun = Instant::now();
        let (head, body) = server.ask(&self.roots, head, body).await?;
        Ok(Answer {
            status: server::status(&head),
            comes_again: head.to_ascii_lowercase().contains("\r\nretry-after: 1"),
            body: serde_json::from_str(&body).unwrap_or_default(),
            took: begun.elapsed(),
        })
    }

    async fn get(&self, server: &Server, path: &str, bearer: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {bearer}");
        self.send(server, &head, "").await.unwrap()
    }

    async fn exchange(&self, server: &Server, assertion: &str) -> Answer {
        let scope = format!("https://claviger-system.svc:{}/.default", self.port);
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_assertion", assertion)
            .append_pair(
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            )
            .append_pair("scope", &scope)
            .finish();
        let head = "POST /adfs/oauth2/v2.0/token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded";
        self.send(server, head, &form).await.unwrap()
    }

    async fn access_token(&self, server: &Server, account: &str) -> String {
        let answer = self.exchange(server, &self.assertion(account).await).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["access_token"].as_str().unwrap().to_owned()
    }

    fn door(&self, name: &str) -> String {
        let namespace = &self.space.name;
        format!("/claviger/v1/access/{namespace}/secretvaults/{name}/secrets/get")
    }

    /// The server is alive and ready, and verifies and publishes what it knows.
    async fn goes_on(&self, server: &Server, access: &str) {
        for (path, end) in [("/livez", "ok\n"), ("/readyz", "ok\n")] {
            let answer = server.admin(path).await.unwrap();
            assert!(answer.ends_with(end), "{path}: {answer}");
        }
        let keys = self.get(server, "/adfs/discovery/v2.0/keys", "").await;
        assert_eq!(keys.status, 200);
        assert_eq!(self.get(server, WHOAMI, access).await.status, 200);
    }

    /// What is not known cannot be had, and is said so in time.
    async fn is_closed(&self, server: &Server, access: &str, assertion: &str) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let other = format!("other-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
        let unknown = self.get(server, &self.door(&other), access).await;
        assert_eq!((unknown.status, unknown.comes_again), (503, true));
        assert!(unknown.took < BOUND, "{:?}", unknown.took);
        let refused = self.exchange(server, assertion).await;
        assert_eq!((refused.status, refused.comes_again), (503, true));
        assert_eq!(refused.body["error"], "temporarily_unavailable");
        assert!(refused.took < BOUND, "{:?}", refused.took);
    }

    /// Waits until what was not known is known again; answers how long that took.
    async fn recovers(&self, server: &Server, access: &str) -> Duration {
        let begun = Instant::now();
        eventually("the doors to be open again", BOUND, async || {
            let answer = self.get(server, &self.door("unknown"), access).await;
            if answer.status == 403 {
                Ok(())
            } else {
                Err(answer.status.to_string())
            }
        })
        .await;
        begun.elapsed()
    }
}

const WHOAMI: &str = "/claviger/v1/whoami";

/// Lets a ServiceAccount read the secrets of one vault.
async fn assign(space: &Space, account: &str) {
    let assignment = json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "RoleAssignment",
        "metadata": {"name": account, "namespace": space.name},
        "spec": {
            "principal": {"kind": "ServiceAccount", "name": account},
            "role": {"builtIn": "SecretVaultSecretsUser"},
            "scope": {"resource": {"kind": "SecretVault", "name": "payments"}},
        },
    });
    let apply = ["apply", "-f", "-"];
    space
        .cluster
        .kubectl(&apply, &assignment.to_string())
        .await
        .unwrap();
}

/// Takes the right away, and waits until its binding is gone.
async fn withdraw(space: &Space, account: &str) {
    let delete = [
        "-n",
        &space.name,
        "delete",
        "roleassignment",
        account,
        "--wait=false",
    ];
    let bindings = Api::<RoleBinding>::namespaced(space.client.clone(), &space.name);
    let before = bindings
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .len();
    space.cluster.kubectl(&delete, "").await.unwrap();
    eventually("the binding to go", PATIENCE, async || {
        match bindings
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len()
        {
            left if left < before => Ok(()),
            left => Err(left.to_string()),
        }
    })
    .await;
}

type Misfortune = fn() -> Verdict;

/// Watches end early, so that there are always new ones to be spoilt.
fn well(seen: &Seen) -> Verdict {
    if seen.watches() {
        Verdict::Cut(Duration::from_secs(1))
    } else {
        Verdict::Pass
    }
}

fn refused(code: u16, reason: &str) -> Verdict {
    Verdict::Answer(
        StatusCode::from_u16(code).unwrap(),
        status(code, reason, "injected by the test"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_apiserver_decisions_hold_to_their_time_and_then_the_doors_are_closed() {
    let space = Space::new("server-outage").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let proxy = Proxy::start(&space.cluster).await;
    proxy.judge(well);
    let through = Some(proxy.url.as_str());
    let role = ("claviger-server", "server");
    let server = Server::run_through(&space.cluster, &space.client, role, through, &[]).await;
    server.ready().await;
    let caller = Caller::new(&space, &server).await;
    let payments = caller.door("payments");
    // All rights at once, because decisions live briefly for a while after each change of one.
    let names: Vec<_> = (0..5).map(|number| format!("web-{number}")).collect();
    for name in names
        .iter()
        .map(String::as_str)
        .chain(["still", "withdrawn"])
    {
        assign(&space, name).await;
    }
    let bindings = Api::<RoleBinding>::namespaced(space.client.clone(), &space.name);
    eventually("the bindings", PATIENCE, async || {
        let made = bindings.list(&ListParams::default()).await.unwrap();
        match made.items.len() {
            7 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    tokio::time::sleep(UNSETTLED + Duration::from_millis(500)).await;
    let admitted = async |name: &str| {
        let access = caller.newcomer(&server, name).await;
        eventually("the role to admit", PATIENCE, async || {
            match caller.get(&server, &payments, &access).await.status {
                200 => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
        (access, caller.assertion(name).await)
    };
    let mut recoveries = Vec::new();
    let misfortunes: [(&str, Misfortune); 5] = [
        ("errors", || refused(500, "InternalError")),
        ("asks for patience", || refused(429, "TooManyRequests")),
        ("answers after three seconds", || {
            Verdict::Delay(Duration::from_secs(3))
        }),
        ("breaks off", || Verdict::Break),
        ("answers a proxy's page", || {
            Verdict::Answer(StatusCode::OK, "<html>".to_owned())
        }),
    ];
    for (name, (what, misfortune)) in names.iter().zip(misfortunes) {
        let (access, assertion) = admitted(name).await;
        proxy.judge(move |seen| match misfortune() {
            // A watch that has begun would be spared until its end.
            Verdict::Delay(_) if seen.watches() => well(seen),
            other => other,
        });
        caller.is_closed(&server, &access, &assertion).await;
        // What was decided holds.
        assert_eq!(
            caller.get(&server, &payments, &access).await.status,
            200,
            "{what}"
        );
        caller.goes_on(&server, &access).await;
        proxy.judge(well);
        recoveries.push((what, caller.recovers(&server, &access).await));
    }

    // It stands still, and meanwhile another replica starts.
    let (access, assertion) = admitted("still").await;
    let begun = Instant::now();
    let still = CancellationToken::new();
    let end = still.clone();
    proxy.judge(move |_| Verdict::Hold(end.clone()));
    let same = ["--server-port", &*caller.port.to_string()].map(str::to_owned);
    let same = [&*same[0], &*same[1]];
    let late = Server::run_through(&space.cluster, &space.client, role, through, &same).await;
    caller.is_closed(&server, &access, &assertion).await;
    caller.goes_on(&server, &access).await;
    let mut answers = Vec::new();
    let closed = loop {
        let answer = caller.get(&server, &payments, &access).await;
        assert!(answer.took < BOUND, "{:?}", answer.took);
        answers.push(answer.status);
        if answer.status != 200 {
            assert_eq!((answer.status, answer.comes_again), (503, true));
            break begun.elapsed();
        }
        assert!(
            begun.elapsed() < authz::YES + BOUND,
            "a decision outlives its time"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(closed < authz::YES + BOUND, "{closed:?}");
    assert!(answers.len() > 5, "{answers:?}");
    // Many who ask at once wait no longer than one.
    let many = (0..40).map(|number| {
        let path = caller.door(&format!("many-{number}"));
        let (caller, server, access) = (&caller, &server, &access);
        async move { caller.get(server, &path, access).await }
    });
    for answer in futures::future::join_all(many).await {
        assert_eq!((answer.status, answer.comes_again), (503, true));
        assert!(answer.took < BOUND, "{:?}", answer.took);
    }
    caller.goes_on(&server, &access).await;
    let alive = late.admin("/livez").await.unwrap();
    assert!(alive.ends_with("ok\n"), "{alive}");
    let waits = late.admin("/readyz").await.unwrap();
    assert!(
        waits.contains("503") && waits.contains("not ready: "),
        "{waits}"
    );
    assert!(
        late.connect(server::NAME, &caller.roots).await.is_err(),
        "it has no certificate"
    );
    proxy.judge(well);
    still.cancel();
    recoveries.push(("stands still", caller.recovers(&server, &access).await));

    // A right that is taken away while the watches are broken and no right is asked for is noticed
    // when they are back, before its time.
    let interrupted = || server.logged().matches("a watch was interrupted").count();
    let before = interrupted();
    proxy.judge(|seen| {
        if seen.path.contains("/rbac.") {
            refused(503, "ServiceUnavailable")
        } else {
            well(seen)
        }
    });
    eventually("the watches to break", PATIENCE, async || {
        // Of Roles and both kinds of bindings.
        if interrupted() >= before + 3 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    let (access, _) = admitted("withdrawn").await;
    let asked = Instant::now();
    withdraw(&space, "withdrawn").await;
    let held = caller.get(&server, &payments, &access).await.status;
    proxy.judge(well);
    let back = Instant::now();
    eventually(
        "the end of the right to be heard",
        PATIENCE,
        async || match caller.get(&server, &payments, &access).await.status {
            403 => Ok(()),
            other => Err(other.to_string()),
        },
    )
    .await;
    let heard = back.elapsed();
    // Before what was kept would have run out.
    let since = asked.elapsed();
    assert!(since < Duration::from_secs(9), "{since:?}");
    late.ready().await;
    let same_answers = caller.get(&late, WHOAMI, &access).await;
    assert_eq!(same_answers.status, 200);
    for (what, took) in &recoveries {
        assert!(*took < Duration::from_secs(4), "{what}: {took:?}");
    }
    println!(
        "a kept yes ended {closed:.1?} after the apiserver; back after {recoveries:.1?}; a revocation in a broken watch (answered {held} then) was heard {heard:.1?} after it was back"
    );
    for server in [server, late] {
        assert!(!server.logged().contains("panicked"));
        assert!(server.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_load_is_missed_only_until_it_is_back() {
    let space = Space::new("server-killed").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let server = Server::start(&space.cluster, &space.client, &[]).await;
    let caller = Caller::new(&space, &server).await;
    let access = caller.newcomer(&server, "web").await;
    let file = caller.assertion("web").await;
    let (going, server) = (AtomicBool::new(true), tokio::sync::RwLock::new(server));
    let answers = Mutex::new([0_u32; 2]);
    let documents = "GET /adfs/discovery/keys HTTP/1.1";
    let load = async |number: usize| {
        while going.load(Ordering::SeqCst) {
            let address = server.read().await;
            let head = format!("GET {WHOAMI} HTTP/1.1\r\nAuthorization: Bearer {access}");
            // Some read the document of keys.
            let head = if number == 0 { documents } else { &head };
            let answered = caller.send(&address, head, "").await;
            drop(address);
            if let Ok(answer) = answered {
                assert!([200, 503].contains(&answer.status), "{}", answer.body);
                answers.lock().unwrap()[0] += u32::from(answer.status == 200);
            } else {
                answers.lock().unwrap()[1] += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    let kill = async {
        let mut downs = Vec::new();
        for _ in 0..3 {
            let before = answers.lock().unwrap()[0];
            eventually("some load", PATIENCE, async || {
                if answers.lock().unwrap()[0] > before + 20 {
                    Ok(())
                } else {
                    Err("little".to_owned())
                }
            })
            .await;
            // Requests are under way on connections that nobody closes.
            signal_process(server.read().await.pid(), "KILL");
            let begun = Instant::now();
            let mut down = server.write().await;
            down.kill_and_restart().await;
            down.ready().await;
            // The tokens of before, and of the pod's file.
            assert_eq!(caller.get(&down, WHOAMI, &access).await.status, 200);
            assert_eq!(caller.exchange(&down, &file).await.status, 200);
            downs.push(begun.elapsed());
        }
        going.store(false, Ordering::SeqCst);
        downs
    };
    let loads = futures::future::join_all((0..4).map(load));
    let (downs, _) = tokio::join!(kill, loads);
    let answers = *answers.lock().unwrap();
    println!(
        "killed three times under load: ready and answering after {downs:.2?}; {answers:?} answers and none"
    );
    let server = server.into_inner();
    assert!(!server.logged().contains("panicked"));
    assert!(server.stop().await);
}

/// The Secret of the signing keys, as it stands.
async fn stored(secrets: &Api<Secret>) -> Option<Stored> {
    let secret = secrets.get_opt(token_keys::NAME).await.unwrap()?;
    Some(token_keys::read(secret, SYSTEM).unwrap())
}

fn ids(keys: &[SigningKey]) -> Vec<String> {
    keys.iter().map(|key| key.id().to_owned()).collect()
}

/// Whom to kill at the next write of the signing keys: before it, or after it.
#[derive(Default)]
struct Hand {
    pid: AtomicU32,
    armed: Mutex<Option<bool>>,
    killed: AtomicU32,
}

impl Hand {
    fn judge(self: &Arc<Self>, seen: &Seen) -> Verdict {
        let of_keys = seen
            .path
            .ends_with(&format!("/secrets/{}", token_keys::NAME))
            || (seen.method == Method::POST
                && seen.path.ends_with("/secrets")
                && String::from_utf8_lossy(&seen.body).contains(token_keys::NAME));
        if seen.method == Method::GET || !of_keys {
            return Verdict::Pass;
        }
        let Some(after) = self.armed.lock().unwrap().take() else {
            return Verdict::Pass;
        };
        let hand = Arc::clone(self);
        let kill = Box::pin(async move {
            hand.killed.fetch_add(1, Ordering::SeqCst);
            signal_process(hand.pid.load(Ordering::SeqCst), "KILL");
        });
        if after {
            Verdict::PassThen(kill)
        } else {
            Verdict::Drop(kill)
        }
    }

    /// A controller that dies at its next write of the keys.
    async fn raise(&self, launcher: &Launcher, after: bool) {
        *self.armed.lock().unwrap() = Some(after);
        let killed = self.killed.load(Ordering::SeqCst);
        let mut operator = launcher.spawn();
        self.pid.store(operator.pid, Ordering::SeqCst);
        tokio::time::timeout(PATIENCE, operator.ended())
            .await
            .expect("it writes the keys, and dies of it");
        assert_eq!(self.killed.load(Ordering::SeqCst), killed + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_write_of_the_signing_keys_no_token_ends_early_and_no_key_is_half_there() {
    // A control plane of its own: the keys are those of the whole install, and it dies, too.
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let space = Space::on(Arc::new(cluster), "keys-killed").await;
    let secrets = Api::<Secret>::namespaced(space.client.clone(), SYSTEM);
    let proxy = Proxy::start(&space.cluster).await;
    let hand = Arc::new(Hand::default());
    let judge = Arc::clone(&hand);
    proxy.judge(move |seen| judge.judge(seen));
    let options = Options {
        server: Some(proxy.url.clone()),
        identity: Some("the-one".to_owned()),
        ..Options::default()
    };
    let launcher = Launcher::new(&space, &options).await;

    // The first key: there is none, or there is one, which the next leader leaves as it is.
    hand.raise(&launcher, false).await;
    assert!(stored(&secrets).await.is_none());
    hand.raise(&launcher, true).await;
    let first = stored(&secrets).await.unwrap();
    assert_eq!(first.keys.keys().len(), 1);
    let operator = launcher.spawn();
    operator.leads().await;
    let server = Server::start(&space.cluster, &space.client, &[]).await;
    let caller = Caller::new(&space, &server).await;
    assert_eq!(stored(&secrets).await.unwrap().version, first.version);
    operator.kill().await;

    // Clients go on all the time with every token that they ever got, and read the document.
    let tokens = Mutex::new(vec![caller.newcomer(&server, "web").await]);
    let going = AtomicBool::new(true);
    let checks = AtomicU32::new(0);
    let clients = async {
        while going.load(Ordering::SeqCst) {
            let document = caller.get(&server, "/adfs/discovery/v2.0/keys", "").await;
            assert_eq!(document.status, 200);
            let published = document.body["keys"].as_array().unwrap().clone();
            let held = tokens.lock().unwrap().clone();
            for token in held {
                let answer = caller.get(&server, WHOAMI, &token).await;
                // Its week may have passed since they were counted.
                if !tokens.lock().unwrap().contains(&token) {
                    continue;
                }
                assert_eq!(answer.status, 200, "{}", answer.body);
                let heading = jsonwebtoken::decode_header(&token).unwrap();
                assert!(
                    published
                        .iter()
                        .any(|key| key["kid"] == heading.kid.clone().unwrap())
                );
            }
            checks.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let own = Actor::account(&space.cluster, SYSTEM, "claviger")
        .await
        .client;
    let turns = async {
        for (number, after) in [false, true, false, true].into_iter().enumerate() {
            // A week passes: the key that signs is due in an hour, the one before is past its end.
            let now = clock::now();
            let before = stored(&secrets).await.unwrap();
            let signer = before.keys.keys().last().unwrap();
            let aged = |pkcs8: &[u8], hours: i64| {
                let at = now - SignedDuration::from_hours(hours);
                SigningPair::read(pkcs8).unwrap().signs_from(at).unwrap()
            };
            let gone = SigningPair::mint().unwrap();
            let gone = gone
                .signs_from(now - SignedDuration::from_hours(14 * 24))
                .unwrap();
            let signs = aged(signer.expose(), 7 * 24 - 1);
            // Tokens of the keys before it would be refused from now on: they are of a week ago.
            let keeps = ids(std::slice::from_ref(signer));
            tokens.lock().unwrap().retain(|token| {
                let heading = jsonwebtoken::decode_header(token).unwrap();
                keeps.contains(&heading.kid.unwrap())
            });
            let set = token_keys::patch_keys(&own, SYSTEM, &before.version, &[gone, signs])
                .await
                .unwrap();
            let meant = ids(set.keys.keys());
            eventually("the server to see it", PATIENCE, async || {
                let token = caller.access_token(&server, "web").await;
                let heading = jsonwebtoken::decode_header(&token).unwrap();
                if heading.kid.as_ref() == meant.last() {
                    tokens.lock().unwrap().push(token);
                    Ok(())
                } else {
                    Err("another key signs".to_owned())
                }
            })
            .await;

            hand.raise(&launcher, after).await;
            let then = stored(&secrets).await.unwrap();
            let turned = |stored: &Stored| {
                let keys = stored.keys.keys();
                // The signer stays, its successor is there in time, the one past its end is not.
                assert_eq!(keys.len(), 2, "{number}");
                assert_eq!(keys[0].id(), meant[1]);
                assert!(keys[1].signs_from() >= now + SignedDuration::from_hours(2));
            };
            if after {
                turned(&then);
            } else {
                assert_eq!(
                    (then.version.as_str(), ids(then.keys.keys())),
                    (set.version.as_str(), meant.clone())
                );
            }
            let operator = launcher.spawn();
            operator.leads().await;
            let settled = eventually("the turn", PATIENCE, async || {
                let stored = stored(&secrets).await.unwrap();
                if stored.version == set.version {
                    Err("not yet".to_owned())
                } else {
                    Ok(stored)
                }
            })
            .await;
            turned(&settled);
            if after {
                assert_eq!(settled.version, then.version, "nothing is done twice");
            }
            // The successor is published, and does not sign yet.
            eventually("the successor to be published", PATIENCE, async || {
                let document = caller
                    .get(&server, "/adfs/discovery/v2.0/keys", "")
                    .await
                    .body;
                match document["keys"].as_array().unwrap().len() {
                    2 => Ok(()),
                    other => Err(other.to_string()),
                }
            })
            .await;
            let token = caller.access_token(&server, "web").await;
            let heading = jsonwebtoken::decode_header(&token).unwrap();
            assert_eq!(heading.kid.as_ref(), Some(&meant[1]));
            tokens.lock().unwrap().push(token);
            operator.kill().await;
        }

        // The apiserver stands still, then dies: what the server knows holds.
        going.store(false, Ordering::SeqCst);
        let access = caller.newcomer(&server, "late").await;
        assert_eq!(caller.get(&server, WHOAMI, &access).await.status, 200);
        let mut recoveries = Vec::new();
        let assertion = caller.assertion("late").await;
        space.cluster.signal("STOP");
        caller.is_closed(&server, &access, &assertion).await;
        caller.goes_on(&server, &access).await;
        space.cluster.signal("CONT");
        recoveries.push(caller.recovers(&server, &access).await);
        let restarting = space.cluster.kill_and_restart();
        let outage = async {
            let begun = Instant::now();
            let unknown = caller.get(&server, &caller.door("dead"), &access).await;
            assert_eq!((unknown.status, unknown.comes_again), (503, true));
            assert!(begun.elapsed() < BOUND);
            caller.goes_on(&server, &access).await;
        };
        tokio::join!(restarting, outage);
        recoveries.push(caller.recovers(&server, &access).await);
        recoveries
    };
    let (recoveries, ()) = tokio::join!(turns, clients);
    let checks = checks.load(Ordering::SeqCst);
    println!(
        "{} deaths at writes of the keys; every token good in {checks} looks; doors open {recoveries:.1?} after the apiserver came back",
        hand.killed.load(Ordering::SeqCst)
    );
    assert!(checks > 20, "{checks}");
    assert!(!server.logged().contains("panicked") && !launcher.logged().contains("panicked"));
    assert!(server.stop().await);
}
