//! Single ops and small graphs.

use super::{contents, families, same};
use crate::graph::build::Builder;
use crate::graph::ir::{Attend, AxisId, AxisRole, Binary, Bits, BufferKind, DType, NodeId, Reduce};
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Target};
use crate::schedule::{Options, Step, schedule_with};

struct Small {
    b: Builder,
    bt: AxisId,
    t: AxisId,
    d: AxisId,
    e: AxisId,
}

impl Small {
    fn new(batch: usize, time: usize, d: usize, e: usize) -> Small {
        let mut b = Builder::new("small", DType::F32);
        let bt = b.axis("b", batch, AxisRole::Batch).unwrap();
        let t = b.axis("t", time, AxisRole::Time).unwrap();
        let d = b.axis("d", d, AxisRole::Plain).unwrap();
        let e = b.axis("e", e, AxisRole::Plain).unwrap();
        Small { b, bt, t, d, e }
    }
    fn input(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let id = self.b.buffer(name, DType::F32, axes, BufferKind::Input).unwrap();
        self.b.read(id).unwrap()
    }
    fn ints(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let id = self.b.buffer(name, DType::I32, axes, BufferKind::Input).unwrap();
        self.b.read(id).unwrap()
    }
    fn out(&mut self, name: &str, x: NodeId) {
        let axes = self.b.axes(x).to_vec();
        let dtype = crate::graph::infer::value_dtype(self.b.dtype(x));
        let id = self.b.buffer(name, dtype, &axes, BufferKind::Output).unwrap();
        self.b.assign(id, x).unwrap();
    }
    fn finish(self) -> crate::graph::ir::Graph {
        self.b.finish()
    }
}

#[test]
fn element_wise_chain_is_one_kernel() {
    let mut s = Small::new(2, 5, 48, 3);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let y = s.input("y", &[s.d]);
    let p = s.b.mul(x, y).unwrap();
    let q = s.b.exp(p).unwrap();
    let r = s.b.sub(q, x).unwrap();
    s.out("o", r);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-6);
    assert_eq!(families(&done), ["row"]);
}

#[test]
fn rms_norm_is_one_kernel() {
    let mut s = Small::new(2, 61, 48, 3);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let sq = s.b.mul(x, x).unwrap();
    let mean = s.b.mean(sq, &[s.d]).unwrap();
    let eps = s.b.add_const(mean, 1e-6).unwrap();
    let r = s.b.rsqrt(eps).unwrap();
    let y = s.b.mul(x, r).unwrap();
    s.out("o", y);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-6);
    assert_eq!(families(&done), ["row"]);
}

#[test]
fn column_sums_are_two_kernels() {
    let mut s = Small::new(2, 61, 48, 3);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let y = s.input("y", &[s.bt, s.t, s.d]);
    let p = s.b.mul(x, y).unwrap();
    let col = s.b.sum(p, &[s.bt, s.t]).unwrap();
    let all = s.b.sum(p, &[s.bt, s.t, s.d]).unwrap();
    s.out("col", col);
    s.out("all", all);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-6);
    assert_eq!(families(&done), ["row", "row"]);
}

#[test]
fn product_with_epilogue_is_one_kernel() {
    let mut s = Small::new(2, 7, 40, 24);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let w = s.input("w", &[s.e, s.d]);
    let base = s.input("base", &[s.bt, s.t, s.e]);
    let scale = s.input("scale", &[s.e]);
    let u = s.b.dot(x, w, &[s.d]).unwrap();
    let m = s.b.mul(u, scale).unwrap();
    let y = s.b.add(base, m).unwrap();
    s.out("o", y);
    s.out("u", u);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-6);
    assert_eq!(families(&done), ["gemm"]);
}

#[test]
fn products_of_all_orientations() {
    for swap in [false, true] {
        for (xt, wt, ot) in [
            (false, false, false),
            (true, false, false),
            (false, true, false),
            (false, false, true),
            (true, true, true),
        ] {
            let mut s = Small::new(2, 7, 6, 5);
            let f = s.b.axis("f", 3, AxisRole::Plain).unwrap();
            let order = |a: AxisId, b: AxisId, flip: bool| if flip { vec![b, a] } else { vec![a, b] };
            let x = s.input("x", &order(s.e, s.d, xt));
            let w = s.input("w", &order(f, s.d, wt));
            let (x, w) = if swap { (w, x) } else { (x, w) };
            let order = order(s.e, f, ot);
            let y = s.b.dot_as(x, w, &[s.d], &order).unwrap();
            s.out("o", y);
            let g = s.finish();
            let done = same(&g, &contents(&g, &[]), 1e-6);
            assert_eq!(families(&done), ["gemm"], "{swap} {xt} {wt} {ot}");
        }
    }
}

#[test]
fn batched_products() {
    let mut s = Small::new(2, 7, 6, 5);
    let h = s.b.axis("h", 3, AxisRole::Plain).unwrap();
    let r = s.b.axis("s", 7, AxisRole::Time).unwrap();
    let q = s.input("q", &[s.bt, s.t, h, s.d]);
    let k = s.input("k", &[s.bt, s.t, h, s.d]);
    let k = s.b.rename(k, s.t, r).unwrap();
    let scores = s.b.dot(q, k, &[s.d]).unwrap();
    let m = s.b.reduce_max(scores, &[r]).unwrap();
    let e = s.b.sub(scores, m).unwrap();
    let e = s.b.exp(e).unwrap();
    let z = s.b.sum(e, &[r]).unwrap();
    let p = s.b.div(e, z).unwrap();
    let y = s.b.dot(p, k, &[r]).unwrap();
    s.out("y", y);
    let g = s.finish();
    same(&g, &contents(&g, &[]), 1e-5);
}

#[test]
fn degenerate_products() {
    let mut s = Small::new(2, 7, 40, 24);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let v = s.input("v", &[s.d]);
    let y = s.b.dot(x, v, &[s.d]).unwrap();
    s.out("y", y);
    let g1 = s.input("g", &[s.bt, s.t]);
    let dx = s.b.dot(g1, v, &[]).unwrap();
    s.out("dx", dx);
    let dv = s.b.dot(g1, x, &[s.bt, s.t]).unwrap();
    s.out("dv", dv);
    let n = s.b.dot(x, x, &[s.bt, s.t, s.d]).unwrap();
    s.out("n", n);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-6);
    assert!(!families(&done).contains(&"gemm"));
}

#[test]
fn gather_and_scatter() {
    let mut s = Small::new(2, 9, 40, 24);
    let v = s.b.axis("v", 11, AxisRole::Plain).unwrap();
    let table = s.input("table", &[v, s.d]);
    let index = s.ints("index", &[s.bt, s.t]);
    let x = s.b.gather(table, index, v).unwrap();
    let y = s.b.mul(x, x).unwrap();
    s.out("y", y);
    let back = s.b.scatter_add(index, y, v).unwrap();
    let grad = s.b.buffer("grad.table", DType::F32, &[v, s.d], BufferKind::Grad).unwrap();
    s.b.accumulate(grad, back).unwrap();
    let g = s.finish();
    let done = same(&g, &contents(&g, &[("index", 11)]), 1e-6);
    assert_eq!(families(&done), ["row", "scatter"]);
}

#[test]
fn shifts_slices_and_concats() {
    let mut s = Small::new(2, 9, 40, 24);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let x2 = s.b.mul(x, x).unwrap();
    let y = s.b.shift(x2, s.t, 1).unwrap();
    let y = s.b.sub(x2, y).unwrap();
    s.out("y", y);
    let z = s.b.shift(x2, s.d, -3).unwrap();
    let z = s.b.add(z, x).unwrap();
    s.out("z", z);
    let half = s.b.axis("half", 20, AxisRole::Plain).unwrap();
    let a = s.b.slice(x2, s.d, half, 0).unwrap();
    let b = s.b.slice(x2, s.d, half, 20).unwrap();
    let nb = s.b.neg(b).unwrap();
    let c = s.b.concat(&[nb, a], &[half, half], s.d).unwrap();
    s.out("c", c);
    let p = s.b.pad(nb, half, s.d, 20).unwrap();
    s.out("p", p);
    let t4 = s.b.axis("t4", 4, AxisRole::Time).unwrap();
    let st = s.b.slice(y, s.t, t4, 3).unwrap();
    let pt = s.b.pad(st, t4, s.t, 3).unwrap();
    s.out("pt", pt);
    let one = s.b.index(x2, s.d, 7).unwrap();
    s.out("one", one);
    let cs = s.b.cumsum(x, s.t, false).unwrap();
    s.out("cs", cs);
    let ci = s.b.cumsum(x2, s.d, true).unwrap();
    s.out("ci", ci);
    let g = s.finish();
    same(&g, &contents(&g, &[]), 1e-6);
}

#[test]
fn updates_in_place_and_swaps() {
    let mut s = Small::new(1, 2, 96, 64);
    let shape = [s.d, s.e];
    let state = |s: &mut Small, name: &str| s.b.buffer(name, DType::F32, &shape, BufferKind::State).unwrap();
    let (w, m, v) = (state(&mut s, "w"), state(&mut s, "m"), state(&mut s, "v"));
    let (wr, mr, vr) = (s.b.read(w).unwrap(), s.b.read(m).unwrap(), s.b.read(v).unwrap());
    let lr = s.input("lr", &[]);
    // Swap m and v, scaled; w by the norm of itself.
    let m2 = s.b.mul(vr, lr).unwrap();
    let v2 = s.b.mul_const(mr, 3.0).unwrap();
    let sq = s.b.mul(wr, wr).unwrap();
    let norm = s.b.sum(sq, &[s.d, s.e]).unwrap();
    let w2 = s.b.div(wr, norm).unwrap();
    s.b.assign(w, w2).unwrap();
    s.b.assign(m, m2).unwrap();
    s.b.assign(v, v2).unwrap();
    let g = s.finish();
    same(&g, &contents(&g, &[]), 1e-6);
}

#[test]
fn transposed_update_waits() {
    let mut s = Small::new(1, 2, 80, 80);
    let w = s.b.buffer("w", DType::F32, &[s.d, s.e], BufferKind::State).unwrap();
    let x = s.b.read(w).unwrap();
    let tmp = s.b.axis("tmp", 80, AxisRole::Plain).unwrap();
    let y = s.b.rename(x, s.d, tmp).unwrap();
    let y = s.b.rename(y, s.e, s.d).unwrap();
    let y = s.b.rename(y, tmp, s.e).unwrap();
    let z = s.b.add(x, y).unwrap();
    s.b.assign(w, z).unwrap();
    let g = s.finish();
    same(&g, &contents(&g, &[]), 1e-6);
}

#[test]
fn quantiser_like() {
    let mut s = Small::new(1, 2, 80, 33);
    let w = s.input("w", &[s.d, s.e]);
    let abs = s.b.abs(w).unwrap();
    let mut best: Option<(NodeId, NodeId)> = None;
    for q in [0.9, 0.99, 1.0] {
        let clip = s.b.quantile(abs, s.e, q).unwrap();
        let scale = s.b.mul_const(clip, 1.0 / 31.0).unwrap();
        let floor = s.b.constant(1.0 / 310.0);
        let scale = s.b.max(scale, floor).unwrap();
        let scale = s.b.cast(scale, DType::F16).unwrap();
        let codes = s.b.div(w, scale).unwrap();
        let codes = s.b.round(codes).unwrap();
        let limit = s.b.constant(31.0);
        let codes = s.b.min(codes, limit).unwrap();
        let low = s.b.constant(-31.0);
        let codes = s.b.max(codes, low).unwrap();
        let back = s.b.mul(codes, scale).unwrap();
        let err = s.b.sub(w, back).unwrap();
        let err = s.b.mul(err, err).unwrap();
        let mse = s.b.sum(err, &[s.d, s.e]).unwrap();
        best = Some(match best {
            None => (mse, back),
            Some((least, kept)) => {
                let better = s.b.lt(mse, least).unwrap();
                let wide = s.b.broadcast(better, &[s.d, s.e]).unwrap();
                (s.b.min(least, mse).unwrap(), s.b.select(wide, back, kept).unwrap())
            }
        });
    }
    let (_, back) = best.unwrap();
    let codes = s.b.cast(back, DType::I8).unwrap();
    s.out("codes", codes);
    s.out("back", back);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-3);
    assert_eq!(families(&done).iter().filter(|f| **f == "quantile").count(), 3);
}

#[test]
fn reductions_of_all_kinds() {
    let mut s = Small::new(2, 9, 40, 200);
    let x = s.input("x", &[s.bt, s.t, s.d]);
    for (i, over) in [vec![s.d], vec![s.t], vec![s.bt], vec![s.t, s.d], vec![s.bt, s.t, s.d], vec![s.bt, s.d]]
        .into_iter()
        .enumerate()
    {
        for r in [Reduce::Sum, Reduce::Max, Reduce::Min] {
            let y = s.b.reduce(r, x, &over).unwrap();
            s.out(&format!("o{i}{r:?}"), y);
        }
    }
    let w = s.input("w", &[s.d, s.e]);
    for (i, over) in [vec![s.d], vec![s.e], vec![s.d, s.e]].into_iter().enumerate() {
        for r in [Reduce::Sum, Reduce::Max] {
            let y = s.b.reduce(r, w, &over).unwrap();
            s.out(&format!("w{i}{r:?}"), y);
        }
    }
    let g = s.finish();
    same(&g, &contents(&g, &[]), 1e-6);
}

#[test]
fn constants_and_counters() {
    let mut s = Small::new(2, 9, 40, 24);
    let count = s.b.iota(s.t).unwrap();
    let f = s.b.cast(count, DType::F32).unwrap();
    let f = s.b.mul_const(f, 0.1).unwrap();
    let c = s.b.cos(f).unwrap();
    let x = s.input("x", &[s.bt, s.t, s.d]);
    let wide = s.b.broadcast(c, &[s.t, s.d]).unwrap();
    let y = s.b.mul(x, wide).unwrap();
    s.out("y", y);
    let first = s.b.binary_const(Binary::Eq, count, 0.0).unwrap();
    let ids = s.ints("ids", &[s.bt, s.t]);
    let hashed = s.b.binary_const(Binary::Mul, ids, 36313.0).unwrap();
    let seven = s.b.int(7);
    let wide7 = s.b.broadcast(seven, &[s.bt, s.t]).unwrap();
    let firstw = s.b.broadcast(first, &[s.bt, s.t]).unwrap();
    let sel = s.b.select(firstw, wide7, hashed).unwrap();
    s.out("sel", sel);
    let fill = s.b.fill(2.5, &[s.d, s.e]).unwrap();
    s.out("fill", fill);
    let g = s.finish();
    same(&g, &contents(&g, &[]), 1e-6);
}

/// Causal attention of 2 key/value heads with 3 query heads each: the graph so far, y \[b t kv g hd\], v \[b t kv hd\], (kv, g, hd).
fn attention() -> (Small, NodeId, NodeId, (AxisId, AxisId, AxisId)) {
    let mut s = Small::new(2, 70, 6, 3);
    let mut axis = |name: &str, n| s.b.axis(name, n, AxisRole::Plain).unwrap();
    let (kv, g, hd) = (axis("kv", 2), axis("g", 3), axis("hd", 24));
    let q = s.input("q", &[s.bt, s.t, kv, g, hd]);
    let [k, v] = ["k", "v"].map(|name| s.input(name, &[s.bt, s.t, kv, hd]));
    let how = Attend { time: s.t, dim: hd, scale: Bits::new(0.25), causal: true, window: None, document: false };
    let y = s.b.attend(how, q, k, v, None).unwrap();
    (s, y, v, (kv, g, hd))
}

#[test]
fn work_on_its_rows_joins_attention() {
    // Element-wise work and reductions along the head dimension; values of every shape are given.
    let (mut s, y, v, (.., hd)) = attention();
    let sq = s.b.mul(v, v).unwrap();
    let length = s.b.sum(sq, &[hd]).unwrap();
    let n = s.b.div(v, length).unwrap();
    let p = s.b.mul(y, n).unwrap();
    let along = s.b.sum(p, &[hd]).unwrap();
    let part = s.b.outer(Binary::Mul, along, n).unwrap();
    let rest = s.b.sub(y, part).unwrap();
    for (name, x) in [("rest", rest), ("along", along), ("length", length), ("y", y)] {
        s.out(name, x);
    }
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-5);
    assert_eq!(families(&done), ["attend"]);
    // A factor for each query head.
    let (mut s, y, _, (kv, g, _)) = attention();
    let gate = s.input("gate", &[s.bt, s.t, s.d]);
    let gate = s.b.split(gate, s.d, &[kv, g]).unwrap();
    let y = s.b.mul(y, gate).unwrap();
    s.out("o", y);
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-5);
    assert_eq!(families(&done), ["attend"]);
}

/// Families, and why what follows attention did not join it.
fn apart(s: Small) -> (Vec<&'static str>, String) {
    let g = s.finish();
    let done = same(&g, &contents(&g, &[]), 1e-5);
    let why = done.refused.values().filter(|r| r.family == "attend").map(|r| r.why.clone());
    (families(&done), why.collect::<Vec<_>>().join("; "))
}

#[test]
fn what_needs_more_than_its_rows_does_not_join_attention() {
    // Other heads.
    let (mut s, y, _, (kv, ..)) = attention();
    let sum = s.b.sum(y, &[kv]).unwrap();
    s.out("o", sum);
    let (kernels, why) = apart(s);
    assert!(kernels == ["attend", "row"] && why.contains("along something else"), "{kernels:?}, {why}");
    // Sums over positions.
    let (mut s, y, ..) = attention();
    let sq = s.b.mul(y, y).unwrap();
    let sum = s.b.sum(sq, &[s.bt, s.t]).unwrap();
    s.out("o", sq);
    s.out("sum", sum);
    let (kernels, why) = apart(s);
    assert!(kernels == ["attend", "row", "row"] && why.contains("sums over its rows"), "{kernels:?}, {why}");
    // Heads merged before: key/value heads and groups are two indices of attention.
    let (mut s, y, _, (kv, g, _)) = attention();
    let gate = s.input("gate", &[s.bt, s.t, s.d]);
    let y = s.b.merge(y, &[kv, g], s.d).unwrap();
    let y = s.b.mul(y, gate).unwrap();
    s.out("o", y);
    let (kernels, why) = apart(s);
    assert!(kernels == ["attend", "row"] && why.contains("has not"), "{kernels:?}, {why}");
    // Values that all six query heads would read again.
    let (mut s, y, _, (.., hd)) = attention();
    let mut z = y;
    for name in ["c", "d"] {
        let x = s.input(name, &[s.bt, s.t, hd]);
        z = s.b.mul(z, x).unwrap();
    }
    s.out("o", z);
    let (kernels, why) = apart(s);
    assert!(kernels == ["attend", "row"] && why.contains("once per query head"), "{kernels:?}, {why}");
}

/// Five rows that are needed before and after a reduction: more than a GPU's registers hold beside attention's result.
#[test]
fn what_a_target_cannot_hold_stays_a_row_kernel() {
    let (mut s, y, _, (kv, g, hd)) = attention();
    let all: Vec<_> = (0..5).map(|i| s.input(&format!("x{i}"), &[s.bt, s.t, kv, g, hd])).collect();
    let times = |s: &mut Small, from| all.iter().fold(from, |z, x| s.b.mul(z, *x).unwrap());
    let z = times(&mut s, y);
    let sum = s.b.sum(z, &[hd]).unwrap();
    let z = s.b.mul(y, sum).unwrap();
    let z = times(&mut s, z);
    s.out("o", z);
    let mut graph = s.finish();
    same(&graph, &contents(&graph, &[]), 1e-5);
    graph.compute = DType::Bf16;
    for (target, fused) in [(Target::Cpu, true), (Target::Gpu(Arch::Sm90a), false), (Target::Gpu(Arch::Sm80), false)] {
        let done = schedule_with(&graph, &Options { fuse: true, target }).unwrap();
        let epilogue = |s: &Step| matches!(&s.kernel, Kernel::Attend(k) if k.epilogue.is_some());
        assert_eq!(done.steps.iter().any(epilogue), fused, "{target:?}");
        let held = done.refused.values().all(|r| !r.why.contains("registers for 4 rows"));
        assert_eq!(held, fused, "{target:?}");
    }
}
