//! Packing a session's parameters, and loading an artifact into it.
//!
//! *Takes* a [`Session`] with weights; *gives* the artifact through the plan's `pack.NAME` graphs; *promises* that what is written is what the evaluation will
//! load: parameters read back are the dequantised values, bit for bit.

use super::artifact::{self, Packed, Slot};
use super::inverse::Factor;
use crate::device::Pool;
use crate::error::{Error, Result};
use crate::exec::{GraphId, Session};
use crate::files::{self, Faults};
use crate::plan::{CALIBRATE, InverseFactor, PackParam, Program};
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

/// Whether the session has all graphs that packing runs: those of quantisers, and of calibration if the program calibrates.
pub fn has_graphs(session: &Session) -> bool {
    let q = &session.code().program.quantize;
    let quantisers = q.params.iter().filter_map(|q| q.graph.as_deref());
    quantisers.chain(q.calibrate.as_ref().map(|_| CALIBRATE)).all(|graph| session.find_graph(graph).is_some())
}

/// Quantises every parameter; a program that calibrates has done so. `progress` gets (done, of), and may end it.
pub fn quantise(session: &mut Session, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Vec<Packed>> {
    let code = session.code().clone();
    let params = &code.program.quantize.params;
    let mut latest: Option<(InverseFactor, Factor)> = None;
    let mut all: Vec<Option<Packed>> = params.iter().map(|_| None).collect();
    for (done, i) in turns(params).into_iter().enumerate() {
        let q = &params[i];
        let buffer = session.buffer(&q.name)?;
        let values = session.read_f32(&buffer)?;
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err(Error::input(format!("{}: element {at} is {}, which cannot be packed", q.name, values[at])));
        }
        all[i] = Some(match &q.graph {
            None => Packed::Half(halves(&q.name, &values)?),
            Some(name) => {
                let graph = session.graph(name)?;
                if let Some(how) = &q.inverse {
                    let (_, factor) = match latest.take().filter(|(of, _)| of == how) {
                        Some(same) => latest.insert(same),
                        None => latest.insert((how.clone(), factor(session, &q.name, how)?)),
                    };
                    write_factor(session, graph, factor)?;
                }
                session.run(graph)?;
                let codes = session.read_i8(&session.output(graph, "codes")?)?;
                let scale = session.read_f32(&session.output(graph, "scale")?)?;
                Packed::Codes { codes, scale: scale.iter().map(|&s| f16::from_f32(s)).collect() }
            }
        });
        progress(done + 1, params.len())?;
    }
    Ok(all.into_iter().flatten().collect())
}

/// Parameters in the order in which they are packed: those that share a factor one after the other, so that only the latest is kept.
fn turns(params: &[PackParam]) -> Vec<usize> {
    let first = |&i: &usize| match &params[i].inverse {
        Some(_) => params.iter().position(|q| q.inverse == params[i].inverse),
        None => Some(i),
    };
    let mut turns: Vec<usize> = (0..params.len()).collect();
    turns.sort_by_key(first);
    turns
}

/// What the host computes between calibration and `param`'s quantiser. Error: the inputs' sums of squares have no such factor.
fn factor(session: &Session, param: &str, how: &InverseFactor) -> Result<Factor> {
    let tap = session.buffer(&how.tap)?;
    let n = tap.shape.first().copied().unwrap_or(0);
    let threads = session.threads();
    let mut pool =
        Pool::new(threads).map_err(|e| Error::machine(format!("cannot start {threads} threads to pack with: {e}")))?;
    Factor::new(&session.read_f32(&tap)?, n, how, &mut pool).ok_or_else(|| {
        Error::input(format!(
            "{param}: the sums of squares of its inputs over the calibration tokens are not positive definite with damp = {}: give its quantiser \
             a larger `damp` (if none helps, the sums are not finite)",
            how.damp
        ))
    })
}

/// Writes the factor into the inputs of a quantiser's graph.
fn write_factor(session: &mut Session, graph: GraphId, factor: &Factor) -> Result<()> {
    session.write_i32(&session.input(graph, "order")?, &factor.order)?;
    session.write_f32(&session.input(graph, "live")?, &factor.live)?;
    session.write_f32(&session.input(graph, "upper")?, &factor.upper)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_share_a_factor_are_neighbours() {
        let param = |tap: &str, damp| PackParam {
            name: String::new(),
            rule: String::new(),
            graph: None,
            inverse: (!tap.is_empty()).then(|| InverseFactor { tap: tap.into(), damp, descending: true }),
        };
        let params = [("a", 0.1), ("", 0.0), ("b", 0.1), ("a", 0.2), ("a", 0.1), ("", 0.0), ("b", 0.1)];
        assert_eq!(turns(&params.map(|(tap, damp)| param(tap, damp))), [0, 4, 1, 2, 6, 3, 5]);
    }
}
