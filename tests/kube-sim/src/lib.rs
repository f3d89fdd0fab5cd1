//! A simulated Kubernetes API server for tests: objects of any kind under their paths, with resource versions,
//! optimistic locking, paged lists and JSON patches; and a test's hand in it.
//!
//! It keeps no schema and knows no permissions: what it refuses is what a test has it refuse. It is served in memory
//! (a [`Router`] is a service, so simulated time works) or over HTTP ([`KubeSim::listen`]).

mod store;

use std::{
    collections::VecDeque,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use store::Store;

/// Larger than any object of Kubernetes may be.
const LARGEST_BODY: usize = 4 << 20;

/// The API server.
#[derive(Clone, Debug, Default)]
pub struct KubeSim {
    store: Arc<Mutex<Store>>,
    front: Arc<Mutex<Front>>,
}

/// One server's side towards its clients.
#[derive(Debug, Default)]
struct Front {
    faults: Vec<Fault>,
    hooks: VecDeque<Hook>,
    log: Vec<Entry>,
}

/// What is done to requests.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The method of the requests that it meets.
    pub method: Method,
    /// What their paths begin with.
    pub path: String,
    /// What it does.
    pub action: Action,
    /// How often it still strikes.
    pub times: u64,
}

/// What a fault does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answers with this status and reason, such as 403 and `Forbidden`; nothing happens.
    Answer(StatusCode, &'static str),
    /// Never answers; nothing happens.
    Silence,
    /// Never answers, but what was asked for happens.
    LoseAnswer,
}

/// Something that somebody else does just before a request takes effect.
struct Hook {
    method: Method,
    path: String,
    act: Box<dyn FnOnce(&KubeSim) + Send>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hook({} {})", self.method, self.path)
    }
}

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its method.
    pub method: Method,
    /// Its path, without the query.
    pub path: String,
    /// How it was answered; none if it never was.
    pub status: Option<StatusCode>,
}

/// A server on a socket; it ends with this.
#[derive(Debug)]
pub struct Listening {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KubeSim {
    /// Another server over the same objects, with faults and a log of its own: a client of its own way.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { store: Arc::clone(&self.store), front: Arc::default() }
    }

    /// The server as a service.
    pub fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    /// Serves on a free port of this machine.
    ///
    /// # Errors
    /// If there is none.
    pub async fn listen(&self) -> io::Result<Listening> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let router = self.router();
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the API server has ended: {error}");
            }
        });
        Ok(Listening { address, task })
    }

    /// Puts an object at a path, in place of what is there.
    pub fn put(&self, path: &str, object: Value) {
        self.store().put(path, object);
    }

    /// The object at a path.
    #[must_use]
    pub fn object(&self, path: &str) -> Option<Value> {
        self.store().object(path).cloned()
    }

    /// Changes the object at a path, as somebody else does.
    ///
    /// # Panics
    /// If there is none.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.object(path).expect("there is an object at the path");
        change(&mut object);
        self.put(path, object);
    }

    /// Takes the object at a path away.
    pub fn remove(&self, path: &str) {
        self.store().remove(path);
    }

    /// Adds a fault; the first that meets a request strikes.
    pub fn add_fault(&self, method: Method, path: &str, action: Action, times: u64) {
        self.front().faults.push(Fault { method, path: path.to_owned(), action, times });
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.front().faults.clear();
    }

    /// Has somebody do something just before the next such request takes effect.
    pub fn before(&self, method: Method, path: &str, act: impl FnOnce(&Self) + Send + 'static) {
        self.front().hooks.push_back(Hook { method, path: path.to_owned(), act: Box::new(act) });
    }

    /// The requests so far, in the order of their answers.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        self.front().log.clone()
    }

    /// How many requests of this method to this path there were.
    #[must_use]
    pub fn count(&self, method: &Method, path: &str) -> usize {
        self.front().log.iter().filter(|entry| entry.method == *method && entry.path == path).count()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn front(&self) -> MutexGuard<'_, Front> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault that strikes a request.
    fn strike(&self, method: &Method, path: &str) -> Option<Action> {
        let mut front = self.front();
        let meets = |fault: &&mut Fault| fault.method == *method && path.starts_with(&fault.path) && fault.times > 0;
        let fault = front.faults.iter_mut().find(meets)?;
        fault.times -= 1;
        Some(fault.action.clone())
    }

    fn hook(&self, method: &Method, path: &str) -> Option<Hook> {
        let mut front = self.front();
        let at = front.hooks.iter().position(|hook| hook.method == *method && path.starts_with(&hook.path))?;
        front.hooks.remove(at)
    }
}

async fn answer(State(sim): State<KubeSim>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = uri.path().to_owned();
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_patch = kind == "application/json-patch+json";
    let body = to_bytes(request.into_body(), LARGEST_BODY).await.unwrap_or_default();
    let fault = sim.strike(&method, &path);
    if let Some(hook) = sim.hook(&method, &path) {
        (hook.act)(&sim);
    }
    let note = |status| sim.front().log.push(Entry { method: method.clone(), path: path.clone(), status });
    let refusal = match fault {
        Some(Action::Silence) => {
            note(None);
            return std::future::pending().await;
        }
        Some(Action::Answer(status, reason)) => Some((status, reason)),
        Some(Action::LoseAnswer) | None => None,
    };
    let (status, object) = match refusal {
        Some((status, reason)) => (status, failure(status, reason, "as the test has it")),
        None => sim.store().request(&method, &path, uri.query().unwrap_or_default(), &body, is_patch),
    };
    if matches!(fault, Some(Action::LoseAnswer)) {
        note(None);
        return std::future::pending().await;
    }
    note(Some(status));
    let mut response = Response::new(Body::from(Bytes::from(object.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A `Status` that tells of a failure.
fn failure(status: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": message, "code": status.as_u16(),
    })
}
