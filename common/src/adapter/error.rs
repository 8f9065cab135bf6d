//! Why bytes are no usable adapter, in sentences for whoever registers it: each names the file, the field or the tensor, what
//! was expected there and what was found. None is longer than [`AdapterError::MAX_LEN`].

use std::fmt;

pub use super::excerpt::Excerpt;
use super::geometry::Linear;

/// What to do about an [`AdapterError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The files are broken, or are not of one adapter: make them again.
    Malformed,
    /// They are whole, for another base model: register them there.
    WrongBase,
    /// They are whole, and ask for what is not computed here: convert them, or train without it.
    Unsupported,
}

/// Why an adapter cannot be used. `file` and the texts below are within the adapter, so no path is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// There is nothing in a file.
    #[error("{file} is empty")]
    Empty {
        /// Which.
        file: &'static str,
    },
    /// The configuration cannot be read.
    #[error("adapter_config.json cannot be read: {reason}")]
    NotJson {
        /// The parser's.
        reason: Excerpt,
    },
    /// A field that decides is absent.
    #[error("adapter_config.json: {field} is missing")]
    MissingField {
        /// Which.
        field: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("adapter_config.json: {field} is {got}, expected {expected}")]
    WrongField {
        /// Which.
        field: &'static str,
        /// What it can have.
        expected: &'static str,
        /// What it has.
        got: Excerpt,
    },
    /// An entry of a mapping has a value that it cannot have.
    #[error("adapter_config.json: {field} has {got} for \"{key}\", expected {expected}")]
    WrongEntry {
        /// The mapping.
        field: &'static str,
        /// The entry.
        key: Excerpt,
        /// What it can have.
        expected: &'static str,
        /// What it has.
        got: Excerpt,
    },
    /// Alpha and rank make a number that f32 does not hold.
    #[error("adapter_config.json: lora_alpha {alpha} with rank {rank} is too large a scale for {module}")]
    HugeScale {
        /// The linear layer's path.
        module: String,
        /// Its alpha, as it is written.
        alpha: String,
        /// Its rank.
        rank: u32,
    },
    /// It is an adapter of another kind.
    #[error("adapter_config.json: peft_type is \"{peft_type}\"; only \"LORA\" is computed here")]
    NotLora {
        /// Which.
        peft_type: Excerpt,
    },
    /// A field asks for more than A and B.
    #[error("adapter_config.json: {field} asks for {asks}, which is not computed here")]
    NotComputed {
        /// Which.
        field: &'static str,
        /// What it asks for.
        asks: &'static str,
    },
    /// A field says something, and nobody here knows what.
    #[error("adapter_config.json: {field} is not known here; remove it if only training needs it")]
    UnknownField {
        /// Which.
        field: Excerpt,
    },
    /// The adapter belongs to a changed base model.
    #[error(
        "adapter_config.json: init_lora_weights is \"{init}\", which changes the base model; save the adapter with \
         path_initial_model_for_weight_conversion"
    )]
    ChangesBase {
        /// How its training began.
        init: Excerpt,
    },
    /// A regular expression cannot be used.
    #[error("adapter_config.json: {field} has the pattern \"{pattern}\", which cannot be used here: {reason}")]
    BadPattern {
        /// Where it is.
        field: &'static str,
        /// It.
        pattern: Excerpt,
        /// Why not.
        reason: Excerpt,
    },
    /// There are more regular expressions than are tried.
    #[error("adapter_config.json: {field} has more than {limit} patterns; name the modules instead")]
    ManyPatterns {
        /// Where they are.
        field: &'static str,
        /// Most that are tried.
        limit: usize,
    },
    /// Embeddings or the output head are to be changed.
    #[error(
        "adapter_config.json: target_modules has {module}; only the linear layers of attention and mlp can be changed here"
    )]
    TargetsOther {
        /// What else it has.
        module: &'static str,
    },
    /// The weights are a program.
    #[error("{PICKLE}")]
    Pickle,
    /// The weights were not fetched.
    #[error("adapter_model.safetensors is a pointer of git LFS, not the file; fetch it with git lfs pull")]
    LfsPointer,
    /// The header of the weights is broken, or does not describe the bytes that follow.
    #[error("adapter_model.safetensors is not a whole safetensors file: {reason}")]
    NotSafetensors {
        /// What is wrong.
        reason: Excerpt,
    },
    /// Nothing would change.
    #[error("adapter_model.safetensors has no tensors")]
    NoTensors,
    /// A tensor is not one of an adapter.
    #[error("adapter_model.safetensors: \"{tensor}\" is no tensor of a LoRA adapter")]
    UnknownTensor {
        /// Its name.
        tensor: Excerpt,
    },
    /// A tensor of an adapter is more than A and B.
    #[error("adapter_model.safetensors: {tensor} is {what}, which is not computed here")]
    TensorNotComputed {
        /// Its name.
        tensor: Excerpt,
        /// What it is.
        what: &'static str,
    },
    /// Two names of one tensor.
    #[error("adapter_model.safetensors: {tensor} is there under another name, too")]
    Twice {
        /// The second name.
        tensor: Excerpt,
    },
    /// A without B, or B without A.
    #[error("adapter_model.safetensors: {tensor} has no {missing}")]
    NoPair {
        /// The one that is there.
        tensor: Excerpt,
        /// `lora_A` or `lora_B`.
        missing: &'static str,
    },
    /// The configuration leaves out a module that has tensors.
    #[error("adapter_model.safetensors has tensors for {module}, which adapter_config.json does not target")]
    NotTargeted {
        /// The linear layer's path.
        module: String,
    },
    /// Numbers are stored in a way that is not read.
    #[error("adapter_model.safetensors: {tensor} is stored as {dtype}, expected F32, F16 or BF16")]
    WrongDtype {
        /// Its name.
        tensor: Excerpt,
        /// How it is stored.
        dtype: String,
    },
    /// A tensor has not two dimensions.
    #[error("adapter_model.safetensors: {tensor} has {dimensions} dimensions, expected 2")]
    NotMatrix {
        /// Its name.
        tensor: Excerpt,
        /// How many it has.
        dimensions: usize,
    },
    /// A tensor's rank is not the configuration's.
    #[error(
        "adapter_model.safetensors: {tensor} has the shape [{}, {}], so rank {got}; adapter_config.json says {expected}",
        shape[0], shape[1]
    )]
    WrongRank {
        /// Its name.
        tensor: Excerpt,
        /// Rows and columns.
        shape: [usize; 2],
        /// The configuration's rank for this module.
        expected: u32,
        /// The one of its dimensions that is the rank.
        got: usize,
    },
    /// A number is NaN or infinite.
    #[error("adapter_model.safetensors: {tensor} has a number that is not finite, at [{row}, {column}]")]
    NotFinite {
        /// Its name.
        tensor: Excerpt,
        /// Row of the first.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// The base model has no such linear layer.
    #[error("for another base model: {tensor} is for a module that this model does not have{made_for}")]
    NoSuchModule {
        /// Its name.
        tensor: Excerpt,
        /// Where the adapter says it belongs.
        made_for: MadeFor,
    },
    /// The base model has fewer layers.
    #[error("for another base model: {tensor} is for layer {layer}, this model's last is {}{made_for}", layers.saturating_sub(1))]
    NoSuchLayer {
        /// Its name.
        tensor: Excerpt,
        /// Which layer.
        layer: u32,
        /// How many there are.
        layers: u32,
        /// Where the adapter says it belongs.
        made_for: MadeFor,
    },
    /// The base model has another width.
    #[error("for another base model: {tensor} has {got} {side}, this model's {} has {expected}{made_for}", linear.path())]
    WrongWidth {
        /// Its name.
        tensor: Excerpt,
        /// The linear layer.
        linear: Linear,
        /// Of what.
        side: Side,
        /// The base model's.
        expected: usize,
        /// The tensor's.
        got: usize,
        /// Where the adapter says it belongs.
        made_for: MadeFor,
    },
}

/// Why pickles are refused, wherever they are found.
pub(super) const PICKLE: &str = "the weights are a pickle, which can run code and is never loaded; convert them to adapter_model.safetensors \
     (load the adapter with PEFT and save it with save_pretrained)";

impl AdapterError {
    /// Longest sentence in bytes.
    pub const MAX_LEN: usize = 512;

    /// What to do about it.
    pub fn kind(&self) -> Fault {
        match self {
            Self::NoSuchModule { .. } | Self::NoSuchLayer { .. } | Self::WrongWidth { .. } => Fault::WrongBase,
            Self::NotLora { .. }
            | Self::NotComputed { .. }
            | Self::UnknownField { .. }
            | Self::ChangesBase { .. }
            | Self::BadPattern { .. }
            | Self::ManyPatterns { .. }
            | Self::TargetsOther { .. }
            | Self::Pickle
            | Self::TensorNotComputed { .. }
            | Self::WrongDtype { .. } => Fault::Unsupported,
            Self::Empty { .. }
            | Self::NotJson { .. }
            | Self::MissingField { .. }
            | Self::WrongField { .. }
            | Self::WrongEntry { .. }
            | Self::HugeScale { .. }
            | Self::LfsPointer
            | Self::NotSafetensors { .. }
            | Self::NoTensors
            | Self::UnknownTensor { .. }
            | Self::Twice { .. }
            | Self::NoPair { .. }
            | Self::NotTargeted { .. }
            | Self::NotMatrix { .. }
            | Self::WrongRank { .. }
            | Self::NotFinite { .. } => Fault::Malformed,
        }
    }
}

/// One dimension of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Columns of A.
    Inputs,
    /// Rows of B.
    Outputs,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inputs => "inputs",
            Self::Outputs => "outputs",
        })
    }
}

/// The base model that the adapter names, if it names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeFor(pub Option<Excerpt>);

impl fmt::Display for MadeFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(base) => write!(f, " (adapter_config.json says {base})"),
            None => Ok(()),
        }
    }
}
