//! Which cluster waits for which.

/// Who needs whom, directly or not, as one bit set per cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    sets: Vec<Vec<u64>>,
}

impl Reach {
    /// Whether `d` needs `c` (a cluster needs itself).
    pub(super) fn needs(&self, d: usize, c: usize) -> bool {
        d == c || self.sets.get(d).and_then(|s| s.get(c / 64)).is_some_and(|w| w >> (c % 64) & 1 == 1)
    }

    /// Records that `d` needs `c`.
    pub(super) fn add(&mut self, d: usize, c: usize) {
        if d == c || self.needs(d, c) {
            return;
        }
        let most = d.max(c);
        if self.sets.len() <= most {
            self.sets.resize(most + 1, Vec::new());
        }
        let mut news = self.sets[c].clone();
        set(&mut news, c);
        for x in 0..self.sets.len() {
            if self.needs(x, d) {
                let mine = &mut self.sets[x];
                if mine.len() < news.len() {
                    mine.resize(news.len(), 0);
                }
                mine.iter_mut().zip(&news).for_each(|(a, b)| *a |= b);
            }
        }
    }
}

fn set(bits: &mut Vec<u64>, i: usize) {
    if bits.len() <= i / 64 {
        bits.resize(i / 64 + 1, 0);
    }
    bits[i / 64] |= 1 << (i % 64);
}
