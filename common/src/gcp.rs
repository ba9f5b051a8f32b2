//! Google identity: the metadata server and access tokens. The only door to
//! both; everything else asks here for a bearer.

pub mod metadata;
pub mod token;

use std::sync::Once;

/// Installs *ring* as the process's TLS provider; every TLS client of this
/// workspace relies on it. Any number of calls.
pub fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if one is installed already, which is what we want.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
