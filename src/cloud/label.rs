//! What the driver writes on things, to know them again: on a snapshot its label, on what has tags its cluster.
//!
//! A snapshot of a cloud like Vultr has no name, no region and no owner of its own, and may outlive its volume, so its
//! description holds them, in one form that is read strictly:
//!
//! ```text
//! cloud-block-csi/1 region=ewr cluster=prod snapshot=snapshot-5d1f...
//! cloud-block-csi/1 region=ewr cluster=prod clone=pvc-0123456789abcdef
//! ```
//! Whatever is not of this form was not written by the driver, and is left alone.

use std::fmt;

const BEGIN: &str = "cloud-block-csi/1 region=";

/// What a snapshot is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody asked for it.
    Snapshot,
    /// A volume is cloned by way of it; it goes when that is done.
    Clone,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot=",
            Self::Clone => "clone=",
        }
    }

    /// What a snapshot made for this under a CSI name is found by again.
    pub fn key(self, name: &str) -> String {
        format!("{}{name}", self.as_str())
    }
}

/// What the driver writes on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label<'a> {
    /// The region of the volume it is taken of, in lower case.
    pub region: &'a str,
    /// The cluster it is taken for; empty where that has no name.
    pub cluster: &'a str,
    /// What it is there for.
    pub purpose: Purpose,
    /// The CSI name: of the snapshot, or of the volume to be.
    pub name: &'a str,
}

impl<'a> Label<'a> {
    /// Reads a description; `None` if the driver did not write it.
    pub fn parse(description: &'a str) -> Option<Self> {
        let (region, rest) = description.strip_prefix(BEGIN)?.split_once(" cluster=")?;
        let (cluster, rest) = rest.split_once(' ')?;
        let is_region = !region.is_empty() && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let of = |purpose: Purpose| rest.strip_prefix(purpose.as_str()).map(|name| (purpose, name));
        let (purpose, name) = of(Purpose::Snapshot).or_else(|| of(Purpose::Clone))?;
        let is_name = !name.is_empty() && !name.chars().any(char::is_control);
        (is_region && is_cluster(cluster) && is_name).then_some(Self { region, cluster, purpose, name })
    }

    /// What `description` is found by again, if the driver wrote it.
    pub fn key(description: &str) -> Option<&str> {
        let label = Label::parse(description)?;
        let length = label.purpose.as_str().len() + label.name.len();
        description.get(description.len() - length..)
    }
}

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { region, cluster, purpose, name } = self;
        write!(f, "{BEGIN}{region} cluster={cluster} {}{name}", purpose.as_str())
    }
}

/// The cluster that the driver works for, as it is written on what can be written on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster(String);

impl Cluster {
    /// What its tag begins with.
    const TAG: &'static str = "csi-cluster:";

    /// A cluster of this name; `None` if no cluster can have it. The empty name is that of a cluster without one.
    pub fn parse(name: &str) -> Option<Self> {
        is_cluster(name).then(|| Self(name.to_owned()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// What is written on things that have tags.
    pub fn tags(&self) -> Vec<String> {
        if self.0.is_empty() { Vec::new() } else { vec![format!("{}{}", Self::TAG, self.0)] }
    }

    /// Whether what has these tags is this cluster's.
    pub fn owns(&self, tags: &[String]) -> bool {
        tags.iter().find_map(|tag| tag.strip_prefix(Self::TAG)).unwrap_or_default() == self.0
    }
}

/// Whether a cluster can have this name, the empty one among them.
fn is_cluster(name: &str) -> bool {
    name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for purpose in [Purpose::Snapshot, Purpose::Clone] {
            for (cluster, name) in [("prod", "pvc-1"), ("", "a name with = and cluster=x"), ("a.b-c", "\u{e4}")] {
                let label = Label { region: "ewr", cluster, purpose, name };
                let text = label.to_string();
                assert_eq!(Label::parse(&text), Some(label), "{text}");
                assert_eq!(Label::key(&text), Some(purpose.key(name).as_str()));
            }
        }
    }

    #[test]
    fn a_cluster_owns_what_has_its_tag_and_one_without_a_name_what_has_none() {
        let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        let (prod, nameless) = (Cluster::parse("prod").unwrap(), Cluster::default());
        assert_eq!(prod.tags(), ["csi-cluster:prod"]);
        for (of, has, owns) in [
            (&prod, &["web", "csi-cluster:prod"][..], true),
            (&prod, &["csi-cluster:test"], false),
            (&prod, &["web"], false),
            (&nameless, &["web"], true),
            (&nameless, &["csi-cluster:prod"], false),
        ] {
            assert_eq!(of.owns(&tags(has)), owns, "{of:?} {has:?}");
        }
        assert_eq!(Cluster::parse("Prod"), None);
    }

    #[test]
    fn what_somebody_else_wrote_is_not_taken_for_ours() {
        for text in [
            "",
            "nightly",
            "cloud-block-csi/1 region=EWR cluster=a snapshot=b",
            "cloud-block-csi/1 region= cluster=a snapshot=b",
            "cloud-block-csi/1 region=ewr cluster=a b snapshot=c",
            "cloud-block-csi/1 region=ewr cluster=A snapshot=c",
            "cloud-block-csi/1 region=ewr cluster=a snapshot=",
            "cloud-block-csi/1 region=ewr cluster=a backup=b",
            "cloud-block-csi/1 region=ewr cluster=a snapshot=b\n",
            "cloud-block-csi/2 region=ewr cluster=a snapshot=b",
            " cloud-block-csi/1 region=ewr cluster=a snapshot=b",
        ] {
            assert_eq!(Label::parse(text), None, "{text}");
        }
    }
}
