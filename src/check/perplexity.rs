//! `shoal check --ppl`: how well a model predicts a text with the engine that serves it, beside the reference engine on the
//! same file. What quantising weights and activations costs is the difference of the two.

use std::num::NonZero;
use std::path::Path;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use shoal_common::config::{Config, Engine};
use shoal_common::ids::TokenId;
use shoal_router::text::{SpecialTokens, Tokenizer};
use shoal_worker::backend::{BLOCK_TOKENS, Backend, BlockId, LogitsBuffer, LogitsOf, Slice};
use shoal_worker::cpu::Cpu;
use shoal_worker::reference::Reference;
use shoal_worker::sampler::Sampler;
use shoal_worker::weights::ModelFile;

/// Tokens of a text that are scored at most: the reference takes about a minute for them with a small model.
const MOST_TOKENS: usize = 16_384;
/// Tokens that see each other at most: longer texts are cut into windows.
const WINDOW: usize = 2048;
/// Rows of logits at a time: with a vocabulary of 128 k they are 32 MB.
const CHUNK: usize = 64;

/// Prints the perplexity of the text at `path` under every model that has weights.
pub(crate) fn print(config: &Config, path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    for model in &config.models {
        let Some((path, engine)) = model.files() else { continue };
        let file = ModelFile::open(path).with_context(|| format!("model {}", model.name))?;
        let tokens = tokens(&file, &text)?;
        let reference = perplexity(&mut Reference::load(&file, threads().get())?, &file, &tokens, "reference")?;
        let served = match engine {
            Engine::Cpu(quant) => perplexity(&mut Cpu::load(&file, threads(), quant)?, &file, &tokens, "cpu")?,
            Engine::Reference => reference,
        };
        println!(
            "perplexity {}: {served:.4} as it is served, {reference:.4} by the reference engine ({:+.2} %), {} tokens",
            model.name,
            100.0 * (served / reference - 1.0),
            tokens.len(),
        );
    }
    Ok(())
}

fn threads() -> NonZero<usize> {
    std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

fn tokens(file: &ModelFile, text: &str) -> anyhow::Result<Vec<TokenId>> {
    let vocab = u32::try_from(file.config.vocab).context("the vocabulary")?;
    let tokenizer = Tokenizer::from_bundle(&file.bundle, vocab).context("the model's tokenizer cannot be used")?;
    let mut tokens = tokenizer.encode(text, SpecialTokens::AsText).context("the text cannot be tokenised")?;
    if tokens.len() < 2 {
        bail!("the text is too short: it takes two tokens at least, and a few thousand to say anything");
    }
    tokens.truncate(MOST_TOKENS);
    Ok(tokens)
}

/// e to the mean loss in nats, over all tokens but the first of each window.
fn perplexity(
    backend: &mut dyn Backend,
    file: &ModelFile,
    tokens: &[TokenId],
    name: &'static str,
) -> anyhow::Result<f64> {
    let window = WINDOW.min(file.config.context);
    let blocks: Vec<BlockId> = (0..window.div_ceil(BLOCK_TOKENS) as u32).map(BlockId).collect();
    backend.reserve(blocks.len())?;
    let bar = ProgressBar::new(tokens.len() as u64).with_message(name);
    bar.set_style(ProgressStyle::with_template("{msg:>9} {bar:40} {pos}/{len} tokens, {eta} left")?);
    let (mut logits, mut sampler) = (LogitsBuffer::default(), Sampler::new());
    let (mut loss, mut scored) = (0.0, 0u64);
    for window in tokens.chunks(window) {
        for (index, chunk) in window.chunks(CHUNK).enumerate() {
            let start = index * CHUNK;
            backend.forward(
                &[Slice { start, tokens: chunk, blocks: &blocks, adapter: None, logits: LogitsOf::All }],
                &mut logits,
            )?;
            for (row, next) in window[start + 1..].iter().take(chunk.len()).enumerate() {
                loss -= f64::from(sampler.score(logits.row(row), *next, 0).logprob);
                scored += 1;
            }
            bar.inc(chunk.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok((loss / scored.max(1) as f64).exp())
}
