//! Many volumes at once on real disks, and what they cost in requests.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, try_join_all};
use vultr_sim::{Behaviour, Operation};

use crate::cluster::{Cluster, TURN, mounted, skipped};

/// How long the twenty lives take on a machine with nothing else to do.
const UNHURRIED: Duration = Duration::from_secs(29);
/// How many requests a second somebody's waiting costs at most: what a busy machine adds to the waits, it adds in looks.
const LOOKS: u64 = 5;

/// Twenty lives at once on four instances with this many other volumes in the account.
async fn twenty_lives(others: usize) {
    let cluster = Cluster::start(&["one", "two", "three", "four"], Behaviour::default()).await;
    let control = cluster.bed.cloud().control();
    control.seed_fillers(others, "ewr").unwrap();
    let capability = mounted("ext4");
    // What a new process asks for once, with its first volume, is not the cost of a life.
    let first = cluster.create("pvc-first", &capability).await.unwrap();
    control.reset();
    let began = Instant::now();
    let names: Vec<String> = (0..20).map(|at| format!("pvc-{at}")).collect();
    let pvcs = try_join_all(names.iter().map(|name| cluster.create(name, &capability))).await.unwrap();
    let contexts = try_join_all(pvcs.iter().enumerate().map(|(at, pvc)| cluster.attach(at % 4, pvc))).await.unwrap();
    assert!(contexts.iter().all(|context| context["mount_vol_name"].starts_with("ewr-")));
    try_join_all(pvcs.iter().enumerate().map(|(at, pvc)| cluster.detach(at % 4, pvc))).await.unwrap();
    for deleted in join_all(pvcs.iter().map(|pvc| cluster.delete(pvc))).await {
        deleted.unwrap();
    }
    let (took, stats) = (began.elapsed(), control.stats());
    let requests = stats.count(Operation::Any);
    let told = format!(
        "20 volumes at once on 4 instances with {others} others: {requests} requests ({} a volume), at most {} in a \
         second, in {:.1} s",
        f64::from(u32::try_from(requests).unwrap()) / 20.0,
        stats.peak_per_second,
        took.as_secs_f64()
    );
    println!("{told}");
    assert_eq!(stats.rate_limited, 0, "{stats:?}");
    assert!(requests <= 8 * 20 + LOOKS * took.saturating_sub(UNHURRIED).as_secs(), "{told}: {stats:?}");
    assert_eq!(stats.count(Operation::CreateBlock), 20);
    assert!(stats.reboots.values().all(|reboots| *reboots == 0), "{stats:?}");
    cluster.delete(&first).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_lives_at_once_cost_at_most_eight_requests_each() {
    if skipped("twenty_lives_at_once_cost_at_most_eight_requests_each") {
        return;
    }
    let _turn = TURN.lock().await;
    for others in [0, 2_000] {
        twenty_lives(others).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_identical_creates_at_once_are_one_post() {
    if skipped("twenty_identical_creates_at_once_are_one_post") {
        return;
    }
    let behaviour = Behaviour { create: Duration::from_millis(300), ..Behaviour::default() };
    let cluster = Cluster::start(&["one"], behaviour).await;
    let capability = mounted("");
    let made = try_join_all((0..20).map(|_| cluster.create("pvc-same", &capability))).await.unwrap();
    assert!(made.iter().all(|pvc| pvc.id == made[0].id));
    assert_eq!(cluster.bed.cloud().control().stats().count(Operation::CreateBlock), 1);
    cluster.delete(&made[0]).await.unwrap();
    cluster.end().await;
}
