//! Tests that run generated code against f64 arithmetic written here.

mod builder;
mod elementwise;
mod gemm;
mod math;

use super::emit::{Emit, Unit, V};
use super::jit::Loaded;
use super::tier::Tier;
use super::{object, passes};
use std::collections::BTreeMap;

/// Compiles one function `f` for a tier and loads it.
pub fn load(tier: Tier, args: usize, body: impl for<'a> FnOnce(&Emit<'a>, V<'a>, &[V<'a>], V<'a>)) -> Loaded {
    let context = passes::context();
    let unit = Unit::new(&context, tier);
    unit.kernel("f", args, body);
    let object = object::compile_unit(&context, unit, "test", tier).expect("compiles");
    Loaded::link(&[object]).expect("links")
}

/// Tiers this machine can run.
pub fn tiers() -> Vec<Tier> {
    Tier::ALL.into_iter().filter(|&t| super::jit::available(t)).collect()
}

pub fn bytes(x: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(x).to_vec()
}

pub fn floats(x: &[u8]) -> Vec<f32> {
    x.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes"))).collect()
}

/// The loops of a kernel's MLIR and what stands in them, operations counted by name: what a person can read of a long kernel.
pub fn outline(mlir: &str) -> String {
    let mut out = String::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in mlir.lines() {
        let text = line.trim();
        let results = text.starts_with('%').then(|| text.split_once(" = ")).flatten();
        let name = results.map_or(text, |(_, operation)| operation);
        let name = name.split([' ', '(', '<']).next().unwrap_or_default();
        let indent = &line[..line.len() - line.trim_start().len()];
        let border = text.starts_with('}') || text.ends_with('{');
        if border && !counts.is_empty() {
            let inside = if text.starts_with('}') { format!("{indent}  ") } else { indent.to_string() };
            let all: Vec<String> = counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
            out += &format!("{inside}{}\n", all.join(", "));
            counts.clear();
        }
        if text.starts_with('}') {
            out += &format!("{indent}{text}\n");
        } else if border {
            out += &format!("{indent}{name} {{\n");
        } else if name != "arith.constant" {
            *counts.entry(name).or_default() += 1;
        }
    }
    out
}

/// A small deterministic generator (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
