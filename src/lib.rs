//! Claviger: a Kubernetes operator that keeps an organisation's keys.
//!
//! ```text
//!            main ─────────► cli, telemetry, runtime (joins everything)
//!                                 │
//!        ┌────────────────────────┼───────────┐
//!   controllers               leader, admin   metrics, clock
//!    │       │                                  (leaves)
//!    │       └──► k8s      thin effects: one verb, one object each
//!    ▼             │
//!   domain ◄── api ┘       api: what users write; domain: pure decisions, no I/O, no clock
//! ```
//!
//! Start reading at [`controllers::function_key`], then [`domain::plan`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod admin;
pub mod api;
pub mod cli;
pub mod clock;
pub mod controllers;
pub mod domain;
pub mod k8s;
pub mod leader;
pub mod metrics;
pub mod runtime;
pub mod telemetry;
