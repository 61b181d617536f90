//! Claviger: a Kubernetes operator that keeps an organisation's keys.
//!
//! ```text
//!            main ─────────► cli, telemetry, runtime (joins everything)
//!                                 │
//!        ┌────────────────────────┼───────────┐
//!   controllers               leader, admin   metrics, clock, key_pair
//!    │       │                                  (leaves)
//!    │       ├──► root_keys ──► kms   what wraps the keys of vaults; a KMS plugin
//!    │       ├──► recovery ┐          the way back to a lost root key; also used by cli
//!    │       └──► k8s ◄────┘ thin effects: one verb, one object each
//!    ▼             │
//!   domain ◄── api ┘       api: what users write; domain: pure decisions, no I/O, no clock
//! ```
//!
//! Start reading at [`controllers::function_key`], then [`domain::plan`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod admin;
pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod controllers;
pub mod custody;
pub mod domain;
pub mod k8s;
pub mod key_pair;
pub mod kms;
pub mod leader;
pub mod metrics;
pub mod recovery;
pub mod root_keys;
pub mod runtime;
pub mod telemetry;
