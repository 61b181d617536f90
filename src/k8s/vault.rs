//! The objects of a vault: its key ring, and one Secret for each entry of a secret's history.
//!
//! Of an entry only the payload is immutable; attributes and envelope stand in annotations, so that
//! a re-wrap is a patch of metadata. Lists ask for metadata alone.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    api::{
        ATTRIBUTES_ANNOTATION, CONTENT_ENTRY, CONTENT_LABEL, CONTENT_RING, ENVELOPE_ANNOTATION,
        VAULT_LABEL,
    },
    k8s::object::{FIELD_MANAGER, is_newer},
};

/// The type of an entry's Secret.
pub const ENTRY_TYPE: &str = "claviger.dev/secret-version";
/// The type of a key ring's Secret.
pub const RING_TYPE: &str = "claviger.dev/key-ring";

const PAYLOAD: &str = "payload";
const RING: &str = "ring";
const MAC: &str = "mac";
const RECOVERY: &str = "recovery.age";
const RECOVERY_MARK: &str = "recovery.for";
/// Entries that a list brings at a time.
const PAGE: u32 = 500;
/// How many entries, of all vaults together, are written at once: more makes nothing faster, and each
/// request under way has a connection, and its buffers, to itself.
const WRITES: usize = 32;

/// The name of the Secret that holds a vault's key ring.
pub fn ring_name(vault: &str) -> String {
    format!("{vault}-key-ring")
}

/// An entry as observed: its metadata, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// The attributes' text.
    pub attributes: Box<str>,
    /// The envelope's text.
    pub envelope: Box<str>,
}

impl Metadata {
    /// Reads the metadata of an entry's Secret; what is missing is empty, and does not verify.
    pub fn read(metadata: &ObjectMeta) -> Self {
        let annotation = |name| {
            metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(name))
                .map(|text: &String| text.as_str().into())
                .unwrap_or_default()
        };
        Self {
            version: metadata.resource_version.clone().unwrap_or_default(),
            attributes: annotation(ATTRIBUTES_ANNOTATION),
            envelope: annotation(ENVELOPE_ANNOTATION),
        }
    }

    /// Whether this observation is of a later state than the other.
    pub fn newer_than(&self, other: &Self) -> bool {
        is_newer(&self.version, &other.version)
    }
}

/// A key ring as observed, unverified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// The document.
    pub document: Vec<u8>,
    /// Its MAC.
    pub mac: Vec<u8>,
    /// The keys as sealed to the recovery recipients.
    pub recovery: Option<Recovery>,
}

/// The keys of a ring as sealed to the recovery recipients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The age file.
    pub file: String,
    /// Which recipients and which keys it was made for, and that it is the file that was.
    pub mark: String,
}

impl Ring {
    /// Reads a key ring's Secret.
    pub fn read(secret: Secret) -> Self {
        let mut data = secret.data.unwrap_or_default();
        let mut take = |key| data.remove(key).map(|ByteString(bytes)| bytes);
        let text = |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        let (file, mark) = (text(take(RECOVERY)), text(take(RECOVERY_MARK)));
        Self {
            document: take(RING).unwrap_or_default(),
            mac: take(MAC).unwrap_or_default(),
            recovery: file.map(|file| Recovery {
                file,
                mark: mark.unwrap_or_default(),
            }),
            version: secret.metadata.resource_version.unwrap_or_default(),
        }
    }
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// A Secret of another type: somebody else's.
    Foreign,
    /// Nothing.
    Nothing,
    /// A Secret of our type.
    Ours(T),
}

/// The objects of vaults.
#[derive(Clone)]
pub struct Vaults {
    client: Client,
    writes: Arc<Semaphore>,
}

impl Vaults {
    /// Objects behind this client.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            writes: Arc::new(Semaphore::new(WRITES)),
        }
    }

    async fn permit(&self) -> SemaphorePermit<'_> {
        self.writes
            .acquire()
            .await
            .expect("the semaphore is never closed")
    }

    fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes an entry.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when the number is taken.
    pub async fn create_entry(
        &self,
        namespace: &str,
        vault: &str,
        name: &str,
        attributes: &str,
        envelope: &str,
        payload: Option<Vec<u8>>,
    ) -> kube::Result<Metadata> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels(vault, CONTENT_ENTRY)),
                annotations: Some(BTreeMap::from([
                    (ATTRIBUTES_ANNOTATION.to_owned(), attributes.to_owned()),
                    (ENVELOPE_ANNOTATION.to_owned(), envelope.to_owned()),
                ])),
                ..ObjectMeta::default()
            },
            data: payload
                .map(|payload| BTreeMap::from([(PAYLOAD.to_owned(), ByteString(payload))])),
            type_: Some(ENTRY_TYPE.to_owned()),
            immutable: Some(true),
            ..Secret::default()
        };
        let _permit = self.permit().await;
        let made = self.secrets(namespace).create(&post(), &secret).await?;
        Ok(Metadata::read(&made.metadata))
    }

    /// Changes the metadata of an entry that has not changed since it was observed.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when it has changed.
    pub async fn amend_entry(
        &self,
        namespace: &str,
        name: &str,
        version: &str,
        attributes: Option<&str>,
        envelope: &str,
    ) -> kube::Result<Metadata> {
        let mut annotations = json!({ENVELOPE_ANNOTATION: envelope});
        if let Some(attributes) = attributes {
            annotations[ATTRIBUTES_ANNOTATION] = Value::String(attributes.to_owned());
        }
        let patch = json!({
            "metadata": {"resourceVersion": version, "annotations": annotations},
        });
        let _permit = self.permit().await;
        let patched = self
            .secrets(namespace)
            .patch_metadata(name, &patch_params(), &Patch::Merge(patch))
            .await?;
        Ok(Metadata::read(&patched.metadata))
    }

    /// The metadata and the payload of an entry.
    ///
    /// # Errors
    /// The apiserver's refusal; an absent entry is `None`.
    pub async fn entry(
        &self,
        namespace: &str,
        name: &str,
    ) -> kube::Result<Option<(Metadata, Vec<u8>)>> {
        Ok(self.secrets(namespace).get_opt(name).await?.map(|secret| {
            let metadata = Metadata::read(&secret.metadata);
            let payload = secret
                .data
                .and_then(|mut data| data.remove(PAYLOAD))
                .map(|ByteString(bytes)| bytes)
                .unwrap_or_default();
            (metadata, payload)
        }))
    }

    /// Deletes an entry, as of this version if one is named; one that is gone already is no failure.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn delete_entry(
        &self,
        namespace: &str,
        name: &str,
        version: Option<&str>,
    ) -> kube::Result<()> {
        let params = DeleteParams {
            preconditions: version.map(|version| Preconditions {
                resource_version: Some(version.to_owned()),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        gone(self.secrets(namespace).delete(name, &params).await)
    }

    /// All entries of a vault as the apiserver has them now, by name.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn list_entries(
        &self,
        namespace: &str,
        vault: &str,
    ) -> kube::Result<BTreeMap<String, Metadata>> {
        let mut params = ListParams::default()
            .labels(&format!(
                "{CONTENT_LABEL}={CONTENT_ENTRY},{VAULT_LABEL}={vault}"
            ))
            .limit(PAGE);
        let mut entries = BTreeMap::new();
        loop {
            let page = self.secrets(namespace).list_metadata(&params).await?;
            entries.extend(
                page.items
                    .into_iter()
                    .map(|item: PartialObjectMeta<Secret>| {
                        (item.name_any(), Metadata::read(&item.metadata))
                    }),
            );
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(entries),
            }
        }
    }

    /// What stands where a vault's key ring belongs.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn ring(&self, namespace: &str, vault: &str) -> kube::Result<Found<Ring>> {
        let found = self.secrets(namespace).get_opt(&ring_name(vault)).await?;
        Ok(match found {
            None => Found::Nothing,
            Some(secret) if secret.type_.as_deref() == Some(RING_TYPE) => {
                Found::Ours(Ring::read(secret))
            }
            Some(_) => Found::Foreign,
        })
    }

    /// What stands where an entry belongs.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub async fn find_entry(&self, namespace: &str, name: &str) -> kube::Result<Found<Metadata>> {
        let found = self.secrets(namespace).get_opt(name).await?;
        Ok(match found {
            None => Found::Nothing,
            Some(secret) if secret.type_.as_deref() == Some(ENTRY_TYPE) => {
                Found::Ours(Metadata::read(&secret.metadata))
            }
            Some(_) => Found::Foreign,
        })
    }

    /// Makes a vault's key ring.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when there is one.
    pub async fn create_ring(
        &self,
        namespace: &str,
        vault: &str,
        ring: &Ring,
    ) -> kube::Result<Ring> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(ring_name(vault)),
                labels: Some(labels(vault, CONTENT_RING)),
                ..ObjectMeta::default()
            },
            data: Some(
                ring_data(ring)
                    .into_iter()
                    .filter_map(|(key, bytes)| Some((key.to_owned(), ByteString(bytes?))))
                    .collect(),
            ),
            type_: Some(RING_TYPE.to_owned()),
            ..Secret::default()
        };
        self.secrets(namespace)
            .create(&post(), &secret)
            .await
            .map(Ring::read)
    }

    /// Writes a key ring that has not changed since it was observed.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when it has changed.
    pub async fn write_ring(
        &self,
        namespace: &str,
        vault: &str,
        version: &str,
        ring: &Ring,
    ) -> kube::Result<Ring> {
        let data: BTreeMap<&str, Option<ByteString>> = ring_data(ring)
            .into_iter()
            .map(|(key, bytes)| (key, bytes.map(ByteString)))
            .collect();
        let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
        self.secrets(namespace)
            .patch(&ring_name(vault), &patch_params(), &Patch::Merge(patch))
            .await
            .map(Ring::read)
    }

    /// Deletes a key ring that has not changed since it was observed.
    ///
    /// # Errors
    /// The apiserver's refusal; 409 when it has changed.
    pub async fn delete_ring(
        &self,
        namespace: &str,
        vault: &str,
        version: &str,
    ) -> kube::Result<()> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                resource_version: Some(version.to_owned()),
                uid: None,
            }),
            ..DeleteParams::default()
        };
        gone(
            self.secrets(namespace)
                .delete(&ring_name(vault), &params)
                .await,
        )
    }
}

fn ring_data(ring: &Ring) -> [(&'static str, Option<Vec<u8>>); 4] {
    let recovery = ring.recovery.as_ref();
    [
        (RING, Some(ring.document.clone())),
        (MAC, Some(ring.mac.clone())),
        (RECOVERY, recovery.map(|one| one.file.clone().into_bytes())),
        (
            RECOVERY_MARK,
            recovery.map(|one| one.mark.clone().into_bytes()),
        ),
    ]
}

fn labels(vault: &str, content: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/managed-by", FIELD_MANAGER),
        (CONTENT_LABEL, content),
        (VAULT_LABEL, vault),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn gone<T>(answer: kube::Result<T>) -> kube::Result<()> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => answer.map(drop),
    }
}
