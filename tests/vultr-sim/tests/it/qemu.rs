//! Instances that are qemu guests: a real qemu, whose processor never runs. It sees what is plugged in, and lets go of what
//! it is asked to when it is reset, as a machine does that starts up; a guest with a system in it is the Kubernetes bed's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    process::{Child, Command},
};
use vultr_sim::{Config, InstanceSpec, Simulation};

use crate::client::{Client, PATIENCE, control, id_of, quick, start};

const GIB: u64 = 1 << 30;

/// A virtual machine with one monitor for the simulation and one for the test.
struct Machine {
    qemu: Child,
    dir: PathBuf,
}

impl Machine {
    /// Starts one in a folder of its own, or says why there can be none.
    async fn start(test: &str) -> Option<Self> {
        let version = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().await;
        if !version.is_ok_and(|status| status.success()) {
            println!("skipped: {test}: there is no qemu-system-x86_64");
            return None;
        }
        if !Simulation::may_have_disks() {
            println!("skipped: {test}: real disks need root and /dev/loop-control");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("vultr-sim-qemu-{test}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let machine = Self { qemu: Self::run(&dir), dir };
        machine.tell("query-status", json!({})).await;
        Some(machine)
    }

    fn run(dir: &Path) -> Child {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "pc,memory-backend=memory", "-m", "64", "-accel", "tcg", "-nodefaults", "-S"]);
        qemu.args(["-object", "memory-backend-memfd,id=memory,size=64M,share=on", "-display", "none"]);
        for name in ["cloud", "test"] {
            let socket = dir.join(name);
            qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        qemu.kill_on_drop(true).spawn().unwrap()
    }

    async fn kill(&mut self) {
        self.qemu.kill().await.unwrap();
    }

    fn monitor(&self) -> PathBuf {
        self.dir.join("cloud")
    }

    /// Does a command on the test's monitor, as soon as there is one.
    async fn tell(&self, command: &str, arguments: Value) -> Value {
        let socket = self.dir.join("test");
        let connected = async {
            loop {
                match UnixStream::connect(&socket).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let mut stream = BufReader::new(tokio::time::timeout(PATIENCE, connected).await.unwrap());
        let commands = [("qmp_capabilities", json!({})), (command, arguments)];
        for (command, arguments) in commands {
            let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
            stream.write_all(line.as_bytes()).await.unwrap();
        }
        let mut answers = Vec::new();
        while answers.len() < 2 {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let said: Value = serde_json::from_str(&line).unwrap();
            assert!(said.get("error").is_none(), "{said}");
            answers.extend(said.get("return").cloned());
        }
        answers.remove(1)
    }

    /// A property of a device that was plugged in.
    async fn property(&self, device: &str, property: &str) -> Value {
        self.tell("qom-get", json!({"path": format!("/machine/peripheral/{device}"), "property": property})).await
    }

    /// The sizes of its disks.
    async fn disks(&self) -> Vec<u64> {
        let blocks = self.tell("query-block", json!({})).await;
        let size = |block: &Value| block["inserted"]["image"]["virtual-size"].as_u64().unwrap();
        blocks.as_array().unwrap().iter().map(size).collect()
    }

    /// Lets go of what it was asked to, again and again until the API's answer is as wanted.
    async fn reset_until(&self, client: &Client, path: &str, wanted: impl Fn(&Value) -> bool) {
        let polled = async {
            while !wanted(&client.get(path).await.json()) {
                self.tell("system_reset", json!({})).await;
            }
        };
        tokio::time::timeout(PATIENCE, polled).await.unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A cloud with the machine as its instance `guest`, beside those on this machine.
async fn cloud(machine: &Machine) -> (Simulation, Client) {
    let mut config = Config { disks: true, ..quick() };
    config.instances.push(InstanceSpec { qmp: Some(machine.monitor()), ..InstanceSpec::new("guest", "ewr") });
    config.behaviour.growth_seen_online = true;
    start(config).await
}

fn volume(id: &str) -> String {
    format!("/v2/blocks/{id}")
}

fn detached(answer: &Value) -> bool {
    answer["block"]["attached_to_instance"] == ""
}

#[tokio::test]
async fn a_disk_comes_grows_and_goes() {
    let Some(machine) = Machine::start("disk").await else { return };
    let (simulation, client) = cloud(&machine).await;
    let (guest, id) = (id_of(&simulation, "guest"), client.create_active("a", 10).await);
    client.attached(&id, &guest).await;
    let mount_id = client.block(&id).await["mount_id"].as_str().unwrap().to_owned();
    assert_eq!(machine.property(&format!("disk-{mount_id}"), "serial").await, mount_id);
    assert_eq!(machine.disks().await, [10 * GIB]);
    assert_eq!(simulation.control().volume(&id).unwrap().loop_device, None);

    client.patch(&id, json!({"size_gb": 12})).await.is(204);
    assert_eq!(machine.disks().await, [12 * GIB]);

    client.detach(&id).await.is(204);
    machine.reset_until(&client, &volume(&id), detached).await;
    assert_eq!(machine.disks().await.len(), 0);
    // Nothing of it is left in the machine.
    assert_eq!(machine.tell("query-named-block-nodes", json!({})).await, json!([]));
    client.until_unlocked(&guest).await;
    client.attached(&id, &guest).await;
    client.detach(&id).await.is(204);
    machine.reset_until(&client, &volume(&id), detached).await;
    client.delete(&id).await.is(204);
    simulation.control().assert_clean();
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_guest_keeps_what_it_does_not_let_go_until_it_is_off() {
    let Some(mut machine) = Machine::start("kept").await else { return };
    let (simulation, client) = cloud(&machine).await;
    simulation.control().behave(|b| b.guest_patience = Duration::from_millis(100));
    let (guest, one) = (id_of(&simulation, "guest"), id_of(&simulation, "one"));
    let id = client.create_active("a", 10).await;
    client.attached(&id, &guest).await;

    client.detach(&id).await.is(204);
    client.until_unlocked(&guest).await;
    assert_eq!(client.block(&id).await["attached_to_instance"], *guest);
    assert_eq!(simulation.control().stats().refused_detaches, 1);
    let refused = simulation.control().detach(&id).await.unwrap_err();
    assert!(refused.to_string().contains("does not let volume"), "{refused}");
    let error = simulation.control().delete(&id).await.unwrap_err();
    assert!(error.to_string().contains("does not let volume"), "{error}");

    machine.kill().await;
    client.detached(&id).await;
    client.attached(&id, &one).await;
    client.detached(&id).await;
    client.delete(&id).await.is(204);
    simulation.control().assert_clean();
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_detach_that_waits_hinders_nobody_else_and_ends_with_the_guest() {
    let Some(mut machine) = Machine::start("waits").await else { return };
    let (simulation, client) = cloud(&machine).await;
    let (guest, one) = (id_of(&simulation, "guest"), id_of(&simulation, "one"));
    let id = client.create_active("a", 10).await;
    client.attached(&id, &guest).await;
    client.detach(&id).await.is(204);

    let other = client.create_active("b", 10).await;
    client.attached(&other, &one).await;
    client.detached(&other).await;
    assert_eq!(client.block(&id).await["attached_to_instance"], *guest);

    machine.kill().await;
    client.until(&id, |block| block["attached_to_instance"] == "").await;
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_was_started_again_is_the_same_instance() {
    let Some(mut machine) = Machine::start("again").await else { return };
    let (simulation, client) = cloud(&machine).await;
    let (guest, id) = (id_of(&simulation, "guest"), client.create_active("a", 10).await);
    client.attached(&id, &guest).await;
    machine.kill().await;
    let (status, told) = control(&simulation, Method::POST, "/instances/guest/replug", Value::Null).await;
    assert_eq!((status.as_u16(), &told["error"]), (500, &json!("the guest is off")));
    machine.qemu = Machine::run(&machine.dir);
    assert_eq!(machine.disks().await.len(), 0);
    // The second time there is nothing to do.
    for _ in 0..2 {
        let (status, told) = control(&simulation, Method::POST, "/instances/guest/replug", Value::Null).await;
        assert_eq!(status, 204, "{told}");
    }
    assert_eq!(machine.disks().await, [10 * GIB]);

    machine.kill().await;
    machine.qemu = Machine::run(&machine.dir);
    assert_eq!(machine.disks().await.len(), 0);
    client.detached(&id).await;
    client.attached(&id, &guest).await;
    assert_eq!(machine.disks().await, [10 * GIB]);
    simulation.control().delete_instance("guest").await.unwrap();
    assert!(machine.qemu.wait().await.unwrap().success(), "it is ended");
    assert!(detached(&client.get(&volume(&id)).await.json()));
    simulation.shutdown().await.unwrap();
}

/// The servers of a simulation's file systems.
fn servers(simulation: &Simulation) -> usize {
    let dir = simulation.dir().to_str().unwrap().to_owned();
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let serves = |cmdline: &Vec<u8>| {
        let text = String::from_utf8_lossy(cmdline);
        text.contains("virtiofsd") && text.contains(&dir)
    };
    processes.filter(serves).count()
}

#[tokio::test]
async fn a_file_system_comes_and_goes_with_its_server() {
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    if !places.iter().any(|place| Path::new(place).exists()) {
        return println!("skipped: file_system: there is no virtiofsd");
    }
    let Some(mut machine) = Machine::start("vfs").await else { return };
    let (simulation, client) = cloud(&machine).await;
    let (guest, vfs) = (id_of(&simulation, "guest"), client.vfs("a", 10).await);
    let path = format!("/v2/vfs/{vfs}/attachments/{guest}");
    let gone = |answer: &Value| answer["status"] == 404;

    let tag = client.shared(&vfs, &guest).await;
    // The property is that of the device within the one that was plugged in.
    let device = format!("share-{tag}/virtio-backend");
    assert_eq!(machine.property(&device, "tag").await, tag.to_string());
    assert!(servers(&simulation) > 0);
    client.delete_at(&path).await.is(204);
    machine.reset_until(&client, &path, gone).await;
    assert_eq!(servers(&simulation), 0);
    assert!(!machine.tell("query-chardev", json!({})).await.to_string().contains("share-"));

    let tag = client.shared(&vfs, &guest).await;
    machine.kill().await;
    machine.qemu = Machine::run(&machine.dir);
    machine.tell("query-status", json!({})).await;
    simulation.control().replug("guest").await.unwrap();
    assert_eq!(machine.property(&format!("share-{tag}/virtio-backend"), "tag").await, tag.to_string());
    machine.kill().await;
    client.delete_at(&path).await.is(204);
    client.poll(&path, gone).await;
    assert_eq!(servers(&simulation), 0);
    client.delete_at(&format!("/v2/vfs/{vfs}")).await.is(204);
    simulation.control().assert_clean();
    simulation.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_shutdown_takes_back_what_a_guest_has() {
    let Some(machine) = Machine::start("ends").await else { return };
    let (simulation, client) = cloud(&machine).await;
    let (guest, id) = (id_of(&simulation, "guest"), client.create_active("a", 10).await);
    client.attached(&id, &guest).await;
    let dir = simulation.dir().to_owned();
    let ended = tokio::spawn(simulation.shutdown());
    while !ended.is_finished() {
        machine.tell("system_reset", json!({})).await;
    }
    ended.await.unwrap().unwrap();
    assert_eq!(machine.tell("query-named-block-nodes", json!({})).await, json!([]));
    assert!(!dir.exists());
}

#[tokio::test]
async fn an_attach_to_a_guest_that_is_off_does_not_happen_and_is_told() {
    let Some(mut machine) = Machine::start("off").await else { return };
    let (simulation, client) = cloud(&machine).await;
    let (guest, id) = (id_of(&simulation, "guest"), client.create_active("a", 10).await);
    machine.kill().await;
    client.attach(&id, &guest).await.is(204);
    client.until_unlocked(&guest).await;
    assert!(detached(&client.get(&volume(&id)).await.json()));
    let problems = simulation.control().leftovers().unwrap().problems;
    assert_eq!(problems, ["attaching a disk: the guest is off"]);
    simulation.shutdown().await.unwrap();
}
