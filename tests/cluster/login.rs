//! `kubectl claviger login`: an application's identity in the hands of a developer with few rights.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use claviger::k8s::review::{Reviewed, review_token};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    facts::{A_WHILE, make},
    support::{
        Operator, Options, Space,
        control_plane::write_private,
        eventually,
        operator::{kubeconfig_text, service_account_token},
        space::PATIENCE,
        tool,
    },
};

const AUDIENCE: &str = "api://AzureADTokenExchange";
const AUTHORITY: &str = "https://claviger.example.com";

/// A developer's machine.
struct Desk<'a> {
    space: &'a Space,
    folder: tempfile::TempDir,
    kubeconfig: PathBuf,
}

/// What a program said.
struct Said {
    good: bool,
    out: Vec<u8>,
    err: String,
}

impl<'a> Desk<'a> {
    /// Of somebody with a kubeconfig for this ServiceAccount; the administrator's without one.
    async fn of(space: &'a Space, account: Option<&str>) -> Self {
        let folder = tempfile::tempdir_in(space.cluster.directory.path()).unwrap();
        let kubeconfig = match account {
            Some(account) => {
                let token = service_account_token(&space.client, &space.name, account).await;
                let path = folder.path().join("kubeconfig");
                write_private(&path, &kubeconfig_text(&space.cluster, None, &token));
                path
            }
            None => space.cluster.kubeconfig.clone(),
        };
        // The plugin, as kubectl finds it.
        let plugin = folder.path().join("kubectl-claviger");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_claviger"), plugin).unwrap();
        Self {
            space,
            folder,
            kubeconfig,
        }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that makes files for everybody to read and write, if it is not careful.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        let path = std::env::var("PATH").unwrap();
        command
            .args(["-c", "umask 0 && exec \"$0\" \"$@\""])
            .arg(program)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env("KUBECONFIG", &self.kubeconfig)
            // As loud as it can be made.
            .env("RUST_LOG", "trace")
            .kill_on_drop(true);
        command
    }

    fn login(&self, account: &str, more: &[&str]) -> Command {
        let mut command = self.command("kubectl-claviger");
        command
            .args(["login", "--serviceaccount", account])
            .args(["--authority", AUTHORITY, "--namespace", &self.space.name])
            .args(more);
        command
    }

    async fn logs_in(&self, account: &str, more: &[&str]) -> Said {
        run(&mut self.login(account, more)).await
    }

    /// Why a login is refused; it has left nothing.
    async fn refusal(&self, account: &str, more: &[&str]) -> String {
        let folder = self.path("refused");
        let args = [&["--folder", folder.to_str().unwrap()], more].concat();
        let said = self.logs_in(account, &args).await;
        assert!(!said.good && said.out.is_empty(), "{account} {more:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        said.err
    }
}

async fn run(command: &mut Command) -> Said {
    let ran = command.output().await.unwrap();
    Said {
        good: ran.status.success(),
        out: ran.stdout,
        err: String::from_utf8(ran.stderr).unwrap(),
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

async fn set_up(space: &Space) {
    let accounts = Api::<ServiceAccount>::namespaced(space.client.clone(), &space.name);
    for name in ["web", "other", "dev", "reader", "nobody"] {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        accounts
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
    }
    for (name, rule, to) in [
        (
            "be-web",
            json!({"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": ["web"], "verbs": ["create"]}),
            &["dev", "reader"][..],
        ),
        (
            "read-ca",
            json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["claviger-ca"], "verbs": ["get"]}),
            &["reader"],
        ),
    ] {
        let metadata = json!({"name": name, "namespace": space.name});
        let subjects: Vec<Value> = to
            .iter()
            .map(|to| json!({"kind": "ServiceAccount", "name": to, "namespace": space.name}))
            .collect();
        make(
            space,
            &json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
                "metadata": metadata, "rules": [rule],
            }),
        )
        .await;
        make(
            space,
            &json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": metadata, "subjects": subjects,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            }),
        )
        .await;
    }
    eventually("the CA to be published", PATIENCE, async || {
        let map = space.config_maps().get_opt("claviger-ca").await.unwrap();
        map.map(drop).ok_or_else(|| "it is not".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn login_takes_one_right_keeps_its_files_private_and_says_what_is_missing() {
    let space = Space::new("login").await;
    let _operator = Operator::start(&space, Options::default()).await;
    set_up(&space).await;
    let map = space.config_maps().get("claviger-ca").await.unwrap();
    let ca = map.data.unwrap()["ca.crt"].clone();
    rights(&space, &ca).await;
    files(&space, &ca).await;
    shells(&space).await;
    folders(&space).await;
}

async fn rights(space: &Space, ca: &str) {
    let reader = Desk::of(space, Some("reader")).await;
    let private = reader.path("mine");
    let said = eventually("the rights to be known", PATIENCE, async || {
        let said = reader
            .logs_in("web", &["--folder", private.to_str().unwrap()])
            .await;
        if said.good { Ok(said) } else { Err(said.err) }
    })
    .await;
    assert_eq!(said.err, "");
    // Who has the CA already needs the one right only.
    let dev = Desk::of(space, Some("dev")).await;
    fs::write(dev.path("ca"), ca).unwrap();
    let said = dev
        .logs_in("web", &["--folder", "mine", "--ca-file", "ca"])
        .await;
    assert!(said.good, "{}", said.err);
    assert_eq!(fs::read_to_string(dev.path("mine/ca.crt")).unwrap(), ca);
    let without = dev.refusal("web", &[]).await;
    for says in [
        "ConfigMap/claviger-ca",
        "cannot get resource \"configmaps\"",
        "--ca-file",
    ] {
        assert!(without.contains(says), "{without}");
    }
    let nobody = Desk::of(space, Some("nobody")).await;
    for (desk, account) in [(&dev, "other"), (&nobody, "web")] {
        let refused = desk.refusal(account, &[]).await;
        for says in [
            format!("ServiceAccount/{account} in namespace {}", space.name),
            "create on serviceaccounts/token".to_owned(),
            "cannot create resource \"serviceaccounts/token\"".to_owned(),
        ] {
            assert!(refused.contains(&says), "{refused}");
        }
    }
    let admin = Desk::of(space, None).await;
    let refused = admin.refusal("absent", &[]).await;
    assert!(
        refused.contains("serviceaccounts \"absent\" not found"),
        "{refused}"
    );
    let mut elsewhere = admin.command("kubectl-claviger");
    elsewhere.args(["login", "--serviceaccount", "web", "--folder", "mine"]);
    elsewhere.args(["--authority", AUTHORITY, "--namespace", "nowhere"]);
    let refused = run(&mut elsewhere).await;
    assert!(!refused.good);
    assert!(
        refused.err.contains("namespace nowhere") && refused.err.contains("not found"),
        "{}",
        refused.err
    );
    let refused = admin.refusal("web", &["--valid-for", "9m"]).await;
    assert!(refused.contains("10m"), "{refused}");
}

/// What is written, and what is told.
async fn files(space: &Space, ca: &str) {
    let desk = Desk::of(space, None).await;
    let folder = desk.path("new/one");
    let login = async |more: &[&str]| {
        let args = [&["--folder", folder.to_str().unwrap()], more].concat();
        let said = desk.logs_in("web", &args).await;
        assert!(said.good, "{}", said.err);
        let token = fs::read_to_string(folder.join("token")).unwrap();
        let signature = token.rsplit('.').next().unwrap();
        let told = format!("{}{}", String::from_utf8(said.out).unwrap(), said.err);
        assert!(!told.contains(signature), "the token is told");
        token
    };
    let lives = |claims: &Value| claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    let first = login(&[]).await;
    let about = claims(&first);
    assert_eq!(about["aud"], json!([AUDIENCE]));
    assert_eq!(lives(&about), 3600);
    let reviewed = review_token(&space.client, &first, &[AUDIENCE.to_owned()]).await;
    let Ok(Reviewed::Authenticated { user, .. }) = reviewed else {
        panic!("{reviewed:?}");
    };
    assert_eq!(user, format!("system:serviceaccount:{}:web", space.name));
    let private = || {
        assert_eq!(mode(&desk.path("new")), 0o700);
        assert_eq!(mode(&folder), 0o700);
        for name in ["token", "ca.crt"] {
            let path = folder.join(name);
            assert_eq!(mode(&path), 0o600);
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        assert_eq!(fs::read_to_string(folder.join("ca.crt")).unwrap(), ca);
    };
    private();

    // Renewed in place, and whoever reads meanwhile has one token or the other.
    let before = fs::metadata(folder.join("token")).unwrap().ino();
    let held = fs::File::open(folder.join("token")).unwrap();
    let file = folder.join("token");
    let reading = tokio::task::spawn_blocking(move || {
        let mut seen = std::collections::BTreeSet::new();
        let begun = std::time::Instant::now();
        while seen.len() < 2 && begun.elapsed() < PATIENCE {
            seen.insert(fs::read_to_string(&file).unwrap());
        }
        seen
    });
    let second = login(&["--valid-for", "20m"]).await;
    assert_eq!(lives(&claims(&second)), 1200);
    let seen = reading.await.unwrap();
    assert!(
        seen.iter().eq([&first, &second]
            .iter()
            .copied()
            .collect::<std::collections::BTreeSet<_>>())
    );
    assert_ne!(fs::metadata(folder.join("token")).unwrap().ino(), before);
    assert_eq!(std::io::read_to_string(held).unwrap(), first);
    private();

    // What somebody else has put in the place of the files is not followed.
    let victim = desk.path("victim");
    fs::write(&victim, "precious").unwrap();
    for name in ["token", "ca.crt"] {
        fs::remove_file(folder.join(name)).unwrap();
        std::os::unix::fs::symlink(&victim, folder.join(name)).unwrap();
    }
    login(&[]).await;
    private();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");

    // Who stays prints nothing to eval, and writes the same.
    let kept = desk.path("kept");
    let mut staying = desk.login("web", &["--keep", "--folder", kept.to_str().unwrap()]);
    staying
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = staying.spawn().unwrap();
    eventually("a token to keep", PATIENCE, async || {
        fs::read_to_string(kept.join("token")).map_err(|error| error.to_string())
    })
    .await;
    let ended = tokio::time::timeout(A_WHILE, child.wait()).await;
    assert!(ended.is_err(), "it stays");
    child.start_kill().unwrap();
    let ended = child.wait_with_output().await.unwrap();
    assert_eq!((ended.stdout, ended.stderr), (Vec::new(), Vec::new()));
}

/// What is printed is evaluated to the same by shells, whatever the folder is called, by way of kubectl.
async fn shells(space: &Space) {
    let desk = Desk::of(space, None).await;
    for (shell, folder) in [
        ("sh", "it's \"a\" $(touch made) `touch made` \\ & ; folder"),
        ("bash", "'; touch made; '\n!x"),
    ] {
        let script = "eval \"$(\"$1\" claviger login --serviceaccount web --namespace \"$2\" --authority \"$3\" --folder \"$4\")\" && env -0";
        let mut command = desk.command(shell);
        command
            .args(["-c", script, "-"])
            .arg(tool("kubectl"))
            .args([&space.name, AUTHORITY, folder]);
        let said = run(&mut command).await;
        assert!(said.good, "{}", said.err);
        let out = String::from_utf8(said.out).unwrap();
        let told = |name: &str| {
            let mut lines = out.split('\0').filter_map(|line| line.split_once('='));
            lines.find(|(other, _)| *other == name).unwrap().1
        };
        let files = desk.path(folder);
        for (name, file) in [
            ("AZURE_FEDERATED_TOKEN_FILE", "token"),
            ("NODE_EXTRA_CA_CERTS", "ca.crt"),
            ("REQUESTS_CA_BUNDLE", "ca.crt"),
            ("SSL_CERT_FILE", "ca.crt"),
        ] {
            // The folder was named from where the shell stood; the application may stand elsewhere.
            assert_eq!(Path::new(told(name)), files.join(file));
            assert!(Path::new(told(name)).is_file());
        }
        assert_eq!(told("AZURE_AUTHORITY_HOST"), format!("{AUTHORITY}/"));
        assert_eq!(told("AZURE_TENANT_ID"), "adfs");
        assert_eq!(
            told("AZURE_CLIENT_ID"),
            format!("system:serviceaccount:{}:web", space.name)
        );
        assert!(!desk.path("made").exists() && !files.join("made").exists());
    }
}

/// Where files are written, and where not.
async fn folders(space: &Space) {
    let desk = Desk::of(space, None).await;
    let open = desk.path("open");
    fs::create_dir(&open).unwrap();
    for (bits, used) in [
        (0o755, false),
        (0o710, false),
        (0o701, false),
        (0o700, true),
    ] {
        fs::set_permissions(&open, fs::Permissions::from_mode(bits)).unwrap();
        let said = desk.logs_in("web", &["--folder", "open"]).await;
        assert_eq!(said.good, used, "{bits:o} {}", said.err);
        assert_eq!(fs::read_dir(&open).unwrap().count() > 0, used);
        assert_eq!(said.err.contains("chmod 700"), !used, "{}", said.err);
    }
    std::os::unix::fs::symlink("open", desk.path("link")).unwrap();
    for link in ["link", "link/"] {
        let said = desk.logs_in("web", &["--folder", link]).await;
        assert!(!said.good);
        assert!(said.err.contains("symbolic link"), "{}", said.err);
    }
    // Only root can give a folder away and enter it still.
    if std::os::unix::fs::chown(&open, Some(65_534), None).is_ok() {
        let said = desk.logs_in("web", &["--folder", "open"]).await;
        assert!(!said.good);
        assert!(said.err.contains("somebody else's"), "{}", said.err);
    }
    // Where nothing is said: the session's, or the person's own. Two installs have a folder each.
    let name = format!("{}.web.", space.name);
    for (variable, place) in [
        ("XDG_RUNTIME_DIR", "claviger"),
        ("XDG_CACHE_HOME", "claviger"),
        ("HOME", ".cache/claviger"),
    ] {
        let home = desk.path(variable);
        for (authority, folders) in [
            (AUTHORITY, 1),
            (AUTHORITY, 1),
            ("https://other.example.com", 2),
        ] {
            let mut command = desk.command("kubectl-claviger");
            command.args(["login", "--serviceaccount", "web"]).args([
                "--namespace",
                &space.name,
                "--authority",
                authority,
            ]);
            let said = run(command.env(variable, &home)).await;
            assert!(said.good, "{}", said.err);
            let found: Vec<_> = fs::read_dir(home.join(place)).unwrap().collect();
            assert_eq!(found.len(), folders, "{found:?}");
            for folder in found {
                let folder = folder.unwrap();
                assert!(folder.file_name().to_str().unwrap().starts_with(&name));
                assert_eq!(mode(&folder.path().join("token")), 0o600);
            }
        }
    }
    let nowhere = desk.logs_in("web", &[]).await;
    assert!(!nowhere.good);
    assert!(nowhere.err.contains("--folder"), "{}", nowhere.err);
}
