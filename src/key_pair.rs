//! Minting key pairs: a self-signed certificate for TLS, an Ed25519 pair for SSH, a P-256 pair that
//! signs access tokens.
//!
//! Each comes as one text, so that a pair is one version of one secret; how to take it apart is in
//! [`part`](crate::domain::vault::part).

use std::{net::IpAddr, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use snafu::{OptionExt as _, ResultExt as _, Snafu, ensure};
use ssh_key::{
    LineEnding, PrivateKey,
    private::{Ed25519Keypair, KeypairData},
};
use zeroize::Zeroizing;

use crate::domain::{access_token::SigningKey, key::KeyMaterial};

/// No pair could be made.
#[derive(Debug, Snafu)]
#[expect(missing_docs, reason = "the fields are what the messages say they are")]
pub enum KeyPairError {
    /// The certificate's subject.
    #[snafu(display(
        "the common name must have 1 to {MAX_COMMON_NAME} characters and no control characters"
    ))]
    CommonName,

    /// No name that a certificate can be for.
    #[snafu(display(
        "{name:?} is neither a DNS name (a first label * is allowed) nor an IP address"
    ))]
    DnsName { name: String },

    /// There is nothing to be verified by a client.
    #[snafu(display(
        "the certificate would be for no name: give dnsNames, or a common name that is a DNS name"
    ))]
    NoName,

    /// No random bytes.
    #[snafu(display("no random bytes could be had"))]
    Random { source: getrandom::Error },

    /// The library refused.
    #[snafu(display("the certificate could not be made"))]
    Certificate { source: rcgen::Error },

    /// Ends before it begins, or after time itself.
    #[snafu(display(
        "the validity must be more than zero and end before the year 10000; give another one"
    ))]
    Validity,
}

/// Mints a P-256 key and a certificate that it signs itself, for servers and clients.
///
/// The certificate is for `dns_names`, of which some may be IP addresses; without any, for the
/// common name. It is valid from [`CLOCK_SKEW`] before `now`, for clocks that are slow, until
/// `validity` after `now`. The text is a PEM bundle: the key as PKCS #8, then the certificate.
pub fn tls(
    common_name: &str,
    dns_names: &[String],
    validity: SignedDuration,
    now: Timestamp,
) -> Result<KeyMaterial, KeyPairError> {
    ensure!(
        (1..=MAX_COMMON_NAME).contains(&common_name.chars().count())
            && !common_name.contains(char::is_control),
        CommonNameSnafu
    );
    let mut names = dns_names.to_vec();
    for name in &names {
        ensure!(is_name(name), DnsNameSnafu { name });
    }
    if names.is_empty() {
        ensure!(is_name(common_name), NoNameSnafu);
        names.push(common_name.to_owned());
    }
    ensure!(validity.is_positive(), ValiditySnafu);
    let end = now.checked_add(validity).ok().context(ValiditySnafu)?;
    let start = now.checked_sub(CLOCK_SKEW).ok().context(ValiditySnafu)?;

    let mut params = CertificateParams::new(names).context(CertificateSnafu)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(start)?;
    params.not_after = epoch + since_epoch(end)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).context(RandomSnafu)?;
    // positive, and of one length
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context(CertificateSnafu)?;
    let key = Zeroizing::new(key);
    let certificate = params.self_signed(&*key).context(CertificateSnafu)?.pem();
    let private = Zeroizing::new(key.serialize_pem());
    let mut bundle = Zeroizing::new(String::with_capacity(private.len() + certificate.len()));
    bundle.push_str(&private);
    bundle.push_str(&certificate);
    Ok(KeyMaterial::new(bundle.as_str()))
}

/// Makes an Ed25519 pair from a random seed.
///
/// The text is the private key as OpenSSH writes it, without a passphrase, then the line for
/// `authorized_keys`. Control characters of the comment are left out: it must stay on that line.
pub fn ssh(comment: &str, seed: &Zeroizing<[u8; 32]>) -> KeyMaterial {
    let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
    let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(seed));
    let key = PrivateKey::new(pair, comment.trim()).expect("an unencrypted pair is always a key");
    let private = key
        .to_openssh(LineEnding::LF)
        .expect("a key in memory can be written");
    let public = key
        .public_key()
        .to_openssh()
        .expect("a key in memory can be written");
    let mut text = Zeroizing::new(String::with_capacity(private.len() + public.len() + 1));
    text.push_str(&private);
    text.push_str(&public);
    text.push('\n');
    KeyMaterial::new(text.as_str())
}

/// A P-256 pair that is to sign access tokens.
pub struct SigningPair {
    pkcs8: Zeroizing<Vec<u8>>,
    point: Vec<u8>,
}

impl SigningPair {
    /// Makes a pair.
    pub fn mint() -> Result<Self, KeyPairError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context(CertificateSnafu)?;
        Ok(Self::of(&Zeroizing::new(pair)))
    }

    /// Reads a pair from its private half as PKCS #8; nothing if it is none.
    pub fn read(pkcs8: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).ok()?;
        Some(Self::of(&Zeroizing::new(pair)))
    }

    /// The key that signs from this time on.
    pub fn signs_from(self, time: Timestamp) -> Option<SigningKey> {
        SigningKey::new(self.pkcs8, &self.point, time)
    }

    fn of(pair: &KeyPair) -> Self {
        Self {
            pkcs8: Zeroizing::new(pair.serialize_der()),
            point: pair.public_key_raw().to_vec(),
        }
    }
}

/// How long before its minting a certificate is valid already.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);
/// RFC 5280, `ub-common-name`.
pub const MAX_COMMON_NAME: usize = 64;

fn since_epoch(time: Timestamp) -> Result<Duration, KeyPairError> {
    let seconds = u64::try_from(time.as_second()).ok();
    // In the year 10000 certificates run out of digits.
    let seconds = seconds
        .filter(|seconds| *seconds < 253_402_300_800)
        .context(ValiditySnafu)?;
    Ok(Duration::from_secs(seconds))
}

/// Whether a certificate can be for this: an IP address, or a DNS name as RFC 1123 has it.
fn is_name(name: &str) -> bool {
    let labels = name.strip_prefix("*.").unwrap_or(name);
    name.parse::<IpAddr>().is_ok()
        || name.len() <= 253
            && labels.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
            // all digits at the end is an address with a mistake, not a name
            && !labels
                .rsplit('.')
                .next()
                .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::WebPkiClientVerifier,
        time_provider::TimeProvider,
    };

    use super::*;
    use crate::domain::vault::part::{Part, part};

    const YEAR: SignedDuration = SignedDuration::from_hours(8760);

    fn now() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[derive(Debug)]
    struct At(Timestamp);

    impl TimeProvider for At {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(since_epoch(self.0).unwrap()))
        }
    }

    /// Server and client show each other this pair, and trust nothing else, at a time.
    fn handshake(bundle: &KeyMaterial, name: &str, at: Timestamp) -> Result<(), rustls::Error> {
        let certificate = part(bundle, Part::Certificate).unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate.expose().as_bytes()).unwrap();
        let private = part(bundle, Part::PrivateKey).unwrap();
        let private = || PrivateKeyDer::from_pem_slice(private.expose().as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let time = Arc::new(At(at));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .unwrap();
        let server = ServerConfig::builder_with_details(provider.clone(), time.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], private())?;
        let client = ClientConfig::builder_with_details(provider, time)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], private())?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        for _ in 0..10 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut wire = io::Cursor::new(wire);
            while server.read_tls(&mut wire).unwrap() > 0 {
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut wire = io::Cursor::new(wire);
            while client.read_tls(&mut wire).unwrap() > 0 {
                client.process_new_packets()?;
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok(())
    }

    #[test]
    fn tls_pairs_serve_their_names_and_no_other_in_their_time_and_at_no_other() {
        let bundle = tls(
            "payments",
            &names(&["db.shop.svc", "*.db.shop", "10.0.0.7", "fd00::7"]),
            YEAR,
            now(),
        )
        .unwrap();
        assert!(bundle.expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert!(bundle.expose().ends_with("-----END CERTIFICATE-----\n"));
        assert!(!bundle.expose().contains('\r'));
        for name in ["db.shop.svc", "a.db.shop", "10.0.0.7", "fd00::7"] {
            assert_eq!(handshake(&bundle, name, now()), Ok(()), "{name}");
        }
        for name in ["payments", "other.svc", "10.0.0.8", "a.b.db.shop"] {
            assert!(handshake(&bundle, name, now()).is_err(), "{name}");
        }
        let at = |offset| handshake(&bundle, "db.shop.svc", now() + offset);
        let second = SignedDuration::from_secs(1);
        assert_eq!(at(-CLOCK_SKEW), Ok(()));
        assert!(at(-CLOCK_SKEW - second).is_err());
        assert_eq!(at(YEAR), Ok(()));
        assert!(at(YEAR + second).is_err());
    }

    #[test]
    fn the_common_name_serves_where_no_other_is_given() {
        let bundle = tls("db.shop.svc", &[], YEAR, now()).unwrap();
        assert_eq!(handshake(&bundle, "db.shop.svc", now()), Ok(()));
        let error = tls("The payments", &[], YEAR, now()).unwrap_err();
        assert!(matches!(error, KeyPairError::NoName));
    }

    #[test]
    fn two_pairs_have_nothing_in_common() {
        let mint = || tls("db", &[], YEAR, now()).unwrap();
        let (one, two) = (mint(), mint());
        for wanted in [Part::PrivateKey, Part::Certificate] {
            assert_ne!(part(&one, wanted).unwrap(), part(&two, wanted).unwrap());
        }
    }

    #[test]
    fn what_cannot_be_in_a_certificate_is_refused() {
        let long = "x".repeat(65);
        for name in ["", "a\nb", &long] {
            let error = tls(name, &names(&["db"]), YEAR, now()).unwrap_err();
            assert!(matches!(error, KeyPairError::CommonName));
        }
        let label = format!("{}.x", "x".repeat(64));
        let total = "x.".repeat(127) + "x";
        for name in [
            "",
            "é.shop",
            "a b",
            "-a",
            "a-",
            "a..b",
            ".a",
            "a.",
            "*",
            "a.*.b",
            "10.0.0",
            "1.2.3.256",
            "a_b",
            "a/b",
            "http://a",
            &label,
            &total,
        ] {
            let error = tls("db", &names(&["db", name]), YEAR, now()).unwrap_err();
            assert!(matches!(error, KeyPairError::DnsName { .. }), "{name}");
        }
        for validity in [
            SignedDuration::ZERO,
            -YEAR,
            SignedDuration::MAX,
            SignedDuration::from_hours(24 * 366 * 8000),
        ] {
            let error = tls("db", &[], validity, now()).unwrap_err();
            assert!(matches!(error, KeyPairError::Validity), "{validity}");
        }
        assert!(tls("db", &[], YEAR, Timestamp::UNIX_EPOCH).is_err());
        assert!(tls("db", &[], SignedDuration::from_hours(24 * 365 * 100), now()).is_ok());
    }

    #[test]
    fn ssh_pairs_read_back() {
        let seed = Zeroizing::new([7; 32]);
        let text = ssh("deploy@shop\nssh-rsa AAAA", &seed);
        let private = part(&text, Part::PrivateKey).unwrap();
        let public = part(&text, Part::PublicKey).unwrap();
        let read = PrivateKey::from_openssh(private.expose()).unwrap();
        assert!(!read.is_encrypted());
        assert_eq!(read.comment(), "deploy@shopssh-rsa AAAA");
        assert_eq!(read.key_data().ed25519().unwrap().private.to_bytes(), *seed);
        let public = ssh_key::PublicKey::from_openssh(public.expose()).unwrap();
        assert_eq!(read.public_key(), &public);
        let tested = [0x5a; 100];
        let signature = read
            .sign("claviger", ssh_key::HashAlg::Sha512, &tested)
            .unwrap();
        assert_eq!(public.verify("claviger", &tested, &signature), Ok(()));
        // one seed, one pair
        assert_eq!(ssh("deploy@shop\nssh-rsa AAAA", &seed), text);
        assert_ne!(ssh("", &Zeroizing::new([8; 32])), ssh("", &seed));
        assert!(part(&ssh("", &seed), Part::PublicKey).is_ok());
    }
}
