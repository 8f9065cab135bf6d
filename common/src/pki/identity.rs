//! The identity of one router or worker: certificate, private key and the authority to believe. Checked when it is read, so
//! that a wrong file is a clear sentence at start and not a failed handshake later.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};

use super::files::{self, Secrecy};
use super::{CertificateFault, PkiError, Role, Subject};
use crate::ids::Name;

/// Proof of being one router or worker of a cluster. Cheap to clone; its `Debug` shows whom it names and no key.
#[derive(Clone)]
pub struct Identity {
    pub(super) subject: Subject,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Arc<PrivatePkcs8KeyDer<'static>>,
    /// Several while an authority is being replaced.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads `NAME.pem`, `NAME.key` and `ca.pem` from `dir` and checks that they belong together, name `name` in `role` and
    /// are valid now. A `/` in the name is `%2F` in the file's.
    pub fn load(dir: &Path, name: &Name, role: Role) -> Result<Self, PkiError> {
        let path = files::member_file(dir, name, "pem")?;
        let unusable = |source| PkiError::Unusable { path: path.clone(), source };
        let chain = files::read_certificates(&path)?;
        let subject = Subject::of(&chain[0]).map_err(unusable)?;
        let identity = Self {
            subject: expect(subject, name, role).map_err(unusable)?,
            chain,
            key: Arc::new(files::read_key(&files::member_file(dir, name, "key")?)?),
            roots: files::read_certificates(&dir.join(files::CA_CERTIFICATE))?,
        };
        identity.check(SystemTime::now()).map_err(unusable)?;
        Ok(identity)
    }

    /// Writes `NAME.pem`, `NAME.key` (mode 0600) and `ca.pem` to `dir`, which is made if missing. Files of the same name are
    /// replaced: that is how a certificate is renewed.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        files::make_dir(dir)?;
        let member = |extension| files::member_file(dir, &self.subject.name, extension);
        files::write(&member("key")?, &files::key_pem(&self.key), Secrecy::Private)?;
        files::write(&member("pem")?, &files::certificates_pem(&self.chain), Secrecy::Public)?;
        files::write(&dir.join(files::CA_CERTIFICATE), &files::certificates_pem(&self.roots), Secrecy::Public)
    }

    /// The role it proves.
    pub fn role(&self) -> Role {
        self.subject.role
    }

    /// The name it proves.
    pub fn name(&self) -> &Name {
        &self.subject.name
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> &Name {
        &self.subject.cluster
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(crate) fn key(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key.clone_key()
    }

    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The checks that the other side will make, with the time as an argument, and that the key is the certificate's.
    pub(super) fn check(&self, now: SystemTime) -> Result<(), CertificateFault> {
        key_fits(self.chain.clone(), &self.key)?;
        let end_entity = webpki::EndEntityCert::try_from(&self.chain[0]).map_err(CertificateFault::Untrusted)?;
        let anchors = self.roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>();
        let usage = match self.subject.role {
            Role::Router => webpki::KeyUsage::server_auth(),
            Role::Worker => webpki::KeyUsage::client_auth(),
        };
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        end_entity
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &anchors.map_err(CertificateFault::Untrusted)?,
                &self.chain[1..],
                now,
                usage,
                None,
                None,
            )
            .map_err(fault)?;
        Ok(())
    }
}

/// The one provider of cryptography, passed to every configuration: nothing is installed for the whole process, so a
/// dependency that prefers another provider cannot change ours.
pub(crate) fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

pub(super) fn key_fits(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivatePkcs8KeyDer<'static>,
) -> Result<(), CertificateFault> {
    rustls::sign::CertifiedKey::from_der(chain, key.clone_key().into(), &provider())
        .map(drop)
        .map_err(CertificateFault::KeyMismatch)
}

fn expect(subject: Subject, name: &Name, role: Role) -> Result<Subject, CertificateFault> {
    if subject.role != role {
        return Err(CertificateFault::WrongRole { expected: role, got: subject.role });
    }
    if subject.name != *name {
        return Err(CertificateFault::WrongName { expected: name.clone(), got: subject.name });
    }
    Ok(subject)
}

fn fault(error: webpki::Error) -> CertificateFault {
    match error {
        webpki::Error::CertExpired { not_after, .. } => CertificateFault::Expired(date(not_after)),
        webpki::Error::CertNotValidYet { not_before, .. } => CertificateFault::NotYetValid(date(not_before)),
        other => CertificateFault::Untrusted(other),
    }
}

/// `YYYY-MM-DD`, UTC.
fn date(time: UnixTime) -> String {
    (rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(time.as_secs())).date().to_string()
}
