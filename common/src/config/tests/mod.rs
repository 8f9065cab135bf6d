//! The promises of the configuration: what runs, who wins, and what the report of the faults says, word by word.

mod peering;
mod replicas;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn variables(pairs: &[(&str, &str)]) -> source::Variables {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn home() -> source::Variables {
    variables(&[("HOME", "/home/user")])
}

/// Loads `text` as a file named `cluster.toml` in a directory of its own; paths in faults begin at that directory.
fn load_text(text: &str, overrides: &Overrides, variables: &source::Variables) -> Result<Config, String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("cluster.toml");
    std::fs::write(&path, text).expect("the file is written");
    let in_directory = format!("{}/", directory.path().display());
    load_with(Some(&path), overrides, variables).map_err(|error| error.to_string().replace(&in_directory, ""))
}

fn scope(scope: Scope) -> Overrides {
    Overrides { scope, ..Overrides::default() }
}

/// What a path alone means.
fn files(path: &Path) -> ModelSource {
    ModelSource::Files { path: path.to_owned(), engine: Engine::Cpu(Quant::Q8_0) }
}

const SCRIPTED: &str = "[[model]]\nname = \"m\"\nengine = \"scripted\"\n";

#[test]
fn nothing_but_a_model_path_runs() {
    let model = tempfile::Builder::new().suffix(".gguf").tempfile().expect("a file");
    let source = ModelFlagSource::Path(model.path().to_owned());
    let overrides =
        Overrides { scope: Scope::Dev, model: Some(ModelFlag { name: None, source }), ..Overrides::default() };
    let config = load_with(None, &overrides, &home()).expect("nothing is wrong");
    assert_eq!(config.router.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.router.data_dir, Path::new("/home/user/.local/share/shoal"));
    assert_eq!(config.models[0].source, files(model.path()));
    let [worker] = config.workers.as_slice() else { panic!("{} workers", config.workers.len()) };
    assert_eq!((worker.slots, worker.groups, worker.step_tokens), (32, 128, 256));
    assert_eq!(worker.model, config.models[0].name);
    assert_eq!((config.limits, config.cluster.timers), (Limits::default(), Timers::default()));
}

#[test]
fn a_router_does_not_promise_what_every_worker_refuses() {
    for (limit, most) in [("candidates", 64), ("logprobs", 20), ("logit_bias", 4096)] {
        let load =
            |value| load_text(&format!("{SCRIPTED}[limits]\n{limit} = {value}\n"), &Overrides::default(), &home());
        load(most).expect("it is within what workers take");
        let faults = load(most + 1).expect_err("workers would refuse such groups");
        assert!(faults.contains(limit), "{faults}");
    }
}

#[test]
fn the_example_file_has_no_fault() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster.toml");
    for scope in [Scope::Whole, Scope::Dev] {
        let overrides = Overrides { scope, ..Overrides::default() };
        let config = load_with(Some(&example), &overrides, &home()).expect("the example runs as it stands");
        assert!(!config.workers.is_empty());
    }
}

#[test]
fn the_example_file_shows_the_real_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster.toml");
    let shown = load_with(Some(&example), &Overrides::default(), &home()).expect("the example runs as it stands");
    let default = load_text(SCRIPTED, &Overrides::default(), &home()).expect("nothing is wrong");
    assert_eq!((shown.limits, shown.api), (default.limits, default.api));
    assert_eq!(shown.cluster.timers, default.cluster.timers);
    assert_eq!((shown.router.listen, shown.router.quic), (default.router.listen, default.router.quic));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = format!("[router]\nlisten = \"127.0.0.1:1\"\nquic = \"127.0.0.1:1\"\ndata_dir = \"/1\"\n{SCRIPTED}");
    let environment = variables(&[
        ("SHOAL__ROUTER__LISTEN", "127.0.0.1:2"),
        ("SHOAL__ROUTER__QUIC", "127.0.0.1:2"),
        ("SHOAL__CLUSTER__TIMERS__IDLE_MS", "9000"),
        ("SHOAL_CONFIG", "not ours"),
    ]);
    let overrides = Overrides { listen: Some("127.0.0.1:3".to_owned()), ..Overrides::default() };
    let config = load_text(&file, &overrides, &environment).expect("nothing is wrong");
    assert_eq!((config.router.listen.port(), config.router.quic.port()), (3, 2));
    assert_eq!(config.router.data_dir, Path::new("/1"));
    assert_eq!(config.cluster.timers.idle, Duration::from_secs(9));
}

#[test]
fn no_limit_can_be_set_beyond_what_a_worker_takes() {
    for (key, most) in [("candidates", 64), ("logprobs", 20), ("logit_bias", 4096)] {
        let overrides = Overrides { scope: Scope::Dev, ..Overrides::default() };
        let load = |value: i32| load_text(&format!("{SCRIPTED}[limits]\n{key} = {value}\n"), &overrides, &home());
        load(most).expect("what a worker takes can be configured");
        let fault = load(most + 1).expect_err("a worker would refuse it");
        assert!(fault.contains(&format!("limits.{key}")) && fault.contains(&format!("to {most}")), "{fault}");
    }
}

#[test]
fn a_model_flag_replaces_the_models_and_workers_of_the_file() {
    let file = format!("{SCRIPTED}[[worker]]\nname = \"old\"\n");
    let model = Some(ModelFlag { name: Some("new".to_owned()), source: ModelFlagSource::Scripted });
    let overrides = Overrides { scope: Scope::Dev, model, workers: Some(3), slots: Some(7), ..Overrides::default() };
    let config = load_text(&file, &overrides, &home()).expect("nothing is wrong");
    let names: Vec<_> = config.workers.iter().map(|worker| (worker.name.as_str(), worker.slots)).collect();
    assert_eq!(names, [("worker-1", 7), ("worker-2", 7), ("worker-3", 7)]);
    assert_eq!(config.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["new"]);
}

#[test]
fn paths_of_a_file_begin_at_the_file() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("weights")).expect("a directory");
    let file = directory.path().join("cluster.toml");
    std::fs::write(&file, "router.data_dir = \"~/data\"\n[[model]]\nname = \"m\"\npath = \"weights\"\n")
        .expect("written");
    let config = load_with(Some(&file), &Overrides::default(), &home()).expect("nothing is wrong");
    assert_eq!(config.models[0].source, files(&directory.path().join("weights")));
    assert_eq!(config.router.data_dir, Path::new("/home/user/data"));
}

#[test]
fn a_machine_needs_only_the_model_files_of_its_own_part() {
    let file = "cluster.pki = \".\"\n[[model]]\nname = \"here\"\npath = \".\"\n[[model]]\nname = \"elsewhere\"\npath = \
                \"missing\"\n[[worker]]\nname = \"a\"\nmodel = \"here\"\n[[worker]]\nname = \"b\"\nmodel = \"elsewhere\"\n";
    for part in [Scope::Router, Scope::Worker("a".to_owned())] {
        load_text(file, &scope(part), &home()).expect("the missing file is not this part's");
    }
    for part in [Scope::Whole, Scope::Worker("b".to_owned())] {
        let report = load_text(file, &scope(part), &home()).expect_err("the missing file is this part's");
        assert!(report.contains("model[1].path"), "{report}");
    }
}

#[test]
fn a_worker_keeps_its_adapters_in_a_directory_of_its_own() {
    let file = format!(
        "router.data_dir = \"/data\"\n{SCRIPTED}[[worker]]\nname = \"org/b\"\n[[worker]]\nname = \"a..b\"\n\
         [[worker]]\nname = \"c\"\ndata_dir = \"~/c\"\nadapter_slots = 0\nadapter_bytes = 7\nadapter_disk_bytes = 9\n"
    );
    let config = load_text(&file, &Overrides::default(), &home()).expect("nothing is wrong");
    let directories: Vec<_> = config.workers.iter().map(|worker| worker.data_dir.to_str().expect("text")).collect();
    assert_eq!(directories, ["/data/worker-org~b", "/data/worker-a..b", "/home/user/c"]);
    let sizes = |at: usize| {
        let worker: &WorkerConfig = &config.workers[at];
        (worker.adapter_slots, worker.adapter_bytes, worker.adapter_disk_bytes)
    };
    assert_eq!([sizes(0), sizes(2)], [(128, None, 8 << 30), (0, Some(7), 9)]);
}

#[test]
fn hosts_say_where_each_part_runs_and_without_them_it_is_here() {
    let worker = |name: &str, host: &str| format!("[[worker]]\nname = \"{name}\"\n{host}\n");
    let file = format!(
        "[cluster]\nname = \"eu/reef\"\n[router]\nhost = \"ops@head-1.lan\"\nquic = \"10.0.0.1:8443\"\n{SCRIPTED}{}{}{}",
        worker("a", "host = \"gpu_1\""),
        worker("b", "host = \"localhost\""),
        worker("c", "")
    );
    let hosts = load_text(&file, &scope(Scope::Plan), &home()).expect("nothing is wrong").hosts;
    let all: Vec<_> = [&hosts.router].into_iter().chain(&hosts.workers).map(Host::to_string).collect();
    assert_eq!(all, ["ops@head-1.lan", "gpu_1", "this machine", "this machine"]);
    assert_eq!(hosts.dir, "~/.local/share/shoal/cluster-eu%2Freef");
    let plain = load_text(SCRIPTED, &Overrides::default(), &home()).expect("nothing is wrong").hosts;
    assert_eq!((plain.dir.as_str(), plain.router), ("~/.local/share/shoal/cluster-shoal", Host::Here));
}

#[test]
fn a_host_or_a_directory_that_a_shell_could_take_for_something_else_is_refused() {
    for host in
        ["-oProxyCommand=x", "a b", "a;b", "a$(b)", "@a", "a@", "u@-x", "a@b@c", "", "[::1]:22", "a\\nb", "a'b", "ü"]
    {
        let file = format!("[router]\nhost = \"{host}\"\n{SCRIPTED}");
        let report = load_text(&file, &scope(Scope::Plan), &home()).expect_err(host);
        assert!(report.contains("router.host\n    ") && report.contains("no host to reach by ssh"), "{report}");
    }
    for dir in ["relative", "~", "/", "~user/x", "/a$b", "/a'b", "/a\\nb", "/a`b`", "//"] {
        let file = format!("[cluster]\nremote_dir = \"{dir}\"\n{SCRIPTED}");
        let report = load_text(&file, &scope(Scope::Plan), &home()).expect_err(dir);
        assert!(report.contains("cluster.remote_dir"), "{report}");
    }
    let file = format!("[cluster]\nremote_dir = \"~/with space/x/\"\n{SCRIPTED}");
    assert_eq!(load_text(&file, &scope(Scope::Plan), &home()).expect("it is good").hosts.dir, "~/with space/x");
}

#[test]
fn a_worker_on_another_host_must_be_able_to_dial_the_router() {
    let file = format!("{SCRIPTED}[[worker]]\nname = \"w\"\nhost = \"gpu1\"\n");
    let report = load_text(&file, &scope(Scope::Plan), &home()).expect_err("nobody dials another machine's loopback");
    assert!(report.contains("worker[0].host") && report.contains("127.0.0.1:8443"), "{report}");
    for good in [format!("{file}routers = [\"head:1\"]\n"), format!("router.host = \"gpu1\"\n{file}")] {
        load_text(&good, &scope(Scope::Plan), &home()).expect("it can");
    }
}

#[test]
fn model_files_that_only_other_hosts_need_are_not_looked_for_here() {
    let model = "router.quic = \"10.0.0.1:1\"\n[[model]]\nname = \"m\"\npath = \"missing\"\n";
    let elsewhere = format!("{model}[[worker]]\nname = \"a\"\nhost = \"gpu1\"\n");
    load_text(&elsewhere, &Overrides::default(), &home()).expect("it is on gpu1");
    for needed in [format!("{elsewhere}[[worker]]\nname = \"b\"\n"), model.to_owned()] {
        load_text(&needed, &Overrides::default(), &home()).expect_err("it is needed here");
    }
    load_text(model, &scope(Scope::Plan), &home()).expect("a plan looks for no file");
}

#[test]
fn a_model_is_named_after_its_file_directory_or_repository() {
    let cases = [
        ("/models/SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M.Q4_1"),
        ("/models/My Model v1.5", "My-Model-v1.5"),
        ("/hub/models--org--name/snapshots/0123abc", "org/name"),
        ("/hub/models--org--name/snapshots/0123abc/x.GGUF", "x"),
        ("/models/._-", "model"),
        ("/", "model"),
    ];
    for (path, name) in cases {
        assert_eq!(source::model_name(&PathBuf::from(path)), name, "{path}");
        Name::new(name).expect("it is a name");
    }
}

#[test]
fn an_adapter_belongs_to_the_model_it_names_or_to_the_only_one() {
    let adapter = "[[adapter]]\nname = \"a\"\npath = \"adapters/a\"\npin = true\n";
    let load = |text: &str| load_text(text, &Overrides::default(), &home());
    let config = load(&format!("{SCRIPTED}{adapter}")).expect("nothing is wrong");
    let [only] = config.adapters.as_slice() else { panic!("{:?}", config.adapters) };
    assert_eq!((only.name.as_str(), only.model.as_ref().map(Name::as_str)), ("a", Some("m")));
    assert!(only.path.ends_with("adapters/a") && only.pinning == Pinning::Pinned, "{only:?}");
    let other = "[[model]]\nname = \"other\"\nengine = \"scripted\"\n";
    let faults = load(&format!("{SCRIPTED}{other}{adapter}")).expect_err("which of the two is not said");
    assert!(faults.contains("adapter[0].model"), "{faults}");
    let faults = load(&format!("{SCRIPTED}{adapter}model = \"mm\"\n")).expect_err("there is no such model");
    assert!(faults.contains("did you mean \"m\"?"), "{faults}");
    // A router's file may leave the models to the workers.
    assert!(load(adapter).expect("nothing is wrong").adapters[0].model.is_none());
}

#[test]
fn an_adapter_is_not_called_like_a_model_and_needs_a_path() {
    let report = load_text(&format!("{SCRIPTED}[[adapter]]\nname = \"m\"\n"), &Overrides::default(), &home());
    let faults = report.expect_err("two things are wrong");
    assert!(faults.contains("adapter[0].name\n    is the name of a model"), "{faults}");
    assert!(faults.contains("adapter[0].path\n    is missing"), "{faults}");
}

#[test]
fn a_watched_directory_must_be_there_where_a_router_runs() {
    let file = format!("cluster.pki = \".\"\nrouter.adapters = \"none\"\n{SCRIPTED}[[worker]]\nname = \"w\"\n");
    let faults = load_text(&file, &scope(Scope::Router), &home()).expect_err("there is no such directory");
    assert!(faults.contains("router.adapters\n    there is no directory"), "{faults}");
    load_text(&file, &scope(Scope::Worker("w".to_owned())), &home()).expect("a worker watches nothing");
    let directory = tempfile::tempdir().expect("a directory");
    let overrides = Overrides { adapters: Some(directory.path().to_owned()), ..scope(Scope::Router) };
    let config = load_text(&file, &overrides, &home()).expect("the flag names one that is there");
    assert_eq!(config.router.adapters.as_deref(), Some(directory.path()));
}

#[test]
fn paths_that_requests_may_name_begin_at_the_file() {
    let file = format!("[router]\nadapter_paths = [\"here\", \"/there\", 7, \"\"]\n{SCRIPTED}");
    let faults = load_text(&file, &Overrides::default(), &home()).expect_err("two are no paths");
    assert!(faults.contains("adapter_paths[2]") && faults.contains("adapter_paths[3]"), "{faults}");
    let good = file.replace(", 7, \"\"", "");
    let paths = load_text(&good, &Overrides::default(), &home()).expect("nothing is wrong").router.adapter_paths;
    assert!(paths[0].is_absolute() && paths[0].ends_with("here"), "{paths:?}");
    assert_eq!(paths[1], Path::new("/there"));
}

#[test]
fn every_fault_is_reported_together() {
    let file = r#"
        [cluster]
        name = "two words"
        timers = { idle_ms = 300, keepalive_ms = 100 }

        [ruoter]
        listen = "127.0.0.1:8080"

        [router]
        listen = "localhost:8080"
        quic = "0.0.0.0:8443"
        insecure = "no"
        prompt_log = "sometimes"

        [[model]]
        name = "smol"
        path = "smol.gguf"
        step_ms = 3

        [[model]]
        path = ""

        [[model]]
        name = "smol"
        engine = "scripted"
        salt = -1

        [[worker]]
        name = "a"
        model = "smoll"
        slots = 0
        routers = ["router", "router:8443", 7]

        [[worker]]
        name = "a"
        model = "nothing like it"
        threads = 2.5

        [limits]
        body = "4 MiB"
        prompts = 0
        deadline_ms = 0

        [api]
        usage_chunk = true
    "#;
    let environment = variables(&[
        ("SHOAL__LIMITS__WORK", "a lot"),
        ("SHOAL__ROUTER__COLOUR", "red"),
        ("SHOAL__WORKER__0__SLOTS", "3"),
    ]);
    let overrides = Overrides { threads: Some(0), ..Overrides::default() };
    insta::assert_snapshot!(load_text(file, &overrides, &environment).expect_err("much is wrong"));
}

#[test]
fn a_file_that_is_no_toml_is_shown_where_it_breaks() {
    let report = load_text("[router]\nlisten = 127.0.0.1:8080\n", &Overrides::default(), &home());
    insta::assert_snapshot!(report.expect_err("an address needs quotes"));
}

#[test]
fn a_file_that_is_not_there_is_one_fault() {
    let report = load_with(Some(Path::new("no/such/cluster.toml")), &scope(Scope::Router), &home());
    insta::assert_snapshot!(report.expect_err("there is no file"));
}

#[test]
fn dev_without_a_model_says_how_to_get_one() {
    insta::assert_snapshot!(load_with(None, &scope(Scope::Dev), &home()).expect_err("there is no model"));
}

#[test]
fn a_public_address_needs_a_decision() {
    let overrides = Overrides { listen: Some("0.0.0.0:8080".to_owned()), ..Overrides::default() };
    let report = load_text(SCRIPTED, &overrides, &home());
    insta::assert_snapshot!(report.expect_err("it is reachable from other machines"));
    let decided = Overrides { exposure: Some(Exposure::Insecure), ..overrides };
    let config = load_text(SCRIPTED, &decided, &home()).expect("the operator decided");
    assert_eq!(config.router.exposure, Exposure::Insecure);
}

#[test]
fn a_worker_that_the_file_does_not_name_is_not_made_up() {
    let file = format!("cluster.pki = \".\"\n{SCRIPTED}[[worker]]\nname = \"gpu-1\"\n");
    let report = load_text(&file, &scope(Scope::Worker("gpu-2".to_owned())), &home());
    insta::assert_snapshot!(report.expect_err("there is no gpu-2"));
}

#[test]
fn a_role_without_certificates_says_how_to_make_them() {
    insta::assert_snapshot!(load_text("", &scope(Scope::Router), &home()).expect_err("there are no certificates"));
}

#[test]
fn a_worker_serves_its_metrics_where_it_is_told_to_and_by_default_nowhere() {
    let load = |setting: &str| {
        load_text(&format!("{SCRIPTED}[[worker]]\nname = \"a\"\n{setting}"), &scope(Scope::Plan), &home())
    };
    assert_eq!(load("").expect("nothing is wrong").workers[0].metrics, None);
    let config = load("metrics = \"127.0.0.1:9100\"").expect("nothing is wrong");
    assert_eq!(config.workers[0].metrics, Some("127.0.0.1:9100".parse().expect("an address")));
    let fault = load("metrics = true").expect_err("no address");
    assert!(fault.contains("worker[0].metrics") && fault.contains("is true, not text"), "{fault}");
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_strange_to_report(text in ".{0,200}") {
        let _ = load_text(&text, &Overrides::default(), &home());
    }

    #[test]
    fn no_value_is_too_strange_to_report(
        section in "cluster|router|worker|replica|replica.stages|model|adapter|limits|api|cluster.timers",
        key in "name|zone|peer_listen|peer_address|metrics|listen|slots|routers|path|engine|body|usage_chunk|timers|pki|pin|adapter_paths|stages|layers|stage_listen",
        value in "-?[0-9]{1,25}|\"[a-z/:0-9.]{0,9}\"|[0-9]{1,400}\\.[0-9]|true|nan|\\[\\]|\\[\\[1\\],\\{\\}\\]|\\{a=1\\}|1979-05-27",
        twice: bool,
    ) {
        let header = if twice { format!("[[{section}]]") } else { format!("[{section}]") };
        let _ = load_text(&format!("{header}\n{key} = {value}\n"), &scope(Scope::Dev), &home());
    }
}
