//! `claviger root-key`: backing up the root key, bringing it back, and proving that a backup works.
//!
//! Uses the kubeconfig's cluster. No command prints a key, not even a part of one; an identity is
//! read from a file and never taken from the command line.

use std::{
    fs,
    io::{self, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use kube::Client;
use snafu::{OptionExt, ResultExt, Snafu, ensure};
use zeroize::Zeroizing;

use super::plugin::print;
use crate::{
    k8s::root_key::Absent,
    recovery::{self, Finding, Noted, Recipients, Verdict},
};

/// What to do with the root key.
#[derive(Args, Clone, Debug)]
pub struct RootKeyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Claviger's own namespace, which holds the root key.
    #[arg(
        long,
        env = "CLAVIGER_SYSTEM_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "claviger-system",
        global = true
    )]
    pub system_namespace: String,
}

/// What can be done with the root key.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Write the root key to an age file that only the recipients can open.
    Backup {
        /// Public half of an age identity (age1…); may be given several times.
        #[arg(
            long = "recipient",
            required = true,
            value_name = "RECIPIENT",
            value_delimiter = ','
        )]
        recipients: Vec<String>,
        /// File to write, readable by nobody else; standard output when - or left out.
        #[arg(long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
    },
    /// Put the root key of a backup back into the cluster. Never replaces one.
    ///
    /// With --vault: wrap the key ring of that vault with the root key in the cluster, from what the
    /// controller has sealed to the recipients in the ring's own Secret. That is for when the root
    /// key or the KMS that wraps the ring is lost for good.
    Restore {
        /// File with the age identity that opens the backup; standard input when -.
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
        /// The backup, an age file; standard input when -.
        #[arg(long, value_name = "FILE", required_unless_present = "vault")]
        input: Option<PathBuf>,
        /// The vault whose key ring is to be wrapped anew.
        #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "input")]
        vault: Option<String>,
        /// Make a root key if there is none: the lost one cannot be restored after that.
        #[arg(long, requires = "vault", conflicts_with = "input")]
        new_root_key: bool,
    },
    /// Prove that a backup opens every vault of the cluster.
    ///
    /// Ends with status 0 when it does, and 1 otherwise.
    Verify {
        /// File with the age identity that opens the backup; standard input when -.
        #[arg(long, value_name = "FILE")]
        identity: PathBuf,
        /// The backup, an age file, or standard input when -; Secret claviger-root-key-backup when left out.
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Look at the vaults of this namespace only.
        #[arg(long, short)]
        namespace: Option<String>,
    },
}

/// Something could not be done.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The root key of the cluster is another one.
    #[snafu(display(
        "the backup is of root key {backup}, but the one in the cluster is {cluster}: make a new backup (`claviger root-key backup`)"
    ))]
    AnotherKey {
        /// The id of the one in the backup.
        backup: String,
        /// The id of the one in the cluster.
        cluster: String,
    },
    /// A vault does not open.
    #[snafu(display(
        "this backup opens {} of {all} vaults: see the reasons above, and make a new backup (`claviger root-key backup`) while the root key is there", all - closed
    ))]
    Closed {
        /// How many do not.
        closed: usize,
        /// How many there are.
        all: usize,
    },
    /// The terminal is gone.
    #[snafu(display("cannot print: {source}"))]
    Print {
        /// Why.
        source: io::Error,
    },
    /// A file could not be read.
    #[snafu(display("cannot read {}: {source}", shown(path)))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was not possible with the root key or the backup.
    #[snafu(display("{source}"))]
    Recovery {
        /// Why.
        source: recovery::Error,
    },
    /// A file is far too large.
    #[snafu(display("{} is longer than {MAX_FILE} bytes: give an age file or an identity file", path.display()))]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A vault is not given as it has to be.
    #[snafu(display("--vault takes a namespace and a name, as in shop/payments"))]
    Vault,
    /// Identity and backup are to come from standard input.
    #[snafu(display(
        "only one of --identity and --input can be standard input: give a file for the other"
    ))]
    TwoInputs,
    /// A file could not be written.
    #[snafu(display("cannot write {}: {source}", path.display()))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Performs the command.
///
/// # Errors
/// See [`Error`].
pub async fn run(
    client: Client,
    args: &RootKeyArgs,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    let system = &args.system_namespace;
    match &args.command {
        Command::Backup { recipients, output } => {
            back_up(&client, system, recipients, output, out).await
        }
        Command::Restore {
            identity,
            input: Some(input),
            ..
        } => restore(&client, system, identity, input, out).await,
        Command::Restore {
            identity,
            vault,
            new_root_key,
            ..
        } => {
            let absent = if *new_root_key {
                Absent::Mint
            } else {
                Absent::Refuse
            };
            let vault = vault.as_deref().and_then(|vault| vault.split_once('/'));
            restore_vault(
                &client,
                system,
                identity,
                vault.context(VaultSnafu)?,
                absent,
                out,
            )
            .await
        }
        Command::Verify {
            identity,
            input,
            namespace,
        } => {
            let what = Verification {
                system,
                identity,
                input: input.as_deref(),
                namespace: namespace.as_deref(),
            };
            verify(&client, &what, now, out).await
        }
    }
}

async fn back_up(
    client: &Client,
    system: &str,
    recipients: &[String],
    output: &Path,
    out: &mut impl Write,
) -> Result<(), Error> {
    let recipients = Recipients::parse(recipients).context(RecoverySnafu)?;
    let (id, file) = recovery::back_up(client, system, &recipients)
        .await
        .context(RecoverySnafu)?;
    if is_standard(output) {
        return out.write_all(file.as_bytes()).context(PrintSnafu);
    }
    write_private(output, file.as_bytes()).context(WriteSnafu { path: output })?;
    writeln!(
        out,
        "the backup of root key {id} is in {}; try it with `claviger root-key verify --identity … --input {0}`",
        output.display()
    )
    .context(PrintSnafu)
}

async fn restore(
    client: &Client,
    system: &str,
    identity: &Path,
    input: &Path,
    out: &mut impl Write,
) -> Result<(), Error> {
    ensure!(
        !(is_standard(identity) && is_standard(input)),
        TwoInputsSnafu
    );
    let key =
        recovery::open_root_key(&read_text(identity)?, &read(input)?).context(RecoverySnafu)?;
    let done = match recovery::restore(client, system, &key)
        .await
        .context(RecoverySnafu)?
    {
        recovery::Created::Before => "is there already",
        recovery::Created::Now => "is back in the cluster",
    };
    writeln!(out, "root key {} {done}", key.id()).context(PrintSnafu)
}

async fn restore_vault(
    client: &Client,
    system: &str,
    identity: &Path,
    vault: (&str, &str),
    absent: Absent,
    out: &mut impl Write,
) -> Result<(), Error> {
    let restored = recovery::restore_ring(client, system, vault, &read_text(identity)?, absent)
        .await
        .context(RecoverySnafu)?;
    let versions: Vec<String> = restored.versions.iter().map(u32::to_string).collect();
    let ((namespace, name), root_key) = (vault, restored.root_key);
    writeln!(
        out,
        "the key ring of vault {namespace}/{name} (version {}) is wrapped by root key {root_key}",
        versions.join(", ")
    )
    .context(PrintSnafu)
}

struct Verification<'a> {
    system: &'a str,
    identity: &'a Path,
    input: Option<&'a Path>,
    namespace: Option<&'a str>,
}

async fn verify(
    client: &Client,
    what: &Verification<'_>,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    let file = match what.input {
        Some(input) => {
            ensure!(
                !(is_standard(what.identity) && is_standard(input)),
                TwoInputsSnafu
            );
            read(input)?.to_vec()
        }
        None => recovery::stored_backup(client, what.system)
            .await
            .context(RecoverySnafu)?
            .backup
            .file
            .into_bytes(),
    };
    let key = recovery::open_root_key(&read_text(what.identity)?, &file).context(RecoverySnafu)?;
    let findings = recovery::verify(client, what.namespace, &key)
        .await
        .context(RecoverySnafu)?;
    show(&findings, out).context(PrintSnafu)?;
    let all = findings.len();
    let closed = findings
        .iter()
        .filter(|finding| finding.verdict != Verdict::Opens)
        .count();
    ensure!(closed == 0, ClosedSnafu { closed, all });
    let backup = key.id();
    let compared = match recovery::stored_id(client, what.system).await {
        Ok(Some(cluster)) if cluster == backup => "is the one in the cluster".to_owned(),
        Ok(Some(cluster)) => return AnotherKeySnafu { backup, cluster }.fail(),
        Ok(None) => "is not in the cluster (`claviger root-key restore` puts it back)".to_owned(),
        Err(error) => format!("could not be compared with the one in the cluster ({error})"),
    };
    writeln!(
        out,
        "\nroot key {backup} of the backup {compared}; {}",
        if all == 0 {
            "there are no vaults to try it on".to_owned()
        } else {
            format!("it opens all of {all} vaults")
        }
    )
    .context(PrintSnafu)?;
    if what.namespace.is_some() {
        return Ok(());
    }
    match recovery::note_verified(client, what.system, &key, now).await {
        Noted::Yes => Ok(()),
        Noted::Nowhere => writeln!(
            out,
            "there is no backup of this root key in the cluster on which to note that"
        )
        .context(PrintSnafu),
        Noted::Not(error) => {
            writeln!(out, "that could not be noted in the cluster: {error}").context(PrintSnafu)
        }
    }
}

fn show(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    let mut rows = vec![["NAMESPACE", "VAULT", "KEY RING", "OPENS"].map(str::to_owned)];
    let mut remarks = Vec::new();
    for finding in findings {
        let Finding {
            namespace, vault, ..
        } = finding;
        let versions: Vec<String> = finding.versions.iter().map(u32::to_string).collect();
        let opens = match &finding.verdict {
            Verdict::Closed(why) => {
                remarks.push(format!("{namespace}/{vault}: {why}"));
                "no"
            }
            Verdict::Opens => "yes",
        };
        rows.push([
            namespace.clone(),
            vault.clone(),
            if versions.is_empty() {
                "-".to_owned()
            } else {
                versions.join(",")
            },
            opens.to_owned(),
        ]);
    }
    print(&rows, &remarks, out)
}

/// A path in words; not if it is an identity that was given in place of the file that holds it.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    if text.to_ascii_lowercase().contains("age-secret-key-") {
        "an identity (give the file that holds it, and make a new one, for this one was shown)"
            .to_owned()
    } else {
        text
    }
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// Reads a file, or standard input; it is overwritten in memory when dropped.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let limit = u64::try_from(MAX_FILE).expect("it is small") + 1;
    // Large enough from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
    if is_standard(path) {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    }
    .context(ReadSnafu { path })?;
    ensure!(bytes.len() <= MAX_FILE, TooLongSnafu { path });
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<Zeroizing<String>, Error> {
    let bytes = read(path)?;
    let text = str::from_utf8(&bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text"))
        .context(ReadSnafu { path })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Writes a file that nobody else can read, whole or not at all; whatever was there is replaced.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// More than any backup or file of identities has.
const MAX_FILE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_backup_is_readable_by_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root-key.age");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write_private(&directory.path().join("no/file"), b"x").is_err());
    }

    #[test]
    fn files_that_are_too_long_or_no_text_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, vec![b'x'; MAX_FILE]).unwrap();
        assert_eq!(read_text(&path).unwrap().len(), MAX_FILE);
        fs::write(&path, vec![b'x'; MAX_FILE + 1]).unwrap();
        assert!(matches!(read(&path), Err(Error::TooLong { .. })));
        fs::write(&path, b"\xff").unwrap();
        assert!(matches!(read_text(&path), Err(Error::Read { .. })));
    }

    #[test]
    fn what_does_not_open_is_told_below_the_table() {
        let finding = |vault: &str, verdict| Finding {
            namespace: "shop".to_owned(),
            vault: vault.to_owned(),
            versions: vec![1, 2],
            verdict,
        };
        let mut out = Vec::new();
        show(
            &[
                finding("payments", Verdict::Opens),
                finding(
                    "x",
                    Verdict::Closed("its document cannot be read".to_owned()),
                ),
            ],
            &mut out,
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAMESPACE  VAULT     KEY RING  OPENS\n\
             shop       payments  1,2       yes\n\
             shop       x         1,2       no\n\
             \n\
             shop/x: its document cannot be read\n"
        );
    }
}
