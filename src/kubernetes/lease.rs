//! The lease that makes one controller the active one (`--lease`).
//!
//! The times are those of client-go. A holder renews every 2 s and counts its time from the moment it *sent* the last
//! renewal that came about: 10 s after it, it is no longer the holder, and its process ends. Whoever waits takes over
//! when it has seen no renewal for 15 s by its own clock, which began to run after the renewal was sent. So the old one
//! has ended for at least 5 s when the new one begins, whatever their clocks say, and what it sent last has 5 s to come
//! about. Clocks of different machines are never compared: the times written into the record are for people.
//!
//! Every change names the version of the record that it changes, so of two that take it one succeeds. What this cannot
//! prevent: a process whose machine is frozen together with its clock finds out with its first renewal after it wakes;
//! and whoever deletes the record by hand while a new controller starts has two of them until the old one's next
//! renewal (2 s).
//!
//! Whoever waits says to Probe that it is not ready, so that the sidecars of its pod, which ask that first and again and
//! again, wait with it. (Where no socket is there they give up after 30 s: csi-lib-utils 0.24.)

mod held;

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    io,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::coordination::v1::{Lease as Record, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

pub use held::Held;

use super::{status, told};
use crate::cloud::fence::Fence;

/// How long a holder that is silent is waited for.
const LEASE: Duration = Duration::from_secs(15);
/// How long after it sent its last renewal a holder goes on.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it renews, and how often the others look.
const RETRY: Duration = Duration::from_secs(2);
/// The duration that a record has which was given back, in seconds: as client-go writes it, the least that the API allows.
const GIVEN_BACK: i32 = 1;
/// How long one attempt may take; client-go takes half of the deadline as well.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A name that no other process has: the host's, which is the pod's, and chance. A pod of a StatefulSet that is forced
/// off a machine nobody can reach lives on there beside its successor of the same name.
///
/// # Errors
/// If the kernel does not tell the host's name.
pub fn identity() -> io::Result<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    // The keys of the hasher are the system's random numbers.
    let chance = RandomState::new().hash_one(SystemTime::now());
    Ok(format!("{}_{chance:016x}", host.trim()))
}

/// A lease that this process wants.
#[derive(Debug)]
pub struct Lease {
    api: Api<Record>,
    name: String,
    me: String,
    fence: Fence,
}

/// Who has the lease, as far as the one who waits knows.
struct Seen {
    record: LeaseSpec,
    /// When it was seen to be so first.
    since: Instant,
}

impl Seen {
    fn holder(&self) -> &str {
        self.record.holder_identity.as_deref().unwrap_or_default()
    }

    /// Whether nobody has it: it was given back, or its holder has been silent for as long as it said it might be, and for
    /// as long as it may be in any case, whatever somebody wrote into the record.
    fn is_free(&self) -> bool {
        let promised = self.record.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let silence = promised.map_or(LEASE, Duration::from_secs).max(LEASE);
        self.holder().is_empty() || self.since.elapsed() >= silence
    }
}

/// What came of an attempt to get the lease.
enum Attempt {
    Got(Box<Record>, Instant),
    HeldBy(String),
}

impl Lease {
    /// The lease `name` in the client's namespace, for the process `me`. `fence` is open while it is held.
    pub fn new(client: Client, name: String, me: String, fence: Fence) -> Self {
        fence.close();
        Self { api: Api::default_namespaced(client), name, me, fence }
    }

    /// Waits until this process has the lease; `standing` tells meanwhile what it waits for.
    pub async fn acquire(self, standing: &watch::Sender<String>) -> Held {
        let mut seen = None;
        let mut trouble = None;
        loop {
            let attempt = timeout(ATTEMPT, self.attempt(&mut seen)).await;
            let waits_for = match attempt {
                Ok(Ok(Attempt::Got(record, sent))) => {
                    info!(lease = self.name, holder = self.me, "the lease is held: this is the active controller");
                    let until = sent + RENEW_DEADLINE;
                    self.fence.open_until(until);
                    return Held { lease: self, record: *record, until };
                }
                Ok(Ok(Attempt::HeldBy(holder))) => {
                    trouble = None;
                    format!("waiting for the lease {} held by {holder}", self.name)
                }
                Ok(Err(error)) => self.cannot(&mut trouble, told(&error)),
                Err(_) => self.cannot(&mut trouble, no_answer()),
            };
            let changed = standing.send_if_modified(|old| {
                *old != waits_for && {
                    old.clone_from(&waits_for);
                    true
                }
            });
            if changed && trouble.is_none() {
                info!("{waits_for}");
            }
            // Jittered as in client-go, so that those who wait do not march in step.
            sleep(RETRY.mul_f64(1.0 + 0.2 * fastrand::f64())).await;
        }
    }

    /// Says so, once for each reason.
    fn cannot(&self, trouble: &mut Option<String>, reason: String) -> String {
        if trouble.as_ref() != Some(&reason) {
            warn!(lease = self.name, reason, "the lease cannot be had; it is tried again");
        }
        let waits_for = format!("waiting for the lease {}, which cannot be had: {reason}", self.name);
        *trouble = Some(reason);
        waits_for
    }

    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Attempt, kube::Error> {
        let Some(mut record) = self.api.get_opt(&self.name).await? else {
            // Somebody deleted it. Its holder may make it anew for as long as it was promised to be waited for.
            if let Some(last) = seen.as_ref().filter(|last| !last.is_free()) {
                return Ok(Attempt::HeldBy(last.holder().to_owned()));
            }
            return self.create().await;
        };
        let found = record.spec.take().unwrap_or_default();
        let transitions = found.lease_transitions.unwrap_or_default();
        // Where an answer was lost, the holder may be this very process.
        let is_mine = found.holder_identity.as_ref() == Some(&self.me);
        // Somebody wrote an empty record over it (`kubectl replace`): its holder finds that out with its next renewal.
        let is_emptied = found.holder_identity.as_deref().unwrap_or_default().is_empty()
            && found.lease_duration_seconds != Some(GIVEN_BACK)
            && seen.as_ref().is_some_and(|last| !last.is_free());
        if !is_emptied && seen.as_ref().is_none_or(|last| last.record != found) {
            // The time runs from now, after the answer: never too early.
            *seen = Some(Seen { record: found, since: Instant::now() });
        }
        if let Some(last) = seen.as_ref().filter(|last| !is_mine && !last.is_free()) {
            return Ok(Attempt::HeldBy(last.holder().to_owned()));
        }
        record.spec = Some(self.spec(transitions.saturating_add(i32::from(!is_mine))));
        let sent = Instant::now();
        match self.api.replace(&self.name, &PostParams::default(), &record).await {
            Ok(record) => Ok(Attempt::Got(Box::new(record), sent)),
            Err(error) if status(&error) == Some(409) => Ok(Attempt::HeldBy("another that was faster".to_owned())),
            Err(error) => Err(error),
        }
    }

    async fn create(&self) -> Result<Attempt, kube::Error> {
        let mut record = Record::default();
        record.metadata.name = Some(self.name.clone());
        record.spec = Some(self.spec(0));
        let sent = Instant::now();
        match self.api.create(&PostParams::default(), &record).await {
            Ok(record) => Ok(Attempt::Got(Box::new(record), sent)),
            Err(error) if status(&error) == Some(409) => Ok(Attempt::HeldBy("another that was faster".to_owned())),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(seconds(LEASE)),
            lease_transitions: Some(transitions),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

fn no_answer() -> String {
    format!("no answer within {} s", ATTEMPT.as_secs())
}

#[cfg(test)]
mod tests;
