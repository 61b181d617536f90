//! Access keys: the values that a caller presents to open a function, a host or a webhook.
//!
//! A key is a short printable text. Whoever holds it may use what it opens, so three things matter:
//! that nobody can guess it ([`strength`]), that a mistyped or misplaced one is recognised before
//! it is stored ([`mod@format`]), and that its text stays out of logs, statuses and error messages
//! ([`material`]). Keys that Claviger mints are *identifiable*: they carry the mark `AzFu` and end
//! with a checksum ([`marvin`]) which also tells what [`KeyKind`] they are. Keys that people bring
//! along may be any text that is strong enough.
//!
//! Everything here is pure: randomness is an argument, nothing is read or written, and no error
//! contains a value or a piece of one.

pub mod format;
pub mod marvin;
pub mod material;
pub mod strength;

pub use self::format::KeyKind;
pub use self::material::{Digest, KeyMaterial};
