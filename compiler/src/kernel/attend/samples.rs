//! Epilogues to test emitters with.

use super::AttendKernel;
use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, AxisRole, Binary, BufferKind, DType, NodeId};
use crate::kernel::epilogue::{Epilogue, EpilogueArg};

/// A body under construction.
struct Body<'k> {
    k: &'k AttendKernel,
    b: Builder,
    args: Vec<EpilogueArg>,
    /// Position, dim, batch, kv, group.
    axes: [AxisId; 5],
}

impl Body<'_> {
    /// A dense buffer over some axes, by number, outermost first.
    fn buffer(&mut self, dtype: DType, over: &[usize]) -> crate::graph::ir::BufferId {
        let [b, kv, g] = self.k.heads();
        let extents = [self.k.time, self.k.dim, b, kv, g];
        let (mut strides, mut next) = ([0; 5], 1);
        for axis in over.iter().rev() {
            strides[*axis] = next as i64;
            next *= extents[*axis];
        }
        let [m, n, batch @ ..] = strides;
        let name = format!("p{}", self.args.len() + 1);
        let axes: Vec<AxisId> = over.iter().map(|a| self.axes[*a]).collect();
        self.args.push(EpilogueArg { offset: 0, batch: batch.to_vec(), m, n });
        self.b.buffer(&name, dtype, &axes, BufferKind::State).unwrap()
    }
    fn read(&mut self, dtype: DType, over: &[usize]) -> NodeId {
        let id = self.buffer(dtype, over);
        self.b.read(id).unwrap()
    }
    fn write(&mut self, x: NodeId, dtype: DType, over: &[usize]) {
        let id = self.buffer(dtype, over);
        self.b.assign(id, x).unwrap();
    }
}

const VALUES: [usize; 4] = [2, 0, 3, 1];
const ROWS: [usize; 5] = [2, 0, 3, 4, 1];

/// `r = (y - (y . n) n) sigmoid(gate) + scale` with `n = v / max(|v|, 1e-12)`; with `all` y itself, y . n, |v|^2 (without the group) and the largest y of a row plus
/// where it is are given too.
pub(crate) fn finished(k: AttendKernel, all: bool) -> AttendKernel {
    let mut b = Builder::new("epilogue", DType::F32);
    let [batch, kv, g] = k.heads();
    let sizes = [("a0", k.time), ("a1", k.dim), ("a2", batch), ("a3", kv), ("a4", g)];
    let axes = sizes.map(|(name, n)| b.axis(name, n, AxisRole::Plain).unwrap());
    let [t, d, b0, kv, g] = axes;
    b.buffer("acc", DType::F32, &[b0, kv, g, t, d], BufferKind::State).unwrap();
    let y = b.read(crate::graph::ir::BufferId(0)).unwrap();
    let mut p = Body { k: &k, b, args: vec![], axes };
    let v = p.read(k.dtype, &VALUES);
    let gate = p.read(DType::F32, &[2, 0, 3, 4]);
    let scale = p.read(DType::F32, &[1]);
    let b = &mut p.b;
    let squares = b.mul(v, v).unwrap();
    let squares = b.sum(squares, &[d]).unwrap();
    let norm = b.sqrt(squares).unwrap();
    let floor = b.constant(1e-12);
    let norm = b.max(norm, floor).unwrap();
    let n = b.div(v, norm).unwrap();
    let along = b.mul(y, n).unwrap();
    let along = b.sum(along, &[d]).unwrap();
    let part = b.outer(Binary::Mul, along, n).unwrap();
    let rest = b.sub(y, part).unwrap();
    let gate = b.sigmoid(gate).unwrap();
    let rest = b.mul(rest, gate).unwrap();
    let rest = b.add(rest, scale).unwrap();
    let (most, at) = (b.reduce_max(y, &[d]).unwrap(), b.iota(t).unwrap());
    let at = b.cast(at, DType::F32).unwrap();
    let most = b.add(most, at).unwrap();
    p.write(rest, k.dtype, &ROWS);
    if all {
        p.write(y, k.dtype, &ROWS);
        p.write(along, DType::F32, &[2, 0, 3, 4]);
        p.write(squares, DType::F32, &[2, 0, 3]);
        p.write(most, DType::F32, &[2, 3, 4, 0]);
    }
    let Body { b, args, .. } = p;
    let none = super::Strides { offset: 0, batch: 0, time: 0, kv: 0, group: 0 };
    AttendKernel { y: none, epilogue: Some(Box::new(Epilogue { body: b.finish(), args })), ..k }
}
