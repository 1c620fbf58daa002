//! Sliding windows and chunks over the validation stream.
//!
//! *Takes* the number of targets, window, stride and chunk; *gives* which tokens each run of the model sees and which targets it scores;
//! *promises* an exact partition: every target 0..N is scored once, in stream order (specification 1.6, the rule of PRs #1493 and #1541).

use std::ops::Range;

/// One run of the model: it reads `window` tokens from `start` and scores `scored`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// First input token, in the stream. Positions restart at 0 here.
    pub start: u64,
    /// Targets scored, numbered by their input token: target i is token i + 1.
    pub scored: Range<u64>,
}

/// The windows of a stream of `targets` predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Number of predicted tokens N.
    pub targets: u64,
    /// Window length S, at least `stride`.
    pub window: u64,
    /// New targets per window s, at least 1, divides the window.
    pub stride: u64,
}

impl Windows {
    /// Number of windows: w = k*s with w + (S - s) < N, and always window 0 when there is anything to score.
    pub fn count(&self) -> u64 {
        if self.targets == 0 {
            return 0;
        }
        let lead = self.window - self.stride;
        if self.targets <= lead { 1 } else { (self.targets - lead).div_ceil(self.stride) }
    }

    /// The k-th window.
    pub fn get(&self, k: u64) -> Window {
        let start = k * self.stride;
        let end = (start + self.window).min(self.targets);
        let first = if k == 0 { 0 } else { start + self.window - self.stride };
        Window { start, scored: first..end }
    }

    /// The windows whose first scored target lies in a range of targets.
    pub fn scoring(&self, range: Range<u64>) -> Range<u64> {
        let lead = self.window - self.stride;
        // Window k > 0 scores first target lead + k*s; window 0 scores target 0.
        let from = |target: u64| if target == 0 { 0 } else { target.saturating_sub(lead).div_ceil(self.stride).max(1) };
        from(range.start).min(self.count())..from(range.end).min(self.count())
    }
}

/// Chunk c of `chunk` targets: targets `[c*chunk, min((c+1)*chunk, N))`.
pub fn chunk(targets: u64, chunk: u64, c: u64) -> Range<u64> {
    c * chunk..((c + 1) * chunk).min(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(n: u64, window: u64, stride: u64) {
        let w = Windows { targets: n, window, stride };
        let mut next = 0;
        for k in 0..w.count() {
            let x = w.get(k);
            assert_eq!(x.scored.start, next, "N={n} S={window} s={stride} k={k}");
            assert!(x.scored.end > x.scored.start && x.scored.end <= x.start + window);
            next = x.scored.end;
        }
        assert_eq!(next, n, "N={n} S={window} s={stride}");
    }

    #[test]
    fn every_target_once() {
        // Specification annex E 9.
        for n in [1, 63, 64, 1984, 1985, 2047, 2048, 2049, 40_540_160] {
            cover(n, 2048, 64);
        }
        for n in 0..300 {
            for (window, stride) in [(64, 16), (64, 64), (8, 1), (1, 1)] {
                cover(n, window, stride);
            }
        }
    }

    #[test]
    fn published_window_counts() {
        // S1016: 969,057 windows over 62,021,632 targets; the golden case: 89 over 1,472.
        assert_eq!(Windows { targets: 62_021_632, window: 2048, stride: 64 }.count(), 969_057);
        assert_eq!(Windows { targets: 1472, window: 64, stride: 16 }.count(), 89);
    }

    #[test]
    fn chunks_own_whole_windows() {
        for (n, window, stride, size) in
            [(1472, 64, 16, 128), (8192, 2048, 64, 2048), (5000, 64, 16, 128), (100, 64, 16, 128)]
        {
            let w = Windows { targets: n, window, stride };
            let mut next = 0;
            for c in 0..n.div_ceil(size) {
                let r = w.scoring(chunk(n, size, c));
                assert_eq!(r.start, next);
                for k in r.clone() {
                    assert!(chunk(n, size, c).contains(&w.get(k).scored.start));
                }
                next = r.end;
            }
            assert_eq!(next, w.count());
        }
    }
}
