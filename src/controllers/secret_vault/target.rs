//! A look at one Secret into which values are synced: all its entries, in one write.
//!
//! What of it is from where stands in an annotation beside the values, written with them. So nothing
//! is opened to find that all is as it should be; a value is opened only to be written.
//!
//! Where to read on: [`fill`] (what becomes of each entry), [`withdraw`] (what is taken out again).

mod fill;
mod withdraw;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use snafu::ResultExt;

pub use self::withdraw::withdraw_all;
use super::cache::TargetReport;
use crate::{
    api::{
        condition::{Reason, Report, State},
        convert::{
            StoreRef, Workload,
            vault::{Content, Target, Vault},
        },
        v1alpha1::VaultDeletionPolicy,
    },
    controllers::{
        Item,
        context::Context,
        error::{Class, Error, ReadSnafu},
        function_key,
        naming::Name,
    },
    domain::vault::{
        history::History,
        name::SecretName,
        plan::Reached,
        sync::{Record, both},
        template::{Input, Template, Version},
    },
    k8s::object::Observed,
};

/// Looks at a Secret by its name; answers when to look again though nothing changes.
///
/// # Errors
/// The operation that failed.
pub async fn look(context: &Context, secret: &Name) -> Result<Option<Timestamp>, Error> {
    let claims = context.vaults.lock().syncing(secret);
    if claims.is_empty() {
        withdraw::sweep(context, secret).await?;
        return Ok(None);
    }
    let base = claims.iter().flat_map(|vault| &vault.sync).find(|target| {
        target.immutable && target.name != secret.name && target.covers(&secret.name)
    });
    if let Some(target) = base {
        context
            .queue
            .soon(Item::Target(Name::new(&*secret.namespace, &*target.name)));
        return Ok(None);
    }
    let observed = match observe(context, secret).await {
        Ok(observed) => observed,
        Err(error) => {
            if let Some(report) = error.report(Reason::TargetRefused) {
                for vault in &claims {
                    note(context, vault, &secret.name, failed(None, report.clone()));
                }
            }
            return Err(error);
        }
    };
    let incumbent = observed
        .as_deref()
        .and_then(|observed| observed.sync.as_ref()?.record.as_ref())
        .map(|record| record.vault.clone());
    let mut claims = claims;
    claims.sort_by_key(|vault| {
        (
            incumbent.as_deref() != Some(vault.owner.name.as_str()),
            vault.created,
            vault.owner.name.clone(),
        )
    });
    let mut claims = claims.into_iter();
    let Some(vault) = claims.next() else {
        return Ok(None);
    };
    for other in claims {
        let report = stalled(
            Reason::Conflict,
            format!(
                "Secret/{} is a target of SecretVault/{}; name another target, or take it off there",
                secret.name, vault.owner.name
            ),
        );
        note(context, &other, &secret.name, failed(None, report));
    }
    let Some(target) = vault.sync.iter().find(|target| target.name == secret.name) else {
        return Ok(None);
    };
    let open = context.vaults.lock().open(&Name::from(&*vault));
    let Some(open) = open.filter(|_| !vault.suspended) else {
        return Ok(None);
    };
    if vault.deleting && vault.deletion == VaultDeletionPolicy::Delete {
        return Ok(None);
    }
    match fill::fill(context, &vault, target, &open, observed.as_deref()).await {
        Ok((report, next)) => {
            note(context, &vault, &target.name, report);
            Ok(next)
        }
        Err(error) => {
            if error.class() == Class::Refused
                && let Some(report) = error.report(Reason::TargetRefused)
            {
                let before = held(&context.cache.lock(), &vault, target);
                note(context, &vault, &target.name, failed(before, report));
            }
            Err(error)
        }
    }
}

async fn observe(context: &Context, secret: &Name) -> Result<Option<Arc<Observed>>, Error> {
    let object = secret.secret();
    let known = context.cache.lock().object(&object);
    match known {
        Some(observed) => Ok(Some(observed)),
        None => Ok(context
            .objects
            .get(&object)
            .await
            .context(ReadSnafu { object })?
            .map(Arc::new)),
    }
}

/// Takes in what came of a look, and has the vault report it if it is news.
fn note(context: &Context, vault: &Vault, target: &str, report: TargetReport) {
    let name = Name::from(vault);
    if context.vaults.lock().note_target(&name, target, report) {
        context.queue.soon(Item::Vault(name));
    }
}

fn stalled(reason: Reason, message: String) -> Report {
    Report {
        state: State::Stalled,
        reason,
        message,
    }
}

fn failed(before: Option<Seen>, obstacle: Report) -> TargetReport {
    TargetReport {
        secret: before.as_ref().map(|(object, _)| object.name.clone()),
        changed: before.and_then(|(_, observed)| last_change(record(&observed)?)),
        synced: false,
        obstacle: Some(obstacle),
    }
}

fn record(observed: &Observed) -> Option<&Record> {
    observed.sync.as_ref()?.record.as_ref()
}

fn last_change(record: &Record) -> Option<Timestamp> {
    record.entries.values().map(|placed| placed.at).max()
}

/// An object as observed.
type Seen = (StoreRef, Arc<Observed>);

/// The Secret that holds a target's content now, as last observed.
pub fn held(state: &function_key::cache::State, vault: &Vault, target: &Target) -> Option<Seen> {
    let ours = |observed: &Observed| {
        record(observed)
            .is_some_and(|record| record.vault == vault.owner.name && record.target == target.name)
    };
    if !target.immutable {
        let object = Name::new(&*vault.namespace, &*target.name).secret();
        let observed = state.object(&object).filter(|observed| ours(observed))?;
        return Some((object, observed));
    }
    state
        .secrets_like(&vault.namespace, &target.name)
        .filter(|(object, observed)| target.covers(&object.name) && ours(observed))
        .max_by_key(|(object, observed)| {
            let at = record(observed).and_then(last_change);
            (at, object.name.clone())
        })
        .map(|(object, observed)| (object.clone(), Arc::clone(observed)))
}

/// Changes under a workload, by vaults that restart it, that its pods may not have seen.
pub fn unseen(
    state: &function_key::cache::State,
    vaults: &[Arc<Vault>],
    workload: &Workload,
) -> Vec<Timestamp> {
    vaults
        .iter()
        .filter(|vault| !vault.suspended)
        .flat_map(|vault| unseen_of(state, vault, workload))
        .collect()
}

/// The same, by one vault.
pub fn unseen_of(
    state: &function_key::cache::State,
    vault: &Vault,
    workload: &Workload,
) -> Vec<Timestamp> {
    let restarted = state.restarted(workload);
    vault
        .sync
        .iter()
        .filter(|target| target.restart.contains(&workload.workload))
        .filter_map(|target| held(state, vault, target))
        .filter_map(|(_, observed)| {
            let record = record(&observed)?;
            record
                .entries
                .values()
                .filter_map(|placed| placed.changed)
                .max()
        })
        .filter(|changed| restarted.is_none_or(|restarted| *changed > restarted))
        .collect()
}

/// Which targets use which secret's current value, by folded name.
pub struct Users<'a>(BTreeMap<String, Vec<(&'a Target, &'a str)>>);

impl<'a> Users<'a> {
    /// Those of a vault.
    pub fn of(vault: &'a Vault) -> Self {
        let mut users: BTreeMap<String, Vec<(&Target, &str)>> = BTreeMap::new();
        for target in &vault.sync {
            for (key, content) in &target.entries {
                for input in inputs(content) {
                    if input.version == Version::Current {
                        users.entry(input.secret).or_default().push((target, key));
                    }
                }
            }
        }
        Self(users)
    }

    /// How far the value of that number, or a later one, has got.
    pub fn reached(
        &self,
        context: &Context,
        vault: &Vault,
        secret: &SecretName,
        sequence: u32,
        history: &History,
    ) -> Reached {
        let mut reached = Reached::Since(Timestamp::MIN);
        let Some(users) = self.0.get(&secret.folded()) else {
            return reached;
        };
        let state = context.cache.lock();
        for (target, key) in users {
            let here = held(&state, vault, target)
                .and_then(|(_, observed)| record(&observed)?.entries.get(*key).cloned());
            let Some(placed) = here else {
                return Reached::NotYet;
            };
            reached = both(
                reached,
                placed
                    .reached(secret, sequence, |number| history.id(number))
                    .unwrap_or(Reached::NotYet),
            );
            for workload in &target.restart {
                let workload = Workload {
                    namespace: vault.namespace.clone(),
                    workload: workload.clone(),
                };
                let Some(changed) = placed.changed else {
                    continue;
                };
                reached = both(
                    reached,
                    match state.restarted(&workload) {
                        Some(at) if at >= changed => Reached::Since(at),
                        _ => Reached::NotYet,
                    },
                );
            }
        }
        drop(state);
        match reached {
            Reached::Since(at) => {
                let mut vaults = context.vaults.lock();
                let name = Name::from(vault);
                let Some(id) = history.id(sequence) else {
                    return Reached::Since(at);
                };
                Reached::Since(vaults.first_reached(&name, secret, (sequence, id), at))
            }
            Reached::NotYet => Reached::NotYet,
        }
    }
}

/// The values that an entry may be made from.
fn inputs(content: &Content) -> BTreeSet<Input> {
    match content {
        Content::Secret { name, previous, .. } => BTreeSet::from([Input {
            secret: name.folded(),
            version: if *previous {
                Version::Previous
            } else {
                Version::Current
            },
        }]),
        Content::Template(text) => Template::parse(text)
            .map(|template| template.inputs().clone())
            .unwrap_or_default(),
    }
}
