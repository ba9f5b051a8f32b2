//! The harness's own error: what it was doing, and why that failed.

use std::error::Error;
use std::fmt;

use dify_common::chain::Chain;

/// A step of the test bed that failed; not a verdict on the product.
#[derive(thiserror::Error)]
#[error("{doing}")]
pub struct Broken {
    doing: String,
    #[source]
    cause: Option<Box<dyn Error + Send + Sync>>,
}

/// What a step of the test bed comes to.
pub type Outcome<T = ()> = Result<T, Broken>;

impl Broken {
    /// A failure without a cause below it.
    pub fn new(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), cause: None }
    }
}

/// A test that returns it is reported by `Debug`: the whole chain.
impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Chain(self))
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// `doing` in the present tense: "start redis-server".
    fn doing(self, doing: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|cause| Broken { doing: doing(), cause: Some(cause.into()) })
    }
}
