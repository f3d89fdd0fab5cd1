//! Draws a sequence from its seed, and from nothing else.
//!
//! Most of it is what somebody in his right mind would do, as far as things go well; how they really go is not known
//! here, so that a sequence is the same in every world.

use super::plan::{Asked, Call, Change, Kind, Link, Meanwhile, NODES, Place, Plan, Step, TARGETS};
use crate::{node::tests::process::Death, volume::FsType};

/// What the generator believes of a volume: as things would stand if everything went well.
#[derive(Debug, Clone, Copy, Default)]
struct Belief {
    node: Option<usize>,
    staged: bool,
    published: [bool; TARGETS],
    /// Something about its disk is wrong.
    disturbed: bool,
}

struct Generator {
    random: fastrand::Rng,
    beliefs: Vec<Belief>,
}

impl Plan {
    /// The sequence of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let volumes: Vec<Kind> = (0..random.usize(2..=4)).map(|_| kind(&mut random)).collect();
        let large = random.u32(..32) == 0;
        let length = random.usize(12..=36);
        let beliefs = vec![Belief::default(); volumes.len()];
        let mut generator = Generator { random, beliefs };
        let steps = (0..length).map(|_| generator.step()).collect();
        Self { seed, volumes, large, steps }
    }
}

fn kind(random: &mut fastrand::Rng) -> Kind {
    let fs = FsType::ALL[random.usize(..FsType::ALL.len())];
    match random.u32(..20) {
        0..=8 => Kind::Blank(fs),
        9..=11 => Kind::Encrypted(fs),
        12 => Kind::Undeclared,
        13..=14 => Kind::Filled(fs),
        15 => Kind::Wiped(fs),
        16 => Kind::EncryptedRaw,
        _ => Kind::Raw,
    }
}

impl Generator {
    fn one_in(&mut self, number: u32) -> bool {
        self.random.u32(..number) == 0
    }

    fn step(&mut self) -> Step {
        let volume = self.random.usize(..self.beliefs.len());
        if self.beliefs[volume].disturbed && self.one_in(3) {
            return Step::Change(self.heal(volume));
        }
        match self.random.u32(..100) {
            0..=9 => Step::Change(self.disturb(volume)),
            10..=13 => Step::Restart { node: self.random.usize(..NODES), death: self.death() },
            14..=21 => self.calls(volume, true),
            _ => self.usual(volume),
        }
    }

    /// The next thing that somebody in his right mind would do with the volume.
    fn usual(&mut self, volume: usize) -> Step {
        let Some(node) = self.beliefs[volume].node else {
            let node = self.random.usize(..NODES);
            self.beliefs[volume].node = Some(node);
            return Step::Change(Change::Attach { node, volume });
        };
        let belief = self.beliefs[volume];
        if !belief.staged && self.one_in(6) {
            self.beliefs[volume] = Belief { disturbed: belief.disturbed, ..Belief::default() };
            return Step::Change(Change::Detach { volume });
        }
        if belief.staged {
            match self.random.u32(..10) {
                0..=2 => {
                    let place = self.place_of(volume);
                    return Step::Write { node, volume, place, sync: self.random.bool() };
                }
                3 => return Step::Change(Change::Grow { volume }),
                _ => {}
            }
        }
        self.calls(volume, false)
    }

    fn calls(&mut self, volume: usize, wild: bool) -> Step {
        let first = self.asked(volume, wild);
        let mut asked = vec![first];
        match self.random.u32(..20) {
            // The same call again, another one for the same volume, one for another volume.
            0..=1 => asked.push(first),
            2 => asked.extend([first, first]),
            3..=4 => asked.push(Asked { node: first.node, ..self.asked(volume, true) }),
            5..=7 => {
                let other = self.random.usize(..self.beliefs.len());
                if other != volume {
                    asked.push(self.asked(other, false));
                }
            }
            _ => {}
        }
        let ticks = self.random.u32(1..=40);
        let meanwhile = match self.random.u32(..20) {
            0..=3 => Some(Meanwhile::Death(self.death())),
            4 => Some(Meanwhile::Change(self.disturb(volume))),
            5 => Some(Meanwhile::Change(Change::Shuffle { node: first.node })),
            _ => None,
        };
        Step::Calls { asked, meanwhile: meanwhile.map(|what| (ticks, what)) }
    }

    fn asked(&mut self, volume: usize, wild: bool) -> Asked {
        let belief = self.beliefs[volume];
        let node = match belief.node {
            Some(node) if !wild || self.random.bool() => node,
            _ => self.random.usize(..NODES),
        };
        let target = self.random.usize(..TARGETS);
        let read_only = self.one_in(5);
        let stage = Call::Stage { read_only: self.one_in(10), other_fs: self.one_in(20), wrong_key: self.one_in(12) };
        let publish = Call::Publish { target, read_only, single_writer: self.one_in(6) };
        let call = if wild {
            let place = self.place();
            let calls =
                [stage, Call::Unstage, publish, Call::Unpublish { target }, Call::Expand(place), Call::Stats(place)];
            calls[self.random.usize(..calls.len())]
        } else if belief.staged {
            let published = belief.published.iter().position(|published| *published);
            match (self.random.u32(..10), published) {
                (0, _) => stage,
                (1, _) => Call::Expand(self.place_of(volume)),
                (2, _) => Call::Stats(self.place_of(volume)),
                (3..=5, Some(target)) => Call::Unpublish { target },
                (3..=6, None) => Call::Unstage,
                _ => publish,
            }
        } else {
            stage
        };
        if belief.node == Some(node) {
            let belief = &mut self.beliefs[volume];
            match call {
                Call::Stage { .. } => belief.staged = true,
                Call::Unstage if belief.published == [false; TARGETS] => belief.staged = false,
                Call::Publish { target, .. } if belief.staged => belief.published[target] = true,
                Call::Unpublish { target } => belief.published[target] = false,
                _ => {}
            }
        }
        Asked { node, volume, call }
    }

    fn place(&mut self) -> Place {
        match self.random.usize(..=TARGETS) {
            TARGETS => Place::Staging,
            target => Place::Target(target),
        }
    }

    /// A place where the volume is, if all went well.
    fn place_of(&mut self, volume: usize) -> Place {
        match self.place() {
            Place::Target(target) if self.beliefs[volume].published[target] => Place::Target(target),
            _ => Place::Staging,
        }
    }

    fn death(&mut self) -> Death {
        [Death::Driver, Death::Driver, Death::Group, Death::Group, Death::Machine][self.random.usize(..5)]
    }

    fn disturb(&mut self, volume: usize) -> Change {
        let node = self.beliefs[volume].node.unwrap_or_else(|| self.random.usize(..NODES));
        self.beliefs[volume].disturbed = true;
        match self.random.u32(..12) {
            0 => Change::Link { node, volume, link: Link::Missing },
            1 => Change::Link { node, volume, link: Link::Dangling },
            2 => Change::Link { node, volume, link: Link::Wrong },
            3 => Change::Link { node, volume, link: Link::Stuck },
            4 => Change::Twin { volume, there: true },
            5 => Change::Mute { volume, mute: true },
            6..=8 => {
                self.beliefs[volume].node = None;
                Change::Detach { volume }
            }
            9 => {
                self.beliefs[volume].node = Some(node);
                Change::Attach { node, volume }
            }
            _ => Change::Shuffle { node },
        }
    }

    fn heal(&mut self, volume: usize) -> Change {
        let node = self.beliefs[volume].node.unwrap_or_else(|| self.random.usize(..NODES));
        match self.random.u32(..4) {
            0 => Change::Mute { volume, mute: false },
            1 => Change::Twin { volume, there: false },
            2 => Change::Link { node, volume, link: Link::Right },
            _ => {
                self.beliefs[volume].disturbed = false;
                Change::Link { node, volume, link: Link::Right }
            }
        }
    }
}
