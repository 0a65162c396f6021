//! The command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::{boot, config_cmd, doctor, quickstart, signals};

#[derive(Parser)]
#[command(
    name = "sluicegate",
    version,
    about = "An API gateway that speaks Apache APISIX's language and puts cloud functions behind routes.",
    after_help = "Start with `sluicegate quickstart`: a gateway, a local stand-in for AWS and curl lines to try.",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try everything on this machine: the gateway, a local stand-in for AWS, routes and curl lines
    Quickstart(quickstart::Options),
    /// Run the gateway in the foreground; conf/config.yaml is made when it is missing
    Start(Place),
    /// Check the configuration and say what is wrong with it
    Test(Place),
    /// Make the running gateway read its configuration again (SIGHUP)
    Reload(Place),
    /// Stop gracefully: requests under way finish (SIGQUIT)
    Quit(Place),
    /// Stop at once; requests under way get a second (SIGINT)
    Stop(Place),
    /// Ask the running gateway what a route sends to its function, and what stands in the way
    Doctor(doctor::Options),
    /// Export all resources to a file, or import them from one
    #[command(subcommand)]
    Config(config_cmd::Command),
    /// Print the version
    Version,
}

/// Where the gateway keeps its files.
#[derive(Args, Clone)]
pub(crate) struct Place {
    /// Folder of conf/, data/ and logs/
    #[arg(short = 'p', long = "prefix", default_value = ".", value_name = "FOLDER")]
    prefix: PathBuf,
    /// Configuration file [default: FOLDER/conf/config.yaml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    pub(crate) fn new(prefix: PathBuf) -> Self {
        Self { prefix, config: None }
    }

    /// The folder, as an absolute path where that can be known.
    pub(crate) fn prefix(&self) -> PathBuf {
        std::path::absolute(&self.prefix).unwrap_or_else(|_| self.prefix.clone())
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| self.prefix.join("conf/config.yaml"))
    }

    /// The folder as a person would type it in a shell: from the current folder where it lies there.
    pub(crate) fn shown(&self) -> String {
        let prefix = self.prefix();
        let here = std::env::current_dir().unwrap_or_default();
        let shown = match prefix.strip_prefix(here) {
            Ok(rest) if rest.as_os_str().is_empty() => Path::new("."),
            Ok(rest) => rest,
            Err(_) => &prefix,
        };
        let text = shown.display().to_string();
        let plain = |c: char| c.is_alphanumeric() || "/._-+@%,=:".contains(c);
        match text.chars().all(plain) {
            true => text,
            false => format!("'{}'", text.replace('\'', r"'\''")),
        }
    }

    /// Was a file named? It has to be there then; only the usual one is made when missing.
    pub(crate) fn names_config(&self) -> bool {
        self.config.is_some()
    }

    /// A path of the configuration: under the prefix unless absolute.
    pub(crate) fn under(&self, path: &Path) -> PathBuf {
        self.prefix().join(path)
    }

    /// Where the running gateway writes its process id.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.under(Path::new("logs/sluicegate.pid"))
    }
}

/// Runs what the command line asks for.
pub(crate) fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Quickstart(options) => quickstart::run(&options),
        Command::Start(place) => boot::Running::start(&place).and_then(|(running, signals)| {
            eprintln!("sluicegate: {}", running.told());
            signals::serve(running, signals)
        }),
        Command::Test(place) => boot::test(&place),
        // The gateway judges the file itself; what is wrong with it is said here too, where
        // somebody reads it.
        Command::Reload(place) => {
            signal(&place, Signal::HUP, None).and_then(|()| boot::check(&place).map(drop))
        }
        Command::Quit(place) => signal(&place, Signal::QUIT, Some(QUIT_WAIT)),
        Command::Stop(place) => signal(&place, Signal::INT, Some(STOP_WAIT)),
        Command::Doctor(options) => doctor::run(&options),
        Command::Config(command) => config_cmd::run(&command),
        Command::Version => {
            println!("sluicegate {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluicegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Signals the running gateway and, if asked to, waits until it is gone.
fn signal(place: &Place, signal: Signal, wait: Option<Duration>) -> anyhow::Result<()> {
    let file = place.pid_file();
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!(
            "no gateway runs under {} (give its folder with -p): {}",
            place.prefix().display(),
            file.display()
        )
    })?;
    let pid = text
        .trim()
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .with_context(|| format!("{} holds no process id", file.display()))?;
    kill_process(pid, signal).with_context(|| {
        format!("process {} of {} is not there any more", text.trim(), file.display())
    })?;
    let Some(wait) = wait else {
        println!("asked process {}; its error log says what it could not take", text.trim());
        return Ok(());
    };
    let deadline = Instant::now() + wait;
    while test_kill_process(pid).is_ok() && !is_zombie(pid) {
        if Instant::now() >= deadline {
            bail!("process {} still runs after {wait:?}", text.trim());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Has the process ended, with nobody to take its exit status yet?
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // The state follows the name, which is in parentheses and may hold any others.
    stat.is_ok_and(|text| text.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

/// How long `quit` and `stop` wait for the gateway to be gone.
const QUIT_WAIT: Duration = Duration::from_secs(300);
const STOP_WAIT: Duration = Duration::from_secs(15);
