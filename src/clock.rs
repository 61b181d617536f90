//! The one place where the time is read.

use jiff::Timestamp;

/// The time, to the millisecond: what is written down reads back equal.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
