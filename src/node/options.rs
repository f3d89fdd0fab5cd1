//! Mount options as a `StorageClass` or a PersistentVolume gives them, taken apart into what mount(2) wants.

use super::host::MountFlags;
use crate::{
    error::Error,
    volume::{Discard, FsType},
};

/// mount(2) takes a page of data for the file system, with the zero at its end.
const MAX_DATA_BYTES: usize = 4095;

/// Options that are a flag of mount(2), set or taken away.
#[rustfmt::skip]
const FLAGS: [(&str, bool, MountFlags); 26] = [
    ("ro", true, MountFlags::MS_RDONLY), ("rw", false, MountFlags::MS_RDONLY),
    ("nosuid", true, MountFlags::MS_NOSUID), ("suid", false, MountFlags::MS_NOSUID),
    ("nodev", true, MountFlags::MS_NODEV), ("dev", false, MountFlags::MS_NODEV),
    ("noexec", true, MountFlags::MS_NOEXEC), ("exec", false, MountFlags::MS_NOEXEC),
    ("noatime", true, MountFlags::MS_NOATIME), ("atime", false, MountFlags::MS_NOATIME),
    ("nodiratime", true, MountFlags::MS_NODIRATIME), ("diratime", false, MountFlags::MS_NODIRATIME),
    ("relatime", true, MountFlags::MS_RELATIME), ("norelatime", false, MountFlags::MS_RELATIME),
    ("strictatime", true, MountFlags::MS_STRICTATIME), ("nostrictatime", false, MountFlags::MS_STRICTATIME),
    ("lazytime", true, MountFlags::MS_LAZYTIME), ("nolazytime", false, MountFlags::MS_LAZYTIME),
    ("sync", true, MountFlags::MS_SYNCHRONOUS), ("async", false, MountFlags::MS_SYNCHRONOUS),
    ("dirsync", true, MountFlags::MS_DIRSYNC), ("silent", true, MountFlags::MS_SILENT),
    ("loud", false, MountFlags::MS_SILENT), ("mand", true, MountFlags::MS_MANDLOCK),
    ("nomand", false, MountFlags::MS_MANDLOCK), ("defaults", false, MountFlags::empty()),
];

/// Words for mount(8) and fstab(5) that the kernel does not know.
const NOT_THE_KERNELS: [&str; 8] = ["_netdev", "nofail", "fail", "auto", "noauto", "nouser", "group", "owner"];

/// Calls of mount(2) that are something else than a mount; the driver makes those that are needed by itself.
const NOT_OPTIONS: [&str; 11] =
    ["bind", "rbind", "remount", "move", "shared", "rshared", "private", "rprivate", "slave", "rslave", "unbindable"];

/// Options that name another device than the volume's: that one was never proven.
const OTHER_DEVICES: [&str; 5] = ["logdev=", "rtdev=", "journal_path=", "journal_dev=", "device="];

/// Mount options, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// The flags of mount(2).
    pub(crate) flags: MountFlags,
    /// What the file system itself has to understand.
    data: Vec<String>,
}

impl Options {
    /// Takes `flags` apart, and adds `ro` if the request itself is read-only.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is not an option.
    pub(crate) fn parse(flags: &[String], read_only: bool) -> Result<Self, Error> {
        let mut options = Self { flags: MountFlags::empty(), data: Vec::new() };
        for option in flags.iter().flat_map(|flag| split(flag)).map(str::trim).filter(|option| !option.is_empty()) {
            if let Some((_, set, flag)) = FLAGS.iter().find(|(name, ..)| *name == option) {
                options.flags.set(*flag, *set);
            } else if NOT_OPTIONS.contains(&option) || OTHER_DEVICES.iter().any(|other| option.starts_with(other)) {
                return Err(Error::invalid(
                    "mount_flags",
                    format!("{option} cannot be asked of a volume; leave it out"),
                ));
            } else if !NOT_THE_KERNELS.contains(&option) && !option.starts_with("x-") && !option.starts_with("X-") {
                options.data.push(option.to_owned());
            }
        }
        if read_only {
            options.flags.insert(MountFlags::MS_RDONLY);
        }
        if options.data.join(",").len() > MAX_DATA_BYTES {
            return Err(Error::invalid("mount_flags", format!("longer than {MAX_DATA_BYTES} bytes together")));
        }
        Ok(options)
    }

    /// The same with the option that `discard` is, if it is one and none is given.
    pub(crate) fn with(mut self, discard: Discard) -> Self {
        if discard == Discard::Online && !self.discards() {
            self.data.push("discard".to_owned());
        }
        self
    }

    /// None of them, for a mount that only tries, and reads.
    pub(crate) fn none() -> Self {
        Self { flags: MountFlags::MS_RDONLY, data: Vec::new() }
    }

    /// Whether the mount is to be read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::MS_RDONLY)
    }

    /// The file system's own part of the options.
    pub(crate) fn data(&self, fs: FsType) -> String {
        let mut data = self.data.clone();
        if fs == FsType::Xfs {
            // A clone has its source's UUID, and xfs mounts no UUID twice unless told to.
            data.retain(|option| option != "nouuid");
            data.push("nouuid".to_owned());
        }
        data.join(",")
    }

    /// The same for a share.
    pub(crate) fn share_data(&self) -> String {
        self.data.join(",")
    }

    /// Whether the disk is to stay as it was before its last writes: no mount without these options may be tried.
    pub(crate) fn forgo_replay(&self) -> bool {
        let words = ["noload", "norecovery", "nologreplay"];
        self.data.iter().any(|option| words.iter().any(|word| option.contains(word)))
    }

    /// Whether what is deleted is to be told to the disk at once.
    pub(crate) fn discards(&self) -> bool {
        self.data.iter().any(|option| option == "discard" || option.starts_with("discard="))
    }

    /// Whether the caller gave options that the file system itself has to understand.
    pub(crate) fn has_data(&self) -> bool {
        !self.data.is_empty()
    }
}

/// Splits at commas, except those in double quotes, as SELinux contexts have them.
fn split(flag: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    flag.split(move |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn options(flags: &[&str], read_only: bool) -> Options {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        Options::parse(&flags, read_only).unwrap()
    }

    #[test]
    fn what_the_kernel_has_a_flag_for_is_a_flag_and_the_rest_is_data() {
        let none = MountFlags::empty();
        for (flags, kernel, data) in [
            (&[][..], none, ""),
            (&["defaults"], none, ""),
            (&["noatime", "discard"], MountFlags::MS_NOATIME, "discard"),
            (
                &["noatime,nodev", "data=journal,commit=5"],
                MountFlags::MS_NOATIME | MountFlags::MS_NODEV,
                "data=journal,commit=5",
            ),
            (&["ro", "rw"], none, ""),
            (&["rw", "ro"], MountFlags::MS_RDONLY, ""),
            (&["_netdev", "nofail", "x-systemd.automount"], none, ""),
            (&["context=\"a:b:c:s0:c1,c2\"", "sync"], MountFlags::MS_SYNCHRONOUS, "context=\"a:b:c:s0:c1,c2\""),
            (&["lazytime", "strictatime"], MountFlags::MS_LAZYTIME | MountFlags::MS_STRICTATIME, ""),
            (&["", ","], none, ""),
        ] {
            let parsed = options(flags, false);
            assert_eq!((parsed.flags, parsed.data(FsType::Ext4).as_str()), (kernel, data), "{flags:?}");
        }
    }

    #[test]
    fn a_read_only_request_is_read_only_whatever_the_options_say() {
        assert!(options(&["rw"], true).is_read_only());
    }

    #[test]
    fn xfs_gets_nouuid_exactly_once_and_nobody_else_does() {
        assert_eq!(options(&["nouuid", "swalloc", "nouuid"], false).data(FsType::Xfs), "swalloc,nouuid");
        assert_eq!(options(&[], false).data(FsType::Xfs), "nouuid");
        assert_eq!(options(&[], false).data(FsType::Btrfs), "");
    }

    #[test]
    fn discard_is_asked_for_once() {
        for (flags, discard, data) in [
            (&[][..], Discard::Online, "discard"),
            (&["discard"], Discard::Online, "discard"),
            (&["discard=async"], Discard::Online, "discard=async"),
            (&["discard"], Discard::Never, "discard"),
            (&[], Discard::Weekly, ""),
        ] {
            assert_eq!(options(flags, false).with(discard).data(FsType::Btrfs), data, "{flags:?} {discard:?}");
        }
    }

    #[test]
    fn other_calls_than_a_mount_are_refused_by_name() {
        for option in NOT_OPTIONS.into_iter().chain(["logdev=/dev/vda", "device=/dev/vda"]) {
            let error = Options::parse(&[option.to_owned()], false).unwrap_err();
            assert!(matches!(&error, Error::Invalid { problem, .. } if problem.contains(option)), "{option}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_option_is_lost_or_doubled(names in proptest::collection::vec("[a-z]{9,12}=[0-9]{1,3}", 0..9)) {
            let parsed = Options::parse(&names, false).unwrap();
            prop_assert_eq!(parsed.data(FsType::Ext4), names.join(","));
        }
    }
}
