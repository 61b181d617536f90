//! Claviger's server, as the agent asks it: with the token and the CA that the files hold at that
//! moment, because both are renewed under it.

use std::{fs, path::PathBuf, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, header};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;
use snafu::{OptionExt, ResultExt, Snafu, ensure};
use zeroize::Zeroizing;

use super::AgentArgs;
use crate::clock;

const TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 64 * 1024;
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Where to ask, and as whom.
pub struct Upstream {
    address: Uri,
    token_file: PathBuf,
    ca_file: PathBuf,
}

/// An access token.
pub struct Held {
    /// The token.
    pub token: Zeroizing<String>,
    /// Unix seconds at which it was issued.
    pub since: i64,
    /// Unix seconds at which it expires.
    pub expires: i64,
}

/// There is no token.
#[derive(Debug, Snafu)]
pub enum Error {
    /// What was given cannot be asked.
    #[snafu(display(
        "the authority must be an address such as https://claviger.claviger-system.svc"
    ))]
    Authority,
    /// A file is missing or empty.
    #[snafu(display("cannot read {}: {source}", path.display()))]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file with the CA holds none.
    #[snafu(display("{} holds no certificates", path.display()))]
    Certificates {
        /// Which.
        path: PathBuf,
    },
    /// Nothing comes back.
    #[snafu(display("Claviger's server at {authority} cannot be reached"))]
    Away {
        /// Where.
        authority: String,
    },
    /// What came back is no answer of Claviger's.
    #[snafu(display(
        "Claviger's server at {authority} answered {status} with something else than a token"
    ))]
    Answer {
        /// Where.
        authority: String,
        /// How.
        status: StatusCode,
    },
    /// The server said no.
    #[snafu(display("{description}"))]
    Refused {
        /// The word of RFC 6749.
        error: String,
        /// What to do.
        description: String,
    },
}

#[derive(Deserialize)]
struct Granted {
    access_token: Zeroizing<String>,
    expires_in: i64,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
    #[serde(default)]
    error_description: String,
}

impl Upstream {
    /// Takes the settings in.
    ///
    /// # Errors
    /// [`Error::Authority`].
    pub fn new(args: &AgentArgs) -> Result<Self, Error> {
        let authority = args.authority.trim_end_matches('/');
        let plain = authority
            .strip_prefix("https://")
            .is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@']));
        ensure!(plain, AuthoritySnafu);
        let tenant: String = form_urlencoded::byte_serialize(args.tenant.as_bytes()).collect();
        let address = format!("{authority}/{tenant}/oauth2/v2.0/token");
        Ok(Self {
            address: address.parse().ok().context(AuthoritySnafu)?,
            token_file: args.token_file.clone(),
            ca_file: args.ca_file.clone(),
        })
    }

    /// Gets a token for a resource. Whether the client is the ServiceAccount whose token is in the
    /// file, the server says.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn token(&self, client_id: &str, resource: &str) -> Result<Held, Error> {
        let assertion = read(&self.token_file)?;
        let form = form(client_id, &assertion, resource);
        let authority = self.address.authority().map(ToString::to_string);
        let authority = authority.unwrap_or_default();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls()?)
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let request = Request::post(self.address.clone())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(Bytes::copy_from_slice(form.as_bytes())))
            .ok()
            .context(AuthoritySnafu)?;
        let now = clock::now().as_second();
        let asked = async {
            let answer = client.request(request).await.ok()?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect();
            Some((status, body.await.ok()?.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(TIMEOUT, asked)
            .await
            .ok()
            .flatten()
            .context(AwaySnafu {
                authority: &authority,
            })?;
        if status == StatusCode::OK {
            let granted: Granted = serde_json::from_slice(&body)
                .ok()
                .context(AnswerSnafu { authority, status })?;
            return Ok(Held {
                token: granted.access_token,
                since: now,
                expires: now.saturating_add(granted.expires_in),
            });
        }
        let denied: Option<Denied> = serde_json::from_slice(&body).ok();
        let denied = denied.filter(|_| status.is_client_error());
        let denied = denied.context(AnswerSnafu { authority, status })?;
        RefusedSnafu {
            error: denied.error,
            description: denied.error_description,
        }
        .fail()
    }

    fn tls(&self) -> Result<ClientConfig, Error> {
        let path = &self.ca_file;
        let text = read(path)?;
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok);
        roots.add_parsable_certificates(certificates);
        ensure!(!roots.is_empty(), CertificatesSnafu { path });
        Ok(ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

fn form(client_id: &str, assertion: &str, resource: &str) -> Zeroizing<String> {
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", client_id)
        .append_pair("client_assertion_type", ASSERTION)
        .append_pair("client_assertion", assertion.trim())
        .append_pair("scope", &format!("{resource}/.default"))
        .finish();
    Zeroizing::new(form)
}

fn read(path: &PathBuf) -> Result<Zeroizing<String>, Error> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .context(FileSnafu { path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(authority: &str) -> AgentArgs {
        AgentArgs {
            address: "127.0.0.1:0".parse().unwrap(),
            authority: authority.to_owned(),
            tenant: "adfs".to_owned(),
            client_id: "system:serviceaccount:shop:web".to_owned(),
            token_file: "/nowhere/token".into(),
            ca_file: "/nowhere/ca.crt".into(),
            identity_header: None,
            imds: false,
        }
    }

    #[test]
    fn the_authority_is_https_and_has_no_path() {
        for authority in [
            "https://claviger.svc",
            "https://claviger.svc/",
            "https://a:8443",
        ] {
            let upstream = Upstream::new(&args(authority)).unwrap();
            assert!(
                upstream
                    .address
                    .to_string()
                    .ends_with("/adfs/oauth2/v2.0/token")
            );
        }
        for authority in [
            "",
            "claviger.svc",
            "http://claviger.svc",
            "https://a/b",
            "https://u@a",
        ] {
            assert!(Upstream::new(&args(authority)).is_err(), "{authority}");
        }
    }

    #[tokio::test]
    async fn files_that_are_not_there_are_named() {
        let upstream = Upstream::new(&args("https://claviger.svc")).unwrap();
        let error = upstream
            .token("shop/web", "https://vault.azure.net")
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("/nowhere/token"), "{error}");
    }
}
