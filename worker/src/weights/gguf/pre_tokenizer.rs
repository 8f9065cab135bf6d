//! How byte-level BPE tokenizers cut text before merging, by the name that `tokenizer.ggml.pre` gives to the rule, in
//! the words of `tokenizer.json`. The patterns are those of the models' own tokenizers; the names and the settings that go
//! with them are llama.cpp's (`llama-vocab.cpp`). A name that is not here is refused: another rule would give other ids.

use serde_json::{Value, json};

/// GPT-2's own pattern, which the byte-level stage has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3: digits in groups of up to three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2: digits one by one.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken: words also end where lower case turns to upper.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o: Tekken's words with English contractions, digits in groups of up to three.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Chinese, Japanese and Korean runs, as DeepSeek cuts them.
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";

/// Letters of scripts with upper and lower case, as DeepSeek LLM lists them. Those that Unicode normalisation would
/// replace are escaped.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

/// A rule by name.
pub(super) struct PreTokenizer {
    cuts: &'static [&'static str],
    /// Text is brought to Unicode NFC first.
    nfc: bool,
    /// A piece that is a token as a whole is not merged up from its bytes.
    pub(super) ignore_merges: bool,
    /// A BOS is put before prompts unless the file says otherwise.
    pub(super) adds_bos: bool,
}

impl PreTokenizer {
    const fn cutting(cuts: &'static [&'static str]) -> Self {
        Self { cuts, nfc: false, ignore_merges: false, adds_bos: false }
    }

    /// The rule with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "mpt" | "olmo" | "jais" | "phi-2" | "trillion" | "mellum" => Self::cutting(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
                Self::cutting(&[r"\p{N}", GPT2])
            }
            "default" => Self::cutting(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            "falcon" => Self::cutting(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "midm-2.0" => {
                Self { ignore_merges: true, adds_bos: true, ..Self::cutting(&[LLAMA3]) }
            }
            "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => Self::cutting(&[LLAMA3]),
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self { nfc: true, ..Self::cutting(&[QWEN2]) },
            "stablelm2" => Self::cutting(&[QWEN2]),
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..Self::cutting(&[TEKKEN]) },
            "gpt-4o" | "llama4" => Self::cutting(&[GPT4O]),
            "deepseek-llm" => Self::cutting(&[
                r"[\r\n]",
                DEEPSEEK_LETTERS,
                r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+",
                r"\s+$",
                DEEPSEEK_CJK,
                r"\p{N}+",
            ]),
            "deepseek-coder" => Self::cutting(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"]),
            _ => return None,
        })
    }

    /// The `normalizer` of `tokenizer.json`.
    pub(super) fn normalizer(&self) -> Value {
        if self.nfc { json!({ "type": "NFC" }) } else { Value::Null }
    }

    /// The `pre_tokenizer` of `tokenizer.json`: the cuts one after the other, then bytes to letters.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let (cuts, ends_as_gpt2) = match self.cuts {
            [cuts @ .., GPT2] => (cuts, true),
            cuts => (cuts, false),
        };
        let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let mut stages: Vec<_> = cuts.iter().map(split).collect();
        stages.push(byte_level(ends_as_gpt2));
        json!({ "type": "Sequence", "pretokenizers": stages })
    }
}

/// The stage that turns bytes into letters and back, cutting by GPT-2's pattern or not.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}
