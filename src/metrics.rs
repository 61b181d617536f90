//! Figures for Prometheus. Labels are bounded: kinds, outcomes and categories, never names.

use std::{fmt::Write as _, sync::Mutex, time::Duration};

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::domain::plan::Occurrence;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    kind: &'static str,
    category: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Access {
    door: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VaultReadiness {
    ready: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Readiness {
    kind: &'static str,
    ready: &'static str,
}

/// What the declared resources look like at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Census {
    /// Resources whose `Ready` is true.
    pub ready: i64,
    /// All others.
    pub not_ready: i64,
    /// When the oldest current value was published.
    pub oldest: Option<Timestamp>,
    /// The earliest turn that is due.
    pub earliest_due: Option<Timestamp>,
    /// Assignments whose `Ready` is true.
    pub assignments_ready: i64,
    /// All other assignments.
    pub assignments_not_ready: i64,
    /// The vaults.
    pub vaults: VaultCensus,
}

/// What the declared vaults look like at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct VaultCensus {
    /// Vaults whose `Ready` is true.
    pub ready: i64,
    /// All others.
    pub not_ready: i64,
    /// Objects of vaults that do not open.
    pub unreadable: i64,
    /// Versions of secrets that are still wrapped under an old version of their key ring.
    pub rewrap_remaining: i64,
    /// Whether the root key is there and usable.
    pub root_key: bool,
    /// When a backup of the root key was last shown to open.
    pub backup_verified: Option<Timestamp>,
}

/// Every figure, registered once.
pub struct Metrics {
    registry: Mutex<Registry>,
    durations: Family<Kind, Histogram>,
    errors: Family<Failure, Counter>,
    turns: Family<Outcome, Counter>,
    restarts: Counter,
    rewraps: Counter,
    resources: Family<Readiness, Gauge>,
    oldest: Family<Kind, Gauge>,
    overdue: Family<Kind, Gauge>,
    leader: Gauge,
    vaults: Family<VaultReadiness, Gauge>,
    unreadable: Gauge,
    rewrap_remaining: Gauge,
    root_key: Gauge,
    backup_verified: Gauge,
    accesses: Family<Access, Counter>,
    audit_failures: Counter,
    ca_expires: Gauge,
    ca_unpublished: Gauge,
    connections: Gauge,
    refusals: Family<Refusal, Counter>,
}

const FUNCTION_KEY: &str = "FunctionKey";
const ROLE_ASSIGNMENT: &str = "RoleAssignment";
const SECRET_VAULT: &str = "SecretVault";

impl Default for Metrics {
    fn default() -> Self {
        let durations = Family::<Kind, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 4.0, 8))
        });
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("claviger")),
            durations,
            errors: Family::default(),
            turns: Family::default(),
            restarts: Counter::default(),
            rewraps: Counter::default(),
            resources: Family::default(),
            oldest: Family::default(),
            overdue: Family::default(),
            leader: Gauge::default(),
            vaults: Family::default(),
            unreadable: Gauge::default(),
            rewrap_remaining: Gauge::default(),
            root_key: Gauge::default(),
            backup_verified: Gauge::default(),
            accesses: Family::default(),
            audit_failures: Counter::default(),
            ca_expires: Gauge::default(),
            ca_unpublished: Gauge::default(),
            connections: Gauge::default(),
            refusals: Family::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.register(
            "reconcile_duration_seconds",
            "How long a look at one item took",
            self.durations.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Looks that failed, by operation",
            self.errors.clone(),
        );
        registry.register("turns", "What happened to keys", self.turns.clone());
        registry.register(
            "restarts",
            "Workloads restarted because a value changed",
            self.restarts.clone(),
        );
        registry.register(
            "rewraps",
            "Data keys put under a newer version of a key ring",
            self.rewraps.clone(),
        );
        registry.register("resources", "Declared resources", self.resources.clone());
        registry.register(
            "oldest_key_seconds",
            "Age of the oldest current value",
            self.oldest.clone(),
        );
        registry.register(
            "oldest_overdue_seconds",
            "How far past its due time the most overdue turn is",
            self.overdue.clone(),
        );
        registry.register("leader", "Whether this process leads", self.leader.clone());
        registry.register("vaults", "Declared vaults", self.vaults.clone());
        registry.register(
            "vault_unreadable_objects",
            "Objects of vaults that do not open",
            self.unreadable.clone(),
        );
        registry.register(
            "vault_rewrap_remaining",
            "Versions of secrets still wrapped under an old version of their key ring",
            self.rewrap_remaining.clone(),
        );
        registry.register(
            "root_key_available",
            "Whether the root key is there and usable",
            self.root_key.clone(),
        );
        registry.register(
            "root_key_backup_verified_timestamp_seconds",
            "When a backup of the root key was last shown to open",
            self.backup_verified.clone(),
        );
        registry.register(
            "accesses",
            "Requests at the doors, by how they ended",
            self.accesses.clone(),
        );
        registry.register(
            "audit_failures",
            "Accesses of which no line could be written",
            self.audit_failures.clone(),
        );
        registry.register(
            "ca_expires_timestamp_seconds",
            "Until when the newest version of the CA is valid",
            self.ca_expires.clone(),
        );
        registry.register(
            "ca_unpublished_namespaces",
            "Namespaces in which the roots are not published as they should be",
            self.ca_unpublished.clone(),
        );
        registry.register(
            "server_connections",
            "Connections to the doors that are open",
            self.connections.clone(),
        );
        registry.register(
            "server_refusals",
            "Connections and requests that were refused or cut off before any door, by reason",
            self.refusals.clone(),
        );
    }

    /// How the CA stands: until when its newest version is valid, and in how many namespaces it is not
    /// published.
    pub fn authority(&self, expires: Option<Timestamp>, unpublished: usize) {
        self.ca_expires.set(expires.map_or(0, Timestamp::as_second));
        self.ca_unpublished
            .set(i64::try_from(unpublished).unwrap_or(i64::MAX));
    }

    /// Connections that are open now.
    pub fn connected(&self, connections: usize) {
        self.connections
            .set(i64::try_from(connections).unwrap_or(i64::MAX));
    }

    /// A connection or a request was refused, or cut off.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Refusal { reason }).inc();
    }

    /// A look ended.
    pub fn reconciled(&self, kind: &'static str, took: Duration) {
        self.durations
            .get_or_create(&Kind { kind })
            .observe(took.as_secs_f64());
    }

    /// A look failed.
    pub fn failed(&self, kind: &'static str, category: &'static str) {
        self.errors.get_or_create(&Failure { kind, category }).inc();
    }

    /// Something happened to a key.
    pub fn turned(&self, occurrence: Occurrence) {
        let outcome = match occurrence {
            Occurrence::Adopted => "adopted",
            Occurrence::DriftAdopted => "drift_adopted",
            Occurrence::DriftUndone => "drift_undone",
            Occurrence::Minted => "minted",
            Occurrence::Replaced => "replaced",
            Occurrence::Restored => "restored",
            Occurrence::Retired => "retired",
            Occurrence::Revoked => "revoked",
            Occurrence::Rotated => "rotated",
        };
        self.turns
            .get_or_create(&Outcome {
                kind: FUNCTION_KEY,
                outcome,
            })
            .inc();
    }

    /// Something happened to a secret or a key ring of a vault.
    pub fn vault_turned(&self, outcome: &'static str) {
        self.turns
            .get_or_create(&Outcome {
                kind: SECRET_VAULT,
                outcome,
            })
            .inc();
    }

    /// A data key was re-wrapped.
    pub fn rewrapped(&self) {
        self.rewraps.inc();
    }

    /// A request at a door ended.
    pub fn accessed(&self, door: &'static str, outcome: &'static str) {
        self.accesses.get_or_create(&Access { door, outcome }).inc();
    }

    /// An access was not written to the audit.
    pub fn audit_failed(&self) {
        self.audit_failures.inc();
    }

    /// A workload was restarted.
    pub fn restarted(&self) {
        self.restarts.inc();
    }

    /// Leadership was won or lost.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// Takes a census in.
    pub fn counted(&self, census: Census, now: Timestamp) {
        let kind = FUNCTION_KEY;
        for (kind, ready, not_ready) in [
            (kind, census.ready, census.not_ready),
            (
                ROLE_ASSIGNMENT,
                census.assignments_ready,
                census.assignments_not_ready,
            ),
        ] {
            for (ready, count) in [("true", ready), ("false", not_ready)] {
                self.resources
                    .get_or_create(&Readiness { kind, ready })
                    .set(count);
            }
        }
        let since =
            |at: Option<Timestamp>| at.map_or(0, |at| now.duration_since(at).as_secs().max(0));
        self.oldest
            .get_or_create(&Kind { kind })
            .set(since(census.oldest));
        self.overdue
            .get_or_create(&Kind { kind })
            .set(since(census.earliest_due));
        let vaults = census.vaults;
        for (ready, count) in [("true", vaults.ready), ("false", vaults.not_ready)] {
            self.vaults
                .get_or_create(&VaultReadiness { ready })
                .set(count);
        }
        self.unreadable.set(vaults.unreadable);
        self.rewrap_remaining.set(vaults.rewrap_remaining);
        self.root_key.set(vaults.root_key.into());
        self.backup_verified
            .set(vaults.backup_verified.map_or(0, Timestamp::as_second));
    }

    /// Every figure in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if encode(&mut text, &registry).is_err() {
            text.clear();
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}
