//! Calls from the api to its neighbours, one path each, so that a test can prove the wiring.

use http::Request;
use hyper::body::Incoming;
use redis::cmd;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::server::App;
use crate::bucket;
use crate::failure::Failure;
use crate::http::{Answer, error, internal_error, json, query, read_json};

/// To the plugin daemon and, from there, back to `/inner/api`.
pub(super) async fn plugin(app: &App) -> Answer {
    let env = app.env();
    let url = format!(
        "{}/plugin/standin/dispatch",
        env.or("PLUGIN_DAEMON_URL", "http://plugin_daemon:5002").trim_end_matches('/')
    );
    let call = app.direct.post(url).header("X-Api-Key", env.or("PLUGIN_DAEMON_KEY", "")).send();
    pass_on("plugin daemon", call.await).await
}

/// To the code sandbox: body `{"code": ...}`.
pub(super) async fn code(app: &App, request: Request<Incoming>) -> Answer {
    let body = read_json(request.into_body()).await;
    let env = app.env();
    let url = format!(
        "{}/v1/sandbox/run",
        env.or("CODE_EXECUTION_ENDPOINT", "http://sandbox:8194").trim_end_matches('/')
    );
    let document =
        json!({"language": "python3", "code": body["code"], "preload": "", "enable_network": true});
    let call = app
        .direct
        .post(url)
        .header("X-Api-Key", env.or("CODE_EXECUTION_API_KEY", "dify-sandbox"))
        .json(&document)
        .send();
    pass_on("sandbox", call.await).await
}

/// The HTTP Request node: `?url=` through SSRF_PROXY_*, direct without; `?header=Name:value` is sent along.
pub(super) async fn http_node(app: &App, request: &Request<Incoming>) -> Answer {
    let env = app.env();
    let Some(url) = query(request.uri(), "url") else {
        return error(400, "invalid_param", "url is required");
    };
    let by_scheme =
        if url.starts_with("https:") { "SSRF_PROXY_HTTPS_URL" } else { "SSRF_PROXY_HTTP_URL" };
    let proxy = env.get("SSRF_PROXY_ALL_URL").or_else(|| env.get(by_scheme));
    let client = match bucket::client(proxy) {
        Ok(client) => client,
        Err(failure) => return internal_error("ssrf_proxy.py:88", &failure),
    };
    let mut call = client.get(url);
    if let Some((name, value)) =
        query(request.uri(), "header").as_deref().and_then(|header| header.split_once(':'))
    {
        call = call.header(name, value.trim());
    }
    match call.send().await {
        Ok(response) => {
            let status = response.status().as_u16();
            let text = response.text().await.unwrap_or_default();
            json(
                200,
                &json!({"status": status, "proxied": proxy.is_some(), "body": text.chars().take(4000).collect::<String>()}),
            )
        }
        Err(problem) => json(
            502,
            &json!({"proxied": proxy.is_some(), "error": Failure::from(problem).to_string()}),
        ),
    }
}

/// Knowledge: body `{"collection": ..., "vector": [...], "text": ...}`; stores it and answers with the nearest text.
pub(super) async fn vector(app: &App, request: Request<Incoming>) -> Answer {
    let body = read_json(request.into_body()).await;
    let numbers: Option<Vec<f64>> =
        body["vector"].as_array().map(|list| list.iter().filter_map(Value::as_f64).collect());
    let name: String = body["collection"]
        .as_str()
        .unwrap_or("standin")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .collect();
    if app.env().get("VECTOR_STORE").is_none() {
        let failure = Failure::new("ValueError: Vector store must be specified.");
        return internal_error("vector_factory.py:60", &failure);
    }
    let Some(numbers) = numbers.filter(|numbers| !numbers.is_empty()) else {
        return error(400, "invalid_param", "vector is required");
    };
    match nearest(app, &name, &numbers, body["text"].as_str().unwrap_or("")).await {
        Ok(text) => json(200, &json!({"nearest": text})),
        Err(failure) => internal_error("pgvector.py:120", &failure),
    }
}

async fn nearest(
    app: &App,
    collection: &str,
    vector: &[f64],
    text: &str,
) -> Result<String, Failure> {
    // A new connection for each operation, as Dify opens a pool for each vector object.
    let mut connection = app.settings.vector.connect().await?;
    create(app, &mut connection, collection, vector.len()).await?;
    let literal = serde_json::to_string(vector).map_err(|e| Failure::new(e.to_string()))?;
    let insert = format!(
        "INSERT INTO embedding_{collection} (id, text, embedding) VALUES (gen_random_uuid(), $1, $2::vector)"
    );
    sqlx::query(AssertSqlSafe(insert)).bind(text).bind(&literal).execute(&mut connection).await?;
    let select = format!(
        "SELECT text FROM embedding_{collection} ORDER BY embedding <=> $1::vector LIMIT 1"
    );
    let row = sqlx::query(AssertSqlSafe(select)).bind(&literal).fetch_one(&mut connection).await?;
    let found = row.try_get(0)?;
    connection.close().await?;
    Ok(found)
}

/// Extension, table and, up to 2000 dimensions, an HNSW index; under a Redis lock of 20 s.
async fn create(
    app: &App,
    connection: &mut PgConnection,
    collection: &str,
    dimension: usize,
) -> Result<(), Failure> {
    let mut redis = app.settings.cache.connect().await?;
    let lock = format!("{}vector_indexing_{collection}_lock", app.settings.prefix);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while cmd("SET")
        .arg(&lock)
        .arg(1)
        .arg("NX")
        .arg("EX")
        .arg(20)
        .query_async::<Option<String>>(&mut redis)
        .await?
        .is_none()
    {
        if tokio::time::Instant::now() >= deadline {
            return Err(Failure::new(
                "redis.exceptions.LockError: Unable to acquire lock within the time specified",
            ));
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let made = async {
        let present = sqlx::query("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
            .fetch_optional(&mut *connection)
            .await?;
        if present.is_none() {
            sqlx::query("CREATE EXTENSION vector").execute(&mut *connection).await?;
        }
        let table = format!(
            "CREATE TABLE IF NOT EXISTS embedding_{collection} (id uuid PRIMARY KEY, text text NOT NULL, embedding vector({dimension}) NOT NULL)"
        );
        sqlx::query(AssertSqlSafe(table)).execute(&mut *connection).await?;
        if dimension <= 2000 {
            let index = format!(
                "CREATE INDEX IF NOT EXISTS embedding_{collection}_idx ON embedding_{collection} USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
            );
            sqlx::query(AssertSqlSafe(index)).execute(&mut *connection).await?;
        }
        Ok::<_, Failure>(())
    };
    let made = made.await;
    cmd("DEL").arg(&lock).query_async::<()>(&mut redis).await?;
    made
}

/// The neighbour's own status and JSON; 502 when it cannot be reached.
async fn pass_on(whom: &str, answered: Result<reqwest::Response, reqwest::Error>) -> Answer {
    match answered {
        Ok(response) => {
            let status = response.status().as_u16();
            let body: Value = response.json().await.unwrap_or(Value::Null);
            json(status, &body)
        }
        Err(problem) => json(502, &json!({"error": format!("{whom}: {}", Failure::from(problem))})),
    }
}
