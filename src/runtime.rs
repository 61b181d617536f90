//! Joins the parts into a running process, and takes it down in order.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use kube::{Client, Config};
use snafu::{ResultExt, Snafu};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    admin::{self, Watched},
    agent::{self, AgentArgs},
    api::condition::READY,
    cli::ControllerArgs,
    controllers::{
        self, Item,
        context::{Context, Settings},
        function_key::cache::Cache,
        naming::Name,
        objects,
        queue::{Queue, Requests},
        secret_vault::{self, rewrap::Pace, roots::Roots},
        watch::Progress,
    },
    custody::Custody,
    k8s::{event::Events, object::Objects, seal_key, vault::Vaults},
    leader::Candidate,
    metrics::{Census, Metrics, VaultCensus},
    recovery::Recipients,
};

/// How long a stop waits for looks under way.
const DRAIN: Duration = Duration::from_secs(20);
const SEAL_KEY_RETRY: Duration = Duration::from_secs(2);

/// The process cannot start, or has to end.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The admin port is taken.
    #[snafu(display("cannot serve the admin address"))]
    Admin {
        /// Why.
        source: std::io::Error,
    },
    /// No apiserver is configured.
    #[snafu(display("no cluster is configured: run inside one, or set KUBECONFIG"))]
    Configure {
        /// Why.
        source: kube::config::InferConfigError,
    },
    /// The client cannot be built.
    #[snafu(display("cannot make a client for the apiserver"))]
    Connect {
        /// Why.
        source: kube::Error,
    },
    /// The identity agent cannot run.
    #[snafu(display("{source}"))]
    Agent {
        /// Why.
        source: agent::Error,
    },
    /// Another replica leads now.
    #[snafu(display("leadership was lost; the process ends so that nothing half-done goes on"))]
    Deposed,
    /// The root keys are not configured as they can be.
    #[snafu(display("{source}"))]
    RootKeys {
        /// Why.
        source: crate::custody::Error,
    },
    /// Signals cannot be received.
    #[snafu(display("cannot listen for signals"))]
    Signals {
        /// Why.
        source: std::io::Error,
    },
}

/// A client for the apiserver. Failed requests are not repeated by the client: the queue does that,
/// with what is true by then.
///
/// # Errors
/// See [`Error`].
pub async fn client() -> Result<Client, Error> {
    let mut config = Config::infer().await.context(ConfigureSnafu)?;
    config.default_retry = false;
    Client::try_from(config).context(ConnectSnafu)
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Error`].
pub async fn controller(args: ControllerArgs) -> Result<(), Error> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let custody = Custody::new(&args).context(RootKeysSnafu)?;
    let client = client().await?;
    let identity = args.identity.clone().unwrap_or_else(random_identity);
    let metrics = Arc::new(Metrics::default());
    let (leads, leading) = watch::channel(false);

    let stage: Stage = Arc::default();
    let admin = tokio::spawn(admin::serve(
        args.admin_address,
        watched(&metrics, &stage),
        stop.clone(),
    ));
    let Some(seal_key) = obtain_seal_key(&client, &args, &stop).await else {
        return Ok(());
    };
    let (queue, requests) = Queue::new();
    let (rewraps, rewrap_requests) = Queue::new();
    let context = Arc::new(Context {
        objects: Objects::new(client.clone()),
        vault_objects: Vaults::new(client.clone()),
        vaults: secret_vault::cache::Cache::default(),
        roots: Roots::default(),
        pace: Pace::new(args.rewrap_rate),
        cache: Cache::default(),
        queue,
        rewraps,
        events: Events::new(client.clone(), identity.clone()),
        metrics: Arc::clone(&metrics),
        seal_key,
        status_writes: Semaphore::new(args.workers.into()),
        settings: settings(&args, custody.recipients()),
        client: client.clone(),
    });
    let progress = objects::start(&context);
    let _ = stage.set((Arc::clone(&context), progress.clone()));
    let candidate = Candidate::new(
        client,
        &args.system_namespace,
        args.lease_name.clone(),
        identity,
    );
    // The lease is given up only after the last look is over.
    let resign = CancellationToken::new();
    let election = tokio::spawn(candidate.stand(leads, resign.clone()));

    let requests = (requests, rewrap_requests);
    let outcome = lead(&context, requests, &progress, custody, leading, &stop).await;
    stop.cancel();
    resign.cancel();
    let _ = election.await;
    match admin.await {
        Ok(Err(source)) => Err(source).context(AdminSnafu),
        _ => outcome,
    }
}

/// Waits for leadership and full caches, then does the work.
async fn lead(
    context: &Arc<Context>,
    (requests, rewraps): (Requests<Item>, Requests<Name>),
    progress: &Progress,
    custody: Custody,
    mut leading: watch::Receiver<bool>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let elected = async {
        // An error means that the candidate is gone, which it is only after a stop.
        let _ = leading.wait_for(|leads| *leads).await;
        progress.filled().await;
    };
    tokio::select! {
        () = elected => {}
        () = stop.cancelled() => return Ok(()),
    }
    tracing::info!("leading");
    context.metrics.leads(true);
    let work = CancellationToken::new();
    let keeping = tokio::spawn(custody.keep(Arc::clone(context), work.clone()));
    let mut working = tokio::spawn(controllers::run(
        Arc::clone(context),
        requests,
        rewraps,
        work.clone(),
    ));
    let deposed = leading.wait_for(|leads| !*leads);
    let outcome = tokio::select! {
        _ = deposed => {
            // Whatever is under way is cut off: somebody else may be at it already.
            working.abort();
            keeping.abort();
            return DeposedSnafu.fail();
        }
        () = stop.cancelled() => Ok(()),
    };
    tracing::info!("stopping; looks under way are finished first");
    work.cancel();
    if tokio::time::timeout(DRAIN, &mut working).await.is_err() {
        working.abort();
    }
    context.metrics.leads(false);
    outcome
}

async fn obtain_seal_key(
    client: &Client,
    args: &ControllerArgs,
    stop: &CancellationToken,
) -> Option<crate::domain::seal::SealKey> {
    let namespace = &args.system_namespace;
    loop {
        let mut random = Zeroizing::new([0_u8; 32]);
        getrandom::fill(random.as_mut_slice())
            .expect("the operating system's random source never fails once it is seeded");
        match seal_key::obtain(client, namespace, random).await {
            Ok(key) => return Some(key),
            Err(error) => {
                tracing::error!(%error, "waiting for the seal key");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(SEAL_KEY_RETRY) => {}
            () = stop.cancelled() => return None,
        }
    }
}

fn settings(args: &ControllerArgs, recipients: &Recipients) -> Settings {
    Settings {
        system_namespace: args.system_namespace.clone(),
        namespaces: args
            .namespaces
            .iter()
            .filter(|namespace| !namespace.is_empty())
            .cloned()
            .collect(),
        host_reload: args.host_reload_delay,
        restart_delay: args.restart_delay,
        ring_grace: args.ring_grace,
        recipients: recipients.clone(),
        workers: args.workers.into(),
    }
}

/// The caches, once there are any.
type Stage = Arc<OnceLock<(Arc<Context>, Progress)>>;

fn watched(metrics: &Arc<Metrics>, stage: &Stage) -> Watched {
    let (filling, counted) = (Arc::clone(stage), Arc::clone(stage));
    Watched {
        metrics: Arc::clone(metrics),
        missing: Arc::new(move || match filling.get() {
            Some((_, progress)) => progress
                .missing()
                .into_iter()
                .map(|what| format!("waiting for the list of {what}"))
                .collect(),
            None => vec![format!(
                "waiting for the seal key, Secret {}",
                seal_key::NAME
            )],
        }),
        census: Arc::new(move || {
            counted
                .get()
                .map(|(context, _)| census(context))
                .unwrap_or_default()
        }),
    }
}

fn census(context: &Context) -> Census {
    let mut census = Census {
        vaults: vault_census(context),
        ..Census::default()
    };
    for declaration in context.cache.lock().declarations() {
        let status = &declaration.status;
        if status
            .conditions
            .iter()
            .any(|condition| condition.type_ == READY && condition.status == "True")
        {
            census.ready += 1;
        } else {
            census.not_ready += 1;
        }
        let Some(rotation) = &status.rotation else {
            continue;
        };
        let earliest = |one: Option<jiff::Timestamp>, other: Option<jiff::Timestamp>| {
            one.into_iter().chain(other).min()
        };
        census.oldest = earliest(
            census.oldest,
            rotation.minted_at.as_ref().map(|time| time.0),
        );
        census.earliest_due = earliest(
            census.earliest_due,
            rotation
                .next_at
                .as_ref()
                .map(|time| time.0)
                .filter(|_| !declaration.suspended),
        );
    }
    census
}

fn vault_census(context: &Context) -> VaultCensus {
    let vaults = context.vaults.lock();
    let mut census = VaultCensus {
        root_key: context.roots.are_there() || vaults.vaults().next().is_none(),
        backup_verified: context.roots.backup_verified(),
        ..VaultCensus::default()
    };
    for vault in vaults.vaults() {
        let status = &vault.status;
        let ready = status
            .conditions
            .iter()
            .any(|condition| condition.type_ == READY && condition.status == "True");
        *(if ready {
            &mut census.ready
        } else {
            &mut census.not_ready
        }) += 1;
        census.unreadable += status.secrets.map_or(0, |secrets| secrets.unreadable);
        if let Some(ring) = &status.key_ring {
            census.rewrap_remaining += ring
                .versions
                .iter()
                .filter(|version| version.version != ring.current)
                .map(|version| version.secrets)
                .sum::<i64>();
        }
    }
    census
}

/// Runs the identity agent until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Error`].
pub async fn identity_agent(args: AgentArgs) -> Result<(), Error> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    agent::serve(args, stop).await.context(AgentSnafu)
}

fn stop_on_signals(stop: CancellationToken) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).context(SignalsSnafu)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(SignalsSnafu)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

fn random_identity() -> String {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random)
        .expect("the operating system's random source never fails once it is seeded");
    format!("claviger-{:016x}", u64::from_be_bytes(random))
}
