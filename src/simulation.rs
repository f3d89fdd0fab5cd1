//! The whole controller in simulated time: from the calls of Kubernetes' sidecars down to the requests on the wire,
//! against a Vultr account in memory.
//!
//! [`account`] is the account, [`network`] and [`faults`] are what lies between, [`process`] is one life of the
//! controller, [`fleet`] takes many volumes at once through their lives and counts what that costs.

mod account;
mod faults;
mod fleet;
mod network;
mod process;
mod request;
mod story;

use self::fleet::{Figures, Fleet};

/// Takes fleets through their lives in fair weather, prints what that cost, and holds it against what it may cost.
fn are_cheap(fleets: &[Fleet]) {
    let all: Vec<Figures> = fleets.iter().map(|fleet| fleet::run(*fleet)).collect();
    all.iter().for_each(|figures| println!("{figures}"));
    for figures in all {
        assert!(figures.wrong.is_empty(), "{:?}", figures.wrong);
        assert_eq!((figures.left, figures.limited), (0, 0), "left, limited");
        assert!(figures.errors.is_empty(), "{} calls fail at first, as {}", figures.errors.len(), figures.errors[0]);
        assert!(figures.requests_per_volume() <= 5.0, "{} requests a volume", figures.requests_per_volume());
        assert!(figures.stretch() <= 1.25, "it takes {} of the least", figures.stretch());
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
