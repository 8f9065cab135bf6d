//! Certificates that are the same in every run, but for their dates: with keys from fixed bytes, and Ed25519, whose
//! signatures all have one length. Those of ECDSA, which `shoal cert` issues, differ in length from one to the next, and so
//! would the datagrams of a handshake. Called by `cluster`.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use shoal_common::ids::Name;
use shoal_common::pki::{Identity, Role};

/// Of every simulated cluster.
pub const CLUSTER: &str = "sim";
/// Certificates are valid for this long before and after now.
const VALID: Duration = Duration::from_secs(24 * 60 * 60);
/// A PKCS #8 document up to the 32 bytes of an Ed25519 seed (RFC 8410).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Issues identities.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    issued: u8,
}

impl Authority {
    /// The one authority of all simulations.
    pub fn new() -> anyhow::Result<Self> {
        let key = key(0)?;
        let mut params = params(0, format!("shoal://{CLUSTER}/authority"))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, issued: 0 })
    }

    /// The identity of `name`; the next call's is another one.
    pub fn issue(&mut self, role: Role, name: &Name) -> anyhow::Result<Identity> {
        self.issued += 1;
        let key = key(self.issued)?;
        let mut params = params(self.issued, format!("shoal://{CLUSTER}/{role}/{name}"))?;
        params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(role.server_name())?));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Router => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Worker => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let dir = tempfile::tempdir().context("no room for certificates")?;
        let write = |file: &str, text: &str| fs::write(Path::new(dir.path()).join(file), text);
        write("ca.pem", &self.certificate)?;
        write(&format!("{name}.pem"), &certificate)?;
        write(&format!("{name}.key"), &key.serialize_pem())?;
        Ok(Identity::load(dir.path(), name, role)?)
    }
}

/// Key number `number`.
fn key(number: u8) -> anyhow::Result<KeyPair> {
    let der = [&PKCS8_HEAD[..], &[number; 32]].concat();
    Ok(KeyPair::try_from(der)?)
}

fn params(number: u8, uri: String) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(vec![1, number]));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("member {number} of the simulation"));
    params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri)?));
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    (params.not_before, params.not_after) = (epoch + (since_epoch - VALID), epoch + since_epoch + VALID);
    Ok(params)
}
