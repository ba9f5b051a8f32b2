//! Secrets in places they have no business in.

use super::Node;
use crate::secrets::Planted;
use crate::{Doing as _, Outcome};

impl Node {
    /// Secrets in places they have no business in: containers that do not need
    /// them, and the answers anybody may read.
    pub async fn misplaced_secrets(&self, planted: &Planted) -> Outcome<Vec<String>> {
        let mut wrong = Vec::new();
        for container in self.holdings().await?.containers {
            let told = self.engine.inspect(&container.id).await?;
            let text = format!("{told:?}");
            let allowed = may_hold(&container.service);
            for name in planted.found_in(&text).into_iter().filter(|name| !allowed.contains(name)) {
                wrong.push(format!("{} holds the secret {name}", container.name));
            }
            let config = told.config.unwrap_or_default();
            let labels = format!("{:?} {:?} {:?}", config.labels, config.cmd, config.entrypoint);
            for name in planted.found_in(&labels) {
                wrong.push(format!(
                    "{} shows the secret {name} in a label or its command",
                    container.name
                ));
            }
        }
        for (place, answer) in
            [("/health", self.health().await), ("/health/live", self.live().await)]
        {
            for name in answer.iter().flat_map(|(_, body)| planted.found_in(&body.to_string())) {
                wrong.push(format!("{place} of {} shows the secret {name}", self.id));
            }
        }
        for path in ["/status", "/metrics"] {
            let url = format!("http://{}{path}", self.ops);
            let Ok(answer) = self.operator.get(url).send().await else { continue };
            let text = answer.text().await.unwrap_or_default();
            wrong.extend(
                planted
                    .found_in(&text)
                    .iter()
                    .map(|name| format!("{path} of {} shows the secret {name}", self.id)),
            );
        }
        wrong.extend(self.secrets_on_disk(planted)?);
        Ok(wrong)
    }

    fn secrets_on_disk(&self, planted: &Planted) -> Outcome<Vec<String>> {
        let mut wrong = Vec::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            let entries =
                std::fs::read_dir(&folder).doing(|| format!("list {}", folder.display()))?;
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file()
                    && let Ok(bytes) = std::fs::read(&path)
                {
                    let found = planted.found_in(&String::from_utf8_lossy(&bytes)).join(", ");
                    if !found.is_empty() {
                        wrong.push(format!("{} holds the secret {found}", path.display()));
                    }
                }
            }
        }
        Ok(wrong)
    }
}

/// Which secrets a service's container may hold in its environment.
fn may_hold(service: &str) -> &'static [&'static str] {
    const API: &[&str] = &[
        "secret_key",
        "init_password",
        "database_password",
        "vector_password",
        "redis_password",
        "plugin_daemon_key",
        "inner_api_key",
        "code_execution_key",
        "agent_api_token",
    ];
    match service {
        "api" | "api_websocket" | "worker" | "worker_beat" | "migration" | "job" => API,
        "plugin_daemon" => {
            &["database_password", "redis_password", "plugin_daemon_key", "inner_api_key"]
        }
        "sandbox" => &["code_execution_key"],
        "agent_backend" => &[
            "redis_password",
            "plugin_daemon_key",
            "inner_api_key",
            "agent_server_key",
            "agent_api_token",
            "shellctl_token",
        ],
        "local_sandbox" => &["shellctl_token"],
        // web, the proxies, and whatever comes.
        _ => &[],
    }
}
