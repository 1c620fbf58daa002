//! Shared by the integration tests: programs of models/ and golden data.
#![allow(dead_code)]

use golf_compiler::graph::interpret::{Contents, Tensor};
use golf_compiler::lang::{Input, Model, load};
use golf_grammar::{SourceMap, render_all};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A path below the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A program of models/ with overrides, or its rendered diagnostics.
pub fn try_load(name: &str, sets: &[&str]) -> Result<Model, String> {
    let path = repository(&format!("models/{name}.golf"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut map = SourceMap::new();
    let input = Input { path: &format!("models/{name}.golf"), bytes: &bytes, sets: &sets };
    load(&mut map, &input).map_err(|list| render_all(&map, &list, false))
}

/// A program of models/ with overrides.
pub fn model(name: &str, sets: &[&str]) -> Model {
    try_load(name, sets).unwrap_or_else(|text| panic!("{text}"))
}

/// Overrides that give vrl11 the sizes of tests/golden/S1016.
pub const S1016: [&str; 17] = [
    "vocab=96",
    "dim=64",
    "heads=4",
    "kv_heads=2",
    "mlp_hidden=192",
    "seq=64",
    "rope_dims=8",
    "rope_base=10000",
    "bigram_buckets=64",
    "bigram_dim=32",
    "ve_dim=40",
    "train.batch=128",
    "train.ranks=1",
    "train.schedule=none",
    "train.muon.momentum=0.99",
    "evaluate.window=64",
    "evaluate.stride=16",
];

/// Overrides that give vrl11 the sizes of tests/golden/S1016h.
pub const S1016H: [&str; 14] = [
    "vocab=128",
    "dim=128",
    "heads=2",
    "kv_heads=1",
    "mlp_hidden=384",
    "seq=128",
    "rope_dims=16",
    "rope_base=22081.790273476247",
    "bigram_buckets=64",
    "bigram_dim=64",
    "ve_dim=64",
    "train.ranks=1",
    "train.batch=128",
    "evaluate.window=128",
];

/// All tensors of a safetensors file of the repository.
pub fn safetensors(path: &str) -> BTreeMap<String, Tensor> {
    safetensors_at(&repository(path))
}

/// All tensors of a safetensors file.
pub fn safetensors_at(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let data = &bytes[8 + header..];
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut out = BTreeMap::new();
    for (name, entry) in json.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        let list = |key: &str| -> Vec<usize> {
            entry[key].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
        };
        let (dims, range) = (list("shape"), list("data_offsets"));
        let raw = &data[range[0]..range[1]];
        let values = match entry["dtype"].as_str().unwrap() {
            "F32" => raw.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
            "I32" => raw.chunks(4).map(|b| f64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
            "BF16" => raw.chunks(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
            "F16" => raw.chunks(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
            "I8" => raw.iter().map(|b| f64::from(*b as i8)).collect(),
            "U8" => raw.iter().map(|b| f64::from(*b)).collect(),
            "I16" => raw.chunks(2).map(|b| f64::from(i16::from_le_bytes(b.try_into().unwrap()))).collect(),
            "F64" => raw.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            other => panic!("{name}: dtype {other}"),
        };
        out.insert(name.clone(), Tensor::new(&dims, values).unwrap());
    }
    out
}

/// Inputs `tokens` and `targets` from rows of T + 1 tokens.
pub fn token_inputs(rows: &Tensor) -> Contents {
    let (b, t) = (rows.dims[0], rows.dims[1] - 1);
    let pick = |from: usize| Tensor::from_fn(&[b, t], |i| rows.data[i / t * (t + 1) + i % t + from]);
    Contents::from([("tokens".to_string(), pick(0)), ("targets".to_string(), pick(1))])
}

/// ||a - b|| / ||b||
pub fn relative(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(x, y)| square(x - y)).sum();
    let size: f64 = b.iter().map(|x| square(*x)).sum();
    if size == 0.0 { error.sqrt() } else { (error / size).sqrt() }
}

/// Largest absolute difference.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}
