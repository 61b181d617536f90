//! Somebody who asks the apiserver for something, and what is asked for: people, impersonated with
//! the groups that every person has, and ServiceAccounts with real tokens.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::{
    Cluster,
    operator::{kubeconfig_text, service_account_token},
};

/// Somebody who asks the apiserver for something.
pub(crate) struct Actor {
    pub(crate) client: Client,
}

impl Actor {
    /// The administrator of the cluster.
    pub(crate) async fn root(cluster: &Cluster) -> Self {
        Self {
            client: cluster.admin().await,
        }
    }

    /// A user of this name, in the group of all users.
    pub(crate) async fn person(cluster: &Cluster, name: &str) -> Self {
        let mut config = cluster.config().await;
        config.auth_info.impersonate = Some(name.to_owned());
        config.auth_info.impersonate_groups = Some(vec!["system:authenticated".to_owned()]);
        Self {
            client: Client::try_from(config).unwrap(),
        }
    }

    /// A ServiceAccount, with a token such as its pods have.
    pub(crate) async fn account(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        let token = service_account_token(&cluster.admin().await, namespace, name).await;
        let text = kubeconfig_text(cluster, None, &token);
        let kubeconfig = Kubeconfig::from_yaml(&text).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        config.default_retry = false;
        Self {
            client: Client::try_from(config).unwrap(),
        }
    }

    /// Asks; answers what the apiserver says when it refuses.
    pub(crate) async fn does(&self, act: &Act) -> Result<Value, String> {
        let answer = self.client.request::<Value>(act.request()).await;
        answer.map_err(|error| match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        })
    }

    /// Whether RBAC lets it; `resource` as in `secrets`, `deployments.apps/scale`.
    pub(crate) async fn may(&self, verb: &str, resource: &str, namespace: &str) -> bool {
        self.may_with(verb, resource, namespace, None).await
    }

    /// The same, for the object of this name.
    pub(crate) async fn may_with(
        &self,
        verb: &str,
        resource: &str,
        namespace: &str,
        name: Option<&str>,
    ) -> bool {
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
            None => (resource, None),
        };
        let (resource, group) = resource.split_once('.').unwrap_or((resource, ""));
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    subresource,
                    namespace: Some(namespace.to_owned()),
                    name: name.map(str::to_owned),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let reviews = Api::<SelfSubjectAccessReview>::all(self.client.clone());
        let review = reviews
            .create(&PostParams::default(), &review)
            .await
            .unwrap();
        review.status.unwrap().allowed
    }
}

/// Something asked of the apiserver.
#[derive(Clone, Debug)]
pub(crate) struct Act {
    method: http::Method,
    path: String,
    query: Vec<&'static str>,
    content_type: &'static str,
    body: Value,
}

impl Act {
    /// `what` is a resource and a name, as in `secrets/keys` or `deployments/web/scale`.
    fn new(method: http::Method, namespace: &str, what: &str) -> Self {
        let resource = what.split('/').next().unwrap();
        let prefix = match resource {
            "functionkeys" | "roleassignments" | "secretvaults" => "/apis/claviger.dev/v1alpha1",
            "deployments" | "statefulsets" | "daemonsets" | "replicasets" => "/apis/apps/v1",
            "clusterroles" | "clusterrolebindings" | "roles" | "rolebindings" => {
                "/apis/rbac.authorization.k8s.io/v1"
            }
            "configmaps" | "namespaces" | "pods" | "secrets" | "serviceaccounts" => "/api/v1",
            other => panic!("{other} is not known to the tests"),
        };
        let path = match resource {
            "clusterroles" | "clusterrolebindings" | "namespaces" => format!("{prefix}/{what}"),
            _ => format!("{prefix}/namespaces/{namespace}/{what}"),
        };
        Self {
            method,
            path,
            query: Vec::new(),
            content_type: "application/json",
            body: Value::Null,
        }
    }

    fn patch(namespace: &str, what: &str, content_type: &'static str, body: &Value) -> Self {
        Self {
            content_type,
            body: body.clone(),
            ..Self::new(http::Method::PATCH, namespace, what)
        }
    }

    pub(crate) fn get(namespace: &str, what: &str) -> Self {
        Self::new(http::Method::GET, namespace, what)
    }

    pub(crate) fn create(namespace: &str, what: &str, body: &Value) -> Self {
        Self {
            body: body.clone(),
            ..Self::new(http::Method::POST, namespace, what)
        }
    }

    pub(crate) fn replace(namespace: &str, what: &str, body: &Value) -> Self {
        Self {
            body: body.clone(),
            ..Self::new(http::Method::PUT, namespace, what)
        }
    }

    /// A merge patch.
    pub(crate) fn merge(namespace: &str, what: &str, body: &Value) -> Self {
        Self::patch(namespace, what, "application/merge-patch+json", body)
    }

    /// A list of JSON patch operations.
    pub(crate) fn operations(namespace: &str, what: &str, body: &Value) -> Self {
        Self::patch(namespace, what, "application/json-patch+json", body)
    }

    /// A strategic merge patch, as `kubectl patch` sends one.
    pub(crate) fn strategic(namespace: &str, what: &str, body: &Value) -> Self {
        let content_type = "application/strategic-merge-patch+json";
        Self::patch(namespace, what, content_type, body)
    }

    /// Server-side apply.
    pub(crate) fn apply(namespace: &str, what: &str, body: &Value) -> Self {
        let mut act = Self::patch(namespace, what, "application/apply-patch+yaml", body);
        act.query.extend(["fieldManager=test", "force=true"]);
        act
    }

    pub(crate) fn delete(namespace: &str, what: &str) -> Self {
        Self {
            body: json!({"kind": "DeleteOptions", "apiVersion": "v1"}),
            ..Self::new(http::Method::DELETE, namespace, what)
        }
    }

    /// The same, only tried out.
    pub(crate) fn dry(mut self) -> Self {
        // A deletion takes its options from the body and does not look at the query.
        if self.method == http::Method::DELETE {
            self.body["dryRun"] = json!(["All"]);
        }
        self.query.push("dryRun=All");
        self
    }

    /// The same, with this in the query.
    pub(crate) fn with(mut self, query: &'static str) -> Self {
        self.query.push(query);
        self
    }

    fn request(&self) -> http::Request<Vec<u8>> {
        let body = match &self.body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(body).unwrap(),
        };
        http::Request::builder()
            .method(&self.method)
            .uri(format!("{}?{}", self.path, self.query.join("&")))
            .header("content-type", self.content_type)
            .body(body)
            .unwrap()
    }
}
