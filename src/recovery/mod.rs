//! Getting the root key back when the cluster is gone.
//!
//! Whoever loses the Secret `claviger-root-key` loses every vault, so there is a backup of it: an
//! [age](https://age-encryption.org) file for one or more recipients, whose identities are kept
//! apart from the cluster, best on paper or in a safe. Any age program opens it.
//!
//! - The controller writes Secret `claviger-root-key-backup` for the recipients it is given with
//!   `--recovery-recipient` ([`keep_backup`]), and writes it anew when they change.
//! - `claviger root-key backup` writes such a file by hand ([`back_up`]).
//! - `claviger root-key restore` makes the Secret from such a file ([`restore`]); it never replaces one.
//! - Beside that, the controller keeps in every key ring's Secret the keys of that ring, sealed to the
//!   same recipients ([`seal_ring`]); `claviger root-key restore --vault` wraps a ring anew from there
//!   ([`restore_ring`]), for when the root key or the KMS is lost for good.
//! - `claviger root-key verify` proves, before it is needed, that a backup opens what is in the
//!   cluster ([`verify`]).
//!
//! Inside the age file is one line of JSON ([`RootKeyFile`]):
//!
//! ```json
//! {"kind":"claviger-root-key","version":1,"id":"secret:0123456789abcdef","key":"<base64>"}
//! ```
//!
//! Recipients are X25519 (`age1…`) only: what opens the backup must open it in ten years, on a machine
//! that has an age program and nothing else.

mod ring;
mod verify;

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read as _, Write as _},
};

use age::{
    Decryptor, Encryptor,
    armor::{ArmoredReader, ArmoredWriter, Format},
    x25519,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube::Client;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt, ResultExt, Snafu, ensure};
use zeroize::Zeroizing;

use crate::k8s::{
    root_key::{self, Material},
    root_key_backup::{self, Backup, Stored},
    vault::ring_name,
};

pub use crate::k8s::root_key::Created;
pub use ring::{Restored, RingFile, RingKeys, open_ring, restore_ring, seal_ring};
pub use verify::{Finding, Verdict, verify};

/// The root key cannot be backed up, restored or verified.
#[derive(Debug, Snafu)]
#[snafu(visibility(pub(crate)))]
pub enum Error {
    /// There is nothing to restore.
    #[snafu(display(
        "the key ring of vault {namespace}/{vault} opens with the root key of the cluster: nothing was written"
    ))]
    AlreadyOpens {
        /// The vault's namespace.
        namespace: String,
        /// The vault.
        vault: String,
    },
    /// Another root key is in the cluster.
    #[snafu(display(
        "Secret {namespace}/{} holds another root key, {found}; the backup is of {wanted}. It is not replaced, for whatever it wrapped would be lost: if nothing was wrapped by it, delete that Secret and try again",
        root_key::NAME
    ))]
    AnotherKey {
        /// Claviger's namespace.
        namespace: String,
        /// The id of the one that is there.
        found: String,
        /// The id of the one in the backup.
        wanted: String,
    },
    /// The backup's Secret could not be read or written.
    #[snafu(display("{source}"))]
    Backup {
        /// Why.
        source: root_key_backup::Error,
    },
    /// The file that holds identities cannot be read as such.
    #[snafu(display("{fault}"))]
    Identity {
        /// What is wrong; the line by its number only.
        fault: IdentityFault,
    },
    /// Vaults could not be read.
    #[snafu(display("cannot list the key rings: {}", crate::k8s::describe(source)))]
    List {
        /// Why.
        source: kube::Error,
    },
    /// There is no backup in the cluster.
    #[snafu(display(
        "Secret {namespace}/{} does not exist: give the file of a backup with --input",
        root_key_backup::NAME
    ))]
    NoBackup {
        /// Claviger's namespace.
        namespace: String,
    },
    /// No recipient was given.
    #[snafu(display(
        "no recipient is given: make an identity with age-keygen and give its public half, age1…"
    ))]
    NoRecipient,
    /// A key ring holds nothing for recipients.
    #[snafu(display(
        "Secret {namespace}/{} holds no recovery.age: the controller writes it for those whom --recovery-recipient names",
        ring_name(vault)
    ))]
    NoRecovery {
        /// The vault's namespace.
        namespace: String,
        /// The vault.
        vault: String,
    },
    /// A vault has no key ring.
    #[snafu(display(
        "Secret {namespace}/{} does not exist, or is not of type claviger.dev/key-ring: bring it back from a backup of the cluster first",
        ring_name(vault)
    ))]
    NoRing {
        /// The vault's namespace.
        namespace: String,
        /// The vault.
        vault: String,
    },
    /// There is no root key in the cluster.
    #[snafu(display(
        "Secret {namespace}/{} does not exist: there is no root key to back up",
        root_key::NAME
    ))]
    NoRootKey {
        /// Claviger's namespace.
        namespace: String,
    },
    /// What was sealed does not belong to the key ring.
    #[snafu(display("what recovery.age holds {fault}; nothing was written"))]
    NotOfThisRing {
        /// What is wrong.
        fault: &'static str,
    },
    /// The file was not sealed for any of the identities.
    #[snafu(display(
        "none of the identities opens the backup: give the one whose public half was a recipient"
    ))]
    NotForUs,
    /// The file cannot be read as an age file.
    #[snafu(display(
        "the backup is not a whole age file: it was changed or cut off; take another copy"
    ))]
    NotAge,
    /// The file holds something else.
    #[snafu(display(
        "the backup opens, but holds no root key of Claviger ({fault}): give the file that `claviger root-key backup` wrote"
    ))]
    NotARootKey {
        /// What is wrong.
        fault: &'static str,
    },
    /// A key ring could not be read.
    #[snafu(display(
        "cannot read Secret {namespace}/{}: {}",
        ring_name(vault),
        crate::k8s::describe(source)
    ))]
    ReadRing {
        /// The vault's namespace.
        namespace: String,
        /// The vault.
        vault: String,
        /// Why.
        source: kube::Error,
    },
    /// A recipient cannot be used.
    #[snafu(display("recipient {number} {fault}"))]
    Recipient {
        /// Which one, from 1.
        number: usize,
        /// What is wrong.
        fault: RecipientFault,
    },
    /// The root key's Secret could not be read or written.
    #[snafu(display("{source}"))]
    RootKey {
        /// Why.
        source: root_key::Error,
    },
    /// The document of a key ring is not what Claviger wrote.
    #[snafu(display(
        "Secret {namespace}/{} was changed by somebody else, or is of a newer claviger: bring it back from a backup of the cluster first",
        ring_name(vault)
    ))]
    UnreadableRing {
        /// The vault's namespace.
        namespace: String,
        /// The vault.
        vault: String,
    },
    /// A key ring could not be written.
    #[snafu(display(
        "cannot write Secret {namespace}/{}: {}. Only Claviger and those whom the chart's policies.secretKeepers names may",
        ring_name(vault),
        crate::k8s::describe(source)
    ))]
    WriteRing {
        /// The vault's namespace.
        namespace: String,
        /// The vault.
        vault: String,
        /// Why.
        source: kube::Error,
    },
}

/// Why a recipient cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipientFault {
    /// The secret half of an identity.
    Identity,
    /// Not a recipient at all.
    Malformed,
    /// A recipient of a kind that not every age program knows.
    OtherKind,
    /// An SSH key.
    Ssh,
}

impl fmt::Display for RecipientFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => {
                "is an identity, the secret half: give its public half (age-keygen -y), and make a new identity, for this one was shown"
            }
            Self::Malformed => {
                "is not a recipient of age: give the public half of an identity, age1 and 58 characters"
            }
            Self::OtherKind => {
                "is of another kind than X25519 (a plugin, a tag or post-quantum): give age1 and 58 characters, as age-keygen prints"
            }
            Self::Ssh => {
                "is an SSH key: give the public half of an age identity, age1 and 58 characters"
            }
        })
    }
}

/// Why a file of identities cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityFault {
    /// It holds none.
    Empty,
    /// It is encrypted itself.
    Encrypted,
    /// A line, counted from 1, is not an identity.
    Line(usize),
}

impl fmt::Display for IdentityFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => {
                f.write_str("the identity file holds no identity: give a line AGE-SECRET-KEY-1…")
            }
            Self::Encrypted => f.write_str(
                "the identity file is encrypted itself: decrypt it first (age -d) and give what comes out",
            ),
            Self::Line(number) => write!(
                f,
                "line {number} of the identity file is not an X25519 identity: there may be lines AGE-SECRET-KEY-1… and comments with #"
            ),
        }
    }
}

/// For whom a backup is sealed; each once, in a fixed order.
#[derive(Clone, Default)]
pub struct Recipients(BTreeMap<String, x25519::Recipient>);

impl Recipients {
    /// Reads recipients; blank ones are passed over.
    ///
    /// # Errors
    /// [`Error::Recipient`], which names the recipient by its number.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, Error> {
        let mut recipients = BTreeMap::new();
        for (at, text) in texts.iter().enumerate() {
            let text = text.as_ref().trim();
            if text.is_empty() {
                continue;
            }
            let number = at + 1;
            let recipient: x25519::Recipient = text.parse().ok().context(RecipientSnafu {
                number,
                fault: fault(text),
            })?;
            recipients.insert(recipient.to_string(), recipient);
        }
        Ok(Self(recipients))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names this set: 32 hexadecimal digits.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"claviger recovery recipients v1");
        for recipient in self.0.keys() {
            hash.update(b"\n");
            hash.update(recipient.as_bytes());
        }
        let mut front = [0; 16];
        front.copy_from_slice(&hash.finalize()[..16]);
        format!("{:032x}", u128::from_be_bytes(front))
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn fault(text: &str) -> RecipientFault {
    let lower = text.to_ascii_lowercase();
    // The last 1 of an age1… is what parts the kind from the key.
    let kind = lower.rsplit_once('1').map_or("", |(kind, _)| kind);
    if lower.starts_with("age-secret-key-") || lower.starts_with("age-plugin-") {
        RecipientFault::Identity
    } else if lower.starts_with("ssh-") || lower.starts_with("ecdsa-") || lower.starts_with("sk-") {
        RecipientFault::Ssh
    } else if kind.starts_with("age1") {
        RecipientFault::OtherKind
    } else {
        RecipientFault::Malformed
    }
}

/// Seals a plaintext; answers an armored age file.
///
/// # Errors
/// [`Error::NoRecipient`].
pub fn seal_to(recipients: &Recipients, plaintext: &[u8]) -> Result<String, Error> {
    let each = recipients.0.values().map(|one| one as &dyn age::Recipient);
    let encryptor = Encryptor::with_recipients(each)
        .ok()
        .context(NoRecipientSnafu)?;
    let sealed = write_armored(encryptor, plaintext).expect("memory can always be written to");
    Ok(String::from_utf8(sealed).expect("armor is ASCII"))
}

fn write_armored(encryptor: Encryptor, plaintext: &[u8]) -> std::io::Result<Vec<u8>> {
    let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor)?;
    let mut writer = encryptor.wrap_output(armor)?;
    writer.write_all(plaintext)?;
    writer.finish()?.finish()
}

/// Opens an age file, armored or not, with the identities of an identity file.
///
/// # Errors
/// [`Error::Identity`], [`Error::NotAge`], [`Error::NotForUs`]; none tells anything of an identity
/// or of the content.
pub fn open_with(identities: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let identities = read_identities(identities)?;
    let decryptor = Decryptor::new(ArmoredReader::new(sealed))
        .ok()
        .context(NotAgeSnafu)?;
    let reader = decryptor
        .decrypt(identities.iter().map(|one| one as &dyn age::Identity))
        .map_err(|error| match error {
            age::DecryptError::NoMatchingKeys | age::DecryptError::ExcessiveWork { .. } => {
                Error::NotForUs
            }
            _ => Error::NotAge,
        })?;
    // Large enough from the start: a buffer that grows leaves copies behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(sealed.len()));
    reader
        .take(MAX_FILE)
        .read_to_end(&mut plaintext)
        .ok()
        .context(NotAgeSnafu)?;
    Ok(plaintext)
}

fn read_identities(text: &str) -> Result<Vec<x25519::Identity>, Error> {
    let refused = |fault| IdentitySnafu { fault };
    ensure!(
        !text.starts_with("age-encryption.org/") && !text.starts_with("-----BEGIN AGE ENCRYPTED"),
        refused(IdentityFault::Encrypted)
    );
    let mut identities = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            let identity = line.parse().ok();
            identities.push(identity.context(refused(IdentityFault::Line(at + 1)))?);
        }
    }
    ensure!(!identities.is_empty(), refused(IdentityFault::Empty));
    Ok(identities)
}

/// The content of a backup.
#[derive(Serialize, Deserialize)]
pub struct RootKeyFile<'a> {
    kind: &'a str,
    version: u32,
    id: &'a str,
    key: &'a str,
}

/// Seals a root key; answers an armored age file.
///
/// # Errors
/// [`Error::NoRecipient`].
pub fn seal_root_key(recipients: &Recipients, key: &Material) -> Result<String, Error> {
    let text = Zeroizing::new(STANDARD.encode(key.expose()));
    let id = key.id();
    let mut json = Zeroizing::new(Vec::with_capacity(MAX_JSON));
    let file = RootKeyFile {
        kind: KIND,
        version: VERSION,
        id: &id,
        key: &text,
    };
    serde_json::to_writer(&mut *json, &file).expect("a few texts are always JSON");
    json.push(b'\n');
    seal_to(recipients, &json)
}

/// Opens what [`seal_root_key`] made.
///
/// # Errors
/// As for [`open_with`], and [`Error::NotARootKey`].
pub fn open_root_key(identities: &str, sealed: &[u8]) -> Result<Material, Error> {
    let plaintext = open_with(identities, sealed)?;
    let refused = |fault| NotARootKeySnafu { fault };
    let file: RootKeyFile<'_> = serde_json::from_slice(&plaintext)
        .ok()
        .context(refused("it is not the JSON that a backup holds"))?;
    ensure!(file.kind == KIND, refused("it is of another kind"));
    ensure!(
        file.version == VERSION,
        refused("its version is newer: use a newer claviger")
    );
    let mut key = Zeroizing::new([0; 32]);
    let length = STANDARD.decode_slice(file.key, key.as_mut_slice()).ok();
    ensure!(
        length == Some(key.len()),
        refused("its key is not 32 bytes")
    );
    let key = Material::new(key);
    ensure!(
        key.id() == file.id,
        refused("its id is not that of its key")
    );
    Ok(key)
}

/// What became of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is as it should be.
    AsItWas,
    /// There are no recipients; what there is was left alone.
    NoRecipients,
    /// It was written.
    Written,
}

/// Keeps Secret `claviger-root-key-backup` up to date: writes it if there is none, or if it is of
/// another root key or for others than these recipients.
///
/// # Errors
/// [`Error::Backup`].
pub async fn keep_backup(
    client: &Client,
    namespace: &str,
    key: &Material,
    recipients: &Recipients,
) -> Result<Kept, Error> {
    if recipients.is_empty() {
        return Ok(Kept::NoRecipients);
    }
    let stored = root_key_backup::read(client, namespace)
        .await
        .context(BackupSnafu)?;
    let (digest, id) = (recipients.digest(), key.id());
    if stored.as_ref().is_some_and(|Stored { backup, .. }| {
        backup.recipients == digest && backup.root_key == id && is_armored(&backup.file)
    }) {
        return Ok(Kept::AsItWas);
    }
    let backup = Backup {
        file: seal_root_key(recipients, key)?,
        recipients: digest,
        root_key: id,
    };
    root_key_backup::write(client, namespace, &backup, stored.as_ref())
        .await
        .context(BackupSnafu)?;
    Ok(Kept::Written)
}

fn is_armored(file: &str) -> bool {
    file.starts_with("-----BEGIN AGE ENCRYPTED FILE-----\n")
        && file.ends_with("-----END AGE ENCRYPTED FILE-----\n")
}

/// Seals the root key of the cluster; answers its id and an armored age file.
///
/// # Errors
/// See [`Error`].
pub async fn back_up(
    client: &Client,
    namespace: &str,
    recipients: &Recipients,
) -> Result<(String, String), Error> {
    ensure!(!recipients.is_empty(), NoRecipientSnafu);
    let key = root_key::read(client, namespace)
        .await
        .context(RootKeySnafu)?
        .context(NoRootKeySnafu { namespace })?;
    Ok((key.id(), seal_root_key(recipients, &key)?))
}

/// Makes the root key's Secret, unless it is there already.
///
/// # Errors
/// See [`Error`]; [`Error::AnotherKey`] if there is one with another key.
pub async fn restore(client: &Client, namespace: &str, key: &Material) -> Result<Created, Error> {
    let (there, created) = root_key::create(client, namespace, key)
        .await
        .context(RootKeySnafu)?;
    let (found, wanted) = (there.id(), key.id());
    ensure!(
        found == wanted,
        AnotherKeySnafu {
            namespace,
            found,
            wanted
        }
    );
    Ok(created)
}

/// The id of the root key of the cluster, if there is one.
///
/// # Errors
/// [`Error::RootKey`].
pub async fn stored_id(client: &Client, namespace: &str) -> Result<Option<String>, Error> {
    let key = root_key::read(client, namespace)
        .await
        .context(RootKeySnafu)?;
    Ok(key.map(|key| key.id()))
}

/// The backup of the cluster.
///
/// # Errors
/// [`Error::Backup`], [`Error::NoBackup`].
pub async fn stored_backup(client: &Client, namespace: &str) -> Result<Stored, Error> {
    root_key_backup::read(client, namespace)
        .await
        .context(BackupSnafu)?
        .context(NoBackupSnafu { namespace })
}

/// What became of the note that a backup was verified.
#[derive(Debug)]
pub enum Noted {
    /// It could not be written.
    Not(Error),
    /// There is no such Secret, or it is of another root key.
    Nowhere,
    /// It was written.
    Yes,
}

/// Notes on Secret `claviger-root-key-backup` that it was seen to open what is in the cluster, if it
/// is a backup of this root key.
pub async fn note_verified(
    client: &Client,
    namespace: &str,
    key: &Material,
    now: Timestamp,
) -> Noted {
    let note = async {
        let stored = root_key_backup::read(client, namespace).await?;
        let Some(stored) = stored.filter(|stored| stored.backup.root_key == key.id()) else {
            return Ok(false);
        };
        root_key_backup::note_verified(client, namespace, &stored, now).await?;
        Ok(true)
    };
    match note.await.context(BackupSnafu) {
        Ok(true) => Noted::Yes,
        Ok(false) => Noted::Nowhere,
        Err(error) => Noted::Not(error),
    }
}

const KIND: &str = "claviger-root-key";
const VERSION: u32 = 1;
/// The JSON of a root key takes some 140 bytes.
const MAX_JSON: usize = 512;
/// More than anything that Claviger seals.
const MAX_FILE: u64 = 1024 * 1024;

#[cfg(test)]
mod tests;
