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
}

/// Every figure, registered once.
pub struct Metrics {
    registry: Mutex<Registry>,
    durations: Family<Kind, Histogram>,
    errors: Family<Failure, Counter>,
    turns: Family<Outcome, Counter>,
    restarts: Counter,
    resources: Family<Readiness, Gauge>,
    oldest: Family<Kind, Gauge>,
    overdue: Family<Kind, Gauge>,
    leader: Gauge,
}

const FUNCTION_KEY: &str = "FunctionKey";

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
            resources: Family::default(),
            oldest: Family::default(),
            overdue: Family::default(),
            leader: Gauge::default(),
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
        self.resources
            .get_or_create(&Readiness {
                kind,
                ready: "true",
            })
            .set(census.ready);
        self.resources
            .get_or_create(&Readiness {
                kind,
                ready: "false",
            })
            .set(census.not_ready);
        let since =
            |at: Option<Timestamp>| at.map_or(0, |at| now.duration_since(at).as_secs().max(0));
        self.oldest
            .get_or_create(&Kind { kind })
            .set(since(census.oldest));
        self.overdue
            .get_or_create(&Kind { kind })
            .set(since(census.earliest_due));
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
