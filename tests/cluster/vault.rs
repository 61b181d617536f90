//! A vault's life: secrets made, turned, deleted, recovered; written into the Secrets that pods read.

use serde_json::json;

use crate::support::{Operator, Options, Space};

#[tokio::test(flavor = "multi_thread")]
async fn declared_secrets_are_made_sealed_and_synced() {
    let space = Space::new("vault-made").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space
        .put_secret("bootstrap", &[("apiKey", "third-party-value-0123456789")])
        .await;
    space
        .declare_vault(
            "payments",
            json!({
                "secrets": [
                    {"name": "db-password", "generate": {"length": 40}},
                    {"name": "third-party", "valueFrom": {"secretKeyRef": {"name": "bootstrap", "key": "apiKey"}}},
                ],
                "sync": [{
                    "target": {"name": "payments-env"},
                    "data": [
                        {"key": "DB_PASSWORD", "secret": "db-password"},
                        {"key": "API_KEY", "secret": "Third-Party"},
                        {"key": "URL", "template": "postgres://app:{{ secrets['db-password'] | urlencode }}@db/app"},
                    ],
                }],
            }),
        )
        .await;
    let status = space.vault_ready("payments").await;
    assert_eq!(status.secrets.unwrap().live, 2);
    let data = space.data("payments-env").await;
    assert_eq!(data["API_KEY"], "third-party-value-0123456789");
    assert_eq!(data["DB_PASSWORD"].len(), 40);
    assert_eq!(
        data["URL"],
        format!("postgres://app:{}@db/app", data["DB_PASSWORD"])
    );
    // Nothing in the vault's own objects is a value.
    for (name, entry) in space.entries("payments").await {
        let text = serde_json::to_string(&entry).unwrap();
        for value in data.values() {
            assert!(!text.contains(value.as_str()), "{name}");
        }
    }
}
