//! The one place that looks at things of a kind in the cloud, so that looking is shared.
//!
//! Everybody who has to know how a volume stands asks here, once ([`Watcher::read`]) or until something has come about
//! ([`Watcher::until`]). A few questions are answered one by one; as soon as that would cost more than listing the
//! account as often as is allowed, listings answer them all. So what looking costs grows neither with the volumes in
//! flight nor with the account. An answer is always a read that began after the question was asked; and that a listing
//! lacks a volume proves nothing, so the volume itself is then asked for.

mod listing;
mod question;
mod usual;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use self::{
    question::{Asked, Question, Singles, by_id, tell},
    usual::{SHORTEST_PAUSE, Usual},
};
use super::{Cloud, CloudError, kind::Kind};
use crate::error::Error;

pub use usual::Awaited;

/// How long the first of several questions waits for others to join it.
const GATHERING: Duration = Duration::from_millis(30);
/// A listing of n pages is followed by a pause of n times this: with little to do a quarter of the default request
/// rate, with much to do a tenth, since then the rate is what everybody waits for.
const PAUSE_PER_PAGE: Duration = Duration::from_millis(200);
const BUSY_PAUSE_PER_PAGE: Duration = Duration::from_millis(500);
/// So many open questions are much to do.
const BUSY: usize = 40;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Looks at things of one kind on behalf of all operations.
pub struct Watcher<T: Kind> {
    cloud: Arc<dyn Cloud>,
    state: Arc<Mutex<State<T>>>,
    asked: Arc<Notify>,
}

impl<T: Kind> Clone for Watcher<T> {
    fn clone(&self) -> Self {
        Self { cloud: Arc::clone(&self.cloud), state: Arc::clone(&self.state), asked: Arc::clone(&self.asked) }
    }
}

struct State<T: Kind> {
    /// By when they are due, then by when they were asked.
    questions: BTreeMap<(Instant, u64), Question<T>>,
    asked: u64,
    /// How many things the account had when it was last listed.
    total: Option<u64>,
    /// When the next listing may begin.
    rested: Option<Instant>,
    answering: bool,
    singles: Singles,
    usual: Usual,
}

impl<T: Kind> Watcher<T> {
    /// A watcher of this cloud.
    pub fn new(cloud: Arc<dyn Cloud>) -> Self {
        let state = State {
            questions: BTreeMap::new(),
            asked: 0,
            total: None,
            rested: None,
            answering: false,
            singles: Singles::default(),
            usual: Usual::default(),
        };
        Self { cloud, state: Arc::new(Mutex::new(state)), asked: Arc::default() }
    }

    /// How a thing stands, by a read that begins now or later.
    ///
    /// # Errors
    /// The cloud's.
    pub async fn read(&self, id: &T::Id) -> Result<T, CloudError> {
        self.read_at(id, Instant::now()).await
    }

    /// Looks at a thing, which was changed at `since`, until `check` finds what is awaited.
    ///
    /// # Errors
    /// [`Error::Gone`] if the thing goes away; [`Error::NotYet`] if nothing comes of it in time.
    pub async fn until<U>(
        &self,
        id: &T::Id,
        awaited: Awaited,
        since: Instant,
        mut check: impl FnMut(&T) -> Option<U>,
    ) -> Result<U, Error> {
        let (usual, quiet) = {
            let usual = &mut self.lock().usual;
            (usual.of(awaited), usual.is_quiet())
        };
        let mut pause = (usual / 4).max(SHORTEST_PAUSE);
        let usually = since + usual;
        // With little going on a look ahead of time costs the account nothing that others need.
        let mut due = if quiet { since + usual / 2 } else { usually };
        let mut late = false;
        let mut last = String::from("nothing could be learnt");
        while since.elapsed() < awaited.deadline() {
            match self.read_at(id, due).await {
                Ok(thing) => {
                    if let Some(found) = check(&thing) {
                        self.lock().usual.learn(awaited, usual, since.elapsed(), late);
                        return Ok(found);
                    }
                    last = format!("it is {}", thing.standing());
                }
                Err(CloudError::NotFound(_)) => return Err(Error::Gone { word: T::WORD, id: id.to_string() }),
                Err(error) => last = error.to_string(),
            }
            let now = Instant::now();
            if due < usually && now >= due {
                due = usually;
            } else if now >= due {
                late = true;
                due = now + pause;
                pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            }
        }
        let (word, what, after) = (T::WORD, awaited.as_str(), since.elapsed().as_secs());
        Err(Error::NotYet(format!("{word} {id} is not {what} after {after} s; {last}")))
    }

    /// Everything of this kind that the account has, by a listing that begins now; one that changes meanwhile may hide
    /// some.
    ///
    /// # Errors
    /// The cloud's, if any page cannot be had.
    pub async fn list(&self) -> Result<Vec<T>, CloudError> {
        let (items, _) = listing::all::<T>(&*self.cloud).await?;
        self.lock().total = Some(items.len() as u64);
        Ok(items)
    }

    /// Everything of this kind that the account has, and not fewer than the cloud counts.
    ///
    /// # Errors
    /// The cloud's, if any page cannot be had or the pages do not add up.
    pub async fn list_whole(&self) -> Result<Vec<T>, CloudError> {
        let items = listing::whole::<T>(&*self.cloud).await?;
        self.lock().total = Some(items.len() as u64);
        Ok(items)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_at(&self, id: &T::Id, due: Instant) -> Result<T, CloudError> {
        let (asker, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            state.asked += 1;
            let place = (due, state.asked);
            state.questions.insert(place, Question { id: id.clone(), asker });
            if state.answering {
                self.asked.notify_one();
            } else {
                state.answering = true;
                tokio::spawn(self.clone().serve());
            }
        }
        answered.await.unwrap_or_else(|_| Err(CloudError::Unknown("the watcher ended".to_owned())))
    }

    /// Answers questions for as long as there are any.
    async fn serve(self) {
        loop {
            let (first, rested) = {
                let mut state = self.lock();
                while state.questions.first_entry().is_some_and(|first| first.get().asker.is_closed()) {
                    state.questions.pop_first();
                }
                let Some(&(first, _)) = state.questions.keys().next() else {
                    state.answering = false;
                    return;
                };
                (first, state.rested)
            };
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(first + GATHERING) => {}
                () = self.asked.notified() => continue,
            }
            let Some(due) = self.take_due() else {
                // Listing is cheaper than asking one by one.
                let soon = self.due_soon();
                tokio::time::sleep_until(rested.map_or(soon, |rested| rested.max(soon))).await;
                self.answer_by_listing().await;
                continue;
            };
            self.answer_one_by_one(due);
        }
    }

    /// Takes the questions that are due, by what they are about, if asking one by one costs no more than listing: no more
    /// requests in the time from one listing to the next than a listing takes.
    fn take_due(&self) -> Option<Vec<Asked<T>>> {
        let mut state = self.lock();
        let now = Instant::now();
        let after = (now + Duration::from_nanos(1), 0);
        let (pages, pause) = (self.pages(state.total), self.pause(state.total, state.questions.len()));
        let free = pages.saturating_sub(state.singles.within(pause));
        let mut ids: BTreeSet<&T::Id> = BTreeSet::new();
        for (_, question) in state.questions.range(..after) {
            ids.insert(&question.id);
            if ids.len() as u64 > free {
                return None;
            }
        }
        let count = ids.len();
        state.singles.add(count);
        let later = state.questions.split_off(&after);
        let due = std::mem::replace(&mut state.questions, later);
        Some(by_id(due.into_values()))
    }

    /// When the last of those questions is due that one listing may as well answer: those due within the pause that
    /// would follow it.
    fn due_soon(&self) -> Instant {
        let state = self.lock();
        let horizon = Instant::now() + self.pause(state.total, state.questions.len());
        state.questions.range(..(horizon, u64::MAX)).next_back().map_or(horizon, |((due, _), _)| *due)
    }

    /// The pause after a listing, by the number of its pages and by how many questions there are.
    fn pause(&self, total: Option<u64>, questions: usize) -> Duration {
        let pages = u32::try_from(self.pages(total)).unwrap_or(u32::MAX).min(1000);
        let per_page = if questions > BUSY { BUSY_PAUSE_PER_PAGE } else { PAUSE_PER_PAGE };
        (per_page * pages).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    /// How many requests a listing is. An account that was never listed is not listed for this.
    fn pages(&self, total: Option<u64>) -> u64 {
        total.map_or(u64::MAX, |total| total.div_ceil(u64::from(self.cloud.profile().page_size)).max(1))
    }

    fn answer_one_by_one(&self, asked: Vec<Asked<T>>) {
        for (id, askers) in asked {
            let cloud = Arc::clone(&self.cloud);
            tokio::spawn(async move { tell(askers, &T::one(&*cloud, &id).await) });
        }
    }

    /// Answers every question there is, due or not: the listing is paid for.
    async fn answer_by_listing(&self) {
        let questions = std::mem::take(&mut self.lock().questions);
        let asked = questions.len();
        let listed = self.list().await;
        {
            let mut state = self.lock();
            state.rested = Some(Instant::now() + self.pause(state.total, asked));
        }
        match listed {
            Ok(items) => {
                let mut rows: HashMap<T::Id, T> = items.into_iter().map(|item| (item.id().clone(), item)).collect();
                let mut missing = Vec::new();
                for (id, askers) in by_id(questions.into_values()) {
                    match rows.remove(&id) {
                        Some(row) => tell(askers, &Ok(row)),
                        None => missing.push((id, askers)),
                    }
                }
                self.answer_one_by_one(missing);
            }
            Err(error) => {
                let now = Instant::now();
                let mut due = questions;
                self.lock().questions.append(&mut due.split_off(&(now + Duration::from_nanos(1), 0)));
                for (_, askers) in by_id(due.into_values()) {
                    tell(askers, &Err(error.clone()));
                }
            }
        }
    }
}
