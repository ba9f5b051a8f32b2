//! What this VM is told: one strict YAML document from the metadata server
//! (`dify-config`, with `dify-release` over it) or from a file.
//!
//! raw YAML -> [`document`] (typed reading, every mistake collected) ->
//! [`Settings`] (validated; nothing downstream checks again).

pub mod reference;
pub mod settings;

pub use reference::SecretRef;
pub use settings::Settings;
