//! Why a command or the node cannot go on: an exit code, one sentence, and
//! whether trying again can help.

use std::error::Error;
use std::fmt;

use dify_common::chain::Chain;
use dify_common::wire::status;

use crate::exit::Exit;

/// A final answer of "no".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// How a command ends by it.
    pub exit: Exit,
    /// One sentence, causes included.
    pub message: String,
    /// Trying again without a change from outside cannot help.
    pub permanent: bool,
}

impl Failure {
    /// Something that may pass.
    pub fn passing(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self { exit, message: Chain(error).to_string(), permanent: false }
    }

    /// Something that needs a change from outside.
    pub fn lasting(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self { permanent: true, ..Self::passing(exit, error) }
    }

    /// Something that needs a change from outside, in our words.
    pub fn said(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), permanent: true }
    }

    /// As the status document has it.
    pub fn to_wire(&self) -> status::Failure {
        status::Failure { kind: self.exit.kind().to_owned(), message: self.message.clone() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}
