//! What happened in the account, written down for whoever judges it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tonic::Code;

use super::{
    account::{Reply, Sent},
    request::{Answered, Ask},
    snapshots::Snapshots,
};

/// So many requests a call may cost where a page has one row and a change takes most of a minute, and so many the start.
const A_CALL: usize = 12;
const AT_START: usize = 20;

/// How a volume stood from some moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) active: bool,
    pub(super) gb: u64,
    pub(super) on: BTreeSet<String>,
}

/// A volume's life.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) label: String,
    pub(super) region: String,
    pub(super) kind: &'static str,
    /// The snapshot it was made from; empty where there is none.
    pub(super) snapshot: String,
    /// Since when it stood how, in the order of time.
    pub(super) shown: Vec<(Duration, Shown)>,
    pub(super) gone: Option<Duration>,
    /// Whether somebody in the console had a hand in it.
    pub(super) meddled: bool,
    taken_away: bool,
}

impl Life {
    pub(super) fn new(label: &str, region: &str, kind: &'static str, snapshot: &str) -> Self {
        Self {
            label: label.to_owned(),
            region: region.to_owned(),
            kind,
            snapshot: snapshot.to_owned(),
            shown: Vec::new(),
            gone: None,
            meddled: false,
            taken_away: false,
        }
    }

    /// How the volume stood at some moment between two: the last before the first, and all that came after it.
    pub(super) fn between(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Shown> {
        let first = self.shown.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        let gone = self.gone.unwrap_or(Duration::MAX);
        self.shown[first..].iter().filter(move |(at, _)| *at <= to && gone >= from).map(|(_, shown)| shown)
    }
}

/// The story of an account.
#[derive(Debug, Default)]
pub(super) struct Story {
    pub(super) volumes: BTreeMap<String, Life>,
    pub(super) snapshots: Snapshots,
    /// The volumes that have or had a name.
    pub(super) named: BTreeMap<String, Vec<String>>,
    /// The instances there were at first.
    pub(super) instances: BTreeSet<String>,
    /// When instances went away.
    pub(super) instances_gone: BTreeMap<String, Duration>,
    /// How many requests of each operation got here.
    pub(super) requests: BTreeMap<&'static str, usize>,
    /// How many of each operation something went wrong with.
    pub(super) spoilt: BTreeMap<&'static str, usize>,
    /// How many of them were one too many in their second.
    pub(super) limited: usize,
    /// How many changes were taken.
    pub(super) changes: usize,
    /// How many changes of disks and snapshots were refused.
    pub(super) refused: usize,
    /// What must never happen, and did.
    pub(super) wrong: Vec<String>,
    /// One line for everything, if somebody will read it.
    pub(super) log: Option<Vec<String>>,
    /// The calls whose operation may be under way, and since when.
    under_way: BTreeMap<Ask, Duration>,
    /// What was asked of the controller that entitles to a detach or a delete.
    pub(super) entitled: Entitled,
}

/// What the controller has been asked to detach and to delete.
#[derive(Debug, Default)]
pub(super) struct Entitled {
    /// Volumes, and the instance they are to be taken from; "" is any.
    pub(super) detaches: BTreeSet<(String, String)>,
    pub(super) deletes: BTreeSet<String>,
    pub(super) snapshots: BTreeSet<String>,
}

impl Story {
    pub(super) fn all_requests(&self) -> usize {
        self.requests.values().sum()
    }

    pub(super) fn note(&mut self, at: Duration, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:9.3} {}", at.as_secs_f64(), line()));
        }
    }

    /// Something went wrong with a request on its way.
    pub(super) fn spoilt(&mut self, sent: &Sent) {
        *self.spoilt.entry(sent.operation).or_default() += 1;
    }

    pub(super) fn wrong(&mut self, at: Duration, what: String) {
        self.note(at, || format!("WRONG: {what}"));
        self.wrong.push(what);
    }

    pub(super) fn arrived(&mut self, at: Duration, sent: &Sent, reply: &Reply) {
        *self.requests.entry(sent.operation).or_default() += 1;
        self.changes += usize::from(reply.status < 300 && !sent.is_read());
        let of_share = sent.operation.ends_with("vfs");
        self.refused += usize::from(reply.status >= 400 && reply.status != 404 && !sent.is_read() && !of_share);
        self.note(at, || {
            let said = if reply.status < 300 { String::new() } else { format!(" {}", reply.body) };
            format!("    {} {} {}{said}", sent.method, sent.path, reply.status)
        });
    }

    pub(super) fn made(&mut self, at: Duration, id: &str, life: Life, shown: Shown) {
        let named = self.named.entry(life.label.clone()).or_default();
        named.push(id.to_owned());
        let mut there =
            named.iter().rev().filter(|other| self.volumes.get(*other).is_some_and(|life| life.gone.is_none()));
        if let Some(other) = there.next() {
            let what = format!("volume {id} is named {} as is {other}", life.label);
            self.wrong(at, what);
        }
        self.volumes.insert(id.to_owned(), life);
        self.shows(at, id, shown);
    }

    pub(super) fn shows(&mut self, at: Duration, id: &str, shown: Shown) {
        self.note(at, || format!("        {id} is {shown:?}"));
        self.volumes.get_mut(id).expect("it was made").shown.push((at, shown));
    }

    /// Nothing went wrong but by the driver's own doing, in so many calls.
    pub(super) fn in_fair_weather(&mut self, calls: usize) {
        let (refused, requests) = (self.refused, self.all_requests());
        if refused > 0 {
            self.wrong(Duration::ZERO, format!("{refused} changes are refused in fair weather"));
        }
        if requests > AT_START + A_CALL * calls {
            self.wrong(Duration::ZERO, format!("{calls} calls are {requests} requests in fair weather"));
        }
    }

    /// A call is made to the controller, which entitles it to something.
    pub(super) fn asked(&mut self, at: Duration, ask: &Ask) {
        self.under_way.entry(ask.clone()).or_insert(at);
        match ask.clone() {
            Ask::Delete { id } => {
                self.entitled.deletes.insert(id);
            }
            Ask::DeleteSnapshot { snapshot } => {
                self.entitled.snapshots.insert(snapshot);
            }
            Ask::Unpublish { id, node } => {
                self.entitled.detaches.insert((id, node));
            }
            _ => {}
        }
    }

    /// A call has been answered; one that was done entitles to nothing more.
    pub(super) fn answered(&mut self, ask: &Ask, answered: &Answered) {
        if !matches!(answered, Err((Code::DeadlineExceeded, _))) {
            self.under_way.remove(ask);
        }
        if let (Ask::Unpublish { id, node }, Ok(_)) = (ask, answered) {
            self.entitled.detaches.remove(&(id.clone(), node.clone()));
        }
    }

    /// Since when what a call asks for has been under way: whoever repeats a call joins it (P7).
    pub(super) fn under_way_since(&self, ask: &Ask) -> Option<Duration> {
        self.under_way.get(ask).copied()
    }

    /// The controller is dead, and with it all that was under way.
    pub(super) fn died(&mut self) {
        self.under_way.clear();
    }

    /// How a volume stands.
    pub(super) fn now(&self, id: &str) -> Option<&Shown> {
        let life = self.volumes.get(id).filter(|life| life.gone.is_none())?;
        life.shown.last().map(|(_, shown)| shown)
    }

    /// Whether somebody in the console deleted a volume.
    pub(super) fn is_taken_away(&self, id: &str) -> bool {
        self.volumes[id].taken_away
    }

    pub(super) fn meddled(&mut self, id: &str) {
        self.volumes.get_mut(id).expect("it was made").meddled = true;
    }

    /// A volume is deleted, by the driver or in the console.
    pub(super) fn gone(&mut self, at: Duration, id: &str, by_console: bool) {
        self.note(at, || format!("        {id} is gone{}", if by_console { ", by the console" } else { "" }));
        let life = self.volumes.get_mut(id).expect("it was made");
        life.gone = Some(at);
        life.meddled |= by_console;
        life.taken_away = by_console;
        if !by_console && !self.entitled.deletes.contains(id) {
            self.wrong(at, format!("volume {id} is deleted, which nobody asked for"));
        }
    }

    /// A delete of a volume got here while an instance that exists has it.
    pub(super) fn delete_asked(&mut self, at: Duration, id: &str, in_use: bool) {
        if in_use && !self.volumes[id].meddled {
            self.wrong(at, format!("a delete of volume {id} is sent while it is in use"));
        }
    }

    /// A detach of a volume from an instance was taken.
    pub(super) fn detach_taken(&mut self, at: Duration, id: &str, on: &str, instance_exists: bool) {
        let any = (id.to_owned(), String::new());
        let this = (id.to_owned(), on.to_owned());
        let asked = self.entitled.detaches.contains(&this) || self.entitled.detaches.contains(&any);
        // The attachment to an instance that is gone is nobody's.
        let fair = asked || (!instance_exists && self.entitled.deletes.contains(id)) || self.volumes[id].meddled;
        if !fair {
            self.wrong(at, format!("volume {id} is detached from {on}, which nobody asked for"));
        }
    }

    pub(super) fn instance_gone(&mut self, at: Duration, id: &str) {
        self.note(at, || format!("        instance {id} is gone, by the console"));
        self.instances_gone.insert(id.to_owned(), at);
    }
}
