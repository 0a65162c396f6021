//! The gateway's names and trust, for calls that are made beside requests.

use std::net::IpAddr;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use sluicegate_fetch::{Connection, EXCHANGE_TIME_MAX, Network, NetworkFuture};

use super::UpstreamDeps;
use crate::client::TlsRequest;

/// Names and trust are those of upstreams, proxies those of functions.
impl Network for UpstreamDeps {
    fn address<'a>(&'a self, host: &'a str) -> NetworkFuture<'a, Result<IpAddr, String>> {
        let name = self.resolver.name(host);
        Box::pin(async move { name.first(EXCHANGE_TIME_MAX).await.map_err(|e| e.to_string()) })
    }

    fn tls(
        &self,
        host: &str,
        verify: bool,
    ) -> Result<(Arc<rustls::ClientConfig>, ServerName<'static>), String> {
        let server_name = host.to_owned();
        let request = TlsRequest { server_name, verify, h2: false, client: None };
        let target = self.tls.target(&request)?;
        Ok((target.config.clone(), target.name.clone()))
    }

    fn tunnel<'a>(
        &'a self,
        tls: bool,
        host: &'a str,
        port: u16,
    ) -> Option<NetworkFuture<'a, Result<Box<dyn Connection>, String>>> {
        let way = self.egress.as_ref()?.way(tls, host, port)?;
        Some(Box::pin(async move {
            let stream = way.open(EXCHANGE_TIME_MAX).await.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        }))
    }
}
