//! A Vultr account in memory: what it has, what is under way in it, and its rate limit, on a clock of its own that goes
//! on when a controller dies.
//!
//! Nothing in it runs. Everything that will happen stands in an agenda, and whoever looks at the account first lets
//! everything happen that is due: so a request that was sent reaches it though its sender is dead by then.

mod answer;
mod block;
mod console;
mod instance;
mod route;
mod share;
mod snapshot;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

use fastrand::Rng;
use tokio::time::Instant;

use self::block::Block;
pub(super) use self::{
    answer::Reply,
    block::Moving,
    console::Console,
    instance::{Instance, instance_id},
    route::Sent,
    share::Share,
    snapshot::{Snapshot, State},
};
use super::story::Story;

/// More requests than this in any second are refused.
const LIMIT: usize = 30;
const SECOND: Duration = Duration::from_secs(1);

/// How this account behaves where the API's documents leave it open.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Habits {
    /// How long a new volume is pending, in ms.
    pub(super) creating: Range<u64>,
    /// How long an instance is locked by an attach or a detach, in ms.
    pub(super) moving: Range<u64>,
    /// How long a change of size takes to be shown, in ms.
    pub(super) growing: Range<u64>,
    /// How long a snapshot takes, in ms.
    pub(super) taking: Range<u64>,
    /// How many of 1,000 snapshots fail.
    pub(super) failing: u32,
    /// In which of its four shapes a snapshot is shown.
    pub(super) snapshot_shape: u32,
    /// How many rows a page has, whatever more is asked for.
    pub(super) page: usize,
    /// Whether a page goes on from a row number instead of a row: then rows are missed and doubled by what comes and goes.
    pub(super) pages_by_number: bool,
    /// The status of "Invalid block storage ID".
    pub(super) unknown_block: u16,
    /// Whether a lock is told as a 500.
    pub(super) locked_is_500: bool,
    /// Whether a delete of an attached volume is carried out.
    pub(super) deletes_attached: bool,
    /// Whether the volumes of a deleted instance still name it.
    pub(super) ghosts: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            creating: 1000..3000,
            moving: 2000..5000,
            growing: 0..1,
            taking: 1000..4000,
            failing: 0,
            snapshot_shape: 0,
            page: 500,
            pages_by_number: false,
            unknown_block: 404,
            locked_is_500: false,
            deletes_attached: false,
            ghosts: false,
        }
    }
}

/// What will happen in the account by itself.
#[derive(Debug)]
pub(super) enum Event {
    /// A request gets here.
    Arrival(u64, Sent),
    /// A new volume can be used.
    Active(String),
    /// A volume is on an instance.
    On(String, String),
    /// A volume is on none.
    Off(String),
    /// A volume has another size.
    Sized(String, u64),
    /// A snapshot has been taken, or not.
    Taken(String, State),
    /// A shared file system can be used.
    ShareActive(String),
    /// An instance has it.
    ShareOn(String, String),
    /// An instance has it no longer.
    ShareOff(String, String),
    /// Somebody does something in the console.
    Console(Console),
}

/// The account.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) habits: Habits,
    pub(super) blocks: BTreeMap<String, Block>,
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    pub(super) shares: BTreeMap<String, Share>,
    pub(super) instances: BTreeMap<String, Instance>,
    /// What happened, for whoever judges it.
    pub(super) story: Story,
    /// While this lasts nothing is known of VFS.
    pub(super) vfs_out_until: Duration,
    rng: Rng,
    agenda: BTreeMap<(Duration, u64), Event>,
    replies: BTreeMap<u64, Reply>,
    /// The requests of the last second.
    lately: VecDeque<Duration>,
    numbers: u64,
    made: u64,
    /// The time of what is happening.
    at: Duration,
    /// How long the lives before this one took, and when this one began.
    before: Duration,
    life: Option<Instant>,
}

impl Account {
    pub(super) fn new(seed: u64, habits: Habits) -> Self {
        Self {
            habits,
            blocks: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            shares: BTreeMap::new(),
            instances: BTreeMap::new(),
            story: Story::default(),
            vfs_out_until: Duration::ZERO,
            rng: Rng::with_seed(seed),
            agenda: BTreeMap::new(),
            replies: BTreeMap::new(),
            lately: VecDeque::new(),
            numbers: 0,
            made: 0,
            at: Duration::ZERO,
            before: Duration::ZERO,
            life: None,
        }
    }

    /// A controller begins its life: from here on its runtime's clock is ours.
    pub(super) fn life_begins(&mut self) {
        self.life = Some(Instant::now());
    }

    /// It has ended.
    pub(super) fn life_ends(&mut self) {
        self.before = self.now();
        self.life = None;
    }

    /// Time passes without a controller.
    pub(super) fn pass(&mut self, time: Duration) {
        self.before += time;
    }

    /// Time since the history began.
    pub(super) fn now(&self) -> Duration {
        self.before + self.life.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Lets happen what is due.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        while let Some(next) = self.agenda.first_entry()
            && next.key().0 <= now
        {
            let ((at, _), event) = next.remove_entry();
            self.at = at;
            self.happen(event);
        }
        self.at = now;
    }

    /// What is to happen, and when.
    pub(super) fn plan(&mut self, at: Duration, event: Event) {
        let number = self.number();
        self.agenda.insert((at, number), event);
    }

    /// A number that nothing else has.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Whose requests are on their way has died: `arrives` tells of each when it comes after all, if it does.
    pub(super) fn sender_died(&mut self, mut arrives: impl FnMut(&Sent, Duration) -> Option<Duration>) {
        let under_way = self.agenda.extract_if(.., |_, event| matches!(event, Event::Arrival(..)));
        let under_way: Vec<_> = under_way.collect();
        for ((at, number), event) in under_way {
            let Event::Arrival(_, sent) = &event else { continue };
            if let Some(at) = arrives(sent, at) {
                self.agenda.insert((at, number), event);
            }
        }
    }

    /// What was answered to a request, if it has been.
    pub(super) fn reply(&mut self, number: u64) -> Option<Reply> {
        self.replies.remove(&number)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrival(number, sent) => {
                let reply = if self.is_too_much() {
                    self.story.limited += 1;
                    // Nobody else uses the account.
                    self.story.wrong(self.at, "the account's rate limit is hit".to_owned());
                    Reply::limited()
                } else {
                    self.handle(&sent)
                };
                self.story.arrived(self.at, &sent, &reply);
                self.replies.insert(number, reply);
            }
            Event::Active(id) => self.block_is_active(&id),
            Event::On(id, instance) => self.block_is_on(&id, &instance),
            Event::Off(id) => self.block_is_off(&id),
            Event::Sized(id, gb) => self.block_has_size(&id, gb),
            Event::Taken(id, ends) => self.snapshot_is_taken(&id, ends),
            Event::ShareActive(id) => self.share_is_active(&id),
            Event::ShareOn(id, instance) => self.share_is_on(&id, &instance),
            Event::ShareOff(id, instance) => self.share_is_off(&id, &instance),
            Event::Console(what) => self.console(what),
        }
    }

    fn is_too_much(&mut self) -> bool {
        while self.lately.front().is_some_and(|at| *at + SECOND <= self.at) {
            self.lately.pop_front();
        }
        self.lately.push_back(self.at);
        self.lately.len() > LIMIT
    }

    /// How long something takes this time.
    fn some(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    fn chance(&mut self, permille: u32) -> bool {
        self.rng.u32(0..1000) < permille
    }

    fn new_id(&mut self) -> String {
        self.made += 1;
        // Ids come in no order, as the cloud's do.
        format!("{:08x}-0000-4000-8000-{:012x}", self.rng.u32(..), self.made)
    }
}
