//! What the agent wants, from its socket ([`link`]) and from the last time
//! ([`store`]).

pub(crate) mod link;
pub(crate) mod store;

use std::sync::Arc;

use dify_common::wire::edge::Orders;
use tokio::time::Instant;
use tracing::info;

use crate::route::Table;
use crate::state::Shared;

/// Puts orders in force. True: they say something else than those before.
pub(crate) fn apply(shared: &Shared, orders: Orders, heard: bool) -> bool {
    let before = shared.view.borrow().table.clone();
    let orders = match &before {
        Some(table) if orders.adopting => adopting(&table.orders, orders),
        _ => orders,
    };
    let same = before.as_ref().is_some_and(|table| table.orders == orders);
    let news = !same && before.as_ref().is_none_or(|table| !says_the_same(&table.orders, &orders));
    let table = if same {
        before
    } else {
        if news {
            info!(
                sequence = orders.sequence,
                phase = %orders.phase,
                ready = orders.ready,
                release = orders.release,
                upstreams = orders.upstreams.len(),
                routes = orders.routes.len(),
                from_disk = !heard,
                "new orders"
            );
        }
        Some(Arc::new(Table::new(orders, &shared.counts, before.as_deref())))
    };
    shared.view.send_modify(|view| {
        view.table = table;
        if heard {
            view.heard = Some(Instant::now());
        }
    });
    news
}

/// An agent that is taking over knows that it lives, of the node's own faults
/// and whether the node is to leave service; everything else stays as it was ordered before.
fn adopting(before: &Orders, now: Orders) -> Orders {
    Orders {
        adopting: true,
        sequence: now.sequence,
        live: now.live,
        faults: now.faults,
        drain: now.drain,
        silent_fault_after_ms: now.silent_fault_after_ms,
        ..before.clone()
    }
}

fn says_the_same(before: &Orders, now: &Orders) -> bool {
    let sequence = before.sequence;
    *before == Orders { sequence, ..now.clone() }
}
