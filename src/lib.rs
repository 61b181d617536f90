//! Claviger: a Kubernetes operator that keeps an organisation's keys.
//!
//! ```text
//!            main ─────────► cli, telemetry, runtime (joins everything)
//!                                 │
//!        ┌──────────────┬─────────┼───────────┐
//!   controllers      server   leader, admin   metrics, clock, key_pair
//!    │       │                                  (leaves)
//!    │       ├──► root_keys ──► kms   what wraps the keys of vaults; a KMS plugin
//!    │       ├──► ca            the CA: minted, turned, published; server issues leafs from it
//!    │       ├──► recovery ┐          the way back to a lost root key; also used by cli
//!    │       └──► k8s ◄────┘ thin effects: one verb, one object each
//!    ▼             │
//!   domain ◄── api ┘       api: what users write; domain: pure decisions, no I/O, no clock
//! ```
//!
//! [`server`] is the front door: it knows who calls and asks the apiserver what they may, and stands
//! beside `controllers`, with `k8s` and `domain` below it. [`token_keys`] is what both halves share.
//!
//! Start reading at [`controllers::function_key`], then [`domain::plan`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod admin;
pub mod agent;
pub mod api;
pub mod ca;
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
pub mod server;
pub mod telemetry;
pub mod token_keys;
