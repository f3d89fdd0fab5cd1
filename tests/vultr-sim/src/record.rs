//! What was asked and how it was answered: counters and a request log.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{operation::Operation, pace::Window};

/// Counters since the start or the last reset.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Stats {
    /// Requests by operation and status; status 0 is a connection cut by a fault.
    pub requests: BTreeMap<Operation, BTreeMap<u16, u64>>,
    /// How many requests were refused by the rate limit.
    pub rate_limited: u64,
    /// The most requests that came within any one second, refused ones included.
    pub peak_per_second: usize,
    /// How many attaches and detaches met a locked instance.
    pub locked: u64,
    /// How many disks were taken away while something still held them, a mount for example.
    pub dirty_detaches: u64,
    /// How many detaches failed because a virtual machine did not let the disk or file system go.
    pub refused_detaches: u64,
    /// How often each instance, by label, was restarted by an attach or detach that wasn't live.
    pub reboots: BTreeMap<String, u64>,
}

impl Stats {
    /// All requests of an operation, or of all with [`Operation::Any`].
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        let matching = |o: &Operation| operation == Operation::Any || *o == operation;
        let statuses = self.requests.iter().filter(|(o, _)| matching(o));
        statuses.flat_map(|(_, by_status)| by_status.values()).sum()
    }

    /// The requests of an operation that were answered with a status.
    #[must_use]
    pub fn count_of(&self, operation: Operation, status: u16) -> u64 {
        let by_status = self.requests.get(&operation);
        by_status.and_then(|s| s.get(&status)).copied().unwrap_or(0)
    }
}

/// One request.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LogEntry {
    /// When it came, in milliseconds since the start of the simulation.
    pub at_ms: u64,
    /// Its verb.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// What it is.
    pub operation: Operation,
    /// The id in its path, or the label or description of a create.
    pub volume: Option<String>,
    /// The status of the answer: 0 for a cut connection, none while it is on its way.
    pub status: Option<u16>,
}

/// The counters and the log.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) stats: Stats,
    pub(crate) log: Vec<LogEntry>,
    started: Instant,
    window: Window,
    /// How often the log was emptied; a ticket from before means nothing now.
    resets: u64,
}

/// The place of a request in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    resets: u64,
    index: usize,
    operation: Operation,
}

impl Record {
    pub(crate) fn new(started: Instant) -> Self {
        Self { stats: Stats::default(), log: Vec::new(), started, window: Window::default(), resets: 0 }
    }

    /// Notes a request that came. `at_ms` of the entry is filled in here.
    pub(crate) fn arrive(&mut self, mut entry: LogEntry, now: Instant) -> Ticket {
        let here = self.window.count(now);
        self.stats.peak_per_second = self.stats.peak_per_second.max(here);
        entry.at_ms = milliseconds(now - self.started);
        let ticket = Ticket { resets: self.resets, index: self.log.len(), operation: entry.operation };
        self.log.push(entry);
        ticket
    }

    /// Notes how it was answered; a request from before a reset is forgotten.
    pub(crate) fn answered(&mut self, ticket: Ticket, status: u16) {
        if ticket.resets != self.resets {
            return;
        }
        if let Some(entry) = self.log.get_mut(ticket.index) {
            entry.status = Some(status);
        }
        let by_status = self.stats.requests.entry(ticket.operation).or_default();
        *by_status.entry(status).or_default() += 1;
    }

    pub(crate) fn reset(&mut self) {
        self.stats = Stats::default();
        self.log.clear();
        self.window = Window::default();
        self.resets += 1;
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
