//! Marvin32, the checksum that identifiable keys end with.
//!
//! Its seeds are public, so it proves nothing about where a key comes from: it finds mistyped keys
//! and keys of another kind, no more. All arithmetic wraps: a 36-byte input ends in the bare end
//! mark, which overflows for half of all keys and must not panic where overflow checks are on.

/// Returns both halves of the final state, the high one in the upper 32 bits.
pub fn hash64(seed: u64, data: &[u8]) -> u64 {
    let State { low, high } = State::over(seed, data);
    (u64::from(high) << 32) | u64::from(low)
}

/// Returns the two halves of the final state folded into one: the form keys are sealed with.
pub fn hash32(seed: u64, data: &[u8]) -> u32 {
    let State { low, high } = State::over(seed, data);
    low ^ high
}

struct State {
    low: u32,
    high: u32,
}

impl State {
    fn over(seed: u64, data: &[u8]) -> Self {
        let mut state = Self {
            low: (seed & 0xffff_ffff) as u32,
            high: (seed >> 32) as u32,
        };
        let (words, rest) = data.as_chunks::<4>();
        for word in words {
            state.absorb(*word);
        }

        // The last word is what is left over, the end mark, and zeros.
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()] = 0x80;
        state.absorb(last);
        state.mix();
        state
    }

    fn absorb(&mut self, word: [u8; 4]) {
        self.low = self.low.wrapping_add(u32::from_le_bytes(word));
        self.mix();
    }

    fn mix(&mut self) {
        self.high ^= self.low;
        self.low = self.low.rotate_left(20).wrapping_add(self.high);
        self.high = self.high.rotate_left(9) ^ self.low;
        self.low = self.low.rotate_left(27).wrapping_add(self.high);
        self.high = self.high.rotate_left(19);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn agrees_with_every_published_vector() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/azfu_keys.json")).unwrap();
        let rows = vectors["marvin"].as_array().unwrap();
        assert_eq!(rows.len(), 10);
        for row in rows {
            let seed = number(&row["seed_hex"]);
            let data = bytes(&row["data_hex"]);
            assert_eq!(hash64(seed, &data), number(&row["hash64_hex"]), "{row}");
            assert_eq!(
                u64::from(hash32(seed, &data)),
                number(&row["hash32_hex"]),
                "{row}"
            );
        }
    }

    proptest! {
        #[test]
        fn never_overflows(seed: u64, data: Vec<u8>) {
            let long = hash64(seed, &data);
            prop_assert_eq!(u64::from(hash32(seed, &data)), (long >> 32) ^ (long & 0xffff_ffff));
        }
    }

    fn number(hex: &Value) -> u64 {
        u64::from_str_radix(hex.as_str().unwrap(), 16).unwrap()
    }

    fn bytes(hex: &Value) -> Vec<u8> {
        let digits = hex.as_str().unwrap();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
    }
}
