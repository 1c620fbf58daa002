//! Element-wise ops, broadcasts and data movement of the interpreter.
//!
//! *Takes* operand tensors with their axes; *gives* the result in the node's storage order; *promises* exact moves (no arithmetic).

use super::tensor::{Tensor, aligned, around, arrange, run_step, walk};
use super::{Eval, Fault};
use crate::graph::ir::{AxisId, Binary, Type, Unary};
use crate::graph::scalar;

impl Eval<'_> {
    pub(super) fn unary(&self, op: Unary, x: &Tensor, ty: &Type) -> Tensor {
        let integer = !ty.dtype.is_float();
        Tensor { dims: x.dims.clone(), data: x.data.iter().map(|v| scalar::unary(op, *v, integer)).collect() }
    }

    pub(super) fn binary(&self, op: Binary, args: [(&Tensor, &Type); 2], ty: &Type) -> Result<Tensor, Fault> {
        let [(x, x_ty), (y, y_ty)] = args;
        let integer = !x_ty.dtype.is_float();
        let dims = self.dims(&ty.axes);
        let steps = [aligned(&x_ty.axes, &x.dims, &ty.axes), aligned(&y_ty.axes, &y.dims, &ty.axes)];
        let (i, j) = (run_step(&steps[0]), run_step(&steps[1]));
        let mut data = vec![0.0; dims.iter().product()];
        let mut defined = true;
        walk(&dims, &steps, |at, from, run| {
            for (n, out) in data[at..at + run].iter_mut().enumerate() {
                match scalar::binary(op, x.data[from[0] + n * i], y.data[from[1] + n * j], integer) {
                    Some(value) => *out = value,
                    None => defined = false,
                }
            }
        });
        if defined { Ok(Tensor { dims, data }) } else { Err(Fault("integer division by zero".to_string())) }
    }

    pub(super) fn select(&self, args: [(&Tensor, &Type); 3], ty: &Type) -> Tensor {
        let dims = self.dims(&ty.axes);
        let steps = args.map(|(x, x_ty)| aligned(&x_ty.axes, &x.dims, &ty.axes));
        let step = [run_step(&steps[0]), run_step(&steps[1]), run_step(&steps[2])];
        let mut data = vec![0.0; dims.iter().product()];
        walk(&dims, &steps, |at, from, run| {
            for (n, out) in data[at..at + run].iter_mut().enumerate() {
                let chosen = if args[0].0.data[from[0] + n * step[0]] != 0.0 { 1 } else { 2 };
                *out = args[chosen].0.data[from[chosen] + n * step[chosen]];
            }
        });
        Tensor { dims, data }
    }

    /// Copies to the axes of `ty`, repeating along new ones.
    pub(super) fn arranged(&self, x: &Tensor, axes: &[AxisId], to: &[AxisId]) -> Tensor {
        arrange(x, axes, to, &self.dims(to))
    }

    /// A merge: the parts brought together, outermost first, at the place of the first of them.
    pub(super) fn merge(&self, x: &Tensor, axes: &[AxisId], parts: &[AxisId], to: AxisId, ty: &Type) -> Tensor {
        let order: Vec<_> = ty.axes.iter().flat_map(|a| if *a == to { parts.to_vec() } else { vec![*a] }).collect();
        Tensor { dims: self.dims(&ty.axes), data: self.arranged(x, axes, &order).data }
    }

    /// The same data under other extents.
    pub(super) fn reshaped(&self, x: &Tensor, ty: &Type) -> Tensor {
        Tensor { dims: self.dims(&ty.axes), data: x.data.clone() }
    }

    /// Positions `start..` of the axis at `position`, as many as the result has there.
    pub(super) fn slice(&self, x: &Tensor, position: usize, start: usize, ty: &Type, len: usize) -> Tensor {
        let (outer, extent, inner) = around(&x.dims, position);
        let mut data = Vec::with_capacity(outer * len * inner);
        for o in 0..outer {
            data.extend_from_slice(&x.data[(o * extent + start) * inner..(o * extent + start + len) * inner]);
        }
        Tensor { dims: self.dims(&ty.axes), data }
    }

    /// `x` at `start` of a zero tensor that is larger along the axis at `position` of the result.
    pub(super) fn pad(&self, x: &Tensor, position: usize, start: usize, len: usize, ty: &Type) -> Tensor {
        let mut out = Tensor::fill(&self.dims(&ty.axes), 0.0);
        put(&mut out, x, position, start, len);
        out
    }

    pub(super) fn concat(&self, parts: &[(&Tensor, &Type)], from: &[AxisId], to: AxisId, ty: &Type) -> Tensor {
        let mut out = Tensor::fill(&self.dims(&ty.axes), 0.0);
        let position = position(&ty.axes, to);
        let mut start = 0;
        for ((x, x_ty), axis) in parts.iter().zip(from) {
            let order: Vec<_> = ty.axes.iter().map(|a| if *a == to { *axis } else { *a }).collect();
            let len = self.size(*axis);
            put(&mut out, &self.arranged(x, &x_ty.axes, &order), position, start, len);
            start += len;
        }
        out
    }

    pub(super) fn shift(&self, x: &Tensor, position: usize, n: i64) -> Tensor {
        let (outer, extent, inner) = around(&x.dims, position);
        let mut out = Tensor::fill(&x.dims, 0.0);
        for o in 0..outer {
            for t in 0..extent {
                let from = t as i64 - n;
                if from >= 0 && (from as usize) < extent {
                    let (to, from) = ((o * extent + t) * inner, (o * extent + from as usize) * inner);
                    out.data[to..to + inner].copy_from_slice(&x.data[from..from + inner]);
                }
            }
        }
        out
    }

    pub(super) fn gather(&self, table: (&Tensor, &Type), index: &Tensor, axis: AxisId, ty: &Type) -> Tensor {
        let (rows, width) = (self.size(axis), table.0.data.len() / self.size(axis));
        let order: Vec<_> = std::iter::once(axis).chain(table.1.axes.iter().copied().filter(|a| *a != axis)).collect();
        let table = self.arranged(table.0, &table.1.axes, &order);
        let mut data = Vec::with_capacity(index.data.len() * width);
        for i in &index.data {
            let row = clamp(*i, rows);
            data.extend_from_slice(&table.data[row * width..(row + 1) * width]);
        }
        Tensor { dims: self.dims(&ty.axes), data }
    }

    pub(super) fn scatter_add(
        &self,
        index: (&Tensor, &Type),
        src: (&Tensor, &Type),
        axis: AxisId,
        ty: &Type,
    ) -> Tensor {
        let order: Vec<_> = index.1.axes.iter().chain(&ty.axes[1..]).copied().collect();
        let src = self.arranged(src.0, &src.1.axes, &order);
        let mut out = Tensor::fill(&self.dims(&ty.axes), 0.0);
        let (rows, width) = (self.size(axis), out.data.len() / self.size(axis));
        for (n, i) in index.0.data.iter().enumerate() {
            let row = clamp(*i, rows);
            for (to, from) in out.data[row * width..(row + 1) * width].iter_mut().zip(&src.data[n * width..]) {
                *to += from;
            }
        }
        out
    }

    pub(super) fn iota(&self, axis: AxisId) -> Tensor {
        Tensor::from_fn(&[self.size(axis)], |i| i as f64)
    }
}

/// Index rule of gather and scatter-add: out of range means the nearest row.
fn clamp(i: f64, rows: usize) -> usize {
    i.clamp(0.0, (rows - 1) as f64) as usize
}

/// Writes `x` (extent `len` along `position`) into `out` from `start` on.
fn put(out: &mut Tensor, x: &Tensor, position: usize, start: usize, len: usize) {
    let (outer, extent, inner) = around(&out.dims, position);
    for o in 0..outer {
        let to = (o * extent + start) * inner;
        out.data[to..to + len * inner].copy_from_slice(&x.data[o * len * inner..(o + 1) * len * inner]);
    }
}

/// Position of an axis; the verifier has made sure that it is there.
pub(super) fn position(axes: &[AxisId], axis: AxisId) -> usize {
    axes.iter().position(|a| *a == axis).unwrap_or(0)
}
