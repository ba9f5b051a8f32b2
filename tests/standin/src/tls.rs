//! Client TLS as Python's `ssl` module would do it for redis-py and requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::failure::Failure;

/// How a server is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// Whether the chain must end in a trusted root.
    pub(crate) chain: bool,
    /// Whether the name must match; means nothing without `chain`.
    pub(crate) hostname: bool,
    /// Trusted roots; `None` = the system's, of which an image from scratch has none.
    pub(crate) ca: Option<PathBuf>,
}

impl Check {
    /// `CERT_NONE`.
    pub(crate) const NONE: Self = Self { chain: false, hostname: false, ca: None };
    /// What a client does that nobody gave options: system roots and the name.
    pub(crate) const SYSTEM: Self = Self { chain: true, hostname: true, ca: None };

    /// The TLS configuration; fails when the CA file cannot be read.
    pub(crate) fn client(&self) -> Result<ClientConfig, Failure> {
        let builder = ClientConfig::builder().dangerous();
        let verifier = if self.chain {
            let roots = Arc::new(self.roots()?);
            let inner = (!roots.is_empty())
                .then(|| WebPkiServerVerifier::builder(roots).build())
                .transpose()
                .map_err(|e| Failure::new(format!("ssl.SSLError: {e}")))?;
            Verifier { inner, chain: true, hostname: self.hostname }
        } else {
            Verifier { inner: None, chain: false, hostname: false }
        };
        Ok(builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        let path = self.ca.as_deref().unwrap_or(Path::new("/etc/ssl/certs/ca-certificates.crt"));
        let certificates = match CertificateDer::pem_file_iter(path) {
            Ok(certificates) => certificates,
            Err(_) if self.ca.is_none() => return Ok(roots),
            Err(problem) => {
                return Err(Failure::new(format!(
                    "FileNotFoundError: CA file {}: {problem}",
                    path.display()
                )));
            }
        };
        for certificate in certificates {
            let certificate = certificate
                .map_err(|e| Failure::new(format!("ssl.SSLError: {}: {e}", path.display())))?;
            let _unusable = roots.add(certificate);
        }
        Ok(roots)
    }
}

/// Makes ring the process's cryptography; a second call changes nothing.
pub(crate) fn install_provider() {
    let _already = rustls::crypto::ring::default_provider().install_default();
}

#[derive(Debug)]
struct Verifier {
    /// `None` with `chain`: no root at all, so nothing is trusted.
    inner: Option<Arc<WebPkiServerVerifier>>,
    chain: bool,
    hostname: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.chain {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(inner) = &self.inner else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // The chain is checked before the name, so this error proves the chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.hostname => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
