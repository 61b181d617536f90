//! Taking out of Secrets what no vault puts there any more.

use std::{collections::BTreeMap, sync::Arc};

use snafu::ResultExt;

use super::{Seen, record};
use crate::{
    api::{SYNC_ANNOTATION, VAULT_LABEL, convert::StoreRef},
    controllers::{
        context::Context,
        error::{DeleteSnafu, Error, WriteSnafu},
        naming::Name,
        objects,
    },
    k8s::object::{self, Observed},
};

/// A Secret that no vault declares any more: what is ours in it goes, if the vault it was filled from
/// is there and says so by its silence.
///
/// # Errors
/// The write that failed; those before it stand.
pub(super) async fn sweep(context: &Context, secret: &Name) -> Result<(), Error> {
    // Immutable Secrets of a target have other names than it.
    let held: Vec<Seen> = context
        .cache
        .lock()
        .secrets_like(&secret.namespace, &secret.name)
        .filter(|(object, observed)| {
            object.name == secret.name
                || record(observed).is_some_and(|record| record.target == secret.name)
        })
        .map(|(object, observed)| (object.clone(), Arc::clone(observed)))
        .collect();
    for (object, observed) in held {
        let Some(record) = record(&observed) else {
            continue;
        };
        let vault = Name::new(&*secret.namespace, &*record.vault);
        let speaks = {
            let vaults = context.vaults.lock();
            vaults.unreadable(&vault).is_none()
                && vaults
                    .vault(&vault)
                    .is_some_and(|vault| !vault.suspended && !vault.deleting)
        };
        if speaks {
            withdraw(context, &object, &observed).await?;
        }
    }
    Ok(())
}

/// Takes everything of ours out of all Secrets that are filled from a vault.
///
/// # Errors
/// The write that failed; those before it stand.
pub async fn withdraw_all(context: &Context, vault: &Name) -> Result<(), Error> {
    let held: Vec<Seen> = context
        .cache
        .lock()
        .secrets_like(&vault.namespace, "")
        .filter(|(_, observed)| record(observed).is_some_and(|record| record.vault == vault.name))
        .map(|(object, observed)| (object.clone(), Arc::clone(observed)))
        .collect();
    for (object, observed) in held {
        withdraw(context, &object, &observed).await?;
    }
    Ok(())
}

/// Takes what is ours out of a Secret; one that we made goes as a whole, unless others have put
/// something into it that can stay.
///
/// # Errors
/// The write that failed.
pub(super) async fn withdraw(
    context: &Context,
    object: &StoreRef,
    observed: &Observed,
) -> Result<(), Error> {
    let Some(record) = record(observed) else {
        return Ok(());
    };
    let foreign = observed
        .values
        .names()
        .chain(observed.opaque.iter().map(String::as_str))
        .any(|key| !record.entries.contains_key(key));
    // A Secret with a type of its own cannot stand without the entries of that type.
    let whole = !foreign || observed.immutable || observed.type_.is_some();
    if observed.created && !record.merge && whole {
        let gone = context.objects.delete(object, observed).await;
        match gone {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            gone => gone.with_context(|_| DeleteSnafu {
                object: object.clone(),
            })?,
        }
        context.cache.lock().lose(object);
        objects::call_followers(context, object);
        return Ok(());
    }
    let mut annotations = BTreeMap::from([(SYNC_ANNOTATION.into(), None)]);
    annotations.extend(
        record
            .annotations
            .iter()
            .map(|name| (name.clone().into(), None)),
    );
    let labels = record
        .labels
        .iter()
        .cloned()
        .chain([VAULT_LABEL.to_owned()])
        .map(|name| (name, None))
        .collect();
    let write = object::Write {
        content: None,
        annotations,
        labels,
        data: record
            .entries
            .keys()
            .filter(|key| observed.values.get(key).is_some() || observed.opaque.contains(*key))
            .map(|key| (key.clone(), None))
            .collect(),
        ..object::Write::default()
    };
    let written = context
        .objects
        .patch(object, &observed.version, &write)
        .await;
    match written {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        written => {
            written.with_context(|_| WriteSnafu {
                object: object.clone(),
            })?;
        }
    }
    context.cache.lock().lose(object);
    objects::call_followers(context, object);
    Ok(())
}
