//! The format of a vault's ciphertext, seen by an implementation that is not ours.

use std::{path::Path, process::Command};

#[test]
fn an_independent_script_opens_the_vault_vectors_and_nothing_altered() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let set_up = Command::new(root.join("tests/vectors/setup.sh"))
        .output()
        .unwrap();
    assert!(
        set_up.status.success(),
        "tests/vectors/setup.sh failed: it needs python3 with venv and, the first time, the Python package index:\n{}",
        String::from_utf8_lossy(&set_up.stderr)
    );
    // Isolated: neither the environment's nor the user's modules can take the place of the pinned.
    let ran = Command::new(root.join("target/python/bin/python"))
        .args(["-I", "-B"])
        .arg(root.join("tests/vectors/open_vault.py"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    // 2 vaults of 6 entries: nothing was skipped.
    assert!(printed.contains(" 12 entries opened, "), "{printed}");
}
