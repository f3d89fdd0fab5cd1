//! The server of one folder for one guest: virtiofsd, which comes in two kinds with options of their own.

use std::{
    ffi::OsString,
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

    /// The program and its options for a folder and a socket. It stays in the foreground.
    async fn command(&self, dir: &Path, socket: &Path, cache: Cache) -> io::Result<Command> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "there is no virtiofsd");
        let program = self.0.as_ref().ok_or_else(none)?;
        let help = Command::new(program).arg("--help").stdin(Stdio::null()).output().await?;
        let help = [help.stdout, help.stderr].concat();
        let is_rust = String::from_utf8_lossy(&help).contains("--shared-dir");
        let mut command = Command::new(program);
        let option = |name: &str, path: &Path| {
            let mut option = OsString::from(name);
            option.push(path);
            option
        };
        command.arg(option("--socket-path=", socket));
        let cache = match (cache, is_rust) {
            (Cache::Nothing, true) => "never",
            (Cache::Nothing, false) => "none",
            (Cache::AsItLikes, _) => "auto",
        };
        if is_rust {
            command.arg("--shared-dir").arg(dir).args(["--cache", cache, "--sandbox", "chroot"]);
        } else {
            command.arg("-o").arg(option("source=", dir));
            command.args(["-o", &format!("cache={cache}"), "-o", "sandbox=chroot"]);
        }
        Ok(command)
    }
}

/// What a guest may keep of what it has read.
#[derive(Clone, Copy, Debug)]
pub enum Cache {
    /// What one guest wrote, another reads from then on. With a cache it may read, for a second and in a file that it holds
    /// open for longer, what was; then a test would judge the cache.
    Nothing,
    /// For what nobody changes while a guest runs.
    AsItLikes,
}

/// The command by which the distribution's virtiofsd serves a folder to one guest, at a socket that must not be there yet.
///
/// # Errors
///
/// If there is none, or it cannot be run.
pub async fn virtiofsd(dir: &Path, socket: &Path, cache: Cache) -> io::Result<Command> {
    Program::new(None).command(dir, socket, cache).await
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
        let mut command = program.command(dir, &socket, Cache::Nothing).await?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said).kill_on_drop(true);
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program that says it has these options, and then does as told with its arguments in `$*`; it is in the folder.
    pub(crate) fn program(test: &str, help: &str, then: &str) -> (PathBuf, Program) {
        let dir = std::env::temp_dir().join(format!("vultr-sim-virtiofsd-{test}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (source, script) = (dir.join("source"), dir.join("program"));
        fs::write(&source, format!("#!/bin/sh\nif [ \"$1\" = --help ]; then echo '{help}'; exit; fi\n{then}\n"))
            .unwrap();
        // Another process writes it: a file that this one has open, or a child of another test, can't be run.
        let mut install = std::process::Command::new("install");
        assert!(install.args(["-m", "755"]).arg(source).arg(&script).status().unwrap().success());
        (dir, Program::new(Some(script)))
    }

    #[tokio::test]
    async fn each_kind_gets_its_own_options() {
        let rust = ("rust", "--shared-dir <DIR>", "--shared-dir /x --cache never --sandbox chroot");
        let c = ("c", "-o source=PATH", "-o source=/x -o cache=none -o sandbox=chroot");
        for (test, help, options) in [rust, c] {
            let then = r#"echo "$*"; : >"${1#--socket-path=}"; exec sleep 1000"#;
            let (dir, program) = program(test, help, then);
            let server = Virtiofsd::start(&program, Path::new("/x"), &dir.join("share-1")).await.unwrap();
            assert_eq!(server.socket(), dir.join("share-1.sock"));
            let said = fs::read_to_string(dir.join("share-1.log")).unwrap();
            assert_eq!(said, format!("--socket-path={} {options}\n", server.socket().display()));
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[tokio::test]
    async fn one_that_ends_at_once_is_told_with_its_last_words() {
        let (dir, program) = program("ends", "--shared-dir", "echo first; echo no such folder >&2; exit 3");
        let error = Virtiofsd::start(&program, Path::new("/x"), &dir.join("share-1")).await.unwrap_err();
        assert_eq!(error.to_string(), r#"virtiofsd ended, exit status: 3, and said "no such folder""#);
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn one_that_hung_up_ends_without_its_socket() {
        let then = r#": >"${1#--socket-path=}""#;
        let (dir, program) = program("hung-up", "--shared-dir", then);
        let server = Virtiofsd::start(&program, Path::new("/x"), &dir.join("share-1")).await.unwrap();
        server.end().await.unwrap();
        assert!(!dir.join("share-1.sock").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
