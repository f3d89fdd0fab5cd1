//! Which volumes and snapshots of an account no longer belong to anyone: a report, which changes nothing.
//!
//! A volume belongs to somebody if the cluster knows its id, or if an instance has it. Of the rest those are told that
//! the cluster made: a block volume is known by its name, which begins as the provisioner's names do (its label is the
//! CSI name and nothing else), a shared file system by its tags, a snapshot by what the driver wrote on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

use crate::{
    RunError,
    cloud::{
        Account, Cloud, CloudError, InstanceState, Profile, Share, Snapshot, SnapshotState, Volume,
        fence::Fence,
        label::{Cluster, Label, Purpose},
        pace::Pace,
        token::TokenFile,
        watch::Watcher,
    },
    config::OrphansConfig,
    metrics::Metrics,
    volume::{NodeId, SnapshotId, VolumeId},
};

/// Asks the account and writes the report to standard output.
///
/// # Errors
/// What has to be changed of the flags or of the list of ids; that the account cannot be read as a whole.
pub async fn report(config: OrphansConfig) -> Result<(), RunError> {
    let OrphansConfig { profile, account, volume_name_prefix, in_use } = config;
    let in_use = in_use.map(|list| read_in_use(&list, profile)).transpose().map_err(RunError::Configuration)?;
    let token = TokenFile::open(&account.token_file).map_err(RunError::Configuration)?;
    let pace = Pace::new(account.requests_per_second, profile.requests_per_second);
    let (metrics, fence) = (Metrics::default(), Fence::default());
    let api = Account { api_url: account.api_url, token, pace, metrics, fence };
    let cloud = (profile.connect)(api).map_err(RunError::Failed)?;
    let owner = Owner {
        prefix: format!("{volume_name_prefix}-"),
        cluster: account.cluster,
        in_use: in_use.unwrap_or_default(),
    };
    let report = Report::of(&cloud, &owner)
        .await
        .map_err(|error| RunError::Failed(format!("the account cannot be read, so there is no report: {error}")))?;
    let written = std::io::stdout().write_all(report.to_string().as_bytes());
    written.map_err(|error| RunError::Failed(format!("the report cannot be written: {error}")))
}

/// Whose things are looked for, and which of them are known.
#[derive(Debug)]
pub struct Owner {
    /// What the names of its block volumes begin with.
    pub prefix: String,
    /// Its name.
    pub cluster: Cluster,
    /// The ids that it knows.
    pub in_use: BTreeSet<String>,
}

/// Reads the ids that the cluster knows, one a line.
fn read_in_use(path: &Path, profile: &Profile) -> Result<BTreeSet<String>, String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    read.map_err(|error| format!("--in-use {}: {error}", path.display()))?;
    parse_in_use(&text, profile)
}

fn parse_in_use(text: &str, profile: &Profile) -> Result<BTreeSet<String>, String> {
    let ids: BTreeSet<String> = text.lines().map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect();
    let is_id = |id: &&String| VolumeId::parse(profile.id_form, id).is_none();
    // Volumes of other drivers are in the list as well; a list with none of ours in it is some other text.
    if ids.iter().all(|id| is_id(&id)) {
        return Err(
            "--in-use: there is no id of this cloud in the list, and then every volume would be an orphan; give \
                    the output of kubectl that --help shows, or --nothing-in-use if the cluster has none any more"
                .to_owned(),
        );
    }
    Ok(ids)
}

/// A thing that belongs to nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// What it is.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Its CSI name.
    pub name: String,
    /// Its size, in GiB.
    pub size_gib: u64,
    /// When it was made, as the cloud tells it.
    pub created: String,
    /// Why it is told.
    pub why: String,
}

/// What belongs to nobody, and how much was looked at.
#[derive(Debug, Default)]
pub struct Report {
    /// The orphans.
    pub orphans: Vec<Orphan>,
    /// How many things the account has.
    pub looked_at: usize,
}

impl Report {
    /// Looks at the whole account.
    ///
    /// # Errors
    /// The cloud's: a report of a part would call the rest good.
    pub async fn of(cloud: &Arc<dyn Cloud>, owner: &Owner) -> Result<Self, CloudError> {
        let mut report = Self::default();
        let mut instances = Instances { cloud: cloud.as_ref(), gone: BTreeMap::new() };
        report.volumes(Watcher::<Volume>::new(Arc::clone(cloud)).list_whole().await?, owner, &mut instances).await?;
        if cloud.snapshots().is_some() {
            report.snapshots(Watcher::<Snapshot>::new(Arc::clone(cloud)).list_whole().await?, owner);
        }
        if let Some(api) = cloud.shares() {
            for share in Watcher::<Share>::new(Arc::clone(cloud)).list_whole().await? {
                report.looked_at += 1;
                let is_ours = share.name.starts_with(&owner.prefix) && owner.cluster.owns(&share.tags);
                if !is_ours || owner.in_use.contains(share.id.as_str()) {
                    continue;
                }
                let mut is_used = false;
                for attachment in api.share_attachments(&share.id).await? {
                    is_used = is_used || !instances.is_gone(&attachment.node).await?;
                }
                if !is_used {
                    report.orphans.push(Orphan {
                        kind: "shared file system",
                        id: share.id.to_string(),
                        name: share.name,
                        size_gib: share.size.0,
                        created: share.created,
                        why: UNKNOWN.to_owned(),
                    });
                }
            }
        }
        Ok(report)
    }

    async fn volumes(
        &mut self,
        volumes: Vec<Volume>,
        owner: &Owner,
        instances: &mut Instances<'_>,
    ) -> Result<(), CloudError> {
        self.looked_at += volumes.len();
        let mut of_name: BTreeMap<String, usize> = BTreeMap::new();
        for volume in &volumes {
            *of_name.entry(volume.name.clone()).or_default() += 1;
        }
        for volume in volumes {
            let is_ours = volume.name.starts_with(&owner.prefix) && !volume.bootable;
            if !is_ours || owner.in_use.contains(volume.id.as_str()) {
                continue;
            }
            if let Some(node) = &volume.attached_to
                && !instances.is_gone(node).await?
            {
                continue;
            }
            let twin = of_name.get(&volume.name).is_some_and(|count| *count > 1);
            let why = if twin { format!("{UNKNOWN}; another volume has the same name") } else { UNKNOWN.to_owned() };
            self.orphans.push(Orphan {
                kind: "volume",
                id: volume.id.to_string(),
                name: volume.name,
                size_gib: volume.size.0,
                created: volume.created,
                why,
            });
        }
        Ok(())
    }

    fn snapshots(&mut self, snapshots: Vec<Snapshot>, owner: &Owner) {
        self.looked_at += snapshots.len();
        for snapshot in snapshots {
            let id: &SnapshotId = &snapshot.id;
            let Some(label) = Label::parse(&snapshot.description) else { continue };
            if label.cluster != owner.cluster.name() || owner.in_use.contains(id.as_str()) {
                continue;
            }
            let why = match (label.purpose, &snapshot.state) {
                (Purpose::Clone, _) => "a clone was made by way of it; the controller drops it within the hour",
                (Purpose::Snapshot, SnapshotState::Failed) => "the cluster does not know it; it has failed",
                (Purpose::Snapshot, _) => "the cluster does not know it",
            };
            self.orphans.push(Orphan {
                kind: "snapshot",
                id: id.to_string(),
                name: label.name.to_owned(),
                size_gib: snapshot.size_bytes >> 30,
                created: snapshot.created.clone(),
                why: why.to_owned(),
            });
        }
    }
}

/// The instances that volumes are attached to. One that was deleted may still be told.
struct Instances<'a> {
    cloud: &'a dyn Cloud,
    gone: BTreeMap<NodeId, bool>,
}

impl Instances<'_> {
    async fn is_gone(&mut self, node: &NodeId) -> Result<bool, CloudError> {
        if let Some(is_gone) = self.gone.get(node) {
            return Ok(*is_gone);
        }
        let is_gone = self.cloud.instance(node).await? == InstanceState::Gone;
        self.gone.insert(node.clone(), is_gone);
        Ok(is_gone)
    }
}

const UNKNOWN: &str = "the cluster does not know it, and no instance has it";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.orphans.is_empty() {
            writeln!(f, "{:<18}  {:<36}  {:>9}  {:<25}  {:<28}  WHY", "KIND", "ID", "SIZE", "CREATED", "NAME")?;
        }
        for Orphan { kind, id, name, size_gib, created, why } in &self.orphans {
            writeln!(f, "{kind:<18}  {id:<36}  {size_gib:>5} GiB  {created:<25}  {name:<28}  {why}")?;
        }
        let (count, all) = (self.orphans.len(), self.looked_at);
        writeln!(f, "{count} of {all} volumes and snapshots belong to nobody; nothing was changed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::vultr::PROFILE;

    #[test]
    fn a_list_without_an_id_of_the_cloud_is_no_list() {
        let id = "cb676a46-66fd-4dfb-b839-443f2e6c0b60";
        let read = |text: &str| parse_in_use(text, &PROFILE);
        assert_eq!(read(&format!("\n {id}\nvol-0123 of another driver\n")).unwrap().len(), 2);
        for bad in ["", "\n\n", "error: the server doesn't have a resource type \"pv\"\n"] {
            assert!(read(bad).unwrap_err().starts_with("--in-use"), "{bad}");
        }
    }
}
