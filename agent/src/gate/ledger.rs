//! What the fleet knows about its schema, in schema `dify_fleet` of the main
//! database. Written only with the lock held, on the connection that holds it.

use dify_common::ids::ReleaseId;
use sqlx::Connection as _;
use sqlx::postgres::PgConnection;

use super::plan::{Known, Lock, Observed, Outcome, Record, Revision};
use super::session::{Key, LOCK_CLASS};
use super::{Holder, Subject};

/// Prefix of `application_name` on connections of the gate; the node follows.
pub(super) const APPLICATION: &str = "dify-gate ";

const TABLES: &str = "
create table if not exists dify_fleet.image_heads (
    image_digest text primary key,
    release text not null,
    head text not null,
    node text not null,
    learned_at timestamptz not null default now()
);
create table if not exists dify_fleet.migrations (
    release text not null,
    image_digest text not null,
    outcome text not null,
    node text not null,
    revision_before text,
    head text not null,
    revision text,
    detail text,
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (release, image_digest)
);
create table if not exists dify_fleet.post_migration (
    release text not null,
    command text not null,
    node text not null,
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    exit_code bigint,
    primary key (release, command)
);";

/// RFC 3339 in UTC, made by the server.
macro_rules! rfc3339 {
    ($column:literal) => {
        concat!("to_char(", $column, " at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
    };
}

async fn tables_exist(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select to_regclass('dify_fleet.post_migration') is not null")
        .fetch_one(connection)
        .await
}

/// Creates the tables; an existing schema is left as it is.
pub(super) async fn create(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    if tables_exist(connection).await? {
        return Ok(());
    }
    // Asked for first: `if not exists` wants CREATE on the database even where
    // an administrator has made the schema for us.
    let schema: bool = sqlx::query_scalar("select to_regnamespace('dify_fleet') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !schema {
        sqlx::raw_sql("create schema dify_fleet").execute(&mut *connection).await?;
    }
    sqlx::raw_sql(TABLES).execute(connection).await.map(drop)
}

/// `alembic_version` as Dify's role sees it.
pub(super) async fn revision(connection: &mut PgConnection) -> Result<Revision, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("select to_regclass('alembic_version') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Revision::Absent);
    }
    let mut revisions: Vec<String> =
        sqlx::query_scalar("select version_num::text from alembic_version order by 1")
            .fetch_all(connection)
            .await?;
    Ok(match revisions.len() {
        0 => Revision::Absent,
        1 => Revision::At(revisions.remove(0)),
        _ => Revision::Several(revisions),
    })
}

/// One look, all of it in one snapshot: a migration that ends in between
/// cannot show its record beside the revision of before.
pub(super) async fn observe(
    connection: &mut PgConnection,
    subject: &Subject,
    mine: bool,
) -> Result<Observed, sqlx::Error> {
    let mut look = connection.begin_with("begin isolation level repeatable read read only").await?;
    let revision = revision(&mut look).await?;
    let (head, record, known) = if tables_exist(&mut look).await? {
        (
            head(&mut look, subject).await?,
            record(&mut look, subject).await?,
            known(&mut look, subject, &revision).await?,
        )
    } else {
        (None, None, Vec::new())
    };
    let lock = if mine { Lock::Mine } else { holder(&mut look, Key::Migration).await? };
    look.commit().await?;
    Ok(Observed { revision, head, record, known, lock })
}

async fn head(
    connection: &mut PgConnection,
    subject: &Subject,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("select head from dify_fleet.image_heads where image_digest = $1")
        .bind(subject.digest.as_str())
        .fetch_optional(connection)
        .await
}

async fn record(
    connection: &mut PgConnection,
    subject: &Subject,
) -> Result<Option<Record>, sqlx::Error> {
    type Row = (String, String, String, Option<String>, String, Option<String>);
    let row: Option<Row> = sqlx::query_as(concat!(
        "select outcome, node, ",
        rfc3339!("started_at"),
        ", revision_before, head, detail from dify_fleet.migrations \
         where release = $1 and image_digest = $2"
    ))
    .bind(subject.release.as_str())
    .bind(subject.digest.as_str())
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(outcome, node, started_at, before, head, detail)| Record {
        outcome: Outcome::parse(&outcome),
        node,
        started_at,
        before,
        head,
        detail,
    }))
}

async fn known(
    connection: &mut PgConnection,
    subject: &Subject,
    revision: &Revision,
) -> Result<Vec<Known>, sqlx::Error> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select release, node from dify_fleet.image_heads \
         where head = $1 and image_digest <> $2 order by learned_at, release",
    )
    .bind(revision.at())
    .bind(subject.digest.as_str())
    .fetch_all(connection)
    .await?;
    // A release this version cannot name is one it cannot judge.
    Ok(rows
        .into_iter()
        .filter_map(|(release, node)| {
            Some(Known { release: release.parse::<ReleaseId>().ok()?, node })
        })
        .collect())
}

/// Who holds `key`, from the server's lists.
pub(super) async fn holder(connection: &mut PgConnection, key: Key) -> Result<Lock, sqlx::Error> {
    let row: Option<(Option<String>, Option<String>)> = sqlx::query_as(concat!(
        "select a.application_name, ",
        rfc3339!("a.backend_start"),
        " from pg_locks l left join pg_stat_activity a on a.pid = l.pid \
         where l.locktype = 'advisory' and l.granted and l.objsubid = 2 \
         and l.database = (select oid from pg_database where datname = current_database()) \
         and l.classid::int8 = $1::int8 and l.objid::int8 = $2::int8"
    ))
    .bind(LOCK_CLASS)
    .bind(key as i32)
    .fetch_optional(connection)
    .await?;
    Ok(match row {
        None => Lock::Free,
        Some((application, since)) => Lock::Held(Holder {
            node: application.and_then(|name| name.strip_prefix(APPLICATION).map(str::to_owned)),
            since,
        }),
    })
}

/// Keeps the head of an image.
pub(super) async fn keep_head(
    connection: &mut PgConnection,
    subject: &Subject,
    head: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into dify_fleet.image_heads (image_digest, release, head, node) values ($1, $2, $3, $4) \
         on conflict (image_digest) do nothing",
    )
    .bind(subject.digest.as_str())
    .bind(subject.release.as_str())
    .bind(head)
    .bind(subject.node.as_str())
    .execute(connection)
    .await
    .map(drop)
}

/// Puts on record that this node begins, or takes over.
pub(super) async fn begin(
    connection: &mut PgConnection,
    subject: &Subject,
    before: Option<&str>,
    head: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into dify_fleet.migrations (release, image_digest, outcome, node, revision_before, head) \
         values ($1, $2, $3, $4, $5, $6) \
         on conflict (release, image_digest) do update set outcome = excluded.outcome, node = excluded.node, \
         revision_before = excluded.revision_before, head = excluded.head, revision = null, detail = null, \
         started_at = now(), finished_at = null",
    )
    .bind(subject.release.as_str())
    .bind(subject.digest.as_str())
    .bind(Outcome::Running.as_str())
    .bind(subject.node.as_str())
    .bind(before)
    .bind(head)
    .execute(connection)
    .await
    .map(drop)
}

/// Puts on record how it ended. Also for what was never begun (adopted).
pub(super) async fn end(
    connection: &mut PgConnection,
    subject: &Subject,
    outcome: Outcome,
    revision: &Revision,
    head: &str,
    detail: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into dify_fleet.migrations \
         (release, image_digest, outcome, node, head, revision, detail, finished_at) \
         values ($1, $2, $3, $4, $5, $6, $7, now()) \
         on conflict (release, image_digest) do update set outcome = excluded.outcome, \
         node = excluded.node, head = excluded.head, revision = excluded.revision, \
         detail = excluded.detail, finished_at = now()",
    )
    .bind(subject.release.as_str())
    .bind(subject.digest.as_str())
    .bind(outcome.as_str())
    .bind(subject.node.as_str())
    .bind(head)
    .bind(revision.at())
    .bind(detail)
    .execute(connection)
    .await
    .map(drop)
}

/// Lets a failed or refused migration be tried again. The former outcome;
/// `None` when there was nothing to clear.
pub(super) async fn clear(
    connection: &mut PgConnection,
    subject: &Subject,
) -> Result<Option<Outcome>, sqlx::Error> {
    if !tables_exist(connection).await? {
        return Ok(None);
    }
    let former: Option<String> = sqlx::query_scalar(
        "update dify_fleet.migrations m set outcome = $3 from dify_fleet.migrations old \
         where m.release = $1 and m.image_digest = $2 and old.release = m.release \
         and old.image_digest = m.image_digest and old.outcome <> $4 returning old.outcome",
    )
    .bind(subject.release.as_str())
    .bind(subject.digest.as_str())
    .bind(Outcome::Cleared.as_str())
    .bind(Outcome::Running.as_str())
    .fetch_optional(connection)
    .await?;
    Ok(former.map(|word| Outcome::parse(&word)))
}

/// Post-migration commands of the release that ended well, by any node.
pub(super) async fn commands_done(
    connection: &mut PgConnection,
    subject: &Subject,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select command from dify_fleet.post_migration where release = $1 and exit_code = 0",
    )
    .bind(subject.release.as_str())
    .fetch_all(connection)
    .await
}

/// Puts on record that a command begins (`exit_code` `None`) or ended.
pub(super) async fn command(
    connection: &mut PgConnection,
    subject: &Subject,
    command: &str,
    exit_code: Option<i64>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into dify_fleet.post_migration (release, command, node) values ($1, $2, $3) \
         on conflict (release, command) do update set node = excluded.node, exit_code = $4, \
         started_at = case when $4::bigint is null then now() else post_migration.started_at end, \
         finished_at = case when $4::bigint is null then null else now() end",
    )
    .bind(subject.release.as_str())
    .bind(command)
    .bind(subject.node.as_str())
    .bind(exit_code)
    .execute(connection)
    .await
    .map(drop)
}
