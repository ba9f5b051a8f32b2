//! One-shot containers of the api image, as the migration gate wants them.

use std::time::Duration;

use crate::engine::spec::ContainerSpec;
use crate::engine::{Ended, Engine, EngineError, Finished as Ran, Site};
use crate::gate::{Finished, OneShotError, OneShots};

/// The gate has a deadline of its own for each call; this one only makes sure
/// that a container does not outlive an agent that forgot it.
const LONGEST: Duration = Duration::from_hours(4);

/// Runs one-shots on this node's engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shots {
    engine: Engine,
    site: Site,
    migration: ContainerSpec,
    job: ContainerSpec,
}

impl Shots {
    /// From the stack's two one-shot specs.
    pub fn new(engine: Engine, site: Site, migration: ContainerSpec, job: ContainerSpec) -> Self {
        Self { engine, site, migration, job }
    }

    /// `flask ARGS` in a container of its own, each line handed on.
    pub async fn flask(
        &self,
        args: &[String],
        on_line: impl FnMut(&str),
    ) -> Result<Ran, EngineError> {
        let spec = ContainerSpec { command: Some(args.to_vec()), ..self.job.clone() };
        self.engine.run_once(&spec, &self.site, LONGEST, on_line).await
    }
}

/// Exit code as a shell would have it; a container that ran out of memory was
/// killed by signal 9.
fn finished(ran: Ran) -> Finished {
    let exit_code = match ran.ended {
        Ended::Exited(code) => code,
        Ended::OutOfMemory | Ended::Deadline(_) => 137,
    };
    Finished { exit_code, lines: ran.tail }
}

fn shot(error: EngineError) -> OneShotError {
    OneShotError(Box::new(error))
}

impl OneShots for Shots {
    async fn heads(&self) -> Result<Finished, OneShotError> {
        self.run(&["db".to_owned(), "heads".to_owned()]).await
    }

    async fn migrate(
        &self,
        on_line: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Finished, OneShotError> {
        let ran = self.engine.run_once(&self.migration, &self.site, LONGEST, on_line).await;
        ran.map(finished).map_err(shot)
    }

    async fn run(&self, args: &[String]) -> Result<Finished, OneShotError> {
        // A name of its own: an operator's job may run beside.
        let name = format!("{}-gate", self.job.name);
        let spec = ContainerSpec { name, command: Some(args.to_vec()), ..self.job.clone() };
        let ran = self.engine.run_once(&spec, &self.site, LONGEST, |_| {}).await;
        ran.map(finished).map_err(shot)
    }

    async fn stop_all(&self) -> Result<(), OneShotError> {
        let observed = self.engine.observe(self.site.node()).await.map_err(shot)?;
        for (name, one_shot) in &observed.one_shots {
            // A live `dify-agent job` is its operator's.
            if *name == self.job.name && !one_shot.orphan {
                continue;
            }
            self.engine.remove(&one_shot.id).await.map_err(shot)?;
        }
        Ok(())
    }
}
