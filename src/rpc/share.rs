//! What may be asked of a share on a node, where it differs from a disk.

use std::collections::BTreeMap;

use super::{content::Content, validate};
use crate::{
    cloud::Attachment,
    csi::{
        VolumeCapability,
        volume_capability::{AccessMode, AccessType, access_mode::Mode},
    },
    error::Error,
    volume::Access,
};

/// The capability that a call on this volume needs; a volume of which nothing is told is a disk. To one node it is the same how many others have the share; and which
/// file system it is the cloud has decided, whatever the sidecars fill in.
pub(super) fn needed(attachment: Option<&Attachment>, one: Option<&VolumeCapability>) -> Result<(Access, bool), Error> {
    match attachment {
        Some(Attachment::Disk { .. }) | None => validate::needed(one),
        Some(Attachment::Share { .. }) => validate::needed(one.map(to_one_node).as_ref()),
    }
}

/// The same before it is known what the volume is: what a share may have passes.
pub(super) fn either(one: &VolumeCapability) -> Result<(), Error> {
    validate::capability(one).or_else(|error| validate::capability(&to_one_node(one)).map_err(|_| error)).map(drop)
}

/// Whether a share can be used like this.
pub(super) fn capability(one: &VolumeCapability) -> Result<(), Error> {
    let (access, _) = validate::capability(&to_one_node(one))?;
    if access == Access::Block {
        let problem = "asks for a raw block device, which a shared file system is not; use volumeMode Filesystem";
        return Err(Error::invalid("volume_capability", problem));
    }
    Ok(())
}

fn to_one_node(capability: &VolumeCapability) -> VolumeCapability {
    let mut capability = capability.clone();
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.fs_type.clear();
    }
    let mode = match capability.access_mode.as_ref().map_or(Mode::Unknown, AccessMode::mode) {
        Mode::MultiNodeReaderOnly => Mode::SingleNodeReaderOnly,
        Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => Mode::SingleNodeMultiWriter,
        mode => mode,
    };
    capability.access_mode = Some(AccessMode { mode: mode.into() });
    capability
}

/// What the volume context says of the content: of a share only that it is encrypted, which it cannot be. How a file
/// system is made and a disk trimmed is nothing to it.
pub(super) fn content(
    attachment: &Attachment,
    told: &BTreeMap<String, String>,
    access: &Access,
) -> Result<Content, Error> {
    let content = Content::of_volume(told, access.fs_type())?;
    match attachment {
        Attachment::Share { .. } if content.encrypted => {
            let problem = "a shared file system is not encrypted by the node; leave it out, or use block storage";
            Err(Error::invalid("volume_context[encrypted]", problem))
        }
        Attachment::Share { .. } => Ok(Content::default()),
        Attachment::Disk { .. } => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::volume_capability::MountVolume;

    fn capability(mode: Mode, fs_type: &str) -> VolumeCapability {
        let mount = MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() };
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn a_share_has_all_modes_and_no_file_system_of_the_callers_and_a_disk_as_before() {
        let (share, disk) =
            (Attachment::Share { tag: "12345".to_owned() }, Attachment::Disk { serial: "s".to_owned(), size: None });
        for (mode, read_only, of_disk) in [
            (Mode::SingleNodeWriter, false, true),
            (Mode::SingleNodeSingleWriter, false, true),
            (Mode::SingleNodeMultiWriter, false, true),
            (Mode::SingleNodeReaderOnly, true, true),
            (Mode::MultiNodeReaderOnly, true, false),
            (Mode::MultiNodeSingleWriter, false, false),
            (Mode::MultiNodeMultiWriter, false, false),
        ] {
            for fs_type in ["", "ext4", "virtiofs"] {
                let (access, reads) = needed(Some(&share), Some(&capability(mode, fs_type))).unwrap();
                assert_eq!((access.fs_type(), reads), (None, read_only), "{mode:?} {fs_type}");
                assert!(either(&capability(mode, fs_type)).is_ok());
            }
            for attachment in [Some(&disk), None] {
                assert_eq!(needed(attachment, Some(&capability(mode, "xfs"))).is_ok(), of_disk, "{mode:?}");
            }
        }
        let unknown = capability(Mode::Unknown, "");
        assert!(
            needed(Some(&share), Some(&unknown)).is_err()
                && needed(Some(&share), None).is_err()
                && either(&unknown).is_err()
        );
    }

    #[test]
    fn a_share_that_is_to_be_encrypted_is_refused_and_what_is_of_disks_passes() {
        let share = Attachment::Share { tag: "12345".to_owned() };
        let context = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        for value in ["true", "True", "perhaps"] {
            let error = content(&share, &context("encrypted", value), &Access::Block).unwrap_err();
            assert!(error.to_string().starts_with("volume_context[encrypted]: "), "{error}");
        }
        for (key, value) in [("encrypted", "false"), ("discard", "weekly"), ("mkfs_options", "-i 65536")] {
            assert_eq!(content(&share, &context(key, value), &Access::Block).unwrap(), Content::default(), "{key}");
        }
    }
}
