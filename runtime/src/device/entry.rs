//! The one symbol an executable's generated `main` calls.

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;

use super::code::Code;
use crate::plan::ProgramTable;

/// Runs the command line on the program. Returns the exit code (see `cli`).
///
/// # Safety
/// `argv` holds `argc` C strings, as `main` received them; `table` is golfc's, see [`Code::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn golf_main(argc: c_int, argv: *const *const c_char, table: *const ProgramTable) -> c_int {
    let args = (0..argc.max(0) as usize).map(|i| {
        // SAFETY: the caller's promise.
        let arg = unsafe { CStr::from_ptr(*argv.add(i)) };
        OsString::from_vec(arg.to_bytes().to_vec())
    });
    // SAFETY: the caller's promise.
    let load = || unsafe { Code::new(&*table) };
    crate::cli::main(args.collect(), load)
}
