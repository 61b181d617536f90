//! The binary is killed (SIGKILL) again and again, at every write it makes for a vault, before or
//! after it was applied but before the answer came back: every version opens to what it was, no
//! synced Secret is ever without a value or half old and half new, nothing is minted, turned or
//! restarted twice, no key ring is replaced or destroyed early.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use claviger::{
    api::{
        ATTRIBUTES_ANNOTATION, SYNC_ANNOTATION,
        v1alpha1::{DeclaredState, SecretVaultStatus},
    },
    domain::vault::{
        attributes::{Attributes, Kind},
        envelope::RootKey,
        name::{NameHash, parse_object_name},
        ring::RingDocument,
        sync,
    },
    k8s::vault::{ENTRY_TYPE, RING_TYPE},
};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use crate::support::{
    Operator, Options, Space,
    assassin::{Assassin, Phases},
    operator::Launcher,
    proxy::{Proxy, Seen},
    record::{Content, Record},
    vault_book::{self, Made, Promise, Target, Turned},
    vaults::{ready, says},
};

/// Kills of an ordinary run; `CLAVIGER_CRASH_KILLS` asks for another number.
const KILLS: u32 = 200;

/// A run that makes no progress for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

const OVERLAP: SignedDuration = SignedDuration::from_secs(2);
const KEEP: usize = 1;

/// What a run has to have died of, both before and after it was written.
const PHASES: [&str; 26] = [
    "make ring",
    "make entry",
    "rotate",
    "follow source",
    "revoke",
    "retire",
    "prune",
    "reshape",
    "soft delete",
    "recover",
    "purge",
    "purge entries",
    "turn ring",
    "re-wrap",
    "re-wrap midway",
    "destroy ring version",
    "sync: make",
    "sync: owner",
    "sync: merge",
    "sync: immutable",
    "sync: remove",
    "restart",
    "hold",
    "let go",
    "destroy vault",
    "status",
];

fn attributes(content: &Content) -> Option<Attributes> {
    Attributes::parse(content.annotations.get(ATTRIBUTES_ANNOTATION)?).ok()
}

/// Whose entry an object is: by the vaults of this test.
fn entry_of(object: &str) -> Option<(String, NameHash, u32)> {
    let vault = object.split('.').next()?;
    let (hash, sequence) = parse_object_name(vault, object)?;
    Some((vault.to_owned(), hash, sequence))
}

/// The entries that stand beside one.
fn history(record: &Record, object: &str) -> Vec<(u32, Attributes)> {
    let Some((vault, hash, _)) = entry_of(object) else {
        return Vec::new();
    };
    standing(record)
        .into_iter()
        .filter_map(|(name, content)| {
            let (other, this, sequence) = entry_of(&name)?;
            ((other, this) == (vault.clone(), hash))
                .then(|| Some((sequence, attributes(&content)?)))?
        })
        .collect()
}

/// Everything that stands in Secrets.
fn standing(record: &Record) -> BTreeMap<String, Content> {
    let mut now = BTreeMap::new();
    for version in record.versions() {
        if version.kind == "Secret" {
            match version.content {
                Some(content) => _ = now.insert(version.name, content),
                None => _ = now.remove(&version.name),
            }
        }
    }
    now
}

fn of_attributes(attributes: &Attributes) -> &'static str {
    match attributes.kind {
        Kind::Deleted => "soft delete",
        Kind::Recovered => "recover",
        Kind::Purging => "purge",
        Kind::Value => match &attributes.managed {
            Some(managed) if managed.revoked => "revoke",
            Some(managed) if managed.generation == 1 => "make entry",
            Some(managed) if managed.source.is_some() => "follow source",
            _ => "rotate",
        },
    }
}

/// What a write does, by what it changes.
fn phases(seen: &Seen, record: &Record) -> Phases {
    Phases::from([phase(seen, record)])
        .into_iter()
        .flat_map(|phase| {
            let also = (phase == "re-wrap" && is_midway(seen, record)).then_some("re-wrap midway");
            [Some(phase), also].into_iter().flatten()
        })
        .collect()
}

fn phase(seen: &Seen, record: &Record) -> &'static str {
    let name = seen.path.rsplit('/').next().unwrap_or_default();
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    if seen.path.ends_with("/status") {
        return "status";
    }
    if seen.path.contains("/deployments/") {
        return "restart";
    }
    if seen.path.contains("/secretvaults/") {
        let held = body["metadata"]["finalizers"].as_array();
        return if held.is_some_and(|held| !held.is_empty()) {
            "hold"
        } else {
            "let go"
        };
    }
    if seen.method == Method::POST {
        let made: Secret = serde_json::from_slice(&seen.body).unwrap_or_default();
        return match made.type_.as_deref() {
            Some(RING_TYPE) => "make ring",
            Some(ENTRY_TYPE) => {
                let text = &made.annotations()[ATTRIBUTES_ANNOTATION];
                of_attributes(&Attributes::parse(text).unwrap())
            }
            _ if made.immutable == Some(true) => "sync: immutable",
            _ => "sync: make",
        };
    }
    let before = record.last("Secret", name).unwrap_or_default();
    if entry_of(name).is_some() {
        if seen.method == Method::DELETE {
            let beside = history(record, name);
            return if name.starts_with("short") {
                "destroy vault"
            } else if beside
                .iter()
                .any(|(_, beside)| beside.kind == Kind::Purging)
            {
                "purge entries"
            } else {
                "prune"
            };
        }
        let text = body["metadata"]["annotations"][ATTRIBUTES_ANNOTATION].as_str();
        return match text.map(|text| Attributes::parse(text).unwrap()) {
            None => "re-wrap",
            Some(after) if !after.enabled => "retire",
            Some(_) => "reshape",
        };
    }
    if before.type_.as_deref() == Some(RING_TYPE) {
        if seen.method == Method::DELETE {
            return "destroy vault";
        }
        let patch: Secret = serde_json::from_slice(&seen.body).unwrap();
        let after = RingDocument::parse(&patch.data.unwrap()["ring"].0).unwrap();
        let known = RingDocument::parse(&before.bytes["ring"]).unwrap();
        return if after.last > known.last {
            "turn ring"
        } else if after.versions.len() < known.versions.len() {
            "destroy ring version"
        } else {
            "bookkeeping"
        };
    }
    if seen.method == Method::DELETE {
        return "sync: remove";
    }
    let text = body["metadata"]["annotations"][SYNC_ANNOTATION].as_str();
    match text.and_then(|text| sync::Record::parse(text).ok()) {
        None => "sync: remove",
        Some(record) if record.merge => "sync: merge",
        Some(_) => "sync: owner",
    }
}

/// Whether some entries of the vault have been re-wrapped already, and others have not.
fn is_midway(seen: &Seen, record: &Record) -> bool {
    let name = seen.path.rsplit('/').next().unwrap_or_default();
    let Some((vault, ..)) = entry_of(name) else {
        return false;
    };
    let under: std::collections::BTreeSet<String> = standing(record)
        .into_iter()
        .filter(|(name, _)| entry_of(name).is_some_and(|(other, ..)| other == vault))
        .filter_map(|(_, content)| {
            let envelope = content.annotations.get("claviger.dev/envelope")?;
            Some(envelope.split('.').nth(1)?.to_owned())
        })
        .collect();
    under.len() > 1
}

/// A run with its script.
struct Run {
    space: Space,
    record: Record,
    root: RootKey,
    launcher: Launcher,
    assassin: Arc<Assassin>,
    operator: Option<Operator>,
    promises: Vec<Promise>,
    ring_generation: i64,
    deaths: u32,
}

/// What the vault declares; `flit` comes and goes.
fn spec(flit: bool, tag: u32) -> Value {
    let rotation = json!({"overlap": "2s"});
    let mut secrets = vec![
        json!({"name": "db", "generate": {}, "rotation": rotation, "keep": {"versions": KEEP}}),
        json!({
            "name": "api", "rotation": rotation, "keep": {"versions": KEEP},
            "valueFrom": {"secretKeyRef": {"name": "source", "key": "value"}},
        }),
    ];
    for still in 0..6 {
        secrets.push(json!({
            "name": format!("still-{still}"), "generate": {"length": 64}, "tags": {"round": format!("{tag}")},
        }));
    }
    if flit {
        secrets.push(json!({"name": "flit", "generate": {}}));
    }
    json!(secrets)
}

fn main_targets() -> Vec<Target> {
    let target = |name: &str, keys: &[(&'static str, Made)]| Target {
        name: name.to_owned(),
        immutable: name == "frozen",
        merge: name == "shared",
        keys: keys.iter().cloned().collect(),
        restarts: (name == "env").then_some("web"),
    };
    vec![
        target(
            "env",
            &[
                ("DB", Made::Current("db")),
                ("DB_PREVIOUS", Made::Previous("db")),
                ("DB_AGAIN", Made::Current("db")),
                ("API", Made::Current("api")),
                (
                    "URL",
                    Made::Text("postgres://app:<db>@db?<api>", &["db", "api"]),
                ),
            ],
        ),
        target(
            "shared",
            &[("API", Made::Current("api")), ("DB", Made::Current("db"))],
        ),
        target(
            "frozen",
            &[("DB", Made::Current("db")), ("API", Made::Current("api"))],
        ),
    ]
}

/// The targets as a manifest has them.
fn declared(targets: &[Target]) -> Value {
    let item = |target: &Target| {
        let data: Vec<Value> = target
            .keys
            .iter()
            .map(|(key, made)| match made {
                Made::Current(secret) => json!({"key": key, "secret": secret}),
                Made::Previous(secret) => {
                    json!({"key": key, "secret": secret, "version": "Previous"})
                }
                Made::Text(text, secrets) => {
                    let mut text = (*text).to_owned();
                    for secret in *secrets {
                        let input = format!("{{{{ secrets['{secret}'] }}}}");
                        text = text.replace(&format!("<{secret}>"), &input);
                    }
                    json!({"key": key, "template": text})
                }
            })
            .collect();
        let mut item = json!({"target": {"name": target.name}, "data": data});
        if target.immutable {
            item["target"]["immutable"] = json!(true);
        }
        if target.merge {
            item["creationPolicy"] = json!("Merge");
        }
        if let Some(deployment) = target.restarts {
            item["restart"] = json!([{"kind": "Deployment", "name": deployment}]);
        }
        item
    };
    targets.iter().map(item).collect()
}

impl Run {
    async fn start() -> Self {
        let space = Space::new("vault-crash").await;
        // Makes the seal key and the root key.
        let first = Operator::start(&space, Options::default()).await;
        space
            .declare_vault("first", json!({"secrets": [{"name": "a", "generate": {}}]}))
            .await;
        space.vault_ready("first").await;
        first.kill().await;
        let record = Record::start(&space).await;
        let proxy = Proxy::start(&space.cluster).await;
        let options = Options {
            restart_delay: "200ms",
            server: Some(proxy.url.clone()),
            identity: Some("the-same-again".to_owned()),
            ..Options::default()
        };
        let launcher = Launcher::new(&space, &options).await;
        let book = record.clone();
        let assassin = Assassin::behind(&proxy, move |seen| phases(seen, &book));
        Self {
            root: vault_book::root_key(&space).await,
            space,
            record,
            launcher,
            assassin,
            operator: None,
            promises: Vec::new(),
            ring_generation: 0,
            deaths: 0,
        }
    }

    async fn holds(&self) -> vault_book::Seen {
        vault_book::holds(&self.record, &self.root, &self.promises).await
    }

    /// Lets operators live and die until this is so.
    async fn until(&mut self, what: &str, is: impl AsyncFn(&Self) -> Result<(), String>) {
        let mut progress = (Instant::now(), self.record.length());
        loop {
            if self.operator.is_none() {
                self.operator = Some(self.assassin.raise(&self.launcher));
            }
            if self.operator.as_mut().is_some_and(Operator::has_ended) {
                self.deaths += 1;
                assert_eq!(
                    self.deaths,
                    self.assassin.killed(),
                    "an operator ended by itself:\n{}",
                    tail(&self.launcher.logged())
                );
                self.operator = Some(self.assassin.raise(&self.launcher));
                continue;
            }
            match is(self).await {
                Ok(()) => return,
                Err(why) => {
                    let versions = self.record.length();
                    if versions != progress.1 {
                        progress = (Instant::now(), versions);
                    }
                    assert!(
                        progress.0.elapsed() < STUCK,
                        "stuck before {what}: {why}\n{}",
                        tail(&self.launcher.logged())
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn main(&mut self) -> &mut Promise {
        &mut self.promises[0]
    }

    async fn declare_main(&mut self) {
        let targets = main_targets();
        let made = self
            .space
            .declare_vault(
                "main",
                json!({"secrets": spec(true, 0), "sync": declared(&targets)}),
            )
            .await;
        drop(made);
        self.promises.push(Promise {
            vault: "main".to_owned(),
            overlap: OVERLAP,
            keep: KEEP,
            secrets: BTreeMap::from([("db", Turned::default()), ("api", Turned::default())]),
            ring_turns: Vec::new(),
            targets,
            deleted: None,
            shared: false,
        });
    }

    async fn change(&mut self, patch: Value) -> u64 {
        let vault = self.space.change_vault("main", patch).await;
        vault.resource_version().unwrap().parse().unwrap()
    }

    /// Turns `db` by annotation, by which more than one secret can be asked for.
    async fn turn_db(&mut self, revoke: bool) {
        let annotation = if revoke { "revoke" } else { "rotate" };
        let text = format!("db@{}", Timestamp::now());
        let patch = json!({"metadata": {"annotations": {format!("claviger.dev/{annotation}-secrets"): text}}});
        let at = self.change(patch).await;
        let db = self.main().secrets.get_mut("db").unwrap();
        db.turns.push(at);
        if revoke {
            db.revoked.push(at);
        }
    }

    async fn change_source(&mut self, round: u32) {
        let value = format!("{round:04}Zq7vX2mK9rT4wY8bN3cH6jL1pD5gS0aF");
        let source = self.space.put_secret("source", &[("value", &value)]).await;
        let at = source.resource_version().unwrap().parse().unwrap();
        if round > 0 {
            self.main().secrets.get_mut("api").unwrap().turns.push(at);
        }
    }

    async fn turn_ring(&mut self) {
        self.ring_generation += 1;
        let generation = self.ring_generation;
        let at = self
            .change(json!({"spec": {"keyRing": {"rotation": {"generation": generation}}}}))
            .await;
        self.main().ring_turns.push(at);
    }

    /// A vault that is there for a round.
    async fn declare_short(&mut self, round: u32) {
        let vault = format!("short-{round}");
        let keys: BTreeMap<_, _> = [("ONE", Made::Current("one"))].into();
        let targets = vec![Target {
            name: format!("of-{vault}"),
            immutable: false,
            merge: false,
            keys,
            restarts: None,
        }];
        self.space
            .declare_vault(
                &vault,
                json!({
                    "secrets": [{"name": "one", "generate": {}}, {"name": "two", "generate": {}}],
                    "sync": declared(&targets), "deletionPolicy": "Delete",
                }),
            )
            .await;
        self.promises.push(Promise {
            vault,
            overlap: OVERLAP,
            keep: 10,
            secrets: BTreeMap::new(),
            ring_turns: Vec::new(),
            targets,
            deleted: None,
            shared: false,
        });
    }

    async fn delete_short(&mut self, round: u32) {
        let name = format!("short-{round}");
        let gone = self
            .space
            .vaults()
            .delete(&name, &DeleteParams::default())
            .await
            .unwrap();
        let at = gone
            .left()
            .and_then(|vault| vault.resource_version())
            .map_or(0, |version| version.parse().unwrap());
        let promise = self.promises.last_mut().unwrap();
        assert_eq!(promise.vault, name);
        promise.deleted = Some(at);
    }

    /// Waits until the main vault is Ready and what was asked for of it has been done.
    async fn settled(&mut self, what: &str, over: bool) {
        self.until(what, async |run: &Self| {
            let vaults = run.space.vaults();
            let promise = &run.promises[0];
            let vault = vaults
                .get("main")
                .await
                .map_err(|error| error.to_string())?;
            let status = vault.status.clone().unwrap_or_default();
            let expected = |name: &str| {
                promise
                    .secrets
                    .get(name)
                    .map_or(1, |turned| turned.turns.len() + 1)
            };
            let declared = |is: &dyn Fn(&claviger::api::v1alpha1::DeclaredStatus) -> bool| {
                status.declared.iter().all(is)
            };
            let turned = declared(&|secret| {
                secret.generation == Some(i64::try_from(expected(&secret.name)).unwrap())
                    && (!over || secret.state == Some(DeclaredState::Stable))
            });
            let ring = status.key_ring.clone().unwrap_or_default();
            let frozen = standing(&run.record)
                .keys()
                .filter(|name| name.starts_with("frozen-"))
                .count();
            let settled = status.observed_generation == vault.metadata.generation
                && says(&status.conditions, "Ready") == "True"
                && says(&status.conditions, "Reconciling") == "False"
                && status.declared.len() == vault.spec.secrets.as_ref().map_or(0, Vec::len)
                && turned
                && ring.current == i64::try_from(promise.ring_turns.len()).unwrap() + 1
                && (!over || (ring.versions.len() == 1 && frozen == 1));
            if settled {
                Ok(())
            } else {
                Err(format!("{frozen} frozen, {}", brief(&status)))
            }
        })
        .await;
    }

    /// Waits until every entry of `flit` is as asked.
    async fn until_flit(&mut self, what: &str, is: impl Fn(&[Attributes]) -> bool) {
        self.until(what, async |run: &Self| {
            let flit: Vec<Attributes> = standing(&run.record)
                .into_iter()
                .filter(|(name, _)| name.starts_with("main."))
                .filter_map(|(_, content)| attributes(&content))
                .filter(|attributes| attributes.name.as_str() == "flit")
                .collect();
            if is(&flit) {
                Ok(())
            } else {
                Err(format!("{} entries of flit", flit.len()))
            }
        })
        .await;
    }

    /// Waits until nothing is left of a vault.
    async fn until_gone(&mut self, round: u32) {
        let vault = format!("short-{round}");
        self.until("the short vault to be gone", async |run: &Self| {
            let there = run
                .space
                .vaults()
                .get_opt(&vault)
                .await
                .map_err(|error| error.to_string())?;
            let left: Vec<String> = standing(&run.record)
                .into_keys()
                .filter(|name| {
                    name.contains(&format!("{vault}."))
                        || name.ends_with(&vault)
                        || *name == format!("{vault}-key-ring")
                })
                .collect();
            if there.is_none() && left.is_empty() {
                Ok(())
            } else {
                Err(format!("{} is there, and {left:?}", there.is_some()))
            }
        })
        .await;
    }
}

fn brief(status: &SecretVaultStatus) -> String {
    let said = ready(&status.conditions).map(|ready| format!("{} {}", ready.reason, ready.message));
    format!(
        "{said:?} {}",
        serde_json::to_string(&(&status.declared, &status.key_ring)).unwrap()
    )
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_write_no_version_is_lost_doubled_or_unreadable() {
    let target: u32 = std::env::var("CLAVIGER_CRASH_KILLS")
        .ok()
        .map_or(KILLS, |text| text.parse().unwrap());
    let begun = Instant::now();
    let mut run = Run::start().await;
    run.space.put_deployment("web").await;
    run.space
        .put_secret("shared", &[("FOREIGN", "left alone")])
        .await;
    run.declare_main().await;
    run.change_source(0).await;
    run.settled("the vault to be made", true).await;
    let first = run.space.ring("main").await["vaultId"].clone();

    let mut round = 0;
    while run.assassin.killed() < target || run.assassin.spared(&PHASES).is_some() {
        assert!(
            run.assassin.killed() < 3 * target,
            "nobody was killed before and after: {:?} of {:?}",
            run.assassin.spared(&PHASES),
            run.assassin.kills()
        );
        round += 1;
        run.turn_db(false).await;
        run.change_source(round).await;
        run.declare_short(round).await;
        // Soft delete, in the midst of the turn.
        run.change(json!({"spec": {"secrets": spec(false, round)}}))
            .await;
        run.settled("new values to be handed out", false).await;
        run.until_flit("the tombstone", |flit| {
            flit.iter().any(|entry| entry.kind == Kind::Deleted)
        })
        .await;
        // In the midst of the overlap: the ring turns, the secret turns again or is revoked.
        run.turn_ring().await;
        if round % 2 == 0 {
            let text = format!("flit@{}", Timestamp::now());
            run.change(json!({"metadata": {"annotations": {"claviger.dev/purge-secrets": text}}}))
                .await;
            run.turn_db(false).await;
            run.until_flit("the purge", <[Attributes]>::is_empty).await;
        } else {
            run.turn_db(true).await;
        }
        run.change(json!({"spec": {"secrets": spec(true, round)}}))
            .await;
        run.delete_short(round).await;
        run.until_gone(round).await;
        run.settled("every turn to be over", true).await;
        run.until_flit("it to be back", |flit| {
            flit.len() == 1 && flit[0].kind == Kind::Value || flit.len() == 2
        })
        .await;
        run.holds().await;
        println!(
            "round {round}: {} kills after {:.0?}",
            run.assassin.killed(),
            begun.elapsed()
        );
    }

    // Left alone, it has nothing more to do.
    run.assassin.spare();
    let last = Instant::now();
    while run.deaths < run.assassin.killed()
        && !run.operator.as_mut().is_none_or(Operator::has_ended)
    {
        assert!(
            last.elapsed() < Duration::from_secs(30),
            "the last kill was none"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let quiet = run.record.length();
    if run.operator.as_mut().is_none_or(Operator::has_ended) {
        run.deaths += 1;
        run.operator = Some(run.launcher.spawn());
    }
    let operator = run.operator.take().unwrap();
    operator.leads().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let seen = run.holds().await;
    assert_eq!(run.record.gaps(), 0);
    assert_eq!(
        run.record.length(),
        quiet,
        "something was written although everything was done: {:?}",
        run.record
            .versions()
            .iter()
            .skip(quiet)
            .map(|version| &version.name)
            .collect::<Vec<_>>()
    );
    assert!(!operator.logged().contains("panicked"));
    assert_eq!(run.space.ring("main").await["vaultId"], first);
    for (object, said) in run.space.attributes("main").await {
        assert_ne!(said["kind"], "Purging", "{object}");
    }

    let kills = run.assassin.kills();
    println!("{:24}{:>8}{:>8}", "killed at", "before", "after");
    for (phase, [before, after]) in &kills {
        println!("{phase:24}{before:>8}{after:>8}");
    }
    println!(
        "{} kills in {round} rounds, {:.0?}; looked at {seen:?}",
        run.assassin.killed(),
        begun.elapsed()
    );
    assert!(run.deaths >= target, "{} kills", run.deaths);
}
