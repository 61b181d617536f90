//! The server half of the real binary, run as the chart runs it: under its own ServiceAccount.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use kube::Client;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Cluster,
    control_plane::{SYSTEM, signal_process, write_private},
    eventually,
    operator::{kubeconfig_text, service_account_token},
};

/// The name of the server that the tests' chart installs.
pub(crate) const NAME: &str = "claviger.claviger-system.svc";

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// Where the doors are.
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
}

static SERVERS: AtomicU32 = AtomicU32::new(0);

impl Server {
    /// Starts a server and waits until it is ready.
    pub(crate) async fn start(cluster: &Cluster, client: &Client, more: &[&str]) -> Self {
        let server = Self::run(cluster, client, "claviger-server", "server", more).await;
        server.ready().await;
        server
    }

    /// Starts a subcommand that serves the doors, under this account.
    pub(crate) async fn run(
        cluster: &Cluster,
        client: &Client,
        account: &str,
        subcommand: &str,
        more: &[&str],
    ) -> Self {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let directory = cluster.directory.path();
        let kubeconfig = directory.join(format!("server-{number}.kubeconfig"));
        let token = service_account_token(client, SYSTEM, account).await;
        write_private(&kubeconfig, &kubeconfig_text(cluster, None, &token));
        let log = directory.join(format!("server-{number}.log"));
        let (address, admin) = (free_address(), free_address());
        // Replicas of one server are reached by one port.
        let port = address.port().to_string();
        let own = ["--server-port", &*port];
        let own = if more.contains(&own[0]) {
            &[][..]
        } else {
            &own
        };
        let child = Command::new(env!("CARGO_BIN_EXE_claviger"))
            .args([subcommand, "--system-namespace", SYSTEM])
            .args(["--listen", &address.to_string()])
            .args(own)
            .args(["--admin-address", &admin.to_string()])
            .args(["--log-level", "info,claviger=debug"])
            .args(more)
            .env_clear()
            .env("KUBECONFIG", &kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            admin,
            log,
        }
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&self) {
        eventually(
            "the server to be ready",
            Duration::from_mins(1),
            async || {
                let answer = self.admin("/readyz").await?;
                if answer.ends_with("\r\n\r\nok\n") {
                    Ok(())
                } else {
                    Err(format!("{answer}\n{}", self.logged()))
                }
            },
        )
        .await;
    }

    /// What its port for operations answers.
    pub(crate) async fn admin(&self, path: &str) -> Result<String, String> {
        let mut stream = TcpStream::connect(self.admin)
            .await
            .map_err(|error| error.to_string())?;
        Ok(get(&mut stream, path).await)
    }

    /// Everything it logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Connects under this name as a client that trusts these roots and no others.
    pub(crate) async fn connect(
        &self,
        name: &str,
        roots: &str,
    ) -> Result<TlsStream<TcpStream>, String> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            store.add(root.unwrap()).unwrap();
        }
        let config = ClientConfig::builder()
            .with_root_certificates(store)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| error.to_string())?;
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name.to_owned()).unwrap(), stream)
            .await
            .map_err(|error| error.to_string())
    }

    /// Stops it: SIGTERM; answers whether it ended well.
    pub(crate) async fn stop(mut self) -> bool {
        signal_process(self.child.id().unwrap(), "TERM");
        tokio::time::timeout(Duration::from_secs(30), self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    }
}

/// What a stream answers to a request after which it ends.
pub(crate) async fn get<S>(stream: &mut S, path: &str) -> String
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let request = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
