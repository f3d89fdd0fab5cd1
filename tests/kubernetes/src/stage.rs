//! What a flow has at hand: its namespace, and the few things that users of a cluster do.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    bed::{Bed, text},
    eventually::{Never, eventually},
};

/// How long a pod may take to run, or to end, on an emulated processor.
pub(crate) const POD: Duration = Duration::from_secs(180);
/// The class that most flows use.
pub(crate) const CLASS: &str = "vultr-block-storage";
/// The image of the flows' pods.
pub(crate) const IMAGE: &str = "bed.invalid/busybox:1";

/// The place of one flow.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// The cluster.
    pub(crate) bed: &'a mut Bed,
    /// The flow's own.
    pub(crate) namespace: String,
}

/// A pod to be made. What runs in it waits to be ended, and ends at once.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// The object.
    pub(crate) object: Value,
}

impl Pod {
    /// Without volumes, anywhere.
    pub(crate) fn new(name: &str) -> Self {
        let wait = "trap exit TERM; while :; do sleep 1; done";
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", wait],
                    "volumeMounts": [], "volumeDevices": [],
                }],
                "volumes": [],
            },
        });
        Self { object }
    }

    /// On this node.
    #[must_use]
    pub(crate) fn on(mut self, node: &str) -> Self {
        self.object["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        self
    }

    /// With a claim's volume mounted at /NAME-OF-CLAIM.
    #[must_use]
    pub(crate) fn with(self, claim: &str) -> Self {
        self.with_volume(claim, json!({"persistentVolumeClaim": {"claimName": claim}}))
    }

    /// With a volume of any source mounted at /NAME.
    #[must_use]
    pub(crate) fn with_volume(mut self, name: &str, mut source: Value) -> Self {
        source["name"] = json!(name);
        push(&mut self.object["spec"]["volumes"], source);
        let mount = json!({"name": name, "mountPath": format!("/{name}")});
        push(&mut self.object["spec"]["containers"][0]["volumeMounts"], mount);
        self
    }

    /// With a claim's volume as the device /dev/NAME-OF-CLAIM.
    #[must_use]
    pub(crate) fn with_device(mut self, claim: &str) -> Self {
        push(
            &mut self.object["spec"]["volumes"],
            json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}),
        );
        let device = json!({"name": claim, "devicePath": format!("/dev/{claim}")});
        push(&mut self.object["spec"]["containers"][0]["volumeDevices"], device);
        self
    }

    /// With a field of its specification set.
    #[must_use]
    pub(crate) fn set(mut self, field: &str, value: Value) -> Self {
        self.object["spec"][field] = value;
        self
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        text(&self.object, "/metadata/name")
    }
}

fn push(array: &mut Value, value: Value) {
    array.as_array_mut().expect("it is an array").push(value);
}

/// A claim of a class: `gib` GiB, written by one node.
pub(crate) fn claim(name: &str, class: &str, gib: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": format!("{gib}Gi")}},
        },
    })
}

/// A class of the driver's with these parameters.
pub(crate) fn class(name: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": crate::driver::NAME, "parameters": parameters, "allowVolumeExpansion": true,
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

impl Stage<'_> {
    /// The node where a flow begins.
    pub(crate) fn first(&self) -> String {
        self.bed.nodes[0].name.clone()
    }

    /// The node where it goes on.
    pub(crate) fn second(&self) -> Result<String> {
        self.bed.nodes.get(1).map(|node| node.name.clone()).context("the bed has one node")
    }

    /// Makes objects in the namespace; classes and volumes are in none.
    pub(crate) async fn make(&self, objects: &[Value]) -> Result<()> {
        let namespace = json!(self.namespace);
        let mut objects = objects.to_vec();
        for object in &mut objects {
            let kind = text(object, "/kind");
            if !kind.ends_with("Class") && kind != "PersistentVolume" {
                object["metadata"]["namespace"] = namespace.clone();
            }
        }
        self.bed.kubectl.apply(&objects).await
    }

    /// Shows something with a class of its own, for volumes or for snapshots, which is taken back however that ends.
    pub(crate) async fn with_class(&self, class: &Value, show: impl AsyncFnOnce(&Self) -> Result<()>) -> Result<()> {
        self.make(std::slice::from_ref(class)).await?;
        let shown = show(self).await;
        let taken = self.bed.kubectl.delete(&[text(class, "/kind"), text(class, "/metadata/name")], POD).await;
        shown.and(taken)
    }

    /// Makes a pod and waits until it runs.
    pub(crate) async fn run(&self, pod: &Pod) -> Result<()> {
        self.make(std::slice::from_ref(&pod.object)).await?;
        self.runs(pod.name()).await
    }

    /// Waits until a pod runs; if it does not, the error tells what Kubernetes says of it.
    pub(crate) async fn runs(&self, pod: &str) -> Result<()> {
        self.runs_within(pod, POD).await
    }

    /// The same, for a pod that may take another time.
    pub(crate) async fn runs_within(&self, pod: &str, within: Duration) -> Result<()> {
        let ready = ["-n", &self.namespace, "--for=condition=Ready", &format!("pod/{pod}")];
        match self.bed.kubectl.wait(&ready, within).await {
            Ok(()) => Ok(()),
            Err(error) => Err(error).context(self.events().await),
        }
    }

    /// What happened in the namespace, the last of it.
    pub(crate) async fn events(&self) -> String {
        let arguments = ["get", "events", "-n", &self.namespace, "--sort-by=.lastTimestamp"];
        let events = self.bed.kubectl.run(&arguments).await.unwrap_or_else(|error| error.to_string());
        let lines: Vec<_> = events.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Waits until the scheduler has no node for a pod and says `words`. Not by events: one of them stands for all attempts
    /// that had no node, and keeps what the first was told, who may not have known the claim yet.
    pub(crate) async fn has_no_node(&self, pod: &str, words: &str) -> Result<()> {
        eventually(&format!("the pod {pod} has no node, since '{words}'"), POD, async || {
            let found = self.get(&format!("pod/{pod}")).await?;
            let conditions = found["status"]["conditions"].as_array().context("it has no conditions yet")?;
            let scheduled = conditions.iter().find(|it| text(it, "/type") == "PodScheduled");
            let scheduled = scheduled.context("nobody has looked for a node yet")?;
            ensure!(text(scheduled, "/status") == "False", Never(format!("the pod {pod} has a node")));
            let message = text(scheduled, "/message");
            ensure!(message.contains(words), "it has none, since '{message}'");
            Ok(())
        })
        .await
    }

    /// Waits until an event about the object `name` says `words`.
    pub(crate) async fn told(&self, name: &str, words: &str) -> Result<()> {
        let about = format!("involvedObject.name={name}");
        eventually(&format!("an event about {name} says '{words}'"), POD, async || {
            let events = self.bed.kubectl.list(&["events", "-n", &self.namespace, "--field-selector", &about]).await?;
            let messages: Vec<_> = events.iter().map(|event| text(event, "/message")).collect();
            ensure!(messages.iter().any(|message| message.contains(words)), "they say {messages:?}");
            Ok(())
        })
        .await
    }

    /// Runs a shell's script in a pod.
    pub(crate) async fn sh(&self, pod: &str, script: &str) -> Result<String> {
        Ok(self.bed.kubectl.exec(&self.namespace, pod, script).await?.trim().to_owned())
    }

    /// Deletes a pod and waits until it is gone.
    pub(crate) async fn end(&self, pod: &str) -> Result<()> {
        self.delete(&format!("pod/{pod}")).await
    }

    /// Deletes an object, such as `pvc/data`, and waits until it is gone.
    pub(crate) async fn delete(&self, object: &str) -> Result<()> {
        self.bed.kubectl.delete(&["-n", &self.namespace, object], POD).await
    }

    /// An object of the namespace, such as `pvc/data`.
    pub(crate) async fn get(&self, object: &str) -> Result<Value> {
        self.bed.kubectl.get(&["-n", &self.namespace, object]).await
    }

    /// The id of a claim's volume in the cloud.
    pub(crate) async fn volume(&self, claim: &str) -> Result<String> {
        let bound = self.get(&format!("pvc/{claim}")).await?;
        let volume = text(&bound, "/spec/volumeName");
        ensure!(!volume.is_empty(), "the claim {claim} has no volume");
        let handle = self.bed.kubectl.field(&["pv", volume], ".spec.csi.volumeHandle").await?;
        ensure!(!handle.is_empty(), "the volume {volume} has no handle");
        Ok(handle)
    }

    /// Asks for more of a claim's volume.
    pub(crate) async fn grow(&self, claim: &str, gib: u32) -> Result<()> {
        let patch = json!({"spec": {"resources": {"requests": {"storage": format!("{gib}Gi")}}}}).to_string();
        self.bed.kubectl.run(&["patch", "-n", &self.namespace, "pvc", claim, "-p", &patch]).await.map(drop)
    }

    /// Waits until a claim says that its volume has this size, which its node tells when the file system has grown.
    pub(crate) async fn has_grown(&self, claim: &str, gib: u32) -> Result<()> {
        let wanted = format!("{gib}Gi");
        eventually(&format!("the claim {claim} has {wanted}"), POD, async || {
            let found = self.get(&format!("pvc/{claim}")).await?;
            let capacity = text(&found, "/status/capacity/storage");
            ensure!(capacity == wanted, "it has {capacity}; {}", found["status"]["conditions"]);
            Ok(())
        })
        .await
    }

    /// The size of the file system at a pod's path, in MiB.
    pub(crate) async fn size_mib(&self, pod: &str, path: &str) -> Result<u64> {
        let told = self.sh(pod, &format!("df -m {path} | tail -n 1")).await?;
        let size = told.split_whitespace().nth(1).and_then(|size| size.parse().ok());
        size.with_context(|| format!("df says {told}"))
    }

    /// Looks that a claim still waits for its volume.
    pub(crate) async fn is_pending(&self, claim: &str) -> Result<()> {
        let found = self.get(&format!("pvc/{claim}")).await?;
        let phase = text(&found, "/status/phase");
        ensure!(phase == "Pending", "the claim {claim} is {phase} already");
        Ok(())
    }

    /// Waits until a claim is bound.
    pub(crate) async fn is_bound(&self, claim: &str) -> Result<()> {
        eventually(&format!("the claim {claim} is bound"), POD, async || {
            let found = self.get(&format!("pvc/{claim}")).await?;
            match text(&found, "/status/phase") {
                "Bound" => Ok(()),
                phase => bail!("it is {phase}"),
            }
        })
        .await
    }
}
