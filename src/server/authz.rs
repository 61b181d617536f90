//! May you: the apiserver's answer to a SubjectAccessReview, and nobody else's.
//!
//! Yes holds for ten seconds, which is as long as a right that is taken away by a binding that is not
//! ours may go on; no for two. When the apiserver is down, answers hold to their time and then
//! nobody may do anything. A caller who asks for ever other names waits behind itself.

use std::{sync::Arc, time::Duration};

use kube::Client;

use crate::{
    domain::identity::Identity,
    k8s::review::{Action, review_access},
    server::{
        cache::{Cache, Keep, Key},
        gate::Gate,
    },
};

/// How long a yes holds.
pub const YES: Duration = Duration::from_secs(10);
/// How long a no holds.
pub const NO: Duration = Duration::from_secs(2);
/// How long no answer at all holds: whoever waited for the same need not wait again.
pub const SILENCE: Duration = Duration::from_millis(500);
const CAPACITY: usize = 20_000;

/// Decides who may do what.
pub struct Authorizer {
    client: Client,
    answers: Cache<Decision>,
    /// By user.
    gate: Gate<String>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allowed,
    /// Too many questions of this caller, or of all, are waiting.
    Crowded,
    /// No.
    Denied,
    /// The apiserver does not answer.
    Unavailable,
}

impl Authorizer {
    /// Asks through this client.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            answers: Cache::new(CAPACITY),
            gate: Gate::default(),
        }
    }

    /// Decides whether somebody may do something.
    pub async fn decide(&self, identity: &Identity, action: &Action) -> Decision {
        let subject = Arc::new(identity.subject());
        let asked = serde_json::to_vec(&(&*subject, action)).expect("strings are JSON");
        let asking = async {
            let Some(_pass) = self.gate.enter(subject.user.clone(), None).await else {
                return Decision::Crowded;
            };
            match review_access(&self.client, &subject, action).await {
                Ok(true) => Decision::Allowed,
                Ok(false) => Decision::Denied,
                Err(error) => {
                    tracing::warn!(%error, "nobody is let in whose right is not known");
                    Decision::Unavailable
                }
            }
        };
        let keep = |decision: &Decision| match decision {
            Decision::Allowed => Keep::Asked(YES),
            Decision::Denied => Keep::Asked(NO),
            Decision::Crowded | Decision::Unavailable => Keep::Came(SILENCE),
        };
        self.answers
            .get(&action.namespace, Key::of(&[&asked]), keep, asking)
            .await
    }

    /// Something about rights has changed, in a namespace or everywhere: what was decided before holds
    /// no more.
    pub fn invalidate(&self, namespace: Option<&str>) {
        self.answers.invalidate(namespace);
    }
}
