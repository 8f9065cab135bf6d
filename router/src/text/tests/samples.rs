//! Tokenizers of both families for the tests of text.

use std::sync::Arc;

use serde_json::{Value, json};
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::TokenizerBundle;

use crate::text::tokenizer::Tokenizer;

/// `<|im_start|>` of the byte-level sample, its BOS.
pub(super) const IM_START: TokenId = TokenId(1);
/// `<|im_end|>` of the byte-level sample, its EOS.
pub(super) const IM_END: TokenId = TokenId(2);
/// Rows of the byte-level sample.
pub(super) const BYTE_LEVEL_VOCAB: u32 = 512;

/// The real byte-level tokenizer of the tiny model.
pub(super) fn byte_level_json() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/tiny/base/tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A SentencePiece model with all byte tokens at ids 3..259, then a few pieces.
pub(super) fn sentence_piece_json(decoder: Value) -> Value {
    let mut vocab = serde_json::Map::new();
    let pieces = ["▁", "▁▁", "▁h", "h", "e", "l", "o", "▁hello", "lo", "é", "▁é", "世", "a<b"];
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(bytes).chain(pieces.map(str::to_owned));
    for (id, token) in tokens.enumerate() {
        vocab.insert(token, json!(id));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "vocab": vocab, "merges": [["▁", "▁"], ["▁", "h"], ["l", "o"], ["▁", "é"]]}
    })
}

/// The decoder of Llama 2 and its many descendants.
pub(super) fn llama_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
}

/// The decoder of Gemma: as Llama's, but a leading space stays.
pub(super) fn gemma_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]})
}

/// The decoder of T5 and XLNet.
pub(super) fn metaspace_decoder() -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})
}

/// A bundle with BOS 1 and EOS 2 that adds no BOS.
pub(super) fn bundle(json: &Value) -> TokenizerBundle {
    TokenizerBundle {
        tokenizer_json: serde_json::to_vec(json).unwrap(),
        bos: Some(IM_START),
        add_bos: false,
        eos: vec![IM_END],
        document_separator: Some(TokenId(0)),
        fim: None,
        chat_template: None,
    }
}

/// The byte-level sample.
pub(super) fn byte_level() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bundle(&bundle(&byte_level_json()), BYTE_LEVEL_VOCAB).unwrap())
}

/// The SentencePiece sample with one of the decoders above.
pub(super) fn sentence_piece(decoder: Value) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bundle(&bundle(&sentence_piece_json(decoder)), 300).unwrap())
}

/// What the tokenizers crate itself reads from the same file.
pub(super) fn reference(json: &Value) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_bytes(serde_json::to_vec(json).unwrap()).unwrap()
}
