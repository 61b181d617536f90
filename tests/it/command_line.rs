//! The binary as a person or a pipeline runs it.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

fn claviger(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads no input may be gone before it is written.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn minted_keys_verify_for_their_scope_and_for_no_other() {
    for (scope, other) in [
        ("function", "master"),
        ("host", "system"),
        ("system", "function"),
        ("master", "host"),
    ] {
        let minted = claviger(&["key", "mint", "--scope", scope, "--count", "3"], "");
        assert!(minted.status.success());
        let keys = text(&minted.stdout);
        assert_eq!(keys.lines().count(), 3);
        assert!(
            keys.lines()
                .all(|key| key.len() == 56 && &key[44..48] == "AzFu")
        );
        assert_eq!(
            claviger(&["key", "verify", "--scope", scope], &keys)
                .status
                .code(),
            Some(0)
        );
        let wrong = claviger(&["key", "verify", "--scope", other], &keys);
        assert_eq!(wrong.status.code(), Some(1));
        let says = text(&wrong.stdout) + &text(&wrong.stderr);
        assert!(
            keys.lines().all(|key| !says.contains(key)),
            "a value was repeated"
        );
        assert_eq!(says.lines().count(), 3, "{says}");
    }
}

#[test]
fn a_key_pasted_as_an_argument_is_refused_and_not_repeated() {
    let key = text(&claviger(&["key", "mint", "--scope", "host"], "").stdout)
        .trim()
        .to_owned();
    for args in [
        vec!["key", "verify", "--scope", "host", &key],
        vec!["key", "inspect", &key],
        vec!["key", &key],
        vec![&*key],
        vec!["key", "mint", "--scope", &key],
        vec!["controller", "--restart-delay", &key],
    ] {
        let refused = claviger(&args, "");
        assert_eq!(refused.status.code(), Some(2));
        assert!(!(text(&refused.stdout) + &text(&refused.stderr)).contains(&key));
    }
}

#[test]
fn what_is_wrong_with_a_value_is_told_by_line() {
    let answer = claviger(&["key", "inspect"], "hello\n");
    assert_eq!(answer.status.code(), Some(1));
    assert!(
        text(&answer.stdout).contains("line 1"),
        "{}",
        text(&answer.stdout)
    );
}

#[test]
fn a_controller_without_a_cluster_says_what_to_do() {
    let answer = Command::new(env!("CARGO_BIN_EXE_claviger"))
        .args(["controller", "--admin-address", "127.0.0.1:0"])
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    assert!(!answer.status.success());
    assert!(
        text(&answer.stderr).contains("KUBECONFIG"),
        "{}",
        text(&answer.stderr)
    );
}
