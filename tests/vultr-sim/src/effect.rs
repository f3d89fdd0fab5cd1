//! Effects: what an operation does once it is allowed, to the state and to the machine together.
//!
//! Called by the API after its rules, and by the control interface without any. Each one is idempotent, since a test's
//! hand may have been faster than a transition.

mod share;
mod snapshot;

use std::{io, path::PathBuf};

use tokio::sync::MutexGuard;

pub(crate) use share::SHARES;

use crate::{cloud::Cloud, disk::Disks};

impl Cloud {
    /// Makes the disk of a new volume, with its snapshot's content if it has one. The caller holds the machine.
    pub(crate) async fn provide_disk(&self, _machine: &MutexGuard<'_, ()>, volume: &str) {
        let plan = self.state().volumes.get(volume).map(|v| (v.size_gb, v.snapshot.clone()));
        let (Some(disks), Some((size_gb, snapshot))) = (&self.disks, plan) else {
            return;
        };
        let provided = async {
            if let Some(snapshot) = snapshot {
                disks.restore(&snapshot, volume).await?;
            }
            disks.provide(volume, size_gb)
        };
        if let Err(error) = provided.await {
            self.problem("making a disk", &error);
        }
    }

    /// Attaches a volume that is free to an instance that exists; anything else is left as it is.
    pub(crate) async fn plug(&self, volume: &str, instance: &str) {
        let _machine = self.machine.lock().await;
        let plan = {
            let state = self.state();
            let free = state.volumes.get(volume).filter(|v| v.attached.is_none());
            free.zip(state.instance(instance)).map(|(v, i)| (v.size_gb, v.mount_id.clone(), i.guest.clone()))
        };
        let Some((size_gb, mount_id, guest)) = plan else {
            return;
        };
        let mut device = None;
        if let Some(disks) = &self.disks {
            let plugged = async {
                // A growth that the last guest could not see reaches this one.
                disks.provide(volume, size_gb)?;
                let device = disks.attach(volume).await?;
                guest.show(&device, &mount_id)?;
                Ok::<PathBuf, io::Error>(device)
            };
            match plugged.await {
                Ok(plugged) => device = Some(plugged),
                Err(error) => return self.problem("attaching a disk", &error),
            }
        }
        if let Some(v) = self.state().volumes.get_mut(volume) {
            v.attached = Some(instance.to_owned());
            v.loop_device = device;
        }
    }

    /// Detaches a volume, whether or not its guest still uses it, as the cloud does.
    pub(crate) async fn unplug(&self, volume: &str) {
        let _machine = self.machine.lock().await;
        self.unplug_locked(volume).await;
    }

    async fn unplug_locked(&self, volume: &str) {
        let plan = {
            let mut state = self.state();
            let Some(v) = state.volumes.get_mut(volume) else {
                return;
            };
            let (device, mount_id) = (v.loop_device.take(), v.mount_id.clone());
            let instance = v.attached.clone();
            let guest = instance.and_then(|i| state.instance(&i).map(|i| i.guest.clone()));
            device.map(|device| (device, mount_id, guest))
        };
        if let (Some(disks), Some((device, mount_id, guest))) = (&self.disks, plan) {
            // The guest's tree goes first: a loop device's number may be taken by others as soon as it is free.
            if let Some(Err(error)) = guest.map(|guest| guest.hide(&device, &mount_id)) {
                self.problem("hiding a disk", &error);
            }
            match disks.detach(volume, &device).await {
                Ok(true) => {}
                Ok(false) => self.state().record.stats.dirty_detaches += 1,
                Err(error) => self.problem("detaching a disk", &error),
            }
        }
        if let Some(v) = self.state().volumes.get_mut(volume) {
            v.attached = None;
        }
    }

    /// Removes a volume and its disk; an attached one is detached first.
    pub(crate) async fn erase(&self, volume: &str) {
        let _machine = self.machine.lock().await;
        self.unplug_locked(volume).await;
        self.state().volumes.remove(volume);
        if let Some(disks) = &self.disks
            && let Err(error) = disks.remove(volume)
        {
            self.problem("removing a disk", &error);
        }
    }

    /// Lets the disk of a volume that grew follow: an attached guest sees it only where the cloud is set so.
    pub(crate) async fn grow_disk(&self, volume: &str) {
        let _machine = self.machine.lock().await;
        let plan = {
            let state = self.state();
            let online = state.behaviour.growth_seen_online;
            let grown = state.volumes.get(volume);
            grown.filter(|v| v.loop_device.is_none() || online).map(|v| (v.size_gb, v.loop_device.clone()))
        };
        let (Some(disks), Some((size_gb, device))) = (&self.disks, plan) else {
            return;
        };
        let grown = async {
            disks.provide(volume, size_gb)?;
            match device {
                Some(device) => Disks::reread_size(&device).await,
                None => Ok(()),
            }
        };
        if let Err(error) = grown.await {
            self.problem("growing a disk", &error);
        }
    }

    /// Destroys an instance; its volumes and file systems stay, without it.
    pub(crate) async fn destroy(&self, instance: &str) {
        let attached: Vec<String> = {
            let state = self.state();
            let volumes = state.volumes.attached_to(instance);
            volumes.map(|v| v.id.clone()).collect()
        };
        for volume in attached {
            self.unplug(&volume).await;
        }
        self.unshare_all(instance).await;
        let _machine = self.machine.lock().await;
        let gone = {
            let mut state = self.state();
            let place = state.instances.iter().position(|i| i.id == instance);
            place.map(|place| state.instances.remove(place))
        };
        let Some(gone) = gone else { return };
        if let Some(listener) = gone.metadata_listener {
            listener.abort();
        }
        if let Err(error) = gone.guest.remove() {
            self.problem("removing an instance's tree", &error);
        }
    }
}
