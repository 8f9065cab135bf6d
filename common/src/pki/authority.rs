//! The authority of a cluster: makes its own certificate and issues those of routers and workers. Lives in memory in dev
//! mode, otherwise in the directory where `shoal cert` runs; its key is needed nowhere else.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::files::{self, Secrecy};
use super::{CertificateFault, Holder, Identity, PkiError, Role, Subject, authority_uri};
use crate::ids::{Digest, Name};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Certificates begin this much in the past: members' clocks may be behind the issuer's.
const CLOCK_SLACK: Duration = DAY;
/// Ten years: replacing an authority means touching every machine.
const AUTHORITY_LIFE: Duration = Duration::from_secs(3650 * DAY.as_secs());
/// The longest that common TLS stacks take from a private authority.
const MEMBER_LIFE: Duration = Duration::from_secs(825 * DAY.as_secs());

/// A cluster's certificate authority with its private key.
pub struct Authority {
    cluster: Name,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// A fresh authority for `cluster`, in memory.
    pub fn create(cluster: &Name) -> Result<Self, PkiError> {
        Self::create_at(cluster, SystemTime::now())
    }

    pub(super) fn create_at(cluster: &Name, now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let params = authority_params(cluster, &key, now)?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { cluster: cluster.clone(), certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads the authority that [`save`](Self::save) wrote to `dir`.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join(files::CA_CERTIFICATE);
        let unusable = |source| PkiError::Unusable { path: path.clone(), source };
        let certificate = files::read_certificates(&path)?.swap_remove(0);
        let der = files::read_key(&dir.join(files::CA_KEY))?;
        let key = KeyPair::try_from(&der)?;
        match Holder::of(&certificate).map_err(unusable)? {
            Holder::Authority(cluster) => {
                super::identity::key_fits(vec![certificate.clone()], &der).map_err(unusable)?;
                // The issuer's name and usages are functions of cluster and key; its dates do not matter for issuing.
                let params = authority_params(&cluster, &key, SystemTime::now())?;
                Ok(Self { cluster, certificate, issuer: Issuer::new(params, key) })
            }
            Holder::Member(_) => Err(unusable(CertificateFault::Foreign)),
        }
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) to `dir`, which is made if missing. Never overwrites an authority.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        files::make_dir(dir)?;
        let (certificate, key) = (dir.join(files::CA_CERTIFICATE), dir.join(files::CA_KEY));
        for path in [&certificate, &key] {
            if path.exists() {
                return Err(PkiError::AuthorityExists(path.clone()));
            }
        }
        files::write(&key, &self.issuer.key().serialize_pem(), Secrecy::Private)?;
        files::write(&certificate, &files::certificates_pem(std::slice::from_ref(&self.certificate)), Secrecy::Public)
    }

    /// The cluster it is for.
    pub fn cluster(&self) -> &Name {
        &self.cluster
    }

    /// Issues an identity with a fresh key, valid for 825 days.
    pub fn issue(&self, role: Role, name: &Name) -> Result<Identity, PkiError> {
        self.issue_at(role, name, SystemTime::now())
    }

    pub(crate) fn issue_at(&self, role: Role, name: &Name, now: SystemTime) -> Result<Identity, PkiError> {
        let subject = Subject { cluster: self.cluster.clone(), role, name: name.clone() };
        let key = KeyPair::generate()?;
        let certificate = member_params(&subject, now)?.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            subject,
            chain: vec![certificate.der().clone()],
            key: Arc::new(PrivatePkcs8KeyDer::from(key)),
            roots: vec![self.certificate.clone()],
        };
        // Nothing leaves that the other side would refuse.
        identity.check(now).map_err(PkiError::CannotIssue)?;
        Ok(identity)
    }
}

fn authority_params(cluster: &Name, key: &KeyPair, now: SystemTime) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    // The key's digest tells two authorities of one cluster name apart, so that a certificate of the wrong one is refused
    // as of an unknown authority and not as badly signed.
    let digest = Digest::of(key.der_bytes()).short();
    set_common_name(&mut params, &format!("{digest} shoal authority of {cluster}"));
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(authority_uri(cluster))?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params, now, AUTHORITY_LIFE);
    Ok(params)
}

fn member_params(subject: &Subject, now: SystemTime) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    set_common_name(&mut params, &format!("{} {}", subject.role, subject.name));
    params.subject_alt_names = vec![
        SanType::DnsName(Ia5String::try_from(subject.role.server_name())?),
        SanType::URI(Ia5String::try_from(subject.uri())?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match subject.role {
        Role::Router => vec![ExtendedKeyUsagePurpose::ServerAuth],
        // A stage is dialled by the stage before it, as `worker.shoal.internal`; the DNS name keeps it from being a router.
        Role::Worker => vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
    };
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, MEMBER_LIFE);
    Ok(params)
}

/// For people only; X.520 allows 64 characters.
fn set_common_name(params: &mut CertificateParams, text: &str) {
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, text.chars().take(64).collect::<String>());
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + since_epoch + life;
}
