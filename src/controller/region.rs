//! Where volumes may go, and what there is to be had there.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, OnceCell},
    time::Instant,
};

use super::{Create, Inner};
use crate::{
    cloud::{Cloud, CloudError, Profile, Region, VolumeType},
    error::Error,
    volume::Gib,
};

/// What regions offer changes rarely.
const KEPT: Duration = Duration::from_secs(600);
/// For how long that they could not be had is told without asking again.
const FAILURE_KEPT: Duration = Duration::from_secs(5);

/// Where volumes go that come without a requirement: `--region`, else the region of the machine the controller runs on.
#[derive(Debug)]
pub struct HomeRegion {
    given: Option<String>,
    profile: &'static Profile,
    metadata_url: String,
    found: OnceCell<String>,
}

impl HomeRegion {
    /// The region given, or else the one that the metadata service at `metadata_url` tells when it is first needed.
    pub fn new(given: Option<String>, profile: &'static Profile, metadata_url: String) -> Self {
        Self { given, profile, metadata_url, found: OnceCell::new() }
    }

    async fn get(&self) -> Result<String, Error> {
        if let Some(given) = &self.given {
            return Ok(given.to_ascii_lowercase());
        }
        let ask = async {
            let identity = (self.profile.identity)(&self.metadata_url).await?;
            Ok(identity.region.to_ascii_lowercase())
        };
        self.found.get_or_try_init(|| ask).await.cloned().map_err(|error: Error| {
            Error::Precondition(format!(
                "the request names no region and the controller's own is not known ({error}); set --region or use a \
                 StorageClass with volumeBindingMode WaitForFirstConsumer"
            ))
        })
    }
}

/// What the regions offer, as last heard: of disks and of shared file systems each, so that an outage of the one part of
/// an API does not touch the other.
#[derive(Default)]
pub(super) struct Offers {
    disks: Mutex<Heard>,
    shares: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    regions: Option<(Instant, Arc<Vec<Region>>)>,
    failure: Option<(Instant, CloudError)>,
}

impl Offers {
    async fn of(&self, cloud: &dyn Cloud, kind: &VolumeType) -> Result<Arc<Vec<Region>>, CloudError> {
        let mut heard = if kind.shared { self.shares.lock().await } else { self.disks.lock().await };
        if let Some((asked, regions)) = &heard.regions
            && asked.elapsed() < KEPT
        {
            return Ok(Arc::clone(regions));
        }
        let asked = Instant::now();
        let answer = match &heard.failure {
            // Those who have waited for the same answer do not each ask for it again.
            Some((when, error)) if when.elapsed() < FAILURE_KEPT => Err(error.clone()),
            _ => match (kind.shared, cloud.shares()) {
                (false, _) => cloud.regions().await,
                (true, Some(shares)) => shares.share_regions().await,
                (true, None) => Ok(Vec::new()),
            },
        };
        match (answer, &heard.regions) {
            (Ok(regions), _) => {
                let regions = Arc::new(regions);
                *heard = Heard { regions: Some((asked, Arc::clone(&regions))), failure: None };
                Ok(regions)
            }
            (Err(error), known) => {
                let old = known.as_ref().map(|(_, regions)| Arc::clone(regions));
                if heard.failure.as_ref().is_none_or(|(when, _)| when.elapsed() >= FAILURE_KEPT) {
                    heard.failure = Some((Instant::now(), error.clone()));
                }
                // What was on offer a while ago is so still, most probably; if not, the cloud refuses.
                old.ok_or(error)
            }
        }
    }
}

impl Inner {
    /// The first region allowed that has the tier.
    pub(super) async fn region_for(&self, wanted: &Create) -> Result<String, Error> {
        let allowed = if wanted.regions.is_empty() { vec![self.home.get().await?] } else { wanted.regions.clone() };
        let kind = wanted.volume_type;
        let offering = self.offering(kind).await?;
        allowed.iter().find(|id| offering.contains(id)).cloned().ok_or_else(|| {
            let allowed = allowed.join(", ");
            Error::Exhausted(format!("no region that the request allows ({allowed}) offers {kind} volumes"))
        })
    }

    /// The one region that what the volume is made of is in, if the request allows it and it has the tier.
    pub(super) async fn region_with(&self, wanted: &Create, region: &str) -> Result<String, Error> {
        if !wanted.regions.is_empty() && !wanted.regions.iter().any(|allowed| allowed == region) {
            return Err(Error::Exhausted(format!(
                "the source is in region {region}, and the request allows {} only; a volume can be made from it in its \
                 own region",
                wanted.regions.join(", ")
            )));
        }
        let kind = wanted.volume_type;
        if !self.offering(kind).await?.iter().any(|id| id == region) {
            return Err(Error::Exhausted(format!("region {region}, where the source is, offers no {kind} volumes")));
        }
        Ok(region.to_owned())
    }

    /// The largest volume of a kind that can be made in a region, or in any; nothing where the kind is not on offer.
    pub(super) async fn capacity(&self, kind: &VolumeType, region: Option<&str>) -> Result<Gib, Error> {
        let offering = self.offering(kind).await?;
        let offered = match region {
            Some(region) => offering.iter().any(|id| id == region),
            None => !offering.is_empty(),
        };
        Ok(if offered { kind.max } else { Gib(0) })
    }

    /// The regions that have the kind.
    async fn offering(&self, kind: &VolumeType) -> Result<Vec<String>, Error> {
        let regions = self.offers.of(&*self.cloud, kind).await;
        let regions = regions.map_err(|cause| Error::Cloud { doing: "listing the regions".to_owned(), cause })?;
        Ok(regions
            .iter()
            .filter(|region| region.volume_types.contains(&kind))
            .map(|region| region.id.clone())
            .collect())
    }
}
