//! The lease in simulated time, against a simulated API server in memory.

use axum::http::{Method, StatusCode};
use kube_sim::{Action, KubeSim};
use tokio::task::JoinHandle;

use super::*;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/active";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// A process that wants the lease.
struct Contender {
    lease: Lease,
    fence: Fence,
    standing: watch::Sender<String>,
    stands: watch::Receiver<String>,
}

impl Contender {
    fn new(sim: &KubeSim, me: &str) -> Self {
        let client = Client::new(sim.router(), "kube-system");
        let fence = Fence::default();
        let (standing, stands) = watch::channel("starting".to_owned());
        let lease = Lease::new(client, "active".to_owned(), me.to_owned(), fence.clone());
        Self { lease, fence, standing, stands }
    }

    async fn acquire(self) -> (Held, Fence) {
        (self.lease.acquire(&self.standing).await, self.fence)
    }

    /// The same in a task of its own, which the second of the pair tells about.
    fn waits(self) -> (JoinHandle<(Held, Fence)>, watch::Receiver<String>) {
        let stands = self.stands.clone();
        (tokio::spawn(self.acquire()), stands)
    }
}

fn holder(sim: &KubeSim) -> String {
    let record = sim.object(PATH).expect("there is a record");
    record["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

async fn acquired(sim: &KubeSim, me: &str) -> (Held, Fence) {
    Contender::new(sim, me).acquire().await
}

#[tokio::test(start_paused = true)]
async fn the_first_is_active_and_the_second_waits_and_says_for_whom() {
    let sim = KubeSim::default();
    let (mut first, fence) = acquired(&sim, "pod-a").await;
    assert!(fence.is_open());
    let record = &sim.object(PATH).unwrap()["spec"];
    assert_eq!((&record["leaseDurationSeconds"], &record["leaseTransitions"]), (&15.into(), &0.into()));

    let second = Contender::new(&sim, "pod-b");
    let second_fence = second.fence.clone();
    let (second, mut stands) = second.waits();
    tokio::select! {
        lost = first.keep() => panic!("{lost}"),
        told = stands.wait_for(|told| told != "starting") => {
            assert_eq!(*told.unwrap(), "waiting for the lease active held by pod-a");
        }
    }
    let minutes = Duration::from_secs(600);
    assert!(timeout(minutes, first.keep()).await.is_err(), "it is renewed all the time");
    assert!(!second.is_finished() && !second_fence.is_open());
    assert_eq!(holder(&sim), "pod-a");
    // One renewal each 2 s, and nothing else.
    assert!((295..=302).contains(&sim.count(&Method::PUT, PATH)), "{}", sim.count(&Method::PUT, PATH));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_dies_is_waited_for_fifteen_seconds() {
    let sim = KubeSim::default();
    let (mut first, fence) = acquired(&sim, "pod-a").await;
    let (second, _stands) = Contender::new(&sim, "pod-b").waits();
    assert!(timeout(Duration::from_secs(21), first.keep()).await.is_err());
    // Its last renewal was sent at 20 s.
    let dead = Instant::now();
    drop(first);
    let (_held, new) = second.await.unwrap();
    let after = dead.elapsed();
    assert!(after + Duration::from_secs(1) >= LEASE, "{after:?}");
    assert!(after <= LEASE + RETRY * 2 + RETRY, "{after:?}");
    assert!(!fence.is_open() && new.is_open());
    assert_eq!(holder(&sim), "pod-b");
    assert_eq!(sim.object(PATH).unwrap()["spec"]["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_duration_that_somebody_wrote_into_the_record_changes_nothing() {
    for written in [1, 3600] {
        let sim = KubeSim::default();
        let (mut first, _) = acquired(&sim, "pod-a").await;
        let (second, mut stands) = Contender::new(&sim, "pod-b").waits();
        let write = || sim.edit(PATH, |record| record["spec"]["leaseDurationSeconds"] = written.into());
        tokio::select! {
            lost = first.keep() => panic!("{lost}"),
            told = stands.wait_for(|told| told.contains("held by pod-a")) => drop(told.unwrap()),
        }
        write();
        assert!(timeout(RETRY * 3, first.keep()).await.is_err());
        assert_eq!(sim.object(PATH).unwrap()["spec"]["leaseDurationSeconds"], 15);
        let dead = Instant::now();
        drop(first);
        if written < 15 {
            write();
        }
        second.await.unwrap();
        let after = dead.elapsed();
        assert!(after + RETRY >= LEASE && after <= LEASE + RETRY * 3, "{written}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_emptied_is_not_taken_before_its_holder_has_ended() {
    let sim = KubeSim::default();
    let (mut first, fence) = acquired(&sim, "pod-a").await;
    let (second, mut stands) = Contender::new(&sim, "pod-b").waits();
    tokio::select! {
        lost = first.keep() => panic!("{lost}"),
        told = stands.wait_for(|told| told.contains("held by pod-a")) => drop(told.unwrap()),
    }
    sim.put(PATH, serde_json::json!({ "metadata": {}, "spec": {} }));
    // Its machine is busy: it does not renew, and may still send.
    let emptied = Instant::now();
    let (_held, new) = second.await.unwrap();
    assert!(emptied.elapsed() >= RENEW_DEADLINE, "taken {:?} after it was emptied", emptied.elapsed());
    assert!(!fence.is_open() && new.is_open());
    assert!(first.keep().await.contains("lease active"), "it ends");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_given_back_is_taken_at_once() {
    let sim = KubeSim::default();
    let (mut first, fence) = acquired(&sim, "pod-a").await;
    let (second, _stands) = Contender::new(&sim, "pod-b").waits();
    assert!(timeout(Duration::from_secs(21), first.keep()).await.is_err());
    let ended = Instant::now();
    first.release().await;
    assert!(!fence.is_open());
    second.await.unwrap();
    assert!(ended.elapsed() <= RETRY * 2, "{:?}", ended.elapsed());
    assert_eq!(holder(&sim), "pod-b");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_was_dropped_on_its_way_does_not_keep_it_from_being_given_back() {
    let sim = KubeSim::default();
    let (mut held, _) = acquired(&sim, "pod-a").await;
    sim.add_fault(Method::PUT, PATH, Action::LoseAnswer, 1);
    // Ended while the renewal of second 2 is on its way.
    assert!(timeout(Duration::from_secs(3), held.keep()).await.is_err());
    held.release().await;
    assert_eq!(holder(&sim), "");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_ends_ten_seconds_after_its_last_renewal() {
    for fault in [
        Action::Silence,
        Action::Answer(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Action::Answer(StatusCode::FORBIDDEN, "Forbidden"),
    ] {
        let (sim, began) = (KubeSim::default(), Instant::now());
        let (mut held, fence) = acquired(&sim, "pod-a").await;
        assert!(timeout(Duration::from_secs(21), held.keep()).await.is_err());
        sim.add_fault(Method::PUT, PATH, fault.clone(), u64::MAX);
        let lost = held.keep().await;
        // It is renewed every 2 s, so the last time at 20 s or a little after.
        let after = began.elapsed().checked_sub(Duration::from_secs(20)).unwrap();
        let bounds = RENEW_DEADLINE..=RENEW_DEADLINE + Duration::from_millis(100);
        assert!(bounds.contains(&after), "{fault:?}: {after:?}");
        assert!(lost.contains("not renewed within 10 s"), "{lost}");
        assert!(!fence.is_open());
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_outlives_a_short_trouble() {
    let sim = KubeSim::default();
    let (mut held, fence) = acquired(&sim, "pod-a").await;
    sim.add_fault(Method::PUT, PATH, Action::Answer(StatusCode::SERVICE_UNAVAILABLE, ""), 3);
    assert!(timeout(Duration::from_secs(60), held.keep()).await.is_err());
    assert!(fence.is_open());
}

#[tokio::test(start_paused = true)]
async fn a_holder_ends_when_somebody_else_has_the_lease() {
    let sim = KubeSim::default();
    let (mut held, fence) = acquired(&sim, "pod-a").await;
    sim.edit(PATH, |record| record["spec"]["holderIdentity"] = "pod-b".into());
    let began = Instant::now();
    let lost = held.keep().await;
    assert!(began.elapsed() <= RETRY + Duration::from_millis(50), "{:?}", began.elapsed());
    assert_eq!(lost, "the lease active is held by pod-b now");
    assert!(!fence.is_open());
    assert_eq!(holder(&sim), "pod-b", "it takes nothing back");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_loses_nothing() {
    let sim = KubeSim::default();
    // Both on the way to the lease and while it is held.
    sim.add_fault(Method::POST, LEASES, Action::LoseAnswer, 1);
    let (mut held, fence) = acquired(&sim, "pod-a").await;
    sim.add_fault(Method::PUT, PATH, Action::LoseAnswer, 1);
    assert!(timeout(Duration::from_secs(60), held.keep()).await.is_err());
    assert!(fence.is_open());
    assert_eq!(sim.object(PATH).unwrap()["spec"]["leaseTransitions"], 0);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_take_it_at_once_one_has_it() {
    let sim = KubeSim::default();
    let other = |sim: &KubeSim| {
        let spec = serde_json::json!({ "holderIdentity": "pod-b", "leaseDurationSeconds": 15 });
        sim.put(PATH, serde_json::json!({ "metadata": {}, "spec": spec }));
    };
    for (method, path) in [(Method::POST, LEASES), (Method::PUT, PATH)] {
        if method == Method::PUT {
            sim.put(PATH, serde_json::json!({ "metadata": {}, "spec": {} }));
        }
        sim.before(method.clone(), path, other);
        let contender = Contender::new(&sim, "pod-a");
        let fence = contender.fence.clone();
        assert!(timeout(LEASE, contender.acquire()).await.is_err(), "{method}");
        assert!(!fence.is_open());
        assert_eq!(holder(&sim), "pod-b");
        sim.remove(PATH);
    }
}

#[tokio::test(start_paused = true)]
async fn the_clocks_of_others_say_nothing() {
    for renewed in ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
        let sim = KubeSim::default();
        let spec = serde_json::json!({
            "holderIdentity": "pod-b", "leaseDurationSeconds": 15, "renewTime": renewed, "acquireTime": renewed,
        });
        sim.put(PATH, serde_json::json!({ "metadata": {}, "spec": spec }));
        let began = Instant::now();
        acquired(&sim, "pod-a").await;
        let after = began.elapsed();
        assert!((LEASE..LEASE + RETRY * 2).contains(&after), "{renewed}: {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_deletes_stays_with_its_holder() {
    let sim = KubeSim::default();
    let (mut first, fence) = acquired(&sim, "pod-a").await;
    let (second, mut stands) = Contender::new(&sim, "pod-b").waits();
    tokio::select! {
        lost = first.keep() => panic!("{lost}"),
        told = stands.wait_for(|told| told.contains("pod-a")) => drop(told.unwrap()),
    }
    for _ in 0..10 {
        sim.remove(PATH);
        assert!(timeout(Duration::from_secs(7), first.keep()).await.is_err());
        assert!(fence.is_open() && !second.is_finished());
        assert_eq!(holder(&sim), "pod-a");
    }
}

#[tokio::test(start_paused = true)]
async fn without_rights_it_waits_and_says_so() {
    let sim = KubeSim::default();
    sim.add_fault(Method::GET, PATH, Action::Answer(StatusCode::FORBIDDEN, "Forbidden"), u64::MAX);
    let (waiting, mut stands) = Contender::new(&sim, "pod-a").waits();
    let told = stands.wait_for(|told| told != "starting").await.unwrap().clone();
    assert!(told.contains("cannot be had: 403 Forbidden"), "{told}");
    sim.clear_faults();
    let (_held, fence) = waiting.await.unwrap();
    assert!(fence.is_open());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_slept_too_long_wakes_up_behind_a_closed_fence() {
    let sim = KubeSim::default();
    let (mut held, fence) = acquired(&sim, "pod-a").await;
    // Nobody has looked at the lease since, as when the process was stopped.
    tokio::time::advance(RENEW_DEADLINE).await;
    assert!(!fence.is_open());
    let puts = sim.count(&Method::PUT, PATH);
    assert!(held.keep().await.contains("not renewed within 10 s"));
    assert_eq!(sim.count(&Method::PUT, PATH), puts);
}

#[test]
fn no_two_processes_have_one_name() {
    let (one, two) = (identity().unwrap(), identity().unwrap());
    assert_ne!(one, two);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(one.starts_with(&format!("{}_", host.trim())), "{one}");
}

/// Lives of three processes that want the lease, each with a way to the API server that fails it by itself for a while,
/// and deaths at any moment.
async fn history(seed: u64) -> usize {
    let mut dice = fastrand::Rng::with_seed(seed);
    let sim = KubeSim::default();
    let (told, mut began) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    let ways = [sim.beside(), sim.beside(), sim.beside()];
    for (pod, sim) in ["a", "b", "c"].into_iter().zip(ways.clone()) {
        let (told, mut dice) = (told.clone(), dice.fork());
        tasks.push(tokio::spawn(async move {
            for life in 0.. {
                let (mut held, fence) = acquired(&sim, &format!("pod-{pod}_{life}")).await;
                told.send(fence.clone()).unwrap();
                let age = Duration::from_millis(dice.u64(0..40_000));
                match timeout(age, held.keep()).await {
                    Err(_) if dice.bool() => held.release().await,
                    // Killed, so nothing of it goes out any more.
                    Err(_) => fence.close(),
                    Ok(_) => assert!(!fence.is_open()),
                }
            }
        }));
    }
    let mut fences: Vec<Fence> = Vec::new();
    let mut terms = 0;
    for _ in 0..3_000 {
        sleep(Duration::from_millis(100)).await;
        while let Ok(fence) = began.try_recv() {
            terms += 1;
            fences.push(fence);
        }
        fences.retain(Fence::is_open);
        assert!(fences.len() <= 1, "two are active (seed {seed})");
        if dice.u32(0..60) == 0 {
            let action = [
                Action::Silence,
                Action::LoseAnswer,
                Action::Answer(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            ];
            let method = [Method::GET, Method::PUT, Method::POST][dice.usize(0..3)].clone();
            let way = &ways[dice.usize(0..3)];
            way.add_fault(method, LEASES, action[dice.usize(0..3)].clone(), dice.u64(1..12));
        }
    }
    for task in tasks {
        task.abort();
    }
    terms
}

#[tokio::test(start_paused = true)]
async fn in_no_history_two_are_active() {
    let mut terms = 0;
    for seed in 0..50 {
        terms += history(seed).await;
    }
    // It would be no proof if nobody ever was.
    assert!(terms > 100, "only {terms} terms");
}
