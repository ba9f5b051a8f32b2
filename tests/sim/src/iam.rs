//! Who calls and what they may: access tokens, service accounts, permissions.
//!
//! Every service account may do everything until a permission is denied to it: a test names what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use crate::{clock::Clock, locked, wire::Call};

/// Access tokens and permissions of one project.
#[derive(Clone, Debug)]
pub struct Iam {
    clock: Clock,
    lifetime: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    issued: u64,
    tokens: BTreeMap<String, Token>,
    denied: BTreeSet<(String, String)>,
}

#[derive(Debug)]
struct Token {
    email: String,
    expires: Duration,
}

/// An access token just issued.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) token: String,
    pub(crate) expires: Duration,
}

/// Who a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Account(String),
    /// No `Authorization` header.
    Anonymous,
    /// A bearer nobody issued.
    Unknown,
    /// A bearer whose time is over.
    Expired,
}

impl Iam {
    pub(crate) fn new(clock: Clock, lifetime: Duration) -> Self {
        Self { clock, lifetime, state: Arc::default() }
    }

    /// Takes a permission such as `secretmanager.versions.access` or `storage.objects.create` from a service account.
    pub fn deny(&self, email: &str, permission: &str) {
        locked(&self.state).denied.insert((email.to_owned(), permission.to_owned()));
    }

    /// Gives a permission back.
    pub fn allow(&self, email: &str, permission: &str) {
        locked(&self.state).denied.remove(&(email.to_owned(), permission.to_owned()));
    }

    /// Makes every token issued so far unknown, as when a service account is disabled and enabled again.
    pub fn revoke_all(&self) {
        locked(&self.state).tokens.clear();
    }

    /// An access token for `email`, for tests that speak to the services themselves.
    pub fn access_token(&self, email: &str) -> String {
        self.issue(email).token
    }

    pub(crate) fn issue(&self, email: &str) -> Issued {
        let expires = self.clock.now() + self.lifetime;
        let mut state = locked(&self.state);
        state.issued += 1;
        let token = format!("ya29.sim-{:06}-{email}", state.issued);
        state.tokens.insert(token.clone(), Token { email: email.to_owned(), expires });
        Issued { token, expires }
    }

    pub(crate) fn knows(&self, token: &str) -> bool {
        locked(&self.state).tokens.contains_key(token)
    }

    pub(crate) fn caller(&self, call: &Call) -> Caller {
        let Some(header) = call.header("authorization") else {
            return Caller::Anonymous;
        };
        let Some(bearer) = header.strip_prefix("Bearer ") else {
            return Caller::Unknown;
        };
        match locked(&self.state).tokens.get(bearer.trim()) {
            Some(token) if token.expires > self.clock.now() => Caller::Account(token.email.clone()),
            Some(_) => Caller::Expired,
            None => Caller::Unknown,
        }
    }

    pub(crate) fn may(&self, email: &str, permission: &str) -> bool {
        !locked(&self.state).denied.contains(&(email.to_owned(), permission.to_owned()))
    }
}

/// The numeric id Google gives a service account (`sub` of its tokens): 21 digits, the same for the same address.
pub(crate) fn account_id(email: &str) -> String {
    let digest = Sha256::digest(email.as_bytes());
    let number = u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"));
    format!("1{number:020}")
}
