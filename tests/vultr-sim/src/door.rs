//! The API's door: while it is shut, connections are refused, and the cloud lives on behind it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{net::TcpListener, task::JoinHandle};

use crate::{api, cloud::Cloud, serve};

/// The API's address, and the task that listens there.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl Door {
    /// A door at an address, shut.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, listening: Mutex::default() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets requests in that come through a listener at the door's address.
    pub(crate) fn open(&self, cloud: Arc<Cloud>, listener: TcpListener) {
        let answer = move |peer, request| api::answer(Arc::clone(&cloud), peer, request);
        *self.listening() = Some(serve::listen(listener, answer));
    }

    /// Listens again, if it was shut.
    pub(crate) fn reopen(&self, cloud: Arc<Cloud>) -> io::Result<()> {
        if self.listening().is_some() {
            return Ok(());
        }
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        self.open(cloud, TcpListener::from_std(listener)?);
        Ok(())
    }

    /// Listens no more when this returns, and cuts the connections; what was asked for goes on.
    pub(crate) async fn shut(&self) {
        let listening = self.listening().take();
        if let Some(listening) = listening {
            listening.abort();
            // It was aborted, or has ended: there is nothing else to learn.
            let _ = listening.await;
        }
    }

    /// Listens no more soon.
    pub(crate) fn abort(&self) {
        if let Some(listening) = self.listening().take() {
            listening.abort();
        }
    }

    fn listening(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
