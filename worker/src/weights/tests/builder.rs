//! Writes GGUF files field by field, so that a test can make any one of them wrong.

/// Type numbers of metadata values.
pub(super) const UINT32: u32 = 4;
pub(super) const FLOAT32: u32 = 6;
pub(super) const BOOL: u32 = 7;
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// A GGUF file in the making.
#[derive(Clone)]
pub(super) struct Gguf {
    pub(super) magic: [u8; 4],
    pub(super) version: u32,
    /// Overrides the true count.
    pub(super) tensor_count: Option<u64>,
    /// Overrides the true count.
    pub(super) metadata_count: Option<u64>,
    pub(super) metadata: Vec<(String, Vec<u8>)>,
    pub(super) tensors: Vec<Tensor>,
    /// Zero bytes after the header.
    pub(super) data: usize,
}

/// A tensor's description.
#[derive(Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Fastest first.
    pub(super) dims: Vec<u64>,
    pub(super) dtype: u32,
    pub(super) offset: u64,
}

pub(super) fn uint32(value: u32) -> Vec<u8> {
    [UINT32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(super) fn float32(value: f32) -> Vec<u8> {
    [FLOAT32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(super) fn boolean(value: u8) -> Vec<u8> {
    [&BOOL.to_le_bytes()[..], &[value]].concat()
}

pub(super) fn bare_string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [&STRING.to_le_bytes()[..], &bare_string(text.as_bytes())].concat()
}

/// An array that claims `count` elements of a type and holds `content`.
pub(super) fn array(element: u32, count: u64, content: &[u8]) -> Vec<u8> {
    [&ARRAY.to_le_bytes()[..], &element.to_le_bytes(), &count.to_le_bytes(), content].concat()
}

pub(super) fn strings(texts: &[&str]) -> Vec<u8> {
    let content: Vec<u8> = texts.iter().flat_map(|text| bare_string(text.as_bytes())).collect();
    array(STRING, texts.len() as u64, &content)
}

pub(super) fn uint32s(values: &[u32]) -> Vec<u8> {
    let content: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    array(UINT32, values.len() as u64, &content)
}

pub(super) fn float32s(values: &[f32]) -> Vec<u8> {
    let content: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    array(FLOAT32, values.len() as u64, &content)
}

impl Gguf {
    /// A sound header with one F32 tensor of 8 elements and nothing else.
    pub(super) fn one_tensor() -> Self {
        let tensor = Tensor { name: "t".to_owned(), dims: vec![8], dtype: 0, offset: 0 };
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            metadata_count: None,
            metadata: vec![("general.architecture".to_owned(), string("llama"))],
            tensors: vec![tensor],
            data: 32,
        }
    }

    /// A whole llama model of one layer, 8 wide, with zero weights and this tokenizer.
    pub(super) fn model(tokenizer: Vec<(&str, Vec<u8>)>) -> Self {
        Self::model_of("llama", tokenizer)
    }

    /// The same of another architecture; what its layers have beyond a llama's is the caller's to add.
    pub(super) fn model_of(architecture: &str, tokenizer: Vec<(&str, Vec<u8>)>) -> Self {
        let vocab = 32;
        let settings = vec![
            ("block_count", uint32(1)),
            ("context_length", uint32(16)),
            ("embedding_length", uint32(8)),
            ("feed_forward_length", uint32(8)),
            ("attention.head_count", uint32(2)),
            ("attention.layer_norm_rms_epsilon", float32(1e-5)),
        ];
        let mut gguf = Self { metadata: Vec::new(), tensors: Vec::new(), data: 0, ..Self::one_tensor() };
        gguf.set("general.architecture", string(architecture));
        settings.into_iter().for_each(|(key, value)| gguf.set(&format!("{architecture}.{key}"), value));
        tokenizer.into_iter().for_each(|(key, value)| gguf.set(key, value));
        gguf.add("token_embd.weight", &[8, vocab]);
        gguf.add("output_norm.weight", &[8]);
        for part in ["attn_norm", "ffn_norm"] {
            gguf.add(&format!("blk.0.{part}.weight"), &[8]);
        }
        for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            gguf.add(&format!("blk.0.{part}.weight"), &[8, 8]);
        }
        gguf
    }

    /// Sets a metadata value, in place of the one there was.
    pub(super) fn set(&mut self, key: &str, value: Vec<u8>) {
        self.metadata.retain(|(present, _)| present != key);
        self.metadata.push((key.to_owned(), value));
    }

    /// Appends an F32 tensor whose data follow those of the others.
    pub(super) fn add(&mut self, name: &str, dims: &[u64]) {
        let offset = self.data as u64;
        self.tensors.push(Tensor { name: name.to_owned(), dims: dims.to_vec(), dtype: 0, offset });
        self.data += (dims.iter().product::<u64>() * 4).next_multiple_of(32) as usize;
    }

    /// The file up to its tensor data, without padding.
    pub(super) fn header(&self) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(self.magic);
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.metadata_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            file.extend(bare_string(key.as_bytes()));
            file.extend(value);
        }
        for tensor in &self.tensors {
            file.extend(bare_string(tensor.name.as_bytes()));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(tensor.dtype.to_le_bytes());
            file.extend(tensor.offset.to_le_bytes());
        }
        file
    }

    /// The whole file.
    pub(super) fn build(&self) -> Vec<u8> {
        let mut file = self.header();
        file.resize(file.len().next_multiple_of(32) + self.data, 0);
        file
    }
}
