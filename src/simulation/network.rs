//! The way to the account and back: where requests are lost, late, or answered by something in between.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use reqwest::StatusCode;
use tokio::sync::Notify;

use super::{
    account::{Account, Event, Reply, Sent},
    faults::{Ending, Faults},
    lie::Lie,
};
use crate::cloud::{
    http::Call,
    transport::{Answer, Lost, Transport},
};

/// The driver gives up a request after this.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The account, as everybody in a history has it.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Account>>);

impl Shared {
    pub(super) fn new(account: Account) -> Self {
        Self(Arc::new(Mutex::new(account)))
    }

    /// The account, where everything has happened that is due.
    pub(super) fn look(&self) -> MutexGuard<'_, Account> {
        let mut account = self.0.lock().unwrap();
        account.settle();
        account
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// A moment in the way of a request at which a controller can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Begun,
    TookEffect,
    Answered,
}

/// One life of a controller, as far as the network knows of it.
#[derive(Debug, Default)]
pub(super) struct Mortal {
    /// How many of these moments it has before it dies.
    dies_at: Mutex<Option<(Moment, usize)>>,
    /// Whether it is dead: nothing that it still does has an effect.
    dead: Mutex<bool>,
    pub(super) died: Notify,
}

impl Mortal {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.dead.lock().unwrap()
    }

    pub(super) fn die(&self) {
        *self.dead.lock().unwrap() = true;
        self.died.notify_one();
    }

    /// It dies when so many more requests have come to this moment.
    pub(super) fn will_die(&self, moment: Moment, count: usize) {
        *self.dies_at.lock().unwrap() = Some((moment, count));
    }

    pub(super) fn will_live(&self) {
        *self.dies_at.lock().unwrap() = None;
    }

    fn passes(&self, moment: Moment) {
        let mut dies_at = self.dies_at.lock().unwrap();
        if let Some((at, left)) = dies_at.as_mut()
            && *at == moment
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.die();
            }
        }
    }

    /// Whatever is done after the death is not done.
    async fn unless_dead(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}

/// What a life of the controller has for a network.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) account: Shared,
    pub(super) faults: Arc<Mutex<Faults>>,
    pub(super) life: Arc<Mortal>,
    pub(super) lie: Option<Lie>,
}

#[async_trait::async_trait]
impl Transport for Network {
    async fn exchange(&self, call: &Call, _: &str) -> Result<Answer, Lost> {
        self.life.unless_dead().await;
        let mut sent = Sent::new(call);
        let (number, fate) = {
            let mut account = self.account.look();
            let mut fate = self.faults.lock().unwrap().fate(&sent, account.now());
            let more = self.lie.and_then(|lie| lie.spoils(&mut sent, &mut fate, &account));
            if let Some(more) = more {
                Lie::sends(more, &mut account);
            }
            let (now, number) = (account.now(), account.number());
            if let Some(arrives) = fate.arrives {
                account.plan(now + arrives, Event::Arrival(number, sent.clone()));
            }
            if !matches!(fate.ending, Ending::Answered) {
                account.story.note(now, || format!("    {} {}: {:?}", sent.method, sent.path, fate));
                account.story.spoilt(&sent);
            }
            (number, fate)
        };
        self.life.passes(Moment::Begun);
        self.life.unless_dead().await;
        let mut waited = Duration::ZERO;
        if let Some(arrives) = fate.arrives.filter(|arrives| *arrives < fate.ends.min(TIMEOUT)) {
            tokio::time::sleep(arrives).await;
            waited = arrives;
            drop(self.account.look());
            self.life.passes(Moment::TookEffect);
            self.life.unless_dead().await;
        }
        tokio::time::sleep(fate.ends.min(TIMEOUT).saturating_sub(waited)).await;
        self.life.unless_dead().await;
        let reply = {
            let mut account = self.account.look();
            let reply = account.reply(number);
            reply.map(|mut reply| {
                self.lie.inspect(|lie| lie.twists(&sent, &mut reply, &account));
                reply
            })
        };
        self.life.passes(Moment::Answered);
        self.life.unless_dead().await;
        let lost = |reason: &str, never_sent| Err(Lost { reason: reason.to_owned(), never_sent });
        match fate.ending {
            _ if fate.ends > TIMEOUT => lost("operation timed out", false),
            Ending::Answered => Ok(answer(reply.expect("it had got there"))),
            Ending::Told(reply) => Ok(answer(reply)),
            Ending::Lost => lost("connection reset by peer", false),
            Ending::NeverSent => lost("connection refused", true),
        }
    }
}

fn answer(reply: Reply) -> Answer {
    let status = StatusCode::from_u16(reply.status).expect("a status");
    Answer { status, retry_after: reply.retry_after, body: reply.body.into_bytes() }
}
