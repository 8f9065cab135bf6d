//! Why a model cannot be used. One variant per thing its owner would do differently; file names and tensor names are
//! shown escaped, for they come from the file.

use std::path::PathBuf;

use super::gguf::HeaderFault;
use super::tensor::TensorName;

/// A model that cannot be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Neither a GGUF file nor a directory with `config.json`.
    #[error("{path} is neither a GGUF file nor a Hugging Face model directory")]
    UnknownFormat {
        /// What was opened.
        path: PathBuf,
    },
    /// A file that should be small is not.
    #[error("{path} is larger than {limit} bytes")]
    FileTooLarge {
        /// Which file.
        path: PathBuf,
        /// The largest size taken.
        limit: u64,
    },
    /// There is not enough memory to hold the file.
    #[error("{path} does not fit in memory ({bytes} bytes)")]
    OutOfMemory {
        /// Which file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// The GGUF header is not sound.
    #[error("{path} is not a sound GGUF file")]
    Gguf {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: HeaderFault,
    },
    /// A safetensors header is not sound.
    #[error("{path} is not a sound safetensors file")]
    Safetensors {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A JSON file is not what it should be.
    #[error("{path} is not valid")]
    Json {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A well-formed model that this build does not compute.
    #[error("the model {0}, which is not supported")]
    Unsupported(String),
    /// A setting the model needs is absent or of the wrong type.
    #[error("the model's setting {key} is missing or not {expected}")]
    Setting {
        /// Which setting.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Settings that contradict each other or leave the bounds of this build.
    #[error("the model's {what} is {value}: it must be {rule}")]
    Dimension {
        /// Which dimension.
        what: &'static str,
        /// What the file says.
        value: String,
        /// The bound it breaks.
        rule: &'static str,
    },
    /// A tensor the architecture needs is not there.
    #[error("the model has no tensor {0}")]
    MissingTensor(TensorName),
    /// A tensor with another shape than the settings say.
    #[error("the tensor {name} is {found:?}, the model's settings make it {expected:?}")]
    TensorShape {
        /// Which tensor.
        name: TensorName,
        /// `[rows, cols]` in the file.
        found: [usize; 2],
        /// `[rows, cols]` by the settings.
        expected: [usize; 2],
    },
    /// A tensor whose element type cannot be used in its place.
    #[error("the tensor {name} is of type {found}, it must be {rule}")]
    TensorType {
        /// Which tensor.
        name: TensorName,
        /// Its type in the file.
        found: String,
        /// What may stand there.
        rule: &'static str,
    },
    /// The tokenizer cannot be made from what the model says.
    #[error("the model's tokenizer cannot be used: {0}")]
    Tokenizer(TokenizerFault),
    /// The dequantiser refused a tensor that passed every check.
    #[error("the tensor {name} cannot be dequantised")]
    Dequantise {
        /// Which tensor.
        name: TensorName,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
}

/// Why a model's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerFault {
    /// A kind of tokenizer this build does not know.
    #[error("the tokenizer kind {0:?} is not supported")]
    UnknownKind(String),
    /// A pre-tokenizer this build does not know: guessing one would give wrong token ids.
    #[error("the pre-tokenizer {0:?} is not supported")]
    UnknownPreTokenizer(String),
    /// The file does not say how text is cut before merging.
    #[error("the file names no pre-tokenizer (tokenizer.ggml.pre); convert it again with a current converter")]
    NoPreTokenizer,
    /// Lists of different lengths, or a list longer than the vocabulary.
    #[error("{list} has {found} entries, {expected} are expected")]
    Length {
        /// Which list.
        list: &'static str,
        /// Its length.
        found: usize,
        /// The length it should have.
        expected: usize,
    },
    /// Text that is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// Two tokens with the same text: one of them could never be produced.
    #[error("the tokens {first} and {second} have the same text")]
    SameText {
        /// The smaller id.
        first: u32,
        /// The greater id.
        second: u32,
    },
    /// A token of a length that no tokenizer has.
    #[error("the token {token} is longer than {limit} bytes")]
    TokenTooLong {
        /// Its id.
        token: u32,
        /// The longest taken.
        limit: usize,
    },
    /// A merge rule that does not join two known tokens to a third.
    #[error("merge rule {0} does not join two tokens to a third")]
    BadMerge(usize),
    /// A special token that is not in the vocabulary.
    #[error("{key} names {token}, which is not in the vocabulary")]
    UnknownToken {
        /// Which setting.
        key: &'static str,
        /// The token or id it names.
        token: String,
    },
    /// A tokenizer larger than a router takes.
    #[error("it takes {bytes} bytes, at most {limit} are taken")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest size taken.
        limit: u64,
    },
}

impl From<TokenizerFault> for WeightsError {
    fn from(fault: TokenizerFault) -> Self {
        Self::Tokenizer(fault)
    }
}
