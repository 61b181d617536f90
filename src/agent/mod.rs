//! The identity agent: for callers that know managed identity only, on the loopback of their pod or
//! workstation.
//!
//! It speaks the forms of App Service (2019-08-01) and of IMDS (2018-02-01), and answers with access
//! tokens that it gets from Claviger's server for the ServiceAccount token in a file. Nothing remote
//! can speak so: neither form proves who asks, which is why the agent listens on loopback only.

pub mod answer;
pub mod ask;
pub mod upstream;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

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
use tokio::{net::TcpListener, sync::Mutex, time::Instant};
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
/// How long a failure is told again: whoever waited for it with others need not wait in turn.
const SILENCE: Duration = Duration::from_secs(1);
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
    /// What is known by resource.
    known: std::sync::Mutex<HashMap<String, Arc<Mutex<Known>>>>,
}

/// What is known of one resource. Held while its token is fetched: whoever asks for the same waits
/// for it, and nobody else does.
#[derive(Default)]
struct Known {
    token: Option<Held>,
    failed: Option<(Instant, Answer)>,
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
        known: std::sync::Mutex::default(),
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
        let bracketed = host
            .strip_prefix('[')
            .and_then(|address| address.strip_suffix(']'));
        let is_loopback = match bracketed {
            Some(address) => address
                .parse()
                .is_ok_and(|address: Ipv6Addr| address.is_loopback()),
            None => host
                .parse()
                .is_ok_and(|address: Ipv4Addr| address.is_loopback()),
        };
        host == "localhost" || is_loopback
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
        let known = self.known(&ask.resource);
        let mut known = known.lock().await;
        let now = clock::now().as_second();
        if let Some(token) = known.token.as_ref().filter(|token| token.is_fresh(now)) {
            return Answer::token(token, &ask.resource, &self.client_id, now);
        }
        if let Some((_, answer)) = known
            .failed
            .as_ref()
            .filter(|(at, _)| at.elapsed() < SILENCE)
        {
            return answer.clone();
        }
        match self.upstream.token(&ask.resource).await {
            Ok(fresh) => {
                let answer = Answer::token(&fresh, &ask.resource, &self.client_id, now);
                *known = Known {
                    token: Some(fresh),
                    failed: None,
                };
                answer
            }
            Err(error) => {
                tracing::warn!(error = error.to_string(), "no access token");
                let answer = match error {
                    upstream::Error::Refused { error, description } => {
                        Answer::refusal(StatusCode::BAD_REQUEST, &error, &description)
                    }
                    other => Answer::refusal(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "temporarily_unavailable",
                        &other.to_string(),
                    ),
                };
                known.failed = Some((Instant::now(), answer.clone()));
                answer
            }
        }
    }

    /// What is known of a resource; when there are too many, those go that nobody waits for and
    /// that have no fresh token.
    fn known(&self, resource: &str) -> Arc<Mutex<Known>> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(resource) {
            return Arc::clone(known);
        }
        if all.len() >= MOST_RESOURCES {
            let now = clock::now().as_second();
            all.retain(|_, known| {
                let is_fresh = |known: &Known| {
                    known
                        .token
                        .as_ref()
                        .is_some_and(|token| token.is_fresh(now))
                };
                known.try_lock().map_or(true, |known| is_fresh(&known))
            });
        }
        let known = Arc::default();
        if all.len() < MOST_RESOURCES {
            all.insert(resource.to_owned(), Arc::clone(&known));
        }
        known
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
            ("localhost:40342.attacker.example", false),
            ("attacker.example@127.0.0.1", false),
            ("127.0.0.1@attacker.example", false),
            ("127.0.0.1, attacker.example", false),
            ("[::1", false),
            ("::1:1", false),
            ("[127.0.0.1]", false),
            ("[[::1]]", false),
            ("0x7f.1", false),
            ("2130706433", false),
            ("0.0.0.0", false),
            ("[::ffff:169.254.169.254]", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            assert_eq!(is_local(&headers), local, "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    proptest::proptest! {
        #[test]
        fn a_host_is_a_loopback_address_or_not_local(
            host in r"(127\.0\.0\.1|localhost|::1|\[|\]|:|@|\.|,|[0-9]{1,3}|[a-z]{1,3}|%){0,5}",
        ) {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_str(&host).unwrap())]);
            if is_local(&headers) {
                // As somebody else reads it.
                let name = host_of(&host);
                proptest::prop_assert!(name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()), "{host}");
            }
        }
    }

    /// The host of an address, without port and brackets, as the `http` crate reads it.
    fn host_of(host: &str) -> String {
        let authority: http::uri::Authority = host.parse().unwrap();
        assert!(!host.contains('@'));
        authority.host().trim_matches(['[', ']']).to_owned()
    }

    /// An agent whose server takes connections and says nothing, and the files that it needs.
    async fn of_a_silent_server() -> (Agent, TcpListener, tempfile::TempDir) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let [token_file, ca_file] = ["token", "ca.crt"].map(|name| folder.path().join(name));
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&ca_file, ca.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&token_file, "a.b.c").unwrap();
        let args = AgentArgs {
            address: "127.0.0.1:0".parse().unwrap(),
            authority: format!("https://localhost:{}", silent.local_addr().unwrap().port()),
            tenant: "adfs".to_owned(),
            client_id: "system:serviceaccount:shop:web".to_owned(),
            token_file,
            ca_file,
            identity_header: None,
        };
        let agent = Agent {
            upstream: Upstream::new(&args).unwrap(),
            client_id: args.client_id,
            secret: None,
            known: std::sync::Mutex::default(),
        };
        (agent, silent, folder)
    }

    #[tokio::test]
    async fn whoever_waits_for_a_silent_server_waits_once_and_holds_nobody_else_up() {
        let (agent, _silent, _folder) = of_a_silent_server().await;
        let now = clock::now().as_second();
        let held = Held {
            token: Zeroizing::new("opaque".to_owned()),
            since: now,
            expires: now + 3600,
        };
        agent.known("https://kept").lock().await.token = Some(held);
        tokio::time::pause();
        let begun = Instant::now();
        let asking = (0..20).map(|number| {
            let query = format!("resource=https://resource-{}", number % 2);
            let agent = &agent;
            async move { agent.answer(Some(&query)).await.status }
        });
        let kept = async {
            let answer = agent.answer(Some("resource=https://kept")).await;
            (answer.status, begun.elapsed())
        };
        let (statuses, (status, waited)) = tokio::join!(futures::future::join_all(asking), kept);
        assert!(
            statuses
                .iter()
                .all(|status| *status == StatusCode::SERVICE_UNAVAILABLE)
        );
        assert!(
            begun.elapsed() < Duration::from_secs(12),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!((status, waited), (StatusCode::OK, Duration::ZERO));
    }

    #[tokio::test]
    async fn however_many_resources_are_asked_for_few_are_remembered() {
        let (agent, ..) = of_a_silent_server().await;
        let waited_for = agent.known("https://waited-for");
        let waiting = waited_for.lock().await;
        for number in 0..1000 {
            agent.known(&format!("https://{number}"));
            assert!(agent.known.lock().unwrap().len() <= MOST_RESOURCES);
        }
        drop(waiting);
        assert!(Arc::ptr_eq(&waited_for, &agent.known("https://waited-for")));
    }

    #[test]
    fn a_short_secret_is_refused_and_none_is_printed() {
        assert!("short".parse::<Secret>().is_err());
        let secret: Secret = "0123456789abcdef".parse().unwrap();
        assert!(!format!("{secret:?}").contains("0123"));
    }
}
