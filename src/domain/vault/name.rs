//! What things of a vault are called, and the objects that hold them.
//!
//! A secret's name may be longer than a label and is case-insensitive, an object's is neither. So
//! an object is named by a hash of the secret's name: 160 bits, so that no two names meet, over the
//! name and the vault's id and no key, because a name is no secret. The sequence that follows has a
//! fixed width, so the objects of one secret sort as its history does.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt as _, Snafu, ensure};

/// The name of a secret: 1 to 127 of `0-9`, `A-Z`, `a-z` and `-`.
///
/// It keeps the spelling it was given and equals every other spelling of the same name.
#[derive(Clone, Debug)]
pub struct SecretName(String);

impl SecretName {
    /// The most characters a name can have.
    pub const MAX: usize = 127;

    /// Takes a name over as it is spelt.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ensure!(
            (1..=Self::MAX).contains(&text.len()) && text.bytes().all(good),
            InvalidNameSnafu
        );
        Ok(Self(text.to_owned()))
    }

    /// The spelling that was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one spelling of all that are the same name: lower-case.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }

    fn folded_bytes(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SecretName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl PartialEq for SecretName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for SecretName {}

impl PartialOrd for SecretName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SecretName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded_bytes().cmp(other.folded_bytes())
    }
}

impl Hash for SecretName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.folded_bytes() {
            state.write_u8(byte);
        }
        // No name contains it, so no name's hash is the beginning of another's.
        state.write_u8(0xff);
    }
}

impl Serialize for SecretName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A text is no name of a secret. The text is left out: it may be a value in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
#[snafu(display("the name of a secret is 1 to 127 of 0-9, A-Z, a-z and -"))]
pub struct InvalidName;

/// The random id of a vault, written as 32 hexadecimal digits.
///
/// It is what tells one vault from another: it comes along when a backup is restored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VaultId(pub [u8; 16]);

/// The random id of a version of a secret, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId(pub [u8; 16]);

/// A text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
#[snafu(display("an id is 32 hexadecimal digits in lower case"))]
pub struct InvalidId;

/// Both ids are written, read and serialised alike, but must not be taken for one another.
macro_rules! written_in_hex {
    ($($id:ident),+) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($id), "({})"), self)
            }
        }

        impl FromStr for $id {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                ensure!(text.len() == 32 && text.bytes().all(digit), InvalidIdSnafu);
                let number = u128::from_str_radix(text, 16).ok().context(InvalidIdSnafu)?;
                Ok(Self(number.to_be_bytes()))
            }
        }

        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )+};
}

written_in_hex!(VaultId, VersionId);

/// One vault: the id it was born with, and where it stands. Ciphertext is bound to all three.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VaultRef {
    /// Its id.
    pub id: VaultId,
    /// Its namespace.
    pub namespace: String,
    /// Its name in there.
    pub name: String,
}

impl VaultRef {
    /// Stands for a secret's name in the names of objects; the same for all its spellings.
    pub fn hash(&self, secret: &SecretName) -> NameHash {
        let mut text = Vec::new();
        append_prefixed(&mut text, b"claviger secret name v1");
        text.extend(self.id.0);
        append_prefixed(&mut text, secret.folded().as_bytes());
        let full = Sha256::digest(&text);
        let mut short = [0; NameHash::BYTES];
        short.copy_from_slice(&full[..NameHash::BYTES]);
        NameHash(short)
    }
}

/// The first 20 bytes of a hash of a secret's name, written as 32 characters of base32hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameHash(pub [u8; NameHash::BYTES]);

impl NameHash {
    /// 160 bits: among 2^40 names, two meet with a probability of 2^-81.
    const BYTES: usize = 20;
    /// Five bits to a character leave none over.
    const CHARACTERS: usize = 32;
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

    fn read(text: &str) -> Option<Self> {
        if text.len() != Self::CHARACTERS {
            return None;
        }
        let mut bytes = [0; Self::BYTES];
        for (eight, five) in text.as_bytes().chunks(8).zip(bytes.chunks_mut(5)) {
            let mut bits = 0_u64;
            for character in eight {
                let value = Self::ALPHABET.iter().position(|known| known == character)?;
                bits = bits << 5 | u64::try_from(value).ok()?;
            }
            five.copy_from_slice(&bits.to_be_bytes()[3..]);
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for NameHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for five in self.0.chunks(5) {
            let bits = five
                .iter()
                .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            for at in (0..8).rev() {
                let value = usize::try_from(bits >> (5 * at) & 31).expect("it is below 32");
                write!(f, "{}", char::from(Self::ALPHABET[value]))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for NameHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NameHash({self})")
    }
}

/// The name of the object that holds one entry of a secret's history.
pub fn object_name(vault_name: &str, hash: NameHash, sequence: u32) -> String {
    format!("{vault_name}.{hash}-{sequence:0SEQUENCE_DIGITS$}")
}

/// Reads what [`object_name`] wrote for this vault, and nothing else.
pub fn parse_object_name(vault_name: &str, object: &str) -> Option<(NameHash, u32)> {
    let rest = object.strip_prefix(vault_name)?.strip_prefix('.')?;
    let (hash, sequence) = rest.split_once('-')?;
    let digits = sequence.len() == SEQUENCE_DIGITS && sequence.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return None;
    }
    Some((NameHash::read(hash)?, sequence.parse().ok()?))
}

/// As many as the largest `u32` has.
const SEQUENCE_DIGITS: usize = 10;

/// Appends a length of two bytes, big-endian, and the bytes: so nothing can move across their ends.
pub(super) fn append_prefixed(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len())
        .expect("labels, names and wrapped keys are far shorter than 64 KiB");
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> SecretName {
        SecretName::parse(text).unwrap()
    }

    fn vault(id: u8) -> VaultRef {
        VaultRef {
            id: VaultId([id; 16]),
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
        }
    }

    #[test]
    fn names_keep_their_spelling_and_are_equal_without_case() {
        let (lower, upper) = (name("db-password"), name("DB-Password"));
        assert_eq!(upper.as_str(), "DB-Password");
        assert_eq!(upper.to_string(), "DB-Password");
        assert_eq!(upper.folded(), "db-password");
        assert_eq!(lower, upper);
        assert_eq!(HashSet::from([lower.clone(), upper.clone()]).len(), 1);
        assert_eq!(BTreeSet::from([lower.clone(), upper.clone()]).len(), 1);
        assert_eq!(vault(1).hash(&lower), vault(1).hash(&upper));
        assert_ne!(vault(1).hash(&lower), vault(2).hash(&lower));
        assert_ne!(vault(1).hash(&lower), vault(1).hash(&name("db-passwor")));
        assert!(name("a") < name("B") && name("B") < name("c"));
    }

    #[test]
    fn refuses_other_names_without_repeating_them() {
        assert!(SecretName::parse(&"x".repeat(127)).is_ok());
        for text in [
            "",
            " ",
            "a_b",
            "a.b",
            "a/b",
            "pässwort",
            "a\0",
            "a\n",
            "\u{212a}",
        ] {
            let error = SecretName::parse(text).unwrap_err().to_string();
            assert!(
                !error.contains("a_b") && !error.contains("pässwort"),
                "{error}"
            );
        }
        assert_eq!(SecretName::parse(&"x".repeat(128)), Err(InvalidName));
    }

    #[test]
    fn ids_are_32_lower_case_digits() {
        let id = VaultId(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(
            format!("{id:?}"),
            "VaultId(00112233445566778899aabbccddeeff)"
        );
        assert_eq!("00112233445566778899aabbccddeeff".parse(), Ok(id));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"00112233445566778899aabbccddeeff\"");
        assert_eq!(serde_json::from_str::<VaultId>(&json).unwrap(), id);
        for text in [
            "",
            "0011223344556677889 aabbccddeeff",
            "+0112233445566778899aabbccddeeff",
            "00112233445566778899AABBCCDDEEFF",
            "00112233445566778899aabbccddeef",
            "00112233445566778899aabbccddeeff0",
            "00112233-4455-6677-8899-aabbccdde",
            "00112233445566778899aabbccddeéf",
        ] {
            assert_eq!(text.parse::<VersionId>(), Err(InvalidId), "{text}");
            assert!(serde_json::from_value::<VersionId>(text.into()).is_err());
        }
    }

    #[test]
    fn hashes_are_written_in_base32hex() {
        // python3: base64.b32hexencode(bytes(range(20))).decode().lower()
        let hash = NameHash(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        assert_eq!(hash.to_string(), "000g40o40k30e209185go38e1s8124gj");
        assert_eq!(NameHash::read(&hash.to_string()), Some(hash));
        assert_eq!(NameHash([0xff; 20]).to_string(), "v".repeat(32));
    }

    #[test]
    fn refuses_objects_that_are_not_an_entry_of_this_vault() {
        let hash = vault(1).hash(&name("db-password"));
        let good = object_name("payments", hash, 7);
        assert!(
            good.starts_with("payments.") && good.ends_with("-0000000007"),
            "{good}"
        );
        // Fits a name of 253 characters in labels of 63.
        assert_eq!(object_name(&"v".repeat(50), hash, u32::MAX).len(), 94);
        for object in [
            String::new(),
            "payments".to_owned(),
            "payments-key-ring".to_owned(),
            good.to_uppercase(),
            good.replace("payments.", "payment."),
            good.replace("payments.", "payments-"),
            good.replace("-0000000007", "-7"),
            good.replace("-0000000007", "-+000000007"),
            good.replace("-0000000007", "-00000000007"),
            good.replace("-0000000007", "-4294967296"),
            good.replace("-0000000007", ""),
            format!("{good} "),
            format!("x{good}"),
            object_name("payments", hash, 7).replacen('.', ".w", 1),
        ] {
            assert_eq!(parse_object_name("payments", &object), None, "{object}");
        }
        assert_eq!(parse_object_name("payment", &good), None);
        assert_eq!(parse_object_name("", &good), None);
    }

    proptest! {
        #[test]
        fn object_names_read_back_and_sort_as_sequences_do(
            id: [u8; 16],
            text in "[0-9A-Za-z-]{1,127}",
            vault_name in "[a-z]([a-z0-9]{0,24}-[a-z0-9]{1,24}|[a-z0-9]{0,49})",
            a: u32,
            b: u32,
        ) {
            let vault = VaultRef {
                id: VaultId(id),
                namespace: "shop".to_owned(),
                name: vault_name,
            };
            let hash = vault.hash(&name(&text));
            prop_assert_eq!(hash, vault.hash(&name(&text.to_ascii_uppercase())));
            prop_assert_eq!(hash, vault.hash(&name(&text.to_ascii_lowercase())));
            let (first, second) = (
                object_name(&vault.name, hash, a),
                object_name(&vault.name, hash, b),
            );
            prop_assert_eq!(parse_object_name(&vault.name, &first), Some((hash, a)));
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            let label = first.split('.').all(|label| {
                label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
            });
            prop_assert!(label, "{}", first);
        }

        #[test]
        fn names_compare_as_their_folded_forms(a in "[abAB-]{1,4}", b in "[abAB-]{1,4}") {
            let (left, right) = (name(&a), name(&b));
            prop_assert_eq!(left.cmp(&right), left.folded().cmp(&right.folded()));
            prop_assert_eq!(left == right, left.folded() == right.folded());
            prop_assert_eq!(
                HashSet::from([left.clone(), right.clone()]).len(),
                if left == right { 1 } else { 2 }
            );
        }

        #[test]
        fn ids_read_back(bytes: [u8; 16]) {
            prop_assert_eq!(VaultId(bytes).to_string().parse(), Ok(VaultId(bytes)));
            prop_assert_eq!(VersionId(bytes).to_string().parse(), Ok(VersionId(bytes)));
        }
    }
}
