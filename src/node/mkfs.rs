//! The programs that make file systems, and how they are asked to.
//!
//! Nothing here decides whether a disk may be formatted: that is `format`'s, on `blank`'s proof.

use std::path::Path;

use tracing::info;

use super::{
    device::Device,
    host::{Host, Tool},
    lock::Lock,
};
use crate::{error::Error, volume::FsType};

/// Where the profiles of xfsprogs are.
const XFS_PROFILES: &str = "/usr/share/xfsprogs/mkfs";

/// The kernels that xfsprogs has profiles for, oldest first.
const XFS_PROFILE_KERNELS: [(u32, u32); 7] = [(4, 19), (5, 4), (5, 10), (5, 15), (6, 1), (6, 6), (6, 12)];

/// Makes a file system with `uuid`. The disk is proven to be blank.
///
/// There is no force flag: mkfs.xfs and mkfs.btrfs look for themselves and refuse, and all three open the disk
/// exclusively (mkfs.ext4 asks before it overwrites, but only people). Nothing is discarded: on a blank disk that gains
/// nothing, and what the proof did not read would be lost.
pub(crate) async fn make(
    host: &dyn Host,
    device: &Device,
    fs: FsType,
    uuid: &str,
    options: &[String],
    lock: &Lock,
) -> Result<(), Error> {
    let node = device.node_str();
    let (tool, mut arguments) = match fs {
        FsType::Ext4 => (Tool::MkfsExt4, ext4_options(options)),
        FsType::Btrfs => (Tool::MkfsBtrfs, [&["-K".to_owned()], options].concat()),
        FsType::Xfs => (Tool::MkfsXfs, [vec!["-K".to_owned()], xfs_options(host, node, options, lock).await?].concat()),
    };
    arguments.push("-q".to_owned());
    arguments.extend(match fs {
        FsType::Ext4 | FsType::Btrfs => ["-U".to_owned(), uuid.to_owned()],
        FsType::Xfs => ["-m".to_owned(), format!("uuid={uuid}")],
    });
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain([node]).collect();
    device.verify().await?;
    host.run(tool, &arguments, None, lock).await?.ok(tool, device.node())?;
    info!(volume = %device.volume(), device = %node, %fs, "formatted");
    Ok(())
}

/// No blocks are reserved for root, unless asked for: the volume is the workload's. Of several `-E` mke2fs takes the last.
fn ext4_options(options: &[String]) -> Vec<String> {
    let mut arguments = vec!["-m".to_owned(), "0".to_owned()];
    let mut extended = vec!["nodiscard"];
    for pair in options.chunks(2) {
        match pair {
            [option, value] if option == "-E" => extended.push(value),
            other => arguments.extend_from_slice(other),
        }
    }
    arguments.extend(["-E".to_owned(), extended.join(",")]);
    arguments
}

/// Options for a file system that the running kernel can mount, whatever this image's mkfs.xfs would do by itself.
///
/// The packages' own profiles come first, tried on paper (`-N`), since those of Debian 12 name an option that its
/// mkfs.xfs 6.1 does not know (seen 2026-11); what they say of that version is repeated here.
async fn xfs_options(host: &dyn Host, node: &str, options: &[String], lock: &Lock) -> Result<Vec<String>, Error> {
    let kernel = host.boot().kernel;
    for (major, minor) in XFS_PROFILE_KERNELS.into_iter().rev().filter(|profile| *profile <= kernel) {
        let path = format!("{XFS_PROFILES}/lts_{major}.{minor}.conf");
        if !Path::new(&path).exists() {
            continue;
        }
        let arguments = [&["-c".to_owned(), format!("options={path}")], options].concat();
        let on_paper: Vec<&str> =
            ["-N"].into_iter().chain(arguments.iter().map(String::as_str)).chain([node]).collect();
        if host.run(Tool::MkfsXfs, &on_paper, None, lock).await?.success() {
            return Ok(arguments);
        }
    }
    let since = |version| u8::from(kernel >= version);
    // What the StorageClass says goes first, and mkfs.xfs takes nothing that is said twice.
    let said =
        |name: &str| options.iter().any(|given| given.split(',').any(|pair| pair.split('=').next() == Some(name)));
    let ours = |pairs: &[(&str, u8)]| {
        let pairs = pairs.iter().filter(|(name, _)| !said(name)).map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(",")
    };
    let mut arguments = options.to_vec();
    for (option, pairs) in [
        (
            "-m",
            ours(&[
                ("crc", 1),
                ("finobt", 1),
                ("rmapbt", 0),
                ("reflink", since((5, 4))),
                ("bigtime", since((5, 15))),
                ("inobtcount", since((5, 15))),
            ]),
        ),
        ("-i", ours(&[("sparse", 1), ("nrext64", 0)])),
    ] {
        if !pairs.is_empty() {
            arguments.extend([option.to_owned(), pairs]);
        }
    }
    Ok(arguments)
}

/// Tries the options of a class without writing anything, as far as the program can.
///
/// # Errors
/// [`Error::Invalid`] with what the program says of them.
pub(super) async fn try_on_paper(
    host: &dyn Host,
    device: &Device,
    fs: FsType,
    options: &[String],
    lock: &Lock,
) -> Result<(), Error> {
    let (tool, mut arguments) = match fs {
        _ if options.is_empty() => return Ok(()),
        FsType::Ext4 => (Tool::MkfsExt4, [vec!["-n".to_owned(), "-q".to_owned()], ext4_options(options)].concat()),
        FsType::Xfs => {
            let given = xfs_options(host, device.node_str(), options, lock).await?;
            (Tool::MkfsXfs, [vec!["-N".to_owned()], given].concat())
        }
        // It has no such thing.
        FsType::Btrfs => return Ok(()),
    };
    arguments.push(device.node_str().to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = host.run(tool, &arguments, None, lock).await?;
    match output.code {
        Some(0) => return Ok(()),
        Some(1) => {}
        _ => return Err(output.error(tool, device.node())),
    }
    let said = if output.stderr.trim().is_empty() { output.stdout } else { output.stderr };
    Err(Error::invalid("volume_context[mkfs_options]", format!("{} refuses them: {}", tool.program(), said.trim())))
}
