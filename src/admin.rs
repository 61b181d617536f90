//! The port for operations: `/livez`, `/readyz`, `/metrics`. Nothing of the data plane is reachable
//! from it.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    metrics::{Census, Metrics},
};

/// What the port tells about.
#[derive(Clone)]
pub struct Watched {
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Names what is missing before the process does its work; empty when nothing is.
    pub missing: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Counts the declared resources.
    pub census: Arc<dyn Fn() -> Census + Send + Sync>,
}

/// Serves the port until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    watched: Watched,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving /livez, /readyz and /metrics");
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(watched);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn ready(State(watched): State<Watched>) -> impl IntoResponse {
    let missing = (watched.missing)();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {}\n", missing.join("; ")),
        )
    }
}

async fn metrics(State(watched): State<Watched>) -> impl IntoResponse {
    watched.metrics.counted((watched.census)(), clock::now());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], watched.metrics.render())
}
