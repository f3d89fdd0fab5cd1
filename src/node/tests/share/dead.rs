//! Shares that are gone or silent: told in time, let go of, and never taken for the one that has come in their place.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    bed::{Bed, OTHER, TAG, id},
    is_precondition,
};
use crate::{
    cloud::Attachment,
    error::Error,
    node::{Publish, Stage, Usage},
};

/// The reasons for which the first volume is unwell, by its statistics and by its health alike.
async fn ails(bed: &Bed) -> Vec<&'static str> {
    let began = Instant::now();
    let stats = bed.node.stats(id(1), bed.path("staging")).await.unwrap();
    assert_eq!(bed.node.health(id(1), Vec::new()).await.unwrap(), stats.ailments);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(stats.usage.is_some(), stats.ailments.is_empty());
    stats.ailments.into_iter().map(|ailment| ailment.reason).collect()
}

async fn staged() -> Bed {
    let bed = Bed::with_share();
    bed.node.stage(bed.stage_of(TAG), None).await.unwrap();
    bed.node.publish(bed.publish_of("pod", false)).await.unwrap();
    bed
}

#[tokio::test(start_paused = true)]
async fn a_share_that_answers_tells_its_bytes_and_inodes() {
    let bed = staged().await;
    let stats = bed.node.stats(id(1), bed.path("pod")).await.unwrap();
    let Some(Usage::FileSystem { bytes, inodes }) = stats.usage else { panic!("{stats:?}") };
    assert!(bytes.total == 1 << 40 && bytes.used == 1 << 20 && inodes == bytes);
    assert!(ails(&bed).await.is_empty());
    assert!(matches!(bed.node.health(id(2), Vec::new()).await, Err(Error::NotHere(_))));
}

#[tokio::test(start_paused = true)]
async fn a_share_that_is_gone_is_told_of_and_let_go_of() {
    let bed = staged().await;
    bed.detach(TAG);
    assert_eq!(ails(&bed).await, ["ShareGone"]);
    is_precondition(&bed.node.publish(bed.publish_of("second", false)).await.unwrap_err(), "gone from this machine");
    bed.unpublish(1, "pod").await.unwrap();
    bed.unstage(1).await.unwrap();
    assert!(bed.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_share_that_has_come_back_is_mounted_anew_whatever_its_tag() {
    for tag in [TAG, OTHER] {
        let bed = staged().await;
        let before = bed.mount_at("staging").unwrap().device;
        bed.detach(TAG);
        bed.attach(tag);
        bed.node.stage(bed.stage_of(tag), None).await.unwrap();
        assert_ne!(bed.mount_at("staging").unwrap().device, before);
        let told = Some(Attachment::Share { tag: tag.to_owned() });
        bed.node.publish(Publish { attachment: told, ..bed.publish_of("second", false) }).await.unwrap();
        assert_eq!(ails(&bed).await, Vec::<&str>::new());
        // The workload that still has what was there before is let go of as well.
        for target in ["pod", "second"] {
            bed.unpublish(1, target).await.unwrap_or_else(|error| panic!("{tag} {target}: {error}"));
        }
        bed.unstage(1).await.unwrap();
        assert!(bed.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_comes_again_with_another_share_is_not_taken_for_the_first() {
    let bed = staged().await;
    bed.detach(TAG);
    bed.attach(TAG);
    let second = Stage { volume: id(2), staging_path: bed.path("second"), ..bed.stage_of(TAG) };
    bed.node.stage(second, None).await.unwrap();
    let error = bed.node.publish(bed.publish_of("reader", true)).await.unwrap_err();
    is_precondition(&error, "gone from this machine");
    let shown = Publish { volume: id(2), staging_path: bed.path("second"), ..bed.publish_of("shown", false) };
    bed.node.publish(shown).await.unwrap();
    bed.unpublish(1, "pod").await.unwrap();
    bed.unstage(1).await.unwrap();
    let left: Vec<_> = bed.mounts().into_iter().map(|mount| mount.target).collect();
    assert_eq!(left, [bed.path("second"), bed.path("shown")]);
}

#[tokio::test(start_paused = true)]
async fn what_ails_another_share_of_its_number_is_not_told_of_it() {
    let mut bed = staged().await;
    let number = bed.mount_at("staging").unwrap().device;
    bed.reboot();
    bed.attach(OTHER);
    bed.mount_by_hand(OTHER, "another");
    assert_eq!(bed.mount_at("another").unwrap().device, number, "the kernel gives numbers again");
    bed.detach(OTHER);
    assert_eq!(bed.node.health(id(1), Vec::new()).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_silent_share_is_told_of_in_time_and_keeps_no_call_for_ever() {
    let bed = staged().await;
    bed.attach(OTHER);
    bed.silence(TAG, true);
    assert_eq!(ails(&bed).await, ["NotResponding"]);
    for error in [
        bed.node.publish(bed.publish_of("second", true)).await.unwrap_err(),
        bed.node.stage(bed.stage_of(TAG), None).await.unwrap_err(),
    ] {
        assert!(matches!(&error, Error::NotYet(text) if text.contains("does not answer")), "{error}");
    }
    // Another volume does not suffer.
    let began = Instant::now();
    let mut second = Stage { volume: id(2), staging_path: bed.path("second"), ..bed.stage_of(OTHER) };
    bed.node.stage(second.clone(), None).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    let began = Instant::now();
    bed.unpublish(1, "pod").await.unwrap();
    bed.unstage(1).await.unwrap();
    let took = began.elapsed();
    assert!((Duration::from_secs(20)..Duration::from_secs(60)).contains(&took), "{took:?}");
    assert_eq!(bed.mounts().len(), 1);
    // One that was mounted and never answers is not staged, and not left mounted.
    second.attachment = Attachment::Share { tag: TAG.to_owned() };
    second.volume = id(3);
    second.staging_path = bed.path("third");
    let error = bed.node.stage(second, None).await.unwrap_err();
    assert!(matches!(&error, Error::NotYet(text) if text.contains("does not answer")), "{error}");
    assert!(bed.mount_at("third").is_none() && !bed.state().iter().any(|name| name.contains(id(3).as_str())));
}

#[tokio::test(start_paused = true)]
async fn a_share_that_only_pauses_is_unmounted_when_it_is_back() {
    let bed = staged().await;
    bed.silence(TAG, true);
    let (unpublished, ()) = tokio::join!(bed.unpublish(1, "pod"), async {
        tokio::time::sleep(Duration::from_secs(12)).await;
        bed.silence(TAG, false);
    });
    unpublished.unwrap();
    assert_eq!(ails(&bed).await, Vec::<&str>::new());
    bed.unstage(1).await.unwrap();
    assert!(bed.is_clean());
}
