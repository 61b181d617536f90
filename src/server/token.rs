//! The token endpoint: a ServiceAccount's own token in, an access token for one resource out.
//!
//! It is what `WorkloadIdentityCredential` and its like post to. Other ways of getting a token are
//! refused with a word on what to use instead.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use serde_json::json;

use crate::{
    clock,
    domain::{
        access_token::{Claims, Grant},
        identity::Identity,
    },
    server::{
        audit::{Issued, Trail},
        authn::Unproved,
        error::{Dialect, Refusal, json_answer},
        router::{Doors, random},
        settings::Resources,
    },
};

/// The longest form that is read, in bytes.
pub const LONGEST_FORM: usize = 64 * 1024;
const MOST_FIELDS: usize = 64;
const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const DEFAULT: &str = "/.default";
/// What clients add to the scope, and what means nothing here.
const OPENID_WORDS: [&str; 4] = ["email", "offline_access", "openid", "profile"];

/// `POST /{tenant}/oauth2/v2.0/token` and its like.
pub async fn post(
    State(doors): State<Arc<Doors>>,
    Path(tenant): Path<String>,
    Extension(trail): Extension<Trail>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let outcome = match body {
        Ok(body) => issue(&doors, &tenant, &trail, &headers, &body).await,
        Err(rejection) => Err(unreadable(&rejection)),
    };
    outcome.unwrap_or_else(|refusal| {
        trail.reason(refusal.reason);
        refusal.answer(Dialect::Token, &trail.request_id(), clock::now())
    })
}

async fn issue(
    doors: &Doors,
    tenant: &str,
    trail: &Trail,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, Refusal> {
    known_tenant(doors, tenant)?;
    let form = Form::read(headers, body)?;
    let request = form.request()?;
    let resource = resource(request.scope, &doors.settings.resources)?;
    let asserted = doors.authn.assertion(request.assertion, trail.source());
    let asserted = asserted
        .await
        .map_err(|unproved| refused_client(&unproved))?;
    let account = &asserted.account;
    trail.caller(&Identity::ServiceAccount(account.clone()));
    if !request.client_id.is_none_or(|id| account.is_client(id)) {
        return Err(Refusal {
            sentence: format!(
                "The client_id is not that of the ServiceAccount whose token was presented: set AZURE_CLIENT_ID to {}/{} or to its UID.",
                account.namespace, account.name
            ),
            ..invalid_client("other_client", 700_016)
        });
    }
    let now = clock::now();
    let grant = Grant {
        issuer: &doors.settings.issuer,
        tenant: &doors.settings.tenant,
        resource,
        account,
        assertion_expires: asserted.expires,
        random: random(),
    };
    let claims = Claims::new(&grant, now);
    let sight = doors.keys.borrow().clone();
    let token = sight
        .keys()
        .and_then(|keys| keys.sign(&claims, now))
        .ok_or_else(|| refused_client(&Unproved::NoKeys))?;
    let expires_in = claims.exp - claims.iat;
    trail.issued(Issued {
        id: claims.jti,
        resource: claims.aud,
        expires: now + jiff::SignedDuration::from_secs(expires_in),
    });
    let body = json!({
        "token_type": "Bearer",
        "expires_in": expires_in,
        "ext_expires_in": expires_in,
        "access_token": token,
    });
    Ok(json_answer(StatusCode::OK, body.to_string()))
}

/// Refuses any tenant but ours.
///
/// # Errors
/// A 400 in the token endpoint's words.
pub fn known_tenant(doors: &Doors, tenant: &str) -> Result<(), Refusal> {
    if tenant == doors.settings.tenant {
        return Ok(());
    }
    Err(Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "invalid_request",
        number: 90_002,
        reason: "other_tenant",
        sentence: format!(
            "There is no such tenant here: set AZURE_TENANT_ID to {}.",
            doors.settings.tenant
        ),
    })
}

/// The fields of a form, each given once.
struct Form<'a>(BTreeMap<Cow<'a, str>, Cow<'a, str>>);

/// What is asked for.
struct Request<'a> {
    assertion: &'a str,
    client_id: Option<&'a str>,
    scope: &'a str,
}

impl<'a> Form<'a> {
    fn read(headers: &HeaderMap, body: &'a [u8]) -> Result<Self, Refusal> {
        let kind = headers
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .and_then(|kind| kind.split(';').next())
            .unwrap_or_default();
        if !kind
            .trim()
            .eq_ignore_ascii_case("application/x-www-form-urlencoded")
        {
            return Err(invalid_request(
                "not_a_form",
                900_144,
                "The body must be a form: send it as application/x-www-form-urlencoded.",
            ));
        }
        let mut fields = BTreeMap::new();
        for (number, (name, value)) in form_urlencoded::parse(body).enumerate() {
            if number >= MOST_FIELDS || fields.insert(name, value).is_some() {
                return Err(invalid_request(
                    "ambiguous",
                    900_144,
                    "The form names a field twice, or has too many: send each field once.",
                ));
            }
        }
        Ok(Self(fields))
    }

    fn field(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(|value| value.trim());
        value.filter(|value| !value.is_empty())
    }

    fn request(&self) -> Result<Request<'_>, Refusal> {
        match self.field("grant_type") {
            Some("client_credentials") => {}
            None => {
                return Err(invalid_request(
                    "no_grant_type",
                    900_144,
                    "The field grant_type is missing: send client_credentials.",
                ));
            }
            Some(_) => {
                return Err(Refusal {
                    code: "unsupported_grant_type",
                    ..invalid_request(
                        "other_grant_type",
                        70_003,
                        "Only the grant client_credentials is served here: use WorkloadIdentityCredential with the token of a ServiceAccount.",
                    )
                });
            }
        }
        if self.field("client_secret").is_some() {
            return Err(Refusal {
                sentence: "There are no client secrets here: use WorkloadIdentityCredential or DefaultAzureCredential with the token of a ServiceAccount, and delete the secret where it stands.".to_owned(),
                ..invalid_client("client_secret", 7_000_215)
            });
        }
        let assertion = self
            .field("client_assertion")
            .filter(|_| self.field("client_assertion_type") == Some(ASSERTION))
            .ok_or_else(|| Refusal {
                sentence: "The token of a ServiceAccount is missing: send it as client_assertion, with the client_assertion_type for a JWT bearer; WorkloadIdentityCredential does so by itself when AZURE_FEDERATED_TOKEN_FILE is set.".to_owned(),
                ..invalid_client("no_assertion", 7_000_218)
            })?;
        let scope = self.field("scope").ok_or_else(|| {
            invalid_request(
                "no_scope",
                900_144,
                "The field scope is missing: send the resource and /.default behind it.",
            )
        })?;
        Ok(Request {
            assertion,
            client_id: self.field("client_id"),
            scope,
        })
    }
}

/// The one resource that a scope names.
fn resource<'a>(scope: &'a str, resources: &Resources) -> Result<&'a str, Refusal> {
    let invalid = |reason, number, sentence: &str| Refusal {
        code: "invalid_scope",
        ..invalid_request(reason, number, sentence)
    };
    let mut words = scope
        .split_ascii_whitespace()
        .filter(|word| !OPENID_WORDS.contains(word));
    let (Some(word), None) = (words.next(), words.next()) else {
        return Err(invalid(
            "scope",
            28_000,
            "The scope must name one resource: send the resource and /.default behind it.",
        ));
    };
    let Some(resource) = word.strip_suffix(DEFAULT) else {
        return Err(invalid(
            "scope",
            70_011,
            "The scope must end with /.default: rights come from RoleAssignments, not from scopes.",
        ));
    };
    resources.find(resource).ok_or_else(|| {
        invalid(
            "other_resource",
            500_011,
            "No tokens are issued for this resource: ask for the one that the challenge of the service names, or have the install name it by --token-resource.",
        )
    })
}

fn refused_client(unproved: &Unproved) -> Refusal {
    let refusal = unproved.refusal();
    let code = if refusal.status == StatusCode::SERVICE_UNAVAILABLE {
        "temporarily_unavailable"
    } else {
        "invalid_client"
    };
    Refusal { code, ..refusal }
}

fn invalid_client(reason: &'static str, number: u32) -> Refusal {
    Refusal {
        status: StatusCode::UNAUTHORIZED,
        code: "invalid_client",
        number,
        reason,
        sentence: String::new(),
    }
}

fn invalid_request(reason: &'static str, number: u32, sentence: &str) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        code: "invalid_request",
        number,
        reason,
        sentence: sentence.to_owned(),
    }
}

/// A body that is too long, or broke off.
fn unreadable(rejection: &BytesRejection) -> Refusal {
    let status = match rejection {
        BytesRejection::FailedToBufferBody(body) => body.status(),
        _ => StatusCode::BAD_REQUEST,
    };
    Refusal {
        status,
        ..invalid_request(
            "unreadable",
            900_144,
            "The form cannot be read: send it whole, and no more than 64 KiB.",
        )
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use clap::Parser;
    use proptest::prelude::*;

    use super::*;
    use crate::server::settings::{IdentityArgs, Place, Settings};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        identity: IdentityArgs,
    }

    fn resources() -> Resources {
        let place = Place {
            system_namespace: "claviger-system",
            server_name: "claviger.claviger-system.svc",
            cluster_domain: "cluster.local",
            domain: None,
        };
        let args = Line::parse_from(["claviger"]).identity;
        Settings::new(&args, &place).unwrap().resources
    }

    proptest! {
        #[test]
        fn any_form_is_read_or_refused(
            kind in prop_oneof![Just("application/x-www-form-urlencoded"), Just(""), Just(";;")],
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            if let Ok(form) = Form::read(&headers, &body) {
                let _ = form.request().map(|request| request.assertion.len());
            }
        }

        #[test]
        fn fields_in_any_order_make_the_same_request(
            words in proptest::collection::vec("openid|profile|offline_access|email", 0..4), at in 0_usize..4, turn in 0_usize..4,
        ) {
            let mut scope = words;
            scope.insert(at.min(scope.len()), "https://shop.svc/.default".to_owned());
            let scope = scope.join(" ");
            let mut fields = vec![
                ("grant_type", "client_credentials"), ("client_assertion", " a.b.c\n"),
                ("client_assertion_type", ASSERTION), ("scope", scope.as_str()),
            ];
            fields.rotate_left(turn);
            let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            let kind = HeaderValue::from_static("Application/X-WWW-Form-Urlencoded; charset=UTF-8");
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
            let form = Form::read(&headers, body.as_bytes()).unwrap();
            let request = form.request().unwrap();
            prop_assert_eq!(request.assertion, "a.b.c");
            let resources = resources();
            prop_assert_eq!(resource(request.scope, &resources), Ok("https://shop.svc"));
        }

        #[test]
        fn any_scope_names_one_of_our_resources_or_is_refused(scope in "(openid |https://|svc|/|\\.default| |[a-z.]){0,8}") {
            let resources = resources();
            if let Ok(found) = resource(&scope, &resources) {
                prop_assert!(resources.find(found).is_some());
            }
        }
    }
}
