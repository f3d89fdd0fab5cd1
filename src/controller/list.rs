//! ListVolumes, ControllerGetVolume: the account's volumes as they stand, page by page as the cloud has them: first the
//! disks, then the shared file systems.

use std::sync::{Mutex, PoisonError};

use tracing::warn;

use super::{Controller, Inner, Which};
use crate::{
    cloud::{Cloud, CloudError, Page, Share, Volume, VolumeState, VolumeType, kind::Kind},
    error::Error,
    volume::{Gib, NodeId, VolumeId},
};

/// What our page tokens begin with, before the cloud's own cursor.
const DISKS: &str = "page:";
/// The same among the shared file systems; there the first page may have no cursor.
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

/// Where a listing goes on.
enum At {
    Disks(Option<String>),
    Shares(Option<String>),
}

impl At {
    fn parse(token: &str) -> Result<Self, Error> {
        let cursor = |cursor: &str| Some(cursor.to_owned()).filter(|cursor| !cursor.is_empty());
        match (token.strip_prefix(DISKS), token.strip_prefix(SHARES)) {
            _ if token.is_empty() => Ok(Self::Disks(None)),
            (Some(at), _) if !at.is_empty() => Ok(Self::Disks(cursor(at))),
            (_, Some(at)) => Ok(Self::Shares(cursor(at))),
            _ => Err(Error::BadPage(token.to_owned())),
        }
    }

    fn token(&self) -> String {
        match self {
            Self::Disks(cursor) => format!("{DISKS}{}", cursor.as_deref().unwrap_or_default()),
            Self::Shares(cursor) => format!("{SHARES}{}", cursor.as_deref().unwrap_or_default()),
        }
    }
}

impl Controller {
    /// The volumes from `starting_token` on, at most `max_entries` (0: all there are).
    ///
    /// # Errors
    /// [`Error::BadPage`] for a token that is not ours or that the cloud no longer knows.
    pub async fn list(&self, starting_token: &str, max_entries: u32) -> Result<VolumeList, Error> {
        let most = if max_entries == 0 { usize::MAX } else { max_entries as usize };
        let mut at = At::parse(starting_token)?;
        let mut volumes = Vec::new();
        while let At::Disks(cursor) = &at {
            let page = self.inner.page::<Volume>(cursor.as_deref(), most - volumes.len(), starting_token).await?;
            volumes.extend(page.items.into_iter().map(Shown::from));
            at = match page.next {
                Some(next) if Some(&next) != cursor.as_ref() => At::Disks(Some(next)),
                _ if self.inner.cloud.shares().is_some() => At::Shares(None),
                _ => return Ok(self.shown(volumes, None)),
            };
            if volumes.len() >= most {
                // That nothing is left is better found out now than by another call.
                if let At::Shares(None) = at
                    && self.inner.has_no_share().await
                {
                    return Ok(self.shown(volumes, None));
                }
                return Ok(self.shown(volumes, Some(at.token())));
            }
        }
        let At::Shares(mut cursor) = at else { return Ok(self.shown(volumes, None)) };
        loop {
            let room = most - volumes.len();
            let page = match self.inner.page::<Share>(cursor.as_deref(), room, starting_token).await {
                Ok(page) => page,
                Err(error @ Error::BadPage(_)) => return Err(error),
                // The disks are known, and whoever asks for all of them must get them.
                Err(error) if cursor.is_none() => {
                    let last = self.inner.last_shares.told(&error.chain());
                    // There is no page after this one.
                    if last.len() > room {
                        return Err(error);
                    }
                    warn!(error = error.chain(), count = last.len(), "shared file systems are listed as last seen");
                    volumes.extend(last);
                    return Ok(self.shown(volumes, None));
                }
                Err(error) => return Err(error),
            };
            let whole = cursor.is_none() && page.next.is_none();
            let mut shares = Vec::new();
            for share in page.items {
                shares.push(self.inner.share_shown(share).await);
            }
            if whole {
                self.inner.last_shares.note(&shares);
            }
            volumes.extend(shares);
            match page.next {
                Some(next) if Some(&next) != cursor.as_ref() => cursor = Some(next),
                _ => return Ok(self.shown(volumes, None)),
            }
            if volumes.len() >= most {
                return Ok(self.shown(volumes, Some(At::Shares(cursor).token())));
            }
        }
    }

    /// How a volume stands, by a read that begins now.
    ///
    /// # Errors
    /// [`Error::VolumeNotFound`] if the cloud has no such volume.
    pub async fn get(&self, id: &VolumeId) -> Result<Shown, Error> {
        match self.inner.which(id).await? {
            Which::Disk => {
                let trouble = self.inner.progress.stuck_of(id).map(|stuck| stuck.to_string());
                Ok(Shown { trouble, ..Shown::from(self.inner.read(id).await?) })
            }
            Which::Share => {
                let nodes = self.inner.attachments(id).await?;
                Ok(Shown { nodes, ..Shown::from(self.inner.read_share(id).await?) })
            }
            Which::Gone => Err(Error::VolumeNotFound(id.to_string())),
        }
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
    async fn page<T: Kind>(&self, cursor: Option<&str>, room: usize, token: &str) -> Result<Page<T>, Error> {
        let cloud: &dyn Cloud = &*self.cloud;
        let size = u32::try_from(room).unwrap_or(u32::MAX).min(cloud.profile().page_size);
        T::page(cloud, cursor, size).await.map_err(|cause| match (cause, cursor) {
            (CloudError::Refused { .. } | CloudError::NotFound(_), Some(_)) => Error::BadPage(token.to_owned()),
            (cause, _) => Error::Cloud { doing: format!("listing every {}", T::WORD), cause },
        })
    }

    /// Whether it is certain that the account has no shared file system.
    async fn has_no_share(&self) -> bool {
        self.page::<Share>(None, 1, "").await.is_ok_and(|page| page.items.is_empty() && page.next.is_none())
    }

    async fn share_shown(&self, share: Share) -> Shown {
        let mut shown = Shown::from(share);
        match self.attachments_of_late(&shown.id).await {
            Ok(nodes) => shown.nodes = nodes,
            Err(Error::VolumeNotFound(_)) => {}
            Err(error) => shown.trouble = Some(format!("it is not known where it is attached: {}", error.chain())),
        }
        shown
    }
}

impl LastShares {
    fn note(&self, shares: &[Shown]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shares.to_vec();
    }

    fn told(&self, trouble: &str) -> Vec<Shown> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = |shown: &Shown| Shown { trouble: Some(format!("as last seen: {trouble}")), ..shown.clone() };
        last.iter().map(stale).collect()
    }
}
