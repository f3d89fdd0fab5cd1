//! How the programs that make, check and grow file systems are run.
//!
//! A program may outlive the driver: nothing kills it, it has the volume's lock open, and its output goes to files
//! without a name, since a pipe that nobody reads any more would end it in the middle of its work.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use command_fds::{CommandFdExt, FdMapping};
use tokio::{io::AsyncWriteExt, time::Instant};
use tracing::{Instrument, debug, warn_span};

use super::program::{self, DIRECTORIES, Tool};
use crate::{
    error::Error,
    metrics::Metrics,
    node::{key::Key, lock::Lock},
};

/// Where a program has the volume's lock: beyond its standard input and output.
const LOCK_FD: i32 = 3;

/// How much of a program's output is kept.
const OUTPUT_BYTES: u64 = 16 << 10;

/// Held while a program is being started: until its exec it has copies of all that this process has open, also of other
/// volumes' disks and mounts, and so keeps them busy.
static STARTING: Mutex<()> = Mutex::new(());

/// Returns when no program is in between any more that was being started; then nothing that was closed before is kept
/// open by one.
pub(super) fn all_started() {
    drop(STARTING.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Runs a program of a test's own, which is not to keep busy either what other tests have open.
#[cfg(test)]
pub(in crate::node) fn output_of(command: &mut std::process::Command) -> io::Result<std::process::Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = {
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        command.spawn()?
    };
    child.wait_with_output()
}

/// How a program's end is counted.
fn outcome(ended: Result<&Output, &Error>) -> &'static str {
    match ended.map(|output| output.code) {
        Ok(Some(0)) => "ok",
        // With some this is an answer: blkid finds nothing, e2fsck has mended something.
        Ok(Some(_)) => "nonzero",
        Ok(None) => "signal",
        Err(_) => "not_run",
    }
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its exit code or signal, in words.
    pub outcome: String,
    /// The start of what it printed.
    pub stdout: String,
    /// The end of what it complained of.
    pub stderr: String,
}

impl Output {
    /// Whether it ended well.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The error that this end is, unless it ended well.
    pub fn ok(self, tool: Tool, device: &Path) -> Result<Self, Error> {
        if self.success() { Ok(self) } else { Err(self.error(tool, device)) }
    }

    /// The error that this end is.
    pub fn error(&self, tool: Tool, device: &Path) -> Error {
        let printed = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Error::Tool {
            tool: tool.program().to_owned(),
            device: device.display().to_string(),
            outcome: self.outcome.clone(),
            output: printed.trim().to_owned(),
        }
    }
}

/// Where each program is.
#[derive(Debug)]
pub(super) struct Tools {
    programs: BTreeMap<Tool, PathBuf>,
    /// Where their output goes while they run.
    state_dir: PathBuf,
    metrics: Metrics,
}

impl Tools {
    /// Finds every program.
    pub(super) fn find(state_dir: PathBuf, metrics: Metrics) -> Result<Self, Error> {
        Ok(Self { programs: program::find()?, state_dir, metrics })
    }

    /// Runs one to its end.
    pub(super) async fn run(
        &self,
        tool: Tool,
        arguments: &[&str],
        key: Option<&Key>,
        lock: &Lock,
    ) -> Result<Output, Error> {
        let began = Instant::now();
        let ended = self.run_to_its_end(tool, arguments, key, lock).await;
        self.metrics.tool(tool.program(), outcome(ended.as_ref()), began.elapsed());
        ended
    }

    async fn run_to_its_end(
        &self,
        tool: Tool,
        arguments: &[&str],
        key: Option<&Key>,
        lock: &Lock,
    ) -> Result<Output, Error> {
        let program = &self.programs[&tool];
        let failed = |cause| Error::io("run", program, cause);
        let mut stdout = nameless_file(&self.state_dir).map_err(failed)?;
        let mut stderr = nameless_file(&self.state_dir).map_err(failed)?;
        let mut command = std::process::Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", DIRECTORIES.join(":"))
            // Else cryptsetup waits for a udev that may be another namespace's, and so for ever.
            .env("DM_DISABLE_UDEV", "1")
            .stdin(if key.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::from(stdout.try_clone().map_err(failed)?))
            .stderr(Stdio::from(stderr.try_clone().map_err(failed)?));
        let held = FdMapping { parent_fd: lock.share().map_err(failed)?.into(), child_fd: LOCK_FD };
        command.fd_mappings(vec![held]).map_err(|error| failed(io::Error::other(error)))?;
        let mut command = tokio::process::Command::from(command);
        let span = warn_span!("tool", tool = tool.program());
        let mut child = {
            let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            // It returns after the exec.
            command.spawn().map_err(failed)?
        };
        // It has its own copies of the lock and the files now.
        drop(command);
        if let (Some(mut pipe), Some(key)) = (child.stdin.take(), key)
            && let Err(cause) = pipe.write_all(key.bytes()).await
            // One that ended without reading it says why by its exit code.
            && cause.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(failed(cause));
        }
        let status = child.wait().instrument(span.clone()).await.map_err(failed)?;
        let outcome = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        span.in_scope(|| debug!(?arguments, outcome, "ran"));
        Ok(Output {
            code: status.code(),
            outcome,
            stdout: start_of(&mut stdout).map_err(failed)?,
            stderr: end_of(&mut stderr).map_err(failed)?,
        })
    }
}

fn nameless_file(directory: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!(".output-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = directory.join(name);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

fn start_of(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn end_of(file: &mut File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_end_in_the_ways_that_alerts_know() {
        let ended = |code| Output { code, outcome: String::new(), stdout: String::new(), stderr: String::new() };
        let ended = [Ok(ended(Some(0))), Ok(ended(Some(2))), Ok(ended(None)), Err(Error::NotYet(String::new()))];
        let outcomes = ended.each_ref().map(|ended| outcome(ended.as_ref()));
        assert_eq!(crate::metrics::described("outcome", "csi_tool_seconds"), outcomes.into());
    }
}
