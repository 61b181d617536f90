//! An application's identity on a workstation: the same code that runs in a labelled pod runs here,
//! after `eval "$(kubectl claviger login --serviceaccount web --authority …)"`.
//!
//! What the pod policy of the chart mounts, this writes into files of the person who calls it: a token
//! of the ServiceAccount for Claviger alone, and the CA. It takes the right to `create` the
//! ServiceAccount's `token` subresource, and `get` on the ConfigMap with the CA.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
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
use snafu::{OptionExt, ResultExt, ensure};

use super::{
    Error, FileSnafu, NoCertificateSnafu, NoHomeSnafu, NoTokenSnafu, NotPrivateSnafu, PrintSnafu,
    RequestSnafu, api,
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
    /// Stay, and renew the token before it expires, until stopped; prints nothing to eval.
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
        Some(folder) => folder.clone(),
        None => own_folder()
            .context(NoHomeSnafu)?
            .join(format!("{namespace}.{}", args.serviceaccount)),
    };
    make_private(&folder)?;
    let certificates = certificates(&client, &namespace).await?;
    replace(&folder.join(CA_KEY), certificates.as_bytes())?;
    let mut expires = token(&client, args, &namespace, &folder).await?;
    if !args.keep {
        return print(args, &namespace, &folder, out).context(PrintSnafu);
    }
    loop {
        let left = expires.duration_since(now());
        // As the kubelet does: when a fifth of its life is left.
        let wait = Duration::try_from(left * 4 / 5).unwrap_or_default();
        tokio::time::sleep(wait.max(Duration::from_secs(5))).await;
        expires = token(&client, args, &namespace, &folder).await?;
    }
}

/// Asks for a token and writes it; answers when it expires.
async fn token(
    client: &Client,
    args: &LoginArgs,
    namespace: &str,
    folder: &Path,
) -> Result<Timestamp, Error> {
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
    replace(&folder.join("token"), status.token.as_bytes())?;
    Ok(status.expiration_timestamp.0)
}

async fn certificates(client: &Client, namespace: &str) -> Result<String, Error> {
    let maps: Api<ConfigMap> = api(client.clone(), Some(namespace));
    let map = maps.get(CA).await.context(RequestSnafu {
        what: format!("read ConfigMap/{CA} in namespace {namespace}"),
    })?;
    map.data
        .and_then(|mut data| data.remove(CA_KEY))
        .context(NoCertificateSnafu)
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

fn make_private(folder: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .context(FileSnafu { path: folder })?;
    let mode = fs::symlink_metadata(folder)
        .context(FileSnafu { path: folder })?
        .permissions()
        .mode();
    let others = mode & 0o077;
    ensure!(others == 0, NotPrivateSnafu { path: folder });
    Ok(())
}

/// Writes a file that only its owner can read; whoever reads it has all of the old or of the new one.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .expect("the operating system's random source never fails once it is seeded");
    let new = path.with_extension(format!("{:016x}", u64::from_ne_bytes(random)));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    };
    write()
        .inspect_err(|_| _ = fs::remove_file(&new))
        .context(FileSnafu { path })
}

fn print(args: &LoginArgs, namespace: &str, folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let client = format!("system:serviceaccount:{namespace}:{}", args.serviceaccount);
    let token = folder.join("token");
    let ca = folder.join(CA_KEY);
    for (name, value) in [
        ("AZURE_AUTHORITY_HOST", args.authority.clone()),
        ("AZURE_CLIENT_ID", client),
        ("AZURE_FEDERATED_TOKEN_FILE", token.display().to_string()),
        ("AZURE_TENANT_ID", args.tenant.clone()),
        ("NODE_EXTRA_CA_CERTS", ca.display().to_string()),
        ("REQUESTS_CA_BUNDLE", ca.display().to_string()),
        ("SSL_CERT_FILE", ca.display().to_string()),
    ] {
        writeln!(out, "export {name}='{}'", value.replace('\'', r"'\''"))?;
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

    #[test]
    fn what_is_printed_can_be_evaluated_whatever_the_folder_is_called() {
        let args = LoginArgs {
            serviceaccount: "web".to_owned(),
            namespace: None,
            authority: "https://claviger.example.com/".to_owned(),
            tenant: "adfs".to_owned(),
            valid_for: SignedDuration::from_hours(1),
            folder: None,
            keep: false,
        };
        let mut out = Vec::new();
        print(&args, "shop", Path::new("/tmp/it's $(mine)"), &mut out).unwrap();
        let script = format!(
            "{}printf %s \"$AZURE_FEDERATED_TOKEN_FILE $AZURE_CLIENT_ID\"",
            String::from_utf8(out).unwrap()
        );
        let shell = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(shell.stdout).unwrap(),
            "/tmp/it's $(mine)/token system:serviceaccount:shop:web"
        );
    }
}
