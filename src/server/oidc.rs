//! Users whom an OIDC issuer vouches for. Only issuers that the install names are ever called, at
//! the address that was named, and nothing of ours is sent there.
//!
//! An issuer's keys are fetched when the first of its tokens comes and kept for an hour; a token
//! that names a key nobody has seen makes them be fetched again, at most twice in a minute, and nobody
//! waits for that who comes with a known one. When the issuer does not answer, or with no key that could
//! be used, the keys that are known go on for a day.

use std::{
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, StatusCode, Uri, body::Bytes, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::Jwk};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use snafu::{OptionExt as _, ResultExt as _, Snafu, ensure};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::Instant,
};

use crate::domain::{
    access_token::{Audiences, CLOCK_SKEW, Heading, seconds},
    identity::{OidcUser, Prefix, Refusal},
};

/// What the install says of an issuer.
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    url: String,
    audience: String,
    prefix: Prefix,
    user_claim: String,
    groups_claim: String,
    jwks: Option<String>,
    ca: Option<PathBuf>,
}

impl IssuerSettings {
    /// The issuer, as its tokens name it.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl FromStr for IssuerSettings {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let mut given = std::collections::BTreeMap::new();
        for pair in text.split(',') {
            let (name, value) = pair.split_once('=').context(PairSnafu { pair })?;
            ensure!(
                NAMES.contains(&name) && !value.is_empty(),
                PairSnafu { pair }
            );
            ensure!(given.insert(name, value).is_none(), PairSnafu { pair });
        }
        let mut take = |name: &'static str| given.remove(name).map(str::to_owned);
        let url = take("url").context(MissingSnafu { name: "url" })?;
        let jwks = take("jwks");
        for url in [Some(&url), jwks.as_ref()].into_iter().flatten() {
            let parsed: Option<Uri> = url.parse().ok();
            let well = parsed.is_some_and(|uri| {
                uri.scheme_str() == Some("https") && uri.host().is_some() && uri.query().is_none()
            });
            ensure!(well, UrlSnafu { url });
        }
        let prefix = take("prefix").context(MissingSnafu { name: "prefix" })?;
        Ok(Self {
            url,
            jwks,
            audience: take("audience").context(MissingSnafu { name: "audience" })?,
            prefix: Prefix::new(&prefix).context(PrefixSnafu)?,
            user_claim: take("user").unwrap_or_else(|| "sub".to_owned()),
            groups_claim: take("groups").unwrap_or_else(|| "groups".to_owned()),
            ca: take("ca").map(PathBuf::from),
        })
    }
}

const NAMES: [&str; 7] = ["url", "audience", "prefix", "user", "groups", "jwks", "ca"];

/// An issuer cannot be as the install says.
#[derive(Debug, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum SettingsError {
    /// The file of certificates.
    #[snafu(display("{} holds no certificate of a CA that can be read", path.display()))]
    Ca { path: PathBuf },
    /// Something is not said.
    #[snafu(display("an OIDC issuer needs {name}=…"))]
    Missing { name: &'static str },
    /// A user of one could be taken for that of another.
    #[snafu(display(
        "two OIDC issuers have the same url, or prefixes of which one is the beginning of the other: {one}, {other}"
    ))]
    Overlap { one: String, other: String },
    /// Something that is not known.
    #[snafu(display(
        "not one of url=, audience=, prefix=, user=, groups=, jwks= and ca= with a value, or given twice: {pair:?}"
    ))]
    Pair { pair: String },
    /// The prefix.
    #[snafu(display("{source}"))]
    Prefix { source: Refusal },
    /// An address that is none.
    #[snafu(display("not an address that begins with https:// and has no query: {url:?}"))]
    Url { url: String },
}

/// Whether issuers go together.
///
/// # Errors
/// [`SettingsError::Overlap`].
pub fn check(issuers: &[IssuerSettings]) -> Result<(), SettingsError> {
    for (number, one) in issuers.iter().enumerate() {
        for other in &issuers[..number] {
            let well = one.url != other.url && !one.prefix.overlaps(&other.prefix);
            ensure!(
                well,
                OverlapSnafu {
                    one: &other.url,
                    other: &one.url
                }
            );
        }
    }
    Ok(())
}

/// Why somebody is not believed to be a user of an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Disbelief {
    /// Not signed as the issuer signs.
    #[snafu(display("the signature of the token is not one of its issuer"))]
    Signature,
    /// For somebody else.
    #[snafu(display(
        "the token of the OIDC issuer is for another audience: ask for one for the audience that the install names"
    ))]
    Audience,
    /// Over, or not begun.
    #[snafu(display("the token of the OIDC issuer is not valid now: ask for a new one"))]
    Time,
    /// It does not name its user.
    #[snafu(display(
        "the token of the OIDC issuer does not name its user in the claim that the install names, or the address there is not verified"
    ))]
    Nameless,
    /// The user cannot be one.
    #[snafu(display("{source}"))]
    Refused {
        /// Why.
        source: Refusal,
    },
    /// The issuer does not answer.
    #[snafu(display("the keys of the OIDC issuer cannot be fetched: try again later"))]
    Unavailable,
}

/// An issuer whose users may call.
pub struct Issuer(Arc<Source>);

struct Source {
    settings: IssuerSettings,
    http: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    keys: RwLock<Arc<Keys>>,
    /// When keys were last asked for; held while they are.
    tried: Arc<Mutex<Option<Instant>>>,
}

#[derive(Clone, Default)]
struct Keys {
    known: Vec<PublicKey>,
    fetched: Option<Instant>,
    /// The last try after that brought none.
    failed: bool,
}

#[derive(Clone)]
struct PublicKey {
    id: Option<String>,
    algorithm: Option<String>,
    key: DecodingKey,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({})", self.url())
    }
}

impl Issuer {
    /// An issuer that is not called yet.
    ///
    /// # Errors
    /// When its CA cannot be read.
    pub fn new(settings: IssuerSettings) -> Result<Self, SettingsError> {
        let config = ClientConfig::builder().with_root_certificates(match &settings.ca {
            None => public_roots(),
            Some(path) => roots(path)?,
        });
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.with_no_client_auth())
            .https_only()
            .enable_http1()
            .build();
        Ok(Self(Arc::new(Source {
            settings,
            http: Client::builder(TokioExecutor::new()).build(connector),
            keys: RwLock::default(),
            tried: Arc::default(),
        })))
    }

    /// The issuer, as its tokens name it.
    pub fn url(&self) -> &str {
        &self.0.settings.url
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// See [`Disbelief`].
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<OidcUser, Disbelief> {
        let heading = Heading::of(token).context(SignatureSnafu)?;
        ensure!(heading.is_plain(), SignatureSnafu);
        let algorithm = ALGORITHMS
            .iter()
            .find(|(name, _)| *name == heading.alg)
            .context(SignatureSnafu)?
            .1;
        let key = self.key(&heading).await?;
        let claims = decode(token, &key, algorithm).context(SignatureSnafu)?;
        believe(&self.0.settings, &claims, now)
    }

    async fn key(&self, heading: &Heading) -> Result<DecodingKey, Disbelief> {
        let keys = self.0.keys();
        let found = keys.find(heading).filter(|_| keys.are_younger_than(STALE));
        if let Some(key) = &found
            && keys.are_younger_than(FRESH)
        {
            return Ok(key.clone());
        }
        let tried = match (Arc::clone(&self.0.tried).try_lock_owned(), found) {
            (Ok(tried), _) => tried,
            // It did not answer before: one caller waits whether it does now.
            (Err(_), Some(key)) if keys.failed => return Ok(key),
            (Err(_), _) => Arc::clone(&self.0.tried).lock_owned().await,
        };
        if tried.is_none_or(|at| at.elapsed() >= PAUSE) {
            // By itself: whoever comes with an unknown key and goes away at once uses up no try.
            let source = Arc::clone(&self.0);
            let refreshed = tokio::spawn(async move { source.refresh(tried).await });
            refreshed.await.ok().context(UnavailableSnafu)?;
        }
        let keys = self.0.keys();
        ensure!(keys.are_younger_than(STALE), UnavailableSnafu);
        keys.find(heading).context(SignatureSnafu)
    }
}

impl Source {
    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn refresh(&self, mut tried: OwnedMutexGuard<Option<Instant>>) {
        *tried = Some(Instant::now());
        let fetched = tokio::time::timeout(TIMEOUT, self.fetch()).await;
        let keys = match fetched.unwrap_or(Err("no answer in time")) {
            Ok(known) => Keys {
                known,
                fetched: Some(Instant::now()),
                failed: false,
            },
            Err(why) => {
                tracing::warn!(issuer = self.settings.url, why, "no keys were fetched");
                Keys {
                    failed: true,
                    ..Keys::clone(&self.keys())
                }
            }
        };
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    async fn fetch(&self) -> Result<Vec<PublicKey>, &'static str> {
        let address = match &self.settings.jwks {
            Some(address) => address.clone(),
            None => self.discover().await?,
        };
        let document: Document = self.get(&address).await?;
        let keys: Vec<_> = document.keys.into_iter().filter_map(public_key).collect();
        if keys.is_empty() {
            return Err("the issuer names no key that verifies signatures");
        }
        Ok(keys)
    }

    /// Where the issuer says that its keys are: on its own host, unless the install says otherwise.
    async fn discover(&self) -> Result<String, &'static str> {
        let base = self.settings.url.trim_end_matches('/');
        let address = format!("{base}/.well-known/openid-configuration");
        let found: Discovery = self.get(&address).await?;
        found.keys_of(&self.settings.url)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, address: &str) -> Result<T, &'static str> {
        let request = Request::get(address)
            .header(header::ACCEPT, "application/json")
            .body(Empty::new())
            .map_err(|_| "the address is none")?;
        let response = self.http.request(request).await;
        let response = response.map_err(|_| "the issuer cannot be reached")?;
        if response.status() != StatusCode::OK {
            return Err("the issuer does not answer 200");
        }
        let body = Limited::new(response.into_body(), LARGEST_DOCUMENT).collect();
        let body = body.await.map_err(|_| "the issuer's answer broke off")?;
        serde_json::from_slice(&body.to_bytes()).map_err(|_| "the issuer's answer cannot be read")
    }
}

/// What an issuer says of itself.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    /// Where the keys of the issuer are that was asked.
    fn keys_of(self, issuer: &str) -> Result<String, &'static str> {
        if self.issuer != issuer {
            return Err("the discovery document is that of another issuer");
        }
        let place = |address: &str| {
            let uri: Uri = address.parse().ok()?;
            Some((uri.scheme_str()?.to_owned(), uri.authority()?.clone()))
        };
        let (own, named) = (place(issuer), place(&self.jwks_uri));
        if named.is_none() || named != own {
            return Err("the issuer names another host for its keys: give their address by jwks=");
        }
        Ok(self.jwks_uri)
    }
}

impl Keys {
    fn are_younger_than(&self, age: Duration) -> bool {
        self.fetched.is_some_and(|at| at.elapsed() < age)
    }

    fn find(&self, heading: &Heading) -> Option<DecodingKey> {
        let fits = |key: &&PublicKey| {
            let of_algorithm = key
                .algorithm
                .as_ref()
                .is_none_or(|algorithm| *algorithm == heading.alg);
            // Whoever has one key need not name it.
            let named = match &heading.kid {
                Some(kid) => key.id.as_ref() == Some(kid),
                None => self.known.len() == 1,
            };
            of_algorithm && named
        };
        self.known.iter().find(fits).map(|key| key.key.clone())
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// A key that verifies signatures; nothing if it is of another kind, or secret.
fn public_key(document: Value) -> Option<PublicKey> {
    let text = |name: &str| document[name].as_str().map(str::to_owned);
    let (kind, usage) = (text("kty")?, text("use"));
    if !["EC", "OKP", "RSA"].contains(&kind.as_str()) || usage.is_some_and(|usage| usage != "sig") {
        return None;
    }
    let (id, algorithm) = (text("kid"), text("alg"));
    let jwk: Jwk = serde_json::from_value(document).ok()?;
    Some(PublicKey {
        id,
        algorithm,
        key: DecodingKey::from_jwk(&jwk).ok()?,
    })
}

fn decode(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Option<Map<String, Value>> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    jsonwebtoken::decode(token, key, &validation)
        .ok()
        .map(|token| token.claims)
}

/// Whose claims these are, which the issuer has signed.
fn believe(
    settings: &IssuerSettings,
    claims: &Map<String, Value>,
    now: Timestamp,
) -> Result<OidcUser, Disbelief> {
    let claim = |name: &str| claims.get(name).cloned().unwrap_or_default();
    let time = |name: &str| seconds(claim(name)).map_err(|_| Disbelief::Time);
    // Another issuer may have keys of the same name.
    ensure!(claim("iss") == settings.url.as_str(), SignatureSnafu);
    let expires = time("exp")?.context(TimeSnafu)?;
    let latest = now.as_second() + CLOCK_SKEW.as_secs();
    ensure!(
        expires > now.as_second() && time("nbf")?.is_none_or(|nbf| nbf <= latest),
        TimeSnafu
    );
    let audiences: Audiences = serde_json::from_value(claim("aud")).unwrap_or_default();
    ensure!(audiences.contains(&settings.audience), AudienceSnafu);
    let user = claim(&settings.user_claim);
    let user = user.as_str().context(NamelessSnafu)?;
    // Some issuers write it as text. One that never says it was chosen by the install as it is.
    let verified = match claims.get("email_verified") {
        None | Some(Value::Bool(true)) => true,
        Some(said) => said == "true",
    };
    ensure!(settings.user_claim != "email" || verified, NamelessSnafu);
    let groups = match claim(&settings.groups_claim) {
        Value::String(group) => vec![group],
        Value::Array(groups) => groups
            .into_iter()
            .filter_map(|group| group.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    };
    OidcUser::new(&settings.prefix, user, &groups).context(RefusedSnafu)
}

/// Those of the binary: the image has no files.
fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    roots
}

fn roots(path: &std::path::Path) -> Result<RootCertStore, SettingsError> {
    let mut roots = RootCertStore::empty();
    let unreadable = || SettingsError::Ca {
        path: path.to_owned(),
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|_| unreadable())? {
        let certificate = certificate.map_err(|_| unreadable())?;
        roots.add(certificate).map_err(|_| unreadable())?;
    }
    ensure!(!roots.is_empty(), CaSnafu { path });
    Ok(roots)
}

/// The ways of signing that are taken: none that works with a secret.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
];
const FRESH: Duration = Duration::from_hours(1);
const STALE: Duration = Duration::from_hours(24);
const PAUSE: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);
const LARGEST_DOCUMENT: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::identity::Identity;

    fn settings(text: &str) -> Result<IssuerSettings, SettingsError> {
        text.parse()
    }

    fn corp() -> IssuerSettings {
        settings("url=https://login.example.com,audience=claviger,prefix=corp:").unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    fn claims() -> Value {
        let now = now().as_second();
        json!({
            "iss": "https://login.example.com", "aud": ["claviger", "other"], "sub": "ada",
            "exp": now + 60, "nbf": now, "groups": ["ops", 7],
        })
    }

    fn believed(changes: &Value) -> Result<OidcUser, Disbelief> {
        let mut claims = claims();
        json_patch::merge(&mut claims, changes);
        believe(&corp(), claims.as_object().unwrap(), now())
    }

    #[test]
    fn an_issuer_is_named_with_all_it_takes() {
        let full =
            "url=https://a,audience=b,prefix=c:d,user=email,groups=roles,jwks=https://k/keys,ca=/f";
        assert_eq!(
            settings(full.replace("c:d", "x:").as_str())
                .unwrap()
                .user_claim,
            "email"
        );
        for wrong in [
            "",
            "url=https://a",
            "url=https://a,audience=b",
            "url=https://a,prefix=x:",
            "url=http://a,audience=b,prefix=x:",
            "url=https://a?b,audience=b,prefix=x:",
            "url=https://a,audience=b,prefix=system:",
            "url=https://a,audience=b,prefix=",
            "url=https://a,audience=b,prefix=x:,colour=red",
            "url=https://a,audience=b,prefix=x:,prefix=y:",
            "url=https://a,audience=b,prefix=x:,jwks=http://k",
        ] {
            assert!(settings(wrong).is_err(), "{wrong}");
        }
        let other = |text: &str| settings(&format!("audience=b,{text}")).unwrap();
        assert!(check(&[corp(), other("url=https://b,prefix=lab:")]).is_ok());
        assert!(check(&[corp(), other("url=https://b,prefix=corp:eu:")]).is_err());
        assert!(check(&[corp(), other("url=https://login.example.com,prefix=lab:")]).is_err());
    }

    #[test]
    fn claims_make_a_user_with_the_issuers_prefix() {
        let subject = Identity::Oidc(believed(&json!({})).unwrap()).subject();
        assert_eq!(subject.user, "corp:ada");
        assert!(subject.groups.contains("corp:ops"));
        let one = believed(&json!({"aud": "claviger", "groups": "ops"})).unwrap();
        assert_eq!(Identity::Oidc(one).subject(), subject);
    }

    #[test]
    fn claims_that_do_not_hold_are_not_believed() {
        let second = now().as_second();
        for (changes, why) in [
            (json!({"iss": "https://other"}), Disbelief::Signature),
            (json!({"aud": "other"}), Disbelief::Audience),
            (json!({"aud": null}), Disbelief::Audience),
            (json!({"exp": second}), Disbelief::Time),
            (json!({"exp": null}), Disbelief::Time),
            (json!({"exp": "later"}), Disbelief::Time),
            (json!({"nbf": second + 61}), Disbelief::Time),
            (json!({"sub": null}), Disbelief::Nameless),
            (json!({"sub": 7}), Disbelief::Nameless),
            (
                json!({"sub": "system:masters"}),
                Disbelief::Refused {
                    source: Refusal::Reserved,
                },
            ),
            (
                json!({"groups": ["system:masters"]}),
                Disbelief::Refused {
                    source: Refusal::Reserved,
                },
            ),
        ] {
            assert_eq!(believed(&changes), Err(why), "{changes}");
        }
        let by_mail =
            settings("url=https://login.example.com,audience=claviger,prefix=corp:,user=email");
        let by_mail = by_mail.unwrap();
        for (says, verified) in [
            (None, true),
            (Some(json!(true)), true),
            (Some(json!("true")), true),
            (Some(json!(false)), false),
            (Some(json!("false")), false),
            (Some(json!("")), false),
            (Some(json!(null)), false),
            (Some(json!(1)), false),
        ] {
            let mut claims = claims();
            claims["email"] = json!("ada@example.com");
            if let Some(says) = &says {
                claims["email_verified"] = says.clone();
            }
            let user = believe(&by_mail, claims.as_object().unwrap(), now());
            match user {
                Ok(_) => assert!(verified, "{says:?}"),
                Err(why) => assert_eq!((why, verified), (Disbelief::Nameless, false), "{says:?}"),
            }
        }
    }

    #[test]
    fn all_public_roots_of_the_binary_are_trusted() {
        let all = webpki_root_certs::TLS_SERVER_ROOT_CERTS.len();
        assert_eq!(public_roots().len(), all);
    }

    #[test]
    fn keys_that_are_secret_or_for_something_else_are_passed_over() {
        let point = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let ec = json!({"kty": "EC", "crv": "P-256", "x": point, "y": point, "kid": "a"});
        assert!(public_key(ec.clone()).is_some());
        for changes in [
            json!({"use": "enc"}),
            json!({"kty": "oct", "k": "c2VjcmV0"}),
            json!({"kty": "new"}),
            json!({"x": "*"}),
        ] {
            let mut other = ec.clone();
            json_patch::merge(&mut other, &changes);
            assert!(public_key(other).is_none(), "{changes}");
        }
    }

    #[test]
    fn keys_are_fetched_from_the_issuers_own_host_only() {
        let found = |issuer: &str, keys: &str| {
            let text = json!({"issuer": issuer, "jwks_uri": keys}).to_string();
            let document: Discovery = serde_json::from_str(&text).unwrap();
            document.keys_of("https://login.example.com")
        };
        let own = "https://login.example.com/keys";
        assert_eq!(found("https://login.example.com", own).as_deref(), Ok(own));
        assert!(found("https://login.example.com/", own).is_err());
        for keys in [
            "http://login.example.com/keys",
            "https://login.example.com:8443/keys",
            "https://login.example.com@evil.example/keys",
            "https://evil@login.example.com/keys",
            "https://login.example.com.evil.example/keys",
            "//login.example.com/keys",
            "/keys",
            "file:///etc/passwd",
            "https:\\\\login.example.com\\keys",
            "",
        ] {
            assert!(found("https://login.example.com", keys).is_err(), "{keys}");
        }
        // What is said twice is not said.
        let twice = r#"{"issuer":"a","jwks_uri":"b","jwks_uri":"c"}"#;
        assert!(serde_json::from_str::<Discovery>(twice).is_err());
    }

    /// Any JSON, as nested as this.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "(EC|RSA|OKP|oct|sig|enc|P-256|ES256|AQAB|[A-Za-z0-9_-]{0,50}|.{0,5})"
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_of_keys_holds_public_keys_or_nothing(
            changes in proptest::collection::vec((prop_oneof![
                Just("kty"), Just("crv"), Just("x"), Just("y"), Just("n"), Just("e"), Just("k"), Just("use"), Just("alg"), Just("kid"), Just("key_ops"),
            ], any_json()), 0..4),
            other in any_json(),
        ) {
            let point = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
            let mut key = json!({"kty": "EC", "crv": "P-256", "x": point, "y": point, "kid": "a", "use": "sig"});
            for (member, value) in changes {
                key[member] = value;
            }
            for document in [key, other] {
                let text = json!({"keys": [document]}).to_string();
                let Ok(read) = serde_json::from_str::<Document>(&text) else { continue };
                for one in read.keys {
                    let (kind, usage) = (one["kty"].clone(), one["use"].clone());
                    if let Some(key) = public_key(one) {
                        prop_assert!(["EC", "OKP", "RSA"].iter().any(|known| kind == *known));
                        prop_assert!(usage != "enc");
                        // With such a key nothing is verified that a secret could have signed.
                        for (_, algorithm) in ALGORITHMS {
                            prop_assert!(decode("eyJhbGciOiJIUzI1NiJ9.e30.AA", &key.key, algorithm).is_none());
                        }
                    }
                }
            }
        }

        #[test]
        fn any_claims_are_those_of_a_user_of_this_issuer_or_refused(
            changes in proptest::collection::vec((prop_oneof![
                Just("iss"), Just("aud"), Just("exp"), Just("nbf"), Just("sub"), Just("groups"),
            ], any_json()), 0..3),
        ) {
            let mut claims = claims();
            for (member, value) in changes {
                claims[member] = value;
            }
            if let Ok(user) = believe(&corp(), claims.as_object().unwrap(), now()) {
                let subject = Identity::Oidc(user).subject();
                let user = subject.user.strip_prefix("corp:");
                prop_assert!(user.is_some() && user == claims["sub"].as_str());
                prop_assert!(subject.groups.iter().all(|group| group.starts_with("corp:") || group == "system:authenticated"));
                prop_assert_eq!(&claims["iss"], "https://login.example.com");
                prop_assert!(claims["exp"].as_f64().unwrap() > 1.7e9);
                prop_assert!(claims["aud"] == "claviger" || claims["aud"].as_array().unwrap().contains(&json!("claviger")));
            }
        }

        #[test]
        fn any_settings_are_read_or_refused(text in "(url=|audience=|prefix=|,|=|https://|[a-z:/]){0,12}") {
            let _ = settings(&text);
        }
    }
}
