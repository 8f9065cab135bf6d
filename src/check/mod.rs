//! `shoal check`: shows who would host what, what the models take of memory ([`memory`]), how they are split
//! ([`replicas`]), and the [`adapters`]; [`perplexity`] is `--ppl`. Called by `main`; reads the files as router and worker do, and starts nothing.

mod adapters;
mod memory;
pub(crate) mod perplexity;
pub(crate) mod replicas;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use shoal_common::adapter::Geometry;
use shoal_common::config::{Config, Host, ModelConfig, ReplicaConfig, WorkerConfig};
use shoal_common::ids::Name;
use shoal_common::pki::{Identity, PkiError, Role};
use shoal_worker::weights::WeightsError;

use crate::cli::Part;
use crate::roles;
use adapters::AdapterFault;
use replicas::ReplicaFault;

/// Why a file that a model names cannot hold one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("model {model}: cannot read {}", path.display())]
    Unreadable { model: String, path: PathBuf, source: io::Error },
    #[error("model {model}: {} is no GGUF file; give a GGUF file or a Hugging Face directory", .path.display())]
    NotGguf { model: String, path: PathBuf },
    #[error("model {model} cannot be used")]
    Unusable { model: String, source: WeightsError },
    #[error("adapter {adapter} ({})", path.display())]
    Adapter { adapter: String, path: PathBuf, source: AdapterFault },
    #[error("model {model}: {} has no {missing}; a Hugging Face directory has config.json and *.safetensors", .path.display())]
    NotDirectory { model: String, path: PathBuf, missing: &'static str },
    #[error(transparent)]
    Replica(#[from] ReplicaFault),
    #[error(transparent)]
    Certificate(#[from] PkiError),
}

/// What a model's source is, from outside.
enum Weights {
    Gguf { bytes: u64 },
    Safetensors { files: usize, bytes: u64 },
    Scripted,
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf { bytes } => write!(f, "GGUF, {}", HumanBytes(*bytes)),
            Self::Safetensors { files, bytes } => write!(f, "safetensors, {files} files, {}", HumanBytes(*bytes)),
            Self::Scripted => f.write_str("scripted test engine"),
        }
    }
}

/// The plan of a part as a table, and what is wrong with its model files and its certificate.
pub(crate) fn plan(config: &Config, part: &Part) -> (String, Vec<CheckError>) {
    let mut plan = Plan::default();
    plan.cluster(config);
    match part {
        Part::Whole => {
            plan.router(config);
            config.models.iter().for_each(|model| plan.model(config, model));
            for (worker, host) in config.workers.iter().zip(&config.hosts.workers) {
                plan.worker(worker, host);
            }
            config.replicas.iter().for_each(|replica| plan.replica(config, replica));
            if config.hosts.router == Host::Here {
                plan.adapters(config);
            }
        }
        Part::Router => {
            plan.router(config);
            plan.certificate(config, &roles::router_name(), Role::Router);
            plan.adapters(config);
        }
        Part::Worker(name) => {
            let found = config.workers.iter().zip(&config.hosts.workers).find(|(worker, _)| worker.name == *name);
            if let Some((worker, host)) = found {
                config.model(&worker.model).into_iter().for_each(|model| plan.model(config, model));
                plan.worker(worker, host);
                config.stage_of(name).into_iter().for_each(|(replica, _)| plan.replica(config, replica));
                plan.certificate(config, name, Role::Worker);
            }
        }
    }
    (plan.table, plan.faults)
}

/// The table, and the faults found on the way.
#[derive(Default)]
struct Plan {
    table: String,
    faults: Vec<CheckError>,
    /// What adapters of the models that were read must fit.
    widths: BTreeMap<Name, Geometry>,
}

impl Plan {
    fn line(&mut self, what: &str, text: &str) {
        writeln!(self.table, "{what:<8} {text}").expect("a String takes all that is written to it");
    }

    fn cluster(&mut self, config: &Config) {
        let pki = config.cluster.pki.as_ref().map_or_else(
            || "no certificates: `shoal dev` only".to_owned(),
            |dir| format!("certificates in {}", dir.display()),
        );
        self.line("cluster", &format!("{}: {pki}", config.cluster.name));
    }

    fn router(&mut self, config: &Config) {
        let (router, host) = (&config.router, at(&config.hosts.router));
        let data = router.data_dir.display();
        let watched = adapters::watched(router.adapters.as_deref());
        let text = format!("{host}http://{}, workers dial {}, data in {data}{watched}", router.listen, router.quic);
        self.line("router", &text);
    }

    fn model(&mut self, config: &Config, model: &ModelConfig) {
        // Whether a file must be here was decided with the configuration: what is missing now is on other hosts.
        if let Some((path, _)) = model.files().filter(|(path, _)| !path.exists()) {
            let text = format!("{}: {}, not on this machine{}", model.name, path.display(), hosts(config, model));
            return self.line("model", &text);
        }
        match weights(model) {
            Ok(weights) => self.line("model", &format!("{}: {weights}{}", model.name, hosts(config, model))),
            Err(fault) => return self.faults.push(fault),
        }
        match memory::lines(config, model) {
            Ok((lines, geometry)) => {
                lines.iter().for_each(|text| self.line("", text));
                self.widths.insert(model.name.clone(), geometry);
            }
            Err(source) => self.faults.push(CheckError::Unusable { model: model.name.to_string(), source }),
        }
    }

    fn worker(&mut self, worker: &WorkerConfig, host: &Host) {
        self.line("worker", &format!("{}: {}hosts {}, {}", worker.name, at(host), worker.model, sizes(worker)));
    }

    fn replica(&mut self, config: &Config, replica: &ReplicaConfig) {
        match replicas::lines(config, replica) {
            Ok(lines) => {
                let first = ["replica"].into_iter().chain(std::iter::repeat(""));
                lines.iter().zip(first).for_each(|(text, what)| self.line(what, text));
            }
            Err(fault) => self.faults.push(fault.into()),
        }
    }

    fn adapters(&mut self, config: &Config) {
        let found = adapters::check(config, &self.widths);
        found.lines.iter().for_each(|text| self.line("adapter", text));
        let of_adapter = |(adapter, path, source)| CheckError::Adapter { adapter, path, source };
        self.faults.extend(found.faults.into_iter().map(of_adapter));
    }

    fn certificate(&mut self, config: &Config, name: &Name, role: Role) {
        let Some(dir) = &config.cluster.pki else { return };
        match Identity::load(dir, name, role) {
            Ok(identity) => self.line("", &format!("its certificate is good: {role} {name} of {}", identity.cluster())),
            Err(fault) => self.faults.push(fault.into()),
        }
    }
}

/// Where something runs, if that is not here.
fn at(host: &Host) -> String {
    match host {
        Host::Here => String::new(),
        Host::Ssh(_) => format!("on {host}, "),
    }
}

fn hosts(config: &Config, model: &ModelConfig) -> String {
    match config.workers.iter().filter(|worker| worker.model == model.name).count() {
        0 => "; no worker hosts it".to_owned(),
        1 => "; 1 worker".to_owned(),
        count => format!("; {count} workers"),
    }
}

fn sizes(worker: &WorkerConfig) -> String {
    let kv = match worker.kv_tokens {
        Some(tokens) => format!("KV for {tokens} tokens"),
        None => "KV as memory allows".to_owned(),
    };
    let threads = worker.threads.map_or_else(|| "a thread per core".to_owned(), |threads| format!("{threads} threads"));
    let adapters = match worker.adapter_slots {
        0 => "no adapters".to_owned(),
        slots => format!("{slots} adapters kept in {}", worker.data_dir.display()),
    };
    let routers = worker.routers.join(" ");
    format!("{} slots, {} groups, {kv}, {threads}, {adapters}, dials {routers}", worker.slots, worker.groups)
}

fn weights(model: &ModelConfig) -> Result<Weights, CheckError> {
    let Some((path, _)) = model.files() else { return Ok(Weights::Scripted) };
    let unreadable = |source| CheckError::Unreadable { model: model.name.to_string(), path: path.to_owned(), source };
    let metadata = path.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return directory(model, path, unreadable);
    }
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    match read {
        Ok(()) if &magic == b"GGUF" => Ok(Weights::Gguf { bytes: metadata.len() }),
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(unreadable(error)),
        _ => Err(CheckError::NotGguf { model: model.name.to_string(), path: path.to_owned() }),
    }
}

fn directory(
    model: &ModelConfig,
    path: &Path,
    unreadable: impl Fn(io::Error) -> CheckError,
) -> Result<Weights, CheckError> {
    let lacks = |missing| CheckError::NotDirectory { model: model.name.to_string(), path: path.to_owned(), missing };
    if !path.join("config.json").is_file() {
        return Err(lacks("config.json"));
    }
    let (mut files, mut bytes) = (0, 0);
    for entry in path.read_dir().map_err(&unreadable)? {
        let entry = entry.map_err(&unreadable)?.path();
        if entry.extension() == Some("safetensors".as_ref()) {
            files += 1;
            // In a cache the entries are links; what counts is what they lead to.
            bytes += entry.metadata().map_err(&unreadable)?.len();
        }
    }
    if files == 0 { Err(lacks("*.safetensors")) } else { Ok(Weights::Safetensors { files, bytes }) }
}

#[cfg(test)]
mod tests {
    use shoal_common::config::{ModelFlag, ModelFlagSource, Overrides, Scope, load};
    use shoal_common::pki::Authority;

    use super::*;

    fn plan_of(path: &Path) -> (String, Vec<CheckError>) {
        let model = ModelFlag { name: Some("m".to_owned()), source: ModelFlagSource::Path(path.to_owned()) };
        let overrides = Overrides { scope: Scope::Dev, model: Some(model), workers: Some(2), ..Overrides::default() };
        plan(&load(None, &overrides).expect("nothing is wrong"), &Part::Whole)
    }

    fn tiny(model: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/tiny")).join(model)
    }

    #[test]
    fn the_plan_says_who_hosts_what_and_what_it_takes() {
        let (plan, faults) = plan_of(&tiny("gguf/tiny-q8_0.gguf"));
        assert!(faults.is_empty(), "{faults:?}");
        assert!(plan.contains("model    m: GGUF, "), "{plan}");
        assert!(plan.contains("; 2 workers\n"), "{plan}");
        assert!(plan.contains("Q8_0 in 4 layers, context "), "{plan}");
        assert!(plan.contains("KV 512 B a token\n"), "{plan}");
        assert!(plan.contains("worker   worker-2: hosts m, 32 slots"), "{plan}");
    }

    /// A cluster of a worker here and one elsewhere, with certificates for the router and the first.
    fn cluster(dir: &Path) -> PathBuf {
        let file = dir.join("cluster.toml");
        let text = "cluster.pki = \"pki\"\nrouter.quic = \"10.0.0.1:8443\"\n[[model]]\nname = \"m\"\npath = \"there.gguf\"\n\
                    [[model]]\nname = \"s\"\nengine = \"scripted\"\n[[worker]]\nname = \"a\"\nmodel = \"s\"\n[[worker]]\nname = \
                    \"b\"\nmodel = \"m\"\nhost = \"gpu1\"\n";
        std::fs::write(&file, text).expect("the file");
        let (pki, name) = (dir.join("pki"), |text| Name::new(text).expect("a name"));
        let authority = Authority::create(&name("shoal")).expect("an authority");
        for (role, holder) in [(Role::Router, "router"), (Role::Worker, "a"), (Role::Router, "b")] {
            authority.issue(role, &name(holder)).and_then(|identity| identity.save(&pki)).expect("a certificate");
        }
        file
    }

    #[test]
    fn the_plan_of_a_cluster_says_who_runs_where_and_misses_no_file_of_another_host() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = load(Some(&cluster(dir.path())), &Overrides::default()).expect("nothing is wrong");
        let (plan, faults) = plan(&config, &Part::Whole);
        assert!(faults.is_empty(), "{faults:?}");
        assert!(plan.contains("there.gguf, not on this machine; 1 worker\n"), "{plan}");
        assert!(plan.contains("worker   b: on gpu1, hosts m") && plan.contains("worker   a: hosts s"), "{plan}");
    }

    #[test]
    fn a_part_is_checked_with_its_certificate_and_without_the_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = cluster(dir.path());
        let of = |part: Part, scope: Scope| {
            let config = load(Some(&file), &Overrides { scope, ..Overrides::default() }).expect("nothing is wrong");
            plan(&config, &part)
        };
        let name = |text| Name::new(text).expect("a name");
        let (plan, faults) = of(Part::Worker(name("a")), Scope::Worker("a".to_owned()));
        assert!(faults.is_empty() && plan.contains("its certificate is good: worker a of shoal\n"), "{plan}{faults:?}");
        assert!(!plan.contains("worker   b"), "{plan}");
        assert!(of(Part::Router, Scope::Router).1.is_empty());
        std::fs::write(dir.path().join("there.gguf"), b"GGUF").expect("the file");
        let faults = of(Part::Worker(name("b")), Scope::Worker("b".to_owned())).1;
        let [CheckError::Unusable { .. }, CheckError::Certificate(fault)] = &faults[..] else { panic!("{faults:?}") };
        assert!(matches!(fault, PkiError::Unusable { .. }), "it is a router's: {fault:?}");
    }

    #[test]
    fn a_model_that_no_worker_could_load_is_a_fault() {
        let dir = tempfile::tempdir().expect("a directory");
        let gguf = dir.path().join("m.gguf");
        std::fs::write(&gguf, b"GGUF\x03\0\0\0").expect("the file");
        assert!(matches!(plan_of(&gguf).1.as_slice(), [CheckError::Unusable { .. }]));
    }

    #[test]
    fn a_file_that_is_no_model_is_a_fault() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("m.gguf");
        for bytes in [b"".as_slice(), b"GG", b"PK\x03\x04 a zip"] {
            std::fs::write(&file, bytes).expect("the file");
            assert!(matches!(plan_of(&file).1.as_slice(), [CheckError::NotGguf { .. }]), "{bytes:?}");
        }
    }

    #[test]
    fn a_directory_is_a_model_once_it_has_config_and_weights() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, missing) in [("config.json", "config.json"), ("model.safetensors", "*.safetensors")] {
            let faults = plan_of(dir.path()).1;
            assert!(
                matches!(&faults[..], [CheckError::NotDirectory { missing: m, .. }] if *m == missing),
                "{faults:?}"
            );
            std::fs::write(dir.path().join(name), b"x").expect("the file");
        }
        assert!(matches!(plan_of(dir.path()).1.as_slice(), [CheckError::Unusable { .. }]));
        let (plan, faults) = plan_of(&tiny("base"));
        assert!(faults.is_empty(), "{faults:?}");
        assert!(plan.contains("safetensors, 1 files, "), "{plan}");
    }

    #[test]
    fn adapters_are_listed_and_what_is_wrong_with_one_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, golden) in [("good", "tiny/tiny-qv"), ("other", "adapters/upper"), ("m", "tiny/tiny-qv")] {
            let golden = tiny("..").join(golden);
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
            for file in ["adapter_config.json", "adapter_model.safetensors"] {
                std::fs::copy(golden.join(file), dir.path().join(name).join(file)).expect("a copy");
            }
        }
        std::fs::create_dir(dir.path().join("two words")).expect("a directory");
        let source = ModelFlagSource::Path(tiny("gguf/tiny-q8_0.gguf"));
        let model = Some(ModelFlag { name: Some("m".to_owned()), source });
        let adapters = Some(dir.path().to_owned());
        let overrides = Overrides { scope: Scope::Dev, model, adapters, ..Overrides::default() };
        let (plan, faults) = plan(&load(None, &overrides).expect("nothing is wrong"), &Part::Whole);
        assert!(plan.contains("adapter  good: for m, rank 4, 17.04 KiB\n"), "{plan}");
        let faults: Vec<String> = faults.into_iter().map(|fault| format!("{:#}", anyhow::Error::from(fault))).collect();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].contains("two words") && faults[0].contains("its name"), "{faults:?}");
        assert!(faults[1].starts_with("adapter m ") && faults[1].contains("name of a model"), "{faults:?}");
        assert!(faults[2].starts_with("adapter other ") && faults[2].contains("for another base model"), "{faults:?}");
    }
}
