//! `flask upgrade-db`: schema migration under a Redis lock nobody waits for.
//!
//! Dify's `api/commands/system.py`: lock `db_upgrade_lock`, 60 s, renewed by a
//! thread every 20 s; whoever does not get it says "skipped" and succeeds.

use std::time::Duration;

use redis::cmd;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::Settings;
use crate::baked::Fault;
use crate::failure::Failure;
use crate::{Image, celery, log, startup, tasks};

const LOCK: &str = "db_upgrade_lock";
const LOCK_TTL: Duration = Duration::from_mins(1);
const LOCK_RENEWAL: Duration = Duration::from_secs(20);

/// Deletes the lock if it is still ours; redis-py's release script does the same.
const RELEASE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";
const RENEW: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end";

/// Boots the application (database, Redis and storage), then migrates or skips.
pub(crate) async fn upgrade_db(image: &Image) -> Result<(), Failure> {
    let settings = Settings::read(image)?;
    startup::pay(&image.baked, startup::MIGRATION).await?;
    crate::bucket::Storage::of_api(&image.env).await?;
    log::line("Preparing database migration...");
    let key = format!("{}{LOCK}", settings.prefix);
    let token = celery::uuid();
    let mut redis = settings.cache.connect().await?;
    let ttl = u64::try_from(LOCK_TTL.as_millis()).unwrap_or(u64::MAX);
    let got: Option<String> = cmd("SET")
        .arg(&key)
        .arg(&token)
        .arg("NX")
        .arg("PX")
        .arg(ttl)
        .query_async(&mut redis)
        .await?;
    if got.is_none() {
        log::line("Database migration skipped");
        return Ok(());
    }
    let renewal = {
        let (cache, key, token) = (settings.cache.clone(), key.clone(), token.clone());
        tasks::spawn(async move {
            loop {
                tokio::time::sleep(LOCK_RENEWAL).await;
                if let Ok(mut redis) = cache.connect().await {
                    let _lost: Result<i64, _> = cmd("EVAL")
                        .arg(RENEW)
                        .arg(1)
                        .arg(&key)
                        .arg(&token)
                        .arg(ttl)
                        .query_async(&mut redis)
                        .await;
                }
            }
        })
    };
    log::line("Starting database migration.");
    let migrated = migrate(image, &settings).await;
    renewal.abort();
    let _expires: Result<i64, _> =
        cmd("EVAL").arg(RELEASE).arg(1).arg(&key).arg(&token).query_async(&mut redis).await;
    match migrated {
        Ok(()) => {
            log::line("Database migration successful!");
            Ok(())
        }
        Err(failure) => {
            log::error("system.py:150", "Failed to execute database migration");
            Err(failure.while_doing("Database migration failed"))
        }
    }
}

/// The revision the database is at; `None` on an empty one.
pub(crate) async fn current(connection: &mut PgConnection) -> Result<Option<String>, Failure> {
    let exists: Option<String> = sqlx::query("SELECT to_regclass('alembic_version')::text")
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if exists.is_none() {
        return Ok(None);
    }
    let row =
        sqlx::query("SELECT version_num FROM alembic_version").fetch_optional(connection).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

async fn migrate(image: &Image, settings: &Settings) -> Result<(), Failure> {
    let baked = &image.baked;
    let mut connection = settings.main.connect().await?;
    let at = current(&mut connection).await?;
    let done = match &at {
        None => 0,
        Some(revision) => match baked.revisions.iter().position(|known| known == revision) {
            Some(position) => position + 1,
            None => {
                return Err(Failure::new(format!(
                    "alembic.util.exc.CommandError: Can't locate revision identified by '{revision}'"
                )));
            }
        },
    };
    if baked.fault == Fault::MigrationHangs {
        std::future::pending::<()>().await;
    }
    let mut transaction = connection.begin().await?;
    if at.is_none() {
        for statement in FIRST {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
    }
    let mut from = at.unwrap_or_default();
    for (number, to) in baked.revisions.iter().enumerate().skip(done) {
        log::info("alembic.runtime.migration", &format!("Running upgrade {from} -> {to}"));
        // The real 171 revisions take a few seconds on an empty database.
        tokio::time::sleep(baked.scaled(Duration::from_millis(200))).await;
        if baked.fault == Fault::MigrationFails && number + 1 == baked.revisions.len() {
            return Err(Failure::new(
                "(psycopg2.errors.UndefinedColumn) column \"standin\" does not exist",
            ));
        }
        sqlx::query("DELETE FROM alembic_version").execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO alembic_version (version_num) VALUES ($1)")
            .bind(to)
            .execute(&mut *transaction)
            .await?;
        from.clone_from(to);
    }
    if baked.fault == Fault::MigrationFails {
        return Err(Failure::new(
            "(psycopg2.errors.UndefinedColumn) column \"standin\" does not exist",
        ));
    }
    Ok(transaction.commit().await?)
}

/// A handful of Dify's 120 tables: those a test or the agent looks at.
const FIRST: [&str; 6] = [
    "CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\"",
    "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY)",
    "CREATE TABLE accounts (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), name varchar(255) NOT NULL, email varchar(255) NOT NULL, created_at timestamp NOT NULL DEFAULT now())",
    "CREATE TABLE dify_setups (version varchar(255) PRIMARY KEY, setup_at timestamp NOT NULL DEFAULT now())",
    "CREATE TABLE workflow_runs (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), status varchar(255) NOT NULL, created_at timestamp NOT NULL DEFAULT now(), finished_at timestamp)",
    "CREATE TABLE upload_files (id uuid PRIMARY KEY DEFAULT uuid_generate_v4(), key varchar(255) NOT NULL, size bigint NOT NULL, mime_type varchar(255), created_at timestamp NOT NULL DEFAULT now())",
];
