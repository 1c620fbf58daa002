//! The four segments.
//!
//! *Takes* their sizes; *gives* zeroed memory, 2 MB aligned, in huge pages where the kernel grants them; *promises* that a place
//! inside a segment stays valid for the life of the [`Memory`], and a refusal in plain words when there is not enough.

use memmap2::{Advice, MmapMut};

use crate::error::{Error, Result};
use crate::plan::{Place, Segment};

/// Alignment of a segment: the huge page size of x86-64.
const ALIGN: usize = 2 << 20;

/// One zeroed anonymous mapping with an aligned start.
pub(super) struct Block {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl Block {
    pub(super) fn new(len: usize) -> std::io::Result<Block> {
        let map = MmapMut::map_anon(len + ALIGN)?;
        // Only a hint: without huge pages everything works, more slowly.
        let _ = map.advise(Advice::HugePage);
        let start = map.as_ptr().align_offset(ALIGN);
        Ok(Block { map, start, len })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..self.start + self.len]
    }
}

/// State, Grad, Scratch, Const.
pub struct Memory {
    blocks: [Block; 4],
}

fn index(segment: Segment) -> usize {
    match segment {
        Segment::State => 0,
        Segment::Grad => 1,
        Segment::Scratch => 2,
        Segment::Const => 3,
    }
}

impl Memory {
    /// Segments of these sizes (bytes, in the order of [`Segment`]). `needs` is the plan's own account of the memory, for the
    /// message when there is none.
    pub fn new(sizes: [u64; 4], needs: &str) -> Result<Memory> {
        let none = |why: &str| {
            let total = sizes.iter().sum::<u64>();
            Error::machine(format!("out of memory: {} MB asked for ({needs}), {why}", total.div_ceil(1 << 20)))
        };
        let total = sizes.iter().try_fold(0u64, |a, &b| a.checked_add(b)).filter(|&t| t < 1 << 46);
        let total =
            total.ok_or_else(|| Error::machine(format!("out of memory: the plan's sizes are absurd ({needs})")))?;
        if let Some(free) = available().filter(|&f| f < total) {
            return Err(none(&format!("{} MB available", free >> 20)));
        }
        let block = |i: usize| Block::new(sizes[i] as usize).map_err(|e| none(&e.to_string()));
        Ok(Memory { blocks: [block(0)?, block(1)?, block(2)?, block(3)?] })
    }

    /// A whole segment.
    pub fn segment(&self, segment: Segment) -> &[u8] {
        self.blocks[index(segment)].bytes()
    }

    /// A whole segment.
    pub fn segment_mut(&mut self, segment: Segment) -> &mut [u8] {
        self.blocks[index(segment)].bytes_mut()
    }

    /// `len` bytes at a place. Panics outside the segment: plans are checked when loaded.
    pub fn bytes(&self, place: Place, len: usize) -> &[u8] {
        &self.segment(place.segment)[place.offset as usize..][..len]
    }

    /// `len` bytes at a place. Panics outside the segment: plans are checked when loaded.
    pub fn bytes_mut(&mut self, place: Place, len: usize) -> &mut [u8] {
        &mut self.segment_mut(place.segment)[place.offset as usize..][..len]
    }

    /// First bytes of the segments, in the order of [`Segment`]: what kernels' pointers are made from.
    pub(super) fn bases(&mut self) -> [*mut u8; 4] {
        let mut bases = [std::ptr::null_mut(); 4];
        for (base, block) in bases.iter_mut().zip(&mut self.blocks) {
            *base = block.bytes_mut().as_mut_ptr();
        }
        bases
    }
}

/// A place's address, given the segments' first bytes.
pub(super) fn address(bases: &[*mut u8; 4], place: &Place) -> *mut u8 {
    bases[index(place.segment)].wrapping_add(place.offset as usize)
}

/// Bytes that can still be used without swapping, as the kernel and the control group say; `None` if neither does.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? << 10;
    let number = |f: &str| std::fs::read_to_string(f).ok()?.trim().parse::<u64>().ok();
    let Some(limit) = number("/sys/fs/cgroup/memory.max") else { return Some(machine) };
    // The group's page cache counts as used there but is given back on demand.
    let stat = std::fs::read_to_string("/sys/fs/cgroup/memory.stat").unwrap_or_default();
    let cached = |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    let used = used.saturating_sub(cached("active_file ") + cached("inactive_file "));
    Some(machine.min(limit.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_separate() {
        let mut m = Memory::new([100, 1 << 20, 64, 0], "test").unwrap();
        assert_eq!(m.segment(Segment::Grad).len(), 1 << 20);
        assert!(m.segment(Segment::Grad).iter().all(|&b| b == 0));
        assert_eq!(m.segment(Segment::State).as_ptr() as usize % ALIGN, 0);
        m.segment_mut(Segment::State).fill(7);
        assert!(m.segment(Segment::Grad).iter().all(|&b| b == 0));
        let place = Place { segment: Segment::State, offset: 64 };
        assert_eq!(m.bytes(place, 36), &[7; 36]);
        assert_eq!(m.segment(Segment::Const).len(), 0);
    }

    #[test]
    fn says_how_much_is_missing() {
        let e = Memory::new([1 << 45, 0, 0, 0], "parameters 1 GB").err().expect("32 TB");
        assert_eq!(e.exit_code(), 3);
        assert!(e.to_string().contains("33554432 MB") && e.to_string().contains("parameters 1 GB"), "{e}");
        assert_eq!(Memory::new([u64::MAX, 1, 0, 0], "").err().expect("absurd").exit_code(), 3);
    }
}
