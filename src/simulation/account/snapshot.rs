//! Snapshots of block volumes.

use std::time::Duration;

use super::{
    Account, Event,
    answer::{Reply, meta, sql_date},
    route::Sent,
};

/// How a snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::simulation) enum State {
    Pending,
    Complete,
    Failed,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Snapshot {
    pub(in crate::simulation) source: String,
    pub(in crate::simulation) description: String,
    pub(in crate::simulation) gb: u64,
    pub(in crate::simulation) region: String,
    pub(in crate::simulation) state: State,
    added: Duration,
}

impl Snapshot {
    fn show(&self, id: &str) -> String {
        let state = match self.state {
            State::Pending => "PENDING",
            State::Complete => "COMPLETE",
            State::Failed => "FAILED",
        };
        let (source, description, added) = (&self.source, &self.description, sql_date(self.added));
        let size = self.gb << 30;
        format!(
            r#"{{"id":"{id}","block_id":"{source}","description":"{description}","state":"{state}","added_at":"{added}","updated_at":"{added}","size":{size},"next_invoice_date":"","next_invoice_price":""}}"#
        )
    }
}

impl Account {
    /// In one of the shapes that the documents and the clients have.
    fn one_snapshot(&self, status: u16, id: &str) -> Reply {
        let shown = self.snapshots[id].show(id);
        let body = match self.habits.snapshot_shape {
            0 => shown,
            1 => format!(r#"{{"snapshot":{shown}}}"#),
            2 => format!(r#"{{"block":{shown}}}"#),
            _ => format!(r#"{{"snapshot":[{shown}]}}"#),
        };
        Reply { status, retry_after: None, body }
    }

    pub(super) fn list_snapshots(&self, sent: &Sent) -> Reply {
        let asked: usize = sent.asked("per_page").parse().unwrap_or(100);
        let size = asked.clamp(1, 500).min(self.habits.page);
        let from = sent.asked("cursor").strip_prefix("next__").unwrap_or_default();
        let rows: Vec<_> = self.snapshots.range(from.to_owned()..).take(size + 1).collect();
        let next = rows.get(size).map_or(String::new(), |(id, _)| format!("next__{id}"));
        let shown: Vec<String> = rows.iter().take(size).map(|(id, snapshot)| snapshot.show(id)).collect();
        Reply::ok(format!(r#"{{"snapshots":[{}],{}}}"#, shown.join(","), meta(self.snapshots.len(), &next)))
    }

    pub(super) fn get_snapshot(&self, id: &str) -> Reply {
        if self.snapshots.contains_key(id) { self.one_snapshot(200, id) } else { no_snapshot() }
    }

    pub(super) fn create_snapshot(&mut self, sent: &Sent) -> Reply {
        let source = sent.text("block_id").to_owned();
        let Some(block) = self.blocks.get(&source) else { return self.no_block() };
        if !block.active {
            return Reply::refused(400, "Unable to create snapshot");
        }
        let snapshot = Snapshot {
            source,
            description: sent.text("description").to_owned(),
            gb: block.gb,
            region: block.region.clone(),
            state: State::Pending,
            added: self.at,
        };
        let id = self.new_id();
        self.story.snapshots.made(self.at, &id, &snapshot, &mut self.story.wrong);
        self.snapshots.insert(id.clone(), snapshot);
        let done = self.at + self.some(self.habits.taking.clone());
        let ends = if self.chance(self.habits.failing) { State::Failed } else { State::Complete };
        self.plan(done, Event::Taken(id.clone(), ends));
        let at = self.at;
        self.story.note(at, || format!("        snapshot {id} is being taken"));
        self.one_snapshot(201, &id)
    }

    pub(super) fn delete_snapshot(&mut self, id: &str) -> Reply {
        let Some(gone) = self.snapshots.remove(id) else { return no_snapshot() };
        let at = self.at;
        if self.blocks.values().any(|block| block.snapshot == id && !block.active) {
            self.story.wrong(at, format!("snapshot {id} is deleted while a volume is filled from it"));
        }
        // One that has failed holds nothing, and is in the way of the next of its name.
        let useless = gone.description.contains(" clone=") || gone.state == State::Failed;
        let asked = self.story.entitled.snapshots.contains(id) || useless;
        if !asked {
            self.story.wrong(at, format!("snapshot {id} is deleted, which nobody asked for"));
        }
        self.story.snapshots.gone(at, id);
        self.story.note(at, || format!("        snapshot {id} is gone"));
        Reply::done()
    }

    pub(super) fn snapshot_is_taken(&mut self, id: &str, ends: State) {
        let at = self.at;
        if let Some(snapshot) = self.snapshots.get_mut(id) {
            snapshot.state = ends;
            self.story.note(at, || format!("        snapshot {id} is {ends:?}"));
            self.story.snapshots.ended(at, id, ends);
        }
    }
}

fn no_snapshot() -> Reply {
    Reply::refused(404, "Invalid snapshot ID")
}
