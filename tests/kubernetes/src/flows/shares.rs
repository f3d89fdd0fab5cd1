//! A file system of the cloud that many nodes have at once.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    eventually::eventually,
    stage::{POD, Pod, Stage, claim},
};

pub(super) async fn two_nodes_write_one_shared_volume_at_once(stage: &mut Stage<'_>) -> Result<()> {
    let nodes = [stage.first(), stage.second()?];
    let mut shared = claim("shared", "vultr-vfs-storage", 10);
    shared["spec"]["accessModes"] = json!(["ReadWriteMany"]);
    stage.make(&[shared]).await?;
    let pods = [Pod::new("one").on(&nodes[0]).with("shared"), Pod::new("two").on(&nodes[1]).with("shared")];
    stage.make(&pods.clone().map(|pod| pod.object)).await?;
    for pod in &pods {
        stage.runs(pod.name()).await?;
        let mounted = stage.sh(pod.name(), "grep ' /shared ' /proc/mounts").await?;
        ensure!(mounted.split(' ').nth(2) == Some("virtiofs"), "{}: it is mounted as {mounted}", pod.name());
    }
    // Both at once, each into a file of its own
    let write =
        |name: &str| format!("for i in $(seq 500); do echo {name} $i >> /shared/{name}; done; sync /shared/{name}");
    let (one, two) = (write("one"), write("two"));
    tokio::try_join!(stage.sh("one", &one), stage.sh("two", &two))?;
    for (reader, name) in [("one", "two"), ("two", "one"), ("one", "one"), ("two", "two")] {
        // What the other node has written shows when the kernel looks again.
        eventually(&format!("{reader} sees what {name} wrote"), POD, async || {
            let end = stage.sh(reader, &format!("wc -l < /shared/{name}; tail -n 1 /shared/{name}")).await?;
            ensure!(end == format!("500\n{name} 500"), "it sees {end:?}");
            Ok(())
        })
        .await?;
    }
    // One node's end is not the other's.
    stage.end("one").await?;
    let read = stage.sh("two", "rm /shared/one && echo more >> /shared/two && tail -n 1 /shared/two").await?;
    ensure!(read == "more", "when the other pod has ended it reads '{read}'");
    stage.end("two").await?;
    stage.run(&pods[0]).await?;
    let found = stage.sh("one", "ls /shared && tail -n 1 /shared/two").await?;
    ensure!(found == "two\nmore", "a later pod finds {found:?}");
    stage.end("one").await?;
    stage.delete("pvc/shared").await
}
