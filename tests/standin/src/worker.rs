//! MODE=worker: a Celery consumer with early acknowledgement and warm shutdown.
//!
//! A message moves from its list into the hash `unacked` when it is prefetched and
//! out of it when it starts, so a killed worker loses what it was running, and
//! what it had only prefetched stays in `unacked`.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Settings;
use crate::celery::{self, Task};
use crate::env::Env;
use crate::failure::Failure;
use crate::{Image, log, postgres, startup, tasks};

/// Python name of the task that runs a workflow.
pub(crate) const RUN_TASK: &str =
    "tasks.app_generate.workflow_execute_task.workflow_based_app_execution_task";

/// Consumes until SIGTERM, then finishes what runs.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let settings = Arc::new(Settings::read(&image)?);
    tokio::select! {
        paid = startup::pay(&image.baked, startup::API) => paid?,
        () = stop.cancelled() => return Ok(()),
    }
    let storage = crate::bucket::Storage::of_api(&image.env).await?;
    drop(storage);
    let queues = celery::queues(&image.env, image.baked.at_least(1, 17));
    let concurrency = concurrency(&image.env);
    let consumer = Consumer {
        keys: queues.iter().map(|queue| settings.broker.key(queue)).collect(),
        prefetch: Arc::new(Semaphore::new(
            concurrency * image.env.number("CELERY_PREFETCH_MULTIPLIER", 1_usize).max(1),
        )),
        slots: Arc::new(Semaphore::new(concurrency)),
        pause: image.baked.scaled(Duration::from_secs(8)).max(Duration::from_millis(100)),
        running: TaskTracker::new(),
        settings,
        stop,
    };
    log::line(&format!(
        "[config]\n.> transport:   {:?}\n.> concurrency: {concurrency} (gevent)\n[queues]\n.> {}",
        consumer.settings.broker.target,
        queues.join(" ")
    ));
    let mut alive = None;
    while !consumer.stop.is_cancelled() {
        if let Err(failure) = consumer.consume(&image.env, &mut alive).await {
            alive = None;
            log::error(
                "consumer.py:507",
                &format!("consumer: Cannot connect to broker: {failure}. Trying again"),
            );
            tokio::select! {
                () = tokio::time::sleep(consumer.pause) => {}
                () = consumer.stop.cancelled() => {}
            }
        }
    }
    log::line("worker: Warm shutdown (MainProcess)");
    consumer.running.close();
    consumer.running.wait().await;
    Ok(())
}

/// CELERY_WORKER_CONCURRENCY, CELERY_WORKER_AMOUNT, or the entrypoint's 1.
fn concurrency(env: &Env) -> usize {
    env.number("CELERY_WORKER_CONCURRENCY", env.number("CELERY_WORKER_AMOUNT", 1_usize)).max(1)
}

struct Consumer {
    keys: Vec<String>,
    prefetch: Arc<Semaphore>,
    slots: Arc<Semaphore>,
    pause: Duration,
    running: TaskTracker,
    settings: Arc<Settings>,
    stop: CancellationToken,
}

impl Consumer {
    async fn consume(
        &self,
        env: &Env,
        alive: &mut Option<std::os::unix::net::UnixListener>,
    ) -> Result<(), Failure> {
        let broker = &self.settings.broker;
        let mut blocking = broker.target.connect_blocking().await?;
        let mut quick = broker.ping().await?;
        if alive.is_none() {
            *alive = Some(celery::announce(env)?);
            log::info(
                "worker.py:202",
                &format!("celery@{} ready.", env.or("HOSTNAME", "localhost")),
            );
        }
        let node = json!({"hostname": format!("celery@{}", env.or("HOSTNAME", "localhost")), "type": "worker-heartbeat"}).to_string();
        let mut beat = tokio::time::Instant::now();
        while !self.stop.is_cancelled() {
            if beat.elapsed() >= Duration::from_secs(2) {
                cmd("PUBLISH")
                    .arg("/1.celeryev/worker.heartbeat")
                    .arg(&node)
                    .query_async::<()>(&mut quick)
                    .await?;
                beat = tokio::time::Instant::now();
            }
            let reserved = tokio::select! {
                permit = Arc::clone(&self.prefetch).acquire_owned() => permit.map_err(|e| Failure::new(e.to_string()))?,
                () = tokio::time::sleep(Duration::from_secs(2)) => continue,
                () = self.stop.cancelled() => break,
            };
            // Not cancelled by the stop signal: a BRPOP given up half-way loses the message.
            let pop = cmd("BRPOP").arg(&self.keys).arg(1).to_owned();
            let Ok(popped) = tokio::time::timeout(
                Duration::from_secs(6),
                pop.query_async::<Option<(String, String)>>(&mut blocking),
            )
            .await
            else {
                return Err(Failure::new(
                    "redis.exceptions.TimeoutError: Timeout reading from socket",
                ));
            };
            let Some((key, text)) = popped? else { continue };
            let Some(task) = Task::parse(&text) else {
                log::error("consumer.py:632", "Received and deleted unknown message");
                continue;
            };
            cmd("HSET")
                .arg(broker.key("unacked"))
                .arg(&task.tag)
                .arg(json!([text, "", key]).to_string())
                .query_async::<()>(&mut quick)
                .await?;
            let work = work(
                Arc::clone(&self.settings),
                Arc::clone(&self.slots),
                self.stop.clone(),
                quick.clone(),
                task,
                (key, text),
                reserved,
            );
            tasks::spawn(self.running.track_future(async move {
                if let Err(failure) = work.await {
                    log::error("trace.py:285", &failure.to_string());
                }
            }));
        }
        Ok(())
    }
}

/// Waits for a slot, acknowledges, runs; at shutdown an unstarted message goes back to its list.
async fn work(
    settings: Arc<Settings>,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
    mut broker: MultiplexedConnection,
    task: Task,
    message: (String, String),
    reserved: OwnedSemaphorePermit,
) -> Result<(), Failure> {
    let unacked = settings.broker.key("unacked");
    let slot = tokio::select! {
        biased;
        () = stop.cancelled() => {
            cmd("RPUSH").arg(&message.0).arg(&message.1).query_async::<()>(&mut broker).await?;
            return Ok(cmd("HDEL").arg(&unacked).arg(&task.tag).query_async::<()>(&mut broker).await?);
        }
        slot = slots.acquire_owned() => slot.map_err(|e| Failure::new(e.to_string()))?,
    };
    cmd("HDEL").arg(&unacked).arg(&task.tag).query_async::<()>(&mut broker).await?;
    // Early acknowledgement: a running task no longer counts against the prefetch.
    drop(reserved);
    log::info("strategy.py:161", &format!("Task {}[{}] received", task.name, task.tag));
    if task.name == RUN_TASK {
        workflow(&settings, &task.kwargs).await?;
    }
    log::info("trace.py:128", &format!("Task {}[{}] succeeded", task.name, task.tag));
    drop(slot);
    Ok(())
}

/// Runs one workflow: a row in `workflow_runs`, events on the bus.
async fn workflow(settings: &Settings, kwargs: &Value) -> Result<(), Failure> {
    let text = |name: &str| kwargs[name].as_str().unwrap_or_default().to_owned();
    let (run, mode) = (text("run_id"), text("mode"));
    let number = |name: &str, default: u64| kwargs[name].as_u64().unwrap_or(default);
    let (count, interval) =
        (number("events", 3), Duration::from_millis(number("interval_ms", 100)));
    let mut connection = settings.main.connect().await?;
    let started = "INSERT INTO workflow_runs (id, status) VALUES ($1::uuid, 'running')";
    sqlx::query(started).bind(&run).execute(&mut connection).await?;
    let key = settings.bus.key(&mode, &run);
    let mut outlet = Outlet { settings, key, connection: None };
    outlet.send(&json!({"event": "workflow_started", "workflow_run_id": run})).await;
    let mut last_ping = tokio::time::Instant::now();
    for seq in 1..=count {
        let due = tokio::time::Instant::now() + interval;
        while tokio::time::Instant::now() < due {
            let ping = last_ping + Duration::from_millis(number("ping_ms", 10_000));
            tokio::time::sleep_until(due.min(ping)).await;
            if tokio::time::Instant::now() >= ping {
                outlet.send(&json!({"event": "ping"})).await;
                last_ping = tokio::time::Instant::now();
            }
        }
        outlet.send(&json!({"event": "text_chunk", "workflow_run_id": run, "seq": seq, "data": {"text": format!("chunk {seq}")}})).await;
    }
    let ended =
        "UPDATE workflow_runs SET status = 'succeeded', finished_at = now() WHERE id = $1::uuid";
    let recorded = match sqlx::query(ended).bind(&run).execute(&mut connection).await {
        Ok(_) => Ok(()),
        // The database came back meanwhile or it did not: one try on a new connection.
        Err(_) => match postgres::Target::connect(&settings.main).await {
            Ok(mut fresh) => sqlx::query(ended)
                .bind(&run)
                .execute(&mut fresh)
                .await
                .map(drop)
                .map_err(Failure::from),
            Err(failure) => Err(failure),
        },
    };
    outlet.send(&json!({"event": "workflow_finished", "workflow_run_id": run, "data": {"status": "succeeded", "total_steps": count}})).await;
    recorded
}

/// Publishes events; a bus that cannot be reached loses them and the run goes on, as in Dify.
struct Outlet<'a> {
    settings: &'a Settings,
    key: String,
    connection: Option<MultiplexedConnection>,
}

impl Outlet<'_> {
    async fn send(&mut self, event: &Value) {
        let sent = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.settings.bus.publisher().await?,
            };
            self.settings.bus.publish(&mut connection, &self.key, &event.to_string()).await?;
            self.connection = Some(connection);
            Ok::<_, Failure>(())
        };
        if let Err(failure) = sent.await {
            log::error("redis_channel.py:47", &format!("cannot publish event: {failure}"));
        }
    }
}
