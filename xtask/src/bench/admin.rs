//! Changes of our configuration: one, many at once, or at a steady pace.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

use super::http::Connection;

/// An Admin API.
pub(crate) struct Admin {
    pub(crate) port: u16,
    pub(crate) key: String,
}

impl Admin {
    /// A kept connection to it.
    pub(crate) fn open(&self) -> Result<Session<'_>> {
        Ok(Session { connection: Connection::open(self.port)?, key: &self.key })
    }

    pub(crate) fn put(&self, path: &str, resource: &str) -> Result<()> {
        self.open()?.put(path, resource)
    }

    /// Puts the path and resource of every index below `count`, by `WRITERS` at once.
    pub(crate) fn put_many(
        &self,
        count: u32,
        item: impl Fn(u32) -> (String, String) + Sync,
    ) -> Result<()> {
        let next = AtomicU32::new(0);
        at_once(WRITERS.min(count), |_| {
            let mut session = self.open()?;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                let (path, resource) = item(index);
                session.put(&path, &resource)?;
            }
        })
    }
}

pub(crate) struct Session<'a> {
    connection: Connection,
    key: &'a str,
}

impl Session<'_> {
    pub(crate) fn put(&mut self, path: &str, resource: &str) -> Result<()> {
        self.change("PUT", path, resource)
    }

    pub(crate) fn delete(&mut self, path: &str) -> Result<()> {
        self.change("DELETE", path, "")
    }

    fn change(&mut self, method: &str, path: &str, resource: &str) -> Result<()> {
        let headers = [("X-API-KEY", self.key), ("Content-Type", "application/json")];
        let full = format!("/apisix/admin{path}");
        let answer = self.connection.request(method, &full, &headers, resource.as_bytes())?;
        if !matches!(answer.status, 200 | 201) {
            bail!("the Admin API answers {} to {method} {path}: {}", answer.status, answer.text());
        }
        Ok(())
    }
}

/// Runs `work` on so many threads, each told its number; the first error is returned.
pub(crate) fn at_once(count: u32, work: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        let mut result = Ok(());
        for thread in threads {
            let ended = thread.join().unwrap_or_else(|_| bail!("a writer panicked"));
            result = result.and(ended);
        }
        result
    })
}

/// Connections that change the configuration at once.
pub(crate) const WRITERS: u32 = 32;
