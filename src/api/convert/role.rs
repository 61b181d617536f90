//! From a `RoleAssignment` to what the domain decides on.

use std::collections::BTreeSet;

use kube::ResourceExt;
use snafu::{OptionExt, Snafu};

use crate::{
    api::{
        ASSIGNMENT_FINALIZER,
        v1alpha1::{
            AssignmentScope, BuiltInRole, LabelOperator, NamespaceSelector, Principal,
            PrincipalKind, RoleAssignment, RoleAssignmentStatus, RoleChoice, ScopeKind,
            ScopeNamespaces,
        },
    },
    domain::{
        ledger::Owner,
        role::{self, BuiltIn, Kind, Scope, Selector, Test},
    },
};

/// A `RoleAssignment`, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// What it declares.
    pub declared: role::Assignment,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// What was reported of it last.
    pub status: RoleAssignmentStatus,
}

/// A spec says what the schema should have refused.
#[derive(Debug, Snafu)]
#[snafu(visibility(pub))]
pub enum Invalid {
    /// A required field is missing, or none of several is there.
    #[snafu(display("{field} is missing"))]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// Fields of which one excludes the others.
    #[snafu(display("{field} says more than one thing: choose one"))]
    Ambiguous {
        /// The field.
        field: &'static str,
    },
    /// It would choose everything.
    #[snafu(display("scope.namespaces.selector is empty: write scope.cluster instead"))]
    EmptySelector,
}

impl Assignment {
    /// Reads a `RoleAssignment` as the apiserver gave it.
    ///
    /// # Errors
    /// [`Invalid`] for an object that an older schema let through.
    pub fn read(object: RoleAssignment) -> Result<Self, Invalid> {
        let namespace = object.namespace().context(MissingSnafu {
            field: "metadata.namespace",
        })?;
        let uid = object.uid().context(MissingSnafu {
            field: "metadata.uid",
        })?;
        let owner = Owner {
            name: object.name_any(),
            uid,
        };
        let metadata = &object.metadata;
        let spec = &object.spec;
        Ok(Self {
            declared: role::Assignment {
                principal: principal(&spec.principal, &namespace),
                role: chosen(&spec.role)?,
                scope: scope(&spec.scope)?,
                starts: spec.starts_at.as_ref().map(|time| time.0),
                expires: spec.expires_at.as_ref().map(|time| time.0),
                deleting: metadata.deletion_timestamp.is_some(),
                namespace,
                owner,
            },
            generation: metadata.generation,
            version: metadata.resource_version.clone().unwrap_or_default(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            status: object.status.unwrap_or_default(),
        })
    }

    /// Whether it carries our finalizer.
    pub fn is_held(&self) -> bool {
        self.finalizers
            .iter()
            .any(|name| name == ASSIGNMENT_FINALIZER)
    }

    /// Whether everything that is acted on is the same; what was reported and the object's version
    /// are not.
    pub fn asks_for_the_same(&self, other: &Self) -> bool {
        self.declared == other.declared
            && self.generation == other.generation
            && self.finalizers == other.finalizers
    }
}

fn principal(principal: &Principal, own: &str) -> role::Principal {
    let name = principal.name.clone();
    match principal.kind {
        PrincipalKind::Group => role::Principal::Group(name),
        PrincipalKind::ServiceAccount => role::Principal::ServiceAccount {
            namespace: principal
                .namespace
                .clone()
                .unwrap_or_else(|| own.to_owned()),
            name,
        },
        PrincipalKind::User => role::Principal::User(name),
    }
}

fn chosen(role: &RoleChoice) -> Result<role::Role, Invalid> {
    match (role.built_in, &role.cluster_role) {
        (Some(built_in), None) => Ok(role::Role::BuiltIn(built_in_role(built_in))),
        (None, Some(name)) => Ok(role::Role::Custom(name.clone())),
        (None, None) => MissingSnafu { field: "role" }.fail(),
        (Some(_), Some(_)) => AmbiguousSnafu { field: "role" }.fail(),
    }
}

fn built_in_role(role: BuiltInRole) -> BuiltIn {
    match role {
        BuiltInRole::FunctionKeyReader => BuiltIn::FunctionKeyReader,
        BuiltInRole::FunctionKeyOperator => BuiltIn::FunctionKeyOperator,
        BuiltInRole::SecretVaultAdministrator => BuiltIn::SecretVaultAdministrator,
        BuiltInRole::SecretVaultReader => BuiltIn::SecretVaultReader,
        BuiltInRole::SecretVaultSecretsOfficer => BuiltIn::SecretVaultSecretsOfficer,
        BuiltInRole::SecretVaultSecretsUser => BuiltIn::SecretVaultSecretsUser,
        BuiltInRole::TokenProviderIssuer => BuiltIn::TokenProviderIssuer,
        BuiltInRole::TokenProviderOperator => BuiltIn::TokenProviderOperator,
        BuiltInRole::WebPubSubServiceOwner => BuiltIn::WebPubSubServiceOwner,
        BuiltInRole::WebPubSubServiceReader => BuiltIn::WebPubSubServiceReader,
    }
}

fn scope(scope: &AssignmentScope) -> Result<Scope, Invalid> {
    let AssignmentScope {
        resource,
        namespace,
        namespaces,
        cluster,
    } = scope;
    match (resource, namespace, namespaces, cluster) {
        (Some(resource), None, None, None) => Ok(Scope::Resource {
            kind: match resource.kind {
                ScopeKind::FunctionKey => Kind::FunctionKey,
                ScopeKind::SecretVault => Kind::SecretVault,
                ScopeKind::TokenProvider => Kind::TokenProvider,
            },
            name: resource.name.clone(),
        }),
        (None, Some(_), None, None) => Ok(Scope::Namespace),
        (None, None, Some(namespaces), None) => several(namespaces),
        (None, None, None, Some(_)) => Ok(Scope::Cluster),
        (None, None, None, None) => MissingSnafu { field: "scope" }.fail(),
        _ => AmbiguousSnafu { field: "scope" }.fail(),
    }
}

fn several(namespaces: &ScopeNamespaces) -> Result<Scope, Invalid> {
    let field = "scope.namespaces";
    match (&namespaces.names, &namespaces.selector) {
        (Some(names), None) => Ok(Scope::Named(names.iter().cloned().collect())),
        (None, Some(selector)) => Ok(Scope::Selected(tests(selector)?)),
        (None, None) => MissingSnafu { field }.fail(),
        (Some(_), Some(_)) => AmbiguousSnafu { field }.fail(),
    }
}

fn tests(selector: &NamespaceSelector) -> Result<Selector, Invalid> {
    let labels = selector.match_labels.iter().flatten();
    let mut tests: Vec<(String, Test)> = labels
        .map(|(label, value)| (label.clone(), Test::In(BTreeSet::from([value.clone()]))))
        .collect();
    for asked in selector.match_expressions.iter().flatten() {
        let values = || asked.values.iter().flatten().cloned().collect();
        let test = match asked.operator {
            LabelOperator::DoesNotExist => Test::Absent,
            LabelOperator::Exists => Test::Present,
            LabelOperator::In => Test::In(values()),
            LabelOperator::NotIn => Test::NotIn(values()),
        };
        tests.push((asked.key.clone(), test));
    }
    snafu::ensure!(!tests.is_empty(), EmptySelectorSnafu);
    Ok(Selector(tests))
}

#[cfg(test)]
mod tests_of_reading {
    use serde_json::{Value, json};
    use strum::IntoEnumIterator;

    use super::*;

    fn read(spec: &Value) -> Result<role::Assignment, String> {
        let object = json!({
            "apiVersion": "claviger.dev/v1alpha1", "kind": "RoleAssignment",
            "metadata": {"name": "a", "namespace": "shop", "uid": "u"}, "spec": spec,
        });
        let object = serde_json::from_value(object).map_err(|error| error.to_string())?;
        Assignment::read(object)
            .map(|assignment| assignment.declared)
            .map_err(|error| error.to_string())
    }

    fn with(field: &str, value: &Value) -> Value {
        let mut spec = json!({
            "principal": {"kind": "ServiceAccount", "name": "web"},
            "role": {"builtIn": "SecretVaultReader"},
            "scope": {"namespace": {}},
        });
        spec[field] = value.clone();
        spec
    }

    #[test]
    fn a_service_account_is_of_the_assignments_own_namespace_unless_it_says_otherwise() {
        let of = |principal| read(&with("principal", &principal)).unwrap().principal;
        let account = |namespace: &str| role::Principal::ServiceAccount {
            namespace: namespace.to_owned(),
            name: "web".to_owned(),
        };
        let named = json!({"kind": "ServiceAccount", "name": "web"});
        assert_eq!(of(named), account("shop"));
        let elsewhere = json!({"kind": "ServiceAccount", "name": "web", "namespace": "front"});
        assert_eq!(of(elsewhere), account("front"));
        let anna = role::Principal::User("anna".to_owned());
        assert_eq!(of(json!({"kind": "User", "name": "anna"})), anna);
    }

    #[test]
    fn every_built_in_role_can_be_written_by_its_name() {
        for role in BuiltIn::iter() {
            let name = role.to_string();
            let read = read(&with("role", &json!({"builtIn": name}))).unwrap();
            assert_eq!(read.role, role::Role::BuiltIn(role));
        }
    }

    #[test]
    fn scopes_are_read_as_they_are_written() {
        let of = |scope| read(&with("scope", &scope)).map(|read| read.scope.to_string());
        for (scope, expected) in [
            (json!({"namespace": {}}), Ok("namespace")),
            (json!({"cluster": {}}), Ok("cluster")),
            (
                json!({"resource": {"kind": "SecretVault", "name": "payments"}}),
                Ok("SecretVault/payments"),
            ),
            (
                json!({"namespaces": {"names": ["b", "a"]}}),
                Ok("namespaces a,b"),
            ),
            (
                json!({"namespaces": {"selector": {"matchLabels": {"tier": "front"}, "matchExpressions": [
                    {"key": "x", "operator": "Exists"}, {"key": "y", "operator": "DoesNotExist"},
                    {"key": "z", "operator": "NotIn", "values": ["1", "2"]}, {"key": "w", "operator": "In", "values": ["3", "4"]},
                ]}}}),
                Ok("namespaces tier=front,x,!y and 2 more"),
            ),
            (
                json!({"namespaces": {"selector": {"matchExpressions": [
                    {"key": "z", "operator": "NotIn", "values": ["1", "2"]}, {"key": "w", "operator": "In", "values": ["3", "4"]},
                ]}}}),
                Ok("namespaces z notin (1,2),w in (3,4)"),
            ),
            (json!({}), Err("scope is missing")),
            (
                json!({"namespace": {}, "cluster": {}}),
                Err("scope says more than one thing: choose one"),
            ),
            (
                json!({"namespaces": {}}),
                Err("scope.namespaces is missing"),
            ),
            (
                json!({"namespaces": {"selector": {}}}),
                Err("scope.namespaces.selector is empty: write scope.cluster instead"),
            ),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(of(scope), expected);
        }
    }
}
