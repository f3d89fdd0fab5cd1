//! Random sequences of calls, mishaps and restarts, over several volumes and two nodes: no wrong mount, no lost byte, and
//! at the end no stray mount.
//!
//! The same sequences run in memory and on real disks. `SEED=n` runs one alone and prints its steps; `SEQUENCES=n` runs
//! that many in memory, `REAL_SEQUENCES=n` on real disks.

mod disk;
mod drive;
mod generator;
mod in_memory;
mod model;
mod plan;
mod raw;
mod real;
mod request;
mod tally;
mod world;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio::runtime::Builder;

use self::{
    drive::{Drive, Failure},
    in_memory::{Fault, InMemory},
    plan::Plan,
    real::Real,
    tally::Tally,
};
use super::{machine::may_have_disks, process::Lie};

/// How many sequences run in memory, unless the environment says otherwise.
const SEQUENCES: u64 = 10_000;

/// How many run on real disks.
const REAL_SEQUENCES: u64 = 200;

/// How many sequences it may take until a liar is caught.
const UNTIL_CAUGHT: u64 = 400;

/// Held by the tests that load the machine: they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs one sequence in memory, on a clock that only moves when nothing else does.
fn in_memory(plan: &Plan, fault: Option<Fault>) -> Result<(Tally, Vec<String>), Failure> {
    // One thread for blocking calls, so that these have an order, too.
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).max_blocking_threads(1).build();
    runtime.unwrap().block_on(async {
        let world = InMemory::new(plan, fault);
        Drive::new(plan, &world).run().await
    })
}

/// Runs one sequence on real disks.
fn on_disks(seed: u64) -> Result<(Tally, Vec<String>), Failure> {
    // Not every kernel that tests run on has a device-mapper.
    let plan = Plan::of(seed).in_the_clear();
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let world = Real::new(&plan);
        Drive::new(&plan, &world).run().await
    })
}

/// Runs all seeds on so many threads for each processor; gives what was counted, or the failure of the lowest seed that
/// was seen to fail.
fn all(
    threads: usize,
    seeds: std::ops::Range<u64>,
    run: impl Fn(u64) -> Result<(Tally, Vec<String>), Failure> + Sync,
) -> Result<Tally, Failure> {
    let next = AtomicU64::new(seeds.start);
    let (tally, failure) = (Mutex::new(Tally::default()), Mutex::new(None::<Failure>));
    let work = || {
        while failure.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            match run(seed) {
                Ok((counted, _)) => tally.lock().unwrap().merge(&counted),
                Err(failed) => {
                    let mut failure = failure.lock().unwrap();
                    if failure.as_ref().is_none_or(|known| failed.seed < known.seed) {
                        *failure = Some(failed);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads * std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    match failure.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(tally.into_inner().unwrap()),
    }
}

/// How many sequences it takes until a fault is noticed, and what of it.
fn caught(fault: Fault) -> (u64, String) {
    // An encryption would notice some of it by itself.
    let run = |seed| in_memory(&Plan::of(seed).in_the_clear(), Some(fault));
    let ended = (0..UNTIL_CAUGHT).find_map(|seed| Some((seed, run(seed).err()?.problem)));
    ended.unwrap_or_else(|| panic!("{fault:?} goes unnoticed in {UNTIL_CAUGHT} sequences"))
}

fn print(ended: Result<(Tally, Vec<String>), Failure>) {
    match ended {
        Ok((tally, log)) => println!("{}\n{tally}", log.join("\n")),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn no_sequence_in_memory_mounts_a_wrong_disk_loses_a_byte_or_leaves_a_mount() {
    if let Some(seed) = number_in("SEED") {
        return print(in_memory(&Plan::of(seed), None));
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let began = std::time::Instant::now();
    match all(1, 0..number_in("SEQUENCES").unwrap_or(SEQUENCES), |seed| in_memory(&Plan::of(seed), None)) {
        Ok(tally) => println!("in memory, in {} s: {tally}", began.elapsed().as_secs()),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn no_sequence_on_real_disks_mounts_a_wrong_one_loses_a_byte_or_leaves_a_mount() {
    if !may_have_disks() {
        return;
    }
    if let Some(seed) = number_in("SEED") {
        return print(on_disks(seed));
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let began = std::time::Instant::now();
    // Most of the time the kernel is waited for.
    match all(4, 0..number_in("REAL_SEQUENCES").unwrap_or(REAL_SEQUENCES), on_disks) {
        Ok(tally) => println!("on real disks, in {} s: {tally}", began.elapsed().as_secs()),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn a_sequence_is_the_same_every_time() {
    for seed in 0..60 {
        let run = || in_memory(&Plan::of(seed), None).unwrap_or_else(|failure| panic!("{failure}")).1;
        assert_eq!(run(), run(), "SEED={seed}");
    }
}

#[test]
fn a_driver_that_trusts_a_wrong_serial_or_link_is_caught() {
    for (lie, noticed) in [
        (Lie::SwappedSerials, "a wrong disk is mounted"),
        (Lie::HiddenTwins, "has to be refused"),
        (Lie::MuteIsAbsent, "has to be refused"),
        (Lie::NoLinks, "has to be refused"),
    ] {
        let (seed, problem) = caught(Fault::Lie(lie));
        println!("{lie:?}: seed {seed}: {problem}");
        assert!(problem.contains(noticed), "{lie:?}: {problem}");
    }
}

#[test]
fn a_driver_that_formats_over_data_is_caught() {
    let (seed, problem) = caught(Fault::Lie(Lie::BlankDisks));
    println!("seed {seed}: {problem}");
    assert!(problem.contains("a mkfs began on volume"), "{problem}");
}

#[test]
fn a_lost_write_is_caught() {
    let (seed, problem) = caught(Fault::Forgets);
    println!("seed {seed}: {problem}");
    assert!(problem.contains("is lost at"), "{problem}");
}

#[test]
fn a_mount_that_stays_or_has_another_mode_than_asked_for_is_caught() {
    for (lie, noticed) in [(Lie::IdleUnmounts, "still mounted"), (Lie::IdleRemounts, "read-only true was asked for")] {
        let (seed, problem) = caught(Fault::Lie(lie));
        println!("{lie:?}: seed {seed}: {problem}");
        assert!(problem.contains(noticed), "{lie:?}: {problem}");
    }
}
