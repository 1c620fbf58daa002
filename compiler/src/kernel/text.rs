//! Canonical text of kernel descriptions.
//!
//! *Takes* a [`Kernel`]; *gives* a few lines of text; *promises* that equal text means equal descriptions, so that its hash names the
//! generated code.

use super::epilogue::EpilogueArg;
use super::{Kernel, attend, gemm, row};
use crate::graph::infer::dtype_name;
use crate::graph::ir::{AxisId, EffectMode, Graph, Op, Type};
use std::fmt::Write;

/// The text of a kernel.
pub(super) fn kernel(k: &Kernel) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = match k {
        Kernel::Row(k) => row(&mut out, k),
        Kernel::Gemm(k) => gemm(&mut out, k),
        Kernel::Attend(k) => attend(&mut out, k),
        Kernel::Scatter(k) => writeln!(
            out,
            "scatter rows={} width={} size={} src={} accumulate={}",
            k.rows,
            k.width,
            k.size,
            dtype_name(k.src),
            k.accumulate
        ),
        Kernel::Quantile(k) => writeln!(out, "quantile rows={} n={} q={:?}", k.rows, k.n, k.q),
        Kernel::Feedback(k) => writeln!(out, "feedback rows={} n={} low={:?} high={:?}", k.rows, k.n, k.low, k.high),
    };
    out
}

fn row(out: &mut String, k: &row::Row) -> std::fmt::Result {
    let exact = if k.exact { " exact" } else { "" };
    writeln!(out, "row outer={} block={}{exact}", axes(&k.graph, &k.outer), k.block)?;
    for (buffer, arg) in k.graph.buffers.iter().zip(&k.args) {
        let per_task = if arg.per_task { " per_task" } else { "" };
        let ty = ty(&k.graph, &buffer.ty);
        writeln!(out, "  {}: {ty} offset={} strides={:?}{per_task}", buffer.name, arg.offset, arg.strides)?;
    }
    body(out, &k.graph)
}

fn gemm(out: &mut String, k: &gemm::Gemm) -> std::fmt::Result {
    let flag = |on: bool, name: &str| if on { format!(" {name}") } else { String::new() };
    writeln!(
        out,
        "gemm batch={:?} m={} n={} k={} compute={}{}{}{}{}",
        k.batch,
        k.m,
        k.n,
        k.k,
        dtype_name(k.compute),
        flag(k.symmetric, "symmetric"),
        flag(k.accumulate, "accumulate"),
        k.cut.map_or(String::new(), |cut| format!(" cut={cut}")),
        flag(k.library, super::gpu::library::NAME)
    )?;
    for (name, o) in [("a", &k.a), ("b", &k.b)] {
        let dtype = dtype_name(o.dtype);
        writeln!(out, "  {name}: {dtype} offset={} row={} k={} batch={:?}", o.offset, o.row, o.k, o.batch)?;
    }
    epilogue(out, &k.epilogue, &k.args)
}

fn epilogue(out: &mut String, g: &Graph, args: &[EpilogueArg]) -> std::fmt::Result {
    for (buffer, arg) in g.buffers.iter().skip(1).zip(args) {
        let ty = ty(g, &buffer.ty);
        writeln!(out, "  {}: {ty} offset={} batch={:?} m={} n={}", buffer.name, arg.offset, arg.batch, arg.m, arg.n)?;
    }
    body(out, g)
}

fn attend(out: &mut String, k: &attend::AttendKernel) -> std::fmt::Result {
    let pass = match k.pass {
        attend::Pass::Forward => "attend",
        attend::Pass::Backward => "attend_grad",
    };
    writeln!(
        out,
        "{pass} batch={} time={} kv={} group={} dim={} {} scale={:?} causal={} window={:?} document={}",
        k.batch,
        k.time,
        k.kv,
        k.group,
        k.dim,
        dtype_name(k.dtype),
        k.scale,
        k.causal,
        k.window,
        k.document
    )?;
    let mut operands = vec![("q", &k.q), ("k", &k.k), ("v", &k.v)];
    operands.extend(k.epilogue.is_none().then_some(("y", &k.y)));
    if k.pass == attend::Pass::Backward {
        operands.extend([("dy", &k.dy), ("dq", &k.dq), ("dk", &k.dk), ("dv", &k.dv)]);
    }
    for (name, s) in operands {
        let attend::Strides { offset, batch, time, kv, group } = s;
        writeln!(out, "  {name}: offset={offset} batch={batch} time={time} kv={kv} group={group}")?;
    }
    k.epilogue.as_ref().map_or(Ok(()), |p| epilogue(out, &p.body, &p.args))
}

fn body(out: &mut String, g: &Graph) -> std::fmt::Result {
    for axis in &g.axes {
        writeln!(out, "  axis {} = {}", axis.name, axis.size)?;
    }
    for (i, node) in g.nodes.iter().enumerate() {
        write!(out, "  %{i} = {}", op(g, &node.op))?;
        for arg in &node.args {
            write!(out, " %{}", arg.0)?;
        }
        writeln!(out, " : {}", ty(g, &node.ty))?;
    }
    for effect in &g.effects {
        let sign = match effect.mode {
            EffectMode::Assign => "=",
            EffectMode::Accumulate => "+=",
        };
        writeln!(out, "  {} {sign} %{}", g.buffers[effect.buffer.0 as usize].name, effect.value.0)?;
    }
    Ok(())
}

/// Name and attributes of an op, axes by name.
fn op(g: &Graph, op: &Op) -> String {
    let name = crate::graph::ops::row(op).name;
    let axis = |a: &AxisId| g.axes[a.0 as usize].name.clone();
    match op {
        Op::Read(b) => format!("{name} {}", g.buffers[b.0 as usize].name),
        Op::Const(x) => format!("{name} {x:?}"),
        Op::Iota(a) | Op::Gather(a) | Op::ScatterAdd(a) | Op::CrossEntropy(a) | Op::CrossEntropyGrad(a) => {
            format!("{name} {}", axis(a))
        }
        Op::Cast(d) => format!("{name} {}", dtype_name(*d)),
        Op::Reduce(_, over) | Op::Dot(over) => format!("{name} {}", axes(g, over)),
        Op::Split(a, to) => format!("{name} {} {}", axis(a), axes(g, to)),
        Op::Merge(from, a) => format!("{name} {} {}", axes(g, from), axis(a)),
        Op::Concat(from, a) => format!("{name} {} {}", axes(g, from), axis(a)),
        Op::Rename(a, b) | Op::TopKValues(a, b) | Op::TopKIndices(a, b) => format!("{name} {} {}", axis(a), axis(b)),
        Op::Slice { from, to, start } | Op::Pad { from, to, start } => {
            format!("{name} {} {} {start}", axis(from), axis(to))
        }
        Op::Index(a, at) | Op::Place(a, at) => format!("{name} {} {at}", axis(a)),
        Op::Shift(a, n) => format!("{name} {} {n}", axis(a)),
        Op::Cumsum(a, reverse) | Op::Scan(a, reverse) => format!("{name} {} reverse={reverse}", axis(a)),
        Op::Quantile(a, q) => format!("{name} {} {q:?}", axis(a)),
        Op::FeedbackRound { axis: a, low, high } => format!("{name} {} {low:?} {high:?}", axis(a)),
        Op::Random { key, normal } => format!("{name} key={key} normal={normal}"),
        Op::Attend(a) | Op::AttendLse(a) => format!("{name} {a:?}"),
        Op::AttendGrad(a, which) => format!("{name} {a:?} {which:?}"),
        Op::Unary(_) | Op::Binary(_) | Op::Select | Op::StopGradient | Op::StraightThrough | Op::Broadcast => {
            name.to_string()
        }
    }
}

fn ty(g: &Graph, t: &Type) -> String {
    format!("{}{}", dtype_name(t.dtype), axes(g, &t.axes))
}

fn axes(g: &Graph, list: &[AxisId]) -> String {
    let names: Vec<_> = list.iter().map(|a| g.axes[a.0 as usize].name.as_str()).collect();
    format!("[{}]", names.join(" "))
}
