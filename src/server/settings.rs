//! What the front door is told at its start: its name, its tenant, for whom and for what.

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;
use snafu::{ResultExt as _, Snafu, ensure};

use crate::{
    domain::identity::is_object_name,
    server::oidc::{self, IssuerSettings},
};

/// Who may call, by which names, and what for.
#[derive(Args, Clone, Debug)]
pub struct IdentityArgs {
    /// Port by which callers reach the server.
    #[arg(long, env = "CLAVIGER_SERVER_PORT", default_value_t = 443)]
    pub server_port: u16,

    /// The tenant (AZURE_TENANT_ID). With adfs, clients of all languages run without any option.
    #[arg(long, env = "CLAVIGER_TENANT", default_value = "adfs")]
    pub tenant: String,

    /// Audiences for which ServiceAccount tokens are taken, separated by commas; api://AzureADTokenExchange and the server's own address when left out.
    #[arg(
        long = "audience",
        env = "CLAVIGER_AUDIENCES",
        value_delimiter = ',',
        value_name = "AUDIENCE"
    )]
    pub audiences: Vec<String>,

    /// Resources for which access tokens are issued besides the doors' own, separated by commas.
    #[arg(
        long = "token-resource",
        env = "CLAVIGER_TOKEN_RESOURCES",
        value_delimiter = ',',
        default_value = "https://vault.azure.net,https://webpubsub.azure.com",
        value_name = "URL"
    )]
    pub token_resources: Vec<String>,

    /// An OIDC issuer whose users may call: url=…,audience=…,prefix=…[,user=sub][,groups=groups][,jwks=…][,ca=FILE]. May be repeated.
    #[arg(long = "oidc-issuer", value_name = "SETTINGS")]
    pub oidc_issuers: Vec<IssuerSettings>,

    /// File to which accesses are noted; standard output when left out.
    #[arg(long, env = "CLAVIGER_AUDIT_FILE", value_name = "FILE")]
    pub audit_file: Option<PathBuf>,
}

/// Where the doors are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Claviger's own namespace.
    pub system_namespace: &'a str,
    /// The server's own host name.
    pub server_name: &'a str,
    /// The cluster's own domain: what stands behind svc in the long names of Services.
    pub cluster_domain: &'a str,
    /// The domain of the install's own, if it has one.
    pub domain: Option<&'a str>,
}

/// Why it cannot be so.
#[derive(Debug, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum Error {
    /// A domain that is none.
    #[snafu(display("{flag} is not the name of a host or domain, in lower case: {name:?}"))]
    Name { flag: &'static str, name: String },
    /// The issuers do not go together, or one cannot be called.
    #[snafu(display("{source}"))]
    Oidc { source: oidc::SettingsError },
    /// A resource that no client asks for.
    #[snafu(display(
        "--token-resource must be a URL that begins with https://, without a space: {resource:?}"
    ))]
    Resource { resource: String },
    /// A tenant that not every client takes.
    #[snafu(display(
        "--tenant may have lower-case letters, digits, - and . only, since clients in Node write it in lower case: {tenant:?}"
    ))]
    Tenant { tenant: String },
}

/// What the front door is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Claviger's own namespace.
    pub system_namespace: String,
    /// `https://` and the server's name, and the port unless it is 443.
    pub authority: String,
    /// The tenant.
    pub tenant: String,
    /// Who issues access tokens.
    pub issuer: String,
    /// The resource that the server's own doors are: the parent domain of its name.
    pub resource: String,
    /// The audiences for which ServiceAccount tokens are taken.
    pub audiences: Vec<String>,
    /// What access tokens are for.
    pub resources: Resources,
    /// The OIDC issuers.
    pub issuers: Vec<IssuerSettings>,
}

impl Settings {
    /// Reads the arguments.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(args: &IdentityArgs, place: &Place<'_>) -> Result<Self, Error> {
        let server = place.server_name;
        let names = [
            ("--server-name", Some(server)),
            ("--cluster-domain", Some(place.cluster_domain)),
            ("--domain", place.domain),
        ];
        for (flag, name) in names {
            let name = name.unwrap_or("unset");
            ensure!(is_object_name(name), NameSnafu { flag, name });
        }
        let tenant = &args.tenant;
        let of_tenants =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        ensure!(
            tenant.bytes().all(of_tenants) && tenant.bytes().any(|byte| byte != b'.'),
            TenantSnafu { tenant }
        );
        let address = |host: &str| match args.server_port {
            443 => format!("{HTTPS}{host}"),
            port => format!("{HTTPS}{host}:{port}"),
        };
        let authority = address(server);
        let resource = address(server.split_once('.').map_or(server, |(_, parent)| parent));
        let audiences: Vec<String> = args
            .audiences
            .iter()
            .filter(|audience| !audience.is_empty())
            .cloned()
            .collect();
        oidc::check(&args.oidc_issuers).context(OidcSnafu)?;
        Ok(Self {
            system_namespace: place.system_namespace.to_owned(),
            issuer: format!("{authority}/{tenant}"),
            audiences: if audiences.is_empty() {
                vec![EXCHANGE.to_owned(), authority.clone()]
            } else {
                audiences
            },
            resources: Resources::new(args, place, &resource)?,
            resource,
            issuers: args.oidc_issuers.clone(),
            authority,
            tenant: tenant.clone(),
        })
    }
}

/// The audience that SDKs and their admission webhooks ask for by themselves.
pub const EXCHANGE: &str = "api://AzureADTokenExchange";

/// The resources for which access tokens are issued: those that were named, and the parent domains
/// of the doors, which their challenges name.
#[derive(Clone, Debug)]
pub struct Resources {
    named: BTreeSet<String>,
    domain: Option<String>,
    services: [String; 2],
}

impl Resources {
    fn new(args: &IdentityArgs, place: &Place<'_>, own: &str) -> Result<Self, Error> {
        let mut named = BTreeSet::from([own.to_owned()]);
        for resource in &args.token_resources {
            if resource.is_empty() {
                continue;
            }
            let well = resource.len() > HTTPS.len()
                && resource.starts_with(HTTPS)
                && resource.bytes().all(|byte| byte.is_ascii_graphic());
            ensure!(well, ResourceSnafu { resource });
            named.insert(without_slash(resource).to_owned());
        }
        Ok(Self {
            named,
            domain: place.domain.map(str::to_owned),
            services: ["svc".to_owned(), format!("svc.{}", place.cluster_domain)],
        })
    }

    /// The resource as tokens name it, without a slash at its end; nothing if it is none of ours.
    pub fn find<'a>(&self, resource: &'a str) -> Option<&'a str> {
        let resource = without_slash(resource);
        (self.named.contains(resource) || self.is_domain_of_doors(resource)).then_some(resource)
    }

    fn is_domain_of_doors(&self, resource: &str) -> bool {
        let Some(address) = resource.strip_prefix(HTTPS) else {
            return false;
        };
        let host = match address.split_once(':') {
            None => address,
            Some((host, port)) => {
                let well = !port.starts_with('0')
                    && port.bytes().all(|byte| byte.is_ascii_digit())
                    && port.parse::<u16>().is_ok();
                if !well {
                    return false;
                }
                host
            }
        };
        if self.domain.as_deref() == Some(host) {
            return true;
        }
        self.services.iter().any(|services| {
            host == services
                || host
                    .strip_suffix(services)
                    .and_then(|rest| rest.strip_suffix('.'))
                    .is_some_and(|namespace| !namespace.contains('.') && is_object_name(namespace))
        })
    }
}

fn without_slash(resource: &str) -> &str {
    resource.strip_suffix('/').unwrap_or(resource)
}

const HTTPS: &str = "https://";

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        identity: IdentityArgs,
    }

    const PLACE: Place<'static> = Place {
        system_namespace: "claviger-system",
        server_name: "claviger.claviger-system.svc",
        cluster_domain: "cluster.local",
        domain: Some("keys.example.com"),
    };

    fn settings_at(place: Place<'_>, args: &[&str]) -> Result<Settings, Error> {
        let line = Line::parse_from([&["claviger"], args].concat());
        Settings::new(&line.identity, &place)
    }

    fn settings(args: &[&str]) -> Result<Settings, Error> {
        settings_at(PLACE, args)
    }

    #[test]
    fn everything_has_a_default_that_runs_without_options() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.authority, "https://claviger.claviger-system.svc");
        assert_eq!(settings.issuer, "https://claviger.claviger-system.svc/adfs");
        assert_eq!(
            settings.audiences,
            [EXCHANGE, "https://claviger.claviger-system.svc"]
        );
    }

    #[test]
    fn a_port_is_named_unless_it_goes_without_saying() {
        let place = Place {
            server_name: "id.keys.example.com",
            ..PLACE
        };
        let settings = settings_at(place, &["--server-port=8443"]).unwrap();
        assert_eq!(settings.resource, "https://keys.example.com:8443");
        assert_eq!(settings.issuer, "https://id.keys.example.com:8443/adfs");
    }

    #[test]
    fn what_no_client_takes_is_refused() {
        for args in [
            &["--tenant=a/b"][..],
            &["--tenant="],
            &["--tenant=Contoso"],
            &["--tenant=.."],
            &["--token-resource=http://x"],
            &["--token-resource=https://"],
        ] {
            assert!(settings(args).is_err(), "{args:?}");
        }
        let upper = settings(&["--tenant=Contoso"]).unwrap_err().to_string();
        assert!(
            upper.contains("lower-case letters") && upper.contains("Node"),
            "{upper}"
        );
        for name in ["https://x", "X", "*.example.com", ""] {
            let server_name = Place {
                server_name: name,
                ..PLACE
            };
            let domain = Place {
                domain: Some(name),
                ..PLACE
            };
            assert!(settings_at(server_name, &[]).is_err(), "{name}");
            assert!(settings_at(domain, &[]).is_err(), "{name}");
        }
    }

    #[test]
    fn tokens_are_for_what_was_named_and_for_the_doors() {
        let resources = settings(&[]).unwrap().resources;
        for (resource, found) in [
            ("https://vault.azure.net", Some("https://vault.azure.net")),
            ("https://vault.azure.net/", Some("https://vault.azure.net")),
            ("https://shop.svc", Some("https://shop.svc")),
            ("https://shop.svc:8443", Some("https://shop.svc:8443")),
            (
                "https://shop.svc.cluster.local",
                Some("https://shop.svc.cluster.local"),
            ),
            ("https://svc", Some("https://svc")),
            ("https://keys.example.com", Some("https://keys.example.com")),
            ("https://vault.azure.net//", None),
            ("https://management.azure.com", None),
            ("https://evil.svc.example.com", None),
            ("https://a.b.svc", None),
            ("https://.svc", None),
            ("https://xsvc", None),
            ("https://shop.svc:0", None),
            ("https://shop.svc:99999", None),
            ("https://shop.svc@evil", None),
            ("http://shop.svc", None),
            ("https://SHOP.svc", None),
            ("", None),
        ] {
            assert_eq!(resources.find(resource), found, "{resource}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_resource_or_not(text in ".{0,80}") {
            let resources = settings(&[]).unwrap().resources;
            if let Some(found) = resources.find(&text) {
                prop_assert!(found.starts_with("https://"));
            }
        }
    }
}
