//! Attachments of shared file systems: any number of instances at once, none of them locked meanwhile.

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::{Outcome, Refusal, bad, known};
use crate::{
    answer::Answer,
    cloud::{Cloud, State},
    vfs::{Attachment, AttachmentState},
    volume::Status,
};

/// An attachment as the API writes it.
#[derive(Debug, Serialize)]
struct Row {
    state: &'static str,
    vfs_id: String,
    target_id: String,
    mount_tag: u32,
}

impl Row {
    fn of(vfs: &str, attachment: &Attachment) -> Self {
        Self {
            state: attachment.state.as_str(),
            vfs_id: vfs.to_owned(),
            target_id: attachment.target.clone(),
            mount_tag: attachment.mount_tag,
        }
    }
}

pub(in crate::api) fn list(cloud: &Cloud, id: &str) -> Outcome {
    let state = cloud.state();
    let rows: Vec<Row> = known(&state, id)?.attachments.iter().map(|a| Row::of(id, a)).collect();
    Ok(Answer::json(200, &json!({ "attachments": rows })))
}

pub(in crate::api) fn get(cloud: &Cloud, id: &str, instance: &str) -> Outcome {
    let state = cloud.state();
    Ok(Answer::json(200, &Row::of(id, attached(&state, id, instance)?)))
}

fn attached<'a>(state: &'a State, id: &str, instance: &str) -> Result<&'a Attachment, Refusal> {
    let attachment = known(state, id)?.attachment(instance);
    attachment.ok_or_else(|| Refusal::new(404, "Attachment Not Found"))
}

pub(in crate::api) fn attach(cloud: &Arc<Cloud>, id: &str, instance: &str) -> Outcome {
    let (answer, delay, mount_tag) = {
        let mut state = cloud.state();
        may_attach(&state, id, instance)?;
        let mount_tag = state.make_attachment(id, instance);
        let answer = Answer::json(201, &Row::of(id, attached(&state, id, instance)?));
        (answer, state.behaviour.vfs_attach, mount_tag)
    };
    let (worker, id) = (Arc::clone(cloud), id.to_owned());
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.share(&id, mount_tag).await;
    });
    Ok(answer)
}

fn may_attach(state: &State, id: &str, instance: &str) -> Result<(), Refusal> {
    let vfs = known(state, id)?;
    let Some(target) = state.instance(instance) else {
        return Err(Refusal::new(404, "Target Not Found."));
    };
    if vfs.attachment(instance).is_some() {
        return Err(Refusal::new(409, "This machine is already attached to this subscription."));
    }
    if vfs.status != Status::Active {
        return Err(bad("The subscription is not active."));
    }
    if vfs.region != target.region {
        return Err(bad("The machine is in another region."));
    }
    if target.status != "active" || target.power_status != "running" {
        return Err(bad("Server must be in an active state"));
    }
    Ok(())
}

pub(in crate::api) fn detach(cloud: &Arc<Cloud>, id: &str, instance: &str) -> Outcome {
    let (delay, mount_tag) = {
        let mut state = cloud.state();
        let mount_tag = attached(&state, id, instance)?.mount_tag;
        let attachment = state.file_systems.get_mut(id).and_then(|vfs| vfs.tagged(mount_tag));
        if let Some(attachment) = attachment {
            attachment.state = AttachmentState::Detaching;
        }
        (state.behaviour.vfs_detach, mount_tag)
    };
    let (worker, id) = (Arc::clone(cloud), id.to_owned());
    cloud.spawn(async move {
        tokio::time::sleep(delay).await;
        worker.unshare(&id, mount_tag).await;
    });
    Ok(Answer::empty())
}
