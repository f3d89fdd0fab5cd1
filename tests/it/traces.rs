//! The spans that a collector gets, and what a collector that is away does to calls: nothing.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, routing::post};
use cloud_block_csi::csi::CreateVolumeRequest;
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message;
use tokio::net::TcpListener;
use tonic::Code;
use vultr_sim::{Behaviour, Fault, Operation, When};

use crate::cluster::{Cluster, asked, eventually, mounted, skipped};

const SECRET: &str = "canary-of-a-secret-of-a-create";

type Bodies = Arc<Mutex<Vec<Bytes>>>;

/// A collector, and what it has been sent.
async fn collector() -> (String, Bodies) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let bodies = Bodies::default();
    let kept = Arc::clone(&bodies);
    let take = move |body: Bytes| async move { kept.lock().unwrap().push(body) };
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, bodies)
}

fn attribute(span: &Span, key: &str) -> String {
    let pair = span.attributes.iter().find(|pair| pair.key == key);
    format!("{:?}", pair.and_then(|pair| pair.value.as_ref()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_a_creates_spans_and_no_secret() {
    if skipped("a_collector_gets_a_creates_spans_and_no_secret") {
        return;
    }
    let (url, bodies) = collector().await;
    // Spans do not hang on what is logged.
    let flags = ["--otlp-endpoint", &url, "--log-level", "error"];
    let cluster = Cluster::start_with(&[], Behaviour::instant(), &flags).await;
    let mut request = asked("pvc-traced", &mounted("ext4"));
    request.secrets.insert("token".to_owned(), SECRET.to_owned());
    let pvc = cluster.make(request).await.unwrap();
    cluster.bed.cloud().control().add_fault(Fault::error(Operation::DeleteBlock, When::Before, 401, "no").times(1));
    let refused = cluster.delete(&pvc).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok);
    cluster.delete(&pvc).await.unwrap();
    let token = cluster.bed.cloud().token().to_owned();
    // The end of the process sends the rest.
    cluster.end().await;

    let bodies = bodies.lock().unwrap();
    let mut spans = Vec::new();
    for body in bodies.iter() {
        for secret in [SECRET, &token] {
            assert!(!body.windows(secret.len()).any(|part| part == secret.as_bytes()), "a secret was sent");
        }
        let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
        for resource in request.resource_spans {
            assert!(format!("{:?}", resource.resource).contains("cloud-block-csi"));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    let of = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {names:?}"));
    let call = of("rpc CreateVolume");
    assert!(attribute(call, "volume").contains("pvc-traced"), "{call:?}");
    assert!(call.parent_span_id.is_empty());
    let operation = of("operation create");
    assert_eq!(operation.parent_span_id, call.span_id);
    let request = of("cloud create_block");
    assert_eq!(request.parent_span_id, operation.span_id);
    assert_eq!(request.trace_id, call.trace_id);
    assert!(attribute(request, "outcome").contains("ok"), "{request:?}");
    let deletes: Vec<_> = spans.iter().filter(|span| span.name == "rpc DeleteVolume").collect();
    let failed = |span: &&&Span| span.status.as_ref().is_some_and(|status| status.code == 2);
    assert_eq!((deletes.len(), deletes.iter().filter(failed).count()), (2, 1), "{deletes:?}");
    assert!(deletes.iter().all(|span| attribute(span, "volume").contains(&pvc.id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_disturbs_nothing_and_is_told_of_once() {
    if skipped("a_collector_that_is_away_disturbs_nothing_and_is_told_of_once") {
        return;
    }
    // Nobody listens there any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cluster = Cluster::start_with(&[], Behaviour::instant(), &["--otlp-endpoint", &url]).await;
    // Several batches of 512 spans.
    for _ in 0..1500 {
        let refused = cluster.controller.clone().create_volume(CreateVolumeRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let pvc = cluster.create("pvc-1", &mounted("ext4")).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    let log = cluster.bed.dir().join("controller.log");
    let told =
        async || Some(fs::read_to_string(&log).unwrap().matches("spans are lost").count()).filter(|told| *told > 0);
    assert_eq!(eventually("the log tells of it", told).await, 1);
    // It ends in order all the same.
    cluster.end().await;
}
