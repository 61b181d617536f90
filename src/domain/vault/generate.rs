//! Making the value of a secret from random bytes.
//!
//! | alphabet              | characters                     | bits each | default length | bits |
//! |-----------------------|--------------------------------|-----------|----------------|------|
//! | `Alphanumeric`        | `0-9A-Za-z`                    | 5.954     | 32             | 190  |
//! | `AlphanumericSymbols` | `0-9A-Za-z` and `-._~` inside  | 6.044     | 32             | 193  |
//! | `Base64Url`           | base64url of whole bytes       | 8 a byte  | 43 (32 bytes)  | 256  |
//! | `Hex`                 | `0-9a-f`                       | 4         | 32             | 128  |
//! | `LowerAlphanumeric`   | `0-9a-z`                       | 5.169     | 32             | 165  |
//! | `Numeric`             | `0-9`                          | 3.321     | 40             | 132  |
//! | `Identifiable`        | see below                      |           | 50, fixed      | 238  |
//! | `Uuid`                | version 4, lower case          |           | 36, fixed      | 122  |
//!
//! So every default reaches 128 bits, but for UUIDs, which have no room for them.
//!
//! **Symbols** are the four that RFC 3986 never escapes, so a value can stand in an address as it
//! is. None of them is special to a shell, to YAML, to `.env` files or to SQL except at the start
//! of a word (`-x` is an option, `~x` a home directory), and a full stop at the end gets lost when
//! an address is copied out of a sentence; hence first and last character are letters or digits.
//! Every other symbol is special somewhere: `$`, `!`, `#`, `&`, `%`, `@`, `:`, `/`, `+`, quotes.
//!
//! **Identifiable** values tell what they are, as the tokens of code hosts do: `clv_`, 40 random
//! characters of base62, and 6 more which are the CRC-32 (ISO-HDLC) of the 44 before them, in
//! base62 (digits, then capitals, then small letters), padded with `0` on the left. A scanner finds
//! them by `\bclv_[0-9A-Za-z]{46}\b` and tells them from accidents by the checksum
//! ([`verify_identifiable`], or `claviger key inspect`).
//!
//! Characters are drawn by rejection: a random byte that would favour some of them is dropped.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use snafu::{Snafu, ensure};
use zeroize::Zeroizing;

use crate::domain::key::KeyMaterial;

/// What a generated value is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alphabet {
    /// Digits and letters.
    Alphanumeric,
    /// Digits, letters, and inside `-`, `.`, `_`, `~`.
    AlphanumericSymbols,
    /// Whole random bytes in base64url without padding.
    Base64Url,
    /// Digits and `a` to `f`.
    Hex,
    /// Digits and small letters.
    LowerAlphanumeric,
    /// Digits.
    Numeric,
    /// `clv_`, random characters and a checksum.
    Identifiable,
    /// A random UUID.
    Uuid,
}

impl Alphabet {
    /// Every alphabet.
    pub const ALL: [Self; 8] = [
        Self::Alphanumeric,
        Self::AlphanumericSymbols,
        Self::Base64Url,
        Self::Hex,
        Self::LowerAlphanumeric,
        Self::Numeric,
        Self::Identifiable,
        Self::Uuid,
    ];

    /// How long a value is where nobody says otherwise.
    pub const fn default_length(self) -> usize {
        match self {
            Self::Alphanumeric
            | Self::AlphanumericSymbols
            | Self::Hex
            | Self::LowerAlphanumeric => 32,
            Self::Base64Url => 43,
            Self::Numeric => 40,
            Self::Identifiable => IDENTIFIABLE_LENGTH,
            Self::Uuid => 36,
        }
    }

    /// Whether values have one length only.
    pub const fn is_fixed(self) -> bool {
        matches!(self, Self::Identifiable | Self::Uuid)
    }
}

/// How to make a value. [`Recipe::check`] it before use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// What it is made of.
    pub alphabet: Alphabet,
    /// How many characters it has.
    pub length: usize,
    /// How hard it must at least be to guess; UUIDs are exempt, they cannot be longer.
    pub min_entropy_bits: u32,
}

impl Recipe {
    /// The recipe for an alphabet where nothing else was said.
    pub const fn of(alphabet: Alphabet) -> Self {
        Self {
            alphabet,
            length: alphabet.default_length(),
            min_entropy_bits: DEFAULT_MIN_ENTROPY_BITS,
        }
    }

    /// How hard a value is to guess, in thousandths of a bit, rounded down.
    pub const fn entropy_millibits(&self) -> u64 {
        // as u64: a length has at most 64 bits
        let length = self.length as u64;
        match self.alphabet {
            Alphabet::Alphanumeric => length.saturating_mul(5954),
            Alphabet::AlphanumericSymbols => {
                let ends = if length < 2 { length } else { 2 };
                (length - ends).saturating_mul(6044) + ends * 5954
            }
            Alphabet::Base64Url => (length / 4 * 3 + length % 4 * 3 / 4).saturating_mul(8000),
            Alphabet::Hex => length.saturating_mul(4000),
            Alphabet::LowerAlphanumeric => length.saturating_mul(5169),
            Alphabet::Numeric => length.saturating_mul(3321),
            Alphabet::Identifiable => IDENTIFIABLE_RANDOM as u64 * 5954,
            Alphabet::Uuid => 122_000,
        }
    }

    /// Says what is wrong with the recipe.
    pub fn check(&self) -> Result<(), Unfit> {
        let &Self {
            alphabet,
            length,
            min_entropy_bits,
        } = self;
        if alphabet.is_fixed() {
            let fixed = alphabet.default_length();
            ensure!(length == fixed, FixedSnafu { alphabet, fixed });
        } else {
            ensure!(
                (MIN_LENGTH..=MAX_LENGTH).contains(&length),
                LengthSnafu { length }
            );
        }
        ensure!(
            alphabet != Alphabet::Base64Url || length % 4 != 1,
            NotBase64Snafu { length }
        );
        ensure!(
            (MIN_FLOOR..=MAX_FLOOR).contains(&min_entropy_bits),
            FloorSnafu { min_entropy_bits }
        );
        let bits = self.entropy_millibits() / 1000;
        ensure!(
            alphabet == Alphabet::Uuid
                || self.entropy_millibits() >= u64::from(min_entropy_bits) * 1000,
            WeakSnafu {
                length,
                alphabet,
                bits,
                min_entropy_bits
            }
        );
        Ok(())
    }
}

/// Why no value can be made as the recipe says.
#[derive(Clone, Debug, PartialEq, Eq, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum Unfit {
    /// The length of these is not to be chosen.
    #[snafu(display(
        "values of the alphabet {alphabet:?} always have {fixed} characters; leave the length out"
    ))]
    Fixed { alphabet: Alphabet, fixed: usize },

    /// No sensible demand.
    #[snafu(display(
        "a floor of {min_entropy_bits} bits is outside {MIN_FLOOR} to {MAX_FLOOR}; give one within"
    ))]
    Floor { min_entropy_bits: u32 },

    /// Too short or too long.
    #[snafu(display(
        "a length of {length} characters is outside {MIN_LENGTH} to {MAX_LENGTH}; give one within"
    ))]
    Length { length: usize },

    /// No number of bytes has so many characters of base64.
    #[snafu(display(
        "no base64 text has {length} characters; one more or one less will do (43 hold 32 bytes)"
    ))]
    NotBase64 { length: usize },

    /// It could be guessed.
    #[snafu(display(
        "{length} characters of the alphabet {alphabet:?} hold {bits} bits and {min_entropy_bits} \
         are wanted; make it longer, or lower minEntropyBits"
    ))]
    Weak {
        length: usize,
        alphabet: Alphabet,
        bits: u64,
        min_entropy_bits: u32,
    },
}

/// Makes a value. `random` fills what it is given with random bytes.
///
/// It ends whatever `random` gives: after [`MAX_DRAWS`] useless bytes for one character, which true
/// randomness does not give in 2^270 attempts, the next one is taken as it comes.
pub fn generate(recipe: &Recipe, random: &mut impl FnMut(&mut [u8])) -> KeyMaterial {
    let length = recipe.length.min(MAX_LENGTH);
    let text = match recipe.alphabet {
        Alphabet::Alphanumeric => draw(BASE62, length, random),
        Alphabet::AlphanumericSymbols => {
            // of exactly the size, so that it does not grow and leave copies behind
            let mut text = Zeroizing::new(String::with_capacity(length));
            let mut source = Source::new(random);
            for at in 0..length {
                let inside = at > 0 && at + 1 < length;
                text.push(source.character(if inside { SYMBOLS } else { BASE62 }));
            }
            text
        }
        Alphabet::Base64Url => {
            let mut bytes = Zeroizing::new(vec![0; length / 4 * 3 + length % 4 * 3 / 4]);
            random(&mut bytes);
            Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))
        }
        Alphabet::Hex => draw(&BASE36[..16], length, random),
        Alphabet::LowerAlphanumeric => draw(BASE36, length, random),
        Alphabet::Numeric => draw(&BASE36[..10], length, random),
        Alphabet::Identifiable => identifiable(random),
        Alphabet::Uuid => uuid(random),
    };
    KeyMaterial::new(text.as_str())
}

/// Whether a text is an undamaged [`Alphabet::Identifiable`] value. That it was made by Claviger is
/// not shown by this: anybody can compute the checksum.
pub fn verify_identifiable(value: &str) -> bool {
    value.len() == IDENTIFIABLE_LENGTH
        && bears_prefix(value)
        && value[PREFIX.len()..]
            .bytes()
            .all(|byte| BASE62.contains(&byte))
        && value.as_bytes()[CHECKSUM_AT..] == checksum(&value[..CHECKSUM_AT])
}

/// Whether a text begins as an [`Alphabet::Identifiable`] value does.
pub fn bears_prefix(value: &str) -> bool {
    value.is_ascii() && value.starts_with(PREFIX)
}

/// What [`Alphabet::Identifiable`] values begin with.
pub const PREFIX: &str = "clv_";
/// Fewer bits than this are refused where nobody says otherwise.
pub const DEFAULT_MIN_ENTROPY_BITS: u32 = 128;
/// The shortest value.
pub const MIN_LENGTH: usize = 4;
/// The longest value.
pub const MAX_LENGTH: usize = 1024;
/// The lowest floor.
pub const MIN_FLOOR: u32 = 16;
/// The highest floor.
pub const MAX_FLOOR: u32 = 4096;
/// How many bytes are drawn for one character before anything is taken.
pub const MAX_DRAWS: usize = 128;

const IDENTIFIABLE_RANDOM: usize = 40;
const CHECKSUM_AT: usize = PREFIX.len() + IDENTIFIABLE_RANDOM;
const CHECKSUM_LENGTH: usize = 6;
const IDENTIFIABLE_LENGTH: usize = CHECKSUM_AT + CHECKSUM_LENGTH;

const BASE62: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BASE36: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const SYMBOLS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-._~";

/// Random bytes, fetched many at a time.
struct Source<'a, F> {
    random: &'a mut F,
    bytes: Zeroizing<[u8; 64]>,
    next: usize,
}

impl<'a, F: FnMut(&mut [u8])> Source<'a, F> {
    fn new(random: &'a mut F) -> Self {
        let bytes = Zeroizing::new([0; 64]);
        let next = bytes.len();
        Self {
            random,
            bytes,
            next,
        }
    }

    fn byte(&mut self) -> u8 {
        if self.next == self.bytes.len() {
            (self.random)(self.bytes.as_mut_slice());
            self.next = 0;
        }
        self.next += 1;
        self.bytes[self.next - 1]
    }

    /// One character, each as likely as any other.
    fn character(&mut self, alphabet: &[u8]) -> char {
        let fair = 256 - 256 % alphabet.len();
        let mut byte = usize::from(self.byte());
        for _ in 0..MAX_DRAWS {
            if byte < fair {
                break;
            }
            byte = usize::from(self.byte());
        }
        char::from(alphabet[byte % alphabet.len()])
    }
}

fn draw(alphabet: &[u8], length: usize, random: &mut impl FnMut(&mut [u8])) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(length));
    let mut source = Source::new(random);
    for _ in 0..length {
        text.push(source.character(alphabet));
    }
    text
}

fn identifiable(random: &mut impl FnMut(&mut [u8])) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(IDENTIFIABLE_LENGTH));
    text.push_str(PREFIX);
    text.push_str(&draw(BASE62, IDENTIFIABLE_RANDOM, random));
    let checksum = checksum(&text);
    text.extend(checksum.map(char::from));
    text
}

fn checksum(text: &str) -> [u8; CHECKSUM_LENGTH] {
    let mut rest = crc32(text.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LENGTH];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// CRC-32/ISO-HDLC, a bit at a time: 44 bytes need no table.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc >>= 1;
            if carry == 1 {
                crc ^= 0xedb8_8320;
            }
        }
    }
    !crc
}

fn uuid(random: &mut impl FnMut(&mut [u8])) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 16]);
    random(bytes.as_mut_slice());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = Zeroizing::new(String::with_capacity(36));
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// Even bytes that are the same in every run: SHA-256 of a counter.
    fn seeded() -> impl FnMut(&mut [u8]) {
        let (mut counter, mut pool) = (0_u64, Vec::new());
        move |bytes| {
            for byte in bytes {
                if pool.is_empty() {
                    pool = Sha256::digest(counter.to_be_bytes()).to_vec();
                    counter += 1;
                }
                *byte = pool.pop().unwrap();
            }
        }
    }

    fn recipe(alphabet: Alphabet, length: usize) -> Recipe {
        Recipe {
            length,
            min_entropy_bits: MIN_FLOOR,
            ..Recipe::of(alphabet)
        }
    }

    fn characters(alphabet: Alphabet) -> &'static [u8] {
        match alphabet {
            Alphabet::Alphanumeric => BASE62,
            Alphabet::AlphanumericSymbols => SYMBOLS,
            Alphabet::Base64Url => {
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
            }
            Alphabet::Hex => &BASE36[..16],
            Alphabet::LowerAlphanumeric => BASE36,
            Alphabet::Numeric => &BASE36[..10],
            Alphabet::Identifiable | Alphabet::Uuid => unreachable!(),
        }
    }

    #[test]
    fn every_default_is_fit_and_but_for_uuids_has_128_bits() {
        let bits: Vec<_> = Alphabet::ALL
            .into_iter()
            .map(|alphabet| {
                let recipe = Recipe::of(alphabet);
                assert_eq!(recipe.check(), Ok(()));
                let value = generate(&recipe, &mut seeded());
                assert_eq!(value.expose().len(), alphabet.default_length());
                recipe.entropy_millibits() / 1000
            })
            .collect();
        assert_eq!(bits, [190, 193, 256, 128, 165, 132, 238, 122]);
    }

    #[test]
    fn entropy_is_never_more_than_the_alphabet_allows() {
        for alphabet in &Alphabet::ALL[..6] {
            let size = characters(*alphabet).len();
            for length in MIN_LENGTH..=MAX_LENGTH {
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let allowed = (size as f64).log2() * 1000.0 * length as f64;
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let said = recipe(*alphabet, length).entropy_millibits() as f64;
                assert!(said <= allowed, "{alphabet:?} {length}");
                assert!(said >= allowed - 10_000.0 || said >= allowed * 0.999);
            }
        }
    }

    #[test]
    fn unfit_recipes_are_refused() {
        let of = Recipe::of;
        for (recipe, part) in [
            (recipe(Alphabet::Hex, 3), "outside 4 to 1024"),
            (recipe(Alphabet::Hex, 1025), "outside 4 to 1024"),
            (recipe(Alphabet::Base64Url, 41), "no base64 text"),
            (recipe(Alphabet::Uuid, 32), "always have 36"),
            (recipe(Alphabet::Identifiable, 49), "always have 50"),
            (
                Recipe {
                    length: 31,
                    ..of(Alphabet::Hex)
                },
                "hold 124 bits and 128",
            ),
            (
                Recipe {
                    length: 38,
                    ..of(Alphabet::Numeric)
                },
                "hold 126 bits",
            ),
            (
                Recipe {
                    length: 21,
                    ..of(Alphabet::Alphanumeric)
                },
                "hold 125 bits",
            ),
            (
                Recipe {
                    length: 22,
                    ..of(Alphabet::Base64Url)
                },
                "",
            ),
            (
                Recipe {
                    min_entropy_bits: 239,
                    ..of(Alphabet::Identifiable)
                },
                "hold 238 bits",
            ),
            (
                Recipe {
                    min_entropy_bits: 15,
                    ..of(Alphabet::Hex)
                },
                "floor",
            ),
            (
                Recipe {
                    min_entropy_bits: 4097,
                    ..of(Alphabet::Hex)
                },
                "floor",
            ),
            (
                Recipe {
                    min_entropy_bits: 4096,
                    ..of(Alphabet::Uuid)
                },
                "",
            ),
        ] {
            match recipe.check() {
                Ok(()) => assert_eq!(part, "", "{recipe:?}"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(!part.is_empty() && error.contains(part), "{error}");
                }
            }
        }
    }

    #[test]
    fn characters_are_drawn_evenly() {
        // The 99.999th percentile of chi-square with k degrees of freedom is below
        // k + 4.3·√(2k) + 12 for the sizes here.
        let mut random = seeded();
        for alphabet in &Alphabet::ALL[..6] {
            let size = characters(*alphabet).len();
            let mut counts = [0_u32; 128];
            let mut drawn = 0_u32;
            for _ in 0..200 {
                let value = generate(&recipe(*alphabet, 1024), &mut random);
                let inside = &value.expose().as_bytes()[1..1023];
                for byte in inside {
                    counts[usize::from(*byte)] += 1;
                    drawn += 1;
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let expected = f64::from(drawn) / size as f64;
            let chi: f64 = characters(*alphabet)
                .iter()
                .map(|byte| (f64::from(counts[usize::from(*byte)]) - expected).powi(2) / expected)
                .sum();
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let freedom = (size - 1) as f64;
            let limit = freedom + 4.3 * (2.0 * freedom).sqrt() + 12.0;
            assert!(chi < limit, "{alphabet:?}: {chi} of {limit}");
        }
    }

    #[test]
    fn biased_bytes_are_dropped() {
        // 248 and above would favour the first eight of 62 characters
        let mut next = 247_u8;
        let mut random = |bytes: &mut [u8]| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(1);
            }
        };
        let value = generate(&recipe(Alphabet::Alphanumeric, 4), &mut random);
        assert_eq!(value.expose(), "z012");
    }

    #[test]
    fn ends_whatever_the_bytes_are() {
        for byte in 0..=255 {
            for alphabet in Alphabet::ALL {
                let length = if alphabet.is_fixed() {
                    alphabet.default_length()
                } else {
                    MAX_LENGTH
                };
                let mut asked = 0;
                let value = generate(&recipe(alphabet, length), &mut |bytes: &mut [u8]| {
                    asked += bytes.len();
                    bytes.fill(byte);
                });
                assert_eq!(value.expose().len(), length);
                assert!(asked <= (MAX_DRAWS + 1) * MAX_LENGTH);
            }
        }
    }

    #[test]
    fn identifiable_values_verify_and_damaged_ones_do_not() {
        // python3: zlib.crc32(b"123456789") == 0xcbf43926
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        // 0 in forty places; python3: zlib.crc32(b"clv_" + b"0" * 40) in base62
        let zeros = generate(
            &Recipe::of(Alphabet::Identifiable),
            &mut |bytes: &mut [u8]| {
                bytes.fill(0);
            },
        );
        assert_eq!(
            zeros.expose(),
            format!("clv_{}{}", "0".repeat(40), ZEROS_CRC)
        );

        let mut random = seeded();
        for _ in 0..20 {
            let value = generate(&Recipe::of(Alphabet::Identifiable), &mut random);
            let value = value.expose();
            assert!(verify_identifiable(value));
            for at in 0..value.len() {
                for other in ["0", "z", "_", "é"] {
                    let mut damaged = value.to_owned();
                    damaged.replace_range(at..=at, other);
                    assert_eq!(verify_identifiable(&damaged), damaged == value);
                }
                assert!(!verify_identifiable(&value[..at]));
            }
            assert!(!verify_identifiable(&format!("{value}0")));
        }
    }
    const ZEROS_CRC: &str = "3CR4Dp";

    #[test]
    fn uuids_are_of_version_4() {
        let fill = |with: u8| {
            generate(&Recipe::of(Alphabet::Uuid), &mut |bytes: &mut [u8]| {
                bytes.fill(with);
            })
        };
        assert_eq!(fill(0).expose(), "00000000-0000-4000-8000-000000000000");
        assert_eq!(fill(255).expose(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    proptest! {
        #[test]
        fn values_have_length_and_alphabet(
            index in 0_usize..6,
            length in MIN_LENGTH..=MAX_LENGTH,
            stream in proptest::collection::vec(any::<u8>(), 1..500),
        ) {
            let alphabet = Alphabet::ALL[index];
            let recipe = recipe(alphabet, length);
            prop_assume!(recipe.check().is_ok());
            let mut endless = stream.iter().copied().cycle();
            let mut random = |bytes: &mut [u8]| {
                bytes.fill_with(|| endless.next().unwrap());
            };
            let value = generate(&recipe, &mut random);
            let value = value.expose().as_bytes();
            prop_assert_eq!(value.len(), length);
            prop_assert!(value.iter().all(|byte| characters(alphabet).contains(byte)));
            if alphabet == Alphabet::AlphanumericSymbols {
                prop_assert!(value[0].is_ascii_alphanumeric());
                prop_assert!(value[length - 1].is_ascii_alphanumeric());
            }
            if alphabet == Alphabet::Base64Url {
                prop_assert!(URL_SAFE_NO_PAD.decode(value).is_ok());
            }
        }

        #[test]
        fn any_text_can_be_verified(text in "(clv_)?.{0,60}") {
            prop_assert!(!verify_identifiable(&text));
        }
    }
}
