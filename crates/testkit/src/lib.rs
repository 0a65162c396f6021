//! What tests share: a gateway process, origins that record, clients that read strictly,
//! certificates, and [`PluginTest`] for one plugin in a real gateway.
//!
//! Everything listens on loopback with ports from the system, every wait has a deadline, and
//! nothing is left behind when a test ends. A helper that cannot do its work panics: the test
//! has failed then.

pub mod certs;
pub mod client;
pub mod clouds;
pub mod dns;
pub mod etcd;
pub mod functions;
pub mod gateway;
pub mod judge;
pub mod origin;
pub mod plugin;
pub mod port;
pub mod proxy;
pub mod redis;
pub mod wait;

pub use client::{Client, Response};
pub use clouds::Clouds;
pub use functions::FunctionProcess;
pub use gateway::GatewayProcess;
pub use judge::Judge;
pub use origin::{Answer, Origin, Received};
pub use plugin::{InProcess, PluginTest, deps};
pub use proxy::Proxy;
pub use redis::Redis;
