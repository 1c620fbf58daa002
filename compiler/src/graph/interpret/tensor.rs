//! Dense f64 tensors and walks over them by named axes.
//!
//! *Takes* data in row-major order; *gives* copies, transpositions and strided walks; *promises* nothing about graphs.

use crate::graph::ir::AxisId;

/// A dense tensor. `data` is row-major over `dims` (outermost first); booleans are 0 and 1, integers are exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first; empty for a scalar.
    pub dims: Vec<usize>,
    /// `product(dims)` values.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of given extents and content; `None` if their sizes disagree.
    pub fn new(dims: &[usize], data: Vec<f64>) -> Option<Self> {
        (dims.iter().product::<usize>() == data.len()).then(|| Tensor { dims: dims.to_vec(), data })
    }

    /// The same number everywhere.
    pub fn fill(dims: &[usize], value: f64) -> Self {
        Tensor { dims: dims.to_vec(), data: vec![value; dims.iter().product()] }
    }

    /// A scalar.
    pub fn scalar(value: f64) -> Self {
        Tensor { dims: Vec::new(), data: vec![value] }
    }

    /// A function of the row-major position.
    pub fn from_fn(dims: &[usize], f: impl FnMut(usize) -> f64) -> Self {
        Tensor { dims: dims.to_vec(), data: (0..dims.iter().product()).map(f).collect() }
    }
}

/// Row-major strides of extents.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i] * dims[i];
    }
    out
}

/// Stride of an operand stored as (`axes`, `dims`) along each axis of `along`; 0 where it has no such axis.
pub fn aligned(axes: &[AxisId], dims: &[usize], along: &[AxisId]) -> Vec<usize> {
    let own = strides(dims);
    along.iter().map(|a| axes.iter().position(|x| x == a).map_or(0, |i| own[i])).collect()
}

/// Calls `f(result offset, operand offsets, run length)` for every innermost run of a row-major walk over `dims`; within
/// a run, the result advances by 1 and operand i by `steps[i].last()` (1 element in all if `dims` is empty).
pub fn walk(dims: &[usize], steps: &[Vec<usize>], mut f: impl FnMut(usize, &[usize], usize)) {
    let (outer, run) = match dims.split_last() {
        Some((run, outer)) => (outer, *run),
        None => (dims, 1),
    };
    let mut at = vec![0; outer.len()];
    let mut offsets = vec![0; steps.len()];
    let mut result = 0;
    if dims.contains(&0) {
        return;
    }
    loop {
        f(result, &offsets, run);
        result += run;
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            at[axis] += 1;
            for (offset, step) in offsets.iter_mut().zip(steps) {
                *offset += step[axis];
            }
            if at[axis] < outer[axis] {
                break;
            }
            for (offset, step) in offsets.iter_mut().zip(steps) {
                *offset -= step[axis] * outer[axis];
            }
            at[axis] = 0;
        }
    }
}

/// Element step of a walk's runs for one operand.
pub fn run_step(step: &[usize]) -> usize {
    step.last().copied().unwrap_or(0)
}

/// Copies `x`, stored along `axes`, to the order and extent of `to` (repeating along axes it lacks).
pub fn arrange(x: &Tensor, axes: &[AxisId], to: &[AxisId], to_dims: &[usize]) -> Tensor {
    if axes == to {
        return x.clone();
    }
    let steps = [aligned(axes, &x.dims, to)];
    let step = run_step(&steps[0]);
    let mut data = vec![0.0; to_dims.iter().product()];
    walk(to_dims, &steps, |at, from, run| {
        for (i, out) in data[at..at + run].iter_mut().enumerate() {
            *out = x.data[from[0] + i * step];
        }
    });
    Tensor { dims: to_dims.to_vec(), data }
}

/// `(outer, extent, inner)` of an axis position: element (o, i, n) lies at `(o * extent + i) * inner + n`.
pub fn around(dims: &[usize], position: usize) -> (usize, usize, usize) {
    (dims[..position].iter().product(), dims[position], dims[position + 1..].iter().product())
}
