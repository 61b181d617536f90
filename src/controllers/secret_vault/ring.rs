//! The key ring of a vault: opened once, kept open in memory, turned in one write.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use snafu::ResultExt;
use zeroize::Zeroizing;

use crate::{
    api::convert::vault::Vault,
    controllers::{
        context::Context,
        error::{Error, ReadRingSnafu, RootKeySnafu, WriteRingSnafu},
        naming::Name,
    },
    domain::{
        ledger::Marks,
        vault::{
            envelope::{IndexKey, KeyLabel, Mac, RingKey},
            name::{VaultId, VaultRef},
            ring::{FORMAT, RingDocument, RingVersion, Turning},
            wrapped::Wrapped,
        },
    },
    k8s::vault::{Found, Recovery, Ring, ring_name},
    recovery::{self, Recipients, RingKeys},
    root_keys::{self, RANDOM_BYTES, RootKeys},
};

/// A key ring whose document was verified and whose keys are at hand.
pub struct OpenRing {
    /// What its ciphertexts are bound to.
    pub vault: VaultRef,
    /// The document.
    pub document: RingDocument,
    /// The key of digests and of the document's MAC.
    pub index: Arc<IndexKey>,
    keys: BTreeMap<u32, (Wrapped, Arc<RingKey>)>,
    /// `metadata.resourceVersion` of the Secret it was read from.
    pub version: String,
    /// The keys as sealed to the recovery recipients.
    recovery: Option<Recovery>,
}

impl std::fmt::Debug for OpenRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenRing({})", self.vault.id)
    }
}

impl OpenRing {
    /// The key of a version, if it is in the ring.
    pub fn key(&self, version: u32) -> Option<&RingKey> {
        self.keys.get(&version).map(|(_, key)| &**key)
    }

    /// Whether entries say that they are under a version that this ring has not come to yet: it was
    /// put back to an earlier state. Its next version must not take that number, and nothing of it
    /// is destroyed.
    pub fn is_behind(&self, in_use: &BTreeMap<u32, usize>) -> bool {
        let highest = in_use.last_key_value();
        highest.is_some_and(|(highest, _)| *highest > self.document.last)
    }

    /// Whether a version of it has another key than in the other.
    pub fn contradicts(&self, other: &Self) -> bool {
        self.vault.id != other.vault.id
            || self.keys.iter().any(|(version, (wrapped, _))| {
                other
                    .keys
                    .get(version)
                    .is_some_and(|(known, _)| known != wrapped)
            })
    }

    /// The key that wraps; none after the vault was shredded.
    pub fn newest(&self) -> Option<&RingKey> {
        self.key(self.document.newest()?.version)
    }
}

/// Why a key ring is not to be had, in words for a status.
#[derive(Debug)]
pub enum Refusal {
    /// The root key that it needs is not there.
    NoRootKey(String),
    /// It is not what Claviger wrote for this vault, or is gone.
    Unusable(String),
}

/// The vault's key ring, opened, made or turned as its manifest wants it.
///
/// # Errors
/// The operation that failed; a refusal that a person has to deal with comes in the answer.
pub async fn obtain(
    context: &Context,
    name: &Name,
    vault: &Vault,
    roots: &RootKeys,
    now: Timestamp,
) -> Result<Result<Obtained, Refusal>, Error> {
    let observed = context.vaults.lock().ring(name);
    let open = match observed {
        Some(ring) => match open(context, name, &ring, roots).await? {
            Ok(open) => open,
            Err(refusal) => {
                context.vaults.lock().close(name);
                return Ok(Err(refusal));
            }
        },
        None => match create(context, name, vault, roots, now).await? {
            Ok(open) => open,
            Err(refusal) => return Ok(Err(refusal)),
        },
    };
    let newest_root = open
        .document
        .newest()
        .map_or_else(String::new, |newest| newest.key.root.clone());
    let root = roots.primary_id().unwrap_or(newest_root);
    let turning = crate::domain::vault::ring::turning(&open.document, &vault.ring, &root, now);
    let behind = open.is_behind(&context.vaults.lock().in_use(name));
    let waits = behind || vault.suspended || vault.deleting;
    let turning = if behind && !turning.shred_vault {
        // A ring put back from a backup: what it does not know of must not be lost for good.
        return Ok(Ok(Obtained::as_it_is(open)));
    } else if waits {
        turning.destroying(&open.document)
    } else {
        turning
    };
    let turned = if turning.is_needed(&open.document) {
        let shred = &vault.ring.shred;
        turn(context, name, &open, &turning, shred, roots, now).await
    } else {
        let recipients = &context.settings.recipients;
        if waits || recipients.is_empty() || is_sealed(&open, &open.document, recipients) {
            return Ok(Ok(Obtained::as_it_is(open)));
        }
        match unwrap_and_seal(&open, &open.document, recipients, roots).await {
            Ok(sealed) => write(context, name, &open, &open.document, sealed, roots).await,
            Err(error) => Err(error),
        }
    };
    Ok(Ok(match turned {
        Ok(open) => Obtained {
            open,
            turning,
            failure: None,
        },
        // What is open serves as well until the root key can be used.
        Err(error @ Error::RootKey { .. }) => Obtained {
            failure: Some(error),
            ..Obtained::as_it_is(open)
        },
        Err(error) => return Err(error),
    }))
}

/// A key ring, and what was done to it.
pub struct Obtained {
    /// The ring.
    pub open: Arc<OpenRing>,
    /// What was done.
    pub turning: Turning,
    /// Why what was to be done could not be.
    pub failure: Option<Error>,
}

impl Obtained {
    fn as_it_is(open: Arc<OpenRing>) -> Self {
        Self {
            open,
            turning: Turning::default(),
            failure: None,
        }
    }
}

async fn open(
    context: &Context,
    name: &Name,
    ring: &Ring,
    roots: &RootKeys,
) -> Result<Result<Arc<OpenRing>, Refusal>, Error> {
    let known = context.vaults.lock().open(name);
    if let Some(known) = known.as_ref().filter(|known| known.version == ring.version) {
        return Ok(Ok(Arc::clone(known)));
    }
    let secret = ring_name(&name.name);
    let unusable = |what: &str| {
        Ok(Err(Refusal::Unusable(format!(
            "Secret/{secret} {what}; bring it back from a backup. Nothing of this vault is written until then"
        ))))
    };
    let Ok(document) = RingDocument::parse(&ring.document) else {
        return unusable("does not hold a key ring that this version of Claviger can read");
    };
    if (&*document.namespace, &*document.name) != (&*name.namespace, &*name.name) {
        return unusable(&format!(
            "is the key ring of vault {} of namespace {}, and opens nothing here",
            document.name, document.namespace
        ));
    }
    let vault = document.vault();
    let index = match roots
        .unwrap(&vault, KeyLabel::Index, &document.index_key)
        .await
    {
        Ok(bytes) => IndexKey::new(bytes, &vault.id),
        Err(error) => return refusal(error, &secret),
    };
    let authentic = Mac::try_from(ring.mac.as_slice())
        .and_then(|mac| index.verify_document(&ring.document, &mac));
    if authentic.is_err() {
        return unusable("was changed by somebody else");
    }
    let mut keys = BTreeMap::new();
    for version in &document.versions {
        let before = known.as_ref().and_then(|known| {
            known
                .keys
                .get(&version.version)
                .filter(|(wrapped, _)| *wrapped == version.key)
        });
        let key = match before {
            Some((_, key)) => Arc::clone(key),
            None => match roots
                .unwrap(&vault, KeyLabel::Ring(version.version), &version.key)
                .await
            {
                Ok(bytes) => Arc::new(RingKey::new(version.version, bytes, &vault.id)),
                Err(error) => return refusal(error, &secret),
            },
        };
        keys.insert(version.version, (version.key.clone(), key));
    }
    let opened = Arc::new(OpenRing {
        vault,
        document,
        index: Arc::new(index),
        keys,
        version: ring.version.clone(),
        recovery: ring.recovery.clone(),
    });
    context
        .vaults
        .lock()
        .opened(name.clone(), Arc::clone(&opened));
    Ok(Ok(opened))
}

fn refusal<T>(error: root_keys::Error, secret: &str) -> Result<Result<T, Refusal>, Error> {
    match error {
        root_keys::Error::NotAtHand { .. } => Ok(Err(Refusal::NoRootKey(format!(
            "Secret/{secret} does not open: {error}"
        )))),
        // What a KMS decrypts wrongly now it may decrypt rightly later: that is asked again.
        root_keys::Error::Unopened { ref root, .. } if !root.starts_with(root_keys::KMS) => {
            Ok(Err(Refusal::Unusable(format!(
                "Secret/{secret} does not open: {error}. Bring it back from a backup"
            ))))
        }
        source => Err(source).context(RootKeySnafu),
    }
}

/// Makes the key ring of a vault that has none and of which there is no ciphertext.
async fn create(
    context: &Context,
    name: &Name,
    vault: &Vault,
    roots: &RootKeys,
    now: Timestamp,
) -> Result<Result<Arc<OpenRing>, Refusal>, Error> {
    let read = context
        .vault_objects
        .ring(&name.namespace, &name.name)
        .await
        .context(ReadRingSnafu { vault: &name.name })?;
    match read {
        Found::Nothing => {}
        Found::Ours(ring) => {
            // The watch has not told of it yet.
            context
                .vaults
                .lock()
                .observe_ring(name.clone(), ring.clone());
            return open(context, name, &ring, roots).await;
        }
        Found::Foreign => {
            return Ok(Err(Refusal::Unusable(format!(
                "Secret/{} is not a key ring; remove it, or give the vault another name",
                ring_name(&name.name)
            ))));
        }
    }
    let lost = context.vaults.lock().lost_ring(name);
    if let Some(lost) = lost {
        tracing::warn!(
            k8s.namespace.name = name.namespace,
            secret_vault.name = name.name,
            "the key ring was deleted and is written back"
        );
        let made = context
            .vault_objects
            .create_ring(&name.namespace, &name.name, &lost)
            .await
            .context(WriteRingSnafu { vault: &name.name })?;
        context
            .vaults
            .lock()
            .observe_ring(name.clone(), made.clone());
        return open(context, name, &made, roots).await;
    }
    let orphans = context
        .vault_objects
        .list_entries(&name.namespace, &name.name)
        .await
        .context(ReadRingSnafu { vault: &name.name })?;
    if !orphans.is_empty() {
        return Ok(Err(Refusal::Unusable(format!(
            "Secret/{} is gone, and {} objects of this vault cannot be read without it; bring it back from a backup, or delete them (label claviger.dev/vault={})",
            ring_name(&name.name),
            orphans.len(),
            name.name
        ))));
    }
    let reference = VaultRef {
        id: VaultId(random()),
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    };
    let index = Zeroizing::new(random::<32>());
    let first = Zeroizing::new(random::<32>());
    let document = RingDocument {
        format: FORMAT,
        vault_id: reference.id,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        index_key: wrap(roots, &reference, KeyLabel::Index, &index).await?,
        versions: vec![RingVersion {
            version: 1,
            created: now,
            retired: None,
            key: wrap(roots, &reference, KeyLabel::Ring(1), &first).await?,
        }],
        last: 1,
        shredded: BTreeSet::new(),
        vault_shredded: false,
        purge_protection: vault.ring.purge_protection,
        marks: Marks {
            ..vault.ring.triggers.baseline(now)
        },
    };
    let keys = RingKeys {
        vault: reference,
        index,
        versions: [(1, first)].into(),
    };
    let recovery = seal(&keys, &context.settings.recipients);
    let index = IndexKey::new(keys.index, &keys.vault.id);
    let bytes = document.render();
    let ring = Ring {
        version: String::new(),
        mac: index.document_mac(&bytes).as_bytes().to_vec(),
        document: bytes,
        recovery,
    };
    let made = context
        .vault_objects
        .create_ring(&name.namespace, &name.name, &ring)
        .await
        .context(WriteRingSnafu { vault: &name.name })?;
    context
        .vaults
        .lock()
        .observe_ring(name.clone(), made.clone());
    open(context, name, &made, roots).await
}

/// Turns the ring: all that is to be done to it, in one write.
async fn turn(
    context: &Context,
    name: &Name,
    open: &OpenRing,
    turning: &Turning,
    shred: &BTreeSet<u32>,
    roots: &RootKeys,
    now: Timestamp,
) -> Result<Arc<OpenRing>, Error> {
    let mut document = open.document.clone();
    document.marks = turning.marks.clone();
    document.purge_protection |= turning.protect;
    if turning.shred_vault {
        let all: Vec<u32> = document.versions.iter().map(|v| v.version).collect();
        document.shredded.extend(all);
        document.versions.clear();
        document.vault_shredded = true;
    }
    document.shredded.extend(&turning.shred);
    document
        .versions
        .retain(|version| !turning.shred.contains(&version.version));
    if turning.rewrap {
        document.index_key = rewrap(roots, open, KeyLabel::Index, &document.index_key).await?;
        for version in &mut document.versions {
            if roots.is_stale(&version.key) {
                version.key =
                    rewrap(roots, open, KeyLabel::Ring(version.version), &version.key).await?;
            }
        }
    }
    if turning.add {
        document.last += 1;
        // A number that is to be shredded is never given to anything.
        while shred.contains(&document.last) {
            document.last += 1;
        }
        for version in &mut document.versions {
            version.retired = version.retired.or(Some(now));
        }
        let label = KeyLabel::Ring(document.last);
        let key = Zeroizing::new(random::<32>());
        document.versions.push(RingVersion {
            version: document.last,
            created: now,
            retired: None,
            key: wrap(roots, &open.vault, label, &key).await?,
        });
    }
    let recovery = resealed(context, open, &document, roots).await;
    write(context, name, open, &document, recovery, roots).await
}

/// Destroys versions under which nothing is any more.
///
/// # Errors
/// The operation that failed.
pub async fn destroy(
    context: &Context,
    name: &Name,
    open: &OpenRing,
    versions: &[u32],
    roots: &RootKeys,
) -> Result<Arc<OpenRing>, Error> {
    let mut document = open.document.clone();
    document
        .versions
        .retain(|version| !versions.contains(&version.version));
    let recovery = resealed(context, open, &document, roots).await;
    write(context, name, open, &document, recovery, roots).await
}

/// What is to stand for the recipients beside this document. Keys that are destroyed must not live
/// on there, so that nothing stands there rather than what stood there before, if the keys cannot be
/// sealed now: the next look does.
async fn resealed(
    context: &Context,
    open: &OpenRing,
    document: &RingDocument,
    roots: &RootKeys,
) -> Option<Recovery> {
    let recipients = &context.settings.recipients;
    let numbers = |document: &RingDocument| -> Vec<u32> {
        document.versions.iter().map(|one| one.version).collect()
    };
    if is_sealed(open, document, recipients)
        || (recipients.is_empty() && numbers(document) == numbers(&open.document))
    {
        return open.recovery.clone();
    }
    match unwrap_and_seal(open, document, recipients, roots).await {
        Ok(sealed) => sealed,
        Err(error) => {
            let error = error.sentence();
            tracing::warn!(
                error,
                "the key ring could not be sealed to the recovery recipients; trying again"
            );
            None
        }
    }
}

/// Whether what stands for the recipients was made for them and of the keys in this document.
fn is_sealed(open: &OpenRing, document: &RingDocument, recipients: &Recipients) -> bool {
    open.recovery.as_ref().is_some_and(|recovery| {
        let versions = document.versions.iter().map(|one| one.version);
        recovery.mark == mark(&open.index, recipients, versions, &recovery.file)
    })
}

async fn unwrap_and_seal(
    open: &OpenRing,
    document: &RingDocument,
    recipients: &Recipients,
    roots: &RootKeys,
) -> Result<Option<Recovery>, Error> {
    if recipients.is_empty() {
        return Ok(None);
    }
    let unwrap = async |label, wrapped| {
        let key = roots.unwrap(&open.vault, label, wrapped).await;
        key.context(RootKeySnafu)
    };
    let mut keys = RingKeys {
        vault: open.vault.clone(),
        index: unwrap(KeyLabel::Index, &document.index_key).await?,
        versions: BTreeMap::new(),
    };
    for version in &document.versions {
        let key = unwrap(KeyLabel::Ring(version.version), &version.key).await?;
        keys.versions.insert(version.version, key);
    }
    Ok(seal(&keys, recipients))
}

fn seal(keys: &RingKeys, recipients: &Recipients) -> Option<Recovery> {
    let file = recovery::seal_ring(recipients, keys).ok()?;
    let index = IndexKey::new(keys.index.clone(), &keys.vault.id);
    let mark = mark(&index, recipients, keys.versions.keys().copied(), &file);
    Some(Recovery { file, mark })
}

/// Says for whom and of which versions a file was made, under the index key, so that a file that was
/// changed is made anew as well.
fn mark(
    index: &IndexKey,
    recipients: &Recipients,
    versions: impl Iterator<Item = u32>,
    file: &str,
) -> String {
    let versions: Vec<String> = versions.map(|version| version.to_string()).collect();
    let head = format!("{} {}", recipients.digest(), versions.join(","));
    let digest = index.digest("recovery", format!("{head}\n{file}").as_bytes());
    format!("{head} {digest}")
}

async fn write(
    context: &Context,
    name: &Name,
    open: &OpenRing,
    document: &RingDocument,
    recovery: Option<Recovery>,
    roots: &RootKeys,
) -> Result<Arc<OpenRing>, Error> {
    let bytes = document.render();
    let ring = Ring {
        version: String::new(),
        mac: open.index.document_mac(&bytes).as_bytes().to_vec(),
        document: bytes,
        recovery,
    };
    let written = context
        .vault_objects
        .write_ring(&name.namespace, &name.name, &open.version, &ring)
        .await
        .context(WriteRingSnafu { vault: &name.name })?;
    context
        .vaults
        .lock()
        .observe_ring(name.clone(), written.clone());
    match self::open(context, name, &written, roots).await? {
        Ok(open) => Ok(open),
        // What was just written does not open: another look will say why.
        Err(_) => Err(kube::Error::Api(
            kube::core::Status::failure("", "Conflict")
                .with_code(409)
                .boxed(),
        ))
        .context(WriteRingSnafu { vault: &name.name }),
    }
}

async fn wrap(
    roots: &RootKeys,
    vault: &VaultRef,
    label: KeyLabel,
    key: &[u8; 32],
) -> Result<Wrapped, Error> {
    let fresh = Zeroizing::new(random::<RANDOM_BYTES>());
    roots
        .wrap(vault, label, key, &fresh)
        .await
        .context(RootKeySnafu)
}

async fn rewrap(
    roots: &RootKeys,
    open: &OpenRing,
    label: KeyLabel,
    wrapped: &Wrapped,
) -> Result<Wrapped, Error> {
    let key = roots
        .unwrap(&open.vault, label, wrapped)
        .await
        .context(RootKeySnafu)?;
    wrap(roots, &open.vault, label, &key).await
}

/// Bytes of the operating system's random source.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .expect("the operating system's random source never fails once it is seeded");
    bytes
}
