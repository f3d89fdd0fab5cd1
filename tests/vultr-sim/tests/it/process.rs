//! The binary: its line of JSON, its end, and the sweep after it was killed.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use vultr_sim::Simulation;

/// A folder of its own for each test of this process.
fn folder(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vultr-sim-process-{test}-{}", std::process::id()))
}

async fn spawn(args: &[&str]) -> (Child, Value) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vultr-sim"))
        .args(args)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.next_line().await.unwrap().expect("a line of JSON");
    (child, serde_json::from_str(&ready).unwrap())
}

async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    let sent = Command::new("kill").args([name, &pid]).status().await.unwrap();
    assert!(sent.success());
}

/// Seeds an attached volume and says its loop device.
async fn seed(ready: &Value) -> String {
    let seed = json!({"label": "a", "region": "ewr", "size_gb": 10, "attached_to": "one"});
    let url = format!("{}/volumes", ready["control"].as_str().unwrap());
    let made = reqwest::Client::new().post(url).json(&seed).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    made["loop_device"].as_str().expect("a loop device").to_owned()
}

#[tokio::test]
async fn it_says_where_it_is_and_ends_on_a_signal() {
    let args = ["--no-disks", "--instance", "one:ewr", "--set", "attach_ms=5", "--token", "t"];
    for name in ["-TERM", "-INT"] {
        let (mut child, ready) = spawn(&args).await;
        assert_eq!((&ready["token"], &ready["instances"][0]["label"]), (&json!("t"), &json!("one")));
        let behaviour = format!("{}/behaviour", ready["control"].as_str().unwrap());
        let behaviour: Value = reqwest::get(behaviour).await.unwrap().json().await.unwrap();
        assert_eq!(behaviour["attach_ms"], 5);
        signal(&child, name).await;
        assert!(child.wait().await.unwrap().success());
    }
}

#[tokio::test]
async fn instances_come_from_a_file_and_share_a_metadata_service() {
    let dir = folder("instances");
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("instances.json");
    let listed = json!([
        {"label": "host", "region": "ewr", "address": "127.0.0.1"},
        {"label": "worker", "region": "ewr", "address": "127.0.0.2", "qmp": dir.join("qmp")},
    ]);
    std::fs::write(&file, listed.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let args = ["--no-disks", "--instances", file, "--instance", "one:ewr", "--metadata-listen", "127.0.0.1:0"];
    let (_child, ready) = spawn(&args).await;
    let labels: Vec<&Value> = ready["instances"].as_array().unwrap().iter().map(|i| &i["label"]).collect();
    assert_eq!(labels, ["one", "host", "worker"]);
    let url = format!("{}/v1.json", ready["metadata"].as_str().unwrap());
    let document: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    assert_eq!(document["instance-v2-id"], ready["instances"][1]["id"]);

    std::fs::write(file, r#"[{"label": "host", "regoin": "ewr"}]"#).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vultr-sim"));
    let ended = command.args(["--no-disks", "--instances", file]).output().await.unwrap();
    assert!(!ended.status.success());
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(told.contains(file) && told.contains("regoin"), "{told}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_wrong_flag_ends_it_with_an_error() {
    for args in [&["--set", "no_such=1"][..], &["--instance", "one:nowhere"], &["--instance", "one"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vultr-sim"));
        let ended = command.arg("--no-disks").args(args).output().await.unwrap();
        assert!(!ended.status.success());
        assert!(!ended.stderr.is_empty());
    }
}

#[tokio::test]
async fn its_disks_go_with_it() {
    if !Simulation::may_have_disks() {
        return println!("skipped: real disks need root and /dev/loop-control");
    }
    let dir = folder("ends");
    let (mut child, ready) = spawn(&["--dir", dir.to_str().unwrap(), "--instance", "one:ewr"]).await;
    assert!(Path::new(&seed(&ready).await).exists());
    signal(&child, "-TERM").await;
    assert!(child.wait().await.unwrap().success());
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_sweep_detaches_what_a_killed_one_left() {
    if !Simulation::may_have_disks() {
        return println!("skipped: real disks need root and /dev/loop-control");
    }
    let dir = folder("killed");
    let (mut child, ready) = spawn(&["--dir", dir.to_str().unwrap(), "--instance", "one:ewr"]).await;
    let device = seed(&ready).await;
    signal(&child, "-KILL").await;
    child.wait().await.unwrap();

    let mut sweep = Command::new(env!("CARGO_BIN_EXE_vultr-sim"));
    let swept = sweep.arg("--sweep").arg(&dir).output().await.unwrap();

    assert!(swept.status.success());
    assert_eq!(String::from_utf8(swept.stdout).unwrap().trim(), device);
    assert_eq!(vultr_sim::sweep(&dir).unwrap(), Vec::<PathBuf>::new());
    std::fs::remove_dir_all(dir).unwrap();
}
