//! The bed's addresses. It has a network namespace of its own, so they can be any, and go nowhere.

use anyhow::Result;
use tokio::process::Command;

use crate::process::output;

/// The host's, where the API server, the cloud and the host's own node are.
pub(crate) const HOST: &str = "10.77.0.1";
/// Where pods find the API server: the first of the services' addresses.
pub(crate) const SERVICE: &str = "10.96.0.1";
/// The metadata service of every instance.
pub(crate) const METADATA: &str = "169.254.169.254";
/// The bridge that the virtual workers are on.
const BRIDGE: &str = "bed0";

/// The address of virtual worker `number`, from 1.
pub(crate) fn worker(number: usize) -> String {
    format!("10.77.0.{}", 10 + number)
}

/// The range of the pods of node `number`; 0 is the host.
pub(crate) fn pods(number: usize) -> String {
    format!("10.88.{number}.0/24")
}

/// The network device of virtual worker `number`.
pub(crate) fn tap(number: usize) -> String {
    format!("tap{number}")
}

/// What the container network of node `number` looks like.
pub(crate) fn container_network(number: usize, state: &str) -> String {
    let pods = pods(number);
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "bed", "plugins": [{{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
 "hairpinMode": true, "ipam": {{"type": "host-local", "dataDir": "{state}", "ranges": [[{{"subnet": "{pods}"}}]],
 "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#
    )
}

/// Makes the bridge, the addresses, and the devices of `workers` virtual workers.
pub(crate) async fn make(workers: usize) -> Result<()> {
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("link add {BRIDGE} type bridge"),
        format!("addr add {HOST}/24 dev {BRIDGE}"),
        format!("addr add {METADATA}/32 dev {BRIDGE}"),
        format!("addr add {SERVICE}/32 dev {BRIDGE}"),
        format!("link set {BRIDGE} up"),
    ];
    for number in 1..=workers {
        let (tap, pods, worker) = (tap(number), pods(number), worker(number));
        lines.push(format!("tuntap add dev {tap} mode tap"));
        lines.push(format!("link set {tap} master {BRIDGE} up"));
        lines.push(format!("route add {pods} via {worker}"));
    }
    for line in lines {
        output(Command::new("ip").args(line.split(' '))).await?;
    }
    tokio::fs::write("/proc/sys/net/ipv4/ip_forward", "1").await?;
    Ok(())
}
