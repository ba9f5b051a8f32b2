//! Networks and volumes.

use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::RemoveVolumeOptions;

use super::{Engine, EngineError, EngineErrorKind, QUICK, SLOW, request, within};
use crate::engine::site::Site;
use crate::engine::spec::{ContainerSpec, NetworkSpec, label};

impl Engine {
    /// Makes the network unless it is there as specified. One of the same name
    /// that is not this node's is a conflict; one of ours made from another
    /// spec is [`EngineErrorKind::Stale`], for the plan to replace. Says whether
    /// it made one.
    pub async fn ensure_network(
        &self,
        spec: &NetworkSpec,
        site: &Site,
    ) -> Result<bool, EngineError> {
        const DOING: &str = "create network";
        let problem = |kind, found: &str| Err(EngineError::new(kind, DOING, &spec.name, found));
        match within(QUICK, DOING, &spec.name, self.docker.inspect_network(&spec.name, None)).await
        {
            Ok(found) => {
                let labels = found.labels.unwrap_or_default();
                let label = |key| labels.get(key).map(String::as_str);
                return if label(label::NODE) != Some(site.node().as_str()) {
                    problem(EngineErrorKind::Conflict, "a network of that name exists")
                } else if label(label::SPEC) == Some(site.hash_network(spec).as_str()) {
                    Ok(false)
                } else {
                    problem(EngineErrorKind::Stale, "it exists, made from another spec")
                };
            }
            Err(error) if error.kind() == EngineErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let body = request::network(spec, site);
        within(SLOW, DOING, &spec.name, self.docker.create_network(body)).await?;
        Ok(true)
    }

    /// Removes a network by name or id; one that is gone is fine. Says whether
    /// it was there.
    pub async fn remove_network(&self, name: &str) -> Result<bool, EngineError> {
        match within(SLOW, "remove network", name, self.docker.remove_network(name)).await {
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// Makes the named volumes of a container: one that Docker makes by itself
    /// on create would lack our label. Docker answers with the existing one,
    /// whoever made it, so its label is read back.
    pub(super) async fn ensure_volumes(
        &self,
        spec: &ContainerSpec,
        site: &Site,
    ) -> Result<(), EngineError> {
        const DOING: &str = "create volume";
        for mount in &spec.volumes {
            let body = VolumeCreateRequest {
                name: Some(mount.volume.clone()),
                labels: Some(request::node_labels(site)),
                ..VolumeCreateRequest::default()
            };
            let volume =
                within(QUICK, DOING, &mount.volume, self.docker.create_volume(body)).await?;
            if volume.labels.get(label::NODE).map(String::as_str) != Some(site.node().as_str()) {
                let found = "a volume of that name exists";
                return Err(EngineError::new(
                    EngineErrorKind::Conflict,
                    DOING,
                    &mount.volume,
                    found,
                ));
            }
        }
        Ok(())
    }

    /// Removes a volume and what is in it; one that is gone is fine.
    pub async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        match within(
            QUICK,
            "remove volume",
            name,
            self.docker.remove_volume(name, None::<RemoveVolumeOptions>),
        )
        .await
        {
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}
