//! Barriers: of the block, of warps, and mbarriers with their phases.
//!
//! *Takes* arrivals of the current thread; *gives* what it must wait for; *promises* to refuse arrivals that the hardware would not count.

use std::fmt;

use super::block::{Block, Wait};
use super::memory::Memory;
use super::order::{Agent, Clock, Gathered};

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
    /// Who initialised it, when.
    by: (usize, u32),
    /// Made known to the copy engine.
    pub(super) fenced: bool,
    /// What arrivals have seen, and what those who wait for the last complete phase will.
    gathered: Gathered,
    clock: Clock,
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

    fn announce(&mut self, bytes: i64) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes.abs() >= 1 << 20 {
            return Err(format!("{} bytes are pending on an mbarrier, which counts to {}", self.bytes, 1 << 20));
        }
        Ok(())
    }

    /// Whether copies were announced that have not come, or came unannounced.
    pub(super) fn expects_bytes(&self) -> bool {
        self.bytes != 0
    }

    /// The number of the phase that loads started now complete.
    pub(super) fn phase(&self) -> u32 {
        self.phase as u32 + 1
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
            let arrived = std::mem::take(&mut b.arrived);
            b.generation += 1;
            self.order.meet(arrived.iter().copied());
        }
        Ok(Wait::Barrier { id, generation })
    }

    /// Arrives at the warp's meeting point with values to exchange; orders memory only if it is a barrier. Gives where to read the values after
    /// the wait.
    pub(super) fn meet(&mut self, values: &[u64], barrier: bool) -> Result<(Wait, usize), String> {
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
            if barrier {
                self.order.meet(32 * warp..32 * warp + 32);
            }
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
        let by = (self.current, self.order.now(self.current));
        let (gathered, clock) = (Gathered::default(), Clock::default());
        let m = Mbarrier { expected, pending: expected, bytes: 0, phase: 0, by, fenced: false, gathered, clock };
        self.mbarriers.insert(at, m);
        Ok(())
    }

    /// Makes the mbarriers of this thread known to the copy engine.
    pub(super) fn mbarrier_init_fence(&mut self) -> Result<(), String> {
        self.mbarriers.values_mut().filter(|m| m.by.0 == self.current).for_each(|m| m.fenced = true);
        Ok(())
    }

    /// The mbarrier at an address.
    pub(super) fn mbarrier(&mut self, pointer: usize) -> Result<(u32, &mut Mbarrier), String> {
        let at = self.memory.shared(pointer, 8, 8)?;
        match self.mbarriers.get_mut(&at) {
            Some(m) if !self.order.knows(self.current, m.by.0, m.by.1) => {
                Err(format!("uses the mbarrier at {}, initialised with no barrier between", Memory::offset(at)))
            }
            Some(m) => Ok((at, m)),
            None => Err(format!("there is no initialised mbarrier at shared memory + {}", Memory::offset(at))),
        }
    }

    /// One arrival, announcing `bytes` of copies.
    pub(super) fn mbarrier_arrive(&mut self, pointer: usize, bytes: i32) -> Result<(), String> {
        let (at, m) = self.mbarrier(pointer)?;
        if bytes < 0 {
            return Err(format!("{bytes} bytes are announced"));
        }
        m.announce(bytes.into())?;
        let full = m.to_string();
        m.pending =
            m.pending.checked_sub(1).ok_or_else(|| format!("the mbarrier has all its arrivals already: {full}"))?;
        if let Some(m) = self.mbarriers.get_mut(&at) {
            self.order.release(self.current, &mut m.gathered);
        }
        self.settle(at);
        Ok(())
    }

    /// `bytes` of copies are complete.
    pub(super) fn mbarrier_complete(&mut self, at: u32, bytes: usize) -> Result<(), String> {
        let m = self.mbarriers.get_mut(&at).ok_or("the mbarrier of a load is gone")?;
        m.announce(-(bytes as i64))?;
        self.settle(at);
        Ok(())
    }

    /// Begins the next phase if the current one is complete.
    fn settle(&mut self, at: u32) {
        let Some(m) = self.mbarriers.get_mut(&at).filter(|m| m.pending == 0 && m.bytes == 0) else { return };
        m.clock = m.gathered.finish(&mut self.order, Agent::Loads(at), m.phase());
        m.phase += 1;
        m.pending = m.expected;
    }

    /// After the wait: the thread sees what the phase's arrivals and loads did.
    pub(super) fn mbarrier_waited(&mut self, wait: Wait) -> Result<(), String> {
        let Wait::Mbarrier { at, .. } = wait else { return Ok(()) };
        if let Some(m) = self.mbarriers.get(&at) {
            self.order.acquire(self.current, &m.clock);
        }
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
