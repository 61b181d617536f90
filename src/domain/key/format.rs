//! The identifiable key format: 56 characters which tell what they are and when they are damaged.
//!
//! ```text
//! characters  0..44   33 random bytes                       (264 bits)
//!            44..48   the mark `AzFu`
//!            48..54   Marvin32 checksum of all that precedes, little-endian, under the kind's seed
//!            54..56   `==`, which may be left out
//! ```
//!
//! in URL-safe base64. The Functions host mints and, in strict mode, demands this form. The
//! checksum is of the decoded bytes; the host compares keys as text.
//!
//! [`verify`] accepts what the host's own check accepts, also keys of another length than 40 bytes,
//! with two exceptions where a key would pass that check and then open nothing:
//! - unused bits of the last character must be zero. Otherwise four texts would decode to one key,
//!   the host would open for one of them only, and a mistyped last character would go unnoticed;
//! - white space inside the text, which the host's decoder skips, is refused.
//!
//! One form is left out: the base62 checksum that the host's library knows for texts of 84 and 88
//! characters. No host mints it.

use std::fmt;

use base64::{
    DecodeError, Engine as _,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use snafu::{Snafu, ensure};
use zeroize::Zeroizing;

use super::{KeyMaterial, marvin};

/// What a key opens; each kind has a checksum seed of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyKind {
    /// Everything, the admin API included.
    Master,
    /// The webhooks of extensions.
    System,
    /// HTTP functions: one of them, or all of a host.
    Function,
}

impl KeyKind {
    /// Every kind, the most powerful first.
    pub const ALL: [Self; 3] = [Self::Master, Self::System, Self::Function];

    /// The lower-case word for this kind.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::System => "system",
            Self::Function => "function",
        }
    }

    /// The Marvin seed that keys of this kind are sealed with.
    pub const fn seed(self) -> u64 {
        u64::from_be_bytes(match self {
            Self::Master => *b"Master00",
            Self::System => *b"System00",
            Self::Function => *b"Functi00",
        })
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes a key of a kind from random bytes.
///
/// Of these the first 33 go into the key; mark and checksum take the place of the others.
pub fn mint(kind: KeyKind, random: &[u8; RANDOM_BYTES]) -> KeyMaterial {
    let mut bytes = Zeroizing::new(*random);
    bytes[MARK_AT..SEAL_AT].copy_from_slice(&MARK_BYTES);
    let checksum = marvin::hash32(kind.seed(), &bytes[..SEAL_AT]);
    bytes[SEAL_AT..].copy_from_slice(&checksum.to_le_bytes());
    KeyMaterial::new(URL_SAFE.encode(bytes.as_slice()))
}

/// Checks that a text is an identifiable key of a kind.
///
/// This finds damage, not weakness: a text made of one repeated letter and a right checksum passes.
pub fn verify(value: &str, kind: KeyKind) -> Result<(), FormatError> {
    let Inspection { kinds, fault, .. } = inspect(value);
    match (fault, kinds.first()) {
        (Some(fault), _) => Err(fault),
        (None, _) if kinds.contains(&kind) => Ok(()),
        (None, Some(&found)) => OtherKindSnafu { kind, found }.fail(),
        (None, None) => ChecksumSnafu.fail(),
    }
}

/// Tells what a text is, as far as that can be said without repeating it.
pub fn inspect(value: &str) -> Inspection {
    let (kinds, fault) = match open(value, MARK) {
        Ok(bytes) => {
            let kinds: Vec<_> = KeyKind::ALL
                .into_iter()
                .filter(|kind| is_sealed(&bytes, kind.seed()))
                .collect();
            let fault = kinds.is_empty().then_some(FormatError::Checksum);
            (kinds, fault)
        }
        Err(fault) => (Vec::new(), Some(fault)),
    };
    Inspection {
        length: value.len(),
        padded: value.ends_with('='),
        kinds,
        fault,
    }
}

/// Whether a text has the mark `AzFu` where an identifiable key has it, counted from either end.
///
/// Then it is, or once was, such a key: other random text looks like this once in eight million.
pub fn bears_mark(value: &str) -> bool {
    let data = value.trim_end_matches('=').as_bytes();
    data.get(44..48) == Some(MARK) || marked_part(data) == Some(MARK)
}

/// What [`inspect`] found out about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Its length in bytes.
    pub length: usize,
    /// Whether it ends with base64 padding; identifiable keys are valid with and without.
    pub padded: bool,
    /// The kinds whose checksum it bears: none, or one (two once in four billion).
    pub kinds: Vec<KeyKind>,
    /// What keeps it from being an identifiable key of any kind.
    pub fault: Option<FormatError>,
}

impl Inspection {
    /// Whether the text is an undamaged identifiable key of some kind.
    pub fn is_identifiable(&self) -> bool {
        self.fault.is_none()
    }
}

/// Why a text is not an identifiable key of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum FormatError {
    /// Neither base64 nor white space.
    #[snafu(display(
        "character {position} is none of A-Z, a-z, 0-9, - and _; copy the whole key again"
    ))]
    Alphabet { position: usize },

    /// The mark is there and the checksum is of no kind.
    #[snafu(display(
        "the checksum is wrong for every kind of key: a character was mistyped or lost; copy the \
         whole key again"
    ))]
    Checksum,

    /// The mark is at its distance from the start, but not from the end.
    #[snafu(display(
        "the end is not where it belongs: characters were lost or added; copy the whole key again"
    ))]
    Cut,

    /// Nothing at all.
    #[snafu(display("the value is empty; give a whole key"))]
    Empty,

    /// No base64 text has this many characters.
    #[snafu(display(
        "{length} characters before the padding cannot be base64: one was lost or added; copy the \
         whole key again"
    ))]
    Length { length: usize },

    /// A good key, of another kind.
    #[snafu(display(
        "this is a {found} key, not a {kind} key; use it in its own place, or bring a {kind} key"
    ))]
    OtherKind { kind: KeyKind, found: KeyKind },

    /// Some of the `=` are missing or too many.
    #[snafu(display("the padding at the end is incomplete or too long; copy the whole key again"))]
    Padding,

    /// `+` or `/` instead of `-` and `_`.
    #[snafu(display(
        "this is standard base64; identifiable keys have - in place of + and _ in place of /"
    ))]
    StandardAlphabet,

    /// Too long to be looked at.
    #[snafu(display("longer than {MAX_BYTES} bytes; give one key, which has 56 characters"))]
    TooLong,

    /// Not this kind of text at all.
    #[snafu(display(
        "not an identifiable key: the mark AzFu is missing; check that this is the value that was \
         meant"
    ))]
    Unmarked,

    /// The last character carries bits that no encoder sets.
    #[snafu(display(
        "the last character before the padding was mistyped: its unused bits are not zero; copy \
         the whole key again"
    ))]
    UnusedBits,

    /// White space or a control character.
    #[snafu(display(
        "contains white space or a control character (a line end from Windows is one); remove it"
    ))]
    Whitespace,
}

/// How many random bytes [`mint`] takes: the length of a key.
pub const RANDOM_BYTES: usize = 40;

/// Longer texts are refused unread.
pub const MAX_BYTES: usize = 4096;

/// How many characters, padding not counted, are mark and checksum: no part of the secret.
pub const TAIL_CHARACTERS: usize = 10;

/// The mark as it shows in the text. 33 bytes are 44 characters without a rest, so it is not
/// shifted.
const MARK: &[u8] = b"AzFu";
/// What [`MARK`] decodes to.
const MARK_BYTES: [u8; 3] = [0x03, 0x31, 0x6e];
const MARK_AT: usize = RANDOM_BYTES - 7;
const SEAL_AT: usize = RANDOM_BYTES - 4;

/// Decodes a text that bears the mark.
fn open(value: &str, mark: &[u8]) -> Result<Zeroizing<Vec<u8>>, FormatError> {
    ensure!(value.len() <= MAX_BYTES, TooLongSnafu);
    ensure!(!value.is_empty(), EmptySnafu);
    ensure!(
        !value.contains(|c: char| c.is_whitespace() || c.is_control()),
        WhitespaceSnafu
    );
    let data = value.trim_end_matches('=');
    if marked_part(data.as_bytes()) != Some(mark) {
        ensure!(!bears_mark(value), CutSnafu);
        return UnmarkedSnafu.fail();
    }
    ensure!(!value.contains(['+', '/']), StandardAlphabetSnafu);

    let bytes = URL_SAFE_NO_PAD.decode(data).map_err(|error| match error {
        DecodeError::InvalidByte(at, _) => FormatError::Alphabet { position: at + 1 },
        DecodeError::InvalidLastSymbol { .. } => FormatError::UnusedBits,
        DecodeError::InvalidLength(length) => FormatError::Length { length },
        DecodeError::InvalidPadding => FormatError::Padding,
    })?;
    let bytes = Zeroizing::new(bytes);

    let padding = value.len() - data.len();
    ensure!(
        padding == 0 || padding == data.len().wrapping_neg() % 4,
        PaddingSnafu
    );
    Ok(bytes)
}

/// The four characters where the mark should be.
fn marked_part(data: &[u8]) -> Option<&[u8]> {
    let tail = data.len().checked_sub(TAIL_CHARACTERS)?;
    data.get(tail..tail + MARK.len())
}

fn is_sealed(bytes: &[u8], seed: u64) -> bool {
    bytes
        .split_last_chunk::<4>()
        .is_some_and(|(body, seal)| marvin::hash32(seed, body) == u32::from_le_bytes(*seal))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn mints_and_accepts_every_positive_vector() {
        let rows = rows("positive");
        assert_eq!(rows.len(), 78);
        for row in &rows {
            let kind = kind(row["kind"].as_str().unwrap());
            assert_eq!(kind.seed(), seed(row));
            let random = bytes(&row["random_bytes_hex"]);
            let key = row["key"].as_str().unwrap();
            assert_eq!(
                mint(kind, &random.try_into().unwrap()).expose(),
                key,
                "{row}"
            );
            for other in KeyKind::ALL {
                let expected = if other == kind {
                    Ok(())
                } else {
                    OtherKindSnafu {
                        kind: other,
                        found: kind,
                    }
                    .fail()
                };
                assert_eq!(verify(key, other), expected, "{row}");
            }
            assert_eq!(
                inspect(key),
                Inspection {
                    length: 56,
                    padded: true,
                    kinds: vec![kind],
                    fault: None
                }
            );
            let sealed = bytes(&row["checksummed_36_bytes_hex"]);
            assert_eq!(
                marvin::hash32(kind.seed(), &sealed).to_le_bytes().to_vec(),
                bytes(&row["checksum_le_bytes_hex"])
            );
        }
    }

    #[test]
    fn refuses_every_negative_vector() {
        let rows = rows("negative");
        assert_eq!(rows.len(), 63);
        for row in &rows {
            assert!(!accepts(row), "{row}");
        }
    }

    #[test]
    fn accepts_missing_padding_and_refuses_unused_bits() {
        let rows = rows("edge");
        assert_eq!(rows.len(), 6);
        for row in &rows {
            // where the format leaves it open, this implementation is strict
            assert_eq!(accepts(row), row["valid"] == Value::Bool(true), "{row}");
            if row["valid"].is_string() {
                let fault = inspect(row["key"].as_str().unwrap()).fault;
                assert_eq!(fault, Some(FormatError::UnusedBits));
            }
        }
    }

    #[test]
    fn agrees_with_the_key_in_the_upstream_tests() {
        let rows = rows("known_from_upstream_tests");
        assert_eq!(rows.len(), 1);
        for (name, valid) in rows[0]["valid_for"].as_object().unwrap() {
            let key = rows[0]["key"].as_str().unwrap();
            assert_eq!(
                Value::Bool(verify(key, kind(name)).is_ok()),
                *valid,
                "{name}"
            );
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let key = mint(KeyKind::Function, &[0x5a; RANDOM_BYTES]);
        let key = key.expose();
        for (value, expected) in [
            (String::new(), FormatError::Empty),
            (format!("{key}\r"), FormatError::Whitespace),
            (format!("{key}\u{a0}"), FormatError::Whitespace),
            (
                key.replacen('W', "*", 1),
                FormatError::Alphabet { position: 1 },
            ),
            (
                key.replacen('W', "=", 1),
                FormatError::Alphabet { position: 1 },
            ),
            (
                key.replacen('W', "é", 1),
                FormatError::Alphabet { position: 1 },
            ),
            (key.replacen('W', "+", 1), FormatError::StandardAlphabet),
            (key.replacen("AzFu", "AzFx", 1), FormatError::Unmarked),
            (key.replacen('W', "X", 1), FormatError::Checksum),
            (key[..key.len() - 1].to_owned(), FormatError::Padding),
            (format!("{key}="), FormatError::Padding),
            (key[..53].to_owned(), FormatError::Cut),
            (key[..52].to_owned(), FormatError::Cut),
            (key[1..].to_owned(), FormatError::Length { length: 53 }),
            ("A".repeat(MAX_BYTES), FormatError::Unmarked),
            ("A".repeat(MAX_BYTES + 1), FormatError::TooLong),
            ("=".to_owned(), FormatError::Unmarked),
            ("hunter2".to_owned(), FormatError::Unmarked),
            ("AAAA".to_owned(), FormatError::Unmarked),
        ] {
            let found = inspect(&value);
            assert_eq!(found.fault, Some(expected), "{value}");
            assert!(found.kinds.is_empty() && !found.is_identifiable());
        }
    }

    proptest! {
        #[test]
        fn minted_keys_verify(random: [u8; 32], more: [u8; 8]) {
            let random = join(random, more);
            for kind in KeyKind::ALL {
                let key = mint(kind, &random);
                let text = key.expose();
                prop_assert_eq!(text.len(), 56);
                prop_assert_eq!(&text[44..48], "AzFu");
                prop_assert!(bears_mark(text));
                prop_assert_eq!(verify(text, kind), Ok(()));
                prop_assert_eq!(verify(text.trim_end_matches('='), kind), Ok(()));
                prop_assert_eq!(inspect(text).kinds, vec![kind]);
            }
        }

        #[test]
        fn no_single_character_may_change(
            random: [u8; 32], more: [u8; 8], at in 0..56_usize, with: char, kind in 0..3_usize,
        ) {
            let kind = KeyKind::ALL[kind];
            let key = mint(kind, &join(random, more));
            let with_any = replaced(key.expose(), at, with);
            prop_assume!(with_any != key.expose());
            prop_assert!(verify(&with_any, kind).is_err());
        }

        #[test]
        fn no_single_character_may_change_within_the_alphabet(
            random: [u8; 32], more: [u8; 8], at in 0..56_usize, with in "[A-Za-z0-9_=-]",
        ) {
            let key = mint(KeyKind::Master, &join(random, more));
            let changed = replaced(key.expose(), at, with.chars().next().unwrap());
            prop_assume!(changed != key.expose());
            prop_assert!(verify(&changed, KeyKind::Master).is_err());
        }

        #[test]
        fn any_text_is_judged_without_panic_and_without_being_repeated(
            value in "\\PC{16,80}|[A-Za-z0-9_=-]{16,80}|[A-Za-z0-9_-]{30,50}AzFu[A-Za-z0-9_-]{0,9}={0,3}",
        ) {
            let error = verify(&value, KeyKind::System).unwrap_err();
            prop_assert!(!error.to_string().contains(&value));
            let found = format!("{:?}", inspect(&value));
            prop_assert!(!found.contains(&value));
            bears_mark(&value);
        }

        #[test]
        fn any_string_is_judged_without_panic(value: String) {
            prop_assert_eq!(verify(&value, KeyKind::System).is_ok(), false);
        }
    }

    /// Judges a row with its own seed and mark, which need not be those of any kind.
    fn accepts(row: &Value) -> bool {
        let key = row["key"].as_str().unwrap();
        let mark = row["signature"].as_str().unwrap().as_bytes();
        let accepted = open(key, mark).is_ok_and(|bytes| is_sealed(&bytes, seed(row)));
        let kind = KeyKind::ALL
            .into_iter()
            .find(|kind| kind.seed() == seed(row));
        if let Some(kind) = kind.filter(|_| mark == MARK) {
            assert_eq!(verify(key, kind).is_ok(), accepted, "{row}");
        }
        accepted
    }

    fn rows(section: &str) -> Vec<Value> {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/azfu_keys.json")).unwrap();
        vectors[section].as_array().unwrap().clone()
    }

    fn kind(name: &str) -> KeyKind {
        KeyKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .unwrap()
    }

    fn seed(row: &Value) -> u64 {
        u64::from_str_radix(row["seed_hex"].as_str().unwrap(), 16).unwrap()
    }

    fn bytes(hex: &Value) -> Vec<u8> {
        let digits = hex.as_str().unwrap();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
    }

    fn join(front: [u8; 32], back: [u8; 8]) -> [u8; RANDOM_BYTES] {
        let mut all = [0; RANDOM_BYTES];
        all[..32].copy_from_slice(&front);
        all[32..].copy_from_slice(&back);
        all
    }

    fn replaced(text: &str, at: usize, with: char) -> String {
        format!("{}{with}{}", &text[..at], &text[at + 1..])
    }
}
