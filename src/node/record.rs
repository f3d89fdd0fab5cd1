//! The node's durable records: which volume is staged as which disk or share, and which disk a mkfs was begun on.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    device::Device,
    host::{Boot, DeviceNumber},
};
use crate::{
    error::Error,
    volume::{IdForm, VolumeId},
};

/// A volume is staged on this node, or about to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staged {
    /// The serial that its disk was proven by; of a share its mount tag.
    pub(crate) serial: String,
    /// The number of the device that is mounted or shown: the disk's, or that of what unlocks it. A share has one of the
    /// kernel's making for as long as it is mounted, and before that [`DeviceNumber::NONE`].
    pub(crate) device: DeviceNumber,
    /// It is a share.
    #[serde(default)]
    pub(crate) is_share: bool,
    /// The run of the kernel in which it was proven.
    #[serde(default)]
    pub(crate) boot_id: String,
    /// The disk's own number in that run.
    #[serde(default)]
    pub(crate) diskseq: Option<u64>,
    /// Where its file system is mounted for the node.
    #[serde(default)]
    pub(crate) staging_path: Option<PathBuf>,
    /// The disk was made read-only by us, for raw block publishes that are.
    #[serde(default)]
    pub(crate) set_read_only: bool,
    /// The staging path whose mount is made read-only for the moment in which it is bound to a read-only target.
    #[serde(default)]
    pub(crate) lent: Option<PathBuf>,
    /// What is mounted or shown is what was unlocked, never the disk itself.
    #[serde(default)]
    pub(crate) encrypted: bool,
    /// Its file system is trimmed once a week.
    #[serde(default)]
    pub(crate) trim: Option<Trim>,
}

/// When a file system was trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trim {
    /// In which week of the volume's, or when it was staged.
    pub(crate) week: u64,
}

/// A disk was proven to be this volume's and blank, and mkfs is about to start, or was cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Formatting {
    /// The volume.
    pub(crate) volume: String,
    /// The serial that its disk was proven by.
    pub(crate) serial: String,
    /// The disk's size in bytes.
    pub(crate) size: u64,
    /// The file system that mkfs makes.
    pub(crate) fs: String,
    /// The file system's UUID, which nobody else can have.
    pub(crate) uuid: String,
    /// The run of the kernel in which the disk was proven blank.
    pub(crate) boot_id: String,
    /// The disk's own number in that run.
    pub(crate) diskseq: Option<u64>,
    /// The disk is to be encrypted before.
    #[serde(default)]
    pub(crate) luks: Option<Luks>,
}

/// A blank disk is being made an encrypted one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Luks {
    /// Its UUID, which nobody else can have.
    pub(crate) uuid: String,
    /// luksFormat has ended; from here on mkfs may be at work in it.
    pub(crate) complete: bool,
}

impl Staged {
    /// The record of a volume that is staged as this disk, and nothing more.
    pub(crate) fn of(device: &Device) -> Self {
        Self {
            diskseq: device.diskseq(),
            encrypted: device.is_mapping(),
            ..Self::bare(device.serial(), device.number(), device.boot_id())
        }
    }

    /// The record of a volume that is staged as the share of this tag, and nothing more.
    pub(crate) fn of_share(tag: &str, number: DeviceNumber, boot: &Boot) -> Self {
        Self { is_share: true, ..Self::bare(tag, number, &boot.id) }
    }

    fn bare(serial: &str, device: DeviceNumber, boot_id: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            device,
            is_share: false,
            boot_id: boot_id.to_owned(),
            diskseq: None,
            staging_path: None,
            set_read_only: false,
            lent: None,
            encrypted: false,
            trim: None,
        }
    }

    /// The number of the disk in this run of the kernel, if it was proven in it.
    pub(crate) fn known_in(&self, boot: &Boot) -> Option<u64> {
        self.diskseq.filter(|_| self.boot_id == boot.id)
    }

    /// Whether it is of the volume as this very device.
    pub(crate) fn is_of(&self, device: &Device) -> bool {
        !self.is_share && self.serial == device.serial() && self.device == device.number()
    }

    /// The number of the share that was mounted in this run of the kernel, if it is the record of one.
    pub(crate) fn share_in(&self, boot: &Boot) -> Option<DeviceNumber> {
        (self.is_share && self.boot_id == boot.id && self.device != DeviceNumber::NONE).then_some(self.device)
    }
}

/// Something that is recorded of a volume.
pub(crate) trait Record: Serialize + DeserializeOwned + Send + 'static {
    /// The end of the file's name.
    const KIND: &'static str;
}

impl Record for Staged {
    const KIND: &'static str = "staged";
}

impl Record for Formatting {
    const KIND: &'static str = "formatting";
}

/// The records, one file each. Nothing returns before the disk beneath has it.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records in `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// What is recorded of `volume`.
    ///
    /// # Errors
    /// A record that cannot be understood is not the same as none.
    pub(crate) async fn load<R: Record>(&self, volume: &VolumeId) -> Result<Option<R>, Error> {
        let text = self
            .file::<R, _>(volume, |path| match fs::read(path) {
                Ok(text) => Ok(Some(text)),
                Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
                Err(cause) => Err(cause),
            })
            .await
            .map_err(|cause| Error::io("read", self.path::<R>(volume), cause))?;
        let Some(text) = text else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let path = self.path::<R>(volume);
            Error::Precondition(format!("the record {} cannot be understood: {error}", path.display()))
        })
    }

    /// What is recorded of all volumes. One record that cannot be understood is left out: it is told where it matters.
    pub(crate) async fn all<R: Record>(&self, form: IdForm) -> Result<Vec<(VolumeId, R)>, Error> {
        let failed = |cause| Error::io("list", &self.directory, cause);
        let mut entries = tokio::fs::read_dir(&self.directory).await.map_err(failed)?;
        let mut all = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let name = entry.file_name();
            let id =
                name.to_str().and_then(|name| name.strip_suffix(".json")?.strip_suffix(R::KIND)?.strip_suffix('.'));
            if let Some(volume) = id.and_then(|id| VolumeId::parse(form, id))
                && let Ok(Some(record)) = self.load::<R>(&volume).await
            {
                all.push((volume, record));
            }
        }
        Ok(all)
    }

    /// Records it, in place of what was recorded before.
    pub(crate) async fn save<R: Record>(&self, volume: &VolumeId, record: &R) -> Result<(), Error> {
        let text = serde_json::to_vec(record).expect("a record of strings and numbers is JSON");
        self.file::<R, _>(volume, move |path| {
            let new = path.with_extension("new");
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            sync_directory_of(path)
        })
        .await
        .map_err(|cause| Error::io("write", self.path::<R>(volume), cause))
    }

    /// Forgets it.
    pub(crate) async fn forget<R: Record>(&self, volume: &VolumeId) -> Result<(), Error> {
        self.file::<R, _>(volume, |path| match fs::remove_file(path) {
            Ok(()) => sync_directory_of(path),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(cause),
        })
        .await
        .map_err(|cause| Error::io("remove", self.path::<R>(volume), cause))
    }

    /// Whether nothing at all is recorded of `volume`.
    pub(crate) fn is_empty(&self, volume: &VolumeId) -> bool {
        !self.path::<Staged>(volume).exists() && !self.path::<Formatting>(volume).exists()
    }

    fn path<R: Record>(&self, volume: &VolumeId) -> PathBuf {
        self.directory.join(format!("{volume}.{}.json", R::KIND))
    }

    async fn file<R: Record, T: Send + 'static>(
        &self,
        volume: &VolumeId,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = self.path::<R>(volume);
        tokio::task::spawn_blocking(move || work(&path))
            .await
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked)))
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().expect("a record lies in a directory"))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_record_is_kept_replaced_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().to_owned());
        let volume = VolumeId::parse(IdForm::Decimal, "7").unwrap();
        assert!(records.is_empty(&volume));
        assert_eq!(records.load::<Staged>(&volume).await.unwrap(), None);
        let mut staged = Staged {
            serial: "s".to_owned(),
            device: DeviceNumber { major: 7, minor: 1 },
            is_share: false,
            boot_id: "b".to_owned(),
            diskseq: Some(1),
            staging_path: Some("/staging".into()),
            set_read_only: false,
            lent: Some("/staging".into()),
            encrypted: false,
            trim: Some(Trim { week: 7 }),
        };
        records.save(&volume, &staged).await.unwrap();
        staged.set_read_only = true;
        records.save(&volume, &staged).await.unwrap();
        assert_eq!(records.load::<Staged>(&volume).await.unwrap(), Some(staged.clone()));
        assert_eq!(records.all::<Staged>(IdForm::Decimal).await.unwrap(), [(volume.clone(), staged)]);
        assert_eq!(records.all::<Formatting>(IdForm::Decimal).await.unwrap(), []);
        records.forget::<Staged>(&volume).await.unwrap();
        records.forget::<Staged>(&volume).await.unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_torn_record_is_not_the_same_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path().to_owned());
        let volume = VolumeId::parse(IdForm::Decimal, "7").unwrap();
        fs::write(records.path::<Formatting>(&volume), "{").unwrap();
        assert!(matches!(records.load::<Formatting>(&volume).await, Err(Error::Precondition(_))));
    }
}
