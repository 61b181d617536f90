//! A key's life: minted where the host reads it, shown to people, asked for from the command line.

use claviger::domain::key::{KeyKind, format};
use serde_json::{Value, json};

use crate::{
    facts::{
        A_WHILE, annotation, claviger, count, delete_secret, event, function_key, kubectl, record,
        template_changes, to, versions, writes,
    },
    support::{
        Operator, Options, Space, eventually,
        space::{PATIENCE, condition, host_key, ready_reason},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_key_is_minted_with_a_master_key_beside_it() {
    let space = Space::new("minted").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .declare("orders", function_key("Orders", json!({})))
        .await;
    space.ready("orders").await;
    let data = space.data("keys").await;
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        ["functions.orders.default", "host.master"]
    );
    space.declare("host", host_key("partner", json!({}))).await;
    space.ready("host").await;
    let after = space.data("keys").await;
    assert!(after.contains_key("host.function.partner"));
    assert!(
        data.iter()
            .all(|(entry, value)| after.get(entry) == Some(value))
    );

    // An app that has a master key keeps it, whatever else the entry is called that the host takes for one.
    let master = crate::facts::minted(KeyKind::Master, 9);
    space
        .put_secret("mastered", &[("host.master", &master)])
        .await;
    space
        .put_secret("odd", &[("host.masterKey", &master)])
        .await;
    for store in ["mastered", "odd"] {
        let stored = json!({"storage": {"secret": {"name": store}}});
        space.declare(store, function_key("Orders", stored)).await;
        space.ready(store).await;
    }
    // An empty value opens nothing and is none.
    space
        .put_secret(
            "empty",
            &[("host.master", ""), ("functions.orders.default", "")],
        )
        .await;
    space
        .declare(
            "empty",
            function_key("Orders", json!({"storage": {"secret": {"name": "empty"}}})),
        )
        .await;
    space.ready("empty").await;
    assert!(
        space
            .data("empty")
            .await
            .values()
            .all(|value| value.len() == 56)
    );
    assert_eq!(space.data("mastered").await["host.master"], master);
    assert!(!space.data("odd").await.contains_key("host.master"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stand_under_the_very_names_that_the_host_reads_in_secrets_and_in_config_maps() {
    let space = Space::new("layout").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let stores = [
        (
            "secret",
            json!({"secret": {"name": "app", "configMap": null}}),
        ),
        (
            "config-map",
            json!({"secret": null, "configMap": {"name": "app", "allowInsecure": true}}),
        ),
    ];
    for (kind, storage) in &stores {
        let place = json!({"storage": storage});
        let declare = async |what: &str, spec: Value| {
            let mut spec = spec;
            json_patch::merge(&mut spec, &place);
            space.declare(&format!("{kind}-{what}"), spec).await;
        };
        declare(
            "function",
            function_key("HttpTrigger_Orders", json!({"keyName": "Partner.One"})),
        )
        .await;
        declare("default", function_key("HttpTrigger_Orders", json!({}))).await;
        declare("host", host_key("default", json!({"keyName": null}))).await;
        declare(
            "system",
            host_key("durabletask_extension", json!({"scope": "System"})),
        )
        .await;
        declare(
            "master",
            host_key("", json!({"scope": "Master", "keyName": null})),
        )
        .await;
    }
    let expected = [
        (
            "functions.httptrigger_orders.Partner.One",
            KeyKind::Function,
        ),
        ("functions.httptrigger_orders.default", KeyKind::Function),
        ("host.function.default", KeyKind::Function),
        ("host.master", KeyKind::Master),
        ("host.systemKey.durabletask_extension", KeyKind::System),
    ];
    for (kind, _) in &stores {
        for what in ["function", "default", "host", "system", "master"] {
            let status = space.ready(&format!("{kind}-{what}")).await;
            assert!(
                expected
                    .iter()
                    .any(|(entry, _)| Some(*entry) == status.entry.as_deref())
            );
        }
    }
    let secret = space.secrets().get("app").await.unwrap();
    let config_map = space.config_maps().get("app").await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(config_map.binary_data, None);
    let secret_data = space.data("app").await;
    let config_map_data = config_map.data.clone().unwrap();
    for data in [&secret_data, &config_map_data] {
        assert_eq!(
            data.keys().collect::<Vec<_>>(),
            expected.map(|(entry, _)| entry)
        );
        for (entry, kind) in expected {
            format::verify(&data[entry], kind).unwrap_or_else(|error| panic!("{entry}: {error}"));
            assert_eq!(
                data[entry].len(),
                56,
                "{entry}: nothing but the key, no line break"
            );
        }
    }
    assert!(
        secret_data
            .values()
            .all(|value| !config_map_data.values().any(|other| other == value))
    );
    for metadata in [&secret.metadata, &config_map.metadata] {
        assert_eq!(
            metadata.labels.as_ref().unwrap()["claviger.dev/content"],
            "function-keys"
        );
        assert_eq!(metadata.owner_references, None);
        assert_eq!(metadata.finalizers, None);
        let notes = format!("{:?}", metadata.annotations);
        assert!(
            secret_data
                .values()
                .chain(config_map_data.values())
                .all(|value| !notes.contains(value.as_str()))
        );
    }
    // A ConfigMap is looked after like a Secret.
    space
        .change(
            "config-map-host",
            json!({"spec": {"rotation": {"generation": 1}}}),
        )
        .await;
    let in_map =
        async |what: &str, is: &dyn Fn(&std::collections::BTreeMap<String, String>) -> bool| {
            eventually(what, PATIENCE, async || {
                let data = space
                    .config_maps()
                    .get("app")
                    .await
                    .unwrap()
                    .data
                    .unwrap_or_default();
                if is(&data) {
                    Ok(data)
                } else {
                    Err(format!("{:?}", data.keys()))
                }
            })
            .await
        };
    let turned = in_map("the key in the ConfigMap to turn", &|data| {
        data.get("host.function.default.previous-1") == config_map_data.get("host.function.default")
    })
    .await;
    let dropped = json!({"data": {"host.function.default.previous-1": null, "host.master": null, "host.function.default": null}});
    space
        .config_maps()
        .patch(
            "app",
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Merge(dropped),
        )
        .await
        .unwrap();
    in_map("the ConfigMap to be whole again", &|data| *data == turned).await;
    assert_eq!(
        space.status("secret-host").await.store.as_deref(),
        Some("Secret/app")
    );
    assert_eq!(
        space.status("config-map-host").await.store.as_deref(),
        Some("ConfigMap/app")
    );
    for what in ["function", "default", "host", "system", "master"] {
        space.undeclare(&format!("config-map-{what}")).await;
    }
    eventually("the ConfigMap to go", PATIENCE, async || {
        space
            .config_maps()
            .get_opt("app")
            .await
            .unwrap()
            .map_or(Ok(()), |map| {
                Err(format!(
                    "{:?}",
                    map.data.map(|data| data.into_keys().collect::<Vec<_>>())
                ))
            })
    })
    .await;
    assert_eq!(space.data("app").await, secret_data);
}

#[tokio::test(flavor = "multi_thread")]
async fn people_and_tools_see_where_a_key_stands() {
    let space = Space::new("seen").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let turning = json!({"rotation": {"interval": "720h"}, "distributeTo": [{"secretRef": {"name": "client", "key": "KEY"}}]});
    space.declare("partner", host_key("partner", turning)).await;
    let waited = [
        "wait",
        "--for=condition=Ready",
        "--timeout=40s",
        "functionkey/partner",
    ];
    kubectl(&space, &waited, "").await.unwrap();
    let status = space.ready("partner").await;
    let object = space.keys().get("partner").await.unwrap();
    assert_eq!(status.observed_generation, object.metadata.generation);
    assert_eq!(object.metadata.finalizers, None);
    let told: Vec<(&str, &str, &str)> = status
        .conditions
        .iter()
        .map(|condition| {
            (
                condition.type_.as_str(),
                condition.status.as_str(),
                condition.reason.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("Ready", "True", "Published"),
            ("Reconciling", "False", "AsDeclared"),
            ("Stalled", "False", "AsDeclared")
        ]
    );
    assert!(
        status
            .conditions
            .iter()
            .all(|condition| condition.observed_generation == object.metadata.generation)
    );
    let effective = serde_json::to_value(status.effective.unwrap()).unwrap();
    assert_eq!(
        effective,
        json!({"overlap": "24h", "drift": "Adopt", "deletionPolicy": "Delete"})
    );
    let rotation = status.rotation.unwrap();
    assert_eq!(rotation.generation, 1);
    assert_eq!(
        serde_json::to_value(status.origin.unwrap()).unwrap(),
        "Minted"
    );

    let table = kubectl(&space, &["get", "fkey"], "").await.unwrap();
    let (head, row) = table.split_once('\n').unwrap();
    let heads: Vec<&str> = head.split_whitespace().collect();
    assert_eq!(
        heads,
        [
            "NAME",
            "READY",
            "REASON",
            "ENTRY",
            "GENERATION",
            "KEY-AGE",
            "NEXT-TURN",
            "PREVIOUS-UNTIL",
            "AGE"
        ]
    );
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        cells[..5],
        ["partner", "True", "Published", "host.function.partner", "1"]
    );
    assert_eq!(cells[6], rotation.next_at.unwrap().0.to_string());
    let wide = kubectl(&space, &["get", "claviger", "-o", "wide"], "")
        .await
        .unwrap();
    assert!(
        wide.contains("Stable") && wide.contains("Secret/keys"),
        "{wide}"
    );
    // A first mint is told by the status.
    assert!(space.events("partner").await.is_empty());

    // A change of the spec is answered for by its generation.
    space
        .change("partner", json!({"spec": {"deletionPolicy": "Retain"}}))
        .await;
    let status = space.ready("partner").await;
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(
        serde_json::to_value(status.effective.unwrap()).unwrap()["deletionPolicy"],
        "Retain"
    );
    let explained = kubectl(
        &space,
        &["explain", "functionkey.spec.rotation.overlap"],
        "",
    )
    .await
    .unwrap();
    assert!(
        explained.contains("How long the previous value stays valid"),
        "{explained}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_turns_revokes_and_shows_keys() {
    let space = Space::new("commands").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .declare("partner", host_key("partner", json!({})))
        .await;
    space
        .declare(
            "waiting",
            host_key(
                "waiting",
                json!({"valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}),
            ),
        )
        .await;
    space.ready("partner").await;
    space.not_ready("waiting", "SourceNotFound").await;
    let first = space.data("keys").await["host.function.partner"].clone();

    let said = claviger(&space, &["rotate", "partner", "-n", &space.name])
        .await
        .unwrap();
    assert_eq!(
        said,
        "FunctionKey/partner is being turned: the previous value stays valid for its overlap (a master key has none)\n"
    );
    let turned = space
        .until_data("keys", "be turned", |data| {
            data["host.function.partner"] != first
        })
        .await;
    assert_eq!(turned["host.function.partner.previous-1"], first);
    event(&space, "partner", "Rotated").await;

    let said = claviger(&space, &["revoke", "partner", "-n", &space.name])
        .await
        .unwrap();
    assert_eq!(
        said,
        "FunctionKey/partner is being revoked: no earlier value stays valid\n"
    );
    let revoked = space
        .until_data("keys", "be revoked", |data| {
            data["host.function.partner"] != turned["host.function.partner"]
        })
        .await;
    assert_eq!(
        revoked.keys().collect::<Vec<_>>(),
        ["host.function.partner", "host.master"]
    );
    event(&space, "partner", "Revoked").await;
    space
        .until("partner", "of generation 3", |status| {
            status
                .rotation
                .as_ref()
                .is_some_and(|rotation| rotation.generation == 3)
        })
        .await;

    let table = claviger(&space, &["status", "-n", &space.name])
        .await
        .unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0][..6],
        ["NAMESPACE", "NAME", "READY", "ENTRY", "GENERATION", "SINCE"]
    );
    assert_eq!(
        rows[1][..5],
        [
            space.name.as_str(),
            "partner",
            "True",
            "host.function.partner",
            "3"
        ]
    );
    assert_eq!(rows[2][..3], [space.name.as_str(), "waiting", "False"]);
    assert!(
        table.contains(&format!(
            "{}/waiting: SourceNotFound: entry k of Secret/absent does not exist",
            space.name
        )),
        "{table}"
    );
    assert!(
        claviger(&space, &["status", "-A"])
            .await
            .unwrap()
            .contains(&space.name)
    );
    let refused = claviger(&space, &["rotate", "nobody", "-n", &space.name])
        .await
        .unwrap_err();
    assert!(
        refused.contains("cannot rotate FunctionKey/nobody"),
        "{refused}"
    );
    assert!(
        [first.as_str(), &turned["host.function.partner"]]
            .iter()
            .all(|value| !table.contains(*value))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_key_is_left_exactly_as_it_is() {
    let space = Space::new("suspended").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let client = to("client", "KEY");
    space
        .declare("partner", host_key("partner", client.clone()))
        .await;
    space
        .declare("late", host_key("late", json!({"suspend": true})))
        .await;
    space.ready("partner").await;
    let message = space.not_ready("late", "Suspended").await;
    assert!(message.contains("no key is published"), "{message}");
    let before = space.data("keys").await;
    assert!(!before.contains_key("host.function.late"));

    space
        .change(
            "partner",
            json!({"spec": {"suspend": true, "rotation": {"generation": 1}}}),
        )
        .await;
    space
        .until("partner", "suspended", |status| {
            ready_reason(status) == "Suspended" && condition(status, "Ready") == "True"
        })
        .await;
    crate::facts::drop_entries(&space, "keys", &["host.function.partner"]).await;
    delete_secret(&space, "client").await;
    tokio::time::sleep(A_WHILE).await;
    let dropped = space.data("keys").await;
    assert_eq!(dropped.keys().collect::<Vec<_>>(), ["host.master"]);
    assert_eq!(dropped["host.master"], before["host.master"]);
    assert!(space.data("client").await.is_empty());

    space
        .change("partner", json!({"spec": {"suspend": false}}))
        .await;
    space
        .change("late", json!({"spec": {"suspend": null}}))
        .await;
    space.ready("late").await;
    let after = space
        .until_data("keys", "be taken up again", |data| {
            data.contains_key("host.function.partner.previous-1")
        })
        .await;
    assert_eq!(
        after["host.function.partner.previous-1"],
        before["host.function.partner"]
    );
    assert_eq!(after["host.master"], before["host.master"]);
    assert_ne!(
        after["host.function.partner"],
        before["host.function.partner"]
    );
    space
        .until_data("client", "have the new value", |data| {
            data.get("KEY") == after.get("host.function.partner")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_keys_at_once_take_a_few_writes_and_one_restart_and_an_operators_restart_takes_none()
{
    const KEYS: usize = 30;
    let space = Space::new("batch").await;
    // On a busy machine thirty changes take longer than the half second of other tests.
    let patient = Options {
        restart_delay: "3s",
        ..Options::default()
    };
    let operator = Operator::start(&space, patient).await;
    space.put_deployment("web").await;
    let names: Vec<String> = (0..KEYS).map(|number| format!("key-{number:02}")).collect();
    let spec = |name: &str| {
        let target = json!({"secretRef": {"name": "client", "key": name}, "restart": [{"kind": "Deployment", "name": "web"}]});
        host_key(name, json!({"distributeTo": [target]}))
    };
    futures::future::join_all(names.iter().map(|name| space.declare(name, spec(name)))).await;
    for name in &names {
        space.ready(name).await;
    }
    let first = space.data("keys").await;
    assert_eq!(first.len(), KEYS + 1);
    let minting = writes(&space);
    assert!(
        (1..=3).contains(&count(&minting, "secrets/keys")),
        "{minting:?}"
    );
    assert!(
        (1..=3).contains(&count(&minting, "secrets/client")),
        "{minting:?}"
    );
    assert!(
        minting.len() <= 2 * KEYS,
        "{} writes for {KEYS} keys: {minting:?}",
        minting.len()
    );
    assert_eq!(
        template_changes(&space, "web").await,
        1,
        "a first copy restarts nobody"
    );

    let turn = json!({"spec": {"rotation": {"generation": 1}}});
    futures::future::join_all(names.iter().map(|name| space.change(name, turn.clone()))).await;
    for name in &names {
        space
            .until(name, "in overlap", |status| {
                let rotation = status.rotation.as_ref();
                rotation.is_some_and(|rotation| {
                    rotation.generation == 2 && rotation.previous_until.is_some()
                }) && condition(status, "Reconciling") == "False"
            })
            .await;
    }
    let turned = space.data("keys").await;
    assert_eq!(turned.len(), 2 * KEYS + 1);
    let client = space.data("client").await;
    for name in &names {
        let entry = format!("host.function.{name}");
        assert_eq!(turned[&format!("{entry}.previous-1")], first[&entry]);
        assert_eq!(client[name], turned[&entry]);
    }
    assert_eq!(
        template_changes(&space, "web").await,
        2,
        "thirty changes, one restart"
    );
    let restarted = space.restarted_at("web").await.unwrap();
    let turning = writes(&space).split_off(minting.len());
    assert!(count(&turning, "secrets/keys") <= 6, "{turning:?}");
    assert!(
        (1..=3).contains(&count(&turning, "secrets/client")),
        "{turning:?}"
    );
    assert_eq!(count(&turning, "deployments/web"), 1, "{turning:?}");

    tokio::time::sleep(A_WHILE).await;
    let (versions_before, writes_before) = (versions(&space).await, writes(&space).len());
    assert!(operator.stop().await);
    let operator = Operator::start(&space, Options::default()).await;
    tokio::time::sleep(A_WHILE).await;
    operator.kill().await;
    let _operator = Operator::start(&space, Options::default()).await;
    tokio::time::sleep(A_WHILE).await;
    let written = writes(&space).split_off(writes_before);
    assert!(
        written.is_empty(),
        "an operator's restart writes nothing: {written:?}"
    );
    assert_eq!(versions(&space).await, versions_before);
    assert_eq!(space.restarted_at("web").await.unwrap(), restarted);
    assert_eq!(
        record(&space, "keys", "host.function.key-00").await["generation"],
        2
    );
    assert_eq!(
        annotation(&space, "client", "claviger.dev/copies")
            .await
            .as_object()
            .unwrap()
            .len(),
        KEYS
    );
}
