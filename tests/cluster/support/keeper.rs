//! What a kubelet does for the operator: starts it again whenever it has ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{control_plane::signal_process, operator::Launcher};

/// Keeps one operator running until it is dropped.
pub(crate) struct Keeper {
    task: tokio::task::JoinHandle<()>,
    starts: Arc<AtomicU32>,
    /// The one that runs.
    pid: Arc<AtomicU32>,
}

impl Keeper {
    /// Starts an operator and keeps it running.
    pub(crate) fn start(launcher: Launcher) -> Self {
        let starts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        let pid = Arc::new(AtomicU32::new(0));
        let runs = Arc::clone(&pid);
        let task = tokio::spawn(async move {
            loop {
                let mut operator = launcher.spawn();
                counted.fetch_add(1, Ordering::SeqCst);
                runs.store(operator.pid, Ordering::SeqCst);
                operator.ended().await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        Self { task, starts, pid }
    }

    /// Kills the one that runs: SIGKILL. Another is started soon.
    pub(crate) fn kill_one(&self) {
        signal_process(self.pid.load(Ordering::SeqCst), "KILL");
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> u32 {
        self.starts.load(Ordering::SeqCst)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}
