//! Version `v1alpha1` of the kinds.

mod function_key;

pub use function_key::*;
