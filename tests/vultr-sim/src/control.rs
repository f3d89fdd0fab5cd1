//! A test's hand in the cloud: it looks, counts, seeds, breaks, and acts behind the driver's back.
//!
//! The same methods are served over HTTP by [`http`].

pub(crate) mod http;
mod instance;
mod snapshot;
mod vfs;

pub use vfs::SeedVfs;

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    cloud::{Cloud, NewVolume},
    config::Behaviour,
    fault::Fault,
    record::{LogEntry, Stats},
    region::Region,
    view::{InstanceView, Leftovers, View, VolumeView},
    volume::{BlockType, Status},
};

/// A handle to a running cloud; clones are the same cloud.
#[derive(Clone, Debug)]
pub struct Control {
    cloud: Arc<Cloud>,
}

/// A volume that exists without the driver having made it. No size limit is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SeedVolume {
    /// Its label.
    pub label: String,
    /// Its region.
    pub region: String,
    /// Its size.
    pub size_gb: u32,
    /// Its kind.
    #[serde(default)]
    pub block_type: BlockType,
    /// The instance that has it, by id or label.
    #[serde(default)]
    pub attached_to: Option<String>,
    /// Whether it holds a system to boot from.
    #[serde(default)]
    pub bootable: bool,
}

impl SeedVolume {
    /// Names an unattached `NVMe` volume.
    #[must_use]
    pub fn new(label: &str, region: &str, size_gb: u32) -> Self {
        Self {
            label: label.to_owned(),
            region: region.to_owned(),
            size_gb,
            block_type: BlockType::HighPerf,
            attached_to: None,
            bootable: false,
        }
    }
}

impl Control {
    pub(crate) fn new(cloud: Arc<Cloud>) -> Self {
        Self { cloud }
    }

    /// Everything that exists.
    #[must_use]
    pub fn view(&self) -> View {
        self.cloud.view()
    }

    /// One volume, by its id or, if only one bears it, its label.
    ///
    /// # Errors
    /// No such volume, or several.
    pub fn volume(&self, name: &str) -> io::Result<VolumeView> {
        let state = self.cloud.state();
        let volume = only("volume", name, state.volumes.iter().filter(|v| v.id == name || v.label == name))?;
        Ok(VolumeView::of(volume, &state, self.cloud.disks.as_ref()))
    }

    /// One instance, by its id or label.
    ///
    /// # Errors
    /// No such instance.
    pub fn instance(&self, name: &str) -> io::Result<InstanceView> {
        let state = self.cloud.state();
        let found = state.instances.iter().find(|i| i.id == name || i.label == name);
        found.map(InstanceView::of).ok_or_else(|| absent("instance", name))
    }

    /// What is left in the account and on the machine.
    pub fn leftovers(&self) -> io::Result<Leftovers> {
        self.cloud.leftovers()
    }

    /// Fails a test that leaves anything behind.
    ///
    /// # Panics
    /// If volumes other than fillers, snapshots, file systems, attachments, loop devices or problems are left.
    pub fn assert_clean(&self) {
        let left = self.leftovers();
        let clean = left.as_ref().is_ok_and(Leftovers::is_empty);
        assert!(clean, "left in the simulated cloud: {left:?}");
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.cloud.state().record.stats.clone()
    }

    /// The requests in the order in which they came.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        self.cloud.state().record.log.clone()
    }

    /// Sets the counters to zero and empties the log.
    pub fn reset(&self) {
        self.cloud.state().record.reset();
    }

    /// How the cloud behaves now.
    #[must_use]
    pub fn behaviour(&self) -> Behaviour {
        self.cloud.state().behaviour.clone()
    }

    /// Changes how the cloud behaves, from the next request on; a transition that is on its way keeps its time.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.cloud.state().behaviour);
    }

    /// Changes the keys that the JSON object `changes` has, as the control interface does.
    ///
    /// # Errors
    /// An unknown key, or a value of the wrong kind; nothing is changed then.
    pub fn behave_as(&self, changes: &serde_json::Value) -> io::Result<Behaviour> {
        let behaviour = &mut self.cloud.state().behaviour;
        *behaviour = behaviour.changed(changes)?;
        Ok(behaviour.clone())
    }

    /// Lets the API listen, or refuse connections; what was asked for goes on behind it.
    ///
    /// # Errors
    /// A port that somebody else took meanwhile.
    pub async fn listen(&self, listens: bool) -> io::Result<()> {
        if listens {
            return self.cloud.door.reopen(Arc::clone(&self.cloud));
        }
        self.cloud.door.shut().await;
        Ok(())
    }

    /// Changes the API token that is accepted; the one before is refused from the next request on.
    pub fn change_token(&self, token: &str) {
        token.clone_into(&mut self.cloud.state().token);
    }

    /// Adds a fault rule and says its id.
    #[expect(clippy::must_use_candidate, reason = "few rules are ever removed singly")]
    pub fn add_fault(&self, fault: Fault) -> u64 {
        self.cloud.state().faults.add(fault)
    }

    /// Takes a fault rule away.
    ///
    /// # Errors
    /// No such rule.
    pub fn remove_fault(&self, id: u64) -> io::Result<()> {
        let removed = self.cloud.state().faults.remove(id);
        removed.then_some(()).ok_or_else(|| absent("fault", &id.to_string()))
    }

    /// Takes all fault rules away.
    pub fn clear_faults(&self) {
        self.cloud.state().faults.clear();
    }

    /// The fault rules with their ids and how often each one struck.
    #[must_use]
    pub fn faults(&self) -> Vec<(u64, Fault, u64)> {
        self.cloud.state().faults.list()
    }

    /// Adds unattached volumes that have no disks and that no report counts.
    ///
    /// # Errors
    /// An unknown region.
    pub fn seed_fillers(&self, count: usize, region: &str) -> io::Result<()> {
        let region = known(region)?;
        let mut state = self.cloud.state();
        for number in 0..count {
            state.make_volume(NewVolume {
                label: format!("filler-{number}"),
                region,
                size_gb: 10,
                block_type: BlockType::HighPerf,
                status: Status::Active,
                snapshot: None,
                filler: true,
            });
        }
        Ok(())
    }

    /// Adds a volume as somebody else left it behind, with a disk, and attached if asked.
    ///
    /// # Errors
    /// An unknown region or instance.
    pub async fn seed_volume(&self, seed: SeedVolume) -> io::Result<VolumeView> {
        let region = known(&seed.region)?;
        let instance = seed.attached_to.as_deref().map(|name| self.instance(name));
        let instance = instance.transpose()?;
        let id = {
            let mut state = self.cloud.state();
            let id = state.make_volume(NewVolume {
                label: seed.label,
                region,
                size_gb: seed.size_gb,
                block_type: seed.block_type,
                status: Status::Active,
                snapshot: None,
                filler: false,
            });
            if let Some(volume) = state.volumes.get_mut(&id) {
                volume.bootable = seed.bootable;
            }
            id
        };
        let machine = self.cloud.machine.lock().await;
        self.cloud.provide_disk(&machine, &id).await;
        drop(machine);
        if let Some(instance) = instance {
            self.cloud.plug(&id, &instance.id).await;
        }
        self.volume(&id)
    }

    /// Attaches a volume at once, by no rule but that it is free.
    ///
    /// # Errors
    /// An unknown volume or instance.
    pub async fn attach(&self, volume: &str, instance: &str) -> io::Result<()> {
        let (volume, instance) = (self.volume(volume)?, self.instance(instance)?);
        self.cloud.plug(&volume.id, &instance.id).await;
        Ok(())
    }

    /// Detaches a volume at once, in use or not.
    ///
    /// # Errors
    /// An unknown volume, or a qemu guest that does not let it go.
    pub async fn detach(&self, volume: &str) -> io::Result<()> {
        let gone = self.cloud.unplug(&self.volume(volume)?.id).await;
        gone.then_some(()).ok_or_else(|| kept("volume", volume))
    }

    /// Deletes a volume at once, attached or not.
    ///
    /// # Errors
    /// An unknown volume, or a qemu guest that does not let it go.
    pub async fn delete(&self, volume: &str) -> io::Result<()> {
        let gone = self.cloud.erase(&self.volume(volume)?.id).await;
        gone.then_some(()).ok_or_else(|| kept("volume", volume))
    }

    /// Puts a volume into a state, by the API's word for it or another; time changes a pending one all the same.
    ///
    /// # Errors
    /// An unknown volume.
    pub fn change_volume(&self, volume: &str, status: &'static str) -> io::Result<VolumeView> {
        let id = self.volume(volume)?.id;
        if let Some(volume) = self.cloud.state().volumes.get_mut(&id) {
            let known = [Status::Pending, Status::Active].into_iter().find(|known| known.as_str() == status);
            volume.status = known.unwrap_or(Status::Other(status));
        }
        self.volume(&id)
    }
}

fn known(region: &str) -> io::Result<&'static Region> {
    Region::find(region).ok_or_else(|| absent("region", region))
}

/// The one thing that bears a name.
fn only<T>(kind: &str, name: &str, mut named: impl Iterator<Item = T>) -> io::Result<T> {
    let first = named.next().ok_or_else(|| absent(kind, name))?;
    match named.next() {
        Some(_) => Err(invalid(&format!("several are called {kind} {name}"))),
        None => Ok(first),
    }
}

fn absent(kind: &str, name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no {kind} {name}"))
}

fn kept(kind: &str, name: &str) -> io::Error {
    io::Error::other(format!("the guest does not let {kind} {name} go"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
