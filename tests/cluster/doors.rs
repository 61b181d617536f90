//! The doors end to end: a ServiceAccount's token over TLS, a RoleAssignment, an answer.

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    core::v1::{ConfigMap, ServiceAccount},
    rbac::v1::RoleBinding,
};
use kube::{
    Api,
    api::{ListParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Operator, Options, Space, eventually,
    server::{self, Server},
    space::PATIENCE,
};

/// What a server answers over TLS to somebody who trusts what is published.
async fn ask(space: &Space, server: &Server, head: &str, body: &str) -> (u16, Value) {
    let maps = Api::<ConfigMap>::namespaced(space.client.clone(), &space.name);
    let roots = maps.get("claviger-ca").await.unwrap().data.unwrap()["ca.crt"].clone();
    let mut stream = server.connect(server::NAME, &roots).await.unwrap();
    let length = body.len();
    let request = format!(
        "{head}\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}",
        server::NAME
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// The access token of a new ServiceAccount for the server's own doors.
async fn access_token(space: &Space, server: &Server, account: &str) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), &space.name);
    let made = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(account.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    accounts
        .create(&PostParams::default(), &made)
        .await
        .unwrap();
    let exchange = "api://AzureADTokenExchange";
    let assertion = server::token_for(&space.client, &space.name, account, exchange).await;
    let form = format!(
        "grant_type=client_credentials&client_assertion={assertion}&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&scope=https%3A%2F%2Fclaviger-system.svc%3A{}%2F.default",
        server.address.port()
    );
    let head =
        "POST /adfs/oauth2/v2.0/token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded";
    let (status, body) = ask(space, server, head, &form).await;
    assert_eq!(status, 200, "{body}");
    body["access_token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_admits_and_its_end_is_heard_by_every_replica() {
    let space = Space::new("doors-role").await;
    let _operator = Operator::start(&space, Options::default()).await;
    let first = Server::start(&space.cluster, &space.client, &[]).await;
    let port = first.address.port().to_string();
    let same = ["--server-port", &*port];
    let second = Server::start(&space.cluster, &space.client, &same).await;
    let replicas = [first, second];
    let token = access_token(&space, &replicas[0], "web").await;
    let path = format!(
        "/claviger/v1/access/{}/secretvaults/payments/secrets/get",
        space.name
    );
    let head = format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}");
    let status = async |server: &Server| ask(&space, server, &head, "").await.0;
    for server in &replicas {
        assert_eq!(status(server).await, 403);
    }
    let anonymous = format!("GET {path} HTTP/1.1");
    assert_eq!(ask(&space, &replicas[0], &anonymous, "").await.0, 401);

    let assignment = json!({
        "apiVersion": "claviger.dev/v1alpha1", "kind": "RoleAssignment",
        "metadata": {"name": "web-reads-payments", "namespace": space.name},
        "spec": {
            "principal": {"kind": "ServiceAccount", "name": "web"},
            "role": {"builtIn": "SecretVaultSecretsUser"},
            "scope": {"resource": {"kind": "SecretVault", "name": "payments"}},
        },
    });
    space
        .cluster
        .kubectl(&["apply", "-f", "-"], &assignment.to_string())
        .await
        .unwrap();
    for server in &replicas {
        eventually("the role to admit", PATIENCE, async || {
            match status(server).await {
                200 => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
    }
    // Another vault is another matter.
    let other = head.replace("payments", "orders");
    assert_eq!(ask(&space, &replicas[1], &other, "").await.0, 403);

    // From when the binding is gone.
    let bindings: Api<RoleBinding> = Api::namespaced(space.client.clone(), &space.name);
    space
        .cluster
        .kubectl(
            &[
                "-n",
                &space.name,
                "delete",
                "roleassignment",
                "web-reads-payments",
                "--wait=false",
            ],
            "",
        )
        .await
        .unwrap();
    eventually("the binding to go", PATIENCE, async || {
        let left = bindings.list(&ListParams::default()).await.unwrap().items;
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.len().to_string())
        }
    })
    .await;
    let gone = Instant::now();
    for server in &replicas {
        eventually(
            "the role to admit no more",
            PATIENCE,
            async || match status(server).await {
                403 => Ok(()),
                other => Err(other.to_string()),
            },
        )
        .await;
    }
    let took = gone.elapsed();
    // A cached yes would hold for ten.
    assert!(took < Duration::from_secs(2), "{took:?}");
    for server in replicas {
        assert!(server.stop().await);
    }
}
