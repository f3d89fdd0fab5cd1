//! A folder whose files misbehave on demand.

use std::{
    fs, io,
    ops::Deref,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use fuser::{BackgroundSession, Config, MountOption, Session};
use nix::mount::{MntFlags, umount2};

use crate::{faults::Faults, serve::Served};

/// How often it is looked whether something that was let go of is gone, and how long in between.
const ATTEMPTS: u32 = 250;
const PAUSE: Duration = Duration::from_millis(20);

/// What becomes of the mount when this process is killed. A thread of ours that waits for a disk of ours could then
/// never end, nor could this process, nor who looks at the mount: nobody answers, and the connection stays open until the
/// last thread is gone. So somebody else looks whether the first thread lives, and if not ends the connection, which is
/// what `umount -f` does to FUSE, and lets go of the loop devices.
const WATCHMAN: &str = r#"
while kill -0 "$1" 2> /dev/null; do
    case $(sed 's/.*) //' "/proc/$1/stat" 2> /dev/null) in Z* | X* | "") break ;; esac
    sleep 0.2
done
umount -f "$2"
for file in /sys/block/loop*/loop/backing_file; do
    case $(cat "$file" 2> /dev/null) in "$2"/*) file=${file#/sys/block/}; losetup -d "/dev/${file%%/*}" ;; esac
done
umount -l "$2"
"#;

/// The files of one folder, served in another place, with [`Faults`] on every one of them.
#[derive(Debug)]
pub struct FaultyFolder {
    faults: Arc<Faults>,
    mounted_at: PathBuf,
    session: Option<BackgroundSession>,
    watchman: Child,
}

impl FaultyFolder {
    /// Serves the files in `behind` at `mounted_at`; both are directories. What was at `mounted_at` is hidden.
    ///
    /// # Errors
    /// No root, no FUSE.
    pub fn serve(behind: &Path, mounted_at: &Path) -> io::Result<Self> {
        let faults = Arc::new(Faults::default());
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty-disk".to_owned()), MountOption::NoAtime];
        // The kernel shows the files of loop devices by their real paths.
        let mounted_at = fs::canonicalize(mounted_at)?;
        let served = Served::new(fs::canonicalize(behind)?, Arc::clone(&faults));
        let session = Session::new(served, &mounted_at, &config)?.spawn()?;
        let watchman = Command::new("sh")
            .args(["-c", WATCHMAN, "sh", &std::process::id().to_string()])
            .arg(&mounted_at)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // It is not killed along with us.
            .process_group(0)
            .spawn()?;
        Ok(Self { faults, mounted_at, session: Some(session), watchman })
    }
}

impl Deref for FaultyFolder {
    type Target = Faults;

    fn deref(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for FaultyFolder {
    fn drop(&mut self) {
        self.faults.heal();
        self.watchman.kill().ok();
        self.watchman.wait().ok();
        give_back(&self.mounted_at);
        let session = self.session.take();
        if wait_until(|| umount2(&self.mounted_at, MntFlags::empty()) != Err(nix::errno::Errno::EBUSY)) {
            session.map(BackgroundSession::umount_and_join);
        } else {
            // Somebody still works in it. It is served until he is done, or this process is.
            umount2(&self.mounted_at, MntFlags::MNT_DETACH).ok();
            eprintln!("{} is still in use, and was unmounted lazily", self.mounted_at.display());
        }
    }
}

/// Unmounts and detaches all loop devices over files in `folder`, and waits for that.
pub(crate) fn give_back(folder: &Path) {
    for device in loops_below(folder) {
        unmount_all_of(&device);
        // It goes when the last of those that have it open lets go.
        Command::new("losetup").arg("--detach").arg(&device).output().ok();
    }
    wait_until(|| loops_below(folder).is_empty());
}

/// The loop devices over files in `folder`.
fn loops_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let over = |name: &Path| fs::read_to_string(name.join("loop/backing_file"));
    entries
        .filter(|entry| over(&entry.path()).is_ok_and(|file| Path::new(file.trim_end()).starts_with(folder)))
        .map(|entry| Path::new("/dev").join(entry.file_name()))
        .collect()
}

/// Unmounts what a test that failed has left mounted of the device, the last mount first.
fn unmount_all_of(device: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines().rev() {
        let Some((place, (_, source))) = line.split_once(" - ").and_then(|(a, b)| Some((a, b.split_once(' ')?))) else {
            continue;
        };
        if source.split(' ').next().is_some_and(|source| Path::new(source) == device)
            && let Some(target) = place.split(' ').nth(4)
            && umount2(target, MntFlags::empty()).is_err()
        {
            umount2(target, MntFlags::MNT_DETACH).ok();
        }
    }
}

/// Whether it came true within a few seconds. It blocks, since it runs on drop.
#[allow(clippy::disallowed_methods, reason = "Drop calls it, and cannot wait in another way")]
pub(crate) fn wait_until(mut is_so: impl FnMut() -> bool) -> bool {
    (0..ATTEMPTS).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        is_so()
    })
}
