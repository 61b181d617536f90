//! Which certificate is shown for which name.
//!
//! For the names of a given certificate (`--tls-secret`) that one; for the other names of ours a leaf
//! of Claviger's own CA, one for each namespace, issued when it is first asked for and kept until a
//! third of its life is left. A name that is none of ours gets no certificate, and so no connection.
//! Certificates are changed under connections that are open: those keep what they have.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use rustls::{
    client::verify_server_name,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use snafu::{OptionExt, ResultExt, Snafu, ensure};
use zeroize::Zeroizing;

use crate::{
    ca::{CLOCK_SKEW, certificate},
    clock,
    domain::ca::{leaf_renewal, leaf_validity, signer},
    k8s::ca::Issuer,
    server::names::{Group, Names},
};

/// How many leafs are kept, twice: those asked for lately and those before them.
const KEPT: usize = 512;

/// The given certificate cannot be used.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The certificate is not for the key.
    #[snafu(display("tls.crt and tls.key do not belong together, or cannot be used"))]
    Pair {
        /// Why.
        source: rustls::Error,
    },
    /// An entry is missing or not PEM.
    #[snafu(display("{entry} holds no PEM that could be read"))]
    Pem {
        /// Which.
        entry: &'static str,
    },
    /// The Secret is of another type.
    #[snafu(display("its type is not kubernetes.io/tls"))]
    Type,
}

/// Shows certificates.
pub struct Certificates {
    names: Names,
    lifetime: SignedDuration,
    provider: Arc<CryptoProvider>,
    issuers: RwLock<Vec<Issuer>>,
    given: RwLock<Option<Arc<CertifiedKey>>>,
    leafs: Mutex<Leafs>,
}

impl Certificates {
    /// Leafs live as long as this says.
    pub fn new(names: Names, lifetime: SignedDuration, provider: Arc<CryptoProvider>) -> Self {
        Self {
            names,
            lifetime,
            provider,
            issuers: RwLock::default(),
            given: RwLock::default(),
            leafs: Mutex::default(),
        }
    }

    /// From now on these versions of the CA sign.
    pub fn sign_with(&self, issuers: Vec<Issuer>) {
        *self.issuers.write().unwrap_or_else(PoisonError::into_inner) = issuers;
    }

    /// Whether there is a CA that signs.
    pub fn can_sign(&self) -> bool {
        !self
            .issuers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// From now on this certificate is shown for the names that it is for.
    ///
    /// # Errors
    /// See [`Error`]; then the one before stays.
    pub fn show(&self, secret: Secret) -> Result<(), Error> {
        let given = parse(secret, &self.provider)?;
        *self.given.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(given));
        Ok(())
    }

    /// Whether a certificate was given.
    pub fn has_given(&self) -> bool {
        self.given
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// The certificate for a host name, at a time.
    pub fn find(&self, name: &str, now: Timestamp) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let given = self
            .given
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(given) = given
            && covers(&given, &name)
        {
            return Some(given);
        }
        let group = self.names.group(&name)?;
        let issuers = self.issuers.read().unwrap_or_else(PoisonError::into_inner);
        let versions = issuers.iter().map(|issuer| &issuer.version);
        let number = signer(versions, &name, now)?.number;
        let issuer = issuers
            .iter()
            .find(|issuer| issuer.version.number == number)?;
        // By version: while the cluster's domain changes, none can sign for all names of a group.
        let kept = (group, number);
        let mut leafs = self.leafs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leafs.get(&kept)
            // A clock that was put back makes one of the future.
            && (leaf.from..leaf.renew).contains(&now)
            // A number alone may be that of a CA that is gone for good.
            && leaf.issuer == issuer.subject
        {
            return Some(Arc::clone(&leaf.key));
        }
        let leaf = self.issue(issuer, &kept.0, now)?;
        let key = Arc::clone(&leaf.key);
        leafs.put(kept, leaf);
        Some(key)
    }

    fn issue(&self, issuer: &Issuer, group: &Group, now: Timestamp) -> Option<Leaf> {
        let skew = CLOCK_SKEW.min(self.lifetime);
        let (from, until) = leaf_validity(&issuer.version, self.lifetime, skew, now);
        let mut names = self.names.of(group);
        names.retain(|name| issuer.version.permits(name));
        let made = certificate::leaf(issuer, &names, from, until)
            .inspect_err(|error| tracing::error!(%error, "no certificate could be issued"))
            .ok()?;
        let key = self
            .provider
            .key_provider
            .load_private_key(made.key.clone_key())
            .inspect_err(|error| tracing::error!(%error, "a key made here cannot be used"))
            .ok()?;
        let ca = issuer.version.number;
        tracing::debug!(?group, ca, %until, "a certificate was issued");
        Some(Leaf {
            key: Arc::new(CertifiedKey::new(vec![made.certificate.clone()], key)),
            from,
            renew: leaf_renewal(from, until),
            issuer: issuer.subject.clone(),
        })
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()?, clock::now())
    }
}

/// A leaf that is kept.
struct Leaf {
    key: Arc<CertifiedKey>,
    from: Timestamp,
    renew: Timestamp,
    issuer: String,
}

/// What a leaf is kept under: whose names it has, and the number of the CA's version that signed it.
type Kept = (Group, u64);

/// The leafs that are kept: no more than twice [`KEPT`], whoever asks for whatever.
#[derive(Default)]
struct Leafs {
    young: HashMap<Kept, Leaf>,
    old: HashMap<Kept, Leaf>,
}

impl Leafs {
    fn get(&mut self, kept: &Kept) -> Option<&Leaf> {
        if let Some(leaf) = self.old.remove(kept) {
            self.put(kept.clone(), leaf);
        }
        self.young.get(kept)
    }

    fn put(&mut self, kept: Kept, leaf: Leaf) {
        if self.young.len() >= KEPT && !self.young.contains_key(&kept) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(kept, leaf);
    }
}

fn covers(given: &CertifiedKey, name: &str) -> bool {
    let Some(Ok(parsed)) = given.cert.first().map(ParsedCertificate::try_from) else {
        return false;
    };
    ServerName::try_from(name).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
}

fn parse(secret: Secret, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    ensure!(
        secret.type_.as_deref() == Some("kubernetes.io/tls"),
        TypeSnafu
    );
    let mut data = secret.data.unwrap_or_default();
    let mut entry = |entry: &'static str| {
        data.remove(entry)
            .map(|bytes| Zeroizing::new(bytes.0))
            .context(PemSnafu { entry })
    };
    let (certificate, key) = (entry("tls.crt")?, entry("tls.key")?);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<_, _>>()
        .ok()
        .filter(|chain: &Vec<_>| !chain.is_empty())
        .context(PemSnafu { entry: "tls.crt" })?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .ok()
        .context(PemSnafu { entry: "tls.key" })?;
    CertifiedKey::from_der(chain, key, provider).context(PairSnafu)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use k8s_openapi::ByteString;

    use super::*;
    use crate::domain::ca::Version;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn now() -> Timestamp {
        "2026-11-22T08:00:00Z".parse().unwrap()
    }

    fn certificates() -> Certificates {
        use clap::Parser;
        let line = ["claviger", "server", "--domain=keys.example.com"];
        let crate::cli::Command::Server(args) =
            crate::cli::Cli::try_parse_from(line).unwrap().command
        else {
            panic!("not the server")
        };
        let names = Names::new(&args.names, &args.doors, &args.system_namespace);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Certificates::new(names, HOUR * 24, provider)
    }

    fn issuer(number: u64, signs_from: Timestamp) -> Issuer {
        certificate::mint(&Version {
            number,
            not_before: now() - HOUR,
            not_after: now() + HOUR * 8760,
            signs_from,
            names: ["svc", "svc.cluster.local", "keys.example.com"]
                .map(str::to_owned)
                .into(),
        })
        .unwrap()
    }

    fn is_signed_by(found: &CertifiedKey, issuer: &Issuer) -> bool {
        let (subject, der) = (issuer.subject.as_bytes(), found.cert[0].as_ref());
        der.windows(subject.len()).any(|window| window == subject)
    }

    fn given(names: &[&str]) -> Secret {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let entry = |text: String| ByteString(text.into_bytes());
        Secret {
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(BTreeMap::from([
                (
                    "tls.crt".to_owned(),
                    entry(params.self_signed(&key).unwrap().pem()),
                ),
                ("tls.key".to_owned(), entry(key.serialize_pem())),
            ])),
            ..Secret::default()
        }
    }

    #[test]
    fn one_certificate_serves_a_namespace_until_it_is_renewed() {
        let certificates = certificates();
        assert!(certificates.find("a.shop.svc", now()).is_none());
        certificates.sign_with(vec![issuer(1, now())]);
        let first = certificates.find("a.shop.svc", now()).unwrap();
        for same in ["B.Shop.SVC", "c.shop.svc.cluster.local"] {
            let found = certificates.find(same, now() + HOUR * 15).unwrap();
            assert!(Arc::ptr_eq(&found, &first), "{same}");
            assert!(covers(&found, &same.to_lowercase()));
        }
        let other = certificates.find("a.front.svc", now()).unwrap();
        assert!(!Arc::ptr_eq(&other, &first));
        let renewed = certificates.find("a.shop.svc", now() + HOUR * 17).unwrap();
        assert!(!Arc::ptr_eq(&renewed, &first));
        // The clock was put back: nobody would believe what is of tomorrow.
        let again = certificates.find("a.shop.svc", now()).unwrap();
        assert!(!Arc::ptr_eq(&again, &renewed));
        for stranger in ["vault.azure.net", "shop.svc", "10.0.0.1", "a.b.c.svc"] {
            assert!(certificates.find(stranger, now()).is_none(), "{stranger}");
        }
    }

    #[test]
    fn the_next_ca_signs_when_its_time_has_come_and_one_that_is_gone_is_shown_no_more() {
        let certificates = certificates();
        let (one, two) = (issuer(1, now()), issuer(2, now() + HOUR * 48));
        certificates.sign_with(vec![one.clone(), two.clone()]);
        let mut signed_by = Vec::new();
        for hours in (0..72).step_by(6) {
            let at = now() + HOUR * hours;
            let found = certificates.find("a.shop.svc", at).unwrap();
            signed_by.push(is_signed_by(&found, &two));
        }
        assert!(!signed_by[0] && signed_by[11]);
        assert!(signed_by.is_sorted(), "{signed_by:?}");
        // Somebody has deleted the CA, and another was made.
        let before = certificates.find("a.shop.svc", now() + HOUR * 70).unwrap();
        certificates.sign_with(vec![issuer(1, now())]);
        let after = certificates.find("a.shop.svc", now() + HOUR * 70).unwrap();
        assert!(!Arc::ptr_eq(&before, &after));
    }

    #[test]
    fn while_the_domain_changes_each_name_is_signed_for_by_the_ca_that_may() {
        let certificates = certificates();
        let mut one = issuer(1, now());
        one.version.names.remove("svc.cluster.local");
        let two = issuer(2, now() + HOUR * 48);
        certificates.sign_with(vec![one.clone(), two.clone()]);
        for _ in 0..2 {
            for (name, by) in [("a.shop.svc", &one), ("a.shop.svc.cluster.local", &two)] {
                let found = certificates.find(name, now()).unwrap();
                assert!(covers(&found, name), "{name}");
                assert!(is_signed_by(&found, by), "{name}");
            }
        }
    }

    #[test]
    fn a_given_certificate_is_shown_for_its_names_and_changed_when_it_changes() {
        let certificates = certificates();
        certificates.sign_with(vec![issuer(1, now())]);
        assert!(!certificates.has_given());
        certificates
            .show(given(&["*.keys.example.com", "login.example.com"]))
            .unwrap();
        let own = certificates.find("login.example.com", now()).unwrap();
        let same = certificates.find("a.keys.example.com", now()).unwrap();
        assert!(Arc::ptr_eq(&own, &same));
        let leaf = certificates.find("a.shop.svc", now()).unwrap();
        assert!(!Arc::ptr_eq(&own, &leaf));
        certificates.show(given(&["login.example.com"])).unwrap();
        let changed = certificates.find("login.example.com", now()).unwrap();
        assert!(!Arc::ptr_eq(&own, &changed));
        // What cannot be used changes nothing.
        let mut broken = given(&["login.example.com"]);
        let other = given(&["login.example.com"])
            .data
            .unwrap()
            .remove("tls.key");
        broken
            .data
            .as_mut()
            .unwrap()
            .insert("tls.key".to_owned(), other.unwrap());
        assert!(matches!(certificates.show(broken), Err(Error::Pair { .. })));
        let opaque = Secret {
            type_: None,
            ..given(&["login.example.com"])
        };
        assert!(matches!(certificates.show(opaque), Err(Error::Type)));
        let mut half = given(&["login.example.com"]);
        half.data.as_mut().unwrap().remove("tls.crt");
        assert!(matches!(
            certificates.show(half),
            Err(Error::Pem { entry: "tls.crt" })
        ));
        let still = certificates.find("login.example.com", now()).unwrap();
        assert!(Arc::ptr_eq(&still, &changed));
    }

    #[test]
    fn whoever_asks_for_whatever_what_is_kept_is_bounded() {
        let certificates = certificates();
        certificates.sign_with(vec![issuer(1, now())]);
        let favourite = certificates.find("a.shop.svc", now()).unwrap();
        let mut seen = BTreeSet::new();
        for number in 0..3 * KEPT {
            certificates
                .find(&format!("a.n{number}.svc"), now())
                .unwrap();
            let found = certificates.find("a.shop.svc", now()).unwrap();
            seen.insert(Arc::ptr_eq(&found, &favourite));
            let leafs = certificates.leafs.lock().unwrap();
            assert!(leafs.young.len() <= KEPT && leafs.old.len() <= KEPT);
        }
        assert_eq!(
            seen,
            BTreeSet::from([true]),
            "what is asked for often is kept"
        );
    }
}
