//! The simulated network under the product: quinn over turmoil's UDP, HTTP over its TCP, and the weather between hosts.
//! Called by `cluster` and `load`. Partitions and latency are turmoil's; loss and duplicates are made here, datagram by
//! datagram, because turmoil's own break a whole link at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, UdpPoller};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_common::ambient;
use shoal_router::http::server::Listen;
use turmoil::net::{TcpListener, TcpStream, UdpSocket};

use crate::token;

/// What happens to datagrams from one host to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// Share that is lost.
    pub loss: f64,
    /// Share that arrives twice.
    pub duplicates: f64,
}

/// The weather on all links, shared by all sockets of a simulation. A link without an entry has none.
#[derive(Clone, Debug)]
pub struct Sky(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    numbers: StdRng,
    links: BTreeMap<(IpAddr, IpAddr), Weather>,
}

impl Sky {
    /// A clear sky. `seed` decides which datagrams are hit.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State { numbers: StdRng::seed_from_u64(seed), links: BTreeMap::new() })))
    }

    /// The weather from `from` to `to`, from now on.
    pub fn set(&self, from: IpAddr, to: IpAddr, weather: Weather) {
        self.state().links.insert((from, to), weather);
    }

    /// How often a datagram from `from` to `to` arrives.
    fn copies(&self, from: IpAddr, to: IpAddr) -> usize {
        let mut state = self.state();
        let Some(weather) = state.links.get(&(from, to)).copied() else { return 1 };
        let lost = state.numbers.random_bool(weather.loss);
        let twice = state.numbers.random_bool(weather.duplicates);
        usize::from(!lost) + usize::from(!lost && twice)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// A UDP socket of a host, for quinn.
struct Socket {
    udp: Arc<UdpSocket>,
    own: IpAddr,
    sky: Sky,
    /// The wait for the next datagram, while there is one.
    wait: Mutex<Option<Readable>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("own", &self.own).finish_non_exhaustive()
    }
}

/// Nothing ever blocks a sender: what is too much is lost on the way, as in a real network.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let copies = self.sky.copies(self.own, transmit.destination.ip());
        tracing::debug!(to = %transmit.destination, bytes = transmit.contents.len(), copies, "sends");
        for _ in 0..copies {
            // An address that nobody has swallows what it is sent.
            let _ = self.udp.try_send_to(transmit.contents, transmit.destination);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.udp.try_recv_from(&mut bufs[0]) {
                Ok((len, addr)) => {
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            let mut wait = self.wait.lock().unwrap_or_else(PoisonError::into_inner);
            let udp = Arc::clone(&self.udp);
            let readable = wait.get_or_insert_with(|| Box::pin(async move { udp.readable().await }));
            match readable.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                // Dropped before the next try: while it lives it holds the socket's lock.
                Poll::Ready(outcome) => {
                    *wait = None;
                    outcome?;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Also what keeps quinn from looking for a larger MTU: there is none to be found here.
    fn may_fragment(&self) -> bool {
        true
    }
}

/// Where a host stands in the network.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its address.
    pub own: IpAddr,
    /// What is above all.
    pub sky: Sky,
}

/// An endpoint bound to `port` (0: any). Within the software of the host at `place`.
async fn endpoint(port: u16, server: Option<ServerConfig>, place: &Place) -> io::Result<Endpoint> {
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    let socket = Socket { udp: Arc::new(udp), own: place.own, sky: place.sky.clone(), wait: Mutex::new(None) };
    let mut config = EndpointConfig::default();
    config.rng_seed(Some(ambient::draw()));
    Endpoint::new_with_abstract_socket(config, server, Arc::new(socket), Arc::new(TokioRuntime))
}

/// A router's endpoint.
pub async fn router_endpoint(port: u16, mut config: ServerConfig, place: &Place) -> io::Result<Endpoint> {
    token::fix(&mut config);
    endpoint(port, Some(config), place).await
}

/// A worker's endpoint.
pub async fn worker_endpoint(config: ClientConfig, place: &Place) -> io::Result<Endpoint> {
    let mut endpoint = endpoint(0, None, place).await?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// A router's HTTP socket.
pub struct Listener(TcpListener);

impl Listener {
    /// Listens on `port` of the host that runs.
    pub async fn bind(port: u16) -> io::Result<Self> {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.map(Self)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").finish()
    }
}

impl Listen for Listener {
    type Io = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
