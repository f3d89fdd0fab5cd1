//! The operations in flight: a first call starts one, a repeat joins it, a contradicting call is told to wait.
//!
//! An operation is a task of its own. It outlives the gRPC call that started it, so a call that is cancelled or runs
//! out of time drops nothing half-way, and the retry waits for the same operation and gets its result (CSI:
//! "calls ... MUST be idempotent"). When the operation ends it is forgotten: a later call starts afresh and finds
//! out from the cloud or the machine how things stand.

use std::{
    any::Any,
    collections::HashMap,
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, warn_span};

use crate::{error::Error, metrics::Metrics};

type Outcome = Result<Arc<dyn Any + Send + Sync>, Error>;

/// What an operation is, completely: two calls with equal descriptions are the same operation.
pub trait Description: Clone + PartialEq + Display + Send + 'static {
    /// What kind it is of: a closed set, for labels.
    fn kind(&self) -> &'static str;
}

/// The operations in flight, by what they work on: a volume id, or a CSI name before there is an id.
#[derive(Debug)]
pub struct Operations<D> {
    metrics: Metrics,
    in_flight: Arc<Mutex<HashMap<String, InFlight<D>>>>,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct InFlight<D> {
    description: D,
    /// Becomes `Some` once, when the operation ends.
    outcome: watch::Receiver<Option<Outcome>>,
}

impl<D: Description> Operations<D> {
    /// An empty table whose operations are tracked by `tasks`; once that is closed nothing new starts.
    pub fn new(tasks: TaskTracker, metrics: Metrics) -> Self {
        Self { metrics, in_flight: Arc::default(), tasks }
    }

    /// Runs `work` on `subject`, or joins the run in flight if its description equals `description`.
    ///
    /// # Errors
    /// What `work` fails with; [`Error::Contradicted`] if something else is in flight for `subject`;
    /// [`Error::Panicked`] if the work panicked; [`Error::ShuttingDown`] once the table's tasks are closed.
    pub async fn run<T, W>(&self, subject: &str, description: D, work: W) -> Result<T, Error>
    where
        T: Clone + Send + Sync + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut outcome = self.join_or_start(subject, description, work)?;
        let ended = outcome.wait_for(Option::is_some).await;
        match ended.as_deref() {
            Ok(Some(Ok(value))) => {
                Ok(value.downcast_ref::<T>().expect("equal descriptions have one type of result").clone())
            }
            Ok(Some(Err(error))) => Err(error.clone()),
            Ok(None) | Err(_) => Err(Error::Panicked(format!("the operation on {subject} ended without a result"))),
        }
    }

    /// Whether something is in flight for `subject` that has to end before `asked` can start on what it is about.
    ///
    /// # Errors
    /// [`Error::Contradicted`] if so.
    pub fn free(&self, subject: &str, asked: &D) -> Result<(), Error> {
        match self.in_flight.lock().unwrap_or_else(PoisonError::into_inner).get(subject) {
            None => Ok(()),
            Some(running) => Err(Error::Contradicted {
                subject: subject.to_owned(),
                in_flight: running.description.to_string(),
                asked: asked.to_string(),
            }),
        }
    }

    fn join_or_start<T, W>(
        &self,
        subject: &str,
        description: D,
        work: W,
    ) -> Result<watch::Receiver<Option<Outcome>>, Error>
    where
        T: Clone + Send + Sync + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = in_flight.get(subject) {
            if running.description == description {
                return Ok(running.outcome.clone());
            }
            return Err(Error::Contradicted {
                subject: subject.to_owned(),
                in_flight: running.description.to_string(),
                asked: description.to_string(),
            });
        }
        // Counted before it is looked: whoever closes the tasks and waits for their end sees this one, or this sees the close.
        let _starting = self.tasks.token();
        if self.tasks.is_closed() {
            return Err(Error::ShuttingDown);
        }
        let (tell, outcome) = watch::channel(None);
        let kind = description.kind();
        let counted = self.metrics.operation(kind);
        in_flight.insert(subject.to_owned(), InFlight { description, outcome: outcome.clone() });
        let span = warn_span!("operation", operation = kind, of = subject);
        let table = Arc::clone(&self.in_flight);
        let subject = subject.to_owned();
        self.tasks.spawn(
            async move {
                // A task of its own, so that a panic ends this operation and nothing else.
                let result = match tokio::spawn(work.instrument(span)).await {
                    Ok(Ok(value)) => Ok(Arc::new(value) as Arc<dyn Any + Send + Sync>),
                    Ok(Err(error)) => Err(error),
                    Err(panicked) => Err(Error::Panicked(panicked.to_string())),
                };
                table.lock().unwrap_or_else(PoisonError::into_inner).remove(&subject);
                drop(counted);
                // Nobody may be listening any more; the work was done all the same.
                tell.send_replace(Some(result));
            }
            .in_current_span(),
        );
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    impl<D> Operations<D> {
        fn is_empty(&self) -> bool {
            self.in_flight.lock().unwrap().is_empty()
        }
    }

    impl Description for &'static str {
        fn kind(&self) -> &'static str {
            self
        }
    }

    fn table() -> Arc<Operations<&'static str>> {
        Arc::new(Operations::new(TaskTracker::new(), Metrics::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn equal_calls_are_one_run_with_one_result() {
        let operations = table();
        let runs = Arc::new(AtomicUsize::new(0));
        let calls = (0..20).map(|_| {
            let (operations, runs) = (Arc::clone(&operations), Arc::clone(&runs));
            tokio::spawn(async move {
                operations
                    .run("a", "attach", async move {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        Ok(runs.fetch_add(1, Ordering::SeqCst))
                    })
                    .await
            })
        });
        for call in futures_util::future::join_all(calls).await {
            assert_eq!(call.unwrap().unwrap(), 0);
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert!(operations.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_contradicting_call_is_aborted_and_a_dropped_one_changes_nothing() {
        let operations = table();
        let (done, ended) = tokio::sync::oneshot::channel();
        let first = Arc::clone(&operations);
        let call = tokio::spawn(async move {
            first
                .run("a", "attach", async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    done.send(()).ok();
                    Ok(())
                })
                .await
        });
        while operations.is_empty() {
            tokio::task::yield_now().await;
        }
        let refused = operations.run("a", "detach", async { Ok(()) }).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Aborted);
        call.abort();
        ended.await.expect("the work goes on without its caller");
    }

    #[tokio::test]
    async fn a_panic_is_that_calls_internal_error() {
        let operations = table();
        let error = operations.run::<(), _>("a", "attach", async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Internal);
        operations.run("a", "attach", async { Ok(()) }).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_starts_after_the_table_is_closed() {
        let tasks = TaskTracker::new();
        let operations = Operations::new(tasks.clone(), Metrics::default());
        tasks.close();
        let error = operations.run("a", "attach", async { Ok(()) }).await.unwrap_err();
        assert!(matches!(error, Error::ShuttingDown));
    }
}
