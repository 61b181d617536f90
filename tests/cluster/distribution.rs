//! Clients' copies: handed out in time, restarted once, never in the way of others.

use jiff::SignedDuration;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    facts::{
        A_WHILE, copy, delete_secret, drop_entries, edit, event, gone, kubectl, make, promised,
        record, template_changes, time, to,
    },
    support::{
        Operator, Options, Space, eventually,
        space::{PATIENCE, condition, host_key},
    },
};

const ENTRY: &str = "host.function.partner";

fn restarting(secret: &str, key: &str, deployment: &str) -> Value {
    json!({"secretRef": {"name": secret, "key": key}, "restart": [{"kind": "Deployment", "name": deployment}]})
}

/// The restart annotation of a Deployment, once it is later than this time.
async fn restarted_since(
    space: &Space,
    deployment: &str,
    since: jiff::Timestamp,
) -> jiff::Timestamp {
    eventually(
        &format!("{deployment} to be restarted"),
        PATIENCE,
        async || {
            let at: Option<jiff::Timestamp> = space
                .restarted_at(deployment)
                .await
                .map(|at| at.parse().unwrap());
            at.filter(|at| *at >= since)
                .ok_or_else(|| format!("{at:?} is before {since}"))
        },
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_a_new_value_after_the_reload_delay_and_the_overlap_counts_from_their_restart()
{
    let space = Space::new("phases").await;
    let options = Options {
        host_reload_delay: "3s",
        restart_delay: "1s",
        ..Options::default()
    };
    let operator = Operator::start(&space, options.clone()).await;
    space.put_deployment("web").await;
    let pods = json!({
        "selector": {"matchLabels": {"app": "x"}}, "serviceName": "x",
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}},
    });
    let mut agents = pods.clone();
    json_patch::merge(&mut agents, &json!({"serviceName": null}));
    make(&space, &json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": pods})).await;
    make(&space, &json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"}, "spec": agents})).await;
    let more = json!({"secretRef": {"name": "other", "key": "KEY"}, "restart": [
        {"kind": "Deployment", "name": "web"}, {"kind": "StatefulSet", "name": "db"}, {"kind": "DaemonSet", "name": "agent"},
    ]});
    let spec = json!({"rotation": {"overlap": "4s"}, "distributeTo": [restarting("client", "KEY", "web"), more]});
    space.declare("partner", host_key("partner", spec)).await;
    space.ready("partner").await;
    let first = space.data("keys").await[ENTRY].clone();
    for client in ["client", "other"] {
        assert_eq!(space.data(client).await["KEY"], first);
        let secret = space.secrets().get(client).await.unwrap();
        assert_eq!(
            secret.metadata.labels.unwrap()["claviger.dev/content"],
            "function-key-copies"
        );
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    }
    assert_eq!(
        space.restarted_at("web").await,
        None,
        "a first copy restarts nobody"
    );

    space
        .change("partner", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let second = space
        .until_data("keys", "be turned", |data| data[ENTRY] != first)
        .await[ENTRY]
        .clone();
    assert_eq!(
        space.data("client").await["KEY"],
        first,
        "hosts may not have seen the new value yet"
    );
    let waiting = space
        .until("partner", "waiting", |status| {
            serde_json::to_value(&status.rotation).unwrap()["phase"] == "Waiting"
        })
        .await;
    assert_eq!(condition(&waiting, "Ready"), "True", "a turn is no trouble");
    let minted = time(&record(&space, "keys", ENTRY).await["minted"]);
    assert!(
        record(&space, "keys", ENTRY).await["previous"][0]["retires"].is_null(),
        "nothing is promised before clients have it"
    );
    for client in ["client", "other"] {
        space
            .until_data(client, "have the new value", |data| data["KEY"] == second)
            .await;
        assert!(
            time(&copy(&space, client, "KEY").await["at"]) >= minted + SignedDuration::from_secs(3)
        );
    }
    let changed = time(&copy(&space, "client", "KEY").await["changed"])
        .max(time(&copy(&space, "other", "KEY").await["changed"]));
    let restarted = restarted_since(&space, "web", changed).await;
    let retires = time(&promised(&space, "keys", ENTRY).await["previous"][0]["retires"]);
    assert!(
        retires >= restarted + SignedDuration::from_secs(4),
        "{retires} counts from {restarted}"
    );
    assert!(
        retires <= restarted + SignedDuration::from_secs(14),
        "{retires} counts from {restarted}"
    );
    for workload in ["statefulset/db", "daemonset/agent"] {
        let path = "jsonpath={.spec.template.metadata.annotations.claviger\\.dev/restarted-at}";
        let at = kubectl(&space, &["get", workload, "-o", path], "")
            .await
            .unwrap();
        assert!(
            retires >= at.parse::<jiff::Timestamp>().unwrap() + SignedDuration::from_secs(4),
            "{workload} {at}"
        );
    }
    let data = space.data("keys").await;
    assert!(
        data.contains_key(&format!("{ENTRY}.previous-1")) || jiff::Timestamp::now() >= retires,
        "retired before {retires}"
    );
    space
        .until_data("keys", "retire the previous value", |data| {
            !data.contains_key(&format!("{ENTRY}.previous-1"))
        })
        .await;
    assert!(jiff::Timestamp::now() >= retires);
    let status = space.ready("partner").await;
    assert_eq!(
        serde_json::to_value(&status.rotation).unwrap()["phase"],
        "Stable"
    );
    assert_eq!(status.restarts.len(), 3);
    assert_eq!(
        template_changes(&space, "web").await,
        2,
        "two changed Secrets, one restart"
    );

    // The status is a report: losing it turns nothing and restarts nobody.
    let keys = space.data("keys").await;
    operator.kill().await;
    let wiped = json!([{"op": "remove", "path": "/status"}]);
    let wiped: json_patch::Patch = serde_json::from_value(wiped).unwrap();
    space
        .keys()
        .patch_status(
            "partner",
            &PatchParams::default(),
            &Patch::Json::<()>(wiped),
        )
        .await
        .unwrap();
    let _operator = Operator::start(&space, options).await;
    let told = space.ready("partner").await;
    assert_eq!(told.rotation.unwrap().generation, 2);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(space.data("keys").await, keys);
    assert_eq!(template_changes(&space, "web").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_clients_at_once_and_restarts_them_and_the_app() {
    let space = Space::new("revoked").await;
    let options = Options {
        host_reload_delay: "10m",
        ..Options::default()
    };
    let _operator = Operator::start(&space, options).await;
    for deployment in ["web", "app", "idle"] {
        space.put_deployment(deployment).await;
    }
    let spec = json!({
        "distributeTo": [restarting("client", "KEY", "web")],
        "restartOnRevocation": [{"kind": "Deployment", "name": "app"}, {"kind": "StatefulSet", "name": "absent"}],
    });
    space.declare("partner", host_key("partner", spec)).await;
    space
        .declare(
            "bystander",
            host_key(
                "bystander",
                json!({"distributeTo": [restarting("client", "OTHER", "idle")]}),
            ),
        )
        .await;
    space.ready("bystander").await;
    space.ready("partner").await;
    let first = space.data("client").await["KEY"].clone();
    // A turn waits ten minutes; a revocation cuts that short.
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    space
        .until_data("keys", "be turned", |data| {
            data.contains_key(&format!("{ENTRY}.previous-1"))
        })
        .await;
    assert_eq!(space.data("client").await["KEY"], first);
    // However shortly after the last restart a revocation comes: pods that may hold or accept the
    // revoked value do not stay.
    let mut last = jiff::Timestamp::UNIX_EPOCH;
    for round in 1..=6 {
        space
            .change(
                "partner",
                json!({"spec": {"rotation": {"revokeGeneration": round}}}),
            )
            .await;
        let begun = std::time::Instant::now();
        loop {
            let book = record(&space, "keys", ENTRY).await;
            let revoked = book["revoked"]
                .as_str()
                .map(|at| at.parse::<jiff::Timestamp>().unwrap());
            let restarted = space
                .restarted_at("app")
                .await
                .map(|at| at.parse::<jiff::Timestamp>().unwrap());
            if let Some(revoked) =
                revoked.filter(|revoked| *revoked > last && restarted >= Some(*revoked))
            {
                last = revoked;
                break;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "round {round}: revoked {revoked:?}, restarted {restarted:?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    assert_eq!(template_changes(&space, "app").await, 7);
    for round in 7..=8 {
        let before = space.data("client").await["KEY"].clone();
        space
            .change(
                "partner",
                json!({"spec": {"rotation": {"revokeGeneration": round}}}),
            )
            .await;
        let data = space
            .until_data("client", "have the next value", |data| {
                data["KEY"] != before
            })
            .await;
        let book = record(&space, "keys", ENTRY).await;
        assert_eq!(space.data("keys").await[ENTRY], data["KEY"]);
        assert!(
            book["previous"].as_array().is_none_or(Vec::is_empty),
            "{book}"
        );
        let revoked = time(&book["revoked"]);
        restarted_since(&space, "app", revoked).await;
        restarted_since(
            &space,
            "web",
            time(&copy(&space, "client", "KEY").await["changed"]),
        )
        .await;
    }
    space.ready("partner").await;
    event(&space, "partner", "Revoked").await;
    assert_eq!(template_changes(&space, "app").await, 9);
    assert_eq!(
        template_changes(&space, "idle").await,
        1,
        "whom it does not concern is left alone"
    );
    let only = space.data("keys").await;
    assert_eq!(
        only.keys().collect::<Vec<_>>(),
        ["host.function.bystander", ENTRY, "host.master"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_come_back_move_and_go_and_entries_of_others_stay() {
    let space = Space::new("copies").await;
    let operator = Operator::start(&space, Options::default()).await;
    space.put_deployment("web").await;
    space
        .put_secret("mixed", &[("THEIRS", "theirs"), ("TAKEN", "taken")])
        .await;
    let targets = json!({"distributeTo": [restarting("client", "KEY", "web"), restarting("mixed", "KEY", "web")]});
    space.declare("partner", host_key("partner", targets)).await;
    space.ready("partner").await;
    let value = space.data("keys").await[ENTRY].clone();
    let mixed = space.data("mixed").await;
    assert_eq!(
        (
            mixed["KEY"].as_str(),
            mixed["THEIRS"].as_str(),
            mixed["TAKEN"].as_str()
        ),
        (value.as_str(), "theirs", "taken")
    );

    // Deleted, edited, dropped, unlabelled: it comes back, and nobody is restarted for it.
    let back = async |client: &str| {
        space
            .until_data(client, "have its copy back", |data| {
                data.get("KEY") == Some(&value)
            })
            .await;
    };
    delete_secret(&space, "client").await;
    back("client").await;
    edit(
        &space,
        "client",
        json!({"stringData": {"KEY": "scribbled over"}}),
    )
    .await;
    back("client").await;
    drop_entries(&space, "mixed", &["KEY"]).await;
    back("mixed").await;
    edit(
        &space,
        "mixed",
        json!({"metadata": {"labels": {"claviger.dev/content": null}}}),
    )
    .await;
    eventually("the label to come back", PATIENCE, async || {
        let labels = space
            .secrets()
            .get("mixed")
            .await
            .unwrap()
            .metadata
            .labels
            .unwrap_or_default();
        labels
            .get("claviger.dev/content")
            .map(drop)
            .ok_or_else(|| format!("{labels:?}"))
    })
    .await;
    assert_eq!(space.data("mixed").await, mixed);
    operator.kill().await;
    delete_secret(&space, "client").await;
    let _operator = Operator::start(&space, Options::default()).await;
    back("client").await;
    assert_eq!(space.restarted_at("web").await, None);

    // An entry of others is never written to.
    space
        .declare("greedy", host_key("greedy", to("mixed", "TAKEN")))
        .await;
    let message = space.not_ready("greedy", "TargetConflict").await;
    assert_eq!(
        message,
        "entry TAKEN of Secret/mixed was not made by Claviger and is left alone; remove it there, or hand this key out under another entry"
    );
    event(&space, "greedy", "TargetConflict").await;
    assert_eq!(space.data("mixed").await, mixed);
    assert!(
        space
            .data("keys")
            .await
            .contains_key("host.function.greedy"),
        "the key itself is published"
    );
    // Two keys for one entry: who has it keeps it.
    space
        .declare("second", host_key("second", to("client", "KEY")))
        .await;
    let message = space.not_ready("second", "TargetConflict").await;
    assert!(
        message.contains("entry KEY of Secret/client is kept by FunctionKey/partner"),
        "{message}"
    );
    back("client").await;
    // Room is made: it is used without being asked again.
    drop_entries(&space, "mixed", &["TAKEN"]).await;
    space.ready("greedy").await;
    assert_eq!(
        space.data("mixed").await["TAKEN"],
        space.data("keys").await["host.function.greedy"]
    );

    // A Secret that may not hold copies.
    let release = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "release"}, "type": "helm.sh/release.v1", "stringData": {"release": "theirs"}});
    make(&space, &release).await;
    space
        .change("second", json!({"spec": to("release", "KEY")}))
        .await;
    let message = space.not_ready("second", "TargetRefused").await;
    assert!(
        message.contains("Secret/release is of a type that keys may not be handed out in"),
        "{message}"
    );
    assert_eq!(space.data("release").await.len(), 1);
    space
        .change("second", json!({"spec": {"distributeTo": null}}))
        .await;
    space.ready("second").await;

    // Moved: the new place has it, the old one does not; a Secret of ours goes when it is empty.
    space
        .change(
            "partner",
            json!({"spec": {"distributeTo": [restarting("mixed", "MOVED", "web")]}}),
        )
        .await;
    space.ready("partner").await;
    gone(&space, "client").await;
    let moved = space
        .until_data("mixed", "have the copy in its new place", |data| {
            !data.contains_key("KEY")
        })
        .await;
    assert_eq!(
        (moved["MOVED"].as_str(), moved["THEIRS"].as_str()),
        (value.as_str(), "theirs")
    );
    assert_eq!(space.restarted_at("web").await, None);
    space.undeclare("greedy").await;
    space
        .change("partner", json!({"spec": {"distributeTo": null}}))
        .await;
    let left = space
        .until_data("mixed", "hold what is not ours", |data| data.len() == 1)
        .await;
    assert_eq!(left["THEIRS"], "theirs");
    tokio::time::sleep(A_WHILE).await;
    let mixed = space.secrets().get("mixed").await.unwrap();
    assert!(
        !mixed
            .metadata
            .labels
            .unwrap_or_default()
            .contains_key("claviger.dev/content")
    );
    assert!(
        !mixed
            .metadata
            .annotations
            .unwrap_or_default()
            .keys()
            .any(|name| name.starts_with("claviger.dev/"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_be_reached_keeps_its_value_working_until_it_is_or_is_let_go() {
    let space = Space::new("unreached").await;
    let _operator = Operator::start(
        &space,
        Options {
            host_reload_delay: "2s",
            ..Options::default()
        },
    )
    .await;
    let targets = json!({"rotation": {"overlap": "0s"}, "distributeTo": [
        {"secretRef": {"name": "client", "key": "KEY"}}, {"secretRef": {"name": "stuck", "key": "KEY"}},
    ]});
    space.declare("partner", host_key("partner", targets)).await;
    space.ready("partner").await;
    let first = space.data("keys").await[ENTRY].clone();
    edit(&space, "stuck", json!({"immutable": true})).await;
    let previous = format!("{ENTRY}.previous-1");
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 1}}}))
        .await;
    let second = space
        .until_data("keys", "be turned", |data| data.contains_key(&previous))
        .await[ENTRY]
        .clone();
    // A client that is declared while hosts may not have seen the new value gets the one that surely works.
    let late = json!([
        {"secretRef": {"name": "client", "key": "KEY"}}, {"secretRef": {"name": "stuck", "key": "KEY"}}, {"secretRef": {"name": "late", "key": "KEY"}},
    ]);
    space
        .change("partner", json!({"spec": {"distributeTo": late}}))
        .await;
    let got = space
        .until_data("late", "have a value", |data| data.contains_key("KEY"))
        .await;
    let shown = time(&record(&space, "keys", ENTRY).await["shown"]);
    let at = time(&copy(&space, "late", "KEY").await["at"]);
    assert!(got["KEY"] == first || at >= shown, "{at} {shown}");
    let message = space.not_ready("partner", "TargetRefused").await;
    assert!(message.contains("Secret/stuck is immutable"), "{message}");
    for client in ["client", "late"] {
        space
            .until_data(client, "have the new value", |data| data["KEY"] == second)
            .await;
    }
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(
        space.data("keys").await[&previous],
        first,
        "somebody still has it"
    );
    assert_eq!(space.data("stuck").await["KEY"], first);
    // Made anew, it gets the new value, and the old one may go.
    delete_secret(&space, "stuck").await;
    space
        .until_data("stuck", "have the new value", |data| {
            data.get("KEY") == Some(&second)
        })
        .await;
    space
        .until_data("keys", "retire the previous value", |data| {
            !data.contains_key(&previous)
        })
        .await;
    space.ready("partner").await;
    // Let go instead of reached: nobody is waited for any more.
    edit(&space, "stuck", json!({"immutable": true})).await;
    space
        .change("partner", json!({"spec": {"rotation": {"generation": 2}}}))
        .await;
    space.not_ready("partner", "TargetRefused").await;
    let previous = format!("{ENTRY}.previous-2");
    assert!(space.data("keys").await.contains_key(&previous));
    space
        .change(
            "partner",
            json!({"spec": {"distributeTo": [{"secretRef": {"name": "client", "key": "KEY"}}]}}),
        )
        .await;
    space
        .until_data("keys", "retire the previous value", |data| {
            !data.contains_key(&previous)
        })
        .await;
    space.ready("partner").await;
}
