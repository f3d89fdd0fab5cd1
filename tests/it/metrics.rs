//! What a volume's life leaves in the metrics of the controller and of the node, and who relies on their names.

use std::{collections::BTreeSet, fs, path::Path};

use tonic::Code;
use vultr_sim::{Behaviour, Fault, Operation, When};

use crate::cluster::{Cluster, eventually, mounted, skipped};

/// What a driver shows; its metrics are at a port of its own.
async fn scrape(cluster: &Cluster, name: &str) -> String {
    let log = cluster.bed.dir().join(format!("{name}.log"));
    let address = eventually("the driver says where its metrics are", async || {
        let text = fs::read_to_string(&log).unwrap();
        let line = text.lines().find(|line| line.contains("metrics and health"))?;
        Some(line.rsplit_once("address=")?.1.trim().to_owned())
    })
    .await;
    reqwest::get(format!("http://{address}/metrics")).await.unwrap().text().await.unwrap()
}

fn value(text: &str, series: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_life_is_counted() {
    if skipped("a_volumes_life_is_counted") {
        return;
    }
    let cluster = Cluster::start(&["one"], Behaviour::instant()).await;
    cluster
        .bed
        .cloud()
        .control()
        .add_fault(Fault::error(Operation::ListBlocks, When::Before, 429, "too many").times(1));
    let pvc = cluster.create("pvc-counted", &mounted("ext4")).await.unwrap();
    cluster.bed.cloud().control().add_fault(Fault::error(Operation::GetBlock, When::Before, 429, "too many").times(1));
    let context = cluster.attach(0, &pvc).await.unwrap();
    // Its context says of a disk that is blank that it is not.
    let mut foreign = pvc.clone();
    foreign.volume_context.insert("source".to_owned(), "snapshot".to_owned());
    let refused = cluster.stage(0, &foreign, &context).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    cluster.stage(0, &pvc, &context).await.unwrap();

    let node = scrape(&cluster, "one").await;
    for (series, wanted) in [
        (r#"csi_disks_refused_total{reason="not_blank"}"#, 1),
        (r#"csi_disks_refused_total{reason="foreign"}"#, 0),
        (r#"csi_disks_formatted_total{fs="ext4"}"#, 1),
        (r#"csi_operations_in_flight{operation="node_stage"}"#, 0),
        (r#"csi_rpcs_in_flight{rpc="NodeStageVolume"}"#, 0),
        (r#"csi_rpc_seconds_count{rpc="NodeStageVolume",code="OK"}"#, 1),
    ] {
        assert_eq!(value(&node, series), wanted, "{series} in\n{node}");
    }
    // Once on paper.
    assert!(value(&node, r#"csi_tool_seconds_count{tool="mkfs.ext4",outcome="ok"}"#) >= 1);

    let controller = scrape(&cluster, "controller").await;
    assert!(value(&controller, r#"csi_cloud_retries_total{operation="get_block",reason="rate_limited"}"#) >= 1);
    assert!(value(&controller, r#"csi_cloud_wait_seconds_count{priority="create"}"#) >= 1);
    assert!(value(&controller, r#"csi_cloud_wait_seconds_count{priority="attach"}"#) >= 1);
    assert_eq!(value(&controller, r#"csi_operations_in_flight{operation="attach"}"#), 0);
    cluster.leave(0, &pvc).await.unwrap();
    cluster.detach(0, &pvc).await.unwrap();
    cluster.delete(&pvc).await.unwrap();
    cluster.end().await;
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_word(c)).filter(|word| word.starts_with("csi_"));
    words.map(str::to_owned).collect()
}

fn files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push((path.display().to_string(), text));
        }
    }
}

#[test]
fn what_is_deployed_asks_only_for_metrics_that_there_are() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let table = fs::read_to_string(deploy.join("metrics.md")).unwrap();
    let mut known = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        known.insert(cells[1].to_owned());
        if cells[2] == "histogram" {
            known.extend(["_bucket", "_sum", "_count"].map(|part| format!("{}{part}", cells[1])));
        }
    }
    assert!(known.len() > 20, "{known:?}");
    let mut found = Vec::new();
    files(&deploy, &mut found);
    for (file, text) in found.iter().filter(|(file, _)| !file.ends_with("metrics.md")) {
        let unknown: Vec<_> = names(text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?} are in no scrape; see metrics.md");
    }
}
