//! Root keys against a real KMS v2 plugin: a process of its own that is built with Kubernetes'
//! service library and has its keys in a directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use claviger::{
    domain::vault::{
        envelope::{KeyLabel, RootKey},
        name::{VaultId, VaultRef},
        wrapped::{Base64, Wrapped},
    },
    kms::{self, Class, Kms},
    root_keys::{self, RANDOM_BYTES, RootKeys},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

const LIMIT: Duration = Duration::from_secs(5);
const KEY: [u8; 32] = [0x5a; 32];

struct Plugin {
    directory: tempfile::TempDir,
    process: Child,
}

impl Plugin {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = Self::spawn(directory.path()).await;
        Self { directory, process }
    }

    async fn spawn(directory: &Path) -> Child {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/kms-plugin");
        assert!(
            tool.exists(),
            "kms-plugin is missing: run `make tools` first"
        );
        let mut process = Command::new(tool)
            .arg("--socket")
            .arg(directory.join("kms.sock"))
            .arg("--keys")
            .arg(directory.join("keys"))
            .arg("--die-with-parent")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
        assert!(line.unwrap().unwrap().unwrap().starts_with("ready "));
        process
    }

    async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    async fn restart(&mut self) {
        self.process = Self::spawn(self.directory.path()).await;
    }

    fn signal(&self, signal: &str) {
        let process = self.process.id().unwrap().to_string();
        let status = std::process::Command::new("kill")
            .args([signal, &process])
            .status();
        assert!(status.unwrap().success());
    }

    /// Freezes the process; returns when every thread of it stands still.
    async fn freeze(&self) {
        self.signal("-STOP");
        let threads = format!("/proc/{}/task", self.process.id().unwrap());
        let stands = |thread: &Path| {
            let state = fs::read_to_string(thread.join("stat")).unwrap();
            state.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        while !fs::read_dir(&threads)
            .unwrap()
            .all(|thread| stands(&thread.unwrap().path()))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("keys").join(name)
    }

    /// Makes a key and has it used from now on.
    fn turn(&self, name: &str, byte: u8) {
        fs::write(self.file(&format!("{name}.key")), [byte; 32]).unwrap();
        fs::write(self.file("current"), name).unwrap();
    }

    fn client(&self, timeout: Duration) -> Arc<Kms> {
        let kms = Kms::connect(self.directory.path().join("kms.sock"), timeout).unwrap();
        Arc::new(kms)
    }
}

fn vault(name: &str) -> VaultRef {
    VaultRef {
        id: VaultId([7; 16]),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

fn random() -> [u8; RANDOM_BYTES] {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).unwrap();
    random
}

async fn wrap(keys: &RootKeys) -> Wrapped {
    keys.wrap(&vault("payments"), KeyLabel::Ring(1), &KEY, &random())
        .await
        .unwrap()
}

async fn unwrap(
    keys: &RootKeys,
    wrapped: &Wrapped,
) -> Result<Zeroizing<[u8; 32]>, root_keys::Error> {
    keys.unwrap(&vault("payments"), KeyLabel::Ring(1), wrapped)
        .await
}

#[tokio::test]
async fn a_plugin_of_kubernetes_library_encrypts_and_decrypts() {
    let plugin = Plugin::start().await;
    let kms = plugin.client(LIMIT);
    assert_eq!(kms.status().await.unwrap().key_id, "key-1");
    let encrypted = kms.encrypt("one", &KEY).await.unwrap();
    assert_eq!(encrypted.key_id, "key-1");
    assert_eq!(encrypted.annotations.len(), 1);
    assert_eq!(*kms.decrypt("two", &encrypted).await.unwrap(), KEY);

    let mut changed = encrypted.clone();
    changed.ciphertext[20] ^= 1;
    let mut bare = encrypted.clone();
    bare.annotations.clear();
    let mut other = encrypted.clone();
    other.key_id = "key-2".to_owned();
    for (changed, code) in [
        (changed, "InvalidArgument"),
        (bare, "InvalidArgument"),
        (other, "NotFound"),
    ] {
        let error = kms.decrypt("three", &changed).await.unwrap_err();
        assert!(error.to_string().contains(code), "{error}");
        assert_eq!(error.class(), Class::Permanent);
    }

    fs::write(plugin.file("unhealthy"), "the vault is sealed").unwrap();
    let error = kms.status().await.unwrap_err();
    assert_eq!(error.class(), Class::Transient);
    assert!(error.to_string().contains("the vault is sealed"), "{error}");
}

#[tokio::test]
async fn keys_of_vaults_are_bound_although_a_kms_cannot_bind() {
    let plugin = Plugin::start().await;
    let keys = RootKeys::kms(plugin.client(LIMIT), None);
    let wrapped = wrap(&keys).await;
    assert_eq!(wrapped.root, "kms:key-1");
    let text = serde_json::to_string(&wrapped).unwrap();
    let wrapped: Wrapped = serde_json::from_str(&text).unwrap();
    assert_eq!(*unwrap(&keys, &wrapped).await.unwrap(), KEY);
    assert_eq!(keys.primary_id().unwrap(), "kms:key-1");

    for (vault, label) in [
        (vault("other"), KeyLabel::Ring(1)),
        (vault("payments"), KeyLabel::Ring(2)),
        (vault("payments"), KeyLabel::Index),
    ] {
        let error = keys.unwrap(&vault, label, &wrapped).await.unwrap_err();
        assert!(
            matches!(error, root_keys::Error::Unopened { .. }),
            "{error}"
        );
    }
    // Another wrapping key in the place of this one.
    let mut swapped = wrapped.clone();
    swapped.kms = wrap(&keys).await.kms;
    let error = unwrap(&keys, &swapped).await.unwrap_err();
    assert!(
        matches!(error, root_keys::Error::Unopened { .. }),
        "{error}"
    );
    // What cannot have come from a plugin is not even sent there.
    let mut large = wrapped.clone();
    large.kms.as_mut().unwrap().ciphertext = Base64(vec![0; 5000]);
    let error = unwrap(&keys, &large).await.unwrap_err();
    assert!(
        matches!(
            &error,
            root_keys::Error::Kms {
                source: kms::Error::Unfit { .. }
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_kms_key_that_turns_makes_what_it_wrapped_stale_and_one_that_goes_is_told() {
    let plugin = Plugin::start().await;
    let keys = Arc::new(RootKeys::kms(plugin.client(LIMIT), None));
    let stop = CancellationToken::new();
    let mut seen = keys.kms_key_id();
    let watching = tokio::spawn({
        let (keys, stop) = (Arc::clone(&keys), stop.clone());
        async move { keys.watch(stop).await }
    });
    let known = tokio::time::timeout(LIMIT, seen.wait_for(Option::is_some)).await;
    assert_eq!(known.unwrap().unwrap().as_deref(), Some("key-1"));
    let old = wrap(&keys).await;
    assert!(!keys.is_stale(&old));

    plugin.turn("key-2", 2);
    let new = wrap(&keys).await;
    assert_eq!(new.root, "kms:key-2");
    assert!(seen.has_changed().unwrap());
    assert!(keys.is_stale(&old) && !keys.is_stale(&new));
    for wrapped in [&old, &new] {
        assert_eq!(*unwrap(&keys, wrapped).await.unwrap(), KEY);
    }

    fs::remove_file(plugin.file("key-1.key")).unwrap();
    let error = unwrap(&keys, &old).await.unwrap_err();
    assert_eq!(error.class(), Class::Permanent);
    assert!(
        error.to_string().contains("gone from the key store"),
        "{error}"
    );
    assert_eq!(*unwrap(&keys, &new).await.unwrap(), KEY);
    stop.cancel();
    tokio::time::timeout(LIMIT, watching)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_plugin_that_is_killed_or_hangs_is_found_again() {
    let mut plugin = Plugin::start().await;
    let keys = RootKeys::kms(plugin.client(Duration::from_millis(500)), None);
    let wrapped = wrap(&keys).await;

    for _ in 0..3 {
        plugin.kill().await;
        let error = unwrap(&keys, &wrapped).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error}");
        plugin.restart().await;
        assert_eq!(*unwrap(&keys, &wrapped).await.unwrap(), KEY);
    }

    plugin.freeze().await;
    let error = unwrap(&keys, &wrapped).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error}");
    assert!(error.to_string().contains("did not answer"), "{error}");
    plugin.signal("-CONT");
    assert_eq!(*unwrap(&keys, &wrapped).await.unwrap(), KEY);

    // Restarted while nobody asked: the first call afterwards already succeeds.
    plugin.signal("-TERM");
    plugin.process.wait().await.unwrap();
    plugin.restart().await;
    assert_eq!(*unwrap(&keys, &wrapped).await.unwrap(), KEY);
}

#[tokio::test]
async fn a_vault_moves_from_one_provider_to_the_other_and_back() {
    let plugin = Plugin::start().await;
    let secret = || RootKey::new(Zeroizing::new([1; 32]));
    let before = RootKeys::secret(secret(), None);
    let first = wrap(&before).await;

    let moved = RootKeys::kms(plugin.client(LIMIT), Some(secret()));
    assert_eq!(*unwrap(&moved, &first).await.unwrap(), KEY);
    let second = wrap(&moved).await;
    assert!(moved.is_stale(&first) && !moved.is_stale(&second));

    let alone = RootKeys::kms(plugin.client(LIMIT), None);
    let words = unwrap(&alone, &first).await.unwrap_err().to_string();
    assert!(words.contains("root-key restore"), "{words}");
    let words = unwrap(&before, &second).await.unwrap_err().to_string();
    assert!(words.contains("--kms-socket"), "{words}");

    let back = RootKeys::secret(secret(), Some(plugin.client(LIMIT)));
    assert_eq!(*unwrap(&back, &second).await.unwrap(), KEY);
    let third = wrap(&back).await;
    assert!(back.is_stale(&second) && !back.is_stale(&third));
    assert_eq!(*unwrap(&before, &third).await.unwrap(), KEY);
}
