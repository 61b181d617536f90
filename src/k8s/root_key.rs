//! The Secret that holds the root key, in Claviger's own namespace.
//!
//! It is made once and never replaced: whatever was wrapped by another root key would be lost.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use snafu::{OptionExt, ResultExt, Snafu};
use zeroize::Zeroizing;

use crate::{
    domain::vault::envelope::RootKey,
    k8s::{describe, erase, object::FIELD_MANAGER},
};

/// The Secret's name.
pub const NAME: &str = "claviger-root-key";
const TYPE: &str = "claviger.dev/root-key";
const ENTRY: &str = "key";

/// The root key is not to be had.
#[derive(Debug, Snafu)]
pub enum Error {
    /// It could not be made.
    #[snafu(display("cannot create Secret {namespace}/{NAME}: {}", describe(source)))]
    Create {
        /// Claviger's namespace.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
    /// The Secret holds something else.
    #[snafu(display(
        "Secret {namespace}/{NAME} does not hold 32 bytes under {ENTRY}: delete it and bring the root key back with `claviger root-key restore`; without it no vault opens"
    ))]
    Malformed {
        /// Claviger's namespace.
        namespace: String,
    },
    /// There is none, and none may be made.
    #[snafu(display(
        "Secret {namespace}/{NAME} is missing, and there are vaults that only this root key opens: bring it back from the backup with `claviger root-key restore`, or from the cluster's own backup; none is made in its place"
    ))]
    Missing {
        /// Claviger's namespace.
        namespace: String,
    },
    /// It could not be read.
    #[snafu(display("cannot read Secret {namespace}/{NAME}: {}", describe(source)))]
    Read {
        /// Claviger's namespace.
        namespace: String,
        /// Why.
        source: kube::Error,
    },
}

/// What to do if there is no root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// Make one: nothing was ever wrapped.
    Mint,
    /// Fail: something was wrapped by the one that is gone.
    Refuse,
}

/// The bytes of a root key; overwritten when dropped, never shown.
#[derive(Clone)]
pub struct Material(Zeroizing<[u8; 32]>);

impl Material {
    /// Takes over 32 random bytes.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// The key itself.
    pub fn root_key(&self) -> RootKey {
        RootKey::new(self.0.clone())
    }

    /// What the key is known by.
    pub fn id(&self) -> String {
        self.root_key().id().to_owned()
    }

    /// Gives the bytes, to store or to back up.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Material({}, …redacted…)", self.id())
    }
}

/// Reads the root key; if there is none, makes it from `random` where that is allowed. Of two that
/// make one at the same time the first wins and both use it.
///
/// # Errors
/// See [`Error`].
pub async fn obtain(
    client: &Client,
    namespace: &str,
    random: Zeroizing<[u8; 32]>,
    absent: Absent,
) -> Result<Material, Error> {
    if let Some(found) = read(client, namespace).await? {
        return Ok(found);
    }
    match absent {
        Absent::Mint => Ok(create(client, namespace, &Material::new(random)).await?.0),
        Absent::Refuse => MissingSnafu { namespace }.fail(),
    }
}

/// Reads the root key, if there is one.
///
/// # Errors
/// See [`Error`].
pub async fn read(client: &Client, namespace: &str) -> Result<Option<Material>, Error> {
    api(client, namespace)
        .get_opt(NAME)
        .await
        .context(ReadSnafu { namespace })?
        .map(|secret| parse(secret, namespace))
        .transpose()
}

/// Whether a Secret was made, or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was made.
    Now,
    /// It was there, with this key or another.
    Before,
}

/// Makes the Secret, unless there is one; answers the key that it holds then.
///
/// # Errors
/// See [`Error`].
pub async fn create(
    client: &Client,
    namespace: &str,
    key: &Material,
) -> Result<(Material, Created), Error> {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                FIELD_MANAGER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            ENTRY.to_owned(),
            ByteString(key.expose().to_vec()),
        )])),
        type_: Some(TYPE.to_owned()),
        immutable: Some(true),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let secrets = api(client, namespace);
    let outcome = secrets.create(&params, &secret).await;
    drop(secret.data.map(erase));
    match outcome {
        Ok(secret) => Ok((parse(secret, namespace)?, Created::Now)),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let secret = secrets.get(NAME).await.context(ReadSnafu { namespace })?;
            Ok((parse(secret, namespace)?, Created::Before))
        }
        Err(source) => Err(source).context(CreateSnafu { namespace }),
    }
}

fn api(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

fn parse(secret: Secret, namespace: &str) -> Result<Material, Error> {
    let bytes = secret
        .data
        .and_then(|data| erase(data).remove(ENTRY))
        .context(MalformedSnafu { namespace })?;
    let key: [u8; 32] = bytes
        .as_slice()
        .try_into()
        .ok()
        .context(MalformedSnafu { namespace })?;
    Ok(Material::new(Zeroizing::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(bytes: &[u8]) -> Secret {
        Secret {
            data: Some(BTreeMap::from([(
                ENTRY.to_owned(),
                ByteString(bytes.to_vec()),
            )])),
            ..Secret::default()
        }
    }

    #[test]
    fn reads_32_bytes_and_nothing_else() {
        let key = parse(secret(&[7; 32]), "ns").unwrap();
        assert_eq!(key.expose(), &[7; 32]);
        assert_eq!(key.id(), RootKey::new(Zeroizing::new([7; 32])).id());
        assert!(!format!("{key:?}").contains("7, 7"));
        for other in [
            secret(&[7; 31]),
            secret(&[7; 33]),
            secret(&[]),
            Secret::default(),
        ] {
            let error = parse(other, "ns").unwrap_err().to_string();
            assert!(error.contains("claviger root-key restore"), "{error}");
        }
    }
}
