//! Many volumes at once: what their lives cost, in requests and in simulated time.

use std::{fmt, time::Duration};

use futures_util::future::join_all;

use super::{
    account::{Account, Habits, instance_id},
    faults::Faults,
    network::{Mortal, Shared},
    process::{Settings, live},
    request::{Ask, Said},
};
use crate::rpc::ControllerService;

/// The pause of a sidecar before it repeats a call.
const BACK_OFF: Duration = Duration::from_secs(1);
/// A call that never succeeds is a bug.
const REPEATS: usize = 1000;

/// How many volumes on how many instances, and how hard it is made for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fleet {
    pub(super) volumes: usize,
    pub(super) instances: usize,
    /// `--requests-per-second`.
    pub(super) rate: u32,
    /// How many of 1,000 requests something goes wrong with.
    pub(super) permille: u32,
}

/// What the lives of a fleet cost.
#[derive(Debug)]
pub(super) struct Figures {
    fleet: Fleet,
    pub(super) took: Duration,
    pub(super) real: Duration,
    /// All requests but those of the listing at start.
    pub(super) requests: usize,
    pub(super) of: Vec<(&'static str, usize)>,
    /// How many were one too many in their second.
    pub(super) limited: usize,
    /// What calls were told that had to be repeated.
    pub(super) errors: Vec<String>,
    /// What must never happen, and did.
    pub(super) wrong: Vec<String>,
    /// How many volumes are left.
    pub(super) left: usize,
}

impl Figures {
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn requests_per_volume(&self) -> f64 {
        self.requests as f64 / self.fleet.volumes as f64
    }

    /// How much longer it took than its four changes a volume alone take at this rate.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn stretch(&self) -> f64 {
        self.took.as_secs_f64() / (4.0 * self.fleet.volumes as f64 / f64::from(self.fleet.rate))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fleet { volumes, instances, rate, permille } = self.fleet;
        let percent = f64::from(permille) / 10.0;
        write!(
            f,
            "{volumes} volumes on {instances} instances at {rate}/s, {percent} % of requests in trouble: \
             {:.1} s simulated ({:.3} of the least), {:.3} requests a volume, {} x 429, {} repeats, {:.1} s real, {:?}",
            self.took.as_secs_f64(),
            self.stretch(),
            self.requests_per_volume(),
            self.limited,
            self.errors.len(),
            self.real.as_secs_f64(),
            self.of,
        )
    }
}

/// Repeats a call until it succeeds, and notes what it was told before that.
async fn until_done(ask: Ask, service: &ControllerService, errors: &mut Vec<String>) -> Said {
    for _ in 0..REPEATS {
        match ask.make(service).await {
            Ok(said) => return said,
            Err((code, text)) => errors.push(format!("{code:?}: {text}")),
        }
        tokio::time::sleep(BACK_OFF).await;
    }
    panic!("{ask:?} never succeeds")
}

/// The whole life of one volume; gives the errors that it met with.
async fn whole_life(settings: Settings, service: ControllerService, name: String, node: String) -> Vec<String> {
    let entitle = |ask: &Ask| {
        let mut account = settings.account.look();
        let now = account.now();
        account.story.asked(now, ask);
    };
    let mut errors = Vec::new();
    let said = until_done(Ask::disk(name), &service, &mut errors).await;
    let Said::Volume(id, ..) = said else { panic!("a create says {said:?}") };
    for ask in [
        Ask::Publish { id: id.clone(), node: node.clone(), shared: false },
        Ask::Unpublish { id: id.clone(), node },
        Ask::Delete { id },
    ] {
        entitle(&ask);
        until_done(ask, &service, &mut errors).await;
    }
    errors
}

/// Takes a fleet through its lives.
pub(super) fn run(fleet: Fleet) -> Figures {
    let mut account = Account::new(1, Habits::default());
    account.add_instances(fleet.instances);
    let settings = Settings::new(Shared::new(account), Faults::new(1, 0), fleet.rate);
    fastrand::seed(1);
    let began = std::time::Instant::now();
    let settings = &settings;
    let (took, errors) = live(settings, &Mortal::new(), |service| async move {
        // The listing at start is over before anybody asks for anything.
        tokio::time::sleep(Duration::from_secs(3)).await;
        settings.account.look().story.requests.clear();
        settings.faults.lock().unwrap().permille = fleet.permille;
        let began = tokio::time::Instant::now();
        let lives = (0..fleet.volumes).map(|number| {
            let node = instance_id(number % fleet.instances);
            tokio::spawn(whole_life(settings.clone(), service.clone(), format!("pvc-{number}"), node))
        });
        let errors = join_all(lives).await.into_iter().flat_map(|life| life.expect("a life ends well")).collect();
        (began.elapsed(), errors)
    })
    .expect("it does not die");
    let account = settings.account.look();
    Figures {
        fleet,
        took,
        real: began.elapsed(),
        requests: account.story.all_requests(),
        of: account.story.requests.iter().map(|(operation, count)| (*operation, *count)).collect(),
        limited: account.story.limited,
        errors,
        wrong: account.story.wrong.clone(),
        left: account.blocks.len(),
    }
}
