//! Wrong manifests of RoleAssignments: each refused by the apiserver in our words. Right ones at the
//! edge of that, the largest there can be among them: accepted.
#![allow(
    clippy::needless_pass_by_value,
    reason = "called with `json!` in place"
)]

use claviger::api::v1alpha1::RoleAssignment;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::{Value, json};

use crate::support::{Space, control_plane::SYSTEM, roles::assignment};

/// A right manifest's spec with these fields put in or (null) taken out.
fn spec(changes: Value) -> Value {
    let mut spec = json!({
        "principal": {"kind": "ServiceAccount", "name": "web"},
        "role": {"builtIn": "SecretVaultSecretsUser"},
        "scope": {"namespace": {}},
    });
    json_patch::merge(&mut spec, &changes);
    spec
}

fn scope(scope: Value) -> Value {
    let mut spec = spec(json!({}));
    spec["scope"] = scope;
    spec
}

fn selector(selector: Value) -> Value {
    scope(json!({"namespaces": {"selector": selector}}))
}

async fn tried(space: &Space, namespace: &str, spec: &Value) -> Result<(), String> {
    let resource = ApiResource::erase::<RoleAssignment>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(space.client.clone(), namespace, &resource);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object = serde_json::from_value(assignment("try", spec)).unwrap();
    match api.create(&params, &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(other) => Err(other.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_assignments_are_refused_in_words_that_help() {
    let space = Space::new("role-wrong").await;
    let long = "a".repeat(64);
    let rows: Vec<(&str, Value, &str)> = vec![
        (
            "no principal",
            spec(json!({"principal": null})),
            "spec.principal: Required value",
        ),
        (
            "no role",
            spec(json!({"role": null})),
            "spec.role: Required value",
        ),
        (
            "no scope",
            spec(json!({"scope": null})),
            "spec.scope: Required value",
        ),
        (
            "an unknown kind of principal",
            spec(json!({"principal": {"kind": "Pod"}})),
            "supported values: \"Group\", \"ServiceAccount\", \"User\"",
        ),
        (
            "a user in a namespace",
            spec(json!({"principal": {"kind": "User", "name": "anna", "namespace": "shop"}})),
            "principal.namespace is for a ServiceAccount only",
        ),
        (
            "a ServiceAccount with its namespace in the name",
            spec(json!({"principal": {"name": "shop:web"}})),
            "Its namespace goes into principal.namespace",
        ),
        (
            "a ServiceAccount as a user",
            spec(json!({"principal": {"kind": "User", "name": "system:serviceaccount:shop:web"}})),
            "write a ServiceAccount as kind: ServiceAccount",
        ),
        (
            "everybody who has not said who they are",
            spec(json!({"principal": {"kind": "Group", "name": "system:unauthenticated"}})),
            "no role for callers who have not said who they are",
        ),
        (
            "the same as a user",
            spec(json!({"principal": {"kind": "User", "name": "system:anonymous"}})),
            "no role for callers who have not said who they are",
        ),
        (
            "a namespace that cannot be",
            spec(json!({"principal": {"namespace": "Shop"}})),
            "not a name that a namespace can have",
        ),
        (
            "no name",
            spec(json!({"principal": {"name": ""}})),
            "should be at least 1 chars long",
        ),
        (
            "two roles",
            spec(json!({"role": {"clusterRole": "view"}})),
            "name exactly one of role.builtIn and role.clusterRole",
        ),
        (
            "neither role",
            spec(json!({"role": {"builtIn": null}})),
            "name exactly one of role.builtIn and role.clusterRole",
        ),
        (
            "a role that there is not",
            spec(json!({"role": {"builtIn": "Owner"}})),
            "supported values: \"FunctionKeyReader\"",
        ),
        (
            "a ClusterRole with a path",
            spec(json!({"role": {"builtIn": null, "clusterRole": "a/b"}})),
            "not a name that a ClusterRole can have",
        ),
        (
            "no scope chosen",
            scope(json!({})),
            "say where by exactly one of scope.resource",
        ),
        (
            "two scopes",
            spec(json!({"scope": {"cluster": {}}})),
            "say where by exactly one of scope.resource",
        ),
        (
            "a role for another kind",
            scope(json!({"resource": {"kind": "FunctionKey", "name": "orders"}})),
            "role.builtIn says nothing of the kind in scope.resource",
        ),
        (
            "a kind that there is not",
            scope(json!({"resource": {"kind": "Secret", "name": "orders"}})),
            "supported values: \"FunctionKey\", \"SecretVault\", \"TokenProvider\"",
        ),
        (
            "a resource elsewhere",
            scope(json!({"resource": {"kind": "SecretVault", "name": "shop/payments"}})),
            "not a name that a resource can have",
        ),
        (
            "namespaces by nothing",
            scope(json!({"namespaces": {}})),
            "choose the namespaces by exactly one of namespaces.names and namespaces.selector",
        ),
        (
            "namespaces by both",
            scope(json!({"namespaces": {"names": ["a"], "selector": {"matchLabels": {"a": "b"}}}})),
            "choose the namespaces by exactly one of",
        ),
        (
            "no names",
            scope(json!({"namespaces": {"names": []}})),
            "should have at least 1 items",
        ),
        (
            "a wildcard",
            scope(json!({"namespaces": {"names": ["shop-*"]}})),
            "no wildcards",
        ),
        (
            "a name twice",
            scope(json!({"namespaces": {"names": ["a", "a"]}})),
            "Duplicate value",
        ),
        (
            "an empty selector",
            selector(json!({})),
            "an empty selector would choose every namespace: if that is what you mean, write scope.cluster",
        ),
        (
            "an empty list",
            selector(json!({"matchLabels": {}})),
            "an empty selector would choose every namespace",
        ),
        (
            "a label that cannot be",
            selector(json!({"matchLabels": {"a b": "c"}})),
            "not labels that a namespace can have",
        ),
        (
            "a value that cannot be",
            selector(json!({"matchLabels": {"a": "b c"}})),
            "not labels that a namespace can have",
        ),
        (
            "In without values",
            selector(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})),
            "In and NotIn need values, Exists and DoesNotExist take none",
        ),
        (
            "Exists with values",
            selector(
                json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
            ),
            "In and NotIn need values, Exists and DoesNotExist take none",
        ),
        (
            "an operator that there is not",
            selector(
                json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
            ),
            "supported values: \"DoesNotExist\"",
        ),
        (
            "a value too long",
            selector(
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": [long]}]}),
            ),
            "may not be more than 63",
        ),
        (
            "never",
            spec(json!({"startsAt": "2030-01-02T00:00:00Z", "expiresAt": "2030-01-01T00:00:00Z"})),
            "startsAt must lie before expiresAt",
        ),
        (
            "no time",
            spec(json!({"expiresAt": "tomorrow"})),
            "spec.expiresAt",
        ),
        (
            "no time",
            spec(json!({"expiresAt": "2030-01-01T00:00:00+26:00"})),
            "spec.expiresAt",
        ),
        (
            "no time",
            spec(json!({"expiresAt": "2030-01-01T00:00:00 5Z"})),
            "spec.expiresAt",
        ),
        (
            "no time",
            spec(json!({"expiresAt": "2030-01-01T00:00:00ZTx"})),
            "spec.expiresAt",
        ),
        (
            "no time",
            spec(json!({"expiresAt": "2030-13-01T00:00:00Z"})),
            "spec.expiresAt",
        ),
        (
            "no time",
            spec(json!({"expiresAt": "2030-01-01t00:00:00z"})),
            "spec.expiresAt",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, spec, expected) in &rows {
        match tried(&space, SYSTEM, spec).await {
            Err(said) if said.contains(expected) => {}
            other => wrong.push(format!("{what}: expected {expected:?}, but {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} rows", rows.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn right_assignments_are_accepted_the_largest_included() {
    let space = Space::new("role-right").await;
    let name = |i: usize| format!("{i:03}-{}", "a".repeat(59));
    let names: Vec<String> = (0..500).map(name).collect();
    let labels: serde_json::Map<String, Value> = (0..16)
        .map(|i| (format!("{}.example/{}", name(i), name(i)), json!(name(i))))
        .collect();
    let values: Vec<String> = (0..64).map(name).collect();
    let expressions: Vec<Value> = (0..16)
        .map(|i| json!({"key": format!("x{i}"), "operator": "NotIn", "values": values}))
        .collect();
    for (what, spec) in [
        ("the plain one", spec(json!({}))),
        (
            "500 namespaces",
            scope(json!({"namespaces": {"names": names}})),
        ),
        (
            "every label and expression",
            selector(json!({"matchLabels": labels, "matchExpressions": expressions})),
        ),
        ("the cluster", scope(json!({"cluster": {}}))),
        (
            "one that is over",
            spec(json!({"expiresAt": "2020-01-01T00:00:00Z"})),
        ),
        (
            "a user with any name",
            spec(
                json!({"principal": {"kind": "User", "name": "https://login.example.com#ünï cörn"}}),
            ),
        ),
        (
            "a group",
            spec(json!({"principal": {"kind": "Group", "name": "system:serviceaccounts:shop"}})),
        ),
        (
            "a ServiceAccount elsewhere",
            spec(json!({"principal": {"namespace": "front", "name": "a.b"}})),
        ),
        (
            "a ClusterRole of one's own",
            spec(json!({"role": {"builtIn": null, "clusterRole": "system:aggregate-to-view"}})),
        ),
    ] {
        let answer = tried(&space, SYSTEM, &spec).await;
        assert!(answer.is_ok(), "{what}: {answer:?}");
    }
    for (role, kind) in [
        ("FunctionKeyReader", "FunctionKey"),
        ("FunctionKeyOperator", "FunctionKey"),
        ("SecretVaultAdministrator", "SecretVault"),
        ("SecretVaultReader", "SecretVault"),
        ("SecretVaultSecretsOfficer", "SecretVault"),
        ("SecretVaultSecretsUser", "SecretVault"),
        ("TokenProviderIssuer", "TokenProvider"),
        ("TokenProviderOperator", "TokenProvider"),
        ("WebPubSubServiceOwner", "TokenProvider"),
        ("WebPubSubServiceReader", "TokenProvider"),
    ] {
        for other in ["FunctionKey", "SecretVault", "TokenProvider"] {
            let mut spec = scope(json!({"resource": {"kind": other, "name": "x"}}));
            spec["role"]["builtIn"] = json!(role);
            let answer = tried(&space, SYSTEM, &spec).await;
            assert_eq!(
                answer.is_ok(),
                kind == other,
                "{role} on {other}: {answer:?}"
            );
        }
    }
}
