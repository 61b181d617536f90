//! What a GitOps tool sees: nothing, whatever keys do.

use std::time::Duration;

use serde_json::json;

use crate::support::{Operator, Options, Space, control_plane::run, tool};

/// Compares manifests with the cluster as Argo CD and Flux do; answers the difference.
async fn difference(space: &Space, manifests: &str) -> String {
    let mut diff = tokio::process::Command::new(tool("kubectl"));
    diff.arg("--kubeconfig").arg(&space.cluster.kubeconfig);
    diff.args(["diff", "--server-side", "--field-manager=gitops", "-f", "-"]);
    match run(&mut diff, manifests).await {
        Ok(none) => none,
        Err(error) => format!("differs: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_in_git_show_no_difference_after_a_rotation_and_a_restart() {
    let space = Space::new("gitops").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let manifests = json!({
        "apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "claviger.dev/v1alpha1", "kind": "FunctionKey",
                "metadata": {"name": "orders", "namespace": space.name},
                "spec": {
                    "storage": {"secret": {"name": "keys"}}, "scope": "Function", "functionName": "Orders",
                    "rotation": {"overlap": "1h", "generation": 0},
                    "distributeTo": [{
                        "secretRef": {"name": "client", "key": "KEY"},
                        "restart": [{"kind": "Deployment", "name": "web"}],
                    }],
                },
            },
            {
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "web", "namespace": space.name},
                "spec": {
                    "replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                    "template": {
                        "metadata": {"labels": {"app": "web"}},
                        "spec": {"containers": [{"name": "c", "image": "none"}]},
                    },
                },
            },
        ],
    })
    .to_string();
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=gitops",
        "-f",
        "-",
    ];
    space.cluster.kubectl(&apply, &manifests).await.unwrap();
    space.ready("orders").await;
    assert_eq!(difference(&space, &manifests).await, "");

    let now = claviger::clock::now().to_string();
    space
        .change(
            "orders",
            json!({"metadata": {"annotations": {"claviger.dev/rotate-at": now}}}),
        )
        .await;
    let overlapping = |status: &claviger::api::v1alpha1::FunctionKeyStatus| {
        status
            .rotation
            .as_ref()
            .is_some_and(|rotation| rotation.generation == 2 && rotation.previous_until.is_some())
    };
    space.until("orders", "in overlap", overlapping).await;
    let restarted = space.restarted_at("web").await;
    assert!(restarted.is_some());
    assert_eq!(difference(&space, &manifests).await, "");

    // Applying Git again undoes nothing.
    let data = space.data("keys").await;
    space.cluster.kubectl(&apply, &manifests).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(space.restarted_at("web").await, restarted);
    assert_eq!(space.data("keys").await, data);
}
