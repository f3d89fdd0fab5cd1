//! What can go wrong, and the one place that gives it a gRPC code.
//!
//! Every layer returns [`Error`]; only [`Error::code`] decides what the caller is told, so that a new variant
//! does not compile until somebody has thought about its code.

use std::{path::PathBuf, sync::Arc};

use tonic::Code;

use crate::cloud::CloudError;

/// A failed operation, in the words of the domain.
///
/// It is `Clone` because every call that joined an operation gets the operation's one result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A field of the request is missing, malformed or not something this driver can do.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, as the CSI specification or the `StorageClass` names it.
        field: String,
        /// What is wrong and what to change.
        problem: String,
    },
    /// A call that is in the specification but not among the driver's capabilities.
    #[error("{0} is not among this driver's capabilities")]
    Unserved(&'static str),
    /// A size that the cloud cannot give, or that the request itself rules out.
    #[error("{0}")]
    OutOfRange(String),
    /// The cloud has no such volume, or the id is not of the cloud's form.
    #[error("volume {0} does not exist")]
    VolumeNotFound(String),
    /// The cloud has no such snapshot, or the id is not of the cloud's form.
    #[error("snapshot {0} does not exist")]
    SnapshotNotFound(String),
    /// Something that was there went away while it was waited for.
    #[error("{word} {id} does not exist any more")]
    Gone {
        /// What it is.
        word: &'static str,
        /// Its id.
        id: String,
    },
    /// The cloud took the request but could not carry it out, and never will.
    #[error("{0}")]
    Failed(String),
    /// The cloud has no such instance.
    #[error("node {0} does not exist")]
    NodeNotFound(String),
    /// The path given is not one where this volume is mounted.
    #[error("volume {volume} is not mounted at {path}")]
    NotMounted {
        /// The volume's id.
        volume: String,
        /// The path of the request.
        path: PathBuf,
    },
    /// This node knows nothing of the volume.
    #[error("volume {0} is not on this node")]
    NotHere(String),
    /// The CSI name, or the target path, is taken by something that differs from what is asked.
    #[error("{subject} already exists, but differs: {difference}")]
    Differs {
        /// What exists.
        subject: String,
        /// What it is, and what was asked.
        difference: String,
    },
    /// The volume is attached to another machine than the one asked about.
    #[error("volume {volume} is attached to node {node}; it has to be unpublished there first")]
    AttachedElsewhere {
        /// The volume's id.
        volume: String,
        /// The instance that has it.
        node: String,
    },
    /// The volume, the device or the path is in a state that the operation must not touch.
    #[error("{0}")]
    Precondition(String),
    /// A disk was not formatted or mounted because the proof that this is safe could not be had.
    #[error("disk {device} of volume {volume} is refused and was not touched: {found}; {remedy}")]
    DiskRefused {
        /// Why, as it is counted.
        why: Refusal,
        /// The volume's id.
        volume: String,
        /// The device node.
        device: String,
        /// What was found, and where.
        found: String,
        /// What the operator can do.
        remedy: String,
    },
    /// The disk of an attached volume has not shown up, or not in its new size, in the time there was.
    #[error("{0}")]
    NotYet(String),
    /// A page token of a listing that is not ours, or no longer good (CSI, `ListVolumes`: ABORTED).
    #[error("starting_token '{0}' is not valid here; list again from the start")]
    BadPage(String),
    /// Something else is under way for the same thing or name.
    #[error("{subject} is busy: {in_flight} is in flight; it has to end before {asked} can start")]
    Contradicted {
        /// The volume or name.
        subject: String,
        /// The operation in flight.
        in_flight: String,
        /// The operation asked for.
        asked: String,
    },
    /// The cloud has no room: quota, balance, attachments per instance, or a tier that the region lacks.
    #[error("{0}")]
    Exhausted(String),
    /// It is not known whether the cloud carried out what it was asked.
    #[error("{subject}: the outcome is not known yet")]
    OutcomeUnknown {
        /// What was asked.
        subject: String,
        /// Why there is no outcome.
        #[source]
        cause: CloudError,
    },
    /// The cloud refused, failed or could not be reached.
    #[error("{doing}")]
    Cloud {
        /// What was asked of it.
        doing: String,
        /// Its answer.
        #[source]
        cause: CloudError,
    },
    /// A program that makes, checks or grows a file system failed.
    #[error("{tool} on {device} ended with {outcome}: {output}")]
    Tool {
        /// The program.
        tool: String,
        /// The device or path it worked on.
        device: String,
        /// Its exit code or signal.
        outcome: String,
        /// The end of what it printed.
        output: String,
    },
    /// A system call failed.
    #[error("{doing} {path}")]
    Io {
        /// The call, as a verb: `open`, `mount`.
        doing: &'static str,
        /// What it worked on.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        cause: Arc<std::io::Error>,
    },
    /// The metadata service could not be read.
    #[error("{0}")]
    Metadata(String),
    /// A call failed where something of the volume is, or may be, which it was to mount or to unlock.
    #[error("{}", .0.chain())]
    StillThere(Box<Self>),
    /// The process is shutting down and starts nothing new.
    #[error("the driver is shutting down; the call can be repeated")]
    ShuttingDown,
    /// A bug of ours: the operation's task panicked.
    #[error("the operation panicked; this is a bug in the driver: {0}")]
    Panicked(String),
}

/// Why a disk is refused: a closed set, for labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its size is not what the cloud says.
    Size,
    /// Something else on the node has it.
    Busy,
    /// Its node became another device's while it was looked at.
    Swapped,
    /// A part of it that has to be read cannot be.
    Unreadable,
    /// It holds something that is nothing known, or nobody said that it may be formatted.
    NotBlank,
    /// It holds something known that is not what the volume says.
    Foreign,
    /// It holds the start of a file system that is not this node's to finish.
    HalfMade,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Size, Self::Busy, Self::Swapped, Self::Unreadable, Self::NotBlank, Self::Foreign, Self::HalfMade];

    /// The label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Busy => "busy",
            Self::Swapped => "swapped",
            Self::Unreadable => "unreadable",
            Self::NotBlank => "not_blank",
            Self::Foreign => "foreign",
            Self::HalfMade => "half_made",
        }
    }
}

impl Error {
    /// A bad field of a request.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// A failed system call on `path`.
    pub fn io(doing: &'static str, path: impl Into<PathBuf>, cause: impl Into<std::io::Error>) -> Self {
        Self::Io { doing, path: path.into(), cause: Arc::new(cause.into()) }
    }

    /// The code that CSI 1.13 ("Error Scheme" and each call's error table) names for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } => Code::InvalidArgument,
            Self::Unserved(_) => Code::Unimplemented,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::VolumeNotFound(_)
            | Self::SnapshotNotFound(_)
            | Self::Gone { .. }
            | Self::NodeNotFound(_)
            | Self::NotMounted { .. }
            | Self::NotHere(_) => Code::NotFound,
            Self::Differs { .. } => Code::AlreadyExists,
            Self::AttachedElsewhere { .. } | Self::Precondition(_) | Self::DiskRefused { .. } => {
                Code::FailedPrecondition
            }
            Self::Contradicted { .. } | Self::BadPage(_) => Code::Aborted,
            Self::Exhausted(_) => Code::ResourceExhausted,
            // Not final to the sidecars: they go on asking, and nothing is given up that may exist.
            Self::NotYet(_)
            | Self::OutcomeUnknown { .. }
            | Self::Metadata(_)
            | Self::StillThere(_)
            | Self::ShuttingDown => Code::Unavailable,
            Self::Cloud { cause, .. } => cause.code(),
            Self::Failed(_) | Self::Tool { .. } | Self::Io { .. } | Self::Panicked(_) => Code::Internal,
        }
    }

    /// Whether the kubelet takes a stage or publish that failed so for one that has left nothing, of which it never asks for
    /// the end (Kubernetes 1.36, `isFinalError`).
    pub fn is_final(&self) -> bool {
        !matches!(
            self.code(),
            Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
        )
    }

    /// This error and its causes in one line, as the caller and the log get it.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            let line = inner.to_string();
            if !text.ends_with(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = inner.source();
        }
        text
    }
}
