//! Joins the parts into a running process, and takes it down in order.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, Config};
use snafu::{ResultExt, Snafu};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    admin::{self, Watched},
    agent::{self, AgentArgs},
    api::condition::READY,
    ca::{self, Authority},
    cli::{ControllerArgs, DoorArgs, RunArgs, ServerArgs},
    controllers::{
        self, Item,
        context::{Context, Settings},
        function_key::cache::Cache,
        naming::Name,
        objects,
        queue::{Queue, Requests},
        role_assignment,
        secret_vault::{self, rewrap::Pace, roots::Roots},
        watch::Progress,
    },
    custody::Custody,
    k8s::{event::Events, object::Objects, role::Roles, seal_key, vault::Vaults},
    leader::Candidate,
    metrics::{Census, Metrics, VaultCensus},
    recovery::Recipients,
    server::{self, Server},
    token_keys,
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
    /// The CA is not configured as it can be.
    #[snafu(display("{source}"))]
    Authority {
        /// Why.
        source: ca::Error,
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
    /// The server cannot serve.
    #[snafu(display("{source}"))]
    Server {
        /// Why.
        source: server::Error,
    },
    /// Something that a leader does has ended by itself.
    #[snafu(display("a part of the controller has failed; the log says which"))]
    Abandoned,
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
    halves(args, None).await
}

/// Runs the controller and the server in one process until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Error`].
pub async fn both(args: RunArgs) -> Result<(), Error> {
    halves(args.controller, Some(args.doors)).await
}

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Error`].
pub async fn server(args: ServerArgs) -> Result<(), Error> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let server =
        Server::new(args.doors, &args.names, &args.system_namespace).context(ServerSnafu)?;
    let client = client().await?;
    let metrics = Arc::new(Metrics::default());
    let (waiting, stopping) = (server.clone(), stop.clone());
    let watched = Watched {
        metrics: Arc::clone(&metrics),
        missing: Arc::new(move || {
            let mut missing = waiting.missing();
            missing.extend(stopping.is_cancelled().then(|| "stopping".to_owned()));
            missing
        }),
        // Resources and root keys are for the controller to count.
        census: Arc::new(Census::default),
    };
    // The port tells of the doors until they are closed.
    let closed = CancellationToken::new();
    let admin = tokio::spawn(admin::serve(args.admin_address, watched, closed.clone()));
    let outcome = server
        .serve(client, metrics, stop)
        .await
        .context(ServerSnafu);
    closed.cancel();
    match admin.await {
        Ok(Err(source)) => Err(source).context(AdminSnafu),
        _ => outcome,
    }
}

async fn halves(args: ControllerArgs, doors: Option<DoorArgs>) -> Result<(), Error> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let custody = Custody::new(&args).context(RootKeysSnafu)?;
    let authority =
        Authority::new(&args.ca, &args.names, &args.system_namespace).context(AuthoritySnafu)?;
    let server = doors
        .map(|doors| Server::new(doors, &args.names, &args.system_namespace))
        .transpose()
        .context(ServerSnafu)?;
    let client = client().await?;
    let identity = args.identity.clone().unwrap_or_else(random_identity);
    let metrics = Arc::new(Metrics::default());
    let (leads, leading) = watch::channel(false);

    let stage: Stage = Arc::default();
    let admin = tokio::spawn(admin::serve(
        args.admin_address,
        watched(&metrics, &stage, server.clone()),
        stop.clone(),
    ));
    let serving = server.map(|server| {
        let (client, metrics, stop) = (client.clone(), Arc::clone(&metrics), stop.clone());
        tokio::spawn(async move {
            let outcome = server.serve(client, metrics, stop.clone()).await;
            // Half a process is none.
            stop.cancel();
            outcome
        })
    });
    let Some(seal_key) = obtain_seal_key(&client, &args, &stop).await else {
        return end(serving, admin, Ok(())).await;
    };
    let (queue, requests) = Queue::new();
    let (rewraps, rewrap_requests) = Queue::new();
    let context = Arc::new(Context {
        objects: Objects::new(client.clone()),
        roles: Roles::new(client.clone()),
        assignments: role_assignment::cache::Cache::default(),
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
    let kept = (custody, authority);
    let outcome = lead(&context, requests, &progress, kept, leading, &stop).await;
    stop.cancel();
    resign.cancel();
    let _ = election.await;
    end(serving, admin, outcome).await
}

/// Waits for the doors and the port for operations; what went wrong with one of them is told.
async fn end(
    serving: Option<JoinHandle<Result<(), server::Error>>>,
    admin: JoinHandle<std::io::Result<()>>,
    outcome: Result<(), Error>,
) -> Result<(), Error> {
    let outcome = match serving {
        None => outcome,
        Some(serving) => match serving.await {
            Ok(Err(source)) => Err(source).context(ServerSnafu),
            _ => outcome,
        },
    };
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
    (custody, authority): (Custody, Authority),
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
    let mut duties = JoinSet::new();
    duties.spawn(custody.keep(Arc::clone(context), work.clone()));
    duties.spawn(token_keys::keep(
        context.client.clone(),
        context.settings.system_namespace.clone(),
        work.clone(),
    ));
    duties.spawn(authority.keep(Arc::clone(context), work.clone()));
    duties.spawn(controllers::run(
        Arc::clone(context),
        requests,
        rewraps,
        work.clone(),
    ));
    let deposed = leading.wait_for(|leads| !*leads);
    let outcome = tokio::select! {
        _ = deposed => {
            // Whatever is under way is cut off: somebody else may be at it already.
            duties.abort_all();
            return DeposedSnafu.fail();
        }
        // Who leads and does not do all of it keeps others from doing it.
        _ = duties.join_next() => AbandonedSnafu.fail(),
        () = stop.cancelled() => Ok(()),
    };
    tracing::info!("stopping; looks under way are finished first");
    work.cancel();
    let done = async { while duties.join_next().await.is_some() {} };
    // What is dropped is cut off.
    let _ = tokio::time::timeout(DRAIN, done).await;
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
        role_prefix: args.role_prefix.clone(),
        host_reload: args.host_reload_delay,
        restart_delay: args.restart_delay,
        ring_grace: args.ring_grace,
        recipients: recipients.clone(),
        workers: args.workers.into(),
    }
}

/// The caches, once there are any.
type Stage = Arc<OnceLock<(Arc<Context>, Progress)>>;

fn watched(metrics: &Arc<Metrics>, stage: &Stage, server: Option<Server>) -> Watched {
    let (filling, counted) = (Arc::clone(stage), Arc::clone(stage));
    Watched {
        metrics: Arc::clone(metrics),
        missing: Arc::new(move || {
            let mut missing = match filling.get() {
                Some((_, progress)) => progress
                    .missing()
                    .into_iter()
                    .map(|what| format!("waiting for the list of {what}"))
                    .collect(),
                None => vec![format!(
                    "waiting for the seal key, Secret {}",
                    seal_key::NAME
                )],
            };
            missing.extend(server.iter().flat_map(Server::missing));
            missing
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
    let is_ready = |conditions: &[Condition]| {
        conditions
            .iter()
            .any(|condition| condition.type_ == READY && condition.status == "True")
    };
    for assignment in context.assignments.lock().assignments() {
        if is_ready(&assignment.status.conditions) {
            census.assignments_ready += 1;
        } else {
            census.assignments_not_ready += 1;
        }
    }
    for declaration in context.cache.lock().declarations() {
        let status = &declaration.status;
        if is_ready(&status.conditions) {
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
