//! The one place that looks at volumes in the cloud, so that looking is shared.
//!
//! Everybody who has to know how a volume stands asks here, once ([`Watcher::read`]) or until something has come about
//! ([`Watcher::until`]). A few questions are answered one by one; as soon as the account's pages are fewer than the
//! questions, one listing answers them all. So what looking costs grows neither with the volumes in flight nor with
//! the account. An answer is always a read that began after the question was asked; and that a listing lacks a volume
//! proves nothing, so the volume itself is then asked for.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{Cloud, CloudError, Volume};
use crate::{error::Error, volume::VolumeId};

/// How long the first of several questions waits for others to join it.
const GATHERING: Duration = Duration::from_millis(30);
/// A listing of n pages is followed by a pause of n times this: a quarter of the default request rate.
const PAUSE_PER_PAGE: Duration = Duration::from_millis(200);
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often an account that changes while it is listed is listed again.
const LISTING_TRIES: usize = 3;

/// So many waits in so long a time are few.
const QUIET_WAITS: usize = 3;
const QUIET: Duration = Duration::from_secs(5);

/// When waiting ends with an error that the caller can repeat.
const LONGEST_WAIT: Duration = Duration::from_secs(180);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Awaited {
    /// A new volume becomes active.
    Created,
    /// A volume is on its instance.
    Attached,
    /// A volume is on no instance.
    Detached,
    /// A volume has its new size.
    Grown,
}

impl Awaited {
    /// How long it usually takes, until this process has seen better.
    fn usual(self) -> Duration {
        match self {
            Self::Created => Duration::from_secs(1),
            Self::Attached | Self::Detached => Duration::from_millis(2500),
            Self::Grown => Duration::from_millis(500),
        }
    }

    /// The kind that its duration is learnt with: what takes long to come on an instance takes as long to go.
    fn alike(self) -> Self {
        if self == Self::Detached { Self::Attached } else { self }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "active",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::Grown => "grown",
        }
    }
}

/// Looks at volumes on behalf of all operations.
#[derive(Clone)]
pub struct Watcher {
    cloud: Arc<dyn Cloud>,
    state: Arc<Mutex<State>>,
    asked: Arc<Notify>,
}

#[derive(Default)]
struct State {
    questions: Vec<Question>,
    /// How many volumes the account had when it was last listed.
    total: Option<u64>,
    /// When the next listing may begin.
    rested: Option<Instant>,
    answering: bool,
    /// When the waits of late began.
    waits: Vec<Instant>,
    usual: HashMap<Awaited, Duration>,
}

struct Question {
    id: VolumeId,
    /// When an answer is wanted; one that comes earlier for free is welcome.
    due: Instant,
    answer: oneshot::Sender<Result<Volume, CloudError>>,
}

impl Watcher {
    /// A watcher of this cloud's volumes.
    pub fn new(cloud: Arc<dyn Cloud>) -> Self {
        Self { cloud, state: Arc::default(), asked: Arc::default() }
    }

    /// How a volume stands, by a read that begins now or later.
    ///
    /// # Errors
    /// The cloud's.
    pub async fn read(&self, id: &VolumeId) -> Result<Volume, CloudError> {
        self.read_at(id, Instant::now()).await
    }

    /// Looks at a volume, which was changed at `since`, until `check` finds what is awaited.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the volume goes away; [`Error::NotYet`] if nothing comes of it in time.
    pub async fn until<T>(
        &self,
        id: &VolumeId,
        awaited: Awaited,
        since: Instant,
        mut check: impl FnMut(&Volume) -> Option<T>,
    ) -> Result<T, Error> {
        let usual = self.lock().usual.get(&awaited.alike()).copied().unwrap_or(awaited.usual());
        let mut pause = (usual / 4).max(SHORTEST_PAUSE);
        let usually = since + usual;
        // With little going on a look ahead of time costs the account nothing that others need.
        let mut due = if self.is_quiet() { since + usual / 2 } else { usually };
        let mut late = false;
        let mut last = String::from("nothing could be learnt");
        while since.elapsed() < LONGEST_WAIT {
            match self.read_at(id, due).await {
                Ok(volume) => {
                    if let Some(found) = check(&volume) {
                        self.learn(awaited, usual, since.elapsed(), late);
                        return Ok(found);
                    }
                    last = format!("it is {}", standing(&volume));
                }
                Err(CloudError::NotFound(_)) => return Err(Error::VolumeNotFound(id.to_string())),
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
        Err(Error::NotYet(format!(
            "volume {id} is not {} after {} s; {last}",
            awaited.as_str(),
            since.elapsed().as_secs()
        )))
    }

    /// All volumes of the account, by a listing that begins now; one that changes meanwhile may hide some.
    ///
    /// # Errors
    /// The cloud's, if any page cannot be had.
    pub async fn list(&self) -> Result<Vec<Volume>, CloudError> {
        Ok(self.list_counted().await?.0)
    }

    /// All volumes of the account, and not fewer than the cloud counts.
    ///
    /// # Errors
    /// The cloud's, if any page cannot be had or the pages do not add up.
    pub async fn list_whole(&self) -> Result<Vec<Volume>, CloudError> {
        for _ in 0..LISTING_TRIES {
            let (volumes, total) = self.list_counted().await?;
            let ids: HashSet<_> = volumes.iter().map(|volume| &volume.id).collect();
            if total.is_none_or(|total| ids.len() as u64 >= total) {
                return Ok(volumes);
            }
        }
        Err(CloudError::Unknown("the listing has fewer volumes than the cloud counts".to_owned()))
    }

    async fn list_counted(&self) -> Result<(Vec<Volume>, Option<u64>), CloudError> {
        let (mut volumes, mut total) = (Vec::new(), None);
        let mut cursors: HashSet<String> = HashSet::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = self.cloud.list_volumes(cursor.as_deref(), self.cloud.profile().page_size).await?;
            volumes.extend(page.volumes);
            total = page.total.or(total);
            let Some(next) = page.next else { break };
            // A cloud that sends us in circles would have us list for ever.
            if !cursors.insert(next.clone()) {
                return Err(CloudError::Unknown(format!("page {next} of a listing comes twice")));
            }
            cursor = Some(next);
        }
        self.lock().total = Some(volumes.len() as u64);
        Ok((volumes, total))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something is waited for, and tells whether that is rare at the moment.
    fn is_quiet(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        state.waits.retain(|began| now.duration_since(*began) < QUIET);
        state.waits.push(now);
        state.waits.len() <= QUIET_WAITS
    }

    /// The first look comes when things are usually done: a look too early costs a request, one too late some time.
    fn learn(&self, awaited: Awaited, usual: Duration, took: Duration, late: bool) {
        let better = if late { took.min(usual * 2) } else { took.min(usual.mul_f64(0.99)) };
        self.lock().usual.insert(awaited.alike(), better.max(SHORTEST_PAUSE));
    }

    async fn read_at(&self, id: &VolumeId, due: Instant) -> Result<Volume, CloudError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            state.questions.push(Question { id: id.clone(), due, answer });
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
                state.questions.retain(|question| !question.answer.is_closed());
                let Some(first) = state.questions.iter().map(|question| question.due).min() else {
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
                // More questions are due than the account has pages.
                let soon = self.due_soon();
                tokio::time::sleep_until(rested.map_or(soon, |rested| rested.max(soon))).await;
                self.answer_by_listing().await;
                continue;
            };
            for (id, askers) in due {
                let cloud = Arc::clone(&self.cloud);
                tokio::spawn(async move { tell(askers, &cloud.volume(&id).await) });
            }
        }
    }

    /// Takes the questions that are due, by volume, if asking for each volume costs no more than a listing.
    fn take_due(&self) -> Option<Vec<(VolumeId, Vec<Answer>)>> {
        let mut state = self.lock();
        let pages = self.pages(state.total);
        let now = Instant::now();
        let mut ids: Vec<&VolumeId> = state.questions.iter().filter(|q| q.due <= now).map(|q| &q.id).collect();
        ids.sort();
        ids.dedup();
        if ids.len() > 1 && ids.len() as u64 > pages {
            return None;
        }
        let (due, later) = std::mem::take(&mut state.questions).into_iter().partition(|q| q.due <= now);
        state.questions = later;
        Some(by_volume(due))
    }

    /// When the last of those questions is due that one listing may as well answer: those due within the pause that
    /// would follow it.
    fn due_soon(&self) -> Instant {
        let state = self.lock();
        let horizon = Instant::now() + self.pause(state.total);
        state.questions.iter().map(|question| question.due).filter(|due| *due <= horizon).max().unwrap_or(horizon)
    }

    /// The pause after a listing, by the number of its pages.
    fn pause(&self, total: Option<u64>) -> Duration {
        let pages = u32::try_from(self.pages(total)).unwrap_or(u32::MAX).min(1000);
        (PAUSE_PER_PAGE * pages).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
    }

    /// How many requests a listing is. An account that was never listed is not listed for this.
    fn pages(&self, total: Option<u64>) -> u64 {
        total.map_or(u64::MAX, |total| total.div_ceil(u64::from(self.cloud.profile().page_size)).max(1))
    }

    /// Answers every question there is, due or not: the listing is paid for.
    async fn answer_by_listing(&self) {
        let questions = std::mem::take(&mut self.lock().questions);
        let listed = self.list().await;
        {
            let mut state = self.lock();
            state.rested = Some(Instant::now() + self.pause(state.total));
        }
        match listed {
            Ok(volumes) => {
                let mut rows: HashMap<VolumeId, Volume> = volumes.into_iter().map(|v| (v.id.clone(), v)).collect();
                for (id, askers) in by_volume(questions) {
                    if let Some(volume) = rows.remove(&id) {
                        tell(askers, &Ok(volume));
                    } else {
                        let cloud = Arc::clone(&self.cloud);
                        tokio::spawn(async move { tell(askers, &cloud.volume(&id).await) });
                    }
                }
            }
            Err(error) => {
                let now = Instant::now();
                let (due, later): (Vec<_>, Vec<_>) = questions.into_iter().partition(|q| q.due <= now);
                self.lock().questions.extend(later);
                for (_, askers) in by_volume(due) {
                    tell(askers, &Err(error.clone()));
                }
            }
        }
    }
}

type Answer = oneshot::Sender<Result<Volume, CloudError>>;

/// In the order of the first question for each volume.
fn by_volume(questions: Vec<Question>) -> Vec<(VolumeId, Vec<Answer>)> {
    let mut places: HashMap<VolumeId, usize> = HashMap::new();
    let mut volumes: Vec<(VolumeId, Vec<Answer>)> = Vec::new();
    for question in questions {
        let place = *places.entry(question.id.clone()).or_insert_with(|| {
            volumes.push((question.id.clone(), Vec::new()));
            volumes.len() - 1
        });
        volumes[place].1.push(question.answer);
    }
    volumes
}

fn tell(askers: Vec<Answer>, answer: &Result<Volume, CloudError>) {
    for asker in askers {
        // Whoever went away in the meantime needs no answer.
        asker.send(answer.clone()).ok();
    }
}

/// How a volume stands, for a message.
fn standing(volume: &Volume) -> String {
    let place =
        volume.attached_to.as_ref().map_or_else(|| "unattached".to_owned(), |node| format!("attached to {node}"));
    format!("{}, {} and {place}", volume.state, volume.size)
}
