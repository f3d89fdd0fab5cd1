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

use tracing::{info, warn};

use super::{
    Core, blank,
    device::Device,
    filesystem::{self, Content},
    host::Open,
    lock::Lock,
    record::Formatting,
};
use crate::{
    error::Error,
    volume::{FsType, Gib},
};

/// All first superblocks lie in here; a cut-off mkfs left nothing else that another mkfs would refuse.
const HEAD_BYTES: usize = 128 << 10;

/// What is asked of a disk's content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The file system, if it matters.
    pub(super) fs: Option<FsType>,
    /// The cloud's word on the size, if it gave one.
    pub(super) size: Option<Gib>,
    /// A blank disk may be formatted.
    pub(super) blank: bool,
}

impl Core {
    /// The file system on the disk, which is made if the disk is blank and may be formatted.
    pub(super) async fn file_system(&self, device: &Device, wanted: Wanted, lock: &Lock) -> Result<FsType, Error> {
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
            (Content::Other(found), _) => {
                return Err(refused(device, format!("it holds {found}"), "only ext4, xfs and btrfs are mounted"));
            }
            (Content::FileSystem { fs, uuid, complete: false }, record) => match record {
                Some(record) if record.uuid == uuid => self.redo(device, &record, wanted, lock).await?,
                _ => {
                    let found = format!("it holds {fs} whose mkfs was cut off, and not one of this node");
                    return Err(refused(device, found, "format it by hand if nothing of it is needed"));
                }
            },
            (Content::Nothing, Some(record)) => self.redo(device, &record, wanted, lock).await?,
            (Content::Nothing, None) => self.format(device, wanted, lock).await?,
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

    async fn format(&self, device: &Device, wanted: Wanted, lock: &Lock) -> Result<FsType, Error> {
        if !wanted.blank {
            return Err(refused(
                device,
                "it holds nothing that is known here, and its volume was not made blank by this driver".to_owned(),
                "if it is meant to be blank, set the attribute `format: if-blank` on its PersistentVolume",
            ));
        }
        let host = self.host.as_ref();
        blank::prove(device, host, wanted.size.map(Gib::bytes)).await?;
        // Once more, now that the whole of where it looks is known to be readable.
        match filesystem::probe(host, device, lock).await? {
            Content::Nothing => {}
            found => return Err(refused(device, format!("it holds {found:?}"), "repeat the call")),
        }
        let fs = wanted.fs.unwrap_or_default();
        let uuid = host.new_uuid().map_err(|cause| Error::io("make a UUID for", device.node(), cause))?;
        let record = Formatting {
            volume: device.volume().to_string(),
            serial: device.serial().to_owned(),
            size: device.size(),
            fs: fs.as_str().to_owned(),
            uuid,
            boot_id: host.boot().id.clone(),
            diskseq: device.diskseq(),
        };
        self.records.save(device.volume(), &record).await?;
        self.make(device, fs, &record.uuid, lock).await
    }

    /// Finishes a mkfs that was cut off, if this is the disk that it worked on and nobody else had it since.
    async fn redo(&self, device: &Device, record: &Formatting, wanted: Wanted, lock: &Lock) -> Result<FsType, Error> {
        let host = self.host.as_ref();
        let fs = FsType::parse(&record.fs).unwrap_or_default();
        let is_the_disk = record.volume == device.volume().as_str()
            && record.serial == device.serial()
            && record.size == device.size();
        // The kernel gives no diskseq twice: a disk that was away in between has another.
        let never_left =
            record.boot_id == host.boot().id && record.diskseq.is_some() && record.diskseq == device.diskseq();
        if !is_the_disk || !never_left && filesystem::has_traces(device, fs).await? {
            let found = format!(
                "a mkfs of {fs} was cut off on a disk of serial {} and {} bytes, and this one may hold something newer",
                record.serial, record.size
            );
            return Err(refused(device, found, &self.remove_record(device)));
        }
        if !never_left {
            // It was away, or may have been: what the record proves is that it once was blank, so prove it again.
            info!(volume = %device.volume(), "the disk may have been away since its mkfs was cut off");
            self.records.forget::<Formatting>(device.volume()).await?;
            return self.format(device, Wanted { blank: true, fs: wanted.fs.or(Some(fs)), ..wanted }, lock).await;
        }
        warn!(volume = %device.volume(), device = %device.node_str(), %fs, "a mkfs was cut off; doing it again");
        device.verify().await?;
        let disk =
            host.open(device.node(), Open::Write).await.map_err(|cause| Error::io("open", device.node(), cause))?;
        if disk.number() != device.number() {
            return Err(refused(device, format!("its node is device {} now", disk.number()), "repeat the call"));
        }
        let wipe = move || disk.write_zeroes(0, HEAD_BYTES).and_then(|()| disk.sync());
        tokio::task::spawn_blocking(wipe)
            .await
            .map_err(|panicked| Error::Panicked(panicked.to_string()))?
            .map_err(|cause| Error::io("wipe", device.node(), cause))?;
        self.make(device, fs, &record.uuid, lock).await
    }

    async fn make(&self, device: &Device, fs: FsType, uuid: &str, lock: &Lock) -> Result<FsType, Error> {
        filesystem::make(self.host.as_ref(), device, fs, uuid, lock).await?;
        self.finish(device).await?;
        Ok(fs)
    }

    /// The file system is whole: once the disk has it, the record has served.
    async fn finish(&self, device: &Device) -> Result<(), Error> {
        let disk = device.held();
        tokio::task::spawn_blocking(move || disk.sync())
            .await
            .map_err(|panicked| Error::Panicked(panicked.to_string()))?
            .map_err(|cause| Error::io("sync", device.node(), cause))?;
        self.records.forget::<Formatting>(device.volume()).await
    }

    fn remove_record(&self, device: &Device) -> String {
        let path = self.host.paths().state_dir.join(format!("{}.formatting.json", device.volume()));
        format!("if what it holds is wanted, remove {} on this node", path.display())
    }
}

fn refused(device: &Device, found: String, remedy: &str) -> Error {
    Error::DiskRefused {
        volume: device.volume().to_string(),
        device: device.node().display().to_string(),
        found,
        remedy: remedy.to_owned(),
    }
}
