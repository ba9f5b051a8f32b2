//! What outlives one stack: the board, the intent, the tasks.

use dify_common::tasks::Tasks;
use tokio::sync::watch;

use crate::board::Board;
use crate::intent::Intent;

/// Shared by every life of the node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where everything is said.
    pub board: Board,
    /// What is wanted from outside.
    pub intent: Intent,
    /// Who owns what runs.
    pub tasks: Tasks,
    /// True while this node leads a migration: nothing may cut that short.
    pub leading: watch::Sender<bool>,
}

impl Context {
    /// Resolves once this node leads no migration.
    pub async fn not_leading(&self) {
        let mut leading = self.leading.subscribe();
        let _ = leading.wait_for(|leading| !*leading).await;
    }
}
