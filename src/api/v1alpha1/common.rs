//! What the kinds have in common: references within a namespace, rotation, restarts.
//!
//! `kubectl explain` shows of a field the words of its type, where the type has any, and those of the
//! field otherwise. Types that stand in one place leave theirs out of the schema, therefore
//! (`description = ""`): the field says more.
#![allow(
    unreachable_pub,
    reason = "the schema derive makes a private twin of each struct"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a value that you bring comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")]
pub struct ValueFrom {
    /// One entry of a Secret of this namespace. Who writes this field must be allowed to read
    /// Secrets there.
    pub secret_key_ref: SecretKeyRef,
}

/// One entry of a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("not a name that a Secret can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,
    /// The data key in it.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._A-Za-z0-9]+$')").message("not a key that a Secret can have: letters, digits, '-', '_' and '.'"))]
    pub key: String,
}

/// When and how a value turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.interval) || !has(self.overlap) || !self.interval.matches('^([0-9]{1,9}(h|m|s))+$') || !self.overlap.matches('^([0-9]{1,9}(h|m|s))+$') || duration(self.overlap) < duration(self.interval)").message("rotation.overlap must be shorter than rotation.interval: the previous value has to retire before the next turn")
)]
#[schemars(description = "")]
pub struct Rotation {
    /// How long a value is current before the next one takes its place, as in `720h`; at least
    /// `10s`. A turn comes up to a tenth earlier, at a moment of the resource's own, so that keys
    /// made together do not turn together. Left out: the key turns only when asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,9}(h|m|s))+$')").message("write a duration as in 720h, 90m or 30s. Days are not a unit: 30 days are 720h"),
        validation = Rule::new("!self.matches('^([0-9]{1,9}(h|m|s))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('87600h'))").message("rotation.interval must be between 10s and 87600h (ten years)")
    )]
    pub interval: Option<String>,
    /// How long the previous value stays valid once the last client has the new one, as in `24h`;
    /// shorter than the interval. Left out: 24 h, or half the interval if that is less. Lengthening
    /// it holds for the overlap that runs, shortening it from the next one on: only
    /// `revokeGeneration` cuts an overlap short. Not for a FunctionKey of scope `Master`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32))]
    #[x_kube(
        validation = Rule::new("self.matches('^([0-9]{1,9}(h|m|s))+$')").message("write a duration as in 24h, 90m or 0s. Days are not a unit: 2 days are 48h"),
        validation = Rule::new("!self.matches('^([0-9]{1,9}(h|m|s))+$') || duration(self) <= duration('87600h')").message("rotation.overlap must be at most 87600h (ten years)")
    )]
    pub overlap: Option<String>,
    /// Raise it to turn the value now, with overlap. Lowering it, as a reverted commit does, has no
    /// effect; nor has the value that the resource is created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub generation: Option<i64>,
    /// Raise it when a value has leaked: it turns now, nothing before it that Claviger holds stays
    /// valid, clients get the new value at once, and the workloads named for that are restarted
    /// (of a FunctionKey, `restartOnRevocation`). Lowering it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub revoke_generation: Option<i64>,
}

/// A workload of the same namespace.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, KubeSchema,
)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("not a name that a workload can have: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"))]
    pub name: String,
}

/// The kinds of workload that can be restarted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum WorkloadKind {
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
}

/// A workload that was restarted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
    /// When.
    // Not to the second: a value may change right after a restart and must make another.
    pub at: MicroTime,
}
