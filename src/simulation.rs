//! The whole controller in simulated time: from the calls of Kubernetes' sidecars down to the requests on the wire,
//! against a Vultr account in memory.
//!
//! - [`account`] the account, and [`story`] what happened in it
//! - [`network`] and [`faults`] what lies between it and the controller; [`lie`] what lies about it
//! - [`process`] one life of the controller, and [`request`] the calls that are made to it
//! - [`plan`] what a seed means; [`cluster`] what Kubernetes wants and calls for; [`history`] all that put together
//! - [`check`] and [`lists`] what answers promise, held against the story
//! - [`fleet`] and [`burst`] many volumes at once, and what that costs
//!
//! `SEED=n` runs one history alone and prints all that happened in it; `HISTORIES=n` runs that many.

mod account;
mod burst;
mod check;
mod cluster;
mod faults;
mod fleet;
mod history;
mod lie;
mod lists;
mod network;
mod plan;
mod process;
mod request;
mod snapshots;
mod story;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use self::{
    fleet::{Figures, Fleet},
    history::{Failure, Outcome},
    lie::LIES,
    plan::Plan,
};

/// How many histories are run, unless the environment says otherwise.
const HISTORIES: u64 = 10_000;

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// What all histories came to together, and for each kind of failure how often there was one and the lowest seed's.
#[derive(Default)]
struct Sum {
    outcome: Outcome,
    failures: BTreeMap<String, (usize, Failure)>,
}

impl Sum {
    fn add(&mut self, ended: Result<Outcome, Failure>) {
        match ended {
            Ok(outcome) => self.outcome.add(&outcome),
            Err(failed) => match self.failures.entry(kind(&failed.problem)) {
                Entry::Vacant(place) => {
                    place.insert((1, failed));
                }
                Entry::Occupied(mut place) => {
                    let (count, lowest) = place.get_mut();
                    *count += 1;
                    if failed.seed < lowest.seed {
                        *lowest = failed;
                    }
                }
            },
        }
    }

    /// Prints what there is to say, and fails if any history did.
    fn hold(&self, took: Duration) {
        println!("in {:.1} s: {}", took.as_secs_f64(), self.outcome);
        for (count, failure) in self.failures.values() {
            println!("{count} histories, SEED={} the lowest: {}", failure.seed, failure.problem);
        }
        if let Some((_, failure)) = self.failures.values().min_by_key(|(_, failure)| failure.seed) {
            panic!("{failure}");
        }
    }
}

/// A problem without what differs from seed to seed.
fn kind(problem: &str) -> String {
    let word = |word: &str| if word.contains(|c: char| c.is_ascii_digit()) { "#".to_owned() } else { word.to_owned() };
    problem.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').map(word).collect::<Vec<_>>().join(" ")
}

/// Runs the histories of all seeds, each whole on one thread.
fn all(seeds: std::ops::Range<u64>, run: impl Fn(u64) -> Result<Outcome, Failure> + Sync) -> Sum {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Sum::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let ended = run(seed);
            sum.lock().unwrap().add(ended);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    sum.into_inner().unwrap()
}

fn one(seed: u64) -> Result<Outcome, Failure> {
    history::run(Plan::of(seed), None)
}

#[test]
fn no_history_breaks_a_promise() {
    if let Some(seed) = number_in("SEED") {
        match one(seed) {
            Ok(outcome) => println!("{}\n{outcome}", outcome.log.join("\n")),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let began = std::time::Instant::now();
    all(0..number_in("HISTORIES").unwrap_or(HISTORIES), one).hold(began.elapsed());
}

#[test]
fn a_history_is_the_same_every_time() {
    for seed in 0..60 {
        let run = || one(seed).map_or_else(|failure| failure.log, |outcome| outcome.log);
        assert_eq!(run(), run(), "SEED={seed}");
    }
}

/// Takes fleets through their lives in fair weather, prints what that cost, and holds it against what it may cost.
fn are_cheap(fleets: &[Fleet]) {
    let all: Vec<Figures> = fleets.iter().map(|fleet| fleet::run(*fleet)).collect();
    for figures in &all {
        println!("{figures}");
    }
    for figures in all {
        assert!(figures.wrong.is_empty(), "{:?}", figures.wrong);
        assert_eq!((figures.left, figures.limited), (0, 0), "left, limited");
        assert!(figures.errors.is_empty(), "{} calls fail at first, as {}", figures.errors.len(), figures.errors[0]);
        assert!(figures.requests_per_volume() <= 5.0, "{} requests a volume", figures.requests_per_volume());
        assert!(figures.stretch() <= 1.25, "it takes {} of the least", figures.stretch());
    }
}

/// How many histories it may take until a lie is noticed.
const UNTIL_CAUGHT: u64 = 60;

#[test]
fn whoever_lies_is_caught() {
    for (lie, noticed) in LIES {
        let caught = (0..UNTIL_CAUGHT).find_map(|seed| {
            let failure = history::run(Plan::of(seed), Some(lie)).err()?;
            Some(failure).filter(|failure| failure.problem.contains(noticed) && one(seed).is_ok())
        });
        let caught = caught.unwrap_or_else(|| panic!("{lie:?} goes unnoticed"));
        println!("{lie:?}: SEED={}: {}", caught.seed, caught.problem);
    }
}

#[test]
fn a_thousand_lives_at_once_take_little_more_than_their_changes_do() {
    are_cheap(&[20, 29].map(|rate| Fleet { volumes: 1000, instances: 100, rate, permille: 0 }));
}

#[test]
fn ten_thousand_lives_at_once_cost_no_more_each() {
    are_cheap(&[Fleet { volumes: 10_000, instances: 1000, rate: 20, permille: 0 }]);
}

#[test]
fn a_thousand_lives_come_to_a_good_end_though_a_request_in_twenty_fails() {
    let figures = fleet::run(Fleet { volumes: 1000, instances: 100, rate: 20, permille: 50 });
    println!("{figures}");
    assert!(figures.wrong.is_empty(), "{:?}", figures.wrong);
    assert_eq!(figures.left, 0, "volumes are left");
}
