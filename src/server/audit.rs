//! Who did what: one line of JSON for each access, to standard output or a file.
//!
//! The fields are those of [`Record`] and no others. What a caller sends gets into a line only as
//! something that was recognised: an identity that was proved, a resource that has a name such as
//! Kubernetes allows. Nothing is copied from headers, queries and bodies.
//!
//! Lines are written by a thread of their own, those of some milliseconds at once: to wake it for each
//! would cost more than all the rest of an access. When it falls behind, requests wait for it: an
//! access without a line would be worse than a slow one. What cannot be written, as on a full disk, is
//! lost and counted, and holds nobody up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    clock,
    domain::{
        access_token::uuid,
        identity::{Identity, is_object_name},
    },
    k8s::review::Action,
    metrics::Metrics,
    server::router::random,
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
    /// Which door; `listener` if the request got to none.
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
    pub source: Option<IpAddr>,
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

impl Record {
    /// Of a request that begins now and comes from this address.
    pub fn begun(door: &'static str, source: Option<IpAddr>) -> Self {
        Self {
            time: clock::now(),
            request_id: uuid(random()),
            door,
            outcome: Outcome::Abandoned,
            status: None,
            milliseconds: 0,
            reason: None,
            source,
            caller: None,
            object: None,
            token: None,
        }
    }
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

    /// To the end of this file, which only its owner may read. When it was moved away or deleted, the
    /// next line begins another one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn to_file(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let file = open(path)?;
        let path = path.to_owned();
        let successor = move |file: &File| successor(file, &path);
        Ok(Self::spawn(file, successor, metrics))
    }

    /// To whatever can be written to. Call [`Audit::flush`] before the process ends.
    pub fn to(target: impl Write + Send + 'static, metrics: Arc<Metrics>) -> Self {
        Self::spawn(target, |_| Ok(None), metrics)
    }

    fn spawn<W: Write + Send + 'static>(
        target: W,
        successor: impl Fn(&W) -> io::Result<Option<W>> + Send + 'static,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (entries, queue) = mpsc::channel(BACKLOG);
        let failures = Arc::clone(&metrics);
        thread::spawn(move || write(target, successor, queue, &failures));
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
    /// Notes which door was reached.
    pub fn door(&self, door: &'static str) {
        self.0.note(|record| record.door = door);
    }

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
    pub fn source(&self) -> Option<IpAddr> {
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
        // Its place first: whoever is not waited for to the end leaves a record that can be finished.
        let place = self.0.audit.entries.reserve().await;
        let Some(record) = self.0.take(Outcome::of(status), Some(status)) else {
            return;
        };
        match place {
            Ok(place) => place.send(Entry::Line(record.into())),
            Err(_) => self.0.audit.metrics.audit_failed(),
        }
    }

    /// Finishes the record of what was refused before a door, unless it is finished. Does not wait:
    /// these have no place among the requests under way, and so nothing bounds how many would.
    pub fn refuse(&self, status: u16, reason: &'static str) {
        self.reason(reason);
        self.0.hand_over(Outcome::of(status), Some(status));
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

    fn hand_over(&self, outcome: Outcome, status: Option<u16>) {
        if let Some(record) = self.take(outcome, status)
            && self
                .audit
                .entries
                .try_send(Entry::Line(record.into()))
                .is_err()
        {
            self.audit.metrics.audit_failed();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.hand_over(Outcome::Abandoned, None);
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

/// The file that is at the path now, if it is not this one: somebody rotates.
fn successor(file: &File, path: &Path) -> io::Result<Option<File>> {
    let there = match fs::metadata(path) {
        Ok(there) => Some((there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let own = file.metadata()?;
    if there == Some((own.dev(), own.ino())) {
        return Ok(None);
    }
    open(path).map(Some)
}

fn write<W: Write>(
    mut target: W,
    successor: impl Fn(&W) -> io::Result<Option<W>>,
    mut queue: mpsc::Receiver<Entry>,
    metrics: &Metrics,
) {
    let mut text = Vec::with_capacity(PIECE);
    let (mut is_torn, mut is_well) = (false, true);
    while let Some(first) = queue.blocking_recv() {
        if matches!(first, Entry::Line(_)) {
            thread::sleep(GATHERING);
        }
        text.clear();
        if is_torn {
            // What there was no room for must not spoil what comes after it.
            text.push(b'\n');
        }
        let (mut lines, mut waiting) = (0, Vec::new());
        let mut next = Some(first);
        while let Some(entry) = next {
            match entry {
                Entry::Line(record) => {
                    serde_json::to_writer(&mut text, &record)
                        .expect("strings, numbers and times are JSON");
                    text.push(b'\n');
                    lines += 1;
                }
                Entry::Flush(done) => waiting.push(done),
            }
            next = (text.len() < PIECE)
                .then(|| queue.try_recv().ok())
                .flatten();
        }
        if lines > 0 {
            let followed = successor(&target).map(|successor| {
                if let Some(successor) = successor {
                    target = successor;
                    if is_torn {
                        text.remove(0);
                        is_torn = false;
                    }
                }
            });
            let (count, written) = put(&mut target, &text);
            let whole = text[..count].split(|byte| *byte == b'\n').count() - 1;
            let whole = whole.saturating_sub(is_torn.into());
            if let Some(last) = text[..count].last() {
                is_torn = *last != b'\n';
            }
            // Those that went to a file that was moved away may be lost as well.
            let lost = if followed.is_ok() {
                lines - whole
            } else {
                lines
            };
            for _ in 0..lost {
                metrics.audit_failed();
            }
            let failed = followed.and(written).err();
            if let Some(error) = &failed
                && is_well
            {
                tracing::error!(%error, "the audit cannot be written");
            }
            is_well = failed.is_none();
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}

/// Writes lines; also tells how much of it was written.
fn put(target: &mut impl Write, text: &[u8]) -> (usize, io::Result<()>) {
    let mut count = 0;
    while count < text.len() {
        match target.write(&text[count..]) {
            Ok(0) => return (count, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (count, Err(error)),
        }
    }
    (count, target.flush())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk on which there is room for so many bytes.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Disk {
        fn give(&self, room: usize) {
            self.0.lock().unwrap().1 = room;
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().0.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let count = bytes.len().min(disk.1);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&bytes[..count]);
            disk.1 -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn access(audit: &Audit) {
        let trail = audit.begin(Record::begun("door", None));
        trail.finish(200).await;
        drop(trail);
        audit.flush().await;
    }

    fn is_record(line: &str) -> bool {
        serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["door"] == "door")
    }

    #[tokio::test]
    async fn a_full_disk_cuts_one_line_and_spoils_none_that_comes_after() {
        let (disk, metrics) = (Disk::default(), Arc::new(Metrics::default()));
        let audit = Audit::to(disk.clone(), Arc::clone(&metrics));
        disk.give(10_000);
        access(&audit).await;
        disk.give(30);
        for _ in 0..100 {
            access(&audit).await;
        }
        disk.give(1);
        access(&audit).await;
        disk.give(0);
        access(&audit).await;
        disk.give(10_000);
        access(&audit).await;
        access(&audit).await;
        let text = disk.text();
        let lines: Vec<_> = text.lines().collect();
        assert!(text.ends_with('\n') && lines.len() == 4, "{text}");
        let well: Vec<_> = lines.iter().map(|line| is_record(line)).collect();
        assert_eq!(well, [true, false, true, true], "{text}");
        let failures = "claviger_audit_failures_total 102";
        assert!(metrics.render().contains(failures));
    }

    #[tokio::test]
    async fn a_file_that_was_moved_away_is_followed_by_another() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("audit"), folder.path().join("audit.1"));
        let metrics = Arc::new(Metrics::default());
        let audit = Audit::to_file(&path, Arc::clone(&metrics)).unwrap();
        access(&audit).await;
        access(&audit).await;
        fs::rename(&path, &moved).unwrap();
        access(&audit).await;
        fs::remove_file(&path).unwrap();
        access(&audit).await;
        // As with logrotate's `create`.
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap();
        access(&audit).await;
        let count = |path| {
            let text = fs::read_to_string(path).unwrap();
            assert!(text.lines().all(is_record), "{text}");
            text.lines().count()
        };
        assert_eq!((count(&moved), count(&path)), (2, 1));
        assert!(metrics.render().contains("claviger_audit_failures_total 0"));
        // Where nothing can be made, what is open is written on, and counted.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        access(&audit).await;
        assert!(metrics.render().contains("claviger_audit_failures_total 1"));
    }

    #[tokio::test]
    async fn who_stops_waiting_for_the_writer_leaves_a_line_or_is_counted() {
        let (entries, mut queue) = mpsc::channel(1);
        let metrics = Arc::new(Metrics::default());
        let audit = Audit {
            entries,
            metrics: Arc::clone(&metrics),
        };
        let first = audit.begin(Record::begun("door", None));
        first.finish(200).await;
        let second = audit.begin(Record::begun("door", None));
        {
            let waiting = std::pin::pin!(second.finish(200));
            assert!(futures::poll!(waiting).is_pending());
        }
        assert!(matches!(queue.recv().await, Some(Entry::Line(_))));
        second.refuse(408, "request_timeout");
        let Ok(Entry::Line(line)) = queue.try_recv() else {
            panic!("no line")
        };
        assert_eq!(
            (line.status, line.reason),
            (Some(408), Some("request_timeout"))
        );
        // Of one that is finished nothing more is noted, and where there is no room, it is counted.
        drop(second);
        first.refuse(503, "requests");
        assert!(queue.try_recv().is_err());
        for _ in 0..2 {
            let trail = audit.begin(Record::begun("listener", None));
            trail.refuse(503, "requests");
        }
        assert!(metrics.render().contains("claviger_audit_failures_total 1"));
    }

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
