//! What Kubernetes knows of its volumes and wants of them, and the calls that its sidecars make of that.
//!
//! One actor stands for one object that a sidecar works on: the claim (external-provisioner), the attachment
//! (external-attacher), the size (external-resizer). An actor makes one call at a time and repeats it until it succeeds.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Code;

use super::{
    account::{Account, instance_id},
    plan::{Manners, Step, Stray},
    request::{Answered, Ask, GIB, Said},
};

/// Who makes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    Claim(usize),
    Attachment(usize, usize),
    Size(usize),
}

/// A claim and its volume.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) name: String,
    pub(super) wanted: bool,
    /// Whether a volume may exist of a create that has not ended for certain.
    begun: bool,
    pub(super) id: Option<String>,
    created_gib: i64,
    wanted_gib: i64,
    /// The size that was reported.
    gib: i64,
}

/// That a node has a claim, or will.
#[derive(Debug, Clone, Default)]
pub(super) struct Attachment {
    pub(super) wanted: bool,
    tried: bool,
    attached: bool,
}

/// The cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) claims: Vec<Claim>,
    pub(super) attachments: BTreeMap<(usize, usize), Attachment>,
    nodes_gone: BTreeSet<usize>,
    nodes: usize,
    manners: Manners,
}

impl Cluster {
    pub(super) fn new(claims: usize, nodes: usize, manners: Manners) -> Self {
        let claim = |number| Claim {
            name: format!("pvc-{number}"),
            wanted: false,
            begun: false,
            id: None,
            created_gib: 10,
            wanted_gib: 10,
            gib: 0,
        };
        Self {
            claims: (0..claims).map(claim).collect(),
            attachments: BTreeMap::new(),
            nodes_gone: BTreeSet::new(),
            nodes,
            manners,
        }
    }

    pub(super) fn actors(&self) -> Vec<Actor> {
        let claims = 0..self.claims.len();
        let each = |claim| {
            let attachments = (0..self.nodes).map(move |node| Actor::Attachment(claim, node));
            [Actor::Claim(claim), Actor::Size(claim)].into_iter().chain(attachments)
        };
        claims.flat_map(each).collect()
    }

    /// Changes what is wanted.
    pub(super) fn want(&mut self, step: Step) {
        match step {
            Step::Claim(claim) => {
                let claim = &mut self.claims[claim];
                if !claim.wanted && claim.id.is_none() && !claim.begun {
                    claim.wanted = true;
                    claim.wanted_gib = claim.created_gib;
                }
            }
            Step::Unclaim(claim) => {
                self.claims[claim].wanted = false;
                self.attachments.iter_mut().filter(|((of, _), _)| *of == claim).for_each(|(_, a)| a.wanted = false);
            }
            Step::Attach(claim, node) => {
                let taken = self.attachments.keys().any(|(of, _)| *of == claim);
                let may = self.claims[claim].wanted && !self.nodes_gone.contains(&node);
                if may && (!taken || self.manners.two_at_once) && !self.attachments.contains_key(&(claim, node)) {
                    self.attachments.insert((claim, node), Attachment { wanted: true, ..Attachment::default() });
                }
            }
            Step::Detach(claim, node) => {
                if let Some(attachment) = self.attachments.get_mut(&(claim, node)) {
                    attachment.wanted = false;
                }
            }
            Step::Grow(claim, by) => self.claims[claim].wanted_gib += by,
            _ => {}
        }
        self.forget_the_untried();
    }

    /// A node is gone: nothing is wanted on it.
    pub(super) fn lose(&mut self, node: usize) {
        self.nodes_gone.insert(node);
        self.attachments.iter_mut().filter(|((_, on), _)| *on == node).for_each(|(_, a)| a.wanted = false);
        self.forget_the_untried();
    }

    /// What was never asked for needs no call to be over.
    fn forget_the_untried(&mut self) {
        self.attachments.retain(|_, attachment| attachment.wanted || attachment.tried);
    }

    /// Takes every claim for one node at most, so that all that is wanted can be had; and has everything that somebody
    /// meddled with looked at anew, as the attacher does by listing the volumes.
    pub(super) fn come_to_rest(&mut self, account: &Account) {
        for claim in 0..self.claims.len() {
            let attachments = self.attachments.iter_mut().filter(|((of, _), _)| *of == claim);
            for (_, attachment) in attachments.filter(|(_, attachment)| attachment.wanted).skip(1) {
                attachment.wanted = false;
            }
        }
        self.forget_the_untried();
        for ((claim, _), attachment) in &mut self.attachments {
            if self.claims[*claim].id.as_ref().is_some_and(|id| account.story.volumes[id].meddled) {
                attachment.attached = false;
            }
        }
    }

    /// Whether an instance has a volume by the cluster's own doing.
    pub(super) fn has(&self, id: &str, on: &str) -> bool {
        let is =
            |(claim, node): &(usize, usize)| self.claims[*claim].id.as_deref() == Some(id) && instance_id(*node) == on;
        self.attachments.keys().any(is)
    }

    /// The call of somebody who is confused, where it cannot do harm.
    pub(super) fn stray(&self, stray: Stray) -> Option<Ask> {
        let id = |claim: usize| self.claims[claim].id.clone();
        match stray {
            Stray::Unpublish(claim, node) => {
                let elsewhere = !self.attachments.contains_key(&(claim, node));
                Some(Ask::Unpublish { id: id(claim)?, node: instance_id(node) }).filter(|_| elsewhere)
            }
            Stray::PublishNowhere(claim) => Some(Ask::Publish { id: id(claim)?, node: instance_id(99) }),
            Stray::Delete(claim) => {
                let attached = self.attachments.iter().any(|((of, _), a)| *of == claim && a.attached && a.wanted);
                Some(Ask::Delete { id: id(claim)? }).filter(|_| attached)
            }
        }
    }

    /// Calls that ask for what is so already, and what has to be said to them.
    pub(super) fn repeats(&self, account: &Account) -> Vec<(Ask, bool)> {
        let mut repeats = Vec::new();
        for (number, claim) in self.claims.iter().enumerate().filter(|(_, claim)| claim.wanted) {
            let (Some(id), name) = (claim.id.clone(), claim.name.clone()) else { continue };
            if account.story.is_taken_away(&id) {
                continue;
            }
            let size = claim.created_gib;
            if account.blocks.get(&id).is_some_and(|block| i64::try_from(block.gb) == Ok(size)) {
                repeats.push((Ask::Create { name: name.clone(), gib: size, hdd: false }, true));
            }
            repeats.push((Ask::Create { name: name.clone(), gib: size + 40, hdd: false }, false));
            repeats.push((Ask::Create { name, gib: size, hdd: true }, false));
            repeats.push((Ask::Expand { id: id.clone(), gib: claim.gib }, true));
            for node in 0..self.nodes {
                let (id, name) = (id.clone(), instance_id(node));
                let here = self.attachments.contains_key(&(number, node));
                let away = !self.attachments.keys().any(|(of, _)| *of == number);
                match (here, away) {
                    (true, _) => repeats.push((Ask::Publish { id, node: name }, true)),
                    (false, true) => repeats.push((Ask::Unpublish { id, node: name }, true)),
                    (false, false) => {
                        repeats.push((Ask::Publish { id: id.clone(), node: name.clone() }, false));
                        repeats.push((Ask::Unpublish { id, node: name }, true));
                    }
                }
            }
            repeats.push((Ask::Delete { id }, !self.attachments.keys().any(|(of, _)| *of == number)));
        }
        repeats.retain(|(ask, done)| !(*done && matches!(ask, Ask::Delete { .. })));
        repeats
    }

    pub(super) fn want_nothing(&mut self) {
        (0..self.claims.len()).for_each(|claim| self.want(Step::Unclaim(claim)));
    }

    /// The call that an actor has to make.
    pub(super) fn next(&self, actor: Actor) -> Option<Ask> {
        match actor {
            Actor::Claim(number) => {
                let claim = &self.claims[number];
                let on_a_node = self.attachments.keys().any(|(of, _)| *of == number);
                match &claim.id {
                    None if claim.wanted || claim.begun => {
                        Some(Ask::Create { name: claim.name.clone(), gib: claim.created_gib, hdd: false })
                    }
                    Some(id) if !claim.wanted && (!on_a_node || self.manners.hasty) => {
                        Some(Ask::Delete { id: id.clone() })
                    }
                    _ => None,
                }
            }
            Actor::Attachment(claim, node) => {
                let attachment = self.attachments.get(&(claim, node))?;
                let (id, node) = (self.claims[claim].id.clone()?, instance_id(node));
                match attachment {
                    Attachment { wanted: true, attached: false, .. } => Some(Ask::Publish { id, node }),
                    Attachment { wanted: false, .. } => Some(Ask::Unpublish { id, node }),
                    _ => None,
                }
            }
            Actor::Size(number) => {
                let claim = &self.claims[number];
                let id = claim.id.clone().filter(|_| claim.wanted && claim.gib < claim.wanted_gib)?;
                Some(Ask::Expand { id, gib: claim.wanted_gib })
            }
        }
    }

    /// A call is made: from here on its effect may come about.
    pub(super) fn begins(&mut self, actor: Actor) {
        match actor {
            Actor::Claim(claim) if self.claims[claim].id.is_none() => self.claims[claim].begun = true,
            Actor::Attachment(claim, node) => {
                if let Some(attachment) = self.attachments.get_mut(&(claim, node)) {
                    attachment.tried = true;
                }
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
            }
            (Actor::Claim(claim), Ask::Create { .. }, Err((code, _))) if is_final(*code) => {
                self.claims[claim].begun = false;
            }
            (Actor::Claim(number), Ask::Delete { .. }, Ok(_)) => {
                let claim = &mut self.claims[number];
                (claim.id, claim.begun, claim.gib) = (None, false, 0);
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
            _ => {}
        }
    }

    /// What is wanted and not so, or so and not wanted.
    pub(super) fn unmet(&self, account: &Account) -> Vec<String> {
        let mut unmet = Vec::new();
        let mut known = BTreeSet::new();
        for (number, claim) in self.claims.iter().enumerate() {
            known.extend(&claim.id);
            if claim.id.as_ref().is_some_and(|id| account.story.is_taken_away(id)) {
                // Somebody in the console deleted it: nothing more can be had of it but its end.
                if !claim.wanted {
                    unmet.push(format!("{} is to be deleted", claim.name));
                }
                continue;
            }
            match (&claim.id, claim.wanted) {
                (None, true) => unmet.push(format!("{} has no volume", claim.name)),
                (Some(_), false) => unmet.push(format!("{} is to be deleted", claim.name)),
                (None, false) if claim.begun => unmet.push(format!("{} may have a volume", claim.name)),
                (Some(id), true) => {
                    let wanted = self.attachments.iter().find(|((of, _), a)| *of == number && a.wanted);
                    let wanted = wanted.map(|((_, node), _)| instance_id(*node));
                    match account.blocks.get(id) {
                        None => unmet.push(format!("volume {id} of {} is lost", claim.name)),
                        Some(block) if block.on != wanted => {
                            unmet.push(format!("{} is on {:?}, wanted on {wanted:?}", claim.name, block.on));
                        }
                        Some(block) if i64::try_from(block.gb).unwrap_or_default() < claim.wanted_gib => {
                            unmet.push(format!("{} has {} of {} GiB", claim.name, block.gb, claim.wanted_gib));
                        }
                        Some(_) => {}
                    }
                    let leaving = self.attachments.iter().find(|((of, _), a)| *of == number && !a.wanted);
                    unmet.extend(leaving.map(|((_, node), _)| format!("{} is to leave node {node}", claim.name)));
                }
                _ => {}
            }
        }
        let asked = self.actors().into_iter().filter_map(|actor| self.next(actor));
        let asked = asked.filter(|ask| ask.id().is_none_or(|id| !account.story.is_taken_away(id)));
        unmet.extend(asked.map(|ask| format!("{ask:?} has not succeeded")));
        let strangers = account.blocks.iter().filter(|(id, _)| !known.contains(id));
        unmet.extend(strangers.map(|(id, block)| format!("volume {id}, named {}, is leaked", block.label)));
        unmet
    }
}

/// Whether the provisioner takes an error for the word that no volume exists.
pub(super) fn is_final(code: Code) -> bool {
    !matches!(
        code,
        Code::DeadlineExceeded | Code::Unavailable | Code::Aborted | Code::Cancelled | Code::ResourceExhausted
    )
}
