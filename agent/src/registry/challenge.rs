//! `WWW-Authenticate: Bearer realm="...",service="...",scope="..."` as
//! registries write it (distribution, "Token Authentication Specification").

/// A registry wants a token; this says where to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// URL of the token service.
    pub(super) realm: String,
    /// Whom the token is for.
    pub(super) service: Option<String>,
    /// What it should allow.
    pub(super) scope: Option<String>,
}

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// A token from a service.
    Bearer(Challenge),
    /// User and password with each request.
    Basic,
}

impl Asked {
    /// Reads the header; None for a scheme we do not know.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut challenge = Challenge { realm: String::new(), service: None, scope: None };
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = value,
                "service" => challenge.service = Some(value),
                "scope" => challenge.scope = Some(value),
                _ => {}
            }
        }
        (!challenge.realm.is_empty()).then_some(Self::Bearer(challenge))
    }
}

/// `key="value"` or `key=value`, separated by commas; a quoted value may hold
/// commas (scopes do: `repository:a/b:pull,push`).
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let key = key.trim_matches([' ', ',']).to_owned();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((key, value.to_owned()));
        text = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = Challenge {
            realm: "https://auth.docker.io/token".into(),
            service: Some("registry.docker.io".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(Asked::parse(hub), Some(Asked::Bearer(expected)));
        assert_eq!(Asked::parse("Basic realm=\"x\""), Some(Asked::Basic));
        let bare = Challenge { realm: "http://x/t".into(), service: None, scope: None };
        assert_eq!(
            Asked::parse("bearer realm=http://x/t, error=\"invalid\""),
            Some(Asked::Bearer(bare))
        );
        for none in ["", "Negotiate", "Bearer", "Bearer service=\"x\"", "Bearer realm"] {
            assert_eq!(Asked::parse(none), None, "{none:?}");
        }
    }
}
