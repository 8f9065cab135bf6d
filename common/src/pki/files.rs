//! The files of an authority and its identities: PEM in and out, sizes bounded, private keys readable by their owner only.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::PkiError;
use crate::ids::Name;

/// The authority's certificate, beside every identity.
pub(super) const CA_CERTIFICATE: &str = "ca.pem";
/// The authority's private key; only where certificates are issued.
pub(super) const CA_KEY: &str = "ca.key";

/// Largest file read, in bytes: a chain is 2 KB.
const MAX_FILE: u64 = 256 << 10;

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Secrecy {
    /// Everybody.
    Public,
    /// The owner.
    Private,
}

impl Secrecy {
    fn mode(self) -> u32 {
        match self {
            Self::Public => 0o644,
            Self::Private => 0o600,
        }
    }
}

/// `NAME.EXTENSION` in `dir`. A name may hold `/`; with `/` written `%2F` it is one path component that begins with a letter
/// or digit, so it cannot leave the directory.
pub(super) fn member_file(dir: &Path, name: &Name, extension: &str) -> Result<PathBuf, PkiError> {
    if name.as_str().eq_ignore_ascii_case("ca") {
        return Err(PkiError::ReservedName(name.clone()));
    }
    Ok(dir.join(format!("{}.{extension}", super::escape(name))))
}

fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    let bounded = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    };
    bounded().map_err(|source| PkiError::Read { path: path.to_owned(), source })
}

/// Every certificate of a PEM file, at least one.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let bytes = read(path)?;
    match CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>() {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(PkiError::NotPem { path: path.to_owned(), section: "CERTIFICATE" }),
    }
}

/// The PKCS #8 key of a PEM file. The parser's error is dropped: it could quote the file.
pub(super) fn read_key(path: &Path) -> Result<PrivatePkcs8KeyDer<'static>, PkiError> {
    PrivatePkcs8KeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| PkiError::NotPem { path: path.to_owned(), section: "PRIVATE KEY" })
}

/// Certificates as PEM text.
pub(super) fn certificates_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| encode("CERTIFICATE", certificate)).collect()
}

/// A private key as PEM text.
pub(super) fn key_pem(key: &PrivatePkcs8KeyDer<'_>) -> String {
    encode("PRIVATE KEY", key.secret_pkcs8_der())
}

fn encode(section: &str, der: &[u8]) -> String {
    let unix = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(section, der), unix)
}

/// Makes `dir` if it is missing.
pub(super) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    fs::create_dir_all(dir).map_err(|source| PkiError::Write { path: dir.to_owned(), source })
}

/// Writes `text` to `path`, whole or not at all, with its permissions from the first byte on.
pub(super) fn write(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), PkiError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let whole = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(secrecy.mode()).open(&beside)?;
        file.set_permissions(Permissions::from_mode(secrecy.mode()))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    whole().map_err(|source| PkiError::Write { path: path.to_owned(), source })
}
