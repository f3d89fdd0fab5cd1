//! Clouds and clients that do wrong: proof that whoever judges a history would notice.

use serde_json::Value;

use super::{
    account::{Account, Event, Moving, Reply, Sent},
    faults::{Ending, Fate},
};

/// What is wrong with the account, or with the way the driver speaks to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// No listing ever shows the newest volume.
    HidesARow,
    /// A detach takes another volume from its instance, too.
    DetachesAnother,
    /// A volume is shown detached as soon as its detach has begun.
    ShowsDetachedEarly,
    /// A volume is shown attached as soon as its attach has begun.
    ShowsAttachedEarly,
    /// At times a volume is said not to exist.
    SaysGone,
    /// Deletes are confirmed and not carried out.
    ForgetsDeletes,
    /// The same with snapshots.
    ForgetsSnapshots,
    /// A snapshot is said to be complete as soon as it is begun.
    ShowsCompleteEarly,
    /// Whoever hears nothing of a create sends it again.
    RepeatsCreates,
    /// Whoever hears nothing of a create takes it for refused.
    TakesLostForRefused,
    /// A delete takes another volume along.
    DeletesAnother,
    /// A new volume is shown active while it is pending.
    ShowsActiveEarly,
}

/// Each lie, and what has to be noticed of it.
pub(super) const LIES: [(Lie, &str); 12] = [
    (Lie::HidesARow, " is named "),
    (Lie::DetachesAnother, "is detached from"),
    (Lie::ShowsDetachedEarly, "Unpublish"),
    (Lie::ShowsAttachedEarly, "Publish"),
    (Lie::SaysGone, "both are there"),
    (Lie::ForgetsDeletes, "Delete "),
    (Lie::ForgetsSnapshots, "DeleteSnapshot "),
    (Lie::ShowsCompleteEarly, "Snapshot "),
    (Lie::RepeatsCreates, " is named "),
    (Lie::TakesLostForRefused, "that is no answer to such a call"),
    (Lie::DeletesAnother, "is deleted, which nobody asked for"),
    (Lie::ShowsActiveEarly, "Create "),
];

impl Lie {
    /// Changes what becomes of a request; gives what else is sent.
    pub(super) fn spoils(self, sent: &mut Sent, fate: &mut Fate, account: &Account) -> Option<Sent> {
        let lost = matches!(fate.ending, Ending::Lost);
        let other = || account.blocks.keys().find(|id| !sent.path.contains(id.as_str())).cloned();
        match (self, sent.operation) {
            (Self::DetachesAnother, "detach_block") => Some(sent.at(&format!("/v2/blocks/{}/detach", other()?))),
            (Self::DeletesAnother, "delete_block") => Some(sent.at(&format!("/v2/blocks/{}", other()?))),
            (Self::RepeatsCreates, "create_block") if lost => Some(sent.clone()),
            (Self::TakesLostForRefused, "create_block") if lost => {
                fate.ending = Ending::Told(Reply::refused(400, "Unable to add block storage"));
                None
            }
            (Self::ForgetsDeletes, "delete_block") | (Self::ForgetsSnapshots, "delete_snapshot") => {
                (fate.arrives, fate.ending) = (None, Ending::Told(Reply::done()));
                None
            }
            (Self::SaysGone, "get_block") if account.now().subsec_millis().is_multiple_of(7) => {
                fate.ending = Ending::Told(Reply::refused(404, "Invalid block storage ID"));
                None
            }
            _ => None,
        }
    }

    /// Changes what is answered.
    pub(super) fn twists(self, sent: &Sent, reply: &mut Reply, account: &Account) {
        if self == Self::ShowsCompleteEarly {
            reply.body = reply.body.replace(r#""state":"PENDING""#, r#""state":"COMPLETE""#);
        }
        if !sent.is_read() {
            return;
        }
        let Ok(mut body) = serde_json::from_str::<Value>(&reply.body) else { return };
        let newest = account.blocks.keys().max_by_key(|id| id.rsplit('-').next().map(str::to_owned)).cloned();
        if let (Self::HidesARow, Some(rows)) = (self, body["blocks"].as_array_mut()) {
            let before = rows.len();
            rows.retain(|row| row["id"].as_str() != newest.as_deref());
            let hidden = before - rows.len();
            let total = body["meta"]["total"].as_u64().unwrap_or_default();
            body["meta"]["total"] = (total - hidden.min(1) as u64).into();
        }
        let one = body["block"].as_object_mut().map(|one| Value::Object(one.clone()));
        if let Some(mut one) = one {
            self.twist(&mut one, account);
            body["block"] = one;
        }
        if let Some(rows) = body["blocks"].as_array_mut() {
            for row in rows {
                self.twist(row, account);
            }
        }
        reply.body = body.to_string();
    }

    fn twist(self, row: &mut Value, account: &Account) {
        let Some(block) = row["id"].as_str().and_then(|id| account.blocks.get(id)) else { return };
        match (self, &block.moving) {
            (Self::ShowsDetachedEarly, Moving::Off) => row["attached_to_instance"] = "".into(),
            (Self::ShowsAttachedEarly, Moving::To(on)) => row["attached_to_instance"] = on.clone().into(),
            (Self::ShowsActiveEarly, _) => row["status"] = "active".into(),
            _ => {}
        }
    }

    /// Plans what else is sent.
    pub(super) fn sends(sent: Sent, account: &mut Account) {
        let (at, number) = (account.now() + std::time::Duration::from_millis(20), account.number());
        account.plan(at, Event::Arrival(number, sent));
    }
}
