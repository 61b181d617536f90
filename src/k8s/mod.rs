//! Thin effects over the Kubernetes API: each function has one verb and one object, and decides
//! nothing.

pub mod ca;
pub mod crd;
pub mod event;
pub mod object;
pub mod review;
pub mod role;
pub mod root_key;
pub mod root_key_backup;
pub mod seal_key;
pub mod shelf;
pub mod status;
pub mod token_keys;
pub mod vault;
pub mod workload;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use zeroize::Zeroizing;

/// The data of a Secret, overwritten when dropped.
pub(crate) fn erase(data: BTreeMap<String, ByteString>) -> BTreeMap<String, Zeroizing<Vec<u8>>> {
    data.into_iter()
        .map(|(entry, bytes)| (entry, Zeroizing::new(bytes.0)))
        .collect()
}

/// A failure in words that may be logged and shown: an answer that cannot be read, and a refusal in
/// words of others, may quote a value.
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            let told = told(&status.message);
            format!("the apiserver answered 403 Forbidden{told}")
        }
        kube::Error::Api(status) if KNOWN_REASONS.contains(&status.reason.as_str()) => {
            format!("the apiserver answered {} {}", status.code, status.reason)
        }
        kube::Error::Api(status) => format!("the apiserver answered {}", status.code),
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            "the apiserver's answer cannot be read".to_owned()
        }
        _ => "the apiserver cannot be reached".to_owned(),
    }
}

/// Reasons as the apiserver gives them; what stands between may use the field otherwise.
const KNOWN_REASONS: [&str; 13] = [
    "AlreadyExists",
    "BadRequest",
    "Conflict",
    "Expired",
    "Gone",
    "InternalError",
    "Invalid",
    "MethodNotAllowed",
    "NotFound",
    "ServiceUnavailable",
    "Timeout",
    "TooManyRequests",
    "Unauthorized",
];

/// What of the text of a 403 is told on: the authorizer's and the quota's own words, and of a denial
/// at admission who it was.
fn told(message: &str) -> String {
    for mark in [" denied the request", " denied request"] {
        if let Some((who, _)) = message.split_once(mark) {
            return format!(": {who}{mark}");
        }
    }
    for mark in [" is forbidden: User ", " is forbidden: exceeded quota: "] {
        if message.contains(mark) {
            return format!(": {message}");
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn words_of_others_are_not_repeated() {
        let refused = |code, reason: &str, message: &str| {
            describe(&kube::Error::Api(
                Status::failure(message, reason).with_code(code).boxed(),
            ))
        };
        let rbac = "secrets \"keys\" is forbidden: User \"x\" cannot patch resource";
        assert!(refused(403, "Forbidden", rbac).ends_with(rbac));
        assert_eq!(
            refused(
                403,
                "Forbidden",
                "admission webhook \"g\" denied the request: value V is short"
            ),
            "the apiserver answered 403 Forbidden: admission webhook \"g\" denied the request"
        );
        assert_eq!(
            refused(403, "Forbidden", "V"),
            "the apiserver answered 403 Forbidden"
        );
        assert_eq!(
            refused(422, "Invalid", "data[x]: Invalid value: \"V\""),
            "the apiserver answered 422 Invalid"
        );
        assert_eq!(refused(500, "V", "V"), "the apiserver answered 500");
        let unreadable = serde_json::from_str::<u8>("\"V\"").unwrap_err();
        assert_eq!(
            describe(&kube::Error::SerdeError(unreadable)),
            "the apiserver's answer cannot be read"
        );
    }
}
