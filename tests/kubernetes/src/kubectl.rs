//! The cluster as its users have it: through kubectl.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::process::output_within;

/// How long one command may take: more than any wait that it is told of, and a server that is stuck answers never.
const COMMAND: Duration = Duration::from_secs(600);

/// Kubernetes as an administrator of it.
#[derive(Debug, Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    /// With this program and this kubeconfig.
    pub(crate) fn new(program: PathBuf, config: PathBuf) -> Self {
        Self { program, config }
    }

    /// The command, with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.config).args(arguments);
        command
    }

    /// Runs it and gives what it printed.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        output_within(COMMAND, &mut self.command(arguments)).await
    }

    /// One object or a list, such as `["pods", "-n", "default"]`.
    pub(crate) async fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat()).await?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The rows of a list.
    pub(crate) async fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.get(arguments).await?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("kubectl get {arguments:?} gives no list"),
        }
    }

    /// What `-o jsonpath` finds; empty if there is nothing there.
    pub(crate) async fn field(&self, arguments: &[&str], path: &str) -> Result<String> {
        self.run(&[&["get", "-o", &format!("jsonpath={{{path}}}")], arguments].concat()).await
    }

    /// `kubectl VERB -f -` with a manifest.
    pub(crate) async fn with_manifest(&self, arguments: &[&str], manifest: &str) -> Result<String> {
        let mut command = self.command(&[arguments, &["-f", "-"]].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("kubectl cannot be started")?;
        let mut input = child.stdin.take().context("kubectl has no input")?;
        let told = async {
            input.write_all(manifest.as_bytes()).await?;
            drop(input);
            child.wait_with_output().await
        };
        let output = timeout(COMMAND, told).await.with_context(|| format!("kubectl {arguments:?} is stuck"))??;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {arguments:?}: {}\n{manifest}", complaint.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies objects.
    pub(crate) async fn apply(&self, objects: &[Value]) -> Result<()> {
        let manifest: Vec<_> = objects.iter().map(Value::to_string).collect();
        self.with_manifest(&["apply"], &manifest.join("\n---\n")).await.map(drop)
    }

    /// Runs a shell's script in a pod.
    pub(crate) async fn exec(&self, namespace: &str, pod: &str, script: &str) -> Result<String> {
        self.run(&["exec", "-n", namespace, pod, "--", "sh", "-c", script]).await
    }

    /// Deletes and waits until it is gone, at most `within`. That there is nothing is as well.
    pub(crate) async fn delete(&self, arguments: &[&str], within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        self.run(&[&["delete", "--ignore-not-found", "--wait", &timeout], arguments].concat()).await.map(drop)
    }

    /// `kubectl wait`.
    pub(crate) async fn wait(&self, arguments: &[&str], within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        self.run(&[&["wait", &timeout], arguments].concat()).await.map(drop)
    }
}
