//! Tests against a real control plane (etcd, kube-apiserver and kube-controller-manager, embedded in
//! a program of ours), with the real binary running under the chart's own ServiceAccount, RBAC and
//! admission policies.
//!
//! Each test has a namespace of its own and runs its own operator in it; the control plane is
//! shared and ends with the test process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod facts;
mod support;

mod adoption;
mod agreement;
mod ca;
mod crash;
mod deletion;
mod deputy;
mod distribution;
mod doors;
mod examples;
mod gitops;
mod identity;
mod leader;
mod leak;
mod lifecycle;
mod login;
mod manifests;
mod outage;
mod pod_identity;
mod rights;
mod role;
mod role_manifests;
mod role_rights;
mod root_key;
mod rotation;
mod sdk;
mod server_leak;
mod server_outage;
mod sources;
mod unreadable;
mod vault;
mod vault_crash;
mod vault_kms;
mod vault_manifests;
mod vault_outage;
mod vault_plugin;
mod vault_recovery;
mod vault_rights;
mod vault_user;
