//! SIGKILL at random moments: after the retries there is one volume with the right data and nothing left over.

use std::{future::Future, time::Duration};

use vultr_sim::Behaviour;

use crate::cluster::{Cluster, TURN, mounted, repeated, skipped};

/// Each life is hit in its create, attach, stage (mkfs) and growth: 13 lives are 52 kills.
const LIVES: u64 = 13;
/// So many go together: for the first 30 s after its start a controller waits before it takes anything off an instance.
const TOGETHER: usize = 5;

/// A small generator of our own, so that a printed seed replays.
pub(crate) struct Dice(u64);

impl Dice {
    /// Those of this run, whose seed is printed.
    pub(crate) fn take() -> Self {
        let seed = std::env::var("SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs());
        println!("SEED={seed} replays this run");
        Self(seed)
    }

    pub(crate) fn roll(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Runs the call for at most `wait`; its answer, if there is one, is thrown away.
async fn interrupted<T>(wait: u64, call: impl Future<Output = T>) {
    tokio::time::timeout(Duration::from_millis(wait), call).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_driver_leaves_one_volume_with_its_data() {
    if skipped("a_killed_driver_leaves_one_volume_with_its_data") {
        return;
    }
    let _turn = TURN.lock().await;
    let mut dice = Dice::take();
    let behaviour = Behaviour {
        create: Duration::from_millis(300),
        attach: Duration::from_millis(300),
        detach: Duration::from_millis(200),
        resize_every: Duration::ZERO,
        growth_seen_online: true,
        ..Behaviour::default()
    };
    let mut cluster = Cluster::start(&["one"], behaviour).await;
    let instance = cluster.instances[0].clone();
    let mut alive = Vec::new();
    for life in 0..LIVES {
        let name = format!("pvc-{life}");
        let capability = mounted(["xfs", "ext4", "btrfs"][usize::try_from(life % 3).unwrap()]);

        interrupted(dice.roll(500), cluster.create(&name, &capability)).await;
        cluster.bed.kill("controller", false).await.unwrap();
        cluster.bed.controller().await.unwrap();
        let pvc = repeated(|| cluster.create(&name, &capability)).await;

        interrupted(dice.roll(500), cluster.attach(0, &pvc)).await;
        cluster.bed.kill("controller", false).await.unwrap();
        cluster.bed.controller().await.unwrap();
        let context = repeated(|| cluster.attach(0, &pvc)).await;

        interrupted(dice.roll(700), cluster.stage(0, &pvc, &context)).await;
        // Alone, so that mkfs goes on without it; or with everything it started, as when a container dies.
        cluster.bed.kill("one", life % 2 == 0).await.unwrap();
        cluster.bed.node(&instance).await.unwrap();
        repeated(|| cluster.stage(0, &pvc, &context)).await;
        repeated(|| cluster.publish(0, &pvc, &context)).await;
        cluster.write(0, &pvc);

        // Growth of a mounted ext4 needs CAP_SYS_RESOURCE, which root does not have on every build machine.
        let growable = life % 3 != 1;
        interrupted(dice.roll(400), cluster.grow(&pvc, 12)).await;
        cluster.bed.kill("controller", false).await.unwrap();
        cluster.bed.controller().await.unwrap();
        repeated(|| cluster.grow(&pvc, 12)).await;
        if growable {
            interrupted(dice.roll(300), cluster.grow_on_node(0, &pvc, 12)).await;
            cluster.bed.kill("one", life % 2 == 1).await.unwrap();
            cluster.bed.node(&instance).await.unwrap();
            repeated(|| cluster.grow_on_node(0, &pvc, 12)).await;
        }
        cluster.assert_data(0, &pvc);
        alive.push(pvc);

        let volumes = cluster.bed.cloud().control().view().volumes;
        let named: Vec<_> = volumes.iter().filter(|volume| volume.label == name).collect();
        assert_eq!((named.len(), volumes.len()), (1, alive.len()), "one name is one volume: {volumes:?}");
        assert_eq!(named[0].size_gb, 12);
        if alive.len() == TOGETHER || life + 1 == LIVES {
            for pvc in alive.drain(..) {
                cluster.assert_data(0, &pvc);
                repeated(|| cluster.leave(0, &pvc)).await;
                repeated(|| cluster.detach(0, &pvc)).await;
                repeated(|| cluster.delete(&pvc)).await;
            }
        }
    }
    assert_eq!(cluster.bed.cloud().control().stats().dirty_detaches, 0);
    cluster.end().await;
}
