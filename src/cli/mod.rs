//! The command line, as typed by the user.

pub mod key;
pub mod plugin;
pub mod root_key;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{root_keys::Provider, telemetry::LogFormat};

/// Keeps an organisation's keys in Kubernetes: mints, stores, rotates, hands out and guards them.
#[derive(Debug, Parser)]
#[command(name = "claviger", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `claviger` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what somebody may do with keys, secrets and tokens, and through which binding.
    Access(plugin::AccessArgs),
    /// Run the controller: bring about what the resources of the cluster declare.
    Controller(ControllerArgs),
    /// Print the custom resource definitions as YAML.
    Crds(CrdsArgs),
    /// Speak managed identity on loopback, for callers that know nothing else.
    IdentityAgent(crate::agent::AgentArgs),
    /// Make and check key values, without a cluster.
    Key(key::KeyArgs),
    /// Be an application's ServiceAccount on this workstation: writes a token and the CA, prints what to eval.
    Login(plugin::LoginArgs),
    /// Destroy deleted secrets of a vault now, with all their versions, before their retention is over.
    Purge(plugin::DeletedArgs),
    /// Take the deletion of secrets of a vault back.
    Recover(plugin::DeletedArgs),
    /// Revoke a key or a vault's secret now: no earlier value stays valid, clients get the new one at once.
    Revoke(plugin::TriggerArgs),
    /// Turn a key, a vault's secret or its key ring now; a previous value stays valid for the overlap.
    Rotate(plugin::TriggerArgs),
    /// Back up the root key that opens all vaults, bring it back, or prove that a backup works.
    RootKey(root_key::RootKeyArgs),
    /// Run everything in one process: for small clusters and for trying out.
    Run(ControllerArgs),
    /// Show where the keys and vaults of a namespace stand.
    Status(plugin::StatusArgs),
    /// Show who may do something with a vault, a key or a token provider, and through which binding.
    WhoCan(plugin::WhoCanArgs),
}

/// Which custom resource definitions are printed.
#[derive(Args, Clone, Debug)]
pub struct CrdsArgs {
    /// Only that of this kind; all when left out.
    #[arg(long, value_parser = ["FunctionKey", "SecretVault"])]
    pub kind: Option<String>,
}

impl CrdsArgs {
    /// Whether the definition of this kind is asked for.
    pub fn wants(&self, kind: &str) -> bool {
        self.kind.as_deref().is_none_or(|wanted| wanted == kind)
    }
}

/// How the controller runs. Every flag can be given as an environment variable.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Address of the port for /livez, /readyz and /metrics.
    #[arg(long, env = "CLAVIGER_ADMIN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_address: SocketAddr,

    /// Claviger's own namespace: holds the lease of the leader and the seal key.
    #[arg(
        long,
        env = "CLAVIGER_SYSTEM_NAMESPACE",
        default_value = "claviger-system"
    )]
    pub system_namespace: String,

    /// Name of this replica in the leader's lease; a random one when left out.
    #[arg(long, env = "CLAVIGER_IDENTITY")]
    pub identity: Option<String>,

    /// Name of the leader's lease.
    #[arg(
        long,
        env = "CLAVIGER_LEASE_NAME",
        default_value = "claviger-controller"
    )]
    pub lease_name: String,

    /// Namespaces to look after, separated by commas; all when left out.
    #[arg(long, env = "CLAVIGER_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// How long a Functions host may take to notice a new key in its store; clients get it only then.
    #[arg(long, env = "CLAVIGER_HOST_RELOAD_DELAY", default_value = "90s", value_parser = span)]
    pub host_reload_delay: jiff::SignedDuration,

    /// How long to wait for further changes before a workload is restarted.
    #[arg(long, env = "CLAVIGER_RESTART_DELAY", default_value = "10s", value_parser = span)]
    pub restart_delay: jiff::SignedDuration,

    /// How many objects are looked at at once.
    #[arg(long, env = "CLAVIGER_WORKERS", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,

    /// What wraps the keys of vaults: a Secret in Claviger's own namespace, or a key management service.
    #[arg(long, env = "CLAVIGER_ROOT_KEY", value_enum, default_value_t)]
    pub root_key: Provider,

    /// Unix socket of a Kubernetes KMS v2 plugin. With --root-key=secret it still opens what it wrapped before.
    #[arg(
        long,
        env = "CLAVIGER_KMS_SOCKET",
        value_name = "PATH",
        required_if_eq("root_key", "kms")
    )]
    pub kms_socket: Option<PathBuf>,

    /// Who can open the backup of the root key: public halves of age identities (age1…), separated by commas.
    #[arg(
        long = "recovery-recipient",
        env = "CLAVIGER_RECOVERY_RECIPIENTS",
        value_name = "RECIPIENT",
        value_delimiter = ','
    )]
    pub recovery_recipients: Vec<String>,

    /// How many data keys are re-wrapped in a second after a key ring has turned.
    #[arg(long, env = "CLAVIGER_REWRAP_RATE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rewrap_rate: u32,

    /// How long writers may take to notice that a key ring has turned: its version before is destroyed only then.
    #[arg(long, env = "CLAVIGER_RING_GRACE", default_value = "5m", value_parser = span)]
    pub ring_grace: jiff::SignedDuration,

    /// How log lines look.
    #[arg(long, env = "CLAVIGER_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, or levels by module.
    #[arg(long, env = "CLAVIGER_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

fn span(text: &str) -> Result<jiff::SignedDuration, &'static str> {
    let refusal = "not a duration such as 90s, 2m or 1h";
    let duration: std::time::Duration = text
        .parse::<kube::core::Duration>()
        .map_err(|_| refusal)?
        .into();
    if text.starts_with('-') {
        return Err(refusal);
    }
    jiff::SignedDuration::try_from(duration).map_err(|_| refusal)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_definition_can_be_asked_for_by_its_kind() {
        for crd in crate::api::crds() {
            let kind = crd.spec.names.kind;
            let cli = Cli::try_parse_from(["claviger", "crds", "--kind", &kind]).unwrap();
            let Command::Crds(args) = cli.command else {
                panic!("{:?}", cli.command)
            };
            assert!(args.wants(&kind) && !args.wants("Other"));
        }
    }

    #[test]
    fn a_kms_needs_a_socket() {
        let parse = |args: &[&str]| {
            Cli::try_parse_from([&["claviger", "controller"], args].concat()).map(|cli| {
                match cli.command {
                    Command::Controller(args) => (args.root_key, args.recovery_recipients),
                    other => panic!("{other:?} is not the controller"),
                }
            })
        };
        assert_eq!(parse(&[]).unwrap(), (Provider::Secret, Vec::new()));
        assert!(parse(&["--root-key", "kms"]).is_err());
        let (provider, recipients) = parse(&[
            "--root-key=kms",
            "--kms-socket=/run/kms.sock",
            "--recovery-recipient=a,b",
            "--recovery-recipient=c",
        ])
        .unwrap();
        assert_eq!(provider, Provider::Kms);
        assert_eq!(recipients, ["a", "b", "c"]);
    }

    #[test]
    fn durations_are_those_of_manifests() {
        assert_eq!(span("90s"), Ok(jiff::SignedDuration::from_secs(90)));
        assert!(span("-1s").is_err() && span("soon").is_err());
    }
}
