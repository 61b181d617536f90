//! What holds a vault back from deletion, and what goes with it.

use kube::runtime::events::EventType;
use snafu::ResultExt;

use super::target;
use crate::{
    api::{VAULT_FINALIZER, convert::vault::Vault, v1alpha1::VaultDeletionPolicy},
    controllers::{
        context::Context,
        error::{
            DefinitionSnafu, Error, FinalizeSnafu, NamespaceSnafu, ReadRingSnafu, WriteEntrySnafu,
            WriteRingSnafu,
        },
        naming::Name,
    },
    domain::vault::ring::RingDocument,
    k8s::{self, vault::Found},
};

/// What came of a vault that is to go.
pub enum Outcome {
    /// It is let go.
    Gone,
    /// It waits; in words, for what.
    Waiting(String),
}

/// Holds a vault back: from now on a deletion waits for [`depart`].
///
/// # Errors
/// The write that failed.
pub async fn hold(context: &Context, vault: &Vault) -> Result<(), Error> {
    let mut finalizers = vault.finalizers.clone();
    finalizers.push(VAULT_FINALIZER.to_owned());
    write(context, vault, finalizers).await
}

/// Lets a vault go if it may.
///
/// # Errors
/// The operation that failed; everything done before it stands.
pub async fn depart(context: &Context, name: &Name, vault: &Vault) -> Result<Outcome, Error> {
    if !vault.is_held() {
        return Ok(Outcome::Gone);
    }
    let namespace = &name.namespace;
    // Nobody decided on this vault who deletes the definition of all, or installs it anew.
    let defined = k8s::crd::established_since(&context.client, "secretvaults.claviger.dev")
        .await
        .context(DefinitionSnafu)?;
    if defined.is_none() {
        return release(context, vault).await;
    }
    let going = k8s::crd::is_namespace_going(&context.client, namespace)
        .await
        .context(NamespaceSnafu { namespace })?;
    if going {
        return release(context, vault).await;
    }
    match vault.deletion {
        VaultDeletionPolicy::Retain => release(context, vault).await,
        VaultDeletionPolicy::Delete if !is_protected(context, name, vault) => {
            destroy(context, name, vault).await?;
            release(context, vault).await
        }
        VaultDeletionPolicy::Delete | VaultDeletionPolicy::Protect => {
            let entries = context
                .vault_objects
                .list_entries(namespace, &name.name)
                .await
                .context(ReadRingSnafu { vault: &name.name })?;
            if entries.is_empty() {
                destroy(context, name, vault).await?;
                return release(context, vault).await;
            }
            let ways_out = if is_protected(context, name, vault) {
                "softDelete.purgeProtection keeps them until their retention is over; set spec.deletionPolicy to Retain to have only this resource deleted"
            } else {
                "set spec.deletionPolicy to Retain to keep them, or to Delete to destroy them"
            };
            Ok(Outcome::Waiting(format!(
                "the vault is to be deleted, but {} object(s) of its secrets are there, which live or can be recovered; {ways_out}",
                entries.len()
            )))
        }
    }
}

/// Whether purge protection is on, or once was.
fn is_protected(context: &Context, name: &Name, vault: &Vault) -> bool {
    let ring = context.vaults.lock().ring(name);
    let document = ring.and_then(|ring| RingDocument::parse(&ring.document).ok());
    document.map_or(vault.ring.purge_protection, |document| {
        document.is_protected(&vault.ring)
    })
}

/// Everything goes: the key ring first, so that nothing can be read from then on.
async fn destroy(context: &Context, name: &Name, vault: &Vault) -> Result<(), Error> {
    let namespace = &name.namespace;
    let ring = context
        .vault_objects
        .ring(namespace, &name.name)
        .await
        .context(ReadRingSnafu { vault: &name.name })?;
    context.vaults.lock().close(name);
    if let Found::Ours(ring) = ring {
        context
            .vault_objects
            .delete_ring(namespace, &name.name, &ring.version)
            .await
            .context(WriteRingSnafu { vault: &name.name })?;
    }
    context.vaults.lock().bury_ring(name);
    let entries = context
        .vault_objects
        .list_entries(namespace, &name.name)
        .await
        .context(ReadRingSnafu { vault: &name.name })?;
    for object in entries.keys() {
        context
            .vault_objects
            .delete_entry(namespace, object, None)
            .await
            .context(WriteEntrySnafu { object })?;
        context.vaults.lock().lose_entry(name, object, None);
    }
    target::withdraw_all(context, name).await?;
    super::publish(
        context,
        vault,
        EventType::Warning,
        "Destroyed",
        "the vault was deleted, with its key ring and everything in it".to_owned(),
    );
    Ok(())
}

async fn release(context: &Context, vault: &Vault) -> Result<Outcome, Error> {
    let finalizers = vault
        .finalizers
        .iter()
        .filter(|name| *name != VAULT_FINALIZER)
        .cloned()
        .collect();
    write(context, vault, finalizers).await?;
    context.vaults.lock().bury_ring(&Name::from(vault));
    Ok(Outcome::Gone)
}

async fn write(context: &Context, vault: &Vault, finalizers: Vec<String>) -> Result<(), Error> {
    let written = k8s::status::finalizers(
        &context.client,
        &vault.namespace,
        &vault.owner,
        &vault.version,
        &finalizers,
    )
    .await;
    match written {
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        written => written.context(FinalizeSnafu {
            vault: &vault.owner.name,
        }),
    }
}
