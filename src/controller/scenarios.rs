//! What the controller does when things go well, and when they do not.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;
use tonic::Code;

use super::{
    Create, Shown, Source,
    model::{Fault, Model, node},
};
use crate::{
    cloud::{Attachment, Cloud as _, vultr::PROFILE},
    volume::{Gib, NodeId},
};

const GIB: u64 = 1 << 30;

fn wanted(name: &str) -> Create {
    Create {
        name: name.to_owned(),
        required_bytes: 10 * GIB,
        limit_bytes: 0,
        volume_type: PROFILE.volume_types[0],
        regions: vec!["ewr".to_owned()],
        source: Source::Blank,
    }
}

#[tokio::test(start_paused = true)]
async fn twenty_identical_creates_are_one_volume_and_one_post() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let made = try_join_all((0..20).map(|_| controller.create(wanted("pvc-1")))).await.unwrap();
    assert!(made.iter().all(|volume| *volume == made[0]));
    assert_eq!((cloud.requests("create"), cloud.volumes().len()), (1, 1));
    assert_eq!(controller.create(wanted("pvc-1")).await.unwrap(), made[0]);
    assert_eq!(cloud.requests("create"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_to_a_create_never_makes_a_second_volume() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        let cloud = Model::new();
        cloud.fault("create", fault);
        let volume = cloud.controller().create(wanted("pvc-1")).await.unwrap();
        assert_eq!(cloud.volumes().into_iter().map(Shown::from).collect::<Vec<_>>(), [volume], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_after_a_lost_reply_that_could_not_be_cleared_up_makes_no_second_volume() {
    let cloud = Model::new();
    let controller = cloud.controller();
    controller.create(wanted("pvc-0")).await.unwrap();
    cloud.fault("create", Fault::LostAfter);
    cloud.fault("list", Fault::LostBefore);
    assert_eq!(controller.create(wanted("pvc-1")).await.unwrap_err().code(), Code::Unavailable);
    controller.create(wanted("pvc-1")).await.unwrap();
    assert_eq!(cloud.volumes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_detach_waits_for_an_attach_that_may_still_be_coming() {
    let mut cloud = Model::new();
    cloud.moving = Duration::from_secs(20);
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    let attach = tokio::time::timeout(Duration::from_secs(5), controller.inner.attach(&id, &node(1))).await;
    assert!(attach.is_err(), "it was given up half-way");
    controller.detach(id, Some(node(1))).await.unwrap();
    assert_eq!(cloud.volumes()[0].attached_to, None);
    assert_eq!(cloud.requests("detach"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_detach_that_a_dead_process_sent_takes_no_volume_from_where_a_successor_brought_it() {
    let once = [0, 1, 3, 6, 10, 20, 29].map(|late| (late, None));
    // The first successor dies as well.
    let twice = [(6, 1), (12, 4), (20, 8), (25, 3)].map(|(late, life)| (late, Some(Duration::from_secs(life))));
    for (late, life) in once.into_iter().chain(twice) {
        let cloud = Model::new();
        let id = cloud.controller().create(wanted("pvc-1")).await.unwrap().id;
        cloud.controller().attach(id.clone(), node(1)).await.unwrap();
        // Held up on its way while its sender dies. The model refuses to take a volume from another node than was meant.
        let (held_up, volume) = (cloud.clone(), id.clone());
        let held_up = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(late)).await;
            held_up.detach_volume(&volume, &node(1)).await
        });
        if let Some(life) = life {
            let first = cloud.controller();
            tokio::time::timeout(life, first.inner.detach(&id, Some(&node(1)))).await.unwrap_err();
        }
        let successor = cloud.controller();
        successor.detach(id.clone(), Some(node(1))).await.unwrap();
        successor.attach(id, node(2)).await.unwrap();
        drop(held_up.await.unwrap());
        tokio::time::sleep(cloud.moving).await;
        assert_eq!(cloud.volumes()[0].attached_to, Some(node(2)), "{late} s late, a life of {life:?} between");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attach_without_an_answer_is_in_flight_until_nothing_can_come_of_it() {
    for last in [Fault::LostBefore, Fault::Locked] {
        let cloud = Model::new();
        let controller = cloud.controller();
        let id = controller.create(wanted("pvc-1")).await.unwrap().id;
        for _ in 0..15 {
            cloud.fault("attach", Fault::LostBefore);
        }
        for _ in 0..15 {
            cloud.fault("attach", last);
        }
        let began = Instant::now();
        controller.attach(id, node(1)).await.unwrap_err();
        let sent = cloud.last("attach").unwrap();
        assert!(sent > began + Duration::from_secs(100), "it is tried for two minutes");
        if last == Fault::LostBefore {
            assert!(sent.elapsed() >= Duration::from_secs(30), "{:?} after the last", sent.elapsed());
        }
        assert!(controller.inner.doubts.over(&cloud.volumes()[0].id).unwrap() <= Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn who_brought_a_volume_to_a_node_need_not_wait_for_what_was_before() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    controller.attach(id.clone(), node(1)).await.unwrap();
    let began = Instant::now();
    controller.detach(id, Some(node(1))).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_in_a_create_leaves_one_volume() {
    for died_after in 0..60 {
        let cloud = Model::new();
        let first = cloud.controller();
        let died = Duration::from_millis(died_after * 50);
        tokio::time::timeout(died, first.inner.create(wanted("pvc-1"))).await.ok();
        let volume = cloud.controller().create(wanted("pvc-1")).await.unwrap();
        assert_eq!(cloud.volumes().into_iter().map(Shown::from).collect::<Vec<_>>(), [volume], "died after {died:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_process_made_late_beside_its_successor_is_told() {
    for late in [3, 8, 25] {
        let cloud = Model::new();
        let successor = cloud.controller();
        let looked_back = tokio::spawn({
            let successor = successor.clone();
            async move { successor.look_back().await }
        });
        let held_up = tokio::spawn({
            let cloud = cloud.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(late)).await;
                cloud.add("pvc-1", 10)
            }
        });
        successor.create(wanted("pvc-1")).await.unwrap();
        held_up.await.unwrap();
        looked_back.await.unwrap();
        let twins = u64::from(late > 5);
        let told = cloud.metrics.text();
        assert!(told.contains(&format!("csi_twins_total{{kind=\"volume\"}} {twins}\n")), "{late} s late: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_by_something_else_is_refused() {
    let cloud = Model::new();
    let controller = cloud.controller();
    controller.create(wanted("pvc-1")).await.unwrap();
    for other in [
        Create { required_bytes: 11 * GIB, ..wanted("pvc-1") },
        Create { regions: vec!["syd".to_owned()], ..wanted("pvc-1") },
        Create { required_bytes: 40 * GIB, volume_type: PROFILE.volume_types[1], ..wanted("pvc-1") },
    ] {
        assert_eq!(controller.create(other).await.unwrap_err().code(), Code::AlreadyExists);
    }
    let within = Create { required_bytes: 5 * GIB, limit_bytes: 20 * GIB, ..wanted("pvc-1") };
    assert_eq!(controller.create(within).await.unwrap().size, Gib(10));
}

#[tokio::test(start_paused = true)]
async fn an_error_before_the_account_is_known_is_never_final() {
    let cloud = Model::new();
    let controller = cloud.controller();
    cloud.fault("list", Fault::Unauthorized);
    assert_eq!(controller.create(wanted("pvc-1")).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_told_at_once_by_attach_and_detach() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    for operation in ["attach", "detach"] {
        // It is not read a moment after another read, which would be by a listing.
        tokio::time::sleep(Duration::from_secs(60)).await;
        cloud.fault("get", Fault::Unauthorized);
        let began = Instant::now();
        let told = match operation {
            "attach" => controller.attach(id.clone(), node(1)).await.map(drop),
            _ => controller.detach(id.clone(), Some(node(1))).await,
        };
        let error = told.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{operation}: a sidecar has to ask again");
        assert!(error.chain().contains("Invalid API token."), "{operation}: {}", error.chain());
        assert!(began.elapsed() < Duration::from_secs(5), "{operation}: {:?}", began.elapsed());
        // As soon as there is a token that is taken
        controller.attach(id.clone(), node(1)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_region_that_is_allowed_and_has_the_tier_is_taken() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let regions = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let volume = controller.create(Create { regions: regions(&["mia", "syd", "ewr"]), ..wanted("a") }).await.unwrap();
    assert_eq!(volume.region, "syd");
    assert_eq!(controller.create(Create { regions: vec![], ..wanted("b") }).await.unwrap().region, "ewr");
    let error = controller.create(Create { regions: regions(&["mia"]), ..wanted("c") }).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.to_string().contains("mia") && error.to_string().contains("high_perf"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn of_two_volumes_of_one_name_the_oldest_is_used_and_none_deleted() {
    let cloud = Model::new();
    let oldest = cloud.add("pvc-1", 10);
    cloud.add("pvc-1", 10);
    assert_eq!(cloud.controller().create(wanted("pvc-1")).await.unwrap().id, oldest);
    assert_eq!((cloud.volumes().len(), cloud.requests("delete")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_whole_life_survives_every_reply_being_lost() {
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::Locked] {
        let cloud = Model::new();
        let controller = cloud.controller();
        for operation in ["create", "attach", "grow", "detach", "delete"] {
            cloud.fault(operation, fault);
        }
        let id = controller.create(wanted("pvc-1")).await.unwrap().id;
        let attached = controller.attach(id.clone(), node(1)).await.unwrap();
        assert!(matches!(attached, Attachment::Disk { .. }));
        assert_eq!(cloud.volumes()[0].attached_to, Some(node(1)));
        assert_eq!(controller.expand(id.clone(), 12 * GIB, 0).await.unwrap().size, Gib(12));
        controller.detach(id.clone(), Some(node(1))).await.unwrap();
        controller.delete(id.clone()).await.unwrap();
        assert!(cloud.volumes().is_empty(), "{fault:?}");
        controller.detach(id.clone(), None).await.unwrap();
        controller.delete(id.clone()).await.unwrap();
        assert_eq!(controller.attach(id, node(1)).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_from_one_node_never_takes_the_volume_from_another() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    controller.attach(id.clone(), node(2)).await.unwrap();
    controller.detach(id.clone(), Some(node(1))).await.unwrap();
    assert_eq!(cloud.requests("detach"), 0);
    let elsewhere = controller.attach(id.clone(), node(1)).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::FailedPrecondition);
    assert!(elsewhere.to_string().contains(node(2).as_str()));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_about_is_told_asked_for_again_and_then_told_no_more() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    for (operation, word) in [("attach", "attaching it to"), ("detach", "detaching it from")] {
        cloud.fault(operation, Fault::Forgotten);
        let (caller, volume) = (controller.clone(), id.clone());
        let call = tokio::spawn(async move {
            match operation {
                "attach" => caller.attach(volume, node(1)).await.map(drop),
                _ => caller.detach(volume, Some(node(1))).await,
            }
        });
        tokio::time::sleep(Duration::from_secs(89)).await;
        assert_eq!(controller.get(&id).await.unwrap().trouble, None);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let told = controller.get(&id).await.unwrap().trouble.unwrap();
        assert!(told.starts_with(word), "{told}");
        assert_eq!(controller.list_ailing("", 0).await.unwrap().0.len(), 1);
        call.await.unwrap().unwrap();
        assert_eq!(cloud.requests(operation), 2);
        assert_eq!(controller.list_ailing("", 0).await.unwrap().0, []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_detach_that_hangs_is_told_on_whatever_other_node_asks_for_the_volume() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    controller.attach(id.clone(), node(1)).await.unwrap();
    for _ in 0..5 {
        cloud.fault("detach", Fault::Forgotten);
    }
    assert_eq!(controller.detach(id.clone(), Some(node(1))).await.unwrap_err().code(), Code::Unavailable);
    let elsewhere = controller.attach(id.clone(), node(2)).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::FailedPrecondition);
    let told = controller.get(&id).await.unwrap().trouble.unwrap_or_default();
    assert!(told.starts_with("detaching it from"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_in_use_is_not_deleted_unless_its_instance_is_gone() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = controller.create(wanted("pvc-1")).await.unwrap().id;
    controller.attach(id.clone(), node(1)).await.unwrap();
    assert_eq!(controller.delete(id.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!((cloud.requests("detach"), cloud.requests("delete")), (0, 0));
    cloud.delete_instance(node(1));
    controller.delete(id).await.unwrap();
    assert!(cloud.volumes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_boots_an_instance_is_none_of_ours() {
    let cloud = Model::new();
    let id = cloud.add("pvc-1", 10);
    cloud.meddle(&id, |volume| volume.bootable = true);
    let controller = cloud.controller();
    assert_eq!(controller.delete(id.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(controller.attach(id.clone(), node(1)).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_ne!(controller.create(wanted("pvc-1")).await.unwrap().id, id);
}

#[tokio::test(start_paused = true)]
async fn a_missing_node_and_a_full_one_are_told() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let ids: Vec<_> = (0..12).map(|at| cloud.add(&format!("pvc-{at}"), 10)).collect();
    cloud.delete_instance(node(9));
    assert_eq!(controller.attach(ids[0].clone(), node(9)).await.unwrap_err().code(), Code::NotFound);
    for id in &ids[..11] {
        controller.attach(id.clone(), node(1)).await.unwrap();
    }
    assert_eq!(controller.attach(ids[11].clone(), node(1)).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn growth_asks_the_api_once_and_never_for_what_is_there() {
    let cloud = Model::new();
    let controller = cloud.controller();
    let id = cloud.add("pvc-1", 10);
    for bytes in [1, 10 * GIB, 10 * GIB + 1, 11 * GIB] {
        controller.expand(id.clone(), bytes, 0).await.unwrap();
    }
    assert_eq!(cloud.requests("grow"), 1);
    assert_eq!(controller.expand(id.clone(), 5 * GIB, 9 * GIB).await.unwrap_err().code(), Code::OutOfRange);
    let second = Instant::now();
    controller.expand(id, 20 * GIB, 0).await.unwrap();
    assert!(second.elapsed() >= Duration::from_secs(55), "a second change has to wait for the cloud's minute");
}

/// Takes volumes through their whole life at once and returns how many requests one life costs.
#[allow(clippy::cast_precision_loss)]
async fn requests_per_life(others: usize) -> f64 {
    let cloud = Model::new();
    for at in 0..others {
        cloud.add(&format!("other-{at}"), 10);
    }
    let controller = cloud.controller();
    controller.start().await;
    cloud.forget_requests();
    let nodes: Vec<NodeId> = (0..20).map(|at| node(at % 4)).collect();
    let made = try_join_all((0..20).map(|at| controller.create(wanted(&format!("pvc-{at}"))))).await.unwrap();
    let each = || made.iter().zip(&nodes).map(|(volume, node)| (volume.id.clone(), node.clone()));
    try_join_all(each().map(|(id, node)| controller.attach(id, node))).await.unwrap();
    try_join_all(each().map(|(id, node)| controller.detach(id, Some(node)))).await.unwrap();
    for done in join_all(each().map(|(id, _)| controller.delete(id))).await {
        done.unwrap();
    }
    assert_eq!(cloud.volumes().len(), others);
    for operation in ["create", "attach", "detach", "delete"] {
        assert_eq!(cloud.requests(operation), 20, "{operation}");
    }
    cloud.all_requests() as f64 / 20.0
}

#[tokio::test(start_paused = true)]
async fn a_life_costs_at_most_eight_requests_however_large_the_account() {
    for others in [0, 2_000] {
        let cost = requests_per_life(others).await;
        println!("{cost} requests a life with {others} other volumes");
        assert!(cost <= 8.0, "{cost} requests a life with {others} other volumes");
    }
}

#[tokio::test(start_paused = true)]
async fn paging_shows_every_volume_once() {
    let cloud = Model::new();
    for at in 0..501 {
        cloud.add(&format!("pvc-{at}"), 10);
    }
    let controller = cloud.controller();
    for page in [0, 1, 100, 499, 500, 501, 502] {
        let mut seen = Vec::new();
        let mut token = String::new();
        loop {
            let list = controller.list(&token, page).await.unwrap();
            assert!(page == 0 || list.volumes.len() <= page as usize);
            seen.extend(list.volumes.into_iter().map(|volume| volume.id));
            match list.next_token {
                Some(next) => token = next,
                None => break,
            }
        }
        let count = seen.len();
        seen.dedup();
        assert_eq!((count, seen.len()), (501, 501), "{page} a page");
    }
    assert_eq!(controller.list("somebody's", 1).await.unwrap_err().code(), Code::Aborted);
}
