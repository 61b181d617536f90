//! Thin effects over the Kubernetes API: each function has one verb and one object, and decides
//! nothing.

pub mod crd;
pub mod event;
pub mod object;
pub mod seal_key;
pub mod status;
pub mod workload;
