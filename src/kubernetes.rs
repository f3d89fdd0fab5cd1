//! The Kubernetes API server, which the driver speaks to only where a flag asks for it: the one place that knows the
//! crate `kube`.
//!
//! | what asks for it | API group | resource | verbs | kind of role |
//! |---|---|---|---|---|
//! | `controller --lease NAME` ([`lease`]) | `coordination.k8s.io` | `leases` | get, create, update | Role in the pod's namespace |
//! | `node --startup-taint KEY` ([`taint`]) | core | `nodes` | get, patch | ClusterRole |
//! | | `storage.k8s.io` | `csinodes` | get | ClusterRole |
//! | `pre-stop` ([`drain`]) | core | `nodes` | get | ClusterRole |
//! | | `storage.k8s.io` | `volumeattachments` | list | ClusterRole |
//!
//! `get` and `update` of the lease may be narrowed by `resourceNames` to NAME; `create` cannot be.

pub mod drain;
pub mod lease;
pub mod taint;

use std::{error::Error, time::Duration};

use kube::{Client, Config};

/// The longest that it takes to reach the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The API server cannot be spoken to from here: there is neither a kubeconfig nor a service account.
#[derive(Debug, thiserror::Error)]
#[error("there is no access to the Kubernetes API: {0}")]
pub struct NoAccess(String);

/// A client of the API server that a kubeconfig (`KUBECONFIG`, `~/.kube/config`) names, or else of the cluster that
/// this process's pod is in. Nothing is sent yet.
///
/// # Errors
/// If there is neither.
pub async fn connect() -> Result<Client, NoAccess> {
    let mut config = Config::infer().await.map_err(|error| NoAccess(chain(&error)))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| NoAccess(chain(&error)))
}

/// What the API server, or the way to it, says.
fn told(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => format!("{} {}", status.code, status.reason),
        kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => chain(other),
    }
}

/// The status of an answer that is a refusal.
fn status(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// An error with its causes, as far as they say more than it does.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which fails if two cryptographic libraries are linked, as TLS then knows not which to take.
    #[tokio::test]
    async fn there_is_a_client_over_tls() {
        let mut config = Config::new("https://127.0.0.1:6443".parse().unwrap());
        // As in a pod: the authority is the one that comes with the service account.
        config.root_cert = Some(Vec::new());
        Client::try_from(config).unwrap();
    }
}
