//! Which modules a configuration targets: PEFT's `check_target_module_exists`.

use std::collections::HashSet;

use super::config::{Config, Selection};
use super::error::AdapterError;
use super::pattern::Pattern;

/// Modules beside the linear layers of attention and mlp that PEFT can change, by their paths.
const OTHERS: [&str; 2] = ["model.embed_tokens", "lm_head"];
/// Most patterns of `layers_pattern`: one is usual.
const MAX_LAYER_PATTERNS: usize = 16;

/// The modules of a configuration.
#[derive(Debug)]
pub(super) struct Targets {
    chosen: Modules,
    excluded: Option<Modules>,
    layers: Option<Layers>,
}

#[derive(Debug)]
enum Modules {
    /// `all-linear`: every linear layer but the output head.
    AllLinear,
    /// Whole paths, or their ends after a dot.
    Names(HashSet<String>),
    Pattern(Pattern),
}

#[derive(Debug)]
struct Layers {
    indices: HashSet<i64>,
    patterns: Vec<Pattern>,
}

impl Targets {
    /// Compiles what `config` says, and refuses one that targets embeddings or the output head.
    pub(super) fn new(config: &Config) -> Result<Self, AdapterError> {
        let targets = Self {
            chosen: Modules::chosen(&config.target_modules)?,
            excluded: config
                .exclude_modules
                .as_ref()
                .map(|names| Modules::new("exclude_modules", names))
                .transpose()?,
            layers: Layers::new(config)?,
        };
        match OTHERS.into_iter().find(|path| targets.contain(path)) {
            Some(module) => Err(AdapterError::TargetsOther { module }),
            None => Ok(targets),
        }
    }

    /// Whether the module at `path`, such as `model.layers.3.self_attn.q_proj`, is one of them.
    pub(super) fn contain(&self, path: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|excluded| excluded.contain(path)) {
            return false;
        }
        match (&self.chosen, &self.layers) {
            // A module that is spelled whole is meant whatever its layer.
            (Modules::Names(names), Some(layers)) => {
                names.contains(path) || (self.chosen.contain(path) && layers.contain(path))
            }
            // PEFT does not look at layers where a pattern chooses.
            (chosen, _) => chosen.contain(path),
        }
    }
}

impl Modules {
    fn new(field: &'static str, selection: &Selection) -> Result<Self, AdapterError> {
        Ok(match selection {
            Selection::Names(names) => Self::Names(names.iter().cloned().collect()),
            Selection::Pattern(pattern) => Self::Pattern(Pattern::whole(field, pattern)?),
        })
    }

    fn chosen(selection: &Selection) -> Result<Self, AdapterError> {
        match selection {
            Selection::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear") => Ok(Self::AllLinear),
            selection => Self::new("target_modules", selection),
        }
    }

    fn contain(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => !OTHERS.contains(&path),
            Self::Names(names) => ends(path).any(|end| names.contains(end)),
            Self::Pattern(pattern) => pattern.matches(path),
        }
    }
}

/// `path` and what is left of it after each dot.
fn ends(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.split_once('.').map(|(_, end)| end))
}

impl Layers {
    fn new(config: &Config) -> Result<Option<Self>, AdapterError> {
        let field = "layers_pattern";
        if config.layers_to_transform.is_empty() || matches!(config.target_modules, Selection::Pattern(_)) {
            return Ok(None);
        }
        if config.layers_pattern.len() > MAX_LAYER_PATTERNS {
            return Err(AdapterError::ManyPatterns { field, limit: MAX_LAYER_PATTERNS });
        }
        let mut patterns = Vec::new();
        for pattern in &config.layers_pattern {
            patterns.push(Pattern::before_index(field, pattern)?);
        }
        if patterns.is_empty() {
            patterns.push(Pattern::before_index(field, "[^.]*")?);
        }
        Ok(Some(Self { indices: config.layers_to_transform.iter().copied().collect(), patterns }))
    }

    fn contain(&self, path: &str) -> bool {
        // The first pattern that matches decides, even where it finds no index.
        let index = self.patterns.iter().find_map(|pattern| pattern.index(path)).flatten();
        index.is_some_and(|index| self.indices.contains(&index))
    }
}
