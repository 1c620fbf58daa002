//! Attention for `sm_90a`: tiles by the copy engine, products by warpgroups, probabilities in registers.
//!
//! *Takes* an [`AttendKernel`]; *gives* the functions of [`crate::kernel::gpu::attend::launches`]; *promises* sums in a fixed order: keys ascending;
//! for dk and dv group, then queries ascending. No atomics.
//!
//! A warpgroup computes 64 rows of scores at a time. Its accumulator, rounded in pairs, is already the left operand of the next product, so
//! probabilities never touch shared memory; for the gradients of keys the scores are made transposed (keys are rows) for the same reason.
//! The products of the next tile are started before the elementwise work on this one (Shah et al. 2024).
//!
//! [`parts`] has what the launches share: work of a block, rings of tiles, operands, masks, stores of results; [`documents`] what is visited and hidden
//! where documents are kept apart.

mod backward;
mod documents;
mod finish;
mod forward;
pub mod mma;
mod parts;
#[cfg(test)]
pub(crate) mod tests;

use super::ops;
use crate::kernel::attend::{AttendKernel, Pass};
use crate::kernel::gpu::attend;
use crate::mlir::emit::Unit;

/// Emits the functions of [`crate::kernel::gpu::attend::launches`].
pub fn emit(unit: &Unit, k: &AttendKernel, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    attend::check(k)?;
    ops::declare_shared(unit);
    if k.document {
        documents::emit(unit, k, &symbol("documents"));
    }
    match k.pass {
        Pass::Forward => forward::emit(unit, k, &symbol("main")),
        Pass::Backward => {
            backward::delta(unit, k, &symbol("delta"));
            backward::keys(unit, k, &symbol("dkdv"));
            backward::queries(unit, k, &symbol("dq"));
        }
    }
    Ok(())
}
