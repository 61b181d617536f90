//! Who may do what: the built-in roles as data, and which Roles and bindings an assignment comes to.
//!
//! [`decide`] computes everything that should exist from what is declared, what is observed and the
//! time; [`changes`] compares it with what exists. Neither asks anybody anything.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use strum::{Display, EnumIter, IntoEnumIterator, IntoStaticStr};

use crate::domain::ledger::Owner;

/// The API group of our kinds.
const GROUP: &str = "claviger.dev";
/// How much of an assignment's name stands, for people, at the beginning of its objects' names.
const LEGIBLE: usize = 30;
/// Names of the chart's objects have at most this many characters.
const LONGEST_CHART_NAME: usize = 63;
/// How many hexadecimal digits a digest has.
const DIGITS: usize = 32;
/// How many of several things are named; there may be hundreds.
const TOLD: usize = 3;
/// How long what others change of an object is left after it was put right once.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_millis(20);
/// How long it is left at most, and after how long without such a change the pauses begin anew.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(1);

/// A list in words that stays short however long it is.
pub fn in_short<T: AsRef<str>>(list: &[T]) -> String {
    let told: Vec<&str> = list.iter().take(TOLD).map(AsRef::as_ref).collect();
    let told = told.join(",");
    match list.len().saturating_sub(TOLD) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

/// A kind of resource that a role can be narrowed to one of.
#[derive(Clone, Copy, Debug, Display, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A key of a function app.
    FunctionKey,
    /// A store of secrets.
    SecretVault,
    /// What issues tokens.
    TokenProvider,
}

impl Kind {
    /// The resource, as RBAC spells it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::FunctionKey => "functionkeys",
            Self::SecretVault => "secretvaults",
            Self::TokenProvider => "tokenproviders",
        }
    }

    /// Its subresources: what a rule for all resources means of this kind.
    pub fn subresources(self) -> &'static [&'static str] {
        match self {
            Self::FunctionKey => &["status", "value"],
            Self::SecretVault => &["secrets", "status"],
            Self::TokenProvider => &[
                "accesskey",
                "accesstoken",
                "clienttokens",
                "connections",
                "groups",
                "hubs",
                "livetrace",
                "status",
                "tokens",
                "users",
            ],
        }
    }
}

/// The roles that Claviger brings along. What each may do is in [`BuiltIn::permissions`].
#[derive(
    Clone, Copy, Debug, Display, EnumIter, IntoStaticStr, PartialEq, Eq, Hash, PartialOrd, Ord,
)]
pub enum BuiltIn {
    /// Reads keys and their values.
    FunctionKeyReader,
    /// Reads, makes, turns and removes keys.
    FunctionKeyOperator,
    /// Does everything with secrets, purging included.
    SecretVaultAdministrator,
    /// Sees which secrets there are, but no value.
    SecretVaultReader,
    /// Does everything with secrets but purge them.
    SecretVaultSecretsOfficer,
    /// Reads secrets.
    SecretVaultSecretsUser,
    /// Has tokens issued.
    TokenProviderIssuer,
    /// Has tokens issued, sees and revokes them.
    TokenProviderOperator,
    /// Does everything that a Web PubSub service offers.
    WebPubSubServiceOwner,
    /// Reads what a Web PubSub service tells.
    WebPubSubServiceReader,
}

/// Verbs over one resource or subresource of our group.
pub type Permission = (&'static str, &'static [&'static str]);

/// To see the resources themselves, which hold no value.
const SEE: &[&str] = &["get", "list", "watch"];

impl BuiltIn {
    /// What the ClusterRole of this role is called in the chart, after the name of the install.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::FunctionKeyReader => "function-key-reader",
            Self::FunctionKeyOperator => "function-key-operator",
            Self::SecretVaultAdministrator => "secret-vault-administrator",
            Self::SecretVaultReader => "secret-vault-reader",
            Self::SecretVaultSecretsOfficer => "secret-vault-secrets-officer",
            Self::SecretVaultSecretsUser => "secret-vault-secrets-user",
            Self::TokenProviderIssuer => "token-provider-issuer",
            Self::TokenProviderOperator => "token-provider-operator",
            Self::WebPubSubServiceOwner => "web-pubsub-service-owner",
            Self::WebPubSubServiceReader => "web-pubsub-service-reader",
        }
    }

    /// The kind that it speaks of.
    pub fn kind(self) -> Kind {
        match self {
            Self::FunctionKeyReader | Self::FunctionKeyOperator => Kind::FunctionKey,
            Self::SecretVaultAdministrator
            | Self::SecretVaultReader
            | Self::SecretVaultSecretsOfficer
            | Self::SecretVaultSecretsUser => Kind::SecretVault,
            Self::TokenProviderIssuer
            | Self::TokenProviderOperator
            | Self::WebPubSubServiceOwner
            | Self::WebPubSubServiceReader => Kind::TokenProvider,
        }
    }

    /// What it may do. The chart's ClusterRoles say the same; a test compares them.
    ///
    /// The Web PubSub roles follow the service's fourteen data actions one by one. Tokens for its clients
    /// are apart from `tokens`: who owns such a service has no tokens issued by providers of other kinds.
    ///
    /// | data action | subresource of `tokenproviders` | verb |
    /// |---|---|---|
    /// | `auth/accessKey/action` | `accesskey` | `create` |
    /// | `auth/accessToken/action` | `accesstoken` | `create` |
    /// | `clientConnection/generateToken/action` | `clienttokens` | `create` |
    /// | `clientConnection/send/action` | `connections` | `send` |
    /// | `clientConnection/read` | `connections` | `get` |
    /// | `clientConnection/write` | `connections` | `update` |
    /// | `group/send/action` | `groups` | `send` |
    /// | `group/read` | `groups` | `get` |
    /// | `group/write` | `groups` | `update` |
    /// | `hub/send/action` | `hubs` | `send` |
    /// | `livetrace/read` | `livetrace` | `get` |
    /// | `livetrace/write` | `livetrace` | `update` |
    /// | `user/send/action` | `users` | `send` |
    /// | `user/read` | `users` | `get` |
    pub fn permissions(self) -> &'static [Permission] {
        match self {
            Self::FunctionKeyReader => &[
                ("functionkeys", SEE),
                ("functionkeys/value", &["get", "list"]),
            ],
            Self::FunctionKeyOperator => &[
                ("functionkeys", SEE),
                (
                    "functionkeys/value",
                    &["get", "list", "create", "update", "delete"],
                ),
            ],
            Self::SecretVaultAdministrator => &[
                ("secretvaults", SEE),
                (
                    "secretvaults/secrets",
                    &[
                        "get", "list", "create", "update", "delete", "recover", "backup",
                        "restore", "purge",
                    ],
                ),
            ],
            Self::SecretVaultReader => {
                &[("secretvaults", SEE), ("secretvaults/secrets", &["list"])]
            }
            Self::SecretVaultSecretsOfficer => &[
                ("secretvaults", SEE),
                (
                    "secretvaults/secrets",
                    &[
                        "get", "list", "create", "update", "delete", "recover", "backup", "restore",
                    ],
                ),
            ],
            Self::SecretVaultSecretsUser => &[("secretvaults/secrets", &["get", "list"])],
            Self::TokenProviderIssuer => &[("tokenproviders/tokens", &["create"])],
            Self::TokenProviderOperator => &[
                ("tokenproviders", SEE),
                ("tokenproviders/tokens", &["create", "list", "delete"]),
            ],
            Self::WebPubSubServiceOwner => &[
                ("tokenproviders/accesskey", &["create"]),
                ("tokenproviders/accesstoken", &["create"]),
                ("tokenproviders/clienttokens", &["create"]),
                ("tokenproviders/connections", &["get", "update", "send"]),
                ("tokenproviders/groups", &["get", "update", "send"]),
                ("tokenproviders/hubs", &["send"]),
                ("tokenproviders/livetrace", &["get", "update"]),
                ("tokenproviders/users", &["get", "send"]),
            ],
            Self::WebPubSubServiceReader => &[
                ("tokenproviders/connections", &["get"]),
                ("tokenproviders/groups", &["get"]),
                ("tokenproviders/livetrace", &["get"]),
                ("tokenproviders/users", &["get"]),
            ],
        }
    }

    /// The same as rules of a Role.
    pub fn rules(self) -> Vec<Rule> {
        self.permissions()
            .iter()
            .map(|(resource, verbs)| Rule {
                groups: vec![GROUP.to_owned()],
                resources: vec![(*resource).to_owned()],
                names: Vec::new(),
                verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
                urls: Vec::new(),
            })
            .collect()
    }

    /// The name of its ClusterRole in an install whose objects' names begin with `prefix`; the chart
    /// makes names in the same way.
    pub fn cluster_role(self, prefix: &str) -> String {
        let suffix = self.suffix();
        let room = LONGEST_CHART_NAME - 1 - suffix.len();
        let cut = &prefix[..prefix.floor_char_boundary(room)];
        let cut = cut.strip_suffix('-').unwrap_or(cut);
        format!("{cut}-{suffix}")
    }
}

/// A rule of a Role, as Kubernetes has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    /// API groups.
    pub groups: Vec<String>,
    /// Resources, with their subresources behind a slash.
    pub resources: Vec<String>,
    /// Names it is narrowed to; empty: none in particular.
    pub names: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
    /// Paths that are no resources.
    pub urls: Vec<String>,
}

impl fmt::Display for Rule {
    /// As the apiserver words rules that are missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.names),
            ("NonResourceURLs", &self.urls),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{list:?}"))
            .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

/// What rules say of one resource of a kind and of nothing else. Verbs that no request for a single
/// object has (`create` and `deletecollection` of the resource itself) are left out.
pub fn narrow(rules: &[Rule], kind: Kind, name: &str) -> Vec<Rule> {
    let resource = kind.resource();
    let mut narrowed = Vec::new();
    for rule in rules {
        let ours = |group: &String| group == GROUP || group == "*";
        let named = rule.names.is_empty() || rule.names.iter().any(|other| other == name);
        if !named || !rule.groups.iter().any(ours) {
            continue;
        }
        let mut whole = false;
        let mut parts: BTreeSet<String> = BTreeSet::new();
        for asked in &rule.resources {
            match asked.split_once('/') {
                None if asked == "*" => {
                    whole = true;
                    let all = kind.subresources().iter();
                    parts.extend(all.map(|sub| format!("{resource}/{sub}")));
                }
                None => whole |= asked == resource,
                Some((of, sub)) if of == resource || of == "*" => {
                    parts.insert(format!("{resource}/{sub}"));
                }
                Some(_) => {}
            }
        }
        let on = |resources: Vec<String>, verbs: Vec<String>| Rule {
            groups: vec![GROUP.to_owned()],
            resources,
            names: vec![name.to_owned()],
            verbs,
            urls: Vec::new(),
        };
        let of_one = |verb: &&String| !matches!(verb.as_str(), "create" | "deletecollection");
        let verbs: Vec<String> = rule.verbs.iter().filter(of_one).cloned().collect();
        if whole && !verbs.is_empty() {
            narrowed.push(on(vec![resource.to_owned()], verbs));
        }
        if !parts.is_empty() && !rule.verbs.is_empty() {
            narrowed.push(on(parts.into_iter().collect(), rule.verbs.clone()));
        }
    }
    narrowed
}

/// Who gets a role.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// A group of users.
    Group(String),
    /// A ServiceAccount, by namespace and name.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A user.
    User(String),
}

impl Principal {
    /// Its kind, its namespace (empty where it has none) and its name.
    fn parts(&self) -> [&str; 3] {
        match self {
            Self::Group(name) => ["Group", "", name],
            Self::ServiceAccount { namespace, name } => ["ServiceAccount", namespace, name],
            Self::User(name) => ["User", "", name],
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(name) => write!(f, "Group {name}"),
            Self::ServiceAccount { namespace, name } => {
                write!(f, "ServiceAccount {namespace}/{name}")
            }
            Self::User(name) => write!(f, "User {name}"),
        }
    }
}

/// What is assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A role that Claviger brings along.
    BuiltIn(BuiltIn),
    /// A ClusterRole of the cluster's own.
    Custom(String),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(role) => role.fmt(f),
            Self::Custom(name) => write!(f, "ClusterRole/{name}"),
        }
    }
}

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// It is not there.
    Absent,
    /// Its value is one of these.
    In(BTreeSet<String>),
    /// Its value is none of these, or it is not there.
    NotIn(BTreeSet<String>),
    /// It is there.
    Present,
}

/// Which labels a namespace must have: every test must be passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(pub Vec<(String, Test)>);

impl Selector {
    /// Whether something with these labels is meant.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(label, test)| {
            let value = labels.get(label);
            match test {
                Test::Absent => value.is_none(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Present => value.is_some(),
            }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |values: &BTreeSet<String>| in_short(&values.iter().collect::<Vec<_>>());
        let tests: Vec<String> = self
            .0
            .iter()
            .take(TOLD)
            .map(|(label, test)| match test {
                Test::Absent => format!("!{label}"),
                Test::In(values) if values.len() == 1 => format!("{label}={}", listed(values)),
                Test::In(values) => format!("{label} in ({})", listed(values)),
                Test::NotIn(values) => format!("{label} notin ({})", listed(values)),
                Test::Present => label.clone(),
            })
            .collect();
        f.write_str(&tests.join(","))?;
        match self.0.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Where something may be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Cluster,
    /// In these namespaces.
    Named(BTreeSet<String>),
    /// In the assignment's own namespace.
    Namespace,
    /// With one resource of the assignment's own namespace.
    Resource {
        /// Its kind.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// In the namespaces with these labels.
    Selected(Selector),
}

impl Scope {
    /// Whether it reaches, or may reach, beyond the assignment's own namespace.
    pub fn is_wide(&self) -> bool {
        match self {
            Self::Cluster | Self::Named(_) | Self::Selected(_) => true,
            Self::Namespace | Self::Resource { .. } => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Named(names) if names.len() > TOLD => write!(f, "{} namespaces", names.len()),
            Self::Named(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                write!(f, "namespaces {}", names.join(","))
            }
            Self::Namespace => f.write_str("namespace"),
            Self::Resource { kind, name } => write!(f, "{kind}/{name}"),
            Self::Selected(selector) => write!(f, "namespaces {selector}"),
        }
    }
}

/// An assignment as declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its namespace.
    pub namespace: String,
    /// Its name and UID.
    pub owner: Owner,
    /// Who gets the role.
    pub principal: Principal,
    /// The role.
    pub role: Role,
    /// Where.
    pub scope: Scope,
    /// From when on.
    pub starts: Option<Timestamp>,
    /// Until when.
    pub expires: Option<Timestamp>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A digest of an assignment's namespace and name, as a label of its objects: 32 hexadecimal digits.
pub fn digest(namespace: &str, name: &str) -> String {
    hash(&["assignment", namespace, name])
}

/// 128 bits over parts none of which holds a zero byte.
fn hash(parts: &[&str]) -> String {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part.as_bytes());
        sha.update([0]);
    }
    sha.finalize()[..16]
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl Assignment {
    /// [`digest`] of this one.
    pub fn digest(&self) -> String {
        digest(&self.namespace, &self.owner.name)
    }

    /// The ClusterRole whose rules have to be read for it.
    pub fn source(&self) -> Option<&str> {
        match &self.role {
            Role::BuiltIn(_) => None,
            Role::Custom(name) => Some(name),
        }
    }

    /// The name of an object of this assignment. It holds a digest of the assignment, of what the
    /// object is and of who gets the role: two never share a name; another roleRef, which cannot be
    /// changed in place, has another name; and who had the role before is bound to nothing that is
    /// written for somebody else.
    fn object_name(&self, what: &str, role: Option<&RoleRef>) -> String {
        let name = &self.owner.name;
        let legible = self.legible();
        let (kind, role) = role.map_or(("", ""), |role| (role.kind(), role.name()));
        let [of, namespace, who] = self.principal.parts();
        let parts = [
            "object",
            &self.namespace,
            name,
            what,
            kind,
            role,
            of,
            namespace,
            who,
        ];
        format!("{legible}-{}", hash(&parts))
    }

    /// What the names of its objects begin with.
    fn legible(&self) -> &str {
        let name = &self.owner.name;
        name[..name.floor_char_boundary(LEGIBLE)].trim_end_matches(['-', '.'])
    }

    /// Whether this assignment, whatever it said at some time, may have made an object of this name.
    fn may_have_made(&self, name: &str) -> bool {
        let digits = name
            .strip_prefix(self.legible())
            .and_then(|rest| rest.strip_prefix('-'));
        digits.is_some_and(|digits| {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            digits.len() == DIGITS && digits.bytes().all(is_digit)
        })
    }
}

/// A role as bindings refer to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RoleRef {
    /// A ClusterRole.
    ClusterRole(String),
    /// A Role of the same namespace.
    Role(String),
}

impl RoleRef {
    /// Its kind, as Kubernetes spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ClusterRole(_) => "ClusterRole",
            Self::Role(_) => "Role",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::ClusterRole(name) | Self::Role(name) => name,
        }
    }
}

/// The kinds of object that assignments become. Bindings need what they refer to, hence the order.
#[derive(Clone, Copy, Debug, Display, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A Role.
    Role,
    /// A RoleBinding.
    RoleBinding,
    /// A ClusterRoleBinding.
    ClusterRoleBinding,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace; empty for one that has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// What an object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Who has which role.
    Binding {
        /// The role.
        role: RoleRef,
        /// Who.
        subjects: Vec<Principal>,
    },
    /// What a Role permits.
    Rules(Vec<Rule>),
}

/// What should exist.
pub type Objects = BTreeMap<Key, Arc<Content>>;

/// An object of ours as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its UID.
    pub uid: String,
    /// What it says; nothing where it says what none of ours does.
    pub content: Option<Content>,
    /// The digest in its label.
    pub digest: String,
    /// Namespace and name of the assignment, from its annotation.
    pub assignment: Option<(String, String)>,
    /// UIDs of the assignments that it goes with.
    pub owners: Vec<String>,
    /// Whether it is being deleted. Kubernetes heeds it until it is gone.
    pub going: bool,
    /// What holds it back from going.
    pub finalizers: Vec<String>,
    /// Who else but Claviger wrote to it last, as far as it tells.
    pub by: Option<String>,
}

impl Observed {
    /// Whether it grants nothing to anybody by itself.
    pub fn is_bare(&self) -> bool {
        match &self.content {
            Some(Content::Binding { subjects, .. }) => subjects.is_empty(),
            Some(Content::Rules(rules)) => rules.is_empty(),
            None => false,
        }
    }

    /// Whether all is done that can be done to be rid of it: it is being deleted, says nothing any
    /// more, and somebody holds it back.
    pub fn is_stuck(&self) -> bool {
        self.going && self.is_bare() && !self.finalizers.is_empty()
    }
}

/// A namespace as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub going: bool,
}

/// Which namespaces the install works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All.
    Everywhere,
    /// Those that its settings list.
    Listed(BTreeSet<String>),
}

/// What of the install bears on assignments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The namespace from which an assignment may reach beyond its own.
    pub system_namespace: String,
    /// What the names of the built-in ClusterRoles begin with.
    pub role_prefix: String,
    /// Which namespaces it works in.
    pub reach: Reach,
}

/// The rules of the ClusterRole that an assignment names ([`Assignment::source`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// There is no such ClusterRole, nor one of the built-in role that is to be bound.
    Missing,
    /// Nothing has to be known of it.
    None,
    /// What it permits.
    Rules(Arc<[Rule]>),
}

/// Why an assignment grants nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The ClusterRole permits what is not for assignments to grant: this rule.
    Beyond(Rule),
    /// It reaches beyond its namespace, and is not in the one where it may.
    Elsewhere,
    /// The install does not work everywhere.
    Narrow,
    /// The ClusterRole does not exist.
    NoRole,
    /// The ClusterRole says nothing of the resource.
    SaysNothing,
    /// The built-in role is not for resources of this kind.
    WrongKind,
}

/// Where an assignment stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It grants what it says.
    Active,
    /// It has ended.
    Expired(Timestamp),
    /// It is being deleted.
    Going,
    /// It begins later.
    Pending(Timestamp),
    /// It grants nothing.
    Refused(Refusal),
}

/// What an assignment comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it stands.
    pub standing: Standing,
    /// What should exist; all else of this assignment should not.
    pub objects: Objects,
    /// Namespaces that it names and that are not there, or that the install does not work in.
    pub absent: Vec<String>,
    /// When this changes though nothing else does.
    pub next: Option<Timestamp>,
}

/// What should exist for an assignment.
pub fn decide(
    assignment: &Assignment,
    namespaces: &BTreeMap<String, Namespace>,
    source: &Source,
    setting: &Setting,
    now: Timestamp,
) -> Decision {
    let nothing = |standing, next| Decision {
        standing,
        objects: Objects::new(),
        absent: Vec::new(),
        next,
    };
    if assignment.deleting {
        return nothing(Standing::Going, None);
    }
    // Whatever may be wrong with it: what has ended has ended.
    if let Some(at) = assignment.expires.filter(|at| *at <= now) {
        return nothing(Standing::Expired(at), None);
    }
    if let Some(refusal) = refusal(assignment, source, setting) {
        return nothing(Standing::Refused(refusal), assignment.expires);
    }
    if let Some(at) = assignment.starts.filter(|at| *at > now) {
        return nothing(Standing::Pending(at), Some(at));
    }
    let mut absent = Vec::new();
    let objects = match &assignment.scope {
        Scope::Cluster => bindings(assignment, setting, [String::new()]),
        Scope::Named(names) => {
            let (there, missing): (Vec<&String>, Vec<&String>) =
                names.iter().partition(|name| match &setting.reach {
                    Reach::Everywhere => namespaces.contains_key(*name),
                    Reach::Listed(listed) => listed.contains(*name),
                });
            absent = missing.into_iter().cloned().collect();
            let stays = |name: &&String| namespaces.get(*name).is_none_or(|found| !found.going);
            let there = there.into_iter().filter(stays).cloned();
            bindings(assignment, setting, there)
        }
        Scope::Namespace => bindings(assignment, setting, [assignment.namespace.clone()]),
        Scope::Resource { kind, name } => on_resource(assignment, *kind, name, source),
        Scope::Selected(selector) => {
            let meant = namespaces
                .iter()
                .filter(|(_, found)| !found.going && selector.matches(&found.labels))
                .map(|(name, _)| name.clone());
            bindings(assignment, setting, meant)
        }
    };
    Decision {
        standing: Standing::Active,
        objects,
        absent,
        next: assignment.expires,
    }
}

fn refusal(assignment: &Assignment, source: &Source, setting: &Setting) -> Option<Refusal> {
    let Assignment { scope, role, .. } = assignment;
    if scope.is_wide() && assignment.namespace != setting.system_namespace {
        return Some(Refusal::Elsewhere);
    }
    let everywhere = matches!(scope, Scope::Cluster | Scope::Selected(_));
    if everywhere && setting.reach != Reach::Everywhere {
        return Some(Refusal::Narrow);
    }
    match (role, source) {
        (Role::BuiltIn(role), source) => match scope {
            // Of one resource it is copied, not bound.
            Scope::Resource { kind, .. } => (role.kind() != *kind).then_some(Refusal::WrongKind),
            _ => (*source == Source::Missing).then_some(Refusal::NoRole),
        },
        (Role::Custom(_), Source::Rules(rules)) => {
            let granted = match scope {
                Scope::Resource { kind, name } => narrow(rules, *kind, name),
                _ => rules.to_vec(),
            };
            if granted.is_empty() {
                return Some(Refusal::SaysNothing);
            }
            granted.into_iter().find(is_beyond).map(Refusal::Beyond)
        }
        (Role::Custom(_), Source::Missing | Source::None) => Some(Refusal::NoRole),
    }
}

/// Whether a rule permits anything but what some built-in role does: what can be done with our kinds
/// through the doors, and seeing them. Claviger holds more than that, Secrets for one; whatever a
/// RoleAssignment says, none of that is granted on, nor a verb that no door knows.
fn is_beyond(rule: &Rule) -> bool {
    let is_ours = |asked: &String| {
        let offered = offered(asked);
        !offered.is_empty()
            && rule
                .verbs
                .iter()
                .all(|verb| offered.contains(verb.as_str()))
    };
    !rule.urls.is_empty()
        || rule.groups.iter().any(|group| group != GROUP)
        || !rule.resources.iter().all(is_ours)
}

/// The verbs that the built-in roles have for a resource or subresource of our group.
fn offered(asked: &str) -> BTreeSet<&'static str> {
    BuiltIn::iter()
        .flat_map(|role| role.permissions().iter())
        .filter(|(resource, _)| *resource == asked)
        .flat_map(|(_, verbs)| verbs.iter().copied())
        .collect()
}

/// A binding to the whole role in each of these namespaces; in that without a name, for the cluster.
fn bindings(
    assignment: &Assignment,
    setting: &Setting,
    namespaces: impl IntoIterator<Item = String>,
) -> Objects {
    let role = RoleRef::ClusterRole(match &assignment.role {
        Role::BuiltIn(role) => role.cluster_role(&setting.role_prefix),
        Role::Custom(name) => name.clone(),
    });
    let name = assignment.object_name("binding", Some(&role));
    let content = Arc::new(Content::Binding {
        role,
        subjects: vec![assignment.principal.clone()],
    });
    namespaces
        .into_iter()
        .map(|namespace| {
            let kind = if namespace.is_empty() {
                ObjectKind::ClusterRoleBinding
            } else {
                ObjectKind::RoleBinding
            };
            let name = name.clone();
            let key = Key {
                kind,
                namespace,
                name,
            };
            (key, Arc::clone(&content))
        })
        .collect()
}

/// A Role that speaks of one resource, and a binding to it.
fn on_resource(assignment: &Assignment, kind: Kind, name: &str, source: &Source) -> Objects {
    let rules = match (&assignment.role, source) {
        (Role::BuiltIn(role), _) => narrow(&role.rules(), kind, name),
        (Role::Custom(_), Source::Rules(rules)) => narrow(rules, kind, name),
        (Role::Custom(_), Source::Missing | Source::None) => Vec::new(),
    };
    let role = RoleRef::Role(assignment.object_name("role", None));
    let key = |kind, name: &str| Key {
        kind,
        namespace: assignment.namespace.clone(),
        name: name.to_owned(),
    };
    let binding = assignment.object_name("binding", Some(&role));
    BTreeMap::from([
        (
            key(ObjectKind::Role, role.name()),
            Arc::new(Content::Rules(rules)),
        ),
        (
            key(ObjectKind::RoleBinding, &binding),
            Arc::new(Content::Binding {
                role,
                subjects: vec![assignment.principal.clone()],
            }),
        ),
    ])
}

/// An object to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which.
    pub key: Key,
    /// What it is to say.
    pub content: Arc<Content>,
    /// What stands there.
    pub over: Over,
}

/// What stands where an object is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nothing.
    Nothing,
    /// An object of ours, with this UID, that says something else.
    Ours(String),
    /// An object of ours, with this UID, whose roleRef is another: it has to go first.
    Unchangeable(String),
}

/// What is to be done. The order is that of the fields: whose access ends is not kept waiting, and
/// who gets another role has the new one before the old one goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Objects, with their UIDs, that nothing takes the place of.
    pub withdraw: Vec<(Key, String)>,
    /// Objects to write, Roles before bindings.
    pub write: Vec<Write>,
    /// Objects, with their UIDs, whose place another has taken.
    pub retire: Vec<(Key, String)>,
    /// Objects, with their UIDs, that bear the assignment's marks and that it never made: however
    /// many somebody makes, they hold nothing up.
    pub foreign: Vec<(Key, String)>,
    /// Objects that are being deleted and grant nothing any more, and what holds them back.
    pub stuck: Vec<(Key, Vec<String>)>,
}

impl Changes {
    /// Whether nothing is to be done, or can be.
    pub fn are_none(&self) -> bool {
        self.withdraw.is_empty()
            && self.write.is_empty()
            && self.retire.is_empty()
            && self.foreign.is_empty()
    }
}

/// What it takes to get from what stands to what should.
pub fn changes(
    assignment: &Assignment,
    wanted: &Objects,
    standing: &BTreeMap<Key, Arc<Observed>>,
) -> Changes {
    let mut changes = Changes::default();
    let digest = assignment.digest();
    let granted: BTreeSet<&str> = wanted.keys().map(|key| key.namespace.as_str()).collect();
    // Bindings first: nobody has a role that is about to go.
    for (key, observed) in standing.iter().rev() {
        if wanted.contains_key(key) {
            continue;
        }
        if observed.is_stuck() {
            changes
                .stuck
                .push((key.clone(), observed.finalizers.clone()));
            continue;
        }
        let elsewhere = granted.contains(key.namespace.as_str())
            || granted.contains("")
            || (key.namespace.is_empty() && !granted.is_empty());
        // Nothing takes the place of what somebody else has.
        let to_the_same = match &observed.content {
            Some(Content::Binding { subjects, .. }) => {
                *subjects == std::slice::from_ref(&assignment.principal)
            }
            Some(Content::Rules(_)) => true,
            None => false,
        };
        let list = if !assignment.may_have_made(&key.name) {
            &mut changes.foreign
        } else if elsewhere && to_the_same {
            &mut changes.retire
        } else {
            &mut changes.withdraw
        };
        list.push((key.clone(), observed.uid.clone()));
    }
    for (key, content) in wanted {
        let over = match standing.get(key) {
            None => Over::Nothing,
            Some(observed) => match over(assignment, &digest, key, content, observed) {
                None => continue,
                Some(over) => over,
            },
        };
        changes.write.push(Write {
            key: key.clone(),
            content: Arc::clone(content),
            over,
        });
    }
    changes
}

/// How what is wanted is written over an object that stands under its name; nothing where that says
/// it already.
pub fn over(
    assignment: &Assignment,
    digest: &str,
    key: &Key,
    content: &Content,
    observed: &Observed,
) -> Option<Over> {
    if is_as_wanted(assignment, digest, key, content, observed) {
        return None;
    }
    let uid = observed.uid.clone();
    Some(match (content, &observed.content) {
        (Content::Binding { role, .. }, Some(Content::Binding { role: other, .. }))
            if role == other =>
        {
            Over::Ours(uid)
        }
        (Content::Rules(_), _) => Over::Ours(uid),
        (Content::Binding { .. }, _) => Over::Unchangeable(uid),
    })
}

/// That others change what Claviger puts right: the first time it is put right at once, then after
/// pauses that double.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contest {
    /// How often it was put right, one time soon after the other.
    pub rounds: u32,
    /// Until when it is left now.
    pub until: Timestamp,
}

impl Contest {
    /// Something was put right now, after all that before.
    pub fn after(before: Option<Self>, now: Timestamp) -> Self {
        let rounds = before
            .filter(|before| before.goes_on(now))
            .map_or(0, |before| before.rounds);
        let pause = FIRST_PAUSE * (1 << rounds.min(12));
        Self {
            rounds: rounds.saturating_add(1),
            until: now + pause.min(LONGEST_PAUSE),
        }
    }

    /// Whether what is changed now belongs to it.
    pub fn goes_on(&self, now: Timestamp) -> bool {
        now <= self.until + LONGEST_PAUSE
    }
}

fn is_as_wanted(
    assignment: &Assignment,
    digest: &str,
    key: &Key,
    content: &Content,
    observed: &Observed,
) -> bool {
    let goes_with =
        key.namespace != assignment.namespace || observed.owners.contains(&assignment.owner.uid);
    let named = observed
        .assignment
        .as_ref()
        .is_some_and(|(namespace, name)| {
            *namespace == assignment.namespace && *name == assignment.owner.name
        });
    goes_with && named && observed.digest == digest && observed.content.as_ref() == Some(content)
}
