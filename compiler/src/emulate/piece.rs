//! Copies that threads start: 16 bytes each from global to shared memory (`cp.async`).
//!
//! *Takes* addresses and the number of bytes that exist; *gives* the copy, at once or when its thread waits for it; *promises* that nobody reads or overwrites
//! the bytes before that wait and a barrier after it.
#![allow(unsafe_code)]

use super::block::Block;
use super::order::Agent;

/// Bytes of a copy.
const BYTES: usize = 16;

/// A copy under way.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    to: u32,
    from: usize,
    /// How many are read; the others are written as zero.
    count: usize,
}

impl Block {
    /// Starts a copy.
    pub(super) fn copy_piece(&mut self, to: usize, from: usize, count: i32) -> Result<(), String> {
        let count = usize::try_from(count).ok().filter(|&n| n <= BYTES);
        let count = count.ok_or("a copy that reads less than nothing or more than it writes")?;
        let to = self.memory.shared(to, BYTES, BYTES)?;
        self.memory.untouched(to, BYTES)?;
        if from % BYTES != 0 {
            return Err("a copy from an address that is not a multiple of 16 bytes".into());
        }
        if count > 0 && self.memory.access(from, count, 1, false)?.is_some() {
            return Err("a copy from shared memory".into());
        }
        let (thread, site) = (self.current, self.threads[self.current].site);
        let by = (Agent::Pieces(thread), self.pieces.current(thread));
        self.order.write_async(thread, by, to, BYTES as u32, site)?;
        let piece = Piece { to, from, count };
        if !self.mode.lazy {
            self.run_piece(piece);
        }
        self.pieces.push(thread, piece);
        Ok(())
    }

    fn run_piece(&mut self, piece: Piece) {
        let mut bytes = [0u8; BYTES];
        // SAFETY: `copy_piece` has found this range inside of a buffer of the launch.
        let from = unsafe { std::slice::from_raw_parts(piece.from as *const u8, piece.count) };
        bytes[..piece.count].copy_from_slice(from);
        self.memory.write(piece.to, bytes);
    }

    /// Completes all but the last `pending` groups of the thread's copies.
    pub(super) fn wait_pieces(&mut self, pending: i32) -> Result<(), String> {
        let thread = self.current;
        let (ended, groups) = self.pieces.wait(thread, pending.max(0) as usize);
        if self.mode.lazy {
            ended.into_iter().for_each(|piece| self.run_piece(piece));
        }
        self.order.acquire_agent(thread, Agent::Pieces(thread), groups);
        Ok(())
    }
}
