//! The token bucket that every request to the cloud takes its turn in.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

/// Timers fire up to a tick of 1 ms late; that much lateness is made up for, or the rate would never be reached.
const TIMER_LATENESS: Duration = Duration::from_millis(2);

/// What a request is for; when turns are scarce the earlier kind goes first.
///
/// Detaching and attaching come first because a pod waits for them; reads come before new work because they end work
/// that has been started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Detach a volume.
    Detach,
    /// Attach a volume.
    Attach,
    /// Grow a volume.
    Expand,
    /// Find out how something stands.
    Read,
    /// Make a volume.
    Create,
    /// Delete a volume.
    Delete,
    /// List for somebody's information.
    List,
}

impl Priority {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Detach, Self::Attach, Self::Expand, Self::Read, Self::Create, Self::Delete, Self::List];

    /// The label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Detach => "detach",
            Self::Attach => "attach",
            Self::Expand => "expand",
            Self::Read => "read",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::List => "list",
        }
    }
}

/// A token bucket with an order.
#[derive(Debug, Clone)]
pub struct Pace {
    state: Arc<Mutex<State>>,
    /// The time that one request takes up.
    interval: Duration,
    /// How far ahead of its time a request may go: the size of a burst.
    ahead: Duration,
}

#[derive(Debug)]
struct State {
    /// When the next request would be due if requests were evenly spread.
    due: Instant,
    waiting: BTreeMap<(Priority, u64), oneshot::Sender<()>>,
    arrivals: u64,
    serving: bool,
}

impl Pace {
    /// A bucket of `rate` requests a second, where the account has `limit`.
    ///
    /// Bursts are allowed as far as `rate` leaves room below `limit`, so that no second ever holds more than the limit.
    pub fn new(rate: u32, limit: u32) -> Self {
        let rate = rate.max(1);
        let interval = Duration::from_secs(1) / rate;
        let burst = (rate / 4).min(limit.saturating_sub(rate).saturating_sub(1));
        let state = State { due: Instant::now(), waiting: BTreeMap::new(), arrivals: 0, serving: false };
        Self { state: Arc::new(Mutex::new(state)), interval, ahead: interval * burst }
    }

    /// Waits for this request's turn.
    pub async fn turn(&self, priority: Priority) {
        let (give, turn) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.waiting.insert((priority, arrival), give);
            if !state.serving {
                state.serving = true;
                tokio::spawn(self.clone().serve());
            }
        }
        // The sender is dropped unused only when the runtime ends, and this task with it.
        turn.await.ok();
    }

    /// Lets nobody pass before `until`: the cloud has said that it is enough.
    pub fn hold(&self, until: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.due = state.due.max(until + self.ahead);
    }

    /// Gives out turns for as long as somebody waits.
    async fn serve(self) {
        loop {
            let next = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                // Only the first matters; who went away further back is met in time.
                while state.waiting.first_entry().is_some_and(|first| first.get().is_closed()) {
                    state.waiting.pop_first();
                }
                if state.waiting.is_empty() {
                    state.serving = false;
                    return;
                }
                state.due.checked_sub(self.ahead).unwrap_or(state.due)
            };
            if next > Instant::now() {
                tokio::time::sleep_until(next).await;
            }
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // The bucket may have been held while this task slept.
            if state.due.checked_sub(self.ahead).unwrap_or(state.due) > now {
                continue;
            }
            while let Some((_, waiter)) = state.waiting.pop_first() {
                if waiter.send(()).is_ok() {
                    let on_time = now.checked_sub(TIMER_LATENESS).unwrap_or(now);
                    state.due = state.due.max(on_time) + self.interval;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn moments(pace: &Pace, count: usize) -> Vec<Duration> {
        let start = Instant::now();
        let turns = (0..count).map(|_| async {
            pace.turn(Priority::Read).await;
            start.elapsed()
        });
        futures_util::future::join_all(turns).await
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_holds_more_than_the_limit() {
        for rate in [1, 5, 20, 25, 29] {
            let moments = moments(&Pace::new(rate, 30), 100).await;
            for (at, first) in moments.iter().enumerate() {
                let within = moments[at..].iter().filter(|m| **m < *first + Duration::from_secs(1)).count();
                assert!(within <= 30, "{within} requests in a second at rate {rate}");
            }
            let most = Duration::from_secs_f64(101.0 / f64::from(rate));
            assert!(*moments.last().unwrap() <= most, "{moments:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_detach_overtakes_a_listing() {
        let pace = Pace::new(1, 30);
        pace.turn(Priority::List).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let calls = [Priority::List, Priority::Create, Priority::Detach, Priority::Attach].map(|priority| {
            let (pace, order) = (pace.clone(), Arc::clone(&order));
            async move {
                pace.turn(priority).await;
                order.lock().unwrap().push(priority);
            }
        });
        futures_util::future::join_all(calls).await;
        assert_eq!(*order.lock().unwrap(), [Priority::Detach, Priority::Attach, Priority::Create, Priority::List]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_passes_while_the_cloud_says_wait() {
        let pace = Pace::new(20, 30);
        let start = Instant::now();
        pace.hold(start + Duration::from_secs(7));
        pace.turn(Priority::Detach).await;
        assert!(start.elapsed() >= Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_went_away_takes_no_turn() {
        let pace = Pace::new(1, 30);
        pace.turn(Priority::Read).await;
        let start = Instant::now();
        for _ in 0..10 {
            let gone = tokio::time::timeout(Duration::from_millis(1), pace.turn(Priority::Detach)).await;
            assert!(gone.is_err());
        }
        pace.turn(Priority::List).await;
        assert!(start.elapsed() <= Duration::from_millis(1100), "{:?}", start.elapsed());
    }
}
