//! What this machine really shows: mounts, loop devices, sizes and checksums, read without the driver's help.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Outcome;

/// A line of the kernel's mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The device number, as `major:minor`.
    pub device: String,
    /// The path inside the mounted file system that is shown.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// The file system.
    pub fs_type: String,
    /// What the mount was made of: a device for a file system, the device's file system for a bind.
    pub source: String,
}

/// The mounts at or below `dir`, in the order in which they were made.
///
/// # Errors
/// A mount table that cannot be read.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(parse).filter(|mount| mount.target.starts_with(dir)).collect())
}

/// The mount that is on top at exactly `target`.
///
/// # Errors
/// There is none.
pub fn mount_at(target: &Path) -> Outcome<Mount> {
    let found = mounts_below(target)?.into_iter().rfind(|mount| mount.target == target);
    found.ok_or_else(|| format!("nothing is mounted at {}", target.display()).into())
}

/// `36 35 7:3 / /target rw,noatime shared:1 - xfs /dev/loop3 rw`
fn parse(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let mut back = back.split(' ');
    Some(Mount {
        device: front.next()?.to_owned(),
        root: unescaped(front.next()?),
        target: unescaped(front.next()?),
        fs_type: back.next()?.to_owned(),
        source: back.next()?.to_owned(),
    })
}

/// The kernel writes blank, tab, newline and backslash in octal.
fn unescaped(text: &str) -> PathBuf {
    let plain = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    PathBuf::from(plain)
}

/// Unmounts everything at or below `dir`, the last mount first, and says what it had to unmount.
///
/// # Errors
/// A mount that stays.
pub fn unmount_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut unmounted = Vec::new();
    for mount in mounts_below(dir)?.into_iter().rev() {
        let done = Command::new("umount").arg(&mount.target).output()?;
        if !done.status.success() {
            // A loop device over a file in it could not be found any more once it is out of the tree.
            for device in loop_devices_over(&mount.target)? {
                Command::new("losetup").arg("--detach").arg(device).output()?;
            }
            // Something still holds it: it goes from the tree now and from the kernel when it is let go.
            let lazily = Command::new("umount").arg("--lazy").arg(&mount.target).output()?;
            if !lazily.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&lazily.stderr).trim().to_owned()));
            }
        }
        unmounted.push(mount.target);
    }
    Ok(unmounted)
}

/// The loop devices over files below `dir`.
///
/// # Errors
/// A `/sys` that cannot be read.
pub fn loop_devices_over(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|file| Path::new(file.trim_end()).starts_with(dir)) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(found)
}

/// The size of a block device, from the kernel.
///
/// # Errors
/// No such device.
pub fn device_bytes(device: &str) -> Outcome<u64> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    let sectors = fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
    Ok(sectors.trim().parse::<u64>()? * 512)
}

/// The size of the file system at `path` and what is free in it, as `df` counts.
///
/// # Errors
/// No such path.
pub fn fs_bytes(path: &Path) -> Outcome<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let unit = stat.fragment_size();
    Ok((stat.blocks() * unit, stat.blocks_available() * unit))
}

/// The SHA-256 of a file's first `length` bytes from `offset` on, by coreutils.
///
/// # Errors
/// A file that cannot be read, or is too short.
pub fn sha256(path: &Path, offset: u64, length: u64) -> Outcome<String> {
    use std::io::{Read, Seek, SeekFrom, Write};

    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(format!("{} has only {} of {length} bytes", path.display(), bytes.len()).into());
    }
    let mut child =
        Command::new("sha256sum").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn()?;
    // Dropped at the end of the statement, which is the end of its input.
    child.stdin.take().ok_or("sha256sum has no input")?.write_all(&bytes)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().map(str::to_owned).ok_or_else(|| "sha256sum printed nothing".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_is_understood() {
        let line = "36 35 7:3 /a\\040b /mnt/x\\040y rw,noatime shared:1 master:2 - xfs /dev/loop3 rw,attr2";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, "7:3");
        assert_eq!(mount.root, Path::new("/a b"));
        assert_eq!(mount.target, Path::new("/mnt/x y"));
        assert_eq!((mount.fs_type.as_str(), mount.source.as_str()), ("xfs", "/dev/loop3"));
        assert_eq!(parse("nonsense"), None);
    }
}
