//! Attach and detach: answered at once, in effect later, and the instance is locked until then.

use std::sync::Arc;

use serde::Deserialize;

use super::{Outcome, Refusal, block::known, read};
use crate::{
    answer::Answer,
    cloud::{Cloud, Instance, State},
    volume::Volume,
};

/// What Vultr's support named as the most volumes of an instance (2023-11).
const VOLUMES_PER_INSTANCE: usize = 11;

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
    let instance_id = asked.instance_id.unwrap_or_default();
    let delay = {
        let mut state = cloud.state();
        may_attach(&state, id, &instance_id).inspect_err(|_| ())?;
        begin(&mut state, id, &instance_id, asked.live);
        state.behaviour.attach
    };
    let (worker, id) = (Arc::clone(cloud), id.to_owned());
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.plug(&id, &instance_id).await;
        finish(&worker, &id, &instance_id);
    });
    Ok(Answer::empty())
}

pub(super) fn detach(cloud: &Arc<Cloud>, id: &str, body: &[u8]) -> Outcome {
    let asked: Detach = read(body)?;
    let (delay, instance_id) = {
        let mut state = cloud.state();
        let instance_id = may_detach(&state, id)?;
        begin(&mut state, id, &instance_id, asked.live);
        (state.behaviour.detach, instance_id)
    };
    let (worker, id) = (Arc::clone(cloud), id.to_owned());
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.unplug(&id).await;
        finish(&worker, &id, &instance_id);
    });
    Ok(Answer::empty())
}
