//! The Secret that holds the seal key, in Claviger's own namespace.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use snafu::{OptionExt, ResultExt, Snafu};
use zeroize::Zeroizing;

use crate::{
    domain::seal::SealKey,
    k8s::{describe, object::FIELD_MANAGER},
};

/// The Secret's name.
pub const NAME: &str = "claviger-seal-key";
const TYPE: &str = "claviger.dev/seal-key";
const ENTRY: &str = "key";

/// The seal key is not to be had.
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
        "Secret {namespace}/{NAME} does not hold 32 bytes under {ENTRY}: restore it, or delete it to have another made (values that a host drops while Claviger is down can then not be put back)"
    ))]
    Malformed {
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

/// Reads the seal key, or makes it from `random` if there is none. Of two that make one at the same
/// time the first wins and both use it.
///
/// # Errors
/// See [`Error`].
pub async fn obtain(
    client: &Client,
    namespace: &str,
    random: Zeroizing<[u8; 32]>,
) -> Result<SealKey, Error> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    if let Some(secret) = secrets
        .get_opt(NAME)
        .await
        .context(ReadSnafu { namespace })?
    {
        return read(secret, namespace);
    }
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
            ByteString(random.to_vec()),
        )])),
        type_: Some(TYPE.to_owned()),
        immutable: Some(true),
        ..Secret::default()
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match secrets.create(&params, &secret).await {
        Ok(secret) => read(secret, namespace),
        Err(kube::Error::Api(status)) if status.is_already_exists() => read(
            secrets.get(NAME).await.context(ReadSnafu { namespace })?,
            namespace,
        ),
        Err(source) => Err(source).context(CreateSnafu { namespace }),
    }
}

fn read(secret: Secret, namespace: &str) -> Result<SealKey, Error> {
    let bytes = secret
        .data
        .and_then(|mut data| data.remove(ENTRY))
        .context(MalformedSnafu { namespace })?;
    let bytes = Zeroizing::new(bytes.0);
    let key: [u8; 32] = bytes
        .as_slice()
        .try_into()
        .ok()
        .context(MalformedSnafu { namespace })?;
    Ok(SealKey::new(Zeroizing::new(key)))
}
