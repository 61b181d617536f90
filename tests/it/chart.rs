//! The charts: what they render, what they refuse, and that they fit the binary.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use clap::Parser;
use claviger::{
    cli,
    domain::{plan::Occurrence, role::BuiltIn},
    metrics::{Census, Metrics},
};
use serde_json::Value;
use strum::IntoEnumIterator;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs Helm; answers what it prints, or what it complains of.
fn helm(args: &[&str]) -> Result<String, String> {
    let tool = root().join("target/tools/helm");
    assert!(tool.exists(), "helm is missing: run `make tools` first");
    let output = Command::new(tool)
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn template(values: &[&str]) -> Result<String, String> {
    let release = [
        "template",
        "rel",
        "charts/claviger",
        "--namespace",
        "claviger",
    ];
    helm(&[&release, values].concat())
}

fn documents(rendered: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(rendered).unwrap();
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

/// What the chart renders with these values.
fn objects(values: &[&str]) -> Vec<Value> {
    let rendered = template(values).unwrap_or_else(|refusal| panic!("{values:?}: {refusal}"));
    documents(&rendered)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

/// The one object of this kind that is of the controller, or of no half.
fn the<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = of_kind(objects, kind);
    found.retain(|object| half(object) != "server");
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

/// Which half an object is of.
fn half(object: &Value) -> &str {
    let component = "/metadata/labels/app.kubernetes.io~1component";
    text(object, component)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

const MONITORING: [&str; 8] = [
    "--set",
    "serviceMonitor.enabled=true,serviceMonitor.renderMode=alwaysRender",
    "--set",
    "prometheusRule.enabled=true,prometheusRule.renderMode=alwaysRender",
    "--set",
    "grafanaDashboard.enabled=true",
    "--set",
    "replicaCount=3",
];

/// Values as people set them.
const COMBINATIONS: &[&[&str]] = &[
    &[],
    &["--set", "fullnameOverride=other"],
    &["--set", "nameOverride=keys,namespaceOverride=shop"],
    &[
        "--set",
        "scope.mode=namespaces,scope.namespaces={shop,claviger,default}",
    ],
    &["--set", "scope.mode=namespaces,scope.namespaces={shop}"],
    &["--set", "replicaCount=1"],
    &["--set", "replicaCount=0"],
    &["--set", "podDisruptionBudget.minAvailable=1"],
    &["--set", "podDisruptionBudget.maxUnavailable=50%"],
    &[
        "--set",
        "podDisruptionBudget.enabled=false,networkPolicy.enabled=false,service.enabled=false",
    ],
    &MONITORING,
    &[
        "--set",
        "podMonitor.enabled=true,podMonitor.renderMode=alwaysRender",
    ],
    &[
        "--set",
        "serviceMonitor.enabled=true",
        "--set",
        "prometheusRule.enabled=true",
    ],
    &[
        "--set",
        "serviceMonitor.enabled=true,serviceMonitor.renderMode=failIfMissing",
        "--api-versions",
        "monitoring.coreos.com/v1/ServiceMonitor",
    ],
    &["--set", "crds.enabled=false"],
    &["--set", "crds.keep=false", "--set", "crds.annotations.a=b"],
    &["--set", "policies.enabled=false"],
    &[
        "--set",
        "policies.secretKeepers={system:serviceaccount:backup:restorer,someone@example.com}",
    ],
    &[
        "--set",
        "serviceAccount.create=false,serviceAccount.name=mine",
    ],
    &["--set", "rbac.create=false"],
    &[
        "--set",
        "rbac.aggregateToView=false,rbac.aggregateToEdit=false,rbac.aggregateToAdmin=false",
    ],
    &[
        "--set",
        "rbac.builtInRoles.adminsGrant=false,rbac.builtInRoles.aggregateToAdmin=true,rbac.builtInRoles.aggregateToEdit=true,rbac.builtInRoles.aggregateToView=true",
    ],
    &[
        "--set",
        "image.registry=r.example:5000,image.digest=sha256:0123456789012345678901234567890123456789012345678901234567890123",
    ],
    &[
        "--set",
        "global.imageRegistry=r.example,global.priorityClassName=x,global.commonLabels.a=b,commonLabels.a=c,global.foo=bar",
        "--set",
        "global.imagePullSecrets[0].name=p",
        "--set",
        "imagePullSecrets[0].name=q",
    ],
    &[
        "--set",
        "hostUsers=false,runtimeClassName=gvisor,priorityClassName=system-cluster-critical",
    ],
    &["--set", "livenessProbe=null,readinessProbe=null"],
    &[
        "--set-json",
        r#"extraEnv=[{"name":"CLAVIGER_LOG_LEVEL","value":"debug"}]"#,
        "--set-json",
        r#"extraVolumes=[{"name":"v","emptyDir":{}}]"#,
        "--set-json",
        r#"extraVolumeMounts=[{"name":"v","mountPath":"/v"}]"#,
    ],
    &[
        "--set-json",
        r#"extraObjects=[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"{{ .Release.Name }}-x","namespace":"shop"}},"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yy, namespace: shop}"]"#,
    ],
    &[
        "--set-json",
        r#"podAnnotations={"a":"b"}"#,
        "--set-json",
        r#"podLabels={"c":"d"}"#,
        "--set-json",
        r#"tolerations=[{"operator":"Exists"}]"#,
        "--set-json",
        r#"affinity={"nodeAffinity":{}}"#,
        "--set-json",
        r#"strategy={"type":"Recreate"}"#,
    ],
    &[
        "--set-json",
        r#"topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"x","whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"a":"b"}}}]"#,
    ],
    &[
        "--set-json",
        r#"networkPolicy={"ingressFrom":[{"namespaceSelector":{}}],"apiServer":{"ports":[6443],"to":[{"ipBlock":{"cidr":"10.0.0.1/32"}}]},"dns":{"ports":[53,5353],"to":[{"namespaceSelector":{}}]},"extraEgress":[{}],"extraIngress":[{}]}"#,
    ],
    &["--set", "admin.host=[::],admin.port=9000,service.port=80"],
    &[
        "--set",
        "logging.format=text,logging.level=debug,leaderElection.leaseName=x,maxConcurrentReconciles=4",
    ],
    &["--set", "hostReloadDelay=1h30m,restartDelay=0s"],
    &[
        "--set",
        "rootKey.recoveryRecipients={age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj,age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg}",
        "--set",
        "vault.rewrapRate=1,vault.ringGrace=0s",
    ],
    &["--set", "rootKey.kmsSocket=/run/kms/plugin.sock"],
    &["--values", "examples/helm/kms.yaml"],
    &[
        "--set",
        "rootKey.kind=kms,rootKey.kmsSocket=/run/kms/plugin.sock,prometheusRule.enabled=true,prometheusRule.renderMode=alwaysRender",
        "--set-json",
        r#"extraContainers=[{"name":"kms","image":"example/kms-plugin:1.0.0"}]"#,
    ],
    &[
        "--set",
        "fullnameOverride=aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeee12",
    ],
    &["--set", "server.enabled=false"],
    &[
        "--set",
        "domain=keys.example.com,clusterDomain=corp.local,server.name=id.keys.example.com,server.tlsSecret=front,server.replicaCount=1",
        "--set",
        "ca.publicRoots=omit,ca.leafLifetime=1h,ca.lifetime=100h,ca.lead=10h,server.service.type=LoadBalancer,server.port=9443",
    ],
    &[
        "--set",
        "server.serviceAccount.create=false,server.serviceAccount.name=front",
        "--set-json",
        r#"server={"ingressFrom":[{"namespaceSelector":{}}],"podLabels":{"a":"b"},"podAnnotations":{"a":"b"},"extraEgress":[{}],"affinity":{"nodeAffinity":{}}}"#,
    ],
    &[
        "--set",
        "server.auditFile=/audit/accesses.json,server.extraVolumes[0].name=audit,server.extraVolumeMounts[0].name=audit",
        "--set-json",
        r#"server.tokenResources=["https://a.example.com"]"#,
        "--set-json",
        r#"server.oidcIssuers=[{"url":"https://id.example.com/realms/shop","audience":"claviger","prefix":"shop:","groupsClaim":"roles","jwksUri":"https://id.example.com/keys"},{"url":"https://other.example.com","audience":"claviger","prefix":"other:"}]"#,
    ],
    &[
        "--set-json",
        r#"ca={"furtherRoots":"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"}"#,
        "--set-json",
        r#"extraVolumes=[{"name":"v","emptyDir":{}}]"#,
    ],
];

/// Kinds that belong to no namespace.
const CLUSTER_SCOPED: [&str; 5] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

#[test]
fn every_combination_of_values_renders_objects_that_fit_each_other() {
    for values in COMBINATIONS {
        let objects = objects(values);
        let mut seen = BTreeSet::new();
        for object in &objects {
            let kind = text(object, "/kind");
            let name = text(object, "/metadata/name");
            let namespace = text(object, "/metadata/namespace");
            assert!((1..=63).contains(&name.len()), "{values:?}: {kind} {name}");
            assert!(
                seen.insert((kind, namespace, name)),
                "{values:?}: {kind} {name} twice"
            );
            let scoped = !CLUSTER_SCOPED.contains(&kind);
            assert_eq!(scoped, !namespace.is_empty(), "{values:?}: {kind} {name}");
        }
        pods_are_found(&objects, values);
        subjects_are_the_one_account(&objects, values);
        the_binary_takes_the_arguments(&objects, values);
    }
}

/// What selects pods selects those of its half.
fn pods_are_found(objects: &[Value], values: &[&str]) {
    for deployment in of_kind(objects, "Deployment") {
        let own: Vec<Value> = objects
            .iter()
            .filter(|object| half(object) == half(deployment))
            .cloned()
            .collect();
        pods_of_a_half_are_found(deployment, &own, objects, values);
    }
}

fn pods_of_a_half_are_found(deployment: &Value, own: &[Value], objects: &[Value], values: &[&str]) {
    let pod = &deployment["spec"]["template"];
    let labels = pod["metadata"]["labels"].as_object().unwrap();
    for object in own {
        let selector = match text(object, "/kind") {
            "Deployment" | "PodDisruptionBudget" | "PodMonitor" => {
                &object["spec"]["selector"]["matchLabels"]
            }
            "NetworkPolicy" => &object["spec"]["podSelector"]["matchLabels"],
            "Service" => &object["spec"]["selector"],
            _ => continue,
        };
        let selector = selector.as_object().unwrap();
        assert!(!selector.is_empty());
        for (label, value) in selector {
            assert_eq!(
                labels.get(label),
                Some(value),
                "{values:?}: {}",
                object["kind"]
            );
        }
        assert_eq!(
            object["metadata"]["namespace"],
            deployment["metadata"]["namespace"]
        );
    }
    let port = &pod["spec"]["containers"][0]["ports"][0];
    assert_eq!(port["name"], "admin");
    let doors = &pod["spec"]["containers"][0]["ports"][1];
    assert_eq!(*doors != Value::Null, half(deployment) == "server");
    for service in of_kind(own, "Service") {
        let (name, target) = if text(service, "/metadata/name").ends_with("-metrics") {
            ("metrics", "admin")
        } else {
            assert_eq!(doors["name"], "https");
            ("https", "https")
        };
        assert_eq!(service["spec"]["ports"][0]["targetPort"], target);
        assert_eq!(service["spec"]["ports"][0]["name"], name);
    }
    for monitor in of_kind(objects, "ServiceMonitor") {
        assert_eq!(monitor["spec"]["endpoints"][0]["port"], "metrics");
        let wanted = monitor["spec"]["selector"]["matchLabels"]
            .as_object()
            .unwrap();
        assert!(of_kind(own, "Service").iter().any(|service| {
            service["spec"]["ports"][0]["name"] == "metrics"
                && wanted
                    .iter()
                    .all(|(label, value)| service["metadata"]["labels"][label] == *value)
        }));
    }
    for policy in of_kind(own, "NetworkPolicy") {
        assert_eq!(
            policy["spec"]["ingress"][0]["ports"][0]["port"],
            port["containerPort"]
        );
        if half(deployment) == "server" {
            let let_in = &policy["spec"]["ingress"][1]["ports"][0]["port"];
            assert_eq!(*let_in, doors["containerPort"]);
        }
    }
}

/// Bindings, policies and pods of a half mean the same ServiceAccount, and the halves have two.
fn subjects_are_the_one_account(objects: &[Value], values: &[&str]) {
    let deployment = the(objects, "Deployment");
    let account = text(deployment, "/spec/template/spec/serviceAccountName");
    let namespace = text(deployment, "/metadata/namespace");
    let accounts: BTreeMap<&str, &str> = of_kind(objects, "Deployment")
        .into_iter()
        .map(|deployment| {
            let account = text(deployment, "/spec/template/spec/serviceAccountName");
            (half(deployment), account)
        })
        .collect();
    if let Some(server) = accounts.get("server") {
        assert_ne!(*server, account);
    }
    for made in of_kind(objects, "ServiceAccount") {
        assert_eq!(text(made, "/metadata/name"), accounts[half(made)]);
    }
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        for binding in of_kind(objects, kind) {
            let account = accounts[half(binding)];
            assert_eq!(text(binding, "/subjects/0/name"), account, "{values:?}");
            assert_eq!(
                text(binding, "/subjects/0/namespace"),
                namespace,
                "{values:?}"
            );
            assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
            let role = text(binding, "/roleRef/name");
            let roles = of_kind(objects, text(binding, "/roleRef/kind"));
            assert!(roles.iter().any(|made| {
                text(made, "/metadata/name") == role
                    && made["metadata"]["namespace"] == binding["metadata"]["namespace"]
            }));
        }
    }
    let user = format!("'system:serviceaccount:{namespace}:{account}'");
    let policies = of_kind(objects, "ValidatingAdmissionPolicy");
    let bindings = of_kind(objects, "ValidatingAdmissionPolicyBinding");
    assert_eq!(policies.len(), bindings.len());
    for policy in policies {
        let name = text(policy, "/metadata/name");
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        if !name.ends_with("-authors") {
            let conditions = policy["spec"]["matchConditions"].to_string();
            assert!(
                conditions.contains(&user),
                "{values:?}: {name}: {conditions}"
            );
        }
        let binding = bindings
            .iter()
            .find(|binding| text(binding, "/spec/policyName") == name);
        assert_eq!(
            texts(&binding.unwrap()["spec"]["validationActions"]),
            ["Deny"]
        );
    }
}

/// The binary's own command line takes what the Deployments give it, and understands it as meant.
fn the_binary_takes_the_arguments(objects: &[Value], values: &[&str]) {
    the_server_takes_the_arguments(objects, values);
    let container = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0].clone();
    let line = [&["claviger"], texts(&container["args"]).as_slice()].concat();
    let parsed =
        cli::Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{values:?}: {error}"));
    let cli::Command::Controller(args) = parsed.command else {
        panic!("{values:?}: not the controller");
    };
    let port = container["ports"][0]["containerPort"].as_u64();
    assert_eq!(Some(args.admin_address.port().into()), port, "{values:?}");
    let listed = values
        .iter()
        .any(|value| value.contains("scope.mode=namespaces"));
    assert_eq!(listed, !args.namespaces.is_empty(), "{values:?}");
    if let Some(role) = of_kind(objects, "ClusterRole").first() {
        let found = of_kind(objects, "ClusterRole").into_iter().any(|role| {
            text(role, "/metadata/name")
                == BuiltIn::SecretVaultSecretsOfficer.cluster_role(&args.role_prefix)
        });
        assert!(found, "{values:?}: {role}");
    }
    if let Some(namespace) = args.namespaces.first() {
        assert_eq!(namespace, "shop");
        let mut roles = of_kind(objects, "Role");
        // One for the controller's own namespace, and the server's.
        roles.retain(|role| !text(role, "/metadata/name").ends_with("-own-namespace"));
        roles.retain(|role| half(role) != "server");
        let roles: BTreeSet<&str> = roles
            .iter()
            .map(|role| text(role, "/metadata/namespace"))
            .collect();
        assert_eq!(roles, args.namespaces.iter().map(String::as_str).collect());
    }
    // The lease that the Role permits is the one that is asked for.
    if let Some(role) = of_kind(objects, "Role")
        .iter()
        .find(|role| text(role, "/metadata/name").ends_with("-own-namespace"))
    {
        let rules = role["rules"].as_array().unwrap();
        let named: Vec<&str> = rules
            .iter()
            .flat_map(|rule| texts(&rule["resourceNames"]))
            .collect();
        let backup = "claviger-root-key-backup";
        assert_eq!(
            named,
            [
                &*args.lease_name,
                claviger::k8s::seal_key::NAME,
                "claviger-root-key",
                backup,
                claviger::k8s::token_keys::NAME,
                backup,
                claviger::k8s::ca::NAME,
            ],
            "{values:?}"
        );
    }
    // Environment variables that the binary knows, or that the user added.
    let known = ["CLAVIGER_SYSTEM_NAMESPACE", "CLAVIGER_IDENTITY"];
    let env = container["env"].as_array().unwrap();
    assert_eq!(
        env.iter()
            .take(2)
            .map(|entry| text(entry, "/name"))
            .collect::<Vec<_>>(),
        known
    );
    for entry in &env[..2] {
        assert!(entry["valueFrom"]["fieldRef"]["fieldPath"].is_string());
    }
    let help = <cli::Cli as clap::CommandFactory>::command();
    let controller = help.find_subcommand("controller").unwrap();
    let variables: Vec<_> = controller
        .get_arguments()
        .filter_map(clap::Arg::get_env)
        .collect();
    for entry in env {
        let name = text(entry, "/name");
        assert!(
            variables.iter().any(|variable| *variable == name),
            "{name} is read by nobody"
        );
    }
}

/// The same for the server; and both halves are told the same names.
fn the_server_takes_the_arguments(objects: &[Value], values: &[&str]) {
    let servers: Vec<&Value> = of_kind(objects, "Deployment")
        .into_iter()
        .filter(|deployment| half(deployment) == "server")
        .collect();
    let off = values
        .iter()
        .any(|value| value.contains("server.enabled=false"));
    assert_eq!(servers.len(), usize::from(!off), "{values:?}");
    let parse = |deployment: &Value| {
        let args = "/spec/template/spec/containers/0/args";
        let line = [
            &["claviger"],
            texts(deployment.pointer(args).unwrap()).as_slice(),
        ]
        .concat();
        cli::Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{values:?}: {error}"))
    };
    for deployment in servers {
        let cli::Command::Server(args) = parse(deployment).command else {
            panic!("{values:?}: not the server");
        };
        let cli::Command::Controller(controller) = parse(the(objects, "Deployment")).command else {
            panic!("{values:?}: not the controller");
        };
        assert_eq!(
            format!("{:?}", args.names),
            format!("{:?}", controller.names)
        );
        let ports = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert_eq!(ports[0]["containerPort"], args.admin_address.port());
        assert_eq!(ports[1]["containerPort"], args.doors.listen.port());
        let identity = &args.doors.identity;
        let volumes = &deployment["spec"]["template"]["spec"]["volumes"];
        assert_eq!(identity.audit_file.is_some(), volumes[0]["name"] == "audit");
        if identity.audit_file.is_some() {
            let issuers = format!("{:?}", identity.oidc_issuers);
            for given in ["realms/shop", "roles", "id.example.com/keys", "other:"] {
                assert!(issuers.contains(given), "{given}: {issuers}");
            }
        }
        let name = args.doors.server_name("?");
        let service = of_kind(objects, "Service")
            .into_iter()
            .find(|service| service["spec"]["ports"][0]["name"] == "https")
            .unwrap();
        let (host, namespace) = (
            text(service, "/metadata/name"),
            text(service, "/metadata/namespace"),
        );
        if args.names.domain.is_none() {
            assert_eq!(name, format!("{host}.{namespace}.svc"), "{values:?}");
        }
        let role = of_kind(objects, "Role")
            .into_iter()
            .find(|role| half(role) == "server");
        if let (Some(role), Some(secret)) = (role, &args.doors.tls_secret) {
            assert!(texts(&role["rules"][0]["resourceNames"]).contains(&&**secret));
        }
        // It has time to finish what it lets others wait for.
        let grace =
            deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_i64();
        assert!(grace.unwrap() > args.doors.drain_timeout.as_secs() + 5);
    }
}

#[test]
fn the_binary_starts_with_what_the_chart_gives_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let admin = format!("admin.host=127.0.0.1,admin.port={port}");
    for more in [
        "logging.format=json",
        "logging.format=text,logging.level=info\\,claviger=trace,hostReloadDelay=1h30m",
        "rootKey.kind=kms,rootKey.kmsSocket=/run/kms/plugin.sock,vault.ringGrace=1m",
        "scope.mode=namespaces,scope.namespaces={shop,keys},maxConcurrentReconciles=256",
    ] {
        let objects = objects(&["--set", &admin, "--set", more]);
        let container = "/spec/template/spec/containers/0/args";
        let output = Command::new(env!("CARGO_BIN_EXE_claviger"))
            .args(texts(
                the(&objects, "Deployment").pointer(container).unwrap(),
            ))
            .env_clear()
            .env("CLAVIGER_SYSTEM_NAMESPACE", "claviger")
            .env("CLAVIGER_IDENTITY", "claviger-6d4cf56db6-x7k2p")
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        // It gets as far as to look for a cluster; a wrong argument would end it with 2 before.
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{more}: {said}");
        assert!(said.contains("KUBECONFIG"), "{more}: {said}");
    }
}

#[test]
fn wrong_values_are_refused_with_what_is_wrong() {
    let refusals: &[(&str, &[&str])] = &[
        (
            "additional properties 'replicas' not allowed",
            &["--set", "replicas=3"],
        ),
        (
            "additional properties 'foo' not allowed",
            &["--set", "image.foo=3"],
        ),
        (
            "additional properties 'namespace' not allowed",
            &["--set", "scope.namespace=shop"],
        ),
        (
            "additional properties 'enable' not allowed",
            &["--set", "policies.enable=false"],
        ),
        (
            "'/scope/namespaces': minItems: got 0, want 1",
            &["--set", "scope.mode=namespaces"],
        ),
        (
            "scope.namespaces has no effect when scope.mode is cluster",
            &["--set", "scope.namespaces={a}"],
        ),
        (
            "'/scope/mode': value must be one of 'cluster', 'namespaces'",
            &["--set", "scope.mode=everything"],
        ),
        (
            "'/scope/namespaces/0'",
            &["--set", "scope.mode=namespaces,scope.namespaces={Shop}"],
        ),
        (
            "'/scope/namespaces': items at 0 and 1 are equal",
            &["--set", "scope.mode=namespaces,scope.namespaces={a,a}"],
        ),
        (
            "serviceAccount.name is needed when serviceAccount.create is false",
            &["--set", "serviceAccount.create=false"],
        ),
        (
            "podDisruptionBudget takes minAvailable or maxUnavailable, not both",
            &[
                "--set",
                "podDisruptionBudget.minAvailable=1,podDisruptionBudget.maxUnavailable=1",
            ],
        ),
        (
            "every replica would be scraped twice",
            &[
                "--set",
                "serviceMonitor.enabled=true,podMonitor.enabled=true",
            ],
        ),
        (
            "the cluster does not serve monitoring.coreos.com/v1/ServiceMonitor",
            &[
                "--set",
                "serviceMonitor.enabled=true,serviceMonitor.renderMode=failIfMissing",
            ],
        ),
        (
            "'/policies/secretKeepers/0'",
            &["--set", "policies.secretKeepers={a'b}"],
        ),
        (
            "'/policies/secretKeepers/0'",
            &["--set", "policies.secretKeepers={a b}"],
        ),
        ("'/hostReloadDelay'", &["--set", "hostReloadDelay=1d"]),
        ("'/hostReloadDelay'", &["--set", "hostReloadDelay=90"]),
        ("'/restartDelay'", &["--set", "restartDelay=-1s"]),
        (
            "'/rootKey/kind': value must be one of 'secret', 'kms'",
            &["--set", "rootKey.kind=vault"],
        ),
        (
            "rootKey.kmsSocket is needed when rootKey.kind is kms",
            &["--set", "rootKey.kind=kms"],
        ),
        (
            "'/rootKey/kmsSocket'",
            &["--set", "rootKey.kind=kms,rootKey.kmsSocket=plugin.sock"],
        ),
        (
            "'/rootKey/recoveryRecipients/0'",
            &["--set", "rootKey.recoveryRecipients={AGE-SECRET-KEY-1X}"],
        ),
        ("'/vault/rewrapRate'", &["--set", "vault.rewrapRate=0"]),
        ("'/vault/ringGrace'", &["--set", "vault.ringGrace=5"]),
        (
            "'/prometheusRule/backupVerifiedDays'",
            &["--set", "prometheusRule.backupVerifiedDays=0"],
        ),
        (
            "'/maxConcurrentReconciles'",
            &["--set", "maxConcurrentReconciles=0"],
        ),
        (
            "'/maxConcurrentReconciles'",
            &["--set", "maxConcurrentReconciles=257"],
        ),
        ("'/domain'", &["--set", "domain=https://keys.example.com"]),
        ("'/clusterDomain'", &["--set", "clusterDomain="]),
        ("'/server/name'", &["--set", "server.name=Keys.example.com"]),
        ("'/server/tenant'", &["--set", "server.tenant=Contoso"]),
        ("'/server/port'", &["--set", "server.port=0"]),
        (
            "'/server/tokenResources/0'",
            &["--set", "server.tokenResources[0]=http://vault.azure.net"],
        ),
        (
            "'/server/tokenResources/0'",
            &["--set", r"server.tokenResources[0]=https://a\,https://b"],
        ),
        ("'/server/auditFile'", &["--set", "server.auditFile=audit"]),
        (
            "missing property 'prefix'",
            &[
                "--set",
                "server.oidcIssuers[0].url=https://a.example,server.oidcIssuers[0].audience=claviger",
            ],
        ),
        (
            "'/server/oidcIssuers/0/url'",
            &[
                "--set",
                "server.oidcIssuers[0].url=http://a.example,server.oidcIssuers[0].audience=b,server.oidcIssuers[0].prefix=c:",
            ],
        ),
        (
            "additional properties 'issuer' not allowed",
            &["--set", "server.oidcIssuers[0].issuer=https://a.example"],
        ),
        (
            "'/server/maxConnections'",
            &["--set", "server.maxConnections=0"],
        ),
        (
            "'/server/requestTimeout'",
            &["--set", "server.requestTimeout=soon"],
        ),
        ("'/ca/publicRoots'", &["--set", "ca.publicRoots=some"]),
        ("'/ca/lifetime'", &["--set", "ca.lifetime=1y"]),
        (
            "server.serviceAccount.name is needed when server.serviceAccount.create is false",
            &["--set", "server.serviceAccount.create=false"],
        ),
        ("'/admin/port'", &["--set", "admin.port=70000"]),
        ("'/admin/port'", &["--set", "admin.port=0"]),
        ("'/replicaCount'", &["--set", "replicaCount=-1"]),
        ("'/replicaCount'", &["--set-string", "replicaCount=2"]),
        (
            "'/image/pullPolicy'",
            &["--set", "image.pullPolicy=Sometimes"],
        ),
        ("'/image/digest'", &["--set", "image.digest=latest"]),
        ("'/image/repository'", &["--set", "image.repository="]),
        ("'/logging/format'", &["--set", "logging.format=xml"]),
        ("'/logging/level'", &["--set", "logging.level="]),
        ("'/fullnameOverride'", &["--set", "fullnameOverride=Upper"]),
        ("'/namespaceOverride'", &["--set", "namespaceOverride=a/b"]),
        (
            "'/leaderElection/leaseName'",
            &["--set", "leaderElection.leaseName=a_b"],
        ),
        ("'/commonLabels/a'", &["--set", "commonLabels.a=1"]),
        (
            "incompatible with Kubernetes v1.29.0",
            &["--kube-version", "1.29.0"],
        ),
    ];
    let mut wrong = Vec::new();
    for (expected, values) in refusals {
        match template(values) {
            Ok(_) => wrong.push(format!("{values:?}: rendered")),
            Err(said) if said.contains(expected) => {}
            Err(said) => wrong.push(format!("{values:?}: {said}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for values in [["--set", "kep=false"], ["--set", "keep=sometimes"]] {
        let said = helm(&[&["template", "rel", "charts/claviger-crds"], &values[..]].concat());
        assert!(said.unwrap_err().contains("ke"), "{values:?}");
    }
}

#[test]
fn schema_and_values_speak_of_the_same_fields() {
    fn compare(path: &str, schema: &Value, values: &Value, wrong: &mut Vec<String>) {
        let (Some(fields), Some(values)) = (schema["properties"].as_object(), values.as_object())
        else {
            return;
        };
        if schema["additionalProperties"] != false && path != ".global" {
            wrong.push(format!("{path} takes what it does not know"));
        }
        let described: BTreeSet<&String> = fields.keys().collect();
        let given: BTreeSet<&String> = values.keys().collect();
        for name in described.symmetric_difference(&given) {
            wrong.push(format!("{path}.{name} is not in both"));
        }
        for (name, field) in fields {
            if let Some(value) = values.get(name) {
                compare(&format!("{path}.{name}"), field, value, wrong);
            }
        }
    }
    for chart in ["claviger", "claviger-crds"] {
        let folder = root().join("charts").join(chart);
        let schema = fs::read_to_string(folder.join("values.schema.json")).unwrap();
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let values = fs::read_to_string(folder.join("values.yaml")).unwrap();
        let values: Value = serde_saphyr::from_str(&values).unwrap();
        let mut wrong = Vec::new();
        compare("", &schema, &values, &mut wrong);
        // Fields of Kubernetes' own types that stand here to be overwritten are not all of theirs.
        let foreign = [
            "podSecurityContext",
            "securityContext",
            "resources",
            "livenessProbe",
            "readinessProbe",
            "server.resources",
        ];
        wrong.retain(|line| {
            !foreign
                .iter()
                .any(|field| line.starts_with(&format!(".{field}")))
        });
        assert!(wrong.is_empty(), "{chart}: {wrong:#?}");
    }
}

/// Metrics as they are once each has been counted.
fn figures() -> String {
    let metrics = Metrics::default();
    metrics.reconciled("FunctionKey", Duration::from_millis(5));
    metrics.failed("FunctionKey", "Write");
    metrics.turned(Occurrence::Rotated);
    metrics.restarted();
    metrics.refused("handshake");
    metrics.leads(true);
    metrics.counted(Census::default(), claviger::clock::now());
    metrics.accessed("token", "allowed");
    metrics.render()
}

/// The words of a text that begin with `claviger_`.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("claviger_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_metric_of_alerts_and_dashboard_is_one_of_the_binary_and_the_other_way_round() {
    let figures = figures();
    let samples = figures.lines().filter(|line| !line.starts_with('#'));
    let samples: BTreeMap<String, &str> = samples
        .map(|line| (line.split(['{', ' ']).next().unwrap().to_owned(), line))
        .collect();
    let objects = objects(&MONITORING);
    let rule = the(&objects, "PrometheusRule").to_string();
    let dashboards: Vec<&Value> = of_kind(&objects, "ConfigMap");
    let dashboard = text(dashboards[0], "/data/claviger.json");
    serde_json::from_str::<Value>(dashboard).unwrap();
    let mut used = names(&rule);
    assert!(used.len() >= 4, "{used:?}");
    used.extend(names(dashboard));
    let unknown: Vec<&String> = used
        .iter()
        .filter(|name| !samples.contains_key(*name))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?} are not in\n{figures}");
    let families = figures
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    for family in families.map(|line| line.split(' ').next().unwrap()) {
        assert!(
            used.iter().any(|name| name.starts_with(family)),
            "nobody looks at {family}"
        );
    }
    // Documents that speak of metrics speak of these.
    for document in ["charts/claviger/README.md", "charts/claviger/values.yaml"] {
        let written = names(&fs::read_to_string(root().join(document)).unwrap());
        let unknown: Vec<&String> = written
            .iter()
            .filter(|name| !samples.contains_key(*name))
            .collect();
        assert!(unknown.is_empty(), "{document}: {unknown:?}");
    }
}

#[test]
fn queries_group_by_labels_that_the_metrics_have() {
    let figures = figures();
    // Added by every scrape.
    let scraped = ["namespace", "pod"];
    let objects = objects(&MONITORING);
    let mut queries = Vec::new();
    for rule in the(&objects, "PrometheusRule")["spec"]["groups"][0]["rules"]
        .as_array()
        .unwrap()
    {
        queries.push(text(rule, "/expr").to_owned());
        for field in ["summary", "description"] {
            assert!(!rule["annotations"][field].as_str().unwrap().is_empty());
        }
    }
    let dashboard: Value = serde_json::from_str(text(
        of_kind(&objects, "ConfigMap")[0],
        "/data/claviger.json",
    ))
    .unwrap();
    let mut places = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for query in panel["targets"].as_array().unwrap() {
            queries.push(text(query, "/expr").to_owned());
        }
        // No two panels lie upon each other, and no row has a hole at its end.
        let place = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(places.insert((x, y)), "{}", panel["title"]);
            }
        }
    }
    let height = places.iter().map(|(_, y)| y + 1).max().unwrap();
    assert_eq!(places.len() as u64, height * 24, "the dashboard has holes");
    for query in &queries {
        let open = query.matches(['(', '[', '{']).count();
        assert_eq!(open, query.matches([')', ']', '}']).count(), "{query}");
        let Some((_, by)) = query.split_once("by (") else {
            continue;
        };
        let (labels, _) = by.split_once(')').unwrap();
        let metric = names(query).into_iter().next().unwrap();
        let sample = figures
            .lines()
            .find(|line| line.starts_with(&metric))
            .unwrap();
        for label in labels.split(',').map(str::trim) {
            let has = sample.contains(&format!("{label}=\"")) || scraped.contains(&label);
            assert!(has, "{query}: {label} is not in {sample}");
        }
    }
}

/// Each rule of a role, with whether a comment stands right above it.
fn rules(rendered: &str) -> Vec<(String, bool)> {
    let mut rules = Vec::new();
    for document in rendered.split("\n---") {
        let is_role = document
            .lines()
            .any(|line| line == "kind: Role" || line == "kind: ClusterRole");
        if !is_role {
            continue;
        }
        let lines: Vec<&str> = document
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        for pair in lines.windows(2) {
            if pair[1].starts_with("- apiGroups:") || pair[1].starts_with("- nonResourceURLs:") {
                rules.push((pair[1].to_owned(), pair[0].starts_with('#')));
            }
        }
    }
    rules
}

#[test]
fn no_right_is_a_wildcard_or_a_way_up_and_each_says_why_it_is_there() {
    for values in [
        &[][..],
        &[
            "--set",
            "scope.mode=namespaces,scope.namespaces={shop,keys}",
        ],
    ] {
        let rendered = template(values).unwrap();
        let rules = rules(&rendered);
        let silent: Vec<&String> = rules
            .iter()
            .filter(|(_, says)| !says)
            .map(|(rule, _)| rule)
            .collect();
        assert!(
            silent.is_empty(),
            "{values:?}: rules without a comment: {silent:?}"
        );
        let mut counted = 0;
        for role in documents(&rendered)
            .iter()
            .filter(|object| text(object, "/kind").ends_with("Role"))
        {
            let name = text(role, "/metadata/name");
            for rule in role["rules"].as_array().unwrap() {
                counted += 1;
                if name.ends_with("-bind-built-in") {
                    may_bind_the_built_in_roles_only(rule);
                    continue;
                }
                let about_roles = texts(&rule["apiGroups"]) == ["rbac.authorization.k8s.io"];
                for field in ["apiGroups", "resources", "verbs"] {
                    for item in texts(&rule[field]) {
                        let way_up = [
                            "approve",
                            "bind",
                            "escalate",
                            "impersonate",
                            "sign",
                            "serviceaccounts/token",
                        ];
                        assert!(!item.contains('*') && !way_up.contains(&item), "{rule}");
                    }
                }
                if about_roles {
                    writes_bindings_and_reads_roles(rule);
                }
                assert_eq!(rule["nonResourceURLs"], Value::Null);
            }
        }
        // Not a rule escaped the look at the text.
        assert_eq!(counted, rules.len(), "{values:?}");
        assert!(counted >= 10);
    }
}

/// People who administer a namespace may grant these roles there and no others.
fn may_bind_the_built_in_roles_only(rule: &Value) {
    assert_eq!(texts(&rule["verbs"]), ["bind"]);
    assert_eq!(texts(&rule["resources"]), ["clusterroles"]);
    let expected: Vec<String> = BuiltIn::iter()
        .map(|role| role.cluster_role("rel-claviger"))
        .collect();
    assert_eq!(texts(&rule["resourceNames"]), expected);
}

/// What carries RoleAssignments out: it grants what it holds, so `bind` and `escalate` are not needed.
fn writes_bindings_and_reads_roles(rule: &Value) {
    let verbs = texts(&rule["verbs"]);
    let write = ["get", "list", "watch", "create", "patch", "delete"];
    match texts(&rule["resources"]).as_slice() {
        ["roles", "rolebindings"] | ["clusterrolebindings"] => assert_eq!(verbs, write),
        ["clusterroles"] => assert_eq!(verbs, ["get", "list", "watch"]),
        // The server hears of changes.
        ["roles", "rolebindings", "clusterrolebindings"] => assert_eq!(verbs, ["list", "watch"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_built_in_roles_of_the_chart_are_those_of_the_binary() {
    for values in [
        &[][..],
        &[
            "--set",
            "fullnameOverride=aaaaaaaaaabbbbbbbbbbccccccccccd-ddddddddeeeeeeeeee12",
        ],
        &[
            "--set",
            "fullnameOverride=aaaaaaaaaabbbbbbbbbbccccccccccddd-dddddddeeeeeeeee12",
        ],
    ] {
        let objects = objects(values);
        let args = the(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
            .clone();
        let prefix = texts(&args)
            .into_iter()
            .find_map(|arg| arg.strip_prefix("--role-prefix="))
            .unwrap();
        let controller = of_kind(&objects, "ClusterRole")
            .into_iter()
            .find(|role| text(role, "/metadata/name") == prefix)
            .unwrap();
        for role in BuiltIn::iter() {
            let name = role.cluster_role(prefix);
            let made = of_kind(&objects, "ClusterRole")
                .into_iter()
                .find(|made| text(made, "/metadata/name") == name)
                .unwrap_or_else(|| panic!("{values:?}: {role} is not there as {name}"));
            let rules: Vec<(Vec<&str>, Vec<&str>)> = made["rules"]
                .as_array()
                .unwrap()
                .iter()
                .map(|rule| {
                    assert_eq!(texts(&rule["apiGroups"]), ["claviger.dev"]);
                    (texts(&rule["resources"]), texts(&rule["verbs"]))
                })
                .collect();
            let expected: Vec<(Vec<&str>, Vec<&str>)> = role
                .permissions()
                .iter()
                .map(|(resource, verbs)| (vec![*resource], verbs.to_vec()))
                .collect();
            assert_eq!(rules, expected, "{role}");
            // The controller holds what it is to grant, and the policy asks for each of it.
            let policy = of_kind(&objects, "ValidatingAdmissionPolicy")
                .into_iter()
                .find(|policy| text(policy, "/metadata/name").ends_with("role-authors"))
                .unwrap();
            let variable = |name: &str| {
                let variables = policy["spec"]["variables"].as_array().unwrap();
                let found = variables
                    .iter()
                    .find(|variable| text(variable, "/name") == name);
                text(found.unwrap(), "/expression").to_owned()
            };
            assert!(variable("names").contains(&format!("'{role}': '{name}'")));
            let holds = variable(&format!("holds{role}"));
            let asked = holds.matches("variables.may").count();
            let permitted = role.permissions().iter().map(|(_, verbs)| verbs.len());
            assert_eq!(asked, permitted.sum::<usize>(), "{role}");
            // What a policy may spend on all its questions: 28 of them, and one is for `bind`.
            assert!(asked <= 27, "{role}");
            for (resource, verbs) in role.permissions() {
                let held = |verb: &str| {
                    let rules = controller["rules"].as_array().unwrap();
                    rules.iter().any(|rule| {
                        texts(&rule["resources"]).contains(resource)
                            && texts(&rule["verbs"]).contains(&verb)
                            && rule["resourceNames"] == Value::Null
                    })
                };
                assert!(verbs.iter().all(|verb| held(verb)), "{role}: {resource}");
            }
        }
    }
}

#[test]
fn what_built_in_roles_permit_is_added_to_kubernetes_own_only_when_asked_for() {
    let added = |values: &[&str], to: &str| -> BTreeSet<String> {
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        let objects = objects(values);
        let roles = of_kind(&objects, "ClusterRole").into_iter();
        roles
            .filter(|role| role["metadata"]["labels"][&label] == "true")
            .flat_map(|role| role["rules"].as_array().unwrap())
            .filter(|rule| {
                texts(&rule["resources"])
                    .iter()
                    .any(|name| name.contains("/secrets"))
            })
            .flat_map(|rule| texts(&rule["verbs"]))
            .map(str::to_owned)
            .collect()
    };
    for to in ["admin", "edit", "view"] {
        assert!(added(&[], to).is_empty(), "{to}");
    }
    let all = [
        "--set",
        "rbac.builtInRoles.aggregateToAdmin=true,rbac.builtInRoles.aggregateToEdit=true,rbac.builtInRoles.aggregateToView=true",
    ];
    assert_eq!(added(&all, "view"), BTreeSet::from(["list".to_owned()]));
    assert!(added(&all, "edit").contains("get") && !added(&all, "edit").contains("purge"));
    assert!(added(&all, "admin").contains("purge"));
}

#[test]
fn an_install_for_some_namespaces_holds_no_right_over_secrets_of_the_whole_cluster() {
    let objects = objects(&["--set", "scope.mode=namespaces,scope.namespaces={shop}"]);
    for binding in of_kind(&objects, "ClusterRoleBinding") {
        let role = of_kind(&objects, "ClusterRole")
            .into_iter()
            .find(|role| role["metadata"]["name"] == binding["roleRef"]["name"])
            .unwrap();
        let rules = role["rules"].as_array().unwrap();
        if text(role, "/metadata/name").ends_with("-server-reviews") {
            // It asks about callers of all namespaces, and reads no Secret.
            let read: Vec<&str> = rules
                .iter()
                .flat_map(|rule| texts(&rule["resources"]))
                .collect();
            let reviews = ["tokenreviews", "subjectaccessreviews", "serviceaccounts"];
            let rights = ["roles", "rolebindings", "clusterrolebindings"];
            assert_eq!(read, [&reviews[..], &rights].concat());
            continue;
        }
        assert_eq!(rules.len(), 2, "{rules:?}");
        assert_eq!(texts(&rules[1]["resources"]), ["clusterroles"]);
        assert_eq!(texts(&rules[1]["verbs"]), ["get", "list", "watch"]);
        assert_eq!(texts(&rules[0]["resources"]), ["customresourcedefinitions"]);
        assert_eq!(
            texts(&rules[0]["resourceNames"]),
            ["functionkeys.claviger.dev", "secretvaults.claviger.dev"]
        );
        assert_eq!(texts(&rules[0]["verbs"]), ["get"]);
    }
}

#[test]
fn definitions_are_kept_at_uninstall_unless_asked_otherwise() {
    for (chart, enabled, keep) in [
        ("charts/claviger", "crds.enabled", "crds.keep"),
        ("charts/claviger-crds", "", "keep"),
    ] {
        let policy = |more: &[&str]| {
            let rendered = helm(&[&["template", "rel", chart], more].concat()).unwrap();
            let crds: Vec<Value> = of_kind(&documents(&rendered), "CustomResourceDefinition")
                .into_iter()
                .cloned()
                .collect();
            assert_eq!(crds.len(), claviger::api::crds().len());
            crds[0]["metadata"]["annotations"]["helm.sh/resource-policy"].clone()
        };
        assert_eq!(policy(&[]), "keep", "{chart}");
        assert_eq!(
            policy(&["--set", &format!("{keep}=false")]),
            Value::Null,
            "{chart}"
        );
        if !enabled.is_empty() {
            let none = objects(&["--set", &format!("{enabled}=false")]);
            assert!(of_kind(&none, "CustomResourceDefinition").is_empty());
        }
    }
}

#[test]
fn the_release_fits_where_helm_keeps_it_and_renders_the_same_each_time() {
    let rendered = template(&MONITORING).unwrap();
    assert!(rendered.len() < 512 << 10, "{} bytes", rendered.len());
    // Nothing random, and no Secret: what Git holds is what the cluster gets.
    assert_eq!(rendered, template(&MONITORING).unwrap());
    assert!(of_kind(&documents(&rendered), "Secret").is_empty());
    // No hooks either, which GitOps tools and `helm template` treat differently.
    assert!(!rendered.contains("helm.sh/hook"));
}

#[test]
fn the_pods_fit_the_restricted_standard_and_a_network_policy_is_on() {
    let objects = objects(&[]);
    for deployment in of_kind(&objects, "Deployment") {
        the_pods_of_a_half_fit(deployment, &objects);
    }
}

fn the_pods_of_a_half_fit(deployment: &Value, objects: &[Value]) {
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert!(pod["securityContext"]["runAsUser"].as_u64().unwrap() > 0);
    for field in [
        "hostNetwork",
        "hostPID",
        "hostIPC",
        "volumes",
        "initContainers",
    ] {
        assert_eq!(pod[field], Value::Null, "{field}");
    }
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    let context = &containers[0]["securityContext"];
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"]);
    for field in ["privileged", "procMount"] {
        assert_eq!(context[field], Value::Null, "{field}");
    }
    assert_eq!(context["capabilities"]["add"], Value::Null);
    assert_eq!(containers[0]["ports"][0]["hostPort"], Value::Null);
    for bound in [
        "/resources/requests/cpu",
        "/resources/requests/memory",
        "/resources/limits/memory",
    ] {
        assert!(containers[0].pointer(bound).is_some(), "{bound}");
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        assert_eq!(containers[0][probe]["httpGet"]["port"], "admin");
    }
    let policy = of_kind(objects, "NetworkPolicy")
        .into_iter()
        .find(|policy| half(policy) == half(deployment))
        .unwrap();
    assert_eq!(texts(&policy["spec"]["policyTypes"]), ["Ingress", "Egress"]);
    let ports = |rules: &Value| -> BTreeSet<u64> {
        let rules = rules.as_array().unwrap().iter();
        let ports =
            rules.flat_map(|rule| rule["ports"].as_array().expect("a rule names its ports"));
        ports.map(|port| port["port"].as_u64().unwrap()).collect()
    };
    let open = if half(deployment) == "server" {
        BTreeSet::from([8081, 8443])
    } else {
        BTreeSet::from([8081])
    };
    assert_eq!(ports(&policy["spec"]["ingress"]), open);
    assert_eq!(
        ports(&policy["spec"]["egress"]),
        BTreeSet::from([53, 443, 6443])
    );
}

#[test]
fn pods_are_given_their_identity_as_the_values_say_and_the_cluster_can() {
    const SERVED: &str = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy";
    let serving = ["--api-versions", SERVED];
    let policies = |values: &[&str], cluster: &[&str]| {
        let set: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
        let objects = objects(&[&set, cluster].concat());
        let found = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"]
            .map(|kind| of_kind(&objects, kind).len());
        assert_eq!(found[0], found[1], "{values:?}");
        found[0] == 1
    };
    let wish = |wish: &str| format!("podIdentity.enabled={wish}");
    for (wished, old, new) in [
        ("auto", false, true),
        ("true", true, true),
        ("false", false, false),
    ] {
        let wished = wish(wished);
        assert_eq!(policies(&[&wished], &[]), old, "{wished}");
        assert_eq!(policies(&[&wished], &serving), new, "{wished}");
        // There is nothing to prove oneself to.
        let alone = [&*wished, "server.enabled=false"];
        assert!(!policies(&alone, &serving), "{wished}");
    }
    assert!(
        policies(&[], &serving) && !policies(&[], &[]),
        "auto is the default"
    );
    let refusal = template(&["--set", "podIdentity.enabled=maybe"]).unwrap_err();
    assert!(refusal.contains("podIdentity"), "{refusal}");

    // What the pods are told is what the server goes by, where it works.
    let told = |values: &[&str]| {
        let objects = objects(&[&serving, values].concat());
        let policy = of_kind(&objects, "MutatingAdmissionPolicy")[0].to_string();
        let binding = of_kind(&objects, "MutatingAdmissionPolicyBinding")[0].clone();
        (policy, binding)
    };
    let (policy, binding) = told(&[]);
    assert!(
        policy.contains("'https://rel-claviger.claviger.svc/'"),
        "{policy}"
    );
    assert!(policy.contains("'adfs'"), "{policy}");
    assert_eq!(binding["spec"]["matchResources"], Value::Null);
    let (policy, binding) = told(&[
        "--set",
        "server.tenant=other,scope.mode=namespaces,scope.namespaces={shop,claviger}",
    ]);
    assert!(policy.contains("'other'"), "{policy}");
    let chosen = &binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(chosen["key"], "kubernetes.io/metadata.name");
    assert_eq!(texts(&chosen["values"]), ["claviger", "shop"]);
}

#[test]
fn the_charts_are_of_the_version_of_the_binary_and_lint() {
    for chart in ["claviger", "claviger-crds"] {
        let path = root().join("charts").join(chart).join("Chart.yaml");
        let about: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(about["version"], env!("CARGO_PKG_VERSION"), "{chart}");
        assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"), "{chart}");
    }
    helm(&[
        "lint",
        "--strict",
        "charts/claviger",
        "charts/claviger-crds",
    ])
    .unwrap();
}

#[test]
fn what_is_told_after_an_install_fits_the_values() {
    let notes = |values: &[&str]| {
        let release = [
            "install",
            "rel",
            "charts/claviger",
            "--namespace",
            "claviger",
            "--dry-run=client",
        ];
        let said = helm(&[&release, values].concat()).unwrap();
        said.split_once("NOTES:\n").unwrap().1.to_owned()
    };
    let told = notes(&[]);
    assert!(
        told.contains("works in all namespaces") && !told.contains("WARNING"),
        "{told}"
    );
    for (values, expected) in [
        (
            ["--set", "scope.mode=namespaces,scope.namespaces={shop}"],
            "works in: shop",
        ),
        (
            ["--set", "policies.enabled=false"],
            "WARNING: policies.enabled is false",
        ),
        (["--set", "crds.keep=false"], "WARNING: crds.keep is false"),
        (
            ["--set", "crds.enabled=false"],
            "install the chart claviger-crds",
        ),
        (["--set", "rbac.create=false"], "rbac.create is false"),
    ] {
        assert!(notes(&values).contains(expected), "{values:?}");
    }
}

#[test]
fn the_values_of_the_flux_example_are_taken() {
    let flux = fs::read_to_string(root().join("examples/gitops/flux.yaml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut releases = 0;
    for (index, document) in documents(&flux).iter().enumerate() {
        if document["kind"] != "HelmRelease" {
            continue;
        }
        releases += 1;
        let file = folder.path().join(format!("{index}.yaml"));
        fs::write(&file, document["spec"]["values"].to_string()).unwrap();
        let chart = text(document, "/spec/chart/spec/chart");
        helm(&["template", "rel", chart, "--values", file.to_str().unwrap()]).unwrap();
    }
    assert_eq!(releases, 2);
}
