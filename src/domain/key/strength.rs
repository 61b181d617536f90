//! Whether a value that a person brought may serve as an access key.
//!
//! The estimate is an upper limit: what a value's length and alphabet *allow*. It stops passwords,
//! placeholders and test values, not somebody who builds a guessable value of forty characters.
//! Random values of 128 bits in the usual spellings pass: 32 hex digits, 22 characters of base64, a
//! UUID (which holds 122 random bits).
//!
//! Any printable ASCII is allowed. A key travels in the header `x-functions-key`, where all of it
//! may stand, and as `?code=` in an address, where clients escape it as they do with any value.

use std::str;

use snafu::{OptionExt as _, Snafu, ensure};
use zeroize::Zeroizing;

use super::{
    KeyKind, KeyMaterial,
    format::{self, FormatError},
};

/// Accepts a value as an access key of a kind, or says why not.
///
/// A value that bears the mark of an identifiable key must be one, of this kind. Any other is
/// judged only by how hard it is to guess.
pub fn check_supplied(value: &[u8], kind: KeyKind) -> Result<KeyMaterial, Unfit> {
    ensure!(!value.is_empty(), EmptySnafu);
    let length = value.len();
    ensure!(length <= MAX_BYTES, TooLongSnafu { length });
    let text = str::from_utf8(value).ok().context(NotUtf8Snafu)?;
    ensure!(!text.ends_with(['\n', '\r']), LineEndSnafu);
    ensure!(
        !text.contains(|c: char| c.is_whitespace() || c.is_control()),
        WhitespaceSnafu
    );
    ensure!(text.is_ascii(), NotAsciiSnafu);

    let mut random = text.trim_end_matches('=');
    if format::bears_mark(text) {
        match format::verify(text, kind) {
            Ok(()) => random = &random[..random.len() - format::TAIL_CHARACTERS],
            Err(FormatError::OtherKind { kind, found }) => {
                return WrongKindSnafu { kind, found }.fail();
            }
            Err(source) => return Err(Unfit::Malformed { source }),
        }
    }
    // What repeats may do so with its padding.
    let bits = estimate_bits(random.as_bytes()).min(estimate_bits(text.as_bytes()));
    ensure!(bits >= MIN_BITS, WeakSnafu { length, bits });
    Ok(KeyMaterial::new(text))
}

/// Why a supplied value may not serve as a key. The messages give lengths, never the value.
#[derive(Clone, Debug, PartialEq, Eq, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum Unfit {
    /// Nothing at all.
    #[snafu(display("the value is empty; give a key, or leave it to Claviger to mint one"))]
    Empty,

    /// A key and a line break.
    #[snafu(display(
        "the value ends with a line break, so it was probably made with echo; use printf, or \
         kubectl create secret with --from-literal"
    ))]
    LineEnd,

    /// It was an identifiable key once.
    #[snafu(display(
        "the value looks like an identifiable key (it bears the mark AzFu) but was mistyped or \
         cut; copy the whole key again"
    ))]
    Malformed { source: FormatError },

    /// Text, but not what headers can carry.
    #[snafu(display(
        "the value has characters outside ASCII, which HTTP headers do not carry; use letters, \
         digits and punctuation"
    ))]
    NotAscii,

    /// Bytes that are no text.
    #[snafu(display(
        "the value is not UTF-8 text; keys are text, so encode random bytes as hex or base64 first"
    ))]
    NotUtf8,

    /// More than any host or proxy needs to take.
    #[snafu(display(
        "the value has {length} bytes and a key at most {MAX_BYTES}; give the key alone"
    ))]
    TooLong { length: usize },

    /// It could be guessed.
    #[snafu(display(
        "the value is too easy to guess: its {length} characters allow about {bits} bits and \
         {MIN_BITS} are needed; leave it to Claviger to mint one, or use openssl rand -hex 32"
    ))]
    Weak { length: usize, bits: usize },

    /// It could not be sent as it is.
    #[snafu(display(
        "the value contains white space or control characters, which get lost on the way; give the \
         key alone"
    ))]
    Whitespace,

    /// It is a key for something else.
    #[snafu(display(
        "the value is an identifiable {found} key and a {kind} key belongs here; check which of \
         them was meant"
    ))]
    WrongKind { kind: KeyKind, found: KeyKind },
}

impl Unfit {
    /// The stable word for this in conditions, events and metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Malformed { .. } => "Malformed",
            Self::NotAscii | Self::NotUtf8 => "NotText",
            Self::TooLong { .. } => "TooLong",
            Self::Weak { .. } => "Weak",
            Self::LineEnd | Self::Whitespace => "Whitespace",
            Self::WrongKind { .. } => "WrongKind",
        }
    }
}

/// Longer values are refused: headers of several KiB are dropped by proxies.
pub const MAX_BYTES: usize = 1024;

/// What a value's length and alphabet must allow at least.
pub const MIN_BITS: usize = 128;

fn estimate_bits(value: &[u8]) -> usize {
    let value = Zeroizing::new(ungrouped(value));
    let once = &value[..period(&value)];
    // Two sequences may be interleaved: 00112233…, 0f1e2d3c…
    let [even, odd] = [0, 1].map(|start| {
        let every_other = once.iter().skip(start).step_by(2).copied();
        Zeroizing::new(every_other.collect::<Vec<u8>>())
    });
    let characters = telling(once).min(telling(&even) + telling(&odd));
    characters * millibits(once) / 1000
}

/// Leaves out the separators of values in groups: UUIDs, `ABCDE-12345`, words joined with dots.
///
/// Only where the rest has one letter case: in base64url, `-` and `_` are as random as any other.
fn ungrouped(value: &[u8]) -> Vec<u8> {
    let rest = value.iter().filter(|byte| !b"-_.:".contains(byte));
    let of = |class: fn(&u8) -> bool| {
        rest.clone()
            .all(|byte| class(byte) || byte.is_ascii_digit())
    };
    if of(u8::is_ascii_lowercase) || of(u8::is_ascii_uppercase) {
        rest.copied().collect()
    } else {
        value.to_vec()
    }
}

/// The length of what is repeated, the last time perhaps not to its end; all of it if nothing is.
///
/// At least two full turns: a random value ends as it begins, and so has a longer period, too
/// often.
fn period(value: &[u8]) -> usize {
    (1..=value.len() / 2)
        .find(|&length| value[length..] == value[..value.len() - length])
        .unwrap_or(value.len())
}

/// How many characters have to be guessed: a familiar word or a repeated character counts as one,
/// a stretch of counting (`abcd…`, `9876…`) as two.
fn telling(value: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = value;
    while !rest.is_empty() {
        let (length, worth) = familiar_word(rest)
            .map(|word| (word.len(), 1))
            .or_else(|| sequence(rest))
            .unwrap_or((1, 1));
        count += worth;
        rest = &rest[length..];
    }
    count
}

fn familiar_word(value: &[u8]) -> Option<&'static str> {
    FAMILIAR.into_iter().find(|word| {
        let front = value.get(..word.len());
        front.is_some_and(|front| front.eq_ignore_ascii_case(word.as_bytes()))
    })
}

/// The length of the sequence a value begins with, and what it is worth.
fn sequence(value: &[u8]) -> Option<(usize, usize)> {
    [(stays as Step, 1), (goes_up, 2), (goes_down, 2)]
        .into_iter()
        .map(|(step, worth)| {
            let steps = value.windows(2).take_while(|pair| step(pair[0], pair[1]));
            (steps.count() + 1, worth)
        })
        .find(|&(length, _)| length >= MIN_SEQUENCE)
}

type Step = fn(u8, u8) -> bool;

fn stays(from: u8, to: u8) -> bool {
    from == to
}

fn goes_up(from: u8, to: u8) -> bool {
    // after 9 comes 0 on a keyboard and a in hex
    from.checked_add(1) == Some(to) || from == b'9' && matches!(to, b'0' | b'a' | b'A')
}

fn goes_down(from: u8, to: u8) -> bool {
    goes_up(to, from)
}

/// Thousandths of a bit that one character is worth: log2 of the smallest usual alphabet that has
/// all characters of the value.
///
/// There is no alphabet of 52 letters: one in a hundred random values of 22 base64 characters
/// happens to be letters only, and would be refused for it.
fn millibits(value: &[u8]) -> usize {
    let all = |class: fn(&u8) -> bool| value.iter().all(class);
    match distinct(value) {
        // Chance does not leave so few in a value of sufficient length, so they are the alphabet.
        0 | 1 => 0,
        2 => 1000,
        3 => 1584,
        4 => 2000,
        5 => 2321,
        _ if all(u8::is_ascii_digit) => 3321,
        _ if all(u8::is_ascii_hexdigit) => 4000,
        _ if all(u8::is_ascii_lowercase) || all(u8::is_ascii_uppercase) => 4700,
        _ if !value.iter().any(u8::is_ascii_uppercase) && all(u8::is_ascii_alphanumeric) => 5169,
        _ if !value.iter().any(u8::is_ascii_lowercase) && all(u8::is_ascii_alphanumeric) => 5169,
        _ if all(u8::is_ascii_alphanumeric) => 5954,
        _ if all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte)) => 6000,
        _ if all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte)) => 6000,
        _ => 6554,
    }
}

fn distinct(value: &[u8]) -> usize {
    (0..=u8::MAX).filter(|byte| value.contains(byte)).count()
}

/// Shorter sequences are left alone. 32 random hex digits are 128 bits without reserve; sequences
/// of this length appear in one of two million such values, those of six in one of seven thousand.
const MIN_SEQUENCE: usize = 8;

/// Words that placeholders and passwords are made of. None is short enough to appear by chance.
const FAMILIAR: [&str; 26] = [
    "1q2w3e4r",
    "access",
    "admin",
    "asdfgh",
    "azure",
    "changeme",
    "change",
    "claviger",
    "default",
    "example",
    "function",
    "hunter2",
    "letmein",
    "master",
    "passw0rd",
    "passwort",
    "password",
    "placeholder",
    "please",
    "qwertz",
    "qwerty",
    "replace",
    "sample",
    "secret",
    "system",
    "welcome",
];

#[cfg(test)]
mod tests {
    use base64::{
        Engine as _,
        engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
    };
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn refuses_what_is_no_single_line_of_ascii() {
        let key = "t7Qm2vXe9RkLs4HbYw8NcZ3dJfPgA6uT";
        for (value, reason) in [
            (String::new(), "Empty"),
            (format!("{key}\n"), "Whitespace"),
            (format!("{key}\r\n"), "Whitespace"),
            (format!(" {key}"), "Whitespace"),
            (format!("{key} {key}"), "Whitespace"),
            (format!("{key}\0"), "Whitespace"),
            (format!("{key}\x7f"), "Whitespace"),
            (format!("{key}\u{2003}"), "Whitespace"),
            (format!("{key}ü"), "NotText"),
            (format!("\u{feff}{key}"), "NotText"),
            (key.repeat(33), "TooLong"),
        ] {
            assert_eq!(reason_of(value.as_bytes()), reason, "{value:?}");
        }
        assert_eq!(reason_of(&[0xff; 40]), "NotText");
        assert!(check_supplied(key.as_bytes(), KeyKind::Master).is_ok());

        let unfit = check_supplied(format!("{key}\n").as_bytes(), KeyKind::System).unwrap_err();
        assert!(unfit.to_string().contains("echo") && unfit.to_string().contains("--from-literal"));
    }

    #[test]
    fn refuses_weak_values() {
        for value in [
            "x",
            "=====",
            "hunter2",
            "0!0AA00A1a=0!0AA00A1a=",
            "correct-horse-battery-staple",
            "correct.horse.battery.staple",
            "password-password-password-password-x",
            "PleaseChangeMeThisIsOnlyAnExample",
            "your-secret-password-example-here",
            "my-master-key-default-secret-function",
            // a good length, and nothing in it
            "00000000000000000000000000000000",
            "00000000-0000-0000-0000-000000000000",
            "12345678-1234-1234-1234-123456789012",
            "0123456789abcdef0123456789abcdef",
            "0123456789ABCDEFFEDCBA9876543210",
            "00112233445566778899aabbccddeeff",
            "000102030405060708090a0b0c0d0e0f",
            "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "deadbeefdeadbeefdeadbeefdeadbeef",
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
            "xK9vxK9vxK9vxK9vxK9vxK9vxK9vxK9vxK9vxK9vxK",
            "0110100110010110100101100110100110010110011010010110100110010110",
            // one character short of 128 bits in its alphabet
            "83920174650912837465019283746501928374",
            "9f86d081884c7d659a2feaa0c55ad01",
            "kqzjwxvfpmblrhtyucnogdseia",
            "kq7jwx4fpm2lrht9ucn0gd5e",
            "q7Rm2vXe9RkLs4HbYw8Nc",
            "q7Rm-vXe9RkLs4HbYw8N_",
            "q7R!2vXe9$kLs4%bYw8",
        ] {
            assert_eq!(reason_of(value.as_bytes()), "Weak", "{value}");
        }
    }

    #[test]
    fn accepts_random_values_in_every_usual_spelling() {
        for seed in 0..4000_u32 {
            let bytes = Sha256::digest(seed.to_be_bytes());
            let half = &bytes[..16];
            let hex = format!("{:032x}", u128::from_be_bytes(half.try_into().unwrap()));
            for value in [
                hex.to_uppercase(),
                format!(
                    "{}-{}-4{}-8{}-{}",
                    &hex[..8],
                    &hex[8..12],
                    &hex[13..16],
                    &hex[17..20],
                    &hex[20..]
                ),
                hex,
                URL_SAFE_NO_PAD.encode(half),
                STANDARD_NO_PAD.encode(half),
                STANDARD.encode(half),
                STANDARD.encode(bytes),
            ] {
                assert!(
                    check_supplied(value.as_bytes(), KeyKind::Function).is_ok(),
                    "{value}"
                );
            }
        }
        for value in [
            "q7Rm2vXe9RkLs4HbYw8NcZ",
            "q7R!2vXe9$kLs4%bYw8N",
            "839201746509128374650192837465019283746",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.q7Rm2vXe9RkLs4HbYw8NcZ",
        ] {
            assert!(
                check_supplied(value.as_bytes(), KeyKind::Function).is_ok(),
                "{value}"
            );
        }
    }

    #[test]
    fn identifiable_keys_must_be_whole_and_of_the_kind() {
        let random = [Sha256::digest("a"), Sha256::digest("b")].concat();
        let random = random[..format::RANDOM_BYTES].try_into().unwrap();
        for kind in KeyKind::ALL {
            let key = format::mint(kind, &random);
            let text = key.expose();
            for whole in [text, &text[..54]] {
                assert_eq!(
                    check_supplied(whole.as_bytes(), kind).unwrap().expose(),
                    whole
                );
                for other in KeyKind::ALL.into_iter().filter(|other| *other != kind) {
                    assert_eq!(
                        check_supplied(whole.as_bytes(), other),
                        WrongKindSnafu {
                            kind: other,
                            found: kind
                        }
                        .fail()
                    );
                }
            }
            let first = if text.starts_with('A') { "B" } else { "A" };
            let mistyped = format!("{first}{}", &text[1..]);
            for damaged in [
                &mistyped,
                &mistyped[..54],
                &text[..55],
                &text[..50],
                &text[2..],
            ] {
                assert_eq!(reason_of(damaged.as_bytes()), "Malformed", "{damaged}");
            }
        }
        // a right checksum does not make these harder to guess
        let zeros = format::mint(KeyKind::Function, &[0; format::RANDOM_BYTES]);
        assert_eq!(reason_of(zeros.expose().as_bytes()), "Weak");
    }

    proptest! {
        #[test]
        fn minted_keys_are_never_unfit(random: [u8; 32]) {
            // proptest likes zeros, which are weak; a hash of them is not
            let random = [Sha256::digest(random), Sha256::digest([random[0]])].concat();
            let random = random[..format::RANDOM_BYTES].try_into().unwrap();
            for kind in KeyKind::ALL {
                let key = format::mint(kind, &random);
                prop_assert_eq!(check_supplied(key.expose().as_bytes(), kind), Ok(key));
            }
        }

        #[test]
        fn any_bytes_are_judged_without_panic(value in prop::collection::vec(0_u8.., 0..1100)) {
            let _ = check_supplied(&value, KeyKind::Function);
        }

        #[test]
        fn any_ascii_is_judged_without_panic_and_without_being_repeated(value in "[!-~]{12,200}") {
            match check_supplied(value.as_bytes(), KeyKind::Master) {
                Ok(key) => prop_assert_eq!(key.expose(), value),
                Err(unfit) => {
                    prop_assert!(!unfit.to_string().contains(&value));
                    let debug = format!("{unfit:?}");
                    prop_assert!(!debug.contains(&value));
                }
            }
        }

        #[test]
        fn repeating_a_weak_value_does_not_help(value in "[!-~]{1,12}", times in 2..30_usize) {
            let unfit = check_supplied(value.repeat(times).as_bytes(), KeyKind::Master);
            prop_assert_eq!(unfit.unwrap_err().reason(), "Weak");
        }
    }

    fn reason_of(value: &[u8]) -> &'static str {
        check_supplied(value, KeyKind::Function).map_or_else(|unfit| unfit.reason(), |_| "fit")
    }
}
