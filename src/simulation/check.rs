//! What an answer to a call promises, held against what happened in the account.

use std::time::Duration;

use tonic::Code;

use super::{
    request::{Answered, Ask, From, GIB, Said},
    snapshots::Taken,
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
        (Ask::Create { name, gib, class, from }, Said::Volume(id, bytes, region)) => {
            let Some(life) = story.volumes.get(id) else { return Some("there is no such volume".to_owned()) };
            let of = |snapshot: &String| story.snapshots.0.get(snapshot).map(|taken| taken.source.clone());
            let filled = match from {
                From::Nothing => life.snapshot.is_empty(),
                From::Snapshot(snapshot) => life.snapshot == *snapshot,
                From::Volume(source) => of(&life.snapshot).as_ref() == Some(source),
            };
            let fits = |shown: &Shown| shown.active && i64::try_from(shown.gb).is_ok_and(|gb| gb * GIB == *bytes);
            life.label == *name
                && life.kind == class.kind()
                && filled
                && region.eq_ignore_ascii_case(&life.region)
                && *bytes >= gib * GIB
                && seen(id, &fits)
        }
        (Ask::Delete { id }, _) => story.volumes.get(id).is_none_or(|life| life.gone.is_some()),
        (Ask::Publish { id, node, .. }, Said::Context(context)) => {
            let name_is_told = context.get("mount_vol_name").is_some_and(|name| !name.is_empty());
            name_is_told && seen(id, &|shown| shown.on.contains(node))
        }
        (Ask::Unpublish { id, node }, _) => {
            let off = |shown: &Shown| if node.is_empty() { shown.on.is_empty() } else { !shown.on.contains(node) };
            story.volumes.get(id).is_none_or(|life| life.gone.is_some()) || seen(id, &off)
        }
        (Ask::Expand { id, gib }, Said::Size(bytes)) => {
            let fits = |shown: &Shown| i64::try_from(shown.gb).is_ok_and(|gb| gb * GIB == *bytes && gb >= *gib);
            seen(id, &fits)
        }
        (Ask::Snapshot { name, source }, Said::Snapshot(id, of, bytes, ready)) => {
            let taken = story.snapshots.0.get(id);
            taken.is_some_and(|taken| {
                let complete = taken.complete.is_some_and(|complete| complete <= ended);
                taken.description.ends_with(&format!(" snapshot={name}"))
                    && taken.source == *source
                    && taken.source == *of
                    && i64::try_from(taken.gb).is_ok_and(|gb| gb * GIB == *bytes)
                    && taken.gone.is_none_or(|gone| gone >= began)
                    && (complete || !ready)
            })
        }
        (Ask::DeleteSnapshot { snapshot }, _) => {
            story.snapshots.0.get(snapshot).is_none_or(|taken| taken.gone.is_some())
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
        life.is_some_and(|life| life.between(began, ended).any(|shown| shown.on.iter().any(is)))
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
        (Ask::Snapshot { .. } | Ask::Create { .. }, Code::Internal) if story.snapshots.any_failed() => None,
        (Ask::DeleteSnapshot { .. } | Ask::Delete { .. }, Code::FailedPrecondition) if text.contains("from it") => None,
        (Ask::Snapshot { source, .. } | Ask::Create { from: From::Volume(source), .. }, Code::NotFound) => {
            let gone = story.volumes.get(source).is_none_or(|life| life.gone.is_some());
            (!gone).then(|| "its source is there".to_owned())
        }
        (Ask::Create { from: From::Snapshot(source), .. }, Code::NotFound) => {
            let gone = story.snapshots.0.get(source).is_none_or(|taken| taken.gone.is_some());
            (!gone).then(|| "its source is there".to_owned())
        }
        (Ask::Snapshot { name, source }, Code::AlreadyExists) => {
            let key = format!(" snapshot={name}");
            let other = |taken: &Taken| taken.description.ends_with(&key) && taken.source != *source;
            (!story.snapshots.0.values().any(other)).then(|| "there is no other of that name".to_owned())
        }
        // It may be on its way to an instance.
        (Ask::Delete { .. }, Code::FailedPrecondition) if life.is_some_and(|life| life.kind == "vfs") => None,
        (Ask::Delete { .. }, Code::FailedPrecondition) => (!on_some(&|_| true)).then(|| "it is on no node".to_owned()),
        (Ask::Create { name, gib, class, .. }, Code::AlreadyExists) => {
            let other = |id: &String| {
                let life = &story.volumes[id];
                let differs = |shown: &Shown| i64::try_from(shown.gb).is_ok_and(|gb| gb != *gib);
                life.between(began, ended).any(differs) || life.kind != class.kind()
            };
            let exists = story.named.get(name).is_some_and(|ids| ids.iter().any(other));
            (!exists).then(|| "there is no other volume of that name".to_owned())
        }
        _ if text.contains("bug") => Some("that is a bug".to_owned()),
        _ => Some("that is no answer to such a call".to_owned()),
    }
}
