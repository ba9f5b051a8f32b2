//! The daemon's own schema: GORM's AutoMigrate at every start, with no lock.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::Settings;
use crate::Image;
use crate::failure::Failure;
use crate::log;

const TABLES: [(&str, &str); 4] = [
    ("plugins", "id uuid PRIMARY KEY, plugin_unique_identifier varchar(255) UNIQUE"),
    ("plugin_installations", "id uuid PRIMARY KEY, tenant_id uuid, plugin_id varchar(255)"),
    ("endpoints", "id uuid PRIMARY KEY, hook_id varchar(127) UNIQUE, tenant_id uuid"),
    (
        "install_tasks",
        "id uuid PRIMARY KEY, status text NOT NULL, created_at timestamptz DEFAULT now()",
    ),
];

/// Makes the database if it is missing, then every missing table. Looking and
/// making are two steps: two first starts at once can both look before either makes.
pub(super) async fn migrate(image: &Image, settings: &Settings) -> Result<(), Failure> {
    let failed = |failure: Failure| failure.while_doing("[PANIC] failed to init dify plugin db");
    let mut connection = if let Ok(connection) = settings.database.connect().await {
        connection
    } else {
        create_database(settings).await.map_err(failed)?;
        settings.database.connect().await.map_err(failed)?
    };
    for (table, columns) in TABLES {
        if exists(&mut connection, table).await.map_err(failed)? {
            continue;
        }
        // The time GORM takes to compare the model with the catalogue.
        tokio::time::sleep(image.baked.scaled(Duration::from_secs(1))).await;
        let create = format!("CREATE TABLE \"{table}\" ({columns})");
        sqlx::query(AssertSqlSafe(create))
            .execute(&mut connection)
            .await
            .map_err(|e| failed(e.into()))?;
    }
    log::line("dify plugin db initialized");
    Ok(())
}

async fn exists(connection: &mut PgConnection, table: &str) -> Result<bool, Failure> {
    let row = sqlx::query(
        "SELECT count(*) FROM information_schema.tables WHERE table_schema = CURRENT_SCHEMA() AND table_name = $1",
    );
    let count: i64 = row.bind(table).fetch_one(connection).await?.try_get(0)?;
    Ok(count > 0)
}

async fn create_database(settings: &Settings) -> Result<(), Failure> {
    let mut connection =
        settings.database.with_database(&settings.default_database).connect().await?;
    let found = sqlx::query("SELECT 1 FROM pg_database WHERE datname = $1")
        .bind(&settings.database_name)
        .fetch_optional(&mut connection)
        .await?;
    if found.is_none() {
        let create = format!("CREATE DATABASE \"{}\"", settings.database_name.replace('"', ""));
        sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await?;
    }
    Ok(())
}
