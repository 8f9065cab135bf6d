//! Some hundred seeds, and the promise that a seed is a run. In processes of their own: see `shoal_sim::play`.

use std::path::Path;
use std::process::{Command, Output};

/// Played by the test; `scripts/sim` plays any number.
const SEEDS: &str = "0..200";

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shoal-sim")).args(arguments).output().expect("it was built for this test")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn no_seed_breaks_a_promise() {
    let played = sim(&["--seeds", SEEDS]);
    assert!(played.status.success(), "{}", said(&played));
}

#[test]
fn a_seed_gives_the_same_log_in_every_process() {
    let dir = tempfile::tempdir().unwrap();
    for seed in ["3", "4", "5"] {
        let logs = ["first", "second"].map(|name| {
            let path = dir.path().join(name);
            sim(&["--seed", seed, "--debug", "--log", path.to_str().unwrap()]);
            std::fs::read_to_string(Path::new(&path)).unwrap()
        });
        assert!(logs[0].lines().count() > 100, "seed {seed} has next to no log");
        assert!(logs[0] == logs[1], "seed {seed} has two logs");
    }
}
