//! The misbehaviour is real, and ends with the value.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use faulty_disk::{FaultyDisk, FaultyFolder};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// Whether this machine has no such disks, said once for the test.
fn skipped(test: &str) -> bool {
    let reason = faulty_disk::unavailable();
    if let Some(reason) = reason {
        println!("skipped: {test}: {reason}");
    }
    reason.is_some()
}

fn disk(dir: &Path) -> FaultyDisk {
    FaultyDisk::new(dir, 64 * MIB).unwrap()
}

/// The error number of a read of one block, past the page cache, or 0.
fn read(disk: &FaultyDisk, at: u64) -> i32 {
    let mut buffer = vec![0; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(disk.device()).unwrap();
    number_of(file.read_exact_at(&mut buffer[start..start + BLOCK], at))
}

/// The error number of a write of one block and its flush, or 0.
fn write(disk: &FaultyDisk, at: u64, byte: u8) -> i32 {
    let file = OpenOptions::new().write(true).open(disk.device()).unwrap();
    number_of(file.write_all_at(&[byte; BLOCK], at).and_then(|()| file.sync_all()))
}

fn number_of(result: io::Result<()>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0)
}

/// Waits until it is so.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(10), "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn a_read_that_fails_is_eio_on_the_device_and_only_there() {
    if skipped("a_read_that_fails_is_eio_on_the_device_and_only_there") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    disk.fail_reads(8 * MIB..8 * MIB + 1);
    assert_eq!(read(&disk, 8 * MIB), nix::libc::EIO);
    assert_eq!((read(&disk, 0), read(&disk, 8 * MIB - 4096), read(&disk, 8 * MIB + 4096)), (0, 0, 0));
    assert!(disk.was_read(8 * MIB..8 * MIB + 1) && !disk.was_read(9 * MIB..10 * MIB));
    disk.fail_all();
    assert_eq!(read(&disk, 0), nix::libc::EIO);
    disk.heal();
    assert_eq!((read(&disk, 0), read(&disk, 8 * MIB)), (0, 0));
}

#[test]
fn a_write_that_fails_is_eio_and_leaves_the_image_as_it_was() {
    if skipped("a_write_that_fails_is_eio_and_leaves_the_image_as_it_was") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    disk.fail_writes(MIB..2 * MIB);
    assert_eq!((write(&disk, 0, 1), write(&disk, MIB, 2)), (0, nix::libc::EIO));
    let image = fs::read(disk.image()).unwrap();
    assert_eq!((image[0], image[usize::try_from(MIB).unwrap()]), (1, 0));
    disk.heal();
    assert_eq!(write(&disk, MIB, 3), 0);
    assert_eq!(fs::read(disk.image()).unwrap()[usize::try_from(MIB).unwrap()], 3);
}

#[test]
fn writes_are_counted_and_a_flush_is_told_from_none() {
    if skipped("writes_are_counted_and_a_flush_is_told_from_none") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    assert!(disk.is_flushed() && disk.written() == 0);
    assert_eq!(write(&disk, 0, 1), 0);
    assert!(disk.is_flushed() && disk.written() == BLOCK as u64, "{}", disk.written());
    disk.mark();
    let mut buffer = vec![7; 2 * BLOCK];
    let start = buffer.as_mut_ptr().align_offset(BLOCK);
    let file = OpenOptions::new().write(true).custom_flags(nix::libc::O_DIRECT).open(disk.device()).unwrap();
    file.write_all_at(&buffer[start..start + BLOCK], 0).unwrap();
    assert!(!disk.is_flushed() && disk.written() == BLOCK as u64);
    file.sync_all().unwrap();
    assert!(disk.is_flushed());
}

#[test]
fn a_slow_disk_takes_its_time() {
    if skipped("a_slow_disk_takes_its_time") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    disk.slow(Duration::from_millis(80));
    let began = Instant::now();
    assert_eq!(read(&disk, 0), 0);
    assert!(began.elapsed() >= Duration::from_millis(80));
    disk.slow(Duration::ZERO);
    assert_eq!(read(&disk, 0), 0);
}

#[test]
fn a_request_in_a_hang_waits_until_it_is_released() {
    if skipped("a_request_in_a_hang_waits_until_it_is_released") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    let answered = AtomicBool::new(false);
    disk.hang();
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(read(&disk, 0), 0);
            answered.store(true, Ordering::SeqCst);
        });
        eventually("a request waits", || disk.waiting() > 0);
        assert!(!answered.load(Ordering::SeqCst));
        disk.release();
    });
    assert!(answered.load(Ordering::SeqCst));
}

#[test]
fn a_file_system_lives_on_it_and_sees_its_errors() {
    if skipped("a_file_system_lives_on_it_and_sees_its_errors") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(dir.path());
    let made = Command::new("mkfs.ext4").arg("-q").arg(disk.device()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let at = dir.path().join("at");
    fs::create_dir(&at).unwrap();
    assert!(Command::new("mount").arg(disk.device()).arg(&at).status().unwrap().success());
    fs::write(at.join("kept"), vec![5; BLOCK]).unwrap();
    let file = fs::File::open(at.join("kept")).unwrap();
    file.sync_all().unwrap();
    disk.fail_writes(0..u64::MAX);
    fs::write(at.join("lost"), vec![6; BLOCK]).unwrap();
    let lost = fs::File::open(at.join("lost")).unwrap();
    assert_eq!(lost.sync_all().unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    // It is left mounted: the end of the disk unmounts it.
    drop((file, lost, disk));
    assert!(mounts_below(dir.path()).is_empty());
}

/// What is mounted below a directory.
fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect()
}

#[test]
fn nothing_is_left_of_a_disk_that_hung_when_its_test_failed() {
    if skipped("nothing_is_left_of_a_disk_that_hung_when_its_test_failed") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hung = disk(dir.path());
    let device = hung.device().to_owned();
    let reading = device.clone();
    hung.hang();
    let reader = thread::spawn(move || fs::File::open(reading).and_then(|file| file.read_at(&mut [0; BLOCK], 0)));
    eventually("a request waits", || hung.waiting() > 0);
    let failed = catch_unwind(AssertUnwindSafe(move || {
        let _disk = hung;
        std::panic::resume_unwind(Box::new("as a failed assertion does"));
    }));
    assert!(failed.is_err());
    reader.join().unwrap().unwrap();
    assert_eq!(mounts_below(dir.path()), Vec::<String>::new());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let over = Path::new("/sys/block").join(device.file_name().unwrap()).join("loop/backing_file");
    eventually("the loop device is free, or another's", || {
        !fs::read_to_string(&over).is_ok_and(|file| file.contains(dir.path().to_str().unwrap()))
    });
}

#[test]
fn files_that_are_made_in_a_faulty_folder_are_disks_with_its_faults() {
    if skipped("files_that_are_made_in_a_faulty_folder_are_disks_with_its_faults") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (behind, shown) = (dir.path().join("behind"), dir.path().join("shown"));
    fs::create_dir(&behind).unwrap();
    fs::create_dir(&shown).unwrap();
    let folder = FaultyFolder::serve(&behind, &shown).unwrap();
    let file = shown.join("a.img");
    fs::File::create(&file).unwrap().set_len(8 * MIB).unwrap();
    assert_eq!(fs::metadata(behind.join("a.img")).unwrap().len(), 8 * MIB);
    let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
    let device = String::from_utf8(output.stdout).unwrap();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(16 * MIB).unwrap();
    assert!(Command::new("losetup").arg("-c").arg(device.trim()).status().unwrap().success());
    folder.fail_reads(12 * MIB..13 * MIB);
    let disk = fs::File::open(device.trim()).unwrap();
    assert_eq!(number_of(disk.read_exact_at(&mut [0; BLOCK], 12 * MIB)), nix::libc::EIO);
    assert_eq!(number_of(disk.read_exact_at(&mut [0; BLOCK], 0)), 0);
    assert_eq!(fs::read_dir(&shown).unwrap().count(), 1);
    drop((disk, folder));
    assert_eq!(mounts_below(dir.path()), Vec::<String>::new());
    fs::remove_file(behind.join("a.img")).unwrap();
}
