//! What a person does with a cluster from the command line; `kubectl claviger …` when the binary
//! is called `kubectl-claviger`.

mod login;
mod rights;
mod status;
mod vault;

use std::{io::Write, str::FromStr};

use clap::Args;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde_json::json;
use snafu::{ResultExt, Snafu, ensure};

use crate::api::{REVOKE_AT_ANNOTATION, ROTATE_AT_ANNOTATION, v1alpha1::FunctionKey};

pub use login::{LoginArgs, login};
pub use rights::{AccessArgs, WhoCanArgs, show_access, show_who_can};
pub(super) use status::print;
pub use status::status;
pub use vault::bring_back_or_purge;

/// What to turn.
#[derive(Args, Clone, Debug)]
pub struct TriggerArgs {
    /// The FunctionKey, or secretvault/NAME.
    pub name: Resource,
    /// A secret that the vault declares; may be given several times.
    #[arg(long = "secret", value_name = "SECRET", value_delimiter = ',')]
    pub secrets: Vec<String>,
    /// Its namespace; the kubeconfig's when left out.
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// Which deleted secrets of a vault are meant.
#[derive(Args, Clone, Debug)]
pub struct DeletedArgs {
    /// The vault: secretvault/NAME.
    pub name: Resource,
    /// A deleted secret; may be given several times.
    #[arg(
        long = "secret",
        value_name = "SECRET",
        value_delimiter = ',',
        required = true
    )]
    pub secrets: Vec<String>,
    /// Its namespace; the kubeconfig's when left out.
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// What to show.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// One FunctionKey, or secretvault/NAME with its secrets and targets; all of them when left out.
    #[arg(conflicts_with = "all_namespaces")]
    pub name: Option<Resource>,
    /// The namespace; the kubeconfig's when left out.
    #[arg(long, short, conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Every namespace.
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
}

/// A resource as kubectl lets one type it: a FunctionKey when no kind is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A FunctionKey, by name.
    Key(String),
    /// A SecretVault, by name.
    Vault(String),
}

/// The text names no resource of a kind that there is.
#[derive(Debug, Snafu)]
#[snafu(display("write the name of a FunctionKey, functionkey/NAME or secretvault/NAME"))]
pub struct NotAResource;

impl FromStr for Resource {
    type Err = NotAResource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = text.split_once('/').unwrap_or(("functionkey", text));
        ensure!(!name.is_empty() && !name.contains('/'), NotAResourceSnafu);
        let kind = kind.to_ascii_lowercase();
        match kind.strip_suffix(".claviger.dev").unwrap_or(&kind) {
            "fkey" | "functionkey" | "functionkeys" => Ok(Self::Key(name.to_owned())),
            "secretvault" | "secretvaults" | "svault" => Ok(Self::Vault(name.to_owned())),
            _ => NotAResourceSnafu.fail(),
        }
    }
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Everything of a deleted secret goes.
    Purge,
    /// A deletion is taken back.
    Recover,
    /// A turn without overlap.
    Revoke,
    /// A turn with overlap.
    Rotate,
}

impl Trigger {
    fn verb(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Recover => "recover",
            Self::Revoke => "revoke",
            Self::Rotate => "rotate",
        }
    }
}

/// Something could not be done.
#[derive(Debug, Snafu)]
#[snafu(visibility(pub(super)))]
pub enum Error {
    /// Somebody else changes the resource all the time.
    #[snafu(display("cannot {what}: it was changed at the same moment; try again"))]
    Contended {
        /// What was asked for.
        what: String,
    },
    /// A secret that the manifest declares lives.
    #[snafu(display(
        "cannot {verb} secret {secret}: SecretVault/{vault} declares it; take it off spec.secrets first, then it is deleted"
    ))]
    Declared {
        /// What was asked for.
        verb: &'static str,
        /// The secret.
        secret: String,
        /// The vault.
        vault: String,
    },
    /// A file of the person's own cannot be written.
    #[snafu(display("cannot write {}: {source}", path.display()))]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The value is somebody else's to change.
    #[snafu(display(
        "cannot {verb} secret {secret}: it follows entry {key} of Secret/{source_secret}; change the value there"
    ))]
    Followed {
        /// What was asked for.
        verb: &'static str,
        /// The secret.
        secret: String,
        /// The source.
        source_secret: String,
        /// Its entry.
        key: String,
    },
    /// There is no CA where it should be.
    #[snafu(display("there is no certificate in {place}; is Claviger's server installed?"))]
    NoCertificate {
        /// Where.
        place: String,
    },
    /// There is no place for files.
    #[snafu(display("there is no home folder to write to; name one by --folder"))]
    NoHome,
    /// The apiserver has answered without a token.
    #[snafu(display("cannot {what}: the apiserver has answered without one"))]
    NoToken {
        /// What was asked for.
        what: String,
    },
    /// The token would be in somebody else's hands.
    #[snafu(display("{} is a symbolic link, or somebody else's: name another folder by --folder", path.display()))]
    NotOwn {
        /// Which folder.
        path: std::path::PathBuf,
    },
    /// Others could read the token.
    #[snafu(display("{} can be entered by others: chmod 700 it, or name another by --folder", path.display()))]
    NotPrivate {
        /// Which folder.
        path: std::path::PathBuf,
    },
    /// A FunctionKey has no secrets.
    #[snafu(display(
        "--secret names a secret of a vault: write secretvault/NAME instead of {name}"
    ))]
    NoVault {
        /// What was given.
        name: String,
    },
    /// A key ring has no overlap that could be left out.
    #[snafu(display(
        "a key ring is not revoked: name the secrets that have leaked by --secret, or destroy versions of the ring by spec.keyRing.shredVersions"
    ))]
    NotARing,
    /// The terminal is gone.
    #[snafu(display("cannot print"))]
    Print {
        /// Why.
        source: std::io::Error,
    },
    /// The vault purges nothing early.
    #[snafu(display(
        "cannot purge: SecretVault/{vault} has softDelete.purgeProtection, and a deleted secret goes when its retention is over"
    ))]
    Protected {
        /// The vault.
        vault: String,
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
    /// The manifest does not declare the secret.
    #[snafu(display(
        "cannot {verb} secret {secret}: SecretVault/{vault} does not declare it under spec.secrets"
    ))]
    Undeclared {
        /// What was asked for.
        verb: &'static str,
        /// The secret.
        secret: String,
        /// The vault.
        vault: String,
    },
    /// A file that the person named cannot be read.
    #[snafu(display("cannot read {}: {source}", path.display()))]
    Unread {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
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
    let name = match &args.name {
        Resource::Key(name) => name,
        Resource::Vault(name) => {
            let api = api(client, args.namespace.as_deref());
            return match (args.secrets.is_empty(), trigger) {
                (true, Trigger::Rotate) => vault::turn_ring(&api, name, now, out).await,
                (true, _) => NotARingSnafu.fail(),
                (false, _) => vault::ask(&api, name, &args.secrets, trigger, now, out).await,
            };
        }
    };
    ensure!(args.secrets.is_empty(), NoVaultSnafu { name });
    let (annotation, done) = if trigger == Trigger::Revoke {
        (
            REVOKE_AT_ANNOTATION,
            "is being revoked: no earlier value stays valid",
        )
    } else {
        (
            ROTATE_AT_ANNOTATION,
            "is being turned: the previous value stays valid for its overlap (a master key has none)",
        )
    };
    let api: Api<FunctionKey> = api(client, args.namespace.as_deref());
    let patch = json!({"metadata": {"annotations": {annotation: now.to_string()}}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .context(RequestSnafu {
            what: format!("{} FunctionKey/{name}", trigger.verb()),
        })?;
    writeln!(out, "FunctionKey/{name} {done}").context(PrintSnafu)
}

fn api<K>(client: Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::default_namespaced(client),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_named_as_kubectl_lets_one() {
        let key = Ok(Resource::Key("orders".to_owned()));
        let vault = Ok(Resource::Vault("payments".to_owned()));
        for (text, resource) in [
            ("orders", &key),
            ("functionkey/orders", &key),
            ("fkey/orders", &key),
            ("FunctionKeys.claviger.dev/orders", &key),
            ("secretvault/payments", &vault),
            ("svault/payments", &vault),
            ("secretvaults.claviger.dev/payments", &vault),
        ] {
            assert_eq!(&text.parse().map_err(|_| ()), resource, "{text}");
        }
        for text in [
            "",
            "secret/payments",
            "secretvault/",
            "secretvault/a/b",
            "/a",
        ] {
            assert!(text.parse::<Resource>().is_err(), "{text}");
        }
    }
}
