//! Barriers: of the block, of warps, and mbarriers with their phases.
//!
//! *Takes* arrivals of the current thread; *gives* what it must wait for; *promises* to refuse arrivals that the hardware would not count.

use std::fmt;

use super::block::{Block, Wait};

/// A named barrier.
#[derive(Default)]
pub(super) struct Barrier {
    pub(super) generation: u64,
    /// Threads that wait, in order of arrival.
    pub(super) arrived: Vec<usize>,
    pub(super) expected: usize,
}

/// An mbarrier: `expected` arrivals and as many bytes as announced complete a phase.
pub(super) struct Mbarrier {
    expected: u32,
    pending: u32,
    /// Bytes announced and not yet copied; negative if copied first.
    bytes: i64,
    phase: u64,
}

impl fmt::Display for Mbarrier {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "phase {} lacks {} of {} arrivals and {} bytes", self.phase, self.pending, self.expected, self.bytes)
    }
}

impl Mbarrier {
    /// Whether a wait for `parity` ends: the phase before the current one has it.
    pub(super) fn passed(&self, parity: u32) -> bool {
        self.phase & 1 != u64::from(parity)
    }

    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }

    fn announce(&mut self, bytes: i64) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes.abs() >= 1 << 20 {
            return Err(format!("{} bytes are pending on an mbarrier, which counts to {}", self.bytes, 1 << 20));
        }
        Ok(())
    }

    /// Completes `bytes` of copies.
    pub(super) fn complete(&mut self, bytes: usize) -> Result<(), String> {
        self.announce(-(bytes as i64))?;
        self.settle();
        Ok(())
    }
}

impl Block {
    /// Arrives at a named barrier of `expected` threads.
    pub(super) fn barrier(&mut self, id: i32, expected: usize) -> Result<Wait, String> {
        let all = self.threads.len();
        let id = usize::try_from(id).ok().filter(|&id| id < 16).ok_or_else(|| format!("there is no barrier {id}"))?;
        if expected == 0 || expected > all || expected % 32 != 0 {
            return Err(format!("a barrier of {expected} threads in a block of {all}"));
        }
        let current = self.current;
        let b = &mut self.barriers[id];
        if b.arrived.is_empty() {
            b.expected = expected;
        } else if b.expected != expected {
            return Err(format!("barrier {id} is used with {expected} and with {} threads at once", b.expected));
        }
        let generation = b.generation;
        b.arrived.push(current);
        if b.arrived.len() == expected {
            // The hardware counts warps: those that are here must be here whole.
            let mut lanes = vec![0u32; all / 32];
            b.arrived.iter().for_each(|&t| lanes[t / 32] += 1);
            if let Some(warp) = lanes.iter().position(|&n| n != 0 && n != 32) {
                return Err(format!("barrier {id} is full with only {} lanes of warp {warp}", lanes[warp]));
            }
            b.arrived.clear();
            b.generation += 1;
        }
        Ok(Wait::Barrier { id, generation })
    }

    /// Arrives at the warp's meeting point with values to exchange. Gives the generation whose values to read after the wait.
    pub(super) fn meet(&mut self, values: &[u64]) -> Result<(Wait, usize), String> {
        let (warp, lane) = (self.current / 32, self.current % 32);
        let site = self.threads[self.current].site;
        let w = &mut self.warps[warp];
        if w.arrived != 0 && w.site != site {
            return Err(format!(
                "lanes of a warp are at different operations that all of them must do together: {} and {site}",
                w.site
            ));
        }
        w.site = site;
        let generation = w.generation;
        let buffer = (generation & 1) as usize;
        w.values[buffer][lane][..values.len()].copy_from_slice(values);
        w.arrived |= 1 << lane;
        if w.arrived == u32::MAX {
            w.arrived = 0;
            w.generation += 1;
        }
        Ok((Wait::Warp { generation }, buffer))
    }

    /// Prepares an mbarrier.
    pub(super) fn mbarrier_init(&mut self, pointer: usize, count: i32) -> Result<(), String> {
        let at = self.memory.shared(pointer, 8, 8)?;
        let expected = u32::try_from(count).ok().filter(|&n| n > 0 && n < 1 << 20);
        let expected = expected.ok_or_else(|| format!("an mbarrier of {count} arrivals"))?;
        if self.mbarriers.contains_key(&at) {
            return Err("the mbarrier is already initialised".into());
        }
        self.memory.reserve(at);
        self.mbarriers.insert(at, Mbarrier { expected, pending: expected, bytes: 0, phase: 0 });
        Ok(())
    }

    /// The mbarrier at an address.
    pub(super) fn mbarrier(&mut self, pointer: usize) -> Result<(u32, &mut Mbarrier), String> {
        let at = self.memory.shared(pointer, 8, 8)?;
        match self.mbarriers.get_mut(&at) {
            Some(m) => Ok((at, m)),
            None => Err(format!(
                "there is no initialised mbarrier at shared memory + {}",
                super::memory::Memory::offset(at)
            )),
        }
    }

    /// One arrival, announcing `bytes` of copies.
    pub(super) fn mbarrier_arrive(&mut self, pointer: usize, bytes: i32) -> Result<(), String> {
        let (_, m) = self.mbarrier(pointer)?;
        if bytes < 0 {
            return Err(format!("{bytes} bytes are announced"));
        }
        m.announce(bytes.into())?;
        let full = m.to_string();
        m.pending =
            m.pending.checked_sub(1).ok_or_else(|| format!("the mbarrier has all its arrivals already: {full}"))?;
        m.settle();
        Ok(())
    }

    /// What to wait for until the phase of a parity is complete.
    pub(super) fn mbarrier_wait(&mut self, pointer: usize, parity: i32) -> Result<Wait, String> {
        let (at, _) = self.mbarrier(pointer)?;
        if parity != 0 && parity != 1 {
            return Err(format!("a wait for parity {parity}"));
        }
        Ok(Wait::Mbarrier { at, parity: parity as u32 })
    }
}
