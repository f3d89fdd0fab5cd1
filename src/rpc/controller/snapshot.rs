//! Snapshots: taken, deleted, listed and looked at.

use super::{ControllerService, entries};
use crate::{
    cloud::SnapshotState,
    controller::{Restorable, SnapshotList},
    csi,
    error::Error,
    rpc::{printable, unserved, validate},
    volume::{SnapshotId, VolumeId},
};

impl ControllerService {
    pub(super) async fn create_snapshot(
        self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::CreateSnapshotResponse, Error> {
        self.serves_snapshots("CreateSnapshot")?;
        let name = validate::name(&request.name)?;
        if request.source_volume_id.is_empty() {
            return Err(Error::invalid("source_volume_id", "is missing"));
        }
        // What the snapshotter adds is nothing to us; of our own there is none.
        if let Some(key) = request.parameters.keys().filter(|key| !key.starts_with("csi.storage.k8s.io/")).min() {
            return Err(Error::invalid(
                format!("parameter {key}"),
                "is not known; a VolumeSnapshotClass has none here",
            ));
        }
        let source = VolumeId::parse(self.profile.id_form, &request.source_volume_id)
            .ok_or_else(|| Error::VolumeNotFound(printable(&request.source_volume_id)))?;
        let regions = validate::regions(self.profile, request.accessibility_requirements.as_ref())?;
        let snapshot = self.controller.create_snapshot(name, source, regions).await?;
        Ok(csi::CreateSnapshotResponse { snapshot: Some(self.snapshot(&snapshot)) })
    }

    pub(super) async fn delete_snapshot(
        self,
        request: csi::DeleteSnapshotRequest,
    ) -> Result<csi::DeleteSnapshotResponse, Error> {
        self.serves_snapshots("DeleteSnapshot")?;
        if request.snapshot_id.is_empty() {
            return Err(Error::invalid("snapshot_id", "is missing"));
        }
        // An id of another form names nothing, which is gone.
        if let Some(id) = SnapshotId::parse(self.profile.id_form, &request.snapshot_id) {
            self.controller.delete_snapshot(id).await?;
        }
        Ok(csi::DeleteSnapshotResponse {})
    }

    pub(super) async fn list_snapshots(
        self,
        request: csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse, Error> {
        self.serves_snapshots("ListSnapshots")?;
        let most = entries(request.max_entries)?;
        let form = self.profile.id_form;
        let source = VolumeId::parse(form, &request.source_volume_id);
        let list = match (request.snapshot_id.as_str(), request.source_volume_id.as_str()) {
            ("", "") => self.controller.list_snapshots(&request.starting_token, most).await?,
            ("", _) => match &source {
                Some(source) => self.controller.list_snapshots_of(source, &request.starting_token, most).await?,
                None => none(),
            },
            (id, of) => self.one_or_none(id, of).await?,
        };
        let entry = |one| csi::list_snapshots_response::Entry { snapshot: Some(self.snapshot(one)) };
        let entries = list.snapshots.iter().map(entry).collect();
        Ok(csi::ListSnapshotsResponse { entries, next_token: list.next_token.unwrap_or_default() })
    }

    /// The snapshot of this id, if there is one and it is of the volume named, if one is.
    async fn one_or_none(&self, id: &str, source: &str) -> Result<SnapshotList, Error> {
        let Some(id) = SnapshotId::parse(self.profile.id_form, id) else { return Ok(none()) };
        match self.controller.get_snapshot(id).await {
            Ok(found)
                if source.is_empty() || found.snapshot.source.as_ref().is_some_and(|of| of.as_str() == source) =>
            {
                Ok(SnapshotList { snapshots: vec![found], next_token: None })
            }
            Ok(_) | Err(Error::SnapshotNotFound(_)) => Ok(none()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn get_snapshot(
        self,
        request: csi::GetSnapshotRequest,
    ) -> Result<csi::GetSnapshotResponse, Error> {
        self.serves_snapshots("GetSnapshot")?;
        if request.snapshot_id.is_empty() {
            return Err(Error::invalid("snapshot_id", "is missing"));
        }
        let id = SnapshotId::parse(self.profile.id_form, &request.snapshot_id)
            .ok_or_else(|| Error::SnapshotNotFound(printable(&request.snapshot_id)))?;
        let snapshot = self.controller.get_snapshot(id).await?;
        Ok(csi::GetSnapshotResponse { snapshot: Some(self.snapshot(&snapshot)) })
    }

    fn snapshot(&self, shown: &Restorable) -> csi::Snapshot {
        let Restorable { snapshot, region } = shown;
        csi::Snapshot {
            size_bytes: i64::try_from(snapshot.size_bytes).unwrap_or(i64::MAX),
            snapshot_id: snapshot.id.to_string(),
            source_volume_id: snapshot.source.as_ref().map(ToString::to_string).unwrap_or_default(),
            creation_time: snapshot.created.parse().ok(),
            ready_to_use: snapshot.state == SnapshotState::Complete,
            group_snapshot_id: String::new(),
            accessible_topology: region.iter().map(|region| self.topology(region)).collect(),
        }
    }

    fn serves_snapshots(&self, rpc: &'static str) -> Result<(), Error> {
        if self.controller.has_snapshots() { Ok(()) } else { Err(unserved(rpc)) }
    }
}

fn none() -> SnapshotList {
    SnapshotList { snapshots: Vec::new(), next_token: None }
}
