//! An application's identity on a workstation: the same code that runs in a labelled pod runs here,
//! after `eval "$(kubectl claviger login --serviceaccount web --authority …)"`.
//!
//! What the pod policy of the chart mounts, this writes into files of the person who calls it: a token
//! of the ServiceAccount for Claviger alone, and the CA. It takes the right to `create` the
//! ServiceAccount's `token` subresource, and `get` on the ConfigMap with the CA or a copy of it.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest as _, Sha256};
use snafu::{OptionExt, ResultExt, ensure};

use super::{
    Error, FileSnafu, NoCertificateSnafu, NoHomeSnafu, NoTokenSnafu, NotOwnSnafu, NotPrivateSnafu,
    PrintSnafu, RequestSnafu, UnreadSnafu, api,
};

/// The audience of ServiceAccount tokens that Azure's SDKs exchange.
const AUDIENCE: &str = "api://AzureADTokenExchange";
/// The ConfigMap with the CA, in every namespace.
const CA: &str = "claviger-ca";
const CA_KEY: &str = "ca.crt";

/// As whom to run, and where Claviger is.
#[derive(Args, Clone, Debug)]
pub struct LoginArgs {
    /// The ServiceAccount to be.
    #[arg(long, visible_alias = "sa", value_name = "NAME")]
    pub serviceaccount: String,
    /// Its namespace; the kubeconfig's when left out.
    #[arg(long, short)]
    pub namespace: Option<String>,
    /// Claviger's address as reached from here, as in https://claviger.example.com.
    #[arg(long, env = "CLAVIGER_AUTHORITY", value_name = "URL", value_parser = authority)]
    pub authority: String,
    /// The tenant of the install.
    #[arg(long, env = "CLAVIGER_TENANT", default_value = "adfs")]
    pub tenant: String,
    /// How long the token is valid; the cluster may allow less.
    #[arg(long, default_value = "1h", value_parser = validity)]
    pub valid_for: SignedDuration,
    /// Where the files are written; a private folder of yours when left out.
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// A copy of Claviger's CA, for whoever may not read ConfigMap/claviger-ca in the namespace.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Stay, and renew the token before it expires, and the CA with it, until stopped; prints nothing to eval.
    #[arg(long)]
    pub keep: bool,
}

/// An https address without a path.
fn authority(text: &str) -> Result<String, &'static str> {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let host = rest.strip_suffix('/').unwrap_or(rest);
    let fit = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    if host.is_empty() || !host.chars().all(fit) {
        return Err("not an address such as https://claviger.example.com");
    }
    Ok(format!("https://{host}/"))
}

fn validity(text: &str) -> Result<SignedDuration, &'static str> {
    let refusal = "not a duration between 10m and 24h";
    let duration: Duration = text
        .parse::<kube::core::Duration>()
        .map_err(|_| refusal)?
        .into();
    let duration = SignedDuration::try_from(duration).map_err(|_| refusal)?;
    let fit = (SignedDuration::from_mins(10)..=SignedDuration::from_hours(24)).contains(&duration);
    if fit && !text.starts_with('-') {
        Ok(duration)
    } else {
        Err(refusal)
    }
}

/// Writes the files and prints what a shell is to evaluate; with `keep`, renews them until the process
/// is stopped.
///
/// # Errors
/// See [`Error`].
pub async fn login(
    client: Client,
    args: &LoginArgs,
    now: impl Fn() -> Timestamp,
    out: &mut impl Write,
) -> Result<(), Error> {
    let namespace = args
        .namespace
        .clone()
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let folder = match &args.folder {
        Some(folder) => whole(folder)?,
        None => own_folder().context(NoHomeSnafu)?.join(folder_name(
            args,
            &namespace,
            &apiserver().await,
        )),
    };
    make_private(&folder)?;
    // The token first: where there is no such ServiceAccount or namespace, that is what to say.
    let (text, mut expires) = token(&client, args, &namespace).await?;
    let ca = folder.join(CA_KEY);
    replace(
        &ca,
        certificates(&client, args, &namespace).await?.as_bytes(),
    )?;
    let file = folder.join("token");
    replace(&file, text.as_bytes())?;
    if !args.keep {
        return print(args, &namespace, &folder, out).context(PrintSnafu);
    }
    loop {
        until(due(expires, now()), &now).await;
        match token(&client, args, &namespace).await {
            Ok((text, end)) => {
                replace(&file, text.as_bytes())?;
                expires = end;
            }
            Err(error) if is_final(&error) => return Err(error),
            // The network may be away for a while; `due` comes soon and sooner.
            Err(_) => continue,
        }
        match certificates(&client, args, &namespace).await {
            Ok(text) => replace(&ca, text.as_bytes())?,
            Err(error) if is_final(&error) => return Err(error),
            // It is published long before it signs: the next time is early enough.
            Err(_) => {}
        }
    }
}

/// Which cluster is asked: the address of its apiserver.
async fn apiserver() -> String {
    let config = kube::Config::infer().await;
    config.map_or_else(|_| String::new(), |config| config.cluster_url.to_string())
}

/// The name of the folder for this identity: of another cluster's, or another install's, it is another.
fn folder_name(args: &LoginArgs, namespace: &str, apiserver: &str) -> String {
    let mut name = format!("{namespace}.{}.", args.serviceaccount);
    let place = format!("{}\n{apiserver}", args.authority);
    for byte in &Sha256::digest(place)[..6] {
        _ = write!(name, "{byte:02x}");
    }
    name
}

/// When to renew what expires then: as the kubelet does, when a fifth of its life is left; not at once.
fn due(expires: Timestamp, now: Timestamp) -> Timestamp {
    now + (expires.duration_since(now) * 4 / 5).max(SignedDuration::from_secs(5))
}

/// Waits until then, in short naps: a workstation that was asleep wakes up to a token that has expired, and
/// the time that it slept does not count for a timer.
async fn until(due: Timestamp, now: impl Fn() -> Timestamp) {
    const NAP: Duration = Duration::from_secs(20);
    loop {
        let left = due.duration_since(now());
        if !left.is_positive() {
            return;
        }
        tokio::time::sleep(Duration::try_from(left).unwrap_or(NAP).min(NAP)).await;
    }
}

/// Whether asking again would come to the same.
fn is_final(error: &Error) -> bool {
    match error {
        Error::NoToken { .. } => false,
        Error::Request { source, .. } => match &**source {
            kube::Error::Api(status) => (400..500).contains(&status.code) && status.code != 429,
            _ => false,
        },
        _ => true,
    }
}

/// Asks for a token; answers it and when it expires.
async fn token(
    client: &Client,
    args: &LoginArgs,
    namespace: &str,
) -> Result<(String, Timestamp), Error> {
    let accounts: Api<ServiceAccount> = api(client.clone(), Some(namespace));
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(args.valid_for.as_secs()),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let what = || {
        format!(
            "get a token of ServiceAccount/{} in namespace {namespace} (it takes create on serviceaccounts/token)",
            args.serviceaccount
        )
    };
    let answer = accounts
        .create_token_request(&args.serviceaccount, &PostParams::default(), &request)
        .await
        .with_context(|_| RequestSnafu { what: what() })?;
    let status = answer
        .status
        .with_context(|| NoTokenSnafu { what: what() })?;
    Ok((status.token, status.expiration_timestamp.0))
}

/// The CA, from where the person has it.
async fn certificates(client: &Client, args: &LoginArgs, namespace: &str) -> Result<String, Error> {
    match &args.ca_file {
        Some(path) => copied(path),
        None => published(client, namespace).await,
    }
}

async fn published(client: &Client, namespace: &str) -> Result<String, Error> {
    let maps: Api<ConfigMap> = api(client.clone(), Some(namespace));
    let map = maps.get(CA).await.context(RequestSnafu {
        what: format!(
            "read ConfigMap/{CA} in namespace {namespace} (it takes get on that one, or a copy of the CA by --ca-file)"
        ),
    })?;
    map.data
        .and_then(|mut data| data.remove(CA_KEY))
        .filter(|text| is_certificates(text))
        .with_context(|| NoCertificateSnafu {
            place: format!("entry {CA_KEY} of ConfigMap/{CA} in namespace {namespace}"),
        })
}

/// The CA out of a file that the person was given.
fn copied(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).context(UnreadSnafu { path })?;
    ensure!(
        is_certificates(&text),
        NoCertificateSnafu {
            place: path.display().to_string()
        }
    );
    Ok(text)
}

fn is_certificates(text: &str) -> bool {
    let mut found = CertificateDer::pem_slice_iter(text.as_bytes()).peekable();
    found.peek().is_some() && found.all(|one| one.is_ok())
}

/// A folder that is nobody else's: the session's, or the person's cache.
fn own_folder() -> Option<PathBuf> {
    let of = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    of("XDG_RUNTIME_DIR")
        .or_else(|| of("XDG_CACHE_HOME"))
        .or_else(|| Some(of("HOME")?.join(".cache")))
        .map(|folder| folder.join("claviger"))
}

/// The path from the root on, which is good wherever the application is started, and without a slash at
/// its end, which would lead through a symbolic link.
fn whole(folder: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(folder).context(FileSnafu { path: folder })?;
    Ok(path.components().collect())
}

/// Makes the folder, or sees that it is a folder of this person's alone.
fn make_private(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .context(FileSnafu { path: folder })?;
    // Not by way of a symbolic link: whoever made that could turn it elsewhere.
    let found = fs::symlink_metadata(folder).context(FileSnafu { path: folder })?;
    ensure!(found.is_dir(), NotOwnSnafu { path: folder });
    let others = found.permissions().mode() & 0o077;
    ensure!(others == 0, NotPrivateSnafu { path: folder });
    let (probe, file) = create_beside(&folder.join("probe")).context(FileSnafu { path: folder })?;
    let own = file.metadata().map(|own| own.uid() == found.uid());
    _ = fs::remove_file(&probe);
    let own = own.context(FileSnafu { path: folder })?;
    ensure!(own, NotOwnSnafu { path: folder });
    Ok(())
}

/// Makes an empty file, which only its owner can read, with a name of its own beside this one.
fn create_beside(path: &Path) -> io::Result<(PathBuf, fs::File)> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .expect("the operating system's random source never fails once it is seeded");
    let new = path.with_extension(format!("{:016x}", u64::from_ne_bytes(random)));
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    Ok((new, file))
}

/// Writes a file that only its owner can read; whoever reads it has all of the old or of the new one.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let (new, mut file) = create_beside(path).context(FileSnafu { path })?;
    let mut write = || -> io::Result<()> {
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    write()
        .inspect_err(|_| _ = fs::remove_file(&new))
        .context(FileSnafu { path })
}

fn print(args: &LoginArgs, namespace: &str, folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let client = format!("system:serviceaccount:{namespace}:{}", args.serviceaccount);
    let token = folder.join("token").into_os_string();
    let ca = folder.join(CA_KEY).into_os_string();
    for (name, value) in [
        (
            "AZURE_AUTHORITY_HOST",
            OsString::from(args.authority.clone()),
        ),
        ("AZURE_CLIENT_ID", client.into()),
        ("AZURE_FEDERATED_TOKEN_FILE", token),
        ("AZURE_TENANT_ID", args.tenant.clone().into()),
        ("NODE_EXTRA_CA_CERTS", ca.clone()),
        ("REQUESTS_CA_BUNDLE", ca.clone()),
        ("SSL_CERT_FILE", ca),
    ] {
        // Paths are bytes, and not all of them text.
        let parts: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b'\'').collect();
        write!(out, "export {name}='")?;
        out.write_all(&parts.join(&br"'\''"[..]))?;
        writeln!(out, "'")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_and_have_no_path() {
        for text in [
            "https://claviger.example.com",
            "https://claviger.example.com/",
        ] {
            assert_eq!(authority(text).unwrap(), "https://claviger.example.com/");
        }
        assert_eq!(
            authority("https://[::1]:8443").unwrap(),
            "https://[::1]:8443/"
        );
        for text in [
            "",
            "claviger",
            "http://a",
            "https://",
            "https://a/b",
            "https://a b",
            "https://a'b",
        ] {
            assert!(authority(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tokens_are_valid_between_ten_minutes_and_a_day() {
        assert_eq!(validity("10m"), Ok(SignedDuration::from_mins(10)));
        assert_eq!(validity("24h"), Ok(SignedDuration::from_hours(24)));
        for text in ["9m", "25h", "-1h", "soon", ""] {
            assert!(validity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("mine");
        make_private(&folder).unwrap();
        let file = folder.join("token");
        for content in ["one", "two"] {
            replace(&file, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
            let mode = fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(
            fs::read_dir(&folder).unwrap().count(),
            1,
            "nothing is left beside it"
        );
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
        let refusal = make_private(&folder).unwrap_err().to_string();
        assert!(refusal.contains("chmod 700"), "{refusal}");
    }

    /// A cluster that gives out tokens that live for an hour, unless it is away, and another CA after each;
    /// answers how often it was asked for one.
    fn cluster(
        now: impl Fn() -> Timestamp + Clone + Send + Sync + 'static,
    ) -> (Client, std::sync::Arc<std::sync::atomic::AtomicU32>) {
        use http::{Request, Response, StatusCode};
        use std::sync::atomic::Ordering;
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counts = std::sync::Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (counts, now) = (std::sync::Arc::clone(&counts), now.clone());
            async move {
                let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
                if request.uri().path().ends_with("/configmaps/claviger-ca") {
                    let pem = format!("{}\n{pem}", counts.load(Ordering::SeqCst));
                    let map = serde_json::json!({"metadata": {}, "data": {"ca.crt": pem}});
                    return Ok(Response::new(kube::client::Body::from(
                        map.to_string().into_bytes(),
                    )));
                }
                let number = counts.fetch_add(1, Ordering::SeqCst) + 1;
                let (status, body) = match number {
                    2 | 3 => return Err(io::Error::other("the network is away")),
                    4 => (StatusCode::SERVICE_UNAVAILABLE, refusal(503)),
                    6 => (StatusCode::FORBIDDEN, refusal(403)),
                    _ => (
                        StatusCode::CREATED,
                        serde_json::json!({"metadata": {}, "spec": {"audiences": []}, "status": {
                            "token": format!("token-{number}"),
                            "expirationTimestamp": (now() + SignedDuration::from_hours(1)).to_string(),
                        }}),
                    ),
                };
                let mut answer =
                    Response::new(kube::client::Body::from(body.to_string().into_bytes()));
                *answer.status_mut() = status;
                Ok(answer)
            }
        });
        (Client::new(service, "shop"), asked)
    }

    fn refusal(code: u16) -> serde_json::Value {
        serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "no", "reason": "No", "code": code,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_has_a_good_token_until_it_is_refused_one() {
        let begun = tokio::time::Instant::now();
        let start = Timestamp::UNIX_EPOCH;
        let now = move || start + SignedDuration::try_from(begun.elapsed()).unwrap();
        let (client, asked) = cluster(now);
        let folder = tempfile::tempdir().unwrap();
        let args = LoginArgs {
            folder: Some(folder.path().join("mine")),
            keep: true,
            ..arguments()
        };
        let file = folder.path().join("mine/token");
        let ca = || fs::read_to_string(folder.path().join("mine/ca.crt")).unwrap();
        let mut out = Vec::new();
        let mut staying = Box::pin(login(client, &args, now, &mut out));
        let first = tokio::time::timeout(Duration::from_mins(47), &mut staying).await;
        assert!(first.is_err() && fs::read_to_string(&file).unwrap() == "token-1");
        assert!(ca().starts_with("1\n"));
        // The network was away three times, and the token was renewed before it was over.
        let second = tokio::time::timeout(Duration::from_mins(13), &mut staying).await;
        assert!(second.is_err(), "{second:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "token-5");
        assert!(ca().starts_with("5\n"), "the CA is renewed, too");
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 5);
        let refused = staying.as_mut().await.unwrap_err().to_string();
        drop(staying);
        assert!(
            refused.contains("get a token of ServiceAccount/web"),
            "{refused}"
        );
        assert!(begun.elapsed() < Duration::from_hours(2));
        assert!(out.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_workstation_that_was_asleep_does_not_wait_for_the_time_it_slept() {
        let begun = tokio::time::Instant::now();
        // Half a minute after it lay down it has slept for three hours.
        let now = move || {
            let awake = SignedDuration::try_from(begun.elapsed()).unwrap();
            let slept = if awake.as_secs() < 30 { 0 } else { 3 };
            Timestamp::UNIX_EPOCH + awake + SignedDuration::from_hours(slept)
        };
        until(due(now() + SignedDuration::from_hours(1), now()), now).await;
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "{:?}",
            begun.elapsed()
        );
    }

    fn arguments() -> LoginArgs {
        LoginArgs {
            serviceaccount: "web".to_owned(),
            namespace: None,
            authority: "https://claviger.example.com/".to_owned(),
            tenant: "adfs".to_owned(),
            valid_for: SignedDuration::from_hours(1),
            folder: None,
            ca_file: None,
            keep: false,
        }
    }

    #[test]
    fn logins_to_two_clusters_or_installs_have_a_folder_each() {
        let (one, api) = (arguments(), "https://one.example/");
        let other = LoginArgs {
            authority: "https://claviger.example.net/".to_owned(),
            ..arguments()
        };
        let name = folder_name(&one, "shop", api);
        let hash = name.strip_prefix("shop.web.").unwrap();
        assert!(hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(folder_name(&one, "shop", api), name);
        assert_ne!(folder_name(&one, "shop", "https://two.example/"), name);
        assert_ne!(folder_name(&other, "shop", api), name);
    }

    #[test]
    fn what_is_printed_can_be_evaluated_whatever_the_folder_is_called() {
        let args = arguments();
        for folder in [
            &b"/tmp/it's $(mine)"[..],
            b"/tmp/'';exit 1;'",
            b"/tmp/`a`\\ \"b\"\n!c\t",
            b"/tmp/\xff\xfe",
        ] {
            let path = Path::new(std::ffi::OsStr::from_bytes(folder));
            let mut script = Vec::new();
            print(&args, "shop", path, &mut script).unwrap();
            script.extend(b"printf %s \"$AZURE_FEDERATED_TOKEN_FILE $AZURE_CLIENT_ID\"");
            for shell in ["sh", "bash"] {
                let shell = std::process::Command::new(shell)
                    .arg("-c")
                    .arg(std::ffi::OsStr::from_bytes(&script))
                    .output()
                    .unwrap();
                let told = [folder, b"/token system:serviceaccount:shop:web"].concat();
                assert_eq!(shell.stdout, told, "{}", path.display());
            }
        }
    }

    #[test]
    fn a_folder_that_is_not_this_persons_own_is_not_used() {
        let outer = tempfile::tempdir().unwrap();
        let real = outer.path().join("real");
        make_private(&real).unwrap();
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let refused = |folder: &Path| make_private(&whole(folder).unwrap()).unwrap_err();
        // With a slash at its end it would be the folder that the link leads to.
        for path in [link.clone(), outer.path().join("link/")] {
            assert!(matches!(refused(&path), Error::NotOwn { .. }), "{path:?}");
        }
        let file = outer.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(refused(&file), Error::File { .. }));
        assert_eq!(fs::read_dir(&real).unwrap().count(), 0, "nothing is left");
        // Only root can give a folder away, and enter it still.
        if std::os::unix::fs::chown(&real, Some(65_534), None).is_ok() {
            assert!(matches!(refused(&real), Error::NotOwn { .. }));
            assert_eq!(fs::read_dir(&real).unwrap().count(), 0, "nothing is left");
        }
        let relative = whole(Path::new("mine/./")).unwrap();
        assert_eq!(relative, std::env::current_dir().unwrap().join("mine"));
    }

    #[test]
    fn what_is_no_certificate_is_not_taken_for_the_ca() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        assert!(matches!(copied(&file), Err(Error::Unread { .. })));
        let pem = |kind: &str| format!("-----BEGIN {kind}-----\nMAA=\n-----END {kind}-----\n");
        for (text, taken) in [
            (String::new(), false),
            ("ca".to_owned(), false),
            (pem("PRIVATE KEY"), false),
            (pem("CERTIFICATE"), true),
        ] {
            fs::write(&file, &text).unwrap();
            assert_eq!(copied(&file).is_ok(), taken, "{text}");
        }
    }
}
