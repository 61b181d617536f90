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
    extract::ConnectInfo,
    http::{Request, Response, StatusCode, header},
    response::IntoResponse,
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
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    metrics::Metrics,
    server::{framing::Framed, limits::Limits},
};

/// The pause when no connection can be accepted, for want of file descriptors most often.
const BREATH: Duration = Duration::from_millis(50);
/// How long a connection that was told to end may take to do so.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves the router on this socket until `stop`, then finishes the requests under way.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
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
    peers: Peers,
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

/// How many connections each network has.
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
async fn connection(doors: Arc<Doors>, stream: TcpStream, peer: SocketAddr, _place: Place) {
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
    let traffic = Arc::new(Traffic::new(&doors.limits));
    tokio::select! {
        () = speak(&doors, stream, peer, &traffic) => {}
        () = doors.kill.cancelled() => {}
    }
}

async fn speak(
    doors: &Arc<Doors>,
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    traffic: &Arc<Traffic>,
) {
    let limits = &doors.limits;
    let (answering, counting) = (Arc::clone(doors), Arc::clone(traffic));
    let service = service_fn(move |request| {
        answer(Arc::clone(&answering), Arc::clone(&counting), peer, request)
    });
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
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

    /// When a request that is under way is stuck, or the connection idle.
    fn next_look(&self) -> Instant {
        let ledger = self.lock();
        ledger
            .open
            .values()
            .next()
            .map_or(ledger.last + self.idle, |oldest| *oldest + self.longest)
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
    traffic: Arc<Traffic>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let mut ticket = traffic.begin();
    let permit = Arc::clone(&doors.requests).try_acquire_owned().ok();
    let response = if permit.is_none() {
        doors.metrics.refused("requests");
        let mut response = refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            "TooManyRequestsUnderWay",
            "the server is busy; try again in a second",
        );
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        response
    } else if request.size_hint().lower() > limit(&doors.limits) {
        doors.metrics.refused("body");
        refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestBodyTooLarge",
            &format!(
                "the body of a request has at most {} bytes",
                doors.limits.body_bytes
            ),
        )
    } else {
        let mut request =
            request.map(|body| Body::new(Limited::new(body, doors.limits.body_bytes)));
        request.extensions_mut().insert(ConnectInfo(peer));
        let answered = timeout(doors.limits.request, doors.router.call(request)).await;
        answered.map_or_else(
            |_| {
                doors.metrics.refused("request_timeout");
                refusal(
                    StatusCode::REQUEST_TIMEOUT,
                    "RequestTimeout",
                    "the request took too long",
                )
            },
            |answered| answered.unwrap_or_else(|never| match never {}),
        )
    };
    ticket.answered = true;
    Ok(response.map(|body| Answer {
        body,
        _ticket: ticket,
        _permit: permit,
    }))
}

fn limit(limits: &Limits) -> u64 {
    u64::try_from(limits.body_bytes).unwrap_or(u64::MAX)
}

/// A refusal that is no door's own.
pub fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({"error": {"code": code, "message": message}});
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, body.to_string()).into_response()
}

/// The body of an answer; what it holds is let go when it was sent.
struct Answer {
    body: Body,
    _ticket: Ticket,
    _permit: Option<OwnedSemaphorePermit>,
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
