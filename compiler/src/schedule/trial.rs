//! Trials: any kernel description with random arguments and what it must leave there.
//!
//! *Takes* a [`Kernel`] and a seed; *gives* the bytes of its arguments and, after [`super::reference`] ran it in f64, the expected ones with a
//! tolerance; *promises* the same trial for the same kernel and seed on every machine. The emulator, `--emit-check` and tests use it.
//!
//! Tolerances: an output is compared element by element, `|got - want| <= relative * |want| + absolute * rms`, rms over the output's written elements. `relative` is
//! one unit in the last place of the stored dtype (a rounding that falls the other way); `absolute` covers what the f32 arithmetic inside may
//! differ by from f64, see [`Tolerance::of`].

use super::reference::{self, Heap, Pointer};
use crate::graph::ir::{DType, Graph, Op};
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::kernel::epilogue::EpilogueArg;
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::row::Row;
use crate::kernel::{Access, Kernel, Launch, LaunchArg, Target};
use golf_runtime::trial;

/// Allowed difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// In units of the wanted value.
    pub relative: f64,
    /// In units of the output's root mean square.
    pub absolute: f64,
}

impl Tolerance {
    /// For an output of a kernel, argument number `arg`, stored in `dtype`.
    pub fn of(kernel: &Kernel, arg: usize, dtype: DType) -> Tolerance {
        if let Kernel::Quantile(_) | Kernel::Feedback(_) = kernel {
            // A choice and one rounding; decisions of f32 operations in a stated order.
            return Tolerance { relative: 0.0, absolute: 0.0 };
        }
        let relative = match dtype {
            DType::Bf16 => 1.0 / 128.0,
            DType::F16 => 1.0 / 1024.0,
            DType::F32 => 1e-5,
            DType::I32 | DType::I8 | DType::Bool => 0.0,
        };
        let absolute = match (kernel, dtype) {
            (_, DType::I32 | DType::I8 | DType::Bool) => 0.0,
            // Tensor cores add in f32 with truncation; 1e-4 is far below a dropped or doubled product.
            (Kernel::Gemm(_), _) => 1e-4,
            // Probabilities and score gradients are rounded to bf16 between the two products; where a row sees few keys its values are far above the rms. The
            // largest of 80,000 such errors is 2.5 to 4.5% of the rms (T=650, heads of 64 and 128, six sets of arguments).
            (Kernel::Attend(a), _) if a.dtype == DType::Bf16 && a.pass == Pass::Backward => 5e-2,
            // The log-sum-exp: sums of exact products, in f32.
            (Kernel::Attend(a), _) if a.dtype == DType::Bf16 && a.lse() == arg => 3e-5,
            (Kernel::Attend(a), _) if a.dtype == DType::Bf16 => 2e-2,
            // Elementary functions to about 2 units of f32, chains of a thousand additions.
            _ => 1e-4,
        };
        Tolerance { relative, absolute }
    }
}

/// An argument that the kernel writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Number of the argument.
    pub arg: usize,
    /// Its elements' dtype.
    pub dtype: DType,
    /// Its bytes after the kernel; what the kernel does not write is as in [`Trial::args`].
    pub expected: Vec<u8>,
    /// How close.
    pub tolerance: Tolerance,
}

/// A kernel's arguments before and after.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Bytes of every argument; what is only written is filled with 0xff.
    pub args: Vec<Vec<u8>>,
    /// Outputs.
    pub outputs: Vec<Output>,
}

/// Bytes of all arguments of a kernel above which a trial is refused: the reference is slow.
pub const LIMIT: usize = 64 << 20;

/// Work above which the reference would take minutes, in floating-point operations.
pub fn limit(kernel: &Kernel) -> u64 {
    if matches!(kernel, Kernel::Gemm(_)) { 2_000_000_000 } else { 400_000_000 }
}

impl Trial {
    /// Makes a trial. Errors: the kernel is too large, or the reference does not take it.
    pub fn new(kernel: &Kernel, seed: u64) -> Result<Trial, String> {
        let signed = Trial::draw(kernel, seed, true)?;
        // Roots and logarithms of numbers below zero say nothing of the kernel: NaN is what unwritten memory holds too.
        match signed.outputs.iter().any(|o| o.writes_nan(&signed.args[o.arg])) {
            true => Trial::draw(kernel, seed, false),
            false => Ok(signed),
        }
    }

    /// A trial with numbers of both signs, or of one.
    fn draw(kernel: &Kernel, seed: u64, signed: bool) -> Result<Trial, String> {
        let shapes = shapes(kernel);
        if shapes.iter().map(|s| s.elements * s.dtype.bytes()).sum::<usize>() > LIMIT {
            return Err("too large for a trial".to_string());
        }
        let accesses = kernel.accesses();
        let mut args: Vec<Vec<u8>> = Vec::new();
        for (i, shape) in shapes.iter().enumerate() {
            let stream = trial::stream(seed, i);
            args.push(match accesses[i] {
                Access::Write => vec![0xff; shape.elements * shape.dtype.bytes()],
                Access::Read | Access::Update => {
                    let dtype = shape.dtype;
                    let mut bytes = trial::fill(dtype, shape.elements, shape.bound as u32, &stream);
                    if !signed {
                        trial::magnitudes(dtype, &mut bytes);
                    }
                    bytes
                }
            });
        }
        if let Kernel::Gemm(g) = kernel {
            symmetric(g, &mut args);
        }
        if let Kernel::Feedback(_) = kernel {
            triangle(seed, &mut args);
        }
        if let Kernel::Attend(a) = kernel {
            documents(a, seed, &mut args);
            forward_of(a, &mut args)?;
        }
        let after = run(kernel, &args)?;
        let written = (0..args.len()).filter(|i| accesses[*i] != Access::Read);
        let outputs = written
            .map(|arg| {
                let dtype = shapes[arg].dtype;
                Output { arg, dtype, expected: after[arg].clone(), tolerance: Tolerance::of(kernel, arg, dtype) }
            })
            .collect();
        Ok(Trial { args, outputs })
    }

    /// The trial as an executable carries it, for the kernel's launches on a target; its code is module `module`. Of large outputs only
    /// [`SAMPLES`] elements are kept.
    pub fn pack(&self, kernel: &Kernel, target: Target, (seed, module): (u64, u32)) -> trial::Trial {
        let shapes = shapes(kernel);
        let accesses = kernel.accesses();
        let argument = |(i, s): (usize, &Shape)| {
            let dtype = s.dtype;
            let argument = |content| trial::Argument { dtype, elements: s.elements as u64, content };
            if accesses[i] == Access::Write {
                return argument(trial::Content::Poison);
            }
            let bound = s.bound as u32;
            let drawn =
                [trial::Content::Random(bound), trial::Content::Magnitudes(bound), trial::Content::Upper].map(argument);
            let drawn = drawn.into_iter().find(|a| a.bytes(seed, i) == self.args[i]);
            drawn.unwrap_or_else(|| argument(trial::Content::Bytes(self.args[i].clone())))
        };
        let mut arguments: Vec<_> = shapes.iter().enumerate().map(argument).collect();
        let poison = |bytes: &u64| trial::Argument {
            dtype: golf_runtime::plan::DType::I8,
            elements: *bytes,
            content: trial::Content::Poison,
        };
        arguments.extend(target.temps(kernel).iter().map(poison));
        let launches = target.launches(kernel);
        let call = |l: &Launch| trial::Call {
            symbol: format!("{}_{}", kernel.code().symbol(), l.entry),
            blocks: l.tasks,
            grid: golf_runtime::plan::Grid { module, ..l.gpu.clone().unwrap_or_default() },
            args: l
                .args
                .iter()
                .map(|a| match a {
                    LaunchArg::Arg(n) => *n as u32,
                    LaunchArg::Temp(n) => (shapes.len() + n) as u32,
                })
                .collect(),
        };
        let expected = self.outputs.iter().map(|o| trial::Expected {
            arg: o.arg as u32,
            relative: o.tolerance.relative,
            absolute: o.tolerance.absolute * o.rms(&self.args[o.arg]),
            samples: o.samples(),
        });
        trial::Trial {
            name: kernel.symbol(),
            family: kernel.family().to_string(),
            what: kernel.text().lines().next().unwrap_or_default().to_string(),
            seed,
            arguments,
            calls: launches.iter().map(call).collect(),
            expected: expected.collect(),
            flops: launches.iter().map(|l| l.flops).sum(),
            bytes: launches.iter().map(|l| l.bytes).sum(),
        }
    }

    /// Largest difference in units of the tolerance over all outputs, given the arguments after a run. Error: the first element that is off by more than 1, or
    /// written where nothing is to be written.
    pub fn compare(&self, after: &[Vec<u8>]) -> Result<f64, String> {
        let mut worst: f64 = 0.0;
        for o in &self.outputs {
            worst = worst.max(o.compare(&self.args[o.arg], &after[o.arg])?);
        }
        Ok(worst)
    }
}

/// Elements of an output that a packed trial keeps.
const SAMPLES: usize = 6000;

impl Output {
    /// Evenly spread elements, with what they must be.
    fn samples(&self) -> Vec<(u64, f64)> {
        let width = self.dtype.bytes();
        let n = self.expected.len() / width;
        // An odd step from an odd start meets every residue.
        let step = (n / SAMPLES) | 1;
        let one = |i: usize| (i as u64, trial::element(self.dtype, &self.expected[i * width..][..width]));
        (0..n).step_by(step).map(one).collect()
    }

    /// Whether the kernel writes a NaN somewhere.
    fn writes_nan(&self, before: &[u8]) -> bool {
        let width = self.dtype.bytes();
        let nan = |x: &[u8]| trial::element(self.dtype, x).is_nan();
        before.chunks(width).zip(self.expected.chunks(width)).any(|(old, new)| old != new && nan(new))
    }

    /// Root mean square of the finite elements that the kernel writes.
    pub fn rms(&self, before: &[u8]) -> f64 {
        let width = self.dtype.bytes();
        let (mut sum, mut n) = (0.0, 0u64);
        for (old, new) in before.chunks(width).zip(self.expected.chunks(width)) {
            let x = trial::element(self.dtype, new);
            if old != new && x.is_finite() {
                (sum, n) = (sum + x * x, n + 1);
            }
        }
        libm::sqrt(sum / n.max(1) as f64)
    }

    fn compare(&self, before: &[u8], after: &[u8]) -> Result<f64, String> {
        let (width, rms) = (self.dtype.bytes(), self.rms(before));
        let mut worst: f64 = 0.0;
        for (i, (want, got)) in self.expected.chunks(width).zip(after.chunks(width)).enumerate() {
            if want == got {
                continue;
            }
            let dtype = self.dtype;
            let (x, y) = (trial::element(dtype, want), trial::element(dtype, got));
            let say = |what: &str| Err(format!("argument {} element {i}: {what} {y}, wanted {x}", self.arg));
            if want == &before[i * width..][..width] && want.iter().all(|&b| b == 0xff) {
                return say("nothing is to be written there, found");
            }
            if x.is_nan() && y.is_nan() || x == y {
                continue;
            }
            let off = (x - y).abs() / (self.tolerance.relative * x.abs() + self.tolerance.absolute * rms);
            // NaN included.
            if !(off <= 1.0) {
                return say("found");
            }
            worst = worst.max(off);
        }
        Ok(worst)
    }
}

/// Runs a kernel by its description.
fn run(kernel: &Kernel, args: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
    let mut heap = Heap { segments: args.to_vec() };
    let pointers: Vec<_> = (0..args.len()).map(|segment| Pointer { segment, offset: 0 }).collect();
    reference::kernel(kernel, &pointers, &mut heap)?;
    Ok(heap.segments)
}

/// An argument's memory.
struct Shape {
    dtype: DType,
    elements: usize,
    /// Integers are drawn from 0 to this, exclusive.
    bound: usize,
}

fn shapes(kernel: &Kernel) -> Vec<Shape> {
    match kernel {
        Kernel::Row(k) => row(k),
        Kernel::Gemm(k) => gemm(k),
        Kernel::Attend(k) => attend(k),
        Kernel::Scatter(k) => vec![
            Shape { dtype: DType::I32, elements: k.rows, bound: k.size },
            Shape { dtype: k.src, elements: k.rows * k.width, bound: 1 },
            Shape { dtype: DType::F32, elements: k.size * k.width, bound: 1 },
        ],
        Kernel::Quantile(k) => {
            let floats = |elements| Shape { dtype: DType::F32, elements, bound: 1 };
            vec![floats(k.rows * k.n), floats(k.rows)]
        }
        Kernel::Feedback(k) => {
            let floats = |elements| Shape { dtype: DType::F32, elements, bound: 1 };
            let order = Shape { dtype: DType::I32, elements: k.n, bound: k.n };
            vec![floats(k.rows * k.n), floats(k.rows), order, floats(k.n * k.n), floats(k.rows * k.n)]
        }
    }
}

/// Arguments of rounding with feedback as quantisers have them: scales that leave most weights inside the codes' range, an order that visits each column once, a
/// factor that lets errors fade.
fn triangle(seed: u64, args: &mut [Vec<u8>]) {
    let float = |x: &[u8]| f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
    args[1].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&(float(x).abs() / 16.0).to_le_bytes()));
    // Each column swapped with an earlier one.
    let mut order: Vec<i32> = (0..args[2].len() as i32 / 4).collect();
    for (j, drawn) in args[2].chunks_exact(4).enumerate() {
        order.swap(j, u32::from_le_bytes([drawn[0], drawn[1], drawn[2], drawn[3]]) as usize % (j + 1));
    }
    args[2] = order.iter().flat_map(|c| c.to_le_bytes()).collect();
    args[3] = trial::upper(args[3].len() / 4, &trial::stream(seed, 3));
}

/// Elements from the pointer to the last one, of sizes and strides.
fn extent(offset: i64, sizes: &[usize], strides: &[i64]) -> usize {
    let last: i64 = sizes.iter().zip(strides).map(|(n, s)| (*n as i64 - 1) * s.max(&0)).sum();
    (offset + last + 1).max(0) as usize
}

fn row(k: &Row) -> Vec<Shape> {
    let g = &k.graph;
    let bound = index_bound(g);
    let one = |(i, b): (usize, &crate::graph::ir::Buffer)| {
        let sizes: Vec<usize> = b.ty.axes.iter().map(|a| g.axes[a.0 as usize].size).collect();
        let arg = &k.args[i];
        let elements = match arg.per_task {
            true => arg.offset as usize + sizes.iter().product::<usize>() * k.tasks(),
            false => extent(arg.offset, &sizes, &arg.strides),
        };
        Shape { dtype: b.ty.dtype, elements, bound }
    };
    g.buffers.iter().enumerate().map(one).collect()
}

/// What an index or target may be: the smallest axis that is gathered along.
fn index_bound(g: &Graph) -> usize {
    let axis = |n: &crate::graph::ir::Node| match n.op {
        Op::Gather(a) | Op::CrossEntropy(a) | Op::CrossEntropyGrad(a) => Some(g.axes[a.0 as usize].size),
        _ => None,
    };
    g.nodes.iter().filter_map(axis).min().unwrap_or(1024)
}

fn gemm(k: &Gemm) -> Vec<Shape> {
    let operand = |o: &Operand, rows: usize| {
        let sizes = [&k.batch[..], &[rows, k.k]].concat();
        let strides = [&o.batch[..], &[o.row, o.k]].concat();
        Shape { dtype: o.dtype, elements: extent(o.offset, &sizes, &strides), bound: 1 }
    };
    let mut all = vec![operand(&k.a, k.m), operand(&k.b, k.n)];
    let buffers = k.epilogue.buffers.iter().skip(1).map(|b| b.ty.dtype).zip(&k.args);
    all.extend(buffers.map(|b| of_epilogue(b, &[&k.batch[..], &[k.m, k.n]].concat())));
    all
}

/// An epilogue's argument in a space of these extents.
fn of_epilogue((dtype, arg): (DType, &EpilogueArg), extents: &[usize]) -> Shape {
    let strides = [&arg.batch[..], &[arg.m, arg.n]].concat();
    Shape { dtype, elements: extent(arg.offset, extents, &strides), bound: 1 }
}

fn attend(k: &AttendKernel) -> Vec<Shape> {
    let tensor = |s: &Strides, group: usize| {
        let sizes = [k.batch, k.time, k.kv, group, k.dim];
        let elements = extent(s.offset, &sizes, &[s.batch, s.time, s.kv, s.group, 1]);
        Shape { dtype: k.dtype, elements, bound: 1 }
    };
    let lse = || Shape { dtype: DType::F32, elements: k.batch * k.time * k.kv * k.group, bound: 1 };
    let document = || k.document.then_some(Shape { dtype: DType::I32, elements: k.batch * k.time, bound: 1 << 16 });
    let mut all = vec![tensor(&k.q, k.group), tensor(&k.k, 1), tensor(&k.v, 1)];
    match k.pass {
        Pass::Forward => {
            all.extend(document());
            all.extend(k.epilogue.is_none().then(|| tensor(&k.y, k.group)));
            all.push(lse());
            let extents = [&k.heads()[..], &[k.time, k.dim]].concat();
            all.extend(k.epilogue.iter().flat_map(|p| p.buffers()).map(|b| of_epilogue(b, &extents)));
        }
        Pass::Backward => {
            all.extend([tensor(&k.y, k.group), lse(), tensor(&k.dy, k.group)]);
            all.extend(document());
            all.extend([tensor(&k.dq, k.group), tensor(&k.dk, 1), tensor(&k.dv, 1)]);
        }
    }
    all
}

/// Operands of a product that is said to be symmetric: the same matrix, itself symmetric where the second is read transposed.
fn symmetric(g: &Gemm, args: &mut [Vec<u8>]) {
    if !g.symmetric {
        return;
    }
    if g.a.row != g.b.row && args[0].len() == args[1].len() {
        let width = g.a.dtype.bytes();
        let batches = super::reference::offsets(&g.batch, &g.a.batch, g.a.offset);
        for base in batches {
            for i in 0..g.m as i64 {
                for j in 0..i {
                    let at = |r: i64, c: i64| (base + r * g.a.row + c * g.a.k) as usize * width;
                    let (from, to) = (at(i, j), at(j, i));
                    args[0].copy_within(from..from + width, to);
                }
            }
        }
    }
    args[1] = args[0].clone();
}

/// Document ids of runs of about a fifth of the row: growing along the row for even seeds, for odd ones of three ids that come again.
fn documents(a: &AttendKernel, seed: u64, args: &mut [Vec<u8>]) {
    let Some(arg) = a.documents() else { return };
    let (mut id, often) = (0, (a.time / 5).max(2) as u32);
    for word in args[arg].chunks_exact_mut(4) {
        let drawn = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        if drawn % often == 0 {
            id = if seed % 2 == 0 { id + 1 } else { drawn / often % 3 };
        }
        word.copy_from_slice(&id.to_le_bytes());
    }
}

/// A backward pass gets the y and lse of its q, k, v.
fn forward_of(a: &AttendKernel, args: &mut [Vec<u8>]) -> Result<(), String> {
    if a.pass == Pass::Forward {
        return Ok(());
    }
    let zero = Strides { offset: 0, batch: 0, time: 0, kv: 0, group: 0 };
    let forward = AttendKernel { pass: Pass::Forward, dy: zero, dq: zero, dk: zero, dv: zero, ..a.clone() };
    let mut all = args[..3].to_vec();
    all.extend(a.documents().map(|given| args[given].clone()));
    all.extend([args[3].clone(), args[4].clone()]);
    let after = run(&Kernel::Attend(forward), &all)?;
    let n = after.len();
    args[3].clone_from(&after[n - 2]);
    args[4].clone_from(&after[n - 1]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::scatter::Scatter;

    #[test]
    fn a_trial_passes_with_its_own_result_and_fails_with_a_changed_element() {
        let kernel = Kernel::Scatter(Scatter { rows: 40, width: 8, size: 5, src: DType::Bf16, accumulate: true });
        let t = Trial::new(&kernel, 1).unwrap();
        let mut after = t.args.clone();
        after[2].clone_from(&t.outputs[0].expected);
        assert_eq!(t.compare(&after), Ok(0.0));
        let packed = t.pack(&kernel, Target::Cpu, (1, 0));
        assert_eq!(packed.arguments[1].bytes(1, 1), t.args[1]);
        assert_eq!(packed.expected[0].compare(packed.arguments[2].dtype, &after[2]), Ok(0.0));
        after[2][7 * 4 + 3] ^= 1;
        assert!(t.compare(&after).unwrap_err().contains("element 7"));
        assert!(packed.expected[0].compare(packed.arguments[2].dtype, &after[2]).is_err());
    }

    /// Packed, the factor is drawn again where the trial runs: it would be most of an executable.
    #[test]
    fn arguments_of_rounding_with_feedback_are_a_quantisers() {
        let kernel = Kernel::Feedback(crate::kernel::feedback::Feedback { rows: 3, n: 17, low: -31.0, high: 31.0 });
        let t = Trial::new(&kernel, 5).unwrap();
        let packed = t.pack(&kernel, Target::Gpu(crate::kernel::gpu::Arch::Sm80), (5, 0));
        for (i, a) in packed.arguments.iter().enumerate() {
            assert_eq!(a.bytes(5, i), t.args[i], "argument {i}");
        }
        assert_eq!(packed.arguments[3].content, trial::Content::Upper);
        let mut columns: Vec<_> = t.args[2].chunks(4).map(|c| c[0]).collect();
        assert!(!columns.is_sorted());
        columns.sort_unstable();
        assert_eq!(columns, (0..17).collect::<Vec<u8>>());
        for (i, x) in t.args[3].chunks(4).enumerate() {
            let (x, above) = (trial::element(golf_runtime::plan::DType::F32, x), (i % 17).cmp(&(i / 17)));
            assert!(if above.is_lt() {
                x.is_nan()
            } else if above.is_eq() {
                (0.75..1.25).contains(&x)
            } else {
                x.abs() < 0.25
            });
        }
    }

    #[test]
    fn gradients_of_attention_are_tried_on_their_own_forward_pass() {
        let s = |heads: i64, group: i64| Strides {
            offset: 0,
            batch: 8 * heads * 16,
            time: heads * 16,
            kv: group * 16,
            group: 16,
        };
        let (q, k) = (s(4, 2), Strides { group: 0, ..s(2, 1) });
        let a = AttendKernel {
            pass: Pass::Backward,
            batch: 1,
            time: 8,
            kv: 2,
            group: 2,
            dim: 16,
            dtype: DType::Bf16,
            scale: crate::graph::ir::Bits::new(0.25),
            causal: true,
            window: None,
            document: false,
            q,
            k,
            v: k,
            y: q,
            epilogue: None,
            dy: q,
            dq: q,
            dk: k,
            dv: k,
        };
        let t = Trial::new(&Kernel::Attend(a.clone()), 3).unwrap();
        assert_eq!((t.args.len(), t.outputs.len()), (9, 3));
        let finite = |t: &Trial| {
            let element = |o: &Output, b: &[u8]| trial::element(o.dtype, b).is_finite();
            t.outputs.iter().all(|o| o.expected.chunks(2).all(|b| element(o, b)))
        };
        assert!(finite(&t));
        // Documents: several, in order and out of order.
        let a = AttendKernel { batch: 2, document: true, ..a };
        for seed in [2, 3] {
            let t = Trial::new(&Kernel::Attend(a.clone()), seed).unwrap();
            let ids: Vec<u8> = t.args[6].chunks(4).map(|id| id[0]).collect();
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            assert_eq!(ids == sorted, seed == 2, "{ids:?}");
            sorted.dedup();
            assert!(sorted.len() > 1 && t.args.len() == 10 && finite(&t));
        }
    }
}
