//! Runs a sequence in a world, and holds every step against the model; at its end everything is healed, and has to come
//! to a good end.

use std::{fmt, time::Duration};

use futures_util::future::join_all;

use super::{
    model::{Expected, Model},
    plan::{Asked, Call, Change, Kind, Link, Meanwhile, NODES, Place, Plan, Step, TARGETS},
    request::{Request, word},
    tally::Tally,
    world::{Holds, Seen, World, id, text},
};
use crate::{error::Error, node::tests::process::Death};

/// How often a call is repeated at the end, when nothing is in its way any more.
const REPEATS: usize = 3;

/// How often it may meet with what passes by itself.
const PASSING: usize = 200;

/// What went wrong, and all that was done until then.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) seed: u64,
    pub(crate) problem: String,
    pub(crate) log: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.problem)?;
        for line in &self.log {
            writeln!(f, "  {line}")?;
        }
        write!(f, "SEED={} replays it", self.seed)
    }
}

/// A sequence that is run.
pub(crate) struct Drive<'a, W> {
    plan: &'a Plan,
    world: &'a W,
    model: Model,
    tally: Tally,
    log: Vec<String>,
}

impl<'a, W: World> Drive<'a, W> {
    pub(crate) fn new(plan: &'a Plan, world: &'a W) -> Self {
        Self { plan, world, model: Model::new(&plan.volumes), tally: Tally::default(), log: Vec::new() }
    }

    /// Runs the sequence to its end; gives what was counted and the log.
    pub(crate) async fn run(mut self) -> Result<(Tally, Vec<String>), Failure> {
        self.log.push(format!("volumes {:?}, large: {}", self.plan.volumes, self.plan.large));
        match self.all().await {
            Ok(()) => {
                self.tally.count("sequences");
                Ok((self.tally, self.log))
            }
            Err(problem) => Err(Failure { seed: self.plan.seed, problem, log: self.log }),
        }
    }

    async fn all(&mut self) -> Result<(), String> {
        for (number, step) in self.plan.steps.iter().enumerate() {
            self.log.push(format!("{number}: {step}"));
            self.step(step).await?;
            self.tally.count("steps");
        }
        self.log.push("the end: all is healed".to_owned());
        self.heal();
        self.tear_down().await?;
        for volume in 0..self.model.volumes.len() {
            self.comes_back(volume).await?;
        }
        self.tear_down().await
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Change(change) => self.change(*change),
            Step::Calls { asked, meanwhile } => self.calls(asked, *meanwhile).await?,
            Step::Write { node, volume, place, sync } => self.write(*node, *volume, *place, *sync)?,
            Step::Restart { node, death } => self.restart(*node, *death),
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), String> {
        let formats = self.model.formatted(self.world)?;
        self.tally.add("mkfs", formats);
        self.model.always(self.world)
    }

    fn change(&mut self, change: Change) {
        self.world.change(change);
        self.changed(change);
    }

    fn changed(&mut self, change: Change) {
        if let Change::Detach { volume } = change {
            self.model.torn(volume);
        }
    }

    fn restart(&mut self, node: usize, death: Death) {
        if death == Death::Machine {
            for volume in 0..self.model.volumes.len() {
                if self.world.shown(volume, node).attached.is_some() {
                    self.model.torn(volume);
                }
            }
        }
        self.world.restart(node, death);
        self.tally.count(&format!("{death:?} restarts").to_lowercase());
    }

    /// Makes calls at once, and holds how they end against what the model expects.
    async fn calls(&mut self, asked: &[Asked], meanwhile: Option<(u32, Meanwhile)>) -> Result<(), String> {
        let node = asked[0].node;
        let expected: Vec<Expected> = asked.iter().map(|asked| self.model.expect(self.world, *asked)).collect();
        let shown = |asked: &Asked| self.world.shown(asked.volume, asked.node).attached.is_some();
        let attached: Vec<bool> = asked.iter().map(shown).collect();
        if let Some((ticks, what)) = meanwhile {
            self.world.arm(node, ticks, what);
        }
        let calls = asked.iter().zip(0..).map(|(asked, number)| {
            let (driver, request) = (self.world.node(asked.node), self.request(*asked));
            async move {
                // At moments of their own; `Pace` says why.
                tokio::time::sleep(Duration::from_millis(number)).await;
                request.make(driver).await
            }
        });
        let ended = join_all(calls).await;
        let happened = meanwhile.filter(|_| !self.world.disarm(node)).map(|(_, what)| what);
        for (number, (asked_now, result)) in asked.iter().zip(&ended).enumerate() {
            let alone = asked.iter().all(|other| {
                (other.node, other.volume) != (asked_now.node, asked_now.volume) || other.call == asked_now.call
            });
            let expected = if alone && happened.is_none() { expected[number] } else { Expected::Either };
            self.ended(*asked_now, expected, result)?;
            if let Err(error) = result
                && alone
                && happened.is_none()
            {
                self.has_left_nothing(*asked_now, error)?;
            }
            if result.is_ok() && alone {
                self.model.promised(self.world, *asked_now)?;
                if asked_now.call == Call::Unstage && attached[number] && happened.is_none() {
                    self.model.unstaged(asked_now.volume, asked_now.node);
                }
            }
        }
        if let Some(what) = happened {
            self.log.push(format!("   happened: {what:?}"));
            for asked in asked {
                self.model.interrupted(asked.volume, asked.node);
            }
            match what {
                Meanwhile::Change(change) => self.changed(change),
                Meanwhile::Death(death) => self.restart(node, death),
            }
        }
        Ok(())
    }

    /// Notes how a call ended, and holds it against what is expected.
    fn ended(&mut self, asked: Asked, expected: Expected, result: &Result<(), Error>) -> Result<(), String> {
        let died = matches!(result, Err(Error::Panicked(_)));
        let (outcome, text) = match result {
            Ok(()) => ("ok", "ok".to_owned()),
            Err(error) if self.world.is_passing(error) => ("put off", error.chain()),
            Err(_) if died && self.world.is_dead(asked.node) => ("died", "died".to_owned()),
            // Without what differs from run to run.
            Err(error) => ("refused", error.chain().replace(&*self.world.root(asked.node).to_string_lossy(), "")),
        };
        self.tally.count(&format!("{} {outcome}", word(asked.call)));
        self.log.push(format!("   node {} volume {} {:?}: {text}", asked.node, asked.volume, asked.call));
        if died && !self.world.is_dead(asked.node) {
            return Err(format!("the driver has a bug: {text}"));
        }
        match (expected, result) {
            (Expected::Success, Err(error)) if self.world.is_passing(error) => Ok(()),
            (Expected::Success, Err(_)) => Err(format!("{asked:?} has to succeed, but: {text}")),
            (Expected::Refusal, Ok(())) => Err(format!("{asked:?} has to be refused, but was carried out")),
            (_, Ok(())) if matches!(asked.call, Call::Expand(_)) && expected == Expected::Success => {
                Model::grown(self.world, asked)
            }
            _ => Ok(()),
        }
    }

    /// Whoever hears of a failure that is final never asks for the end of what is there.
    fn has_left_nothing(&self, asked: Asked, error: &Error) -> Result<(), String> {
        let Asked { node, volume, call } = asked;
        let place = match call {
            Call::Stage { .. } => Place::Staging,
            Call::Publish { target, .. } => Place::Target(target),
            Call::Unstage | Call::Unpublish { .. } | Call::Expand(_) | Call::Stats(_) => return Ok(()),
        };
        if !error.is_final() || matches!(error, Error::Differs { .. } | Error::Invalid { .. }) {
            return Ok(());
        }
        let path = self.world.path(node, volume, place);
        let is_there = |seen: &Seen| seen.path == path && (seen.volume == Some(volume) || !seen.alive);
        if let Some(seen) = self.world.mounts(node).into_iter().find(is_there) {
            return Err(format!("{asked:?} failed with {:?} and leaves {seen:?}", error.code()));
        }
        if place == Place::Staging && self.world.shown(volume, node).unlocked.is_some() {
            return Err(format!("{asked:?} failed with {:?} and leaves the volume unlocked", error.code()));
        }
        Ok(())
    }

    fn write(&mut self, node: usize, volume: usize, place: Place, sync: bool) -> Result<(), String> {
        let path = self.world.path(node, volume, place);
        let mounts = self.world.mounts(node);
        let Some(seen) = mounts.iter().rev().find(|seen| seen.path == path && seen.alive) else { return Ok(()) };
        let read_only = match self.plan.volumes[volume] {
            kind if kind.is_raw() => self.world.shown(volume, node).read_only,
            _ => seen.read_only || seen.frozen,
        };
        let name = self.model.next_name(volume);
        match self.world.write(node, &path, &name, &text(volume, &name), sync) {
            Ok(()) if read_only => Err(format!("a write went through {seen:?}")),
            Ok(()) => {
                self.model.wrote(volume, name, sync);
                self.tally.count("writes");
                Ok(())
            }
            Err(_) if read_only => Ok(()),
            Err(cause) => Err(format!("a write through {seen:?} failed: {cause}")),
        }
    }

    fn heal(&mut self) {
        for volume in 0..self.model.volumes.len() {
            self.change(Change::Mute { volume, mute: false });
            self.change(Change::Twin { volume, there: false });
            for node in 0..NODES {
                self.change(Change::Link { node, volume, link: Link::Right });
            }
        }
        for node in 0..NODES {
            self.world.restart(node, Death::Driver);
        }
    }

    /// Repeats a call that nothing is in the way of.
    async fn until_done(&mut self, asked: Asked) -> Result<(), String> {
        let mut last = String::new();
        let (mut repeats, mut passing) = (0, 0);
        while repeats < REPEATS && passing < PASSING {
            let result = self.request(asked).make(self.world.node(asked.node)).await;
            self.ended(asked, Expected::Either, &result)?;
            match result {
                Ok(()) => {
                    if asked.call == Call::Unstage {
                        self.model.unstaged(asked.volume, asked.node);
                    }
                    self.check()?;
                    return self.model.promised(self.world, asked);
                }
                Err(error) => {
                    if self.world.is_passing(&error) {
                        passing += 1;
                    } else {
                        repeats += 1;
                    }
                    last = error.chain();
                }
            }
        }
        Err(format!("{asked:?} never succeeds: {last}"))
    }

    /// Undoes everything, and looks for what is left.
    async fn tear_down(&mut self) -> Result<(), String> {
        for node in 0..NODES {
            for volume in 0..self.model.volumes.len() {
                for target in 0..TARGETS {
                    self.until_done(Asked { node, volume, call: Call::Unpublish { target } }).await?;
                }
                self.until_done(Asked { node, volume, call: Call::Unstage }).await?;
            }
            let mounts = self.world.mounts(node);
            if let Some(volume) =
                (0..self.model.volumes.len()).find(|volume| self.world.shown(*volume, node).unlocked.is_some())
            {
                return Err(format!("volume {volume} is still unlocked on node {node}"));
            }
            if !mounts.is_empty() {
                return Err(format!("stray mounts on node {node}: {mounts:?}"));
            }
            let entries = std::fs::read_dir(self.world.root(node).join("state")).map_err(|cause| cause.to_string())?;
            for entry in entries.flatten() {
                // What is known of a mkfs that was cut off is kept: it may still serve.
                let name = entry.file_name().into_string().unwrap_or_default();
                let kept = (0..self.model.volumes.len()).any(|volume| {
                    let of = |kind| name == format!("{}.{kind}", id(volume));
                    (of("formatting.json") || of("lock")) && self.world.is_recorded(node, volume)
                });
                if !kept {
                    return Err(format!("node {node} still has {name}"));
                }
            }
        }
        Ok(())
    }

    /// A volume that can be used comes to be used on some node, with all that was written to it.
    async fn comes_back(&mut self, volume: usize) -> Result<(), String> {
        let node = (volume + usize::from(self.plan.seed.is_multiple_of(2))) % NODES;
        self.change(Change::Detach { volume });
        self.change(Change::Attach { node, volume });
        let known = &self.model.volumes[volume];
        let stage = Asked { node, volume, call: Call::Stage { read_only: false, other_fs: false, wrong_key: false } };
        if !known.kind.is_usable() {
            let result = self.request(stage).make(self.world.node(node)).await;
            return self.ended(stage, Expected::Refusal, &result);
        }
        if known.kind != Kind::Raw && known.is_lost(self.world, volume, node) {
            self.tally.count("lost to a mkfs that was cut off");
            return Ok(());
        }
        self.until_done(stage).await?;
        let publish = Call::Publish { target: 0, read_only: false, single_writer: true };
        self.until_done(Asked { node, volume, call: publish }).await?;
        self.write(node, volume, Place::Target(0), false)?;
        self.check()?;
        self.until_done(Asked { node, volume, call: Call::Unpublish { target: 0 } }).await?;
        self.until_done(Asked { node, volume, call: Call::Unstage }).await?;
        if self.model.volumes[volume].kind != Kind::Raw && self.world.holds(volume) != Holds::All {
            return Err(format!("volume {volume} was staged and has no file system"));
        }
        self.tally.count("lives");
        Ok(())
    }

    fn request(&self, asked: Asked) -> Request {
        Request::of(asked, self.plan.volumes[asked.volume], self.world)
    }
}
