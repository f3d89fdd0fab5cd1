//! What a `StorageClass` says of the content of its volumes, on the way from CreateVolume's parameters through the volume
//! context to the node. It is the driver's own: no cloud knows of it.

use std::collections::BTreeMap;

use crate::{
    error::Error,
    volume::{Discard, FsType, MkfsOptions},
};

/// `true` or `false`: the disk is encrypted, with a key that every stage brings.
const ENCRYPTED: &str = "encrypted";
/// Options for the program that makes the file system.
const MKFS_OPTIONS: &str = "mkfs_options";
/// `never`, `online` or `weekly`: when what is deleted is told to the disk.
const DISCARD: &str = "discard";

/// Parameters that are the driver's own.
const KEYS: [&str; 3] = [ENCRYPTED, MKFS_OPTIONS, DISCARD];

/// How the content of a volume is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Content {
    /// The disk is encrypted.
    pub(super) encrypted: bool,
    /// How its file system is laid out.
    pub(super) mkfs_options: MkfsOptions,
    /// When what is deleted is told to the disk.
    pub(super) discard: Discard,
}

impl Content {
    /// Takes the driver's own keys out of the parameters of a `StorageClass`, and gives what the node has to be told of
    /// them, checked for every file system that the volume may get.
    pub(super) fn take(
        parameters: &mut BTreeMap<String, String>,
        file_systems: &[Option<FsType>],
    ) -> Result<BTreeMap<String, String>, Error> {
        let own = Self::keys(parameters);
        for fs in file_systems {
            Self::read("parameter ", "", &own, *fs)?;
        }
        Ok(own)
    }

    /// Takes the driver's own keys out of the parameters of a `StorageClass`, unread.
    pub(super) fn keys(parameters: &mut BTreeMap<String, String>) -> BTreeMap<String, String> {
        KEYS.iter().filter_map(|key| parameters.remove_entry(*key)).collect()
    }

    /// Refuses what a shared file system cannot have: its content is not made by the node.
    pub(super) fn of_share(own: &BTreeMap<String, String>) -> Result<(), Error> {
        let asks = |(key, value): &(&String, &String)| {
            let asks_for_nothing = key.as_str() == ENCRYPTED && value.eq_ignore_ascii_case("false");
            !asks_for_nothing
        };
        match own.iter().find(asks) {
            None => Ok(()),
            Some((key, _)) => {
                let problem = "has no meaning for a shared file system; leave it out, or use block storage";
                Err(Error::invalid(format!("parameter {key}"), problem))
            }
        }
    }

    /// Reads them where the node is told.
    pub(super) fn of_volume(context: &BTreeMap<String, String>, fs: Option<FsType>) -> Result<Self, Error> {
        Self::read("volume_context[", "]", context, fs)
    }

    fn read(before: &str, after: &str, told: &BTreeMap<String, String>, fs: Option<FsType>) -> Result<Self, Error> {
        let wrong = |key: &str, problem: String| Error::invalid(format!("{before}{key}{after}"), problem);
        let word = |key: &str| told.get(key).map(|value| value.to_ascii_lowercase());
        let encrypted = match word(ENCRYPTED).as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(wrong(ENCRYPTED, format!("'{other}' is not 'true' or 'false'"))),
        };
        let discard = match word(DISCARD) {
            None => Discard::default(),
            Some(word) => Discard::ALL.into_iter().find(|discard| discard.as_str() == word).ok_or_else(|| {
                let words = Discard::ALL.map(Discard::as_str).join(", ");
                wrong(DISCARD, format!("'{word}' is none of {words}"))
            })?,
        };
        let mkfs_options =
            MkfsOptions::parse(fs.unwrap_or_default(), told.get(MKFS_OPTIONS).map_or("", String::as_str))
                .map_err(|problem| wrong(MKFS_OPTIONS, problem))?;
        Ok(Self { encrypted, mkfs_options, discard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_the_class_says_reaches_the_node_and_the_rest_stays_the_clouds() {
        let own = [("encrypted", "True"), ("discard", "online"), ("mkfs_options", "-i 65536")];
        let mut parameters = map(&[&own[..], &[("disk_type", "hdd")]].concat());
        let told = Content::take(&mut parameters, &[None]).unwrap();
        assert_eq!((told.clone(), parameters), (map(&own), map(&[("disk_type", "hdd")])));
        let content = Content::of_volume(&told, None).unwrap();
        assert!(content.encrypted && content.discard == Discard::Online);
        assert_eq!(content.mkfs_options.arguments(FsType::Ext4), ["-i", "65536"]);
        assert_eq!(Content::of_volume(&map(&[("source", "blank")]), None).unwrap(), Content::default());
    }

    #[test]
    fn what_is_wrong_is_named_before_anything_is_made() {
        for (key, value, fs) in [
            ("encrypted", "yes", None),
            ("discard", "daily", None),
            ("mkfs_options", "-F", None),
            ("mkfs_options", "-i 65536", Some(FsType::Xfs)),
        ] {
            let error = Content::take(&mut map(&[(key, value)]), &[fs]).unwrap_err();
            assert!(matches!(&error, Error::Invalid { field, .. } if field == &format!("parameter {key}")), "{error}");
            let error = Content::of_volume(&map(&[(key, value)]), fs).unwrap_err();
            assert!(error.to_string().starts_with(&format!("volume_context[{key}]: ")), "{error}");
        }
    }
}
