//! The outside world of a running gateway: network, files, processes.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{DATE, HeaderName, HeaderValue};
use http::{Request, Uri};
use http_body_util::Full;
use sluicegate_aws::credentials::{
    FetchError, FetchRequest, FetchResponse, Outside, OutsideError, OutsideFuture, PROCESS_TIMEOUT,
    RESPONSE_BYTES_MAX,
};
use sluicegate_fetch::{Endpoint, Limits, Network, exchange};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

/// Names and trust are the gateway's ([`Network`]); certificates are always verified.
pub struct System {
    network: Arc<dyn Network>,
}

impl System {
    /// Over the gateway's network.
    pub fn new(network: Arc<dyn Network>) -> Self {
        Self { network }
    }

    async fn exchange(&self, request: FetchRequest) -> Result<FetchResponse, FetchError> {
        let FetchRequest { method, url, headers, body, timeout } = request;
        let endpoint = Endpoint::parse(&url).map_err(FetchError)?;
        let unusable = || FetchError("the request cannot be made".to_owned());
        let url: Uri = url.parse().map_err(|_| unusable())?;
        let target = url.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            let mut value = HeaderValue::from_str(&value).map_err(|_| unusable())?;
            value.set_sensitive(true);
            request = request.header(HeaderName::from_static(name), value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| unusable())?;
        let limits = Limits { time: timeout, response_bytes: RESPONSE_BYTES_MAX };
        let answer = exchange(&*self.network, &endpoint, true, request, limits).await;
        let answer = answer.map_err(|error| FetchError(error.to_string()))?;
        let date = answer.headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        let date = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(FetchResponse {
            status: answer.status.as_u16(),
            date: date.map(|date| date.as_secs()),
            body: answer.body,
        })
    }
}

impl Outside for System {
    fn fetch<'a>(
        &'a self,
        request: FetchRequest,
    ) -> OutsideFuture<'a, Result<FetchResponse, FetchError>> {
        Box::pin(self.exchange(request))
    }

    fn read_file<'a>(
        &'a self,
        path: &'a Path,
        bytes_max: usize,
    ) -> OutsideFuture<'a, Result<Option<Vec<u8>>, OutsideError>> {
        let failed = |cause: &dyn std::fmt::Display| {
            OutsideError(format!("cannot read {}: {cause}", path.display()))
        };
        Box::pin(async move {
            match tokio::fs::metadata(path).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(&error)),
                // Others could keep the reader waiting for ever.
                Ok(metadata) if !metadata.is_file() => return Err(failed(&"it is no plain file")),
                Ok(_) => {}
            }
            let file = tokio::fs::File::open(path).await.map_err(|error| failed(&error))?;
            read_limited(file, bytes_max).await.map(Some).map_err(|cause| failed(&cause))
        })
    }

    fn run<'a>(
        &'a self,
        command: &'a [String],
    ) -> OutsideFuture<'a, Result<Vec<u8>, OutsideError>> {
        Box::pin(async move {
            let Some((program, arguments)) = command.split_first() else {
                return Err(OutsideError("the command is empty".to_owned()));
            };
            // Arguments may hold secrets: only the program is named.
            let failed =
                |cause: &dyn std::fmt::Display| OutsideError(format!("running {program}: {cause}"));
            // What it complains about belongs where the gateway's own messages go.
            let mut process = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .map_err(|error| failed(&error))?;
            let output = process.stdout.take();
            let whole = tokio::time::timeout(PROCESS_TIMEOUT, async {
                let output = match output {
                    Some(output) => read_limited(output, RESPONSE_BYTES_MAX).await?,
                    None => Vec::new(),
                };
                let status = process.wait().await.map_err(|error| error.to_string())?;
                if status.success() { Ok(output) } else { Err(format!("it ended with {status}")) }
            });
            match whole.await {
                Ok(outcome) => outcome.map_err(|cause| failed(&cause)),
                Err(_) => Err(failed(&format!("it did not end within {PROCESS_TIMEOUT:?}"))),
            }
        })
    }
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("System")
    }
}

async fn read_limited(from: impl AsyncRead + Unpin, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    let mut limited = from.take(limit.saturating_add(1));
    limited.read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
    if bytes.len() > bytes_max {
        return Err(format!("it is longer than {bytes_max} bytes"));
    }
    Ok(bytes)
}
