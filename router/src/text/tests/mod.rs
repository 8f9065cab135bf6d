//! What this folder promises, one file per noun.

mod bound;
mod detokenize;
mod prompts;
mod samples;
mod stop;
mod tokenizer;
