//! Reading the Secrets that resources take values from.

use std::sync::Arc;

use snafu::ResultExt;

use crate::{
    controllers::{
        context::Context,
        error::{Error, ReadSnafu},
        naming::Name,
    },
    k8s::object::Observed,
};

/// A Secret that some resource takes a value from: as it is known, or read if it is not.
///
/// # Errors
/// The read that failed.
pub async fn read(context: &Context, source: &Name) -> Result<Option<Arc<Observed>>, Error> {
    let (known, epoch) = {
        let state = context.cache.lock();
        (state.source(source), state.source_epoch())
    };
    if let Some(observed) = known {
        return Ok(observed);
    }
    let object = source.secret();
    let observed = context
        .objects
        .get(&object)
        .await
        .context(ReadSnafu { object })?
        .map(Arc::new);
    context
        .cache
        .lock()
        .read_source(source.clone(), observed.clone(), epoch);
    Ok(observed)
}
