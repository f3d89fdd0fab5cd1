//! What the driver weighs: figures for the record, written to a file, and no judgement.

use std::fs;

use vultr_sim::Behaviour;

use crate::cluster::{Cluster, mounted, skipped};

const LIVES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: two minutes of lives; run with --ignored"]
async fn memory_idle_and_after_two_hundred_lives() {
    if skipped("memory_idle_and_after_two_hundred_lives") {
        return;
    }
    let behaviour = Behaviour { requests_per_second: 30, ..Behaviour::instant() };
    let cluster = Cluster::start(&["one"], behaviour).await;
    let idle = (cluster.bed.resident("controller").unwrap(), cluster.bed.resident("one").unwrap());
    for life in 0..LIVES {
        let pvc = cluster.create(&format!("pvc-{life}"), &mounted("xfs")).await.unwrap();
        let context = cluster.attach(0, &pvc).await.unwrap();
        cluster.stage(0, &pvc, &context).await.unwrap();
        cluster.publish(0, &pvc, &context).await.unwrap();
        cluster.leave(0, &pvc).await.unwrap();
        cluster.detach(0, &pvc).await.unwrap();
        cluster.delete(&pvc).await.unwrap();
    }
    let after = (cluster.bed.resident("controller").unwrap(), cluster.bed.resident("one").unwrap());
    let figures = format!(
        "resident memory: controller {} KiB idle, {} KiB after {LIVES} lives; node {} KiB idle, {} KiB after\n",
        idle.0, after.0, idle.1, after.1
    );
    print!("{figures}");
    fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/memory.txt"), figures).unwrap();
    cluster.end().await;
}
