//! A test's hand on instances.

use std::io;

use super::{Control, absent};
use crate::{
    InstanceSpec,
    simulation::add_instance,
    view::{InstanceChange, InstanceView},
};

impl Control {
    /// Adds an instance with its own tree and metadata service.
    ///
    /// # Errors
    /// An unknown region, a label that is taken or no folder's name, or a port that is taken.
    pub async fn add_instance(&self, spec: &InstanceSpec) -> io::Result<InstanceView> {
        add_instance(&self.cloud, spec).await
    }

    /// Stops, locks or otherwise changes an instance.
    ///
    /// # Errors
    /// An unknown instance.
    pub fn change_instance(&self, name: &str, change: InstanceChange) -> io::Result<InstanceView> {
        let id = self.instance(name)?.id;
        let mut state = self.cloud.state();
        let Some(instance) = state.instance_mut(&id) else {
            return Err(absent("instance", name));
        };
        if let Some(status) = change.status {
            instance.status = status;
        }
        if let Some(power_status) = change.power_status {
            instance.power_status = power_status;
        }
        instance.held = change.locked.unwrap_or(instance.held);
        instance.metadata = change.metadata.unwrap_or(instance.metadata);
        Ok(InstanceView::of(instance))
    }

    /// Plugs into a qemu guest that was started again what it had, as it should be done before its system runs (`-S`).
    ///
    /// # Errors
    /// An unknown instance, or a guest that doesn't run or refuses something.
    pub async fn replug(&self, name: &str) -> io::Result<()> {
        self.cloud.replug(&self.instance(name)?.id).await
    }

    /// Destroys an instance; its volumes and file systems stay, without it. A qemu guest that runs is ended.
    ///
    /// # Errors
    /// An unknown instance.
    pub async fn delete_instance(&self, name: &str) -> io::Result<()> {
        self.cloud.destroy(&self.instance(name)?.id).await;
        Ok(())
    }
}
