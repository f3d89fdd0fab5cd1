//! Runs csi-sanity against the driver on the simulated cloud, and holds what it skipped against the list of what it may
//! skip (`tests/sanity/skips.txt`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use demo::{
    Outcome,
    bed::{Bed, Stop},
    narration::{Took, say},
};
use serde::Deserialize;
use tokio::process::Command;
use vultr_sim::Behaviour;

const GIB: u64 = 1 << 30;
/// The least that Vultr sells on fast disks.
const SIZE: u64 = 10 * GIB;
const GROWN: u64 = 11 * GIB;
/// A run takes seconds; past this it hangs.
const RUN_WITHIN: Duration = Duration::from_secs(600);

/// csi-sanity against `cloud-block-csi all` on the simulated cloud: with mounted volumes and, beside it, with raw block ones.
#[derive(Debug, Parser)]
struct Flags {
    /// The program csi-sanity.
    #[arg(long)]
    csi_sanity: PathBuf,
    /// The cases that may be skipped, each with its reason.
    #[arg(long)]
    skips: PathBuf,
    /// The driver's binary; by default the one beside this.
    #[arg(long)]
    driver: Option<PathBuf>,
    /// Only cases whose name matches this regular expression; the list of skips is then not compared.
    #[arg(long)]
    focus: Option<String>,
}

/// A report of Ginkgo's, as far as it is needed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: Option<String>,
}

impl Spec {
    fn name(&self) -> String {
        let mut parts = self.container_hierarchy_texts.clone().unwrap_or_default();
        parts.push(self.leaf_node_text.clone());
        parts.retain(|part| !part.is_empty());
        parts.join(" > ")
    }

    /// How its message begins; the rest is a dump of values.
    fn message(&self) -> String {
        let message = self.failure.as_ref().and_then(|failure| failure.message.as_deref()).unwrap_or_default();
        message.lines().take(4).collect::<Vec<_>>().join("\n    ")
    }
}

/// What came of one run.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: BTreeSet<String>,
    took: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            say(format_args!("csi-sanity was not run to its end: {problem}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Outcome<bool> {
    let mut stop = Stop::listen()?;
    let allowed = parse_skips(&fs::read_to_string(&flags.skips)?)?;
    // Each has a cloud of its own, and most of the time both wait.
    let mut mount = Run::start(&flags, "mount").await?;
    let mut block = Run::start(&flags, "block").await?;
    let ran = tokio::select! {
        ran = async { tokio::join!(mount.csi_sanity(&flags), block.csi_sanity(&flags)) } => Ok(ran),
        stopped = stop.wait() => stopped,
    };
    let (mounted, raw) = match ran {
        Ok((mounted, raw)) => (mount.end(mounted).await, block.end(raw).await),
        Err(stopped) => {
            let (one, other) = (mount.bed.down().await, block.bed.down().await);
            return one.and(other).and(Err(stopped));
        }
    };
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut as_listed = true;
    for (access, tally) in [("mount", mounted), ("block", raw)] {
        let tally = tally?;
        for failure in &tally.failed {
            say(format_args!("FAILED ({access}) {failure}"));
        }
        for case in &tally.skipped {
            let reason = allowed.get(case).map_or("NOT IN THE LIST", String::as_str);
            say(format_args!("skipped ({access}) {case}: {reason}"));
            as_listed &= flags.focus.is_some() || allowed.contains_key(case);
        }
        for case in allowed.keys().filter(|case| flags.focus.is_none() && !tally.skipped.contains(*case)) {
            say(format_args!("FAILED ({access}) {case}: is in the list of skips, but was not skipped; take it off"));
            as_listed = false;
        }
        say(format_args!(
            "csi-sanity ({access}): {} passed, {} failed, {} skipped, in {}",
            tally.passed,
            tally.failed.len(),
            tally.skipped.len(),
            Took(tally.took)
        ));
        passed += tally.passed;
        failed += tally.failed.len();
        skipped += tally.skipped.len();
    }
    if !as_listed {
        failed += 1;
        say(format_args!("FAILED what was skipped is not what {} lists", flags.skips.display()));
    }
    say(format_args!("csi-sanity: {passed} passed, {failed} failed, {skipped} skipped"));
    Ok(failed == 0 && passed > 0)
}

/// One run of csi-sanity, with volumes of one kind.
struct Run {
    bed: Bed,
    access: &'static str,
}

impl Run {
    async fn start(flags: &Flags, access: &'static str) -> Outcome<Self> {
        let driver = match &flags.driver {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("cloud-block-csi"),
        };
        let behaviour = Behaviour { growth_seen_online: true, ..Behaviour::instant() };
        Ok(Self { bed: Bed::start(&driver, &["sanity-1"], behaviour).await?, access })
    }

    /// Takes everything down; what it left behind is a failure of its own.
    async fn end(self, ran: Outcome<Tally>) -> Outcome<Tally> {
        let left = self.bed.cloud().control().leftovers()?;
        let words = self.bed.last_words(40);
        let down = self.bed.down().await?;
        let mut tally = ran.inspect_err(|_| say(&words))?;
        if !left.is_empty() || !down.forced.is_empty() {
            tally.failed.push(format!("left behind: {left:?} {:?}", down.forced));
        }
        if !tally.failed.is_empty() {
            say(&words);
        }
        Ok(tally)
    }

    /// Runs csi-sanity once.
    async fn csi_sanity(&mut self, flags: &Flags) -> Outcome<Tally> {
        let began = Instant::now();
        let (bed, access) = (&mut self.bed, self.access);
        let instance = bed.cloud().instances().into_iter().next().ok_or("no instance")?;
        // The most that the driver allows; the cloud has no limit here.
        bed.all(&instance, &["--requests-per-second", "29"]).await?;
        let report = bed.dir().join("report.json");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&flags.csi_sanity);
        command.arg(format!("--csi.endpoint={}", bed.socket("all").display()));
        command.arg(format!("--csi.mountdir={}", bed.dir().join("sanity-target").display()));
        command.arg(format!("--csi.stagingdir={}", bed.dir().join("sanity-staging").display()));
        command.arg(format!("--csi.testvolumesize={SIZE}"));
        command.arg(format!("--csi.testvolumeexpandsize={GROWN}"));
        command.arg(format!("--csi.testvolumeaccesstype={access}"));
        command.arg("--csi.testnodevolumeattachlimit=true");
        command.arg(format!("--ginkgo.json-report={}", report.display()));
        command.args(["--ginkgo.no-color", "--ginkgo.succinct"]);
        if let Some(focus) = &flags.focus {
            command.arg(format!("--ginkgo.focus={focus}"));
        }
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        let output = tokio::time::timeout(RUN_WITHIN, command.output()).await;
        let output = output.map_err(|_| format!("csi-sanity did not end within {}", Took(RUN_WITHIN)))??;
        let mut tally = tally(&report).map_err(|error| {
            let printed = String::from_utf8_lossy(&output.stdout);
            format!("{error}; csi-sanity printed:\n{printed}{}", String::from_utf8_lossy(&output.stderr))
        })?;
        if !output.status.success() && tally.failed.is_empty() {
            return Err(format!("csi-sanity ended with {}, but reports no failure", output.status).into());
        }
        tally.took = began.elapsed();
        Ok(tally)
    }
}

fn tally(report: &Path) -> Outcome<Tally> {
    let reports: Vec<Report> = serde_json::from_slice(&fs::read(report)?)?;
    let mut tally = Tally::default();
    for spec in reports.into_iter().flat_map(|report| report.spec_reports.unwrap_or_default()) {
        let is_case = spec.leaf_node_type == "It";
        match spec.state.as_str() {
            "passed" if is_case => tally.passed += 1,
            // Set-up and reports of the suite as a whole.
            "passed" => {}
            "skipped" | "pending" => {
                tally.skipped.insert(spec.name());
            }
            state => tally.failed.push(format!("{} ({state}): {}", spec.name(), spec.message())),
        }
    }
    Ok(tally)
}

/// The cases that may be skipped, with the reason: `[reason]` stands above the cases that it holds for.
fn parse_skips(text: &str) -> Outcome<BTreeMap<String, String>> {
    let mut skips = BTreeMap::new();
    let mut reason = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(new) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            reason = Some(new);
            continue;
        }
        let reason = reason.ok_or_else(|| format!("'{line}' stands under no reason"))?;
        if skips.insert(line.to_owned(), reason.to_owned()).is_some() {
            return Err(format!("'{line}' is listed twice").into());
        }
    }
    Ok(skips)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_skip_has_the_reason_above_it() {
        let skips = parse_skips("# why\n[not sold]\nA > b\n\n[later]\nC > d [x]\n").unwrap();
        assert_eq!(skips["A > b"], "not sold");
        assert_eq!(skips["C > d [x]"], "later");
        assert!(parse_skips("A > b").is_err());
        assert!(parse_skips("[x]\nA\nA").is_err());
    }
}
