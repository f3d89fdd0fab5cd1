//! A connection to a qemu monitor (QMP): commands, their answers and events, each a line of JSON.
//!
//! Seven commands don't need a library with all of qemu's types.

use std::{collections::VecDeque, fmt, io, path::Path, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// How long qemu may take to answer: it does at once, unless it is stopped or another client has the monitor.
const ANSWER: Duration = Duration::from_secs(10);

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody listens: the guest is off.
    Off,
    /// The connection ended. The guest may be off now, or not.
    Broken,
    /// qemu refused, with a class and a text.
    Refused { class: String, text: String },
    /// It can't be told what is.
    Unclear(io::Error),
}

impl Failure {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Broken,
            _ => Self::Unclear(error),
        }
    }

    fn late(what: &str) -> Self {
        let text = format!("{what}: no answer in {ANSWER:?}");
        Self::Unclear(io::Error::new(io::ErrorKind::TimedOut, text))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("the guest is off"),
            Self::Broken => f.write_str("the monitor closed the connection"),
            Self::Refused { class, text } => write!(f, "{text} ({class})"),
            Self::Unclear(error) => write!(f, "{error}"),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unclear(error) => error,
            other => Self::other(other.to_string()),
        }
    }
}

/// What qemu says: a greeting, an answer or an event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// A monitor that takes commands.
#[derive(Debug)]
pub(crate) struct Monitor {
    from: Lines<BufReader<OwnedReadHalf>>,
    to: OwnedWriteHalf,
    /// Name and data of the events that came while an answer was awaited.
    events: VecDeque<(String, Value)>,
}

impl Monitor {
    pub(crate) async fn connect(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Failure::Off,
            _ => Failure::of(error),
        })?;
        let (from, to) = stream.into_split();
        let mut monitor = Self { from: BufReader::new(from).lines(), to, events: VecDeque::new() };
        // It takes one client: the others are greeted when their turn has come.
        timeout(ANSWER, monitor.next()).await.map_err(|_| Failure::late("the monitor's greeting"))??;
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// Does a command, and says what it returned.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let answered = async {
            self.to.write_all(line.as_bytes()).await.map_err(Failure::of)?;
            loop {
                let message = self.next().await?;
                match message {
                    Message { answer: Some(answer), .. } => return Ok(answer),
                    Message { error: Some(Refusal { class, desc }), .. } => {
                        return Err(Failure::Refused { class, text: format!("{command}: {desc}") });
                    }
                    Message { event: Some(event), data, .. } => self.events.push_back((event, data)),
                    _ => {}
                }
            }
        };
        timeout(ANSWER, answered).await.map_err(|_| Failure::late(command))?
    }

    /// Waits, without end, until a device is gone. The events of its parts, which name no device, don't count.
    pub(crate) async fn deleted(&mut self, device: &str) -> Result<(), Failure> {
        loop {
            let (event, data) = match self.events.pop_front() {
                Some(event) => event,
                None => match self.next().await? {
                    Message { event: Some(event), data, .. } => (event, data),
                    _ => continue,
                },
            };
            if event == "DEVICE_DELETED" && data["device"] == device {
                return Ok(());
            }
        }
    }

    /// The next line; nothing of one is lost when this is dropped.
    async fn next(&mut self) -> Result<Message, Failure> {
        let line = self.from.next_line().await.map_err(Failure::of)?.ok_or(Failure::Broken)?;
        serde_json::from_str(&line).map_err(|error| Failure::Unclear(error.into()))
    }
}
