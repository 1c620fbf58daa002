//! The runtime's one error type: what went wrong, where, and the exit code it means.
//!
//! *Takes* what a module knows (a file, an offset, a message); *gives* a value that prints as one clear line; *promises* the exit codes of
//! the command line: 1 an input is wrong, 2 wrong usage, 3 the machine, 130 and 143 after a signal.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Result of everything in the runtime that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that ends a command without success. Messages start in lower case and say what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An input is wrong: data, tokenizer, weights, artifact, checkpoint, receipt; or the cap is exceeded. Exit code 1.
    Input {
        /// The file it was read from, if it came from a file.
        file: Option<PathBuf>,
        /// Byte offset in that file of the first byte that is wrong or missing.
        offset: Option<u64>,
        /// What was expected and what was found.
        message: String,
    },
    /// The command line is wrong. Exit code 2.
    Usage {
        /// What to change.
        message: String,
    },
    /// The machine failed or lacks something: disk full, no permission, out of memory, no driver. Exit code 3.
    Machine {
        /// The file being read or written, if any.
        file: Option<PathBuf>,
        /// What failed.
        message: String,
    },
    /// A signal asked the process to end; what was to be saved is saved. Exit code 128 + its number.
    Interrupted {
        /// SIGINT (2), SIGTERM (15).
        signal: i32,
    },
    /// Nobody reads standard output any more. Ends quietly, exit code 0.
    Closed,
}

impl Error {
    /// A wrong input that is not (or no longer) tied to a file.
    pub fn input(message: impl Into<String>) -> Error {
        Error::Input { file: None, offset: None, message: message.into() }
    }

    /// A wrong file.
    pub fn file(file: impl AsRef<Path>, message: impl Into<String>) -> Error {
        Error::Input { file: Some(file.as_ref().into()), offset: None, message: message.into() }
    }

    /// A wrong byte of a file.
    pub fn at(file: impl AsRef<Path>, offset: u64, message: impl Into<String>) -> Error {
        Error::Input { file: Some(file.as_ref().into()), offset: Some(offset), message: message.into() }
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::Usage { message: message.into() }
    }

    /// The machine's fault.
    pub fn machine(message: impl Into<String>) -> Error {
        Error::Machine { file: None, message: message.into() }
    }

    /// A failed system call on `file`: what is missing, too short or not of the right kind is a wrong input, everything else
    /// (permission, disk full, a dying disk) is the machine.
    pub fn io(file: impl AsRef<Path>, error: io::Error) -> Error {
        use io::ErrorKind as K;
        let file = Some(file.as_ref().to_path_buf());
        match error.kind() {
            K::NotFound => Error::Input { file, offset: None, message: "no such file or directory".into() },
            K::UnexpectedEof => Error::Input { file, offset: None, message: "ends too early".into() },
            K::InvalidData | K::InvalidInput | K::IsADirectory | K::NotADirectory => {
                Error::Input { file, offset: None, message: system_message(&error) }
            }
            _ => Error::Machine { file, message: system_message(&error) },
        }
    }

    /// The exit code of the process that ends with this error.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Input { .. } => 1,
            Error::Usage { .. } => 2,
            Error::Machine { .. } => 3,
            Error::Interrupted { signal } => 128 + signal,
            Error::Closed => 0,
        }
    }
}

/// `No such file or directory (os error 2)` → `no such file or directory`.
fn system_message(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_else(|| "unknown error".into())
}

impl fmt::Display for Error {
    /// `FILE, byte N: message`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input { file: Some(file), offset: Some(offset), message } => {
                write!(f, "{}, byte {offset}: {message}", file.display())
            }
            Error::Input { file: Some(file), message, .. } | Error::Machine { file: Some(file), message } => {
                write!(f, "{}: {message}", file.display())
            }
            Error::Input { message, .. } | Error::Usage { message } | Error::Machine { message, .. } => {
                f.write_str(message)
            }
            Error::Interrupted { signal } => write!(f, "interrupted by signal {signal}"),
            Error::Closed => f.write_str("standard output was closed"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_file_and_offset() {
        let e = Error::at("d/x.bin", 1024, "token 2000 is not below the vocabulary of 1024");
        assert_eq!(e.to_string(), "d/x.bin, byte 1024: token 2000 is not below the vocabulary of 1024");
        assert_eq!(e.exit_code(), 1);
    }

    #[test]
    fn sorts_system_errors_by_fault() {
        let missing = Error::io("d", std::fs::read("/nonexistent/x").unwrap_err());
        assert_eq!((missing.exit_code(), missing.to_string().as_str()), (1, "d: no such file or directory"));
        let full = Error::io("d", io::Error::from_raw_os_error(28));
        assert_eq!((full.exit_code(), full.to_string().as_str()), (3, "d: no space left on device"));
        assert_eq!(Error::usage("x").exit_code(), 2);
    }
}
