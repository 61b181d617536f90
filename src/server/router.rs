//! The table of all routes on the server's own name, and what stands before each of them.
//!
//! Whatever is asked for, it is noted; and unless the table says why a route needs no caller, nobody
//! gets past the challenge without having proved who they are, not even to learn that there is
//! nothing.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State},
    http::{HeaderValue, StatusCode},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
    routing::{MethodRouter, get, post},
};
use kube::Client;
use percent_encoding::percent_decode_str;
use serde_json::json;
use snafu::{ResultExt as _, Snafu};
use tokio::sync::watch;

use crate::{
    clock,
    domain::identity::Identity,
    k8s::review::Action,
    metrics::Metrics,
    server::{
        audit::{Audit, Object, Record, Trail},
        authn::Authenticator,
        authz::{Authorizer, Decision},
        discovery,
        error::{Dialect, REQUEST_ID, Refusal, challenge, json_answer},
        oidc,
        settings::Settings,
        token::{self, LONGEST_FORM},
    },
    token_keys::Sight,
};

/// What all doors share.
pub struct Doors {
    /// What the front door was told.
    pub settings: Arc<Settings>,
    /// Who are you.
    pub authn: Authenticator,
    /// May you.
    pub authz: Authorizer,
    /// The signing keys as last seen.
    pub keys: watch::Receiver<Sight>,
    /// What you did.
    pub audit: Audit,
}

/// The doors cannot be opened.
#[derive(Debug, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum Error {
    /// The file of the audit.
    #[snafu(display("cannot write the audit to {}", path.display()))]
    Audit {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    /// An issuer.
    #[snafu(display("{source}"))]
    Oidc { source: oidc::SettingsError },
}

impl Doors {
    /// Doors as told, with the keys that are seen.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(
        settings: Settings,
        audit_file: Option<&std::path::Path>,
        client: Client,
        keys: watch::Receiver<Sight>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let settings = Arc::new(settings);
        let audit = match audit_file {
            None => Audit::to_stdout(metrics),
            Some(path) => Audit::to_file(path, metrics).context(AuditSnafu { path })?,
        };
        Ok(Self {
            authn: Authenticator::new(client.clone(), Arc::clone(&settings), keys.clone())
                .context(OidcSnafu)?,
            authz: Authorizer::new(client),
            settings,
            keys,
            audit,
        })
    }

    /// Lets a caller do something, or says why not.
    ///
    /// # Errors
    /// A 403, or a 503 when it cannot be known.
    pub async fn allow(
        &self,
        caller: &Identity,
        action: &Action,
        trail: &Trail,
    ) -> Result<(), Refusal> {
        trail.object(action);
        match self.authz.decide(caller, action).await {
            Decision::Allowed => Ok(()),
            Decision::Denied => Err(Refusal {
                status: StatusCode::FORBIDDEN,
                code: "Forbidden",
                number: 0,
                reason: "forbidden",
                sentence: "The caller has no right to do this here, or there is nothing of this name: have a RoleAssignment made for it.".to_owned(),
            }),
            Decision::Crowded => Err(unavailable(
                "crowded",
                "Too many questions of yours, or of all, are waiting for an answer: try again in a moment.",
            )),
            Decision::Unavailable => Err(unavailable(
                "unavailable",
                "The apiserver gives no answer, and the log of the server of Claviger says why: try again in a moment.",
            )),
        }
    }
}

fn unavailable(reason: &'static str, sentence: &str) -> Refusal {
    Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "ServiceUnavailable",
        number: 0,
        reason,
        sentence: sentence.to_owned(),
    }
}

/// One route.
struct Route {
    path: &'static str,
    door: &'static str,
    access: Access,
    handlers: MethodRouter<Arc<Doors>>,
}

/// Who gets to a route.
enum Access {
    /// Whoever has proved who they are.
    Caller,
    /// Anybody, for this reason.
    Anybody { reason: &'static str },
}

/// Every route there is.
fn routes() -> Vec<Route> {
    let token = "the caller proves who it is by the assertion in the form";
    let document = "clients read it before they have a token";
    let public = "it holds the public halves of keys, for whoever verifies tokens";
    let anybody = |path, door, reason, handlers| Route {
        path,
        door,
        access: Access::Anybody { reason },
        handlers,
    };
    let caller = |path, door, handlers| Route {
        path,
        door,
        access: Access::Caller,
        handlers,
    };
    vec![
        anybody(
            "/{tenant}/oauth2/v2.0/token",
            "token",
            token,
            post(token::post),
        ),
        // Java's SDK posts here for the tenant adfs.
        anybody("/{tenant}/oauth2/token", "token", token, post(token::post)),
        anybody(
            "/{tenant}/.well-known/openid-configuration",
            "discovery",
            document,
            get(discovery::configuration),
        ),
        anybody(
            "/{tenant}/v2.0/.well-known/openid-configuration",
            "discovery",
            document,
            get(discovery::configuration),
        ),
        anybody(
            "/{tenant}/discovery/v2.0/keys",
            "keys",
            public,
            get(discovery::keys),
        ),
        anybody(
            "/{tenant}/discovery/keys",
            "keys",
            public,
            get(discovery::keys),
        ),
        caller("/claviger/v1/whoami", "whoami", get(whoami)),
        caller(
            "/claviger/v1/access/{namespace}/{resource}/{name}/{subresource}/{verb}",
            "access",
            get(access),
        ),
    ]
}

/// The routes on the server's own name.
pub fn router(doors: Arc<Doors>) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let handlers = route.handlers.layer(from_fn(readable));
        let handlers = match route.access {
            Access::Anybody { reason } => {
                tracing::debug!(path = route.path, reason, "needs no caller");
                handlers
            }
            Access::Caller => guarded(handlers, &doors),
        };
        router = router.route(route.path, noted(handlers, &doors, route.door));
    }
    let nothing = noted(guarded(axum::routing::any(nothing), &doors), &doors, "none");
    router
        .fallback_service(nothing.with_state(Arc::clone(&doors)))
        .layer(DefaultBodyLimit::max(LONGEST_FORM))
        .with_state(doors)
}

fn guarded(handlers: MethodRouter<Arc<Doors>>, doors: &Arc<Doors>) -> MethodRouter<Arc<Doors>> {
    handlers.layer(from_fn_with_state(Arc::clone(doors), authenticate))
}

fn noted(
    handlers: MethodRouter<Arc<Doors>>,
    doors: &Arc<Doors>,
    door: &'static str,
) -> MethodRouter<Arc<Doors>> {
    handlers.layer(from_fn_with_state((Arc::clone(doors), door), note))
}

/// Notes the access, whatever comes of it. Our listener began to, and finishes it if there is no answer
/// in time; behind another one it is begun here.
async fn note(
    State((doors, door)): State<(Arc<Doors>, &'static str)>,
    mut request: Request,
    next: Next,
) -> Response {
    let extensions = request.extensions();
    let trail = extensions.get::<Trail>().cloned().unwrap_or_else(|| {
        let source = extensions.get::<ConnectInfo<SocketAddr>>();
        let source = source.map(|source| source.0.ip());
        doors.audit.begin(Record::begun(door, source))
    });
    trail.door(door);
    let request_id = trail.request_id();
    request.extensions_mut().insert(trail.clone());
    let mut response = next.run(request).await;
    if let Ok(request_id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, request_id);
    }
    trail.finish(response.status().as_u16()).await;
    response
}

/// Refuses paths that are no text, before the HTTP library does in words of its own.
async fn readable(Extension(trail): Extension<Trail>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if percent_decode_str(path).decode_utf8().is_ok() {
        return next.run(request).await;
    }
    let refusal = Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "BadParameter",
        number: 900_144,
        reason: "malformed",
        sentence: "The path must be text in UTF-8, percent-encoded.".to_owned(),
    };
    trail.reason(refusal.reason);
    refusal.answer_at(path, &trail.request_id(), clock::now())
}

/// Lets through whoever has proved who they are.
async fn authenticate(
    State(doors): State<Arc<Doors>>,
    Extension(trail): Extension<Trail>,
    mut request: Request,
    next: Next,
) -> Response {
    let own = &doors.settings.resource;
    let proved = doors
        .authn
        .bearer(request.headers(), trail.source(), |resource| {
            resource == own
        })
        .await;
    match proved {
        Ok(identity) => {
            trail.caller(&identity);
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(unproved) => refuse(&doors, &trail, &unproved.refusal()),
    }
}

/// Who the caller is, in Kubernetes' words: what a review is asked about.
async fn whoami(Extension(caller): Extension<Identity>) -> Response {
    let subject = serde_json::to_string(&caller.subject()).expect("strings are JSON");
    json_answer(StatusCode::OK, subject)
}

/// Whether the caller may do something: 200 if it may, and does nothing.
async fn access(
    State(doors): State<Arc<Doors>>,
    Extension(trail): Extension<Trail>,
    Extension(caller): Extension<Identity>,
    Path((namespace, resource, name, subresource, verb)): Path<(
        String,
        String,
        String,
        String,
        String,
    )>,
) -> Response {
    let action = Action {
        verb,
        resource,
        subresource,
        namespace,
        name,
    };
    let decided = match Object::of(&action) {
        Some(_) => doors.allow(&caller, &action, &trail).await,
        None => Err(Refusal {
            status: StatusCode::BAD_REQUEST,
            code: "BadParameter",
            number: 0,
            reason: "malformed",
            sentence: "The path must be namespace, resource, name, subresource and verb, as Kubernetes has them.".to_owned(),
        }),
    };
    match decided {
        Ok(()) => json_answer(StatusCode::OK, json!({"allowed": true}).to_string()),
        Err(refusal) => refuse(&doors, &trail, &refusal),
    }
}

/// There is nothing at this path.
async fn nothing(State(doors): State<Arc<Doors>>, Extension(trail): Extension<Trail>) -> Response {
    let refusal = Refusal {
        status: StatusCode::NOT_FOUND,
        code: "NotFound",
        number: 0,
        reason: "no_route",
        sentence: "There is nothing at this path.".to_owned(),
    };
    refuse(&doors, &trail, &refusal)
}

fn refuse(doors: &Doors, trail: &Trail, refusal: &Refusal) -> Response {
    trail.reason(refusal.reason);
    let challenge = challenge(&doors.settings.issuer, &doors.settings.resource);
    let dialect = Dialect::Service {
        challenge: &challenge,
    };
    refusal.answer(dialect, &trail.request_id(), clock::now())
}

/// Random bytes that name something.
pub fn random() -> [u8; 16] {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .expect("the operating system's random source never fails once it is seeded");
    random
}

#[cfg(test)]
mod tests;
