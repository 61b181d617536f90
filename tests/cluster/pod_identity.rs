//! What the chart's policy makes of pods: those with the label get an identity, no others change.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Api,
    api::{ListParams, ObjectMeta, PostParams},
};
use serde_json::{Value, json};

use crate::{
    facts::make,
    support::{
        Space,
        actors::{Act, Actor},
        eventually, server,
        space::PATIENCE,
    },
};

const VOLUME: &str = "claviger-identity";
const MOUNT: &str = "/var/run/secrets/claviger.dev/identity";

/// Somebody who makes pods in a namespace.
struct Maker<'a> {
    space: &'a Space,
    root: Actor,
}

impl Maker<'_> {
    /// What a pod with the label and this spec comes to, tried out.
    async fn labelled(&self, spec: &Value) -> Value {
        self.with(spec, &json!({"claviger.dev/use-identity": "true"}))
            .await
    }

    async fn with(&self, spec: &Value, labels: &Value) -> Value {
        let made = self.dry(&pod("tried", labels, spec)).await;
        made.unwrap_or_else(|why| panic!("{labels} {spec}: {why}"))["spec"].clone()
    }

    async fn dry(&self, pod: &Value) -> Result<Value, String> {
        let act = Act::create(&self.space.name, "pods", pod);
        self.root.does(&act.dry()).await
    }

    /// Sees that a pod has the whole identity of an account, in every container.
    fn has_identity(&self, spec: &Value, account: &str) {
        let volumes: Vec<&Value> = named(&spec["volumes"], VOLUME);
        let wanted = json!({"name": VOLUME, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {
                "audience": "api://AzureADTokenExchange", "expirationSeconds": 3600, "path": "token",
            }},
            {"configMap": {"name": "claviger-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ]}});
        assert_eq!(volumes, [&wanted]);
        let containers = containers(spec);
        assert!(!containers.is_empty());
        for container in containers {
            let mounts = named(&container["volumeMounts"], VOLUME);
            let wanted = json!({"name": VOLUME, "mountPath": MOUNT, "readOnly": true});
            assert_eq!(mounts, [&wanted], "{container}");
            for (name, value) in self.environment(account) {
                let found = named(&container["env"], name);
                assert_eq!(found, [&json!({"name": name, "value": value})]);
            }
        }
    }

    /// A pod with one more container for debugging.
    async fn debugged(&self, pod: &Value, name: &str) -> Value {
        let mut pod = pod.clone();
        let list = &mut pod["spec"]["ephemeralContainers"];
        let mut containers = list.as_array().cloned().unwrap_or_default();
        containers.push(json!({"name": name, "image": "none"}));
        *list = containers.into();
        let path = format!(
            "pods/{}/ephemeralcontainers",
            pod["metadata"]["name"].as_str().unwrap()
        );
        let act = Act::replace(&self.space.name, &path, &pod);
        self.root.does(&act).await.unwrap()
    }

    fn environment(&self, account: &str) -> [(&'static str, String); 7] {
        let ca = format!("{MOUNT}/ca.crt");
        [
            ("AZURE_AUTHORITY_HOST", format!("https://{}/", server::NAME)),
            (
                "AZURE_CLIENT_ID",
                format!("system:serviceaccount:{}:{account}", self.space.name),
            ),
            ("AZURE_FEDERATED_TOKEN_FILE", format!("{MOUNT}/token")),
            ("AZURE_TENANT_ID", "adfs".to_owned()),
            ("NODE_EXTRA_CA_CERTS", ca.clone()),
            ("REQUESTS_CA_BUNDLE", ca.clone()),
            ("SSL_CERT_FILE", ca),
        ]
    }
}

fn pod(name: &str, labels: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec,
    })
}

fn containers(spec: &Value) -> Vec<&Value> {
    ["containers", "ephemeralContainers", "initContainers"]
        .into_iter()
        .flat_map(|list| spec[list].as_array().into_iter().flatten())
        .collect()
}

fn named<'a>(list: &'a Value, name: &str) -> Vec<&'a Value> {
    let list = list.as_array().into_iter().flatten();
    list.filter(|one| one["name"] == name).collect()
}

/// Whether nothing in a pod speaks of an identity.
fn has_none(spec: &Value) -> bool {
    let text = spec.to_string();
    !["AZURE_", "CA_CERTS", "CA_BUNDLE", "SSL_CERT", "claviger"]
        .iter()
        .any(|word| text.contains(word))
}

fn one() -> Value {
    json!({"containers": [{"name": "app", "image": "none"}]})
}

async fn maker(space: &Space) -> Maker<'_> {
    let maker = Maker {
        space,
        root: Actor::root(&space.cluster).await,
    };
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), &space.name);
    let web = ServiceAccount {
        metadata: ObjectMeta {
            name: Some("web".to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    accounts.create(&PostParams::default(), &web).await.unwrap();
    // A namespace gets its account `default` a moment after it was made, and a policy takes some
    // seconds to be in force.
    let labels = json!({"claviger.dev/use-identity": "true"});
    eventually("the policy to be in force", PATIENCE, async || {
        let made = maker.dry(&pod("tried", &labels, &one())).await?;
        if has_none(&made["spec"]) {
            Err(made.to_string())
        } else {
            Ok(())
        }
    })
    .await;
    maker
}

#[tokio::test(flavor = "multi_thread")]
async fn labelled_pods_get_an_identity_and_keep_what_they_set_themselves() {
    let space = Space::new("pod-identity").await;
    let maker = maker(&space).await;

    // Every container, the kinds of initial ones too, beside what else the pod has.
    let many = json!({
        "serviceAccountName": "web",
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "containers": [
            {"name": "app", "image": "none", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]},
            {"name": "side", "image": "none", "env": [{"name": "OWN", "value": "1"}]},
        ],
        "initContainers": [
            {"name": "first", "image": "none"},
            {"name": "sidecar", "image": "none", "restartPolicy": "Always"},
        ],
    });
    let spec = maker.labelled(&many).await;
    maker.has_identity(&spec, "web");
    assert_eq!(named(&spec["volumes"], "scratch").len(), 1);
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], "scratch");
    assert_eq!(named(&spec["containers"][1]["env"], "OWN")[0]["value"], "1");
    // What was admitted comes to the same when it is submitted again.
    assert_eq!(maker.labelled(&spec).await, spec);

    // A pod that has no volume at all, and ones that are hardened.
    let mut bare = one();
    bare["automountServiceAccountToken"] = json!(false);
    let spec = maker.labelled(&bare).await;
    maker.has_identity(&spec, "default");
    assert_eq!(spec["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(maker.labelled(&spec).await, spec);
    let mut hard = one();
    hard["hostUsers"] = json!(false);
    hard["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000, "fsGroup": 1000});
    hard["containers"][0]["securityContext"] =
        json!({"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false});
    maker.has_identity(&maker.labelled(&hard).await, "default");

    // What a container sets itself stays, where it stands; the rest comes.
    let mut own = one();
    let environment = json!([
        {"name": "AZURE_CLIENT_ID", "value": "shop/other"},
        {"name": "SSL_CERT_FILE", "valueFrom": {"configMapKeyRef": {"name": "own", "key": "file"}}},
        {"name": "NODE_EXTRA_CA_CERTS", "value": ""},
        {"name": "TELLS", "value": "$(AZURE_CLIENT_ID)"},
    ]);
    own["containers"][0]["env"] = environment.clone();
    let spec = maker.labelled(&own).await;
    let env = spec["containers"][0]["env"].as_array().unwrap();
    let names: BTreeSet<&str> = env
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!((env.len(), names.len()), (8, 8), "{env:?}");
    let own_names = |one: &&Value| environment.as_array().unwrap().contains(one);
    // An empty value is not sent back, but it is still the container's own.
    let kept: Vec<&str> = env
        .iter()
        .filter(|one| own_names(one) || one["name"] == "NODE_EXTRA_CA_CERTS")
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        kept,
        [
            "AZURE_CLIENT_ID",
            "SSL_CERT_FILE",
            "NODE_EXTRA_CA_CERTS",
            "TELLS"
        ]
    );
    let empty = named(&spec["containers"][0]["env"], "NODE_EXTRA_CA_CERTS")[0];
    assert_eq!(empty["value"].as_str().unwrap_or_default(), "");
    // So does a volume of the same name, and what a container has mounted there.
    let mut taken = one();
    taken["volumes"] = json!([{"name": VOLUME, "emptyDir": {}}]);
    let spec = maker.labelled(&taken).await;
    assert_eq!(
        named(&spec["volumes"], VOLUME),
        [&json!({"name": VOLUME, "emptyDir": {}})]
    );
    let mut mounted = one();
    mounted["volumes"] = json!([{"name": "mine", "emptyDir": {}}]);
    mounted["containers"][0]["volumeMounts"] = json!([{"name": "mine", "mountPath": MOUNT}]);
    let spec = maker.labelled(&mounted).await;
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    let there: Vec<&Value> = mounts
        .iter()
        .filter(|mount| mount["mountPath"] == MOUNT)
        .collect();
    assert_eq!(there, [&json!({"name": "mine", "mountPath": MOUNT})]);

    // Lists that are no sets, and long ones.
    let mut twice = one();
    twice["containers"][0]["env"] =
        json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]);
    twice["containers"][0]["ports"] =
        json!([{"containerPort": 80, "name": "a"}, {"containerPort": 80, "name": "b"}]);
    let spec = maker.labelled(&twice).await;
    maker.has_identity(&spec, "default");
    let values = named(&spec["containers"][0]["env"], "A");
    assert_eq!(values.len(), 2, "{values:?}");
    let environment: Vec<Value> = (0..400)
        .map(|number| json!({"name": format!("VARIABLE_{number}"), "value": "v"}))
        .collect();
    let containers: Vec<Value> = (0..12)
        .map(|number| json!({"name": format!("c{number}"), "image": "none", "env": environment}))
        .collect();
    let long = json!({"containers": containers});
    maker.has_identity(&maker.labelled(&long).await, "default");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_controllers_get_an_identity_and_pods_without_the_label_do_not() {
    let space = Space::new("pod-identity-paths").await;
    let maker = maker(&space).await;

    for labels in [
        json!({}),
        json!({"claviger.dev/use-identity": "True"}),
        json!({"claviger.dev/use-identity": "false"}),
        json!({"claviger.dev/use-identity": ""}),
        json!({"use-identity": "true"}),
    ] {
        let spec = maker.with(&one(), &labels).await;
        assert!(has_none(&spec), "{labels}: {spec}");
    }
    // What a kubelet shows of a pod that it runs by a file of its own: it may have no account.
    let labels = json!({"claviger.dev/use-identity": "true"});
    let mut mirror = pod("mirror", &labels, &one());
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "digest"});
    mirror["spec"]["nodeName"] = json!("node");
    let made = maker.dry(&mirror).await.unwrap();
    assert!(has_none(&made["spec"]), "{made}");

    // By a Deployment, whose template stays as it is.
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": space.name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web", "claviger.dev/use-identity": "true"}},
                "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "none"}]},
            },
        },
    });
    make(&space, &deployment).await;
    let pods = Api::<Pod>::namespaced(space.client.clone(), &space.name);
    let made = eventually("the Deployment's pods", PATIENCE, async || {
        let params = ListParams::default().labels("app=web");
        let found = pods.list(&params).await.unwrap().items;
        if found.len() == 2 {
            Ok(found)
        } else {
            Err(format!("{} pods", found.len()))
        }
    })
    .await;
    for pod in made {
        let spec = serde_json::to_value(pod.spec.unwrap()).unwrap();
        maker.has_identity(&spec, "web");
    }
    let deployment = space.deployments().get("web").await.unwrap();
    assert_eq!(deployment.metadata.generation, Some(1));

    // By those who apply a pod, and apply it again.
    let applied = pod("applied", &labels, &one());
    let apply = Act::apply(&space.name, "pods/applied", &applied);
    let first = maker.root.does(&apply).await.unwrap();
    maker.has_identity(&first["spec"], "default");
    let again = maker.root.does(&apply).await.unwrap();
    assert_eq!(again["spec"], first["spec"]);

    // Containers that are put into a running pod for debugging, one after another.
    let mut debugged = again;
    for name in ["debug", "another"] {
        debugged = maker.debugged(&debugged, name).await;
        maker.has_identity(&debugged["spec"], "default");
    }
    assert_eq!(containers(&debugged["spec"]).len(), 3);
    // One that came to the label later has nothing to mount.
    let act = Act::create(&space.name, "pods", &pod("late", &json!({}), &one()));
    maker.root.does(&act).await.unwrap();
    let act = Act::merge(
        &space.name,
        "pods/late",
        &json!({"metadata": {"labels": labels}}),
    );
    let late = maker.root.does(&act).await.unwrap();
    assert!(has_none(&maker.debugged(&late, "debug").await["spec"]));
}
