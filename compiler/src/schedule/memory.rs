//! Offsets in the scratch segment.
//!
//! *Takes* blocks of memory with the span of launches during which they must keep their content; *gives* an offset for each and the
//! total; *promises* that blocks whose spans meet do not overlap, and the same answer for the same blocks.

/// Every offset is a multiple of this, bytes.
pub const ALIGN: u64 = 64;

/// Memory needed from one launch to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Bytes.
    pub bytes: u64,
    /// First launch that uses it.
    pub first: usize,
    /// Last launch that uses it.
    pub last: usize,
}

impl Block {
    /// Whether both are needed at some launch.
    pub fn meets(&self, other: &Block) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Offsets in block order, and the bytes needed in all. Largest blocks first, each into the smallest gap that takes it.
pub fn place(blocks: &[Block]) -> (Vec<u64>, u64) {
    let mut by_size: Vec<usize> = (0..blocks.len()).collect();
    by_size.sort_by_key(|i| (std::cmp::Reverse(blocks[*i].bytes), blocks[*i].first, *i));
    let mut offsets = vec![0; blocks.len()];
    let mut total = 0;
    let mut placed: Vec<usize> = Vec::new();
    for i in by_size {
        let need = blocks[i].bytes.next_multiple_of(ALIGN);
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .filter(|j| blocks[**j].meets(&blocks[i]))
            .map(|j| (offsets[*j], offsets[*j] + blocks[*j].bytes.next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        let mut best: Option<(u64, u64)> = None;
        let mut end = 0;
        for (from, to) in taken {
            if from >= end + need && best.is_none_or(|(gap, _)| from - end < gap) {
                best = Some((from - end, end));
            }
            end = end.max(to);
        }
        offsets[i] = best.map_or(end, |(_, at)| at);
        total = total.max(offsets[i] + need);
        placed.push(i);
    }
    (offsets, total)
}

/// Like [`place`], but as long as all blocks fit into `limit` bytes none shares memory with another.
pub fn place_apart(blocks: &[Block], limit: u64) -> (Vec<u64>, u64) {
    let total: u64 = blocks.iter().map(|b| b.bytes.next_multiple_of(ALIGN)).sum();
    if total > limit {
        return place(blocks);
    }
    let mut end = 0;
    let mut offsets = Vec::with_capacity(blocks.len());
    for block in blocks {
        offsets.push(end);
        end += block.bytes.next_multiple_of(ALIGN);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_in_use_together_do_not_overlap(
            raw in prop::collection::vec((1u64..5000, 0usize..40, 0usize..12), 1..60)
        ) {
            let blocks: Vec<_> = raw.iter().map(|(bytes, first, len)| Block { bytes: *bytes, first: *first, last: first + len }).collect();
            let (offsets, total) = place(&blocks);
            // Independent check: walk over time and mark every byte's owner.
            for time in 0..60 {
                let mut owner = vec![false; total as usize];
                for (b, o) in blocks.iter().zip(&offsets) {
                    if b.first <= time && time <= b.last {
                        for cell in &mut owner[*o as usize..(*o + b.bytes) as usize] {
                            prop_assert!(!*cell);
                            *cell = true;
                        }
                    }
                }
            }
            prop_assert!(offsets.iter().all(|o| o % ALIGN == 0));
        }
    }

    #[test]
    fn memory_is_reused_when_spans_do_not_meet() {
        let block = |first, last| Block { bytes: 1000, first, last };
        let (_, total) = place(&[block(0, 1), block(2, 3), block(4, 9)]);
        assert_eq!(total, 1024);
        let (_, total) = place(&[block(0, 2), block(2, 3)]);
        assert_eq!(total, 2048);
    }
}
