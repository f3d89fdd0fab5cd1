//! What a well-formed request is (CSI 1.13), and the domain's words for what it says.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use crate::{
    cloud::Profile,
    csi::{
        CapacityRange, Topology, TopologyRequirement, VolumeCapability,
        volume_capability::{AccessMode, AccessType, access_mode::Mode},
    },
    error::Error,
    volume::{Access, FsType, NodeId, VolumeId},
};

/// CSI 1.13, "Size Limits": fields of type string are at most 128 bytes unless said otherwise.
const NAME_BYTES: usize = 128;
/// CSI 1.13, "Size Limits": a map of strings, and the mount flags together, are at most 4 KiB.
const MAP_BYTES: usize = 4096;

pub(super) fn name(name: &str) -> Result<String, Error> {
    if name.is_empty() {
        return Err(Error::invalid("name", "is missing"));
    }
    if name.len() > NAME_BYTES {
        return Err(Error::invalid("name", format!("has {} bytes; {NAME_BYTES} are allowed", name.len())));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::invalid("name", "has control characters, which no cloud's label can hold"));
    }
    Ok(name.to_owned())
}

/// The id, or `None` where it is not of the cloud's form and so names no volume.
pub(super) fn maybe_volume_id(profile: &Profile, id: &str) -> Result<Option<VolumeId>, Error> {
    if id.is_empty() {
        return Err(Error::invalid("volume_id", "is missing"));
    }
    Ok(VolumeId::parse(profile.id_form, id))
}

pub(super) fn volume_id(profile: &Profile, id: &str) -> Result<VolumeId, Error> {
    maybe_volume_id(profile, id)?.ok_or_else(|| Error::VolumeNotFound(super::printable(id)))
}

pub(super) fn node_id(profile: &Profile, id: &str) -> Result<NodeId, Error> {
    if id.is_empty() {
        return Err(Error::invalid("node_id", "is missing"));
    }
    NodeId::parse(profile.id_form, id).ok_or_else(|| Error::NodeNotFound(super::printable(id)))
}

/// A path of the CO: absolute and without a way up.
pub(super) fn path(field: &str, path: &str) -> Result<PathBuf, Error> {
    if path.is_empty() {
        return Err(Error::invalid(field, "is missing"));
    }
    if !is_straight(path) {
        return Err(Error::invalid(field, "has to be an absolute path without '..'"));
    }
    Ok(PathBuf::from(path))
}

/// A path at which the volume is said to be: anywhere it cannot be is NOT_FOUND, as csi-sanity has it.
pub(super) fn place(volume: &VolumeId, path: &str) -> Result<PathBuf, Error> {
    if path.is_empty() {
        return Err(Error::invalid("volume_path", "is missing"));
    }
    if !is_straight(path) {
        return Err(Error::NotMounted { volume: volume.to_string(), path: PathBuf::from(super::printable(path)) });
    }
    Ok(PathBuf::from(path))
}

fn is_straight(path: &str) -> bool {
    let path = Path::new(path);
    path.is_absolute()
        && !path.as_os_str().as_encoded_bytes().contains(&0)
        && !path.components().any(|part| part == Component::ParentDir)
}

/// Required and limit bytes, 0 where there is none.
pub(super) fn capacity(range: Option<&CapacityRange>) -> Result<(u64, u64), Error> {
    let Some(range) = range else { return Ok((0, 0)) };
    let bytes = |field: &str, bytes: i64| {
        u64::try_from(bytes)
            .map_err(|_| Error::invalid(format!("capacity_range.{field}"), format!("{bytes} is negative")))
    };
    let required = bytes("required_bytes", range.required_bytes)?;
    let limit = bytes("limit_bytes", range.limit_bytes)?;
    if limit != 0 && limit < required {
        // CSI 1.13, CreateVolume errors: "Unsupported capacity_range" is OUT_OF_RANGE.
        return Err(Error::OutOfRange(format!(
            "capacity_range: limit_bytes {limit} is less than required_bytes {required}"
        )));
    }
    Ok((required, limit))
}

/// A capability, and whether its mode allows only reading.
pub(super) fn capability(capability: &VolumeCapability) -> Result<(Access, bool), Error> {
    const FIELD: &str = "volume_capability";
    let access = match &capability.access_type {
        None => return Err(Error::invalid(FIELD, "names neither block nor mount; exactly one is needed")),
        Some(AccessType::Block(_)) => Access::Block,
        Some(AccessType::Mount(mount)) => {
            let fs_type = match mount.fs_type.as_str() {
                "" => None,
                name => Some(FsType::parse(name).ok_or_else(|| {
                    let known = FsType::ALL.map(FsType::as_str).join(", ");
                    Error::invalid(format!("{FIELD}.fs_type"), format!("'{name}' is not one of {known}"))
                })?),
            };
            if mount.mount_flags.iter().map(String::len).sum::<usize>() > MAP_BYTES {
                return Err(Error::invalid(format!("{FIELD}.mount_flags"), "are longer than 4 KiB together"));
            }
            Access::Mount { fs_type, flags: mount.mount_flags.clone() }
        }
    };
    let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, AccessMode::mode);
    match mode {
        Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter | Mode::SingleNodeMultiWriter => Ok((access, false)),
        Mode::SingleNodeReaderOnly => Ok((access, true)),
        Mode::Unknown => Err(Error::invalid(format!("{FIELD}.access_mode"), "is missing or unknown")),
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => Err(Error::invalid(
            format!("{FIELD}.access_mode"),
            format!("{} cannot be had: a block volume is on one node at a time; use ReadWriteOnce", mode.as_str_name()),
        )),
    }
}

/// Whether one workload alone may have the volume, even among those of one node.
pub(super) fn is_single_writer(capability: Option<&VolumeCapability>) -> bool {
    let mode = capability.and_then(|capability| capability.access_mode.as_ref()).map(AccessMode::mode);
    mode == Some(Mode::SingleNodeSingleWriter)
}

/// The file systems that the capabilities ask for; of raw block nothing.
pub(super) fn file_systems(capabilities: &[VolumeCapability]) -> Result<Vec<Option<FsType>>, Error> {
    let all: Vec<Access> =
        capabilities.iter().map(|one| capability(one).map(|(access, _)| access)).collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|access| *access != Access::Block).map(|access| access.fs_type()).collect())
}

/// The one capability that some calls need.
pub(super) fn needed(one: Option<&VolumeCapability>) -> Result<(Access, bool), Error> {
    capability(one.ok_or_else(|| Error::invalid("volume_capability", "is missing"))?)
}

/// The regions that a requirement allows, in lower case, best first; empty where there is no requirement.
pub(super) fn regions(profile: &Profile, requirement: Option<&TopologyRequirement>) -> Result<Vec<String>, Error> {
    let Some(requirement) = requirement else { return Ok(Vec::new()) };
    let read = |terms: &[Topology]| {
        terms
            .iter()
            .map(|term| region("accessibility_requirements", profile, term))
            .collect::<Result<Vec<String>, Error>>()
    };
    let (preferred, requisite) = (read(&requirement.preferred)?, read(&requirement.requisite)?);
    let mut regions: Vec<String> = Vec::new();
    let allowed = |region: &String| requisite.is_empty() || requisite.contains(region);
    for region in preferred.into_iter().filter(allowed).chain(requisite.iter().cloned()) {
        if !regions.contains(&region) {
            regions.push(region);
        }
    }
    Ok(regions)
}

/// The region that a topology means, in lower case.
pub(super) fn region(field: &str, profile: &Profile, topology: &Topology) -> Result<String, Error> {
    match topology.segments.get(profile.topology_key) {
        Some(region) if !region.is_empty() => Ok(region.to_ascii_lowercase()),
        _ => Err(Error::invalid(
            field,
            format!("a term lacks the segment '{}', which is the only one there is", profile.topology_key),
        )),
    }
}

/// A map that is not longer than the specification allows.
pub(super) fn map(field: &str, map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Error> {
    if map.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAP_BYTES {
        return Err(Error::invalid(field, "is longer than 4 KiB"));
    }
    Ok(map.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::cloud::vultr::PROFILE;

    #[test]
    fn only_straight_paths_are_taken() {
        for (text, ok) in [
            ("/a/b", true),
            ("/a/..b", true),
            ("", false),
            ("a", false),
            ("/a/../b", false),
            ("/..", false),
            ("/a\0", false),
        ] {
            assert_eq!(path("target_path", text).is_ok(), ok, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_checked_before_anything_is_asked() {
        let range = |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
        assert_eq!(capacity(None).unwrap(), (0, 0));
        assert_eq!(capacity(range(5, 7).as_ref()).unwrap(), (5, 7));
        assert_eq!(capacity(range(5, 0).as_ref()).unwrap(), (5, 0));
        assert_eq!(capacity(range(-1, 0).as_ref()).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(capacity(range(0, i64::MIN).as_ref()).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(capacity(range(7, 5).as_ref()).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn preferred_regions_come_first_and_only_required_ones_count() {
        let terms = |regions: &[&str]| {
            regions
                .iter()
                .map(|region| Topology { segments: [("region".to_owned(), (*region).to_owned())].into() })
                .collect::<Vec<_>>()
        };
        let read = |preferred: &[&str], requisite: &[&str]| {
            regions(&PROFILE, Some(&TopologyRequirement { preferred: terms(preferred), requisite: terms(requisite) }))
                .unwrap()
        };
        assert_eq!(read(&["SEA", "ewr"], &["EWR", "sea", "LAX"]), ["sea", "ewr", "lax"]);
        assert_eq!(read(&["MIA", "EWR"], &["EWR"]), ["ewr"]);
        assert_eq!(read(&["EWR"], &[]), ["ewr"]);
        let zone = Topology { segments: [("zone".to_owned(), "a".to_owned())].into() };
        let foreign = TopologyRequirement { requisite: vec![zone], preferred: vec![] };
        assert_eq!(regions(&PROFILE, Some(&foreign)).unwrap_err().code(), Code::InvalidArgument);
    }
}
