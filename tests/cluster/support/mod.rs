//! What the tests stand on.

pub(crate) mod actors;
pub(crate) mod assassin;
pub(crate) mod control_plane;
pub(crate) mod keeper;
pub(crate) mod kms;
pub(crate) mod needles;
pub(crate) mod operator;
pub(crate) mod proxy;
pub(crate) mod record;
pub(crate) mod roles;
pub(crate) mod server;
pub(crate) mod space;
pub(crate) mod vault_book;
pub(crate) mod vault_keys;
pub(crate) mod vaults;

pub(crate) use control_plane::Cluster;
pub(crate) use operator::{Operator, Options};
pub(crate) use space::Space;

use std::{future::Future, path::PathBuf, time::Duration};

/// The repository.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A tool that the repository builds for itself.
pub(crate) fn tool(name: &str) -> PathBuf {
    let path = root().join("target/tools").join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make tools` first",
        path.display()
    );
    path
}

/// Asks until there is an answer, or gives up after `limit` and says what was waited for.
pub(crate) async fn eventually<T, Asking>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Asking,
) -> T
where
    Asking: Future<Output = Result<T, String>>,
{
    let begun = std::time::Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let last = match ask().await {
            Ok(answer) => return answer,
            Err(last) => last,
        };
        assert!(
            begun.elapsed() < limit,
            "waited {limit:?} in vain for {what}: {last}"
        );
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}
