//! Version `v1alpha1` of the kinds.

mod common;
mod function_key;
mod secret_vault;

pub use common::*;
pub use function_key::*;
pub use secret_vault::*;
