//! Files: streamed through the api into its storage and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt as _;
use http::{HeaderValue, Request, header};
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use serde_json::json;
use sqlx::Row as _;

use super::server::App;
use crate::celery;
use crate::failure::Failure;
use crate::http::{Answer, error, header_of, internal_error, json};

/// The raw request body becomes the file; the answer has its `id` and `size`.
pub(super) async fn upload(app: &App, request: Request<Incoming>) -> Answer {
    let id = celery::uuid();
    match store(app, &id, request).await {
        Ok(size) => json(201, &json!({"id": id, "size": size})),
        Err(failure) => internal_error("file_service.py:93", &failure),
    }
}

async fn store(app: &App, id: &str, request: Request<Incoming>) -> Result<u64, Failure> {
    let key = format!("upload_files/{id}");
    let given = header_of(request.headers(), "content-type");
    let content_type = if given.is_empty() { "application/octet-stream" } else { given }.to_owned();
    let size = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&size);
    let body = BodyDataStream::new(request.into_body()).map(move |chunk| {
        let chunk = chunk.map_err(std::io::Error::other)?;
        counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(chunk)
    });
    app.storage.put(&key, &content_type, body).await?;
    let size = size.load(Ordering::Relaxed);
    let recorded = async {
        let mut loan = app.pool.take().await?;
        let insert =
            "INSERT INTO upload_files (id, key, size, mime_type) VALUES ($1::uuid, $2, $3, $4)";
        let stored = i64::try_from(size).unwrap_or(i64::MAX);
        sqlx::query(insert)
            .bind(id)
            .bind(&key)
            .bind(stored)
            .bind(&content_type)
            .execute(&mut loan.connection)
            .await?;
        app.pool.give_back(loan);
        Ok::<_, Failure>(())
    };
    recorded.await.inspect_err(|_| app.pool.invalidate())?;
    Ok(size)
}

/// `GET /files/<id>[/...]`.
pub(super) async fn download(app: &App, path: &str) -> Answer {
    let id = path.trim_start_matches("/files/").split('/').next().unwrap_or_default().to_owned();
    match fetch(app, &id).await {
        Ok(Some(answer)) => answer,
        Ok(None) => error(404, "not_found", "File not found"),
        Err(failure) => internal_error("image_preview.py:40", &failure),
    }
}

async fn fetch(app: &App, id: &str) -> Result<Option<Answer>, Failure> {
    let looked_up = async {
        let mut loan = app.pool.take().await?;
        let select = "SELECT key, mime_type FROM upload_files WHERE id::text = $1";
        let row = sqlx::query(select).bind(id).fetch_optional(&mut loan.connection).await?;
        app.pool.give_back(loan);
        Ok::<_, Failure>(row)
    };
    let Some(row) = looked_up.await.inspect_err(|_| app.pool.invalidate())? else {
        return Ok(None);
    };
    let (key, content_type): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    let mut answer = app.storage.get(&key).await?;
    if let (Some(answer), Some(Ok(value))) =
        (&mut answer, content_type.as_deref().map(HeaderValue::from_str))
    {
        answer.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    Ok(answer)
}
