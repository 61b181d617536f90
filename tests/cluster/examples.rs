//! The manifests that people copy: each is taken by a real apiserver, or refused as it says.

use std::{fs, path::PathBuf};

use claviger::api::v1alpha1::FunctionKey;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};

use crate::support::{Cluster, Operator, Options, Space, root, tool};

/// The YAML files of a folder of examples, in order.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("examples").join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

/// What the apiserver says to a manifest that is only tried out.
async fn tried_out(cluster: &Cluster, manifest: &str) -> Result<String, String> {
    let args = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    cluster.kubectl(&args, manifest).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_are_taken_and_become_ready() {
    let space = Space::new("examples").await;
    let cluster = &space.cluster;
    let options = Options {
        namespaces: vec!["shop".to_owned()],
        ..Options::default()
    };
    for file in files("") {
        let manifest = fs::read_to_string(&file).unwrap();
        // The namespace first: all others stand in it.
        tried_out(cluster, &manifest)
            .await
            .unwrap_or_else(|refusal| panic!("{}: {refusal}", file.display()));
        cluster
            .kubectl(&["apply", "-f", "-"], &manifest)
            .await
            .unwrap();
    }
    let _operator = Operator::start(&space, options).await;
    let wait = [
        "wait",
        "functionkeys,secretvaults,roleassignments",
        "--all",
        "--namespace=shop",
        "--for=condition=Ready",
        "--timeout=45s",
    ];
    cluster.kubectl(&wait, "").await.unwrap();
    let keys = Api::<FunctionKey>::namespaced(space.client.clone(), "shop");
    let keys = keys.list(&ListParams::default()).await.unwrap().items;
    let entries: Vec<String> = keys
        .iter()
        .map(|key| key.status.clone().unwrap().entry.unwrap())
        .collect();
    assert_eq!(
        entries,
        [
            "functions.orders.default",
            "host.systemKey.durabletask_extension",
            "host.function.default",
            "host.master"
        ]
    );

    // What the README has you do next.
    let turn = [
        "patch",
        "functionkey",
        "orders-default",
        "--namespace=shop",
        "--type=merge",
        "-p",
        r#"{"spec":{"rotation":{"generation":2}}}"#,
    ];
    cluster.kubectl(&turn, "").await.unwrap();
    let wait = [
        "wait",
        "functionkey/orders-default",
        "--namespace=shop",
        "--for=jsonpath={.status.rotation.generation}=2",
        "--timeout=45s",
    ];
    cluster.kubectl(&wait, "").await.unwrap();

    the_vaults_of_the_examples(&space).await;
    who_may_do_what(&space).await;

    tour(&space).await;

    // And what is not let in; after `Message:` the comment says why.
    for file in files("refused") {
        let manifest = fs::read_to_string(&file).unwrap();
        let claimed = claim(&manifest);
        let refusal = tried_out(cluster, &manifest)
            .await
            .expect_err(&file.display().to_string());
        assert!(
            refusal.contains(&claimed),
            "{}: {claimed:?} is not in {refusal}",
            file.display()
        );
    }
}

/// What the examples' assignments come to, asked as their page has it.
async fn who_may_do_what(space: &Space) {
    let can = async |verb: &str, vault: &str, account: &str| {
        let args = [
            "auth",
            "can-i",
            verb,
            &format!("secretvaults.claviger.dev/{vault}"),
            "--subresource=secrets",
            "--namespace=shop",
            &format!("--as=system:serviceaccount:shop:{account}"),
        ];
        space.cluster.kubectl(&args, "").await.is_ok()
    };
    for (verb, vault, account, expected) in [
        ("get", "payments", "web", true),
        ("get", "ledger", "web", false),
        ("update", "payments", "web", false),
        ("create", "ledger", "importer", true),
        ("get", "ledger", "importer", false),
        ("create", "payments", "importer", false),
    ] {
        let may = can(verb, vault, account).await;
        assert_eq!(may, expected, "{account} {verb} {vault}");
    }
}

/// What pods are to find in the Secrets that the examples' vaults fill, and what the page of the
/// examples has you do with one.
async fn the_vaults_of_the_examples(space: &Space) {
    let cluster = &space.cluster;
    let keys = async |secret: &str| {
        let template = "{{range $key, $_ := .data}}{{$key}} {{end}}";
        let args = [
            "--namespace=shop",
            "get",
            "secret",
            secret,
            "-o",
            &format!("go-template={template}"),
        ];
        cluster.kubectl(&args, "").await.unwrap().trim().to_owned()
    };
    for (secret, holds) in [
        ("payments-env", "DATABASE_URL DB_PASSWORD PROVIDER_API_KEY"),
        ("payments-webhook", "tls.crt tls.key"),
        ("deploy-key", "ssh-privatekey ssh-publickey"),
        ("registry-pull", ".dockerconfigjson"),
        ("legacy-config", "SESSION_KEY region"),
    ] {
        assert_eq!(keys(secret).await, holds, "{secret}");
    }
    let held = |status: &str, path: &str| -> String {
        let status: Value = serde_json::from_str(status).unwrap();
        status.pointer(path).unwrap().as_str().unwrap().to_owned()
    };
    let status = [
        "--namespace=shop",
        "get",
        "secretvault",
        "ledger",
        "-o",
        "jsonpath={.status}",
    ];
    let status = cluster.kubectl(&status, "").await.unwrap();
    let immutable = held(&status, "/sync/0/secretName");
    assert!(immutable.starts_with("ledger-env-"), "{immutable}");
    assert_eq!(keys(&immutable).await, "SIGNING_KEY");

    let now = jiff::Timestamp::now();
    let turn = [
        "--namespace=shop",
        "annotate",
        "secretvault",
        "payments",
        &format!("claviger.dev/rotate-secrets=db-password@{now}"),
    ];
    cluster.kubectl(&turn, "").await.unwrap();
    let wait = [
        "wait",
        "secretvault/payments",
        "--namespace=shop",
        "--for=jsonpath={.status.declared[0].generation}=2",
        "--timeout=45s",
    ];
    cluster.kubectl(&wait, "").await.unwrap();
    crate::support::eventually(
        "both passwords to be in the Secret",
        std::time::Duration::from_secs(30),
        async || {
            let keys = keys("payments-env").await;
            if keys.contains("DB_PASSWORD_PREVIOUS") {
                Ok(())
            } else {
                Err(keys)
            }
        },
    )
    .await;
}

/// Runs what the README's tour of vaults has one type, from top to bottom.
async fn tour(space: &Space) {
    let page = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, tour) = page.split_once("\n## Tour of SecretVault\n").unwrap();
    let (tour, _) = tour.split_once("\n## ").unwrap();
    let mut script = String::from("set -euo pipefail\n");
    for block in tour.split("```sh\n").skip(1) {
        script.push_str(block.split_once("```").unwrap().0);
    }
    assert!(script.lines().count() > 15, "{script}");
    // As on a workstation: kubectl, claviger, and claviger as kubectl's plugin.
    let programs = tempfile::tempdir().unwrap();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_claviger"));
    for (name, program) in [
        ("kubectl", tool("kubectl")),
        ("claviger", binary.clone()),
        ("kubectl-claviger", binary),
    ] {
        std::os::unix::fs::symlink(program, programs.path().join(name)).unwrap();
    }
    let path = std::env::var("PATH").unwrap();
    let run = tokio::process::Command::new("bash")
        .args(["-x", "-c", &script])
        .current_dir(root())
        .env("PATH", format!("{}:{path}", programs.path().display()))
        .env("KUBECONFIG", &space.cluster.kubeconfig)
        .output()
        .await
        .unwrap();
    let told = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{told}");
}

/// The message that the comment of a manifest announces, its lines joined.
fn claim(manifest: &str) -> String {
    let lines: Vec<&str> = manifest
        .lines()
        .map_while(|line| line.strip_prefix('#'))
        .map(str::trim)
        .collect();
    let comment = lines.join(" ");
    let (_, message) = comment
        .split_once("Message: ")
        .expect("a comment with `Message:`");
    message.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_chart_tells_people_to_try_works() {
    let space = Space::new("notes").await;
    let cluster = &space.cluster;
    let _operator = Operator::start(&space, Options::default()).await;
    let chart = root().join("charts/claviger");
    let notes = fs::read_to_string(chart.join("templates/NOTES.txt")).unwrap();
    let (_, manifest) = notes.split_once("<<'EOF'\n").unwrap();
    let (manifest, rest) = manifest.split_once("  EOF\n").unwrap();
    let (_, vault) = rest.split_once("<<'EOF'\n").unwrap();
    let (vault, _) = vault.split_once("  EOF\n").unwrap();
    let kubectl = async |args: &[&str], input: &str| {
        let args = [&["--namespace", &space.name], args].concat();
        cluster.kubectl(&args, input).await.unwrap()
    };
    kubectl(&["apply", "-f", "-"], manifest).await;
    // The patch is the one of the text; the rest of each line is a wait or a look.
    let (_, patch) = rest.split_once("-p '").unwrap();
    let (patch, _) = patch.split_once('\'').unwrap();
    kubectl(
        &[
            "wait",
            "functionkey/try",
            "--for=condition=Ready",
            "--timeout=45s",
        ],
        "",
    )
    .await;
    kubectl(
        &["patch", "functionkey", "try", "--type=merge", "-p", patch],
        "",
    )
    .await;
    let generation = "--for=jsonpath={.status.rotation.generation}=2";
    kubectl(
        &["wait", "functionkey/try", generation, "--timeout=45s"],
        "",
    )
    .await;
    let described = kubectl(&["describe", "secret", "try-function-keys"], "").await;
    for value in space.values.lock().unwrap().keys() {
        assert!(!described.contains(value.as_str()), "{described}");
    }
    kubectl(&["delete", "functionkey", "try"], "").await;
    kubectl(&["apply", "-f", "-"], vault).await;
    let ready = "--for=condition=Ready";
    kubectl(&["wait", "secretvault/try", ready, "--timeout=45s"], "").await;
    assert_eq!(space.data("try-env").await["PASSWORD"].len(), 32);
    let delete = ["delete", "secretvault", "try", "--timeout=45s"];
    kubectl(&delete, "").await;
    let left = kubectl(&["get", "secrets", "-l", "claviger.dev/vault=try"], "").await;
    assert_eq!(left, "", "everything goes");

    // The example of the chart's own page.
    let about = fs::read_to_string(chart.join("Chart.yaml")).unwrap();
    let about: Value = serde_saphyr::from_str(&about).unwrap();
    let examples = about["annotations"]["artifacthub.io/crdsExamples"]
        .as_str()
        .unwrap();
    for mut example in serde_saphyr::from_str::<Vec<Value>>(examples).unwrap() {
        example["metadata"]["namespace"] = json!(space.name);
        tried_out(cluster, &example.to_string()).await.unwrap();
    }
}

#[test]
fn manifests_for_argo_cd_and_flux_parse_and_name_what_there_is() {
    let known = [
        ("v1", "ConfigMap"),
        ("argoproj.io/v1alpha1", "Application"),
        ("source.toolkit.fluxcd.io/v1", "GitRepository"),
        ("helm.toolkit.fluxcd.io/v2", "HelmRelease"),
        ("kustomize.toolkit.fluxcd.io/v1", "Kustomization"),
    ];
    let mut charts = 0;
    for file in files("gitops") {
        let text = fs::read_to_string(&file).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for document in &documents {
            let kind = (
                document["apiVersion"].as_str().unwrap(),
                document["kind"].as_str().unwrap(),
            );
            assert!(known.contains(&kind), "{}: {kind:?}", file.display());
            assert!(document["metadata"]["name"].is_string());
            if let Some(chart) = document["spec"]["chart"]["spec"]["chart"].as_str() {
                assert!(root().join(chart).join("Chart.yaml").exists(), "{chart}");
                charts += 1;
            }
            // Those that depend on another name one that is there.
            for other in document["spec"]["dependsOn"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let is = |document: &&Value| document["metadata"]["name"] == other["name"];
                assert!(documents.iter().any(|document| is(&document)), "{other}");
            }
        }
    }
    assert_eq!(charts, 2);
}
