//! HTTP/1.1 over one kept loopback connection: enough to configure, to check and to probe a gateway.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    port: u16,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), port })
    }

    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.port);
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n")?;
        }
        if !body.is_empty() {
            write!(head, "Content-Length: {}\r\n", body.len())?;
        }
        let mut message = (head + "\r\n").into_bytes();
        message.extend_from_slice(body);
        // Aside: a large answer may start before a large request is through.
        let mut writer = self.stream.get_ref().try_clone()?;
        std::thread::scope(|scope| {
            if message.len() > ASIDE_BYTES_MIN {
                scope.spawn(move || writer.write_all(&message));
            } else {
                writer.write_all(&message)?;
            }
            self.answer()
        })
    }

    fn answer(&mut self) -> Result<Answer> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status: u16 = status.with_context(|| format!("no status in {line:?}"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            }
            chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16)?;
                self.take(size, &mut body)?;
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else if !matches!(status, 204 | 304) {
            self.take(length, &mut body)?;
        }
        Ok(Answer { status, body })
    }

    fn take(&mut self, size: usize, body: &mut Vec<u8>) -> Result<()> {
        let start = body.len();
        if start + size > ANSWER_BYTES_MAX {
            bail!("the answer has more than {ANSWER_BYTES_MAX} bytes");
        }
        body.resize(start + size, 0);
        Ok(self.stream.read_exact(&mut body[start..])?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let limited = &mut (&mut self.stream).take(LINE_BYTES_MAX);
        limited.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(text) => Ok(text.to_owned()),
            None => bail!("the answer ends within a line"),
        }
    }
}

impl Answer {
    /// The body for messages.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(QUOTED_CHARS_MAX).collect()
    }
}

/// One request on a connection of its own.
pub(crate) fn request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    Connection::open(port)?.request(method, path, headers, body)
}

const TIMEOUT: Duration = Duration::from_secs(20);
/// Shorter messages fit the socket's buffer.
const ASIDE_BYTES_MIN: usize = 64 << 10;
const ANSWER_BYTES_MAX: usize = 16 << 20;
const LINE_BYTES_MAX: u64 = 64 << 10;
const QUOTED_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers_are_read_by_length_by_chunk_and_one_after_another() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client comes");
            let mut first = [0; 16];
            stream.read_exact(&mut first).expect("the client asks");
            stream
                .write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none\
                      HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntw\r\n1\r\no\r\n0\r\n\r\n\
                      HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 20",
                )
                .expect("the client reads");
            stream.shutdown(std::net::Shutdown::Write).expect("it is open");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut connection = Connection::open(port).expect("the server listens");
        for expected in [(200, "one"), (201, "two"), (204, "")] {
            let answer = connection.request("GET", "/", &[], b"").expect("the answer is whole");
            assert_eq!((answer.status, answer.text().as_str()), expected);
        }
        assert!(connection.request("GET", "/", &[], b"").is_err(), "half an answer");
        drop(connection);
        server.join().expect("the server has written");
    }
}
