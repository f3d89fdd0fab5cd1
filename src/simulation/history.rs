//! Runs a history: the lives of a controller one after the other, a cluster that wants things of it, and mishaps; at
//! its end nothing goes wrong any more, and everything has to come to be as it is wanted, and then to an end.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::future::join;
use tokio::{sync::Notify, time::Instant};
use tonic::Code;

use super::{
    account::{Account, Console, Event},
    check,
    cluster::{Actor, Cluster},
    faults::Faults,
    lie::Lie,
    lists::There,
    network::{Mortal, Shared},
    plan::{Plan, Step},
    process::{Settings, live},
    request::{Answered, Ask},
};
use crate::rpc::ControllerService;

/// Within this a request that was under way when the controller died takes its effect, counted from its next life: the
/// driver counts on no more.
const AFTERLIFE: Duration = Duration::from_millis(1900);

/// `--requests-per-second`, its default.
const RATE: u32 = 20;

/// By then everything has to be as it is wanted, when nothing goes wrong any more.
const PEACE: Duration = Duration::from_secs(15 * 60);
/// For so long it has to stay so; lists may be older than a minute in what instances have shared file systems.
const STILL: Duration = Duration::from_secs(61);
const LOOK: Duration = Duration::from_secs(2);

/// By then the leftovers of clones have to be gone.
const SWEPT: Duration = Duration::from_secs(3700);

/// No call may take longer when nothing goes wrong any more.
const LONGEST_CALL: Duration = Duration::from_secs(200);

const FIRST_PAUSE: u64 = 500;
const LONGEST_PAUSE: u64 = 15_000;

/// What was wrong with a history, and all that happened in it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) problem: String,
    pub(super) log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.problem)?;
        self.log.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        write!(f, "{}\nSEED={} replays it", self.problem, self.seed)
    }
}

/// What a history came to.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    pub(super) log: Vec<String>,
    counts: BTreeMap<String, usize>,
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Self) {
        self.count("histories", 1);
        other.counts.iter().for_each(|(what, count)| self.count(what, *count));
    }

    fn count(&mut self, what: &str, count: usize) {
        *self.counts.entry(what.to_owned()).or_default() += count;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        f.write_str(&counts.join(", "))
    }
}

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
    match problem {
        Some(problem) => Err(Failure { seed, problem, log }),
        None => {
            let mut tally = history.tally.lock().unwrap().clone();
            tally.count("requests", account.story.all_requests());
            tally.count("requests in trouble", account.story.spoilt.values().sum());
            tally.count("volumes", account.story.volumes.len());
            tally.count("snapshots", account.story.snapshots.0.len());
            Ok(Outcome { log, ..tally })
        }
    }
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
            let latest = account.now() + away + AFTERLIFE;
            account.sender_died(latest, || self.random(Rng::bool));
            account.pass(away);
        }
    }
}

/// One of the controller's lives in a history.
#[derive(Clone)]
struct Life {
    history: Arc<History>,
    settings: Settings,
    mortal: Arc<Mortal>,
    service: ControllerService,
}

impl Life {
    async fn live(self) -> Result<(), String> {
        let history = &self.history;
        let actors = history.cluster().actors();
        for actor in actors {
            tokio::spawn(self.clone().act(actor));
        }
        while let Some((gap, step)) = history.plan.steps.get(history.next.load(Relaxed)) {
            tokio::time::sleep(*gap).await;
            history.next.fetch_add(1, Relaxed);
            self.step(*step).await;
        }
        self.make_peace();
        self.come_about("what is wanted").await?;
        self.repeat().await;
        self.come_about("what is wanted, asked for twice,").await?;
        history.cluster().want_nothing();
        history.changed.notify_waiters();
        self.come_about("the end").await?;
        self.come_clean().await
    }

    async fn step(&self, step: Step) {
        let history = &self.history;
        history.note(|| format!("{step}"));
        match step {
            Step::Crash(None, away) => {
                history.away.store(away, Relaxed);
                self.mortal.die();
                std::future::pending::<()>().await;
            }
            Step::Crash(Some((moment, count)), away) => {
                history.away.store(away, Relaxed);
                self.mortal.will_die(moment, count);
            }
            Step::Console(what) => {
                let mut account = history.account.look();
                let now = account.now();
                account.plan(now, Event::Console(what));
                account.settle();
                if let Console::DeleteInstance(node) = what {
                    history.cluster().lose(node);
                }
            }
            Step::NoVfs(seconds) => {
                let mut account = history.account.look();
                account.vfs_out_until = account.now() + Duration::from_secs(seconds);
            }
            Step::Stray(stray) => {
                if let Some(ask) = history.cluster().stray(stray) {
                    let life = self.clone();
                    tokio::spawn(async move { life.call(&ask).await });
                }
            }
            other => history.cluster().want(other),
        }
        history.changed.notify_waiters();
    }

    /// From here on nothing goes wrong any more.
    fn make_peace(&self) {
        let history = &self.history;
        history.note(|| "peace".to_owned());
        history.peace.store(true, Relaxed);
        self.mortal.will_live();
        self.settings.faults.lock().unwrap().permille = 0;
        let mut account = history.account.look();
        account.vfs_out_until = Duration::ZERO;
        let mut cluster = history.cluster();
        cluster.come_to_rest(&account);
        account.undo_meddling(|id, on| cluster.has(id, on));
        history.changed.notify_waiters();
    }

    /// Waits until everything is as it is wanted, and looks whether it stays so.
    async fn come_about(&self, what: &str) -> Result<(), String> {
        let history = &self.history;
        let began = Instant::now();
        let unmet = || history.cluster().unmet(&history.account.look());
        while !unmet().is_empty() {
            if began.elapsed() > PEACE {
                return Err(format!("{what} does not come about: {}", unmet().join(", ")));
            }
            tokio::time::sleep(LOOK).await;
            // What was attached in the console while a call took it for detached is nobody's.
            let cluster = history.cluster();
            history.account.look().undo_meddling(|id, on| cluster.has(id, on));
        }
        history.note(|| format!("{what} has come about"));
        tokio::time::sleep(STILL).await;
        let unmet = unmet();
        if unmet.is_empty() { Ok(()) } else { Err(format!("{what} does not last: {}", unmet.join(", "))) }
    }

    /// Waits until nothing is left that clones were made by way of.
    async fn come_clean(&self) -> Result<(), String> {
        let left = || self.history.account.look().snapshots.keys().next().cloned();
        if left().is_some() {
            self.history.note(|| "a clone has left a snapshot".to_owned());
            tokio::time::sleep(SWEPT).await;
        }
        left().map_or(Ok(()), |id| Err(format!("snapshot {id}, which a clone was made by way of, is leaked")))
    }

    /// Asks for everything again: that changes nothing, and is told the same.
    async fn repeat(&self) {
        let history = &self.history;
        let changes = || history.account.look().story.changes;
        let before = changes();
        let repeats = history.cluster().repeats(&history.account.look());
        for (ask, done) in repeats {
            let answered = self.call(&ask).await;
            if answered.is_ok() != done {
                history.wrong(format!("{ask:?}, asked for again, is answered {answered:?}"));
            }
        }
        let there = There::of(&history.account.look().story);
        history.tally.lock().unwrap().count("calls", 1 + there.len());
        if let Err(problem) = there.is_listed(&self.service).await {
            history.wrong(problem);
        }
        if changes() != before {
            history.wrong("what is so already is changed when it is asked for again".to_owned());
        }
    }

    /// Makes the calls of one actor.
    async fn act(self, actor: Actor) {
        let history = &self.history;
        let mut pause = FIRST_PAUSE;
        loop {
            let next = history.cluster().next(actor);
            let Some(ask) = next else {
                pause = FIRST_PAUSE;
                history.changed.notified().await;
                continue;
            };
            history.cluster().begins(actor, &ask);
            let answered = self.call(&ask).await;
            history.cluster().ended(actor, &ask, &answered);
            history.changed.notify_waiters();
            if answered.is_ok() && !history.cluster().is_waiting(actor) {
                pause = FIRST_PAUSE;
            } else {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Makes a call, at times twice, and judges how it is answered.
    async fn call(&self, ask: &Ask) -> Answered {
        let manners = &self.history.plan.manners;
        let (deadline, twin) = self.history.random(|rng| {
            let twin = (rng.u32(0..1000) < manners.twins).then(|| rng.u64(0..2000) * rng.u64(0..2));
            (Duration::from_millis(rng.u64(manners.deadline.clone())), twin)
        });
        let Some(later) = twin else { return self.call_once(ask, deadline).await };
        let second = async {
            tokio::time::sleep(Duration::from_millis(later)).await;
            self.call_once(ask, deadline).await
        };
        let (first, second) = join(self.call_once(ask, deadline), second).await;
        if let (Ok(first), Ok(second)) = (&first, &second)
            && later == 0
            && first != second
        {
            self.history.wrong(format!("{ask:?} is answered {first:?} and at once {second:?}"));
        }
        first.or(second)
    }

    async fn call_once(&self, ask: &Ask, deadline: Duration) -> Answered {
        let history = &self.history;
        let (began, since) = {
            let mut account = history.account.look();
            let now = account.now();
            account.story.note(now, || format!("{ask:?}"));
            account.story.asked(now, ask);
            (now, account.story.under_way_since(ask).unwrap_or(now))
        };
        history.count("calls");
        let peace = history.peace.load(Relaxed);
        let deadline = if peace { PEACE } else { deadline };
        let answered = tokio::time::timeout(deadline, ask.make(&self.service)).await;
        if self.mortal.is_dead() {
            // It died before it could tell.
            std::future::pending::<()>().await;
        }
        let answered = answered.unwrap_or_else(|_| Err((Code::DeadlineExceeded, "the caller hung up".to_owned())));
        let mut account = history.account.look();
        let now = account.now();
        account.story.note(now, || format!("{ask:?}: {answered:?}"));
        account.story.answered(ask, &answered);
        if let Some(problem) = check::judge(&account.story, ask, since, now, &answered) {
            account.story.wrong(now, problem);
        }
        if peace && now - began > LONGEST_CALL {
            account.story.wrong(now, format!("{ask:?} takes {:?} though nothing goes wrong", now - began));
        }
        if answered.is_ok() {
            history.count(ask.word());
        }
        answered
    }
}
