//! Attention of the interpreter: one query at a time, straight from the definition.
//!
//! *Takes* q, k, v, document ids; *gives* the output, the log-sum-exp or one operand's gradient; *promises* the masks of
//! [`Attend`]: a key counts when it is not later (causal), less than `window` back, and of the same document.

use super::Eval;
use super::tensor::Tensor;
use crate::graph::ir::{Attend, AttendArg, AxisId, Type};

/// An operand with its type.
pub(super) type Arg<'a> = (&'a Tensor, &'a Type);

/// Axes in the order the loops want: batch axes, group axes, time, dim.
struct Layout {
    batch: Vec<AxisId>,
    group: Vec<AxisId>,
    how: Attend,
    batches: usize,
    groups: usize,
    time: usize,
    dim: usize,
}

impl Layout {
    fn new(eval: &Eval<'_>, how: Attend, q: &Type, k: &Type) -> Self {
        let own = |a: &&AxisId| **a != how.time && **a != how.dim;
        let batch: Vec<_> = q.axes.iter().filter(own).filter(|a| k.axes.contains(a)).copied().collect();
        let group: Vec<_> = q.axes.iter().filter(own).filter(|a| !k.axes.contains(a)).copied().collect();
        let numel = |axes: &[AxisId]| eval.dims(axes).iter().product();
        let (batches, groups) = (numel(&batch), numel(&group));
        Layout { batch, group, how, batches, groups, time: eval.size(how.time), dim: eval.size(how.dim) }
    }

    fn query_axes(&self) -> Vec<AxisId> {
        [&self.batch[..], &self.group, &[self.how.time, self.how.dim]].concat()
    }

    fn key_axes(&self) -> Vec<AxisId> {
        [&self.batch[..], &[self.how.time, self.how.dim]].concat()
    }

    fn row_axes(&self) -> Vec<AxisId> {
        [&self.batch[..], &self.group, &[self.how.time]].concat()
    }

    /// Keys that query `t` of batch `b` sees, ascending.
    fn visible(&self, b: usize, t: usize, document: Option<&Tensor>) -> Vec<usize> {
        let end = if self.how.causal { t + 1 } else { self.time };
        let start = self.how.window.map_or(0, |w| (t + 1).saturating_sub(w as usize));
        let same = |s: &usize| document.is_none_or(|d| d.data[b * self.time + s] == d.data[b * self.time + t]);
        (start..end).filter(same).collect()
    }

    /// Scaled scores of a query row against visible keys.
    fn scores(&self, q: &[f64], k: &[f64], visible: &[usize]) -> Vec<f64> {
        visible.iter().map(|s| dot(q, &k[s * self.dim..(s + 1) * self.dim]) * self.how.scale.get()).collect()
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).fold(0.0, |s, (a, b)| s + a * b)
}

fn log_sum_exp(scores: &[f64]) -> f64 {
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| if *s > m { *s } else { m });
    max + libm::log(scores.iter().fold(0.0, |sum, s| sum + libm::exp(s - max)))
}

fn add_scaled(to: &mut [f64], factor: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(t, v)| *t += factor * v);
}

impl Eval<'_> {
    /// `Attend` when `v` is given, else `AttendLse`.
    pub(super) fn attend(
        &self,
        how: Attend,
        q: Arg,
        k: Arg,
        v: Option<Arg>,
        document: Option<Arg>,
        ty: &Type,
    ) -> Tensor {
        let l = Layout::new(self, how, q.1, k.1);
        let (query, key) = (l.query_axes(), l.key_axes());
        let q = self.arranged(q.0, &q.1.axes, &query);
        let k = self.arranged(k.0, &k.1.axes, &key);
        let v = v.map(|v| self.arranged(v.0, &v.1.axes, &key));
        let document = document.map(|d| self.arranged(d.0, &d.1.axes, &key[..key.len() - 1]));
        let rows = l.batches * l.groups * l.time;
        let mut out = vec![0.0; if v.is_some() { rows * l.dim } else { rows }];
        for b in 0..l.batches {
            let span = b * l.time * l.dim..(b + 1) * l.time * l.dim;
            let keys = &k.data[span.clone()];
            for t in 0..l.time {
                let visible = l.visible(b, t, document.as_ref());
                for g in 0..l.groups {
                    let row = (b * l.groups + g) * l.time + t;
                    let scores = l.scores(&q.data[row * l.dim..(row + 1) * l.dim], keys, &visible);
                    let lse = log_sum_exp(&scores);
                    let Some(v) = &v else {
                        out[row] = lse;
                        continue;
                    };
                    let values = &v.data[span.clone()];
                    let y = &mut out[row * l.dim..(row + 1) * l.dim];
                    for (s, score) in visible.iter().zip(&scores) {
                        add_scaled(y, libm::exp(score - lse), &values[s * l.dim..(s + 1) * l.dim]);
                    }
                }
            }
        }
        let axes = if v.is_some() { query } else { l.row_axes() };
        let out = Tensor { dims: self.dims(&axes), data: out };
        self.arranged(&out, &axes, &ty.axes)
    }

    /// `args`: q, k, v, y, lse, dy [, document]. With P = exp(S - lse), dP = dy vᵀ, D = sum(dy y): dS = scale P (dP - D), dq = dS k,
    /// dk = dSᵀ q, dv = Pᵀ dy, the last two summed over the group.
    pub(super) fn attend_grad(&self, how: Attend, which: AttendArg, args: &[Arg], ty: &Type) -> Tensor {
        let l = Layout::new(self, how, args[0].1, args[1].1);
        let (query, key, row_axes) = (l.query_axes(), l.key_axes(), l.row_axes());
        let [q, k, v, y, lse, dy] = [0, 1, 2, 3, 4, 5].map(|i| {
            let to = if i == 1 || i == 2 {
                &key
            } else if i == 4 {
                &row_axes
            } else {
                &query
            };
            self.arranged(args[i].0, &args[i].1.axes, to)
        });
        let document = args.get(6).map(|d| self.arranged(d.0, &d.1.axes, &key[..key.len() - 1]));
        let axes = if which == AttendArg::Q { &query } else { &key };
        let mut out = Tensor::fill(&self.dims(axes), 0.0);
        for b in 0..l.batches {
            let base = b * l.time * l.dim;
            let keys = &k.data[base..base + l.time * l.dim];
            let at = |s: usize| base + s * l.dim..base + (s + 1) * l.dim;
            for t in 0..l.time {
                let visible = l.visible(b, t, document.as_ref());
                for g in 0..l.groups {
                    let row = (b * l.groups + g) * l.time + t;
                    let own = row * l.dim..(row + 1) * l.dim;
                    let (q, dy) = (&q.data[own.clone()], &dy.data[own.clone()]);
                    let mean = dot(dy, &y.data[own.clone()]);
                    for (s, score) in visible.iter().zip(l.scores(q, keys, &visible)) {
                        let p = libm::exp(score - lse.data[row]);
                        let ds = how.scale.get() * p * (dot(dy, &v.data[at(*s)]) - mean);
                        match which {
                            AttendArg::Q => add_scaled(&mut out.data[own.clone()], ds, &k.data[at(*s)]),
                            AttendArg::K => add_scaled(&mut out.data[at(*s)], ds, q),
                            AttendArg::V => add_scaled(&mut out.data[at(*s)], p, dy),
                        }
                    }
                }
            }
        }
        self.arranged(&out, axes, &ty.axes)
    }

    /// `-log softmax(logits)[target]`; with `g`, `(softmax - onehot) g`.
    pub(super) fn cross_entropy(
        &self,
        logits: Arg,
        target: Arg,
        g: Option<Arg>,
        axis: AxisId,
        ty: &Type,
    ) -> Result<Tensor, super::Fault> {
        let rows: Vec<_> = logits.1.axes.iter().copied().filter(|a| *a != axis).collect();
        let order: Vec<_> = rows.iter().copied().chain(std::iter::once(axis)).collect();
        let x = self.arranged(logits.0, &logits.1.axes, &order);
        let target = self.arranged(target.0, &target.1.axes, &rows);
        let g = g.map(|g| self.arranged(g.0, &g.1.axes, &rows));
        let width = self.size(axis);
        let mut out = Vec::new();
        for (i, row) in x.data.chunks_exact(width).enumerate() {
            let target = target.data[i];
            if !(0.0..width as f64).contains(&target) {
                return Err(super::Fault(format!("the target {target} is not below the {width} classes")));
            }
            let lse = log_sum_exp(row);
            match &g {
                None => out.push(lse - row[target as usize]),
                Some(g) => {
                    let class =
                        |(j, s): (usize, &f64)| libm::exp(s - lse) - if j == target as usize { 1.0 } else { 0.0 };
                    out.extend(row.iter().enumerate().map(|c| class(c) * g.data[i]));
                }
            }
        }
        let axes = if g.is_some() { order } else { rows };
        Ok(self.arranged(&Tensor { dims: self.dims(&axes), data: out }, &axes, &ty.axes))
    }
}
