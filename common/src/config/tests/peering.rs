//! The promises of `zone`, `peer_listen` and `peer_address`: who is whose neighbour, and what is said of faults.

use super::*;

fn load_workers(workers: &str) -> Result<Config, String> {
    load_text(&format!("{SCRIPTED}{workers}"), &scope(Scope::Plan), &home())
}

#[test]
fn neighbours_are_the_others_of_the_zone_that_listen() {
    let config = load_workers(
        r#"
        [router]
        zone = "near"
        [[worker]]
        name = "a"
        zone = "far"
        peer_listen = "10.0.0.1:8445"
        [[worker]]
        name = "b"
        zone = "far"
        peer_listen = "0.0.0.0:8445"
        peer_address = "b.lan:9"
        [[worker]]
        name = "c"
        zone = "far"
        [[worker]]
        name = "d"
        zone = "near"
        peer_listen = "10.0.0.4:8445"
        [[worker]]
        name = "e"
        "#,
    )
    .expect("nothing is wrong");
    let neighbours = |name: &str| {
        let found = config.neighbours(&Name::new(name).expect("a name")).into_iter();
        found.map(|(name, address)| format!("{name} {address}")).collect::<Vec<_>>()
    };
    assert_eq!(neighbours("a"), ["b b.lan:9"]);
    assert_eq!(neighbours("b"), ["a 10.0.0.1:8445"]);
    assert_eq!(neighbours("c"), ["a 10.0.0.1:8445", "b b.lan:9"]);
    assert!(neighbours("d").is_empty() && neighbours("e").is_empty() && neighbours("nobody").is_empty());
    assert_eq!(config.router.zone.as_ref().map(ToString::to_string).as_deref(), Some("near"));
    assert_eq!(config.workers[4].peering, Peering::default(), "by default nobody listens");
}

#[test]
fn every_fault_of_peering_is_told_with_its_place() {
    for (settings, key, reason) in [
        ("zone = \"a b\"", "zone", "\"a b\" is no zone"),
        ("zone = 3", "zone", "is 3, not text"),
        ("peer_listen = \"127.0.0.1:1\"", "zone", "is missing, and only workers of the same zone use peer_listen"),
        ("zone = \"z\"\npeer_listen = \"here\"", "peer_listen", "\"here\" is not an address"),
        ("zone = \"z\"\npeer_listen = \"0.0.0.0:1\"", "peer_address", "is missing, and peer_listen = 0.0.0.0:1 is no"),
        (
            "zone = \"z\"\npeer_listen = \"127.0.0.1:0\"",
            "peer_address",
            "is missing, and peer_listen = 127.0.0.1:0 is no",
        ),
        ("peer_address = \"a:1\"", "peer_address", "is of no use: this worker has no peer_listen"),
        ("zone = \"z\"\npeer_listen = \"127.0.0.1:1\"\npeer_address = \"a\"", "peer_address", "\"a\" is not host:port"),
    ] {
        let faults = load_workers(&format!("[[worker]]\nname = \"w\"\n{settings}\n")).expect_err("something is wrong");
        assert!(faults.contains(&format!("worker[0].{key}\n    {reason}")), "{settings}: {faults}");
        assert_eq!(faults.matches("worker[0].").count(), 1, "{faults}");
    }
}
