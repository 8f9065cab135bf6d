//! Why bytes are no usable adapter, in sentences for whoever registers it: each names the file, the field or the tensor, what
//! was expected there and what was found.

/// What to do about an [`AdapterError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The files are broken: make them again.
    Malformed,
    /// They are whole, for another base model: register them there.
    WrongBase,
    /// They are whole, and ask for what is not computed here: convert them, or train without it.
    Unsupported,
}

/// Why an adapter cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// There is nothing in the file.
    #[error("{file} is empty")]
    Empty {
        /// Which file.
        file: &'static str,
    },
}

impl AdapterError {
    /// What to do about it.
    pub fn kind(&self) -> Fault {
        match self {
            Self::Empty { .. } => Fault::Malformed,
        }
    }
}
