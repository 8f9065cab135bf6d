//! Merges file, environment and flags into one tree of values, each remembering who said it. Called by [`super::load`];
//! knows how lists of workers and models are overridden, never what a value must be.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, Map, Value, ValueKind};

use super::fault::Place;
use super::report::Report;
use super::{Exposure, ModelFlag, ModelFlagSource, Overrides, Scope};

/// Longest configuration file in bytes; a cluster of thousands of workers fits.
const MAX_FILE: u64 = 1 << 20;

/// Environment variables, as a process or a test gives them.
pub(super) type Variables = Vec<(OsString, OsString)>;

/// The merged tree: flags over environment over file. Nothing where the file cannot be read or parsed: `report` says why,
/// and to check the rest would only report what the file may well say.
pub(super) fn merge(overrides: &Overrides, variables: &Variables, report: &mut Report) -> Option<Value> {
    let mut builder = config::Config::builder();
    if let Some(path) = report.file().map(Path::to_owned) {
        builder = builder.add_source(File::from_str(&read(&path, report)?, FileFormat::Toml));
    }
    let environment = Environment::with_prefix("SHOAL").separator("__");
    builder = builder.add_source(environment.source(Some(shoal_variables(variables, report))));
    for (key, flag, value) in scalar_flags(overrides, report) {
        builder = builder
            .set_override(key, Value::new(Some(&flag.to_owned()), value))
            .expect("the keys of flags are plain paths");
    }
    match builder.build() {
        Ok(merged) => {
            let mut root = merged.cache;
            override_lists(&mut root, overrides, report);
            Some(root)
        }
        Err(error) => {
            let place = report.file_place();
            report.add(place, "", parse_reason(&error), "correct it; the file is TOML");
            None
        }
    }
}

/// The parser's own message, with line and column, without the name that the heading has.
fn parse_reason(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    }
}

fn read(path: &Path, report: &mut Report) -> Option<String> {
    let mut text = String::new();
    let outcome = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match outcome {
        Err(error) => {
            let remedy = "name a file that exists and can be read as UTF-8 text: --config PATH";
            report.add(Place::File(path.to_owned()), "", format!("cannot be read: {error}"), remedy);
            None
        }
        Ok(_) if text.len() as u64 > MAX_FILE => {
            let reason = format!("is longer than {MAX_FILE} bytes");
            report.add(Place::File(path.to_owned()), "", reason, "name a cluster.toml: --config PATH");
            None
        }
        Ok(_) => Some(text),
    }
}

/// The variables `SHOAL__SECTION__KEY`. Lists have no place for a name, so workers, replicas, models and adapters are the file's
/// alone.
fn shoal_variables(variables: &Variables, report: &mut Report) -> Map<String, String> {
    let mut kept = BTreeMap::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("SHOAL__")) else { continue };
        let place = || Place::Environment(name.to_owned());
        let section = name["SHOAL__".len()..].split("__").next().unwrap_or_default().to_lowercase();
        match value.to_str() {
            _ if ["worker", "replica", "model", "adapter"].contains(&section.as_str()) => {
                let remedy = "write it into cluster.toml, or use a flag of `shoal dev`";
                report.add(
                    place(),
                    &section,
                    "workers, replicas, models and adapters are lists and cannot be set here",
                    remedy,
                );
            }
            Some(value) => drop(kept.insert(name.to_owned(), value.to_owned())),
            None => report.add(place(), "", "is not UTF-8 text", "set it again, or unset it"),
        }
    }
    kept.into_iter().collect()
}

/// Flags that set one key each: key, flag, value.
fn scalar_flags(overrides: &Overrides, report: &mut Report) -> Vec<(&'static str, &'static str, ValueKind)> {
    let mut set = Vec::new();
    if let Some(listen) = &overrides.listen {
        set.push(("router.listen", "--listen", listen.as_str().into()));
    }
    if let Some(quic) = &overrides.quic {
        set.push(("router.quic", "--quic", quic.as_str().into()));
    }
    if let Some(exposure) = overrides.exposure {
        set.push(("router.insecure", "--insecure", (exposure == Exposure::Insecure).into()));
    }
    if let Some(dir) = overrides.data_dir.as_deref().and_then(|dir| utf8(dir, "--data-dir", report)) {
        set.push(("router.data_dir", "--data-dir", dir.into()));
    }
    if let Some(dir) = overrides.adapters.as_deref().and_then(|dir| utf8(dir, "--adapters", report)) {
        set.push(("router.adapters", "--adapters", dir.into()));
    }
    set
}

fn utf8(path: &Path, flag: &str, report: &mut Report) -> Option<String> {
    let text = path.to_str().map(str::to_owned);
    if text.is_none() {
        report.add(Place::Flag(flag.to_owned()), "", "the path is not UTF-8 text", "rename the file or directory");
    }
    text
}

/// Replaces and completes the lists `model` and `worker` as the flags say.
fn override_lists(root: &mut Value, overrides: &Overrides, report: &mut Report) {
    let ValueKind::Table(sections) = &mut root.kind else { return };
    if let Some(model) = overrides.model.as_ref().and_then(|flag| flag_model(flag, report)) {
        sections.insert("model".to_owned(), Value::new(None, vec![model]));
    }
    let unnamed = overrides.scope == Scope::Dev && !sections.contains_key("worker");
    if overrides.model.is_some() || overrides.workers.is_some() || unnamed {
        let count = overrides.workers.unwrap_or(1);
        sections.insert("worker".to_owned(), Value::new(None, made_up_workers(sections.get("model"), count)));
        // Its workers are not there any more.
        sections.remove("replica");
    }
    if let Some(Value { kind: ValueKind::Array(workers), .. }) = sections.get_mut("worker") {
        for worker in workers {
            override_worker(worker, overrides);
        }
    }
}

fn override_worker(worker: &mut Value, overrides: &Overrides) {
    let ValueKind::Table(worker) = &mut worker.kind else { return };
    for (key, flag, value) in [("slots", "--slots", overrides.slots), ("threads", "--threads", overrides.threads)] {
        if let Some(value) = value {
            worker.insert(key.to_owned(), Value::new(Some(&flag.to_owned()), value));
        }
    }
}

fn flag_model(flag: &ModelFlag, report: &mut Report) -> Option<Value> {
    let mut table = Map::new();
    let by = |flag: &str, text: String| Value::new(Some(&flag.to_owned()), text);
    let default_name = match &flag.source {
        ModelFlagSource::Path(path) => {
            table.insert("path".to_owned(), by("--model", utf8(path, "--model", report)?));
            model_name(path)
        }
        ModelFlagSource::Scripted => {
            table.insert("engine".to_owned(), by("--scripted", "scripted".to_owned()));
            "scripted".to_owned()
        }
    };
    let name = flag.name.clone().map_or_else(|| by("--model", default_name), |name| by("--model-name", name));
    table.insert("name".to_owned(), name);
    Some(Value::new(None, table))
}

/// `count` workers for every model of the list.
fn made_up_workers(models: Option<&Value>, count: u32) -> Vec<Value> {
    let Some(Value { kind: ValueKind::Array(models), .. }) = models else { return Vec::new() };
    let names = models.iter().filter_map(|model| match &model.kind {
        ValueKind::Table(table) => table.get("name").cloned(),
        _ => None,
    });
    let by = "--workers".to_owned();
    names
        .flat_map(|name| std::iter::repeat_n(name, count as usize))
        .zip(1..)
        .map(|(model, number)| {
            let name = Value::new(Some(&by), format!("worker-{number}"));
            Value::new(Some(&by), Map::from([("name".to_owned(), name), ("model".to_owned(), model)]))
        })
        .collect()
}

/// A model's name made from its path: the stem of a GGUF file, the name of a directory, `org/name` for a snapshot in a
/// Hugging Face cache, with every character that a name cannot have replaced.
pub(super) fn model_name(path: &Path) -> String {
    // Relative paths such as `.` have no name of their own.
    let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    let part = |path: Option<&Path>| path.and_then(Path::file_name).and_then(|name| name.to_str()).map(str::to_owned);
    let snapshot = match (part(path.parent()).as_deref(), part(path.parent().and_then(Path::parent))) {
        (Some("snapshots"), Some(repo)) => repo.strip_prefix("models--").map(|repo| repo.replace("--", "/")),
        _ => None,
    };
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let plain = if is_gguf { path.file_stem().and_then(|stem| stem.to_str()) } else { None };
    let raw = snapshot.or_else(|| plain.map(str::to_owned)).or_else(|| part(Some(&path))).unwrap_or_default();
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._/-".contains(c) { c } else { '-' };
    let name: String = raw.chars().map(allowed).skip_while(|c| !c.is_ascii_alphanumeric()).take(128).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}
