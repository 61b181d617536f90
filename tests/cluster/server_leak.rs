//! The server with everything logged, and something secret at every place where a request has room
//! for it: it is told nowhere, and neither are tokens and keys.

use std::collections::BTreeSet;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use claviger::server::settings::EXCHANGE;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Operator, Options, Space,
    control_plane::SYSTEM,
    eventually,
    needles::{Canaries, Needles, hex},
    operator::Launcher,
    server::{self, Server, status},
    space::PATIENCE,
};

const FORM: &str = "application/x-www-form-urlencoded";
const KIND: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// What a line of the audit may have, and no other.
const FIELDS: [&str; 11] = [
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

/// The token of a ServiceAccount for an audience.
async fn token(space: &Space, namespace: &str, name: &str, audience: &str) -> String {
    server::token_for(&space.client, namespace, name, audience).await
}

fn form<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

/// One after the other, everything that is asked and answered.
struct Conversation<'a> {
    server: &'a Server,
    roots: String,
    needles: Needles,
    canaries: Canaries,
    asked: usize,
    /// Answers, without the access tokens that are theirs to tell.
    heard: Vec<String>,
    statuses: BTreeSet<u16>,
}

impl Conversation<'_> {
    /// Something to look for, said under this name.
    fn canary(&mut self, what: &str) -> String {
        let canary = self.canaries.make(what);
        self.needles.add(what, canary.as_bytes());
        canary
    }

    /// A token to look for: as a whole, and its parts.
    fn token(&mut self, what: &str, token: &str) {
        self.needles.add(what, token.as_bytes());
        let (said, signature) = token.rsplit_once('.').unwrap();
        self.needles.add(what, signature.as_bytes());
        // Its end too, which is what somebody tells who means to tell little.
        let end = signature.len().saturating_sub(20);
        self.needles.add(what, &signature.as_bytes()[end..]);
        let claims = said.split_once('.').unwrap().1;
        self.needles.add(what, claims.as_bytes());
    }

    async fn ask(&mut self, head: &str, body: &str) -> (u16, Value) {
        let (head, body) = self.server.ask(&self.roots, head, body).await.unwrap();
        self.take(status(&head), &head, &body)
    }

    fn take(&mut self, status: u16, head: &str, body: &str) -> (u16, Value) {
        let value: Value = serde_json::from_str(body).unwrap_or_default();
        let mut told = format!("{head}\n{body}");
        if let Some(token) = value["access_token"].as_str() {
            // It stands there once, and in no header.
            assert_eq!(told.matches(token).count(), 1);
            told = told.replace(token, "");
            self.token("an access token", token);
        }
        self.asked += 1;
        self.statuses.insert(status);
        self.heard.push(told);
        (status, value)
    }

    /// The same over HTTP/2, with the header lists that its library logs.
    async fn ask_h2(&mut self, path: &str, headers: &[(String, String)]) -> u16 {
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(server::roots(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(self.server.address)
            .await
            .unwrap();
        let name = rustls::pki_types::ServerName::try_from(server::NAME).unwrap();
        let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap();
        let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
        let driver = tokio::spawn(connection);
        let mut request = http::Request::get(format!("https://{}{path}", server::NAME));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
        let answer = answer.await.unwrap();
        let code = answer.status().as_u16();
        let head = format!("{:?}", answer.headers());
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(bytes) = body.data().await {
            text.extend_from_slice(&bytes.unwrap());
        }
        self.take(code, &head, &String::from_utf8_lossy(&text));
        drop(send);
        driver.abort();
        code
    }
}

async fn live(format: &'static str) {
    let space = Space::new("server-leak").await;
    let options = Options {
        log_level: "trace",
        log_format: format,
        ..Options::default()
    };
    let launcher = Launcher::new(&space, &options).await;
    let operator: Operator = launcher.spawn();
    operator.leads().await;
    let file = space
        .cluster
        .directory
        .path()
        .join(format!("audit-{format}-{}", space.name));
    let mut more = vec!["--log-level", "trace", "--log-format", format];
    if format == "json" {
        more.extend(["--audit-file", file.to_str().unwrap()]);
    }
    let server = Server::start(&space.cluster, &space.client, &more).await;
    let maps = Api::<ConfigMap>::namespaced(space.client.clone(), &space.name);
    let roots = eventually("the roots", PATIENCE, async || {
        let map = maps.get_opt("claviger-ca").await.unwrap();
        map.and_then(|map| map.data?.remove("ca.crt"))
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), &space.name);
    let web = ServiceAccount {
        metadata: ObjectMeta {
            name: Some("web".to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    accounts.create(&PostParams::default(), &web).await.unwrap();
    let mut talk = Conversation {
        server: &server,
        roots,
        needles: Needles::default(),
        canaries: Canaries::default(),
        asked: 0,
        heard: Vec::new(),
        statuses: BTreeSet::new(),
    };

    // Real secrets: tokens of ServiceAccounts, good and bad, the server's own, and all private keys.
    let assertion = token(&space, &space.name, "web", EXCHANGE).await;
    let elsewhere = token(&space, &space.name, "web", "https://elsewhere.example").await;
    let own = token(&space, SYSTEM, "claviger", EXCHANGE).await;
    let mut forged: Vec<_> = assertion.split('.').map(str::to_owned).collect();
    forged[2] = URL_SAFE_NO_PAD.encode("the signature of another cluster, which says nothing here");
    let forged = forged.join(".");
    for (what, token) in [
        ("a ServiceAccount's token", &assertion),
        ("a token for another audience", &elsewhere),
        ("a token of Claviger's own account", &own),
        ("a token of another cluster", &forged),
        ("the server's own token", &server.token()),
        ("the operator's own token", &launcher.token()),
    ] {
        talk.token(what, token);
    }
    let secrets = Api::<Secret>::namespaced(space.client.clone(), SYSTEM);
    let mut kept = Vec::new();
    for name in ["claviger-ca", "claviger-token-keys"] {
        for (entry, bytes) in secrets.get(name).await.unwrap().data.unwrap() {
            let text = String::from_utf8(bytes.0).unwrap();
            let what = format!("{name}/{entry}");
            let mut found = 0;
            if let Ok(Value::Array(keys)) = serde_json::from_str(&text) {
                for key in keys {
                    let Some(pkcs8) = key["pkcs8"].as_str() else {
                        continue;
                    };
                    let pkcs8 = STANDARD.decode(pkcs8).unwrap();
                    // What comes first names the algorithm, and is the same for all keys.
                    talk.needles.add(&what, &pkcs8[36..]);
                    found += 1;
                }
            }
            let mut private = false;
            for line in text.replace("\\n", "\n").lines() {
                if line.contains("-----") {
                    private = line.contains("BEGIN") && line.contains("PRIVATE KEY");
                } else if private && line.len() > 50 {
                    talk.needles.add(&what, &line.as_bytes()[48..]);
                    talk.needles.add(&what, line.as_bytes());
                    found += 1;
                }
            }
            if found > 0 {
                kept.push((what, text));
            }
        }
    }
    // They are found where they are meant to be.
    assert!(
        kept.len() >= 2,
        "{:?}",
        kept.iter().map(|(what, _)| what).collect::<Vec<_>>()
    );
    for (what, text) in &kept {
        let found = talk.needles.find("its Secret", text);
        assert!(
            found.iter().any(|found| found.starts_with(what.as_str())),
            "{what}"
        );
    }

    // The honest way, as a comparison.
    let port = server.address.port();
    let scope = format!("https://claviger-system.svc:{port}/.default");
    let good = [
        ("grant_type", "client_credentials"),
        ("client_assertion_type", KIND),
        ("client_assertion", &assertion),
        ("client_id", "web"),
        ("scope", &scope),
    ];
    let posts = |query: &str, kind: &str| {
        format!("POST /adfs/oauth2/v2.0/token{query} HTTP/1.1\r\nContent-Type: {kind}")
    };
    let honest: Vec<_> = good
        .iter()
        .copied()
        .filter(|(name, _)| *name != "client_id")
        .collect();
    let (code, body) = talk.ask(&posts("", FORM), &form(honest)).await;
    assert_eq!(code, 200, "{body}");
    let access = body["access_token"].as_str().unwrap().to_owned();
    let object = format!(
        "/claviger/v1/access/{}/secretvaults/payments/secrets/get",
        space.name
    );
    for path in ["/claviger/v1/whoami", &object] {
        for bearer in [&access, &assertion, &elsewhere, &own, &forged] {
            let head = format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {bearer}");
            talk.ask(&head, "").await;
        }
    }
    assert_eq!(talk.statuses, BTreeSet::from([200, 401, 403]));

    // Every field of a form, in forms that are well and that are not.
    let names = [
        "grant_type",
        "client_assertion_type",
        "client_assertion",
        "client_id",
        "scope",
        "client_secret",
        "username",
        "password",
        "refresh_token",
        "code",
        "assertion",
        "claims",
        "client_info",
        "x-client-SKU",
    ];
    for name in names {
        let canary = talk.canary(&format!("field {name}"));
        let fields: Vec<_> = good
            .iter()
            .copied()
            .filter(|(known, _)| *known != name)
            .chain([(name, canary.as_str())])
            .collect();
        talk.ask(&posts("", FORM), &form(fields)).await;
    }
    for token in [&elsewhere, &own, &forged, &access] {
        let fields = good.map(|(name, value)| match name {
            "client_assertion" => (name, token.as_str()),
            other => (other, value),
        });
        let (code, _) = talk.ask(&posts("", FORM), &form(fields)).await;
        assert_eq!(code, 401);
    }
    let [name, text, twice, number] =
        ["field name", "body", "field twice", "jwt"].map(|what| talk.canary(what));
    let document = json!({"grant_type": &text, "client_secret": &text}).to_string();
    let claims = URL_SAFE_NO_PAD
        .encode(json!({"iss": &number, "aud": &number, "exp": 9_999_999_999_i64}).to_string());
    let unlike = format!("eyJhbGciOiJSUzI1NiJ9.{claims}.{number}");
    for (kind, body) in [
        (FORM, form([(name.as_str(), "x")])),
        (
            FORM,
            form([("scope", twice.as_str()), ("scope", twice.as_str())]),
        ),
        (FORM, text.clone()),
        (FORM, format!("{text}&%{text}=%zz&=")),
        (FORM, text.repeat(4000)),
        (
            FORM,
            form([
                ("grant_type", "client_credentials"),
                ("client_assertion_type", KIND),
                ("client_assertion", &unlike),
                ("scope", &scope),
            ]),
        ),
        ("application/json", document.clone()),
        (
            "multipart/form-data; boundary=x",
            format!("--x\r\n\r\n{text}\r\n--x--"),
        ),
        (&text, document),
    ] {
        let query = format!("?client-request-id={text}&{text}");
        let (code, _) = talk.ask(&posts(&query, kind), &body).await;
        assert!((400..500).contains(&code), "{code}");
    }

    // Every header, on every route, known or not; every segment and parameter.
    let headers = [
        "Authorization: Bearer ",
        "Authorization: Basic ",
        "Authorization: Digest username=",
        "Authorization: Negotiate ",
        "Authorization: SharedKey ",
        "Authorization: ",
        "Proxy-Authorization: Bearer ",
        "Cookie: session=",
        "Host: ",
        "User-Agent: ",
        "Referer: https://x/",
        "Origin: https://",
        "Forwarded: for=",
        "X-Forwarded-For: ",
        "X-Forwarded-Host: ",
        "X-Remote-User: ",
        "Impersonate-User: ",
        "X-Functions-Key: ",
        "X-Identity-Header: ",
        "X-Ms-Client-Request-Id: ",
        "X-Request-Id: ",
        "Traceparent: 00-",
        "Tracestate: v=",
        "Baggage: v=",
        "Accept: text/",
        "Accept-Language: ",
        "Content-Type: text/",
        "If-None-Match: ",
        "Range: bytes=",
        "Te: ",
        "X-Anything: ",
    ];
    let routes = [
        "/claviger/v1/whoami".to_owned(),
        object.clone(),
        "/adfs/oauth2/v2.0/token".to_owned(),
        "/adfs/.well-known/openid-configuration".to_owned(),
        "/adfs/discovery/v2.0/keys".to_owned(),
        "/nothing".to_owned(),
    ];
    for (number, header) in headers.into_iter().enumerate() {
        let what = header
            .split(['=', ' '])
            .next()
            .unwrap()
            .trim_end_matches(':');
        let canary = talk.canary(&format!("header {number} {what}"));
        let path = &routes[number % routes.len()];
        for method in ["GET", "POST", "DELETE"] {
            talk.ask(
                &format!("{method} {path} HTTP/1.1\r\n{header}{canary}"),
                &canary,
            )
            .await;
        }
        let bearer = format!("Authorization: Bearer {access}");
        if !header.starts_with("Authorization") {
            talk.ask(
                &format!("GET {path} HTTP/1.1\r\n{bearer}\r\n{header}{canary}"),
                "",
            )
            .await;
        }
        let (name, value) = header.split_once(": ").unwrap();
        if !["host", "te"].contains(&name.to_ascii_lowercase().as_str()) {
            let lists = [
                (name.to_ascii_lowercase(), format!("{value}{canary}")),
                ("x-second".to_owned(), canary.clone()),
            ];
            talk.ask_h2(path, &lists).await;
        }
    }
    let bearers = [("authorization".to_owned(), format!("Bearer {access}"))];
    assert_eq!(talk.ask_h2("/claviger/v1/whoami", &bearers).await, 200);
    let bearers = [("authorization".to_owned(), format!("Bearer {forged}"))];
    assert_eq!(talk.ask_h2("/claviger/v1/whoami", &bearers).await, 401);
    // What may be the name of an object is told to the audit, in lower case as it must be: somebody
    // asked for it who had proved who they are.
    for route in [
        "/claviger/v1/access/{n}/{r}/{o}/{s}/{v}",
        "/{tenant}/oauth2/v2.0/token",
        "/{tenant}/.well-known/openid-configuration",
        "/{tenant}/discovery/keys",
        "/{any}/{thing}",
    ] {
        let count = route.matches('{').count();
        for marked in 0..count {
            let canary = talk.canary(&format!(
                "segment {marked} of {}",
                route.replace(['{', '}', '/'], "")
            ));
            let mut path = String::new();
            let mut seen = 0;
            for segment in route.split('/').skip(1) {
                path.push('/');
                if segment.starts_with('{') {
                    path.push_str(if seen == marked { &canary } else { "get" });
                    seen += 1;
                } else {
                    path.push_str(segment);
                }
            }
            for spelling in [
                path.clone(),
                path.to_lowercase(),
                format!("{path}%ff"),
                format!("{path}?code={canary}&{canary}"),
            ] {
                let bearer = format!("Authorization: Bearer {access}");
                talk.ask(&format!("GET {spelling} HTTP/1.1\r\n{bearer}"), "")
                    .await;
                talk.ask(&format!("GET {spelling} HTTP/1.1"), "").await;
            }
        }
    }
    // A name in the handshake and another in the request open nothing, and name nobody else.
    let other = format!("payments-vault.{}.svc", space.name);
    for (sni, host) in [
        (other.as_str(), server::NAME),
        (server::NAME, other.as_str()),
        (&other, "evil.example"),
    ] {
        for bearer in ["", &access] {
            let mut stream = server.connect(sni, &talk.roots).await.unwrap();
            let head = format!(
                "GET /claviger/v1/whoami HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {bearer}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let (code, _) = talk.take(status(head), head, body);
            assert!(code == 421 && !answer.contains("evil"), "{answer}");
        }
    }
    // What HTTP itself refuses.
    let broken = talk.canary("broken request");
    for head in [
        format!("GET / HTTP/1.1\r\nX-{broken} : x"),
        format!("{broken} / HTTP/1.1"),
        format!("GET {broken} HTTP/1.1"),
        format!("GET / HTTP/{broken}"),
    ] {
        if let Ok((head, body)) = server.ask(&talk.roots, &head, "").await {
            talk.heard.push(format!("{head}\n{body}"));
        }
    }

    // Everywhere.
    for path in ["/metrics", "/readyz", "/livez", "/nothing"] {
        talk.heard.push(server.admin(path).await.unwrap());
    }
    let (needles, heard) = (&talk.needles, &talk.heard);
    let mut found: Vec<String> = heard
        .iter()
        .flat_map(|text| needles.find("an answer", text))
        .collect();
    let logs = [
        ("the server's log", server.logged()),
        ("the operator's log", operator.logged()),
    ];
    for (place, text) in &logs {
        found.extend(needles.find(place, text));
    }
    let audit = if format == "json" {
        assert_eq!(server.printed(), "");
        std::fs::read_to_string(&file).unwrap()
    } else {
        server.printed()
    };
    found.extend(needles.find("the audit", &audit));
    let kinds = "configmaps,events,events.events.k8s.io,serviceaccounts,roles,rolebindings,leases,functionkeys,secretvaults,roleassignments";
    for namespace in [&*space.name, SYSTEM] {
        let get = [
            "get",
            kinds,
            "--namespace",
            namespace,
            "--output",
            "json",
            "--show-managed-fields",
        ];
        found.extend(needles.find("objects", &space.cluster.kubectl(&get, "").await.unwrap()));
        let get = [
            "get",
            "secrets",
            "--namespace",
            namespace,
            "--output",
            "jsonpath={.items[*].metadata}",
        ];
        found.extend(needles.find(
            "the metadata of Secrets",
            &space.cluster.kubectl(&get, "").await.unwrap(),
        ));
    }
    found.extend(needles.find(
        "the apiserver's audit",
        &std::fs::read_to_string(&space.cluster.audit).unwrap(),
    ));
    let process = std::path::PathBuf::from(format!("/proc/{}", server.pid()));
    for name in ["cmdline", "environ", "comm", "status"] {
        let text = std::fs::read(process.join(name)).unwrap();
        found.extend(needles.find(name, &String::from_utf8_lossy(&text)));
    }
    let meant = [
        server.folder().with_extension("log"),
        server.folder().with_extension("out"),
        file.clone(),
    ];
    for descriptor in std::fs::read_dir(process.join("fd")).unwrap() {
        let target = std::fs::read_link(descriptor.unwrap().path()).unwrap_or_default();
        assert!(
            !target.is_file() || meant.contains(&target),
            "{}",
            target.display()
        );
    }
    let left: Vec<_> = std::fs::read_dir(server.folder()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(found.is_empty(), "{} times: {found:#?}", found.len());

    // The audit has one line for each request, of known fields only.
    let lines: Vec<Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(lines.len() >= talk.asked, "{} {}", lines.len(), talk.asked);
    let mut doors = BTreeSet::new();
    for line in &lines {
        for field in line.as_object().unwrap().keys() {
            assert!(FIELDS.contains(&field.as_str()), "{line}");
        }
        doors.insert(line["door"].as_str().unwrap());
    }
    assert_eq!(
        doors,
        BTreeSet::from([
            "access",
            "discovery",
            "keys",
            "listener",
            "none",
            "token",
            "whoami"
        ])
    );
    // All is logged, and what would be told would be found.
    let log = &logs[0].1;
    assert!(log.contains("TRACE"), "nothing is traced");
    let planted = [
        assertion.as_bytes(),
        access.as_bytes(),
        &STANDARD.decode("c2VjcmV0IG9mIG5vYm9keQ==").unwrap(),
    ];
    for (number, secret) in planted.into_iter().enumerate() {
        let mut own = Needles::default();
        own.add("planted", secret);
        for text in [
            hex(secret),
            STANDARD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
            format!("{secret:?}"),
        ] {
            let text = format!("{log} {text}");
            assert!(!own.find("planted", &text).is_empty());
            assert!(
                number > 1 || !needles.find("planted", &text).is_empty(),
                "{text:.80}"
            );
        }
    }
    assert!(!log.contains("panicked"));
    println!(
        "{format}: {} forms looked for in {} answers, {} bytes of log, {} lines of audit; {} canaries",
        needles.len(),
        talk.heard.len(),
        log.len(),
        lines.len(),
        talk.canaries.made.len()
    );
    assert!(server.stop().await && operator.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_callers_send_or_get_is_told_in_text_logs_or_anywhere_else() {
    live("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_callers_send_or_get_is_told_in_json_logs_or_anywhere_else() {
    live("json").await;
}
