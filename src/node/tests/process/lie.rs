//! Hosts that do not tell or do the truth, for those who check the checker.

use std::{io, sync::Arc};

use crate::node::host::{DeviceNumber, Disk, OpenDisk, Serial};

/// A host that does not tell or do the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Two disks show each other's serial, so the wrong one is mounted.
    SwappedSerials,
    /// Of two disks with one serial only the later one is shown: the check for that is as good as skipped.
    HiddenTwins,
    /// A serial that cannot be read looks like none.
    MuteIsAbsent,
    /// Links are not looked at.
    NoLinks,
    /// A disk with data looks blank to whoever is about to format it.
    BlankDisks,
    /// Unmounts are not carried out, and then not shown.
    IdleUnmounts,
    /// Mounts are not made read-only.
    IdleRemounts,
}

/// The disks as a liar shows them.
pub(super) fn shown(lie: Option<Lie>, mut disks: Vec<Disk>) -> Vec<Disk> {
    let volumes: Vec<usize> = (0..disks.len()).filter(|at| matches!(&disks[*at].serial, Serial::Text(_))).collect();
    match lie {
        Some(Lie::SwappedSerials) if volumes.len() > 1 => {
            let serial = disks[volumes[0]].serial.clone();
            disks[volumes[0]].serial = disks[volumes[1]].serial.clone();
            disks[volumes[1]].serial = serial;
        }
        Some(Lie::HiddenTwins) => {
            let later: Vec<Serial> = disks.iter().map(|disk| disk.serial.clone()).collect();
            let mut number = 0;
            disks.retain(|disk| {
                number += 1;
                disk.serial == Serial::Absent || !later[number..].contains(&disk.serial)
            });
        }
        Some(Lie::MuteIsAbsent) => {
            for disk in &mut disks {
                if matches!(disk.serial, Serial::Unreadable(_)) {
                    disk.serial = Serial::Absent;
                }
            }
        }
        _ => {}
    }
    disks
}

/// A disk that reads as zeroes.
pub(super) struct Blank(pub(super) Arc<dyn OpenDisk>);

impl OpenDisk for Blank {
    fn number(&self) -> DeviceNumber {
        self.0.number()
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.0.read(offset, length).map(|bytes| vec![0; bytes.len()])
    }

    fn write_zeroes(&self, offset: u64, length: usize) -> io::Result<()> {
        self.0.write_zeroes(offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}
