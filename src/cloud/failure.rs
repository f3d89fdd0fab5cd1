//! How a request to a cloud fails, by what is known of its effect.

use tonic::Code;

/// How a request to the cloud failed, by what is known of its effect.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CloudError {
    /// The cloud says that there is no such thing. Only this means gone.
    #[error("the cloud says that it does not exist: {0}")]
    NotFound(String),
    /// The cloud refused; nothing happened.
    #[error("the cloud refused ({status}): {text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The API's own words.
        text: String,
    },
    /// It exists, but is of a kind that this driver does not serve; nothing happened.
    #[error("{0}")]
    Unsupported(String),
    /// The instance or the volume is busy with something else; nothing happened, and it can be asked again.
    #[error("the cloud is busy with it: {0}")]
    Busy(String),
    /// Quota, balance or a tier that the region lacks; nothing happened.
    #[error("the cloud has no room: {0}")]
    Exhausted(String),
    /// The token was refused; nothing happened.
    #[error("the cloud refused the API token: {0}")]
    Unauthorized(String),
    /// The request limit stayed exceeded for as long as was waited; nothing happened.
    #[error("the cloud's request limit is exceeded")]
    RateLimited,
    /// No answer, a broken one, or a 5xx: the request may have had its effect.
    #[error("no certain answer from the cloud: {0}")]
    Unknown(String),
}

impl CloudError {
    /// Whether the request may have had its effect all the same.
    pub fn outcome_is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// The gRPC code for an error that nothing more is known of.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Refused { .. } => Code::Internal,
            Self::Unsupported(_) => Code::FailedPrecondition,
            Self::Exhausted(_) => Code::ResourceExhausted,
            // UNAUTHENTICATED is CSI's word for the secrets of a request; ours is the operator's token, and a
            // sidecar must go on asking until it is mended.
            Self::Busy(_) | Self::Unauthorized(_) | Self::RateLimited | Self::Unknown(_) => Code::Unavailable,
        }
    }
}
