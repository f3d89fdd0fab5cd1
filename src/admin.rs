//! `/metrics`, `/healthz` and `/readyz`, for Prometheus and for probes.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tracing::{debug, info, warn};

use crate::{RunError, metrics::Metrics, registration::Registration, rpc::Identity};

/// How many connections are served at a time. A node's port may be open to anybody, and the disks need descriptors too.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent before its next request.
const SILENCE: Duration = Duration::from_secs(30);
/// How long it is until an address that the machine does not have is tried again.
const ABSENCE: Duration = Duration::from_secs(10);

/// Serves on all of `addresses` until the tasks are dropped. What the machine does not have of them is served when it has it:
/// volumes do not wait for metrics, and what Kubernetes takes for a node's address need not be one of the machine's.
///
/// # Errors
/// If the machine has none of them, or a port is taken.
pub async fn serve(addresses: &[SocketAddr], router: &Router) -> Result<JoinSet<()>, RunError> {
    let mut tasks = JoinSet::new();
    let mut absent = Vec::new();
    for &address in addresses {
        match listen(address).await {
            Ok(listener) => drop(tasks.spawn(answer(listener, router.clone()))),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => absent.push((address, error)),
            Err(error) => return Err(failed(address, &error)),
        }
    }
    if let (true, Some((address, error))) = (tasks.is_empty(), absent.first()) {
        return Err(failed(*address, error));
    }
    for (address, error) in absent {
        warn!(%address, %error, "no metrics here until the machine has this address");
        let router = router.clone();
        tasks.spawn(async move { answer(arrival(address).await, router).await });
    }
    Ok(tasks)
}

fn failed(address: SocketAddr, error: &io::Error) -> RunError {
    RunError::Failed(format!("--metrics-addr {address}: {error}"))
}

async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    // Port 0 is any that is free.
    info!(address = %listener.local_addr()?, "metrics and health");
    Ok(listener)
}

/// Waits until the machine has the address.
async fn arrival(address: SocketAddr) -> TcpListener {
    loop {
        sleep(ABSENCE).await;
        match listen(address).await {
            Ok(listener) => return listener,
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {}
            Err(error) => warn!(%address, %error, "no metrics here yet"),
        }
    }
}

/// Like `axum::serve`, which knows no limits.
async fn answer(listener: TcpListener, router: Router) {
    let mut open = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // One that was given up meanwhile, or there are no descriptors, which takes its time.
                warn!(%error, "a connection for metrics and health is not taken");
                sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        open.retain(|connection: &AbortHandle| !connection.is_finished());
        // The oldest goes, so that a probe never waits for who says nothing or never reads.
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        let connection = tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(SILENCE);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                debug!(%error, "a connection for metrics and health has ended");
            }
        });
        open.push_back(connection.abort_handle());
    }
}

/// What is answered at each path. `standing` is what the start waits for.
pub fn router(
    metrics: Metrics,
    identity: Identity,
    standing: watch::Receiver<String>,
    registration: Option<Registration>,
) -> Router {
    let weather = metrics.weather.clone();
    Router::new()
        .route(
            "/metrics",
            get(move || async move {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([("content-type", kind)], metrics.text()).into_response()
            }),
        )
        // The process answers: there is nothing that a restart would mend. Whoever waits for a lease is alive and well.
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || async move {
                if !identity.has_started() {
                    return (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", *standing.borrow()));
                }
                let unregistered = registration.as_ref().and_then(Registration::trouble);
                match unregistered.or_else(|| weather.trouble()) {
                    None => (StatusCode::OK, "ok\n".to_owned()),
                    Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
                }
            }),
        )
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_takes_nobodys_place() {
        let identity = Identity::new("test".to_owned());
        let (_standing, stands) = watch::channel(String::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(answer(listener, router(Metrics::default(), identity, stands, None)));
        let mut answer = [0; 512];
        // One has had an answer, and the others have asked for none.
        let mut silent = vec![TcpStream::connect(address).await.unwrap()];
        silent[0].write_all(REQUEST).await.unwrap();
        assert!(silent[0].read(&mut answer).await.unwrap() > 0);
        for _ in 1..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(REQUEST).await.unwrap();
        let read = timeout(SILENCE / 2, probe.read(&mut answer)).await.expect("it is answered").unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer[..read]));
        for mut connection in silent {
            let ended = timeout(SILENCE * 3, connection.read(&mut answer)).await.expect("it is ended");
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        }
        server.abort();
    }
}
