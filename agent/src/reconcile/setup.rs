//! Whether Dify's first setup is finished: until then the instance belongs to
//! whoever reaches `/install` first, so without an `INIT_PASSWORD` the edge
//! refuses the setup routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dify_common::tasks::Tasks;
use dify_common::wire::status::Finding;
use reqwest::Client;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, info_span};

use crate::board::Board;

/// Asked this often until it is finished, then never again.
const PERIOD: Duration = Duration::from_secs(3);
/// One database read (Dify 1.15.0, `controllers/console/setup.py`).
const DEADLINE: Duration = Duration::from_secs(5);
/// Code of the finding.
const UNOWNED: &str = "setup-not-finished";

/// The answer so far. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Setup(Arc<AtomicBool>);

#[derive(Deserialize)]
struct Step {
    step: String,
}

impl Setup {
    /// Known to be finished.
    pub fn finished(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks the api behind `base` (`http://address:port`) until it is finished.
    /// `guarded`: an init password is set, so nothing is refused meanwhile.
    pub fn spawn(&self, base: String, guarded: bool, board: Board, tasks: &Tasks) {
        let (setup, stopping) = (self.clone(), tasks.stopping());
        tasks.spawn("setup-watch", info_span!("setup"), async move {
            let client = Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(DEADLINE);
            let client = client.build().expect("no option here can fail");
            let url = format!("{base}/console/api/setup");
            let mut period = interval(PERIOD);
            period.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !setup.finished() {
                tokio::select! {
                    // cancel-safe: a tick is not lost.
                    _ = period.tick() => {}
                    // cancel-safe: a token can be awaited again.
                    () = stopping.cancelled() => return,
                }
                let Ok(answer) = client.get(&url).send().await else { continue };
                let Ok(Step { step }) = answer.json().await else { continue };
                if step == "finished" {
                    info!("setup is finished");
                    setup.0.store(true, Ordering::Relaxed);
                    board.amend(|view| view.findings.retain(|finding| finding.code != UNOWNED));
                } else {
                    board.finding(unowned(guarded));
                }
            }
        });
    }
}

fn unowned(guarded: bool) -> Finding {
    let message = if guarded {
        "nobody has finished /install yet; it asks for the init password first"
    } else {
        "nobody has finished /install yet and no init password is configured: the setup routes \
         answer 403 until `secrets.init_password` refers to one"
    };
    Finding { code: UNOWNED.to_owned(), message: message.to_owned() }
}
