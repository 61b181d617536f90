//! What a person does with vaults from the command line.

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    facts::{claviger, count, event, writes},
    support::{Operator, Options, Space, vaults::says},
};

fn spec() -> Value {
    json!({
        "secrets": [
            {"name": "db-password", "generate": {}},
            {"name": "token", "generate": {"alphabet": "Hex"}},
        ],
        "sync": [{
            "target": {"name": "env"},
            "data": [
                {"key": "DB", "secret": "db-password"},
                {"key": "DB_PREVIOUS", "secret": "db-password", "version": "Previous"},
                {"key": "TOKEN", "secret": "token"},
                {"key": "TOKEN_PREVIOUS", "secret": "token", "version": "Previous"},
            ],
        }],
    })
}

async fn annotation(space: &Space, name: &str) -> String {
    let vault = space.vaults().get("payments").await.unwrap();
    vault.annotations()[name].clone()
}

async fn until_env(
    space: &Space,
    what: &str,
    is: impl Fn(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, String> {
    space.until_data("env", what, is).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_turns_and_revokes_a_vaults_secrets_and_its_ring() {
    let space = Space::new("vault-commands").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.declare_vault("payments", spec()).await;
    space.vault_ready("payments").await;
    let first = space.data("env").await;
    let run = async |args: &[&str]| claviger(&space, &[args, &["-n", &space.name]].concat()).await;

    // What is asked for later stays asked for.
    let later = "TOKEN@2099-01-01T00:00:00Z";
    let patch = json!({"metadata": {"annotations": {"claviger.dev/rotate-secrets": later}}});
    space.change_vault("payments", patch).await;
    // Both at once, by one entry each.
    let said = run(&["rotate", "secretvault/payments", "--secret", "DB-password"])
        .await
        .unwrap();
    assert_eq!(
        said,
        "secret DB-password of SecretVault/payments is being turned: the version before stays valid for its overlap\n"
    );
    let asked = annotation(&space, "claviger.dev/rotate-secrets").await;
    assert!(
        asked.starts_with(&format!("{later},DB-password@2")),
        "{asked}"
    );
    run(&["rotate", "svault/payments", "--secret=token"])
        .await
        .unwrap();
    let turned = until_env(&space, "be turned", |data| {
        data["DB"] != first["DB"] && data["TOKEN"] != first["TOKEN"]
    })
    .await;
    assert_eq!(turned["DB_PREVIOUS"], first["DB"]);
    assert_eq!(turned["TOKEN_PREVIOUS"], first["TOKEN"]);
    event(&space, "payments", "Rotated").await;

    let said = run(&[
        "revoke",
        "secretvault/payments",
        "--secret=db-password,token",
    ])
    .await
    .unwrap();
    assert!(
        said.contains("secret token of SecretVault/payments is being revoked"),
        "{said}"
    );
    let revoked = until_env(&space, "be revoked", |data| {
        !data.contains_key("DB_PREVIOUS") && !data.contains_key("TOKEN_PREVIOUS")
    })
    .await;
    assert_ne!(revoked["DB"], turned["DB"]);
    assert_ne!(revoked["TOKEN"], turned["TOKEN"]);
    assert_eq!(
        annotation(&space, "claviger.dev/revoke-secrets")
            .await
            .matches('@')
            .count(),
        2
    );

    // The ring: no secret changes by it.
    let said = run(&["rotate", "secretvault/payments"]).await.unwrap();
    assert!(
        said.starts_with("the key ring of SecretVault/payments is being turned"),
        "{said}"
    );
    space
        .until_vault("payments", "under version 2 of the ring", |status| {
            status.key_ring.as_ref().is_some_and(|ring| {
                ring.current == 2 && ring.versions.len() == 1 && ring.rewrapped.is_none()
            })
        })
        .await;
    assert_eq!(space.data("env").await, revoked);

    // What would come to nothing is refused, and asks for nothing.
    let asked = count(&writes(&space), "secretvaults/payments");
    for (args, says) in [
        (&["revoke", "secretvault/payments"][..], "--secret"),
        (
            &["rotate", "payments", "--secret=token"],
            "write secretvault/NAME instead of payments",
        ),
        (
            &["rotate", "secretvault/payments", "--secret=other"],
            "does not declare it",
        ),
        (
            &["rotate", "secretvault/nobody"],
            "cannot rotate SecretVault/nobody",
        ),
        (
            &["purge", "secretvault/payments", "--secret=token"],
            "declares it",
        ),
        (&["recover", "payments", "--secret=token"], "secretvault/"),
    ] {
        let refused = run(args).await.unwrap_err();
        assert!(refused.contains(says), "{args:?}: {refused}");
    }
    assert_eq!(count(&writes(&space), "secretvaults/payments"), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_recovers_and_purges_deleted_secrets() {
    let space = Space::new("vault-recover").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.declare_vault("payments", spec()).await;
    space.vault_ready("payments").await;
    let run = async |args: &[&str]| claviger(&space, &[args, &["-n", &space.name]].concat()).await;
    let counts = async |what: &str, live: i64, deleted: i64| {
        space
            .until_vault("payments", what, |status| {
                status
                    .secrets
                    .is_some_and(|secrets| (secrets.live, secrets.deleted) == (live, deleted))
            })
            .await
    };
    let spec = json!({"spec": {"sync": null, "secrets": null}});
    space.change_vault("payments", spec).await;
    counts("empty", 0, 2).await;

    run(&["recover", "secretvault/payments", "--secret=db-password"])
        .await
        .unwrap();
    counts("half recovered", 1, 1).await;
    let said = run(&["purge", "secretvault/payments", "--secret=token"])
        .await
        .unwrap();
    assert!(
        said.contains("secret token of SecretVault/payments is purged"),
        "{said}"
    );
    space
        .until_vault("payments", "half purged", |status| {
            status
                .secrets
                .is_some_and(|secrets| (secrets.deleted, secrets.versions) == (0, 1))
        })
        .await;
    let names: Vec<Value> = space
        .attributes("payments")
        .await
        .into_values()
        .map(|attributes| attributes["name"].clone())
        .collect();
    assert!(names.iter().all(|name| name == "db-password"), "{names:?}");

    space
        .change_vault(
            "payments",
            json!({"spec": {"softDelete": {"purgeProtection": true}}}),
        )
        .await;
    let refused = run(&["purge", "secretvault/payments", "--secret=db-password"])
        .await
        .unwrap_err();
    assert!(refused.contains("purgeProtection"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_vaults_beside_keys_and_one_with_its_secrets() {
    let space = Space::new("vault-status").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.declare_vault("payments", spec()).await;
    let lacking = json!({"secrets": [
        {"name": "imported", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}
    ]});
    space.declare_vault("waiting", lacking).await;
    let status = space.vault_ready("payments").await;
    assert_eq!(says(&status.conditions, "Stalled"), "False");
    space.vault_stalled("waiting", "SourceNotFound").await;
    let run = async |args: &[&str]| claviger(&space, &[args, &["-n", &space.name]].concat()).await;
    let rows = |table: &str| -> Vec<Vec<String>> {
        let lines = table.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect()
    };

    let table = run(&["status"]).await.unwrap();
    let told = rows(&table);
    assert_eq!(
        told[0][..7],
        [
            "NAMESPACE",
            "VAULT",
            "READY",
            "SECRETS",
            "DELETED",
            "VERSIONS",
            "RING"
        ]
    );
    assert_eq!(
        told[1][..7],
        [space.name.as_str(), "payments", "True", "2", "0", "2", "1"]
    );
    assert_eq!(told[2][..3], [space.name.as_str(), "waiting", "False"]);
    assert!(
        table.contains(&format!("{}/waiting: SourceNotFound: ", space.name)),
        "{table}"
    );

    // With a key there are two tables.
    space
        .declare("partner", crate::facts::function_key("partner", json!({})))
        .await;
    space.ready("partner").await;
    let table = run(&["status"]).await.unwrap();
    let heads: Vec<String> = table
        .lines()
        .filter(|line| line.starts_with("NAMESPACE"))
        .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(heads, ["NAME", "VAULT"]);
    let key = run(&["status", "partner"]).await.unwrap();
    assert_eq!(rows(&key).len(), 2, "{key}");

    let table = run(&["status", "secretvault/payments"]).await.unwrap();
    let told = rows(&table);
    let find = |first: &str| told.iter().find(|row| row[0] == first).unwrap();
    assert_eq!(find("db-password")[..3], ["db-password", "Stable", "1"]);
    assert_eq!(find("env")[..3], ["env", "Synced", "env"]);
    assert!(!table.contains("waiting"), "{table}");
    assert!(
        run(&["status", "secretvault/nobody"])
            .await
            .unwrap_err()
            .contains("cannot read SecretVault/nobody")
    );
    for value in space.data("env").await.values() {
        assert!(!table.contains(value.as_str()), "a value is told");
    }
}
