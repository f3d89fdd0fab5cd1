//! Who may know whom in `src`: the arrows of ARCHITECTURE.md, held by reading the code as text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A word, and the files and folders that may use it.
const RULES: &[(&str, &[&str])] = &[
    ("csi::", &["rpc", "rpc.rs", "server.rs", "csi.rs"]),
    ("reqwest::", &["cloud"]),
    ("kube::", &["kubernetes", "kubernetes.rs"]),
    ("k8s_openapi::", &["kubernetes", "kubernetes.rs"]),
    ("crate::kubernetes", &["kubernetes"]),
    ("kubernetes::{", &["kubernetes", "lib.rs"]),
    ("nix::", &["node/host", "node/host.rs"]),
    ("process::Command", &["node/host", "node/host.rs"]),
    ("crate::controller", &["controller", "rpc"]),
    ("controller::{", &["rpc", "lib.rs"]),
    ("crate::node", &["node", "rpc"]),
    ("vultr", &["cloud", "cloud.rs"]),
    ("unsafe {", &[]),
];

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The code of a file without its comments and without its tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| *line != "#[cfg(test)]" && !line.starts_with("mod tests"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn nobody_knows_what_is_none_of_its_business() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    assert!(all.len() > 30, "the code was not found");
    let mut broken = Vec::new();
    for file in &all {
        let room = file.strip_prefix(&src).unwrap();
        let text = fs::read_to_string(file).unwrap();
        for (number, line) in code(&text) {
            for (word, allowed) in RULES {
                let mut places = line.match_indices(word).map(|(at, _)| line[..at].chars().next_back());
                let stands_alone = |before: Option<char>| before.is_none_or(|c| !c.is_alphanumeric() && c != '_');
                if places.any(stands_alone) && !allowed.iter().any(|place| room.starts_with(place)) {
                    broken.push(format!("{}:{}: {word}: {}", room.display(), number + 1, line.trim()));
                }
            }
        }
    }
    // The default of --cloud, and scenarios that are tests in files of their own.
    broken.retain(|line| {
        !line.contains("default_value = \"vultr\"")
            && !line.contains("block.csi.vultr.com")
            && !line.starts_with("controller/model.rs")
            && !line.starts_with("controller/scenarios.rs")
            && !line.starts_with("node/tests")
            && !line.contains("/tests.rs:")
            && !line.starts_with("simulation")
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
