//! An OIDC issuer on the loopback, with a CA of its own: what is fetched from it, when, and what
//! becomes of its users when it turns its keys or goes away.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Request};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Parser;
use claviger::{
    clock,
    domain::identity::Identity,
    metrics::Metrics,
    server::{
        oidc::{Disbelief, Issuer, IssuerSettings},
        router::{Doors, router},
        settings::{IdentityArgs, Place, Settings},
    },
    token_keys::Sight,
};
use http_body_util::BodyExt as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// What the issuer answers, by path.
type Pages = Arc<Mutex<Vec<(String, Value)>>>;

struct Provider {
    address: SocketAddr,
    pages: Pages,
    asked: Arc<AtomicU32>,
    /// It takes requests and answers none.
    hangs: Arc<AtomicBool>,
    ca: tempfile::NamedTempFile,
}

impl Provider {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), certificate.pem()).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            address: listener.local_addr().unwrap(),
            pages: Pages::default(),
            asked: Arc::default(),
            hangs: Arc::default(),
            ca,
        };
        let (pages, asked) = (Arc::clone(&provider.pages), Arc::clone(&provider.asked));
        let hangs = Arc::clone(&provider.hangs);
        tokio::spawn(async move {
            let mut hanging = Vec::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    break;
                };
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                asked.fetch_add(1, Ordering::SeqCst);
                if hangs.load(Ordering::SeqCst) {
                    hanging.push(stream);
                    continue;
                }
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                assert!(!request.to_lowercase().contains("authorization"));
                let page = pages
                    .lock()
                    .unwrap()
                    .iter()
                    .find(|(known, _)| *known == path)
                    .map(|(_, page)| page.to_string());
                let (status, body) = page.map_or((404, String::new()), |page| (200, page));
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let issuer = provider.url();
        provider.publish(
            "/.well-known/openid-configuration",
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")}),
        );
        provider
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn publish(&self, path: &str, page: Value) {
        let mut pages = self.pages.lock().unwrap();
        pages.retain(|(known, _)| known != path);
        pages.push((path.to_owned(), page));
    }

    fn publish_keys(&self, signers: &[&Signer]) {
        let keys: Vec<_> = signers.iter().map(|signer| signer.document()).collect();
        self.publish("/keys", json!({"keys": keys}));
    }

    fn settings(&self, more: &str) -> IssuerSettings {
        let (url, ca) = (self.url(), self.ca.path().display());
        format!("url={url},audience=claviger,prefix=corp:,ca={ca}{more}")
            .parse()
            .unwrap()
    }

    fn issuer(&self) -> Issuer {
        Issuer::new(self.settings("")).unwrap()
    }

    fn claims(&self) -> Value {
        let now = clock::now().as_second();
        json!({"iss": self.url(), "aud": "claviger", "sub": "ada", "exp": now + 600, "groups": ["ops"]})
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A key of the issuer.
struct Signer {
    id: &'static str,
    pair: KeyPair,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self { id, pair }
    }

    fn document(&self) -> Value {
        let point = self.pair.public_key_raw();
        let [x, y] = [&point[1..33], &point[33..]].map(|half| URL_SAFE_NO_PAD.encode(half));
        json!({"kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig", "alg": "ES256", "x": x, "y": y})
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        let key = EncodingKey::from_ec_der(&self.pair.serialize_der());
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }
}

#[tokio::test]
async fn users_of_an_issuer_are_known_and_its_keys_are_fetched_once() {
    let provider = Provider::start().await;
    let signer = Signer::new("one");
    provider.publish_keys(&[&signer]);
    let issuer = provider.issuer();
    let token = signer.sign(&provider.claims());
    for _ in 0..5 {
        let user = issuer.verify(&token, clock::now()).await.unwrap();
        let subject = Identity::Oidc(user).subject();
        assert_eq!(subject.user, "corp:ada");
        assert!(subject.groups.contains("corp:ops"));
    }
    assert_eq!(provider.asked(), 2, "where the keys are, and the keys");

    // Somebody else's signature, and none, and one by what is public.
    let stranger = Signer::new("one");
    let forged = stranger.sign(&provider.claims());
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!(
        "{}.{}.",
        encode(json!({"alg": "none", "kid": "one"})),
        encode(provider.claims())
    );
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("one".to_owned());
    let public = EncodingKey::from_secret(signer.pair.public_key_raw());
    let by_secret = jsonwebtoken::encode(&header, &provider.claims(), &public).unwrap();
    for token in [forged, unsigned, by_secret] {
        let refused = issuer.verify(&token, clock::now()).await;
        assert_eq!(refused, Err(Disbelief::Signature));
    }
    assert_eq!(provider.asked(), 2);
}

/// Lets so many seconds pass for those who wait, and for nobody else.
async fn passes(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    identity: IdentityArgs,
}

#[tokio::test]
async fn a_user_of_an_issuer_gets_past_the_challenge_under_its_prefix() {
    let provider = Provider::start().await;
    let signer = Signer::new("one");
    provider.publish_keys(&[&signer]);
    let (url, ca) = (provider.url(), provider.ca.path().display());
    let issuer = format!("url={url},audience=claviger,prefix=corp:,ca={ca}");
    let args = Line::parse_from(["claviger", "--oidc-issuer", &issuer]).identity;
    let place = Place {
        system_namespace: "claviger-system",
        server_name: "claviger.claviger-system.svc",
        cluster_domain: "cluster.local",
        domain: None,
    };
    // Nobody but the issuer is asked: there is no apiserver.
    let apiserver = tower::service_fn(|_: Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>("the apiserver was asked")
    });
    let client = kube::Client::new(apiserver, "default");
    let (_sight, seen) = tokio::sync::watch::channel(Sight::Absent);
    let doors = Doors::new(
        Settings::new(&args, &place).unwrap(),
        None,
        client,
        seen,
        Arc::new(Metrics::default()),
    )
    .unwrap();
    let router = router(Arc::new(doors));
    let ask = async |token: &str| {
        let request = Request::get("/claviger/v1/whoami")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let (status, body) = ask(&signer.sign(&provider.claims())).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["user"], "corp:ada");
    assert_eq!(body["groups"], json!(["corp:ops", "system:authenticated"]));
    let mut claims = provider.claims();
    claims["sub"] = json!("system:admin");
    let (status, body) = ask(&signer.sign(&claims)).await;
    assert_eq!(status, 401);
    let words = body["error"]["message"].as_str().unwrap();
    assert!(words.contains("are not taken from an issuer"), "{words}");
}

#[tokio::test]
async fn a_turned_key_is_fetched_but_a_flood_of_unknown_keys_fetches_nothing() {
    let provider = Provider::start().await;
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    provider.publish_keys(&[&old]);
    let issuer = provider.issuer();
    let claims = provider.claims();
    assert!(
        issuer
            .verify(&old.sign(&claims), clock::now())
            .await
            .is_ok()
    );
    provider.publish_keys(&[&old, &new]);
    // It was asked a moment ago.
    for _ in 0..20 {
        let early = issuer.verify(&new.sign(&claims), clock::now()).await;
        assert_eq!(early, Err(Disbelief::Signature));
    }
    assert_eq!(provider.asked(), 2);
    passes(31).await;
    assert!(
        issuer
            .verify(&new.sign(&claims), clock::now())
            .await
            .is_ok()
    );
    assert!(
        issuer
            .verify(&old.sign(&claims), clock::now())
            .await
            .is_ok()
    );
    assert_eq!(provider.asked(), 4);
}

#[tokio::test]
async fn whoever_names_keys_that_nobody_has_seen_keeps_nobody_else_waiting() {
    let provider = Provider::start().await;
    let (known, stranger) = (Signer::new("known"), Signer::new("stranger"));
    provider.publish_keys(&[&known]);
    let issuer = Arc::new(provider.issuer());
    let claims = provider.claims();
    let honest = known.sign(&claims);
    assert!(issuer.verify(&honest, clock::now()).await.is_ok());
    let asked = provider.asked();
    // The issuer is silent now, and has to be asked about every other key.
    provider.hangs.store(true, Ordering::SeqCst);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    let (waiting, token) = (Arc::clone(&issuer), stranger.sign(&claims));
    let waiting = tokio::spawn(async move { waiting.verify(&token, clock::now()).await });
    while provider.asked() == asked {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        let begun = std::time::Instant::now();
        assert!(issuer.verify(&honest, clock::now()).await.is_ok());
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
    assert!(!waiting.is_finished());
    assert_eq!(waiting.await.unwrap(), Err(Disbelief::Signature));
    // Extensions that are not known are not passed over.
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some("known".to_owned());
    header.crit = Some(vec!["exp".to_owned()]);
    let key = EncodingKey::from_ec_der(&known.pair.serialize_der());
    let critical = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    let refused = issuer.verify(&critical, clock::now()).await;
    assert_eq!(refused, Err(Disbelief::Signature));
}

#[tokio::test]
async fn an_issuer_that_goes_away_is_remembered_for_a_day() {
    let provider = Provider::start().await;
    let signer = Signer::new("one");
    let issuer = provider.issuer();
    let token = signer.sign(&provider.claims());
    // It has not published anything yet.
    let refused = issuer.verify(&token, clock::now()).await;
    assert_eq!(refused, Err(Disbelief::Unavailable));
    provider.publish_keys(&[&signer]);
    let issuer = provider.issuer();
    assert!(issuer.verify(&token, clock::now()).await.is_ok());
    provider.pages.lock().unwrap().clear();
    let passes = async |hours: u64| {
        passes(hours * 3600).await;
        issuer.verify(&token, clock::now()).await
    };
    assert!(passes(2).await.is_ok());
    assert!(passes(21).await.is_ok());
    assert_eq!(passes(2).await, Err(Disbelief::Unavailable));
}

#[tokio::test]
async fn who_comes_with_a_known_key_does_not_wait_for_what_others_cause() {
    let provider = Provider::start().await;
    let (known, stranger) = (Signer::new("known"), Signer::new("stranger"));
    provider.publish_keys(&[&known]);
    let issuer = Arc::new(provider.issuer());
    let token = known.sign(&provider.claims());
    assert!(issuer.verify(&token, clock::now()).await.is_ok());
    provider.hangs.store(true, Ordering::SeqCst);
    // Somebody makes the keys be fetched, and that takes its time.
    let somebody = || {
        let (issuer, unknown) = (Arc::clone(&issuer), stranger.sign(&provider.claims()));
        tokio::spawn(async move { issuer.verify(&unknown, clock::now()).await })
    };
    let asked = async |times: u32| {
        while provider.asked() < times {
            tokio::task::yield_now().await;
        }
    };
    let at_once = async || {
        let verified = issuer.verify(&token, clock::now());
        tokio::time::timeout(Duration::from_secs(2), verified).await
    };
    passes(31).await;
    let first = somebody();
    asked(3).await;
    assert!(matches!(at_once().await, Ok(Ok(_))));
    assert!(!first.is_finished());
    // The time that it is given is over. It has failed, so old keys go on while it is tried again.
    passes(5).await;
    assert_eq!(first.await.unwrap(), Err(Disbelief::Signature));
    passes(3600).await;
    let second = somebody();
    asked(4).await;
    assert!(matches!(at_once().await, Ok(Ok(_))));
    assert!(!second.is_finished());
    second.abort();
}

#[tokio::test]
async fn who_goes_away_uses_up_no_try() {
    let provider = Provider::start().await;
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    provider.publish_keys(&[&old]);
    let issuer = provider.issuer();
    let token = |signer: &Signer| signer.sign(&provider.claims());
    assert!(issuer.verify(&token(&old), clock::now()).await.is_ok());
    provider.publish_keys(&[&old, &new]);
    passes(31).await;
    let unknown = token(&Signer::new("stranger"));
    let begun = issuer.verify(&unknown, clock::now());
    let gone = tokio::time::timeout(Duration::ZERO, begun).await;
    assert!(gone.is_err(), "it was waiting");
    assert!(issuer.verify(&token(&new), clock::now()).await.is_ok());
    assert_eq!(provider.asked(), 4);
}

#[tokio::test]
async fn a_document_without_a_key_that_could_be_used_is_not_believed() {
    let provider = Provider::start().await;
    let signer = Signer::new("one");
    provider.publish_keys(&[&signer]);
    let issuer = provider.issuer();
    let token = signer.sign(&provider.claims());
    assert!(issuer.verify(&token, clock::now()).await.is_ok());
    let mut for_encryption = signer.document();
    for_encryption["use"] = json!("enc");
    for (number, keys) in [json!([]), json!([for_encryption])].into_iter().enumerate() {
        provider.publish("/keys", json!({"keys": keys}));
        passes(3601).await;
        assert!(issuer.verify(&token, clock::now()).await.is_ok(), "{keys}");
        assert_eq!(provider.asked(), 4 + 2 * u32::try_from(number).unwrap());
    }
    // They are not known anew by that.
    passes(24 * 3600).await;
    let refused = issuer.verify(&token, clock::now()).await;
    assert_eq!(refused, Err(Disbelief::Unavailable));
}

#[test]
fn an_issuer_of_the_public_web_takes_no_certificates_of_the_machine() {
    const NOTHING: &str = "/nowhere";
    if std::env::var("SSL_CERT_FILE").is_ok_and(|file| file == NOTHING) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let settings = "url=https://login.example.com,audience=claviger,prefix=corp:";
        Issuer::new(settings.parse().unwrap()).unwrap();
        return;
    }
    // The same once more, on a machine that has none, as the image.
    let itself = "oidc::an_issuer_of_the_public_web_takes_no_certificates_of_the_machine";
    let ran = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", itself])
        .env("SSL_CERT_FILE", NOTHING)
        .env("SSL_CERT_DIR", NOTHING)
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn only_the_named_host_is_called_and_only_with_its_ca() {
    let provider = Provider::start().await;
    let signer = Signer::new("one");
    provider.publish_keys(&[&signer]);
    let token = signer.sign(&provider.claims());
    let other = Provider::start().await;
    other.publish_keys(&[&signer]);
    // The keys are said to be with somebody else.
    let page = json!({"issuer": provider.url(), "jwks_uri": format!("{}/keys", other.url())});
    provider.publish("/.well-known/openid-configuration", page);
    let refused = provider.issuer().verify(&token, clock::now()).await;
    assert_eq!(refused, Err(Disbelief::Unavailable));
    assert_eq!(other.asked(), 0);
    // The install may say where they are.
    let named = provider.settings(&format!(",jwks={}/keys", provider.url()));
    let named = Issuer::new(named).unwrap();
    assert!(named.verify(&token, clock::now()).await.is_ok());
    // The document is another's.
    let page = json!({"issuer": other.url(), "jwks_uri": format!("{}/keys", provider.url())});
    provider.publish("/.well-known/openid-configuration", page);
    let refused = provider.issuer().verify(&token, clock::now()).await;
    assert_eq!(refused, Err(Disbelief::Unavailable));
    // A CA that is not the issuer's.
    let (url, ca) = (provider.url(), other.ca.path().display());
    let stranger = format!("url={url},audience=claviger,prefix=corp:,ca={ca},jwks={url}/keys");
    let asked = provider.asked();
    let stranger = Issuer::new(stranger.parse().unwrap()).unwrap();
    let refused = stranger.verify(&token, clock::now()).await;
    assert_eq!(refused, Err(Disbelief::Unavailable));
    assert_eq!(provider.asked(), asked);
}
