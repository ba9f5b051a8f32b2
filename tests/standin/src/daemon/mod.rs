//! The plugin daemon (dify-plugin-daemon 0.6.x): `commandline migrate`, then `main`.

mod cluster;
mod database;
mod plugins;
mod server;
mod settings;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use settings::Settings;

use crate::failure::Failure;
use crate::http::{Manners, listen, serve};
use crate::{Image, log, startup, tasks};

/// What the daemon's tasks share.
#[derive(Debug)]
struct Daemon {
    image: Image,
    settings: Settings,
    plugins: plugins::Plugins,
    http: reqwest::Client,
    active: AtomicUsize,
}

/// Runs until SIGTERM, which ends it at once and without draining.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let running = async {
        let settings = Settings::read(&image.env)?;
        // The schema first, in its own process, before the listener.
        database::migrate(&image, &settings).await?;
        startup::pay(&image.baked, startup::DAEMON).await?;
        settings
            .redis
            .connect()
            .await
            .map_err(|e| e.while_doing("panic: init redis client failed"))?;
        let daemon = Arc::new(Daemon {
            plugins: plugins::Plugins::new(&settings, &image.env)?,
            http: crate::bucket::client(None)?,
            active: AtomicUsize::new(0),
            image: image.clone(),
            settings,
        });
        tasks::spawn(cluster::keep_registered(Arc::clone(&daemon)));
        tasks::spawn(plugins::keep_launched(Arc::clone(&daemon)));
        if image.env.flag("PLUGIN_REMOTE_INSTALLING_ENABLED", true) {
            let port = image.env.number("PLUGIN_REMOTE_INSTALLING_PORT", 5003);
            let debugging =
                listen(image.env.or("PLUGIN_REMOTE_INSTALLING_HOST", "0.0.0.0"), port).await?;
            tasks::spawn(async move {
                // The debug protocol is not imitated: a connection is taken and closed.
                while debugging.accept().await.is_ok() {}
            });
        }
        let listener = listen(image.env.or("SERVER_HOST", "0.0.0.0"), daemon.settings.port).await?;
        log::line(&format!("[GIN-debug] Listening and serving HTTP on :{}", daemon.settings.port));
        let handler = move |request| server::answer(Arc::clone(&daemon), request);
        serve(listener, Manners::ABRUPT, stop.clone(), handler).await;
        Ok(())
    };
    tokio::select! {
        ended = running => ended,
        () = stop.cancelled() => {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(())
        }
    }
}
