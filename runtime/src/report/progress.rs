//! Showing how far a command is.
//!
//! *Takes* steps done and expected; *gives* a bar with the time left on a terminal, and elsewhere leave to print a line now and then;
//! *promises* nothing on a terminal's standard output but the lines it is given.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::error::Result;

/// Lines of a busy loop are printed at most this often.
const EVERY: Duration = Duration::from_secs(3);

/// A bar or occasional lines.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: Option<Instant>,
    /// When the first update came, and its share.
    begin: Option<(Instant, f64)>,
}

impl Progress {
    /// For a command whose work is called `what`.
    pub fn new(what: &str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}  {elapsed_precise}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what.to_string());
            bar
        });
        Progress { bar, last: None, begin: None }
    }

    /// `done` of `of` units, `share` of the whole (0 to 1). `line` is printed if `always`, or if none was for a while.
    pub fn update(&mut self, done: u64, of: u64, share: f64, line: &str, always: bool) -> Result<()> {
        let left = self.left(share);
        if let Some(bar) = &self.bar {
            bar.set_length(of.max(done));
            bar.set_position(done);
            bar.set_message(left.map(|t| format!("{} left", short(t))).unwrap_or_default());
        }
        if always || self.last.is_none_or(|t| t.elapsed() >= EVERY) {
            self.last = Some(Instant::now());
            let eta = left.filter(|t| t.as_secs() > 0).map(|t| format!(" eta:{}", short(t))).unwrap_or_default();
            self.print(&format!("{line}{eta}"))?;
        }
        Ok(())
    }

    /// A line beside the bar.
    pub fn print(&self, line: &str) -> Result<()> {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::line(line)),
            None => output::line(line),
        }
    }

    /// Time left if the rest goes as the part since the first update went.
    fn left(&mut self, share: f64) -> Option<Duration> {
        let (begin, first) = *self.begin.get_or_insert((Instant::now(), share));
        let left = begin.elapsed().as_secs_f64() * (1.0 - share) / (share - first);
        (left.is_finite() && (0.0..1e7).contains(&left)).then(|| Duration::from_secs_f64(left))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1h02m`, `3m20s`, `12s`.
pub fn short(t: Duration) -> String {
    let s = t.as_secs();
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_in_short() {
        assert_eq!(short(Duration::from_secs(12)), "12s");
        assert_eq!(short(Duration::from_secs(200)), "3m20s");
        assert_eq!(short(Duration::from_secs(3725)), "1h02m");
    }
}
