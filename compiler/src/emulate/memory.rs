//! Memory of a block: the shared window and the buffers of the launch.
//!
//! *Takes* addresses as kernels compute them; *gives* checked access; *promises* that what passes [`Memory::access`] lies inside the shared
//! memory the launch asked for or inside one of its buffers, is aligned as the access says, and does not touch an mbarrier.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::copy::Map;

/// Bytes the hardware keeps for itself at the start of a block's shared memory.
pub(super) const RESERVED: u32 = 1024;

/// Bytes of address space, more than any block may have.
const SPAN: usize = 256 << 10;

/// The shared memory of the blocks of one OS thread.
pub(super) struct Window {
    base: *mut u8,
}

const LAYOUT: Layout = match Layout::from_size_align(SPAN, 1024) {
    Ok(layout) => layout,
    Err(_) => panic!("a valid layout"),
};

impl Window {
    pub(super) fn new() -> Window {
        // SAFETY: the layout has a size.
        let base = unsafe { alloc_zeroed(LAYOUT) };
        if base.is_null() {
            handle_alloc_error(LAYOUT);
        }
        Window { base }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, freed once.
        unsafe { dealloc(self.base, LAYOUT) }
    }
}

/// A buffer of the launch.
pub(super) struct Region {
    /// First address.
    pub(super) start: usize,
    pub(super) bytes: usize,
    /// For reports.
    pub(super) name: String,
    /// Which block has written each two bytes, counted from 1; 0: none. Made when the first is written.
    owners: OnceLock<Vec<AtomicU32>>,
}

impl Region {
    pub(super) fn new(start: usize, bytes: usize, name: String) -> Region {
        Region { start, bytes, name, owners: OnceLock::new() }
    }

    /// Notes an access of a block: blocks run in any order, so none may see or overwrite what another writes. A block that reads first and
    /// another that then writes are noticed when blocks run the other way round. Single bytes are not noted.
    pub(super) fn note(&self, block: u32, at: usize, bytes: usize, write: bool) -> Result<(), String> {
        let owners = match self.owners.get() {
            Some(owners) => owners,
            None if write => {
                self.owners.get_or_init(|| (0..self.bytes.div_ceil(2)).map(|_| AtomicU32::new(0)).collect())
            }
            None => return Ok(()),
        };
        if bytes < 2 {
            return Ok(());
        }
        for owner in &owners[at / 2..(at + bytes) / 2] {
            let known = owner.load(Ordering::Relaxed);
            if known != 0 && known != block + 1 {
                let doing = if write { "writes" } else { "reads" };
                return Err(format!(
                    "{doing} byte {at} of {}, which block {} writes in the same launch",
                    self.name,
                    known - 1
                ));
            }
            if write {
                owner.store(block + 1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// What a block can reach.
pub(super) struct Memory {
    base: usize,
    shared: u32,
    block: u32,
    regions: Arc<Vec<Region>>,
    maps: Arc<Vec<Map>>,
    /// Last region hit: accesses come in runs.
    recent: usize,
    /// Offsets of mbarriers.
    reserved: Vec<u32>,
}

impl Memory {
    /// Fresh shared memory of `shared` bytes, every byte 0xFF: NaN in every float dtype.
    pub(super) fn new(
        window: &mut Window,
        (block, shared): (u32, u32),
        regions: Arc<Vec<Region>>,
        maps: Arc<Vec<Map>>,
    ) -> Memory {
        let used = (RESERVED + shared) as usize;
        assert!(used <= SPAN, "shared memory of a launch");
        // SAFETY: the window is `SPAN` bytes, and exclusively borrowed.
        unsafe { std::ptr::write_bytes(window.base, 0xff, used) };
        Memory { base: window.base as usize, shared, block, regions, maps, recent: 0, reserved: vec![] }
    }

    /// First byte of the launch's shared memory.
    pub(super) fn shared_base(&self) -> usize {
        self.base + RESERVED as usize
    }

    /// Bytes of the launch's shared memory.
    pub(super) fn shared_bytes(&self) -> u32 {
        self.shared
    }

    /// Address of offset 0.
    pub(super) fn window(&self) -> usize {
        self.base
    }

    /// An offset in the window as the kernel's author counts: from the start of dynamic shared memory.
    pub(super) fn offset(at: u32) -> i64 {
        i64::from(at) - i64::from(RESERVED)
    }

    /// The offset in the window of `bytes` bytes of shared memory at an address.
    pub(super) fn shared(&self, pointer: usize, bytes: usize, align: usize) -> Result<u32, String> {
        let at = pointer.wrapping_sub(self.base);
        let inside = at >= RESERVED as usize && at < SPAN && at + bytes <= (RESERVED + self.shared) as usize;
        if !inside {
            return Err(format!(
                "{bytes} bytes at shared memory + {} are not inside the launch's {} bytes",
                at.wrapping_sub(RESERVED as usize) as i64,
                self.shared
            ));
        }
        if at % align != 0 {
            return Err(format!("shared memory + {} is not a multiple of {align}", at - RESERVED as usize));
        }
        Ok(at as u32)
    }

    /// The tensor map at an address.
    pub(super) fn map(&self, pointer: usize) -> Result<*const Map, String> {
        let found = self.maps.iter().find(|&m| std::ptr::from_ref(m) as usize == pointer);
        found.map(std::ptr::from_ref).ok_or_else(|| "a copy by an address that is no tensor map of the launch".into())
    }

    /// Keeps ordinary accesses away from an mbarrier.
    pub(super) fn reserve(&mut self, at: u32) {
        self.reserved.push(at);
    }

    /// Checks an access; gives its offset if it is one of shared memory.
    pub(super) fn access(
        &mut self,
        pointer: usize,
        bytes: usize,
        align: usize,
        write: bool,
    ) -> Result<Option<u32>, String> {
        if pointer.wrapping_sub(self.base) < SPAN {
            let at = self.shared(pointer, bytes, align)?;
            self.untouched(at, bytes)?;
            return Ok(Some(at));
        }
        let inside = |r: &Region| pointer >= r.start && pointer + bytes <= r.start + r.bytes;
        if !self.regions.get(self.recent).is_some_and(inside) {
            self.recent = self.regions.iter().position(inside).ok_or_else(|| self.outside(pointer, bytes))?;
        }
        // Segments are aligned to 256 bytes, buffers here to 64.
        if pointer % align != 0 {
            let r = &self.regions[self.recent];
            return Err(format!("byte {} of {} is not a multiple of {align}", pointer - r.start, r.name));
        }
        let region = &self.regions[self.recent];
        region.note(self.block, pointer - region.start, bytes, write)?;
        Ok(None)
    }

    /// Notes an access of a copy to a region.
    pub(super) fn note(&self, region: usize, at: usize, bytes: usize, write: bool) -> Result<(), String> {
        self.regions[region].note(self.block, at, bytes, write)
    }

    /// That no mbarrier lies in the range.
    pub(super) fn untouched(&self, at: u32, bytes: usize) -> Result<(), String> {
        match self.reserved.iter().find(|&&m| m < at + bytes as u32 && at < m + 8) {
            Some(&m) => Err(format!("touches the mbarrier at shared memory + {}", Memory::offset(m))),
            None => Ok(()),
        }
    }

    fn outside(&self, pointer: usize, bytes: usize) -> String {
        let distance = |r: &&Region| pointer.wrapping_sub(r.start) as i64;
        match self.regions.iter().min_by_key(|r| distance(r).unsigned_abs()) {
            Some(r) => format!("{bytes} bytes at byte {} of {}, which has {}", distance(&r), r.name, r.bytes),
            None => format!("{bytes} bytes at {pointer:#x}, but the launch has no buffers"),
        }
    }

    /// Reads shared memory at a checked offset.
    pub(super) fn read<const N: usize>(&self, at: u32) -> [u8; N] {
        assert!(at as usize + N <= SPAN, "read of shared memory");
        // SAFETY: inside the window, as just checked; any bytes are valid.
        unsafe { ((self.base + at as usize) as *const [u8; N]).read_unaligned() }
    }

    /// Writes shared memory at a checked offset.
    pub(super) fn write<const N: usize>(&mut self, at: u32, value: [u8; N]) {
        assert!(at as usize + N <= SPAN, "write of shared memory");
        // SAFETY: inside the window, as just checked.
        unsafe { ((self.base + at as usize) as *mut [u8; N]).write_unaligned(value) }
    }
}
