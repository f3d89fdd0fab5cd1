//! Which file system a volume's disk has, and making it where, and only where, the disk is proven blank (P1).
//!
//! ```text
//!            probe ──ours, whole──────────────────────────────► use it
//!              │
//!              ├─anything else that has a name────────────────► refuse
//!              │
//!           nothing, may be formatted ──blank? no─────────────► refuse
//!              │ yes
//!           record "proven blank, mkfs about to start"
//!              │                      ▲
//!            mkfs ── cut off ── probe │ nothing whole: the record holds and the
//!              │                      │ disk cannot have been elsewhere: wipe, redo
//!           sync the disk             └ otherwise ─────────────► refuse
//!              │
//!           forget the record ────────────────────────────────► use it
//! ```
//!
//! An encrypted disk takes the same way twice: `encrypt`.

use tracing::{info, warn};

use super::{
    Core, blank,
    device::Device,
    filesystem::{self, Content},
    host::{Open, on_disk},
    lock::Lock,
    mkfs,
    record::{Formatting, Luks},
};
use crate::{
    error::{Error, Refusal},
    volume::{FsType, Gib, MkfsOptions},
};

/// All first superblocks lie in here; a cut-off mkfs left nothing else that another mkfs would refuse.
const HEAD_BYTES: usize = 128 << 10;

/// What is asked of a disk's content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The file system, if it matters.
    pub(super) fs: Option<FsType>,
    /// The cloud's word on the size, if it gave one.
    pub(super) size: Option<Gib>,
    /// A blank disk may be formatted.
    pub(super) blank: bool,
    /// How its file system is laid out.
    pub(super) mkfs_options: &'a MkfsOptions,
    /// What is deleted is to be told to the disk, also through its encryption.
    pub(super) discard: bool,
}

impl Core {
    /// The file system on the device, which is made if the disk is blank and may be formatted.
    pub(super) async fn file_system(&self, device: &Device, wanted: Wanted<'_>, lock: &Lock) -> Result<FsType, Error> {
        let host = self.host.as_ref();
        let record = self.records.load::<Formatting>(device.volume()).await?;
        let found = filesystem::probe(host, device, lock).await?;
        let fs = match (found, record) {
            (Content::FileSystem { fs, uuid, complete: true }, Some(record)) => {
                if fs.as_str() != record.fs || uuid != record.uuid {
                    // The disk was blank when the record was made, so what it holds now is newer, and somebody's.
                    warn!(volume = %device.volume(), %fs, uuid, "was formatted elsewhere since our own mkfs was cut off");
                }
                self.finish(device).await?;
                fs
            }
            (Content::FileSystem { fs, complete: true, .. }, None) => fs,
            (Content::FileSystem { fs, uuid, complete: false }, record) => match record {
                Some(record) if record.uuid == uuid => self.redo(device, record, wanted, lock).await?,
                _ => {
                    let found = format!("it holds {fs} whose mkfs was cut off, and not one of this node");
                    return Err(refused(
                        device,
                        Refusal::HalfMade,
                        found,
                        "format it by hand if nothing of it is needed",
                    ));
                }
            },
            (Content::Nothing, Some(record)) => self.redo(device, record, wanted, lock).await?,
            (Content::Nothing, None) if device.is_mapping() => {
                let found = "it was unlocked, and what is in it is nothing that is known here";
                return Err(refused(
                    device,
                    Refusal::NotBlank,
                    found.to_owned(),
                    "look at it; if nothing of it is needed make a new volume",
                ));
            }
            (Content::Nothing, None) => {
                let record = self.proven_blank(device, wanted, None, lock).await?;
                self.make(device, &record, wanted, lock).await?
            }
            (found @ (Content::Luks { .. } | Content::Other(_)), _) => {
                let remedy = "only ext4, xfs and btrfs are mounted, encrypted ones if the attribute `encrypted` of the \
                              PersistentVolume says so";
                return Err(refused(device, Refusal::Foreign, format!("it holds {found}"), remedy));
            }
        };
        match wanted.fs {
            Some(asked) if asked != fs => Err(Error::Precondition(format!(
                "volume {}: disk {} holds {fs}, {asked} was asked for; data is never reformatted",
                device.volume(),
                device.node().display()
            ))),
            _ => Ok(fs),
        }
    }

    /// Proves that the disk may be formatted and is blank, and records that.
    pub(super) async fn proven_blank(
        &self,
        device: &Device,
        wanted: Wanted<'_>,
        luks: Option<Luks>,
        lock: &Lock,
    ) -> Result<Formatting, Error> {
        if !wanted.blank {
            return Err(refused(
                device,
                Refusal::NotBlank,
                "it holds nothing that is known here, and its volume was not made blank by this driver".to_owned(),
                "if it is meant to be blank, make the claim anew, or a PersistentVolume that was written by hand anew with \
                 the attribute `format: if-blank`",
            ));
        }
        let host = self.host.as_ref();
        blank::prove(device, host, wanted.size.map(Gib::bytes)).await?;
        // Once more, now that the whole of where it looks is known to be readable.
        match filesystem::probe(host, device, lock).await? {
            Content::Nothing => {}
            found => return Err(refused(device, Refusal::Foreign, format!("it holds {found}"), "repeat the call")),
        }
        let fs = wanted.fs.unwrap_or_default();
        mkfs::try_on_paper(host, device, fs, wanted.mkfs_options.arguments(fs), lock).await?;
        let uuid = host.new_uuid().map_err(|cause| Error::io("make a UUID for", device.node(), cause))?;
        let record = Formatting {
            volume: device.volume().to_string(),
            serial: device.serial().to_owned(),
            size: device.size(),
            fs: fs.as_str().to_owned(),
            uuid,
            boot_id: host.boot().id.clone(),
            diskseq: device.diskseq(),
            luks,
        };
        self.records.save(device.volume(), &record).await?;
        Ok(record)
    }

    /// Whether nothing but our own cut-off mkfs can have written to the disk since it was proven blank.
    pub(super) fn never_left(&self, device: &Device, record: &Formatting) -> bool {
        // The kernel gives no diskseq twice: a disk that was away in between has another.
        record.boot_id == self.host.boot().id && record.diskseq.is_some() && record.diskseq == device.diskseq()
    }

    /// Whether the record is of this disk. It may have grown since.
    pub(super) fn is_of(device: &Device, record: &Formatting) -> bool {
        record.volume == device.volume().as_str()
            && record.serial == device.serial()
            && record.size <= device.disk_size()
    }

    /// Finishes a mkfs that was cut off, or never began, if this is the disk that it was for and nobody else had it
    /// since.
    async fn redo(
        &self,
        device: &Device,
        mut record: Formatting,
        wanted: Wanted<'_>,
        lock: &Lock,
    ) -> Result<FsType, Error> {
        let fs = FsType::parse(&record.fs).unwrap_or_default();
        let never_left = self.never_left(device, &record);
        if record.luks.is_some() != device.is_mapping()
            || !Self::is_of(device, &record)
            || !never_left && (device.is_mapping() || filesystem::has_traces(device, fs).await?)
        {
            return Err(self.may_be_newer(device, &record));
        }
        if !never_left {
            // It was away, or may have been: what the record proves is that it once was blank, so prove it again.
            info!(volume = %device.volume(), "the disk may have been away since its mkfs was cut off");
            let wanted = Wanted { blank: true, fs: wanted.fs.or(Some(fs)), ..wanted };
            let record = self.proven_blank(device, wanted, None, lock).await?;
            return self.make(device, &record, wanted, lock).await;
        }
        if let Some(asked) = wanted.fs.filter(|asked| *asked != fs) {
            asked.as_str().clone_into(&mut record.fs);
            self.records.save(device.volume(), &record).await?;
        }
        info!(volume = %device.volume(), device = %device.node_str(), fs = record.fs, "making the recorded file system");
        self.wipe(device).await?;
        self.make(device, &record, wanted, lock).await
    }

    /// Takes away what a mkfs that was cut off left at the head, which the next one would refuse; of an encrypted disk
    /// that is what noise decrypts to.
    pub(super) async fn wipe(&self, device: &Device) -> Result<(), Error> {
        device.verify().await?;
        let node = device.node();
        let disk = self.host.open(node, Open::Write).await.map_err(|cause| Error::io("open", node, cause))?;
        if disk.number() != device.number() {
            return Err(refused(
                device,
                Refusal::Swapped,
                format!("its node is device {} now", disk.number()),
                "repeat the call",
            ));
        }
        on_disk(disk, "wipe", node, |disk| disk.write_zeroes(0, HEAD_BYTES).and_then(|()| disk.sync())).await
    }

    async fn make(
        &self,
        device: &Device,
        record: &Formatting,
        wanted: Wanted<'_>,
        lock: &Lock,
    ) -> Result<FsType, Error> {
        let fs = FsType::parse(&record.fs).unwrap_or_default();
        let options = wanted.mkfs_options.arguments(fs);
        mkfs::make(self.host.as_ref(), device, fs, &record.uuid, options, lock).await?;
        self.finish(device).await?;
        self.metrics.formatted(fs.as_str());
        Ok(fs)
    }

    /// What was to be made is whole: once the disk has it, the record has served.
    pub(super) async fn finish(&self, device: &Device) -> Result<(), Error> {
        sync(device).await?;
        self.records.forget::<Formatting>(device.volume()).await
    }

    pub(super) fn may_be_newer(&self, device: &Device, record: &Formatting) -> Error {
        let found = format!(
            "a mkfs of {} was cut off on a disk of serial {} and {} bytes, and this one may hold something newer",
            record.fs, record.serial, record.size
        );
        refused(device, Refusal::HalfMade, found, &self.remove_record(device))
    }

    fn remove_record(&self, device: &Device) -> String {
        let path = self.host.paths().state_dir.join(format!("{}.formatting.json", device.volume()));
        format!(
            "look at it: if what it holds is wanted remove {} on this node, if not make a new volume",
            path.display()
        )
    }
}

/// Brings everything written to the device to its medium.
pub(super) async fn sync(device: &Device) -> Result<(), Error> {
    on_disk(device.held(), "sync", device.node(), |disk| disk.sync()).await
}

/// The error of a device that is not touched, for what was found on it.
pub(super) fn refused(device: &Device, why: Refusal, found: String, remedy: &str) -> Error {
    Error::DiskRefused {
        why,
        volume: device.volume().to_string(),
        device: device.node().display().to_string(),
        found,
        remedy: remedy.to_owned(),
    }
}
