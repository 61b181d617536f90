//! Something between the operator and the apiserver: counts writes, stops the world at one of them,
//! answers in the apiserver's stead.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use kube::{Client, Config};
use tokio_util::sync::CancellationToken;

use super::Cluster;

/// What the proxy does with a request.
pub(crate) enum Verdict {
    /// Passes it on and the answer back.
    Pass,
    /// Answers in the apiserver's stead.
    Answer(StatusCode, String),
    /// Passes it on after a while.
    Delay(Duration),
    /// Does nothing until this is cancelled, as an apiserver that stands still, and judges then.
    Hold(CancellationToken),
    /// Passes it on and breaks the connection off, at the latest after a while: the beginning of the
    /// answer may come back.
    Cut(Duration),
    /// Breaks the connection off without passing it on.
    Break,
    /// Passes it on; the answer never comes back: `then` happens instead.
    PassThen(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Does not pass it on: `then` happens instead.
    Drop(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// What the proxy sees of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Bytes,
}

impl Seen {
    /// Whether the request is a watch.
    pub(crate) fn watches(&self) -> bool {
        self.query
            .split('&')
            .any(|pair| pair == "watch=true" || pair == "watch=1")
    }

    /// Whether the request changes something that matters (a lease, an event does not).
    pub(crate) fn writes(&self) -> bool {
        self.method != Method::GET
            && !self.path.contains("/leases")
            && !self.path.contains("/events")
    }
}

type Judge = dyn Fn(&Seen) -> Verdict + Send + Sync;

/// A running proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    judge: Arc<Mutex<Arc<Judge>>>,
}

#[derive(Clone)]
struct Passing {
    upstream: Client,
    judge: Arc<Mutex<Arc<Judge>>>,
}

impl Proxy {
    /// A proxy that passes everything on.
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        let admin = cluster.config().await;
        // Only the address and the CA: callers bring their own credentials.
        let mut config = Config::new(admin.cluster_url.clone());
        config.root_cert = admin.root_cert.clone();
        config.default_retry = false;
        config.read_timeout = None;
        let judge: Arc<Mutex<Arc<Judge>>> =
            Arc::new(Mutex::new(Arc::new(|_: &Seen| Verdict::Pass)));
        let passing = Passing {
            upstream: Client::try_from(config).unwrap(),
            judge: Arc::clone(&judge),
        };
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(pass).with_state(passing);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, judge }
    }

    /// From now on does with each request what `judge` says.
    pub(crate) fn judge(&self, judge: impl Fn(&Seen) -> Verdict + Send + Sync + 'static) {
        *self.judge.lock().unwrap() = Arc::new(judge);
    }
}

async fn pass(State(passing): State<Passing>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    parts.headers.remove("host");
    // A caller that was killed in mid-request asked for nothing.
    let Ok(body) = axum::body::to_bytes(body, 16 << 20).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let seen = Seen {
        method: parts.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        body: body.clone(),
    };
    let judge = || {
        let judge = Arc::clone(&*passing.judge.lock().unwrap());
        judge(&seen)
    };
    let mut verdict = judge();
    while let Verdict::Hold(end) = &verdict {
        end.cancelled().await;
        verdict = judge();
    }
    let request = http::Request::from_parts(parts, kube::client::Body::from(body));
    match verdict {
        Verdict::Pass => forward(&passing.upstream, request).await,
        Verdict::Answer(code, body) => {
            let mut answer = (code, [("content-type", "application/json")], body).into_response();
            if code == StatusCode::TOO_MANY_REQUESTS || code == StatusCode::SERVICE_UNAVAILABLE {
                answer
                    .headers_mut()
                    .insert("retry-after", http::HeaderValue::from_static("1"));
            }
            answer
        }
        Verdict::Delay(wait) => {
            tokio::time::sleep(wait).await;
            forward(&passing.upstream, request).await
        }
        Verdict::Hold(_) => unreachable!("nothing is held any more"),
        Verdict::Cut(wait) => {
            let (parts, body) = forward(&passing.upstream, request).await.into_parts();
            let until = tokio::time::sleep(wait);
            let beginning = body.into_data_stream().take_until(until);
            Response::from_parts(parts, Body::from_stream(beginning.chain(broken())))
        }
        Verdict::Break => Body::from_stream(broken()).into_response(),
        // By itself: a caller that hangs up in between is killed all the same.
        Verdict::PassThen(then) => {
            let done = tokio::spawn(async move {
                forward(&passing.upstream, request).await;
                then.await;
            });
            done.await.unwrap();
            StatusCode::BAD_GATEWAY.into_response()
        }
        Verdict::Drop(then) => {
            then.await;
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
}

/// The end of a connection that breaks.
fn broken() -> impl futures::Stream<Item = Result<Bytes, axum::Error>> {
    stream::once(async {
        Err(axum::Error::new(std::io::Error::other(
            "broken off by the test",
        )))
    })
}

async fn forward(upstream: &Client, request: http::Request<kube::client::Body>) -> Response {
    match upstream.send(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// A Status such as the apiserver answers.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> String {
    serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
    .to_string()
}
