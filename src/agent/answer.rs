//! What the agent answers: one document that suits both forms and the SDKs of all languages.

use axum::http::StatusCode;
use serde_json::json;
use zeroize::Zeroizing;

use super::upstream::Held;

/// A status and a JSON document.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The document.
    pub body: Zeroizing<String>,
}

impl Answer {
    /// A token. Times are seconds, as text: that is read by all SDKs (protocols/identity.md, 5.1 and 5.2).
    pub fn token(held: &Held, resource: &str, client_id: &str, now: i64) -> Self {
        let left = held.expires.saturating_sub(now).max(0).to_string();
        let body = json!({
            "access_token": held.token.as_str(),
            "client_id": client_id,
            "expires_in": left,
            "expires_on": held.expires.to_string(),
            "ext_expires_in": left,
            "not_before": held.since.to_string(),
            "resource": resource,
            "token_type": "Bearer",
        });
        Self {
            status: StatusCode::OK,
            body: Zeroizing::new(body.to_string()),
        }
    }

    /// A refusal: Python's SDK reads `statusCode` and `message`, others `error` and
    /// `error_description`.
    pub fn refusal(status: StatusCode, error: &str, description: &str) -> Self {
        let body = json!({
            "error": error,
            "error_description": description,
            "message": description,
            "statusCode": status.as_u16(),
        });
        Self {
            status,
            body: Zeroizing::new(body.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn times_are_text_and_say_the_same() {
        let held = Held {
            token: Zeroizing::new("opaque".to_owned()),
            since: 1000,
            expires: 4600,
        };
        let answer = Answer::token(&held, "https://vault.azure.net", "me", 1600);
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["expires_on"], "4600");
        assert_eq!(body["expires_in"], "3000");
        assert_eq!(body["not_before"], "1000");
        assert_eq!(body["access_token"], "opaque");
    }

    #[test]
    fn a_refusal_says_the_same_to_everybody() {
        let answer = Answer::refusal(StatusCode::BAD_REQUEST, "invalid_request", "No.");
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (&body["statusCode"], &body["message"]),
            (&json!(400), &json!("No."))
        );
        assert_eq!(body["error_description"], "No.");
    }
}
