//! Which host names the server answers to, and which of them share a certificate.

use crate::{
    cli::{DoorArgs, NameArgs},
    domain::ca::is_within,
};

/// The names of the server and of its doors.
#[derive(Clone, Debug)]
pub struct Names {
    server: String,
    cluster_domain: String,
    domain: Option<String>,
}

/// Names that share a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// The doors below the install's own domain.
    Domain,
    /// The doors of one namespace.
    Namespace(String),
    /// The server's own name, where none of the others has it.
    Server,
}

impl Names {
    /// The names, as configured.
    pub fn new(names: &NameArgs, doors: &DoorArgs, system_namespace: &str) -> Self {
        Self {
            server: doors.server_name(system_namespace),
            cluster_domain: names.cluster_domain.clone(),
            domain: names.domain.clone(),
        }
    }

    /// The server's own host name.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether Claviger's own CA can sign for the server's own name.
    pub fn server_is_ours(&self) -> bool {
        self.is_permitted(&self.server)
    }

    fn is_permitted(&self, name: &str) -> bool {
        let cluster = format!("svc.{}", self.cluster_domain);
        is_within(name, "svc")
            || is_within(name, &cluster)
            || self
                .domain
                .as_ref()
                .is_some_and(|domain| is_within(name, domain))
    }

    /// Which certificate is for a host name in lower case; `None`: the name is none of ours.
    pub fn group(&self, name: &str) -> Option<Group> {
        let cluster = format!("svc.{}", self.cluster_domain);
        let host = name
            .strip_suffix(&cluster)
            .or_else(|| name.strip_suffix("svc"))
            .and_then(|rest| rest.strip_suffix('.'));
        if let Some((door, namespace)) = host.and_then(|host| host.split_once('.'))
            && is_label(door)
            && is_label(namespace)
        {
            return Some(Group::Namespace(namespace.to_owned()));
        }
        let below = self.domain.as_ref().and_then(|domain| {
            name.strip_suffix(domain.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
        });
        if below.is_some_and(is_label) {
            return Some(Group::Domain);
        }
        (name == self.server && self.server_is_ours()).then_some(Group::Server)
    }

    /// The names that the certificate of a group is for.
    pub fn of(&self, group: &Group) -> Vec<String> {
        match group {
            Group::Domain => self
                .domain
                .iter()
                .map(|domain| format!("*.{domain}"))
                .collect(),
            Group::Namespace(namespace) => vec![
                format!("*.{namespace}.svc"),
                format!("*.{namespace}.svc.{}", self.cluster_domain),
            ],
            Group::Server => vec![self.server.clone()],
        }
    }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(server: &str) -> Names {
        Names {
            server: server.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            domain: Some("keys.example.com".to_owned()),
        }
    }

    #[test]
    fn each_name_of_ours_has_its_group_and_others_have_none() {
        let names = names("claviger.claviger-system.svc");
        let namespace = |name: &str| Some(Group::Namespace(name.to_owned()));
        for (name, group) in [
            ("payments-vault.shop.svc", namespace("shop")),
            ("payments-vault.shop.svc.cluster.local", namespace("shop")),
            ("claviger.claviger-system.svc", namespace("claviger-system")),
            ("payments-vault--shop.keys.example.com", Some(Group::Domain)),
            ("svc", None),
            (".svc", None),
            ("shop.svc", None),
            ("a.b.shop.svc", None),
            ("a.shop.svc.other.local", None),
            ("a.shop.ssvc", None),
            ("a..svc", None),
            ("*.shop.svc", None),
            ("-a.shop.svc", None),
            ("A.shop.svc", None),
            ("keys.example.com", None),
            ("a.b.keys.example.com", None),
            ("xkeys.example.com", None),
            ("example.com", None),
            ("vault.azure.net", None),
            ("", None),
        ] {
            assert_eq!(names.group(name), group, "{name}");
        }
    }

    #[test]
    fn the_servers_own_name_has_a_certificate_where_the_ca_may_sign_for_it() {
        for (server, group) in [
            ("keys.example.com", Some(Group::Server)),
            ("id.of.keys.example.com", Some(Group::Server)),
            (
                "claviger.claviger-system.svc.cluster.local",
                Some(Group::Namespace("claviger-system".to_owned())),
            ),
            ("login.example.com", None),
        ] {
            let names = names(server);
            assert_eq!(names.group(server), group, "{server}");
            assert_eq!(names.server_is_ours(), group.is_some(), "{server}");
        }
    }

    #[test]
    fn the_names_of_a_group_are_those_that_lead_to_it() {
        let names = names("id.of.keys.example.com");
        for name in ["a.shop.svc", "a.keys.example.com", "id.of.keys.example.com"] {
            let group = names.group(name).unwrap();
            for of_group in names.of(&group) {
                let one = of_group.replace('*', "x");
                assert_eq!(names.group(&one), Some(group.clone()), "{one}");
            }
        }
    }
}
