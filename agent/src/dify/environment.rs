//! Each container's environment: exactly the keys its release's manifest
//! names, each from its one origin.

use std::collections::BTreeMap;

use dify_common::secret::{ExposeSecret as _, Secret};
use dify_common::settings::Problems;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::settings::{PostgresTls, RedisTls, SecretName, Settings};
use crate::engine::spec::EnvValue;
use crate::release::{Derived, Release, Value};

use super::size::Sizes;

/// Where the bundle of CAs is mounted in every container that speaks TLS to a
/// shared service.
pub(super) const CERTIFICATES: &str = "/etc/dify/ca.pem";

/// Google's own endpoint; any other is an emulator to Google's libraries.
const GOOGLE_STORAGE: &str = "https://storage.googleapis.com";

/// RFC 3986 "unreserved" stays as it is; the rest of an AUTH string would end
/// or bend a URL.
const QUOTED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Everything a value can come from.
pub(super) struct Origins<'a> {
    pub(super) settings: &'a Settings,
    pub(super) secrets: &'a BTreeMap<SecretName, Secret>,
    pub(super) release: &'a Release,
    pub(super) sizes: Sizes,
}

impl Origins<'_> {
    /// The environment of one service; a value whose origin is absent is left out.
    pub(super) fn environment(
        &self,
        service: &str,
        keys: &BTreeMap<&str, &Value>,
    ) -> BTreeMap<String, EnvValue> {
        let own = self.settings.environment.get(service);
        keys.iter()
            .filter_map(|(key, value)| {
                let set = own.and_then(|own| own.get(*key)).map(plain);
                let value = match value {
                    Value::Default(text) => set.or_else(|| Some(plain(text))),
                    Value::Settable => set,
                    Value::Literal(text) => Some(plain(text)),
                    Value::Secret(name) => {
                        self.secrets.get(name).map(|s| EnvValue::Secret(s.clone()))
                    }
                    Value::Derived(derived) => self.derived(*derived),
                    Value::Url { service, path } => self.url(service, path),
                    Value::Unknown(_) => None,
                };
                value.map(|value| ((*key).to_owned(), value))
            })
            .collect()
    }

    /// Notes what the operator may not set, or set where nothing takes it.
    pub(super) fn judge(&self, problems: &mut Problems) {
        for (name, own) in &self.settings.environment {
            let Some(service) = self.release.service(name) else {
                problems.add(
                    format!("environment.{name}"),
                    format!("is no service of release {}", self.release.release),
                );
                continue;
            };
            let known = self.release.keys(service, |_| true);
            for key in own.keys() {
                let wrong = match known.get(key.as_str()) {
                    Some(Value::Default(_) | Value::Settable) => continue,
                    Some(Value::Secret(_)) => {
                        "carries a secret: name it under `secrets`".to_owned()
                    }
                    Some(Value::Derived(_) | Value::Url { .. }) => {
                        "is derived from these settings: change those".to_owned()
                    }
                    Some(Value::Literal(_) | Value::Unknown(_)) => {
                        "is fixed by the release's manifest".to_owned()
                    }
                    None => format!(
                        "is not in the manifest of release {}: {name} takes {}",
                        self.release.release,
                        settable(&known)
                    ),
                };
                problems.add(format!("environment.{name}.{key}"), wrong);
            }
        }
    }

    fn url(&self, service: &str, path: &str) -> Option<EnvValue> {
        let port = self.release.service(service)?.port?;
        Some(EnvValue::Plain(format!("http://{service}:{port}{path}")))
    }

    fn derived(&self, derived: Derived) -> Option<EnvValue> {
        let settings = self.settings;
        let (database, vector, redis) = (&settings.database, &settings.vector, &settings.redis);
        let root_cert = |verified: bool| verified.then(|| plain(CERTIFICATES));
        let public =
            |scheme: &str, path: &str| plain(format!("{scheme}://{}{path}", settings.public_host));
        Some(match derived {
            Derived::DatabaseHost => plain(&database.host),
            Derived::DatabasePort => plain(database.port.to_string()),
            Derived::DatabaseUser => plain(&database.user),
            Derived::DatabaseName => plain(&database.database),
            Derived::DatabaseExtras => plain(extras(database.tls)),
            Derived::PluginDatabase => plain(&settings.plugin_database),
            Derived::DaemonSslMode => plain(match database.tls {
                PostgresTls::Disable => "disable",
                // The daemon's check of its own settings refuses verify-ca.
                PostgresTls::Require | PostgresTls::VerifyCa => "require",
            }),
            Derived::DaemonRootCert => root_cert(database.tls == PostgresTls::VerifyCa)?,
            Derived::DaemonConnections => plain(self.sizes.daemon_connections.to_string()),
            Derived::VectorHost => plain(&vector.host),
            Derived::VectorPort => plain(vector.port.to_string()),
            Derived::VectorUser => plain(&vector.user),
            Derived::VectorName => plain(&vector.database),
            Derived::VectorSslMode => plain(vector.tls.sslmode()),
            Derived::VectorRootCert => root_cert(vector.tls == PostgresTls::VerifyCa)?,
            Derived::VectorConnections => plain(self.sizes.vector_connections.to_string()),
            Derived::RedisHost => plain(&redis.host),
            Derived::RedisPort => plain(redis.port.to_string()),
            Derived::RedisUseSsl => plain((redis.tls != RedisTls::Disable).to_string()),
            Derived::RedisCertReqs => plain(match redis.tls {
                RedisTls::Disable | RedisTls::NoVerify => "CERT_NONE",
                RedisTls::Verify => "CERT_REQUIRED",
            }),
            Derived::RedisRootCert => root_cert(redis.tls == RedisTls::Verify)?,
            Derived::BrokerUrl => self.redis_url(1, ""),
            Derived::EventBusUrl => self.redis_url(0, redis_options(redis.tls)),
            Derived::AgentRedisUrl => self.redis_url(2, redis_options(redis.tls)),
            Derived::Bucket => plain(&settings.bucket.name),
            Derived::PluginBucket => plain(&settings.bucket.plugins),
            Derived::StorageEmulator => (settings.google.storage != GOOGLE_STORAGE)
                .then(|| plain(&settings.google.storage))?,
            Derived::MetadataHost => plain(settings.google.metadata.as_ref()?),
            Derived::PublicUrl => public("https", ""),
            Derived::SocketUrl => public("wss", ""),
            Derived::EndpointTemplate => public("https", "/e/{hook_id}"),
            Derived::Collaboration => plain(settings.features.collaboration.to_string()),
            Derived::Agent => plain(settings.features.agent.to_string()),
            Derived::ApiWorkers => plain(self.sizes.api_workers.to_string()),
            Derived::ApiConnections => plain(self.sizes.api_connections.to_string()),
            Derived::CeleryConcurrency => plain(self.sizes.celery_concurrency.to_string()),
            Derived::PoolSize => plain(self.sizes.pool_size.to_string()),
            Derived::PoolOverflow => plain(self.sizes.pool_overflow.to_string()),
        })
    }

    /// `redis[s]://[:AUTH@]HOST:PORT/DB[?options]`; secret when AUTH is in it.
    fn redis_url(&self, db: u8, options: &str) -> EnvValue {
        let redis = &self.settings.redis;
        let scheme = match redis.tls {
            RedisTls::Disable => "redis",
            RedisTls::NoVerify | RedisTls::Verify => "rediss",
        };
        let place = format!("{}:{}/{db}{options}", redis.host, redis.port);
        match self.secrets.get(&SecretName::RedisPassword) {
            None => EnvValue::Plain(format!("{scheme}://{place}")),
            Some(auth) => {
                let auth = utf8_percent_encode(auth.expose_secret(), QUOTED);
                EnvValue::Secret(Secret::from(format!("{scheme}://:{auth}@{place}")))
            }
        }
    }
}

fn plain(text: impl AsRef<str>) -> EnvValue {
    EnvValue::Plain(text.as_ref().to_owned())
}

/// SQLAlchemy hands the query on to libpq. Said here and not by `PGSSLMODE`
/// alone, since that is one for the whole process and the vector database may
/// differ. Never given to the plugin daemon, where `DB_EXTRAS` is libpq's
/// `options` (internal/db/pg/pg.go).
fn extras(tls: PostgresTls) -> String {
    match tls {
        PostgresTls::Disable | PostgresTls::Require => format!("sslmode={}", tls.sslmode()),
        PostgresTls::VerifyCa => format!("sslmode=verify-ca&sslrootcert={CERTIFICATES}"),
    }
}

/// What redis-py reads from a URL's query. Without it a `rediss` URL means the
/// system's CAs and a checked host name, whatever `REDIS_SSL_*` say.
fn redis_options(tls: RedisTls) -> &'static str {
    match tls {
        RedisTls::Disable => "",
        RedisTls::NoVerify => "?ssl_cert_reqs=none&ssl_check_hostname=false",
        RedisTls::Verify => {
            "?ssl_cert_reqs=required&ssl_ca_certs=/etc/dify/ca.pem&ssl_check_hostname=true"
        }
    }
}

fn settable(known: &BTreeMap<&str, &Value>) -> String {
    let keys: Vec<&str> = known
        .iter()
        .filter(|(_, value)| matches!(value, Value::Default(_) | Value::Settable))
        .map(|(key, _)| *key)
        .collect();
    if keys.is_empty() { "none of the operator's".to_owned() } else { keys.join(", ") }
}
