//! The listener under attack: who is slow, greedy, ambiguous or many is cut off, and others are served
//! meanwhile.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    routing::{get, post},
};
use clap::Parser;
use claviger::{
    ca::certificate,
    cli::{Cli, Command},
    clock,
    domain::ca::Version,
    k8s::ca::Issuer,
    metrics::Metrics,
    server::{audit::Audit, certificates::Certificates, limits::Limits, listener, names::Names},
};
use jiff::SignedDuration;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

/// A name that the doors have.
const NAME: &str = "claviger.claviger-system.svc";
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Doors that stand open on this machine.
struct Doors {
    address: SocketAddr,
    issuer: Issuer,
    certificates: Arc<Certificates>,
    metrics: Arc<Metrics>,
    audit: Audit,
    page: Page,
    /// Requests that reached the router.
    reached: Arc<AtomicUsize>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

/// What is written to it can be read.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Limits that a test need not wait long for.
fn limits() -> Limits {
    Limits {
        handshake: Duration::from_millis(600),
        head: Duration::from_millis(600),
        request: Duration::from_millis(900),
        answer: Duration::from_millis(600),
        idle: Duration::from_secs(5),
        body_bytes: 10_000,
        ..Limits::default()
    }
}

async fn open(limits: Limits) -> Doors {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let Command::Server(args) = Cli::try_parse_from(["claviger", "server"]).unwrap().command else {
        panic!("not the server")
    };
    let now = clock::now();
    let issuer = certificate::mint(&Version {
        number: 1,
        not_before: now - SignedDuration::from_hours(1),
        not_after: now + SignedDuration::from_hours(1),
        signs_from: now,
        names: ["svc".to_owned(), "svc.cluster.local".to_owned()].into(),
    })
    .unwrap();
    let names = Names::new(&args.names, &args.doors, &args.system_namespace);
    let lifetime = SignedDuration::from_mins(30);
    let certificates = Arc::new(Certificates::new(names, lifetime, Arc::clone(&provider)));
    certificates.sign_with(vec![issuer.clone()]);
    let socket = listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = socket.local_addr().unwrap();
    let reached = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&reached);
    let router = Router::new()
        .route("/", get(|| async { "fine" }))
        .route(
            "/length",
            post(|body: Bytes| async move { body.len().to_string() }),
        )
        .route(
            "/adfs/oauth2/v2.0/token",
            post(|body: Bytes| async move { body.len().to_string() }),
        )
        .route(
            "/big",
            get(|| async {
                let piece = || Ok::<_, std::convert::Infallible>(Bytes::from(vec![b'x'; 16 << 10]));
                let pieces = std::iter::repeat_with(piece).take(1000);
                axum::body::Body::from_stream(futures::stream::iter(pieces))
            }),
        )
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                "slowly"
            }),
        )
        .layer(axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                counting.fetch_add(1, Ordering::SeqCst);
                next.run(request)
            },
        ));
    let (metrics, stop) = (Arc::new(Metrics::default()), CancellationToken::new());
    let page = Page::default();
    let audit = Audit::to(page.clone(), Arc::clone(&metrics));
    let tls = listener::tls(Arc::clone(&certificates) as _, provider).unwrap();
    let serving = tokio::spawn(listener::serve(
        socket,
        tls,
        router,
        limits,
        audit.clone(),
        Arc::clone(&metrics),
        stop.clone(),
    ));
    Doors {
        address,
        issuer,
        certificates,
        metrics,
        audit,
        page,
        reached,
        stop,
        serving,
    }
}

impl Doors {
    async fn connect_as(
        &self,
        name: &str,
        protocol: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_from(Ipv4Addr::LOCALHOST, name, protocol).await
    }

    async fn connect_from(
        &self,
        source: Ipv4Addr,
        name: &str,
        protocol: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.issuer.certificate.as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((source, 0)))?;
        let stream = socket.connect(self.address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_as(NAME, b"http/1.1").await.unwrap()
    }

    /// Sends these bytes and answers everything that comes until the connection ends.
    async fn told(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // Whoever is cut off while they speak cannot finish.
        let _ = stream.write_all(bytes).await;
        rest(&mut stream).await
    }

    /// Others are served, at once.
    async fn serves(&self) {
        let begun = Instant::now();
        let answer = self
            .told(b"GET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{:?}",
            begun.elapsed()
        );
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    fn refused(&self, reason: &str) {
        let line = format!("claviger_server_refusals_total{{reason=\"{reason}\"}}");
        let figures = self.metrics.render();
        assert!(figures.contains(&line), "{line} is not in\n{figures}");
    }

    /// The lines of the audit.
    async fn lines(&self) -> Vec<Value> {
        self.audit.flush().await;
        let text = String::from_utf8(self.page.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    async fn h2(
        &self,
    ) -> (
        h2::client::SendRequest<Bytes>,
        JoinHandle<Result<(), h2::Error>>,
    ) {
        let stream = self.connect_as(NAME, b"h2").await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        (send, tokio::spawn(connection))
    }
}

/// What comes until the connection ends, however it does.
async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..read]);
        }
    };
    let ended = tokio::time::timeout(PATIENCE, reading).await;
    assert!(ended.is_ok(), "the connection was not ended");
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(path: &str) -> http::Request<()> {
    http::Request::get(format!("https://{NAME}{path}"))
        .body(())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_are_spoken_under_names_of_ours_and_no_other() {
    let doors = open(limits()).await;
    doors.serves().await;
    let (mut send, _) = doors.h2().await;
    let (answer, _) = send.send_request(request("/"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    for name in ["x.shop.svc", "x.shop.svc.cluster.local"] {
        doors.connect_as(name, b"http/1.1").await.unwrap();
    }
    for name in ["vault.azure.net", "shop.svc", "127.0.0.1", "localhost"] {
        assert!(doors.connect_as(name, b"http/1.1").await.is_err(), "{name}");
    }
    assert!(doors.connect_as(NAME, b"smtp").await.is_err());
    doors.refused("handshake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_drips_is_cut_off() {
    let doors = open(limits()).await;
    let mut silent = TcpStream::connect(doors.address).await.unwrap();
    let mut dripping = TcpStream::connect(doors.address).await.unwrap();
    // The record of a hello of 512 bytes, of which one comes now and then.
    dripping.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let drip = tokio::spawn(async move {
        let begun = Instant::now();
        while dripping.write_all(&[1]).await.is_ok() && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        begun.elapsed()
    });
    doors.serves().await;
    let mut buffer = [0; 16];
    let ended = tokio::time::timeout(PATIENCE, silent.read(&mut buffer))
        .await
        .unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert!(drip.await.unwrap() < PATIENCE);
    doors.refused("handshake_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_cut_off() {
    let doors = open(limits()).await;
    let mut stream = doors.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nX: ")
        .await
        .unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let drip = tokio::spawn(async move {
        while writing.write_all(b"y").await.is_ok() && writing.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    });
    doors.serves().await;
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the connection was not ended");
    drip.abort();
    assert_eq!(doors.reached(), 1, "only the one who was not slow");
    doors.refused("head_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_answered_408_and_cut_off() {
    let doors = open(limits()).await;
    let head = "POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nContent-Length: 100\r\n\r\nx";
    let slow = doors.told(head.as_bytes());
    let ((), answer) = tokio::join!(doors.serves(), slow);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains(r#""code":"RequestTimeout""#), "{answer}");
    let (mut send, _) = doors.h2().await;
    let post = http::Request::post(format!("https://{NAME}/length"))
        .body(())
        .unwrap();
    let (answer, mut body) = send.send_request(post, false).unwrap();
    body.send_data(Bytes::from_static(b"x"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 408);
    doors.refused("request_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_beyond_their_size_do_not_reach_the_router() {
    let doors = open(limits()).await;
    for head in [
        format!("X: {}\r\n", "y".repeat(40_000)),
        "X: y\r\n".repeat(200),
        "X: y\r\n".repeat(20_000),
    ] {
        let answer = doors
            .told(
                format!("GET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n{head}\r\n")
                    .as_bytes(),
            )
            .await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
            "{answer}"
        );
    }
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n\r\n",
        "y".repeat(40_000)
    );
    let answer = doors.told(long.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    // Of HTTP/2 as well: many headers, and one that is large.
    for (count, size) in [(2000, 100), (1, 60_000)] {
        let (mut send, _) = doors.h2().await;
        let mut large = request("/");
        for number in 0..count {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            large
                .headers_mut()
                .insert(name, "y".repeat(size).parse().unwrap());
        }
        let outcome = match send.send_request(large, true) {
            Ok((answer, _)) => answer.await.map(|answer| answer.status()),
            Err(error) => Err(error),
        };
        assert!(
            outcome.as_ref().map_or(true, |status| *status == 431),
            "{outcome:?}"
        );
    }
    assert_eq!(doors.reached(), 0);
    let told = "POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nContent-Length: 10001\r\n\r\n";
    let answer = doors.told(told.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(doors.reached(), 0);
    // Who does not tell the size first is stopped on the way.
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000)).repeat(4);
    let chunked = format!(
        "POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"
    );
    let answer = doors.told(chunked.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 413"),
        "{answer}"
    );
    let fits = format!(
        "POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nContent-Length: 10000\r\nConnection: close\r\n\r\n{}",
        "x".repeat(10_000)
    );
    let answer = doors.told(fits.as_bytes()).await;
    assert!(answer.ends_with("\r\n\r\n10000"), "{answer}");
    doors.refused("body");
    doors.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_be_read_in_two_ways_smuggle_nothing_in() {
    let doors = open(limits()).await;
    let smuggled = "GET /slow HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n\r\n";
    let both = format!("0\r\n\r\n{smuggled}");
    let size = both.len();
    for (head, body) in [
        (
            format!("Content-Length: {size}\r\nTransfer-Encoding: chunked\r\n\r\n"),
            both.as_str(),
        ),
        (
            format!("Transfer-Encoding: chunked\r\nContent-Length: {size}\r\n\r\n"),
            &both,
        ),
        (
            "Content-Length: 0\r\nContent-Length: 100\r\n\r\n".to_owned(),
            smuggled,
        ),
        (
            "Content-Length: 0\r\nTransfer-Encoding : chunked\r\n\r\n".to_owned(),
            smuggled,
        ),
        (
            "Transfer-Encoding: chunked, identity\r\n\r\n".to_owned(),
            &both,
        ),
        ("Transfer-Encoding: \u{b}chunked\r\n\r\n".to_owned(), &both),
        (
            "Transfer-Encoding: chunked\r\n\r\n0;x=\n\r\n\r\n".to_owned(),
            smuggled,
        ),
        ("Content-Length: 0\nX: y\n\n".to_owned(), smuggled),
        ("X: y\nContent-Length: 0\r\n\r\n".to_owned(), smuggled),
        ("X: y\r\n Content-Length: 100\r\n\r\n".to_owned(), smuggled),
        ("X: y\r\n\tfolded: z\r\n\r\n".to_owned(), smuggled),
        ("X: y\rContent-Length: 0\r\n\r\n".to_owned(), smuggled),
        ("X\0: y\r\n\r\n".to_owned(), smuggled),
        (": y\r\n\r\n".to_owned(), smuggled),
    ] {
        let text =
            format!("POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n{head}{body}");
        let answer = doors.told(text.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{text:?}: {answer}"
        );
    }
    for line in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET  /  HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n\r\n",
        "GET /\u{0} HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: claviger.claviger-system.svc\r\n\r\n",
        "GET / HTTP/1.1\r\n\nHost: claviger.claviger-system.svc\r\n\r\n",
        "\u{16}\u{3}\u{1}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = doors.told(line.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{line:?}: {answer}"
        );
    }
    assert_eq!(doors.reached(), 0, "something was smuggled in");
    // What is clear is answered, one after the other.
    let clear = "POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nConnection: close\r\n\r\n";
    let answer = doors.told(clear.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_peer_that_takes_its_requests_back_is_cut_off() {
    let doors = open(limits()).await;
    let (mut send, connection) = doors.h2().await;
    let mut taken_back = 0_u32;
    while taken_back < 5000 && !connection.is_finished() {
        let Ok(ready) = send.clone().ready().await else {
            break;
        };
        send = ready;
        let Ok((_, mut stream)) = send.send_request(request("/slow"), true) else {
            break;
        };
        taken_back += 1;
        // Under way, lest the library sees it first and counts it as its own.
        while doors.reached() < taken_back as usize && !connection.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stream.send_reset(h2::Reason::CANCEL);
    }
    assert!(taken_back < 1000, "{taken_back} requests were taken back");
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    assert!(ended.is_ok(), "the connection was not ended");
    doors.refused("flood");
    doors.serves().await;
    // All at once, which the library sees before a request is under way.
    let (mut send, connection) = doors.h2().await;
    for _ in 0..5000 {
        let Ok(ready) = send.clone().ready().await else {
            break;
        };
        send = ready;
        let Ok((_, mut stream)) = send.send_request(request("/slow"), true) else {
            break;
        };
        stream.send_reset(h2::Reason::CANCEL);
    }
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    assert!(ended.is_ok(), "the connection was not ended");
    doors.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_http2_that_never_end_are_cut_off() {
    let doors = open(limits()).await;
    let mut stream = doors.connect_as(NAME, b"h2").await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    // HEADERS of stream 1 without an end, then CONTINUATION after CONTINUATION.
    stream
        .write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82])
        .await
        .unwrap();
    let mut piece = vec![0, 0x40, 0, 9, 0, 0, 0, 0, 1];
    // Literal headers, each with a name of its own.
    while piece.len() < 9 + 0x4000 - 8 {
        piece.extend([
            0x00,
            2,
            b'x',
            b'a' + u8::try_from(piece.len() % 26).unwrap(),
            2,
            b'y',
            b'z',
        ]);
    }
    let length = u8::try_from((piece.len() - 9) >> 8).unwrap();
    (piece[1], piece[2]) = (length, u8::try_from((piece.len() - 9) & 0xff).unwrap());
    let mut sent = 0;
    while sent < 2000 && stream.write_all(&piece).await.is_ok() && stream.flush().await.is_ok() {
        sent += 1;
    }
    assert!(sent < 2000, "{sent} frames were taken");
    assert_eq!(doors.reached(), 0);
    doors.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_their_number_are_refused_until_one_ends() {
    for limited in [
        Limits {
            connections: 3,
            ..limits()
        },
        Limits {
            per_peer: 3,
            ..limits()
        },
    ] {
        let reason = if limited.connections == 3 {
            "connections"
        } else {
            "connections_of_peer"
        };
        let patient = Limits {
            head: PATIENCE,
            ..limited
        };
        let doors = open(patient).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(doors.connect().await);
        }
        assert!(doors.connect_as(NAME, b"http/1.1").await.is_err());
        doors.refused(reason);
        assert!(
            doors
                .metrics
                .render()
                .contains("claviger_server_connections 3")
        );
        // Those who are in are served.
        let request =
            b"GET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nConnection: close\r\n\r\n";
        held[0].write_all(request).await.unwrap();
        assert!(rest(&mut held[0]).await.starts_with("HTTP/1.1 200"));
        held.remove(0);
        let begun = Instant::now();
        while doors.connect_as(NAME, b"http/1.1").await.is_err() {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_their_number_are_answered_503() {
    let doors = open(Limits {
        requests: 1,
        ..limits()
    })
    .await;
    let (mut send, _) = doors.h2().await;
    let (slow, _) = send.send_request(request("/slow"), true).unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let (answer, _) = send.send_request(request("/"), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(slow.await.unwrap().status(), 200);
    let begun = Instant::now();
    loop {
        let (answer, _) = send.send_request(request("/"), true).unwrap();
        if answer.await.unwrap().status() == 200 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE);
    }
    doors.refused("requests");
}

/// An answer as JSON, of a request that is over with it.
fn json(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_the_places_of_all_requests() {
    let doors = open(Limits {
        requests: 4,
        requests_per_peer: 2,
        request: PATIENCE,
        answer: PATIENCE,
        ..limits()
    })
    .await;
    let other = Ipv4Addr::new(127, 0, 0, 2);
    let status = async |source| {
        let mut stream = doors.connect_from(source, NAME, b"http/1.1").await.unwrap();
        let text = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        rest(&mut stream).await[9..12].to_owned()
    };
    for path in ["/length", "/big"] {
        // Bodies that never end, then answers that are not fetched.
        let stream = doors.connect_as(NAME, b"h2").await.unwrap();
        let (mut send, connection) = h2::client::Builder::new()
            .initial_window_size(0)
            .handshake::<_, Bytes>(stream)
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let reached = doors.reached();
        let mut held = Vec::new();
        for _ in 0..8 {
            let mut request = request(path);
            if path == "/length" {
                *request.method_mut() = http::Method::POST;
            }
            held.push(send.send_request(request, path == "/big").unwrap());
        }
        let begun = Instant::now();
        while doors.reached() < reached + 2 {
            assert!(begun.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(status(other).await, "200", "{path}");
        assert_eq!(status(Ipv4Addr::LOCALHOST).await, "503", "{path}");
        doors.refused("requests_of_peer");
        // The places are free again when their connection is gone.
        drop((held, send));
        connection.abort();
        let begun = Instant::now();
        while status(Ipv4Addr::LOCALHOST).await != "200" {
            assert!(begun.elapsed() < PATIENCE);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_fetch_the_answer_is_cut_off_before_an_idle_connection_would_be() {
    let doors = open(Limits {
        idle: Duration::from_hours(1),
        ..limits()
    })
    .await;
    let stream = doors.connect_as(NAME, b"h2").await.unwrap();
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size(1)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    // The connection was looked at while nothing was under way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (_answer, _) = send.send_request(request("/big"), true).unwrap();
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    assert!(ended.is_ok(), "the connection was not ended");
    doors.refused("stuck");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_peer_may_send_little_before_it_is_read() {
    let doors = open(limits()).await;
    let mut stream = doors.connect_as(NAME, b"h2").await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).await.unwrap();
    stream.flush().await.unwrap();
    let (mut window, mut connection) = (65_535, 65_535);
    let settled = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            match head[3] {
                // SETTINGS.
                4 => {
                    for setting in payload.chunks(6).filter(|setting| setting[1] == 4) {
                        window = number(&setting[2..]);
                    }
                }
                // WINDOW_UPDATE of the connection, which comes behind them.
                8 => {
                    connection += number(&payload);
                    break;
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert_eq!((window, connection), (64 << 10, 256 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_listener_refuses_leaves_a_line_and_is_told_in_the_words_of_its_path() {
    let doors = open(Limits {
        requests: 1,
        ..limits()
    })
    .await;
    let token = "/adfs/oauth2/v2.0/token";
    let post = |path: &str, more: &str| {
        format!("POST {path}?S3CR3T HTTP/1.1\r\nHost: {NAME}\r\nX: S3CR3T\r\n{more}\r\n\r\n")
    };
    let too_long = "Content-Length: 10001";
    let mut expected = Vec::new();
    for (path, is_token) in [("/length", false), (token, true)] {
        // One that is slow, which ends with 408; meanwhile there is no place for another.
        let reached = doors.reached();
        let mut slow = doors.connect().await;
        let begin = post(path, "Content-Length: 2");
        slow.write_all(begin.as_bytes()).await.unwrap();
        while doors.reached() == reached {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let busy = doors
            .told(post(path, "Content-Length: 0\r\nConnection: close").as_bytes())
            .await;
        let slow = rest(&mut slow).await;
        let large = doors.told(post(path, too_long).as_bytes()).await;
        let twice = doors
            .told(post(path, &format!("Host: {NAME}")).as_bytes())
            .await;
        let elsewhere = post(path, "Content-Length: 0").replace(NAME, "x.shop.svc");
        let elsewhere = doors
            .told(
                elsewhere
                    .replace("X: ", "Connection: close\r\nX: ")
                    .as_bytes(),
            )
            .await;
        for (answer, status, oauth, azure, reason) in [
            (
                busy,
                503,
                "temporarily_unavailable",
                "TooManyRequestsUnderWay",
                "requests",
            ),
            (
                slow,
                408,
                "temporarily_unavailable",
                "RequestTimeout",
                "request_timeout",
            ),
            (large, 413, "invalid_request", "RequestBodyTooLarge", "body"),
            (twice, 400, "invalid_request", "BadHost", "host"),
            (
                elsewhere,
                421,
                "invalid_request",
                "MisdirectedRequest",
                "misdirected",
            ),
        ] {
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{answer}"
            );
            let told = json(&answer);
            if is_token {
                assert_eq!(told["error"], oauth, "{answer}");
                assert!(
                    told["error_description"]
                        .as_str()
                        .unwrap()
                        .starts_with("AADSTS")
                );
            } else {
                assert_eq!(told["error"]["code"], azure, "{answer}");
            }
            assert!(answer.contains("cache-control: no-store") && !answer.contains("S3CR3T"));
            assert_eq!(status == 503, answer.contains("retry-after: 1"), "{answer}");
            doors.refused(reason);
            expected.push((answer, status, reason));
        }
    }
    let lines = doors.lines().await;
    assert_eq!(lines.len(), expected.len());
    for (answer, status, reason) in expected {
        let own = |line: &&Value| answer.contains(line["requestId"].as_str().unwrap());
        let line = lines.iter().find(own).unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&status.into(), &reason.into())
        );
        assert_eq!(
            (&line["door"], &line["source"]),
            (&"listener".into(), &"127.0.0.1".into())
        );
        assert!(!line.to_string().contains("S3CR3T"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_another_host_than_its_connection_does_not_reach_the_router() {
    let doors = open(limits()).await;
    for name in ["x.shop.svc", "claviger.claviger-system.svc:8443"] {
        let (host, _) = name.split_once(':').unwrap_or((name, ""));
        let stream = doors.connect_as(host, b"h2").await.unwrap();
        let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut status = async |authority: &str, header: Option<&str>| {
            let mut request = http::Request::get(format!("https://{authority}/"));
            if let Some(header) = header {
                request = request.header("host", header);
            }
            let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
            answer.await.unwrap().status().as_u16()
        };
        assert_eq!(status(name, None).await, 200);
        assert_eq!(status("y.shop.svc", None).await, 421);
        assert_eq!(status(name, Some("y.shop.svc")).await, 421);
        assert_eq!(doors.reached(), 1);
        doors.reached.store(0, Ordering::SeqCst);
    }
    for (target, hosts, status) in [
        ("/", "", 400),
        ("/", "Host:\r\n", 400),
        ("/", "Host: y.shop.svc\r\n", 421),
        (
            "https://y.shop.svc/",
            "Host: claviger.claviger-system.svc\r\n",
            421,
        ),
        (
            "/",
            "Host: claviger.claviger-system.svc\r\nHost: y.shop.svc\r\n",
            400,
        ),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let answer = doors.told(text.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{text}{answer}"
        );
    }
    assert_eq!(doors.reached(), 0);
    doors.refused("misdirected");
    doors.refused("host");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_idle_or_does_not_fetch_the_answer_is_cut_off() {
    let doors = open(Limits {
        idle: Duration::from_millis(400),
        head: PATIENCE,
        ..limits()
    })
    .await;
    let mut idle = doors.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n\r\n")
        .await
        .unwrap();
    assert!(rest(&mut idle).await.starts_with("HTTP/1.1 200"));
    let (_send, idle) = doors.h2().await;
    let ended = tokio::time::timeout(PATIENCE, idle).await;
    assert!(ended.is_ok(), "the connection was not ended");
    // An answer of which nothing is fetched: the window of HTTP/2 stays closed.
    let stream = doors.connect_as(NAME, b"h2").await.unwrap();
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size(1)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (answer, _) = send.send_request(request("/big"), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let ended = tokio::time::timeout(PATIENCE, connection).await;
    assert!(ended.is_ok(), "the connection was not ended");
    doors.refused("stuck");
    drop(answer);
    doors.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_the_requests_under_way_and_takes_no_more() {
    let doors = open(limits()).await;
    let slow = b"GET /slow HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\n\r\n";
    let mut one = doors.connect().await;
    one.write_all(slow).await.unwrap();
    let mut idle = doors.connect().await;
    let (mut send, two) = doors.h2().await;
    let (answer, _) = send.send_request(request("/slow"), true).unwrap();
    while doors.reached() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    doors.stop.cancel();
    // An idle connection is ended at once; the others when they have their answers.
    assert_eq!(rest(&mut idle).await, "");
    let first = rest(&mut one).await;
    assert!(
        first.starts_with("HTTP/1.1 200") && first.ends_with("slowly"),
        "{first}"
    );
    assert_eq!(answer.await.unwrap().status(), 200);
    drop(send);
    let _ = tokio::time::timeout(PATIENCE, two).await.unwrap();
    tokio::time::timeout(PATIENCE, doors.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(doors.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_no_longer_than_it_was_told() {
    let drain = Duration::from_millis(300);
    let doors = open(Limits {
        drain,
        request: PATIENCE,
        ..limits()
    })
    .await;
    let mut stream = doors.connect().await;
    let head = b"POST /length HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nContent-Length: 100\r\n\r\nx";
    stream.write_all(head).await.unwrap();
    while doors.reached() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let begun = Instant::now();
    doors.stop.cancel();
    doors.serving.await.unwrap();
    assert!(
        (drain..Duration::from_secs(5)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(rest(&mut stream).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_is_shown_without_ending_a_connection() {
    let doors = open(limits()).await;
    let shown =
        |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut before = doors.connect().await;
    // A given certificate takes the place of the leaf: one that the CA signed, so that it is trusted.
    let now = clock::now();
    let leaf = certificate::leaf(
        &doors.issuer,
        &[NAME.to_owned()],
        now - SignedDuration::from_mins(5),
        now + SignedDuration::from_mins(5),
    )
    .unwrap();
    let rustls::pki_types::PrivateKeyDer::Pkcs8(key) = &leaf.key else {
        panic!("not PKCS #8")
    };
    let pem = claviger::ca::roots::pem;
    let key = pem(key.secret_pkcs8_der()).replace("CERTIFICATE", "PRIVATE KEY");
    doors
        .certificates
        .show(Secret {
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(
                [
                    (
                        "tls.crt".to_owned(),
                        ByteString(pem(&leaf.certificate).into_bytes()),
                    ),
                    ("tls.key".to_owned(), ByteString(key.into_bytes())),
                ]
                .into(),
            ),
            ..Secret::default()
        })
        .unwrap();
    let after = doors.connect().await;
    assert_eq!(shown(&after), leaf.certificate);
    assert_ne!(shown(&before), shown(&after));
    let request =
        b"GET / HTTP/1.1\r\nHost: claviger.claviger-system.svc\r\nConnection: close\r\n\r\n";
    before.write_all(request).await.unwrap();
    assert!(rest(&mut before).await.starts_with("HTTP/1.1 200"));
}
