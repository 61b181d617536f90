//! What users write and read: the custom resources, field by field, and nothing else. Conversion
//! into the domain's values is in [`convert`]; after it nothing is checked again.

pub mod condition;
pub mod convert;
pub mod v1alpha1;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every kind.
pub const GROUP: &str = "claviger.dev";

/// Label on every object whose content Claviger keeps; its value says what kind of content.
pub const CONTENT_LABEL: &str = "claviger.dev/content";
/// [`CONTENT_LABEL`] of an app's key store.
pub const CONTENT_KEYS: &str = "function-keys";
/// [`CONTENT_LABEL`] of a client's Secret.
pub const CONTENT_COPIES: &str = "function-key-copies";

/// [`CONTENT_LABEL`] of an entry of a vault.
pub const CONTENT_ENTRY: &str = "vault-secret-version";
/// [`CONTENT_LABEL`] of a vault's key ring.
pub const CONTENT_RING: &str = "vault-key-ring";
/// [`CONTENT_LABEL`] of a Secret into which a vault's values are synced.
pub const CONTENT_SYNC: &str = "vault-sync";
/// [`CONTENT_LABEL`] of a `ConfigMap` with the published roots.
pub const CONTENT_ROOTS: &str = "ca-roots";
/// Annotation of the CA's Secret: its versions ([`crate::domain::ca::Version`]).
pub const CA_ANNOTATION: &str = "claviger.dev/ca";
/// Annotation of a `ConfigMap` with the published roots: the digest of what stands in it.
pub const ROOTS_ANNOTATION: &str = "claviger.dev/roots";
/// [`CONTENT_LABEL`] of a Role or binding that was made for a `RoleAssignment`.
pub const CONTENT_ROLE: &str = "role-assignment";
/// Label on the objects of a vault: its name.
pub const VAULT_LABEL: &str = "claviger.dev/vault";

/// Label on a Role or binding that was made for a `RoleAssignment`: a digest of the assignment's
/// namespace and name ([`crate::domain::role::Assignment::digest`]).
pub const ASSIGNMENT_LABEL: &str = "claviger.dev/role-assignment";
/// Annotation on the same: the assignment's namespace and name, with a slash between.
pub const ASSIGNMENT_ANNOTATION: &str = "claviger.dev/role-assignment";

/// Annotation of an app's key store: the ledger ([`crate::domain::ledger::Ledger`]).
pub const LEDGER_ANNOTATION: &str = "claviger.dev/ledger";
/// Annotation of an app's key store: the sealed second copy ([`crate::domain::seal`]).
pub const SEALED_ANNOTATION: &str = "claviger.dev/sealed-copy";
/// Annotation of a client's Secret: the copies ([`crate::domain::ledger::Copies`]).
pub const COPIES_ANNOTATION: &str = "claviger.dev/copies";
/// Annotation of an entry of a vault: its attributes ([`crate::domain::vault::attributes`]).
pub const ATTRIBUTES_ANNOTATION: &str = "claviger.dev/attributes";
/// Annotation of an entry of a vault: its envelope ([`crate::domain::vault::envelope`]).
pub const ENVELOPE_ANNOTATION: &str = "claviger.dev/envelope";
/// Annotation of a Secret into which a vault's values are synced: what of it is from where.
pub const SYNC_ANNOTATION: &str = "claviger.dev/sync";
/// Annotation of an object that Claviger made: it may go when nothing of ours is left in it.
pub const CREATED_ANNOTATION: &str = "claviger.dev/created";

/// Annotation: turn the key of a `FunctionKey`, the key ring of a `SecretVault`, at this time (RFC 3339).
pub const ROTATE_AT_ANNOTATION: &str = "claviger.dev/rotate-at";
/// Annotation of a `FunctionKey`: revoke the key at this time (RFC 3339).
pub const REVOKE_AT_ANNOTATION: &str = "claviger.dev/revoke-at";
/// Annotation of a `SecretVault`: turn these declared secrets, `<name>@<RFC 3339>`, comma-separated.
pub const ROTATE_SECRETS_ANNOTATION: &str = "claviger.dev/rotate-secrets";
/// Annotation of a `SecretVault`: turn these declared secrets without overlap.
pub const REVOKE_SECRETS_ANNOTATION: &str = "claviger.dev/revoke-secrets";
/// Annotation of a `SecretVault`: take back the deletion of these secrets.
pub const RECOVER_SECRETS_ANNOTATION: &str = "claviger.dev/recover-secrets";
/// Annotation of a `SecretVault`: purge these deleted secrets.
pub const PURGE_SECRETS_ANNOTATION: &str = "claviger.dev/purge-secrets";
/// Finalizer of a `SecretVault`: a deletion waits while its secrets live.
pub const VAULT_FINALIZER: &str = "claviger.dev/secret-vault";
/// Finalizer of a `RoleAssignment` that reaches beyond its namespace, where garbage collection does not.
pub const ASSIGNMENT_FINALIZER: &str = "claviger.dev/role-assignment";
/// Annotation of a workload's pod template: when Claviger last restarted it. The only field of a
/// workload that Claviger writes.
pub const RESTARTED_AT_ANNOTATION: &str = "claviger.dev/restarted-at";

/// The custom resource definitions, in a stable order.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        v1alpha1::FunctionKey::crd(),
        v1alpha1::RoleAssignment::crd(),
        v1alpha1::SecretVault::crd(),
    ]
}

/// The custom resource definitions as one YAML stream.
///
/// # Errors
/// Never in practice: the definitions are fixed when Claviger is compiled.
pub fn crds_yaml() -> Result<String, serde_saphyr::ser::Error> {
    crds().iter().map(crd_yaml).collect()
}

/// One custom resource definition as a YAML document.
///
/// # Errors
/// Never in practice: the definitions are fixed when Claviger is compiled.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    Ok(format!("---\n{}", serde_saphyr::to_string(crd)?))
}
