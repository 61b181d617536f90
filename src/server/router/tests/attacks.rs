//! What somebody tries who means no good: tokens that are none, requests that can be read in two
//! ways, names that look like others, floods. Each is told apart from an honest request that goes
//! well right beside it.

use proptest::prelude::*;

use super::*;
use crate::server::gate;

const WHOAMI: &str = "/claviger/v1/whoami";
const TOKEN: &str = "/adfs/oauth2/v2.0/token";

/// A token of these two texts, which need not be JSON, and this signature.
fn raw(header: &str, claims: &str, signature: &str) -> String {
    let [header, claims] = [header, claims].map(|text| URL_SAFE_NO_PAD.encode(text));
    format!("{header}.{claims}.{signature}")
}

/// The claims of a good token as text, to be spoilt.
fn claims() -> String {
    let token = web();
    let payload = token.split('.').nth(1).unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// A request that came from this address.
fn from(peer: [u8; 4], path: &str, bearer: &str) -> Request {
    let mut request = Request::get(path)
        .header("authorization", format!("Bearer {bearer}"))
        .body(Body::empty())
        .unwrap();
    let peer = SocketAddr::from((peer, 40_000));
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

#[tokio::test]
async fn what_no_apiserver_signs_is_refused_without_asking_it() {
    let scene = Scene::set(&[]);
    let now = clock::now().as_second();
    let good = claims();
    let rs256 = r#"{"alg":"RS256","kid":"k"}"#;
    let spoilt = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        raw(rs256, &good.replacen(from, to, 1), "good")
    };
    let exp = format!("\"exp\":{}", now + 3600);
    let aud = format!("\"aud\":[\"{EXCHANGE}\"]");
    let mut cases = vec![
        ("no signature", raw(rs256, &good, "")),
        (
            "two parts",
            raw(rs256, &good, "").trim_end_matches('.').to_owned(),
        ),
        ("four parts", raw(rs256, &good, "good.good")),
        ("no JSON", raw(rs256, "x", "good")),
        ("a header that is no JSON", raw("x", &good, "good")),
        (
            "no base64",
            format!("*.{}.good", URL_SAFE_NO_PAD.encode(&good)),
        ),
        ("a line end within", raw(rs256, &good, "go\nod")),
        (
            "two algorithms",
            raw(r#"{"alg":"RS256","alg":"none"}"#, &good, "good"),
        ),
        ("no algorithm", raw("{}", &good, "good")),
        (
            "a list of algorithms",
            raw(r#"{"alg":["RS256"]}"#, &good, "good"),
        ),
        ("no issuer", spoilt("\"iss\"", "\"no\"")),
        ("two issuers", spoilt("{", "{\"iss\":\"https://other\",")),
        (
            "two audiences by two claims",
            spoilt("{", "{\"aud\":\"https://other\","),
        ),
        ("two ends", spoilt("{", "{\"exp\":1,")),
        ("an end that was", spoilt(&exp, &format!("\"exp\":{now}"))),
        ("an end before the beginning", spoilt(&exp, "\"exp\":-1")),
        (
            "an end in fractions that was",
            spoilt(&exp, &format!("\"exp\":{now}.0")),
        ),
        ("an end in words", spoilt(&exp, "\"exp\":\"never\"")),
        (
            "an end that is a list",
            spoilt(&exp, "\"exp\":[9999999999]"),
        ),
        ("no end that can be", spoilt(&exp, "\"exp\":-1e300")),
        ("no audience", spoilt(&aud, "\"aud\":null")),
        ("an empty audience", spoilt(&aud, "\"aud\":[]")),
        ("an audience in other letters", spoilt("AzureAD", "azuread")),
        (
            "an audience with a slash more",
            spoilt("Exchange\"", "Exchange/\""),
        ),
        (
            "an audience that begins so",
            spoilt("Exchange\"", "Exchange2\""),
        ),
        (
            "a nest of lists",
            raw(rs256, &("[".repeat(5000) + &"]".repeat(5000)), "good"),
        ),
        (
            "more than is read",
            raw(rs256, &good, &"g".repeat(17 << 10)),
        ),
    ];
    for alg in [
        "none", "None", "", "HS256", "HS512", "dir", "A128KW", "es256",
    ] {
        let header = json!({"alg": alg, "kid": "k"}).to_string();
        cases.push((
            "an algorithm without a key pair",
            raw(&header, &good, "good"),
        ));
    }
    for (what, token) in cases {
        // As a form has it, since a header cannot hold all of these.
        let told = refused(&scene, &form(&token, OWN)).await;
        assert_eq!(
            (told.0, told.1.as_str()),
            (401, "invalid_client"),
            "{what}: {}",
            told.2
        );
        if !token.contains('\n') {
            let (status, _, body) = scene.get(WHOAMI, &token).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {body}");
        }
    }
    assert_eq!(scene.apiserver.asked("tokenreviews"), 0);
    // What only the apiserver can tell, it is asked for: another cluster's signature, another kid.
    for header in [
        rs256,
        r#"{"alg":"RS256","kid":"../../etc/passwd","jku":"https://evil/keys"}"#,
    ] {
        let token = raw(header, &good, "another-clusters");
        assert_eq!(scene.get(WHOAMI, &token).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(scene.apiserver.asked("tokenreviews"), 2);
    assert_eq!(scene.get(WHOAMI, &web()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn whoever_floods_with_well_made_nonsense_waits_behind_itself() {
    let scene = Scene::set(&[]);
    // Some honest caller was there before: the issuer is known.
    assert_eq!(
        scene.send(from([10, 0, 0, 1], WHOAMI, &web())).await.0,
        StatusCode::OK
    );
    let slow = Duration::from_millis(100);
    *scene.apiserver.slow.lock().unwrap() = slow;
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let nonsense = |number: usize| raw(r#"{"alg":"RS256"}"#, &claims(), &format!("bad{number}"));
    let mut flood: futures::stream::FuturesUnordered<_> = (0..1000)
        .map(|number| scene.send(from([10, 0, 0, 66], WHOAMI, &nonsense(number))))
        .collect();
    let honest = async {
        let mut slowest = Duration::ZERO;
        for number in 0..20 {
            let asked = tokio::time::Instant::now();
            let token = account_token(&json!({"jti": number.to_string()}));
            let (status, ..) = scene.send(from([10, 0, 0, 2], WHOAMI, &token)).await;
            assert_eq!(status, StatusCode::OK);
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    };
    let answers = async {
        use futures::StreamExt as _;
        let mut counts = BTreeMap::new();
        while let Some((status, headers, _)) = flood.next().await {
            let comes_again = headers.contains_key(header::RETRY_AFTER);
            assert_eq!(comes_again, status == StatusCode::SERVICE_UNAVAILABLE);
            *counts.entry(status.as_u16()).or_insert(0) += 1;
        }
        (counts, begun.elapsed())
    };
    let (slowest, (counts, took)) = tokio::join!(honest, answers);
    // An honest caller waits for its own review, and for nobody else's.
    assert!(slowest < slow * 2, "{slowest:?}");
    // 16 at a time, for as long as anybody waits for a place.
    let reviewed =
        gate::OF_ONE * usize::try_from(gate::PATIENCE.as_millis() / slow.as_millis()).unwrap();
    let most = reviewed + 2 * gate::OF_ONE;
    assert!(
        counts[&401] >= reviewed / 2 && counts[&401] <= most,
        "{counts:?}"
    );
    assert_eq!(counts.values().sum::<usize>(), 1000, "{counts:?}");
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!(took <= gate::PATIENCE + slow * 2, "{took:?}");
    assert_eq!(
        scene.apiserver.reviewing.lock().unwrap()[1],
        gate::OF_ONE + 1
    );

    // Tokens of other clusters have few places, from wherever they come.
    scene.apiserver.reviewing.lock().unwrap()[1] = 0;
    let strangers = (0..60_u8).map(|number| {
        let token = account_token(&json!({"iss": "https://other", "jti": number}));
        scene.send(from(
            [10, 1, 0, number],
            WHOAMI,
            &token.replace(".good", ".bad"),
        ))
    });
    for (status, ..) in futures::future::join_all(strangers).await {
        assert_ne!(status, StatusCode::OK);
    }
    assert_eq!(
        scene.apiserver.reviewing.lock().unwrap()[1],
        gate::OF_STRANGERS
    );
    let lines = scene.lines().await;
    assert!(lines.iter().any(|line| line["reason"] == "crowded"));
}

#[tokio::test]
async fn whoever_asks_for_ever_other_names_waits_behind_itself() {
    let scene = Scene::set(&[]);
    let api = ("shop/api".to_owned(), "u-2".to_owned());
    scene.apiserver.accounts.lock().unwrap().extend([api]);
    let api = json!({"sub": "system:serviceaccount:shop:api", "uid": "u-2"});
    let (flooder, honest) = (web(), account_token(&api));
    for token in [&flooder, &honest] {
        assert_eq!(scene.get(WHOAMI, token).await.0, StatusCode::OK);
    }
    let slow = Duration::from_millis(100);
    *scene.apiserver.slow.lock().unwrap() = slow;
    tokio::time::pause();
    let path = |name: &str| format!("/claviger/v1/access/shop/secretvaults/{name}/secrets/get");
    let flood = (0..1000).map(|number| {
        let path = path(&format!("vault-{number}"));
        let (scene, flooder) = (&scene, &flooder);
        async move { scene.get(&path, flooder).await.0 }
    });
    let others = async {
        for number in 0..10 {
            let asked = tokio::time::Instant::now();
            let (status, ..) = scene.get(&path(&format!("own-{number}")), &honest).await;
            assert_eq!(status, StatusCode::FORBIDDEN);
            assert!(asked.elapsed() < slow * 2, "{:?}", asked.elapsed());
        }
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(flood), others);
    let crowded = StatusCode::SERVICE_UNAVAILABLE;
    let refused = answers.iter().filter(|status| **status == crowded).count();
    // 16 at a time, for as long as anybody waits for a place.
    let most =
        gate::OF_ONE * usize::try_from(gate::PATIENCE.as_millis() / slow.as_millis()).unwrap();
    assert!(refused >= 1000 - most - 2 * gate::OF_ONE, "{refused}");
    let lines = scene.lines().await;
    assert!(lines.iter().any(|line| line["reason"] == "crowded"));
}

#[tokio::test]
async fn a_request_that_says_something_twice_is_refused() {
    let scene = Scene::set(&[]);
    let good = form(&web(), OWN);
    let (status, ..) = scene.post(TOKEN, &good).await;
    assert_eq!(status, StatusCode::OK);
    for (name, value) in form_urlencoded::parse(good.as_bytes()) {
        for value in [&*value, "other", ""] {
            let twice = form_urlencoded::Serializer::new(String::new())
                .append_pair(&name, value)
                .finish();
            let told = refused(&scene, &format!("{good}&{twice}")).await;
            assert_eq!(told.0, 400, "{name}: {}", told.2);
            // The same name in another spelling is the same name.
            let spelt = name
                .bytes()
                .fold(String::new(), |spelt, byte| format!("{spelt}%{byte:02x}"));
            let told = refused(&scene, &format!("{spelt}={value}&{good}")).await;
            assert_eq!(told.0, 400, "{name}: {}", told.2);
        }
    }
    for values in [
        ["Bearer", "Bearer"],
        ["Basic", "Bearer"],
        ["Bearer", "Basic"],
    ] {
        let mut request = Request::get(WHOAMI);
        for scheme in values {
            request = request.header("authorization", format!("{scheme} {}", web()));
        }
        let (status, ..) = scene.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    // A token in another place than the header is none.
    for path in [
        format!("{WHOAMI}?access_token={}", web()),
        format!("{WHOAMI}?Authorization=Bearer%20{}", web()),
    ] {
        assert_eq!(scene.get(&path, "").await.0, StatusCode::UNAUTHORIZED);
    }
    // What counts is the body, and that it is a form.
    let (status, _, body) = scene.post(&format!("{TOKEN}?{good}"), "").await;
    assert_eq!(
        (status, &body["error"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    let (status, ..) = scene
        .post(
            &format!("{TOKEN}?grant_type=password&client_secret=x&scope=y"),
            &good,
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    for kind in [
        "",
        "text/plain",
        "application/json",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded2",
        "x; application/x-www-form-urlencoded",
    ] {
        let request = Request::post(TOKEN)
            .header("content-type", kind)
            .body(Body::from(good.clone()));
        let (status, _, body) = scene.send(request.unwrap()).await;
        assert_eq!(
            (status, &body["error"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{kind}"
        );
    }
    let (status, ..) = scene.get(TOKEN, "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn what_proxies_and_browsers_add_makes_nobody_somebody_else() {
    let scene = Scene::set(&[]);
    let own = (
        "system:serviceaccount:shop:web".to_owned(),
        "get".to_owned(),
    );
    scene.apiserver.rights.lock().unwrap().extend([
        own,
        ("admin".to_owned(), "get".to_owned()),
        ("admin".to_owned(), "delete".to_owned()),
    ]);
    let bearer = web();
    let access = scene.access_token(&bearer).await;
    let (_, _, honest) = scene.get(WHOAMI, &access).await;
    let (_, _, configuration) = scene
        .get("/adfs/.well-known/openid-configuration", "")
        .await;
    let added = [
        ("x-remote-user", "admin"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-scopes", "x"),
        ("impersonate-user", "admin"),
        ("impersonate-group", "system:masters"),
        ("impersonate-uid", "u-0"),
        ("x-forwarded-user", "admin"),
        ("x-forwarded-client-cert", "Subject=\"CN=admin\""),
        ("x-ms-client-principal", "e30="),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1;host=evil.example;proto=http"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-prefix", "/evil"),
        ("x-original-url", "/claviger/v1/whoami"),
        ("x-rewrite-url", "/claviger/v1/whoami"),
        ("x-http-method-override", "DELETE"),
        ("x-http-method", "DELETE"),
        ("x-method-override", "DELETE"),
        ("proxy-authorization", "Bearer admin"),
        ("cookie", "access_token=admin; Authorization=Bearer admin"),
    ];
    // Host need not agree with anything: nothing is decided by it.
    for host in [
        "claviger.claviger-system.svc",
        "evil.example",
        "payments-vault.shop.svc",
        "127.0.0.1",
        "a:b:c",
        "",
    ] {
        let asks = |path: &str, bearer: Option<&str>| {
            let mut request = from([10, 0, 0, 7], path, bearer.unwrap_or_default());
            if bearer.is_none() {
                request.headers_mut().remove("authorization");
            }
            request.headers_mut().insert("host", host.parse().unwrap());
            for (name, value) in added {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            request
        };
        for bearer in [&bearer, &access] {
            let (status, _, body) = scene.send(asks(WHOAMI, Some(bearer))).await;
            assert_eq!((status, &body), (StatusCode::OK, &honest), "{host}");
            assert_eq!(
                scene.send(asks(ACCESS, Some(bearer))).await.0,
                StatusCode::OK
            );
            let deletes = ACCESS.replace("/get", "/delete");
            let (status, ..) = scene.send(asks(&deletes, Some(bearer))).await;
            assert_eq!(status, StatusCode::FORBIDDEN);
            let elsewhere = scene.send(asks("/nothing", Some(bearer))).await.0;
            assert_eq!(elsewhere, StatusCode::NOT_FOUND);
        }
        let (status, headers, _) = scene.send(asks(WHOAMI, None)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let challenge = headers[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert!(!challenge.contains("evil"), "{challenge}");
        // Whoever asks where to log in is not sent to where somebody else says.
        for path in ["", "https://evil.example"] {
            let path = format!("{path}/adfs/.well-known/openid-configuration");
            let (_, _, told) = scene.send(asks(&path, None)).await;
            assert_eq!(told, configuration);
        }
    }
    for line in scene
        .lines()
        .await
        .iter()
        .filter(|line| line["source"] != Value::Null)
    {
        assert_eq!(line["source"], "10.0.0.7");
    }
    let asked = scene.apiserver.asked.lock().unwrap().clone();
    for (_, review) in asked.iter().filter(|(path, _)| path.contains("subject")) {
        assert_eq!(review["spec"]["user"], "system:serviceaccount:shop:web");
    }
}

#[tokio::test]
async fn a_name_means_what_was_authorised_or_nothing() {
    let scene = Scene::set(&[]);
    let user = "system:serviceaccount:shop:web".to_owned();
    for verb in ["get", "GET", "*", "", "g.et", "g%65t"] {
        scene
            .apiserver
            .rights
            .lock()
            .unwrap()
            .push((user.clone(), verb.to_owned()));
    }
    let good = ["shop", "secretvaults", "payments", "secrets", "get"];
    let path = |segments: [&str; 5]| format!("/claviger/v1/access/{}", segments.join("/"));
    let bearer = web();
    let evil = [
        ".",
        "..",
        "%2e",
        "%2e%2e",
        "%2E%2E",
        "..%2f",
        "%2f",
        "a%2fb",
        "%5c",
        "a%5cb",
        "%00",
        "a%00",
        "%0a",
        "a%0d%0a",
        "%20",
        "a%20",
        "%09a",
        "A",
        "PAYMENTS",
        "Shop",
        "%EF%BD%93hop",
        "%D1%95hop",
        "s%C8%9Bop",
        "%C2%A0",
        "a%E2%80%8Bb",
        "%ff",
        "%c0%ae",
        "%252e",
        "%25",
        "*",
        "%2a",
        "a;b",
        "a%3Bb",
        "a,b",
        "a+b",
        "a:b",
        "a%3ab",
        "a@b",
        "a=b",
        "a&b",
        "a_b",
        "-a",
        "a-",
        "a..b",
        ".a",
        "a.",
        "~",
        "%7E",
        "'",
        "%22",
        "%3Cscript%3E",
        "$(id)",
        "{name}",
        "%7Bname%7D",
    ];
    let denied = scene.apiserver.asked("subjectaccessreviews");
    for position in 0..good.len() {
        for name in evil.iter().copied().chain([&*"a".repeat(254)]) {
            let mut segments = good;
            segments[position] = name;
            let asked = path(segments);
            let request = Request::get(&asked).header("authorization", format!("Bearer {bearer}"));
            // Some are no addresses at all.
            let Ok(request) = request.body(Body::empty()) else {
                continue;
            };
            let (status, _, body) = scene.send(request).await;
            assert!(
                [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND].contains(&status),
                "{asked}: {status}"
            );
            assert!(
                !body.to_string().contains(name) || name.len() < 3,
                "{asked}: {body}"
            );
        }
    }
    assert_eq!(
        scene.apiserver.asked("subjectaccessreviews"),
        denied,
        "nobody was asked"
    );
    // Too few, too many, or other words.
    for asked in [
        "/claviger/v1/access/shop/secretvaults/payments/secrets/get/",
        "/claviger/v1/access/shop/secretvaults/payments/secrets",
        "/claviger/v1/access//secretvaults/payments/secrets/get",
        "/claviger/v1/access/shop/secretvaults/payments//get",
        "/claviger/v1/access/shop/secretvaults/payments/secrets/get/more",
        "/claviger/v1/./access/shop/secretvaults/payments/secrets/get",
        "/claviger//v1/whoami",
        "/claviger/v1/whoami/",
        "/claviger/v1/WHOAMI",
        "/CLAVIGER/v1/whoami",
        "/claviger/v1/whoami;x",
        "/claviger/v1/who%61mi",
        "/claviger/v1/../v1/whoami",
        "/adfs/../claviger/v1/whoami",
        "/claviger/v1/whoami%00",
        "/claviger%2fv1%2fwhoami",
    ] {
        for bearer in ["", &bearer] {
            let (status, ..) = scene.get(asked, bearer).await;
            assert_ne!(status, StatusCode::OK, "{asked}");
            assert!(status.is_client_error(), "{asked}");
            assert!(
                !bearer.is_empty() || status == StatusCode::UNAUTHORIZED,
                "{asked}: {status}"
            );
        }
    }
    // Written otherwise, but the same: what is asked is what it means.
    let (status, ..) = scene
        .get(
            "/claviger/v1/access/%73hop/secretvaults/p%61yments/secrets/get?verb=delete#x",
            &bearer,
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    let asked = scene.apiserver.asked.lock().unwrap().clone();
    let (_, review) = asked
        .iter()
        .rev()
        .find(|(path, _)| path.contains("subject"))
        .unwrap();
    let attributes = &review["spec"]["resourceAttributes"];
    assert_eq!(
        [
            &attributes["namespace"],
            &attributes["name"],
            &attributes["verb"]
        ],
        ["shop", "payments", "get"]
    );
}

#[tokio::test]
async fn there_is_one_tenant_in_one_spelling() {
    let scene = Scene::set(&["--tenant", "corp.example"]);
    let good = form(&web(), OWN);
    for tenant in [
        "adfs",
        "common",
        "organizations",
        "consumers",
        "CORP.EXAMPLE",
        "corp.example.",
        "corp%2Eexample%00",
        "corp.example%20",
        "%20corp.example",
        "corp%EF%BC%8Eexample",
        "corp.example%2f..",
        "..",
        "%2e%2e",
        "corp.example;x",
    ] {
        for path in ["oauth2/v2.0/token", "oauth2/token"] {
            let (status, ..) = scene.post(&format!("/{tenant}/{path}"), &good).await;
            assert!(status.is_client_error(), "{tenant}: {status}");
        }
        for path in [
            ".well-known/openid-configuration",
            "v2.0/.well-known/openid-configuration",
            "discovery/keys",
            "discovery/v2.0/keys",
        ] {
            let (status, ..) = scene.get(&format!("/{tenant}/{path}"), "").await;
            assert!(status.is_client_error(), "{tenant}: {status}");
        }
    }
    assert_eq!(scene.apiserver.asked("tokenreviews"), 0);
    let (status, _, body) = scene.post("/corp.example/oauth2/v2.0/token", &good).await;
    assert_eq!(status, StatusCode::OK);
    // A token of a server that has the same keys under another tenant is another authority's.
    let other = Scene::set(&[]);
    other.sight.send_replace(scene.doors.keys.borrow().clone());
    let token = body["access_token"].as_str().unwrap();
    assert_eq!(scene.get(WHOAMI, token).await.0, StatusCode::OK);
    assert_eq!(other.get(WHOAMI, token).await.0, StatusCode::UNAUTHORIZED);
}

/// Runs what a property needs.
fn wait<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(what)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_path_is_challenged_or_one_of_the_documents(
        segments in proptest::collection::vec(prop_oneof![
            Just("adfs"), Just("discovery"), Just("v2.0"), Just("keys"), Just(".well-known"), Just("openid-configuration"), Just("claviger"), Just("v1"),
            Just("whoami"), Just("access"), Just(""), Just("."), Just(".."), Just("%2e%2e"), Just("%2f"), Just("%00"), Just("ADFS"), Just("a"),
        ], 0..9),
        query in prop_oneof![Just(""), Just("?"), Just("?code=x"), Just("?/adfs/discovery/keys")],
    ) {
        let path = format!("/{}", segments.join("/"));
        let documents = ["/adfs/discovery/keys", "/adfs/discovery/v2.0/keys", "/adfs/.well-known/openid-configuration", "/adfs/v2.0/.well-known/openid-configuration"];
        let status = wait(async { Scene::set(&[]).get(&format!("{path}{query}"), "").await.0 });
        prop_assert_eq!(status == StatusCode::OK, documents.contains(&&*path), "{}", path);
        prop_assert!(status == StatusCode::OK || [400, 401].contains(&status.as_u16()), "{}: {}", path, status);
    }

    #[test]
    fn a_changed_form_gets_a_token_for_the_same_account_or_none(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(b'%'), Just(b'&'), Just(b'='), Just(b'+'), any::<u8>()]), 1..4),
    ) {
        let mut body = form(&web(), OWN).into_bytes();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let (status, answer, keys, asked) = wait(async {
            let scene = Scene::set(&[]);
            let request = Request::post(TOKEN).header("content-type", "application/x-www-form-urlencoded").body(Body::from(body.clone()));
            let (status, _, answer) = scene.send(request.unwrap()).await;
            (status, answer, scene.doors.keys.borrow().clone(), scene.apiserver.asked.lock().unwrap().clone())
        });
        prop_assert!([200, 400, 401].contains(&status.as_u16()), "{}", status);
        if status == StatusCode::OK {
            let issuer = format!("{AUTHORITY}/adfs");
            let token = answer["access_token"].as_str().unwrap();
            let claims = keys.keys().unwrap().verify(token, &issuer, |_| true, clock::now());
            let account = claims.unwrap().account().unwrap();
            prop_assert_eq!(account.user(), "system:serviceaccount:shop:web");
            // What was reviewed stood in the form as it was sent.
            let fields: BTreeMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
            prop_assert_eq!(&asked[0].1["spec"]["token"], &json!(fields["client_assertion"].trim()));
            prop_assert_eq!(&fields["grant_type"], "client_credentials");
        }
    }
}
