//! Why an adapter was not registered or removed. What was there before is there still.

use shoal_common::ids::Name;

use super::base::NoBase;
use super::book::BookError;
use super::intake::Unusable;

/// See the file.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The name is not to be had.
    #[error(transparent)]
    Book(#[from] BookError),
    /// A model has the name.
    #[error("is the name of a model; give the adapter a name of its own")]
    NameOfModel,
    /// Which model it belongs to is not said.
    #[error(transparent)]
    NoBase(#[from] NoBase),
    /// The base model's widths are not known yet.
    #[error("no worker of the base model '{base}' has joined yet")]
    Waiting {
        /// Which model.
        base: Name,
    },
    /// There is no such model.
    #[error("the base model '{base}' is not served here")]
    UnknownBase {
        /// Which.
        base: Name,
    },
    /// The files are no usable adapter.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The disk says no.
    #[error("the adapter could not be stored")]
    Storage(#[source] std::io::Error),
    /// The check itself failed.
    #[error("the server failed while it checked the adapter")]
    Crashed,
}

impl RegisterError {
    /// Whether the same files may be taken later without a change.
    pub fn will_pass(&self) -> bool {
        match self {
            Self::Waiting { .. } | Self::NoBase(NoBase::NoModels) | Self::Storage(_) => true,
            Self::Book(error) => matches!(error, BookError::Full { .. } | BookError::Retiring),
            Self::NameOfModel | Self::NoBase(_) | Self::UnknownBase { .. } | Self::Unusable(_) | Self::Crashed => false,
        }
    }
}
