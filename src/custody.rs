//! Having the root keys at hand: read or made when this process leads, waited for when they are
//! missing, watched when a KMS keeps them, and backed up to the recovery recipients.

use std::{sync::Arc, time::Duration};

use snafu::{ResultExt, Snafu};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    cli::ControllerArgs,
    controllers::{
        Item,
        context::Context,
        naming::Name,
        secret_vault::{self, ring::random},
    },
    k8s::{
        root_key::{self, Absent, Material},
        root_key_backup,
    },
    kms::{self, Kms},
    recovery::{self, Recipients},
    root_keys::{Provider, RootKeys},
};

/// The pause between attempts to read a root key that is not there.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_mins(1);
/// How often it is asked whether somebody has verified the backup.
const BACKUP_CHECK: Duration = Duration::from_mins(30);
const KMS_TIMEOUT: Duration = Duration::from_secs(5);

/// The root keys are not configured as they can be.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The KMS's socket is not one.
    #[snafu(display("{source}"))]
    Kms {
        /// Why.
        source: kms::Error,
    },
    /// A recovery recipient is not one.
    #[snafu(display("{source}"))]
    Recipients {
        /// Why.
        source: recovery::Error,
    },
}

/// Where the root keys are, as configured.
pub struct Custody {
    provider: Provider,
    kms: Option<Arc<Kms>>,
    recipients: Recipients,
    namespace: String,
}

impl Custody {
    /// Reads the configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(args: &ControllerArgs) -> Result<Self, Error> {
        let kms = args
            .kms_socket
            .as_ref()
            .map(|socket| Kms::connect(socket, KMS_TIMEOUT))
            .transpose()
            .context(KmsSnafu)?
            .map(Arc::new);
        let recipients: Vec<&String> = args
            .recovery_recipients
            .iter()
            .filter(|recipient| !recipient.is_empty())
            .collect();
        Ok(Self {
            provider: args.root_key,
            kms,
            recipients: Recipients::parse(&recipients).context(RecipientsSnafu)?,
            namespace: args.system_namespace.clone(),
        })
    }

    /// To whom the root key and the keys of every ring are sealed, too.
    pub fn recipients(&self) -> &Recipients {
        &self.recipients
    }

    /// Keeps the root keys at hand until `stop`.
    pub async fn keep(self, context: Arc<Context>, stop: CancellationToken) {
        while let Some((keys, material)) = self.obtain(&context, &stop).await {
            let keys = Arc::new(keys);
            if context.roots.set(Ok(Arc::clone(&keys))) {
                call_for_all(&context);
            }
            let mut turned = keys.kms_key_id();
            let turning = async {
                while turned.changed().await.is_ok() {
                    call_for_all(&context);
                }
                // With a key of our own nothing ever changes.
                std::future::pending::<()>().await;
            };
            let round = stop.child_token();
            tokio::select! {
                () = keys.watch(round.clone()), if self.provider == Provider::Kms => {}
                () = self.look_after(&context, material.as_ref()) => {}
                () = turning => {}
                () = self.changed(&context, material.as_ref()) => {}
                () = stop.cancelled() => return,
            }
            round.cancel();
        }
    }

    /// Returns when a vault misses a root key and the Secret holds another one than is known.
    async fn changed(&self, context: &Context, known: Option<&Material>) {
        context.roots.missed().await;
        let mut pause = RETRY;
        loop {
            tokio::time::sleep(pause).await;
            let stored = root_key::read(&context.client, &self.namespace).await;
            if let Ok(Some(stored)) = stored
                && known.is_none_or(|known| known.id() != stored.id())
            {
                tracing::info!(root_key = stored.id(), "the root key was brought back");
                return;
            }
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    /// Now and then: writes the backup, and the root key itself if somebody has deleted it.
    async fn look_after(&self, context: &Context, material: Option<&Material>) {
        loop {
            if let Some(material) = material {
                self.back_up(context, material).await;
                if self.provider == Provider::Secret {
                    self.write_back(context, material).await;
                }
            }
            tokio::time::sleep(BACKUP_CHECK).await;
        }
    }

    /// Writes the very root key back whose Secret somebody has deleted.
    async fn write_back(&self, context: &Context, material: &Material) {
        let (client, namespace) = (&context.client, &self.namespace);
        let outcome = match root_key::read(client, namespace).await {
            Ok(Some(_)) => return,
            Ok(None) => root_key::create(client, namespace, material).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => tracing::warn!("the root key's Secret was gone and was written back"),
            Err(error) => tracing::warn!(%error, "the root key's Secret is not as it should be"),
        }
    }

    /// The root keys; one is made only if there is nothing that another one wrapped, and not before
    /// there is a vault: a cluster that is being put back gets its root key back, too.
    async fn obtain(
        &self,
        context: &Context,
        stop: &CancellationToken,
    ) -> Option<(RootKeys, Option<Material>)> {
        loop {
            match self.once(context).await {
                Ok(Some(keys)) => return Some(keys),
                Ok(None) => {
                    tokio::select! {
                        () = context.roots.missed() => continue,
                        () = stop.cancelled() => return None,
                    }
                }
                Err(why) => {
                    if context.roots.set(Err(why.clone())) {
                        tracing::error!(error = why, "waiting for the root key");
                        call_for_all(context);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = context.roots.missed() => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    async fn once(
        &self,
        context: &Context,
    ) -> Result<Option<(RootKeys, Option<Material>)>, String> {
        let (client, namespace) = (&context.client, &self.namespace);
        match (self.provider, &self.kms) {
            (Provider::Kms, Some(kms)) => {
                let material = root_key::read(client, namespace)
                    .await
                    .map_err(|error| error.to_string())?;
                let key = material.as_ref().map(Material::root_key);
                Ok(Some((RootKeys::kms(Arc::clone(kms), key), material)))
            }
            (_, kms) => {
                let idle = context.vaults.lock().vaults().next().is_none();
                let stored = root_key::read(client, namespace).await;
                if idle && matches!(stored, Ok(None)) {
                    return Ok(None);
                }
                let absent = if wrapped_by_a_secret(context) {
                    Absent::Refuse
                } else {
                    Absent::Mint
                };
                let material =
                    root_key::obtain(client, namespace, Zeroizing::new(random()), absent)
                        .await
                        .map_err(|error| error.to_string())?;
                let keys = RootKeys::secret(material.root_key(), kms.clone());
                Ok(Some((keys, Some(material))))
            }
        }
    }

    async fn back_up(&self, context: &Context, material: &Material) {
        let (client, namespace) = (&context.client, &self.namespace);
        if !self.recipients.is_empty()
            && let Err(error) =
                recovery::keep_backup(client, namespace, material, &self.recipients).await
        {
            tracing::warn!(%error, "the backup of the root key could not be written; trying again later");
        }
        match root_key_backup::read(client, namespace).await {
            Ok(stored) => context
                .roots
                .note_backup_verified(stored.and_then(|stored| stored.verified)),
            Err(error) => tracing::warn!(%error, "cannot tell when the backup was verified"),
        }
    }
}

/// Whether there is anything that only a root key of the Secret opens, as far as the caches tell: a
/// key ring that says so, or entries of a vault whose key ring is not there.
fn wrapped_by_a_secret(context: &Context) -> bool {
    let vaults = context.vaults.lock();
    let ringless = vaults
        .with_entries()
        .any(|vault| vaults.ring(vault).is_none());
    ringless
        || vaults.rings().any(|(_, ring)| {
            crate::domain::vault::ring::RingDocument::parse(&ring.document).map_or(
                true,
                |document| {
                    document.index_key.root.starts_with("secret:")
                        || document
                            .versions
                            .iter()
                            .any(|version| version.key.root.starts_with("secret:"))
                },
            )
        })
}

fn call_for_all(context: &Context) {
    let vaults: Vec<_> = context.vaults.lock().vaults().cloned().collect();
    for vault in vaults {
        context.queue.soon(Item::Vault(Name::from(&*vault)));
        secret_vault::call_for(context, &vault);
    }
}
