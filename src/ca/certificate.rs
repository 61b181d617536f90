//! Making certificates: of a version of the CA, and of the leafs that it signs.
//!
//! All keys are P-256, which every client of the doors knows. A version's certificate is a root with
//! name constraints, marked critical: clients accept from it no leaf for a name outside of them.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use snafu::{ResultExt, Snafu};
use zeroize::{Zeroize, Zeroizing};

use crate::{domain::ca::Version, k8s::ca::Issuer};

/// No certificate could be made.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The library refused.
    #[snafu(display("the certificate could not be made"))]
    Certificate {
        /// Why.
        source: rcgen::Error,
    },
    /// No random bytes.
    #[snafu(display("no random bytes could be had"))]
    Random {
        /// Why.
        source: getrandom::Error,
    },
}

/// A leaf with its private key.
pub struct Leaf {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key, PKCS #8.
    pub key: PrivateKeyDer<'static>,
}

/// Makes the key and the certificate of a version of the CA.
///
/// # Errors
/// See [`Error`].
pub fn mint(version: &Version) -> Result<Issuer, Error> {
    // Clients find an issuer by its name: no two versions, of no two installs, share one.
    let mut random = [0; 4];
    getrandom::fill(&mut random).context(RandomSnafu)?;
    let subject = format!(
        "Claviger CA {} {:08x}",
        version.number,
        u32::from_be_bytes(random)
    );
    let mut params = params(&subject, version.not_before, version.not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: version
            .names
            .iter()
            .cloned()
            .map(GeneralSubtree::DnsName)
            .collect(),
        // To permit some DNS names is to say nothing of addresses.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    let key = key()?;
    let certificate = params.self_signed(&*key).context(CertificateSnafu)?;
    Ok(Issuer {
        version: version.clone(),
        subject,
        certificate: super::roots::pem(certificate.der()),
        key: Zeroizing::new(key.serialize_pem()),
    })
}

/// Makes a leaf for these DNS names, of which some may be wildcards, with a key of its own.
///
/// # Errors
/// See [`Error`].
pub fn leaf(
    issuer: &Issuer,
    names: &[String],
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<Leaf, Error> {
    let mut params = params("Claviger", not_before, not_after)?;
    params.subject_alt_names = CertificateParams::new(names)
        .context(CertificateSnafu)?
        .subject_alt_names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;

    let authority = KeyPair::from_pkcs8_pem_and_sign_algo(&issuer.key, &PKCS_ECDSA_P256_SHA256)
        .map(Zeroizing::new)
        .context(CertificateSnafu)?;
    let mut of_issuer = CertificateParams::default();
    of_issuer.distinguished_name = name(&issuer.subject);
    of_issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let signing = rcgen::Issuer::from_params(&of_issuer, &*authority);

    let own = key()?;
    let certificate = params
        .signed_by(&*own, &signing)
        .context(CertificateSnafu)?;
    Ok(Leaf {
        certificate: certificate.der().clone(),
        key: PrivatePkcs8KeyDer::from(own.serialize_der()).into(),
    })
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if let PrivateKeyDer::Pkcs8(key) = &mut self.key {
            key.zeroize();
        }
    }
}

fn key() -> Result<Zeroizing<KeyPair>, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map(Zeroizing::new)
        .context(CertificateSnafu)
}

/// What all certificates have in common.
fn params(
    subject: &str,
    not_before: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(subject);
    params.not_before = at(not_before);
    params.not_after = at(not_after);
    // On the CA it holds for what it signs: leafs for servers and for nothing else.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).context(RandomSnafu)?;
    // Positive, and of one length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn at(time: Timestamp) -> time::OffsetDateTime {
    let seconds = u64::try_from(time.as_second()).unwrap_or_default();
    rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::SignedDuration;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{ServerName, UnixTime, pem::PemObject},
    };
    use std::sync::Arc;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    fn version(number: u64, names: &[&str]) -> Version {
        Version {
            number,
            not_before: now(),
            not_after: now() + SignedDuration::from_hours(8760),
            signs_from: now(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    fn verify(
        issuer: &Issuer,
        leaf: &Leaf,
        name: &str,
        at: Timestamp,
    ) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(issuer.certificate.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let at = Duration::from_secs(at.as_second().try_into().unwrap());
        verifier
            .verify_server_cert(
                &leaf.certificate,
                &[],
                &ServerName::try_from(name.to_owned()).unwrap(),
                &[],
                UnixTime::since_unix_epoch(at),
            )
            .map(drop)
    }

    fn signed(issuer: &Issuer, names: &[&str]) -> Leaf {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        leaf(
            issuer,
            &names,
            now(),
            now() + SignedDuration::from_hours(24),
        )
        .unwrap()
    }

    #[test]
    fn leafs_verify_for_names_within_the_constraints_in_their_time() {
        let ca = mint(&version(
            1,
            &["svc", "svc.cluster.local", "keys.example.com"],
        ))
        .unwrap();
        let made = signed(
            &ca,
            &[
                "*.shop.svc",
                "*.shop.svc.cluster.local",
                "*.keys.example.com",
            ],
        );
        for name in [
            "payments-vault.shop.svc",
            "payments-vault.shop.svc.cluster.local",
            "payments-vault--shop.keys.example.com",
        ] {
            assert_eq!(verify(&ca, &made, name, now()), Ok(()), "{name}");
        }
        for name in ["a.other.svc", "a.b.shop.svc", "shop.svc", "example.com"] {
            assert!(verify(&ca, &made, name, now()).is_err(), "{name}");
        }
        let hours = SignedDuration::from_hours;
        assert!(verify(&ca, &made, "a.shop.svc", now() + hours(25)).is_err());
        assert!(verify(&ca, &made, "a.shop.svc", now() - hours(1)).is_err());
        // Another CA, of the same number even, did not sign it.
        let other = mint(&version(1, &["svc"])).unwrap();
        assert!(verify(&other, &made, "a.shop.svc", now()).is_err());
        assert_ne!(ca.subject, other.subject);
    }

    #[test]
    fn a_leaf_with_any_name_outside_the_constraints_verifies_for_none() {
        let ca = mint(&version(1, &["svc"])).unwrap();
        for stranger in [
            "vault.azure.net",
            "svc.example.com",
            "notsvc",
            "10.0.0.1",
            "fd00::1",
        ] {
            let made = signed(&ca, &["a.shop.svc", stranger]);
            for name in ["a.shop.svc", stranger] {
                let refused = verify(&ca, &made, name, now()).unwrap_err();
                assert!(
                    matches!(refused, rustls::Error::InvalidCertificate(_)),
                    "{stranger}: {refused}"
                );
            }
        }
    }

    #[test]
    fn openssl_reads_the_constraints_as_they_are_meant() {
        let names = BTreeSet::from(["svc", "keys.example.com"]);
        let ca = mint(&version(1, &names.into_iter().collect::<Vec<_>>())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let authority = file("ca.crt", &ca.certificate);
        let openssl = |args: &[&str]| {
            let output = std::process::Command::new("openssl").args(args).output();
            let output = output.expect("openssl is installed");
            let told = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(told).unwrap())
        };
        let (_, told) = openssl(&["x509", "-in", &authority, "-noout", "-text"]);
        for line in [
            "X509v3 Name Constraints: critical",
            "DNS:keys.example.com",
            "DNS:svc",
            "IP:0.0.0.0/0.0.0.0",
            "CA:TRUE, pathlen:0",
            "Certificate Sign",
            "TLS Web Server Authentication",
            "prime256v1",
        ] {
            assert!(told.contains(line), "{line} is not in {told}");
        }
        let time = now().as_second().to_string();
        for (names, verifies) in [
            (&["*.shop.svc", "x.keys.example.com"][..], true),
            (&["*.shop.svc", "vault.azure.net"], false),
            (&["10.0.0.1"], false),
        ] {
            let made = signed(&ca, names);
            let leaf = file("leaf.crt", &super::super::roots::pem(&made.certificate));
            let args = [
                "verify",
                "-x509_strict",
                "-purpose",
                "sslserver",
                "-attime",
                &time,
                "-CAfile",
                &authority,
                &leaf,
            ];
            let (verified, told) = openssl(&args);
            assert_eq!(verified, verifies, "{names:?}: {told}");
        }
    }
}
