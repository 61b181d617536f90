//! `RoleAssignment`: who may do what, where, and until when.
#![allow(
    unreachable_pub,
    reason = "the schema derive makes a private twin of each struct"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "columns are alike but for their names"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may do what with vaults, keys and token providers, where, and until when. It becomes ordinary
/// Roles and RoleBindings, so `kubectl auth can-i` tells the truth.
///
/// Who writes one must be allowed to grant that role there: by `bind` on its ClusterRole, or, of a
/// built-in role, by holding its permissions.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "claviger.dev",
    version = "v1alpha1",
    kind = "RoleAssignment",
    plural = "roleassignments",
    shortname = "ra",
    category = "claviger",
    namespaced,
    status = "RoleAssignmentStatus",
    derive = "PartialEq",
    doc = "Who may do what with vaults, keys and token providers, where, and until when. It becomes ordinary Roles and RoleBindings, so `kubectl auth can-i` tells the truth. Who writes one must be allowed to grant that role there. Beyond its own namespace it reaches only from Claviger's own namespace.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Principal",
        type_ = "string",
        json_path = ".status.effective.principal"
    ),
    printcolumn(name = "Role", type_ = "string", json_path = ".status.effective.role"),
    printcolumn(
        name = "Scope",
        type_ = "string",
        json_path = ".status.effective.scope"
    ),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(
        name = "Namespaces",
        type_ = "integer",
        json_path = ".status.effective.namespaces",
        priority = "1"
    ),
    printcolumn(
        name = "Bindings",
        type_ = "integer",
        json_path = ".status.effective.bindings",
        priority = "1"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.startsAt) || !has(self.expiresAt) || self.startsAt < self.expiresAt").message("startsAt must lie before expiresAt: as written, the access would never begin"),
    validation = Rule::new("!has(self.scope.resource) || !has(self.role.builtIn) || self.scope.resource.kind == (self.role.builtIn.startsWith('SecretVault') ? 'SecretVault' : self.role.builtIn.startsWith('FunctionKey') ? 'FunctionKey' : 'TokenProvider')").message("role.builtIn says nothing of the kind in scope.resource: SecretVault… roles are for a SecretVault, FunctionKey… roles for a FunctionKey, TokenProvider… and WebPubSub… roles for a TokenProvider. Choose another role or another resource")
)]
pub struct RoleAssignmentSpec {
    /// Who gets the role.
    pub principal: Principal,

    /// What they may do. It can be changed: the new role is granted before the old one is taken away.
    pub role: RoleChoice,

    /// Where they may do it: in exactly one of `resource`, `namespace`, `namespaces` and `cluster`.
    pub scope: AssignmentScope,

    /// From when on (RFC 3339, as in `2026-12-01T08:00:00Z`). Left out: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"))]
    pub starts_at: Option<Time>,

    /// Until when (RFC 3339, as in `2026-12-24T00:00:00Z`). Then the access ends by itself. Values
    /// that were read and tokens that were issued until then are not called back; an event says so.
    /// Left out: until the RoleAssignment is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"))]
    pub expires_at: Option<Time>,
}

/// Who gets a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.kind == 'ServiceAccount' || !has(self.namespace)").message("principal.namespace is for a ServiceAccount only: users and groups belong to no namespace. Leave it out"),
    validation = Rule::new("self.kind != 'ServiceAccount' || (self.name.size() <= 253 && self.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))").message("not a name that a ServiceAccount can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit. Its namespace goes into principal.namespace"),
    validation = Rule::new("self.kind != 'User' || !self.name.startsWith('system:serviceaccount:')").message("write a ServiceAccount as kind: ServiceAccount with its name and namespace, not as a User"),
    validation = Rule::new("!(self.name in ['system:anonymous', 'system:unauthenticated'])").message("no role for callers who have not said who they are: no door of Claviger lets them in. Name a ServiceAccount, User or Group")
)]
#[schemars(description = "")]
pub struct Principal {
    /// What it is. `ServiceAccount`: what a pod runs as. `User`, `Group`: people, as the cluster's
    /// authentication calls them.
    pub kind: PrincipalKind,
    /// Its name.
    #[schemars(length(min = 1, max = 512))]
    pub name: String,
    /// Of a ServiceAccount: its namespace. Left out: that of this RoleAssignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("not a name that a namespace can have: lower-case letters, digits and '-', beginning and ending with a letter or digit"))]
    pub namespace: Option<String>,
}

/// Kinds of principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum PrincipalKind {
    /// A group of users.
    Group,
    /// What a pod runs as.
    ServiceAccount,
    /// A person.
    User,
}

/// What may be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.builtIn) != has(self.clusterRole)").message("name exactly one of role.builtIn and role.clusterRole")
)]
#[schemars(description = "")]
pub struct RoleChoice {
    /// A role that Claviger brings along; the README has the table of what each may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in: Option<BuiltInRole>,
    /// A ClusterRole of your own. It may permit what can be done with Claviger's kinds, as the
    /// built-in roles do, and nothing else. For a single resource what it says of that resource is
    /// granted, and nothing else of it. Changes of the ClusterRole are followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("!self.contains('/') && !self.contains('%') && self != '.' && self != '..'").message("not a name that a ClusterRole can have: no '/' and no '%'"))]
    pub cluster_role: Option<String>,
}

/// The roles that Claviger brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum BuiltInRole {
    /// Reads keys and their values.
    FunctionKeyReader,
    /// Reads, makes, turns and removes keys.
    FunctionKeyOperator,
    /// Does everything with secrets, purging included.
    SecretVaultAdministrator,
    /// Sees which secrets there are, but no value.
    SecretVaultReader,
    /// Does everything with secrets but purge them.
    SecretVaultSecretsOfficer,
    /// Reads secrets.
    SecretVaultSecretsUser,
    /// Has tokens issued.
    TokenProviderIssuer,
    /// Has tokens issued, sees and revokes them.
    TokenProviderOperator,
    /// Does everything that a Web PubSub service offers.
    WebPubSubServiceOwner,
    /// Reads what a Web PubSub service tells.
    WebPubSubServiceReader,
}

/// Where something may be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.resource), has(self.namespace), has(self.namespaces), has(self.cluster)].filter(is, is).size() == 1").message("say where by exactly one of scope.resource, scope.namespace, scope.namespaces and scope.cluster (namespace: {} is the whole namespace of this RoleAssignment)")
)]
#[schemars(description = "")]
pub struct AssignmentScope {
    /// One resource of this namespace. It need not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<ScopeResource>,
    /// Everything in this namespace: write `namespace: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<OwnNamespace>,
    /// Several namespaces, by name or by label. Only from Claviger's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<ScopeNamespaces>,
    /// Every namespace, those to come included: write `cluster: {}`. Only from Claviger's own
    /// namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<WholeCluster>,
}

/// The namespace of the assignment; there is nothing to say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub struct OwnNamespace {}

/// The cluster; there is nothing to say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub struct WholeCluster {}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct ScopeResource {
    /// Its kind.
    pub kind: ScopeKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("not a name that a resource can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,
}

/// Kinds of resource that a role can be narrowed to one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum ScopeKind {
    /// A key of a function app.
    FunctionKey,
    /// A store of secrets.
    SecretVault,
    /// What issues tokens.
    TokenProvider,
}

/// Several namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.names) != has(self.selector)").message("choose the namespaces by exactly one of namespaces.names and namespaces.selector")
)]
#[schemars(description = "")]
pub struct ScopeNamespaces {
    /// By name, at most 500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500), extend("x-kubernetes-list-type" = "set", "items" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(name, name.size() <= 63 && name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))").message("not names that namespaces can have: lower-case letters, digits and '-', beginning and ending with a letter or digit; no wildcards"))]
    pub names: Option<Vec<String>>,
    /// By label; followed live. Whoever may label a namespace decides whether it is among them:
    /// `kubernetes.io/metadata.name` is the
    /// one label that nobody can change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,
}

/// Which labels a namespace must have: all of what is said here must be so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.?matchLabels.orValue({}).size() + self.?matchExpressions.orValue([]).size() > 0").message("an empty selector would choose every namespace: if that is what you mean, write scope.cluster instead")
)]
#[schemars(description = "")]
pub struct NamespaceSelector {
    /// Labels with these values, at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(name, name.size() <= 317 && name.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$') && self[name].size() <= 63 && self[name].matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))").message("not labels that a namespace can have: letters, digits, '-', '_' and '.', the name with a prefix and a slash before it if you like"))]
    pub match_labels: Option<BTreeMap<String, String>>,
    /// Labels of which something else is asked, at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub match_expressions: Option<Vec<LabelRequirement>>,
}

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.operator in ['In', 'NotIn']) == (self.?values.orValue([]).size() > 0)").message("In and NotIn need values, Exists and DoesNotExist take none")
)]
pub struct LabelRequirement {
    /// The label's name.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')").message("not a name that a label can have: letters, digits, '-', '_' and '.', with a prefix and a slash before it if you like"))]
    pub key: String,
    /// `In`: its value is one of these. `NotIn`: it is none of these, or the label is not there.
    /// `Exists`: the label is there. `DoesNotExist`: it is not.
    pub operator: LabelOperator,
    /// The values, at most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("items" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(value, value.size() <= 63 && value.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$'))").message("not values that a label can have: at most 63 letters, digits, '-', '_' and '.'"))]
    pub values: Option<Vec<String>>,
}

/// What can be asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum LabelOperator {
    /// It is not there.
    DoesNotExist,
    /// It is there.
    Exists,
    /// Its value is one of these.
    In,
    /// Its value is none of these.
    NotIn,
}

/// What Claviger reports of an assignment. It is derived and may be lost without harm: the truth
/// stands in the Roles and bindings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleAssignmentStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: whoever is named has exactly the access that is declared. `Reconciling`: it is being
    /// brought about. `Stalled`: nothing more will happen until somebody changes something; the
    /// message says what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What the assignment comes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<EffectiveAccess>,
}

/// What an assignment comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct EffectiveAccess {
    /// `Pending`: it has not begun. `Active`: the access is granted. `Expired`: it has ended.
    /// `Refused`: it is not granted; the condition says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AccessState>,
    /// Who has it, as in `ServiceAccount front/web`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The role's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Where, as in `SecretVault/payments` or `namespaces tier=front`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// In how many namespaces there is a RoleBinding; with scope `cluster`, none: one
    /// ClusterRoleBinding reaches them all.
    #[schemars(range(min = 0))]
    pub namespaces: i64,
    /// How many bindings there are.
    #[schemars(range(min = 0))]
    pub bindings: i64,
    /// How many Roles were made for it.
    #[schemars(range(min = 0))]
    pub roles: i64,
    /// The Roles and bindings, as `kind namespace/name`; the first ten where there are more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<String>,
    /// When it begins or ends next by itself (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
}

/// Where an assignment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum AccessState {
    /// The access is granted.
    Active,
    /// It has ended.
    Expired,
    /// It has not begun.
    Pending,
    /// It is not granted.
    Refused,
}
