//! Whether a root key opens the vaults of a cluster, as they stand there.
//!
//! Reads every Secret of type `claviger.dev/key-ring`: unwraps its index key, holds its document to
//! its MAC, and unwraps every ring key. Writes nothing, and needs no more than to list Secrets.

use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use serde::Deserialize;
use snafu::{OptionExt, ResultExt, Snafu, ensure};

use super::{Error, ListSnafu};
use crate::{
    domain::vault::{
        envelope::{IndexKey, KeyLabel, Mac, RootKey, Unopened},
        name::{VaultId, VaultRef},
        wrapped::Wrapped,
    },
    k8s::root_key::Material,
};

/// What was found of one vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The vault's namespace.
    pub namespace: String,
    /// The vault, or the Secret where it does not tell which vault's it is.
    pub vault: String,
    /// The versions of its key ring.
    pub versions: Vec<u32>,
    /// Whether it opens.
    pub verdict: Verdict,
}

/// Whether a vault opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does not, for the reason given.
    Closed(String),
    /// It does, all of it.
    Opens,
}

/// Tries a root key on every vault of a namespace, or of all; answers what was found, in order.
///
/// # Errors
/// [`Error::List`].
pub async fn verify(
    client: &Client,
    namespace: Option<&str>,
    key: &Material,
) -> Result<Vec<Finding>, Error> {
    let secrets: Api<Secret> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let root = key.root_key();
    let mut params = ListParams::default()
        .fields(&format!("type={TYPE}"))
        .limit(PAGE);
    let mut findings = Vec::new();
    loop {
        let page = secrets.list(&params).await.context(ListSnafu)?;
        findings.extend(page.items.iter().map(|secret| examine(secret, &root)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => break,
        }
    }
    findings
        .sort_by(|one, other| (&one.namespace, &one.vault).cmp(&(&other.namespace, &other.vault)));
    Ok(findings)
}

/// What of the ring document matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    vault_id: VaultId,
    namespace: String,
    name: String,
    index_key: Wrapped,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
    key: Wrapped,
}

/// Why a vault does not open.
#[derive(Debug, Snafu)]
enum Closed {
    #[snafu(display("{what}: {source}"))]
    Unopened { what: What, source: Unopened },
    #[snafu(display("the Secret has no {ENTRY_RING} or no {ENTRY_MAC} under its data"))]
    Incomplete,
    #[snafu(display("its document cannot be read"))]
    Malformed,
    #[snafu(display("its document is of format {format}: use a newer claviger"))]
    Newer { format: u32 },
    #[snafu(display("{what} was wrapped by root key {}, not by the one of the backup", root.escape_debug()))]
    OtherRoot { what: What, root: String },
    #[snafu(display("its document is that of another vault, {}/{}", namespace.escape_debug(), name.escape_debug()))]
    OtherVault { namespace: String, name: String },
}

#[derive(Clone, Copy, Debug)]
enum What {
    Document,
    Key(KeyLabel),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => f.write_str("its document"),
            Self::Key(KeyLabel::Index) => f.write_str("its index key"),
            Self::Key(KeyLabel::Ring(version)) => write!(f, "version {version} of its key ring"),
        }
    }
}

fn examine(secret: &Secret, root: &RootKey) -> Finding {
    let object = secret.name_any();
    let vault = object.strip_suffix(SUFFIX).unwrap_or(&object).to_owned();
    let namespace = secret.namespace().unwrap_or_default();
    let mut versions = Vec::new();
    let verdict = match open(secret, root, &mut versions) {
        Ok(()) => Verdict::Opens,
        Err(closed) => Verdict::Closed(closed.to_string()),
    };
    Finding {
        namespace,
        vault,
        versions,
        verdict,
    }
}

fn open(secret: &Secret, root: &RootKey, versions: &mut Vec<u32>) -> Result<(), Closed> {
    let entry = |name| secret.data.as_ref()?.get(name).map(|bytes| &*bytes.0);
    let (ring, mac) = entry(ENTRY_RING)
        .zip(entry(ENTRY_MAC))
        .context(IncompleteSnafu)?;
    let format = |ring| Some(serde_json::from_slice::<Format>(ring).ok()?.format);
    let found = format(ring).context(MalformedSnafu)?;
    ensure!(found == FORMAT, NewerSnafu { format: found });
    let document: Document = serde_json::from_slice(ring).ok().context(MalformedSnafu)?;
    versions.extend(document.versions.iter().map(|version| version.version));
    let Document {
        vault_id: id,
        namespace,
        name,
        ..
    } = document;
    ensure!(
        secret.namespace().as_ref() == Some(&namespace)
            && secret.name_any().strip_suffix(SUFFIX) == Some(name.as_str()),
        OtherVaultSnafu { namespace, name }
    );
    let vault = VaultRef {
        id,
        namespace,
        name,
    };
    let unwrap = |label, wrapped: &Wrapped| {
        let what = What::Key(label);
        ensure!(
            wrapped.root == root.id(),
            OtherRootSnafu {
                what,
                root: &wrapped.root
            }
        );
        root.unwrap_key(label, &vault, &wrapped.sealed.0)
            .context(UnopenedSnafu { what })
    };
    let index = IndexKey::new(unwrap(KeyLabel::Index, &document.index_key)?, &vault.id);
    let what = What::Document;
    Mac::try_from(mac)
        .and_then(|mac| index.verify_document(ring, &mac))
        .context(UnopenedSnafu { what })?;
    for Version { version, key } in &document.versions {
        unwrap(KeyLabel::Ring(*version), key)?;
    }
    Ok(())
}

/// Read first, so that a document of a newer format is known as such.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

const TYPE: &str = "claviger.dev/key-ring";
const SUFFIX: &str = "-key-ring";
const ENTRY_RING: &str = "ring";
const ENTRY_MAC: &str = "mac";
const FORMAT: u32 = 1;
const PAGE: u32 = 500;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;
    use kube::api::ObjectMeta;
    use serde_json::json;
    use zeroize::Zeroizing;

    use super::*;
    use crate::domain::vault::wrapped::Base64;

    fn root(byte: u8) -> RootKey {
        RootKey::new(Zeroizing::new([byte; 32]))
    }

    fn vault() -> VaultRef {
        VaultRef {
            id: VaultId([3; 16]),
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
        }
    }

    fn wrap(root: &RootKey, label: KeyLabel, key: &[u8; 32]) -> Wrapped {
        Wrapped {
            root: root.id().to_owned(),
            sealed: Base64(root.wrap_key(label, &vault(), key, [8; 12])),
            kms: None,
        }
    }

    /// A Secret as the controller writes it; `change` changes the document before its MAC is made.
    fn ring(change: impl FnOnce(&mut serde_json::Value)) -> Secret {
        let (root, index) = (root(1), [4; 32]);
        let mut document = json!({
            "format": 1,
            "vaultId": vault().id,
            "namespace": "shop",
            "name": "payments",
            "indexKey": wrap(&root, KeyLabel::Index, &index),
            "versions": [
                {"version": 2, "created": "2026-01-01T00:00:00Z", "key": wrap(&root, KeyLabel::Ring(2), &[5; 32])},
                {"version": 3, "created": "2026-02-01T00:00:00Z", "key": wrap(&root, KeyLabel::Ring(3), &[6; 32])},
            ],
            "last": 3,
            "shredded": [1],
            "marks": {},
        });
        change(&mut document);
        let document = document.to_string().into_bytes();
        let mac = IndexKey::new(Zeroizing::new(index), &vault().id).document_mac(&document);
        Secret {
            metadata: ObjectMeta {
                name: Some("payments-key-ring".to_owned()),
                namespace: Some("shop".to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                ("ring".to_owned(), ByteString(document)),
                ("mac".to_owned(), ByteString(mac.as_bytes().to_vec())),
            ])),
            ..Secret::default()
        }
    }

    fn closed(secret: &Secret, root: &RootKey) -> String {
        match examine(secret, root).verdict {
            Verdict::Closed(why) => why,
            Verdict::Opens => panic!("it opens"),
        }
    }

    #[test]
    fn a_vault_opens_with_the_root_key_that_wrapped_it() {
        let finding = examine(&ring(|_| {}), &root(1));
        assert_eq!(finding.verdict, Verdict::Opens);
        assert_eq!(finding.versions, [2, 3]);
        assert_eq!(
            (finding.namespace.as_str(), finding.vault.as_str()),
            ("shop", "payments")
        );
        assert!(
            closed(&ring(|_| {}), &root(2))
                .contains("its index key was wrapped by root key secret:")
        );
    }

    #[test]
    fn every_key_and_the_document_are_looked_at() {
        let kms = ring(|document| document["versions"][1]["key"]["root"] = json!("kms:k"));
        assert!(
            closed(&kms, &root(1))
                .contains("version 3 of its key ring was wrapped by root key kms:k")
        );

        let swapped = ring(|document| {
            document["versions"][0]["key"] = document["versions"][1]["key"].clone();
        });
        assert!(closed(&swapped, &root(1)).starts_with("version 2 of its key ring: "));

        let mut changed = ring(|_| {});
        for bytes in changed
            .data
            .iter_mut()
            .filter_map(|data| data.get_mut("mac"))
        {
            bytes.0[7] ^= 1;
        }
        assert!(closed(&changed, &root(1)).starts_with("its document: "));

        let newer = ring(|document| *document = json!({"format": 2}));
        assert!(closed(&newer, &root(1)).contains("use a newer claviger"));

        let mut moved = ring(|_| {});
        moved.metadata.namespace = Some("other".to_owned());
        assert!(closed(&moved, &root(1)).contains("another vault, shop/payments"));

        let mut empty = ring(|_| {});
        empty.data = None;
        assert!(closed(&empty, &root(1)).contains("no ring or no mac"));
        let garbage = ring(|document| *document = json!("x"));
        assert!(closed(&garbage, &root(1)).contains("cannot be read"));
    }
}
