//! What a person does with a cluster from the command line; `kubectl claviger …` when the binary
//! is called `kubectl-claviger`.

use std::io::Write;

use clap::Args;
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use snafu::{ResultExt, Snafu};

use crate::api::{
    REVOKE_AT_ANNOTATION, ROTATE_AT_ANNOTATION,
    condition::{READY, seconds},
    v1alpha1::FunctionKey,
};

/// Which resource to turn.
#[derive(Args, Clone, Debug)]
pub struct TriggerArgs {
    /// The FunctionKey.
    pub name: String,
    /// Its namespace; the kubeconfig's when left out.
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// What to show.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// The namespace; the kubeconfig's when left out.
    #[arg(long, short, conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Every namespace.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A turn without overlap.
    Revoke,
    /// A turn with overlap.
    Rotate,
}

/// Something could not be done.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The terminal is gone.
    #[snafu(display("cannot print"))]
    Print {
        /// Why.
        source: std::io::Error,
    },
    /// The apiserver said no.
    #[snafu(display("cannot {what}: {}", reason(source)))]
    Request {
        /// What was asked for.
        what: String,
        /// Why not.
        #[snafu(source(from(kube::Error, Box::new)))]
        source: Box<kube::Error>,
    },
}

/// The apiserver's own words, if it has answered.
fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Asks for a turn at `now`.
///
/// # Errors
/// See [`Error`].
pub async fn trigger(
    client: Client,
    args: &TriggerArgs,
    trigger: Trigger,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (annotation, verb, done) = match trigger {
        Trigger::Revoke => (
            REVOKE_AT_ANNOTATION,
            "revoke",
            "is being revoked: no earlier value stays valid",
        ),
        Trigger::Rotate => (
            ROTATE_AT_ANNOTATION,
            "rotate",
            "is being turned: the previous value stays valid for its overlap (a master key has none)",
        ),
    };
    let api = api(client, args.namespace.as_deref());
    let patch = json!({"metadata": {"annotations": {annotation: now.to_string()}}});
    api.patch(&args.name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context(RequestSnafu {
            what: format!("{verb} FunctionKey/{}", args.name),
        })?;
    writeln!(out, "FunctionKey/{} {done}", args.name).context(PrintSnafu)
}

/// Shows where keys stand.
///
/// # Errors
/// See [`Error`].
pub async fn status(client: Client, args: &StatusArgs, out: &mut impl Write) -> Result<(), Error> {
    let api = if args.all_namespaces {
        Api::all(client)
    } else {
        api(client, args.namespace.as_deref())
    };
    let mut keys = api
        .list(&ListParams::default())
        .await
        .context(RequestSnafu {
            what: "list FunctionKeys",
        })?
        .items;
    keys.sort_by_key(|key| (key.namespace(), key.name_any()));
    let mut rows = vec![
        [
            "NAMESPACE",
            "NAME",
            "READY",
            "ENTRY",
            "GENERATION",
            "SINCE",
            "NEXT TURN",
            "PREVIOUS UNTIL",
        ]
        .map(str::to_owned),
    ];
    let mut remarks = Vec::new();
    for key in keys {
        let status = key.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == READY);
        let rotation = status.rotation.unwrap_or_default();
        let time = |time: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.map_or_else(|| "-".to_owned(), |time| seconds(time.0).to_string())
        };
        rows.push([
            key.namespace().unwrap_or_default(),
            key.name_any(),
            ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
            status.entry.unwrap_or_else(|| "-".to_owned()),
            rotation.generation.to_string(),
            time(rotation.minted_at),
            time(rotation.next_at),
            time(rotation.previous_until),
        ]);
        if let Some(ready) = ready.filter(|ready| ready.status != "True") {
            remarks.push(format!(
                "{}/{}: {}: {}",
                key.namespace().unwrap_or_default(),
                key.name_any(),
                ready.reason,
                ready.message
            ));
        }
    }
    print(&rows, &remarks, out).context(PrintSnafu)
}

/// Prints a table, and what there is to say of its rows.
pub(super) fn print<const N: usize>(
    rows: &[[String; N]],
    remarks: &[String],
    out: &mut impl Write,
) -> std::io::Result<()> {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].len())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    for remark in remarks {
        writeln!(out, "\n{remark}")?;
    }
    Ok(())
}

fn api(client: Client, namespace: Option<&str>) -> Api<FunctionKey> {
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::default_namespaced(client),
    }
}
