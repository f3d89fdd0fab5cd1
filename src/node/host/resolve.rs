//! Paths as the kernel's mount table has them, and how far links are followed on the way.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
};

/// `path` without links in what leads there. Components that are not there yet stay as they are.
///
/// Below the `kubelet`'s directory no link is followed: only the kubelet makes anything there, and whoever put one there
/// wants something mounted elsewhere.
///
/// # Errors
/// `ELOOP` for such a link, `PermissionDenied` for a path that is not below the kubelet's directory.
pub(super) fn resolve(kubelet: Option<&Path>, path: &Path) -> io::Result<PathBuf> {
    if !path.is_absolute() {
        // Nothing is mounted there, and nothing will be.
        return Ok(path.to_owned());
    }
    let Some(kubelet) = kubelet else {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_owned()) };
        return Ok(canonical(parent)?.join(name));
    };
    let outside = || {
        let problem = format!("it is not below the kubelet's directory {}", kubelet.display());
        io::Error::new(ErrorKind::PermissionDenied, problem)
    };
    let below = path.strip_prefix(kubelet).map_err(|_| outside())?;
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return Err(outside()) };
    let root = canonical(kubelet)?;
    let directory = File::open(&root)?;
    for ancestor in ancestors(parent) {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(&directory, &ancestor, how) {
            Ok(_) => {}
            Err(Errno::ENOENT) => break,
            // Linux before 5.6; then each component is looked at by itself.
            Err(Errno::ENOSYS) if !fs::symlink_metadata(root.join(&ancestor))?.is_symlink() => {}
            Err(Errno::ENOSYS) => return Err(Errno::ELOOP.into()),
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(root.join(parent).join(name))
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`.
fn ancestors(path: &Path) -> Vec<PathBuf> {
    let mut ancestors: Vec<PathBuf> =
        path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).map(Path::to_owned).collect();
    ancestors.reverse();
    ancestors
}

/// Follows the links in that part of `path` that is there.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut there = path;
    loop {
        match fs::canonicalize(there) {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path, name| path.join(name))),
            Err(cause) if cause.kind() == ErrorKind::NotFound && !there.is_symlink() => {}
            Err(cause) => return Err(cause),
        }
        match there.components().next_back() {
            Some(Component::Normal(name)) => missing.push(name),
            _ => return Err(ErrorKind::NotFound.into()),
        }
        there = there.parent().unwrap_or(Path::new("/"));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_on_the_way_but_not_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir(real.join("data")).unwrap();
        symlink("data", real.join("link")).unwrap();
        symlink("nowhere", real.join("dangling")).unwrap();
        for (asked, found) in [
            ("data/a", Some("data/a")),
            ("link/a", Some("data/a")),
            ("link/a/b/c", Some("data/a/b/c")),
            ("new/a", Some("new/a")),
            ("link", Some("link")),
            ("dangling", Some("dangling")),
            ("dangling/a", None),
        ] {
            let resolved = resolve(None, &real.join(asked));
            assert_eq!(resolved.ok(), found.map(|found| real.join(found)), "{asked}");
        }
        assert_eq!(resolve(None, Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn below_the_kubelets_directory_no_link_is_followed_and_outside_of_it_nothing_is() {
        let directory = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(directory.path()).unwrap();
        fs::create_dir_all(real.join("disk/kubelet/pods/a")).unwrap();
        fs::create_dir(real.join("elsewhere")).unwrap();
        // The directory itself may be a link: many put it on a disk of its own.
        symlink("disk/kubelet", real.join("kubelet")).unwrap();
        symlink("../../../elsewhere", real.join("disk/kubelet/pods/out")).unwrap();
        symlink("a", real.join("disk/kubelet/pods/in")).unwrap();
        let kubelet = real.join("kubelet");
        for (asked, found) in [
            ("kubelet/pods/a/mount", Ok("disk/kubelet/pods/a/mount")),
            ("kubelet/pods/b/volumes/mount", Ok("disk/kubelet/pods/b/volumes/mount")),
            ("kubelet/pods/out", Ok("disk/kubelet/pods/out")),
            ("kubelet/pods/out/mount", Err("ELOOP")),
            ("kubelet/pods/in/mount", Err("ELOOP")),
            ("elsewhere/mount", Err("PermissionDenied")),
            ("kubelet", Err("PermissionDenied")),
        ] {
            let resolved = resolve(Some(&kubelet), &real.join(asked)).map_err(|cause| match cause.kind() {
                ErrorKind::PermissionDenied => "PermissionDenied",
                _ if cause.raw_os_error() == Some(nix::libc::ELOOP) => "ELOOP",
                _ => "another",
            });
            assert_eq!(resolved, found.map(|found| real.join(found)), "{asked}");
        }
    }
}
