//! An adapter as one piece of bytes, on the wire and on disk: `SHOALPA1`, the configuration's length (`u32` little-endian), the
//! bytes of `adapter_config.json`, the bytes of `adapter_model.safetensors`. Its BLAKE3 is the adapter's generation, so that
//! equal files are one generation wherever they came from.

use crate::ids::{Digest, Generation};

/// What the bytes begin with.
const MAGIC: &[u8; 8] = b"SHOALPA1";
/// Bytes before the configuration.
const HEADER: usize = MAGIC.len() + 4;

/// Largest `adapter_config.json`, in bytes: they have some 2 KB, and long lists of modules make a few dozen.
pub const MAX_CONFIG: usize = 1 << 20;
/// Largest bundle, in bytes, whatever is configured: rank 256 on every linear layer of an 8B model is 2.7 GB in f32.
pub const MAX_BUNDLE: u64 = 4 << 30;

/// The two files of an adapter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bundle<'a> {
    /// `adapter_config.json`
    pub config: &'a [u8],
    /// `adapter_model.safetensors`
    pub weights: &'a [u8],
}

/// Why bytes are not a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBundle {
    /// They begin with something else, or end too soon.
    #[error("these bytes are not an adapter bundle")]
    NotABundle,
    /// The configuration is too long.
    #[error("adapter_config.json has more than {MAX_CONFIG} bytes")]
    ConfigTooLong,
}

impl<'a> Bundle<'a> {
    /// Takes `bytes` apart without a look at what the files hold.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadBundle> {
        let (header, files) = bytes.split_at_checked(HEADER).ok_or(BadBundle::NotABundle)?;
        let length = header.strip_prefix(MAGIC).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
        let length = length.ok_or(BadBundle::NotABundle)? as usize;
        if length > MAX_CONFIG {
            return Err(BadBundle::ConfigTooLong);
        }
        let (config, weights) = files.split_at_checked(length).ok_or(BadBundle::NotABundle)?;
        Ok(Self { config, weights })
    }

    /// What comes before the two files.
    pub fn header(&self) -> Result<[u8; HEADER], BadBundle> {
        if self.config.len() > MAX_CONFIG {
            return Err(BadBundle::ConfigTooLong);
        }
        let mut header = [0; HEADER];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..].copy_from_slice(&(self.config.len() as u32).to_le_bytes());
        Ok(header)
    }

    /// The bundle's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BadBundle> {
        Ok([&self.header()?[..], self.config, self.weights].concat())
    }

    /// The digest of [`Bundle::to_bytes`].
    pub fn generation(&self) -> Result<Generation, BadBundle> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.header()?).update(self.config).update(self.weights);
        Ok(Generation(Digest(*hasher.finalize().as_bytes())))
    }
}

impl std::fmt::Debug for Bundle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bundle({} and {} bytes)", self.config.len(), self.weights.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_what_was_put_in_and_is_named_by_it() {
        let bundle = Bundle { config: b"{}", weights: b"weights" };
        let bytes = bundle.to_bytes().unwrap();
        assert_eq!(Bundle::parse(&bytes), Ok(bundle));
        assert_eq!(bundle.generation(), Ok(Generation(Digest::of(&bytes))));
        // Where one file ends and the other begins is part of the identity.
        let shifted = Bundle { config: b"{}w", weights: b"eights" };
        assert_ne!(shifted.generation(), bundle.generation());
    }

    #[test]
    fn no_bytes_make_a_bundle_larger_than_themselves() {
        let whole = Bundle { config: b"{\"r\": 8}", weights: b"" }.to_bytes().unwrap();
        for end in 0..whole.len() {
            assert_eq!(Bundle::parse(&whole[..end]), Err(BadBundle::NotABundle), "{end} bytes");
        }
        let mut huge = whole.clone();
        huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Bundle::parse(&huge), Err(BadBundle::ConfigTooLong));
        let config = vec![b' '; MAX_CONFIG + 1];
        assert_eq!(Bundle { config: &config, weights: b"" }.to_bytes(), Err(BadBundle::ConfigTooLong));
    }
}
