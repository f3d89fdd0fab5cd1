//! The Kubernetes storage suite (`External.Storage`): which of its specs apply, and how they end.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::bed::{Bed, text};

/// Why specs of this kind do not apply, by what their names hold. The suite itself skips others when it begins them.
const NOT_FOR_US: &[(&str, &str)] = &[
    ("ntfs", "it is for Windows"),
    ("Feature:Windows", "it is for Windows"),
    ("Pre-provisioned PV", "the suite makes such volumes only with drivers that are built into it"),
    ("Inline-volume", "the suite makes such volumes only with drivers that are built into it"),
    (
        "CSI Ephemeral-volume",
        "a disk that is made and attached is no volume of a node's own; generic ephemeral ones are run",
    ),
    ("[Disruptive]", "it stops kubelets, for which the suite wants a shell on the nodes of a known provider"),
    ("volumegroupsnapshot", "the cloud has no snapshots of several volumes at once"),
    ("VolumeGroupSnapshot", "the cloud has no snapshots of several volumes at once"),
    ("snapshotmetadata", "the cloud does not tell which blocks of a snapshot differ"),
    ("volume-modify", "the cloud can change nothing of a volume but its size"),
    ("performance", "it measures a cluster, and sets times for one of many machines"),
    ("any volume data source", "it runs a populator whose image is in a registry, and the bed has none"),
    ("seLinuxMount", "it wants nodes that enforce SELinux"),
    ("capacity", "the cloud has no room that a node could run out of, so the driver tells none"),
    // Those of one kind that the suite would skip by itself; left to it, they would fill the sample.
    ("(ext3)", "the driver makes no ext3"),
    ("(ROX mode)", "a disk is attached to one node at a time"),
    ("(immediate-binding)", "where disks belong to regions, the suite wants ephemeral ones made for the pod's node"),
    ("conflict with AllowedTopologies", "the bed has one region"),
    ("Generic Ephemeral-volume (default fs)] volumeLimits", "the suite counts volumes that are claimed"),
    ("(block volmode)] provisioning should mount multiple PV", "the suite does that with file systems only"),
    ("(block volmode)] provisioning should provision storage with mount options", "a raw device has none"),
    ("(block volmode)] provisioning should provision correct filesystem size", "a raw device has no file system"),
];

/// Why specs of this kind are run on the virtual workers only.
const NOT_ON_THE_HOST: &[(&str, &str)] = &[
    ("volume-expand", "an ext4 grows on the host only where root has CAP_SYS_RESOURCE"),
    ("larger size pvc", "an ext4 grows on the host only where root has CAP_SYS_RESOURCE"),
    ("should support expansion of pvcs", "an ext4 grows on the host only where root has CAP_SYS_RESOURCE"),
    ("different node", "there is one node"),
];

/// Why none of the specs is run with shared file systems: the row of those that aren't even listed.
const NOT_SHARED: &str =
    "the suite is told of one class; what several nodes share has a flow of its own on the workers";

/// How many specs are run beside each other.
const STREAMS: usize = 5;

/// How the specs ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Those that passed, with their seconds.
    pub(crate) passed: BTreeMap<String, f64>,
    /// Those that failed, with the reason.
    pub(crate) failed: BTreeMap<String, String>,
    /// Those that were not run, by the reason.
    pub(crate) skipped: BTreeMap<String, Vec<String>>,
}

/// The suite for one bed.
struct Suite<'a> {
    bed: &'a Bed,
    program: PathBuf,
    logs: PathBuf,
}

/// Which of the specs that apply are run.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    /// Those whose name holds this
    pub(crate) focus: &'a str,
    /// Also those marked slow
    pub(crate) slow: bool,
    /// Of these, one in so many.
    pub(crate) every: usize,
}

/// Runs the specs that apply and are chosen.
pub(crate) async fn run(bed: &Bed, program: &Path, logs: &Path, choice: &Choice<'_>) -> Result<Outcome> {
    let suite = Suite { bed, program: program.join("storage.test"), logs: logs.to_owned() };
    let mut result = Outcome::default();
    result.skipped.insert(NOT_SHARED.to_owned(), vec!["the class vultr-vfs-storage".to_owned()]);
    let mut chosen = Vec::new();
    for spec in suite.specs().await? {
        let fits = |(part, _): &&(&str, &'static str)| spec.contains(part);
        let reason = NOT_FOR_US.iter().find(fits);
        let reason = reason.or_else(|| if bed.nodes.len() > 1 { None } else { NOT_ON_THE_HOST.iter().find(fits) });
        match reason {
            Some((_, reason)) => result.skipped.entry((*reason).to_owned()).or_default().push(spec),
            None if !spec.contains(choice.focus) || (!choice.slow && spec.contains("[Slow]")) => {
                result.skipped.entry("not chosen in this run".to_owned()).or_default().push(spec);
            }
            None => chosen.push(spec),
        }
    }
    let apply = chosen.len();
    let (kept, left) =
        std::mem::take(&mut chosen).into_iter().enumerate().partition::<Vec<_>, _>(|(n, _)| n % choice.every == 0);
    chosen.extend(kept.into_iter().map(|(_, spec)| spec));
    if !left.is_empty() {
        let rest = result.skipped.entry("not in this run's sample".to_owned()).or_default();
        rest.extend(left.into_iter().map(|(_, spec)| spec));
    }
    std::fs::write(logs.join("suite-chosen.txt"), chosen.join("\n"))?;
    println!("suite: {apply} specs apply here and fit, {} are run", chosen.len());
    let asked = chosen.len();
    let (alone, beside): (Vec<_>, Vec<_>) = chosen.iter().cloned().partition(|spec| spec.contains("[Serial]"));
    let mut streams = vec![Vec::new(); STREAMS];
    for (index, spec) in beside.into_iter().enumerate() {
        streams[index % STREAMS].push(spec);
    }
    let running = streams.iter().enumerate().map(|(number, specs)| suite.stream(number, specs));
    for reports in futures_util::future::join_all(running).await {
        result.add(&reports?);
    }
    result.add(&suite.stream(STREAMS, &alone).await?);
    for spec in chosen {
        let was_skipped = || result.skipped.values().flatten().any(|skipped| *skipped == spec);
        if !result.passed.contains_key(&spec) && !result.failed.contains_key(&spec) && !was_skipped() {
            result.failed.insert(spec, "the suite did not come to it".to_owned());
        }
    }
    // What the suite skips by itself is no failure, and one wrong word in what it is told of the driver could be most of it.
    let ran = result.passed.len() + result.failed.len();
    if ran * 2 < asked {
        let reason = format!("the suite skipped {} of {asked} by itself: look at suite/driver.yaml", asked - ran);
        result.failed.insert("At least half of the chosen specs".to_owned(), reason);
    }
    let mut lines = String::new();
    for (spec, seconds) in &result.passed {
        writeln!(lines, "passed {seconds:6.1} s  {spec}")?;
    }
    for (reason, specs) in &result.skipped {
        specs.iter().try_for_each(|spec| writeln!(lines, "skipped  {spec}: {reason}"))?;
    }
    for (spec, reason) in &result.failed {
        writeln!(lines, "FAILED   {spec}: {reason}")?;
    }
    std::fs::write(logs.join("suite.txt"), lines)?;
    Ok(result)
}

impl Outcome {
    fn add(&mut self, reports: &[Value]) {
        for report in reports {
            let (name, why) = (name(report), text(report, "/Failure/Message"));
            match text(report, "/State") {
                "passed" => {
                    let nanoseconds = report["RunTime"].as_f64().unwrap_or_default();
                    self.passed.insert(name, nanoseconds / 1e9);
                }
                // Those outside a stream's focus have no reason.
                "skipped" if why.is_empty() => {}
                "skipped" => {
                    self.skipped.entry(why.lines().next().unwrap_or_default().to_owned()).or_default().push(name);
                }
                _ => drop(self.failed.insert(name, why.lines().take(3).collect::<Vec<_>>().join(" "))),
            }
        }
    }

    /// Prints it: failures one by one, skips by their reason.
    pub(crate) fn print(&self) {
        for (reason, specs) in &self.skipped {
            println!("suite: {:4} skipped: {reason}", specs.len());
        }
        for (spec, reason) in &self.failed {
            println!("suite: FAILED {spec}: {reason}");
        }
        let skipped: usize = self.skipped.values().map(Vec::len).sum();
        println!("suite: {} passed, {} failed, {skipped} skipped", self.passed.len(), self.failed.len());
    }
}

/// What a spec is called, whole.
fn name(report: &Value) -> String {
    let texts = report["ContainerHierarchyTexts"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Containers without a text are in no name.
    let mut parts: Vec<_> = texts.iter().filter_map(Value::as_str).filter(|text| !text.is_empty()).collect();
    parts.push(text(report, "/LeafNodeText"));
    parts.join(" ")
}

impl Suite<'_> {
    /// All specs for drivers from outside, whether they apply or not.
    async fn specs(&self) -> Result<Vec<String>> {
        let reports = self.call("list", &["-ginkgo.dry-run", "-ginkgo.focus=External.Storage"]).await?;
        let mut names: Vec<_> = reports.iter().filter(|report| text(report, "/State") == "passed").map(name).collect();
        ensure!(!names.is_empty(), "the suite has no specs");
        names.sort();
        Ok(names)
    }

    /// Runs these specs, one after the other.
    async fn stream(&self, number: usize, specs: &[String]) -> Result<Vec<Value>> {
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let focus: Vec<_> = specs.iter().map(|spec| escape(spec)).collect();
        let focus = format!("-ginkgo.focus= ({})$", focus.join("|"));
        self.call(&format!("stream-{number}"), &["-ginkgo.v", "-ginkgo.timeout=3h", &focus]).await
    }

    /// Calls the suite and gives its report on every spec. That some failed is no error.
    async fn call(&self, name: &str, arguments: &[&str]) -> Result<Vec<Value>> {
        let report = self.logs.join(format!("suite-{name}.json"));
        let log = std::fs::File::create(self.logs.join(format!("suite-{name}.log")))?;
        let mut command = Command::new(&self.program);
        command
            .arg(format!(
                "-storage.testdriver={}",
                self.bed.parts.repository.join("tests/kubernetes/suite/driver.yaml").display()
            ))
            .arg(format!("-kubeconfig={}", self.bed.dir.join("keys/admin.kubeconfig").display()))
            .arg(format!("-kubectl-path={}", self.bed.parts.programs.join("kubectl").display()))
            .arg(format!("-ginkgo.json-report={}", report.display()))
            .args(["-provider=local", "-ginkgo.no-color"])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        command.status().await.context("the suite cannot be started")?;
        let read = std::fs::read(&report).with_context(|| format!("the suite ({name}) left no report"))?;
        let reports: Value = serde_json::from_slice(&read)?;
        let specs = reports[0]["SpecReports"].as_array().cloned().unwrap_or_default();
        Ok(specs.into_iter().filter(|spec| text(spec, "/LeafNodeType") == "It").collect())
    }
}

/// A text as a regular expression for itself.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
