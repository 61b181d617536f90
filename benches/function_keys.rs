//! What the operator costs, as ratios to a client that merely makes the same objects.
//!
//! On one machine in one run, because only such ratios mean anything elsewhere: an embedded control
//! plane with the chart and its policies, the release binary under the chart's ServiceAccount, and
//! for comparison a bare client that uses the same library, the same rights and the same number of
//! requests at once. The bare client runs before and after the operator; its time is their mean.
//!
//! ```text
//! cargo bench --bench function_keys       everything: about ten minutes on an idle machine
//!   BENCH_QUICK=1       1,000 keys in one round only: a minute and a half
//!   BENCH_N=5000        no more keys than this in any shape
//!   BENCH_ONLY=10000x1  one shape: keys x keys of one Secret
//!   BENCH_IDLE=60       seconds of doing nothing that are watched
//! ```
//!
//! It always ends well: a time is never a test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]
#![allow(
    clippy::cast_precision_loss,
    reason = "counts and byte sizes, printed with three digits"
)]

#[allow(dead_code, reason = "other measurements use all of it")]
mod measure;
#[allow(dead_code, unused_imports, reason = "the tests use all of it")]
#[path = "../tests/cluster/support/mod.rs"]
mod support;

use std::{collections::BTreeMap, future::Future, time::Instant};

use claviger::api::v1alpha1::FunctionKey;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use measure::{
    Bench, Cost, Requests, cpu_seconds, figures, in_parallel, median, memory, quiet, rest, say,
    spent,
};
use serde_json::{Value, json};
use support::{Operator, Options, Space, operator::Launcher, space::condition};

/// The bare client makes no more keys than this: its time per key does not depend on the number.
const BARE_KEYS: usize = 5000;
/// Picks one measured step out of a round.
type Pick = fn(&Round) -> &Step;

const AIM_TIME: f64 = 1.2;
const AIM_WRITES: f64 = 2.0;
const AIM_MEMORY: f64 = 64.0;

/// So many keys, so many of them in one Secret, measured so many times.
#[derive(Clone, Copy)]
struct Shape {
    keys: usize,
    together: usize,
    rounds: usize,
}

/// What the operator made of the first store of a shape: the bare client makes the same.
struct Model {
    created: Made,
    rotated: Made,
}

struct Made {
    secret: Secret,
    status: Value,
}

struct Step {
    /// Time and CPU by key, divided by the bare client's.
    ratio: f64,
    cpu_ratio: f64,
    cost: Cost,
    /// CPU seconds of the operator.
    cpu: f64,
    requests: Requests,
}

struct Round {
    create: Step,
    rotate: Step,
    peak: f64,
    settled: f64,
    after: Option<Restarted>,
}

struct Restarted {
    seconds: f64,
    cpu: f64,
    peak: f64,
    settled: f64,
    requests: Requests,
    idle: Requests,
    idle_cpu: f64,
}

fn main() {
    let shapes = shapes();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = Bench::start().await;
        let mut aims = Vec::new();
        for shape in shapes {
            let model = bench.model(shape).await;
            let mut rounds = Vec::new();
            let mut bare = bench.bare(shape, &model).await;
            for round in 0..shape.rounds {
                let last = round + 1 == shape.rounds;
                let (step, after) = bench.round(shape, &model, bare, last).await;
                rounds.push(step);
                bare = after;
            }
            report(shape, &rounds, &mut aims);
        }
        println!("\nAims");
        for (met, aim) in &aims {
            println!("  {}  {aim}", if *met { "PASS" } else { "FAIL" });
        }
    });
}

fn shapes() -> Vec<Shape> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<usize>().ok())
    };
    let most = number("BENCH_N").unwrap_or(usize::MAX);
    let shape = |keys: usize, together, rounds| Shape {
        keys: keys.min(most),
        together,
        rounds,
    };
    let mut shapes = vec![
        shape(1_000, 1, 3),
        shape(10_000, 100, 1),
        shape(10_000, 1, 1),
    ];
    if let Ok(only) = std::env::var("BENCH_ONLY") {
        shapes.retain(|shape| shape.name() == only);
    }
    if std::env::var("BENCH_QUICK").is_ok_and(|quick| quick != "0") {
        shapes.truncate(1);
        for shape in &mut shapes {
            shape.rounds = 1;
        }
    }
    // Two shapes that BENCH_N made the same are one.
    shapes.dedup_by_key(|shape| (shape.keys, shape.together));
    shapes
}

impl Shape {
    fn name(self) -> String {
        format!("{}x{}", self.keys, self.together)
    }

    fn key(number: usize) -> String {
        format!("key-{number:05}")
    }

    fn store(self, number: usize) -> String {
        format!("store-{:05}", number / self.together)
    }

    fn declare(self, number: usize) -> Value {
        json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "FunctionKey",
            "metadata": {"name": Self::key(number)},
            "spec": {
                "storage": {"secret": {"name": self.store(number)}},
                "scope": "Function", "functionName": format!("function-{number:05}"),
                "rotation": {"interval": "720h", "generation": 1},
            },
        })
    }
}

impl Bench {
    async fn launcher(&self, space: &Space) -> Launcher {
        let options = Options {
            log_level: "info",
            ..Options::default()
        };
        Launcher::new(space, &options).await
    }

    /// Lets the operator make one store and turn its keys, to see what the bare client has to make.
    async fn model(&self, shape: Shape) -> Model {
        let space = self.space("model").await;
        let operator = self.launcher(&space).await.spawn();
        operator.leads().await;
        self.declare(&space, shape, shape.together).await;
        all_ready(&operator, shape.together).await;
        let created = Made::read(&space, shape).await;
        let begun = rest().await;
        self.raise(&space, shape.together).await;
        all_turned(&operator, shape.together, begun).await;
        let rotated = Made::read(&space, shape).await;
        assert!(operator.stop().await);
        Model { created, rotated }
    }

    /// The bare client's cost of creating and of rotating, per key.
    async fn bare(&self, shape: Shape, model: &Model) -> [Cost; 2] {
        let space = self.space("bare").await;
        let keys = shape.keys.min(BARE_KEYS);
        say(&format!(
            "{}: the bare client makes and turns {keys} keys",
            shape.name()
        ));
        let resource = ApiResource::erase::<FunctionKey>(&());
        let admins: Api<DynamicObject> =
            Api::namespaced_with(self.admin.clone(), &space.name, &resource);
        let statuses: Api<DynamicObject> =
            Api::namespaced_with(self.peer.clone(), &space.name, &resource);
        let secrets: Api<Secret> = Api::namespaced(self.peer.clone(), &space.name);
        let write_status = async |number: usize, uid: String, status: &Value| {
            let patch = json!([
                {"op": "test", "path": "/metadata/uid", "value": uid},
                {"op": "add", "path": "/status", "value": status},
            ]);
            let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
            let patch = Patch::Json::<()>(patch);
            statuses
                .patch_status(&Shape::key(number), &PatchParams::default(), &patch)
                .await
                .unwrap();
        };
        let created = self
            .cost(keys, async |number| {
                let key = serde_json::from_value(shape.declare(number)).unwrap();
                let made = admins.create(&PostParams::default(), &key).await.unwrap();
                if number % shape.together == 0 {
                    let secret = model.created.secret_called(&shape.store(number));
                    secrets
                        .create(&PostParams::default(), &secret)
                        .await
                        .unwrap();
                }
                write_status(number, made.uid().unwrap(), &model.created.status).await;
            })
            .await;
        let changes = model.changes();
        let rotated = self
            .cost(keys, async |number| {
                let raised = raised(&admins, number).await;
                if number % shape.together == 0 {
                    let params = PatchParams::default();
                    let changes = Patch::Merge(&changes);
                    secrets
                        .patch(&shape.store(number), &params, &changes)
                        .await
                        .unwrap();
                }
                write_status(number, raised.uid().unwrap(), &model.rotated.status).await;
            })
            .await;
        [created, rotated]
    }

    /// The operator on new keys, and the bare client again after it.
    async fn round(
        &self,
        shape: Shape,
        model: &Model,
        before: [Cost; 2],
        last: bool,
    ) -> (Round, [Cost; 2]) {
        let Shape { keys, .. } = shape;
        let space = self.space("bench").await;
        let launcher = self.launcher(&space).await;
        let operator = launcher.spawn();
        operator.leads().await;

        say(&format!("{}: the operator makes {keys} keys", shape.name()));
        let (mark, cpu) = (self.mark(), cpu_seconds(operator.pid));
        let create = self
            .spent(keys, async || {
                self.declare(&space, shape, keys).await;
                all_ready(&operator, keys).await;
            })
            .await;
        let create = (
            create,
            cpu_seconds(operator.pid) - cpu,
            self.requests(mark, &space),
        );

        let begun = rest().await;
        say(&format!("{}: the operator turns {keys} keys", shape.name()));
        let (mark, cpu) = (self.mark(), cpu_seconds(operator.pid));
        let rotate = self
            .spent(keys, async || {
                self.raise(&space, keys).await;
                all_turned(&operator, keys, begun).await;
            })
            .await;
        let rotate = (
            rotate,
            cpu_seconds(operator.pid) - cpu,
            self.requests(mark, &space),
        );
        rest().await;
        let (peak, settled) = memory(operator.pid);
        assert!(operator.stop().await);
        verify(&space, shape).await;

        let restarted = if last {
            Some(self.restart(&launcher, &space, shape).await)
        } else {
            None
        };
        let after = self.bare(shape, model).await;
        let step = |index: usize, (cost, cpu, requests): (Cost, f64, Requests)| {
            let bare = |of: fn(&Cost) -> f64| f64::midpoint(of(&before[index]), of(&after[index]));
            Step {
                ratio: cost.seconds / bare(|cost| cost.seconds),
                cpu_ratio: cost.control_plane / bare(|cost| cost.control_plane),
                cost,
                cpu,
                requests,
            }
        };
        let round = Round {
            create: step(0, create),
            rotate: step(1, rotate),
            peak,
            settled,
            after: restarted,
        };
        (round, after)
    }

    /// The operator finds everything as it should be, and then has nothing to do.
    async fn restart(&self, launcher: &Launcher, space: &Space, shape: Shape) -> Restarted {
        say(&format!(
            "{}: the operator starts again with nothing to do",
            shape.name()
        ));
        let (mark, begun) = (self.mark(), Instant::now());
        let operator = launcher.spawn();
        operator.leads().await;
        all_ready(&operator, shape.keys).await;
        let seconds = begun.elapsed().as_secs_f64();
        // The first looks are over when they cost nothing any more.
        quiet(&operator).await;
        let cpu = cpu_seconds(operator.pid);
        let requests = self.requests(mark, space);
        let mark = self.mark();
        tokio::time::sleep(self.idle).await;
        let idle = self.requests(mark, space);
        let idle_cpu = cpu_seconds(operator.pid) - cpu;
        let (peak, settled) = memory(operator.pid);
        assert!(operator.stop().await);
        Restarted {
            seconds,
            cpu,
            peak,
            settled,
            requests,
            idle,
            idle_cpu,
        }
    }

    async fn declare(&self, space: &Space, shape: Shape, keys: usize) {
        let resource = ApiResource::erase::<FunctionKey>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.admin.clone(), &space.name, &resource);
        in_parallel(keys, async |number| {
            let key = serde_json::from_value(shape.declare(number)).unwrap();
            api.create(&PostParams::default(), &key).await.unwrap();
        })
        .await;
    }

    async fn raise(&self, space: &Space, keys: usize) {
        let resource = ApiResource::erase::<FunctionKey>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.admin.clone(), &space.name, &resource);
        in_parallel(keys, async |number| _ = raised(&api, number).await).await;
    }

    /// What it costs to do something for each of so many keys at a time, per key.
    async fn cost<Doing: Future<Output = ()>>(
        &self,
        keys: usize,
        act: impl Fn(usize) -> Doing,
    ) -> Cost {
        self.spent(keys, async || in_parallel(keys, act).await)
            .await
    }

    async fn spent<Doing: Future<Output = ()>>(
        &self,
        keys: usize,
        act: impl FnOnce() -> Doing,
    ) -> Cost {
        spent(self.control_plane, keys, act).await
    }

    /// Where the audit log ends now.
    fn mark(&self) -> u64 {
        Requests::mark(&self.cluster)
    }

    /// What the operator asked of the apiserver since.
    fn requests(&self, mark: u64, space: &Space) -> Requests {
        Requests::since(mark, &self.cluster, &space.name)
    }
}

impl Made {
    /// The first store of a shape and the status of its first key.
    async fn read(space: &Space, shape: Shape) -> Self {
        Self {
            secret: space.secrets().get(&shape.store(0)).await.unwrap(),
            status: serde_json::to_value(space.status(&Shape::key(0)).await).unwrap(),
        }
    }

    fn secret_called(&self, name: &str) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: self.secret.metadata.labels.clone(),
                annotations: self.secret.metadata.annotations.clone(),
                ..ObjectMeta::default()
            },
            data: self.secret.data.clone(),
            type_: self.secret.type_.clone(),
            ..Secret::default()
        }
    }
}

impl Model {
    /// The merge patch that makes the rotated Secret of the created one.
    fn changes(&self) -> Value {
        let (before, after) = (&self.created.secret, &self.rotated.secret);
        let known = before.data.as_ref().unwrap();
        let data: BTreeMap<_, _> = after
            .data
            .iter()
            .flatten()
            .filter(|(entry, value)| known.get(*entry) != Some(value))
            .collect();
        json!({"metadata": {"annotations": after.metadata.annotations}, "data": data})
    }
}

async fn raised(api: &Api<DynamicObject>, number: usize) -> DynamicObject {
    let patch = Patch::Merge(json!({"spec": {"rotation": {"generation": 2}}}));
    api.patch(&Shape::key(number), &PatchParams::default(), &patch)
        .await
        .unwrap()
}

const READY: &str = r#"claviger_resources{kind="FunctionKey",ready="true"}"#;
const OLDEST: &str = r#"claviger_oldest_key_seconds{kind="FunctionKey"}"#;

async fn all_ready(operator: &Operator, keys: usize) {
    figures(operator, "all keys are Ready", |figure| {
        figure(READY) == keys
    })
    .await;
}

async fn all_turned(operator: &Operator, keys: usize, begun: Instant) {
    figures(operator, "all keys are turned", |figure| {
        figure(READY) == keys && figure(OLDEST) as f64 <= begun.elapsed().as_secs_f64() + 1.0
    })
    .await;
}

/// The operator's figures were believed while it ran; now every key is looked at.
async fn verify(space: &Space, shape: Shape) {
    let keys = space.keys().list(&ListParams::default()).await.unwrap();
    let good = keys.iter().filter(|key| {
        let status = key.status.as_ref().unwrap();
        status.observed_generation == key.metadata.generation
            && condition(status, "Ready") == "True"
            && status.rotation.as_ref().unwrap().generation == 2
    });
    assert_eq!(
        good.count(),
        shape.keys,
        "keys that are Ready in their second generation"
    );
}

fn report(shape: Shape, rounds: &[Round], aims: &mut Vec<(bool, String)>) {
    let name = format!("{} keys, {} to a Secret", shape.keys, shape.together);
    let keys = shape.keys as f64;
    println!("\n{name}");
    println!(
        "{:<22}{:>10}{:>16}{:>14}{:>14}{:>16}",
        "", "time ÷", "apiserver CPU ÷", "writes", "operator CPU", ""
    );
    println!(
        "{:<22}{:>10}{:>16}{:>14}{:>14}{:>16}",
        "", "bare", "bare", "per key", "ms per key", "keys per second"
    );
    let steps: [(&str, Pick); 2] = [
        ("all Ready", |round| &round.create),
        ("all rotated", |round| &round.rotate),
    ];
    for (what, step) in steps {
        let median =
            |of: fn(&Step) -> f64| median(rounds.iter().map(|round| of(step(round))).collect());
        let ratio = median(|step| step.ratio);
        let writes = median(|step| step.requests.writes as f64) / keys;
        println!(
            "{what:<22}{ratio:>10.2}{:>16.2}{writes:>14.2}{:>14.2}{:>16.0}",
            median(|step| step.cpu_ratio),
            median(|step| step.cpu) * 1000.0 / keys,
            median(|step| 1.0 / step.cost.seconds),
        );
        let refused = rounds
            .iter()
            .map(|round| step(round).requests.refused)
            .sum::<usize>();
        let requests = &step(rounds.last().unwrap()).requests;
        println!("  {} ({refused} refused in all rounds)", requests.list());
        aims.push((
            ratio <= AIM_TIME,
            format!("{name}: {what} in {ratio:.2} × the bare client (aim ≤ {AIM_TIME})"),
        ));
        // The master key beside it is not one that anybody declared.
        aims.push((
            writes <= AIM_WRITES,
            format!("{name}: {what} with {writes:.2} writes per key (aim ≤ {AIM_WRITES})"),
        ));
    }
    let peak = rounds.iter().map(|round| round.peak).fold(0.0, f64::max);
    let last = rounds.last().unwrap();
    println!(
        "memory: peak {peak:.0} MiB, settled {:.0} MiB",
        last.settled
    );
    let after = last.after.as_ref().unwrap();
    println!(
        "restart: {:.1} s until it knows all, {:.2} s CPU, peak {:.0} MiB, settled {:.0} MiB; {} writes; {}",
        after.seconds,
        after.cpu,
        after.peak,
        after.settled,
        after.requests.writes,
        after.requests.list()
    );
    println!(
        "idle: {} requests, {} for the lease, {} watches taken up again, {:.2} s CPU",
        after.idle.list(),
        after.idle.leases,
        after.idle.watches,
        after.idle_cpu
    );
    let peak = peak.max(after.peak);
    aims.push((
        peak <= AIM_MEMORY,
        format!("{name}: {peak:.0} MiB at most (aim ≤ {AIM_MEMORY})"),
    ));
    let writes = after.requests.writes;
    aims.push((
        writes == 0,
        format!("{name}: {writes} writes after a restart (aim 0)"),
    ));
    let idle = after.idle.reads + after.idle.writes;
    aims.push((
        idle == 0,
        format!("{name}: {idle} requests when idle beside lease and watches (aim 0)"),
    ));
}
