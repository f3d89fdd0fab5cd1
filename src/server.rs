//! The gRPC socket: how it is taken, served and left.

use std::{future::Future, io, path::Path, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    RunError,
    csi::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer},
    registration::Registration,
    rpc::{ControllerService, Identity, NodeService},
    socket::{SocketFile, connections, listen},
};

/// How long the answers to calls may take when no operation is in flight any more: those calls only look. Without it a
/// connection that somebody keeps open and says nothing on would take up the whole of the grace.
const ANSWERS: Duration = Duration::from_secs(5);

/// What is served.
#[derive(Debug)]
pub struct Services {
    /// Always.
    pub identity: Identity,
    /// On the controller.
    pub controller: Option<ControllerService>,
    /// On a node.
    pub node: Option<NodeService>,
}

/// The signal to end in order. A second one ends the process at once.
///
/// # Errors
/// If signals cannot be received.
pub fn stop_signal() -> Result<impl Future<Output = ()>, RunError> {
    let failed = |error: io::Error| RunError::Failed(format!("signals cannot be received: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("ending: nothing new is accepted, what is in flight goes on");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            warn!("a second signal: ending at once");
            std::process::exit(1);
        });
    })
}

/// Serves on the socket, and is offered to the kubelet by `registration`, until `shutdown`; then lets calls and the
/// operations of `tasks` end, for `grace`.
///
/// # Errors
/// If the socket cannot be had, or if something is still in flight when the grace is over.
pub async fn serve(
    socket: &Path,
    services: Services,
    registration: Option<&Registration>,
    tasks: &TaskTracker,
    grace: Duration,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let listener = listen(socket).await.map_err(RunError::Failed)?;
    let file = SocketFile::of(socket);
    info!(socket = %socket.display(), "serving");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = Server::builder()
        .add_service(IdentityServer::new(services.identity))
        .add_optional_service(services.controller.map(ControllerServer::new))
        .add_optional_service(services.node.map(NodeServer::new));
    let incoming = connections(listener);
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
        // A dropped sender means the same.
        stopped.await.ok();
    }));
    // The kubelet calls as soon as it sees the offer, so that comes after all else, and goes before all else.
    let offered = async {
        match registration {
            Some(registration) => registration.keep_offered().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown => {}
        ended = &mut server => {
            return Err(RunError::Failed(format!("the gRPC server ended by itself: {ended:?}")));
        }
        problem = offered => return Err(RunError::Failed(problem)),
    }
    // Operations outlive their calls, so both are waited for.
    // The file goes first: once nothing accepts there, a successor may put its own in the place.
    drop(file);
    stop.send(()).ok();
    tasks.close();
    let drained = tokio::time::timeout(grace, async {
        tasks.wait().await;
        tokio::time::timeout(ANSWERS, &mut server).await
    });
    match drained.await.and_then(|ended| ended) {
        Ok(Ok(Ok(()))) => {
            info!("ended in order");
            Ok(())
        }
        Ok(ended) => Err(RunError::Failed(format!("the gRPC server ended badly: {ended:?}"))),
        Err(_) => {
            server.abort();
            let left = tasks.len();
            if left == 0 {
                // Only connections that their owners keep open for ever, or whose calls only look.
                return Ok(());
            }
            Err(RunError::Failed(format!("{left} operations were still in flight after {} s", grace.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::csi::{ProbeRequest, identity_client::IdentityClient};

    const GRACE: Duration = Duration::from_secs(25);

    #[tokio::test]
    async fn an_operation_in_flight_ends_before_the_server_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let tasks = TaskTracker::new();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let operation = tasks.spawn(async { finished.await.unwrap() });
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let services = Services { identity: Identity::new("test".to_owned()), controller: None, node: None };
        let (serving_path, serving_tasks) = (path.clone(), tasks.clone());
        let server = tokio::spawn(async move {
            serve(&serving_path, services, None, &serving_tasks, GRACE, async { stopped.await.unwrap() }).await
        });
        while UnixStream::connect(&path).await.is_err() {
            tokio::task::yield_now().await;
        }
        stop.send(()).unwrap();
        while !tasks.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(!server.is_finished());
        // A successor need not wait for the drain, and does not lose its socket to it.
        let successor = listen(&path).await.unwrap();
        finish.send(()).unwrap();
        server.await.unwrap().unwrap();
        operation.await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        drop(successor);
    }

    #[tokio::test]
    async fn connections_that_are_only_open_do_not_hold_up_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let services = Services { identity: Identity::new("test".to_owned()), controller: None, node: None };
        let serving = path.clone();
        let server = tokio::spawn(async move {
            serve(&serving, services, None, &TaskTracker::new(), GRACE, async { stopped.await.unwrap() }).await
        });
        while UnixStream::connect(&path).await.is_err() {
            tokio::task::yield_now().await;
        }
        // A kubelet between two calls, and something that has never said a word.
        let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{}", path.display())).unwrap();
        let mut kubelet = IdentityClient::new(endpoint.connect().await.unwrap());
        kubelet.probe(ProbeRequest {}).await.unwrap();
        let silent = UnixStream::connect(&path).await.unwrap();
        kubelet.probe(ProbeRequest {}).await.unwrap();
        let began = tokio::time::Instant::now();
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        assert!(began.elapsed() < GRACE / 2, "{:?}", began.elapsed());
        drop((kubelet, silent));
    }
}
