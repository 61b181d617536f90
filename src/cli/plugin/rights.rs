//! Who may do what with keys and secrets, read out of the Roles and bindings of the cluster: the doors
//! ask the apiserver, the apiserver asks these, so nothing else is to be looked at.
//!
//! What the person who asks may not list is not seen; the table says so.

use std::{collections::BTreeMap, io::Write, str::FromStr};

use clap::Args;
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use snafu::{ResultExt, Snafu, ensure};

use super::{Error, PrintSnafu, RequestSnafu, print};

const GROUP: &str = "claviger.dev";
/// What can be done with resources of each kind beside the manifest: the subresources of the doors.
const DATA: [(&str, &[&str]); 3] = [
    ("functionkeys", &["value"]),
    ("secretvaults", &["secrets"]),
    (
        "tokenproviders",
        &[
            "accesskey",
            "accesstoken",
            "clienttokens",
            "connections",
            "groups",
            "hubs",
            "livetrace",
            "tokens",
            "users",
        ],
    ),
];

/// What to ask about.
#[derive(Args, Clone, Debug)]
pub struct WhoCanArgs {
    /// A verb, as in get, list, create, update, delete, recover or purge.
    pub verb: String,
    /// secretvaults/NAME, functionkeys/NAME or tokenproviders/NAME; without a name: any of them.
    pub target: Target,
    /// The namespace; the kubeconfig's when left out.
    #[arg(long, short)]
    pub namespace: Option<String>,
}

/// Whom to ask about.
#[derive(Args, Clone, Debug)]
pub struct AccessArgs {
    /// serviceaccount:NAMESPACE/NAME, user:NAME or group:NAME.
    pub principal: Principal,
}

/// A kind of ours, and perhaps one resource of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    resource: &'static str,
    name: Option<String>,
}

/// The text names no kind of ours.
#[derive(Debug, Snafu)]
#[snafu(display("write secretvaults/NAME, functionkeys/NAME or tokenproviders/NAME"))]
pub struct NotATarget;

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = match text.split_once('/') {
            Some((kind, name)) => (kind, Some(name)),
            None => (text, None),
        };
        ensure!(
            name.is_none_or(|name| !name.is_empty() && !name.contains('/')),
            NotATargetSnafu
        );
        let kind = kind.to_ascii_lowercase();
        let kind = kind.strip_suffix(".claviger.dev").unwrap_or(&kind);
        let singular = kind.strip_suffix('s').unwrap_or(kind);
        let known = DATA
            .iter()
            .find(|(resource, _)| resource.strip_suffix('s') == Some(singular));
        let Some((resource, _)) = known else {
            return NotATargetSnafu.fail();
        };
        Ok(Self {
            resource,
            name: name.map(str::to_owned),
        })
    }
}

/// Somebody, as RBAC calls them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Principal {
    /// A group of users.
    Group(String),
    /// An application.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A person.
    User(String),
}

/// The text names nobody.
#[derive(Debug, Snafu)]
#[snafu(display("write serviceaccount:NAMESPACE/NAME, user:NAME or group:NAME"))]
pub struct NotAPrincipal;

impl FromStr for Principal {
    type Err = NotAPrincipal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(account) = text.strip_prefix("system:serviceaccount:") {
            return account_of(account, ':');
        }
        match text.split_once(':') {
            Some(("serviceaccount" | "sa", account)) => account_of(account, '/'),
            Some(("user", name)) if !name.is_empty() => Ok(Self::user(name.to_owned())),
            Some(("group", name)) if !name.is_empty() => Ok(Self::Group(name.to_owned())),
            _ => NotAPrincipalSnafu.fail(),
        }
    }
}

fn account_of(text: &str, between: char) -> Result<Principal, NotAPrincipal> {
    let fits = |part: &str| !part.is_empty() && !part.contains([':', '/']);
    match text.split_once(between) {
        Some((namespace, name)) if fits(namespace) && fits(name) => Ok(Principal::ServiceAccount {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        _ => NotAPrincipalSnafu.fail(),
    }
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Group(name) => write!(f, "group:{name}"),
            Self::ServiceAccount { namespace, name } => {
                write!(f, "serviceaccount:{namespace}/{name}")
            }
            Self::User(name) => write!(f, "user:{name}"),
        }
    }
}

impl Principal {
    /// Whom the apiserver knows by this name: a ServiceAccount may be bound by its user name, too.
    fn user(name: String) -> Self {
        name.strip_prefix("system:serviceaccount:")
            .and_then(|account| account_of(account, ':').ok())
            .unwrap_or(Self::User(name))
    }

    fn of(subject: &Subject, namespace: Option<&str>) -> Option<Self> {
        let name = subject.name.clone();
        match subject.kind.as_str() {
            "Group" => Some(Self::Group(name)),
            "ServiceAccount" => Some(Self::ServiceAccount {
                namespace: subject.namespace.clone().or(namespace.map(str::to_owned))?,
                name,
            }),
            "User" => Some(Self::user(name)),
            _ => None,
        }
    }

    /// Itself, and the groups that the apiserver puts it into by itself.
    fn memberships(&self) -> Vec<Self> {
        let group = |name: &str| Self::Group(name.to_owned());
        let mut all = vec![self.clone()];
        match self {
            Self::Group(_) => {}
            Self::ServiceAccount { namespace, .. } => all.extend([
                group("system:serviceaccounts"),
                group(&format!("system:serviceaccounts:{namespace}")),
                group("system:authenticated"),
            ]),
            Self::User(name) if name == "system:anonymous" => {
                all.push(group("system:unauthenticated"));
            }
            Self::User(_) => all.push(group("system:authenticated")),
        }
        all
    }
}

/// Rules that somebody is bound to.
#[derive(Clone, Debug, PartialEq)]
struct Grant {
    principals: Vec<Principal>,
    /// Where it holds; everywhere if not said.
    namespace: Option<String>,
    /// By which binding.
    through: String,
    rules: Vec<PolicyRule>,
}

fn has(list: Option<&Vec<String>>, wanted: &str) -> bool {
    list.is_some_and(|list| list.iter().any(|item| item == "*" || item == wanted))
}

/// Whether a rule speaks of a resource, `secretvaults/secrets` for a subresource.
fn covers(rule: &PolicyRule, resource: &str) -> bool {
    let any = resource.split_once('/').map(|(_, sub)| format!("*/{sub}"));
    has(rule.api_groups.as_ref(), GROUP)
        && (has(rule.resources.as_ref(), resource)
            || any.is_some_and(|any| has(rule.resources.as_ref(), &any)))
}

/// Whether a rule allows a verb on a resource of this name, or on all if none is said.
fn allows(rule: &PolicyRule, verb: &str, resource: &str, name: Option<&str>) -> bool {
    let names = rule
        .resource_names
        .as_ref()
        .filter(|names| !names.is_empty());
    covers(rule, resource)
        && rule.verbs.iter().any(|item| item == "*" || item == verb)
        && match (names, name) {
            (None, _) => true,
            (Some(names), Some(name)) => names.iter().any(|item| item == name),
            (Some(_), None) => false,
        }
}

fn resources(kind: &'static str) -> impl Iterator<Item = String> {
    let subs = DATA.iter().find(|(resource, _)| *resource == kind);
    let subs = subs.map_or(&[][..], |(_, subs)| subs);
    std::iter::once(kind.to_owned()).chain(subs.iter().map(move |sub| format!("{kind}/{sub}")))
}

/// Who may do this: resource, principal, binding.
fn who_can(grants: &[Grant], verb: &str, target: &Target, namespace: &str) -> Vec<[String; 3]> {
    let mut rows = Vec::new();
    for resource in resources(target.resource) {
        for grant in grants {
            let here = grant
                .namespace
                .as_deref()
                .is_none_or(|scope| scope == namespace);
            let allowed = || {
                let mut rules = grant.rules.iter();
                rules.any(|rule| allows(rule, verb, &resource, target.name.as_deref()))
            };
            if here && allowed() {
                rows.extend(grant.principals.iter().map(|principal| {
                    [
                        resource.clone(),
                        principal.to_string(),
                        grant.through.clone(),
                    ]
                }));
            }
        }
    }
    rows.sort();
    rows.dedup();
    rows
}

/// What somebody may do with resources of ours: where, resource, verbs, names, binding.
fn access(grants: &[Grant], principal: &Principal) -> Vec<[String; 5]> {
    let memberships = principal.memberships();
    let mut rows = Vec::new();
    for grant in grants {
        let own = |one: &Principal| memberships.contains(one);
        if !grant.principals.iter().any(own) {
            continue;
        }
        let scope = grant.namespace.clone().unwrap_or_else(|| "*".to_owned());
        for resource in DATA.iter().flat_map(|(kind, _)| resources(kind)) {
            for rule in grant.rules.iter().filter(|rule| covers(rule, &resource)) {
                let names = rule.resource_names.clone().unwrap_or_default();
                rows.push([
                    scope.clone(),
                    resource.clone(),
                    rule.verbs.join(","),
                    if names.is_empty() {
                        "*".to_owned()
                    } else {
                        names.join(",")
                    },
                    grant.through.clone(),
                ]);
            }
        }
    }
    rows.sort();
    rows.dedup();
    rows
}

/// Shows who may do something with a resource.
///
/// # Errors
/// See [`Error`].
pub async fn show_who_can(
    client: Client,
    args: &WhoCanArgs,
    out: &mut impl Write,
) -> Result<(), Error> {
    let namespace = args
        .namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let (grants, mut remarks) = grants(&client, Some(&namespace)).await?;
    let found = who_can(&grants, &args.verb, &args.target, &namespace);
    if found.is_empty() {
        remarks.insert(0, "nobody whose binding can be seen".to_owned());
    }
    if args.target.resource == "secretvaults" && args.verb == "get" {
        remarks.push(format!(
            "what a vault syncs stands in Secrets of namespace {namespace}: kubectl who-can, or a review, tells who may get those"
        ));
    }
    let mut rows = vec![["MAY ON", "PRINCIPAL", "THROUGH"].map(str::to_owned)];
    rows.extend(found);
    print(&rows, &remarks, out).context(PrintSnafu)
}

/// Shows what somebody may do.
///
/// # Errors
/// See [`Error`].
pub async fn show_access(
    client: Client,
    args: &AccessArgs,
    out: &mut impl Write,
) -> Result<(), Error> {
    let (grants, mut remarks) = grants(&client, None).await?;
    let found = access(&grants, &args.principal);
    if found.is_empty() {
        remarks.insert(
            0,
            format!("{} is bound to nothing that can be seen", args.principal),
        );
    }
    if matches!(args.principal, Principal::User(_)) {
        remarks.push("groups that a person is in are known to the authenticator only: ask for group:NAME as well".to_owned());
    }
    let mut rows = vec![["NAMESPACE", "RESOURCE", "VERBS", "NAMES", "THROUGH"].map(str::to_owned)];
    rows.extend(found);
    print(&rows, &remarks, out).context(PrintSnafu)
}

/// All bindings, of one namespace or of all, with the rules of their roles; and what could not be seen.
async fn grants(
    client: &Client,
    namespace: Option<&str>,
) -> Result<(Vec<Grant>, Vec<String>), Error> {
    let all = ListParams::default();
    let mut remarks = Vec::new();
    let mut unseen = |what: &str| {
        remarks.push(format!(
            "you may not list {what}: what they grant is not in this table"
        ));
    };
    let cluster_roles = Api::<ClusterRole>::all(client.clone()).list(&all).await;
    let cluster_bindings = Api::<ClusterRoleBinding>::all(client.clone())
        .list(&all)
        .await;
    let (roles, bindings): (Api<Role>, Api<RoleBinding>) = match namespace {
        Some(namespace) => (
            Api::namespaced(client.clone(), namespace),
            Api::namespaced(client.clone(), namespace),
        ),
        None => (Api::all(client.clone()), Api::all(client.clone())),
    };
    let (roles, bindings) = (roles.list(&all).await, bindings.list(&all).await);
    let cluster_roles = seen(cluster_roles, "ClusterRoles", &mut unseen)?;
    let cluster_bindings = seen(cluster_bindings, "ClusterRoleBindings", &mut unseen)?;
    let roles = seen(roles, "Roles", &mut unseen)?;
    let bindings = seen(bindings, "RoleBindings", &mut unseen)?;

    let of_cluster: BTreeMap<String, Vec<PolicyRule>> = cluster_roles
        .into_iter()
        .map(|role| (role.name_any(), role.rules.unwrap_or_default()))
        .collect();
    let of_namespace: BTreeMap<(String, String), Vec<PolicyRule>> = roles
        .into_iter()
        .map(|role| {
            let key = (role.namespace().unwrap_or_default(), role.name_any());
            (key, role.rules.unwrap_or_default())
        })
        .collect();
    let rules_of = |reference: &RoleRef, namespace: Option<&String>| {
        let found = match (reference.kind.as_str(), namespace) {
            ("ClusterRole", _) => of_cluster.get(&reference.name),
            ("Role", Some(namespace)) => {
                of_namespace.get(&(namespace.clone(), reference.name.clone()))
            }
            _ => None,
        };
        found.cloned().unwrap_or_default()
    };
    let principals = |subjects: Option<Vec<Subject>>, namespace: Option<&str>| {
        let subjects = subjects.unwrap_or_default();
        let found = subjects
            .iter()
            .filter_map(|subject| Principal::of(subject, namespace));
        found.collect::<Vec<_>>()
    };
    let mut grants: Vec<Grant> = cluster_bindings
        .into_iter()
        .map(|binding| Grant {
            through: format!(
                "ClusterRoleBinding/{} to {}/{}",
                binding.name_any(),
                binding.role_ref.kind,
                binding.role_ref.name
            ),
            rules: rules_of(&binding.role_ref, None),
            principals: principals(binding.subjects, None),
            namespace: None,
        })
        .collect();
    grants.extend(bindings.into_iter().map(|binding| {
        let namespace = binding.namespace();
        Grant {
            through: format!(
                "RoleBinding/{} to {}/{}",
                binding.name_any(),
                binding.role_ref.kind,
                binding.role_ref.name
            ),
            rules: rules_of(&binding.role_ref, namespace.as_ref()),
            principals: principals(binding.subjects, namespace.as_deref()),
            namespace,
        }
    }));
    Ok((grants, remarks))
}

/// What was listed; nothing, and a remark, if that is forbidden.
fn seen<K: Clone>(
    listed: kube::Result<kube::core::ObjectList<K>>,
    what: &str,
    unseen: &mut impl FnMut(&str),
) -> Result<Vec<K>, Error> {
    match listed {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            unseen(what);
            Ok(Vec::new())
        }
        Err(source) => Err(source).context(RequestSnafu {
            what: format!("list {what}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], resources: &[&str], names: &[&str]) -> PolicyRule {
        let texts = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        PolicyRule {
            api_groups: Some(vec![GROUP.to_owned()]),
            resources: Some(texts(resources)),
            resource_names: Some(texts(names)),
            verbs: texts(verbs),
            ..PolicyRule::default()
        }
    }

    fn grant(principal: &str, namespace: Option<&str>, rules: Vec<PolicyRule>) -> Grant {
        Grant {
            principals: vec![principal.parse().unwrap()],
            namespace: namespace.map(str::to_owned),
            through: "a binding".to_owned(),
            rules,
        }
    }

    #[test]
    fn principals_and_targets_are_read_as_people_write_them() {
        let web = Principal::ServiceAccount {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        for text in [
            "serviceaccount:shop/web",
            "sa:shop/web",
            "system:serviceaccount:shop:web",
            "user:system:serviceaccount:shop:web",
        ] {
            assert_eq!(text.parse::<Principal>().unwrap(), web, "{text}");
        }
        assert_eq!(
            "user:a:b".parse::<Principal>().unwrap(),
            Principal::User("a:b".to_owned())
        );
        // A user may be called whatever the authenticator lets one be called.
        for name in ["sa:shop/web", "system:serviceaccount:shop:web:x", "group:a"] {
            let subject = Subject {
                kind: "User".to_owned(),
                name: name.to_owned(),
                ..Subject::default()
            };
            let user = Principal::User(name.to_owned());
            assert_eq!(Principal::of(&subject, None), Some(user.clone()));
            assert_eq!(format!("user:{name}").parse::<Principal>().unwrap(), user);
        }
        for text in [
            "", "web", "user:", "sa:web", "sa:/web", "sa:a/b/c", "robot:x",
        ] {
            assert!(text.parse::<Principal>().is_err(), "{text}");
        }
        for text in [
            "secretvaults/payments",
            "SecretVault/payments",
            "secretvaults.claviger.dev/payments",
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(
                (target.resource, target.name.as_deref()),
                ("secretvaults", Some("payments"))
            );
        }
        for text in ["", "secrets/a", "secretvaults/", "secretvaults/a/b"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn rules_are_read_as_the_apiserver_reads_them() {
        let sub = "secretvaults/secrets";
        for (rule, name, allowed) in [
            (rule(&["get"], &[sub], &[]), Some("a"), true),
            (rule(&["get"], &[sub], &[]), None, true),
            (rule(&["*"], &["*"], &[]), Some("a"), true),
            (rule(&["get"], &["*/secrets"], &[]), Some("a"), true),
            (rule(&["get"], &[sub], &["a"]), Some("a"), true),
            (rule(&["get"], &[sub], &["a"]), Some("b"), false),
            (rule(&["get"], &[sub], &["a"]), None, false),
            (rule(&["list"], &[sub], &[]), Some("a"), false),
            (rule(&["get"], &["secretvaults"], &[]), Some("a"), false),
            (rule(&["get"], &["secretvaults/*"], &[]), Some("a"), false),
            (
                PolicyRule {
                    api_groups: Some(vec![String::new()]),
                    ..rule(&["get"], &[sub], &[])
                },
                Some("a"),
                false,
            ),
        ] {
            assert_eq!(
                allows(&rule, "get", sub, name),
                allowed,
                "{rule:?} {name:?}"
            );
        }
    }

    #[test]
    fn who_can_and_access_tell_the_same_from_both_sides() {
        let reads = || vec![rule(&["get"], &["secretvaults/secrets"], &["payments"])];
        let grants = [
            grant("sa:shop/web", Some("shop"), reads()),
            grant("group:system:serviceaccounts:shop", Some("shop"), reads()),
            grant("user:root", None, vec![rule(&["*"], &["*"], &[])]),
            grant("sa:other/web", Some("other"), reads()),
        ];
        let target = "secretvaults/payments".parse().unwrap();
        let who: Vec<String> = who_can(&grants, "get", &target, "shop")
            .into_iter()
            .map(|[resource, principal, _]| format!("{resource} {principal}"))
            .collect();
        assert_eq!(
            who,
            [
                "secretvaults user:root",
                "secretvaults/secrets group:system:serviceaccounts:shop",
                "secretvaults/secrets serviceaccount:shop/web",
                "secretvaults/secrets user:root",
            ]
        );
        let rows = access(&grants, &"sa:shop/web".parse().unwrap());
        assert_eq!(rows.len(), 1, "its own and its group's are alike: {rows:?}");
        assert_eq!(
            rows[0][..4],
            ["shop", "secretvaults/secrets", "get", "payments"]
        );
        assert!(access(&grants, &"user:nobody".parse().unwrap()).is_empty());
        assert!(access(&grants, &"user:root".parse().unwrap()).len() > 5);
    }
}
