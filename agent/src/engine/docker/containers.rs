//! Containers: create, start, stop, remove.

use std::time::Duration;

use bollard::errors::Error as BollardError;
use bollard::models::NetworkConnectRequest;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    RenameContainerOptionsBuilder, StatsOptionsBuilder, StopContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;

use super::{Engine, EngineError, EngineErrorKind, QUICK, SLOW, request, within};
use crate::engine::site::Site;
use crate::engine::spec::ContainerSpec;

/// The engine gets this much longer than the container's own grace to report
/// that a stop is done (it sends SIGKILL at the end of the grace).
const STOP_MARGIN: Duration = Duration::from_secs(30);

impl Engine {
    /// Creates a container, connected to all its networks, not started. The
    /// image must be there. Fails whole: nothing is left behind.
    pub async fn create(&self, spec: &ContainerSpec, site: &Site) -> Result<String, EngineError> {
        self.create_labelled(spec, site, Vec::new()).await
    }

    pub(super) async fn create_labelled(
        &self,
        spec: &ContainerSpec,
        site: &Site,
        labels: Vec<(String, String)>,
    ) -> Result<String, EngineError> {
        const DOING: &str = "create container";
        // Docker takes a container for a network that is not there, and fails
        // when it is started.
        for attachment in &spec.networks {
            let found = self.docker.inspect_network(&attachment.network, None);
            within(QUICK, "find network", &attachment.network, found).await?;
        }
        let files = site.files().place(spec)?;
        self.ensure_volumes(spec, site).await?;
        let body = request::container(spec, site, files, self.open_files, labels);
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let created =
            within(SLOW, DOING, &spec.name, self.docker.create_container(Some(options), body))
                .await
                .map_err(|error| error.without(request::secrets(spec)))?;
        for attachment in spec.networks.iter().skip(1) {
            let connect = NetworkConnectRequest {
                container: created.id.clone(),
                endpoint_config: Some(request::endpoint(attachment)),
            };
            let connected = self.docker.connect_network(&attachment.network, connect);
            if let Err(error) =
                within(QUICK, "connect container to network", &attachment.network, connected).await
            {
                // The first error is the one to tell; what is left is seen by the next plan.
                let _ = self.remove(&created.id).await;
                return Err(error);
            }
        }
        Ok(created.id)
    }

    /// Starts it; one that runs is fine.
    pub async fn start(&self, name: &str) -> Result<(), EngineError> {
        within(SLOW, "start container", name, self.docker.start_container(name, None)).await
    }

    /// Asks it to stop, with `signal` or its own stop signal, and kills it
    /// after `grace`. One that is stopped or gone is fine.
    pub async fn stop(
        &self,
        name: &str,
        signal: Option<&str>,
        grace: Duration,
    ) -> Result<(), EngineError> {
        const DOING: &str = "stop container";
        // `stop` takes a signal only from API 1.42 on, so a signal is sent
        // first; then `stop`'s own one finds a process that is on its way out.
        if let Some(signal) = signal {
            match self.kill(name, signal).await {
                Ok(()) => match self.wait_stopped(name, grace).await {
                    Ok(()) => return Ok(()),
                    Err(error) if error.kind() == EngineErrorKind::Deadline => {}
                    Err(error) => return gone_is_fine(error),
                },
                Err(error) => return gone_is_fine(error),
            }
            return match self.kill(name, "SIGKILL").await {
                Ok(()) => self.wait_stopped(name, STOP_MARGIN).await.or_else(gone_is_fine),
                Err(error) => gone_is_fine(error),
            };
        }
        let seconds = i32::try_from(request::seconds(grace)).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        within(grace + STOP_MARGIN, DOING, name, self.docker.stop_container(name, Some(options)))
            .await
            .or_else(gone_is_fine)
    }

    /// Sends a signal. A container that does not run is a conflict.
    pub async fn kill(&self, name: &str, signal: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        within(QUICK, "signal container", name, self.docker.kill_container(name, Some(options)))
            .await
    }

    /// Waits until it does not run, `bound` at most.
    pub async fn wait_stopped(&self, name: &str, bound: Duration) -> Result<(), EngineError> {
        self.wait(name, "not-running", bound).await
    }

    async fn wait(&self, name: &str, condition: &str, bound: Duration) -> Result<(), EngineError> {
        let options = WaitContainerOptionsBuilder::new().condition(condition).build();
        let mut answers = Box::pin(self.docker.wait_container(name, Some(options)));
        let waited = async {
            match answers.next().await {
                // An exit code other than 0 comes as an error; to us it is an end.
                None | Some(Ok(_) | Err(BollardError::DockerContainerWaitError { .. })) => Ok(()),
                Some(Err(error)) => Err(error),
            }
        };
        within(bound, "wait for container", name, waited).await
    }

    /// Removes it, running or not, with its anonymous volumes; one that is
    /// gone is fine, one that is on its way is waited for.
    pub async fn remove(&self, name: &str) -> Result<(), EngineError> {
        const DOING: &str = "remove container";
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match within(SLOW, DOING, name, self.docker.remove_container(name, Some(options))).await {
            // 409: "removal of container ... is already in progress".
            Err(error) if error.kind() == EngineErrorKind::Conflict => {
                self.wait(name, "removed", SLOW).await.or_else(gone_is_fine)
            }
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Gives it another name.
    pub async fn rename(&self, name: &str, new: &str) -> Result<(), EngineError> {
        let options = RenameContainerOptionsBuilder::new().name(new).build();
        within(QUICK, "rename container", name, self.docker.rename_container(name, options)).await
    }

    /// Bytes of memory it holds, without what the kernel can drop at once
    /// (as `docker stats` counts).
    pub async fn memory(&self, name: &str) -> Result<u64, EngineError> {
        const DOING: &str = "read memory use of container";
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let mut answers = Box::pin(self.docker.stats(name, Some(options)));
        let first = async { answers.next().await.transpose() };
        let stats = within(QUICK, DOING, name, first)
            .await?
            .and_then(|stats| stats.memory_stats)
            .unwrap_or_default();
        let usage = stats.usage.unwrap_or(0);
        let details = stats.stats.unwrap_or_default();
        // cgroup v1 and v2 name it differently.
        let cache = details.get("total_inactive_file").or_else(|| details.get("inactive_file"));
        Ok(usage.saturating_sub(cache.copied().unwrap_or(0)))
    }
}

/// For what should not run: 404 and 409 ("is not running") are both an end.
fn gone_is_fine(error: EngineError) -> Result<(), EngineError> {
    if matches!(error.kind(), EngineErrorKind::NotFound | EngineErrorKind::Conflict) {
        Ok(())
    } else {
        Err(error)
    }
}
