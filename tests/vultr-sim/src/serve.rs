//! One listener: takes connections, gives each request to a function, and can cut a connection instead of answering.

use std::{net::SocketAddr, sync::Arc};

use axum::body::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use crate::answer::Answer;

/// The connection ends without an answer: hyper drops it when the service fails.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connection cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// Serves until the task is aborted, which ends the open connections too. No answer means: cut the connection.
pub(crate) fn listen<F, A>(listener: TcpListener, answer: F) -> JoinHandle<()>
where
    F: Fn(SocketAddr, Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Option<Answer>> + Send + 'static,
{
    let answer = Arc::new(answer);
    let accepting = async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // Out of file descriptors, most likely: it passes.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request| {
                let answer = answer(peer, request);
                async move {
                    let answer = answer.await.ok_or(Cut)?;
                    Ok::<Response<Full<Bytes>>, Cut>(answer.into_response())
                }
            });
            connections.spawn(async move {
                // A connection that breaks is the client's affair.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::spawn(accepting)
}
