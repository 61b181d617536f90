//! Who did what: one line of JSON for each access, to standard output or a file.
//!
//! The fields are those of [`Record`] and no others. What a caller sends gets into a line only as
//! something that was recognised: an identity that was proved, a resource that has a name such as
//! Kubernetes allows. Nothing is copied from headers, queries and bodies.
//!
//! Lines are written by a thread of their own, those of some milliseconds at once: to wake it for each
//! would cost more than all the rest of an access. When it falls behind, requests wait for it: an
//! access without a line would be worse than a slow one.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    domain::identity::{Identity, is_object_name},
    k8s::review::Action,
    metrics::Metrics,
};

const BACKLOG: usize = 4096;
/// How long a line lies at most, while others come that are written with it.
const GATHERING: Duration = Duration::from_millis(2);
/// Bytes that are written at once.
const PIECE: usize = 64 << 10;

/// One access.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// When it began.
    pub time: Timestamp,
    /// Names the request; the answer carries it, too.
    pub request_id: String,
    /// Which door.
    pub door: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// The HTTP status of the answer; none if there was nobody left to answer to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
    /// What was wrong, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The address that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<std::net::IpAddr>,
    /// Who it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// What was to be done to which resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// The access token that was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Issued>,
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::IntoStaticStr)]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The caller went away.
    Abandoned,
    /// It was done.
    Allowed,
    /// The caller may not.
    Forbidden,
    /// The request makes no sense.
    Invalid,
    /// Who the caller is was not proved.
    Unauthenticated,
    /// Claviger or the apiserver could not.
    Unavailable,
}

impl Outcome {
    /// What a status says.
    pub fn of(status: u16) -> Self {
        match status {
            401 => Self::Unauthenticated,
            403 => Self::Forbidden,
            400..=499 => Self::Invalid,
            500.. => Self::Unavailable,
            _ => Self::Allowed,
        }
    }
}

/// Who made an access.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
}

impl From<&Identity> for Caller {
    fn from(identity: &Identity) -> Self {
        let subject = identity.subject();
        let pod = match identity {
            Identity::ServiceAccount(account) => account.pod.as_ref().map(|pod| pod.name.clone()),
            Identity::FunctionKey(_) | Identity::Oidc(_) => None,
        };
        Self {
            user: subject.user,
            uid: subject.uid,
            pod,
        }
    }
}

/// What an access was about.
#[derive(Clone, Debug, Serialize)]
pub struct Object {
    verb: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

impl Object {
    /// What was to be done, if the words can be those of resources.
    pub fn of(action: &Action) -> Option<Self> {
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 63
                && text.bytes().all(|byte| byte.is_ascii_lowercase())
        };
        let well = [&action.verb, &action.resource, &action.subresource]
            .into_iter()
            .all(|text| word(text))
            && is_object_name(&action.namespace)
            && is_object_name(&action.name);
        well.then(|| Self {
            verb: action.verb.clone(),
            resource: action.resource.clone(),
            subresource: action.subresource.clone(),
            namespace: action.namespace.clone(),
            name: action.name.clone(),
        })
    }
}

/// An access token that was issued.
#[derive(Clone, Debug, Serialize)]
pub struct Issued {
    /// Its `jti`.
    pub id: String,
    /// The resource that it is for.
    pub resource: String,
    /// When it ends.
    pub expires: Timestamp,
}

/// What the writing thread is given.
enum Entry {
    Line(Box<Record>),
    Flush(oneshot::Sender<()>),
}

/// Where records go.
#[derive(Clone)]
pub struct Audit {
    entries: mpsc::Sender<Entry>,
    metrics: Arc<Metrics>,
}

impl Audit {
    /// To standard output.
    pub fn to_stdout(metrics: Arc<Metrics>) -> Self {
        Self::to(io::stdout(), metrics)
    }

    /// To the end of this file, which only its owner may read.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn to_file(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self::to(file, metrics))
    }

    /// To whatever can be written to. Call [`Audit::flush`] before the process ends.
    pub fn to(target: impl Write + Send + 'static, metrics: Arc<Metrics>) -> Self {
        let (entries, queue) = mpsc::channel(BACKLOG);
        let failures = Arc::clone(&metrics);
        thread::spawn(move || write(target, queue, &failures));
        Self { entries, metrics }
    }

    /// Begins the record of an access.
    pub fn begin(&self, record: Record) -> Trail {
        Trail(Arc::new(Pending {
            audit: self.clone(),
            begun: std::time::Instant::now(),
            record: Mutex::new(Some(record)),
        }))
    }

    /// Waits until everything that was handed over is written.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.entries.send(Entry::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }

    fn count(&self, record: &Record) {
        self.metrics.accessed(record.door, record.outcome.into());
    }
}

/// The record of an access that is under way. If nobody finishes it, it is written as abandoned.
#[derive(Clone)]
pub struct Trail(Arc<Pending>);

struct Pending {
    audit: Audit,
    begun: std::time::Instant,
    record: Mutex<Option<Record>>,
}

impl Trail {
    /// Notes who it is.
    pub fn caller(&self, identity: &Identity) {
        self.0.note(|record| record.caller = Some(identity.into()));
    }

    /// Notes what is to be done.
    pub fn object(&self, action: &Action) {
        self.0.note(|record| record.object = Object::of(action));
    }

    /// Notes which token was issued.
    pub fn issued(&self, issued: Issued) {
        self.0.note(|record| record.token = Some(issued));
    }

    /// Notes what was wrong.
    pub fn reason(&self, reason: &'static str) {
        self.0.note(|record| record.reason = Some(reason));
    }

    /// The address that the request came from.
    pub fn source(&self) -> Option<std::net::IpAddr> {
        self.0.lock().as_ref().and_then(|record| record.source)
    }

    /// Names the request.
    pub fn request_id(&self) -> String {
        let record = self.0.lock();
        record
            .as_ref()
            .map(|record| record.request_id.clone())
            .unwrap_or_default()
    }

    /// Finishes the record; waits if there are too many.
    pub async fn finish(&self, status: u16) {
        let finished = self.0.take(Outcome::of(status), Some(status));
        if let Some(record) = finished
            && self
                .0
                .audit
                .entries
                .send(Entry::Line(record.into()))
                .await
                .is_err()
        {
            self.0.audit.metrics.audit_failed();
        }
    }
}

impl Pending {
    fn note(&self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = self.lock().as_mut() {
            note(record);
        }
    }

    fn take(&self, outcome: Outcome, status: Option<u16>) -> Option<Record> {
        let mut record = self.lock().take()?;
        record.outcome = outcome;
        record.status = status;
        record.milliseconds = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.audit.count(&record);
        Some(record)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(record) = self.take(Outcome::Abandoned, None)
            && self
                .audit
                .entries
                .try_send(Entry::Line(record.into()))
                .is_err()
        {
            self.audit.metrics.audit_failed();
        }
    }
}

fn write(target: impl Write, mut queue: mpsc::Receiver<Entry>, metrics: &Metrics) {
    let mut target = io::BufWriter::with_capacity(PIECE, target);
    let mut is_well = true;
    while let Some(first) = queue.blocking_recv() {
        if matches!(first, Entry::Line(_)) {
            thread::sleep(GATHERING);
        }
        let (mut next, mut waiting, mut failed) = (Some(first), Vec::new(), None);
        while let Some(entry) = next {
            match entry {
                Entry::Line(record) => {
                    if let Err(error) = line(&mut target, &record) {
                        metrics.audit_failed();
                        failed = Some(error);
                    }
                }
                Entry::Flush(done) => waiting.push(done),
            }
            next = queue.try_recv().ok();
        }
        // Nothing stays behind when nothing more comes.
        if let Err(error) = target.flush() {
            metrics.audit_failed();
            failed = Some(error);
        }
        if let Some(error) = &failed
            && is_well
        {
            tracing::error!(%error, "the audit cannot be written");
        }
        is_well = failed.is_none();
        for done in waiting {
            let _ = done.send(());
        }
    }
    let _ = target.flush();
}

fn line(target: &mut impl Write, record: &Record) -> io::Result<()> {
    serde_json::to_writer(&mut *target, record)?;
    target.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_of_resources_are_objects() {
        let action = |verb: &str, name: &str| Action {
            verb: verb.to_owned(),
            resource: "secretvaults".to_owned(),
            subresource: "secrets".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        assert!(Object::of(&action("get", "payments")).is_some());
        for (verb, name) in [
            ("get", "P"),
            ("get", ""),
            ("GET", "a"),
            ("", "a"),
            ("get", "a b"),
        ] {
            assert!(Object::of(&action(verb, name)).is_none(), "{verb} {name}");
        }
    }

    #[test]
    fn statuses_are_outcomes() {
        let outcomes = [200, 304, 400, 401, 403, 404, 413, 500, 503].map(Outcome::of);
        assert_eq!(
            outcomes,
            [
                Outcome::Allowed,
                Outcome::Allowed,
                Outcome::Invalid,
                Outcome::Unauthenticated,
                Outcome::Forbidden,
                Outcome::Invalid,
                Outcome::Invalid,
                Outcome::Unavailable,
                Outcome::Unavailable
            ]
        );
    }
}
