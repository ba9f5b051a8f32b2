//! MODE=beat: enqueues the cron poller and counts itself, so that a test can see two beats.

use std::time::Duration;

use redis::cmd;
use serde_json::json;

use crate::api::Settings;
use crate::failure::Failure;
use crate::{Image, celery, log, startup, tasks};

/// One tick a minute at scale 1, as the workflow schedule poller has it.
const PERIOD: Duration = Duration::from_mins(1);

/// Ticks until SIGTERM, which ends it at once.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let settings = Settings::read(&image)?;
    let ticking = async {
        startup::pay(&image.baked, startup::API).await?;
        log::line("celery beat v5.6.2 is starting.");
        let period = image.baked.scaled(PERIOD).max(Duration::from_millis(250));
        loop {
            if let Err(failure) = tick(&settings, image.env.or("HOSTNAME", "localhost")).await {
                log::error(
                    "beat.py:301",
                    &format!("beat: Connection error: {failure}. Trying again"),
                );
            }
            tokio::time::sleep(period).await;
        }
    };
    tokio::select! {
        ended = ticking => ended,
        () = stop.cancelled() => Ok(()),
    }
}

async fn tick(settings: &Settings, host: &str) -> Result<(), Failure> {
    let broker = &settings.broker;
    broker
        .enqueue(
            celery::POLLER,
            "schedule.workflow_schedule_task.poll_workflow_schedules",
            &json!({}),
        )
        .await?;
    let mut connection = broker.ping().await?;
    cmd("HINCRBY")
        .arg(broker.key("standin:beats"))
        .arg(host)
        .arg(1)
        .query_async::<()>(&mut connection)
        .await?;
    log::info("beat.py:271", "Scheduler: Sending due task workflow_schedule_task");
    Ok(())
}
