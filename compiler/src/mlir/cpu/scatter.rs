//! Scatter-add on the CPU: one task adds 64 columns of all rows, in row order.
//!
//! *Takes* a [`Scatter`]; *gives* its function; *promises* ascending rows for every element of the table and indices clamped into it.

use crate::graph::ir::DType;
use crate::kernel::scatter::Scatter;
use crate::mlir::emit::{Elem, Emit, I32, Ty, Unit, V};
use crate::mlir::memory;

/// Columns of a task.
const COLUMNS: i64 = 64;

/// Emits the function `main`.
pub fn emit(unit: &Unit, k: &Scatter, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    if k.src == DType::I32 || k.src == DType::I8 || k.src == DType::Bool {
        return Err(format!("scatter-add of {:?}", k.src));
    }
    unit.kernel(&symbol("main"), 3, |e, task, args, _| {
        let first = e.mul_n(task, COLUMNS);
        let width = k.width as i64;
        let rest = width % COLUMNS;
        if rest == 0 {
            columns(e, k, args, first, COLUMNS);
        } else if width < COLUMNS {
            columns(e, k, args, first, rest);
        } else {
            let last = e.cmp(crate::mlir::emit::Cmp::Eq, task, e.i(width / COLUMNS));
            e.if_(
                last,
                &[],
                |e| {
                    columns(e, k, args, first, rest);
                    vec![]
                },
                |e| {
                    columns(e, k, args, first, COLUMNS);
                    vec![]
                },
            );
        }
    });
    Ok(())
}

/// The columns `first..first + count`.
fn columns<'c>(e: &Emit<'c>, k: &Scatter, args: &[V<'c>], first: V<'c>, count: i64) {
    let width = k.width as i64;
    let vectors: Vec<(i64, u32)> = (0..count).step_by(16).map(|at| (at, (count - at).min(16) as u32)).collect();
    let (index, src, table) = (args[0], memory::at(e, args[1], k.src, first), e.gep(args[2], Elem::F32, first));
    if !k.accumulate {
        e.each(0, k.size as i64, 1, |e, row| {
            let to = e.gep(table, Elem::F32, e.mul_n(row, width));
            for &(at, n) in &vectors {
                let zero = e.zero(Ty::vec(16, Elem::F32));
                memory::store(e, zero, e.gep_const(to, Elem::F32, at), DType::F32, n);
            }
        });
    }
    e.each(0, k.rows as i64, 1, |e, row| {
        let at = e.load(e.gep(index, Elem::I32, row), I32);
        let at = e.max(e.min(at, e.iconst(I32, k.size as i64 - 1)), e.iconst(I32, 0));
        let to = e.gep(table, Elem::F32, e.mul_n(e.int_cast(at, Elem::I64), width));
        let from = memory::at(e, src, k.src, e.mul_n(row, width));
        for &(at, n) in &vectors {
            let to = e.gep_const(to, Elem::F32, at);
            let from = e.gep_const(from, memory::storage_elem(k.src), at);
            let sum = e.add(memory::load(e, to, DType::F32, 16, n), memory::load(e, from, k.src, 16, n));
            memory::store(e, sum, to, DType::F32, n);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::kernel::row::run::{read, write};
    use crate::mlir::jit;
    use crate::mlir::object::{self, Job, Text};
    use crate::mlir::tests::{Random, tiers};
    use crate::mlir::tier::Tier;

    /// Rows added one after the other in f32 are the expected bits.
    #[test]
    fn rows_are_added_in_order() {
        let mut rng = Random(4);
        for (width, src) in
            [(1, DType::F32), (17, DType::Bf16), (64, DType::Bf16), (130, DType::F32), (200, DType::F16)]
        {
            for accumulate in [false, true] {
                let k = Scatter { rows: 61, width, size: 7, src, accumulate };
                let mut args =
                    vec![vec![0; k.rows * 4], vec![0; k.rows * width * src.bytes()], vec![0; k.size * width * 4]];
                for i in 0..k.rows {
                    // A few indices lie outside and are clamped.
                    write(&mut args[0], DType::I32, i, (rng.next() % 9) as f64 - 1.0).unwrap();
                }
                for i in 0..k.rows * width {
                    write(&mut args[1], src, i, rng.uniform()).unwrap();
                }
                for i in 0..k.size * width {
                    write(&mut args[2], DType::F32, i, rng.uniform()).unwrap();
                }
                let mut expected = args[2].clone();
                if !accumulate {
                    expected.fill(0);
                }
                for row in 0..k.rows {
                    let at = read(&args[0], DType::I32, row).unwrap().clamp(0.0, 6.0) as usize;
                    for c in 0..width {
                        let add = read(&args[1], src, row * width + c).unwrap();
                        let old = read(&expected, DType::F32, at * width + c).unwrap();
                        write(&mut expected, DType::F32, at * width + c, (old as f32 + add as f32) as f64).unwrap();
                    }
                }
                for tier in tiers() {
                    let mut got = args.clone();
                    jit::run(&Kernel::Scatter(k.clone()), tier, &mut got).unwrap();
                    assert!(got[2] == expected, "{k:?}");
                }
            }
        }
    }

    #[test]
    fn code_is_small_and_readable() {
        let kernel = Kernel::Scatter(Scatter { rows: 61, width: 24, size: 7, src: DType::Bf16, accumulate: false });
        let symbol = kernel.symbol();
        let text = object::text(&Job { kernel, tier: Tier::V3 }, Text::Mlir).unwrap();
        insta::assert_snapshot!("scatter", text.replace(&symbol, "scatter"));
    }
}
