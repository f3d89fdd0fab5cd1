//! The values that every layer speaks of: ids, sizes, volumes, file systems and kinds of access.

mod mkfs;

use std::fmt;

pub use mkfs::MkfsOptions;

/// What the ids of a cloud look like; an id of another form names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm {
    /// Lower-case UUID with dashes (Vultr, `DigitalOcean`).
    Uuid,
    /// Decimal number without leading zero (Hetzner, Linode).
    Decimal,
}

impl IdForm {
    fn holds(self, text: &str) -> bool {
        match self {
            Self::Uuid => {
                text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
                    })
            }
            Self::Decimal => {
                (1..=19).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_digit())
                    && !text.starts_with('0')
            }
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The id, if `text` is of the cloud's form; so that nothing else can get into a URL or a path.
            pub fn parse(form: IdForm, text: &str) -> Option<Self> {
                form.holds(text).then(|| Self(text.to_owned()))
            }

            /// The id as the cloud writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// A volume's id in the cloud, which is also its CSI volume id.
    VolumeId
}
id! {
    /// An instance's id in the cloud, which is also its CSI node id.
    NodeId
}

id! {
    /// A snapshot's id in the cloud, which is also its CSI snapshot id.
    SnapshotId
}

/// A size in whole GiB, the unit in which clouds sell volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gib(pub u64);

impl Gib {
    const BYTES: u64 = 1 << 30;

    /// The smallest whole number of GiB that holds `bytes`.
    pub fn holding(bytes: u64) -> Self {
        Self(bytes.div_ceil(Self::BYTES))
    }

    /// The size in bytes; saturates, which no cloud's maximum comes near.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(Self::BYTES)
    }
}

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} GiB", self.0)
    }
}

/// A file system that the driver makes, mounts and grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FsType {
    /// The default.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

impl FsType {
    /// All of them, for messages and tables.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The file system named, in any case; the empty name is the default.
    pub fn parse(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::default());
        }
        Self::ALL.into_iter().find(|fs| fs.as_str().eq_ignore_ascii_case(name))
    }

    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When what is deleted in a file system is told to its disk, which can then forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Discard {
    /// Never.
    #[default]
    Never,
    /// At once, by the mount option `discard`.
    Online,
    /// Once a week, as fstrim(8) does.
    Weekly,
}

impl Discard {
    /// All of them, for messages and tables.
    pub const ALL: [Self; 3] = [Self::Never, Self::Online, Self::Weekly];

    /// The word for it in a `StorageClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Online => "online",
            Self::Weekly => "weekly",
        }
    }
}

/// How a workload sees a volume (CSI `VolumeCapability.access_type`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// As a raw block device.
    Block,
    /// As a mounted file system.
    Mount {
        /// The file system asked for; `None` where the request names none, which means whatever is on the disk, and
        /// [`FsType::default`] on a blank one.
        fs_type: Option<FsType>,
        /// Mount options, each as one string.
        flags: Vec<String>,
    },
}

impl Access {
    /// The file system asked for, if one is.
    pub fn fs_type(&self) -> Option<FsType> {
        match self {
            Self::Block => None,
            Self::Mount { fs_type, .. } => *fs_type,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lower_case_uuid_is_a_uuid() {
        for (text, holds) in [
            ("cb676a46-66fd-4dfb-b839-443f2e6c0b60", true),
            ("CB676A46-66fd-4dfb-b839-443f2e6c0b60", false),
            ("cb676a46-66fd-4dfb-b839-443f2e6c0b6", false),
            ("cb676a46-66fd-4dfb-b839-443f2e6c0b600", false),
            ("cb676a4666fd-4dfb-b839-443f2e6c0b60-", false),
            ("../../../../../../../../etc/passwd...", false),
            ("", false),
        ] {
            assert_eq!(VolumeId::parse(IdForm::Uuid, text).is_some(), holds, "{text}");
        }
    }

    #[test]
    fn only_a_number_without_leading_zero_is_decimal() {
        for (text, holds) in [("1", true), ("4711", true), ("0", false), ("01", false), ("-1", false), ("1/2", false)] {
            assert_eq!(NodeId::parse(IdForm::Decimal, text).is_some(), holds, "{text}");
        }
    }

    #[test]
    fn bytes_are_rounded_up_to_gib() {
        let gib = 1 << 30;
        for (bytes, size) in [(0, 0), (1, 1), (gib - 1, 1), (gib, 1), (gib + 1, 2), (8 * gib, 8), (u64::MAX, 1 << 34)] {
            assert_eq!(Gib::holding(bytes), Gib(size), "{bytes}");
        }
    }

    #[test]
    fn file_systems_are_known_in_any_case() {
        assert_eq!(FsType::parse(""), Some(FsType::Ext4));
        assert_eq!(FsType::parse("XFS"), Some(FsType::Xfs));
        assert_eq!(FsType::parse("Btrfs"), Some(FsType::Btrfs));
        assert_eq!(FsType::parse("ntfs"), None);
    }
}
