//! What a door costs that knows its caller, asks what they may, notes the access and does nothing, as
//! a ratio to a bare hello over HTTPS by the same stack.
//!
//! On one machine in one run, because only such ratios mean anything elsewhere: an embedded control
//! plane with the chart, a controller that keeps CA and signing keys, and the release binary as
//! `claviger server` under the chart's ServiceAccount, which notes every access in a file. Beside it
//! stands a hello: axum, hyper, tokio and rustls in a process of its own, with the same protocols, that
//! answers the very same requests by one word. One client asks both in turns over as many connections
//! that stay open. It shares the processors with whom it asks, hello as well as door.
//!
//! Warm, all answers of the apiserver are there; cold, each request needs one that is not: a vault of
//! another name a `SubjectAccessReview`, a new caller a `TokenReview`, or both. There the limit is the
//! apiserver, so the ratio is to a bare client that asks it for the same reviews, as many at once.
//!
//! ```text
//! cargo bench --bench doors      some four minutes
//!   BENCH_QUICK=1         one round of short slices: a minute
//!   BENCH_CONNECTIONS=64  connections of HTTP/1.1, and requests at once of HTTP/2
//!   BENCH_N=1000          new vaults, and new callers, of the cold part
//! ```
//!
//! It always ends well: a time is never a test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts, printed with three digits"
)]

#[allow(dead_code, reason = "other measurements use all of it")]
mod measure;
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
#[path = "../tests/cluster/support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::any};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use claviger::{
    domain::identity::{Identity, ServiceAccount as Account},
    k8s::review::{Action, Reviewed, review_access, review_token},
};
use hyper::server::conn::{http1, http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use measure::{Bench, cpu_seconds, in_parallel, median, memory, rest, say};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::json;
use support::{
    Operator, Options, Space,
    actors::Actor,
    control_plane::SYSTEM,
    eventually,
    server::{NAME, Server},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// Set in the process that says hello.
const HELLO: &str = "BENCH_SAYS_HELLO";
const AUDIENCE: &str = "api://AzureADTokenExchange";
/// What a door that does nothing should reach of a hello's requests in a second.
const AIM: f64 = 0.6;
/// Requests at once on one connection of HTTP/2.
const STREAMS: usize = 4;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if std::env::var_os(HELLO).is_some() {
        runtime.block_on(say_hello());
    } else {
        runtime.block_on(run());
    }
}

/// How much is measured.
struct Plan {
    rounds: usize,
    slice: Duration,
    at_once: usize,
    cold: usize,
}

impl Plan {
    fn new() -> Self {
        let number = |name: &str, or: usize| {
            let text = std::env::var(name).ok();
            text.and_then(|text| text.parse().ok()).unwrap_or(or).max(1)
        };
        let quick = std::env::var("BENCH_QUICK").is_ok_and(|quick| quick != "0");
        Self {
            rounds: if quick { 1 } else { 5 },
            slice: Duration::from_secs(if quick { 2 } else { 4 }),
            at_once: number("BENCH_CONNECTIONS", 32).next_multiple_of(STREAMS),
            cold: number("BENCH_N", if quick { 500 } else { 2000 }),
        }
    }
}

async fn run() {
    let plan = Plan::new();
    let bench = Bench::start().await;
    let space = bench.space("doors").await;
    let options = Options {
        log_level: "info",
        ..Options::default()
    };
    let operator = Operator::start(&space, options).await;
    let audit = bench.cluster.directory.path().join("doors.audit");
    let more = [
        "--log-level",
        "info",
        "--audit-file",
        audit.to_str().unwrap(),
    ];
    let server = Server::start(&bench.cluster, &bench.admin, &more).await;
    let place = Place::new(&space, &server).await;
    let (hello, greeter) = Place::of_hello().await;
    let token = access_token(&space, &server, &place).await;
    permit(&space).await;
    let own = account_token(&space, "web").await;
    let access = format!(
        "/claviger/v1/access/{}/secretvaults/v/secrets/get",
        space.name
    );
    let doors = [
        ("whoami", "/claviger/v1/whoami".to_owned(), &token),
        ("access", access, &token),
        (
            "whoami, its own token",
            "/claviger/v1/whoami".to_owned(),
            &own,
        ),
    ];

    println!(
        "{} requests at once, {} rounds of {} s; processors: {}",
        plan.at_once,
        plan.rounds,
        plan.slice.as_secs(),
        std::thread::available_parallelism().unwrap()
    );
    println!(
        "\nwarm{:<34}{:>10}{:>18}{:>10}{:>10}{:>14}",
        "", "requests/s", "", "p50", "p99", "CPU each"
    );
    let mut aims = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for (door, path, token) in &doors {
            say(&format!("{protocol:?} {door}"));
            let ask = Ask::new(path, token);
            let asked = || Source::Same(ask.clone());
            load(&place, protocol, &plan, Limit::For(plan.slice / 4), asked()).await;
            let mut before = load(&hello, protocol, &plan, Limit::For(plan.slice), asked()).await;
            let (mut rounds, mut hellos) = (Vec::new(), vec![before.clone()]);
            for _ in 0..plan.rounds {
                let run = load(&place, protocol, &plan, Limit::For(plan.slice), asked()).await;
                let after = load(&hello, protocol, &plan, Limit::For(plan.slice), asked()).await;
                rounds.push(run.over(&before, &after));
                hellos.push(after.clone());
                before = after;
            }
            let of = |pick: fn(&Run) -> f64| median(rounds.iter().map(pick).collect());
            let speeds: Vec<f64> = rounds.iter().map(|run| run.speed).collect();
            let least = speeds.iter().copied().fold(f64::INFINITY, f64::min);
            let most = speeds.iter().copied().fold(0.0, f64::max);
            println!(
                "{:<38}{:>10.2}{:>18}{:>10.2}{:>10.2}{:>14.2}",
                format!("{} {door}", protocol.name()),
                of(|run| run.speed),
                format!("({least:.2} to {most:.2})"),
                of(|run| run.p50),
                of(|run| run.p99),
                of(|run| run.cpu),
            );
            let of = |pick: fn(&Run) -> f64| median(hellos.iter().map(pick).collect());
            println!(
                "  hello: {:.0} requests/s, p50 {:.0} µs, p99 {:.0} µs, {:.1} µs of its CPU each",
                of(|run| run.speed),
                of(|run| run.p50),
                of(|run| run.p99),
                of(|run| run.cpu),
            );
            let speed = median(speeds);
            aims.push((
                speed >= AIM,
                format!(
                    "{} {door}: {speed:.2} of hello's requests/s (aim ≥ {AIM})",
                    protocol.name()
                ),
            ));
        }
    }
    let (peak, settled) = memory(place.pid);
    println!("memory of the server, warm: peak {peak:.0} MiB, settled {settled:.0} MiB");

    cold(&bench, &space, &place, &plan, &token).await;
    let (peak, settled) = memory(place.pid);
    println!("memory of the server, after all: peak {peak:.0} MiB, settled {settled:.0} MiB");

    println!("\nAims");
    for (met, aim) in &aims {
        println!("  {}  {aim}", if *met { "PASS" } else { "FAIL" });
    }
    drop(greeter);
    assert!(server.stop().await);
    assert!(operator.stop().await);
}

/// The cold part: every request needs an answer of the apiserver that is not there.
async fn cold(bench: &Bench, space: &Space, place: &Place, plan: &Plan, token: &str) {
    let count = plan.cold;
    let protocol = Protocol::Http1;
    let bare = Actor::account(&bench.cluster, SYSTEM, "claviger-server").await;
    let bare = bare.client;
    println!(
        "\ncold, {count} requests each{:>22}{:>10}{:>10}",
        "requests/s", "p50", "p99"
    );

    say("new vaults");
    let subject = Identity::ServiceAccount(account(space, "web").await).subject();
    let reviews = async |batch: usize| {
        bare_run(plan, count / 2, async |number| {
            let action = action(space, format!("b{batch}-{number}"));
            assert!(review_access(&bare, &subject, &action).await.unwrap());
        })
        .await
    };
    rest().await;
    let before = reviews(0).await;
    let asks = (0..count).map(|number| Ask::new(&access_path(space, &format!("v{number}")), token));
    let asks = Source::listed(asks.collect());
    let run = load(place, protocol, plan, Limit::All, asks).await;
    let after = reviews(1).await;
    told(
        "a new vault each: SubjectAccessReview",
        &run,
        &before,
        &after,
    );

    for (what, both) in [
        ("a new caller each: TokenReview", false),
        ("both new: both reviews", true),
    ] {
        say(what);
        let callers = callers(bench, space, if both { "both" } else { "new" }, count * 2).await;
        let (asking, bearing) = callers.split_at(count);
        let (first, second) = asking.split_at(count / 2);
        let audiences = [AUDIENCE.to_owned()];
        let reviews = async |callers: &[Caller]| {
            bare_run(plan, callers.len(), async |number| {
                let caller = &callers[number];
                let reviewed = review_token(&bare, &caller.token, &audiences)
                    .await
                    .unwrap();
                let Reviewed::Authenticated { user, uid, extra } = reviewed else {
                    panic!("a token is not taken")
                };
                if both {
                    let account = Account::reviewed(&user, &uid, &extra).unwrap();
                    let subject = Identity::ServiceAccount(account).subject();
                    let action = action(space, format!("c{number}"));
                    assert!(review_access(&bare, &subject, &action).await.unwrap());
                }
            })
            .await
        };
        rest().await;
        let before = reviews(first).await;
        let asks = bearing.iter().enumerate().map(|(number, caller)| {
            if both {
                Ask::new(&access_path(space, &format!("d{number}")), &caller.token)
            } else {
                Ask::new("/claviger/v1/whoami", &caller.token)
            }
        });
        let asks = Source::listed(asks.collect());
        let run = load(place, protocol, plan, Limit::All, asks).await;
        let after = reviews(second).await;
        told(what, &run, &before, &after);
    }
}

fn told(what: &str, run: &Run, before: &Run, after: &Run) {
    let ratio = run.over(before, after);
    println!(
        "{what:<40}{:>6.2}{:>10.2}{:>10.2}",
        ratio.speed, ratio.p50, ratio.p99
    );
    println!(
        "  bare client: {:.0} requests/s before, {:.0} after",
        before.speed, after.speed
    );
}

/// A bare client that does something so many times.
async fn bare_run(plan: &Plan, count: usize, act: impl AsyncFn(usize)) -> Run {
    let times = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let one = async || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let asked = Instant::now();
            act(number).await;
            times.lock().unwrap().push(asked.elapsed());
        }
    };
    futures::future::join_all((0..plan.at_once).map(|_| one())).await;
    Run::of(begun.elapsed(), times.into_inner().unwrap(), 0.0)
}

fn access_path(space: &Space, name: &str) -> String {
    format!(
        "/claviger/v1/access/{}/secretvaults/{name}/secrets/get",
        space.name
    )
}

fn action(space: &Space, name: String) -> Action {
    Action {
        verb: "get".to_owned(),
        resource: "secretvaults".to_owned(),
        subresource: "secrets".to_owned(),
        namespace: space.name.clone(),
        name,
    }
}

/// Lets every ServiceAccount of the namespace read the secrets of every vault of it.
async fn permit(space: &Space) {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "everybody-reads", "namespace": space.name},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "claviger-secret-vault-secrets-user",
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io", "kind": "Group",
            "name": format!("system:serviceaccounts:{}", space.name),
        }],
    });
    let apply = ["apply", "--server-side", "-f", "-"];
    let applied = space.cluster.kubectl(&apply, &binding.to_string()).await;
    applied.unwrap();
}

/// Somebody whom the server has not met.
struct Caller {
    token: String,
}

async fn callers(bench: &Bench, space: &Space, what: &str, count: usize) -> Vec<Caller> {
    let made = Mutex::new(Vec::new());
    in_parallel(count, async |number| {
        let name = format!("{what}-{number}");
        make_account(space, &name).await;
        let token = token_of(&bench.admin, space, &name).await;
        made.lock().unwrap().push(Caller { token });
    })
    .await;
    made.into_inner().unwrap()
}

async fn make_account(space: &Space, name: &str) {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), &space.name);
    accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
}

async fn account(space: &Space, name: &str) -> Account {
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), &space.name);
    Account {
        namespace: space.name.clone(),
        name: name.to_owned(),
        uid: accounts.get(name).await.unwrap().uid().unwrap(),
        pod: None,
    }
}

async fn account_token(space: &Space, name: &str) -> String {
    token_of(&space.client, space, name).await
}

/// A ServiceAccount's token as a pod gets it for the token endpoint.
async fn token_of(client: &Client, space: &Space, name: &str) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &space.name);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(7200),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let granted = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .unwrap();
    granted.status.unwrap().token
}

/// An access token for the server's own doors, of a new ServiceAccount `web`.
async fn access_token(space: &Space, server: &Server, place: &Place) -> String {
    make_account(space, "web").await;
    let assertion = account_token(space, "web").await;
    let form = format!(
        "grant_type=client_credentials&client_assertion={assertion}&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&scope=https%3A%2F%2Fclaviger-system.svc%3A{}%2F.default",
        server.address.port()
    );
    let request = format!(
        "POST /adfs/oauth2/v2.0/token HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let mut stream = place.connect(Protocol::Http1).await;
    let mut buffer = Vec::new();
    exchange(&mut stream, request.as_bytes(), &mut buffer).await;
    let (_, body) = std::str::from_utf8(&buffer)
        .unwrap()
        .split_once("\r\n\r\n")
        .unwrap();
    let answer: serde_json::Value = serde_json::from_str(body).unwrap();
    answer["access_token"].as_str().unwrap().to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// Where requests go.
struct Place {
    address: SocketAddr,
    pid: u32,
    configs: BTreeMap<bool, Arc<ClientConfig>>,
}

impl Place {
    async fn new(space: &Space, server: &Server) -> Self {
        let maps = Api::<ConfigMap>::namespaced(space.client.clone(), &space.name);
        let roots = eventually("the roots", Duration::from_secs(30), async || {
            let map = maps.get("claviger-ca").await;
            map.map_err(|error| error.to_string())
        })
        .await;
        let roots = roots.data.unwrap()["ca.crt"].clone();
        let roots = CertificateDer::pem_slice_iter(roots.as_bytes());
        Self::trusting(server.address, server.pid(), roots.map(Result::unwrap))
    }

    /// Starts the process that says hello.
    async fn of_hello() -> (Self, Child) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(HELLO, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.next_line().await.unwrap().unwrap();
        let certificate = lines.next_line().await.unwrap().unwrap();
        let certificate = CertificateDer::from(STANDARD.decode(certificate).unwrap());
        let place = Self::trusting(address.parse().unwrap(), child.id().unwrap(), [certificate]);
        (place, child)
    }

    fn trusting(
        address: SocketAddr,
        pid: u32,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Self {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root).unwrap();
        }
        let config = |h2: bool| {
            let mut config = ClientConfig::builder()
                .with_root_certificates(store.clone())
                .with_no_client_auth();
            let protocol = if h2 { "h2" } else { "http/1.1" };
            config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
            (h2, Arc::new(config))
        };
        Self {
            address,
            pid,
            configs: [config(false), config(true)].into(),
        }
    }

    async fn connect(&self, protocol: Protocol) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let config = Arc::clone(&self.configs[&(protocol == Protocol::Http2)]);
        TlsConnector::from(config)
            .connect(ServerName::try_from(NAME).unwrap(), stream)
            .await
            .unwrap()
    }
}

/// One request.
#[derive(Clone)]
struct Ask {
    path: Arc<str>,
    bearer: Arc<str>,
    text: Arc<[u8]>,
}

impl Ask {
    fn new(path: &str, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: {bearer}\r\nAccept: */*\r\n\r\n"
        );
        Self {
            path: path.into(),
            bearer: bearer.into(),
            text: text.into_bytes().into(),
        }
    }
}

/// What is asked for next.
#[derive(Clone)]
enum Source {
    Same(Ask),
    Listed(Arc<(Vec<Ask>, AtomicUsize)>),
}

impl Source {
    fn listed(asks: Vec<Ask>) -> Self {
        Self::Listed(Arc::new((asks, AtomicUsize::new(0))))
    }

    fn next(&self) -> Option<Ask> {
        match self {
            Self::Same(ask) => Some(ask.clone()),
            Self::Listed(list) => {
                let (asks, next) = &**list;
                asks.get(next.fetch_add(1, Ordering::Relaxed)).cloned()
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Limit {
    /// Until there is nothing more to ask for.
    All,
    For(Duration),
}

/// What came of asking.
#[derive(Clone)]
struct Run {
    /// Requests in a second.
    speed: f64,
    /// Microseconds.
    p50: f64,
    p99: f64,
    /// Microseconds of CPU of whoever answered, for each.
    cpu: f64,
}

impl Run {
    fn of(took: Duration, mut times: Vec<Duration>, cpu: f64) -> Self {
        times.sort_unstable();
        let at = |hundredth: usize| times[times.len() * hundredth / 100].as_secs_f64() * 1e6;
        Self {
            speed: times.len() as f64 / took.as_secs_f64(),
            p50: at(50),
            p99: at(99),
            cpu: cpu * 1e6 / times.len() as f64,
        }
    }

    /// As ratios to what was measured before and after.
    fn over(&self, before: &Self, after: &Self) -> Self {
        let ratio = |of: fn(&Self) -> f64| of(self) / f64::midpoint(of(before), of(after));
        Self {
            speed: ratio(|run| run.speed),
            p50: ratio(|run| run.p50),
            p99: ratio(|run| run.p99),
            cpu: ratio(|run| run.cpu),
        }
    }
}

/// Asks over connections that are there before it begins.
async fn load(place: &Place, protocol: Protocol, plan: &Plan, limit: Limit, source: Source) -> Run {
    let mut asking = Vec::new();
    let (go, _) = tokio::sync::broadcast::channel::<Option<Instant>>(1);
    match protocol {
        Protocol::Http1 => {
            for _ in 0..plan.at_once {
                let stream = place.connect(protocol).await;
                let (source, mut gone) = (source.clone(), go.subscribe());
                asking.push(tokio::spawn(async move {
                    let end = gone.recv().await.unwrap();
                    over_http1(stream, source, end).await
                }));
            }
        }
        Protocol::Http2 => {
            for _ in 0..plan.at_once / STREAMS {
                let stream = place.connect(protocol).await;
                let (client, connection) = h2::client::handshake(stream).await.unwrap();
                tokio::spawn(async move { connection.await.unwrap_or_default() });
                for _ in 0..STREAMS {
                    let (client, source, mut gone) =
                        (client.clone(), source.clone(), go.subscribe());
                    asking.push(tokio::spawn(async move {
                        let end = gone.recv().await.unwrap();
                        over_http2(client, source, end).await
                    }));
                }
            }
        }
    }
    let (begun, cpu) = (Instant::now(), cpu_seconds(place.pid));
    let end = match limit {
        Limit::All => None,
        Limit::For(slice) => Some(begun + slice),
    };
    go.send(end).unwrap();
    let mut times = Vec::new();
    for one in asking {
        times.extend(one.await.unwrap());
    }
    Run::of(begun.elapsed(), times, cpu_seconds(place.pid) - cpu)
}

fn is_over(end: Option<Instant>) -> bool {
    end.is_some_and(|end| Instant::now() >= end)
}

async fn over_http1(
    mut stream: TlsStream<TcpStream>,
    source: Source,
    end: Option<Instant>,
) -> Vec<Duration> {
    let (mut times, mut buffer) = (Vec::new(), Vec::new());
    while !is_over(end) {
        let Some(ask) = source.next() else { break };
        let asked = Instant::now();
        exchange(&mut stream, &ask.text, &mut buffer).await;
        times.push(asked.elapsed());
    }
    times
}

/// One request over HTTP/1.1, and its whole answer.
async fn exchange(stream: &mut TlsStream<TcpStream>, request: &[u8], buffer: &mut Vec<u8>) {
    stream.write_all(request).await.unwrap();
    buffer.clear();
    let mut whole = usize::MAX;
    while buffer.len() < whole {
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "cut off");
        if whole == usize::MAX
            && let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let text = std::str::from_utf8(&buffer[..head]).unwrap();
            assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            whole = head + 4 + length.unwrap().parse::<usize>().unwrap();
        }
    }
}

async fn over_http2(
    mut client: h2::client::SendRequest<axum::body::Bytes>,
    source: Source,
    end: Option<Instant>,
) -> Vec<Duration> {
    let mut times = Vec::new();
    while !is_over(end) {
        let Some(ask) = source.next() else { break };
        let asked = Instant::now();
        client = client.ready().await.unwrap();
        let request = http::Request::get(format!("https://{NAME}{}", ask.path))
            .header("authorization", &*ask.bearer)
            .header("accept", "*/*")
            .body(())
            .unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            let length = data.unwrap().len();
            body.flow_control().release_capacity(length).unwrap();
        }
        times.push(asked.elapsed());
    }
    times
}

/// The process that says hello over HTTPS, whatever is asked for.
async fn say_hello() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], secret)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    println!("{}", STANDARD.encode(certificate.der()));
    let router = Router::new()
        .route("/claviger/v1/whoami", any(async || "hello"))
        .route(
            "/claviger/v1/access/{namespace}/{resource}/{name}/{subresource}/{verb}",
            any(async || "hello"),
        );
    let service = TowerToHyperService::new(router);
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (acceptor, service) = (acceptor.clone(), service.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let stream = TokioIo::new(stream);
            // A client that has seen enough just goes.
            let _ = if h2 {
                http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .serve_connection(stream, service)
                    .await
            } else {
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(stream, service)
                    .await
            };
        });
    }
}
