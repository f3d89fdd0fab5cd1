//! What a stage costs beyond the mount itself: `cargo bench --bench stage`, as root.
//!
//! An ext4 volume of 10 GiB that is formatted already, on a loop device, is staged and unstaged by the driver, and in turn
//! mounted and unmounted by nothing but the system calls. Both are in one run, so that a busy machine slows both. The
//! figures go to the standard output and, as JSON, to `target/bench/stage.json`.

use std::{
    error::Error,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use cloud_block_csi::{
    cloud::{Attachment, vultr::PROFILE},
    metrics::Metrics,
    node::{Linux, Node, Paths, Stage},
    volume::{Access, Discard, FsType, Gib, IdForm, MkfsOptions, VolumeId},
};
use nix::mount::{MsFlags, mount, umount};
use tokio_util::task::TaskTracker;

const ROUNDS: usize = 50;
const SIZE: Gib = Gib(10);
const SERIAL: &str = "ewr-0123456789abcd";
const VOLUME: &str = "cb676a46-66fd-4dfb-b839-443f2e6c0b60";

type Outcome<T> = Result<T, Box<dyn Error>>;

fn run(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A loop device that shows a serial; it goes when this is dropped.
struct Disk {
    dir: tempfile::TempDir,
    device: String,
}

impl Disk {
    fn new() -> Outcome<Self> {
        let dir = tempfile::Builder::new().prefix("csi-bench-").tempdir()?;
        for name in ["sys/class/block", "by-id", "state"] {
            fs::create_dir_all(dir.path().join(name))?;
        }
        let image = dir.path().join("image");
        fs::File::create(&image)?.set_len(SIZE.bytes())?;
        let device = run("losetup", &["-f", "--show", image.to_str().ok_or("a path that is not UTF-8")?])?;
        let name = Path::new(&device).file_name().ok_or("losetup named no device")?;
        let (real, shown) = (Path::new("/sys/class/block").join(name), dir.path().join("sys/class/block").join(name));
        let disk = Self { dir, device: device.clone() };
        fs::create_dir(&shown)?;
        for file in ["dev", "size", "diskseq"] {
            symlink(real.join(file), shown.join(file))?;
        }
        fs::write(shown.join("serial"), SERIAL)?;
        Ok(disk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for target in ["staging", "plain"] {
            umount(&self.path(target)).ok();
        }
        run("losetup", &["-d", &self.device]).ok();
    }
}

/// Minimum, median and maximum, in milliseconds.
fn figures(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort_unstable();
    [times[0], times[times.len() / 2], times[times.len() - 1]].map(|time| time.as_secs_f64() * 1000.0)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let disk = Disk::new()?;
    let paths = Paths {
        device_dir: disk.path("by-id"),
        sysfs_dir: disk.path("sys"),
        dev_dir: "/dev".into(),
        state_dir: disk.path("state"),
        kubelet_dir: None,
    };
    let node =
        Node::new(Arc::new(Linux::new(paths, Metrics::default())?), &PROFILE, TaskTracker::new(), Metrics::default());
    let volume = VolumeId::parse(IdForm::Uuid, VOLUME).ok_or("no volume id")?;
    let stage = Stage {
        volume: volume.clone(),
        staging_path: disk.path("staging"),
        access: Access::Mount { fs_type: Some(FsType::Ext4), flags: Vec::new() },
        attachment: Attachment::Disk { serial: SERIAL.to_owned(), size: Some(SIZE) },
        blank: true,
        read_only: false,
        key: None,
        mkfs_options: MkfsOptions::default(),
        discard: Discard::default(),
    };
    let began = Instant::now();
    node.stage(stage.clone(), None).await?;
    let first = began.elapsed();
    node.unstage(volume.clone(), stage.staging_path.clone()).await?;
    let plain = disk.path("plain");
    fs::create_dir(&plain)?;
    let (mut staged, mut repeated, mut unstaged, mut mounted, mut own) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        mount(Some(disk.device.as_str()), &plain, Some("ext4"), MsFlags::empty(), None::<&str>)?;
        let by_itself = began.elapsed();
        umount(&plain)?;
        let began = Instant::now();
        node.stage(stage.clone(), None).await?;
        let by_the_driver = began.elapsed();
        let began = Instant::now();
        node.stage(stage.clone(), None).await?;
        repeated.push(began.elapsed());
        let began = Instant::now();
        node.unstage(volume.clone(), stage.staging_path.clone()).await?;
        unstaged.push(began.elapsed());
        own.push(by_the_driver.saturating_sub(by_itself));
        staged.push(by_the_driver);
        mounted.push(by_itself);
    }
    println!("ext4, {SIZE}, {ROUNDS} rounds; milliseconds: minimum, median, maximum");
    let mut rows = serde_json::Map::new();
    for (name, times) in [
        ("first stage, with proof of blankness and mkfs", vec![first]),
        ("stage", staged),
        ("mount(2) alone", mounted),
        ("stage beyond mount(2)", own),
        ("stage again", repeated),
        ("unstage", unstaged),
    ] {
        let [min, median, max] = figures(times);
        println!("{name:<46} {min:>9.2} {median:>9.2} {max:>9.2}");
        rows.insert(name.to_owned(), serde_json::json!({ "min": min, "median": median, "max": max }));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    fs::create_dir_all(target.join("bench"))?;
    fs::write(target.join("bench/stage.json"), serde_json::to_string_pretty(&rows)?)?;
    Ok(())
}
