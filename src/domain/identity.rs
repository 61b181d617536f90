//! Who a caller is, whichever way it was proved, and what Kubernetes calls it.
//!
//! A name alone says little: ServiceAccounts are deleted and made again under the same name. So the
//! UID is part of an identity and travels with it into every review and every access token.

use std::collections::{BTreeMap, BTreeSet};

use snafu::{Snafu, ensure};

/// Who a caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Somebody who presented a key of a function app.
    FunctionKey(FunctionKeyUser),
    /// A person or program whom an OIDC issuer of the install vouches for.
    Oidc(OidcUser),
    /// A ServiceAccount of this cluster.
    ServiceAccount(ServiceAccount),
}

impl Identity {
    /// What a SubjectAccessReview is asked about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::FunctionKey(user) => Subject::new(
                format!(
                    "{FUNCTION_KEY}{}:{}:{}",
                    user.namespace, user.storage, user.key
                ),
                [],
            ),
            Self::Oidc(user) => Subject::new(user.name.clone(), user.groups.iter().cloned()),
            Self::ServiceAccount(account) => {
                let mut subject = Subject::new(
                    account.user(),
                    [
                        SERVICE_ACCOUNTS.to_owned(),
                        format!("{SERVICE_ACCOUNTS}:{}", account.namespace),
                    ],
                );
                subject.uid = Some(account.uid.clone());
                if let Some(pod) = &account.pod {
                    for (key, value) in [(POD_NAME, &pod.name), (POD_UID, &pod.uid)] {
                        subject.extra.insert(key.to_owned(), vec![value.clone()]);
                    }
                }
                subject
            }
        }
    }

    /// Refuses a ServiceAccount of Claviger's own namespace. The controller holds whatever it may
    /// grant, so it must never be the one that asks.
    ///
    /// # Errors
    /// [`Refusal::Own`].
    pub fn not_of(self, system_namespace: &str) -> Result<Self, Refusal> {
        match &self {
            Self::ServiceAccount(account) => {
                ensure!(account.namespace != system_namespace, OwnSnafu);
            }
            Self::FunctionKey(_) | Self::Oidc(_) => {}
        }
        Ok(self)
    }
}

/// A ServiceAccount that proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which one of that name.
    pub uid: String,
    /// The pod that its token was bound to, if it was.
    pub pod: Option<Pod>,
}

impl ServiceAccount {
    /// Takes what the apiserver says of a token's owner.
    ///
    /// # Errors
    /// When it is no ServiceAccount with a UID.
    pub fn reviewed(
        user: &str,
        uid: &str,
        extra: &BTreeMap<String, Vec<String>>,
    ) -> Result<Self, Refusal> {
        let (namespace, name) = user
            .strip_prefix(SERVICE_ACCOUNT)
            .and_then(|rest| rest.split_once(':'))
            .filter(|(namespace, name)| is_object_name(namespace) && is_object_name(name))
            .ok_or(Refusal::NotServiceAccount)?;
        ensure!(!uid.is_empty(), NotServiceAccountSnafu);
        let one = |key| match extra.get(key).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        let pod = one(POD_NAME)
            .zip(one(POD_UID))
            .map(|(name, uid)| Pod { name, uid });
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            pod,
        })
    }

    /// The user that Kubernetes knows it as.
    pub fn user(&self) -> String {
        format!("{SERVICE_ACCOUNT}{}:{}", self.namespace, self.name)
    }

    /// Whether a `client_id` names this ServiceAccount: by its UID, as `<namespace>/<name>`, or as
    /// the user that Kubernetes knows it as.
    pub fn is_client(&self, client_id: &str) -> bool {
        client_id == self.uid
            || client_id == self.user()
            || client_id.split_once('/') == Some((&self.namespace, &self.name))
    }
}

/// A pod that a token was bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Which one of that name.
    pub uid: String,
}

/// A user that an OIDC issuer vouches for; names carry the issuer's prefix already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcUser {
    name: String,
    groups: BTreeSet<String>,
}

impl OidcUser {
    /// A user of this name in these groups, as the issuer that has this prefix calls them.
    ///
    /// # Errors
    /// When a name is empty, too long or has control characters, or would be one that Kubernetes or
    /// Claviger gives.
    pub fn new(prefix: &Prefix, name: &str, groups: &[String]) -> Result<Self, Refusal> {
        ensure!(groups.len() <= MOST_GROUPS, TooManyGroupsSnafu);
        let prefixed = |name: &str| {
            ensure!(
                !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(char::is_control),
                NameSnafu
            );
            let full = format!("{}{name}", prefix.0);
            ensure!(!is_reserved(name) && !is_reserved(&full), ReservedSnafu);
            Ok(full)
        };
        Ok(Self {
            name: prefixed(name)?,
            groups: groups
                .iter()
                .map(|group| prefixed(group))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// What the names of an issuer's users and groups begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// A prefix: not empty, and no beginning of names that others give.
    ///
    /// # Errors
    /// [`Refusal::Prefix`].
    pub fn new(text: &str) -> Result<Self, Refusal> {
        let well = !text.is_empty()
            && text.len() <= LONGEST_NAME
            && !text.contains(char::is_control)
            && RESERVED
                .iter()
                .all(|reserved| !text.starts_with(reserved) && !reserved.starts_with(text));
        ensure!(well, PrefixSnafu);
        Ok(Self(text.to_owned()))
    }

    /// Whether a name could come from both: then one issuer's user could be taken for another's.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0) || other.0.starts_with(&self.0)
    }
}

/// Somebody who presented a key of a function app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionKeyUser {
    namespace: String,
    storage: String,
    key: String,
}

impl FunctionKeyUser {
    /// The holder of the key of this name in this Secret or ConfigMap.
    ///
    /// # Errors
    /// When a name is none: the parts are told apart by colons.
    pub fn new(namespace: &str, storage: &str, key: &str) -> Result<Self, Refusal> {
        let well = is_object_name(namespace)
            && is_object_name(storage)
            && !key.is_empty()
            && key.len() <= LONGEST_NAME
            && !key.contains(char::is_control);
        ensure!(well, NameSnafu);
        Ok(Self {
            namespace: namespace.to_owned(),
            storage: storage.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// What Kubernetes is asked about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Subject {
    /// The user.
    pub user: String,
    /// Its groups.
    pub groups: BTreeSet<String>,
    /// Which one of that name.
    pub uid: Option<String>,
    /// What else is known of it.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Subject {
    /// `system:authenticated` is what `kubectl auth can-i --as` adds, too: both must agree.
    fn new(user: String, groups: impl IntoIterator<Item = String>) -> Self {
        Self {
            user,
            groups: groups
                .into_iter()
                .chain([AUTHENTICATED.to_owned()])
                .collect(),
            uid: None,
            extra: BTreeMap::new(),
        }
    }
}

/// Why somebody is nobody that may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Refusal {
    /// A name of a user or group cannot be one.
    #[snafu(display(
        "a name of the user or of a group is empty, longer than {LONGEST_NAME} bytes, or has control characters"
    ))]
    Name,
    /// The apiserver knows the caller as something else.
    #[snafu(display(
        "the token is not that of a ServiceAccount: present the token that Kubernetes projects into the pod"
    ))]
    NotServiceAccount,
    /// One of Claviger's own ServiceAccounts.
    #[snafu(display(
        "ServiceAccounts of the namespace that Claviger runs in may not call it: use one of another namespace"
    ))]
    Own,
    /// The prefix of an issuer.
    #[snafu(display(
        "the prefix of an OIDC issuer must have 1 to {LONGEST_NAME} bytes and be no beginning of system: or claviger:, nor begin with them"
    ))]
    Prefix,
    /// A name that Kubernetes or Claviger gives.
    #[snafu(display(
        "names of users and groups that begin with system: or claviger: are not taken from an issuer"
    ))]
    Reserved,
    /// More groups than a review should carry.
    #[snafu(display(
        "the token names more than {MOST_GROUPS} groups: have the issuer send those that matter here"
    ))]
    TooManyGroups,
}

/// Whether this can be the name of an object: what RFC 1123 calls a subdomain.
pub fn is_object_name(text: &str) -> bool {
    let outer = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.len() <= 253
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            outer(bytes.first())
                && outer(bytes.last())
                && bytes
                    .iter()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
        })
}

fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| name.starts_with(reserved))
}

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
const AUTHENTICATED: &str = "system:authenticated";
const FUNCTION_KEY: &str = "claviger:functionkey:";
const RESERVED: [&str; 2] = ["system:", "claviger:"];
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const LONGEST_NAME: usize = 256;
const MOST_GROUPS: usize = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extra(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()]))
            .collect()
    }

    fn web() -> ServiceAccount {
        let pod = extra(&[(POD_NAME, "web-1"), (POD_UID, "p-1"), ("other", "x")]);
        ServiceAccount::reviewed("system:serviceaccount:shop:web", "u-1", &pod).unwrap()
    }

    #[test]
    fn a_service_account_is_known_by_name_uid_and_pod() {
        let subject = Identity::ServiceAccount(web()).subject();
        assert_eq!(subject.user, "system:serviceaccount:shop:web");
        assert_eq!(subject.uid.as_deref(), Some("u-1"));
        let groups: Vec<_> = subject.groups.iter().map(String::as_str).collect();
        assert_eq!(
            groups,
            [
                "system:authenticated",
                "system:serviceaccounts",
                "system:serviceaccounts:shop"
            ]
        );
        assert_eq!(
            subject.extra,
            extra(&[(POD_NAME, "web-1"), (POD_UID, "p-1")])
        );
    }

    #[test]
    fn nobody_but_a_service_account_is_one() {
        for (user, uid) in [
            ("kubernetes-admin", "u"),
            ("system:serviceaccount:shop:web", ""),
            ("system:serviceaccount:shop", "u"),
            ("system:serviceaccount::web", "u"),
            ("system:serviceaccount:shop:", "u"),
            ("system:serviceaccount:shop:web:admin", "u"),
            ("system:serviceaccount:Shop:web", "u"),
            ("system:node:a", "u"),
            ("x:system:serviceaccount:shop:web", "u"),
        ] {
            let refused = ServiceAccount::reviewed(user, uid, &BTreeMap::new());
            assert_eq!(refused, Err(Refusal::NotServiceAccount), "{user}");
        }
    }

    #[test]
    fn claviger_itself_may_not_call() {
        let own = Identity::ServiceAccount(ServiceAccount {
            namespace: "claviger-system".to_owned(),
            ..web()
        });
        assert_eq!(own.not_of("claviger-system"), Err(Refusal::Own));
        assert!(
            Identity::ServiceAccount(web())
                .not_of("claviger-system")
                .is_ok()
        );
    }

    #[test]
    fn a_client_id_is_the_callers_own_or_none() {
        for own in ["u-1", "shop/web", "system:serviceaccount:shop:web"] {
            assert!(web().is_client(own), "{own}");
        }
        for other in ["", "u-2", "web", "shop", "shop/web/", "shop/we", "SHOP/web"] {
            assert!(!web().is_client(other), "{other}");
        }
    }

    #[test]
    fn users_of_an_issuer_keep_its_prefix_and_take_no_reserved_name() {
        let corp = Prefix::new("corp:").unwrap();
        let groups = ["ops".to_owned()];
        let subject = Identity::Oidc(OidcUser::new(&corp, "ada", &groups).unwrap()).subject();
        assert_eq!(subject.user, "corp:ada");
        assert!(subject.groups.contains("corp:ops") && !subject.groups.contains("ops"));
        assert_eq!(subject.uid, None);
        for name in ["system:masters", "claviger:functionkey:a:b:c"] {
            assert_eq!(OidcUser::new(&corp, name, &[]), Err(Refusal::Reserved));
            let group = [name.to_owned()];
            assert_eq!(OidcUser::new(&corp, "ada", &group), Err(Refusal::Reserved));
        }
        for name in ["", "a\nb"] {
            assert_eq!(OidcUser::new(&corp, name, &[]), Err(Refusal::Name));
        }
        let many = vec!["g".to_owned(); MOST_GROUPS + 1];
        assert_eq!(
            OidcUser::new(&corp, "ada", &many),
            Err(Refusal::TooManyGroups)
        );
        for prefix in [
            "",
            "s",
            "sys",
            "system:",
            "system:x",
            "claviger:",
            "c",
            "a\n",
        ] {
            assert_eq!(Prefix::new(prefix), Err(Refusal::Prefix), "{prefix}");
        }
        assert!(corp.overlaps(&Prefix::new("corp:eu:").unwrap()));
        assert!(!corp.overlaps(&Prefix::new("lab:").unwrap()));
    }

    #[test]
    fn the_holder_of_a_function_key_is_named_after_it() {
        let user = FunctionKeyUser::new("shop", "orders-keys", "host.function.key:a").unwrap();
        let subject = Identity::FunctionKey(user).subject();
        assert_eq!(
            subject.user,
            "claviger:functionkey:shop:orders-keys:host.function.key:a"
        );
        assert!(FunctionKeyUser::new("a:b", "c", "d").is_err());
        assert!(FunctionKeyUser::new("a", "b:c", "d").is_err());
        assert!(FunctionKeyUser::new("a", "b", "").is_err());
    }

    proptest! {
        #[test]
        fn no_issuer_can_name_a_user_of_kubernetes(prefix in "[a-z:]{0,9}", name in "[a-z:]{0,20}") {
            if let Ok(user) = Prefix::new(&prefix).and_then(|prefix| {
                OidcUser::new(&prefix, &name, std::slice::from_ref(&name))
            }) {
                prop_assert!(!is_reserved(&user.name));
                prop_assert!(user.groups.iter().all(|group| !is_reserved(group)));
            }
        }

        #[test]
        fn two_keys_never_have_one_holder(
            one in "[a-z.-]{1,4}", two in "[a-z.-]{1,4}", key in "[a-z:]{1,6}", other in "[a-z:]{1,6}",
        ) {
            let users = [(&one, &two, &key), (&two, &one, &other)].map(|(namespace, storage, key)| {
                FunctionKeyUser::new(namespace, storage, key).ok()
            });
            if let [Some(first), Some(second)] = users {
                let same = first == second;
                let names = [first, second].map(|user| Identity::FunctionKey(user).subject().user);
                prop_assert_eq!(names[0] == names[1], same);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(user in ".{0,80}", uid in ".{0,8}") {
            let _ = ServiceAccount::reviewed(&user, &uid, &BTreeMap::new());
            let _ = is_object_name(&user);
        }
    }
}
