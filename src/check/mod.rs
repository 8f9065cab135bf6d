//! `shoal check`: shows who would host what, and what the models take of memory ([`memory`]); [`perplexity`] is `--ppl`.
//! Called by `main`; reads the model files as a worker does, and starts nothing.

mod memory;
pub(crate) mod perplexity;

use std::fmt::{self, Write};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use shoal_common::config::{Config, ModelConfig, WorkerConfig};
use shoal_worker::weights::WeightsError;

/// Why a file that a model names cannot hold one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error("model {model}: cannot read {}", path.display())]
    Unreadable { model: String, path: PathBuf, source: io::Error },
    #[error("model {model}: {} is no GGUF file; give a GGUF file or a Hugging Face directory", .path.display())]
    NotGguf { model: String, path: PathBuf },
    #[error("model {model} cannot be used")]
    Unusable { model: String, source: WeightsError },
    #[error("model {model}: {} has no {missing}; a Hugging Face directory has config.json and *.safetensors", .path.display())]
    NotDirectory { model: String, path: PathBuf, missing: &'static str },
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

/// The plan as a table, and what is wrong with the model files.
pub(crate) fn plan(config: &Config) -> (String, Vec<CheckError>) {
    let mut faults = Vec::new();
    let mut table = String::new();
    let mut line = |what: &str, text: String| {
        writeln!(table, "{what:<8} {text}").expect("a String takes all that is written to it");
    };
    let pki = config.cluster.pki.as_ref().map_or_else(
        || "no certificates: `shoal dev` only".to_owned(),
        |dir| format!("certificates in {}", dir.display()),
    );
    line("cluster", format!("{}: {pki}", config.cluster.name));
    let router = &config.router;
    line(
        "router",
        format!("http://{}, workers dial {}, data in {}", router.listen, router.quic, router.data_dir.display()),
    );
    for model in &config.models {
        match weights(model) {
            Ok(weights) => line("model", format!("{}: {weights}{}", model.name, hosts(config, model))),
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        }
        match memory::lines(config, model) {
            None => {}
            Some(Ok(lines)) => lines.into_iter().for_each(|text| line("", text)),
            Some(Err(source)) => faults.push(CheckError::Unusable { model: model.name.to_string(), source }),
        }
    }
    for worker in &config.workers {
        line("worker", format!("{}: hosts {}, {}", worker.name, worker.model, sizes(worker)));
    }
    (table, faults)
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

    use super::*;

    fn plan_of(path: &Path) -> (String, Vec<CheckError>) {
        let model = ModelFlag { name: Some("m".to_owned()), source: ModelFlagSource::Path(path.to_owned()) };
        let overrides = Overrides { scope: Scope::Dev, model: Some(model), workers: Some(2), ..Overrides::default() };
        plan(&load(None, &overrides).expect("nothing is wrong"))
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
}
