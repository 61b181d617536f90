//! Key management services: the plugin that is built with Kubernetes' own library, as a process with
//! its keys in a directory, and one that answers whatever a test wants.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use claviger::{kms::Kms, root_keys::RootKeys};
use futures::{StreamExt as _, stream};
use prost::Message;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{self, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

use super::{Options, tool};

/// The plugin with its keys.
pub(crate) struct Plugin {
    directory: PathBuf,
    process: Option<Child>,
}

impl Plugin {
    /// A plugin with its socket and its keys in this directory; it does not run yet.
    pub(crate) fn prepare(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            process: None,
        }
    }

    /// Starts the process and waits until it serves.
    pub(crate) async fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        let mut process = Command::new(tool("kms-plugin"))
            .arg("--socket")
            .arg(self.socket())
            .arg("--keys")
            .arg(self.keys())
            .arg("--die-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        assert!(ready.unwrap().unwrap().unwrap().starts_with("ready "));
        self.process = Some(process);
    }

    /// Kills the process; the keys stay.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("kms.sock")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("kms.log")
    }

    fn keys(&self) -> PathBuf {
        self.directory.join("kms-keys")
    }

    fn key(&self, name: &str) -> PathBuf {
        self.keys().join(format!("{name}.key"))
    }

    /// Makes a key and encrypts with it from now on.
    pub(crate) fn turn(&self, name: &str) {
        let mut key = [0; 32];
        getrandom::fill(&mut key).unwrap();
        std::fs::write(self.key(name), key).unwrap();
        std::fs::write(self.keys().join("current"), name).unwrap();
    }

    /// Destroys a key.
    pub(crate) fn destroy(&self, name: &str) {
        std::fs::remove_file(self.key(name)).unwrap();
    }

    /// The bytes of a key.
    pub(crate) fn key_bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.key(name)).unwrap()
    }

    /// What opens what it wrapped.
    pub(crate) fn roots(&self) -> RootKeys {
        RootKeys::kms(
            Arc::new(Kms::connect(self.socket(), Duration::from_secs(5)).unwrap()),
            None,
        )
    }
}

/// An operator whose root key is with a KMS.
pub(crate) fn with_kms(socket: &Path) -> Options {
    let mut more = kms_socket(socket);
    more.insert(0, "--root-key=kms".to_owned());
    Options {
        more,
        ..Options::default()
    }
}

/// The argument that names the KMS.
pub(crate) fn kms_socket(socket: &Path) -> Vec<String> {
    vec!["--kms-socket".to_owned(), socket.display().to_string()]
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusAnswer {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(string, tag = "2")]
    pub(crate) healthz: String,
    #[prost(string, tag = "3")]
    pub(crate) key_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EncryptAnswer {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(crate) key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub(crate) annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) ciphertext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DecryptAnswer {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) plaintext: Vec<u8>,
}

/// What a call of the plugin answers.
pub(crate) type Answer<T> = Result<T, Status>;

/// How a plugin decrypts.
pub(crate) type Decrypt = dyn Fn(Vec<u8>) -> Answer<Vec<u8>> + Send + Sync;

/// How a plugin answers.
#[derive(Clone)]
pub(crate) struct Manners {
    pub(crate) status: Arc<dyn Fn() -> StatusAnswer + Send + Sync>,
    pub(crate) encrypt: Arc<dyn Fn(Vec<u8>) -> Answer<EncryptAnswer> + Send + Sync>,
    pub(crate) decrypt: Arc<Decrypt>,
}

impl Manners {
    /// As it should be; "encrypts" by turning bits over.
    pub(crate) fn good() -> Self {
        let turned = |bytes: Vec<u8>| bytes.iter().map(|byte| !byte).collect::<Vec<u8>>();
        Self {
            status: Arc::new(|| StatusAnswer {
                version: "v2".to_owned(),
                healthz: "ok".to_owned(),
                key_id: "k".to_owned(),
            }),
            encrypt: Arc::new(move |plaintext| {
                Ok(EncryptAnswer {
                    ciphertext: turned(plaintext),
                    key_id: "k".to_owned(),
                    annotations: BTreeMap::new(),
                })
            }),
            decrypt: Arc::new(move |ciphertext| Ok(turned(ciphertext))),
        }
    }
}

/// A plugin that answers as it is told.
#[derive(Clone)]
pub(crate) struct Fake {
    manners: Arc<Mutex<Manners>>,
}

impl Fake {
    /// Serves on this socket until the test ends.
    pub(crate) fn serve(socket: &Path) -> Self {
        let fake = Self {
            manners: Arc::new(Mutex::new(Manners::good())),
        };
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let served = fake.clone();
        tokio::spawn(async move {
            let incoming = stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await.map(|(connection, _)| connection);
                Some((accepted, listener))
            });
            let _ = Server::builder()
                .serve_with_incoming(served, incoming.boxed())
                .await;
        });
        fake
    }

    /// Answers this way from now on.
    pub(crate) fn behave(&self, change: impl FnOnce(&mut Manners)) {
        let mut manners = Manners::good();
        change(&mut manners);
        *self.manners.lock().unwrap() = manners;
    }

    fn manners(&self) -> Manners {
        self.manners.lock().unwrap().clone()
    }
}

struct StatusCall(Fake);
struct EncryptCall(Fake);
struct DecryptCall(Fake);

impl UnaryService<StatusRequest> for StatusCall {
    type Response = StatusAnswer;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, _: Request<StatusRequest>) -> Self::Future {
        let answer = (self.0.manners().status)();
        Box::pin(async { Ok(Response::new(answer)) })
    }
}

impl UnaryService<EncryptRequest> for EncryptCall {
    type Response = EncryptAnswer;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<EncryptRequest>) -> Self::Future {
        let answer = (self.0.manners().encrypt)(request.into_inner().plaintext);
        Box::pin(async { answer.map(Response::new) })
    }
}

impl UnaryService<DecryptRequest> for DecryptCall {
    type Response = DecryptAnswer;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<DecryptRequest>) -> Self::Future {
        let answer = (self.0.manners().decrypt)(request.into_inner().ciphertext);
        Box::pin(async { answer.map(|plaintext| Response::new(DecryptAnswer { plaintext })) })
    }
}

impl Service<http::Request<Body>> for Fake {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let fake = self.clone();
        Box::pin(async move {
            let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
            Ok(match call.as_str() {
                "Status" => {
                    server::Grpc::new(ProstCodec::default())
                        .unary(StatusCall(fake), request)
                        .await
                }
                "Encrypt" => {
                    server::Grpc::new(ProstCodec::default())
                        .unary(EncryptCall(fake), request)
                        .await
                }
                _ => {
                    server::Grpc::new(ProstCodec::default())
                        .unary(DecryptCall(fake), request)
                        .await
                }
            })
        })
    }
}
