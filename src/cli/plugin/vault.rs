//! Asking something of a vault: by annotations that its author may write, and nothing else.

use std::io::Write;

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use snafu::{OptionExt, ResultExt, ensure};

use super::{
    ContendedSnafu, DeclaredSnafu, DeletedArgs, Error, FollowedSnafu, NoVaultSnafu, PrintSnafu,
    ProtectedSnafu, RequestSnafu, Resource, Trigger, UndeclaredSnafu, api,
};
use crate::api::{
    PURGE_SECRETS_ANNOTATION, RECOVER_SECRETS_ANNOTATION, REVOKE_SECRETS_ANNOTATION,
    ROTATE_AT_ANNOTATION, ROTATE_SECRETS_ANNOTATION,
    v1alpha1::{DeclaredSecret, SecretVault},
};

/// How often a change is planned anew because somebody else was faster.
const ATTEMPTS: usize = 5;
/// How long what was asked of a secret that is not declared is left in the annotation.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// Asks at `now` that deleted secrets be recovered, or purged.
///
/// # Errors
/// See [`Error`].
pub async fn bring_back_or_purge(
    client: Client,
    args: &DeletedArgs,
    trigger: Trigger,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    match &args.name {
        Resource::Key(name) => NoVaultSnafu { name }.fail(),
        Resource::Vault(name) => {
            let api = api(client, args.namespace.as_deref());
            ask(&api, name, &args.secrets, trigger, now, out).await
        }
    }
}

/// Asks for a turn of the key ring.
pub(super) async fn turn_ring(
    api: &Api<SecretVault>,
    name: &str,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    let patch = json!({"metadata": {"annotations": {ROTATE_AT_ANNOTATION: now.to_string()}}});
    let vault = api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context(RequestSnafu {
            what: format!("rotate SecretVault/{name}"),
        })?;
    writeln!(
        out,
        "the key ring of SecretVault/{name} is being turned: the secrets' own keys are re-wrapped, no secret changes{}",
        suspended(&vault)
    )
    .context(PrintSnafu)
}

/// Asks something of secrets.
pub(super) async fn ask(
    api: &Api<SecretVault>,
    name: &str,
    secrets: &[String],
    trigger: Trigger,
    now: Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    let annotation = match trigger {
        Trigger::Purge => PURGE_SECRETS_ANNOTATION,
        Trigger::Recover => RECOVER_SECRETS_ANNOTATION,
        Trigger::Revoke => REVOKE_SECRETS_ANNOTATION,
        Trigger::Rotate => ROTATE_SECRETS_ANNOTATION,
    };
    let what = || format!("{} secrets of SecretVault/{name}", trigger.verb());
    for _ in 0..ATTEMPTS {
        let vault = api
            .get(name)
            .await
            .with_context(|_| RequestSnafu { what: what() })?;
        for secret in secrets {
            can_be_asked(&vault, secret, trigger)?;
        }
        let text = merged(&vault, annotation, secrets, now);
        let patch = json!({"metadata": {
            "resourceVersion": vault.resource_version(),
            "annotations": {annotation: text},
        }});
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            answer => {
                answer.with_context(|_| RequestSnafu { what: what() })?;
                return tell(&vault, secrets, trigger, out).context(PrintSnafu);
            }
        }
    }
    ContendedSnafu { what: what() }.fail()
}

fn find<'a>(vault: &'a SecretVault, secret: &str) -> Option<&'a DeclaredSecret> {
    let mut declared = vault.spec.secrets.iter().flatten();
    declared.find(|declared| declared.name.eq_ignore_ascii_case(secret))
}

/// Whether anything would come of it.
fn can_be_asked(vault: &SecretVault, secret: &str, trigger: Trigger) -> Result<(), Error> {
    let verb = trigger.verb();
    let name = vault.name_any();
    let declared = find(vault, secret);
    match trigger {
        Trigger::Revoke | Trigger::Rotate => {
            let declared = declared.context(UndeclaredSnafu {
                verb,
                secret,
                vault: name,
            })?;
            if let Some(source) = &declared.value_from
                && trigger == Trigger::Rotate
            {
                let source = &source.secret_key_ref;
                return FollowedSnafu {
                    verb,
                    secret,
                    source_secret: &source.name,
                    key: &source.key,
                }
                .fail();
            }
            Ok(())
        }
        Trigger::Purge | Trigger::Recover => {
            ensure!(
                declared.is_none(),
                DeclaredSnafu {
                    verb,
                    secret,
                    vault: &name
                }
            );
            let soft_delete = vault.spec.soft_delete.as_ref();
            let protected =
                soft_delete.is_some_and(|soft_delete| soft_delete.purge_protection == Some(true));
            ensure!(
                !(protected && trigger == Trigger::Purge),
                ProtectedSnafu { vault: name }
            );
            Ok(())
        }
    }
}

/// The annotation with these secrets asked for, and of what it asked for before what may still be
/// to be done: an entry that is over has no effect, but annotations do not grow for ever.
fn merged(vault: &SecretVault, annotation: &str, secrets: &[String], now: Timestamp) -> String {
    let minted = |secret: &str| {
        let status = vault.status.as_ref()?;
        let mut declared = status.declared.iter();
        let declared = declared.find(|declared| declared.name.eq_ignore_ascii_case(secret))?;
        Some(declared.minted_at.as_ref()?.0)
    };
    let before = vault
        .annotations()
        .get(annotation)
        .map_or("", String::as_str);
    let kept = before.split(',').map(str::trim).filter(|part| {
        let Some((secret, at)) = part.split_once('@') else {
            return !part.is_empty();
        };
        if secrets
            .iter()
            .any(|asked| asked.eq_ignore_ascii_case(secret.trim()))
        {
            return false;
        }
        // What cannot be read is for its writer to see, in a condition.
        let Ok(at) = at.trim().parse::<Timestamp>() else {
            return true;
        };
        // A moment that has passed may not have been acted on yet.
        at > now
            || match minted(secret.trim()) {
                Some(minted) => minted <= at,
                None => now.duration_since(at) < KEPT,
            }
    });
    let asked = secrets.iter().map(|secret| format!("{secret}@{now}"));
    kept.map(str::to_owned)
        .chain(asked)
        .collect::<Vec<_>>()
        .join(",")
}

fn tell(
    vault: &SecretVault,
    secrets: &[String],
    trigger: Trigger,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let done = match trigger {
        Trigger::Purge => "is purged if it is deleted: no version of it can be brought back",
        Trigger::Recover => "is recovered if it is deleted and its retention is not over",
        Trigger::Revoke => "is being revoked: no earlier version is handed out any more",
        Trigger::Rotate => "is being turned: the version before stays valid for its overlap",
    };
    for secret in secrets {
        let source = find(vault, secret).and_then(|declared| declared.value_from.as_ref());
        let own = source.map_or_else(String::new, |source| {
            let source = &source.secret_key_ref;
            format!(
                "; the value itself you change in entry {} of Secret/{}, and it ends with that",
                source.key, source.name
            )
        });
        writeln!(
            out,
            "secret {secret} of SecretVault/{} {done}{own}{}",
            vault.name_any(),
            suspended(vault)
        )?;
    }
    Ok(())
}

fn suspended(vault: &SecretVault) -> &'static str {
    if vault.spec.suspend == Some(true) {
        " (once spec.suspend is taken away)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn vault(annotation: &str) -> SecretVault {
        serde_json::from_value(json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "SecretVault",
            "metadata": {"name": "payments", "annotations": {ROTATE_SECRETS_ANNOTATION: annotation}},
            "spec": {
                "softDelete": {"purgeProtection": true},
                "secrets": [
                    {"name": "DB", "generate": {}},
                    {"name": "done", "generate": {}},
                    {"name": "sourced", "valueFrom": {"secretKeyRef": {"name": "from", "key": "k"}}},
                ],
            },
            "status": {"declared": [
                {"name": "DB", "mintedAt": "2026-11-22T10:00:00Z"},
                {"name": "done", "mintedAt": "2026-11-22T11:30:00Z"},
            ]},
        }))
        .unwrap()
    }

    fn asked(before: &str, secrets: &[&str]) -> String {
        let secrets: Vec<String> = secrets.iter().map(|&secret| secret.to_owned()).collect();
        merged(
            &vault(before),
            ROTATE_SECRETS_ANNOTATION,
            &secrets,
            NOW.parse().unwrap(),
        )
    }

    #[test]
    fn what_is_asked_for_is_added_to_what_is_not_done_yet() {
        let db = format!("db@{NOW}");
        for (before, after) in [
            ("", vec![]),
            (" ,, ", vec![]),
            // Of the same secret, however it is spelled, the last word counts.
            ("DB@2026-11-22T11:00:00Z,db@2027-01-01T00:00:00Z", vec![]),
            // Acted on, for there is a version since.
            ("done@2026-11-22T11:00:00Z", vec![]),
            // Perhaps not acted on yet, for there is none since.
            (
                "done@2026-11-22T11:59:59Z, other@2026-11-22T11:00:00Z",
                vec!["done@2026-11-22T11:59:59Z", "other@2026-11-22T11:00:00Z"],
            ),
            // Still to come.
            (
                "done@2027-01-01T00:00:00Z",
                vec!["done@2027-01-01T00:00:00Z"],
            ),
            // Nobody waits for it any more.
            ("other@2026-11-21T11:00:00Z", vec![]),
            ("done@soon, done", vec!["done@soon", "done"]),
        ] {
            let all: Vec<&str> = after.into_iter().chain([db.as_str()]).collect();
            assert_eq!(asked(before, &["db"]), all.join(","), "{before}");
        }
        assert_eq!(asked("", &["db", "done"]), format!("{db},done@{NOW}"));
    }

    #[test]
    fn what_would_come_to_nothing_is_refused() {
        let refused = |secret, trigger| {
            can_be_asked(&vault(""), secret, trigger)
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(refused("db", Trigger::Rotate), None);
        assert_eq!(refused("dB", Trigger::Revoke), None);
        assert_eq!(refused("sourced", Trigger::Revoke), None);
        assert_eq!(refused("gone", Trigger::Recover), None);
        for (secret, trigger, says) in [
            ("gone", Trigger::Rotate, "does not declare it"),
            ("sourced", Trigger::Rotate, "entry k of Secret/from"),
            ("db", Trigger::Recover, "declares it"),
            ("gone", Trigger::Purge, "purgeProtection"),
        ] {
            let refusal = refused(secret, trigger).unwrap();
            assert!(refusal.contains(says), "{refusal}");
        }
    }
}
