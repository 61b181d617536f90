//! Makes `tests/vectors/vault_envelope.json` from fixed keys, and opens it. The Python script
//! beside that file derives the same bytes without any of this code.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    envelope::{
        Binding, DataKey, Envelope, IndexKey, KeyLabel, Mac, RingKey, RootKey, VALUE_LIMIT,
        WrappedKey,
    },
    name::{SecretName, VaultId, VaultRef, VersionId, object_name, parse_object_name},
};

const FILE: &str = "tests/vectors/vault_envelope.json";
/// Set, it has the file written anew.
const WRITE: &str = "CLAVIGER_WRITE_VECTORS";

/// Different bytes for every seed, none of them random.
fn bytes<const N: usize>(seed: u8) -> [u8; N] {
    std::array::from_fn(|at| {
        let at = u8::try_from(at).unwrap();
        seed.wrapping_mul(37) ^ at.wrapping_mul(101).wrapping_add(seed)
    })
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap();
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    text.chunks(2)
        .map(|two| digit(two[0]) << 4 | digit(two[1]))
        .collect()
}

fn key(value: &Value) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(unhex(value).try_into().unwrap())
}

struct Entry {
    about: &'static str,
    secret: String,
    sequence: u32,
    version: u8,
    ring: u32,
    value: Option<Vec<u8>>,
    attributes: &'static str,
    /// Of data key and payload: a re-wrapped entry shares them with what it was.
    seed: u8,
    wrap_seed: u8,
}

fn entries() -> Vec<Entry> {
    const PLAIN: &str = r#"{"kind":"version","enabled":true,"created":"2026-11-22T08:00:00Z"}"#;
    let entry = |about, secret: &str, sequence, seed, value: Option<&[u8]>| Entry {
        about,
        secret: secret.to_owned(),
        sequence,
        version: seed,
        ring: 1,
        value: value.map(<[u8]>::to_vec),
        attributes: PLAIN,
        seed,
        wrap_seed: seed + 1,
    };
    let password = || Some(b"correct horse battery staple".as_slice());
    vec![
        entry("a password", "db-password", 1, 40, password()),
        Entry {
            ring: 2,
            wrap_seed: 43,
            ..entry("the same, re-wrapped", "db-password", 1, 40, password())
        },
        Entry {
            attributes: r#"{"kind":"version","enabled":false,"tags":{"größe":"ß ☃ 🔑"}}"#,
            ..entry(
                "its next version, spelt otherwise",
                "DB-Password",
                2,
                50,
                password(),
            )
        },
        Entry {
            attributes: r#"{"kind":"tombstone","at":"2026-11-22T09:00:00Z"}"#,
            ..entry("a marker", "db-password", 3, 60, None)
        },
        Entry {
            attributes: "",
            ..entry("an empty value, no attributes", "0", 0, 70, Some(b""))
        },
        Entry {
            ring: u32::MAX,
            ..entry(
                "the largest numbers, the longest name, any bytes",
                &"Ab-".repeat(43)[..127],
                u32::MAX,
                80,
                Some(&bytes::<256>(81)),
            )
        },
    ]
}

fn made() -> Value {
    let secret_root = RootKey::new(Zeroizing::new(bytes(1)));
    let kms_root = RootKey::with_id(
        Zeroizing::new(bytes(2)),
        "kms:projects/p/keys/k/1".to_owned(),
    );
    json!({
        "about": "Test vectors for src/domain/vault/FORMAT.md, version 1. Bytes are in hex. \
            Made by `CLAVIGER_WRITE_VECTORS=1 cargo test --lib vault::vectors`; \
            checked by open_vault.py. The keys are for this file alone.",
        "vaults": [
            vault(&secret_root, 1, "shop", "payments", 10),
            vault(&kms_root, 2, "n", "v", 20),
        ],
    })
}

fn vault(root: &RootKey, root_seed: u8, namespace: &str, name: &str, seed: u8) -> Value {
    let vault = VaultRef {
        id: VaultId(bytes(seed)),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let index = IndexKey::new(Zeroizing::new(bytes(seed + 1)), &vault.id);
    let wrapped =
        |label, key: u8, nonce: u8| hex(&root.wrap_key(label, &vault, &bytes(key), bytes(nonce)));
    let mut rings = BTreeMap::new();
    let mut ring = Vec::new();
    for (version, seed) in [(1, seed + 3), (2, seed + 5), (u32::MAX, seed + 7)] {
        ring.push(json!({
            "version": version,
            "key": hex(&bytes::<32>(seed)),
            "nonce": hex(&bytes::<12>(seed + 1)),
            "wrapped": wrapped(KeyLabel::Ring(version), seed, seed + 1),
        }));
        let key = RingKey::new(version, Zeroizing::new(bytes(seed)), &vault.id);
        rings.insert(version, key);
    }
    let document = r#"{"vaultId":"an example","versions":[]}"#;
    let digests: Vec<Value> = [
        ("", b"".as_slice()),
        ("source", b"correct horse battery staple"),
        ("target/größe", b"\x00\xff"),
    ]
    .into_iter()
    .map(|(context, value)| {
        json!({
            "context": context,
            "value": hex(value),
            "digest": index.digest(context, value),
        })
    })
    .collect();
    json!({
        "root": {"key": hex(&bytes::<32>(root_seed)), "id": root.id()},
        "id": vault.id,
        "namespace": vault.namespace,
        "name": vault.name,
        "index": {
            "key": hex(&bytes::<32>(seed + 1)),
            "nonce": hex(&bytes::<12>(seed + 2)),
            "wrapped": wrapped(KeyLabel::Index, seed + 1, seed + 2),
        },
        "ring": ring,
        "document": {
            "text": document,
            "mac": hex(index.document_mac(document.as_bytes()).as_bytes()),
        },
        "digests": digests,
        "entries": entries()
            .iter()
            .map(|entry| sealed(&vault, &rings[&entry.ring], entry))
            .collect::<Vec<_>>(),
    })
}

fn sealed(vault: &VaultRef, ring: &RingKey, entry: &Entry) -> Value {
    let secret = SecretName::parse(&entry.secret).unwrap();
    let binding = Binding {
        vault,
        secret: &secret,
        sequence: entry.sequence,
        version: VersionId(bytes(entry.version)),
    };
    let key = DataKey::new(Zeroizing::new(bytes(entry.seed + 2)));
    let payload = entry
        .value
        .as_ref()
        .map(|value| key.seal(&binding, bytes(entry.seed + 3), value));
    let wrapped = payload
        .as_ref()
        .map(|_| ring.wrap(&binding, &key, bytes(entry.wrap_seed)));
    let envelope = Envelope {
        ring: ring.version(),
        wrapped,
        mac: ring.mac(&binding, wrapped.as_ref(), entry.attributes),
    };
    json!({
        "about": entry.about,
        "secret": entry.secret,
        "sequence": entry.sequence,
        "version": binding.version,
        "object": object_name(&vault.name, vault.hash(&secret), entry.sequence),
        "ring": entry.ring,
        "value": entry.value.as_deref().map(hex),
        "dataKey": wrapped.map(|_| hex(&bytes::<32>(entry.seed + 2))),
        "payloadNonce": wrapped.map(|_| hex(&bytes::<12>(entry.seed + 3))),
        "wrapNonce": wrapped.map(|_| hex(&bytes::<12>(entry.wrap_seed))),
        "payload": payload.as_deref().map(hex),
        "attributes": entry.attributes,
        "envelope": envelope.to_string(),
    })
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)
}

fn committed() -> Value {
    serde_json::from_str(&fs::read_to_string(path()).unwrap()).unwrap()
}

#[test]
fn makes_the_vectors_to_the_byte() {
    if std::env::var_os(WRITE).is_some() {
        let text = serde_json::to_string_pretty(&made()).unwrap();
        fs::write(path(), text + "\n").unwrap();
    }
    assert!(
        committed() == made(),
        "{FILE} is not what this code makes. Format version 1 must not change: data in clusters \
         would not open any more"
    );
}

#[test]
fn opens_the_vectors_from_the_root_key_down() {
    for vault in committed()["vaults"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let reference = VaultRef {
            id: text(&vault["id"]).parse().unwrap(),
            namespace: text(&vault["namespace"]),
            name: text(&vault["name"]),
        };
        let root = RootKey::with_id(key(&vault["root"]["key"]), text(&vault["root"]["id"]));
        let opened =
            |label, wrapped: &Value| root.unwrap_key(label, &reference, &unhex(wrapped)).unwrap();
        let index = opened(KeyLabel::Index, &vault["index"]["wrapped"]);
        assert_eq!(index, key(&vault["index"]["key"]));
        let index = IndexKey::new(index, &reference.id);
        let document = text(&vault["document"]["text"]);
        let mac = Mac::try_from(unhex(&vault["document"]["mac"]).as_slice()).unwrap();
        assert_eq!(index.verify_document(document.as_bytes(), &mac), Ok(()));

        let rings: BTreeMap<u32, RingKey> = vault["ring"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ring| {
                let version = serde_json::from_value(ring["version"].clone()).unwrap();
                let key = opened(KeyLabel::Ring(version), &ring["wrapped"]);
                (version, RingKey::new(version, key, &reference.id))
            })
            .collect();
        for entry in vault["entries"].as_array().unwrap() {
            let secret = SecretName::parse(entry["secret"].as_str().unwrap()).unwrap();
            let object = entry["object"].as_str().unwrap();
            let (hash, sequence) = parse_object_name(&reference.name, object).unwrap();
            assert_eq!(hash, reference.hash(&secret));
            let binding = Binding {
                vault: &reference,
                secret: &secret,
                sequence,
                version: serde_json::from_value(entry["version"].clone()).unwrap(),
            };
            let envelope: Envelope = entry["envelope"].as_str().unwrap().parse().unwrap();
            let ring = &rings[&envelope.ring];
            let attributes = entry["attributes"].as_str().unwrap();
            assert_eq!(ring.verify(&binding, &envelope, attributes), Ok(()));
            let value = envelope.wrapped.map(|wrapped: WrappedKey| {
                let key = ring.unwrap(&binding, &wrapped).unwrap();
                key.open(&binding, &unhex(&entry["payload"])).unwrap()
            });
            assert_eq!(
                value.map(|value| hex(&value)).as_deref(),
                entry["value"].as_str()
            );
        }
    }
}

#[test]
fn the_longest_value_opens() {
    let vault = VaultRef {
        id: VaultId(bytes(1)),
        namespace: "n".repeat(63),
        name: "v".repeat(50),
    };
    let secret = SecretName::parse(&"s".repeat(127)).unwrap();
    let binding = Binding {
        vault: &vault,
        secret: &secret,
        sequence: 1,
        version: VersionId(bytes(2)),
    };
    let value = vec![7; VALUE_LIMIT];
    let key = DataKey::new(Zeroizing::new(bytes(3)));
    let payload = key.seal(&binding, bytes(4), &value);
    assert_eq!(payload.len(), VALUE_LIMIT + 29);
    assert!(key.open(&binding, &payload).unwrap().as_slice() == value);
}
