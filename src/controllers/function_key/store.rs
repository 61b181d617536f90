//! A look at one key store: all keys of one app, decided and written together.
//!
//! Steps: 1 observe  2 decide (and mint)  3 build  4 perform  5 report.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::runtime::events::EventType;
use snafu::ResultExt;

use crate::{
    api::{
        CONTENT_KEYS, LEDGER_ANNOTATION, SEALED_ANNOTATION,
        condition::{Reason, STALLED},
        convert::{Declaration, StoreRef, Workload},
        v1alpha1::FunctionKeyStatus,
    },
    clock,
    controllers::{
        Item,
        context::Context,
        error::{Class, DefinitionSnafu, DeleteSnafu, Error, ReadSnafu, StatusSnafu, WriteSnafu},
        function_key::{
            cache::State,
            report::{self, SourceFault},
        },
        naming::Name,
        objects, source,
    },
    domain::{
        key::{Digest, KeyKind, KeyMaterial, format, strength},
        layout,
        ledger::{Ledger, Record},
        plan::{self, Declared, Distribution, Input, Occurrence, Plan, Stored, Supply},
    },
    k8s::{
        self,
        object::{Observed, Write},
        shelf::Shelf,
    },
};

/// How many statuses of one store are written at once.
const STATUS_WRITES: usize = 8;

/// Looks at a store; answers when to look again though nothing changes.
///
/// # Errors
/// The operation that failed; everything done before it stands.
pub async fn look(context: &Context, store: &StoreRef) -> Result<Option<Timestamp>, Error> {
    let declarations = context.cache.lock().in_store(store);
    if declarations.is_empty() {
        context.cache.lock().bury(store);
    }
    match bring_about(context, store, &declarations).await {
        Ok(next) => Ok(next),
        Err(error) => {
            if let Some(report) = error.report(Reason::StoreRefused) {
                let statuses = declarations.iter().map(|declaration| {
                    let status = report::failed(declaration, &report, clock::now());
                    (Arc::clone(declaration), status)
                });
                write_statuses(context, statuses.collect()).await?;
            }
            Err(error)
        }
    }
}

async fn bring_about(
    context: &Context,
    store: &StoreRef,
    declarations: &[Arc<Declaration>],
) -> Result<Option<Timestamp>, Error> {
    let mut observed = super::observe_labelled(context, store, CONTENT_KEYS).await?;
    let (sources, faults) = read_sources(context, declarations).await?;
    if let Some(refusal) = observed
        .as_deref()
        .and_then(|observed| refusal(store, observed))
    {
        let statuses = declarations
            .iter()
            .map(|declaration| {
                (
                    Arc::clone(declaration),
                    report::failed(
                        declaration,
                        &report::store_refused(refusal.clone()),
                        clock::now(),
                    ),
                )
            })
            .collect();
        write_statuses(context, statuses).await?;
        return Ok(None);
    }
    loop {
        let now = clock::now();
        let spared = spared(context, store, observed.as_deref()).await?;
        let declared = declare(context, declarations, &sources, now);
        let stored = recollect(context, store, observed.as_deref());
        let kept = keepsakes(context, store, observed.as_deref(), &stored);
        let input = Input {
            now,
            host_reload: context.settings.host_reload,
            stored: &stored,
            kept: &kept,
            declared: &declared,
            spared: &spared,
        };
        let plan = plan::plan(input, &mut mint);
        match perform(context, store, observed.as_deref(), &stored, &plan).await {
            Ok(()) => {}
            // It exists after all: somebody else made it. Adopt what is there.
            Err(error) if observed.is_none() && error.class() == Class::Conflict => {
                observed = context
                    .objects
                    .get(store)
                    .await
                    .context(ReadSnafu {
                        object: store.clone(),
                    })?
                    .map(Arc::new);
                if observed.is_none() {
                    return Err(error);
                }
                if let Some(refusal) = observed
                    .as_deref()
                    .and_then(|observed| refusal(store, observed))
                {
                    let report = report::store_refused(refusal);
                    let statuses = declarations.iter().map(|declaration| {
                        (
                            Arc::clone(declaration),
                            report::failed(declaration, &report, now),
                        )
                    });
                    write_statuses(context, statuses.collect()).await?;
                    return Ok(None);
                }
                continue;
            }
            Err(error) => {
                // What was observed is out of date: read it anew rather than wait for the watch.
                if error.class() == Class::Conflict
                    && let Ok(Some(fresh)) = context.objects.get(store).await
                    && fresh.content.is_some()
                {
                    context.cache.lock().observe(store.clone(), fresh);
                    objects::call_followers(context, store);
                }
                return Err(error);
            }
        }
        return conclude(context, declarations, &faults, plan, now).await;
    }
}

/// Why an object may not be used as a store.
fn refusal(store: &StoreRef, observed: &Observed) -> Option<String> {
    if !observed.allowed {
        return Some(format!(
            "{store} is of a type that cannot hold keys; name another in spec.storage"
        ));
    }
    if observed.immutable {
        return Some(format!(
            "{store} is immutable; delete it so that it can be made anew, or name another in spec.storage"
        ));
    }
    if observed
        .content
        .as_deref()
        .is_some_and(|content| content != CONTENT_KEYS)
    {
        return Some(format!(
            "{store} is one in which keys are handed to clients (distributeTo), or that a vault fills; it cannot be an app's key store as well"
        ));
    }
    None
}

type Sources = BTreeMap<String, KeyMaterial>;
type Faults = BTreeMap<String, SourceFault>;

/// The values that the users' own Secrets hold, by resource; and what is wrong where there is none.
async fn read_sources(
    context: &Context,
    declarations: &[Arc<Declaration>],
) -> Result<(Sources, Faults), Error> {
    let mut values = Sources::new();
    let mut faults = Faults::new();
    for declaration in declarations {
        let Some(reference) = &declaration.source else {
            continue;
        };
        let source = Name::new(&*declaration.namespace, &*reference.name);
        let observed = source::read(context, &source).await?;
        let name = declaration.owner.name.clone();
        match judge(declaration, observed.as_deref(), &reference.key) {
            Ok(value) => _ = values.insert(name, value),
            Err(fault) => _ = faults.insert(name, fault),
        }
    }
    Ok((values, faults))
}

/// Whether a source gives a value that can serve as a key.
fn judge(
    declaration: &Declaration,
    observed: Option<&Observed>,
    entry: &str,
) -> Result<KeyMaterial, SourceFault> {
    let observed = observed.ok_or(SourceFault::NoSecret)?;
    if !observed.allowed {
        return Err(SourceFault::Type);
    }
    if observed.opaque.contains(entry) {
        return Err(SourceFault::Unfit {
            fault: strength::Unfit::NotUtf8,
        });
    }
    let value = observed.values.get(entry).ok_or(SourceFault::NoEntry)?;
    strength::check_supplied(value.expose().as_bytes(), declaration.key.kind())
        .map_err(|fault| SourceFault::Unfit { fault })
}

/// UIDs whose resources are gone although nobody deleted a key: the definition itself was deleted,
/// or made anew since. The apiserver is asked only when a resource is gone.
async fn spared(
    context: &Context,
    store: &StoreRef,
    observed: Option<&Observed>,
) -> Result<HashSet<String>, Error> {
    let ledger = observed.and_then(|observed| observed.ledger.as_ref());
    let gone: Vec<(String, Timestamp)> = {
        let state = context.cache.lock();
        ledger
            .into_iter()
            .flat_map(Shelf::values)
            .filter_map(|record| {
                Some((
                    record.owner.as_ref()?,
                    record.declared.unwrap_or(record.minted),
                ))
            })
            .filter(|(owner, _)| !state.lives(&store.namespace, owner))
            .map(|(owner, since)| (owner.uid.clone(), since))
            .collect()
    };
    spare(context, gone).await
}

/// See [`spared`]; `gone` are UIDs and when their resources were created.
pub(super) async fn spare(
    context: &Context,
    gone: Vec<(String, Timestamp)>,
) -> Result<HashSet<String>, Error> {
    if gone.is_empty() {
        return Ok(HashSet::new());
    }
    let since = k8s::crd::established_since(&context.client, "functionkeys.claviger.dev")
        .await
        .context(DefinitionSnafu)?;
    let state = context.cache.lock();
    let spared = gone
        .into_iter()
        .filter(|(uid, standing)| {
            state.is_unreadable(uid) || since.is_none_or(|since| *standing < since)
        })
        .map(|(uid, _)| uid);
    Ok(spared.collect())
}

/// The declarations as the plan takes them.
fn declare(
    context: &Context,
    declarations: &[Arc<Declaration>],
    sources: &Sources,
    now: Timestamp,
) -> Vec<Declared> {
    let state = context.cache.lock();
    declarations
        .iter()
        .map(|declaration| Declared {
            owner: declaration.owner.clone(),
            created: declaration.created,
            key: declaration.key.clone(),
            policy: declaration.policy,
            triggers: declaration.triggers.clone(),
            supply: match (&declaration.source, sources.get(&declaration.owner.name)) {
                (None, _) => Supply::Mint,
                (Some(_), Some(value)) => Supply::Given(value.clone()),
                (Some(_), None) => Supply::Withheld,
            },
            drift: declaration.drift,
            deletion: declaration.deletion,
            suspended: declaration.suspended,
            distribution: distribution(&state, declaration, now),
            salvage: salvage(&state, declaration),
        })
        .collect()
}

/// How far the current value of a key has come among its clients. That the last of them has it
/// counts from when it is seen: the times written beside values are from before the write arrived,
/// and it may have been long on its way.
fn distribution(state: &State, declaration: &Declaration, now: Timestamp) -> Distribution {
    let mut reached: Option<u32> = None;
    for target in &declaration.targets {
        let secret = Name::new(&*declaration.namespace, &*target.secret).secret();
        let Some(copy) = state
            .object(&secret)
            .and_then(|observed| observed.copies.as_ref()?.get(&target.entry).cloned())
            .filter(|copy| copy.owner.uid == declaration.owner.uid)
        else {
            return Distribution::Outstanding;
        };
        let restarted = target.restart.iter().all(|workload| {
            let workload = Workload {
                namespace: declaration.namespace.clone(),
                workload: workload.clone(),
            };
            copy.changed
                .is_none_or(|changed| state.restarted(&workload).is_some_and(|at| at >= changed))
        });
        if !restarted || reached.is_some_and(|generation| generation != copy.generation) {
            return Distribution::Outstanding;
        }
        reached = Some(copy.generation);
    }
    reached.map_or(Distribution::None, |generation| Distribution::Complete {
        generation,
        at: now,
    })
}

/// What a client's Secret still holds of a key.
fn salvage(state: &State, declaration: &Declaration) -> Option<(u32, KeyMaterial)> {
    declaration
        .targets
        .iter()
        .filter_map(|target| {
            let observed =
                state.object(&Name::new(&*declaration.namespace, &*target.secret).secret())?;
            let copy = observed.copies.as_ref()?.get(&target.entry)?;
            let value = observed.values.get(&target.entry)?;
            (copy.owner.uid == declaration.owner.uid && copy.digest == value.digest())
                .then(|| (copy.generation, value.clone()))
        })
        .max_by_key(|(generation, _)| *generation)
}

/// The store as the plan takes it: bookkeeping that was lost with the object is recalled.
fn recollect(context: &Context, store: &StoreRef, observed: Option<&Observed>) -> Stored {
    let recalled = || {
        context
            .cache
            .lock()
            .deleted(store)
            .and_then(|before| before.ledger.as_ref().map(Shelf::to_map))
    };
    let values = observed
        .map(|observed| observed.values.to_map())
        .unwrap_or_default();
    Stored {
        values: values
            .into_iter()
            .filter(|(entry, _)| layout::is_app_key(entry))
            .collect(),
        ledger: Ledger {
            entries: observed
                .and_then(|observed| observed.ledger.as_ref().map(Shelf::to_map))
                .or_else(recalled)
                .unwrap_or_default(),
        },
    }
}

/// The last values that we published, if anything of what we published is changed or missing.
fn keepsakes(
    context: &Context,
    store: &StoreRef,
    observed: Option<&Observed>,
    stored: &Stored,
) -> BTreeMap<String, KeyMaterial> {
    let intact = |entry: &str, digest| {
        stored
            .values
            .get(entry)
            .is_some_and(|value| value.digest() == digest)
    };
    let whole = stored.ledger.entries.iter().all(|(entry, record)| {
        intact(entry, record.digest)
            && record.previous.iter().all(|previous| {
                intact(
                    &layout::previous(entry, previous.generation),
                    previous.digest,
                )
            })
    });
    if whole {
        return BTreeMap::new();
    }
    let before = context.cache.lock().deleted(store);
    let remembered = before
        .as_ref()
        .map(|before| before.values.to_map())
        .unwrap_or_default();
    let sealed = observed
        .and_then(|observed| observed.sealed.as_ref())
        .or_else(|| before.as_ref()?.sealed.as_ref());
    let opened = sealed.map(|sealed| context.seal_key.open(&seal_context(store), sealed));
    match opened {
        Some(Ok(values)) => remembered.into_iter().chain(values).collect(),
        Some(Err(error)) => {
            tracing::warn!(%store, namespace = store.namespace, %error, "the sealed copy of a store is of no use");
            remembered
        }
        None => remembered,
    }
}

/// What a sealed copy is bound to: nothing of Kubernetes' own, so that a restored backup opens.
fn seal_context(store: &StoreRef) -> String {
    format!("{}/{}/{}", store.kind.name(), store.namespace, store.name)
}

/// A fresh key from the operating system's random source.
fn mint(kind: KeyKind) -> KeyMaterial {
    let mut random = zeroize::Zeroizing::new([0_u8; format::RANDOM_BYTES]);
    getrandom::fill(random.as_mut_slice())
        .expect("the operating system's random source never fails once it is seeded");
    format::mint(kind, &random)
}

/// Step 4: at most one write.
async fn perform(
    context: &Context,
    store: &StoreRef,
    observed: Option<&Observed>,
    stored: &Stored,
    plan: &Plan,
) -> Result<(), Error> {
    let Some(observed) = observed else {
        if plan.changes.is_empty() {
            return Ok(());
        }
        let write = build(context, store, None, stored, plan);
        let created = context
            .objects
            .create(store, &write)
            .await
            .context(WriteSnafu {
                object: store.clone(),
            })?;
        context.cache.lock().observe(store.clone(), created);
        objects::call_followers(context, store);
        return Ok(());
    };
    let emptied = plan.ledger.entries.is_empty();
    let left = observed
        .values
        .names()
        .any(|entry| !matches!(plan.changes.get(entry), Some(None)));
    if emptied && observed.created && !left && !observed.others && observed.opaque.is_empty() {
        context
            .objects
            .delete(store, observed)
            .await
            .context(DeleteSnafu {
                object: store.clone(),
            })?;
        {
            let mut state = context.cache.lock();
            state.lose(store);
            state.bury(store);
        }
        objects::call_followers(context, store);
        return Ok(());
    }
    if emptied && observed.content.is_none() && plan.changes.is_empty() {
        return Ok(());
    }
    let write = build(context, store, Some(observed), stored, plan);
    let labelled = observed.content.as_deref() == write.content;
    let booked = !observed.recalled
        && match &observed.ledger {
            Some(ledger) => !emptied && *ledger == plan.ledger.entries,
            None => emptied,
        };
    let resealed = write.annotations.contains_key(SEALED_ANNOTATION);
    if labelled && booked && !resealed && plan.changes.is_empty() {
        return Ok(());
    }
    let patched = context
        .objects
        .patch(store, &observed.version, &write)
        .await
        .context(WriteSnafu {
            object: store.clone(),
        })?;
    {
        let mut state = context.cache.lock();
        if patched.content.is_some() {
            state.observe(store.clone(), patched);
        } else {
            state.lose(store);
            state.bury(store);
        }
    }
    objects::call_followers(context, store);
    Ok(())
}

/// Step 3: the write that the plan asks for.
fn build(
    context: &Context,
    store: &StoreRef,
    observed: Option<&Observed>,
    stored: &Stored,
    plan: &Plan,
) -> Write {
    if plan.ledger.entries.is_empty() {
        return Write {
            content: None,
            annotations: BTreeMap::from([
                (LEDGER_ANNOTATION.into(), None),
                (SEALED_ANNOTATION.into(), None),
            ]),
            data: plan.changes.clone(),
            ..Write::default()
        };
    }
    let ours = published(&plan.ledger, stored, plan);
    let sealed_before = observed.and_then(|observed| observed.sealed.as_deref());
    let stale = !plan.changes.is_empty()
        || observed
            .and_then(|observed| observed.ledger.as_ref())
            .is_none_or(|before| !same_values(before, &plan.ledger))
        || !sealed_before.is_some_and(|sealed| context.seal_key.sealed(sealed));
    let mut annotations = BTreeMap::from([(LEDGER_ANNOTATION.into(), Some(plan.ledger.render()))]);
    if stale {
        let mut nonce = [0_u8; 12];
        getrandom::fill(&mut nonce)
            .expect("the operating system's random source never fails once it is seeded");
        annotations.insert(
            SEALED_ANNOTATION.into(),
            Some(context.seal_key.seal(&seal_context(store), &ours, nonce)),
        );
    }
    Write {
        content: Some(CONTENT_KEYS),
        annotations,
        data: plan.changes.clone(),
        ..Write::default()
    }
}

/// Every value of ours that stands in the store after the plan.
fn published(ledger: &Ledger, stored: &Stored, plan: &Plan) -> BTreeMap<String, KeyMaterial> {
    let value = |entry: &str| match plan.changes.get(entry) {
        Some(change) => change.clone(),
        None => stored.values.get(entry).cloned(),
    };
    ledger
        .entries
        .iter()
        .flat_map(|(entry, record)| {
            let previous = record
                .previous
                .iter()
                .map(|previous| layout::previous(entry, previous.generation));
            previous.chain([entry.clone()]).collect::<Vec<_>>()
        })
        .filter_map(|entry| value(&entry).map(|value| (entry, value)))
        .collect()
}

/// Whether two ledgers speak of the same values.
fn same_values(before: &Shelf<Record>, after: &Ledger) -> bool {
    fn digests(record: &Record) -> impl Iterator<Item = Digest> {
        let previous = record.previous.iter().map(|previous| previous.digest);
        previous.chain([record.digest])
    }
    before.names().eq(after.entries.keys())
        && before
            .values()
            .zip(after.entries.values())
            .all(|(one, two)| digests(one).eq(digests(two)))
}

/// Step 5: tell whom it concerns.
async fn conclude(
    context: &Context,
    declarations: &[Arc<Declaration>],
    faults: &Faults,
    plan: Plan,
    now: Timestamp,
) -> Result<Option<Timestamp>, Error> {
    let mut statuses = Vec::new();
    for (declaration, verdict) in declarations.iter().zip(&plan.verdicts) {
        for &occurrence in &verdict.occurrences {
            context.metrics.turned(occurrence);
            announce(context, declaration, &verdict.entry, occurrence);
        }
        let facts = {
            let state = context.cache.lock();
            report::clients(&state, declaration, verdict)
        };
        let unplaced = !facts.outstanding.is_empty() && facts.failures.is_empty();
        for client in &facts.outstanding {
            context.queue.soon(Item::Client(client.clone()));
        }
        if facts.restarting {
            for workload in declaration.workloads() {
                context.queue.soon(Item::Workload(Workload {
                    namespace: declaration.namespace.clone(),
                    workload: workload.clone(),
                }));
            }
        }
        // A status that says "being handed out" would be overtaken within the second; so would one
        // written before it is known what stands in the way.
        let overtaken = facts.unsure || (unplaced && declaration.status.conditions.is_empty());
        if overtaken && verdict.problem.is_none() {
            continue;
        }
        let status = report::status(
            declaration,
            verdict,
            faults.get(&declaration.owner.name),
            &facts,
            now,
        );
        statuses.push((Arc::clone(declaration), status));
    }
    write_statuses(context, statuses).await?;
    Ok(plan.next_look)
}

async fn write_statuses(
    context: &Context,
    statuses: Vec<(Arc<Declaration>, FunctionKeyStatus)>,
) -> Result<(), Error> {
    // One that fails keeps none of the others from being written.
    let written: Vec<Result<(), Error>> = stream::iter(
        statuses
            .into_iter()
            .filter(|(declaration, status)| declaration.status != *status),
    )
    .map(|(declaration, status)| async move {
        // The semaphore is never closed.
        let _permit = context.status_writes.acquire().await;
        match k8s::status::replace(
            &context.client,
            &declaration.namespace,
            &declaration.owner,
            &status,
        )
        .await
        {
            Ok(()) => {
                announce_stall(context, &declaration, &status);
                context.cache.lock().reported(&declaration, status);
            }
            // It is gone, or another has taken its name: the watch tells.
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 422) => {}
            Err(source) => {
                return Err(source).context(StatusSnafu {
                    name: declaration.owner.name.clone(),
                });
            }
        }
        Ok(())
    })
    .buffer_unordered(STATUS_WRITES)
    .collect()
    .await;
    written.into_iter().collect()
}

/// An event when nothing more will happen until somebody changes something.
fn announce_stall(context: &Context, declaration: &Declaration, status: &FunctionKeyStatus) {
    let stall = |status: &FunctionKeyStatus| {
        let stalled = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == STALLED)?;
        (stalled.status == "True").then(|| (stalled.reason.clone(), stalled.message.clone()))
    };
    let before = stall(&declaration.status).map(|(reason, _)| reason);
    if let Some((reason, message)) =
        stall(status).filter(|(reason, _)| Some(reason) != before.as_ref())
    {
        context.events.publish(
            report::reference(declaration),
            EventType::Warning,
            &reason,
            message,
        );
    }
}

fn announce(context: &Context, declaration: &Declaration, entry: &str, occurrence: Occurrence) {
    let (type_, reason, note) = match occurrence {
        // A first mint is told by the status.
        Occurrence::Minted | Occurrence::Retired => return,
        Occurrence::Adopted => (
            EventType::Normal,
            "Adopted",
            format!("{entry} was there already and is managed from now on; its value is unchanged"),
        ),
        Occurrence::DriftAdopted => (
            EventType::Warning,
            "DriftAdopted",
            format!(
                "{entry} was renewed by somebody else; the new value was taken over and goes to the clients"
            ),
        ),
        Occurrence::DriftUndone => (
            EventType::Warning,
            "DriftUndone",
            format!("{entry} was changed by somebody else; the value before was put back"),
        ),
        Occurrence::Replaced => (
            EventType::Warning,
            "Replaced",
            format!(
                "the value of {entry} was lost and no copy of it is left; a new one was made and goes to the clients"
            ),
        ),
        Occurrence::Restored => (
            EventType::Warning,
            "Restored",
            format!(
                "{entry} or a previous value of it was dropped by somebody else and was put back"
            ),
        ),
        Occurrence::Revoked => (
            EventType::Warning,
            "Revoked",
            format!("{entry} was revoked; its earlier values are no longer published"),
        ),
        Occurrence::Rotated => (
            EventType::Normal,
            "Rotated",
            format!("{entry} has a new value; the previous one works until the overlap ends"),
        ),
    };
    context
        .events
        .publish(report::reference(declaration), type_, reason, note);
}
