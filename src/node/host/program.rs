//! The programs that the node runs, in one table: what an image has to have, and what is looked for at the start.
//!
//! They are called directly, none through a shell, and none of them is a script.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::error::Error;

/// Where programs are looked for, and nowhere else.
pub(super) const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// How long a program may take to tell its version; one whose disk hangs never does.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program that the node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tool {
    /// Names what a disk holds.
    Blkid,
    /// Makes a device read-only or writable again.
    Blockdev,
    /// Makes ext4.
    MkfsExt4,
    /// Makes xfs.
    MkfsXfs,
    /// Makes btrfs.
    MkfsBtrfs,
    /// Checks ext4.
    E2fsck,
    /// Grows ext4.
    Resize2fs,
    /// Grows xfs.
    XfsGrowfs,
    /// Grows btrfs.
    Btrfs,
    /// Makes, unlocks and locks encrypted disks.
    Cryptsetup,
    /// Tells a disk what its file system does not need.
    Fstrim,
}

/// What is known of a program.
struct Program {
    tool: Tool,
    name: &'static str,
    /// The package of Debian and Ubuntu that has it.
    package: &'static str,
    /// What makes it tell its version and end.
    version: &'static str,
}

const fn program(tool: Tool, name: &'static str, package: &'static str, version: &'static str) -> Program {
    Program { tool, name, package, version }
}

/// All of them, in the order of [`Tool`].
const PROGRAMS: [Program; 11] = [
    program(Tool::Blkid, "blkid", "util-linux", "--version"),
    program(Tool::Blockdev, "blockdev", "util-linux", "--version"),
    program(Tool::MkfsExt4, "mkfs.ext4", "e2fsprogs", "-V"),
    program(Tool::MkfsXfs, "mkfs.xfs", "xfsprogs", "-V"),
    program(Tool::MkfsBtrfs, "mkfs.btrfs", "btrfs-progs", "-V"),
    program(Tool::E2fsck, "e2fsck", "e2fsprogs", "-V"),
    // It has no such option, but tells its version before it complains of that.
    program(Tool::Resize2fs, "resize2fs", "e2fsprogs", "-V"),
    program(Tool::XfsGrowfs, "xfs_growfs", "xfsprogs", "-V"),
    program(Tool::Btrfs, "btrfs", "btrfs-progs", "--version"),
    program(Tool::Cryptsetup, "cryptsetup", "cryptsetup-bin", "--version"),
    program(Tool::Fstrim, "fstrim", "util-linux", "--version"),
];

impl Tool {
    /// The program's name.
    pub fn program(self) -> &'static str {
        PROGRAMS[self as usize].name
    }
}

/// Where each program is.
pub(super) fn find() -> Result<BTreeMap<Tool, PathBuf>, Error> {
    let found = PROGRAMS.iter().map(|program| Ok((program.tool, program.find(&DIRECTORIES)?)));
    found.collect::<Result<_, String>>().map_err(Error::Precondition)
}

/// Finds every program and runs it once, so that one that is missing, or lacks a library, shows when the driver starts and
/// not when a volume needs it. Tells their versions.
///
/// # Errors
/// In words for the operator: all programs that cannot be run, and what to install.
pub async fn check_programs() -> Result<String, String> {
    check(&PROGRAMS, &DIRECTORIES).await
}

async fn check(programs: &[Program], directories: &[&str]) -> Result<String, String> {
    let mut versions = Vec::new();
    let mut unusable = Vec::new();
    for (program, answer) in programs.iter().zip(join_all(programs.iter().map(|one| one.ask(directories))).await) {
        match answer {
            Ok(version) => versions.push(format!("{} {version}", program.name)),
            Err(problem) => unusable.push((problem, program.package)),
        }
    }
    if unusable.is_empty() {
        return Ok(versions.join(", "));
    }
    let (problems, mut packages): (Vec<_>, Vec<_>) = unusable.into_iter().unzip();
    packages.sort_unstable();
    packages.dedup();
    Err(format!(
        "the node cannot work without these programs: {}; install them (Debian packages: {}), or use the driver's own image",
        problems.join("; "),
        packages.join(", ")
    ))
}

impl Program {
    fn find(&self, directories: &[&str]) -> Result<PathBuf, String> {
        let mut unusable = None;
        for at in directories.iter().map(|directory| Path::new(directory).join(self.name)) {
            match fs::metadata(&at) {
                Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => return Ok(at),
                Ok(_) => unusable = Some(at),
                // Nothing there, or nothing that can be reached.
                Err(_) => {}
            }
        }
        Err(unusable.map_or_else(
            || format!("{} is not in {}", self.name, directories.join(":")),
            |at| format!("{} is not a program that can be run", at.display()),
        ))
    }

    /// Its version, told by itself.
    async fn ask(&self, directories: &[&str]) -> Result<String, String> {
        let at = self.find(directories)?;
        let failed = |error: std::io::Error| format!("{} cannot be run: {error}", at.display());
        let mut command = tokio::process::Command::new(&at);
        command.arg(self.version).env_clear().env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await;
        let output = output.map_err(|_| format!("{} says nothing for {} s", at.display(), PATIENCE.as_secs()))?;
        let output = output.map_err(failed)?;
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).join(" ");
        // Of the dynamic loader and of shells alike: it could not be started.
        let started = output.status.code().is_some_and(|code| code < 126);
        let version = text
            .split_whitespace()
            .map(|word| word.trim_start_matches('v'))
            .find(|word| word.contains('.') && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
        match version.filter(|_| started) {
            Some(version) => Ok(version.to_owned()),
            None => Err(format!("{} does not work ({}): {text}", at.display(), output.status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_programs() {
        for (at, program) in PROGRAMS.iter().enumerate() {
            assert_eq!(program.tool as usize, at, "{}", program.name);
        }
    }

    #[tokio::test]
    async fn programs_tell_their_versions() {
        let versions = check_programs().await.unwrap();
        for program in PROGRAMS {
            let told = versions.split(", ").find_map(|one| one.strip_prefix(program.name)?.strip_prefix(' '));
            assert!(told.is_some_and(|version| version.contains('.')), "{}: {versions}", program.name);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_come_to_an_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/usr/bin/sleep", dir.path().join("hung")).unwrap();
        let programs = [program(Tool::Blkid, "hung", "package", "600")];
        let told = check(&programs, &[dir.path().to_str().unwrap()]).await.unwrap_err();
        assert!(told.contains("hung says nothing for 20 s"), "{told}");
    }

    #[tokio::test]
    async fn all_programs_that_cannot_be_run_are_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        fs::write(dir.path().join("mkfs.text"), "no program").unwrap();
        symlink("/usr/bin/true", dir.path().join("silent")).unwrap();
        // A shell ends with 127 when its script is not there, as a program does whose library is not there.
        symlink("/bin/sh", dir.path().join("broken")).unwrap();
        symlink("/usr/bin/env", dir.path().join("good")).unwrap();
        let programs = [
            program(Tool::Blkid, "absent", "package-c", "-V"),
            program(Tool::Btrfs, "mkfs.text", "package-b", "-V"),
            program(Tool::Fstrim, "broken", "package-a", "/absent/libfoo.so.1.2"),
            program(Tool::E2fsck, "silent", "package-b", "-V"),
            program(Tool::MkfsExt4, "good", "package-d", "--version"),
        ];
        let told = check(&programs, &[path, "/absent"]).await.unwrap_err();
        for part in [
            format!("absent is not in {path}:/absent;"),
            format!("{path}/mkfs.text is not a program that can be run;"),
            format!("{path}/broken does not work (exit status: "),
            "libfoo.so".to_owned(),
            format!("{path}/silent does not work (exit status: 0)"),
            "(Debian packages: package-a, package-b, package-c)".to_owned(),
        ] {
            assert!(told.contains(&part), "{part} is not in {told}");
        }
        assert!(check(&programs[4..], &[path]).await.unwrap().starts_with("good "));
    }
}
