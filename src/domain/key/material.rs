//! Holding a key's text without spilling it.
//!
//! [`KeyMaterial`] has no `Display` and no `Serialize`; its `Debug` is fixed text; its memory is
//! overwritten when it is dropped. The one way to the text is [`KeyMaterial::expose`], so a search
//! for that name finds every place where a key leaves. What may be logged, compared in a status or
//! written to an annotation is its [`Digest`].

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt as _, Snafu};
use subtle::ConstantTimeEq as _;
use zeroize::ZeroizeOnDrop;

/// The text of one key, overwritten in memory when dropped.
///
/// Equality takes the same time wherever two texts of one length differ. It does reveal whether the
/// lengths are equal, which is no secret: minted keys all have the same one.
#[derive(Clone, ZeroizeOnDrop)]
pub struct KeyMaterial(String);

impl KeyMaterial {
    /// Takes over a text; nothing is checked here.
    ///
    /// Hand over the `String` itself where there is one: a copy left behind is not overwritten.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Gives the text, to store it or to send it to whoever may have it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares two keys in constant time.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// Names this value without revealing it.
    pub fn digest(&self) -> Digest {
        let full = Sha256::digest(self.0.as_bytes());
        let mut short = [0; Digest::BYTES];
        short.copy_from_slice(&full[..Digest::BYTES]);
        Digest(short)
    }
}

impl PartialEq for KeyMaterial {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other)
    }
}

impl Eq for KeyMaterial {}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(…redacted…)")
    }
}

/// The name of a key's value: the first 16 bytes of its SHA-256, written as 22 characters of
/// unpadded base64url.
///
/// Nobody can go back from it to a key that passed the checks in [`strength`](super::strength). A
/// weak value could be found by trying, so do not publish digests of anything else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; Digest::BYTES]);

impl Digest {
    /// 128 bits: two different keys never share it by chance.
    const BYTES: usize = 16;
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().context(DigestSnafu)?;
        bytes.try_into().ok().map(Self).context(DigestSnafu)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A text is not a [`Digest`].
///
/// The text is left out: somebody may have put a key where the digest of one belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
#[snafu(display("a key digest is 22 characters of unpadded base64url"))]
pub struct DigestError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_value() {
        let key = KeyMaterial::new("planted-value");
        assert_eq!(format!("{key:?}"), "KeyMaterial(…redacted…)");
        assert_eq!(
            format!("{:#?}", Some(&key)),
            "Some(\n    KeyMaterial(…redacted…),\n)"
        );
        assert_eq!(key.expose(), "planted-value");
    }

    #[test]
    fn digest_is_the_front_half_of_the_sha_256() {
        // printf abc | sha256sum | head -c 32 | xxd -r -p | base64
        let digest = KeyMaterial::new("abc").digest();
        assert_eq!(digest.to_string(), "ungWv48Bz-pBQUDeXa4iIw");
        assert_eq!(format!("{digest:?}"), "Digest(ungWv48Bz-pBQUDeXa4iIw)");
    }

    #[test]
    fn digest_refuses_other_texts_without_repeating_them() {
        for text in [
            "",
            "planted",
            "ungWv48Bz-pBQUDeXa4iIw==",
            "ungWv48Bz+pBQUDeXa4iIw",
            "ungWv48Bz-pBQUDeXa4iIwAA",
            // another spelling of the same bytes: unused bits are set
            "ungWv48Bz-pBQUDeXa4iIx",
        ] {
            assert_eq!(text.parse::<Digest>(), Err(DigestError));
            let quoted = format!("\"{text}\"");
            let error = serde_json::from_str::<Digest>(&quoted)
                .unwrap_err()
                .to_string();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }

    proptest! {
        #[test]
        fn digest_reads_back(text: String) {
            let digest = KeyMaterial::new(text).digest();
            let shown = digest.to_string();
            prop_assert_eq!(shown.len(), 22);
            prop_assert_eq!(shown.parse(), Ok(digest));
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(&json, &format!("\"{shown}\""));
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }

        #[test]
        fn keys_are_equal_exactly_when_their_texts_are(a in "[ab]{0,3}", b in "[ab]{0,3}") {
            let (left, right) = (KeyMaterial::new(a.clone()), KeyMaterial::new(b.clone()));
            prop_assert_eq!(left == right, a == b);
            prop_assert_eq!(left.digest() == right.digest(), a == b);
        }
    }
}
