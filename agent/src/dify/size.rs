//! How big: processes, connections and pools from cores and memory, and the
//! database connections the whole fleet may then open.

use std::collections::BTreeMap;

use crate::config::settings::Capacity;
use crate::engine::spec::EnvValue;

use super::stack::{Budget, Machine};

/// What the api image needs for one more gunicorn process: the peak observed
/// with Dify 1.14.2 (450 MiB), and room for a request's data.
const API_PROCESS: u64 = 512 << 20;
/// Requests one process takes at once. Each is a greenlet, and each open
/// stream holds one for its whole life; Dify's default of 10 is what makes a
/// node with an idle CPU refuse work. More than this and the database pool,
/// not gunicorn, would be where requests wait.
const API_CONNECTIONS: u32 = 200;
/// At or below Dify's own default the api stalls on its first ten streams.
pub(super) const TOO_FEW_CONNECTIONS: u32 = 10;
/// Pool and overflow of each Python process: half of what Dify takes.
const POOL: (u32, u32) = (15, 5);
/// Plugin daemon (Dify: 30).
const DAEMON_CONNECTIONS: u32 = 20;
/// Connections of one vector pool (Dify's default).
const VECTOR_CONNECTIONS: u32 = 5;
/// Vector pools alive at once in a process: Dify makes one for each retrieval
/// and leaves closing to the garbage collector.
const VECTOR_POOLS: u32 = 2;
/// This agent's own: the gate's lock, its record, preflight.
const AGENT_CONNECTIONS: u32 = 3;
/// A migration runs once in the fleet, with SQLAlchemy's defaults for Dify (30 + 10).
const MIGRATION_CONNECTIONS: u32 = 40;

/// The chosen sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) api_workers: u32,
    pub(super) api_connections: u32,
    pub(super) celery_concurrency: u32,
    pub(super) pool_size: u32,
    pub(super) pool_overflow: u32,
    pub(super) daemon_connections: u32,
    pub(super) vector_connections: u32,
}

impl Sizes {
    /// What the operator fixed, and the rest from the machine: half of the
    /// cores and at most a quarter of the memory go to api processes (each is
    /// one core's worth), the worker gets eight greenlets for each core.
    pub(super) fn choose(capacity: &Capacity, machine: Machine) -> Self {
        let fit = u32::try_from(machine.memory / 4 / API_PROCESS).unwrap_or(u32::MAX);
        let set = |value: Option<std::num::NonZeroU32>, derived: u32| {
            value.map_or(derived, std::num::NonZeroU32::get)
        };
        Self {
            api_workers: set(capacity.api_workers, (machine.cores / 2).min(fit).clamp(1, 16)),
            api_connections: set(capacity.api_connections, API_CONNECTIONS),
            celery_concurrency: set(
                capacity.celery_concurrency,
                machine.cores.saturating_mul(8).clamp(8, 128),
            ),
            pool_size: set(capacity.pool_size, POOL.0),
            pool_overflow: capacity.pool_overflow.unwrap_or(POOL.1),
            daemon_connections: DAEMON_CONNECTIONS,
            vector_connections: VECTOR_CONNECTIONS,
        }
    }

    /// Requests the api works on at once.
    pub(super) fn api_slots(&self) -> u32 {
        self.api_workers.saturating_mul(self.api_connections)
    }
}

/// Adds up what each container's environment lets it open.
pub(super) fn budget<'a>(
    containers: impl Iterator<Item = (&'a str, &'a BTreeMap<String, EnvValue>)>,
    max_vms: u32,
) -> Budget {
    let (mut database, mut vector) = (Sum::default(), Sum::default());
    for (service, env) in containers {
        let processes = number(env, "SERVER_WORKER_AMOUNT").unwrap_or(1);
        if let Some(pool) = number(env, "SQLALCHEMY_POOL_SIZE") {
            let overflow = number(env, "SQLALCHEMY_MAX_OVERFLOW").unwrap_or(0);
            database.add(service, processes, pool.saturating_add(overflow));
        }
        if let Some(most) = number(env, "DB_MAX_OPEN_CONNS") {
            database.add(service, 1, most);
        }
        if let Some(most) = number(env, "PGVECTOR_MAX_CONNECTION") {
            vector.add(service, processes, most.saturating_mul(VECTOR_POOLS));
        }
    }
    database.add("agent", 1, AGENT_CONNECTIONS);
    vector.add("agent", 1, 1);
    let (database, database_arithmetic) = database.total(max_vms, MIGRATION_CONNECTIONS);
    let (vector, vector_arithmetic) = vector.total(max_vms, 0);
    Budget { database, database_arithmetic, vector, vector_arithmetic }
}

fn number(env: &BTreeMap<String, EnvValue>, key: &str) -> Option<u32> {
    match env.get(key)? {
        EnvValue::Plain(text) => text.parse().ok(),
        EnvValue::Secret(_) => None,
    }
}

#[derive(Default)]
struct Sum {
    per_vm: u32,
    words: Vec<String>,
}

impl Sum {
    fn add(&mut self, who: &str, processes: u32, each: u32) {
        self.per_vm = self.per_vm.saturating_add(processes.saturating_mul(each));
        self.words.push(format!("{who} {processes} x {each}"));
    }

    fn total(self, vms: u32, once: u32) -> (u32, String) {
        let total = self.per_vm.saturating_mul(vms).saturating_add(once);
        let once = if once == 0 { String::new() } else { format!(" + migration {once}") };
        let words = self.words.join(" + ");
        (total, format!("({words}) x {vms} VMs{once} = {total}"))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn capacity() -> Capacity {
        Capacity {
            max_vms: NonZeroU32::new(4).expect("not 0"),
            api_workers: None,
            api_connections: None,
            celery_concurrency: None,
            pool_size: None,
            pool_overflow: None,
        }
    }

    fn machine(cores: u32, gib: u64) -> Machine {
        Machine { cores, memory: gib << 30 }
    }

    #[test]
    fn sizes_follow_cores_and_memory() {
        for (cores, gib, workers, celery) in [
            (1, 1, 1, 8),
            (2, 8, 1, 16),
            (4, 16, 2, 32),
            (8, 8, 4, 64),
            (16, 8, 4, 128),
            (64, 256, 16, 128),
        ] {
            let sizes = Sizes::choose(&capacity(), machine(cores, gib));
            assert_eq!(
                (sizes.api_workers, sizes.celery_concurrency),
                (workers, celery),
                "{cores} cores, {gib} GiB"
            );
        }
    }

    #[test]
    fn the_operator_wins() {
        let sizes = Sizes::choose(
            &Capacity { api_workers: NonZeroU32::new(3), pool_overflow: Some(0), ..capacity() },
            machine(2, 4),
        );
        assert_eq!((sizes.api_workers, sizes.pool_overflow), (3, 0));
        assert_eq!(sizes.api_slots(), 600);
    }

    #[test]
    fn the_arithmetic_is_written_out() {
        let env = |pairs: &[(&str, &str)]| -> BTreeMap<String, EnvValue> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), EnvValue::Plain((*v).to_owned()))).collect()
        };
        let api = env(&[
            ("SERVER_WORKER_AMOUNT", "2"),
            ("SQLALCHEMY_POOL_SIZE", "15"),
            ("SQLALCHEMY_MAX_OVERFLOW", "5"),
            ("PGVECTOR_MAX_CONNECTION", "5"),
        ]);
        let daemon = env(&[("DB_MAX_OPEN_CONNS", "20")]);
        let budget = budget([("api", &api), ("plugin_daemon", &daemon)].into_iter(), 4);
        assert_eq!(
            budget.database_arithmetic,
            "(api 2 x 20 + plugin_daemon 1 x 20 + agent 1 x 3) x 4 VMs + migration 40 = 292"
        );
        assert_eq!(budget.database, 292);
        assert_eq!(budget.vector_arithmetic, "(api 2 x 10 + agent 1 x 1) x 4 VMs = 84");
    }
}
