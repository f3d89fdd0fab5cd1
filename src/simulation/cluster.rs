//! What Kubernetes knows of its volumes and wants of them, and the calls that its sidecars make of that.
//!
//! One actor stands for one object that a sidecar works on: the claim (external-provisioner), the attachment
//! (external-attacher), the size (external-resizer), the snapshot (external-snapshotter). An actor makes one call at a
//! time and repeats it until it succeeds.

mod object;
mod unmet;
mod want;

use std::collections::{BTreeMap, BTreeSet};

use tonic::Code;

use self::object::{Attachment, Claim, Snapshot};
use super::{
    account::instance_id,
    plan::{Content, Manners, Plan},
    request::{Answered, Ask, Class, From, GIB, Said},
};

/// Who makes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    Claim(usize),
    Attachment(usize, usize),
    Size(usize),
    Snapshot(usize),
}

/// The cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    claims: Vec<Claim>,
    attachments: BTreeMap<(usize, usize), Attachment>,
    snapshots: Vec<Snapshot>,
    nodes_gone: BTreeSet<usize>,
    nodes: usize,
    manners: Manners,
}

impl Cluster {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            claims: plan.claims.iter().enumerate().map(|(number, content)| Claim::new(number, *content)).collect(),
            attachments: BTreeMap::new(),
            snapshots: plan.snapshots.iter().enumerate().map(|(number, of)| Snapshot::new(number, *of)).collect(),
            nodes_gone: BTreeSet::new(),
            nodes: plan.nodes,
            manners: plan.manners.clone(),
        }
    }

    pub(super) fn actors(&self) -> Vec<Actor> {
        let each = |claim| {
            let attachments = (0..self.nodes).map(move |node| Actor::Attachment(claim, node));
            [Actor::Claim(claim), Actor::Size(claim)].into_iter().chain(attachments)
        };
        let snapshots = (0..self.snapshots.len()).map(Actor::Snapshot);
        (0..self.claims.len()).flat_map(each).chain(snapshots).collect()
    }

    fn is_on_a_node(&self, claim: usize) -> bool {
        self.attachments.keys().any(|(of, _)| *of == claim)
    }

    /// What a claim is to be filled from; `None` while there is no such thing.
    fn source(&self, claim: &Claim) -> Option<From> {
        if let Some(source) = &claim.source {
            return Some(source.clone());
        }
        match claim.content {
            Content::Blank | Content::Shared => Some(From::Nothing),
            Content::Restored(snapshot) => {
                let snapshot = self.snapshots.get(snapshot)?;
                snapshot.id.clone().filter(|_| snapshot.ready && snapshot.wanted).map(From::Snapshot)
            }
            Content::Cloned(of) => {
                let of = &self.claims[of];
                of.id.clone().filter(|_| of.wanted).map(From::Volume)
            }
        }
    }

    /// Whether something is being made from a claim's volume, which Kubernetes then protects.
    fn is_source(&self, number: usize) -> bool {
        let cloned = |claim: &Claim| claim.content == Content::Cloned(number) && claim.begun && claim.id.is_none();
        let taken = |snapshot: &Snapshot| snapshot.of == number && snapshot.begun && snapshot.id.is_none();
        self.claims.iter().any(cloned) || self.snapshots.iter().any(taken)
    }

    fn create(&self, claim: &Claim) -> Option<Ask> {
        let class = if claim.content == Content::Shared { Class::Vfs } else { Class::Nvme };
        Some(Ask::Create { name: claim.name.clone(), gib: claim.created_gib, class, from: self.source(claim)? })
    }

    /// The call that an actor has to make.
    pub(super) fn next(&self, actor: Actor) -> Option<Ask> {
        match actor {
            Actor::Claim(number) => {
                let claim = &self.claims[number];
                let may_go = !self.is_on_a_node(number) || self.manners.hasty;
                match &claim.id {
                    None if claim.wanted || claim.begun => self.create(claim),
                    Some(id) if !claim.wanted && may_go && !self.is_source(number) => {
                        Some(Ask::Delete { id: id.clone() })
                    }
                    _ => None,
                }
            }
            Actor::Attachment(claim, node) => {
                let attachment = self.attachments.get(&(claim, node))?;
                let shared = self.claims[claim].content == Content::Shared;
                let (id, node) = (self.claims[claim].id.clone()?, instance_id(node));
                match attachment {
                    Attachment { wanted: true, attached: false, .. } => Some(Ask::Publish { id, node, shared }),
                    Attachment { wanted: false, .. } => Some(Ask::Unpublish { id, node }),
                    _ => None,
                }
            }
            Actor::Size(number) => {
                let claim = &self.claims[number];
                let id = claim.id.clone().filter(|_| claim.wanted && claim.gib < claim.wanted_gib)?;
                Some(Ask::Expand { id, gib: claim.wanted_gib })
            }
            Actor::Snapshot(number) => {
                let snapshot = &self.snapshots[number];
                let restored =
                    |claim: &Claim| claim.content == Content::Restored(number) && claim.begun && claim.id.is_none();
                match &snapshot.id {
                    Some(id) if !snapshot.wanted && !self.claims.iter().any(restored) => {
                        Some(Ask::DeleteSnapshot { snapshot: id.clone() })
                    }
                    Some(_) if !snapshot.wanted => None,
                    _ if snapshot.ready || !(snapshot.wanted || snapshot.begun) => None,
                    _ => {
                        let of = &self.claims[snapshot.of];
                        let source = snapshot.source.clone().or_else(|| of.id.clone().filter(|_| of.wanted))?;
                        Some(Ask::Snapshot { name: snapshot.name.clone(), source })
                    }
                }
            }
        }
    }

    /// A call is made: from here on its effect may come about.
    pub(super) fn begins(&mut self, actor: Actor, ask: &Ask) {
        match (actor, ask) {
            (Actor::Claim(claim), Ask::Create { from, .. }) => {
                let claim = &mut self.claims[claim];
                (claim.begun, claim.source) = (true, Some(from.clone()));
            }
            (Actor::Attachment(claim, node), _) => {
                if let Some(attachment) = self.attachments.get_mut(&(claim, node)) {
                    attachment.tried = true;
                }
            }
            (Actor::Snapshot(number), Ask::Snapshot { source, .. }) => {
                let snapshot = &mut self.snapshots[number];
                (snapshot.begun, snapshot.source) = (true, Some(source.clone()));
            }
            _ => {}
        }
    }

    /// Learns from how a call ended.
    pub(super) fn ended(&mut self, actor: Actor, ask: &Ask, answered: &Answered) {
        if let (Actor::Attachment(claim, _) | Actor::Size(claim), Some(id)) = (actor, ask.id())
            && self.claims[claim].id.as_deref() != Some(id)
        {
            // The claim has another volume by now.
            return;
        }
        match (actor, ask, answered) {
            (Actor::Claim(claim), Ask::Create { .. }, Ok(Said::Volume(id, bytes, _))) => {
                let claim = &mut self.claims[claim];
                (claim.id, claim.gib) = (Some(id.clone()), bytes / GIB);
                claim.wanted_gib = claim.wanted_gib.max(claim.gib);
            }
            (Actor::Claim(claim), Ask::Create { .. }, Err((code, _))) if is_final(*code) => {
                let claim = &mut self.claims[claim];
                (claim.begun, claim.source) = (false, None);
            }
            (Actor::Claim(number), Ask::Delete { .. }, Ok(_)) => {
                let claim = &mut self.claims[number];
                (claim.id, claim.begun, claim.gib, claim.source) = (None, false, 0, None);
                // Whoever still holds an attachment of a volume that is gone finds nothing to detach.
                self.attachments.retain(|(of, _), _| *of != number);
            }
            (Actor::Attachment(claim, node), Ask::Publish { .. }, Ok(_)) => {
                if let Some(attachment) = self.attachments.get_mut(&(claim, node)) {
                    attachment.attached = true;
                }
            }
            (Actor::Attachment(claim, node), Ask::Unpublish { .. }, Ok(_)) => {
                self.attachments.remove(&(claim, node));
            }
            (Actor::Size(claim), Ask::Expand { .. }, Ok(Said::Size(bytes))) => {
                self.claims[claim].gib = self.claims[claim].gib.max(bytes / GIB);
            }
            (Actor::Snapshot(number), Ask::Snapshot { .. }, Ok(Said::Snapshot(id, _, _, ready))) => {
                let snapshot = &mut self.snapshots[number];
                (snapshot.id, snapshot.ready) = (Some(id.clone()), *ready);
            }
            (Actor::Snapshot(number), Ask::Snapshot { .. }, Err((code, _)))
                if is_final(*code) || *code == Code::ResourceExhausted =>
            {
                let snapshot = &mut self.snapshots[number];
                if snapshot.id.is_some() {
                    // It has failed, and whoever wanted it does away with it.
                    snapshot.wanted = false;
                } else {
                    (snapshot.begun, snapshot.source) = (false, None);
                }
            }
            (Actor::Snapshot(number), Ask::DeleteSnapshot { .. }, Ok(_)) => {
                let snapshot = &mut self.snapshots[number];
                *snapshot = Snapshot::new(number, snapshot.of);
            }
            _ => {}
        }
    }

    /// Whether an actor has to make its call again though it succeeded: a snapshot is asked for until it is ready.
    pub(super) fn is_waiting(&self, actor: Actor) -> bool {
        matches!(actor, Actor::Snapshot(number) if self.snapshots[number].id.is_some() && !self.snapshots[number].ready)
    }
}

/// Whether the provisioner takes an error for the word that no volume exists.
fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::DeadlineExceeded | Code::Unavailable | Code::Aborted | Code::Cancelled | Code::ResourceExhausted
    )
}
