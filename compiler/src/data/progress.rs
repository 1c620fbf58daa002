//! A progress bar for work that turns out to take more than two seconds.
//!
//! *Takes* bytes done; *gives* a bar with the time left on a terminal, a line every ten seconds elsewhere, both on stderr; *promises*
//! silence for short work.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

const QUIET: Duration = Duration::from_secs(2);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress through a known number of bytes.
pub(super) struct Progress {
    what: &'static str,
    total: u64,
    start: Instant,
    state: Mutex<State>,
}

struct State {
    done: u64,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Progress {
        let start = Instant::now();
        Progress { what, total, start, state: Mutex::new(State { done: 0, bar: None, last_line: start }) }
    }

    /// Counts `bytes` more.
    pub(super) fn add(&self, bytes: u64) {
        // A poisoned lock means another thread panicked; counting on is harmless.
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.done += bytes;
        if self.start.elapsed() < QUIET {
            return;
        }
        let done = state.done;
        let bar = state.bar.get_or_insert_with(|| self.bar());
        bar.set_position(done.min(self.total));
        if bar.is_hidden() && state.last_line.elapsed() >= LINE_EVERY {
            state.last_line = Instant::now();
            let share = done as f64 / self.total.max(1) as f64;
            let left = self.start.elapsed().mul_f64((1.0 - share).max(0.0) / share.max(1e-9));
            let (percent, total) = ((share * 100.0) as u64, HumanBytes(self.total));
            eprintln!("data: {} {percent}% of {total}, {} left", self.what, HumanDuration(left));
        }
    }

    fn bar(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stderr())
            .with_elapsed(self.start.elapsed());
        let template = "data: {msg} {wide_bar} {bytes}/{total_bytes}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.with_message(self.what)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(|e| e.into_inner());
        if let Some(bar) = &state.bar {
            bar.finish_and_clear();
        }
    }
}
