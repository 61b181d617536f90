//! Logs, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, fmt, prelude::*};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

/// The modules of the Kubernetes client that log answers they cannot read, and refusals in the words
/// of others; both may quote a Secret. They are never heard, whatever the filter says.
const TELL_ANSWERS: [&str; 2] = ["kube_client::client", "kube_runtime::watcher"];

/// Starts logging. `filter` is a level, or levels by module, as in `info,claviger=debug`.
///
/// # Errors
/// The filter does not parse, or logging was started before; said in a sentence.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    let wanted = EnvFilter::try_new(filter).map_err(|_| {
        "the log level is not one: write error, warn, info, debug, trace, or levels by module as \
         in info,claviger=debug"
            .to_owned()
    })?;
    let discreet = filter_fn(|metadata| !TELL_ANSWERS.contains(&metadata.target()));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().with_filter(discreet).boxed(),
        LogFormat::Text => lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(discreet)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(wanted)
        .with(lines)
        .try_init()
        .map_err(|error| error.to_string())
}
