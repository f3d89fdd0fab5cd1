//! The device-mapper of a simulated kernel.

use std::{io, path::Path};

use super::{Attached, Kernel, Unlocks};
use crate::node::{host::Errno, tests::simulated::image::Image};

impl Kernel {
    /// Whether a disk takes reads and writes: a mapping does as long as its disk is there.
    pub(crate) fn is_alive(&self, disk: &Attached) -> bool {
        let beneath = |unlocks: &Unlocks| self.disks.iter().find(|disk| disk.sequence == unlocks.sequence);
        disk.present && disk.unlocks.as_ref().is_none_or(|unlocks| beneath(unlocks).is_some_and(|disk| disk.present))
    }

    /// What a disk holds, if it takes reads and writes.
    pub(crate) fn content<'a>(&self, images: &'a mut [Image], disk: &Attached) -> Option<&'a mut Image> {
        let image = self.is_alive(disk).then(|| &mut images[disk.image])?;
        match disk.unlocks {
            None => Some(image),
            Some(_) => image.payload.as_mut().map(|payload| &mut payload.image),
        }
    }

    /// The mapping of a name.
    pub(crate) fn mapping(&self, name: &str) -> Option<&Attached> {
        let is = |disk: &&Attached| disk.unlocks.as_ref().is_some_and(|unlocks| unlocks.name == name);
        self.disks.iter().find(|disk| disk.present && is(disk))
    }

    /// Unlocks a disk.
    pub(crate) fn map(&mut self, name: &str, node: &Path, sequence: u64) -> io::Result<()> {
        let beneath = self.open(node, true)?;
        let image = self.disk_of_sequence(beneath).expect("it is open").image;
        let taken: Vec<u64> =
            self.disks.iter().filter(|disk| disk.unlocks.is_some() && disk.present).map(|disk| disk.minor).collect();
        let unlocks = Unlocks { name: name.to_owned(), sequence: beneath, going: false };
        self.disks.push(Attached {
            image,
            serial: None,
            sequence,
            present: true,
            mute: false,
            read_only: false,
            unlocks: Some(unlocks),
            minor: (0..26).find(|minor| !taken.contains(minor)).expect("there are more numbers than mappings"),
            opens: 0,
            claims: 0,
        });
        Ok(())
    }

    /// Locks a disk again, at once or as soon as nothing uses it.
    pub(crate) fn unmap(&mut self, name: &str, later: bool) -> io::Result<()> {
        let sequence = self.mapping(name).ok_or(Errno::ENXIO)?.sequence;
        if !later && self.is_used(sequence) {
            return Err(Errno::EBUSY.into());
        }
        let mapping = self.disk_of_sequence(sequence).expect("it is there");
        mapping.unlocks.as_mut().expect("it is a mapping").going = true;
        self.end_mappings();
        Ok(())
    }

    fn is_used(&self, sequence: u64) -> bool {
        self.disks.iter().any(|disk| disk.sequence == sequence && disk.opens > 0)
            || self.supers.iter().any(|mounted| mounted.sequence == sequence)
    }

    /// Ends what is to go and is not used any more.
    pub(super) fn end_mappings(&mut self) {
        let is_over = |disk: &Attached| {
            let unlocks = disk.unlocks.as_ref().filter(|unlocks| disk.present && unlocks.going)?;
            (!self.is_used(disk.sequence)).then_some((disk.sequence, unlocks.sequence))
        };
        let over: Vec<(u64, u64)> = self.disks.iter().filter_map(is_over).collect();
        for (mapping, beneath) in over {
            self.disk_of_sequence(mapping).expect("it is there").present = false;
            self.close(beneath, true);
        }
    }
}
