//! What is wanted of a cluster's volumes and when, what goes wrong meanwhile, and how the account behaves.

use std::{fmt, ops::Range, time::Duration};

use fastrand::Rng;

use super::{
    account::{Console, Habits},
    network::Moment,
};

/// Something that happens at a moment of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A claim is wanted.
    Claim(usize),
    /// A claim is wanted no longer, and by no node.
    Unclaim(usize),
    /// A claim is wanted on a node.
    Attach(usize, usize),
    /// It is wanted there no longer.
    Detach(usize, usize),
    /// A claim is to grow by so many GiB.
    Grow(usize, i64),
    /// A snapshot is wanted.
    Snap(usize),
    /// It is wanted no longer.
    Unsnap(usize),
    /// A call that the state of things does not ask for.
    Stray(Stray),
    Console(Console),
    /// Nobody can reach VFS for so many seconds.
    NoVfs(u64),
    /// The controller dies, now or when so many more requests have come to a moment; it is away for some ms.
    Crash(Option<(Moment, usize)>, u64),
}

/// Calls of a confused caller, which must do no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stray {
    /// A claim is to be taken from a node that it is not wanted on.
    Unpublish(usize, usize),
    /// A claim is to be given to a node that there is not.
    PublishNowhere(usize),
    /// A claim is to be deleted while it is wanted on a node.
    Delete(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// How the sidecars of this cluster go about it.
#[derive(Debug, Clone)]
pub(super) struct Manners {
    /// The deadlines of their calls, in ms.
    pub(super) deadline: Range<u64>,
    /// Whether volumes are deleted before they are off their nodes.
    pub(super) hasty: bool,
    /// Whether a volume is wanted on a second node before it is off the first.
    pub(super) two_at_once: bool,
    /// How many of 1,000 calls are made twice.
    pub(super) twins: u32,
}

/// What a claim's volume has in it at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Blank,
    /// It is a file system that many nodes share.
    Shared,
    /// What a snapshot has.
    Restored(usize),
    /// What another claim's volume has.
    Cloned(usize),
}

/// A history before it is run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) habits: Habits,
    pub(super) manners: Manners,
    pub(super) claims: Vec<Content>,
    /// The claims that snapshots are taken of.
    pub(super) snapshots: Vec<usize>,
    pub(super) nodes: usize,
    /// How many of 1,000 requests something goes wrong with.
    pub(super) permille: u32,
    /// What happens, each a while after the one before.
    pub(super) steps: Vec<(Duration, Step)>,
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let nodes = rng.usize(2..4);
        // Some histories are of fair weather, so that what they cost can be held against a bound.
        let calm = rng.u32(0..10) == 0;
        let permille = if calm { 0 } else { [0, 20, 50, 150, 300][rng.usize(0..5)] };
        let console = !calm && rng.u32(0..3) == 0;
        let crashes = !calm && rng.bool();
        let (claims, snapshots) = volumes(&mut rng, console);
        let mut steps: Vec<(Duration, Step)> =
            (0..claims.len()).map(|claim| (gap(&mut rng), Step::Claim(claim))).collect();
        for _ in 0..rng.usize(6..24) {
            let step = step(&mut rng, (claims.len(), snapshots.len()), nodes, console, crashes);
            steps.push((gap(&mut rng), step));
        }
        Self { seed, habits: habits(&mut rng), manners: manners(&mut rng), claims, snapshots, nodes, permille, steps }
    }

    /// Whether everything that happens is the driver's own doing.
    pub(super) fn is_calm(&self) -> bool {
        let calm = |step: &Step| !matches!(step, Step::Console(_) | Step::NoVfs(_) | Step::Crash(..) | Step::Stray(_));
        self.permille == 0 && self.steps.iter().all(|(_, step)| calm(step))
    }
}

/// The claims, and the claims that snapshots are taken of. Where somebody plays in the console they are plain.
fn volumes(rng: &mut Rng, console: bool) -> (Vec<Content>, Vec<usize>) {
    let plain = console || rng.u32(0..3) == 0;
    let mut claims = vec![Content::Blank];
    let snapshots = if plain { Vec::new() } else { vec![0; rng.usize(0..3)] };
    for _ in 0..rng.usize(if plain { 0..3 } else { 1..4 }) {
        let content = match rng.u32(0..10) {
            0..3 if !plain => Content::Shared,
            3..6 if !plain => Content::Cloned(0),
            6..9 if !snapshots.is_empty() => Content::Restored(rng.usize(0..snapshots.len())),
            _ => Content::Blank,
        };
        claims.push(content);
    }
    (claims, snapshots)
}

fn gap(rng: &mut Rng) -> Duration {
    let most = [300, 3000, 30_000][rng.usize(0..3)];
    Duration::from_millis(rng.u64(0..most))
}

fn step(rng: &mut Rng, (claims, snapshots): (usize, usize), nodes: usize, console: bool, crashes: bool) -> Step {
    let (claim, node) = (rng.usize(0..claims), rng.usize(0..nodes));
    match rng.u32(0..100) {
        0..8 if snapshots > 0 => Step::Snap(rng.usize(0..snapshots)),
        50..54 if snapshots > 0 => Step::Unsnap(rng.usize(0..snapshots)),
        70..80 if crashes => {
            let moment = [Moment::Begun, Moment::TookEffect, Moment::Answered][rng.usize(0..3)];
            let when = (rng.u32(0..4) != 0).then(|| (moment, rng.usize(1..12)));
            Step::Crash(when, rng.u64(0..8000))
        }
        80..90 if console => Step::Console(match rng.u32(0..8) {
            0 => Console::DeleteInstance(node),
            1 | 2 => Console::Delete(claim),
            3..6 => Console::Detach(claim),
            _ => Console::Attach(claim, node),
        }),
        90..95 => Step::Stray(match rng.u32(0..3) {
            0 => Stray::Unpublish(claim, node),
            // Were it detached in the console meanwhile, it would be deleted, and rightly so.
            1 if !console => Stray::Delete(claim),
            _ => Stray::PublishNowhere(claim),
        }),
        95..97 if !console => Step::NoVfs(rng.u64(1..120)),
        0..12 => Step::Claim(claim),
        12..22 => Step::Unclaim(claim),
        50..62 => Step::Detach(claim, node),
        62..70 => Step::Grow(claim, rng.i64(1..4)),
        _ => Step::Attach(claim, node),
    }
}

fn habits(rng: &mut Rng) -> Habits {
    let slow = rng.u32(0..5) == 0;
    Habits {
        creating: if slow { 1000..40_000 } else { 0..3000 },
        moving: if slow { 2000..25_000 } else { 300..5000 },
        growing: if rng.bool() { 0..1 } else { 0..4000 },
        taking: if slow { 1000..60_000 } else { 200..5000 },
        failing: [0, 0, 0, 150][rng.usize(0..4)],
        snapshot_shape: rng.u32(0..4),
        page: [1, 2, 3, 500][rng.usize(0..4)],
        pages_by_number: rng.u32(0..4) == 0,
        unknown_block: [404, 400][rng.usize(0..2)],
        locked_is_500: rng.bool(),
        deletes_attached: rng.bool(),
        ghosts: rng.bool(),
    }
}

fn manners(rng: &mut Rng) -> Manners {
    let deadline = [10_000..11_000, 15_000..60_000, 90_000..91_000][rng.usize(0..3)].clone();
    Manners {
        deadline,
        hasty: rng.u32(0..4) == 0,
        two_at_once: rng.u32(0..4) == 0,
        twins: [0, 100, 500][rng.usize(0..3)],
    }
}
