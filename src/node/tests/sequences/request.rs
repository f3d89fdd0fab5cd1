//! The calls of a sequence, as the driver gets them.

use std::{path::PathBuf, sync::Arc};

use super::{
    plan::{Asked, Call, Kind, Place},
    world::{Holds, World, id, serial},
};
use crate::{
    cloud::Attachment,
    error::Error,
    node::{Expand, Key, Node, Publish, Stage},
    volume::{Access, Discard, FsType, MkfsOptions},
};

/// A call as the driver gets it.
pub(crate) enum Request {
    Stage(Stage),
    Unstage(usize, PathBuf),
    Publish(Publish),
    Unpublish(usize, PathBuf),
    Expand(Expand),
    Stats(usize, PathBuf),
}

impl Request {
    /// The request for a volume of this kind that is asked for.
    pub(crate) fn of(asked: Asked, kind: Kind, world: &impl World) -> Self {
        let Asked { node, volume, call } = asked;
        let path = |place| world.path(node, volume, place);
        let attachment = Attachment::Disk { serial: serial(volume), size: None };
        match call {
            Call::Stage { read_only, other_fs, wrong_key } => {
                // A blank disk would really become another.
                let is_whole = world.holds(volume) == Holds::All;
                let other = other_fs && is_whole;
                let fs = |fs| FsType::ALL.into_iter().find(|other_fs| !other || *other_fs != fs);
                let own = |fs_type| if other { fs(fs_type) } else { Some(fs_type) };
                Self::Stage(Stage {
                    volume: id(volume),
                    staging_path: path(Place::Staging),
                    access: access(kind.fs().and_then(own), kind),
                    attachment,
                    blank: kind != Kind::Undeclared,
                    read_only,
                    // A disk that is not encrypted yet would really be given it.
                    key: key(kind, volume, wrong_key && is_whole && !world.is_recorded(node, volume)),
                    discard: Discard::Never,
                    mkfs_options: MkfsOptions::default(),
                })
            }
            Call::Publish { target, read_only, single_writer } => Self::Publish(Publish {
                volume: id(volume),
                staging_path: path(Place::Staging),
                target_path: path(Place::Target(target)),
                access: access(None, kind),
                read_only,
                single_writer,
                attachment: Some(attachment),
            }),
            Call::Unstage => Self::Unstage(volume, path(Place::Staging)),
            Call::Unpublish { target } => Self::Unpublish(volume, path(Place::Target(target))),
            Call::Expand(place) => Self::Expand(Expand {
                volume: id(volume),
                path: path(place),
                wanted: Some(world.size(volume)),
                key: key(kind, volume, false),
            }),
            Call::Stats(place) => Self::Stats(volume, path(place)),
        }
    }

    /// Makes the call.
    pub(crate) async fn make(self, driver: Arc<Node>) -> Result<(), Error> {
        // A task of its own, or it would take its caller along into death.
        let call = tokio::spawn(async move {
            match self {
                Self::Stage(request) => driver.stage(request, None).await,
                Self::Unstage(volume, path) => driver.unstage(id(volume), path).await,
                Self::Publish(request) => driver.publish(request).await,
                Self::Unpublish(volume, path) => driver.unpublish(id(volume), path).await,
                Self::Expand(request) => driver.expand(request, None).await.map(drop),
                Self::Stats(volume, path) => driver.stats(id(volume), path).await.map(drop),
            }
        });
        call.await.unwrap_or_else(|panicked| Err(Error::Panicked(panicked.to_string())))
    }
}

/// The key of an encrypted volume, or another one.
fn key(kind: Kind, volume: usize, wrong: bool) -> Option<Key> {
    let whose = if wrong { "nobody" } else { "volume" };
    kind.is_encrypted().then(|| Key::new(format!("key of {whose} {volume}"))).flatten()
}

fn access(fs_type: Option<FsType>, kind: Kind) -> Access {
    match kind {
        kind if kind.is_raw() => Access::Block,
        _ => Access::Mount { fs_type, flags: Vec::new() },
    }
}

/// The name under which a call is counted.
pub(crate) fn word(call: Call) -> &'static str {
    match call {
        Call::Stage { .. } => "stage",
        Call::Unstage => "unstage",
        Call::Publish { .. } => "publish",
        Call::Unpublish { .. } => "unpublish",
        Call::Expand(_) => "expand",
        Call::Stats(_) => "stats",
    }
}
