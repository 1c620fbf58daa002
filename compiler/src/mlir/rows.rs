//! What the emitters of row kernels share on every target.
//!
//! *Takes* pieces of a loop program; *gives* their values; *promises* one meaning on CPUs and GPUs.

use super::elementwise::value_elem;
use super::emit::{Elem, Emit, V};
use crate::kernel::row::loops::Lane;

/// The element of a lane.
pub fn elem(lane: Lane) -> Elem {
    value_elem(lane.dtype())
}

/// Positions of row `row` along outer axes of these sizes, outermost first. The outermost may be larger than its size says, where code does not know the number
/// of rows.
pub fn positions<'c>(e: &Emit<'c>, sizes: &[usize], mut row: V<'c>) -> Vec<V<'c>> {
    let mut all = vec![row; sizes.len()];
    for k in (1..sizes.len()).rev() {
        let size = e.i(sizes[k] as i64);
        all[k] = e.remu(row, size);
        row = e.divu(row, size);
    }
    if let Some(outermost) = all.first_mut() {
        *outermost = row;
    }
    all
}
