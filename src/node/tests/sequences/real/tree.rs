//! What a node is shown of the disks: its sysfs-shaped tree and its by-id links.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{Attached, Real, State};
use crate::node::tests::sequences::{
    disk::Loop,
    plan::Link,
    world::{World, serial},
};

const MIB: u64 = 1 << 20;

impl Real {
    /// Shows a disk on a node.
    pub(super) fn show(&self, state: &mut State, node: usize, disk: &Loop, volume: usize) {
        if !self.is_mounted(node, disk) {
            disk.make_writable();
        }
        state.sequence += 1;
        let new = self.root(node).join("new");
        fs::create_dir(&new).unwrap();
        for file in ["dev", "size"] {
            symlink(disk.sysfs().join(file), new.join(file)).unwrap();
        }
        fs::write(new.join("diskseq"), state.sequence.to_string()).unwrap();
        fs::write(new.join("serial"), serial(volume)).unwrap();
        fs::rename(new, self.shown_at(node, disk)).unwrap();
        state.attached.insert(disk.name(), Attached { node, sequence: state.sequence });
        if !state.stuck[node] {
            self.link(node, volume, Some(&disk.device));
        }
    }

    pub(super) fn hide(&self, state: &mut State, disk: &Loop, volume: usize) {
        let Some(Attached { node, .. }) = state.attached.remove(&disk.name()) else { return };
        let old = self.root(node).join("old");
        fs::rename(self.shown_at(node, disk), &old).unwrap();
        fs::remove_dir_all(old).unwrap();
        let link = self.link_of(node, volume);
        if !state.stuck[node] && fs::read_link(&link).is_ok_and(|to| to == disk.device) {
            fs::remove_file(link).unwrap();
        }
    }

    pub(super) fn shown_at(&self, node: usize, disk: &Loop) -> PathBuf {
        self.root(node).join("sys/class/block").join(disk.name())
    }

    pub(super) fn link_of(&self, node: usize, volume: usize) -> PathBuf {
        self.root(node).join(format!("by-id/virtio-{}", serial(volume)))
    }

    pub(super) fn link(&self, node: usize, volume: usize, to: Option<&Path>) {
        let link = self.link_of(node, volume);
        fs::remove_file(&link).ok();
        if let Some(to) = to {
            symlink(to, link).unwrap();
        }
    }

    pub(super) fn relink(&self, state: &mut State, node: usize, volume: usize, link: Link) {
        let own = &state.disks[volume];
        match link {
            Link::Right => {
                state.stuck[node] = false;
                let here = state.attached.get(&own.name()).is_some_and(|attached| attached.node == node);
                self.link(node, volume, here.then_some(&own.device));
            }
            Link::Missing => self.link(node, volume, None),
            Link::Dangling => self.link(node, volume, Some(Path::new("/dev/none"))),
            Link::Wrong => {
                let other = &state.disks[(volume + 1) % state.disks.len()];
                self.link(node, volume, Some(&other.device));
            }
            Link::Stuck => state.stuck[node] = true,
        }
    }

    pub(super) fn mute(&self, state: &mut State, volume: usize, mute: bool) {
        let Some(Attached { node, .. }) = state.attached.get(&state.disks[volume].name()).copied() else { return };
        if std::mem::replace(&mut state.mute[volume], mute) == mute {
            return;
        }
        let file = self.shown_at(node, &state.disks[volume]).join("serial");
        if mute {
            fs::remove_file(&file).unwrap();
            // Reading a directory fails, for root too.
            fs::create_dir(file).unwrap();
        } else {
            fs::remove_dir(&file).unwrap();
            fs::write(file, serial(volume)).unwrap();
        }
    }

    pub(super) fn twin(&self, state: &mut State, volume: usize, there: bool) {
        let here = state.attached.get(&state.disks[volume].name()).copied();
        let known = state.twins.get(&volume).cloned();
        match (known, here.filter(|_| there)) {
            (Some(twin), None) => self.hide(state, &twin, volume),
            (known, Some(Attached { node, .. })) => {
                let twin = known.unwrap_or_else(|| Loop::over(self.0.root.path(), &format!("twin-{volume}"), 64 * MIB));
                if !state.attached.contains_key(&twin.name()) {
                    self.show(state, node, &twin, volume);
                }
                state.twins.insert(volume, twin);
            }
            (None, None) => {}
        }
    }
}
