//! Framing and byte format: `u32` little-endian length, then bincode 2 (standard configuration). The only caller of
//! bincode. A length is checked against its kind's limit before a byte of the body is allocated, and a body must be
//! consumed whole.

use bytes::{Buf, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::blob::{BlobHeader, Nearer, TokenizerBundle};
use super::hello::{RouterControl, WorkerControl};
use super::message::{GroupFrame, GroupOrder, StreamOpen, WorkerOpen};
use super::stage::{HeadFrame, StageFrame};

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The stream ended between frames: the orderly end.
    #[error("the stream ended")]
    Ended,
    /// The peer announced, or we built, more than the kind allows.
    #[error("a frame of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// Announced length.
        len: usize,
        /// Limit of the kind.
        limit: usize,
    },
    /// The bytes are not a value of the kind.
    #[error("a malformed frame")]
    Malformed(#[source] Box<bincode::error::DecodeError>),
    /// Bytes are left after the value.
    #[error("{0} bytes too many in a frame")]
    Trailing(usize),
    /// A value that cannot be encoded.
    #[error("a value cannot be encoded")]
    Encode(#[source] bincode::error::EncodeError),
    /// The transport failed, or the stream ended within a frame.
    #[error("the stream broke")]
    Io(#[from] std::io::Error),
}

/// A kind of frame with the largest body it may have, in bytes.
pub trait Frame: Serialize + DeserializeOwned {
    /// Largest encoded body.
    const LIMIT: usize;
}

impl Frame for WorkerControl {
    const LIMIT: usize = 64 << 10;
}
impl Frame for RouterControl {
    const LIMIT: usize = 64 << 10;
}
// Prompt and emitted tokens: at most 5 bytes an id, a million ids over prompt and branches.
impl Frame for StreamOpen {
    const LIMIT: usize = 8 << 20;
}
impl Frame for WorkerOpen {
    const LIMIT: usize = 64;
}
impl Frame for GroupOrder {
    const LIMIT: usize = 64;
}
// A chunk of prompt scores: 1,024 tokens with 20 alternatives of 9 bytes are 200 KB.
impl Frame for GroupFrame {
    const LIMIT: usize = 1 << 20;
}
// 4,096 sequences of 512 blocks on average, each of at most 5 bytes, are 10 MB.
impl Frame for HeadFrame {
    const LIMIT: usize = 16 << 20;
}
impl Frame for StageFrame {
    const LIMIT: usize = 4 << 10;
}
impl Frame for BlobHeader {
    const LIMIT: usize = 64;
}
// Two names of at most 128 bytes.
impl Frame for Nearer {
    const LIMIT: usize = 512;
}
impl Frame for TokenizerBundle {
    const LIMIT: usize = super::blob::MAX_TOKENIZER_BUNDLE as usize;
}

/// Bytes of the length prefix.
const PREFIX: usize = 4;

/// Bytes of room made before each read: a step's frames of many groups fit.
const READ_CHUNK: usize = 8 << 10;

fn encode_body<F: Frame>(value: &F, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    bincode::serde::encode_into_std_write(value, out, bincode::config::standard()).map_err(CodecError::Encode)?;
    let len = out.len() - start;
    if len > F::LIMIT {
        out.truncate(start);
        return Err(CodecError::TooLong { len, limit: F::LIMIT });
    }
    Ok(())
}

/// Decodes one whole body.
pub fn decode<F: Frame>(body: &[u8]) -> Result<F, CodecError> {
    if body.len() > F::LIMIT {
        return Err(CodecError::TooLong { len: body.len(), limit: F::LIMIT });
    }
    let (value, used) = decode_bounded(body).map_err(|error| CodecError::Malformed(Box::new(error)))?;
    if used == body.len() { Ok(value) } else { Err(CodecError::Trailing(body.len() - used)) }
}

/// Decodes within what a well-formed body of this size can claim: 8 bytes for each of its own, since bincode counts an
/// integer at its full width and a `u64` may take one byte. A string claims its announced length before it is allocated, so
/// a short body cannot ask for a long one. bincode's limit is a const parameter, hence the rungs.
fn decode_bounded<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), bincode::error::DecodeError> {
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    let config = bincode::config::standard();
    let len = body.len();
    if len <= KIB {
        bincode::serde::decode_from_slice(body, config.with_limit::<{ 8 * KIB }>())
    } else if len <= 64 * KIB {
        bincode::serde::decode_from_slice(body, config.with_limit::<{ 512 * KIB }>())
    } else if len <= MIB {
        bincode::serde::decode_from_slice(body, config.with_limit::<{ 8 * MIB }>())
    } else if len <= 8 * MIB {
        bincode::serde::decode_from_slice(body, config.with_limit::<{ 64 * MIB }>())
    } else {
        bincode::serde::decode_from_slice(body, config.with_limit::<{ 512 * MIB }>())
    }
}

/// The body of `value` without a prefix, for content that is hashed or stored.
pub fn encode<F: Frame>(value: &F) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    encode_body(value, &mut out)?;
    Ok(out)
}

/// Appends `value` as a frame to `out`; leaves `out` as it was on error.
pub fn encode_frame<F: Frame>(value: &F, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    match encode_body(value, out) {
        Ok(()) => {
            let len = (out.len() - start - PREFIX) as u32;
            out[start..start + PREFIX].copy_from_slice(&len.to_le_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Reads one frame and not a byte beyond it. [`CodecError::Ended`] when the stream ends before it begins. Not cancel-safe:
/// a caller that selects over frames uses a [`FrameReader`].
pub async fn read_frame<F: Frame, R: AsyncRead + Unpin>(reader: &mut R) -> Result<F, CodecError> {
    let mut prefix = [0; PREFIX];
    let mut got = 0;
    while got < PREFIX {
        match reader.read(&mut prefix[got..]).await? {
            0 if got == 0 => return Err(CodecError::Ended),
            0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            n => got += n,
        }
    }
    let len = announced::<F>(prefix)?;
    // Grown as bytes arrive: an announced length alone costs nothing.
    let mut body = Vec::with_capacity(len.min(READ_CHUNK));
    let read = reader.take(len as u64).read_to_end(&mut body).await?;
    if read < len {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    decode(&body)
}

/// The length in a prefix, if the kind allows it.
fn announced<F: Frame>(prefix: [u8; PREFIX]) -> Result<usize, CodecError> {
    let len = u32::from_le_bytes(prefix) as usize;
    if len > F::LIMIT { Err(CodecError::TooLong { len, limit: F::LIMIT }) } else { Ok(len) }
}

/// Reads frames off a stream. Cancel-safe: bytes that arrived stay in the reader when a `next` is dropped.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader at the beginning of a frame.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::new() }
    }

    /// The next frame; [`CodecError::Ended`] when the stream ends before one begins.
    pub async fn next<F: Frame>(&mut self) -> Result<F, CodecError> {
        loop {
            if let Some(value) = self.take()? {
                return Ok(value);
            }
            // Grown as bytes arrive: an announced length alone costs nothing.
            self.buffer.reserve(READ_CHUNK);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Err(CodecError::Ended)
                } else {
                    Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    /// The next `len` bytes, which follow a frame raw, appended to `out`. Not cancel-safe.
    pub async fn raw(&mut self, mut len: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let buffered = self.buffer.split_to(len.min(self.buffer.len()));
        out.extend_from_slice(&buffered);
        len -= buffered.len();
        // Grown as bytes arrive: an announced length alone costs nothing.
        let read = (&mut self.reader).take(len as u64).read_to_end(out).await?;
        if read < len { Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()) } else { Ok(()) }
    }

    /// The stream behind the reader and the bytes read from it beyond the last frame.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.reader, self.buffer)
    }

    /// Decodes the frame at the head of the buffer, if it is whole.
    fn take<F: Frame>(&mut self) -> Result<Option<F>, CodecError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = announced::<F>(*prefix)?;
        if self.buffer.len() < PREFIX + len {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        decode(&self.buffer.split_to(len)).map(Some)
    }
}

/// Writes one frame.
pub async fn write_frame<F: Frame, W: AsyncWrite + Unpin>(writer: &mut W, value: &F) -> Result<(), CodecError> {
    let mut bytes = Vec::new();
    encode_frame(value, &mut bytes)?;
    writer.write_all(&bytes).await?;
    Ok(())
}
