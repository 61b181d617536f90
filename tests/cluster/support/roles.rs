//! RoleAssignments in tests.

use claviger::api::v1alpha1::{RoleAssignment, RoleAssignmentStatus};
use k8s_openapi::api::{
    core::v1::Namespace,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Space, eventually, space::PATIENCE};

/// Finds what was made for RoleAssignments.
const OURS: &str = "claviger.dev/content=role-assignment";

/// A RoleAssignment of a built-in role to a user.
pub(crate) fn to_user(user: &str, role: &str, scope: &Value) -> Value {
    json!({
        "principal": {"kind": "User", "name": user},
        "role": {"builtIn": role},
        "scope": scope,
    })
}

/// A RoleAssignment with this spec, as it is sent.
pub(crate) fn assignment(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "RoleAssignment",
        "metadata": {"name": name}, "spec": spec,
    })
}

/// The message of the Ready condition, with its status and reason before it.
pub(crate) fn told(status: &RoleAssignmentStatus) -> String {
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    ready.map_or_else(String::new, |ready| {
        format!("{} {}: {}", ready.status, ready.reason, ready.message)
    })
}

impl Space {
    pub(crate) fn assignments(&self) -> Api<RoleAssignment> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn role_bindings(&self) -> Api<RoleBinding> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn roles(&self) -> Api<Role> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates a RoleAssignment with this spec, in this namespace.
    pub(crate) async fn assign_in(&self, namespace: &str, name: &str, spec: &Value) {
        let object = serde_json::from_value(assignment(name, spec)).unwrap();
        Api::<RoleAssignment>::namespaced(self.client.clone(), namespace)
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    }

    /// Creates a RoleAssignment with this spec.
    pub(crate) async fn assign(&self, name: &str, spec: &Value) {
        self.assign_in(&self.name, name, spec).await;
    }

    /// Changes the spec of a RoleAssignment by a merge patch.
    pub(crate) async fn reassign(&self, name: &str, spec: &Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        let params = PatchParams::default();
        self.assignments()
            .patch(name, &params, &patch)
            .await
            .unwrap();
    }

    /// Deletes a RoleAssignment.
    pub(crate) async fn unassign(&self, name: &str) {
        let params = DeleteParams::default();
        self.assignments().delete(name, &params).await.unwrap();
    }

    /// Waits until the status of a RoleAssignment begins with these words (of its Ready condition).
    pub(crate) async fn until_told_in(
        &self,
        namespace: &str,
        name: &str,
        words: &str,
    ) -> RoleAssignmentStatus {
        let api = Api::<RoleAssignment>::namespaced(self.client.clone(), namespace);
        eventually(
            &format!("RoleAssignment {name} to be told {words:?}"),
            PATIENCE,
            async || {
                let object = api.get(name).await.map_err(|error| error.to_string())?;
                let status = object.status.clone().unwrap_or_default();
                let current = status.observed_generation == object.metadata.generation;
                if current && told(&status).starts_with(words) {
                    Ok(status)
                } else {
                    Err(serde_json::to_string(&status).unwrap())
                }
            },
        )
        .await
    }

    /// The same, in the test's own namespace.
    pub(crate) async fn until_told(&self, name: &str, words: &str) -> RoleAssignmentStatus {
        self.until_told_in(&self.name, name, words).await
    }

    /// What was made for RoleAssignments in a namespace: Roles and RoleBindings, by name.
    pub(crate) async fn made_in(&self, namespace: &str) -> Vec<String> {
        let params = ListParams::default().labels(OURS);
        let roles = Api::<Role>::namespaced(self.client.clone(), namespace);
        let bindings = Api::<RoleBinding>::namespaced(self.client.clone(), namespace);
        let roles = roles.list(&params).await.unwrap().into_iter();
        let bindings = bindings.list(&params).await.unwrap().into_iter();
        roles
            .map(|role| format!("Role {}", role.name_any()))
            .chain(bindings.map(|binding| {
                let to = &binding.role_ref;
                format!(
                    "RoleBinding {} to {}/{}",
                    binding.name_any(),
                    to.kind,
                    to.name
                )
            }))
            .collect()
    }

    /// The same, in the test's own namespace.
    pub(crate) async fn made(&self) -> Vec<String> {
        self.made_in(&self.name).await
    }

    /// Waits until so many objects of RoleAssignments are in a namespace.
    pub(crate) async fn until_made_in(&self, namespace: &str, count: usize) -> Vec<String> {
        eventually(
            &format!("{count} objects in {namespace}"),
            PATIENCE,
            async || {
                let made = self.made_in(namespace).await;
                if made.len() == count {
                    Ok(made)
                } else {
                    Err(format!("{made:?}"))
                }
            },
        )
        .await
    }

    /// The bindings of RoleAssignments for the whole cluster.
    pub(crate) async fn cluster_bindings(&self) -> Vec<ClusterRoleBinding> {
        let params = ListParams::default().labels(OURS);
        let api = Api::<ClusterRoleBinding>::all(self.client.clone());
        api.list(&params).await.unwrap().items
    }

    /// Makes a ClusterRole, or replaces one.
    pub(crate) async fn put_cluster_role(&self, name: &str, rules: Value) {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules,
        });
        let params = PatchParams::apply("test").force();
        Api::<ClusterRole>::all(self.client.clone())
            .patch(name, &params, &Patch::Apply(role))
            .await
            .unwrap();
    }

    /// Makes a namespace with these labels, or gives it these.
    pub(crate) async fn put_namespace(&self, name: &str, labels: Value) {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        let params = PatchParams::apply("test").force();
        Api::<Namespace>::all(self.client.clone())
            .patch(name, &params, &Patch::Apply(namespace))
            .await
            .unwrap();
    }
}
