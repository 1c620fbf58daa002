//! SIGINT and SIGTERM: end after saving.
//!
//! *Takes* nothing; *gives* a flag to look at between pieces of work; *promises* that the first signal only sets the flag, the second
//! ends the process at once with the same exit code, and that a closed standard output is an error of the write, not a signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGPIPE, SIGTERM};
use signal_hook::flag;

use crate::error::{Error, Result};

/// The flag.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// A flag that no signal sets.
    pub fn none() -> Signals {
        Signals::default()
    }

    /// Installs the handlers, once per process.
    pub fn install() -> Result<Signals> {
        let signals = Signals::default();
        let armed = Arc::new(AtomicBool::new(false));
        let machine = |e: std::io::Error| Error::machine(format!("cannot install signal handlers: {e}"));
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown must see the flag as it was before this signal.
            flag::register_conditional_shutdown(signal, 128 + signal, armed.clone()).map_err(machine)?;
            flag::register(signal, armed.clone()).map_err(machine)?;
            flag::register_usize(signal, signals.0.clone(), signal as usize).map_err(machine)?;
        }
        flag::register(SIGPIPE, Arc::new(AtomicBool::new(false))).map_err(machine)?;
        Ok(signals)
    }

    /// Pretends the signal arrived.
    #[cfg(test)]
    pub fn raise(&self, signal: i32) {
        self.0.store(signal as usize, Ordering::SeqCst);
    }

    /// Error: a signal arrived.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Error::Interrupted { signal: signal as i32 }),
        }
    }
}
