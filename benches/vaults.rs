//! What vaults cost the operator, as ratios to a client that merely makes the same objects.
//!
//! On one machine in one run, because only such ratios mean anything elsewhere: an embedded control
//! plane with the chart and its policies, the release binary under the chart's ServiceAccount, and
//! for comparison a bare client that uses the same library, the same rights and 32 requests at once,
//! and writes the same Secrets, key rings and statuses byte for byte, without deciding, sealing or
//! watching anything. The bare client runs before and after the operator; its time is their mean.
//!
//! A round: vaults of up to 500 declared secrets are made; every secret is turned until it has three
//! versions; every key ring is turned, which re-wraps every version and destroys the ring version
//! before; the operator starts again and has nothing to do; all versions are listed.
//!
//! ```text
//! cargo bench --bench vaults      everything: some twenty minutes on an idle machine
//!   BENCH_QUICK=1      1,000 secrets in one round only: two minutes
//!   BENCH_N=5000       no more secrets than this
//!   BENCH_ONLY=10000   one number of secrets
//!   BENCH_IDLE=60      seconds of doing nothing that are watched
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

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::{Duration, Instant},
};

use claviger::{
    api::{
        ATTRIBUTES_ANNOTATION, ENVELOPE_ANNOTATION, VAULT_FINALIZER,
        v1alpha1::{DeclaredState, SecretVaultStatus},
    },
    domain::{
        ledger::Owner,
        vault::name::{NameHash, object_name},
    },
    k8s::{
        self,
        vault::{Ring, Vaults},
    },
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Client, ResourceExt};
use measure::{
    Bench, Cost, Requests, cpu_seconds, figures, goes_on, in_parallel, median, memory, quiet, rest,
    say, spent,
};
use serde_json::{Value, json};
use support::{Operator, Options, Space, operator::Launcher, vaults::says};

/// What one vault may declare.
const TOGETHER: usize = 500;
const VERSIONS: usize = 3;
/// The bare client makes no more secrets than this: its time per write does not depend on it.
const BARE_SECRETS: usize = 2500;

const AIM_TIME: f64 = 1.5;
/// Beside a write per entry there are key ring, finalizer and statuses of each vault.
const AIM_EXTRA: f64 = 0.02;
const AIM_MEMORY: f64 = 150.0;

/// The figure of what is Ready, of what turned and of what was re-wrapped.
const READY: &str = r#"claviger_vaults{ready="true"}"#;
const ROTATED: &str = r#"claviger_turns_total{kind="SecretVault",outcome="rotated"}"#;
const REWRAPPED: &str = "claviger_rewraps_total";
const LOOKS: &str = r#"claviger_reconcile_duration_seconds_count{kind="vault"}"#;

/// Picks one measured step out of a round.
type Pick = fn(&Round) -> &Step;

/// So many vaults of so many secrets, measured so many times.
#[derive(Clone, Copy)]
struct Shape {
    vaults: usize,
    together: usize,
    rounds: usize,
}

/// What the operator made of one vault: the bare client makes the same.
struct Model {
    made: Stage,
    turned: Stage,
    rewrapped: Stage,
    /// Sizes of an entry, in bytes.
    sizes: [usize; 3],
}

/// A vault at the end of a step.
struct Stage {
    ring: Ring,
    status: SecretVaultStatus,
    /// One secret's entries.
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    attributes: String,
    envelope: String,
    payload: Vec<u8>,
}

struct Step {
    /// Time and CPU by entry written, divided by the bare client's.
    ratio: f64,
    cpu_ratio: f64,
    cost: Cost,
    /// CPU seconds of the operator.
    cpu: f64,
    peak: f64,
    /// Looks at vaults.
    looks: usize,
    requests: Requests,
}

/// Steps of a round: how many times an entry is written in each, by secret.
const MAKE: usize = 1;
/// A new version, and the one before is disabled.
const TURN: usize = 2;
const REWRAP: usize = VERSIONS;

struct Round {
    make: Step,
    turn: Step,
    rewrap: Step,
    peak: f64,
    settled: f64,
    after: Option<Restarted>,
    lists: Vec<[List; 2]>,
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

/// All entries listed in one way.
#[derive(Clone, Copy, Default)]
struct List {
    bytes: usize,
    cost: Cost,
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
            report(shape, &model, &rounds, &mut aims);
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
    let most = number("BENCH_N").unwrap_or(usize::MAX).max(1);
    let shape = |secrets: usize, rounds| {
        let secrets = secrets.min(most);
        let together = secrets.min(TOGETHER);
        Shape {
            vaults: secrets / together,
            together,
            rounds,
        }
    };
    let mut shapes = vec![shape(1_000, 3), shape(10_000, 1)];
    if let Some(only) = number("BENCH_ONLY") {
        shapes.retain(|shape| shape.secrets() == only);
    }
    if std::env::var("BENCH_QUICK").is_ok_and(|quick| quick != "0") {
        shapes.truncate(1);
        for shape in &mut shapes {
            shape.rounds = 1;
        }
    }
    // Two shapes that BENCH_N made the same are one.
    shapes.dedup_by_key(|shape| shape.secrets());
    shapes
}

impl Shape {
    fn secrets(self) -> usize {
        self.vaults * self.together
    }

    fn vault(number: usize) -> String {
        format!("vault-{number:03}")
    }

    /// The declared secrets in a generation.
    fn secrets_spec(self, generation: usize) -> Value {
        let declared: Vec<Value> = (0..self.together)
            .map(|number| {
                json!({
                    "name": format!("secret-{number:03}"),
                    "generate": {"length": 32},
                    "rotation": {"interval": "2160h", "overlap": "0s", "generation": generation},
                })
            })
            .collect();
        Value::Array(declared)
    }

    fn spec(self) -> Value {
        json!({"secrets": self.secrets_spec(1)})
    }

    fn turned(self, generation: usize) -> Value {
        json!({"spec": {"secrets": self.secrets_spec(generation)}})
    }

    fn ring_turned() -> Value {
        json!({"spec": {"keyRing": {"rotation": {"generation": 1}}}})
    }
}

impl Bench {
    async fn launcher(&self, space: &Space) -> Launcher {
        let options = Options {
            log_level: "info",
            rewrap_rate: 10_000,
            ..Options::default()
        };
        Launcher::new(space, &options).await
    }

    /// Lets the operator look after one vault, to see what the bare client has to make.
    async fn model(&self, shape: Shape) -> Model {
        let space = self.space("model").await;
        let one = Shape { vaults: 1, ..shape };
        let operator = self.launcher(&space).await.spawn();
        operator.leads().await;
        declare(&space, one).await;
        all_made(&operator, &space, one).await;
        let made = Stage::read(&space).await;
        change(&space, one, &one.turned(2)).await;
        all_turned(&operator, &space, one, 2).await;
        let turned = Stage::read(&space).await;
        change(&space, one, &Shape::ring_turned()).await;
        all_rewrapped(&operator, &space, one, 2).await;
        let rewrapped = Stage::read(&space).await;
        let secret = space.entries(&Shape::vault(0)).await.into_values().next();
        let secret = secret.unwrap();
        assert!(operator.stop().await);
        let entry = &made.entries[0];
        Model {
            sizes: [
                entry.attributes.len() + entry.envelope.len(),
                entry.payload.len(),
                serde_json::to_string(&secret).unwrap().len(),
            ],
            made,
            turned,
            rewrapped,
        }
    }

    /// The bare client's cost of each step, by entry written.
    async fn bare(&self, shape: Shape, model: &Model) -> [Cost; 3] {
        let space = self.space("bare").await;
        let vaults = shape.vaults.min((BARE_SECRETS / shape.together).max(1));
        let bare = Bare {
            space: &space,
            shape: Shape { vaults, ..shape },
            client: self.peer.clone(),
            objects: Vaults::new(self.peer.clone()),
            owners: Mutex::default(),
            rings: Mutex::default(),
            versions: Mutex::default(),
        };
        let secrets = bare.shape.secrets();
        say(&format!(
            "{}: the bare client makes, turns and re-wraps {secrets} secrets",
            shape.secrets()
        ));
        let made = spent(self.control_plane, secrets * MAKE, async || {
            bare.make(model).await;
        })
        .await;
        let turned = spent(self.control_plane, secrets * TURN, async || {
            bare.turn(model).await;
        })
        .await;
        // It has two versions of each.
        let rewrapped = spent(self.control_plane, secrets * 2, async || {
            bare.rewrap(model).await;
        })
        .await;
        [made, turned, rewrapped]
    }

    /// The operator on new vaults, and the bare client again after it.
    async fn round(
        &self,
        shape: Shape,
        model: &Model,
        before: [Cost; 3],
        last: bool,
    ) -> (Round, [Cost; 3]) {
        let secrets = shape.secrets();
        let space = self.space("bench").await;
        let launcher = self.launcher(&space).await;
        let operator = launcher.spawn();
        operator.leads().await;

        say(&format!("{secrets}: the operator makes them"));
        let make = self
            .step(&operator, &space, secrets * MAKE, async || {
                declare(&space, shape).await;
                all_made(&operator, &space, shape).await;
            })
            .await;
        say(&format!("{secrets}: the operator turns them"));
        let turn = self
            .step(
                &operator,
                &space,
                secrets * TURN * (VERSIONS - 1),
                async || {
                    for generation in 2..=VERSIONS {
                        change(&space, shape, &shape.turned(generation)).await;
                        all_turned(&operator, &space, shape, generation).await;
                    }
                },
            )
            .await;
        say(&format!("{secrets}: the operator re-wraps them"));
        let rewrap = self
            .step(&operator, &space, secrets * REWRAP, async || {
                change(&space, shape, &Shape::ring_turned()).await;
                all_rewrapped(&operator, &space, shape, VERSIONS).await;
            })
            .await;
        quiet(&operator).await;
        let (peak, settled) = memory(operator.pid);
        assert!(operator.stop().await);
        verify(&space, shape).await;

        let (mut after_restart, mut lists) = (None, Vec::new());
        if last {
            after_restart = Some(self.restart(&launcher, &space, shape).await);
            for _ in 0..3 {
                lists.push([
                    self.list(&space, shape, true).await,
                    self.list(&space, shape, false).await,
                ]);
            }
        }
        let after = self.bare(shape, model).await;
        let ratios = |index: usize, step: Step| {
            let bare = |of: fn(&Cost) -> f64| f64::midpoint(of(&before[index]), of(&after[index]));
            Step {
                ratio: step.cost.seconds / bare(|cost| cost.seconds),
                cpu_ratio: step.cost.control_plane / bare(|cost| cost.control_plane),
                ..step
            }
        };
        let round = Round {
            make: ratios(0, make),
            turn: ratios(1, turn),
            rewrap: ratios(2, rewrap),
            peak,
            settled,
            after: after_restart,
            lists,
        };
        (round, after)
    }

    /// What a step of the operator costs, until it has come to rest; the time ends earlier, when
    /// everything is as asked.
    async fn step<Doing: Future<Output = ()>>(
        &self,
        operator: &Operator,
        space: &Space,
        writes: usize,
        act: impl FnOnce() -> Doing,
    ) -> Step {
        rest().await;
        let mark = Requests::mark(&self.cluster);
        let cpu = cpu_seconds(operator.pid);
        let before = looks(operator).await;
        let cost = spent(self.control_plane, writes, act).await;
        quiet(operator).await;
        Step {
            ratio: 0.0,
            cpu_ratio: 0.0,
            cost,
            cpu: cpu_seconds(operator.pid) - cpu,
            peak: memory(operator.pid).0,
            looks: looks(operator).await - before,
            requests: Requests::since(mark, &self.cluster, &space.name),
        }
    }

    /// The operator finds everything as it should be, and then has nothing to do.
    async fn restart(&self, launcher: &Launcher, space: &Space, shape: Shape) -> Restarted {
        say(&format!(
            "{}: the operator starts again with nothing to do",
            shape.secrets()
        ));
        let (mark, begun) = (Requests::mark(&self.cluster), Instant::now());
        let operator = launcher.spawn();
        operator.leads().await;
        figures(&operator, "all vaults were looked at", |figure| {
            figure(READY) == shape.vaults && (shape.vaults..usize::MAX).contains(&figure(LOOKS))
        })
        .await;
        let seconds = begun.elapsed().as_secs_f64();
        quiet(&operator).await;
        let cpu = cpu_seconds(operator.pid);
        let requests = Requests::since(mark, &self.cluster, &space.name);
        let mark = Requests::mark(&self.cluster);
        tokio::time::sleep(self.idle).await;
        let idle = Requests::since(mark, &self.cluster, &space.name);
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

    /// Lists all entries of a namespace, a page at a time, as text that nobody parses.
    async fn list(&self, space: &Space, shape: Shape, bodies: bool) -> List {
        let bytes = Mutex::new(0);
        let accept = if bodies {
            "application/json"
        } else {
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        };
        let cost = spent(self.control_plane, shape.secrets() * VERSIONS, async || {
            let mut token = String::new();
            loop {
                let request = http::Request::get(format!(
                    "/api/v1/namespaces/{}/secrets?limit=500&labelSelector=claviger.dev%2Fcontent%3Dvault-secret-version&continue={token}",
                    space.name
                ))
                .header("Accept", accept)
                .body(Vec::new())
                .unwrap();
                let text = self.peer.request_text(request).await.unwrap();
                *bytes.lock().unwrap() += text.len();
                // Only the head of the list is looked at: what follows is what is measured.
                let head = &text[..text.find("\"items\"").unwrap()];
                let next = head.split_once("\"continue\":\"");
                match next.and_then(|(_, rest)| rest.split('"').next()) {
                    Some(next) if !next.is_empty() => next.clone_into(&mut token),
                    _ => return,
                }
            }
        })
        .await;
        List {
            bytes: bytes.into_inner().unwrap() / (shape.secrets() * VERSIONS),
            cost,
        }
    }
}

/// The bare client on vaults of its own.
struct Bare<'a> {
    space: &'a Space,
    shape: Shape,
    client: Client,
    objects: Vaults,
    owners: Mutex<BTreeMap<usize, Owner>>,
    /// `metadata.resourceVersion` of the key rings.
    rings: Mutex<BTreeMap<usize, String>>,
    /// And of the entries, by secret and sequence.
    versions: Mutex<BTreeMap<(usize, u32), String>>,
}

impl Bare<'_> {
    fn object(&self, secret: usize, sequence: u32) -> (String, String) {
        let vault = Shape::vault(secret / self.shape.together);
        let mut hash = [0x5a; 20];
        hash[..8].copy_from_slice(&(secret as u64).to_be_bytes());
        let object = object_name(&vault, NameHash(hash), sequence);
        (vault, object)
    }

    async fn create(&self, secret: usize, sequence: u32, entry: &Entry) {
        let (vault, object) = self.object(secret, sequence);
        let made = self
            .objects
            .create_entry(
                &self.space.name,
                &vault,
                &object,
                &entry.attributes,
                &entry.envelope,
                Some(entry.payload.clone()),
            )
            .await
            .unwrap();
        self.versions
            .lock()
            .unwrap()
            .insert((secret, sequence), made.version);
    }

    async fn amend(&self, secret: usize, sequence: u32, entry: &Entry, attributes: bool) {
        let (_, object) = self.object(secret, sequence);
        let version = self.versions.lock().unwrap()[&(secret, sequence)].clone();
        let amended = self
            .objects
            .amend_entry(
                &self.space.name,
                &object,
                &version,
                attributes.then_some(&*entry.attributes),
                &entry.envelope,
            )
            .await
            .unwrap();
        self.versions
            .lock()
            .unwrap()
            .insert((secret, sequence), amended.version);
    }

    async fn write_ring(&self, vault: usize, ring: &Ring) {
        let version = self.rings.lock().unwrap()[&vault].clone();
        let written = self
            .objects
            .write_ring(&self.space.name, &Shape::vault(vault), &version, ring)
            .await
            .unwrap();
        self.rings.lock().unwrap().insert(vault, written.version);
    }

    async fn write_status(&self, vault: usize, status: &SecretVaultStatus) {
        let owner = self.owners.lock().unwrap()[&vault].clone();
        k8s::status::replace_vault(&self.client, &self.space.name, &owner, status)
            .await
            .unwrap();
    }

    async fn make(&self, model: &Model) {
        in_parallel(self.shape.vaults, async |vault| {
            let name = Shape::vault(vault);
            let made = self.space.declare_vault(&name, self.shape.spec()).await;
            let owner = Owner {
                name: name.clone(),
                uid: made.uid().unwrap(),
            };
            k8s::status::finalizers(
                &self.client,
                &self.space.name,
                &owner,
                &made.resource_version().unwrap(),
                &[VAULT_FINALIZER.to_owned()],
            )
            .await
            .unwrap();
            self.owners.lock().unwrap().insert(vault, owner);
            let ring = self
                .objects
                .create_ring(&self.space.name, &name, &model.made.ring)
                .await
                .unwrap();
            self.rings.lock().unwrap().insert(vault, ring.version);
        })
        .await;
        in_parallel(self.shape.secrets(), async |secret| {
            self.create(secret, 1, &model.made.entries[0]).await;
        })
        .await;
        in_parallel(self.shape.vaults, async |vault| {
            self.write_status(vault, &model.made.status).await;
        })
        .await;
    }

    async fn turn(&self, model: &Model) {
        change(self.space, self.shape, &self.shape.turned(2)).await;
        in_parallel(self.shape.secrets(), async |secret| {
            self.create(secret, 2, &model.turned.entries[1]).await;
            self.amend(secret, 1, &model.turned.entries[0], true).await;
        })
        .await;
        in_parallel(self.shape.vaults, async |vault| {
            self.write_status(vault, &model.turned.status).await;
        })
        .await;
    }

    async fn rewrap(&self, model: &Model) {
        change(self.space, self.shape, &Shape::ring_turned()).await;
        in_parallel(self.shape.vaults, async |vault| {
            self.write_ring(vault, &model.turned.ring).await;
        })
        .await;
        in_parallel(self.shape.secrets(), async |secret| {
            for (sequence, entry) in (1..).zip(&model.rewrapped.entries) {
                self.amend(secret, sequence, entry, false).await;
            }
        })
        .await;
        in_parallel(self.shape.vaults, async |vault| {
            self.write_ring(vault, &model.rewrapped.ring).await;
            self.write_status(vault, &model.rewrapped.status).await;
        })
        .await;
    }
}

impl Stage {
    /// The first vault, and what there is of its first secret.
    async fn read(space: &Space) -> Self {
        let vault = Shape::vault(0);
        let ring = k8s::vault::ring_name(&vault);
        let ring = Ring::read(space.secrets().get(&ring).await.unwrap());
        let status = space.vaults().get(&vault).await.unwrap().status.unwrap();
        let all = space.entries(&vault).await;
        let first = all.keys().next().unwrap().rsplit_once('-').unwrap().0;
        let entries = all
            .iter()
            .filter(|(name, _)| name.starts_with(first))
            .map(|(_, secret)| Entry::read(secret))
            .collect();
        Self {
            ring,
            status,
            entries,
        }
    }
}

impl Entry {
    fn read(secret: &Secret) -> Self {
        let ByteString(payload) = secret.data.as_ref().unwrap()["payload"].clone();
        Self {
            attributes: secret.annotations()[ATTRIBUTES_ANNOTATION].clone(),
            envelope: secret.annotations()[ENVELOPE_ANNOTATION].clone(),
            payload,
        }
    }
}

async fn declare(space: &Space, shape: Shape) {
    in_parallel(shape.vaults, async |vault| {
        space
            .declare_vault(&Shape::vault(vault), shape.spec())
            .await;
    })
    .await;
}

async fn change(space: &Space, shape: Shape, patch: &Value) {
    in_parallel(shape.vaults, async |vault| {
        space
            .change_vault(&Shape::vault(vault), patch.clone())
            .await;
    })
    .await;
}

/// Waits until the status of every vault is of its newest generation, Ready and as asked; one that
/// was is not asked for again.
async fn statuses(
    operator: &Operator,
    space: &Space,
    shape: Shape,
    what: &str,
    good: impl Fn(&SecretVaultStatus) -> bool,
) {
    let begun = Instant::now();
    let mut left: BTreeSet<usize> = (0..shape.vaults).collect();
    while let Some(vault) = left.first().copied() {
        let vault = space.vaults().get(&Shape::vault(vault)).await.unwrap();
        let status = vault.status.unwrap_or_default();
        let is = |condition, value| says(&status.conditions, condition) == value;
        if status.observed_generation == vault.metadata.generation
            && is("Ready", "True")
            && is("Reconciling", "False")
            && good(&status)
        {
            left.pop_first();
            continue;
        }
        goes_on(operator, begun, what, &vault.metadata.name.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn all_made(operator: &Operator, space: &Space, shape: Shape) {
    let what = "all vaults are Ready";
    figures(operator, what, |figure| figure(READY) == shape.vaults).await;
    statuses(operator, space, shape, what, |status| {
        status.secrets.unwrap().live == i64::try_from(shape.together).unwrap()
    })
    .await;
}

async fn all_turned(operator: &Operator, space: &Space, shape: Shape, generation: usize) {
    let what = "all secrets are turned";
    let turned = shape.secrets() * (generation - 1);
    figures(operator, what, |figure| {
        (turned..usize::MAX).contains(&figure(ROTATED))
    })
    .await;
    let generation = i64::try_from(generation).unwrap();
    statuses(operator, space, shape, what, |status| {
        status.declared.iter().all(|declared| {
            declared.generation == Some(generation) && declared.state == Some(DeclaredState::Stable)
        })
    })
    .await;
}

async fn all_rewrapped(operator: &Operator, space: &Space, shape: Shape, versions: usize) {
    let what = "everything is re-wrapped";
    let entries = shape.secrets() * versions;
    figures(operator, what, |figure| {
        (entries..usize::MAX).contains(&figure(REWRAPPED))
    })
    .await;
    statuses(operator, space, shape, what, |status| {
        let ring = status.key_ring.as_ref().unwrap();
        ring.current == 2 && ring.versions.len() == 1 && ring.rewrapped.is_none()
    })
    .await;
}

/// How often the operator has looked at a vault.
async fn looks(operator: &Operator) -> usize {
    let text = operator.get("/metrics").await.unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix(LOOKS));
    count.map_or(0, |count| count.trim().parse().unwrap())
}

/// The operator's figures were believed while it ran; now every entry is looked at.
async fn verify(space: &Space, shape: Shape) {
    let mut enabled = 0;
    for vault in 0..shape.vaults {
        let entries = space.entries(&Shape::vault(vault)).await;
        assert_eq!(entries.len(), shape.together * VERSIONS);
        for entry in entries.values().map(Entry::read) {
            assert!(entry.envelope.starts_with("v1.2."), "{}", entry.envelope);
            let attributes: Value = serde_json::from_str(&entry.attributes).unwrap();
            enabled += usize::from(attributes["enabled"] != false);
        }
    }
    assert_eq!(enabled, shape.secrets(), "versions that are handed out");
}

fn report(shape: Shape, model: &Model, rounds: &[Round], aims: &mut Vec<(bool, String)>) {
    let secrets = shape.secrets();
    let name = format!(
        "{secrets} secrets x {VERSIONS} versions in {} vaults",
        shape.vaults
    );
    println!("\n{name}");
    let [annotations, payload, object] = model.sizes;
    println!(
        "an entry: {annotations} bytes of attributes and envelope, {payload} of payload, {object} as JSON"
    );
    println!(
        "{:<16}{:>8}{:>16}{:>11}{:>14}{:>12}{:>10}{:>10}{:>8}",
        "", "time ÷", "apiserver CPU ÷", "writes", "operator CPU", "writes", "seconds", "peak", ""
    );
    println!(
        "{:<16}{:>8}{:>16}{:>11}{:>14}{:>12}{:>10}{:>10}{:>8}",
        "", "bare", "bare", "per secret", "ms per write", "per second", "in all", "MiB", "events"
    );
    let steps: [(&str, usize, Pick); 3] = [
        ("made", MAKE, |round| &round.make),
        ("turned twice", TURN * (VERSIONS - 1), |round| &round.turn),
        ("re-wrapped", REWRAP, |round| &round.rewrap),
    ];
    for (what, each, step) in steps {
        let median =
            |of: fn(&Step) -> f64| median(rounds.iter().map(|round| of(step(round))).collect());
        let entries = (secrets * each) as f64;
        let ratio = median(|step| step.ratio);
        let writes = median(|step| step.requests.writes as f64) / secrets as f64;
        println!(
            "{what:<16}{ratio:>8.2}{:>16.2}{writes:>11.3}{:>14.2}{:>12.0}{:>10.1}{:>10.0}{:>8.0}",
            median(|step| step.cpu_ratio),
            median(|step| step.cpu) * 1000.0 / entries,
            median(|step| 1.0 / step.cost.seconds),
            median(|step| step.cost.seconds) * entries,
            median(|step| step.peak),
            median(|step| step.requests.events as f64),
        );
        let refused = rounds
            .iter()
            .map(|round| step(round).requests.refused)
            .sum::<usize>();
        let requests = &step(rounds.last().unwrap()).requests;
        println!(
            "  {} ({refused} refused in all rounds); {} looks at vaults",
            requests.list(),
            step(rounds.last().unwrap()).looks
        );
        aims.push((
            ratio <= AIM_TIME,
            format!("{name}: {what} in {ratio:.2} × the bare client (aim ≤ {AIM_TIME})"),
        ));
        let aim = each as f64 + AIM_EXTRA;
        aims.push((
            writes <= aim,
            format!("{name}: {what} with {writes:.3} writes per secret (aim ≤ {aim:.2})"),
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
        "restart: {:.1} s until all vaults were looked at, {:.2} s CPU, peak {:.0} MiB, settled {:.0} MiB; {} writes; {}",
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
    let of_lists = |index: usize, of: fn(&List) -> f64| {
        median(last.lists.iter().map(|pair| of(&pair[index])).collect())
    };
    for (index, what) in ["with bodies", "metadata alone"].into_iter().enumerate() {
        println!(
            "listed {what}: {:.0} bytes, {:.0} µs, {:.0} µs of the control plane's CPU per version",
            of_lists(index, |list| list.bytes as f64),
            of_lists(index, |list| list.cost.seconds) * 1e6,
            of_lists(index, |list| list.cost.control_plane) * 1e6,
        );
    }
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
