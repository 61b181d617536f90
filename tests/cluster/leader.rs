//! Two replicas: one acts, the other takes over, and whatever happens to the one, nothing is done
//! twice.

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::support::{
    Operator, Options, Space,
    control_plane::{SYSTEM, signal_process},
    eventually,
    operator::Launcher,
    record::{Kept, Record},
    space::{condition, host_key},
};

const OVERLAP: SignedDuration = SignedDuration::from_secs(1);

/// A key with clients, and two replicas for it.
struct Scene {
    space: Space,
    record: Record,
    launcher: Launcher,
    kept: Kept,
}

impl Scene {
    async fn set(what: &str) -> (Self, Operator, Operator) {
        let space = Space::new(what).await;
        let options = Options {
            host_reload_delay: "200ms",
            restart_delay: "200ms",
            ..Options::default()
        };
        let launcher = Launcher::new(&space, &options).await;
        let leader = launcher.spawn();
        leader.leads().await;
        let follower = launcher.spawn();
        eventually(
            "the follower to be ready",
            Duration::from_secs(30),
            async || {
                let ready = follower.get("/readyz").await?;
                if ready == "ok\n" { Ok(()) } else { Err(ready) }
            },
        )
        .await;
        assert!(!leads(&follower).await);
        let record = Record::start(&space).await;
        space.put_deployment("web").await;
        let mut kept = Kept::new("key", "host.function.key", OVERLAP).to("client", "KEY");
        kept.restarts = Some("web".to_owned());
        let more = json!({
            "rotation": {"overlap": "1s"},
            "distributeTo": [{
                "secretRef": {"name": "client", "key": "KEY"}, "restart": [{"kind": "Deployment", "name": "web"}],
            }],
        });
        space.declare("key", host_key("key", more)).await;
        space.ready("key").await;
        (
            Self {
                space,
                record,
                launcher,
                kept,
            },
            leader,
            follower,
        )
    }

    async fn turn(&mut self) {
        let generation = self.kept.turns.len() + 1;
        let key = self
            .space
            .change(
                "key",
                json!({"spec": {"rotation": {"generation": generation}}}),
            )
            .await;
        self.kept
            .turns
            .push(key.resource_version().unwrap().parse().unwrap());
    }

    /// Waits until the last turn is over.
    async fn turned(&self) {
        let generation = i64::try_from(self.kept.turns.len()).unwrap() + 1;
        self.space
            .until("key", "turned", |status| {
                let rotation = status.rotation.clone().unwrap_or_default();
                condition(status, "Ready") == "True"
                    && condition(status, "Reconciling") == "False"
                    && rotation.generation == generation
                    && rotation.previous.is_empty()
            })
            .await;
    }

    /// Nothing was lost, doubled or retired early; the key has just the generation asked for.
    async fn came_through(&self) {
        self.record.holds(std::slice::from_ref(&self.kept)).await;
        let ledger = self
            .record
            .last("Secret", "keys")
            .unwrap()
            .ledger()
            .unwrap();
        let generation = usize::try_from(ledger.entries["host.function.key"].generation).unwrap();
        assert_eq!(generation, self.kept.turns.len() + 1);
        let restarts = self
            .record
            .versions()
            .into_iter()
            .filter_map(|version| version.content?.restarted);
        let restarts: std::collections::BTreeSet<_> = restarts.collect();
        assert_eq!(
            restarts.len(),
            self.kept.turns.len(),
            "one restart for each turn"
        );
        assert!(!self.launcher.logged().contains("panicked"));
    }

    async fn holder(&self) -> String {
        let leases = Api::<Lease>::namespaced(self.space.client.clone(), SYSTEM);
        let lease = leases.get(&self.launcher.lease()).await.unwrap();
        lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .unwrap_or_default()
    }
}

async fn leads(operator: &Operator) -> bool {
    operator
        .get("/metrics")
        .await
        .is_ok_and(|metrics| metrics.contains("claviger_leader 1"))
}

/// Waits until the operator leads; answers how long it took since then.
async fn took_over(operator: &Operator, since: Instant) -> Duration {
    eventually(
        "the other to take over",
        Duration::from_secs(30),
        async || {
            if leads(operator).await {
                Ok(())
            } else {
                Err(String::new())
            }
        },
    )
    .await;
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_the_other_does_what_is_due_and_only_once() {
    let mut took = Vec::new();
    let (mut scene, mut leader, mut follower) = Scene::set("killed").await;
    for _ in 0..2 {
        // It dies in the midst of a turn.
        scene.turn().await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        leader.kill().await;
        let killed = Instant::now();
        let elapsed = took_over(&follower, killed).await;
        assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
        took.push(elapsed);
        scene.turned().await;
        leader = follower;
        follower = scene.launcher.spawn();
    }
    scene.came_through().await;
    println!("failover after SIGKILL: {took:.1?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_steps_down_and_doubles_nothing() {
    let (mut scene, mut leader, follower) = Scene::set("slept").await;
    scene.turn().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    signal_process(leader.pid, "STOP");
    let stopped = Instant::now();
    let elapsed = took_over(&follower, stopped).await;
    // The other turns the key while the sleeper believes that it leads.
    scene.turned().await;
    scene.turn().await;
    scene.turned().await;
    tokio::time::sleep(Duration::from_secs(20).saturating_sub(stopped.elapsed())).await;
    scene.turn().await;
    signal_process(leader.pid, "CONT");
    scene.turned().await;
    tokio::time::timeout(Duration::from_secs(10), leader.ended())
        .await
        .expect("the sleeper ends");
    assert!(leads(&follower).await);
    scene.came_through().await;
    println!("failover after SIGSTOP: {elapsed:.1?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_stop_hands_over() {
    let (mut scene, leader, follower) = Scene::set("stopped").await;
    scene.turn().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let asked = Instant::now();
    let (well, elapsed) = tokio::join!(leader.stop(), took_over(&follower, asked));
    assert!(well, "it ends with status 0");
    assert!(elapsed < Duration::from_millis(4500), "{elapsed:?}");
    scene.turned().await;
    scene.came_through().await;

    // Alone, it leaves the lease to whoever comes.
    let asked = Instant::now();
    assert!(follower.stop().await);
    let ended = asked.elapsed();
    assert_eq!(scene.holder().await, "");
    println!("failover after SIGTERM: {elapsed:.1?}; the end took {ended:.1?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_restarts_during_fifty_turns_lose_and_double_none() {
    let (mut scene, leader, follower) = Scene::set("rolling").await;
    let begun = Instant::now();
    let mut replicas = std::collections::VecDeque::from([leader, follower]);
    let mut restarts = 0;
    for turn in 0..50 {
        scene.turn().await;
        if turn % 5 == 2 {
            // A rolling update: first the new one, then the end of an old one.
            replicas.push_back(scene.launcher.spawn());
            let old = replicas.pop_front().unwrap();
            assert!(old.stop().await);
            restarts += 1;
        }
        scene.turned().await;
    }
    scene.came_through().await;
    println!(
        "50 turns with {restarts} restarts in {:.0?}",
        begun.elapsed()
    );
}
