//! The `sluicegate` binary.

mod boot;
mod cli;
mod error_log;
mod quickstart;
mod settings;
mod signals;

fn main() -> std::process::ExitCode {
    cli::run()
}
