//! A consistent forgery of an evaluation, to show what `verify` proves at which level.
//!
//! `forge RUN` lowers every loss of the evaluation in RUN by one percent and recomputes everything that a forger can recompute: nll.f32,
//! the sums, the hashes and the chain of receipt.jsonl.

use golf_runtime::error::{Error, Result};
use golf_runtime::eval::protocol::{Files, read_nll};
use golf_runtime::eval::receipt::{self, ChunkLine, End, Writer};
use std::path::Path;
use std::process::ExitCode;

/// Forges the evaluation in `out`; gives its new losses.
pub fn forge(out: &Path) -> Result<Vec<f32>> {
    let files = Files::of(out);
    let honest = receipt::read(&files.receipt)?;
    let nll: Vec<f32> = read_nll(&files.nll, honest.header.targets)?.iter().map(|x| x * 0.99).collect();
    let bytes: Vec<u8> = nll.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(&files.nll, bytes).map_err(|e| Error::io(&files.nll, e))?;

    let mut writer = Writer::create(&files.receipt, honest.header)?;
    let mut total = 0.0;
    for chunk in honest.chunks {
        let losses = &nll[chunk.first as usize..(chunk.first + chunk.count) as usize];
        let sum: f64 = losses.iter().map(|&x| x as f64).sum();
        total += sum;
        writer.chunk(ChunkLine { sum_nll: receipt::hex_f64(sum), nll: receipt::hash_f32(losses), ..chunk })?;
    }
    let end = honest.end.ok_or_else(|| Error::file(&files.receipt, "has no end line"))?;
    writer.end(End { sum_nll: receipt::hex_f64(total), ..end })?;
    Ok(nll)
}

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1) else {
        eprintln!("usage: forge RUN");
        return ExitCode::from(2);
    };
    match forge(Path::new(&out)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
