//! The kernel's mount table, `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`): the only truth about mounts.

use std::path::{Path, PathBuf};

use super::host::{DeviceNumber, MountFlags};

/// What a file system's own options say when it takes no more writes. What an error did to it ext4 tells in words of its
/// own (`emergency_ro` and `shutdown` since Linux 6.15, `abort` before) or, in some 6.1, not at all.
const READ_ONLY_STATES: [&str; 4] = ["ro", "emergency_ro", "shutdown", "abort"];

/// The kernel's name of what a share is mounted as.
pub(crate) const VIRTIOFS: &str = "virtiofs";

/// What the kernel puts behind the name of what is not there any more.
const DELETED: &[u8] = b"//deleted";

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The disk behind the mount: the line's own device number, except where the host knows better (btrfs, and
    /// device nodes that are bound somewhere).
    pub device: DeviceNumber,
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// The options of this mount.
    pub options: Vec<String>,
    /// The kernel's name of the file system.
    pub fs_type: String,
    /// What was mounted, as whoever mounted it said: never proof, but for the tag by which the kernel found a share.
    pub source: String,
    /// The options of the file system, which all its mounts share.
    pub super_options: Vec<String>,
    /// What is mounted is a device's node, not its content.
    pub is_node: bool,
}

impl Mount {
    /// Whether this is a device's node whose device has gone. Its number may be another device's by now: a node that is
    /// bound keeps neither.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_node && self.root.as_os_str().as_encoded_bytes().ends_with(DELETED)
    }

    /// Whether this is a share, or a part of one.
    pub(crate) fn is_share(&self) -> bool {
        self.fs_type == VIRTIOFS
    }

    /// Whether this mount was made read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// Whether the whole file system takes no writes, through whichever mount.
    pub(crate) fn is_frozen(&self) -> bool {
        !self.is_node && self.super_options.iter().any(|option| READ_ONLY_STATES.contains(&option.as_str()))
    }

    /// The mount's own flags, which a remount has to repeat to keep.
    pub(crate) fn flags(&self) -> MountFlags {
        self.options.iter().fold(MountFlags::empty(), |flags, option| {
            flags
                | match option.as_str() {
                    "ro" => MountFlags::MS_RDONLY,
                    "nosuid" => MountFlags::MS_NOSUID,
                    "nodev" => MountFlags::MS_NODEV,
                    "noexec" => MountFlags::MS_NOEXEC,
                    "noatime" => MountFlags::MS_NOATIME,
                    "nodiratime" => MountFlags::MS_NODIRATIME,
                    "relatime" => MountFlags::MS_RELATIME,
                    _ => MountFlags::empty(),
                }
        })
    }
}

/// What is mounted at exactly `path`, the topmost where mounts are stacked.
pub(crate) fn at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.target == path)
}

/// Reads the table.
///
/// # Errors
/// The first line that is not of the kernel's form.
pub(crate) fn parse(text: &str) -> Result<Vec<Mount>, String> {
    text.lines().map(|line| parse_line(line).ok_or_else(|| format!("unexpected line: {line}"))).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let mut at = line.split(' ');
    let device = DeviceNumber::parse(at.nth(2)?)?;
    let root = unescape(at.next()?);
    let target = unescape(at.next()?);
    let options = list(at.next()?);
    at.find(|field| *field == "-")?;
    let fs_type = unescape(at.next()?);
    let source = unescape(at.next()?);
    let super_options = list(at.next().unwrap_or_default());
    Some(Mount {
        device,
        root: root.into(),
        target: target.into(),
        options,
        fs_type,
        source,
        super_options,
        is_node: false,
    })
}

fn list(field: &str) -> Vec<String> {
    field.split(',').map(str::to_owned).collect()
}

/// Undoes the kernel's octal escapes of white space, `#` and backslash.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\' && tail.len() >= 3)
            .then(|| std::str::from_utf8(&tail[..3]).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        let (byte, tail) = octal.map_or((first, tail), |byte| (byte, &tail[3..]));
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    fn escape(text: &str) -> String {
        text.chars().fold(String::new(), |mut escaped, c| {
            match c {
                ' ' | '\t' | '\n' | '\\' | '#' => write!(escaped, "\\{:03o}", u32::from(c)).unwrap(),
                other => escaped.push(other),
            }
            escaped
        })
    }

    #[test]
    fn lines_with_any_number_of_optional_fields_are_read() {
        for optional in ["", "shared:7 ", "shared:7 master:1 propagate_from:2 "] {
            let line =
                format!("36 35 98:0 /a\\040b /mnt\\0112 rw,noatime {optional}- ext3 /dev/root rw,errors=continue");
            let mounts = parse(&line).unwrap();
            assert_eq!(mounts[0].device, DeviceNumber { major: 98, minor: 0 });
            assert_eq!(mounts[0].root, Path::new("/a b"));
            assert_eq!(mounts[0].target, Path::new("/mnt\t2"));
            assert_eq!(mounts[0].fs_type, "ext3");
            assert_eq!(mounts[0].source, "/dev/root");
            assert_eq!(mounts[0].flags(), MountFlags::MS_NOATIME);
            assert!(!mounts[0].is_read_only() && !mounts[0].is_frozen());
        }
    }

    #[test]
    fn a_file_system_that_an_error_froze_is_told_from_a_read_only_mount() {
        for (options, super_options, read_only, frozen) in [
            ("rw", "rw", false, false),
            ("ro", "rw", true, false),
            ("ro", "ro", true, true),
            ("rw", "ro,errors=remount-ro", false, true),
            ("rw", "rw,emergency_ro", false, true),
        ] {
            let mounts = parse(&format!("1 2 7:0 / /mnt {options} - ext4 /dev/loop0 {super_options}")).unwrap();
            assert_eq!(
                (mounts[0].is_read_only(), mounts[0].is_frozen()),
                (read_only, frozen),
                "{options} {super_options}"
            );
        }
    }

    #[test]
    fn a_bound_node_is_told_from_one_whose_device_has_gone() {
        for (root, is_node, gone) in
            [("/vdb", true, false), ("/vdb//deleted", true, true), ("/directory//deleted", false, false)]
        {
            let mut mounts = parse(&format!("1 2 0:6 {root} /target rw - devtmpfs devtmpfs rw")).unwrap();
            mounts[0].is_node = is_node;
            assert_eq!(mounts[0].is_gone(), gone, "{root}");
        }
    }

    #[test]
    fn what_is_not_a_mount_table_is_an_error() {
        for text in ["garbage", "1 2 x:y / / rw - a b c", "1 2 3:4 / / rw a b c"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_path_comes_back_as_it_was(target in "/[^\0]{0,40}", root in "/[^\0]{0,40}") {
            // Other line ends than \n are the reader's, not the kernel's.
            prop_assume!(!target.contains('\r') && !root.contains('\r'));
            let line = format!("1 2 7:1 {} {} rw - ext4 /dev/x rw", escape(&root), escape(&target));
            let mounts = parse(&line).unwrap();
            prop_assert_eq!(mounts.len(), 1);
            prop_assert_eq!(&mounts[0].target, Path::new(&target));
            prop_assert_eq!(&mounts[0].root, Path::new(&root));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
            parse(&text).ok();
        }
    }
}
