//! The api image: what `/entrypoint.sh` and `flask` do.
//!
//! MODE and MIGRATION_ENABLED as in Dify's `api/docker/entrypoint.sh`: the
//! migration runs first in every mode if MIGRATION_ENABLED is the literal
//! `true`; MODE=migration without it falls through and serves for ever.

mod console;
mod files;
mod links;
mod migration;
mod routes;
mod server;
mod settings;
mod streams;

pub(crate) use settings::Settings;

use crate::failure::Failure;
use crate::startup;
use crate::{Image, beat, log, worker};

/// `/entrypoint.sh`; the number is the exit status.
pub(crate) async fn entrypoint(image: Image, args: &[String]) -> u8 {
    let mode = image.env.or("MODE", "").to_owned();
    if image.env.get("MIGRATION_ENABLED") == Some("true") {
        log::line("Running migrations");
        let status = exit_status(migration::upgrade_db(&image).await);
        if status != 0 {
            return status;
        }
        if mode == "migration" {
            log::line("Migration completed, exiting normally");
            return 0;
        }
    }
    match mode.as_str() {
        "worker" => exit_status(worker::run(image).await),
        "beat" => exit_status(beat::run(image).await),
        "job" => {
            log::line(&format!("Running Flask job command: flask {}", args.join(" ")));
            let status = flask(image, args).await;
            if status != 0 {
                log::line(&format!(
                    "Error: Flask command 'flask {}' failed with exit code: {status}",
                    args.join(" ")
                ));
            }
            status
        }
        _ => exit_status(server::run(image).await),
    }
}

/// `flask ARGS`; the number is the exit status.
pub(crate) async fn flask(image: Image, args: &[String]) -> u8 {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if words.first() == Some(&"upgrade-db") {
        return exit_status(migration::upgrade_db(&image).await);
    }
    let commanded = async {
        let settings = Settings::read(&image)?;
        startup::pay(&image.baked, startup::FLASK).await?;
        // The application logs to stdout before the command prints.
        log::info("app_factory.py:77", "Finished create_app");
        match words.as_slice() {
            ["db", "heads"] => log::line(&format!("{} (head)", image.baked.head)),
            ["db", "current"] => {
                if let Some(revision) =
                    migration::current(&mut settings.main.connect().await?).await?
                {
                    let head = if revision == image.baked.head { " (head)" } else { "" };
                    log::line(&format!("{revision}{head}"));
                }
            }
            ["--help" | "--version"] => log::line("Usage: flask [OPTIONS] COMMAND [ARGS]..."),
            [command, ..] => {
                record(&settings, &words.join(" ")).await?;
                log::line(&format!("{command}: done"));
            }
            [] => {
                return Err(Failure::new("Usage: flask [OPTIONS] COMMAND [ARGS]...").with_status(2));
            }
        }
        Ok(())
    };
    exit_status(commanded.await)
}

/// One-off commands of the release notes leave a row, so that a test can count them.
async fn record(settings: &Settings, command: &str) -> Result<(), Failure> {
    let mut connection = settings.main.connect().await?;
    let table = "CREATE TABLE IF NOT EXISTS standin_jobs (command text NOT NULL, at timestamptz NOT NULL DEFAULT now())";
    sqlx::query(table).execute(&mut connection).await?;
    let insert = "INSERT INTO standin_jobs (command) VALUES ($1)";
    sqlx::query(insert).bind(command).execute(&mut connection).await?;
    Ok(())
}

fn exit_status(ended: Result<(), Failure>) -> u8 {
    match ended {
        Ok(()) => 0,
        Err(failure) => {
            log::line(&failure.to_string());
            failure.status()
        }
    }
}
