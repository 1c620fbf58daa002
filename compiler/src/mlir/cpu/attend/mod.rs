//! Attention on the CPU: online softmax over blocks of 64 keys, every product on the 4×64 tile.
//!
//! *Takes* an [`AttendKernel`]; *gives* its `pack` and `main` functions; *promises* a fixed order of every sum (keys ascending; for dk and dv: group,
//! then queries ascending), so results do not depend on threads. Layouts and measurements: Dao et al. 2022 for the algorithm; one pass
//! backward with dq in place, task = key/value head.
//!
//! All tiles work on 4-byte words: an f32, or on `cpu-avx512bf16` in bf16 a pair of neighbours along the contraction. Packing pads
//! positions to blocks of 64 and the head dimension to 16 with zeros, so the tiles have no edges; only masks and final stores know the true sizes.

mod backward;
mod finish;
mod forward;
mod mask;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use crate::graph::ir::DType;
use crate::kernel::attend::{AttendKernel, Pass, Sizes, Strides};
use crate::mlir::emit::{Elem, Emit, Unit, V};
use crate::mlir::tier::Tier;

/// Emits both functions.
pub fn emit(unit: &Unit, kernel: &AttendKernel, tier: Tier, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    kernel.check()?;
    let shape = Shape::new(kernel, tier);
    let args = kernel.accesses().len() + kernel.temps().len();
    unit.kernel(&symbol("pack"), args, |e, task, args, scratch| pack::emit(e, &shape, task, args, scratch));
    match kernel.pass {
        Pass::Forward => {
            unit.kernel(&symbol("main"), args, |e, task, args, scratch| forward::emit(e, &shape, task, args, scratch))
        }
        Pass::Backward => {
            unit.kernel(&symbol("main"), args, |e, task, args, scratch| backward::emit(e, &shape, task, args, scratch))
        }
    }
    Ok(())
}

/// A kernel with everything derived from it.
pub(super) struct Shape<'k> {
    k: &'k AttendKernel,
    s: Sizes,
    /// Words are pairs of bf16.
    pairs: bool,
    /// Elements of the contraction in one word: 2 or 1.
    per: usize,
    /// Vectors of 16 columns one tile holds in registers.
    nv: usize,
    /// Storage element.
    elem: Elem,
}

impl<'k> Shape<'k> {
    fn new(k: &'k AttendKernel, tier: Tier) -> Self {
        let pairs = k.dtype == DType::Bf16 && tier == Tier::Avx512Bf16;
        // 4 rows x 16 columns are 8 of v3's 16 registers; 4 x 64 are 16 of AVX-512's 32.
        let nv = if tier == Tier::Avx512Bf16 { 4 } else { 1 };
        let elem = if k.dtype == DType::Bf16 { Elem::Bf16 } else { Elem::F32 };
        Shape { k, s: k.sizes(), pairs, per: if pairs { 2 } else { 1 }, nv, elem }
    }
    /// Words of a packed row that carry data.
    fn words(&self) -> usize {
        self.k.dim.div_ceil(self.per)
    }
    /// Words between packed rows (positions as rows): 16 f32 or 16 pairs at least.
    fn row(&self) -> usize {
        crate::kernel::round_up(self.words(), 16)
    }
    /// The element type of a word.
    fn word(&self) -> Elem {
        if self.pairs { Elem::I32 } else { Elem::F32 }
    }
    /// `scores * this` are base-2 exponents.
    fn to_base2(&self) -> f64 {
        self.k.scale.get() * std::f64::consts::LOG2_E
    }
}

/// Positions of a head in a strided operand: element address of (batch, position 0, kv, group).
pub(super) fn head<'c>(e: &Emit<'c>, base: V<'c>, elem: Elem, s: &Strides, b: V<'c>, kv: V<'c>, group: V<'c>) -> V<'c> {
    let index = e.add(e.mul_n(b, s.batch), e.add(e.mul_n(kv, s.kv), e.mul_n(group, s.group)));
    e.gep(base, elem, e.add_n(index, s.offset))
}

/// `x / n` and `x % n` for a non-negative x.
pub(super) fn div_rem<'c>(e: &Emit<'c>, x: V<'c>, n: usize) -> (V<'c>, V<'c>) {
    let n = e.i(n as i64);
    (e.divu(x, n), e.remu(x, n))
}
