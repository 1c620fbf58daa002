//! Packing a session's parameters, and loading an artifact into it.
//!
//! *Takes* a [`Session`] with weights; *gives* the artifact through the plan's `pack.NAME` graphs; *promises* that what is written is what the evaluation will
//! load: parameters read back are the dequantised values, bit for bit.

use super::artifact::{self, Packed, Slot};
use crate::error::{Error, Result};
use crate::exec::Session;
use crate::files::{self, Faults};
use crate::plan::Program;
use crate::safetensors::{self, Tensor};
use half::f16;
use std::path::Path;

/// Largest artifact read, bytes: far over any cap.
const LIMIT: u64 = 1 << 30;

/// What identifies a program: its source after `--set` and the prelude definitions it uses.
pub fn program_hash(p: &Program) -> [u8; 32] {
    let mut h = blake3::Hasher::new();
    h.update(&(p.source.len() as u64).to_le_bytes());
    h.update(p.source.as_bytes());
    h.update(p.prelude.as_bytes());
    *h.finalize().as_bytes()
}

/// Exact bytes of the source after `--set` plus every prelude definition it uses: golf's reading of "code bytes".
pub fn code_bytes(p: &Program) -> u64 {
    (p.source.len() + p.prelude.len()) as u64
}

/// The storage plan of every parameter, in plan order.
pub fn slots(p: &Program, session: &Session) -> Result<Vec<Slot>> {
    p.quantize
        .params
        .iter()
        .map(|q| {
            let b = session.buffer(&q.name)?;
            let rows = b.shape.first().copied().unwrap_or(1);
            Ok(Slot { name: q.name.clone(), numel: b.numel(), rows, coded: q.graph.is_some() })
        })
        .collect()
}

/// Whether the session has the graphs of all quantisers.
pub fn has_quantisers(session: &Session) -> bool {
    let params = &session.code().program.quantize.params;
    params.iter().filter_map(|q| q.graph.as_ref()).all(|graph| session.find_graph(graph).is_some())
}

/// Quantises every parameter. `progress` gets (done, of).
pub fn quantise(session: &mut Session, progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Packed>> {
    let code = session.code().clone();
    let params = &code.program.quantize.params;
    let mut all = Vec::with_capacity(params.len());
    for (i, q) in params.iter().enumerate() {
        let buffer = session.buffer(&q.name)?;
        let values = session.read_f32(&buffer)?;
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::input(format!("{}: element {at} is {}, which cannot be packed", q.name, values[at])));
        }
        all.push(match &q.graph {
            None => Packed::Half(halves(&q.name, &values)?),
            Some(name) => {
                let graph = session.graph(name)?;
                session.run(graph)?;
                let codes = session.read_i8(&session.output(graph, "codes")?)?;
                let scale = session.read_f32(&session.output(graph, "scale")?)?;
                Packed::Codes { codes, scale: scale.iter().map(|&s| f16::from_f32(s)).collect() }
            }
        });
        progress(i + 1, params.len());
    }
    Ok(all)
}

fn halves(name: &str, values: &[f32]) -> Result<Vec<f16>> {
    let all: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
    match all.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(Error::input(format!("{name}: element {at} is {}, beyond the range of fp16", values[at]))),
        None => Ok(all),
    }
}

/// Writes the artifact file; gives its bytes. Error (exit 1) if `bytes_model + bytes_code` exceeds the cap: nothing is left behind then.
pub fn write(p: &Program, packed: &[Packed], path: &Path, faults: &Faults) -> Result<u64> {
    if p.quantize.codec != "zstd" {
        return Err(Error::input(format!("codec `{}` is not implemented in this build", p.quantize.codec)));
    }
    let file = artifact::write(&program_hash(p), packed, p.quantize.level)?;
    let (model, code) = (file.len() as u64, code_bytes(p));
    if model + code > p.quantize.cap {
        return Err(Error::input(format!(
            "the artifact has {model} bytes and the code {code}: {} together, {} over the cap of {}",
            model + code,
            model + code - p.quantize.cap,
            p.quantize.cap
        )));
    }
    files::atomic_bytes(path, "artifact", faults, &file)?;
    Ok(model)
}

/// Loads an artifact of this program into the parameters.
pub fn load(session: &mut Session, path: &Path) -> Result<()> {
    let code = session.code().clone();
    let p = &code.program;
    let file = files::read_bounded(path, LIMIT)?;
    let slots = slots(p, session)?;
    let packed = artifact::read(path, &file, &program_hash(p), &slots)?;
    for (slot, packed) in slots.iter().zip(&packed) {
        let buffer = session.buffer(&slot.name)?;
        session.write_f32(&buffer, &packed.dequantise())?;
    }
    Ok(())
}

/// Writes `q.NAME`, `scale.NAME` and `dequant.NAME` of every coded parameter.
pub fn save_codes(session: &Session, p: &Program, packed: &[Packed], path: &Path, faults: &Faults) -> Result<()> {
    let mut tensors: Vec<(String, Vec<usize>, Tensor)> = Vec::new();
    for (q, x) in p.quantize.params.iter().zip(packed) {
        let Packed::Codes { codes, scale } = x else { continue };
        let shape = session.buffer(&q.name)?.shape;
        let rows = vec![scale.len()];
        tensors.push((format!("q.{}", q.name), shape.clone(), Tensor::I8(codes.clone())));
        tensors.push((format!("scale.{}", q.name), rows, Tensor::F16(scale.iter().map(|s| s.to_f32()).collect())));
        tensors.push((format!("dequant.{}", q.name), shape, Tensor::F32(x.dequantise())));
    }
    safetensors::save_all(path, "codes", faults, &tensors)
}
