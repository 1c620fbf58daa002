//! The bulk copy engine: boxes of tensors to and from shared memory.
//!
//! *Takes* a tensor map, coordinates and a place in shared memory; *gives* the copy, at once or as late as the waits allow; *promises* the layout
//! of the hardware: the box dense, innermost first, 16-byte parts exchanged by the swizzle, elements outside of the tensor read as zero and are
//! not written.
#![allow(unsafe_code)]

use golf_runtime::plan::TensorMap;

use super::block::Block;
use super::groups::Groups;
use super::order::Agent;

/// A tensor map whose tensor has been found in memory. Kernels pass its address around and never look inside.
pub(super) struct Map {
    address: usize,
    region: usize,
    /// First address of the region.
    start: usize,
    dims: [u64; 5],
    /// Byte strides, the innermost first.
    strides: [u64; 5],
    tile: [u32; 5],
    element: usize,
    swizzle: u32,
    /// For reports.
    number: usize,
}

impl Map {
    /// Checks what `cuTensorMapEncodeTiled` would, and that the tensor lies inside `bytes` bytes at `start`.
    pub(super) fn new(number: usize, map: &TensorMap, start: usize, bytes: usize) -> Result<Map, String> {
        let refuse = |what: String| Err(format!("tensor map {number} {what}"));
        let (rank, element) = (map.dims.len(), map.dtype.bytes());
        if !(1..=5).contains(&rank) || map.strides.len() != rank - 1 || map.tile.len() != rank {
            return refuse(format!(
                "has {rank} extents, {} strides, {} tile extents",
                map.strides.len(),
                map.tile.len()
            ));
        }
        let address = start + map.offset as usize;
        if address % 16 != 0 || map.strides.iter().any(|s| s % 16 != 0 || *s >= 1 << 40) {
            return refuse(format!(
                "has an address or strides that are not multiples of 16: {}, {:?}",
                map.offset, map.strides
            ));
        }
        if map.dims.iter().any(|&d| d == 0 || d > 1 << 32) || map.tile.iter().any(|&t| t == 0 || t > 256) {
            return refuse(format!("has extents {:?} and a tile of {:?}", map.dims, map.tile));
        }
        let row = map.tile[0] as usize * element;
        if row % 16 != 0 || ![0, 32, 64, 128].contains(&map.swizzle) || map.swizzle != 0 && row != map.swizzle as usize
        {
            return refuse(format!("has rows of {row} bytes and a swizzle of {}", map.swizzle));
        }
        let mut out = Map {
            address,
            region: map.arg as usize,
            start,
            dims: [1; 5],
            strides: [0; 5],
            tile: [1; 5],
            element,
            swizzle: map.swizzle,
            number,
        };
        out.dims[..rank].copy_from_slice(&map.dims);
        out.strides[0] = element as u64;
        out.strides[1..rank].copy_from_slice(&map.strides);
        out.tile[..rank].copy_from_slice(&map.tile);
        let last: u64 = (0..rank).map(|i| (out.dims[i] - 1) * out.strides[i]).sum();
        if map.offset + last + element as u64 > bytes as u64 {
            return refuse(format!("reaches byte {} of an argument of {bytes}", map.offset + last + element as u64));
        }
        Ok(out)
    }

    /// Says that `rank` coordinates do not name a box of the tensor.
    fn check(&self, rank: i32, at: [i32; 5]) -> Result<(), String> {
        let used = self.dims.iter().zip(self.tile).rposition(|(&d, t)| d > 1 || t > 1).map_or(1, |i| i + 1);
        if (rank as usize) < used || at[rank as usize..].iter().any(|&c| c != 0) {
            return Err(format!("{rank} coordinates for tensor map {} of {used} dimensions", self.number));
        }
        Ok(())
    }

    /// Bytes of a box.
    pub(super) fn bytes(&self) -> usize {
        self.tile.iter().map(|&t| t as usize).product::<usize>() * self.element
    }
}

/// Address bits 4.. exchanged with those of the row: what a swizzle of `span` bytes does to an offset.
pub(super) fn swizzle(span: u32, at: u32) -> u32 {
    match span {
        128 => at ^ ((at >> 3) & 0x70),
        64 => at ^ ((at >> 3) & 0x30),
        32 => at ^ ((at >> 3) & 0x10),
        _ => at,
    }
}

/// One box to move.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    map: *const Map,
    shared: u32,
    at: [i32; 5],
    site: usize,
}

/// Copies under way.
pub(super) struct Copies {
    /// Loads and the mbarrier each completes on.
    loads: Vec<(Copy, u32)>,
    stores: Groups<Copy>,
}

impl Copies {
    pub(super) fn new(threads: usize) -> Copies {
        Copies { loads: vec![], stores: Groups::new(threads) }
    }

    /// Number of loads that have not run.
    pub(super) fn waiting(&self) -> usize {
        self.loads.len()
    }

    /// That nothing is left.
    pub(super) fn check_end(&self) -> Result<(), String> {
        if let Some((copy, _)) = self.loads.first() {
            return Err(format!("the block ends before the load of operation {} has run", copy.site));
        }
        match self.stores.left() {
            Some(t) => Err(format!("the block ends before thread {t} has waited for its bulk stores")),
            None => Ok(()),
        }
    }
}

impl Block {
    fn new_copy(&self, map: usize, pointer: usize, rank: i32, at: [i32; 5]) -> Result<Copy, String> {
        let map = self.memory.map(map)?;
        // SAFETY: one of the launch's maps, which outlive the block.
        let m = unsafe { &*map };
        // A swizzle repeats after eight rows, and descriptors count from there.
        let align = if m.swizzle == 0 { 128 } else { 8 * m.swizzle as usize };
        let shared = self.memory.shared(pointer, m.bytes(), align)?;
        self.memory.untouched(shared, m.bytes())?;
        m.check(rank, at)?;
        Ok(Copy { map, shared, at, site: self.threads[self.current].site })
    }

    /// Announces a box to the second-level cache, which changes nothing; one that begins outside of its tensor is a mistake.
    pub(super) fn ahead(&mut self, map: usize, rank: i32, at: [i32; 5]) -> Result<(), String> {
        // SAFETY: see `new_copy`.
        let m = unsafe { &*self.memory.map(map)? };
        m.check(rank, at)?;
        match (0..5).find(|&d| at[d] < 0 || at[d] as u64 >= m.dims[d]) {
            Some(d) => Err(format!("a box ahead at {:?}, outside of tensor map {} along {d}", at, m.number)),
            None => Ok(()),
        }
    }

    /// Starts a load.
    pub(super) fn load(&mut self, to: usize, map: usize, bar: usize, rank: i32, at: [i32; 5]) -> Result<(), String> {
        let copy = self.new_copy(map, to, rank, at)?;
        let (bar, m) = self.mbarrier(bar)?;
        if !m.fenced {
            return Err("a load on an mbarrier that no fence has made known to the copy engine".into());
        }
        let by = (Agent::Loads(bar), m.phase());
        // SAFETY: see `new_copy`.
        let bytes = unsafe { (*copy.map).bytes() };
        self.order.write_async(self.current, by, copy.shared, bytes as u32, copy.site)?;
        self.copies.loads.push((copy, bar));
        if self.mode.lazy { Ok(()) } else { self.finish_load(self.copies.loads.len() - 1) }
    }

    /// Runs a load that was started.
    pub(super) fn finish_load(&mut self, number: usize) -> Result<(), String> {
        let (copy, bar) = self.copies.loads.remove(number);
        self.run_copy(&copy, true)?;
        // SAFETY: see `new_copy`.
        let bytes = unsafe { (*copy.map).bytes() };
        self.mbarrier_complete(bar, bytes)
    }

    /// Starts a store.
    pub(super) fn store(&mut self, map: usize, from: usize, rank: i32, at: [i32; 5]) -> Result<(), String> {
        let copy = self.new_copy(map, from, rank, at)?;
        // SAFETY: see `new_copy`.
        let bytes = unsafe { (*copy.map).bytes() };
        let by = (Agent::Stores(self.current), self.copies.stores.current(self.current));
        self.order.read_async(self.current, by, copy.shared, bytes as u32, copy.site)?;
        if !self.mode.lazy {
            self.run_copy(&copy, false)?;
        }
        self.copies.stores.push(self.current, copy);
        Ok(())
    }

    /// Closes the thread's group of stores.
    pub(super) fn commit_stores(&mut self) {
        self.copies.stores.commit(self.current);
    }

    /// Completes all but the last `pending` groups of the thread.
    pub(super) fn wait_stores(&mut self, pending: i32) -> Result<(), String> {
        let (ended, read) = self.copies.stores.wait(self.current, pending as usize);
        if self.mode.lazy {
            ended.iter().try_for_each(|copy| self.run_copy(copy, false))?;
        }
        self.order.acquire_agent(self.current, Agent::Stores(self.current), read);
        Ok(())
    }

    fn run_copy(&mut self, copy: &Copy, load: bool) -> Result<(), String> {
        // SAFETY: see `new_copy`.
        let map = unsafe { &*copy.map };
        let row = map.tile[0] as usize * map.element;
        let mut line = 0u32;
        let t = map.tile;
        // Elements of a row that are inside of the tensor.
        let first = i64::from(copy.at[0]);
        let inside0 = |i: i64| first + i >= 0 && (first + i) < map.dims[0] as i64;
        for i4 in 0..t[4] {
            for i3 in 0..t[3] {
                for i2 in 0..t[2] {
                    for i1 in 0..t[1] {
                        let outer = [i1, i2, i3, i4];
                        let index = |d: usize| i64::from(copy.at[d]) + i64::from(outer[d - 1]);
                        let inside = (1..5).all(|d| index(d) >= 0 && index(d) < map.dims[d] as i64);
                        let offset: i64 = (1..5).map(|d| index(d) * map.strides[d] as i64).sum();
                        for part in (0..row).step_by(16) {
                            let at = swizzle(map.swizzle, copy.shared + line * row as u32 + part as u32);
                            let mut bytes: [u8; 16] = if load { [0; 16] } else { self.memory.read(at) };
                            let (p, n) = ((part / map.element) as i64, (16 / map.element) as i64);
                            if inside && inside0(p) && inside0(p + n - 1) {
                                let global = map.address as i64 + offset + (first + p) * map.element as i64;
                                self.memory.note(map.region, global as usize - map.start, 16, !load)?;
                                // SAFETY: elements inside of the tensor, which lies inside of its buffer (`Map::new`).
                                unsafe {
                                    let global = global as *mut [u8; 16];
                                    if load { bytes = global.read_unaligned() } else { global.write_unaligned(bytes) }
                                }
                                if load {
                                    self.memory.write(at, bytes);
                                }
                                continue;
                            }
                            for e in (0..16).step_by(map.element) {
                                let i = ((part + e) / map.element) as i64;
                                if !inside || !inside0(i) {
                                    continue;
                                }
                                let global = map.address as i64 + offset + (first + i) * map.element as i64;
                                self.memory.note(map.region, global as usize - map.start, map.element, !load)?;
                                // SAFETY: an element inside of the tensor, which lies inside of its buffer (`Map::new`).
                                unsafe {
                                    let global = std::slice::from_raw_parts_mut(global as *mut u8, map.element);
                                    let mine = &mut bytes[e..e + map.element];
                                    if load { mine.copy_from_slice(global) } else { global.copy_from_slice(mine) }
                                }
                            }
                            if load {
                                self.memory.write(at, bytes);
                            }
                        }
                        line += 1;
                    }
                }
            }
        }
        Ok(())
    }
}
