//! The control plane stops, dies, lies, refuses, breaks off, and others write to the same objects:
//! the operator comes through by itself, turns nothing twice and loses nothing.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use http::Method;
use jiff::SignedDuration;
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::support::{
    Cluster, Operator, Options, Space,
    control_plane::SYSTEM,
    eventually,
    keeper::Keeper,
    operator::Launcher,
    proxy::{Proxy, Seen, Verdict, status},
    record::{Kept, Record},
    space::{condition, host_key},
};

const OVERLAP: SignedDuration = SignedDuration::from_secs(3);

/// Keys that turn while something is wrong.
struct Scene {
    space: Space,
    record: Record,
    launcher: Launcher,
    keeper: Keeper,
    kept: Vec<Kept>,
}

impl Scene {
    /// Three keys of one store, handed out, with an operator that is started whenever it ends.
    async fn set(space: Space, options: Options) -> Self {
        let first = Launcher::new(&space, &Options::default()).await.spawn();
        first.leads().await;
        first.kill().await;
        let record = Record::start(&space).await;
        let launcher = Launcher::new(&space, &options).await;
        let keeper = Keeper::start(launcher.clone());
        let mut scene = Self {
            space,
            record,
            launcher,
            keeper,
            kept: Vec::new(),
        };
        scene.space.put_deployment("web").await;
        for (index, name) in ["one", "two", "three"].into_iter().enumerate() {
            let mut kept = Kept::new(name, &format!("host.function.{name}"), OVERLAP)
                .to("client", &name.to_uppercase())
                .to(&format!("client-{index}"), "KEY");
            kept.restarts = (index == 0).then(|| "web".to_owned());
            let targets: Vec<_> = kept
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
            let spec = json!({
                "storage": {"secret": {"name": "keys"}}, "scope": "Host", "keyName": name,
                "rotation": {"overlap": "3s"}, "distributeTo": targets,
            });
            scene.space.declare(name, spec).await;
            scene.kept.push(kept);
        }
        scene
    }

    /// Asks for a turn of every key.
    async fn turn(&mut self) {
        for kept in &mut self.kept {
            let generation = kept.turns.len() + 1;
            let patch = json!({"spec": {"rotation": {"generation": generation}}});
            let key = loop {
                match self
                    .space
                    .keys()
                    .patch(&kept.name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                {
                    Ok(key) => break key,
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            };
            kept.turns
                .push(key.resource_version().unwrap().parse().unwrap());
        }
    }

    /// Waits until every key is Ready in the generation that was asked for, in store and clients.
    async fn settled(&self, limit: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let waiting = self.unsettled().await;
            let Some(why) = waiting else {
                return begun.elapsed();
            };
            assert!(begun.elapsed() < limit, "{why}\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn unsettled(&self) -> Option<String> {
        let keys = match self.space.keys().list(&ListParams::default()).await {
            Ok(keys) => keys,
            Err(error) => return Some(error.to_string()),
        };
        for kept in &self.kept {
            let key = keys
                .items
                .iter()
                .find(|key| key.name_any() == kept.name)
                .unwrap();
            let status = key.status.clone().unwrap_or_default();
            let rotation = status.rotation.clone().unwrap_or_default();
            let settled = status.observed_generation == key.metadata.generation
                && condition(&status, "Ready") == "True"
                && condition(&status, "Reconciling") == "False"
                && rotation.generation == i64::try_from(kept.turns.len()).unwrap() + 1
                && rotation.previous.is_empty();
            if !settled {
                return Some(format!(
                    "{}: {}",
                    kept.name,
                    serde_json::to_string(&status).unwrap()
                ));
            }
        }
        None
    }

    /// What must be so when everything is over.
    async fn came_through(&self) {
        self.record.holds(&self.kept).await;
        let store = self.record.last("Secret", "keys").unwrap().data;
        for kept in &self.kept {
            for (secret, entry) in &kept.clients {
                let client = self.record.last("Secret", secret).unwrap().data;
                assert_eq!(
                    client.get(entry),
                    store.get(&kept.entry),
                    "{secret}/{entry}"
                );
            }
        }
        assert!(
            !self.launcher.logged().contains("panicked"),
            "{}",
            self.tail()
        );
    }

    fn tail(&self) -> String {
        let log = self.launcher.logged();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn options() -> Options {
    Options {
        host_reload_delay: "200ms",
        restart_delay: "200ms",
        identity: Some("the-same-again".to_owned()),
        ..Options::default()
    }
}

async fn own_cluster() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_stands_still_for_a_minute_and_one_that_dies_cost_nothing() {
    let cluster = Arc::new(own_cluster().await);
    let space = Space::on(Arc::clone(&cluster), "outage").await;
    let mut scene = Scene::set(space, options()).await;
    scene.settled(Duration::from_mins(1)).await;

    // In the midst of a turn it stands still.
    scene.turn().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    cluster.signal("STOP");
    tokio::time::sleep(Duration::from_mins(1)).await;
    cluster.signal("CONT");
    let paused = scene.settled(Duration::from_mins(1)).await;
    let starts = scene.keeper.starts();
    scene.came_through().await;

    // In the midst of the next it dies, and comes back on the same state.
    scene.turn().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    cluster.kill_and_restart().await;
    let died = scene.settled(Duration::from_mins(1)).await;
    scene.turn().await;
    scene.settled(Duration::from_mins(1)).await;
    scene.came_through().await;
    println!(
        "paused for 60s: all Ready {paused:.1?} after it went on, {starts} starts; killed: all Ready {died:.1?} after, {} starts",
        scene.keeper.starts()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn others_who_write_to_the_same_objects_all_the_time_do_not_hold_it_up() {
    let mut scene = Scene::set(Space::new("conflict").await, options()).await;
    scene.settled(Duration::from_mins(1)).await;
    let going = Arc::new(AtomicBool::new(true));
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for name in ["keys", "client", "client-0", "client-1", "client-2"] {
        let (secrets, going, written) = (
            scene.space.secrets(),
            Arc::clone(&going),
            Arc::clone(&written),
        );
        writers.push(tokio::spawn(async move {
            let mut count = 0;
            while going.load(Ordering::SeqCst) {
                count += 1;
                let patch = json!({"metadata": {"annotations": {"others.example/count": format!("{count}")}}});
                secrets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
                written.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }));
    }
    let mut took = Vec::new();
    for _ in 0..3 {
        scene.turn().await;
        took.push(scene.settled(Duration::from_mins(1)).await);
    }
    going.store(false, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    scene.settled(Duration::from_secs(30)).await;
    scene.came_through().await;
    assert_eq!(scene.keeper.starts(), 1);
    println!(
        "three turns against {} writes of others: {took:.1?}",
        written.load(Ordering::SeqCst)
    );
}

/// What the apiserver may do instead of answering, in turn.
fn misfortune(seen: &Seen, number: u64) -> Verdict {
    let refuse = |code: u16, reason: &str| {
        Verdict::Answer(
            StatusCode::from_u16(code).unwrap(),
            status(code, reason, "injected by the test"),
        )
    };
    if seen.watches() {
        return match number % 4 {
            0 => Verdict::Cut(Duration::from_millis(100)),
            1 => {
                let gone = status(410, "Expired", "too old resource version");
                let event = format!("{{\"type\":\"ERROR\",\"object\":{gone}}}\n");
                Verdict::Answer(StatusCode::OK, event)
            }
            2 => refuse(500, "InternalError"),
            _ => Verdict::Break,
        };
    }
    match number % 9 {
        0 => refuse(429, "TooManyRequests"),
        1 => refuse(500, "InternalError"),
        2 => refuse(503, "ServiceUnavailable"),
        3 if seen.method != Method::GET => refuse(409, "Conflict"),
        4 => Verdict::Break,
        // Done, but nobody hears of it.
        5 => Verdict::Cut(Duration::ZERO),
        6 => Verdict::Delay(Duration::from_millis(1500)),
        7 => refuse(504, "Timeout"),
        _ => Verdict::Answer(
            StatusCode::BAD_GATEWAY,
            "<html>a proxy's own page</html>".to_owned(),
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_slow_answers_and_broken_connections_are_come_through() {
    let space = Space::new("injected").await;
    let proxy = Proxy::start(&space.cluster).await;
    // Watches end early from the beginning, so that there are always new ones to be spoilt.
    let brief = |seen: &Seen| {
        if seen.watches() {
            Verdict::Cut(Duration::from_secs(1))
        } else {
            Verdict::Pass
        }
    };
    proxy.judge(brief);
    let mut scene = Scene::set(
        space,
        Options {
            server: Some(proxy.url.clone()),
            ..options()
        },
    )
    .await;
    scene.settled(Duration::from_mins(1)).await;

    let requests = Arc::new(AtomicU64::new(0));
    let counts: Arc<std::sync::Mutex<BTreeMap<&'static str, u32>>> = Arc::default();
    let counted = Arc::clone(&counts);
    proxy.judge(move |seen| {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        // A third of all; leases are spared, or it would be about something else.
        let kind = if seen.watches() {
            "watch"
        } else if seen.method == Method::GET {
            "read"
        } else {
            "write"
        };
        if seen.path.contains("/leases")
            || !number.is_multiple_of(if kind == "watch" { 6 } else { 3 })
        {
            return brief(seen);
        }
        *counted.lock().unwrap().entry(kind).or_default() += 1;
        misfortune(seen, number / 3 / if kind == "watch" { 2 } else { 1 })
    });
    let mut took = Vec::new();
    for _ in 0..4 {
        scene.turn().await;
        took.push(scene.settled(Duration::from_mins(4)).await);
    }
    proxy.judge(|_| Verdict::Pass);
    scene.settled(Duration::from_mins(1)).await;
    scene.came_through().await;
    assert_eq!(scene.keeper.starts(), 1, "{}", scene.tail());
    let counts = counts.lock().unwrap().clone();
    println!("four turns through {counts:?} misfortunes: {took:.1?}");
    assert!(
        counts.len() == 3 && counts.values().sum::<u32>() >= 30,
        "{counts:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_starts_while_nothing_answers_waits_and_says_what_for() {
    let space = Space::new("unborn").await;
    let proxy = Proxy::start(&space.cluster).await;
    let refused = status(503, "ServiceUnavailable", "injected by the test");
    proxy.judge(move |_| Verdict::Answer(StatusCode::SERVICE_UNAVAILABLE, refused.clone()));
    let launcher = Launcher::new(
        &space,
        &Options {
            server: Some(proxy.url.clone()),
            ..options()
        },
    )
    .await;
    let operator: Operator = launcher.spawn();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let alive = operator.get("/livez").await;
    let ready = operator.get("/readyz").await;
    proxy.judge(|_| Verdict::Pass);
    operator.leads().await;
    // The kubelet kills what is not alive, and sends people to what is not ready.
    assert_eq!(alive, Ok("ok\n".to_owned()), "{}", launcher.logged());
    assert!(
        ready.unwrap().starts_with("not ready: "),
        "{}",
        launcher.logged()
    );
    assert!(operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_changes_right_after_a_restart_makes_another() {
    let space = Space::new("restarts").await;
    let _operator = Operator::start(
        &space,
        Options {
            restart_delay: "0s",
            ..options()
        },
    )
    .await;
    space.put_deployment("web").await;
    for name in ["one", "two"] {
        let restart = json!([{"kind": "Deployment", "name": "web"}]);
        let target = json!([{"secretRef": {"name": "client", "key": name}, "restart": restart}]);
        space
            .declare(name, host_key(name, json!({"distributeTo": target})))
            .await;
        space.ready(name).await;
    }
    for generation in 1..=4 {
        for name in ["one", "two"] {
            // Not waited for: the status of the one may tell of its restart while the other turns.
            let before = space.restarted_at("web").await;
            space
                .change(
                    name,
                    json!({"spec": {"rotation": {"revokeGeneration": generation}}}),
                )
                .await;
            eventually("a restart", Duration::from_secs(10), async || {
                let restarted = space.restarted_at("web").await;
                if restarted == before {
                    Err(format!("{name} {generation}: {before:?}"))
                } else {
                    Ok(())
                }
            })
            .await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
