//! The gRPC socket: how it is taken, served and left.

use std::{
    convert::Infallible,
    future::Future,
    io,
    path::Path,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
    transport::Server,
};
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
    pub controller: Option<Soon>,
    /// On a node.
    pub node: Option<NodeService>,
}

/// The Controller service from when it may work, and until then one that is UNAVAILABLE. The official sidecars ask Probe
/// before all else, and for as long as it says "not ready"; a socket that isn't there would end them after 30 s.
#[derive(Debug, Clone, Default)]
pub struct Soon(Arc<OnceLock<ControllerServer<ControllerService>>>);

impl Soon {
    /// From here on it is `service`; later ones are ignored.
    pub fn is(&self, service: ControllerService) {
        self.0.get_or_init(|| ControllerServer::new(service));
    }
}

impl NamedService for Soon {
    const NAME: &'static str = <ControllerServer<ControllerService> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Soon {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match self.0.get() {
            Some(service) => service.clone().call(request),
            None => Box::pin(async {
                Ok(Status::unavailable("this controller waits for the lease that another one has").into_http())
            }),
        }
    }
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

/// Why it ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Told,
    /// Somebody took the socket's file away, or put another in its place. Nobody can call any more, and nobody would say so:
    /// whoever starts this process again gets a new socket, or hears that another driver serves there now.
    Robbed,
}

/// Serves on the socket, and is offered to the kubelet by `registration`, until `shutdown` or until the socket is gone; then
/// cancels `ending` and lets calls and the operations of `tasks` end, for `grace`.
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
    ending: &CancellationToken,
) -> Result<End, RunError> {
    let listener = listen(socket).await.map_err(RunError::Failed)?;
    let file = SocketFile::of(socket);
    info!(socket = %socket.display(), "serving");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = Server::builder()
        .add_service(IdentityServer::new(services.identity))
        .add_optional_service(services.controller)
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
    let end = tokio::select! {
        () = shutdown => End::Told,
        ended = &mut server => {
            return Err(RunError::Failed(format!("the gRPC server ended by itself: {ended:?}")));
        }
        problem = offered => return Err(RunError::Failed(problem)),
        () = file.removed() => End::Robbed,
    };
    ending.cancel();
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
            Ok(end)
        }
        Ok(ended) => Err(RunError::Failed(format!("the gRPC server ended badly: {ended:?}"))),
        Err(_) => {
            server.abort();
            let left = tasks.len();
            if left == 0 {
                // Only connections that their owners keep open for ever, or whose calls only look.
                return Ok(end);
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
            serve(
                &serving_path,
                services,
                None,
                &serving_tasks,
                GRACE,
                async { stopped.await.unwrap() },
                &CancellationToken::new(),
            )
            .await
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

    #[tokio::test(start_paused = true)]
    async fn a_server_whose_socket_somebody_took_away_ends_and_says_so() {
        for replaced in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("csi.sock");
            let services = Services { identity: Identity::new("test".to_owned()), controller: None, node: None };
            let serving = path.clone();
            let server = tokio::spawn(async move {
                let ending = CancellationToken::new();
                serve(&serving, services, None, &TaskTracker::new(), GRACE, std::future::pending(), &ending).await
            });
            while UnixStream::connect(&path).await.is_err() {
                tokio::task::yield_now().await;
            }
            std::fs::remove_file(&path).unwrap();
            let other = if replaced { Some(listen(&path).await.unwrap()) } else { None };
            assert_eq!(server.await.unwrap().unwrap(), End::Robbed);
            assert_eq!(path.exists(), replaced, "the other's is left alone");
            drop(other);
        }
    }

    #[tokio::test]
    async fn connections_that_are_only_open_do_not_hold_up_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let services = Services { identity: Identity::new("test".to_owned()), controller: None, node: None };
        let serving = path.clone();
        let server = tokio::spawn(async move {
            serve(
                &serving,
                services,
                None,
                &TaskTracker::new(),
                GRACE,
                async { stopped.await.unwrap() },
                &CancellationToken::new(),
            )
            .await
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
