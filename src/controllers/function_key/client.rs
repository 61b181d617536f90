//! A look at one client's Secret: all copies in it, from whatever store, decided and written
//! together.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use snafu::ResultExt;

use crate::{
    api::{
        CONTENT_COPIES, COPIES_ANNOTATION,
        condition::{Reason, Report},
        convert::{Declaration, Workload},
    },
    clock,
    controllers::{
        Item,
        context::Context,
        error::{Class, DeleteSnafu, Error, ReadSnafu, WriteSnafu},
        function_key::{cache::State, report, store},
        naming::Name,
        objects,
    },
    domain::{
        copies::{self, Held, Placement, Plan, Wanted},
        ledger::Copies,
        plan,
    },
    k8s::{
        object::{Observed, Write},
        shelf::Shelf,
    },
};

/// Looks at a client's Secret; answers when to look again though nothing changes (never: a store
/// says when its values are to go out).
///
/// # Errors
/// The operation that failed; everything done before it stands.
pub async fn look(context: &Context, client: &Name) -> Result<Option<Timestamp>, Error> {
    let wanted = wanted(context, client);
    let result = bring_about(context, client, &wanted).await;
    let failures = match &result {
        Ok(failures) => failures.clone(),
        Err(error) => {
            let report = error.report(Reason::TargetRefused);
            wanted
                .iter()
                .filter_map(|(declaration, _)| {
                    Some((declaration.owner.uid.clone(), report.clone()?))
                })
                .collect()
        }
    };
    let passing = result
        .as_ref()
        .is_err_and(|error| error.class() != Class::Refused);
    let changed = {
        let mut state = context.cache.lock();
        let before = state.client_failures.remove(client).unwrap_or_default();
        if passing {
            state.client_failures.insert(client.clone(), before);
            false
        } else {
            let first = state.looked.insert(Item::Client(client.clone()));
            let changed = first || before != failures;
            if !failures.is_empty() {
                state.client_failures.insert(client.clone(), failures);
            }
            changed
        }
    };
    if changed {
        for (declaration, _) in &wanted {
            context.queue.soon(Item::Store(declaration.store.clone()));
        }
    }
    result.map(|_| None)
}

/// Who wants what there, by their stores as observed.
fn wanted(context: &Context, client: &Name) -> Vec<(Arc<Declaration>, Wanted)> {
    let now = clock::now();
    let state = context.cache.lock();
    let mut wanted = Vec::new();
    for declaration in state.in_client(client) {
        for target in declaration
            .targets
            .iter()
            .filter(|target| target.secret == client.name)
        {
            let want = Wanted {
                entry: target.entry.clone(),
                owner: declaration.owner.clone(),
                created: declaration.created,
                deletion: declaration.deletion,
                value: value(&state, &declaration, now),
            };
            wanted.push((Arc::clone(&declaration), want));
        }
    }
    wanted
}

/// The generation and value that clients of a key should have now.
fn value(
    state: &State,
    declaration: &Declaration,
    now: Timestamp,
) -> Option<(u32, crate::domain::key::KeyMaterial)> {
    if declaration.suspended {
        return None;
    }
    let observed = state.object(&declaration.store)?;
    let entry = declaration.key.data_key();
    let (entry, record) = observed.ledger.as_ref()?.iter().find(|(name, record)| {
        name.eq_ignore_ascii_case(&entry)
            && record
                .owner
                .as_ref()
                .is_some_and(|owner| owner.uid == declaration.owner.uid)
    })?;
    let handout = plan::handout(now, entry, record, |name| {
        observed.values.get(name).cloned()
    })?;
    // What stands in the store but is not what was published is the store's to sort out first.
    let published = record.digest == handout.value.digest()
        || record.previous.iter().any(|previous| {
            previous.generation == handout.generation && previous.digest == handout.value.digest()
        });
    published.then_some((handout.generation, handout.value))
}

async fn bring_about(
    context: &Context,
    client: &Name,
    wanted: &[(Arc<Declaration>, Wanted)],
) -> Result<HashMap<String, Report>, Error> {
    let object = client.secret();
    let mut observed = super::observe_labelled(context, &object, CONTENT_COPIES).await?;
    if observed.is_none() && wanted.iter().all(|(_, want)| want.value.is_none()) {
        return Ok(HashMap::new());
    }
    loop {
        if let Some(refusal) = observed
            .as_deref()
            .and_then(|observed| refusal(client, observed))
        {
            let report = report::target_refused(refusal);
            return Ok(wanted
                .iter()
                .map(|(declaration, _)| (declaration.owner.uid.clone(), report.clone()))
                .collect());
        }
        let spared = spared(context, client, observed.as_deref()).await?;
        let held = held(observed.as_deref());
        let wants: Vec<Wanted> = wanted.iter().map(|(_, want)| want.clone()).collect();
        let plan = copies::plan(clock::now(), &held, &wants, &spared);
        match perform(context, client, observed.as_deref(), &held, &plan).await {
            Ok(written) => {
                if written {
                    follow_up(context, client, wanted);
                }
                return Ok(conflicts(client, wanted, &plan));
            }
            // It exists after all, made by somebody else.
            Err(error) if observed.is_none() && error.class() == Class::Conflict => {
                observed = context
                    .objects
                    .get(&object)
                    .await
                    .context(ReadSnafu {
                        object: object.clone(),
                    })?
                    .map(Arc::new);
                if observed.is_none() {
                    return Err(error);
                }
            }
            Err(error) => {
                // What was observed is out of date: read it anew rather than wait for the watch.
                // It may be our own write whose answer was lost, so what follows a write follows.
                if error.class() == Class::Conflict
                    && let Ok(Some(fresh)) = context.objects.get(&object).await
                    && fresh.content.is_some()
                {
                    context.cache.lock().observe(object, fresh);
                    follow_up(context, client, wanted);
                }
                return Err(error);
            }
        }
    }
}

/// Why an object may not hold copies.
fn refusal(client: &Name, observed: &Observed) -> Option<String> {
    let name = &client.name;
    if !observed.allowed {
        return Some(format!(
            "Secret/{name} is of a type that keys may not be handed out in; name another in spec.distributeTo"
        ));
    }
    if observed.immutable {
        return Some(format!(
            "Secret/{name} is immutable; delete it so that it can be made anew, or name another in spec.distributeTo"
        ));
    }
    if observed
        .content
        .as_deref()
        .is_some_and(|content| content != CONTENT_COPIES)
    {
        return Some(format!(
            "Secret/{name} is an app's key store, or filled by a vault; name another in spec.distributeTo"
        ));
    }
    None
}

fn held(observed: Option<&Observed>) -> Held {
    observed.map_or_else(Held::default, |observed| Held {
        values: observed.values.to_map(),
        opaque: observed.opaque.clone(),
        copies: Copies {
            entries: observed
                .copies
                .as_ref()
                .map(Shelf::to_map)
                .unwrap_or_default(),
        },
    })
}

/// See [`store::spare`].
async fn spared(
    context: &Context,
    client: &Name,
    observed: Option<&Observed>,
) -> Result<HashSet<String>, Error> {
    let gone = {
        let state = context.cache.lock();
        let copies = observed.and_then(|observed| observed.copies.as_ref());
        copies
            .into_iter()
            .flat_map(Shelf::values)
            .filter(|copy| !state.lives(&client.namespace, &copy.owner))
            .map(|copy| (copy.owner.uid.clone(), copy.declared.unwrap_or(copy.at)))
            .collect()
    };
    store::spare(context, gone).await
}

/// At most one write; says whether there was one.
async fn perform(
    context: &Context,
    client: &Name,
    observed: Option<&Observed>,
    held: &Held,
    plan: &Plan,
) -> Result<bool, Error> {
    let object = client.secret();
    let empty = plan.copies.entries.is_empty();
    let write = Write {
        content: (!empty).then_some(CONTENT_COPIES),
        annotations: BTreeMap::from([(
            COPIES_ANNOTATION.into(),
            (!empty).then(|| plan.copies.render()),
        )]),
        data: plan.changes.clone(),
        ..Write::default()
    };
    let Some(observed) = observed else {
        if empty {
            return Ok(false);
        }
        let created = context
            .objects
            .create(&object, &write)
            .await
            .context(WriteSnafu {
                object: object.clone(),
            })?;
        context.cache.lock().observe(object, created);
        return Ok(true);
    };
    let left = held
        .values
        .keys()
        .any(|entry| !matches!(plan.changes.get(entry), Some(None)));
    if empty && observed.created && observed.copies.is_some() && !left && held.opaque.is_empty() {
        context
            .objects
            .delete(&object, observed)
            .await
            .context(DeleteSnafu {
                object: object.clone(),
            })?;
        context.cache.lock().lose(&object);
        return Ok(true);
    }
    let booked = !observed.recalled
        && match &observed.copies {
            Some(copies) => *copies == plan.copies.entries,
            None => empty,
        };
    if observed.content.as_deref() == write.content && booked && plan.changes.is_empty() {
        return Ok(false);
    }
    let patched = context
        .objects
        .patch(&object, &observed.version, &write)
        .await
        .context(WriteSnafu {
            object: object.clone(),
        })?;
    let mut state = context.cache.lock();
    if patched.content.is_some() {
        state.observe(object, patched);
    } else {
        state.lose(&object);
    }
    Ok(true)
}

/// Stores report what has reached clients, workloads restart, and other keys may follow a copy.
fn follow_up(context: &Context, client: &Name, wanted: &[(Arc<Declaration>, Wanted)]) {
    objects::call_followers(context, &client.secret());
    for (declaration, _) in wanted {
        context.queue.soon(Item::Store(declaration.store.clone()));
        for target in declaration
            .targets
            .iter()
            .filter(|target| target.secret == client.name)
        {
            for workload in &target.restart {
                context.queue.soon(Item::Workload(Workload {
                    namespace: client.namespace.clone(),
                    workload: workload.clone(),
                }));
            }
        }
    }
}

fn conflicts(
    client: &Name,
    wanted: &[(Arc<Declaration>, Wanted)],
    plan: &Plan,
) -> HashMap<String, Report> {
    wanted
        .iter()
        .zip(&plan.placements)
        .filter_map(|((declaration, want), placement)| match placement {
            Placement::Conflict(holder) => Some((
                declaration.owner.uid.clone(),
                report::target_conflict(&client.name, &want.entry, holder.as_deref()),
            )),
            Placement::Pending | Placement::Placed(_) => None,
        })
        .collect()
}
