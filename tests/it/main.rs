//! Tests that need no cluster.

#![allow(clippy::unwrap_used, clippy::panic)]

mod architecture;
mod chart;
mod command_line;
mod generated;
mod health;
mod listener;
mod oidc;
mod root_keys;
mod threats;
mod vectors;
