//! The symbols that a generated `main` calls: a program's, and that of an executable that tries kernels.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use super::code::Code;
use crate::plan::ProgramTable;

/// Runs the command line on the program. Returns the exit code (see `cli`).
///
/// # Safety
/// `argv` holds `argc` C strings, as `main` received them; `table` is golfc's, see [`Code::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn golf_main(argc: c_int, argv: *const *const c_char, table: *const ProgramTable) -> c_int {
    // SAFETY: the caller's promise.
    let args = unsafe { arguments(argc, argv) };
    // SAFETY: the caller's promise.
    let load = || unsafe { Code::new(&*table) };
    crate::cli::main(args, load)
}

/// Runs the command line on trials of kernels. Returns the exit code.
///
/// # Safety
/// `argv` holds `argc` C strings, as `main` received them; `packed` is `length` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn golf_check_main(
    argc: c_int,
    argv: *const *const c_char,
    packed: *const u8,
    length: u64,
) -> c_int {
    // SAFETY: the caller's promise.
    let args = unsafe { arguments(argc, argv) };
    // SAFETY: the caller's promise.
    let packed = unsafe { std::slice::from_raw_parts(packed, length as usize) };
    let child = |flags: &[String]| {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into()));
        command.args(flags);
        command
    };
    crate::cli::trials::main(args, || crate::trial::Trials::unpack(packed), &child)
}

/// # Safety
/// `argv` holds `argc` C strings.
unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<OsString> {
    let one = |i: usize| {
        // SAFETY: the caller's promise.
        let arg = unsafe { CStr::from_ptr(*argv.add(i)) };
        OsString::from_vec(arg.to_bytes().to_vec())
    };
    (0..argc.max(0) as usize).map(one).collect()
}
