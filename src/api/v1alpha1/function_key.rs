//! `FunctionKey`: one key of one function app.
#![allow(
    unreachable_pub,
    reason = "the schema derive makes a private twin of each struct"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "columns are alike but for their names"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Restart, Rotation, SecretKeyRef, ValueFrom, WorkloadRef};
use crate::domain::ledger::{DeletionPolicy as LedgerDeletionPolicy, Origin as LedgerOrigin};

/// One access key of one Azure Functions app. Claviger mints its value, keeps it in the Secret from
/// which the app's Functions host reads its keys, turns it with an overlap in which the old value
/// and the new one both work, and hands the current value to the Secrets of the key's clients.
///
/// The value itself never appears in this resource. Deleting the resource removes the key from the
/// store (see `deletionPolicy`).
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "claviger.dev",
    version = "v1alpha1",
    kind = "FunctionKey",
    plural = "functionkeys",
    shortname = "fkey",
    category = "claviger",
    namespaced,
    status = "FunctionKeyStatus",
    derive = "PartialEq",
    doc = "One access key of one Azure Functions app: minted, kept where the app's host reads it, turned with an overlap, and handed to its clients. The value itself never appears here. Deleting the resource removes the key from its store (see spec.deletionPolicy).",
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
    printcolumn(name = "Entry", type_ = "string", json_path = ".status.entry"),
    printcolumn(
        name = "Generation",
        type_ = "integer",
        json_path = ".status.rotation.generation"
    ),
    printcolumn(
        name = "Key-Age",
        type_ = "date",
        json_path = ".status.rotation.mintedAt"
    ),
    printcolumn(
        name = "Next-Turn",
        type_ = "string",
        json_path = ".status.rotation.nextAt"
    ),
    printcolumn(
        name = "Previous-Until",
        type_ = "string",
        json_path = ".status.rotation.previousUntil"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.rotation.phase",
        priority = "1"
    ),
    printcolumn(
        name = "Store",
        type_ = "string",
        json_path = ".status.store",
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
    validation = Rule::new("self.storage == oldSelf.storage").message("storage cannot be changed: clients would lose the key. Create another FunctionKey for the other store and delete this one once nobody uses its value"),
    validation = Rule::new("self.scope == oldSelf.scope").message("scope cannot be changed. Create another FunctionKey and delete this one once nobody uses its value"),
    validation = Rule::new("has(self.functionName) == has(oldSelf.functionName) && (!has(self.functionName) || self.functionName == oldSelf.functionName)").message("functionName cannot be changed. Create another FunctionKey and delete this one once nobody uses its value"),
    validation = Rule::new("has(self.keyName) == has(oldSelf.keyName) && (!has(self.keyName) || self.keyName == oldSelf.keyName)").message("keyName cannot be changed. Create another FunctionKey and delete this one once nobody uses its value"),
    validation = Rule::new("self.scope != 'Function' || has(self.functionName)").message("functionName is required when scope is Function: name the function that the key opens"),
    validation = Rule::new("self.scope == 'Function' || !has(self.functionName)").message("functionName is for scope Function only; a key of scope Host opens every function of the app"),
    validation = Rule::new("self.scope != 'Master' || !has(self.keyName)").message("keyName is not for scope Master: an app has one master key and its name is fixed"),
    validation = Rule::new("self.scope != 'System' || has(self.keyName)").message("keyName is required when scope is System: the host looks a system key up by name, for example durabletask_extension"),
    validation = Rule::new("self.scope != 'System' || !has(self.valueFrom)").message("valueFrom is not for scope System: the values of system keys cannot be chosen; leave it out and Claviger mints one"),
    validation = Rule::new("self.scope != 'Master' || !has(self.rotation) || !has(self.rotation.overlap)").message("rotation.overlap is not for scope Master: the host takes any entry that begins with host.master for the master key, so two cannot stand side by side"),
    validation = Rule::new("!has(self.valueFrom) || !has(self.rotation) || !has(self.rotation.interval)").message("rotation.interval is not for a key with valueFrom: it turns when its source changes. Leave out one of the two"),
    validation = Rule::new("!has(self.valueFrom) || !has(self.rotation) || !has(self.rotation.generation)").message("rotation.generation is not for a key with valueFrom: change the value in the source instead"),
    validation = Rule::new("!has(self.valueFrom) || !has(self.drift) || self.drift == 'Enforce'").message("drift: Adopt is not for a key with valueFrom: its value is the source's. Use Enforce, or leave drift out"),
    validation = Rule::new("!has(self.valueFrom) || !has(self.storage.secret) || self.valueFrom.secretKeyRef.name != self.storage.secret.name").message("valueFrom.secretKeyRef must name another Secret than storage.secret: the Functions host drops entries that it does not know from its own"),
    validation = Rule::new("!has(self.distributeTo) || !has(self.storage.secret) || self.distributeTo.all(target, target.secretRef.name != self.storage.secret.name)").message("distributeTo must name other Secrets than storage.secret: the Functions host drops entries that it does not know from its own"),
    validation = Rule::new("!has(self.distributeTo) || !has(self.valueFrom) || self.distributeTo.all(target, target.secretRef.name != self.valueFrom.secretKeyRef.name || target.secretRef.key != self.valueFrom.secretKeyRef.key)").message("distributeTo must not name the entry that valueFrom reads"),
    validation = Rule::new("!has(self.distributeTo) || self.distributeTo.all(target, self.distributeTo.exists_one(other, other.secretRef.name == target.secretRef.name && other.secretRef.key == target.secretRef.key))").message("distributeTo names the same entry twice: list each Secret and key once, with all its restarts")
)]
pub struct FunctionKeySpec {
    /// The object from which the app's Functions host reads its keys
    /// (`AzureWebJobsKubernetesSecretName`), in this namespace. It is created when it is missing;
    /// many FunctionKeys share one. Cannot be changed.
    pub storage: Storage,

    /// What the key opens. `Function`: one function (name it in `functionName`). `Host`: every
    /// function of the app. `Master`: everything, the admin API under `/admin/` included; an app
    /// has exactly one. `System`: the webhook of one extension. Cannot be changed.
    pub scope: Scope,

    /// The function that a key of scope `Function` opens, as the app spells it. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z][A-Za-z0-9_-]*$')").message("functionName must begin with a letter and hold letters, digits, - and _ only"))]
    pub function_name: Option<String>,

    /// The key's name; `default` when left out. Compared without case, as the host does. For scope
    /// `System` required: the host looks for `<extension>_extension`. Not for scope `Master`.
    /// Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 95))]
    #[x_kube(
        validation = Rule::new("self.matches('^[-._A-Za-z0-9]+$')").message("keyName may hold letters, digits, '-', '_' and '.' only: it becomes part of a data key of the Secret"),
        validation = Rule::new("!self.lowerAscii().matches('[.]previous-[0-9]+$')").message("keyName must not end in .previous-<number>: previous values are kept under such names"),
        validation = Rule::new("self.lowerAscii() != '_master'").message("keyName _master is the host's name for the master key: use scope: Master")
    )]
    pub key_name: Option<String>,

    /// Bring your own value instead of a minted one. The key follows its source: a changed value
    /// there is a turn of the key, with overlap. Not for scope `System`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,

    /// When and how the key turns. Without it the key never turns by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,

    /// What to do when the Functions host or a person renewed the key in the store. `Adopt` (what
    /// happens when left out): the new value is taken over and handed to the clients. `Enforce`:
    /// the value before is put back. An entry that was dropped is put back in both cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<DriftPolicy>,

    /// Secrets of this namespace into which the current value is copied for clients. A turn changes
    /// them once every host has surely seen the new value, and the overlap counts from then on.
    /// Removing a target from the list removes its copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub distribute_to: Option<Vec<DistributionTarget>>,

    /// Workloads of this namespace that run the app. They are restarted when a value of this key is
    /// revoked, because a running host goes on accepting a value it has seen used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub restart_on_revocation: Option<Vec<WorkloadRef>>,

    /// What becomes of the key's entries in the store and of its copies when this resource is
    /// deleted. `Delete` (what happens when left out): they are removed and the key stops working.
    /// `Retain`: they stay, no longer managed. Deleting the custom resource definition itself
    /// removes no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,

    /// `true` leaves everything of this key as it is: no turn, no repair, no distribution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// Where the app's keys are kept: exactly one of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.secret) ? 1 : 0) + (has(self.configMap) ? 1 : 0) == 1").message("name exactly one store: storage.secret or storage.configMap"))]
#[schemars(description = "")]
pub struct Storage {
    /// A Secret: what `AzureWebJobsKubernetesSecretName: secrets/<name>` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<StorageSecret>,
    /// A ConfigMap: what `AzureWebJobsKubernetesSecretName: configmaps/<name>` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<StorageConfigMap>,
}

/// A Secret that holds an app's keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct StorageSecret {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("not a name that a Secret can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit (the bare name, without secrets/ before it)"))]
    pub name: String,
}

/// A `ConfigMap` that holds an app's keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.allowInsecure) && self.allowInsecure").message("a ConfigMap is no place for keys: the built-in view role reads it, and it is not encrypted at rest. Use storage.secret, or say allowInsecure: true"))]
#[schemars(description = "")]
pub struct StorageConfigMap {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("not a name that a ConfigMap can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit (the bare name, without configmaps/ before it)"))]
    pub name: String,
    /// Says that you know that everyone with the built-in `view` role can read the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_insecure: Option<bool>,
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum Scope {
    /// One function.
    Function,
    /// Every function of the app.
    Host,
    /// Everything, the admin API included.
    Master,
    /// The webhook of one extension.
    System,
}

/// What to do when a value was renewed in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum DriftPolicy {
    /// Take the new value over.
    Adopt,
    /// Put the value before back.
    Enforce,
}

/// A client's copy of the value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DistributionTarget {
    /// The entry to write. The Secret is created when it is missing; an entry that is already there
    /// and is not ours is not touched. Who writes this field must be allowed to create and patch
    /// Secrets there.
    pub secret_ref: SecretKeyRef,
    /// Workloads of this namespace to restart once the copy has changed; several changes make one
    /// restart. A first copy restarts nobody. Who writes this field must be allowed to patch them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub restart: Option<Vec<WorkloadRef>>,
}

/// What a deletion of the resource does to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum DeletionPolicy {
    /// They are removed.
    Delete,
    /// They stay, no longer managed.
    Retain,
}

/// What Claviger reports of a key. It is derived and may be lost without harm: the truth stands
/// beside the values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FunctionKeyStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the key is published, and every client has what it should have by now.
    /// `Reconciling`: something is being brought about. `Stalled`: nothing more will happen until
    /// somebody changes something; the message says what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The object that holds the key, as `Secret/<name>` or `ConfigMap/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The data key under which the current value stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Where the current value came from: `Minted`, `Adopted` or `Supplied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Where the key stands in its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationStatus>,
    /// What holds where the spec says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Effective>,
    /// Workloads that were restarted for this key, and when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarts: Vec<Restart>,
}

/// Where the current value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum Origin {
    /// It was there before, or somebody renewed it.
    Adopted,
    /// Claviger made it.
    Minted,
    /// It follows `valueFrom`.
    Supplied,
}

/// Where a key stands in its life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct RotationStatus {
    /// Counts the values the key has had, from 1.
    #[schemars(range(min = 1))]
    pub generation: i64,
    /// `Stable`: one value. `Waiting`: a new value is published, hosts may not have seen it yet.
    /// `Distributing`: clients are getting it. `Overlap`: clients have it, the previous one still
    /// works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Since when the current value is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minted_at: Option<Time>,
    /// When the key turns next by its schedule (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
    /// Since when every client has the current value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distributed_at: Option<Time>,
    /// When the last of the previous values stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_until: Option<Time>,
    /// When a value was last revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// Values that are no longer current but still work, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<PreviousStatus>,
}

/// The phases of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(description = "")]
pub enum Phase {
    /// Clients are getting the new value.
    Distributing,
    /// Clients have the new value, the previous one still works.
    Overlap,
    /// One value.
    Stable,
    /// Hosts may not have seen the new value yet.
    Waiting,
}

/// A value that still works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreviousStatus {
    /// Its generation.
    #[schemars(range(min = 1))]
    pub generation: i64,
    /// The data key under which it stands.
    pub entry: String,
    /// When it stops working; absent until every client has its successor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retires_at: Option<Time>,
}

/// What holds where the spec says nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct Effective {
    /// The overlap in force for the next turn.
    pub overlap: String,
    /// What happens to a value renewed in the store.
    pub drift: DriftPolicy,
    /// What a deletion of the resource does.
    pub deletion_policy: DeletionPolicy,
}

impl From<DeletionPolicy> for LedgerDeletionPolicy {
    fn from(policy: DeletionPolicy) -> Self {
        match policy {
            DeletionPolicy::Delete => Self::Delete,
            DeletionPolicy::Retain => Self::Retain,
        }
    }
}

impl From<LedgerOrigin> for Origin {
    fn from(origin: LedgerOrigin) -> Self {
        match origin {
            LedgerOrigin::Adopted => Self::Adopted,
            LedgerOrigin::Minted => Self::Minted,
            LedgerOrigin::Supplied => Self::Supplied,
        }
    }
}
