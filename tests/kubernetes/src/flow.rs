//! A flow: something that users do with volumes, shown on the cluster from its beginning to when nothing is left of it.

use std::{future::Future, pin::Pin, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use vultr_sim::Stats;

use crate::{bed::Bed, driver, endings::Endings, leftovers, stage::Stage};

/// Which nodes a flow can be shown on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// On any, the host too, whose disks are loop devices.
    Any,
    /// On virtual workers only: it takes two nodes, or what the host's kernel or root does not have.
    Virtual,
}

/// In which runs of the tests a flow is shown; a run with all of them shows it wherever it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// In every run, on the virtual workers, for it is of them.
    OnWorkers,
    /// In every run, on the host, where it takes less than half of the time.
    OnHost,
    /// Only in a run with all.
    Rarely,
}

/// What a flow does.
pub(crate) type Run = for<'a, 'b> fn(&'a mut Stage<'b>) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// What is claimed.
    pub(crate) name: &'static str,
    /// Where it can be shown.
    pub(crate) on: On,
    /// In which runs.
    pub(crate) when: When,
    /// What it does.
    pub(crate) run: Run,
}

/// How a flow ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// As it should, in so many seconds.
    Passed(f64),
    /// Otherwise.
    Failed(anyhow::Error),
    /// It was not run, for this reason.
    Skipped(&'static str),
}

impl Flow {
    /// Runs it in a namespace of its own, and sees that nothing is left.
    pub(crate) async fn show(&self, bed: &mut Bed) -> Ending {
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
        let before = bed.cloud.stats();
        let endings = Endings::so_far(bed).await?;
        let mut stage = Stage { bed, namespace: namespace.clone() };
        let ran = (self.run)(&mut stage).await;
        if ran.is_err() {
            println!("{}", stage.events().await);
        }
        // Cleaned in any case, so that the next one stands on clean ground.
        let cleaned = leftovers::none(bed, &namespace).await.context("at its end");
        let mut ended = ran.and_then(|()| no_harm(&before, &bed.cloud.stats()));
        if ended.is_ok() {
            ended = endings.none_by_itself(bed).await;
        }
        if ended.is_err() || cleaned.is_err() {
            let log = bed.processes.log(&format!("flow-{}", self.name));
            let told = driver::told(bed).await.unwrap_or_else(|error| format!("{error:#}"));
            match std::fs::write(&log, told) {
                Ok(()) => println!("the pods, and what the driver's have said: {}", log.display()),
                Err(error) => println!("{}: {error}", log.display()),
            }
        }
        if cleaned.is_err()
            && let Err(error) = leftovers::let_be(bed).await
        {
            println!("what it leaves can't be told from what the next ones do: {error:#}");
        }
        ended.and(cleaned)
    }
}

/// What no pod notices on a simulated cloud, and everybody on a real one.
fn no_harm(before: &Stats, after: &Stats) -> Result<()> {
    ensure!(after.reboots == before.reboots, "instances were restarted by an attach or detach: {:?}", after.reboots);
    let taken = after.dirty_detaches - before.dirty_detaches;
    ensure!(taken == 0, "{taken} disks were taken away while something held them");
    let refused = after.rate_limited - before.rate_limited;
    ensure!(refused == 0, "the cloud refused {refused} requests for coming too fast");
    Ok(())
}
