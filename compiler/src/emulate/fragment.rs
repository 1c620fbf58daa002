//! Matrix fragments of warps: `stmatrix`, `ldmatrix`, `mma.sync`, and the registers of warpgroups.
//!
//! *Takes* what the lanes of a warp have brought together ([`Block::meet`]); *gives* the operation on shared memory or registers; *promises* the
//! fragment layouts of the hardware.

use super::block::{Block, Wait};

fn bf16(bits: u64) -> f32 {
    f32::from_bits((bits as u32 & 0xffff) << 16)
}

impl Block {
    /// Stores the four tiles of the current warp if this lane is the last to come.
    pub(super) fn store_matrices(&mut self, buffer: usize, transposed: bool) -> Result<(), String> {
        let warp = self.current / 32;
        if self.warps[warp].arrived != 0 {
            return Ok(());
        }
        let values = self.warps[warp].values[buffer];
        for (lane, v) in values.iter().enumerate() {
            let (tile, row) = (lane / 8, lane % 8);
            let at = self.memory.shared(v[0] as usize, 16, 16)?;
            self.memory.untouched(at, 16)?;
            self.shared_access(warp * 32 + lane, at, 16, true)?;
            let mut bytes = [0u8; 16];
            for column in 0..8 {
                let (r, c) = if transposed { (column, row) } else { (row, column) };
                let pair = values[r * 4 + c / 2][1 + tile];
                let element = (pair >> (16 * (c % 2))) as u16;
                bytes[2 * column..2 * column + 2].copy_from_slice(&element.to_le_bytes());
            }
            self.memory.write(at, bytes);
        }
        Ok(())
    }

    /// Loads the current lane's parts of four tiles into its registers.
    pub(super) fn load_matrices(&mut self, buffer: usize, transposed: bool) -> Result<(), String> {
        let (warp, lane) = (self.current / 32, self.current % 32);
        let addresses: [usize; 32] = std::array::from_fn(|l| self.warps[warp].values[buffer][l][0] as usize);
        let own = self.memory.shared(addresses[lane], 16, 16)?;
        self.shared_access(self.current, own, 16, false)?;
        for tile in 0..4 {
            let mut pair = 0u32;
            for c in 0..2 {
                let (r, k) = (lane / 4, 2 * (lane % 4) + c);
                let (row, column) = if transposed { (k, r) } else { (r, k) };
                let at = self.memory.shared(addresses[8 * tile + row], 16, 16)? + 2 * column as u32;
                pair |= u32::from(u16::from_le_bytes(self.memory.read(at))) << (16 * c);
            }
            self.registers[self.current][tile] = pair;
        }
        Ok(())
    }

    /// `c + a b` on 16 x 8 x 16 of the current warp, in place of c, if this lane is the last to come.
    pub(super) fn multiply_fragments(&mut self, buffer: usize) {
        let warp = &mut self.warps[self.current / 32];
        if warp.arrived != 0 {
            return;
        }
        let (mut sum, mut a, mut b) = ([0f32; 16 * 8], [0f32; 16 * 16], [0f32; 16 * 8]);
        for (lane, v) in warp.values[buffer].iter().enumerate() {
            let (group, pair) = (lane / 4, 2 * (lane % 4));
            for c in 0..2 {
                let half = |bits: u64| bf16(bits >> (16 * c));
                for i in 0..4 {
                    a[(group + 8 * (i % 2)) * 16 + 8 * (i / 2) + pair + c] = half(v[i]);
                }
                for i in 0..2 {
                    b[(8 * i + pair + c) * 8 + group] = half(v[4 + i]);
                    sum[(group + 8 * i) * 8 + pair + c] = f32::from_bits(v[6 + 2 * i + c] as u32);
                }
            }
        }
        self.loops.multiply(&mut sum, &a, &b, 8);
        for (lane, v) in warp.values[buffer].iter_mut().enumerate() {
            for e in 0..4 {
                v[6 + e] = sum[(lane / 4 + 8 * (e / 2)) * 8 + 2 * (lane % 4) + e % 2].to_bits().into();
            }
        }
    }

    /// The current lane's part of [`Block::multiply_fragments`] to its registers.
    pub(super) fn take_fragment(&mut self, buffer: usize) {
        let v = &self.warps[self.current / 32].values[buffer][self.current % 32];
        let registers = &mut self.registers[self.current];
        registers.iter_mut().zip(&v[6..]).for_each(|(r, &x)| *r = x as u32);
    }

    /// Changes the registers per thread of the current warpgroup: what to wait for.
    pub(super) fn set_registers(&mut self, count: u32, more: bool) -> Result<Wait, String> {
        let group = self.current / 128;
        if count % 8 != 0 || !(24..=256).contains(&count) {
            return Err(format!("{count} registers per thread"));
        }
        let now = self.allotted[group];
        // The first thread of the warpgroup has changed it already.
        if now != count && more != (count > now) {
            return Err(format!("registers per thread go from {now} to {count}"));
        }
        Ok(if more { Wait::Registers { count } } else { Wait::No })
    }

    /// Whether the block's registers suffice for `count` per thread of a warpgroup.
    pub(super) fn registers_fit(&self, group: usize, count: u32) -> bool {
        let others: u32 = self.allotted.iter().enumerate().filter(|(g, _)| *g != group).map(|(_, n)| n).sum();
        (others + count) * 128 <= 65536
    }

    /// Gives the warpgroup its registers.
    pub(super) fn take_registers(&mut self, count: u32) -> Result<(), String> {
        self.allotted[self.current / 128] = count;
        Ok(())
    }

    /// Accesses memory as an ordinary instruction of the current thread.
    pub(super) fn access(&mut self, pointer: usize, bytes: usize, align: usize, write: bool) -> Result<(), String> {
        match self.memory.access(pointer, bytes, align, write)? {
            Some(at) => self.shared_access(self.current, at, bytes as u32, write),
            None => Ok(()),
        }
    }

    /// Notes an ordinary access of shared memory by a thread.
    pub(super) fn shared_access(&mut self, thread: usize, at: u32, bytes: u32, write: bool) -> Result<(), String> {
        let site = self.threads[thread].site;
        if write { self.order.write(thread, at, bytes, site) } else { self.order.read(thread, at, bytes, site) }
    }

    /// Makes this thread's writes visible to copies and products.
    pub(super) fn async_fence(&mut self) -> Result<(), String> {
        self.order.fence(self.current);
        Ok(())
    }
}
