//! A real Kubernetes in a world of its own, on the simulated cloud, with the driver as it is shipped; and the flows that it
//! has to stand.
//!
//! From the outside in: [`guard`] makes the world and looks what is left of it, [`bed`] the cluster in it ([`network`],
//! [`plane`], [`node`]), [`driver`] installs what is shipped, a [`flow`] is one claim with a [`stage`] of its own, and
//! [`leftovers`] looks that nothing is left of it.

mod bed;
mod driver;
mod endings;
mod eventually;
mod flow;
mod flows;
mod guard;
mod kubectl;
mod leftovers;
mod network;
mod node;
mod plane;
mod process;
mod stage;
mod suite;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::io::AsyncReadExt;

use crate::{
    bed::{Bed, Parts},
    flow::{Ending, Flow, When},
};

/// Which nodes the cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    /// The host alone; its disks are loop devices.
    Host,
    /// Two virtual workers; their disks are plugged in and out.
    Virtual,
}

/// How much of the Kubernetes storage suite is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Nothing of it.
    None,
    /// One in seven of the quick ones.
    Sample,
    /// Without the specs marked slow.
    Quick,
    /// What can't be run on the host.
    Rest,
    /// All that applies.
    All,
}

/// Runs the driver on a real Kubernetes, and flows on it. Needs root, and what tests/kubernetes/prepare.sh makes.
#[derive(Debug, Parser)]
#[command(after_help = "BED_KVM=1 gives the virtual workers a real processor, where /dev/kvm can run a kernel.")]
struct Flags {
    /// Which nodes the cluster has
    #[arg(long, value_enum, default_value = "virtual")]
    on: On,
    /// Which flows: some (those that every run of the tests shows on these nodes), all, none, names separated by commas,
    /// ..NAME (all before that one) or NAME.. (that one and all after it)
    #[arg(long, default_value = "all")]
    flows: String,
    /// How much of the Kubernetes storage suite is run after the flows
    #[arg(long, value_enum, default_value = "none")]
    suite: Suite,
    /// Only the specs of the suite whose name holds this
    #[arg(long, default_value = "")]
    focus: String,
    /// Print the flows' names and end
    #[arg(long)]
    list: bool,
    /// The folder that prepare.sh filled
    #[arg(long, default_value_os_t = cache())]
    cache: PathBuf,
    /// The archive of the driver's image
    #[arg(long, required_unless_present = "list")]
    image: Option<PathBuf>,
    /// Where the logs go
    #[arg(long, default_value = "target/kubernetes/logs")]
    logs: PathBuf,
    /// Keep the cluster, and wait to be ended, when the flows are over
    #[arg(long)]
    keep: bool,
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    base.join("cloud-block-csi/kubernetes")
}

#[tokio::main]
async fn main() {
    let flags = Flags::parse();
    let ran = match guard::inside() {
        _ if flags.list => {
            for flow in flows::ALL {
                println!("{}", flow.name);
            }
            Ok(0)
        }
        None => guard::run(&flags.cache.join("host")).await,
        Some(dir) => run(&flags, &dir).await.map(u8::from),
    };
    let code = ran.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        1
    });
    // Not by returning: the thread that waits for the end of the input is not to be waited for.
    std::process::exit(i32::from(code))
}

/// Runs the flows inside, and tells whether one failed.
async fn run(flags: &Flags, dir: &Path) -> Result<bool> {
    let chosen = chosen(&flags.flows, flags.on)?;
    let workers = match flags.on {
        On::Host => 0,
        On::Virtual => 2,
    };
    let read =
        |name: &str| std::fs::canonicalize(flags.cache.join(name)).with_context(|| format!("{name}: run prepare.sh"));
    let parts = Parts {
        host: read("host")?,
        programs: read("programs")?,
        images: read("images")?,
        worker: if workers > 0 { read("worker")? } else { PathBuf::new() },
        driver: dir.join("driver.tar"),
        repository: std::env::current_dir()?,
    };
    let logs = std::path::absolute(&flags.logs)?.join(if workers > 0 { "virtual" } else { "host" });
    if logs.exists() {
        std::fs::remove_dir_all(&logs)?;
    }
    std::fs::create_dir_all(&logs)?;
    let start = async {
        guard::furnish(dir, workers).await?;
        // What is built next takes its place, and a worker that is started again wants the same.
        let image = flags.image.as_ref().context("--image names the driver's image")?;
        std::fs::copy(image, dir.join("driver.tar")).with_context(|| image.display().to_string())?;
        Bed::start(dir, parts, workers, logs).await
    };
    let mut bed = tokio::select! {
        bed = start => bed?,
        // There is no pod and no disk yet, and the processes die with what started them.
        () = told_to_end() => bail!("told to end while it was started"),
    };
    let shown = tokio::select! {
        shown = show(&mut bed, &chosen, flags) => shown,
        () = told_to_end() => Err(anyhow::anyhow!("told to end")),
    };
    if let Err(error) = &shown {
        println!("{error:#}");
    }
    if flags.keep {
        println!(
            "kept: nsenter --all --target {} (the outer one's number), and the folder {}",
            std::process::id(),
            dir.display()
        );
        told_to_end().await;
    }
    bed.down().await?;
    shown
}

/// The outside says so by closing the input.
async fn told_to_end() {
    let mut nothing = [0; 64];
    while matches!(tokio::io::stdin().read(&mut nothing).await, Ok(1..)) {}
}

fn chosen(names: &str, on: On) -> Result<Vec<Flow>> {
    match names {
        "all" => Ok(flows::ALL.to_vec()),
        // Of those that neither bed shows, the workers' tells.
        "some" => {
            let shown: &[When] = if on == On::Virtual { &[When::OnWorkers, When::Rarely] } else { &[When::OnHost] };
            Ok(flows::ALL.iter().filter(|flow| shown.contains(&flow.when)).copied().collect())
        }
        "none" => Ok(Vec::new()),
        _ => match names.split_once("..") {
            Some(("", name)) => Ok(flows::ALL[..place(name)?].to_vec()),
            Some((name, "")) => Ok(flows::ALL[place(name)?..].to_vec()),
            _ => names.split(',').map(|name| Ok(flows::ALL[place(name)?])).collect(),
        },
    }
}

/// Where among all flows the one of that name is.
fn place(name: &str) -> Result<usize> {
    let place = flows::ALL.iter().position(|flow| flow.name == name);
    place.with_context(|| format!("there is no flow {name}; --list prints their names"))
}

/// Installs the driver and shows the flows; tells whether one failed.
async fn show(bed: &mut Bed, flows: &[Flow], flags: &Flags) -> Result<bool> {
    bed.others = leftovers::of_others(bed).await?;
    let began = Instant::now();
    driver::install(bed).await?;
    println!("the driver is installed, in {:.1} s", began.elapsed().as_secs_f64());
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for flow in flows {
        println!("flow {} ...", flow.name);
        let ending = match flow.when {
            When::Rarely if flags.flows == "some" => Ending::Skipped("it takes long, and is shown with FLOWS=all"),
            _ => flow.show(bed).await,
        };
        match ending {
            Ending::Passed(seconds) => {
                passed += 1;
                println!("flow {}: passed in {seconds:.1} s", flow.name);
            }
            Ending::Failed(error) => {
                failed += 1;
                println!("flow {}: FAILED: {error:#}", flow.name);
            }
            Ending::Skipped(reason) => {
                skipped += 1;
                println!("flow {}: skipped: {reason}", flow.name);
            }
        }
    }
    println!("kubernetes: {passed} passed, {failed} failed, {skipped} skipped");
    match driver::figures(bed).await {
        Ok(figures) => println!("{figures}"),
        // They are for the record, and no result.
        Err(error) => println!("the node's pod can't be looked at: {error:#}"),
    }
    if flags.suite == Suite::None {
        return Ok(failed > 0);
    }
    let logs = bed.processes.logs().to_owned();
    let program = std::fs::canonicalize(flags.cache.join("suite")).context("suite: run prepare.sh")?;
    let every = if flags.suite == Suite::Sample { 7 } else { 1 };
    let slow = matches!(flags.suite, Suite::All | Suite::Rest);
    let choice = suite::Choice { focus: &flags.focus, slow, every, rest: flags.suite == Suite::Rest };
    let ended = suite::run(bed, &program, &logs, &choice).await?;
    ended.print();
    leftovers::gone(bed).await.context("after the suite")?;
    Ok(failed > 0 || !ended.failed.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(chosen: &[Flow]) -> Vec<&'static str> {
        chosen.iter().map(|flow| flow.name).collect()
    }

    #[test]
    fn a_name_divides_the_flows_so_that_each_is_in_one_part() {
        let all = names(flows::ALL);
        for name in &all {
            let before = names(&chosen(&format!("..{name}"), On::Virtual).unwrap());
            let after = names(&chosen(&format!("{name}.."), On::Virtual).unwrap());
            assert_eq!(after[0], *name);
            assert_eq!([before, after].concat(), all);
        }
    }

    #[test]
    fn what_names_no_flow_is_refused() {
        for wrong in ["", "..", "..no_such_flow", "no_such_flow..", "no_such_flow", "a..b"] {
            assert!(chosen(wrong, On::Host).is_err(), "{wrong}");
        }
    }
}
