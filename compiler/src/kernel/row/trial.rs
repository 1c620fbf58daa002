//! Memory for row samples: filling it, and comparing what a run left there with the graph interpreter.

#![allow(missing_docs)]

use super::run;
use super::samples::{Fill, Sample};
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::{BufferId, DType, Op};

/// Numbers without a pattern, the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

impl Sample {
    /// The same body on memory with gaps and offsets; every second argument is stored in the opposite order.
    pub fn spread(&self) -> Sample {
        let mut sample = self.clone();
        sample.name += " spread";
        for i in 0..sample.row.args.len() {
            let sizes = self.sizes(i);
            let arg = &mut sample.row.args[i];
            if arg.per_task {
                continue;
            }
            arg.offset = 3 + i as i64;
            let mut stride = 1 + i as i64 % 2;
            let order: Vec<usize> =
                if i % 2 == 0 { (0..sizes.len()).rev().collect() } else { (0..sizes.len()).collect() };
            for k in order {
                arg.strides[k] = stride;
                stride *= sizes[k] as i64 + 1;
            }
        }
        sample
    }

    /// Elements of an argument's memory.
    fn extent(&self, i: usize) -> usize {
        let (arg, sizes) = (&self.row.args[i], self.sizes(i));
        let numel: usize = sizes.iter().product();
        if arg.per_task {
            return arg.offset as usize + numel * self.row.tasks();
        }
        let last: i64 = sizes.iter().zip(&arg.strides).map(|(n, s)| (*n as i64 - 1) * s).sum();
        (arg.offset + last + 1) as usize
    }

    fn sizes(&self, i: usize) -> Vec<usize> {
        let g = &self.row.graph;
        g.buffers[i].ty.axes.iter().map(|a| g.axes[a.0 as usize].size).collect()
    }

    /// Addresses of a buffer's elements, row-major.
    fn addresses(&self, i: usize) -> Vec<usize> {
        let (arg, sizes) = (&self.row.args[i], self.sizes(i));
        let numel: usize = sizes.iter().product();
        let address = |mut at: usize| {
            let mut a = arg.offset;
            for (n, stride) in sizes.iter().zip(&arg.strides).rev() {
                a += (at % n) as i64 * stride;
                at /= n;
            }
            a as usize
        };
        (0..numel).map(address).collect()
    }

    /// Filled arguments; what is only written holds NaN patterns.
    pub fn memory(&self, seed: u64) -> Vec<Vec<u8>> {
        let g = &self.row.graph;
        let mut rng = Rng(seed);
        let mut all = Vec::new();
        for (i, buffer) in g.buffers.iter().enumerate() {
            let dtype = buffer.ty.dtype;
            let mut bytes = vec![0xff; self.extent(i) * dtype.bytes()];
            if let Some(fill) = self.fills.get(&buffer.name) {
                for at in 0..self.extent(i) {
                    let x = match fill {
                        Fill::Real => rng.unit() * 4.0 - 2.0,
                        Fill::Positive => 0.1 + 1.9 * rng.unit(),
                        Fill::Below(n) => rng.below(*n as usize) as f64,
                        Fill::Exactly(x) => *x,
                    };
                    run::write(&mut bytes, dtype, at, x).unwrap();
                }
            }
            all.push(bytes);
        }
        all
    }

    /// Compares the memory after a run with what the interpreter makes of the memory before it. The error names the first difference.
    pub fn compare(&self, before: &[Vec<u8>], after: &[Vec<u8>]) -> Result<(), String> {
        let g = &self.row.graph;
        let mut inputs = Contents::new();
        for (i, buffer) in g.buffers.iter().enumerate() {
            let read = g.nodes.iter().any(|n| n.op == Op::Read(BufferId(i as u32)));
            if read || self.fills.contains_key(&buffer.name) {
                let get = |at: &usize| run::read(&before[i], buffer.ty.dtype, *at).unwrap();
                let data = self.addresses(i).iter().map(get).collect();
                inputs.insert(buffer.name.clone(), Tensor::new(&self.sizes(i), data).unwrap());
            }
        }
        let expected = interpret(g, &inputs).map_err(|e| format!("{}: {e}", self.name))?;
        for effect in &g.effects {
            let i = effect.buffer.0 as usize;
            let (buffer, want) = (&g.buffers[i], &expected[&g.buffers[i].name].data);
            let dtype = buffer.ty.dtype;
            let get = |at: usize| run::read(&after[i], dtype, at).unwrap();
            let got: Vec<f64> = if self.row.args[i].per_task {
                (0..want.len()).map(|k| (0..self.row.tasks()).map(|t| get(t * want.len() + k)).sum()).collect()
            } else {
                self.addresses(i).into_iter().map(get).collect()
            };
            let scale = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
            let (relative, absolute) = match dtype {
                DType::F32 => (2e-5, 2e-5 * scale + 1e-6),
                DType::Bf16 => (1.0 / 256.0 + 1e-5, 2e-5 * scale + 1e-6),
                DType::F16 => (1.0 / 2048.0 + 1e-5, 2e-5 * scale + 1e-6),
                DType::I32 | DType::I8 | DType::Bool => (0.0, 0.0),
            };
            for (k, (got, want)) in got.iter().zip(want).enumerate() {
                let close = (got - want).abs() <= relative * want.abs() + absolute || got == want;
                if !close {
                    return Err(format!("{}: `{}`[{k}] is {got}, expected {want}", self.name, buffer.name));
                }
            }
        }
        // Inputs stay as they were.
        for (i, buffer) in g.buffers.iter().enumerate() {
            if !g.effects.iter().any(|e| e.buffer.0 as usize == i) && before[i] != after[i] {
                return Err(format!("{}: the input `{}` changed", self.name, buffer.name));
            }
        }
        Ok(())
    }
}
