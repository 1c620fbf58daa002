//! PTX into loaded code.
//!
//! *Takes* PTX texts; *gives* the driver's modules in the same order; *promises* to assemble on all CPU threads (the driver keeps what it
//! assembled in a cache of its own), and for a text that does not assemble the assembler's own words.

use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::driver::{self, Driver, Handle};
use crate::error::{Error, Result};

/// Room for the assembler's words, bytes.
const LOG: usize = 16 << 10;

/// A handle that goes to another thread: contexts and modules belong to no thread.
#[derive(Clone, Copy)]
struct Sent(Handle);

// SAFETY: the driver's handles may be used from any thread (its API is thread-safe); this only moves the value.
unsafe impl Send for Sent {}
// SAFETY: as above; nothing is read through it on this side.
unsafe impl Sync for Sent {}

/// Least driver for the `.version` line of a PTX text, as `cuDriverGetVersion` counts.
fn needs(ptx: &str) -> Option<(c_int, String)> {
    let line = ptx.lines().find_map(|l| l.trim().strip_prefix(".version"))?.trim();
    let (major, minor) = line.split_once('.')?;
    let (major, minor): (c_int, c_int) = (major.parse().ok()?, minor.parse().ok()?);
    // PTX 8.0 came with CUDA 12.0 and each minor version with the next, but for 8.4 to 8.8 (12.4, 12.5, 12.7, 12.8, 12.9); 9.0 with 13.0.
    let cuda = match (major, minor) {
        (8, 6..) => 12_010 + minor * 10,
        _ => (major + 4) * 1000 + minor * 10,
    };
    Some((cuda, format!("PTX {line}")))
}

/// Loads the texts into the context, those that can be.
pub(super) fn load(
    driver: &Driver,
    context: Handle,
    texts: &[&str],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Result<Handle>>> {
    if let Some((least, what)) = texts.iter().filter_map(|t| needs(t)).max() {
        driver.at_least(least, &format!("this program's code ({what})"))?;
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(texts.len()).max(1);
    let next = AtomicUsize::new(0);
    let context = Sent(context);
    let mut loaded: Vec<Option<Result<Sent>>> = vec![None; texts.len()];
    std::thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        for _ in 0..threads {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                let context = context;
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(text) = texts.get(i) else { return };
                    if send.send((i, one(driver, context, text))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut done = 0;
        loop {
            match receive.recv_timeout(Duration::from_millis(500)) {
                Ok((i, module)) => {
                    loaded[i] = Some(module);
                    done += 1;
                }
                Err(RecvTimeoutError::Timeout) => progress(done, texts.len()),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    let missing = || Err(Error::machine("assembling kernels was given up"));
    Ok(loaded.into_iter().map(|m| m.unwrap_or_else(missing).map(|m| m.0)).collect())
}

fn one(driver: &Driver, context: Sent, text: &str) -> Result<Sent> {
    let image = CString::new(text).map_err(|_| Error::input("a PTX text holds a zero byte"))?;
    let mut log = vec![0u8; LOG];
    let mut names = [driver::JIT_ERROR_LOG, driver::JIT_ERROR_LOG_BYTES];
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), (LOG - 1) as *mut c_void];
    let mut module = null_mut();
    // SAFETY: a living context; a C string; two options with their values, the log being as long as its size says.
    let result = unsafe {
        driver.set_current(context.0).and_then(|()| {
            let image = image.as_ptr().cast();
            driver.module_load(&mut module, image, 2, names.as_mut_ptr(), values.as_mut_ptr())
        })
    };
    result.map_err(|status| {
        let end = log.iter().position(|&b| b == 0).unwrap_or(0);
        let log = String::from_utf8_lossy(&log[..end]);
        let entry = text.lines().find(|l| l.contains(".entry")).unwrap_or_default().trim();
        let words = [entry, log.trim()].iter().filter(|t| !t.is_empty()).fold(String::new(), |all, t| all + "\n" + t);
        Error::machine(format!(
            "the NVIDIA driver does not take a kernel of this program ({status}): a bug of golfc{words}"
        ))
    })?;
    Ok(Sent(module))
}

/// Words for a first start that takes long, on standard error.
pub fn progress(name: &str) -> impl FnMut(usize, usize) {
    let begin = std::time::Instant::now();
    let mut said = 0;
    let name = name.to_string();
    move |done, of| {
        let seconds = begin.elapsed().as_secs();
        if seconds >= said + 2 {
            said = seconds;
            crate::report::output::warn(&format!("assembling kernels for {name}: {done} of {of}"));
        }
    }
}

/// As people write a version; for tests of [`needs`].
#[cfg(test)]
fn shown(ptx: &str) -> Option<String> {
    needs(ptx).map(|(v, _)| driver::version(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_versions_and_the_drivers_that_have_them() {
        for (ptx, cuda) in
            [("8.0", "12.0"), ("8.4", "12.4"), ("8.5", "12.5"), ("8.6", "12.7"), ("8.8", "12.9"), ("9.0", "13.0")]
        {
            assert_eq!(shown(&format!("//\n.version {ptx}\n.target sm_90a\n")).as_deref(), Some(cuda), "{ptx}");
        }
        assert_eq!(shown("nothing"), None);
    }
}
