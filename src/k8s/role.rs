//! The Roles and bindings that assignments become: each is ours whole, so it is written by
//! server-side apply, and never before it is known whose it is.

use k8s_openapi::{
    api::rbac::v1::{
        ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef as Reference,
        Subject,
    },
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    api::{ASSIGNMENT_ANNOTATION, ASSIGNMENT_LABEL, CONTENT_LABEL, CONTENT_ROLE},
    domain::role::{Assignment, Content, Key, ObjectKind, Observed, Principal, RoleRef, Rule},
    k8s::object::FIELD_MANAGER,
};

const RBAC: &str = "rbac.authorization.k8s.io";

/// The Roles and bindings of the cluster.
#[derive(Clone)]
pub struct Roles {
    client: Client,
}

/// An object as it stands, with the version of it.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is.
    pub observed: Observed,
    /// `metadata.resourceVersion`.
    pub version: String,
}

/// A kind of object that assignments become.
pub trait Kept: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug {
    /// Which kind.
    const KIND: ObjectKind;

    /// What it says; nothing where it says what none of ours does.
    fn content(&self) -> Option<Content>;

    /// Which object it is.
    fn key(&self) -> Key {
        Key {
            kind: Self::KIND,
            namespace: self.namespace().unwrap_or_default(),
            name: self.name_any(),
        }
    }

    /// What is to be known of it.
    fn found(&self) -> Found {
        let owners = self.owner_references().iter();
        Found {
            observed: Observed {
                uid: self.uid().unwrap_or_default(),
                content: self.content(),
                digest: self
                    .labels()
                    .get(ASSIGNMENT_LABEL)
                    .cloned()
                    .unwrap_or_default(),
                assignment: self
                    .annotations()
                    .get(ASSIGNMENT_ANNOTATION)
                    .and_then(|text| text.split_once('/'))
                    .map(|(namespace, name)| (namespace.to_owned(), name.to_owned())),
                owners: owners.map(|owner| owner.uid.clone()).collect(),
                going: self.meta().deletion_timestamp.is_some(),
                finalizers: self.finalizers().to_vec(),
                by: last_writer(self.managed_fields()),
            },
            version: self.resource_version().unwrap_or_default(),
        }
    }
}

impl Kept for Role {
    const KIND: ObjectKind = ObjectKind::Role;

    fn content(&self) -> Option<Content> {
        Some(Content::Rules(rules(self.rules.as_deref())))
    }
}

impl Kept for RoleBinding {
    const KIND: ObjectKind = ObjectKind::RoleBinding;

    fn content(&self) -> Option<Content> {
        binding(&self.role_ref, self.subjects.as_deref())
    }
}

impl Kept for ClusterRoleBinding {
    const KIND: ObjectKind = ObjectKind::ClusterRoleBinding;

    fn content(&self) -> Option<Content> {
        binding(&self.role_ref, self.subjects.as_deref())
    }
}

/// Who but Claviger wrote last.
fn last_writer(fields: &[ManagedFieldsEntry]) -> Option<String> {
    let others = fields
        .iter()
        .filter(|entry| entry.manager.as_deref() != Some(FIELD_MANAGER));
    let last = others.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    last.manager.clone()
}

fn rules(rules: Option<&[PolicyRule]>) -> Vec<Rule> {
    rules.unwrap_or_default().iter().map(rule).collect()
}

fn rule(rule: &PolicyRule) -> Rule {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    Rule {
        groups: list(&rule.api_groups),
        resources: list(&rule.resources),
        names: list(&rule.resource_names),
        verbs: rule.verbs.clone(),
        urls: list(&rule.non_resource_urls),
    }
}

fn binding(role: &Reference, subjects: Option<&[Subject]>) -> Option<Content> {
    let role = match role.kind.as_str() {
        "ClusterRole" => RoleRef::ClusterRole(role.name.clone()),
        "Role" => RoleRef::Role(role.name.clone()),
        _ => return None,
    };
    let subjects = subjects
        .unwrap_or_default()
        .iter()
        .map(|subject| {
            let name = subject.name.clone();
            match subject.kind.as_str() {
                "Group" => Some(Principal::Group(name)),
                "ServiceAccount" => Some(Principal::ServiceAccount {
                    namespace: subject.namespace.clone()?,
                    name,
                }),
                "User" => Some(Principal::User(name)),
                _ => None,
            }
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Content::Binding { role, subjects })
}

fn metadata(assignment: &Assignment, key: &Key) -> ObjectMeta {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let name = &assignment.owner.name;
    let owner = OwnerReference {
        api_version: "claviger.dev/v1alpha1".to_owned(),
        kind: "RoleAssignment".to_owned(),
        name: name.clone(),
        uid: assignment.owner.uid.clone(),
        ..OwnerReference::default()
    };
    ObjectMeta {
        name: Some(key.name.clone()),
        namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        labels: Some(
            [
                label("app.kubernetes.io/managed-by", FIELD_MANAGER),
                label(CONTENT_LABEL, CONTENT_ROLE),
                label(ASSIGNMENT_LABEL, &assignment.digest()),
            ]
            .into(),
        ),
        annotations: Some(
            [label(
                ASSIGNMENT_ANNOTATION,
                &format!("{}/{name}", assignment.namespace),
            )]
            .into(),
        ),
        // Garbage collection reaches what is in the assignment's own namespace.
        owner_references: (key.namespace == assignment.namespace).then(|| vec![owner]),
        ..ObjectMeta::default()
    }
}

fn policy_rule(rule: &Rule) -> PolicyRule {
    let list = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    PolicyRule {
        api_groups: list(&rule.groups),
        resources: list(&rule.resources),
        resource_names: list(&rule.names),
        verbs: rule.verbs.clone(),
        non_resource_urls: list(&rule.urls),
    }
}

fn reference(role: &RoleRef) -> Reference {
    Reference {
        api_group: RBAC.to_owned(),
        kind: role.kind().to_owned(),
        name: role.name().to_owned(),
    }
}

fn subject(principal: &Principal) -> Subject {
    let of = |kind: &str, name: &str, namespace: Option<&str>| Subject {
        api_group: namespace.is_none().then(|| RBAC.to_owned()),
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace: namespace.map(str::to_owned),
    };
    match principal {
        Principal::Group(name) => of("Group", name, None),
        Principal::ServiceAccount { namespace, name } => {
            of("ServiceAccount", name, Some(namespace))
        }
        Principal::User(name) => of("User", name, None),
    }
}

/// An object of ours, ready to be written.
enum Ready {
    ClusterRoleBinding(ClusterRoleBinding),
    Role(Role),
    RoleBinding(RoleBinding),
}

fn ready(assignment: &Assignment, key: &Key, content: &Content) -> Ready {
    let metadata = metadata(assignment, key);
    match content {
        Content::Rules(rules) => Ready::Role(Role {
            metadata,
            rules: Some(rules.iter().map(policy_rule).collect()),
        }),
        Content::Binding { role, subjects } => {
            let role_ref = reference(role);
            let subjects = Some(subjects.iter().map(subject).collect());
            match key.kind {
                ObjectKind::ClusterRoleBinding => Ready::ClusterRoleBinding(ClusterRoleBinding {
                    metadata,
                    role_ref,
                    subjects,
                }),
                ObjectKind::Role | ObjectKind::RoleBinding => Ready::RoleBinding(RoleBinding {
                    metadata,
                    role_ref,
                    subjects,
                }),
            }
        }
    }
}

impl Roles {
    /// Roles behind this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn roles(&self, key: &Key) -> Api<Role> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    fn bindings(&self, key: &Key) -> Api<RoleBinding> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    fn cluster_bindings(&self) -> Api<ClusterRoleBinding> {
        Api::all(self.client.clone())
    }

    /// Makes an object that does not exist.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when the object exists, 403 when Claviger does not hold what the
    /// object would grant.
    pub async fn create(
        &self,
        assignment: &Assignment,
        key: &Key,
        content: &Content,
    ) -> kube::Result<Found> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match ready(assignment, key, content) {
            Ready::ClusterRoleBinding(object) => self
                .cluster_bindings()
                .create(&params, &object)
                .await
                .map(|made| made.found()),
            Ready::Role(object) => self
                .roles(key)
                .create(&params, &object)
                .await
                .map(|made| made.found()),
            Ready::RoleBinding(object) => self
                .bindings(key)
                .create(&params, &object)
                .await
                .map(|made| made.found()),
        }
    }

    /// Makes an object of ours, the one with this UID, say something else.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when it is another object by now, 403 when Claviger does not hold
    /// what the object would grant, 422 when the roleRef would change.
    pub async fn apply(
        &self,
        assignment: &Assignment,
        key: &Key,
        content: &Content,
        uid: &str,
    ) -> kube::Result<Found> {
        match ready(assignment, key, content) {
            Ready::ClusterRoleBinding(object) => {
                applied(&self.cluster_bindings(), object, uid).await
            }
            Ready::Role(object) => applied(&self.roles(key), object, uid).await,
            Ready::RoleBinding(object) => applied(&self.bindings(key), object, uid).await,
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// The apiserver's refusal; an absent object is `None`.
    pub async fn get(&self, key: &Key) -> kube::Result<Option<Found>> {
        Ok(match key.kind {
            ObjectKind::ClusterRoleBinding => self
                .cluster_bindings()
                .get_opt(&key.name)
                .await?
                .map(|object| object.found()),
            ObjectKind::Role => self
                .roles(key)
                .get_opt(&key.name)
                .await?
                .map(|object| object.found()),
            ObjectKind::RoleBinding => self
                .bindings(key)
                .get_opt(&key.name)
                .await?
                .map(|object| object.found()),
        })
    }

    /// Deletes the very object of this UID; answers what stands of it where somebody holds it back:
    /// Kubernetes heeds that as before.
    ///
    /// # Errors
    /// The apiserver's refusal; 404 when there is none, 409 when another has its name.
    pub async fn delete(&self, key: &Key, uid: &str) -> kube::Result<Option<Found>> {
        match key.kind {
            ObjectKind::ClusterRoleBinding => {
                deleted(&self.cluster_bindings(), &key.name, uid).await
            }
            ObjectKind::Role => deleted(&self.roles(key), &key.name, uid).await,
            ObjectKind::RoleBinding => deleted(&self.bindings(key), &key.name, uid).await,
        }
    }

    /// Makes the very object of this UID grant nothing to anybody, whatever else it says.
    ///
    /// # Errors
    /// The apiserver's refusal; 404 when there is none, 409 when another has its name, 403 of a
    /// binding when Claviger does not hold what its role permits.
    pub async fn empty(&self, key: &Key, uid: &str) -> kube::Result<Found> {
        let (name, label) = (&key.name, [(CONTENT_LABEL, CONTENT_ROLE)]);
        let label: std::collections::BTreeMap<_, _> = label.into();
        let metadata = json!({"uid": uid, "labels": label});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let unbound = Patch::Merge(json!({"metadata": metadata, "subjects": []}));
        match key.kind {
            ObjectKind::ClusterRoleBinding => self
                .cluster_bindings()
                .patch(name, &params, &unbound)
                .await
                .map(|object| object.found()),
            ObjectKind::Role => {
                let unruled = Patch::Merge(json!({"metadata": metadata, "rules": []}));
                let roles = self.roles(key);
                let emptied = roles.patch(name, &params, &unruled).await;
                emptied.map(|object| object.found())
            }
            ObjectKind::RoleBinding => self
                .bindings(key)
                .patch(name, &params, &unbound)
                .await
                .map(|object| object.found()),
        }
    }

    /// The bindings of every namespace with this digest in their label.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn list_bindings(&self, digest: &str) -> kube::Result<Vec<(Key, Found)>> {
        listed(&Api::<RoleBinding>::all(self.client.clone()), digest).await
    }

    /// The cluster's bindings with this digest in their label.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn list_cluster_bindings(&self, digest: &str) -> kube::Result<Vec<(Key, Found)>> {
        listed(&self.cluster_bindings(), digest).await
    }

    /// What a ClusterRole permits; `None` when there is none of this name.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn cluster_role(&self, name: &str) -> kube::Result<Option<Vec<Rule>>> {
        let role = Api::<ClusterRole>::all(self.client.clone())
            .get_opt(name)
            .await?;
        Ok(role.map(|role| rules(role.rules.as_deref())))
    }
}

async fn applied<K>(api: &Api<K>, mut object: K, uid: &str) -> kube::Result<Found>
where
    K: Kept + Serialize,
{
    object.meta_mut().uid = Some(uid.to_owned());
    let name = object.name_any();
    let mut patch = json!(object);
    patch["apiVersion"] = json!(K::api_version(&()));
    patch["kind"] = json!(K::kind(&()));
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(patch))
        .await
        .map(|object| object.found())
}

async fn deleted<K: Kept>(api: &Api<K>, name: &str, uid: &str) -> kube::Result<Option<Found>> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let answer = api.delete(name, &params).await?;
    // Of one that is gone the apiserver may answer the last state, too.
    Ok(answer
        .left()
        .filter(|object| !object.finalizers().is_empty())
        .map(|object| object.found()))
}

async fn listed<K: Kept>(api: &Api<K>, digest: &str) -> kube::Result<Vec<(Key, Found)>> {
    let params = ListParams::default().labels(&format!("{ASSIGNMENT_LABEL}={digest}"));
    Ok(api
        .list(&params)
        .await?
        .iter()
        .map(|object| (object.key(), object.found()))
        .collect())
}

/// Of a refusal to grant what Claviger does not hold itself: the rules that are missing, as the
/// apiserver lists them.
pub fn missing_rules(error: &kube::Error) -> Option<String> {
    let kube::Error::Api(status) = error else {
        return None;
    };
    let (_, rules) = status
        .message
        .split_once("is attempting to grant RBAC permissions not currently held:")?;
    // What follows the rules speaks of trouble in looking them up.
    let rules = rules.split("; resolution errors:").next().unwrap_or(rules);
    Some(rules.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::domain::ledger::Owner;

    fn assignment() -> Assignment {
        Assignment {
            namespace: "shop".to_owned(),
            owner: Owner {
                name: "web-reads".to_owned(),
                uid: "u1".to_owned(),
            },
            principal: Principal::User("anna".to_owned()),
            role: crate::domain::role::Role::Custom("x".to_owned()),
            scope: crate::domain::role::Scope::Namespace,
            starts: None,
            expires: None,
            deleting: false,
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was_meant() {
        let key = |kind, namespace: &str| Key {
            kind,
            namespace: namespace.to_owned(),
            name: "n".to_owned(),
        };
        let bound = Content::Binding {
            role: RoleRef::ClusterRole("x".to_owned()),
            subjects: vec![
                Principal::User("anna".to_owned()),
                Principal::Group("staff".to_owned()),
                Principal::ServiceAccount {
                    namespace: "front".to_owned(),
                    name: "web".to_owned(),
                },
            ],
        };
        let permitted = Content::Rules(crate::domain::role::BuiltIn::SecretVaultReader.rules());
        for (key, content, owned) in [
            (key(ObjectKind::RoleBinding, "shop"), &bound, true),
            (key(ObjectKind::RoleBinding, "front"), &bound, false),
            (key(ObjectKind::ClusterRoleBinding, ""), &bound, false),
            (key(ObjectKind::Role, "shop"), &permitted, true),
        ] {
            let (found, read) = match ready(&assignment(), &key, content) {
                Ready::ClusterRoleBinding(object) => (object.found(), object.key()),
                Ready::Role(object) => (object.found(), object.key()),
                Ready::RoleBinding(object) => (object.found(), object.key()),
            };
            assert_eq!(read, key);
            let observed = found.observed;
            assert_eq!(observed.content.as_ref(), Some(content));
            assert_eq!(observed.digest, assignment().digest());
            let named = Some(("shop".to_owned(), "web-reads".to_owned()));
            assert_eq!(observed.assignment, named);
            assert_eq!(observed.owners == ["u1"], owned, "{key}");
        }
    }

    #[test]
    fn who_wrote_last_is_told_unless_it_was_claviger() {
        let entry = |manager: &str, second| ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                jiff::Timestamp::from_second(second).unwrap(),
            )),
            ..ManagedFieldsEntry::default()
        };
        let ours = entry(FIELD_MANAGER, 9);
        assert_eq!(last_writer(std::slice::from_ref(&ours)), None);
        let all = [entry("kubectl-edit", 3), entry("argocd", 5), ours];
        assert_eq!(last_writer(&all).as_deref(), Some("argocd"));
    }

    #[test]
    fn of_a_refusal_the_missing_rules_are_told() {
        let refused = |message: &str| {
            missing_rules(&kube::Error::Api(
                Status::failure(message, "Forbidden").with_code(403).boxed(),
            ))
        };
        let message = "rolebindings.rbac.authorization.k8s.io \"x\" is forbidden: user \"c\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]}\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}";
        assert_eq!(
            refused(message).as_deref(),
            Some(
                "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\"]} {APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
            )
        );
        assert_eq!(refused("x is forbidden: User y cannot create"), None);
    }
}
