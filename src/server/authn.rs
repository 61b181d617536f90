//! Who are you: a bearer token, or the assertion that the token endpoint takes, becomes an
//! [`Identity`].
//!
//! What a token says of itself decides only whom to ask. One that names our issuer is verified with
//! our keys; one that names an issuer of the install, with that one's keys; any other must be a
//! ServiceAccount's, which only the apiserver can tell. What can be seen to be wrong without asking
//! is not asked.
//!
//! A token of ours comes with every request of its bearer for up to an hour. That its signature is
//! right is found out once; all else is looked at each time.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use kube::Client;
use snafu::{OptionExt as _, ResultExt as _, Snafu, ensure};
use tokio::sync::watch;

use crate::{
    clock,
    domain::{
        access_token::{self, Heading, LONGEST_TEXT, Says, Signed},
        identity::{self, Identity, ServiceAccount},
    },
    k8s::review::{Reviewed, read_account_uid, review_token},
    server::{
        cache::{Bounded, Cache, Keep, Key},
        error::Refusal,
        gate::TokenGate,
        oidc::{self, Issuer},
        settings::Settings,
    },
    token_keys::Sight,
};

/// How long the apiserver's word on a token holds, and on the existence of a ServiceAccount.
pub const KNOWN: Duration = Duration::from_mins(1);
/// How long its refusal holds.
pub const UNKNOWN: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);
const CAPACITY: usize = 20_000;
/// What is known of tokens and accounts is forgotten in no single place.
const EVERYWHERE: &str = "";
/// Signatures that need not be verified again: each has the claims in memory, about a kilobyte.
const SIGNATURES: usize = 4096;

/// Finds out who a caller is.
pub struct Authenticator {
    client: Client,
    settings: Arc<Settings>,
    keys: watch::Receiver<Sight>,
    issuers: Vec<Issuer>,
    tokens: Cache<Verdict>,
    accounts: Cache<Standing>,
    gate: TokenGate,
    /// Tokens of ours that were believed once.
    signed: Mutex<Bounded<Arc<Signed>>>,
}

/// A ServiceAccount that asks for an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asserted {
    /// Which one.
    pub account: ServiceAccount,
    /// When its own token ends.
    pub expires: Timestamp,
}

/// A token that says that it is ours.
enum Own<'a> {
    /// One of our keys has signed it, as was found out before.
    Known(Arc<Signed>),
    /// Who knows.
    New(&'a str),
}

/// What the apiserver said of a token.
#[derive(Clone, Debug)]
enum Verdict {
    Account(ServiceAccount),
    Crowded,
    Other(identity::Refusal),
    Refused,
    Unavailable,
}

/// What the apiserver said of a ServiceAccount that has a certain UID.
#[derive(Clone, Copy, Debug)]
enum Standing {
    Gone,
    There,
    Unavailable,
}

impl Authenticator {
    /// Asks through this client, and verifies with these keys.
    ///
    /// # Errors
    /// When the CA of an issuer cannot be read.
    pub fn new(
        client: Client,
        settings: Arc<Settings>,
        keys: watch::Receiver<Sight>,
    ) -> Result<Self, oidc::SettingsError> {
        Ok(Self {
            issuers: settings
                .issuers
                .iter()
                .cloned()
                .map(Issuer::new)
                .collect::<Result<_, _>>()?,
            client,
            settings,
            keys,
            tokens: Cache::new(CAPACITY),
            accounts: Cache::new(CAPACITY),
            gate: TokenGate::default(),
            signed: Mutex::new(Bounded::new(SIGNATURES)),
        })
    }

    /// Whose bearer token a request of this peer carries. Access tokens must be for a resource that
    /// the door takes.
    ///
    /// # Errors
    /// See [`Unproved`].
    pub async fn bearer(
        &self,
        headers: &HeaderMap,
        peer: Option<IpAddr>,
        is_for: impl Fn(&str) -> bool,
    ) -> Result<Identity, Unproved> {
        let token = bearer_of(headers)?;
        let key = Key::of(&[token.as_bytes()]);
        let now = clock::now();
        let known = self.signatures().get(&key).cloned();
        let identity = if let Some(signed) = known {
            Identity::ServiceAccount(self.own(key, Own::Known(signed), is_for, now).await?)
        } else {
            let says = Says::of(token).context(MalformedSnafu)?;
            if says.iss == self.settings.issuer {
                Identity::ServiceAccount(self.own(key, Own::New(token), is_for, now).await?)
            } else if let Some(issuer) = self.issuers.iter().find(|one| one.url() == says.iss) {
                let verified = issuer.verify(token, now).await;
                Identity::Oidc(verified.context(OidcSnafu)?)
            } else {
                Identity::ServiceAccount(self.reviewed(key, token, &says, peer, now).await?)
            }
        };
        let system = &self.settings.system_namespace;
        identity.not_of(system).context(NobodySnafu)
    }

    /// Which ServiceAccount asserts itself by this token of its own, sent by this peer.
    ///
    /// # Errors
    /// See [`Unproved`].
    pub async fn assertion(&self, token: &str, peer: Option<IpAddr>) -> Result<Asserted, Unproved> {
        ensure!(is_token(token), MalformedSnafu);
        let says = Says::of(token).context(MalformedSnafu)?;
        // An access token does not make another: its bearer would live for ever.
        ensure!(says.iss != self.settings.issuer, NotAssertionSnafu);
        let now = clock::now();
        let key = Key::of(&[token.as_bytes()]);
        let account = self.reviewed(key, token, &says, peer, now).await?;
        let identity = Identity::ServiceAccount(account.clone());
        let system = &self.settings.system_namespace;
        identity.not_of(system).context(NobodySnafu)?;
        // Without an end it is one of the old kind, which live for ever.
        let expires = says
            .exp
            .and_then(|exp| Timestamp::from_second(exp).ok())
            .unwrap_or(Timestamp::MAX);
        Ok(Asserted { account, expires })
    }

    fn signatures(&self) -> std::sync::MutexGuard<'_, Bounded<Arc<Signed>>> {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bearer of an access token of ours.
    async fn own(
        &self,
        key: Key,
        own: Own<'_>,
        is_for: impl Fn(&str) -> bool,
        now: Timestamp,
    ) -> Result<ServiceAccount, Unproved> {
        let sight = self.keys.borrow().clone();
        let keys = sight.keys().context(NoKeysSnafu)?;
        let (signed, is_new) = match own {
            Own::Known(signed) => (signed, false),
            Own::New(token) => {
                let signed = keys.signed(token, now).context(DisbelievedSnafu)?;
                (Arc::new(signed), true)
            }
        };
        let claims = keys
            .believe(&signed, &self.settings.issuer, is_for, now)
            .context(DisbelievedSnafu)?;
        if is_new {
            self.signatures().insert(key, Arc::clone(&signed));
        }
        let account = claims.account().context(MalformedSnafu)?;
        // Names are used again: it must be that very one.
        let key = Key::of(&[
            account.namespace.as_bytes(),
            account.name.as_bytes(),
            account.uid.as_bytes(),
        ]);
        let asking = async {
            match read_account_uid(&self.client, &account.namespace, &account.name).await {
                Ok(Some(uid)) if uid == account.uid => Standing::There,
                Ok(_) => Standing::Gone,
                Err(error) => {
                    tracing::warn!(%error, "a ServiceAccount is not let in that may be gone");
                    Standing::Unavailable
                }
            }
        };
        let keep = |standing: &Standing| match standing {
            Standing::There => Keep::Asked(KNOWN),
            Standing::Gone => Keep::Asked(UNKNOWN),
            Standing::Unavailable => Keep::Came(SILENCE),
        };
        match self.accounts.get(EVERYWHERE, key, keep, asking).await {
            Standing::There => Ok(account),
            Standing::Gone => GoneSnafu.fail(),
            Standing::Unavailable => UnavailableSnafu.fail(),
        }
    }

    /// Whose ServiceAccount token this is.
    async fn reviewed(
        &self,
        key: Key,
        token: &str,
        says: &Says,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<ServiceAccount, Unproved> {
        // What no apiserver signs, none is asked about.
        let heading = Heading::of(token).context(MalformedSnafu)?;
        ensure!(
            heading.is_asymmetric() && !token.ends_with('.'),
            MalformedSnafu
        );
        let left = says.exp.map(|exp| exp.saturating_sub(now.as_second()));
        ensure!(left.is_none_or(|left| left > 0), ExpiredSnafu);
        let audiences = &self.settings.audiences;
        ensure!(
            audiences.iter().any(|audience| says.aud.contains(audience)),
            AudienceSnafu {
                audiences: audiences.join(" or ")
            }
        );
        let asking = async {
            let Some(_pass) = self.gate.enter(peer, &says.iss).await else {
                return Verdict::Crowded;
            };
            match review_token(&self.client, token, audiences).await {
                Ok(Reviewed::Authenticated { user, uid, extra }) => {
                    match ServiceAccount::reviewed(&user, &uid, &extra) {
                        Ok(account) => {
                            self.gate.met(&says.iss);
                            Verdict::Account(account)
                        }
                        Err(refusal) => Verdict::Other(refusal),
                    }
                }
                Ok(Reviewed::Refused) => Verdict::Refused,
                Err(error) => {
                    tracing::warn!(%error, "nobody is let in whose token is not reviewed");
                    Verdict::Unavailable
                }
            }
        };
        let left = left.and_then(|left| u64::try_from(left).ok());
        let keep = |verdict: &Verdict| match verdict {
            Verdict::Account(_) => {
                Keep::Asked(left.map_or(KNOWN, |left| KNOWN.min(Duration::from_secs(left))))
            }
            Verdict::Other(_) | Verdict::Refused => Keep::Asked(UNKNOWN),
            Verdict::Crowded | Verdict::Unavailable => Keep::Came(SILENCE),
        };
        match self.tokens.get(EVERYWHERE, key, keep, asking).await {
            Verdict::Account(account) => Ok(account),
            Verdict::Crowded => CrowdedSnafu.fail(),
            Verdict::Other(refusal) => Err(refusal).context(NobodySnafu),
            Verdict::Refused => RefusedSnafu.fail(),
            Verdict::Unavailable => UnavailableSnafu.fail(),
        }
    }
}

/// Why it is not known who the caller is.
#[derive(Clone, Debug, PartialEq, Eq, Snafu)]
pub enum Unproved {
    /// Nothing was presented.
    #[snafu(display("the request has no bearer token: ask for one where the challenge says"))]
    Absent,
    /// A ServiceAccount token for somebody else.
    #[snafu(display(
        "the ServiceAccount token is for another audience: have it projected for the audience {audiences}"
    ))]
    Audience {
        /// Those that are taken.
        audiences: String,
    },
    /// Too many others.
    #[snafu(display("too many tokens are being looked at: try again in a moment"))]
    Crowded,
    /// An access token that is not believed.
    #[snafu(display("{source}"))]
    Disbelieved {
        /// Why.
        source: access_token::Disbelief,
    },
    /// A ServiceAccount token that is over.
    #[snafu(display(
        "the ServiceAccount token has expired: read the file anew before each use, Kubernetes renews it there, or make one by kubectl create token"
    ))]
    Expired,
    /// The bearer of an access token is no more.
    #[snafu(display(
        "the ServiceAccount that the access token was issued for is deleted, or was made anew since: ask for a new token"
    ))]
    Gone,
    /// No token at all.
    #[snafu(display(
        "what was presented is not a JSON web token: present the content of the file that AZURE_FEDERATED_TOKEN_FILE names, or an access token"
    ))]
    Malformed,
    /// Signing keys are missing.
    #[snafu(display("the server has no signing keys yet: try again in a moment"))]
    NoKeys,
    /// Somebody who may not call.
    #[snafu(display("{source}"))]
    Nobody {
        /// Why.
        source: identity::Refusal,
    },
    /// An access token in place of an assertion.
    #[snafu(display(
        "an access token cannot be exchanged for another: present the ServiceAccount token"
    ))]
    NotAssertion,
    /// A user of an issuer that is not believed.
    #[snafu(display("{source}"))]
    Oidc {
        /// Why.
        source: oidc::Disbelief,
    },
    /// The apiserver does not know it.
    #[snafu(display(
        "the apiserver does not accept the ServiceAccount token: the ServiceAccount or the pod that it was made for is deleted, or it comes from another cluster; start the pod anew, or make a token by kubectl create token"
    ))]
    Refused,
    /// The apiserver does not answer.
    #[snafu(display(
        "the apiserver gives no answer, and the log of the server of Claviger says why: try again in a moment"
    ))]
    Unavailable,
}

impl Unproved {
    /// What the caller is told.
    pub fn refusal(&self) -> Refusal {
        let (reason, number) = match self {
            Self::Absent => ("no_token", 900_144),
            Self::Audience { .. } => ("wrong_audience", 700_212),
            Self::Disbelieved { source } => match source {
                access_token::Disbelief::Expired => ("expired", 700_082),
                access_token::Disbelief::Audience => ("wrong_audience", 500_011),
                _ => ("not_believed", 50_013),
            },
            Self::Expired => ("expired", 700_024),
            Self::Gone => ("gone", 700_016),
            Self::Malformed => ("malformed", 50_027),
            Self::Crowded => ("crowded", 90_033),
            Self::NoKeys
            | Self::Unavailable
            | Self::Oidc {
                source: oidc::Disbelief::Unavailable,
            } => ("unavailable", 90_033),
            Self::Nobody { .. } => ("nobody", 700_213),
            Self::NotAssertion => ("not_an_assertion", 700_021),
            Self::Oidc { .. } => ("oidc", 50_013),
            Self::Refused => ("refused", 700_213),
        };
        let unavailable = ["crowded", "unavailable"].contains(&reason);
        Refusal {
            status: if unavailable {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::UNAUTHORIZED
            },
            code: if unavailable {
                "ServiceUnavailable"
            } else {
                "Unauthorized"
            },
            number,
            reason,
            sentence: sentence(&self.to_string()),
        }
    }
}

/// The token of the one `Authorization` header.
fn bearer_of(headers: &HeaderMap) -> Result<&str, Unproved> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().context(AbsentSnafu)?;
    ensure!(values.next().is_none(), MalformedSnafu);
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .context(MalformedSnafu)?;
    ensure!(scheme.eq_ignore_ascii_case("Bearer"), AbsentSnafu);
    ensure!(is_token(token), MalformedSnafu);
    Ok(token)
}

/// Whether a text has the letters and the length of a token.
fn is_token(text: &str) -> bool {
    let of_tokens = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= LONGEST_TEXT && !text.is_empty() && text.bytes().all(of_tokens)
}

/// A clause with a capital and a full stop.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    letters
        .next()
        .map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn one_header_carries_one_token() {
        for one in ["Bearer a.b.c", "bearer a.b.c", "BEARER a.b.c"] {
            assert_eq!(bearer_of(&headers(&[one])), Ok("a.b.c"));
        }
        assert_eq!(bearer_of(&headers(&[])), Err(Unproved::Absent));
        assert_eq!(bearer_of(&headers(&["Basic YTpi"])), Err(Unproved::Absent));
        for none in [
            &["Bearer"][..],
            &["Bearer "],
            &["Bearer  a.b.c"],
            &["Bearer a.b.c d"],
            &["Bearer a.b.c,Bearer d.e.f"],
            &["Bearer a.b.c", "Bearer d.e.f"],
        ] {
            assert_eq!(
                bearer_of(&headers(none)),
                Err(Unproved::Malformed),
                "{none:?}"
            );
        }
        let long = format!("Bearer {}", "a".repeat(LONGEST_TEXT + 1));
        assert_eq!(bearer_of(&headers(&[&long])), Err(Unproved::Malformed));
    }

    proptest! {
        #[test]
        fn a_header_is_one_token_behind_its_scheme_or_refused(
            value in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "(?i)(bearer|basic|bear)[ \t,]{0,2}[a-z0-9._,= \t-]{0,20}".prop_map(String::into_bytes),
            ],
        ) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.clone())]);
                if let Ok(token) = bearer_of(&headers) {
                    let text = value.to_str().unwrap();
                    prop_assert_eq!(text[..7].to_ascii_lowercase(), "bearer ");
                    prop_assert_eq!(&text[7..], token);
                    prop_assert!(!token.contains([' ', ',', '=']));
                }
            }
        }
    }
}
