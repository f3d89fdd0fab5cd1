//! ControllerGetVolumeHealth, ControllerListVolumeHealth: what ails volumes, as the cloud and our own work on them show.

use std::{collections::BTreeMap, fmt};

use super::{Controller, Shown, list::most};
use crate::{cloud::VolumeState, error::Error, volume::VolumeId};

/// What ails a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ailment {
    /// The cloud does not call it active, though it is not new either.
    State(String),
    /// A change does not come about, or it is not known how it stands.
    Trouble(String),
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::State(text) | Self::Trouble(text)) = self;
        f.write_str(text)
    }
}

impl Shown {
    /// What ails it. That it is still being made does not.
    pub fn ailments(&self) -> Vec<Ailment> {
        let state = match &self.state {
            VolumeState::Active | VolumeState::Pending => None,
            state @ VolumeState::Other(_) => Some(Ailment::State(format!("the cloud says that it is {state}"))),
        };
        state.into_iter().chain(self.trouble.clone().map(Ailment::Trouble)).collect()
    }
}

impl Controller {
    /// The ailing volumes, by id, from the one after `starting_token` on, at most `max_entries` (0: all there are), and
    /// where the next call goes on.
    ///
    /// # Errors
    /// The cloud's; [`Error::BadPage`] for a token that names no volume.
    pub async fn list_ailing(
        &self,
        starting_token: &str,
        max_entries: u32,
    ) -> Result<(Vec<(VolumeId, Vec<Ailment>)>, Option<String>), Error> {
        let form = self.inner.cloud.profile().id_form;
        if !starting_token.is_empty() && VolumeId::parse(form, starting_token).is_none() {
            return Err(Error::BadPage(starting_token.to_owned()));
        }
        let listed = self.list("", 0).await?;
        let mut ailing: BTreeMap<VolumeId, Vec<Ailment>> = listed
            .volumes
            .iter()
            .map(|volume| (volume.id.clone(), volume.ailments()))
            .filter(|(_, ailments)| !ailments.is_empty())
            .collect();
        ailing.retain(|id, _| id.as_str() > starting_token);
        let most = most(max_entries);
        let more = ailing.len() > most;
        let page: Vec<_> = ailing.into_iter().take(most).collect();
        let next_token = page.last().filter(|_| more).map(|(id, _)| id.to_string());
        Ok((page, next_token))
    }
}
