//! A look at the certificate a server presents: one handshake that accepts it
//! and notes what a strict client would have said, so that "wrong CA" and
//! "wrong name" are told apart and named before Dify trips over them.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// One handshake.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a strict client says of the certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// From the bundle, and for the name in use.
    Good,
    /// From the bundle, but not for the name in use.
    OtherName {
        /// Names it does carry.
        presented: Vec<String>,
    },
    /// Not signed by a CA of the bundle.
    UnknownAuthority,
    /// Expired, or not valid yet.
    OutOfDate(String),
    /// Unusable in another way.
    Bad(String),
    /// There is no bundle to check it against.
    NoBundle,
}

impl Certificate {
    /// The chain ends in the bundle, whatever the name.
    pub fn is_trusted(&self) -> bool {
        match self {
            Self::Good | Self::OtherName { .. } => true,
            Self::UnknownAuthority | Self::OutOfDate(_) | Self::Bad(_) | Self::NoBundle => false,
        }
    }
}

/// Why no handshake came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The bundle of the configuration is not PEM with certificates.
    #[error("`certificates` is not a bundle of PEM certificates")]
    Bundle,
    /// Neither a DNS name nor an address.
    #[error("the host is neither a DNS name nor an address")]
    Host,
    /// The server speaks no TLS here, or breaks off.
    #[error("no TLS handshake")]
    Handshake(#[source] io::Error),
    /// It does not go on.
    #[error("no TLS handshake within {0:?}")]
    Silent(Duration),
}

/// Shakes hands on `stream` as `host` and answers what was presented.
pub(super) async fn look(
    stream: TcpStream,
    host: &str,
    bundle: Option<&str>,
) -> Result<Certificate, HandshakeError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| HandshakeError::Host)?;
    let strict = bundle.map(verifier).transpose()?;
    let seen = Arc::new(Seen { strict, noted: Mutex::new(Certificate::NoBundle) });
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(DEADLINE, handshake)
        .await
        .map_err(|_| HandshakeError::Silent(DEADLINE))?
        .map_err(HandshakeError::Handshake)?;
    let noted = seen.noted.lock().expect("nobody panics with it held").clone();
    Ok(noted)
}

fn verifier(bundle: &str) -> Result<Arc<WebPkiServerVerifier>, HandshakeError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        let certificate = certificate.map_err(|_| HandshakeError::Bundle)?;
        roots.add(certificate).map_err(|_| HandshakeError::Bundle)?;
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| HandshakeError::Bundle)
}

/// Accepts every certificate and notes what the strict verifier thinks.
#[derive(Debug)]
struct Seen {
    strict: Option<Arc<WebPkiServerVerifier>>,
    noted: Mutex<Certificate>,
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let noted = self.strict.as_ref().map_or(Certificate::NoBundle, |strict| {
            judge(strict.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ))
        });
        *self.noted.lock().expect("nobody panics with it held") = noted;
        Ok(ServerCertVerified::assertion())
    }

    // The key must still be the certificate's own: checked as ever.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn judge(verified: Result<ServerCertVerified, TlsError>) -> Certificate {
    let Err(error) = verified else {
        return Certificate::Good;
    };
    // Their enums grow; what has no word of ours is shown in theirs.
    #[expect(clippy::wildcard_enum_match_arm, reason = "foreign, non-exhaustive enums")]
    match error {
        TlsError::InvalidCertificate(reason) => match reason {
            // A CA of the same name that did not sign: the one before a rotation.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Certificate::UnknownAuthority
            }
            // The checks run chain first, name last.
            CertificateError::NotValidForNameContext { presented, .. } => {
                Certificate::OtherName { presented }
            }
            CertificateError::NotValidForName => Certificate::OtherName { presented: Vec::new() },
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                Certificate::OutOfDate(TlsError::InvalidCertificate(reason).to_string())
            }
            other => Certificate::Bad(TlsError::InvalidCertificate(other).to_string()),
        },
        other => Certificate::Bad(other.to_string()),
    }
}
