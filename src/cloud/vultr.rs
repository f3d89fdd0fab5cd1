//! Vultr: what its API is called with and what its answers mean (API v2, as seen in 2026).

mod block;
mod instance;
mod metadata;
mod snapshot;
mod vfs;
mod wire;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Account, Attachment, Change, Cloud, CloudError, InstanceState, NewVolume, Page, Profile, Region, Shares, Snapshots,
    Volume, VolumeType, http::Http, transport::Transport,
};
use crate::{
    error::Error,
    volume::{Gib, IdForm, NodeId, VolumeId},
};

/// NVMe, the API's `high_perf`.
static NVME: VolumeType = VolumeType { name: "high_perf", min: Gib(10), max: Gib(10_000), step: Gib(1), shared: false };
/// HDD, the API's `storage_opt`.
static HDD: VolumeType =
    VolumeType { name: "storage_opt", min: Gib(40), max: Gib(40_000), step: Gib(1), shared: false };
/// VFS, which has nothing but NVMe. No document tells its maximum: the API says itself what is too much.
static VFS: VolumeType = VolumeType { name: "vfs", min: Gib(10), max: Gib(1 << 20), step: Gib(1), shared: true };

/// What is known of Vultr beforehand.
pub static PROFILE: Profile = Profile {
    name: "vultr",
    driver_name: "block.csi.vultr.com",
    api_url: "https://api.vultr.com",
    id_form: IdForm::Uuid,
    topology_key: "region",
    volume_types: &[&NVME, &HDD, &VFS],
    // Vultr support, 2023-11; the 16 of earlier documents was wrong.
    attachments_per_instance: 11,
    // Per source address; more is answered by 429.
    requests_per_second: 30,
    page_size: 500,
    between_changes: Duration::from_secs(60),
    link_prefix: "virtio-",
    is_volume_serial,
    is_share_tag,
    volume_type,
    publish_context,
    attachment,
    identity: |url| Box::pin(metadata::identity(url)),
    connect: |account| Ok(Arc::new(Vultr::new(account)?)),
};

/// The API that the controller calls.
#[derive(Debug)]
pub struct Vultr {
    http: Http,
}

impl Vultr {
    /// A client of the API.
    ///
    /// # Errors
    /// In words for the operator, if there can be no HTTP client.
    pub fn new(account: Account) -> Result<Self, String> {
        Ok(Self { http: Http::new(account, wire::meaning)? })
    }

    /// A client that reaches the API in a way of its own.
    pub fn over(transport: Arc<dyn Transport>, account: Account) -> Self {
        Self { http: Http::over(transport, account, wire::meaning) }
    }
}

#[async_trait::async_trait]
impl Cloud for Vultr {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    async fn list_volumes(&self, cursor: Option<&str>, size: u32) -> Result<Page<Volume>, CloudError> {
        block::list(&self.http, cursor, size).await
    }

    async fn volume(&self, id: &VolumeId) -> Result<Volume, CloudError> {
        block::get(&self.http, id).await
    }

    async fn create_volume(&self, volume: &NewVolume) -> Result<Volume, CloudError> {
        block::create(&self.http, volume).await
    }

    async fn change_volume(&self, id: &VolumeId, change: &Change) -> Result<(), CloudError> {
        block::change(&self.http, id, change).await
    }

    async fn delete_volume(&self, id: &VolumeId) -> Result<(), CloudError> {
        block::delete(&self.http, id).await
    }

    async fn attach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError> {
        block::attach(&self.http, id, node).await
    }

    async fn detach_volume(&self, id: &VolumeId, _: &NodeId) -> Result<(), CloudError> {
        block::detach(&self.http, id).await
    }

    async fn instance(&self, id: &NodeId) -> Result<InstanceState, CloudError> {
        instance::get(&self.http, id).await
    }

    async fn regions(&self) -> Result<Vec<Region>, CloudError> {
        instance::regions(&self.http).await
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn shares(&self) -> Option<&dyn Shares> {
        Some(self)
    }
}

/// `<region>-<14 hex digits>` in the samples there are; other lengths are let pass.
fn is_volume_serial(serial: &str) -> bool {
    serial.split_once('-').is_some_and(|(region, rest)| {
        region.len() == 3
            && region.bytes().all(|byte| byte.is_ascii_lowercase())
            && rest.len() >= 8
            && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// The API has them as numbers.
fn is_share_tag(tag: &str) -> bool {
    (1..=10).contains(&tag.len()) && tag.bytes().all(|byte| byte.is_ascii_digit())
}

/// `storage_type`, `disk_type` and the older `block_type`, which means block and overrides both (as Vultr's own driver has
/// it).
fn volume_type(parameters: &BTreeMap<String, String>) -> Result<&'static VolumeType, Error> {
    let mut by_disk_type = None;
    let mut by_block_type = None;
    let mut shared = false;
    for (key, value) in parameters {
        let lower = value.to_ascii_lowercase();
        let unknown =
            |allowed: &str| Err(Error::invalid(format!("parameter {key}"), format!("'{value}' is not {allowed}")));
        match key.as_str() {
            "storage_type" => match lower.as_str() {
                "block" => {}
                "vfs" => shared = true,
                _ => return unknown("'block' or 'vfs'"),
            },
            "disk_type" => match lower.as_str() {
                "nvme" => by_disk_type = Some(&NVME),
                "hdd" => by_disk_type = Some(&HDD),
                _ => return unknown("'nvme' or 'hdd'"),
            },
            "block_type" => match lower.as_str() {
                "high_perf" => by_block_type = Some(&NVME),
                "storage_opt" => by_block_type = Some(&HDD),
                _ => return unknown("'high_perf' or 'storage_opt'"),
            },
            key if is_the_sidecars(key) => {}
            _ => {
                return Err(Error::invalid(
                    format!("parameter {key}"),
                    "is not known; the parameters are storage_type, disk_type, block_type, encrypted, mkfs_options, \
                     discard and snapshot_region",
                ));
            }
        }
    }
    match (by_block_type, by_disk_type) {
        (Some(kind), _) => Ok(kind),
        (None, Some(kind)) if shared && *kind == HDD => {
            Err(Error::invalid("parameter disk_type", "'hdd' cannot be had with storage_type 'vfs'; use 'nvme'"))
        }
        (None, _) if shared => Ok(&VFS),
        (None, kind) => Ok(kind.unwrap_or(&NVME)),
    }
}

/// Keys that the external sidecars read and may leave in.
fn is_the_sidecars(key: &str) -> bool {
    let deprecated_secret = key.starts_with("csi") && key.contains("Secret");
    key.starts_with("csi.storage.k8s.io/") || key.eq_ignore_ascii_case("fstype") || deprecated_secret
}

const MOUNT_ID: &str = "mount_vol_name";
const STORAGE_TYPE: &str = "storage_type";
/// Ours; Vultr's own driver does not tell the size.
const SIZE_GIB: &str = "size_gib";

fn publish_context(attachment: &Attachment) -> BTreeMap<String, String> {
    let pairs = match attachment {
        Attachment::Disk { serial, size } => {
            let size = size.map(|size| (SIZE_GIB, size.0.to_string()));
            [(MOUNT_ID, serial.clone()), (STORAGE_TYPE, "block".to_owned())].into_iter().chain(size).collect()
        }
        Attachment::Share { tag } => vec![(MOUNT_ID, tag.clone()), (STORAGE_TYPE, "vfs".to_owned())],
    };
    pairs.into_iter().map(|(key, value): (&str, String)| (key.to_owned(), value)).collect()
}

fn attachment(context: &BTreeMap<String, String>) -> Result<Attachment, Error> {
    let field = |key: &str| format!("publish_context[{key}]");
    let told = context.get(MOUNT_ID).ok_or_else(|| {
        Error::invalid(field(MOUNT_ID), "is missing; detach and attach the volume to have it told again")
    });
    match context.get(STORAGE_TYPE).map(|word| word.to_ascii_lowercase()).as_deref() {
        None | Some("" | "block") => {}
        Some("vfs") => {
            let tag = told?;
            if !is_share_tag(tag) {
                return Err(Error::invalid(field(MOUNT_ID), "is not a mount tag of Vultr (1 to 10 digits)"));
            }
            return Ok(Attachment::Share { tag: tag.clone() });
        }
        Some(other) => {
            return Err(Error::invalid(field(STORAGE_TYPE), format!("'{other}' is neither 'block' nor 'vfs'")));
        }
    }
    let serial = told?;
    let is_one_word = (1..=64).contains(&serial.len())
        && serial.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if !is_one_word {
        return Err(Error::invalid(field(MOUNT_ID), "is not a mount id of Vultr (region, dash, letters and digits)"));
    }
    let size = match context.get(SIZE_GIB) {
        None => None,
        Some(text) => Some(Gib(text.parse().map_err(|_| Error::invalid(field(SIZE_GIB), "is not a number of GiB"))?)),
    };
    Ok(Attachment::Disk { serial: serial.clone(), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn storage_classes_of_vultrs_driver_mean_what_they_meant() {
        for (parameters, wanted) in [
            (&[][..], Ok("high_perf")),
            (&[("block_type", "high_perf")], Ok("high_perf")),
            (&[("block_type", "STORAGE_OPT")], Ok("storage_opt")),
            (&[("storage_type", "Block"), ("disk_type", "HDD")], Ok("storage_opt")),
            (&[("disk_type", "nvme"), ("block_type", "storage_opt")], Ok("storage_opt")),
            (&[("fsType", "xfs"), ("csi.storage.k8s.io/fstype", "xfs")], Ok("high_perf")),
            (&[("csiProvisionerSecretName", "x"), ("csiNodePublishSecretNamespace", "x")], Ok("high_perf")),
            (&[("disk_type", "tape")], Err("parameter disk_type")),
            (&[("storage_type", "VFS")], Ok("vfs")),
            (&[("storage_type", "vfs"), ("disk_type", "nvme")], Ok("vfs")),
            (&[("storage_type", "vfs"), ("disk_type", "hdd")], Err("parameter disk_type")),
            (&[("storage_type", "vfs"), ("block_type", "storage_opt")], Ok("storage_opt")),
            (&[("storage_type", "nfs")], Err("parameter storage_type")),
            (&[("disktype", "nvme")], Err("parameter disktype")),
        ] {
            match (volume_type(&map(parameters)), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found.name, wanted, "{parameters:?}"),
                (Err(error), Err(field)) => {
                    assert_eq!(error.code(), tonic::Code::InvalidArgument);
                    assert!(error.to_string().starts_with(field), "{error}");
                }
                (found, _) => panic!("{parameters:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn attachments_of_vultrs_driver_are_understood() {
        let old = map(&[("mount_vol_name", "ewr-2f5d7a314fe44f")]);
        let disk = |size| Attachment::Disk { serial: "ewr-2f5d7a314fe44f".to_owned(), size };
        assert_eq!(attachment(&old).unwrap(), disk(None));
        let with_size = map(&[("mount_vol_name", "ewr-2f5d7a314fe44f"), ("storage_type", "block"), ("size_gib", "10")]);
        assert_eq!(attachment(&with_size).unwrap(), disk(Some(Gib(10))));
        for word in ["vfs", "VFS"] {
            let share = map(&[("mount_vol_name", "12345"), ("storage_type", word)]);
            assert_eq!(attachment(&share).unwrap(), Attachment::Share { tag: "12345".to_owned() });
        }
        for bad in [&[][..], &[("mount_vol_name", "../../sda")], &[("mount_vol_name", "a"), ("size_gib", "ten")]] {
            assert_eq!(attachment(&map(bad)).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
        for tag in ["", "12345678901", "-1", "ewr-2f5d7a314fe44f", "1,dax"] {
            let bad = map(&[("mount_vol_name", tag), ("storage_type", "vfs")]);
            assert_eq!(attachment(&bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{tag:?}");
        }
        for other in ["nfs", "blocks"] {
            let bad = map(&[("mount_vol_name", "12345"), ("storage_type", other)]);
            assert!(attachment(&bad).unwrap_err().to_string().contains(other));
        }
    }

    #[test]
    fn a_volumes_serial_is_told_from_another_disks() {
        for (serial, is) in [("ewr-2f5d7a314fe44f", true), ("ewr-example112233", true), ("QM00001", false), ("", false)]
        {
            assert_eq!(is_volume_serial(serial), is, "{serial}");
        }
    }
}
