//! The serials of disks, read so that one disk that has stopped answering holds up nothing but itself.
//!
//! To tell its serial a virtio disk is asked for it each time (`VIRTIO_BLK_T_GET_ID`), and one that hangs never
//! answers. So a disk is asked once; what it said holds for as long as the kernel shows the same device. One that does
//! not answer in a moment is as good as one whose serial cannot be read, and is not asked again until it has.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::warn;

use super::{Disk, Serial, disk};

/// How long a disk may take to tell its serial.
const PATIENCE: Duration = Duration::from_secs(2);

/// What stays the same for exactly as long as the kernel shows the same device: sysfs gives every device files of its
/// own, and newer kernels a number as well.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    file: PathBuf,
    inode: (u64, u64),
    changed: (i64, i64),
    number: super::DeviceNumber,
    diskseq: Option<u64>,
}

impl Identity {
    fn of(disk: &Disk, file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        Some(Self {
            file: file.to_owned(),
            inode: (found.dev(), found.ino()),
            changed: (found.mtime(), found.mtime_nsec()),
            number: disk.number,
            diskseq: disk.diskseq,
        })
    }
}

/// The serials that disks have told.
#[derive(Debug, Default, Clone)]
pub(super) struct Serials(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    known: HashMap<Identity, String>,
    asked: HashMap<Identity, Asked>,
}

/// A disk has been asked and has not answered yet.
#[derive(Debug, Clone)]
struct Asked {
    since: Instant,
    answer: watch::Receiver<Option<Serial>>,
}

impl Serials {
    /// The disks with their serials. All that are not known yet are asked at once.
    pub(super) async fn of(&self, found: Vec<(Disk, Option<PathBuf>)>) -> Vec<Disk> {
        let there: HashSet<Identity> =
            found.iter().filter_map(|(disk, file)| Identity::of(disk, file.as_deref()?)).collect();
        self.told(|told| told.known.retain(|identity, _| there.contains(identity)));
        join_all(found.into_iter().map(|(disk, file)| self.fill(disk, file))).await
    }

    /// The disk with its serial.
    pub(super) async fn fill(&self, mut disk: Disk, file: Option<PathBuf>) -> Disk {
        let Some(file) = file else { return disk };
        // Without an identity it has just gone, or is not the kernel's; then it is asked each time.
        disk.serial = match Identity::of(&disk, &file) {
            Some(identity) => self.ask(identity).await,
            None => Serial::Absent,
        };
        disk
    }

    async fn ask(&self, identity: Identity) -> Serial {
        let file = identity.file.clone();
        let mut asked = match self.told(|told| told.begin(&identity)) {
            Begun::Known(serial) => return Serial::Text(serial),
            Begun::Already(asked) => asked,
            Begun::Now(asked, answer) => {
                let serials = self.clone();
                tokio::task::spawn_blocking(move || {
                    let serial = disk::serial(&identity.file);
                    serials.told(|told| {
                        told.asked.remove(&identity);
                        // An empty one may be a disk that failed to tell (virtio): it is asked again.
                        if let Serial::Text(text) = &serial
                            && !text.is_empty()
                        {
                            told.known.insert(identity, text.clone());
                        }
                    });
                    // Nobody may be waiting any more.
                    answer.send_replace(Some(serial));
                });
                asked
            }
        };
        let answered = timeout_at(asked.since + PATIENCE, asked.answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(serial)) => serial.clone().unwrap_or(Serial::Absent),
            Ok(Err(_)) => Serial::Unreadable("reading it panicked".to_owned()),
            Err(_) => {
                warn!(file = %file.display(), "a disk does not tell its serial");
                Serial::Unreadable(format!("the disk does not tell it within {} s", PATIENCE.as_secs()))
            }
        }
    }

    fn told<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a disk has to be asked.
enum Begun {
    Known(String),
    Already(Asked),
    Now(Asked, watch::Sender<Option<Serial>>),
}

impl Told {
    fn begin(&mut self, identity: &Identity) -> Begun {
        if let Some(serial) = self.known.get(identity) {
            return Begun::Known(serial.clone());
        }
        if let Some(asked) = self.asked.get(identity) {
            return Begun::Already(asked.clone());
        }
        let (answer, to_come) = watch::channel(None);
        let asked = Asked { since: Instant::now(), answer: to_come };
        self.asked.insert(identity.clone(), asked.clone());
        Begun::Now(asked, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::host::DeviceNumber;

    fn disk(name: &str) -> Disk {
        let number = DeviceNumber { major: 252, minor: 0 };
        let serial = Serial::Absent;
        Disk { name: name.to_owned(), number, size: 0, diskseq: Some(1), serial, partitions: Vec::new(), mapping: None }
    }

    #[tokio::test]
    async fn a_disk_is_asked_once_and_again_when_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("serial");
        let serials = Serials::default();
        let told = async || serials.of(vec![(disk("vda"), Some(file.clone()))]).await[0].serial.clone();
        fs::write(&file, "one\n").unwrap();
        assert_eq!(told().await, Serial::Text("one".to_owned()));
        // The kernel never changes a serial in its place, so whoever changes it here makes another file.
        let other = directory.path().join("other");
        fs::write(&other, "two").unwrap();
        assert_eq!(told().await, Serial::Text("one".to_owned()));
        fs::rename(other, &file).unwrap();
        assert_eq!(told().await, Serial::Text("two".to_owned()));
        fs::remove_file(&file).unwrap();
        assert_eq!(told().await, Serial::Absent);
        assert!(serials.told(|told| told.known.is_empty()));
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_holds_nobody_up_for_long_and_is_asked_only_once() {
        let directory = tempfile::tempdir().unwrap();
        // Opening a pipe that nobody writes to waits, as reading from a dead disk does.
        let silent = directory.path().join("silent");
        nix::unistd::mkfifo(&silent, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let well = directory.path().join("well");
        fs::write(&well, "well").unwrap();
        let serials = Serials::default();
        let found = || vec![(disk("vda"), Some(silent.clone())), (disk("vdb"), Some(well.clone()))];
        for round in 0..3 {
            let began = Instant::now();
            let disks = serials.of(found()).await;
            assert!(matches!(&disks[0].serial, Serial::Unreadable(why) if why.contains("within")), "{disks:?}");
            assert_eq!(disks[1].serial, Serial::Text("well".to_owned()));
            assert!(round == 0 || began.elapsed() < PATIENCE / 2, "waited again: {:?}", began.elapsed());
        }
        assert_eq!(serials.told(|told| told.asked.len()), 1);
        // It comes back.
        fs::write(&silent, "late").unwrap();
        while serials.told(|told| !told.asked.is_empty()) {
            tokio::task::yield_now().await;
        }
        assert!(serials.told(|told| told.known.values().any(|serial| serial == "late")));
    }
}
