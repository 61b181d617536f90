//! From a `SecretVault` to what the domain decides on.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use snafu::{OptionExt, ResultExt, Snafu};

use super::{Workload, duration};
use crate::{
    api::{
        PURGE_SECRETS_ANNOTATION, RECOVER_SECRETS_ANNOTATION, REVOKE_SECRETS_ANNOTATION,
        ROTATE_AT_ANNOTATION, ROTATE_SECRETS_ANNOTATION, VAULT_FINALIZER,
        v1alpha1::{
            self, CreationPolicy, Rotation, SecretKeyRef, SecretVault, SecretVaultStatus,
            SyncVersion, TargetType, VaultDeletionPolicy, WorkloadRef,
        },
    },
    domain::{
        ledger::Owner,
        rotation::{Policy, Triggers},
        vault::{
            generate::{Alphabet, Recipe},
            name::SecretName,
            part::Part,
            plan::{Asked, Keep, Shape},
            ring::Wish,
        },
    },
};

/// How long a deleted secret can be recovered when the manifest does not say: 90 days.
const DEFAULT_RETENTION: SignedDuration = SignedDuration::from_hours(2160);
/// How long a certificate is valid when the manifest does not say: a year.
const DEFAULT_VALIDITY: SignedDuration = SignedDuration::from_hours(8760);

/// How a value is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Making {
    /// It is an entry of a Secret.
    From(SecretKeyRef),
    /// Random characters.
    Random(Recipe),
    /// An SSH key pair with this comment.
    Ssh(String),
    /// A key and a certificate that it signs itself.
    Tls {
        /// The subject's common name.
        common_name: String,
        /// The host names.
        dns_names: Vec<String>,
        /// How long it is valid.
        validity: SignedDuration,
    },
}

/// A secret that the manifest declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredSecret {
    /// Its name.
    pub name: SecretName,
    /// How its values are made.
    pub making: Making,
    /// When it turns.
    pub policy: Policy,
    /// What turns it out of turn.
    pub triggers: Triggers,
    /// What is kept of it.
    pub keep: Keep,
    /// Its attributes.
    pub shape: Shape,
}

impl DeclaredSecret {
    /// Which Secret and entry it follows, as `name/key`, if it does.
    pub fn origin(&self) -> Option<String> {
        match &self.making {
            Making::From(source) => Some(format!("{}/{}", source.name, source.key)),
            Making::Random(_) | Making::Ssh(_) | Making::Tls { .. } => None,
        }
    }
}

/// What stands under a key of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A value, or a part of it.
    Secret {
        /// The secret.
        name: SecretName,
        /// Whether it is the value before that is meant.
        previous: bool,
        /// Which part.
        part: Part,
    },
    /// Text with values put in.
    Template(String),
}

/// A Secret that is kept filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name, or what its names begin with.
    pub name: String,
    /// Its type; `None` for one that is somebody else's.
    pub type_: Option<&'static str>,
    /// Whether every content is a Secret of its own.
    pub immutable: bool,
    /// Whether it is somebody else's.
    pub merge: bool,
    /// Labels to put on it.
    pub labels: BTreeMap<String, String>,
    /// Annotations to put on it.
    pub annotations: BTreeMap<String, String>,
    /// Its entries, by key.
    pub entries: BTreeMap<String, Content>,
    /// Workloads that read it.
    pub restart: Vec<WorkloadRef>,
}

/// A `SecretVault`, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Vault {
    /// Its namespace.
    pub namespace: String,
    /// Its name and UID.
    pub owner: Owner,
    /// When it was created.
    pub created: Timestamp,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Finalizers it carries.
    pub finalizers: Vec<String>,
    /// What becomes of the ring.
    pub ring: Wish,
    /// How long a deleted secret can be recovered.
    pub retention: SignedDuration,
    /// Secrets that it declares.
    pub secrets: Vec<DeclaredSecret>,
    /// What is asked of deleted secrets, by folded name.
    pub asked: BTreeMap<String, Asked>,
    /// Secrets that it keeps filled.
    pub sync: Vec<Target>,
    /// What a deletion does.
    pub deletion: VaultDeletionPolicy,
    /// Whether it is to be left alone.
    pub suspended: bool,
    /// Annotations that ask for something unreadable.
    pub unreadable_triggers: Vec<&'static str>,
    /// What was reported of it last.
    pub status: SecretVaultStatus,
}

/// A spec says what the schema should have refused.
#[derive(Debug, Snafu)]
pub enum Invalid {
    /// A duration is not one.
    #[snafu(display("{field} is not a duration: write it as in 720h, 90m or 30s"))]
    Duration {
        /// The field.
        field: String,
        /// What is wrong with it.
        source: kube::core::duration::ParseError,
    },
    /// Two secrets are one, whose names differ in case only.
    #[snafu(display("secret {name} is declared twice: names are compared without case"))]
    Duplicate {
        /// The secret.
        name: String,
    },
    /// Two ways of making a value, or none.
    #[snafu(display("secret {name} needs exactly one of generate and valueFrom"))]
    Making {
        /// The secret.
        name: String,
    },
    /// A required field is missing.
    #[snafu(display("{field} is missing"))]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A name is not one.
    #[snafu(display("{field}: the name of a secret is 1 to 127 of 0-9, A-Z, a-z and -"))]
    Name {
        /// The field.
        field: String,
    },
    /// The overlap does not end before the next turn.
    #[snafu(display(
        "rotation.overlap of secret {name} must be shorter than its rotation.interval"
    ))]
    Overlap {
        /// The secret.
        name: String,
    },
    /// A value would be too easy to guess.
    #[snafu(display("generate of secret {name}: {source}"))]
    Recipe {
        /// The secret.
        name: String,
        /// Why.
        source: crate::domain::vault::generate::Unfit,
    },
}

impl Vault {
    /// Reads a `SecretVault` as the apiserver gave it.
    ///
    /// # Errors
    /// [`Invalid`] for an object that an older schema let through, or that no schema could refuse.
    pub fn read(object: SecretVault) -> Result<Self, Invalid> {
        let namespace = object.namespace().context(MissingSnafu {
            field: "metadata.namespace",
        })?;
        let uid = object.uid().context(MissingSnafu {
            field: "metadata.uid",
        })?;
        let mut annotations = Annotations {
            object: &object,
            unreadable: Vec::new(),
        };
        let ring_at = annotations.time(ROTATE_AT_ANNOTATION);
        let rotate = annotations.secrets(ROTATE_SECRETS_ANNOTATION);
        let revoke = annotations.secrets(REVOKE_SECRETS_ANNOTATION);
        let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
        for (name, at) in annotations.secrets(RECOVER_SECRETS_ANNOTATION) {
            asked.entry(name).or_default().recover = Some(at);
        }
        for (name, at) in annotations.secrets(PURGE_SECRETS_ANNOTATION) {
            asked.entry(name).or_default().purge = Some(at);
        }
        let unreadable_triggers = annotations.unreadable;
        let metadata = &object.metadata;
        let owner = Owner {
            name: object.name_any(),
            uid,
        };
        let spec = &object.spec;
        let ring = wish(spec, ring_at)?;
        let soft_delete = spec.soft_delete.clone().unwrap_or_default();
        let secrets = spec
            .secrets
            .iter()
            .flatten()
            .map(|secret| declared(secret, &rotate, &revoke))
            .collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        for secret in &secrets {
            snafu::ensure!(
                names.insert(secret.name.folded()),
                DuplicateSnafu {
                    name: secret.name.as_str()
                }
            );
        }
        let sync = spec
            .sync
            .iter()
            .flatten()
            .map(target)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            namespace,
            owner,
            created: metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            generation: metadata.generation,
            version: metadata.resource_version.clone().unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            ring,
            retention: span("softDelete.retention", soft_delete.retention.as_ref())?
                .unwrap_or(DEFAULT_RETENTION),
            secrets,
            asked,
            sync,
            deletion: spec.deletion_policy.unwrap_or(VaultDeletionPolicy::Protect),
            suspended: spec.suspend.unwrap_or_default(),
            unreadable_triggers,
            status: object.status.unwrap_or_default(),
        })
    }

    /// Whether it carries our finalizer.
    pub fn is_held(&self) -> bool {
        self.finalizers.iter().any(|name| name == VAULT_FINALIZER)
    }

    /// Whether everything that is acted on is the same; what was reported and the object's version
    /// are not.
    pub fn asks_for_the_same(&self, other: &Self) -> bool {
        let plain = |vault: &Self| Self {
            version: String::new(),
            status: SecretVaultStatus::default(),
            ..vault.clone()
        };
        plain(self) == plain(other)
    }

    /// Secrets whose entries it follows.
    pub fn sources(&self) -> impl Iterator<Item = &SecretKeyRef> {
        self.secrets
            .iter()
            .filter_map(|secret| match &secret.making {
                Making::From(source) => Some(source),
                Making::Random(_) | Making::Ssh(_) | Making::Tls { .. } => None,
            })
    }

    /// Every workload that it restarts.
    pub fn workloads(&self) -> impl Iterator<Item = Workload> {
        self.sync
            .iter()
            .flat_map(|target| &target.restart)
            .map(|workload| Workload {
                namespace: self.namespace.clone(),
                workload: workload.clone(),
            })
    }
}

impl Target {
    /// Whether a Secret of this name is, or was, this target.
    pub fn covers(&self, secret: &str) -> bool {
        if !self.immutable {
            return self.name == secret;
        }
        secret
            .strip_prefix(self.name.as_str())
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(crate::domain::vault::sync::is_content_hash)
    }
}

/// Reads annotations that ask for something.
struct Annotations<'a> {
    object: &'a SecretVault,
    unreadable: Vec<&'static str>,
}

impl Annotations<'_> {
    fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        let text = self.object.annotations().get(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.unreadable.push(name);
        }
        parsed
    }

    /// `<secret>@<time>`, separated by commas, by folded name.
    fn secrets(&mut self, name: &'static str) -> BTreeMap<String, Timestamp> {
        let Some(text) = self.object.annotations().get(name) else {
            return BTreeMap::new();
        };
        let mut asked = BTreeMap::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let read = part.split_once('@').and_then(|(secret, at)| {
                let secret = SecretName::parse(secret.trim()).ok()?;
                let at: Timestamp = at.trim().parse().ok()?;
                Some((secret.folded(), at))
            });
            match read {
                Some((secret, at)) => {
                    let latest = asked.entry(secret).or_insert(at);
                    *latest = at.max(*latest);
                }
                None if !self.unreadable.contains(&name) => self.unreadable.push(name),
                None => {}
            }
        }
        asked
    }
}

fn wish(spec: &v1alpha1::SecretVaultSpec, rotate_at: Option<Timestamp>) -> Result<Wish, Invalid> {
    let ring = spec.key_ring.clone().unwrap_or_default();
    let rotation = ring.rotation.unwrap_or_default();
    Ok(Wish {
        interval: span("keyRing.rotation.interval", rotation.interval.as_ref())?,
        triggers: Triggers {
            generation: rotation.generation.unwrap_or_default(),
            rotate_at,
            ..Triggers::default()
        },
        shred: ring
            .shred_versions
            .unwrap_or_default()
            .into_iter()
            .filter_map(|version| u32::try_from(version).ok())
            .collect(),
        shred_vault: spec.shred.unwrap_or_default(),
        purge_protection: spec
            .soft_delete
            .as_ref()
            .and_then(|soft_delete| soft_delete.purge_protection)
            .unwrap_or_default(),
    })
}

fn declared(
    secret: &v1alpha1::DeclaredSecret,
    rotate: &BTreeMap<String, Timestamp>,
    revoke: &BTreeMap<String, Timestamp>,
) -> Result<DeclaredSecret, Invalid> {
    let field = || format!("secrets[{}]", secret.name);
    let name = SecretName::parse(&secret.name)
        .ok()
        .context(NameSnafu { field: field() })?;
    let folded = name.folded();
    let rotation = secret.rotation.as_ref();
    let number = |read: fn(&Rotation) -> Option<i64>| rotation.and_then(read).unwrap_or_default();
    let triggers = Triggers {
        generation: number(|rotation| rotation.generation),
        revoke_generation: number(|rotation| rotation.revoke_generation),
        rotate_at: rotate.get(&folded).copied(),
        revoke_at: revoke.get(&folded).copied(),
    };
    let keep = secret.keep.clone().unwrap_or_default();
    let default = Keep::default();
    let making = making(secret)?;
    let mut policy = policy(&secret.name, rotation)?;
    if let Making::Tls { validity, .. } = &making
        && policy.interval.is_none()
    {
        // A certificate that nobody turns ends by itself; it is turned at two thirds of its life.
        let overlap = rotation.and_then(|rotation| rotation.overlap.as_ref());
        let overlap = overlap.map(|_| policy.overlap);
        policy = Policy::effective(Some(*validity / 3 * 2), overlap);
    }
    Ok(DeclaredSecret {
        making,
        policy,
        triggers,
        keep: Keep {
            versions: keep
                .versions
                .and_then(|versions| versions.try_into().ok())
                .unwrap_or(default.versions),
            age: span(&format!("{}.keep.age", field()), keep.age.as_ref())?,
        },
        shape: Shape {
            content_type: secret.content_type.clone(),
            tags: secret.tags.clone().unwrap_or_default(),
            not_before: secret.not_before.as_ref().map(|time: &Time| time.0),
            expires: secret.expires.as_ref().map(|time: &Time| time.0),
        },
        name,
    })
}

fn making(secret: &v1alpha1::DeclaredSecret) -> Result<Making, Invalid> {
    let name = &secret.name;
    let generate = match (&secret.generate, &secret.value_from) {
        (Some(generate), None) => generate,
        (None, Some(source)) => return Ok(Making::From(source.secret_key_ref.clone())),
        _ => return MakingSnafu { name }.fail(),
    };
    if let Some(ssh) = &generate.ssh {
        return Ok(Making::Ssh(ssh.comment.clone().unwrap_or_default()));
    }
    if let Some(tls) = &generate.tls {
        let dns_names = tls.dns_names.clone().unwrap_or_default();
        let common_name = tls
            .common_name
            .clone()
            .or_else(|| dns_names.first().cloned())
            .unwrap_or_else(|| name.clone());
        return Ok(Making::Tls {
            common_name: common_name.chars().take(64).collect(),
            dns_names,
            validity: span(
                &format!("secrets[{name}].generate.tls.validity"),
                tls.validity.as_ref(),
            )?
            .unwrap_or(DEFAULT_VALIDITY),
        });
    }
    let alphabet = generate
        .alphabet
        .map_or(Alphabet::Alphanumeric, Alphabet::from);
    let default = Recipe::of(alphabet);
    let recipe = Recipe {
        alphabet,
        length: generate
            .length
            .and_then(|length| length.try_into().ok())
            .unwrap_or(default.length),
        min_entropy_bits: generate
            .min_entropy_bits
            .and_then(|bits| bits.try_into().ok())
            .unwrap_or(default.min_entropy_bits),
    };
    recipe.check().context(RecipeSnafu { name })?;
    Ok(Making::Random(recipe))
}

impl From<v1alpha1::Alphabet> for Alphabet {
    fn from(alphabet: v1alpha1::Alphabet) -> Self {
        match alphabet {
            v1alpha1::Alphabet::Alphanumeric => Self::Alphanumeric,
            v1alpha1::Alphabet::AlphanumericSymbols => Self::AlphanumericSymbols,
            v1alpha1::Alphabet::Base64Url => Self::Base64Url,
            v1alpha1::Alphabet::Hex => Self::Hex,
            v1alpha1::Alphabet::Identifiable => Self::Identifiable,
            v1alpha1::Alphabet::LowerAlphanumeric => Self::LowerAlphanumeric,
            v1alpha1::Alphabet::Numeric => Self::Numeric,
            v1alpha1::Alphabet::Uuid => Self::Uuid,
        }
    }
}

impl From<v1alpha1::Part> for Part {
    fn from(part: v1alpha1::Part) -> Self {
        match part {
            v1alpha1::Part::Certificate => Self::Certificate,
            v1alpha1::Part::PrivateKey => Self::PrivateKey,
            v1alpha1::Part::PublicKey => Self::PublicKey,
            v1alpha1::Part::Value => Self::Value,
        }
    }
}

fn policy(name: &str, rotation: Option<&Rotation>) -> Result<Policy, Invalid> {
    let field = |field| format!("secrets[{name}].rotation.{field}");
    let interval = span(
        &field("interval"),
        rotation.and_then(|rotation| rotation.interval.as_ref()),
    )?;
    let overlap = span(
        &field("overlap"),
        rotation.and_then(|rotation| rotation.overlap.as_ref()),
    )?;
    if let (Some(interval), Some(overlap)) = (interval, overlap) {
        snafu::ensure!(overlap < interval, OverlapSnafu { name });
    }
    Ok(Policy::effective(interval, overlap))
}

fn target(sync: &v1alpha1::Sync) -> Result<Target, Invalid> {
    let merge = sync.creation_policy == Some(CreationPolicy::Merge);
    let target = &sync.target;
    let mut entries = BTreeMap::new();
    for entry in &sync.data {
        let content = match (&entry.secret, &entry.template) {
            (Some(secret), _) => Content::Secret {
                name: SecretName::parse(secret).ok().context(NameSnafu {
                    field: format!("sync[{}].data[{}].secret", target.name, entry.key),
                })?,
                previous: entry.version == Some(SyncVersion::Previous),
                part: entry.part.map_or(Part::Value, Part::from),
            },
            (None, Some(template)) => Content::Template(template.clone()),
            (None, None) => {
                return MissingSnafu {
                    field: "sync.data.secret",
                }
                .fail();
            }
        };
        entries.insert(entry.key.clone(), content);
    }
    Ok(Target {
        name: target.name.clone(),
        type_: (!merge).then(|| type_name(target.type_)),
        immutable: target.immutable.unwrap_or_default(),
        merge,
        labels: target.labels.clone().unwrap_or_default(),
        annotations: target.annotations.clone().unwrap_or_default(),
        entries,
        restart: sync.restart.clone().unwrap_or_default(),
    })
}

fn type_name(type_: Option<TargetType>) -> &'static str {
    match type_ {
        None | Some(TargetType::Opaque) => "Opaque",
        Some(TargetType::BasicAuth) => "kubernetes.io/basic-auth",
        Some(TargetType::DockerConfigJson) => "kubernetes.io/dockerconfigjson",
        Some(TargetType::SshAuth) => "kubernetes.io/ssh-auth",
        Some(TargetType::Tls) => "kubernetes.io/tls",
    }
}

fn span(field: &str, text: Option<&String>) -> Result<Option<SignedDuration>, Invalid> {
    text.map(|text| duration(text).context(DurationSnafu { field }))
        .transpose()
}
