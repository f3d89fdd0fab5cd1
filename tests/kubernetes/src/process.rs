//! The bed's processes: each with its log, each ended in order.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use crate::eventually::Never;

/// How long a process may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long any command may take. It is only there so that one that is stuck doesn't hold the bed for ever: the longest are
/// those typed from a guide, which wait for minutes, several times.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// What runs, in the order in which it was started.
#[derive(Debug)]
pub(crate) struct Processes {
    logs: PathBuf,
    running: Vec<(String, Child)>,
}

impl Processes {
    /// None yet; their logs go to `logs`.
    pub(crate) fn new(logs: PathBuf) -> Self {
        Self { logs, running: Vec::new() }
    }

    /// Where the logs are.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Where the log of the process `name` is.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts `command` as `name`. It dies with the bed.
    pub(crate) fn start(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let log = self.open(name)?;
        self.start_into(name, command, log.try_clone()?, log)
    }

    /// The same, with a log for what it complains of, so that only its output is in its own.
    pub(crate) fn start_to_be_read(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let (log, complaints) = (self.open(name)?, self.open(&format!("{name}-complaints"))?);
        self.start_into(name, command, log, complaints)
    }

    fn open(&self, name: &str) -> Result<File> {
        Ok(File::options().create(true).append(true).open(self.log(name))?)
    }

    fn start_into(&mut self, name: &str, command: &mut Command, log: File, complaints: File) -> Result<()> {
        command.stdin(Stdio::null()).stdout(log).stderr(complaints).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{name} cannot be started: {command:?}"))?;
        self.running.push((name.to_owned(), child));
        Ok(())
    }

    /// Whether `name` still runs; an error tells how it ended.
    pub(crate) fn check(&mut self, name: &str) -> Result<()> {
        let log = self.log(name);
        let Some((_, child)) = self.running.iter_mut().find(|(running, _)| running == name) else {
            bail!("{name} was not started");
        };
        match child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(Never(format!("{name} has ended ({status}):\n{}", last_lines(&log, 20))).into()),
        }
    }

    /// Ends `name`, if it runs: with SIGTERM, and after its time with SIGKILL.
    pub(crate) async fn end(&mut self, name: &str) -> Result<()> {
        let Some(index) = self.running.iter().position(|(running, _)| running == name) else {
            return Ok(());
        };
        let (_, mut child) = self.running.remove(index);
        if let Some(id) = child.id() {
            kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGTERM)?;
            if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
                child.kill().await?;
            }
        }
        Ok(())
    }

    /// Takes `name` away at once, as a crash would.
    pub(crate) async fn kill(&mut self, name: &str) -> Result<()> {
        let Some(index) = self.running.iter().position(|(running, _)| running == name) else {
            bail!("{name} does not run");
        };
        self.running.remove(index).1.kill().await.with_context(|| format!("{name} cannot be killed"))
    }

    /// Ends all, the last first.
    pub(crate) async fn end_all(&mut self) -> Result<()> {
        while let Some(name) = self.running.last().map(|(name, _)| name.clone()) {
            self.end(&name).await?;
        }
        Ok(())
    }
}

/// The end of a log.
pub(crate) fn last_lines(file: &Path, count: usize) -> String {
    let text = std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Runs a command to its end and gives what it printed; what it complained of is the error.
pub(crate) async fn output(command: &mut Command) -> Result<String> {
    output_within(LONGEST, command).await
}

/// The same for a command that takes less time, or is stuck.
pub(crate) async fn output_within(limit: Duration, command: &mut Command) -> Result<String> {
    let output = tokio::time::timeout(limit, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = output.with_context(|| format!("{:?} is stuck: {} s", command.as_std(), limit.as_secs()))?;
    let output = output.with_context(|| format!("{command:?} cannot be started"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{:?} ended with {}: {}", command.as_std(), output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
