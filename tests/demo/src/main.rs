//! `make demo`: walks a volume through its whole life on a simulated cloud with two instances, as Kubernetes would, and
//! checks each step with the kernel's own eyes.

mod life;

use std::{
    panic::AssertUnwindSafe,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use demo::{
    Outcome, Problem,
    bed::{Bed, Stop},
    narration::{Took, say},
};
use futures_util::FutureExt;
use vultr_sim::{Behaviour, Leftovers};

/// One volume's whole life: created, attached, formatted, mounted, written, grown, moved to a second instance with its
/// data, and deleted.
#[derive(Debug, Parser)]
struct Flags {
    /// The driver's binary; by default the one beside this.
    #[arg(long)]
    driver: Option<PathBuf>,
    /// The file system: xfs, ext4 or btrfs. (Growing a mounted ext4 takes `CAP_SYS_RESOURCE`, which some containers lack.)
    #[arg(long, default_value = "xfs")]
    fs_type: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            say(format_args!("\nFAILED: {problem}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> Outcome<()> {
    let began = Instant::now();
    let mut stop = Stop::listen()?;
    let driver = match flags.driver {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("cloud-block-csi"),
    };
    // The times of a real cloud, more or less; whether a growth is seen by a running instance at once is not documented.
    let behaviour = Behaviour { growth_seen_online: true, ..Behaviour::default() };
    let mut bed = Bed::start(&driver, &["demo-1", "demo-2"], behaviour).await?;
    let told = tokio::select! {
        told = AssertUnwindSafe(life::live(&mut bed, &flags.fs_type)).catch_unwind() => {
            told.unwrap_or_else(|_| Err("the demo itself panicked".into()))
        }
        stopped = stop.wait() => stopped,
    };
    let told = told.and_then(|steps| clean(&bed).map(|()| steps));
    let words = if told.is_err() { bed.last_words(20) } else { String::new() };
    say("\nTaking everything down.");
    let went = bed.down().await;
    match (told, went) {
        (Ok(steps), Ok(down)) if down.forced.is_empty() => {
            say(format_args!("    {} driver processes ended on SIGTERM; the cloud is gone", down.ended));
            say("    left on this machine: no mount, no loop device, no process, no file");
            say(format_args!("\nAll {steps} steps went as they should, in {}.", Took(began.elapsed())));
            Ok(())
        }
        (Ok(_), Ok(down)) => Err(format!("taken away by force: {}", down.forced.join(", ")).into()),
        (Err(problem), Ok(down)) => {
            for thing in &down.forced {
                say(format_args!("    taken away: {thing}"));
            }
            say("    left on this machine: no mount, no loop device, no process, no file");
            say(format_args!("\n{words}"));
            Err(problem)
        }
        (Err(problem), Err(left)) => {
            say(format_args!("\n{words}"));
            Err(format!("{problem}; and {left}").into())
        }
        (Ok(_), Err(left)) => Err(left),
    }
}

/// Fails if the cloud or its disks are not as they were in the beginning.
fn clean(bed: &Bed) -> Outcome<()> {
    let began = Instant::now();
    loop {
        let left = bed.cloud().control().leftovers()?;
        if left == Leftovers::default() {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(1) {
            return Err(Problem::from(format!("left in the cloud: {left:?}")));
        }
    }
}
