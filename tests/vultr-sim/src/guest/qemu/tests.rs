//! A guest against a monitor that plays a script: what is said, in which order, and what comes of its refusals.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

use super::*;
use crate::guest::virtiofsd::tests::program;

const SERIAL: &str = "ewr-0123456789abcd";
const PATIENCE: Duration = Duration::from_secs(10);

/// A line of the script: the command that is expected, and the lines that it brings about.
type Line = (&'static str, Vec<Value>);

fn done() -> Value {
    json!({"return": {}})
}

fn refused(class: &str, text: &str) -> Value {
    json!({"error": {"class": class, "desc": text}})
}

fn deleted(device: Option<&str>) -> Value {
    json!({"event": "DEVICE_DELETED", "data": {"device": device, "path": "/machine/peripheral/…"}})
}

/// The block devices or connections of a machine.
fn listed(key: &str, names: &[&str]) -> Value {
    let things: Vec<Value> = names.iter().map(|name| json!({ (key): name })).collect();
    json!({ "return": things })
}

/// A folder with a monitor in it.
struct Scene {
    dir: PathBuf,
}

impl Scene {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("vultr-sim-qmp-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    fn guest(&self) -> Qemu {
        Qemu::new(self.dir.join("qmp"), self.dir.clone(), None)
    }

    fn listen(&self) -> UnixListener {
        UnixListener::bind(self.dir.join("qmp")).unwrap()
    }

    /// Plays one connection for each part of a script, says what was asked, and is off after the last.
    fn play(&self, parts: Vec<Vec<Line>>) -> JoinHandle<Vec<Value>> {
        let (listener, socket) = (self.listen(), self.dir.join("qmp"));
        tokio::spawn(async move {
            let mut asked = Vec::new();
            let last = parts.len();
            for (number, part) in parts.into_iter().enumerate() {
                let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                say(&mut stream, &json!({"QMP": {"version": {}, "capabilities": []}})).await;
                let greeted = vec![("qmp_capabilities", vec![done()])];
                for (expected, lines) in greeted.into_iter().chain(part) {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    let command: Value = serde_json::from_str(&line).unwrap();
                    assert_eq!(command["execute"], expected);
                    asked.push(command["arguments"].clone());
                    for line in lines {
                        say(&mut stream, &line).await;
                    }
                }
                if number + 1 == last {
                    // Off before the connection ends, as a guest that dies is.
                    fs::remove_file(&socket).unwrap();
                }
            }
            asked
        })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

async fn say(stream: &mut BufReader<UnixStream>, line: &Value) {
    stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_disk_is_a_raw_file_with_its_serial() {
    let scene = Scene::new();
    let played = scene.play(vec![vec![("blockdev-add", vec![done()]), ("device_add", vec![done()])]]);
    scene.guest().plug(Path::new("/disks/a.img"), SERIAL).await.unwrap();
    let asked = played.await.unwrap();
    assert_eq!(asked[1]["file"]["filename"], "/disks/a.img");
    let device = json!({"driver": "virtio-blk-pci", "id": format!("disk-{SERIAL}"), "drive": SERIAL, "serial": SERIAL});
    assert_eq!((&asked[1]["node-name"], &asked[2]), (&json!(SERIAL), &device));
}

#[tokio::test]
async fn a_device_that_can_t_be_added_leaves_no_file_open() {
    let scene = Scene::new();
    let no_slot = refused("GenericError", "no slot");
    let played = scene.play(vec![vec![
        ("blockdev-add", vec![done()]),
        ("device_add", vec![no_slot]),
        ("blockdev-del", vec![done()]),
    ]]);
    let failure = scene.guest().plug(Path::new("/a"), SERIAL).await.unwrap_err();
    assert_eq!(failure.to_string(), "device_add: no slot (GenericError)");
    assert_eq!(played.await.unwrap()[3], json!({"node-name": SERIAL}));
}

#[tokio::test]
async fn both_are_told_if_the_way_back_fails_too() {
    let scene = Scene::new();
    let played = scene.play(vec![vec![
        ("blockdev-add", vec![done()]),
        ("device_add", vec![refused("GenericError", "no slot")]),
        ("blockdev-del", vec![refused("GenericError", "in use")]),
    ]]);
    let failure = scene.guest().plug(Path::new("/a"), SERIAL).await.unwrap_err().to_string();
    assert_eq!(failure, "device_add: no slot (GenericError); then blockdev-del: in use (GenericError)");
    played.await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_device_s_part_is_not_the_device_s() {
    let scene = Scene::new();
    let device = format!("disk-{SERIAL}");
    // The part's event comes before the answer, the device's only when it is waited for.
    let lines = vec![deleted(None), done(), deleted(Some("disk-other")), deleted(Some(&device))];
    let played = scene.play(vec![vec![
        ("device_del", lines),
        ("query-named-block-nodes", vec![listed("node-name", &["other", SERIAL])]),
        ("blockdev-del", vec![refused("GenericError", "in use")]),
        ("query-named-block-nodes", vec![listed("node-name", &[SERIAL])]),
        ("blockdev-del", vec![done()]),
    ]]);
    scene.guest().unplug(SERIAL, PATIENCE).await.unwrap();
    assert_eq!(played.await.unwrap()[1], json!({ "id": device }));
}

#[tokio::test]
async fn an_event_that_came_before_the_answer_counts() {
    let scene = Scene::new();
    let lines = vec![deleted(Some(&format!("disk-{SERIAL}"))), done()];
    let nothing = ("query-named-block-nodes", vec![listed("node-name", &[])]);
    let played = scene.play(vec![vec![("device_del", lines), nothing]]);
    scene.guest().unplug(SERIAL, PATIENCE).await.unwrap();
    played.await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_gone() {
    let scene = Scene::new();
    let played = scene.play(vec![vec![
        ("device_del", vec![refused("DeviceNotFound", "not found")]),
        ("query-chardev", vec![listed("label", &["share-7-socket"])]),
        ("chardev-remove", vec![done()]),
    ]]);
    scene.guest().unshare(7, PATIENCE).await.unwrap();
    assert_eq!(played.await.unwrap()[3], json!({"id": "share-7-socket"}));
}

#[tokio::test]
async fn a_server_comes_when_that_of_the_guest_before_has_ended() {
    let scene = Scene::new();
    // As virtiofsd does it, which takes a moment to see that its guest is gone.
    let then = r#"exec 9>"${1#--socket-path=}.lock"
flock -n 9 || { echo its place is taken; exit 1; }
: >"${1#--socket-path=}"
exec sleep 1"#;
    let (dir, _) = program("again", "--shared-dir", then);
    let guest = Qemu::new(scene.dir.join("qmp"), scene.dir.clone(), Some(dir.join("program")));
    let plugged = || vec![("chardev-add", vec![done()]), ("device_add", vec![done()])];
    let played = scene.play(vec![plugged(), plugged()]);
    guest.share(Path::new("/x"), 7).await.unwrap();
    guest.share(Path::new("/x"), 7).await.unwrap();
    played.await.unwrap();
    fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_guest_that_dies_meanwhile_has_let_go() {
    let scene = Scene::new();
    let played = scene.play(vec![vec![("device_del", vec![done()])]]);
    scene.guest().unplug(SERIAL, PATIENCE).await.unwrap();
    played.await.unwrap();
    scene.guest().unplug(SERIAL, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_breaks_is_not_taken_for_a_guest_that_is_off() {
    let scene = Scene::new();
    let nothing = ("query-named-block-nodes", vec![listed("node-name", &[])]);
    let played = scene.play(vec![
        vec![("device_del", vec![done()])],
        vec![("device_del", vec![refused("DeviceNotFound", "not found")]), nothing],
    ]);
    scene.guest().unplug(SERIAL, PATIENCE).await.unwrap();
    assert_eq!(played.await.unwrap().len(), 5, "it asked again");
}

#[tokio::test]
async fn a_guest_that_never_lets_go_keeps_its_disk() {
    let scene = Scene::new();
    let asked = vec![("device_del", vec![done()]), ("never", vec![])];
    let played = scene.play(vec![asked]);
    let failure = scene.guest().unplug(SERIAL, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(failure.to_string(), format!("the guest does not let disk-{SERIAL} go"));
    played.abort();
}

#[tokio::test]
async fn a_refusal_that_lasts_is_told() {
    let scene = Scene::new();
    let refusal = refused("GenericError", "already in the process of unplug");
    let played = scene.play(vec![vec![("device_del", vec![refusal]), ("never", vec![])]]);
    let failure = scene.guest().unplug(SERIAL, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(failure.to_string(), "device_del: already in the process of unplug (GenericError)");
    played.abort();
}

#[tokio::test]
async fn nothing_but_an_absent_guest_is_off() {
    let scene = Scene::new();
    let guest = scene.guest();
    assert!(matches!(guest.plug(Path::new("/a"), SERIAL).await, Err(Failure::Off)));
    guest.grow(SERIAL, 1).await.unwrap();
    guest.power_off().await.unwrap();

    let listener = scene.listen();
    let silent = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(b"no JSON\n").await.unwrap();
        stream
    });
    let failure = guest.unplug(SERIAL, PATIENCE).await.unwrap_err();
    assert!(matches!(failure, Failure::Unclear(_)), "{failure}");
    silent.await.unwrap();
}
