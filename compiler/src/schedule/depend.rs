//! Which steps of a graph have to wait for which: what a GPU may run side by side.
//!
//! *Takes* the memory that every step touches, in launch order; *gives* for each step the earlier ones it must come after; *promises* that two steps
//! of which one writes what the other touches are ordered as in the list, directly or through others, and that no edge follows from others.

use golf_runtime::plan::Segment;

/// A range of memory that a step uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Where.
    pub segment: Segment,
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Whether it is written.
    pub write: bool,
}

impl Touch {
    fn conflicts(&self, other: &Touch) -> bool {
        (self.write || other.write) && self.segment == other.segment && self.start < other.end && other.start < self.end
    }
}

/// For each step the earlier steps it directly waits for, latest first.
pub fn after(steps: &[Vec<Touch>]) -> Vec<Vec<usize>> {
    let words = steps.len().div_ceil(64);
    // Ancestors of each step, as bits.
    let mut before: Vec<Vec<u64>> = Vec::with_capacity(steps.len());
    let mut out = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate() {
        let (mut mine, mut direct) = (vec![0u64; words], Vec::new());
        for j in (0..i).rev() {
            let known = mine[j / 64] >> (j % 64) & 1 == 1;
            if known || !step.iter().any(|a| steps[j].iter().any(|b| a.conflicts(b))) {
                continue;
            }
            direct.push(j);
            mine[j / 64] |= 1 << (j % 64);
            for (m, b) in mine.iter_mut().zip(&before[j]) {
                *m |= b;
            }
        }
        before.push(mine);
        out.push(direct);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(start: u64, end: u64, write: bool) -> Touch {
        Touch { segment: Segment::Scratch, start, end, write }
    }

    #[test]
    fn orders_writes_against_reads_and_nothing_else() {
        let steps = vec![
            vec![touch(0, 10, true)],
            vec![touch(0, 10, false), touch(10, 20, true)],
            vec![touch(5, 6, false), touch(20, 30, true)],
            vec![touch(10, 30, false), touch(40, 50, true)],
            // Overwrites what 1 and 2 read: follows from 3 for neither's sake but through it.
            vec![touch(0, 10, true), touch(40, 50, false)],
            vec![Touch { segment: Segment::State, ..touch(0, 10, true) }],
        ];
        assert_eq!(after(&steps), vec![vec![], vec![0], vec![0], vec![2, 1], vec![3], vec![]]);
    }
}
