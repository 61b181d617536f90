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

    /// Keeps the root keys at hand until `stop`.
    pub async fn keep(self, context: Arc<Context>, stop: CancellationToken) {
        let Some((keys, material)) = self.obtain(&context, &stop).await else {
            return;
        };
        let keys = Arc::new(keys);
        let mut turned = keys.kms_key_id();
        if context.roots.set(Ok(Arc::clone(&keys))) {
            call_for_all(&context);
        }
        let watching = {
            let (keys, stop) = (Arc::clone(&keys), stop.clone());
            tokio::spawn(async move { keys.watch(stop).await })
        };
        let backing_up = async {
            loop {
                if let Some(material) = &material {
                    self.back_up(&context, material).await;
                }
                tokio::time::sleep(BACKUP_CHECK).await;
            }
        };
        let turning = async {
            while turned.changed().await.is_ok() {
                call_for_all(&context);
            }
            // With a key of our own nothing ever changes.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = backing_up => {}
            () = turning => {}
            () = stop.cancelled() => {}
        }
        watching.abort();
    }

    /// The root keys; one is made only if there is nothing that another one wrapped.
    async fn obtain(
        &self,
        context: &Context,
        stop: &CancellationToken,
    ) -> Option<(RootKeys, Option<Material>)> {
        loop {
            match self.once(context).await {
                Ok(keys) => return Some(keys),
                Err(why) => {
                    if context.roots.set(Err(why.clone())) {
                        tracing::error!(error = why, "waiting for the root key");
                        call_for_all(context);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => return None,
            }
        }
    }

    async fn once(&self, context: &Context) -> Result<(RootKeys, Option<Material>), String> {
        let (client, namespace) = (&context.client, &self.namespace);
        match (self.provider, &self.kms) {
            (Provider::Kms, Some(kms)) => {
                let material = root_key::read(client, namespace)
                    .await
                    .map_err(|error| error.to_string())?;
                let key = material.as_ref().map(Material::root_key);
                Ok((RootKeys::kms(Arc::clone(kms), key), material))
            }
            (_, kms) => {
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
                Ok((keys, Some(material)))
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
