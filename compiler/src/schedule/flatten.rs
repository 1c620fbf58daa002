//! Element-wise kernels over whole matrices, in one shape.
//!
//! *Takes* a row kernel; *gives* an equal one over rows of [`WIDTH`] elements if the kernel does nothing but element-wise work on densely
//! stored matrices of one shape; *promises* the same values, so that averages, decays and sums of matrices of any shape share their code.

use crate::graph::ir::{Axis, AxisId, AxisRole, EffectMode, Graph, Op};
use crate::kernel::row::{Row, RowArg};

/// Elements of a row.
const WIDTH: usize = 512;
/// Rows of a task.
const BLOCK: usize = 16;

/// The kernel over rows of [`WIDTH`], if it can be written so without a rest.
pub(super) fn flatten(k: &Row) -> Option<Row> {
    let g = &k.graph;
    let all: Vec<AxisId> = g.nodes.iter().map(|n| &n.ty.axes).max_by_key(|a| a.len())?.clone();
    let numel: usize = all.iter().map(|a| g.axes[a.0 as usize].size).product();
    if all.len() < 2 || numel % (WIDTH * BLOCK) != 0 || g.axes.len() != all.len() {
        return None;
    }
    let whole = |axes: &[AxisId]| axes.is_empty() || axes == &all[..];
    let local = |op: &Op| {
        matches!(
            op,
            Op::Read(_) | Op::Const(_) | Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Broadcast
        )
    };
    let dense = |axes: &[AxisId], arg: &RowArg| {
        let mut next = 1;
        let mut fits = true;
        for (a, s) in axes.iter().zip(&arg.strides).rev() {
            fits &= *s == next;
            next *= g.axes[a.0 as usize].size as i64;
        }
        fits && !arg.per_task
    };
    let fits = g.nodes.iter().all(|n| whole(&n.ty.axes) && local(&n.op))
        && g.buffers.iter().zip(&k.args).all(|(b, a)| whole(&b.ty.axes) && dense(&b.ty.axes, a))
        && g.effects.iter().all(|e| matches!(e.mode, EffectMode::Assign | EffectMode::Accumulate));
    if !fits {
        return None;
    }
    let axis = |name: &str, size| Axis { name: name.to_string(), size, role: AxisRole::Plain };
    let (rows, cols) = (AxisId(0), AxisId(1));
    let mut graph = Graph { axes: vec![axis("a0", numel / WIDTH), axis("a1", WIDTH)], ..g.clone() };
    let both = |axes: &mut Vec<AxisId>| {
        if !axes.is_empty() {
            *axes = vec![rows, cols];
        }
    };
    graph.nodes.iter_mut().for_each(|n| both(&mut n.ty.axes));
    graph.buffers.iter_mut().for_each(|b| both(&mut b.ty.axes));
    let strides = |a: &RowArg| if a.strides.is_empty() { Vec::new() } else { vec![WIDTH as i64, 1] };
    let args = k.args.iter().map(|a| RowArg { strides: strides(a), ..a.clone() }).collect();
    Some(Row { graph, outer: vec![rows], block: BLOCK, args, exact: k.exact })
}
