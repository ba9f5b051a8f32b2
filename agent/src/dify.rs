//! Dify as data: (settings, secrets, release, machine) -> [`stack::Stack`].
//! Pure; golden-tested for each release.

pub mod stack;
