//! Leader election through a `Lease`: of several replicas one acts.
//!
//! Clocks of other machines are not trusted: a holder is taken to be gone when its lease has not
//! changed for its whole duration *by our own monotonic clock*, and a leader that could not renew
//! for four fifths of the duration takes itself to be deposed. Should two ever lead at once (a
//! process that slept), no harm is done: every write carries the version it was planned on.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::k8s::{describe, object::FIELD_MANAGER};

/// How long a lease holds without renewal.
pub const LEASE_DURATION: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(2);
const DEPOSED_AFTER: Duration = Duration::from_secs(8);
/// An apiserver under load takes a second and more for a write: two tries fit before the end.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// One candidate for leadership.
pub struct Candidate {
    leases: Api<Lease>,
    lease: String,
    identity: String,
}

/// What we last saw of the lease, and when it last changed by our clock.
struct Sighting {
    lease: Option<Lease>,
    since: Instant,
}

impl Candidate {
    /// A candidate that calls itself `identity` for the lease of this name and namespace.
    pub fn new(client: Client, namespace: &str, lease: String, identity: String) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            lease,
            identity,
        }
    }

    /// Stands for election until `stop`, then gives the lease up. The channel says whether we lead.
    pub async fn stand(self, leads: watch::Sender<bool>, stop: CancellationToken) {
        let mut sighting = Sighting {
            lease: None,
            since: Instant::now(),
        };
        let mut renewed: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            let answer_by = asked + REQUEST_TIMEOUT;
            let deposed_at = renewed.map(|at| at + DEPOSED_AFTER);
            let attempt = self.attempt(&mut sighting, renewed.is_some());
            let until = deposed_at.map_or(answer_by, |at| at.min(answer_by));
            match tokio::time::timeout_at(until, attempt).await {
                Ok(Ok(true)) => renewed = Some(asked),
                Ok(Ok(false)) => renewed = None,
                failed => {
                    // Whether it was written is not known: a holder reads it before the next
                    // attempt, lest its own write be taken for another's.
                    if renewed.is_some() {
                        sighting.lease = None;
                    }
                    let error = match &failed {
                        Ok(Err(error)) => describe(error),
                        _ => "no answer in time".to_owned(),
                    };
                    tracing::warn!(error, "the lease could not be renewed");
                }
            }
            if renewed.is_some_and(|at| at.elapsed() >= DEPOSED_AFTER) {
                renewed = None;
            }
            leads.send_if_modified(|leads| {
                std::mem::replace(leads, renewed.is_some()) != renewed.is_some()
            });
            let wait = match renewed {
                Some(at) if at == asked => RENEW_EVERY,
                Some(_) => RENEW_EVERY / 6,
                // Not later than the holder's lease runs out.
                None => {
                    let left = LEASE_DURATION.saturating_sub(sighting.since.elapsed());
                    left.clamp(RENEW_EVERY / 6, RENEW_EVERY)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
        if renewed.is_some() {
            leads.send_replace(false);
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, self.give_up(sighting)).await;
        }
    }

    /// One look at the lease and at most one write; says whether we hold it.
    async fn attempt(&self, sighting: &mut Sighting, holding: bool) -> kube::Result<bool> {
        // A holder renews what it wrote last without reading it: a conflict says that it lost.
        if !holding || sighting.lease.is_none() {
            let seen = self.leases.get_opt(&self.lease).await?;
            let version = |lease: &Option<Lease>| {
                lease
                    .as_ref()
                    .and_then(|lease| lease.metadata.resource_version.clone())
            };
            if version(&seen) != version(&sighting.lease) {
                sighting.since = Instant::now();
            }
            sighting.lease = seen;
        }
        let Some(lease) = &sighting.lease else {
            return self.take(sighting, None).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let free = spec.holder_identity.as_deref().is_none_or(str::is_empty);
        let ours = spec.holder_identity.as_deref() == Some(self.identity.as_str());
        let holds_for = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE_DURATION, Duration::from_secs);
        if free || ours || sighting.since.elapsed() >= holds_for {
            return self.take(sighting, Some(spec)).await;
        }
        Ok(false)
    }

    async fn take(&self, sighting: &mut Sighting, before: Option<LeaseSpec>) -> kube::Result<bool> {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: if ours {
                before.acquire_time.clone()
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(
                before.lease_transitions.unwrap_or_default() + i32::from(!ours),
            ),
            ..LeaseSpec::default()
        };
        let written = self.write(sighting.lease.as_ref(), spec).await;
        match written {
            Ok(lease) => {
                sighting.lease = Some(lease);
                sighting.since = Instant::now();
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                sighting.lease = None;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn write(&self, before: Option<&Lease>, spec: LeaseSpec) -> kube::Result<Lease> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        if let Some(before) = before {
            let lease = Lease {
                metadata: before.metadata.clone(),
                spec: Some(spec),
            };
            return self.leases.replace(&self.lease, &params, &lease).await;
        }
        let metadata = ObjectMeta {
            name: Some(self.lease.clone()),
            ..ObjectMeta::default()
        };
        self.leases
            .create(
                &params,
                &Lease {
                    metadata,
                    spec: Some(spec),
                },
            )
            .await
    }

    async fn give_up(&self, sighting: Sighting) -> kube::Result<()> {
        let Some(lease) = sighting.lease else {
            return Ok(());
        };
        let mut spec = lease.spec.clone().unwrap_or_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.write(Some(&lease), spec).await.map(drop)
    }
}
