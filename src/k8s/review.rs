//! Asking the apiserver who somebody is and what they may do. Whoever asks has a request waiting, so
//! an answer that takes long is none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use serde::Serialize;
use snafu::Snafu;

use crate::{domain::identity::Subject, k8s::describe};

const TIMEOUT: Duration = Duration::from_secs(2);
const GROUP: &str = "claviger.dev";

/// The apiserver did not answer.
#[derive(Debug, Snafu)]
pub enum Error {
    /// It refused or could not be reached.
    #[snafu(display("cannot {what}: {}", describe(source)))]
    Asking {
        /// What was asked.
        what: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// It took too long.
    #[snafu(display("cannot {what}: no answer within {} s", TIMEOUT.as_secs()))]
    Slow {
        /// What was asked.
        what: &'static str,
    },
}

/// What the apiserver says of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reviewed {
    /// It is good for one of the audiences.
    Authenticated {
        /// Whose it is.
        user: String,
        /// Which one of that name.
        uid: String,
        /// What else is known.
        extra: BTreeMap<String, Vec<String>>,
    },
    /// It is not good.
    Refused,
}

/// Asks whose token this is. The token must be for one of the audiences.
///
/// # Errors
/// See [`Error`].
pub async fn review_token(
    client: &Client,
    token: &str,
    audiences: &[String],
) -> Result<Reviewed, Error> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(audiences.to_vec()),
        },
        ..TokenReview::default()
    };
    let reviews = Api::<TokenReview>::all(client.clone());
    let params = PostParams::default();
    let asked = reviews.create(&params, &review);
    let status = within("review a token", asked)
        .await?
        .status
        .unwrap_or_default();
    // An apiserver that does not know of audiences answers none: then the token may be for anybody.
    let ours = status
        .audiences
        .unwrap_or_default()
        .iter()
        .any(|audience| audiences.contains(audience));
    if status.authenticated != Some(true) || !ours {
        return Ok(Reviewed::Refused);
    }
    let user = status.user.unwrap_or_default();
    Ok(Reviewed::Authenticated {
        user: user.username.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

/// Something that somebody wants to do to one resource of ours. It always has a name, so that rights
/// on named resources hold for everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Action {
    /// The verb, such as `get`.
    pub verb: String,
    /// The kind, in the plural: `secretvaults`.
    pub resource: String,
    /// What of it, such as `secrets`.
    pub subresource: String,
    /// Where it is.
    pub namespace: String,
    /// Which one.
    pub name: String,
}

/// Asks whether somebody may do something.
///
/// # Errors
/// See [`Error`].
pub async fn review_access(
    client: &Client,
    subject: &Subject,
    action: &Action,
) -> Result<bool, Error> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(subject.user.clone()),
            groups: Some(subject.groups.iter().cloned().collect()),
            uid: subject.uid.clone(),
            extra: (!subject.extra.is_empty()).then(|| subject.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                version: Some("*".to_owned()),
                verb: Some(action.verb.clone()),
                resource: Some(action.resource.clone()),
                subresource: Some(action.subresource.clone()),
                namespace: Some(action.namespace.clone()),
                name: Some(action.name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let params = PostParams::default();
    let asked = reviews.create(&params, &review);
    let status = within("review an access", asked)
        .await?
        .status
        .unwrap_or_default();
    Ok(status.allowed && status.denied != Some(true))
}

/// Asks for a review of each kind, about nobody, to learn whether one may.
///
/// # Errors
/// See [`Error`].
pub async fn may_review(client: &Client) -> Result<(), Error> {
    review_token(client, "nobody", &["nobody".to_owned()]).await?;
    let nobody = Subject {
        user: "system:anonymous".to_owned(),
        groups: BTreeSet::new(),
        uid: None,
        extra: BTreeMap::new(),
    };
    let action = Action {
        verb: "get".to_owned(),
        resource: "secretvaults".to_owned(),
        subresource: "secrets".to_owned(),
        namespace: "default".to_owned(),
        name: "nobody".to_owned(),
    };
    review_access(client, &nobody, &action).await.map(|_| ())
}

/// Asks for the UID of the ServiceAccount that has this name now, if one has.
///
/// # Errors
/// See [`Error`].
pub async fn read_account_uid(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let asked = accounts.get_metadata_opt(name);
    let found = within("read a ServiceAccount", asked).await?;
    // One that is being deleted authenticates no more, as with Kubernetes' own tokens.
    Ok(found
        .filter(|account| account.metadata.deletion_timestamp.is_none())
        .and_then(|account| account.metadata.uid))
}

async fn within<T>(
    what: &'static str,
    asked: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Asking { what, source }),
        Err(_) => SlowSnafu { what }.fail(),
    }
}
