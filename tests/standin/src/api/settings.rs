//! The api image's configuration: complete or refused, as pydantic refuses it.

use std::sync::Arc;

use crate::Image;
use crate::bus::Bus;
use crate::cache::Target as Redis;
use crate::celery::Broker;
use crate::env::Env;
use crate::failure::Failure;
use crate::postgres::Target as Postgres;

/// The key Dify publishes in its `.env.example`.
const PUBLISHED_SECRET_KEY: &str = "sk-9f73s3ljTXVcMT3Blb3ljTqtsKiGHXVcMT3BlbkFJLK7U";

/// Everything the api, the worker and beat are wired to.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Main database.
    pub(crate) main: Postgres,
    /// Vector database.
    pub(crate) vector: Postgres,
    /// Main Redis client.
    pub(crate) cache: Redis,
    /// Celery.
    pub(crate) broker: Broker,
    /// Event bus.
    pub(crate) bus: Arc<Bus>,
    /// Prefix of keys in the main Redis database.
    pub(crate) prefix: String,
}

impl Settings {
    /// Reads and validates; the failure names every missing variable.
    pub(crate) fn read(image: &Image) -> Result<Self, Failure> {
        let env = &image.env;
        let problems = problems(env);
        if !problems.is_empty() {
            let count = problems.len();
            let plural = if count == 1 { "" } else { "s" };
            let list: Vec<_> = problems
                .iter()
                .map(|(name, what)| {
                    format!(
                        "
{name}
  {what}"
                    )
                })
                .collect();
            let list = list.concat();
            return Err(Failure::new(format!(
                "pydantic_core._pydantic_core.ValidationError: {count} validation error{plural} for DifyConfig{list}"
            )));
        }
        Ok(Self {
            main: Postgres::main(env),
            vector: Postgres::vector(env),
            cache: Redis::main(env),
            broker: Broker::read(env)?,
            bus: Arc::new(Bus::read(env)?),
            prefix: env
                .get("REDIS_KEY_PREFIX")
                .map_or_else(String::new, |prefix| format!("{prefix}:")),
        })
    }
}

/// Variable and complaint, in the order of the settings class.
fn problems(env: &Env) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    match env.get("SECRET_KEY") {
        None => problems.push(("SECRET_KEY", "Value error, SECRET_KEY is empty".to_owned())),
        Some(PUBLISHED_SECRET_KEY) => problems
            .push(("SECRET_KEY", "Value error, the published default is no secret".to_owned())),
        Some(_) => {}
    }
    match env.or("VECTOR_STORE", "") {
        "pgvector" => {
            for name in [
                "PGVECTOR_HOST",
                "PGVECTOR_PORT",
                "PGVECTOR_USER",
                "PGVECTOR_PASSWORD",
                "PGVECTOR_DATABASE",
            ] {
                if env.get(name).is_none() {
                    problems.push((name, "Field required [type=missing]".to_owned()));
                }
            }
        }
        // Dify starts without one; what needs vectors fails when it needs them.
        "" => {}
        other => problems.push((
            "VECTOR_STORE",
            format!(
                "Value error, vector store \"{other}\" is not in this image; expected pgvector"
            ),
        )),
    }
    for name in [
        "DB_PORT",
        "REDIS_PORT",
        "PGVECTOR_PORT",
        "SQLALCHEMY_POOL_SIZE",
        "SQLALCHEMY_MAX_OVERFLOW",
    ] {
        if env.get(name).is_some_and(|value| value.trim().parse::<u32>().is_err()) {
            problems.push((
                name,
                "Input should be a valid integer, unable to parse string as an integer".to_owned(),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baked::Baked;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let env = Env::with(pairs);
        let baked = Baked::read(&env).unwrap();
        Settings::read(&Image { env, baked }).map_err(|failure| failure.to_string())
    }

    const COMPLETE: [(&str, &str); 7] = [
        ("SECRET_KEY", "k"),
        ("VECTOR_STORE", "pgvector"),
        ("PGVECTOR_HOST", "v"),
        ("PGVECTOR_PORT", "5432"),
        ("PGVECTOR_USER", "u"),
        ("PGVECTOR_PASSWORD", "p"),
        ("PGVECTOR_DATABASE", "d"),
    ];

    #[test]
    fn complete_is_accepted() {
        read(&COMPLETE).unwrap();
    }

    #[test]
    fn every_missing_vector_key_is_named() {
        let text = read(&COMPLETE[..4]).unwrap_err();
        assert!(text.contains("3 validation errors for DifyConfig"), "{text}");
        assert!(
            text.contains("\nPGVECTOR_USER\n") && text.contains("\nPGVECTOR_DATABASE\n"),
            "{text}"
        );
    }

    #[test]
    fn the_published_secret_key_is_refused() {
        let mut pairs = COMPLETE;
        pairs[0].1 = PUBLISHED_SECRET_KEY;
        let text = read(&pairs).unwrap_err();
        assert!(text.contains("SECRET_KEY") && !text.contains(PUBLISHED_SECRET_KEY), "{text}");
    }

    #[test]
    fn no_vector_store_is_accepted() {
        read(&COMPLETE[..1]).unwrap();
    }

    #[test]
    fn a_vector_store_other_than_pgvector_is_refused() {
        let pairs = [COMPLETE[0], ("VECTOR_STORE", "weaviate")];
        assert!(read(&pairs).unwrap_err().contains("VECTOR_STORE"));
    }
}
