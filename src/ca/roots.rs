//! What is published for clients: the public roots of the Web, further roots of the install, and the
//! versions of Claviger's own CA.
//!
//! `SSL_CERT_FILE` and `REQUESTS_CA_BUNDLE` replace a program's roots, they do not add to them; a bundle
//! of ours alone would cut programs off from everybody else.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use snafu::{ResultExt, Snafu, ensure};

use crate::k8s::ca::{Issuer, Roots};

/// Whether the Web's public roots are published too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PublicRoots {
    /// They are: programs that are given the bundle reach the Web as before.
    #[default]
    Include,
    /// They are not: for clusters that reach nothing outside, or have very many namespaces.
    Omit,
}

/// The further roots cannot be used.
#[derive(Debug, Snafu)]
pub enum Error {
    /// The text has no certificate at all.
    #[snafu(display("no certificate is in it"))]
    Empty,
    /// Something between the marks is not Base64.
    #[snafu(display("it is not PEM"))]
    Pem {
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate cannot be a root.
    #[snafu(display("certificate {number} in it is no root that could be trusted"))]
    Root {
        /// Counted from 1.
        number: usize,
        /// Why.
        source: rustls::Error,
    },
}

/// The part of the bundle that stays as long as the process does.
#[derive(Clone, Default)]
pub struct Base(String);

impl Base {
    /// The public roots, and further ones as PEM.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(public: PublicRoots, further: Option<&str>) -> Result<Self, Error> {
        let mut text = String::new();
        if public == PublicRoots::Include {
            for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
                text.push_str(&pem(root));
            }
        }
        if let Some(further) = further {
            let further: Vec<_> = CertificateDer::pem_slice_iter(further.as_bytes())
                .collect::<Result<_, _>>()
                .context(PemSnafu)?;
            ensure!(!further.is_empty(), EmptySnafu);
            for (index, root) in further.into_iter().enumerate() {
                text.push_str(&pem(&root));
                rustls::RootCertStore::empty()
                    .add(root)
                    .context(RootSnafu { number: index + 1 })?;
            }
        }
        Ok(Self(text))
    }

    /// The whole bundle, with these versions of the CA.
    pub fn with(&self, issuers: &[Issuer]) -> Roots {
        let mut text = self.0.clone();
        for issuer in issuers {
            text.push_str(&issuer.certificate);
        }
        let mut digest = String::with_capacity(64);
        for byte in Sha256::digest(text.as_bytes()) {
            let _ = write!(digest, "{byte:02x}");
        }
        Roots { text, digest }
    }
}

/// A certificate as PEM.
pub fn pem(certificate: &[u8]) -> String {
    let encoded = STANDARD.encode(certificate);
    let mut text = String::with_capacity(encoded.len() + encoded.len() / 64 + 60);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    for (index, letter) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(letter);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_reads_back_whole_and_fits_a_config_map() {
        let public = Base::new(PublicRoots::Include, None).unwrap().with(&[]);
        let count = |text: &str| {
            let mut roots = rustls::RootCertStore::empty();
            for root in CertificateDer::pem_slice_iter(text.as_bytes()) {
                roots.add(root.unwrap()).unwrap();
            }
            roots.len()
        };
        let many = count(&public.text);
        assert_eq!(many, webpki_root_certs::TLS_SERVER_ROOT_CERTS.len());
        assert!(
            many > 100 && public.text.len() < 700 << 10,
            "{}",
            public.text.len()
        );
        let one = pem(&webpki_root_certs::TLS_SERVER_ROOT_CERTS[0]);
        let own = Base::new(PublicRoots::Omit, Some(&one)).unwrap().with(&[]);
        assert_eq!(count(&own.text), 1);
        assert_eq!(own.text, one);
        assert_ne!(own.digest, public.digest);
        assert_eq!(
            Base::new(PublicRoots::Omit, None).unwrap().with(&[]).text,
            ""
        );
    }

    #[test]
    fn what_is_no_root_is_refused() {
        let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
        for (text, why) in [
            ("", "no certificate"),
            (broken, "not PEM"),
            (&pem(b"x"), "certificate 1"),
        ] {
            let error = Base::new(PublicRoots::Omit, Some(text))
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
