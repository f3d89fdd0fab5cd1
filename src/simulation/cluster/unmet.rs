//! What is wanted, held against how the account is.

use std::collections::BTreeSet;

use super::{Claim, Cluster};
use crate::simulation::{
    account::{Account, instance_id},
    plan::Content,
    request::{Ask, Class, From},
};

impl Cluster {
    /// What is wanted and not so, or so and not wanted.
    pub(in crate::simulation) fn unmet(&self, account: &Account) -> Vec<String> {
        let story = &account.story;
        let mut unmet = Vec::new();
        for (number, claim) in self.claims.iter().enumerate() {
            match &claim.id {
                None if claim.begun => unmet.push(format!("{} may have a volume", claim.name)),
                None if claim.wanted && self.source(claim).is_some() => {
                    unmet.push(format!("{} has no volume", claim.name));
                }
                Some(_) if !claim.wanted => unmet.push(format!("{} is to be deleted", claim.name)),
                // Somebody in the console deleted it: nothing more can be had of it but its end.
                Some(id) if !story.is_taken_away(id) => self.held(number, id, account, &mut unmet),
                _ => {}
            }
        }
        let taken_away = |ask: &Ask| ask.id().is_some_and(|id| story.is_taken_away(id));
        // A snapshot has failed, and whether anybody was told its id died with a process: it is told as failed for ever, and
        // left to the report of orphans, since to drop it might leave a snapshot that looks ready and is not there.
        let failed: Vec<_> = story.snapshots.0.values().filter(|taken| taken.failed && taken.gone.is_none()).collect();
        let is_failed = |ask: &Ask| match ask {
            Ask::Snapshot { name, .. } => failed.iter().any(|taken| taken.description.ends_with(&format!("={name}"))),
            _ => false,
        };
        unmet.extend(
            self.busy()
                .filter(|ask| !taken_away(ask) && !is_failed(ask))
                .map(|ask| format!("{ask:?} has not succeeded")),
        );
        let known: BTreeSet<_> = self.claims.iter().filter_map(|claim| claim.id.clone()).collect();
        let strangers = story.volumes.iter().filter(|(id, life)| life.gone.is_none() && !known.contains(*id));
        unmet.extend(strangers.map(|(id, life)| format!("volume {id}, named {}, is leaked", life.label)));
        let known: BTreeSet<_> = self.snapshots.iter().filter_map(|snapshot| snapshot.id.clone()).collect();
        for (id, taken) in &story.snapshots.0 {
            if taken.gone.is_none() && !taken.failed && !known.contains(id) && !taken.is_temporary() {
                unmet.push(format!("snapshot {id}, {}, is leaked", taken.description));
            }
        }
        for id in known {
            if story.snapshots.0[&id].gone.is_some() {
                unmet.push(format!("snapshot {id} is lost"));
            }
        }
        unmet
    }

    /// Whether a volume is as large as it is wanted and on the nodes that it is wanted on.
    fn held(&self, number: usize, id: &str, account: &Account, unmet: &mut Vec<String>) {
        let name = &self.claims[number].name;
        let wanted = self.attachments.iter().filter(|((of, _), a)| *of == number && a.wanted);
        let wanted: BTreeSet<String> = wanted.map(|((_, node), _)| instance_id(*node)).collect();
        match account.story.now(id) {
            None => unmet.push(format!("volume {id} of {name} is lost")),
            Some(shown) if shown.on != wanted => {
                unmet.push(format!("{name} is on {:?}, wanted on {wanted:?}", shown.on));
            }
            Some(shown) if i64::try_from(shown.gb).unwrap_or_default() < self.claims[number].wanted_gib => {
                unmet.push(format!("{name} has {} of {} GiB", shown.gb, self.claims[number].wanted_gib));
            }
            Some(_) => {}
        }
    }

    /// Calls that ask for what is so already, and whether they are to succeed.
    pub(in crate::simulation) fn repeats(&self, account: &Account) -> Vec<(Ask, bool)> {
        let mut repeats = Vec::new();
        for (number, claim) in self.claims.iter().enumerate().filter(|(_, claim)| claim.wanted) {
            if let Some(id) = claim.id.clone().filter(|id| !account.story.is_taken_away(id)) {
                self.repeats_of(number, claim, &id, account, &mut repeats);
            }
        }
        for snapshot in self.snapshots.iter().filter(|snapshot| snapshot.wanted && snapshot.ready) {
            let (name, source) = (snapshot.name.clone(), snapshot.source.clone().expect("it was taken of one"));
            repeats.push((Ask::Snapshot { name: name.clone(), source }, true));
            let other =
                self.claims.iter().filter_map(|claim| claim.id.clone()).find(|id| Some(id) != snapshot.source.as_ref());
            repeats.extend(other.map(|source| (Ask::Snapshot { name, source }, false)));
        }
        repeats
    }

    fn repeats_of(&self, number: usize, claim: &Claim, id: &str, account: &Account, repeats: &mut Vec<(Ask, bool)>) {
        let (name, size, id) = (claim.name.clone(), claim.created_gib, id.to_owned());
        let shared = claim.content == Content::Shared;
        let class = if shared { Class::Vfs } else { Class::Nvme };
        let from = claim.source.clone().unwrap_or(From::Nothing);
        if account.story.now(&id).is_some_and(|shown| i64::try_from(shown.gb) == Ok(size)) {
            repeats.push((Ask::Create { name: name.clone(), gib: size, class, from: from.clone() }, true));
        }
        repeats.push((Ask::Create { name: name.clone(), gib: size + 40, class, from: from.clone() }, false));
        if !shared {
            repeats.push((Ask::Create { name, gib: size, class: Class::Hdd, from }, false));
        }
        repeats.push((Ask::Expand { id: id.clone(), gib: claim.gib }, true));
        for node in 0..self.nodes {
            let (id, on) = (id.clone(), instance_id(node));
            if self.attachments.contains_key(&(number, node)) {
                repeats.push((Ask::Publish { id, node: on, shared }, true));
                continue;
            }
            if self.is_on_a_node(number) && !shared {
                repeats.push((Ask::Publish { id: id.clone(), node: on.clone(), shared }, false));
            }
            repeats.push((Ask::Unpublish { id, node: on }, true));
        }
        if self.is_on_a_node(number) {
            repeats.push((Ask::Delete { id }, false));
        }
    }
}
