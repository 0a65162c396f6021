//! What a running gateway does on signals.

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

use crate::boot::Running;
use crate::settings::INTERRUPT_GRACE;

enum Got {
    Reload,
    Reopen,
    Quit,
    Interrupt,
}

/// Serves until a signal ends it: SIGTERM and SIGQUIT gracefully, SIGINT at once. SIGHUP
/// reloads config.yaml, SIGUSR1 reopens the logs.
///
/// Those that came since they are heard count.
pub(crate) fn serve(mut running: Running, mut signals: Signals) -> anyhow::Result<()> {
    loop {
        let got = running.runtime.block_on(signals.next());
        match got {
            Got::Reload => running.reload(),
            Got::Reopen => running.reopen_logs(),
            Got::Quit => {
                let limit = running.drain_limit();
                end_on_second_signal(&running, signals);
                running.drain(limit);
                return Ok(());
            }
            Got::Interrupt => {
                end_on_second_signal(&running, signals);
                running.drain(INTERRUPT_GRACE);
                return Ok(());
            }
        }
    }
}

/// Whoever asks twice does not want to wait.
fn end_on_second_signal(running: &Running, mut signals: Signals) {
    running.runtime.spawn(async move {
        loop {
            if matches!(signals.next().await, Got::Quit | Got::Interrupt) {
                warn!("A second signal ends the gateway without waiting.");
                std::process::exit(130);
            }
        }
    });
}

/// The signals that are acted on.
pub(crate) struct Signals {
    hup: Signal,
    usr1: Signal,
    quit: Signal,
    term: Signal,
    int: Signal,
}

impl Signals {
    /// From here on signals wait to be acted on.
    pub(crate) fn hear(runtime: &Runtime) -> std::io::Result<Self> {
        let _entered = runtime.enter();
        Ok(Self {
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
            quit: signal(SignalKind::quit())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Got {
        tokio::select! {
            _ = self.hup.recv() => Got::Reload,
            _ = self.usr1.recv() => Got::Reopen,
            _ = self.quit.recv() => Got::Quit,
            _ = self.term.recv() => Got::Quit,
            _ = self.int.recv() => Got::Interrupt,
        }
    }
}
