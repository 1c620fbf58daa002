//! Kernels run by their descriptions: the schedule's own check, without any code generator.
//!
//! *Takes* kernel descriptions and raw memory; *gives* the memory after them; *promises* the meaning of [`crate::kernel`], with sums in f64 and one
//! rounding per store. Bodies and epilogues are run by the graph interpreter on tensors gathered by the description's strides; products,
//! attention and scatter-adds are plain loops. Slow on purpose.

use super::{Memory, Scheduled};
use crate::graph::interpret::{Contents, Options, Tensor, values};
use crate::graph::ir::{AxisId, DType, EffectMode, Graph, Op};
use crate::graph::scalar;
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::kernel::feedback::Feedback;
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::row::Row;
use crate::kernel::scatter::Scatter;
use crate::kernel::{Kernel, epilogue::EpilogueArg};
use std::collections::BTreeMap;

/// A byte address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Which segment of the [`Heap`].
    pub segment: usize,
    /// Bytes from its start.
    pub offset: u64,
}

/// Raw memory in segments. New memory is filled with 0xff: NaN for floats.
#[derive(Clone, Debug, Default)]
pub struct Heap {
    /// The bytes.
    pub segments: Vec<Vec<u8>>,
}

type Outcome<T> = Result<T, String>;

impl Heap {
    /// Adds a segment and gives its start.
    pub fn add(&mut self, bytes: usize) -> Pointer {
        self.segments.push(vec![0xff; bytes]);
        Pointer { segment: self.segments.len() - 1, offset: 0 }
    }

    fn range(&self, p: Pointer, dtype: DType, element: i64) -> Outcome<std::ops::Range<usize>> {
        let at = p.offset as i64 + element * dtype.bytes() as i64;
        let len = self.segments[p.segment].len() as i64;
        if at < 0 || at + dtype.bytes() as i64 > len {
            return Err(format!("element {element} lies outside of its {len} bytes"));
        }
        Ok(at as usize..at as usize + dtype.bytes())
    }

    /// An element.
    pub fn load(&self, p: Pointer, dtype: DType, element: i64) -> Outcome<f64> {
        let bytes = &self.segments[p.segment][self.range(p, dtype, element)?];
        Ok(match (dtype, bytes) {
            (DType::F32, [a, b, c, d]) => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
            (DType::I32, [a, b, c, d]) => f64::from(i32::from_le_bytes([*a, *b, *c, *d])),
            (DType::Bf16, [a, b]) => half::bf16::from_le_bytes([*a, *b]).to_f64(),
            (DType::F16, [a, b]) => half::f16::from_le_bytes([*a, *b]).to_f64(),
            (DType::I8, [a]) => f64::from(*a as i8),
            (DType::Bool, [a]) => f64::from(*a),
            _ => return Err("an element has the wrong width".to_string()),
        })
    }

    /// Rounds and stores an element.
    pub fn store(&mut self, p: Pointer, dtype: DType, element: i64, x: f64) -> Outcome<()> {
        let range = self.range(p, dtype, element)?;
        let x = scalar::cast(x, dtype);
        let bytes = &mut self.segments[p.segment][range];
        match dtype {
            DType::F32 => bytes.copy_from_slice(&(x as f32).to_le_bytes()),
            DType::I32 => bytes.copy_from_slice(&(x as i32).to_le_bytes()),
            DType::Bf16 => bytes.copy_from_slice(&half::bf16::from_f64(x).to_le_bytes()),
            DType::F16 => bytes.copy_from_slice(&half::f16::from_f64(x).to_le_bytes()),
            DType::I8 => bytes.copy_from_slice(&(x as i8).to_le_bytes()),
            DType::Bool => bytes.copy_from_slice(&[u8::from(x != 0.0)]),
        }
        Ok(())
    }
}

/// How [`run_with`] runs a kernel.
pub type Runner<'r> = dyn FnMut(&Kernel, &[Pointer], &mut Heap) -> Result<(), String> + 'r;

/// Runs all kernels of a schedule by their descriptions, see [`run_with`].
pub fn run(s: &Scheduled, inputs: &Contents) -> Outcome<Contents> {
    run_with(s, inputs, &mut kernel)
}

/// Runs all kernels of a schedule on given buffer contents. Gives every buffer of the graph afterwards; buffers not given start at zero
/// if the graph's kernels only accumulate into them, else undefined.
pub fn run_with(s: &Scheduled, inputs: &Contents, runner: &mut Runner<'_>) -> Outcome<Contents> {
    let g = &s.graph;
    let mut heap = Heap::default();
    let dims = |axes: &[AxisId]| -> Vec<usize> { axes.iter().map(|a| g.axes[a.0 as usize].size).collect() };
    let mut place = BTreeMap::new();
    for (i, buffer) in g.buffers.iter().enumerate() {
        let id = crate::graph::ir::BufferId(i as u32);
        let numel: usize = dims(&buffer.ty.axes).iter().product();
        let p = heap.add(numel * buffer.ty.dtype.bytes());
        let given = inputs.get(&buffer.name).map(|t| &t.data).or(g.constants.get(&id));
        for e in 0..numel {
            match given {
                Some(data) => heap.store(p, buffer.ty.dtype, e as i64, data[e])?,
                None if buffer.kind == crate::graph::ir::BufferKind::Grad => {
                    heap.store(p, buffer.ty.dtype, e as i64, 0.0)?;
                }
                None => {}
            }
        }
        place.insert(Memory::Buffer(id), p);
    }
    for (i, value) in s.values.iter().enumerate() {
        place.insert(Memory::Value(i as u32), heap.add(value.numel * value.dtype.bytes()));
    }
    for (i, step) in s.steps.iter().enumerate() {
        let args: Vec<_> = step
            .args
            .iter()
            .map(|a| {
                let base = match (place.get(&a.memory), a.memory) {
                    (Some(p), _) => *p,
                    (None, Memory::Constant(bits)) => {
                        let p = heap.add(4);
                        heap.store(p, DType::F32, 0, f64::from(f32::from_bits(bits)))?;
                        p
                    }
                    (None, other) => return Err(format!("{other:?} has no memory")),
                };
                Ok(Pointer { offset: base.offset + a.offset, ..base })
            })
            .collect::<Outcome<_>>()?;
        runner(&step.kernel, &args, &mut heap).map_err(|why| format!("step {i}: {why}\n{}", step.kernel.text()))?;
    }
    let mut out = Contents::new();
    for (i, buffer) in g.buffers.iter().enumerate() {
        let p = place[&Memory::Buffer(crate::graph::ir::BufferId(i as u32))];
        let dims = dims(&buffer.ty.axes);
        let numel: usize = dims.iter().product();
        let data = (0..numel as i64).map(|e| heap.load(p, buffer.ty.dtype, e)).collect::<Outcome<Vec<_>>>()?;
        out.insert(buffer.name.clone(), Tensor { dims, data });
    }
    Ok(out)
}

/// Runs one kernel, all its launches and tasks.
pub fn kernel(k: &Kernel, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    if args.len() != k.accesses().len() {
        return Err(format!("{} arguments given, {} wanted", args.len(), k.accesses().len()));
    }
    match k {
        Kernel::Row(k) => row(k, args, heap),
        Kernel::Gemm(k) => gemm(k, args, heap),
        Kernel::Attend(k) => match k.pass {
            Pass::Forward => attend(k, args, heap),
            Pass::Backward => attend_grad(k, args, heap),
        },
        Kernel::Scatter(k) => scatter(k, args, heap),
        Kernel::Quantile(k) => quantile(k.rows, k.n, k.q, args, heap),
        Kernel::Feedback(k) => feedback(k, args, heap),
    }
}

fn dims(g: &Graph, axes: &[AxisId]) -> Vec<usize> {
    axes.iter().map(|a| g.axes[a.0 as usize].size).collect()
}

/// Offsets of all elements of a strided tensor, in row-major order.
pub(super) fn offsets(dims: &[usize], strides: &[i64], start: i64) -> Vec<i64> {
    let mut out = vec![start];
    for (n, s) in dims.iter().zip(strides) {
        out = out.iter().flat_map(|o| (0..*n as i64).map(move |i| o + i * s)).collect();
    }
    out
}

fn row(k: &Row, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    k.check()?;
    let g = &k.graph;
    let mut contents = Contents::new();
    let read = |b: usize| g.nodes.iter().any(|n| n.op == Op::Read(crate::graph::ir::BufferId(b as u32)));
    for (i, buffer) in g.buffers.iter().enumerate().filter(|(i, _)| read(*i)) {
        let dims = dims(g, &buffer.ty.axes);
        let at = offsets(&dims, &k.args[i].strides, k.args[i].offset);
        let data = at.iter().map(|o| heap.load(args[i], buffer.ty.dtype, *o)).collect::<Outcome<Vec<_>>>()?;
        contents.insert(buffer.name.clone(), Tensor { dims, data });
    }
    // A column sum is added up task by task from its operand.
    let wanted: Vec<_> = g
        .effects
        .iter()
        .map(|e| if k.args[e.buffer.0 as usize].per_task { g.nodes[e.value.0 as usize].args[0] } else { e.value })
        .collect();
    let results = values(g, &contents, &wanted, &Options::default()).map_err(|e| e.to_string())?;
    for ((effect, value), from) in g.effects.iter().zip(results).zip(wanted) {
        let b = effect.buffer.0 as usize;
        let (arg, ty) = (&k.args[b], &g.buffers[b].ty);
        let value = if arg.per_task { partial_sums(k, b, from, &value)? } else { value };
        let from_axes = &g.nodes[from.0 as usize].ty.axes;
        let (list, strides) = if arg.per_task {
            let numel: usize = dims(g, &ty.axes).iter().product();
            (value.dims.clone(), [&[numel as i64], &arg.strides[..]].concat())
        } else {
            // The value's own order.
            let stride = |a: &AxisId| ty.axes.iter().position(|x| x == a).map_or(0, |i| arg.strides[i]);
            (value.dims.clone(), from_axes.iter().map(stride).collect())
        };
        for (x, o) in value.data.iter().zip(offsets(&list, &strides, arg.offset)) {
            let old = match effect.mode {
                EffectMode::Assign => 0.0,
                EffectMode::Accumulate => heap.load(args[b], ty.dtype, o)?,
            };
            heap.store(args[b], ty.dtype, o, old + x)?;
        }
    }
    Ok(())
}

/// `[tasks, kept..]` in the order of the buffer's type.
fn partial_sums(k: &Row, buffer: usize, operand: crate::graph::ir::NodeId, value: &Tensor) -> Outcome<Tensor> {
    let g = &k.graph;
    let kept = &g.buffers[buffer].ty.axes;
    let from = &g.nodes[operand.0 as usize].ty.axes;
    let numel: usize = dims(g, kept).iter().product();
    let mut data = vec![0.0; k.tasks() * numel];
    let own: Vec<i64> = crate::graph::interpret::tensor::strides(&dims(g, kept)).iter().map(|s| *s as i64).collect();
    let rows: Vec<i64> =
        crate::graph::interpret::tensor::strides(&dims(g, &k.outer)).iter().map(|s| *s as i64).collect();
    let at = |axes: &[AxisId], strides: &[i64]| -> Vec<i64> {
        from.iter().map(|a| axes.iter().position(|x| x == a).map_or(0, |i| strides[i])).collect()
    };
    let all = dims(g, from);
    let targets = offsets(&all, &at(kept, &own), 0);
    let row_of = offsets(&all, &at(&k.outer, &rows), 0);
    for ((x, t), r) in value.data.iter().zip(targets).zip(row_of) {
        data[r as usize / k.block * numel + t as usize] += x;
    }
    Ok(Tensor { dims: [&[k.tasks()], &dims(g, kept)[..]].concat(), data })
}

fn gemm(k: &Gemm, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    let g = &k.epilogue;
    let batches = offsets(&k.batch, &vec![0; k.batch.len()], 0).len();
    let batch_of = |strides: &[i64]| offsets(&k.batch, strides, 0);
    let matrix = |heap: &Heap, o: &Operand, p: Pointer, rows: usize, base: i64| -> Outcome<Vec<f64>> {
        let at = offsets(&[rows, k.k], &[o.row, o.k], o.offset + base);
        at.iter().map(|e| Ok(scalar::cast(heap.load(p, o.dtype, *e)?, k.compute))).collect()
    };
    let (a_at, b_at) = (batch_of(&k.a.batch), batch_of(&k.b.batch));
    let mut acc = Vec::with_capacity(batches * k.m * k.n);
    for i in 0..batches {
        let a = matrix(heap, &k.a, args[0], k.m, a_at[i])?;
        let b = matrix(heap, &k.b, args[1], k.n, b_at[i])?;
        for m in 0..k.m {
            for n in 0..k.n {
                acc.push((0..k.k).map(|x| a[m * k.k + x] * b[n * k.k + x]).sum::<f64>());
            }
        }
        if k.symmetric
            && (0..k.m).any(|m| {
                (0..m).any(|n| {
                    let (x, y) = (acc[(i * k.m + m) * k.n + n], acc[(i * k.m + n) * k.n + m]);
                    (x - y).abs() > 1e-9 * (1.0 + x.abs())
                })
            })
        {
            return Err("a product that is said to be symmetric is not".to_string());
        }
    }
    if k.accumulate && g.effects.len() != 1 {
        return Err("an accumulating product has one output".to_string());
    }
    if g.effects.iter().any(|e| (e.mode == EffectMode::Accumulate) != k.accumulate) {
        return Err("only an accumulating product has an accumulating effect".to_string());
    }
    if g.effects.iter().any(|e| k.args[e.buffer.0 as usize - 1].n != 1) {
        return Err("an output of a product is not contiguous along n".to_string());
    }
    epilogue((g, &k.args), acc, &args[2..], heap)
}

/// Runs an epilogue on finished results, batch by batch, row by row; `pointers` are those of the buffers 1.. .
fn epilogue(
    (g, args): (&Graph, &[EpilogueArg]),
    results: Vec<f64>,
    pointers: &[Pointer],
    heap: &mut Heap,
) -> Outcome<()> {
    let mut contents = Contents::new();
    let strides_of = |b: usize, axes: &[AxisId]| -> Vec<i64> {
        let has = |a: &AxisId| g.buffers[b].ty.axes.contains(a);
        axes.iter().map(|a| if has(a) { args[b - 1].stride(a.0) } else { 0 }).collect()
    };
    let read = |b: usize| g.nodes.iter().any(|n| n.op == Op::Read(crate::graph::ir::BufferId(b as u32)));
    for (i, buffer) in g.buffers.iter().enumerate().skip(1).filter(|(i, _)| read(*i)) {
        let dims = dims(g, &buffer.ty.axes);
        let at = offsets(&dims, &strides_of(i, &buffer.ty.axes), args[i - 1].offset);
        let data = at.iter().map(|o| heap.load(pointers[i - 1], buffer.ty.dtype, *o)).collect::<Outcome<Vec<_>>>()?;
        contents.insert(buffer.name.clone(), Tensor { dims, data });
    }
    let results = Tensor { dims: dims(g, &g.buffers[0].ty.axes), data: results };
    contents.insert(g.buffers[0].name.clone(), results);
    let wanted: Vec<_> = g.effects.iter().map(|e| e.value).collect();
    let results = values(g, &contents, &wanted, &Options::default()).map_err(|e| e.to_string())?;
    for (effect, value) in g.effects.iter().zip(results) {
        let b = effect.buffer.0 as usize;
        let strides = strides_of(b, &g.nodes[effect.value.0 as usize].ty.axes);
        let (to, dtype) = (pointers[b - 1], g.buffers[b].ty.dtype);
        for (x, o) in value.data.iter().zip(offsets(&value.dims, &strides, args[b - 1].offset)) {
            let old = match effect.mode {
                EffectMode::Assign => 0.0,
                EffectMode::Accumulate => heap.load(to, dtype, o)?,
            };
            heap.store(to, dtype, o, old + x)?;
        }
    }
    Ok(())
}

/// Element of an attention tensor.
fn at(s: &Strides, b: usize, t: usize, kv: usize, group: usize, d: usize) -> i64 {
    s.offset + b as i64 * s.batch + t as i64 * s.time + kv as i64 * s.kv + group as i64 * s.group + d as i64
}

/// Visible keys of a query.
fn visible(k: &AttendKernel, document: Option<&[f64]>, q: usize, key: usize) -> bool {
    let back = q as i64 - key as i64;
    (!k.causal || back >= 0) && k.window.is_none_or(|w| back < i64::from(w)) && document.is_none_or(|d| d[q] == d[key])
}

fn documents(k: &AttendKernel, p: Option<Pointer>, heap: &Heap, b: usize) -> Outcome<Option<Vec<f64>>> {
    let Some(p) = p else { return Ok(None) };
    let ids = (0..k.time).map(|t| heap.load(p, DType::I32, (b * k.time + t) as i64));
    Ok(Some(ids.collect::<Outcome<_>>()?))
}

fn attend(k: &AttendKernel, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    let document = k.documents().map(|i| args[i]);
    k.check_epilogue()?;
    let lse = args[k.lse()];
    // In the order of an epilogue's results: batch, kv head, group, position.
    let mut rows = Vec::new();
    for b in 0..k.batch {
        let document = documents(k, document, heap, b)?;
        for kv in 0..k.kv {
            for group in 0..k.group {
                for q in 0..k.time {
                    let mut scores = Vec::new();
                    for key in (0..k.time).filter(|key| visible(k, document.as_deref(), q, *key)) {
                        let mut s = 0.0;
                        for d in 0..k.dim {
                            let x = heap.load(args[0], k.dtype, at(&k.q, b, q, kv, group, d))?;
                            s += x * heap.load(args[1], k.dtype, at(&k.k, b, key, kv, 0, d))?;
                        }
                        scores.push((key, s * k.scale.get()));
                    }
                    let most = scores.iter().map(|(_, s)| *s).fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|(_, s)| libm::exp(s - most)).sum();
                    for d in 0..k.dim {
                        let mut sum = 0.0;
                        for (key, s) in &scores {
                            let v = heap.load(args[2], k.dtype, at(&k.v, b, *key, kv, 0, d))?;
                            sum += libm::exp(s - most) / total * v;
                        }
                        match &k.epilogue {
                            None => heap.store(args[k.lse() - 1], k.dtype, at(&k.y, b, q, kv, group, d), sum)?,
                            Some(_) => rows.push(sum),
                        }
                    }
                    let row = ((b * k.time + q) * k.kv + kv) * k.group + group;
                    heap.store(lse, DType::F32, row as i64, most + libm::log(total))?;
                }
            }
        }
    }
    let Some(p) = &k.epilogue else { return Ok(()) };
    epilogue((&p.body, &p.args), rows, &args[k.lse() + 1..], heap)
}

fn attend_grad(k: &AttendKernel, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    let document = k.documents().map(|i| args[i]);
    let n = args.len();
    let outputs = [(n - 3, &k.dq), (n - 2, &k.dk), (n - 1, &k.dv)];
    let load = |heap: &Heap, i: usize, e: i64| heap.load(args[i], k.dtype, e);
    for b in 0..k.batch {
        let document = documents(k, document, heap, b)?;
        for kv in 0..k.kv {
            let mut dk = vec![0.0; k.time * k.dim];
            let mut dv = vec![0.0; k.time * k.dim];
            for group in 0..k.group {
                for q in 0..k.time {
                    let row = ((b * k.time + q) * k.kv + kv) * k.group + group;
                    let lse = heap.load(args[4], DType::F32, row as i64)?;
                    let mut delta = 0.0;
                    for d in 0..k.dim {
                        let y = load(heap, 3, at(&k.y, b, q, kv, group, d))?;
                        delta += y * load(heap, 5, at(&k.dy, b, q, kv, group, d))?;
                    }
                    let mut dq = vec![0.0; k.dim];
                    for key in (0..k.time).filter(|key| visible(k, document.as_deref(), q, *key)) {
                        let (mut s, mut dp) = (0.0, 0.0);
                        for d in 0..k.dim {
                            let dy = load(heap, 5, at(&k.dy, b, q, kv, group, d))?;
                            s += load(heap, 0, at(&k.q, b, q, kv, group, d))?
                                * load(heap, 1, at(&k.k, b, key, kv, 0, d))?;
                            dp += dy * load(heap, 2, at(&k.v, b, key, kv, 0, d))?;
                        }
                        let p = libm::exp(s * k.scale.get() - lse);
                        let ds = p * (dp - delta) * k.scale.get();
                        for d in 0..k.dim {
                            dq[d] += ds * load(heap, 1, at(&k.k, b, key, kv, 0, d))?;
                            dk[key * k.dim + d] += ds * load(heap, 0, at(&k.q, b, q, kv, group, d))?;
                            dv[key * k.dim + d] += p * load(heap, 5, at(&k.dy, b, q, kv, group, d))?;
                        }
                    }
                    for (d, x) in dq.iter().enumerate() {
                        heap.store(args[outputs[0].0], k.dtype, at(outputs[0].1, b, q, kv, group, d), *x)?;
                    }
                }
            }
            for t in 0..k.time {
                for d in 0..k.dim {
                    heap.store(args[outputs[1].0], k.dtype, at(outputs[1].1, b, t, kv, 0, d), dk[t * k.dim + d])?;
                    heap.store(args[outputs[2].0], k.dtype, at(outputs[2].1, b, t, kv, 0, d), dv[t * k.dim + d])?;
                }
            }
        }
    }
    Ok(())
}

fn scatter(k: &Scatter, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    let width = k.width as i64;
    let mut table = vec![0.0; k.size * k.width];
    if k.accumulate {
        for (e, x) in table.iter_mut().enumerate() {
            *x = heap.load(args[2], DType::F32, e as i64)?;
        }
    }
    for row in 0..k.rows as i64 {
        // Out of range indices are clamped, as in a gather.
        let index = heap.load(args[0], DType::I32, row)?.clamp(0.0, k.size as f64 - 1.0) as i64;
        for d in 0..width {
            table[(index * width + d) as usize] += heap.load(args[1], k.src, row * width + d)?;
        }
    }
    for (e, x) in table.iter().enumerate() {
        heap.store(args[2], DType::F32, e as i64, *x)?;
    }
    Ok(())
}

fn quantile(rows: usize, n: usize, q: f64, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    for row in 0..rows {
        let mut xs =
            (0..n).map(|i| heap.load(args[0], DType::F32, (row * n + i) as i64)).collect::<Outcome<Vec<_>>>()?;
        xs.sort_by(f64::total_cmp);
        let at = q * (n - 1) as f64;
        let low = libm::floor(at);
        let next = xs[(low as usize + 1).min(n - 1)];
        let x = xs[low as usize] + (next - xs[low as usize]) * (at - low);
        heap.store(args[1], DType::F32, row as i64, x)?;
    }
    Ok(())
}

/// Row by row, in f32 and not in f64: codes are decisions, one that falls the other way changes all later ones, and which way a near tie falls is the f32 operations'
/// business. Their order is part of the family's description, so this agrees in every bit.
fn feedback(k: &Feedback, args: &[Pointer], heap: &mut Heap) -> Outcome<()> {
    let [w, scale, order, upper, out] = args else { return Err("five arguments".to_string()) };
    let column = |heap: &Heap, j: usize| -> Outcome<i64> {
        Ok((heap.load(*order, DType::I32, j as i64)? as i64).clamp(0, k.n as i64 - 1))
    };
    let float = |heap: &Heap, p: &Pointer, i: i64| heap.load(*p, DType::F32, i).map(|x| x as f32);
    for row in 0..k.rows as i64 {
        let start = row * k.n as i64;
        let step = float(heap, scale, row)?;
        let mut left = (0..k.n).map(|j| float(heap, w, start + column(heap, j)?)).collect::<Outcome<Vec<f32>>>()?;
        for j in 0..k.n {
            let factor = |k_: usize| float(heap, upper, (j * k.n + k_) as i64);
            let code = (left[j] / step).round_ties_even().clamp(k.low, k.high);
            let product = code * step;
            let error = (left[j] - product) / factor(j)?;
            for (i, x) in left.iter_mut().enumerate().skip(j + 1) {
                let product = error * factor(i)?;
                *x -= product;
            }
            heap.store(*out, DType::F32, start + column(heap, j)?, f64::from(code))?;
        }
    }
    Ok(())
}
