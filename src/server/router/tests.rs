//! The doors against an apiserver of our own, which answers as it is told and counts what it is
//! asked. Requests are those that the SDKs were seen to send.

use std::{collections::BTreeMap, io::Write, sync::Mutex, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, Method, header},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Parser;
use http_body_util::BodyExt as _;
use jiff::SignedDuration;
use kube::client::Body as KubeBody;
use serde_json::Value;
use tower::ServiceExt as _;

mod attacks;

use super::*;
use crate::{
    domain::access_token::{KeySet, Says},
    k8s::token_keys::Stored,
    key_pair::SigningPair,
    server::{
        authz,
        settings::{EXCHANGE, IdentityArgs, Place},
    },
};

const SYSTEM: &str = "claviger-system";
const AUTHORITY: &str = "https://claviger.claviger-system.svc";
const OWN: &str = "https://claviger-system.svc";

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    identity: IdentityArgs,
}

/// An apiserver that answers as it is told.
#[derive(Default)]
struct Apiserver {
    /// The UIDs of ServiceAccounts by `namespace/name`.
    accounts: Mutex<BTreeMap<String, String>>,
    /// Whose action is allowed: user and verb.
    rights: Mutex<Vec<(String, String)>>,
    down: Mutex<bool>,
    /// How long an answer takes.
    slow: Mutex<Duration>,
    /// Reviews of tokens now, and the most that there ever were at once.
    reviewing: Mutex<[usize; 2]>,
    asked: Mutex<Vec<(String, Value)>>,
}

impl Apiserver {
    fn asked(&self, what: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(path, _)| path.contains(what)).count()
    }

    fn answer(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.asked
            .lock()
            .unwrap()
            .push((path.to_owned(), body.clone()));
        if *self.down.lock().unwrap() {
            let status =
                json!({"kind": "Status", "status": "Failure", "code": 503, "message": "down"});
            return (StatusCode::SERVICE_UNAVAILABLE, status);
        }
        let accounts = self.accounts.lock().unwrap();
        if path.ends_with("/tokenreviews") {
            let token = body["spec"]["token"].as_str().unwrap();
            let payload = token.split('.').nth(1).unwrap();
            let payload: Value =
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
            let (user, uid) = (payload["sub"].as_str().unwrap(), &payload["uid"]);
            let name = user
                .strip_prefix("system:serviceaccount:")
                .map(|name| name.replace(':', "/"));
            let known = name.and_then(|name| accounts.get(&name).cloned());
            let good = token.split('.').nth(2) == Some("good")
                && (known.as_deref() == uid.as_str() || user == "kubernetes-admin");
            let status = if good {
                json!({"authenticated": true, "audiences": [EXCHANGE], "user": {"username": user, "uid": uid}})
            } else {
                json!({"authenticated": false, "error": "[invalid bearer token]"})
            };
            let review = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
                "spec": {}, "status": status,
            });
            return (StatusCode::CREATED, review);
        }
        if path.ends_with("/subjectaccessreviews") {
            let asked = (
                body["spec"]["user"].as_str().unwrap().to_owned(),
                body["spec"]["resourceAttributes"]["verb"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
            let allowed = self.rights.lock().unwrap().contains(&asked);
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "metadata": {}, "spec": {}, "status": {"allowed": allowed},
            });
            return (StatusCode::CREATED, review);
        }
        let parts: Vec<_> = path.split('/').collect();
        let name = format!("{}/{}", parts[4], parts[6]);
        match accounts.get(&name) {
            Some(uid) => (
                StatusCode::OK,
                json!({
                    "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                    "metadata": {"name": parts[6], "namespace": parts[4], "uid": uid},
                }),
            ),
            None => (
                StatusCode::NOT_FOUND,
                json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""}),
            ),
        }
    }

    fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: http::Request<KubeBody>| {
            let server = Arc::clone(&server);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let reviews = usize::from(path.ends_with("/tokenreviews"));
                let slow = *server.slow.lock().unwrap();
                {
                    let mut reviewing = server.reviewing.lock().unwrap();
                    reviewing[0] += reviews;
                    reviewing[1] = reviewing[1].max(reviewing[0]);
                }
                if !slow.is_zero() {
                    tokio::time::sleep(slow).await;
                }
                server.reviewing.lock().unwrap()[0] -= reviews;
                let (status, answer) = server.answer(&path, &body);
                let answer = http::Response::builder()
                    .status(status)
                    .header("content-type", "application/json")
                    .body(KubeBody::from(answer.to_string().into_bytes()))
                    .unwrap();
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
            }
        });
        Client::new(service, "default")
    }
}

/// What is written to it can be read.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Scene {
    apiserver: Arc<Apiserver>,
    router: Router,
    doors: Arc<Doors>,
    sight: watch::Sender<Sight>,
    page: Page,
    metrics: Arc<Metrics>,
}

impl Scene {
    fn set(args: &[&str]) -> Self {
        Self::set_at("claviger.claviger-system.svc", args)
    }

    fn set_at(server_name: &str, args: &[&str]) -> Self {
        let apiserver = Arc::new(Apiserver::default());
        apiserver.accounts.lock().unwrap().extend([
            ("shop/web".to_owned(), "u-1".to_owned()),
            (format!("{SYSTEM}/claviger"), "u-0".to_owned()),
        ]);
        let args = Line::parse_from([&["claviger"], args].concat()).identity;
        let place = Place {
            system_namespace: SYSTEM,
            server_name,
            cluster_domain: "cluster.local",
            domain: None,
        };
        let key = SigningPair::mint()
            .unwrap()
            .signs_from(clock::now() - SignedDuration::from_hours(1))
            .unwrap();
        let stored = Stored {
            version: "1".to_owned(),
            keys: KeySet::new(vec![key]),
        };
        let (sight, seen) = watch::channel(Sight::Present(Arc::new(stored)));
        let metrics = Arc::new(Metrics::default());
        let page = Page::default();
        let mut doors = Doors::new(
            Settings::new(&args, &place).unwrap(),
            None,
            apiserver.client(),
            seen,
            Arc::clone(&metrics),
        )
        .unwrap();
        doors.audit = Audit::to(page.clone(), Arc::clone(&metrics));
        let doors = Arc::new(doors);
        Self {
            apiserver,
            router: router(Arc::clone(&doors)),
            doors,
            sight,
            page,
            metrics,
        }
    }

    async fn send(&self, request: Request) -> (StatusCode, HeaderMap, Value) {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        (parts.status, parts.headers, body)
    }

    async fn get(&self, path: &str, bearer: &str) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::get(path);
        if !bearer.is_empty() {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        self.send(request.body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, form: &str) -> (StatusCode, HeaderMap, Value) {
        let request = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(form.to_owned()))
            .unwrap();
        self.send(request).await
    }

    /// An access token for the server's own doors.
    async fn access_token(&self, assertion: &str) -> String {
        let (status, _, body) = self
            .post("/adfs/oauth2/v2.0/token", &form(assertion, OWN))
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }

    /// The lines of the audit.
    async fn lines(&self) -> Vec<Value> {
        self.doors.audit.flush().await;
        let text = String::from_utf8(self.page.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// A token as Kubernetes projects it, with these claims changed.
fn account_token(changes: &Value) -> String {
    let now = clock::now().as_second();
    let mut claims = json!({
        "iss": "https://kubernetes.default.svc", "aud": [EXCHANGE], "exp": now + 3600,
        "sub": "system:serviceaccount:shop:web", "uid": "u-1",
    });
    json_patch::merge(&mut claims, changes);
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.good",
        encode(json!({"alg": "RS256", "kid": "k"})),
        encode(claims)
    )
}

fn web() -> String {
    account_token(&json!({}))
}

/// What the Python SDK posts.
fn form(assertion: &str, resource: &str) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("client_assertion", assertion)
        .append_pair(
            "client_assertion_type",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        )
        .append_pair("client_id", "shop/web")
        .append_pair("grant_type", "client_credentials")
        .append_pair("scope", &format!("{resource}/.default"))
        .append_pair(
            "claims",
            r#"{"access_token": {"xms_cc": {"values": ["CP1"]}}}"#,
        )
        .finish()
}

const VAULT: &str = "https://vault.azure.net";

#[tokio::test]
async fn a_service_account_token_becomes_an_access_token_for_what_was_asked() {
    let scene = Scene::set(&[]);
    // The file's text comes as it is, with its line end.
    let assertion = format!("{}\n", web());
    for (path, resource, audience) in [
        ("/adfs/oauth2/v2.0/token", VAULT, VAULT),
        (
            "/adfs/oauth2/v2.0/token?client-request-id=3997b51e-11b8-4e02-bfa6-9cd456af8d76",
            "https://shop.svc",
            "https://shop.svc",
        ),
        (
            "/adfs/oauth2/token",
            "https://shop.svc/",
            "https://shop.svc",
        ),
    ] {
        let (status, headers, body) = scene.post(path, &form(&assertion, resource)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(
            headers[header::CONTENT_TYPE],
            "application/json; charset=utf-8"
        );
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(body["token_type"], "Bearer");
        let lives = body["expires_in"]
            .as_i64()
            .expect("an integer: Rust takes no string");
        assert!((3590..=3600).contains(&lives));
        assert_eq!(body["ext_expires_in"], lives);
        let token = body["access_token"].as_str().unwrap();
        let keys = scene.doors.keys.borrow().clone();
        let issuer = format!("{AUTHORITY}/adfs");
        let claims = keys
            .keys()
            .unwrap()
            .verify(token, &issuer, |aud| aud == audience, clock::now())
            .unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:shop:web");
        assert_eq!([&claims.oid, &claims.appid, &claims.azp], ["u-1"; 3]);
        assert_eq!(claims.tid, "adfs");
    }
    assert_eq!(
        scene.apiserver.asked("tokenreviews"),
        1,
        "the answer is kept"
    );
    let (_, review) = scene.apiserver.asked.lock().unwrap()[0].clone();
    assert_eq!(review["spec"]["audiences"], json!([EXCHANGE, AUTHORITY]));
}

#[tokio::test]
async fn the_forms_of_all_five_languages_are_read() {
    let scene = Scene::set(&[]);
    let assertion = web();
    let kind =
        "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
    let node = format!(
        "client_id=shop%2Fweb&scope=https%3A%2F%2Fvault.azure.net%2F.default&grant_type=client_credentials&x-client-SKU=msal.js.node&x-client-VER=5.6.0&x-client-OS=linux&x-client-CPU=x64&x-ms-lib-capability=retry-after%2C%20h429&x-client-current-telemetry=5%7C771%2C2%2C%2C%2C%7C%2C&x-client-last-telemetry=5%7C0%7C%7C%7C0%2C0&client-request-id=3997b51e-11b8-4e02-bfa6-9cd456af8d76&client_assertion={assertion}&{kind}&claims=%7B%7D"
    );
    let go = format!(
        "client_assertion={assertion}&{kind}&client_id=u-1&client_info=1&grant_type=client_credentials&scope=https%3A%2F%2Fshop.svc%2F.default+openid+offline_access+profile"
    );
    let java = format!(
        "scope=openid+https%3A%2F%2Fwebpubsub.azure.com%2F.default+profile+offline_access&grant_type=client_credentials&client_id=shop%2Fweb&client_info=1&{kind}&client_assertion={assertion}"
    );
    let rust = format!(
        "grant_type=client_credentials&scope=https%3A%2F%2Fvault.azure.net%2F.default&client_id=system%3Aserviceaccount%3Ashop%3Aweb&{kind}&client_assertion={assertion}"
    );
    let python = form(&assertion, VAULT);
    for (kind, form) in [
        ("application/x-www-form-urlencoded;charset=utf-8", node),
        ("application/x-www-form-urlencoded; charset=utf-8", go),
        ("application/x-www-form-urlencoded; charset=UTF-8", java),
        ("application/x-www-form-urlencoded", rust),
        ("application/x-www-form-urlencoded", python),
    ] {
        let request = Request::post("/adfs/oauth2/v2.0/token")
            .header("content-type", kind)
            .body(Body::from(form))
            .unwrap();
        let (status, _, body) = scene.send(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
}

/// Posts a form that is refused; answers the words for people and machines.
async fn refused(scene: &Scene, form: &str) -> (u16, String, String) {
    let (status, headers, body) = scene.post("/adfs/oauth2/v2.0/token", form).await;
    assert_eq!(
        headers[header::CONTENT_TYPE],
        "application/json; charset=utf-8"
    );
    let members: Vec<_> = body
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        members,
        [
            "correlation_id",
            "error",
            "error_codes",
            "error_description",
            "timestamp",
            "trace_id"
        ]
    );
    let words = body["error_description"].as_str().unwrap().to_owned();
    let number = body["error_codes"][0].as_u64().unwrap();
    assert!(words.starts_with(&format!("AADSTS{number}: ")), "{words}");
    let text = body["error_description"].to_string();
    assert_eq!(text, format!("\"{words}\""), "nothing needs escaping");
    assert_eq!(
        body["trace_id"],
        headers["x-ms-request-id"].to_str().unwrap()
    );
    (
        status.as_u16(),
        body["error"].as_str().unwrap().to_owned(),
        words,
    )
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let scene = Scene::set(&[]);
    let now = clock::now().as_second();
    let good = form(&web(), VAULT);
    let with = |changes: Value| form(&account_token(&changes), VAULT);
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let system = json!({"sub": "system:serviceaccount:claviger-system:claviger", "uid": "u-0"});
    let secret = "grant_type=client_credentials&client_id=a&client_secret=s3cr3t&scope=https%3A%2F%2Fvault.azure.net%2F.default";
    let cases: Vec<(String, u16, &str, &str)> = vec![
        (
            with(json!({"exp": now - 1})),
            401,
            "invalid_client",
            "has expired",
        ),
        (
            with(json!({"aud": ["https://kubernetes.default.svc"]})),
            401,
            "invalid_client",
            "for the audience api://AzureADTokenExchange or https://claviger",
        ),
        (
            with(json!({"aud": null})),
            401,
            "invalid_client",
            "another audience",
        ),
        (
            with(json!({"uid": "u-2"})),
            401,
            "invalid_client",
            "is deleted",
        ),
        (
            with(json!({"sub": "system:serviceaccount:shop:gone"})),
            401,
            "invalid_client",
            "is deleted",
        ),
        (
            with(json!({"sub": "kubernetes-admin", "uid": "x"})),
            401,
            "invalid_client",
            "not that of a ServiceAccount",
        ),
        (with(system), 401, "invalid_client", "of another namespace"),
        (
            form("no token", VAULT),
            401,
            "invalid_client",
            "AZURE_FEDERATED_TOKEN_FILE",
        ),
        (
            secret.to_owned(),
            401,
            "invalid_client",
            "no client secrets",
        ),
        (
            replaced("shop%2Fweb", "other"),
            401,
            "invalid_client",
            "set AZURE_CLIENT_ID to shop/web",
        ),
        (
            replaced("jwt-bearer", "saml2-bearer"),
            401,
            "invalid_client",
            "client_assertion_type",
        ),
        (
            replaced("grant_type=client_credentials", "grant_type=refresh_token"),
            400,
            "unsupported_grant_type",
            "client_credentials",
        ),
        (
            replaced("grant_type=client_credentials&", ""),
            400,
            "invalid_request",
            "grant_type is missing",
        ),
        (
            form(&web(), "https://management.azure.com"),
            400,
            "invalid_scope",
            "--token-resource",
        ),
        (
            replaced("%2F.default", ""),
            400,
            "invalid_scope",
            "/.default",
        ),
        (
            replaced("%2F.default", "%2F.default+https%3A%2F%2Fsvc%2F.default"),
            400,
            "invalid_scope",
            "one resource",
        ),
        (format!("{good}&scope=x"), 400, "invalid_request", "once"),
        ("a=&".repeat(10) + &good, 400, "invalid_request", "once"),
        (
            String::new(),
            400,
            "invalid_request",
            "grant_type is missing",
        ),
    ];
    for (form, status, error, words) in cases {
        let told = refused(&scene, &form).await;
        assert_eq!((told.0, told.1.as_str()), (status, error), "{}", told.2);
        assert!(told.2.contains(words), "{} lacks {words}", told.2);
    }
    // An access token is no assertion: tokens would beget tokens for ever.
    let access = scene.access_token(&web()).await;
    let told = refused(&scene, &form(&access, VAULT)).await;
    assert!(
        told.2.contains("present the ServiceAccount token"),
        "{}",
        told.2
    );

    let (status, _, body) = scene.post("/contoso/oauth2/v2.0/token", &good).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        body["error_description"]
            .as_str()
            .unwrap()
            .contains("set AZURE_TENANT_ID to adfs")
    );
    let (status, _, body) = scene
        .post("/adfs/oauth2/v2.0/token", &"a".repeat(LONGEST_FORM + 1))
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(body["error"], "invalid_request");
    let request = Request::post("/adfs/oauth2/v2.0/token")
        .header("content-type", "application/json")
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(scene.send(request).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_client_id_may_be_left_out() {
    let scene = Scene::set(&[]);
    let form = form(&web(), VAULT).replace("client_id=shop%2Fweb&", "");
    assert!(!form.contains("client_id"));
    assert_eq!(
        scene.post("/adfs/oauth2/v2.0/token", &form).await.0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn the_documents_are_what_clients_read() {
    let scene = Scene::set_at("login.mock.test", &[]);
    for path in [
        "/adfs/.well-known/openid-configuration",
        "/adfs/.well-known/openid-configuration?",
        "/adfs/v2.0/.well-known/openid-configuration",
    ] {
        let (status, headers, body) = scene.get(path, "").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            headers[header::CONTENT_TYPE],
            "application/json; charset=utf-8"
        );
        assert_eq!(headers[header::CACHE_CONTROL], "public, max-age=3600");
        let base = "https://login.mock.test/adfs";
        assert_eq!(body["issuer"], base);
        assert_eq!(body["token_endpoint"], format!("{base}/oauth2/v2.0/token"));
        assert_eq!(
            body["authorization_endpoint"],
            format!("{base}/oauth2/v2.0/authorize")
        );
        let address = body["jwks_uri"].as_str().unwrap();
        let keys = scene
            .get(address.strip_prefix("https://login.mock.test").unwrap(), "")
            .await
            .2;
        assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
        assert_eq!(keys, scene.get("/adfs/discovery/keys", "").await.2);
    }
    for path in [
        "/other/.well-known/openid-configuration",
        "/other/discovery/v2.0/keys",
    ] {
        let (status, _, body) = scene.get(path, "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(body["error_description"].as_str().unwrap().contains("adfs"));
    }
    scene.sight.send_replace(Sight::Absent);
    let (status, headers, _) = scene.get("/adfs/discovery/v2.0/keys", "").await;
    assert_eq!(
        (status, &headers[header::RETRY_AFTER]),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            &HeaderValue::from_static("1")
        )
    );
    let told = refused(&scene, &form(&web(), VAULT)).await;
    assert_eq!((told.0, told.1.as_str()), (503, "temporarily_unavailable"));
}

#[tokio::test]
async fn nobody_gets_past_the_challenge_without_proof_unless_the_table_says_why() {
    let scene = Scene::set(&[]);
    let mut open = 0;
    for route in routes() {
        let path = route.path.replace("{tenant}", "adfs");
        match route.access {
            Access::Anybody { reason } => {
                assert!(reason.len() > 20);
                open += 1;
            }
            Access::Caller => {
                for method in [Method::GET, Method::POST, Method::HEAD, Method::OPTIONS] {
                    let request = Request::builder()
                        .method(method)
                        .uri(&path)
                        .body(Body::empty());
                    assert_eq!(
                        scene.send(request.unwrap()).await.0,
                        StatusCode::UNAUTHORIZED,
                        "{path}"
                    );
                }
            }
        }
    }
    assert_eq!(open, 6);
    for path in [
        "/",
        "/secrets/a",
        "/adfs",
        "/claviger/v1/",
        "/%2e%2e/x",
        "//adfs/discovery/keys",
    ] {
        let (status, headers, body) = scene.get(path, "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(
            headers[header::WWW_AUTHENTICATE],
            format!("Bearer authorization=\"{AUTHORITY}/adfs\", resource=\"{OWN}\"")
        );
        assert_eq!(headers["x-ms-error-code"], "Unauthorized");
        assert_eq!(body["error"]["code"], "Unauthorized");
        assert_eq!(
            scene.get(path, &web()).await.0,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_path_that_is_no_text_is_refused_in_the_words_of_its_door() {
    let scene = Scene::set(&[]);
    let access = "/claviger/v1/access/shop/secretvaults/%ffS3CR3T/secrets/get";
    assert_eq!(scene.get(access, "").await.0, StatusCode::UNAUTHORIZED);
    let (status, headers, body) = scene.get(access, &web()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(headers["x-ms-error-code"], "BadParameter");
    assert_eq!(body["error"]["code"], "BadParameter");
    assert!(!body.to_string().contains("S3CR3T"));
    let token = "/%ffS3CR3T/oauth2/v2.0/token";
    let (status, _, body) = scene.post(token, &form(&web(), VAULT)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"], "invalid_request");
    assert!(!body.to_string().contains("S3CR3T"));
    let (status, _, body) = scene.get("/%ff/discovery/keys", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"]["code"], "BadParameter");
    for line in &scene.lines().await[1..] {
        assert_eq!(line["reason"], "malformed");
    }
}

#[tokio::test]
async fn both_kinds_of_tokens_prove_the_same_caller() {
    let scene = Scene::set(&[]);
    let access = scene.access_token(&web()).await;
    let (status, _, by_access) = scene.get("/claviger/v1/whoami", &access).await;
    assert_eq!(status, StatusCode::OK);
    let (_, _, by_account) = scene.get("/claviger/v1/whoami", &web()).await;
    assert_eq!(by_access, by_account);
    assert_eq!(by_access["user"], "system:serviceaccount:shop:web");
    assert_eq!(by_access["uid"], "u-1");

    // For something else.
    let (_, _, body) = scene
        .post("/adfs/oauth2/v2.0/token", &form(&web(), VAULT))
        .await;
    let elsewhere = body["access_token"].as_str().unwrap();
    let (status, _, body) = scene.get("/claviger/v1/whoami", elsewhere).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("another resource")
    );

    // Keys that are gone are not believed: deleting the Secret revokes every token.
    scene.sight.send_replace(Sight::Present(Arc::new(Stored {
        version: "2".to_owned(),
        keys: KeySet::new(vec![
            SigningPair::mint()
                .unwrap()
                .signs_from(clock::now())
                .unwrap(),
        ]),
    })));
    assert_eq!(
        scene.get("/claviger/v1/whoami", &access).await.0,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_token_of_one_that_was_made_anew_since_is_not_its_successors() {
    let scene = Scene::set(&[]);
    let access = scene.access_token(&web()).await;
    let anew = ("shop/web".to_owned(), "u-9".to_owned());
    scene.apiserver.accounts.lock().unwrap().extend([anew]);
    let (status, _, body) = scene.get("/claviger/v1/whoami", &access).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("made anew")
    );
}

const ACCESS: &str = "/claviger/v1/access/shop/secretvaults/payments/secrets/get";

#[tokio::test]
async fn the_apiserver_decides_and_is_asked_once() {
    let scene = Scene::set(&[]);
    let (status, _, body) = scene.get(ACCESS, &web()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("RoleAssignment")
    );
    let (user, verb) = (
        "system:serviceaccount:shop:web".to_owned(),
        "get".to_owned(),
    );
    scene.apiserver.rights.lock().unwrap().push((user, verb));
    // A no is kept, briefly; an event that tells of rights ends it.
    assert_eq!(scene.get(ACCESS, &web()).await.0, StatusCode::FORBIDDEN);
    scene.doors.authz.invalidate(None);
    assert_eq!(scene.get(ACCESS, &web()).await.0, StatusCode::OK);
    assert_eq!(scene.apiserver.asked("subjectaccessreviews"), 2);
    let asked = scene.apiserver.asked.lock().unwrap().clone();
    let (_, review) = asked
        .iter()
        .find(|(path, _)| path.contains("subject"))
        .unwrap();
    assert_eq!(
        review["spec"],
        json!({
            "user": "system:serviceaccount:shop:web", "uid": "u-1",
            "groups": ["system:authenticated", "system:serviceaccounts", "system:serviceaccounts:shop"],
            "resourceAttributes": {
                "group": "claviger.dev", "version": "*", "resource": "secretvaults", "subresource": "secrets",
                "verb": "get", "namespace": "shop", "name": "payments",
            },
        })
    );
    for path in [
        "/claviger/v1/access/Shop/secretvaults/payments/secrets/get",
        "/claviger/v1/access/shop/secretvaults/payments/secrets/%2A",
    ] {
        assert_eq!(scene.get(path, &web()).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn without_an_apiserver_what_was_decided_holds_to_its_time_and_then_nothing_goes() {
    let scene = Scene::set(&[]);
    let (user, verb) = (
        "system:serviceaccount:shop:web".to_owned(),
        "get".to_owned(),
    );
    scene.apiserver.rights.lock().unwrap().push((user, verb));
    let access = scene.access_token(&web()).await;
    assert_eq!(scene.get(ACCESS, &access).await.0, StatusCode::OK);
    *scene.apiserver.down.lock().unwrap() = true;
    assert_eq!(scene.get(ACCESS, &access).await.0, StatusCode::OK);
    let other = ACCESS.replace("payments", "other");
    let (status, headers, _) = scene.get(&other, &access).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(headers[header::RETRY_AFTER], "1");
    // Time passes.
    tokio::time::pause();
    tokio::time::advance(authz::YES).await;
    assert_eq!(
        scene.get(ACCESS, &access).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let told = refused(&scene, &form(&account_token(&json!({"jti": "x"})), VAULT)).await;
    assert_eq!((told.0, told.1.as_str()), (503, "temporarily_unavailable"));
    *scene.apiserver.down.lock().unwrap() = false;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(scene.get(ACCESS, &access).await.0, StatusCode::OK);
}

#[tokio::test]
async fn every_access_leaves_one_line() {
    let scene = Scene::set(&[]);
    let access = scene.access_token(&web()).await;
    let (_, headers, _) = scene.get(ACCESS, &access).await;
    scene.get("/nothing", "").await;
    scene.get("/adfs/discovery/keys", "").await;
    let lines = scene.lines().await;
    assert_eq!(lines.len(), 4);
    let issued = &lines[0];
    assert_eq!(issued["door"], "token");
    assert_eq!(issued["outcome"], "allowed");
    assert_eq!(issued["status"], 200);
    assert_eq!(
        issued["caller"],
        json!({"user": "system:serviceaccount:shop:web", "uid": "u-1"})
    );
    assert_eq!(issued["token"]["resource"], OWN);
    let jti = Says::of(&access).is_some().then(|| {
        let payload = URL_SAFE_NO_PAD
            .decode(access.split('.').nth(1).unwrap())
            .unwrap();
        serde_json::from_slice::<Value>(&payload).unwrap()["jti"].clone()
    });
    assert_eq!(issued["token"]["id"], jti.unwrap());
    let denied = &lines[1];
    assert_eq!(denied["outcome"], "forbidden");
    assert_eq!(
        denied["requestId"],
        headers["x-ms-request-id"].to_str().unwrap()
    );
    assert_eq!(
        denied["object"],
        json!({"verb": "get", "resource": "secretvaults", "subresource": "secrets", "namespace": "shop", "name": "payments"})
    );
    assert_eq!(lines[2]["outcome"], "unauthenticated");
    assert_eq!(lines[2]["reason"], "no_token");
    assert_eq!(lines[3]["door"], "keys");
    let figures = scene.metrics.render();
    for figure in [
        "claviger_accesses_total{door=\"token\",outcome=\"allowed\"} 1",
        "claviger_accesses_total{door=\"access\",outcome=\"forbidden\"} 1",
        "claviger_accesses_total{door=\"none\",outcome=\"unauthenticated\"} 1",
        "claviger_audit_failures_total 0",
    ] {
        assert!(figures.contains(figure), "{figures}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_is_noted() {
    let scene = Scene::set(&[]);
    let body = Body::from_stream(futures::stream::pending::<
        Result<axum::body::Bytes, std::io::Error>,
    >());
    let request = Request::post("/adfs/oauth2/v2.0/token")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body)
        .unwrap();
    let sending = scene.router.clone().oneshot(request);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), sending)
            .await
            .is_err()
    );
    let lines = scene.lines().await;
    assert_eq!(lines[0]["outcome"], "abandoned");
}

/// Something secret at every place where a request has room for it.
#[tokio::test]
async fn nothing_that_a_caller_sends_gets_into_the_audit_as_it_is() {
    const SECRET: &str = "S3CR3T-do_not-tell";
    let scene = Scene::set(&[]);
    let tainted_token = account_token(&json!({"secret": SECRET}));
    let access = scene.access_token(&web()).await;
    let mut requests = Vec::new();
    let bearers = ["", SECRET, tainted_token.as_str(), access.as_str()];
    let paths = [
        "/claviger/v1/whoami".to_owned(),
        ACCESS.to_owned(),
        format!("/{SECRET}"),
        format!("/{SECRET}/oauth2/v2.0/token"),
        format!("/{SECRET}/.well-known/openid-configuration"),
        format!("/{SECRET}/v2.0/.well-known/openid-configuration"),
        format!("/{SECRET}/discovery/keys"),
        format!("/claviger/v1/access/{SECRET}/secretvaults/payments/secrets/get"),
        format!("/claviger/v1/access/shop/{SECRET}/payments/secrets/get"),
        format!("/claviger/v1/access/shop/secretvaults/{SECRET}/secrets/get"),
        format!("/claviger/v1/access/shop/secretvaults/payments/{SECRET}/get"),
        format!("/claviger/v1/access/shop/secretvaults/payments/secrets/{SECRET}"),
    ];
    let names = [
        "accept",
        "client-request-id",
        "content-type",
        "cookie",
        "forwarded",
        "host",
        "origin",
        "referer",
        "traceparent",
        "user-agent",
        "x-client-sku",
        "x-forwarded-for",
        "x-functions-key",
        "x-identity-header",
        "x-ms-client-request-id",
        "x-request-id",
    ];
    for path in &paths {
        for bearer in bearers {
            for method in [Method::GET, Method::POST, Method::PUT] {
                let mut request = Request::builder()
                    .method(method)
                    .uri(format!("{path}?code={SECRET}&{SECRET}=1"));
                for name in names {
                    request = request.header(name, SECRET);
                }
                if !bearer.is_empty() {
                    request = request.header("authorization", format!("Bearer {bearer}"));
                }
                requests.push(request.body(Body::from(SECRET)).unwrap());
            }
        }
    }
    let good = form(&tainted_token, VAULT);
    let fields: Vec<(String, String)> = form_urlencoded::parse(good.as_bytes())
        .into_owned()
        .collect();
    let more = [
        "client_secret",
        "username",
        "password",
        "refresh_token",
        "code",
        "assertion",
        SECRET,
    ];
    for number in 0..fields.len() + more.len() {
        let mut fields = fields.clone();
        match more.get(number.wrapping_sub(fields.len())) {
            Some(name) => fields.push(((*name).to_owned(), SECRET.to_owned())),
            None => fields[number].1 = SECRET.to_owned(),
        }
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        let request = Request::post(format!("/adfs/oauth2/v2.0/token?{SECRET}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", format!("Basic {SECRET}"));
        requests.push(request.body(Body::from(body)).unwrap());
    }
    let count = requests.len() + 1;
    for request in requests {
        scene.send(request).await;
    }
    let lines = scene.lines().await;
    assert_eq!(lines.len(), count);
    let encoded = URL_SAFE_NO_PAD.encode(SECRET);
    for line in lines {
        let text = line.to_string();
        for shape in [
            SECRET,
            &SECRET.to_lowercase(),
            &encoded,
            &tainted_token,
            &access,
        ] {
            assert!(!text.contains(shape), "{text}");
        }
        let members: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
        let known = [
            "caller",
            "door",
            "milliseconds",
            "object",
            "outcome",
            "reason",
            "requestId",
            "source",
            "status",
            "time",
            "token",
        ];
        assert!(
            members
                .iter()
                .all(|member| known.contains(&member.as_str())),
            "{text}"
        );
    }
}
