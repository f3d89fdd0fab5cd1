//! The same on a real share, where the machine has one.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::bed::{id, publish_of, stage_of};
use crate::{
    error::Error,
    node::{
        Expand, Stage, Usage,
        tests::machine::{Machine, try_run},
    },
    volume::Access,
};

/// Names the mount tag of a share that the tests may write to; tests/guest/run.sh sets it.
const SHARE: &str = "TEST_SHARE";

/// Where virtiofs devices can be taken from their driver, and given back: as good as detached and attached.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtiofs";

fn with_share(test: &str) -> Option<(Machine, String)> {
    let Ok(tag) = std::env::var(SHARE) else {
        println!("skipped: {test}: {SHARE} names no share of this machine");
        return None;
    };
    Machine::new().map(|machine| (machine, tag))
}

fn device() -> String {
    let entries = fs::read_dir(DRIVER).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.into_iter().find(|name| name.starts_with("virtio")).expect("there is a share")
}

async fn publish(machine: &Machine, tag: &str, target: &str, read_only: bool) -> PathBuf {
    let (staging, target) = (machine.path("staging"), machine.path(target));
    machine.node.publish(publish_of(tag, staging, target.clone(), read_only)).await.unwrap();
    target
}

async fn let_go(machine: &Machine, targets: &[&str]) {
    for target in targets {
        machine.node.unpublish(id(1), machine.path(target)).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    }
    machine.node.unstage(id(1), machine.path("staging")).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert!(machine.mounts().is_empty() && machine.state().is_empty());
    assert!(targets.iter().all(|target| !machine.path(target).exists()) && !machine.path("staging").exists());
}

#[tokio::test]
async fn what_one_workload_writes_the_others_read_and_readers_cannot_write() {
    let Some((mut machine, tag)) = with_share("what_one_workload_writes_the_others_read_and_readers_cannot_write")
    else {
        return;
    };
    let stage = stage_of(&tag, machine.path("staging"));
    machine.node.stage(stage.clone(), None).await.unwrap();
    let writer = publish(&machine, &tag, "writer", false).await;
    fs::write(writer.join("file"), "text").unwrap();
    machine.restart(None);
    machine.node.stage(stage, None).await.unwrap();
    let second = publish(&machine, &tag, "second", false).await;
    let reader = publish(&machine, &tag, "reader", true).await;
    for path in [&second, &reader] {
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "text");
    }
    assert_eq!(fs::write(reader.join("file"), "other").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    fs::write(second.join("file"), "changed").unwrap();
    assert_eq!(fs::read_to_string(writer.join("file")).unwrap(), "changed");
    assert_eq!(machine.mounts().len(), 4);
    let stats = machine.node.stats(id(1), reader).await.unwrap();
    assert_eq!(stats.ailments, []);
    let Some(Usage::FileSystem { bytes, inodes }) = stats.usage else { panic!("{stats:?}") };
    assert!(bytes.total > 0 && inodes.total > 0, "{bytes:?} {inodes:?}");
    let expand = Expand { volume: id(1), path: writer.clone(), wanted: Some(1 << 40), key: None };
    assert_eq!(machine.node.expand(expand, None).await.unwrap(), 1 << 40);
    fs::remove_file(writer.join("file")).unwrap();
    let_go(&machine, &["writer", "second", "reader"]).await;
}

#[tokio::test]
async fn a_tag_that_the_kernel_does_not_know_is_retried_and_an_option_is_not() {
    let Some((machine, tag)) = with_share("a_tag_that_the_kernel_does_not_know_is_retried_and_an_option_is_not") else {
        return;
    };
    let error = machine.node.stage(stage_of("9999999999", machine.path("staging")), None).await.unwrap_err();
    assert!(matches!(&error, Error::NotYet(text) if text.contains("no share of tag 9999999999")), "{error}");
    let access = Access::Mount { fs_type: None, flags: vec!["no_such_option".to_owned()] };
    for (tag, is_there) in [("9999999999", false), (tag.as_str(), true)] {
        let stage = Stage { access: access.clone(), ..stage_of(tag, machine.path("staging")) };
        let error = machine.node.stage(stage, None).await.unwrap_err();
        assert_eq!(matches!(&error, Error::Invalid { problem, .. } if problem.contains("no_such_option")), is_there);
        assert!(machine.mounts().is_empty() && machine.state().is_empty(), "{error}");
    }
    let access = Access::Mount { fs_type: None, flags: ["nosuid", "nodev", "noatime"].map(str::to_owned).to_vec() };
    let stage = Stage { access, read_only: true, ..stage_of(&tag, machine.path("staging")) };
    machine.node.stage(stage.clone(), None).await.unwrap();
    machine.node.stage(stage, None).await.unwrap();
    publish(&machine, &tag, "reader", true).await;
    for mount in machine.mounts() {
        for option in ["ro", "nosuid", "nodev", "noatime"] {
            assert!(mount.options.iter().any(|have| have == option), "{option}: {mount:?}");
        }
    }
    let_go(&machine, &["reader"]).await;
}

#[tokio::test]
async fn a_share_that_was_taken_away_is_told_of_and_mounted_anew_when_it_is_back() {
    let Some((machine, tag)) = with_share("a_share_that_was_taken_away_is_told_of_and_mounted_anew_when_it_is_back")
    else {
        return;
    };
    let device = device();
    let driver = |what: &str| fs::write(Path::new(DRIVER).join(what), &device).unwrap();
    let stage = stage_of(&tag, machine.path("staging"));
    machine.node.stage(stage.clone(), None).await.unwrap();
    let target = publish(&machine, &tag, "pod", false).await;
    let open = fs::File::create(target.join("file")).unwrap();
    driver("unbind");
    let stats = machine.node.stats(id(1), target.clone()).await.unwrap();
    let reasons: Vec<_> = stats.ailments.iter().map(|ailment| ailment.reason).collect();
    assert_eq!(reasons, ["ShareGone"], "{stats:?}");
    // With a file open, it is in use; it cannot be used any more, though.
    machine.node.unpublish(id(1), target.clone()).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    drop(open);
    let error = machine.node.stage(Stage { staging_path: machine.path("other"), ..stage.clone() }, None).await;
    assert!(matches!(error, Err(Error::Precondition(_))), "{error:?}");
    driver("bind");
    machine.node.stage(stage, None).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    publish(&machine, &tag, "pod", false).await;
    assert!(target.join("file").exists(), "{:?}", try_run("cat", &["/proc/self/mountinfo"]));
    fs::remove_file(target.join("file")).unwrap();
    let_go(&machine, &["pod"]).await;
}
