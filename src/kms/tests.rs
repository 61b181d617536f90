//! Against a server that misbehaves on purpose. Tests against a plugin that is built with
//! Kubernetes' own library stand with the cluster tests.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{StreamExt as _, stream};
use tokio::net::UnixListener;
use tonic::{
    Response,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server,
    transport::Server,
};

use super::*;

const PLAINTEXT: &[u8] = b"thirty-two bytes that are secret";

/// How the server answers, by the path of the call.
type Reaction = Arc<dyn Fn(usize) -> Act + Send + Sync>;

#[derive(Clone)]
enum Act {
    /// The right answer; "encrypts" by turning bits over.
    Comply,
    /// Closes the connection without a word.
    Drop,
    /// Never answers.
    Hang,
    Encrypted(wire::EncryptResponse),
    Refuse(Code),
    State(wire::StatusResponse),
}

#[derive(Clone)]
struct Fake {
    calls: Arc<AtomicUsize>,
    reaction: Reaction,
}

impl Fake {
    fn act(&self) -> Act {
        (self.reaction)(self.calls.fetch_add(1, Ordering::SeqCst))
    }
}

/// Waits, refuses or breaks off; gives back what is left to be answered.
async fn perform(act: Act) -> Result<Act, Status> {
    match act {
        Act::Hang => std::future::pending().await,
        Act::Refuse(code) => Err(Status::new(code, "the plaintext was: thirty-two bytes")),
        other => Ok(other),
    }
}

struct StatusCall(Fake);
struct EncryptCall(Fake);
struct DecryptCall(Fake);

impl server::UnaryService<wire::StatusRequest> for StatusCall {
    type Response = wire::StatusResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, _: Request<wire::StatusRequest>) -> Self::Future {
        let act = self.0.act();
        Box::pin(async move {
            Ok(Response::new(match perform(act).await? {
                Act::State(answer) => answer,
                _ => healthy(),
            }))
        })
    }
}

impl server::UnaryService<wire::EncryptRequest> for EncryptCall {
    type Response = wire::EncryptResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<wire::EncryptRequest>) -> Self::Future {
        let act = self.0.act();
        Box::pin(async move {
            let request = request.into_inner();
            assert_eq!(request.uid, "u1");
            Ok(Response::new(match perform(act).await? {
                Act::Encrypted(answer) => answer,
                _ => wire::EncryptResponse {
                    ciphertext: request.plaintext.iter().map(|byte| !byte).collect(),
                    ..encrypted()
                },
            }))
        })
    }
}

impl server::UnaryService<wire::DecryptRequest> for DecryptCall {
    type Response = wire::DecryptResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<wire::DecryptRequest>) -> Self::Future {
        let act = self.0.act();
        Box::pin(async move {
            perform(act).await?;
            let request = request.into_inner();
            assert_eq!((request.uid.as_str(), request.key_id.as_str()), ("u2", "k"));
            assert_eq!(request.annotations, encrypted().annotations);
            Ok(Response::new(wire::DecryptResponse {
                plaintext: request.ciphertext.iter().map(|byte| !byte).collect(),
            }))
        })
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
            assert_eq!(request.uri().authority().unwrap(), "localhost");
            Ok(match request.uri().path() {
                wire::STATUS => {
                    server::Grpc::new(ProstCodec::default())
                        .unary(StatusCall(fake), request)
                        .await
                }
                wire::ENCRYPT => {
                    server::Grpc::new(ProstCodec::default())
                        .unary(EncryptCall(fake), request)
                        .await
                }
                wire::DECRYPT => {
                    server::Grpc::new(ProstCodec::default())
                        .unary(DecryptCall(fake), request)
                        .await
                }
                other => panic!("{other} is not called"),
            })
        })
    }
}

struct Plugin {
    directory: tempfile::TempDir,
    calls: Arc<AtomicUsize>,
    server: Option<tokio::task::JoinHandle<()>>,
}

impl Plugin {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            calls: Arc::default(),
            server: None,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("kms.sock")
    }

    /// Serves, in place of whatever served before.
    async fn serve(&mut self, reaction: impl Fn(usize) -> Act + Send + Sync + 'static) {
        self.stop().await;
        let listener = UnixListener::bind(self.socket()).unwrap();
        let fake = Fake {
            calls: Arc::clone(&self.calls),
            reaction: Arc::new(reaction),
        };
        self.server = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let gone = Arc::new(tokio::sync::Notify::new());
                let fake = Fake {
                    reaction: {
                        let (reaction, gone) = (Arc::clone(&fake.reaction), Arc::clone(&gone));
                        Arc::new(move |call| match reaction(call) {
                            Act::Drop => {
                                gone.notify_one();
                                Act::Hang
                            }
                            act => act,
                        })
                    },
                    ..fake.clone()
                };
                connections.spawn(async move {
                    // Served behind a relay, so that the end of this task ends the connection.
                    let (mut near, far) = tokio::io::duplex(64 * 1024);
                    let far =
                        stream::once(async { Ok::<_, io::Error>(far) }).chain(stream::pending());
                    let mut connection = connection;
                    tokio::select! {
                        _ = Server::builder().serve_with_incoming(fake, far) => {}
                        _ = tokio::io::copy_bidirectional(&mut connection, &mut near) => {}
                        () = gone.notified() => {}
                    }
                });
            }
        }));
    }

    async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
            std::fs::remove_file(self.socket()).unwrap();
        }
    }

    fn client(&self) -> Kms {
        Kms::connect(self.socket(), Duration::from_secs(2)).unwrap()
    }

    fn calls(&self) -> usize {
        self.calls.swap(0, Ordering::SeqCst)
    }
}

fn healthy() -> wire::StatusResponse {
    wire::StatusResponse {
        version: "v2".to_owned(),
        healthz: "ok".to_owned(),
        key_id: "k".to_owned(),
    }
}

fn encrypted() -> wire::EncryptResponse {
    wire::EncryptResponse {
        ciphertext: vec![1],
        key_id: "k".to_owned(),
        annotations: BTreeMap::from([("version.example.org".to_owned(), vec![0, 255])]),
    }
}

fn shown(error: &Error) -> String {
    let shown = format!("{error} {error:?}");
    assert!(
        !shown.contains("thirty") && !shown.contains("116, 104"),
        "{shown}"
    );
    error.to_string()
}

#[tokio::test]
async fn decrypts_what_was_encrypted() {
    let mut plugin = Plugin::new();
    plugin.serve(|_| Act::Comply).await;
    for kms in [
        plugin.client(),
        Kms::connect(
            format!("unix://{}", plugin.socket().display()),
            Duration::from_secs(1),
        )
        .unwrap(),
    ] {
        assert_eq!(kms.status().await.unwrap().key_id, "k");
        let encrypted = kms.encrypt("u1", PLAINTEXT).await.unwrap();
        assert_ne!(encrypted.ciphertext, PLAINTEXT);
        assert_eq!(*kms.decrypt("u2", &encrypted).await.unwrap(), PLAINTEXT);
        let changed = Encrypted {
            ciphertext: vec![0; 1025],
            ..encrypted
        };
        plugin.calls();
        let error = kms.decrypt("u2", &changed).await.unwrap_err();
        assert!(matches!(error, Error::Unfit { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Permanent);
        assert_eq!(plugin.calls(), 0);
    }
}

#[tokio::test]
async fn a_plugin_that_comes_goes_and_comes_back() {
    let mut plugin = Plugin::new();
    let kms = plugin.client();
    let error = kms.status().await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    assert!(matches!(
        error,
        Error::Unreachable {
            cause: Some(io::ErrorKind::NotFound),
            ..
        }
    ));
    assert!(shown(&error).contains("whether its socket is mounted"));
    for _ in 0..3 {
        plugin.serve(|_| Act::Comply).await;
        kms.status().await.unwrap();
        kms.encrypt("u1", PLAINTEXT).await.unwrap();
        plugin.stop().await;
        let error = kms.encrypt("u1", PLAINTEXT).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        shown(&error);
    }
}

#[tokio::test]
async fn a_call_whose_connection_breaks_is_repeated_once() {
    let mut plugin = Plugin::new();
    plugin
        .serve(|call| if call == 0 { Act::Drop } else { Act::Comply })
        .await;
    let kms = plugin.client();
    kms.encrypt("u1", PLAINTEXT).await.unwrap();
    assert_eq!(plugin.calls(), 2);

    plugin.serve(|_| Act::Drop).await;
    let kms = plugin.client();
    let error = kms.encrypt("u1", PLAINTEXT).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Transient);
    shown(&error);
    assert_eq!(plugin.calls(), 2);
}

#[tokio::test]
async fn a_plugin_that_hangs_is_left_and_its_successor_is_found() {
    let mut plugin = Plugin::new();
    plugin.serve(|_| Act::Hang).await;
    let kms = Kms::connect(plugin.socket(), Duration::from_millis(100)).unwrap();
    let error = kms.encrypt("u1", PLAINTEXT).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Transient);
    assert!(shown(&error).contains("did not answer Encrypt within 100ms"));
    assert_eq!(plugin.calls(), 1);

    // The one that hangs keeps its connection; another has taken over the socket.
    let hanging = plugin.server.take();
    std::fs::remove_file(plugin.socket()).unwrap();
    plugin.serve(|_| Act::Comply).await;
    kms.status().await.unwrap();
    hanging.unwrap().abort();

    // One that takes the connection and never speaks at all.
    plugin.stop().await;
    let _listener = UnixListener::bind(plugin.socket()).unwrap();
    let kms = Kms::connect(plugin.socket(), Duration::from_millis(100)).unwrap();
    assert!(matches!(
        kms.status().await.unwrap_err(),
        Error::Timeout { .. }
    ));
}

#[tokio::test]
async fn refusals_are_told_by_their_code_only() {
    let mut plugin = Plugin::new();
    let kms = plugin.client();
    for (code, class, advice) in [
        (Code::Unavailable, Class::Transient, "its log says why"),
        (Code::DeadlineExceeded, Class::Transient, "its log says why"),
        (Code::ResourceExhausted, Class::Transient, "raise its quota"),
        (Code::Internal, Class::Transient, "its log says why"),
        (Code::Unknown, Class::Transient, "its log says why"),
        (
            Code::InvalidArgument,
            Class::Permanent,
            "gone from the key store",
        ),
        (Code::NotFound, Class::Permanent, "gone from the key store"),
        (Code::PermissionDenied, Class::Permanent, "give it access"),
        (Code::Unimplemented, Class::Permanent, "KMS v1 only"),
    ] {
        plugin.serve(move |_| Act::Refuse(code)).await;
        let error = kms.encrypt("u1", PLAINTEXT).await.unwrap_err();
        assert_eq!(error.class(), class, "{error:?}");
        let words = shown(&error);
        assert!(
            words.contains(&format!("refused Encrypt with {code:?}")),
            "{words}"
        );
        assert!(words.contains(advice), "{words}");
        assert_eq!(plugin.calls(), 1, "{code:?}: a refusal is not asked again");
    }
}

#[tokio::test]
async fn a_status_that_is_not_well_is_an_error() {
    let mut plugin = Plugin::new();
    let kms = plugin.client();
    let state = |change: fn(&mut wire::StatusResponse)| {
        let mut state = healthy();
        change(&mut state);
        move |_| Act::State(state.clone())
    };
    plugin
        .serve(state(|state| state.version = "v2beta1".to_owned()))
        .await;
    kms.status().await.unwrap();
    plugin
        .serve(state(|state| state.key_id = "k".repeat(1024)))
        .await;
    kms.status().await.unwrap();

    plugin
        .serve(state(|state| state.version = "v1".to_owned()))
        .await;
    let error = kms.status().await.unwrap_err();
    assert!(matches!(error, Error::Version { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Permanent);

    plugin
        .serve(state(|state| state.healthz = "x".repeat(9000)))
        .await;
    let error = kms.status().await.unwrap_err();
    assert!(matches!(&error, Error::Unhealthy { healthz, .. } if healthz.len() == 256));
    assert_eq!(error.class(), Class::Transient);

    for (key_id, wanted) in [(0, Fault::EmptyKeyId), (1025, Fault::KeyIdTooLong(1025))] {
        let state = wire::StatusResponse {
            key_id: "k".repeat(key_id),
            ..healthy()
        };
        plugin.serve(move |_| Act::State(state.clone())).await;
        let error = kms.status().await.unwrap_err();
        assert!(matches!(error, Error::Answer { fault, .. } if fault == wanted));
        assert_eq!(error.class(), Class::Permanent);
    }
}

#[tokio::test]
async fn answers_are_held_to_the_rules() {
    let annotation =
        |name: &str, length: usize| BTreeMap::from([(name.to_owned(), vec![7; length])]);
    let many = |count: usize| {
        (0..count)
            .map(|number| (format!("{number:x}.k"), Vec::new()))
            .collect::<BTreeMap<_, _>>()
    };
    let mut plugin = Plugin::new();
    let kms = plugin.client();
    for (ciphertext, key_id, annotations, fault) in [
        (1, 1, BTreeMap::new(), None),
        (1024, 1024, annotation("a.b", MAX_ANNOTATIONS - 3), None),
        (1, 1, many(5500), None),
        (1, 1, annotation("a.b.", 1), None),
        (0, 1, BTreeMap::new(), Some(Fault::EmptyCiphertext)),
        (
            1025,
            1,
            BTreeMap::new(),
            Some(Fault::CiphertextTooLong(1025)),
        ),
        (1, 0, BTreeMap::new(), Some(Fault::EmptyKeyId)),
        (1, 1025, BTreeMap::new(), Some(Fault::KeyIdTooLong(1025))),
        (
            1,
            1,
            annotation("a.b", MAX_ANNOTATIONS - 2),
            Some(Fault::AnnotationsTooLong(MAX_ANNOTATIONS + 1)),
        ),
        (1, 1, annotation("a.b", 300_000), Some(Fault::TooLong)),
        (300_000, 1, BTreeMap::new(), Some(Fault::TooLong)),
        (1, 1, annotation("", 1), Some(Fault::AnnotationName)),
        (1, 1, annotation("local", 1), Some(Fault::AnnotationName)),
        (1, 1, annotation("A.b", 1), Some(Fault::AnnotationName)),
        (1, 1, annotation("a..b", 1), Some(Fault::AnnotationName)),
        (1, 1, annotation("-a.b", 1), Some(Fault::AnnotationName)),
        (1, 1, annotation("a_b.c", 1), Some(Fault::AnnotationName)),
        (
            1,
            1,
            annotation(&format!("{}.b", "a".repeat(64)), 1),
            Some(Fault::AnnotationName),
        ),
    ] {
        let answer = wire::EncryptResponse {
            ciphertext: vec![9; ciphertext],
            key_id: "k".repeat(key_id),
            annotations: annotations.clone(),
        };
        plugin.serve(move |_| Act::Encrypted(answer.clone())).await;
        let outcome = kms.encrypt("u1", PLAINTEXT).await;
        match (outcome, fault) {
            (Ok(encrypted), None) => {
                assert!(encrypted.annotations == annotations);
            }
            (Err(error), Some(wanted)) => {
                assert!(
                    matches!(error, Error::Answer { fault, .. } if fault == wanted),
                    "{error:?}"
                );
                assert_eq!(error.class(), Class::Permanent);
                shown(&error);
            }
            (outcome, fault) => panic!("{outcome:?} where {fault:?} is due"),
        }
    }
}

#[tokio::test]
async fn a_socket_has_an_absolute_path() {
    for path in [
        "", "kms.sock", "unix://", "unix:///", "http://x", "/run/", "@kms",
    ] {
        let error = Kms::connect(path, Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, Error::Address { .. }));
        assert_eq!(error.class(), Class::Permanent);
    }
}

#[test]
fn messages_show_no_plaintext() {
    let request = wire::EncryptRequest {
        plaintext: PLAINTEXT.to_vec(),
        uid: String::new(),
    };
    let response = wire::DecryptResponse {
        plaintext: PLAINTEXT.to_vec(),
    };
    assert_eq!(
        format!("{request:?} {response:?}"),
        "EncryptRequest(…redacted…) DecryptResponse(…redacted…)"
    );
}
