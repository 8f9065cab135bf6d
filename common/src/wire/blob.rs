//! Content fetched by digest: the tokenizer bundle, with which a router needs no model files, and adapters
//! ([`crate::adapter::bundle`]), which workers fetch from routers and from each other.

use serde::{Deserialize, Serialize};

use super::bounded;
use crate::ids::{Digest, Name, TokenId};

/// Asks for the content with this digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRequest {
    /// BLAKE3 of the content.
    pub digest: Digest,
}

/// First frame of the answer; the bytes follow unframed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobHeader {
    /// The content follows.
    Found {
        /// Its length in bytes.
        len: u64,
    },
    /// Nobody here has it.
    NotFound,
    /// It may be here, but as much is being sent as may be at once: ask somebody else. Only other workers say so.
    Busy,
}

/// Workers that are named as nearer, at most.
pub const MAX_NEARER: usize = 2;

/// Who has an adapter and is nearer to the worker that asks than the router is. A hint: whoever follows it must be ready to find
/// nothing there, or something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearer {
    /// Its length in bytes, for nobody else's word to be taken for it.
    pub len: u64,
    /// Workers, the best first; none: the router is as near as any.
    #[serde(deserialize_with = "bounded::few::<MAX_NEARER, _, _>")]
    pub peers: Vec<Name>,
}

/// QUIC priority of the streams that blobs come on. Those of groups have 0: a token never waits behind a blob.
pub const BLOB_PRIORITY: i32 = -1;

/// Largest tokenizer bundle that is sent or taken, in bytes: the largest public `tokenizer.json` is 33 MB.
pub const MAX_TOKENIZER_BUNDLE: u64 = 64 << 20;

/// Everything a router needs to turn text into a model's tokens and back.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerBundle {
    /// A Hugging Face `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// Put before a prompt when special tokens are added, and the whole prompt where a request has none.
    pub bos: Option<TokenId>,
    /// Whether a BOS is put before every text prompt.
    pub add_bos: bool,
    /// Tokens that end an answer. Ascending.
    pub eos: Vec<TokenId>,
    /// Stands for the start of a document where there is no BOS (`<|endoftext|>` of the GPT-2 family).
    pub document_separator: Option<TokenId>,
    /// Fill-in-the-middle tokens, if the model was trained with them.
    pub fim: Option<FimTokens>,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
}

impl std::fmt::Debug for TokenizerBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenizerBundle")
            .field("tokenizer_json_bytes", &self.tokenizer_json.len())
            .field("bos", &self.bos)
            .field("add_bos", &self.add_bos)
            .field("eos", &self.eos)
            .field("document_separator", &self.document_separator)
            .field("fim", &self.fim)
            .finish_non_exhaustive()
    }
}

/// Fill-in-the-middle tokens: a prompt becomes `prefix <prompt> suffix <suffix> middle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FimTokens {
    /// Before the text that precedes the hole.
    pub prefix: TokenId,
    /// Before the text that follows the hole.
    pub suffix: TokenId,
    /// Where generation begins.
    pub middle: TokenId,
}
