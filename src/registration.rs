//! Makes the driver known to the kubelet, in the place of a node-driver-registrar.
//!
//! The kubelet watches a folder. A socket that appears there is asked who it is ([`wire`]); then the kubelet calls
//! NodeGetInfo on the CSI socket, lists the driver in the node's CSINode, and tells what came of it. A socket that goes
//! away takes the driver out of the CSINode again. `server` keeps the offer up for as long as it accepts calls.
//!
//! The socket's name is the same for every process: kubelets order what they do by path, and of two paths with the same
//! driver the farewell of the old one could come after the welcome of the new one.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixListener,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server};
use tracing::{error, info, warn};

use self::wire::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::{self, RegistrationServer},
};
use crate::socket::{SocketFile, connections, listen};

/// The generated code of `proto/pluginregistration.proto`; the client is for tests.
#[allow(missing_docs, unreachable_pub, rustdoc::all, clippy::all, clippy::pedantic)]
pub mod wire {
    tonic::include_proto!("pluginregistration");
}

/// How long a kubelet may take to ask, before that is worth a line in the log.
const UNASKED: Duration = Duration::from_secs(60);
/// The first pause between a refusal and the next offer; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What the kubelet has said of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    /// Nothing yet.
    None,
    /// It is registered.
    Registered,
    /// It is not, and why.
    Refused(String),
    /// Nothing yet since the driver was offered anew; why that was.
    Anew(String),
}

/// The offer to the kubelet.
#[derive(Debug, Clone)]
pub struct Registration {
    socket: PathBuf,
    info: PluginInfo,
    word: watch::Sender<Word>,
}

/// The socket by which the kubelet that watches `folder` finds the driver.
pub fn socket(folder: &Path, driver_name: &str) -> PathBuf {
    folder.join(format!("{driver_name}-reg.sock"))
}

impl Registration {
    /// An offer in the kubelet's `folder` of the driver that serves on `endpoint`.
    pub fn new(folder: &Path, driver_name: &str, endpoint: &Path) -> Self {
        let info = PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: driver_name.to_owned(),
            endpoint: endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".to_owned()],
        };
        Self { socket: socket(folder, driver_name), info, word: watch::Sender::new(Word::None) }
    }

    /// Why the driver is not registered, if it is not.
    pub fn trouble(&self) -> Option<String> {
        match &*self.word.borrow() {
            Word::Registered => None,
            Word::None => Some(format!("the kubelet has not asked at {} yet", self.socket.display())),
            Word::Refused(why) | Word::Anew(why) => Some(format!("the kubelet has not registered the driver: {why}")),
        }
    }

    /// Offers the driver until it is dropped, and returns only what keeps it from that at first. What comes in between
    /// later is told and tried again: those that have volumes mounted still need the driver to take them off.
    ///
    /// When it is dropped, which is on SIGTERM, the socket goes, as that of a node-driver-registrar does. The kubelet then
    /// takes the driver out of the CSINode for as long as there is none. To leave the socket would keep the entry through
    /// a restart, but also after the driver was uninstalled, with Pods sent to a node that cannot mount for them; and a
    /// kubelet that starts after a reboot would try the dead socket with growing pauses, and so find the living one up to
    /// two minutes late. Nothing is lost by it: calls under way go on over the connections that they have, and what the
    /// kubelet wants meanwhile it tries again, as it would with a dead socket.
    pub(crate) async fn keep_offered(&self) -> String {
        let mut pause = FIRST_PAUSE;
        loop {
            // It takes the place of one that a killed process left: the kubelet sees that as a new plugin.
            let listener = match listen(&self.socket).await {
                Ok(listener) => listener,
                Err(problem) if *self.word.borrow() == Word::None => {
                    return format!("the kubelet cannot be told of the driver: {problem}");
                }
                Err(problem) => {
                    error!(problem, "the kubelet cannot be told of the driver again; it is tried again");
                    self.word.send_replace(Word::Anew(problem));
                    sleep(LONGEST_PAUSE).await;
                    continue;
                }
            };
            let file = SocketFile::of(&self.socket);
            info!(socket = %self.socket.display(), endpoint = self.info.endpoint, "offered to the kubelet");
            let mut server = AbortOnDropHandle::new(tokio::spawn(self.clone().serve(listener)));
            let why = tokio::select! {
                ended = &mut server => {
                    sleep(FIRST_PAUSE).await;
                    format!("the registration socket ended by itself: {ended:?}")
                }
                never = self.warn_if_unasked() => match never {},
                () = file.removed() => {
                    "somebody removed the registration socket, for which the kubelet forgets the driver".to_owned()
                }
                why = self.refused_for(&mut pause) => why,
            };
            warn!(why, "the driver is offered to the kubelet anew");
            // What it said of the old offer says nothing of the new one.
            self.word.send_replace(Word::Anew(why));
        }
    }

    async fn serve(self, listener: UnixListener) -> Result<(), tonic::transport::Error> {
        let incoming = connections(listener);
        Server::builder().add_service(RegistrationServer::new(self)).serve_with_incoming(incoming).await
    }

    async fn warn_if_unasked(&self) -> Infallible {
        sleep(UNASKED).await;
        if matches!(*self.word.borrow(), Word::None | Word::Anew(_)) {
            warn!(
                socket = %self.socket.display(),
                "no kubelet has asked: is --kubelet-registration-dir its plugins_registry, mounted from the host?"
            );
        }
        std::future::pending().await
    }

    /// Returns when a refusal has stood for `pause`, and which. Kubelets of our day ask again by themselves; older ones do
    /// so only when they see a new socket.
    async fn refused_for(&self, pause: &mut Duration) -> String {
        let mut word = self.word.subscribe();
        loop {
            // It is an error only once the sender is gone, which is ours.
            word.wait_for(|word| matches!(word, Word::Refused(_))).await.ok();
            let mended = timeout(*pause, word.wait_for(|word| *word == Word::Registered)).await.is_ok();
            if !mended && let Word::Refused(why) = &*word.borrow() {
                *pause = (*pause * 2).min(LONGEST_PAUSE);
                return why.clone();
            }
            *pause = FIRST_PAUSE;
        }
    }
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            info!(driver = self.info.name, "registered with the kubelet");
            self.word.send_replace(Word::Registered);
        } else {
            error!(driver = self.info.name, error, "the kubelet does not register the driver");
            self.word.send_replace(Word::Refused(error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use tonic::transport::{Channel, Endpoint};

    use super::{wire::registration_client::RegistrationClient, *};
    use crate::socket::LOOK;

    /// Of the paused clock.
    async fn moment() {
        sleep(Duration::from_millis(100)).await;
    }

    async fn kubelet(socket: &Path) -> RegistrationClient<Channel> {
        let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
        loop {
            if let Ok(channel) = endpoint.connect().await {
                return RegistrationClient::new(channel);
            }
            moment().await;
        }
    }

    async fn tell(socket: &Path, plugin_registered: bool, error: &str) {
        let status = RegistrationStatus { plugin_registered, error: error.to_owned() };
        kubelet(socket).await.notify_registration_status(status).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_and_the_offer_renewed_until_it_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let registration = Registration::new(dir.path(), "block.example.com", Path::new("/plugins/csi.sock"));
        let socket = dir.path().join("block.example.com-reg.sock");
        let offer = registration.clone();
        let offered = tokio::spawn(async move { offer.keep_offered().await });
        let info = kubelet(&socket).await.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "block.example.com"));
        assert_eq!((info.endpoint.as_str(), info.supported_versions), ("/plugins/csi.sock", vec!["1.0.0".to_owned()]));
        assert!(registration.trouble().unwrap().contains("not asked"));

        for round in 0..3 {
            // A second name for it, so that its number is not given to the next.
            let kept = dir.path().join(format!("kept-{round}"));
            fs::hard_link(&socket, &kept).unwrap();
            tell(&socket, false, "rpc error: node unknown").await;
            assert!(registration.trouble().unwrap().contains("rpc error: node unknown"));
            let old = fs::metadata(&kept).unwrap().ino();
            while fs::metadata(&socket).map_or(old, |found| found.ino()) == old {
                moment().await;
            }
            assert!(registration.trouble().is_some());
        }
        tell(&socket, true, "").await;
        assert_eq!(registration.trouble(), None);
        fs::remove_file(&socket).unwrap();
        let anew = async {
            while !socket.exists() {
                moment().await;
            }
        };
        timeout(LOOK * 2, anew).await.unwrap();
        assert!(registration.trouble().unwrap().contains("somebody removed"));
        tell(&socket, true, "").await;
        assert_eq!(registration.trouble(), None);
        offered.abort();
        assert!(offered.await.unwrap_err().is_cancelled());
        assert!(!socket.exists(), "the socket outlives the offer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_the_kubelet_takes_back_renews_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let registration = Registration::new(dir.path(), "block.example.com", Path::new("/plugins/csi.sock"));
        let mut pause = FIRST_PAUSE;
        registration.word.send_replace(Word::Refused("once".to_owned()));
        let refused = registration.refused_for(&mut pause);
        tokio::pin!(refused);
        assert!(timeout(FIRST_PAUSE / 2, &mut refused).await.is_err());
        registration.word.send_replace(Word::Registered);
        assert!(timeout(LONGEST_PAUSE * 10, &mut refused).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_that_cannot_be_renewed_ends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let registration = Registration::new(dir.path(), "block.example.com", Path::new("/plugins/csi.sock"));
        let socket = dir.path().join("block.example.com-reg.sock");
        let offer = registration.clone();
        let offered = tokio::spawn(async move { offer.keep_offered().await });
        tell(&socket, true, "").await;
        fs::remove_file(&socket).unwrap();
        fs::create_dir(&socket).unwrap();
        sleep(LONGEST_PAUSE).await;
        assert!(registration.trouble().unwrap().contains("something else"), "{:?}", registration.trouble());
        fs::remove_dir(&socket).unwrap();
        tell(&socket, true, "").await;
        assert_eq!(registration.trouble(), None);
        assert!(!offered.is_finished());
        offered.abort();
    }

    #[tokio::test]
    async fn beside_a_living_registrar_the_driver_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let _registrar = UnixListener::bind(dir.path().join("block.example.com-reg.sock")).unwrap();
        let registration = Registration::new(dir.path(), "block.example.com", Path::new("/plugins/csi.sock"));
        assert!(registration.keep_offered().await.contains("another process serves on it"));
    }
}
