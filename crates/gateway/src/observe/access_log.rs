//! The access log: a format compiled once, lines gathered per request thread.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use tracing::error;

use crate::expr::{Builtin, VarName, Vars};
use crate::settings::{AccessLog, Escape, Settings};

/// A log format, compiled.
#[derive(Debug, Clone)]
pub struct Format {
    parts: Vec<Part>,
    escape: Escape,
}

#[derive(Debug, Clone)]
enum Part {
    Text(Vec<u8>),
    Var(VarName),
}

impl Format {
    /// Compiles a format string: `$name` and `${name}` are variables, `$$`-free as in nginx.
    pub fn compile(format: &str, escape: Escape) -> Self {
        let mut parts = Vec::new();
        let mut rest = format;
        while let Some(at) = rest.find('$') {
            parts.push(Part::Text(rest.as_bytes()[..at].to_vec()));
            rest = &rest[at + 1..];
            let (name, after) = match rest.strip_prefix('{') {
                Some(inner) => match inner.find('}') {
                    Some(end) => (&inner[..end], &inner[end + 1..]),
                    None => ("", rest),
                },
                None => {
                    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                    (&rest[..end], &rest[end..])
                }
            };
            // The request line is made of three variables, so that its text is not put together
            // before it is written.
            if name == "request" {
                let of = |builtin| Part::Var(VarName::Builtin(builtin));
                parts.extend([of(Builtin::RequestMethod), Part::Text(b" ".to_vec())]);
                parts.extend([of(Builtin::RealRequestUri), Part::Text(b" ".to_vec())]);
                parts.push(of(Builtin::ServerProtocol));
                rest = after;
                continue;
            }
            parts.push(match name {
                "" => Part::Text(b"$".to_vec()),
                // In APISIX nginx writes the log, and its `request_uri` is what was sent.
                "request_uri" => Part::Var(VarName::Builtin(Builtin::RealRequestUri)),
                name => Part::Var(VarName::parse(name)),
            });
            rest = after;
        }
        parts.push(Part::Text(rest.as_bytes().to_vec()));
        parts.retain(|p| !matches!(p, Part::Text(t) if t.is_empty()));
        Self { parts, escape }
    }

    /// Writes a line without its end.
    pub fn write(&self, vars: &dyn Vars, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Var(name) if vars.write_plain(name, out) => {}
                Part::Var(name) => {
                    let value = vars.var(name);
                    match value.as_ref().and_then(|v| v.to_bytes()) {
                        Some(text) => self.escape(&text, out),
                        // A variable without a value is a dash by default and else empty,
                        // as in nginx.
                        None if self.escape != Escape::Default => {}
                        None => out.push(b'-'),
                    }
                }
            }
        }
    }

    fn escape(&self, text: &[u8], out: &mut Vec<u8>) {
        if self.escape == Escape::None {
            return out.extend_from_slice(text);
        }
        let json = self.escape == Escape::Json;
        let special = if json { SPECIAL_IN_JSON } else { SPECIAL };
        let start = text.iter().position(|b| SPECIAL_BYTES[usize::from(*b)] & special != 0);
        let start = start.unwrap_or(text.len());
        out.extend_from_slice(&text[..start]);
        for &b in &text[start..] {
            match (b, json) {
                (b'"' | b'\\', true) => out.extend_from_slice(&[b'\\', b]),
                (b'\n', true) => out.extend_from_slice(b"\\n"),
                (b'\r', true) => out.extend_from_slice(b"\\r"),
                (b'\t', true) => out.extend_from_slice(b"\\t"),
                (0..0x20, true) => {
                    let _ = write!(out, "\\u{b:04X}");
                }
                (b'"' | b'\\' | 0..0x20 | 0x7f.., false) => {
                    let _ = write!(out, "\\x{b:02X}");
                }
                _ => out.push(b),
            }
        }
    }
}

/// Which bytes are written in another form, by default and in JSON.
static SPECIAL_BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        let everywhere = b < 0x20 || b == b'"' as usize || b == b'\\' as usize;
        table[b] = if everywhere { SPECIAL | SPECIAL_IN_JSON } else { 0 };
        if b >= 0x7f {
            table[b] |= SPECIAL;
        }
        b += 1;
    }
    table
};
const SPECIAL: u8 = 1;
const SPECIAL_IN_JSON: u8 = 2;

/// One request thread's part of the access log.
pub struct AccessLogger {
    format: Format,
    out: Out,
    lines: Vec<u8>,
    size: usize,
    flushed: Instant,
}

enum Out {
    File(File),
    Stdout,
}

impl AccessLogger {
    /// Opens the log that `settings` ask for. A file that cannot be opened is said in the
    /// error log, and requests are served without it.
    pub fn open(settings: &Settings) -> Option<Self> {
        let AccessLog { path, format, escape, buffer } = settings.access_log.as_ref()?;
        let out = if path.as_os_str() == "-" {
            Out::Stdout
        } else {
            match OpenOptions::new().create(true).append(true).open(path) {
                Ok(file) => Out::File(file),
                Err(error) => {
                    error!(path = %path.display(), %error, "The access log cannot be opened.");
                    return None;
                }
            }
        };
        let size = (*buffer).min(BUFFER_MAX);
        Some(Self {
            format: Format::compile(format, *escape),
            out,
            lines: Vec::with_capacity(size),
            size,
            flushed: Instant::now(),
        })
    }

    /// Adds a request's line.
    pub fn log(&mut self, vars: &dyn Vars) {
        self.format.write(vars, &mut self.lines);
        self.lines.push(b'\n');
        if self.lines.len() >= self.size {
            self.flush();
        }
    }

    /// Writes lines that have waited long enough.
    pub fn flush_old(&mut self) {
        if self.flushed.elapsed() >= FLUSH_EVERY {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.flushed = Instant::now();
        if self.lines.is_empty() {
            return;
        }
        // One write per batch in append mode: threads' lines never mix.
        let written = match &mut self.out {
            Out::File(file) => file.write_all(&self.lines),
            Out::Stdout => std::io::stdout().lock().write_all(&self.lines),
        };
        if let Err(error) = written {
            error!(%error, lines = self.lines.len(), "Access log lines could not be written.");
        }
        self.lines.clear();
    }
}

impl Drop for AccessLogger {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Lines wait no longer than this.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Bytes of lines gathered at most.
const BUFFER_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Value;

    struct Two;
    impl Vars for Two {
        fn var<'a>(&'a self, name: &VarName) -> Option<Value<'a>> {
            match name {
                VarName::Http(h) if &**h == "a" => Some(Value::Str(b"x\"y\n"[..].into())),
                VarName::Http(h) if &**h == "b" => Some(Value::Str(b""[..].into())),
                VarName::Builtin(Builtin::RealRequestUri) => Some("//a%20b?c".into()),
                _ => None,
            }
        }
    }

    #[test]
    fn variables_are_escaped_and_missing_ones_shown() {
        for (format, escape, expected) in [
            (
                "[$http_a] ${http_a}$http_b $nothing!",
                Escape::Default,
                r"[x\x22y\x0A] x\x22y\x0A -!",
            ),
            (r#"{"a":"$http_a","b":"$http_b$none"}"#, Escape::Json, r#"{"a":"x\"y\n","b":""}"#),
            ("$http_a|$none", Escape::None, "x\"y\n|"),
            ("$request_uri", Escape::Default, "//a%20b?c"),
            ("cost: 5$ ${", Escape::Default, "cost: 5$ ${"),
        ] {
            let mut out = Vec::new();
            Format::compile(format, escape).write(&Two, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected, "{format}");
        }
    }
}
