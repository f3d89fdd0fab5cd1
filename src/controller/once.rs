//! One name, one thing: what is wanted under a name is found or made, and never made twice.
//!
//! ```text
//!   find the name ──found──► verify by a read ──agrees──► done
//!        │                        │ gone: forget it, find again
//!        │ none                   └ differs: ALREADY_EXISTS
//!        ▼
//!   make it ──answered──► done
//!        └─unknown──► list the account again, and only then decide
//! ```
//! Nothing is ever deleted here. While it is not known whether a thing was made, every error is one that the sidecars
//! repeat the call on, so that a thing which does exist is never given up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;
use tracing::{info, warn};

use super::pauses::{Pauses, SETTLING, SETTLING_SLOW};
use crate::{
    cloud::{
        Cloud, CloudError,
        kind::Kind,
        names::Names,
        watch::{Awaited, Watcher},
    },
    error::Error,
    metrics::Metrics,
};

/// The things of one kind that the account has, by name and by id.
pub(super) struct Things<T: Kind> {
    cloud: Arc<dyn Cloud>,
    pub(super) watcher: Watcher<T>,
    pub(super) names: Names<T>,
    /// When this process began: an index from before a create of an earlier process could take effect proves nothing.
    begun: Instant,
    /// Names of which a request has gone out that nobody has answered for certain, and since when a listing proves what
    /// came of it. It outlives the operation, whose retry must not take an older listing for proof.
    unanswered: Mutex<HashMap<String, Instant>>,
    /// Names of things that were asked for while a request of an earlier process could still make another of that name, and
    /// what was made.
    made_early: Mutex<Vec<(String, T::Id)>>,
    metrics: Metrics,
}

/// A thing that is wanted under a name.
#[async_trait::async_trait]
pub(super) trait Wanted<T: Kind>: Send + Sync {
    /// What it is found by again.
    fn name(&self) -> String;

    /// What it is, in messages.
    fn what(&self) -> String;

    /// Whether a thing of that name is the one wanted.
    fn agrees(&self, found: &T) -> Result<(), Error>;

    /// Asks the cloud for it.
    async fn make(&self) -> Result<T, NotMade>;
}

/// Why a thing was not made.
pub(super) enum NotMade {
    /// By the cloud's answer.
    Cloud(CloudError),
    /// By our own decision, before the cloud was asked to.
    Decided(Error),
}

impl From<Error> for NotMade {
    fn from(error: Error) -> Self {
        Self::Decided(error)
    }
}

impl<T: Kind> Things<T> {
    pub(super) fn new(cloud: Arc<dyn Cloud>, metrics: Metrics) -> Self {
        Self {
            watcher: Watcher::new(Arc::clone(&cloud)),
            cloud,
            names: Names::new(),
            begun: Instant::now(),
            unanswered: Mutex::default(),
            made_early: Mutex::default(),
            metrics,
        }
    }

    /// Lists the account, if this process has not done so yet.
    pub(super) async fn known(&self) -> Result<(), CloudError> {
        self.names.list_since(&self.watcher, self.begun).await
    }

    /// The thing wanted, in whatever state it is.
    ///
    /// # Errors
    /// Of its disagreement with the one that has its name; of its making, by what is known of the effect.
    pub(super) async fn find_or_make(&self, wanted: &dyn Wanted<T>) -> Result<T, Error> {
        let (name, what) = (wanted.name(), wanted.what());
        let name = name.as_str();
        let mut pauses = Pauses::new();
        let settled = self.begun + SETTLING;
        let mut known_since = self.begun;
        if let Some(proven) = self.unanswered().get(name).copied() {
            known_since = known_since.max(proven);
        }
        tokio::time::sleep_until(known_since).await;
        loop {
            let mut found = self.find(name, known_since).await?;
            if found.is_none() && known_since < settled {
                tokio::time::sleep_until(settled).await;
                known_since = settled;
                found = self.find(name, known_since).await?;
            }
            if let Some(thing) = found {
                self.unanswered().remove(name);
                wanted.agrees(&thing)?;
                return Ok(thing);
            }
            let asked = Instant::now();
            self.unanswered().insert(name.to_owned(), asked + SETTLING_SLOW);
            let answer = wanted.make().await;
            if !matches!(&answer, Err(NotMade::Cloud(cause)) if cause.outcome_is_unknown()) {
                self.unanswered().remove(name);
            }
            match answer {
                Ok(thing) => {
                    self.names.insert(&thing);
                    if asked < self.begun + SETTLING_SLOW {
                        self.made_early().push((name.to_owned(), thing.id().clone()));
                    }
                    info!(id = %thing.id(), name, "made: {what}");
                    return Ok(thing);
                }
                Err(NotMade::Decided(error)) => return Err(error),
                Err(NotMade::Cloud(cause)) if cause.outcome_is_unknown() => {
                    warn!(name, error = %cause, "not known whether it was made: {what}");
                    known_since = Instant::now() + SETTLING_SLOW;
                    self.unanswered().insert(name.to_owned(), known_since);
                    tokio::time::sleep_until(known_since).await;
                    if !pauses.wait().await {
                        return Err(Error::OutcomeUnknown { subject: format!("making {what}"), cause });
                    }
                }
                Err(NotMade::Cloud(CloudError::Busy(text))) => {
                    if !pauses.wait().await {
                        return Err(Error::Cloud { doing: format!("making {what}"), cause: CloudError::Busy(text) });
                    }
                }
                Err(NotMade::Cloud(CloudError::Exhausted(text))) => {
                    return Err(Error::Exhausted(format!("{what} cannot be had: {text}")));
                }
                Err(NotMade::Cloud(cause)) => return Err(Error::Cloud { doing: format!("making {what}"), cause }),
            }
        }
    }

    /// The thing of this name as far as this process knows, by a read of the thing itself.
    pub(super) async fn find_known(&self, name: &str) -> Result<Option<T>, Error> {
        self.find(name, self.begun).await
    }

    /// The thing of this name, by a listing not older than `since` and a read of the thing itself.
    async fn find(&self, name: &str, since: Instant) -> Result<Option<T>, Error> {
        let unknown = |cause| Error::OutcomeUnknown { subject: format!("looking for {} {name}", T::WORD), cause };
        let ids = self.names.find(&self.watcher, name, since).await.map_err(unknown)?;
        let mut found: Option<T> = None;
        for id in ids {
            match T::one(&*self.cloud, &id).await {
                Ok(thing) if thing.name() != Some(name) => {}
                Ok(thing) => {
                    if let Some(oldest) = &found {
                        self.is_twin(name, oldest.id(), thing.id());
                    } else {
                        found = Some(thing);
                    }
                }
                Err(CloudError::NotFound(_)) => self.names.remove(&id),
                Err(cause) => return Err(unknown(cause)),
            }
        }
        Ok(found)
    }

    /// Once nothing that an earlier process asked for can come any more, looks whether that has made what this one made in
    /// the meantime as well, and tells it.
    pub(super) async fn look_back(&self) {
        let settled = self.begun + SETTLING_SLOW;
        tokio::time::sleep_until(settled).await;
        let made = std::mem::take(&mut *self.made_early());
        for (name, id) in made {
            let mut pauses = Pauses::new();
            while let Err(cause) = self.tell_twins(&name, &id, settled).await {
                if !pauses.wait().await {
                    warn!(name, error = %cause, "not known whether two of kind {} have one name", T::WORD);
                    break;
                }
            }
        }
    }

    /// Tells what has the name of `made` besides that, which may be gone by now.
    async fn tell_twins(&self, name: &str, made: &T::Id, since: Instant) -> Result<(), CloudError> {
        for id in self.names.find(&self.watcher, name, since).await?.iter().filter(|id| *id != made) {
            match T::one(&*self.cloud, id).await {
                Ok(other) if other.name() == Some(name) => self.is_twin(name, made, id),
                Ok(_) | Err(CloudError::NotFound(_)) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    fn is_twin(&self, name: &str, kept: &T::Id, other: &T::Id) {
        self.metrics.twin(T::WORD);
        warn!(name, %kept, %other, "two of kind {} have one name: one is used, the other is left alone and costs money", T::WORD);
    }

    /// Waits until a thing made at `since` or later can be used.
    pub(super) async fn once_ready(&self, thing: T, since: Instant) -> Result<T, Error> {
        if thing.is_ready() {
            return Ok(thing);
        }
        let ended = |seen: &T| (seen.is_ready() || seen.has_failed()).then(|| seen.clone());
        let seen =
            self.watcher.until(thing.id(), Awaited::Created, since, ended).await.map_err(|error| match error {
                // The cloud has just told of it: NOT_FOUND would be final, and the thing given up.
                Error::Gone { word, id } => Error::NotYet(format!("{word} {id} was made, but is not shown yet")),
                error => error,
            })?;
        if seen.has_failed() {
            return Err(Error::Failed(format!("the cloud says that {} {} has failed", T::WORD, seen.id())));
        }
        Ok(seen)
    }

    fn made_early(&self) -> MutexGuard<'_, Vec<(String, T::Id)>> {
        self.made_early.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unanswered(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
