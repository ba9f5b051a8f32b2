//! A certificate authority of a test's own.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// A CA and one server certificate signed by it, all PEM.
pub(crate) struct Authority {
    pub(crate) ca: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    /// With a server certificate for `names` (DNS names or addresses; none at
    /// all is how Cloud SQL's per-instance certificates come).
    pub(crate) fn new(names: &[&str]) -> Self {
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "throw-away CA");
        let key = KeyPair::generate().expect("ring makes keys");
        let ca = CertifiedIssuer::self_signed(ca, key).expect("signs itself");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut server = CertificateParams::new(names).expect("good names");
        server.distinguished_name.push(DnType::CommonName, "project:instance");
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = server.signed_by(&key, &ca).expect("signs");
        Self { ca: ca.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
