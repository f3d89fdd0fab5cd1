//! What has been asked of the cloud and has not come about: kept until it has, however many calls that takes, so that
//! what does not move can be told.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use tokio::time::Instant;

use crate::{
    cloud::CloudError,
    volume::{NodeId, VolumeId},
};

/// What is to become of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is to be on an instance.
    Attach(NodeId),
    /// It is to be off an instance.
    Detach(NodeId),
    /// It is to be larger.
    Grow,
}

/// What of a volume a change is of; changes of different parts go on beside each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Where a disk is attached.
    Place,
    /// Whether a shared file system is on this instance; it is on each by itself.
    On(NodeId),
    /// How large it is.
    Size,
}

impl Change {
    fn part(&self) -> Part {
        match self {
            Self::Attach(_) | Self::Detach(_) => Part::Place,
            Self::Grow => Part::Size,
        }
    }

    const WORDS: [&'static str; 3] = ["attach", "detach", "grow"];

    /// A closed set, for labels.
    fn word(&self) -> &'static str {
        match self {
            Self::Attach(_) => Self::WORDS[0],
            Self::Detach(_) => Self::WORDS[1],
            Self::Grow => Self::WORDS[2],
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach(node) => write!(f, "attaching it to {node}"),
            Self::Detach(node) => write!(f, "detaching it from {node}"),
            Self::Grow => f.write_str("growing it"),
        }
    }
}

/// A change that ought to have come about by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The volume.
    pub volume: VolumeId,
    /// What is to become of it.
    pub change: Change,
    /// Since when that has been asked for.
    pub age: Duration,
    /// What the cloud said last.
    pub last: String,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has not ended in {} s", self.change, self.age.as_secs())?;
        if self.last.is_empty() { Ok(()) } else { write!(f, ": {}", self.last) }
    }
}

#[derive(Debug)]
struct Wanted {
    change: Change,
    since: Instant,
    last: String,
    taken: Taken,
}

/// Whether the cloud may be at it.
#[derive(Debug, Clone, Copy)]
enum Taken {
    No,
    /// Its answer was lost: it has an effect until then, or none.
    PerhapsUntil(Instant),
    Yes,
}

/// By what they are of.
type AllWanted = BTreeMap<(VolumeId, Part), Wanted>;

/// The changes that have been asked for and have not come about, one for each part of a volume.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    wanted: Arc<Mutex<AllWanted>>,
}

impl Progress {
    /// How long a change takes at most when all is well.
    pub const DEADLINE: Duration = Duration::from_secs(90);

    /// Notes that a change has been asked for; asked for again, it is as old as it was.
    pub fn begin(&self, volume: &VolumeId, change: Change) {
        self.begin_of(volume, change.part(), change);
    }

    /// The same of a shared file system.
    pub fn begin_shared(&self, volume: &VolumeId, change: Change) {
        let part = match &change {
            Change::Attach(node) | Change::Detach(node) => Part::On(node.clone()),
            Change::Grow => Part::Size,
        };
        self.begin_of(volume, part, change);
    }

    fn begin_of(&self, volume: &VolumeId, part: Part, change: Change) {
        let mut wanted = self.lock();
        let place = (volume.clone(), part);
        if wanted.get(&place).is_none_or(|wanted| wanted.change != change) {
            wanted.insert(place, Wanted { change, since: Instant::now(), last: String::new(), taken: Taken::No });
        }
    }

    /// Notes what the cloud said of it.
    pub fn tell(&self, volume: &VolumeId, part: Part, last: &impl ToString) {
        if let Some(wanted) = self.lock().get_mut(&(volume.clone(), part)) {
            wanted.last = last.to_string();
        }
    }

    /// Notes that the cloud has taken it.
    pub fn taken(&self, volume: &VolumeId, part: Part) {
        if let Some(wanted) = self.lock().get_mut(&(volume.clone(), part)) {
            wanted.taken = Taken::Yes;
        }
    }

    /// Notes with what error the cloud answered. A refusal ends what was never taken: it is the caller's to see to, and
    /// nothing hangs. What was taken hangs all the same, and so may what was taken without a word, which comes about within
    /// `settling` or not at all.
    pub fn not_done(&self, volume: &VolumeId, part: Part, cause: &CloudError, settling: Duration) {
        let place = (volume.clone(), part);
        let mut all = self.lock();
        let Some(wanted) = all.get_mut(&place) else { return };
        wanted.last = cause.to_string();
        // The others are said of the request, and not of the change.
        let is_refused = match cause {
            CloudError::Refused { .. }
            | CloudError::NotFound(_)
            | CloudError::Exhausted(_)
            | CloudError::Unsupported(_) => true,
            CloudError::Busy(_) | CloudError::Unauthorized(_) | CloudError::RateLimited | CloudError::Unknown(_) => {
                false
            }
        };
        match wanted.taken {
            Taken::Yes => {}
            Taken::PerhapsUntil(when) if is_refused && Instant::now() < when => {}
            _ if is_refused => drop(all.remove(&place)),
            _ if cause.outcome_is_unknown() => wanted.taken = Taken::PerhapsUntil(Instant::now() + settling),
            _ => {}
        }
    }

    /// Notes that it has come about, or is wanted no more.
    pub fn end(&self, volume: &VolumeId, part: Part) {
        self.lock().remove(&(volume.clone(), part));
    }

    /// Notes that nothing more is wanted of the volume on this instance.
    pub fn end_on(&self, volume: &VolumeId, node: &NodeId) {
        let is_there =
            |wanted: &Wanted| matches!(&wanted.change, Change::Attach(on) | Change::Detach(on) if on == node);
        let place = (volume.clone(), Part::Place);
        let mut all = self.lock();
        if all.get(&place).is_some_and(is_there) {
            all.remove(&place);
        }
    }

    /// Notes that the volume is gone.
    pub fn forget(&self, volume: &VolumeId) {
        self.lock().retain(|(of, _), _| of != volume);
    }

    /// What does not move, by volume.
    pub fn stuck(&self) -> Vec<Stuck> {
        let stuck = |((volume, _), wanted): (&(VolumeId, Part), &Wanted)| {
            let (age, last) = (wanted.since.elapsed(), wanted.last.clone());
            let is = age >= Self::DEADLINE;
            is.then(|| Stuck { volume: volume.clone(), change: wanted.change.clone(), age, last })
        };
        self.lock().iter().filter_map(stuck).collect()
    }

    /// What does not move of one volume.
    pub fn stuck_of(&self, volume: &VolumeId) -> Option<Stuck> {
        self.stuck().into_iter().find(|stuck| stuck.volume == *volume)
    }

    fn lock(&self) -> MutexGuard<'_, AllWanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Computed when it is asked for: what has come unstuck, or was another process's, is not shown any more.
impl Collector for Progress {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stuck = self.stuck();
        let of = |word: &str| stuck.iter().filter(|stuck| stuck.change.word() == word).collect::<Vec<_>>();
        let mut count = ConstGauge::new(0);
        let mut family = encoder.encode_descriptor(
            "csi_changes_stuck",
            "Changes of volumes that the cloud was asked for and has not brought about for too long, but for attaches and growths that it refuses",
            None,
            count.metric_type(),
        )?;
        for word in Change::WORDS {
            count = ConstGauge::new(i64::try_from(of(word).len()).unwrap_or(i64::MAX));
            count.encode(family.encode_family(&[("change", word)])?)?;
        }
        let mut oldest = ConstGauge::new(0.0);
        let mut family = encoder.encode_descriptor(
            "csi_changes_stuck_oldest_seconds",
            "Age of the oldest of them",
            None,
            oldest.metric_type(),
        )?;
        for word in Change::WORDS {
            oldest = ConstGauge::new(of(word).iter().map(|stuck| stuck.age.as_secs_f64()).fold(0.0, f64::max));
            oldest.encode(family.encode_family(&[("change", word)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::IdForm;

    fn volume(number: &str) -> VolumeId {
        VolumeId::parse(IdForm::Decimal, number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_shared_file_system_is_on_each_instance_by_itself() {
        let progress = Progress::default();
        let node = |number| NodeId::parse(IdForm::Decimal, number).unwrap();
        progress.begin_shared(&volume("1"), Change::Attach(node("7")));
        progress.begin_shared(&volume("1"), Change::Attach(node("8")));
        tokio::time::sleep(Progress::DEADLINE).await;
        progress.end(&volume("1"), Part::On(node("7")));
        let stuck = progress.stuck();
        assert!(matches!(&stuck[..], [one] if one.change == Change::Attach(node("8"))), "{stuck:?}");
        progress.forget(&volume("1"));
        assert_eq!(progress.stuck(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_stuck_from_its_deadline_on_until_it_ends() {
        let progress = Progress::default();
        let node = NodeId::parse(IdForm::Decimal, "7").unwrap();
        progress.begin(&volume("1"), Change::Attach(node.clone()));
        tokio::time::sleep(Duration::from_secs(89)).await;
        assert_eq!(progress.stuck(), []);
        progress.begin(&volume("1"), Change::Attach(node.clone()));
        progress.tell(&volume("1"), Part::Place, &"Server is currently locked");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let text = progress.stuck_of(&volume("1")).unwrap().to_string();
        assert_eq!(text, "attaching it to 7 has not ended in 90 s: Server is currently locked");
        progress.begin(&volume("1"), Change::Detach(node));
        assert_eq!(progress.stuck(), [], "another change is as old as its own asking");
        tokio::time::sleep(Progress::DEADLINE).await;
        assert_eq!(progress.stuck().len(), 1);
        progress.end(&volume("1"), Part::Place);
        assert_eq!(progress.stuck(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_hangs_only_if_it_may_have_been_taken_before() {
        const SETTLING: Duration = Duration::from_secs(30);
        let progress = Progress::default();
        let begin = |number: &str| {
            let attach = Change::Attach(NodeId::parse(IdForm::Decimal, "7").unwrap());
            progress.begin(&volume(number), attach);
        };
        let said = |number: &str, cause: &CloudError| {
            progress.not_done(&volume(number), Part::Place, cause, SETTLING);
        };
        let refused = CloudError::Refused { status: 400, text: "another region".to_owned() };
        for number in ["1", "2", "3"] {
            begin(number);
        }
        said("1", &refused);
        progress.taken(&volume("2"), Part::Place);
        said("3", &CloudError::Unknown("no answer".to_owned()));
        said("3", &refused);
        tokio::time::sleep(Progress::DEADLINE).await;
        said("2", &refused);
        let stuck: Vec<_> = progress.stuck().into_iter().map(|stuck| (stuck.volume, stuck.last)).collect();
        assert_eq!(stuck, ["2", "3"].map(|number| (volume(number), refused.to_string())));
        said("3", &refused);
        assert_eq!(progress.stuck().len(), 1, "what was perhaps taken had its time");
    }
}
