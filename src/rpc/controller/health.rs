//! The health of volumes, as the controller can know it (CSI 1.13).

use super::{ControllerService, entries};
use crate::{
    controller::Ailment,
    csi::{self, VolumeHealth, VolumeHealthErrorType, volume_health::VolumeHealthEntry},
    error::Error,
    rpc::validate,
    volume::VolumeId,
};

impl ControllerService {
    pub(super) async fn get_health(
        self,
        request: csi::ControllerGetVolumeHealthRequest,
    ) -> Result<csi::ControllerGetVolumeHealthResponse, Error> {
        let id = validate::volume_id(self.profile, &request.volume_id)?;
        let ailments = self.controller.get(&id).await?.ailments();
        Ok(csi::ControllerGetVolumeHealthResponse { volume_health: Some(health(&id, &ailments)) })
    }

    pub(super) async fn list_health(
        self,
        request: csi::ControllerListVolumeHealthRequest,
    ) -> Result<csi::ControllerListVolumeHealthResponse, Error> {
        let most = entries(request.max_entries)?;
        let (ailing, next_token) = self.controller.list_ailing(&request.starting_token, most).await?;
        Ok(csi::ControllerListVolumeHealthResponse {
            entries: ailing.iter().map(|(id, ailments)| health(id, ailments)).collect(),
            next_token: next_token.unwrap_or_default(),
        })
    }
}

fn health(id: &VolumeId, ailments: &[Ailment]) -> VolumeHealth {
    let entry = |ailment: &Ailment| VolumeHealthEntry {
        status: VolumeHealthErrorType::Degraded.into(),
        reason: match ailment {
            Ailment::State(_) => "CloudState",
            Ailment::Trouble(_) => "NoProgress",
        }
        .to_owned(),
        message: ailment.to_string(),
    };
    VolumeHealth { volume_id: id.to_string(), health_statuses: ailments.iter().map(entry).collect() }
}
