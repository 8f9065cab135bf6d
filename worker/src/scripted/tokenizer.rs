//! The scripted engine's vocabulary: a token per byte, the id being the byte, and five special tokens. Written as the
//! `tokenizer.json` of a byte-level BPE without merges, so that routers treat it like any other model's.

use serde_json::{Map, Value, json};
use shoal_common::ids::TokenId;
use shoal_common::wire::blob::{FimTokens, TokenizerBundle};

/// Begins a sequence. Not put before prompts by itself.
pub const BOS: TokenId = TokenId(256);
/// Ends an answer.
pub const EOS: TokenId = TokenId(257);
const FIM: FimTokens = FimTokens { prefix: TokenId(258), suffix: TokenId(259), middle: TokenId(260) };
/// Tokens of the vocabulary: 256 bytes, then the special tokens.
pub const VOCAB: usize = 261;

const SPECIAL_TOKENS: [(TokenId, &str); 5] = [
    (BOS, "<|bos|>"),
    (EOS, "<|eos|>"),
    (FIM.prefix, "<|fim_prefix|>"),
    (FIM.suffix, "<|fim_suffix|>"),
    (FIM.middle, "<|fim_middle|>"),
];

/// The tokenizer, as a worker offers it to routers.
pub fn bundle() -> TokenizerBundle {
    TokenizerBundle {
        tokenizer_json: tokenizer_json().to_string().into_bytes(),
        bos: Some(BOS),
        add_bos: false,
        eos: vec![EOS],
        document_separator: None,
        fim: Some(FIM),
        chat_template: None,
    }
}

fn tokenizer_json() -> Value {
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let vocab: Map<String, Value> = (0..=255).map(|byte| (spelling(byte).to_string(), json!(byte))).collect();
    let special = |(id, text): (TokenId, &str)| {
        json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL_TOKENS.map(special),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []
        }
    })
}

/// The character by which byte-level tokenizers write a byte (GPT-2's `bytes_to_unicode`): itself if it is printable in
/// Latin-1, else the next free one from U+0100 on.
fn spelling(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let unprintable_before = (0..byte).filter(|&other| !printable(other)).count();
    char::from_u32(0x100 + unprintable_before as u32).expect("below U+0200 every number is a character")
}
