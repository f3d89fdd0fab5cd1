//! Options for the program that makes a volume's file system, as a `StorageClass` gives them.
//!
//! Only those are taken that change how the file system is laid out. Those that force, that only try, that name another
//! file, device or UUID, or that fill the file system with something, are not: some would undo the proof that nothing
//! is lost, and none makes sense for a volume.

use super::FsType;

/// No set of options that makes sense is longer.
const MAX_BYTES: usize = 1024;

/// Checked options, each a program's argument by itself: no shell ever sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MkfsOptions {
    fs: FsType,
    arguments: Vec<String>,
}

/// What may follow an option.
enum Value {
    /// A whole number, with a unit perhaps: `4096`, `64k`.
    Number,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A name of letters, digits, dots, dashes and underscores.
    Name,
    /// Names with a `^` before those that are switched off, but none of these.
    FeaturesBut(&'static [&'static str]),
    /// `key=value` pairs, or keys alone, of these keys; the values are numbers or names.
    Pairs(&'static [&'static str]),
}

/// The options of mkfs.ext4(8). Left out, among others: `-F` force, `-n` and `-S` which make no whole file system, `-d`
/// which copies files into it, `-U` which is ours.
const EXT4: [(&str, Value); 12] = [
    ("-b", Value::Number),
    ("-C", Value::Number),
    (
        "-E",
        Value::Pairs(&[
            "stride",
            "stripe_width",
            "stripe-width",
            "lazy_itable_init",
            "lazy_journal_init",
            "packed_meta_blocks",
            "num_backup_sb",
            "hash_seed",
            "mmp_update_interval",
            "orphan_file_size",
        ]),
    ),
    ("-G", Value::Number),
    ("-I", Value::Number),
    ("-i", Value::Number),
    ("-J", Value::Pairs(&["size", "fast_commit_size"])),
    ("-L", Value::Name),
    ("-m", Value::Number),
    ("-N", Value::Number),
    ("-O", Value::FeaturesBut(&["journal_dev"])),
    ("-T", Value::Name),
];

/// The options of mkfs.xfs(8). Left out: `-f` force, `-N` which only tries, `-p` which fills it, `-r` and other devices.
const XFS: [(&str, Value); 7] = [
    ("-b", Value::Pairs(&["size", "log"])),
    (
        "-d",
        Value::Pairs(&["agcount", "agsize", "su", "sw", "sunit", "swidth", "noalign", "cowextsize", "extszinherit"]),
    ),
    ("-i", Value::Pairs(&["size", "log", "perblock", "maxpct", "align", "attr", "sparse", "nrext64", "exchange"])),
    ("-l", Value::Pairs(&["size", "version", "sunit", "su", "lazy-count"])),
    ("-L", Value::Name),
    ("-m", Value::Pairs(&["crc", "finobt", "rmapbt", "reflink", "bigtime", "inobtcount", "metadir"])),
    ("-n", Value::Pairs(&["size", "log", "version", "ftype"])),
];

/// The options of mkfs.btrfs(8). Left out: `-f` force, `-r` which fills it, `-b` which makes it smaller than the disk,
/// and profiles that need more than one disk.
const BTRFS: [(&str, Value); 8] = [
    ("--checksum", Value::OneOf(&["crc32c", "xxhash", "sha256", "blake2"])),
    ("--csum", Value::OneOf(&["crc32c", "xxhash", "sha256", "blake2"])),
    ("-d", Value::OneOf(&["single", "dup"])),
    ("-L", Value::Name),
    ("-m", Value::OneOf(&["single", "dup"])),
    ("-n", Value::Number),
    ("-O", Value::FeaturesBut(&["zoned", "list-all"])),
    ("-s", Value::Number),
];

impl MkfsOptions {
    /// The options in `text`, which are separated by white space as on a command line.
    ///
    /// # Errors
    /// What is wrong with them, in words for whoever wrote the `StorageClass`.
    pub fn parse(fs: FsType, text: &str) -> Result<Self, String> {
        let known: &[(&str, Value)] = match fs {
            FsType::Ext4 => &EXT4,
            FsType::Xfs => &XFS,
            FsType::Btrfs => &BTRFS,
        };
        if text.len() > MAX_BYTES {
            return Err(format!("has {} bytes; {MAX_BYTES} are allowed", text.len()));
        }
        let mut arguments = Vec::new();
        let mut words = text.split_whitespace();
        while let Some(option) = words.next() {
            let Some((_, value)) = known.iter().find(|(name, _)| *name == option) else {
                let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
                return Err(format!("'{option}' cannot be given to mkfs.{fs} here; these can: {}", names.join(", ")));
            };
            let given = words.next().ok_or_else(|| format!("'{option}' needs a value"))?;
            value.check(given).map_err(|problem| format!("'{option} {given}': {problem}"))?;
            arguments.extend([option.to_owned(), given.to_owned()]);
        }
        Ok(Self { fs, arguments })
    }

    /// The program's arguments, if it is that of `fs`: to another they mean something else.
    pub fn arguments(&self, fs: FsType) -> &[String] {
        if self.fs == fs { &self.arguments } else { &[] }
    }
}

impl Value {
    fn check(&self, given: &str) -> Result<(), String> {
        match self {
            Self::Number if is_number(given) => Ok(()),
            Self::Number => Err("is not a number, such as 4096 or 64k".to_owned()),
            Self::OneOf(words) if words.contains(&given) => Ok(()),
            Self::OneOf(words) => Err(format!("is none of {}", words.join(", "))),
            Self::Name if is_name(given) => Ok(()),
            Self::Name => Err("is not a name of letters, digits, dots, dashes and underscores".to_owned()),
            Self::FeaturesBut(barred) => given.split(',').map(|one| one.trim_start_matches('^')).try_for_each(|name| {
                if !is_name(name) {
                    Err(format!("'{name}' is not the name of a feature"))
                } else if barred.contains(&name) {
                    Err(format!("{name} makes no file system for a volume"))
                } else {
                    Ok(())
                }
            }),
            Self::Pairs(keys) => given.split(',').try_for_each(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, "1"));
                if !keys.contains(&key) {
                    Err(format!("'{key}' cannot be set here; these can: {}", keys.join(", ")))
                } else if is_number(value) || is_name(value) {
                    Ok(())
                } else {
                    Err(format!("'{value}' is neither a number nor a name"))
                }
            }),
        }
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    text.len() - digits.len() <= 1 && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    // Not like an option.
    !text.is_empty() && !text.starts_with('-') && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_that_lay_out_a_file_system_are_taken_as_they_are() {
        for (fs, text) in [
            (FsType::Ext4, ""),
            (FsType::Ext4, "-b 4096 -i 16384 -I 256 -m 1 -O ^has_journal,metadata_csum -E stride=2,lazy_itable_init=0"),
            (FsType::Ext4, "-T largefile4 -J size=64 -L data"),
            (FsType::Xfs, "-b size=4k -d su=64k,sw=4 -i size=512 -m reflink=0,rmapbt=1 -n ftype=1"),
            (FsType::Btrfs, "-n 16k --csum xxhash -m dup -d single -O no-holes,^free-space-tree"),
        ] {
            let options = MkfsOptions::parse(fs, text).unwrap_or_else(|problem| panic!("{fs} {text}: {problem}"));
            assert_eq!(options.arguments(fs).join(" "), text);
        }
    }

    #[test]
    fn what_forces_or_fills_or_names_something_else_is_refused_by_name() {
        for (fs, text, named) in [
            (FsType::Ext4, "-F", "-F"),
            (FsType::Ext4, "-n", "-n"),
            (FsType::Ext4, "-S", "-S"),
            (FsType::Ext4, "-d /etc", "-d"),
            (FsType::Ext4, "-U random", "-U"),
            (FsType::Ext4, "-E discard", "discard"),
            (FsType::Ext4, "-E offset=4096", "offset"),
            (FsType::Ext4, "-O journal_dev", "journal_dev"),
            (FsType::Ext4, "-b", "needs a value"),
            (FsType::Ext4, "-b 4096;reboot", "not a number"),
            (FsType::Ext4, "-L $(reboot)", "not a name"),
            (FsType::Ext4, "/dev/vda", "/dev/vda"),
            (FsType::Xfs, "-f", "-f"),
            (FsType::Xfs, "-d name=/dev/vda", "name"),
            (FsType::Xfs, "-m uuid=1", "uuid"),
            (FsType::Xfs, "-l logdev=/dev/vda", "logdev"),
            (FsType::Xfs, "-p /etc/passwd", "-p"),
            (FsType::Btrfs, "-f", "-f"),
            (FsType::Btrfs, "-d raid0", "raid0"),
            (FsType::Btrfs, "-r /etc", "-r"),
        ] {
            let problem = MkfsOptions::parse(fs, text).unwrap_err();
            assert!(problem.contains(named), "{fs} {text}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn no_text_becomes_a_force_flag_or_a_path(text in "[-a-zA-Z0-9 =,^/;$]{0,60}") {
            for fs in FsType::ALL {
                if let Ok(options) = MkfsOptions::parse(fs, &text) {
                    for pair in options.arguments(fs).chunks(2) {
                        prop_assert!(pair.len() == 2 && pair[0].starts_with('-') && !pair[1].starts_with('-'));
                        prop_assert!(!["-F", "-f", "-n", "-N"].contains(&pair[0].as_str()) || fs == FsType::Ext4 && pair[0] == "-N" || fs != FsType::Ext4 && pair[0] == "-n");
                        prop_assert!(!pair[1].contains('/'));
                    }
                }
            }
        }
    }
}
