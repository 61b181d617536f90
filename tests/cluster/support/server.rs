//! The server half of the real binary, run as the chart runs it: under its own ServiceAccount.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
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
    args: Vec<String>,
    kubeconfig: PathBuf,
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
        Self::run_through(cluster, client, (account, subcommand), None, more).await
    }

    /// The same, with something between it and the apiserver.
    pub(crate) async fn run_through(
        cluster: &Cluster,
        client: &Client,
        (account, subcommand): (&str, &str),
        apiserver: Option<&str>,
        more: &[&str],
    ) -> Self {
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let directory = cluster.directory.path();
        let kubeconfig = directory.join(format!("server-{number}.kubeconfig"));
        let token = service_account_token(client, SYSTEM, account).await;
        write_private(&kubeconfig, &kubeconfig_text(cluster, apiserver, &token));
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
        let level = ["--log-level", "info,claviger=debug"];
        let level = if more.contains(&level[0]) {
            &[][..]
        } else {
            &level
        };
        let (listen, operations) = (address.to_string(), admin.to_string());
        let args = [
            &[subcommand, "--system-namespace", SYSTEM][..],
            &["--listen", &listen, "--admin-address", &operations],
            own,
            level,
            more,
        ];
        let args: Vec<String> = args.concat().into_iter().map(str::to_owned).collect();
        let child = spawn(&args, &kubeconfig, &log);
        Self {
            child,
            address,
            admin,
            log,
            args,
            kubeconfig,
        }
    }

    /// Kills it and starts it again at the same address.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.child.kill().await.unwrap();
        self.child = spawn(&self.args, &self.kubeconfig, &self.log);
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// The token with which it asks the apiserver.
    pub(crate) fn token(&self) -> String {
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let kubeconfig: serde_json::Value = serde_json::from_str(&text).unwrap();
        let token = &kubeconfig["users"][0]["user"]["token"];
        token.as_str().unwrap().to_owned()
    }

    /// What it wrote to standard output: the audit, unless it goes to a file.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(self.log.with_extension("out")).unwrap_or_default()
    }

    /// The folder that it was started in, which is its folder for temporary files, too.
    pub(crate) fn folder(&self) -> PathBuf {
        self.log.with_extension("tmp")
    }

    /// What is answered over TLS to a client that trusts these roots: the head with its headers, and
    /// the body. Nothing if there is no answer.
    pub(crate) async fn ask(
        &self,
        roots: &str,
        head: &str,
        body: &str,
    ) -> Result<(String, String), String> {
        let mut stream = self.connect(NAME, roots).await?;
        let host = if head.to_ascii_lowercase().contains("\r\nhost:") {
            String::new()
        } else {
            format!("\r\nHost: {NAME}")
        };
        let length = body.len();
        let request =
            format!("{head}{host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        Ok((head.to_owned(), body.to_owned()))
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
        Ok(get(&mut stream, NAME, path).await)
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
        let config = ClientConfig::builder()
            .with_root_certificates(self::roots(roots))
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
        signal_process(self.pid(), "TERM");
        tokio::time::timeout(Duration::from_secs(30), self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    }
}

fn spawn(args: &[String], kubeconfig: &Path, log: &Path) -> Child {
    let open = |path: &Path| {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true).open(path).unwrap()
    };
    let folder = log.with_extension("tmp");
    std::fs::create_dir_all(&folder).unwrap();
    Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(args)
        .current_dir(&folder)
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .env("TMPDIR", &folder)
        .stdin(Stdio::null())
        .stdout(open(&log.with_extension("out")))
        .stderr(open(log))
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A token of a ServiceAccount for this audience, such as the file of a pod has; another at each call.
pub(crate) async fn token_for(
    client: &Client,
    namespace: &str,
    account: &str,
    audience: &str,
) -> String {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: Some(3600),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let granted = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    granted.status.unwrap().token
}

/// What a client trusts that trusts these certificates and no others.
pub(crate) fn roots(text: &str) -> RootCertStore {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(text.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    store
}

/// The status in the head of an answer.
pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// What a stream to this host answers to a request after which it ends.
pub(crate) async fn get<S>(stream: &mut S, host: &str, path: &str) -> String
where
    S: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
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
