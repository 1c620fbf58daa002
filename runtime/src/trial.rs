//! Kernels tried where they run: what `golfc --emit-check` puts into an executable.
//!
//! *Takes* the [`Trials`] that golfc made: kernels with arguments and what they must leave there; *gives* contents ([`fill`]) and comparisons
//! ([`compare`]); *promises* that contents depend on the seed alone (Philox), so that only expectations have to be carried.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::{DType, Grid};
use crate::rng::Stream;

/// What an argument holds before the kernel runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Bytes 0xff: NaN in every float dtype.
    Poison,
    /// [`fill`] with this bound.
    Random(u32),
    /// Given.
    Bytes(Vec<u8>),
    /// [`Content::Random`] without signs.
    Magnitudes(u32),
    /// A square matrix of f32, [`upper`].
    Upper,
}

/// An argument or temporary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argument {
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub elements: u64,
    /// Before the kernel.
    pub content: Content,
}

impl Argument {
    /// Its bytes, argument number `index` of a trial with this seed.
    pub fn bytes(&self, seed: u64, index: usize) -> Vec<u8> {
        let elements = self.elements as usize;
        match &self.content {
            Content::Poison => vec![0xff; elements * self.dtype.bytes()],
            Content::Random(bound) => fill(self.dtype, elements, *bound, &stream(seed, index)),
            Content::Magnitudes(bound) => {
                let mut bytes = fill(self.dtype, elements, *bound, &stream(seed, index));
                magnitudes(self.dtype, &mut bytes);
                bytes
            }
            Content::Bytes(bytes) => bytes.clone(),
            Content::Upper => upper(elements, &stream(seed, index)),
        }
    }
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Entry of the module [`Grid::module`].
    pub symbol: String,
    /// Blocks.
    pub blocks: u32,
    /// How.
    pub grid: Grid,
    /// Arguments by number.
    pub args: Vec<u32>,
}

/// What an argument must hold afterwards, at some elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Number of the argument.
    pub arg: u32,
    /// Allowed difference in units of the wanted value.
    pub relative: f64,
    /// Allowed difference besides.
    pub absolute: f64,
    /// (element, wanted value); NaN: anything that is NaN.
    pub samples: Vec<(u64, f64)>,
}

/// A kernel with everything needed to try it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Symbol stem.
    pub name: String,
    /// Family, as in [`crate::plan::Kernel::family`].
    pub family: String,
    /// First line of the description, for people.
    pub what: String,
    /// Of the random contents.
    pub seed: u64,
    /// Arguments, then temporaries.
    pub arguments: Vec<Argument>,
    /// Launches in order.
    pub calls: Vec<Call>,
    /// Outputs.
    pub expected: Vec<Expected>,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that must move.
    pub bytes: u64,
}

/// All trials of an executable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trials {
    /// [`crate::plan::PLAN_VERSION`].
    pub version: u32,
    /// Program they come from.
    pub program: String,
    /// Device kind.
    pub device: String,
    /// PTX texts.
    pub modules: Vec<String>,
    /// The trials.
    pub trials: Vec<Trial>,
}

impl Trials {
    /// From the packed form, postcard in zstd. Error: the executable is damaged.
    pub fn unpack(packed: &[u8]) -> Result<Trials> {
        let damaged = |what: String| Error::input(format!("the trials inside this executable are damaged: {what}"));
        let size = zstd::bulk::Decompressor::upper_bound(packed).unwrap_or(LIMIT).min(LIMIT);
        let plain = zstd::bulk::decompress(packed, size).map_err(|e| damaged(e.to_string()))?;
        postcard::from_bytes(&plain).map_err(|e| damaged(e.to_string()))
    }
}

/// No list of trials is nearly as large once unpacked.
const LIMIT: usize = 1 << 30;

/// The random stream of an argument.
pub fn stream(seed: u64, index: usize) -> Stream {
    Stream::new(seed, &format!("trial argument {index}"))
}

/// Random content: floats in (-1, 1), rounded; integers below `bound`.
pub fn fill(dtype: DType, elements: usize, bound: u32, stream: &Stream) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(elements * dtype.bytes());
    let mut pair = [0.0; 2];
    for i in 0..elements {
        if i % 2 == 0 {
            pair = stream.uniform_pair(i as u64 / 2);
        }
        let u = pair[i % 2];
        let x = 2.0 * u - 1.0;
        match dtype {
            DType::F32 => bytes.extend((x as f32).to_le_bytes()),
            DType::Bf16 => bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
            DType::I32 => bytes.extend(((u * f64::from(bound)) as i32).to_le_bytes()),
            DType::I8 => bytes.push((x * 127.0) as i8 as u8),
            DType::Bool => bytes.push(u8::from(u < 0.5)),
        }
    }
    bytes
}

/// Clears the signs of floats.
pub fn magnitudes(dtype: DType, bytes: &mut [u8]) {
    if matches!(dtype, DType::F32 | DType::Bf16 | DType::F16) {
        bytes.chunks_mut(dtype.bytes()).for_each(|x| x[dtype.bytes() - 1] &= 0x7f);
    }
}

/// An upper triangular matrix of f32, row-major, with so many elements in all: diagonal about 1, the rest so small that a sum over a column stays below 1. Below the
/// diagonal: NaN.
pub fn upper(elements: usize, stream: &Stream) -> Vec<u8> {
    let n = elements.isqrt().max(1);
    let small = 0.5 / (1u32 << n.ilog2().div_ceil(2)) as f32;
    let mut bytes = fill(DType::F32, elements, 1, stream);
    for (i, x) in bytes.chunks_exact_mut(4).enumerate() {
        let drawn = f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
        let value = match (i % n).cmp(&(i / n)) {
            std::cmp::Ordering::Less => f32::NAN,
            std::cmp::Ordering::Equal => 1.0 + drawn / 4.0,
            std::cmp::Ordering::Greater => drawn * small,
        };
        x.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// An element as f64.
pub fn element(dtype: DType, bytes: &[u8]) -> f64 {
    let mut wide = [0u8; 4];
    wide[..bytes.len()].copy_from_slice(bytes);
    match dtype {
        DType::F32 => f64::from(f32::from_le_bytes(wide)),
        DType::I32 => f64::from(i32::from_le_bytes(wide)),
        DType::Bf16 => half::bf16::from_le_bytes([wide[0], wide[1]]).to_f64(),
        DType::F16 => half::f16::from_le_bytes([wide[0], wide[1]]).to_f64(),
        DType::I8 => f64::from(wide[0] as i8),
        DType::Bool => f64::from(wide[0]),
    }
}

impl Expected {
    /// Largest difference in units of what is allowed. Error: the first element beyond it.
    pub fn compare(&self, dtype: DType, after: &[u8]) -> std::result::Result<f64, String> {
        let mut worst: f64 = 0.0;
        for &(i, want) in &self.samples {
            let got = element(dtype, &after[i as usize * dtype.bytes()..][..dtype.bytes()]);
            if got == want || got.is_nan() && want.is_nan() {
                continue;
            }
            let off = (got - want).abs() / (self.relative * want.abs() + self.absolute);
            // NaN included.
            if !(off <= 1.0) {
                return Err(format!("argument {} element {i}: found {got}, wanted {want}", self.arg));
            }
            worst = worst.max(off);
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_depend_on_the_seed_and_comparisons_catch_differences() {
        let a = Argument { dtype: DType::Bf16, elements: 5, content: Content::Random(1) };
        assert_eq!(a.bytes(1, 0), a.bytes(1, 0));
        let unsigned = Argument { content: Content::Magnitudes(1), ..a.clone() };
        let floats = |a: &Argument| a.bytes(1, 0).chunks(2).map(|x| element(a.dtype, x)).collect::<Vec<_>>();
        assert!(floats(&a).iter().any(|x| *x < 0.0));
        assert_eq!(floats(&unsigned), floats(&a).iter().map(|x| x.abs()).collect::<Vec<_>>());
        assert_ne!(a.bytes(1, 0), a.bytes(1, 1));
        assert_ne!(a.bytes(1, 0), a.bytes(2, 0));
        let e = Expected { arg: 0, relative: 0.01, absolute: 0.0, samples: vec![(1, 2.0), (2, f64::NAN)] };
        let bytes = |x: f32| [9.0, x, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        assert!(e.compare(DType::F32, &bytes(2.01)).unwrap() > 0.4);
        for wrong in [2.1, f32::NAN] {
            assert!(e.compare(DType::F32, &bytes(wrong)).unwrap_err().contains("element 1"));
        }
    }
}
