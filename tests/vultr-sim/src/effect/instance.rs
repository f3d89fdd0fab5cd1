//! Instances: what comes and goes with a whole machine.

use std::{io, time::Duration};

use crate::{cloud::Cloud, guest::Guest, vfs::AttachmentState};

/// How long a guest may take to let a disk go when the simulation ends.
const AT_THE_END: Duration = Duration::from_secs(5);

impl Cloud {
    /// Plugs into a virtual machine that was started again what it has in the cloud and lacks.
    pub(crate) async fn replug(&self, instance: &str) -> io::Result<()> {
        let (Some(guest), Some(disks)) = (self.guest(instance), &self.disks) else {
            return Ok(());
        };
        let _turn = guest.turn().await;
        let _machine = self.machine.lock().await;
        let (volumes, shares) = {
            let state = self.state();
            let volumes: Vec<_> = state.volumes.attached_to(instance).cloned().collect();
            let has = |vfs: &crate::vfs::Vfs| {
                let attached = vfs.attachment(instance).filter(|a| a.state == AttachmentState::Attached);
                attached.and_then(|a| Some((self.share_dir(&vfs.id)?, a.mount_tag)))
            };
            (volumes, state.file_systems.iter().filter_map(has).collect::<Vec<_>>())
        };
        for volume in volumes {
            disks.provide(&volume.id, volume.size_gb)?;
            guest.replug(disks, &volume.id, &volume.mount_id).await?;
        }
        for (dir, mount_tag) in shares {
            guest.reshare(&dir, mount_tag).await?;
        }
        Ok(())
    }

    /// Takes from all virtual machines what they have, at the end: they may live longer than the files behind it. Tells
    /// the first that keeps something, and does not wait long for it.
    pub(crate) async fn take_all(&self) -> io::Result<()> {
        if self.disks.is_none() {
            return Ok(());
        }
        let guests: Vec<(String, Guest)> =
            self.state().instances.iter().map(|i| (i.id.clone(), i.guest.clone())).collect();
        let mut taken = Ok(());
        for (instance, guest) in guests.iter().filter(|(_, guest)| matches!(guest, Guest::Qemu(_))) {
            taken = taken.and(self.take_from(instance, guest).await);
        }
        taken
    }

    async fn take_from(&self, instance: &str, guest: &Guest) -> io::Result<()> {
        let (serials, tags) = {
            let state = self.state();
            let serials: Vec<String> = state.volumes.attached_to(instance).map(|v| v.mount_id.clone()).collect();
            let shares = state.file_systems.iter().filter_map(|vfs| vfs.attachment(instance));
            (serials, shares.map(|a| a.mount_tag).collect::<Vec<u32>>())
        };
        let _turn = guest.turn().await;
        for serial in serials {
            guest.release(&serial, AT_THE_END).await?;
        }
        for tag in tags {
            guest.release_share(tag, AT_THE_END).await?;
        }
        Ok(())
    }

    /// Destroys an instance; its volumes and file systems stay, without it.
    pub(crate) async fn destroy(&self, instance: &str) {
        if let Some(guest) = self.guest(instance) {
            let _turn = guest.turn().await;
            if let Err(error) = guest.power_off().await {
                self.problem("ending an instance", &error);
            }
        }
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
