//! Says whether a container still is what the spec asks for. The hash covers
//! secret values, and labels can be read by whoever reaches the Docker socket,
//! so it is keyed: without the node's key no secret can be tried against it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use dify_common::secret::{ExposeSecret, Secret};
use hmac::{Hmac, KeyInit, Mac};
use rand::RngExt;
use sha2::Sha256;

use super::error::EngineError;
use super::site::LogDriver;
use super::spec::{
    Attachment, ContainerSpec, EnvValue, FileMount, Limits, NetworkSpec, Probe, VolumeMount,
};

/// Raised whenever what we make of an unchanged spec changes, which gives a
/// new hash for every container.
const CONVENTIONS: u32 = 1;
const KEY_FILE: &str = "spec.key";
const KEY_BYTES: usize = 32;

/// Value of the label [`super::spec::label::SPEC`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpecHash(String);

impl SpecHash {
    /// Lower-case hex, 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn of_text(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// HMAC-SHA256 over a canonical form of a spec.
#[derive(Clone)]
pub struct SpecHasher {
    key: [u8; KEY_BYTES],
}

impl fmt::Debug for SpecHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SpecHasher([REDACTED])")
    }
}

impl SpecHasher {
    /// Reads `STATE/spec.key`, making it first where it is missing: written
    /// whole under another name and linked, so that no reader sees half of it
    /// and of two writers the first one wins. A key of the wrong size is an
    /// error: a new one would replace every container.
    pub fn open(state: &Path) -> Result<Self, EngineError> {
        let path = state.join(KEY_FILE);
        let failed = |error: std::io::Error| EngineError::file("open the spec key", &path, &error);
        match read_key(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::create_dir_all(state).map_err(failed)?;
                make_key(state, &path).map_err(failed)?;
                read_key(&path)
            }
            read => read,
        }
        .map(|key| Self { key })
        .map_err(failed)
    }

    /// Hash of a container's spec and its log driver.
    pub fn container(&self, spec: &ContainerSpec, logs: LogDriver) -> SpecHash {
        let mut form = Form(Hmac::new_from_slice(&self.key).expect("HMAC takes a key of any size"));
        form.text("container");
        form.number(CONVENTIONS);
        form.text(match logs {
            LogDriver::JsonFile => "json-file",
            LogDriver::Journald => "journald",
        });
        spec.write(&mut form);
        form.finish()
    }

    /// Hash of a network's spec.
    pub fn network(&self, spec: &NetworkSpec) -> SpecHash {
        let mut form = Form(Hmac::new_from_slice(&self.key).expect("HMAC takes a key of any size"));
        form.text("network");
        form.number(CONVENTIONS);
        spec.write(&mut form);
        form.finish()
    }
}

fn read_key(path: &Path) -> std::io::Result<[u8; KEY_BYTES]> {
    let mut key = Vec::with_capacity(KEY_BYTES + 1);
    std::fs::File::open(path)?.take(KEY_BYTES as u64 + 1).read_to_end(&mut key)?;
    key.try_into()
        .map_err(|_| std::io::Error::new(ErrorKind::InvalidData, "the key is not 32 bytes"))
}

fn make_key(state: &Path, path: &Path) -> std::io::Result<()> {
    let nonce: u64 = rand::rng().random();
    let draft = state.join(format!("{KEY_FILE}.{nonce:016x}"));
    let key: [u8; KEY_BYTES] = rand::rng().random();
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written =
        file.write_all(&key).and_then(|()| file.sync_all()).and_then(
            |()| match std::fs::hard_link(&draft, path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            },
        );
    std::fs::remove_file(&draft)?;
    written
}

/// The canonical form: each value with its length or its count before it, so
/// that no two specs read the same.
struct Form(Hmac<Sha256>);

impl Form {
    fn text(&mut self, text: &str) {
        self.size(text.len());
        self.0.update(text.as_bytes());
    }

    fn size(&mut self, size: usize) {
        self.0.update(&(size as u64).to_be_bytes());
    }

    fn number(&mut self, number: impl Into<u64>) {
        self.0.update(&number.into().to_be_bytes());
    }

    fn finish(self) -> SpecHash {
        SpecHash(hex::encode(self.0.finalize().into_bytes()))
    }
}

trait Canonical {
    fn write(&self, form: &mut Form);
}

impl Canonical for String {
    fn write(&self, form: &mut Form) {
        form.text(self);
    }
}

impl Canonical for Secret {
    fn write(&self, form: &mut Form) {
        form.text(self.expose_secret());
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn write(&self, form: &mut Form) {
        form.number(u8::from(self.is_some()));
        if let Some(value) = self {
            value.write(form);
        }
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn write(&self, form: &mut Form) {
        form.size(self.len());
        for value in self {
            value.write(form);
        }
    }
}

impl<T: Canonical> Canonical for BTreeMap<String, T> {
    fn write(&self, form: &mut Form) {
        form.size(self.len());
        for (key, value) in self {
            form.text(key);
            value.write(form);
        }
    }
}

impl Canonical for Duration {
    fn write(&self, form: &mut Form) {
        form.number(self.as_secs());
        form.number(self.subsec_nanos());
    }
}

macro_rules! canonical_numbers {
    ($($number:ty),*) => {$(
        impl Canonical for $number {
            fn write(&self, form: &mut Form) {
                form.number(*self);
            }
        }
    )*};
}
canonical_numbers!(u8, u16, u32, u64, bool);

impl Canonical for Ipv4Addr {
    fn write(&self, form: &mut Form) {
        form.number(self.to_bits());
    }
}

/// Writes every field in order; the pattern is exhaustive, so a field that is
/// added to the type and not here does not compile.
macro_rules! canonical_structs {
    ($($type:ident { $($field:ident),* })*) => {$(
        impl Canonical for $type {
            fn write(&self, form: &mut Form) {
                let Self { $($field),* } = self;
                $($field.write(form);)*
            }
        }
    )*};
}

canonical_structs! {
    ContainerSpec {
        service, name, image, entrypoint, command, hostname, user, env, files, volumes, networks, limits,
        cap_drop, cap_add, no_new_privileges, stop_signal, stop_timeout, probe, after, serving,
        stop_order
    }
    FileMount { path, content, mode }
    VolumeMount { volume, path }
    Attachment { network, address, aliases }
    Limits { memory, cpu_shares, pids }
    NetworkSpec { name, subnet, prefix, gateway, internal, options }
}

impl Canonical for EnvValue {
    fn write(&self, form: &mut Form) {
        match self {
            // The same to the container, so the same here.
            Self::Plain(value) => value.write(form),
            Self::Secret(value) => value.write(form),
        }
    }
}

impl Canonical for Probe {
    fn write(&self, form: &mut Form) {
        match self {
            Self::Http { port, path, deadline } => {
                form.text("http");
                port.write(form);
                path.write(form);
                deadline.write(form);
            }
            Self::Tcp { port } => {
                form.text("tcp");
                port.write(form);
            }
            Self::Exec { command, deadline } => {
                form.text("exec");
                command.write(form);
                deadline.write(form);
            }
            Self::Running { stable_for } => {
                form.text("running");
                stable_for.write(form);
            }
        }
    }
}

#[cfg(test)]
mod tests;
