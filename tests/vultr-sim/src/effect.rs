//! Effects: what an operation does once it is allowed, to the state and to the machine together.
//!
//! Called by the API after its rules, and by the control interface without any. Each one is idempotent, since a test's
//! hand may have been faster than a transition.

mod instance;
mod share;
mod snapshot;

use tokio::sync::MutexGuard;

pub(crate) use share::SHARES;

use crate::{cloud::Cloud, guest::Guest};

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
        let Some(guest) = self.guest(instance) else {
            return;
        };
        let _turn = guest.turn().await;
        let _machine = self.machine.lock().await;
        let plan = {
            let state = self.state();
            let free = state.volumes.get(volume).filter(|v| v.attached.is_none());
            free.filter(|_| state.instance(instance).is_some()).map(|v| (v.size_gb, v.mount_id.clone()))
        };
        let Some((size_gb, mount_id)) = plan else {
            return;
        };
        let mut device = None;
        if let Some(disks) = &self.disks {
            let plugged = async {
                // A growth that the last guest could not see reaches this one.
                disks.provide(volume, size_gb)?;
                guest.plug(disks, volume, &mount_id).await
            };
            match plugged.await {
                Ok(plugged) => device = plugged,
                Err(error) => return self.problem("attaching a disk", &error),
            }
        }
        if let Some(v) = self.state().volumes.get_mut(volume) {
            v.attached = Some(instance.to_owned());
            v.loop_device = device;
        }
    }

    fn guest(&self, instance: &str) -> Option<Guest> {
        self.state().instance(instance).map(|i| i.guest.clone())
    }

    /// Detaches a volume, whether or not its guest still uses it, as the cloud does; only a virtual machine that does not
    /// let it go at all keeps it. Says whether it is detached.
    pub(crate) async fn unplug(&self, volume: &str) -> bool {
        let plan = {
            let state = self.state();
            let attached = state.volumes.get(volume).and_then(|v| Some((v.attached.clone()?, v.mount_id.clone())));
            attached.map(|(instance, mount_id)| (instance, mount_id, state.behaviour.guest_patience))
        };
        let Some((instance, mount_id, patience)) = plan else {
            return true;
        };
        let guest = self.guest(&instance);
        // The machine is not held while a guest takes its time.
        let _turn = match &guest {
            Some(guest) => guest.turn().await,
            None => None,
        };
        let has = || self.state().volumes.get(volume).is_some_and(|v| v.attached.as_ref() == Some(&instance));
        if !has() {
            return true;
        }
        if let Some(guest) = guest.as_ref().filter(|_| self.disks.is_some())
            && let Err(error) = guest.release(&mount_id, patience).await
        {
            self.kept("a disk", &error);
            return false;
        }
        let _machine = self.machine.lock().await;
        self.unplug_locked(volume).await;
        true
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

    /// Removes a volume and its disk, and says whether it did; an attached one is detached first.
    pub(crate) async fn erase(&self, volume: &str) -> bool {
        let _machine = loop {
            if !self.unplug(volume).await {
                return false;
            }
            let machine = self.machine.lock().await;
            // A test's hand may have attached it meanwhile.
            if self.state().volumes.get(volume).is_none_or(|v| v.attached.is_none()) {
                break machine;
            }
        };
        self.state().volumes.remove(volume);
        if let Some(disks) = &self.disks
            && let Err(error) = disks.remove(volume)
        {
            self.problem("removing a disk", &error);
        }
        true
    }

    /// Lets the disk of a volume that grew follow: an attached guest sees it only where the cloud is set so.
    pub(crate) async fn grow_disk(&self, volume: &str) {
        let instance = self.state().volumes.get(volume).and_then(|v| v.attached.clone());
        let guest = instance.as_deref().and_then(|instance| self.guest(instance));
        let _turn = match &guest {
            Some(guest) => guest.turn().await,
            None => None,
        };
        let _machine = self.machine.lock().await;
        let plan = {
            let state = self.state();
            let online = state.behaviour.growth_seen_online;
            // Who got it meanwhile got it in its new size.
            let grown = state.volumes.get(volume).filter(|v| v.attached == instance);
            grown.filter(|_| instance.is_none() || online).cloned()
        };
        let (Some(disks), Some(v)) = (&self.disks, plan) else {
            return;
        };
        let grown = async {
            let bytes = disks.provide(volume, v.size_gb)?;
            match &guest {
                Some(guest) => guest.grow(v.loop_device.as_deref(), &v.mount_id, bytes).await,
                None => Ok(()),
            }
        };
        if let Err(error) = grown.await {
            self.problem("growing a disk", &error);
        }
    }
}
