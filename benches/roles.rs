//! What a `RoleAssignment` for very many namespaces costs, as a ratio to a client that merely makes
//! the same bindings.
//!
//! On one machine in one run, because only such ratios mean anything elsewhere: an embedded control
//! plane with the chart and its policies, the release binary under the chart's `ServiceAccount`, which
//! follows the whole cluster, and for comparison a bare client that uses the same library, the same
//! rights and as many requests at once, and makes and deletes the same bindings without deciding or
//! watching anything. The bare client runs before and after the operator; its time is their mean.
//!
//! An assignment that selects all namespaces by a label is made; labels come and go, at rest and in the
//! midst of a second assignment's beginning; the second one is deleted; the operator starts again and
//! has nothing to do. The Web's public roots are not published here: in so many namespaces they would
//! take more than etcd holds.
//!
//! ```text
//! cargo bench --bench roles      10,000 namespaces: some six minutes
//!   BENCH_N=1000       so many namespaces
//!   BENCH_QUICK=1      1,000 namespaces: a minute
//!   BENCH_IDLE=60      seconds of doing nothing that are watched
//! ```
//!
//! It always ends well: a time is never a test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts, printed with three digits"
)]

#[allow(dead_code, reason = "other measurements use all of it")]
mod measure;
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
#[path = "../tests/cluster/support/mod.rs"]
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use claviger::{
    api::v1alpha1::RoleAssignment,
    clock,
    domain::{
        ledger::Owner,
        role::{
            Assignment, BuiltIn, Key, Namespace as Seen, Objects, Principal, Reach, Role, Scope,
            Selector, Setting, Source, Test, decide,
        },
    },
    k8s::role::Roles,
};
use futures::{StreamExt, stream};
use k8s_openapi::api::{core::v1::Namespace, rbac::v1::RoleBinding};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use measure::{
    Bench, Cost, Requests, cpu_seconds, figures, in_parallel, median, memory, quiet, rest, say,
    spent,
};
use serde_json::json;
use support::{
    Operator, Options, Space, control_plane::SYSTEM, operator::Launcher, roles::to_user,
};

/// Requests at once, of the operator and of the bare client.
const AT_ONCE: usize = 16;
/// The bare client makes no more bindings than this: its time per binding does not depend on it.
const BARE: usize = 2500;
/// How many labels come and go.
const LABELS: usize = 10;
const PATIENCE: Duration = Duration::from_mins(10);

const AIM_TIME: f64 = 1.5;
/// Beside the bindings there are finalizer and status.
const AIM_WRITES: f64 = 1.02;
const AIM_LABEL: f64 = 2.0;
const AIM_MEMORY: f64 = 128.0;

const READY: &str = r#"claviger_resources{kind="RoleAssignment",ready="true"}"#;
const LOOKS: &str = r#"claviger_reconcile_duration_seconds_count{kind="assignment"}"#;

fn main() {
    let number = |name: &str| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse::<usize>().ok())
    };
    let quick = std::env::var("BENCH_QUICK").is_ok_and(|quick| quick != "0");
    let count = number("BENCH_N").unwrap_or(if quick { 1_000 } else { 10_000 });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = Bench::start().await;
        let space = bench.space("roles").await;
        Measuring {
            bench,
            space,
            count: count.max(LABELS + 1),
        }
        .run()
        .await;
    });
}

struct Measuring {
    bench: Bench,
    space: Space,
    count: usize,
}

impl Measuring {
    async fn run(&self) {
        let count = self.count;
        say(&format!("{count} namespaces are made"));
        in_parallel(count, async |number| {
            let name = namespace(number);
            self.space
                .put_namespace(&name, json!({"tier": "front"}))
                .await;
        })
        .await;
        self.calm().await;
        let options = Options {
            log_level: "info",
            namespaces: vec![String::new()],
            more: vec!["--public-roots=omit".to_owned()],
            ..Options::default()
        };
        let launcher = Launcher::new(&self.space, &options).await;
        say("the operator publishes its roots everywhere");
        let operator = launcher.spawn();
        operator.leads().await;
        quiet(&operator).await;
        assert!(operator.stop().await);
        self.calm().await;
        let before = self.bare("before").await;

        let operator = launcher.spawn();
        operator.leads().await;
        quiet(&operator).await;
        let (at_rest, _) = memory(operator.pid);
        say("an assignment is made");
        rest().await;
        let (mark, cpu) = (
            Requests::mark(&self.bench.cluster),
            cpu_seconds(operator.pid),
        );
        let made = spent(self.bench.control_plane, count, async || {
            self.assign("fronts", "SecretVaultSecretsUser").await;
            self.granted(&operator, "fronts", count).await;
        })
        .await;
        quiet(&operator).await;
        let cpu = cpu_seconds(operator.pid) - cpu;
        let requests = Requests::everywhere(mark, &self.bench.cluster);

        say("labels come and go");
        let bindings = [binding("fronts", BuiltIn::SecretVaultSecretsUser)];
        let (mut gone, mut back) = (Vec::new(), Vec::new());
        for number in 0..LABELS {
            let name = namespace(number * count / LABELS);
            gone.push(self.label(&operator, &name, "other", &bindings).await);
            back.push(self.label(&operator, &name, "front", &bindings).await);
        }
        quiet(&operator).await;

        say("a second assignment is made, and a label goes in its midst");
        let bindings = [
            binding("fronts", BuiltIn::SecretVaultSecretsUser),
            binding("readers", BuiltIn::SecretVaultReader),
        ];
        self.assign("readers", "SecretVaultReader").await;
        let first = namespace(0);
        self.stand(&operator, &first, &bindings[1..], true).await;
        let midst = self.label(&operator, &first, "other", &bindings).await;
        let unfinished = !self.is_granted("readers", count - 1).await;
        self.granted(&operator, "readers", count - 1).await;
        quiet(&operator).await;
        say("and deleted");
        let deleted = spent(self.bench.control_plane, count - 1, async || {
            self.unassign(&operator, "readers").await;
        })
        .await;
        quiet(&operator).await;
        let (peak, settled) = memory(operator.pid);
        assert!(operator.stop().await);

        let restarted = self.restart(&launcher).await;
        let after = self.bare("after").await;
        let ratio = |cost: &Cost, of: usize| {
            cost.seconds / f64::midpoint(before[of].seconds, after[of].seconds)
        };
        println!("\n{count} namespaces, one assignment");
        println!(
            "made in {:.2} × the bare client's time, {:.2} × its CPU of the control plane; {:.0} bindings/s, {:.2} ms of the operator's CPU each",
            ratio(&made, 0),
            made.control_plane / f64::midpoint(before[0].control_plane, after[0].control_plane),
            1.0 / made.seconds,
            cpu * 1000.0 / count as f64,
        );
        println!(
            "  bare client: {:.0} bindings/s before, {:.0} after",
            1.0 / before[0].seconds,
            1.0 / after[0].seconds
        );
        let writes = requests.writes as f64 / count as f64;
        println!(
            "  {writes:.4} writes per binding: {} ({} refused)",
            requests.list(),
            requests.refused
        );
        println!(
            "deleted in {:.2} × the bare client's time",
            ratio(&deleted, 1)
        );
        let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
        for (what, times) in [("goes", &gone), ("comes", &back)] {
            println!(
                "a label {what}: {:.3} s until the binding does, {:.3} s at most of {LABELS}",
                median(times.clone()),
                most(times),
            );
        }
        println!(
            "a label goes in the midst of {}: {midst:.3} s",
            if unfinished {
                "another beginning"
            } else {
                "nothing: the other was ready"
            }
        );
        println!(
            "memory: {at_rest:.0} MiB with no assignment, peak {peak:.0} MiB, settled {settled:.0} MiB; after a restart peak {:.0} MiB",
            restarted.peak
        );
        println!(
            "restart: {:.1} s until it was looked at, {:.2} s CPU; {} writes; {}",
            restarted.seconds,
            restarted.cpu,
            restarted.requests.writes,
            restarted.requests.list()
        );
        println!(
            "idle: {} requests, {} for the lease, {} watches taken up again",
            restarted.idle.list(),
            restarted.idle.leases,
            restarted.idle.watches
        );
        let (time, slowest) = (ratio(&made, 0), most(&gone).max(most(&back)).max(midst));
        let peak = peak.max(restarted.peak);
        println!("\nAims");
        for (met, aim) in [
            (
                time <= AIM_TIME,
                format!("made in {time:.2} × the bare client (aim ≤ {AIM_TIME})"),
            ),
            (
                writes <= AIM_WRITES,
                format!("{writes:.4} writes per binding (aim ≤ {AIM_WRITES})"),
            ),
            (
                slowest <= AIM_LABEL,
                format!("a label's change in {slowest:.2} s at most (aim ≤ {AIM_LABEL})"),
            ),
            (
                restarted.requests.writes == 0,
                format!(
                    "{} writes after a restart (aim 0)",
                    restarted.requests.writes
                ),
            ),
            (
                peak <= AIM_MEMORY,
                format!("{peak:.0} MiB at most (aim ≤ {AIM_MEMORY})"),
            ),
        ] {
            println!("  {}  {aim}", if met { "PASS" } else { "FAIL" });
        }
    }

    /// Waits until the control plane has made everything that a namespace gets.
    async fn calm(&self) {
        let mut cpu = cpu_seconds(self.bench.control_plane);
        loop {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let now = cpu_seconds(self.bench.control_plane);
            if now - cpu < 0.6 {
                return;
            }
            cpu = now;
        }
    }

    /// What it costs to make a binding, and to delete one.
    async fn bare(&self, name: &str) -> [Cost; 2] {
        let count = self.count.min(BARE);
        say(&format!(
            "the bare client makes and deletes {count} bindings"
        ));
        let assignment = assignment(name, BuiltIn::SecretVaultSecretsUser);
        let objects: Vec<_> = objects(&assignment, count).into_iter().collect();
        let roles = Roles::new(self.bench.peer.clone());
        let made = Mutex::new(Vec::new());
        rest().await;
        let making = spent(self.bench.control_plane, count, async || {
            stream::iter(&objects)
                .map(async |(key, content)| {
                    let found = roles.create(&assignment, key, content).await.unwrap();
                    made.lock().unwrap().push((key.clone(), found.observed.uid));
                })
                .buffer_unordered(AT_ONCE)
                .collect::<()>()
                .await;
        })
        .await;
        rest().await;
        let made = made.into_inner().unwrap();
        let deleting = spent(self.bench.control_plane, count, async || {
            stream::iter(&made)
                .map(async |(key, uid)| _ = roles.delete(key, uid).await.unwrap())
                .buffer_unordered(AT_ONCE)
                .collect::<()>()
                .await;
        })
        .await;
        [making, deleting]
    }

    async fn assign(&self, name: &str, role: &str) {
        let selector = json!({"namespaces": {"selector": {"matchLabels": {"tier": "front"}}}});
        let spec = to_user("anna", role, &selector);
        self.space.assign_in(SYSTEM, name, &spec).await;
    }

    fn assignments(&self) -> Api<RoleAssignment> {
        Api::namespaced(self.bench.admin.clone(), SYSTEM)
    }

    async fn is_granted(&self, name: &str, count: usize) -> bool {
        let object = self.assignments().get(name).await.unwrap();
        let effective = object.status.and_then(|status| status.effective);
        effective.is_some_and(|effective| usize::try_from(effective.bindings) == Ok(count))
    }

    /// Waits until the status says that all of it is granted.
    async fn granted(&self, operator: &Operator, name: &str, count: usize) {
        let begun = Instant::now();
        while !self.is_granted(name, count).await {
            assert!(begun.elapsed() < PATIENCE, "{}", operator.logged());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Deletes an assignment and waits until it is gone, and all of it.
    async fn unassign(&self, operator: &Operator, name: &str) {
        let assignments = self.assignments();
        assignments
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        let begun = Instant::now();
        while assignments.get_opt(name).await.unwrap().is_some() {
            assert!(begun.elapsed() < PATIENCE, "{}", operator.logged());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Changes a namespace's label; answers in how many seconds the bindings have followed.
    async fn label(&self, operator: &Operator, name: &str, tier: &str, bindings: &[String]) -> f64 {
        let namespaces = Api::<Namespace>::all(self.bench.admin.clone());
        let patch = json!({"metadata": {"labels": {"tier": tier}}});
        let begun = Instant::now();
        namespaces
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        self.stand(operator, name, bindings, tier == "front").await;
        begun.elapsed().as_secs_f64()
    }

    /// Waits until all of the bindings stand in a namespace, or none.
    async fn stand(&self, operator: &Operator, namespace: &str, bindings: &[String], stand: bool) {
        let api = Api::<RoleBinding>::namespaced(self.bench.admin.clone(), namespace);
        let begun = Instant::now();
        for binding in bindings {
            while api.get_opt(binding).await.unwrap().is_some() != stand {
                assert!(begun.elapsed() < PATIENCE, "{}", operator.logged());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// The operator finds everything as it should be, and then has nothing to do.
    async fn restart(&self, launcher: &Launcher) -> Restarted {
        say("the operator starts again with nothing to do");
        rest().await;
        let (mark, begun) = (Requests::mark(&self.bench.cluster), Instant::now());
        let operator = launcher.spawn();
        operator.leads().await;
        figures(&operator, "the assignment was looked at", |figure| {
            figure(READY) == 1 && (1..usize::MAX).contains(&figure(LOOKS))
        })
        .await;
        let seconds = begun.elapsed().as_secs_f64();
        quiet(&operator).await;
        let requests = Requests::everywhere(mark, &self.bench.cluster);
        let cpu = cpu_seconds(operator.pid);
        let mark = Requests::mark(&self.bench.cluster);
        tokio::time::sleep(self.bench.idle).await;
        let idle = Requests::everywhere(mark, &self.bench.cluster);
        let (peak, _) = memory(operator.pid);
        assert!(operator.stop().await);
        Restarted {
            seconds,
            cpu,
            peak,
            requests,
            idle,
        }
    }
}

struct Restarted {
    seconds: f64,
    cpu: f64,
    peak: f64,
    requests: Requests,
    idle: Requests,
}

fn namespace(number: usize) -> String {
    format!("front-{number:05}")
}

fn assignment(name: &str, role: BuiltIn) -> Assignment {
    let front = Test::In(BTreeSet::from(["front".to_owned()]));
    Assignment {
        namespace: SYSTEM.to_owned(),
        owner: Owner {
            name: name.to_owned(),
            uid: "00000000-0000-0000-0000-000000000000".to_owned(),
        },
        principal: Principal::User("anna".to_owned()),
        role: Role::BuiltIn(role),
        scope: Scope::Selected(Selector(vec![("tier".to_owned(), front)])),
        starts: None,
        expires: None,
        deleting: false,
    }
}

/// What an assignment comes to in the first namespaces.
fn objects(assignment: &Assignment, count: usize) -> Objects {
    let labels = BTreeMap::from([("tier".to_owned(), "front".to_owned())]);
    let seen = Seen {
        labels,
        going: false,
    };
    let namespaces = (0..count).map(|number| (namespace(number), seen.clone()));
    let setting = Setting {
        system_namespace: SYSTEM.to_owned(),
        role_prefix: "claviger".to_owned(),
        reach: Reach::Everywhere,
    };
    let namespaces = namespaces.collect();
    decide(
        assignment,
        &namespaces,
        &Source::None,
        &setting,
        clock::now(),
    )
    .objects
}

/// The name of an assignment's bindings.
fn binding(name: &str, role: BuiltIn) -> String {
    let objects = objects(&assignment(name, role), 1);
    let (Key { name, .. }, _) = objects.into_iter().next().unwrap();
    name
}
