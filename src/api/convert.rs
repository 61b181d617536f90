//! From what a user wrote to what the domain decides on: the only place where a spec is read.

pub mod role;
pub mod vault;

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt, core::Duration};
use snafu::{OptionExt, ResultExt, Snafu};

use crate::{
    api::{
        REVOKE_AT_ANNOTATION, ROTATE_AT_ANNOTATION,
        v1alpha1::{
            DriftPolicy, FunctionKey, FunctionKeySpec, FunctionKeyStatus, Rotation, Scope,
            SecretKeyRef, WorkloadRef,
        },
    },
    domain::{
        layout::KeyRef,
        ledger::{DeletionPolicy, Owner},
        plan::Drift,
        rotation::{Policy, Triggers},
    },
};

/// The name of a key whose manifest names none.
const DEFAULT_KEY_NAME: &str = "default";

/// A kind of object that can hold an app's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StoreKind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Secret.
    Secret,
}

/// An app's key store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreRef {
    /// Its namespace.
    pub namespace: String,
    /// Its kind.
    pub kind: StoreKind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for StoreRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name(), self.name)
    }
}

impl StoreKind {
    /// The kind as manifests spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// A workload that is restarted, in the namespace of the resource that names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its kind and name.
    pub workload: WorkloadRef,
}

/// A client's entry, in the namespace of the resource that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The Secret's name.
    pub secret: String,
    /// The data key.
    pub entry: String,
    /// Who reads it.
    pub restart: Vec<WorkloadRef>,
}

/// A `FunctionKey`, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Declaration {
    /// Its namespace.
    pub namespace: String,
    /// Its name and UID.
    pub owner: Owner,
    /// When it was created.
    pub created: Timestamp,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Where its key is kept.
    pub store: StoreRef,
    /// Its key.
    pub key: KeyRef,
    /// How it turns.
    pub policy: Policy,
    /// What it asks for.
    pub triggers: Triggers,
    /// Annotations that ask for something unreadable.
    pub unreadable_triggers: Vec<&'static str>,
    /// The entry it follows.
    pub source: Option<SecretKeyRef>,
    /// What to do with values that others wrote.
    pub drift: Drift,
    /// What a deletion does.
    pub deletion: DeletionPolicy,
    /// Whether it is to be left alone.
    pub suspended: bool,
    /// Its clients.
    pub targets: Vec<Target>,
    /// Workloads of the app itself.
    pub restart_on_revocation: Vec<WorkloadRef>,
    /// What was reported of it last.
    pub status: FunctionKeyStatus,
}

/// A spec says what the schema should have refused.
#[derive(Debug, Snafu)]
#[snafu(visibility(pub))]
pub enum Invalid {
    /// A duration is not one.
    #[snafu(display("spec.rotation.{field} is not a duration: write it as in 720h, 90m or 30s"))]
    Duration {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: kube::core::duration::ParseError,
    },
    /// A required field is missing.
    #[snafu(display("{field} is missing"))]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// The overlap does not end before the next turn.
    #[snafu(display("spec.rotation.overlap must be shorter than spec.rotation.interval"))]
    Overlap,
}

impl Declaration {
    /// Reads a `FunctionKey` as the apiserver gave it.
    ///
    /// # Errors
    /// [`Invalid`] for an object that an older schema let through.
    pub fn read(object: FunctionKey) -> Result<Self, Invalid> {
        let namespace = object.namespace().context(MissingSnafu {
            field: "metadata.namespace",
        })?;
        let uid = object.uid().context(MissingSnafu {
            field: "metadata.uid",
        })?;
        let (triggers, unreadable_triggers) = triggers(&object);
        let key = key_ref(&object.spec)?;
        let policy = policy(object.spec.rotation.as_ref(), &key)?;
        let store = store_ref(&namespace, &object.spec)?;
        let created = object
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let supplied = object.spec.value_from.is_some();
        let owner = Owner {
            name: object.name_any(),
            uid,
        };
        let spec = object.spec;
        Ok(Self {
            namespace,
            owner,
            created,
            generation: object.metadata.generation,
            store,
            key,
            policy,
            triggers,
            unreadable_triggers,
            source: spec.value_from.map(|from| from.secret_key_ref),
            drift: match spec.drift {
                Some(DriftPolicy::Enforce) => Drift::Enforce,
                None if supplied => Drift::Enforce,
                Some(DriftPolicy::Adopt) | None => Drift::Adopt,
            },
            deletion: spec
                .deletion_policy
                .map(DeletionPolicy::from)
                .unwrap_or_default(),
            suspended: spec.suspend.unwrap_or_default(),
            targets: spec
                .distribute_to
                .unwrap_or_default()
                .into_iter()
                .map(|target| Target {
                    secret: target.secret_ref.name,
                    entry: target.secret_ref.key,
                    restart: target.restart.unwrap_or_default(),
                })
                .collect(),
            restart_on_revocation: spec.restart_on_revocation.unwrap_or_default(),
            status: object.status.unwrap_or_default(),
        })
    }

    /// Every workload that the resource restarts.
    pub fn workloads(&self) -> impl Iterator<Item = &WorkloadRef> {
        self.targets
            .iter()
            .flat_map(|target| &target.restart)
            .chain(&self.restart_on_revocation)
    }
}

fn key_ref(spec: &FunctionKeySpec) -> Result<KeyRef, Invalid> {
    let key = spec
        .key_name
        .clone()
        .unwrap_or_else(|| DEFAULT_KEY_NAME.to_owned());
    Ok(match spec.scope {
        Scope::Function => KeyRef::Function {
            function: spec.function_name.clone().context(MissingSnafu {
                field: "spec.functionName",
            })?,
            key,
        },
        Scope::Host => KeyRef::Host { key },
        Scope::Master => KeyRef::Master,
        Scope::System => KeyRef::System { key },
    })
}

fn store_ref(namespace: &str, spec: &FunctionKeySpec) -> Result<StoreRef, Invalid> {
    let (kind, name) = match (&spec.storage.secret, &spec.storage.config_map) {
        (Some(secret), _) => (StoreKind::Secret, &secret.name),
        (None, Some(config_map)) => (StoreKind::ConfigMap, &config_map.name),
        (None, None) => {
            return MissingSnafu {
                field: "spec.storage.secret",
            }
            .fail();
        }
    };
    Ok(StoreRef {
        namespace: namespace.to_owned(),
        kind,
        name: name.clone(),
    })
}

fn policy(rotation: Option<&Rotation>, key: &KeyRef) -> Result<Policy, Invalid> {
    let parse = |field, text: Option<&String>| match text {
        Some(text) => duration(text).context(DurationSnafu { field }).map(Some),
        None => Ok(None),
    };
    let interval = parse(
        "interval",
        rotation.and_then(|rotation| rotation.interval.as_ref()),
    )?;
    let overlap = parse(
        "overlap",
        rotation.and_then(|rotation| rotation.overlap.as_ref()),
    )?;
    if !key.can_overlap() {
        return Ok(Policy {
            interval,
            overlap: SignedDuration::ZERO,
        });
    }
    if let (Some(interval), Some(overlap)) = (interval, overlap) {
        snafu::ensure!(overlap < interval, OverlapSnafu);
    }
    Ok(Policy::effective(interval, overlap))
}

pub(crate) fn duration(text: &str) -> Result<SignedDuration, kube::core::duration::ParseError> {
    let duration: std::time::Duration = text.parse::<Duration>()?.into();
    Ok(SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX))
}

fn triggers(object: &FunctionKey) -> (Triggers, Vec<&'static str>) {
    let mut unreadable = Vec::new();
    let mut at = |name: &'static str| {
        let text = object.annotations().get(name)?;
        let parsed = text.parse::<Timestamp>().ok();
        if parsed.is_none() {
            unreadable.push(name);
        }
        parsed
    };
    let (rotate_at, revoke_at) = (at(ROTATE_AT_ANNOTATION), at(REVOKE_AT_ANNOTATION));
    let rotation = object.spec.rotation.as_ref();
    let triggers = Triggers {
        generation: rotation
            .and_then(|rotation| rotation.generation)
            .unwrap_or_default(),
        revoke_generation: rotation
            .and_then(|rotation| rotation.revoke_generation)
            .unwrap_or_default(),
        rotate_at,
        revoke_at,
    };
    (triggers, unreadable)
}

/// A duration as manifests write it: hours, minutes and seconds.
pub fn render_duration(span: SignedDuration) -> String {
    let total = span.as_secs().max(0);
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    let mut text = String::new();
    for (count, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
        if count > 0 {
            text.push_str(&count.to_string());
            text.push(unit);
        }
    }
    if text.is_empty() {
        "0s".to_owned()
    } else {
        text
    }
}
