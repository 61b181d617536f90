//! What a caller is told when something is refused, in the form that its SDK shows.
//!
//! Sentences say what to do, have no quotes and no line ends (some SDKs show only what needs no
//! escaping), and repeat nothing that the caller sent.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use jiff::Timestamp;
use serde_json::json;

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What it is called: in OAuth's words at the token endpoint, in Azure's elsewhere.
    pub code: &'static str,
    /// The number that Microsoft's authority gives to the like; the token endpoint alone tells it.
    pub number: u32,
    /// The word for the audit.
    pub reason: &'static str,
    /// What to do.
    pub sentence: String,
}

/// How a refusal is told.
#[derive(Clone, Copy, Debug)]
pub enum Dialect<'a> {
    /// As Azure's services do.
    Service {
        /// The challenge of a 401.
        challenge: &'a str,
    },
    /// As the token endpoint does.
    Token,
}

impl Refusal {
    /// The answer to a request of this name at this time.
    pub fn answer(&self, dialect: Dialect<'_>, request_id: &str, now: Timestamp) -> Response {
        let sentence = plain(&self.sentence);
        let body = match dialect {
            Dialect::Service { .. } => json!({"error": {"code": self.code, "message": sentence}}),
            Dialect::Token => json!({
                "error": self.code,
                "error_description": format!(
                    "AADSTS{}: {sentence} Trace ID: {request_id}", self.number
                ),
                "error_codes": [self.number],
                "timestamp": now.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                "trace_id": request_id,
                "correlation_id": request_id,
            }),
        };
        let mut answer = json_answer(self.status, body.to_string());
        let headers = answer.headers_mut();
        if let Dialect::Service { challenge } = dialect {
            headers.insert(ERROR_CODE, HeaderValue::from_static(self.code));
            if self.status == StatusCode::UNAUTHORIZED
                && let Ok(challenge) = HeaderValue::from_str(challenge)
            {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        answer
    }

    /// The answer where no door was reached: at the token endpoint's paths in OAuth's words, as its
    /// clients can read no others.
    pub fn answer_at(&self, path: &str, request_id: &str, now: Timestamp) -> Response {
        let mut answer = if path.ends_with("/token") {
            let code = match self.status {
                StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => {
                    "temporarily_unavailable"
                }
                _ => "invalid_request",
            };
            let told = Self {
                code,
                ..self.clone()
            };
            told.answer(Dialect::Token, request_id, now)
        } else {
            self.answer(Dialect::Service { challenge: "" }, request_id, now)
        };
        if let Ok(request_id) = HeaderValue::from_str(request_id) {
            answer.headers_mut().insert(REQUEST_ID, request_id);
        }
        answer
    }
}

/// A JSON document that nobody may keep.
pub fn json_answer(status: StatusCode, body: String) -> Response {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    answer
}

/// The challenge that tells where tokens are to be had, in the one form that the clients of all
/// languages read: everything quoted, a blank after the comma, always a tenant.
pub fn challenge(issuer: &str, resource: &str) -> String {
    format!("Bearer authorization=\"{issuer}\", resource=\"{resource}\"")
}

/// The header that names a refusal to SDKs that do not look into the body.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");

/// The header that names the request.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");

fn plain(sentence: &str) -> String {
    sentence
        .chars()
        .map(|c| match c {
            '"' | '\\' => '\'',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_needs_no_escaping() {
        assert_eq!(plain("a \"b\"\\\n ü"), "a 'b''  ü");
    }
}
