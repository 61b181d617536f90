//! Decisions, and nothing but decisions: no I/O, no clock, no source of randomness, no Kubernetes.
//! Time and fresh keys come in as arguments, so a year of rotations is a millisecond's test.
//!
//! Glossary:
//! - **key**: what opens a door of a function app; a [`layout::KeyRef`] names it.
//! - **value**, **material**: the text a client presents.
//! - **generation**: counts the values a key has had.
//! - **entry**: a data key of a Secret or `ConfigMap` and what stands under it.
//! - **store**: the object from which a Functions host reads the keys of one app.
//! - **copy**: a value handed to a client's Secret.
//! - **turn**: a new generation becomes current. *Rotation* keeps the previous value valid for the
//!   overlap; *revocation* keeps nothing.
//! - **ledger**: the bookkeeping beside the values.

pub mod access_token;
pub mod ca;
pub mod copies;
pub mod identity;
pub mod key;
pub mod layout;
pub mod ledger;
pub mod plan;
pub mod role;
pub mod rotation;
pub mod seal;
pub mod token_keys;
pub mod vault;
