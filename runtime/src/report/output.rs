//! Standard output and standard error.
//!
//! *Takes* lines; *gives* nothing; *promises* that a closed standard output is [`Error::Closed`], never a panic or a signal, and that
//! a line is out when the call returns (the executable's `main` is not Rust's, so nothing flushes at the end).

use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// One line (or several) to standard output.
pub fn line(text: &str) -> Result<()> {
    write(text.as_bytes(), true)
}

/// Text as it is to standard output.
pub fn text(text: &str) -> Result<()> {
    write(text.as_bytes(), false)
}

fn write(bytes: &[u8], newline: bool) -> Result<()> {
    if cfg!(test) && std::env::var_os("GOLF_TEST_ARGS").is_none() {
        // Through the test harness, which shows it for failed tests only.
        print!("{}", String::from_utf8_lossy(bytes));
        return Ok(());
    }
    let all = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        if newline {
            out.write_all(b"\n")?;
        }
        out.flush()
    };
    all().map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::io(Path::new("standard output"), e),
    })
}

/// A line to standard error; nobody is told if that fails.
pub fn warn(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
