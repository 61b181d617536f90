//! The Secret that holds the root key's backup: an age file that only the recovery recipients open.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use snafu::{ResultExt, Snafu};

use crate::k8s::{describe, object::FIELD_MANAGER};

/// The Secret's name.
pub const NAME: &str = "claviger-root-key-backup";
/// The entry that holds the age file.
pub const ENTRY: &str = "root-key.age";
const TYPE: &str = "claviger.dev/root-key-backup";

/// Annotation: a digest of the recipients that the backup is for.
pub const RECIPIENTS_ANNOTATION: &str = "claviger.dev/recipients";
/// Annotation: the id of the root key that is backed up.
pub const ROOT_KEY_ANNOTATION: &str = "claviger.dev/root-key";
/// Annotation: when somebody last saw the backup open what is in the cluster (RFC 3339).
pub const VERIFIED_ANNOTATION: &str = "claviger.dev/verified-at";

/// Something could not be done with the Secret.
#[derive(Debug, Snafu)]
pub enum Error {
    /// It could not be annotated.
    #[snafu(display("cannot annotate Secret {namespace}/{NAME}: {}", describe(source)))]
    Annotate {
        /// Claviger's namespace.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
    /// It is somebody else's.
    #[snafu(display(
        "Secret {namespace}/{NAME} is not of type {TYPE}: keep what it holds elsewhere and delete it, so that the backup can be written"
    ))]
    Foreign {
        /// Claviger's namespace.
        namespace: String,
    },
    /// It could not be read.
    #[snafu(display("cannot read Secret {namespace}/{NAME}: {}", describe(source)))]
    Read {
        /// Claviger's namespace.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
    /// It could not be written.
    #[snafu(display("cannot write Secret {namespace}/{NAME}: {}", describe(source)))]
    Write {
        /// Claviger's namespace.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
}

/// A backup as it stands in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The age file; empty if there is none.
    pub file: String,
    /// A digest of the recipients it is for.
    pub recipients: String,
    /// The id of the root key that is backed up.
    pub root_key: String,
}

/// A backup that was read, and the version of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The backup.
    pub backup: Backup,
    /// When somebody last saw it open what is in the cluster.
    pub verified: Option<Timestamp>,
    version: Option<String>,
}

/// Reads the backup, if there is one.
///
/// # Errors
/// [`Error::Read`], [`Error::Foreign`].
pub async fn read(client: &Client, namespace: &str) -> Result<Option<Stored>, Error> {
    api(client, namespace)
        .get_opt(NAME)
        .await
        .context(ReadSnafu { namespace })?
        .map(|secret| parse(secret, namespace))
        .transpose()
}

/// Writes the backup, in place of the one that was read. What was said of the former, such as when
/// it was verified, goes with it.
///
/// # Errors
/// [`Error::Write`]; a conflict if somebody else wrote since.
pub async fn write(
    client: &Client,
    namespace: &str,
    backup: &Backup,
    former: Option<&Stored>,
) -> Result<(), Error> {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            resource_version: former.and_then(|former| former.version.clone()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                FIELD_MANAGER.to_owned(),
            )])),
            annotations: Some(BTreeMap::from([
                (RECIPIENTS_ANNOTATION.to_owned(), backup.recipients.clone()),
                (ROOT_KEY_ANNOTATION.to_owned(), backup.root_key.clone()),
            ])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            ENTRY.to_owned(),
            ByteString(backup.file.clone().into_bytes()),
        )])),
        type_: Some(TYPE.to_owned()),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let secrets = api(client, namespace);
    match former {
        Some(_) => secrets.replace(NAME, &params, &secret).await,
        None => secrets.create(&params, &secret).await,
    }
    .map(drop)
    .context(WriteSnafu { namespace })
}

/// Notes that this very backup was seen to open what is in the cluster.
///
/// # Errors
/// [`Error::Annotate`]; a conflict if another backup was written since.
pub async fn note_verified(
    client: &Client,
    namespace: &str,
    backup: &Stored,
    now: Timestamp,
) -> Result<(), Error> {
    let patch = json!({"metadata": {
        "resourceVersion": backup.version,
        "annotations": {VERIFIED_ANNOTATION: now.to_string()},
    }});
    api(client, namespace)
        .patch_metadata(NAME, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
        .context(AnnotateSnafu { namespace })
}

fn api(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

fn parse(secret: Secret, namespace: &str) -> Result<Stored, Error> {
    if secret.type_.as_deref() != Some(TYPE) {
        return ForeignSnafu { namespace }.fail();
    }
    let file = secret.data.and_then(|mut data| data.remove(ENTRY));
    let mut annotations = secret.metadata.annotations.unwrap_or_default();
    let mut annotation = |name| annotations.remove(name).unwrap_or_default();
    Ok(Stored {
        backup: Backup {
            file: file
                .and_then(|file| String::from_utf8(file.0).ok())
                .unwrap_or_default(),
            recipients: annotation(RECIPIENTS_ANNOTATION),
            root_key: annotation(ROOT_KEY_ANNOTATION),
        },
        verified: annotation(VERIFIED_ANNOTATION).parse().ok(),
        version: secret.metadata.resource_version,
    })
}
