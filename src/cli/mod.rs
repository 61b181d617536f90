//! The command line, as typed by the user.

pub mod key;
pub mod plugin;
pub mod root_key;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{ca::roots::PublicRoots, root_keys::Provider, telemetry::LogFormat};

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
    Run(Box<RunArgs>),
    /// Run the server: the doors that are reached over HTTPS. Every replica serves.
    Server(ServerArgs),
    /// Show where the keys and vaults of a namespace stand.
    Status(plugin::StatusArgs),
    /// Show who may do something with a vault, a key or a token provider, and through which binding.
    WhoCan(plugin::WhoCanArgs),
}

/// Which custom resource definitions are printed.
#[derive(Args, Clone, Debug)]
pub struct CrdsArgs {
    /// Only that of this kind; all when left out.
    #[arg(long, value_parser = ["FunctionKey", "RoleAssignment", "SecretVault"])]
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

    /// What the names of the built-in ClusterRoles begin with: the name of the install.
    #[arg(long, env = "CLAVIGER_ROLE_PREFIX", default_value = "claviger")]
    pub role_prefix: String,

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

    /// Which names Claviger's own CA is for.
    #[command(flatten)]
    pub names: NameArgs,

    /// How Claviger's own CA lives.
    #[command(flatten)]
    pub ca: CaArgs,

    /// How log lines look.
    #[arg(long, env = "CLAVIGER_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, or levels by module.
    #[arg(long, env = "CLAVIGER_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Which names the doors have. Controller and server must be told the same.
#[derive(Args, Clone, Debug)]
pub struct NameArgs {
    /// The cluster's own domain: what stands behind svc in the long names of Services.
    #[arg(long, env = "CLAVIGER_CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = domain)]
    pub cluster_domain: String,

    /// A domain of the install's own, below which doors are reached from outside; none when left out.
    #[arg(long, env = "CLAVIGER_DOMAIN", value_parser = domain)]
    pub domain: Option<String>,

    /// How long a certificate of the server lives; it is renewed with a third of that left.
    #[arg(long, env = "CLAVIGER_LEAF_LIFETIME", default_value = "24h", value_parser = span)]
    pub leaf_lifetime: jiff::SignedDuration,
}

/// How Claviger's own CA lives.
#[derive(Args, Clone, Debug)]
pub struct CaArgs {
    /// How long a version of the CA is valid.
    #[arg(long, env = "CLAVIGER_CA_LIFETIME", default_value = "8760h", value_parser = span)]
    pub ca_lifetime: jiff::SignedDuration,

    /// How long a version of the CA is published before it signs: programs read their roots when they start.
    #[arg(long, env = "CLAVIGER_CA_LEAD", default_value = "720h", value_parser = span)]
    pub ca_lead: jiff::SignedDuration,

    /// Whether the Web's public roots are published beside the CA.
    #[arg(long, env = "CLAVIGER_PUBLIC_ROOTS", value_enum, default_value_t)]
    pub public_roots: PublicRoots,

    /// A file of further roots to publish beside the CA, in PEM: those of a company's own.
    #[arg(long, env = "CLAVIGER_FURTHER_ROOTS", value_name = "PATH")]
    pub further_roots: Option<PathBuf>,
}

/// How both halves run in one process.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The controller.
    #[command(flatten)]
    pub controller: ControllerArgs,

    /// The server.
    #[command(flatten)]
    pub doors: DoorArgs,
}

/// How the server runs. Every flag can be given as an environment variable.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Address of the port for /livez, /readyz and /metrics.
    #[arg(long, env = "CLAVIGER_ADMIN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_address: SocketAddr,

    /// Claviger's own namespace: holds the CA.
    #[arg(
        long,
        env = "CLAVIGER_SYSTEM_NAMESPACE",
        default_value = "claviger-system"
    )]
    pub system_namespace: String,

    /// Which names the doors have.
    #[command(flatten)]
    pub names: NameArgs,

    /// The doors.
    #[command(flatten)]
    pub doors: DoorArgs,

    /// How log lines look.
    #[arg(long, env = "CLAVIGER_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, or levels by module.
    #[arg(long, env = "CLAVIGER_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// The doors, and what they bear.
#[derive(Args, Clone, Debug)]
pub struct DoorArgs {
    /// Address of the doors, HTTPS.
    #[arg(long, env = "CLAVIGER_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,

    /// The server's own host name; that of the Service claviger in the system namespace when left out.
    #[arg(long, env = "CLAVIGER_SERVER_NAME", value_parser = domain)]
    pub server_name: Option<String>,

    /// A Secret of type kubernetes.io/tls in Claviger's own namespace, such as cert-manager writes. Its
    /// certificate is shown for the names that it is for; Claviger's own CA answers for the others.
    #[arg(long, env = "CLAVIGER_TLS_SECRET", value_name = "NAME")]
    pub tls_secret: Option<String>,

    /// How many connections may be open.
    #[arg(long, env = "CLAVIGER_MAX_CONNECTIONS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections: u32,

    /// How many of them may come from one address. Behind a load balancer all may.
    #[arg(long, env = "CLAVIGER_MAX_CONNECTIONS_PER_PEER", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections_per_peer: u32,

    /// How many requests may be under way; above it they are answered 503. One address has the same
    /// share of them as of connections.
    #[arg(long, env = "CLAVIGER_MAX_REQUESTS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_requests: u32,

    /// How long a request may take, its body included.
    #[arg(long, env = "CLAVIGER_REQUEST_TIMEOUT", default_value = "30s", value_parser = span)]
    pub request_timeout: jiff::SignedDuration,

    /// Who may call, and what for.
    #[command(flatten)]
    pub identity: crate::server::settings::IdentityArgs,

    /// How long a stop waits for requests under way.
    #[arg(long, env = "CLAVIGER_DRAIN_TIMEOUT", default_value = "20s", value_parser = span)]
    pub drain_timeout: jiff::SignedDuration,
}

impl DoorArgs {
    /// The server's own host name.
    pub fn server_name(&self, system_namespace: &str) -> String {
        self.server_name
            .clone()
            .unwrap_or_else(|| format!("claviger.{system_namespace}.svc"))
    }
}

/// A DNS name, in lower case.
fn domain(text: &str) -> Result<String, &'static str> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let labels = || text.split('.');
    if text.len() <= 200 && labels().all(label) && !labels().next_back().is_some_and(numeric) {
        Ok(text.to_owned())
    } else {
        Err("not a host name in lower case, such as keys.example.com")
    }
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
    fn both_halves_take_what_each_takes() {
        let line = [
            "claviger",
            "run",
            "--namespaces=shop",
            "--domain=keys.example.com",
            "--listen=127.0.0.1:0",
            "--tls-secret=front",
        ];
        let Command::Run(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not run")
        };
        assert_eq!(args.controller.names.domain.unwrap(), "keys.example.com");
        assert_eq!(args.doors.server_name("keys"), "claviger.keys.svc");
        for wrong in [
            "",
            "Keys.example",
            "a..b",
            "-a",
            "a_b",
            "10.0.0.1",
            "a.",
            "https://a",
        ] {
            let domain = format!("--domain={wrong}");
            assert!(
                Cli::try_parse_from(["claviger", "server", &domain]).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn durations_are_those_of_manifests() {
        assert_eq!(span("90s"), Ok(jiff::SignedDuration::from_secs(90)));
        assert!(span("-1s").is_err() && span("soon").is_err());
    }
}
