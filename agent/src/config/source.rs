//! Where the document comes from, and waiting for the next one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::gcp::metadata::{HOST_VARIABLE, Metadata, MetadataError};
use dify_common::ids::NodeId;
use dify_common::retry::{Backoff, Retryable};
use dify_common::settings::{self, Problems};
use serde_json::Value;
use tracing::{info, warn};

use super::{Overrides, Settings};
use crate::exit::Exit;

/// Where the document lies on a machine without Google Cloud.
pub const DEFAULT_FILE: &str = "/etc/dify-agent/config.yaml";
/// Instance attribute with the document.
pub const CONFIG_ATTRIBUTE: &str = "dify-config";
/// Instance attribute with the release id, which wins over the document's.
pub const RELEASE_ATTRIBUTE: &str = "dify-release";

/// All attributes in one answer, so that document and release are of one moment
/// and one wait covers both. Google documents `wait_for_change` on a directory
/// only together with `recursive`.
const ATTRIBUTES: &str = "instance/attributes/?recursive=true";
/// One long poll: below the 70 s after which Google's own guest agent gives up on one.
const POLL: Duration = Duration::from_mins(1);
/// How often a file is read again: an operator who edits it waits for it.
const FILE_PERIOD: Duration = Duration::from_secs(5);
/// Names this machine; the kernel has it without asking anyone.
const HOSTNAME_FILE: &str = "/proc/sys/kernel/hostname";

/// Where the document comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Attributes of this VM.
    Metadata(Metadata),
}

/// No settings could be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read the configuration at {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The metadata server does not answer.
    #[error(
        "get the configuration from the metadata server; a machine outside Google Cloud needs --config FILE or {DEFAULT_FILE}"
    )]
    Metadata(#[source] MetadataError),
    /// Its answer is not the JSON object it should be.
    #[error("read the attributes the metadata server answered")]
    Attributes(#[source] serde_json::Error),
    /// This VM has no document.
    #[error(
        "this VM has no attribute {CONFIG_ATTRIBUTE}; the instance template must set it (metadata server at {host})"
    )]
    Absent {
        /// Metadata server that was asked.
        host: String,
    },
    /// The document has mistakes.
    #[error("the configuration from {origin} is not valid")]
    Invalid {
        /// File, or attribute.
        origin: String,
        /// All of them.
        #[source]
        problems: Problems,
    },
}

impl LoadError {
    /// How a command that needed the settings ends.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } | Self::Absent { .. } | Self::Invalid { .. } => Exit::Configuration,
            Self::Metadata(_) | Self::Attributes(_) => Exit::Dependency,
        }
    }

    /// The mistakes, when those are the matter.
    pub fn problems(&self) -> Option<&Problems> {
        match self {
            Self::Invalid { problems, .. } => Some(problems),
            Self::Read { .. } | Self::Metadata(_) | Self::Attributes(_) | Self::Absent { .. } => {
                None
            }
        }
    }
}

impl Retryable for LoadError {
    fn is_permanent(&self) -> bool {
        match self {
            Self::Metadata(error) => error.is_permanent(),
            Self::Read { .. }
            | Self::Attributes(_)
            | Self::Absent { .. }
            | Self::Invalid { .. } => true,
        }
    }
}

impl Source {
    /// The file of the command line; else the metadata server when
    /// `GCE_METADATA_HOST` names one; else [`DEFAULT_FILE`] where there is one;
    /// else this VM's metadata server.
    pub fn choose(config: Option<&Path>, environment: &impl settings::Source) -> Self {
        let named = environment.get(HOST_VARIABLE).is_some_and(|host| !host.is_empty());
        match config {
            Some(path) => Self::File(path.to_owned()),
            None if !named && Path::new(DEFAULT_FILE).exists() => {
                Self::File(PathBuf::from(DEFAULT_FILE))
            }
            None => Self::Metadata(Metadata::from_source(environment)),
        }
    }

    /// The document's whereabouts, for people.
    pub fn origin(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Metadata(metadata) => {
                format!("attribute {CONFIG_ATTRIBUTE} (metadata server at {})", metadata.host())
            }
        }
    }
}

/// Raw texts as found at one moment.
#[derive(Clone, PartialEq, Eq)]
struct Document {
    yaml: Option<String>,
    release: Option<String>,
}

/// Gets the document and waits for the next one. What it hands out is valid or
/// an error; the caller goes on with the settings it has when a later document
/// is not valid.
pub struct Watcher {
    source: Source,
    overrides: Overrides,
    seen: Option<Document>,
    etag: Option<String>,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("source", &self.source)
            .field("overrides", &self.overrides)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// `overrides` are those of the command line; the release attribute and
    /// this machine's name are found here.
    pub fn new(source: Source, overrides: Overrides) -> Self {
        Self { source, overrides, seen: None, etag: None }
    }

    /// Name of this machine, once [`load`](Self::load) has looked for it.
    pub fn machine(&self) -> Option<NodeId> {
        self.overrides.node.clone().or_else(|| self.overrides.machine.clone())
    }

    /// The document as it is now. Tries again for some 15 s when the metadata
    /// server does not answer, as seconds of absence at boot are known.
    pub async fn load(&mut self) -> Result<Settings, LoadError> {
        self.identify().await;
        let document = match &self.source {
            Source::File(path) => read(path).await?,
            Source::Metadata(metadata) => {
                let attributes = metadata.get(ATTRIBUTES).await.map_err(LoadError::Metadata)?;
                Document::from_attributes(attributes.as_deref())?
            }
        };
        self.seen = Some(document.clone());
        self.judge(document)
    }

    /// Waits for a document that differs from the last one handed out, valid or
    /// not. A source that does not answer is waited out, and said once.
    /// Cancel-safe: what was not handed out is found again.
    pub async fn changed(&mut self) -> Result<Settings, LoadError> {
        let mut failed = 0;
        loop {
            match self.next_document().await {
                Ok(document) => {
                    if failed > 0 {
                        info!(failed, "configuration can be read again");
                        failed = 0;
                    }
                    if self.seen.as_ref() != Some(&document) {
                        self.seen = Some(document.clone());
                        return self.judge(document);
                    }
                }
                Err(error) => {
                    if failed == 0 {
                        warn!(error = %Chain(&error), "configuration cannot be watched; will go on trying");
                    }
                    tokio::time::sleep(Backoff::NEARBY.wait(failed)).await;
                    failed += 1;
                }
            }
        }
    }

    async fn next_document(&mut self) -> Result<Document, LoadError> {
        match &self.source {
            Source::File(path) => {
                tokio::time::sleep(FILE_PERIOD).await;
                read(path).await
            }
            Source::Metadata(metadata) => {
                let tagged = metadata
                    .wait_for_change(ATTRIBUTES, self.etag.as_deref(), POLL)
                    .await
                    .map_err(LoadError::Metadata)?;
                let document = Document::from_attributes(tagged.value.as_deref())?;
                self.etag = Some(tagged.etag);
                Ok(document)
            }
        }
    }

    /// Fills in this machine's name, once.
    async fn identify(&mut self) {
        if self.overrides.machine.is_some() {
            return;
        }
        // Absent or unreadable, the document must say it; that mistake is then
        // reported with the rest.
        let name = match &self.source {
            Source::File(_) => tokio::fs::read_to_string(HOSTNAME_FILE).await.ok(),
            Source::Metadata(metadata) => metadata.get("instance/name").await.ok().flatten(),
        };
        self.overrides.machine = name.as_deref().and_then(machine_name);
    }

    fn judge(&self, document: Document) -> Result<Settings, LoadError> {
        let Some(yaml) = document.yaml else {
            let Source::Metadata(metadata) = &self.source else {
                unreachable!("a file that was read has a text")
            };
            return Err(LoadError::Absent { host: metadata.host().to_owned() });
        };
        let mut overrides = self.overrides.clone();
        let mut problems = Problems::default();
        if let (None, Some(release)) = (&overrides.release, &document.release) {
            let expected = "is not a release id: expected one such as 1.14.2";
            let parsed = release.trim().parse().map_err(|_| expected);
            overrides.release = problems.keep(RELEASE_ATTRIBUTE, parsed);
        }
        let settings = Settings::parse(&yaml, &overrides);
        let origin = || self.source.origin();
        match settings {
            Ok(settings) if problems.is_empty() => Ok(settings),
            Ok(_) => Err(LoadError::Invalid { origin: origin(), problems }),
            Err(found) => {
                for problem in found.iter() {
                    problems.add(problem.path.clone(), problem.message.clone());
                }
                Err(LoadError::Invalid { origin: origin(), problems })
            }
        }
    }
}

impl Document {
    fn from_attributes(json: Option<&str>) -> Result<Self, LoadError> {
        // By way of `Value`, whose errors quote no content.
        let attributes: Value =
            serde_json::from_str(json.unwrap_or("{}")).map_err(LoadError::Attributes)?;
        let take = |name: &str| {
            let text = attributes.get(name)?.as_str()?;
            (!text.trim().is_empty()).then(|| text.to_owned())
        };
        Ok(Self { yaml: take(CONFIG_ATTRIBUTE), release: take(RELEASE_ATTRIBUTE) })
    }
}

async fn read(path: &Path) -> Result<Document, LoadError> {
    let yaml = tokio::fs::read_to_string(path).await;
    let yaml = yaml.map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    Ok(Document { yaml: Some(yaml), release: None })
}

/// The first label of a host name, where it is a node id.
fn machine_name(name: &str) -> Option<NodeId> {
    let label = name.trim().split('.').next()?;
    label.to_ascii_lowercase().parse().ok()
}
