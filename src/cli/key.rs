//! `claviger key`: minting keys and judging them, at a prompt or in a script.
//!
//! Needs no cluster and no settings. Values come in on standard input only: what stands on a
//! command line is seen by every user of the machine and stays in the shell's history. Output names
//! a value by its line number. For a value that is given as an argument after all, see
//! [`without_values`].

use std::{
    fmt,
    io::{self, BufRead, Read as _, Write},
    process::ExitCode,
    str,
};

use clap::{
    Args, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};
use snafu::{ErrorCompat as _, ResultExt as _, Snafu, ensure};
use zeroize::Zeroizing;

use crate::domain::{
    key::{
        KeyKind,
        format::{self, FormatError},
    },
    vault::generate,
};

/// Mint access keys, or tell what given ones are
#[derive(Args, Clone, Copy, Debug)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Copy, Debug)]
enum Command {
    /// Print new keys, one a line
    Mint {
        /// What the keys are to open
        #[arg(long)]
        scope: Scope,
        /// How many keys to print
        #[arg(long, default_value_t = 1, value_parser = parse_count)]
        count: u32,
    },
    /// Tell what the values on standard input are, one a line
    ///
    /// Ends with status 0 when all of them are identifiable keys of some kind, or identifiable
    /// values that a vault generated (clv_…), and 1 otherwise.
    Inspect,
    /// Check that the values on standard input, one a line, are keys for a scope
    ///
    /// Ends with status 0 when all of them are, and 1 otherwise.
    Verify {
        /// What the keys are to open
        #[arg(long)]
        scope: Scope,
    },
}

/// What a key opens, in the words of the Functions host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// One function
    Function,
    /// Every function of a host; the same kind of key as for one function
    Host,
    /// The webhooks of an extension
    System,
    /// Everything, the admin API included
    Master,
}

impl Scope {
    /// The kind of key that opens it.
    pub const fn kind(self) -> KeyKind {
        match self {
            Self::Function | Self::Host => KeyKind::Function,
            Self::System => KeyKind::System,
            Self::Master => KeyKind::Master,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function",
            Self::Host => "host",
            Self::System => "system",
            Self::Master => "master",
        })
    }
}

/// Performs the command.
///
/// Answers 0 when every value was valid (or minted), 1 when one was not, and 2 with a sentence on
/// `stderr` when the work could not be done.
pub fn run(
    args: KeyArgs,
    stdin: impl BufRead,
    mut stdout: impl Write,
    mut stderr: impl Write,
    random: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> ExitCode {
    let verdict = match args.command {
        Command::Mint { scope, count } => mint(scope, count, &mut stdout, random),
        Command::Inspect => judge_lines(stdin, &mut stdout, inspect),
        Command::Verify { scope } => judge_lines(stdin, &mut stdout, |line| verify(line, scope)),
    };
    match verdict.and_then(|verdict| stdout.flush().context(WriteSnafu).map(|()| verdict)) {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(Verdict::Invalid) => ExitCode::from(1),
        Err(error) => {
            let chain: Vec<_> = error.iter_chain().map(ToString::to_string).collect();
            // where standard error is closed too, the status is all that can be said
            let _ = writeln!(stderr, "error: {}", chain.join(": "));
            ExitCode::from(2)
        }
    }
}

/// Takes out of a command-line error everything that the user typed, for it may be a key.
///
/// clap repeats unknown arguments, unknown subcommands and bad values. Names and allowed values of
/// our own arguments stay.
pub fn without_values(mut error: clap::Error) -> clap::Error {
    error.remove(ContextKind::Suggested);
    let typed: &[_] = if error.kind() == ErrorKind::UnknownArgument {
        &[ContextKind::InvalidArg]
    } else {
        &[ContextKind::InvalidValue, ContextKind::InvalidSubcommand]
    };
    for &kind in typed {
        if error.get(kind).is_some() {
            error.insert(kind, ContextValue::String(NOT_SHOWN.to_owned()));
        }
    }
    error
}

/// Why the work could not be done.
#[derive(Debug, Snafu)]
enum KeyError {
    #[snafu(display("no random bytes could be had"))]
    Random { source: io::Error },

    #[snafu(display("line {number} of standard input could not be read"))]
    ReadLine { number: usize, source: io::Error },

    #[snafu(display("no value was given; give values on standard input, one a line"))]
    NoLine,

    #[snafu(display("more than {MAX_LINES} values were given; the rest was not looked at"))]
    TooManyLines,

    #[snafu(display("standard output could not be written"))]
    Write { source: io::Error },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Valid,
    Invalid,
}

fn mint(
    scope: Scope,
    count: u32,
    stdout: &mut impl Write,
    mut random: impl FnMut(&mut [u8]) -> io::Result<()>,
) -> Result<Verdict, KeyError> {
    let mut bytes = Zeroizing::new([0; format::RANDOM_BYTES]);
    for _ in 0..count {
        random(bytes.as_mut_slice()).context(RandomSnafu)?;
        let key = format::mint(scope.kind(), &bytes);
        writeln!(stdout, "{}", key.expose()).context(WriteSnafu)?;
    }
    Ok(Verdict::Valid)
}

/// Judges every line and prints a sentence about each; one invalid value makes the whole invalid.
fn judge_lines(
    mut stdin: impl BufRead,
    stdout: &mut impl Write,
    judge: impl Fn(&str) -> (Verdict, String),
) -> Result<Verdict, KeyError> {
    let mut all = Verdict::Valid;
    // Large enough for any line from the start: a buffer that grows leaves copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES));
    let mut number = 0;
    while read_line(&mut stdin, &mut line).context(ReadLineSnafu { number: number + 1 })? {
        ensure!(number < MAX_LINES, TooManyLinesSnafu);
        number += 1;
        let (verdict, sentence) = match str::from_utf8(&line) {
            // a long line was cut, perhaps within a character, so its length is what counts
            _ if line.len() > format::MAX_BYTES => (
                Verdict::Invalid,
                format!("not valid: {}", FormatError::TooLong),
            ),
            Ok(value) => judge(value),
            Err(_) => (
                Verdict::Invalid,
                "not valid: the bytes are not UTF-8 text".to_owned(),
            ),
        };
        writeln!(stdout, "line {number}: {sentence}").context(WriteSnafu)?;
        if verdict == Verdict::Invalid {
            all = Verdict::Invalid;
        }
    }
    ensure!(number > 0, NoLineSnafu);
    Ok(all)
}

/// Reads the next line without its end, or answers false after the last. Of a line that is longer
/// than any key, only the beginning is kept.
fn read_line(stdin: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = stdin
        .by_ref()
        .take(LINE_BYTES as u64)
        .read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if read == LINE_BYTES {
        stdin.skip_until(b'\n')?;
    }
    Ok(read > 0)
}

fn inspect(value: &str) -> (Verdict, String) {
    if generate::bears_prefix(value) {
        let length = value.len();
        return if generate::verify_identifiable(value) {
            (
                Verdict::Valid,
                format!("identifiable value of a vault, {length} characters"),
            )
        } else {
            (
                Verdict::Invalid,
                format!(
                    "not valid, {length} bytes: begins as an identifiable value of a vault does, \
                     but was mistyped or cut; copy the whole value again"
                ),
            )
        };
    }
    let found = format::inspect(value);
    let length = found.length;
    match found.fault {
        None => {
            let kinds: Vec<_> = found.kinds.iter().map(|kind| kind.name()).collect();
            let kinds = kinds.join(" and ");
            let padding = if found.padded { "padded" } else { "not padded" };
            (
                Verdict::Valid,
                format!("identifiable {kinds} key of {length} characters, {padding}"),
            )
        }
        Some(fault) => (
            Verdict::Invalid,
            format!("not valid, {length} bytes: {fault}"),
        ),
    }
}

fn verify(value: &str, scope: Scope) -> (Verdict, String) {
    if generate::verify_identifiable(value) {
        return (
            Verdict::Invalid,
            format!(
                "not valid for scope {scope}: this is a value that a vault generated, no key of a \
                 Functions host; bring the key that was meant"
            ),
        );
    }
    match format::verify(value, scope.kind()) {
        Ok(()) => (Verdict::Valid, format!("valid for scope {scope}")),
        Err(fault) => (
            Verdict::Invalid,
            format!("not valid for scope {scope}: {fault}"),
        ),
    }
}

fn parse_count(text: &str) -> Result<u32, String> {
    let count = text
        .parse()
        .ok()
        .filter(|count| (1..=MAX_COUNT).contains(count));
    count.ok_or_else(|| format!("a number from 1 to {MAX_COUNT} is needed"))
}

const MAX_COUNT: u32 = 100_000;
/// As many as one `mint` prints.
const MAX_LINES: usize = MAX_COUNT as usize;
/// One line feed and one byte that shows the line is too long.
const LINE_BYTES: usize = format::MAX_BYTES + 2;
const NOT_SHOWN: &str = "(not shown: it may be a key)";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Top,
    }

    #[derive(Debug, Subcommand)]
    enum Top {
        Key(KeyArgs),
    }

    const FUNCTION: &str = "IXE9ferDI6qyv2OnaPrWbZRHsVH_FFmnE7xulAWEYmbsAzFu8fWchw==";
    const SYSTEM: &str = "Ft81kawVrvafS8EOg3bJGl4Zxig192dUQ5ml8XqgyHb9AzFumP84vg==";

    #[test]
    fn mints_as_many_different_keys_as_asked_for() {
        for (scope, kind) in [
            ("function", KeyKind::Function),
            ("host", KeyKind::Function),
            ("system", KeyKind::System),
            ("master", KeyKind::Master),
        ] {
            let done = perform(&["mint", "--scope", scope, "--count", "3"], "");
            assert_eq!((done.status, done.stderr.as_str()), (ExitCode::SUCCESS, ""));
            let keys: Vec<_> = done.stdout.lines().collect();
            assert!(matches!(keys[..], [a, b, c] if a != b && b != c && a != c));
            assert!(keys.iter().all(|key| format::verify(key, kind).is_ok()));

            let done = perform(&["verify", "--scope", scope], &done.stdout);
            assert_eq!(done.status, ExitCode::SUCCESS);
        }
        assert_eq!(
            perform(&["mint", "--scope", "host"], "")
                .stdout
                .lines()
                .count(),
            1
        );
    }

    #[test]
    fn verifies_line_by_line() {
        let input = format!("{FUNCTION}\n{SYSTEM}\n\n{FUNCTION}\r\n{}", &FUNCTION[..54]);
        let done = perform(&["verify", "--scope", "host"], &input);
        assert_eq!(
            done.stdout,
            "line 1: valid for scope host\n\
             line 2: not valid for scope host: this is a system key, not a function key; use it in \
             its own place, or bring a function key\n\
             line 3: not valid for scope host: the value is empty; give a whole key\n\
             line 4: not valid for scope host: contains white space or a control character (a line \
             end from Windows is one); remove it\n\
             line 5: valid for scope host\n"
        );
        assert_eq!((done.status, done.stderr.as_str()), (ExitCode::from(1), ""));
    }

    #[test]
    fn inspects_line_by_line() {
        let done = perform(
            &["inspect"],
            format!("{SYSTEM}\n{}\nhunter2", &FUNCTION[..54]),
        );
        assert_eq!(
            done.stdout,
            "line 1: identifiable system key of 56 characters, padded\n\
             line 2: identifiable function key of 54 characters, not padded\n\
             line 3: not valid, 7 bytes: not an identifiable key: the mark AzFu is \
             missing; check that this is the value that was meant\n"
        );
        assert_eq!(done.status, ExitCode::from(1));
        assert_eq!(perform(&["inspect"], SYSTEM).status, ExitCode::SUCCESS);
    }

    #[test]
    fn knows_the_identifiable_values_of_vaults() {
        let vault = generate::generate(
            &generate::Recipe::of(generate::Alphabet::Identifiable),
            &mut |bytes: &mut [u8]| bytes.fill(7),
        );
        let vault = vault.expose();
        let done = perform(&["inspect"], format!("{vault}\n{}\n", &vault[..49]));
        assert_eq!(
            done.stdout,
            "line 1: identifiable value of a vault, 50 characters\n\
             line 2: not valid, 49 bytes: begins as an identifiable value of a vault does, but was \
             mistyped or cut; copy the whole value again\n"
        );
        assert_eq!(done.status, ExitCode::from(1));
        let done = perform(&["verify", "--scope", "host"], vault);
        assert_eq!(
            done.stdout,
            "line 1: not valid for scope host: this is a value that a vault generated, no key of a \
             Functions host; bring the key that was meant\n"
        );
        assert_eq!(done.status, ExitCode::from(1));
        assert_eq!(perform(&["inspect"], vault).status, ExitCode::SUCCESS);
    }

    #[test]
    fn long_and_binary_lines_are_invalid_and_the_next_line_is_still_read() {
        for length in [format::MAX_BYTES + 1, format::MAX_BYTES + 2, 100_000] {
            let mut input = "é".repeat(length.div_ceil(2)).into_bytes();
            input.extend_from_slice(b"\n\xff\xfe\n");
            input.extend_from_slice(FUNCTION.as_bytes());
            let done = perform(&["verify", "--scope", "function"], input);
            assert_eq!(
                done.stdout,
                "line 1: not valid: longer than 4096 bytes; give one key, which has 56 characters\n\
                 line 2: not valid: the bytes are not UTF-8 text\n\
                 line 3: valid for scope function\n"
            );
            assert_eq!(done.status, ExitCode::from(1));
        }
        let done = perform(&["inspect"], "A".repeat(format::MAX_BYTES) + "\n");
        assert!(done.stdout.starts_with("line 1: not valid, 4096 bytes:"));
    }

    #[test]
    fn no_value_and_too_many_are_usage_errors() {
        let done = perform(&["verify", "--scope", "master"], "");
        assert_eq!(done.status, ExitCode::from(2));
        assert!(done.stderr.starts_with("error: no value was given"));

        let done = perform(&["inspect"], "x\n".repeat(MAX_LINES + 1));
        assert_eq!(done.status, ExitCode::from(2));
        assert!(done.stderr.starts_with("error: more than 100000 values"));
        assert_eq!(done.stdout.lines().count(), MAX_LINES);
    }

    #[test]
    fn failing_streams_are_reported() {
        let broken = || io::Error::other("broken");
        let args = parse(&["mint", "--scope", "host"]).unwrap();
        let mut stderr = Vec::new();
        let status = run(
            args,
            io::empty(),
            io::sink(),
            &mut stderr,
            |_| Err(broken()),
        );
        assert_eq!(status, ExitCode::from(2));
        assert_eq!(stderr, b"error: no random bytes could be had: broken\n");

        stderr.clear();
        let mut full = [0; 10];
        let status = run(args, io::empty(), full.as_mut_slice(), &mut stderr, |_| {
            Ok(())
        });
        assert_eq!(status, ExitCode::from(2));
        assert!(stderr.starts_with(b"error: standard output could not be written: "));
    }

    #[test]
    fn a_key_among_the_arguments_is_refused_and_not_repeated() {
        let dashed = format!("-{FUNCTION}");
        let long = format!("--{FUNCTION}");
        let assigned = format!("--scope={FUNCTION}");
        let help = format!("--help={FUNCTION}");
        for args in [
            &["verify", "--scope", "host", FUNCTION][..],
            &["verify", FUNCTION, "--scope", "host"],
            &["verify", "--scope", FUNCTION],
            &["verify", &assigned],
            &["verify", "--scope", "host", &dashed],
            &["verify", "--scope", "host", &long],
            &["verify", "--scope", "host", "--", FUNCTION],
            &["verify", &help],
            &["inspect", FUNCTION],
            &["inspect", &long],
            &["mint", "--scope", "host", "--count", FUNCTION],
            &["mint", "--scope", "host", FUNCTION],
            &[FUNCTION],
            &[&dashed],
            &[&long],
        ] {
            let error = parse(args).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let rendered = error.render();
            for shown in [
                rendered.to_string(),
                rendered.ansi().to_string(),
                format!("{error:?}"),
            ] {
                assert!(!shown.contains(&FUNCTION[..8]), "{shown}");
            }
        }
    }

    #[test]
    fn other_mistakes_are_still_explained() {
        for (args, wanted) in [
            (&["verify"][..], "--scope <SCOPE>"),
            (
                &["verify", "--scope", "x"],
                "[possible values: function, host, system, master]",
            ),
            (
                &["mint", "--scope", "host", "--count", "0"],
                "a number from 1 to 100000 is needed",
            ),
            (
                &["mint", "--scope", "host", "--count", "100001"],
                "--count <COUNT>",
            ),
        ] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let help = parse(&["verify", "--help"]).unwrap_err();
        assert_eq!(help.exit_code(), 0);
    }

    struct Done {
        status: ExitCode,
        stdout: String,
        stderr: String,
    }

    fn perform(args: &[&str], input: impl AsRef<[u8]>) -> Done {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut next = 0_u8;
        let random = |bytes: &mut [u8]| {
            next += 1;
            bytes.fill(next);
            Ok(())
        };
        let args = parse(args).unwrap();
        let status = run(args, input.as_ref(), &mut stdout, &mut stderr, random);
        Done {
            status,
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    fn parse(args: &[&str]) -> Result<KeyArgs, clap::Error> {
        let Top::Key(args) = Cli::try_parse_from([&["claviger", "key"], args].concat())
            .map_err(without_values)?
            .command;
        Ok(args)
    }
}
