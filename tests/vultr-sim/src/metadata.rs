//! The metadata service: of each instance on a port of its own, and of all on one address, as `169.254.169.254` is.

use std::{net::SocketAddr, sync::Arc};

use hyper::{Method, Request, body::Incoming};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answer::Answer,
    cloud::{Cloud, Instance},
};

/// How an instance's metadata service answers.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadataMode {
    /// As it should.
    #[default]
    On,
    /// It closes every connection.
    Off,
    /// It takes connections and never answers.
    BlackHole,
}

/// Answers a request of the instance whose address it comes from; to others there is nothing.
pub(crate) async fn answer_source(cloud: Arc<Cloud>, peer: SocketAddr, request: Request<Incoming>) -> Option<Answer> {
    let source = Some(peer.ip().to_canonical());
    let found = cloud.state().instances.iter().find(|i| i.address == source).map(|i| i.id.clone());
    match found {
        Some(instance) => answer(cloud, instance, request.method().clone(), request.uri().path().to_owned()).await,
        None => Some(Answer::text(404, "Not Found")),
    }
}

/// Answers one request of an instance; none cuts the connection.
pub(crate) async fn answer(cloud: Arc<Cloud>, instance: String, method: Method, path: String) -> Option<Answer> {
    let mode = cloud.state().instance(&instance)?.metadata;
    match mode {
        MetadataMode::Off => return None,
        MetadataMode::BlackHole => std::future::pending().await,
        MetadataMode::On => {}
    }
    if method != Method::GET {
        return Some(Answer::text(405, "Method Not Allowed"));
    }
    let state = cloud.state();
    let instance = state.instance(&instance)?;
    let region = instance.region.to_uppercase();
    Some(match path.as_str() {
        "/v1.json" => Answer::json(200, &document(instance)),
        "/v1/region/regioncode" => Answer::text(200, &region),
        "/v1/instance-v2-id" => Answer::text(200, &instance.id),
        "/v1/hostname" => Answer::text(200, &instance.label),
        _ => Answer::text(404, "Not Found"),
    })
}

fn document(instance: &Instance) -> Value {
    let peer = json!({"my-address": "", "my-asn": "", "peer-address": "", "peer-asn": ""});
    let address = json!({
        "address": instance.main_ip,
        "netmask": "255.255.255.0",
        "gateway": "203.0.113.1",
        "additional": [],
    });
    let interface = json!({
        "mac": "56:00:00:00:00:01",
        "network-type": "public",
        "networkid": "",
        "network-v2-id": "",
        "ipv4": address,
        "ipv6": {"address": "", "network": "", "prefix": "", "additional": []},
    });
    // The older id is a number that has nothing to do with the API's.
    json!({
        "hostname": instance.label,
        "local-hostname": instance.label,
        "instanceid": "42506325",
        "instance-v2-id": instance.id,
        "instance-id": instance.id,
        "region": {"regioncode": instance.region.to_uppercase(), "countrycode": "US"},
        "public-keys": [],
        "interfaces": [interface],
        "bgp": {"ipv4": peer, "ipv6": peer},
        "user-defined": [],
        "startup-script": "",
        "raid1-script": "",
        "user-data": [],
        "vendor-data": [],
    })
}
