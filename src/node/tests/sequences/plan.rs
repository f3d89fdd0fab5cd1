//! What is done in a sequence, drawn from its seed and from nothing else.

use std::fmt;

use crate::{node::tests::process::Death, volume::FsType};

pub(crate) const NODES: usize = 2;
pub(crate) const TARGETS: usize = 2;

/// What a volume's disk holds at first, and what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blank, to be formatted.
    Blank(FsType),
    /// Blank, but nobody said that it may be formatted.
    Undeclared,
    /// Formatted and written to by somebody else.
    Filled(FsType),
    /// The same, and then its first superblock was lost.
    Wiped(FsType),
    /// Raw block.
    Raw,
    /// Blank, to be encrypted and formatted.
    Encrypted(FsType),
    /// Blank, to be encrypted and shown as raw block.
    EncryptedRaw,
}

impl Kind {
    /// The file system that workloads ask for.
    pub(crate) fn fs(self) -> Option<FsType> {
        match self {
            Self::Blank(fs) | Self::Filled(fs) | Self::Wiped(fs) | Self::Encrypted(fs) => Some(fs),
            Self::Undeclared => Some(FsType::Ext4),
            Self::Raw | Self::EncryptedRaw => None,
        }
    }

    pub(crate) fn is_raw(self) -> bool {
        self.fs().is_none()
    }

    pub(crate) fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted(_) | Self::EncryptedRaw)
    }

    /// What it is where no disk can be encrypted.
    fn in_the_clear(self) -> Self {
        match self {
            Self::Encrypted(fs) => Self::Blank(fs),
            Self::EncryptedRaw => Self::Raw,
            other => other,
        }
    }

    /// Whether it can ever be used.
    pub(crate) fn is_usable(self) -> bool {
        !matches!(self, Self::Undeclared | Self::Wiped(_))
    }
}

/// Where a volume is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Staging,
    Target(usize),
}

/// What is asked of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Stage { read_only: bool, other_fs: bool, wrong_key: bool },
    Unstage,
    Publish { target: usize, read_only: bool, single_writer: bool },
    Unpublish { target: usize },
    Expand(Place),
    Stats(Place),
}

/// A call to the driver of one node for one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) node: usize,
    pub(crate) volume: usize,
    pub(crate) call: Call,
}

/// What becomes of a volume's by-id link on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    Right,
    Missing,
    Dangling,
    /// It points to whatever other disk there is.
    Wrong,
    /// From now on it stays as it is, whatever comes and goes.
    Stuck,
}

/// What the cloud, the machine, or fate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Has no effect while the volume is attached somewhere.
    Attach {
        node: usize,
        volume: usize,
    },
    /// Takes the disk away, whatever still uses it.
    Detach {
        volume: usize,
    },
    Grow {
        volume: usize,
    },
    Link {
        node: usize,
        volume: usize,
        link: Link,
    },
    /// A disk of somebody else's comes with the volume's serial, or goes; it goes with the volume, too.
    Twin {
        volume: usize,
        there: bool,
    },
    /// The volume's serial can or cannot be read.
    Mute {
        volume: usize,
        mute: bool,
    },
    /// All disks of the node that nothing uses go and come back in another order.
    Shuffle {
        node: usize,
    },
}

/// What happens while calls are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    Change(Change),
    Death(Death),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Change(Change),
    /// Calls at once, and what happens after so many steps of the first one's driver.
    Calls {
        asked: Vec<Asked>,
        meanwhile: Option<(u32, Meanwhile)>,
    },
    Write {
        node: usize,
        volume: usize,
        place: Place,
        sync: bool,
    },
    Restart {
        node: usize,
        death: Death,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calls { asked, meanwhile } => {
                for (number, asked) in asked.iter().enumerate() {
                    let together = if number == 0 { "" } else { "; at once: " };
                    write!(f, "{together}node {} volume {}: {:?}", asked.node, asked.volume, asked.call)?;
                }
                match meanwhile {
                    Some((ticks, what)) => write!(f, "; after {ticks} ticks: {what:?}"),
                    None => Ok(()),
                }
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) volumes: Vec<Kind>,
    /// A disk is large enough that copies of superblocks are far apart.
    pub(crate) large: bool,
    pub(crate) steps: Vec<Step>,
}

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

    /// The same with no volume encrypted.
    pub(crate) fn in_the_clear(mut self) -> Self {
        self.volumes = self.volumes.into_iter().map(Kind::in_the_clear).collect();
        self
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
