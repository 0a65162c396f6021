//! Started processes: where and how urgently they run, what they use, and that they end with us.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::program;

/// The CPUs of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The first CPU, which nothing else of ours uses.
    Gateway,
    /// All others: origin and load.
    Load,
    /// Any.
    Anywhere,
}

impl Place {
    fn cpus(self) -> String {
        let last = std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1);
        match self {
            Self::Gateway => "0".to_owned(),
            Self::Load if last > 1 => format!("1-{last}"),
            Self::Load => "1".to_owned(),
            Self::Anywhere => format!("0-{last}"),
        }
    }
}

/// How processes are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launcher {
    /// Under the kernel's real-time round robin, before everything else on the machine.
    pub(crate) realtime: bool,
}

impl Launcher {
    /// The start of a command that ends with us, however we end.
    pub(crate) fn command(self, place: Place) -> Command {
        let mut command = program("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if self.realtime {
            command.args(["chrt", "--rr", REALTIME_PRIORITY]);
        }
        command.args(["taskset", "--cpu-list", &place.cpus()]);
        command
    }
}

/// Moves this process, which writes configurations and probes, off the gateway's CPU.
pub(crate) fn place_self(place: Place) -> Result<()> {
    let mut command = program("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", &place.cpus()]);
    crate::command::output(command.arg(std::process::id().to_string()))?;
    Ok(())
}

/// A process that is asked to end when this is dropped, and forced to soon after.
pub(crate) struct Server {
    name: String,
    child: Child,
}

impl Server {
    /// Starts it; what it says goes to NAME.out in `folder`.
    pub(crate) fn spawn(mut command: Command, folder: &Path, name: &str) -> Result<Self> {
        let log = fs::File::create(folder.join(format!("{name}.out")))?;
        let child = command
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Waits until it takes connections.
    pub(crate) fn wait_for_port(&mut self, port: u16) -> Result<()> {
        let name = self.name.clone();
        wait_for(&name, || {
            let listens = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
            // Looked at last: the listener could be a stranger, on a port taken in between.
            self.must_run()?;
            Ok(listens)
        })
    }

    /// An error when it has ended.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{0} ended with {status}; see {0}.out and its logs", self.name);
        }
        Ok(())
    }

    /// CPU time used so far, of the process and all that came from it.
    pub(crate) fn cpu(&self) -> Result<CpuTicks> {
        let mut sum = CpuTicks { user: 0, system: 0 };
        for process in self.family()? {
            sum.user += process.ticks.user;
            sum.system += process.ticks.system;
        }
        if sum.all() == 0 {
            bail!("{} is gone or has not run", self.name);
        }
        Ok(sum)
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let mut memory = Memory { rss_kib: 0, peak_kib: 0 };
        for process in self.family()? {
            let path = format!("/proc/{}/status", process.id);
            let Ok(text) = fs::read_to_string(path) else { continue };
            memory.rss_kib += status_kib(&text, "VmRSS:");
            memory.peak_kib += status_kib(&text, "VmHWM:");
        }
        Ok(memory)
    }

    fn family(&self) -> Result<Vec<Process>> {
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            // A process may end between being listed and being read.
            let Ok(text) = fs::read_to_string(entry?.path().join("stat")) else { continue };
            processes.extend(Process::parse(&text));
        }
        let mut wanted = vec![self.child.id()];
        let mut family = Vec::new();
        while let Some(id) = wanted.pop() {
            wanted.extend(processes.iter().filter(|p| p.parent == id).map(|p| p.id));
            family.extend(processes.iter().find(|p| p.id == id).copied());
        }
        Ok(family)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx's workers outlive a master that is killed, so it is asked first.
        let _ = program("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
        let deadline = Instant::now() + STOP_TIME;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time in the kernel's clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuTicks {
    pub(crate) user: u64,
    pub(crate) system: u64,
}

impl CpuTicks {
    pub(crate) fn all(self) -> u64 {
        self.user + self.system
    }
}

/// Of a process and all that came from it; pages they share count in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) rss_kib: u64,
    pub(crate) peak_kib: u64,
}

impl Memory {
    pub(crate) fn rss_mib(self) -> f64 {
        self.rss_kib as f64 / 1024.0
    }

    pub(crate) fn peak_mib(self) -> f64 {
        self.peak_kib as f64 / 1024.0
    }
}

/// How many clock ticks a second of CPU time has.
pub(crate) fn ticks_per_second() -> Result<f64> {
    Ok(crate::command::output(program("getconf").arg("CLK_TCK"))?.trim().parse()?)
}

#[derive(Debug, Clone, Copy)]
struct Process {
    id: u32,
    parent: u32,
    ticks: CpuTicks,
}

impl Process {
    /// Reads a line of /proc/PID/stat. The second field, the name in parentheses, may hold anything,
    /// parentheses and spaces included.
    fn parse(line: &str) -> Option<Self> {
        let (id, _) = line.split_once(' ')?;
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            id: id.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: CpuTicks { user: number(11)?, system: number(12)? },
        })
    }
}

fn status_kib(status: &str, field: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(field));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Tries until it is so, an error comes or the time is up.
pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + START_TIME;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("{what} does not answer after {} s", START_TIME.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

pub(crate) fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let mut ports = [0; COUNT];
    // All are held until the last is found, or one could be given out twice.
    let mut listeners = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

const REALTIME_PRIORITY: &str = "5";
const START_TIME: Duration = Duration::from_secs(20);
const STOP_TIME: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_line_is_read_past_any_name() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 100 0 0 0 13 29 5 6 20 0 1 0 9 1 1";
        let process = Process::parse(line).expect("the line is whole");
        assert_eq!((process.id, process.parent, process.ticks.all()), (42, 7, 42));
        assert!(Process::parse("42 (short) S 7").is_none());
    }

    #[test]
    fn memory_is_read_by_the_name_of_its_line() {
        let status = "Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\n";
        let read = |field| status_kib(status, field);
        assert_eq!([read("VmRSS:"), read("VmHWM:"), read("VmSwap:")], [1024, 2048, 0]);
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports::<8>().expect("loopback has free ports").to_vec();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
    }
}
