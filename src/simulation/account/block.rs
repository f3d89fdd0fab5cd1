//! Block volumes: their requests, and what becomes of them by and by.

use std::{fmt::Write, time::Duration};

use super::{
    Account, Event,
    answer::{Reply, date, meta},
    instance::offers,
    route::Sent,
    snapshot::State,
};
use crate::simulation::story::{Life, Shown};

/// How many volumes an instance can have.
const PER_INSTANCE: usize = 11;
const BETWEEN_CHANGES: Duration = Duration::from_secs(60);

/// A kind of volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) struct Kind {
    pub(in crate::simulation) name: &'static str,
    min: u64,
    max: u64,
}

const KINDS: [Kind; 2] =
    [Kind { name: "high_perf", min: 10, max: 10_000 }, Kind { name: "storage_opt", min: 40, max: 40_000 }];

/// A volume's way on or off an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::simulation) enum Moving {
    Not,
    To(String),
    Off,
}

impl Moving {
    /// The instance that it is on its way to.
    fn to(&self) -> Option<&String> {
        if let Self::To(instance) = self { Some(instance) } else { None }
    }
}

/// A block volume.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Block {
    pub(in crate::simulation) label: String,
    pub(in crate::simulation) gb: u64,
    pub(in crate::simulation) region: String,
    pub(in crate::simulation) kind: Kind,
    pub(in crate::simulation) active: bool,
    /// The instance that it is shown on.
    pub(in crate::simulation) on: Option<String>,
    /// What is under way with it.
    pub(in crate::simulation) moving: Moving,
    /// The snapshot it was made from; empty where there is none.
    pub(in crate::simulation) snapshot: String,
    serial: String,
    created: Duration,
    changed: Option<Duration>,
    /// Its row in a listing, which is rendered when it changes: it is sent far more often.
    row: String,
}

impl Block {
    /// Its JSON without the end; the rows of a listing do not tell the kind.
    fn render(&mut self, id: &str) {
        let Self { label, gb, region, serial, snapshot, .. } = self;
        let (status, on) = (if self.active { "active" } else { "pending" }, self.on.as_deref().unwrap_or_default());
        let created = date(self.created);
        self.row = format!(
            r#"{{"id":"{id}","date_created":"{created}","cost":1,"pending_charges":0.07,"status":"{status}","size_gb":{gb},"region":"{region}","attached_to_instance":"{on}","attached_to_instance_ip":"","label":"{label}","mount_id":"{serial}","os_id":0,"snapshot_id":"{snapshot}","bootable":false"#,
        );
    }

    fn shown(&self) -> Shown {
        Shown { active: self.active, gb: self.gb, on: self.on.iter().cloned().collect() }
    }

    fn one(&self) -> String {
        format!(r#"{{"block":{},"block_type":"{}"}}}}"#, self.row, self.kind.name)
    }
}

impl Account {
    pub(super) fn no_block(&self) -> Reply {
        Reply::refused(self.habits.unknown_block, "Invalid block storage ID")
    }

    fn locked(&self, doing: &str) -> Reply {
        let status = if self.habits.locked_is_500 { 500 } else { 400 };
        Reply::refused(status, &format!("Unable to {doing} block storage: Server is currently locked"))
    }

    pub(super) fn list_blocks(&self, sent: &Sent) -> Reply {
        let asked: usize = sent.asked("per_page").parse().unwrap_or(100);
        let size = asked.clamp(1, 500).min(self.habits.page);
        let cursor = sent.asked("cursor");
        let rows: Vec<(&String, &super::Block)> = if self.habits.pages_by_number {
            let from = cursor.strip_prefix("from__").and_then(|number| number.parse().ok()).unwrap_or(0);
            self.blocks.iter().skip(from).take(size + 1).collect()
        } else {
            let from = cursor.strip_prefix("next__").unwrap_or_default();
            self.blocks.range(from.to_owned()..).take(size + 1).collect()
        };
        let next = match rows.get(size) {
            None => String::new(),
            Some(_) if self.habits.pages_by_number => {
                let from: usize = cursor.strip_prefix("from__").and_then(|number| number.parse().ok()).unwrap_or(0);
                format!("from__{}", from + size)
            }
            Some((id, _)) => format!("next__{id}"),
        };
        let mut body = String::with_capacity(rows.len() * 400);
        body.push_str(r#"{"blocks":["#);
        for (at, (_, block)) in rows.iter().take(size).enumerate() {
            if at > 0 {
                body.push(',');
            }
            body.push_str(&block.row);
            body.push('}');
        }
        write!(body, "],{}}}", meta(self.blocks.len(), &next)).expect("a string takes everything");
        Reply::ok(body)
    }

    pub(super) fn get_block(&self, id: &str) -> Reply {
        self.blocks.get(id).map_or_else(|| self.no_block(), |block| Reply::ok(block.one()))
    }

    pub(super) fn create_block(&mut self, sent: &Sent) -> Reply {
        let (region, kind) = (sent.text("region"), sent.text("block_type"));
        let Some(kind) = KINDS.iter().find(|known| known.name == kind) else {
            return Reply::refused(400, "Invalid block_type");
        };
        if !offers(region, kind.name) {
            return Reply::refused(
                400,
                "Unable to add block storage: unable to find a block storage cluster in that location",
            );
        }
        let gb = sent.number("size_gb").unwrap_or_default();
        if !(kind.min..=kind.max).contains(&gb) {
            let text = format!(
                "Unable to add block storage: Failed to add block storage device. Invalid size ({gb}GB) - Must be between {}GB and {}GB.",
                kind.min, kind.max
            );
            return Reply::refused(400, &text);
        }
        let snapshot = sent.text("snapshot_id").to_owned();
        if !snapshot.is_empty() {
            let Some(from) = self.snapshots.get(&snapshot) else { return Reply::refused(404, "Invalid snapshot ID") };
            if from.state != State::Complete || from.gb > gb || from.region != region {
                return Reply::refused(400, "Unable to add block storage: that snapshot does not fit");
            }
        }
        let id = self.new_id();
        let life = Life::new(sent.text("label"), region, kind.name, &snapshot);
        let mut block = Block {
            snapshot,
            label: sent.text("label").to_owned(),
            gb,
            region: region.to_owned(),
            kind: *kind,
            active: false,
            on: None,
            moving: Moving::Not,
            serial: format!("{region}-{:014x}", self.made),
            created: self.at,
            changed: None,
            row: String::new(),
        };
        block.render(&id);
        let reply = Reply::accepted(block.one());
        self.story.made(self.at, &id, life, block.shown());
        self.blocks.insert(id.clone(), block);
        let ready = self.at + self.some(self.habits.creating.clone());
        self.plan(ready, Event::Active(id));
        reply
    }

    pub(super) fn grow_block(&mut self, id: &str, sent: &Sent) -> Reply {
        let Some(block) = self.blocks.get_mut(id) else { return self.no_block() };
        let gb = sent.number("size_gb").unwrap_or(block.gb);
        if gb == block.gb {
            return Reply::refused(400, "Nothing to change");
        }
        if gb < block.gb || gb > block.kind.max || !block.active {
            return Reply::refused(400, "Unable to resize block storage");
        }
        if block.changed.is_some_and(|changed| changed + BETWEEN_CHANGES > self.at) {
            return Reply::refused(400, "Unable to resize block storage: it was changed less than a minute ago");
        }
        block.changed = Some(self.at);
        let shown = self.at + self.some(self.habits.growing.clone());
        self.plan(shown, Event::Sized(id.to_owned(), gb));
        Reply::done()
    }

    pub(super) fn delete_block(&mut self, id: &str) -> Reply {
        let Some(block) = self.blocks.get(id) else { return self.no_block() };
        let in_use = block.on.as_ref().is_some_and(|on| self.instances.contains_key(on));
        self.story.delete_asked(self.at, id, in_use);
        if (block.on.is_some() || block.moving != Moving::Not) && !self.habits.deletes_attached {
            return Reply::refused(400, "Unable to remove block storage: it is attached to a server");
        }
        self.remove(id, false);
        Reply::done()
    }

    pub(super) fn attach_block(&mut self, id: &str, sent: &Sent) -> Reply {
        let Some(block) = self.blocks.get(id) else { return self.no_block() };
        let on = sent.text("instance_id").to_owned();
        if !sent.is_set("live") {
            self.story.wrong(self.at, format!("an attach of volume {id} restarts {on}"));
        }
        if block.on.is_some() || block.moving.to().is_some() {
            return Reply::refused(400, "Block storage volume is already attached to a server");
        }
        let Some(instance) = self.instances.get(&on) else { return Reply::refused(404, "instance not found") };
        if !block.active || instance.region != block.region {
            return Reply::refused(400, "Unable to attach block storage");
        }
        if instance.locked_until > self.at {
            return self.locked("attach");
        }
        if instance.volumes >= PER_INSTANCE {
            return Reply::refused(400, "Unable to attach block storage: the server has too many");
        }
        let done = self.at + self.some(self.habits.moving.clone());
        self.lock(&on, done);
        self.count(Some(&on), 1);
        self.blocks.get_mut(id).expect("it was there").moving = Moving::To(on.clone());
        self.plan(done, Event::On(id.to_owned(), on));
        Reply::done()
    }

    pub(super) fn detach_block(&mut self, id: &str, sent: &Sent) -> Reply {
        let Some(block) = self.blocks.get(id) else { return self.no_block() };
        if !sent.is_set("live") {
            self.story.wrong(self.at, format!("a detach of volume {id} restarts an instance"));
        }
        let Some(on) = block.on.clone() else {
            return Reply::refused(400, "Block storage volume is not currently attached to a server");
        };
        if block.moving != Moving::Not {
            return Reply::refused(400, "Unable to detach block storage");
        }
        let instance = self.instances.get(&on);
        if instance.is_some_and(|instance| instance.locked_until > self.at) {
            return self.locked("detach");
        }
        self.story.detach_taken(self.at, id, &on, instance.is_some());
        let done = self.at + self.some(self.habits.moving.clone());
        self.lock(&on, done);
        self.blocks.get_mut(id).expect("it was there").moving = Moving::Off;
        self.plan(done, Event::Off(id.to_owned()));
        Reply::done()
    }

    fn lock(&mut self, instance: &str, until: Duration) {
        if let Some(instance) = self.instances.get_mut(instance) {
            instance.locked_until = until;
        }
    }

    /// Counts a volume more or less on an instance, if there is such an instance.
    pub(super) fn count(&mut self, instance: Option<&String>, change: isize) {
        if let Some(instance) = instance.and_then(|id| self.instances.get_mut(id)) {
            instance.volumes = instance.volumes.saturating_add_signed(change);
        }
    }

    /// Takes a volume out of the account.
    pub(super) fn remove(&mut self, id: &str, by_console: bool) {
        if let Some(block) = self.blocks.remove(id) {
            self.count(block.on.as_ref(), -1);
            self.count(block.moving.to(), -1);
            self.story.gone(self.at, id, by_console);
        }
    }

    pub(super) fn block_is_active(&mut self, id: &str) {
        self.change(id, |block| block.active = true);
    }

    pub(super) fn block_is_on(&mut self, id: &str, instance: &str) {
        let there = self.instances.contains_key(instance);
        self.change(id, |block| {
            block.moving = Moving::Not;
            block.on = there.then(|| instance.to_owned());
        });
    }

    pub(super) fn block_is_off(&mut self, id: &str) {
        let mut was = (None, None);
        self.change(id, |block| {
            was = (block.moving.to().cloned(), block.on.take());
            block.moving = Moving::Not;
        });
        self.count(was.0.as_ref(), -1);
        self.count(was.1.as_ref(), -1);
    }

    pub(super) fn block_has_size(&mut self, id: &str, gb: u64) {
        self.change(id, |block| block.gb = gb);
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Block)) {
        if let Some(block) = self.blocks.get_mut(id) {
            change(block);
            block.render(id);
            let shown = block.shown();
            self.story.shows(self.at, id, shown);
        }
    }
}
