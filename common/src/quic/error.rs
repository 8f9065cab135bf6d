//! Why a connection failed, told so that an operator knows what to do, and the codes with which Shoal closes connections.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ApplicationClose, ConnectError, Connection, ConnectionError, VarInt};

use super::Protocol;
use crate::pki::CertificateFault;

/// Why an endpoint or a connection could not be had, or was lost.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be bound.
    #[error("cannot bind udp {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// An identity cannot be used for TLS.
    #[error("the identity cannot be used for tls")]
    Tls(#[from] rustls::Error),
    /// No client verifier can be made of the authority's certificate.
    #[error("the authority's certificate cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The idle timer does not fit the protocol.
    #[error("an idle timer of {0:?} cannot be announced to a peer")]
    IdleTooLong(Duration),
    /// An identity, ours or the peer's, is for another role or cluster.
    #[error("an identity does not fit")]
    Identity(#[from] CertificateFault),
    /// The peer has shown no certificate.
    #[error("the peer has no certificate")]
    Anonymous,
    /// The attempt could not begin.
    #[error("cannot dial")]
    Dial(#[from] ConnectError),
    /// Nobody answered in time, or the handshake did not end in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// One side refused the other in the handshake.
    #[error("{by} refused the connection: {why}")]
    Handshake {
        /// Who.
        by: RefusedBy,
        /// Why.
        why: Rejection,
        /// With TLS's own words.
        source: ConnectionError,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection: {0}")]
    Closed(CloseCode),
    /// The connection was lost.
    #[error("the connection was lost")]
    Lost(#[source] ConnectionError),
}

/// Which side refused a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// This process.
    Us,
    /// The other end.
    Peer,
}

impl fmt::Display for RefusedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Us => "this side",
            Self::Peer => "the peer",
        })
    }
}

/// Why a handshake was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The certificate's dates.
    #[error("the other's certificate has expired or is not valid yet (is the clock right?)")]
    Expired,
    /// The certificate comes from another authority.
    #[error("the other's certificate is of another cluster")]
    OtherCluster,
    /// The certificate is for the other role.
    #[error("the other's certificate is not for the role it plays")]
    WrongRole,
    /// No certificate at all.
    #[error("the other showed no certificate")]
    NoCertificate,
    /// No common version of the protocol.
    #[error(
        "the two speak no common version of the protocol; this side speaks {} with workers and routers, {} between stages, {} \
         between workers that share adapters",
        Protocol::ROUTER,
        Protocol::STAGE,
        Protocol::PEER
    )]
    Version,
    /// Anything else, as a TLS alert.
    #[error("tls alert {0}")]
    Alert(u8),
}

impl Rejection {
    /// From a transport error code; `None` where it is not of TLS (RFC 9001: 0x100 + alert).
    fn from_code(code: u64) -> Option<Self> {
        let alert = u8::try_from(code.checked_sub(0x100)?).ok()?;
        Some(match alert {
            // bad_certificate (a name that does not fit) and unsupported_certificate (a purpose that does not)
            42 | 43 => Self::WrongRole,
            45 => Self::Expired,
            48 => Self::OtherCluster,
            116 => Self::NoCertificate,
            120 => Self::Version,
            other => Self::Alert(other),
        })
    }
}

impl Rejection {
    /// What an operator can do about it.
    pub const fn advice(self) -> Option<&'static str> {
        Some(match self {
            Self::Expired => {
                "set the clock, or renew the certificate that is over: `shoal cert issue`, copy it, restart its process"
            }
            Self::OtherCluster => {
                "issue the certificates of both sides by the same authority: their ca.pem must be equal"
            }
            Self::WrongRole => {
                "issue the router's certificate with `shoal cert issue --role router`, a worker's with `--role worker`"
            }
            Self::NoCertificate => "issue a certificate with `shoal cert issue` and set cluster.pki to its directory",
            Self::Version => {
                "run the same version of shoal on both sides; the log of each says what it speaks: roll the one that is behind"
            }
            Self::Alert(_) => return None,
        })
    }
}

impl QuicError {
    /// What an operator can do about it, where that is known.
    pub const fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Handshake { why, .. } => why.advice(),
            Self::Identity(_) => Rejection::WrongRole.advice(),
            Self::Anonymous => Rejection::NoCertificate.advice(),
            Self::Timeout(_) => Some("see that the router runs at that address and that UDP passes between the two"),
            _ => None,
        }
    }
}

impl From<ConnectionError> for QuicError {
    fn from(error: ConnectionError) -> Self {
        let (by, code) = match &error {
            ConnectionError::TransportError(ours) => (RefusedBy::Us, u64::from(ours.code)),
            ConnectionError::ConnectionClosed(theirs) => (RefusedBy::Peer, u64::from(theirs.error_code)),
            ConnectionError::ApplicationClosed(close) => {
                return CloseCode::from_close(close).map_or(Self::Lost(error), Self::Closed);
            }
            _ => return Self::Lost(error),
        };
        match Rejection::from_code(code) {
            Some(why) => Self::Handshake { by, why, source: error },
            None => Self::Lost(error),
        }
    }
}

/// With what a connection is closed, or a stream reset or stopped. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CloseCode {
    /// The process ends in order.
    Shutdown = 0,
    /// The peer may not be here: its identity, its name or its model.
    Refused = 1,
    /// The peer broke a rule of the protocol.
    Protocol = 2,
    /// A newer life of the same worker has connected.
    Replaced = 3,
    /// This side failed and starts afresh.
    Internal = 4,
    /// On a stream: the answer is no longer wanted.
    Cancelled = 5,
}

impl CloseCode {
    const ALL: [Self; 6] =
        [Self::Shutdown, Self::Refused, Self::Protocol, Self::Replaced, Self::Internal, Self::Cancelled];

    /// The reason in words, as it travels beside the code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Shutdown => "shutting down",
            Self::Refused => "refused",
            Self::Protocol => "the protocol was broken",
            Self::Replaced => "replaced by a newer connection of the same worker",
            Self::Internal => "an internal failure",
            Self::Cancelled => "cancelled",
        }
    }

    /// Closes `connection` with this code and its reason.
    pub fn close(self, connection: &Connection) {
        connection.close(self.into(), self.reason().as_bytes());
    }

    /// The code of a stream reset or stop; `None` for one that this version does not know.
    pub fn from_code(code: VarInt) -> Option<Self> {
        Self::ALL.into_iter().find(|known| VarInt::from(*known) == code)
    }

    fn from_close(close: &ApplicationClose) -> Option<Self> {
        Self::from_code(close.error_code)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(code as u32)
    }
}
