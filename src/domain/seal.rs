//! A sealed second copy of a store's values, kept in an annotation of the same object.
//!
//! The Functions host replaces an object's whole `data` map and may so drop keys that clients are
//! using; annotations it leaves alone. The copy lets a dropped value be put back even if Claviger
//! was not running when it was dropped. Nobody can read it without the seal key, which stands in
//! Claviger's own namespace; losing that key loses no value, only the ability to undo such a drop.
//!
//! Format, version 1: `v1.<key id>.<base64url, unpadded, of nonce (12 bytes) ‖ ciphertext ‖ tag (16)>`.
//! AES-256-GCM under a key derived for the one object, HKDF-SHA256(seal key, info =
//! `claviger seal v1 ‖ 0x00 ‖ context`); associated data is `v1.<key id>`; plaintext is a JSON map of data
//! key to value. The key id is the first 8 hex digits of SHA-256(`claviger seal key id` ‖ key).
//! Nonces are random: NIST SP 800-38D allows 2^32 seals per key, here per object, which one write a
//! second reaches in 136 years.

use std::collections::BTreeMap;

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt, Snafu};
use zeroize::{Zeroize, Zeroizing};

use crate::domain::key::KeyMaterial;

const VERSION: &str = "v1";
const NONCE_BYTES: usize = 12;

/// A sealed copy does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Unopened {
    /// It was sealed under a key that is not this one.
    #[snafu(display("the sealed copy was made under another seal key"))]
    OtherKey,
    /// It is not what was sealed, or was sealed for another object.
    #[snafu(display("the sealed copy was changed, or belongs to another object"))]
    Tampered,
}

/// The key under which copies are sealed.
pub struct SealKey {
    bytes: Zeroizing<[u8; 32]>,
    id: String,
}

impl SealKey {
    /// A key of 32 random bytes.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"claviger seal key id");
        hash.update(bytes.as_slice());
        let hash = hash.finalize();
        let id = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let id = format!("{id:08x}");
        Self { bytes, id }
    }

    /// Whether this text was sealed under this key, as far as its header tells.
    pub fn sealed(&self, text: &str) -> bool {
        text.strip_prefix(VERSION)
            .and_then(|rest| rest.strip_prefix('.'))
            .and_then(|rest| rest.split_once('.'))
            .is_some_and(|(id, _)| id == self.id)
    }

    /// Seals the values of the object that `context` names; `nonce` is random.
    pub fn seal(
        &self,
        context: &str,
        values: &BTreeMap<String, KeyMaterial>,
        nonce: [u8; NONCE_BYTES],
    ) -> String {
        let exposed: BTreeMap<&str, &str> = values
            .iter()
            .map(|(entry, value)| (entry.as_str(), value.expose()))
            .collect();
        let plain =
            Zeroizing::new(serde_json::to_vec(&exposed).expect("a map of strings is always JSON"));
        let header = self.header();
        let mut sealed = nonce.to_vec();
        sealed.extend(
            self.cipher(context)
                .encrypt(
                    &nonce.into(),
                    Payload {
                        msg: &plain,
                        aad: header.as_bytes(),
                    },
                )
                .expect("AES-GCM seals anything below 64 GiB"),
        );
        format!("{header}.{}", URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens what [`Self::seal`] made for the same object.
    ///
    /// # Errors
    /// [`Unopened`], which tells nothing of the content.
    pub fn open(
        &self,
        context: &str,
        text: &str,
    ) -> Result<BTreeMap<String, KeyMaterial>, Unopened> {
        if !self.sealed(text) {
            return OtherKeySnafu.fail();
        }
        let header = self.header();
        let body = text.get(header.len() + 1..).context(TamperedSnafu)?;
        let sealed = URL_SAFE_NO_PAD.decode(body).ok().context(TamperedSnafu)?;
        let (nonce, ciphertext) = sealed
            .split_at_checked(NONCE_BYTES)
            .context(TamperedSnafu)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().ok().context(TamperedSnafu)?;
        let plain = self
            .cipher(context)
            .decrypt(
                &nonce.into(),
                Payload {
                    msg: ciphertext,
                    aad: header.as_bytes(),
                },
            )
            .ok()
            .context(TamperedSnafu)?;
        let plain = Zeroizing::new(plain);
        let values: BTreeMap<String, String> =
            serde_json::from_slice(&plain).ok().context(TamperedSnafu)?;
        Ok(values
            .into_iter()
            .map(|(entry, value)| (entry, KeyMaterial::new(value)))
            .collect())
    }

    fn header(&self) -> String {
        format!("{VERSION}.{}", self.id)
    }

    fn cipher(&self, context: &str) -> Aes256Gcm {
        let mut derived = [0_u8; 32];
        let info: [&[u8]; 2] = [b"claviger seal v1\0", context.as_bytes()];
        Hkdf::<Sha256>::new(None, self.bytes.as_slice())
            .expand_multi_info(&info, &mut derived)
            .expect("32 bytes are within HKDF-SHA256's reach");
        let cipher = Aes256Gcm::new(&derived.into());
        derived.zeroize();
        cipher
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: &str = "Secret/shop/keys";

    fn key(byte: u8) -> SealKey {
        SealKey::new(Zeroizing::new([byte; 32]))
    }

    fn values() -> BTreeMap<String, KeyMaterial> {
        BTreeMap::from([("host.master".to_owned(), KeyMaterial::new("v".repeat(56)))])
    }

    #[test]
    fn opens_to_what_was_sealed() {
        let sealed = key(1).seal(CONTEXT, &values(), [7; 12]);
        assert!(!sealed.contains("vvvv"));
        assert_eq!(key(1).open(CONTEXT, &sealed), Ok(values()));
    }

    #[test]
    fn refuses_another_key_another_object_and_any_changed_character() {
        let sealed = key(1).seal(CONTEXT, &values(), [7; 12]);
        assert_eq!(key(2).open(CONTEXT, &sealed), Err(Unopened::OtherKey));
        assert_eq!(
            key(1).open("Secret/shop/other", &sealed),
            Err(Unopened::Tampered)
        );
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(key(1).open(CONTEXT, &changed).is_err(), "character {at}");
        }
        assert_eq!(key(1).open(CONTEXT, ""), Err(Unopened::OtherKey));
    }
}
