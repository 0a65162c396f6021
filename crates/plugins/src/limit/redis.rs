//! A Redis that several gateways count on.
//!
//! A gateway keeps one connection to each Redis that its configurations name (to each node of a
//! cluster), on the background runtime. All requests share it: what they ask goes out pipelined. A
//! request waits for its answer no longer than the configuration allows, whatever the Redis does.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, Script, TlsCertificates, Value, aio::MultiplexedConnection,
};
use serde::Deserialize;
use serde_json::Value as Json;
use sluicegate_gateway::plugin::ConfigError;
use sluicegate_gateway::upstream::UpstreamDeps;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::{timeout, timeout_at};

/// The Redis servers of a gateway that are in use.
#[derive(Default)]
pub(crate) struct Servers(Mutex<HashMap<String, Weak<Redis>>>);

impl Servers {
    /// The server that a configuration names. Configurations that say the same share it.
    pub(crate) fn of(&self, config: &Json, deps: &UpstreamDeps) -> Result<Arc<Redis>, ConfigError> {
        self.open(config, &deps.background, deps.tls.trusted_pem())
    }

    /// As [`Self::of`], on this runtime and with these authorities.
    pub(crate) fn open(
        &self,
        config: &Json,
        background: &Handle,
        trusted_pem: Option<&[u8]>,
    ) -> Result<Arc<Redis>, ConfigError> {
        let (name, config) = RedisConfig::read(config)?;
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(redis) = servers.get(&name).and_then(Weak::upgrade) {
            return Ok(redis);
        }
        servers.retain(|_, redis| redis.strong_count() > 0);
        let redis = Arc::new(Redis::new(config, background.clone(), trusted_pem)?);
        servers.insert(name, Arc::downgrade(&redis));
        Ok(redis)
    }
}

/// A Redis server, a cluster, or what sentinels say is the server.
pub(crate) struct Redis {
    background: Handle,
    target: Target,
    limit: Duration,
    link: AsyncMutex<Link>,
    under_way: Semaphore,
}

enum Target {
    One(Box<Client>),
    Cluster(Box<ClusterClient>),
    Sentinel(Box<AsyncMutex<SentinelClient>>),
}

/// The connection there is.
#[derive(Default)]
struct Link {
    connection: Option<(u64, Connection)>,
    /// How many there were.
    made: u64,
    /// When the last try failed, and why.
    failed: Option<(Instant, String)>,
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Why a Redis did not answer a request. It names no key and no password.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RedisFailure {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// It answered with an error, or the connection broke.
    #[error("{0}")]
    Answer(String),
    /// It answered what was not asked.
    #[error("the answer is none of the script's")]
    Strange,
    /// The time is over.
    #[error("no answer within {} ms", .0.as_millis())]
    Slow(Duration),
    /// Too many wait already.
    #[error("{UNDER_WAY_MAX} requests wait for it already")]
    Busy,
}

/// A script, and the key it works on: exactly one, as a cluster asks.
pub(crate) struct Call {
    script: &'static Script,
    code: &'static str,
    key: Vec<u8>,
    args: Vec<String>,
}

/// When waiting for a Redis ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

/// What a Redis is asked.
pub(crate) enum Ask {
    /// To run a script.
    Run(Call),
    /// For the number of a key; 0 when there is none.
    Number(Vec<u8>),
}

/// A script with its text.
pub(crate) struct Code {
    script: std::sync::LazyLock<Script>,
    text: &'static str,
}

impl Code {
    /// A script of this text.
    pub(crate) const fn new(text: &'static str, script: fn() -> Script) -> Self {
        Self { script: std::sync::LazyLock::new(script), text }
    }

    /// Asks to run it.
    pub(crate) fn on(&'static self, key: Vec<u8>, args: Vec<String>) -> Ask {
        Ask::Run(Call { script: &self.script, code: self.text, key, args })
    }
}

impl Redis {
    fn new(
        config: RedisConfig,
        background: Handle,
        trusted_pem: Option<&[u8]>,
    ) -> Result<Self, ConfigError> {
        let limit = config.limit();
        let target =
            config.target(limit, trusted_pem).map_err(|error| ConfigError(error.to_string()))?;
        Ok(Self {
            background,
            target,
            limit,
            link: AsyncMutex::default(),
            under_way: Semaphore::new(UNDER_WAY_MAX),
        })
    }

    /// The runtime it is asked on.
    pub(crate) fn background(&self) -> &Handle {
        &self.background
    }

    /// By when whatever is asked now is to be answered, in however many steps.
    pub(crate) fn deadline(&self) -> Deadline {
        Deadline(Instant::now() + self.limit)
    }

    /// Asks from a request thread.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        ask: Ask,
        by: Deadline,
    ) -> Result<Vec<Word>, RedisFailure> {
        let redis = self.clone();
        let task = self.background.spawn(async move { redis.ask_here(&ask, by).await });
        match timeout_at(by.0.into(), task).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(RedisFailure::Answer("the gateway is stopping".into())),
            Err(_) => Err(RedisFailure::Slow(self.limit)),
        }
    }

    /// Asks from the background runtime.
    pub(crate) async fn ask_here(
        &self,
        ask: &Ask,
        by: Deadline,
    ) -> Result<Vec<Word>, RedisFailure> {
        let Ok(_under_way) = self.under_way.try_acquire() else { return Err(RedisFailure::Busy) };
        match timeout_at(by.0.into(), self.ask_twice(ask)).await {
            Ok(answer) => answer,
            Err(_) => {
                if let Ok(mut link) = self.link.try_lock() {
                    link.connection = None;
                }
                Err(RedisFailure::Slow(self.limit))
            }
        }
    }

    /// Asks, and once more where the connection turns out to be closed. Where the first try counted
    /// and only its answer was lost, `limit-count` and `limit-req` count the request twice: a limit
    /// may come a request early, and never late. `limit-conn` finds the place it took.
    async fn ask_twice(&self, ask: &Ask) -> Result<Vec<Word>, RedisFailure> {
        let mut again = true;
        loop {
            let (number, mut connection) = self.connection().await?;
            let error = match connection.ask(ask).await {
                Ok(answer) => return words(answer),
                Err(error) => error,
            };
            let moved = error.code() == Some("READONLY");
            if !(error.is_io_error() || error.is_unrecoverable_error() || moved) {
                return Err(RedisFailure::Answer(error.to_string()));
            }
            let mut link = self.link.lock().await;
            if link.connection.as_ref().is_some_and(|(current, _)| *current == number) {
                link.connection = None;
            }
            if !again || error.is_timeout() {
                return Err(RedisFailure::Answer(error.to_string()));
            }
            again = false;
        }
    }

    /// The connection, made if there is none. After a failure nobody tries for a moment, so that
    /// requests do not queue up behind a Redis that is gone.
    async fn connection(&self) -> Result<(u64, Connection), RedisFailure> {
        let mut link = self.link.lock().await;
        if let Some(connection) = &link.connection {
            return Ok(connection.clone());
        }
        if let Some((at, why)) = &link.failed
            && at.elapsed() < RETRY_AFTER
        {
            return Err(RedisFailure::Connect(why.clone()));
        }
        let made = match timeout(self.limit, self.target.connect(self.limit)).await {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", self.limit.as_millis())),
        };
        match made {
            Ok(connection) => {
                link.made += 1;
                link.failed = None;
                let connection = (link.made, connection);
                link.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(why) => {
                link.failed = Some((Instant::now(), why.clone()));
                Err(RedisFailure::Connect(why))
            }
        }
    }
}

impl Target {
    async fn connect(&self, limit: Duration) -> Result<Connection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        Ok(match self {
            Self::One(client) => {
                Connection::One(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Self::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
            Self::Sentinel(client) => {
                let mut client = client.lock().await;
                Connection::One(client.get_async_connection_with_config(&config).await?)
            }
        })
    }
}

impl Connection {
    async fn ask(&mut self, ask: &Ask) -> Result<Value, RedisError> {
        match ask {
            Ask::Number(key) => self.send(&command("GET", &[key])).await,
            Ask::Run(call) => {
                let with = |name: &str, script: &str| {
                    let mut command = Cmd::with_capacity(4 + call.args.len(), 0);
                    command.arg(name).arg(script).arg(1).arg(&call.key);
                    for arg in &call.args {
                        command.arg(arg);
                    }
                    command
                };
                let answer = self.send(&with("EVALSHA", call.script.get_hash())).await;
                match answer {
                    Err(error) if error.code() == Some("NOSCRIPT") => {
                        self.send(&with("EVAL", call.code)).await
                    }
                    answer => answer,
                }
            }
        }
    }

    async fn send(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        match self {
            Self::One(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }
}

fn command(name: &str, args: &[&[u8]]) -> Cmd {
    let mut command = Cmd::with_capacity(1 + args.len(), 0);
    command.arg(name);
    for arg in args {
        command.arg(*arg);
    }
    command
}

/// A number of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Word(f64);

impl Word {
    /// As a count; less than nothing is nothing.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    pub(crate) fn count(self) -> u64 {
        self.0 as u64
    }

    /// As it is.
    pub(crate) fn number(self) -> f64 {
        self.0
    }
}

/// The numbers of an answer. Scripts may answer with texts of numbers.
fn words(answer: Value) -> Result<Vec<Word>, RedisFailure> {
    #[expect(clippy::cast_precision_loss, reason = "Redis' Lua has no other numbers")]
    let word = |value: &Value| match value {
        Value::Int(number) => Some(Word(*number as f64)),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok().map(Word),
        Value::SimpleString(text) => text.parse().ok().map(Word),
        Value::Nil => Some(Word(0.0)),
        _ => None,
    };
    let all = match &answer {
        Value::Array(values) => values.iter().map(word).collect::<Option<Vec<_>>>(),
        value => word(value).map(|word| vec![word]),
    };
    all.ok_or(RedisFailure::Strange)
}

/// How a Redis is reached; the fields of every plugin that counts on one.
#[derive(Deserialize)]
struct RedisConfig {
    policy: String,
    redis_host: Option<String>,
    redis_port: Option<u16>,
    redis_username: Option<String>,
    redis_password: Option<String>,
    redis_database: Option<i64>,
    redis_timeout: Option<u64>,
    #[serde(default)]
    redis_ssl: bool,
    #[serde(default)]
    redis_ssl_verify: bool,
    #[serde(default)]
    redis_cluster_nodes: Vec<String>,
    #[serde(default)]
    redis_cluster_ssl: bool,
    #[serde(default)]
    redis_cluster_ssl_verify: bool,
    #[serde(default)]
    redis_sentinels: Vec<Node>,
    redis_master_name: Option<String>,
    redis_role: Option<String>,
    redis_connect_timeout: Option<u64>,
    redis_read_timeout: Option<u64>,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
}

#[derive(Deserialize)]
struct Node {
    host: String,
    port: u16,
}

impl fmt::Debug for RedisConfig {
    /// Passwords are not printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl RedisConfig {
    /// Reads the fields about the Redis, and what tells it from another one.
    fn read(config: &Json) -> Result<(String, Self), ConfigError> {
        let of_redis = |name: &str| {
            name == "policy" || name.starts_with("redis_") || name.starts_with("sentinel_")
        };
        let fields = config.as_object().into_iter().flatten();
        let mut fields: Vec<_> = fields.filter(|(name, _)| of_redis(name)).collect();
        fields.sort_by_key(|(name, _)| *name);
        let name = fields.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let config = Self::deserialize(config).map_err(|error| ConfigError(error.to_string()))?;
        Ok((name, config))
    }

    fn limit(&self) -> Duration {
        let ms = if self.policy == "redis-sentinel" {
            let ms = |limit: Option<u64>| limit.unwrap_or(TIMEOUT_MS);
            ms(self.redis_connect_timeout).saturating_add(ms(self.redis_read_timeout))
        } else {
            self.redis_timeout.unwrap_or(TIMEOUT_MS)
        };
        Duration::from_millis(ms.clamp(1, TIMEOUT_MAX_MS))
    }

    /// Certificates are verified by `trusted_pem`, or without it by the system's authorities.
    fn target(self, limit: Duration, trusted_pem: Option<&[u8]>) -> Result<Target, RedisError> {
        let trusted = |tls: bool, verify: bool| {
            let pem = trusted_pem.filter(|_| tls && verify)?;
            Some(TlsCertificates { client_tls: None, root_cert: Some(pem.to_vec()) })
        };
        match self.policy.as_str() {
            "redis-cluster" => {
                let (tls, verify) = (self.redis_cluster_ssl, self.redis_cluster_ssl_verify);
                let nodes = self.redis_cluster_nodes.iter().map(|node| {
                    let (host, port) = split(node);
                    addr(host, port, tls, verify).into_connection_info()
                });
                let nodes: Vec<_> = nodes.collect::<Result<_, _>>()?;
                let mut builder = ClusterClient::builder(nodes)
                    .connection_timeout(limit)
                    .response_timeout(limit)
                    .retries(CLUSTER_RETRIES);
                if let Some(trusted) = trusted(tls, verify) {
                    builder = builder.certs(trusted);
                }
                if let Some(password) = self.redis_password.filter(|p| !p.is_empty()) {
                    builder = builder.password(password);
                }
                Ok(Target::Cluster(Box::new(builder.build()?)))
            }
            "redis-sentinel" => {
                let sentinels = self.redis_sentinels.into_iter();
                let sentinels = sentinels.map(|node| ConnectionAddr::Tcp(node.host, node.port));
                let role = match self.redis_role.as_deref() {
                    Some("slave") => SentinelServerType::Replica,
                    _ => SentinelServerType::Master,
                };
                let name = self.redis_master_name.unwrap_or_default();
                let mut builder = SentinelClientBuilder::new(sentinels, name, role)?
                    .set_client_to_redis_db(self.redis_database.unwrap_or_default());
                if let Some(username) = self.redis_username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = self.redis_password.filter(|p| !p.is_empty()) {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(username) = self.sentinel_username {
                    builder = builder.set_client_to_sentinel_username(username);
                }
                if let Some(password) = self.sentinel_password.filter(|p| !p.is_empty()) {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                Ok(Target::Sentinel(Box::new(AsyncMutex::new(builder.build()?))))
            }
            _ => {
                let host = self.redis_host.unwrap_or_default();
                let port = self.redis_port.unwrap_or(PORT);
                let mut login = RedisConnectionInfo::default()
                    .set_db(self.redis_database.unwrap_or_default())
                    .set_skip_set_lib_name();
                if let Some(password) = self.redis_password.filter(|p| !p.is_empty()) {
                    login = login.set_password(password);
                    if let Some(username) = self.redis_username {
                        login = login.set_username(username);
                    }
                }
                let (tls, verify) = (self.redis_ssl, self.redis_ssl_verify);
                let info = addr(&host, port, tls, verify)
                    .into_connection_info()?
                    .set_redis_settings(login);
                Ok(Target::One(Box::new(match trusted(tls, verify) {
                    Some(trusted) => Client::build_with_tls(info, trusted)?,
                    None => Client::open(info)?,
                })))
            }
        }
    }
}

fn addr(host: &str, port: u16, tls: bool, verify: bool) -> ConnectionAddr {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    if tls {
        ConnectionAddr::TcpTls { host, port, insecure: !verify, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

/// `host:port`, or a host alone.
fn split(node: &str) -> (&str, u16) {
    match node.rsplit_once(':') {
        Some((host, port)) => port.parse().map_or((node, PORT), |port| (host, port)),
        None => (node, PORT),
    }
}

const PORT: u16 = 6379;
const TIMEOUT_MS: u64 = 1000;
/// However long a configuration lets requests wait.
const TIMEOUT_MAX_MS: u64 = 60_000;
/// How long nobody tries to connect after a failure.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Requests that may wait for one Redis at once.
const UNDER_WAY_MAX: usize = 10_000;
/// How often a cluster is asked again after it redirected or had no node.
const CLUSTER_RETRIES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_cluster_may_leave_out_their_port() {
        for (node, parts) in [
            ("127.0.0.1:7000", ("127.0.0.1", 7000)),
            ("redis.test", ("redis.test", 6379)),
            ("[::1]:7000", ("[::1]", 7000)),
        ] {
            assert_eq!(split(node), parts);
        }
    }

    #[test]
    fn answers_are_numbers_or_texts_of_numbers() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let both = Value::Array(vec![Value::Int(1), text("2.5")]);
        assert_eq!(words(both).ok(), Some(vec![Word(1.0), Word(2.5)]));
        assert_eq!(words(Value::Nil).ok(), Some(vec![Word(0.0)]));
        assert!(words(text("many")).is_err());
        assert!(words(Value::Array(vec![Value::Array(vec![])])).is_err());
    }
}
