//! Proof of a disk's identity (P2): every step that touches a disk takes a [`Device`], and that can only be had by
//! proof.
//!
//! The proof is that exactly one disk of the machine shows the serial that the cloud gave the volume, and that its
//! node, held open from then on, has the number that the kernel gives for it. A by-id link is a hint: a missing one is
//! fine, one that points elsewhere is an error. An unlocked encrypted disk is a device too, by the proof of its disk and
//! by the kernel's word that it lies on that disk and on nothing else. Nothing here looks at what the disk holds.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tracing::debug;

use super::host::{DeviceNumber, Disk, Found, Host, Mapping, Open, OpenDisk, Serial};
use crate::{error::Error, volume::VolumeId};

/// The first pause between two looks for a disk; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between two looks, since events can be lost.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// How cryptsetup marks what it unlocked.
const LUKS2_MAPPING: &str = "CRYPT-LUKS2-";

/// virtio-blk shows no more of a serial than this (virtio 1.2, section 5.2.6).
const VIRTIO_SERIAL_BYTES: usize = 20;

/// A disk that is proven to be a volume's, or the mapping that unlocks it, held open.
#[derive(Clone)]
pub(crate) struct Device {
    host: Arc<dyn Host>,
    volume: VolumeId,
    serial: String,
    disk: Disk,
    /// What unlocks the disk, if this is the device that is meant.
    mapping: Option<Disk>,
    node: PathBuf,
    /// While these are open the kernel gives their numbers to no other: of the device, and of the disk beneath.
    held: Arc<dyn OpenDisk>,
    _disk_held: Arc<dyn OpenDisk>,
}

/// Why there is no proof.
enum Doubt {
    /// Waiting may help.
    NotYet(Error),
    /// What was seen rules it out.
    Never(Error),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node.display(), self.number())
    }
}

impl Device {
    /// Proves the volume's disk, waiting until `deadline` for it to arrive. One that was proven before in this run of the
    /// kernel, by its `known` number in it, is so still when another disk's serial cannot be read.
    pub(crate) async fn arrive(
        host: &Arc<dyn Host>,
        link_prefix: &str,
        volume: &VolumeId,
        serial: &str,
        known: Option<u64>,
        deadline: Instant,
    ) -> Result<Self, Error> {
        // Before the first look, so that nothing comes unseen in between.
        let mut arrivals = host.arrivals();
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match Self::look(host, link_prefix, volume, serial, known).await {
                Ok(device) => return Ok(device),
                Err(Doubt::Never(error)) => return Err(error),
                Err(Doubt::NotYet(error)) => error,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(error);
            }
            debug!(%volume, reason = %error, "waiting for the disk");
            pause = match timeout(pause.min(left), arrivals.changed()).await {
                Ok(()) => FIRST_PAUSE,
                Err(_) => (pause * 2).min(LAST_PAUSE),
            };
        }
    }

    /// Proves the volume's disk, which has to be there by now.
    pub(crate) async fn prove(
        host: &Arc<dyn Host>,
        link_prefix: &str,
        volume: &VolumeId,
        serial: &str,
        known: Option<u64>,
    ) -> Result<Self, Error> {
        Self::look(host, link_prefix, volume, serial, known).await.map_err(|doubt| match doubt {
            Doubt::NotYet(error) | Doubt::Never(error) => error,
        })
    }

    async fn look(
        host: &Arc<dyn Host>,
        prefix: &str,
        volume: &VolumeId,
        serial: &str,
        known: Option<u64>,
    ) -> Result<Self, Doubt> {
        let disks = host.disks().await.map_err(Doubt::NotYet)?;
        let Some(disk) = only_match(&disks, volume, serial, known).map_err(Doubt::Never)? else {
            let with_serial = disks.iter().filter(|disk| disk.serial != Serial::Absent);
            let found: Vec<_> = with_serial.map(|disk| disk.name.as_str()).collect();
            return Err(Doubt::NotYet(Error::NotYet(format!(
                "volume {volume}: no disk of this machine shows serial {serial} yet (disks with a serial: {})",
                if found.is_empty() { "none".to_owned() } else { found.join(", ") },
            ))));
        };
        let node = host.paths().dev_dir.join(&disk.name);
        let held = match host.open(&node, Open::Shared).await {
            Ok(held) => held,
            Err(cause) if cause.kind() == ErrorKind::NotFound => {
                let problem = format!("volume {volume}: disk {} has no node {} yet", disk.name, node.display());
                return Err(Doubt::NotYet(Error::NotYet(problem)));
            }
            Err(cause) => return Err(Doubt::Never(Error::io("open", node, cause))),
        };
        let device = Self {
            host: Arc::clone(host),
            volume: volume.clone(),
            serial: serial.to_owned(),
            disk: disk.clone(),
            mapping: None,
            node,
            _disk_held: Arc::clone(&held),
            held,
        };
        if device.held.number() != disk.number {
            let problem = format!("is device {}, but {} is {}", device.held.number(), disk.name, disk.number);
            return Err(Doubt::NotYet(device.refused(&problem)));
        }
        device.check_link(&host.paths().device_dir.join(format!("{prefix}{serial}"))).await?;
        Ok(device)
    }

    /// The mapping of that name, if there is one, once it is proven to lie on this disk and on nothing else.
    ///
    /// # Errors
    /// [`Error::Precondition`] if it lies on something else.
    pub(crate) async fn mapped(&self, name: &str) -> Result<Option<Self>, Error> {
        let disks = self.host.disks().await?;
        let Some(mapping) = mapping_in(&disks, name) else { return Ok(None) };
        if !lies_on(mapping, name, self.disk.number) {
            let problem = format!("is not what the mapping {name} ({}) lies on", mapping.name);
            return Err(self.refused(&problem));
        }
        let node = self.host.paths().dev_dir.join(&mapping.name);
        let held = self.host.open(&node, Open::Shared).await.map_err(|cause| Error::io("open", &node, cause))?;
        let number = held.number();
        let device = Self { mapping: Some(mapping.clone()), node, held, ..self.clone() };
        if number != device.number() {
            return Err(device.refused(&format!("is device {number}, not {}", device.number())));
        }
        device.verify().await?;
        Ok(Some(device))
    }

    async fn check_link(&self, link: &Path) -> Result<(), Doubt> {
        let elsewhere = match self.host.look(link, true).await {
            Ok(Found::Nothing) => return Ok(()),
            Ok(Found::Block(number)) if number == self.number() => return Ok(()),
            Ok(Found::Block(number)) => format!("device {number}"),
            Ok(_) => "something that is no block device".to_owned(),
            Err(cause) => return Err(Doubt::NotYet(Error::io("look at", link, cause))),
        };
        // udev may not be done yet; if it stays so, somebody has to find out what is wrong with this machine.
        Err(Doubt::NotYet(Error::Precondition(format!(
            "volume {}: serial {} is disk {} ({}), but the link {} points to {elsewhere}; nothing was touched",
            self.volume,
            self.serial,
            self.disk.name,
            self.number(),
            link.display(),
        ))))
    }

    /// Proves again that this is the volume's disk, before a step that would harm another; gives its size in bytes as
    /// the kernel sees it now.
    pub(crate) async fn verify(&self) -> Result<u64, Error> {
        let disks = self.host.disks().await?;
        let now = only_match(&disks, &self.volume, &self.serial, self.disk.diskseq)?
            .ok_or_else(|| self.refused("went away while it was worked on"))?;
        if (&now.name, now.number, now.diskseq) != (&self.disk.name, self.disk.number, self.disk.diskseq) {
            let problem =
                format!("was swapped while it was worked on: its serial is now at {} ({})", now.name, now.number);
            return Err(self.refused(&problem));
        }
        let size = match &self.mapping {
            None => now.size,
            Some(mapping) => {
                disks
                    .iter()
                    .find(|other| other.number == mapping.number && other.mapping == mapping.mapping)
                    .ok_or_else(|| self.refused("was locked while it was worked on"))?
                    .size
            }
        };
        match self.host.look(&self.node, false).await {
            Ok(Found::Block(number)) if number == self.number() => Ok(size),
            Ok(_) => Err(self.refused("has another node now")),
            Err(cause) => Err(Error::io("look at", &self.node, cause)),
        }
    }

    fn refused(&self, problem: &str) -> Error {
        let (volume, node) = (&self.volume, self.node.display());
        Error::Precondition(format!("volume {volume}: disk {node} {problem}; nothing was touched"))
    }

    /// The volume that this is the disk of.
    pub(crate) fn volume(&self) -> &VolumeId {
        &self.volume
    }

    /// The serial that proved it.
    pub(crate) fn serial(&self) -> &str {
        &self.serial
    }

    /// The device's number.
    pub(crate) fn number(&self) -> DeviceNumber {
        self.top().number
    }

    /// The device's size in bytes when it was proven.
    pub(crate) fn size(&self) -> u64 {
        self.top().size
    }

    /// The size in bytes of the disk itself.
    pub(crate) fn disk_size(&self) -> u64 {
        self.disk.size
    }

    /// Whether this is a mapping that unlocks the disk, not the disk.
    pub(crate) fn is_mapping(&self) -> bool {
        self.mapping.is_some()
    }

    fn top(&self) -> &Disk {
        self.mapping.as_ref().unwrap_or(&self.disk)
    }

    /// The disk's number in this run of the kernel, if that gives any.
    pub(crate) fn diskseq(&self) -> Option<u64> {
        self.disk.diskseq
    }

    /// The run of the kernel in which it was proven.
    pub(crate) fn boot_id(&self) -> &str {
        &self.host.boot().id
    }

    /// The device's node.
    pub(crate) fn node(&self) -> &Path {
        &self.node
    }

    /// The device's node, for a program's arguments.
    pub(crate) fn node_str(&self) -> &str {
        self.node.to_str().expect("the name in sysfs is UTF-8, and so is the configured directory")
    }

    /// The open device.
    pub(crate) fn held(&self) -> Arc<dyn OpenDisk> {
        Arc::clone(&self.held)
    }
}

/// The mapping of that name, if there is one.
pub(super) fn mapping_in<'a>(disks: &'a [Disk], name: &str) -> Option<&'a Disk> {
    disks.iter().find(|disk| disk.mapping.as_ref().is_some_and(|mapping| mapping.name == name))
}

/// Whether this is the mapping of that name, on the disk of that number and on nothing else.
pub(super) fn lies_on(disk: &Disk, name: &str, number: DeviceNumber) -> bool {
    let is =
        |mapping: &Mapping| mapping.name == name && mapping.uuid.starts_with(LUKS2_MAPPING) && mapping.over == [number];
    disk.mapping.as_ref().is_some_and(is)
}

/// The one disk of `serial`, if any.
fn only_match<'a>(
    disks: &'a [Disk],
    volume: &VolumeId,
    serial: &str,
    known: Option<u64>,
) -> Result<Option<&'a Disk>, Error> {
    if serial.trim().is_empty() {
        return Err(Error::invalid("publish_context", format!("names no serial for volume {volume}")));
    }
    let mut matches = disks.iter().filter(|disk| matches!(&disk.serial, Serial::Text(shown) if is_same(shown, serial)));
    let (one, other) = (matches.next(), matches.next());
    let was_proven = known.is_some() && one.is_some_and(|one| one.diskseq == known);
    for disk in disks {
        if let Serial::Unreadable(cause) = &disk.serial
            && !was_proven
        {
            return Err(Error::Precondition(format!(
                "volume {volume}: the serial of disk {} cannot be read ({cause}), so no disk can be proven to be the \
                 only one of serial {serial}; nothing was touched",
                disk.name
            )));
        }
    }
    match (one, other) {
        (Some(one), Some(other)) => Err(Error::Precondition(format!(
            "volume {volume}: both {} ({}) and {} ({}) show serial {serial}; nothing was touched",
            one.name, one.number, other.name, other.number
        ))),
        (found, _) => Ok(found),
    }
}

/// Whether a disk that shows `shown` has the serial `wanted`.
pub(crate) fn is_same(shown: &str, wanted: &str) -> bool {
    let wanted = wanted.trim();
    shown == wanted
        || (shown.len() == VIRTIO_SERIAL_BYTES
            && wanted.len() > VIRTIO_SERIAL_BYTES
            && wanted.as_bytes().starts_with(shown.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::IdForm;

    fn disk(name: &str, minor: u64, serial: Serial) -> Disk {
        let number = DeviceNumber { major: 252, minor };
        Disk {
            name: name.to_owned(),
            number,
            size: 1 << 30,
            diskseq: None,
            serial,
            partitions: Vec::new(),
            mapping: None,
        }
    }

    fn text(serial: &str) -> Serial {
        Serial::Text(serial.to_owned())
    }

    #[test]
    fn serials_are_equal_whole_or_as_virtio_cuts_them() {
        for (shown, wanted, same) in [
            ("ewr-0123456789abcd", "ewr-0123456789abcd", true),
            ("ewr-0123456789abcd", "ewr-0123456789abce", false),
            ("ewr-0123456789abc", "ewr-0123456789abcd", false),
            ("01234567890123456789", "0123456789012345678901234", true),
            ("0123456789012345678", "0123456789012345678901234", false),
            ("01234567890123456789", "0123456789012345678", false),
        ] {
            assert_eq!(is_same(shown, wanted), same, "{shown} {wanted}");
        }
    }

    #[test]
    fn only_one_disk_of_the_serial_and_none_in_doubt_is_a_match() {
        let volume = VolumeId::parse(IdForm::Decimal, "7").unwrap();
        let one = [disk("vda", 0, text("boot")), disk("vdb", 16, text("s")), disk("loop0", 1, Serial::Absent)];
        assert_eq!(only_match(&one, &volume, "s", None).unwrap().unwrap().name, "vdb");
        assert_eq!(only_match(&one, &volume, "t", None).unwrap(), None);
        let two = [disk("vdb", 16, text("s")), disk("vdc", 32, text("s"))];
        let error = only_match(&two, &volume, "s", Some(1)).unwrap_err();
        assert!(error.to_string().contains("vdb") && error.to_string().contains("vdc"), "{error}");
        let doubt = [disk("vdb", 16, text("s")), disk("vdc", 32, Serial::Unreadable("EIO".to_owned()))];
        assert!(only_match(&doubt, &volume, "s", None).unwrap_err().to_string().contains("vdc"));
        assert!(only_match(&doubt, &volume, "s", Some(2)).is_err());
        let known = [Disk { diskseq: Some(1), ..doubt[0].clone() }, doubt[1].clone()];
        assert_eq!(only_match(&known, &volume, "s", Some(1)).unwrap().unwrap().name, "vdb");
        assert!(only_match(&known, &volume, "s", Some(2)).is_err());
        let empty = [disk("vda", 0, text(""))];
        assert!(matches!(only_match(&empty, &volume, " ", None), Err(Error::Invalid { .. })));
    }
}
