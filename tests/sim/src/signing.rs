//! RS256: identity tokens, the key set that verifies them, service-account keys and the assertions they sign.
//!
//! The key is baked in and public with this repository: it protects nothing but the simulator's own answers.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    rand::SystemRandom,
    signature::{
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
        UnparsedPublicKey,
    },
};
use serde_json::{Value, json};

const KEY_PEM: &str = include_str!("test-key.pem");

/// `kid` of the one key, in token headers, the key set and service-account keys.
pub(crate) const KEY_ID: &str = "5149a1f0c2d84e6f9b7350de8a1c6e2409f3b7d1";

/// The one signing key.
#[derive(Debug)]
pub(crate) struct Signer {
    key: RsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    pub(crate) fn new() -> Self {
        let body: String = KEY_PEM.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body).expect("the baked key is PEM");
        Self {
            key: RsaKeyPair::from_pkcs8(&der).expect("the baked key is an RSA key in PKCS#8"),
            random: SystemRandom::new(),
        }
    }

    /// A compact JWT over `claims`.
    pub(crate) fn jwt(&self, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "kid": KEY_ID, "typ": "JWT" });
        let signed = format!("{}.{}", encoded(&header), encoded(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature)
            .expect("the buffer has the modulus' length");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Claims of a JWT signed by our key. Padded base64 is taken too: `gcp_auth` 0.12 sends `=` (read in its source),
    /// and Google accepts it.
    pub(crate) fn verified(&self, jwt: &str) -> Option<Value> {
        let (signed, signature) = jwt.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let public =
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key.public().as_ref());
        public.verify(signed.as_bytes(), &decoded(signature)?).ok()?;
        serde_json::from_slice(&decoded(claims)?).ok()
    }

    /// The JSON Web Key Set of `https://www.googleapis.com/oauth2/v3/certs`.
    pub(crate) fn key_set(&self) -> Value {
        let public: RsaPublicKeyComponents<Vec<u8>> = self.key.public().into();
        json!({ "keys": [{
            "kid": KEY_ID, "kty": "RSA", "alg": "RS256", "use": "sig",
            "n": URL_SAFE_NO_PAD.encode(public.n),
            "e": URL_SAFE_NO_PAD.encode(public.e),
        }]})
    }

    /// The JSON key file of a service account, its `token_uri` at the simulator.
    pub(crate) fn service_account_key(
        project: &str,
        email: &str,
        client_id: &str,
        token_uri: &str,
    ) -> Value {
        json!({
            "type": "service_account", "project_id": project, "private_key_id": KEY_ID, "private_key": KEY_PEM,
            "client_email": email, "client_id": client_id, "token_uri": token_uri,
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
            "universe_domain": "googleapis.com",
        })
    }
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifies_what_it_signed_padded_or_not_and_nothing_else() {
        let signer = Signer::new();
        let jwt = signer.jwt(&json!({ "iss": "a@b" }));
        assert_eq!(signer.verified(&jwt), Some(json!({ "iss": "a@b" })));
        assert_eq!(signer.verified(&format!("{jwt}==")), Some(json!({ "iss": "a@b" })));
        let (head, rest) = jwt.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        let forged = format!("{head}.{}.{signature}", encoded(&json!({ "iss": "c@d" })));
        assert_eq!(signer.verified(&forged), None);
    }
}
