//! Promises of authorities and identities: in memory, and through their files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn authority() -> Authority {
    Authority::create(&name("reef")).unwrap()
}

fn fault(result: Result<Identity, PkiError>) -> CertificateFault {
    match result {
        Err(PkiError::Unusable { source, .. }) => source,
        other => panic!("{other:?} is not about a certificate"),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_identity_survives_its_files_and_only_its_owner_can_read_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let issued = authority().issue(Role::Worker, &name("w-1")).unwrap();
    issued.save(dir.path()).unwrap();
    let loaded = Identity::load(dir.path(), &name("w-1"), Role::Worker).unwrap();
    assert_eq!((loaded.role(), loaded.name(), loaded.cluster()), (Role::Worker, &name("w-1"), &name("reef")));
    assert_eq!((loaded.chain, loaded.roots), (issued.chain, issued.roots));
    assert_eq!(mode(&dir.path().join("w-1.key")), 0o600);
    assert_eq!(mode(&dir.path().join("w-1.pem")), 0o644);
}

#[test]
fn a_renewed_key_replaces_the_old_one_and_stays_private() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    let key = dir.path().join("w.key");
    fs::write(&key, "an older key").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o666)).unwrap();
    authority.issue(Role::Worker, &name("w")).unwrap().save(dir.path()).unwrap();
    assert_eq!(mode(&key), 0o600);
    Identity::load(dir.path(), &name("w"), Role::Worker).unwrap();
    let mut files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["ca.pem", "w.key", "w.pem"], "nothing is left over");
}

#[test]
fn an_authority_read_back_issues_what_the_old_one_would_trust() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority();
    first.save(dir.path()).unwrap();
    assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
    let again = Authority::load(dir.path()).unwrap();
    assert_eq!(again.cluster(), &name("reef"));
    let (old, new) = (first.issue(Role::Worker, &name("a")).unwrap(), again.issue(Role::Worker, &name("b")).unwrap());
    Identity { roots: old.roots, ..new }.check(SystemTime::now()).unwrap();
}

#[test]
fn an_authority_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    authority().save(dir.path()).unwrap();
    let before = fs::read(dir.path().join("ca.key")).unwrap();
    assert!(matches!(authority().save(dir.path()), Err(PkiError::AuthorityExists(_))));
    assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);
    assert!(matches!(
        authority().issue(Role::Worker, &name("ca")).unwrap().save(dir.path()),
        Err(PkiError::ReservedName(_))
    ));
    assert_eq!(fs::read(dir.path().join("ca.key")).unwrap(), before);
}

#[test]
fn a_name_cannot_leave_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("pki");
    assert!(Name::new("a/../../escaped").is_err());
    // And a directory of its own is none that it makes.
    let tricky = name("a/..b/escaped");
    authority().issue(Role::Worker, &tricky).unwrap().save(&inner).unwrap();
    assert!(inner.join("a%2F..b%2Fescaped.pem").is_file());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    Identity::load(&inner, &tricky, Role::Worker).unwrap();
}

#[test]
fn an_identity_of_the_other_role_or_another_name_is_refused() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    authority.issue(Role::Worker, &name("w")).unwrap().save(dir.path()).unwrap();
    let wrong_role = fault(Identity::load(dir.path(), &name("w"), Role::Router));
    assert_eq!(wrong_role.to_string(), "the certificate is for a worker, not for a router");
    for extension in ["pem", "key"] {
        fs::copy(dir.path().join(format!("w.{extension}")), dir.path().join(format!("v.{extension}"))).unwrap();
    }
    let wrong_name = fault(Identity::load(dir.path(), &name("v"), Role::Worker));
    assert_eq!(wrong_name.to_string(), "the certificate is for w, not for v");
}

#[test]
fn dates_are_told_in_words() {
    let (dir, authority, now) = (tempfile::tempdir().unwrap(), authority(), SystemTime::now());
    authority.issue_at(Role::Worker, &name("old"), now - 826 * DAY).unwrap().save(dir.path()).unwrap();
    authority.issue_at(Role::Worker, &name("new"), now + 2 * DAY).unwrap().save(dir.path()).unwrap();
    authority.issue_at(Role::Worker, &name("behind"), now + DAY / 2).unwrap().save(dir.path()).unwrap();
    let expired = fault(Identity::load(dir.path(), &name("old"), Role::Worker));
    assert!(matches!(&expired, CertificateFault::Expired(day) if day.len() == 10), "{expired}");
    let early = fault(Identity::load(dir.path(), &name("new"), Role::Worker));
    assert!(matches!(&early, CertificateFault::NotYetValid(day) if day.len() == 10), "{early}");
    Identity::load(dir.path(), &name("behind"), Role::Worker).expect("an issuer's clock may be half a day ahead");
}

#[test]
fn files_of_two_authorities_do_not_mix() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (authority(), authority());
    ours.issue(Role::Worker, &name("w")).unwrap().save(here.path()).unwrap();
    theirs.issue(Role::Worker, &name("w")).unwrap().save(there.path()).unwrap();
    fs::copy(there.path().join("ca.pem"), here.path().join("ca.pem")).unwrap();
    assert!(matches!(
        fault(Identity::load(here.path(), &name("w"), Role::Worker)),
        CertificateFault::Untrusted(webpki::Error::UnknownIssuer)
    ));
    fs::copy(there.path().join("w.key"), here.path().join("w.key")).unwrap();
    assert!(matches!(fault(Identity::load(here.path(), &name("w"), Role::Worker)), CertificateFault::KeyMismatch(_)));
    ours.save(there.path()).unwrap_err();
    theirs.save(&there.path().join("authority")).unwrap();
    ours.save(&here.path().join("authority")).unwrap();
    fs::copy(there.path().join("authority/ca.key"), here.path().join("authority/ca.key")).unwrap();
    assert!(matches!(Authority::load(&here.path().join("authority")), Err(PkiError::Unusable { .. })));
}

#[test]
fn what_is_no_pem_is_named_and_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    authority().issue(Role::Worker, &name("w")).unwrap().save(dir.path()).unwrap();
    let key = dir.path().join("w.key");
    fs::write(&key, "c2VjcmV0").unwrap();
    let error = Identity::load(dir.path(), &name("w"), Role::Worker).unwrap_err();
    assert_eq!(error.to_string(), format!("{} holds no PRIVATE KEY in PEM form", key.display()));
    fs::write(dir.path().join("w.pem"), vec![b'x'; 1 << 20]).unwrap();
    assert!(matches!(Identity::load(dir.path(), &name("w"), Role::Worker), Err(PkiError::Read { .. })));
    assert!(matches!(Identity::load(dir.path(), &name("absent"), Role::Worker), Err(PkiError::Read { .. })));
}

#[test]
fn no_debug_text_shows_a_key() {
    let authority = authority();
    let identity = authority.issue(Role::Router, &name("r")).unwrap();
    let shown = format!("{authority:?} {identity:?}");
    let secret = identity.key();
    let listed = format!("{:?}", &secret.secret_pkcs8_der()[..8]);
    assert!(shown.contains("reef") && !shown.contains("PRIVATE") && !shown.contains(listed.trim_matches(['[', ']'])));
}

#[test]
fn no_two_subjects_share_a_uri() {
    let subject = |cluster, role, member| Subject { cluster: name(cluster), role, name: name(member) };
    let subjects = [
        subject("a", Role::Worker, "b/worker/c"),
        subject("a/worker/b", Role::Worker, "c"),
        subject("a", Role::Router, "b"),
        subject("a", Role::Worker, "b"),
        subject("a", Role::Worker, "2Fb"),
        subject("A", Role::Worker, "b"),
        subject("a", Role::Worker, "authority"),
    ];
    for (i, one) in subjects.iter().enumerate() {
        assert!(matches!(Holder::from_uri(&one.uri()), Some(Holder::Member(same)) if same == *one), "{one:?}");
        assert!(subjects[i + 1..].iter().all(|other| other.uri() != one.uri()), "{one:?}");
    }
    for foreign in [
        "https://a/worker/b",
        "shoal://a/worker/",
        "shoal://a/admin/b",
        "shoal://a/worker/b/c",
        "shoal://a/worker/%2e",
        "shoal://",
    ] {
        assert!(Holder::from_uri(foreign).is_none(), "{foreign}");
    }
}
