//! Runs a history: the lives of a controller one after the other, a cluster that wants things of it, and mishaps; at
//! its end nothing goes wrong any more, and everything has to come to be as it is wanted, and then to an end.

mod life;
mod outcome;

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use tokio::sync::Notify;

use self::life::Life;
pub(super) use self::outcome::{Failure, Outcome};
use super::{
    account::{Account, Sent},
    cluster::Cluster,
    faults::Faults,
    lie::Lie,
    network::{Mortal, Shared},
    plan::Plan,
    process::{Settings, live},
};

/// Within this a request that was under way when the controller died takes its effect, counted from its next life: the
/// driver counts on no more.
const AFTERLIFE: Duration = Duration::from_millis(1900);
/// The same of a detach, which names no instance: it would take the volume from wherever it is by then.
const AFTERLIFE_OF_DETACH: Duration = Duration::from_secs(28);

/// `--requests-per-second`, its default.
const RATE: u32 = 20;

/// A history that is run. Everything in it outlives the controller's lives.
struct History {
    plan: Plan,
    account: Shared,
    cluster: Mutex<Cluster>,
    rng: Mutex<Rng>,
    /// Tells the actors that something is wanted.
    changed: Notify,
    tally: Mutex<Outcome>,
    /// Which step is next.
    next: AtomicUsize,
    /// How long the controller is away when it dies, in ms.
    away: AtomicU64,
    /// Whether nothing goes wrong any more.
    peace: AtomicBool,
}

/// Runs the history of a plan.
pub(super) fn run(plan: Plan, lie: Option<Lie>) -> Result<Outcome, Failure> {
    fastrand::seed(plan.seed);
    let seed = plan.seed;
    let mut account = Account::new(seed, plan.habits.clone());
    account.add_instances(plan.nodes);
    account.story.log = Some(Vec::new());
    account.story.note(Duration::ZERO, || format!("{:?} {:?} {} permille", plan.habits, plan.manners, plan.permille));
    let account = Shared::new(account);
    let faults = Faults::new(seed, plan.permille);
    let settings = Settings { lie, ..Settings::new(account.clone(), faults, RATE) };
    let history = Arc::new(History {
        cluster: Mutex::new(Cluster::new(&plan)),
        rng: Mutex::new(Rng::with_seed(!seed)),
        changed: Notify::new(),
        tally: Mutex::default(),
        next: AtomicUsize::new(0),
        away: AtomicU64::new(0),
        peace: AtomicBool::new(false),
        plan,
        account: account.clone(),
    });
    let ended = history.all_lives(&settings);
    let mut account = account.look();
    if history.plan.is_calm() {
        let calls = history.tally.lock().unwrap().counts.get("calls").copied().unwrap_or_default();
        account.story.in_fair_weather(calls);
    }
    let problem = account.story.wrong.first().cloned().or(ended.err());
    let log = account.story.log.take().unwrap_or_default();
    if let Some(problem) = problem {
        return Err(Failure { seed, problem, log });
    }
    let mut tally = history.tally.lock().unwrap().clone();
    tally.count("requests", account.story.all_requests());
    tally.count("requests in trouble", account.story.spoilt.values().sum());
    tally.count("volumes", account.story.volumes.len());
    tally.count("snapshots", account.story.snapshots.0.len());
    Ok(Outcome { log, ..tally })
}

impl History {
    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    fn random<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock().unwrap())
    }

    fn count(&self, what: &str) {
        self.tally.lock().unwrap().count(what, 1);
    }

    fn note(&self, line: impl FnOnce() -> String) {
        let mut account = self.account.look();
        let now = account.now();
        account.story.note(now, line);
    }

    fn wrong(&self, what: String) {
        let mut account = self.account.look();
        let now = account.now();
        account.story.wrong(now, what);
    }

    /// When a request that was under way arrives, if it does; `begins` is when the next life does.
    fn afterlife(&self, sent: &Sent, at: Duration, begins: Duration) -> Option<Duration> {
        self.random(|rng| match rng.u32(0..4) {
            0 | 1 => None,
            2 if sent.path.ends_with("/detach") => {
                let most = AFTERLIFE_OF_DETACH.as_millis().try_into().expect("it is short");
                let late = Duration::from_millis(rng.u64(0..most));
                Some(at.max(begins + late).min(begins + AFTERLIFE_OF_DETACH))
            }
            _ => Some(at.min(begins + AFTERLIFE)),
        })
    }

    fn all_lives(self: &Arc<Self>, settings: &Settings) -> Result<(), String> {
        loop {
            self.count("lives");
            self.note(|| "the controller starts".to_owned());
            let life = Mortal::new();
            let ended = live(settings, &life, |service| {
                Life { history: Arc::clone(self), settings: settings.clone(), mortal: Arc::clone(&life), service }
                    .live()
            });
            if let Some(ended) = ended {
                return ended;
            }
            let away = Duration::from_millis(self.away.load(Relaxed));
            self.note(|| format!("the controller is dead, for {away:?}"));
            let mut account = self.account.look();
            account.story.died();
            let begins = account.now() + away;
            account.sender_died(|sent, at| self.afterlife(sent, at, begins));
            account.pass(away);
        }
    }
}
