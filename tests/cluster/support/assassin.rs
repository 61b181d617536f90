//! The hand that kills an operator at its writes, before or after they were applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
};

use super::{
    Operator,
    control_plane::signal_process,
    operator::Launcher,
    proxy::{Proxy, Seen, Verdict},
};

/// How many writes are let through before the fatal one, in turn.
const LET_THROUGH: [i64; 8] = [0, 0, 0, 0, 1, 1, 0, 3];

/// What a write is for.
pub(crate) type Phases = BTreeSet<&'static str>;

/// The hand that kills.
#[derive(Default)]
pub(crate) struct Assassin {
    pid: AtomicU32,
    /// Writes to let through; below zero: nobody is to be killed.
    patience: AtomicI64,
    /// Kills by what the write was for: before the write, after it.
    kills: Mutex<BTreeMap<&'static str, [u32; 2]>>,
    killed: AtomicU32,
    lives: AtomicU32,
}

impl Assassin {
    /// Kills from now on whoever writes through the proxy.
    pub(crate) fn behind(
        proxy: &Proxy,
        phases: impl Fn(&Seen) -> Phases + Send + Sync + 'static,
    ) -> Arc<Self> {
        let assassin = Arc::new(Self::default());
        assassin.spare();
        let hand = Arc::clone(&assassin);
        proxy.judge(move |seen| hand.judge(seen, &phases));
        assassin
    }

    fn judge(self: &Arc<Self>, seen: &Seen, phases: &dyn Fn(&Seen) -> Phases) -> Verdict {
        if !seen.writes() || self.patience.load(Ordering::SeqCst) < 0 {
            return Verdict::Pass;
        }
        let phases = phases(seen);
        let mut kills = self.kills.lock().unwrap();
        // Somebody who wrote at the same time may have been faster.
        if self.patience.load(Ordering::SeqCst) < 0 {
            return Verdict::Pass;
        }
        // What nobody has died of yet goes before whose turn it is.
        let missing = |after: &usize| {
            phases
                .iter()
                .any(|phase| kills.get(phase).is_none_or(|moments| moments[*after] == 0))
        };
        let new = (0..2).find(missing);
        // Of what every life does much, not everybody is to die.
        let killed = self.killed().max(20);
        let common = phases.iter().all(|phase| {
            let died = kills
                .get(phase)
                .map_or(0, |moments| moments[0] + moments[1]);
            died > killed / 5
        });
        if common && new.is_none() {
            return Verdict::Pass;
        }
        let due = self.patience.fetch_sub(1, Ordering::SeqCst) == 0;
        if !due && new.is_none() {
            return Verdict::Pass;
        }
        self.spare();
        let after = new.unwrap_or(usize::from(
            self.lives.load(Ordering::SeqCst).is_multiple_of(2),
        ));
        for phase in phases {
            kills.entry(phase).or_default()[after] += 1;
        }
        self.killed.fetch_add(1, Ordering::SeqCst);
        let pid = self.pid.load(Ordering::SeqCst);
        let kill = Box::pin(async move { signal_process(pid, "KILL") });
        if after == 1 {
            Verdict::PassThen(kill)
        } else {
            Verdict::Drop(kill)
        }
    }

    /// Starts an operator, which is the next to die.
    pub(crate) fn raise(&self, launcher: &Launcher) -> Operator {
        let life = self.lives.fetch_add(1, Ordering::SeqCst) + 1;
        let operator = launcher.spawn();
        self.pid.store(operator.pid, Ordering::SeqCst);
        let through = LET_THROUGH[usize::try_from(life / 2).unwrap() % LET_THROUGH.len()];
        self.patience.store(through, Ordering::SeqCst);
        operator
    }

    /// Kills nobody any more.
    pub(crate) fn spare(&self) {
        self.patience.store(-1, Ordering::SeqCst);
    }

    /// How many were killed.
    pub(crate) fn killed(&self) -> u32 {
        self.killed.load(Ordering::SeqCst)
    }

    /// Kills by what the write was for: before the write, after it.
    pub(crate) fn kills(&self) -> BTreeMap<&'static str, [u32; 2]> {
        self.kills.lock().unwrap().clone()
    }

    /// One of these at which nobody was killed before the write, or after it.
    pub(crate) fn spared(&self, phases: &[&'static str]) -> Option<&'static str> {
        let kills = self.kills.lock().unwrap();
        let spared = |phase: &&&str| {
            kills
                .get(**phase)
                .is_none_or(|moments| moments.contains(&0))
        };
        phases.iter().find(spared).copied()
    }
}
