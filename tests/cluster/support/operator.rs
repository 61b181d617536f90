//! The real binary, run as the chart runs it: its arguments, its environment, its ServiceAccount.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use tokio::process::{Child, Command};

use super::{
    Cluster, Space,
    control_plane::{SYSTEM, signal_process, write_private},
    eventually,
};

/// How an operator of a test differs from the chart's.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) host_reload_delay: &'static str,
    pub(crate) restart_delay: &'static str,
    pub(crate) log_level: &'static str,
    pub(crate) log_format: &'static str,
    /// What the process calls itself; something else at every start when left out. One that comes
    /// back under the same name takes its own lease at once.
    pub(crate) identity: Option<String>,
    /// The apiserver's address, when something stands in between.
    pub(crate) server: Option<String>,
    /// Namespaces to look after; the test's own when empty.
    pub(crate) namespaces: Vec<String>,
    /// Data keys re-wrapped in a second.
    pub(crate) rewrap_rate: u32,
    /// How long writers may take to notice that a key ring has turned.
    pub(crate) ring_grace: &'static str,
    /// Further arguments.
    pub(crate) more: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host_reload_delay: "1s",
            restart_delay: "500ms",
            log_level: "info,claviger=trace",
            log_format: "text",
            identity: None,
            server: None,
            namespaces: Vec::new(),
            rewrap_rate: 1000,
            ring_grace: "0s",
            more: Vec::new(),
        }
    }
}

/// A running operator.
pub(crate) struct Operator {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) admin: String,
    pub(crate) log: PathBuf,
}

/// What it takes to start an operator again and again.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    kubeconfig: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    number: u32,
    identity: Option<String>,
}

static OPERATORS: AtomicU32 = AtomicU32::new(0);
static ADMIN_PORTS: AtomicU32 = AtomicU32::new(0);

impl Launcher {
    /// Prepares an operator for a test's namespace.
    pub(crate) async fn new(space: &Space, options: &Options) -> Self {
        let number = OPERATORS.fetch_add(1, Ordering::Relaxed);
        let cluster = &space.cluster;
        let directory = cluster.directory.path();
        let lease = format!("claviger-test-{number}");
        permit_lease(&space.client, &lease).await;
        let kubeconfig = directory.join(format!("operator-{number}.kubeconfig"));
        let token = service_account_token(&space.client, SYSTEM, "claviger").await;
        write_private(
            &kubeconfig,
            &kubeconfig_text(cluster, options.server.as_deref(), &token),
        );
        let namespaces = if options.namespaces.is_empty() {
            vec![space.name.clone()]
        } else {
            options.namespaces.clone()
        };
        let args = [
            "controller",
            "--system-namespace",
            SYSTEM,
            "--lease-name",
            &lease,
            "--namespaces",
            &namespaces.join(","),
            "--host-reload-delay",
            options.host_reload_delay,
            "--restart-delay",
            options.restart_delay,
            "--log-level",
            options.log_level,
            "--log-format",
            options.log_format,
            "--rewrap-rate",
            &options.rewrap_rate.to_string(),
            "--ring-grace",
            options.ring_grace,
        ];
        Self {
            kubeconfig,
            args: args
                .into_iter()
                .map(str::to_owned)
                .chain(options.more.iter().cloned())
                .collect(),
            log: directory.join(format!("operator-{number}.log")),
            number,
            identity: options.identity.clone(),
        }
    }

    /// The name of the leader's lease.
    pub(crate) fn lease(&self) -> String {
        format!("claviger-test-{}", self.number)
    }

    /// The ServiceAccount token with which it asks.
    pub(crate) fn token(&self) -> String {
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let kubeconfig: serde_json::Value = serde_json::from_str(&text).unwrap();
        kubeconfig["users"][0]["user"]["token"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Everything that its processes logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts the process without waiting for anything.
    pub(crate) fn spawn(&self) -> Operator {
        let port =
            20_000 + (std::process::id() % 20_000) + ADMIN_PORTS.fetch_add(1, Ordering::Relaxed);
        let admin = format!("127.0.0.1:{}", free_port(port));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let identity = self
            .identity
            .clone()
            .unwrap_or_else(|| format!("test-{}-{port}", self.number));
        let child = Command::new(env!("CARGO_BIN_EXE_claviger"))
            .args(&self.args)
            .args(["--admin-address", &admin])
            .env_clear()
            .env("KUBECONFIG", &self.kubeconfig)
            .env("CLAVIGER_IDENTITY", identity)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        Operator {
            child,
            pid,
            admin,
            log: self.log.clone(),
        }
    }
}

/// A port that nobody listens on.
fn free_port(_hint: u32) -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

impl Operator {
    /// Starts an operator for a test's namespace and waits until it leads.
    pub(crate) async fn start(space: &Space, options: Options) -> Self {
        let operator = Launcher::new(space, &options).await.spawn();
        operator.leads().await;
        operator
    }

    /// Waits until it leads and its caches are filled.
    pub(crate) async fn leads(&self) {
        eventually("the operator to lead", Duration::from_mins(1), async || {
            let metrics = self.get("/metrics").await?;
            let ready = self.get("/readyz").await?;
            if metrics.contains("claviger_leader 1") && ready == "ok\n" {
                Ok(())
            } else {
                Err(ready)
            }
        })
        .await;
    }

    /// What its port for operations answers.
    pub(crate) async fn get(&self, path: &str) -> Result<String, String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.admin)
            .await
            .map_err(|error| error.to_string())?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: claviger\r\nConnection: close\r\n\r\n");
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|error| error.to_string())?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .await
            .map_err(|error| error.to_string())?;
        answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .ok_or(answer)
    }

    /// Kills it: SIGKILL.
    pub(crate) async fn kill(mut self) {
        let _ = self.child.kill().await;
    }

    /// Stops it: SIGTERM; answers whether it ended well.
    pub(crate) async fn stop(mut self) -> bool {
        signal_process(self.pid, "TERM");
        tokio::time::timeout(Duration::from_secs(25), self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    }

    /// Waits until it has ended by itself or was killed.
    pub(crate) async fn ended(&mut self) {
        let _ = self.child.wait().await;
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Everything it logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A token of a ServiceAccount, as a pod gets it.
pub(crate) async fn service_account_token(client: &Client, namespace: &str, name: &str) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: Some(7200),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let granted = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .unwrap();
    granted.status.unwrap().token
}

/// The chart permits one lease by name; a test's operator has one of its own.
async fn permit_lease(client: &Client, lease: &str) {
    use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
    let metadata = kube::api::ObjectMeta {
        name: Some(lease.to_owned()),
        ..Default::default()
    };
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec!["coordination.k8s.io".to_owned()]),
            resources: Some(vec!["leases".to_owned()]),
            resource_names: Some(vec![lease.to_owned()]),
            verbs: ["get", "update", "patch"].map(str::to_owned).to_vec(),
            ..Default::default()
        }]),
    };
    let binding = RoleBinding {
        metadata,
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: lease.to_owned(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: "claviger".to_owned(),
            namespace: Some(SYSTEM.to_owned()),
            ..Default::default()
        }]),
    };
    Api::<Role>::namespaced(client.clone(), SYSTEM)
        .create(&PostParams::default(), &role)
        .await
        .unwrap();
    Api::<RoleBinding>::namespaced(client.clone(), SYSTEM)
        .create(&PostParams::default(), &binding)
        .await
        .unwrap();
}

/// A kubeconfig with the cluster's CA and this token.
pub(crate) fn kubeconfig_text(cluster: &Cluster, server: Option<&str>, token: &str) -> String {
    let admin: serde_json::Value = {
        let kubeconfig = kube::config::Kubeconfig::read_from(&cluster.kubeconfig).unwrap();
        serde_json::to_value(kubeconfig).unwrap()
    };
    let ca = admin["clusters"][0]["cluster"]["certificate-authority-data"]
        .as_str()
        .unwrap();
    let cluster = match server {
        Some(server) => serde_json::json!({"server": server}),
        None => serde_json::json!({"server": cluster.url, "certificate-authority-data": ca}),
    };
    serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}
