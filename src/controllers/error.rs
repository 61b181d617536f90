//! What can go wrong in a look, by operation, and what follows from it.

use snafu::Snafu;
use strum::IntoStaticStr;

use crate::{
    api::{
        condition::{Reason, Report, State},
        convert::{StoreRef, Workload},
    },
    controllers::Item,
    k8s, kms,
};

/// An operation that failed.
#[derive(Debug, IntoStaticStr, Snafu)]
#[snafu(visibility(pub))]
pub enum Error {
    /// The status of an assignment could not be written.
    #[snafu(display("cannot write the status of RoleAssignment/{name}"))]
    AssignmentStatus {
        /// The assignment.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// A Role or binding could not be written.
    #[snafu(display("cannot write {object}"))]
    Grant {
        /// The object.
        object: String,
        /// Why.
        source: kube::Error,
    },
    /// An assignment could not be held back from deletion, or let go.
    #[snafu(display("cannot write the finalizers of RoleAssignment/{name}"))]
    HoldAssignment {
        /// The assignment.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// It could not be told whether bindings of an assignment are left.
    #[snafu(display("cannot list the bindings of an assignment"))]
    ListBindings {
        /// Why.
        source: kube::Error,
    },
    /// A ClusterRole could not be read.
    #[snafu(display("cannot read ClusterRole/{role}"))]
    ReadRole {
        /// The ClusterRole.
        role: String,
        /// Why.
        source: kube::Error,
    },
    /// A Role or binding could not be taken away.
    #[snafu(display("cannot delete {object}"))]
    Withdraw {
        /// The object.
        object: String,
        /// Why.
        source: kube::Error,
    },
    /// The custom resource definition could not be read.
    #[snafu(display("cannot tell whether the FunctionKey definition stands"))]
    Definition {
        /// Why.
        source: kube::Error,
    },
    /// An object could not be deleted.
    #[snafu(display("cannot delete {object}"))]
    Delete {
        /// The object.
        object: StoreRef,
        /// Why.
        source: kube::Error,
    },
    /// An object could not be read.
    #[snafu(display("cannot read {object}"))]
    Read {
        /// The object.
        object: StoreRef,
        /// Why.
        source: kube::Error,
    },
    /// A workload could not be read or restarted.
    #[snafu(display("cannot restart {}", workload.workload))]
    Restart {
        /// The workload.
        workload: Workload,
        /// Why.
        source: kube::Error,
    },
    /// An entry of a vault could not be read.
    #[snafu(display("cannot read Secret/{object}"))]
    ReadEntry {
        /// The entry's object.
        object: String,
        /// Why.
        source: kube::Error,
    },
    /// A vault's key ring or its entries could not be read.
    #[snafu(display("cannot read the key ring of SecretVault/{vault}"))]
    ReadRing {
        /// The vault.
        vault: String,
        /// Why.
        source: kube::Error,
    },
    /// A key could not be wrapped or unwrapped.
    #[snafu(display("the root key is not to be had"))]
    RootKey {
        /// Why.
        source: crate::root_keys::Error,
    },
    /// A vault could not be held back from deletion, or let go.
    #[snafu(display("cannot write the finalizers of SecretVault/{vault}"))]
    Finalize {
        /// The vault.
        vault: String,
        /// Why.
        source: kube::Error,
    },
    /// It could not be told whether a namespace is being deleted.
    #[snafu(display("cannot read namespace {namespace}"))]
    Namespace {
        /// The namespace.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
    /// The status of a vault could not be written.
    #[snafu(display("cannot write the status of SecretVault/{name}"))]
    VaultStatus {
        /// The vault.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// An entry of a vault could not be written.
    #[snafu(display("cannot write Secret/{object}"))]
    WriteEntry {
        /// The entry's object.
        object: String,
        /// Why.
        source: kube::Error,
    },
    /// A vault's key ring could not be written.
    #[snafu(display("cannot write the key ring of SecretVault/{vault}"))]
    WriteRing {
        /// The vault.
        vault: String,
        /// Why.
        source: kube::Error,
    },
    /// A status could not be written.
    #[snafu(display("cannot write the status of FunctionKey/{name}"))]
    Status {
        /// The resource.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// An object could not be written.
    #[snafu(display("cannot write {object}"))]
    Write {
        /// The object.
        object: StoreRef,
        /// Why.
        source: kube::Error,
    },
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody else wrote meanwhile: look again.
    Conflict,
    /// The apiserver says no; it may say yes later.
    Refused,
    /// The apiserver cannot answer now.
    Transient,
}

impl Error {
    fn source_error(&self) -> Option<&kube::Error> {
        match self {
            Self::AssignmentStatus { source, .. }
            | Self::Definition { source }
            | Self::Delete { source, .. }
            | Self::Finalize { source, .. }
            | Self::Grant { source, .. }
            | Self::HoldAssignment { source, .. }
            | Self::ListBindings { source }
            | Self::Namespace { source, .. }
            | Self::Read { source, .. }
            | Self::ReadEntry { source, .. }
            | Self::ReadRing { source, .. }
            | Self::ReadRole { source, .. }
            | Self::Restart { source, .. }
            | Self::Status { source, .. }
            | Self::VaultStatus { source, .. }
            | Self::Withdraw { source, .. }
            | Self::Write { source, .. }
            | Self::WriteEntry { source, .. }
            | Self::WriteRing { source, .. } => Some(source),
            Self::RootKey { .. } => None,
        }
    }

    /// The operation's name, for metrics.
    pub fn category(&self) -> &'static str {
        self.into()
    }

    /// What follows.
    pub fn class(&self) -> Class {
        if let Self::RootKey { source } = self {
            return match source.class() {
                kms::Class::Permanent => Class::Refused,
                kms::Class::Transient => Class::Transient,
            };
        }
        match self.source_error() {
            Some(kube::Error::Api(status)) if status.code == 409 => Class::Conflict,
            Some(kube::Error::Api(status))
                if (400..500).contains(&status.code) && status.code != 429 =>
            {
                Class::Refused
            }
            _ => Class::Transient,
        }
    }

    /// The failure in words.
    pub fn sentence(&self) -> String {
        let why = match self {
            Self::RootKey { source } => source.to_string(),
            _ => self.source_error().map(k8s::describe).unwrap_or_default(),
        };
        let sentence = format!("{self}: {why}");
        match (self, self.source_error()) {
            (Self::Write { .. }, Some(kube::Error::Api(status))) if status.code == 422 => format!(
                "{sentence}. An object holds 1 MiB of data and 256 KiB of annotations: if there are very \
                 many keys in this one, spread them over several"
            ),
            _ => sentence,
        }
    }

    /// What a status says of the failure; nothing of one that passes by itself.
    pub fn report(&self, reason: Reason) -> Option<Report> {
        (self.class() == Class::Refused).then(|| Report {
            state: State::Stalled,
            reason: if self.is_forbidden() {
                Reason::Forbidden
            } else {
                reason
            },
            message: format!(
                "{}. What was published last stays in place; this is tried again by itself.",
                self.sentence()
            ),
        })
    }

    fn is_forbidden(&self) -> bool {
        matches!(self.source_error(), Some(kube::Error::Api(status)) if status.code == 403)
    }

    /// Logs the failure once, as loud as it deserves.
    pub fn log(&self, item: &Item) {
        let error = self.sentence();
        match self.class() {
            Class::Conflict => {
                tracing::debug!(?item, error, "somebody else wrote meanwhile; looking again");
            }
            Class::Refused => {
                tracing::error!(?item, error, "refused by the apiserver; trying again later");
            }
            Class::Transient => {
                tracing::warn!(?item, error, "the apiserver did not answer; trying again");
            }
        }
    }
}
