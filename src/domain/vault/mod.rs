//! Vaults: secrets in versions, of which the cluster's objects hold nothing but ciphertext.
//!
//! ```text
//!   root key ──wraps──► ring key (version n) ──wraps──► data key ──seals──► payload
//!            └─wraps──► index key                one per version of a secret
//! ```
//!
//! Whoever reads all objects of a vault learns names, dates and lengths, never a value. Whoever can
//! write them can destroy, but can pass nothing off as what Claviger wrote: every ciphertext is
//! bound to the place it belongs to ([`envelope`]), and that place does not depend on a
//! Kubernetes UID, so a restored backup opens. `FORMAT.md` beside this file has every byte.
//!
//! Glossary, beyond that of the domain:
//! - **vault**: secrets under one key ring; known by a random [`VaultId`](name::VaultId) of its own.
//! - **secret**: a name and its history; case does not matter in the name.
//! - **entry**: one step of a history, an object of its own: a version, or a *marker* (no payload),
//!   such as the tombstone of a deletion.
//! - **sequence**: counts the entries of one secret. Order is by sequence, never by time.
//! - **version**: an entry with a value; known to users by its [`VersionId`](name::VersionId).
//! - **attributes**: what is known of an entry beside its value; readable, and under a MAC.
//! - **data key**: seals one payload, once.
//! - **ring key**, **key ring**: wraps data keys; a ring has versions, of which the newest wraps.
//!   To *re-wrap* is to put a data key under a newer one; the payload stays as it is.
//! - **index key**: the vault's permanent key for MACs and digests; it encrypts nothing.
//! - **root key**: wraps ring keys and index keys of all vaults.
//! - **shred**: to destroy a ring key, and with it everything under it.

pub mod attributes;
pub mod envelope;
#[cfg(test)]
mod fuzz;
pub mod generate;
pub mod history;
pub mod name;
pub mod part;
pub mod plan;
pub mod ring;
pub mod sync;
pub mod template;
#[cfg(test)]
mod vectors;
pub mod wrapped;
