//! Shares, on a machine in memory: mounted by their tag and by no other, told of when they are dead, and let go of.

mod bed;
mod dead;
mod real;

use std::{path::PathBuf, time::Duration};

use tokio::time::Instant;

use self::bed::{Bed, OTHER, TAG, id};
use crate::{
    cloud::Attachment,
    error::Error,
    node::{
        Expand, Key, Publish, Stage,
        host::{MountCall, MountFlags},
    },
    volume::Access,
};

fn mount(source: Option<PathBuf>, target: PathBuf, flags: MountFlags) -> MountCall {
    MountCall { source, target, fs_type: None, flags, data: String::new() }
}

fn is_precondition(error: &Error, word: &str) {
    assert!(matches!(error, Error::Precondition(text) if text.contains(word)), "{word}: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_share_is_mounted_by_its_tag_bound_to_each_target_and_leaves_nothing() {
    let bed = Bed::with_share();
    let flags = vec!["noatime".to_owned(), "dax=never".to_owned()];
    let stage = Stage { access: Access::Mount { fs_type: None, flags }, ..bed.stage_of(TAG) };
    for _ in 0..3 {
        bed.node.stage(stage.clone(), None).await.unwrap();
        bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
        bed.node.publish(bed.publish_of("reader", true)).await.unwrap();
    }
    let by_tag = MountCall {
        source: Some(TAG.into()),
        target: bed.path("staging"),
        fs_type: Some("virtiofs"),
        flags: MountFlags::MS_NOATIME,
        data: "dax=never".to_owned(),
    };
    let (staging, reader) = (bed.path("staging"), bed.path("reader"));
    let remounted = MountFlags::MS_BIND | MountFlags::MS_REMOUNT | MountFlags::MS_RELATIME;
    let wanted = [
        by_tag,
        mount(Some(staging.clone()), bed.path("pod"), MountFlags::MS_BIND),
        mount(None, staging.clone(), remounted | MountFlags::MS_RDONLY),
        mount(Some(staging.clone()), reader, MountFlags::MS_BIND),
        mount(None, staging, remounted),
    ];
    assert_eq!(format!("{:?}", bed.calls()), format!("{wanted:?}"));
    let read_only = |target| bed.mount_at(target).unwrap().is_read_only();
    assert!(!read_only("staging") && !read_only("pod") && read_only("reader"));
    is_precondition(&bed.unstage(1).await.unwrap_err(), "still published");
    for _ in 0..2 {
        bed.unpublish(1, "pod").await.unwrap();
        bed.unpublish(1, "reader").await.unwrap();
    }
    bed.unstage(1).await.unwrap();
    bed.unstage(1).await.unwrap();
    assert!(bed.is_clean());
}

#[tokio::test(start_paused = true)]
async fn what_readers_stage_is_read_only_throughout() {
    let bed = Bed::with_share();
    bed.node.stage(Stage { read_only: true, ..bed.stage_of(TAG) }, None).await.unwrap();
    assert_eq!(bed.calls()[0].flags, MountFlags::MS_RDONLY);
    bed.node.publish(bed.publish_of("reader", true)).await.unwrap();
    let error = bed.node.publish(bed.publish_of("pod", false)).await.unwrap_err();
    assert!(matches!(error, Error::Precondition(_)), "{error}");
    let error = bed.node.stage(bed.stage_of(TAG), None).await.unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
    let error = bed.node.publish(bed.publish_of("reader", false)).await.unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_share_that_is_not_there_yet_is_waited_for_until_the_deadline() {
    let bed = Bed::new();
    let option = Access::Mount { fs_type: None, flags: vec!["dax=never".to_owned()] };
    for (lacks_virtiofs, word) in [(false, "no share of tag 12345 yet"), (true, "no virtiofs yet")] {
        bed.kernel(|kernel| kernel.lacks_virtiofs = lacks_virtiofs);
        for access in [bed.stage_of(TAG).access, option.clone()] {
            let deadline = Instant::now() + Duration::from_secs(30);
            let stage = Stage { access, ..bed.stage_of(TAG) };
            let error = bed.node.stage(stage, Some(deadline)).await.unwrap_err();
            assert!(matches!(&error, Error::NotYet(text) if text.contains(word)), "{error}");
            assert!(deadline <= Instant::now() && deadline.elapsed() < Duration::from_secs(1));
            assert_eq!(bed.state(), Vec::<String>::new());
        }
    }
    // Each try is a line in the kernel's log.
    assert!(bed.calls().len() < 150, "{}", bed.calls().len());
    bed.kernel(|kernel| kernel.lacks_virtiofs = false);
    let (staged, ()) = tokio::join!(bed.node.stage(bed.stage_of(TAG), None), async {
        tokio::time::sleep(Duration::from_secs(7)).await;
        bed.attach(TAG);
    });
    staged.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_nothing_for_a_share_is_refused_before_anything_is_mounted() {
    let bed = Bed::with_share();
    let stage = bed.stage_of(TAG);
    let option = Access::Mount { fs_type: None, flags: vec!["discard".to_owned()] };
    for (stage, word) in [
        (Stage { access: Access::Block, ..stage.clone() }, "volumeMode Filesystem"),
        (Stage { key: Key::new("key".to_owned()), ..stage.clone() }, "volume_context[encrypted]"),
        (Stage { access: option, ..stage.clone() }, "discard"),
    ] {
        let error = bed.node.stage(stage, None).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(word), "{error}");
        assert!(bed.mounts().is_empty() && bed.state().is_empty(), "{word}");
    }
    bed.node.stage(stage, None).await.unwrap();
    let publish = Publish { access: Access::Block, ..bed.publish_of("pod", false) };
    for attachment in [publish.attachment.clone(), None] {
        let error = bed.node.publish(Publish { attachment, ..publish.clone() }).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. } | Error::Precondition(_)), "{error}");
    }
    assert_eq!(bed.mounts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_else_is_mounted_at_a_path_is_left_alone() {
    let bed = Bed::with_share();
    bed.attach(OTHER);
    bed.mount_by_hand(OTHER, "staging");
    is_precondition(&bed.node.stage(bed.stage_of(TAG), None).await.unwrap_err(), "virtiofs 54321");
    bed.umount_by_hand("staging");
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.mount_by_hand(OTHER, "pod");
    is_precondition(&bed.node.publish(bed.publish_of("pod", false)).await.unwrap_err(), "virtiofs 54321");
    is_precondition(&bed.unpublish(1, "pod").await.unwrap_err(), "share 54321");
    let error = bed.node.stats(id(1), bed.path("pod")).await.unwrap_err();
    assert!(matches!(error, Error::NotMounted { .. }), "{error}");
    let elsewhere = Stage { staging_path: bed.path("elsewhere"), ..bed.stage_of(TAG) };
    is_precondition(&bed.node.stage(elsewhere, None).await.unwrap_err(), "is staged at");
    assert_eq!(bed.mounts().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_volume_gets_what_is_staged_as_another() {
    let bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    let second = Stage { volume: id(2), staging_path: bed.path("second"), ..bed.stage_of(TAG) };
    is_precondition(&bed.node.stage(second, None).await.unwrap_err(), id(1).as_str());
    assert!(bed.mounts().len() == 1 && !bed.state().iter().any(|name| name.contains(id(2).as_str())));
    let told = Some(Attachment::Share { tag: OTHER.to_owned() });
    let error = bed.node.publish(Publish { attachment: told, ..bed.publish_of("pod", false) }).await.unwrap_err();
    is_precondition(&error, "not of share 54321");
    let told = Some(Attachment::Disk { serial: TAG.to_owned(), size: None });
    let error = bed.node.publish(Publish { attachment: told, ..bed.publish_of("pod", false) }).await.unwrap_err();
    is_precondition(&error, "is staged as");
    assert_eq!(bed.mounts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_everything_goes_on() {
    let mut bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
    bed.restart();
    let calls = bed.calls().len();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
    assert_eq!(bed.calls().len(), calls);
    bed.node.publish(Publish { attachment: None, ..bed.publish_of("second", false) }).await.unwrap();
    // Mounted by hand anew, it is not what the record is of.
    bed.unpublish(1, "pod").await.unwrap();
    bed.unpublish(1, "second").await.unwrap();
    bed.umount_by_hand("staging");
    bed.detach(TAG);
    bed.attach(TAG);
    bed.mount_by_hand(TAG, "staging");
    is_precondition(&bed.node.publish(bed.publish_of("pod", false)).await.unwrap_err(), "already a mount of another");
    bed.unstage(1).await.unwrap();
    assert!(bed.is_clean());
    // The machine itself was started anew, and gives numbers again.
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.reboot();
    bed.attach(OTHER);
    bed.attach(TAG);
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
    assert_eq!(bed.mount_at("pod").unwrap().source, TAG);
}

#[tokio::test(start_paused = true)]
async fn what_is_read_only_is_so_for_the_node_too_and_nothing_else_is() {
    let bed = Bed::with_share();
    bed.kernel(|kernel| kernel.in_container = true);
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.node.publish(bed.publish_of("reader", true)).await.unwrap();
    bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
    for (target, read_only) in [("reader", true), ("pod", false), ("staging", false)] {
        let seen = bed.kernel(|kernel| kernel.top(&bed.path(target)).unwrap().seen);
        assert_eq!(seen.contains(MountFlags::MS_RDONLY), read_only, "{target}");
        assert_eq!(bed.mount_at(target).unwrap().is_read_only(), read_only, "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_staging_mount_that_was_left_read_only_is_writable_again() {
    let mut bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    let record = bed.path("state").join(format!("{}.staged.json", id(1)));
    let text = std::fs::read_to_string(&record).unwrap();
    for repeat_stage in [false, true] {
        let lent = format!("\"lent\":{:?}", bed.path("staging"));
        std::fs::write(&record, text.replace("\"lent\":null", &lent)).unwrap();
        bed.kernel(|kernel| {
            kernel.table.last_mut().unwrap().flags = MountFlags::MS_RDONLY;
            kernel.table.last_mut().unwrap().seen = MountFlags::MS_RDONLY;
        });
        bed.restart();
        if repeat_stage {
            bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
        }
        bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
        assert!(!bed.mount_at("pod").unwrap().is_read_only());
        assert!(!bed.mount_at("staging").unwrap().is_read_only());
        assert_eq!(std::fs::read_to_string(&record).unwrap(), text);
        bed.unpublish(1, "pod").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_single_writer_is_the_only_one() {
    let bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    let alone = |target| Publish { single_writer: true, ..bed.publish_of(target, false) };
    bed.node.publish(alone("pod")).await.unwrap();
    bed.node.publish(alone("pod")).await.unwrap();
    is_precondition(&bed.node.publish(alone("second")).await.unwrap_err(), "single writer");
}

#[tokio::test(start_paused = true)]
async fn what_vultrs_driver_staged_goes_on_working() {
    let bed = Bed::with_share();
    bed.mount_by_hand(TAG, "staging");
    bed.node.publish(Publish { attachment: None, ..bed.publish_of("pod", false) }).await.unwrap();
    bed.node.publish(bed.publish_of("reader", true)).await.unwrap();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.unpublish(1, "pod").await.unwrap();
    bed.unpublish(1, "reader").await.unwrap();
    bed.unstage(1).await.unwrap();
    assert!(bed.is_clean());
    // What no cloud has for a tag is somebody else's.
    bed.attach("home");
    bed.mount_by_hand("home", "staging");
    is_precondition(&bed.unstage(1).await.unwrap_err(), "share home");
}

#[tokio::test(start_paused = true)]
async fn what_vultrs_driver_mounted_after_ours_is_let_go_whatever_is_recorded() {
    let bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    // On the way back that one lets go of it, and later has it by another attachment.
    bed.umount_by_hand("staging");
    bed.detach(TAG);
    bed.attach(OTHER);
    bed.mount_by_hand(OTHER, "staging");
    bed.mount_by_hand(OTHER, "pod");
    bed.unpublish(1, "pod").await.unwrap();
    let told = Some(Attachment::Share { tag: OTHER.to_owned() });
    bed.node.publish(Publish { attachment: told, ..bed.publish_of("pod", false) }).await.unwrap();
    bed.unpublish(1, "pod").await.unwrap();
    bed.unstage(1).await.unwrap();
    assert!(bed.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_share_is_as_large_as_the_cloud_says() {
    let bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    for (wanted, answer) in [(Some(20 << 30), 20 << 30), (None, 0)] {
        let expand = Expand { volume: id(1), path: bed.path("staging"), wanted, key: None };
        assert_eq!(bed.node.expand(expand, None).await.unwrap(), answer);
    }
    let expand = Expand { volume: id(1), path: bed.path("nowhere"), wanted: None, key: None };
    assert!(matches!(bed.node.expand(expand, None).await, Err(Error::NotMounted { .. })));
    assert!(bed.node.has_share(&id(1), &bed.path("staging")).await.unwrap());
    assert!(!bed.node.has_share(&id(1), &bed.path("nowhere")).await.unwrap());
    assert_eq!(bed.node.system_volumes().await.unwrap(), 0);
}
