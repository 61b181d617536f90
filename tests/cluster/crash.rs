//! The binary is killed (SIGKILL) again and again, at every write it makes, before it or after it
//! was applied but before the answer came back; nothing that a client could have read stops
//! working early, nothing is turned twice, nothing is ever half there.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger::{
    api::{COPIES_ANNOTATION, LEDGER_ANNOTATION},
    domain::ledger::{Copies, Ledger},
};
use http::Method;
use jiff::SignedDuration;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

use crate::support::{
    Operator, Options, Space,
    assassin::Assassin,
    operator::Launcher,
    proxy::{Proxy, Seen},
    record::{Kept, Record},
    space::condition,
};

/// Kills of an ordinary run; `CLAVIGER_CRASH_KILLS` asks for another number.
const KILLS: u32 = 200;

/// A run that makes no progress for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

const OVERLAP: SignedDuration = SignedDuration::from_secs(3);

/// What a run has to have died of, both before and after it was written.
const PHASES: [&str; 13] = [
    "mint",
    "publish",
    "turn master",
    "first distribution",
    "distribute",
    "restart",
    "begin overlap",
    "retire",
    "revoke",
    "sweep",
    "take copy back",
    "delete object",
    "status",
];

/// What a write does, by what it changes: one write turns several keys of a store.
fn phases(seen: &Seen, record: &Record) -> BTreeSet<&'static str> {
    let name = seen.path.rsplit('/').next().unwrap_or_default();
    let kind = if seen.path.contains("/configmaps") {
        "ConfigMap"
    } else {
        "Secret"
    };
    if seen.path.ends_with("/status") {
        return BTreeSet::from(["status"]);
    }
    if seen.path.contains("/deployments/") {
        return BTreeSet::from(["restart"]);
    }
    if seen.method == Method::DELETE {
        return BTreeSet::from(["delete object"]);
    }
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let annotation = |name: &str| {
        body["metadata"]["annotations"]
            .get(name)
            .map(|text| text.as_str().unwrap_or("{}"))
    };
    let before = record.last(kind, name).unwrap_or_default();
    let mut phases = BTreeSet::new();
    if let Some(text) = annotation(COPIES_ANNOTATION) {
        let after = Copies::parse(text).unwrap().entries;
        let known = before
            .annotations
            .get(COPIES_ANNOTATION)
            .and_then(|text| Copies::parse(text).ok());
        let known = known.unwrap_or_default().entries;
        phases.extend(
            known
                .keys()
                .any(|entry| !after.contains_key(entry))
                .then_some("take copy back"),
        );
        for (entry, copy) in &after {
            match known.get(entry) {
                None => _ = phases.insert("first distribution"),
                Some(old) if old.digest != copy.digest => _ = phases.insert("distribute"),
                Some(_) => {}
            }
        }
    }
    if let Some(text) = annotation(LEDGER_ANNOTATION) {
        let after = Ledger::parse(text).unwrap().entries;
        let known = before.ledger().unwrap_or_default().entries;
        phases.extend(
            known
                .keys()
                .any(|entry| !after.contains_key(entry))
                .then_some("sweep"),
        );
        for (entry, two) in &after {
            let Some(one) = known.get(entry) else {
                phases.insert("mint");
                continue;
            };
            if two.revoked > one.revoked {
                phases.insert("revoke");
            } else if two.generation > one.generation {
                phases.insert(if entry == "host.master" {
                    "turn master"
                } else {
                    "publish"
                });
            } else if two.previous.len() < one.previous.len() {
                phases.insert("retire");
            } else if two.distributed != one.distributed {
                phases.insert("begin overlap");
            }
        }
    }
    if phases.is_empty() {
        phases.insert("bookkeeping");
    }
    phases
}

/// A run with its script.
struct Run {
    space: Space,
    record: Record,
    launcher: Launcher,
    assassin: Arc<Assassin>,
    operator: Option<Operator>,
    kept: Vec<Kept>,
    deaths: u32,
}

impl Run {
    async fn start() -> Self {
        let space = Space::new("crash").await;
        // Makes the seal key.
        Operator::start(&space, Options::default())
            .await
            .kill()
            .await;
        let record = Record::start(&space).await;
        let proxy = Proxy::start(&space.cluster).await;
        let options = Options {
            host_reload_delay: "200ms",
            restart_delay: "200ms",
            server: Some(proxy.url.clone()),
            identity: Some("the-same-again".to_owned()),
            ..Options::default()
        };
        let launcher = Launcher::new(&space, &options).await;
        let book = record.clone();
        let assassin = Assassin::behind(&proxy, move |seen| phases(seen, &book));
        Self {
            space,
            record,
            launcher,
            assassin,
            operator: None,
            kept: Vec::new(),
            deaths: 0,
        }
    }

    fn live(&mut self) {
        let operator = self.assassin.raise(&self.launcher);
        self.operator = Some(operator);
    }

    /// Lets operators live and die until this is so; checks the record after each death.
    async fn until(&mut self, what: &str, is: impl AsyncFn(&Self) -> Result<(), String>) {
        let mut progress = (Instant::now(), self.record.length());
        loop {
            if self.operator.is_none() {
                self.live();
            }
            if self.operator.as_mut().is_some_and(Operator::has_ended) {
                self.deaths += 1;
                assert_eq!(
                    self.deaths,
                    self.assassin.killed(),
                    "an operator ended by itself:\n{}",
                    tail(&self.launcher.logged())
                );
                self.live();
                self.record.holds(&self.kept).await;
                continue;
            }
            match is(self).await {
                Ok(()) => return,
                Err(why) => {
                    let versions = self.record.length();
                    if versions != progress.1 {
                        progress = (Instant::now(), versions);
                    }
                    assert!(
                        progress.0.elapsed() < STUCK,
                        "stuck before {what}: {why}\n{}",
                        tail(&self.launcher.logged())
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn kept(&mut self, name: &str) -> &mut Kept {
        self.kept.iter_mut().find(|kept| kept.name == name).unwrap()
    }

    /// Raises a trigger of a key.
    async fn raise(&mut self, name: &str, trigger: &str) {
        let key = self.space.keys().get(name).await.unwrap();
        let rotation = serde_json::to_value(&key.spec.rotation).unwrap();
        let raised = rotation[trigger].as_i64().unwrap_or_default() + 1;
        let key = self
            .space
            .change(name, json!({"spec": {"rotation": {trigger: raised}}}))
            .await;
        let number = key.resource_version().unwrap().parse().unwrap();
        self.kept(name).turns.push(number);
        if trigger == "revokeGeneration" || name == "master" {
            self.kept(name).revoked.push(number);
        }
    }

    async fn change_source(&mut self, round: u32) {
        let source = self
            .space
            .put_secret("source", &[("value", &supplied(round))])
            .await;
        let number = source.resource_version().unwrap().parse().unwrap();
        self.kept("supplied").turns.push(number);
    }

    async fn declare(&mut self, kept: Kept, mut spec: Value) {
        json_patch::merge(
            &mut spec,
            &json!({"storage": if kept.store.0 == "Secret" {
                json!({"secret": {"name": kept.store.1}})
            } else {
                json!({"configMap": {"name": kept.store.1, "allowInsecure": true}})
            }}),
        );
        let targets: Vec<Value> = kept
            .clients
            .iter()
            .map(|(secret, entry)| {
                let mut target = json!({"secretRef": {"name": secret, "key": entry}});
                if let Some(deployment) = &kept.restarts {
                    target["restart"] = json!([{"kind": "Deployment", "name": deployment}]);
                }
                target
            })
            .collect();
        if !targets.is_empty() {
            spec["distributeTo"] = json!(targets);
        }
        self.space.declare(&kept.name, spec).await;
        self.kept.push(kept);
    }

    async fn undeclare(&mut self, name: &str) {
        let gone = self
            .space
            .keys()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
        // The deletion has the version of its answer or a later one.
        let number = gone
            .left()
            .and_then(|key| key.resource_version())
            .map_or(0, |version| version.parse().unwrap());
        self.kept(name).deleted = Some(number);
    }

    /// Waits until every key is Ready in the generation that was asked for; with `over`, until
    /// no previous value is left either.
    async fn settled(&mut self, over: bool) {
        let what = if over {
            "every turn to be over"
        } else {
            "every value to be handed out"
        };
        self.until(what, async |run: &Self| {
            let keys = run
                .space
                .keys()
                .list(&ListParams::default())
                .await
                .map_err(|error| error.to_string())?;
            for kept in run.kept.iter().filter(|kept| kept.deleted.is_none()) {
                let key = keys
                    .items
                    .iter()
                    .find(|key| key.name_any() == kept.name)
                    .unwrap();
                let status = key.status.clone().unwrap_or_default();
                let rotation = status.rotation.clone().unwrap_or_default();
                let expected = i64::try_from(kept.turns.len()).unwrap() + 1;
                let settled = status.observed_generation == key.metadata.generation
                    && condition(&status, "Ready") == "True"
                    && condition(&status, "Reconciling") == "False"
                    && rotation.generation == expected
                    && (kept.clients.is_empty() || rotation.distributed_at.is_some())
                    && (!over || rotation.previous.is_empty());
                if !settled {
                    return Err(format!(
                        "{} (generation {expected}): {}",
                        kept.name,
                        serde_json::to_string(&status).unwrap()
                    ));
                }
            }
            let left = run
                .kept
                .iter()
                .filter(|kept| kept.deleted.is_some())
                .find(|kept| {
                    let holds = |kind, name: &str, entry: &str| {
                        run.record.last(kind, name).is_some_and(|content| {
                            content.data.keys().any(|key| key.starts_with(entry))
                        })
                    };
                    holds(kept.store.0, &kept.store.1, &kept.entry)
                        || kept
                            .clients
                            .iter()
                            .any(|(secret, entry)| holds("Secret", secret, entry))
                });
            left.filter(|_| over)
                .map_or(Ok(()), |kept| Err(format!("{} is still there", kept.name)))
        })
        .await;
    }
}

fn supplied(round: u32) -> String {
    format!("Zq7vX2mK9rT4wY8bN3cH6jL1pD5gS0aF{round:04}QwErTyUiOpAs")
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_write_no_key_is_lost_doubled_or_retired_early() {
    let target: u32 = std::env::var("CLAVIGER_CRASH_KILLS")
        .ok()
        .map_or(KILLS, |text| text.parse().unwrap());
    let begun = Instant::now();
    let mut run = Run::start().await;
    let rotation = json!({"overlap": "3s"});
    run.space.put_deployment("web").await;
    run.space
        .put_secret("source", &[("value", &supplied(0))])
        .await;

    let mut function = Kept::new("function", "functions.orders.default", OVERLAP)
        .to("client-a", "KEY")
        .to("client-b", "ORDERS");
    function.restarts = Some("web".to_owned());
    run.declare(
        function,
        json!({"scope": "Function", "functionName": "Orders", "rotation": rotation}),
    )
    .await;
    let host = Kept::new("host", "host.function.partner", OVERLAP).to("client-b", "PARTNER");
    run.declare(
        host,
        json!({"scope": "Host", "keyName": "partner", "rotation": rotation}),
    )
    .await;
    run.declare(
        Kept::new("master", "host.master", OVERLAP),
        json!({"scope": "Master"}),
    )
    .await;
    let supplied =
        Kept::new("supplied", "host.function.supplied", OVERLAP).to("client-c", "SUPPLIED");
    let from = json!({"secretKeyRef": {"name": "source", "key": "value"}});
    run.declare(
        supplied,
        json!({"scope": "Host", "keyName": "supplied", "valueFrom": from, "rotation": rotation}),
    )
    .await;
    let mut open = Kept::new("open", "host.function.open", OVERLAP).to("client-c", "OPEN");
    open.store = ("ConfigMap", "open-keys".to_owned());
    run.declare(
        open,
        json!({"scope": "Host", "keyName": "open", "rotation": rotation}),
    )
    .await;

    // What a key is created with is its baseline, so the first turn can be asked for only then.
    run.settled(true).await;

    let mut round = 0;
    while run.assassin.killed() < target || run.assassin.spared(&PHASES).is_some() {
        assert!(
            run.assassin.killed() < 3 * target,
            "nobody was killed before and after: {:?}",
            run.assassin.spared(&PHASES)
        );
        round += 1;
        for name in ["function", "host", "open"] {
            run.raise(name, "generation").await;
        }
        run.change_source(round).await;
        if round % 2 == 0 {
            run.raise("master", "generation").await;
        }
        let (short, alone) = (format!("short-{round}"), format!("alone-{round}"));
        let kept = Kept::new(&short, &format!("host.function.{short}"), OVERLAP)
            .to("client-b", &format!("SHORT_{round}"));
        run.declare(kept, json!({"scope": "Host", "keyName": short}))
            .await;
        let mut kept =
            Kept::new(&alone, "host.function.alone", OVERLAP).to(&format!("client-{alone}"), "KEY");
        kept.store.1 = format!("keys-{alone}");
        run.declare(kept, json!({"scope": "Host", "keyName": "alone"}))
            .await;
        run.settled(false).await;
        // In the midst of the overlap: another turn, or a revocation.
        run.raise(
            "function",
            if round % 2 == 0 {
                "generation"
            } else {
                "revokeGeneration"
            },
        )
        .await;
        run.raise(
            "host",
            if round % 2 == 0 {
                "revokeGeneration"
            } else {
                "generation"
            },
        )
        .await;
        run.undeclare(&short).await;
        run.undeclare(&alone).await;
        run.settled(true).await;
        println!(
            "round {round}: {} kills after {:.0?}",
            run.assassin.killed(),
            begun.elapsed()
        );
    }

    // Left alone, it has nothing more to do.
    run.assassin.spare();
    let last = Instant::now();
    while run.deaths < run.assassin.killed()
        && !run.operator.as_mut().is_none_or(Operator::has_ended)
    {
        assert!(
            last.elapsed() < Duration::from_secs(30),
            "the last kill was none"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let quiet = run.record.length();
    if run.operator.as_mut().is_none_or(Operator::has_ended) {
        run.deaths += 1;
        run.operator = Some(run.launcher.spawn());
    }
    let operator = run.operator.take().unwrap();
    operator.leads().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    run.record.holds(&run.kept).await;
    assert_eq!(
        run.record.length(),
        quiet,
        "something was written although everything was done"
    );
    assert_eq!(run.record.gaps(), 0);
    assert!(!operator.logged().contains("panicked"));

    let kills = run.assassin.kills();
    println!("{:24}{:>8}{:>8}", "killed at", "before", "after");
    for (phase, [before, after]) in &kills {
        println!("{phase:24}{before:>8}{after:>8}");
    }
    let versions = run.record.length();
    println!(
        "{} kills in {round} rounds, {:.0?}; {} versions of objects checked",
        run.assassin.killed(),
        begun.elapsed(),
        versions
    );
    assert!(run.deaths >= target, "{} kills", run.deaths);
}
