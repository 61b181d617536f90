//! What a version of a secret costs to seal and to open, as a ratio to the bare AEAD.
//!
//! Sealing is all that one version needs: its payload under a data key of its own, that key under
//! the ring key, the MAC of its attributes, and the envelope's text. Opening is the reverse: text,
//! MAC, data key, payload. The bare AEAD seals and opens the same value under one key that was
//! prepared before: what encrypting without key ring, binding and attributes would cost. Both take
//! turns within one run, so that only what they differ in shows.
//!
//! ```text
//! cargo bench --bench vault_envelope      some ten seconds
//!   BENCH_QUICK=1    a second
//! ```
//!
//! It always ends well: a time is never a test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use claviger::domain::vault::{
    envelope::{Binding, DataKey, Envelope, RingKey, VALUE_LIMIT},
    name::{SecretName, VaultId, VaultRef, VersionId},
};
use zeroize::Zeroizing;

const ATTRIBUTES: &str = r#"{"kind":"version","enabled":true,"created":"2026-11-22T08:00:00Z","notBefore":"2026-11-22T08:00:00Z","contentType":"text/plain","tags":{"team":"payments"}}"#;
const NONCE: [u8; 12] = [7; 12];

fn main() {
    let quick = std::env::var("BENCH_QUICK").is_ok_and(|quick| quick != "0");
    let (rounds, slice) = if quick {
        (5, Duration::from_millis(10))
    } else {
        (41, Duration::from_millis(20))
    };
    println!("one version of a secret against the bare AEAD, medians of {rounds} rounds");
    println!(
        "{:>12}{:>8}{:>14}{:>14}{:>10}{:>20}",
        "value", "", "bare, µs", "version, µs", "ratio", "ratios of rounds"
    );
    for bytes in [1024, 32, VALUE_LIMIT] {
        measure(bytes, rounds, slice);
    }
}

fn measure(bytes: usize, rounds: usize, slice: Duration) {
    let value = vec![42; bytes];
    let vault = VaultRef {
        id: VaultId([1; 16]),
        namespace: "shop".to_owned(),
        name: "payments".to_owned(),
    };
    let secret = SecretName::parse("db-password").unwrap();
    let binding = Binding {
        vault: &vault,
        secret: &secret,
        sequence: 7,
        version: VersionId([2; 16]),
    };
    let ring = RingKey::new(1, Zeroizing::new([3; 32]), &vault.id);
    let bare = Aes256Gcm::new(&[4; 32].into());
    // As much as one payload is bound to.
    let bound = [5; 91];

    let seal_version = || {
        let key = DataKey::new(Zeroizing::new([6; 32]));
        let payload = key.seal(&binding, NONCE, black_box(&value));
        let wrapped = ring.wrap(&binding, &key, NONCE);
        let mac = ring.mac(&binding, Some(&wrapped), ATTRIBUTES);
        let envelope = Envelope {
            ring: ring.version(),
            wrapped: Some(wrapped),
            mac,
        };
        (payload, envelope.to_string())
    };
    let seal_bare = || {
        let payload = Payload {
            msg: black_box(&value),
            aad: &bound,
        };
        bare.encrypt(&NONCE.into(), payload).unwrap()
    };
    let (payload, text) = seal_version();
    let sealed = seal_bare();
    let open_version = || {
        let envelope: Envelope = black_box(&text).parse().unwrap();
        ring.verify(&binding, &envelope, ATTRIBUTES).unwrap();
        let key = ring
            .unwrap(&binding, envelope.wrapped.as_ref().unwrap())
            .unwrap();
        key.open(&binding, black_box(&payload)).unwrap()
    };
    let open_bare = || {
        let payload = Payload {
            msg: black_box(&sealed),
            aad: &bound,
        };
        bare.decrypt(&NONCE.into(), payload).unwrap()
    };
    assert!(open_version().as_slice() == open_bare());

    let mut seals = Vec::new();
    let mut opens = Vec::new();
    let mut both = Vec::new();
    for _ in 0..rounds {
        let seal = pair(slice, seal_bare, seal_version);
        let open = pair(slice, open_bare, open_version);
        both.push(Pair {
            bare: seal.bare + open.bare,
            version: seal.version + open.version,
        });
        seals.push(seal);
        opens.push(open);
    }
    report(bytes, "seal", &seals);
    report(bytes, "open", &opens);
    report(bytes, "both", &both);
}

/// Seconds for one of each.
struct Pair {
    bare: f64,
    version: f64,
}

/// Measures both in turns, the bare one before and after.
fn pair<A, B>(slice: Duration, bare: impl Fn() -> A, version: impl Fn() -> B) -> Pair {
    let before = seconds(slice, &bare);
    let version = seconds(slice, version);
    let after = seconds(slice, &bare);
    Pair {
        bare: f64::midpoint(before, after),
        version,
    }
}

/// Seconds for one, from as many as fit into that time.
fn seconds<T>(slice: Duration, act: impl Fn() -> T) -> f64 {
    let begun = Instant::now();
    let mut done = 0_u32;
    loop {
        // Looking at the clock costs, too.
        for _ in 0..16 {
            black_box(act());
        }
        done += 16;
        let elapsed = begun.elapsed();
        if elapsed >= slice {
            return elapsed.as_secs_f64() / f64::from(done);
        }
    }
}

fn report(bytes: usize, what: &str, pairs: &[Pair]) {
    let of = |pick: fn(&Pair) -> f64| sorted(pairs.iter().map(pick).collect());
    let ratios = of(|pair| pair.version / pair.bare);
    println!(
        "{:>12}{what:>8}{:>14.2}{:>14.2}{:>10.2}{:>20}",
        format!("{bytes} B"),
        median(&of(|pair| pair.bare)) * 1e6,
        median(&of(|pair| pair.version)) * 1e6,
        median(&ratios),
        format!("{:.2}..{:.2}", ratios[0], ratios[ratios.len() - 1]),
    );
}

fn sorted(mut of: Vec<f64>) -> Vec<f64> {
    of.sort_by(f64::total_cmp);
    of
}

/// Of an odd number.
fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
