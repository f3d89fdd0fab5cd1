//! What a simulation is started with, and the behaviour that may be changed while it runs.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What a simulation is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where disks and instance trees live; made at start, emptied at the end. By default a new folder for temporary files.
    pub dir: PathBuf,
    /// The API token that is accepted.
    pub token: String,
    /// The address that every listener binds to.
    pub listen: IpAddr,
    /// The API's port; 0 picks a free one.
    pub api_port: u16,
    /// The control interface's port; 0 picks a free one.
    pub control_port: u16,
    /// Where a metadata service listens that knows each instance by its address, beside those on ports of their own.
    pub metadata_listen: Option<SocketAddr>,
    /// The virtiofsd that serves file systems to qemu guests; none looks where distributions have it.
    pub virtiofsd: Option<PathBuf>,
    /// The machines of the account.
    pub instances: Vec<InstanceSpec>,
    /// Whether volumes have real disks. Without, attaching is only a change of state and needs no root.
    pub disks: bool,
    /// Where ids come from: the same seed and the same requests give the same ids.
    pub seed: u64,
    /// How the cloud behaves.
    pub behaviour: Behaviour,
}

/// A machine to be made.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSpec {
    /// Its label, which is also its host name and the name of its folder.
    pub label: String,
    /// Its region.
    pub region: String,
    /// The port of its metadata service; 0 picks a free one.
    #[serde(default)]
    pub metadata_port: u16,
    /// Its address: by it the shared metadata service knows it, and the API tells it. None is made up.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// The socket of a QMP monitor, if it is a qemu guest. That must have its memory in a shared memory backend, for file
    /// systems, and leave this monitor to the simulation. It need not run yet. None is an instance on this machine.
    #[serde(default)]
    pub qmp: Option<PathBuf>,
}

impl InstanceSpec {
    /// Names a machine in a region.
    #[must_use]
    pub fn new(label: &str, region: &str) -> Self {
        Self { label: label.to_owned(), region: region.to_owned(), metadata_port: 0, address: None, qmp: None }
    }
}

/// How the cloud behaves where Vultr's documents leave it open, and how long things take.
///
/// As JSON its durations are whole milliseconds and their keys end in `_ms`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own, not a part of one state")]
pub struct Behaviour {
    /// How long a new volume stays `pending`.
    #[serde(rename = "create_ms", with = "milliseconds")]
    pub create: Duration,
    /// How long an attach takes; the instance is locked meanwhile.
    #[serde(rename = "attach_ms", with = "milliseconds")]
    pub attach: Duration,
    /// How long a detach takes; the instance is locked meanwhile.
    #[serde(rename = "detach_ms", with = "milliseconds")]
    pub detach: Duration,
    /// How soon after a change of size the next one is taken; zero switches the rule off.
    #[serde(rename = "resize_every_ms", with = "milliseconds")]
    pub resize_every: Duration,
    /// The limit for one source address in any one second; 0 switches it off.
    pub requests_per_second: u32,
    /// Whether a 429 carries `Retry-After`.
    pub retry_after: bool,
    /// What deleting an attached volume does.
    pub delete_attached: DeleteAttached,
    /// The status of "Server is currently locked": 400, or the 500 that was seen once.
    pub locked_status: u16,
    /// The status for an unknown volume: 404 or 400.
    pub unknown_block_status: u16,
    /// The text for an unknown volume.
    pub unknown_block_text: String,
    /// The status of a create: 202 or 201.
    pub create_status: u16,
    /// Whether list rows carry `block_type`.
    pub list_block_type: bool,
    /// How long a qemu guest may take to let a disk or file system go before its detach fails.
    #[serde(rename = "guest_patience_ms", with = "milliseconds")]
    pub guest_patience: Duration,
    /// Whether an attached guest sees a growth at once, or only after the next attach.
    pub growth_seen_online: bool,
    /// How long a new snapshot stays `PENDING`.
    #[serde(rename = "snapshot_ms", with = "milliseconds")]
    pub snapshot: Duration,
    /// Whether new snapshots become `FAILED` instead of `COMPLETE`.
    pub snapshot_fails: bool,
    /// How the answers for one snapshot are wrapped.
    pub snapshot_answer: SnapshotAnswer,
    /// The status for an unknown snapshot: 404 or 400.
    pub unknown_snapshot_status: u16,
    /// The text for an unknown snapshot.
    pub unknown_snapshot_text: String,
    /// How long a new file system stays `pending`.
    #[serde(rename = "vfs_create_ms", with = "milliseconds")]
    pub vfs_create: Duration,
    /// How long a file system's attachment stays `PENDING`.
    #[serde(rename = "vfs_attach_ms", with = "milliseconds")]
    pub vfs_attach: Duration,
    /// How long a detached file system's attachment is still there.
    #[serde(rename = "vfs_detach_ms", with = "milliseconds")]
    pub vfs_detach: Duration,
    /// The status for deleting an attached file system: 422 or 409.
    pub vfs_in_use_status: u16,
    /// Whether all of `/v2/vfs` fails with a 503.
    pub vfs_down: bool,
}

/// What deleting an attached volume does.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeleteAttached {
    /// It is refused with a 400.
    Refuse,
    /// The volume is detached and deleted.
    Detach,
}

/// How the answers for one snapshot are wrapped: Vultr's client, its schema and its examples differ. List rows never are.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotAnswer {
    /// Not at all, as the client has it.
    Bare,
    /// As `block` after a create and as `snapshot` after a get, as the schema has it.
    Wrapped,
    /// As a list of one in `snapshot` after a create, as an example has it, and as `snapshot` after a get.
    Listed,
}

impl Default for Config {
    fn default() -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("vultr-sim-{}-{number}", std::process::id());
        Self {
            dir: std::env::temp_dir().join(name),
            token: "simulated-token".to_owned(),
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            api_port: 0,
            control_port: 0,
            metadata_listen: None,
            virtiofsd: None,
            instances: Vec::new(),
            disks: true,
            seed: 0,
            behaviour: Behaviour::default(),
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            create: Duration::from_secs(1),
            attach: Duration::from_secs(2),
            detach: Duration::from_secs(2),
            resize_every: Duration::from_secs(60),
            requests_per_second: 30,
            retry_after: true,
            delete_attached: DeleteAttached::Refuse,
            locked_status: 400,
            unknown_block_status: 404,
            unknown_block_text: "Invalid block storage ID".to_owned(),
            create_status: 202,
            list_block_type: false,
            guest_patience: Duration::from_secs(30),
            growth_seen_online: false,
            snapshot: Duration::from_secs(2),
            snapshot_fails: false,
            snapshot_answer: SnapshotAnswer::Bare,
            unknown_snapshot_status: 404,
            unknown_snapshot_text: "Invalid block storage snapshot ID".to_owned(),
            vfs_create: Duration::from_secs(1),
            vfs_attach: Duration::from_secs(2),
            vfs_detach: Duration::from_secs(2),
            vfs_in_use_status: 422,
            vfs_down: false,
        }
    }
}

impl Behaviour {
    /// A cloud that does everything at once, forgets the rule on resizes and has no rate limit: for tests of something else.
    #[must_use]
    pub fn instant() -> Self {
        Self {
            create: Duration::ZERO,
            attach: Duration::ZERO,
            detach: Duration::ZERO,
            resize_every: Duration::ZERO,
            snapshot: Duration::ZERO,
            vfs_create: Duration::ZERO,
            vfs_attach: Duration::ZERO,
            vfs_detach: Duration::ZERO,
            requests_per_second: 0,
            ..Self::default()
        }
    }

    /// Takes over the keys that the JSON object `changes` has and leaves the others.
    ///
    /// # Errors
    /// An unknown key, or a value of the wrong kind.
    pub fn changed(&self, changes: &serde_json::Value) -> io::Result<Self> {
        let mut all = serde_json::to_value(self)?;
        let (Some(all_keys), Some(new_keys)) = (all.as_object_mut(), changes.as_object()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "behaviour is a JSON object"));
        };
        all_keys.extend(new_keys.clone());
        serde_json::from_value(all).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
    }
}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_the_other_keys() {
        let changes = serde_json::json!({"attach_ms": 7, "delete_attached": "detach"});
        let new = Behaviour::default().changed(&changes).unwrap();
        assert_eq!(new.attach, Duration::from_millis(7));
        assert_eq!(new.delete_attached, DeleteAttached::Detach);
        assert_eq!(new.detach, Behaviour::default().detach);
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let changes = serde_json::json!({"atach_ms": 7});
        assert!(Behaviour::default().changed(&changes).is_err());
    }
}
