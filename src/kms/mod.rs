//! A client for a key management service that speaks the Kubernetes KMS v2 protocol.
//!
//! The same plugins that encrypt etcd for the apiserver (AWS KMS, Azure Key Vault, Vault, an HSM, …)
//! seal keys for Claviger: gRPC over a unix socket, with `Status`, `Encrypt` and `Decrypt`. What a
//! plugin answers is held to the rules that the apiserver holds it to, so that a plugin which works
//! there works here and a broken one is noticed before anything hangs on its answer.
//!
//! The connection is made at the first call and made anew whenever it breaks. Each of the three
//! calls may be repeated without harm; one that lost its connection is repeated once, within the
//! same time limit.
//!
//! No error shows what was or was to be encrypted, and of a plugin's refusal only the code is told:
//! its words are not ours to vouch for. Plaintexts are overwritten in memory where this module holds
//! them; the buffers of the connection below it are not.

mod wire;

use std::{
    collections::BTreeMap,
    fmt, io, mem,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prost::Message;
use snafu::{OptionExt as _, Snafu, ensure};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

/// A key management service behind a unix socket.
pub struct Kms {
    path: PathBuf,
    endpoint: Endpoint,
    channel: Mutex<Channel>,
    timeout: Duration,
}

/// What the service says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The key that it encrypts with now. Another one than before: what was encrypted under the
    /// former should be encrypted anew.
    pub key_id: String,
}

/// A plaintext as the service has encrypted it. All of it is needed to decrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The ciphertext, 1 to [`MAX_CIPHERTEXT`] bytes.
    pub ciphertext: Vec<u8>,
    /// The key it was encrypted with, 1 to [`MAX_KEY_ID`] bytes.
    pub key_id: String,
    /// What the plugin wants to see again, under fully qualified names.
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// The longest ciphertext, in bytes.
pub const MAX_CIPHERTEXT: usize = 1024;
/// The longest name of a key, in bytes.
pub const MAX_KEY_ID: usize = 1024;
/// The most that annotations may have, names and values together, in bytes.
pub const MAX_ANNOTATIONS: usize = 32 * 1024;

/// The key management service did not do what was asked of it.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The path cannot be that of a socket.
    #[snafu(display(
        "what is given for the socket of the KMS plugin cannot be one: give an absolute path, as in /run/kms/plugin.sock"
    ))]
    Address {
        /// What was given.
        path: PathBuf,
    },
    /// The answer breaks the rules of the protocol.
    #[snafu(display(
        "the KMS plugin at {} answered {call} with {fault}, against the KMS v2 rules: update the plugin, or use another", path.display()
    ))]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        call: Call,
        /// What is wrong.
        fault: Fault,
    },
    /// The plugin answered with an error.
    #[snafu(display(
        "the KMS plugin at {} refused {call} with {}: {}", path.display(), name(*code), advice(*code)
    ))]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        call: Call,
        /// The answer's code.
        code: Code,
    },
    /// The plugin did not answer in time.
    #[snafu(display(
        "the KMS plugin at {} did not answer {call} within {timeout:?}: see whether it hangs, and whether it reaches its key store", path.display()
    ))]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        call: Call,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The plugin says that it is not well.
    #[snafu(display(
        "the KMS plugin at {} is not healthy; it says {healthz:?}: see its log", path.display()
    ))]
    Unhealthy {
        /// The socket.
        path: PathBuf,
        /// Its own words; the beginning of them.
        healthz: String,
    },
    /// What is to be decrypted cannot have come from a plugin.
    #[snafu(display(
        "what the KMS plugin at {} is to decrypt has {fault}, against the KMS v2 rules: it was changed since it was encrypted; restore it", path.display()
    ))]
    Unfit {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// There is no connection to the plugin, or it broke.
    #[snafu(display(
        "no connection to the KMS plugin at {}{}: see whether it runs and whether its socket is mounted here", path.display(), cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default()
    ))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        call: Call,
        /// Why, if the operating system told.
        cause: Option<io::ErrorKind>,
    },
    /// The plugin speaks another version of the protocol.
    #[snafu(display(
        "the KMS plugin at {} speaks version {version:?} of the protocol, not v2: use a plugin for KMS v2", path.display()
    ))]
    Version {
        /// The socket.
        path: PathBuf,
        /// The version it named; the beginning of that.
        version: String,
    },
}

/// What follows from an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Trying again will not help until somebody has done something.
    Permanent,
    /// It may pass: try again.
    Transient,
}

/// A call of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opens a ciphertext.
    Decrypt,
    /// Makes a ciphertext.
    Encrypt,
    /// Asks how the plugin is and which key it encrypts with.
    Status,
}

/// How an answer breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The name of an annotation is not a fully qualified domain name.
    AnnotationName,
    /// More annotations than may be kept, in bytes.
    AnnotationsTooLong(usize),
    /// A ciphertext that is too long, in bytes.
    CiphertextTooLong(usize),
    /// No ciphertext.
    EmptyCiphertext,
    /// No name of a key.
    EmptyKeyId,
    /// A name of a key that is too long, in bytes.
    KeyIdTooLong(usize),
    /// An answer that is longer than any that keeps the rules.
    TooLong,
}

impl Kms {
    /// A client for the plugin at the socket `path`, which may also be written as the apiserver's
    /// `unix:///path`. Connects at the first call; every call is given up after `timeout`.
    ///
    /// Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, Error> {
        let path = path.as_ref();
        let text = path.to_str().context(AddressSnafu { path })?;
        let text = text.strip_prefix("unix://").unwrap_or(text);
        ensure!(
            text.starts_with('/') && !text.ends_with('/') && !text.contains('\0'),
            AddressSnafu { path }
        );
        let endpoint = Endpoint::from_shared(format!("unix://{text}"))
            .ok()
            .context(AddressSnafu { path })?
            .origin(Uri::from_static("http://localhost"))
            .connect_timeout(timeout);
        Ok(Self {
            path: PathBuf::from(text),
            channel: Mutex::new(endpoint.connect_lazy()),
            endpoint,
            timeout,
        })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks whether the plugin is well and which key it encrypts with.
    ///
    /// # Errors
    /// See [`Error`]; one if it is not well.
    pub async fn status(&self) -> Result<Health, Error> {
        let answer: wire::StatusResponse =
            self.call(Call::Status, || wire::StatusRequest {}).await?;
        let path = &self.path;
        ensure!(
            ["v2", "v2beta1"].contains(&answer.version.as_str()),
            VersionSnafu {
                path,
                version: beginning(&answer.version)
            }
        );
        ensure!(
            answer.healthz == "ok",
            UnhealthySnafu {
                path,
                healthz: beginning(&answer.healthz)
            }
        );
        check_key_id(&answer.key_id).map_err(|fault| self.broken(Call::Status, fault))?;
        Ok(Health {
            key_id: answer.key_id,
        })
    }

    /// Has a plaintext encrypted. `uid` names the request in the plugin's log.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn encrypt(&self, uid: &str, plaintext: &[u8]) -> Result<Encrypted, Error> {
        let answer: wire::EncryptResponse = self
            .call(Call::Encrypt, || wire::EncryptRequest {
                plaintext: plaintext.to_vec(),
                uid: uid.to_owned(),
            })
            .await?;
        let encrypted = Encrypted {
            ciphertext: answer.ciphertext,
            key_id: answer.key_id,
            annotations: answer.annotations,
        };
        check(&encrypted).map_err(|fault| self.broken(Call::Encrypt, fault))?;
        Ok(encrypted)
    }

    /// Has decrypted what [`Self::encrypt`] made. `uid` names the request in the plugin's log.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn decrypt(
        &self,
        uid: &str,
        encrypted: &Encrypted,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        check(encrypted).map_err(|fault| Error::Unfit {
            path: self.path.clone(),
            fault,
        })?;
        let mut answer: wire::DecryptResponse = self
            .call(Call::Decrypt, || wire::DecryptRequest {
                ciphertext: encrypted.ciphertext.clone(),
                uid: uid.to_owned(),
                key_id: encrypted.key_id.clone(),
                annotations: encrypted.annotations.clone(),
            })
            .await?;
        Ok(Zeroizing::new(mem::take(&mut answer.plaintext)))
    }

    /// Makes a call, at most twice, and gives it up after the time limit.
    async fn call<Q, A>(&self, call: Call, question: impl Fn() -> Q) -> Result<A, Error>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let tries = async {
            match self.attempt(call, question()).await {
                Err(Error::Unreachable { .. }) => self.attempt(call, question()).await,
                outcome => outcome,
            }
        };
        if let Ok(outcome) = tokio::time::timeout(self.timeout, tries).await {
            return outcome;
        }
        // The other end may be a process that hangs while a healthy one has taken over the socket.
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = self.endpoint.connect_lazy();
        TimeoutSnafu {
            path: &self.path,
            call,
            timeout: self.timeout,
        }
        .fail()
    }

    async fn attempt<Q, A>(&self, call: Call, question: Q) -> Result<A, Error>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let channel = self
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        grpc.ready()
            .await
            .map_err(|error| self.unreachable(call, &error))?;
        let mut request = Request::new(question);
        request.set_timeout(self.timeout);
        let codec = ProstCodec::<Q, A>::default();
        let method = PathAndQuery::from_static(match call {
            Call::Decrypt => wire::DECRYPT,
            Call::Encrypt => wire::ENCRYPT,
            Call::Status => wire::STATUS,
        });
        match grpc.unary(request, method, codec).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.failure(call, &status)),
        }
    }

    /// Tells a plugin's answer from what went wrong on the way to it.
    fn failure(&self, call: Call, status: &Status) -> Error {
        // Only what arose on this side has a source.
        if std::error::Error::source(status).is_some() {
            return self.unreachable(call, status);
        }
        match status.code() {
            Code::OutOfRange => self.broken(call, Fault::TooLong),
            code => Error::Refused {
                path: self.path.clone(),
                call,
                code,
            },
        }
    }

    fn unreachable(&self, call: Call, error: &(dyn std::error::Error + 'static)) -> Error {
        let mut causes = std::iter::successors(Some(error), |error| error.source());
        Error::Unreachable {
            path: self.path.clone(),
            call,
            cause: causes.find_map(|error| Some(error.downcast_ref::<io::Error>()?.kind())),
        }
    }

    fn broken(&self, call: Call, fault: Fault) -> Error {
        Error::Answer {
            path: self.path.clone(),
            call,
            fault,
        }
    }
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kms({})", self.path.display())
    }
}

impl Error {
    /// What follows.
    pub fn class(&self) -> Class {
        match self {
            Self::Address { .. }
            | Self::Answer { .. }
            | Self::Unfit { .. }
            | Self::Version { .. } => Class::Permanent,
            Self::Timeout { .. } | Self::Unhealthy { .. } | Self::Unreachable { .. } => {
                Class::Transient
            }
            Self::Refused { code, .. } => class(*code),
        }
    }
}

/// Plugins in Go answer `Unknown` to whatever goes wrong behind them, a network that is down
/// included; so what is not certain to last counts as passing.
fn class(code: Code) -> Class {
    match code {
        Code::Aborted
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Ok
        | Code::ResourceExhausted
        | Code::Unavailable
        | Code::Unknown => Class::Transient,
        Code::AlreadyExists
        | Code::DataLoss
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => Class::Permanent,
    }
}

fn name(code: Code) -> String {
    format!("{code:?}")
}

fn advice(code: Code) -> &'static str {
    match code {
        Code::NotFound | Code::InvalidArgument | Code::FailedPrecondition | Code::DataLoss => {
            "its log says why; the key that this was encrypted with may be disabled or gone from the key store"
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            "its log says why; give it access to its key store"
        }
        Code::Unimplemented => "it may speak KMS v1 only; use a plugin for KMS v2",
        Code::ResourceExhausted => {
            "its key store answers no more requests for now; if that stays so, raise its quota"
        }
        _ => "its log says why",
    }
}

/// Holds what is encrypted to the rules.
fn check(encrypted: &Encrypted) -> Result<(), Fault> {
    match encrypted.ciphertext.len() {
        0 => return Err(Fault::EmptyCiphertext),
        1..=MAX_CIPHERTEXT => {}
        length => return Err(Fault::CiphertextTooLong(length)),
    }
    check_key_id(&encrypted.key_id)?;
    let annotations = &encrypted.annotations;
    let length = annotations
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if length > MAX_ANNOTATIONS {
        return Err(Fault::AnnotationsTooLong(length));
    }
    if annotations.keys().all(|name| is_fully_qualified(name)) {
        Ok(())
    } else {
        Err(Fault::AnnotationName)
    }
}

fn check_key_id(key_id: &str) -> Result<(), Fault> {
    match key_id.len() {
        0 => Err(Fault::EmptyKeyId),
        1..=MAX_KEY_ID => Ok(()),
        length => Err(Fault::KeyIdTooLong(length)),
    }
}

/// Whether this is a domain name of at least two labels, as RFC 1123 and the apiserver have it; a
/// dot at the end is allowed.
fn is_fully_qualified(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

/// So much of a plugin's words as fits into a message.
fn beginning(text: &str) -> String {
    text.chars().take(256).collect()
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnnotationName => {
                f.write_str("an annotation whose name is not a fully qualified domain name")
            }
            Self::AnnotationsTooLong(length) => write!(f, "{length} bytes of annotations"),
            Self::CiphertextTooLong(length) => write!(f, "a ciphertext of {length} bytes"),
            Self::EmptyCiphertext => f.write_str("an empty ciphertext"),
            Self::EmptyKeyId => f.write_str("an empty key_id"),
            Self::KeyIdTooLong(length) => write!(f, "a key_id of {length} bytes"),
            Self::TooLong => write!(f, "more than {MAX_ANSWER} bytes"),
        }
    }
}

/// More than any answer within the limits takes: the smallest annotation, 3 bytes, takes 10 on the
/// wire, so 32 KiB of them take some 110 KiB.
const MAX_ANSWER: usize = 256 * 1024;

#[cfg(test)]
mod tests;
