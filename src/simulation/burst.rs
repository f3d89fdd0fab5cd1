//! Many attaches at one moment, to one instance or to one each.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;
use tonic::{Code, Request};

use super::{
    account::{Account, Habits, instance_id},
    faults::Faults,
    network::{Mortal, Shared},
    process::{Settings, live},
    request::{Answered, Ask, Said},
};
use crate::{
    csi::{ListVolumesRequest, controller_server::Controller as _},
    rpc::ControllerService,
};

/// How long an attach is asked for that is refused.
const LONG_REFUSED: Duration = Duration::from_secs(900);

/// Makes as many volumes as instances are named, has each attached to its instance, all at once, and then one more to
/// the first, again and again; gives how long the first took, what they were answered, what the one more was, how many
/// requests the account refused until then, and what is told of a volume in the end.
fn attach(instances: &[usize]) -> (Duration, Vec<Answered>, Answered, usize, Vec<String>) {
    let mut account = Account::new(7, Habits { moving: 3000..3001, ..Habits::default() });
    account.add_instances(instances.iter().max().expect("one at least") + 1);
    let settings = Settings::new(Shared::new(account), Faults::new(7, 0), 20);
    fastrand::seed(7);
    let settings = &settings;
    live(settings, &Mortal::new(), |service| async move {
        let make = |number: usize| Ask::disk(format!("pvc-{number}"));
        let asks: Vec<Ask> = (0..=instances.len()).map(make).collect();
        let answers = join_all(asks.iter().map(|ask| ask.make(&service))).await;
        let publishes: Vec<Ask> = answers
            .into_iter()
            .zip(instances.iter().chain(&instances[..1]))
            .map(|(said, instance)| match said {
                Ok(Said::Volume(id, ..)) => Ask::Publish { id, node: instance_id(*instance), shared: false },
                other => panic!("a create is answered {other:?}"),
            })
            .collect();
        let (one_more, all) = publishes.split_last().expect("one at least");
        let began = tokio::time::Instant::now();
        let answers = join_all(all.iter().map(|ask| ask.make(&service))).await;
        let took = began.elapsed();
        let refused = settings.account.look().story.refused;
        let mut last = one_more.make(&service).await;
        while began.elapsed() < took + LONG_REFUSED {
            sleep(Duration::from_secs(30)).await;
            last = one_more.make(&service).await;
        }
        (took, answers, last, refused, troubles(&service).await)
    })
    .expect("it does not die")
}

/// What the controller has to tell of any volume's condition.
async fn troubles(service: &ControllerService) -> Vec<String> {
    let listed = service.list_volumes(Request::new(ListVolumesRequest::default())).await.expect("a list").into_inner();
    let conditions = listed.entries.into_iter().filter_map(|entry| entry.status?.volume_condition);
    conditions.filter(|condition| condition.abnormal).map(|condition| condition.message).collect()
}

#[test]
fn an_instance_takes_eleven_volumes_at_once_and_never_a_twelfth() {
    let (alone, ..) = attach(&[0]);
    let (took, answers, twelfth, refused, troubles) = attach(&[0; 11]);
    println!("11 volumes to one instance: {took:?}, one alone: {alone:?}");
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(refused, 0, "the account had to say that it is locked");
    assert!(took <= alone * 12, "{took:?}");
    assert_eq!(twelfth.map_err(|(code, _)| code), Err(Code::ResourceExhausted));
    assert!(troubles.is_empty(), "what is refused does not hang: {troubles:?}");
}

#[test]
fn eleven_instances_take_a_volume_each_at_the_same_time() {
    let (alone, ..) = attach(&[0]);
    let (took, answers, one_more, refused, _) = attach(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    println!("11 volumes to 11 instances: {took:?}, one alone: {alone:?}");
    assert!(answers.iter().chain([&one_more]).all(Result::is_ok), "{answers:?} {one_more:?}");
    assert_eq!(refused, 0);
    assert!(took <= alone * 2, "{took:?}");
}
