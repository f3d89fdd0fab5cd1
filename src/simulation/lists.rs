//! What the controller lists, held against what the account has.

use std::collections::{BTreeMap, BTreeSet};

use tonic::{Code, Request, Status};

use super::story::Story;
use crate::{
    csi::{
        ControllerGetVolumeRequest, GetSnapshotRequest, ListSnapshotsRequest, ListVolumesRequest,
        controller_server::Controller,
    },
    rpc::ControllerService,
};

/// Pages of this many entries are asked for; 0: all at once.
const PAGES: [i32; 3] = [0, 1, 2];

/// The instances of each volume.
type Volumes = BTreeMap<String, BTreeSet<String>>;
/// Whether each snapshot is ready.
type Snapshots = BTreeMap<String, bool>;

/// What there is, as whoever lists it has to see it.
pub(super) struct There {
    volumes: Volumes,
    snapshots: Snapshots,
}

impl There {
    pub(super) fn of(story: &Story) -> Self {
        let volumes = story.volumes.keys().filter_map(|id| Some((id.clone(), story.now(id)?.on.clone()))).collect();
        let shown = story.snapshots.0.iter().filter(|(_, one)| one.gone.is_none() && !one.is_temporary());
        Self { volumes, snapshots: shown.map(|(id, one)| (id.clone(), one.complete.is_some())).collect() }
    }

    /// How many entries there are, each of which is asked for some times.
    pub(super) fn len(&self) -> usize {
        self.volumes.len() + self.snapshots.len()
    }

    /// Finds what is wrong with the lists of a controller while nothing changes.
    pub(super) async fn is_listed(&self, service: &ControllerService) -> Result<(), String> {
        for page in PAGES {
            let listed = volumes(service, page).await.map_err(|status| format!("ListVolumes says {status}"))?;
            if listed != self.volumes {
                return Err(format!("volumes are listed as {listed:?}, by {page} a page, but are {:?}", self.volumes));
            }
            let listed = snapshots(service, page).await.map_err(|status| format!("ListSnapshots says {status}"))?;
            if listed != self.snapshots {
                let there = &self.snapshots;
                return Err(format!("snapshots are listed as {listed:?}, by {page} a page, but are {there:?}"));
            }
        }
        for (id, on) in &self.volumes {
            let request = ControllerGetVolumeRequest { volume_id: id.clone() };
            let got = service.controller_get_volume(Request::new(request)).await;
            let got = got.map_err(|status| format!("ControllerGetVolume says {status}"))?.into_inner();
            let nodes: BTreeSet<String> = got.status.expect("a status").published_node_ids.into_iter().collect();
            if nodes != *on {
                return Err(format!("volume {id} is shown on {nodes:?}, but is on {on:?}"));
            }
        }
        for (id, ready) in &self.snapshots {
            let request = GetSnapshotRequest { snapshot_id: id.clone(), ..GetSnapshotRequest::default() };
            let got = service.get_snapshot(Request::new(request)).await;
            let got = got.map_err(|status| format!("GetSnapshot says {status}"))?.into_inner();
            if got.snapshot.expect("a snapshot").ready_to_use != *ready {
                return Err(format!("snapshot {id} is shown ready or not as it is not"));
            }
        }
        let nothing = "ffffffff-0000-4000-8000-000000000000".to_owned();
        let request = ControllerGetVolumeRequest { volume_id: nothing };
        match service.controller_get_volume(Request::new(request)).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            other => Err(format!("a volume that there is not is shown as {other:?}")),
        }
    }
}

async fn volumes(service: &ControllerService, page: i32) -> Result<Volumes, Status> {
    let (mut listed, mut token) = (Volumes::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries: page, starting_token: token };
        let answer = service.list_volumes(Request::new(request)).await?.into_inner();
        if page > 0 && answer.entries.len() > usize::try_from(page).unwrap_or_default() {
            return Err(Status::internal("a page has too many entries"));
        }
        for entry in answer.entries {
            let nodes = entry.status.expect("a status").published_node_ids.into_iter().collect();
            listed.insert(entry.volume.expect("a volume").volume_id, nodes);
        }
        if answer.next_token.is_empty() {
            return Ok(listed);
        }
        token = answer.next_token;
    }
}

async fn snapshots(service: &ControllerService, page: i32) -> Result<Snapshots, Status> {
    let (mut listed, mut token) = (Snapshots::new(), String::new());
    loop {
        let request =
            ListSnapshotsRequest { max_entries: page, starting_token: token, ..ListSnapshotsRequest::default() };
        let answer = service.list_snapshots(Request::new(request)).await?.into_inner();
        for entry in answer.entries {
            let snapshot = entry.snapshot.expect("a snapshot");
            listed.insert(snapshot.snapshot_id, snapshot.ready_to_use);
        }
        if answer.next_token.is_empty() {
            return Ok(listed);
        }
        token = answer.next_token;
    }
}
