//! The front door against a real apiserver: real ServiceAccounts with tokens such as pods have, the
//! server under its own ServiceAccount and the chart's rights, the signing keys kept by a real
//! controller. The doors stand on a plain loopback port: what is told here is not about TLS.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Parser;
use claviger::{
    controllers::watch::Progress,
    metrics::Metrics,
    server::{
        router::{Doors, router},
        settings::{EXCHANGE, IdentityArgs, Place, Settings},
    },
    token_keys,
};
use k8s_openapi::api::{
    authentication::v1::{
        BoundObjectReference, TokenRequest, TokenRequestSpec, TokenReview, TokenReviewSpec,
    },
    core::v1::{Pod, Secret, ServiceAccount},
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Operator, Options, Space, actors::Actor, control_plane::SYSTEM, eventually, space::PATIENCE,
};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    identity: IdentityArgs,
}

/// One replica of the server.
struct Replica {
    address: SocketAddr,
    doors: Arc<Doors>,
    audit: tempfile::NamedTempFile,
}

impl Replica {
    /// Starts a replica under the chart's ServiceAccount of the server.
    async fn start(space: &Space) -> Self {
        let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), SYSTEM);
        match accounts
            .create(&PostParams::default(), &account("claviger-server"))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => panic!("{error}"),
        }
        permit_keys(space).await;
        let client = Actor::account(&space.cluster, SYSTEM, "claviger-server")
            .await
            .client;
        let audit = tempfile::NamedTempFile::new_in(space.cluster.directory.path()).unwrap();
        let file = audit.path().to_str().unwrap();
        let args = Line::parse_from(["claviger", "--audit-file", file]).identity;
        let progress = Progress::default();
        let keys = token_keys::watch(client.clone(), SYSTEM.to_owned(), &progress);
        tokio::time::timeout(PATIENCE, progress.filled())
            .await
            .expect("the server may watch the signing keys");
        let place = Place {
            system_namespace: SYSTEM,
            server_name: "claviger.claviger-system.svc",
            cluster_domain: "cluster.local",
            domain: None,
        };
        let doors = Doors::new(
            Settings::new(&args, &place).unwrap(),
            Some(audit.path()),
            client,
            keys,
            Arc::new(Metrics::default()),
        )
        .unwrap();
        let doors = Arc::new(doors);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service =
            router(Arc::clone(&doors)).into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        let replica = Self {
            address,
            doors,
            audit,
        };
        eventually("signing keys", PATIENCE, async || {
            let (status, body) = replica.get("/adfs/discovery/v2.0/keys", "").await;
            if status == 200 {
                Ok(())
            } else {
                Err(body.to_string())
            }
        })
        .await;
        replica
    }

    async fn send(&self, head: &str, body: &str) -> (u16, Value) {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}Host: claviger\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    async fn get(&self, path: &str, bearer: &str) -> (u16, Value) {
        let head = match bearer {
            "" => format!("GET {path} HTTP/1.1\r\n"),
            bearer => format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {bearer}\r\n"),
        };
        self.send(&head, "").await
    }

    /// Asks for an access token as the SDKs do.
    async fn exchange(&self, tenant: &str, assertion: &str, resource: &str) -> (u16, Value) {
        let kind = "urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
        let form = format!(
            "grant_type=client_credentials&client_assertion={assertion}&client_assertion_type={kind}&scope={resource}%2F.default"
        );
        let head = format!(
            "POST /{tenant}/oauth2/v2.0/token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        );
        self.send(&head, &form).await
    }

    /// The access token that a ServiceAccount gets for the server's own doors.
    async fn access_token(&self, assertion: &str) -> String {
        let (status, body) = self.exchange("adfs", assertion, OWN).await;
        assert_eq!(status, 200, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }

    /// Why a ServiceAccount gets none.
    async fn refusal(&self, assertion: &str) -> String {
        let (status, body) = self.exchange("adfs", assertion, OWN).await;
        assert_eq!(status, 401, "{body}");
        assert_eq!(body["error"], "invalid_client");
        body["error_description"].as_str().unwrap().to_owned()
    }

    async fn lines(&self) -> Vec<Value> {
        self.doors.audit.flush().await;
        let text = std::fs::read_to_string(self.audit.path()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Lets the server watch the signing keys.
async fn permit_keys(space: &Space) {
    let name = "test-server-token-keys";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": name, "namespace": SYSTEM},
        "rules": [{
            "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["claviger-token-keys"],
            "verbs": ["list", "watch"],
        }],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": SYSTEM},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "claviger-server", "namespace": SYSTEM}],
    });
    for object in [role, binding] {
        let apply = ["apply", "--server-side", "-f", "-"];
        space
            .cluster
            .kubectl(&apply, &object.to_string())
            .await
            .unwrap();
    }
}

const OWN: &str = "https://claviger-system.svc";
const SERVER: &str = "https://claviger.claviger-system.svc";

fn account(name: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    }
}

fn accounts(space: &Space) -> Api<ServiceAccount> {
    Api::namespaced(space.client.clone(), &space.name)
}

async fn make(space: &Space, name: &str) -> ServiceAccount {
    accounts(space)
        .create(&PostParams::default(), &account(name))
        .await
        .unwrap()
}

/// A token for these audiences, bound to a pod if one is given.
async fn token(
    space: &Space,
    namespace: &str,
    name: &str,
    audience: &str,
    pod: Option<&Pod>,
) -> String {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: Some(3600),
            bound_object_ref: pod.map(|pod| BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            }),
        },
        ..TokenRequest::default()
    };
    Api::<ServiceAccount>::namespaced(space.client.clone(), namespace)
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token
}

async fn pod(space: &Space, name: &str, account: &str) -> Pod {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "serviceAccountName": account, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "none"}],
        },
    });
    Api::<Pod>::namespaced(space.client.clone(), &space.name)
        .create(
            &PostParams::default(),
            &serde_json::from_value(pod).unwrap(),
        )
        .await
        .unwrap()
}

/// Waits until the apiserver itself has noticed: it keeps its word on a token for ten seconds.
async fn refused_by_apiserver(space: &Space, token: &str) {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            // Its cache goes by the audiences, too: ask as the server does.
            audiences: Some(vec![EXCHANGE.to_owned(), SERVER.to_owned()]),
        },
        ..TokenReview::default()
    };
    let reviews = Api::<TokenReview>::all(space.client.clone());
    eventually("the apiserver to refuse a token", PATIENCE, async || {
        let answer = reviews.create(&PostParams::default(), &review).await;
        match answer.unwrap().status.unwrap().authenticated {
            Some(true) => Err("it does not".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

fn at_once() -> DeleteParams {
    DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_proves_who_it_is_and_whoever_cannot_is_told_what_to_do() {
    let space = Space::new("identity").await;
    let operator = Operator::start(&space, Options::default()).await;
    let replica = Replica::start(&space).await;
    let web = make(&space, "web").await;
    let web_pod = pod(&space, "web-1", "web").await;
    let assertion = token(&space, &space.name, "web", EXCHANGE, Some(&web_pod)).await;

    // By its own token and by the access token it is the same caller, pod and all.
    let access = replica.access_token(&assertion).await;
    let (status, by_access) = replica.get("/claviger/v1/whoami", &access).await;
    assert_eq!(status, 200, "{by_access}");
    let (status, by_account) = replica.get("/claviger/v1/whoami", &assertion).await;
    assert_eq!((status, &by_account), (200, &by_access));
    let user = format!("system:serviceaccount:{}:web", space.name);
    assert_eq!(by_access["user"], user);
    assert_eq!(by_access["uid"], web.uid().unwrap());
    assert_eq!(
        by_access["extra"]["authentication.kubernetes.io/pod-uid"][0],
        web_pod.uid().unwrap()
    );

    // For somebody else.
    let elsewhere = token(&space, &space.name, "web", "https://other", None).await;
    let words = replica.refusal(&elsewhere).await;
    assert!(
        words.contains("projected for the audience api://AzureADTokenExchange"),
        "{words}"
    );
    let both = token(&space, &space.name, "web", SERVER, None).await;
    replica.access_token(&both).await;
    // Changed on the way.
    let mut parts: Vec<_> = assertion.split('.').map(str::to_owned).collect();
    let mut payload: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&parts[1]).unwrap()).unwrap();
    payload["kubernetes.io"]["serviceaccount"]["name"] = json!("admin");
    parts[1] = URL_SAFE_NO_PAD.encode(payload.to_string());
    let words = replica.refusal(&parts.join(".")).await;
    assert!(words.contains("apiserver does not accept"), "{words}");
    // Claviger itself.
    let own = token(&space, SYSTEM, "claviger", EXCHANGE, None).await;
    let words = replica.refusal(&own).await;
    assert!(words.contains("namespace that Claviger runs in"), "{words}");
    let (status, _) = replica.get("/claviger/v1/whoami", &own).await;
    assert_eq!(status, 401);
    // Another tenant.
    let (status, body) = replica.exchange("contoso", &assertion, OWN).await;
    assert_eq!(status, 400);
    let words = body["error_description"].as_str().unwrap();
    assert!(words.contains("set AZURE_TENANT_ID to adfs"), "{words}");
    // An access token for an access token.
    let words = replica.refusal(&access).await;
    assert!(words.contains("cannot be exchanged"), "{words}");

    // Its pod is deleted. What was asked before is kept for a minute, so another replica is asked.
    let other = Replica::start(&space).await;
    let pods = Api::<Pod>::namespaced(space.client.clone(), &space.name);
    pods.delete("web-1", &at_once()).await.unwrap();
    refused_by_apiserver(&space, &assertion).await;
    let words = other.refusal(&assertion).await;
    assert!(
        words.contains("the pod that it was made for is deleted"),
        "{words}"
    );
    assert!(words.contains("start the pod anew"), "{words}");
    // The ServiceAccount is deleted, and made anew under its name.
    let plain = token(&space, &space.name, "web", EXCHANGE, None).await;
    accounts(&space)
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    refused_by_apiserver(&space, &plain).await;
    let words = other.refusal(&plain).await;
    assert!(words.contains("is deleted"), "{words}");
    make(&space, "web").await;
    let (status, body) = other.get("/claviger/v1/whoami", &access).await;
    assert_eq!(status, 401);
    let words = body["error"]["message"].as_str().unwrap();
    assert!(words.contains("made anew since"), "{words}");

    let lines = replica.lines().await;
    let line = lines.iter().find(|line| line["door"] == "token").unwrap();
    assert_eq!(line["caller"]["user"], user);
    assert_eq!(line["caller"]["pod"], "web-1");
    assert_eq!(line["source"], "127.0.0.1");
    let audit = std::fs::read_to_string(replica.audit.path()).unwrap();
    for secret in [&assertion, &access, &elsewhere, &plain] {
        assert!(!audit.contains(secret.as_str()));
        assert!(!operator.logged().contains(secret.as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_own_rules_decide_and_a_right_taken_away_is_soon_gone() {
    let space = Space::new("review").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let replica = Replica::start(&space).await;
    make(&space, "web").await;
    let assertion = token(&space, &space.name, "web", EXCHANGE, None).await;
    let access = replica.access_token(&assertion).await;
    let door = |name: &str, verb: &str| {
        let namespace = &space.name;
        format!("/claviger/v1/access/{namespace}/secretvaults/{name}/secrets/{verb}")
    };
    let may = async |name: &str, verb: &str| replica.get(&door(name, verb), &access).await.0 == 200;
    let can_i = async |name: &str, verb: &str| {
        let user = format!("--as=system:serviceaccount:{}:web", space.name);
        let target = format!("secretvaults.claviger.dev/{name}");
        let args = [
            "auth",
            "can-i",
            verb,
            &target,
            "--subresource=secrets",
            "-n",
            &space.name,
            &user,
        ];
        space
            .cluster
            .kubectl(&args, "")
            .await
            .is_ok_and(|answer| answer.trim() == "yes")
    };
    assert!(!may("payments", "get").await);

    let role = json!({
        "metadata": {"name": "reader"},
        "rules": [{
            "apiGroups": ["claviger.dev"], "resources": ["secretvaults/secrets"],
            "resourceNames": ["payments"], "verbs": ["get", "list"],
        }],
    });
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": space.name}],
    });
    let bindings = Api::<RoleBinding>::namespaced(space.client.clone(), &space.name);
    Api::<Role>::namespaced(space.client.clone(), &space.name)
        .create(
            &PostParams::default(),
            &serde_json::from_value(role).unwrap(),
        )
        .await
        .unwrap();
    bindings
        .create(
            &PostParams::default(),
            &serde_json::from_value(binding).unwrap(),
        )
        .await
        .unwrap();
    let waits_for = async |wanted: bool| {
        let begun = Instant::now();
        eventually("the doors to agree", Duration::from_secs(15), async || {
            if may("payments", "get").await == wanted {
                Ok(())
            } else {
                Err(String::new())
            }
        })
        .await;
        begun.elapsed()
    };
    let granted = waits_for(true).await;
    for (name, verb) in [
        ("payments", "get"),
        ("payments", "list"),
        ("payments", "delete"),
        ("other", "get"),
    ] {
        assert_eq!(
            may(name, verb).await,
            can_i(name, verb).await,
            "{verb} {name}"
        );
    }
    assert!(may("payments", "list").await && !may("other", "get").await);

    // Without an event a yes holds for ten seconds at most; with one it ends at once.
    bindings
        .delete("reader", &DeleteParams::default())
        .await
        .unwrap();
    let unheard = waits_for(false).await;
    assert!(unheard < Duration::from_secs(12), "{unheard:?}");
    let binding = json!({
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": space.name}],
    });
    bindings
        .create(
            &PostParams::default(),
            &serde_json::from_value(binding).unwrap(),
        )
        .await
        .unwrap();
    waits_for(true).await;
    bindings
        .delete("reader", &DeleteParams::default())
        .await
        .unwrap();
    replica.doors.authz.invalidate(None);
    let heard = waits_for(false).await;
    assert!(heard < Duration::from_secs(1), "{heard:?}");
    println!(
        "granted after {granted:.1?}; revoked after {unheard:.1?}, at an event after {heard:.2?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_the_signing_keys_revokes_every_token_and_makes_others() {
    // A control plane of its own: the keys are those of the whole install.
    let cluster = crate::support::Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let space = Space::on(Arc::new(cluster), "keys").await;
    let operator = Operator::start(&space, Options::default()).await;
    let replica = Replica::start(&space).await;
    make(&space, "web").await;
    let assertion = token(&space, &space.name, "web", EXCHANGE, None).await;
    let access = replica.access_token(&assertion).await;
    assert_eq!(replica.get("/claviger/v1/whoami", &access).await.0, 200);

    let secrets = Api::<Secret>::namespaced(space.client.clone(), SYSTEM);
    let before = secrets.get("claviger-token-keys").await.unwrap();
    assert_eq!(before.type_.as_deref(), Some("claviger.dev/token-keys"));
    secrets
        .delete("claviger-token-keys", &DeleteParams::default())
        .await
        .unwrap();
    let begun = Instant::now();
    let anew = eventually("another key", PATIENCE, async || {
        let (status, body) = replica.exchange("adfs", &assertion, OWN).await;
        let token = body["access_token"].as_str().unwrap_or_default();
        let works = status == 200 && replica.get("/claviger/v1/whoami", token).await.0 == 200;
        let old = replica.get("/claviger/v1/whoami", &access).await.0;
        if works && old == 401 {
            Ok(token.to_owned())
        } else {
            Err(format!("{status} {old}"))
        }
    })
    .await;
    println!("another key after {:.1?}", begun.elapsed());
    // It was written once, and a second leader writes nothing.
    let after = secrets.get("claviger-token-keys").await.unwrap();
    operator.kill().await;
    let _operator = Operator::start(&space, Options::default()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let later = secrets.get("claviger-token-keys").await.unwrap();
    assert_eq!(later.resource_version(), after.resource_version());
    assert_eq!(replica.get("/claviger/v1/whoami", &anew).await.0, 200);
    // Nobody else writes them.
    let patch = json!({"data": {"keys.json": ""}});
    let refused = secrets
        .patch(
            "claviger-token-keys",
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Merge(patch),
        )
        .await;
    assert!(
        matches!(refused, Err(kube::Error::Api(status)) if status.code == 422 || status.code == 403)
    );
}
