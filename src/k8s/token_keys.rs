//! The Secret that holds the signing keys of access tokens, in Claviger's own namespace.
//!
//! All keys and the times from which they sign stand under one entry, so that they change together:
//! `[{"signsFrom": "<RFC 3339>", "pkcs8": "<base64>"}]`.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde::{Deserialize, Serialize};
use snafu::{OptionExt, ResultExt, Snafu};
use zeroize::Zeroizing;

use crate::{
    domain::{
        access_token::{KeySet, SigningKey},
        token_keys::Turned as _,
    },
    k8s::{describe, erase, object::FIELD_MANAGER},
    key_pair::SigningPair,
};

/// The Secret's name.
pub const NAME: &str = "claviger-token-keys";
const TYPE: &str = "claviger.dev/token-keys";
const ENTRY: &str = "keys.json";

/// The keys cannot be read or written.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The Secret holds something else.
    #[snafu(display(
        "Secret {namespace}/{NAME} does not hold signing keys under {ENTRY}: delete it to have others made; access tokens that were issued before are then refused"
    ))]
    Malformed {
        /// Claviger's namespace.
        namespace: String,
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

/// The keys as they stand in the Secret.
#[derive(Debug)]
pub struct Stored {
    /// The version of the Secret that they were read from.
    pub version: String,
    /// The keys.
    pub keys: KeySet,
}

/// Makes the Secret.
///
/// # Errors
/// See [`Error`]; a conflict if there is one.
pub async fn create_keys(
    client: &Client,
    namespace: &str,
    keys: &[SigningKey],
) -> Result<Stored, Error> {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                FIELD_MANAGER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            ENTRY.to_owned(),
            ByteString(write(keys).to_vec()),
        )])),
        type_: Some(TYPE.to_owned()),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let made = api(client, namespace).create(&params, &secret).await;
    drop(secret.data.map(erase));
    read(made.context(WriteSnafu { namespace })?, namespace)
}

/// Replaces the keys, if the Secret has still this version.
///
/// # Errors
/// See [`Error`]; a conflict if it has another.
pub async fn patch_keys(
    client: &Client,
    namespace: &str,
    version: &str,
    keys: &[SigningKey],
) -> Result<Stored, Error> {
    let encoded = Zeroizing::new(STANDARD.encode(write(keys)));
    let patch = Patch::Merge(serde_json::json!({
        "metadata": {"resourceVersion": version},
        "data": {ENTRY: encoded.as_str()},
    }));
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patched = api(client, namespace).patch(NAME, &params, &patch).await;
    read(patched.context(WriteSnafu { namespace })?, namespace)
}

/// Reads the keys out of the Secret.
///
/// # Errors
/// [`Error::Malformed`].
pub fn read(secret: Secret, namespace: &str) -> Result<Stored, Error> {
    let typed = secret.type_.as_deref() == Some(TYPE);
    let mut data = erase(secret.data.unwrap_or_default());
    let version = secret.metadata.resource_version.unwrap_or_default();
    let keys = data
        .remove(ENTRY)
        .filter(|_| typed)
        .and_then(|text| parse(&text))
        .context(MalformedSnafu { namespace })?;
    Ok(Stored {
        version,
        keys: KeySet::new(keys),
    })
}

/// The Secrets of a namespace.
pub fn api(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    signs_from: Timestamp,
    pkcs8: Zeroizing<String>,
}

fn write(keys: &[SigningKey]) -> Zeroizing<Vec<u8>> {
    let written: Vec<_> = keys
        .iter()
        .map(|key| Written {
            signs_from: key.signs_from(),
            pkcs8: Zeroizing::new(STANDARD.encode(key.expose())),
        })
        .collect();
    Zeroizing::new(serde_json::to_vec(&written).expect("strings are JSON"))
}

fn parse(text: &[u8]) -> Option<Vec<SigningKey>> {
    let written: Vec<Written> = serde_json::from_slice(text).ok()?;
    written
        .into_iter()
        .map(|Written { signs_from, pkcs8 }| {
            let pkcs8 = Zeroizing::new(STANDARD.decode(pkcs8.as_str()).ok()?);
            SigningPair::read(&pkcs8)?.signs_from(signs_from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &[u8]) -> Secret {
        Secret {
            data: Some(BTreeMap::from([(
                ENTRY.to_owned(),
                ByteString(text.to_vec()),
            )])),
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        }
    }

    #[test]
    fn what_is_written_reads_back_and_nothing_else_is_keys() {
        let time: Timestamp = "2026-11-22T08:00:00Z".parse().unwrap();
        let keys: Vec<_> = (0..2)
            .map(|days| {
                let at = time + jiff::SignedDuration::from_hours(24 * days);
                SigningPair::mint().unwrap().signs_from(at).unwrap()
            })
            .collect();
        let back = read(secret(&write(&keys)), "ns").unwrap();
        let shown = |keys: &[SigningKey]| {
            keys.iter()
                .map(|key| (key.id().to_owned(), key.signs_from()))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(back.keys.keys()), shown(&keys));
        let other = Secret {
            type_: Some("Opaque".to_owned()),
            ..secret(&write(&keys))
        };
        for other in [
            other,
            secret(b""),
            secret(b"{}"),
            secret(br#"[{"signsFrom":"2026-11-22T08:00:00Z","pkcs8":"AAAA"}]"#),
            Secret::default(),
        ] {
            let error = read(other, "ns").unwrap_err().to_string();
            assert!(error.contains("delete it to have others made"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
        }
    }
}
