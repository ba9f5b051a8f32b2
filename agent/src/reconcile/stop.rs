//! Stops every container of the node, group by group: the worker gets the time
//! its runs may take, the plugin daemon goes last because api and worker call it.

use std::collections::BTreeMap;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::ids::NodeId;
use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::dify::PLUGIN_DAEMON;
use crate::dify::stack::Stack;
use crate::engine::{Engine, Observed};

/// For a container whose stack is not known (a stop in the middle of a boot):
/// a worker may need its longest run, 20 min; the others end sooner by themselves.
const UNKNOWN_GRACE: Duration = Duration::from_mins(21);

/// Looks at most this often whether something still runs.
const ROUNDS: u32 = 5;

/// One container to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    name: String,
    signal: Option<String>,
    grace: Duration,
}

/// Groups in order; those of one group are stopped together. Containers the
/// stack does not know go first: nothing of it needs them.
pub fn groups(stack: Option<&Stack>, observed: &Observed) -> Vec<Vec<Halt>> {
    let mut groups: BTreeMap<u32, Vec<Halt>> = BTreeMap::new();
    let running = observed.containers.iter().filter(|(_, seen)| seen.state.is_running());
    for (name, seen) in running {
        let spec = stack.and_then(|stack| stack.containers.iter().find(|spec| spec.name == *name));
        let unknown =
            || (if seen.service == PLUGIN_DAEMON { u32::MAX } else { 0 }, None, UNKNOWN_GRACE);
        let (order, signal, grace) = spec.map_or_else(unknown, |spec| {
            (spec.stop_order, spec.stop_signal.clone(), spec.stop_timeout)
        });
        groups.entry(order).or_default().push(Halt { name: name.clone(), signal, grace });
    }
    groups.into_values().collect()
}

/// Stops them within `bound`; what is left then is killed by nobody: the
/// machine is going down anyway, and Docker keeps each container's own grace.
pub async fn stop_all(engine: &Engine, node: &NodeId, stack: Option<&Stack>, bound: Duration) {
    let all = async {
        // Again until nothing runs: an action under way may have started one more.
        for _ in 0..ROUNDS {
            let observed = match engine.observe(node).await {
                Ok(observed) => observed,
                Err(error) => {
                    warn!(error = %Chain(&error), "cannot see what to stop");
                    return;
                }
            };
            for one_shot in observed.one_shots.values() {
                if let Err(error) = engine.remove(&one_shot.id).await {
                    warn!(error = %Chain(&error), "remove a one-shot");
                }
            }
            let groups = groups(stack, &observed);
            if groups.is_empty() {
                return;
            }
            for group in groups {
                stop_group(engine, &group).await;
            }
        }
    };
    if timeout(bound, all).await.is_err() {
        warn!(?bound, "containers did not stop in time");
    }
}

async fn stop_group(engine: &Engine, group: &[Halt]) {
    let names: Vec<&str> = group.iter().map(|halt| halt.name.as_str()).collect();
    info!(containers = names.join(" "), "stopping");
    join_all(group.iter().map(|halt| async {
        let stopped = engine.stop(&halt.name, halt.signal.as_deref(), halt.grace).await;
        if let Err(error) = stopped {
            warn!(error = %Chain(&error), "stop a container");
        }
    }))
    .await;
}
