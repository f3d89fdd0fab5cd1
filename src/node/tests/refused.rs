//! The table of disks that must never be formatted: foreign, damaged, or not readable.
//!
//! Each row is a disk on a real loop device. Staging it, though the volume may be formatted if its disk is blank, has
//! to end in a refusal that names what was found, and in a disk of the same SHA-256. What holds a signature is tried
//! again with the first 1 MiB and then the first 8 MiB zeroed, as somebody does who wants to be rid of it, for as long
//! as anything is left.

mod foreign;

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use faulty_disk::FaultyDisk;
use tokio::{sync::Semaphore, task::JoinSet};

use self::foreign::{MADE, MARKED, MARKED_MIB, MOUNTABLE, Made, Marked, UNNAMED};
use super::machine::{Loop, MIB, Machine, SERIAL, run};
use crate::{
    cloud::Attachment,
    error::Error,
    node::{Stage, host::output_of},
    volume::{FsType, Gib},
};

/// How many disks are worked on at once.
const AT_ONCE: usize = 3;

/// The heads that are zeroed one after the other.
const HEADS_MIB: [u64; 2] = [1, 8];

/// What became of a disk.
enum Outcome {
    /// It was refused for what was found.
    Refused(String),
    /// Nothing of it is left, so it may be formatted.
    Blank,
    /// The driver did something that it must not do.
    Unsafe(String),
    /// There is no such disk here.
    Skipped(String),
}

/// A line of the table.
struct Line {
    name: String,
    outcome: Outcome,
}

/// A disk that is no one's signature, or a machine on which nothing may be formatted.
struct Case {
    name: String,
    /// What the refusal has to say.
    found: String,
    /// It takes a disk that cannot be read.
    faulty: bool,
    set: Box<dyn Fn(&Machine) -> Scene + Send>,
}

/// What a case has made of the machine.
struct Scene {
    disk: Option<Loop>,
    request: Stage,
    /// What has to be there for as long as the case lasts.
    held: Box<dyn std::any::Any>,
}

type Job = Box<dyn FnOnce() -> Vec<Line> + Send>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_disks_that_are_refused() {
    if Machine::new().is_none() {
        return;
    }
    // cryptsetup and LVM make these, also where the kernel has no device-mapper.
    let made = ["/dev/mapper/control", "/dev/mapper"].map(Path::new).into_iter().filter(|path| !path.exists());
    let made: Vec<&Path> = made.collect();
    let mut jobs: Vec<Job> = Vec::new();
    jobs.extend(MADE.iter().map(|made| Box::new(move || try_made(made)) as Job));
    jobs.extend(MARKED.iter().map(|marked| Box::new(move || try_marked(marked)) as Job));
    jobs.extend(own_cases().into_iter().map(|case| Box::new(move || vec![try_case(&case)]) as Job));
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tried = JoinSet::new();
    for (number, job) in jobs.into_iter().enumerate() {
        let turns = Arc::clone(&turns);
        tried.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            (number, tokio::task::spawn_blocking(job).await.unwrap())
        });
    }
    let mut lines = tried.join_all().await;
    if !Path::new("/sys/class/misc/device-mapper").exists() {
        for path in made {
            fs::remove_file(path).or_else(|_| fs::remove_dir(path)).ok();
        }
    }
    lines.sort_by_key(|(number, _)| *number);

    let (mut rows, mut unsafe_rows) = (0, Vec::new());
    for Line { name, outcome } in lines.into_iter().flat_map(|(_, lines)| lines) {
        match outcome {
            Outcome::Refused(found) => {
                rows += 1;
                println!("row {rows:3} {name}: refused: {found}");
            }
            Outcome::Blank => println!("        {name}: nothing is left, so it is blank"),
            Outcome::Skipped(reason) => println!("skipped part: {name}: {reason}"),
            Outcome::Unsafe(what) => {
                rows += 1;
                println!("row {rows:3} {name}: UNSAFE: {what}");
                unsafe_rows.push(name);
            }
        }
    }
    println!("{rows} disks, {} of them unsafe", unsafe_rows.len());
    assert!(unsafe_rows.is_empty(), "{unsafe_rows:?}");
    assert!(rows >= 40, "only {rows} rows");
}

/// What some file systems leave behind their head is little, and on large disks far apart.
#[test]
fn the_little_that_is_left_of_a_file_system_without_its_head_is_found() {
    if Machine::new().is_none() {
        return;
    }
    let mut formatted = Vec::new();
    for (name, size_mib, head_mib, command) in [
        // The root of its tree, at 32844 KiB; from 128 MiB on there are bitmaps where ext4 has superblocks.
        ("ReiserFS", 48, 1, "mkreiserfs -q -f -f"),
        // The first block of the second FAT, at 12832 KiB, is all that is left.
        ("FAT32", 102_400, 1, "mkfs.vfat -F 32"),
        // At 261984 KiB.
        ("FAT32", 2_096_000, 8, "mkfs.vfat -F 32"),
        // At 10 MiB (a segment's summary), 270 MiB and 276 MiB (the first blocks of the main area).
        ("F2FS", 40_960, 8, "mkfs.f2fs -q -f"),
        // At 14 MiB, 446 MiB and 452 MiB.
        ("F2FS", 102_400, 8, "mkfs.f2fs -q -f"),
        // At 66560 KiB and 68608 KiB to 68740 KiB: bitmap, upper-case table, root directory.
        ("exFAT", 2_096_000, 8, "mkfs.exfat"),
    ] {
        let machine = Machine::new().unwrap();
        let image = machine.image(size_mib * MIB);
        run("sh", &["-c", &format!("PATH=$PATH:/usr/sbin {command} {} > /dev/null", image.display())]);
        let disk = machine.disk_over(image);
        zero_head(&disk, head_mib * MIB);
        machine.show(&disk, SERIAL);
        let staged = wait(machine.stage(FsType::Ext4));
        if staged.is_ok() || machine.mkfs_runs() > 0 {
            formatted.push(format!("{name} of {size_mib} MiB, its first {head_mib} MiB zeroed"));
        }
    }
    assert!(formatted.is_empty(), "{formatted:?}");
}

#[tokio::test]
async fn a_blank_disk_that_takes_no_writes_is_formatted_when_it_takes_them() {
    let Some(machine) = Machine::new() else { return };
    if let Some(reason) = faulty_disk::unavailable() {
        println!("skipped: a_blank_disk_that_takes_no_writes_is_formatted_when_it_takes_them: {reason}");
        return;
    }
    let faulty = FaultyDisk::new(&std::env::temp_dir(), WIDE).unwrap();
    machine.show(&Loop { device: faulty.device().to_owned(), image: faulty.image().to_owned() }, SERIAL);
    faulty.fail_writes(0..WIDE);
    let error = machine.stage(FsType::Ext4).await.unwrap_err();
    assert!(matches!(error, Error::Tool { .. }), "{error}");
    assert!(machine.mounts().is_empty() && machine.mkfs_runs() == 1);
    faulty.heal();
    machine.stage(FsType::Ext4).await.unwrap();
    assert_eq!((machine.mounts().len(), machine.mkfs_runs()), (1, 2));
    machine.unstage().await.unwrap();
    assert!(machine.state().is_empty() && faulty.is_flushed());
}

/// Runs a future of the driver's on a thread of its own.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn try_made(made: &Made) -> Vec<Line> {
    let line = |outcome| vec![Line { name: made.name.to_owned(), outcome }];
    if !["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|at| Path::new(at).join(made.tool).exists()) {
        return line(Outcome::Skipped(format!("there is no {}", made.tool)));
    }
    let machine = Machine::new().unwrap();
    let (image, scratch) = (machine.image(made.mib * MIB), machine.path("scratch"));
    fs::create_dir(&scratch).unwrap();
    fs::write(scratch.join("file"), "text").unwrap();
    let disk = made.command.contains("$DEVICE").then(|| machine.disk_over(image.clone()));
    let device = disk.as_ref().map(|disk| disk.device.as_path());
    let settings = format!(
        "set -e; PATH=$PATH:/usr/sbin:/sbin IMAGE={} DEVICE={} SCRATCH={}; {{ {}; }} < /dev/null",
        image.display(),
        device.unwrap_or(Path::new("none")).display(),
        scratch.display(),
        made.command
    );
    run("sh", &["-c", &settings]);
    let disk = disk.unwrap_or_else(|| machine.disk_over(image));
    machine.show(&disk, SERIAL);
    wipe_and_try(&machine, &disk, made.name, made.found)
}

fn try_marked(marked: &Marked) -> Vec<Line> {
    let machine = Machine::new().unwrap();
    let disk = machine.attach(MARKED_MIB);
    for (at, bytes) in (marked.pieces)() {
        let mut file = fs::OpenOptions::new().write(true).open(&disk.image).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    wipe_and_try(&machine, &disk, marked.name, marked.found)
}

/// The disk as it is, and with more and more of its head zeroed.
fn wipe_and_try(machine: &Machine, disk: &Loop, name: &str, found: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    if found != MOUNTABLE {
        let outcome = wait(refused(machine, machine.stage_of(FsType::Ext4), Some(disk), &[found]));
        lines.push(Line { name: name.to_owned(), outcome });
    }
    for head in HEADS_MIB {
        zero_head(disk, head * MIB);
        let outcome = if is_zero(disk) {
            Outcome::Blank
        } else {
            // What is left may have a name still.
            wait(refused(machine, machine.stage_of(FsType::Ext4), Some(disk), &[UNNAMED, found]))
        };
        let is_blank = matches!(outcome, Outcome::Blank);
        lines.push(Line { name: format!("{name}, its first {head} MiB zeroed"), outcome });
        if is_blank {
            break;
        }
    }
    lines
}

/// Stages the disk, which has to be refused with one of these words, and looks whether anything came of it.
async fn refused(machine: &Machine, request: Stage, disk: Option<&Loop>, found: &[&str]) -> Outcome {
    let before = disk.map(sum);
    let result = machine.stage_as(request).await;
    let mut wrong = Vec::new();
    let mut said = String::new();
    match &result {
        Ok(()) => wrong.push("it was staged".to_owned()),
        Err(Error::DiskRefused { found, .. } | Error::NotYet(found) | Error::Precondition(found)) => {
            said.clone_from(found);
        }
        Err(error) => wrong.push(format!("an error of another kind: {error}")),
    }
    if result.is_err() && !found.iter().any(|word| said.contains(word)) {
        wrong.push(format!("it says '{said}', which is none of {found:?}"));
    }
    if machine.mkfs_runs() > 0 {
        wrong.push("mkfs ran".to_owned());
    }
    if !machine.mounts().is_empty() {
        wrong.push("something is mounted".to_owned());
    }
    if !machine.state().is_empty() {
        wrong.push(format!("the state directory holds {:?}", machine.state()));
    }
    if before != disk.map(sum) {
        wrong.push("the disk was changed".to_owned());
    }
    if wrong.is_empty() { Outcome::Refused(said) } else { Outcome::Unsafe(wrong.join("; ")) }
}

/// The SHA-256 of all that the disk holds.
fn sum(disk: &Loop) -> String {
    run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
    run("sha256sum", &[disk.image.to_str().unwrap()]).split_whitespace().next().unwrap().to_owned()
}

/// Makes the first bytes zero, by a hole in the file: nothing has to be written for that.
fn zero_head(disk: &Loop, bytes: u64) {
    run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
    run("fallocate", &["--punch-hole", "--length", &bytes.to_string(), disk.image.to_str().unwrap()]);
    run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
}

/// Whether there is nothing on the disk at all. It was flushed.
fn is_zero(disk: &Loop) -> bool {
    let size = fs::metadata(&disk.image).unwrap().len().to_string();
    let arguments = ["--silent", "--bytes", &size, disk.image.to_str().unwrap(), "/dev/zero"];
    let compared = output_of(std::process::Command::new("cmp").args(arguments)).unwrap();
    compared.status.success()
}

fn try_case(case: &Case) -> Line {
    let name = case.name.clone();
    if let Some(reason) = faulty_disk::unavailable().filter(|_| case.faulty) {
        return Line { name, outcome: Outcome::Skipped(reason.to_owned()) };
    }
    let machine = Machine::new().unwrap();
    let Scene { disk, request, held } = (case.set)(&machine);
    let outcome = wait(refused(&machine, request, disk.as_ref(), &[&case.found]));
    drop(held);
    Line { name, outcome }
}

/// The cases that are not about what somebody else has put on the disk.
fn own_cases() -> Vec<Case> {
    let mut cases = unreadable();
    cases.extend(one_byte());
    cases.extend(not_to_be_formatted());
    cases
}

fn case(name: &str, found: &str, set: impl Fn(&Machine) -> Scene + Send + 'static) -> Case {
    Case { name: name.to_owned(), found: found.to_owned(), faulty: false, set: Box::new(set) }
}

fn scene(machine: &Machine, disk: Option<Loop>) -> Scene {
    Scene { disk, request: machine.stage_of(FsType::Ext4), held: Box::new(()) }
}

/// The size of disks on which every class of places is apart from the others.
const WIDE: u64 = 144 * MIB;

/// Places of a disk of [`WIDE`] that a proof has to look at, each for another reason.
const PLACES: [(&str, u64); 8] = [
    ("the first block", 0),
    ("the last block", WIDE - 4096),
    ("the superblock of btrfs", 64 * 1024),
    ("a copy of ext4's superblock with blocks of 1 KiB", 3 * 8192 * 1024 + 1024),
    ("a copy of ext4's superblock with blocks of 4 KiB", 128 * MIB),
    ("an allocation group of xfs", 36 * MIB),
    ("the copy of btrfs' superblock", 64 * MIB),
    ("one of the samples", WIDE / 1024 * 511),
];

/// Disks that answer with EIO.
fn unreadable() -> Vec<Case> {
    let sized = |size: u64, name: String, prepare: fn(&FaultyDisk, u64), at: u64| Case {
        name,
        found: "cannot be read".to_owned(),
        faulty: true,
        set: Box::new(move |machine| {
            // Apart from the machine, whose mounts are looked at.
            let faulty = FaultyDisk::new(&std::env::temp_dir(), size).unwrap();
            let disk = Loop { device: faulty.device().to_owned(), image: faulty.image().to_owned() };
            prepare(&faulty, at);
            run("blockdev", &["--flushbufs", disk.device.to_str().unwrap()]);
            machine.show(&disk, SERIAL);
            Scene { held: Box::new(faulty), ..scene(machine, Some(disk)) }
        }),
    };
    let faulty = |name: String, prepare: fn(&FaultyDisk, u64), at: u64| sized(WIDE, name, prepare, at);
    let mut cases: Vec<Case> = PLACES
        .into_iter()
        .map(|(what, at)| {
            faulty(
                format!("a blank disk on which {what} cannot be read"),
                |disk, at| disk.fail_reads(at..at + 4096),
                at,
            )
        })
        .collect();
    cases.push(faulty("a blank disk of which nothing can be read".to_owned(), |disk, _| disk.fail_all(), 0));
    cases.push(faulty(
        "ext4 whose superblock cannot be read".to_owned(),
        |disk, _| {
            run("mkfs.ext4", &["-q", disk.device().to_str().unwrap()]);
            disk.fail_reads(0..4096);
        },
        0,
    ));
    cases.push(sized(
        // mkfs.xfs makes nothing smaller.
        320 * MIB,
        "xfs of which nothing can be read".to_owned(),
        |disk, _| {
            run("mkfs.xfs", &["-q", disk.device().to_str().unwrap()]);
            disk.fail_all();
        },
        0,
    ));
    cases.push(faulty(
        "btrfs of which all but the last MiB cannot be read".to_owned(),
        |disk, _| {
            run("mkfs.btrfs", &["-q", disk.device().to_str().unwrap()]);
            disk.fail_reads(0..WIDE - MIB);
        },
        0,
    ));
    cases
}

/// Blank disks but for one byte.
fn one_byte() -> Vec<Case> {
    let inside = [("the end of the head", 8 * MIB - 1), ("the start of the tail", WIDE - 8 * MIB)];
    PLACES
        .into_iter()
        .chain(inside)
        .map(|(what, at)| {
            let at = if what == "the last block" { WIDE - 1 } else { at };
            case(&format!("a blank disk but for one byte in {what}"), &format!("offset {at} "), move |machine| {
                let disk = machine.attach(WIDE / MIB);
                disk.write(at, &[1]);
                scene(machine, Some(disk))
            })
        })
        .collect()
}

/// Disks that are blank or not there, and are none to be formatted.
fn not_to_be_formatted() -> Vec<Case> {
    const MIB_SIZE: u64 = 64;
    vec![
        case("a blank disk that is shorter than the cloud says", "the cloud says 1073741824", |machine| {
            let mut scene = scene(machine, Some(machine.attach(MIB_SIZE)));
            scene.request.attachment = Attachment::Disk { serial: SERIAL.to_owned(), size: Some(Gib(1)) };
            scene
        }),
        case(
            "a blank disk of a volume from a snapshot, or of a PersistentVolume not ours",
            "not made blank",
            |machine| {
                let mut scene = scene(machine, Some(machine.attach(MIB_SIZE)));
                scene.request.blank = false;
                scene
            },
        ),
        case("ext4 without its superblock, of a volume from a snapshot", "not made blank", |machine| {
            let disk = machine.attach(MIB_SIZE);
            run("mkfs.ext4", &["-q", disk.device.to_str().unwrap()]);
            disk.write(0, &[0; 4096]);
            let mut scene = scene(machine, Some(disk));
            scene.request.blank = false;
            scene
        }),
        case("a disk of no size", "it has 0 bytes", |machine| {
            let disk = machine.disk_over(machine.image(0));
            machine.show(&disk, SERIAL);
            scene(machine, Some(disk))
        }),
        case("a disk whose end is missing", "cannot be read", |machine| {
            let disk = machine.attach(MIB_SIZE);
            fs::OpenOptions::new().write(true).open(&disk.image).unwrap().set_len(40 * MIB).unwrap();
            scene(machine, Some(disk))
        }),
        case("a blank disk that something else has", "it cannot be had exclusively", |machine| {
            let disk = machine.attach(MIB_SIZE);
            let claim = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&disk.device).unwrap();
            Scene { held: Box::new(claim), ..scene(machine, Some(disk)) }
        }),
        case("a disk without a node", "has no node", |machine| {
            let shown = machine.path("sys/class/block/vdnone");
            fs::create_dir(&shown).unwrap();
            for (file, text) in [("serial", SERIAL), ("dev", "252:1040"), ("size", "131072")] {
                fs::write(shown.join(file), text).unwrap();
            }
            scene(machine, None)
        }),
        case("no disk at all", "no disk of this machine shows serial", |machine| scene(machine, None)),
    ]
}
