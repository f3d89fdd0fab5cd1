//! A flow: something that users do with volumes, shown on the cluster from its beginning to when nothing is left of it.

use std::{future::Future, pin::Pin, time::Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{bed::Bed, leftovers, stage::Stage};

/// Which nodes a flow can be shown on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// On any, the host too, whose disks are loop devices.
    Any,
    /// On virtual workers only: it takes two nodes, or what the host's kernel or root does not have.
    Virtual,
}

/// What a flow does.
pub type Run = for<'a, 'b> fn(&'a mut Stage<'b>) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A flow.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// What is claimed.
    pub name: &'static str,
    /// Where it can be shown.
    pub on: On,
    /// Whether it is among the few that every run of the tests shows on the virtual workers.
    pub always: bool,
    /// What it does.
    pub run: Run,
}

/// How a flow ended.
#[derive(Debug)]
pub enum Ending {
    /// As it should, in so many seconds.
    Passed(f64),
    /// Otherwise.
    Failed(anyhow::Error),
    /// It was not run, for this reason.
    Skipped(&'static str),
}

impl Flow {
    /// Runs it in a namespace of its own, and sees that nothing is left.
    pub async fn show(&self, bed: &mut Bed) -> Ending {
        if self.on == On::Virtual && !bed.nodes[0].is_virtual() {
            return Ending::Skipped("it needs the virtual workers");
        }
        let began = Instant::now();
        match self.live(bed).await {
            Ok(()) => Ending::Passed(began.elapsed().as_secs_f64()),
            Err(error) => Ending::Failed(error),
        }
    }

    async fn live(&self, bed: &mut Bed) -> Result<()> {
        let namespace = self.name.replace('_', "-");
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        bed.kubectl.apply(&[object]).await?;
        // A pod needs its namespace's account.
        crate::eventually::eventually(
            "the namespace has its account",
            std::time::Duration::from_secs(60),
            async || bed.kubectl.run(&["get", "serviceaccount", "default", "-n", &namespace]).await,
        )
        .await?;
        let mut stage = Stage { bed, namespace: namespace.clone() };
        let ran = (self.run)(&mut stage).await;
        if ran.is_err() {
            println!("{}", stage.events().await);
        }
        // Cleaned in any case, so that the next one stands on clean ground.
        let cleaned = leftovers::none(bed, &namespace).await;
        ran?;
        cleaned.context("at its end")
    }
}
