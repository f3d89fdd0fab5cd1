//! SIGKILL while mkfs, a check or a growth really runs: what it worked on comes to its right end, and no second program
//! is ever started beside it.
//!
//! The volumes' disks are slow, so that there is an inside to hit: the simulated cloud's files lie in a folder that
//! takes its time. A hit counts if the program was seen to run when the driver died.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use demo::machine;
use faulty_disk::FaultyFolder;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use vultr_sim::Behaviour;

use crate::{
    cluster::{Cluster, GIB, Pvc, TURN, mounted, repeated, skipped},
    killed::Dice,
};

/// How many hits there have to be.
const WANTED: [(Kind, usize); 3] = [(Kind::Mkfs, 34), (Kind::Fsck, 33), (Kind::Resize, 33)];

/// A kill that comes too late is no hit. So many times more is tried.
const ATTEMPTS_A_HIT: usize = 5;

/// How often it is looked for a program.
const LOOK: Duration = Duration::from_millis(1);

/// The programs that change a disk.
const MKFS: [&str; 3] = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"];
const FSCK: [&str; 1] = ["e2fsck"];
const RESIZE: [&str; 3] = ["xfs_growfs", "btrfs", "resize2fs"];

/// What is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Mkfs,
    Fsck,
    Resize,
}

impl Kind {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Mkfs => &MKFS,
            Self::Fsck => &FSCK,
            Self::Resize => &RESIZE,
        }
    }
}

/// A process, as long as it is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    id: u32,
    name: String,
    began: String,
    parent: u32,
}

impl Program {
    /// The process of this id, unless it has ended.
    fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (front, back) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = back.split_whitespace().collect();
        let ended = matches!(*fields.first()?, "Z" | "X");
        let (name, parent) = (front.split_once('(')?.1.to_owned(), fields.get(1)?.parse().ok()?);
        (!ended).then_some(Self { id, name, began: (*fields.get(19)?).to_owned(), parent })
    }

    fn runs(&self) -> bool {
        Self::of(self.id).is_some_and(|now| now.began == self.began && now.name == self.name)
    }

    fn arguments(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.id)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }

    /// All that have one of these names.
    fn all(names: &[&str]) -> Vec<Self> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter_map(Self::of).filter(|program| names.contains(&program.name.as_str())).collect()
    }
}

/// Waits until the driver runs one of these programs in earnest.
async fn begun(driver: u32, names: &[&str]) -> Program {
    loop {
        let children = Program::all(names).into_iter().filter(|program| program.parent == driver);
        if let Some(program) = children.into_iter().find(|program| !program.arguments().contains(" -N ")) {
            return program;
        }
        sleep(LOOK).await;
    }
}

/// A volume on a slow disk.
struct Disk {
    pvc: Pvc,
    context: BTreeMap<String, String>,
    fs: &'static str,
    size: u64,
}

/// The cloud with its slow disks, and what was seen.
struct Bench {
    /// It ends before the cluster does, whose disks lie in it.
    folder: Option<FaultyFolder>,
    cluster: Cluster,
    behind: PathBuf,
    dice: Dice,
    hits: BTreeMap<(Kind, bool), usize>,
    misses: usize,
    by_program: BTreeMap<String, usize>,
}

impl Bench {
    async fn start() -> Self {
        let dice = Dice::take();
        let behaviour = Behaviour {
            create: Duration::from_millis(50),
            attach: Duration::from_millis(50),
            detach: Duration::from_millis(50),
            resize_every: Duration::ZERO,
            growth_seen_online: true,
            ..Behaviour::default()
        };
        let cluster = Cluster::start(&["one"], behaviour).await;
        let behind = cluster.bed.dir().join("behind");
        fs::create_dir(&behind).unwrap();
        let folder = FaultyFolder::serve(&behind, &cluster.bed.dir().join("cloud/disks")).unwrap();
        let (hits, by_program) = (BTreeMap::new(), BTreeMap::new());
        Self { folder: Some(folder), cluster, behind, dice, hits, misses: 0, by_program }
    }

    fn slow_writes(&self, pause: u64) {
        self.folder.as_ref().unwrap().slow_writes(Duration::from_millis(pause));
    }

    fn slow(&self, pause: u64) {
        self.folder.as_ref().unwrap().slow(Duration::from_millis(pause));
    }

    async fn disk(&self, name: &str, fs: &'static str) -> Disk {
        let capability = mounted(fs);
        let pvc = repeated(|| self.cluster.create(name, &capability)).await;
        let context = repeated(|| self.cluster.attach(0, &pvc)).await;
        Disk { pvc, context, fs, size: 10 }
    }

    fn image(&self, disk: &Disk) -> PathBuf {
        self.behind.join(format!("{}.img", disk.pvc.id))
    }

    fn device(&self, disk: &Disk) -> PathBuf {
        let file = self.cluster.bed.dir().join(format!("cloud/disks/{}.img", disk.pvc.id));
        machine::loop_devices_over(&file).unwrap().pop().unwrap()
    }

    /// Makes the kernel read the disk anew.
    fn forget_pages(&self, disk: &Disk) {
        let flushed = Command::new("blockdev").arg("--flushbufs").arg(self.device(disk)).status().unwrap();
        assert!(flushed.success());
    }

    /// Calls the driver and kills it when it has run a program of this kind for a random while; whether that one still
    /// ran then. With an even number of hits it is killed alone, else with all that it has started.
    async fn kill_inside(
        &mut self,
        kind: Kind,
        longest: u64,
        call: impl AsyncFn(&Cluster) -> Result<(), Status>,
    ) -> bool {
        let driver = self.cluster.bed.process("one").unwrap();
        let wait = Duration::from_millis(self.dice.roll(longest));
        let program = {
            let mut call = std::pin::pin!(repeated(|| call(&self.cluster)));
            tokio::select! {
                () = &mut call => None,
                program = begun(driver, kind.programs()) => {
                    timeout(wait, call).await.ok();
                    Some(program)
                }
            }
        };
        let count = |with_children| self.hits.get(&(kind, with_children)).copied().unwrap_or_default();
        let with_children = count(true) < count(false);
        let was_inside = program.as_ref().is_some_and(Program::runs);
        self.cluster.bed.kill("one", with_children).await.unwrap();
        // One that was left alone is known to have been hit only if it goes on.
        let hit = was_inside && (with_children || program.as_ref().is_some_and(Program::runs));
        if hit {
            *self.hits.entry((kind, with_children)).or_default() += 1;
            *self.by_program.entry(program.unwrap().name).or_default() += 1;
        } else {
            self.misses += 1;
        }
        if with_children {
            self.slow(0);
            self.slow_writes(0);
        }
        let instance = self.cluster.instances[0].clone();
        self.cluster.bed.node(&instance).await.unwrap();
        hit
    }

    async fn stage(&self, disk: &Disk) {
        repeated(|| self.cluster.stage(0, &disk.pvc, &disk.context)).await;
        repeated(|| self.cluster.publish(0, &disk.pvc, &disk.context)).await;
        self.slow(0);
        self.slow_writes(0);
    }

    async fn leave(&self, disk: &Disk) {
        repeated(|| self.cluster.leave(0, &disk.pvc)).await;
    }

    /// It is the file system that was asked for, as large as its disk.
    fn assert_whole(&self, disk: &Disk) {
        let target = self.cluster.target(0, &disk.pvc);
        assert_eq!(machine::mount_at(&target).unwrap().fs_type, disk.fs);
        let (bytes, _) = machine::fs_bytes(&target).unwrap();
        // What a file system keeps for itself, of the largest size.
        let least = disk.size * GIB - disk.size * GIB / 20 - GIB / 10;
        assert!(bytes >= least, "{} has {bytes} bytes on {} GiB", disk.fs, disk.size);
    }

    async fn mkfs(&mut self, disk: &Disk) {
        // Blank again, as it came from the cloud.
        let image = fs::OpenOptions::new().write(true).open(self.image(disk)).unwrap();
        image.set_len(0).unwrap();
        image.set_len(disk.size * GIB).unwrap();
        self.forget_pages(disk);
        self.slow_writes(10);
        self.kill_inside(Kind::Mkfs, 250, async |cluster| cluster.stage(0, &disk.pvc, &disk.context).await.map(drop))
            .await;
        self.stage(disk).await;
        self.assert_whole(disk);
        self.cluster.write(0, &disk.pvc);
        self.leave(disk).await;
        self.stage(disk).await;
        self.cluster.assert_data(0, &disk.pvc);
        self.leave(disk).await;
    }

    async fn fsck(&mut self, disk: &Disk) {
        // The checksum of the first group's block bitmap, in its descriptor: the kernel refuses the mount, and e2fsck
        // mends it by itself.
        let image = fs::OpenOptions::new().write(true).open(self.image(disk)).unwrap();
        image.write_all_at(&[0x55, 0xaa], 4096 + 24).unwrap();
        self.forget_pages(disk);
        self.slow(3);
        self.kill_inside(Kind::Fsck, 250, async |cluster| cluster.stage(0, &disk.pvc, &disk.context).await.map(drop))
            .await;
        self.stage(disk).await;
        self.assert_whole(disk);
        self.cluster.assert_data(0, &disk.pvc);
        self.leave(disk).await;
    }

    async fn resize(&mut self, disk: &mut Disk, while_mounted: bool) {
        if while_mounted {
            self.stage(disk).await;
        }
        // As the cloud grows it; only, the cloud would not do it again within a minute.
        disk.size += 3;
        let image = fs::OpenOptions::new().write(true).open(self.image(disk)).unwrap();
        image.set_len(disk.size * GIB).unwrap();
        assert!(Command::new("losetup").arg("--set-capacity").arg(self.device(disk)).status().unwrap().success());
        self.slow_writes(40);
        let disk = &*disk;
        if while_mounted {
            self.kill_inside(Kind::Resize, 150, async |cluster| cluster.grow_on_node(0, &disk.pvc, disk.size).await)
                .await;
            repeated(|| self.cluster.grow_on_node(0, &disk.pvc, disk.size)).await;
        } else {
            self.kill_inside(Kind::Resize, 150, async |cluster| {
                cluster.stage(0, &disk.pvc, &disk.context).await.map(drop)
            })
            .await;
        }
        self.stage(disk).await;
        self.assert_whole(disk);
        self.cluster.assert_data(0, &disk.pvc);
        self.leave(disk).await;
    }

    fn hits(&self, kind: Kind) -> usize {
        [false, true].iter().filter_map(|with_children| self.hits.get(&(kind, *with_children))).sum()
    }
}

/// Looks all the time how many programs work on one of these disks at once.
async fn watch(disks: Arc<Mutex<Vec<(PathBuf, String)>>>, most: Arc<AtomicUsize>) {
    let names: Vec<&str> = MKFS.into_iter().chain(FSCK).chain(RESIZE).collect();
    loop {
        let running: Vec<String> = Program::all(&names).iter().map(Program::arguments).collect();
        for (device, id) in disks.lock().unwrap().iter() {
            let device = format!("{} ", device.display());
            let at_once =
                running.iter().filter(|arguments| arguments.contains(&device) || arguments.contains(id)).count();
            most.fetch_max(at_once, Ordering::SeqCst);
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the kernel lets this root grow a mounted ext4 (CAP_SYS_RESOURCE).
pub(crate) fn may_grow_ext4() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(bounds.trim(), 16).unwrap() >> 24 & 1 == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_killed_inside_mkfs_a_check_or_a_growth_leaves_one_whole_file_system() {
    let test = "a_driver_killed_inside_mkfs_a_check_or_a_growth_leaves_one_whole_file_system";
    if skipped(test) {
        return;
    }
    if let Some(reason) = faulty_disk::unavailable() {
        println!("skipped: {test}: {reason}");
        return;
    }
    let _turn = TURN.lock().await;
    if !may_grow_ext4() {
        println!("skipped part: kills inside the growth of an ext4: no CAP_SYS_RESOURCE here");
    }
    let mut bench = Bench::start().await;
    let mut disks = Vec::new();
    for fs in ["xfs", "ext4", "btrfs"] {
        disks.push(bench.disk(&format!("pvc-{fs}"), fs).await);
    }
    let watched = disks.iter().map(|disk| (bench.device(disk), disk.pvc.id.clone())).collect();
    let most = Arc::new(AtomicUsize::new(0));
    let watching = tokio::spawn(watch(Arc::new(Mutex::new(watched)), Arc::clone(&most)));

    for (kind, wanted) in WANTED {
        let (mut attempt, began) = (0, Instant::now());
        while bench.hits(kind) < wanted {
            attempt += 1;
            assert!(attempt <= wanted * ATTEMPTS_A_HIT, "{kind:?}: {} hits in {attempt} attempts", bench.hits(kind));
            match kind {
                Kind::Mkfs => bench.mkfs(&disks[attempt % 3]).await,
                Kind::Fsck => bench.fsck(&disks[1]).await,
                Kind::Resize => {
                    let growable: &[usize] = if may_grow_ext4() { &[0, 1, 2] } else { &[0, 2] };
                    let disk = &mut disks[growable[attempt % growable.len()]];
                    bench.resize(disk, attempt % 4 < 2).await;
                }
            }
        }
        println!("{kind:?}: {attempt} kills in {:.1} s", began.elapsed().as_secs_f64());
    }

    watching.abort();
    for ((kind, with_children), hits) in &bench.hits {
        let whom = if *with_children { "the driver and all that it had started" } else { "the driver alone" };
        println!("inside {kind:?}: {hits} kills of {whom}");
    }
    println!("by program: {:?}; {} kills came too late", bench.by_program, bench.misses);
    assert_eq!(most.load(Ordering::SeqCst), 1, "programs at once on one disk");
    for disk in &disks {
        repeated(|| bench.cluster.detach(0, &disk.pvc)).await;
        repeated(|| bench.cluster.delete(&disk.pvc)).await;
    }
    let state = fs::read_dir(bench.cluster.bed.dir().join("one-state")).unwrap().flatten();
    assert_eq!(state.map(|entry| entry.file_name()).collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
    assert_eq!(fs::read_dir(&bench.behind).unwrap().count(), 0);
    assert_eq!(bench.cluster.bed.cloud().control().stats().dirty_detaches, 0);
    bench.folder = None;
    assert!(machine::mounts_below(Path::new(bench.cluster.bed.dir())).unwrap().is_empty());
    bench.cluster.end().await;
}
