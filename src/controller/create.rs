//! CreateVolume: one CSI name is one volume.
//!
//! ```text
//!   find the name ──found──► verify by a read ──agrees──► wait until active ──► done
//!        │                        │ gone: forget it, find again
//!        │ none                   └ differs: ALREADY_EXISTS
//!        ▼
//!   POST ──answered──► wait until active
//!        └─unknown──► list the account again, and only then decide
//! ```
//! Nothing is ever deleted here. While it is not known whether a volume was made, every error is one that the
//! provisioner repeats the call on, so that a volume which does exist is never given up.

use std::{
    collections::HashMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Inner, Pauses, SETTLING, SETTLING_SLOW, settling, size_for};
use crate::{
    cloud::{CloudError, NewVolume, Region, Volume, VolumeState, VolumeType, watch::Awaited},
    error::Error,
    volume::Gib,
};

/// What regions offer changes rarely.
const REGIONS_KEPT: Duration = Duration::from_secs(600);

/// A volume wanted under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Create {
    /// The CSI name.
    pub name: String,
    /// The least size; 0 where the request names none.
    pub required_bytes: u64,
    /// The greatest size; 0 where the request names none.
    pub limit_bytes: u64,
    /// The kind.
    pub volume_type: &'static VolumeType,
    /// The regions allowed, in lower case, best first; empty where the request does not care.
    pub regions: Vec<String>,
}

impl Inner {
    pub(super) async fn create(&self, wanted: Create) -> Result<Volume, Error> {
        let size = size_for(wanted.volume_type, wanted.required_bytes, wanted.limit_bytes)?;
        let mut pauses = Pauses::new();
        let mut known_since = self.begun;
        let settled = self.begun + SETTLING;
        if let Some(proven) = self.unanswered().get(&wanted.name).copied() {
            known_since = known_since.max(proven);
        }
        tokio::time::sleep_until(known_since).await;
        loop {
            let mut found = self.find(&wanted, known_since).await?;
            if found.is_none() && known_since < settled {
                tokio::time::sleep_until(settled).await;
                known_since = settled;
                found = self.find(&wanted, known_since).await?;
            }
            if let Some(volume) = found {
                self.unanswered().remove(&wanted.name);
                agree(&volume, &wanted, size)?;
                return self.once_active(volume, Instant::now()).await;
            }
            let region = self.region_for(&wanted).await?;
            let new = NewVolume { name: wanted.name.clone(), size, volume_type: wanted.volume_type, region };
            let asked = Instant::now();
            self.unanswered().insert(new.name.clone(), asked + SETTLING_SLOW);
            let answer = self.cloud.create_volume(&new).await;
            if !answer.as_ref().is_err_and(CloudError::outcome_is_unknown) {
                self.unanswered().remove(&new.name);
            }
            match answer {
                Ok(volume) => {
                    self.names.insert(&volume);
                    info!(volume = %volume.id, name = new.name, size = %new.size, "created");
                    return self.once_active(volume, asked).await;
                }
                Err(cause) if cause.outcome_is_unknown() => {
                    warn!(name = new.name, error = %cause, "not known whether the volume was made");
                    known_since = Instant::now() + settling(asked.elapsed());
                    self.unanswered().insert(new.name.clone(), known_since);
                    tokio::time::sleep_until(known_since).await;
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("creating volume {}", new.name), cause });
                    }
                }
                Err(CloudError::Busy(text)) => {
                    let cause = CloudError::Busy(text);
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: format!("creating volume {}", new.name), cause });
                    }
                }
                Err(CloudError::Exhausted(text)) => {
                    return Err(Error::Exhausted(format!(
                        "no {} volume of {} can be had in region {}: {text}",
                        new.volume_type, new.size, new.region
                    )));
                }
                Err(cause) => {
                    return Err(Error::Cloud {
                        doing: format!("creating a {} volume of {} in {}", new.volume_type, new.size, new.region),
                        cause,
                    });
                }
            }
        }
    }

    /// The volume of this name, by a listing not older than `since` and a read of the volume itself.
    async fn find(&self, wanted: &Create, since: Instant) -> Result<Option<Volume>, Error> {
        let unknown = |cause| Error::OutcomeUnknown { subject: format!("looking for volume {}", wanted.name), cause };
        let ids = self.names.find(&self.watcher, &wanted.name, since).await.map_err(unknown)?;
        let mut found: Option<Volume> = None;
        for id in ids {
            match self.cloud.volume(&id).await {
                Ok(volume) if volume.name != wanted.name || volume.bootable => {}
                Ok(volume) => {
                    if let Some(oldest) = &found {
                        warn!(name = wanted.name, kept = %oldest.id, other = %volume.id,
                            "two volumes have one name: the oldest is used, the other is left alone and costs money");
                    } else {
                        found = Some(volume);
                    }
                }
                Err(CloudError::NotFound(_)) => self.names.remove(&id),
                Err(cause) => return Err(unknown(cause)),
            }
        }
        Ok(found)
    }

    fn unanswered(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn once_active(&self, volume: Volume, since: Instant) -> Result<Volume, Error> {
        if volume.state == VolumeState::Active {
            return Ok(volume);
        }
        let kind = volume.volume_type;
        let mut active = self
            .watcher
            .until(&volume.id, Awaited::Created, since, |seen| {
                (seen.state == VolumeState::Active).then(|| seen.clone())
            })
            .await
            .map_err(|error| match error {
                // The cloud has just told of it: NOT_FOUND would be final, and the volume given up.
                Error::VolumeNotFound(id) => Error::NotYet(format!("volume {id} was made, but is not shown yet")),
                error => error,
            })?;
        // Rows of a listing do not tell the type.
        active.volume_type = active.volume_type.or(kind);
        Ok(active)
    }

    /// The first region allowed that has the tier.
    async fn region_for(&self, wanted: &Create) -> Result<String, Error> {
        let allowed = if wanted.regions.is_empty() { vec![self.home.get().await?] } else { wanted.regions.clone() };
        let regions = self.regions().await?;
        let has = |id: &String| regions.iter().any(|r| r.id == *id && r.volume_types.contains(&wanted.volume_type));
        allowed.iter().find(|id| has(id)).cloned().ok_or_else(|| {
            Error::Exhausted(format!(
                "no region that the request allows ({}) offers {} volumes",
                allowed.join(", "),
                wanted.volume_type
            ))
        })
    }

    async fn regions(&self) -> Result<Arc<Vec<Region>>, Error> {
        let mut kept = self.regions.lock().await;
        if let Some((asked, regions)) = kept.as_ref()
            && asked.elapsed() < REGIONS_KEPT
        {
            return Ok(Arc::clone(regions));
        }
        let asked = Instant::now();
        let regions = self
            .cloud
            .regions()
            .await
            .map_err(|cause| Error::Cloud { doing: "listing the regions".to_owned(), cause })?;
        let regions = Arc::new(regions);
        *kept = Some((asked, Arc::clone(&regions)));
        Ok(regions)
    }
}

/// Whether a volume that has the name is the one wanted.
fn agree(volume: &Volume, wanted: &Create, size: Gib) -> Result<(), Error> {
    let differs = |difference: String| {
        Err(Error::Differs { subject: format!("a volume named {} ({})", wanted.name, volume.id), difference })
    };
    let fits = if wanted.limit_bytes == 0 {
        volume.size == size
    } else {
        volume.size >= size && volume.size.bytes() <= wanted.limit_bytes
    };
    if !fits {
        return differs(format!("it has {}, {size} is asked for", volume.size));
    }
    if volume.volume_type != Some(wanted.volume_type) {
        let kind = volume.volume_type.map_or("of an unknown kind", |kind| kind.name);
        return differs(format!("it is {kind}, {} is asked for", wanted.volume_type));
    }
    if !wanted.regions.is_empty() && !wanted.regions.contains(&volume.region) {
        return differs(format!("it is in {}, {} is asked for", volume.region, wanted.regions.join(" or ")));
    }
    Ok(())
}
