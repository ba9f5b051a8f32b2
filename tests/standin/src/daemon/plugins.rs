//! Installed plugins: listed in the storage, launched on every node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::cmd;
use tokio::sync::Semaphore;

use super::{Daemon, Settings};
use crate::bucket::Bucket;
use crate::env::Env;
use crate::failure::Failure;
use crate::{log, tasks};

/// What is installed and what runs here.
#[derive(Debug)]
pub(super) struct Plugins {
    store: Store,
    prefix: String,
    running: Mutex<BTreeSet<String>>,
    launching: Mutex<BTreeSet<String>>,
    /// PLUGIN_LOCAL_LAUNCHING_CONCURRENT.
    slots: Arc<Semaphore>,
}

#[derive(Debug)]
enum Store {
    Bucket(Bucket),
    Local(PathBuf),
}

/// The time between two listings at scale 1.
const WATCH: Duration = Duration::from_secs(30);
/// Building one plugin's Python environment at scale 1.
const LAUNCH: Duration = Duration::from_secs(20);

impl Plugins {
    pub(super) fn new(settings: &Settings, env: &Env) -> Result<Self, Failure> {
        let store = match env.or("PLUGIN_STORAGE_TYPE", "local") {
            "gcs" | "google-storage" | "google_storage" => {
                let name = env
                    .get("PLUGIN_STORAGE_OSS_BUCKET")
                    .ok_or_else(|| Failure::new("[PANIC] plugin storage bucket is empty"))?;
                Store::Bucket(Bucket::new(env, name)?)
            }
            "local" => {
                Store::Local(PathBuf::from(env.or("PLUGIN_STORAGE_LOCAL_ROOT", "/app/storage")))
            }
            other => {
                return Err(Failure::new(format!(
                    "[PANIC] Failed to create storage: unsupported storage type {other}"
                )));
            }
        };
        Ok(Self {
            store,
            prefix: settings.installed_path.clone(),
            running: Mutex::default(),
            launching: Mutex::default(),
            slots: Arc::new(Semaphore::new(
                env.number("PLUGIN_LOCAL_LAUNCHING_CONCURRENT", 2_usize).max(1),
            )),
        })
    }

    /// Plugins with a runtime on this node.
    pub(super) fn running(&self) -> Vec<String> {
        lock(&self.running).iter().cloned().collect()
    }

    async fn installed(&self) -> Result<BTreeSet<String>, Failure> {
        let names = match &self.store {
            Store::Bucket(bucket) => bucket.list(&self.prefix).await?,
            Store::Local(root) => local_names(&root.join(&self.prefix), &self.prefix).await,
        };
        let (good, bad): (Vec<_>, Vec<_>) = names
            .iter()
            .map(|name| (name, identifier(name, &self.prefix)))
            .partition(|(_, id)| id.is_some());
        for (name, _) in bad {
            log::error(
                "watcher.go",
                &format!("list installed plugins failed: invalid plugin unique identifier: {name}"),
            );
        }
        Ok(good.into_iter().filter_map(|(_, id)| id).collect())
    }
}

/// Launches what is installed and stops what no longer is.
pub(super) async fn keep_launched(daemon: Arc<Daemon>) {
    let period = daemon.image.baked.scaled(WATCH).max(Duration::from_millis(250));
    loop {
        match daemon.plugins.installed().await {
            Ok(installed) => {
                lock(&daemon.plugins.running).retain(|id| installed.contains(id));
                for id in installed {
                    if !lock(&daemon.plugins.running).contains(&id)
                        && lock(&daemon.plugins.launching).insert(id.clone())
                    {
                        tasks::spawn(launch(Arc::clone(&daemon), id));
                    }
                }
            }
            Err(failure) => {
                log::error("watcher.go", &format!("list installed plugins failed: {failure}"));
            }
        }
        tokio::time::sleep(period).await;
    }
}

async fn launch(daemon: Arc<Daemon>, id: String) {
    let launched = async {
        let _slot =
            daemon.plugins.slots.acquire().await.map_err(|e| Failure::new(e.to_string()))?;
        let mut redis = daemon.settings.redis.connect().await?;
        let key = format!("{}plugin_daemon:env_init_lock:{id}", daemon.settings.prefix);
        let deadline = tokio::time::Instant::now() + Duration::from_mins(2);
        while cmd("SET")
            .arg(&key)
            .arg(1)
            .arg("NX")
            .arg("EX")
            .arg(900)
            .query_async::<Option<String>>(&mut redis)
            .await?
            .is_none()
        {
            if tokio::time::Instant::now() >= deadline {
                return Err(Failure::new("failed to acquire the environment lock: lock timeout"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(daemon.image.baked.scaled(LAUNCH)).await;
        cmd("DEL").arg(&key).query_async::<()>(&mut redis).await?;
        Ok::<_, Failure>(())
    };
    match launched.await {
        Ok(()) => {
            log::line(&format!("INFO local runtime ready plugin={id}"));
            lock(&daemon.plugins.running).insert(id.clone());
        }
        Err(failure) => log::error("launcher.go", &format!("launch plugin {id} failed: {failure}")),
    }
    lock(&daemon.plugins.launching).remove(&id);
}

fn lock(set: &Mutex<BTreeSet<String>>) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `author/name:version@checksum` behind the prefix; the listing itself matched the
/// bare string, so with the prefix `plugin` the packages in `plugin_packages/` turn up too.
fn identifier(object: &str, prefix: &str) -> Option<String> {
    let id = object.strip_prefix(prefix)?.trim_start_matches('/');
    let (author, rest) = id.split_once('/')?;
    let (name, rest) = rest.split_once(':')?;
    let (version, checksum) = rest.split_once('@')?;
    let word = |text: &str| {
        !text.is_empty()
            && !text.starts_with('_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    let numeric =
        version.split('-').next().unwrap_or("").split('.').all(|part| part.parse::<u32>().is_ok());
    let sum =
        (32..=64).contains(&checksum.len()) && checksum.chars().all(|c| c.is_ascii_hexdigit());
    (word(author) && word(name) && numeric && sum).then(|| id.to_owned())
}

async fn local_names(root: &std::path::Path, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(mut authors) = tokio::fs::read_dir(root).await else {
        return names;
    };
    while let Ok(Some(author)) = authors.next_entry().await {
        let Ok(mut files) = tokio::fs::read_dir(author.path()).await else {
            continue;
        };
        while let Ok(Some(file)) = files.next_entry().await {
            names.push(format!(
                "{prefix}/{}/{}",
                author.file_name().to_string_lossy(),
                file.file_name().to_string_lossy()
            ));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::identifier;

    #[test]
    fn identifiers_behind_the_prefix() {
        let sum = "0123456789abcdef0123456789abcdef";
        let id = format!("langgenius/openai:0.2.7@{sum}");
        assert_eq!(identifier(&format!("plugins/{id}"), "plugins"), Some(id.clone()));
        assert_eq!(identifier(&format!("plugin_packages/{id}"), "plugin"), None);
        assert_eq!(identifier("plugins/readme", "plugins"), None);
    }
}
