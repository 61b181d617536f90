//! Sealing and opening, format version 1. `FORMAT.md` beside this file is the whole of it.
//!
//! Everything is bound to the entry it was made for: the vault's id, its namespace and name, the
//! secret's name (case aside), the sequence and the version id; a wrapped data key and the MAC of
//! the attributes also to the version of the ring. So an entry opens in its own place only, and an
//! error never tells anything of the content.
//!
//! Keys and nonces come in as arguments; a nonce is 12 random bytes that were never used before.
//! The types that hold keys cannot be cloned or printed and are overwritten when dropped.

use std::{fmt, str::FromStr};

use aes_gcm::{Aes256Gcm, KeyInit as _, aead::AeadInOut as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt as _, Snafu, ensure};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::name::{SecretName, VaultId, VaultRef, VersionId, append_prefixed};

/// The longest value that a secret may have, in bytes. Who takes values in holds them to it;
/// neither [`DataKey::seal`] nor [`DataKey::open`] does, so that no value that got in is lost by it.
pub const VALUE_LIMIT: usize = 25 * 1024;

/// What is sealed or wrapped begins with this byte.
const FORMAT: u8 = 1;
/// The same in the text of an [`Envelope`].
const FORMAT_TEXT: &str = "v1";
/// Stands in an [`Envelope`] where there is no data key.
const NONE: &str = "-";

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const MAC_BYTES: usize = 32;
const WRAPPED_BYTES: usize = 1 + NONCE_BYTES + KEY_BYTES + TAG_BYTES;

/// Something of a vault does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Unopened {
    /// It is not of this format.
    #[snafu(display("this is not in format version 1 of a vault's ciphertext"))]
    Malformed,
    /// It was made under another version of the key ring.
    #[snafu(display("this was made under version {ring} of the key ring"))]
    OtherRing {
        /// That version.
        ring: u32,
    },
    /// It is not what was made for this place under this key.
    #[snafu(display("this was changed, belongs elsewhere, or was made under another key"))]
    Tampered,
}

/// The place in a vault that an entry belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The vault.
    pub vault: &'a VaultRef,
    /// The secret in it.
    pub secret: &'a SecretName,
    /// The entry of the secret's history.
    pub sequence: u32,
    /// The id of that entry.
    pub version: VersionId,
}

impl Binding<'_> {
    /// The label of what is bound here, then the place.
    fn under(&self, label: &str) -> Vec<u8> {
        let mut text = Vec::with_capacity(256);
        append_prefixed(&mut text, label.as_bytes());
        text.extend(self.vault.id.0);
        append_prefixed(&mut text, self.vault.namespace.as_bytes());
        append_prefixed(&mut text, self.vault.name.as_bytes());
        append_prefixed(&mut text, self.secret.folded().as_bytes());
        text.extend(self.sequence.to_be_bytes());
        text.extend(self.version.0);
        text
    }
}

/// The key of one payload: made for it, used for one seal, thrown away with it.
pub struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

impl DataKey {
    /// A key of 32 random bytes.
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    /// Seals the value of an entry; gives its payload.
    pub fn seal(&self, binding: &Binding<'_>, nonce: [u8; NONCE_BYTES], value: &[u8]) -> Vec<u8> {
        seal(&self.cipher(), nonce, &binding.under(PAYLOAD), value)
    }

    /// Opens the payload of an entry.
    ///
    /// # Errors
    /// [`Unopened`], which tells nothing of the content.
    pub fn open(
        &self,
        binding: &Binding<'_>,
        payload: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        open(&self.cipher(), &binding.under(PAYLOAD), payload)
    }

    fn cipher(&self) -> Aes256Gcm {
        cipher(&self.0)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…redacted…)")
    }
}

/// One version of a vault's key ring: wraps data keys and authenticates attributes.
pub struct RingKey {
    version: u32,
    cipher: Aes256Gcm,
    mac_key: Zeroizing<[u8; KEY_BYTES]>,
}

impl RingKey {
    /// The version of that number, which counts from 1, of 32 random bytes.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "who hands a key over keeps no copy"
    )]
    pub fn new(version: u32, bytes: Zeroizing<[u8; KEY_BYTES]>, vault: &VaultId) -> Self {
        Self {
            version,
            cipher: cipher(&bytes),
            mac_key: derive(&bytes, "claviger attributes key v1", vault),
        }
    }

    /// Its number in the ring.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Wraps the data key of an entry.
    pub fn wrap(
        &self,
        binding: &Binding<'_>,
        key: &DataKey,
        nonce: [u8; NONCE_BYTES],
    ) -> WrappedKey {
        let wrapped = seal(
            &self.cipher,
            nonce,
            &self.data_key(binding),
            key.0.as_slice(),
        );
        WrappedKey(wrapped.try_into().expect("a sealed key has a fixed length"))
    }

    /// Unwraps the data key of an entry.
    ///
    /// # Errors
    /// [`Unopened::Tampered`] if it was not wrapped for this entry by this version of the ring.
    pub fn unwrap(&self, binding: &Binding<'_>, wrapped: &WrappedKey) -> Result<DataKey, Unopened> {
        open_key(&self.cipher, &self.data_key(binding), &wrapped.0).map(DataKey)
    }

    /// Authenticates the attributes of an entry, and that they go with this wrapped data key (or,
    /// for a marker, with none).
    pub fn mac(
        &self,
        binding: &Binding<'_>,
        wrapped: Option<&WrappedKey>,
        attributes: &str,
    ) -> Mac {
        let mut head = binding.under("claviger attributes v1");
        head.extend(self.version.to_be_bytes());
        append_prefixed(&mut head, wrapped.map_or(&[], WrappedKey::as_bytes));
        let length =
            u32::try_from(attributes.len()).expect("annotations are far shorter than 4 GiB");
        head.extend(length.to_be_bytes());
        authenticate(&self.mac_key, &[&head, attributes.as_bytes()])
    }

    /// Says whether envelope and attributes of an entry are what was written for it, together.
    ///
    /// # Errors
    /// [`Unopened::OtherRing`] if the envelope names another version of the ring,
    /// [`Unopened::Tampered`] if anything was changed.
    pub fn verify(
        &self,
        binding: &Binding<'_>,
        envelope: &Envelope,
        attributes: &str,
    ) -> Result<(), Unopened> {
        let Envelope { ring, wrapped, mac } = envelope;
        ensure!(*ring == self.version, OtherRingSnafu { ring: *ring });
        let expected = self.mac(binding, wrapped.as_ref(), attributes);
        ensure!(expected == *mac, TamperedSnafu);
        Ok(())
    }

    /// What a wrapped data key is bound to.
    fn data_key(&self, binding: &Binding<'_>) -> Vec<u8> {
        let mut text = binding.under("claviger data key v1");
        text.extend(self.version.to_be_bytes());
        text
    }
}

impl fmt::Debug for RingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingKey({}, …redacted…)", self.version)
    }
}

/// A data key under a ring key: ciphertext, no secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WrappedKey([u8; WRAPPED_BYTES]);

impl WrappedKey {
    /// The bytes as they are stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<&[u8]> for WrappedKey {
    type Error = Unopened;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        ensure!(bytes.first() == Some(&FORMAT), MalformedSnafu);
        bytes.try_into().ok().map(Self).context(MalformedSnafu)
    }
}

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappedKey({})", URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// What proves that something is as Claviger wrote it; compared in constant time.
#[derive(Clone, Copy)]
pub struct Mac([u8; MAC_BYTES]);

impl Mac {
    /// The bytes as they are stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Mac {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Mac {}

impl TryFrom<&[u8]> for Mac {
    type Error = Unopened;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().ok().map(Self).context(MalformedSnafu)
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({})", URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// What stands beside the payload of an entry and changes when the entry is re-wrapped.
///
/// Its text is `v1.<ring version>.<wrapped data key, or - for a marker>.<MAC of the attributes>`;
/// there is one spelling of it and no other is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The version of the key ring, which counts from 1.
    pub ring: u32,
    /// The data key; a marker has none.
    pub wrapped: Option<WrappedKey>,
    /// The MAC of the attributes.
    pub mac: Mac,
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrapped = self.wrapped.map_or_else(
            || NONE.to_owned(),
            |wrapped| URL_SAFE_NO_PAD.encode(wrapped.0),
        );
        let mac = URL_SAFE_NO_PAD.encode(self.mac.0);
        write!(f, "{FORMAT_TEXT}.{}.{wrapped}.{mac}", self.ring)
    }
}

impl FromStr for Envelope {
    type Err = Unopened;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut fields = text.split('.');
        let (Some(FORMAT_TEXT), Some(ring), Some(wrapped), Some(mac), None) = (
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
        ) else {
            return MalformedSnafu.fail();
        };
        Ok(Self {
            ring: counting_number(ring).context(MalformedSnafu)?,
            wrapped: match wrapped {
                NONE => None,
                wrapped => Some(WrappedKey::try_from(decode(wrapped)?.as_slice())?),
            },
            mac: Mac::try_from(decode(mac)?.as_slice())?,
        })
    }
}

/// The permanent key of a vault that authenticates its key ring and names its values. It survives
/// every rotation, so what was recorded stays comparable.
pub struct IndexKey {
    document_key: Zeroizing<[u8; KEY_BYTES]>,
    digest_key: Zeroizing<[u8; KEY_BYTES]>,
}

impl IndexKey {
    /// A key of 32 random bytes.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "who hands a key over keeps no copy"
    )]
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>, vault: &VaultId) -> Self {
        Self {
            document_key: derive(&bytes, "claviger key ring v1", vault),
            digest_key: derive(&bytes, "claviger digest v1", vault),
        }
    }

    /// Authenticates the document that is the key ring.
    pub fn document_mac(&self, document: &[u8]) -> Mac {
        authenticate(&self.document_key, &[document])
    }

    /// Says whether a document is the one that this MAC was made for.
    ///
    /// # Errors
    /// [`Unopened::Tampered`] if it is not.
    pub fn verify_document(&self, document: &[u8], mac: &Mac) -> Result<(), Unopened> {
        ensure!(self.document_mac(document) == *mac, TamperedSnafu);
        Ok(())
    }

    /// Names a value without revealing it. The context says what the value is, so that equal values
    /// in two places are not seen to be equal.
    pub fn digest(&self, context: &str, value: &[u8]) -> ValueDigest {
        let mut head = Vec::new();
        append_prefixed(&mut head, context.as_bytes());
        let Mac(full) = authenticate(&self.digest_key, &[&head, value]);
        let mut short = [0; ValueDigest::BYTES];
        short.copy_from_slice(&full[..ValueDigest::BYTES]);
        ValueDigest(short)
    }
}

impl fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexKey(…redacted…)")
    }
}

/// The name of a value within one vault, written as 22 characters of unpadded base64url. Without
/// the vault's index key nobody can try values against it, not even weak ones. Compared in constant
/// time.
#[derive(Clone, Copy)]
pub struct ValueDigest([u8; ValueDigest::BYTES]);

impl ValueDigest {
    /// 128 bits: two different values never share it by chance.
    const BYTES: usize = 16;

    /// The bytes as they are written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for ValueDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ValueDigest {}

impl fmt::Display for ValueDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for ValueDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ValueDigest({self})")
    }
}

impl FromStr for ValueDigest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = decode(text).ok().context(InvalidDigestSnafu)?;
        bytes.try_into().ok().map(Self).context(InvalidDigestSnafu)
    }
}

impl Serialize for ValueDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ValueDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A text is not a [`ValueDigest`]. The text is left out: it may be a value in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
#[snafu(display("a digest of a value is 22 characters of unpadded base64url"))]
pub struct InvalidDigest;

/// The key that wraps the keys of vaults. With a KMS it is a wrapping key made for one key alone,
/// which the KMS encrypts in turn.
pub struct RootKey {
    cipher: Aes256Gcm,
    id: String,
}

impl RootKey {
    /// A key of 32 random bytes; its id follows from them.
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"claviger root key id");
        hash.update(bytes.as_slice());
        let hash = hash.finalize();
        let mut front = [0; 8];
        front.copy_from_slice(&hash[..8]);
        let id = format!("secret:{:016x}", u64::from_be_bytes(front));
        Self::with_id(bytes, id)
    }

    /// A key of 32 random bytes that is known by another id: `kms:` and the KMS's own.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "who hands a key over keeps no copy"
    )]
    pub fn with_id(bytes: Zeroizing<[u8; KEY_BYTES]>, id: String) -> Self {
        Self {
            cipher: cipher(&bytes),
            id,
        }
    }

    /// What it is known by: `secret:` and 16 hexadecimal digits, or what it was given.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Wraps a key of a vault.
    pub fn wrap_key(
        &self,
        label: KeyLabel,
        vault: &VaultRef,
        key: &[u8; KEY_BYTES],
        nonce: [u8; NONCE_BYTES],
    ) -> Vec<u8> {
        seal(&self.cipher, nonce, &self.vault_key(label, vault), key)
    }

    /// Unwraps a key of a vault.
    ///
    /// # Errors
    /// [`Unopened`] if it is no wrapped key, or was not wrapped for this use by this root key.
    pub fn unwrap_key(
        &self,
        label: KeyLabel,
        vault: &VaultRef,
        wrapped: &[u8],
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, Unopened> {
        ensure!(wrapped.len() == WRAPPED_BYTES, MalformedSnafu);
        open_key(&self.cipher, &self.vault_key(label, vault), wrapped)
    }

    /// What a wrapped key of a vault is bound to.
    fn vault_key(&self, label: KeyLabel, vault: &VaultRef) -> Vec<u8> {
        let (label, version) = match label {
            KeyLabel::Index => ("claviger index key v1", 0),
            KeyLabel::Ring(version) => ("claviger ring key v1", version),
        };
        let mut text = Vec::new();
        append_prefixed(&mut text, label.as_bytes());
        text.extend(vault.id.0);
        append_prefixed(&mut text, vault.namespace.as_bytes());
        append_prefixed(&mut text, vault.name.as_bytes());
        text.extend(version.to_be_bytes());
        append_prefixed(&mut text, self.id.as_bytes());
        text
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKey({}, …redacted…)", self.id)
    }
}

/// Which key of a vault the root key wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyLabel {
    /// The index key.
    Index,
    /// The ring key of that version.
    Ring(u32),
}

const PAYLOAD: &str = "claviger payload v1";

fn cipher(key: &[u8; KEY_BYTES]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

/// Format byte, nonce, ciphertext, tag.
fn seal(cipher: &Aes256Gcm, nonce: [u8; NONCE_BYTES], bound: &[u8], plain: &[u8]) -> Vec<u8> {
    const HEAD: usize = 1 + NONCE_BYTES;
    let mut sealed = Vec::with_capacity(HEAD + plain.len() + TAG_BYTES);
    sealed.push(FORMAT);
    sealed.extend(nonce);
    // Encrypted where it comes to stand: no second copy of the plain text is left behind.
    sealed.extend(plain);
    let tag = cipher
        .encrypt_inout_detached(&nonce.into(), bound, (&mut sealed[HEAD..]).into())
        .expect("AES-GCM seals anything below 64 GiB");
    sealed.extend(tag);
    sealed
}

fn open(cipher: &Aes256Gcm, bound: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopened> {
    let (&FORMAT, rest) = sealed.split_first().context(MalformedSnafu)? else {
        return MalformedSnafu.fail();
    };
    let (nonce, rest) = rest
        .split_first_chunk::<NONCE_BYTES>()
        .context(MalformedSnafu)?;
    ensure!(rest.len() >= TAG_BYTES, MalformedSnafu);
    let mut plain = Zeroizing::new(rest.to_vec());
    cipher
        .decrypt_in_place(&(*nonce).into(), bound, &mut *plain)
        .ok()
        .context(TamperedSnafu)?;
    Ok(plain)
}

fn open_key(
    cipher: &Aes256Gcm,
    bound: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<[u8; KEY_BYTES]>, Unopened> {
    let plain = open(cipher, bound, sealed)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    ensure!(plain.len() == key.len(), TamperedSnafu);
    key.copy_from_slice(&plain);
    Ok(key)
}

/// HKDF-SHA256: a key for one use in one vault.
fn derive(key: &[u8; KEY_BYTES], info: &str, vault: &VaultId) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut derived = Zeroizing::new([0; KEY_BYTES]);
    Hkdf::<Sha256>::new(None, key)
        .expand_multi_info(&[info.as_bytes(), &vault.0], derived.as_mut_slice())
        .expect("32 bytes are within HKDF-SHA256's reach");
    derived
}

/// HMAC-SHA256 of the parts in a row.
fn authenticate(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> Mac {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    Mac(mac.finalize().into_bytes().into())
}

/// Strict: no padding, no unused bits, no other alphabet.
fn decode(text: &str) -> Result<Vec<u8>, Unopened> {
    URL_SAFE_NO_PAD.decode(text).ok().context(MalformedSnafu)
}

/// A number from 1 as `Display` writes it: no sign, no leading zero.
fn counting_number(text: &str) -> Option<u32> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    canonical.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALUE: &[u8] = b"correct horse battery staple";
    const ATTRIBUTES: &str = r#"{"kind":"version","created":"2026-11-22T08:00:00Z"}"#;

    fn vault() -> VaultRef {
        VaultRef {
            id: VaultId([1; 16]),
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
        }
    }

    fn secret(name: &str) -> SecretName {
        SecretName::parse(name).unwrap()
    }

    fn bytes(byte: u8) -> Zeroizing<[u8; 32]> {
        Zeroizing::new([byte; 32])
    }

    fn ring(version: u32) -> RingKey {
        RingKey::new(version, bytes(9), &vault().id)
    }

    /// An entry with all that belongs to it.
    struct Entry {
        vault: VaultRef,
        secret: SecretName,
        sequence: u32,
        version: VersionId,
        payload: Vec<u8>,
        envelope: Envelope,
        attributes: String,
    }

    impl Entry {
        fn new() -> Self {
            let mut entry = Self {
                vault: vault(),
                secret: secret("db-password"),
                sequence: 7,
                version: VersionId([2; 16]),
                payload: Vec::new(),
                envelope: marker(),
                attributes: ATTRIBUTES.to_owned(),
            };
            let key = DataKey::new(bytes(3));
            let payload = key.seal(&entry.binding(), [4; 12], VALUE);
            let wrapped = ring(5).wrap(&entry.binding(), &key, [6; 12]);
            let mac = ring(5).mac(&entry.binding(), Some(&wrapped), ATTRIBUTES);
            entry.payload = payload;
            entry.envelope = Envelope {
                ring: 5,
                wrapped: Some(wrapped),
                mac,
            };
            entry
        }

        fn binding(&self) -> Binding<'_> {
            Binding {
                vault: &self.vault,
                secret: &self.secret,
                sequence: self.sequence,
                version: self.version,
            }
        }

        fn verify(&self) -> Result<(), Unopened> {
            ring(5).verify(&self.binding(), &self.envelope, &self.attributes)
        }

        /// Opens without looking at the MAC: wrapped key and payload must hold by themselves.
        fn open(&self) -> Result<Zeroizing<Vec<u8>>, Unopened> {
            let wrapped = self.envelope.wrapped.as_ref().context(MalformedSnafu)?;
            ring(5)
                .unwrap(&self.binding(), wrapped)?
                .open(&self.binding(), &self.payload)
        }
    }

    fn marker() -> Envelope {
        Envelope {
            ring: 5,
            wrapped: None,
            mac: Mac([0; 32]),
        }
    }

    #[test]
    fn opens_to_what_was_sealed() {
        let entry = Entry::new();
        assert_eq!(entry.verify(), Ok(()));
        assert_eq!(entry.open().unwrap().as_slice(), VALUE);
        assert_eq!(entry.payload.len(), 1 + 12 + VALUE.len() + 16);
        assert_eq!(entry.envelope.wrapped.unwrap().as_bytes().len(), 61);
        let text = entry.envelope.to_string();
        assert_eq!(text.parse(), Ok(entry.envelope));
        assert_eq!(text.len(), "v1.5.".len() + 82 + 1 + 43);

        let mut respelt = Entry::new();
        respelt.secret = secret("DB-Password");
        assert_eq!(respelt.verify(), Ok(()));
        assert_eq!(respelt.open().unwrap().as_slice(), VALUE);
    }

    #[test]
    fn a_marker_is_authentic_without_a_payload_and_takes_none() {
        let mut entry = Entry::new();
        let wrapped = entry.envelope.wrapped.take();
        assert_eq!(entry.verify(), Err(Unopened::Tampered));
        entry.envelope.mac = ring(5).mac(&entry.binding(), None, ATTRIBUTES);
        assert_eq!(entry.verify(), Ok(()));
        let text = entry.envelope.to_string();
        assert!(text.starts_with("v1.5.-."), "{text}");
        assert_eq!(text.parse().as_ref(), Ok(&entry.envelope));
        entry.envelope.wrapped = wrapped;
        assert_eq!(entry.verify(), Err(Unopened::Tampered));
    }

    #[test]
    fn refuses_every_flipped_bit() {
        let flips =
            |length: usize| (0..length).flat_map(|at| (0..8).map(move |bit| (at, 1 << bit)));
        for (at, bit) in flips(Entry::new().payload.len()) {
            let mut entry = Entry::new();
            entry.payload[at] ^= bit;
            let expected = if at == 0 {
                Unopened::Malformed
            } else {
                Unopened::Tampered
            };
            assert_eq!(entry.open().unwrap_err(), expected, "payload, byte {at}");
        }
        for (at, bit) in flips(WRAPPED_BYTES) {
            let mut entry = Entry::new();
            entry.envelope.wrapped.as_mut().unwrap().0[at] ^= bit;
            assert!(entry.open().is_err(), "wrapped key, byte {at}");
            assert_eq!(
                entry.verify(),
                Err(Unopened::Tampered),
                "wrapped key, byte {at}"
            );
        }
        for (at, bit) in flips(MAC_BYTES) {
            let mut entry = Entry::new();
            entry.envelope.mac.0[at] ^= bit;
            assert_eq!(entry.verify(), Err(Unopened::Tampered), "MAC, byte {at}");
        }
        for (at, bit) in flips(ATTRIBUTES.len()) {
            let mut changed = ATTRIBUTES.as_bytes().to_vec();
            changed[at] ^= bit;
            let mut entry = Entry::new();
            // The highest bit leaves no UTF-8, which no annotation can hold.
            let Ok(changed) = String::from_utf8(changed) else {
                continue;
            };
            entry.attributes = changed;
            assert_eq!(
                entry.verify(),
                Err(Unopened::Tampered),
                "attributes, byte {at}"
            );
        }
        let text = Entry::new().envelope.to_string();
        for (at, bit) in flips(text.len()) {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= bit;
            let Ok(changed) = String::from_utf8(changed) else {
                continue;
            };
            let Ok(envelope) = changed.parse::<Envelope>() else {
                continue;
            };
            assert_eq!(envelope.to_string(), changed);
            let mut entry = Entry::new();
            entry.envelope = envelope;
            assert!(entry.verify().is_err(), "envelope, character {at}");
        }
    }

    #[test]
    fn refuses_what_was_cut_or_prolonged() {
        let whole = Entry::new();
        for length in 0..whole.payload.len() {
            let mut entry = Entry::new();
            entry.payload.truncate(length);
            let expected = if length < 1 + NONCE_BYTES + TAG_BYTES {
                Unopened::Malformed
            } else {
                Unopened::Tampered
            };
            assert_eq!(entry.open().unwrap_err(), expected, "{length} bytes");
        }
        let mut entry = Entry::new();
        entry.payload.push(0);
        assert_eq!(entry.open().unwrap_err(), Unopened::Tampered);
        let mut entry = Entry::new();
        entry.attributes.push(' ');
        assert_eq!(entry.verify(), Err(Unopened::Tampered));
        let wrapped = whole.envelope.wrapped.unwrap();
        for length in (0..WRAPPED_BYTES).chain([WRAPPED_BYTES + 1]) {
            let mut bytes = wrapped.0.to_vec();
            bytes.resize(length, 0);
            assert_eq!(
                WrappedKey::try_from(bytes.as_slice()),
                Err(Unopened::Malformed)
            );
        }
    }

    #[test]
    fn refuses_an_entry_in_any_other_place() {
        type Displace = fn(&mut Entry);
        let moves: [(&str, Displace); 8] = [
            ("sequence", |entry| entry.sequence = 8),
            ("version", |entry| entry.version.0[15] ^= 1),
            ("secret", |entry| entry.secret = secret("db-passwords")),
            ("vault id", |entry| entry.vault.id.0[0] ^= 1),
            ("namespace", |entry| entry.vault.namespace.push('s')),
            ("vault name", |entry| entry.vault.name = "payment".into()),
            ("a character across an end", |entry| {
                entry.vault.namespace = "shopp".into();
                entry.vault.name = "ayments".into();
            }),
            ("everything", |entry| {
                entry.vault.namespace = "other".into();
                entry.secret = secret("other");
            }),
        ];
        for (what, displace) in moves {
            let mut entry = Entry::new();
            displace(&mut entry);
            assert_eq!(entry.verify(), Err(Unopened::Tampered), "{what}");
            assert_eq!(entry.open().unwrap_err(), Unopened::Tampered, "{what}");
            // Nor does the payload open if somebody had the data key.
            let opened = DataKey::new(bytes(3)).open(&entry.binding(), &entry.payload);
            assert_eq!(opened.unwrap_err(), Unopened::Tampered, "{what}");
        }
    }

    #[test]
    fn refuses_another_ring_key_and_another_number_for_the_same() {
        let entry = Entry::new();
        let binding = entry.binding();
        let wrapped = entry.envelope.wrapped.unwrap();
        assert_eq!(
            ring(6).verify(&binding, &entry.envelope, ATTRIBUTES),
            Err(Unopened::OtherRing { ring: 5 })
        );
        assert_eq!(
            ring(6).unwrap(&binding, &wrapped).unwrap_err(),
            Unopened::Tampered
        );
        let mut renumbered = entry.envelope.clone();
        renumbered.ring = 6;
        assert_eq!(
            ring(6).verify(&binding, &renumbered, ATTRIBUTES),
            Err(Unopened::Tampered)
        );
        let other = RingKey::new(5, bytes(10), &entry.vault.id);
        assert_eq!(
            other.verify(&binding, &entry.envelope, ATTRIBUTES),
            Err(Unopened::Tampered)
        );
        assert_eq!(
            other.unwrap(&binding, &wrapped).unwrap_err(),
            Unopened::Tampered
        );
    }

    #[test]
    fn rewrapping_leaves_the_payload_and_what_it_opens_to() {
        let mut entry = Entry::new();
        let newer = RingKey::new(6, bytes(10), &entry.vault.id);
        let key = ring(5)
            .unwrap(&entry.binding(), &entry.envelope.wrapped.unwrap())
            .unwrap();
        let wrapped = newer.wrap(&entry.binding(), &key, [8; 12]);
        let mac = newer.mac(&entry.binding(), Some(&wrapped), ATTRIBUTES);
        entry.envelope = Envelope {
            ring: 6,
            wrapped: Some(wrapped),
            mac,
        };
        assert_eq!(
            newer.verify(&entry.binding(), &entry.envelope, ATTRIBUTES),
            Ok(())
        );
        let key = newer.unwrap(&entry.binding(), &wrapped).unwrap();
        let opened = key.open(&entry.binding(), &entry.payload).unwrap();
        assert_eq!(opened.as_slice(), VALUE);
    }

    #[test]
    fn reads_an_envelope_in_one_spelling_only() {
        let good = Entry::new().envelope.to_string();
        let fields: Vec<&str> = good.split('.').collect();
        let (wrapped, mac) = (fields[2], fields[3]);
        // 61 bytes leave four bits of the last character unused, 32 bytes two: another spelling.
        let respelt = |text: &str| {
            const ALPHABET: &str =
                "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
            let at = ALPHABET.find(text.chars().last().unwrap()).unwrap();
            format!("{}{}", &text[..text.len() - 1], &ALPHABET[at + 1..at + 2])
        };
        let longer = URL_SAFE_NO_PAD.encode([1; 62]);
        let other_format = {
            let mut bytes = [0; WRAPPED_BYTES];
            bytes[0] = 2;
            URL_SAFE_NO_PAD.encode(bytes)
        };
        for text in [
            String::new(),
            "v1".to_owned(),
            "v1...".to_owned(),
            format!(" {good}"),
            format!("{good}\n"),
            format!("{good}."),
            format!("{good}="),
            format!("v2.5.{wrapped}.{mac}"),
            format!("V1.5.{wrapped}.{mac}"),
            format!("v1.05.{wrapped}.{mac}"),
            format!("v1.0.{wrapped}.{mac}"),
            format!("v1.+5.{wrapped}.{mac}"),
            format!("v1.-5.{wrapped}.{mac}"),
            format!("v1..{wrapped}.{mac}"),
            format!("v1.4294967296.{wrapped}.{mac}"),
            format!("v1.5..{mac}"),
            format!("v1.5.--.{mac}"),
            format!("v1.5.{wrapped}"),
            format!("v1.5.{wrapped}."),
            format!("v1.5.{wrapped}.-"),
            format!("v1.5.{wrapped}.{mac}.{mac}"),
            format!("v1.5.{wrapped}==.{mac}"),
            format!("v1.5.{}.{mac}", respelt(wrapped)),
            format!("v1.5.{wrapped}.{}", respelt(mac)),
            format!("v1.5.{longer}.{mac}"),
            format!("v1.5.{}.{mac}", &wrapped[..80]),
            format!("v1.5.{wrapped}.{}", &mac[..40]),
            format!("v1.5.{other_format}.{mac}"),
        ] {
            assert_eq!(text.parse::<Envelope>(), Err(Unopened::Malformed), "{text}");
        }
        let largest = format!("v1.4294967295.{wrapped}.{mac}");
        assert_eq!(largest.parse::<Envelope>().unwrap().to_string(), largest);
    }

    #[test]
    fn the_root_key_opens_the_keys_of_vaults_in_their_place_only() {
        let root = RootKey::new(bytes(11));
        // python3: sha256(b"claviger root key id" + b"\x0b"*32)
        assert_eq!(root.id(), "secret:45167d91a7fbcd53");
        let key = [12; 32];
        let wrapped = root.wrap_key(KeyLabel::Ring(1), &vault(), &key, [13; 12]);
        assert_eq!(wrapped.len(), 61);
        let opened = root
            .unwrap_key(KeyLabel::Ring(1), &vault(), &wrapped)
            .unwrap();
        assert_eq!(*opened, key);
        for label in [KeyLabel::Index, KeyLabel::Ring(0), KeyLabel::Ring(2)] {
            assert_eq!(
                root.unwrap_key(label, &vault(), &wrapped),
                Err(Unopened::Tampered)
            );
        }
        let index = root.wrap_key(KeyLabel::Index, &vault(), &key, [13; 12]);
        assert_eq!(
            root.unwrap_key(KeyLabel::Ring(0), &vault(), &index),
            Err(Unopened::Tampered)
        );
        let moves: [fn(&mut VaultRef); 3] = [
            |vault| vault.id.0[3] ^= 1,
            |vault| vault.namespace.push('s'),
            |vault| vault.name.push('s'),
        ];
        for displace in moves {
            let mut vault = vault();
            displace(&mut vault);
            assert_eq!(
                root.unwrap_key(KeyLabel::Ring(1), &vault, &wrapped),
                Err(Unopened::Tampered)
            );
        }
        let renamed = RootKey::with_id(bytes(11), "kms:key-1".to_owned());
        assert_eq!(renamed.id(), "kms:key-1");
        for other in [renamed, RootKey::new(bytes(12))] {
            assert_eq!(
                other.unwrap_key(KeyLabel::Ring(1), &vault(), &wrapped),
                Err(Unopened::Tampered)
            );
        }
        for at in 0..wrapped.len() {
            for bit in 0..8 {
                let mut changed = wrapped.clone();
                changed[at] ^= 1 << bit;
                let opened = root.unwrap_key(KeyLabel::Ring(1), &vault(), &changed);
                assert!(opened.is_err(), "byte {at}");
            }
        }
        for length in (0..wrapped.len()).chain([62, 1000]) {
            let mut changed = wrapped.clone();
            changed.resize(length, 0);
            assert_eq!(
                root.unwrap_key(KeyLabel::Ring(1), &vault(), &changed),
                Err(Unopened::Malformed)
            );
        }
    }

    #[test]
    fn the_index_key_authenticates_a_document_and_names_values() {
        let index = IndexKey::new(bytes(14), &vault().id);
        let document = br#"{"versions":[]}"#;
        let mac = index.document_mac(document);
        assert_eq!(Mac::try_from(mac.as_bytes()), Ok(mac));
        assert_eq!(
            Mac::try_from(&mac.as_bytes()[1..]),
            Err(Unopened::Malformed)
        );
        assert_eq!(index.verify_document(document, &mac), Ok(()));
        assert_eq!(index.verify_document(b"{}", &mac), Err(Unopened::Tampered));
        for at in 0..MAC_BYTES * 8 {
            let mut changed = mac;
            changed.0[at / 8] ^= 1 << (at % 8);
            assert_eq!(
                index.verify_document(document, &changed),
                Err(Unopened::Tampered)
            );
        }
        let other = IndexKey::new(bytes(14), &VaultId([2; 16]));
        assert_eq!(
            other.verify_document(document, &mac),
            Err(Unopened::Tampered)
        );

        let digest = index.digest("source", b"value");
        assert_eq!(digest, index.digest("source", b"value"));
        assert_ne!(digest, index.digest("source", b"valuf"));
        assert_ne!(digest, index.digest("target", b"value"));
        assert_ne!(digest, index.digest("sourcev", b"alue"));
        assert_ne!(digest, other.digest("source", b"value"));
        let text = digest.to_string();
        assert_eq!(text.len(), 22);
        assert_eq!(text.parse(), Ok(digest));
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<ValueDigest>(&json).unwrap(), digest);
        for text in [
            "",
            "planted",
            &text[1..],
            &format!("{text}AA"),
            &format!("{text}=="),
        ] {
            assert_eq!(text.parse::<ValueDigest>(), Err(InvalidDigest));
        }
    }

    #[test]
    fn nothing_that_is_printed_holds_a_key_or_a_value() {
        let entry = Entry::new();
        let key = DataKey::new(bytes(3));
        let root = RootKey::new(bytes(11));
        let index = IndexKey::new(bytes(14), &entry.vault.id);
        assert_eq!(format!("{key:?}"), "DataKey(…redacted…)");
        assert_eq!(format!("{:?}", ring(5)), "RingKey(5, …redacted…)");
        assert_eq!(format!("{index:?}"), "IndexKey(…redacted…)");
        assert_eq!(
            format!("{root:?}"),
            format!("RootKey({}, …redacted…)", root.id())
        );
        for error in [
            Unopened::Malformed,
            Unopened::OtherRing { ring: 4 },
            Unopened::Tampered,
        ] {
            let text = format!("{error} {error:?}");
            assert!(
                !text.contains("staple") && !text.contains("created"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_value_opens_to_itself_and_nowhere_else(
            value in proptest::collection::vec(any::<u8>(), 0..600),
            attributes: String,
            keys: [[u8; 32]; 2],
            nonces: [[u8; 12]; 2],
            id: [u8; 16],
            version: [u8; 16],
            sequence: u32,
            other_sequence: u32,
            ring in 1_u32..,
            name in "[0-9A-Za-z-]{1,127}",
        ) {
            let vault = VaultRef { id: VaultId(id), ..vault() };
            let secret = secret(&name);
            let version = VersionId(version);
            let binding = Binding { vault: &vault, secret: &secret, sequence, version };
            let key = DataKey::new(Zeroizing::new(keys[0]));
            let ring = RingKey::new(ring, Zeroizing::new(keys[1]), &vault.id);
            let payload = key.seal(&binding, nonces[0], &value);
            let wrapped = ring.wrap(&binding, &key, nonces[1]);
            let mac = ring.mac(&binding, Some(&wrapped), &attributes);
            let envelope = Envelope { ring: ring.version(), wrapped: Some(wrapped), mac };
            let read: Envelope = envelope.to_string().parse().unwrap();
            prop_assert_eq!(&read, &envelope);
            prop_assert_eq!(ring.verify(&binding, &envelope, &attributes), Ok(()));
            let opened = ring.unwrap(&binding, &wrapped).unwrap().open(&binding, &payload).unwrap();
            prop_assert_eq!(opened.as_slice(), value.as_slice());
            if sequence != other_sequence {
                let binding = Binding { sequence: other_sequence, ..binding };
                let verified = ring.verify(&binding, &envelope, &attributes);
                prop_assert_eq!(verified, Err(Unopened::Tampered));
                prop_assert!(ring.unwrap(&binding, &wrapped).is_err());
                prop_assert!(key.open(&binding, &payload).is_err());
            }
        }
    }
}
