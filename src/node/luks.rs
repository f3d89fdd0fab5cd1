//! Encrypted disks: LUKS2, unlocked as a mapping that is named after the volume.
//!
//! ```text
//!  disk proven ──mapping of the volume's name?──on this disk──────────────► unlocked
//!                       │ no          └─on another, or on none: locked first if nothing uses it
//!                     probe ──LUKS2──key fits? no──► INVALID_ARGUMENT
//!                       │        └─yes───────────────────────────────────► unlocked
//!                       ├─anything else that has a name──────────────────► refuse
//!                       └─nothing: proven blank, recorded, formatted (`format`) ──► unlocked
//! ```
//!
//! The key comes with the call and goes to cryptsetup through a pipe; nothing of it is kept. Whether a disk may be
//! formatted is decided where it is for file systems: in `format`, on `blank`'s proof.

use tracing::{info, warn};

use super::{
    Core,
    device::{self, Device},
    host::{Disk, Host, Output, Tool},
    key::Key,
    lock::Lock,
};
use crate::{error::Error, volume::VolumeId};

/// The key derivation takes no more memory than this, in KiB: cryptsetup's own default of up to 1 GiB is more than a
/// container has.
const DERIVATION_KIB: &str = "65536";

/// How long the key derivation takes on this machine: each unlocking keeps a pod waiting for so long.
const DERIVATION_MILLIS: &str = "1000";

/// No header of LUKS2 is larger, and no cloud grows a disk by less: so much a mapping may be smaller than its disk.
const HEADER_AT_MOST: u64 = 512 << 20;

/// cryptsetup(8): the key does not fit.
const WRONG_KEY: i32 = 2;
/// cryptsetup(8): the device is busy, or exists already.
const BUSY: i32 = 5;

/// Where a `StorageClass` names the Secret that a growth gets.
const EXPAND_SECRET: &str = "csi.storage.k8s.io/node-expand-secret-name";

/// The name of the key among the secrets of a call.
pub(crate) const PASSPHRASE: &str = "passphrase";

/// The name of the mapping that unlocks a volume.
pub(super) fn name(volume: &VolumeId) -> String {
    format!("csi-{volume}")
}

/// Makes the disk an encrypted one with `uuid`. It is proven to be blank, or to hold nothing but what an earlier try left.
pub(super) async fn format(host: &dyn Host, device: &Device, uuid: &str, key: &Key, lock: &Lock) -> Result<(), Error> {
    let arguments = [
        "luksFormat",
        // It asks nobody; the proof is ours.
        "--batch-mode",
        "--disable-locks",
        "--type=luks2",
        "--uuid",
        uuid,
        "--pbkdf=argon2id",
        "--pbkdf-memory",
        DERIVATION_KIB,
        "--pbkdf-parallel=1",
        "--iter-time",
        DERIVATION_MILLIS,
        "--key-file=-",
        device.node_str(),
    ];
    device.verify().await?;
    host.run(Tool::Cryptsetup, &arguments, Some(key), lock).await?.ok(Tool::Cryptsetup, device.node())?;
    info!(volume = %device.volume(), device = %device.node_str(), "made an encrypted disk");
    Ok(())
}

impl Core {
    /// Unlocks the disk, which holds LUKS2, or finds it unlocked.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the key does not fit.
    pub(super) async fn unlock(&self, device: &Device, key: &Key, discard: bool, lock: &Lock) -> Result<Device, Error> {
        let (volume, name) = (device.volume(), name(device.volume()));
        if let Some(open) = device.mapped(&name).await? {
            return Ok(open);
        }
        let mut arguments = vec!["open", "--type=luks2", "--disable-locks", "--key-file=-"];
        if discard {
            arguments.push("--allow-discards");
        }
        arguments.extend([device.node_str(), &name]);
        device.verify().await?;
        let output = self.host.run(Tool::Cryptsetup, &arguments, Some(key), lock).await?;
        if output.code == Some(WRONG_KEY) {
            return Err(wrong_key(volume));
        }
        // One that was told to end in the middle of it unlocks the disk all the same, and says that it did not
        // (cryptsetup 2.6, seen 2026-11): the kernel's word counts.
        let Some(open) = device.mapped(&name).await? else {
            output.ok(Tool::Cryptsetup, device.node())?;
            let problem = format!("volume {volume}: cryptsetup unlocked it, but the kernel shows no mapping {name}");
            return Err(Error::NotYet(problem));
        };
        info!(%volume, device = %device.node_str(), mapping = name, "unlocked");
        Ok(open)
    }

    /// Locks a mapping of the volume's name that lies on another disk, or on one that is gone.
    pub(super) async fn lock_stale(&self, device: &Device, lock: &Lock) -> Result<(), Error> {
        let name = name(device.volume());
        let disks = self.host.disks().await?;
        match device::mapping_in(&disks, &name) {
            Some(stale) if !device::lies_on(stale, &name, device.number()) => {
                warn!(volume = %device.volume(), mapping = name, "another mapping has the name, of a disk that was taken away or not ours; locking that");
                self.lock_mapping(device.volume(), stale, false, lock).await
            }
            _ => Ok(()),
        }
    }

    /// Locks the volume, if it is unlocked. Whatever is mapped there takes no more reads and writes afterwards.
    ///
    /// # Errors
    /// [`Error::Precondition`] if something still uses it.
    pub(super) async fn lock_volume(&self, volume: &VolumeId, lock: &Lock) -> Result<(), Error> {
        let Some(mapping) = self.mapping(volume).await? else { return Ok(()) };
        // One whose disk is gone may be in use for as long as somebody has a file open; it goes with the last of them.
        let is_gone = match mapping.mapping.as_ref().map(|mapping| mapping.over.as_slice()) {
            Some([number]) => !self.exists(*number).await?,
            _ => true,
        };
        self.lock_mapping(volume, &mapping, is_gone, lock).await
    }

    async fn lock_mapping(&self, volume: &VolumeId, mapping: &Disk, later: bool, lock: &Lock) -> Result<(), Error> {
        let name = name(volume);
        let mut arguments = vec!["close", "--disable-locks"];
        if later {
            arguments.push("--deferred");
        }
        arguments.push(&name);
        let output: Output = self.host.run(Tool::Cryptsetup, &arguments, None, lock).await?;
        let node = self.host.paths().dev_dir.join(&mapping.name);
        if output.code == Some(BUSY) {
            return Err(Error::Precondition(format!(
                "volume {volume}: the mapping {name} ({}) is in use, so its disk was not locked; find out what on this \
                 node uses it",
                node.display()
            )));
        }
        output.ok(Tool::Cryptsetup, &node)?;
        info!(%volume, mapping = name, "locked");
        Ok(())
    }

    /// Makes the mapping as large as its disk now is. Without a key only one that is as large already passes.
    pub(super) async fn grow_mapping(&self, device: &Device, key: Option<&Key>, lock: &Lock) -> Result<(), Error> {
        let Some(key) = key else {
            let is_whole = device.disk_size().saturating_sub(device.size()) <= HEADER_AT_MOST;
            return if is_whole { Ok(()) } else { Err(no_key(EXPAND_SECRET)) };
        };
        let name = name(device.volume());
        device.verify().await?;
        let arguments = ["resize", "--disable-locks", "--key-file=-", &name];
        let output = self.host.run(Tool::Cryptsetup, &arguments, Some(key), lock).await?;
        if output.code == Some(WRONG_KEY) {
            return Err(wrong_key(device.volume()));
        }
        output.ok(Tool::Cryptsetup, device.node()).map(drop)
    }

    /// The mapping of the volume's name, whichever disk it lies on.
    pub(super) async fn mapping(&self, volume: &VolumeId) -> Result<Option<Disk>, Error> {
        Ok(device::mapping_in(&self.host.disks().await?, &name(volume)).cloned())
    }
}

/// The error of an encrypted volume whose call brings no key.
pub(crate) fn no_key(parameter: &str) -> Error {
    Error::invalid(
        format!("secrets[{PASSPHRASE}]"),
        format!(
            "is missing, but the volume is encrypted; name a Secret that has the key '{PASSPHRASE}' by the parameter \
             {parameter} of the StorageClass"
        ),
    )
}

fn wrong_key(volume: &VolumeId) -> Error {
    Error::invalid(format!("secrets[{PASSPHRASE}]"), format!("does not unlock the disk of volume {volume}"))
}
