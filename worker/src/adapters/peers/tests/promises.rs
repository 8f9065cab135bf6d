//! A peer is worth a fetch when all goes well, and costs a little time when it does not.

use std::net::UdpSocket;

use super::counts::counted;
use super::play::{CALM, Cluster, HASTY, Plays, SEED, content, generation, name};

const FETCHES: &str = "shoal_worker_adapter_fetch";

/// The counts of a scene in which the peer fails for `reason` and the router helps.
fn failed_for(reason: &str) -> Vec<(String, u64)> {
    vec![(format!("_failures_total peer {reason}"), 1), ("es_total router".to_owned(), 1)]
}

/// Asks a peer that plays false, and then has the adapter all the same.
fn meet(plays: Plays) -> Vec<(String, u64)> {
    let scene = async {
        let cluster = Cluster::new();
        let patience = if matches!(plays, Plays::Silent | Plays::Trickles) { HASTY } else { CALM };
        let asker = cluster.asker(patience, &["liar"], &[("liar", cluster.liar("liar", plays))]).await;
        asker.gets(&content(SEED)).await;
        assert_eq!(asker.router.asked(), 1, "{plays:?}");
        let is_left_alone = !matches!(plays, Plays::NotFound | Plays::Busy);
        assert_eq!(asker.peers.may_be_asked(), !is_left_alone, "{plays:?}");
    };
    counted(FETCHES, scene).into_iter().collect()
}

#[test]
fn what_a_neighbour_has_is_fetched_from_it_and_not_from_the_router() {
    let counts = counted(FETCHES, async {
        let cluster = Cluster::new();
        let contents = [1, 2, 3].map(content);
        let lent: Vec<_> = contents.iter().map(|content| (generation(content), &content[..])).collect();
        let lender = cluster.lender("lender", &lent).await;
        let asker = cluster.asker(CALM, &["lender"], &[("lender", lender.address)]).await;
        for content in &contents {
            asker.gets(content).await;
        }
        assert_eq!(asker.router.asked(), 0);
    });
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("es_total peer".to_owned(), 3)]);
}

#[test]
fn a_peer_that_lies_is_noticed_counted_and_left_alone_and_the_router_helps() {
    let len = content(SEED).len() as u64;
    for plays in [
        Plays::OtherBytes,
        Plays::TooLong,
        Plays::TooShort,
        Plays::OtherLength(len + 1),
        Plays::OtherLength(0),
        Plays::OtherLength(u64::MAX),
    ] {
        assert_eq!(meet(plays), failed_for("corrupt"), "{plays:?}");
    }
    for plays in [Plays::Breaks, Plays::Garbage] {
        assert_eq!(meet(plays), failed_for("broken"), "{plays:?}");
    }
}

#[test]
fn a_peer_that_is_slow_is_given_up() {
    for plays in [Plays::Silent, Plays::Trickles] {
        assert_eq!(meet(plays), failed_for("slow"), "{plays:?}");
    }
}

#[test]
fn a_peer_that_has_nothing_or_no_time_is_passed_over_and_asked_again_another_time() {
    assert_eq!(meet(Plays::NotFound), failed_for("not_found"));
    assert_eq!(meet(Plays::Busy), failed_for("busy"));
}

#[test]
fn a_file_that_was_damaged_on_the_peer_s_disk_is_not_used_and_the_adapter_is_not_at_fault() {
    let counts = counted(FETCHES, async {
        let cluster = Cluster::new();
        let (right, damaged) = (content(1), content(2));
        let lender = cluster.lender("lender", &[(generation(&right), &damaged)]).await;
        let asker = cluster.asker(CALM, &["lender"], &[("lender", lender.address)]).await;
        asker.gets(&right).await;
    });
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), failed_for("corrupt"));
}

#[test]
fn a_peer_that_is_gone_costs_one_fetch_some_time_and_the_next_ones_none() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let counts = counted(FETCHES, async {
        let cluster = Cluster::new();
        let asker = cluster.asker(HASTY, &["gone"], &[("gone", nobody)]).await;
        asker.gets(&content(1)).await;
        assert!(!asker.peers.may_be_asked());
        asker.gets(&content(2)).await;
        assert_eq!(asker.router.asked(), 2);
    });
    let slow_once = [("_failures_total peer slow".to_owned(), 1), ("es_total router".to_owned(), 2)];
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), slow_once);
}

#[test]
fn the_second_peer_is_asked_where_the_first_fails() {
    let counts = counted(FETCHES, async {
        let cluster = Cluster::new();
        let wanted = content(SEED);
        let lender = cluster.lender("lender", &[(generation(&wanted), &wanted)]).await;
        let known = [("liar", cluster.liar("liar", Plays::OtherBytes)), ("lender", lender.address)];
        let asker = cluster.asker(CALM, &["liar", "lender"], &known).await;
        asker.gets(&wanted).await;
        assert_eq!(asker.router.asked(), 0);
    });
    let both = [("_failures_total peer corrupt".to_owned(), 1), ("es_total peer".to_owned(), 1)];
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), both);
}

#[tokio::test]
async fn nobody_is_dialled_whom_the_configuration_does_not_know_or_who_is_somebody_else() {
    let cluster = Cluster::new();
    let wanted = content(1);
    let lender = cluster.lender("lender", &[(generation(&wanted), &wanted)]).await;
    let stranger = cluster.asker(CALM, &["lender"], &[("other", lender.address)]).await;
    stranger.gets(&wanted).await;
    assert_eq!(stranger.router.asked(), 1);
    // Whoever has taken the place of another has another certificate.
    let misled = cluster.asker(CALM, &["other"], &[("other", lender.address)]).await;
    misled.gets(&wanted).await;
    assert_eq!((misled.router.asked(), misled.peers.may_be_asked()), (1, false));
}

#[tokio::test]
async fn a_name_that_is_said_twice_is_asked_once() {
    let cluster = Cluster::new();
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let asker = cluster.asker(CALM, &[], &[("a", nobody)]).await;
    let hint = shoal_common::wire::blob::Nearer { len: 1, peers: vec![name("a"), name("a"), name("asker")] };
    assert_eq!(asker.peers.sources(hint).len(), 1);
}
