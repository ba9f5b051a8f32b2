//! A value that must never be shown. [`Secret`] prints as `[REDACTED]`, has no
//! `Display` and no `Serialize`, and is opened only where it is handed over:
//!
//! ```compile_fail
//! let secret = dify_common::secret::Secret::from("s3cret");
//! println!("{secret}"); // no Display
//! ```
//!
//! ```compile_fail
//! let secret = dify_common::secret::Secret::from("s3cret");
//! serde_json::to_string(&secret).unwrap(); // no Serialize
//! ```

pub use secrecy::{ExposeSecret, SecretString as Secret};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_says_nothing() {
        let secret = Secret::from("s3cret");
        assert!(!format!("{secret:?}").contains("s3cret"));
        assert_eq!(secret.expose_secret(), "s3cret");
    }
}
