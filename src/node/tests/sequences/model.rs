//! What has to hold: which calls have to succeed and which to be refused, what is mounted after them, and what the
//! volumes contain.
//!
//! How things stand is read from the world before each call, not remembered: what a driver did wrong earlier is found by
//! the checks of the state, and does not spoil the expectations.

use std::{collections::BTreeSet, path::Path};

use super::{
    plan::{Asked, Call, Kind, NODES, Place, TARGETS},
    world::{Contents, Format, Holds, Leads, Seen, Shown, World, belongs, text},
};

/// How a call has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    Success,
    Refusal,
    /// Both are right.
    Either,
}
use Expected::{Either, Refusal, Success};

/// What is known of a volume.
pub(crate) struct Volume {
    pub(crate) kind: Kind,
    /// Written and synced, or properly unmounted since.
    durable: Contents,
    /// Written, and in some node's memory.
    fresh: Contents,
    /// Written, and then the disk was torn away: it may be there or not.
    uncertain: Contents,
    written: usize,
    /// Where a mkfs began that nobody saw the end of: the node, and the number of the disk there.
    begun: Option<(usize, u64)>,
    /// How often a mkfs and a luksFormat began, and how often something came in between.
    formats: usize,
    encryptions: usize,
    pub(crate) interruptions: usize,
    /// A driver died there in a publish, so a mode that was asked for need not be the mode that is.
    unsure: [bool; NODES],
}

pub(crate) struct Model {
    pub(crate) volumes: Vec<Volume>,
}

impl Model {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        let volume = |(number, kind): (usize, &Kind)| Volume {
            kind: *kind,
            durable: match kind {
                Kind::Filled(_) => Contents::from([("first".to_owned(), text(number, "first"))]),
                _ => Contents::new(),
            },
            fresh: Contents::new(),
            uncertain: Contents::new(),
            written: 0,
            begun: None,
            formats: 0,
            encryptions: 0,
            interruptions: 0,
            unsure: [false; NODES],
        };
        Self { volumes: kinds.iter().enumerate().map(volume).collect() }
    }

    /// How a call has to end, if nothing happens in between.
    pub(crate) fn expect(&self, world: &impl World, asked: Asked) -> Expected {
        let Asked { node, volume, call } = asked;
        let mounts: Vec<Seen> = world.mounts(node);
        let at = |place| {
            let path = world.path(node, volume, place);
            mounts.iter().rev().find(|seen| seen.path == path)
        };
        let targets: Vec<(usize, &Seen)> =
            (0..TARGETS).filter_map(|target| Some((target, at(Place::Target(target))?))).collect();
        let state = State {
            volume: &self.volumes[volume],
            node,
            shown: world.shown(volume, node),
            holds: world.holds(volume),
            is_recorded: world.is_recorded(node, volume),
            is_staged: world.is_staged(node, volume),
            staging: at(Place::Staging),
            targets,
        };
        if state.may_be_known() {
            return Either;
        }
        match call {
            Call::Stage { read_only, other_fs, wrong_key } => state.stage(read_only, other_fs, wrong_key),
            Call::Unstage => state.unstage(),
            Call::Publish { target, read_only, single_writer } => state.publish(target, read_only, single_writer),
            Call::Unpublish { .. } if state.in_doubt() => Either,
            Call::Unpublish { .. } => Success,
            Call::Expand(place) => match at(place) {
                None => Refusal,
                Some(seen) if !seen.alive || state.in_doubt() => Refusal,
                Some(_) => Success,
            },
            Call::Stats(place) => at(place).map_or(Refusal, |_| Either),
        }
    }

    /// Holds the world against what a successful call promises.
    pub(crate) fn promised(&self, world: &impl World, asked: Asked) -> Result<(), String> {
        let Asked { node, volume, call } = asked;
        let kind = self.volumes[volume].kind;
        let mounts = world.mounts(node);
        let mounted = |place, read_only: bool| {
            let path = world.path(node, volume, place);
            let found: Vec<&Seen> = mounts.iter().filter(|seen| seen.path == path).collect();
            let [seen] = found[..] else { return Err(format!("{} mounts at {}", found.len(), path.display())) };
            let is_node = kind.is_raw();
            let mode = if is_node { world.shown(volume, node).read_only } else { seen.read_only };
            if seen.is_node != is_node || seen.alive && mode != read_only {
                return Err(format!("read-only {read_only} was asked for, there is {seen:?}, mode {mode}"));
            }
            Ok(())
        };
        let left = |place| {
            let path = world.path(node, volume, place);
            match mounts.iter().find(|seen| seen.path == path) {
                Some(seen) => Err(format!("still mounted: {seen:?}")),
                None if path.symlink_metadata().is_ok() => Err(format!("{} is still there", path.display())),
                None => Ok(()),
            }
        };
        match call {
            Call::Stage { .. } if kind.is_raw() => Ok(()),
            Call::Stage { read_only, .. } => mounted(Place::Staging, read_only),
            Call::Publish { target, read_only, .. } => mounted(Place::Target(target), read_only),
            Call::Unstage => left(Place::Staging),
            Call::Unpublish { target } => left(Place::Target(target)),
            Call::Expand(_) | Call::Stats(_) => Ok(()),
        }
    }

    /// Holds what a successful growth promises.
    pub(crate) fn grown(world: &impl World, asked: Asked) -> Result<(), String> {
        let own = |seen: &Seen| seen.volume == Some(asked.volume) && seen.alive;
        let mounts = world.mounts(asked.node);
        let writable = mounts.iter().any(|seen| own(seen) && !seen.is_node && !seen.read_only && !seen.frozen);
        match world.growth_left(asked.volume) {
            Some(left @ 1..) if writable => Err(format!("the file system could take {left} bytes more")),
            _ => Ok(()),
        }
    }

    /// What holds at any time: no path shows another volume's disk, none has more than one mount, and nothing that was
    /// written is missing or another's.
    pub(crate) fn always(&self, world: &impl World) -> Result<(), String> {
        for node in 0..NODES {
            let mut paths = BTreeSet::new();
            for seen in world.mounts(node) {
                let Some(volume) = seen.volume.filter(|volume| belongs(&seen.path, *volume)) else {
                    return Err(format!("a wrong disk is mounted on node {node}: {seen:?}"));
                };
                if !paths.insert(seen.path.clone()) {
                    return Err(format!("mounts are stacked on node {node} at {}", seen.path.display()));
                }
                // Several mounts show one content.
                if seen.alive && !(paths.len() > 1 && seen.path.ends_with("staging")) {
                    self.volumes[volume].check(world, node, &seen.path)?;
                }
            }
        }
        Ok(())
    }

    /// Takes note of each mkfs that began, and holds it against what may be formatted.
    pub(crate) fn formatted(&mut self, world: &impl World) -> Result<usize, String> {
        let formatted = world.formatted();
        for Format { node, disk, over_a_whole, encrypts } in &formatted {
            let Some((number, sequence)) = *disk else { return Err("a mkfs began on a disk of no volume".to_owned()) };
            let volume = &mut self.volumes[number];
            let count = if *encrypts { &mut volume.encryptions } else { &mut volume.formats };
            *count += 1;
            let may_be = match volume.kind {
                Kind::Blank(_) => !encrypts,
                Kind::Encrypted(_) => true,
                Kind::EncryptedRaw => *encrypts,
                _ => false,
            };
            if !may_be || *over_a_whole || !volume.durable.is_empty() {
                let kind = volume.kind;
                return Err(format!("a mkfs began on volume {number}, {kind:?}, over a whole one: {over_a_whole}"));
            }
            if *count > 1 + volume.interruptions {
                return Err(format!("mkfs number {count} began on volume {number}"));
            }
            volume.begun = Some((*node, sequence));
        }
        Ok(formatted.len())
    }

    /// A name for the next thing that is written to a volume.
    pub(crate) fn next_name(&mut self, volume: usize) -> String {
        self.volumes[volume].written += 1;
        format!("file-{:03}", self.volumes[volume].written)
    }

    pub(crate) fn wrote(&mut self, volume: usize, name: String, sync: bool) {
        let bytes = text(volume, &name);
        let volume = &mut self.volumes[volume];
        volume.fresh.insert(name, bytes);
        if sync || volume.kind.is_raw() {
            volume.durable.append(&mut volume.fresh);
        }
    }

    /// The volume was unstaged properly, so that all of it is on its disk.
    pub(crate) fn unstaged(&mut self, volume: usize, node: usize) {
        let volume = &mut self.volumes[volume];
        volume.durable.append(&mut volume.fresh);
        volume.unsure[node] = false;
    }

    /// The disk was torn away, or the machine started anew.
    pub(crate) fn torn(&mut self, volume: usize) {
        let volume = &mut self.volumes[volume];
        volume.uncertain.append(&mut volume.fresh);
    }

    /// A driver died with a call under way.
    pub(crate) fn interrupted(&mut self, volume: usize, node: usize) {
        self.volumes[volume].interruptions += 1;
        self.volumes[volume].unsure[node] = true;
    }
}

impl Volume {
    fn check(&self, world: &impl World, node: usize, path: &Path) -> Result<(), String> {
        let found = world.read(node, path).map_err(|cause| format!("{} cannot be read: {cause}", path.display()))?;
        for (name, bytes) in self.durable.iter().chain(&self.fresh) {
            if found.get(name) != Some(bytes) {
                return Err(format!("{name} is lost at {}: there is {:?}", path.display(), found.get(name)));
            }
        }
        let known = |name: &String| self.durable.get(name).or(self.fresh.get(name)).or(self.uncertain.get(name));
        match found.iter().find(|(name, bytes)| known(name) != Some(bytes)) {
            Some((name, bytes)) => {
                let text = String::from_utf8_lossy(bytes);
                Err(format!("{name} at {} is nobody's: {text:?}", path.display()))
            }
            None => Ok(()),
        }
    }

    /// Whether the volume is one that will not be staged any more: a mkfs on it was cut off, and it was elsewhere since.
    pub(crate) fn is_lost(&self, world: &impl World, volume: usize, node: usize) -> bool {
        world.holds(volume) == Holds::Something && !self.may_be_finished(world.shown(volume, node), node)
    }

    fn may_be_finished(&self, shown: Shown, node: usize) -> bool {
        self.begun.is_some_and(|(began_at, sequence)| began_at == node && shown.attached == Some(sequence))
    }
}

/// How things stand for a volume on a node.
struct State<'a> {
    volume: &'a Volume,
    node: usize,
    shown: Shown,
    holds: Holds,
    /// A mkfs is not known to have ended.
    is_recorded: bool,
    /// The node's driver knows that it staged the volume.
    is_staged: bool,
    staging: Option<&'a Seen>,
    targets: Vec<(usize, &'a Seen)>,
}

impl State<'_> {
    /// Whether the disk cannot be proven to be the volume's.
    fn in_doubt(&self) -> bool {
        self.shown.twin || self.shown.mute || self.shown.link == Leads::Wrong
    }

    /// Whether a disk that tells no serial is the only doubt, and the volume's was proven before: then it still is, unless
    /// it is that disk, or the record is of another run of the kernel.
    fn may_be_known(&self) -> bool {
        self.shown.mute && self.is_staged && !self.shown.twin && self.shown.link != Leads::Wrong
    }

    fn cannot_be_proven(&self) -> bool {
        self.shown.attached.is_none() || self.in_doubt()
    }

    fn is_unsure(&self) -> bool {
        self.volume.unsure[self.node]
    }

    fn stage(&self, read_only: bool, other_fs: bool, wrong_key: bool) -> Expected {
        let kind = self.volume.kind;
        if self.cannot_be_proven() {
            return Refusal;
        }
        let is_dead = |seen: &Seen| !seen.alive;
        if kind.is_encrypted() && self.targets.iter().any(|(_, seen)| is_dead(seen)) {
            // What unlocked the disk that is gone is not gone before they are.
            return Either;
        }
        // A disk that is unlocked already needs no key.
        let is_locked = self.shown.unlocked != Some(true);
        if kind.is_encrypted() && wrong_key && self.holds == Holds::All && !self.is_recorded && is_locked {
            return Refusal;
        }
        match self.staging {
            _ if kind == Kind::EncryptedRaw
                && self.holds == Holds::Something
                && !self.volume.may_be_finished(self.shown, self.node) =>
            {
                Either
            }
            _ if kind.is_raw() => Success,
            Some(seen) if seen.alive => {
                let agrees = (seen.read_only && !seen.lent) == read_only && (read_only || !seen.frozen) && !other_fs;
                if agrees { Success } else { Refusal }
            }
            _ if !kind.is_usable() => Refusal,
            // The modes of two mounts of one file system have to be the same.
            _ if self.targets.iter().any(|(_, seen)| seen.alive) => Either,
            _ => match self.holds {
                Holds::All if other_fs => Refusal,
                Holds::Something if !self.volume.may_be_finished(self.shown, self.node) => Either,
                _ => Success,
            },
        }
    }

    fn unstage(&self) -> Expected {
        let alive = self.targets.iter().any(|(_, seen)| seen.alive);
        let dead = self.targets.iter().any(|(_, seen)| !seen.alive);
        match self.staging {
            _ if self.in_doubt() => Either,
            Some(seen) if seen.alive && alive => Refusal,
            Some(seen) if !seen.alive && dead => Either,
            None if alive || dead => Either,
            _ => Success,
        }
    }

    fn publish(&self, target: usize, read_only: bool, single_writer: bool) -> Expected {
        let there = self.targets.iter().find(|(number, _)| *number == target).map(|(_, seen)| *seen);
        let other = self.targets.iter().any(|(number, seen)| *number != target && seen.alive);
        if self.cannot_be_proven() {
            return Refusal;
        }
        if self.volume.kind.is_encrypted() && self.shown.unlocked != Some(true) {
            return Refusal;
        }
        if self.volume.kind.is_raw() && !self.is_staged {
            return Refusal;
        }
        if self.volume.kind.is_raw() {
            let agrees = self.shown.read_only == read_only;
            // One whose disk is gone is taken away first.
            return match there.filter(|seen| seen.alive) {
                None if single_writer && other => Refusal,
                None if !other => Success,
                _ if self.is_unsure() => Either,
                _ if agrees => Success,
                _ => Refusal,
            };
        }
        let Some(staging) = self.staging.filter(|seen| seen.alive) else { return Refusal };
        match there {
            Some(seen) if !seen.alive => Refusal,
            Some(_) if self.is_unsure() => Either,
            Some(seen) if seen.read_only != read_only || seen.frozen && !read_only => Refusal,
            None if single_writer && other => Refusal,
            None if !read_only && (staging.read_only && !staging.lent || staging.frozen) => Refusal,
            Some(_) | None => Success,
        }
    }
}
