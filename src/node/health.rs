//! What ails volumes, as this node sees it (CSI 1.13: `NodeGetVolumeHealth`, `NodeGetStorageHealth`).
//!
//! Like the statistics this waits for no operation, and for a disk or a file system that does not answer only a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Core,
    host::{DeviceNumber, Serial},
    mount::places_of,
    mountinfo::{self, Mount},
    owner::Owner,
    record::Staged,
};
use crate::{error::Error, volume::VolumeId};

/// How long a stage that failed counts as one that was tried recently.
const RECENTLY: Duration = Duration::from_secs(3600);

/// How bad it is (CSI 1.13: `VolumeHealthErrorType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Works, but not as it should.
    Degraded,
    /// Cannot be reached from this node.
    Inaccessible,
}

/// Something that ails a volume, or this node's storage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ailment {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in one word for programs; no volume has one twice.
    pub reason: &'static str,
    /// What it is, for people.
    pub message: String,
}

impl Ailment {
    pub(super) fn gone(number: DeviceNumber) -> Self {
        let message = format!("disk {number} is gone from this machine");
        Self { severity: Severity::Inaccessible, reason: "DiskGone", message }
    }

    pub(super) fn share_gone(tag: &str) -> Self {
        let message = format!("share {tag} is gone from this machine");
        Self { severity: Severity::Inaccessible, reason: "ShareGone", message }
    }

    /// Of what was mounted or shown and is not there any more.
    pub(super) fn gone_at(mount: &Mount) -> Self {
        if mount.is_share() { Self::share_gone(&mount.source) } else { Self::gone(mount.device) }
    }

    pub(super) fn silent(what: &str, after: Duration) -> Self {
        let message = format!("{what} does not answer within {} s", after.as_secs());
        Self { severity: Severity::Inaccessible, reason: "NotResponding", message }
    }

    pub(super) fn unreadable(cause: &dyn Display) -> Self {
        let message = format!("the disk cannot be read: {cause}");
        Self { severity: Severity::Inaccessible, reason: "DiskFailing", message }
    }

    pub(super) fn failing(cause: &dyn Display) -> Self {
        let message = format!("the file system answers with an error: {cause}");
        Self { severity: Severity::Inaccessible, reason: "FilesystemFailing", message }
    }

    pub(super) fn read_only(options: &[String]) -> Self {
        let message = format!("the file system turned read-only ({})", options.join(","));
        Self { severity: Severity::Degraded, reason: "FilesystemReadOnly", message }
    }

    pub(super) fn errors(message: String) -> Self {
        Self { severity: Severity::Degraded, reason: "FilesystemErrors", message }
    }
}

/// Why volumes could not be staged of late.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<VolumeId, (Instant, String)>>);

impl Refusals {
    /// Notes how a stage of the volume ended, or that it is no more asked for.
    pub(super) fn note(&self, volume: &VolumeId, error: Option<&Error>) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.retain(|of, (when, _)| of != volume && when.elapsed() < RECENTLY);
        if let Some(error) = error {
            refusals.insert(volume.clone(), (Instant::now(), error.chain()));
        }
    }

    fn of(&self, volume: &VolumeId) -> Option<String> {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.get(volume).filter(|(when, _)| when.elapsed() < RECENTLY).map(|(_, why)| why.clone())
    }
}

impl Core {
    pub(super) async fn health(self: &Arc<Self>, volume: &VolumeId, paths: &[PathBuf]) -> Result<Vec<Ailment>, Error> {
        let record = self.records.load::<Staged>(volume).await?;
        let mounts = self.host.mounts().await?;
        let mut places = match &record {
            Some(record) => places_of(&mounts, record.device),
            None => Vec::new(),
        };
        // The kernel gives a share's number to another one when the first is mounted no more.
        if let Some(record) = record.as_ref().filter(|record| record.is_share) {
            places.retain(|mount| mount.source == record.serial);
        }
        for path in paths {
            // Where the volume could not be brought to there may be nothing, or something else.
            if let Ok(path) = self.resolve_mounted(volume, path).await {
                places.extend(mountinfo::at(&mounts, &path));
            }
        }
        let mut ailments = BTreeSet::new();
        let mut examined = BTreeSet::new();
        for mount in places {
            match self.owner(volume, mount).await? {
                // All mounts of a file system tell the same.
                Owner::Volume(_) if examined.insert((mount.device, mount.is_node)) => {
                    ailments.extend(self.examine(&mounts, mount).await?.ailments);
                }
                Owner::Share if examined.insert((mount.device, mount.is_node)) => {
                    ailments.extend(self.examine_share(mount).await.ailments);
                }
                Owner::Gone => {
                    examined.insert((mount.device, mount.is_node));
                    ailments.insert(Ailment::gone_at(mount));
                }
                Owner::Volume(_) | Owner::Share | Owner::Other(_) => {}
            }
        }
        if examined.is_empty()
            && let Some(record) = record.as_ref().filter(|record| !record.is_share)
            && self.number_of(volume, record).await?.is_none()
        {
            ailments.insert(Ailment::gone(record.device));
        }
        let refusal = self.refusals.of(volume);
        if examined.is_empty() && record.is_none() && refusal.is_none() {
            return Err(Error::NotHere(volume.to_string()));
        }
        ailments.extend(refusal.map(|message| Ailment {
            severity: Severity::Inaccessible,
            reason: "StageFailed",
            message,
        }));
        Ok(ailments.into_iter().collect())
    }

    pub(super) async fn storage_health(&self) -> Vec<Ailment> {
        let disks = match self.host.disks().await {
            Ok(disks) => disks,
            Err(error) => {
                let message = format!("the disks of this machine cannot be listed: {}", error.chain());
                return vec![Ailment { severity: Severity::Inaccessible, reason: "DisksNotListed", message }];
            }
        };
        let silent = disks.iter().filter_map(|disk| match &disk.serial {
            Serial::Unreadable(cause) => Some(format!("{} ({cause})", disk.name)),
            Serial::Absent | Serial::Text(_) => None,
        });
        let silent: Vec<String> = silent.collect();
        if silent.is_empty() {
            return Vec::new();
        }
        let message = format!(
            "no volume that comes to this node can be staged while the serial of a disk cannot be read, since it may be \
             any: {}",
            silent.join(", ")
        );
        vec![Ailment { severity: Severity::Degraded, reason: "SerialUnreadable", message }]
    }
}
