//! Unmodified SDKs of Azure's get tokens from the real server, as in a pod and on a workstation.
//!
//! The server's name leads to this machine in a mount namespace of the callers' own, where another
//! file stands for /etc/hosts: what they run is what anybody installs.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, process::Stdio};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams},
};
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
    async fn agent(&self, secret: &str) -> (Child, SocketAddr) {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let agent = self
            .command(env!("CARGO_BIN_EXE_claviger"))
            .args(["identity-agent", "--address", &address.to_string()])
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
    let (_agent, address) = machine.agent(secret).await;
    let app_service = |machine: Machine, secret: &str| {
        machine
            .without("AZURE_FEDERATED_TOKEN_FILE")
            .without("AZURE_TENANT_ID")
            .with("IDENTITY_ENDPOINT", &format!("http://{address}/msi/token"))
            .with("IDENTITY_HEADER", secret)
    };
    let own =
        app_service(Machine::of(&space, &server, "web").await, secret).without("AZURE_CLIENT_ID");
    let imds = Machine::of(&space, &server, "web")
        .await
        .without("AZURE_FEDERATED_TOKEN_FILE")
        .without("AZURE_TENANT_ID")
        .without("AZURE_CLIENT_ID")
        .with(
            "AZURE_POD_IDENTITY_AUTHORITY_HOST",
            &format!("http://{address}"),
        );
    for language in ["python", "node"] {
        for (form, machine) in [("App Service", &own), ("IMDS", &imds)] {
            let claims = machine
                .ask(language, "ManagedIdentityCredential", VAULT)
                .await;
            let claims = claims.unwrap_or_else(|why| panic!("{language} {form}: {why}"));
            assert_eq!(claims["sub"], subject, "{language} {form}");
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
    // Somebody of Claviger's own namespace.
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
    let tenant = machine().await.with("AZURE_TENANT_ID", "contoso");
    let said = refusal(&tenant, "python", VAULT).await;
    assert!(said.contains("adfs"), "{said}");
}
