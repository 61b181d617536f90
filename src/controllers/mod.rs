//! What Claviger does by itself: observe, decide (in `domain`), perform, report.

pub mod context;
pub mod function_key;
pub mod queue;
