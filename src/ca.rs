//! The CA's life as the leader sees to it: its Secret is minted once, turned with overlap, and what
//! clients shall trust is published in every namespace of the scope.
//!
//! Nothing is polled. The Secret, the published `ConfigMap`s (their metadata only) and the namespaces are
//! watched; between events the loop sleeps until the plan of [`crate::domain::ca`] wants the next look.

pub mod certificate;
pub mod roots;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::{Api, Client, ResourceExt, core::PartialObjectMeta, runtime::watcher};
use snafu::{ResultExt, Snafu, ensure};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{CONTENT_LABEL, CONTENT_ROOTS, ROOTS_ANNOTATION},
    ca::roots::Base,
    cli::{CaArgs, NameArgs},
    clock,
    controllers::{
        context::Context,
        watch::{Follower, Progress, api, follow, follow_one},
    },
    domain::ca::{self as domain, Policy},
    k8s::{
        ca::{self, NAME, Published, Roots, Stored},
        object::{self, FIELD_MANAGER},
    },
};

/// How long a leaf lives: short, so that a stolen one is of little use.
pub const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// How far clocks may be from ours.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);
/// How many namespaces are published to at once: each has the whole bundle in memory while it is.
const AT_ONCE: usize = 4;
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_mins(1);
/// The longest sleep without looking at the clock, which may be put right meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_hours(1);

/// The CA is not configured as it can be.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The file with further roots cannot be used.
    #[snafu(display("--further-roots {path}: {source}"))]
    Further {
        /// Its path.
        path: String,
        /// Why.
        source: roots::Error,
    },
    /// The file with further roots cannot be read.
    #[snafu(display("cannot read --further-roots {path}"))]
    ReadFurther {
        /// Its path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The times leave no room for one another.
    #[snafu(display(
        "--ca-lifetime must be more than twice --ca-lead and --leaf-lifetime together"
    ))]
    Times,
}

/// Which domains Claviger's own CA signs for.
pub fn permitted(names: &NameArgs) -> BTreeSet<String> {
    let mut permitted = BTreeSet::from(["svc".to_owned(), format!("svc.{}", names.cluster_domain)]);
    permitted.extend(names.domain.clone());
    permitted
}

/// The CA, as configured.
pub struct Authority {
    policy: Policy,
    base: Base,
    namespace: String,
}

impl Authority {
    /// Reads the configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(args: &CaArgs, names: &NameArgs, namespace: &str) -> Result<Self, Error> {
        let policy = Policy {
            lifetime: args.ca_lifetime,
            lead: args.ca_lead,
            leaf: names.leaf_lifetime,
            skew: CLOCK_SKEW.min(names.leaf_lifetime),
            names: permitted(names),
        };
        ensure!(policy.is_possible(), TimesSnafu);
        let further = args.further_roots.as_ref().map(|path| {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(path);
            text.context(ReadFurtherSnafu { path: &shown })
                .map(|text| (shown, text))
        });
        let further = further.transpose()?;
        let text = further.as_ref().map(|(_, text)| text.as_str());
        let base = Base::new(args.public_roots, text).context(FurtherSnafu {
            path: further.as_ref().map_or("", |(path, _)| path),
        })?;
        Ok(Self {
            policy,
            base,
            namespace: namespace.to_owned(),
        })
    }

    /// Sees to the CA and to what is published of it until `stop`.
    pub async fn keep(self, context: Arc<Context>, stop: CancellationToken) {
        let (sender, mut inbox) = mpsc::unbounded_channel();
        let progress = Progress::default();
        let watching = stop.child_token();
        let _guard = watching.clone().drop_guard();
        watch(&context, &self.namespace, &sender, &progress, &watching);
        let mut work = Work {
            authority: self,
            context,
            secret: Known::Unheard,
            roots: None,
            bundled: String::new(),
            namespaces: HashSet::new(),
            sights: HashMap::new(),
            pause: RETRY,
        };
        work.namespaces
            .extend(work.context.settings.namespaces.iter().cloned());
        tokio::select! {
            () = progress.filled() => {}
            () = stop.cancelled() => return,
        }
        loop {
            while let Ok(news) = inbox.try_recv() {
                work.take(news);
            }
            let sleep = work.look().await;
            tokio::select! {
                news = inbox.recv() => {
                    if let Some(news) = news {
                        work.take(news);
                    }
                }
                () = tokio::time::sleep(sleep) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// What the watches tell.
enum News {
    ConfigMap(String, Option<Sight>),
    Namespace(String, Life),
    Secret(Known),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Ending,
}

/// What is known of the CA's Secret.
enum Known {
    Unheard,
    Absent,
    Broken(String),
    There(Stored),
}

/// What is known of a published `ConfigMap`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    version: String,
    /// Which roots it holds, by its own words.
    digest: Option<String>,
    mark: Mark,
    /// Whether its content is known to be what its words say.
    trust: Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Ours,
    /// Ours by one mark of two.
    Half,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// We wrote or read it in this version, or found it at a start with nobody else's hand in it.
    Known,
    /// Somebody may have changed it.
    Unknown,
}

impl Sight {
    /// Reads the metadata of a `ConfigMap`; `listed`: it was there when the list was made.
    fn new(object: &PartialObjectMeta<ConfigMap>, listed: bool) -> Self {
        let label = object.labels().get(CONTENT_LABEL).map(String::as_str);
        let digest = object.annotations().get(ROOTS_ANNOTATION).cloned();
        let mark = match (label == Some(CONTENT_ROOTS), digest.is_some()) {
            (true, true) => Mark::Ours,
            (false, false) => Mark::None,
            _ => Mark::Half,
        };
        let hands = object
            .metadata
            .managed_fields
            .as_deref()
            .unwrap_or_default();
        let untouched = hands
            .iter()
            .all(|hand| hand.manager.as_deref() == Some(FIELD_MANAGER));
        Self {
            version: object::version(object),
            digest,
            mark,
            trust: if listed && untouched && !hands.is_empty() {
                Trust::Known
            } else {
                Trust::Unknown
            },
        }
    }

    fn stands(&self, roots: &Roots) -> bool {
        self.mark == Mark::Ours
            && self.trust == Trust::Known
            && self.digest.as_ref() == Some(&roots.digest)
    }
}

/// Starts the watches; they end with the token.
fn watch(
    context: &Context,
    system_namespace: &str,
    sender: &mpsc::UnboundedSender<News>,
    progress: &Progress,
    stop: &CancellationToken,
) {
    let client = &context.client;
    let awaited = progress.awaits("the CA", None);
    let secrets = Api::<Secret>::namespaced(client.clone(), system_namespace);
    let telling = sender.clone();
    let mut awaited = Some(awaited);
    let following = async move {
        let take = |secret: Option<Secret>| {
            let _ = telling.send(News::Secret(Known::new(secret.map(ca::parse))));
            if let Some(awaited) = awaited.take() {
                awaited.filled();
            }
        };
        follow_one(secrets, NAME, take).await;
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(following));
    let named = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let scopes: Vec<Option<&String>> = match context.settings.namespaces.as_slice() {
        [] => vec![None],
        namespaces => namespaces.iter().map(Some).collect(),
    };
    for scope in scopes {
        let scope = scope.map(String::as_str);
        let config_maps = api::<PartialObjectMeta<ConfigMap>>(client, scope);
        let published = Relay::new(
            sender,
            |object: &PartialObjectMeta<ConfigMap>, listed| {
                let namespace = object.namespace().unwrap_or_default();
                let sight = Sight::new(object, listed);
                (namespace.clone(), News::ConfigMap(namespace, Some(sight)))
            },
            |namespace| News::ConfigMap(namespace, None),
        );
        let awaited = progress.awaits("published roots", scope);
        let following = follow(config_maps, named.clone(), published, awaited);
        tokio::spawn(stop.clone().run_until_cancelled_owned(following));
    }
    if context.settings.namespaces.is_empty() {
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let alive = Relay::new(
            sender,
            |object: &PartialObjectMeta<Namespace>, _| {
                let life = match object.metadata.deletion_timestamp {
                    None => Life::Alive,
                    Some(_) => Life::Ending,
                };
                let name = object.name_any();
                (name.clone(), News::Namespace(name, life))
            },
            |namespace| News::Namespace(namespace, Life::Ending),
        );
        let awaited = progress.awaits("namespaces", None);
        let following = follow(namespaces, watcher::Config::default(), alive, awaited);
        tokio::spawn(stop.clone().run_until_cancelled_owned(following));
    }
}

impl Known {
    fn new(secret: Option<Result<Stored, ca::Error>>) -> Self {
        match secret {
            None => Self::Absent,
            Some(Err(error)) => Self::Broken(error.to_string()),
            Some(Ok(stored)) => Self::There(stored),
        }
    }
}

/// Passes on what a watch tells, and what a list does not tell of any more as gone.
struct Relay<Seen, Gone> {
    sender: mpsc::UnboundedSender<News>,
    seen: Seen,
    gone: Gone,
    known: HashSet<String>,
    listed: HashSet<String>,
}

impl<Seen, Gone> Relay<Seen, Gone> {
    fn new(sender: &mpsc::UnboundedSender<News>, seen: Seen, gone: Gone) -> Self {
        Self {
            sender: sender.clone(),
            seen,
            gone,
            known: HashSet::new(),
            listed: HashSet::new(),
        }
    }
}

impl<K, Seen, Gone> Follower<K> for Relay<Seen, Gone>
where
    Seen: Fn(&K, bool) -> (String, News),
    Gone: Fn(String) -> News,
{
    fn seen(&mut self, object: K, first: bool) {
        let (name, news) = (self.seen)(&object, first);
        if first {
            self.listed.insert(name.clone());
        }
        self.known.insert(name);
        let _ = self.sender.send(news);
    }

    fn gone(&mut self, object: &K) {
        let (name, _) = (self.seen)(object, false);
        self.known.remove(&name);
        let _ = self.sender.send((self.gone)(name));
    }

    fn begin(&mut self) {
        self.listed.clear();
    }

    fn complete(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        for lost in self.known.difference(&listed) {
            let _ = self.sender.send((self.gone)(lost.clone()));
        }
        self.known = listed;
    }
}

/// What is known, and what is to be done about it.
struct Work {
    authority: Authority,
    context: Arc<Context>,
    secret: Known,
    roots: Option<Roots>,
    /// The version of the Secret that the roots are from.
    bundled: String,
    /// Where the roots belong.
    namespaces: HashSet<String>,
    sights: HashMap<String, Sight>,
    /// The pause after a failure.
    pause: Duration,
}

impl Work {
    fn take(&mut self, news: News) {
        match news {
            News::ConfigMap(namespace, None) => _ = self.sights.remove(&namespace),
            News::ConfigMap(namespace, Some(sight)) => {
                // Late news of a version that we read or wrote ourselves tell nothing.
                let known = self.sights.get(&namespace);
                if known.is_none_or(|known| known.version != sight.version) {
                    if sight.mark == Mark::None {
                        tracing::warn!(
                            k8s.namespace.name = namespace,
                            "a ConfigMap {NAME} is there that is not Claviger's; it is left alone, and the roots are not published in this namespace"
                        );
                    }
                    self.sights.insert(namespace, sight);
                }
            }
            News::Namespace(namespace, Life::Alive) => _ = self.namespaces.insert(namespace),
            News::Namespace(namespace, Life::Ending) => {
                self.namespaces.remove(&namespace);
                self.sights.remove(&namespace);
            }
            News::Secret(secret) => self.secret = secret,
        }
    }

    /// Does what is to be done now; answers how long there will be nothing to do.
    async fn look(&mut self) -> Duration {
        let mut failed = false;
        let mut next = None;
        match self.see_to_secret().await {
            Ok(at) => next = at,
            Err(error) => {
                tracing::error!(error, "the CA is not as it should be");
                failed = true;
            }
        }
        if let Known::There(stored) = &self.secret
            && self.bundled != stored.version
        {
            self.roots = Some(self.authority.base.with(&stored.issuers));
            self.bundled.clone_from(&stored.version);
        }
        failed |= self.publish().await.is_err();
        self.count();
        if failed {
            let pause = self.pause;
            self.pause = (pause * 2).min(LONGEST_RETRY);
            return pause;
        }
        self.pause = RETRY;
        next.map_or(LONGEST_SLEEP, |at| {
            Duration::try_from(at.duration_since(clock::now()))
                .unwrap_or_default()
                .min(LONGEST_SLEEP)
        })
    }

    /// Brings about what the plan wants; answers when to look again.
    async fn see_to_secret(&mut self) -> Result<Option<Timestamp>, String> {
        loop {
            let versions = match &self.secret {
                Known::Unheard => return Ok(None),
                Known::Broken(why) => return Err(why.clone()),
                Known::Absent => Vec::new(),
                Known::There(stored) => stored.versions(),
            };
            let plan = domain::plan(&versions, &self.authority.policy, clock::now());
            if plan.is_idle() {
                return Ok(plan.next_look);
            }
            let made = plan.make.as_ref().map(certificate::mint).transpose();
            let made = made.map_err(|error| snafu::Report::from_error(error).to_string())?;
            let (client, namespace) = (&self.context.client, &self.authority.namespace);
            let written = match (&self.secret, &made) {
                (Known::There(stored), made) => {
                    ca::change(client, namespace, stored, made.as_ref(), &plan.drop).await
                }
                (_, Some(first)) => ca::create(client, namespace, first).await,
                (_, None) => return Ok(plan.next_look),
            };
            let written = written.map_err(|error| error.to_string())?;
            if let Some(stored) = written {
                if let Some(made) = plan.make {
                    let (ca, signs_from) = (made.number, made.signs_from);
                    tracing::info!(ca, %signs_from, until = %made.not_after, "a version of the CA was made");
                }
                for ca in plan.drop {
                    tracing::info!(ca, "a version of the CA is needed no longer");
                }
                self.secret = Known::There(stored);
            } else {
                // Somebody else was faster: what they wrote is as good.
                let read = ca::read(client, namespace).await;
                self.secret = match read {
                    Ok(stored) => stored.map_or(Known::Absent, Known::There),
                    Err(error @ ca::Error::Malformed { .. }) => Known::Broken(error.to_string()),
                    Err(error) => return Err(error.to_string()),
                };
            }
        }
    }

    /// Publishes the roots wherever they do not stand.
    async fn publish(&mut self) -> Result<(), Failed> {
        let Some(roots) = &self.roots else {
            return Ok(());
        };
        let due: Vec<(String, Due)> = self
            .namespaces
            .iter()
            .filter_map(|namespace| {
                let due = match self.sights.get(namespace) {
                    None => Due::Make,
                    Some(sight) if sight.mark == Mark::None || sight.stands(roots) => return None,
                    Some(_) => Due::PutBack,
                };
                Some((namespace.clone(), due))
            })
            .collect();
        let client = &self.context.client;
        let outcomes: Vec<(String, Result<Published, ca::Error>)> = stream::iter(due)
            .map(async |(namespace, due)| {
                let outcome = publish_one(client, &namespace, roots, due).await;
                (namespace, outcome)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut failures = 0_usize;
        for (namespace, outcome) in outcomes {
            match outcome {
                Ok(Published::Stands(version)) => {
                    let sight = Sight {
                        version,
                        digest: Some(roots.digest.clone()),
                        mark: Mark::Ours,
                        trust: Trust::Known,
                    };
                    self.sights.insert(namespace, sight);
                }
                // The watch tells of it too, and of its end.
                Ok(Published::Foreign) => {
                    let sight = Sight {
                        version: String::new(),
                        digest: None,
                        mark: Mark::None,
                        trust: Trust::Unknown,
                    };
                    self.sights.insert(namespace, sight);
                }
                Ok(Published::NoNamespace) => {
                    // Of namespaces that are watched there will be news; of listed ones there is none.
                    if self.context.settings.namespaces.is_empty() {
                        self.namespaces.remove(&namespace);
                    } else {
                        failures += 1;
                    }
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "the roots could not be published; trying again");
                    }
                    failures += 1;
                }
            }
        }
        if failures == 0 { Ok(()) } else { Err(Failed) }
    }

    fn count(&self) {
        let Some(roots) = &self.roots else { return };
        let missing = self
            .namespaces
            .iter()
            .filter(|namespace| {
                !self
                    .sights
                    .get(*namespace)
                    .is_some_and(|sight| sight.stands(roots))
            })
            .count();
        let expires = match &self.secret {
            Known::There(stored) => stored.issuers.last().map(|issuer| issuer.version.not_after),
            _ => None,
        };
        self.context.metrics.authority(expires, missing);
    }
}

/// Something of many could not be done; each was logged.
struct Failed;

/// What is to be done in a namespace.
#[derive(Clone, Copy)]
enum Due {
    Make,
    PutBack,
}

async fn publish_one(
    client: &Client,
    namespace: &str,
    roots: &Roots,
    due: Due,
) -> Result<Published, ca::Error> {
    match due {
        Due::Make => ca::publish(client, namespace, roots).await,
        Due::PutBack => ca::put_back(client, namespace, roots).await,
    }
}
