//! `run pack` and its part of `run all`.

use std::path::PathBuf;

use super::pack as packing;
use crate::error::{Error, Result};
use crate::report::progress::Progress;
use crate::report::{Record, ledger, submission};
use crate::run::{ARTIFACT, Run};

/// What the command line asks of packing.
#[derive(Clone, Debug)]
pub struct Request {
    /// File for `q.NAME`, `scale.NAME` and `dequant.NAME`.
    pub codes: Option<PathBuf>,
}

/// Packs the weights in the session into the run's `artifact.golfa`, records the byte counts and enforces the cap.
pub fn pack(run: &mut Run, request: &Request) -> Result<()> {
    let code = run.session.code().clone();
    let p = &code.program;
    let mut progress = Progress::new("pack");
    let (signals, mut failed) = (run.signals.clone(), Ok(()));
    // A GPU whose code lacks a quantiser lends its weights.
    let mut lent = if packing::has_quantisers(&run.session) { None } else { run.session.on_cpu()? };
    if lent.is_some() {
        let device = run.session.device_kind();
        run.note(format!("pack:on the CPU, for this program has no {device} code for its quantisers"))?;
    }
    let packed = packing::quantise(lent.as_mut().unwrap_or(&mut run.session), &mut |done, of| {
        if failed.is_ok() {
            let (d, n) = (done as u64, of as u64);
            failed = signals
                .check()
                .and_then(|()| progress.update(d, n, d as f64 / n as f64, &format!("pack:{d}/{n} tensors"), false));
        }
    })?;
    failed?;
    drop(lent);
    if let Some(path) = &request.codes {
        packing::save_codes(&run.session, p, &packed, path, &run.faults)?;
    }
    let path = run.out.join(ARTIFACT);
    let bytes_model = packing::write(p, &packed, &path, &run.faults)?;
    let executable = std::env::current_exe()
        .and_then(std::fs::metadata)
        .map_err(|e| Error::machine(format!("own executable: {e}")))?;
    run.say(Record::Packed {
        bytes_model,
        bytes_code: packing::code_bytes(p),
        bytes_executable: executable.len(),
        cap: p.quantize.cap,
        artifact: crate::eval::receipt::hash_file(&path)?,
    })?;
    submission::publish(&run.out, p, &ledger::entries(&run.out)?, &run.faults)
}
