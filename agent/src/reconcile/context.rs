//! What outlives one stack: the board, the intent, the tasks, the disk watch.

use dify_common::tasks::Tasks;

use super::local::Disk;
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
    /// Whether the disk takes writes.
    pub disk: Disk,
}
