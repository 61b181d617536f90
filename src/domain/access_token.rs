//! Access tokens: what Claviger says in them, how they are signed, and what makes one believed.
//!
//! A token is an ES256 JWT. It lives as long as the ServiceAccount token that it was given for, but
//! a quarter of an hour at least (SDKs ask anew before every request when less is left) and an hour
//! at most. So it outlives its assertion only when that one was nearly over, by minutes, and a
//! deleted pod by no more than the hour that is the bound anyway.
//!
//! Nothing a token says of itself decides how it is checked: the algorithm is fixed, and the key is
//! looked up among our own.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt as _, Snafu, ensure};
use zeroize::Zeroizing;

use crate::domain::{
    identity::{Pod, ServiceAccount, is_object_name},
    token_keys::{LONGEST_TOKEN, Spans, Turned, signer, valid},
};

/// The least that an access token lives.
pub const SHORTEST_TOKEN: SignedDuration = SignedDuration::from_mins(15);
/// How much the clocks of two servers may differ.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(1);
/// The longest text that is looked at as a token, in bytes.
pub const LONGEST_TEXT: usize = 16 * 1024;

/// A key that signs access tokens; its private half is never shown.
#[derive(Clone)]
pub struct SigningKey {
    id: String,
    coordinates: [String; 2],
    signs_from: Timestamp,
    pkcs8: Zeroizing<Vec<u8>>,
    private: EncodingKey,
    public: DecodingKey,
}

impl SigningKey {
    /// A P-256 key that signs from this time on: PKCS #8, and the public point, uncompressed.
    /// Nothing if they do not belong together.
    pub fn new(pkcs8: Zeroizing<Vec<u8>>, point: &[u8], signs_from: Timestamp) -> Option<Self> {
        let [x, y] = match point {
            [4, rest @ ..] if rest.len() == 64 => {
                [&rest[..32], &rest[32..]].map(|half| URL_SAFE_NO_PAD.encode(half))
            }
            _ => return None,
        };
        let public = DecodingKey::from_ec_components(&x, &y).ok()?;
        let private = EncodingKey::from_ec_der(&pkcs8);
        // RFC 7638: the members in this order, and nothing else.
        let thumbprint = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let key = Self {
            id: URL_SAFE_NO_PAD.encode(Sha256::digest(thumbprint)),
            coordinates: [x, y],
            signs_from,
            pkcs8,
            private,
            public,
        };
        let probe = jsonwebtoken::encode(&key.header(), &Probe {}, &key.private).ok()?;
        jsonwebtoken::decode::<Probe>(&probe, &key.public, &signature_only()).ok()?;
        Some(key)
    }

    /// What the key is known by: the SHA-256 thumbprint of its public half (RFC 7638).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Gives the private half, to store.
    pub fn expose(&self) -> &[u8] {
        &self.pkcs8
    }

    fn header(&self) -> Header {
        Header {
            kid: Some(self.id.clone()),
            ..Header::new(Algorithm::ES256)
        }
    }

    fn document(&self) -> PublicKey<'_> {
        PublicKey {
            kty: "EC",
            crv: "P-256",
            r#use: "sig",
            alg: "ES256",
            kid: &self.id,
            x: &self.coordinates[0],
            y: &self.coordinates[1],
        }
    }
}

impl Turned for SigningKey {
    fn signs_from(&self) -> Timestamp {
        self.signs_from
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, …redacted…)", self.id)
    }
}

/// The keys of an install.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<SigningKey>,
    spans: Spans,
}

impl KeySet {
    /// These keys, whichever order they are in.
    pub fn new(mut keys: Vec<SigningKey>) -> Self {
        keys.sort_by_key(Turned::signs_from);
        Self {
            keys,
            spans: Spans::default(),
        }
    }

    /// All of them, oldest first.
    pub fn keys(&self) -> &[SigningKey] {
        &self.keys
    }

    /// The public halves, as RFC 7517 has them: what is published at a time.
    pub fn document(&self, now: Timestamp) -> String {
        let keys: Vec<_> = valid(&self.keys, &self.spans, now)
            .into_iter()
            .map(SigningKey::document)
            .collect();
        serde_json::to_string(&Document { keys }).expect("strings are JSON")
    }

    /// Signs a token; nothing if there is no key.
    pub fn sign(&self, claims: &Claims, now: Timestamp) -> Option<String> {
        let key = signer(&self.keys, now)?;
        jsonwebtoken::encode(&key.header(), claims, &key.private).ok()
    }

    /// Verifies a token that was issued by `issuer` for one of the resources.
    ///
    /// # Errors
    /// See [`Disbelief`].
    pub fn verify(
        &self,
        token: &str,
        issuer: &str,
        is_for: impl Fn(&str) -> bool,
        now: Timestamp,
    ) -> Result<Claims, Disbelief> {
        let signed = self.signed(token, now)?;
        self.believe(&signed, issuer, is_for, now)?;
        Ok(signed.claims)
    }

    /// Verifies that one of the keys has signed a token. That is the dear part of [`KeySet::verify`]
    /// and the only one that nothing ever changes, so whoever sees the same text again may go on with
    /// [`KeySet::believe`].
    ///
    /// # Errors
    /// See [`Disbelief`].
    pub fn signed(&self, token: &str, now: Timestamp) -> Result<Signed, Disbelief> {
        ensure!(token.len() <= LONGEST_TEXT, MalformedSnafu);
        let header = Heading::of(token).context(MalformedSnafu)?;
        ensure!(header.alg == "ES256" && header.is_plain(), AlgorithmSnafu);
        let id = header.kid.context(UnknownKeySnafu)?;
        let key = self.key(&id, now).context(UnknownKeySnafu)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.public, &signature_only())
            .ok()
            .context(SignatureSnafu)?
            .claims;
        Ok(Signed { key: id, claims })
    }

    /// Whether a token that a key of ours has signed is believed: the key must be valid still, and the
    /// token issued by `issuer` for one of the resources, and neither over nor early.
    ///
    /// # Errors
    /// See [`Disbelief`].
    pub fn believe<'a>(
        &self,
        signed: &'a Signed,
        issuer: &str,
        is_for: impl Fn(&str) -> bool,
        now: Timestamp,
    ) -> Result<&'a Claims, Disbelief> {
        let Signed { key, claims } = signed;
        ensure!(self.key(key, now).is_some(), UnknownKeySnafu);
        ensure!(claims.iss == issuer, IssuerSnafu);
        ensure!(claims.exp > now.as_second(), ExpiredSnafu);
        let latest = now.as_second() + CLOCK_SKEW.as_secs();
        ensure!(claims.nbf <= latest && claims.iat <= latest, EarlySnafu);
        ensure!(is_for(&claims.aud), AudienceSnafu);
        Ok(claims)
    }

    /// The key of this name, if it is valid.
    fn key(&self, id: &str, now: Timestamp) -> Option<&SigningKey> {
        let mut valid = valid(&self.keys, &self.spans, now).into_iter();
        valid.find(|key| key.id() == id)
    }
}

/// What a token says that a key of ours has signed. Whether it is believed is another matter.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The key's name, which is a digest of its public half: no other key has it.
    key: String,
    claims: Claims,
}

/// What an access token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// The resource that it is for, without a slash at the end.
    pub aud: String,
    /// The user that Kubernetes knows the ServiceAccount as.
    pub sub: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// The same.
    pub nbf: i64,
    /// When it ends.
    pub exp: i64,
    /// Names the token.
    pub jti: String,
    /// The tenant.
    pub tid: String,
    /// The client, which is the ServiceAccount's UID.
    pub appid: String,
    /// The same, by the name that OpenID has for it.
    pub azp: String,
    /// The ServiceAccount's UID.
    pub oid: String,
    /// The ServiceAccount in Kubernetes' words.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
}

/// The ServiceAccount in the words of Kubernetes' own tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    namespace: String,
    serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

/// What is wanted of a token.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    /// Who issues it.
    pub issuer: &'a str,
    /// The tenant.
    pub tenant: &'a str,
    /// The resource that it is for.
    pub resource: &'a str,
    /// Whom it is for.
    pub account: &'a ServiceAccount,
    /// When what it is given for ends.
    pub assertion_expires: Timestamp,
    /// Random bytes that name the token.
    pub random: [u8; 16],
}

impl Claims {
    /// What a token says that is issued now.
    pub fn new(grant: &Grant<'_>, now: Timestamp) -> Self {
        let account = grant.account;
        let left = grant.assertion_expires.duration_since(now);
        let lifetime = left.clamp(SHORTEST_TOKEN, LONGEST_TOKEN);
        let issued = now.as_second();
        Self {
            iss: grant.issuer.to_owned(),
            aud: grant.resource.to_owned(),
            sub: account.user(),
            iat: issued,
            nbf: issued,
            exp: issued + lifetime.as_secs(),
            jti: uuid(grant.random),
            tid: grant.tenant.to_owned(),
            appid: account.uid.clone(),
            azp: account.uid.clone(),
            oid: account.uid.clone(),
            kubernetes: Kubernetes {
                namespace: account.namespace.clone(),
                serviceaccount: Reference {
                    name: account.name.clone(),
                    uid: account.uid.clone(),
                },
                pod: account.pod.as_ref().map(|pod| Reference {
                    name: pod.name.clone(),
                    uid: pod.uid.clone(),
                }),
            },
        }
    }

    /// Whom the token is for; nothing if it contradicts itself.
    pub fn account(&self) -> Option<ServiceAccount> {
        let Kubernetes {
            namespace,
            serviceaccount,
            pod,
        } = &self.kubernetes;
        let account = ServiceAccount {
            namespace: namespace.clone(),
            name: serviceaccount.name.clone(),
            uid: serviceaccount.uid.clone(),
            pod: pod.as_ref().map(|pod| Pod {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
        };
        let well = is_object_name(namespace)
            && is_object_name(&account.name)
            && !account.uid.is_empty()
            && self.sub == account.user()
            && self.oid == account.uid;
        well.then_some(account)
    }
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Snafu)]
pub enum Disbelief {
    /// Signed in a way that is not allowed.
    #[snafu(display("the token is signed by an algorithm that is not accepted here"))]
    Algorithm,
    /// For something else.
    #[snafu(display("the token was issued for another resource: ask for one for this resource"))]
    Audience,
    /// Its time has not come.
    #[snafu(display(
        "the token is not valid yet: compare the clock of whoever issued it with that of the server"
    ))]
    Early,
    /// Its time is over.
    #[snafu(display("the token has expired: ask for a new one"))]
    Expired,
    /// Issued by somebody else.
    #[snafu(display("the token was issued by an authority that is not known here"))]
    Issuer,
    /// No token at all.
    #[snafu(display("what was presented is not a JSON web token"))]
    Malformed,
    /// Not signed by that key.
    #[snafu(display("the signature of the token is wrong"))]
    Signature,
    /// The key is none of ours, or gone.
    #[snafu(display("the token is signed by a key that is not valid here: ask for a new token"))]
    UnknownKey,
}

/// The heading of a token, which nobody has verified.
#[derive(Debug, Deserialize)]
pub struct Heading {
    /// How it says to be signed.
    pub alg: String,
    /// Which key it says to be signed by.
    #[serde(default)]
    pub kid: Option<String>,
    /// Extensions that whoever does not know them must not pass over.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl Heading {
    /// Whether nothing is asked for that is not known here (RFC 7515, 4.1.11).
    pub fn is_plain(&self) -> bool {
        self.crit.is_none()
    }

    /// Whether it says to be signed by the private half of a key pair.
    pub fn is_asymmetric(&self) -> bool {
        ["ES", "RS", "PS", "Ed"]
            .iter()
            .any(|family| self.alg.starts_with(family))
    }

    /// Reads the heading of what may be a token.
    pub fn of(token: &str) -> Option<Self> {
        part(token, 0)
    }
}

/// What a token says of itself, which nobody has verified: it decides only whom to ask.
#[derive(Debug, Deserialize)]
pub struct Says {
    /// Who it says to have issued it.
    pub iss: String,
    /// For whom, one or several.
    #[serde(default)]
    pub aud: Audiences,
    /// Until when, in seconds since 1970.
    #[serde(default, deserialize_with = "seconds")]
    pub exp: Option<i64>,
}

impl Says {
    /// Reads what a token says of itself.
    pub fn of(token: &str) -> Option<Self> {
        part(token, 1)
    }
}

/// Audiences as tokens name them: one, several or none.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Audiences {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
    /// None.
    #[default]
    None,
}

impl Audiences {
    /// Whether this is one of them.
    pub fn contains(&self, audience: &str) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// A time as tokens name it: RFC 7519 allows fractions.
///
/// # Errors
/// When it is no number.
pub fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Whole(i64),
        Fraction(f64),
    }
    Ok(match Option::<Number>::deserialize(from)? {
        None => None,
        Some(Number::Whole(whole)) => Some(whole),
        #[expect(clippy::cast_possible_truncation, reason = "a cast saturates")]
        Some(Number::Fraction(fraction)) => Some(fraction as i64),
    })
}

/// A UUID of version 4 of these bytes.
pub fn uuid(random: [u8; 16]) -> String {
    let number = u128::from_be_bytes(random);
    let number = number & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{number:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn part<T: DeserializeOwned>(token: &str, number: usize) -> Option<T> {
    if token.len() > LONGEST_TEXT {
        return None;
    }
    let mut parts = token.split('.');
    let text = parts.clone().nth(number)?;
    if parts.by_ref().count() != 3 {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Times and names are checked by ourselves, with the time that is given.
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::ES256);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

#[derive(Serialize, Deserialize)]
struct Probe {}

#[derive(Serialize)]
struct Document<'a> {
    keys: Vec<PublicKey<'a>>,
}

#[derive(Serialize)]
struct PublicKey<'a> {
    kty: &'static str,
    crv: &'static str,
    r#use: &'static str,
    alg: &'static str,
    kid: &'a str,
    x: &'a str,
    y: &'a str,
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
    use serde_json::{Value, json};

    use super::*;

    const ISSUER: &str = "https://claviger.claviger-system.svc/adfs";
    const RESOURCE: &str = "https://vault.azure.net";

    fn now() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    fn key(signs_from: Timestamp) -> SigningKey {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let pkcs8 = Zeroizing::new(pair.serialize_der());
        SigningKey::new(pkcs8, pair.public_key_raw(), signs_from).unwrap()
    }

    static KEYS: LazyLock<KeySet> =
        LazyLock::new(|| KeySet::new(vec![key(now() - SignedDuration::from_hours(1))]));
    static OTHERS: LazyLock<KeySet> = LazyLock::new(|| KeySet::new(vec![key(now())]));

    fn account() -> ServiceAccount {
        ServiceAccount {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: "6a0f1e9e-0000-4000-8000-000000000001".to_owned(),
            pod: Some(Pod {
                name: "web-1".to_owned(),
                uid: "p-1".to_owned(),
            }),
        }
    }

    fn claims(left: SignedDuration) -> Claims {
        let grant = Grant {
            issuer: ISSUER,
            tenant: "adfs",
            resource: RESOURCE,
            account: &account(),
            assertion_expires: now() + left,
            random: [7; 16],
        };
        Claims::new(&grant, now())
    }

    fn token() -> String {
        KEYS.sign(&claims(LONGEST_TOKEN), now()).unwrap()
    }

    fn verify(token: &str, at: Timestamp) -> Result<Claims, Disbelief> {
        KEYS.verify(token, ISSUER, |resource| resource == RESOURCE, at)
    }

    /// A token with this header, signed as somebody signs who has only what is published.
    fn forged(header: &Value, signature: &[u8]) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = serde_json::to_value(claims(LONGEST_TOKEN)).unwrap();
        format!(
            "{}.{}.{}",
            encode(header),
            encode(&claims),
            URL_SAFE_NO_PAD.encode(signature)
        )
    }

    #[test]
    fn what_was_signed_is_believed_until_its_end() {
        let text = token();
        assert!(text.len() < LONGEST_TEXT);
        let claims = verify(&text, now()).unwrap();
        assert_eq!(claims.account(), Some(account()));
        assert_eq!(claims.jti, "07070707-0707-4707-8707-070707070707");
        let end = now() + LONGEST_TOKEN;
        assert!(verify(&text, end - SignedDuration::from_secs(1)).is_ok());
        assert_eq!(verify(&text, end), Err(Disbelief::Expired));
        assert_eq!(
            verify(&text, now() - CLOCK_SKEW - SignedDuration::from_secs(1)),
            Err(Disbelief::Early)
        );
    }

    #[test]
    fn a_signature_that_was_verified_before_excuses_nothing_else() {
        let signed = KEYS.signed(&token(), now()).unwrap();
        let believe = |keys: &KeySet, resource: &str, minutes| {
            let at = now() + SignedDuration::from_mins(minutes);
            let believed = keys.believe(&signed, ISSUER, |wanted| wanted == resource, at);
            believed.map(Claims::account)
        };
        assert_eq!(believe(&KEYS, RESOURCE, 0), Ok(Some(account())));
        assert_eq!(believe(&KEYS, RESOURCE, 59), Ok(Some(account())));
        assert_eq!(believe(&KEYS, RESOURCE, 60), Err(Disbelief::Expired));
        assert_eq!(believe(&KEYS, RESOURCE, -2), Err(Disbelief::Early));
        assert_eq!(believe(&KEYS, "https://other", 0), Err(Disbelief::Audience));
        assert_eq!(believe(&OTHERS, RESOURCE, 0), Err(Disbelief::UnknownKey));
        // Its key goes before the token ends.
        let successor = key(now() + SignedDuration::from_mins(45) - Spans::default().tail);
        let turned = KeySet::new(vec![KEYS.keys()[0].clone(), successor]);
        assert_eq!(believe(&turned, RESOURCE, 44), Ok(Some(account())));
        assert_eq!(believe(&turned, RESOURCE, 45), Err(Disbelief::UnknownKey));
    }

    #[test]
    fn a_token_lives_as_long_as_what_it_is_given_for_within_bounds() {
        for (left, lives) in [
            (-5, 15),
            (0, 15),
            (10, 15),
            (15, 15),
            (40, 40),
            (60, 60),
            (90_000, 60),
        ] {
            let claims = claims(SignedDuration::from_mins(left));
            assert_eq!(claims.exp - claims.iat, lives * 60, "{left} minutes");
        }
    }

    #[test]
    fn a_token_in_the_wrong_place_or_of_the_wrong_kind_is_not_believed() {
        let text = token();
        let elsewhere = |issuer: &str, resource: &str| {
            KEYS.verify(&text, issuer, |wanted| wanted == resource, now())
        };
        assert_eq!(
            elsewhere(ISSUER, "https://webpubsub.azure.com"),
            Err(Disbelief::Audience)
        );
        assert_eq!(elsewhere("https://other", RESOURCE), Err(Disbelief::Issuer));
        assert_eq!(
            OTHERS.verify(&text, ISSUER, |_| true, now()),
            Err(Disbelief::UnknownKey)
        );
        // Another's signature under our key's name.
        let kid = KEYS.keys()[0].id().to_owned();
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(kid.clone());
        let stolen =
            jsonwebtoken::encode(&header, &claims(LONGEST_TOKEN), &OTHERS.keys()[0].private)
                .unwrap();
        assert_eq!(verify(&stolen, now()), Err(Disbelief::Signature));

        for alg in [
            "none", "None", "NONE", "HS256", "HS512", "RS256", "ES384", "EdDSA", "",
        ] {
            let header = json!({"alg": alg, "typ": "JWT", "kid": kid});
            assert_eq!(
                verify(&forged(&header, b""), now()),
                Err(Disbelief::Algorithm),
                "{alg}"
            );
        }
        // HMAC with what is published as the secret.
        let point: Vec<u8> = [4_u8]
            .into_iter()
            .chain(
                KEYS.keys()[0]
                    .coordinates
                    .iter()
                    .flat_map(|half| URL_SAFE_NO_PAD.decode(half).unwrap()),
            )
            .collect();
        for secret in [point.as_slice(), KEYS.document(now()).as_bytes()] {
            let mut header = Header::new(Algorithm::HS256);
            header.kid = Some(kid.clone());
            let secret = EncodingKey::from_secret(secret);
            let token = jsonwebtoken::encode(&header, &claims(LONGEST_TOKEN), &secret).unwrap();
            assert_eq!(verify(&token, now()), Err(Disbelief::Algorithm));
        }
        // A key brought along counts for nothing.
        let own = serde_json::to_value(OTHERS.keys()[0].document()).unwrap();
        let header = json!({"alg": "ES256", "jwk": own, "jku": "https://evil/keys"});
        assert_eq!(
            verify(&forged(&header, &[1; 64]), now()),
            Err(Disbelief::UnknownKey)
        );
        let header = json!({"alg": "ES256", "kid": "../../dev/null"});
        assert_eq!(
            verify(&forged(&header, &[1; 64]), now()),
            Err(Disbelief::UnknownKey)
        );
        for signature in [&b""[..], &[0; 64], &[255; 64], &[1; 63]] {
            let header = json!({"alg": "ES256", "kid": kid});
            assert_eq!(
                verify(&forged(&header, signature), now()),
                Err(Disbelief::Signature)
            );
        }
    }

    /// Any text as claims under any header, signed by our own key: what nobody but us can make, and
    /// what must be refused even if we did.
    fn ours(header: &str, claims: &str) -> String {
        let [header, claims] = [header, claims].map(|text| URL_SAFE_NO_PAD.encode(text));
        let message = format!("{header}.{claims}");
        let key = &KEYS.keys()[0].private;
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, Algorithm::ES256);
        format!("{message}.{}", signature.unwrap())
    }

    #[test]
    fn even_under_our_own_signature_only_our_own_form_is_believed() {
        let kid = KEYS.keys()[0].id();
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        let good = serde_json::to_string(&claims(LONGEST_TOKEN)).unwrap();
        assert!(verify(&ours(&header, &good), now()).is_ok());
        let with = |member: &str, value: &str| {
            let mut claims: Value = serde_json::from_str(&good).unwrap();
            claims[member] = serde_json::from_str(value).unwrap();
            claims.to_string()
        };
        let end = now().as_second();
        let (later, ended) = (format!("{}.5", end + 60), end.to_string());
        let early = (end + CLOCK_SKEW.as_secs() + 1).to_string();
        let string = format!("\"{}\"", end + 60);
        for (member, value) in [
            ("exp", &*ended),
            ("exp", &later),
            ("exp", &string),
            ("exp", "-1"),
            ("exp", "1e300"),
            ("exp", "18446744073709551615"),
            ("exp", "-9223372036854775808"),
            ("exp", "null"),
            ("exp", "[1]"),
            ("exp", "true"),
            ("nbf", &early),
            ("iat", &early),
            ("nbf", "null"),
            ("nbf", &string),
            ("aud", "[\"https://vault.azure.net\"]"),
            ("aud", "[]"),
            ("aud", "null"),
            ("aud", "\"https://vault.azure.net/\""),
            ("aud", "\"HTTPS://VAULT.AZURE.NET\""),
            ("iss", "[\"https://claviger.claviger-system.svc/adfs\"]"),
            ("iss", "\"https://claviger.claviger-system.svc/adfs/\""),
            ("iss", "\"https://claviger.claviger-system.svc\""),
            ("iss", "\"https://CLAVIGER.claviger-system.svc/adfs\""),
            ("sub", "null"),
            ("oid", "7"),
            ("kubernetes.io", "{}"),
            ("kubernetes.io", "{\"namespace\":\"shop\"}"),
        ] {
            assert!(
                verify(&ours(&header, &with(member, value)), now()).is_err(),
                "{member} {value}"
            );
        }
        // Said twice, whichever of the two is good.
        for (member, value) in [
            ("exp", "99999999999"),
            ("aud", "\"https://vault.azure.net\""),
            ("sub", "\"system:serviceaccount:shop:admin\""),
        ] {
            let first = good.replacen('{', &format!("{{\"{member}\":{value},"), 1);
            let last = format!("{},\"{member}\":{value}}}", good.strip_suffix('}').unwrap());
            for twice in [first, last] {
                assert!(verify(&ours(&header, &twice), now()).is_err(), "{twice}");
            }
        }
        let twice = format!("{{\"alg\":\"ES256\",\"alg\":\"ES256\",\"kid\":\"{kid}\"}}");
        assert!(verify(&ours(&twice, &good), now()).is_err());
        // Extensions that are not known here.
        for more in [
            json!({"crit": ["exp"]}),
            json!({"crit": ["b64"], "b64": false}),
            json!({"crit": []}),
            json!({"crit": "x"}),
        ] {
            let mut header = json!({"alg": "ES256", "kid": kid});
            json_patch::merge(&mut header, &more);
            assert_eq!(
                verify(&ours(&header.to_string(), &good), now()),
                Err(Disbelief::Algorithm),
                "{header}"
            );
        }
        let named = |kid: &Value| ours(&json!({"alg": "ES256", "kid": kid}).to_string(), &good);
        for other in [
            json!(""),
            json!("' OR '1'='1"),
            json!("/proc/self/environ"),
            json!(format!("{kid}\0")),
            json!(format!(" {kid}")),
            json!(kid.to_lowercase()),
        ] {
            assert_eq!(
                verify(&named(&other), now()),
                Err(Disbelief::UnknownKey),
                "{other}"
            );
        }
        for other in [json!(7), json!([kid]), json!({"kid": kid})] {
            assert_eq!(
                verify(&named(&other), now()),
                Err(Disbelief::Malformed),
                "{other}"
            );
        }
        // A key brought along is not used, even beside the name of ours.
        let own = serde_json::to_value(OTHERS.keys()[0].document()).unwrap();
        let mut header = json!({"alg": "ES256", "kid": kid, "jwk": own, "jku": "https://evil/keys", "x5u": "https://evil/x", "x5c": ["AA"]});
        assert!(verify(&forged(&header, &[1; 64]), now()).is_err());
        header["kid"] = json!(OTHERS.keys()[0].id());
        assert_eq!(
            verify(&forged(&header, &[1; 64]), now()),
            Err(Disbelief::UnknownKey)
        );
    }

    #[test]
    fn the_document_tells_the_public_half_and_nothing_else() {
        let document: Value = serde_json::from_str(&KEYS.document(now())).unwrap();
        let key = &document["keys"][0];
        let members: Vec<_> = key.as_object().unwrap().keys().collect();
        assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
        assert_eq!(key["kid"], KEYS.keys()[0].id());
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(key.clone()).unwrap();
        let public = DecodingKey::from_jwk(&jwk).unwrap();
        assert!(jsonwebtoken::decode::<Claims>(token(), &public, &signature_only()).is_ok());
        assert_eq!(
            format!("{:?}", KEYS.keys()[0]),
            format!("SigningKey({}, …redacted…)", KEYS.keys()[0].id())
        );
    }

    #[test]
    fn halves_of_different_keys_are_no_key() {
        let [one, two] = [(); 2].map(|()| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
        let pkcs8 = Zeroizing::new(one.serialize_der());
        assert!(SigningKey::new(pkcs8.clone(), two.public_key_raw(), now()).is_none());
        assert!(SigningKey::new(pkcs8, &[4; 10], now()).is_none());
        let none = Zeroizing::new(vec![1, 2, 3]);
        assert!(SigningKey::new(none, one.public_key_raw(), now()).is_none());
    }

    #[test]
    fn a_token_whose_claims_contradict_each_other_is_nobodys() {
        let change = |change: fn(&mut Claims)| {
            let mut claims = claims(LONGEST_TOKEN);
            change(&mut claims);
            claims.account()
        };
        assert!(change(|_| {}).is_some());
        assert!(
            change(|claims| claims.sub = "system:serviceaccount:shop:admin".to_owned()).is_none()
        );
        assert!(change(|claims| claims.oid = "other".to_owned()).is_none());
        assert!(change(|claims| claims.kubernetes.namespace = "a:b".to_owned()).is_none());
    }

    proptest! {
        #[test]
        fn whatever_is_granted_reads_back_as_it_was_signed(
            namespace in "[a-z]([a-z0-9-]{0,10}[a-z0-9])?", name in "[a-z]([a-z0-9.-]{0,10}[a-z0-9])?", uid in "[!-~]{1,40}",
            pod in proptest::option::of(("[a-z]{1,9}", "[a-f0-9-]{1,36}")), minutes in -10_i64..100, random in any::<[u8; 16]>(),
        ) {
            let pod = pod.map(|(name, uid)| Pod { name, uid });
            let account = ServiceAccount { namespace, name, uid, pod };
            let grant = Grant {
                issuer: ISSUER, tenant: "adfs", resource: RESOURCE, account: &account, random,
                assertion_expires: now() + SignedDuration::from_mins(minutes),
            };
            let claims = Claims::new(&grant, now());
            let text = KEYS.sign(&claims, now()).unwrap();
            prop_assert_eq!(&verify(&text, now()), &Ok(claims.clone()));
            if is_object_name(&account.name) {
                prop_assert_eq!(claims.account(), Some(account));
            }
        }

        #[test]
        fn no_changed_character_is_believed(at in 0_usize..400, to in "[A-Za-z0-9_.-]") {
            let text = token();
            let at = at % text.len();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            // The last character of a part has bits that say nothing.
            let same = |one: &str, two: &str| {
                one.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).ok())
                    .eq(two.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).ok()))
            };
            if !same(&text, &changed) {
                prop_assert!(verify(&changed, now()).is_err());
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            prop_assert!(verify(&text, now()).is_err());
            let _ = (Heading::of(&text), Says::of(&text));
        }

        #[test]
        fn anything_in_three_parts_is_read_or_refused(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 3),
        ) {
            let text = parts.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect::<Vec<_>>().join(".");
            prop_assert!(verify(&text, now()).is_err());
            let _ = Says::of(&text);
        }

        #[test]
        fn any_claims_are_read_or_refused(
            exp in prop_oneof![
                any::<i64>().prop_map(|number| json!(number)), any::<f64>().prop_map(|number| json!(number)),
                any::<u64>().prop_map(|number| json!(number)), Just(json!("soon")), Just(json!(null)),
            ],
            aud in prop_oneof![Just(json!("a")), Just(json!(["a", "b"])), Just(json!(7)), Just(json!(null))],
        ) {
            let body = URL_SAFE_NO_PAD.encode(json!({"iss": "i", "exp": exp, "aud": aud}).to_string());
            let _ = Says::of(&format!("e30.{body}.AA"));
        }
    }
}
