//! The keys of one vault's ring, sealed to the recovery recipients.
//!
//! The controller keeps such a file in the key ring's own Secret, so that a vault comes back even if
//! the root key or the KMS that wraps its ring is lost for good, and without its backup. Inside is
//! one line of JSON ([`RingFile`]):
//!
//! ```json
//! {"kind":"claviger-key-ring","format":1,"vaultId":"…","namespace":"shop","name":"payments",
//!  "indexKey":"<base64>","versions":{"1":"<base64>"}}
//! ```
//!
//! It is authenticated by the ring's own MAC: its index key must be the one that made it.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::Client;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use snafu::{OptionExt, ResultExt, ensure};
use zeroize::Zeroizing;

use super::{
    AlreadyOpensSnafu, Error, NoRecoverySnafu, NoRingSnafu, NoRootKeySnafu, NotOfThisRingSnafu,
    ReadRingSnafu, Recipients, RootKeySnafu, UnreadableRingSnafu, WriteRingSnafu, open_with,
    seal_to,
};
use crate::{
    domain::vault::{
        envelope::{IndexKey, KeyLabel, Mac, RootKey},
        name::{VaultId, VaultRef},
        ring::RingDocument,
        wrapped::{Base64, Wrapped},
    },
    k8s::{
        root_key::{self, Absent},
        vault::{Found, Ring, Vaults},
    },
};

/// The keys of a ring, as they are.
pub struct RingKeys {
    /// The vault.
    pub vault: VaultRef,
    /// Its index key.
    pub index: Zeroizing<[u8; 32]>,
    /// Its versions, by number.
    pub versions: BTreeMap<u32, Zeroizing<[u8; 32]>>,
}

/// The content of a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RingFile {
    kind: String,
    format: u32,
    vault_id: VaultId,
    namespace: String,
    name: String,
    index_key: Key,
    versions: BTreeMap<u32, Key>,
}

/// 32 bytes that are written as base64.
struct Key(Zeroizing<[u8; 32]>);

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.0.as_slice())))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut key = Zeroizing::new([0; 32]);
        match STANDARD.decode_slice(&*text, key.as_mut_slice()) {
            Ok(32) => Ok(Self(key)),
            _ => Err(de::Error::custom("not 32 bytes")),
        }
    }
}

/// Seals the keys of a ring; answers an armored age file.
///
/// # Errors
/// [`Error::NoRecipient`].
pub fn seal_ring(recipients: &Recipients, keys: &RingKeys) -> Result<String, Error> {
    let file = RingFile {
        kind: KIND.to_owned(),
        format: FORMAT,
        vault_id: keys.vault.id,
        namespace: keys.vault.namespace.clone(),
        name: keys.vault.name.clone(),
        index_key: Key(keys.index.clone()),
        versions: keys
            .versions
            .iter()
            .map(|(version, key)| (*version, Key(key.clone())))
            .collect(),
    };
    // Large enough from the start: a buffer that grows leaves copies behind.
    let mut json = Zeroizing::new(Vec::with_capacity(512 + 64 * file.versions.len()));
    serde_json::to_writer(&mut *json, &file).expect("texts and numbers are always JSON");
    json.push(b'\n');
    seal_to(recipients, &json)
}

/// Opens what [`seal_ring`] made.
///
/// # Errors
/// As for [`open_with`], and [`Error::NotOfThisRing`].
pub fn open_ring(identities: &str, sealed: &[u8]) -> Result<RingKeys, Error> {
    let plaintext = open_with(identities, sealed)?;
    let refused = |fault| NotOfThisRingSnafu { fault };
    let file: RingFile = serde_json::from_slice(&plaintext)
        .ok()
        .context(refused("is not the JSON of a key ring's keys"))?;
    ensure!(file.kind == KIND, refused("is of another kind"));
    ensure!(
        file.format == FORMAT,
        refused("is of a newer format: use a newer claviger")
    );
    Ok(RingKeys {
        vault: VaultRef {
            id: file.vault_id,
            namespace: file.namespace,
            name: file.name,
        },
        index: file.index_key.0,
        versions: file
            .versions
            .into_iter()
            .map(|(version, Key(key))| (version, key))
            .collect(),
    })
}

/// A key ring that was wrapped anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The id of the root key that wraps it now.
    pub root_key: String,
    /// The versions of the ring.
    pub versions: Vec<u32>,
}

/// Wraps the key ring of a vault with the root key of the cluster, from what is sealed to the
/// recipients in its own Secret. `absent` says what to do if there is no root key.
///
/// # Errors
/// See [`Error`]; [`Error::AlreadyOpens`] if that root key opens it as it is.
pub async fn restore_ring(
    client: &Client,
    system: &str,
    (namespace, vault): (&str, &str),
    identities: &str,
    absent: Absent,
) -> Result<Restored, Error> {
    let vaults = Vaults::new(client.clone());
    let found = vaults
        .ring(namespace, vault)
        .await
        .context(ReadRingSnafu { namespace, vault })?;
    let Found::Ours(ring) = found else {
        return NoRingSnafu { namespace, vault }.fail();
    };
    let recovery = ring
        .recovery
        .as_ref()
        .context(NoRecoverySnafu { namespace, vault })?;
    let keys = open_ring(identities, recovery.file.as_bytes())?;
    let document = RingDocument::parse(&ring.document)
        .ok()
        .context(UnreadableRingSnafu { namespace, vault })?;
    let index = checked(&ring, &document, &keys, (namespace, vault))?;
    let key = match absent {
        Absent::Refuse => root_key::read(client, system)
            .await
            .context(RootKeySnafu)?
            .context(NoRootKeySnafu { namespace: system })?,
        Absent::Mint => root_key::obtain(client, system, Zeroizing::new(random()), absent)
            .await
            .context(RootKeySnafu)?,
    };
    let root = key.root_key();
    ensure!(
        !opens(&document, &root),
        AlreadyOpensSnafu { namespace, vault }
    );
    let document = rewrapped(document, &keys, &root).context(NotOfThisRingSnafu {
        fault: "lacks a version of the key ring",
    })?;
    let versions = document.versions.iter().map(|one| one.version).collect();
    let bytes = document.render();
    let new = Ring {
        mac: index.document_mac(&bytes).as_bytes().to_vec(),
        document: bytes,
        ..ring.clone()
    };
    vaults
        .write_ring(namespace, vault, &ring.version, &new)
        .await
        .context(WriteRingSnafu { namespace, vault })?;
    Ok(Restored {
        root_key: root.id().to_owned(),
        versions,
    })
}

/// The ring's index key, once document and keys were found to belong together and to this vault.
fn checked(
    ring: &Ring,
    document: &RingDocument,
    keys: &RingKeys,
    (namespace, vault): (&str, &str),
) -> Result<IndexKey, Error> {
    ensure!(
        document.vault() == keys.vault
            && (keys.vault.namespace.as_str(), keys.vault.name.as_str()) == (namespace, vault),
        NotOfThisRingSnafu {
            fault: "is of another vault"
        }
    );
    let index = IndexKey::new(keys.index.clone(), &keys.vault.id);
    Mac::try_from(ring.mac.as_slice())
        .and_then(|mac| index.verify_document(&ring.document, &mac))
        .ok()
        .context(UnreadableRingSnafu { namespace, vault })?;
    Ok(index)
}

fn opens(document: &RingDocument, root: &RootKey) -> bool {
    let vault = document.vault();
    let open = |label, wrapped: &Wrapped| {
        wrapped.root == root.id() && root.unwrap_key(label, &vault, &wrapped.sealed.0).is_ok()
    };
    open(KeyLabel::Index, &document.index_key)
        && document
            .versions
            .iter()
            .all(|version| open(KeyLabel::Ring(version.version), &version.key))
}

fn rewrapped(mut document: RingDocument, keys: &RingKeys, root: &RootKey) -> Option<RingDocument> {
    let wrap = |label, key: &[u8; 32]| Wrapped {
        root: root.id().to_owned(),
        sealed: Base64(root.wrap_key(label, &keys.vault, key, random())),
        kms: None,
    };
    document.index_key = wrap(KeyLabel::Index, &keys.index);
    for version in &mut document.versions {
        let key = keys.versions.get(&version.version)?;
        version.key = wrap(KeyLabel::Ring(version.version), key);
    }
    Some(document)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .expect("the operating system's random source never fails once it is seeded");
    bytes
}

const KIND: &str = "claviger-key-ring";
const FORMAT: u32 = 1;

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn keys() -> RingKeys {
        RingKeys {
            vault: VaultRef {
                id: VaultId([3; 16]),
                namespace: "shop".to_owned(),
                name: "payments".to_owned(),
            },
            index: Zeroizing::new([4; 32]),
            versions: [(2, Zeroizing::new([5; 32])), (10, Zeroizing::new([6; 32]))].into(),
        }
    }

    #[test]
    fn a_ring_is_read_back_and_anything_else_refused() {
        let identity = age::x25519::Identity::generate();
        let (secret, public) = (identity.to_string(), identity.to_public().to_string());
        let secret = secret.expose_secret();
        let recipients = Recipients::parse(&[public]).unwrap();
        let sealed = seal_ring(&recipients, &keys()).unwrap();
        let opened = open_ring(secret, sealed.as_bytes()).unwrap();
        assert_eq!(opened.vault, keys().vault);
        assert_eq!(opened.index, keys().index);
        assert_eq!(opened.versions, keys().versions);
        let text = open_with(secret, sealed.as_bytes()).unwrap();
        assert_eq!(
            str::from_utf8(&text).unwrap(),
            "{\"kind\":\"claviger-key-ring\",\"format\":1,\"vaultId\":\"03030303030303030303030303030303\",\
             \"namespace\":\"shop\",\"name\":\"payments\",\
             \"indexKey\":\"BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=\",\
             \"versions\":{\"2\":\"BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\",\
             \"10\":\"BgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgY=\"}}\n"
        );
        let text = str::from_utf8(&text).unwrap();
        for (from, to) in [
            ("claviger-key-ring", "claviger-root-key"),
            ("\"format\":1", "\"format\":2"),
            ("BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=", "BAQE"),
            ("\"name\"", "\"nome\""),
        ] {
            let other = seal_to(&recipients, text.replace(from, to).as_bytes()).unwrap();
            let error = open_ring(secret, other.as_bytes()).err().unwrap();
            assert!(matches!(error, Error::NotOfThisRing { .. }), "{error}");
            assert!(!error.to_string().contains("BAQE"), "{error}");
        }
    }
}
