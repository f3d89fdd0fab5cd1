//! The lease while this process has it: renewed, lost or given back.

use k8s_openapi::{
    api::coordination::v1::Lease as Record, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use kube::api::PostParams;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use super::{ATTEMPT, Attempt, GIVEN_BACK, LEASE, Lease, RENEW_DEADLINE, RETRY, no_answer, seconds};
use crate::kubernetes::{status, told};

/// A lease that this process has.
#[derive(Debug)]
pub struct Held {
    pub(super) lease: Lease,
    pub(super) record: Record,
    /// When it ends unless it is renewed.
    pub(super) until: Instant,
}

/// Why a renewal did not come about.
enum NotRenewed {
    /// Somebody else has the lease.
    Taken(String),
    /// It is not known.
    Unknown(String),
}

impl Held {
    /// Renews the lease for as long as that works, and returns why it is lost. The fence is closed by then, and all
    /// that the process still has to do is to end.
    ///
    /// May be dropped at any moment.
    pub async fn keep(&mut self) -> String {
        let mut trouble: Option<String> = None;
        loop {
            sleep_until(self.until.min(Instant::now() + RETRY)).await;
            if Instant::now() >= self.until {
                self.lease.fence.close();
                let (deadline, reason) = (RENEW_DEADLINE.as_secs(), trouble.unwrap_or_else(|| "it slept".to_owned()));
                return format!("the lease {} was not renewed within {deadline} s: {reason}", self.lease.name);
            }
            let deadline = self.until.min(Instant::now() + ATTEMPT);
            let reason = match timeout_at(deadline, self.renew()).await {
                Ok(Ok(())) => {
                    if trouble.take().is_some() {
                        info!(lease = self.lease.name, "the lease is renewed again");
                    }
                    continue;
                }
                Ok(Err(NotRenewed::Taken(by))) => {
                    self.lease.fence.close();
                    return format!("the lease {} is held by {by} now", self.lease.name);
                }
                Ok(Err(NotRenewed::Unknown(reason))) => reason,
                Err(_) => no_answer(),
            };
            if trouble.as_ref() != Some(&reason) {
                warn!(lease = self.lease.name, reason, "the lease is not renewed; it is tried again");
            }
            trouble = Some(reason);
        }
    }

    async fn renew(&mut self) -> Result<(), NotRenewed> {
        match self.renew_once().await {
            Err(error) if status(&error) == Some(404) => self.make_anew().await,
            // Either an earlier renewal came about without an answer, or somebody else has the lease.
            Err(error) if status(&error) == Some(409) => {
                self.look().await?;
                self.renew_once().await.map_err(|error| NotRenewed::Unknown(told(&error)))
            }
            renewed => renewed.map_err(|error| NotRenewed::Unknown(told(&error))),
        }
    }

    async fn renew_once(&mut self) -> Result<(), kube::Error> {
        let mut record = self.record.clone();
        if let Some(spec) = &mut record.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            // Somebody may have written another, for which others would wait.
            spec.lease_duration_seconds = Some(seconds(LEASE));
        }
        let sent = Instant::now();
        let record = self.replace(record).await?;
        self.held(record, sent);
        Ok(())
    }

    async fn replace(&self, record: Record) -> Result<Record, kube::Error> {
        self.lease.api.replace(&self.lease.name, &PostParams::default(), &record).await
    }

    fn held(&mut self, record: Record, sent: Instant) {
        self.record = record;
        self.until = sent + RENEW_DEADLINE;
        self.lease.fence.open_until(self.until);
    }

    /// Takes over the version of the record, provided that it is still this process's.
    async fn look(&mut self) -> Result<(), NotRenewed> {
        let unknown = |error| NotRenewed::Unknown(told(&error));
        let found = self.lease.api.get(&self.lease.name).await.map_err(unknown)?;
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if holder != self.lease.me {
            return Err(NotRenewed::Taken(if holder.is_empty() { "nobody".to_owned() } else { holder }));
        }
        self.record = found;
        Ok(())
    }

    /// Makes the record anew after somebody has deleted it. If another was faster, the next renewal finds that out.
    async fn make_anew(&mut self) -> Result<(), NotRenewed> {
        match self.lease.create().await {
            Ok(Attempt::Got(record, sent)) => {
                warn!(lease = self.lease.name, "somebody deleted the lease; it is made anew");
                self.held(*record, sent);
                Ok(())
            }
            Ok(Attempt::HeldBy(by)) => Err(NotRenewed::Unknown(format!("it was deleted, and made by {by}"))),
            Err(error) => Err(NotRenewed::Unknown(told(&error))),
        }
    }

    /// Gives the lease back, so that another need not wait until it runs out. Only for a process that has nothing more
    /// to do in the cloud: the fence is closed first.
    pub async fn release(mut self) {
        self.lease.fence.close();
        match timeout(ATTEMPT, self.give_back()).await {
            Ok(Ok(())) => info!(lease = self.lease.name, "the lease is given back"),
            Ok(Err(NotRenewed::Taken(by))) => warn!(lease = self.lease.name, by, "the lease was taken meanwhile"),
            Ok(Err(NotRenewed::Unknown(reason))) => self.runs_out(&reason),
            Err(_) => self.runs_out(&no_answer()),
        }
    }

    fn runs_out(&self, reason: &str) {
        warn!(lease = self.lease.name, reason, "the lease is not given back; it runs out after {} s", LEASE.as_secs());
    }

    async fn give_back(&mut self) -> Result<(), NotRenewed> {
        // A renewal may have been dropped on its way, so the record is looked at first.
        self.look().await?;
        let mut record = self.record.clone();
        if let Some(spec) = &mut record.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(GIVEN_BACK);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        self.replace(record).await.map(drop).map_err(|error| NotRenewed::Unknown(told(&error)))
    }
}
