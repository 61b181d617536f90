//! Where everything is, and the keys that verify access tokens: the documents that anybody may read.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::json;

use crate::{
    clock,
    domain::token_keys::DOCUMENT_CACHE,
    server::{
        audit::Trail,
        authn::Unproved,
        error::{Dialect, Refusal, json_answer},
        router::Doors,
        token::known_tenant,
    },
};

/// `GET /{tenant}/.well-known/openid-configuration` and `/{tenant}/v2.0/…`: the same for both, as the
/// issuer is one.
pub async fn configuration(
    State(doors): State<Arc<Doors>>,
    Path(tenant): Path<String>,
    Extension(trail): Extension<Trail>,
) -> Response {
    if let Err(refusal) = known_tenant(&doors, &tenant) {
        return refuse(&refusal, &trail);
    }
    let issuer = &doors.settings.issuer;
    let document = json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{issuer}/oauth2/v2.0/token"),
        "jwks_uri": format!("{issuer}/discovery/v2.0/keys"),
        "response_types_supported": ["code", "id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
    });
    cached(document.to_string())
}

/// `GET /{tenant}/discovery/v2.0/keys`: what verifies access tokens (RFC 7517).
pub async fn keys(
    State(doors): State<Arc<Doors>>,
    Path(tenant): Path<String>,
    Extension(trail): Extension<Trail>,
) -> Response {
    if let Err(refusal) = known_tenant(&doors, &tenant) {
        return refuse(&refusal, &trail);
    }
    let sight = doors.keys.borrow().clone();
    match sight.keys() {
        Some(keys) => cached(keys.document(clock::now())),
        None => refuse(&Unproved::NoKeys.refusal(), &trail),
    }
}

/// For as long as a key is published before it signs, less than that.
fn cached(document: String) -> Response {
    let mut answer = json_answer(StatusCode::OK, document);
    let headers = answer.headers_mut();
    headers.remove(header::PRAGMA);
    let age = format!("public, max-age={}", DOCUMENT_CACHE.as_secs());
    if let Ok(age) = HeaderValue::from_str(&age) {
        headers.insert(header::CACHE_CONTROL, age);
    }
    answer
}

fn refuse(refusal: &Refusal, trail: &Trail) -> Response {
    trail.reason(refusal.reason);
    refusal.answer(Dialect::Token, &trail.request_id(), clock::now())
}
