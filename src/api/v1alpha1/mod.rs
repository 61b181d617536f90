//! Version `v1alpha1` of the kinds.

mod common;
mod function_key;
mod role_assignment;
mod secret_vault;

pub use common::*;
pub use function_key::*;
pub use role_assignment::*;
pub use secret_vault::*;
