//! What somebody does in the console, behind the driver's back.

use super::{
    Account,
    block::{Block, Moving},
    instance::instance_id,
};

/// What somebody does, with the numbers of a volume among those there are and of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) enum Console {
    Delete(usize),
    Detach(usize),
    Attach(usize, usize),
    DeleteInstance(usize),
}

impl Account {
    /// Takes the volumes that somebody meddled with from instances that nobody wants them on.
    pub(in crate::simulation) fn undo_meddling(&mut self, is_wanted: impl Fn(&str, &str) -> bool) {
        let astray = |id: &String, block: &Block| {
            self.story.volumes[id].meddled && block.on.as_ref().is_some_and(|on| !is_wanted(id, on))
        };
        let ids: Vec<String> = self.blocks.iter().filter(|(id, b)| astray(id, b)).map(|(id, _)| id.clone()).collect();
        for id in &ids {
            self.block_is_off(id);
        }
    }

    pub(super) fn console(&mut self, what: Console) {
        let id = match what {
            Console::Delete(number) | Console::Detach(number) | Console::Attach(number, _) => {
                self.blocks.keys().nth(number % self.blocks.len().max(1)).cloned()
            }
            Console::DeleteInstance(_) => None,
        };
        match (what, id) {
            (Console::Delete(_), Some(id)) => {
                self.remove(&id, true);
            }
            (Console::Detach(_), Some(id)) => {
                self.story.meddled(&id);
                self.block_is_off(&id);
            }
            (Console::Attach(_, instance), Some(id)) => {
                let free = self.blocks[&id].on.is_none() && self.blocks[&id].moving == Moving::Not;
                if free && self.instances.contains_key(&instance_id(instance)) {
                    self.story.meddled(&id);
                    self.count(Some(&instance_id(instance)), 1);
                    self.block_is_on(&id, &instance_id(instance));
                }
            }
            (Console::DeleteInstance(number), _) => {
                let gone = instance_id(number);
                self.instances.remove(&gone);
                self.story.instance_gone(self.at, &gone);
                let has = |block: &Block| block.on.as_deref() == Some(gone.as_str());
                let ids: Vec<String> = self.blocks.iter().filter(|(_, b)| has(b)).map(|(id, _)| id.clone()).collect();
                if !self.habits.ghosts {
                    for id in &ids {
                        self.block_is_off(id);
                    }
                }
            }
            _ => {}
        }
    }
}
