//! A look at one workload: one restart for all changes that its pods have not seen.
//!
//! Truth stands in the annotation of the pod template: a restart that was done is not done again,
//! whatever else was lost.

use jiff::Timestamp;
use snafu::ResultExt;

use crate::{
    api::{condition::Reason, convert::Workload},
    clock,
    controllers::{
        Item,
        context::Context,
        error::{Class, Error, RestartSnafu},
        function_key::cache::State,
        naming::Name,
        secret_vault,
    },
    domain::rotation::add,
    k8s,
};

/// However many changes follow one another, none waits longer than this many delays.
const PATIENCE: i32 = 6;

/// Looks at a workload; answers when to look again though nothing changes.
///
/// # Errors
/// The operation that failed.
pub async fn look(context: &Context, workload: &Workload) -> Result<Option<Timestamp>, Error> {
    let result = bring_about(context, workload).await;
    let report = match &result {
        Err(error) if error.class() == Class::Refused => error.report(Reason::RestartFailed),
        Err(_) => return result,
        Ok(_) => None,
    };
    let changed = {
        let mut state = context.cache.lock();
        let before = state.workload_failures.remove(workload);
        let first = state.looked.insert(Item::Workload(workload.clone()));
        let changed = first || before != report;
        if let Some(report) = report {
            state.workload_failures.insert(workload.clone(), report);
        }
        changed
    };
    if changed {
        tell(context, workload);
    }
    result
}

async fn bring_about(context: &Context, workload: &Workload) -> Result<Option<Timestamp>, Error> {
    let changes = {
        let vaults = context.vaults.lock().restarting(workload);
        let state = context.cache.lock();
        let mut changes = unseen(&state, workload);
        changes.extend(secret_vault::target::unseen(&state, &vaults, workload));
        changes
    };
    let (Some(first), Some(last)) = (changes.iter().min(), changes.iter().max()) else {
        return Ok(None);
    };
    let now = clock::now();
    let delay = context.settings.restart_delay;
    let ready = add(*last, delay).min(add(*first, delay.checked_mul(PATIENCE).unwrap_or(delay)));
    if now < ready {
        return Ok(Some(ready));
    }
    let pods = k8s::workload::get(&context.client, workload)
        .await
        .context(RestartSnafu {
            workload: workload.clone(),
        })?;
    let restarted = match pods {
        None => {
            tracing::warn!(k8s.namespace.name = workload.namespace, workload = %workload.workload, "a workload to be restarted does not exist");
            context.cache.lock().note_absence(workload.clone(), now);
            tell(context, workload);
            return Ok(None);
        }
        Some(pods) if pods.since.is_some_and(|since| since >= *last) => pods.since.unwrap_or(now),
        Some(pods) => {
            k8s::workload::restart(&context.client, workload, &pods.version, now)
                .await
                .context(RestartSnafu {
                    workload: workload.clone(),
                })?;
            context.metrics.restarted();
            tracing::info!(k8s.namespace.name = workload.namespace, workload = %workload.workload, "restarted a workload whose keys changed");
            now
        }
    };
    context
        .cache
        .lock()
        .note_restart(workload.clone(), restarted);
    tell(context, workload);
    Ok(None)
}

/// Changes under a workload that its pods may not have seen.
fn unseen(state: &State, workload: &Workload) -> Vec<Timestamp> {
    let restarted = state.restarted(workload);
    let mut changes = Vec::new();
    for declaration in state.restarting(workload) {
        if declaration.suspended {
            continue;
        }
        for target in declaration
            .targets
            .iter()
            .filter(|target| target.restart.contains(&workload.workload))
        {
            let secret = Name::new(&*declaration.namespace, &*target.secret).secret();
            let copy = state
                .object(&secret)
                .and_then(|observed| observed.copies.as_ref()?.get(&target.entry).cloned());
            changes.extend(
                copy.filter(|copy| copy.owner.uid == declaration.owner.uid)
                    .and_then(|copy| copy.changed),
            );
        }
        if declaration
            .restart_on_revocation
            .contains(&workload.workload)
        {
            let store = state.object(&declaration.store);
            let record = store.as_ref().and_then(|observed| {
                let entry = declaration.key.data_key();
                observed
                    .ledger
                    .as_ref()?
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(&entry))
                    .map(|(_, record)| record)
            });
            let ours = record.filter(|record| {
                record
                    .owner
                    .as_ref()
                    .is_some_and(|owner| owner.uid == declaration.owner.uid)
            });
            changes.extend(ours.and_then(|record| record.revoked));
        }
    }
    changes.retain(|change| restarted.is_none_or(|restarted| *change > restarted));
    changes
}

/// Has everybody who waits for a restart look again.
fn tell(context: &Context, workload: &Workload) {
    let declarations = context.cache.lock().restarting(workload);
    for declaration in declarations {
        context.queue.soon(Item::Store(declaration.store.clone()));
    }
    let vaults = context.vaults.lock().restarting(workload);
    for vault in vaults {
        context.queue.soon(Item::Vault(Name::from(&*vault)));
    }
}
