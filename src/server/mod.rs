//! The server: the doors that are reached over HTTPS. Every replica serves; none keeps a state that the
//! others lack.
//!
//! ```text
//!   listener ──► framing, limits          who comes in, how fast, how much
//!       │
//!       ├──► certificates ──► names       which certificate for which host name
//!       ▼
//!    router ──► audit ──► authn ──► authz what is answered, and to whom
//! ```
//!
//! [`router`] is the table of all routes. A request passes [`audit`], then [`authn`] unless its
//! route says why it need not, then [`authz`] where it touches a resource.

pub mod audit;
pub mod authn;
pub mod authz;
pub mod cache;
pub mod certificates;
pub mod discovery;
pub mod error;
pub mod framing;
pub mod gate;
pub mod limits;
pub mod listener;
pub mod names;
pub mod oidc;
pub mod rights;
pub mod router;
pub mod settings;
pub mod token;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use snafu::{OptionExt, ResultExt, Snafu, ensure};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{DoorArgs, NameArgs},
    controllers::watch::{Progress, follow_one},
    k8s::{self, ca, review},
    metrics::Metrics,
    server::{
        certificates::Certificates,
        limits::Limits,
        names::Names,
        router::Doors,
        settings::{Place, Settings},
    },
    token_keys,
};

/// Between two looks whether the server may have reviews made.
const REVIEW_RETRY: Duration = Duration::from_secs(2);

/// The server cannot start.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The address is taken.
    #[snafu(display("cannot serve the doors' address"))]
    Bind {
        /// Why.
        source: std::io::Error,
    },
    /// The server's own name is one that no certificate of ours can be for.
    #[snafu(display(
        "--server-name {name} is neither below svc nor below --domain: Claviger's own CA signs for no other; name a certificate by --tls-secret, or another name"
    ))]
    ServerName {
        /// The name.
        name: String,
    },
    /// Callers cannot be told apart as configured.
    #[snafu(display("{source}"))]
    Settings {
        /// Why.
        source: settings::Error,
    },
    /// The doors cannot be opened.
    #[snafu(display("{source}"))]
    Doors {
        /// Why.
        source: router::Error,
    },
    /// No provider of cryptography was installed.
    #[snafu(display("no provider of cryptography is installed"))]
    Provider,
    /// TLS cannot be set up.
    #[snafu(display("TLS cannot be set up"))]
    Tls {
        /// Why.
        source: rustls::Error,
    },
}

/// The server, as configured.
#[derive(Clone)]
pub struct Server {
    certificates: Arc<Certificates>,
    provider: Arc<rustls::crypto::CryptoProvider>,
    args: DoorArgs,
    settings: Settings,
    namespace: String,
    /// What the doors wait for beside certificates.
    progress: Progress,
}

impl Server {
    /// Reads the configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(doors: DoorArgs, names: &NameArgs, system_namespace: &str) -> Result<Self, Error> {
        let lifetime = names.leaf_lifetime;
        let (cluster_domain, domain) = (&*names.cluster_domain, names.domain.as_deref());
        let own = Names::new(names, &doors, system_namespace);
        let place = Place {
            system_namespace,
            server_name: own.server(),
            cluster_domain,
            domain,
        };
        let settings = Settings::new(&doors.identity, &place).context(SettingsSnafu)?;
        let names = own;
        ensure!(
            names.server_is_ours() || doors.tls_secret.is_some(),
            ServerNameSnafu {
                name: names.server()
            }
        );
        let provider = rustls::crypto::CryptoProvider::get_default()
            .cloned()
            .context(ProviderSnafu)?;
        Ok(Self {
            certificates: Arc::new(Certificates::new(names, lifetime, Arc::clone(&provider))),
            provider,
            args: doors,
            settings,
            progress: Progress::default(),
            namespace: system_namespace.to_owned(),
        })
    }

    /// What is missing before the doors can be opened to anybody.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.certificates.can_sign() {
            missing.push(format!("waiting for the CA, Secret {}", ca::NAME));
        }
        if let Some(secret) = &self.args.tls_secret
            && !self.certificates.has_given()
        {
            missing.push(format!("waiting for the certificate, Secret {secret}"));
        }
        let awaited = self.progress.missing();
        missing.extend(awaited.iter().map(|what| format!("waiting for {what}")));
        missing
    }

    /// Serves until `stop`, then finishes the requests under way.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn serve(
        self,
        client: Client,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let listener = listener::bind(self.args.listen).await.context(BindSnafu)?;
        let address = listener.local_addr().context(BindSnafu)?;
        tracing::info!(%address, "serving the doors");
        let resolver = Arc::clone(&self.certificates);
        let tls = listener::tls(resolver, Arc::clone(&self.provider)).context(TlsSnafu)?;
        let watching = CancellationToken::new();
        let _guard = watching.clone().drop_guard();
        self.watch(&client, &watching);
        let keys = token_keys::watch(client.clone(), self.namespace.clone(), &self.progress);
        let there = self
            .progress
            .awaits(&format!("the Secret {}", k8s::token_keys::NAME), None);
        let mut first = keys.clone();
        tokio::spawn(async move {
            if first.wait_for(|sight| sight.keys().is_some()).await.is_ok() {
                there.filled();
            }
        });
        let may_ask = self
            .progress
            .awaits("the right to have tokens and accesses reviewed", None);
        let asking = client.clone();
        tokio::spawn(async move {
            // The apiserver refuses them as long as the rights of the chart are missing.
            while let Err(error) = review::may_review(&asking).await {
                tracing::warn!(%error, "nobody can be let in");
                tokio::time::sleep(REVIEW_RETRY).await;
            }
            may_ask.filled();
        });
        let audit_file = self.args.identity.audit_file.as_deref();
        let asking = client.clone();
        let doors = Doors::new(
            self.settings,
            audit_file,
            asking,
            keys,
            Arc::clone(&metrics),
        );
        let doors = Arc::new(doors.context(DoorsSnafu)?);
        rights::watch(&client, &doors, &self.progress, &watching);
        let limits = Limits::from(&self.args);
        let router = router::router(Arc::clone(&doors));
        let audit = doors.audit.clone();
        listener::serve(listener, tls, router, limits, audit, metrics, stop).await;
        doors.audit.flush().await;
        Ok(())
    }

    /// Follows the Secrets that certificates come from.
    fn watch(&self, client: &Client, stop: &CancellationToken) {
        let certificates = Arc::clone(&self.certificates);
        follow(
            client,
            &self.namespace,
            ca::NAME.to_owned(),
            stop,
            move |secret| match secret.map(ca::parse).transpose() {
                Ok(Some(stored)) => certificates.sign_with(stored.issuers),
                Ok(None) => {
                    tracing::warn!(
                        "the CA is gone; what it signed is shown until there is another"
                    );
                }
                Err(error) => {
                    tracing::error!(%error, "the CA cannot be used; the one before stays");
                }
            },
        );
        let Some(name) = &self.args.tls_secret else {
            return;
        };
        let certificates = Arc::clone(&self.certificates);
        let secret_name = name.clone();
        follow(client, &self.namespace, name.clone(), stop, move |secret| {
            let shown = secret.map(|secret| certificates.show(secret));
            match shown.transpose() {
                Ok(Some(())) => {
                    tracing::info!(k8s.secret.name = secret_name, "the certificate was read");
                }
                Ok(None) => tracing::warn!(
                    k8s.secret.name = secret_name,
                    "the certificate is not there"
                ),
                Err(error) => {
                    let error = snafu::Report::from_error(error).to_string();
                    tracing::error!(
                        k8s.secret.name = secret_name,
                        error,
                        "the certificate cannot be used; the one before stays"
                    );
                }
            }
        });
    }
}

/// Follows one Secret by name.
fn follow(
    client: &Client,
    namespace: &str,
    name: String,
    stop: &CancellationToken,
    take: impl FnMut(Option<Secret>) + Send + 'static,
) {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    let stop = stop.clone();
    tokio::spawn(async move {
        let following = follow_one(secrets, &name, take);
        stop.run_until_cancelled_owned(following).await
    });
}
