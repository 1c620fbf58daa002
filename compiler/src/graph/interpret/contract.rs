//! Reductions, contractions, running sums, order statistics and rounding with feedback of the interpreter.
//!
//! *Takes* operand tensors with their axes; *gives* the result in the node's storage order; *promises* sums in ascending order of the
//! summed positions, one chain per element.

use super::elementwise::position;
use super::tensor::{Tensor, around};
use super::{Eval, Fault};
use crate::graph::ir::{AxisId, Reduce, Type};

impl Eval<'_> {
    pub(super) fn reduce(&self, op: Reduce, x: &Tensor, axes: &[AxisId], ty: &Type) -> Tensor {
        // Reduced axes innermost, in storage order.
        let inner = axes.iter().filter(|a| !ty.axes.contains(a));
        let order: Vec<_> = ty.axes.iter().chain(inner).copied().collect();
        let x = self.arranged(x, axes, &order);
        let dims = self.dims(&ty.axes);
        let n = dims.iter().product::<usize>();
        let len = x.data.len() / n;
        let fold = |row: &[f64]| match op {
            Reduce::Sum => row.iter().fold(0.0, |s, v| s + v),
            Reduce::Max => row.iter().fold(row[0], |m, v| if *v > m { *v } else { m }),
            Reduce::Min => row.iter().fold(row[0], |m, v| if *v < m { *v } else { m }),
        };
        let mut out = Tensor { dims, data: x.data.chunks_exact(len).map(fold).collect() };
        if op == Reduce::Sum && ty.dtype == crate::graph::ir::DType::I32 {
            out.data.iter_mut().for_each(|v| *v = f64::from(*v as i64 as i32));
        }
        out
    }

    /// Batched product: both operands packed as (batch, row, k), k innermost, then 4 x 4 blocks of chains.
    pub(super) fn dot(&self, a: (&Tensor, &Type), b: (&Tensor, &Type), over: &[AxisId], ty: &Type) -> Tensor {
        let shared = |x: &&AxisId| !over.contains(x) && b.1.axes.contains(x) && a.1.axes.contains(x);
        let batch: Vec<_> = ty.axes.iter().filter(shared).copied().collect();
        let free = |own: &Type| own.axes.iter().filter(|x| !over.contains(x) && !batch.contains(x)).copied().collect();
        let (rows, columns): (Vec<_>, Vec<_>) = (free(a.1), free(b.1));
        let pack = |x: (&Tensor, &Type), own: &[AxisId]| self.arranged(x.0, &x.1.axes, &[&batch, own, over].concat());
        let (left, right) = (pack(a, &rows), pack(b, &columns));
        let numel = |axes: &[AxisId]| self.dims(axes).iter().product::<usize>();
        let (m, n, k) = (numel(&rows), numel(&columns), numel(over));
        let mut data = vec![0.0; numel(&batch) * m * n];
        for (i, out) in data.chunks_exact_mut(m * n).enumerate() {
            multiply(&left.data[i * m * k..(i + 1) * m * k], &right.data[i * n * k..(i + 1) * n * k], out, (m, n, k));
        }
        let axes = [batch, rows, columns].concat();
        let product = Tensor { dims: self.dims(&axes), data };
        self.arranged(&product, &axes, &ty.axes)
    }

    pub(super) fn cumsum(&self, x: &Tensor, axis: AxisId, reverse: bool, ty: &Type) -> Tensor {
        let mut out = x.clone();
        along(&mut out, position(&ty.axes, axis), reverse, |data, before, at| {
            if let Some(before) = before {
                data[at] += data[before];
            }
        });
        out
    }

    pub(super) fn scan(
        &self,
        a: (&Tensor, &Type),
        b: (&Tensor, &Type),
        axis: AxisId,
        reverse: bool,
        ty: &Type,
    ) -> Tensor {
        let a = self.arranged(a.0, &a.1.axes, &ty.axes);
        let mut out = self.arranged(b.0, &b.1.axes, &ty.axes);
        along(&mut out, position(&ty.axes, axis), reverse, |data, before, at| {
            if let Some(before) = before {
                data[at] += a.data[at] * data[before];
            }
        });
        out
    }

    /// Linear between order statistics, as numpy and torch interpolate.
    pub(super) fn quantile(&self, x: &Tensor, axes: &[AxisId], axis: AxisId, q: f64, ty: &Type) -> Tensor {
        let order: Vec<_> = ty.axes.iter().copied().chain(std::iter::once(axis)).collect();
        let x = self.arranged(x, axes, &order);
        let value = |row: &[f64]| {
            let mut row = row.to_vec();
            row.sort_by(f64::total_cmp);
            let at = q * (row.len() - 1) as f64;
            let low = libm::floor(at);
            let (a, b) = (row[low as usize], row[libm::ceil(at) as usize]);
            let t = at - low;
            if t < 0.5 { a + (b - a) * t } else { b - (b - a) * (1.0 - t) }
        };
        Tensor { dims: self.dims(&ty.axes), data: x.data.chunks_exact(self.size(axis)).map(value).collect() }
    }

    /// `[w, scale, order, upper]`; w is taken row by row with its columns innermost, `upper` as \[visit j, visit k\].
    pub(super) fn feedback_round(
        &self,
        [w, scale, order, upper]: [(&Tensor, &Type); 4],
        axis: AxisId,
        (low, high): (f64, f64),
        ty: &Type,
    ) -> Result<Tensor, Fault> {
        let n = self.size(axis);
        let with = |last: AxisId, axes: &[AxisId]| -> Vec<AxisId> {
            axes.iter().copied().filter(|a| *a != last).chain([last]).collect()
        };
        let rows = with(axis, &ty.axes);
        let mut w = self.arranged(w.0, &w.1.axes, &rows);
        let scale = self.arranged(scale.0, &scale.1.axes, &rows[..rows.len() - 1]);
        let visits = upper.1.axes.iter().copied().filter(|a| *a != axis);
        let upper = self.arranged(upper.0, &upper.1.axes, &[axis].into_iter().chain(visits).collect::<Vec<_>>());
        let order: Vec<usize> = order.0.data.iter().map(|c| *c as usize).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..n) {
            return Err(Fault(format!("the order of columns is no permutation of 0..{n}")));
        }
        for (row, scale) in w.data.chunks_exact_mut(n).zip(&scale.data) {
            for (j, c) in order.iter().enumerate() {
                let step = &upper.data[j * n..(j + 1) * n];
                let q = libm::rint(row[*c] / scale).clamp(low, high);
                let e = (row[*c] - q * scale) / step[j];
                row[*c] = q;
                order[j + 1..].iter().zip(&step[j + 1..]).for_each(|(k, u)| row[*k] -= e * u);
            }
        }
        Ok(self.arranged(&w, &rows, &ty.axes))
    }

    /// Positions of the k largest values along an axis, descending, lower position first on ties; with `values` the values.
    pub(super) fn top_k(&self, x: &Tensor, axes: &[AxisId], from: AxisId, to: AxisId, values: bool) -> Tensor {
        let at = position(axes, from);
        let (outer, extent, inner) = around(&x.dims, at);
        let k = self.size(to);
        let mut dims = x.dims.clone();
        dims[at] = k;
        let mut out = Tensor::fill(&dims, 0.0);
        for o in 0..outer {
            for i in 0..inner {
                // Adding zero makes the two zeros one, so that they tie.
                let value = |t: usize| x.data[(o * extent + t) * inner + i] + 0.0;
                let mut ranked: Vec<_> = (0..extent).collect();
                ranked.sort_by(|s, t| value(*t).total_cmp(&value(*s)).then(s.cmp(t)));
                for (rank, t) in ranked[..k].iter().enumerate() {
                    out.data[(o * k + rank) * inner + i] = if values { value(*t) } else { *t as f64 };
                }
            }
        }
        out
    }
}

/// Visits every position along an axis in running order: `f(data, position before, position)`.
fn along(x: &mut Tensor, position: usize, reverse: bool, f: impl Fn(&mut [f64], Option<usize>, usize)) {
    let (outer, extent, inner) = around(&x.dims, position);
    for o in 0..outer {
        let mut before: Option<usize> = None;
        for step in 0..extent {
            let t = if reverse { extent - 1 - step } else { step };
            let at = (o * extent + t) * inner;
            for i in 0..inner {
                f(&mut x.data, before.map(|b| b + i), at + i);
            }
            before = Some(at);
        }
    }
}

/// `out[m, n] = sum_k a[m, k] b[n, k]`, k ascending.
fn multiply(a: &[f64], b: &[f64], out: &mut [f64], (m, n, k): (usize, usize, usize)) {
    for i in (0..m).step_by(4) {
        for j in (0..n).step_by(4) {
            if i + 4 <= m && j + 4 <= n {
                block(&a[i * k..], &b[j * k..], &mut out[i * n + j..], (n, k));
                continue;
            }
            for i in i..m.min(i + 4) {
                for j in j..n.min(j + 4) {
                    let products = a[i * k..(i + 1) * k].iter().zip(&b[j * k..(j + 1) * k]);
                    out[i * n + j] = products.fold(0.0, |s, (x, y)| s + x * y);
                }
            }
        }
    }
}

/// A 4 x 4 block of [`multiply`]: sixteen chains at once.
fn block(a: &[f64], b: &[f64], out: &mut [f64], (n, k): (usize, usize)) {
    let (a0, a1, a2, a3) = (&a[..k], &a[k..2 * k], &a[2 * k..3 * k], &a[3 * k..4 * k]);
    let (b0, b1, b2, b3) = (&b[..k], &b[k..2 * k], &b[2 * k..3 * k], &b[3 * k..4 * k]);
    let mut sum = [[0.0f64; 4]; 4];
    for t in 0..k {
        let x = [a0[t], a1[t], a2[t], a3[t]];
        let y = [b0[t], b1[t], b2[t], b3[t]];
        for i in 0..4 {
            for j in 0..4 {
                sum[i][j] += x[i] * y[j];
            }
        }
    }
    for (i, row) in sum.iter().enumerate() {
        out[i * n..i * n + 4].copy_from_slice(row);
    }
}
