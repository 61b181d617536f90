//! The signing keys of access tokens: every process sees them by a watch, the one that leads keeps
//! them as [`plan`](crate::domain::token_keys::plan) says.
//!
//! The leader waits for two things only: a change of the Secret, and the time of the next step. A
//! Secret that somebody deletes is made anew at once, with another key; tokens signed before are
//! then refused, which is how all of them are revoked.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Client, runtime::watcher};
use snafu::{OptionExt as _, ResultExt as _, Snafu};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    controllers::watch::{Follower, Progress, follow},
    domain::{
        access_token::{KeySet, SigningKey},
        token_keys::{Plan, Spans, plan},
    },
    k8s::token_keys::{self, NAME, Stored, api},
    key_pair::{KeyPairError, SigningPair},
};

const RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// What is known of the keys.
#[derive(Clone, Debug, Default)]
pub enum Sight {
    /// There are none.
    Absent,
    /// There are these.
    Present(Arc<Stored>),
    /// There is something else in their place.
    Unreadable,
    /// Nothing yet.
    #[default]
    Unknown,
}

impl Sight {
    /// The keys, if there are any.
    pub fn keys(&self) -> Option<&KeySet> {
        match self {
            Self::Present(stored) => Some(&stored.keys),
            Self::Absent | Self::Unreadable | Self::Unknown => None,
        }
    }
}

/// Follows the Secret from now on; call it within a Tokio runtime. What it waits for first is noted
/// in the progress; it ends when nobody looks at what it sees any more.
pub fn watch(client: Client, namespace: String, progress: &Progress) -> watch::Receiver<Sight> {
    let (sight, seen) = watch::channel(Sight::Unknown);
    let awaited = progress.awaits("signing keys", None);
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    tokio::spawn(async move {
        let api = api(&client, &namespace);
        let onlooker = Onlooker {
            namespace,
            listed: Sight::Absent,
            sight: sight.clone(),
        };
        tokio::select! {
            () = follow(api, config, onlooker, awaited) => {}
            () = sight.closed() => {}
        }
    });
    seen
}

struct Onlooker {
    namespace: String,
    listed: Sight,
    sight: watch::Sender<Sight>,
}

impl Follower<Secret> for Onlooker {
    fn seen(&mut self, secret: Secret, first: bool) {
        let sight = match token_keys::read(secret, &self.namespace) {
            Ok(stored) => Sight::Present(Arc::new(stored)),
            Err(error) => {
                tracing::error!(%error, "there are no signing keys");
                Sight::Unreadable
            }
        };
        if first {
            self.listed = sight;
        } else {
            self.sight.send_replace(sight);
        }
    }

    fn gone(&mut self, _: &Secret) {
        self.sight.send_replace(Sight::Absent);
    }

    fn begin(&mut self) {
        self.listed = Sight::Absent;
    }

    fn complete(&mut self) {
        self.sight.send_replace(std::mem::take(&mut self.listed));
    }
}

/// The keys were not brought where they should be.
#[derive(Debug, Snafu)]
enum Error {
    #[snafu(display("no signing key could be made"))]
    Mint { source: KeyPairError },
    #[snafu(display("a signing key that was just made does not sign"))]
    Unusable,
    #[snafu(display("{source}"))]
    Write { source: token_keys::Error },
}

/// Keeps the keys until `stop`. Call it when this process leads.
pub async fn keep(client: Client, namespace: String, stop: CancellationToken) {
    let mut seen = watch(client.clone(), namespace.clone(), &Progress::default());
    let mut pause = RETRY;
    let mut sight = Sight::Unknown;
    loop {
        let wait = match &sight {
            Sight::Unknown | Sight::Unreadable => Duration::MAX,
            Sight::Absent | Sight::Present(_) => {
                let plan = plan(keys_of(&sight), &Spans::default(), clock::now());
                match perform(&client, &namespace, &sight, &plan).await {
                    Ok(written) => {
                        pause = RETRY;
                        if let Some(written) = written {
                            sight = Sight::Present(Arc::new(written));
                        }
                        plan.next
                            .duration_since(clock::now())
                            .try_into()
                            .unwrap_or_default()
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the signing keys are not as they should be");
                        let wait = pause;
                        pause = (pause * 2).min(LONGEST_RETRY);
                        wait
                    }
                }
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
            changed = seen.changed() => {
                if changed.is_err() {
                    return;
                }
                sight = seen.borrow_and_update().clone();
            }
        }
    }
}

/// Does what is planned; answers what stands then, if something was written.
async fn perform(
    client: &Client,
    namespace: &str,
    sight: &Sight,
    plan: &Plan,
) -> Result<Option<Stored>, Error> {
    if plan.is_idle() {
        return Ok(None);
    }
    let mut keys = keys_of(sight)[plan.remove..].to_vec();
    if let Some(signs_from) = plan.mint {
        let key = SigningPair::mint().context(MintSnafu)?;
        keys.push(key.signs_from(signs_from).context(UnusableSnafu)?);
    }
    let written = match sight {
        Sight::Present(stored) => {
            token_keys::patch_keys(client, namespace, &stored.version, &keys).await
        }
        Sight::Absent | Sight::Unreadable | Sight::Unknown => {
            token_keys::create_keys(client, namespace, &keys).await
        }
    };
    let written = written.context(WriteSnafu)?;
    if let Some(signs_from) = plan.mint {
        tracing::info!(%signs_from, "a signing key of access tokens was published");
    }
    if plan.remove > 0 {
        tracing::info!(
            removed = plan.remove,
            "signing keys whose last token is over were removed"
        );
    }
    Ok(Some(written))
}

fn keys_of(sight: &Sight) -> &[SigningKey] {
    sight.keys().map(KeySet::keys).unwrap_or_default()
}

/// A timer has its bounds.
async fn sleep(wait: Duration) {
    const LONGEST: Duration = Duration::from_hours(24 * 365);
    tokio::time::sleep(wait.min(LONGEST)).await;
}
