//! ListVolumes, ControllerGetVolume: the account's volumes as they stand, page by page as the cloud has them: first the
//! disks, then the shared file systems.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::warn;

use super::{Controller, Inner, Which};
use crate::{
    cloud::{Cloud, CloudError, Page, Share, Volume, VolumeState, VolumeType, kind::Kind},
    error::Error,
    volume::{Gib, NodeId, VolumeId},
};

/// Whoever lists all volumes does not wait longer than this for the shared file systems among them.
const SHARES_WITHIN: Duration = Duration::from_secs(10);

/// What our page tokens begin with, before the cloud's own cursor.
const DISKS: &str = "page:";
/// The same among the shared file systems, before the last id shown; nothing before the first.
const SHARES: &str = "shared:";

/// A volume as callers see it, disk or shared file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its id.
    pub id: VolumeId,
    /// Its size.
    pub size: Gib,
    /// Its kind, if that was told.
    pub volume_type: Option<&'static VolumeType>,
    /// The region, in lower case.
    pub region: String,
    /// The instances that have it.
    pub nodes: Vec<NodeId>,
    /// Whether it can be used.
    pub state: VolumeState,
    /// What is wrong with it, apart from its state.
    pub trouble: Option<String>,
}

impl From<Volume> for Shown {
    fn from(volume: Volume) -> Self {
        let Volume { id, size, volume_type, region, attached_to, state, .. } = volume;
        Self { id, size, volume_type, region, nodes: attached_to.into_iter().collect(), state, trouble: None }
    }
}

impl From<Share> for Shown {
    fn from(share: Share) -> Self {
        let Share { id, size, volume_type, region, state, .. } = share;
        Self { id, size, volume_type, region, nodes: Vec::new(), state, trouble: None }
    }
}

/// Some of the account's volumes.
#[derive(Debug, Clone)]
pub struct VolumeList {
    /// The volumes.
    pub volumes: Vec<Shown>,
    /// Where the next call goes on.
    pub next_token: Option<String>,
}

/// The shared file systems as they were last listed as a whole, for the time that they cannot be.
#[derive(Debug, Default)]
pub(super) struct LastShares(Mutex<Vec<Shown>>);

/// Where a listing goes on: at a cursor of the cloud's among the disks, or after an id among the shared file systems, of
/// which the cloud may send more than it is asked for.
enum At {
    Disks(Option<String>),
    Shares(String),
}

impl At {
    fn parse(token: &str) -> Result<Self, Error> {
        match (token.strip_prefix(DISKS), token.strip_prefix(SHARES)) {
            _ if token.is_empty() => Ok(Self::Disks(None)),
            (Some(cursor), _) if !cursor.is_empty() => Ok(Self::Disks(Some(cursor.to_owned()))),
            (_, Some(after)) => Ok(Self::Shares(after.to_owned())),
            _ => Err(Error::BadPage(token.to_owned())),
        }
    }

    fn token(&self) -> String {
        match self {
            Self::Disks(cursor) => format!("{DISKS}{}", cursor.as_deref().unwrap_or_default()),
            Self::Shares(after) => format!("{SHARES}{after}"),
        }
    }
}

impl Controller {
    /// The volumes from `starting_token` on, at most `max_entries` (0: all there are).
    ///
    /// # Errors
    /// [`Error::BadPage`] for a token that is not ours or that the cloud no longer knows.
    pub async fn list(&self, starting_token: &str, max_entries: u32) -> Result<VolumeList, Error> {
        let most = most(max_entries);
        let mut at = At::parse(starting_token)?;
        let mut volumes = Vec::new();
        while let At::Disks(cursor) = &at {
            let page = self.inner.page::<Volume>(cursor.as_deref(), most - volumes.len(), starting_token).await?;
            volumes.extend(page.items.into_iter().map(Shown::from));
            at = match page.next {
                Some(next) if Some(&next) != cursor.as_ref() => At::Disks(Some(next)),
                _ if self.inner.cloud.shares().is_some() => At::Shares(String::new()),
                _ => return Ok(self.shown(volumes, None)),
            };
            if volumes.len() >= most && matches!(at, At::Disks(_)) {
                return Ok(self.shown(volumes, Some(at.token())));
            }
        }
        let At::Shares(after) = at else { return Ok(self.shown(volumes, None)) };
        let mut shares = self.inner.shares_of_late().await;
        shares.retain(|share| share.id.as_str() > after.as_str());
        let room = most - volumes.len();
        let more = shares.len() > room;
        shares.truncate(room);
        let after = shares.last().map_or(after, |last| last.id.to_string());
        volumes.extend(shares);
        Ok(self.shown(volumes, more.then(|| At::Shares(after).token())))
    }

    /// How a volume stands, by a read that begins now.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the cloud has no such volume.
    pub async fn get(&self, id: &VolumeId) -> Result<Shown, Error> {
        let shown = match self.inner.which(id).await? {
            Which::Disk => Shown::from(self.inner.read(id).await?),
            Which::Share => {
                let nodes = self.inner.attachments(id).await?;
                Shown { nodes, ..Shown::from(self.inner.read_share(id).await?) }
            }
            Which::Gone => return Err(Error::VolumeNotFound(id.to_string())),
        };
        let trouble = self.inner.progress.stuck_of(id).map(|stuck| stuck.to_string());
        Ok(Shown { trouble, ..shown })
    }

    /// The same with its type, which a shared listing does not tell.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the cloud has no such volume.
    pub async fn get_whole(&self, id: &VolumeId) -> Result<Shown, Error> {
        match self.inner.which(id).await? {
            Which::Disk => {
                let volume = self.inner.cloud.volume(id).await.map_err(|cause| super::unread(id, cause))?;
                Ok(Shown::from(volume))
            }
            Which::Share => Ok(Shown::from(self.inner.read_share(id).await?)),
            Which::Gone => Err(Error::VolumeNotFound(id.to_string())),
        }
    }

    /// Whether a volume is a file system that many instances share.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the cloud has no such volume.
    pub async fn is_shared(&self, id: &VolumeId) -> Result<bool, Error> {
        match self.inner.which(id).await? {
            Which::Gone => Err(Error::VolumeNotFound(id.to_string())),
            which => Ok(which == Which::Share),
        }
    }

    fn shown(&self, mut volumes: Vec<Shown>, next_token: Option<String>) -> VolumeList {
        for stuck in self.inner.progress.stuck() {
            if let Some(volume) = volumes.iter_mut().find(|volume| volume.id == stuck.volume) {
                volume.trouble = Some(stuck.to_string());
            }
        }
        VolumeList { volumes, next_token }
    }
}

impl Inner {
    /// One page of a kind, of `room` rows at most, on behalf of whoever came with this token.
    pub(super) async fn page<T: Kind>(&self, cursor: Option<&str>, room: usize, token: &str) -> Result<Page<T>, Error> {
        let cloud: &dyn Cloud = &*self.cloud;
        let size = u32::try_from(room).unwrap_or(u32::MAX).min(cloud.profile().page_size);
        T::page(cloud, cursor, size).await.map_err(|cause| match (cause, cursor) {
            (CloudError::Refused { .. } | CloudError::NotFound(_), Some(_)) => Error::BadPage(token.to_owned()),
            (cause, _) => Error::Cloud { doing: format!("listing every {}", T::WORD), cause },
        })
    }

    /// The shared file systems and where they are, by id; as they were last seen where they cannot be listed: the disks
    /// are known, and whoever asks for all volumes must get them.
    async fn shares_of_late(&self) -> Vec<Shown> {
        let late = |_| Err(CloudError::Unknown("there was no answer in time".to_owned()));
        match timeout(SHARES_WITHIN, self.shares.watcher.list_whole()).await.unwrap_or_else(late) {
            Ok(shares) => {
                let mut shares: Vec<Shown> = shares.into_iter().map(Shown::from).collect();
                shares.sort_by(|a, b| a.id.cmp(&b.id));
                let shares = join_all(shares.into_iter().map(|share| self.with_nodes(share))).await;
                self.last_shares.note(&shares);
                shares
            }
            Err(error) => {
                let last = self.last_shares.told(&error);
                warn!(%error, count = last.len(), "shared file systems are listed as last seen");
                last
            }
        }
    }

    /// The same with where it is.
    async fn with_nodes(&self, mut shown: Shown) -> Shown {
        let late = |_| Err(Error::NotYet("there was no answer in time".to_owned()));
        match timeout(SHARES_WITHIN, self.attachments_of_late(&shown.id)).await.unwrap_or_else(late) {
            Ok(nodes) => shown.nodes = nodes,
            Err(Error::VolumeNotFound(_)) => {}
            Err(error) => {
                let trouble = format!("it is not known where it is attached: {}", error.chain());
                shown.trouble.get_or_insert(trouble);
            }
        }
        shown
    }
}

/// How many entries a page has at most, where 0 asks for all.
pub(super) fn most(max_entries: u32) -> usize {
    if max_entries == 0 { usize::MAX } else { max_entries as usize }
}

impl LastShares {
    fn note(&self, shares: &[Shown]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shares.to_vec();
    }

    fn told(&self, trouble: &CloudError) -> Vec<Shown> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = |shown: &Shown| Shown { trouble: Some(format!("as last seen: {trouble}")), ..shown.clone() };
        last.iter().map(stale).collect()
    }
}
