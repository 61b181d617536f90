//! The identity agent: for callers that know managed identity only, on the loopback of their pod or
//! workstation.
//!
//! It speaks the forms of App Service (2019-08-01) and of IMDS (2018-02-01), and answers with access
//! tokens that it gets from Claviger's server for the ServiceAccount token in a file. Nothing remote
//! can speak so: IMDS's form does not prove who asks, and App Service's only by a header that is sent
//! in clear, which is why the agent listens on loopback only. Where a header is asked for, IMDS's form,
//! which has none, is served only when that is said.

pub mod answer;
pub mod ask;
pub mod memory;
pub mod upstream;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
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
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use self::{answer::Answer, ask::Ask, memory::Memory, upstream::Upstream};
use crate::clock;

/// Where App Service's form is served.
pub const APP_SERVICE: &str = "/msi/token";
/// Where IMDS's form is served; some SDKs end it with a slash.
pub const IMDS: &str = "/metadata/identity/oauth2/token";

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
    /// The ServiceAccount, as system:serviceaccount:NAMESPACE:NAME, NAMESPACE/NAME or its UID.
    #[arg(long, env = "AZURE_CLIENT_ID")]
    pub client_id: String,
    /// File with the ServiceAccount's token.
    #[arg(long, env = "AZURE_FEDERATED_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,
    /// File with the certificates that the server is trusted by.
    #[arg(long, env = "SSL_CERT_FILE", value_name = "FILE")]
    pub ca_file: PathBuf,
    /// What callers of App Service's form must know; without it only IMDS's form is served, to everybody on this machine or in this pod.
    #[arg(long, env = "IDENTITY_HEADER", hide_env_values = true)]
    pub identity_header: Option<Secret>,
    /// Serve IMDS's form, too, when there is a header, which callers of that form need not know.
    #[arg(long)]
    pub imds: bool,
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
    imds: bool,
    memory: Memory,
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
    let agent = Arc::new(Agent::new(upstream, args));
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
    if !agent.imds {
        return respond(&Answer::refusal(
            StatusCode::BAD_REQUEST,
            "invalid_request",
            "This agent answers whoever knows its IDENTITY_HEADER only: set that and IDENTITY_ENDPOINT, which ends with /msi/token, or start the agent with --imds.",
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
    fn new(upstream: Upstream, args: AgentArgs) -> Self {
        Self {
            upstream,
            client_id: args.client_id,
            imds: args.imds || args.identity_header.is_none(),
            secret: args.identity_header,
            memory: Memory::default(),
        }
    }

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
        let now = || clock::now().as_second();
        let key = (ask.client_id.clone(), ask.resource.clone());
        let asking = self.upstream.token(&ask.client_id, &ask.resource);
        match self.memory.token(key, now, asking).await {
            Ok(held) => Answer::token(&held, &ask.resource, &ask.client_id, now()),
            Err(error) => match &*error {
                upstream::Error::Refused { error, description } => {
                    Answer::refusal(StatusCode::BAD_REQUEST, error, description)
                }
                other => Answer::refusal(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "temporarily_unavailable",
                    &other.to_string(),
                ),
            },
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
    use axum::{body::Body, http::Request};
    use clap::Parser;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        agent: AgentArgs,
    }

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

    /// What an agent that has neither a token nor a CA answers: whoever it serves is told that.
    async fn answers(more: &[&str], path: &str, header: (&str, &str)) -> (u16, String) {
        let line = [
            "agent",
            "--authority=https://claviger.svc",
            "--client-id=shop/web",
            "--token-file=/nowhere/token",
            "--ca-file=/nowhere/ca.crt",
        ];
        let args = Line::parse_from([&line, more].concat()).agent;
        let agent = Agent::new(Upstream::new(&args).unwrap(), args);
        let request = Request::get(format!("{path}?resource=https://vault.azure.net"))
            .header("host", "127.0.0.1:40342")
            .header(header.0, header.1)
            .body(Body::empty())
            .unwrap();
        let answer = router(Arc::new(agent)).oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn where_a_header_is_asked_for_nobody_gets_round_it_unless_that_is_said() {
        let header = "--identity-header=0123456789abcdef";
        let (metadata, known) = (
            ("metadata", "true"),
            ("x-identity-header", "0123456789abcdef"),
        );
        let other = ("x-identity-header", "0123456789abcdee");
        for (more, path, shown, status, says) in [
            (&[header][..], APP_SERVICE, known, 503, "/nowhere/token"),
            (&[header], APP_SERVICE, other, 401, "X-IDENTITY-HEADER"),
            (&[header], IMDS, metadata, 400, "--imds"),
            (&[header], IMDS, known, 400, "Metadata"),
            (&[header, "--imds"], IMDS, metadata, 503, "/nowhere/token"),
            (&[], IMDS, metadata, 503, "/nowhere/token"),
            (&[], APP_SERVICE, known, 401, "X-IDENTITY-HEADER"),
        ] {
            // Some SDKs end IMDS's path with a slash.
            let end = if path == IMDS { "/" } else { "" };
            for path in [path.to_owned(), format!("{path}{end}")] {
                let (answered, body) = answers(more, &path, shown).await;
                assert_eq!(answered, status, "{more:?} {path} {body}");
                assert!(body.contains(says), "{more:?} {path} {body}");
            }
        }
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

    #[test]
    fn a_short_secret_is_refused_and_none_is_printed() {
        assert!("short".parse::<Secret>().is_err());
        let secret: Secret = "0123456789abcdef".parse().unwrap();
        assert!(!format!("{secret:?}").contains("0123"));
    }
}
