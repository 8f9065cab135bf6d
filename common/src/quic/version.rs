//! Which versions of the protocol a side speaks, and which one a connection speaks. Called by the endpoints, which offer them,
//! and by whoever reads or writes what differs between versions.
//!
//! Each side lists its versions in the TLS handshake (ALPN), the newest first; the side that is dialled picks the first of its
//! own that the other has, which is the highest that both have. Where there is none the handshake fails: no frame is ever read
//! by a side that might misread it. Routers and workers speak one protocol, heads and stages another, workers among themselves a
//! third, each numbered on its own.
//!
//! To add version N + 1 of one:
//! - Put it first in the list. N stays behind it for one release at least, so that the workers of a cluster can be rolled one
//!   by one and its router last.
//! - Whatever is not the same bytes in both versions is written and read by the version of its connection
//!   ([`Protocol::picked`]). Nothing is ever added to a version that was released: frames have no fields that a reader could
//!   pass over. The snapshots of N stay as they are; N + 1 has its own beside them.
//! - What a peer of N does not know is not sent to it, or the peer is refused with a sentence.
//! - No answer may depend on the version: what changes a token changes the fingerprint or a stage's numerics class, and those
//!   are compared by themselves. So builds that differ in their version may serve one model side by side.
//! - To drop N is to take it off the list.

use std::fmt;

use quinn::Connection;
use quinn::crypto::rustls::HandshakeData;

/// The number of a version. A later one is higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u16);

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What two kinds of processes speak with each other, in the versions that this side knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    name: &'static str,
    /// The newest first, at least one.
    versions: &'static [ProtocolVersion],
}

impl Protocol {
    /// Of routers and workers.
    pub const ROUTER: Self = Self::new("shoal", &[ProtocolVersion(4)]);
    /// Of the head of a replica and its stages: a router that dials a stage, or a head that dials a router, gets no further.
    pub const STAGE: Self = Self::new("shoal-stage", &[ProtocolVersion(1)]);
    /// Of workers that fetch adapters from each other.
    pub const PEER: Self = Self::new("shoal-peer", &[ProtocolVersion(1)]);

    pub(super) const fn new(name: &'static str, versions: &'static [ProtocolVersion]) -> Self {
        Self { name, versions }
    }

    /// The newest that this side speaks.
    pub const fn newest(self) -> ProtocolVersion {
        self.versions[0]
    }

    /// What the handshake of `connection` picked; nothing where it speaks another protocol.
    pub fn picked(self, connection: &Connection) -> Option<ProtocolVersion> {
        let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
        let picked = data.protocol?;
        self.versions.iter().copied().find(|version| self.spelled(*version).as_bytes() == picked)
    }

    /// A version as it stands in the handshake.
    pub fn spelled(self, version: ProtocolVersion) -> String {
        format!("{}/{version}", self.name)
    }

    /// What this side offers, or picks from.
    pub(super) fn alpn(self) -> Vec<Vec<u8>> {
        self.versions.iter().map(|version| self.spelled(*version).into_bytes()).collect()
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, version) in self.versions.iter().enumerate() {
            let before = if at == 0 { "" } else { ", " };
            write!(f, "{before}{}", self.spelled(*version))?;
        }
        Ok(())
    }
}
