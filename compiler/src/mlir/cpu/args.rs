//! Arguments of epilogues in memory.
//!
//! *Takes* a body's buffers and where they are addressed; *gives* loads and stores of up to 16 neighbours along n; *promises* to touch nothing else.

use crate::graph::ir::{DType, Graph};
use crate::kernel::epilogue::EpilogueArg;
use crate::mlir::emit::{Emit, V};
use crate::mlir::memory;

/// A row and a column; `None` where neither is known.
pub(super) type Spot<'c> = Option<(V<'c>, V<'c>)>;

/// The buffers 1.. of a body.
#[derive(Clone, Copy)]
pub(super) struct Args<'k, 'c> {
    pub(super) body: &'k Graph,
    pub(super) args: &'k [EpilogueArg],
    pub(super) pointers: &'k [V<'c>],
}

impl<'k, 'c> Args<'k, 'c> {
    /// Addressing, dtype and pointer of a buffer.
    pub(super) fn of(&self, buffer: usize) -> (&'k EpilogueArg, DType, V<'c>) {
        let dtype = self.body.buffers[buffer].ty.dtype;
        (&self.args[buffer - 1], dtype, self.pointers[buffer - 1])
    }

    fn address(&self, e: &Emit<'c>, buffer: usize, batch: &[V<'c>], spot: Spot<'c>) -> V<'c> {
        let (arg, dtype, base) = self.of(buffer);
        let elem = memory::storage_elem(dtype);
        let mut terms: Vec<(V<'c>, i64)> = batch.iter().copied().zip(arg.batch.iter().copied()).collect();
        if let Some((row, col)) = spot {
            terms.extend([(row, arg.m), (col, arg.n)]);
        }
        let mut address = e.gep_const(base, elem, arg.offset);
        for (index, stride) in terms {
            if stride != 0 {
                address = e.gep(address, elem, e.mul_n(index, stride));
            }
        }
        address
    }

    /// A buffer at a spot: one number if it does not vary along n.
    pub(super) fn load(&self, e: &Emit<'c>, buffer: usize, batch: &[V<'c>], spot: Spot<'c>, lanes: u32) -> V<'c> {
        let (arg, dtype, _) = self.of(buffer);
        let address = self.address(e, buffer, batch, spot);
        match arg.n {
            _ if spot.is_none() => memory::load_scalar(e, address, dtype),
            0 => memory::load_scalar(e, address, dtype),
            1 => memory::load(e, address, dtype, 16, lanes),
            stride => {
                let elem = memory::storage_elem(dtype);
                let lane = |lane| e.gep_const(address, elem, lane as i64 * stride);
                memory::load_lanes(e, &(0..lanes).map(lane).collect::<Vec<_>>(), dtype)
            }
        }
    }

    /// Stores the first lanes of a vector, or one number.
    pub(super) fn store(&self, e: &Emit<'c>, v: V<'c>, buffer: usize, batch: &[V<'c>], spot: Spot<'c>, lanes: u32) {
        let (arg, dtype, _) = self.of(buffer);
        let address = self.address(e, buffer, batch, spot);
        match arg.n {
            _ if v.ty.lanes == 0 => memory::store_scalar(e, v, address, dtype),
            1 => memory::store(e, v, address, dtype, lanes),
            stride => {
                let elem = memory::storage_elem(dtype);
                let lane = |lane| e.gep_const(address, elem, lane as i64 * stride);
                memory::store_lanes(e, v, &(0..lanes).map(lane).collect::<Vec<_>>(), dtype);
            }
        }
    }
}
