//! Fixed inputs.
