//! The promises of `[[replica]]`: what is a stage of what, what is dialled, and what is said of faults.

use super::*;
use crate::ids::LayerRange;

const FILES: &str = "[[model]]\nname = \"m\"\npath = \".\"\n";

fn workers(names: &[&str]) -> String {
    let worker = |(at, name): (usize, &&str)| {
        format!("[[worker]]\nname = \"{name}\"\nstage_listen = \"127.0.0.1:{}\"\n", 8444 + at)
    };
    names.iter().enumerate().map(worker).collect()
}

/// A file of those workers and one replica of theirs.
fn file(names: &[&str], stages: &str) -> String {
    format!("{FILES}{}[[replica]]\nstages = [{stages}]\n", workers(names))
}

fn faults_of(text: &str) -> String {
    load_text(text, &scope(Scope::Plan), &home()).expect_err("something is wrong")
}

#[test]
fn the_first_stage_is_the_head_and_the_others_are_dialled_where_they_listen() {
    let stages = "{ worker = \"b\", layers = [0, 3] }, { worker = \"a\", layers = [3, 4] }, { worker = \"d\", layers = [4, \
                  9], address = \"d.lan:9\" }";
    let config =
        load_text(&file(&["a", "b", "c", "d"], stages), &scope(Scope::Plan), &home()).expect("nothing is wrong");
    let [replica] = &config.replicas[..] else { panic!("{:?}", config.replicas) };
    assert_eq!((replica.name.as_str(), replica.model.as_str(), replica.head().as_str()), ("b", "m", "b"));
    let addresses: Vec<_> = replica.stages.iter().map(|stage| stage.address.as_deref()).collect();
    assert_eq!(addresses, [None, Some("127.0.0.1:8444"), Some("d.lan:9")]);
    assert_eq!(replica.stages[1].layers, Some(LayerRange { begin: 3, end: 4 }));
    let place = |worker: &str| config.stage_of(&Name::new(worker).expect("a name")).map(|(_, at)| at);
    assert_eq!(["a", "b", "c", "d"].map(place), [Some(1), Some(0), None, Some(2)]);
}

#[test]
fn layers_are_complete_and_in_order() {
    for (layers, key, reason) in [
        (["[1, 2]", "[2, 4]"], "replica[0].stages[0].layers", "[1, 2] leaves out layers: layer 0 is next"),
        (["[0, 2]", "[3, 4]"], "replica[0].stages[1].layers", "[3, 4] leaves out layers: layer 2 is next"),
        (["[0, 2]", "[1, 4]"], "replica[0].stages[1].layers", "[1, 4] overlaps with the stage before: layer 2 is next"),
        (["[0, 2]", "[2, 2]"], "replica[0].stages[1].layers", "[2, 2] are no layers"),
        (["[0, 2]", "[2, 1025]"], "replica[0].stages[1].layers", "[2, 1025] are no layers"),
        (["[0, 2]", "[-1, 4]"], "replica[0].stages[1].layers", "[-1, 4] are no layers"),
        (["[0, 2]", "[2]"], "replica[0].stages[1].layers", "[2] are no layers"),
        (["[0, 2]", "4"], "replica[0].stages[1].layers", "is 4, not a list"),
    ] {
        let stages =
            format!("{{ worker = \"a\", layers = {} }}, {{ worker = \"b\", layers = {} }}", layers[0], layers[1]);
        let faults = faults_of(&file(&["a", "b"], &stages));
        assert!(faults.contains(&format!("{key}\n    {reason}")), "{faults}");
    }
}

#[test]
fn every_fault_of_a_replica_is_told_with_its_place() {
    let good = "{ worker = \"a\", layers = [0, 1] }, { worker = \"b\", layers = [1, 2] }";
    let second = format!("{}[[replica]]\nstages = [{{ worker = \"b\" }}]\n", file(&["a", "b"], good));
    let other = format!("{}[[model]]\nname = \"n\"\npath = \".\"\n", file(&["a", "b"], good));
    let no_listen = file(&["a", "b"], good).replace("stage_listen = \"127.0.0.1:8445\"\n", "");
    let elsewhere =
        file(&["a", "b"], good).replace("name = \"b\"\n", "name = \"b\"\nhost = \"gpu1\"\nrouters = [\"head:1\"]\n");
    let scripted = file(&["a", "b"], good).replace("path = \".\"", "engine = \"scripted\"");
    let twice = format!("{}[[replica]]\nname = \"a\"\nstages = [{{ worker = \"c\" }}]\n", file(&["a", "b", "c"], good));
    for (text, told) in [
        (file(&["a", "b"], ""), "replica[0].stages\n    a replica needs workers"),
        (
            file(&["a", "beta"], &good.replace("\"b\"", "\"betta\"")),
            "stages[1].worker\n    there is no worker \"betta\"\n    -> did you mean \"beta\"?",
        ),
        (file(&["a", "b"], "{ layers = [0, 1] }"), "stages[0].worker\n    is missing"),
        (file(&["a", "b"], "{ worker = \"a\" }, { worker = \"a\" }"), "stages[1].worker\n    \"a\" is a stage already"),
        (second, "replica[1].stages[0].worker\n    \"b\" is a stage already"),
        (
            other
                .replace("name = \"b\"\n", "name = \"b\"\nmodel = \"n\"\n")
                .replace("name = \"a\"\n", "name = \"a\"\nmodel = \"m\"\n"),
            "replica[0].model\n    is \"m\", and worker \"b\" hosts \"n\"",
        ),
        (no_listen, "stages[1].worker\n    worker \"b\" has no stage_listen"),
        (
            file(&["a", "b"], good).replace("127.0.0.1:8445", "0.0.0.0:8445"),
            "stages[1].address\n    is missing, and stage_listen = 0.0.0.0:8445",
        ),
        (elsewhere, "stages[1].address\n    is missing, and stage_listen = 127.0.0.1:8445 of worker \"b\" on gpu1"),
        (file(&["a", "b"], &good.replacen(" }", ", address = \"x:1\" }", 1)), "stages[0].address\n    is of no use"),
        (
            file(&["a", "b"], &good.replace("2] }", "2], address = \"x\" }")),
            "stages[1].address\n    \"x\" is not host:port",
        ),
        (scripted, "replica[0].stages\n    the scripted test engine has no layers"),
        (twice, "replica[1].name\n    \"a\" is taken"),
        (file(&["a", "b"], &good.replace(", layers = [1, 2]", "")), "replica[0].stages\n    some stages have layers"),
        (
            file(&["a", "b"], "{ worker = \"a\" }, { worker = \"b\" }"),
            "stages[1].layers\n    are left out, and worker \"b\" does not say what memory it has",
        ),
        (
            file(&["a", "b"], &good.replace("layers = [1", "layer = [1")),
            "stages[1].layer\n    there is no such setting\n    -> did you mean `layers`?",
        ),
    ] {
        let faults = faults_of(&text);
        assert!(faults.contains(told), "{told}\n is not in\n{faults}");
    }
}

#[test]
fn layers_may_be_left_out_where_the_workers_say_what_they_have() {
    let text = file(&["a", "b"], "{ worker = \"a\" }, { worker = \"b\" }");
    let text = text.replace("stage_listen", "memory = 1000\nspeed = 3\nstage_listen");
    let config = load_text(&text, &scope(Scope::Plan), &home()).expect("nothing is wrong");
    assert!(config.replicas[0].stages.iter().all(|stage| stage.layers.is_none()));
    assert_eq!((config.workers[1].memory, config.workers[1].speed), (Some(1000), 3));
    load_text(&file(&["a"], "{ worker = \"a\" }"), &scope(Scope::Plan), &home()).expect("one stage has all layers");
}

#[test]
fn dev_mode_needs_no_addresses_and_flags_that_make_up_workers_take_the_replicas_away() {
    let good = "{ worker = \"a\", layers = [0, 1] }, { worker = \"b\", layers = [1, 2] }";
    let text = format!("{FILES}[[worker]]\nname = \"a\"\n[[worker]]\nname = \"b\"\n[[replica]]\nstages = [{good}]\n");
    let config = load_text(&text, &scope(Scope::Dev), &home()).expect("nothing is wrong");
    assert_eq!(config.replicas[0].stages[1].address, None);
    let overrides = Overrides { workers: Some(2), ..scope(Scope::Dev) };
    assert!(load_text(&text, &overrides, &home()).expect("nothing is wrong").replicas.is_empty());
}
