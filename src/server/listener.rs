//! The listener: accepts connections, speaks TLS and HTTP/1.1 or HTTP/2, and hands requests to a router.
//!
//! Which protocol is spoken is settled in the handshake (ALPN), never guessed from what comes first.
//! Everything that a peer can do slowly, or often, or at length has a limit ([`Limits`]); who goes beyond
//! it loses the request or the connection, and nobody else anything.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{Request, Response, StatusCode, header, uri::Authority},
};
use http_body_util::Limited;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock,
    metrics::Metrics,
    server::{
        audit::{Audit, Record},
        error::Refusal,
        framing::Framed,
        limits::Limits,
    },
};

/// The pause when no connection can be accepted, for want of file descriptors most often.
const BREATH: Duration = Duration::from_millis(50);
/// How long a connection that was told to end may take to do so.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes that an HTTP/2 peer may send of one request before they are read, and that are kept of an
/// answer before they are fetched. Times the requests under way it is 32 MiB, of the 256 MiB that a
/// replica has; with the library's 1 MiB and 400 KiB it would be more than all of them. The largest
/// form fits, so that nobody waits for it.
const STREAM_WINDOW: u32 = 64 << 10;
/// The same of all requests of one connection.
const CONNECTION_WINDOW: u32 = 256 << 10;

/// Serves the router on this socket until `stop`, then finishes the requests under way. What is refused
/// before the router goes to the audit, too.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    audit: Audit,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let drain = limits.drain;
    let doors = Arc::new(Doors {
        acceptor: TlsAcceptor::from(tls),
        router: TowerToHyperService::new(router),
        places: Arc::new(Semaphore::new(limits.connections)),
        requests: Arc::new(Semaphore::new(limits.requests)),
        peers: Peers::default(),
        askers: Peers::default(),
        audit,
        metrics,
        limits,
        stop,
        kill: CancellationToken::new(),
    });
    let open = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = doors.stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(place) = doors.place(peer.ip()) {
                    open.spawn(connection(Arc::clone(&doors), stream, peer, place));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    open.close();
    let left = open.len();
    if timeout(drain, open.wait()).await.is_err() {
        tracing::warn!(connections = open.len(), "requests under way are cut off");
        doors.kill.cancel();
        open.wait().await;
    }
    tracing::debug!(connections = left, "the doors are closed");
}

/// What all connections share.
struct Doors {
    acceptor: TlsAcceptor,
    router: TowerToHyperService<Router>,
    places: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// Their connections.
    peers: Peers,
    /// Their requests.
    askers: Peers,
    audit: Audit,
    metrics: Arc<Metrics>,
    limits: Limits,
    stop: CancellationToken,
    /// Cuts everything off.
    kill: CancellationToken,
}

impl Doors {
    /// A place for a connection from this address, if there is one.
    fn place(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.refused("connections");
            return None;
        };
        let network = network(peer);
        if !self.peers.enter(network, self.limits.per_peer) {
            self.metrics.refused("connections_of_peer");
            return None;
        }
        let place = Place {
            doors: Arc::clone(self),
            network,
            permit: Some(permit),
        };
        place.count();
        Some(place)
    }

    /// A place for a request from this network, or the word for why there is none.
    fn turn(self: &Arc<Self>, network: IpAddr) -> Result<Turn, &'static str> {
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            return Err("requests");
        };
        if !self.askers.enter(network, self.limits.requests_per_peer) {
            return Err("requests_of_peer");
        }
        Ok(Turn {
            doors: Arc::clone(self),
            network,
            _permit: permit,
        })
    }
}

/// A connection's place among those that are open.
struct Place {
    doors: Arc<Doors>,
    network: IpAddr,
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn count(&self) {
        let doors = &self.doors;
        let free = doors.places.available_permits();
        doors
            .metrics
            .connected(doors.limits.connections.saturating_sub(free));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.doors.peers.leave(self.network);
        self.permit = None;
        self.count();
    }
}

/// A request's place among those that are under way.
struct Turn {
    doors: Arc<Doors>,
    network: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.doors.askers.leave(self.network);
    }
}

/// How many connections, or requests, each network has.
#[derive(Default)]
struct Peers(Mutex<HashMap<IpAddr, usize>>);

impl Peers {
    fn enter(&self, network: IpAddr, most: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_default();
        if *count >= most {
            return false;
        }
        *count += 1;
        true
    }

    fn leave(&self, network: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&network);
            }
        }
    }
}

/// Whom an address stands for.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// One connection, from the handshake to its end.
async fn connection(doors: Arc<Doors>, stream: TcpStream, address: SocketAddr, place: Place) {
    let _ = stream.set_nodelay(true);
    let handshake = timeout(doors.limits.handshake, doors.acceptor.accept(stream));
    let stream = tokio::select! {
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => return doors.metrics.refused("handshake"),
            Err(_) => return doors.metrics.refused("handshake_timeout"),
        },
        // Whoever is not in yet finds another replica.
        () = doors.stop.cancelled() => return,
    };
    // There is no certificate without a name, and so no connection.
    let Some(name) = stream.get_ref().1.server_name() else {
        return doors.metrics.refused("handshake");
    };
    let peer = Arc::new(Peer {
        address: address.ip(),
        network: place.network,
        name: name.to_owned(),
        traffic: Arc::new(Traffic::new(&doors.limits)),
    });
    tokio::select! {
        () = speak(&doors, stream, &peer) => {}
        () = doors.kill.cancelled() => {}
    }
}

/// Who is at the other end of a connection.
struct Peer {
    address: IpAddr,
    network: IpAddr,
    /// Whom it came to see: the name of the handshake, which the certificate was chosen by.
    name: String,
    traffic: Arc<Traffic>,
}

async fn speak(doors: &Arc<Doors>, stream: TlsStream<TcpStream>, peer: &Arc<Peer>) {
    let limits = &doors.limits;
    let traffic = &peer.traffic;
    let (answering, asking) = (Arc::clone(doors), Arc::clone(peer));
    let service =
        service_fn(move |request| answer(Arc::clone(&answering), Arc::clone(&asking), request));
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(100)
            .serve_connection(TokioIo::new(stream), service);
        let wind_down = http2::Connection::graceful_shutdown;
        watch_over(doors, connection, wind_down, traffic).await;
    } else {
        let stream = Framed::new(stream, limits.head_bytes, Arc::clone(&traffic.within));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_headers(limits.headers)
            // Room for a head of the greatest size, and what was read behind it.
            .max_buf_size(limits.head_bytes.max(8 << 10) * 2)
            .max_header_size(limits.head_bytes)
            .serve_connection(TokioIo::new(stream), service);
        let wind_down = http1::Connection::graceful_shutdown;
        watch_over(doors, connection, wind_down, traffic).await;
    }
}

/// Keeps a connection going until it ends, is idle, is stuck, floods, or the doors close.
async fn watch_over<C>(
    doors: &Doors,
    connection: C,
    wind_down: impl Fn(Pin<&mut C>),
    traffic: &Traffic,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    let mut farewell: Option<Instant> = None;
    loop {
        let look = farewell.unwrap_or_else(|| traffic.next_look());
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    // Between two requests nobody is late: the connection was idle.
                    if error.is_timeout() && !traffic.within.load(Ordering::Relaxed) {
                        return;
                    }
                    let reason = if error.is_parse() || error.is_parse_too_large() {
                        "malformed"
                    } else if error.is_timeout() {
                        "head_timeout"
                    } else {
                        "broken"
                    };
                    doors.metrics.refused(reason);
                }
                return;
            }
            () = doors.stop.cancelled(), if farewell.is_none() => {
                wind_down(connection.as_mut());
                // Requests under way have as long as the drain gives them.
                farewell = Some(Instant::now() + doors.limits.drain);
            }
            () = traffic.flood.notified() => return doors.metrics.refused("flood"),
            () = sleep_until(look) => {
                if farewell.is_some() {
                    return;
                }
                match traffic.state() {
                    State::Busy => {}
                    State::Idle => {
                        wind_down(connection.as_mut());
                        farewell = Some(Instant::now() + FAREWELL);
                    }
                    State::Stuck => return doors.metrics.refused("stuck"),
                }
            }
        }
    }
}

/// What goes on on one connection.
struct Traffic {
    ledger: Mutex<Ledger>,
    /// Whether an HTTP/1 request has begun and has not ended.
    within: Arc<AtomicBool>,
    /// Rings when too many requests were taken back.
    flood: Notify,
    /// The longest that a request and its answer may take.
    longest: Duration,
    idle: Duration,
    taken_back: u32,
}

struct Ledger {
    next: u64,
    open: BTreeMap<u64, Instant>,
    last: Instant,
    answered: u32,
    taken_back: u32,
}

enum State {
    Busy,
    Idle,
    Stuck,
}

impl Traffic {
    fn new(limits: &Limits) -> Self {
        Self {
            ledger: Mutex::new(Ledger {
                next: 0,
                open: BTreeMap::new(),
                last: Instant::now(),
                answered: 0,
                taken_back: 0,
            }),
            within: Arc::default(),
            flood: Notify::new(),
            longest: limits.request + limits.answer,
            idle: limits.idle,
            taken_back: limits.taken_back,
        }
    }

    fn begin(self: &Arc<Self>) -> Ticket {
        let mut ledger = self.lock();
        let number = ledger.next;
        ledger.next += 1;
        ledger.open.insert(number, Instant::now());
        Ticket {
            traffic: Arc::clone(self),
            number,
            answered: false,
        }
    }

    /// When a request that is under way is stuck, or the connection idle; no later than a request that
    /// begins after this could be, or the connection could be when those under way end.
    fn next_look(&self) -> Instant {
        let ledger = self.lock();
        let due = match ledger.open.values().next() {
            Some(oldest) => *oldest + self.longest,
            None => ledger.last + self.idle,
        };
        due.min(Instant::now() + self.longest.min(self.idle))
    }

    fn state(&self) -> State {
        let ledger = self.lock();
        let now = Instant::now();
        match ledger.open.values().next() {
            Some(oldest) if *oldest + self.longest <= now => State::Stuck,
            None if ledger.last + self.idle <= now => State::Idle,
            _ => State::Busy,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, from its head to the end of its answer.
struct Ticket {
    traffic: Arc<Traffic>,
    number: u64,
    answered: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut ledger = self.traffic.lock();
        ledger.open.remove(&self.number);
        ledger.last = Instant::now();
        if self.answered {
            ledger.answered = ledger.answered.saturating_add(1);
        } else {
            ledger.taken_back += 1;
            if ledger.taken_back > self.traffic.taken_back.saturating_add(ledger.answered) {
                self.traffic.flood.notify_one();
            }
        }
    }
}

/// Answers one request.
async fn answer(
    doors: Arc<Doors>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut ticket = peer.traffic.begin();
    let trail = doors
        .audit
        .begin(Record::begun("listener", Some(peer.address)));
    let path = request.uri().path().to_owned();
    let (turn, outcome) = match admit(&doors, &peer, &request) {
        Ok(turn) => {
            let mut request =
                request.map(|body| Body::new(Limited::new(body, doors.limits.body_bytes)));
            request.extensions_mut().insert(trail.clone());
            let answered = timeout(doors.limits.request, doors.router.call(request)).await;
            let outcome = match answered {
                Ok(Ok(response)) => Ok(response),
                Err(_) => Err(too_slow()),
            };
            (Some(turn), outcome)
        }
        Err(refusal) => (None, Err(refusal)),
    };
    let response = outcome.unwrap_or_else(|refusal| {
        doors.metrics.refused(refusal.reason);
        let request_id = trail.request_id();
        trail.refuse(refusal.status.as_u16(), refusal.reason);
        refusal.answer_at(&path, &request_id, clock::now())
    });
    ticket.answered = true;
    Ok(response.map(|body| Answer {
        body,
        _ticket: ticket,
        _turn: turn,
    }))
}

/// Lets a request come as far as the router, or says why not.
fn admit(doors: &Arc<Doors>, peer: &Peer, request: &Request<Incoming>) -> Result<Turn, Refusal> {
    name_of(request, &peer.name)?;
    let turn = doors.turn(peer.network).map_err(too_many)?;
    if request.size_hint().lower() > limit(&doors.limits) {
        return Err(too_large(&doors.limits));
    }
    Ok(turn)
}

/// Whether a request is for the host that its connection was made to. What is answered depends on the
/// host, so it must be one only, by whatever it is told.
fn name_of<B>(request: &Request<B>, name: &str) -> Result<(), Refusal> {
    let mut headers = request.headers().get_all(header::HOST).iter();
    let in_header = headers
        .next()
        .map(|host| Authority::try_from(host.as_bytes()).map_err(|_| unnamed()))
        .transpose()?;
    let in_target = request.uri().authority().cloned();
    if headers.next().is_some() || (in_header.is_none() && in_target.is_none()) {
        return Err(unnamed());
    }
    for authority in [in_header, in_target].into_iter().flatten() {
        if authority.as_str().contains('@') {
            return Err(unnamed());
        }
        // Names that are absolute in DNS are told without their dot in the handshake.
        let host = authority.host();
        let host = host.strip_suffix('.').unwrap_or(host);
        if !host.eq_ignore_ascii_case(name) {
            return Err(misdirected());
        }
    }
    Ok(())
}

fn unnamed() -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "BadHost",
        number: 900_144,
        reason: "host",
        sentence: "The request must name one host: send one Host header with the name of the URL."
            .to_owned(),
    }
}

fn misdirected() -> Refusal {
    Refusal {
        status: StatusCode::MISDIRECTED_REQUEST,
        code: "MisdirectedRequest",
        number: 900_144,
        reason: "misdirected",
        sentence: "The request is for another host than the connection: the name in TLS and the Host header must be the same."
            .to_owned(),
    }
}

fn too_many(reason: &'static str) -> Refusal {
    Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "TooManyRequestsUnderWay",
        number: 90_033,
        reason,
        sentence: "The server is busy: try again in a second.".to_owned(),
    }
}

fn too_large(limits: &Limits) -> Refusal {
    Refusal {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        code: "RequestBodyTooLarge",
        number: 900_144,
        reason: "body",
        sentence: format!(
            "The body of a request has at most {} bytes.",
            limits.body_bytes
        ),
    }
}

fn too_slow() -> Refusal {
    Refusal {
        status: StatusCode::REQUEST_TIMEOUT,
        code: "RequestTimeout",
        number: 90_033,
        reason: "request_timeout",
        sentence: "The request took too long: try again in a moment.".to_owned(),
    }
}

fn limit(limits: &Limits) -> u64 {
    u64::try_from(limits.body_bytes).unwrap_or(u64::MAX)
}

/// The body of an answer; what it holds is let go when it was sent.
struct Answer {
    body: Body,
    _ticket: Ticket,
    _turn: Option<Turn>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What the doors say in the handshake.
///
/// # Errors
/// When the provider speaks no version of TLS that is fit.
pub fn tls(
    certificates: Arc<dyn rustls::server::ResolvesServerCert>,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A socket for the doors.
///
/// # Errors
/// When the address is taken.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_is_an_address_or_a_network_of_64_bits() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::7"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }

    #[test]
    fn a_request_is_for_the_host_that_its_connection_was_made_to() {
        let status = |target: &str, hosts: &[&str]| {
            let mut request = Request::get(target);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            let request = request.body(()).unwrap();
            name_of(&request, "a.shop.svc").map_err(|refusal| refusal.status.as_u16())
        };
        for host in [
            "a.shop.svc",
            "A.Shop.svc",
            "a.shop.svc:8443",
            "a.shop.svc.",
            "a.shop.svc.:443",
        ] {
            assert_eq!(status("/", &[host]), Ok(()), "{host}");
            let target = format!("https://{host}/");
            assert_eq!(status(&target, &[]), Ok(()), "{host}");
            assert_eq!(status(&target, &[host]), Ok(()), "{host}");
        }
        for host in [
            "b.shop.svc",
            "shop.svc",
            "xa.shop.svc",
            "127.0.0.1",
            "[::1]:1",
        ] {
            assert_eq!(status("/", &[host]), Err(421), "{host}");
            let target = format!("https://{host}/");
            assert_eq!(status(&target, &[]), Err(421), "{host}");
            assert_eq!(status(&target, &["a.shop.svc"]), Err(421), "{host}");
            assert_eq!(status("https://a.shop.svc/", &[host]), Err(421), "{host}");
        }
        for hosts in [
            &[][..],
            &["a.shop.svc", "a.shop.svc"],
            &["a.shop.svc", "b.shop.svc"],
            &[""],
            &["a.shop.svc, b.shop.svc"],
            &["a.shop.svc/"],
            &["x@a.shop.svc"],
        ] {
            assert_eq!(status("/", hosts), Err(400), "{hosts:?}");
        }
    }

    #[test]
    fn peers_that_left_are_forgotten() {
        let peers = Peers::default();
        let peer = "10.0.0.1".parse().unwrap();
        assert!(peers.enter(peer, 2) && peers.enter(peer, 2) && !peers.enter(peer, 2));
        assert!(peers.enter("10.0.0.2".parse().unwrap(), 2));
        for _ in 0..2 {
            peers.leave(peer);
        }
        assert_eq!(peers.0.lock().unwrap().len(), 1);
    }
}
