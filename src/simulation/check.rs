//! What an answer to a call promises, held against what happened in the account.

use std::time::Duration;

use tonic::Code;

use super::{
    request::{Answered, Ask, GIB, Said},
    story::{Shown, Story},
};

/// Finds what is wrong with the answer to a call that was made and answered at these moments.
pub(super) fn judge(story: &Story, ask: &Ask, began: Duration, ended: Duration, answered: &Answered) -> Option<String> {
    let problem = match answered {
        Ok(said) => promised(story, ask, began, ended, said),
        Err((code, text)) => refused(story, ask, began, ended, *code, text),
    };
    problem.map(|problem| format!("{ask:?} is answered {answered:?}, but {problem}"))
}

fn promised(story: &Story, ask: &Ask, began: Duration, ended: Duration, said: &Said) -> Option<String> {
    let seen = |id: &str, is: &dyn Fn(&Shown) -> bool| {
        story.volumes.get(id).is_some_and(|life| life.between(began, ended).any(is))
    };
    let holds = match (ask, said) {
        (Ask::Create { name, gib, hdd }, Said::Volume(id, bytes, region)) => {
            let Some(life) = story.volumes.get(id) else { return Some("there is no such volume".to_owned()) };
            let kind = if *hdd { "storage_opt" } else { "high_perf" };
            let fits = |shown: &Shown| shown.active && i64::try_from(shown.gb).is_ok_and(|gb| gb * GIB == *bytes);
            life.label == *name
                && life.kind == kind
                && region.eq_ignore_ascii_case(&life.region)
                && *bytes >= gib * GIB
                && seen(id, &fits)
        }
        (Ask::Delete { id }, _) => story.volumes.get(id).is_none_or(|life| life.gone.is_some()),
        (Ask::Publish { id, node }, Said::Context(context)) => {
            let serial_is_told = context.get("mount_vol_name").is_some_and(|serial| !serial.is_empty());
            serial_is_told && seen(id, &|shown| shown.on.as_ref() == Some(node))
        }
        (Ask::Unpublish { id, node }, _) => {
            let off = |shown: &Shown| shown.on.as_ref().is_none_or(|on| !node.is_empty() && on != node);
            story.volumes.get(id).is_none_or(|life| life.gone.is_some()) || seen(id, &off)
        }
        (Ask::Expand { id, gib }, Said::Size(bytes)) => {
            let fits = |shown: &Shown| i64::try_from(shown.gb).is_ok_and(|gb| gb * GIB == *bytes && gb >= *gib);
            seen(id, &fits)
        }
        _ => false,
    };
    (!holds).then(|| "at no moment of it that was so".to_owned())
}

fn refused(story: &Story, ask: &Ask, began: Duration, ended: Duration, code: Code, text: &str) -> Option<String> {
    let life = ask.id().and_then(|id| story.volumes.get(id));
    let is_gone = life.is_none_or(|life| life.gone.is_some());
    let node_is_gone = |node: &String| story.instances_gone.contains_key(node) || !story.instances.contains(node);
    let on_some = |is: &dyn Fn(&String) -> bool| {
        life.is_some_and(|life| life.between(began, ended).any(|shown| shown.on.as_ref().is_some_and(is)))
    };
    match (ask, code) {
        (_, Code::DeadlineExceeded | Code::Unavailable | Code::Aborted) => None,
        (Ask::Publish { node, .. }, Code::NotFound) => {
            (!is_gone && !node_is_gone(node)).then(|| "both are there".to_owned())
        }
        (Ask::Expand { .. }, Code::NotFound) => (!is_gone).then(|| "it is there".to_owned()),
        (Ask::Publish { node, .. }, Code::FailedPrecondition) => {
            (!on_some(&|on| on != node)).then(|| "it is on no other node".to_owned())
        }
        (Ask::Delete { .. }, Code::FailedPrecondition) => (!on_some(&|_| true)).then(|| "it is on no node".to_owned()),
        (Ask::Create { name, gib, hdd }, Code::AlreadyExists) => {
            let other = |id: &String| {
                let life = &story.volumes[id];
                let differs = |shown: &Shown| i64::try_from(shown.gb).is_ok_and(|gb| gb != *gib);
                life.between(began, ended).any(differs) || (life.kind == "high_perf") == *hdd
            };
            let exists = story.named.get(name).is_some_and(|ids| ids.iter().any(other));
            (!exists).then(|| "there is no other volume of that name".to_owned())
        }
        _ if text.contains("bug") => Some("that is a bug".to_owned()),
        _ => Some("that is no answer to such a call".to_owned()),
    }
}
