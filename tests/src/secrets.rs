//! The secrets of a fleet: planted, so that every text that leaves the product
//! can be searched for them.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use rand::RngExt as _;
use rand::distr::Alphanumeric;

/// Every secret of a fleet, by its key in the configuration document. A copy
/// of the wire contract, not the agent's own list.
pub const NAMES: [&str; 11] = [
    "secret_key",
    "init_password",
    "database_password",
    "vector_password",
    "redis_password",
    "plugin_daemon_key",
    "inner_api_key",
    "code_execution_key",
    "agent_server_key",
    "agent_api_token",
    "shellctl_token",
];

/// Characters in a row that are no accident.
const WINDOW: usize = 16;

/// The planted secrets.
#[derive(Clone)]
pub struct Planted {
    values: BTreeMap<String, String>,
}

impl fmt::Debug for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Planted {
    /// New ones, each of the shape its place asks for.
    pub fn random() -> Self {
        let values = NAMES.map(|name| {
            let value = match name {
                // At most 30 characters: the column in Dify's setup form.
                "init_password" => random(28),
                // Characters a URL must quote.
                "redis_password" => format!("{}@:/%+{}", random(14), random(10)),
                // 32 bytes, unpadded base64url.
                "agent_server_key" => URL_SAFE_NO_PAD.encode(random(32)),
                _ => random(48),
            };
            (name.to_owned(), value)
        });
        Self { values: values.into() }
    }

    /// The value of one of [`NAMES`].
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Replaces one, for a test of bad values.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), value.to_owned());
    }

    /// All names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names of the secrets that `text` holds: as they are, quoted for a URL or
    /// for JSON, in base64, or 20 characters in a row of one.
    pub fn found_in(&self, text: &str) -> Vec<&str> {
        let holds = |value: &str| {
            // Base64 depends on the offset; its middle, encoded at each of the
            // three, appears whatever stands around it.
            let middles = (0..3).flat_map(|offset| {
                let middle = &value.as_bytes()[offset..];
                let whole = &middle[..middle.len() / 3 * 3];
                [STANDARD_NO_PAD.encode(whole), URL_SAFE_NO_PAD.encode(whole)]
            });
            let windows = value.as_bytes().windows(WINDOW).step_by(WINDOW / 4);
            windows
                .filter_map(|window| std::str::from_utf8(window).ok())
                .any(|window| text.contains(window))
                || middles.into_iter().any(|encoded| text.contains(&encoded))
                || text.contains(&quoted(value))
        };
        self.iter()
            .filter(|(_, value)| value.len() >= WINDOW && holds(value))
            .map(|(name, _)| name)
            .collect()
    }
}

/// `length` random letters and digits.
pub fn random(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

fn quoted(value: &str) -> String {
    value.bytes().fold(String::new(), |out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out + char::from(byte).encode_utf8(&mut [0; 4])
        } else {
            format!("{out}%{byte:02X}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_dress() {
        let planted = Planted::random();
        let value = planted.get("redis_password");
        for text in [
            format!("AUTH {value} failed"),
            format!("redis://:{}@10.0.0.1", quoted(value)),
            format!("starts {}", &value[..20]),
            format!("ends {}", &value[9..]),
            STANDARD_NO_PAD.encode(format!("x{value}")),
            URL_SAFE_NO_PAD.encode(format!("user:{value}!")),
        ] {
            assert_eq!(planted.found_in(&text), ["redis_password"], "{text}");
        }
        assert!(planted.found_in("nothing of the kind").is_empty());
    }
}
