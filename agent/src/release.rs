//! A Dify release as data. Dify adds, renames and drops services and
//! environment keys between minors, so nothing about a release is code: its
//! manifest (`images/releases/<version>.yaml`) says which containers run and
//! where each of their values comes from, its lock
//! (`images/releases/<version>.lock.yaml`) which bytes they are.
//!
//! file -> [`Library`] (built in, or a folder with checksums) -> `check`
//! (every mistake at once) -> [`Release`]; `images/README.md` is the format's
//! reference.

mod check;
mod library;
pub mod lock;
pub mod manifest;
pub mod value;

pub(crate) use library::version;
pub use library::{Library, ReleaseError};
pub use lock::Lock;
pub use manifest::Release;
pub use value::{Derived, Value};
