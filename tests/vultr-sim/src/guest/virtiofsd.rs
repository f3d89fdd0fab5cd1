//! The server of one folder for one guest: virtiofsd, which comes in two kinds with options of their own.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::disk::ignore_absent;

/// Where distributions have it; the one in Rust first.
const PLACES: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// How long it may take to listen.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end by itself once its guest hung up.
const END: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Which virtiofsd is run.
#[derive(Debug)]
pub(crate) struct Program(Option<PathBuf>);

impl Program {
    /// The one that is named, or else one of the distribution's.
    pub(crate) fn new(named: Option<PathBuf>) -> Self {
        let found = || PLACES.iter().map(PathBuf::from).find(|place| place.exists());
        Self(named.or_else(found))
    }

    /// The program and its options for a folder.
    ///
    /// Nothing is cached in the guests: what one wrote, another reads from then on. With a cache it may read, for a
    /// second and in a file that it holds open for longer, what was; then a test would judge the cache.
    async fn command(&self, dir: &Path) -> io::Result<Command> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "there is no virtiofsd");
        let program = self.0.as_ref().ok_or_else(none)?;
        let help = Command::new(program).arg("--help").stdin(Stdio::null()).output().await?;
        let help = [help.stdout, help.stderr].concat();
        let mut command = Command::new(program);
        if String::from_utf8_lossy(&help).contains("--shared-dir") {
            command.arg("--shared-dir").arg(dir).args(["--cache", "never", "--sandbox", "chroot"]);
        } else {
            command.arg("-f").args(["-o", "cache=none", "-o", "sandbox=chroot", "-o"]);
            command.arg(format!("source={}", dir.display()));
        }
        Ok(command)
    }
}

/// A running server; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Virtiofsd {
    child: Child,
    socket: PathBuf,
}

impl Virtiofsd {
    /// Starts one, which listens when this returns. Its socket and its log are files that begin with `name`.
    pub(crate) async fn start(program: &Program, dir: &Path, name: &Path) -> io::Result<Self> {
        let (socket, log) = (name.with_extension("sock"), name.with_extension("log"));
        ignore_absent(fs::remove_file(&socket))?;
        let said = File::create(&log)?;
        let mut command = program.command(dir).await?;
        let mut option = std::ffi::OsString::from("--socket-path=");
        option.push(&socket);
        command.arg(option).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).kill_on_drop(true);
        let mut server = Self { child: command.spawn()?, socket };
        let deadline = Instant::now() + START;
        while !server.socket.exists() {
            let ended = server.child.try_wait()?;
            if ended.is_some() || Instant::now() >= deadline {
                let said = fs::read_to_string(&log)?;
                let last = said.lines().last().unwrap_or("nothing");
                let state = ended.map_or("does not listen".to_owned(), |status| format!("ended, {status}"));
                return Err(io::Error::other(format!("virtiofsd {state}, and said {last:?}")));
            }
            sleep(PAUSE).await;
        }
        Ok(server)
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until it ended, which it does when its guest hung up, or ends it.
    pub(crate) async fn end(mut self) -> io::Result<()> {
        if timeout(END, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        ignore_absent(fs::remove_file(&self.socket))
    }
}
