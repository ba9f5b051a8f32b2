//! What this VM is told: one strict YAML document from the metadata server
//! (`dify-config`, with `dify-release` over it) or from a file.
//!
//! YAML -> `document` (a tree, duplicates kept) -> `section` and `value`
//! (typed reading, every mistake collected) -> `read` (the document's shape)
//! -> [`Settings`] (validated; nothing downstream checks again). [`Watcher`]
//! gets documents and waits for the next one; `render` writes the settings
//! that are in force as a document again.

mod document;
mod read;
pub mod reference;
mod render;
mod section;
pub mod settings;
pub mod source;
mod value;

#[cfg(test)]
mod tests;

pub use read::Overrides;
pub use reference::SecretRef;
pub use settings::Settings;
pub use source::{LoadError, Source, Watcher};
