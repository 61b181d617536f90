//! The identity agent: for callers that know managed identity only, on the loopback of their pod or
//! workstation.
//!
//! It speaks the forms of App Service (2019-08-01) and of IMDS (2018-02-01), and answers with access
//! tokens that it gets from Claviger's server for the ServiceAccount token in a file. Nothing remote
//! can speak so: neither form proves who asks, which is why the agent listens on loopback only.

pub mod answer;
pub mod ask;
pub mod upstream;

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use clap::Args;
use snafu::{ResultExt, Snafu, ensure};
use subtle::ConstantTimeEq as _;
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use self::{
    answer::Answer,
    ask::Ask,
    upstream::{Held, Upstream},
};
use crate::clock;

/// Where App Service's form is served.
pub const APP_SERVICE: &str = "/msi/token";
/// Where IMDS's form is served; some SDKs end it with a slash.
pub const IMDS: &str = "/metadata/identity/oauth2/token";

/// The fewest seconds that a token from memory is still valid; SDKs ask anew below five minutes.
const FRESH: i64 = 600;
/// So many resources are remembered.
const MOST_RESOURCES: usize = 64;

/// Where to listen, and as whom to ask.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Loopback address to listen on.
    #[arg(
        long,
        env = "CLAVIGER_AGENT_ADDRESS",
        default_value = "127.0.0.1:40342"
    )]
    pub address: SocketAddr,
    /// Claviger's address.
    #[arg(long, env = "AZURE_AUTHORITY_HOST", value_name = "URL")]
    pub authority: String,
    /// The tenant of the install.
    #[arg(long, env = "AZURE_TENANT_ID", default_value = "adfs")]
    pub tenant: String,
    /// The identity, as system:serviceaccount:NAMESPACE:NAME.
    #[arg(long, env = "AZURE_CLIENT_ID")]
    pub client_id: String,
    /// File with the ServiceAccount's token.
    #[arg(long, env = "AZURE_FEDERATED_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,
    /// File with the certificates that the server is trusted by.
    #[arg(long, env = "SSL_CERT_FILE", value_name = "FILE")]
    pub ca_file: PathBuf,
    /// What callers of App Service's form must know; without it only IMDS's form is served.
    #[arg(long, env = "IDENTITY_HEADER", hide_env_values = true)]
    pub identity_header: Option<Secret>,
}

/// A value that is not printed.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…redacted…")
    }
}

impl std::str::FromStr for Secret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() < 16 {
            return Err("IDENTITY_HEADER must have at least 16 characters, chosen at random");
        }
        Ok(Self(Arc::new(Zeroizing::new(text.to_owned()))))
    }
}

/// The agent cannot run.
#[derive(Debug, Snafu)]
pub enum Error {
    /// Others could ask.
    #[snafu(display("{address} is not a loopback address: whoever reached it would get tokens"))]
    NotLoopback {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The address is taken.
    #[snafu(display("cannot listen on {address}"))]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody is served any more.
    #[snafu(display("cannot serve"))]
    Serve {
        /// Why.
        source: std::io::Error,
    },
    /// The authority is not an address.
    #[snafu(display("{source}"))]
    Authority {
        /// Why.
        source: upstream::Error,
    },
}

struct Agent {
    upstream: Upstream,
    client_id: String,
    secret: Option<Secret>,
    /// Tokens by resource. Held while one is fetched: whoever asks for the same waits for it.
    held: Mutex<HashMap<String, Held>>,
}

/// Serves until `stop`.
///
/// # Errors
/// See [`Error`].
pub async fn serve(args: AgentArgs, stop: CancellationToken) -> Result<(), Error> {
    let address = args.address;
    ensure!(address.ip().is_loopback(), NotLoopbackSnafu { address });
    let upstream = Upstream::new(&args).context(AuthoritySnafu)?;
    let listener = TcpListener::bind(address)
        .await
        .context(ListenSnafu { address })?;
    let agent = Arc::new(Agent {
        upstream,
        client_id: args.client_id,
        secret: args.identity_header,
        held: Mutex::default(),
    });
    tracing::info!(%address, "serving managed identity");
    axum::serve(listener, router(agent))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context(ServeSnafu)
}

fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route(APP_SERVICE, get(app_service))
        .route(IMDS, get(imds))
        .route(&format!("{IMDS}/"), get(imds))
        .with_state(agent)
}

async fn app_service(
    State(agent): State<Arc<Agent>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let knows = headers.get("x-identity-header").zip(agent.secret.as_ref());
    let knows = knows
        .is_some_and(|(shown, secret)| bool::from(shown.as_bytes().ct_eq(secret.0.as_bytes())));
    if !knows {
        return respond(&Answer::refusal(
            StatusCode::UNAUTHORIZED,
            "unauthorized_client",
            "The header X-IDENTITY-HEADER is not IDENTITY_HEADER of this agent.",
        ));
    }
    respond(&agent.answer(query.as_deref()).await)
}

async fn imds(
    State(agent): State<Arc<Agent>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    // A browser or a proxy that was talked into a request does not send the one, or adds the other.
    let meant = headers.get("metadata").is_some_and(|value| value == "true");
    if !meant || headers.contains_key("x-forwarded-for") || !is_local(&headers) {
        return respond(&Answer::refusal(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "Send the header Metadata: true, directly and not through a proxy.",
        ));
    }
    respond(&agent.answer(query.as_deref()).await)
}

/// Whether the request was sent to a loopback address, by whatever name.
fn is_local(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.map(|host| {
        let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        match host.rsplit_once(':') {
            Some((name, end)) if port(end) && !end.is_empty() => name,
            _ => host,
        }
    });
    host.is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

impl Agent {
    async fn answer(&self, query: Option<&str>) -> Answer {
        let ask = match Ask::parse(query.unwrap_or_default(), &self.client_id) {
            Ok(ask) => ask,
            Err(fault) => {
                return Answer::refusal(
                    StatusCode::BAD_REQUEST,
                    "invalid_request",
                    &fault.to_string(),
                );
            }
        };
        let mut held = self.held.lock().await;
        let now = clock::now().as_second();
        if let Some(known) = held
            .get(&ask.resource)
            .filter(|known| known.expires - now > FRESH)
        {
            return Answer::token(known, &ask.resource, &self.client_id, now);
        }
        match self.upstream.token(&ask.resource).await {
            Ok(fresh) => {
                held.retain(|_, known| known.expires > now);
                let answer = Answer::token(&fresh, &ask.resource, &self.client_id, now);
                if held.len() < MOST_RESOURCES {
                    held.insert(ask.resource, fresh);
                }
                answer
            }
            Err(error) => {
                tracing::warn!(error = error.to_string(), "no access token");
                match error {
                    upstream::Error::Refused { error, description } => {
                        Answer::refusal(StatusCode::BAD_REQUEST, &error, &description)
                    }
                    other => Answer::refusal(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "temporarily_unavailable",
                        &other.to_string(),
                    ),
                }
            }
        }
    }
}

fn respond(answer: &Answer) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (answer.status, headers, answer.body.as_str().to_owned()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_to_loopback_are_local() {
        for (host, local) in [
            ("127.0.0.1:40342", true),
            ("127.0.0.1", true),
            ("localhost:40342", true),
            ("[::1]:40342", true),
            ("[::1]", true),
            ("169.254.169.254", false),
            ("attacker.example:40342", false),
            ("127.0.0.1.attacker.example", false),
            ("localhost.attacker.example", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            assert_eq!(is_local(&headers), local, "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn a_short_secret_is_refused_and_none_is_printed() {
        assert!("short".parse::<Secret>().is_err());
        let secret: Secret = "0123456789abcdef".parse().unwrap();
        assert!(!format!("{secret:?}").contains("0123"));
    }
}
