//! The `sluicegate` binary.

mod admin_tls;
mod boot;
mod cli;
mod config_cmd;
mod doctor;
mod doors;
mod error_log;
mod explain;
mod follow;
mod judge;
mod memory;
mod quickstart;
mod references;
mod settings;
mod signals;
mod status;
mod stores;

fn main() -> std::process::ExitCode {
    memory::give_back_large_blocks();
    cli::run()
}
