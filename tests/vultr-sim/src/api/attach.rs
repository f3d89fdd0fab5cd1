//! Attach and detach: answered at once, in effect later, and the instance is locked until then.

use std::sync::Arc;

use serde::Deserialize;

use super::{Outcome, Refusal, block::known, read};
use crate::{
    answer::Answer,
    cloud::{Cloud, Instance, State},
    volume::Status,
};

/// What Vultr's support named as the most volumes of an instance (2023-11).
const VOLUMES_PER_INSTANCE: usize = 11;
/// The one text without a prefix: it is the whole answer.
const ALREADY: &str = "Block storage volume is already attached to a server";

#[derive(Debug, Deserialize)]
struct Attach {
    instance_id: Option<String>,
    live: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Detach {
    live: Option<bool>,
}

pub(super) fn attach(cloud: &Arc<Cloud>, id: &str, body: &[u8]) -> Outcome {
    let asked: Attach = read(body)?;
    let instance = asked.instance_id.unwrap_or_default();
    let delay = {
        let mut state = cloud.state();
        may_attach(&mut state, id, &instance)?;
        begin(&mut state, id, &instance, asked.live);
        state.behaviour.attach
    };
    let (worker, id) = (Arc::clone(cloud), id.to_owned());
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.plug(&id, &instance).await;
        finish(&worker, &id, &instance);
    });
    Ok(Answer::empty())
}

pub(super) fn detach(cloud: &Arc<Cloud>, id: &str, body: &[u8]) -> Outcome {
    let asked: Detach = read(body)?;
    let (delay, instance) = {
        let mut state = cloud.state();
        let instance = may_detach(&mut state, id)?;
        begin(&mut state, id, &instance, asked.live);
        (state.behaviour.detach, instance)
    };
    let (worker, id) = (Arc::clone(cloud), id.to_owned());
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.unplug(&id).await;
        finish(&worker, &id, &instance);
    });
    Ok(Answer::empty())
}

fn may_attach(state: &mut State, id: &str, instance_id: &str) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        let text = format!("Unable to attach block storage: {why}");
        Err(Refusal::new(400, text))
    };
    let volume = known(state, id)?;
    if volume.status != Status::Active {
        return refuse("Block storage volume is not active");
    }
    if volume.attached.is_some() && !volume.moving {
        return Err(Refusal::new(400, ALREADY));
    }
    let Some(instance) = state.instance(instance_id) else {
        let text = "Unable to attach block storage: instance not found";
        return Err(Refusal::new(404, text));
    };
    if instance.region != volume.region {
        return refuse("the server is in another region");
    }
    if instance.status != "active" || instance.power_status != "running" {
        return refuse("Server must be in an active state");
    }
    if instance.locked() {
        return Err(locked(state, "attach"));
    }
    // On its way to or from another instance.
    if volume.moving {
        return Err(Refusal::new(400, ALREADY));
    }
    if state.volumes.attached_to(instance_id).count() >= VOLUMES_PER_INSTANCE {
        return refuse("the server has the maximum number of volumes");
    }
    Ok(())
}

/// Says which instance has the volume: the request names none.
fn may_detach(state: &mut State, id: &str) -> Result<String, Refusal> {
    let volume = known(state, id)?;
    let Some(instance) = volume.attached.clone() else {
        // While it is being attached, its instance is locked; nobody has it yet.
        let text = "Block storage volume is not currently attached to a server";
        return Err(Refusal::new(400, text));
    };
    if volume.moving || state.instance(&instance).is_some_and(Instance::locked) {
        return Err(locked(state, "detach"));
    }
    Ok(instance)
}

fn locked(state: &mut State, verb: &str) -> Refusal {
    state.record.stats.locked += 1;
    let text = format!("Unable to {verb} block storage: Server is currently locked");
    Refusal::new(state.behaviour.locked_status, text)
}

/// Locks the instance, and restarts it unless the call was expressly live.
fn begin(state: &mut State, id: &str, instance: &str, live: Option<bool>) {
    if let Some(volume) = state.volumes.get_mut(id) {
        volume.moving = true;
    }
    let Some(instance) = state.instance_mut(instance) else {
        return;
    };
    instance.busy = true;
    if live != Some(true) {
        let label = instance.label.clone();
        *state.record.stats.reboots.entry(label).or_default() += 1;
    }
}

fn finish(cloud: &Cloud, id: &str, instance: &str) {
    let mut state = cloud.state();
    if let Some(volume) = state.volumes.get_mut(id) {
        volume.moving = false;
    }
    if let Some(instance) = state.instance_mut(instance) {
        instance.busy = false;
    }
}
