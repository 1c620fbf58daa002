//! The generated part of the executable.
//!
//! *Takes* the [`ProgramTable`] of the generated object; *gives* the decoded [`Program`] and its kernels' entry points;
//! *promises* that whatever it returns passed [`crate::check::program`] and has an entry for every kernel.

use crate::error::{Error, Result};
use crate::plan::{KernelFn, PLAN_VERSION, Program, ProgramTable};

/// No plan is nearly as large once unpacked; a damaged length must not take the machine's memory.
const PLAN_LIMIT: usize = 1 << 30;

/// A program and its machine code.
pub struct Code {
    /// The plan.
    pub program: Program,
    /// BLAKE3 of the packed plan: the identity of the program in ledgers, checkpoints and receipts.
    pub hash: blake3::Hash,
    /// `entries[variant][tier * kernels + kernel]`.
    entries: Vec<Vec<Option<KernelFn>>>,
}

impl Code {
    /// Reads the table. Errors (exit 1: the executable is damaged or from another golfc) name what does not fit.
    ///
    /// # Safety
    /// `table` is what golfc generated or the same made by hand: `plan` points to `plan_len` readable bytes; `kernels` to one pointer
    /// per variant, each to `tiers * kernels` entries; every entry is a kernel that, run for tasks `0..tasks` of a
    /// [`crate::plan::Call`], touches only the buffers behind its arguments and its scratch, disjointly between tasks.
    pub unsafe fn new(table: &ProgramTable) -> Result<Code> {
        if table.version != u64::from(PLAN_VERSION) {
            let (found, want) = (table.version, PLAN_VERSION);
            return Err(Error::input(format!(
                "this executable holds a plan of version {found}, its runtime reads {want}"
            )));
        }
        // SAFETY: the caller's promise.
        let packed = unsafe { std::slice::from_raw_parts(table.plan, table.plan_len as usize) };
        let program = unpack(packed)?;
        crate::check::program(&program)?;
        let mut entries = Vec::new();
        for (v, variant) in program.variants.iter().enumerate() {
            if variant.device != "cpu" {
                // Its code is in the plan, see `Variant::modules`.
                entries.push(Vec::new());
                continue;
            }
            let count = program.tiers.len() * variant.kernels.len();
            // SAFETY: the caller's promise.
            let list = unsafe { std::slice::from_raw_parts(*table.kernels.add(v), count) };
            for (i, entry) in list.iter().enumerate() {
                let kernel = &variant.kernels[i % variant.kernels.len()];
                if entry.is_none() && kernel.builtin.is_none() {
                    let tier = &program.tiers[i / variant.kernels.len()].name;
                    return Err(damaged(&format!("kernel {} has no code for {tier}", kernel.symbol)));
                }
            }
            entries.push(list.to_vec());
        }
        Ok(Code { program, hash: blake3::hash(packed), entries })
    }

    /// The entry of a kernel; `None` for built-ins.
    pub(super) fn entry(&self, variant: usize, tier: usize, kernel: usize) -> Option<KernelFn> {
        self.entries[variant][tier * self.program.variants[variant].kernels.len() + kernel]
    }
}

fn damaged(what: &str) -> Error {
    Error::input(format!("the plan inside this executable is damaged: {what}"))
}

/// zstd, then postcard.
fn unpack(packed: &[u8]) -> Result<Program> {
    let plain = zstd::bulk::Decompressor::new()
        .and_then(|mut z| {
            let size = zstd::bulk::Decompressor::upper_bound(packed).unwrap_or(PLAN_LIMIT);
            z.decompress(packed, size.min(PLAN_LIMIT))
        })
        .map_err(|e| damaged(&e.to_string()))?;
    postcard::from_bytes(&plain).map_err(|e| damaged(&e.to_string()))
}

/// The packed form that [`Code::new`] reads: postcard, then zstd at `level`. What golfc puts into the executable.
pub fn pack(program: &Program, level: i32) -> Result<Vec<u8>> {
    let plain = postcard::to_stdvec(program).map_err(|e| damaged(&e.to_string()))?;
    zstd::bulk::compress(&plain, level).map_err(|e| Error::machine(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_other_versions_and_noise() {
        let noise = [1u8, 2, 3, 4];
        let mut table = ProgramTable { version: 999, plan: noise.as_ptr(), plan_len: 4, kernels: std::ptr::null() };
        // SAFETY: `plan` is 4 readable bytes; neither call gets as far as the kernels.
        let e = unsafe { Code::new(&table) }.err().expect("version");
        assert!(e.to_string().contains("version 999"), "{e}");
        table.version = u64::from(PLAN_VERSION);
        // SAFETY: as above.
        let e = unsafe { Code::new(&table) }.err().expect("noise");
        assert!(e.to_string().contains("damaged"), "{e}");
    }
}
