//! How what is wanted changes.

use super::{Actor, Attachment, Cluster};
use crate::simulation::{
    account::{Account, instance_id},
    plan::{Content, Step, Stray},
    request::Ask,
};

impl Cluster {
    /// Changes what is wanted.
    pub(in crate::simulation) fn want(&mut self, step: Step) {
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
                let only_one = !self.manners.two_at_once && self.claims[claim].content != Content::Shared;
                let may = self.claims[claim].wanted && !self.nodes_gone.contains(&node);
                let there = self.attachments.contains_key(&(claim, node)) || (only_one && self.is_on_a_node(claim));
                if may && !there {
                    self.attachments.insert((claim, node), Attachment { wanted: true, ..Attachment::default() });
                }
            }
            Step::Detach(claim, node) => {
                if let Some(attachment) = self.attachments.get_mut(&(claim, node)) {
                    attachment.wanted = false;
                }
            }
            Step::Grow(claim, by) => self.claims[claim].wanted_gib += by,
            Step::Snap(number) => {
                let snapshot = &mut self.snapshots[number];
                snapshot.wanted |= self.claims[snapshot.of].wanted && snapshot.id.is_none() && !snapshot.begun;
            }
            Step::Unsnap(number) => self.snapshots[number].wanted = false,
            _ => {}
        }
        self.forget_the_untried();
    }

    /// A node is gone: nothing is wanted on it.
    pub(in crate::simulation) fn lose(&mut self, node: usize) {
        self.nodes_gone.insert(node);
        self.attachments.iter_mut().filter(|((_, on), _)| *on == node).for_each(|(_, a)| a.wanted = false);
        self.forget_the_untried();
    }

    /// What was never asked for needs no call to be over.
    fn forget_the_untried(&mut self) {
        self.attachments.retain(|_, attachment| attachment.wanted || attachment.tried);
    }

    /// Takes every disk for one node at most, so that all that is wanted can be had; and has everything that somebody
    /// meddled with looked at anew, as the attacher does by listing the volumes.
    pub(in crate::simulation) fn come_to_rest(&mut self, account: &Account) {
        for claim in 0..self.claims.len() {
            if self.claims[claim].content != Content::Shared {
                let attachments = self.attachments.iter_mut().filter(|((of, _), _)| *of == claim);
                for (_, attachment) in attachments.filter(|(_, attachment)| attachment.wanted).skip(1) {
                    attachment.wanted = false;
                }
            }
        }
        self.forget_the_untried();
        for ((claim, _), attachment) in &mut self.attachments {
            if self.claims[*claim].id.as_ref().is_some_and(|id| account.story.volumes[id].meddled) {
                attachment.attached = false;
            }
        }
    }

    pub(in crate::simulation) fn want_nothing(&mut self) {
        (0..self.claims.len()).for_each(|claim| self.want(Step::Unclaim(claim)));
        (0..self.snapshots.len()).for_each(|snapshot| self.want(Step::Unsnap(snapshot)));
    }

    /// Whether an instance has a volume by the cluster's own doing.
    pub(in crate::simulation) fn has(&self, id: &str, on: &str) -> bool {
        let is =
            |(claim, node): &(usize, usize)| self.claims[*claim].id.as_deref() == Some(id) && instance_id(*node) == on;
        self.attachments.keys().any(is)
    }

    /// The call of somebody who is confused, where it cannot do harm.
    pub(in crate::simulation) fn stray(&self, stray: Stray) -> Option<Ask> {
        let id = |claim: usize| self.claims[claim].id.clone();
        match stray {
            Stray::Unpublish(claim, node) => {
                let elsewhere = !self.attachments.contains_key(&(claim, node));
                Some(Ask::Unpublish { id: id(claim)?, node: instance_id(node) }).filter(|_| elsewhere)
            }
            Stray::PublishNowhere(claim) => {
                let shared = self.claims[claim].content == Content::Shared;
                Some(Ask::Publish { id: id(claim)?, node: instance_id(99), shared })
            }
            Stray::Delete(claim) => {
                let attached = self.attachments.iter().any(|((of, _), a)| *of == claim && a.attached && a.wanted);
                Some(Ask::Delete { id: id(claim)? }).filter(|_| attached)
            }
        }
    }

    /// The actors that have a call to make.
    pub(super) fn busy(&self) -> impl Iterator<Item = Ask> {
        self.actors().into_iter().filter_map(|actor: Actor| self.next(actor))
    }
}
