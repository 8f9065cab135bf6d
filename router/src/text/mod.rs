//! Text lives here and nowhere else in the cluster: workers speak token ids. [`tokenizer`] turns text into a model's ids
//! and ids into bytes, [`detokenize`] turns a stream of ids into a stream of whole characters, [`stop`] cuts that stream
//! at a stop string. Called by `plan` (prompts) and `choice` (answers). Nothing here knows HTTP, the wire or a clock.

mod bound;
pub mod detokenize;
pub mod prompts;
mod spelling;
pub mod stop;
#[cfg(test)]
mod tests;
pub mod tokenizer;

pub use detokenize::{Detokenizer, SpecialText};
pub use stop::{StopMatcher, StopOutcome};
pub use tokenizer::{SpecialTokens, Tokenizer, TokenizerError};
