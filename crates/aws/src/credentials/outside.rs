//! The world as the sources see it: HTTP, files, processes.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

/// What the sources need done for them.
pub trait Outside: Send + Sync {
    /// One HTTP exchange. Redirects are not followed; no proxy is asked for link-local and
    /// loopback addresses. The answer is at most [`RESPONSE_BYTES_MAX`] long.
    fn fetch<'a>(
        &'a self,
        request: FetchRequest,
    ) -> OutsideFuture<'a, Result<FetchResponse, FetchError>>;

    /// A whole file; `None` when there is none. Longer than `bytes_max` is an error.
    fn read_file<'a>(
        &'a self,
        path: &'a Path,
        bytes_max: usize,
    ) -> OutsideFuture<'a, Result<Option<Vec<u8>>, OutsideError>>;

    /// The standard output of a command that ended with success within [`PROCESS_TIMEOUT`], at
    /// most [`RESPONSE_BYTES_MAX`] of it. No shell is involved.
    fn run<'a>(&'a self, command: &'a [String])
    -> OutsideFuture<'a, Result<Vec<u8>, OutsideError>>;
}

/// Something [`Outside`] does.
pub type OutsideFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request for [`Outside::fetch`]. `Debug` tells neither query, header values nor body.
#[derive(Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// The method.
    pub method: &'static str,
    /// The whole URL, `http` or `https`.
    pub url: String,
    /// Headers, without `host`.
    pub headers: Vec<(&'static str, String)>,
    /// The body, empty for none.
    pub body: Vec<u8>,
    /// Until the last byte of the answer.
    pub timeout: Duration,
}

impl FetchRequest {
    pub(crate) fn new(method: &'static str, url: impl Into<String>, timeout: Duration) -> Self {
        Self { method, url: url.into(), headers: Vec::new(), body: Vec::new(), timeout }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl fmt::Debug for FetchRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.split_once('?').map_or(self.url.as_str(), |(url, _)| url);
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        f.debug_struct("FetchRequest")
            .field("method", &self.method)
            .field("url", &url)
            .field("headers", &headers)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// An answer to a [`FetchRequest`]. `Debug` tells its status and size only.
#[derive(Clone, PartialEq, Eq)]
pub struct FetchResponse {
    /// The status.
    pub status: u16,
    /// The `Date` header in seconds since 1970, if there is a readable one.
    pub date: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
}

impl fmt::Debug for FetchResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchResponse")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(
    /// What the network says; it names the host.
    pub String,
);

/// Why a file was not read or a command gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OutsideError(
    /// What the system says; it names the file or the command's first word.
    pub String,
);

/// The largest answer of a metadata service, of STS, or of a credential process.
pub const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// The largest shared file that is read.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// The largest token that is read from a file; STS takes 20,000 characters.
pub const TOKEN_BYTES_MAX: usize = 32 << 10;

/// How long a metadata service of the machine or the container may take for one answer, as in
/// botocore: it is a hop away, or it is not there.
pub const METADATA_TIMEOUT: Duration = Duration::from_secs(1);

/// How long STS and SSO may take for one answer.
pub const STS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a `credential_process` may take.
pub const PROCESS_TIMEOUT: Duration = Duration::from_secs(30);
