//! The cluster that the tests are played on: an authority, a router without a socket, workers that lend and workers that lie.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, Endpoint, SendStream};
use shoal_common::config::Timers;
use shoal_common::ids::{Digest, Generation, Name};
use shoal_common::pki::{Authority, Identity, Role};
use shoal_common::quic::{self, Acceptor};
use shoal_common::shutdown::{self, Trigger};
use shoal_common::wire::blob::{BlobHeader, Nearer};
use shoal_common::wire::codec::{FrameReader, write_frame};
use shoal_common::wire::message::WorkerOpen;
use tempfile::TempDir;

use crate::adapters::fetch::Asking;
use crate::adapters::loader::{Loaded, Loader, Unusable};
use crate::adapters::peers::{Dialling, Patience, Peers, lend};
use crate::adapters::{Adapter, AdapterStore, Blob, Limits, Opening, Pace, Source, StoreSettings, Via};

/// Long enough for a machine that is busy with something else.
const LONG: Duration = Duration::from_secs(60);
/// What no test has to be fast for.
pub(super) const CALM: Patience = Patience { answer: LONG, chunk: LONG, all: LONG, shun: LONG };
/// For what never comes.
pub(super) const HASTY: Patience =
    Patience { answer: Duration::from_millis(300), chunk: Duration::from_millis(300), all: LONG, shun: LONG };

pub(super) const ROOMY: Limits = Limits { slots: 8, bytes: 64 << 20, disk_bytes: 64 << 20 };

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn generation(content: &[u8]) -> Generation {
    Generation(Digest::of(content))
}

/// Content of some chunks, each other for another `seed`.
pub(super) fn content(seed: u8) -> Vec<u8> {
    (0..1_300_000_u32).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect()
}

/// Loads anything, once the store has checked its hash.
#[derive(Debug)]
struct Any;

impl Loader for Any {
    fn load(&self, at: Generation, bundle: &[u8]) -> Result<Loaded, Unusable> {
        assert_eq!(at, generation(bundle), "something else is to be used");
        Ok(Loaded { adapter: Arc::new(Adapter::empty(at)), bytes: 1, rank: 1 })
    }
}

/// A router: names workers, has everything, and counts who comes for it.
#[derive(Debug)]
pub(super) struct Router {
    contents: Mutex<BTreeMap<Generation, Vec<u8>>>,
    names: Vec<Name>,
    peers: Arc<Peers>,
    asked: AtomicUsize,
}

impl Router {
    /// How often it had to send something itself.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub(super) fn put(&self, content: &[u8]) -> Generation {
        let at = generation(content);
        self.contents.lock().unwrap().insert(at, content.to_vec());
        at
    }

    fn content(&self, at: Generation) -> Vec<u8> {
        self.contents.lock().unwrap()[&at].clone()
    }
}

impl Source for Router {
    fn open(&self, at: Generation) -> Opening<'_> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let content = self.content(at);
        let len = content.len() as u64;
        Box::pin(async move {
            Ok(Blob { len, content: Box::new(std::io::Cursor::new(content)), pace: Pace::Patient, permit: None })
        })
    }

    fn nearer(&self, at: Generation) -> Asking<'_> {
        let hint = Nearer { len: self.content(at).len() as u64, peers: self.names.clone() };
        Box::pin(async move { if self.peers.may_be_asked() { self.peers.sources(hint) } else { Vec::new() } })
    }
}

/// Certificates and timers.
pub(super) struct Cluster {
    authority: Authority,
    pub(super) timers: Timers,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let authority = Authority::create(&name("test")).unwrap();
        Self { authority, timers: Timers { idle: LONG, connect: LONG, ..Timers::default() } }
    }

    pub(super) fn identity(&self, role: Role, of: &str) -> Identity {
        self.authority.issue(role, &name(of)).unwrap()
    }

    /// A port where worker `of` listens.
    pub(super) fn listen(&self, of: &str) -> (Endpoint, SocketAddr) {
        let at = (Ipv4Addr::LOCALHOST, 0).into();
        let endpoint = quic::peer_endpoint(at, &self.identity(Role::Worker, of), &self.timers).unwrap();
        let address = endpoint.local_addr().unwrap();
        (endpoint, address)
    }

    /// A worker that has `contents` on its disk and lends them.
    pub(super) async fn lender(&self, of: &str, contents: &[(Generation, &[u8])]) -> Lender {
        let directory = tempfile::tempdir().unwrap();
        for (at, content) in contents {
            std::fs::write(directory.path().join(format!("{at}.adapter")), content).unwrap();
        }
        let store = open(&directory).await;
        let (endpoint, address) = self.listen(of);
        let (closer, closing) = shutdown::channel();
        tokio::spawn(lend::lend(endpoint, self.timers, store, closing));
        Lender { address, closer, _directory: directory }
    }

    /// A worker that does what it is told with whoever comes.
    pub(super) fn liar(&self, of: &str, plays: Plays) -> SocketAddr {
        let (endpoint, address) = self.listen(of);
        let mut acceptor = Acceptor::new(endpoint, self.timers);
        tokio::spawn(async move {
            while let Some(connection) = acceptor.next().await {
                tokio::spawn(lie(connection, plays));
            }
        });
        address
    }

    /// A worker without adapters, and a router that names `hinted` to it; it knows the addresses of `known`.
    pub(super) async fn asker(&self, patience: Patience, hinted: &[&str], known: &[(&str, SocketAddr)]) -> Asker {
        let identity = self.identity(Role::Worker, "asker");
        let endpoint = quic::worker_endpoint(&identity, &self.timers).unwrap();
        let addresses = known.iter().map(|(of, address)| (name(of), address.to_string())).collect();
        let dialling = Dialling { endpoint, identity, timers: self.timers };
        let peers = Arc::new(Peers::new(dialling, addresses, patience));
        let names = hinted.iter().map(|of| name(of)).collect();
        let router =
            Arc::new(Router { contents: Mutex::default(), names, peers: peers.clone(), asked: AtomicUsize::new(0) });
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory).await;
        let via = store.via(router.clone());
        via.offer();
        Asker { router, via, peers, directory }
    }
}

async fn open(directory: &TempDir) -> AdapterStore {
    let settings = StoreSettings { limits: ROOMY, directory: directory.path().to_owned() };
    AdapterStore::open(settings, Arc::new(Any)).await
}

/// A worker that lends, until it is dropped.
pub(super) struct Lender {
    pub(super) address: SocketAddr,
    pub(super) closer: Trigger,
    _directory: TempDir,
}

/// A worker that lacks adapters.
pub(super) struct Asker {
    pub(super) router: Arc<Router>,
    pub(super) via: Via,
    pub(super) peers: Arc<Peers>,
    directory: TempDir,
}

impl Asker {
    /// Has the adapter in memory and whole on its disk, and nothing else there.
    pub(super) async fn gets(&self, content: &[u8]) {
        let at = self.router.put(content);
        assert_eq!(self.via.acquire(at, None).await.unwrap().generation(), at);
        assert_eq!(std::fs::read(self.directory.path().join(format!("{at}.adapter"))).unwrap(), content);
        let parts = std::fs::read_dir(self.directory.path()).unwrap();
        let ends_in_part = |path: &std::path::Path| path.extension().is_some_and(|ending| ending == "part");
        assert_eq!(parts.filter(|entry| ends_in_part(&entry.as_ref().unwrap().path())).count(), 0, "a part was left");
    }
}

/// What a peer does that is asked for a content.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plays {
    /// Takes the request and says nothing.
    Silent,
    /// Does not have it.
    NotFound,
    /// Has enough to do.
    Busy,
    /// Announces another length.
    OtherLength(u64),
    /// As many bytes as were asked for, of something else.
    OtherBytes,
    /// The right bytes, and more.
    TooLong,
    /// Ends before all is sent.
    TooShort,
    /// The right bytes, one now and then.
    Trickles,
    /// Closes the connection in the middle.
    Breaks,
    /// Something that is no frame.
    Garbage,
}

/// What every liar is asked for.
pub(super) const SEED: u8 = 7;

async fn lie(connection: Connection, plays: Plays) {
    let Ok((mut send, recv)) = connection.accept_bi().await else { return };
    let _: WorkerOpen = FrameReader::new(recv).next().await.unwrap();
    // Whoever is found out has its stream stopped: then writing fails, and there is nothing to play any more.
    let _ = speak(&connection, &mut send, plays).await;
    let _ = send.finish();
    connection.closed().await;
}

async fn speak(
    connection: &Connection,
    send: &mut SendStream,
    plays: Plays,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (right, len) = (content(SEED), content(SEED).len() as u64);
    let half = right.len() / 2;
    match plays {
        Plays::Silent => drop(connection.closed().await),
        Plays::NotFound => write_frame(send, &BlobHeader::NotFound).await?,
        Plays::Busy => write_frame(send, &BlobHeader::Busy).await?,
        Plays::Garbage => send.write_all(&[255; 64]).await?,
        Plays::OtherLength(announced) => {
            write_frame(send, &BlobHeader::Found { len: announced }).await?;
            send.write_all(&right).await?;
        }
        _ => write_frame(send, &BlobHeader::Found { len }).await?,
    }
    match plays {
        Plays::OtherBytes => send.write_all(&content(SEED + 1)).await?,
        Plays::TooLong => send.write_all(&[&right[..], b"and more"].concat()).await?,
        Plays::TooShort => send.write_all(&right[..half]).await?,
        Plays::Breaks => {
            send.write_all(&right[..half]).await?;
            connection.close(0_u32.into(), b"");
        }
        Plays::Trickles => {
            for byte in right {
                send.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        _ => {}
    }
    Ok(())
}
