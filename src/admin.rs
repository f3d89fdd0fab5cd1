//! `/metrics`, `/healthz` and `/readyz`, for Prometheus and for probes.

use std::net::SocketAddr;

use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tracing::{info, warn};

use crate::{RunError, metrics::Metrics, registration::Registration, rpc::Identity};

/// Serves on `address` in a task of its own. `standing` is what the start waits for.
///
/// # Errors
/// If the address cannot be had.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    identity: Identity,
    standing: watch::Receiver<String>,
    registration: Option<Registration>,
) -> Result<JoinHandle<()>, RunError> {
    let failed = |error| RunError::Failed(format!("--metrics-addr {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    // Port 0 is any that is free.
    let address = listener.local_addr().map_err(failed)?;
    info!(%address, "metrics and health");
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router(metrics, identity, standing, registration)).await {
            warn!(%error, "the metrics endpoint has ended");
        }
    }))
}

fn router(
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
