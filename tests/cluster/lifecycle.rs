//! A key's life: minted, adopted, turned, handed out, taken back.

use serde_json::json;

use crate::support::{Operator, Options, Space, space::host_key};

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_key_is_minted_with_a_master_key_beside_it() {
    let space = Space::new("minted").await;
    let _operator = Operator::start(&space, Options::default()).await;
    space.declare("orders", json!({
        "storage": {"secret": {"name": "keys"}}, "scope": "Function", "functionName": "Orders",
    })).await;
    space.ready("orders").await;
    let data = space.data("keys").await;
    assert_eq!(
        data.keys().collect::<Vec<_>>(),
        ["functions.orders.default", "host.master"]
    );
    space.declare("host", host_key("partner", json!({}))).await;
    space.ready("host").await;
    assert!(
        space
            .data("keys")
            .await
            .contains_key("host.function.partner")
    );
}
