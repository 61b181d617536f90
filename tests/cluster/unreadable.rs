//! A resource that an older definition let through and that cannot be read.

use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::sync::Arc;

use crate::support::{Cluster, Operator, Options, Space, control_plane::SYSTEM, space::host_key};

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_resource_is_told_so_loses_no_key_and_blinds_nobody() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let space = Space::on(Arc::new(cluster), "unreadable").await;
    let operator = Operator::start(&space, Options::default()).await;
    space.declare("good", host_key("good", json!({}))).await;
    space
        .declare(
            "bad",
            host_key("bad", json!({"rotation": {"interval": "720h"}})),
        )
        .await;
    space.ready("good").await;
    space.ready("bad").await;
    let data = space.data("keys").await;

    // A definition without rules, as some older version may have been.
    let definitions = Api::<CustomResourceDefinition>::all(space.client.clone());
    let lax = json!([{
        "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }]);
    let lax: json_patch::Patch = serde_json::from_value(lax).unwrap();
    let name = "functionkeys.claviger.dev";
    definitions
        .patch(name, &PatchParams::default(), &Patch::Json::<()>(lax))
        .await
        .unwrap();
    crate::support::eventually(
        "the lax definition",
        std::time::Duration::from_secs(30),
        async || {
            let resource =
                kube::api::ApiResource::erase::<claviger::api::v1alpha1::FunctionKey>(&());
            let api: Api<kube::api::DynamicObject> =
                Api::namespaced_with(space.client.clone(), &space.name, &resource);
            let patch = json!({"spec": {"rotation": {"interval": "a month"}}});
            let patched = api
                .patch("bad", &PatchParams::default(), &Patch::Merge(patch))
                .await;
            patched.map(drop).map_err(|error| error.to_string())
        },
    )
    .await;
    let message = space.not_ready("bad", "Invalid").await;
    assert!(
        message.contains("spec.rotation.interval is not a duration"),
        "{message}"
    );

    // A restart, and others go on.
    assert!(operator.stop().await);
    let _operator = Operator::start(&space, Options::default()).await;
    space.declare("later", host_key("later", json!({}))).await;
    space.ready("later").await;
    let after = space.data("keys").await;
    assert!(
        data.iter()
            .all(|(entry, value)| after.get(entry) == Some(value))
    );
}
