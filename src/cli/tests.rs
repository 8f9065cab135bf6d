//! What can be said on the command line, and what cannot.

use std::path::Path;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;
use crate::bench;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_flags_of_dev_become_overrides() {
    let line = "shoal dev --model m.gguf --model-name m --listen 0.0.0.0:1 --quic 127.0.0.1:2 --insecure --workers 3 \
                --slots 4 --threads 5 --data-dir d --adapters a --config c.toml";
    let cli = parse(line).expect("a good line");
    let Command::Dev(dev) = &cli.command else { panic!("{:?}", cli.command) };
    let overrides = dev.overrides();
    let model = overrides.model.expect("a model");
    assert!(matches!(model.source, ModelFlagSource::Path(path) if path == Path::new("m.gguf")));
    assert_eq!(model.name.as_deref(), Some("m"));
    assert_eq!((overrides.scope, overrides.exposure), (Scope::Dev, Some(Exposure::Insecure)));
    assert_eq!((overrides.listen.as_deref(), overrides.quic.as_deref()), (Some("0.0.0.0:1"), Some("127.0.0.1:2")));
    assert_eq!((overrides.workers, overrides.slots, overrides.threads), (Some(3), Some(4), Some(5)));
    assert_eq!(overrides.data_dir.as_deref(), Some(Path::new("d")));
    assert_eq!(overrides.adapters.as_deref(), Some(Path::new("a")));
    assert_eq!(cli.global.config.as_deref(), Some(Path::new("c.toml")));
}

#[test]
fn a_flag_that_is_not_given_overrides_nothing() {
    let cli = parse("shoal router").expect("a good line");
    let Command::Router(router) = cli.command else { panic!("{:?}", cli.command) };
    let overrides = router.overrides();
    assert_eq!((overrides.listen, overrides.exposure, overrides.workers), (None, None, None));
    assert_eq!(router.name.as_str(), "router");
}

#[test]
fn the_flags_of_bench_become_an_order() {
    let order = |line: &str| match parse(line).expect("a good line").command {
        Command::Bench(bench) => bench.order(),
        other => panic!("{other:?}"),
    };
    let plain = order("shoal bench");
    assert_eq!((plain.url.as_str(), &plain.concurrency[..]), ("http://127.0.0.1:8080", &[1][..]));
    assert_eq!((plain.requests.max_tokens, plain.requests.models.len(), plain.runs), (128, 0, 3));
    assert_eq!(plain.mode, bench::Mode::ClosedLoop { requests: None });

    let line =
        "shoal bench --models a,b --concurrency 1,8 --extra {\"peft\":\"x\"} --prompt-ids --vocab 99 --arrive-long 7";
    let full = order(line);
    assert_eq!((full.requests.models.join("+"), &full.concurrency[..]), ("a+b".to_owned(), &[1, 8][..]));
    assert_eq!(full.requests.extra[0]["peft"], "x");
    assert_eq!(full.requests.prompt.material, bench::Material::Ids { vocab: 99 });
    assert_eq!((full.mode, full.requests.max_tokens), (bench::Mode::ArriveLong { tokens: 7 }, 512));
}

#[test]
fn a_part_is_checked_as_that_part_reads_the_file() {
    for (line, part, scope) in [
        ("shoal check", Part::Whole, Scope::Whole),
        ("shoal check --router", Part::Router, Scope::Router),
        ("shoal check --worker a", Part::Worker(Name::new("a").expect("a name")), Scope::Worker("a".to_owned())),
        ("shoal check --model m.gguf", Part::Whole, Scope::Dev),
    ] {
        let Command::Check(check) = parse(line).expect("a good line").command else { panic!("{line}") };
        assert_eq!((check.part(), check.overrides().scope), (part, scope), "{line}");
    }
}

#[test]
fn a_drain_waits_only_where_it_is_told_to() {
    let drain = |line: &str| match parse(line).expect("a good line").command {
        Command::Drain(drain) => (drain.order(), drain.wait().map(|wait| wait.as_secs())),
        other => panic!("{other:?}"),
    };
    use crate::operate::Order::{Drain, Undrain};
    assert_eq!(drain("shoal drain --worker a"), (Drain, None));
    assert_eq!(drain("shoal drain --worker a --wait"), (Drain, Some(600)));
    assert_eq!(drain("shoal drain --worker a --wait --within 5"), (Drain, Some(5)));
    assert_eq!(drain("shoal drain --worker a --undo"), (Undrain, None));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for line in [
        "shoal dev --model a --scripted",
        "shoal dev --scripted --workers 0",
        "shoal dev --scripted --workers 17",
        "shoal worker",
        "shoal router --name ../x",
        "shoal cert issue --dir d --role king --name n",
        "shoal pull",
        "shoal drain",
        "shoal drain --worker ../x",
        "shoal drain --worker a --undo --wait",
        "shoal drain --worker a --within 5",
        "shoal check --worker a --router",
        "shoal check --worker a --model m.gguf",
        "shoal bench --concurrency 0",
        "shoal bench --concurrency 1,,8",
        "shoal bench --model a --models b,c",
        "shoal bench --vocab 100",
        "shoal bench --prompt-ids",
        "shoal bench --extra [1]",
        "shoal bench --arrive-long 9 --requests 3",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in ["dev", "router", "worker", "check", "status", "drain", "plan", "cert", "pull", "bench"] {
        let help = parse(&format!("shoal {command} --help")).expect_err("help ends the command");
        assert_eq!(help.kind(), ErrorKind::DisplayHelp);
        assert!(help.to_string().contains(&format!("  shoal {command} ")), "{help}");
    }
}
