//! One life of the controller in a history: the steps of the plan, the calls that come of them, and the end.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::future::join;
use tokio::time::Instant;
use tonic::Code;

use super::History;
use crate::{
    rpc::ControllerService,
    simulation::{
        account::{Console, Event},
        check,
        cluster::Actor,
        lists::There,
        network::Mortal,
        plan::Step,
        process::Settings,
        request::{Answered, Ask},
    },
};

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

/// One of the controller's lives in a history.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) history: Arc<History>,
    pub(super) settings: Settings,
    pub(super) mortal: Arc<Mortal>,
    pub(super) service: ControllerService,
}

impl Life {
    pub(super) async fn live(self) -> Result<(), String> {
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
        // A failed one that was asked for may be left (`unmet`); a clone drops its own.
        let left = || {
            let account = self.history.account.look();
            let snapshots = &account.story.snapshots.0;
            let is_left = |id: &&String| snapshots.get(*id).is_none_or(|taken| taken.is_temporary() || !taken.failed);
            account.snapshots.keys().find(is_left).cloned()
        };
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
        if peace && now.saturating_sub(began) > LONGEST_CALL {
            account
                .story
                .wrong(now, format!("{ask:?} takes {:?} though nothing goes wrong", now.saturating_sub(began)));
        }
        if answered.is_ok() {
            history.count(ask.word());
        }
        answered
    }
}
