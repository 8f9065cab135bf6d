//! `[[model]]`: the rules of a model, and whose files must be on this machine. Called by `check`; never opens a file.

use std::num::NonZeroU32;
use std::time::Duration;

use config::{Value, ValueKind};

use super::hosts::is_elsewhere;
use super::report::Report;
use super::section::Section;
use super::{Engine, Faults, ModelConfig, ModelSource, Quant, Scope, Script};
use crate::ids::Name;

/// Whose model files must be on this machine.
enum FilesHere<'a> {
    Nobodys,
    Everybodys,
    /// Of every model but those that only workers on other machines host.
    Here(&'a Section<'a>),
    OfModel(&'a str),
}

impl<'a> FilesHere<'a> {
    fn of(root: &'a Section<'a>, scope: &Scope) -> Self {
        match scope {
            Scope::Router | Scope::Plan => Self::Nobodys,
            Scope::Dev => Self::Everybodys,
            Scope::Whole => Self::Here(root),
            // A worker that names no model hosts the only one.
            Scope::Worker(name) => hosted_by(root, name).map_or(Self::Everybodys, Self::OfModel),
        }
    }

    fn covers(&self, model: &Name) -> bool {
        match self {
            Self::Nobodys => false,
            Self::Everybodys => true,
            Self::Here(root) => !only_elsewhere(root, model.as_str()),
            Self::OfModel(name) => model.as_str() == *name,
        }
    }
}

/// Whether there are workers of `model`, and none on this machine.
fn only_elsewhere(root: &Section<'_>, model: &str) -> bool {
    let Some(ValueKind::Array(workers)) = root.value("worker").map(|value| &value.kind) else { return false };
    // A worker that names no model hosts the only one.
    let mut hosts =
        workers.iter().filter(|worker| text(worker, "model").is_none_or(|hosted| hosted == model)).peekable();
    hosts.peek().is_some() && hosts.all(|worker| text(worker, "host").is_some_and(is_elsewhere))
}

/// The text `key` of a table.
fn text<'a>(table: &'a Value, key: &str) -> Option<&'a str> {
    match &table.kind {
        ValueKind::Table(table) => match &table.get(key)?.kind {
            ValueKind::String(text) => Some(text.as_str()),
            _ => None,
        },
        _ => None,
    }
}

/// The model that worker `name` names.
fn hosted_by<'a>(root: &Section<'a>, name: &str) -> Option<&'a str> {
    let ValueKind::Array(workers) = &root.value("worker")?.kind else { return None };
    text(workers.iter().find(|worker| text(worker, "name") == Some(name))?, "model")
}

/// The `[[model]]` sections.
pub(super) struct Models {
    /// Those without a fault.
    pub(super) whole: Vec<ModelConfig>,
    /// The names of all: a worker that hosts a faulty model is not at fault itself.
    pub(super) names: Vec<Name>,
}

/// Every `[[model]]`.
pub(super) fn models(root: &Section<'_>, scope: &Scope, report: &mut Report) -> Models {
    let sections = root.sections(
        "model",
        &["name", "path", "engine", "quant", "step_ms", "salt", "context", "eos_every", "faults", "hang_ms"],
        report,
    );
    if sections.is_empty() && *scope == Scope::Dev && root.value("model").is_none() {
        let remedy = "give one with --model PATH (a GGUF file or a Hugging Face directory): `scripts/fetch-model` gets a \
                      small one, `shoal pull org/name` any from the Hugging Face hub";
        report.missing("model", "there is no model to serve", remedy);
    }
    let here = FilesHere::of(root, scope);
    let mut names = Vec::new();
    let read = |section: &Section<'_>| {
        let name = required_name(section, "clients ask for a model by its name", &mut names, report);
        let source = model_source(section, report);
        let model = ModelConfig { name: name?, source: source? };
        if here.covers(&model.name) {
            path_exists(section, &model.source, report);
        }
        Some(model)
    };
    let whole = sections.iter().filter_map(read).collect();
    Models { whole, names }
}

/// What `engine` can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineWord {
    Cpu,
    Reference,
    Scripted,
}

const ENGINES: [(&str, EngineWord); 3] =
    [("cpu", EngineWord::Cpu), ("reference", EngineWord::Reference), ("scripted", EngineWord::Scripted)];

fn model_source(section: &Section<'_>, report: &mut Report) -> Option<ModelSource> {
    let path = section.path("path", report);
    let word = match section.value("engine") {
        None => EngineWord::Cpu,
        Some(_) => section.choice("engine", &ENGINES, report)?,
    };
    let (script, engine) = (script(section, word, report), engine(section, word, report));
    match (section.value("path"), word) {
        (None, EngineWord::Cpu | EngineWord::Reference) => {
            let remedy =
                "set `path` to a GGUF file or a Hugging Face directory, or engine = \"scripted\" for the test engine";
            section.fault("path", "a model needs weights", remedy, report);
        }
        (Some(_), EngineWord::Scripted) => {
            section.fault("engine", "the scripted test engine reads no weights", "remove `path` or `engine`", report);
        }
        _ => {}
    }
    match engine {
        Some(engine) => path.map(|path| ModelSource::Files { path, engine }),
        None => Some(ModelSource::Scripted(script)),
    }
}

/// The settings that only the scripted engine has.
const OF_SCRIPT: [&str; 6] = ["step_ms", "salt", "context", "eos_every", "faults", "hang_ms"];

/// The settings of the scripted engine, which no other may have.
fn script(section: &Section<'_>, word: EngineWord, report: &mut Report) -> Script {
    let script = Script {
        step: section.millis("step_ms", 0..=60_000, report).unwrap_or(Duration::from_millis(10)),
        salt: section.integer("salt", 0..=i64::MAX, report).unwrap_or(0),
        context: section.integer("context", 16..=1 << 20, report).unwrap_or(4096),
        eos_every: match section.integer::<u32>("eos_every", 0..=i64::from(u32::MAX), report) {
            Some(every) => NonZeroU32::new(every),
            None => Script::default().eos_every,
        },
        faults: section.choice("faults", &[("on", Faults::On), ("off", Faults::Off)], report).unwrap_or_default(),
        hang: section.millis("hang_ms", 0..=600_000, report).unwrap_or_else(|| Script::default().hang),
    };
    if word != EngineWord::Scripted {
        for key in OF_SCRIPT.into_iter().filter(|key| section.value(key).is_some()) {
            let remedy = "remove it, or set engine = \"scripted\"";
            section.fault(key, "is a setting of the scripted test engine", remedy, report);
        }
    }
    script
}

/// The engine that computes with weights, and `quant`, which only the cpu engine heeds; `None` for the scripted one.
fn engine(section: &Section<'_>, word: EngineWord, report: &mut Report) -> Option<Engine> {
    let quant = section.choice("quant", &[("q8_0", Quant::Q8_0), ("q4_0", Quant::Q4_0)], report);
    if quant.is_some() && word != EngineWord::Cpu {
        let remedy = "remove it, or set engine = \"cpu\"";
        section.fault("quant", "is a setting of the cpu engine", remedy, report);
    }
    match word {
        EngineWord::Cpu => Some(Engine::Cpu(quant.unwrap_or_default())),
        EngineWord::Reference => Some(Engine::Reference),
        EngineWord::Scripted => None,
    }
}

fn path_exists(section: &Section<'_>, source: &ModelSource, report: &mut Report) {
    if let ModelSource::Files { path, .. } = source
        && !path.exists()
    {
        let remedy = "correct the path; `scripts/fetch-model` gets a small model, `shoal pull org/name` any from the \
                      Hugging Face hub";
        section.fault("path", format!("there is no {}", path.display()), remedy, report);
    }
}

/// A name that must be there and that nobody before had.
pub(super) fn required_name(
    section: &Section<'_>,
    why: &str,
    names: &mut Vec<Name>,
    report: &mut Report,
) -> Option<Name> {
    if section.value("name").is_none() {
        section.fault("name", format!("is missing: {why}"), "set name = \"...\"", report);
    }
    let name = section.name("name", report)?;
    if names.contains(&name) {
        section.fault("name", format!("\"{name}\" is taken by another one"), "give each its own name", report);
    }
    names.push(name.clone());
    Some(name)
}
