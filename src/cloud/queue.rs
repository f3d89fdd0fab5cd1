//! A queue per instance: a cloud machine takes one attach or detach at a time.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::volume::NodeId;

/// What is to be done to the instance. Detaches go first: they make room, and a pod elsewhere waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Take a volume from it.
    Detach,
    /// Give it a volume.
    Attach,
}

/// The queues of all instances; those of different instances do not wait for each other.
#[derive(Debug, Clone, Default)]
pub struct Queues {
    instances: Arc<Mutex<HashMap<NodeId, Queue>>>,
}

/// There is a queue for as long as somebody has the turn.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<(Change, u64), oneshot::Sender<Turn>>,
    arrivals: u64,
}

/// The right to change one instance; the next in the queue gets it when this is dropped.
#[derive(Debug)]
pub struct Turn {
    queues: Queues,
    instance: NodeId,
}

impl Queues {
    /// Waits until it is this change's turn at `instance`.
    pub async fn turn(&self, instance: &NodeId, change: Change) -> Turn {
        let waiter = {
            let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(queue) = instances.get_mut(instance) {
                let (give, turn) = oneshot::channel();
                queue.arrivals += 1;
                queue.waiting.insert((change, queue.arrivals), give);
                turn
            } else {
                instances.insert(instance.clone(), Queue::default());
                return Turn { queues: self.clone(), instance: instance.clone() };
            }
        };
        waiter.await.expect("a queue ends only when nobody waits in it")
    }

    fn pass_on(&self, instance: &NodeId) {
        let next = {
            let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(queue) = instances.get_mut(instance) else { return };
            queue.waiting.retain(|_, waiter| !waiter.is_closed());
            let Some((_, next)) = queue.waiting.pop_first() else {
                instances.remove(instance);
                return;
            };
            next
        };
        // A waiter that goes away right now, outside the lock, drops the turn, which passes it on in turn.
        drop(next.send(Turn { queues: self.clone(), instance: instance.clone() }));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queues.pass_on(&self.instance);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::volume::IdForm;

    fn instance(number: &str) -> NodeId {
        NodeId::parse(IdForm::Decimal, number).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_instance_takes_one_change_at_a_time_and_detaches_first() {
        let queues = Queues::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = queues.turn(&instance("1"), Change::Attach).await;
        let calls = [(1, Change::Attach), (2, Change::Attach), (3, Change::Detach)].map(|(number, change)| {
            let (queues, order) = (queues.clone(), Arc::clone(&order));
            tokio::spawn(async move {
                let _turn = queues.turn(&instance("1"), change).await;
                order.lock().unwrap().push(number);
                tokio::time::sleep(Duration::from_secs(1)).await;
            })
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(order.lock().unwrap().is_empty());
        drop(first);
        futures_util::future::join_all(calls).await;
        assert_eq!(*order.lock().unwrap(), [3, 1, 2]);
        assert!(queues.instances.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn instances_do_not_wait_for_each_other() {
        let queues = Queues::default();
        let _one = queues.turn(&instance("1"), Change::Attach).await;
        let _two = queues.turn(&instance("2"), Change::Attach).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_went_away_holds_nobody_up() {
        let queues = Queues::default();
        let first = queues.turn(&instance("1"), Change::Attach).await;
        let gone = tokio::time::timeout(Duration::from_secs(1), queues.turn(&instance("1"), Change::Detach)).await;
        assert!(gone.is_err());
        drop(first);
        let _turn = queues.turn(&instance("1"), Change::Attach).await;
    }
}
