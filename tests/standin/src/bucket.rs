//! Objects: Cloud Storage as Google's Python and Go clients use it, or a local directory.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use serde_json::Value;

use crate::env::Env;
use crate::failure::Failure;
use crate::http::Answer;
use crate::tls::Check;

/// Where files live.
#[derive(Clone, Debug)]
pub(crate) enum Storage {
    /// STORAGE_TYPE=google-storage.
    Bucket(Bucket),
    /// OpenDAL's `fs`: lost with the container, invisible to other nodes.
    Local(PathBuf),
}

/// One bucket.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    http: reqwest::Client,
    base: String,
    name: String,
    /// Host of the metadata server; `None` with an emulator, which wants no token.
    metadata: Option<String>,
}

impl Storage {
    /// The api image's storage; with no emulator and no metadata server there are no credentials.
    pub(crate) async fn of_api(env: &Env) -> Result<Self, Failure> {
        match env.or("STORAGE_TYPE", "opendal") {
            "google-storage" => {
                let name = env.get("GOOGLE_STORAGE_BUCKET_NAME").ok_or_else(|| {
                    Failure::new("ValueError: Cannot determine path without bucket name.")
                })?;
                let bucket = Bucket::new(env, name)?;
                bucket.token().await.map_err(|e| e.while_doing("google.auth.exceptions.DefaultCredentialsError: Your default credentials were not found"))?;
                Ok(Self::Bucket(bucket))
            }
            "opendal" | "local" => {
                Ok(Self::Local(PathBuf::from(env.or("OPENDAL_FS_ROOT", "/app/api/storage"))))
            }
            other => Err(Failure::new(format!("ValueError: unsupported storage type {other}"))),
        }
    }

    /// Stores an object from a stream.
    pub(crate) async fn put(
        &self,
        name: &str,
        content_type: &str,
        body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Failure> {
        match self {
            Self::Bucket(bucket) => bucket.put(name, content_type, body).await,
            Self::Local(root) => {
                let path = root.join(name);
                if let Some(folder) = path.parent() {
                    tokio::fs::create_dir_all(folder).await?;
                }
                let mut file = tokio::fs::File::create(&path).await?;
                let mut body = std::pin::pin!(body);
                while let Some(chunk) = body.try_next().await? {
                    tokio::io::AsyncWriteExt::write_all(&mut file, &chunk).await?;
                }
                Ok(tokio::io::AsyncWriteExt::flush(&mut file).await?)
            }
        }
    }

    /// Streams an object back; `None` if there is none.
    pub(crate) async fn get(&self, name: &str) -> Result<Option<Answer>, Failure> {
        match self {
            Self::Bucket(bucket) => {
                bucket.exists().await?;
                let url = format!(
                    "{}/download/storage/v1/b/{}/o/{}?alt=media",
                    bucket.base,
                    bucket.name,
                    escape(name)
                );
                let response = bucket.send(bucket.http.get(url)).await?;
                if response.status() == 404 {
                    return Ok(None);
                }
                let response = ok(response).await?;
                Ok(Some(crate::http::streamed(
                    response.bytes_stream().map_err(std::io::Error::other),
                )))
            }
            Self::Local(root) => match tokio::fs::File::open(root.join(name)).await {
                Ok(file) => {
                    Ok(Some(crate::http::streamed(tokio_util::io::ReaderStream::new(file))))
                }
                Err(problem) if problem.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(problem) => Err(problem.into()),
            },
        }
    }
}

impl Bucket {
    /// STORAGE_EMULATOR_HOST, or the real address with a token of the metadata server.
    pub(crate) fn new(env: &Env, name: &str) -> Result<Self, Failure> {
        let http = client(None)?;
        let (base, metadata) = match env.get("STORAGE_EMULATOR_HOST") {
            Some(host) if host.contains("://") => (host.trim_end_matches('/').to_owned(), None),
            Some(host) => (format!("http://{host}"), None),
            None => (
                "https://storage.googleapis.com".to_owned(),
                Some(env.or("GCE_METADATA_HOST", "169.254.169.254").to_owned()),
            ),
        };
        Ok(Self { http, base, name: name.to_owned(), metadata })
    }

    /// A GET of the bucket: the real clients do it before every operation of the api.
    pub(crate) async fn exists(&self) -> Result<(), Failure> {
        let url =
            format!("{}/storage/v1/b/{}?projection=noAcl&prettyPrint=false", self.base, self.name);
        ok(self.send(self.http.get(url)).await?).await.map(drop)
    }

    /// Names of all objects that start with `prefix`: a string prefix, not a folder.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        let mut page = String::new();
        loop {
            let url = format!(
                "{}/storage/v1/b/{}/o?prefix={}&pageToken={page}",
                self.base,
                self.name,
                escape(prefix)
            );
            let listing: Value = ok(self.send(self.http.get(url)).await?).await?.json().await?;
            let items = listing.get("items").and_then(Value::as_array);
            names.extend(
                items
                    .into_iter()
                    .flatten()
                    .filter_map(|item| item.get("name")?.as_str().map(str::to_owned)),
            );
            match listing.get("nextPageToken").and_then(Value::as_str) {
                Some(next) => page = escape(next),
                None => return Ok(names),
            }
        }
    }

    async fn put(
        &self,
        name: &str,
        content_type: &str,
        body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), Failure> {
        self.exists().await?;
        let url = format!("{}/upload/storage/v1/b/{}/o?uploadType=resumable", self.base, self.name);
        let document = serde_json::json!({"name": name, "contentType": content_type});
        let begun = ok(self
            .send(self.http.post(url).header("x-upload-content-type", content_type).json(&document))
            .await?)
        .await?;
        let session = begun
            .headers()
            .get("location")
            .and_then(|location| location.to_str().ok())
            .ok_or_else(|| {
                Failure::new("google.resumable_media.InvalidResponse: no session in the answer")
            })?
            .to_owned();
        let put = self
            .http
            .put(session)
            .header("content-type", content_type)
            .body(reqwest::Body::wrap_stream(body));
        ok(put.send().await?).await.map(drop)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let request = match self.token().await? {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        Ok(request.send().await?)
    }

    async fn token(&self) -> Result<Option<String>, Failure> {
        let Some(host) = &self.metadata else {
            return Ok(None);
        };
        let url =
            format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
        let asking = self
            .http
            .get(url)
            .header("Metadata-Flavor", "Google")
            .timeout(Duration::from_secs(3))
            .send();
        let answer: Value = ok(asking.await?).await?.json().await?;
        let token = answer.get("access_token").and_then(Value::as_str);
        token
            .map(|token| Some(token.to_owned()))
            .ok_or_else(|| Failure::new("metadata server gave no access_token"))
    }
}

/// An HTTP client with the system's roots (none in an image from scratch), by proxy or direct.
pub(crate) fn client(proxy: Option<&str>) -> Result<reqwest::Client, Failure> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(Check::SYSTEM.client()?)
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(Duration::from_mins(1))
        .redirect(reqwest::redirect::Policy::none());
    let builder = match proxy {
        Some(url) => builder.proxy(reqwest::Proxy::all(url)?),
        None => builder.no_proxy(),
    };
    Ok(builder.build()?)
}

async fn ok(response: reqwest::Response) -> Result<reqwest::Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    Err(Failure::new(format!(
        "google.api_core.exceptions: {status} {}",
        text.chars().take(300).collect::<String>()
    )))
}

fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
