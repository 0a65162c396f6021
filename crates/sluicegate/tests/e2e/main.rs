//! End to end: the built `sluicegate` binary with real sockets, TLS, Admin API and origins that
//! stand for AWS.
//!
//! [`GatewayProcess`](sluicegate_testkit::gateway::GatewayProcess) starts the binary under a
//! temporary prefix, [`Origin`](sluicegate_testkit::origin::Origin) records what reaches the other
//! side, [`Client`](sluicegate_testkit::client::Client) sends bytes and reads answers strictly.

mod adapters;
mod attacks;
mod bad_input;
mod caches;
mod client_certificates;
mod cluster;
mod conditions;
mod config_cmd;
mod consumers;
mod crash;
mod declared;
mod discovery;
mod doctor;
mod doors;
mod egress;
mod encryption;
mod essentials;
mod etcd;
mod forwarding;
mod functions;
mod grpc;
mod lambda_answers;
mod lambda_invoke;
mod lambda_streams;
mod lifecycle;
mod limits;
#[cfg(feature = "lua")]
mod lua;
mod mirrors;
mod observe;
mod openapi;
mod proxying;
mod quickstart;
mod random;
mod real_ends;
mod router;
mod scale;
mod secrets;
mod signing;
mod smuggling;
mod streaming;
mod tls;
mod upstreams;
mod walk;
mod websocket;
mod wire;

/// The binary under test.
const BINARY: &str = env!("CARGO_BIN_EXE_sluicegate");
