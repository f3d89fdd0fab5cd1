//! Making a volume's disk an encrypted one where, and only where, it is proven blank (P1), and unlocking it.
//!
//! An encrypted disk takes the way of `format` twice: luksFormat in place of mkfs, and then, on the same record and what
//! was unlocked, mkfs. What is in it can't be proven blank by reading, since noise is what zeroes decrypt to; so only the
//! record, which is made before luksFormat and kept until mkfs has ended, allows a mkfs there.

use tracing::{info, warn};

use super::{
    Core,
    device::Device,
    filesystem::{self, Content},
    format::{Wanted, refused, sync},
    key::Key,
    lock::Lock,
    luks,
    record::{Formatting, Luks},
};
use crate::error::{Error, Refusal};

impl Core {
    /// The unlocked disk, which is made an encrypted one if it is blank and may be formatted. With `raw` there will be no
    /// file system in it.
    pub(super) async fn unlocked(
        &self,
        device: &Device,
        wanted: Wanted<'_>,
        key: &Key,
        raw: bool,
        lock: &Lock,
    ) -> Result<Device, Error> {
        if !self.host.has_device_mapper().await {
            return Err(Error::Precondition(format!(
                "volume {} is encrypted, but this node's kernel has no device-mapper; load its modules dm_mod and \
                 dm_crypt",
                device.volume()
            )));
        }
        self.lock_stale(device, lock).await?;
        if let Some(open) = device.mapped(&luks::name(device.volume())).await? {
            if raw {
                // From here on what is in it is the workload's.
                self.records.forget::<Formatting>(device.volume()).await?;
            }
            return Ok(open);
        }
        let host = self.host.as_ref();
        let mut is_new = false;
        let record = self.records.load::<Formatting>(device.volume()).await?;
        let found = filesystem::probe(host, device, lock).await?;
        match (found, record) {
            (Content::Luks { uuid }, Some(record)) => match &record.luks {
                // What raw block volumes hold is the workload's from the start, so of one that may have been away since
                // the key decides.
                Some(luks) if luks.uuid == uuid && !luks.complete && (!raw || self.never_left(device, &record)) => {
                    self.redo_luks(device, record, wanted, key, raw, lock).await?;
                    is_new = true;
                }
                Some(luks) if luks.uuid == uuid => {}
                _ => {
                    warn!(volume = %device.volume(), uuid, "was encrypted elsewhere since our own mkfs was cut off");
                    self.records.forget::<Formatting>(device.volume()).await?;
                }
            },
            (Content::Luks { .. }, None) => {}
            (Content::Nothing, Some(record)) => {
                self.redo_luks(device, record, wanted, key, raw, lock).await?;
                is_new = true;
            }
            (Content::Nothing, None) => {
                self.encrypt(device, wanted, key, raw, lock).await?;
                is_new = true;
            }
            (found @ (Content::FileSystem { .. } | Content::Other(_)), _) => {
                let remedy = "its PersistentVolume says that it is encrypted; data is never encrypted in its place";
                return Err(refused(device, Refusal::Foreign, format!("it holds {found}"), remedy));
            }
        }
        let open = self.unlock(device, key, wanted.discard, lock).await?;
        if raw {
            self.records.forget::<Formatting>(device.volume()).await?;
        } else if is_new {
            // What noise decrypts to could be taken for anything.
            self.wipe(&open).await?;
        }
        Ok(open)
    }

    async fn redo_luks(
        &self,
        device: &Device,
        record: Formatting,
        wanted: Wanted<'_>,
        key: &Key,
        raw: bool,
        lock: &Lock,
    ) -> Result<(), Error> {
        if record.luks.is_none() || !Self::is_of(device, &record) {
            return Err(self.may_be_newer(device, &record));
        }
        if self.never_left(device, &record) {
            info!(volume = %device.volume(), device = %device.node_str(), "encrypting the disk was cut off; doing it again");
            self.wipe(device).await?;
            return self.make_luks(device, record, key, raw, lock).await;
        }
        // What it once was proves nothing any more; unless it still is blank this is refused.
        info!(volume = %device.volume(), "the disk may have been away since it was to be encrypted");
        self.encrypt(device, Wanted { blank: true, ..wanted }, key, raw, lock).await
    }

    async fn encrypt(
        &self,
        device: &Device,
        wanted: Wanted<'_>,
        key: &Key,
        raw: bool,
        lock: &Lock,
    ) -> Result<(), Error> {
        let uuid = self.host.new_uuid().map_err(|cause| Error::io("make a UUID for", device.node(), cause))?;
        let luks = Luks { uuid, complete: false };
        let record = self.proven_blank(device, wanted, Some(luks), lock).await?;
        self.make_luks(device, record, key, raw, lock).await
    }

    async fn make_luks(
        &self,
        device: &Device,
        mut record: Formatting,
        key: &Key,
        raw: bool,
        lock: &Lock,
    ) -> Result<(), Error> {
        let Some(luks) = &mut record.luks else { return Err(self.may_be_newer(device, &record)) };
        luks::format(self.host.as_ref(), device, &luks.uuid, key, lock).await?;
        if raw {
            return self.finish(device).await;
        }
        // From here on what is in it has to be unlocked to be known.
        luks.complete = true;
        sync(device).await?;
        self.records.save(device.volume(), &record).await
    }
}
