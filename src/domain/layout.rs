//! Where each key stands in an app's key store: the data keys the Azure Functions host reads.
//!
//! Facts from the host's `KubernetesSecretsRepository` (azure-functions-host, `KeyManagement`):
//! `host.master`, `host.function.<key>`, `host.systemKey.<key>`, `functions.<function>.<key>` with
//! the function's name in lower case. Letters of the rest are significant to Kubernetes, but the
//! host compares key names without case, so two spellings of one name are one key here too.

use crate::domain::key::KeyKind;

/// Data key of the master key. The host takes *any* data key that begins with this text for the
/// master key, so nothing else may be stored under such a name.
pub const MASTER: &str = "host.master";

const HOST_PREFIX: &str = "host.function.";
const SYSTEM_PREFIX: &str = "host.systemKey.";
const FUNCTION_PREFIX: &str = "functions.";
const PREVIOUS_INFIX: &str = ".previous-";

/// One key of one function app, by what it opens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRef {
    /// Opens one function.
    Function {
        /// The function, as the user spelled it.
        function: String,
        /// The key's name.
        key: String,
    },
    /// Opens every function of the app.
    Host {
        /// The key's name.
        key: String,
    },
    /// Opens everything, the admin API included; each app has exactly one.
    Master,
    /// Opens one extension's webhook.
    System {
        /// The key's name, usually `<extension>_extension`.
        key: String,
    },
}

impl KeyRef {
    /// The data key under which the host looks for this key's value.
    pub fn data_key(&self) -> String {
        match self {
            Self::Function { function, key } => {
                format!("{FUNCTION_PREFIX}{}.{key}", function.to_lowercase())
            }
            Self::Host { key } => format!("{HOST_PREFIX}{key}"),
            Self::Master => MASTER.to_owned(),
            Self::System { key } => format!("{SYSTEM_PREFIX}{key}"),
        }
    }

    /// Which checksum seed a minted value of this key carries.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Master => KeyKind::Master,
            Self::System { .. } => KeyKind::System,
            Self::Function { .. } | Self::Host { .. } => KeyKind::Function,
        }
    }

    /// Whether a previous value can stand beside the current one. Not for the master key: the host
    /// would take the second entry for the master key itself.
    pub fn can_overlap(&self) -> bool {
        !matches!(self, Self::Master)
    }
}

/// The data key that holds a value which is no longer current but still valid.
pub fn previous(entry: &str, generation: u32) -> String {
    format!("{entry}{PREVIOUS_INFIX}{generation}")
}

/// The generation of the previous value of `entry` that stands under `data_key`, if one does: only
/// names that [`previous`] gives count, or the value could not be found under them again.
pub fn previous_generation(entry: &str, data_key: &str) -> Option<u32> {
    let generation = data_key
        .strip_prefix(entry)?
        .strip_prefix(PREVIOUS_INFIX)?
        .parse()
        .ok()?;
    (previous(entry, generation) == data_key).then_some(generation)
}

/// Whether the host would read this data key as the master key.
pub fn is_master(data_key: &str) -> bool {
    data_key.starts_with(MASTER)
}

/// Whether this data key is one the host reads at all.
pub fn is_app_key(data_key: &str) -> bool {
    is_master(data_key)
        || [HOST_PREFIX, SYSTEM_PREFIX, FUNCTION_PREFIX]
            .iter()
            .any(|prefix| data_key.starts_with(prefix))
}

/// Whether two data keys are spellings of one.
pub fn same(one: &str, other: &str) -> bool {
    folded(one) == folded(other)
}

/// The one spelling under which two data keys are compared: key names without case, what stands
/// before them letter for letter, because the host finds it in no other spelling.
pub fn folded(data_key: &str) -> String {
    let name = [HOST_PREFIX, SYSTEM_PREFIX]
        .iter()
        .find_map(|prefix| data_key.strip_prefix(prefix))
        .or_else(|| Some(data_key.strip_prefix(FUNCTION_PREFIX)?.split_once('.')?.1))
        .unwrap_or_default();
    let before = &data_key[..data_key.len() - name.len()];
    format!("{before}{}", name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_keys_are_the_ones_the_host_reads() {
        let function = KeyRef::Function {
            function: "Orders".into(),
            key: "Default".into(),
        };
        assert_eq!(function.data_key(), "functions.orders.Default");
        assert_eq!(
            KeyRef::Host {
                key: "default".into()
            }
            .data_key(),
            "host.function.default"
        );
        assert_eq!(
            KeyRef::System {
                key: "durabletask_extension".into()
            }
            .data_key(),
            "host.systemKey.durabletask_extension"
        );
        assert_eq!(KeyRef::Master.data_key(), "host.master");
        assert_eq!(
            previous("host.function.default", 7),
            "host.function.default.previous-7"
        );
    }

    #[test]
    fn key_names_are_compared_without_case_and_nothing_else_is() {
        for (one, other, same) in [
            ("host.function.Partner", "host.function.pARTNER", true),
            ("host.systemKey.A", "host.systemKey.a", true),
            ("host.systemKey.a", "host.systemkey.a", false),
            ("functions.orders.A.b", "functions.orders.a.B", true),
            ("functions.orders.a", "functions.Orders.a", false),
            ("functions.orders", "functions.ORDERS", false),
            ("host.master", "host.Master", false),
        ] {
            assert_eq!(folded(one) == folded(other), same, "{one} {other}");
        }
    }

    #[test]
    fn no_previous_entry_is_taken_for_the_master_key() {
        assert!(is_master("host.master"));
        assert!(is_master("host.masterX"));
        assert!(!is_master("host.function.master"));
        assert!(!KeyRef::Master.can_overlap());
    }
}
