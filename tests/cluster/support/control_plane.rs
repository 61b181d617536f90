//! A real control plane with the chart installed, shared by all tests of the process.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::OnceCell,
};

use super::{eventually, root, tool};

/// The namespace into which the chart is installed.
pub(crate) const SYSTEM: &str = "claviger-system";

/// A running control plane.
pub(crate) struct Cluster {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) url: String,
    pub(crate) audit: PathBuf,
    pub(crate) directory: tempfile::TempDir,
    process: std::sync::Mutex<Option<Child>>,
}

static SHARED: OnceCell<Arc<Cluster>> = OnceCell::const_new();

impl Cluster {
    /// The control plane that the tests share, with the chart installed as `claviger`.
    pub(crate) async fn shared() -> Arc<Self> {
        let start = || async {
            let cluster = Self::start().await;
            cluster.install("claviger", SYSTEM, &[]).await;
            Arc::new(cluster)
        };
        Arc::clone(SHARED.get_or_init(start).await)
    }

    /// A control plane of one's own, without anything installed.
    pub(crate) async fn start() -> Self {
        install_crypto();
        remove_leftovers();
        let directory = tempfile::Builder::new()
            .prefix(&format!("{DIRECTORY}{}-", std::process::id()))
            .tempdir()
            .unwrap();
        let mut cluster = Self {
            kubeconfig: directory.path().join("kubeconfig"),
            url: String::new(),
            audit: directory.path().join("audit.log"),
            directory,
            process: std::sync::Mutex::new(None),
        };
        cluster.url = cluster.boot().await;
        cluster
    }

    /// Starts the process on what state there is; answers its address.
    async fn boot(&self) -> String {
        let log = std::fs::File::create(self.directory.path().join("controlplane.log")).unwrap();
        let mut process = Command::new(tool("controlplane"))
            .arg("--dir")
            .arg(self.directory.path().join("state"))
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--audit-log")
            .arg(&self.audit)
            .args(["--keep", "--die-with-parent"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = tokio::time::timeout(Duration::from_mins(2), lines.next_line()).await;
        let ready = ready
            .expect("the control plane is ready in two minutes")
            .unwrap();
        let ready = ready.unwrap_or_else(|| {
            let log = std::fs::read_to_string(self.directory.path().join("controlplane.log"));
            panic!("the control plane ended: {}", log.unwrap_or_default())
        });
        *self.process.lock().unwrap() = Some(process);
        ready.strip_prefix("ready ").unwrap().to_owned()
    }

    /// Kills the process and starts it again on the same state.
    pub(crate) async fn kill_and_restart(&self) {
        let mut process = self.process.lock().unwrap().take().unwrap();
        process.kill().await.unwrap();
        let url = self.boot().await;
        assert_eq!(url, self.url, "the address survives");
    }

    /// Sends the process a signal such as `STOP` or `CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.lock().unwrap().as_ref().unwrap().id().unwrap();
        signal_process(pid, signal);
    }

    /// A client with every right.
    pub(crate) async fn admin(&self) -> Client {
        Client::try_from(self.config().await).unwrap()
    }

    /// The admin's configuration.
    pub(crate) async fn config(&self) -> Config {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        config.default_retry = false;
        config
    }

    /// Runs kubectl as admin; answers standard output, or standard error when it failed.
    pub(crate) async fn kubectl(&self, args: &[&str], input: &str) -> Result<String, String> {
        run(
            Command::new(tool("kubectl"))
                .arg("--kubeconfig")
                .arg(&self.kubeconfig)
                .args(args),
            input,
        )
        .await
    }

    /// What the chart renders with these values.
    pub(crate) async fn render(release: &str, namespace: &str, values: &[&str]) -> String {
        let mut helm = Command::new(tool("helm"));
        helm.args(["template", release])
            .arg(root().join("charts/claviger"));
        helm.args(["--namespace", namespace, "--kube-version", "1.36.3"]);
        // Which helm would ask the cluster for.
        let served = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy";
        helm.args(["--api-versions", served]);
        for value in values {
            helm.args(["--set", value]);
        }
        run(&mut helm, "").await.unwrap()
    }

    /// Installs the chart as `helm template | kubectl apply` does, and waits until the definition
    /// and the admission policies are in force.
    pub(crate) async fn install(&self, release: &str, namespace: &str, values: &[&str]) {
        let client = self.admin().await;
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone());
        let system = k8s_openapi::api::core::v1::Namespace {
            metadata: ObjectMeta {
                name: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            ..Default::default()
        };
        match namespaces.create(&PostParams::default(), &system).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => panic!("{error}"),
        }
        let manifests = Self::render(release, namespace, values).await;
        eventually(
            "the chart to be accepted",
            Duration::from_secs(30),
            async || {
                self.kubectl(&["apply", "--server-side", "-f", "-"], &manifests)
                    .await
            },
        )
        .await;
        let wait = [
            "wait",
            "--for=condition=established",
            "--timeout=30s",
            "crd/functionkeys.claviger.dev",
            "crd/roleassignments.claviger.dev",
            "crd/secretvaults.claviger.dev",
        ];
        self.kubectl(&wait, "").await.unwrap();
        if manifests.contains("kind: ValidatingAdmissionPolicyBinding") {
            self.policies_in_force(client, namespace).await;
        }
    }

    /// A policy takes effect some seconds after it was made: try something that one refuses.
    async fn policies_in_force(&self, client: Client, namespace: &str) {
        let secrets = Api::<Secret>::namespaced(client, namespace);
        eventually(
            "the admission policies to be in force",
            Duration::from_mins(1),
            async || {
                let secret = Secret {
                    metadata: ObjectMeta {
                        name: Some("policy-probe".to_owned()),
                        ..ObjectMeta::default()
                    },
                    type_: Some("claviger.dev/seal-key".to_owned()),
                    ..Secret::default()
                };
                let params = PostParams {
                    dry_run: true,
                    ..PostParams::default()
                };
                match secrets.create(&params, &secret).await {
                    Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => {
                        Ok(())
                    }
                    other => Err(format!("{other:?}")),
                }
            },
        )
        .await;
    }
}

/// Sends a process a signal.
pub(crate) fn signal_process(pid: u32, signal: &str) {
    let sent = std::process::Command::new("kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// What the directories of control planes begin with; the process that made them follows.
const DIRECTORY: &str = "claviger-test-";

/// Removes directories of test processes that are no more: the shared control plane lives as long as
/// its process, which has no moment to clean up.
fn remove_leftovers() {
    let entries = std::fs::read_dir(std::env::temp_dir());
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(DIRECTORY)
            .and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The TLS library's provider is chosen once in a process.
pub(crate) fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Runs a command with this input; answers standard output, or standard error when it failed.
pub(crate) async fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feed = tokio::spawn(async move {
        let _ = stdin.write_all(input.as_bytes()).await;
    });
    let output = child.wait_with_output().await.unwrap();
    feed.await.unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A file that only its owner reads.
pub(crate) fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
