//! The Kubernetes storage suite (`External.Storage`): which of its specs apply, and how they end.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::bed::{Bed, text};

/// Why specs do not apply, by what their names hold: all of these words.
type Reasons = &'static [(&'static [&'static str], &'static str)];

/// Specs that apply to no class. The list is whole: what the suite skips by itself when it is begun has failed.
const NOT_FOR_US: Reasons = &[
    (&["ntfs"], "it is for Windows"),
    (&["Feature:Windows"], "it is for Windows"),
    (&["Pre-provisioned PV"], "the suite makes such volumes only with drivers that are built into it"),
    (&["Inline-volume"], "the suite makes such volumes only with drivers that are built into it"),
    (
        &["CSI Ephemeral-volume"],
        "a disk that is made and attached is no volume of a node's own; generic ephemeral ones are run",
    ),
    (&["[Disruptive]"], "it stops kubelets, for which the suite wants a shell on the nodes of a known provider"),
    (&["volumegroupsnapshot"], "the cloud has no snapshots of several volumes at once"),
    (&["VolumeGroupSnapshot"], "the cloud has no snapshots of several volumes at once"),
    (&["snapshotmetadata"], "the cloud does not tell which blocks of a snapshot differ"),
    (&["volume-modify"], "the cloud can change nothing of a volume but its size"),
    (&["performance"], "it measures a cluster, and sets times for one of many machines"),
    (&["any volume data source"], "it runs a populator whose image is in a registry, and the bed has none"),
    (&["seLinuxMount"], "it wants nodes that enforce SELinux"),
    (&["capacity"], "the cloud has no room that a node could run out of, so the driver tells none"),
    (&["(ext3)"], "the driver makes no ext3"),
    (&["(ROX mode)"], "the driver has no ReadOnlyMany: a disk is attached to one node at a time"),
    (&["(immediate-binding)"], "where disks belong to regions, the suite wants ephemeral ones made for the pod's node"),
    (&["conflict with AllowedTopologies"], "the bed has one region"),
    (&["Generic Ephemeral-volume (default fs)] volumeLimits"], "the suite counts volumes that are claimed"),
    (&["(block volmode)] provisioning should mount multiple PV"], "the suite does that with file systems only"),
    (&["(block volmode)] provisioning should provision storage with mount options"], "a raw device has none"),
    (&["(block volmode)] provisioning should provision correct filesystem size"], "a raw device has no file system"),
    (&["(block volmode)", "read-only inline ephemeral volume"], "the suite has no raw device that is read-only"),
    (&["Dynamic Snapshot", "(ephemeral)"], "it is for the pattern Ephemeral Snapshot"),
    (&["Pre-provisioned Snapshot", "(ephemeral)"], "it is for the pattern Ephemeral Snapshot"),
    (&["Ephemeral Snapshot", "(persistent)"], "it is for the other patterns of snapshots"),
    (&["(filesystem volmode)", "different volume mode"], "the suite does that with (block volmode)"),
    (&["(filesystem volmode)", "restored snapshot"], "the suite does that with (ext4) and (xfs)"),
];

/// Why specs are run on the virtual workers only.
const NOT_ON_THE_HOST: Reasons = &[
    (&["volume-expand"], "an ext4 grows on the host only where root has CAP_SYS_RESOURCE"),
    (&["larger size pvc"], "an ext4 grows on the host only where root has CAP_SYS_RESOURCE"),
    (&["should support expansion of pvcs"], "an ext4 grows on the host only where root has CAP_SYS_RESOURCE"),
    (&["different node"], "there is one node"),
];

/// A class of the driver's, as the suite is told of it.
struct Class {
    name: &'static str,
    /// What the suite is told, in tests/kubernetes/suite.
    told: &'static str,
    /// Whether it needs virtual workers.
    on_workers: bool,
    /// How many specs apply to it: another Kubernetes has others, and a word too many in a reason leaves some out.
    apply: usize,
    not_for_it: Reasons,
}

const CLASSES: &[Class] = &[
    Class {
        name: "vultr-block-storage",
        told: "block.yaml",
        on_workers: false,
        apply: 109,
        not_for_it: &[(
            &["single volume from pods on different node"],
            "a disk is attached to one node at a time; it is run with vultr-vfs-storage",
        )],
    },
    Class {
        name: "vultr-vfs-storage",
        told: "shared.yaml",
        on_workers: true,
        apply: 48,
        not_for_it: &[
            (&["(block volmode)"], "a shared file system is no raw device"),
            (&["different volume mode"], "a shared file system is no raw device"),
            (&["mismatched mode"], "a shared file system is no raw device"),
            (&["(ext4)"], "a shared file system is of the cloud's own kind"),
            (&["(xfs)"], "a shared file system is of the cloud's own kind"),
            (&["napshot"], "the cloud makes no snapshots of shared file systems"),
            (&["clone"], "the cloud makes no snapshots of shared file systems, and so no clones"),
            (&["pvc data source"], "the cloud makes no snapshots of shared file systems, and so no clones"),
            (&["volumeLimits"], "an instance's eleven places are for disks"),
        ],
    },
];

/// How many specs are run beside each other on the host.
const STREAMS: usize = 5;
/// And on emulated processors, which run beside the flows and the host's suite. With three, and a compiler beside them, kubelets
/// took minutes for a pod and failed probes for want of a processor.
const EMULATED_STREAMS: usize = 2;

/// What the suite says of a container that was to print something.
const PRINTED_NOTHING: &str = "in container output: Expected <string>: to contain";

/// How the specs ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Those that passed, with their seconds.
    passed: BTreeMap<String, f64>,
    /// Those that failed, with the reason.
    pub(crate) failed: BTreeMap<String, String>,
    /// Those that were not run, by the reason.
    skipped: BTreeMap<String, Vec<String>>,
    /// Those that were run again, with how they had failed because of containerd.
    again: BTreeMap<String, String>,
}

/// The suite for one bed.
struct Suite<'a> {
    bed: &'a Bed,
    program: PathBuf,
    logs: PathBuf,
}

/// A spec with a class.
struct Spec {
    class: &'static Class,
    /// As the suite calls it, whole.
    name: String,
}

/// How a spec ended: in so many seconds, or with this failure.
type Ended = std::result::Result<f64, String>;

/// A spec that has ended.
struct Shown<'a> {
    spec: &'a Spec,
    ended: Ended,
    /// How it had failed before it was run again.
    before: Option<String>,
}

/// Which of the specs that apply are run.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    /// Those whose name, which begins with the class, holds this
    pub(crate) focus: &'a str,
    /// Also those marked slow
    pub(crate) slow: bool,
    /// Of these, one in so many.
    pub(crate) every: usize,
    /// Only those that can't be run on the host.
    pub(crate) rest: bool,
}

/// Runs the specs that apply and are chosen.
pub(crate) async fn run(bed: &Bed, program: &Path, logs: &Path, choice: &Choice<'_>) -> Result<Outcome> {
    let suite = Suite { bed, program: program.join("storage.test"), logs: logs.to_owned() };
    let mut result = Outcome::default();
    let mut specs = Vec::new();
    for class in CLASSES {
        if class.on_workers && bed.nodes.len() == 1 {
            result.skip("it needs the virtual workers", format!("all with {}", class.name));
        } else {
            let all = suite.specs(class).await?;
            let apply = all.iter().filter(|spec| spec.not_applying().is_none()).count();
            ensure!(apply == class.apply, "{apply} specs apply to {}, and it should be {}", class.name, class.apply);
            specs.extend(all);
        }
    }
    let mut chosen = Vec::new();
    for spec in specs {
        let not_there = spec.reason(NOT_ON_THE_HOST);
        let reason = spec.not_applying().or_else(|| not_there.filter(|_| bed.nodes.len() == 1));
        let is_there = not_there.is_none() && !spec.class.on_workers;
        match reason {
            Some(reason) => result.skip(reason, spec.to_string()),
            None if choice.rest && is_there => result.skip("it is run on the host", spec.to_string()),
            None if !spec.to_string().contains(choice.focus) || (!choice.slow && spec.name.contains("[Slow]")) => {
                result.skip("not chosen in this run", spec.to_string());
            }
            None => chosen.push(spec),
        }
    }
    let apply = chosen.len();
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    for (number, spec) in chosen.into_iter().enumerate() {
        if number % choice.every == 0 { kept.push(spec) } else { left.push(spec) }
    }
    for spec in left {
        result.skip("not in this run's sample", spec.to_string());
    }
    println!("suite: {apply} specs apply here and fit, {} are run", kept.len());
    ensure!(!kept.is_empty(), "no spec of the suite is left to run");
    for Shown { spec, ended, before } in suite.show(&kept).await {
        result.again.extend(before.map(|reason| (spec.to_string(), reason)));
        match ended {
            Ok(seconds) => drop(result.passed.insert(spec.to_string(), seconds)),
            Err(reason) => drop(result.failed.insert(spec.to_string(), reason)),
        }
    }
    std::fs::write(logs.join("suite.txt"), result.lines()?)?;
    Ok(result)
}

impl Outcome {
    fn skip(&mut self, reason: &str, spec: String) {
        self.skipped.entry(reason.to_owned()).or_default().push(spec);
    }

    /// Every spec, and how it ended.
    fn lines(&self) -> Result<String> {
        let mut lines = String::new();
        for (spec, seconds) in &self.passed {
            writeln!(lines, "passed {seconds:6.1} s  {spec}")?;
        }
        for (reason, specs) in &self.skipped {
            specs.iter().try_for_each(|spec| writeln!(lines, "skipped  {spec}: {reason}"))?;
        }
        for (spec, reason) in &self.again {
            writeln!(lines, "run again {spec}: {reason}")?;
        }
        for (spec, reason) in &self.failed {
            writeln!(lines, "FAILED   {spec}: {reason}")?;
        }
        Ok(lines)
    }

    /// Prints it: failures one by one, skips by their reason.
    pub(crate) fn print(&self) {
        for (reason, specs) in &self.skipped {
            println!("suite: {:4} skipped: {reason}", specs.len());
        }
        for (spec, reason) in &self.again {
            println!("suite: run again, since {reason}: {spec}");
        }
        for (spec, reason) in &self.failed {
            println!("suite: FAILED {spec}: {reason}");
        }
        let skipped: usize = self.skipped.values().map(Vec::len).sum();
        println!("suite: {} passed, {} failed, {skipped} skipped", self.passed.len(), self.failed.len());
    }
}

impl Spec {
    /// Why it does not apply.
    fn not_applying(&self) -> Option<&'static str> {
        self.reason(NOT_FOR_US).or_else(|| self.reason(self.class.not_for_it))
    }

    /// The first of these reasons that is meant for it.
    fn reason(&self, reasons: Reasons) -> Option<&'static str> {
        let fits = |(parts, _): &&(&[&str], _)| parts.iter().all(|part| self.name.contains(part));
        reasons.iter().find(fits).map(|(_, reason)| *reason)
    }
}

/// Its class, and its name without what all of them begin with.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.split_once("[Testpattern: ").map_or(self.name.as_str(), |(_, rest)| rest);
        write!(f, "{}: {name}", self.class.name)
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
    async fn specs(&self, class: &'static Class) -> Result<Vec<Spec>> {
        let list = format!("list-{}", class.name);
        let (status, reports) = self.call(class, &list, &["-ginkgo.dry-run", "-ginkgo.focus=External.Storage"]).await?;
        ensure!(status.success(), "the suite can't tell its specs ({status}): suite-{list}.log");
        let mut names: Vec<_> = reports.iter().filter(|report| text(report, "/State") == "passed").map(name).collect();
        ensure!(!names.is_empty(), "the suite has no specs");
        names.sort();
        let twins = names.windows(2).find(|pair| pair[0] == pair[1]);
        ensure!(twins.is_none(), "two specs have one name, and would be told once: {twins:?}");
        Ok(names.into_iter().map(|name| Spec { class, name }).collect())
    }

    /// Runs specs: those that may be beside each other first, of which the slow ones first, and then the others one by one.
    async fn show<'a>(&self, specs: &'a [Spec]) -> Vec<Shown<'a>> {
        let (alone, mut beside): (Vec<_>, Vec<_>) = specs.iter().partition(|spec| spec.name.contains("[Serial]"));
        beside.sort_by_key(|spec| !spec.name.contains("[Slow]"));
        let next = Cell::new(0);
        let all = RefCell::new(Vec::new());
        let next_one = async |spec: &'a Spec| {
            let number = next.get() + 1;
            next.set(number);
            let shown = self.shown(spec, number).await;
            let how = match &shown.ended {
                Ok(seconds) => format!("passed in {seconds:.1} s"),
                Err(reason) => format!("FAILED: {reason}"),
            };
            let mut all = all.borrow_mut();
            all.push(shown);
            println!("suite: {} of {} {how}: {spec}", all.len(), specs.len());
        };
        let stream = async || {
            while let Some(spec) = beside.get(next.get()) {
                next_one(spec).await;
            }
        };
        let streams = if self.bed.nodes[0].is_virtual() { EMULATED_STREAMS } else { STREAMS };
        futures_util::future::join_all((0..streams).map(|_| stream())).await;
        for spec in alone {
            next_one(spec).await;
        }
        all.into_inner()
    }

    /// Runs one spec; once more if it finds that a container printed nothing, and containerd says that it has lost some output.
    async fn shown<'a>(&self, spec: &'a Spec, number: usize) -> Shown<'a> {
        let began = SystemTime::now();
        let ended = self.ended(spec, &format!("{number:03}")).await;
        if let Err(reason) = &ended
            && reason.split_whitespace().collect::<Vec<_>>().join(" ").contains(PRINTED_NOTHING)
            && let Some(lost) = self.output_lost(began).await
        {
            let before = Some(format!("containerd lost what a container printed ({lost}): {reason}"));
            return Shown { spec, ended: self.ended(spec, &format!("{number:03}-again")).await, before };
        }
        Shown { spec, ended, before: None }
    }

    /// What containerd told of output that it lost since then. On a busy machine its reader may come to a container's pipe
    /// only when a short-lived one has gone and the pipe is closed (containerd 1.6: "reading from a closed fifo").
    async fn output_lost(&self, since: SystemTime) -> Option<String> {
        let since = since.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let told = "/Failed to pipe std/";
        for node in &self.bed.nodes {
            let script = if node.is_virtual() {
                let journal = "journalctl --quiet --no-pager --output=cat --unit=containerd";
                format!("{journal} --since=@{since} | awk '{told}'")
            } else {
                // A line begins with time="2026-…".
                let since = format!("since=\"$(date --date=@{since} +%FT%T)\"");
                let log = self.bed.processes.log("containerd");
                format!("awk -F '\"' -v {since} '$2 >= since && {told}' '{}'", log.display())
            };
            match node.run(&script).await {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => return lines.lines().next().map(str::to_owned),
                // Then the spec has failed.
                Err(error) => println!("suite: whether containerd lost output is not known: {error:#}"),
            }
        }
        None
    }

    /// Runs one spec, once.
    async fn ended(&self, spec: &Spec, log: &str) -> Ended {
        let focus = format!("-ginkgo.focus= {}$", escape(&spec.name));
        let (status, reports) = match self.call(spec.class, log, &["-ginkgo.v", "-ginkgo.timeout=1h", &focus]).await {
            Ok(called) => called,
            // One that ended in the middle takes no other along.
            Err(error) => return Err(format!("{error:#}")),
        };
        let Some(report) = reports.iter().find(|report| name(report) == spec.name) else {
            return Err(format!("the suite doesn't know it: suite-{log}.log"));
        };
        let why = text(report, "/Failure/Message").lines().take(3).collect::<Vec<_>>().join(" ");
        match text(report, "/State") {
            // What comes after all specs is part of none of them.
            "passed" if !status.success() => {
                Err(format!("it passed, but the suite ended with {status}: suite-{log}.log"))
            }
            "passed" => Ok(report["RunTime"].as_f64().unwrap_or_default() / 1e9),
            // One wrong word in what the suite is told of the driver could be most of it.
            "skipped" if !why.is_empty() => Err(format!(
                "the suite skips it by itself ({why}): if that is right, it belongs into the list of those that don't \
                 apply; if not, look at suite/{}",
                spec.class.told
            )),
            "skipped" => Err(format!("the suite did not come to it: suite-{log}.log")),
            state => Err(format!("{state}: {why}")),
        }
    }

    /// Calls the suite and gives how it ended and its report on every spec. That some failed is no error.
    async fn call(&self, class: &Class, name: &str, arguments: &[&str]) -> Result<(ExitStatus, Vec<Value>)> {
        let report = self.logs.join(format!("suite-{name}.json"));
        let log = std::fs::File::create(self.logs.join(format!("suite-{name}.log")))?;
        let told = self.bed.parts.repository.join("tests/kubernetes/suite").join(class.told);
        let mut command = Command::new(&self.program);
        command
            .arg(format!("-storage.testdriver={}", told.display()))
            .arg(format!("-kubeconfig={}", self.bed.dir.join("keys/admin.kubeconfig").display()))
            .arg(format!("-kubectl-path={}", self.bed.parts.programs.join("kubectl").display()))
            .arg(format!("-ginkgo.json-report={}", report.display()))
            .args(["-provider=local", "-ginkgo.no-color"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        let status = command.status().await.context("the suite cannot be started")?;
        let read = std::fs::read(&report).with_context(|| format!("the suite ({name}) left no report"))?;
        let reports: Value = serde_json::from_slice(&read)?;
        let specs = reports[0]["SpecReports"].as_array().cloned().unwrap_or_default();
        Ok((status, specs.into_iter().filter(|spec| text(spec, "/LeafNodeType") == "It").collect()))
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
