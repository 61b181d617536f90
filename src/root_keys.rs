//! The root keys at hand: what wraps the keys of vaults, and unwraps them again.
//!
//! There are two providers, a [`Secret`](crate::k8s::root_key) of Claviger's own and a key
//! management service ([`Kms`]). One is primary and wraps; the other, if it is configured, still
//! unwraps, so that a vault can be moved from one to the other.
//!
//! A KMS has no associated data, so it cannot bind a key to the vault it belongs to. Therefore it is
//! given nothing but a wrapping key, made for one key of one vault, and that wrapping key does what
//! the root key in the Secret does otherwise. What a KMS has encrypted is decrypted at once, before
//! anything hangs on it: many services can be set up to allow the one and not the other.
//!
//! A KMS turns its key by itself and tells so by another `key_id`. [`RootKeys::watch`] asks for it
//! every minute, and [`RootKeys::is_stale`] says what should be wrapped anew.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clap::ValueEnum;
use snafu::{OptionExt, ResultExt, Snafu, ensure};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    domain::vault::{
        envelope::{KeyLabel, RootKey, Unopened},
        name::VaultRef,
        wrapped::{Base64, KmsWrapped, Wrapped},
    },
    kms::{self, Class, Encrypted, Kms},
};

/// Where the root key is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// With a key management service that speaks the Kubernetes KMS v2 protocol.
    Kms,
    /// In a Secret in Claviger's own namespace.
    #[default]
    Secret,
}

/// A key cannot be wrapped or unwrapped.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The KMS did not do it.
    #[snafu(display("{source}"))]
    Kms {
        /// Why.
        source: kms::Error,
    },
    /// Neither provider is the one that is needed.
    #[snafu(display(
        "the vault's keys were wrapped by {}, which is not at hand{}: {}",
        shown(root),
        there.as_ref().map(|there| format!(" ({} is)", shown(there))).unwrap_or_default(),
        remedy(root)
    ))]
    NotAtHand {
        /// The id of the root key.
        root: String,
        /// The id of the one that is there.
        there: Option<String>,
    },
    /// What was unwrapped is not what was wrapped.
    #[snafu(display(
        "a key of the vault does not open with root key {}: {source}",
        shown(root)
    ))]
    Unopened {
        /// The id of the root key.
        root: String,
        /// Why.
        source: Unopened,
    },
    /// The KMS does not decrypt what it has just encrypted.
    #[snafu(display(
        "the KMS plugin decrypts what it has just encrypted to something else: update the plugin, or use another; nothing was written"
    ))]
    Unfaithful,
}

impl Error {
    /// What follows.
    pub fn class(&self) -> Class {
        match self {
            Self::Kms { source } => source.class(),
            Self::NotAtHand { .. } | Self::Unopened { .. } | Self::Unfaithful => Class::Permanent,
        }
    }
}

/// The root keys at hand.
#[derive(Debug)]
pub struct RootKeys {
    primary: Primary,
    other: Option<Primary>,
}

#[derive(Debug)]
enum Primary {
    Kms {
        kms: Arc<Kms>,
        key_id: watch::Sender<Option<String>>,
    },
    Secret(Box<RootKey>),
}

/// The random bytes that wrapping one key takes: a nonce, and a wrapping key for a KMS.
pub const RANDOM_BYTES: usize = NONCE_BYTES + 32;

impl RootKeys {
    /// Wraps with the key of the Secret; unwraps with the KMS, too, if there is one.
    pub fn secret(key: RootKey, kms: Option<Arc<Kms>>) -> Self {
        Self {
            primary: Primary::Secret(Box::new(key)),
            other: kms.map(Primary::kms),
        }
    }

    /// Wraps with the KMS; unwraps with the key of the Secret, too, if there is one.
    pub fn kms(kms: Arc<Kms>, key: Option<RootKey>) -> Self {
        Self {
            primary: Primary::kms(kms),
            other: key.map(|key| Primary::Secret(Box::new(key))),
        }
    }

    /// The provider that wraps.
    pub fn primary(&self) -> Provider {
        match &self.primary {
            Primary::Kms { .. } => Provider::Kms,
            Primary::Secret(_) => Provider::Secret,
        }
    }

    /// The id of the key that wraps now; nothing until the KMS has told its own.
    pub fn primary_id(&self) -> Option<String> {
        match &self.primary {
            Primary::Kms { key_id, .. } => key_id
                .borrow()
                .as_ref()
                .map(|key_id| format!("{KMS}{key_id}")),
            Primary::Secret(key) => Some(key.id().to_owned()),
        }
    }

    /// Whether this should be wrapped anew: it was wrapped by another key than the one that wraps now.
    pub fn is_stale(&self, wrapped: &Wrapped) -> bool {
        self.primary_id().is_some_and(|id| id != wrapped.root)
    }

    /// Tells whenever the KMS has another key. Never changes if the KMS is not what wraps.
    pub fn kms_key_id(&self) -> watch::Receiver<Option<String>> {
        match &self.primary {
            Primary::Kms { key_id, .. } => key_id.subscribe(),
            Primary::Secret(_) => watch::channel(None).1,
        }
    }

    /// Asks the KMS every minute which key it encrypts with, until stopped. Returns at once if the
    /// KMS is not what wraps.
    pub async fn watch(&self, stop: CancellationToken) {
        let Primary::Kms { kms, .. } = &self.primary else {
            return;
        };
        let mut was_well = true;
        while !stop.is_cancelled() {
            match kms.status().await {
                Ok(health) => {
                    if !was_well {
                        tracing::info!("the KMS plugin is well again");
                    }
                    was_well = true;
                    self.note(&health.key_id);
                }
                Err(error) => {
                    if was_well {
                        tracing::warn!(%error, "the KMS plugin is not well; asking again");
                    }
                    was_well = false;
                }
            }
            let pause = if was_well { POLL } else { POLL_UNWELL };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Wraps a key of a vault with the primary provider. `random` are bytes that were never used, of
    /// which some become a key: keep them in a `Zeroizing`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wrap(
        &self,
        vault: &VaultRef,
        label: KeyLabel,
        key: &[u8; 32],
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Wrapped, Error> {
        let (nonce, rest) = random
            .split_first_chunk::<NONCE_BYTES>()
            .expect("there are more random bytes than a nonce takes");
        let (wrapping, kms) = match &self.primary {
            Primary::Secret(root) => {
                return Ok(Wrapped {
                    root: root.id().to_owned(),
                    sealed: Base64(root.wrap_key(label, vault, key, *nonce)),
                    kms: None,
                });
            }
            Primary::Kms { kms, .. } => (rest, kms),
        };
        let encrypted = kms.encrypt(&uid(), wrapping).await.context(KmsSnafu)?;
        let back = kms.decrypt(&uid(), &encrypted).await.context(KmsSnafu)?;
        ensure!(bool::from(back.as_slice().ct_eq(wrapping)), UnfaithfulSnafu);
        self.note(&encrypted.key_id);
        let root =
            wrapping_key(&back, format!("{KMS}{}", encrypted.key_id)).context(UnfaithfulSnafu)?;
        Ok(Wrapped {
            root: root.id().to_owned(),
            sealed: Base64(root.wrap_key(label, vault, key, *nonce)),
            kms: Some(KmsWrapped {
                ciphertext: Base64(encrypted.ciphertext),
                annotations: encrypted
                    .annotations
                    .into_iter()
                    .map(|(name, value)| (name, Base64(value)))
                    .collect(),
            }),
        })
    }

    /// Unwraps a key of a vault with whichever provider wrapped it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unwrap(
        &self,
        vault: &VaultRef,
        label: KeyLabel,
        wrapped: &Wrapped,
    ) -> Result<Zeroizing<[u8; 32]>, Error> {
        let root = &wrapped.root;
        let open = |key: &RootKey| {
            key.unwrap_key(label, vault, &wrapped.sealed.0)
                .context(UnopenedSnafu { root })
        };
        for provider in [Some(&self.primary), self.other.as_ref()]
            .into_iter()
            .flatten()
        {
            match (provider, root.strip_prefix(KMS), &wrapped.kms) {
                (Primary::Secret(key), None, None) if key.id() == root => return open(key),
                (Primary::Kms { kms, .. }, Some(key_id), Some(sealed)) => {
                    let wrapping = kms
                        .decrypt(&uid(), &encrypted(key_id, sealed))
                        .await
                        .context(KmsSnafu)?;
                    let key = wrapping_key(&wrapping, root.clone())
                        .ok_or(Unopened::Tampered)
                        .context(UnopenedSnafu { root })?;
                    return open(&key);
                }
                _ => {}
            }
        }
        let there = self.primary_id();
        NotAtHandSnafu { root, there }.fail()
    }

    /// Takes note of the KMS's key. What it encrypts with counts as much as what it says: a status
    /// that lags behind must not have things wrapped anew over and over.
    fn note(&self, seen: &str) {
        if let Primary::Kms { key_id, .. } = &self.primary {
            key_id.send_if_modified(|known| {
                let changed = known.as_deref() != Some(seen);
                if changed {
                    *known = Some(seen.to_owned());
                }
                changed
            });
        }
    }
}

impl Primary {
    fn kms(kms: Arc<Kms>) -> Self {
        Self::Kms {
            kms,
            key_id: watch::Sender::new(None),
        }
    }
}

fn encrypted(key_id: &str, sealed: &KmsWrapped) -> Encrypted {
    Encrypted {
        ciphertext: sealed.ciphertext.0.clone(),
        key_id: key_id.to_owned(),
        annotations: sealed
            .annotations
            .iter()
            .map(|(name, value)| (name.clone(), value.0.clone()))
            .collect::<BTreeMap<_, _>>(),
    }
}

fn wrapping_key(bytes: &[u8], id: String) -> Option<RootKey> {
    let mut key = Zeroizing::new([0; 32]);
    (bytes.len() == key.len()).then(|| {
        key.copy_from_slice(bytes);
        RootKey::with_id(key, id)
    })
}

/// Names a request in the plugin's log.
fn uid() -> String {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random)
        .expect("the operating system's random source never fails once it is seeded");
    format!("claviger-{:032x}", u128::from_be_bytes(random))
}

/// A root key's id in words; a KMS may give any name to its keys.
fn shown(root: &str) -> String {
    let shown: String = root.chars().take(200).collect();
    shown.escape_debug().to_string()
}

fn remedy(root: &str) -> &'static str {
    if root.starts_with(KMS) {
        "give the KMS plugin's socket with --kms-socket"
    } else {
        "bring that root key back with `claviger root-key restore`"
    }
}

/// What the id of a KMS's key begins with.
pub const KMS: &str = "kms:";
const NONCE_BYTES: usize = 12;
const POLL: Duration = Duration::from_mins(1);
const POLL_UNWELL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::vault::name::VaultId;

    fn vault(name: &str) -> VaultRef {
        VaultRef {
            id: VaultId([3; 16]),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    fn root(byte: u8) -> RootKey {
        RootKey::new(Zeroizing::new([byte; 32]))
    }

    #[tokio::test]
    async fn unwraps_what_the_secret_wrapped_for_the_same_use_only() {
        let keys = RootKeys::secret(root(1), None);
        let (payments, key) = (vault("payments"), [9; 32]);
        let wrapped = keys
            .wrap(&payments, KeyLabel::Ring(4), &key, &[5; RANDOM_BYTES])
            .await
            .unwrap();
        assert_eq!(keys.primary(), Provider::Secret);
        assert_eq!(keys.primary_id().unwrap(), wrapped.root);
        assert!(!keys.is_stale(&wrapped));
        let text = serde_json::to_string(&wrapped).unwrap();
        let wrapped: Wrapped = serde_json::from_str(&text).unwrap();
        let back = keys.unwrap(&payments, KeyLabel::Ring(4), &wrapped).await;
        assert_eq!(*back.unwrap(), key);

        for (vault, label) in [
            (vault("payments"), KeyLabel::Ring(5)),
            (vault("payments"), KeyLabel::Index),
            (vault("other"), KeyLabel::Ring(4)),
        ] {
            let error = keys.unwrap(&vault, label, &wrapped).await.unwrap_err();
            assert!(matches!(error, Error::Unopened { .. }), "{error}");
            assert_eq!(error.class(), Class::Permanent);
        }
        let others = RootKeys::secret(root(2), None);
        assert!(others.is_stale(&wrapped));
        let error = others
            .unwrap(&payments, KeyLabel::Ring(4), &wrapped)
            .await
            .unwrap_err();
        let words = error.to_string();
        assert!(
            words.contains(&wrapped.root) && words.contains("root-key restore"),
            "{words}"
        );
    }

    #[tokio::test]
    async fn says_what_is_missing_and_never_takes_one_for_the_other() {
        let keys = RootKeys::secret(root(1), None);
        let payments = vault("payments");
        let wrapped = keys
            .wrap(&payments, KeyLabel::Index, &[9; 32], &[5; RANDOM_BYTES])
            .await
            .unwrap();
        let kms = KmsWrapped {
            ciphertext: Base64(vec![1]),
            annotations: BTreeMap::new(),
        };
        for (root, kms, remedy) in [
            ("kms:k\n", Some(kms.clone()), "--kms-socket"),
            ("kms:k", None, "--kms-socket"),
            ("secret:00", None, "root-key restore"),
            (wrapped.root.as_str(), Some(kms), "root-key restore"),
        ] {
            let wrapped = Wrapped {
                root: root.to_owned(),
                kms,
                ..wrapped.clone()
            };
            let error = keys.unwrap(&payments, KeyLabel::Index, &wrapped).await;
            let words = error.unwrap_err().to_string();
            assert!(words.contains(remedy) && !words.contains('\n'), "{words}");
        }
    }
}
