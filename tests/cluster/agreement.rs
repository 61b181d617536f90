//! What is told of rights is what the apiserver decides: the server's doors, `kubectl auth can-i`,
//! `who-can` and `access` all say the same, and none of them says it by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use claviger::domain::role::{BuiltIn, Kind};
use futures::StreamExt;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use strum::IntoEnumIterator;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::client::TlsStream;

use crate::{
    facts::claviger,
    support::{
        Cluster, Operator, Options, Space,
        actors::Actor,
        control_plane::{SYSTEM, run, write_private},
        eventually,
        operator::{kubeconfig_text, service_account_token},
        server::{self, Server},
        space::PATIENCE,
        tool,
    },
};

/// A namespace that nothing is granted in but by wide scopes.
const ELSEWHERE: &str = "elsewhere";

#[tokio::test(flavor = "multi_thread")]
async fn doors_reviews_and_tables_agree_on_every_role_and_binding() {
    let cluster = Cluster::start().await;
    cluster.install("claviger", SYSTEM, &[]).await;
    let space = Space::on(Arc::new(cluster), "agreement").await;
    space.put_namespace(ELSEWHERE, json!({})).await;
    let options = Options {
        namespaces: vec![String::new()],
        ..Options::default()
    };
    let _operator = Operator::start(&space, options).await;
    let server = Server::start(&space.cluster, &space.client, &[]).await;
    let holders = assign_every_role_at_every_scope(&space).await;
    doors_agree(&space, &server, &holders).await;
    tables_agree(&space, &holders).await;
    what_may_not_be_listed_is_said(&space).await;
}

/// A ServiceAccount, the role it has and where.
struct Holder {
    name: String,
    role: BuiltIn,
    scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Cluster,
    Namespace,
    Namespaces,
    Resource,
}

impl Holder {
    /// The one resource that a narrow role is about.
    const RESOURCE: &str = "payments";

    fn user(&self, space: &Space) -> String {
        format!("system:serviceaccount:{}:{}", space.name, self.name)
    }

    /// Whether it should be allowed to.
    fn should(&self, space: &Space, asked: &Asked) -> bool {
        let there = match self.scope {
            Scope::Cluster => true,
            Scope::Namespace | Scope::Namespaces => asked.namespace == space.name,
            Scope::Resource => {
                asked.namespace == space.name && asked.name.as_deref() == Some(Self::RESOURCE)
            }
        };
        let permits = |(resource, verbs): &(&str, &[&str])| {
            *resource == asked.resource && verbs.contains(&asked.verb.as_str())
        };
        there && self.role.permissions().iter().any(permits)
    }
}

/// Something that somebody may be allowed to.
#[derive(Clone, Debug)]
struct Asked {
    verb: String,
    /// `secretvaults/secrets`.
    resource: String,
    namespace: String,
    name: Option<String>,
}

impl Asked {
    fn of(verb: &str, resource: &str, namespace: &str, name: Option<&str>) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.map(str::to_owned),
        }
    }

    fn path(&self) -> String {
        let (resource, subresource) = self.resource.split_once('/').unwrap();
        format!(
            "/claviger/v1/access/{}/{resource}/{}/{subresource}/{}",
            self.namespace,
            self.name.as_deref().unwrap(),
            self.verb
        )
    }
}

async fn assign_every_role_at_every_scope(space: &Space) -> Vec<Holder> {
    let mut holders = Vec::new();
    for role in BuiltIn::iter() {
        for (scope, name) in [
            (Scope::Cluster, "cluster"),
            (Scope::Namespace, "namespace"),
            (Scope::Namespaces, "namespaces"),
            (Scope::Resource, "resource"),
        ] {
            holders.push(Holder {
                name: format!("{}-{name}", role.suffix()),
                role,
                scope,
            });
        }
    }
    for holder in &holders {
        account(space, &space.name, &holder.name).await;
        let (namespace, scope) = match holder.scope {
            Scope::Cluster => (SYSTEM, json!({"cluster": {}})),
            Scope::Namespace => (&*space.name, json!({"namespace": {}})),
            Scope::Namespaces => (SYSTEM, json!({"namespaces": {"names": [space.name]}})),
            Scope::Resource => (
                &*space.name,
                json!({"resource": {"kind": holder.role.kind().to_string(), "name": Holder::RESOURCE}}),
            ),
        };
        let spec = json!({
            "principal": {"kind": "ServiceAccount", "name": holder.name, "namespace": space.name},
            "role": {"builtIn": holder.role.to_string()},
            "scope": scope,
        });
        space.assign_in(namespace, &holder.name, &spec).await;
    }
    for holder in &holders {
        let namespace = match holder.scope {
            Scope::Cluster | Scope::Namespaces => SYSTEM,
            Scope::Namespace | Scope::Resource => &space.name,
        };
        space
            .until_told_in(namespace, &holder.name, "True Granted")
            .await;
    }
    holders
}

async fn account(space: &Space, namespace: &str, name: &str) {
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), namespace);
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
}

/// Every verb that a door has, by what it is of: those of all roles together.
fn doors() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut doors = BTreeMap::<_, BTreeSet<_>>::new();
    for (resource, verbs) in BuiltIn::iter().flat_map(BuiltIn::permissions) {
        if resource.contains('/') {
            doors.entry(*resource).or_default().extend(*verbs);
        }
    }
    doors
}

/// The server's door by its real answers, and the apiserver's by `--as`.
async fn doors_agree(space: &Space, server: &Server, holders: &[Holder]) {
    let maps = Api::<ConfigMap>::namespaced(space.client.clone(), &space.name);
    let roots = maps.get("claviger-ca").await.unwrap().data.unwrap()["ca.crt"].clone();
    let counts: Vec<[u32; 2]> = futures::stream::iter(holders)
        .map(|holder| async {
            let stream = server.connect(server::NAME, &roots).await.unwrap();
            let token = token(space, &holder.name).await;
            let door = tokio::sync::Mutex::new(Door { stream, token });
            let user = holder.user(space);
            let mut config = space.cluster.config().await;
            // As `kubectl auth can-i --as` says it: no groups, which the apiserver adds itself.
            config.auth_info.impersonate = Some(user.clone());
            let can_i = Actor {
                client: Client::try_from(config).unwrap(),
            };
            let mut counts = [0, 0];
            for asked in questions(space, holder) {
                let should = holder.should(space, &asked);
                if counts == [0, 0] {
                    // Bindings and decisions take a moment to be seen.
                    assert!(should, "the first question is one that is answered yes");
                    eventually("the role to admit", PATIENCE, async || {
                        match door.lock().await.status(&asked.path()).await {
                            200 => Ok(()),
                            other => Err(format!("{other} {asked:?}")),
                        }
                    })
                    .await;
                }
                let resource = asked.resource.replacen('/', ".claviger.dev/", 1);
                let name = asked.name.as_deref();
                let may = can_i
                    .may_with(&asked.verb, &resource, &asked.namespace, name)
                    .await;
                assert_eq!(may, should, "can-i: {user} {asked:?}");
                let status = door.lock().await.status(&asked.path()).await;
                let said = if should { 200 } else { 403 };
                assert_eq!(status, said, "door: {user} {asked:?}");
                counts[usize::from(should)] += 1;
            }
            counts
        })
        .buffer_unordered(6)
        .collect()
        .await;
    let [no, yes] = counts
        .iter()
        .fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
    println!("{} accounts: {yes} times yes, {no} times no", holders.len());
    assert!(yes > 250 && no > 1000, "{yes} {no}");

    // kubectl itself, as people type it. It asks about kinds only that the apiserver serves.
    let user = "system:serviceaccount:".to_owned() + &space.name;
    for (account, verb, what, subresource, answer) in [
        (
            "secret-vault-secrets-user-resource",
            "get",
            "secretvaults/payments",
            "secrets",
            "yes",
        ),
        (
            "secret-vault-secrets-user-resource",
            "get",
            "secretvaults/other",
            "secrets",
            "no",
        ),
        (
            "secret-vault-secrets-user-resource",
            "purge",
            "secretvaults/payments",
            "secrets",
            "no",
        ),
        (
            "function-key-operator-namespace",
            "delete",
            "functionkeys/any",
            "value",
            "yes",
        ),
    ] {
        let mut command = Command::new(tool("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(&space.cluster.kubeconfig)
            .args(["auth", "can-i", verb, what, "--namespace", &space.name])
            .arg(format!("--subresource={subresource}"))
            .arg(format!("--as={user}:{account}"));
        let said = command.output().await.unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert_eq!(said.trim(), answer, "{account} {verb} {what}");
    }
}

/// All doors of the resource that a role is about, and what the role permits for another and elsewhere.
fn questions(space: &Space, holder: &Holder) -> Vec<Asked> {
    let mut questions = Vec::new();
    for (resource, verbs) in doors() {
        for verb in verbs {
            let asked = |namespace, name| Asked::of(verb, resource, namespace, Some(name));
            let mut own = vec![asked(&*space.name, Holder::RESOURCE)];
            if holder.should(space, &own[0]) {
                own.push(asked(&*space.name, "other"));
                own.push(asked(ELSEWHERE, Holder::RESOURCE));
            }
            questions.extend(own);
        }
    }
    // What is allowed first.
    questions.sort_by_key(|asked| !holder.should(space, asked));
    questions
}

async fn token(space: &Space, account: &str) -> String {
    let exchange = "api://AzureADTokenExchange";
    server::token_for(&space.client, &space.name, account, exchange).await
}

/// The server, as somebody who has a token and stays connected.
struct Door {
    stream: TlsStream<TcpStream>,
    token: String,
}

impl Door {
    async fn status(&mut self, path: &str) -> u16 {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
            server::NAME,
            self.token
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let body = loop {
            let read = self.stream.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
            let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&answer[..body]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        while answer.len() < body + length {
            assert!(self.stream.read_buf(&mut answer).await.unwrap() > 0);
        }
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

/// Rules of Roles and, without a namespace, ClusterRoles: groups, resources, verbs, names. `own` stands for
/// the namespace of the test.
const RULES: [(&str, &str, [&str; 4]); 11] = [
    ("", "any-secrets", ["*", "*/secrets", "get,list", ""]),
    ("", "everything", ["*", "*", "*", ""]),
    (
        "",
        "part",
        [OURS, "functionkeys/value,tokenproviders/*", "delete", ""],
    ),
    ("own", "listen", [OURS, "tokenproviders/hubs", "listen", ""]),
    ("own", "manifests", [OURS, "secretvaults", "*", ""]),
    ("own", "mixed", [OURS, SECRETS, "list", "other"]),
    (
        "own",
        "mixed",
        ["apps,claviger.dev", "pods,functionkeys", "get", ""],
    ),
    (
        "own",
        "one",
        [OURS, SECRETS, "get,purge", "payments,refunds"],
    ),
    ("own", "stars", [OURS, "secretvaults/*", "get", ""]),
    ("own", "wrong-group", ["", SECRETS, "*", ""]),
    (ELSEWHERE, "one", [OURS, SECRETS, "get", ""]),
];

/// Who is bound to them.
const BINDINGS: [(&str, &str, &[&str]); 13] = [
    (
        "",
        "ClusterRole/any-secrets",
        &["Group readers", "Group system:unauthenticated"],
    ),
    ("", "ClusterRole/everything", &["User carol"]),
    (
        "",
        "ClusterRole/part",
        &["Group system:serviceaccounts", "User dave"],
    ),
    (
        "own",
        "ClusterRole/any-secrets",
        &["Group system:serviceaccounts:elsewhere"],
    ),
    ("own", "ClusterRole/missing", &["User erin"]),
    ("own", "ClusterRole/whole", &["Group devs", "User frank"]),
    ("own", "Role/listen", &["Group system:authenticated"]),
    ("own", "Role/manifests", &["User gina", "User alice"]),
    (
        "own",
        "Role/mixed",
        &[
            "User system:serviceaccount:elsewhere:as-user",
            "User sa:elsewhere/robot",
        ],
    ),
    ("own", "Role/one", &["User alice", "ServiceAccount robot"]),
    ("own", "Role/stars", &["User dave"]),
    ("own", "Role/wrong-group", &["User dave"]),
    (
        ELSEWHERE,
        "Role/one",
        &["User frank", "User eve\nforged\u{1b}[31m"],
    ),
];

const OURS: &str = "claviger.dev";
const SECRETS: &str = "secretvaults/secrets";

/// Bindings of every form that RBAC knows, beside those of the RoleAssignments.
async fn bind_in_every_way(space: &Space) {
    let own = space.name.as_str();
    let object = |namespace: &str, kind: &str, name: &str| {
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}, "rules": [],
        });
        object["kind"] = match namespace {
            "" => json!(format!("Cluster{kind}")),
            _ => json!(kind),
        };
        match namespace {
            "" => {}
            "own" => object["metadata"]["namespace"] = json!(own),
            other => object["metadata"]["namespace"] = json!(other),
        }
        object
    };
    let mut roles = BTreeMap::new();
    for (namespace, name, rule) in RULES {
        let made = roles
            .entry((namespace, name))
            .or_insert_with(|| object(namespace, "Role", name));
        let [groups, resources, verbs, names] =
            rule.map(|list| list.split(',').collect::<Vec<_>>());
        let mut rule = json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
        if names != [""] {
            rule["resourceNames"] = json!(names);
        }
        made["rules"].as_array_mut().unwrap().push(rule);
    }
    let label = json!({"test/part-of": "whole"});
    roles.get_mut(&("", "part")).unwrap()["metadata"]["labels"] = label.clone();
    let mut whole = object("", "Role", "whole");
    whole["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": label}]});
    let bindings = BINDINGS.map(|(namespace, role, subjects)| {
        let (kind, name) = role.split_once('/').unwrap();
        let mut binding = object(namespace, "RoleBinding", &format!("to-{name}"));
        binding.as_object_mut().unwrap().remove("rules");
        binding["roleRef"] =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
        let subjects = subjects.iter().map(|subject| {
            let (kind, name) = subject.split_once(' ').unwrap();
            match kind {
                "ServiceAccount" => json!({"kind": kind, "name": name, "namespace": ELSEWHERE}),
                _ => json!({"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}),
            }
        });
        binding["subjects"] = subjects.collect();
        binding
    });
    let items: Vec<Value> = roles.into_values().chain([whole]).chain(bindings).collect();
    let all = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let made = space.cluster.kubectl(&["create", "-f", "-"], &all).await;
    made.unwrap();
    // The aggregation is a controller's work, and the authorizer hears of it later still.
    eventually("the bindings to be known", PATIENCE, async || {
        let asked = Asked::of("delete", "functionkeys/value", own, Some("x"));
        let last = Asked::of("get", "secretvaults/secrets", own, None);
        if review(space, "user:frank", &asked).await && review(space, "group:readers", &last).await
        {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
}

/// What the apiserver says, asked with the groups that it puts somebody into itself.
async fn review(space: &Space, principal: &str, asked: &Asked) -> bool {
    let (kind, name) = principal.split_once(':').unwrap();
    let (user, groups) = match kind {
        "group" => ("somebody".to_owned(), vec![name.to_owned()]),
        "serviceaccount" => {
            let (namespace, name) = name.split_once('/').unwrap();
            (
                format!("system:serviceaccount:{namespace}:{name}"),
                groups_of(principal),
            )
        }
        _ => (name.to_owned(), groups_of(principal)),
    };
    let (resource, subresource) = match asked.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (&*asked.resource, None),
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user),
            groups: Some(groups),
            resource_attributes: Some(ResourceAttributes {
                group: Some("claviger.dev".to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(asked.verb.clone()),
                namespace: Some(asked.namespace.clone()),
                name: asked.name.clone(),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews = Api::<SubjectAccessReview>::all(space.client.clone());
    let review = reviews
        .create(&PostParams::default(), &review)
        .await
        .unwrap();
    review.status.unwrap().allowed
}

/// The groups that the apiserver puts somebody into itself.
fn groups_of(principal: &str) -> Vec<String> {
    match principal.split_once(':').unwrap() {
        ("serviceaccount", name) => {
            let (namespace, _) = name.split_once('/').unwrap();
            vec![
                "system:authenticated".to_owned(),
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ]
        }
        ("user", "system:anonymous") => vec!["system:unauthenticated".to_owned()],
        ("user", _) => vec!["system:authenticated".to_owned()],
        _ => Vec::new(),
    }
}

/// The rows of a table without its head and without what is said below it.
fn rows(table: &str) -> Vec<Vec<String>> {
    let lines = table.lines().take_while(|line| !line.is_empty());
    lines
        .skip(1)
        .map(|line| {
            let cells = line.split("  ").map(str::trim);
            cells
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .collect()
}

async fn tables_agree(space: &Space, holders: &[Holder]) {
    bind_in_every_way(space).await;
    let own = space.name.as_str();
    let mut principals: Vec<String> = [
        "user:alice",
        "user:carol",
        "user:dave",
        "user:erin",
        "user:frank",
        "user:gina",
        "user:nobody",
        "user:sa:elsewhere/robot",
        "user:system:anonymous",
        "group:devs",
        "group:readers",
        "group:system:masters",
        "group:system:serviceaccounts",
        "group:system:serviceaccounts:elsewhere",
        "serviceaccount:elsewhere/robot",
        "serviceaccount:elsewhere/as-user",
        "serviceaccount:elsewhere/plain",
    ]
    .map(str::to_owned)
    .to_vec();
    let of_roles = holders.iter().filter(|holder| {
        matches!(
            holder.role,
            BuiltIn::SecretVaultReader
                | BuiltIn::SecretVaultAdministrator
                | BuiltIn::FunctionKeyOperator
                | BuiltIn::WebPubSubServiceOwner
        )
    });
    principals.extend(of_roles.map(|holder| format!("serviceaccount:{own}/{}", holder.name)));

    // What the tables say of each question, and what the apiserver says.
    let access: BTreeMap<&String, Vec<Vec<String>>> = futures::stream::iter(&principals)
        .map(|principal| async move {
            let table = claviger(space, &["access", principal]).await.unwrap();
            (principal, rows(&table))
        })
        .buffer_unordered(4)
        .collect()
        .await;
    let mut counts = [0, 0];
    for (verb, kind, name, namespace) in [
        ("get", Kind::SecretVault, Some("payments"), own),
        ("get", Kind::SecretVault, Some("other"), own),
        ("get", Kind::SecretVault, None, own),
        ("get", Kind::SecretVault, Some("payments"), ELSEWHERE),
        ("list", Kind::SecretVault, Some("other"), own),
        ("list", Kind::SecretVault, Some("payments"), ELSEWHERE),
        ("purge", Kind::SecretVault, Some("refunds"), own),
        ("frob", Kind::SecretVault, Some("payments"), own),
        ("get", Kind::FunctionKey, Some("payments"), own),
        ("delete", Kind::FunctionKey, Some("payments"), own),
        ("delete", Kind::FunctionKey, None, ELSEWHERE),
        ("send", Kind::TokenProvider, Some("payments"), own),
        ("listen", Kind::TokenProvider, Some("payments"), own),
        ("listen", Kind::TokenProvider, Some("payments"), ELSEWHERE),
    ] {
        let target = match name {
            Some(name) => format!("{}/{name}", kind.resource()),
            None => kind.resource().to_owned(),
        };
        let args = ["who-can", verb, &target, "--namespace", namespace];
        let table = claviger(space, &args).await.unwrap();
        let who = rows(&table);
        let subs = kind.subresources().iter().filter(|sub| **sub != "status");
        let of_kind = subs.map(|sub| format!("{}/{sub}", kind.resource()));
        for resource in std::iter::once(kind.resource().to_owned()).chain(of_kind) {
            let asked = Asked::of(verb, &resource, namespace, name);
            let reviewed: Vec<(&String, bool)> = futures::stream::iter(&principals)
                .map(|principal| {
                    let asked = &asked;
                    async move { (principal, review(space, principal, asked).await) }
                })
                .buffer_unordered(8)
                .collect()
                .await;
            for (principal, may) in reviewed {
                let mut names: Vec<String> = groups_of(principal)
                    .iter()
                    .map(|group| format!("group:{group}"))
                    .collect();
                names.push(principal.clone());
                let listed = who
                    .iter()
                    .any(|row| row[0] == resource && names.contains(&row[1]));
                assert_eq!(listed, may, "who-can: {principal} {asked:?}\n{table}");
                let has = |list: &str, one: &str| {
                    list == "*" || list.split(',').any(|it| it == one || it == "*")
                };
                let told = access[principal].iter().any(|row| {
                    let is_named = match name {
                        Some(name) => has(&row[3], name),
                        None => row[3] == "*",
                    };
                    has(&row[0], namespace) && row[1] == resource && has(&row[2], verb) && is_named
                });
                assert_eq!(
                    told, may,
                    "access: {principal} {asked:?}\n{:?}",
                    access[principal]
                );
                counts[usize::from(may)] += 1;
            }
        }
    }
    println!("tables: {} times yes, {} times no", counts[1], counts[0]);
    assert!(counts[0] > 300 && counts[1] > 150, "{counts:?}");
    names_are_told_as_they_are(space).await;
}

/// By which binding, and names that would deceive a terminal.
async fn names_are_told_as_they_are(space: &Space) {
    let table = claviger(
        space,
        &["who-can", "get", "secretvaults/payments", "-n", &space.name],
    )
    .await
    .unwrap();
    let found = |row: [&str; 3]| rows(&table).iter().any(|other| *other == row);
    let sub = "secretvaults/secrets";
    assert!(
        found([sub, "user:alice", "RoleBinding/to-one to Role/one"]),
        "{table}"
    );
    assert!(
        found([
            sub,
            "user:carol",
            "ClusterRoleBinding/to-everything to ClusterRole/everything"
        ]),
        "{table}"
    );
    assert!(
        table.contains("what a vault syncs stands in Secrets"),
        "{table}"
    );
    let table = claviger(
        space,
        &["who-can", "get", "secretvaults/payments", "-n", ELSEWHERE],
    )
    .await
    .unwrap();
    assert!(table.contains("user:eve\\nforged\\u{1b}[31m"), "{table}");
    assert!(!table.contains('\u{1b}'), "{table}");
    let nobody = claviger(space, &["access", "user:nobody-at-all"])
        .await
        .unwrap();
    assert!(nobody.contains("ask for group:NAME"), "{nobody}");
}

/// A table that lacks something says so, and shows what can be seen.
async fn what_may_not_be_listed_is_said(space: &Space) {
    account(space, ELSEWHERE, "asker").await;
    let cluster = &space.cluster;
    let token = service_account_token(&space.client, ELSEWHERE, "asker").await;
    let kubeconfig = cluster.directory.path().join("asker.kubeconfig");
    write_private(&kubeconfig, &kubeconfig_text(cluster, None, &token));
    let asks = async |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_claviger"));
        run(
            command
                .env_clear()
                .env("KUBECONFIG", &kubeconfig)
                .args(args),
            "",
        )
        .await
        .unwrap()
    };
    let who_can = ["who-can", "get", "secretvaults/payments", "-n", &space.name];
    let unseen = |table: &str| -> Vec<String> {
        let lines = table.lines();
        lines
            .filter_map(|line| line.strip_prefix("you may not list "))
            .map(|line| line.split(':').next().unwrap().to_owned())
            .collect()
    };
    let all = [
        "ClusterRoles",
        "ClusterRoleBindings",
        "Roles",
        "RoleBindings",
    ];
    for args in [&who_can[..], &["access", "user:alice"]] {
        let table = asks(args).await;
        assert_eq!(unseen(&table), all, "{table}");
        assert!(rows(&table).is_empty(), "{table}");
    }
    for args in [
        &[
            "role",
            "seer",
            "--verb=list",
            "--resource=roles,rolebindings",
        ][..],
        &[
            "rolebinding",
            "seer",
            "--role=seer",
            "--serviceaccount=elsewhere:asker",
        ],
    ] {
        let args = [&["create", "-n", &space.name], args].concat();
        cluster.kubectl(&args, "").await.unwrap();
    }
    let table = eventually("the right to be known", PATIENCE, async || {
        let table = asks(&who_can).await;
        if unseen(&table) == all[..2] {
            Ok(table)
        } else {
            Err(table)
        }
    })
    .await;
    let seen = rows(&table);
    assert!(seen.iter().any(|row| row[1] == "user:alice"), "{table}");
    assert!(!seen.iter().any(|row| row[1] == "user:carol"), "{table}");
}
