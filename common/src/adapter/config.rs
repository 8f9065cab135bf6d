//! `adapter_config.json`: the fields that decide what an adapter adds, and the refusal of every field that asks for more. A
//! field that only training reads is ignored; one that nobody here knows is refused if it says anything.

use super::check::MAX_RANK;
use super::error::{AdapterError, Excerpt};
use super::json::{Fields, Value};

/// Fields whose values are read.
const READ: [&str; 13] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
    "base_model_name_or_path",
];

/// Fields that change nothing once the weights are trained, or only describe the files. `fan_in_fan_out` is about layers that are
/// stored as [inputs, outputs]; for a base model of linear layers, as all here are, the library warns and unsets it.
const IGNORED: [&str; 17] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
];

/// Fields that change what is computed in a way that is not computed here, and what each asks for.
const NOT_COMPUTED: [(&str, &str); 15] = [
    ("alora_invocation_tokens", "an update that begins in the middle of a sequence (aLoRA)"),
    ("arrow_config", "routing between adapters (Arrow)"),
    ("enable_lora", "an update of parts of a fused layer"),
    ("kasa_config", "singular values between A and B, and a changed base model (KaSA)"),
    ("layer_replication", "layers of the base model more than once"),
    ("lora_bias", "a bias on every B"),
    ("megatron_config", "Megatron's parallel layers"),
    ("modules_to_save", "whole modules in place of the base model's"),
    ("monteclora_config", "updates drawn at random (MonteCLoRA)"),
    ("target_parameters", "updates of bare parameters"),
    ("trainable_token_indices", "rows of the embedding in place of the base model's"),
    ("use_bdlora", "block-diagonal A or B (BD-LoRA)"),
    ("use_dora", "magnitudes beside A and B (DoRA)"),
    ("use_qalora", "pooled inputs (QA-LoRA)"),
    ("modules_to_tie", "modules that share their update"),
];

/// Values of `init_lora_weights` that take something off the base model's weights before training. PEFT takes it off again
/// at each load; the base model here is never changed.
const CHANGES_BASE: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];
/// Values of `init_lora_weights` that leave the base model alone.
const LEAVES_BASE: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// What a LoRA configuration says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    /// Rank where no pattern says another.
    pub(super) rank: u32,
    /// Alpha where no pattern says another; finite.
    pub(super) alpha: f64,
    pub(super) scaling: Scaling,
    /// Module paths' patterns and their ranks; the first that matches holds.
    pub(super) rank_pattern: Vec<(String, u32)>,
    /// Module paths' patterns and their alphas; the first that matches holds.
    pub(super) alpha_pattern: Vec<(String, f64)>,
    pub(super) target_modules: Selection,
    pub(super) exclude_modules: Option<Selection>,
    /// Indices of the layers; all layers where there are none.
    pub(super) layers_to_transform: Vec<i64>,
    /// What comes before the index in a module's path; anything where there are none.
    pub(super) layers_pattern: Vec<String>,
    /// Where the adapter says it belongs.
    pub(super) base_model: Option<Excerpt>,
}

/// What alpha is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scaling {
    /// The rank.
    Rank,
    /// Its square root (rsLoRA).
    RootOfRank,
}

/// A choice among modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// Those with one of these paths, or whose path ends with one of these.
    Names(Vec<String>),
    /// Those whose whole path matches.
    Pattern(String),
}

impl Config {
    /// Reads the bytes of `adapter_config.json`.
    pub(super) fn parse(json: &[u8]) -> Result<Self, AdapterError> {
        if json.is_empty() {
            return Err(AdapterError::Empty { file: "adapter_config.json" });
        }
        let fields = Fields::parse(json, &READ, &IGNORED).map_err(|error| not_json(json, &error))?;
        let mut taker = Taker(fields);
        // What kind of adapter it is comes first: the fields of another kind are no faults of this one.
        taker.peft_type()?;
        taker.refuse_other()?;
        taker.refuse_variants()?;
        Ok(Self {
            rank: taker.rank()?,
            alpha: taker.alpha()?,
            scaling: if taker.switch("use_rslora")? { Scaling::RootOfRank } else { Scaling::Rank },
            rank_pattern: taker.pattern("rank_pattern", RANK, as_rank)?,
            alpha_pattern: taker.pattern("alpha_pattern", ALPHA, as_number)?,
            target_modules: taker.target_modules()?,
            exclude_modules: taker.selection("exclude_modules")?,
            layers_to_transform: taker.layers_to_transform()?,
            layers_pattern: taker.layers_pattern()?,
            base_model: taker.base_model(),
        })
    }
}

fn not_json(json: &[u8], error: &serde_json::Error) -> AdapterError {
    let python = [&b"NaN"[..], b"Infinity"].iter().any(|word| json.windows(word.len()).any(|window| window == *word));
    let hint = if error.is_syntax() && python { "; NaN and Infinity are not JSON" } else { "" };
    AdapterError::NotJson { reason: Excerpt::of(&format!("{error}{hint}")) }
}

const RANK: &str = "a whole number from 1 to 256";
const ALPHA: &str = "a number";
const NAMES: &str = "a list of names or a pattern";

fn as_rank(value: &Value) -> Option<u32> {
    match value {
        Value::Whole(rank) => u32::try_from(*rank).ok().filter(|rank| (1..=MAX_RANK).contains(rank)),
        _ => None,
    }
}

/// JSON has finite numbers only.
fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Whole(number) => Some(*number as f64),
        Value::Number(number) => Some(*number),
        _ => None,
    }
}

fn as_index(value: &Value) -> Option<i64> {
    if let Value::Whole(index) = value { Some(*index) } else { None }
}

fn as_name(value: &Value) -> Option<String> {
    if let Value::Text(name) = value { Some(name.clone()) } else { None }
}

/// Takes the fields one by one; null is the same as absent.
struct Taker(Fields);

impl Taker {
    fn take(&mut self, field: &'static str) -> Option<Value> {
        self.0.values.remove(field).filter(|value| *value != Value::Null)
    }

    fn required<T>(
        &mut self,
        field: &'static str,
        expected: &'static str,
        read: fn(&Value) -> Option<T>,
    ) -> Result<T, AdapterError> {
        let value = self.take(field).ok_or(AdapterError::MissingField { field })?;
        read(&value).ok_or_else(|| wrong(field, expected, &value))
    }

    fn peft_type(&mut self) -> Result<(), AdapterError> {
        match self.required("peft_type", "\"LORA\"", as_name)?.as_str() {
            "LORA" => Ok(()),
            other => Err(AdapterError::NotLora { peft_type: Excerpt::of(other) }),
        }
    }

    /// What a field that nobody reads asks for.
    fn refuse_other(&self) -> Result<(), AdapterError> {
        let Some(other) = &self.0.other else { return Ok(()) };
        match NOT_COMPUTED.iter().find(|(known, _)| known == other) {
            Some((field, asks)) => Err(AdapterError::NotComputed { field, asks }),
            None => Err(AdapterError::UnknownField { field: Excerpt::of(other) }),
        }
    }

    /// What the fields that are read ask for, and that is not computed.
    fn refuse_variants(&mut self) -> Result<(), AdapterError> {
        match self.take("bias") {
            None => {}
            Some(Value::Text(bias)) if bias == "none" => {}
            Some(Value::Text(_)) => {
                return Err(AdapterError::NotComputed { field: "bias", asks: "biases in place of the base model's" });
            }
            Some(value) => return Err(wrong("bias", "\"none\"", &value)),
        }
        match self.take("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::Text(init)) => initialisation(&init),
            Some(value) => Err(wrong("init_lora_weights", "true, false or a name", &value)),
        }
    }

    fn rank(&mut self) -> Result<u32, AdapterError> {
        self.required("r", RANK, as_rank)
    }

    fn alpha(&mut self) -> Result<f64, AdapterError> {
        self.required("lora_alpha", ALPHA, as_number)
    }

    fn switch(&mut self, field: &'static str) -> Result<bool, AdapterError> {
        match self.take(field) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(value) => Err(wrong(field, "true or false", &value)),
        }
    }

    fn pattern<T>(
        &mut self,
        field: &'static str,
        expected: &'static str,
        read: fn(&Value) -> Option<T>,
    ) -> Result<Vec<(String, T)>, AdapterError> {
        let entry = |(key, value): (String, Value)| match read(&value) {
            Some(read) => Ok((key, read)),
            None => Err(AdapterError::WrongEntry { field, key: Excerpt::of(&key), expected, got: got(&value) }),
        };
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Mapping(entries)) => entries.into_iter().map(entry).collect(),
            Some(value) => Err(wrong(field, "a mapping from patterns to numbers", &value)),
        }
    }

    fn target_modules(&mut self) -> Result<Selection, AdapterError> {
        let field = "target_modules";
        match self.take(field) {
            Some(value) => as_selection(field, value),
            None => Err(AdapterError::MissingField { field }),
        }
    }

    fn selection(&mut self, field: &'static str) -> Result<Option<Selection>, AdapterError> {
        let selection = self.take(field).map(|value| as_selection(field, value)).transpose()?;
        Ok(selection.filter(|selection| match selection {
            Selection::Names(names) => !names.is_empty(),
            Selection::Pattern(pattern) => !pattern.is_empty(),
        }))
    }

    fn layers_to_transform(&mut self) -> Result<Vec<i64>, AdapterError> {
        let (field, expected) = ("layers_to_transform", "a layer's index or a list of them");
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Whole(layer)) => Ok(vec![layer]),
            Some(Value::List(layers)) => entries(field, expected, &layers, as_index),
            Some(value) => Err(wrong(field, expected, &value)),
        }
    }

    fn layers_pattern(&mut self) -> Result<Vec<String>, AdapterError> {
        let (field, expected) = ("layers_pattern", "a name or a list of them");
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Text(pattern)) if pattern.is_empty() => Ok(Vec::new()),
            Some(Value::Text(pattern)) => Ok(vec![pattern]),
            Some(Value::List(patterns)) => entries(field, expected, &patterns, as_name),
            Some(value) => Err(wrong(field, expected, &value)),
        }
    }

    fn base_model(&mut self) -> Option<Excerpt> {
        self.take("base_model_name_or_path").as_ref().and_then(as_name).as_deref().map(Excerpt::of)
    }
}

fn initialisation(init: &str) -> Result<(), AdapterError> {
    let name = init.to_lowercase();
    if CHANGES_BASE.iter().any(|changes| name.starts_with(changes)) {
        return Err(AdapterError::ChangesBase { init: Excerpt::of(init) });
    }
    if LEAVES_BASE.contains(&name.as_str()) {
        return Ok(());
    }
    let asks =
        if name == "loftq" { "a base model quantised by LoftQ" } else { "an initialisation that nobody here knows" };
    Err(AdapterError::NotComputed { field: "init_lora_weights", asks })
}

fn as_selection(field: &'static str, value: Value) -> Result<Selection, AdapterError> {
    match value {
        Value::Text(pattern) => Ok(Selection::Pattern(pattern)),
        Value::List(names) => entries(field, NAMES, &names, as_name).map(Selection::Names),
        value => Err(wrong(field, NAMES, &value)),
    }
}

fn entries<T>(
    field: &'static str,
    expected: &'static str,
    list: &[Value],
    read: fn(&Value) -> Option<T>,
) -> Result<Vec<T>, AdapterError> {
    let wrong = |value| AdapterError::WrongField { field, expected, got: Excerpt::of(&format!("a list with {value}")) };
    list.iter().map(|value| read(value).ok_or_else(|| wrong(value))).collect()
}

fn wrong(field: &'static str, expected: &'static str, value: &Value) -> AdapterError {
    AdapterError::WrongField { field, expected, got: got(value) }
}

fn got(value: &Value) -> Excerpt {
    Excerpt::of(&value.to_string())
}
