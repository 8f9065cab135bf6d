//! Who may fetch from a worker, and how much at once.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, RecvStream};
use shoal_common::ids::Generation;
use shoal_common::pki::{Identity, Role};
use shoal_common::quic::{self, CloseCode, QuicError};
use shoal_common::wire::blob::{BlobHeader, BlobRequest};
use shoal_common::wire::codec::{read_frame, write_frame};
use shoal_common::wire::message::WorkerOpen;

use super::play::{Cluster, generation, name};
use crate::adapters::peers::lend::MAX_UPLOADS;

/// More than both ends hold of a stream that nobody reads.
const LARGE: usize = 8 << 20;
/// What a lender sends at most while nothing of it is read.
const MOST_UNREAD: u64 = 2 << 20;

async fn dial(cluster: &Cluster, identity: &Identity, address: SocketAddr) -> Result<Connection, QuicError> {
    let own = cluster.identity(Role::Worker, "dials");
    let endpoint = quic::worker_endpoint(&own, &cluster.timers).unwrap();
    quic::dial_peer(&endpoint, (address, &name("lender")), identity, &cluster.timers).await
}

async fn ask(connection: &Connection, at: Generation) -> (BlobHeader, RecvStream) {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write_frame(&mut send, &WorkerOpen::Blob(BlobRequest { digest: at.0 })).await.unwrap();
    (read_frame(&mut recv).await.unwrap(), recv)
}

#[tokio::test]
async fn only_workers_of_the_cluster_are_let_in() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let wanted = b"an adapter";
    let lender = cluster.lender("lender", &[(generation(wanted), wanted)]).await;
    // The client's certificate is judged last, so what is seen of a refusal may be the close.
    for stranger in [cluster.identity(Role::Router, "router"), other.identity(Role::Worker, "asker")] {
        let refused = match dial(&cluster, &stranger, lender.address).await {
            Ok(connection) => QuicError::from(connection.closed().await),
            Err(error) => error,
        };
        let is_refused = matches!(refused, QuicError::Closed(CloseCode::Refused) | QuicError::Handshake { .. });
        assert!(is_refused, "{refused}");
    }
    // Nor is whoever means to reach a router.
    let own = cluster.identity(Role::Worker, "asker");
    let endpoint = quic::worker_endpoint(&own, &cluster.timers).unwrap();
    assert!(matches!(quic::dial(&endpoint, lender.address, &cluster.timers).await, Err(QuicError::Handshake { .. })));
    let (header, _recv) = ask(&dial(&cluster, &own, lender.address).await.unwrap(), generation(wanted)).await;
    assert_eq!(header, BlobHeader::Found { len: wanted.len() as u64 });
}

#[tokio::test]
async fn whole_generations_are_lent_by_their_hash_and_nothing_else_is_answered() {
    let cluster = Cluster::new();
    let wanted = b"an adapter";
    let lender = cluster.lender("lender", &[(generation(wanted), wanted)]).await;
    let own = cluster.identity(Role::Worker, "asker");
    let unknown = dial(&cluster, &own, lender.address).await.unwrap();
    assert_eq!(ask(&unknown, generation(b"another")).await.0, BlobHeader::NotFound);
    let known = dial(&cluster, &own, lender.address).await.unwrap();
    let (_, mut recv) = ask(&known, generation(wanted)).await;
    assert_eq!(recv.read_to_end(100).await.unwrap(), wanted);
    for broken in [&[255_u8, 255, 255, 255][..], &[1, 0, 0, 0, 9]] {
        let connection = dial(&cluster, &own, lender.address).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(broken).await.unwrap();
        let closed = QuicError::from(connection.closed().await);
        assert!(matches!(closed, QuicError::Closed(CloseCode::Protocol)), "{closed}");
    }
    // A router is asked that, not a worker.
    let connection = dial(&cluster, &own, lender.address).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    write_frame(&mut send, &WorkerOpen::Nearer(BlobRequest { digest: generation(wanted).0 })).await.unwrap();
    assert!(matches!(QuicError::from(connection.closed().await), QuicError::Closed(CloseCode::Protocol)));
}

#[tokio::test]
async fn no_more_is_sent_at_once_than_may_be_and_whoever_is_too_many_is_told_at_once() {
    let cluster = Cluster::new();
    let wanted = vec![3; LARGE];
    let at = generation(&wanted);
    let lender = cluster.lender("lender", &[(at, &wanted)]).await;
    let own = cluster.identity(Role::Worker, "asker");
    let mut served = Vec::new();
    for _ in 0..MAX_UPLOADS {
        let connection = dial(&cluster, &own, lender.address).await.unwrap();
        let (header, recv) = ask(&connection, at).await;
        assert_eq!(header, BlobHeader::Found { len: LARGE as u64 });
        served.push((connection, recv));
    }
    let one_more = || async { ask(&dial(&cluster, &own, lender.address).await.unwrap(), at).await.0 };
    assert_eq!(one_more().await, BlobHeader::Busy);
    // Once one has all of it, there is room again.
    let (connection, mut recv) = served.swap_remove(0);
    assert_eq!(recv.read_to_end(LARGE).await.unwrap().len(), LARGE);
    drop(connection);
    while one_more().await == BlobHeader::Busy {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nobody_is_served_any_more_once_the_worker_closes() {
    let cluster = Cluster::new();
    let wanted = vec![3; LARGE];
    let lender = cluster.lender("lender", &[(generation(&wanted), &wanted)]).await;
    let own = cluster.identity(Role::Worker, "asker");
    let connection = dial(&cluster, &own, lender.address).await.unwrap();
    let (_, mut recv) = ask(&connection, generation(&wanted)).await;
    // All that may be on its way has come: quinn-proto up to 0.11.19 never sends the close of a connection whose congestion
    // window is full (quinn's issue 2785), and the silence would be noticed a minute later.
    while connection.stats().udp_rx.bytes < MOST_UNREAD {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lender.closer.fire();
    assert!(recv.read_to_end(LARGE).await.is_err());
    assert!(matches!(QuicError::from(connection.closed().await), QuicError::Closed(CloseCode::Shutdown)));
}
