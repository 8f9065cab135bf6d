//! `shoal cert`: the cluster's authority and its certificates, as files. Called by `main`; what a certificate says is
//! `common::pki`'s.

use std::path::Path;

use shoal_common::ids::Name;
use shoal_common::pki::{Authority, PkiError, Role};

use crate::cli::{self, Cert};

/// Runs the command and says what was written.
pub(crate) fn run(command: &Cert) -> Result<(), PkiError> {
    match command {
        Cert::Init { dir, cluster } => init(dir, cluster),
        Cert::Issue { dir, role, name } => issue(dir, *role, name),
    }
}

fn init(dir: &Path, cluster: &Name) -> Result<(), PkiError> {
    Authority::create(cluster)?.save(dir)?;
    println!("made the authority of cluster {cluster} in {}", dir.display());
    println!("keep ca.key there: whoever has it can issue certificates");
    Ok(())
}

fn issue(dir: &Path, role: cli::Role, name: &Name) -> Result<(), PkiError> {
    let role = match role {
        cli::Role::Router => Role::Router,
        cli::Role::Worker => Role::Worker,
    };
    let authority = Authority::load(dir)?;
    authority.issue(role, name)?.save(dir)?;
    println!("issued {role} {name} of cluster {} in {}", authority.cluster(), dir.display());
    println!("its machine needs the certificate, the key and ca.pem, in the directory that cluster.pki names");
    Ok(())
}

#[cfg(test)]
mod tests {
    use shoal_common::pki::Identity;

    use super::*;

    #[test]
    fn what_is_issued_is_what_a_role_loads() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = |text| Name::new(text).expect("a name");
        run(&Cert::Init { dir: dir.path().to_owned(), cluster: name("c") }).expect("an authority");
        let worker = Cert::Issue { dir: dir.path().to_owned(), role: cli::Role::Worker, name: name("alpha") };
        run(&worker).expect("a certificate");
        let identity = Identity::load(dir.path(), &name("alpha"), Role::Worker).expect("it is there");
        assert_eq!(identity.cluster(), &name("c"));
        Identity::load(dir.path(), &name("alpha"), Role::Router).expect_err("a worker is no router");
    }

    #[test]
    fn an_authority_is_never_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let init = Cert::Init { dir: dir.path().to_owned(), cluster: Name::new("c").expect("a name") };
        run(&init).expect("an authority");
        run(&init).expect_err("all its certificates would be worth nothing");
    }
}
