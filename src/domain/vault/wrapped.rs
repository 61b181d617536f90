//! A key of a vault as the root key has wrapped it, in the form in which the ring document keeps it:
//!
//! ```json
//! {"root": "secret:0123456789abcdef", "sealed": "AQ…"}
//! {"root": "kms:key-7", "sealed": "AQ…",
//!  "kms": {"ciphertext": "…", "annotations": {"name.example.org": "…"}}}
//! ```
//!
//! `root` says what wrapped it. `sealed` is what
//! [`RootKey::wrap_key`](super::envelope::RootKey::wrap_key) made. With a KMS the key that wrapped
//! was made for this one alone, and `kms` is what the KMS made of that. Bytes are unpadded base64url.
//! All of it is ciphertext, no secret.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A wrapped key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// The id of the root key.
    pub root: String,
    /// The key under the root key, or under the wrapping key that the KMS keeps.
    pub sealed: Base64,
    /// The wrapping key, if a KMS encrypted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms: Option<KmsWrapped>,
}

/// A wrapping key as a KMS has encrypted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsWrapped {
    /// The ciphertext.
    pub ciphertext: Base64,
    /// What the plugin wants to see again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, Base64>,
}

/// Bytes that are written as unpadded base64url.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Base64(pub Vec<u8>);

mod base64 {
    use std::fmt;

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    use super::Base64;

    impl fmt::Debug for Base64 {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Base64({})", URL_SAFE_NO_PAD.encode(&self.0))
        }
    }

    impl Serialize for Base64 {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&URL_SAFE_NO_PAD.encode(&self.0))
        }
    }

    impl<'de> Deserialize<'de> for Base64 {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            let bytes = URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| de::Error::custom("not unpadded base64url"))?;
            Ok(Self(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_in_one_way() {
        let plain = r#"{"root":"secret:00","sealed":"_wA"}"#;
        let kms =
            r#"{"root":"kms:k","sealed":"AQ","kms":{"ciphertext":"-_8","annotations":{"a.b":""}}}"#;
        let bare = r#"{"root":"kms:k","sealed":"AQ","kms":{"ciphertext":"-_8"}}"#;
        for text in [plain, kms, bare] {
            let wrapped: Wrapped = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&wrapped).unwrap(), text);
        }
        let read: Wrapped = serde_json::from_str(plain).unwrap();
        assert_eq!(read.sealed.0, [0xff, 0]);
        for text in [
            r#"{"root":"secret:00","sealed":"_wA="}"#,
            r#"{"root":"secret:00","sealed":"/wA"}"#,
            r#"{"root":"secret:00","sealed":"_wB"}"#,
            r#"{"root":"secret:00"}"#,
            r#"{"sealed":""}"#,
        ] {
            assert!(serde_json::from_str::<Wrapped>(text).is_err(), "{text}");
        }
    }
}
