//! The Secret that holds Claviger's own CA, in Claviger's own namespace, and the `ConfigMap`s in which
//! the roots are published.
//!
//! The Secret is made by a POST and changed only on the version that was read: of two that mint at the
//! same time one wins, and the other reads what it made.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use snafu::{OptionExt, ResultExt, Snafu};
use zeroize::Zeroizing;

use crate::{
    api::{CA_ANNOTATION, CONTENT_LABEL, CONTENT_ROOTS, ROOTS_ANNOTATION},
    domain::ca::Version,
    k8s::{describe, erase, object::FIELD_MANAGER},
};

/// The name of the Secret, and of each `ConfigMap`.
pub const NAME: &str = "claviger-ca";
/// The entry of each `ConfigMap`: PEM.
pub const ENTRY: &str = "ca.crt";
const TYPE: &str = "claviger.dev/ca";

/// The CA cannot be read or written.
#[derive(Debug, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum Error {
    /// It could not be changed.
    #[snafu(display("cannot change Secret {namespace}/{NAME}: {}", describe(source)))]
    Change {
        namespace: String,
        source: kube::Error,
    },
    /// It could not be made.
    #[snafu(display("cannot create Secret {namespace}/{NAME}: {}", describe(source)))]
    Create {
        namespace: String,
        source: kube::Error,
    },
    /// The Secret holds something else.
    #[snafu(display(
        "Secret {namespace}/{NAME} does not hold a CA of Claviger's: restore it, or take the policy own-secrets away for a moment and delete it: another is made, and certificates of the one before are no longer trusted"
    ))]
    Malformed { namespace: String },
    /// The roots could not be published.
    #[snafu(display("cannot write ConfigMap {namespace}/{NAME}: {}", describe(source)))]
    Publish {
        namespace: String,
        source: kube::Error,
    },
    /// What was published could not be read.
    #[snafu(display("cannot read ConfigMap {namespace}/{NAME}: {}", describe(source)))]
    ReadPublished {
        namespace: String,
        source: kube::Error,
    },
    /// It could not be read.
    #[snafu(display("cannot read Secret {namespace}/{NAME}: {}", describe(source)))]
    Read {
        namespace: String,
        source: kube::Error,
    },
}

/// One version of the CA with what it takes to sign.
#[derive(Clone)]
pub struct Issuer {
    /// When it lives and what it is for.
    pub version: Version,
    /// The common name of its certificate's subject: what names it as issuer.
    pub subject: String,
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its private key, PKCS #8 as PEM; overwritten when dropped.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({}, …redacted…)", self.subject)
    }
}

/// The CA, as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Its versions; the numbers count up.
    pub issuers: Vec<Issuer>,
}

impl Stored {
    /// When its versions live and what they are for.
    pub fn versions(&self) -> Vec<Version> {
        self.issuers
            .iter()
            .map(|issuer| issuer.version.clone())
            .collect()
    }
}

/// The bookkeeping of one version, beside its certificate and its key.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    number: u64,
    subject: String,
    not_before: Timestamp,
    not_after: Timestamp,
    signs_from: Timestamp,
    names: BTreeSet<String>,
}

/// Reads a Secret of this name.
///
/// # Errors
/// [`Error::Malformed`].
pub fn parse(secret: Secret) -> Result<Stored, Error> {
    let namespace = secret.namespace().unwrap_or_default();
    let version = secret.resource_version().unwrap_or_default();
    // Only Claviger writes Secrets of this type; another's might be anybody's.
    let ours = secret.type_.as_deref() == Some(TYPE);
    let records = secret.annotations().get(CA_ANNOTATION).cloned();
    let mut data = erase(secret.data.unwrap_or_default());
    let malformed = || MalformedSnafu {
        namespace: namespace.clone(),
    };
    let mut records: Vec<Record> = records
        .filter(|_| ours)
        .and_then(|text| serde_json::from_str(&text).ok())
        .with_context(malformed)?;
    records.sort_by_key(|record| record.number);
    let mut text = |entry: String| {
        let bytes = data.remove(&entry).with_context(malformed)?;
        let text = std::str::from_utf8(&bytes).ok().with_context(malformed)?;
        Ok::<_, Error>(Zeroizing::new(text.to_owned()))
    };
    let issuers = records
        .into_iter()
        .map(|record| {
            Ok(Issuer {
                certificate: text(certificate_entry(record.number))?.as_str().to_owned(),
                key: text(key_entry(record.number))?,
                subject: record.subject,
                version: Version {
                    number: record.number,
                    not_before: record.not_before,
                    not_after: record.not_after,
                    signs_from: record.signs_from,
                    names: record.names,
                },
            })
        })
        .collect::<Result<_, Error>>()?;
    Ok(Stored { version, issuers })
}

/// Reads the CA, if there is one.
///
/// # Errors
/// See [`Error`].
pub async fn read(client: &Client, namespace: &str) -> Result<Option<Stored>, Error> {
    secrets(client, namespace)
        .get_opt(NAME)
        .await
        .context(ReadSnafu { namespace })?
        .map(parse)
        .transpose()
}

/// Makes the Secret with this first version; `None`: there is one already.
///
/// # Errors
/// See [`Error`].
pub async fn create(
    client: &Client,
    namespace: &str,
    first: &Issuer,
) -> Result<Option<Stored>, Error> {
    let mut secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                FIELD_MANAGER.to_owned(),
            )])),
            annotations: Some(BTreeMap::from([(
                CA_ANNOTATION.to_owned(),
                records(std::iter::once(first)),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            entry(certificate_entry(first.version.number), &first.certificate),
            entry(key_entry(first.version.number), &first.key),
        ])),
        type_: Some(TYPE.to_owned()),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let outcome = secrets(client, namespace).create(&params, &secret).await;
    for bytes in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        zeroize::Zeroize::zeroize(&mut bytes.0);
    }
    match outcome {
        Ok(secret) => parse(secret).map(Some),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
        Err(source) => Err(source).context(CreateSnafu { namespace }),
    }
}

/// Adds a version and takes others away, in one write, if nobody has written since; `None`: somebody
/// has.
///
/// # Errors
/// See [`Error`].
pub async fn change(
    client: &Client,
    namespace: &str,
    stored: &Stored,
    added: Option<&Issuer>,
    dropped: &[u64],
) -> Result<Option<Stored>, Error> {
    let left = stored
        .issuers
        .iter()
        .filter(|issuer| !dropped.contains(&issuer.version.number))
        .chain(added);
    let mut data = serde_json::Map::new();
    for number in dropped {
        data.insert(certificate_entry(*number), serde_json::Value::Null);
        data.insert(key_entry(*number), serde_json::Value::Null);
    }
    if let Some(added) = added {
        let number = added.version.number;
        for (entry, text) in [
            (certificate_entry(number), added.certificate.as_str()),
            (key_entry(number), added.key.as_str()),
        ] {
            data.insert(entry, json!(ByteString(text.as_bytes().to_vec())));
        }
    }
    let patch = json!({
        "metadata": {
            "resourceVersion": stored.version,
            "annotations": {CA_ANNOTATION: records(left)},
        },
        "data": data,
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match secrets(client, namespace)
        .patch(NAME, &params, &Patch::Merge(patch))
        .await
    {
        Ok(secret) => parse(secret).map(Some),
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(None),
        Err(source) => Err(source).context(ChangeSnafu { namespace }),
    }
}

/// What is published, with its digest.
#[derive(Clone, PartialEq, Eq)]
pub struct Roots {
    /// Certificates, PEM.
    pub text: String,
    /// Their SHA-256 in hexadecimal.
    pub digest: String,
}

/// What became of an attempt to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It stands there, in this version of the object.
    Stands(String),
    /// An object of this name is there that is not Claviger's; it is left alone.
    Foreign,
    /// The namespace is going or gone.
    NoNamespace,
}

/// Makes the `ConfigMap`, unless there is one.
///
/// # Errors
/// See [`Error`].
pub async fn publish(client: &Client, namespace: &str, roots: &Roots) -> Result<Published, Error> {
    match make(client, namespace, roots).await {
        Err(Error::Publish {
            source: kube::Error::Api(status),
            ..
        }) if status.is_already_exists() => put_back(client, namespace, roots).await,
        made => made,
    }
}

/// Looks at the `ConfigMap`, and writes it only if it does not say what it should.
///
/// # Errors
/// See [`Error`].
pub async fn put_back(client: &Client, namespace: &str, roots: &Roots) -> Result<Published, Error> {
    let config_maps = config_maps(client, namespace);
    let found = config_maps
        .get_opt(NAME)
        .await
        .context(ReadPublishedSnafu { namespace })?;
    let Some(found) = found else {
        return make(client, namespace, roots).await;
    };
    // Either mark makes it ours: somebody may have taken one of them off.
    let labelled = found.labels().get(CONTENT_LABEL).map(String::as_str) == Some(CONTENT_ROOTS);
    if !labelled && !found.annotations().contains_key(ROOTS_ANNOTATION) {
        return Ok(Published::Foreign);
    }
    let version = found.resource_version().unwrap_or_default();
    let noted = found.annotations().get(ROOTS_ANNOTATION);
    let stands = labelled
        && noted == Some(&roots.digest)
        && found.binary_data.is_none()
        && found.data.as_ref().is_some_and(|data| {
            data.len() == 1 && data.get(ENTRY).map(String::as_str) == Some(&roots.text)
        });
    if stands {
        return Ok(Published::Stands(version));
    }
    if found.immutable == Some(true) {
        // Nothing of it can be changed any more.
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: found.uid(),
            resource_version: Some(version.clone()),
        });
        let deleted = config_maps.delete(NAME, &params).await;
        deleted.context(PublishSnafu { namespace })?;
        return make(client, namespace, roots).await;
    }
    let mut data = serde_json::Map::new();
    for entry in found.data.iter().flat_map(BTreeMap::keys) {
        data.insert(entry.clone(), serde_json::Value::Null);
    }
    data.insert(ENTRY.to_owned(), json!(roots.text));
    let patch = json!({
        "metadata": {
            "resourceVersion": version,
            "labels": {CONTENT_LABEL: CONTENT_ROOTS},
            "annotations": {ROOTS_ANNOTATION: roots.digest},
        },
        "data": data,
        "binaryData": null,
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let written = config_maps
        .patch(NAME, &params, &Patch::Merge(patch))
        .await
        .context(PublishSnafu { namespace })?;
    Ok(Published::Stands(
        written.resource_version().unwrap_or_default(),
    ))
}

async fn make(client: &Client, namespace: &str, roots: &Roots) -> Result<Published, Error> {
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let made = config_maps(client, namespace)
        .create(&params, &config_map(roots))
        .await;
    match made {
        Ok(made) => Ok(Published::Stands(
            made.resource_version().unwrap_or_default(),
        )),
        Err(kube::Error::Api(status)) if status.code == 404 || is_terminating(&status) => {
            Ok(Published::NoNamespace)
        }
        Err(source) => Err(source).context(PublishSnafu { namespace }),
    }
}

fn config_map(roots: &Roots) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([
                (CONTENT_LABEL.to_owned(), CONTENT_ROOTS.to_owned()),
                (
                    "app.kubernetes.io/managed-by".to_owned(),
                    FIELD_MANAGER.to_owned(),
                ),
            ])),
            annotations: Some(BTreeMap::from([(
                ROOTS_ANNOTATION.to_owned(),
                roots.digest.clone(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(ENTRY.to_owned(), roots.text.clone())])),
        ..ConfigMap::default()
    }
}

/// Whether a refusal is because the namespace is being deleted.
fn is_terminating(status: &kube::core::Status) -> bool {
    status.code == 403
        && status.details.as_ref().is_some_and(|details| {
            details
                .causes
                .iter()
                .any(|cause| cause.reason == "NamespaceTerminating")
        })
}

fn records<'a>(issuers: impl Iterator<Item = &'a Issuer>) -> String {
    let records: Vec<Record> = issuers
        .map(|issuer| {
            let version = issuer.version.clone();
            Record {
                number: version.number,
                subject: issuer.subject.clone(),
                not_before: version.not_before,
                not_after: version.not_after,
                signs_from: version.signs_from,
                names: version.names,
            }
        })
        .collect();
    serde_json::to_string(&records).expect("numbers, times and names are JSON")
}

fn certificate_entry(number: u64) -> String {
    format!("v{number}.crt")
}

fn key_entry(number: u64) -> String {
    format!("v{number}.key")
}

fn entry(name: String, text: &str) -> (String, ByteString) {
    (name, ByteString(text.as_bytes().to_vec()))
}

fn secrets(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

fn config_maps(client: &Client, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(number: u64) -> Issuer {
        let now: Timestamp = "2026-11-22T08:00:00Z".parse().unwrap();
        Issuer {
            version: Version {
                number,
                not_before: now,
                not_after: now,
                signs_from: now,
                names: BTreeSet::from(["svc".to_owned()]),
            },
            subject: format!("Claviger CA {number}"),
            certificate: "public".to_owned(),
            key: Zeroizing::new("private".to_owned()),
        }
    }

    fn secret(issuers: &[Issuer]) -> Secret {
        let annotations = BTreeMap::from([(CA_ANNOTATION.to_owned(), records(issuers.iter()))]);
        let data = issuers.iter().flat_map(|issuer| {
            let number = issuer.version.number;
            [
                entry(certificate_entry(number), &issuer.certificate),
                entry(key_entry(number), &issuer.key),
            ]
        });
        Secret {
            metadata: ObjectMeta {
                annotations: Some(annotations),
                namespace: Some("ns".to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(data.collect()),
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        }
    }

    #[test]
    fn what_is_written_reads_back_and_shows_no_key() {
        let read = parse(secret(&[issuer(10), issuer(2)])).unwrap();
        let numbers: Vec<u64> = read
            .versions()
            .iter()
            .map(|version| version.number)
            .collect();
        assert_eq!(numbers, [2, 10]);
        assert_eq!(read.issuers[1].key.as_str(), "private");
        assert!(!format!("{read:?}").contains("private"));
    }

    #[test]
    fn half_of_a_ca_is_none() {
        let whole = secret(&[issuer(1)]);
        for break_it in [
            (|secret: &mut Secret| _ = secret.data.as_mut().unwrap().remove("v1.key"))
                as fn(&mut Secret),
            |secret| _ = secret.data.as_mut().unwrap().remove("v1.crt"),
            |secret| secret.data = None,
            |secret| secret.type_ = Some("Opaque".to_owned()),
            |secret| secret.metadata.annotations = None,
            |secret| {
                let annotations = secret.metadata.annotations.as_mut().unwrap();
                annotations.insert(CA_ANNOTATION.to_owned(), "[{}]".to_owned());
            },
        ] {
            let mut broken = whole.clone();
            break_it(&mut broken);
            let error = parse(broken).unwrap_err().to_string();
            assert!(error.contains("ns/claviger-ca"), "{error}");
        }
    }
}
