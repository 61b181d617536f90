//! Unmodified SDKs of Azure's get tokens from the real server, as in a pod and on a workstation.
//!
//! The server's name leads to this machine in a mount namespace of the callers' own, where another
//! file stands for /etc/hosts: what they run is what anybody installs.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::Stdio};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::{
    facts::claviger,
    support::{
        Operator, Options, Space, eventually,
        operator::service_account_token,
        server::{self, Server},
        space::PATIENCE,
    },
};

const VAULT: &str = "https://vault.azure.net/.default";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Somebody's machine: files of a login, and programs that find the server by its name.
struct Machine {
    folder: tempfile::TempDir,
    environment: BTreeMap<String, String>,
}

impl Machine {
    /// After `eval "$(kubectl claviger login --serviceaccount …)"`.
    async fn of(space: &Space, server: &Server, account: &str) -> Self {
        let folder = tempfile::tempdir_in(space.cluster.directory.path()).unwrap();
        let hosts = format!("127.0.0.1 localhost {}\n", server::NAME);
        std::fs::write(folder.path().join("hosts"), hosts).unwrap();
        let authority = format!("https://{}:{}", server::NAME, server.address.port());
        let files = folder.path().join("files");
        let said = claviger(
            space,
            &[
                "login",
                "--serviceaccount",
                account,
                "--namespace",
                &space.name,
                "--authority",
                &authority,
                "--folder",
                files.to_str().unwrap(),
            ],
        )
        .await
        .unwrap();
        let environment = said
            .lines()
            .map(|line| {
                let (name, value) = line
                    .strip_prefix("export ")
                    .unwrap()
                    .split_once('=')
                    .unwrap();
                (name.to_owned(), value.trim_matches('\'').to_owned())
            })
            .collect();
        Self {
            folder,
            environment,
        }
    }

    /// A program of this machine.
    fn command(&self, program: &str) -> Command {
        let hosts = self.folder.path().join("hosts");
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/hosts && exec \"$@\"")
            .arg(hosts)
            .arg(program)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("HOME", self.folder.path())
            .envs(&self.environment)
            .kill_on_drop(true);
        command
    }

    /// What an application with this SDK and credential is answered.
    async fn ask(&self, language: &str, credential: &str, scope: &str) -> Result<Value, String> {
        let sdk = root().join("target/sdk");
        let mut command = if language == "python" {
            let mut command = self.command(sdk.join("python/bin/python").to_str().unwrap());
            command
                .args(["-I", "-B"])
                .arg(root().join("tests/sdk/python/identity.py"));
            command
        } else {
            let mut command = self.command("node");
            command
                .arg(root().join("tests/sdk/node/identity.mjs"))
                .env("CLAVIGER_SDK", sdk.join("node"));
            command
        };
        let ran = command.args([credential, scope]).output().await.unwrap();
        let line = String::from_utf8(ran.stdout).unwrap();
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line}{}", String::from_utf8_lossy(&ran.stderr)));
        match said["tokens"][0].as_str() {
            Some(token) => {
                let claims = token.split('.').nth(1).unwrap();
                let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
                Ok(serde_json::from_slice(&claims).unwrap())
            }
            None => Err(said["message"].as_str().unwrap().to_owned()),
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Starts the identity agent; answers where it listens.
    async fn agent(&self, secret: &str, more: &[&str]) -> (Child, SocketAddr) {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let agent = self
            .command(env!("CARGO_BIN_EXE_claviger"))
            .args(["identity-agent", "--address", &address.to_string()])
            .args(more)
            .env("IDENTITY_HEADER", secret)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the agent to listen", PATIENCE, async || {
            let stream = tokio::net::TcpStream::connect(address).await;
            stream.map(drop).map_err(|error| error.to_string())
        })
        .await;
        (agent, address)
    }
}

/// Installs the SDKs, once.
async fn set_up() {
    let ran = Command::new(root().join("tests/sdk/setup.sh"))
        .output()
        .await
        .unwrap();
    assert!(
        ran.status.success(),
        "tests/sdk/setup.sh failed: it needs python3 with venv, node with npm and, the first time, their indexes:\n{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

async fn account(space: &Space, name: &str) {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    accounts(space)
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
}

fn accounts(space: &Space) -> Api<ServiceAccount> {
    Api::namespaced(space.client.clone(), &space.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_every_kind_get_tokens_without_an_option() {
    set_up().await;
    let space = Space::new("sdk-tokens").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let server = Server::start(&space.cluster, &space.client, &[]).await;
    account(&space, "web").await;
    let subject = format!("system:serviceaccount:{}:web", space.name);
    let machine = Machine::of(&space, &server, "web").await;
    for (language, credential) in [
        ("python", "WorkloadIdentityCredential"),
        ("python", "DefaultAzureCredential"),
        ("python", "ManagedIdentityCredential"),
        ("python", "aio.WorkloadIdentityCredential"),
        ("node", "WorkloadIdentityCredential"),
        ("node", "DefaultAzureCredential"),
        ("node", "ManagedIdentityCredential"),
    ] {
        let claims = machine.ask(language, credential, VAULT).await;
        let claims = claims.unwrap_or_else(|why| panic!("{language} {credential}: {why}"));
        assert_eq!(claims["sub"], subject, "{language} {credential}");
        assert_eq!(claims["aud"], "https://vault.azure.net");
        assert_eq!(
            claims["iss"],
            format!("{}adfs", machine.environment["AZURE_AUTHORITY_HOST"])
        );
        let lives = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert!((900..=3600).contains(&lives), "{lives}");
    }

    // Callers that know managed identity only, by way of the agent.
    let secret = "chosen-at-random-0123456789";
    let (_agent, address) = machine.agent(secret, &[]).await;
    let (_open_agent, open_address) = machine.agent(secret, &["--imds"]).await;
    let app_service = |machine: Machine, secret: &str| {
        machine
            .without("AZURE_FEDERATED_TOKEN_FILE")
            .without("AZURE_TENANT_ID")
            .with("IDENTITY_ENDPOINT", &format!("http://{address}/msi/token"))
            .with("IDENTITY_HEADER", secret)
    };
    let own =
        app_service(Machine::of(&space, &server, "web").await, secret).without("AZURE_CLIENT_ID");
    let imds = async |address: SocketAddr| {
        Machine::of(&space, &server, "web")
            .await
            .without("AZURE_FEDERATED_TOKEN_FILE")
            .without("AZURE_TENANT_ID")
            .without("AZURE_CLIENT_ID")
            .with(
                "AZURE_POD_IDENTITY_AUTHORITY_HOST",
                &format!("http://{address}"),
            )
    };
    let (imds, shut) = (imds(open_address).await, imds(address).await);
    for language in ["python", "node"] {
        for (form, machine) in [("App Service", &own), ("IMDS", &imds)] {
            let claims = machine
                .ask(language, "ManagedIdentityCredential", VAULT)
                .await;
            let claims = claims.unwrap_or_else(|why| panic!("{language} {form}: {why}"));
            assert_eq!(claims["sub"], subject, "{language} {form}");
        }
        let refusal = shut.ask(language, "ManagedIdentityCredential", VAULT).await;
        let refusal = refusal.expect_err("IMDS's form has no header");
        assert!(refusal.contains("--imds"), "{language}: {refusal}");
    }
    // The identity may be named as the server knows it, and no other.
    for (name, known) in [("web", true), ("other", false)] {
        let named = Machine::of(&space, &server, "web").await;
        let named =
            app_service(named, secret).with("AZURE_CLIENT_ID", &format!("{}/{name}", space.name));
        for language in ["python", "node"] {
            let said = named.ask(language, "DefaultAzureCredential", VAULT).await;
            assert_eq!(said.is_ok(), known, "{language} {name}: {said:?}");
        }
    }
    let stranger = app_service(
        Machine::of(&space, &server, "web").await,
        "another-secret-0123456789",
    )
    .without("AZURE_CLIENT_ID");
    for language in ["python", "node"] {
        let refusal = stranger
            .ask(language, "ManagedIdentityCredential", VAULT)
            .await;
        let refusal = refusal.expect_err("who does not know the header gets nothing");
        assert!(
            refusal.contains("X-IDENTITY-HEADER"),
            "{language}: {refusal}"
        );
    }
}

/// A token such as the kubelet gets for a pod.
async fn pod_token(space: &Space, account: &str, pod: &Pod) -> String {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec!["api://AzureADTokenExchange".to_owned()],
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            expiration_seconds: Some(3600),
        },
        ..TokenRequest::default()
    };
    let granted = accounts(space)
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    granted.status.unwrap().token
}

/// The same token, issued an hour and a half before it ends, which is so many seconds from now; signed by
/// the cluster's own key.
fn signed_again(space: &Space, token: &str, ends: i64) -> String {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice::<Value>(&bytes).unwrap_or_default()
    });
    let (header, mut claims) = (parts.next().unwrap(), parts.next().unwrap());
    let end = claviger::clock::now().as_second() + ends;
    claims["exp"] = end.into();
    for begin in ["iat", "nbf"] {
        claims[begin] = (end - 5400).into();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let key = space.cluster.directory.path();
    let key = PrivateKeyDer::from_pem_file(key.join("state/pki/service-account.key")).unwrap();
    let signature = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
        .unwrap()
        .choose_scheme(&[rustls::SignatureScheme::RSA_PKCS1_SHA256])
        .unwrap()
        .sign(signed.as_bytes())
        .unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_what_to_do() {
    set_up().await;
    let space = Space::new("sdk-refusals").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let server = Server::start(&space.cluster, &space.client, &[]).await;
    for name in ["web", "gone"] {
        account(&space, name).await;
    }
    let machine = async || Machine::of(&space, &server, "web").await;
    let token_file = |machine: &Machine| machine.environment["AZURE_FEDERATED_TOKEN_FILE"].clone();
    let refusal = async |machine: &Machine, language: &str, scope: &str| {
        let answer = machine
            .ask(language, "WorkloadIdentityCredential", scope)
            .await;
        answer.expect_err("no token is given")
    };

    // A token for the apiserver is none for Claviger.
    let wrong_audience = machine().await;
    let token = service_account_token(&space.client, &space.name, "web").await;
    std::fs::write(token_file(&wrong_audience), token).unwrap();
    // One whose ServiceAccount is gone.
    let gone = Machine::of(&space, &server, "gone").await;
    accounts(&space)
        .delete("gone", &DeleteParams::default())
        .await
        .unwrap();
    // One whose pod is gone; while it ran, it was good.
    let pod_gone = Machine::of(&space, &server, "web").await;
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let made = serde_json::json!({
        "metadata": {"name": "web"},
        "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "none"}]},
    });
    let made = pods
        .create(
            &PostParams::default(),
            &serde_json::from_value(made).unwrap(),
        )
        .await
        .unwrap();
    let (in_pod, other_in_pod) = (
        pod_token(&space, "web", &made).await,
        pod_token(&space, "web", &made).await,
    );
    std::fs::write(token_file(&pod_gone), in_pod).unwrap();
    let claims = pod_gone
        .ask("python", "WorkloadIdentityCredential", VAULT)
        .await
        .unwrap();
    assert_eq!(
        claims["sub"],
        format!("system:serviceaccount:{}:web", space.name)
    );
    std::fs::write(token_file(&pod_gone), other_in_pod).unwrap();
    let at_once = DeleteParams::default().grace_period(0);
    pods.delete("web", &at_once).await.unwrap();
    // One that is over, and nothing else is wrong with it.
    let expired = machine().await;
    let token = std::fs::read_to_string(token_file(&expired)).unwrap();
    let hour = 3600;
    std::fs::write(token_file(&expired), signed_again(&space, &token, -hour)).unwrap();
    let signed = machine().await;
    std::fs::write(token_file(&signed), signed_again(&space, &token, hour)).unwrap();
    signed
        .ask("python", "WorkloadIdentityCredential", VAULT)
        .await
        .unwrap();
    // Somebody else's name.
    let other_client = machine().await.with("AZURE_CLIENT_ID", "shop/other");
    for language in ["python", "node"] {
        let said = refusal(&wrong_audience, language, VAULT).await;
        assert!(said.contains("audience"), "{language}: {said}");
        assert!(
            said.contains("api://AzureADTokenExchange"),
            "{language}: {said}"
        );
        let said = refusal(&gone, language, VAULT).await;
        assert!(
            said.to_lowercase().contains("serviceaccount"),
            "{language}: {said}"
        );
        let said = refusal(&pod_gone, language, VAULT).await;
        assert!(said.contains("pod"), "{language}: {said}");
        assert!(said.contains("start the pod anew"), "{language}: {said}");
        let said = refusal(&expired, language, VAULT).await;
        assert!(said.contains("has expired"), "{language}: {said}");
        assert!(said.contains("read the file anew"), "{language}: {said}");
        let said = refusal(&other_client, language, VAULT).await;
        assert!(said.contains("AZURE_CLIENT_ID"), "{language}: {said}");
        let said = refusal(
            &machine().await,
            language,
            "https://elsewhere.example/.default",
        )
        .await;
        assert!(
            said.contains("elsewhere.example") || said.contains("resource"),
            "{language}: {said}"
        );
    }
    let secret = machine()
        .await
        .ask("python", "ClientSecretCredential", VAULT)
        .await;
    let secret = secret.expect_err("secrets of clients are not known");
    assert!(
        secret.contains("client_assertion") || secret.contains("ServiceAccount"),
        "{secret}"
    );
    assert!(!secret.contains("no-such-secret"));
    // Node looks a tenant other than `adfs` up in Microsoft's public cloud before it asks anybody else, so
    // there it is not for the server to say anything.
    let tenant = machine().await.with("AZURE_TENANT_ID", "contoso");
    let said = refusal(&tenant, "python", VAULT).await;
    assert!(said.contains("adfs"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_is_refused_without_a_role_and_admitted_with_one() {
    set_up().await;
    let space = Space::new("sdk-example").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let server = Server::start(&space.cluster, &space.client, &[]).await;
    account(&space, "report").await;
    let machine = Machine::of(&space, &server, "report").await;
    let report = async || {
        let python = root().join("target/sdk/python/bin/python");
        let mut command = machine.command(python.to_str().unwrap());
        let program = root().join("examples/identity/report.py");
        command
            .arg("-B")
            .arg(program)
            .args([&*space.name, "payments"]);
        let ran = command.output().await.unwrap();
        let said = [ran.stdout, ran.stderr].concat();
        (ran.status.success(), String::from_utf8(said).unwrap())
    };
    let (admitted, said) = report().await;
    assert!(!admitted && said.contains("403: "), "{said}");
    let known = format!("it knows me as system:serviceaccount:{}:report", space.name);
    assert!(said.contains(&known), "{said}");

    let manifest = root().join("examples/identity/role-assignment.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let manifest = manifest.replace("namespace: shop", &format!("namespace: {}", space.name));
    let apply = ["apply", "-f", "-"];
    space.cluster.kubectl(&apply, &manifest).await.unwrap();
    eventually("the role to admit", PATIENCE, async || {
        match report().await {
            (true, _) => Ok(()),
            (false, said) => Err(said),
        }
    })
    .await;
}
