//! As much of an HTTP client as creating resources through the Admin API takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

pub(super) struct Admin<'a> {
    pub(super) addr: SocketAddr,
    pub(super) key: &'a str,
}

impl Admin<'_> {
    /// Creates a resource unless there is one: what a person changed stays.
    pub(super) fn create_missing(
        &self,
        resource: &str,
        value: impl FnOnce() -> anyhow::Result<Value>,
    ) -> anyhow::Result<()> {
        match self.call("GET", resource, "")? {
            (200, _) => Ok(()),
            (404, _) => match self.call("PUT", resource, &value()?.to_string())? {
                (200 | 201, _) => Ok(()),
                (status, body) => {
                    bail!("the Admin API refused {resource}: {status} {}", body.trim())
                }
            },
            (status, body) => {
                bail!("the Admin API did not show {resource}: {status} {}", body.trim())
            }
        }
    }

    /// Status and body of the answer.
    fn call(&self, method: &str, resource: &str, body: &str) -> anyhow::Result<(u16, String)> {
        // HTTP/1.0: the answer ends with the connection, so it needs no framing.
        let head = format!(
            "{method} /apisix/admin/{resource} HTTP/1.0\r\nHost: {}\r\nX-API-KEY: {}\r\nContent-Length: {}\r\n\r\n",
            self.addr,
            self.key,
            body.len()
        );
        let answer = self.exchange(&[head.as_bytes(), body.as_bytes()].concat());
        let answer =
            answer.with_context(|| format!("the Admin API on {} does not answer", self.addr))?;
        parse(&answer).with_context(|| format!("{} does not answer as the Admin API", self.addr))
    }

    fn exchange(&self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.addr, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    }
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// How long the Admin API may take for each step.
const WAIT: Duration = Duration::from_secs(10);
/// Read of an answer at most: its status counts, and the text of an error.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_answer_gives_its_status_and_body() {
        for (answer, found) in [
            ("HTTP/1.0 404 Not Found\r\nA: b\r\n\r\n{}\n", Some((404, "{}\n"))),
            ("HTTP/1.1 200 OK\r\n\r\n", Some((200, ""))),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 2x0 OK\r\n\r\n", None),
            ("SSH-2.0-x\r\n\r\n", None),
            ("", None),
        ] {
            let found = found.map(|(status, body): (u16, &str)| (status, body.to_owned()));
            assert_eq!(parse(answer.as_bytes()), found, "{answer:?}");
        }
    }
}
