//! A cloud in memory, on tokio's clock: what the scenarios of the controller run against.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{Cluster, Controller, HomeRegion, Setting};
use crate::{
    cloud::{
        Change, Cloud, CloudError, InstanceState, NewVolume, Origin, Page, Profile, Region, Volume, VolumeState,
        vultr::PROFILE,
    },
    metrics::Metrics,
    volume::{Gib, IdForm, NodeId, VolumeId},
};

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It never had an effect, and nobody knows.
    LostBefore,
    /// It had its effect, and nobody knows.
    LostAfter,
    /// The instance is locked.
    Locked,
    /// The token was refused.
    Unauthorized,
    /// The cloud takes it and never carries it out.
    Forgotten,
}

#[derive(Default, Clone)]
struct State {
    volumes: BTreeMap<VolumeId, Volume>,
    /// When a volume becomes active, and on which instance it will be from when.
    active: HashMap<VolumeId, Instant>,
    moves: HashMap<VolumeId, (Instant, Option<NodeId>)>,
    locked: HashMap<NodeId, Instant>,
    requests: BTreeMap<&'static str, usize>,
    last: HashMap<&'static str, Instant>,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    made: u64,
    gone_instances: Vec<NodeId>,
}

/// The cloud.
#[derive(Clone)]
pub(super) struct Model {
    state: Arc<Mutex<State>>,
    pub(super) creating: Duration,
    pub(super) moving: Duration,
    pub(super) metrics: Metrics,
}

pub(super) fn node(number: u32) -> NodeId {
    NodeId::parse(IdForm::Uuid, &format!("{number:08x}-0000-4000-8000-000000000000")).unwrap()
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            state: Arc::default(),
            creating: Duration::from_secs(1),
            moving: Duration::from_secs(2),
            metrics: Metrics::default(),
        }
    }

    /// A controller process of this cloud.
    pub(super) fn controller(&self) -> Controller {
        let home = HomeRegion::new(Some("EWR".to_owned()), &PROFILE, String::new());
        let setting = Setting { home, cluster: Cluster::default(), metrics: self.metrics.clone() };
        Controller::new(Arc::new(self.clone()), setting, tokio_util::task::TaskTracker::new())
    }

    pub(super) fn fault(&self, operation: &'static str, fault: Fault) {
        self.state.lock().unwrap().faults.entry(operation).or_default().push_back(fault);
    }

    pub(super) fn requests(&self, operation: &str) -> usize {
        self.state.lock().unwrap().requests.get(operation).copied().unwrap_or_default()
    }

    /// When the last such request came.
    pub(super) fn last(&self, operation: &str) -> Option<Instant> {
        self.state.lock().unwrap().last.get(operation).copied()
    }

    pub(super) fn all_requests(&self) -> usize {
        self.state.lock().unwrap().requests.values().sum()
    }

    pub(super) fn forget_requests(&self) {
        self.state.lock().unwrap().requests.clear();
    }

    pub(super) fn volumes(&self) -> Vec<Volume> {
        let mut state = self.state.lock().unwrap();
        state.settle();
        state.volumes.values().cloned().collect()
    }

    pub(super) fn delete_instance(&self, node: NodeId) {
        self.state.lock().unwrap().gone_instances.push(node);
    }

    /// Changes a volume behind the driver's back.
    pub(super) fn meddle(&self, id: &VolumeId, change: impl FnOnce(&mut Volume)) {
        change(self.state.lock().unwrap().volumes.get_mut(id).unwrap());
    }

    pub(super) fn add(&self, name: &str, size: u64) -> VolumeId {
        self.state.lock().unwrap().make(name, Gib(size), PROFILE.volume_types[0], "ewr", VolumeState::Active)
    }

    /// Counts a request, lets it take its time, and says what goes wrong with it.
    async fn request(&self, operation: &'static str) -> Option<Fault> {
        tokio::time::sleep(Duration::from_millis(40)).await;
        let mut state = self.state.lock().unwrap();
        *state.requests.entry(operation).or_default() += 1;
        state.last.insert(operation, Instant::now());
        state.settle();
        state.faults.get_mut(operation).and_then(VecDeque::pop_front)
    }

    /// A request with an effect, and the fault around it.
    async fn change<T>(
        &self,
        operation: &'static str,
        effect: impl FnOnce(&mut State) -> Result<T, CloudError>,
    ) -> Result<T, CloudError> {
        let lost = || CloudError::Unknown("connection reset".to_owned());
        match self.request(operation).await {
            Some(Fault::LostBefore) => Err(lost()),
            Some(Fault::Locked) => Err(CloudError::Busy("Server is currently locked".to_owned())),
            Some(Fault::Unauthorized) => Err(CloudError::Unauthorized("Invalid API token.".to_owned())),
            // Carried out on a copy that nobody sees.
            Some(Fault::Forgotten) => {
                let mut dream = self.state.lock().unwrap().clone();
                effect(&mut dream)
            }
            Some(Fault::LostAfter) => effect(&mut self.state.lock().unwrap()).and(Err(lost())),
            None => effect(&mut self.state.lock().unwrap()),
        }
    }
}

impl State {
    fn settle(&mut self) {
        let now = Instant::now();
        for (id, _) in self.active.extract_if(|_, at| *at <= now) {
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.state = VolumeState::Active;
            }
        }
        for (id, (_, to)) in self.moves.extract_if(|_, (at, _)| *at <= now) {
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.attached_to = to;
            }
        }
    }

    fn make(
        &mut self,
        name: &str,
        size: Gib,
        kind: &'static crate::cloud::VolumeType,
        region: &str,
        state: VolumeState,
    ) -> VolumeId {
        self.made += 1;
        let id = VolumeId::parse(IdForm::Uuid, &format!("00000000-0000-4000-8000-{:012x}", self.made)).unwrap();
        let volume = Volume {
            id: id.clone(),
            name: name.to_owned(),
            size,
            volume_type: Some(kind),
            region: region.to_owned(),
            attached_to: None,
            serial: format!("ewr-{:014x}", self.made),
            state,
            bootable: false,
            origin: Origin::Blank,
            created: format!("2026-01-01T00:00:{:06}", self.made),
        };
        self.volumes.insert(id.clone(), volume);
        id
    }

    fn get(&self, id: &VolumeId) -> Result<Volume, CloudError> {
        self.volumes.get(id).cloned().ok_or_else(|| CloudError::NotFound("Invalid block storage ID".to_owned()))
    }

    fn lock(&mut self, node: &NodeId, until: Instant) -> Result<(), CloudError> {
        if self.locked.get(node).is_some_and(|until| *until > Instant::now()) {
            return Err(CloudError::Busy("Server is currently locked".to_owned()));
        }
        self.locked.insert(node.clone(), until);
        Ok(())
    }
}

fn refused(text: &str) -> CloudError {
    CloudError::Refused { status: 400, text: text.to_owned() }
}

#[async_trait::async_trait]
impl Cloud for Model {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    async fn list_volumes(&self, cursor: Option<&str>, size: u32) -> Result<Page<Volume>, CloudError> {
        self.change("list", |state| {
            let from = cursor.unwrap_or_default();
            let rows: Vec<Volume> =
                state.volumes.range(..).map(|(_, v)| v).filter(|v| v.id.as_str() > from).cloned().collect();
            let page: Vec<Volume> =
                rows.iter().take(size as usize).cloned().map(|v| Volume { volume_type: None, ..v }).collect();
            let next = (rows.len() > page.len()).then(|| page.last().unwrap().id.to_string());
            Ok(Page { items: page, next, total: Some(state.volumes.len() as u64) })
        })
        .await
    }

    async fn volume(&self, id: &VolumeId) -> Result<Volume, CloudError> {
        self.change("get", |state| state.get(id)).await
    }

    async fn create_volume(&self, new: &NewVolume) -> Result<Volume, CloudError> {
        let ready = self.creating;
        self.change("create", |state| {
            let id = state.make(&new.name, new.size, new.volume_type, &new.region, VolumeState::Pending);
            state.active.insert(id.clone(), Instant::now() + ready);
            state.get(&id)
        })
        .await
    }

    async fn change_volume(&self, id: &VolumeId, change: &Change) -> Result<(), CloudError> {
        let size = change.size;
        self.change("grow", |state| {
            if state.get(id)?.size >= size {
                return Err(refused("Nothing to change"));
            }
            state.volumes.get_mut(id).unwrap().size = size;
            Ok(())
        })
        .await
    }

    async fn delete_volume(&self, id: &VolumeId) -> Result<(), CloudError> {
        self.change("delete", |state| {
            assert_eq!(state.get(id)?.attached_to, None, "an attached volume must never be deleted");
            state.volumes.remove(id);
            Ok(())
        })
        .await
    }

    async fn attach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError> {
        let done = Instant::now() + self.moving;
        self.change("attach", |state| {
            let volume = state.get(id)?;
            if volume.attached_to.is_some() || state.moves.contains_key(id) {
                return Err(refused("Block storage volume is already attached to a server"));
            }
            if state.gone_instances.contains(node) {
                return Err(CloudError::NotFound("instance not found".to_owned()));
            }
            if state.volumes.values().filter(|v| v.attached_to.as_ref() == Some(node)).count() >= 11 {
                return Err(refused("Unable to attach block storage: too many"));
            }
            state.lock(node, done)?;
            state.moves.insert(id.clone(), (done, Some(node.clone())));
            Ok(())
        })
        .await
    }

    async fn detach_volume(&self, id: &VolumeId, node: &NodeId) -> Result<(), CloudError> {
        let done = Instant::now() + self.moving;
        self.change("detach", |state| {
            let on = state.get(id)?.attached_to;
            assert!(on.is_none() || on.as_ref() == Some(node), "a detach must never take a volume from another node");
            let Some(on) = on else {
                return Err(refused("Block storage volume is not currently attached to a server"));
            };
            state.lock(&on, done)?;
            state.moves.insert(id.clone(), (done, None));
            Ok(())
        })
        .await
    }

    async fn instance(&self, id: &NodeId) -> Result<InstanceState, CloudError> {
        self.change("instance", |state| {
            let locked = state.locked.get(id).is_some_and(|until| *until > Instant::now());
            Ok(if state.gone_instances.contains(id) {
                InstanceState::Gone
            } else if locked {
                InstanceState::Locked
            } else {
                InstanceState::Idle
            })
        })
        .await
    }

    async fn regions(&self) -> Result<Vec<Region>, CloudError> {
        let region = |id: &str, kinds: &[usize]| Region {
            id: id.to_owned(),
            volume_types: kinds.iter().map(|at| PROFILE.volume_types[*at]).collect(),
        };
        self.change("regions", |_| Ok(vec![region("ewr", &[0, 1]), region("syd", &[0]), region("mia", &[1])])).await
    }
}
