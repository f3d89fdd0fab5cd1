//! The gRPC socket: how it is taken, served and left.

use std::{
    future::Future,
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    RunError,
    csi::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer},
    rpc::{ControllerService, Identity, NodeService},
};

/// How long what is in flight may take to end; Kubernetes gives a pod 30 s by default.
const GRACE: Duration = Duration::from_secs(25);

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

/// Serves on the socket until `shutdown`, then lets calls and the operations of `tasks` end.
///
/// # Errors
/// If the socket cannot be had, or if something is still in flight when the grace is over.
pub async fn serve(
    socket: &Path,
    services: Services,
    tasks: &TaskTracker,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let listener = listen(socket).await.map_err(RunError::Failed)?;
    let file = SocketFile(socket.to_owned());
    info!(socket = %socket.display(), "serving");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = Server::builder()
        .add_service(IdentityServer::new(services.identity))
        .add_optional_service(services.controller.map(ControllerServer::new))
        .add_optional_service(services.node.map(NodeServer::new));
    let incoming = UnixListenerStream::new(listener);
    let mut server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async {
        // A dropped sender means the same.
        stopped.await.ok();
    }));
    tokio::select! {
        () = shutdown => {}
        ended = &mut server => {
            return Err(RunError::Failed(format!("the gRPC server ended by itself: {ended:?}")));
        }
    }
    // Operations outlive their calls, so both are waited for.
    // The file goes first: once nothing accepts there, a successor may put its own in the place.
    drop(file);
    stop.send(()).ok();
    tasks.close();
    let drained = tokio::time::timeout(GRACE, async {
        tasks.wait().await;
        (&mut server).await
    });
    match drained.await {
        Ok(Ok(Ok(()))) => {
            info!("ended in order");
            Ok(())
        }
        Ok(ended) => Err(RunError::Failed(format!("the gRPC server ended badly: {ended:?}"))),
        Err(_) => {
            server.abort();
            let left = tasks.len();
            if left == 0 {
                // Only idle connections, which their owners keep open for ever.
                return Ok(());
            }
            Err(RunError::Failed(format!("{left} operations were still in flight after {} s", GRACE.as_secs())))
        }
    }
}

/// Takes the socket, in place of one that a process left behind which is no more.
async fn listen(path: &Path) -> Result<UnixListener, String> {
    let problem = |what: &str, error: io::Error| format!("socket {}: {what}: {error}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| problem("its folder cannot be made", error))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            match UnixStream::connect(path).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // A server whose backlog is full lives too.
                _ => return Err(format!("socket {}: another process serves on it", path.display())),
            }
            std::fs::remove_file(path).map_err(|error| problem("a stale one cannot be removed", error))?;
        }
        Ok(_) => return Err(format!("socket {}: there is something else, which is left alone", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(problem("cannot be looked at", error)),
    }
    let listener = UnixListener::bind(path).map_err(|error| problem("cannot be bound", error))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(|error| problem("its mode cannot be set", error))?;
    Ok(listener)
}

/// Removes the socket when the server stops accepting.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            warn!(socket = %self.0.display(), %error, "the socket is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/csi.sock");
        let living = listen(&path).await.unwrap();
        assert!(listen(&path).await.unwrap_err().contains("another process"));
        drop(living);
        assert!(path.exists(), "a socket outlives its process");
        listen(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

        let file = dir.path().join("file");
        std::fs::write(&file, "data").unwrap();
        assert!(listen(&file).await.unwrap_err().contains("left alone"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
    }

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
            serve(&serving_path, services, &serving_tasks, async { stopped.await.unwrap() }).await
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
}
