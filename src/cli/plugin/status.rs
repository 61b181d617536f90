//! Where keys and vaults stand, in tables. No table shows a value.

use std::io::Write;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Client, ResourceExt, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;
use snafu::ResultExt;

use super::{Error, PrintSnafu, RequestSnafu, Resource, StatusArgs, api};
use crate::api::{
    condition::{READY, seconds},
    v1alpha1::{FunctionKey, SecretVault, SecretVaultStatus},
};

/// Shows where keys and vaults stand.
///
/// # Errors
/// See [`Error`].
pub async fn status(client: Client, args: &StatusArgs, out: &mut impl Write) -> Result<(), Error> {
    let (keys, vaults) = match &args.name {
        Some(Resource::Key(name)) => {
            let api: Api<FunctionKey> = api(client, args.namespace.as_deref());
            let what = format!("read FunctionKey/{name}");
            let key = api.get(name).await.context(RequestSnafu { what })?;
            (vec![key], Vec::new())
        }
        Some(Resource::Vault(name)) => {
            let api: Api<SecretVault> = api(client, args.namespace.as_deref());
            let what = format!("read SecretVault/{name}");
            let vault = api.get(name).await.context(RequestSnafu { what })?;
            (Vec::new(), vec![vault])
        }
        None => (
            list(client.clone(), args, "list FunctionKeys").await?,
            list(client, args, "list SecretVaults").await?,
        ),
    };
    let details = args.name.as_ref().and(vaults.first()).cloned();
    let shows_keys = !keys.is_empty() || vaults.is_empty();
    if shows_keys {
        show_keys(keys, out).context(PrintSnafu)?;
    }
    if shows_keys && !vaults.is_empty() {
        writeln!(out).context(PrintSnafu)?;
    }
    if !vaults.is_empty() {
        show_vaults(vaults, out).context(PrintSnafu)?;
    }
    if let Some(vault) = details {
        show_vault(&vault.status.unwrap_or_default(), out).context(PrintSnafu)?;
    }
    Ok(())
}

async fn list<K>(client: Client, args: &StatusArgs, what: &str) -> Result<Vec<K>, Error>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = if args.all_namespaces {
        Api::all(client)
    } else {
        api(client, args.namespace.as_deref())
    };
    let mut all = api
        .list(&ListParams::default())
        .await
        .context(RequestSnafu { what })?
        .items;
    all.sort_by_key(|one| (one.namespace(), one.name_any()));
    Ok(all)
}

fn time(time: Option<Time>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| seconds(time.0).to_string())
}

/// Whether it is ready, and what is to be said if it is not.
fn ready(resource: &impl ResourceExt, conditions: &[Condition]) -> (String, Option<String>) {
    let ready = conditions.iter().find(|condition| condition.type_ == READY);
    let remark = ready.filter(|ready| ready.status != "True").map(|ready| {
        format!(
            "{}/{}: {}: {}",
            resource.namespace().unwrap_or_default(),
            resource.name_any(),
            ready.reason,
            ready.message
        )
    });
    let ready = ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone());
    (ready, remark)
}

fn show_keys(keys: Vec<FunctionKey>, out: &mut impl Write) -> std::io::Result<()> {
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
        let (ready, remark) = ready(&key, &status.conditions);
        remarks.extend(remark);
        let rotation = status.rotation.unwrap_or_default();
        rows.push([
            key.namespace().unwrap_or_default(),
            key.name_any(),
            ready,
            status.entry.unwrap_or_else(|| "-".to_owned()),
            rotation.generation.to_string(),
            time(rotation.minted_at),
            time(rotation.next_at),
            time(rotation.previous_until),
        ]);
    }
    print(&rows, &remarks, out)
}

fn show_vaults(vaults: Vec<SecretVault>, out: &mut impl Write) -> std::io::Result<()> {
    let mut rows = vec![
        [
            "NAMESPACE",
            "VAULT",
            "READY",
            "SECRETS",
            "DELETED",
            "VERSIONS",
            "RING",
            "SINCE",
            "NEXT TURN",
            "RE-WRAPPED",
        ]
        .map(str::to_owned),
    ];
    let mut remarks = Vec::new();
    for vault in vaults {
        let status = vault.status.clone().unwrap_or_default();
        let (ready, remark) = ready(&vault, &status.conditions);
        remarks.extend(remark);
        let counts = status.secrets.unwrap_or_default();
        let ring = status.key_ring.unwrap_or_default();
        rows.push([
            vault.namespace().unwrap_or_default(),
            vault.name_any(),
            ready,
            counts.live.to_string(),
            counts.deleted.to_string(),
            counts.versions.to_string(),
            ring.current.to_string(),
            time(ring.rotated_at),
            time(ring.next_at),
            ring.rewrapped.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    print(&rows, &remarks, out)
}

/// What a vault declares, row by row.
fn show_vault(status: &SecretVaultStatus, out: &mut impl Write) -> std::io::Result<()> {
    let mut rows = vec![
        [
            "SECRET",
            "STATE",
            "GENERATION",
            "SINCE",
            "NEXT TURN",
            "PREVIOUS UNTIL",
        ]
        .map(str::to_owned),
    ];
    for secret in &status.declared {
        rows.push([
            secret.name.clone(),
            secret
                .state
                .map_or_else(|| "-".to_owned(), |state| format!("{state:?}")),
            secret
                .generation
                .map_or_else(|| "-".to_owned(), |generation| generation.to_string()),
            time(secret.minted_at.clone()),
            time(secret.next_at.clone()),
            time(secret.previous_until.clone()),
        ]);
    }
    if rows.len() > 1 {
        writeln!(out)?;
        print(&rows, &[], out)?;
    }
    let mut rows = vec![["TARGET", "STATE", "SECRET", "CHANGED"].map(str::to_owned)];
    let mut remarks = Vec::new();
    for target in &status.sync {
        rows.push([
            target.target.clone(),
            target
                .state
                .map_or_else(|| "-".to_owned(), |state| format!("{state:?}")),
            target.secret_name.clone().unwrap_or_else(|| "-".to_owned()),
            time(target.changed_at.clone()),
        ]);
        let message = target.message.as_ref();
        remarks.extend(message.map(|message| format!("{}: {message}", target.target)));
    }
    if rows.len() > 1 {
        writeln!(out)?;
        print(&rows, &remarks, out)?;
    }
    Ok(())
}

/// Prints a table, and what there is to say of its rows.
pub(in crate::cli) fn print<const N: usize>(
    rows: &[[String; N]],
    remarks: &[String],
    out: &mut impl Write,
) -> std::io::Result<()> {
    let rows: Vec<[String; N]> = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| harmless(cell)))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    for remark in remarks {
        writeln!(out, "\n{}", harmless(remark))?;
    }
    Ok(())
}

/// A text without what a terminal acts on. The name of a user in a binding is whatever somebody wrote
/// there: it must neither begin a row of its own nor turn the line around.
fn harmless(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| {
            if acts(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}
