//! A router's Retry tokens without encryption. Not for their own sake: a worker that gave up a dial reads a late Retry's
//! bytes as frames (it answers one close with another until they happen to look like a close), so what is random in them
//! would show. Called by `net`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::{AeadKey, CryptoError, HandshakeTokenKey};
use quinn::{ServerConfig, TimeSource};
use shoal_common::ambient;

/// No frame begins like this.
const NO_FRAME: [u8; 8] = [0xff; 8];

/// Of one life of a router: those of an earlier one are foreign, as with keys that are drawn.
#[derive(Clone, Copy, Debug)]
struct Tokens {
    life: u64,
}

/// Time stands still: a token of a run would else expire when the machine is slow.
struct Still;

impl TimeSource for Still {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30)
    }
}

/// Makes a router's tokens the same in every run.
pub(crate) fn fix(config: &mut ServerConfig) {
    config.token_key(Arc::new(Tokens { life: ambient::draw() })).time_source(Arc::new(Still));
}

impl Tokens {
    fn head(&self) -> [u8; 16] {
        let mut head = [0; 16];
        head[..8].copy_from_slice(&NO_FRAME);
        head[8..].copy_from_slice(&self.life.to_le_bytes());
        head
    }
}

impl HandshakeTokenKey for Tokens {
    fn aead_from_hkdf(&self, _: &[u8]) -> Box<dyn AeadKey> {
        Box::new(*self)
    }
}

impl AeadKey for Tokens {
    fn seal(&self, data: &mut Vec<u8>, _: &[u8]) -> Result<(), CryptoError> {
        data.splice(..0, self.head());
        Ok(())
    }

    fn open<'a>(&self, data: &'a mut [u8], _: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        match data.split_at_mut_checked(16) {
            Some((head, payload)) if *head == self.head() => Ok(payload),
            _ => Err(CryptoError),
        }
    }
}
