//! File systems that many instances share (VFS). Their objects are not wrapped.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Account, Event,
    answer::{Reply, meta, sql_date},
    route::Sent,
};
use crate::simulation::story::{Life, Shown};

/// A shared file system.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Share {
    pub(in crate::simulation) label: String,
    pub(in crate::simulation) gb: u64,
    region: String,
    tags: String,
    active: bool,
    /// The instances that have it, are getting it or are losing it.
    pub(in crate::simulation) attachments: BTreeMap<String, Attachment>,
    created: Duration,
}

/// A shared file system on an instance.
#[derive(Debug, Clone)]
pub(in crate::simulation) struct Attachment {
    state: &'static str,
    tag: u64,
}

impl Share {
    fn show(&self, id: &str) -> String {
        let Self { label, gb, region, tags, .. } = self;
        let (status, created) = (if self.active { "active" } else { "pending" }, sql_date(self.created));
        format!(
            r#"{{"id":"{id}","region":"{region}","date_created":"{created}","status":"{status}","label":"{label}","tags":{tags},"disk_type":"nvme","storage_size":{{"bytes":{},"gb":{gb}}},"storage_used":{{"bytes":0,"gb":0}},"billing":{{"charges":0.15,"monthly":10}}}}"#,
            gb << 30
        )
    }

    fn attachment(&self, id: &str, instance: &str) -> Option<String> {
        let Attachment { state, tag } = self.attachments.get(instance)?;
        Some(format!(r#"{{"state":"{state}","vfs_id":"{id}","target_id":"{instance}","mount_tag":{tag}}}"#))
    }

    fn shown(&self) -> Shown {
        let on = self.attachments.iter().filter(|(_, attachment)| attachment.state != "PENDING");
        let on: BTreeSet<String> = on.map(|(instance, _)| instance.clone()).collect();
        Shown { active: self.active, gb: self.gb, on }
    }
}

fn unknown() -> Reply {
    Reply::refused(404, "Subscription ID Not Found.")
}

fn no_attachment() -> Reply {
    Reply::refused(404, "Attachment Not Found")
}

fn created(body: String) -> Reply {
    Reply { status: 201, ..Reply::ok(body) }
}

impl Account {
    pub(super) fn handle_share(&mut self, sent: &Sent, parts: &[&str]) -> Reply {
        match (sent.method.as_str(), parts) {
            ("GET", ["regions"]) => Reply::ok(r#"{"regions":[{"id":"ewr","country":"US"}]}"#.to_owned()),
            ("GET", []) => {
                let rows: Vec<String> = self.shares.iter().map(|(id, share)| share.show(id)).collect();
                Reply::ok(format!(r#"{{"vfs":[{}],{}}}"#, rows.join(","), meta(rows.len(), "")))
            }
            ("POST", []) => self.create_share(sent),
            (_, [id, ..]) if !self.shares.contains_key(*id) => unknown(),
            ("GET", [id]) => Reply::ok(self.shares[*id].show(id)),
            ("PUT", [id]) => self.grow_share(id, sent),
            ("DELETE", [id]) => self.delete_share(id),
            ("GET", [id, "attachments"]) => {
                let share = &self.shares[*id];
                let rows: Vec<String> = share.attachments.keys().filter_map(|on| share.attachment(id, on)).collect();
                Reply::ok(format!(r#"{{"attachments":[{}]}}"#, rows.join(",")))
            }
            ("GET", [id, "attachments", on]) => {
                self.shares[*id].attachment(id, on).map_or_else(no_attachment, Reply::ok)
            }
            ("PUT", [id, "attachments", on]) => self.attach_share(id, on),
            ("DELETE", [id, "attachments", on]) => self.detach_share(id, on),
            _ => Reply::refused(405, "Method not allowed. Must be one of: DELETE, GET, PUT"),
        }
    }

    fn create_share(&mut self, sent: &Sent) -> Reply {
        let gb = sent.size().unwrap_or_default();
        if sent.text("region") != "ewr" || gb < 10 {
            return Reply::refused(422, "Bad Request");
        }
        let share = Share {
            label: sent.text("label").to_owned(),
            gb,
            region: "ewr".to_owned(),
            tags: sent.json("tags"),
            active: false,
            attachments: BTreeMap::new(),
            created: self.at,
        };
        let id = self.new_id();
        let life = Life::new(&share.label, &share.region, "vfs", "");
        self.story.made(self.at, &id, life, share.shown());
        let reply = created(share.show(&id));
        self.shares.insert(id.clone(), share);
        let ready = self.at + self.some(self.habits.creating.clone());
        self.plan(ready, Event::ShareActive(id));
        reply
    }

    fn grow_share(&mut self, id: &str, sent: &Sent) -> Reply {
        let gb = sent.size().unwrap_or_default();
        if gb <= self.shares[id].gb {
            return Reply::refused(422, "Bad Request");
        }
        self.change_share(id, |share| share.gb = gb);
        Reply::ok(self.shares[id].show(id))
    }

    fn delete_share(&mut self, id: &str) -> Reply {
        if !self.shares[id].attachments.is_empty() {
            let text = "Can not delete this subscription until it is detatched from all machines";
            return Reply::refused(422, text);
        }
        self.shares.remove(id);
        self.story.gone(self.at, id, false);
        Reply::done()
    }

    fn attach_share(&mut self, id: &str, on: &str) -> Reply {
        if !self.instances.contains_key(on) {
            return Reply::refused(404, "instance not found");
        }
        if !self.shares[id].active {
            return Reply::refused(422, "Bad Request");
        }
        if self.shares[id].attachments.contains_key(on) {
            return Reply::refused(409, "This subscription is attached to that machine already");
        }
        let tag = self.number();
        let attachment = Attachment { state: "PENDING", tag };
        self.change_share(id, |share| {
            share.attachments.insert(on.to_owned(), attachment);
        });
        let done = self.at + self.some(self.habits.moving.clone());
        self.plan(done, Event::ShareOn(id.to_owned(), on.to_owned()));
        created(self.shares[id].attachment(id, on).expect("it is attached"))
    }

    fn detach_share(&mut self, id: &str, on: &str) -> Reply {
        match self.shares[id].attachments.get(on).map(|attachment| attachment.state) {
            None => no_attachment(),
            Some("ATTACHED") => {
                let exists = self.instances.contains_key(on);
                self.story.detach_taken(self.at, id, on, exists);
                self.change_share(id, |share| share.attachments.get_mut(on).expect("it is there").state = "DETACHING");
                let done = self.at + self.some(self.habits.moving.clone());
                self.plan(done, Event::ShareOff(id.to_owned(), on.to_owned()));
                Reply::done()
            }
            Some(_) => Reply::refused(422, "Bad Request"),
        }
    }

    pub(super) fn share_is_active(&mut self, id: &str) {
        self.change_share(id, |share| share.active = true);
    }

    pub(super) fn share_is_on(&mut self, id: &str, on: &str) {
        self.change_share(id, |share| {
            if let Some(attachment) = share.attachments.get_mut(on) {
                attachment.state = "ATTACHED";
            }
        });
    }

    pub(super) fn share_is_off(&mut self, id: &str, on: &str) {
        self.change_share(id, |share| {
            share.attachments.remove(on);
        });
    }

    fn change_share(&mut self, id: &str, change: impl FnOnce(&mut Share)) {
        if let Some(share) = self.shares.get_mut(id) {
            change(share);
            let shown = share.shown();
            self.story.shows(self.at, id, shown);
        }
    }
}
