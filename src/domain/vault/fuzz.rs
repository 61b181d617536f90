//! Everything that reads bytes from the cluster, given any bytes, and given good ones a little
//! changed: nothing panics, nothing is taken but the one spelling that is written, and nothing
//! opens but what was sealed.
//!
//! `PROPTEST_CASES` sets how long: each case is some sixteen inputs.

use proptest::{collection::vec, prelude::*, sample::Index};
use zeroize::Zeroizing;

use super::{
    envelope::{
        Binding, DataKey, Envelope, IndexKey, KeyLabel, Mac, RingKey, RootKey, Unopened,
        ValueDigest, WrappedKey,
    },
    name::{NameHash, SecretName, VaultId, VaultRef, VersionId, object_name, parse_object_name},
};

/// So many at a time: a case of proptest costs more than reading a text does.
fn many<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    vec(of, 1..=32)
}

/// One change to something good.
#[derive(Clone, Debug)]
enum Edit<T> {
    Cut(Index),
    Insert(Index, T),
    Remove(Index),
    Replace(Index, T),
    Swap(Index, Index),
    Repeat(Index, Index),
}

fn edits<T: Clone + std::fmt::Debug + 'static>(
    item: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = Vec<Edit<T>>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        1 => at().prop_map(Edit::Cut),
        3 => (at(), item.clone()).prop_map(|(at, item)| Edit::Insert(at, item)),
        3 => at().prop_map(Edit::Remove),
        6 => (at(), item).prop_map(|(at, item)| Edit::Replace(at, item)),
        2 => (at(), at()).prop_map(|(one, other)| Edit::Swap(one, other)),
        1 => (at(), at()).prop_map(|(from, to)| Edit::Repeat(from, to)),
    ];
    vec(edit, 0..4)
}

fn edited<T: Clone>(mut of: Vec<T>, edits: Vec<Edit<T>>) -> Vec<T> {
    for edit in edits {
        let length = of.len();
        match edit {
            Edit::Insert(at, item) => of.insert(at.index(length + 1), item),
            _ if of.is_empty() => {}
            Edit::Cut(at) => of.truncate(at.index(length)),
            Edit::Remove(at) => drop(of.remove(at.index(length))),
            Edit::Replace(at, item) => of[at.index(length)] = item,
            Edit::Swap(one, other) => of.swap(one.index(length), other.index(length)),
            Edit::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let again = of[from.min(to)..=from.max(to)].to_vec();
                of.extend(again);
            }
        }
    }
    of
}

/// Characters that mean something to one parser or another, and some that look like them.
fn character() -> impl Strategy<Value = char> + Clone {
    prop_oneof![
        2 => "[0-9+-]".prop_map(|text| text.chars().next().unwrap()),
        4 => "[0-9A-Za-z_.=+/-]".prop_map(|text| text.chars().next().unwrap()),
        1 => proptest::sample::select(vec!['\0', '\n', ' ', '٣', 'é', '\u{212a}', '\u{ff0e}']),
        1 => any::<char>(),
    ]
}

/// Anything, or one of these as it is or a little changed: anywhere, or in one of the fields
/// between dots, so that the short ones get their share.
fn text_like(good: Vec<String>) -> impl Strategy<Value = String> {
    let good = proptest::sample::select(good);
    let one_field = (good.clone(), any::<Index>(), edits(character()));
    prop_oneof![
        1 => any::<String>(),
        2 => vec(character(), 0..150).prop_map(String::from_iter),
        4 => (good, edits(character())).prop_map(|(good, edits)| edited_text(&good, edits)),
        4 => one_field.prop_map(|(good, at, edits)| {
            let mut fields: Vec<String> = good.split('.').map(str::to_owned).collect();
            let at = at.index(fields.len());
            fields[at] = edited_text(&fields[at], edits);
            fields.join(".")
        }),
    ]
}

fn edited_text(of: &str, edits: Vec<Edit<char>>) -> String {
    edited(of.chars().collect(), edits).into_iter().collect()
}

fn bytes_like(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => vec(any::<u8>(), 0..200),
        1 => vec(any::<u8>(), 0..200).prop_map(|mut bytes| {
            bytes.insert(0, 1);
            bytes
        }),
        6 => edits(any::<u8>()).prop_map(move |edits| edited(good.clone(), edits)),
    ]
}

const ATTRIBUTES: &str = r#"{"kind":"version","enabled":true}"#;
const VALUE: &[u8] = b"correct horse battery staple";

/// An entry as it should be, and the keys to it.
struct Good {
    vault: VaultRef,
    secret: SecretName,
    data_key: DataKey,
    ring: RingKey,
    root: RootKey,
    index: IndexKey,
    payload: Vec<u8>,
    wrapped: WrappedKey,
    envelope: String,
    ring_key: Vec<u8>,
}

impl Good {
    fn new() -> Self {
        let vault = VaultRef {
            id: VaultId([1; 16]),
            namespace: "shop".to_owned(),
            name: "payments".to_owned(),
        };
        let secret = SecretName::parse("db-password").unwrap();
        let key = |byte| Zeroizing::new([byte; 32]);
        let data_key = DataKey::new(key(2));
        let ring = RingKey::new(3, key(3), &vault.id);
        let root = RootKey::new(key(4));
        let index = IndexKey::new(key(5), &vault.id);
        let binding = Self::place(&vault, &secret);
        let payload = data_key.seal(&binding, [6; 12], VALUE);
        let wrapped = ring.wrap(&binding, &data_key, [7; 12]);
        let mac = ring.mac(&binding, Some(&wrapped), ATTRIBUTES);
        let envelope = Envelope {
            ring: 3,
            wrapped: Some(wrapped),
            mac,
        };
        let ring_key = root.wrap_key(KeyLabel::Ring(3), &vault, &[3; 32], [8; 12]);
        Self {
            envelope: envelope.to_string(),
            vault,
            secret,
            data_key,
            ring,
            root,
            index,
            payload,
            wrapped,
            ring_key,
        }
    }

    fn place<'a>(vault: &'a VaultRef, secret: &'a SecretName) -> Binding<'a> {
        Binding {
            vault,
            secret,
            sequence: 9,
            version: VersionId([10; 16]),
        }
    }

    fn binding(&self) -> Binding<'_> {
        Self::place(&self.vault, &self.secret)
    }

    fn envelopes() -> Vec<String> {
        let good = Self::new();
        let mac = good.ring.mac(&good.binding(), None, ATTRIBUTES);
        let marker = |ring| {
            Envelope {
                ring,
                wrapped: None,
                mac,
            }
            .to_string()
        };
        vec![good.envelope, marker(3), marker(u32::MAX)]
    }

    fn objects() -> Vec<String> {
        [[0; 20], [0xff; 20], [0x5a; 20]]
            .into_iter()
            .zip([0, u32::MAX, 17])
            .map(|(hash, sequence)| object_name("payments", NameHash(hash), sequence))
            .collect()
    }
}

proptest! {
    #[test]
    fn an_envelope_is_read_only_as_it_is_written(inputs in many(text_like(Good::envelopes()))) {
        for text in inputs {
            if let Ok(envelope) = text.parse::<Envelope>() {
                prop_assert_eq!(envelope.to_string(), text);
                prop_assert!(envelope.ring > 0);
            }
        }
    }

    #[test]
    fn an_envelope_is_authentic_only_as_it_was_made(
        inputs in many((
            text_like(Good::envelopes()),
            text_like(vec![ATTRIBUTES.to_owned()]),
        )),
    ) {
        for (text, attributes) in inputs {
            let good = Good::new();
            for (text, attributes) in [
                (&text, ATTRIBUTES),
                (&good.envelope, &attributes),
                (&text, &attributes),
            ] {
                let Ok(envelope) = text.parse::<Envelope>() else {
                    continue;
                };
                let verified = good.ring.verify(&good.binding(), &envelope, attributes);
                let unchanged = attributes == ATTRIBUTES && Good::envelopes()[..2].contains(text);
                prop_assert_eq!(verified.is_ok(), unchanged);
                if let Some(wrapped) = envelope.wrapped {
                    let unwrapped = good.ring.unwrap(&good.binding(), &wrapped);
                    prop_assert_eq!(unwrapped.is_ok(), wrapped == good.wrapped);
                }
            }
        }
    }

    #[test]
    fn a_payload_opens_only_as_it_was_sealed(inputs in many(bytes_like(Good::new().payload))) {
        for bytes in inputs {
            let good = Good::new();
            let opened = good.data_key.open(&good.binding(), &bytes);
            if bytes == good.payload {
                let value = opened.unwrap();
                prop_assert_eq!(value.as_slice(), VALUE);
            } else {
                let malformed = bytes.len() < 29 || bytes[0] != 1;
                let expected = if malformed { Unopened::Malformed } else { Unopened::Tampered };
                prop_assert_eq!(opened.unwrap_err(), expected);
            }
        }
    }

    #[test]
    fn a_wrapped_key_opens_only_as_it_was_wrapped(
        inputs in many((
            bytes_like(Good::new().wrapped.as_bytes().to_vec()),
            bytes_like(Good::new().ring_key),
            any::<u32>(),
        )),
    ) {
        for (wrapped, ring_key, version) in inputs {
            let good = Good::new();
            match WrappedKey::try_from(wrapped.as_slice()) {
                Ok(read) => {
                    prop_assert_eq!(read.as_bytes(), &wrapped);
                    let unwrapped = good.ring.unwrap(&good.binding(), &read);
                    prop_assert_eq!(unwrapped.is_ok(), read == good.wrapped);
                }
                Err(_) => prop_assert!(wrapped.len() != 61 || wrapped[0] != 1),
            }
            for label in [KeyLabel::Ring(3), KeyLabel::Index, KeyLabel::Ring(version)] {
                let unwrapped = good.root.unwrap_key(label, &good.vault, &ring_key);
                let unchanged = ring_key == good.ring_key && label == KeyLabel::Ring(3);
                prop_assert_eq!(unwrapped.is_ok(), unchanged);
            }
        }
    }

    #[test]
    fn a_document_is_authentic_only_as_it_was_made(
        inputs in many((
            bytes_like(b"{}".to_vec()),
            bytes_like(Good::new().index.document_mac(b"{}").as_bytes().to_vec()),
        )),
    ) {
        for (document, mac) in inputs {
            let good = Good::new().index;
            let made = good.document_mac(b"{}");
            prop_assert_eq!(good.verify_document(&document, &made).is_ok(), document == b"{}");
            let read = Mac::try_from(mac.as_slice());
            prop_assert_eq!(read.is_ok(), mac.len() == 32);
            if let Ok(read) = read {
                let verified = good.verify_document(b"{}", &read);
                prop_assert_eq!(verified.is_ok(), mac == made.as_bytes());
            }
        }
    }

    #[test]
    fn an_object_name_is_read_only_as_it_is_written(
        inputs in many((
            text_like(Good::objects()),
            text_like(vec!["payments".to_owned(), String::new()]),
        )),
    ) {
        for (text, vault) in inputs {
            for vault in ["payments", &vault] {
                if let Some((hash, sequence)) = parse_object_name(vault, &text) {
                    prop_assert_eq!(object_name(vault, hash, sequence), text.as_str());
                }
            }
            if Good::objects().contains(&text) {
                prop_assert!(parse_object_name("payments", &text).is_some());
            }
        }
    }

    #[test]
    fn ids_and_digests_are_read_only_as_they_are_written(
        inputs in many(text_like(vec![
            VaultId([0; 16]).to_string(),
            VersionId([0xab; 16]).to_string(),
            Good::new().index.digest("context", VALUE).to_string(),
        ])),
    ) {
        for text in inputs {
            if let Ok(id) = text.parse::<VaultId>() {
                prop_assert_eq!(id.to_string(), text.as_str());
            }
            if let Ok(id) = text.parse::<VersionId>() {
                prop_assert_eq!(id.to_string(), text.as_str());
            }
            if let Ok(digest) = text.parse::<ValueDigest>() {
                prop_assert_eq!(digest.to_string(), text.as_str());
            }
            let json = serde_json::Value::from(text.as_str());
            prop_assert_eq!(
                serde_json::from_value::<VaultId>(json.clone()).ok(),
                text.parse::<VaultId>().ok()
            );
            prop_assert_eq!(
                serde_json::from_value::<VersionId>(json.clone()).ok(),
                text.parse::<VersionId>().ok()
            );
            prop_assert_eq!(
                serde_json::from_value::<ValueDigest>(json).ok(),
                text.parse::<ValueDigest>().ok()
            );
        }
    }

    #[test]
    fn a_secret_is_called_only_what_the_rule_allows(
        inputs in many(text_like(vec!["db-password".to_owned(), "A".repeat(127)])),
    ) {
        for text in inputs {
            const ALLOWED: &str = "0123456789-ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
            let allowed = (1..=127).contains(&text.chars().count())
                && text.chars().all(|character| ALLOWED.contains(character));
            let json = serde_json::Value::from(text.as_str());
            prop_assert_eq!(serde_json::from_value::<SecretName>(json).is_ok(), allowed);
            match SecretName::parse(&text) {
                Ok(name) => {
                    prop_assert!(allowed);
                    prop_assert_eq!(name.as_str(), text.as_str());
                    let vault = Good::new().vault;
                    let object = object_name(&vault.name, vault.hash(&name), 1);
                    prop_assert!(parse_object_name(&vault.name, &object).is_some());
                }
                Err(error) => {
                    prop_assert!(!allowed);
                    prop_assert_eq!(error, text.parse::<SecretName>().unwrap_err());
                }
            }
        }
    }
}
