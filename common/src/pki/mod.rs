//! Who may play which role: a cluster has one certificate authority, and every router and worker an identity issued by it.
//! Owns the form of the certificates, their files and their checks. `shoal cert` and dev mode issue; [`quic`](crate::quic)
//! puts identities into TLS. Never opens a socket.
//!
//! A certificate says two things in its subject alternative names:
//! - `DNS:router.shoal.internal` or `DNS:worker.shoal.internal`, the fixed server name that TLS checks when one dials: a
//!   worker's certificate cannot pass for a router's, whatever the address;
//! - `URI:shoal://CLUSTER/ROLE/NAME`, the exact names, in which `/` is written `%2F` so that no two subjects share a URI.

mod authority;
mod files;
mod identity;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;

use rustls_pki_types::CertificateDer;

pub use authority::Authority;
pub use identity::Identity;
pub(crate) use identity::provider;

use crate::ids::Name;

/// What a process is in a cluster; every identity is for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Takes HTTP requests; workers dial it.
    Router,
    /// Hosts a model; dials routers.
    Worker,
}

impl Role {
    /// The DNS name in every certificate of this role, which TLS checks against the role that was dialled.
    pub const fn server_name(self) -> &'static str {
        match self {
            Self::Router => "router.shoal.internal",
            Self::Worker => "worker.shoal.internal",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Router => "router",
            Self::Worker => "worker",
        })
    }
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The cluster.
    pub cluster: Name,
    /// The role.
    pub role: Role,
    /// The name within the cluster.
    pub name: Name,
}

/// What a certificate's URI stands for: the authority itself, or one member.
enum Holder {
    Authority(Name),
    Member(Subject),
}

const SCHEME: &str = "shoal://";
const AUTHORITY: &str = "authority";

/// `%` is not in a [`Name`]'s alphabet, so this is reversible and free of `/`.
fn escape(name: &Name) -> String {
    name.as_str().replace('/', "%2F")
}

fn unescape(text: &str) -> Option<Name> {
    Name::new(text.replace("%2F", "/")).ok()
}

fn authority_uri(cluster: &Name) -> String {
    format!("{SCHEME}{}/{AUTHORITY}", escape(cluster))
}

impl Holder {
    fn from_uri(uri: &str) -> Option<Self> {
        let parts: Vec<&str> = uri.strip_prefix(SCHEME)?.split('/').collect();
        let member = |cluster, role, name| {
            Some(Self::Member(Subject { cluster: unescape(cluster)?, role, name: unescape(name)? }))
        };
        match parts.as_slice() {
            [cluster, AUTHORITY] => unescape(cluster).map(Self::Authority),
            [cluster, "router", name] => member(cluster, Role::Router, name),
            [cluster, "worker", name] => member(cluster, Role::Worker, name),
            _ => None,
        }
    }

    /// From the one URI of a certificate; several could contradict each other, so they are refused.
    fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateFault> {
        let parsed = webpki::EndEntityCert::try_from(certificate).map_err(CertificateFault::Untrusted)?;
        let mut uris = parsed.valid_uri_names();
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::from_uri(uri).ok_or(CertificateFault::Foreign),
            _ => Err(CertificateFault::Foreign),
        }
    }
}

impl Subject {
    /// Reads whom `certificate` names. Proves nothing: whoever calls has checked the signature, as TLS does.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateFault> {
        match Holder::of(certificate)? {
            Holder::Member(subject) => Ok(subject),
            Holder::Authority(_) => Err(CertificateFault::Foreign),
        }
    }

    fn uri(&self) -> String {
        format!("{SCHEME}{}/{}/{}", escape(&self.cluster), self.role, escape(&self.name))
    }
}

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFault {
    /// It carries no `shoal://` name, or several.
    #[error("the certificate is not one of a shoal cluster: it has no single shoal:// name")]
    Foreign,
    /// It is for the other role.
    #[error("the certificate is for a {got}, not for a {expected}")]
    WrongRole {
        /// The role that was needed.
        expected: Role,
        /// The role it has.
        got: Role,
    },
    /// It is for somebody else.
    #[error("the certificate is for {got}, not for {expected}")]
    WrongName {
        /// The name that was needed.
        expected: Name,
        /// The name it has.
        got: Name,
    },
    /// Its time is over.
    #[error("the certificate expired on {0}")]
    Expired(String),
    /// Its time has not come: usually the clock of this machine is wrong.
    #[error("the certificate is not valid before {0}; is this machine's clock right?")]
    NotYetValid(String),
    /// The private key is not the certificate's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch(#[source] rustls::Error),
    /// It was not issued by the authority beside it, or cannot be read.
    #[error("the certificate was not issued by this cluster's authority")]
    Untrusted(#[source] webpki::Error),
}

/// Why an authority or an identity could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An authority is never overwritten: every certificate it issued would be void.
    #[error("{} exists already; an authority is never overwritten", .0.display())]
    AuthorityExists(PathBuf),
    /// A file does not hold the PEM sections it should.
    #[error("{} holds no {section} in PEM form", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// The section that was looked for.
        section: &'static str,
    },
    /// The authority's own files have this name.
    #[error("`{0}` cannot be the name of a router or worker: the authority's files are called so")]
    ReservedName(Name),
    /// A certificate read from a file cannot be used.
    #[error("{} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CertificateFault,
    },
    /// What was just issued would be refused by the other side: the authority's certificate is not one that we wrote.
    #[error("what the authority issued does not verify")]
    CannotIssue(#[source] CertificateFault),
    /// A key could not be made or used for signing.
    #[error("a key could not be made or used")]
    Key(#[from] rcgen::Error),
}
