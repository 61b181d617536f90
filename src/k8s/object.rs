//! The objects that hold values, Secrets and `ConfigMap`s alike, as Claviger sees and writes them.
//! The only code that touches their data.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};

use crate::{
    api::{
        CONTENT_KEYS, CONTENT_LABEL, CONTENT_SYNC, COPIES_ANNOTATION, CREATED_ANNOTATION,
        LEDGER_ANNOTATION, SEALED_ANNOTATION, SYNC_ANNOTATION,
        convert::{StoreKind, StoreRef},
    },
    domain::{
        key::KeyMaterial,
        layout,
        ledger::{Copies, Copy, Ledger, Record},
        vault::sync,
    },
    k8s::shelf::Shelf,
};

/// The field manager of everything that Claviger's controller writes.
pub const FIELD_MANAGER: &str = "claviger";

const OPAQUE: &str = "Opaque";

/// Types of Secret that Claviger reads values from and writes values to. Never a ServiceAccount
/// token, a bootstrap token or a Helm release: who may name one of those in a resource must not
/// thereby be able to read or change it.
const ALLOWED_TYPES: [&str; 5] = [
    OPAQUE,
    "kubernetes.io/basic-auth",
    "kubernetes.io/dockerconfigjson",
    "kubernetes.io/ssh-auth",
    "kubernetes.io/tls",
];

/// An object that holds values, as observed.
#[allow(
    clippy::struct_excessive_bools,
    reason = "four independent facts of an object"
)]
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.uid`.
    pub uid: String,
    /// What kind of content of ours it holds, by its label.
    pub content: Option<String>,
    /// Whether Claviger made it.
    pub created: bool,
    /// Whether it cannot be changed.
    pub immutable: bool,
    /// Whether its type is one that may hold values of ours.
    pub allowed: bool,
    /// Entries whose value is text. Of a key store only those that the host reads.
    pub values: Shelf<KeyMaterial>,
    /// Entries whose value is not text.
    pub opaque: HashSet<String>,
    /// Whether there are entries that are none of ours.
    pub others: bool,
    /// The bookkeeping of a key store; absent when there is none or it is not readable.
    pub ledger: Option<Shelf<Record>>,
    /// The bookkeeping of a client's Secret.
    pub copies: Option<Shelf<Copy>>,
    /// Whether bookkeeping here is remembered from before: the annotation was wiped since.
    pub recalled: bool,
    /// The sealed second copy.
    pub sealed: Option<String>,
    /// Of a Secret into which a vault's values are synced: the rest of it.
    pub sync: Option<Box<Synced>>,
    /// Its type, if that is not `Opaque`.
    pub type_: Option<Box<str>>,
}

/// What is observed only of Secrets into which a vault's values are synced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// The bookkeeping; absent when there is none or it is not readable.
    pub record: Option<sync::Record>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.creationTimestamp`.
    pub made: Option<jiff::Timestamp>,
}

impl Observed {
    /// Reads a Secret.
    pub fn secret(secret: Secret) -> Self {
        let allowed = secret
            .type_
            .as_deref()
            .is_none_or(|type_| type_.is_empty() || ALLOWED_TYPES.contains(&type_));
        let entries = secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(entry, ByteString(bytes))| (entry, String::from_utf8(bytes).ok()));
        let type_ = secret
            .type_
            .filter(|type_| !type_.is_empty() && type_ != OPAQUE)
            .map(String::into_boxed_str);
        Self {
            type_,
            ..Self::read(secret.metadata, secret.immutable, allowed, entries)
        }
    }

    /// Reads a `ConfigMap`.
    pub fn config_map(config_map: ConfigMap) -> Self {
        let binary = config_map
            .binary_data
            .unwrap_or_default()
            .into_keys()
            .map(|entry| (entry, None));
        let entries = config_map
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(entry, text)| (entry, Some(text)))
            .chain(binary);
        Self::read(config_map.metadata, config_map.immutable, true, entries)
    }

    fn read(
        metadata: ObjectMeta,
        immutable: Option<bool>,
        allowed: bool,
        entries: impl Iterator<Item = (String, Option<String>)>,
    ) -> Self {
        let label = metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(CONTENT_LABEL))
            .cloned();
        let annotation = |name| {
            metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(name))
        };
        let is_store = label.as_deref() == Some(CONTENT_KEYS);
        let is_synced =
            label.as_deref() == Some(CONTENT_SYNC) || annotation(SYNC_ANNOTATION).is_some();
        let sync = is_synced.then(|| {
            Box::new(Synced {
                record: annotation(SYNC_ANNOTATION).and_then(|text| sync::Record::parse(text).ok()),
                labels: metadata.labels.clone().unwrap_or_default(),
                annotations: metadata.annotations.clone().unwrap_or_default(),
                made: metadata.creation_timestamp.as_ref().map(|time| time.0),
            })
        });
        let mut observed = Self {
            created: annotation(CREATED_ANNOTATION).is_some(),
            immutable: immutable.unwrap_or_default(),
            allowed,
            ledger: annotation(LEDGER_ANNOTATION)
                .and_then(|text| Some(Ledger::parse(text).ok()?.entries.into())),
            copies: annotation(COPIES_ANNOTATION)
                .and_then(|text| Some(Copies::parse(text).ok()?.entries.into())),
            sealed: annotation(SEALED_ANNOTATION).cloned(),
            sync,
            content: label,
            ..Self::default()
        };
        let mut values = BTreeMap::new();
        for (entry, text) in entries {
            let app_key = layout::is_app_key(&entry);
            observed.others |= !app_key;
            match text {
                Some(_) if is_store && !app_key => {}
                Some(text) => _ = values.insert(entry, KeyMaterial::new(text)),
                None => _ = observed.opaque.insert(entry),
            }
        }
        observed.values = values.into();
        observed.version = metadata.resource_version.unwrap_or_default();
        observed.uid = metadata.uid.unwrap_or_default();
        observed
    }

    /// Whether this observation is of a later state than the other.
    pub fn newer_than(&self, other: &Self) -> bool {
        is_newer(&self.version, &other.version)
    }
}

/// Whether a resource version is later than another of the same object: they are ordered integers
/// (KEP-5504). Of any others it is only known whether they differ.
pub fn is_newer(version: &str, other: &str) -> bool {
    match (version.parse::<u64>(), other.parse::<u64>()) {
        (Ok(this), Ok(that)) => this > that,
        _ => version != other,
    }
}

/// What is to be written to an object.
#[derive(Clone, Debug, Default)]
pub struct Write {
    /// The label that says what the object holds; `None` removes it.
    pub content: Option<&'static str>,
    /// Annotations to set or remove.
    pub annotations: BTreeMap<Cow<'static, str>, Option<String>>,
    /// Further labels to set or remove.
    pub labels: BTreeMap<String, Option<String>>,
    /// The type of a Secret that is made; `Opaque` when left out.
    pub type_: Option<&'static str>,
    /// Whether a Secret that is made can never be changed.
    pub immutable: bool,
    /// Entries to set or remove.
    pub data: BTreeMap<String, Option<KeyMaterial>>,
}

/// The objects of the cluster that hold values.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    /// Objects behind this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn config_maps(&self, namespace: &str) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads an object by name.
    ///
    /// # Errors
    /// The apiserver's refusal; an absent object is `None`.
    pub async fn get(&self, object: &StoreRef) -> kube::Result<Option<Observed>> {
        Ok(match object.kind {
            StoreKind::Secret => self
                .secrets(&object.namespace)
                .get_opt(&object.name)
                .await?
                .map(Observed::secret),
            StoreKind::ConfigMap => self
                .config_maps(&object.namespace)
                .get_opt(&object.name)
                .await?
                .map(Observed::config_map),
        })
    }

    /// Makes an object that does not exist.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when the object exists.
    pub async fn create(&self, object: &StoreRef, write: &Write) -> kube::Result<Observed> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let metadata = new_metadata(object, write);
        let data = write
            .data
            .iter()
            .filter_map(|(entry, value)| Some((entry.clone(), value.as_ref()?.expose())));
        match object.kind {
            StoreKind::Secret => {
                let secret = Secret {
                    metadata,
                    data: Some(
                        data.map(|(entry, text)| (entry, ByteString(text.as_bytes().to_vec())))
                            .collect(),
                    ),
                    type_: Some(write.type_.unwrap_or(OPAQUE).to_owned()),
                    immutable: write.immutable.then_some(true),
                    ..Secret::default()
                };
                self.secrets(&object.namespace)
                    .create(&params, &secret)
                    .await
                    .map(Observed::secret)
            }
            StoreKind::ConfigMap => {
                let config_map = ConfigMap {
                    metadata,
                    data: Some(data.map(|(entry, text)| (entry, text.to_owned())).collect()),
                    ..ConfigMap::default()
                };
                self.config_maps(&object.namespace)
                    .create(&params, &config_map)
                    .await
                    .map(Observed::config_map)
            }
        }
    }

    /// Changes an object that has not changed since it was observed.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when the object has changed.
    pub async fn patch(
        &self,
        object: &StoreRef,
        version: &str,
        write: &Write,
    ) -> kube::Result<Observed> {
        let patch = Patch::Merge(merge_patch(object.kind, version, write));
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match object.kind {
            StoreKind::Secret => self
                .secrets(&object.namespace)
                .patch(&object.name, &params, &patch)
                .await
                .map(Observed::secret),
            StoreKind::ConfigMap => self
                .config_maps(&object.namespace)
                .patch(&object.name, &params, &patch)
                .await
                .map(Observed::config_map),
        }
    }

    /// Deletes an object that has not changed since it was observed.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when the object has changed.
    pub async fn delete(&self, object: &StoreRef, observed: &Observed) -> kube::Result<()> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(observed.uid.clone()),
                resource_version: Some(observed.version.clone()),
            }),
            ..DeleteParams::default()
        };
        match object.kind {
            StoreKind::Secret => self
                .secrets(&object.namespace)
                .delete(&object.name, &params)
                .await
                .map(drop),
            StoreKind::ConfigMap => self
                .config_maps(&object.namespace)
                .delete(&object.name, &params)
                .await
                .map(drop),
        }
    }
}

fn new_metadata(object: &StoreRef, write: &Write) -> ObjectMeta {
    let mut labels = BTreeMap::from([(
        "app.kubernetes.io/managed-by".to_owned(),
        FIELD_MANAGER.to_owned(),
    )]);
    labels.extend(
        write
            .content
            .map(|content| (CONTENT_LABEL.to_owned(), content.to_owned())),
    );
    labels.extend(
        write
            .labels
            .iter()
            .filter_map(|(name, text)| Some((name.clone(), text.clone()?))),
    );
    let mut annotations = BTreeMap::from([(CREATED_ANNOTATION.to_owned(), "true".to_owned())]);
    annotations.extend(
        write
            .annotations
            .iter()
            .filter_map(|(name, text)| Some((name.clone().into_owned(), text.clone()?))),
    );
    ObjectMeta {
        name: Some(object.name.clone()),
        namespace: Some(object.namespace.clone()),
        labels: Some(labels),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    }
}

fn merge_patch(kind: StoreKind, version: &str, write: &Write) -> Value {
    let text = |value: &KeyMaterial| match kind {
        StoreKind::Secret => Value::String(STANDARD.encode(value.expose())),
        StoreKind::ConfigMap => Value::String(value.expose().to_owned()),
    };
    let data: serde_json::Map<String, Value> = write
        .data
        .iter()
        .map(|(entry, value)| (entry.clone(), value.as_ref().map_or(Value::Null, text)))
        .collect();
    let mut labels = json!(write.labels);
    labels[CONTENT_LABEL] = json!(write.content);
    let mut patch = json!({
        "metadata": {
            "resourceVersion": version,
            "labels": labels,
            "annotations": write.annotations,
        },
    });
    if !data.is_empty() {
        patch["data"] = Value::Object(data);
    }
    patch
}

/// The version and UID of an object of which only the metadata was read.
pub fn version(metadata: &impl ResourceExt) -> String {
    metadata.resource_version().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_carries_the_version_it_was_planned_on_and_only_what_changes() {
        let write = Write {
            content: Some(CONTENT_KEYS),
            annotations: BTreeMap::from([(LEDGER_ANNOTATION.into(), Some("{}".to_owned()))]),
            data: BTreeMap::from([
                ("host.master".to_owned(), Some(KeyMaterial::new("v"))),
                ("gone".to_owned(), None),
            ]),
            ..Write::default()
        };
        assert_eq!(
            merge_patch(StoreKind::Secret, "7", &write),
            json!({
                "metadata": {
                    "resourceVersion": "7",
                    "labels": {"claviger.dev/content": "function-keys"},
                    "annotations": {"claviger.dev/ledger": "{}"},
                },
                "data": {"host.master": "dg==", "gone": null},
            })
        );
        assert_eq!(
            merge_patch(StoreKind::ConfigMap, "7", &write)["data"]["host.master"],
            "v"
        );
    }

    #[test]
    fn tokens_of_service_accounts_are_never_taken_for_values() {
        for (type_, allowed) in [
            (None, true),
            (Some("Opaque"), true),
            (Some("kubernetes.io/tls"), true),
            (Some("kubernetes.io/service-account-token"), false),
            (Some("bootstrap.kubernetes.io/token"), false),
            (Some("helm.sh/release.v1"), false),
            (Some("claviger.dev/seal-key"), false),
        ] {
            let secret = Secret {
                type_: type_.map(str::to_owned),
                ..Secret::default()
            };
            assert_eq!(Observed::secret(secret).allowed, allowed, "{type_:?}");
        }
    }
}
