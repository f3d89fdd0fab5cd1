//! GetCapacity: a cloud does not run out as a disk array does, but not every region has every kind of volume.

use super::ControllerService;
use crate::{csi, error::Error, rpc::validate};

impl ControllerService {
    pub(super) async fn capacity(self, request: csi::GetCapacityRequest) -> Result<csi::GetCapacityResponse, Error> {
        let mut parameters = validate::map("parameters", request.parameters)?;
        let (kind, _) = self.wanted(&mut parameters, &request.volume_capabilities)?;
        let region = match &request.accessible_topology {
            None => None,
            Some(topology) => Some(validate::region("accessible_topology", self.profile, topology)?),
        };
        let most = self.controller.capacity(kind, region.as_deref()).await?;
        let bytes = |size: crate::volume::Gib| i64::try_from(size.bytes()).unwrap_or(i64::MAX);
        let is_offered = most.0 > 0;
        Ok(csi::GetCapacityResponse {
            available_capacity: bytes(most),
            maximum_volume_size: is_offered.then(|| bytes(kind.max)),
            minimum_volume_size: is_offered.then(|| bytes(kind.min)),
        })
    }
}
