//! Tests of the schedule: kernels run by their descriptions give what the interpreter gives for the whole graph.

mod feedback;
mod models;
mod optim;
mod plans;
mod random;
mod small;

use super::{Options, Scheduled, reference, schedule_with};
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::{BufferKind, DType, Graph};
use crate::graph::scalar;
use crate::kernel::Kernel;

/// Contents for every buffer that a graph could read: floats in -1..1 rounded to the buffer's dtype, integers below `below`.
pub(super) fn contents(g: &Graph, below: &[(&str, i32)]) -> Contents {
    let mut state = 12345u64;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1u64 << 31) as f64
    };
    let mut out = Contents::new();
    for buffer in &g.buffers {
        let dims: Vec<_> = buffer.ty.axes.iter().map(|a| g.axes[a.0 as usize].size).collect();
        let most = below.iter().find(|(n, _)| *n == buffer.name).map_or(7, |(_, m)| *m);
        let t = Tensor::from_fn(&dims, |_| match buffer.ty.dtype {
            DType::F32 | DType::Bf16 | DType::F16 => scalar::cast(next() * 2.0 - 1.0, buffer.ty.dtype),
            DType::I32 | DType::I8 => (next() * f64::from(most)).floor(),
            DType::Bool => f64::from(next() < 0.5),
        });
        if buffer.kind != BufferKind::Const && buffer.kind != BufferKind::Output {
            out.insert(buffer.name.clone(), t);
        }
    }
    out
}

/// Checks both the fused and the unfused schedule against the interpreter; gives the fused one.
pub(super) fn same(g: &Graph, inputs: &Contents, tolerance: f64) -> Scheduled {
    let expected = interpret(g, inputs).unwrap();
    let mut fused = None;
    for fuse in [false, true] {
        let s = schedule_with(g, &Options { fuse, ..Options::default() }).unwrap();
        compare(g, &s, inputs, &expected, tolerance);
        fused = Some(s);
    }
    let fused = fused.unwrap();
    #[cfg(feature = "mlir")]
    generated(g, &fused, inputs, &expected, tolerance.max(1e-5));
    fused
}

/// Every kernel is one that the emitters take.
pub(super) fn emittable<'k>(kernels: impl Iterator<Item = &'k Kernel>) {
    for k in kernels {
        if let Err(why) = k.check() {
            panic!("{why}\n{}", k.text());
        }
    }
}

/// Runs a schedule by its descriptions and compares every buffer that the graph writes.
pub(super) fn compare(g: &Graph, s: &Scheduled, inputs: &Contents, expected: &Contents, tolerance: f64) {
    emittable(s.steps.iter().map(|x| &x.kernel));
    let got = reference::run(s, inputs).unwrap_or_else(|e| panic!("{}: {e}", g.name));
    close(g, s, &got, expected, tolerance);
}

/// Runs a schedule as generated code, on every tier that this machine has.
#[cfg(feature = "mlir")]
pub(super) fn generated(g: &Graph, s: &Scheduled, inputs: &Contents, expected: &Contents, tolerance: f64) {
    use crate::mlir::{execute::Executable, jit, object, tier::Tier};
    let tiers = if g.compute == DType::F32 { &Tier::ALL[..1] } else { &Tier::ALL[..] };
    for tier in tiers.iter().filter(|t| jit::available(**t)) {
        let options = object::Options { threads: 1, cache: None };
        let run = Executable::new(s, *tier, &options).and_then(|x| x.run(inputs));
        let (got, _) = run.unwrap_or_else(|e| panic!("{} on {tier:?}: {e}", g.name));
        close(g, s, &got, expected, tolerance);
    }
}

fn close(g: &Graph, s: &Scheduled, got: &Contents, expected: &Contents, tolerance: f64) {
    for effect in &g.effects {
        let name = &g.buffers[effect.buffer.0 as usize].name;
        let (x, y) = (&got[name], &expected[name]);
        assert_eq!(x.dims, y.dims, "{name}");
        let scale = y.data.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(1e-3);
        for (i, (a, b)) in x.data.iter().zip(&y.data).enumerate() {
            let off = (a - b).abs();
            assert!(
                off <= tolerance * scale,
                "{}: {name}[{i}] is {a}, expected {b} (scale {scale})\n{}",
                g.name,
                listing(s)
            );
        }
    }
}

/// All kernels as text.
pub(super) fn listing(s: &Scheduled) -> String {
    let mut out = String::new();
    for (i, step) in s.steps.iter().enumerate() {
        let nodes: Vec<_> = step.nodes.iter().map(|n| n.0).collect();
        out += &format!(
            "--- {i} nodes {nodes:?} args {:?}\n{}",
            step.args.iter().map(|a| (a.memory, a.offset)).collect::<Vec<_>>(),
            step.kernel.text()
        );
    }
    out
}

/// Families in launch order.
pub(super) fn families(s: &Scheduled) -> Vec<&'static str> {
    s.steps.iter().map(|x| x.kernel.family()).collect()
}

/// Writes a listing to the folder that `GOLF_DUMP` names, to look at; nothing without it.
pub(super) fn dump(name: &str, text: &str) {
    if let Some(folder) = std::env::var_os("GOLF_DUMP") {
        std::fs::write(std::path::Path::new(&folder).join(name), text).unwrap();
    }
}
