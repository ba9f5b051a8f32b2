//! Stops every container of the node, group by group: the worker gets the time
//! its runs may take, the plugin daemon goes last because api and worker call it.

use std::collections::BTreeMap;
use std::time::Duration;

use dify_common::chain::Chain;
use dify_common::ids::NodeId;
use futures_util::future::join_all;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::dify::stack::Stack;
use crate::engine::{Engine, Observed};

/// For a container this release does not know: Docker's own default.
const UNKNOWN_GRACE: Duration = Duration::from_secs(10);

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
    for (name, _) in running {
        let spec = stack.and_then(|stack| stack.containers.iter().find(|spec| spec.name == *name));
        let (order, signal, grace) = spec.map_or((0, None, UNKNOWN_GRACE), |spec| {
            (spec.stop_order, spec.stop_signal.clone(), spec.stop_timeout)
        });
        groups.entry(order).or_default().push(Halt { name: name.clone(), signal, grace });
    }
    groups.into_values().collect()
}

/// Stops them within `bound`; what is left then is killed by nobody: the
/// machine is going down anyway, and Docker keeps each container's own grace.
pub async fn stop_all(engine: &Engine, node: &NodeId, stack: Option<&Stack>, bound: Duration) {
    let observed = match engine.observe(node).await {
        Ok(observed) => observed,
        Err(error) => {
            warn!(error = %Chain(&error), "cannot see what to stop");
            return;
        }
    };
    let all = async {
        for group in groups(stack, &observed) {
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
    };
    if timeout(bound, all).await.is_err() {
        warn!(?bound, "containers did not stop in time");
    }
}
