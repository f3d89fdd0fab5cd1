//! The disks: sparse files, the loop devices over them, and their copies.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use tokio::process::Command;

const GIB: u64 = 1 << 30;
/// How often `losetup --find` is tried: another process may take the device that it found.
const FIND_ATTEMPTS: u32 = 50;
/// How long a device may stay after it was given back before it counts as held.
const RELEASE_ATTEMPTS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// The files of all volumes in one folder, those of all snapshots in another.
#[derive(Debug)]
pub(crate) struct Disks {
    dir: PathBuf,
    snapshots: PathBuf,
}

impl Disks {
    pub(crate) fn new(dir: PathBuf, snapshots: PathBuf) -> Self {
        Self { dir, snapshots }
    }

    pub(crate) fn file(&self, volume: &str) -> PathBuf {
        self.dir.join(format!("{volume}.img"))
    }

    pub(crate) fn snapshot_file(&self, snapshot: &str) -> PathBuf {
        self.snapshots.join(format!("{snapshot}.img"))
    }

    /// Makes a volume's sparse file, or grows it, and says its size in bytes.
    pub(crate) fn provide(&self, volume: &str, size_gb: u32) -> io::Result<u64> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.file(volume))?;
        let wanted = u64::from(size_gb) * GIB;
        if file.metadata()?.len() < wanted {
            file.set_len(wanted)?;
        }
        Ok(wanted)
    }

    pub(crate) fn remove(&self, volume: &str) -> io::Result<()> {
        ignore_absent(fs::remove_file(self.file(volume)))
    }

    /// Copies a volume's file to a snapshot's, with all that was written to the disk. What a file system above it still
    /// keeps in memory is not in it, as in a real cloud; unlike there, writes during the copy may be in it by halves.
    pub(crate) async fn take(&self, volume: &str, device: Option<PathBuf>, snapshot: &str) -> io::Result<()> {
        if let Some(device) = device {
            let sync = tokio::task::spawn_blocking(move || File::open(device)?.sync_all());
            sync.await.map_err(io::Error::other)??;
        }
        copy(&self.file(volume), &self.snapshot_file(snapshot)).await
    }

    /// Copies a snapshot's file to a volume's that doesn't exist yet.
    pub(crate) async fn restore(&self, snapshot: &str, volume: &str) -> io::Result<()> {
        copy(&self.snapshot_file(snapshot), &self.file(volume)).await
    }

    pub(crate) fn remove_snapshot(&self, snapshot: &str) -> io::Result<()> {
        ignore_absent(fs::remove_file(self.snapshot_file(snapshot)))
    }

    /// Puts a loop device over a volume's file.
    pub(crate) async fn attach(&self, volume: &str) -> io::Result<PathBuf> {
        let file = self.file(volume);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let found = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().await?;
            match printed("losetup --find", &found) {
                Ok(device) => return Ok(PathBuf::from(device)),
                Err(error) if attempt == FIND_ATTEMPTS => return Err(error),
                Err(_) => {
                    make_node().await?;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Takes the loop device away and says whether it went: one that is mounted stays until it is let go.
    pub(crate) async fn detach(&self, volume: &str, device: &Path) -> io::Result<bool> {
        let file = self.file(volume);
        let given_back = Command::new("losetup").arg("--detach").arg(device).output().await?;
        detached(&given_back, device, &file)?;
        for _ in 0..RELEASE_ATTEMPTS {
            if backing_file(device).is_none_or(|backing| backing != file) {
                return Ok(true);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(false)
    }

    /// Makes a loop device take over the size of its file.
    pub(crate) async fn reread_size(device: &Path) -> io::Result<()> {
        let set = Command::new("losetup").arg("--set-capacity").arg(device).output().await?;
        printed("losetup --set-capacity", &set).map(drop)
    }
}

/// Copies a file with its holes, or lets both share their blocks where the file system can.
async fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut command = Command::new("cp");
    command.args(["--reflink=auto", "--sparse=always", "--"]).arg(from).arg(to).kill_on_drop(true);
    let copied = printed("cp", &command.output().await?);
    if copied.is_err() {
        // No half of a copy is taken for a whole one.
        let _ = fs::remove_file(to);
    }
    copied.map(drop)
}

/// What a command printed, or its complaint as an error.
fn printed(what: &str, output: &Output) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{what}: {}", complaint.trim())))
}

/// Whether `losetup --detach` did its work, or had none: a device that was given back while somebody had it open goes when
/// the last one lets go, which may be just before.
fn detached(given_back: &Output, device: &Path, file: &Path) -> io::Result<()> {
    match printed("losetup --detach", given_back) {
        Err(error) if backing_file(device).is_some_and(|backing| backing == file) => Err(error),
        _ => Ok(()),
    }
}

/// Makes the node of the next free loop device if `/dev` lacks it, as it does in containers.
async fn make_node() -> io::Result<()> {
    let free = Command::new("losetup").arg("--find").output().await?;
    // The complaint of a missing node names it: "cannot find an unused loop device" doesn't, and is no news.
    let Ok(device) = printed("losetup --find", &free) else {
        return Ok(());
    };
    let number = device.strip_prefix("/dev/loop").unwrap_or_default();
    if number.parse::<u32>().is_err() || Path::new(&device).exists() {
        return Ok(());
    }
    let made = Command::new("mknod").args([&device, "b", "7", number]).output().await?;
    match printed("mknod", &made) {
        // Somebody else may have made it meanwhile.
        Err(error) if !Path::new(&device).exists() => Err(error),
        _ => Ok(()),
    }
}

/// The file under a loop device.
fn backing_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let attribute = Path::new("/sys/block").join(name).join("loop/backing_file");
    let text = fs::read_to_string(attribute).ok()?;
    // The kernel marks a file that was removed.
    let path = text.trim_end_matches('\n');
    Some(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)))
}

/// Every loop device whose file lies under a folder, with that file.
pub(crate) fn loops_under(dir: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut loops = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let device = Path::new("/dev").join(entry?.file_name());
        if let Some(file) = backing_file(&device).filter(|file| file.starts_with(dir)) {
            loops.push((device, file));
        }
    }
    Ok(loops)
}

/// Detaches every loop device whose file lies under a folder, waits until they are gone, and says which they were: the
/// way to clean up after a simulation that was killed. The folder may be gone already.
///
/// It blocks, since it also runs on drop.
///
/// # Errors
/// A loop device that can't be given back, or that something still uses, a mount for example.
#[allow(clippy::disallowed_methods, reason = "it is documented to block, and Drop calls it")]
pub fn sweep(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // The kernel knows the files by their real path.
    let dir = fs::canonicalize(dir).or_else(|_| std::path::absolute(dir))?;
    let mut swept = Vec::new();
    for (device, file) in loops_under(&dir)? {
        let given_back = std::process::Command::new("losetup").arg("--detach").arg(&device).output()?;
        detached(&given_back, &device, &file)?;
        swept.push(device);
    }
    let mut left = loops_under(&dir)?;
    for _ in 0..RELEASE_ATTEMPTS {
        if left.is_empty() {
            return Ok(swept);
        }
        // Another process may just be looking at it, in search of a free one.
        std::thread::sleep(PAUSE);
        left = loops_under(&dir)?;
    }
    let devices: Vec<String> = left.iter().map(|(device, _)| device.display().to_string()).collect();
    let text = format!("still in use: {}", devices.join(" "));
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

/// Nothing to remove is as good as removed.
pub(crate) fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether this process may use loop devices.
pub(crate) fn permitted() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/loop-control").map(|_: File| ()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that goes, with the loop devices over its files.
    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            sweep(&self.0).expect("loop devices that go");
            fs::remove_dir_all(&self.0).expect("a folder that goes");
        }
    }

    #[tokio::test]
    async fn a_disk_that_somebody_let_go_just_before_is_detached() {
        if !permitted() {
            println!("skipped: real disks need root and /dev/loop-control");
            return;
        }
        let dir = Folder(std::env::temp_dir().join(format!("vultr-sim-disk-{}", std::process::id())));
        fs::create_dir(&dir.0).unwrap();
        let disks = Disks::new(dir.0.clone(), dir.0.clone());
        let file = disks.file("a");
        File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let device = disks.attach("a").await.unwrap();
        let refused = Command::new("losetup").args(["--detach", "/dev/null"]).output().await.unwrap();
        assert!(!refused.status.success());
        detached(&refused, &device, &file).unwrap_err();

        assert!(disks.detach("a", &device).await.unwrap());
        detached(&refused, &device, &file).unwrap();
    }
}
