//! Taking a key pair apart: a secret may hold several things in one text.
//!
//! A TLS pair is a PEM bundle: a private key, its certificate, and perhaps the certificates of the
//! authorities between it and a root. An SSH pair is a private key followed by the line that goes
//! into `authorized_keys`. Bundles that people bring along are taken apart the same way, whatever
//! stands between the blocks. Lines of a part end in a line feed, also where they came with another
//! ending; the last one has one too, as in the files that the usual tools write.

use snafu::{Snafu, ensure};
use zeroize::Zeroizing;

use crate::domain::key::KeyMaterial;

/// What is wanted of a secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// All of it, unchanged.
    #[default]
    Value,
    /// The PEM blocks `CERTIFICATE`, in their order.
    Certificate,
    /// The one PEM block that holds a private key of any kind.
    PrivateKey,
    /// The one line of an SSH public key.
    PublicKey,
}

/// Why a part is not to be had. No message repeats anything of the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum PartError {
    /// A block without end, within another, or of an odd shape.
    #[snafu(display(
        "line {line}: a PEM block is damaged (its BEGIN and END lines do not fit, or its lines are \
         no text); bring the whole bundle again"
    ))]
    Malformed { line: usize },

    /// It holds no such part.
    #[snafu(display(
        "the secret holds no {}; use the part Value, or a secret that holds a key pair", name(*part)
    ))]
    Missing { part: Part },

    /// Which of them is meant cannot be told.
    #[snafu(display(
        "the secret holds more than one {}; leave one of them in it", name(*part)
    ))]
    Several { part: Part },

    /// Too long to be looked at.
    #[snafu(display("the secret has more than {MAX_BYTES} bytes; that is no key pair"))]
    TooLong,
}

/// Longer secrets are not taken apart: no Secret of Kubernetes is longer.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Takes a part out of a secret.
pub fn part(secret: &KeyMaterial, part: Part) -> Result<KeyMaterial, PartError> {
    if part == Part::Value {
        return Ok(secret.clone());
    }
    let text = secret.expose();
    ensure!(text.len() <= MAX_BYTES, TooLongSnafu);

    // Of the secret's size (and a last line feed) from the start: text that grows leaves copies.
    let mut found = Zeroizing::new(String::with_capacity(text.len() + 1));
    let mut count = 0;
    let mut open: Option<&str> = None;
    for (index, line) in text.split('\n').enumerate() {
        let line = line.trim_end();
        let number = index + 1;
        let wanted = match open {
            Some(label) => {
                let malformed = MalformedSnafu { line: number };
                if line.starts_with(DASHES) {
                    ensure!(boundary(line, "END ") == Some(label), malformed);
                    open = None;
                } else {
                    ensure!(
                        line.bytes().all(|byte| matches!(byte, b' '..=b'~')),
                        malformed
                    );
                }
                is_wanted(part, label)
            }
            None => {
                if let Some(label) = boundary(line, "BEGIN ") {
                    open = Some(label);
                    let wanted = is_wanted(part, label);
                    count += usize::from(wanted);
                    wanted
                } else {
                    let wanted = part == Part::PublicKey && is_public_key(line);
                    count += usize::from(wanted);
                    wanted
                }
            }
        };
        if wanted {
            found.push_str(line);
            found.push('\n');
        }
    }
    let line = text.split('\n').count();
    ensure!(open.is_none(), MalformedSnafu { line });
    ensure!(count > 0, MissingSnafu { part });
    ensure!(
        count == 1 || part == Part::Certificate,
        SeveralSnafu { part }
    );
    Ok(KeyMaterial::new(found.as_str()))
}

const DASHES: &str = "-----";

/// The label of a line that begins or ends a block.
fn boundary<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.strip_prefix(DASHES)?
        .strip_prefix(word)?
        .strip_suffix(DASHES)
}

fn is_wanted(part: Part, label: &str) -> bool {
    match part {
        Part::Value | Part::PublicKey => false,
        Part::Certificate => label == "CERTIFICATE",
        Part::PrivateKey => label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY"),
    }
}

fn is_public_key(line: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"]
        .iter()
        .any(|kind| line.starts_with(kind))
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Value => "value",
        Part::Certificate => "certificate (a PEM block CERTIFICATE)",
        Part::PrivateKey => "private key (a PEM block PRIVATE KEY of any kind)",
        Part::PublicKey => "SSH public key (a line such as ssh-ed25519 AAAA…)",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEAF: &str = "-----BEGIN CERTIFICATE-----\nbGVhZg==\n-----END CERTIFICATE-----\n";
    const CHAIN: &str = "-----BEGIN CERTIFICATE-----\nY2hhaW4=\n-----END CERTIFICATE-----\n";

    fn key(kind: &str) -> String {
        format!("-----BEGIN {kind}PRIVATE KEY-----\na2V5\n-----END {kind}PRIVATE KEY-----\n")
    }

    fn take(text: &str, wanted: Part) -> Result<String, PartError> {
        part(&KeyMaterial::new(text), wanted).map(|part| part.expose().to_owned())
    }

    #[test]
    fn takes_bundles_apart() {
        for kind in ["", "RSA ", "EC ", "ENCRYPTED ", "OPENSSH "] {
            let key = key(kind);
            for bundle in [
                format!("{key}{LEAF}{CHAIN}"),
                format!("{LEAF}{CHAIN}{key}"),
                format!("subject=/CN=x\n{LEAF}\n\nissuer\n{key}{CHAIN}\n# end"),
                format!("{LEAF}{key}{CHAIN}").replace('\n', "\r\n"),
                format!("{LEAF}{key}{}", CHAIN.trim_end()),
            ] {
                assert_eq!(take(&bundle, Part::Value), Ok(bundle.clone()));
                assert_eq!(take(&bundle, Part::PrivateKey), Ok(key.clone()));
                assert_eq!(
                    take(&bundle, Part::Certificate),
                    Ok(format!("{LEAF}{CHAIN}"))
                );
                let part = Part::PublicKey;
                assert_eq!(take(&bundle, part), Err(PartError::Missing { part }));
            }
        }
        let ssh = format!("{}ssh-ed25519 AAAA me@here", key("OPENSSH "));
        assert_eq!(take(&ssh, Part::PrivateKey), Ok(key("OPENSSH ")));
        assert_eq!(
            take(&ssh, Part::PublicKey),
            Ok("ssh-ed25519 AAAA me@here\n".to_owned())
        );
    }

    #[test]
    fn other_blocks_stay_behind() {
        let curve =
            "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let bundle = format!("{curve}{}{LEAF}", key("EC "));
        assert_eq!(take(&bundle, Part::PrivateKey), Ok(key("EC ")));
        assert_eq!(take(&bundle, Part::Certificate), Ok(LEAF.to_owned()));
        // a header as in encrypted keys of old, and a label that only looks like one
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\na2V5\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(take(old, Part::PrivateKey), Ok(old.to_owned()));
        let part = Part::PrivateKey;
        let odd = old.replace("RSA PRIVATE KEY", "NONPRIVATE KEY");
        assert_eq!(take(&odd, part), Err(PartError::Missing { part }));
    }

    #[test]
    fn what_is_missing_double_or_damaged_is_refused() {
        let part = Part::PrivateKey;
        assert_eq!(take("hunter2", part), Err(PartError::Missing { part }));
        assert_eq!(take("", part), Err(PartError::Missing { part }));
        let two = format!("{}{}", key(""), key("EC "));
        assert_eq!(take(&two, part), Err(PartError::Several { part }));
        let part = Part::PublicKey;
        let two = "ssh-rsa AAAA\nssh-ed25519 AAAA";
        assert_eq!(take(two, part), Err(PartError::Several { part }));
        for (damaged, line) in [
            (LEAF.replace("-----END CERTIFICATE-----\n", ""), 3),
            (LEAF.replace("END CERTIFICATE", "END PRIVATE KEY"), 3),
            (LEAF.replace("bGVhZg==", "bGV\u{0}hZg=="), 2),
            (LEAF.replace("bGVhZg==", "é"), 2),
            (format!("-----BEGIN CERTIFICATE-----\n{LEAF}"), 2),
        ] {
            for part in [Part::Certificate, Part::PrivateKey, Part::PublicKey] {
                assert_eq!(take(&damaged, part), Err(PartError::Malformed { line }));
            }
        }
        let long = "x".repeat(MAX_BYTES + 1);
        assert_eq!(take(&long, Part::Certificate), Err(PartError::TooLong));
        assert_eq!(take(&long, Part::Value), Ok(long.clone()));
        let lines = "\n".repeat(MAX_BYTES);
        let part = Part::Certificate;
        assert_eq!(take(&lines, part), Err(PartError::Missing { part }));
    }

    #[test]
    fn no_error_repeats_the_secret() {
        for text in [
            "planted",
            "-----BEGIN planted-----\nplanted",
            "-----BEGIN A-----\n-----END planted-----",
        ] {
            for part in [Part::Certificate, Part::PrivateKey, Part::PublicKey] {
                let error = take(text, part).unwrap_err();
                assert!(!format!("{error} {error:?}").contains("planted"));
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_apart_or_refused(
            text in prop_oneof![
                any::<String>(),
                "((-----(BEGIN|END) (RSA )?(PRIVATE KEY|CERTIFICATE)-----|[A-Z=]{0,9}|ssh-[a-z ]{0,9})[\r\n]{0,2}){0,9}",
            ],
        ) {
            for wanted in [Part::Value, Part::Certificate, Part::PrivateKey, Part::PublicKey] {
                if let Ok(found) = take(&text, wanted) {
                    // what was taken out is what would be taken out again
                    prop_assert_eq!(take(&found, wanted), Ok(found.clone()));
                    prop_assert!(found.len() <= text.len() + 1);
                }
            }
        }
    }
}
