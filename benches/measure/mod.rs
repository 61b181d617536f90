//! What measurements against a real control plane have in common: time, CPU and memory of processes,
//! requests from the audit log, and the operator's own figures.

use std::{
    collections::BTreeMap,
    fs::File,
    future::Future,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use crate::support::{
    Cluster, Operator, Space,
    control_plane::SYSTEM,
    operator::{kubeconfig_text, service_account_token},
};

/// Requests at once, of the bare client and of whoever declares something to the operator.
const PARALLEL: usize = 32;
const OPERATOR: &str = "system:serviceaccount:claviger-system:claviger";
/// A minute of the slowest machine per thousand objects.
const PATIENCE: Duration = Duration::from_mins(20);

/// Everything that a measurement needs.
pub(crate) struct Bench {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) admin: Client,
    /// The operator's rights: admission costs the bare client what it costs the operator.
    pub(crate) peer: Client,
    /// The process.
    pub(crate) control_plane: u32,
    /// How long doing nothing is watched.
    pub(crate) idle: Duration,
}

impl Bench {
    pub(crate) async fn start() -> Self {
        say("starting the control plane and installing the chart");
        let cluster = Cluster::shared().await;
        let admin = cluster.admin().await;
        let peer = peer(&cluster, &admin).await;
        let idle = std::env::var("BENCH_IDLE")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(30);
        Self {
            cluster,
            admin,
            peer,
            control_plane: child_called("controlplane"),
            idle: Duration::from_secs(idle),
        }
    }

    /// A namespace to measure in: the tests' own would watch every Secret of it.
    pub(crate) async fn space(&self, what: &str) -> Space {
        use std::sync::atomic::{AtomicU32, Ordering};
        static SPACES: AtomicU32 = AtomicU32::new(0);
        let name = format!("{what}-{}", SPACES.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(self.admin.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        Space {
            cluster: Arc::clone(&self.cluster),
            client: self.admin.clone(),
            name,
            values: Arc::default(),
        }
    }
}

/// How long a step took, and the CPU it cost the control plane.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) control_plane: f64,
}

/// Requests of the operator in one step.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) writes: usize,
    pub(crate) reads: usize,
    pub(crate) watches: usize,
    pub(crate) leases: usize,
    pub(crate) events: usize,
    pub(crate) refused: usize,
    by_kind: BTreeMap<String, usize>,
}

impl Requests {
    /// Where the audit log ends now.
    pub(crate) fn mark(cluster: &Cluster) -> u64 {
        std::fs::metadata(&cluster.audit).unwrap().len()
    }

    /// What the operator asked of the apiserver since, of this namespace and its own.
    pub(crate) fn since(mark: u64, cluster: &Cluster, namespace: &str) -> Self {
        Self::of(mark, cluster, |of| [namespace, SYSTEM, ""].contains(&of))
    }

    /// What the operator asked of the apiserver since, wherever.
    pub(crate) fn everywhere(mark: u64, cluster: &Cluster) -> Self {
        Self::of(mark, cluster, |_| true)
    }

    fn of(mark: u64, cluster: &Cluster, is_meant: impl Fn(&str) -> bool) -> Self {
        let mut log = File::open(&cluster.audit).unwrap();
        log.seek(SeekFrom::Start(mark)).unwrap();
        let mut requests = Self::default();
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            // A line that is being written is not one yet.
            let Ok(event) = serde_json::from_str::<Value>(&line) else {
                continue;
            };
            let text = |pointer: &str| {
                event
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            if text("/user/username") != OPERATOR || !is_meant(text("/objectRef/namespace")) {
                continue;
            }
            let watch = text("/verb") == "watch";
            if watch != (text("/stage") == "ResponseStarted") {
                continue;
            }
            let resource = [text("/objectRef/resource"), text("/objectRef/subresource")];
            let code = event
                .pointer("/responseStatus/code")
                .and_then(Value::as_u64)
                .unwrap_or_default();
            requests.take(text("/verb"), resource, code);
        }
        requests
    }

    fn take(&mut self, verb: &str, [resource, subresource]: [&str; 2], code: u64) {
        match (verb, resource) {
            (_, "leases") => self.leases += 1,
            (_, "events") => self.events += 1,
            ("watch", _) => self.watches += 1,
            _ => {
                if matches!(verb, "get" | "list") {
                    self.reads += 1;
                } else {
                    self.writes += 1;
                }
                self.refused += usize::from(code >= 400);
                let slash = if subresource.is_empty() { "" } else { "/" };
                *self
                    .by_kind
                    .entry(format!("{verb} {resource}{slash}{subresource}"))
                    .or_default() += 1;
            }
        }
    }

    /// How many of which kind, in words.
    pub(crate) fn list(&self) -> String {
        let kinds: Vec<String> = self
            .by_kind
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .chain((self.events > 0).then(|| format!("{} events", self.events)))
            .collect();
        if kinds.is_empty() {
            "none".to_owned()
        } else {
            kinds.join(", ")
        }
    }
}

/// A client with the operator's rights: admission costs it what it costs the operator.
pub(crate) async fn peer(cluster: &Cluster, admin: &Client) -> Client {
    let token = service_account_token(admin, SYSTEM, "claviger").await;
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig_text(cluster, None, &token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

/// What it costs to do something, per one of so many.
pub(crate) async fn spent<Doing: Future<Output = ()>>(
    control_plane: u32,
    count: usize,
    act: impl FnOnce() -> Doing,
) -> Cost {
    let (begun, cpu) = (Instant::now(), cpu_seconds(control_plane));
    act().await;
    Cost {
        seconds: begun.elapsed().as_secs_f64() / count as f64,
        control_plane: (cpu_seconds(control_plane) - cpu) / count as f64,
    }
}

pub(crate) async fn in_parallel<Doing: Future<Output = ()>>(
    count: usize,
    act: impl Fn(usize) -> Doing,
) {
    stream::iter((0..count).map(act))
        .buffer_unordered(PARALLEL)
        .collect::<()>()
        .await;
}

/// A pause in which everything comes to rest and the clock gets past the second. Answers when it
/// ended.
pub(crate) async fn rest() -> Instant {
    tokio::time::sleep(Duration::from_secs(3)).await;
    Instant::now()
}

/// Waits until the operator costs nothing any more.
pub(crate) async fn quiet(operator: &Operator) {
    let mut cpu = cpu_seconds(operator.pid);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = cpu_seconds(operator.pid);
        if now - cpu < 0.05 {
            return;
        }
        cpu = now;
    }
}

/// Waits until the operator's own figures satisfy: a list of everything would cost more than what is
/// measured.
pub(crate) async fn figures(
    operator: &Operator,
    what: &str,
    good: impl Fn(&dyn Fn(&str) -> usize) -> bool,
) {
    let begun = Instant::now();
    loop {
        let text = operator.get("/metrics").await.unwrap_or_default();
        let figure = |name: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count or an age"
            )]
            value.map_or(usize::MAX, |value| value as usize)
        };
        if good(&figure) {
            return;
        }
        goes_on(operator, begun, what, &text);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// That there is still something to wait for.
pub(crate) fn goes_on(operator: &Operator, begun: Instant, what: &str, seen: &str) {
    assert!(
        alive(operator.pid),
        "the operator ended before {what}:\n{}",
        operator.logged()
    );
    assert!(
        begun.elapsed() < PATIENCE,
        "waited in vain until {what}:\n{seen}\n{}",
        operator.logged()
    );
}

pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let middle = of.len() / 2;
    if of.len() % 2 == 1 {
        of[middle]
    } else {
        f64::midpoint(of[middle - 1], of[middle])
    }
}

/// CPU seconds that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold spaces.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    // 100 ticks a second on every Linux that Rust runs on.
    (ticks(11) + ticks(12)) / 100.0
}

/// The most memory a process ever had resident, and what it has now, in MiB.
pub(crate) fn memory(pid: u32) -> (f64, f64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    (field("VmHWM:"), field("VmRSS:"))
}

/// Whether a process runs; one that has ended stays a zombie until somebody asks for its status.
fn alive(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(')')
        .is_some_and(|(_, tail)| !tail.trim_start().starts_with('Z'))
}

/// The child of this process of that name.
pub(crate) fn child_called(name: &str) -> u32 {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let own = std::process::id().to_string();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |pid: &u32| {
        let path = format!("/proc/{pid}/stat");
        let text = std::fs::read_to_string(Path::new(&path)).unwrap_or_default();
        let Some((head, tail)) = text.rsplit_once(')') else {
            return false;
        };
        head.ends_with(&format!("({name}")) && tail.split_whitespace().nth(1) == Some(own.as_str())
    };
    pids.find(is_it).unwrap()
}

pub(crate) fn say(what: &str) {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() {
        eprintln!("… {what}");
    }
}
